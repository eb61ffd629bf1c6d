//! Letterbox: a Kafka-compatible broker.
//!
//! [`node`] starts and stops it. Arrows between the modules: ARCHITECTURE.md, held by
//! `letterbox/tests/layers.rs`. Nothing uses [`node`].
//! What the nodes of a cluster agree on is in the crate `letterbox_cluster`.

pub use letterbox_cluster::{config, controller, metadata, quorum};

mod coordinator;
mod lifecycle;
mod metrics;
pub mod node;
mod replication;
mod request;
mod security;
mod server;
