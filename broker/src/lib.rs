//! Letterbox: a Kafka-compatible broker.
//!
//! [`node`] starts and stops it. Arrows between the modules: ARCHITECTURE.md, held by
//! `letterbox/tests/layers.rs`. Nothing uses [`node`].

pub mod config;
pub mod controller;
pub mod coordinator;
pub mod metadata;
pub mod metrics;
pub mod node;
pub mod quorum;
pub mod replication;
pub mod request;
pub mod security;
mod server;
