//! Record batches (magic 2) as they lie on the wire and on disk.
//!
//! [`Batch`] is a view: the header is parsed once, the records stay bytes. What a leader changes
//! lies outside the checksum and is patched in place ([`assign`]); what lies inside it
//! ([`set_log_append_time`], [`set_max_timestamp`]) costs a new one. [`RecordIter`] hands out
//! records lazily as slices, and [`BatchBuilder`] writes a batch.
//!
//! Nothing here trusts a length or a count; malformed input is a [`BatchError`], never a panic.
//!
//! Source: KIP-98 (format), KIP-534 (delete horizon).

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use thiserror::Error;

use crate::compression::decompress_all;
use crate::model::{LeaderEpoch, Offset, ProducerId, TimestampMs};

/// Bytes of the base offset and the length, which every batch of every magic begins with.
pub const LOG_OVERHEAD: usize = 12;
/// Bytes in front of the records.
pub const HEADER_BYTES: usize = 61;
/// Where the leader epoch lies.
pub const LEADER_EPOCH_AT: usize = 12;
/// Where the magic byte lies.
pub const MAGIC_AT: usize = 16;
const LENGTH_AT: usize = 8;
const CRC_AT: usize = 17;
/// Where the bytes that the checksum covers begin; they go on to the end of the batch.
pub const ATTRIBUTES_AT: usize = 21;
const LAST_OFFSET_DELTA_AT: usize = 23;
const BASE_TIMESTAMP_AT: usize = 27;
const MAX_TIMESTAMP_AT: usize = 35;
const PRODUCER_ID_AT: usize = 43;
const PRODUCER_EPOCH_AT: usize = 51;
const BASE_SEQUENCE_AT: usize = 53;
const RECORDS_COUNT_AT: usize = 57;

/// The only magic that is stored.
pub const MAGIC: i8 = 2;

const COMPRESSION_MASK: i16 = 0x07;
const LOG_APPEND_TIME_FLAG: i16 = 0x08;
const TRANSACTIONAL_FLAG: i16 = 0x10;
const CONTROL_FLAG: i16 = 0x20;
const DELETE_HORIZON_FLAG: i16 = 0x40;

/// How the records of a batch are compressed; the number is the one in the attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None = 0,
    /// RFC 1952.
    Gzip = 1,
    /// Snappy, in the blocks of the Java library (xerial).
    Snappy = 2,
    /// The LZ4 frame format.
    Lz4 = 3,
    /// Zstandard (KIP-110).
    Zstd = 4,
}

impl Compression {
    const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// By Kafka's name for it; `None` for a name that does not exist.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.name() == name)
    }

    /// Kafka's name for it, as in a producer's `compression.type`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// Why bytes are not a batch.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BatchError {
    /// The bytes end inside the batch.
    #[error("batch needs {needed} bytes, {available} are there")]
    Truncated {
        /// Bytes the batch says it has (or the header needs).
        needed: u64,
        /// Bytes that were given.
        available: usize,
    },
    /// The length field is smaller than a header.
    #[error("batch length {0} is less than a batch header")]
    TooShort(i32),
    /// Another record format.
    #[error("magic {0} is not 2")]
    Magic(i8),
    /// The checksum does not match.
    #[error("checksum is {computed:08x}, the batch says {stored:08x}")]
    Crc {
        /// What the batch carries.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// A compression type that does not exist.
    #[error("compression type {0} does not exist")]
    Compression(i16),
    /// The records cannot be decompressed, or become too many.
    #[error("{codec} data cannot be read: {reason}")]
    Unpack {
        /// Which codec.
        codec: &'static str,
        /// Why.
        reason: String,
    },
    /// A record is malformed.
    #[error("record {index}: {reason}")]
    Record {
        /// Position in the batch, from 0.
        index: u32,
        /// What is wrong.
        reason: &'static str,
    },
    /// Bytes are left after the last record.
    #[error("bytes are left after the {count} records that the batch says it has")]
    TrailingBytes {
        /// The batch's record count.
        count: i32,
    },
}

