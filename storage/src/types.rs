//! What goes into a log and what comes out.

use std::sync::Arc;

use bytes::Bytes;
use letterbox_env::FileRef;

use super::Log;
use super::cold::ColdReads;
use super::open_segments::AnswerFile;
use letterbox_protocol::model::{LeaderEpoch, Offset, TimestampMs};

/// Where a batch comes from; decides what is checked and who chooses the offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A producer. Everything is checked; the log chooses the offsets.
    Client,
    /// A coordinator on this broker. The log chooses the offsets; the broker's own batches are not
    /// judged by the rules for producers.
    Coordinator,
    /// The partition's leader. Offsets and epochs are taken as they are, and must continue the log.
    Replication {
        /// The leader's high watermark as it gave the batches: a producer may still wait for an
        /// answer to what lies at it or behind.
        committed: Offset,
    },
}

/// How to append.
#[derive(Clone, Copy, Debug)]
pub struct AppendOptions {
    /// The epoch of the leader that appends; for [`Origin::Replication`] the epoch in which this
    /// broker follows, the batches having their own.
    pub leader_epoch: LeaderEpoch,
    /// The wall clock now.
    pub now_ms: TimestampMs,
    /// Where the batch comes from.
    pub origin: Origin,
}

/// What an append did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendInfo {
    /// Offset of the first record; for a duplicate, the one it got then.
    pub base_offset: Offset,
    /// Offset of the last record, inclusive.
    pub last_offset: Offset,
    /// The time that all records got, when the topic uses log append time; else −1.
    pub log_append_time: TimestampMs,
    /// Log start offset after the append.
    pub log_start_offset: Offset,
    /// Nothing was stored: the producer had already sent this very batch. To be acknowledged when
    /// `last_offset` is committed, like the first time.
    pub duplicate: bool,
}

/// A run of whole batches.
#[derive(Clone)]
pub enum Slice {
    /// From the tail cache.
    Memory(Bytes),
    /// In a file; the handle keeps the bytes readable even when the segment is deleted meanwhile.
    File {
        /// The segment's file.
        file: FileRef,
        /// Where the run begins.
        position: u64,
        /// Its bytes.
        len: usize,
        /// For who reads it.
        cold_reads: ColdReads,
        /// Counts the file while it is kept.
        counted: AnswerFile,
    },
}

impl Slice {
    /// Bytes in the run.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::File { len, .. } => *len,
        }
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a read found: consecutive whole batches.
#[derive(Clone, Default)]
pub struct ReadResult {
    /// The runs, in order. The first batch may begin before the offset that was asked for.
    pub slices: Vec<Slice>,
    /// Bytes in all of them.
    pub bytes: usize,
    /// The offset that follows the last batch found; the one asked for when there is none.
    pub next_offset: Offset,
    /// There is more of what was asked for, and answers keep too many files open to show it.
    pub lacks_files: bool,
}

impl ReadResult {
    /// Bytes that are not sent from files.
    #[must_use]
    pub fn in_memory(&self) -> usize {
        let memory = self.slices.iter().filter(|slice| matches!(slice, Slice::Memory(_)));
        memory.map(Slice::len).sum()
    }
}

/// A record found by its timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestampOffset {
    /// The record's timestamp.
    pub timestamp: TimestampMs,
    /// Its offset.
    pub offset: Offset,
    /// The epoch of its batch.
    pub leader_epoch: LeaderEpoch,
}

/// Hears how far logs have become durable.
pub trait DurabilityObserver: Send + Sync {
    /// Everything below `durable_end` of `log` is on the device.
    ///
    /// Called where blocking is allowed, never under a lock of the log; once per log and round of
    /// syncs.
    fn durable(&self, log: &Arc<Log>, durable_end: Offset);

    /// The log directory of `log` went offline: what was appended and not yet durable never will
    /// be. Called once per log that waited for a sync.
    fn failed(&self, log: &Arc<Log>);
}
