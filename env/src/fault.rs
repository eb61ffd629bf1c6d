//! What an I/O error means for the caller. Decided here and nowhere else.
//!
//! A full disk or an empty table of descriptors passes; a write that the device lost does not.
//! Taking one for the other either stops a broker that could serve, or acknowledges records that
//! are gone.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};

use rustix::io::Errno;

/// What is short while a [`Fault::State`] lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Room on the file system, or the user's quota of it (ENOSPC, EDQUOT), or in a file (EFBIG).
    Space,
    /// Descriptors of the process or of the machine (EMFILE, ENFILE).
    Descriptors,
    /// Memory, or buffers of the kernel (ENOMEM, ENOBUFS).
    Memory,
    /// Nothing: the call was interrupted or would have waited (EINTR, EAGAIN).
    Turn,
}

/// The class of an I/O error, as far as a *change* of stored data is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is lost: the call was refused and may be repeated. Refuse what needs the resource
    /// with an error that clients retry, keep serving the rest, and go on when there is some again.
    State(Resource),
    /// What the device has is unknown: a failed sync, or a failed write of another cause. Never
    /// repeat it and acknowledge; take the directory out of use.
    LostWrite,
    /// The files are not as they must be (one is missing, is a directory, ends too early, belongs to
    /// another user). Stop what they belong to.
    BrokenInvariant,
}

impl Fault {
    /// The class of `error`. What is not known is a lost write.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        if error.get_ref().is_some_and(|inner| inner.is::<NotSynced>()) {
            return Self::LostWrite;
        }
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::State(Resource::Space),
            ErrorKind::OutOfMemory => Self::State(Resource::Memory),
            ErrorKind::Interrupted | ErrorKind::WouldBlock => Self::State(Resource::Turn),
            // From the system: the process's limit of file sizes (`ulimit -f`).
            ErrorKind::FileTooLarge if error.raw_os_error().is_some() => {
                Self::State(Resource::Space)
            }
            ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::DirectoryNotEmpty
            | ErrorKind::PermissionDenied
            | ErrorKind::UnexpectedEof
            | ErrorKind::InvalidInput
            | ErrorKind::InvalidData
            | ErrorKind::FileTooLarge => Self::BrokenInvariant,
            _ => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::MFILE | Errno::NFILE) => Self::State(Resource::Descriptors),
                Some(Errno::NOBUFS) => Self::State(Resource::Memory),
                Some(Errno::BADF) => Self::BrokenInvariant,
                _ => Self::LostWrite,
            },
        }
    }

    /// The class of an error of a read, or of anything that only opens what is there. It changes
    /// nothing, so that only what the device itself says (EIO) is more than the files' own affair.
    #[must_use]
    pub fn of_read(error: &io::Error) -> Self {
        let is_device = error.raw_os_error() == Some(Errno::IO.raw_os_error());
        let is_sync = error.get_ref().is_some_and(|inner| inner.is::<NotSynced>());
        match Self::of(error) {
            Self::LostWrite if !is_device && !is_sync => Self::BrokenInvariant,
            class => class,
        }
    }

    /// Whether it passes by itself.
    #[must_use]
    pub fn is_state(self) -> bool {
        matches!(self, Self::State(_))
    }
}

/// Whether this process has as many files open as it may, so that each that it closes helps. Where the
/// whole system has (`ENFILE`), others may take what is given back.
#[must_use]
pub fn has_all_descriptors(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::MFILE.raw_os_error())
}

/// Marks the error of a failed `fsync` or `fdatasync`, whatever its number: the kernel may have
/// dropped the bytes, so that even "no space" means that they are lost. Every [`crate::File::sync`]
/// and [`crate::Disk::sync_dir`] does this.
#[must_use]
pub fn not_synced(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), NotSynced(error))
}

/// Takes the mark of [`not_synced`] away: the bytes that were not synced are of no use to anybody
/// and thrown away.
pub(crate) fn thrown_away(error: io::Error) -> io::Error {
    match error.downcast::<NotSynced>() {
        Ok(NotSynced(error)) | Err(error) => error,
    }
}

#[derive(Debug)]
struct NotSynced(io::Error);

impl fmt::Display for NotSynced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for NotSynced {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_one_class() {
        let state = Fault::State;
        for (errno, class) in [
            (Errno::NOSPC, state(Resource::Space)),
            (Errno::DQUOT, state(Resource::Space)),
            (Errno::MFILE, state(Resource::Descriptors)),
            (Errno::NFILE, state(Resource::Descriptors)),
            (Errno::NOMEM, state(Resource::Memory)),
            (Errno::NOBUFS, state(Resource::Memory)),
            (Errno::INTR, state(Resource::Turn)),
            (Errno::AGAIN, state(Resource::Turn)),
            (Errno::NOENT, Fault::BrokenInvariant),
            (Errno::NOTDIR, Fault::BrokenInvariant),
            (Errno::BADF, Fault::BrokenInvariant),
            (Errno::ACCESS, Fault::BrokenInvariant),
            (Errno::PERM, Fault::BrokenInvariant),
            (Errno::IO, Fault::LostWrite),
            (Errno::ROFS, Fault::LostWrite),
            (Errno::STALE, Fault::LostWrite),
        ] {
            let error = || io::Error::from_raw_os_error(errno.raw_os_error());
            assert_eq!(Fault::of(&error()), class, "{errno}");
            assert_eq!(Fault::of(&not_synced(error())), Fault::LostWrite, "failed sync: {errno}");
            assert_eq!(Fault::of(&thrown_away(not_synced(error()))), class, "{errno}");
            assert_eq!(not_synced(error()).to_string(), error().to_string());
            let of_read = if class == Fault::LostWrite && errno != Errno::IO {
                Fault::BrokenInvariant
            } else {
                class
            };
            assert_eq!(Fault::of_read(&error()), of_read, "{errno}");
            assert_eq!(Fault::of_read(&not_synced(error())), Fault::LostWrite, "{errno}");
        }
        assert_eq!(Fault::of(&io::Error::other("who knows")), Fault::LostWrite);
    }
}
