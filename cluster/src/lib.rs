//! What the nodes of a cluster agree on, and how: settings, metadata, the quorum, its controller.
//!
//! No record passes here: the release profile makes this crate as small as it can be. Arrows between
//! the modules: ARCHITECTURE.md, held by `letterbox/tests/layers.rs`.

pub mod config;
pub mod controller;
pub mod metadata;
pub mod quorum;
