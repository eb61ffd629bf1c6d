//! Whole Letterbox clusters in one thread under one seed, and the checkers of histories.
//!
//! - [`cluster::Cluster`] runs hosts, clients, networks and disks on turmoil. The same seed gives
//!   the same [`trace::Trace`], event for event.
//! - [`mod@env`] is the simulated side of [`letterbox_env::Env`]; [`disk`] is a disk that loses and
//!   tears what was not synced, and fails as real ones do.
//! - [`history`] is what clients saw, one JSON line per event; [`check`] finds what may not have
//!   happened. Every other tier (real processes, kind) feeds its histories to the same checkers
//!   through `letterbox-check`.
//! - [`transcript`] runs scripts of events against what decides without I/O.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on has failed"))]

#[cfg(not(tokio_unstable))]
compile_error!(
    "the simulation needs RUSTFLAGS=\"--cfg tokio_unstable\" (set in .cargo/config.toml): \
     without it tokio's own random numbers are not seeded and the same seed gives different runs"
);

pub mod check;
pub mod cluster;
pub mod disk;
pub mod env;
pub mod history;
pub mod rng;
pub mod seeds;
pub mod trace;
pub mod transcript;
pub mod workload;
