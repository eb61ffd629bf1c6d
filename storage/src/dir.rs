//! A log directory: whether it takes writes, what waits for a sync in it, and what it keeps of its
//! partitions.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use letterbox_env::panics::{lock, poisoned};
use letterbox_env::{Disk, Failing, Fault, Resource, with_causes};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Log;
use super::cold::ColdReads;
use super::error::{AppendError, LogError};
use super::fence::Fence;
use super::open_segments::{AnswerFiles, Descriptors, OpenSegments};
use super::partition_table::PartitionTable;
use super::types::Origin;
use super::under_way::UnderWay;

/// Time between two log lines about what waits for a resource.
const SAID_EVERY: Duration = Duration::from_secs(10);
/// How long a directory counts as full after it had no room last: each change of that moves leads.
const FULL_FOR: Duration = Duration::from_secs(10);
/// When nothing of what was begun has ended for so long, the device holds it up.
const HELD_UP: Duration = Duration::from_secs(5);

/// One of `log.dirs`.
pub struct LogDir {
    pub(super) path: PathBuf,
    /// Ends the use of the directory when names are lost.
    pub(super) disk: Arc<dyn Disk>,
    fence: Arc<Fence>,
    pub(super) open_segments: Arc<OpenSegments>,
    pub(super) answers: Arc<AnswerFiles>,
    cold_reads: ColdReads,
    pub(super) appends: UnderWay,
    /// Those that acknowledgements wait for.
    pub(super) syncs: UnderWay,
    /// Whether the log says that it is held up.
    holds_up: Failing<()>,
    space: Space,
    /// A log in it was not opened or not closed in order.
    unclean: AtomicBool,
    dirty: Mutex<Dirty>,
    /// Tells a thread in [`LogDir::wait_dirty`] that there is something, or else `wake` a task.
    came: Condvar,
    pub(super) wake: Notify,
    /// Its partitions and their checkpointed offsets.
    pub(super) partitions: PartitionTable,
    /// What is written of its partitions.
    pub(super) checkpoints: Failing,
    /// When [`LogDir::say_state`] may say the next line.
    say_next: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for LogDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogDir").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What is known of the free space between two looks at it.
struct Space {
    /// Bytes that are free, as of the last look and less what was appended since; −1 after a write
    /// found none.
    free: AtomicI64,
    /// Bytes that are kept free of clients' records.
    reserve: AtomicI64,
    /// A write found no room, and none has succeeded since.
    was_refused: AtomicBool,
    /// The log says that it takes no appends.
    is_said: AtomicBool,
    /// Until when it counts as full: for clients, and for coordinators.
    full_until: Mutex<[Option<Instant>; 2]>,
}

impl Default for Space {
    fn default() -> Self {
        Self {
            free: AtomicI64::new(i64::MAX),
            reserve: AtomicI64::new(0),
            was_refused: false.into(),
            is_said: false.into(),
            full_until: Mutex::default(),
        }
    }
}

impl Space {
    fn is_short(&self, floor: i64) -> bool {
        self.free.load(Ordering::Relaxed) < floor
    }

    /// Whether an append of `origin` is refused. Coordinators may use the reserve but for a quarter
    /// of it, which is left for the metadata log, the checkpoints and the shutdown.
    fn is_short_for(&self, origin: Origin) -> bool {
        let reserve = self.reserve.load(Ordering::Relaxed);
        self.is_short(if origin == Origin::Coordinator { reserve / 4 } else { reserve })
    }
}

impl std::fmt::Display for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (free, reserve) =
            (self.free.load(Ordering::Relaxed).max(0), self.reserve.load(Ordering::Relaxed));
        if self.free.load(Ordering::Relaxed) < 0 {
            return f.write_str(
                "its file system found no room for a write (it may have bytes free, and no inode \
                 or a quota that is used up: df -i, quota); free some space, or grow the volume; it \
                 goes on by itself",
            );
        }
        write!(
            f,
            "its file system has {free} bytes free, and log.dir.reserve.bytes keeps {reserve} \
             free; free some space, or grow the volume; it goes on by itself"
        )
    }
}

/// The reserve of a file system of `total` bytes when `log.dir.reserve.bytes` is not set: 64 MiB,
/// or a sixteenth of a small one.
fn default_reserve(total: u64) -> u64 {
    (64 << 20).min(total / 16)
}

