//! The log of a partition, in Apache Kafka's format on disk.

mod config;
mod error;
mod manager;
mod partition;
mod types;

pub use config::{CleanupPolicy, CompressionType, LogConfig, TimestampType};
pub use error::{AppendError, LogError, ReadError, RecordError};
pub use manager::{LogManager, LogManagerOptions, OfflineLog};
pub use partition::Log;
pub use types::{AppendInfo, AppendOptions, DurabilityObserver, Origin, ReadResult, Slice, TimestampOffset};
