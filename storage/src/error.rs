//! What can go wrong, one variant per cause that a caller can tell apart.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use letterbox_env::{Fault, with_causes};
use thiserror::Error;

use super::checkpoint::{ACCEPT_DATA_LOSS, LOG_STARTS};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{LeaderEpoch, Offset, ProducerId};

/// A record that was refused, as KIP-467 reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordError {
    /// Its index in the batch, from 0.
    pub batch_index: i32,
    /// Why.
    pub message: String,
}

/// Why an append was refused. Nothing was stored.
#[derive(Clone, Debug, Error)]
pub enum AppendError {
    /// The bytes are not a batch, or the checksum does not match.
    #[error("the batch is damaged: {0}")]
    CorruptMessage(String),
    /// More than `max.message.bytes`.
    #[error("the batch has {size} bytes, more than max.message.bytes = {max}")]
    MessageTooLarge {
        /// Bytes of the batch.
        size: usize,
        /// The topic's bound.
        max: usize,
    },
    /// More than `segment.bytes`.
    #[error("the batch has {size} bytes, more than segment.bytes = {max}")]
    RecordListTooLarge {
        /// Bytes of the batch.
        size: usize,
        /// The topic's bound.
        max: u64,
    },
    /// Well-formed bytes that break a rule; `records` names the ones to blame, where it is single
    /// records.
    #[error("{message}")]
    InvalidRecord {
        /// What is wrong with the whole.
        message: String,
        /// The records to blame; empty when it is the batch.
        records: Vec<RecordError>,
    },
    /// Timestamps outside `message.timestamp.before.max.ms` and `.after.max.ms`.
    #[error("{message}")]
    InvalidTimestamp {
        /// What is wrong with the whole.
        message: String,
        /// The records to blame.
        records: Vec<RecordError>,
    },
    /// Magic 0 or 1.
    #[error("record format {magic} is not supported; it must be 2")]
    UnsupportedForMessageFormat {
        /// The batch's magic.
        magic: i8,
    },
    /// A compression type that does not exist.
    #[error("compression type {0} does not exist")]
    UnsupportedCompressionType(i16),
    /// A sequence that does not follow the producer's last.
    #[error(
        "producer {producer_id}: sequence {first_sequence} does not follow {last_sequence} of \
         epoch {epoch}"
    )]
    OutOfOrderSequenceNumber {
        /// The producer.
        producer_id: ProducerId,
        /// The epoch that `last_sequence` belongs to.
        epoch: i16,
        /// The first sequence of the refused batch.
        first_sequence: i32,
        /// The last sequence stored.
        last_sequence: i32,
    },
    /// An epoch older than the producer's current one.
    #[error("producer {producer_id}: epoch {epoch} is older than {current}")]
    InvalidProducerEpoch {
        /// The producer.
        producer_id: ProducerId,
        /// The refused batch's.
        epoch: i16,
        /// The current one.
        current: i16,
    },
    /// A producer that is not known, and no room for it.
    #[error(
        "producer {producer_id} is new here, and the broker remembers too many of them; try again \
         (letterbox_producers_memory_bytes)"
    )]
    TooManyProducers {
        /// The producer.
        producer_id: ProducerId,
    },
    /// A replicated batch that does not continue the log.
    #[error("batch at offset {base_offset} does not continue the log, which ends at {end_offset}")]
    OutOfOrderOffset {
        /// The batch's.
        base_offset: Offset,
        /// The log's.
        end_offset: Offset,
    },
    /// The leader epoch went back.
    #[error("leader epoch {epoch} is older than the log's {current}")]
    StaleLeaderEpoch {
        /// The refused one.
        epoch: LeaderEpoch,
        /// The log's latest.
        current: LeaderEpoch,
    },
    /// A write or sync in this log directory has failed; it takes nothing more until it is repaired
    /// and the broker restarted.
    #[error("log directory {dir} is offline: {reason}")]
    LogDirOffline {
        /// The directory.
        dir: PathBuf,
        /// What failed.
        reason: Arc<str>,
    },
    /// No space; appends are taken again when there is.
    #[error(
        "log directory {dir} takes no appends: its file system has less free space than \
         log.dir.reserve.bytes; free some, or grow the volume"
    )]
    LogDirFull {
        /// The directory.
        dir: PathBuf,
    },
    /// No descriptor or no memory for it; to be tried again.
    #[error("cannot {action} now: {reason}; try again")]
    Unavailable {
        /// What was being done.
        action: &'static str,
        /// What is short.
        reason: Arc<str>,
    },
    /// The files of this partition are not as they must be; it takes nothing more until they are
    /// repaired and the broker restarted. Others in the directory go on.
    #[error("the log is out of use: {reason}")]
    Broken {
        /// What was found.
        reason: Arc<str>,
    },
    /// The log was closed or deleted.
    #[error("the log is closed")]
    Closed,
}

