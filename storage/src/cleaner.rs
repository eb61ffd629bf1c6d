//! Compaction: of each key only the last record stays.
//!
//! Only sealed, durable segments below the high watermark are touched. Offsets never change, so
//! gaps appear. A segment that changes is written beside (`.log.cleaned`) with its indexes and
//! synced, the old indexes are removed, and each file is renamed over the old one. After a crash at
//! any step either the old or the new segment is there, whole; both are right, and indexes that are
//! missing are made anew.
//!
//! Neighbours that fit into one segment are written into one, as with Kafka. Its first name
//! ([`merged`]) says which offsets it has; from then on it is what counts, and the next start goes
//! on with what is left to do ([`end_merge`]).
//!
//! What is written is taken from the room that clients' records have, of which as much stays as is
//! kept free of them; what a pass that fails had taken is given back at once.
//!
//! Tombstones stay for `delete.retention.ms` after the first compaction that saw them (KIP-534).
//! The last batch of a producer stays, empty if need be, so that its sequence survives.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::io::{self, IoSlice, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard};

use letterbox_env::panics::lock;
use letterbox_env::{Disk, FileRef, OpenMode, with_causes};
use letterbox_protocol::batch::{self, ATTRIBUTES_AT, BatchBuilder, BatchHeader, HEADER_BYTES};
use letterbox_protocol::compression::Packer;
use letterbox_protocol::model::{Offset, TimestampMs};
use tokio_util::sync::CancellationToken;

use super::Log;
use super::dir::LogDir;
use super::error::{IoContext, LogError};
use super::repack::{Bits, Records};
use super::segment::{Held, INDEX_INTERVAL, NewIndexes, Segment, TIME_ENTRY, file_name, offset_of};

/// Bytes gathered before a write.
const WRITE_BYTES: usize = 1 << 20;
/// Bytes written before a sync: the last sync of a big segment must not keep a stop waiting, nor
/// the device from others.
const SYNC_BYTES: u64 = 16 << 20;

/// Between the two offsets in the name of a merged segment, and behind them.
const MERGED: (char, &str) = ('-', ".log.swap");

/// Bytes of records that a batch may have in its file.
const BATCH_MAX: usize = (i32::MAX as usize) - 1024;

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
    /// How many keys it has in memory.
    pub(super) keys: Arc<AtomicUsize>,
}

/// The last offset of each key below `upper`.
struct LastOffsets {
    seed: u128,
    by_key: HashMap<u128, Offset, BuildHasherDefault<DefaultHasher>>,
    upper: Offset,
    /// See [`Pass::keys`].
    keys: Arc<AtomicUsize>,
}

impl Drop for LastOffsets {
    fn drop(&mut self) {
        self.keys.store(0, Ordering::Relaxed);
    }
}

impl LastOffsets {
    fn is_superseded(&self, key: u128, offset: Offset) -> bool {
        self.by_key.get(&key).is_some_and(|last| offset < *last)
    }

    /// Takes in what a batch has from `from` on; false when there is no room for another key: the
    /// pass then ends in front of the record that has it.
    fn take(
        &mut self,
        mut records: Records<'_>,
        from: Offset,
        keys_max: usize,
    ) -> io::Result<bool> {
        while let Some(record) = records.see(self.seed)? {
            let Some(key) = record.key.filter(|_| record.offset >= from) else { continue };
            let is_full = self.by_key.len() >= keys_max;
            match self.by_key.entry(key) {
                Entry::Occupied(mut known) => *known.get_mut() = record.offset.max(*known.get()),
                Entry::Vacant(_) if is_full => {
                    self.upper = self.upper.max(record.offset);
                    return Ok(false);
                }
                Entry::Vacant(new) => drop(new.insert(record.offset)),
            }
        }
        Ok(true)
    }
}

/// What becomes of a batch.
enum Verdict {
    Same,
    Gone,
    /// Some of its records go, or its tombstones get their horizon.
    Other(Remains),
}

/// What stays of a batch.
struct Remains {
    header: BatchHeader,
    stays: Bits,
    /// Of the records that stay.
    max_timestamp: TimestampMs,
    horizon: Option<TimestampMs>,
}

