//! What a producer's batch must be before it is stored, and what is changed about it.
//!
//! The bytes stay as they came unless the topic asks for another compression, the offset deltas
//! have gaps, or a timestamp in the header is to be corrected. Records are walked as a stream:
//! nothing is kept of keys and values, so that a batch costs one small buffer however far it
//! unpacks.
//!
//! Where Apache Kafka's LogValidator differs: a delete horizon in a producer's batch is refused (it
//! would change the meaning of its timestamps), and so are transactional batches while transactions
//! are not offered.

use std::io::{self, BufRead, BufReader, Read, Write};

use bytes::BytesMut;

use super::config::{CompressionType, LogConfig, TimestampType};
use super::error::{AppendError, RecordError};
use super::types::Origin;
use letterbox_protocol::batch::{
    self, Batch, BatchBuilder, BatchError, BatchHeader, Compression, RecordIter,
};
use letterbox_protocol::compression::{Packer, check_frame, decompress};
use letterbox_protocol::model::TimestampMs;

/// At most so many refused records are listed.
const RECORD_ERRORS_MAX: usize = 100;

impl From<BatchError> for AppendError {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::Magic(magic @ 0..=1) => Self::UnsupportedForMessageFormat { magic },
            BatchError::Compression(number) => Self::UnsupportedCompressionType(number),
            BatchError::Record { .. } | BatchError::TrailingBytes { .. } => {
                invalid(error.to_string())
            }
            other => Self::CorruptMessage(other.to_string()),
        }
    }
}

fn invalid(message: impl Into<String>) -> AppendError {
    AppendError::InvalidRecord { message: message.into(), records: Vec::new() }
}

/// How much validation may still cost, in nanoseconds of one CPU, as measured roughly. What costs
/// more is told and not done.
#[derive(Debug)]
pub struct Effort {
    left: u64,
}

impl Effort {
    /// What may be done on an async thread for one request: about a millisecond.
    #[must_use]
    pub fn light() -> Self {
        Self { left: 1_000_000 }
    }

    /// Whatever it takes.
    #[must_use]
    pub fn unbounded() -> Self {
        Self { left: u64::MAX }
    }

    fn is_unbounded(&self) -> bool {
        self.left == u64::MAX
    }

    fn spend(&mut self, cost: u64) -> Result<(), Stop> {
        if !self.is_unbounded() {
            self.left = self.left.checked_sub(cost).ok_or(Stop::TooLong)?;
        }
        Ok(())
    }
}

/// Checksums and walks seven bytes in a nanosecond.
const BYTES_PER_NS: u64 = 7;
const RECORD_NS: u64 = 15;
const UNPACKED_RECORD_NS: u64 = 60;
/// The slowest decoder, gzip's, makes a byte in less.
const UNPACKED_BYTE_NS: u64 = 2;

/// What a packed byte may cost however little comes out of it: blocks that hold nothing but their
/// own tables.
fn packed_byte_ns(codec: Compression) -> u64 {
    match codec {
        Compression::None => 0,
        Compression::Snappy => 10,
        Compression::Lz4 => 20,
        Compression::Gzip | Compression::Zstd => 100,
    }
}

/// Records that are compressed anew within an effort, and the hardest level of zstd for that.
const REPACKED_LIGHT: u64 = 16 << 10;
const ZSTD_LEVEL_LIGHT: i32 = 9;

/// A batch that may be appended.
#[derive(Debug)]
pub struct ValidBatch {
    pub(super) bytes: BytesMut,
    pub(super) header: BatchHeader,
    /// The time that all records got, when the topic uses log append time; else −1.
    pub(super) log_append_time: TimestampMs,
}

/// What became of a batch.
#[derive(Debug)]
pub enum Validated {
    /// It may be appended.
    Valid(ValidBatch),
    /// Validating it takes longer than the effort allows; it is as it came.
    TooLong(BytesMut),
}

enum Stop {
    TooLong,
    Refused(AppendError),
}

impl From<AppendError> for Stop {
    fn from(error: AppendError) -> Self {
        Self::Refused(error)
    }
}