impl AppendError {
    /// Kafka's error code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::CorruptMessage(_) => ErrorCode::CorruptMessage,
            Self::MessageTooLarge { .. } => ErrorCode::MessageTooLarge,
            Self::RecordListTooLarge { .. } => ErrorCode::RecordListTooLarge,
            Self::InvalidTimestamp { .. } => ErrorCode::InvalidTimestamp,
            // What every client takes for "not stored, try again" without giving up its sequence.
            Self::TooManyProducers { .. } => ErrorCode::NotEnoughReplicas,
            Self::UnsupportedForMessageFormat { .. } => ErrorCode::UnsupportedForMessageFormat,
            Self::OutOfOrderSequenceNumber { .. } => ErrorCode::OutOfOrderSequenceNumber,
            Self::InvalidProducerEpoch { .. } => ErrorCode::InvalidProducerEpoch,
            Self::LogDirOffline { .. }
            | Self::LogDirFull { .. }
            | Self::Unavailable { .. }
            | Self::Broken { .. } => ErrorCode::KafkaStorageError,
            Self::StaleLeaderEpoch { .. } => ErrorCode::FencedLeaderEpoch,
            Self::UnsupportedCompressionType(_) => ErrorCode::UnsupportedCompressionType,
            Self::InvalidRecord { .. } => ErrorCode::InvalidRecord,
            Self::Closed => ErrorCode::NotLeaderOrFollower,
            Self::OutOfOrderOffset { .. } => ErrorCode::UnknownServerError,
        }
    }

    /// The refused records, where single ones are to blame (KIP-467).
    #[must_use]
    pub fn record_errors(&self) -> &[RecordError] {
        match self {
            Self::InvalidRecord { records, .. } | Self::InvalidTimestamp { records, .. } => records,
            _ => &[],
        }
    }
}