/// The fields in front of the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record (also when compaction has removed it).
    pub base_offset: Offset,
    /// Bytes after the length field; the whole batch has 12 more.
    pub batch_length: i32,
    /// Epoch of the leader that appended it.
    pub leader_epoch: LeaderEpoch,
    /// CRC-32C of everything from the attributes on.
    pub crc: u32,
    /// Flags and compression.
    pub attributes: i16,
    /// Offset of the last record, less the base offset.
    pub last_offset_delta: i32,
    /// What the records' timestamps are relative to; the delete horizon when that flag is set.
    pub base_timestamp: TimestampMs,
    /// The largest timestamp; with log append time, every record's.
    pub max_timestamp: TimestampMs,
    /// −1 when the producer is not idempotent.
    pub producer_id: ProducerId,
    /// −1 when the producer is not idempotent.
    pub producer_epoch: i16,
    /// Sequence of the first record; −1 when the producer is not idempotent.
    pub base_sequence: i32,
    /// Records present; fewer than offsets after compaction.
    pub records_count: i32,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

impl BatchHeader {
    /// Parses the header at the start of `bytes`, which may end before the batch does.
    ///
    /// # Errors
    /// `Truncated` when there are fewer than 61 bytes, `TooShort`, `Magic`.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        Self::fields(bytes)
            .ok_or(BatchError::Truncated { needed: HEADER_BYTES as u64, available: bytes.len() })
            .and_then(|(magic, header)| {
                if header.batch_length < (HEADER_BYTES - LOG_OVERHEAD) as i32 {
                    return Err(BatchError::TooShort(header.batch_length));
                }
                if magic != MAGIC {
                    return Err(BatchError::Magic(magic));
                }
                Ok(header)
            })
    }

    fn fields(bytes: &[u8]) -> Option<(i8, Self)> {
        // One length check, so that the reads below need none.
        let bytes: &[u8; HEADER_BYTES] = bytes.get(..HEADER_BYTES)?.try_into().ok()?;
        let header = Self {
            base_offset: i64::from_be_bytes(array(bytes, 0)?),
            batch_length: i32::from_be_bytes(array(bytes, 8)?),
            leader_epoch: i32::from_be_bytes(array(bytes, LEADER_EPOCH_AT)?),
            crc: u32::from_be_bytes(array(bytes, CRC_AT)?),
            attributes: i16::from_be_bytes(array(bytes, ATTRIBUTES_AT)?),
            last_offset_delta: i32::from_be_bytes(array(bytes, LAST_OFFSET_DELTA_AT)?),
            base_timestamp: i64::from_be_bytes(array(bytes, BASE_TIMESTAMP_AT)?),
            max_timestamp: i64::from_be_bytes(array(bytes, MAX_TIMESTAMP_AT)?),
            producer_id: i64::from_be_bytes(array(bytes, PRODUCER_ID_AT)?),
            producer_epoch: i16::from_be_bytes(array(bytes, PRODUCER_EPOCH_AT)?),
            base_sequence: i32::from_be_bytes(array(bytes, BASE_SEQUENCE_AT)?),
            records_count: i32::from_be_bytes(array(bytes, RECORDS_COUNT_AT)?),
        };
        Some((i8::from_be_bytes(array(bytes, MAGIC_AT)?), header))
    }

    /// Bytes of the whole batch; at least 61.
    #[must_use]
    pub fn size(&self) -> usize {
        usize::try_from(self.batch_length).unwrap_or(0) + LOG_OVERHEAD
    }

    /// Offset of the last record, inclusive. Saturates on nonsense.
    #[must_use]
    pub fn last_offset(&self) -> Offset {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta))
    }

    /// Offset that follows the batch.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        self.last_offset().saturating_add(1)
    }

    /// How the records are compressed.
    ///
    /// # Errors
    /// `Compression` for a number that does not exist.
    pub fn compression(&self) -> Result<Compression, BatchError> {
        match self.attributes & COMPRESSION_MASK {
            0 => Ok(Compression::None),
            1 => Ok(Compression::Gzip),
            2 => Ok(Compression::Snappy),
            3 => Ok(Compression::Lz4),
            4 => Ok(Compression::Zstd),
            other => Err(BatchError::Compression(other)),
        }
    }

    /// Whether every record's timestamp is the time of the append.
    #[must_use]
    pub fn is_log_append_time(&self) -> bool {
        self.attributes & LOG_APPEND_TIME_FLAG != 0
    }

    /// Whether it belongs to a transaction.
    #[must_use]
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL_FLAG != 0
    }

    /// Whether it holds a control record (commit, abort) instead of data.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL_FLAG != 0
    }

    /// When its tombstones may go (KIP-534): set at the first compaction that saw them.
    #[must_use]
    pub fn delete_horizon_ms(&self) -> Option<TimestampMs> {
        (self.attributes & DELETE_HORIZON_FLAG != 0).then_some(self.base_timestamp)
    }

    /// Whether it came from an idempotent producer.
    #[must_use]
    pub fn has_producer_id(&self) -> bool {
        self.producer_id >= 0
    }

    /// Sequence of the last record; −1 without one. Wraps from 2^31−1 to 0.
    #[must_use]
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence < 0 {
            -1
        } else {
            increment_sequence(self.base_sequence, self.last_offset_delta)
        }
    }

    /// The timestamp of a record with this delta.
    #[must_use]
    pub fn timestamp(&self, delta: i64) -> TimestampMs {
        if self.is_log_append_time() {
            self.max_timestamp
        } else {
            self.base_timestamp.saturating_add(delta)
        }
    }
}

