//! Letterbox: a Kafka-compatible broker.
//!
//! Arrows read "may use"; nothing uses [`server`] (ARCHITECTURE.md):
//! `model` ← `wire` ← `log` ← `replication` ← `coordinator` ← `server`, and `model` ← `metadata` ← `quorum`.

pub mod config;
pub mod coordinator;
pub mod log;
pub mod metadata;
pub mod metrics;
pub mod model;
pub mod quorum;
pub mod replication;
pub mod server;
pub mod wire;
