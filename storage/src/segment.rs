//! A segment: a run of batches in one file, and two small indexes into it.
//!
//! The indexes are in Kafka's formats: `.index` of (offset less base, position) and `.timeindex` of
//! (timestamp, offset less base), ascending. They are hints that can always be rebuilt: the last
//! entries of the active segment stay in memory until there are enough for a write. Files are
//! opened at first use; closed when idle or, of a sealed segment, see [`super::open_segments`].
//! `size` is where the batches end; a reserve may follow
//! it in the file, of [`RESERVE_BYTE`]s.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use letterbox_env::panics::lock;
use letterbox_env::{Disk, Fault, File, FileRef, OpenMode};

use super::error::ReadError;
use super::open_segments::{OpenSegments, Unsynced};
use letterbox_protocol::batch::{Batch, BatchError, BatchHeader, HEADER_BYTES};
use letterbox_protocol::model::{Offset, TimestampMs};

const OFFSET_ENTRY: u64 = 8;
pub(super) const TIME_ENTRY: u64 = 12;
/// `index.interval.bytes` where an index is made anew.
pub(super) const INDEX_INTERVAL: u32 = 4096;
/// Index entries that wait in memory.
const PENDING_MAX: usize = 32;
/// Bytes read at once while looking for a batch.
const SCAN_BYTES: usize = 16 << 10;

/// A time that nobody has looked up.
const UNKNOWN: TimestampMs = TimestampMs::MIN;

/// What the reserve is filled with. Taken for the head of a batch, it is one of 2.1 GB, which no
/// file has: Apache Kafka's tools read it as the unfinished end of the log and stop there. (At a
/// zero they stop with an error.)
pub(super) const RESERVE_BYTE: u8 = 0x7f;

/// The name of a segment's file.
pub(super) fn file_name(base: Offset, suffix: &str) -> String {
    format!("{base:020}{suffix}")
}

/// The offset in a file's name.
pub(super) fn offset_of(name: &str, suffix: &str) -> Option<Offset> {
    name.strip_suffix(suffix)
        .filter(|digits| digits.len() == 20)
        .and_then(|digits| digits.parse().ok())
}

pub(super) struct Files {
    pub(super) log: FileRef,
    index: FileRef,
    timeindex: FileRef,
}

/// A file of which only what is in memory is read.
struct InMemory(FileRef);

impl File for InMemory {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at_nowait(buffer, offset)?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }
    fn read_at_nowait(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        self.0.read_at_nowait(buffer, offset)
    }
    fn write_at(&self, _parts: &[IoSlice<'_>], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn modified_ms(&self) -> io::Result<Option<i64>> {
        self.0.modified_ms()
    }
    fn as_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.0.as_fd()
    }
}

#[derive(Default)]
struct Indexes {
    loaded: bool,
    offsets: u64,
    times: u64,
    pending_offsets: Vec<(u32, u32)>,
    pending_times: Vec<(TimestampMs, u32)>,
    last_offset: Option<(u32, u32)>,
    last_time: Option<(TimestampMs, u32)>,
    /// Largest timestamp and the last offset of the (first) batch that has it, indexed or not.
    max: Option<(TimestampMs, Offset)>,
    bytes_since_entry: u64,
}

impl Indexes {
    /// Notes a batch at `position` of the segment that begins at `base`.
    fn note(&mut self, base: Offset, position: u64, header: &BatchHeader, interval: u32) {
        if self.max.is_none_or(|max| header.max_timestamp > max.0) {
            self.max = Some((header.max_timestamp, header.last_offset()));
        }
        if self.bytes_since_entry > u64::from(interval)
            && let (Ok(relative), Ok(position)) =
                (u32::try_from(header.last_offset() - base), u32::try_from(position))
        {
            if self.last_offset.is_none_or(|last| last.0 < relative) {
                self.pending_offsets.push((relative, position));
                self.last_offset = Some((relative, position));
            }
            self.end_times(base);
            self.bytes_since_entry = 0;
        }
        self.bytes_since_entry += header.size() as u64;
    }

    /// Adds the largest timestamp so far.
    fn end_times(&mut self, base: Offset) {
        if let Some((time, offset)) = self.max
            && let Ok(relative) = u32::try_from(offset - base)
            && self.last_time.is_none_or(|last| last.0 < time)
        {
            self.pending_times.push((time, relative));
            self.last_time = Some((time, relative));
        }
    }

    fn pending_offset_bytes(&self) -> Vec<u8> {
        let entries = self.pending_offsets.iter();
        let bytes =
            |(offset, position): &(u32, u32)| [offset.to_be_bytes(), position.to_be_bytes()];
        entries.flat_map(bytes).flatten().collect()
    }

    fn pending_time_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (time, offset) in &self.pending_times {
            bytes.extend_from_slice(&time.to_be_bytes());
            bytes.extend_from_slice(&offset.to_be_bytes());
        }
        bytes
    }
}

