//! Compaction: of each key only the last record stays.
//!
//! Only sealed, durable segments below the high watermark are touched. Offsets never change, so
//! gaps appear. Each segment is rewritten by itself: written beside (`.log.cleaned`), synced, its
//! indexes removed, renamed over the old one, its indexes made anew. After a crash at
//! any step either the old or the new segment is there, whole; both are right. Neighbours are not
//! merged.
//!
//! Tombstones stay for `delete.retention.ms` after the first compaction that saw them (KIP-534).
//! The last batch of a producer stays, empty if need be, so that its sequence survives.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::io::{self, IoSlice};
use std::sync::Arc;

use letterbox_env::{FileRef, OpenMode, with_causes};
use tokio_util::sync::CancellationToken;

use super::Log;
use super::error::{IoContext, LogError};
use super::segment::Segment;
use letterbox_protocol::batch::{
    Batch, BatchBuilder, BatchHeader, HEADER_BYTES, Record, RecordIter,
};
use letterbox_protocol::compression::{compress, decompress_all};
use letterbox_protocol::model::{Offset, TimestampMs};

/// Bytes gathered before a write.
const WRITE_BYTES: usize = 1 << 20;
/// Bytes written before a sync: the last sync of a big segment must not keep a stop waiting, nor
/// the device from others.
const SYNC_BYTES: u64 = 16 << 20;

/// How one pass goes about it.
pub(super) struct Pass {
    /// Random: keys are told apart by a hash, which nobody may aim at.
    pub(super) seed: u128,
    /// Keys remembered at once.
    pub(super) keys_max: usize,
    pub(super) now: TimestampMs,
    /// Up to where the log was compacted before.
    pub(super) first_dirty: Offset,
    /// Looked at for every batch.
    pub(super) stop: CancellationToken,
}

/// The last offset of each key below `upper`.
struct LastOffsets {
    seed: u128,
    by_key: HashMap<u128, Offset, BuildHasherDefault<DefaultHasher>>,
    upper: Offset,
}

impl LastOffsets {
    fn hash(&self, key: &[u8]) -> u128 {
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (self.seed, salt, key).hash(&mut hasher);
            hasher.finish()
        };
        u128::from(half(0)) << 64 | u128::from(half(1))
    }

    fn is_superseded(&self, key: &[u8], offset: Offset) -> bool {
        self.by_key.get(&self.hash(key)).is_some_and(|last| offset < *last)
    }
}

impl Log {
    /// Compacts the log if enough of it is dirty; gives up to where it is compacted now. Blocks,
    /// for long, but holds no lock except while a segment is put in the place of another.
    ///
    /// # Errors
    /// `Interrupted`; `Malformed`; `Io`. The log is whole, compacted in part.
    pub(super) fn compact(&self, pass: &Pass) -> Result<Option<Offset>, LogError> {
        let segments = self.segments.load_full();
        let Some(cleanable) =
            self.cleanable(&segments, pass).during("look at segments of", &self.path)?
        else {
            return Ok(None);
        };
        let end = segments.get(cleanable.len()).map_or(pass.first_dirty, |next| next.base);
        let Some(last_offsets) = self.last_offsets(cleanable, end, pass)? else { return Ok(None) };
        for segment in cleanable
            .iter()
            .filter(|segment| segment.base < last_offsets.upper && segment.size() > 0)
        {
            self.compact_segment(segment, &last_offsets, pass)?;
        }
        let before: u64 = cleanable.iter().map(|segment| segment.size()).sum();
        tracing::info!(topic = %self.topic(), partition = self.partition(), bytes = before, upper = last_offsets.upper, "compacted a log");
        Ok(Some(last_offsets.upper))
    }

