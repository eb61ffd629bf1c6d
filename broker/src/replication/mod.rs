//! Partitions as brokers keep them together: leadership, the in-sync set, the high watermark, and
//! who waits for it. May use `log`; deciding is in [`leader`], without I/O.

pub mod deliver;
pub mod leader;
mod manager;
mod partition;
#[cfg(test)]
mod tests;
pub mod waiters;

pub use manager::ReplicaManager;
pub use partition::{Acks, AppendRefused, Appended, Partition, Within};
pub use waiters::Ticket;
