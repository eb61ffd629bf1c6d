//! Record batches of format version 2 (KIP-98), read and written here and nowhere else.
//!
//! Reading trusts nothing: lengths and counts are proved against the bytes that are there, decompression
//! stops at [`DECOMPRESSED_BYTES_MAX`], the checksum is verified. Headers keep their order and duplicates.

mod codec;
mod varint;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use codec::Compression;
use varint::{put_varint, put_varlong, take_varint, take_varlong, varint_len, varlong_len};

/// Bytes from the start of a batch to its first record.
pub const HEADER_BYTES: usize = 61;
/// Bytes before the part that the batch length counts: base offset and length.
const PREFIX_BYTES: usize = 12;
/// The largest amount of records one batch may decompress to.
pub const DECOMPRESSED_BYTES_MAX: usize = 256 << 20;

const COMPRESSION_MASK: i16 = 0x07;
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// Why a batch cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The bytes end inside the batch. At the end of a fetch this is normal: the rest comes with the next.
    #[error("the batch is cut off")]
    Truncated,
    /// A format older than version 2, or one that does not exist yet.
    #[error("record format version {0} is not supported (only 2 is)")]
    Magic(i8),
    /// The checksum does not match.
    #[error("checksum mismatch: stored {stored:#010x}, computed {computed:#010x}")]
    Crc {
        /// In the batch.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// A compression type that does not exist.
    #[error("unknown compression type {0}")]
    Compression(i16),
    /// The compressed bytes cannot be read, or become too many.
    #[error("{codec} data cannot be decompressed: {reason}")]
    Decompress {
        /// Which codec.
        codec: &'static str,
        /// Why.
        reason: String,
    },
    /// A length, count or number inside the batch does not fit.
    #[error("invalid {0}")]
    Invalid(&'static str),
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

/// The fields of a batch before its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The offset of the first record when the batch was written.
    pub base_offset: i64,
    /// The epoch of the leader that wrote it.
    pub leader_epoch: i32,
    /// Compression, time type, transactional, control.
    pub attributes: i16,
    /// `base_offset + last_offset_delta` is the last offset; stays when compaction removes records.
    pub last_offset_delta: i32,
    /// What record timestamps are relative to.
    pub base_timestamp: i64,
    /// The largest timestamp.
    pub max_timestamp: i64,
    /// -1 without idempotence.
    pub producer_id: i64,
    /// -1 without idempotence.
    pub producer_epoch: i16,
    /// The sequence number of the first record; -1 without idempotence.
    pub base_sequence: i32,
    /// Number of records.
    pub record_count: i32,
}

impl BatchHeader {
    /// The offset after the batch.
    #[must_use]
    pub fn next_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta)).saturating_add(1)
    }

    /// Whether it holds a transaction marker instead of records.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Whether it belongs to a transaction.
    #[must_use]
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether the broker's time counts (`message.timestamp.type=LogAppendTime`).
    #[must_use]
    pub fn is_log_append_time(&self) -> bool {
        self.attributes & LOG_APPEND_TIME != 0
    }
}

/// One batch in a run of bytes. Its checksum has been verified; its records have not been read.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The fields before the records.
    pub header: BatchHeader,
    body: Bytes,
}

