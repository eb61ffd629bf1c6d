//! Files and directories.
//!
//! Reads and writes are plain calls: they touch the page cache and return. What may wait for the
//! device ([`File::sync`], [`Disk::sync_dir`], a cold [`File::read_at`]) is called through
//! `Env::blocking`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::fault::thrown_away;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading; fails when it does not exist.
    Read,
    /// For reading and writing; fails when it does not exist.
    ReadWrite,
    /// For reading and writing; made, empty, when it does not exist; kept as it is when it does.
    Create,
    /// For reading and writing; made when it does not exist; cut to nothing when it does.
    Truncate,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// The last component of the path.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// A shared open file.
pub type FileRef = Arc<dyn File>;

/// An open file with positioned I/O: there is no cursor, so one handle serves many readers.
pub trait File: Send + Sync {
    /// Reads up to `buffer.len()` bytes at `offset`. `Ok(0)` means end of file.
    ///
    /// # Errors
    /// The device's own. May block when the bytes are not in the page cache.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// As [`File::read_at`], but `Ok(None)` instead of waiting for the device.
    ///
    /// # Errors
    /// The device's own.
    fn read_at_nowait(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>>;

    /// Writes all of `parts`, one after the other, starting at `offset`.
    ///
    /// # Errors
    /// The device's own; a prefix may have been written.
    fn write_at(&self, parts: &[io::IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// Makes everything written before this call durable (`fdatasync`). Blocks.
    ///
    /// # Errors
    /// The device's own, marked by [`crate::not_synced`]. After it nothing may be assumed about any
    /// byte written since the last successful sync, not even after a later success (the kernel
    /// drops the dirty pages).
    fn sync(&self) -> io::Result<()>;

    /// As [`File::sync`], of bytes that nobody counts on before it has succeeded, and that are
    /// written again otherwise: a new file that is to replace another, room ahead of an end. So a
    /// failure loses nothing, and "no space" is a state here. Blocks.
    ///
    /// # Errors
    /// The device's own.
    fn sync_new(&self) -> io::Result<()> {
        self.sync().map_err(thrown_away)
    }

    /// Cuts or extends (with zeros) the file to `len` bytes.
    ///
    /// # Errors
    /// The device's own.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Bytes in the file.
    ///
    /// # Errors
    /// The device's own.
    fn len(&self) -> io::Result<u64>;

    /// When the file was last written, in milliseconds of wall-clock time; `None` where the file
    /// system does not tell.
    ///
    /// # Errors
    /// The device's own.
    fn modified_ms(&self) -> io::Result<Option<i64>> {
        Ok(None)
    }

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// The device's own.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// The descriptor, for `sendfile`; `None` in the simulation.
    fn as_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>>;

    /// Reads exactly `buffer.len()` bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends first; the device's own.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read_at(&mut buffer[done..], offset + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(())
    }
}

/// The directory operations.
pub trait Disk: Send + Sync {
    /// Opens `path`.
    ///
    /// # Errors
    /// The file system's own.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileRef>;

    /// Renames a file or directory, replacing a file of that name. Durable only after
    /// [`Disk::sync_dir`].
    ///
    /// # Errors
    /// The file system's own.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable only after [`Disk::sync_dir`] of its directory.
    ///
    /// # Errors
    /// The file system's own.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory with all that is in it.
    ///
    /// # Errors
    /// The file system's own.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Makes a directory and its parents; nothing happens when it exists.
    ///
    /// # Errors
    /// The file system's own.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// The entries of a directory, sorted by name.
    ///
    /// # Errors
    /// The file system's own; names that are not UTF-8 are left out.
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>>;

    /// Makes the entries of a directory durable: files made, renamed or removed in it. Blocks.
    ///
    /// # Errors
    /// The file system's own; that of the sync itself is marked by [`crate::not_synced`].
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Whether `path` exists.
    ///
    /// # Errors
    /// The file system's own.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Takes the lock file `path` for this process; held until the result is dropped or the process
    /// ends.
    ///
    /// # Errors
    /// `WouldBlock` when another process holds it.
    fn lock(&self, path: &Path) -> io::Result<FileRef>;

    /// Total and free bytes of the file system that holds `path`.
    ///
    /// # Errors
    /// The file system's own.
    fn space(&self, path: &Path) -> io::Result<(u64, u64)>;

    /// Reads what a user names: a whole file, or a pipe to its end.
    ///
    /// # Errors
    /// The file system's own.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.read_stored(path)
    }

    /// Reads a whole file that this program has written.
    ///
    /// # Errors
    /// As those of [`Disk::open`].
    fn read_stored(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path, OpenMode::Read)?;
        let len = usize::try_from(file.len()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Makes a directory and its parents so that a power cut cannot take one of them away with all
    /// that is below it: the name of each is in its parent, which is synced before anything is made
    /// in the directory. Blocks.
    ///
    /// The innermost one that is there already may have been made by a process that was killed
    /// before it synced the parent, so this one is synced again.
    ///
    /// # Errors
    /// The file system's own. A parent that may not be read is one that somebody else made.
    fn create_dir_all_durably(&self, path: &Path) -> io::Result<()> {
        create_dir_all_durably(self, path, |_| false)
    }

    /// Replaces `path` by `bytes` so that after a power cut either the old or the new content is
    /// there, whole: written beside it (`.tmp`), synced, renamed, directory synced. Blocks.
    ///
    /// # Errors
    /// The file system's own; the old content, or already the new, is then in place, whole. So a
    /// failed sync of what was to replace it is not a lost write: "no space" is a state here in any
    /// case.
    fn write_atomically(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".tmp");
        let beside: PathBuf = path.with_file_name(name);
        let write = || {
            let file = self.open(&beside, OpenMode::Truncate)?;
            file.write_at(&[io::IoSlice::new(bytes)], 0)?;
            file.sync_new()?;
            self.rename(&beside, path)
        };
        if let Err(error) = write() {
            // On a full disk the half of it would hold the space that is missing.
            let _ = self.remove_file(&beside);
            return Err(error);
        }
        self.sync_dir(path.parent().unwrap_or(Path::new("."))).map_err(thrown_away)
    }
}

/// [`Disk::create_dir_all_durably`], where the names of those that exist and are `known` are durable.
pub(crate) fn create_dir_all_durably(
    disk: &(impl Disk + ?Sized),
    path: &Path,
    known: impl Fn(&Path) -> bool,
) -> io::Result<()> {
    let parent_of = |path: &Path| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Some(PathBuf::from(".")),
        parent => parent.map(Path::to_path_buf),
    };
    let mut new = Vec::new();
    for ancestor in path.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()) {
        if !disk.exists(ancestor)? {
            new.push(ancestor);
            continue;
        }
        if known(ancestor) {
            break;
        }
        let synced = parent_of(ancestor).map_or(Ok(()), |parent| disk.sync_dir(&parent));
        if let Err(error) = synced
            && error.kind() != io::ErrorKind::PermissionDenied
        {
            return Err(error);
        }
        break;
    }
    for missing in new.into_iter().rev() {
        disk.create_dir_all(missing)?;
        parent_of(missing).map_or(Ok(()), |parent| disk.sync_dir(&parent))?;
    }
    Ok(())
}
