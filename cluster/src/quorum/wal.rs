//! The file of the metadata log: every vote, entry, truncation and purge, in the order they
//! happened.
//!
//! ```text
//! header  magic "LBXRAFT2", 4 bytes 0x7f, u64 generation, u64 node id, 16 bytes incarnation, u32 crc32c, padded to 64
//! frame   u32 length, u32 crc32c(generation, sequence, body), u64 sequence, body, padded to 8
//! body    items: u8 tag, u32 length, bytes
//! seal    a frame without a body: those in front of it were synced
//! rest    zeros, written ahead: a sync into blocks that exist is 26 times faster than a growing file's
//! ```
//! All integers are little endian. One append is one frame and one sync, and the next frame is
//! begun only after that sync, over the seal that was written meanwhile. So only the last frame can
//! be torn, and only where no seal follows: it is cut at open. A frame that is bad with a good one
//! or a seal behind it was synced once and has rotted since; so was what a file has no room for,
//! because room is there before a frame is written. That is refused, because cutting it would undo
//! votes and entries that others were told of.
//!
//! A seal is not synced by itself, as nobody waits for it; a stop in order, and all ends of the
//! process but those with the machine's, leave it.
//!
//! After a failed sync nothing is written any more, ever, by this process. A write that finds no
//! space is no such failure, nor is the sync of room ahead or of a file that is to replace this one:
//! nothing of it counts, and it may be repeated. For a full disk there is room ahead of the end, at
//! least half of [`RESERVE_LEN`].
//!
//! The name is an offset and the four bytes are where a record batch has its length, so that Apache
//! Kafka's tools, which look at every `.log` in a directory, take the file for a log that ends with
//! an unfinished batch, and go on.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use letterbox_env::{Disk, Fault, FileRef, OpenMode, Random};
use letterbox_protocol::batch::crc32c_append;
use uuid::Uuid;

use super::types::{put_block, take_block, take_u32, take_u64};

/// The file's name.
pub(super) const FILE_NAME: &str = "00000000000000000000.log";

const MAGIC: &[u8; 12] = b"LBXRAFT2\x7f\x7f\x7f\x7f";
const HEADER_LEN: usize = 64;
const FRAME_HEADER_LEN: usize = 16;

/// Zeros written ahead of the end at a time.
const RESERVE_LEN: usize = 1 << 20;

/// Whether the file begins as a metadata log of ours; `None` when it is not there. Blocks.
pub(super) fn begins_as_ours(disk: &dyn Disk, path: &Path) -> io::Result<Option<bool>> {
    let file = match disk.open(path, OpenMode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut begins = [0; MAGIC.len()];
    match file.read_exact_at(&mut begins, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Some(false)),
        read => read.map(|()| Some(begins == *MAGIC)),
    }
}

/// One fact of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// The vote, as JSON.
    Vote(Vec<u8>),
    /// An entry, encoded.
    Entry(Vec<u8>),
    /// Entries from this index on are gone.
    Truncate(u64),
    /// Entries up to this one (term, index) are gone: a snapshot has them.
    Purge(u64, u64),
}

/// What can be done about a log that is lost. Votes and entries that a copy does not have may be
/// what other voters counted on.
pub(super) const RESTORE: &str = "Mount the volume with the node's own directory. Where the node \
    is the only voter (controller.quorum.voters), the directory may be restored from the newest \
    backup; to a voter among several that must never be done";

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum WalError {
    #[error("metadata log {}: cannot be read or written", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "metadata log {} is damaged at byte {position}: {reason}. It was written whole once, so \
         the disk has changed it. {RESTORE}",
        path.display()
    )]
    Damaged { path: PathBuf, position: usize, reason: &'static str },
    #[error("metadata log {} belongs to node {found}, not to node {expected}", path.display())]
    WrongNode { path: PathBuf, found: u64, expected: u64 },
    #[error(
        "metadata log {} is missing, but this node has taken part before. Starting without it \
         could undo what the cluster agreed on. {RESTORE}. A node that is the only voter may begin \
         a new one, without the topics of before: accepted.lost.metadata.log",
        path.display()
    )]
    Missing { path: PathBuf },
}

/// The open file.
pub(super) struct Wal {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    file: FileRef,
    generation: u64,
    node_id: u64,
    incarnation: Uuid,
    /// Where the next frame begins.
    end: usize,
    /// How far zeros are written.
    reserved: usize,
    sequence: u64,
    /// The file is new and its name may not be on the device; nothing is acknowledged before it is.
    is_unnamed: bool,
    failed: bool,
}