/// `sequence + by`, wrapping from 2^31−1 to 0. Neither may be negative.
#[must_use]
pub fn increment_sequence(sequence: i32, by: i32) -> i32 {
    ((i64::from(sequence) + i64::from(by)) & i64::from(i32::MAX)) as i32
}

/// The most bytes that the records of one batch may decompress to.
pub const UNPACKED_BYTES_MAX: u64 = 256 << 20;

/// A whole batch: its bytes, and its header parsed.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The header.
    pub header: BatchHeader,
    bytes: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Takes the batch at the start of `bytes`; gives it and what follows. The checksum is not
    /// looked at.
    ///
    /// # Errors
    /// `Truncated`, `TooShort`, `Magic`.
    pub fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), BatchError> {
        let header = BatchHeader::parse(bytes)?;
        match bytes.split_at_checked(header.size()) {
            Some((batch, rest)) => Ok((Self { header, bytes: batch }, rest)),
            None => {
                Err(BatchError::Truncated { needed: header.size() as u64, available: bytes.len() })
            }
        }
    }

    /// The whole batch.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The records, compressed as they are.
    #[must_use]
    pub fn records_bytes(&self) -> &'a [u8] {
        self.bytes.get(HEADER_BYTES..).unwrap_or_default()
    }

    /// The records, decompressed: at most [`UNPACKED_BYTES_MAX`].
    ///
    /// # Errors
    /// `Compression` for a type that does not exist, `Unpack`.
    pub fn unpacked(&self) -> Result<Cow<'a, [u8]>, BatchError> {
        match self.header.compression()? {
            Compression::None => Ok(Cow::Borrowed(self.records_bytes())),
            codec => match decompress_all(codec, self.records_bytes(), UNPACKED_BYTES_MAX) {
                Ok(records) => Ok(Cow::Owned(records)),
                Err(e) => Err(BatchError::Unpack { codec: codec.name(), reason: e.to_string() }),
            },
        }
    }

    /// Compares the checksum.
    ///
    /// # Errors
    /// `Crc`.
    pub fn check_crc(&self) -> Result<(), BatchError> {
        let computed = crc_of(self.bytes);
        if computed == self.header.crc {
            Ok(())
        } else {
            Err(BatchError::Crc { stored: self.header.crc, computed })
        }
    }
}

/// The checksum that the batch in `bytes` ought to carry.
fn crc_of(bytes: &[u8]) -> u32 {
    crc32c(bytes.get(ATTRIBUTES_AT..).unwrap_or_default())
}

/// CRC-32C (Castagnoli).
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_append(0, bytes)
}

/// The CRC-32C of what `sum` is that of, followed by `bytes`; of nothing it is 0.
#[must_use]
pub fn crc32c_append(sum: u32, bytes: &[u8]) -> u32 {
    ::crc32c::crc32c_append(sum, bytes)
}

fn put(batch: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = batch.get_mut(at..at + value.len()) {
        field.copy_from_slice(value);
    }
}

/// Gives the batch its place in the log. Lies outside the checksum.
pub fn assign(batch: &mut [u8], base_offset: Offset, leader_epoch: LeaderEpoch) {
    put(batch, 0, &base_offset.to_be_bytes());
    put(batch, LEADER_EPOCH_AT, &leader_epoch.to_be_bytes());
}

