//! A log directory: whether it takes writes, what waits for a sync in it, and what it keeps of its partitions.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use letterbox_env::Disk;
use tokio::sync::Notify;

use super::Log;
use super::error::AppendError;
use super::partition_table::PartitionTable;

/// One of `log.dirs`.
pub struct LogDir {
    pub(super) path: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    offline: OnceLock<Arc<str>>,
    went_offline: Notify,
    read_only: AtomicBool,
    /// A log in it was not opened or not closed in order.
    unclean: AtomicBool,
    dirty: Mutex<Dirty>,
    /// Tells a thread in [`LogDir::wait_dirty`] that there is something, or else `wake` a task.
    came: Condvar,
    pub(super) wake: Notify,
    /// Its partitions and their checkpointed offsets.
    pub(super) partitions: PartitionTable,
}

impl std::fmt::Debug for LogDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogDir").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Logs with bytes that are not on the device.
#[derive(Default)]
struct Dirty {
    logs: Vec<Arc<Log>>,
    /// A thread waits for them.
    is_awaited: bool,
}

impl LogDir {
    pub(super) fn new(disk: Arc<dyn Disk>, path: PathBuf, partitions: PartitionTable) -> Self {
        Self {
            path,
            disk,
            offline: OnceLock::new(),
            went_offline: Notify::new(),
            read_only: AtomicBool::new(false),
            unclean: AtomicBool::new(false),
            dirty: Mutex::default(),
            came: Condvar::new(),
            wake: Notify::new(),
            partitions,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why it is offline, if it is.
    #[must_use]
    pub fn offline(&self) -> Option<Arc<str>> {
        self.offline.get().cloned()
    }

    /// Completes with the reason when it is offline.
    pub(super) async fn until_offline(&self) -> Arc<str> {
        loop {
            let went_offline = self.went_offline.notified();
            if let Some(reason) = self.offline() {
                return reason;
            }
            went_offline.await;
        }
    }

    /// Whether it takes no appends for want of space.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// Total and free bytes of its file system. Blocks.
    ///
    /// # Errors
    /// The file system's own.
    pub fn space(&self) -> io::Result<(u64, u64)> {
        self.disk.space(&self.path)
    }

    /// Takes no more appends, ever: what the device has of the latest writes is unknown, and a later success
    /// would not change that.
    pub(super) fn fence(&self, action: &str, error: &io::Error) -> Arc<str> {
        let reason: Arc<str> = format!("{action}: {error}").into();
        if self.offline.set(reason.clone()).is_ok() {
            tracing::error!(dir = %self.path.display(), %reason, "log directory is offline; repair it and restart the broker");
            self.went_offline.notify_waiters();
        }
        self.offline.get().cloned().unwrap_or(reason)
    }

    /// Sets whether there is space for appends.
    pub(super) fn set_read_only(&self, read_only: bool) {
        if self.read_only.swap(read_only, Ordering::Relaxed) != read_only {
            if read_only {
                tracing::error!(dir = %self.path.display(), "log directory takes no appends: its file system has less free space than the reserve; free some, or grow the volume");
            } else {
                tracing::info!(dir = %self.path.display(), "log directory takes appends again");
            }
        }
    }

    pub(super) fn check_writable(&self) -> Result<(), AppendError> {
        if let Some(reason) = self.offline.get() {
            return Err(AppendError::LogDirOffline { dir: self.path.clone(), reason: reason.clone() });
        }
        if self.is_read_only() {
            return Err(AppendError::LogDirFull { dir: self.path.clone() });
        }
        Ok(())
    }

    /// What a failed write means: no space is a state that passes, anything else fences.
    pub(super) fn write_failed(&self, error: &io::Error) -> AppendError {
        if error.kind() == io::ErrorKind::StorageFull {
            self.set_read_only(true);
            return AppendError::LogDirFull { dir: self.path.clone() };
        }
        AppendError::LogDirOffline { dir: self.path.clone(), reason: self.fence("write", error) }
    }

    pub(super) fn enqueue(&self, log: Arc<Log>) {
        let mut dirty = self.dirty();
        dirty.logs.push(log);
        let is_awaited = dirty.is_awaited;
        drop(dirty);
        if is_awaited { self.came.notify_one() } else { self.wake.notify_one() }
    }

    pub(super) fn take_dirty(&self) -> Vec<Arc<Log>> {
        std::mem::take(&mut self.dirty().logs)
    }

    /// As [`LogDir::take_dirty`], but waits for up to `wait_max` until there is something. Blocks.
    pub(super) fn wait_dirty(&self, wait_max: Duration) -> Vec<Arc<Log>> {
        let mut dirty = self.dirty();
        dirty.is_awaited = true;
        let waited = self.came.wait_timeout_while(dirty, wait_max, |dirty| dirty.logs.is_empty());
        let mut dirty = waited.unwrap_or_else(PoisonError::into_inner).0;
        dirty.is_awaited = false;
        std::mem::take(&mut dirty.logs)
    }

    #[cfg(test)]
    pub(super) fn is_awaited(&self) -> bool {
        self.dirty().is_awaited
    }

    fn dirty(&self) -> MutexGuard<'_, Dirty> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a log in it was not opened, or not closed in order: the directory is not left clean by this run.
    pub(super) fn mark_unclean(&self) {
        self.unclean.store(true, Ordering::Relaxed);
    }

    /// Whether every log in it was opened, and closed so far, in order.
    pub(super) fn is_clean(&self) -> bool {
        !self.unclean.load(Ordering::Relaxed)
    }
}