/// The indexes of a segment that is gone through, or written, from its start.
pub(super) struct NewIndexes {
    base: Offset,
    indexes: Indexes,
}

impl NewIndexes {
    pub(super) fn new(base: Offset) -> Self {
        Self { base, indexes: Indexes { loaded: true, ..Indexes::default() } }
    }

    /// A batch follows, at `position`.
    pub(super) fn note(&mut self, position: u64, header: &BatchHeader) {
        self.indexes.note(self.base, position, header, INDEX_INTERVAL);
    }

    /// What the index files are to hold.
    pub(super) fn files(&mut self) -> [(&'static str, Vec<u8>); 2] {
        self.indexes.end_times(self.base);
        [
            (".index", self.indexes.pending_offset_bytes()),
            (".timeindex", self.indexes.pending_time_bytes()),
        ]
    }

    /// The files were written.
    fn written(self) -> Indexes {
        let mut indexes = self.indexes;
        indexes.offsets = indexes.pending_offsets.drain(..).count() as u64;
        indexes.times = indexes.pending_times.drain(..).count() as u64;
        indexes
    }
}

/// What came of closing the files of a segment.
pub(super) enum Closing {
    Closed,
    NotOpen,
    /// Somebody uses them, or they have bytes that are not on the device.
    InUse,
}

pub(super) struct Segment {
    pub(super) base: Offset,
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    size: AtomicU64,
    /// When it was last written (wall clock, milliseconds); [`UNKNOWN`] until somebody asks.
    modified_ms: AtomicI64,
    files: Mutex<Option<Arc<Files>>>,
    /// Held while the files are opened; locked before `files`.
    indexes: Mutex<Indexes>,
    used: AtomicBool,
    /// It may have bytes that are not on the device: who opens the file later may not be told that
    /// these were lost.
    is_dirty: AtomicBool,
    /// Is among the [`super::open_segments::ActiveSegments`].
    is_listed: AtomicBool,
    /// Its files stay open while somebody holds them ([`Segment::hold`]). Read under `files`.
    held: AtomicUsize,
    /// It is sealed and on the device with its indexes, and its files may be closed at any moment.
    /// Changed under `files`.
    cold: AtomicBool,
    /// The file that was open last: what is on its way to a reader is not opened a second time.
    last_log: Mutex<Option<Weak<dyn File>>>,
    /// Where it is counted.
    counted: OnceLock<(Arc<OpenSegments>, Weak<Self>)>,
    unsynced: Mutex<Option<Unsynced>>,
    /// Its log is gone: the names of its files may be another log's. Set under `indexes`.
    gone: AtomicBool,
}

impl Segment {
    /// An existing segment (`size` as found) or a new, empty one.
    pub(super) fn new(disk: Arc<dyn Disk>, dir: &Path, base: Offset, size: u64) -> Self {
        Self {
            base,
            dir: dir.into(),
            disk,
            size: AtomicU64::new(size),
            modified_ms: AtomicI64::new(UNKNOWN),
            files: Mutex::default(),
            indexes: Mutex::default(),
            used: AtomicBool::new(false),
            is_dirty: AtomicBool::new(false),
            is_listed: AtomicBool::new(false),
            held: AtomicUsize::new(0),
            cold: AtomicBool::new(false),
            last_log: Mutex::default(),
            counted: OnceLock::new(),
            unsynced: Mutex::default(),
            gone: AtomicBool::new(false),
        }
    }

    pub(super) fn path(&self, suffix: &str) -> PathBuf {
        self.dir.join(file_name(self.base, suffix))
    }

    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(super) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// The files, opened (and made) when they are not open. Indexes that are missing, or cannot be
    /// right, are made anew before.
    pub(super) fn files(&self) -> io::Result<Arc<Files>> {
        self.used.store(true, Ordering::Relaxed);
        let files = lock(&self.files).clone();
        files.map_or_else(|| self.open(&mut lock(&self.indexes), true), Ok)
    }

