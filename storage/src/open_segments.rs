//! How many files of sealed segments are open, and which files are closed where descriptors lack.
//!
//! Clients decide how often a log rolls (`segment.index.bytes`, timestamps) and which old segments
//! are read. So neither may decide how many descriptors that takes, which other logs and the
//! connections need:
//!
//! - A sealed segment that is not on the device yet keeps its files open: whoever opens them later
//!   may not be told that the device has lost a write. They go there within a second
//!   ([`super::Log::is_checkpoint_due`]). While there are too many of these, logs put off their next
//!   roll, so that a stop has few to write.
//! - Once it is on the device its files are closed. Who needs them opens them again, and those that
//!   were not used for the longest are closed when there are too many.
//! - Compaction holds the files of those that become one open, few at once.
//!
//! An answer keeps the files open that it is sent from, however they are counted otherwise. So all
//! answers together have as many as one kind of segments may have ([`AnswerFiles`]), and beyond that
//! each has a copy of its first batches, or the file of a large one.
//!
//! Segments that take appends keep their files open, as many as there are. Where the process may open
//! no further file, one is closed that was not used for the longest, of those whose records are on the
//! device ([`ActiveSegments`]): so all partitions are written to in turn.
//!
//! What the upkeep looks at, a segment's size and its largest timestamp, stays in memory.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use letterbox_env::panics::lock;

use super::segment::{Closing, Segment};

/// Of the descriptors of the process, one in so many may be of a sealed segment of either kind, for
/// each of its three files.
const PART: usize = 16;
/// More than this many open segments of either kind help nobody.
const MOST: usize = 1024;
/// So many of them may wait for the device.
const UNSYNCED_MOST: usize = 64;
/// As many become one at once.
const HELD_MOST: usize = 16;
/// Files of a segment.
const FILES: usize = 3;

/// Sealed segments of either kind that may be open in a process that may hold `descriptors`.
fn most_of(descriptors: usize) -> usize {
    (descriptors / PART).clamp(1, MOST)
}

/// Descriptors that sealed segments take at most in a process that may hold `descriptors`, what
/// answers keep open too.
#[must_use]
pub fn sealed_files_max(descriptors: usize) -> usize {
    let most = most_of(descriptors);
    FILES * (most + most.min(UNSYNCED_MOST) + most.min(HELD_MOST)) + descriptors / PART
}

/// The files that answers keep open until they are read, of all log directories.
pub(super) struct AnswerFiles {
    most: usize,
    open: AtomicUsize,
}

/// A file that an answer keeps open: it counts until this is dropped.
pub struct AnswerFile(Arc<AnswerFiles>);

impl AnswerFiles {
    /// In a process that may hold `descriptors`.
    pub(super) fn new(descriptors: usize) -> Self {
        Self { most: (descriptors / PART).max(1), open: AtomicUsize::new(0) }
    }

    /// How many they are.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Counts one more, if there is room.
    pub(super) fn take(self: &Arc<Self>) -> Option<AnswerFile> {
        let file = AnswerFile::counted(self);
        (self.open() <= self.most).then_some(file)
    }

    /// Counts one more, room or not.
    pub(super) fn exceed(self: &Arc<Self>) -> AnswerFile {
        AnswerFile::counted(self)
    }
}

impl AnswerFile {
    fn counted(of: &Arc<AnswerFiles>) -> Self {
        of.open.fetch_add(1, Ordering::Relaxed);
        Self(of.clone())
    }
}

impl Clone for AnswerFile {
    fn clone(&self) -> Self {
        Self::counted(&self.0)
    }
}

