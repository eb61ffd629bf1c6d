//! What the coordinator needs of the log of `__consumer_offsets`. The server implements it over the
//! partition's log.

use bytes::Bytes;
use letterbox_env::BoxFuture;
use letterbox_protocol::model::{LeaderEpoch, Offset, TimestampMs};

/// A record's key and value; no value is a tombstone.
pub(crate) type KeyValue = (Bytes, Option<Bytes>);

/// Why records were not appended or not committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum AppendError {
    /// This broker does not lead the partition, or ceased to before the records were committed.
    #[error("this broker does not lead the partition")]
    NotLeader,
    /// Fewer replicas are in sync than `min.insync.replicas`.
    #[error("not enough replicas are in sync")]
    NotEnoughReplicas,
    /// The topic or the partition does not exist (yet).
    #[error("the partition does not exist")]
    UnknownPartition,
    /// The records are larger than the topic's `max.message.bytes`; sending fewer may succeed.
    #[error("the records are larger than the topic allows")]
    TooLarge,
    /// No space, a clock that was set, or a directory that failed.
    #[error(
        "the log does not take them now: no space, a clock that was set, or a directory that failed"
    )]
    Storage,
}

/// How far a partition reached, and in which epoch this broker led it then: in another epoch other
/// records may have taken the place of those before `offset`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogEnd {
    /// The offset that follows the last record.
    pub offset: Offset,
    /// The leader epoch.
    pub leader_epoch: LeaderEpoch,
}

/// The replicated log of `__consumer_offsets`, one partition at a time.
///
/// The coordinator calls [`append`](Self::append) for a partition only from one task, one call
/// after the other, in the order in which its state changes; it may go on appending while earlier
/// records are not committed yet.
pub(crate) trait ReplicatedLog: Send + Sync + 'static {
    /// Whether this broker leads the partition in that epoch. If not, what was read in it may not
    /// count any more.
    fn is_led_in(&self, partition: i32, leader_epoch: LeaderEpoch) -> bool;

    /// Appends `records`, which were decided on what was read in `leader_epoch`, as one batch with
    /// timestamp `now` and returns where the log ends *after* the last of them.
    ///
    /// All or nothing. Need not wait for replication or for the disk;
    /// [`committed`](Self::committed) does.
    ///
    /// # Errors
    /// Nothing was appended; [`AppendError::NotLeader`] also in another epoch.
    fn append(
        &self,
        partition: i32,
        leader_epoch: LeaderEpoch,
        records: Vec<KeyValue>,
        now: TimestampMs,
    ) -> BoxFuture<'static, Result<LogEnd, AppendError>>;

    /// Completes when every record before `end` is committed: the high watermark has reached it.
    ///
    /// # Errors
    /// Leadership was lost first, or the log failed; the records may or may not survive.
    fn committed(&self, partition: i32, end: LogEnd)
    -> BoxFuture<'static, Result<(), AppendError>>;

    /// The largest batch that [`append`](Self::append) takes now, in bytes: the topic's
    /// `max.message.bytes`.
    fn batch_bytes_max(&self, partition: i32) -> usize;

    /// Reads the partition from its log start offset to its end at the time of the call and hands
    /// each record to `each`, in order; returns that end, and the epoch in which it began. Control batches are left out. A
    /// record whose key is missing is left out.
    ///
    /// What it reads above the high watermark may still be lost; wait for
    /// [`committed`](Self::committed).
    ///
    /// # Errors
    /// The partition could not be read to its end; what `each` saw so far is thrown away by the
    /// caller.
    fn read_all<'a>(
        &'a self,
        partition: i32,
        each: &'a mut (dyn FnMut(Bytes, Option<Bytes>) + Send),
    ) -> BoxFuture<'a, Result<LogEnd, AppendError>>;
}