    /// Opens the files; with `is_whole` the indexes are right then.
    fn open(&self, indexes: &mut Indexes, is_whole: bool) -> io::Result<Arc<Files>> {
        // Somebody else may have opened them meanwhile.
        if let Some(files) = lock(&self.files).clone() {
            return Ok(files);
        }
        if self.gone.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the log was deleted"));
        }
        let open = |suffix, mode| self.disk.open(&self.path(suffix), mode);
        let files = if self.size() > 0 {
            let last = lock(&self.last_log).as_ref().and_then(Weak::upgrade);
            let log = last.map_or_else(|| open(".log", OpenMode::ReadWrite), Ok)?;
            let with_indexes = |mode| {
                let (index, timeindex) = (open(".index", mode)?, open(".timeindex", mode)?);
                Ok::<_, io::Error>(Files { log: log.clone(), index, timeindex })
            };
            let found = match with_indexes(OpenMode::ReadWrite) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                found => Some(found?),
            };
            let is_right = match &found {
                _ if !is_whole => true,
                Some(files) => indexes.loaded || self.load(files, indexes)?,
                None => false,
            };
            if !is_right {
                self.make_indexes(&log, indexes)?;
            }
            match found.filter(|_| is_right) {
                Some(files) => files,
                None => {
                    indexes.loaded &= is_whole;
                    with_indexes(OpenMode::Create)?
                }
            }
        } else {
            let (index, timeindex) =
                (open(".index", OpenMode::Create)?, open(".timeindex", OpenMode::Create)?);
            if index.len()? > 0 || timeindex.len()? > 0 {
                // They are of batches that are gone, whose offsets others get: a power cut may keep
                // an index and not its file, and a crash the indexes of a segment that was being
                // removed.
                index.set_len(0)?;
                timeindex.set_len(0)?;
            }
            *indexes = Indexes { loaded: true, ..Indexes::default() };
            // A new one is made last: it alone makes a segment at the next start. If a roll left it
            // behind, records that went into the old segment after all would be looked for in the
            // empty one, and not found.
            Files { log: open(".log", OpenMode::Create)?, index, timeindex }
        };
        *lock(&self.last_log) = Some(Arc::downgrade(&files.log));
        let opened = Arc::new(files);
        let mut slot = lock(&self.files);
        *slot = Some(opened.clone());
        let is_cold = self.cold.load(Ordering::Relaxed);
        drop(slot);
        match self.counted.get() {
            Some((counted, this)) if is_cold => counted.opened(this.clone()),
            Some((counted, this)) if !self.is_listed.swap(true, Ordering::AcqRel) => {
                counted.opened_active(this);
            }
            _ => {}
        }
        Ok(opened)
    }

    /// Its log is open.
    pub(super) fn count_in(self: &Arc<Self>, counted: &Arc<OpenSegments>) {
        let (counted, this) = self.counted.get_or_init(|| (counted.clone(), Arc::downgrade(self)));
        if lock(&self.files).is_some() && !self.is_listed.swap(true, Ordering::AcqRel) {
            counted.opened_active(this);
        }
    }

    /// It takes no more appends; it may not be on the device yet.
    pub(super) fn seal(self: &Arc<Self>, counted: &Arc<OpenSegments>) {
        let (counted, _) = self.counted.get_or_init(|| (counted.clone(), Arc::downgrade(self)));
        if !self.cold.load(Ordering::Relaxed) {
            *lock(&self.unsynced) = Some(Unsynced::new(counted));
        }
    }

    /// It is sealed, and on the device with its indexes: closes its files.
    pub(super) fn became_durable(&self) {
        *lock(&self.unsynced) = None;
        let files = lock(&self.files);
        self.cold.store(true, Ordering::Relaxed);
        drop(files);
        self.close_cold();
    }

    /// Closes the files, if they may be closed.
    pub(super) fn close_cold(&self) {
        let mut files = lock(&self.files);
        if self.cold.load(Ordering::Relaxed) && !self.is_held() {
            *files = None;
        }
    }

    /// Whether it may take appends.
    pub(super) fn is_active(&self) -> bool {
        !self.cold.load(Ordering::Relaxed) && lock(&self.unsynced).is_none()
    }

    /// Closes the files, if nobody uses them and all that was written to them is on the device.
    pub(super) fn close_clean(&self) -> Closing {
        // In front of the look: who opens them after it lists them again.
        self.is_listed.store(false, Ordering::Release);
        let mut files = lock(&self.files);
        let Some(open) = &mut *files else { return Closing::NotOpen };
        // Who writes has them until what it wrote counts as such.
        let is_used = Arc::get_mut(open).is_none() || self.is_held();
        if is_used || self.is_dirty.load(Ordering::Acquire) || !self.is_active() {
            self.is_listed.store(true, Ordering::Release);
            return Closing::InUse;
        }
        *files = None;
        Closing::Closed
    }

    /// Makes its bytes durable. Blocks.
    pub(super) fn sync(&self) -> io::Result<()> {
        let files = self.files()?;
        // In front of the sync: what is written meanwhile may miss it.
        let is_dirty = &self.is_dirty;
        is_dirty.store(false, Ordering::Release);
        files.log.sync().inspect_err(|_| is_dirty.store(true, Ordering::Release))
    }

    /// Whether anybody asked for its files since the last call.
    pub(super) fn was_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// The files as they are in memory, when they are open and the indexes are known: a read of
    /// what is not there ends with `WouldBlock`.
    pub(super) fn files_in_memory(&self) -> Option<Files> {
        let files = lock(&self.files).clone()?;
        self.used.store(true, Ordering::Relaxed);
        let is_known = self.indexes.try_lock().is_ok_and(|indexes| indexes.loaded);
        let in_memory = |file: &FileRef| Arc::new(InMemory(file.clone())) as FileRef;
        is_known.then(|| Files {
            log: in_memory(&files.log),
            index: in_memory(&files.index),
            timeindex: in_memory(&files.timeindex),
        })
    }

    /// Cuts off what lies behind the batches. Is no use of the segment.
    pub(super) fn trim(&self) -> io::Result<()> {
        let used = self.used.load(Ordering::Relaxed);
        let trimmed = self.files().and_then(|files| files.log.set_len(self.size()));
        self.used.store(used, Ordering::Relaxed);
        trimmed
    }

    /// Closes the files when nobody asked for them since the last call.
    pub(super) fn close_idle(&self) {
        if !self.was_used() && !self.is_held() {
            let _ = self.write_indexes();
            // Asked again under the lock: one that is held meanwhile must not be opened again by its
            // name.
            let mut files = lock(&self.files);
            if !self.is_held() {
                *files = None;
            }
        }
    }

    /// From now on no file is opened by its name, which is about to be another log's. Those that
    /// are open stay so.
    pub(super) fn leave(&self) {
        let (_opening, _files) = (lock(&self.indexes), lock(&self.files));
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Opens the files and keeps them open, since their names are about to go: readers of this
    /// segment go on.
    pub(super) fn hold(&self) -> io::Result<Held<'_>> {
        self.held.fetch_add(1, Ordering::Relaxed);
        let held = Held(self);
        self.files()?;
        Ok(held)
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0
    }

    fn indexes(&self) -> io::Result<MutexGuard<'_, Indexes>> {
        self.files()?;
        Ok(lock(&self.indexes))
    }

    /// Reads what the index files of a segment with batches end with; false when they cannot be
    /// right.
    fn load(&self, files: &Files, indexes: &mut Indexes) -> io::Result<bool> {
        let (offsets, times) = (files.index.len()?, files.timeindex.len()?);
        if offsets % OFFSET_ENTRY != 0 || times % TIME_ENTRY != 0 {
            return Ok(false);
        }
        let last_offset = (offsets / OFFSET_ENTRY).checked_sub(1);
        let last_time = (times / TIME_ENTRY).checked_sub(1);
        let found = Indexes {
            offsets: offsets / OFFSET_ENTRY,
            times: times / TIME_ENTRY,
            last_offset: last_offset.map(|at| offset_entry(files, at)).transpose()?,
            last_time: last_time.map(|at| time_entry(files, at)).transpose()?,
            loaded: true,
            ..Indexes::default()
        };
        if found.last_offset.is_some_and(|last| u64::from(last.1) >= self.size() || last == (0, 0))
            // A time of zero is one that a crash left unwritten, and would make the segment the
            // oldest of all.
            || found.last_time.is_none_or(|last| last == (0, 0))
        {
            return Ok(false);
        }
        *indexes = found;
        indexes.max =
            indexes.last_time.map(|(time, relative)| (time, self.base + i64::from(relative)));
        Ok(true)
    }

    /// Makes the indexes anew: each is there as a whole, on the device, or not at all. Below the
    /// recovery point nobody looks whether one ends too early, and records behind its end would be
    /// old, and not found by their time. The name of the file they are of goes to the device before
    /// theirs.
    fn make_indexes(&self, log: &FileRef, indexes: &mut Indexes) -> io::Result<()> {
        *indexes = Indexes::default();
        let mut made = NewIndexes::new(self.base);
        for batch in Scan::new(log.clone(), 0, self.size()) {
            let Ok((at, header)) = batch? else { break };
            made.note(at, &header);
        }
        self.disk.sync_dir(&self.dir)?;
        for (suffix, bytes) in made.files() {
            self.disk.write_atomically(&self.path(suffix), &bytes)?;
        }
        *indexes = made.written();
        Ok(())
    }

    /// Whether a batch lies where an entry of the offset index says; true without an entry.
    fn is_indexed_right(&self, entry: Option<(u32, u32)>) -> io::Result<bool> {
        let Some((relative, position)) = entry else { return Ok(true) };
        let indexed = self.scan_from(u64::from(position))?.next().transpose()?;
        Ok(indexed.is_some_and(|batch| {
            batch.is_ok_and(|(_, header)| header.last_offset() == self.base + i64::from(relative))
        }))
    }

    /// Opens the indexes for recovery: keeps only what lies at or below `offset`; gives the
    /// position to scan from, and whether they are as they were. Without a usable index that is the
    /// segment's start.
    pub(super) fn cut_indexes(&self, offset: Offset, trusted: bool) -> io::Result<(u64, bool)> {
        self.used.store(true, Ordering::Relaxed);
        let mut indexes = lock(&self.indexes);
        // It may be the one that takes appends from now on.
        let slot = lock(&self.files);
        self.cold.store(false, Ordering::Relaxed);
        drop(slot);
        *lock(&self.unsynced) = None;
        let files = self.open(&mut indexes, false)?;
        let position = self.cut_opened(&files, &mut indexes, offset, trusted);
        if position.is_err() {
            // They are neither what they were nor what they are to be.
            *lock(&self.files) = None;
            *indexes = Indexes::default();
        }
        position
    }

    fn cut_opened(
        &self,
        files: &Files,
        indexes: &mut Indexes,
        offset: Offset,
        trusted: bool,
    ) -> io::Result<(u64, bool)> {
        if !indexes.loaded && !self.load(files, indexes)? {
            *indexes = Indexes { loaded: true, ..Indexes::default() };
            files.index.set_len(0)?;
            files.timeindex.set_len(0)?;
            return Ok((0, false));
        }
        write_pending(files, indexes)?;
        // What lies past it may not be on the device, also after a stop in order.
        let is_past = |relative: u32| self.base + i64::from(relative) >= offset;
        let is_trusted = trusted
            && !indexes.last_offset.is_some_and(|last| is_past(last.0))
            && !indexes.last_time.is_some_and(|last| is_past(last.1));
        if is_trusted && self.is_indexed_right(indexes.last_offset)? {
            return Ok((indexes.last_offset.map_or(0, |last| u64::from(last.1)), true));
        }
        // What was not synced may be anything: only an ascending prefix is kept, looked at entry by
        // entry.
        let mut offset_bytes =
            vec![0; usize::try_from(indexes.offsets * OFFSET_ENTRY).unwrap_or(0)];
        files.index.read_exact_at(&mut offset_bytes, 0)?;
        let mut offsets = offset_bytes.as_chunks::<8>().0.iter().map(parse_offset_entry);
        let mut time_bytes = vec![0; usize::try_from(indexes.times * TIME_ENTRY).unwrap_or(0)];
        files.timeindex.read_exact_at(&mut time_bytes, 0)?;
        let mut time_entries = time_bytes.as_chunks::<12>().0.iter().map(parse_time_entry);
        let (mut keep, mut last) = (0, None);
        for entry in &mut offsets {
            let ascends = last.is_none_or(|last: (u32, u32)| entry.0 > last.0 && entry.1 > last.1)
                && entry.1 > 0;
            if !ascends
                || self.base + i64::from(entry.0) >= offset
                || u64::from(entry.1) >= self.size()
            {
                break;
            }
            (keep, last) = (keep + 1, Some(entry));
        }
        if !self.is_indexed_right(last)? {
            (keep, last) = (0, None);
        }
        (indexes.offsets, indexes.last_offset) = (keep, last);
        files.index.set_len(keep * OFFSET_ENTRY)?;
        // Times of batches that will be scanned again go; the scan puts them back.
        let (mut times, mut last_time) = (0, None);
        for entry in &mut time_entries {
            let ascends = last_time
                .is_none_or(|last: (TimestampMs, u32)| entry.0 > last.0 && entry.1 >= last.1);
            if !ascends || last.is_none_or(|last| entry.1 >= last.0) {
                break;
            }
            (times, last_time) = (times + 1, Some(entry));
        }
        (indexes.times, indexes.last_time) = (times, last_time);
        indexes.max = last_time.map(|(time, relative)| (time, self.base + i64::from(relative)));
        files.timeindex.set_len(times * TIME_ENTRY)?;
        Ok((last.map_or(0, |last| u64::from(last.1)), false))
    }

    /// Cuts the files of a segment that is of this size by now, and whose batches end at `end`: it
    /// takes appends from then on. May be called again when it fails.
    pub(super) fn cut(&self, end: Offset, interval: u32) -> io::Result<()> {
        let (from, _) = self.cut_indexes(end, false)?;
        self.files()?.log.set_len(self.size())?;
        for batch in self.scan_from(from)? {
            let Ok((at, header)) = batch? else { break };
            self.note(at, &header, interval)?;
        }
        Ok(())
    }

    /// Writes batches at the end of the segment; `headers` tell where each lies in `bytes`.
    pub(super) fn append(
        &self,
        bytes: &[u8],
        headers: &[(u64, BatchHeader)],
        interval: u32,
    ) -> io::Result<()> {
        let files = self.files()?;
        let end = self.size();
        let written = files.log.write_at(&[IoSlice::new(bytes)], end);
        self.is_dirty.store(true, Ordering::Release);
        written?;
        let mut indexes = self.indexes()?;
        for (at, header) in headers {
            self.index_batch(&mut indexes, &files, end + at, header, interval)?;
        }
        drop(indexes);
        self.set_size(end + bytes.len() as u64);
        Ok(())
    }

    /// Notes in the indexes a batch that recovery found.
    pub(super) fn note(
        &self,
        position: u64,
        header: &BatchHeader,
        interval: u32,
    ) -> io::Result<()> {
        let files = self.files()?;
        let mut indexes = self.indexes()?;
        self.index_batch(&mut indexes, &files, position, header, interval)
    }

    fn index_batch(
        &self,
        indexes: &mut Indexes,
        files: &Files,
        position: u64,
        header: &BatchHeader,
        interval: u32,
    ) -> io::Result<()> {
        indexes.note(self.base, position, header, interval);
        if indexes.pending_offsets.len() >= PENDING_MAX
            && let Err(error) = write_pending(files, indexes)
            && !Fault::of(&error).is_state()
        {
            // On a full disk the entries stay in memory instead.
            return Err(error);
        }
        Ok(())
    }

    /// Writes index entries that wait in memory, with the segment's largest timestamp as the last.
    pub(super) fn write_indexes(&self) -> io::Result<()> {
        let files = lock(&self.files).clone();
        let Some(files) = files else { return Ok(()) };
        let mut indexes = lock(&self.indexes);
        if indexes.loaded {
            indexes.end_times(self.base);
            write_pending(&files, &mut indexes)?;
        }
        Ok(())
    }

    /// As [`Self::write_indexes`], then waits for the device.
    pub(super) fn sync_indexes(&self) -> io::Result<()> {
        // Opened before: entries may have come to wait in memory since they were closed.
        let files = self.files()?;
        self.write_indexes()?;
        files.index.sync()?;
        files.timeindex.sync()
    }

    /// Whether an index can take no more entries.
    pub(super) fn index_full(&self, bytes_max: u32) -> bool {
        let indexes = lock(&self.indexes);
        let offsets = (indexes.offsets + indexes.pending_offsets.len() as u64 + 1) * OFFSET_ENTRY;
        let times = (indexes.times + indexes.pending_times.len() as u64 + 2) * TIME_ENTRY;
        offsets.max(times) > u64::from(bytes_max)
    }

    /// The largest timestamp, and the last offset of the first batch that has it. Blocks when the
    /// segment is cold.
    pub(super) fn max_timestamp(&self) -> io::Result<Option<(TimestampMs, Offset)>> {
        if self.size() == 0 {
            return Ok(None);
        }
        let indexes = lock(&self.indexes);
        if indexes.loaded {
            return Ok(indexes.max);
        }
        drop(indexes);
        Ok(self.indexes()?.max)
    }

    /// As [`Segment::max_timestamp`], as far as it is in memory: touches no file and waits for
    /// nobody. `None` too when it is not.
    pub(super) fn known_max_timestamp(&self) -> Option<(TimestampMs, Offset)> {
        self.indexes.try_lock().ok().filter(|indexes| indexes.loaded).and_then(|known| known.max)
    }

    /// Something was written to it then.
    pub(super) fn was_modified(&self, now: TimestampMs) {
        self.modified_ms.store(now, Ordering::Relaxed);
    }

    /// It takes the place of `old`, and is as old.
    pub(super) fn is_as_old_as(&self, old: &Self) {
        self.was_modified(old.modified_ms.load(Ordering::Relaxed));
    }

    /// The time by which it is old: the largest timestamp or, where its records have none, when it
    /// was last written, as with Kafka. Blocks when the segment is cold.
    pub(super) fn newest_ms(&self) -> io::Result<Option<TimestampMs>> {
        let Some((max, _)) = self.max_timestamp()? else { return Ok(None) };
        if max < 0
            && self.modified_ms.load(Ordering::Relaxed) == UNKNOWN
            && let Some(modified_ms) = self.files()?.log.modified_ms()?
        {
            // What was appended meanwhile is newer.
            let (order, look) = (Ordering::Relaxed, Ordering::Relaxed);
            let _ = self.modified_ms.compare_exchange(UNKNOWN, modified_ms, order, look);
        }
        Ok(self.newest_of(max))
    }

    /// As [`Segment::newest_ms`], as far as it is in memory.
    pub(super) fn known_newest_ms(&self) -> Option<TimestampMs> {
        self.newest_of(self.known_max_timestamp()?.0)
    }

    fn newest_of(&self, max: TimestampMs) -> Option<TimestampMs> {
        let modified_ms = self.modified_ms.load(Ordering::Relaxed);
        if max >= 0 { Some(max) } else { Some(modified_ms).filter(|ms| *ms != UNKNOWN) }
    }

    /// Where to begin to look for the batch that holds `offset`.
    fn position_before(&self, files: &Files, offset: Offset) -> io::Result<u64> {
        let indexes = self.indexes()?;
        let relative = offset.saturating_sub(self.base);
        if let Some(found) =
            indexes.pending_offsets.iter().rev().find(|entry| i64::from(entry.0) <= relative)
        {
            return Ok(found.1.into());
        }
        let after =
            search(indexes.offsets, |at| Ok(i64::from(offset_entry(files, at)?.0) <= relative))?;
        Ok(after
            .checked_sub(1)
            .map(|at| offset_entry(files, at))
            .transpose()?
            .map_or(0, |entry| entry.1.into()))
    }

    /// The largest indexed position ≤ `limit`, with the last offset of the batch there; the
    /// segment's start when there is none.
    fn position_at_or_before(&self, files: &Files, limit: u64) -> io::Result<(u64, Offset)> {
        let indexes = self.indexes()?;
        let place = |(relative, position): (u32, u32)| {
            (u64::from(position), self.base + i64::from(relative))
        };
        if let Some(found) =
            indexes.pending_offsets.iter().rev().find(|entry| u64::from(entry.1) <= limit)
        {
            return Ok(place(*found));
        }
        let after =
            search(indexes.offsets, |at| Ok(u64::from(offset_entry(files, at)?.1) <= limit))?;
        Ok(after
            .checked_sub(1)
            .map(|at| offset_entry(files, at))
            .transpose()?
            .map_or((0, self.base - 1), place))
    }

    /// An offset from which a scan finds every record with a timestamp ≥ `timestamp`.
    pub(super) fn offset_before(&self, timestamp: TimestampMs) -> io::Result<Offset> {
        let (files, indexes) = (self.files()?, self.indexes()?);
        if let Some(found) = indexes.pending_times.iter().rev().find(|entry| entry.0 < timestamp) {
            return Ok(self.base + i64::from(found.1));
        }
        let after = search(indexes.times, |at| Ok(time_entry(&files, at)?.0 < timestamp))?;
        Ok(self.base
            + after
                .checked_sub(1)
                .map(|at| time_entry(&files, at))
                .transpose()?
                .map_or(0, |entry| entry.1.into()))
    }

    /// The largest timestamp of the first batch, by which Kafka says how old a segment is; `None`
    /// without a batch.
    pub(super) fn first_timestamp(&self) -> io::Result<Option<TimestampMs>> {
        if self.size() < HEADER_BYTES as u64 {
            return Ok(None);
        }
        let mut header = [0; HEADER_BYTES];
        self.files()?.log.read_exact_at(&mut header, 0)?;
        Ok(BatchHeader::parse(&header).ok().map(|header| header.max_timestamp))
    }

    /// The first batch whose last offset is `offset` or after.
    pub(super) fn find(&self, offset: Offset) -> Result<Option<(u64, BatchHeader)>, ReadError> {
        self.find_in(&*self.files()?, offset)
    }

    /// As [`Segment::find`].
    pub(super) fn find_in(
        &self,
        files: &Files,
        offset: Offset,
    ) -> Result<Option<(u64, BatchHeader)>, ReadError> {
        for batch in Scan::new(files.log.clone(), self.position_before(files, offset)?, self.size())
        {
            let (at, header) = batch?.map_err(|error| self.damaged(error))?;
            if header.last_offset() >= offset {
                return Ok(Some((at, header)));
            }
        }
        Ok(None)
    }

    /// The batches from `position`, a batch's start, on.
    pub(super) fn scan_from(&self, position: u64) -> io::Result<Scan> {
        Ok(Scan::new(self.files()?.log.clone(), position, self.size()))
    }

    /// The end of the last whole batch from `start` (a batch's start) that ends at or before
    /// `limit` and whose last offset is before `end_offset`, and the offset after it. What is
    /// damaged behind a whole batch ends the search there.
    pub(super) fn end_of_batches(
        &self,
        files: &Files,
        start: u64,
        limit: u64,
        end_offset: Offset,
    ) -> Result<Option<(u64, Offset)>, ReadError> {
        let (mut from, last_offset) = self.position_at_or_before(files, limit)?;
        if last_offset >= end_offset {
            from = from.min(self.position_before(files, end_offset.saturating_sub(1))?);
        }
        from = from.max(start);
        loop {
            let mut found = None;
            for batch in Scan::new(files.log.clone(), from, self.size()) {
                let (at, header) = match batch? {
                    Ok(batch) => batch,
                    Err(_) if found.is_some() || from > start => break,
                    Err(error) => return Err(self.damaged(error)),
                };
                if at + header.size() as u64 > limit || header.last_offset() >= end_offset {
                    break;
                }
                found = Some((at + header.size() as u64, header.next_offset()));
            }
            if found.is_some() || from <= start {
                return Ok(found);
            }
            // The indexed batch straddles the limit: the one in front of it.
            from = self.position_at_or_before(files, from - 1)?.0.max(start);
        }
    }

    /// Reads one whole batch.
    pub(super) fn read_batch(
        &self,
        position: u64,
        header: &BatchHeader,
    ) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; header.size()];
        self.files()?.log.read_exact_at(&mut bytes, position)?;
        let (batch, _) =
            Batch::split(&bytes).map_err(|error| self.damaged((position, error.clone())))?;
        batch.check_crc().map_err(|error| self.damaged((position, error)))?;
        Ok(bytes)
    }

    fn damaged(&self, (position, error): (u64, BatchError)) -> ReadError {
        ReadError::Corrupt { segment: self.base, position, reason: error.to_string() }
    }
}

