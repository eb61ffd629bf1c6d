//! Opening a partition's directory: what is trusted, what is looked at, and what is cut.
//!
//! Segments that end below the recovery point are trusted. Past it, every batch is checked, and the
//! log ends in front of the first that is not whole: a torn tail, or the reserve. Below the
//! recovery point, or below the high watermark that was last written, a batch that is not whole is
//! lost data, and the partition is not opened: cutting there would drop acknowledged records
//! without a word.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use letterbox_env::{Disk, Fault, File, OpenMode};

use super::checkpoint::Epochs;
use super::cleaner::{end_merge, merged_range};
use super::error::{IoContext, LogError};
use super::producers::Producers;
use super::segment::{INDEX_INTERVAL, RESERVE_BYTE, Scan, Segment, file_name, offset_of};
use letterbox_protocol::batch::{ATTRIBUTES_AT, BatchHeader, crc32c_append};
use letterbox_protocol::model::{Offset, TimestampMs};

const CHUNK: usize = 256 << 10;
/// Snapshots kept: the last may be torn by a crash.
const SNAPSHOTS_KEPT: usize = 3;

/// What a directory holds, after recovery.
pub struct Recovered {
    pub(super) segments: Vec<Arc<Segment>>,
    pub(super) end_offset: Offset,
    pub(super) epochs: Epochs,
    /// They are not what the file says.
    pub(super) epochs_changed: bool,
    /// The files of the active segment are not made yet, or not durable.
    pub(super) dir_changed: bool,
    pub(super) producers: Producers,
    /// Segments in front of the active one that are not what the device has for sure: their indexes
    /// were made anew, or their reserve was trimmed. The recovery point must not pass them before
    /// they are.
    pub(super) unsynced: Vec<Arc<Segment>>,
    /// As [`Segment::first_timestamp`] of the active segment.
    pub(super) first_timestamp: Option<TimestampMs>,
    /// Files of segments that were deleted, to be removed.
    pub(super) deleted: Vec<PathBuf>,
    /// Bytes of the batches that were looked at: after a stop in order, past the recovery point.
    pub bytes_scanned: u64,
    /// Bytes of batches that were cut from the tail; a reserve is none.
    pub bytes_cut: u64,
}

/// The leader epochs that are kept of a log, and what of it need not be looked at. Where the file
/// does not tell them (somebody removed or damaged it) they are found in the batches: in all of
/// them, because what is kept of a follower's epochs decides what it truncates (KIP-101).
fn epochs_or_all(
    disk: &dyn Disk,
    dir: &Path,
    segments: &[Arc<Segment>],
    recovery_point: Offset,
    clean: bool,
) -> Result<(Epochs, Offset, bool), LogError> {
    let has_records = segments.iter().any(|segment| segment.size() > 0);
    let reason = match Epochs::read(disk, dir) {
        Ok(epochs) if recovery_point == 0 || !has_records || epochs.latest().is_some() => {
            return Ok((epochs, recovery_point, clean));
        }
        Ok(_) => "it has no entry".to_owned(),
        Err(LogError::Malformed { reason, .. }) => reason,
        Err(error) => return Err(error),
    };
    tracing::warn!(dir = %dir.display(), reason, "leader-epoch-checkpoint is missing or damaged; \
        rebuilding it from all batches of the log");
    Ok((Epochs::default(), 0, false))
}

impl Recovered {
    /// A directory without any file of a log, which begins at `start`.
    pub(super) fn empty(disk: &Arc<dyn Disk>, dir: &Path, start: Offset) -> Self {
        Self {
            segments: vec![Arc::new(Segment::new(disk.clone(), dir, start, 0))],
            end_offset: start,
            epochs: Epochs::default(),
            epochs_changed: false,
            dir_changed: true,
            producers: Producers::default(),
            unsynced: Vec::new(),
            first_timestamp: None,
            deleted: Vec::new(),
            bytes_scanned: 0,
            bytes_cut: 0,
        }
    }

    /// Goes on, without records, at `start`, which is past the end: no offset is given out twice.
    pub(super) fn go_on_at(&mut self, disk: &Arc<dyn Disk>, dir: &Path, start: Offset) {
        self.unsynced.extend(self.segments.last().cloned());
        self.segments.push(Arc::new(Segment::new(disk.clone(), dir, start, 0)));
        (self.end_offset, self.dir_changed, self.first_timestamp) = (start, true, None);
    }

