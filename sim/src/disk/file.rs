//! An open file of a [`SimDisk`].

use std::io;
use std::path::Path;

use letterbox_env::{Disk, File, OpenMode, not_synced};

use super::content::Fate;
use super::faults::{Fault, Operation};
use super::names::Inode;
use super::{EIO, ENOSPC, Node, Power, SimDisk, State, error};

/// EBADF: written through a handle that is for reading.
const EBADF: i32 = 9;

pub(super) struct SimFile {
    pub(super) disk: SimDisk,
    pub(super) inode: Inode,
    pub(super) handle: u64,
    pub(super) epoch: u64,
    pub(super) path: String,
    pub(super) writable: bool,
}

impl SimFile {
    /// Opens `path` for reading and writing, as `Disk::open` does, without the box.
    pub(super) fn open(disk: &SimDisk, path: &Path) -> io::Result<Self> {
        drop(disk.open(path, OpenMode::Create)?);
        let mut state = disk.state();
        let inode = state.resolve(path)?;
        let handle = state.handle(inode);
        let epoch = state.epoch;
        drop(state);
        Ok(Self {
            disk: disk.clone(),
            inode,
            handle,
            epoch,
            path: path.display().to_string(),
            writable: true,
        })
    }

    /// Runs `job` on the disk and this file's node, unless the process this handle belongs to is
    /// gone.
    fn with<T>(&self, job: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        if state.epoch != self.epoch {
            return Err(error(EIO));
        }
        job(&mut state)
    }

    fn node<'a>(&self, state: &'a mut State) -> io::Result<&'a mut Node> {
        state.files.get_mut(&self.inode).ok_or_else(|| error(EIO))
    }

    /// Reads the bytes, sometimes fewer than there are, as a signal may cut a read short.
    fn read(&self, state: &mut State, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if state.meet(Operation::Read, &self.path).is_some() {
            return Err(error(EIO));
        }
        let short = buffer.len() > 1 && state.rng.below(32) == 0;
        let wanted = if short { 1 + state.rng.index(buffer.len() - 1) } else { buffer.len() };
        let read = self.node(state)?.content.read(&mut buffer[..wanted], offset);
        state.stats.bytes_read += read as u64;
        Ok(read)
    }

    fn writable(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(error(EBADF)) }
    }
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let hear = self.disk.state().on_read.clone();
        if let Some(hear) = hear {
            hear(Path::new(&self.path));
        }
        self.with(|state| {
            state.begin("read", &self.path, &[offset, buffer.len() as u64], &[], false)?;
            let node = self.node(state)?;
            if std::mem::take(&mut node.cold) {
                state.wait(50, 500);
            }
            self.read(state, buffer, offset)
        })
    }

    fn read_at_nowait(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        self.with(|state| {
            state.begin("read nowait", &self.path, &[offset, buffer.len() as u64], &[], false)?;
            // Pages are also dropped from the cache while the file is in use.
            let evicted = state.rng.below(16) == 0;
            let node = self.node(state)?;
            node.cold |= evicted;
            if node.cold {
                return Ok(None);
            }
            self.read(state, buffer, offset).map(Some)
        })
    }

    fn write_at(&self, parts: &[io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.writable()?;
        let bytes = parts.iter().map(|part| &part[..]).collect::<Vec<_>>().concat();
        self.with(|state| {
            if let Err(error) = state.begin("write", &self.path, &[offset], &bytes, true) {
                if state.power == Power::On {
                    let half = &bytes[..bytes.len() / 2];
                    self.node(state)?.content.write(half, offset, Fate::Honest);
                }
                return Err(error);
            }
            let fault = state.meet(Operation::Write, &self.path);
            if fault == Some(Fault::FailWrite) {
                return Err(error(EIO));
            }
            let end = offset.checked_add(bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
            let allowed = state.allow(self.inode, end);
            let fits = usize::try_from(allowed.saturating_sub(offset))
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            self.node(state)?.content.write(&bytes[..fits], offset, Fate::from(fault));
            if fits < bytes.len() { Err(state.no_space()) } else { Ok(()) }
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state| {
            state.begin("sync", &self.path, &[], &[], true)?;
            state.wait(200, 2000);
            let fault = state.meet(Operation::Sync, &self.path);
            if fault == Some(Fault::IgnoreSync) {
                let node = state.files.get_mut(&self.inode).ok_or_else(|| error(EIO))?;
                node.content.ignore_sync();
                return Ok(());
            }
            if fault.is_some() {
                let node = state.files.get_mut(&self.inode).ok_or_else(|| error(EIO))?;
                node.content.fail_sync(&mut state.rng);
                // A full disk may be noticed as late as this; what was written is as lost as by any
                // other cause.
                return Err(not_synced(error(if fault == Some(Fault::NoSpaceAtSync) {
                    ENOSPC
                } else {
                    EIO
                })));
            }
            self.node(state)?.content.sync();
            state.stats.syncs += 1;
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writable()?;
        self.with(|state| {
            state.begin("set length", &self.path, &[len], &[], true)?;
            if state.allow(self.inode, len) < len {
                return Err(state.no_space());
            }
            let node = self.node(state)?;
            if node.content.len() != len {
                node.content.set_len(len);
            }
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|state| {
            state.begin("length", &self.path, &[], &[], false)?;
            Ok(self.node(state)?.content.len())
        })
    }

    fn as_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.epoch != self.epoch {
            return;
        }
        if state.locks.get(&self.inode) == Some(&self.handle) {
            state.locks.remove(&self.inode);
        }
        if let Some(node) = state.files.get_mut(&self.inode) {
            node.handles = node.handles.saturating_sub(1);
        }
    }
}