fn offset_entry(files: &Files, at: u64) -> io::Result<(u32, u32)> {
    let mut bytes = [0; OFFSET_ENTRY as usize];
    files.index.read_exact_at(&mut bytes, at * OFFSET_ENTRY)?;
    Ok(parse_offset_entry(&bytes))
}

fn parse_offset_entry(&[a, b, c, d, e, f, g, h]: &[u8; 8]) -> (u32, u32) {
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

fn parse_time_entry(&[a, b, c, d, e, f, g, h, i, j, k, l]: &[u8; 12]) -> (TimestampMs, u32) {
    (i64::from_be_bytes([a, b, c, d, e, f, g, h]), u32::from_be_bytes([i, j, k, l]))
}

fn time_entry(files: &Files, at: u64) -> io::Result<(TimestampMs, u32)> {
    let mut bytes = [0; TIME_ENTRY as usize];
    files.timeindex.read_exact_at(&mut bytes, at * TIME_ENTRY)?;
    Ok(parse_time_entry(&bytes))
}

fn write_pending(files: &Files, indexes: &mut Indexes) -> io::Result<()> {
    if !indexes.pending_offsets.is_empty() {
        let bytes = indexes.pending_offset_bytes();
        files.index.write_at(&[IoSlice::new(&bytes)], indexes.offsets * OFFSET_ENTRY)?;
        indexes.offsets += indexes.pending_offsets.len() as u64;
        indexes.pending_offsets.clear();
    }
    if !indexes.pending_times.is_empty() {
        let bytes = indexes.pending_time_bytes();
        files.timeindex.write_at(&[IoSlice::new(&bytes)], indexes.times * TIME_ENTRY)?;
        indexes.times += indexes.pending_times.len() as u64;
        indexes.pending_times.clear();
    }
    Ok(())
}

/// How many of `0..count` satisfy `holds`, which the first ones do and the others do not.
fn search(count: u64, mut holds: impl FnMut(u64) -> io::Result<bool>) -> io::Result<u64> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle)? { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

/// The files of a segment are open, and stay open until this is dropped: what ends early what was to
/// become of the segment leaves none of its files open.
#[must_use]
pub(super) struct Held<'a>(&'a Segment);