    /// Where its first segment begins.
    pub(super) fn begins_at(&self) -> Offset {
        self.segments.first().map_or(self.end_offset, |segment| segment.base)
    }

    /// The offset after the last batch, or where an empty segment after it begins.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        self.end_offset
    }
}

/// Opens the partition directory `dir`. Blocks.
///
/// `recovery_point`: what lies below it needs no look. `durable_end`: below it everything was
/// durable too; one before the recovery point says nothing. `closed_end`: the broker was stopped in
/// order, and no checksum needs a look as long as the log ends there; past the recovery point its
/// indexes may not have been on the device. `start`: where a log without segments begins.
/// `gaps_end`: below it a segment may begin behind the end of the one before, because compaction
/// has removed what was there; past it the log ends where the one before does.
///
/// # Errors
/// `Corrupt` when something that was durable is damaged or gone; `Malformed`; `Io`.
pub fn recover(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    recovery_point: Offset,
    durable_end: Offset,
    start: Offset,
    closed_end: Option<Offset>,
    gaps_end: Offset,
) -> Result<Recovered, LogError> {
    let durable_end = durable_end.max(recovery_point);
    let list = || -> Result<Vec<String>, LogError> {
        let entries = disk.list(dir).during("list", dir)?.into_iter();
        Ok(entries.filter(|entry| !entry.is_dir).map(|entry| entry.name).collect())
    };
    let mut names = list()?;
    if names.iter().any(|name| merged_range(name).is_some()) {
        for name in names.iter().filter(|name| merged_range(name).is_some()) {
            end_merge(&**disk, dir, name, &mut || {})?;
        }
        names = list()?;
    }
    let deleted =
        names.iter().filter(|name| name.ends_with(".deleted")).map(|name| dir.join(name)).collect();
    remove_unfinished(disk, dir, &names)?;
    let mut segments = Vec::new();
    for base in names.iter().filter_map(|name| offset_of(name, ".log")) {
        let path = dir.join(file_name(base, ".log"));
        let size =
            disk.open(&path, OpenMode::Read).and_then(|file| file.len()).during("open", &path)?;
        segments.push(Arc::new(Segment::new(disk.clone(), dir, base, size)));
    }
    segments.sort_by_key(|segment| segment.base);
    if segments.is_empty() {
        if durable_end > start {
            return Err(corrupt(dir, 0, start, durable_end, "there is no segment"));
        }
        let epochs_changed = Epochs::read(&**disk, dir)? != Epochs::default();
        let producers = read_producers(disk, dir, &segments, start)?;
        let empty = Recovered::empty(disk, dir, start);
        return Ok(Recovered { epochs_changed, deleted, producers, ..empty });
    }
    let (epochs, recovery_point, clean) =
        epochs_or_all(&**disk, dir, &segments, recovery_point, closed_end.is_some())?;
    let mut found = Recovered {
        segments,
        end_offset: 0,
        epochs,
        epochs_changed: false,
        dir_changed: false,
        producers: Producers::default(),
        unsynced: Vec::new(),
        first_timestamp: None,
        deleted,
        bytes_scanned: 0,
        bytes_cut: 0,
    };
    let epochs = found.epochs.clone();
    let gaps_end = if clean { Offset::MAX } else { gaps_end };
    found.scan_tail(disk, dir, recovery_point, durable_end, clean, gaps_end)?;
    if clean && Some(found.end_offset) != closed_end {
        // A header was damaged since, or somebody else has written: what the headers say is
        // believed no more.
        return recover(disk, dir, recovery_point, durable_end, start, None, gaps_end);
    }
    if let Some(active) = found.segments.last() {
        found.first_timestamp = active.first_timestamp().during("read", active.path(".log"))?;
    }
    found.epochs.truncate_from_end(found.end_offset);
    found.epochs_changed = found.epochs != epochs;
    found.producers = read_producers(disk, dir, &found.segments, found.end_offset)?;
    Ok(found)
}

/// Removes files whose writing was not finished. Those of Kafka's compaction are refused.
fn remove_unfinished(disk: &Arc<dyn Disk>, dir: &Path, names: &[String]) -> Result<(), LogError> {
    for name in names.iter().filter(|name| name.ends_with(".cleaned") || name.ends_with(".tmp")) {
        if let Err(error) = disk.remove_file(&dir.join(name)) {
            tracing::warn!(path = %dir.join(name).display(), %error, "could not remove an \
                unfinished file; it is written over when it is needed");
        }
    }
    let Some(name) = names.iter().find(|name| name.ends_with(".swap")) else { return Ok(()) };
    Err(LogError::Malformed {
        path: dir.join(name),
        reason: "a file of Apache Kafka's compaction, which Letterbox never makes; if the \
                 partition's other files are Letterbox's, move it away"
            .into(),
    })
}

