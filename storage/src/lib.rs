//! The log of a partition, in Apache Kafka's format on disk.
//!
//! A partition directory `topic-N` holds segments (`.log`, `.index`, `.timeindex`), snapshots of
//! producers (`.snapshot`), `leader-epoch-checkpoint` and `partition.metadata`; a log directory
//! holds the checkpoints of all its partitions. Kafka's own dump tool reads them.
//!
//! What must stay true:
//! - An append touches the page cache only; an acknowledgement that waits for the device waits for
//!   [`DurabilityObserver::durable`].
//! - After a failed write or sync a log directory takes nothing more. No sync is ever tried again.
//! - The recovery point is written after everything below it is on the device: data, indexes,
//!   producers.
//! - Below the recovery point nothing is ever cut by recovery.
//!
//! Not here: transactions (`.txnindex`).

mod checkpoint;
mod cleaner;
mod cold;
mod config;
mod dir;
mod error;
mod fence;
mod lifecycle;
mod manager;
mod memory;
mod open;
mod open_segments;
mod partition;
mod partition_table;
mod producers;
mod progress;
mod read;
mod recover;
mod repack;
mod retention;
mod segment;
mod sync;
mod tail_cache;
#[cfg(test)]
mod tests;
mod types;
mod under_way;
mod upkeep;
mod validate;

pub use cold::ColdReads;
pub use config::{CleanupPolicy, CompressionType, LogConfig, TimestampType};
pub use dir::LogDir;
pub use error::{AppendError, LogError, ReadError, RecordError};
pub use lifecycle::WantedLog;
pub use manager::{LogManager, LogManagerOptions, OfflineLog};
pub use open_segments::{AnswerFile, sealed_files_max};
pub use partition::{Log, Loss};
pub use producers::ProducerView;
pub use progress::OpenProgress;
pub use recover::{Recovered, recover};
pub use tail_cache::COPIED_BELOW;
pub use types::{
    AppendInfo, AppendOptions, DurabilityObserver, Origin, ReadResult, Slice, TimestampOffset,
};
pub use validate::{Effort, ValidBatch, Validated};