impl From<BatchError> for Stop {
    fn from(error: BatchError) -> Self {
        Self::Refused(error.into())
    }
}

/// Checks the one batch that `bytes` must be, within `effort`; gives it ready for its offset.
pub(super) fn validate(
    mut bytes: BytesMut,
    config: &LogConfig,
    origin: Origin,
    now: TimestampMs,
    effort: &mut Effort,
) -> Result<Validated, AppendError> {
    match check(&mut bytes, config, origin, now, effort) {
        Ok(header) => {
            let log_append_time = if config.message_timestamp_type == TimestampType::LogAppendTime {
                now
            } else {
                -1
            };
            Ok(Validated::Valid(ValidBatch { bytes, header, log_append_time }))
        }
        Err(Stop::TooLong) => Ok(Validated::TooLong(bytes)),
        Err(Stop::Refused(error)) => Err(error),
    }
}

/// As [`validate`]; `bytes` are changed only when nothing can stop it any more.
fn check(
    bytes: &mut BytesMut,
    config: &LogConfig,
    origin: Origin,
    now: TimestampMs,
    effort: &mut Effort,
) -> Result<BatchHeader, Stop> {
    let (batch, rest) = Batch::split(bytes)?;
    let mut header = batch.header;
    if !rest.is_empty() {
        return Err(invalid("a request may hold one record batch per partition").into());
    }
    if origin == Origin::Client {
        check_header(&header)?;
    }
    if bytes.len() > config.max_message_bytes {
        return Err(AppendError::MessageTooLarge {
            size: bytes.len(),
            max: config.max_message_bytes,
        }
        .into());
    }
    let codec = header.compression()?;
    let records = u64::try_from(header.records_count).unwrap_or(0).min(bytes.len() as u64);
    effort.spend(bytes.len() as u64 / BYTES_PER_NS)?;
    if codec == Compression::None {
        effort.spend(records * RECORD_NS)?;
    } else {
        effort.spend(bytes.len() as u64 * packed_byte_ns(codec))?;
    }
    batch.check_crc()?;
    if header.is_control() {
        return Ok(header);
    }
    let walk = walk(&batch, codec, config, now, effort)?;
    let (target, level) = match config.compression_type {
        CompressionType::Producer => (codec, None),
        CompressionType::Broker { codec, level } => (codec, level),
    };
    if target != codec || !walk.deltas_in_order {
        let is_hard = walk.unpacked > REPACKED_LIGHT
            || level.is_some_and(|level| target == Compression::Zstd && level > ZSTD_LEVEL_LIGHT);
        if is_hard && !effort.is_unbounded() {
            return Err(Stop::TooLong);
        }
        *bytes = rebuild(&batch, codec, target, level, config, &walk)?;
        header = BatchHeader::parse(bytes)?;
    }
    match config.message_timestamp_type {
        TimestampType::LogAppendTime => batch::set_log_append_time(bytes, now),
        TimestampType::CreateTime if header.max_timestamp != walk.max_timestamp => {
            batch::set_max_timestamp(bytes, walk.max_timestamp)
        }
        // As it came, which is nearly always.
        TimestampType::CreateTime => return Ok(header),
    }
    Ok(BatchHeader::parse(bytes)?)
}

fn check_header(header: &BatchHeader) -> Result<(), AppendError> {
    if header.base_offset != 0 {
        return Err(invalid(format!(
            "the base offset of a producer's batch must be 0, it is {}",
            header.base_offset
        )));
    }
    if header.is_control() {
        return Err(invalid("a producer may not write control records"));
    }
    if header.is_transactional() {
        return Err(invalid("transactions are not offered by this broker yet"));
    }
    if header.delete_horizon_ms().is_some() {
        return Err(invalid("a producer may not set a delete horizon"));
    }
    if header.records_count <= 0
        || header.last_offset_delta.checked_add(1) != Some(header.records_count)
    {
        return Err(invalid(format!(
            "the batch says it has {} records and a last offset delta of {}",
            header.records_count, header.last_offset_delta
        )));
    }
    if header.has_producer_id() && (header.base_sequence < 0 || header.producer_epoch < 0) {
        return Err(invalid("an idempotent producer's batch must have a sequence and an epoch"));
    }
    if header.is_log_append_time() {
        return Err(AppendError::InvalidTimestamp {
            message: "a producer may not set the timestamp type to LogAppendTime".into(),
            records: Vec::new(),
        });
    }
    Ok(())
}

