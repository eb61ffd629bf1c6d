//! The batches of a segment's file, one after the other.

use std::path::Path;

use bytes::Bytes;
use letterbox_client::record::{BatchHeader, HEADER_BYTES};
use letterbox_env::{Env, FileRef, OpenMode};

use crate::failure::Failure;

/// An open `.log` file.
pub(super) struct Segment {
    path: String,
    file: FileRef,
    bytes: u64,
}

/// The fields of a batch before its records, and where it is.
pub(super) struct Head {
    pub(super) header: BatchHeader,
    pub(super) position: u64,
    /// Of the whole batch.
    pub(super) bytes: u64,
}

/// What a broker fills the blocks with that it keeps ahead of what it writes: Letterbox 0x7f, file
/// systems 0.
const RESERVE_BYTES: [u8; 2] = [0, 0x7f];

impl Segment {
    pub(super) fn open(env: &Env, path: &str) -> Result<Self, Failure> {
        let failed =
            |error: std::io::Error| Failure::Stderr(format!("cannot read {path}: {error}"));
        let file = env.disk.open(Path::new(path), OpenMode::Read).map_err(failed)?;
        let bytes = file.len().map_err(failed)?;
        Ok(Self { path: path.to_owned(), file, bytes })
    }

    /// The file's name without its folder.
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    pub(super) fn begins_with(&self, magic: &[u8]) -> Result<bool, Failure> {
        let bytes = u64::try_from(magic.len()).unwrap_or(u64::MAX);
        Ok(self.bytes >= bytes && self.read(0, bytes)? == magic)
    }

    fn read(&self, position: u64, bytes: u64) -> Result<Bytes, Failure> {
        let failed =
            |error: std::io::Error| Failure::Stderr(format!("cannot read {}: {error}", self.path));
        let size = usize::try_from(bytes)
            .map_err(|_| Failure::Stderr(format!("{}: a batch of {bytes} bytes", self.path)))?;
        let mut buffer = vec![0; size];
        self.file.read_exact_at(&mut buffer, position).map_err(failed)?;
        Ok(buffer.into())
    }

    /// The bytes of a batch.
    pub(super) fn batch(&self, head: &Head) -> Result<Bytes, Failure> {
        self.read(head.position, head.bytes)
    }

    /// The fields of the batch at `position`; `None` when there is none that is whole.
    fn head(&self, position: u64) -> Result<Option<Head>, Failure> {
        let header_bytes = u64::try_from(HEADER_BYTES).unwrap_or(u64::MAX);
        if self.bytes.saturating_sub(position) < header_bytes {
            return Ok(None);
        }
        let Ok(header) = BatchHeader::parse(&self.read(position, header_bytes)?) else {
            return Ok(None);
        };
        let bytes = u64::try_from(header.size()).unwrap_or(u64::MAX);
        Ok((bytes <= self.bytes.saturating_sub(position)).then_some(Head {
            header,
            position,
            bytes,
        }))
    }

    /// The bytes from `position` on, without the reserve at the end.
    fn garbage(&self, mut position: u64) -> Result<u64, Failure> {
        const PIECE: u64 = 1 << 20;
        let mut last = position;
        let begin = position;
        while position < self.bytes {
            let piece = self.read(position, PIECE.min(self.bytes - position))?;
            if let Some(at) = piece.iter().rposition(|byte| !RESERVE_BYTES.contains(byte)) {
                last = position.saturating_add(u64::try_from(at).unwrap_or(0)).saturating_add(1);
            }
            position = position.saturating_add(PIECE);
        }
        Ok(last - begin)
    }
}

/// Walks from batch to batch.
pub(super) struct Batches<'a> {
    segment: &'a Segment,
    position: u64,
    /// After the last batch: bytes that belong to none. The reserve at the end, which a broker
    /// keeps ahead of what it writes, does not count.
    pub(super) left: u64,
}

impl<'a> Batches<'a> {
    pub(super) fn new(segment: &'a Segment, position: u64) -> Self {
        Self { segment, position, left: 0 }
    }

    pub(super) fn next(&mut self) -> Result<Option<Head>, Failure> {
        let head = self.segment.head(self.position)?;
        match &head {
            Some(head) => self.position = self.position.saturating_add(head.bytes),
            None => self.left = self.segment.garbage(self.position)?,
        }
        Ok(head)
    }
}
