//! A disk over a real directory that keeps what was not synced in memory only, and that can fail.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use letterbox_env::{DirEntry, Disk, Env, File, FileRef, OpenMode};

/// Writes that were not synced, by file, in order.
type Unsynced = Arc<Mutex<BTreeMap<PathBuf, Vec<(u64, Vec<u8>)>>>>;

#[derive(Clone)]
pub(super) struct FaultDisk {
    real: Arc<dyn Disk>,
    unsynced: Unsynced,
    /// Syncs that still succeed.
    syncs_left: Arc<AtomicUsize>,
    pub(super) syncs: Arc<AtomicUsize>,
    dead: Arc<AtomicBool>,
    full: Arc<AtomicBool>,
}

impl FaultDisk {
    pub(super) fn new() -> Self {
        Self {
            real: Env::real().disk,
            unsynced: Arc::default(),
            syncs_left: Arc::new(AtomicUsize::new(usize::MAX)),
            syncs: Arc::default(),
            dead: Arc::default(),
            full: Arc::default(),
        }
    }

    pub(super) fn env(&self) -> Env {
        Env { disk: Arc::new(self.clone()), ..Env::real() }
    }

    pub(super) fn fail_syncs_after(&self, count: usize) {
        self.syncs_left.store(count, Ordering::SeqCst);
    }

    /// Power loss: nothing is written from now on, and what was not synced is lost.
    pub(super) fn cut_power(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.unsynced.lock().unwrap().clear();
    }

    /// No file grows and none is made, until that is taken back.
    pub(super) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    fn has_space(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead.load(Ordering::SeqCst) { Err(io::Error::other("no power")) } else { Ok(()) }
    }
}

struct FaultFile {
    disk: FaultDisk,
    path: PathBuf,
    real: FileRef,
}

impl File for FaultFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.real.read_at(buffer, offset)
    }

    fn read_at_nowait(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        self.real.read_at_nowait(buffer, offset)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.disk.alive()?;
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        if offset + bytes.len() as u64 > self.real.len()? {
            self.disk.has_space()?;
        }
        self.disk
            .unsynced
            .lock()
            .unwrap()
            .entry(self.path.clone())
            .or_default()
            .push((offset, bytes));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.alive()?;
        self.disk.syncs.fetch_add(1, Ordering::SeqCst);
        let left = self
            .disk
            .syncs_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map_err(|_| letterbox_env::not_synced(io::Error::other("the disk failed a sync")))?;
        for (offset, bytes) in
            self.disk.unsynced.lock().unwrap().remove(&self.path).unwrap_or_default()
        {
            self.real.write_at(&[IoSlice::new(&bytes)], offset)?;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.real.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.real.len()
    }

    fn as_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

impl Disk for FaultDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileRef> {
        self.alive()?;
        if matches!(mode, OpenMode::Create | OpenMode::Truncate) && !self.real.exists(path)? {
            self.has_space()?;
        }
        Ok(Arc::new(FaultFile {
            disk: self.clone(),
            path: path.to_owned(),
            real: self.real.open(path, mode)?,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.alive()?;
        self.real.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.alive()?;
        self.real.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.real.remove_dir_all(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.real.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.real.list(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.alive()?;
        self.real.sync_dir(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.real.exists(path)
    }

    fn lock(&self, path: &Path) -> io::Result<FileRef> {
        self.real.lock(path)
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.real.space(path)
    }
}