fn corrupt(
    path: &Path,
    position: u64,
    offset: Offset,
    durable_end: Offset,
    reason: impl ToString,
) -> LogError {
    LogError::Corrupt {
        path: path.into(),
        position,
        offset,
        durable_end,
        reason: reason.to_string(),
    }
}

impl Recovered {
    fn scan_tail(
        &mut self,
        disk: &Arc<dyn Disk>,
        dir: &Path,
        recovery_point: Offset,
        durable_end: Offset,
        clean: bool,
        gaps_end: Offset,
    ) -> Result<(), LogError> {
        // The last segment is always looked at, since only it tells where the log ends. One that
        // ends exactly at the recovery point may have been rolled after it was written, and still
        // carry its reserve.
        let trusted =
            self.segments.windows(2).take_while(|pair| pair[1].base < recovery_point).count();
        self.segments.iter().take(trusted).for_each(|segment| segment.became_durable());
        let mut at = trusted;
        self.end_offset = self.segments.get(at).map_or(0, |segment| segment.base);
        while let Some(segment) = self.segments.get(at).cloned() {
            let path = segment.path(".log");
            let whole =
                self.scan_segment(&segment, recovery_point, clean).during("recover", &path)?;
            let whole = whole.and_then(|()| self.lacks_before(at + 1, &segment, gaps_end));
            let (position, reason) = match whole {
                Ok(()) => {
                    at += 1;
                    self.close_scanned(&segment, clean).during("sync", &path)?;
                    continue;
                }
                Err(torn) => torn,
            };
            let follows =
                self.segments.get(at + 1).is_some_and(|next| next.base == self.end_offset);
            let written = segment
                .files()
                .and_then(|files| end_of_written(&*files.log, position))
                .during("read", &path)?;
            if follows && written == position {
                // Not torn: the reserve of a segment that was rolled and not yet trimmed.
                segment
                    .files()
                    .and_then(|files| files.log.set_len(position))
                    .during("trim", &path)?;
                segment.set_size(position);
                self.note_change(&segment, clean);
                at += 1;
                self.close_scanned(&segment, clean).during("sync", &path)?;
                continue;
            }
            if self.end_offset < durable_end {
                return Err(corrupt(&path, position, self.end_offset, durable_end, reason));
            }
            self.bytes_cut += written - position;
            self.cut(disk, at, position, &reason)?;
            break;
        }
        if self.end_offset < durable_end {
            return Err(corrupt(dir, 0, self.end_offset, durable_end, "the log ends there"));
        }
        if clean {
            let sealed = self.segments.split_last().map_or(&[][..], |(_, sealed)| sealed);
            self.unsynced.retain(|one| sealed.iter().any(|sealed| Arc::ptr_eq(one, sealed)));
        } else {
            // What is served from now on as durable has to be; the others are already.
            if let Some(last) = self.segments.last() {
                last.files()
                    .and_then(|files| files.log.sync())
                    .during("sync", last.path(".log"))?;
            }
            disk.sync_dir(dir).during("sync", dir)?;
        }
        Ok(())
    }

    /// The segment `next` begins behind where `segment` ends, and nothing tells that compaction has
    /// removed what was between: a power cut has taken it, and kept the name of the next file. A
    /// log that went on there would count in replication for records that it does not have.
    fn lacks_before(
        &self,
        next: usize,
        segment: &Segment,
        gaps_end: Offset,
    ) -> Result<(), (u64, String)> {
        let (end, next) = (self.end_offset, self.segments.get(next).map(|next| next.base));
        match next.filter(|next| *next > end && end >= gaps_end) {
            Some(next) => Err((segment.size(), format!("the next segment begins at {next}"))),
            None => Ok(()),
        }
    }

    /// Makes a segment durable and closes it, unless it is the last or that is not needed: behind
    /// the recovery point may be more segments than there are descriptors.
    fn close_scanned(&mut self, segment: &Arc<Segment>, clean: bool) -> std::io::Result<()> {
        let is_last = self.segments.last().is_some_and(|last| Arc::ptr_eq(last, segment));
        if clean || is_last {
            return Ok(());
        }
        segment.files()?.log.sync()?;
        match segment.sync_indexes() {
            // As on a full disk: they stay in memory, and go to the device later.
            Err(error) if Fault::of(&error).is_state() => self.unsynced.push(segment.clone()),
            synced => {
                synced?;
                segment.became_durable();
            }
        }
        Ok(())
    }

