//! The end of the use of a log directory, and the disk that ends it. The same disk hears when
//! there is no descriptor for a file.
//!
//! Linux says once that names could not be made durable: the next sync of the directory, by
//! whomever, succeeds, and the names may be gone after a power cut with everything that was
//! acknowledged in files of these names. So it does not matter who was told. Everything in a log
//! directory goes through a [`FencedDisk`], and a lost sync of names ends the directory's use.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use letterbox_env::{DirEntry, Disk, Fault, FileRef, OpenMode, Resource, has_all_descriptors};
use tokio::sync::Notify;

use super::open_segments::ActiveSegments;

/// Whether a log directory is in use.
pub(super) struct Fence {
    dir: PathBuf,
    reason: OnceLock<Arc<str>>,
    closed: Notify,
    lacks_descriptors: Notify,
    active: Arc<ActiveSegments>,
}

impl Fence {
    /// Around `dir`, which is in use; what uses it does so through the disk.
    pub(super) fn around(
        dir: &Path,
        disk: &Arc<dyn Disk>,
        active: &Arc<ActiveSegments>,
    ) -> (Arc<Self>, Arc<dyn Disk>) {
        let fence = Arc::new(Self {
            dir: dir.into(),
            reason: OnceLock::new(),
            closed: Notify::new(),
            lacks_descriptors: Notify::new(),
            active: active.clone(),
        });
        (fence.clone(), Arc::new(FencedDisk { disk: disk.clone(), fence }))
    }

    /// Why it is not in use any more.
    pub(super) fn reason(&self) -> Option<&Arc<str>> {
        self.reason.get()
    }

    /// Ends the use of the directory, for good; gives why that was done first.
    pub(super) fn close(&self, reason: Arc<str>) -> Arc<str> {
        if self.reason.set(reason.clone()).is_ok() {
            tracing::error!(dir = %self.dir.display(), %reason, "log directory is offline; repair \
                it and restart the broker");
            self.closed.notify_waiters();
        }
        self.reason.get().cloned().unwrap_or(reason)
    }

    /// There was no descriptor for something; its files that are not in use had better be closed.
    pub(super) fn lacks_descriptors(&self) {
        self.lacks_descriptors.notify_one();
    }

    /// Completes when there was no descriptor for a file of the directory, or for something else.
    pub(super) async fn until_descriptors_lack(&self) {
        self.lacks_descriptors.notified().await;
    }

    /// Completes with the reason when it is not in use any more.
    pub(super) async fn until_closed(&self) -> Arc<str> {
        loop {
            let closed = self.closed.notified();
            if let Some(reason) = self.reason() {
                return reason.clone();
            }
            closed.await;
        }
    }
}

struct FencedDisk {
    disk: Arc<dyn Disk>,
    fence: Arc<Fence>,
}

impl FencedDisk {
    /// Does `work`, once more where the process lacked a descriptor and a log could spare some.
    fn hear<T>(&self, work: impl Fn() -> io::Result<T>) -> io::Result<T> {
        let done = match work() {
            Err(error) if has_all_descriptors(&error) && self.fence.active.close_one() => work(),
            done => done,
        };
        done.inspect_err(|error| {
            if Fault::of(error) == Fault::State(Resource::Descriptors) {
                self.fence.lacks_descriptors();
            }
        })
    }
}

impl Disk for FencedDisk {
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.hear(|| self.disk.sync_dir(path)).inspect_err(|error| {
            if Fault::of(error) == Fault::LostWrite {
                self.fence.close(format!("sync directory {}: {error}", path.display()).into());
            }
        })
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileRef> {
        self.hear(|| self.disk.open(path, mode))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.hear(|| self.disk.remove_dir_all(path))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.hear(|| self.disk.list(path))
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.disk.exists(path)
    }
    fn lock(&self, path: &Path) -> io::Result<FileRef> {
        self.hear(|| self.disk.lock(path))
    }
    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.disk.space(path)
    }
}