impl Batch {
    /// Takes the next batch off the front of `bytes`; `None` when `bytes` is empty.
    ///
    /// # Errors
    /// [`BatchError`]; `bytes` is then as it was.
    pub fn take(bytes: &mut Bytes) -> Result<Option<Self>, BatchError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let mut view = bytes.clone();
        let truncated = |_| BatchError::Truncated;
        let base_offset = view.try_get_i64().map_err(truncated)?;
        let length = usize::try_from(view.try_get_i32().map_err(truncated)?).map_err(|_| BatchError::Invalid("batch length"))?;
        let leader_epoch = view.try_get_i32().map_err(truncated)?;
        let magic = view.try_get_i8().map_err(truncated)?;
        if magic != 2 {
            return Err(BatchError::Magic(magic));
        }
        if length < HEADER_BYTES - PREFIX_BYTES {
            return Err(BatchError::Invalid("batch length"));
        }
        let whole = length.checked_add(PREFIX_BYTES).ok_or(BatchError::Invalid("batch length"))?;
        if bytes.len() < whole {
            return Err(BatchError::Truncated);
        }
        let stored = view.try_get_u32().map_err(truncated)?;
        let computed = crc32c(bytes.get(21..whole).ok_or(BatchError::Truncated)?);
        if stored != computed {
            return Err(BatchError::Crc { stored, computed });
        }
        let header = BatchHeader {
            base_offset,
            leader_epoch,
            attributes: view.try_get_i16().map_err(truncated)?,
            last_offset_delta: view.try_get_i32().map_err(truncated)?,
            base_timestamp: view.try_get_i64().map_err(truncated)?,
            max_timestamp: view.try_get_i64().map_err(truncated)?,
            producer_id: view.try_get_i64().map_err(truncated)?,
            producer_epoch: view.try_get_i16().map_err(truncated)?,
            base_sequence: view.try_get_i32().map_err(truncated)?,
            record_count: view.try_get_i32().map_err(truncated)?,
        };
        let body = bytes.slice(HEADER_BYTES..whole);
        bytes.advance(whole);
        Ok(Some(Self { header, body }))
    }

    /// Reads all records, decompressing them when needed.
    ///
    /// # Errors
    /// [`BatchError`].
    pub fn records(&self) -> Result<Vec<Record>, BatchError> {
        let compression = Compression::from_attributes(self.header.attributes & COMPRESSION_MASK)?;
        let mut body = compression.decompress(&self.body, DECOMPRESSED_BYTES_MAX)?;
        let count = usize::try_from(self.header.record_count).map_err(|_| BatchError::Invalid("record count"))?;
        // A record takes at least 7 bytes.
        if count > body.len() / 7 {
            return Err(BatchError::Invalid("record count"));
        }
        let mut records = Vec::with_capacity(count);
        for _ in 0..count {
            records.push(self.take_record(&mut body)?);
        }
        Ok(records)
    }

    /// For a control batch: whether it marks an abort (`Some(true)`), a commit (`Some(false)`), or something else.
    #[must_use]
    pub fn is_abort_marker(&self) -> Option<bool> {
        let records = self.records().ok()?;
        match records.first()?.key.as_ref()?.get(2..4)? {
            [0, 0] => Some(true),
            [0, 1] => Some(false),
            _ => None,
        }
    }

    fn take_record(&self, body: &mut Bytes) -> Result<Record, BatchError> {
        let length = usize::try_from(take_varint(body)?).map_err(|_| BatchError::Invalid("record length"))?;
        if length > body.len() {
            return Err(BatchError::Invalid("record length"));
        }
        let mut record = body.split_to(length);
        record.try_get_i8().map_err(|_| BatchError::Invalid("record length"))?;
        let timestamp_delta = take_varlong(&mut record)?;
        let offset_delta = take_varint(&mut record)?;
        let key = take_bytes(&mut record)?;
        let value = take_bytes(&mut record)?;
        let count = usize::try_from(take_varint(&mut record)?).map_err(|_| BatchError::Invalid("header count"))?;
        // A header takes at least 2 bytes.
        if count > record.len() / 2 {
            return Err(BatchError::Invalid("header count"));
        }
        let mut headers = Vec::with_capacity(count);
        for _ in 0..count {
            let key = take_bytes(&mut record)?.ok_or(BatchError::Invalid("header key"))?;
            headers.push(Header { key: String::from_utf8_lossy(&key).into_owned(), value: take_bytes(&mut record)? });
        }
        let header = &self.header;
        let timestamp =
            if header.is_log_append_time() { header.max_timestamp } else { header.base_timestamp.saturating_add(timestamp_delta) };
        Ok(Record { offset: header.base_offset.saturating_add(i64::from(offset_delta)), timestamp, key, value, headers })
    }
}

/// A batch in the making: records are encoded as they come.
#[derive(Debug)]
pub struct BatchBuilder {
    records: BytesMut,
    count: i32,
    base_timestamp: i64,
    max_timestamp: i64,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
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

impl BatchBuilder {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self { records: BytesMut::new(), count: 0, base_timestamp: 0, max_timestamp: i64::MIN }
    }

    /// Records so far.
    #[must_use]
    pub fn count(&self) -> i32 {
        self.count
    }