impl Wal {
    /// Opens the file, or makes it when `may_create`, and returns everything in it in order.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        random: &dyn Random,
        directory: &Path,
        node_id: u64,
        may_create: bool,
    ) -> Result<(Self, Vec<Item>), WalError> {
        let path = directory.join(FILE_NAME);
        let io = |source| WalError::Io { path: path.clone(), source };
        if !disk.exists(&path).map_err(io)? {
            if !may_create {
                return Err(WalError::Missing { path });
            }
            let wal = Self::begin(disk, random, path.clone(), node_id).map_err(io)?;
            return Ok((wal, Vec::new()));
        }
        let bytes = disk.read_stored(&path).map_err(io)?;
        let damaged = |position, reason| WalError::Damaged { path: path.clone(), position, reason };
        let (generation, found, incarnation) =
            read_header(&bytes).ok_or(damaged(0, "the header is not whole"))?;
        if found != node_id {
            return Err(WalError::WrongNode { path, found, expected: node_id });
        }
        let mut items = Vec::new();
        let (mut position, mut sequence) = (HEADER_LEN, 0);
        while let Some((body, next)) = read_frame(&bytes, position, generation, sequence) {
            read_items(body, &mut items).ok_or(damaged(position, "an item is not known"))?;
            position = next;
            sequence += 1;
        }
        if (position.saturating_add(8)..bytes.len())
            .step_by(8)
            .any(|at| is_later_frame(&bytes, at, generation, sequence))
        {
            return Err(damaged(position, "a frame is bad although it was synced"));
        }
        if room_needed(&bytes, position) > bytes.len() {
            return Err(damaged(position, "the file was cut short"));
        }
        let file = disk.open(&path, OpenMode::ReadWrite).map_err(io)?;
        let mut wal = Self {
            disk,
            path: path.clone(),
            file,
            generation,
            node_id,
            incarnation,
            end: position,
            reserved: bytes.len(),
            sequence,
            is_unnamed: false,
            failed: false,
        };
        // After a sync that failed in an earlier run the kernel may show bytes that the device does
        // not have, and take them for written. Written again they are the device's, or the sync
        // fails.
        let used = bytes.get(..position).unwrap_or(&bytes);
        wal.file.write_at(&[IoSlice::new(used)], 0).and_then(|()| wal.file.sync()).map_err(io)?;
        let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let sealed = seal(generation, sequence);
        let is_sealed = bytes.get(position..).is_some_and(|rest| rest.starts_with(&sealed));
        if written > position && !(is_sealed && written <= position + sealed.len()) {
            wal.cut(written).map_err(io)?;
        }
        Ok((wal, items))
    }

    /// The log of a node that has none, with an incarnation of its own.
    fn begin(
        disk: Arc<dyn Disk>,
        random: &dyn Random,
        path: PathBuf,
        node_id: u64,
    ) -> io::Result<Self> {
        let mut id = [0; 16];
        random.fill(&mut id);
        let incarnation = uuid::Builder::from_random_bytes(id).into_uuid();
        let mut wal = Self::create(disk, path, node_id, incarnation, 1, &[])?;
        wal.sync_name()?;
        Ok(wal)
    }

    /// Replaces the torn frame by zeros, so that nothing of it is ever taken for data.
    fn cut(&mut self, written: usize) -> io::Result<()> {
        tracing::warn!(path = %self.path.display(), position = self.end, bytes = written - self.end, "\
            truncating an unfinished write at the end of the metadata log");
        let zeros = vec![0; written - self.end];
        self.file.write_at(&[IoSlice::new(&zeros)], self.end as u64)?;
        self.file.sync()
    }

    /// Makes the file beside the old one, if there is one, and puts it in its place. Nothing is
    /// changed when this fails.
    fn create(
        disk: Arc<dyn Disk>,
        path: PathBuf,
        node_id: u64,
        incarnation: Uuid,
        generation: u64,
        items: &[Item],
    ) -> io::Result<Self> {
        let mut bytes = header(generation, node_id, incarnation);
        if !items.is_empty() {
            bytes.extend(frame(generation, 0, items)?);
        }
        let end = bytes.len();
        let sequence = u64::from(!items.is_empty());
        bytes.extend(seal(generation, sequence));
        bytes.resize(end.saturating_add(RESERVE_LEN), 0);
        let beside = path.with_extension("log.tmp");
        let write = || -> io::Result<FileRef> {
            let file = disk.open(&beside, OpenMode::Truncate)?;
            file.write_at(&[IoSlice::new(&bytes)], 0)?;
            file.sync_new()?;
            disk.rename(&beside, &path)?;
            Ok(file)
        };
        let file = write().inspect_err(|_| drop(disk.remove_file(&beside)))?;
        let reserved = bytes.len();
        Ok(Self {
            disk,
            path,
            file,
            generation,
            node_id,
            incarnation,
            end,
            reserved,
            sequence,
            is_unnamed: true,
            failed: false,
        })
    }

    fn sync_name(&mut self) -> io::Result<()> {
        if self.is_unnamed {
            self.disk.sync_dir(self.path.parent().unwrap_or(Path::new(".")))?;
            self.is_unnamed = false;
        }
        Ok(())
    }

    /// The id of this log: another one after it was lost.
    pub(super) fn incarnation(&self) -> Uuid {
        self.incarnation
    }

    pub(super) fn node_id(&self) -> u64 {
        self.node_id
    }

    /// Bytes in use.
    pub(super) fn len(&self) -> usize {
        self.end
    }

    /// Makes `items` durable, all or none. Blocks.
    ///
    /// # Errors
    /// A state ([`Fault::State`]): nothing of it counts; try again. Else the device's own, and
    /// nothing more is taken.
    pub(super) fn append(&mut self, items: &[Item]) -> io::Result<()> {
        self.guarded(|wal| {
            wal.sync_name()?;
            let bytes = frame(wal.generation, wal.sequence, items)?;
            let end = wal.end.saturating_add(bytes.len());
            // The seal's.
            let needed = end.saturating_add(FRAME_HEADER_LEN);
            if needed.saturating_add(RESERVE_LEN / 2) > wal.reserved
                && let Err(error) = wal.write_ahead(end.saturating_add(RESERVE_LEN))
                && (needed > wal.reserved || !Fault::of(&error).is_state())
            {
                return Err(error);
            }
            wal.file.write_at(&[IoSlice::new(&bytes)], wal.end as u64)?;
            wal.file.sync()?;
            wal.end = end;
            wal.sequence += 1;
            // What cannot be written is missed only if the disk damages the frame, too.
            let _ = wal
                .file
                .write_at(&[IoSlice::new(&seal(wal.generation, wal.sequence))], wal.end as u64);
            Ok(())
        })
    }

    /// Writes zeros up to `reserved`.
    fn write_ahead(&mut self, reserved: usize) -> io::Result<()> {
        let zeros = vec![0; reserved.saturating_sub(self.reserved)];
        self.file.write_at(&[IoSlice::new(&zeros)], self.reserved as u64)?;
        // Every frame was synced before: only the zeros can be lost.
        self.file.sync_new()?;
        self.reserved = reserved;
        Ok(())
    }

    /// Replaces the whole file by one that has only `items`, atomically. Blocks.
    ///
    /// # Errors
    /// As [`Wal::append`]; the old file goes on then.
    pub(super) fn rewrite(&mut self, items: &[Item]) -> io::Result<()> {
        self.guarded(|wal| {
            let disk = Arc::clone(&wal.disk);
            // From here on the new file is the log, whether its name is on the device yet or not.
            *wal = Self::create(
                disk,
                wal.path.clone(),
                wal.node_id,
                wal.incarnation,
                wal.generation.saturating_add(1),
                items,
            )?;
            wal.sync_name()
        })
    }

    fn guarded(&mut self, write: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write to the metadata log failed"));
        }
        let result = write(self);
        self.failed = result.as_ref().is_err_and(|error| !Fault::of(error).is_state());
        result
    }
}

