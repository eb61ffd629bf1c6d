//! A topic's configuration, as far as its log is concerned.

use letterbox_protocol::batch::{Compression, UNPACKED_BYTES_MAX};

/// What `cleanup.policy` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanupPolicy {
    /// Old segments are deleted by age and size.
    pub delete: bool,
    /// The last record of each key is kept.
    pub compact: bool,
}

/// What `message.timestamp.type` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The broker's, at the append.
    LogAppendTime,
}

/// What `compression.type` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionType {
    /// As the producer sent it.
    Producer,
    /// Recompressed where it differs. The level is the codec's own (`compression.gzip.level` and
    /// its like, KIP-390).
    Broker {
        /// The codec; `None` stands for `uncompressed`.
        codec: Compression,
        /// `None`: the codec's default.
        level: Option<i32>,
    },
}

/// A topic's configuration, as far as its log is concerned. Each field is named after its key; the
/// defaults are Kafka's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// `segment.bytes`.
    pub segment_bytes: u64,
    /// `segment.ms`.
    pub segment_ms: i64,
    /// `retention.ms`; −1 is for ever.
    pub retention_ms: i64,
    /// `retention.bytes`, per partition; −1 is without bound.
    pub retention_bytes: i64,
    /// `max.message.bytes`: of one batch, after compression.
    pub max_message_bytes: usize,
    /// `max.decompressed.message.bytes`: the largest record of a compressed batch, in bytes.
    pub max_decompressed_bytes: u64,
    /// `index.interval.bytes`.
    pub index_interval_bytes: u32,
    /// `segment.index.bytes`.
    pub segment_index_bytes: u32,
    /// `cleanup.policy`.
    pub cleanup_policy: CleanupPolicy,
    /// `min.cleanable.dirty.ratio`, in thousandths.
    pub min_cleanable_dirty_permille: u32,
    /// `delete.retention.ms`.
    pub delete_retention_ms: i64,
    /// `min.compaction.lag.ms`.
    pub min_compaction_lag_ms: i64,
    /// `max.compaction.lag.ms`.
    pub max_compaction_lag_ms: i64,
    /// `file.delete.delay.ms`.
    pub file_delete_delay_ms: i64,
    /// `message.timestamp.type`.
    pub message_timestamp_type: TimestampType,
    /// `message.timestamp.before.max.ms`.
    pub message_timestamp_before_max_ms: i64,
    /// `message.timestamp.after.max.ms`.
    pub message_timestamp_after_max_ms: i64,
    /// `compression.type` and the codec's level.
    pub compression_type: CompressionType,
    /// Whether an acknowledgement waits until the device has the bytes; `false` is Kafka's
    /// behaviour, where the page cache is enough.
    pub durable: bool,
}

impl LogConfig {
    /// What a compressed batch may unpack to in all, unless a single record may be larger; bounds
    /// the time that one batch takes.
    #[must_use]
    pub(super) fn batch_unpacked_max(&self) -> u64 {
        self.max_decompressed_bytes.max(UNPACKED_BYTES_MAX)
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 1 << 30,
            segment_ms: 7 * 24 * 3_600_000,
            retention_ms: 7 * 24 * 3_600_000,
            retention_bytes: -1,
            max_message_bytes: 1_048_588,
            max_decompressed_bytes: 256 << 20,
            index_interval_bytes: 4096,
            segment_index_bytes: 10 << 20,
            cleanup_policy: CleanupPolicy { delete: true, compact: false },
            min_cleanable_dirty_permille: 500,
            delete_retention_ms: 24 * 3_600_000,
            min_compaction_lag_ms: 0,
            max_compaction_lag_ms: i64::MAX,
            file_delete_delay_ms: 60_000,
            message_timestamp_type: TimestampType::CreateTime,
            message_timestamp_before_max_ms: i64::MAX,
            message_timestamp_after_max_ms: 3_600_000,
            compression_type: CompressionType::Producer,
            durable: true,
        }
    }
}