    /// Ends the log at `position` of its segment `at`: what follows is not whole.
    fn cut(
        &mut self,
        disk: &Arc<dyn Disk>,
        at: usize,
        position: u64,
        reason: &impl std::fmt::Display,
    ) -> Result<(), LogError> {
        let Some(segment) = self.segments.get(at).cloned() else { return Ok(()) };
        let path = segment.path(".log");
        segment.files().and_then(|files| files.log.set_len(position)).during("cut", &path)?;
        segment.set_size(position);
        for later in self.segments.drain(at + 1..).rev() {
            let path = later.path(".log");
            let file = disk.open(&path, OpenMode::Read).during("open", &path)?;
            self.bytes_cut += end_of_written(&*file, 0).during("read", &path)?;
            for suffix in [".log", ".index", ".timeindex", ".txnindex"] {
                let path = later.path(suffix);
                if disk.exists(&path).during("look for", &path)? {
                    disk.remove_file(&path).during("remove", &path)?;
                }
            }
        }
        let (path, offset) = (path.display(), self.end_offset);
        if self.bytes_cut > 0 {
            tracing::warn!(%path, position, offset, bytes = self.bytes_cut, %reason, "truncated an \
                unfinished write at the end of a log");
        } else {
            tracing::debug!(%path, position, offset, "trimmed the unused reserve of a log");
        }
        Ok(())
    }

    /// After a stop in order: with `is_changed` the segment is to be written once more.
    fn note_change(&mut self, segment: &Arc<Segment>, is_changed: bool) {
        let is_noted = self.unsynced.last().is_some_and(|last| Arc::ptr_eq(last, segment));
        if is_changed && !is_noted {
            self.unsynced.push(segment.clone());
        }
    }

    /// Goes through the batches past the recovery point; the inner error is where and why they end.
    /// With `clean` it notes whether there are any, or its indexes were not as they have to be.
    fn scan_segment(
        &mut self,
        segment: &Arc<Segment>,
        recovery_point: Offset,
        clean: bool,
    ) -> std::io::Result<Result<(), (u64, String)>> {
        let (start, is_as_it_was) = if segment.size() == 0 {
            (0, true)
        } else {
            segment.cut_indexes(recovery_point.max(segment.base), clean)?
        };
        self.note_change(segment, clean && !is_as_it_was);
        // It was begun when the log ended there, even if compaction has removed what was in front
        // of it.
        self.end_offset = segment.base.max(self.end_offset);
        if segment.size() == 0 {
            return Ok(Ok(()));
        }
        let file = segment.files()?.log.clone();
        let mut next = self.end_offset;
        for batch in Scan::new(file.clone(), start, segment.size()) {
            let (at, header) = match batch? {
                Ok(batch) => batch,
                Err((at, error)) => return Ok(Err((at, error.to_string()))),
            };
            if header.base_offset.to_be_bytes().first() == Some(&RESERVE_BYTE) {
                // Torn at a sector that begins within the offset, which no checksum covers: what is
                // there is still the reserve. It would pass for a gap, and the log would go on at
                // an offset past all others.
                return Ok(Err((at, "the offset of a batch was not written".to_owned())));
            }
            if header.base_offset < next || header.last_offset_delta < 0 {
                return Ok(Err((
                    at,
                    format!("batch has offset {}, expected {next} or more", header.base_offset),
                )));
            }
            if !clean || header.base_offset >= recovery_point {
                self.bytes_scanned += header.size() as u64;
            }
            if !clean {
                let computed = stored_crc(&*file, at, &header)?;
                if computed != header.crc {
                    return Ok(Err((
                        at,
                        format!("checksum is {computed:08x}, the batch says {:08x}", header.crc),
                    )));
                }
            }
            segment.note(at, &header, INDEX_INTERVAL)?;
            self.note_change(segment, clean && header.base_offset >= recovery_point);
            self.epochs.assign(header.leader_epoch, header.base_offset);
            next = header.next_offset();
            self.end_offset = next;
        }
        Ok(Ok(()))
    }
}