/// Makes `now` every record's timestamp. Redoes the checksum.
pub fn set_log_append_time(batch: &mut [u8], now: TimestampMs) {
    if let Some(attributes) = array(batch, ATTRIBUTES_AT).map(i16::from_be_bytes) {
        put(batch, ATTRIBUTES_AT, &(attributes | LOG_APPEND_TIME_FLAG).to_be_bytes());
        set_max_timestamp(batch, now);
    }
}

/// Corrects the largest timestamp. Redoes the checksum.
pub fn set_max_timestamp(batch: &mut [u8], max_timestamp: TimestampMs) {
    put(batch, MAX_TIMESTAMP_AT, &max_timestamp.to_be_bytes());
    let crc = crc_of(batch);
    put(batch, CRC_AT, &crc.to_be_bytes());
}

/// One record, as slices of its batch's uncompressed records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its timestamp, less the batch's base timestamp.
    pub timestamp_delta: i64,
    /// Its offset, less the batch's base offset.
    pub offset_delta: i32,
    /// `None` is null, which differs from empty.
    pub key: Option<&'a [u8]>,
    /// `None` is null: a tombstone in a compacted topic.
    pub value: Option<&'a [u8]>,
    /// The headers; keys may repeat, order matters.
    pub headers: Headers<'a>,
}

/// The headers of a record, already proven well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Headers<'a> {
    count: u32,
    bytes: &'a [u8],
}

impl<'a> Headers<'a> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Each header's key and value.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        let mut cursor = Cursor(self.bytes);
        (0..self.count).map_while(move |_| Some((cursor.nullable()??, cursor.nullable()?)))
    }
}

/// Reads the records of a batch one after the other. Ends after the first error.
#[derive(Clone, Debug)]
pub struct RecordIter<'a> {
    cursor: Cursor<'a>,
    count: i32,
    index: i32,
}

impl<'a> RecordIter<'a> {
    /// Over `records`, the uncompressed bytes after the header, of a batch that says it has `count`
    /// records.
    #[must_use]
    pub fn new(records: &'a [u8], count: i32) -> Self {
        Self { cursor: Cursor(records), count, index: 0 }
    }
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<Record<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index >= self.count {
            if self.index == self.count && !self.cursor.0.is_empty() {
                self.index = i32::MAX;
                return Some(Err(BatchError::TrailingBytes { count: self.count }));
            }
            return None;
        }
        let index = u32::try_from(self.index).unwrap_or(0);
        match self.cursor.record() {
            Ok(record) => {
                self.index += 1;
                Some(Ok(record))
            }
            Err(reason) => {
                (self.index, self.cursor) = (i32::MAX, Cursor(&[]));
                Some(Err(BatchError::Record { index, reason }))
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    #[inline]
    fn varlong(&mut self) -> Option<i64> {
        // Nearly all have one byte or two.
        match *self.0 {
            [only, ref rest @ ..] if only & 0x80 == 0 => {
                self.0 = rest;
                Some(unzigzag(u64::from(only)))
            }
            [low, high, ref rest @ ..] if high & 0x80 == 0 => {
                self.0 = rest;
                Some(unzigzag(u64::from(low & 0x7f) | u64::from(high) << 7))
            }
            _ => self.long_varlong(),
        }
    }

    fn long_varlong(&mut self) -> Option<i64> {
        let mut value = 0u64;
        for (i, byte) in self.0.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.0 = &self.0[i + 1..];
                return Some(unzigzag(value));
            }
        }
        None
    }

    #[inline]
    fn varint(&mut self) -> Option<i32> {
        i32::try_from(self.varlong()?).ok()
    }

