//! Reading a log: by offset, and by timestamp.

use std::cmp::Reverse;
use std::io::{self, BufReader};
use std::sync::Arc;

use letterbox_env::panics::lock;

use super::Log;
use super::config::LogConfig;
use super::error::ReadError;
use super::segment::{Files, Segment};
use super::types::{ReadResult, Slice, TimestampOffset};
use super::validate::RecordShape;
use letterbox_protocol::batch::{Batch, BatchBuilder, BatchError, BatchHeader, Compression};
use letterbox_protocol::compression::decompress;
use letterbox_protocol::model::{Offset, TimestampMs};

/// Times a read begins anew because segments were removed under it.
const ATTEMPTS: usize = 3;
/// Segments in one answer of a partition: each keeps a file open until the answer is sent.
const SEGMENTS_MAX: usize = 64;
/// Bytes that are copied where no file may be kept open. A larger batch is sent from its file all
/// the same: a copy of each reader's might not fit into memory.
const COPIED_MAX: u64 = 64 << 10;

impl Log {
    /// Reads whole batches from the tail cache, beginning with the one that holds `from`: at most
    /// `max_bytes` of them (`at_least_one_batch`: the first even when it is larger), with last
    /// offsets before `end`. `Ok(None)`: not in memory; ask [`Log::read_from_disk`].
    ///
    /// # Errors
    /// `OffsetOutOfRange`.
    pub fn try_read_cached(
        &self,
        from: Offset,
        max_bytes: usize,
        end: Offset,
        at_least_one_batch: bool,
    ) -> Result<Option<ReadResult>, ReadError> {
        let end = self.check_range(from, end)?;
        if from >= end {
            return Ok(Some(ReadResult { next_offset: from, ..ReadResult::default() }));
        }
        let mut cache = lock(&self.cache);
        Ok(cache.read(from, max_bytes, end, at_least_one_batch))
    }

    /// As [`Log::read_from_disk`], but `None` instead of waiting for the device; also when anything
    /// is wrong, or no record is there, which is told there.
    pub fn try_read_from_page_cache(
        &self,
        from: Offset,
        max_bytes: usize,
        end: Offset,
        at_least_one_batch: bool,
    ) -> Option<ReadResult> {
        let in_memory = |segment: &Segment| {
            segment.files_in_memory().map(Arc::new).ok_or_else(|| io::ErrorKind::WouldBlock.into())
        };
        self.read_with(in_memory, from, max_bytes, end, at_least_one_batch).ok().flatten()
    }

    /// As [`Log::try_read_cached`], from the files. Blocks when they are cold. The content is not
    /// read: only headers, to find where batches begin. While answers keep too many files open it
    /// gives a copy of the first batches or, without `at_least_one_batch`, nothing.
    ///
    /// # Errors
    /// `OffsetOutOfRange`; `Corrupt`; `Io`.
    pub fn read_from_disk(
        &self,
        from: Offset,
        max_bytes: usize,
        end: Offset,
        at_least_one_batch: bool,
    ) -> Result<ReadResult, ReadError> {
        self.retrying(|| {
            loop {
                let (cuts, end) = (self.cuts(), self.check_range(from, end)?);
                let found =
                    self.read_with(Segment::files, from, max_bytes, end, at_least_one_batch)?;
                if let Some(found) = found.or_else(|| self.read_gap(from, end, cuts)) {
                    return Ok(found);
                }
            }
        })
    }

    /// `None` when no record is left up to `end`.
    fn read_with(
        &self,
        files_of: impl Fn(&Segment) -> io::Result<Arc<Files>>,
        from: Offset,
        max_bytes: usize,
        end: Offset,
        at_least_one_batch: bool,
    ) -> Result<Option<ReadResult>, ReadError> {
        let end = self.check_range(from, end)?;
        let mut result = ReadResult { next_offset: from, ..ReadResult::default() };
        let segments = self.segments.load_full();
        let first = segments.partition_point(|segment| segment.base <= from).saturating_sub(1);
        for segment in segments.iter().skip(first) {
            if result.next_offset >= end || result.slices.len() >= SEGMENTS_MAX {
                return Ok(Some(result));
            }
            // Its files may not be made yet.
            if segment.size() == 0 {
                continue;
            }
            let found = files_of(segment).map_err(ReadError::from).and_then(|files| {
                let found = segment.find_in(&files, result.next_offset)?;
                Ok(found.map(|found| (files, found)))
            });
            let (files, (at, batch)) = match found {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                // What lies in front of it can be read.
                Err(_) if result.bytes > 0 => return Ok(Some(result)),
                Err(error) => return Err(error),
            };
            if batch.base_offset > result.next_offset {
                self.say_gap(result.next_offset, batch.base_offset);
            }
            let (found, least) = ((at, &batch), at_least_one_batch);
            if !self.read_segment(segment, &files, found, &mut result, (max_bytes, end), least)? {
                return Ok(Some(result));
            }
        }
        Ok((result.bytes > 0 || from >= end).then_some(result))
    }