struct Walk {
    max_timestamp: TimestampMs,
    deltas_in_order: bool,
    /// Bytes of the records, unpacked.
    unpacked: u64,
}

fn walk(
    batch: &Batch<'_>,
    codec: Compression,
    config: &LogConfig,
    now: TimestampMs,
    effort: &mut Effort,
) -> Result<Walk, Stop> {
    let timestamps = match config.message_timestamp_type {
        TimestampType::CreateTime => {
            let (before, after) =
                (config.message_timestamp_before_max_ms, config.message_timestamp_after_max_ms);
            // As in Kafka, also where the largest bound says that there is none: what is further away
            // than a difference can say is out of range.
            (now.saturating_sub(before), now.saturating_add(after))
        }
        TimestampType::LogAppendTime => (TimestampMs::MIN, TimestampMs::MAX),
    };
    let mut judge = Judge {
        config,
        timestamps,
        header: &batch.header,
        max_timestamp: -1,
        deltas_in_order: true,
        keyless: Vec::new(),
        out_of_range: Vec::new(),
    };
    let mut unpacked_bytes = batch.records_bytes().len() as u64;
    if codec == Compression::None {
        for (index, record) in
            RecordIter::new(batch.records_bytes(), batch.header.records_count).enumerate()
        {
            let record = record?;
            judge.record(index, record.timestamp_delta, record.offset_delta, record.key.is_some());
        }
    } else {
        let records = usize::try_from(batch.header.records_count).unwrap_or(0);
        let (most, affordable) = (config.batch_unpacked_max(), effort.left / UNPACKED_BYTE_NS);
        check_frame(codec, batch.records_bytes()).map_err(unpack_error)?;
        let unpacked =
            decompress(codec, batch.records_bytes(), most.min(affordable)).map_err(unpack_error)?;
        // Past what is affordable here, it is not a fault of the batch.
        let stopped = |error: io::Error, index: usize| match error.kind() {
            io::ErrorKind::FileTooLarge if affordable < most => Stop::TooLong,
            io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
                invalid(format!("record {index} is malformed: {error}")).into()
            }
            _ => unpack_error(error).into(),
        };
        let mut stream = BufReader::with_capacity(16 << 10, Counted { inner: unpacked, read: 0 });
        for index in 0..records {
            effort.spend(UNPACKED_RECORD_NS)?;
            let shape = RecordShape::read(&mut stream, config.max_decompressed_bytes)
                .map_err(|error| stopped(error, index))?;
            judge.record(index, shape.timestamp_delta, shape.offset_delta, shape.has_key);
        }
        if !stream.fill_buf().map_err(|error| stopped(error, records))?.is_empty() {
            return Err(BatchError::TrailingBytes { count: batch.header.records_count }.into());
        }
        unpacked_bytes = stream.get_ref().read;
        effort.spend(unpacked_bytes * UNPACKED_BYTE_NS)?;
    }
    judge.verdict(unpacked_bytes)
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    read: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.read += n as u64;
        Ok(n)
    }
}

fn unpack_error(error: io::Error) -> AppendError {
    match error.kind() {
        io::ErrorKind::FileTooLarge => invalid(error.to_string()),
        _ => AppendError::CorruptMessage(format!("the records cannot be decompressed: {error}")),
    }
}

/// The rules for each record.
struct Judge<'a> {
    config: &'a LogConfig,
    /// What a timestamp may be, both ends inclusive.
    timestamps: (TimestampMs, TimestampMs),
    header: &'a BatchHeader,
    max_timestamp: TimestampMs,
    deltas_in_order: bool,
    keyless: Vec<RecordError>,
    out_of_range: Vec<RecordError>,
}