/// Why a read failed.
#[derive(Clone, Debug, Error)]
pub enum ReadError {
    /// Before the log's start or after its end: OFFSET_OUT_OF_RANGE.
    #[error("offset {offset} is outside {start}..={end}")]
    OffsetOutOfRange {
        /// What was asked for.
        offset: Offset,
        /// Log start offset.
        start: Offset,
        /// Log end offset.
        end: Offset,
    },
    /// The stored bytes are damaged: CORRUPT_MESSAGE.
    #[error("segment {segment} is damaged at byte {position}: {reason}")]
    Corrupt {
        /// Base offset of the segment.
        segment: Offset,
        /// Where in the file.
        position: u64,
        /// What is wrong.
        reason: String,
    },
    /// The device failed: KAFKA_STORAGE_ERROR.
    #[error("read failed")]
    Io(#[source] Arc<io::Error>),
}

impl ReadError {
    /// Kafka's error code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange,
            Self::Corrupt { .. } => ErrorCode::CorruptMessage,
            Self::Io(_) => ErrorCode::KafkaStorageError,
        }
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// Why a log, or all of them, could not be opened, made or deleted.
#[derive(Clone, Debug, Error)]
pub enum LogError {
    /// Another process uses the directory.
    #[error("log directory {0} is in use by another process, or twice in log.dirs")]
    Locked(PathBuf),
    /// Stored data that had been durable is damaged. Not repaired by cutting: that would lose
    /// acknowledged records.
    #[error(
        "{path}: damaged at byte {position} (offset {offset}), although it was durable up to \
         offset {durable_end}: {reason}; restore the partition's directory from a backup, or put \
         an empty file `{ACCEPT_DATA_LOSS}` into it to go on without the records from there on"
    )]
    Corrupt {
        /// The segment.
        path: PathBuf,
        /// Where in the file.
        position: u64,
        /// The first offset that cannot be read.
        offset: Offset,
        /// Up to where everything had been durable, exclusive.
        durable_end: Offset,
        /// What is wrong.
        reason: String,
    },
    /// The log start offset that was kept lies past the end of the log. Not believed: it would hide
    /// every record.
    #[error(
        "{path}: the records end at offset {end_offset}, and {LOG_STARTS} of the log directory says \
         that they begin at {log_start}; stop the broker and correct that file, or restore the \
         partition's directory from a backup, or put an empty file `{ACCEPT_DATA_LOSS}` into it to \
         go on, without records, at {log_start}"
    )]
    StartsPastEnd {
        /// The partition's directory.
        path: PathBuf,
        /// The log start offset that was kept.
        log_start: Offset,
        /// Where the log ends, exclusive.
        end_offset: Offset,
    },
    /// The directory of a partition that had been there is not there.
    #[error(
        "{path}: the directory of the partition is missing; it held records up to offset \
         {end_offset}. Put it back, or make it with an empty file `{ACCEPT_DATA_LOSS}` in it to go \
         on without these records"
    )]
    Missing {
        /// The directory.
        path: PathBuf,
        /// Up to where it is known to have held records, exclusive.
        end_offset: Offset,
    },
    /// Several log directories hold the partition; which of them has the records that are missed is
    /// not known.
    #[error(
        "{} are each the directory of the partition; move all but the one that is wanted out of \
         their log directories",
        joined(paths)
    )]
    Twice {
        /// The directories: two or more.
        paths: Vec<PathBuf>,
    },
    /// A file that is not in its format.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The partition exists already.
    #[error("partition {0} has a log already")]
    Exists(String),
    /// There is no such log.
    #[error("there is no log of this partition")]
    NotFound,
    /// No log directory takes new partitions.
    #[error(
        "every log directory is offline or has less free space than log.dir.reserve.bytes; retrying"
    )]
    NoLogDir,
    /// The log directory is offline.
    #[error("log directory {dir} is offline: {reason}")]
    Offline {
        /// The directory.
        dir: PathBuf,
        /// What failed.
        reason: Arc<str>,
    },
    /// Not found where it could be looked for, and another directory could not be read.
    #[error(
        "no usable log directory has the partition, and log directory {dir} is offline: {reason}; \
         repair it and restart the broker, or delete the topic"
    )]
    NotRead {
        /// The directory.
        dir: PathBuf,
        /// What failed.
        reason: Arc<str>,
    },
    /// Upkeep was given up, because the broker stops or the log is deleted. Nothing is wrong.
    #[error("interrupted, because the broker stops or the log is deleted")]
    Interrupted,
    /// The file system failed.
    #[error("{action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// How it failed.
        #[source]
        source: Arc<io::Error>,
    },
}

fn joined(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ")
}

impl LogError {
    /// What it means for stored data; anything but an I/O error means that something is broken.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Io { source, .. } => Fault::of(source),
            _ => Fault::BrokenInvariant,
        }
    }

    /// The I/O error in it, of the same class.
    pub(super) fn into_io(self) -> io::Error {
        match self {
            Self::Io { source, .. } => {
                Arc::try_unwrap(source).unwrap_or_else(|shared| match shared.raw_os_error() {
                    Some(errno) => io::Error::from_raw_os_error(errno),
                    None => io::Error::new(shared.kind(), shared),
                })
            }
            error => io::Error::new(io::ErrorKind::InvalidData, error),
        }
    }
}

/// Adds what was being done to an I/O error.
pub(crate) trait IoContext<T> {
    fn during(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, LogError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn during(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, LogError> {
        self.map_err(|error| LogError::Io { action, path: path.into(), source: Arc::new(error) })
    }
}

impl<T> IoContext<T> for Result<T, ReadError> {
    fn during(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, LogError> {
        self.map_err(|error| match error {
            ReadError::Io(source) => LogError::Io { action, path: path.into(), source },
            damage => LogError::Malformed { path: path.into(), reason: with_causes(&damage) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once_and_by_whoever_asks_for_it() {
        let why = || io::Error::from_raw_os_error(28);
        let log = Err::<(), _>(why()).during("write", "/data/a").unwrap_err();
        for (error, own) in [
            (&log as &dyn std::error::Error, "write /data/a"),
            (&ReadError::from(why()), "read failed"),
        ] {
            assert_eq!(error.to_string(), own);
            assert_eq!(with_causes(error), format!("{own}: {}", why()));
        }
    }
}