    /// No record lies in `from..end`, and whoever reads up to there has to get past it: a batch
    /// without records, as compaction leaves them. `None` when the log was cut since the look for
    /// records began, with [`Log::cuts`] at `cuts`: others get these offsets.
    ///
    /// A log ends behind its last batch where compaction or a person has taken what was there, and
    /// where an earlier version went on after a power cut.
    fn read_gap(&self, from: Offset, end: Offset, cuts: u64) -> Option<ReadResult> {
        let delta = i32::try_from(end.saturating_sub(from).saturating_sub(1)).unwrap_or(i32::MAX);
        let last_offset = from.saturating_add(i64::from(delta));
        // Of the last offset: in an older epoch these offsets may be past its end, and a client
        // that checks its position (KIP-320) would take the log for truncated.
        let epoch = self.epoch_unless_cut(last_offset, cuts)?;
        self.say_gap(from, end);
        let bytes = BatchBuilder::new(-1).at(from, epoch).until(delta).build().freeze();
        Some(ReadResult {
            bytes: bytes.len(),
            next_offset: last_offset.saturating_add(1),
            slices: vec![Slice::Memory(bytes)],
            lacks_files: false,
        })
    }

    /// Adds what a segment has from its batch `first` at `start` on; tells whether the next segment
    /// is to be looked at.
    fn read_segment(
        &self,
        segment: &Segment,
        files: &Files,
        (start, first): (u64, &BatchHeader),
        result: &mut ReadResult,
        (max_bytes, end): (usize, Offset),
        at_least_one: bool,
    ) -> Result<bool, ReadError> {
        if first.last_offset() >= end {
            return Ok(false);
        }
        let is_first = at_least_one && result.bytes == 0;
        let mut left = max_bytes.saturating_sub(result.bytes) as u64;
        let counted = self.dir.answers.take();
        if counted.is_none() {
            result.lacks_files = true;
            if !is_first {
                return Ok(false);
            }
            left = left.min(COPIED_MAX);
        }
        let (size, until) = (segment.size(), start.saturating_add(left));
        let (stop, next_offset) =
            match segment.end_of_batches(files, start, size.min(until), end)? {
                Some(found) => found,
                None if is_first => (start + first.size() as u64, first.next_offset()),
                None => return Ok(false),
            };
        let len = usize::try_from(stop - start).unwrap_or(usize::MAX);
        let is_large = stop - start > COPIED_MAX;
        let counted = counted.or_else(|| is_large.then(|| self.dir.answers.exceed()));
        result.slices.push(if let Some(counted) = counted {
            let (file, cold_reads) = (segment.files()?.log.clone(), self.dir.cold_reads().clone());
            Slice::File { file, position: start, len, cold_reads, counted }
        } else {
            let mut copy = vec![0; len];
            files.log.read_exact_at(&mut copy, start)?;
            Slice::Memory(copy.into())
        });
        result.bytes += len;
        result.next_offset = next_offset;
        Ok(stop == size && result.bytes < max_bytes)
    }

    fn check_range(&self, from: Offset, end: Offset) -> Result<Offset, ReadError> {
        let (start, log_end) = self.range();
        if from < start || from > log_end {
            return Err(ReadError::OffsetOutOfRange { offset: from, start, end: log_end });
        }
        Ok(end.min(log_end))
    }

    /// A segment may be removed between being found and being opened. What fails is said.
    fn retrying<T>(&self, read: impl Fn() -> Result<T, ReadError>) -> Result<T, ReadError> {
        let mut attempt = 1;
        loop {
            match read() {
                Err(ReadError::Io(error))
                    if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS =>
                {
                    attempt += 1
                }
                result => return result.inspect_err(|error| self.say_not_read(error)),
            }
        }
    }

