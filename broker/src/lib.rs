//! Letterbox: a Kafka-compatible broker.
//!
//! [`node`] starts and stops it. Arrows between the modules: ARCHITECTURE.md, held by
//! `letterbox/tests/layers.rs`. Nothing uses [`node`].

pub mod config;
pub mod controller;
mod coordinator;
pub mod metadata;
mod metrics;
pub mod node;
pub mod quorum;
mod replication;
mod request;
mod security;
mod server;