/// Where the last byte that was written ends, from `position` on: what follows is reserve, or zeros
/// where a crash has left the file longer than what was written to it.
fn end_of_written(file: &dyn File, position: u64) -> std::io::Result<u64> {
    let (mut at, mut end) = (position, position);
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = file.read_at(&mut buffer, at)?;
        if n == 0 {
            return Ok(end);
        }
        if let Some(last) =
            buffer.iter().take(n).rposition(|byte| !matches!(*byte, 0 | RESERVE_BYTE))
        {
            end = at + last as u64 + 1;
        }
        at += n as u64;
    }
}

/// The checksum of a stored batch, in pieces: a damaged length must not become an allocation.
///
/// Each piece is written back as it was read. After a sync that failed in an earlier run, the
/// kernel still shows bytes that the device does not have and takes them for written: the sync at
/// the end of the recovery would say yes to them, and a power cut would take them, with all that
/// was acknowledged after them. Written again, they are the device's or the sync fails.
fn stored_crc(file: &dyn File, position: u64, header: &BatchHeader) -> std::io::Result<u32> {
    let mut sum = 0;
    let (mut at, end) = (position, position + header.size() as u64);
    let mut before_checksum = ATTRIBUTES_AT;
    let mut buffer = vec![0; CHUNK.min(header.size())];
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(CHUNK).min(buffer.len());
        let Some(part) = buffer.get_mut(..len) else { break };
        file.read_exact_at(part, at)?;
        file.write_at(&[std::io::IoSlice::new(part)], at)?;
        let skipped = before_checksum.min(len);
        sum = crc32c_append(sum, part.get(skipped..).unwrap_or_default());
        before_checksum -= skipped;
        at += len as u64;
    }
    Ok(sum)
}

/// The producers as of `end`: the newest usable snapshot, and the headers after it. A snapshot from
/// before the first segment is not usable: the batches between the two are gone, and the next one
/// of a producer that sent some of them would seem out of order. A producer that is not known may
/// begin at any sequence (KIP-360).
pub(super) fn read_producers(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    segments: &[Arc<Segment>],
    end: Offset,
) -> Result<Producers, LogError> {
    let begin = segments.first().map_or(end, |segment| segment.base);
    let (mut producers, mut from) = (Producers::default(), begin);
    remove_snapshots_past(disk, dir, end)?;
    for offset in snapshots(disk, dir)?.into_iter().rev().take_while(|offset| *offset >= begin) {
        let path = dir.join(file_name(offset, ".snapshot"));
        if let Some(read) =
            Producers::from_snapshot(&disk.read_stored(&path).during("read", &path)?)
        {
            (producers, from) = (read, offset);
            break;
        }
    }
    let first = segments.partition_point(|segment| segment.base <= from).saturating_sub(1);
    for segment in segments.iter().skip(first) {
        let path = segment.path(".log");
        if let Some((position, _)) = segment.find(from).during("read", &path)? {
            for batch in segment.scan_from(position).during("read", &path)? {
                let Ok((_, header)) = batch.during("read", &path)? else { break };
                if header.base_offset >= from && header.base_offset < end {
                    producers.note_old(&header, None);
                }
            }
        }
        segment.close_cold();
    }
    Ok(producers)
}

/// Removes the snapshots of offsets past `end`, durably: other records may come there.
pub(super) fn remove_snapshots_past(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    end: Offset,
) -> Result<(), LogError> {
    let past: Vec<_> = snapshots(disk, dir)?.into_iter().filter(|offset| *offset > end).collect();
    for offset in &past {
        let path = dir.join(file_name(*offset, ".snapshot"));
        disk.remove_file(&path).during("remove", &path)?;
    }
    if past.is_empty() { Ok(()) } else { disk.sync_dir(dir).during("sync", dir) }
}

fn snapshots(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Vec<Offset>, LogError> {
    let mut offsets: Vec<_> = disk
        .list(dir)
        .during("list", dir)?
        .iter()
        .filter_map(|entry| offset_of(&entry.name, ".snapshot"))
        .collect();
    offsets.sort_unstable();
    Ok(offsets)
}

/// Writes the snapshot of `offset` and removes the oldest.
pub(super) fn write_snapshot(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    offset: Offset,
    bytes: &[u8],
) -> std::io::Result<()> {
    disk.write_atomically(&dir.join(file_name(offset, ".snapshot")), bytes)?;
    let mut known: Vec<_> =
        disk.list(dir)?.iter().filter_map(|entry| offset_of(&entry.name, ".snapshot")).collect();
    known.sort_unstable();
    for old in known.iter().rev().skip(SNAPSHOTS_KEPT) {
        disk.remove_file(&dir.join(file_name(*old, ".snapshot")))?;
    }
    Ok(())
}