    /// The first record with a timestamp of `timestamp` or later. Blocks.
    ///
    /// # Errors
    /// `Corrupt`; `Io`.
    pub fn offset_for_timestamp(
        &self,
        timestamp: TimestampMs,
    ) -> Result<Option<TimestampOffset>, ReadError> {
        self.retrying(|| {
            let start = self.start_offset();
            for segment in self.segments.load_full().iter() {
                if segment.max_timestamp()?.is_some_and(|max| max.0 >= timestamp)
                    && let Some(found) = self.find_record(
                        segment,
                        segment.offset_before(timestamp)?.max(start),
                        start,
                        |time| time >= timestamp,
                    )?
                {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        })
    }

    /// The first record that has the largest timestamp of the log (KIP-734). Blocks.
    ///
    /// # Errors
    /// `Corrupt`; `Io`.
    pub fn max_timestamp(&self) -> Result<Option<TimestampOffset>, ReadError> {
        self.retrying(|| {
            let start = self.start_offset();
            let mut bounds = Vec::new();
            for segment in self.segments.load_full().iter() {
                if let Some((bound, _)) = segment.max_timestamp()? {
                    bounds.push((bound, segment.clone()));
                }
            }
            // The largest first. A segment may have held its largest in a record that is gone: then
            // another one of it is, or one of the next.
            bounds.sort_by_key(|(bound, segment)| (Reverse(*bound), segment.base));
            let mut found: Option<TimestampOffset> = None;
            for (bound, segment) in bounds {
                if found.is_some_and(|found| found.timestamp >= bound) {
                    break;
                }
                let hint = segment.offset_before(bound)?.max(start);
                let in_segment =
                    match self.find_record(&segment, hint, start, |time| time >= bound)? {
                        None => self.largest_in(&segment, start)?,
                        exact => exact,
                    };
                found = [found, in_segment].into_iter().flatten().reduce(|one, other| {
                    let earlier = other.timestamp == one.timestamp && other.offset < one.offset;
                    if other.timestamp > one.timestamp || earlier { other } else { one }
                });
            }
            Ok(found)
        })
    }

    /// The first record that has the largest timestamp of what is left of a segment.
    fn largest_in(
        &self,
        segment: &Segment,
        start: Offset,
    ) -> Result<Option<TimestampOffset>, ReadError> {
        let mut largest: Option<TimestampOffset> = None;
        let is_larger = |largest: &Option<TimestampOffset>, timestamp| {
            largest.is_none_or(|largest| timestamp > largest.timestamp)
        };
        let Some((position, _)) = segment.find(start)? else { return Ok(None) };
        for batch in segment.scan_from(position)? {
            let (at, header) = batch?.map_err(|error| damaged(segment, error))?;
            if is_larger(&largest, header.max_timestamp) {
                self.each_record(segment, at, &header, |record| {
                    if record.offset >= start && is_larger(&largest, record.timestamp) {
                        largest = Some(record);
                    }
                    true
                })?;
            }
        }
        Ok(largest)
    }

    /// The first record from `start` on with a wanted timestamp, in a batch from `from` on.
    fn find_record(
        &self,
        segment: &Segment,
        from: Offset,
        start: Offset,
        wanted: impl Fn(TimestampMs) -> bool,
    ) -> Result<Option<TimestampOffset>, ReadError> {
        let Some((position, _)) = segment.find(from)? else { return Ok(None) };
        let mut found = None;
        for batch in segment.scan_from(position)? {
            let (at, header) = batch?.map_err(|error| damaged(segment, error))?;
            if header.last_offset() >= start && wanted(header.max_timestamp) {
                self.each_record(segment, at, &header, |record| {
                    found = Some(record)
                        .filter(|record| record.offset >= start && wanted(record.timestamp));
                    found.is_none()
                })?;
            }
            if found.is_some() {
                break;
            }
        }
        Ok(found)
    }

    /// Shows the records of a batch to `visit`, until it wants no more.
    fn each_record(
        &self,
        segment: &Segment,
        position: u64,
        header: &BatchHeader,
        visit: impl FnMut(TimestampOffset) -> bool,
    ) -> Result<(), ReadError> {
        let bytes = segment.read_batch(position, header)?;
        each_record_in(&bytes, header, &self.config(), visit).map_err(|reason| ReadError::Corrupt {
            segment: segment.base,
            position,
            reason,
        })
    }
}

fn damaged(segment: &Segment, (position, error): (u64, BatchError)) -> ReadError {
    ReadError::Corrupt { segment: segment.base, position, reason: error.to_string() }
}

fn each_record_in(
    bytes: &[u8],
    header: &BatchHeader,
    config: &LogConfig,
    mut visit: impl FnMut(TimestampOffset) -> bool,
) -> Result<(), String> {
    let (batch, _) = Batch::split(bytes).map_err(|error| error.to_string())?;
    let codec = header.compression().map_err(|error| error.to_string())?;
    // As a stream: a batch may unpack to much more memory than there is.
    let unpacked = decompress(codec, batch.records_bytes(), config.batch_unpacked_max())
        .map_err(|error| error.to_string())?;
    let mut stream = BufReader::with_capacity(16 << 10, unpacked);
    let record_max =
        if codec == Compression::None { u64::MAX } else { config.max_decompressed_bytes };
    for _ in 0..header.records_count {
        let record =
            RecordShape::read(&mut stream, record_max).map_err(|error| error.to_string())?;
        let goes_on = visit(TimestampOffset {
            timestamp: header.timestamp(record.timestamp_delta),
            offset: header.base_offset.saturating_add(i64::from(record.offset_delta)),
            leader_epoch: header.leader_epoch,
        });
        if !goes_on {
            break;
        }
    }
    Ok(())
}
