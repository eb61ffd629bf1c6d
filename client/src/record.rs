//! Records as callers have them: owned, over the batches of [`letterbox_protocol::batch`].
//!
//! Reading verifies the checksum and stops decompression at [`batch::UNPACKED_BYTES_MAX`]. Headers
//! keep their order and duplicates.

use std::borrow::Cow;

use bytes::Bytes;
use letterbox_protocol::batch::{self, BatchError, RecordIter};
use letterbox_protocol::compression;

pub use letterbox_protocol::batch::{BatchHeader, Compression, HEADER_BYTES, crc32c};

/// The largest batch that is written, in bytes: the lengths in it have 32 bits.
const BATCH_BYTES_MAX: usize = 1 << 30;

/// Why records cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordsError {
    /// The bytes are not a batch. `Truncated` at the end of a fetch is normal: the rest comes with
    /// the next.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The records cannot be compressed.
    #[error("{codec} data cannot be written: {reason}")]
    Compression {
        /// Which codec.
        codec: &'static str,
        /// Why.
        reason: String,
    },
    /// A batch without records is not sent.
    #[error("a batch without records")]
    Empty,
    /// A batch cannot be that large.
    #[error("a batch of {bytes} bytes; at most {BATCH_BYTES_MAX} can be sent")]
    TooLarge {
        /// What it would have.
        bytes: usize,
    },
}

/// A header of a record. Keys may repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The key; bytes that are not UTF-8 are replaced.
    pub key: String,
    /// The value; may be absent.
    pub value: Option<Bytes>,
}

/// A record as it stands in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its offset.
    pub offset: i64,
    /// Milliseconds since 1970; the batch's own append time when the topic says so.
    pub timestamp: i64,
    /// The key.
    pub key: Option<Bytes>,
    /// The value; absent in a tombstone.
    pub value: Option<Bytes>,
    /// The headers in their order.
    pub headers: Vec<Header>,
}

/// One batch in a run of bytes. Its checksum has been verified; its records have not been read.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The fields before the records.
    pub header: BatchHeader,
    bytes: Bytes,
}

impl Batch {
    /// Takes the next batch off the front of `bytes`; `None` when `bytes` is empty.
    ///
    /// # Errors
    /// `Batch`; `bytes` is then as it was.
    pub fn take(bytes: &mut Bytes) -> Result<Option<Self>, RecordsError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let (batch, _) = batch::Batch::split(bytes)?;
        batch.check_crc()?;
        let (header, size) = (batch.header, batch.bytes().len());
        Ok(Some(Self { header, bytes: bytes.split_to(size) }))
    }

    /// Reads all records, decompressing them when needed.
    ///
    /// # Errors
    /// `Batch`.
    pub fn records(&self) -> Result<Vec<Record>, RecordsError> {
        let header = &self.header;
        let body = match batch::Batch::split(&self.bytes)?.0.unpacked()? {
            Cow::Borrowed(records) => self.bytes.slice_ref(records),
            Cow::Owned(records) => Bytes::from(records),
        };
        if header.records_count < 0 {
            return Err(BatchError::TrailingBytes { count: header.records_count }.into());
        }
        let owned = |record: batch::Record<'_>| Record {
            offset: header.base_offset.saturating_add(i64::from(record.offset_delta)),
            timestamp: header.timestamp(record.timestamp_delta),
            key: record.key.map(|key| body.slice_ref(key)),
            value: record.value.map(|value| body.slice_ref(value)),
            headers: record
                .headers
                .iter()
                .map(|(key, value)| Header {
                    key: String::from_utf8_lossy(key).into_owned(),
                    value: value.map(|value| body.slice_ref(value)),
                })
                .collect(),
        };
        RecordIter::new(&body, header.records_count).map(|record| Ok(owned(record?))).collect()
    }

    /// For a control batch: whether it marks an abort (`Some(true)`), a commit (`Some(false)`), or
    /// something else.
    #[must_use]
    pub fn is_abort_marker(&self) -> Option<bool> {
        let records = self.records().ok()?;
        match records.first()?.key.as_ref()?.get(2..4)? {
            [0, 0] => Some(true),
            [0, 1] => Some(false),
            _ => None,
        }
    }
}

fn failed(codec: Compression, error: &std::io::Error) -> RecordsError {
    RecordsError::Compression { codec: codec.name(), reason: error.to_string() }
}

/// Who writes a batch: producer id, epoch and the sequence number of the first record (KIP-98).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerStamp {
    /// The producer's id; -1 without idempotence.
    pub id: i64,
    /// Its epoch; -1 without idempotence.
    pub epoch: i16,
    /// The first record's sequence number; -1 without idempotence.
    pub sequence: i32,
}

impl ProducerStamp {
    /// Of a producer without idempotence.
    pub const NONE: Self = Self { id: -1, epoch: -1, sequence: -1 };
}

/// A batch in the making: records are encoded as they come. Timestamps count from the first
/// record's.
#[derive(Debug, Default)]
pub struct BatchBuilder(Option<batch::BatchBuilder>);

impl BatchBuilder {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Records so far.
    #[must_use]
    pub fn count(&self) -> i32 {
        self.0.as_ref().map_or(0, batch::BatchBuilder::records_count)
    }

    /// Bytes of the batch so far, uncompressed.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(HEADER_BYTES, batch::BatchBuilder::size)
    }

    /// Adds a record.
    ///
    /// # Errors
    /// `TooLarge`; the batch is then as it was.
    pub fn push(
        &mut self,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header],
    ) -> Result<(), RecordsError> {
        // A length takes at most ten bytes.
        let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len).saturating_add(10);
        let of_header = |header: &Header| {
            length(Some(header.key.as_bytes())).saturating_add(length(header.value.as_deref()))
        };
        let record = [length(key), length(value), 40]
            .into_iter()
            .chain(headers.iter().map(of_header))
            .fold(0, usize::saturating_add);
        let bytes = self.bytes().saturating_add(record);
        if bytes > BATCH_BYTES_MAX {
            return Err(RecordsError::TooLarge { bytes });
        }
        let headers: Vec<(&[u8], Option<&[u8]>)> =
            headers.iter().map(|header| (header.key.as_bytes(), header.value.as_deref())).collect();
        self.0
            .get_or_insert_with(|| batch::BatchBuilder::new(timestamp))
            .push(timestamp, key, value, &headers);
        Ok(())
    }

    /// The whole batch, with base offset 0 as a producer sends it. The builder keeps its records:
    /// they may be sent again under another stamp.
    ///
    /// # Errors
    /// `Empty`; `Compression` should the codec refuse.
    pub fn finish(&self, codec: Compression, stamp: ProducerStamp) -> Result<Bytes, RecordsError> {
        let builder = self.0.clone().ok_or(RecordsError::Empty)?.producer(
            stamp.id,
            stamp.epoch,
            stamp.sequence,
        );
        Ok(match codec {
            Compression::None => builder.build(),
            codec => {
                let records = compression::compress(codec, None, builder.records())
                    .map_err(|error| failed(codec, &error))?;
                builder.build_with(codec, &records)
            }
        }
        .freeze())
    }
}

#[cfg(test)]
mod tests;