impl Judge<'_> {
    fn record(&mut self, index: usize, timestamp_delta: i64, offset_delta: i32, has_key: bool) {
        let timestamp = self.header.base_timestamp.saturating_add(timestamp_delta);
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.deltas_in_order &= usize::try_from(offset_delta) == Ok(index);
        let error = |message| RecordError {
            batch_index: i32::try_from(index).unwrap_or(i32::MAX),
            message,
        };
        if self.config.cleanup_policy.compact && !has_key {
            // As Kafka: the first fault of a record is the one that is told.
            if self.keyless.len() < RECORD_ERRORS_MAX {
                let message = "Compacted topic cannot accept message without key.";
                self.keyless.push(error(message.to_owned()));
            }
            return;
        }
        let (min, max) = self.timestamps;
        if timestamp != -1
            && !(min..=max).contains(&timestamp)
            && self.out_of_range.len() < RECORD_ERRORS_MAX
        {
            self.out_of_range.push(error(format!(
                "Timestamp {timestamp} of message is out of \
                range: it must be within [{min}, {max}]."
            )));
        }
    }

    fn verdict(mut self, unpacked: u64) -> Result<Walk, Stop> {
        if !self.keyless.is_empty() {
            self.keyless.append(&mut self.out_of_range);
            self.keyless.sort_by_key(|error| error.batch_index);
            return Err(Stop::Refused(AppendError::InvalidRecord {
                message: format!("{} records have been rejected", self.keyless.len()),
                records: self.keyless,
            }));
        }
        if !self.out_of_range.is_empty() {
            return Err(Stop::Refused(AppendError::InvalidTimestamp {
                message: "One or more records have been rejected due to invalid timestamp".into(),
                records: self.out_of_range,
            }));
        }
        Ok(Walk {
            max_timestamp: self.max_timestamp,
            deltas_in_order: self.deltas_in_order,
            unpacked,
        })
    }
}

/// Packs the records of a batch anew, numbered without gaps. As a stream: it holds the result, as
/// far as that may be stored, and what a decoder and an encoder need, however far the batch
/// unpacks.
fn rebuild(
    batch: &Batch<'_>,
    codec: Compression,
    target: Compression,
    level: Option<i32>,
    config: &LogConfig,
    walk: &Walk,
) -> Result<BytesMut, AppendError> {
    let max = config.max_message_bytes;
    let mut packer = Packer::new(target, level, UpTo { bytes: Vec::new(), len: 0, max })
        .map_err(unpack_error)?;
    let mut records = decompress(codec, batch.records_bytes(), config.batch_unpacked_max())
        .map_err(unpack_error)?;
    if walk.deltas_in_order {
        io::copy(&mut records, &mut packer).map_err(unpack_error)?;
    } else {
        let mut records = BufReader::with_capacity(16 << 10, records);
        for index in 0..i64::from(batch.header.records_count) {
            renumber(&mut records, index, &mut packer).map_err(unpack_error)?;
        }
    }
    let packed = packer.finish().map_err(unpack_error)?;
    let size = packed.len.saturating_add(batch::HEADER_BYTES);
    if size > max {
        return Err(AppendError::MessageTooLarge { size, max });
    }
    Ok(BatchBuilder::again(&batch.header, walk.max_timestamp).build_with(target, &packed.bytes))
}

/// Keeps what is written as long as it is at most `max` bytes, and counts all of it.
struct UpTo {
    bytes: Vec<u8>,
    len: usize,
    max: usize,
}

