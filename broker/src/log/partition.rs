//! The log of one partition. (Signatures first; the bodies follow.)
#![allow(clippy::unimplemented, unused_variables, missing_docs)]

use std::sync::Arc;

use bytes::BytesMut;

use super::{AppendError, AppendInfo, AppendOptions, LogConfig, LogError, ReadError, ReadResult, TimestampOffset};
use crate::model::{LeaderEpoch, Offset, TimestampMs, TopicId};

/// The log of one partition.
pub struct Log {}

impl Log {
    pub fn topic(&self) -> &Arc<str> { unimplemented!() }
    pub fn topic_id(&self) -> TopicId { unimplemented!() }
    pub fn partition(&self) -> i32 { unimplemented!() }
    pub fn config(&self) -> Arc<LogConfig> { unimplemented!() }
    pub fn set_config(&self, config: LogConfig) { unimplemented!() }
    pub fn start_offset(&self) -> Offset { unimplemented!() }
    pub fn end_offset(&self) -> Offset { unimplemented!() }
    /// What acknowledgements may count on; the end offset when the topic is not `durable`.
    pub fn durable_end(&self) -> Offset { unimplemented!() }
    pub fn high_watermark(&self) -> Offset { unimplemented!() }
    pub fn set_high_watermark(&self, offset: Offset) { unimplemented!() }
    pub fn size(&self) -> u64 { unimplemented!() }
    pub fn is_offline(&self) -> bool { unimplemented!() }
    /// Synchronous; page cache only.
    pub fn append(self: &Arc<Self>, batch: BytesMut, options: &AppendOptions) -> Result<AppendInfo, AppendError> { unimplemented!() }
    /// Synchronous, from memory; `Ok(None)`: ask `read_from_disk` through `env.blocking`.
    pub fn try_read_cached(&self, from: Offset, max_bytes: usize, end: Offset, at_least_one_batch: bool) -> Result<Option<ReadResult>, ReadError> { unimplemented!() }
    /// Blocking.
    pub fn read_from_disk(&self, from: Offset, max_bytes: usize, end: Offset, at_least_one_batch: bool) -> Result<ReadResult, ReadError> { unimplemented!() }
    /// Blocking.
    pub fn offset_for_timestamp(&self, timestamp: TimestampMs) -> Result<Option<TimestampOffset>, ReadError> { unimplemented!() }
    /// Blocking.
    pub fn max_timestamp(&self) -> Result<Option<TimestampOffset>, ReadError> { unimplemented!() }
    pub fn latest_epoch(&self) -> Option<LeaderEpoch> { unimplemented!() }
    /// The largest known epoch ≤ `epoch`, and where it ends.
    pub fn end_offset_for_epoch(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, Offset)> { unimplemented!() }
    pub fn epoch_for_offset(&self, offset: Offset) -> Option<LeaderEpoch> { unimplemented!() }
    /// Blocking. Answers the new log start offset.
    pub fn delete_records_before(&self, offset: Offset) -> Result<Offset, LogError> { unimplemented!() }
    /// Blocking. For followers.
    pub fn truncate_to(&self, offset: Offset) -> Result<(), LogError> { unimplemented!() }
    /// Blocking. For followers whose leader's log begins later.
    pub fn truncate_fully_and_start_at(&self, offset: Offset) -> Result<(), LogError> { unimplemented!() }
}
