//! Partitions as brokers keep them together: leadership, the in-sync set, the high watermark, and
//! who waits for it.
//!
//! Deciding is apart from doing: `role`, `leader`, `follower` and `fetcher` are state machines
//! without I/O, told by transcripts beside them; `world` runs them against each other. Followers
//! and fetchers are not wired to a network yet: each partition has one replica (`REPLICAS_MAX`).

pub mod deliver;
#[allow(dead_code, reason = "not wired to a network yet: partitions have one replica")]
mod fetcher;
#[allow(dead_code, reason = "not wired to a network yet: partitions have one replica")]
mod follower;
#[allow(dead_code, reason = "not wired to a network yet: partitions have one replica")]
pub mod leader;
mod manager;
mod own_log;
mod partition;
mod read;
mod role;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod transcript;
pub mod waiters;
#[cfg(test)]
mod world;

/// How many replicas of each partition this version keeps.
pub(crate) const REPLICAS_MAX: usize = 1;

pub use manager::ReplicaManager;
pub use partition::{Acks, AppendRefused, Appended, Partition, Within};
pub use read::{Shown, Wanted};
pub use role::Commit;
pub use waiters::Ticket;