/// Logs with bytes that are not on the device.
#[derive(Default)]
struct Dirty {
    logs: Vec<Arc<Log>>,
    /// Whose sync could not be begun, for want of a descriptor say.
    put_off: Vec<Arc<Log>>,
    /// A thread waits for them.
    is_awaited: bool,
}

impl LogDir {
    /// `disk` is the one of `fence`.
    pub(super) fn new(
        path: PathBuf,
        (fence, disk): (Arc<Fence>, Arc<dyn Disk>),
        partitions: PartitionTable,
        dirs: usize,
        descriptors: Descriptors,
    ) -> Self {
        Self {
            path,
            disk,
            fence,
            open_segments: Arc::new(OpenSegments::new(&descriptors, dirs)),
            answers: descriptors.answers,
            cold_reads: ColdReads::new(dirs),
            appends: UnderWay::default(),
            syncs: UnderWay::default(),
            holds_up: Failing::default(),
            space: Space::default(),
            unclean: AtomicBool::new(false),
            dirty: Mutex::default(),
            came: Condvar::new(),
            wake: Notify::new(),
            partitions,
            checkpoints: Failing::default(),
            say_next: Mutex::default(),
        }
    }

    /// A directory that cannot be used, from the start on.
    pub(super) fn unusable(disk: &Arc<dyn Disk>, path: &Path, why: &LogError) -> Self {
        let none = Descriptors::new(0);
        let (fence, disk) = Fence::around(path, disk, &none.active);
        let table = PartitionTable::unread(&disk, path);
        let dir = Self::new(path.into(), (fence, disk), table, 1, none);
        dir.mark_unclean();
        dir.fence.close(with_causes(why).into());
        dir
    }

    /// See [`Fence::lacks_descriptors`].
    pub(super) fn lacks_descriptors(&self) {
        self.fence.lacks_descriptors();
    }

    /// See [`Fence::until_descriptors_lack`].
    pub(super) async fn until_descriptors_lack(&self) {
        self.fence.until_descriptors_lack().await;
    }

    /// Whether too many segments that were rolled wait for the device.
    pub(super) fn rolls_wait(&self) -> bool {
        self.open_segments.is_full()
    }

    /// Turns for reads of its files that wait for the device.
    #[must_use]
    pub fn cold_reads(&self) -> &ColdReads {
        &self.cold_reads
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the list of its partitions is on the device, which it is from its first start on,
    /// unless it cannot be written. Blocks.
    #[must_use]
    pub fn has_list(&self) -> bool {
        self.partitions.has_list().unwrap_or(false)
    }

    /// Why it is offline, if it is.
    #[must_use]
    pub fn offline(&self) -> Option<Arc<str>> {
        self.fence.reason().cloned()
    }

    /// Completes with the reason when it is offline.
    pub(super) async fn until_offline(&self) -> Arc<str> {
        self.fence.until_closed().await
    }

    /// Whether it takes no appends of clients for want of space.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.is_short_for(Origin::Client)
    }

    /// Whether it takes no appends of `origin` for want of space.
    pub(super) fn is_short_for(&self, origin: Origin) -> bool {
        self.space.is_short_for(origin)
    }

    /// Whether it takes no appends of `origin` for want of space, or has not taken them within
    /// [`FULL_FOR`].
    pub(super) fn is_full_for(&self, origin: Origin) -> bool {
        let now = Instant::now();
        let mut until = lock(&self.space.full_until);
        let [of_clients, of_coordinators] = &mut *until;
        let until = if origin == Origin::Coordinator { of_coordinators } else { of_clients };
        if self.is_short_for(origin) {
            *until = Some(now + FULL_FOR);
        }
        until.is_some_and(|until| now < until)
    }