impl Log {
    /// Compacts the log if enough of it is dirty, and notes up to where; gives that. Blocks, for long,
    /// but holds no lock except while a segment is put in the place of another.
    ///
    /// # Errors
    /// `Interrupted`; `Malformed`; `Io`. The log is whole, compacted in part.
    pub(super) fn compact(&self, pass: &Pass) -> Result<Option<Offset>, LogError> {
        self.check_interrupted(pass)?;
        drop(self.segment_work("compact")?);
        let cuts = self.cuts();
        let segments = self.segments.load_full();
        let Some(cleanable) =
            self.cleanable(&segments, pass).during("look at segments of", &self.path)?
        else {
            return Ok(None);
        };
        let end = segments.get(cleanable.len()).map_or(pass.first_dirty, |next| next.base);
        let Some(last_offsets) = self.last_offsets(cleanable, end, pass)? else { return Ok(None) };
        let known = cleanable.partition_point(|segment| segment.base < last_offsets.upper);
        let end = cleanable.get(known).map_or(end, |next| next.base);
        // A start takes a gap between segments past what it knows as durable for a loss.
        self.dir.partitions.set_positions([self])?;
        let before: u64 = cleanable.iter().map(|segment| segment.size()).sum();
        let groups = self.groups(cleanable.get(..known).unwrap_or_default(), end);
        // The files of a segment that was replaced are open as long as somebody has it: each is let
        // go before the next is looked at.
        drop(segments);
        for (group, end) in groups {
            self.compact_group(&group, end, &last_offsets, pass, cuts)?;
        }
        // With the log as it was read: a cut lowers what is noted.
        let _one = self.disk_work().during("compact", &self.path)?;
        if self.cuts() != cuts {
            return Err(LogError::Interrupted);
        }
        let upper = last_offsets.upper;
        self.dir.partitions.set_cleaned(self, upper)?;
        tracing::info!(topic = %self.topic(), partition = self.partition(), bytes = before, upper, "compacted a log");
        Ok(Some(upper))
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

    /// Neighbours that fit into one segment, with the offset where each group ends; `end` is that
    /// of the last.
    fn groups(&self, segments: &[Arc<Segment>], end: Offset) -> Vec<(Vec<Arc<Segment>>, Offset)> {
        let config = self.config();
        let end_of = |at: usize| segments.get(at).map_or(end, |next| next.base);
        let fits = |from: usize, to: usize| {
            let group = segments.get(from..to).unwrap_or_default();
            let bytes: u64 = group.iter().map(|segment| segment.size()).sum();
            let index = (bytes / u64::from(INDEX_INTERVAL) + 2) * TIME_ENTRY;
            let offsets = end_of(to).saturating_sub(end_of(from));
            group.len() <= self.dir.open_segments.held_max()
                && bytes <= config.segment_bytes.min(i32::MAX as u64)
                && index <= u64::from(config.segment_index_bytes)
                && offsets <= i64::from(i32::MAX)
        };
        let (mut groups, mut from) = (Vec::new(), 0);
        while from < segments.len() {
            let mut to = from + 1;
            while to < segments.len() && fits(from, to + 1) {
                to += 1;
            }
            groups.extend(segments.get(from..to).map(|group| (group.to_vec(), end_of(to))));
            from = to;
        }
        groups
    }

    fn last_offsets(
        &self,
        segments: &[Arc<Segment>],
        end: Offset,
        pass: &Pass,
    ) -> Result<Option<LastOffsets>, LogError> {
        let mut last = LastOffsets {
            seed: pass.seed,
            by_key: HashMap::default(),
            upper: pass.first_dirty,
            keys: pass.keys.clone(),
        };
        for segment in segments {
            let (path, max) = (segment.path(".log"), self.config().batch_unpacked_max());
            let found = segment.find(pass.first_dirty).during("read", &path)?;
            let Some((position, _)) = found else { continue };
            for batch in segment.scan_from(position).during("read", &path)? {
                self.check_interrupted(pass)?;
                let batch = batch.during("read", &path)?;
                let (at, header) = batch.map_err(|(_, error)| damaged(segment, error))?;
                if !header.is_control() {
                    let bytes = segment.read_batch(at, &header).during("read", &path)?;
                    let goes_on = Records::of(&bytes, &header, max)
                        .and_then(|records| last.take(records, pass.first_dirty, pass.keys_max))
                        .map_err(|error| damaged(segment, error))?;
                    last.keys.store(last.by_key.capacity(), Ordering::Relaxed);
                    if !goes_on {
                        return Ok((last.upper > pass.first_dirty).then_some(last));
                    }
                }
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

    /// Compacts neighbours into one segment, which ends at `end`, unless the log was cut since
    /// [`Log::cuts`] was `cuts`: what was read then may have given way to other records.
    fn compact_group(
        &self,
        group: &[Arc<Segment>],
        end: Offset,
        last: &LastOffsets,
        pass: &Pass,
        cuts: u64,
    ) -> Result<(), LogError> {
        let Some(first) = group.first() else { return Ok(()) };
        let written = self.write_cleaned(first, group, last, pass);
        let done = match written {
            // Also where it is larger, as horizons and codecs may make it: what goes once and comes
            // back would be brought to life when its tombstone is gone.
            Ok(Some(written)) if group.len() == 1 => self.swap(first, written, cuts),
            Ok(Some(written)) => self.merge(group, end, written, cuts),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if done.is_err()
            && let Ok(_one) = self.disk_work()
        {
            // In the way of nobody: if they cannot be removed the next start does.
            self.remove_cleaned(first);
            self.dir.gave_back();
        }
        done
    }

    fn remove_cleaned(&self, old: &Segment) {
        for suffix in [".log", ".index", ".timeindex"] {
            let _ = self.dir.disk.remove_file(&cleaned(old, suffix));
        }
    }

    /// Writes what stays of these segments beside the first, and its indexes, durably; gives its
    /// bytes, or `None` when all stays as it is.
    fn write_cleaned(
        &self,
        first: &Segment,
        group: &[Arc<Segment>],
        last: &LastOffsets,
        pass: &Pass,
    ) -> Result<Option<u64>, LogError> {
        let path = cleaned(first, ".log");
        let out = if group.len() > 1 { Some(self.begin_cleaned(first, 0)?) } else { None };
        let mut new = (out, NewIndexes::new(first.base));
        for old in group {
            self.clean(old, (first, &mut new), last, pass)?;
        }
        let (Some(mut out), mut indexes) = new else { return Ok(None) };
        out.flush().during("write", &path)?;
        out.sync().during("sync", &path)?;
        for (suffix, bytes) in indexes.files() {
            let path = cleaned(first, suffix);
            let mut out = self.create_cleaned(&path)?;
            out.write(&bytes).and_then(|()| out.flush()).during("write", &path)?;
            out.sync().during("sync", &path)?;
        }
        Ok(Some(out.written))
    }

    /// Writes what stays of `old` to the file beside `first`, which begins with the first batch
    /// that changes.
    fn clean(
        &self,
        old: &Segment,
        (first, (out, indexes)): (&Segment, &mut (Option<Writer>, NewIndexes)),
        last: &LastOffsets,
        pass: &Pass,
    ) -> Result<(), LogError> {
        let (path, from) = (cleaned(first, ".log"), old.path(".log"));
        for batch in old.scan_from(0).during("read", &from)? {
            self.check_interrupted(pass)?;
            let batch = batch.during("read", &from)?;
            let (at, header) = batch.map_err(|(_, error)| damaged(old, error))?;
            let bytes = old.read_batch(at, &header).during("read", &from)?;
            let verdict = self.judge(old, &bytes, &header, last, pass.now)?;
            let out = match (&mut *out, &verdict) {
                (None, Verdict::Same) => {
                    indexes.note(at, &header);
                    continue;
                }
                (None, _) => out.insert(self.begin_cleaned(first, at)?),
                (Some(out), _) => out,
            };
            let position = out.position();
            match verdict {
                Verdict::Gone => {}
                Verdict::Same => {
                    out.write(&bytes).during("write", &path)?;
                    indexes.note(position, &header);
                }
                Verdict::Other(remains) => {
                    let header = self.rewrite(old, (&bytes, &header), remains, out)?;
                    indexes.note(position, &header);
                }
            }
            if out.written - out.synced >= SYNC_BYTES {
                out.sync().during("sync", &path)?;
            }
        }
        Ok(())
    }

    fn create_cleaned(&self, path: &Path) -> Result<Writer, LogError> {
        let file = self
            .disk_work()
            .and_then(|_one| self.dir.disk.open(path, OpenMode::Truncate))
            .during("create", path)?;
        let floor = self.dir.floor_of_upkeep();
        let dir = self.dir.clone();
        Ok(Writer { file, dir, floor, buffer: Vec::new(), written: 0, synced: 0 })
    }

    /// The file beside a segment, with the first `len` bytes of it.
    fn begin_cleaned(&self, old: &Segment, len: u64) -> Result<Writer, LogError> {
        let path = cleaned(old, ".log");
        let mut out = self.create_cleaned(&path)?;
        let from = old.files().during("open", old.path(".log"))?.log.clone();
        let mut chunk = vec![0; WRITE_BYTES.min(usize::try_from(len).unwrap_or(WRITE_BYTES))];
        let mut at = 0;
        while at < len {
            let size = chunk.len().min(usize::try_from(len - at).unwrap_or(usize::MAX));
            let Some(chunk) = chunk.get_mut(..size) else { break };
            from.read_exact_at(chunk, at).during("read", old.path(".log"))?;
            out.write(chunk).during("write", &path)?;
            at += size as u64;
        }
        Ok(out)
    }

    /// Puts the cleaned files in the place of the old. Syncs wait meanwhile, so it reads nothing
    /// but the ends of the indexes.
    fn swap(&self, old: &Arc<Segment>, size: u64, cuts: u64) -> Result<(), LogError> {
        // In front of the lock, under which syncs wait: it may make the indexes anew.
        let held = old.hold().during("open", old.path(".log"))?;
        let _one = self.disk_work().during("compact", &self.path)?;
        let disk = &self.dir.disk;
        if self.is_closed() || self.cuts() != cuts {
            return Err(LogError::Interrupted);
        }
        if !self.segments.load().iter().any(|segment| Arc::ptr_eq(segment, old)) {
            // Retention or a truncation took it meanwhile.
            self.remove_cleaned(old);
            return Ok(());
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
        let rename = |suffix| {
            let from = cleaned(old, suffix);
            disk.rename(&from, &old.path(suffix)).during("rename", &from)
        };
        rename(".log")?;
        held.for_good();
        let new = Arc::new(Segment::new(disk.clone(), &self.path, old.base, size));
        new.is_as_old_as(old);
        new.became_durable();
        new.seal(&self.dir.open_segments);
        // After the name of the file that they are of. One that does not come so far is made anew.
        let put = disk
            .sync_dir(&self.path)
            .during("sync", &self.path)
            .and_then(|()| rename(".index"))
            .and_then(|()| rename(".timeindex"));
        // In front of the list: nobody who holds a lock is to wait for them.
        let made = put.and_then(|()| new.files().during("open", new.path(".log")));
        // Whether they could be put there or not: the file of that name is the new one.
        self.replace_segments(|segments| {
            for segment in segments.iter_mut().filter(|segment| Arc::ptr_eq(segment, old)) {
                *segment = new.clone();
            }
        });
        made.map(drop)
    }

    /// Puts the cleaned files of a group in the place of all of it.
    fn merge(
        &self,
        group: &[Arc<Segment>],
        end: Offset,
        size: u64,
        cuts: u64,
    ) -> Result<(), LogError> {
        let (Some(first), Some(newest)) = (group.first(), group.last()) else { return Ok(()) };
        // As in a swap.
        let _held = hold(group)?;
        let _one = self.disk_work().during("compact", &self.path)?;
        if self.is_closed() || self.cuts() != cuts {
            return Err(LogError::Interrupted);
        }
        let is_same = |found: &[Arc<Segment>]| {
            found.iter().zip(group).all(|(found, old)| Arc::ptr_eq(found, old))
        };
        if !self.segments.load().windows(group.len()).any(is_same) {
            // Retention or a truncation took some of it meanwhile.
            self.remove_cleaned(first);
            return Ok(());
        }
        let (from, name) = (cleaned(first, ".log"), merged(first.base, end));
        self.dir.disk.rename(&from, &self.path.join(&name)).during("rename", &from)?;
        let new = Arc::new(Segment::new(self.dir.disk.clone(), &self.path, first.base, size));
        new.is_as_old_as(newest);
        *lock(&self.merging) = Some(Merging { name, old: group.to_vec(), new });
        self.finish_merge()
    }

    /// To be held while segments come and go: as [`Log::disk_work`], and a merge that was decided
    /// and then failed is finished before. The next start would finish it, whatever has become of
    /// its segments.
    ///
    /// # Errors
    /// `NotFound` when the log is gone; that of the merge.
    pub(super) fn segment_work(
        &self,
        action: &'static str,
    ) -> Result<MutexGuard<'_, ()>, LogError> {
        let work = self.disk_work().during(action, &self.path)?;
        self.finish_merge()?;
        Ok(work)
    }

    /// Finishes a merge that was decided. To be called while the disk work is held.
    fn finish_merge(&self) -> Result<(), LogError> {
        let mut merging = lock(&self.merging);
        let Some(Merging { name, old, new }) = &*merging else { return Ok(()) };
        let disk = &self.dir.disk;
        let mut held = hold(old)?;
        let mut for_good = || held.drain(..).for_each(Held::for_good);
        end_merge(&**disk, &self.path, name, &mut for_good)?;
        drop(held);
        // One that does not come so far is made anew.
        for suffix in [".index", ".timeindex"] {
            let _ = disk.rename(&cleaned(new, suffix), &new.path(suffix));
        }
        new.became_durable();
        new.seal(&self.dir.open_segments);
        self.replace_segments(|segments| {
            let is_old = |segment: &Arc<Segment>| old.iter().any(|old| Arc::ptr_eq(segment, old));
            let at = segments.iter().position(is_old).unwrap_or(segments.len());
            segments.retain(|segment| !is_old(segment));
            segments.insert(at.min(segments.len()), new.clone());
        });
        let new = new.clone();
        *merging = None;
        new.files().map(drop).during("open", new.path(".log"))
    }

    fn judge(
        &self,
        segment: &Segment,
        bytes: &[u8],
        header: &BatchHeader,
        last: &LastOffsets,
        now: TimestampMs,
    ) -> Result<Verdict, LogError> {
        if header.is_control() || header.base_offset >= last.upper {
            return Ok(Verdict::Same);
        }
        let config = self.config();
        let expired = header.delete_horizon_ms().is_some_and(|horizon| now >= horizon);
        let (mut kept, mut tombstones, mut max_timestamp) = (0, false, -1);
        let mut stays = Bits::default();
        let mut look = || {
            let mut records = Records::of(bytes, header, config.batch_unpacked_max())?;
            while let Some(record) = records.see(last.seed)? {
                let is_kept = match record.key {
                    _ if record.offset >= last.upper => true,
                    // A compacted topic takes no record without a key; one from before it was
                    // compacted goes.
                    None => false,
                    Some(key) => {
                        !(record.is_tombstone && expired || last.is_superseded(key, record.offset))
                    }
                };
                stays.push(is_kept);
                if is_kept {
                    kept += 1;
                    tombstones |= record.is_tombstone;
                    max_timestamp = header.timestamp(record.timestamp_delta).max(max_timestamp);
                }
            }
            io::Result::Ok(())
        };
        look().map_err(|error| damaged(segment, error))?;
        let sets_horizon = tombstones && header.delete_horizon_ms().is_none();
        // The end of the log stays readable, so that who reads up to it gets there: Kafka Streams
        // restores its state so.
        let is_end = header.next_offset() >= self.end_offset();
        if kept == 0 && !is_end && !self.is_last_of_producer(header) {
            return Ok(Verdict::Gone);
        }
        let is_bare = kept > 0 || bytes.len() == HEADER_BYTES;
        if kept == header.records_count && !sets_horizon && is_bare {
            return Ok(Verdict::Same);
        }
        let horizon = sets_horizon.then(|| now.saturating_add(config.delete_retention_ms));
        let header = BatchHeader { records_count: kept, ..*header };
        Ok(Verdict::Other(Remains { header, stays, max_timestamp, horizon }))
    }

    /// Writes what stays of the batch `bytes`; gives its header.
    fn rewrite(
        &self,
        segment: &Segment,
        (bytes, whole): (&[u8], &BatchHeader),
        remains: Remains,
        out: &mut Writer,
    ) -> Result<BatchHeader, LogError> {
        let Remains { header: kept, stays, max_timestamp, horizon } = remains;
        let mut builder = BatchBuilder::again(&kept, max_timestamp);
        if let Some(horizon) = horizon {
            builder = builder.delete_horizon(horizon);
        }
        let path = cleaned(segment, ".log");
        let parse = |header: &[u8]| BatchHeader::parse(header).map_err(|e| damaged(segment, e));
        if kept.records_count == 0 {
            // A codec's frame around nothing ends the processes of some clients (librdkafka).
            let empty = builder.build();
            out.write(&empty).during("write", &path)?;
            return parse(&empty);
        }
        let codec = kept.compression().map_err(|error| damaged(segment, error))?;
        let mut header = builder.build_with(codec, &[]);
        let base = horizon.unwrap_or(kept.base_timestamp);
        let delta = |delta| kept.timestamp(delta).wrapping_sub(base);
        let start = out.position();
        out.write(&header).during("write", &path)?;
        let sum = batch::crc32c(header.get(ATTRIBUTES_AT..).unwrap_or_default());
        let mut summed = Summed { out, sum, len: 0, failed: None };
        let packed = Packer::new(codec, None, &mut summed).and_then(|mut packer| {
            Records::of(bytes, whole, self.config().batch_unpacked_max())?.copy(
                &stays,
                delta,
                &mut packer,
            )?;
            packer.finish().map(drop)
        });
        let Summed { sum, len, failed, .. } = summed;
        if let Some(error) = failed {
            return Err(error).during("write", &path);
        }
        packed.map_err(|error| damaged(segment, error))?;
        batch::complete(&mut header, len, sum);
        out.patch(start, &header).during("write", &path)?;
        parse(&header)
    }
}

/// Where a file of a segment is written anew.
fn cleaned(segment: &Segment, suffix: &str) -> PathBuf {
    segment.path(&format!("{suffix}.cleaned"))
}

/// The files of all these are open.
fn hold(segments: &[Arc<Segment>]) -> Result<Vec<Held<'_>>, LogError> {
    let each = segments.iter();
    each.map(|segment| segment.hold().during("open", segment.path(".log"))).collect()
}

/// A merge that was decided: its file has the name that says so.
pub(super) struct Merging {
    name: String,
    old: Vec<Arc<Segment>>,
    new: Arc<Segment>,
}

/// The first name of a segment that has everything from `base` to `end`.
fn merged(base: Offset, end: Offset) -> String {
    format!("{base:020}{}{end:020}{}", MERGED.0, MERGED.1)
}

/// The offsets in the name of a merged segment.
pub(super) fn merged_range(name: &str) -> Option<Range<Offset>> {
    let (base, end) = name.strip_suffix(MERGED.1)?.split_once(MERGED.0)?;
    Some(offset_of(base, "")?..offset_of(end, "")?)
}

/// Puts a merged segment in the place of those that it was made of. They go first, durably: once it
/// has its last name nothing tells them from the segments behind it. May be done again at any step;
/// before the first of their names goes `names_go` is called.
pub(super) fn end_merge(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
    names_go: &mut dyn FnMut(),
) -> Result<(), LogError> {
    let Some(range) = merged_range(name) else { return Ok(()) };
    let (from, to) = (dir.join(name), dir.join(file_name(range.start, ".log")));
    // Its own name, durably, before anything else goes.
    disk.sync_dir(dir).during("sync", dir)?;
    if disk.exists(&from).during("look for", &from)? {
        let entries = disk.list(dir).during("list", dir)?;
        names_go();
        for entry in entries {
            let of = |suffix: &&str| {
                let base = offset_of(&entry.name, suffix);
                base.is_some_and(|base| {
                    range.contains(&base) && (base, *suffix) != (range.start, ".log")
                })
            };
            if [".log", ".index", ".timeindex", ".txnindex"].iter().any(of) {
                let path = dir.join(&entry.name);
                disk.remove_file(&path).during("remove", &path)?;
            }
        }
        disk.sync_dir(dir).during("sync", dir)?;
        disk.rename(&from, &to).during("rename", &from)?;
    }
    disk.sync_dir(dir).during("sync", dir)
}

fn damaged(segment: &Segment, error: impl std::error::Error) -> LogError {
    LogError::Malformed { path: segment.path(".log"), reason: with_causes(&error) }
}

/// Where the records of a batch are written, as they are packed.
struct Summed<'a> {
    out: &'a mut Writer,
    sum: u32,
    len: usize,
    /// What the device said; whatever else fails is the batch's own fault.
    failed: Option<io::Error>,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.len.saturating_add(bytes.len());
        if len > BATCH_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a batch would get too large"));
        }
        if let Err(error) = self.out.write(bytes) {
            let kind = error.kind();
            self.failed = Some(error);
            return Err(kind.into());
        }
        self.sum = batch::crc32c_append(self.sum, bytes);
        self.len = len;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Writer {
    file: FileRef,
    dir: Arc<LogDir>,
    /// Bytes that it leaves free.
    floor: i64,
    buffer: Vec<u8>,
    written: u64,
    synced: u64,
}

impl Writer {
    fn position(&self) -> u64 {
        self.written.saturating_add(self.buffer.len() as u64)
    }

    /// Writes over what was written at `at` by one call.
    fn patch(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let waiting = at.checked_sub(self.written).and_then(|at| usize::try_from(at).ok());
        let place = waiting.and_then(|at| self.buffer.get_mut(at..at.checked_add(bytes.len())?));
        match place {
            Some(place) => {
                place.copy_from_slice(bytes);
                Ok(())
            }
            None => self.file.write_at(&[IoSlice::new(bytes)], at),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.dir.take_for_upkeep(self.buffer.len() as u64, self.floor)?;
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