    /// Outer `None`: malformed. Inner `None`: null.
    #[inline]
    fn nullable(&mut self) -> Option<Option<&'a [u8]>> {
        match self.varint()? {
            -1 => Some(None),
            n => self.take(usize::try_from(n).ok()?).map(Some),
        }
    }

    fn record(&mut self) -> Result<Record<'a>, &'static str> {
        let length =
            self.varint().and_then(|n| usize::try_from(n).ok()).ok_or("length is malformed")?;
        let mut body = Cursor(self.take(length).ok_or("length reaches past the end of the batch")?);
        body.take(1).ok_or("ends before its attributes")?;
        let timestamp_delta = body.varlong().ok_or("timestamp is malformed")?;
        let offset_delta = body.varint().ok_or("offset is malformed")?;
        let key = body.nullable().ok_or("key is malformed")?;
        let value = body.nullable().ok_or("value is malformed")?;
        let count =
            body.varint().and_then(|n| u32::try_from(n).ok()).ok_or("header count is malformed")?;
        let headers = Headers { count, bytes: body.0 };
        for _ in 0..count {
            body.nullable().flatten().ok_or("header key is malformed")?;
            body.nullable().ok_or("header value is malformed")?;
        }
        if !body.0.is_empty() {
            return Err("is shorter than its length says");
        }
        Ok(Record { timestamp_delta, offset_delta, key, value, headers })
    }
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Adds `value` as a zigzag varint, as records have their numbers.
pub fn put_varlong(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varlong(out, -1),
        Some(bytes) => {
            put_varlong(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}

/// Completes the 61 bytes of a header whose records are written apart: `len` bytes of them, and
/// `crc` of everything from the attributes on.
pub fn complete(header: &mut [u8], len: usize, crc: u32) {
    let length = i32::try_from(HEADER_BYTES - LOG_OVERHEAD + len).unwrap_or(i32::MAX);
    put(header, LENGTH_AT, &length.to_be_bytes());
    put(header, CRC_AT, &crc.to_be_bytes());
}

/// Writes a batch.
///
/// ```
/// use letterbox_protocol::batch::{Batch, BatchBuilder};
///
/// let mut builder = BatchBuilder::new(1_000);
/// builder.push(1_000, Some(b"key"), Some(b"value"), &[]);
/// let bytes = builder.build();
/// let (batch, rest) = Batch::split(&bytes).unwrap();
/// assert!(rest.is_empty() && batch.check_crc().is_ok());
/// assert_eq!(batch.header.records_count, 1);
/// ```
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    header: BatchHeader,
    max_timestamp: TimestampMs,
    records: Vec<u8>,
    body: Vec<u8>,
}

impl BatchBuilder {
    /// A batch at offset 0, of no producer, with record timestamps counted from `base_timestamp`.
    #[must_use]
    pub fn new(base_timestamp: TimestampMs) -> Self {
        let header = BatchHeader {
            base_offset: 0,
            batch_length: 0,
            leader_epoch: -1,
            crc: 0,
            attributes: 0,
            last_offset_delta: -1,
            base_timestamp,
            max_timestamp: -1,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            records_count: 0,
        };
        Self { header, max_timestamp: -1, records: Vec::new(), body: Vec::new() }
    }

    /// An empty batch with the place, producer, flags and timestamps' base of `header`, for records
    /// with the same offset deltas: its last offset stays even when the last records do not come.
    #[must_use]
    pub fn like(header: &BatchHeader) -> Self {
        Self {
            header: BatchHeader { records_count: 0, ..*header },
            max_timestamp: -1,
            records: Vec::new(),
            body: Vec::new(),
        }
    }

    /// The batch of `header`, whose records are packed already.
    #[must_use]
    pub fn again(header: &BatchHeader, max_timestamp: TimestampMs) -> Self {
        Self { header: *header, max_timestamp, records: Vec::new(), body: Vec::new() }
    }

    /// The idempotent producer it comes from.
    #[must_use]
    pub fn producer(mut self, id: ProducerId, epoch: i16, base_sequence: i32) -> Self {
        (self.header.producer_id, self.header.producer_epoch, self.header.base_sequence) =
            (id, epoch, base_sequence);
        self
    }

    /// Its place in the log.
    #[must_use]
    pub fn at(mut self, base_offset: Offset, leader_epoch: LeaderEpoch) -> Self {
        (self.header.base_offset, self.header.leader_epoch) = (base_offset, leader_epoch);
        self
    }

    /// Marks it as part of a transaction.
    #[must_use]
    pub fn transactional(mut self) -> Self {
        self.header.attributes |= TRANSACTIONAL_FLAG;
        self
    }

    /// Marks its one record as a control record.
    #[must_use]
    pub fn control(mut self) -> Self {
        self.header.attributes |= CONTROL_FLAG;
        self
    }

    /// Tombstones in it may go once `horizon` has passed (KIP-534). Before the first record only.
    #[must_use]
    pub fn delete_horizon(mut self, horizon: TimestampMs) -> Self {
        self.header.attributes |= DELETE_HORIZON_FLAG;
        self.header.base_timestamp = horizon;
        self
    }

    /// Its last offset is at least `last_offset_delta` after the first, even when no record has it.
    #[must_use]
    pub fn until(mut self, last_offset_delta: i32) -> Self {
        self.header.last_offset_delta = self.header.last_offset_delta.max(last_offset_delta);
        self
    }

    /// Adds a record behind the last.
    pub fn push(
        &mut self,
        timestamp: TimestampMs,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&[u8], Option<&[u8]>)],
    ) {
        self.header.last_offset_delta = self.header.last_offset_delta.saturating_add(1);
        self.body.clear();
        let mut raw = Vec::new();
        for (name, value) in headers {
            put_nullable(&mut raw, Some(name));
            put_nullable(&mut raw, *value);
        }
        let headers =
            Headers { count: u32::try_from(headers.len()).unwrap_or(u32::MAX), bytes: &raw };
        let record = Record {
            timestamp_delta: 0,
            offset_delta: self.header.last_offset_delta,
            key,
            value,
            headers,
        };
        self.write(timestamp, &record);
    }

    /// Adds `record` with the offset delta it has and this absolute timestamp.
    pub fn keep(&mut self, timestamp: TimestampMs, record: &Record<'_>) {
        self.header.last_offset_delta = self.header.last_offset_delta.max(record.offset_delta);
        self.write(timestamp, record);
    }

    fn write(&mut self, timestamp: TimestampMs, record: &Record<'_>) {
        let body = &mut self.body;
        body.clear();
        body.push(0);
        put_varlong(body, timestamp.wrapping_sub(self.header.base_timestamp));
        put_varlong(body, i64::from(record.offset_delta));
        put_nullable(body, record.key);
        put_nullable(body, record.value);
        put_varlong(body, i64::from(record.headers.count));
        body.extend_from_slice(record.headers.bytes);
        put_varlong(&mut self.records, body.len() as i64);
        self.records.extend_from_slice(body);
        self.header.records_count += 1;
        self.max_timestamp = self.max_timestamp.max(timestamp);
    }

    /// Records added so far.
    #[must_use]
    pub fn records_count(&self) -> i32 {
        self.header.records_count
    }

    /// Bytes of the batch as it would be built now, uncompressed.
    #[must_use]
    pub fn size(&self) -> usize {
        HEADER_BYTES + self.records.len()
    }

    /// The uncompressed records added so far.
    #[must_use]
    pub fn records(&self) -> &[u8] {
        &self.records
    }

    /// The batch, uncompressed.
    #[must_use]
    pub fn build(mut self) -> BytesMut {
        let records = std::mem::take(&mut self.records);
        self.build_with(Compression::None, &records)
    }

    /// The batch, with `records` being [`Self::records`] after compression.
    #[must_use]
    pub fn build_with(self, compression: Compression, records: &[u8]) -> BytesMut {
        let header = self.header;
        // With log append time the header's maximum *is* the records' timestamp; an emptied batch
        // keeps its own.
        let keeps = header.is_log_append_time() || header.records_count == 0;
        let max_timestamp = if keeps { header.max_timestamp } else { self.max_timestamp };
        let attributes = (header.attributes & !COMPRESSION_MASK) | compression as i16;
        let mut out = BytesMut::with_capacity(HEADER_BYTES + records.len());
        out.put_i64(header.base_offset);
        out.put_i32(i32::try_from(HEADER_BYTES - LOG_OVERHEAD + records.len()).unwrap_or(i32::MAX));
        out.put_i32(header.leader_epoch);
        out.put_i8(MAGIC);
        out.put_u32(0);
        out.put_i16(attributes);
        out.put_i32(header.last_offset_delta.max(0));
        out.put_i64(header.base_timestamp);
        out.put_i64(max_timestamp);
        out.put_i64(header.producer_id);
        out.put_i16(header.producer_epoch);
        out.put_i32(header.base_sequence);
        out.put_i32(header.records_count);
        out.put_slice(records);
        let crc = crc_of(&out);
        put(&mut out, CRC_AT, &crc.to_be_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> BytesMut {
        let mut builder = BatchBuilder::new(100).producer(7, 1, 5).at(42, 3);
        builder.push(100, Some(b"k"), Some(b"v"), &[(b"h", None), (b"h", Some(b""))]);
        builder.push(90, None, None, &[]);
        builder.build()
    }

    #[test]
    fn what_is_built_reads_back() {
        let bytes = sample();
        let (batch, rest) = Batch::split(&bytes).unwrap();
        assert!(rest.is_empty());
        batch.check_crc().unwrap();
        // The catalogue's check value of CRC-32/ISCSI.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c_append(crc32c(b"1234"), b"56789"), 0xe306_9283);
        let header = batch.header;
        assert_eq!((header.base_offset, header.last_offset(), header.leader_epoch), (42, 43, 3));
        assert_eq!(
            (header.base_timestamp, header.max_timestamp, header.last_sequence()),
            (100, 100, 6)
        );
        let records: Vec<_> =
            RecordIter::new(batch.records_bytes(), 2).map(Result::unwrap).collect();
        assert_eq!(records[0].key, Some(&b"k"[..]));
        assert_eq!(
            records[0].headers.iter().collect::<Vec<_>>(),
            [(&b"h"[..], None), (&b"h"[..], Some(&b""[..]))]
        );
        assert_eq!(
            (records[1].key, records[1].value, header.timestamp(records[1].timestamp_delta)),
            (None, None, 90)
        );
    }

    #[test]
    fn place_is_outside_the_checksum_and_time_inside() {
        let mut bytes = sample();
        assign(&mut bytes, 1 << 40, 9);
        Batch::split(&bytes).unwrap().0.check_crc().unwrap();
        put(&mut bytes, MAX_TIMESTAMP_AT, &5i64.to_be_bytes());
        assert!(matches!(Batch::split(&bytes).unwrap().0.check_crc(), Err(BatchError::Crc { .. })));
        set_log_append_time(&mut bytes, 777);
        let (batch, _) = Batch::split(&bytes).unwrap();
        batch.check_crc().unwrap();
        assert_eq!((batch.header.timestamp(-10), batch.header.base_offset), (777, 1 << 40));
    }

    #[test]
    fn every_flipped_bit_inside_the_checksum_is_noticed() {
        let bytes = sample();
        for at in CRC_AT * 8..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(Batch::split(&bad).unwrap().0.check_crc().is_err(), "bit {at}");
        }
    }

    #[test]
    fn sequences_wrap_to_zero() {
        for (from, by, to) in
            [(0, 0, 0), (5, 3, 8), (i32::MAX, 1, 0), (i32::MAX - 1, 3, 1), (i32::MAX, 0, i32::MAX)]
        {
            assert_eq!(increment_sequence(from, by), to);
        }
    }

    #[test]
    fn counts_and_lengths_that_lie_are_errors() {
        let bytes = sample();
        let records = &bytes[HEADER_BYTES..];
        let error = |records, count| RecordIter::new(records, count).find_map(Result::err);
        assert_eq!(error(records, 2), None);
        assert!(matches!(error(records, 1), Some(BatchError::TrailingBytes { count: 1 })));
        assert!(matches!(error(records, i32::MAX), Some(BatchError::Record { index: 2, .. })));
        for cut in 0..records.len() {
            assert!(error(&records[..cut], 2).is_some(), "cut at {cut}");
        }
        for cut in 0..bytes.len() {
            assert!(
                matches!(Batch::split(&bytes[..cut]), Err(BatchError::Truncated { .. })),
                "cut at {cut}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), count in any::<i32>()) {
            for record in RecordIter::new(&bytes, count).flatten() { record.headers.iter().count(); }
            if let Ok((batch, _)) = Batch::split(&bytes) {
                let _ = (batch.check_crc(), batch.header.next_offset(), batch.header.last_sequence(), batch.header.timestamp(i64::MIN));
            }
        }

        #[test]
        fn varlongs_read_back(value in any::<i64>(), shift in 0u32..64) {
            // Of every length: nearly all of the 64-bit numbers have ten bytes.
            let value = value >> shift;
            let mut bytes = Vec::new();
            put_varlong(&mut bytes, value);
            prop_assert_eq!(Cursor(&bytes).varlong(), Some(value));
        }
    }
}