fn header(generation: u64, node_id: u64, incarnation: Uuid) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(generation.to_le_bytes());
    bytes.extend(node_id.to_le_bytes());
    bytes.extend(incarnation.as_bytes());
    bytes.extend(crc(&[&bytes]).to_le_bytes());
    bytes.resize(HEADER_LEN, 0);
    bytes
}

fn read_header(bytes: &[u8]) -> Option<(u64, u64, Uuid)> {
    let header = bytes.get(..HEADER_LEN)?;
    let (covered, rest) = header.split_at_checked(44)?;
    let (sum, _) = take_u32(rest)?;
    let rest = covered.strip_prefix(MAGIC)?;
    let (generation, rest) = take_u64(rest)?;
    let (node_id, rest) = take_u64(rest)?;
    (crc(&[covered]) == sum).then_some(())?;
    Some((generation, node_id, Uuid::from_slice(rest).ok()?))
}

pub(super) fn crc(parts: &[&[u8]]) -> u32 {
    parts.iter().fold(0, |sum, part| crc32c_append(sum, part))
}

fn frame_crc(generation: u64, sequence: u64, body: &[u8]) -> u32 {
    crc(&[&generation.to_le_bytes(), &sequence.to_le_bytes(), body])
}

fn frame(generation: u64, sequence: u64, items: &[Item]) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    for item in items {
        let (tag, bytes) = match item {
            Item::Vote(bytes) => (1, bytes.clone()),
            Item::Entry(bytes) => (2, bytes.clone()),
            Item::Truncate(index) => (3, index.to_le_bytes().to_vec()),
            Item::Purge(term, index) => (4, [term.to_le_bytes(), index.to_le_bytes()].concat()),
        };
        body.push(tag);
        put_block(&mut body, &bytes);
    }
    let len = u32::try_from(body.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend(frame_crc(generation, sequence, &body).to_le_bytes());
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    Ok(bytes)
}