impl Drop for AnswerFile {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What all log directories share of the descriptors of the process.
#[derive(Clone)]
pub(super) struct Descriptors {
    /// How many the process may hold.
    pub(super) most: usize,
    pub(super) answers: Arc<AnswerFiles>,
    pub(super) active: Arc<ActiveSegments>,
}

impl Descriptors {
    pub(super) fn new(most: usize) -> Self {
        Self { most, answers: Arc::new(AnswerFiles::new(most)), active: Arc::default() }
    }
}

/// The segments that take appends and are open, of all log directories.
#[derive(Default)]
pub(super) struct ActiveSegments {
    /// Each of them, and some that are not open or sealed by now; those that were opened first are in
    /// front. Locked before a segment's `files`.
    open: Mutex<VecDeque<Weak<Segment>>>,
}

impl ActiveSegments {
    fn opened(&self, segment: &Weak<Segment>) {
        let mut open = lock(&self.open);
        if open.len() == open.capacity() {
            open.retain(|one| one.upgrade().is_some_and(|one| one.is_active()));
        }
        open.push_back(segment.clone());
    }

    /// Closes the files of one that is on the device, if there is one.
    pub(super) fn close_one(&self) -> bool {
        let mut open = lock(&self.open);
        // One that was used since it was looked at has another turn: at most two looks at each.
        let all = open.len();
        for turn in 0..2 * all {
            let Some(first) = open.pop_front() else { return false };
            let Some(segment) = first.upgrade() else { continue };
            match (turn >= all || !segment.was_used()).then(|| segment.close_clean()) {
                Some(Closing::Closed) => return true,
                Some(Closing::NotOpen) => {}
                Some(Closing::InUse) | None => open.push_back(first),
            }
        }
        false
    }
}

/// The sealed segments of one log directory that are open.
pub(super) struct OpenSegments {
    most: usize,
    /// Each that is open and on the device, and some that are not open any more; those that were
    /// opened first are in front. Locked after a segment's `indexes`, before a segment's `files`.
    cold: Mutex<VecDeque<Weak<Segment>>>,
    /// Those that are not on the device yet.
    unsynced: AtomicUsize,
    unsynced_most: usize,
    active: Arc<ActiveSegments>,
}

impl OpenSegments {
    /// Of one of `dirs` log directories.
    pub(super) fn new(descriptors: &Descriptors, dirs: usize) -> Self {
        let (most, dirs) = (most_of(descriptors.most), dirs.max(1));
        Self {
            most: (most / dirs).max(1),
            unsynced_most: (most.min(UNSYNCED_MOST) / dirs).max(1),
            cold: Mutex::default(),
            unsynced: AtomicUsize::new(0),
            active: descriptors.active.clone(),
        }
    }

    /// One that takes appends was opened.
    pub(super) fn opened_active(&self, segment: &Weak<Segment>) {
        self.active.opened(segment);
    }

    /// Whether logs are to put off their next roll.
    pub(super) fn is_full(&self) -> bool {
        self.unsynced.load(Ordering::Relaxed) >= self.unsynced_most
    }

    /// How many of them may be held open at once while they become one.
    pub(super) fn held_max(&self) -> usize {
        self.most.min(HELD_MOST)
    }

    /// A cold segment was opened: closes others when there are too many.
    pub(super) fn opened(&self, segment: Weak<Segment>) {
        let mut cold = lock(&self.cold);
        cold.push_back(segment);
        // One that was used since it was looked at has another turn: at most two looks at each.
        let mut turns = 2 * cold.len();
        while cold.len() > self.most
            && let Some(first) = cold.pop_front()
        {
            let Some(segment) = first.upgrade() else { continue };
            turns = turns.saturating_sub(1);
            if turns > 0 && segment.was_used() {
                cold.push_back(first);
            } else {
                segment.close_cold();
            }
        }
    }
}

/// Counts a sealed segment that is not on the device.
pub(super) struct Unsynced(Arc<OpenSegments>);

impl Unsynced {
    pub(super) fn new(of: &Arc<OpenSegments>) -> Self {
        of.unsynced.fetch_add(1, Ordering::Relaxed);
        Self(of.clone())
    }
}

impl Drop for Unsynced {
    fn drop(&mut self) {
        self.0.unsynced.fetch_sub(1, Ordering::Relaxed);
    }
}
