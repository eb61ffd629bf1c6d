//! Letterbox: a Kafka-compatible broker.
//!
//! Arrows read "may use"; nothing uses [`server`] (ARCHITECTURE.md):
//! `model` ← `wire` ← `log` ← `replication` ← `coordinator` ← `server`, and `model` ← `metadata` ← `quorum`.

pub mod config;
pub mod coordinator;
pub mod metadata;
pub mod metrics;
pub mod quorum;
pub mod replication;
pub mod server;

pub use letterbox_protocol as wire;
pub use letterbox_protocol::model;
pub use letterbox_storage as log;