    /// The segments to go through, when the dirty ones among them are enough of the whole or old
    /// enough.
    fn cleanable<'a>(
        &self,
        segments: &'a [Arc<Segment>],
        pass: &Pass,
    ) -> io::Result<Option<&'a [Arc<Segment>]>> {
        let config = self.config();
        let bound = self.high_watermark().min(self.synced_end());
        let (mut count, mut dirty, mut total, mut oldest) = (0, 0, 0, None);
        for pair in segments.windows(2) {
            let [segment, next] = pair else { break };
            let max = segment.max_timestamp()?.map_or(-1, |max| max.0);
            let is_dirty = next.base > pass.first_dirty;
            if next.base > bound
                || is_dirty
                    && config.min_compaction_lag_ms > 0
                    && pass.now.saturating_sub(max) < config.min_compaction_lag_ms
            {
                break;
            }
            count += 1;
            total += segment.size();
            if is_dirty && segment.size() > 0 {
                dirty += segment.size();
                if oldest.is_none() {
                    oldest = Some(segment.first_timestamp()?.unwrap_or(max));
                }
            }
        }
        let overdue = oldest
            .is_some_and(|oldest| pass.now.saturating_sub(oldest) > config.max_compaction_lag_ms);
        let enough = dirty > 0
            && (dirty.saturating_mul(1000)
                >= total.saturating_mul(config.min_cleanable_dirty_permille.into())
                || overdue);
        Ok(segments.get(..count).filter(|_| enough))
    }

    fn last_offsets(
        &self,
        segments: &[Arc<Segment>],
        end: Offset,
        pass: &Pass,
    ) -> Result<Option<LastOffsets>, LogError> {
        let mut last =
            LastOffsets { seed: pass.seed, by_key: HashMap::default(), upper: pass.first_dirty };
        for segment in segments {
            let Some((position, _)) =
                segment.find(pass.first_dirty).map_err(|error| damaged(segment, error))?
            else {
                continue;
            };
            for batch in segment.scan_from(position).during("read", segment.path(".log"))? {
                self.check_interrupted(pass)?;
                let (at, header) = batch.map_err(|(_, error)| damaged(segment, error))?;
                if last.by_key.len() >= pass.keys_max {
                    return Ok(Some(last));
                }
                for_each_record(
                    segment,
                    at,
                    &header,
                    self.config().batch_unpacked_max(),
                    |offset, record| {
                        if let Some(key) = record.key {
                            match last.by_key.entry(last.hash(key)) {
                                Entry::Occupied(mut known) => {
                                    *known.get_mut() = offset.max(*known.get())
                                }
                                Entry::Vacant(new) => drop(new.insert(offset)),
                            }
                        }
                        Ok(())
                    },
                )?;
                last.upper = last.upper.max(header.next_offset());
            }
        }
        // Offsets that nothing has any more at the end of the last segment are done with too; else
        // it would stay dirty for ever.
        last.upper = last.upper.max(end);
        Ok((last.upper > pass.first_dirty).then_some(last))
    }

    fn check_interrupted(&self, pass: &Pass) -> Result<(), LogError> {
        if pass.stop.is_cancelled() || self.is_closed() {
            Err(LogError::Interrupted)
        } else {
            Ok(())
        }
    }

    fn compact_segment(
        &self,
        old: &Arc<Segment>,
        last: &LastOffsets,
        pass: &Pass,
    ) -> Result<(), LogError> {
        let path = old.path(".log.cleaned");
        let written = self.write_cleaned(old, last, pass);
        if let Ok(written) = written
            && written < old.size()
        {
            return self.swap(old, written);
        }
        // Of no use, and in the way of nobody: if it cannot be removed the next start does.
        let _ = self.disk_work().and_then(|_one| self.dir.disk.remove_file(&path));
        written.map(drop)
    }

    /// Writes what stays of a segment beside it, durably; gives its bytes.
    fn write_cleaned(
        &self,
        old: &Segment,
        last: &LastOffsets,
        pass: &Pass,
    ) -> Result<u64, LogError> {
        let path = old.path(".log.cleaned");
        let file = self
            .disk_work()
            .and_then(|_one| self.dir.disk.open(&path, OpenMode::Truncate))
            .during("create", &path)?;
        let mut out = Writer { file, buffer: Vec::new(), written: 0, synced: 0 };
        for batch in old.scan_from(0).during("read", old.path(".log"))? {
            self.check_interrupted(pass)?;
            let (at, header) = batch.map_err(|(_, error)| damaged(old, error))?;
            let bytes = old.read_batch(at, &header).map_err(|error| damaged(old, error))?;
            if let Some(kept) = self.compact_batch(old, bytes, &header, last, pass.now)? {
                out.write(&kept).during("write", &path)?;
                if out.written - out.synced >= SYNC_BYTES {
                    out.sync().during("sync", &path)?;
                }
            }
        }
        out.flush().during("write", &path)?;
        if out.written < old.size() {
            out.sync().during("sync", &path)?;
        }
        Ok(out.written)
    }

    /// Puts the cleaned file in the place of the old.
    fn swap(&self, old: &Arc<Segment>, size: u64) -> Result<(), LogError> {
        // In front of the lock, under which syncs wait: it may make the indexes anew.
        old.retire().during("open", old.path(".log"))?;
        let _one = self.disk_work().during("compact", &self.path)?;
        let (disk, cleaned) = (&self.dir.disk, old.path(".log.cleaned"));
        if self.is_closed() {
            return Err(LogError::Interrupted);
        }
        if !self.segments.load().iter().any(|segment| Arc::ptr_eq(segment, old)) {
            // Retention or a truncation took it meanwhile.
            return disk.remove_file(&cleaned).during("remove", &cleaned);
        }
        // In front of the rename, durably: old indexes must never be read with the new file. An
        // attempt before this one may have come so far.
        for suffix in [".index", ".timeindex"] {
            let path = old.path(suffix);
            if disk.exists(&path).during("look for", &path)? {
                disk.remove_file(&path).during("remove", &path)?;
            }
        }
        disk.sync_dir(&self.path).during("sync", &self.path)?;
        disk.rename(&cleaned, &old.path(".log")).during("rename", &cleaned)?;
        let new = Arc::new(Segment::new(disk.clone(), &self.path, old.base, size));
        // In front of the list: nobody who holds a lock is to wait until its indexes are made.
        let made = disk.sync_dir(&self.path).and_then(|()| new.files());
        // Whether they could be made or not: the file of that name is the new one.
        self.replace_segments(|segments| {
            for segment in segments.iter_mut().filter(|segment| Arc::ptr_eq(segment, old)) {
                *segment = new.clone();
            }
        });
        made.map(drop).during("open", new.path(".log"))
    }

    /// The batch as it stays; `None` when nothing of it does.
    fn compact_batch(
        &self,
        segment: &Segment,
        bytes: Vec<u8>,
        header: &BatchHeader,
        last: &LastOffsets,
        now: TimestampMs,
    ) -> Result<Option<Vec<u8>>, LogError> {
        if header.is_control() || header.base_offset >= last.upper {
            return Ok(Some(bytes));
        }
        let config = self.config();
        let expired = header.delete_horizon_ms().is_some_and(|horizon| now >= horizon);
        let stays = |offset: Offset, record: &Record<'_>| match record.key {
            _ if offset >= last.upper => true,
            // A compacted topic takes no record without a key; one from before it was compacted
            // goes.
            None => false,
            Some(key) => !last.is_superseded(key, offset) && (record.value.is_some() || !expired),
        };
        let (mut kept, mut tombstones) = (0, false);
        let records = unpack(segment, &bytes, header, config.batch_unpacked_max())?;
        each(segment, &records, header, |offset, record| {
            if stays(offset, record) {
                kept += 1;
                tombstones |= record.value.is_none();
            }
            Ok(())
        })?;
        let sets_horizon = tombstones && header.delete_horizon_ms().is_none();
        // The end of the log stays readable, so that who reads up to it gets there: Kafka Streams
        // restores its state so.
        let is_end = header.next_offset() >= self.end_offset();
        if kept == 0 && !is_end && !self.is_last_of_producer(header) {
            return Ok(None);
        }
        let is_bare = kept > 0 || bytes.len() == HEADER_BYTES;
        if kept == header.records_count && !sets_horizon && is_bare {
            return Ok(Some(bytes));
        }
        let mut builder = BatchBuilder::like(header);
        if sets_horizon {
            builder = builder.delete_horizon(now.saturating_add(config.delete_retention_ms));
        }
        each(segment, &records, header, |offset, record| {
            if stays(offset, record) {
                builder.keep(header.timestamp(record.timestamp_delta), record);
            }
            Ok(())
        })?;
        if kept == 0 {
            // A codec's frame around nothing ends the processes of some clients (librdkafka).
            return Ok(Some(builder.build().to_vec()));
        }
        let codec = header.compression().map_err(|error| damaged(segment, error))?;
        let packed =
            compress(codec, None, builder.records()).during("compress", segment.path(".log"))?;
        Ok(Some(builder.build_with(codec, &packed).to_vec()))
    }
}

