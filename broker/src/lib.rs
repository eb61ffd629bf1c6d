//! Letterbox: a Kafka-compatible broker.
//!
//! Arrows between the modules: ARCHITECTURE.md, held by `letterbox/tests/layers.rs`. Nothing uses
//! [`server`].

pub mod config;
pub mod controller;
pub mod coordinator;
pub mod metadata;
pub mod metrics;
pub mod quorum;
pub mod replication;
pub mod server;
