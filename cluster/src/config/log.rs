//! From a topic's configuration to what its logs go by.

use letterbox_protocol::batch::Compression;
use letterbox_storage::{CleanupPolicy, CompressionType, LogConfig, TimestampType};

use super::topic::TopicConfig;

/// The part of a topic's configuration that its logs read.
#[must_use]
pub fn log_config(topic: &TopicConfig) -> LogConfig {
    let bytes = |key| u64::try_from(topic.number(key)).unwrap_or(0);
    let small = |key| u32::try_from(topic.number(key)).unwrap_or(u32::MAX);
    let level = |key| i32::try_from(topic.number(key)).ok();
    let codec = |codec, level| CompressionType::Broker { codec, level };
    let cleanup_policy = CleanupPolicy {
        delete: topic.has("cleanup.policy", "delete"),
        compact: topic.has("cleanup.policy", "compact"),
    };
    // Only sealed segments are compacted, so a segment must not stay open for longer than a record
    // may stay uncompacted.
    let open_ms_max =
        if cleanup_policy.compact { topic.number("max.compaction.lag.ms") } else { i64::MAX };
    LogConfig {
        segment_bytes: bytes("segment.bytes"),
        segment_ms: topic.number("segment.ms").min(open_ms_max),
        retention_ms: topic.number("retention.ms"),
        retention_bytes: topic.number("retention.bytes"),
        max_message_bytes: usize::try_from(topic.number("max.message.bytes")).unwrap_or(usize::MAX),
        max_decompressed_bytes: bytes("max.decompressed.message.bytes"),
        index_interval_bytes: small("index.interval.bytes"),
        segment_index_bytes: small("segment.index.bytes"),
        cleanup_policy,
        min_cleanable_dirty_permille: permille(topic.fraction("min.cleanable.dirty.ratio")),
        delete_retention_ms: topic.number("delete.retention.ms"),
        min_compaction_lag_ms: topic.number("min.compaction.lag.ms"),
        max_compaction_lag_ms: topic.number("max.compaction.lag.ms"),
        file_delete_delay_ms: topic.number("file.delete.delay.ms"),
        message_timestamp_type: if topic.text("message.timestamp.type") == "LogAppendTime" {
            TimestampType::LogAppendTime
        } else {
            TimestampType::CreateTime
        },
        message_timestamp_before_max_ms: topic.number("message.timestamp.before.max.ms"),
        message_timestamp_after_max_ms: topic.number("message.timestamp.after.max.ms"),
        compression_type: match topic.text("compression.type") {
            "uncompressed" => codec(Compression::None, None),
            "gzip" => codec(
                Compression::Gzip,
                level("compression.gzip.level").filter(|level| *level >= 0),
            ),
            "snappy" => codec(Compression::Snappy, None),
            "lz4" => codec(Compression::Lz4, None),
            "zstd" => codec(Compression::Zstd, level("compression.zstd.level")),
            _ => CompressionType::Producer,
        },
        durable: topic.durable(),
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 1000")]
fn permille(ratio: f64) -> u32 {
    (ratio.clamp(0.0, 1.0) * 1000.0).round() as u32
}