    /// Why it takes no appends of clients, in words for a person; `None` while it takes them.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let dir = self.path.display();
        match self.offline() {
            Some(reason) => Some(format!(
                "log directory {dir} is offline: {reason}; repair it and restart the broker"
            )),
            None => self
                .is_read_only()
                .then(|| format!("log directory {dir} takes no appends: {}", self.space)),
        }
    }

    /// Why what is written to it makes no progress, in words for a person. To be asked each second,
    /// because it knows what was under way when it was asked last; waits for nobody.
    #[must_use]
    pub fn held_up(&self) -> Option<String> {
        let longest = self.appends.held_up().max(self.syncs.held_up());
        let dir = self.path.display();
        let Some(held_up) = longest.filter(|up| *up >= HELD_UP && self.offline().is_none()) else {
            if self.holds_up.succeeded() {
                tracing::info!(%dir, "log directory is written to again");
            }
            return None;
        };
        if self.holds_up.failed(()) {
            tracing::error!(%dir, "writes to the log directory make no progress; its device or its \
                file system holds them up, and with them other requests");
        }
        Some(format!(
            "log directory {dir}: no write to it has ended for {} s; its device or its file system \
             holds it up (see the kernel's log); it goes on by itself",
            held_up.as_secs()
        ))
    }

    /// Total and free bytes of its file system. Blocks.
    ///
    /// # Errors
    /// The file system's own.
    pub fn space(&self) -> io::Result<(u64, u64)> {
        self.disk.space(&self.path)
    }

    /// Looks at the free space; below the reserve (by default [`default_reserve`]) nothing of
    /// clients is appended. Blocks.
    pub(super) fn check_space(&self, reserve_bytes: Option<u64>) {
        match self.space() {
            Ok((total, free)) => {
                let reserve = reserve_bytes.unwrap_or_else(|| default_reserve(total));
                self.space
                    .reserve
                    .store(i64::try_from(reserve).unwrap_or(i64::MAX), Ordering::Relaxed);
                self.space.free.store(i64::try_from(free).unwrap_or(i64::MAX), Ordering::Relaxed);
                self.say_space();
            }
            // Its logs live on in files without names, which are gone with the process.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.fence("it was removed while it was in use", &error);
            }
            // A look changes nothing: what was known last goes on, and a write that fails says more.
            Err(error) => self.say_state("look at free space", &error),
        }
    }

    /// Notes that so many bytes were appended, so that the reserve is not used up between two looks
    /// at the space.
    pub(super) fn took(&self, bytes: u64) {
        self.space.free.fetch_sub(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
        if self.space.was_refused.load(Ordering::Relaxed) {
            self.space.was_refused.store(false, Ordering::Relaxed);
            self.say_space();
        }
    }

    /// Notes that files of about so many bytes are going to be made, as [`LogDir::took`] does for
    /// records.
    pub(super) fn expect(&self, bytes: i64) {
        self.space.free.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// How many bytes the upkeep leaves free, which needs some itself to free more: twice as many as
    /// clients' records leave, or the next of them would be refused and all leads move, or half as
    /// many where these are refused already.
    pub(super) fn floor_of_upkeep(&self) -> i64 {
        let reserve = self.space.reserve.load(Ordering::Relaxed);
        if self.space.is_short(reserve) { reserve / 2 } else { reserve.saturating_mul(2) }
    }

    /// What the upkeep had taken is gone from the disk: it is looked how much is free. Blocks.
    pub(super) fn gave_back(&self) {
        if let Ok((_, free)) = self.space() {
            self.space.free.store(i64::try_from(free).unwrap_or(i64::MAX), Ordering::Relaxed);
        }
    }

    /// Bytes that count as free.
    #[cfg(test)]
    pub(super) fn counted_free(&self) -> i64 {
        self.space.free.load(Ordering::Relaxed)
    }

    /// Takes room for `bytes` that the upkeep is about to write.
    ///
    /// # Errors
    /// No space: less than `floor` would be left.
    pub(super) fn take_for_upkeep(&self, bytes: u64, floor: i64) -> io::Result<()> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.space.is_short(floor.saturating_add(bytes)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.space.free.fetch_sub(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Whether there is room for what only makes it faster.
    pub(super) fn has_room(&self) -> bool {
        !self.space.is_short(self.space.reserve.load(Ordering::Relaxed).saturating_mul(2))
    }

    /// Logs when it stops taking appends or takes them again.
    fn say_space(&self) {
        let is_read_only = self.is_read_only();
        if !is_read_only && self.space.was_refused.load(Ordering::Relaxed) {
            // The file system says that it has room, and has refused a write (a quota, say): the
            // next append shows.
            return;
        }
        if self.space.is_said.swap(is_read_only, Ordering::Relaxed) != is_read_only {
            let dir = self.path.display();
            if is_read_only {
                tracing::error!(%dir, "log directory takes no appends: {}", self.space);
            } else {
                tracing::info!(%dir, "log directory takes appends again");
            }
        }
    }

    /// Logs that something waits for a resource: at most one line in [`SAID_EVERY`].
    pub(super) fn say_state(&self, action: &str, error: &io::Error) {
        let mut next = lock(&self.say_next);
        let now = Instant::now();
        if next.is_none_or(|next| now >= next) {
            *next = Some(now + SAID_EVERY);
            let hint = match Fault::of(error) {
                Fault::State(Resource::Descriptors) => {
                    "; raise the limit of open files (ulimit -n)"
                }
                Fault::State(Resource::Space) => "; free some space, or grow the volume",
                _ => "",
            };
            tracing::warn!(dir = %self.path.display(), %error, "cannot {action} now; \
                retrying{hint}");
        }
    }

    /// Takes no more appends, ever: what the device has of the latest writes is unknown, and a
    /// later success would not change that.
    pub(super) fn fence(&self, action: &str, error: &io::Error) -> Arc<str> {
        self.fence.close(format!("{action}: {error}").into())
    }

    /// Whether an append of `origin` may be tried.
    pub(super) fn check_writable_by(&self, origin: Origin) -> Result<(), AppendError> {
        if let Some(reason) = self.fence.reason() {
            return Err(AppendError::LogDirOffline {
                dir: self.path.clone(),
                reason: reason.clone(),
            });
        }
        if self.is_short_for(origin) {
            self.say_space();
            return Err(AppendError::LogDirFull { dir: self.path.clone() });
        }
        Ok(())
    }

    /// What a change that failed means for the directory: a state passes, a lost write takes it out
    /// of use. What is broken is the log's own affair ([`Log::failed`]).
    pub(super) fn failed(&self, action: &'static str, error: &io::Error) -> AppendError {
        match Fault::of(error) {
            Fault::State(Resource::Space) => {
                self.space.was_refused.store(true, Ordering::Relaxed);
                self.space.free.store(-1, Ordering::Relaxed);
                *lock(&self.space.full_until) = [Some(Instant::now() + FULL_FOR); 2];
                self.say_space();
                AppendError::LogDirFull { dir: self.path.clone() }
            }
            Fault::State(_) => {
                self.say_state(action, error);
                AppendError::Unavailable { action, reason: error.to_string().into() }
            }
            Fault::LostWrite | Fault::BrokenInvariant => AppendError::LogDirOffline {
                dir: self.path.clone(),
                reason: self.fence(action, error),
            },
        }
    }

    pub(super) fn enqueue(&self, log: Arc<Log>) {
        let mut dirty = self.dirty();
        dirty.logs.push(log);
        let is_awaited = dirty.is_awaited;
        drop(dirty);
        if is_awaited { self.came.notify_one() } else { self.wake.notify_one() }
    }

    /// Keeps a log whose sync could not be begun; the syncer tries again a moment later.
    pub(super) fn put_off(&self, log: Arc<Log>) {
        self.dirty().put_off.push(log);
    }

    pub(super) fn has_put_off(&self) -> bool {
        !self.dirty().put_off.is_empty()
    }

    pub(super) fn take_put_off(&self) -> Vec<Arc<Log>> {
        std::mem::take(&mut self.dirty().put_off)
    }

    pub(super) fn take_dirty(&self) -> Vec<Arc<Log>> {
        std::mem::take(&mut self.dirty().logs)
    }

    /// As [`LogDir::take_dirty`], but waits for up to `wait_max` until there is something. Blocks.
    pub(super) fn wait_dirty(&self, wait_max: Duration) -> Vec<Arc<Log>> {
        let mut dirty = self.dirty();
        dirty.is_awaited = true;
        let waited = self.came.wait_timeout_while(dirty, wait_max, |dirty| dirty.logs.is_empty());
        let mut dirty = waited.unwrap_or_else(|_| poisoned()).0;
        dirty.is_awaited = false;
        std::mem::take(&mut dirty.logs)
    }

    #[cfg(test)]
    pub(super) fn is_awaited(&self) -> bool {
        self.dirty().is_awaited
    }

    fn dirty(&self) -> MutexGuard<'_, Dirty> {
        lock(&self.dirty)
    }

    /// Says that a log in it was not opened, or not closed in order: the directory is not left
    /// clean by this run.
    pub(super) fn mark_unclean(&self) {
        self.unclean.store(true, Ordering::Relaxed);
    }

    /// Whether every log in it was opened, and closed so far, in order.
    pub(super) fn is_clean(&self) -> bool {
        !self.unclean.load(Ordering::Relaxed)
    }
}
