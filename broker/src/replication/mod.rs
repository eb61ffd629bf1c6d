//! Partitions as brokers keep them together: leadership, the in-sync set, the high watermark, and
//! who waits for it.
//!
//! Deciding is apart from doing: `role`, `leader`, `follower` and `fetcher` are state machines
//! without I/O, told by transcripts beside them; `world` runs them against each other. A
//! [`Partition`] hosts those of its role over a real log, and leaves in `outbox` what they ask of
//! others; the node's tasks take it from there.

pub(crate) mod deliver;
pub(crate) mod fetcher;
pub(crate) mod follower;
#[cfg(test)]
mod following_tests;
pub(crate) mod leader;
mod manager;
pub(crate) mod outbox;
mod own_log;
mod partition;
mod read;
pub(crate) mod role;
#[cfg(test)]
mod tests;
pub(crate) mod waiters;
#[cfg(test)]
mod world;

pub(crate) use manager::{ReplicaManager, set_lost_aside};
pub(crate) use partition::{Acks, AppendRefused, Appended, Partition, Within};
pub(crate) use read::Wanted;
pub(crate) use waiters::Ticket;