fn damaged(segment: &Segment, error: impl std::error::Error) -> LogError {
    LogError::Malformed { path: segment.path(".log"), reason: with_causes(&error) }
}

fn for_each_record(
    segment: &Segment,
    at: u64,
    header: &BatchHeader,
    max: u64,
    visit: impl FnMut(Offset, &Record<'_>) -> Result<(), LogError>,
) -> Result<(), LogError> {
    if header.is_control() {
        return Ok(());
    }
    let bytes = segment.read_batch(at, header).map_err(|error| damaged(segment, error))?;
    each(segment, &unpack(segment, &bytes, header, max)?, header, visit)
}

fn unpack(
    segment: &Segment,
    bytes: &[u8],
    header: &BatchHeader,
    max: u64,
) -> Result<Vec<u8>, LogError> {
    let (batch, _) = Batch::split(bytes).map_err(|error| damaged(segment, error))?;
    let codec = header.compression().map_err(|error| damaged(segment, error))?;
    decompress_all(codec, batch.records_bytes(), max).map_err(|error| damaged(segment, error))
}

fn each(
    segment: &Segment,
    records: &[u8],
    header: &BatchHeader,
    mut visit: impl FnMut(Offset, &Record<'_>) -> Result<(), LogError>,
) -> Result<(), LogError> {
    for record in RecordIter::new(records, header.records_count) {
        let record = record.map_err(|error| damaged(segment, error))?;
        visit(header.base_offset.saturating_add(i64::from(record.offset_delta)), &record)?;
    }
    Ok(())
}

struct Writer {
    file: FileRef,
    buffer: Vec<u8>,
    written: u64,
    synced: u64,
}

impl Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(&[IoSlice::new(&self.buffer)], self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_new()?;
        self.synced = self.written;
        Ok(())
    }
}
