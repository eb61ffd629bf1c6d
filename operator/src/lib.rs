//! The operator of Letterbox, and the planner it shares with `letterbox up`.
//!
//! Deciding and doing are apart. [`api`] is what users write and read; [`desired`] turns it into
//! whole objects; [`plan`] compares those with what was observed and answers with ordered steps and
//! the reason for every wait; [`status`] says it in conditions. None of these four does any I/O. A
//! [`platform`] reads the world and carries steps out: Kubernetes, local processes, or a model in
//! tests.

pub mod admin;
pub mod api;
pub mod desired;
pub mod observe;
pub mod plan;
pub mod platform;
pub mod reconcile;
pub mod status;
pub mod up;

#[cfg(feature = "kubernetes")]
pub mod controller;
