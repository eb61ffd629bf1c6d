//! Partitions as brokers keep them together: leadership, the in-sync set, the high watermark, and
//! who waits for it. Deciding is in [`role`] and [`leader`], without I/O.

pub mod deliver;
pub mod leader;
mod manager;
mod partition;
mod role;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod transcript;
pub mod waiters;

pub use manager::ReplicaManager;
pub use partition::{Acks, AppendRefused, Appended, Partition, Within};
pub use waiters::Ticket;