/// Says that every frame before `sequence` was synced.
fn seal(generation: u64, sequence: u64) -> [u8; FRAME_HEADER_LEN] {
    let mut bytes = [0; FRAME_HEADER_LEN];
    let (sum, number) = (frame_crc(generation, sequence, &[]), sequence.to_le_bytes());
    for (byte, value) in bytes.iter_mut().skip(4).zip(sum.to_le_bytes().into_iter().chain(number)) {
        *byte = value;
    }
    bytes
}

/// How long the file has to be for what begins at `position`, which is no whole frame: as it was
/// before that was written.
fn room_needed(bytes: &[u8], position: usize) -> usize {
    let len = bytes.get(position..).and_then(take_u32).map_or(0, |(len, _)| len);
    let end = match usize::try_from(len) {
        Ok(0) => Some(position),
        Ok(len) => position
            .checked_add(FRAME_HEADER_LEN)
            .and_then(|at| at.checked_add(len)?.checked_next_multiple_of(8)),
        Err(_) => None,
    };
    end.map_or(usize::MAX, |end| end.saturating_add(FRAME_HEADER_LEN))
}

/// The body of the frame at `position` and where the next one begins.
fn read_frame(
    bytes: &[u8],
    position: usize,
    generation: u64,
    sequence: u64,
) -> Option<(&[u8], usize)> {
    let rest = bytes.get(position..)?;
    let (len, rest) = take_u32(rest)?;
    let (sum, rest) = take_u32(rest)?;
    let (found, rest) = take_u64(rest)?;
    let len = usize::try_from(len).ok().filter(|len| *len > 0)?;
    let body = rest.get(..len)?;
    (found == sequence && frame_crc(generation, sequence, body) == sum).then_some(())?;
    let next =
        position.checked_add(FRAME_HEADER_LEN)?.checked_add(len)?.checked_next_multiple_of(8)?;
    Some((body, next))
}

/// Whether a whole frame that comes after `sequence`, or a seal of it, begins at `position`.
fn is_later_frame(bytes: &[u8], position: usize, generation: u64, sequence: u64) -> bool {
    let found = bytes.get(position.saturating_add(8)..).and_then(take_u64).map(|(found, _)| found);
    found.is_some_and(|found| {
        found > sequence
            && found - sequence < 1 << 32
            && (read_frame(bytes, position, generation, found).is_some()
                || bytes
                    .get(position..)
                    .is_some_and(|rest| rest.starts_with(&seal(generation, found))))
    })
}

fn read_items(mut body: &[u8], items: &mut Vec<Item>) -> Option<()> {
    while let Some((tag, rest)) = body.split_first() {
        let (bytes, rest) = take_block(rest)?;
        items.push(match tag {
            1 => Item::Vote(bytes.to_vec()),
            2 => Item::Entry(bytes.to_vec()),
            3 => Item::Truncate(take_u64(bytes)?.0),
            4 => {
                let (term, rest) = take_u64(bytes)?;
                Item::Purge(term, take_u64(rest)?.0)
            }
            _ => return None,
        });
        body = rest;
    }
    Some(())
}