impl Held<'_> {
    /// The names of the files are gone, or another's: nobody may open them by name any more.
    pub(super) fn for_good(self) {
        std::mem::forget(self);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.0.held.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.close_cold();
        }
    }
}

/// The headers of the batches in a file, one after the other; ends at the first that is damaged or
/// cannot be read. The two are never the same: what cannot be read now may be whole.
pub(super) struct Scan {
    file: FileRef,
    position: u64,
    end: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
    done: bool,
}

impl Scan {
    pub(super) fn new(file: FileRef, position: u64, end: u64) -> Self {
        Self { file, position, end, buffer: Vec::new(), buffer_at: 0, done: false }
    }

    fn header(&mut self) -> io::Result<Result<BatchHeader, BatchError>> {
        let inside = |scan: &Self| {
            usize::try_from(scan.position.checked_sub(scan.buffer_at)?)
                .ok()
                .filter(|at| at + HEADER_BYTES <= scan.buffer.len())
        };
        if inside(self).is_none() {
            let len = usize::try_from((self.end - self.position).min(SCAN_BYTES as u64))
                .unwrap_or(SCAN_BYTES);
            self.buffer.resize(len, 0);
            self.buffer_at = self.position;
            match self.file.read_exact_at(&mut self.buffer, self.position) {
                // The file was cut.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(Err(BatchError::Truncated {
                        needed: HEADER_BYTES as u64,
                        available: 0,
                    }));
                }
                read => read?,
            }
        }
        let at = usize::try_from(self.position - self.buffer_at).unwrap_or(0);
        let left = self.end - self.position;
        Ok(BatchHeader::parse(self.buffer.get(at..).unwrap_or_default()).and_then(|header| {
            if header.size() as u64 > left {
                return Err(BatchError::Truncated {
                    needed: header.size() as u64,
                    available: usize::try_from(left).unwrap_or(usize::MAX),
                });
            }
            Ok(header)
        }))
    }
}

impl Iterator for Scan {
    type Item = io::Result<Result<(u64, BatchHeader), (u64, BatchError)>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done || self.position >= self.end {
            return None;
        }
        let at = self.position;
        let found = self.header();
        match &found {
            Ok(Ok(header)) => self.position += header.size() as u64,
            Ok(Err(_)) | Err(_) => self.done = true,
        }
        let placed = |found: Result<BatchHeader, BatchError>| match found {
            Ok(header) => Ok((at, header)),
            Err(error) => Err((at, error)),
        };
        Some(found.map(placed))
    }
}