    /// Bytes of the batch so far, uncompressed.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.records.len().saturating_add(HEADER_BYTES)
    }

    /// Adds a record.
    ///
    /// # Errors
    /// `Invalid` when a part is larger than 2 GiB or the batch has 2^31 records.
    pub fn push(&mut self, timestamp: i64, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[Header]) -> Result<(), BatchError> {
        if self.count == 0 {
            self.base_timestamp = timestamp;
        }
        let next = self.count.checked_add(1).ok_or(BatchError::Invalid("record count"))?;
        let timestamp_delta = timestamp.wrapping_sub(self.base_timestamp);
        let header_count = i32::try_from(headers.len()).map_err(|_| BatchError::Invalid("header count"))?;
        let mut length =
            1 + varlong_len(timestamp_delta) + varint_len(self.count) + bytes_len(key)? + bytes_len(value)? + varint_len(header_count);
        for header in headers {
            length += bytes_len(Some(header.key.as_bytes()))? + bytes_len(header.value.as_deref())?;
        }
        put_varint(&mut self.records, i32::try_from(length).map_err(|_| BatchError::Invalid("record length"))?);
        self.records.put_i8(0);
        put_varlong(&mut self.records, timestamp_delta);
        put_varint(&mut self.records, self.count);
        put_bytes(&mut self.records, key);
        put_bytes(&mut self.records, value);
        put_varint(&mut self.records, header_count);
        for header in headers {
            put_bytes(&mut self.records, Some(header.key.as_bytes()));
            put_bytes(&mut self.records, header.value.as_deref());
        }
        self.count = next;
        self.max_timestamp = self.max_timestamp.max(timestamp);
        Ok(())
    }

    /// The whole batch, with base offset 0 as a producer sends it.
    ///
    /// # Errors
    /// `Invalid` when it is empty or larger than 2 GiB; `Decompress` never.
    pub fn finish(&self, compression: Compression, stamp: ProducerStamp) -> Result<Bytes, BatchError> {
        if self.count == 0 {
            return Err(BatchError::Invalid("record count"));
        }
        let body = compression.compress(&self.records)?;
        let mut batch = BytesMut::with_capacity(HEADER_BYTES.saturating_add(body.len()));
        batch.put_i64(0);
        let length = body.len().saturating_add(HEADER_BYTES - PREFIX_BYTES);
        batch.put_i32(i32::try_from(length).map_err(|_| BatchError::Invalid("batch length"))?);
        batch.put_i32(-1);
        batch.put_i8(2);
        batch.put_u32(0);
        batch.put_i16(compression.attributes());
        batch.put_i32(self.count - 1);
        batch.put_i64(self.base_timestamp);
        batch.put_i64(self.max_timestamp);
        batch.put_i64(stamp.id);
        batch.put_i16(stamp.epoch);
        batch.put_i32(stamp.sequence);
        batch.put_i32(self.count);
        batch.extend_from_slice(&body);
        let crc = batch.get(21..).map_or(0, crc32c);
        if let Some(field) = batch.get_mut(17..21) {
            field.copy_from_slice(&crc.to_be_bytes());
        }
        Ok(batch.freeze())
    }
}

/// CRC-32C, as record batches have it.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes)).unwrap_or(0)
}

fn take_bytes(from: &mut Bytes) -> Result<Option<Bytes>, BatchError> {
    let length = take_varint(from)?;
    if length == -1 {
        return Ok(None);
    }
    match usize::try_from(length) {
        Ok(length) if length <= from.len() => Ok(Some(from.split_to(length))),
        _ => Err(BatchError::Invalid("field length")),
    }
}

fn bytes_len(bytes: Option<&[u8]>) -> Result<usize, BatchError> {
    let Some(bytes) = bytes else { return Ok(varint_len(-1)) };
    let length = i32::try_from(bytes.len()).map_err(|_| BatchError::Invalid("field length"))?;
    Ok(varint_len(length).saturating_add(bytes.len()))
}

/// Lengths were proved by `bytes_len` before.
fn put_bytes(to: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varint(to, -1),
        Some(bytes) => {
            put_varint(to, i32::try_from(bytes.len()).unwrap_or(i32::MAX));
            to.put_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests;