impl Write for UpTo {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.len = self.len.saturating_add(bytes.len());
        if self.len <= self.max {
            self.bytes.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Copies a record that was walked before, with another offset delta.
fn renumber(records: &mut impl BufRead, offset_delta: i64, out: &mut impl Write) -> io::Result<()> {
    let length =
        u64::try_from(varlong(records, &mut 0)?).map_err(|_| malformed("length is negative"))?;
    let (mut used, mut head) = (1, vec![0]);
    records.read_exact(&mut head)?;
    batch::put_varlong(&mut head, varlong(records, &mut used)?);
    varlong(records, &mut used)?;
    batch::put_varlong(&mut head, offset_delta);
    let rest = length.checked_sub(used).ok_or_else(|| malformed("length"))?;
    let mut size = Vec::new();
    batch::put_varlong(
        &mut size,
        i64::try_from(rest.saturating_add(head.len() as u64)).map_err(|_| malformed("length"))?,
    );
    out.write_all(&size)?;
    out.write_all(&head)?;
    if io::copy(&mut records.take(rest), out)? == rest {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// What the rules need of a record.
pub(super) struct RecordShape {
    pub(super) timestamp_delta: i64,
    pub(super) offset_delta: i32,
    has_key: bool,
}

impl RecordShape {
    /// Reads past the next record, which has at most `max` bytes, and keeps nothing of its key and
    /// value.
    pub(super) fn read(stream: &mut impl BufRead, max: u64) -> io::Result<Self> {
        let length =
            u64::try_from(varlong(stream, &mut 0)?).map_err(|_| malformed("length is negative"))?;
        if length > max {
            return Err(malformed("it is larger than max.decompressed.message.bytes"));
        }
        let (mut used, mut attributes) = (1, [0]);
        stream.read_exact(&mut attributes)?;
        let timestamp_delta = varlong(stream, &mut used)?;
        let offset_delta =
            i32::try_from(varlong(stream, &mut used)?).map_err(|_| malformed("offset"))?;
        let has_key = skip(stream, &mut used, length, true)?;
        skip(stream, &mut used, length, true)?;
        let headers =
            u32::try_from(varlong(stream, &mut used)?).map_err(|_| malformed("header count"))?;
        for _ in 0..headers {
            skip(stream, &mut used, length, false)?;
            skip(stream, &mut used, length, true)?;
        }
        if used == length {
            Ok(Self { timestamp_delta, offset_delta, has_key })
        } else {
            Err(malformed("length"))
        }
    }
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

pub(super) fn varlong(stream: &mut impl BufRead, used: &mut u64) -> io::Result<i64> {
    let mut value = 0u64;
    for i in 0..10 {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        *used += 1;
        value |= u64::from(byte[0] & 0x7f) << (7 * i);
        if byte[0] & 0x80 == 0 {
            return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    Err(malformed("number is too long"))
}

/// Skips a field with its length in front; tells whether it is not null.
fn skip(stream: &mut impl BufRead, used: &mut u64, max: u64, nullable: bool) -> io::Result<bool> {
    let length = varlong(stream, used)?;
    if length == -1 && nullable {
        return Ok(false);
    }
    let length = u64::try_from(length)
        .ok()
        .filter(|n| *n <= max)
        .ok_or_else(|| malformed("field length"))?;
    if io::copy(&mut stream.take(length), &mut io::sink())? != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    *used += length;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::config::CleanupPolicy;
    use super::*;
    use letterbox_protocol::ErrorCode;
    use letterbox_protocol::batch::Record;
    use letterbox_protocol::compression::{compress, decompress_all};

    fn client_batch(build: impl FnOnce(&mut BatchBuilder)) -> BytesMut {
        let mut builder = BatchBuilder::new(1_000);
        builder.push(1_000, Some(b"a"), Some(b"first"), &[(b"h", Some(b"x"))]);
        builder.push(1_005, None, None, &[]);
        build(&mut builder);
        builder.build()
    }

    fn check(bytes: BytesMut, config: &LogConfig) -> Result<(BytesMut, BatchHeader), AppendError> {
        match validate(bytes, config, Origin::Client, 2_000, &mut Effort::unbounded())? {
            Validated::Valid(batch) => Ok((batch.bytes, batch.header)),
            Validated::TooLong(_) => panic!("no effort is too long"),
        }
    }

    fn code(bytes: BytesMut, config: &LogConfig) -> i16 {
        check(bytes, config).map_or_else(|error| error.code().code(), |_| 0)
    }

    #[test]
    fn good_batch_keeps_its_bytes() {
        let bytes = client_batch(|_| {});
        assert_eq!(check(bytes.clone(), &LogConfig::default()).unwrap().0, bytes);
    }

    #[test]
    fn each_rule_has_its_error_code() {
        let config = LogConfig::default();
        let two = [client_batch(|_| {}), client_batch(|_| {})].concat();
        let mut flipped = client_batch(|_| {});
        flipped[70] ^= 1;
        let mut old = client_batch(|_| {});
        old[batch::MAGIC_AT] = 1;
        let mut count = BatchBuilder::new(0);
        count.push(0, None, None, &[]);
        count.keep(
            0,
            &Record {
                timestamp_delta: 0,
                offset_delta: 7,
                key: None,
                value: None,
                headers: batch::Headers::default(),
            },
        );
        let mut codec = client_batch(|_| {});
        codec[batch::ATTRIBUTES_AT + 1] = 7;
        batch::set_max_timestamp(&mut codec, 1_005);
        let mut first = BatchBuilder::new(i64::MIN);
        first.push(i64::MIN, None, None, &[]);
        for (name, bytes, expected) in [
            ("the first moment of all", first.build(), 32),
            ("two batches", BytesMut::from(&two[..]), 87),
            ("damaged", flipped, 2),
            ("empty", BytesMut::new(), 2),
            ("magic 1", old, 43),
            ("base offset", BatchBuilder::new(0).at(5, 0).build(), 87),
            ("no records", BatchBuilder::new(0).build(), 87),
            ("count and delta differ", count.build(), 87),
            ("control", client_batch(|b| *b = b.clone().control()), 87),
            ("transactional", client_batch(|b| *b = b.clone().transactional()), 87),
            ("producer without sequence", client_batch(|b| *b = b.clone().producer(1, 0, -1)), 87),
            ("unknown compression", codec, 76),
            ("too large", client_batch(|b| b.push(1_000, None, Some(&vec![0; 1 << 21]), &[])), 10),
            ("from the future", client_batch(|b| b.push(2_000 + 3_600_001, None, None, &[])), 32),
        ] {
            assert_eq!(code(bytes, &config), expected, "{name}");
        }
    }

    #[test]
    fn keyless_records_on_a_compacted_topic_are_named() {
        let config = LogConfig {
            cleanup_policy: CleanupPolicy { delete: false, compact: true },
            ..LogConfig::default()
        };
        let error = check(client_batch(|_| {}), &config).unwrap_err();
        assert_eq!(
            (
                error.code().code(),
                error.record_errors().len(),
                error.record_errors()[0].batch_index
            ),
            (87, 1, 1)
        );
    }

    #[test]
    fn a_record_with_two_faults_is_named_once() {
        let config = LogConfig {
            cleanup_policy: CleanupPolicy { delete: false, compact: true },
            ..LogConfig::default()
        };
        let late = client_batch(|batch| batch.push(2_000 + 3_600_001, None, None, &[]));
        let error = check(late, &config).unwrap_err();
        let named = error.record_errors().iter().map(|error| error.batch_index);
        assert_eq!(
            (error.code(), named.collect::<Vec<_>>()),
            (ErrorCode::InvalidRecord, vec![1, 2])
        );
    }

    #[test]
    fn every_codec_is_walked_and_recompressed() {
        let codecs = [
            Compression::None,
            Compression::Gzip,
            Compression::Snappy,
            Compression::Lz4,
            Compression::Zstd,
        ];
        for from in codecs {
            let builder = {
                let mut builder = BatchBuilder::new(1_000);
                for i in 0..500 {
                    builder.push(1_000 + i, Some(b"key"), Some(&[7; 100]), &[(b"h", None)]);
                }
                builder
            };
            let packed = compress(from, None, builder.records()).unwrap();
            let bytes = builder.clone().build_with(from, &packed);
            for to in codecs {
                let config = LogConfig {
                    compression_type: CompressionType::Broker { codec: to, level: None },
                    ..LogConfig::default()
                };
                let (out, header) = check(bytes.clone(), &config).unwrap();
                assert_eq!(
                    (header.compression().unwrap(), header.max_timestamp, header.records_count),
                    (to, 1_499, 500)
                );
                let (batch, _) = Batch::split(&out).unwrap();
                batch.check_crc().unwrap();
                assert_eq!(
                    decompress_all(to, batch.records_bytes(), 1 << 20).unwrap(),
                    builder.records(),
                    "{from:?} to {to:?}"
                );
            }
            let bound = LogConfig { max_decompressed_bytes: 50, ..LogConfig::default() };
            assert_eq!(code(bytes, &bound), if from == Compression::None { 0 } else { 87 });
        }
    }

    #[test]
    fn what_takes_long_is_told_and_left_as_it_came() {
        let records = |count: usize, value: usize| {
            let mut builder = BatchBuilder::new(1_000);
            (0..count).for_each(|_| builder.push(1_000, Some(b"key"), Some(&vec![7; value]), &[]));
            builder
        };
        let packed = |codec, builder: BatchBuilder| {
            builder.clone().build_with(codec, &compress(codec, None, builder.records()).unwrap())
        };
        let own = LogConfig { max_message_bytes: 64 << 20, ..LogConfig::default() };
        let zstd = LogConfig {
            compression_type: CompressionType::Broker { codec: Compression::Zstd, level: None },
            ..own.clone()
        };
        let hard = LogConfig {
            compression_type: CompressionType::Broker { codec: Compression::Zstd, level: Some(22) },
            ..own.clone()
        };
        let bomb = packed(Compression::Zstd, records(1, 20 << 20));
        assert!(bomb.len() < 4_000, "{} bytes are no bomb", bomb.len());
        // 20,000 blocks with nothing in them, then the records.
        let (of_nothing, content) = (records(1, 10), records(1, 10).records().to_vec());
        let mut crc = flate2::Crc::new();
        crc.update(&content);
        let len = u16::try_from(content.len()).unwrap();
        let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
        let last = [&[1][..], &len.to_le_bytes(), &(!len).to_le_bytes(), &content].concat();
        let tail = [crc.sum().to_le_bytes(), u32::from(len).to_le_bytes()].concat();
        let gzip = [&head[..], &[0, 0, 0, 0xff, 0xff].repeat(20_000), &last, &tail].concat();
        let of_nothing = of_nothing.build_with(Compression::Gzip, &gzip);
        check(of_nothing.clone(), &own).unwrap();
        for (name, bytes, config, is_light) in [
            ("a client's usual batch", records(16, 1_000).build(), &own, true),
            ("the same, compressed", packed(Compression::Lz4, records(16, 1_000)), &own, true),
            ("a large batch of large records", records(900, 1_000).build(), &own, true),
            ("a large batch of tiny records", records(90_000, 1).build(), &own, false),
            ("a small batch that unpacks to much", bomb, &own, false),
            ("much that unpacks to little", of_nothing, &own, false),
            (
                "a small one of many records",
                packed(Compression::Gzip, records(50_000, 1)),
                &own,
                false,
            ),
            ("a small batch to be compressed", records(10, 1_000).build(), &zstd, true),
            ("a larger batch to be compressed", records(100, 1_000).build(), &zstd, false),
            (
                "a small batch to be compressed with much effort",
                records(10, 1_000).build(),
                &hard,
                false,
            ),
        ] {
            match validate(bytes.clone(), config, Origin::Client, 2_000, &mut Effort::light())
                .unwrap()
            {
                Validated::Valid(_) => assert!(is_light, "{name}"),
                Validated::TooLong(as_it_came) => {
                    assert!(!is_light && as_it_came == bytes, "{name}")
                }
            }
        }
        // Many small ones are as much as a large one.
        let mut effort = Effort::light();
        let batch = packed(Compression::Gzip, records(1, 100_000));
        let light = (0..100).take_while(|_| {
            matches!(
                validate(batch.clone(), &own, Origin::Client, 2_000, &mut effort),
                Ok(Validated::Valid(_))
            )
        });
        assert_eq!(light.count(), 4);
    }

    #[test]
    fn gaps_in_deltas_are_closed_and_header_times_corrected() {
        let mut builder = BatchBuilder::new(1_000);
        let record = |offset_delta| Record {
            timestamp_delta: 0,
            offset_delta,
            key: None,
            value: None,
            headers: batch::Headers::default(),
        };
        builder.keep(1_000, &record(1));
        builder.keep(1_001, &record(0));
        let mut bytes = builder.build();
        batch::set_max_timestamp(&mut bytes, 5);
        let (out, header) = check(bytes, &LogConfig::default()).unwrap();
        assert_eq!(header.max_timestamp, 1_001);
        let (batch, _) = Batch::split(&out).unwrap();
        batch.check_crc().unwrap();
        let deltas: Vec<_> = RecordIter::new(batch.records_bytes(), 2)
            .map(|record| record.unwrap().offset_delta)
            .collect();
        assert_eq!(deltas, [0, 1]);
    }

    #[test]
    fn records_that_are_numbered_anew_keep_everything_else() {
        for codec in [
            Compression::None,
            Compression::Gzip,
            Compression::Snappy,
            Compression::Lz4,
            Compression::Zstd,
        ] {
            let mut builder = BatchBuilder::new(1_000);
            let long = vec![b'v'; 40_000];
            // 63 and 64 take one byte and two, so that the length of the record changes.
            for (at, offset_delta) in [(0, 70), (1, 0), (2, 299)] {
                let headers = batch::Headers::default();
                builder.keep(
                    1_000 + at,
                    &Record {
                        timestamp_delta: 0,
                        offset_delta,
                        key: Some(b"key"),
                        value: Some(&long),
                        headers,
                    },
                );
            }
            let packed = compress(codec, None, builder.records()).unwrap();
            let mut bytes = builder.build_with(codec, &packed);
            // As of a client that has numbered its three records so.
            bytes[23..27].copy_from_slice(&2i32.to_be_bytes());
            batch::set_max_timestamp(&mut bytes, 1_002);
            let (out, _) = check(bytes, &LogConfig::default()).unwrap();
            let (batch, _) = Batch::split(&out).unwrap();
            let records = decompress_all(codec, batch.records_bytes(), 1 << 20).unwrap();
            for (index, record) in RecordIter::new(&records, 3).enumerate() {
                let record = record.unwrap();
                let kept = (record.timestamp_delta, record.offset_delta, record.key, record.value);
                assert_eq!(
                    kept,
                    (index as i64, index as i32, Some(&b"key"[..]), Some(&long[..])),
                    "{codec:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_too_large_once_it_is_packed_anew_is_not_kept() {
        let mut builder = BatchBuilder::new(1_000);
        builder.push(1_000, None, Some(&vec![0; 20 << 20]), &[]);
        let size = builder.size();
        let packed = compress(Compression::Zstd, None, builder.records()).unwrap();
        let bytes = builder.build_with(Compression::Zstd, &packed);
        let compression_type = CompressionType::Broker { codec: Compression::None, level: None };
        let config =
            LogConfig { compression_type, max_message_bytes: 1 << 20, ..LogConfig::default() };
        let refused = check(bytes, &config).unwrap_err();
        assert!(
            matches!(refused, AppendError::MessageTooLarge { size: told, .. } if told == size),
            "{refused}"
        );
        let mut up_to = UpTo { bytes: Vec::new(), len: 0, max: 10 };
        (0..100).for_each(|_| up_to.write_all(&[0; 7]).unwrap());
        assert_eq!((up_to.len, up_to.bytes.len()), (700, 7));
    }

    #[test]
    fn log_append_time_is_set_and_checksummed() {
        let config = LogConfig {
            message_timestamp_type: TimestampType::LogAppendTime,
            ..LogConfig::default()
        };
        let (out, header) = check(client_batch(|_| {}), &config).unwrap();
        assert!(header.is_log_append_time() && header.max_timestamp == 2_000);
        Batch::split(&out).unwrap().0.check_crc().unwrap();
    }
}
