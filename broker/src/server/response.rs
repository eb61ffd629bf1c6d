//! A response on its way to the socket: bytes in memory and ranges of files, sent without being
//! copied together.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use letterbox_env::{BoxStream, Env, FileRef};
use letterbox_storage::{AnswerFile, ColdReads};
use tokio::io::{AsyncWriteExt, Interest};

use super::budget::Share;

/// One piece of a response.
#[derive(Clone)]
pub(crate) enum Part {
    /// Bytes in memory.
    Bytes(Bytes),
    /// `len` bytes of a file from `position` on.
    File {
        /// The file; stays readable while it is held, even when the segment is removed.
        file: FileRef,
        /// Where the bytes begin.
        position: u64,
        /// How many.
        len: u64,
        /// Turns for reads that wait for the device.
        cold_reads: ColdReads,
        /// Counts the file while it is held.
        counted: AnswerFile,
    },
}

impl Part {
    /// Bytes in the piece.
    #[must_use]
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }
}

/// A whole frame, size first.
pub(crate) struct Response {
    /// In front of `parts`: most answers are nothing else, and need no list.
    first: Bytes,
    parts: Vec<Part>,
    /// What it holds of the account until it is written. In a box: a small answer holds nothing.
    share: Option<Box<Share>>,
}

impl From<Bytes> for Response {
    fn from(bytes: Bytes) -> Self {
        Self { first: bytes, parts: Vec::new(), share: None }
    }
}

impl From<Vec<Part>> for Response {
    fn from(parts: Vec<Part>) -> Self {
        Self { first: Bytes::new(), parts, share: None }
    }
}

/// Below this a file range is read and written like memory; above it is worth a `sendfile`.
const SENDFILE_MIN: u64 = 32 * 1024;
/// A file range goes out in chunks of this size, so that one cold chunk delays nobody else.
const CHUNK: u64 = 1024 * 1024;

impl Response {
    /// Bytes in the frame.
    #[must_use]
    pub(crate) fn len(&self) -> u64 {
        self.first.len() as u64 + self.parts.iter().map(Part::len).sum::<u64>()
    }

    /// The frame, which gives `share` back when it is written.
    #[must_use]
    pub(crate) fn holding(mut self, share: Share) -> Self {
        match &mut self.share {
            Some(held) => held.add(share),
            None if share.bytes() > 0 => self.share = Some(Box::new(share)),
            None => {}
        }
        self
    }

    /// Bytes of it that lie in memory.
    #[must_use]
    pub(crate) fn in_memory(&self) -> usize {
        let bytes = |part: &Part| if let Part::Bytes(bytes) = part { bytes.len() } else { 0 };
        self.first.len() + self.parts.iter().map(bytes).sum::<usize>()
    }

    /// Whether nothing is left to be written.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its pieces, when all of them lie in memory.
    #[must_use]
    pub(crate) fn in_memory_parts(&self) -> Option<impl Iterator<Item = IoSlice<'_>>> {
        let bytes = |part: &'_ Part| matches!(part, Part::Bytes(_));
        self.parts.iter().all(bytes).then(|| {
            let rest = self
                .parts
                .iter()
                .filter_map(|part| if let Part::Bytes(bytes) = part { Some(bytes) } else { None });
            let all = std::iter::once(&self.first).chain(rest);
            all.filter(|bytes| !bytes.is_empty()).map(|bytes| IoSlice::new(bytes))
        })
    }

    /// All of it, when that is one piece in memory.
    #[must_use]
    pub(crate) fn one_piece(&self) -> Option<&Bytes> {
        self.parts.is_empty().then_some(&self.first)
    }

    /// Takes off what was written: its first `written` bytes in memory. Tells what of `written` was
    /// not its own.
    pub(crate) fn advance(&mut self, mut written: usize) -> usize {
        let rest = self
            .parts
            .iter_mut()
            .map_while(|part| if let Part::Bytes(bytes) = part { Some(bytes) } else { None });
        for bytes in std::iter::once(&mut self.first).chain(rest) {
            let own = written.min(bytes.len());
            bytes.advance(own);
            written -= own;
        }
        written
    }

    /// Bytes of memory that wait with it.
    #[must_use]
    pub(crate) fn held(&self) -> usize {
        self.share.as_ref().map_or(0, |share| share.bytes())
    }

    /// Writes the frame, and counts in `taken` what the other side has taken. Not cancel safe:
    /// after a cancelled call the connection is of no use.
    ///
    /// # Errors
    /// The socket's own, or the disk's; either way the connection must be closed.
    pub(crate) async fn write(
        mut self,
        stream: &mut BoxStream,
        env: &Env,
        taken: &AtomicU64,
    ) -> io::Result<()> {
        if self.parts.is_empty() {
            return write_bytes(stream, &mut self.first, taken).await;
        }
        let mut waiting: Vec<Bytes> = Vec::new();
        waiting.extend(Some(self.first).filter(|first| !first.is_empty()));
        for part in self.parts {
            match part {
                Part::Bytes(bytes) => waiting.push(bytes),
                Part::File { file, position, len, cold_reads, counted: _counted }
                    if len < SENDFILE_MIN
                        || stream.as_tcp().is_none()
                        || file.as_fd().is_none() =>
                {
                    let mut at = position;
                    let end = position + len;
                    while at < end {
                        let chunk = (end - at).min(CHUNK);
                        waiting.push(read_chunk(env, &cold_reads, &file, at, chunk).await?);
                        write_all(stream, &mut waiting, taken).await?;
                        at += chunk;
                    }
                }
                Part::File { file, position, len, cold_reads, counted: _counted } => {
                    write_all(stream, &mut waiting, taken).await?;
                    let range = (position, len);
                    send_file(stream, env, &cold_reads, &file, range, taken).await?;
                }
            }
        }
        write_all(stream, &mut waiting, taken).await
    }
}

async fn write_bytes(
    stream: &mut BoxStream,
    bytes: &mut Bytes,
    taken: &AtomicU64,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = stream.write(bytes).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        taken.fetch_add(written as u64, Ordering::Relaxed);
        bytes.advance(written);
    }
    Ok(())
}

async fn write_all(
    stream: &mut BoxStream,
    waiting: &mut Vec<Bytes>,
    taken: &AtomicU64,
) -> io::Result<()> {
    let mut start = 0;
    let mut skip = 0;
    while start < waiting.len() {
        let written = match waiting.as_slice() {
            [only] => stream.write(only.get(skip..).unwrap_or_default()).await?,
            _ => {
                let slices: Vec<IoSlice<'_>> = waiting
                    .iter()
                    .skip(start)
                    .take(64)
                    .enumerate()
                    .map(|(i, bytes)| {
                        IoSlice::new(bytes.get(if i == 0 { skip } else { 0 }..).unwrap_or_default())
                    })
                    .collect();
                stream.write_vectored(&slices).await?
            }
        };
        taken.fetch_add(written as u64, Ordering::Relaxed);
        let mut left = written;
        let mut moved = false;
        while let Some(bytes) = waiting.get(start) {
            let rest = bytes.len() - skip;
            if left < rest {
                skip += left;
                break;
            }
            left -= rest;
            start += 1;
            skip = 0;
            moved = true;
        }
        if written == 0 && !moved {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    waiting.clear();
    Ok(())
}

/// Reads a range: at once when it is in the page cache, else off the async threads.
async fn read_chunk(
    env: &Env,
    cold_reads: &ColdReads,
    file: &FileRef,
    at: u64,
    len: u64,
) -> io::Result<Bytes> {
    let mut buffer = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?];
    if file.read_at_nowait(&mut buffer, at)? == Some(buffer.len()) {
        return Ok(buffer.into());
    }
    let file = file.clone();
    let read = move || file.read_exact_at(&mut buffer, at).map(|()| Bytes::from(buffer));
    cold_reads.run(env, read).await
}

/// Reads a cold range into the page cache, off the async threads. What is read is not kept: a slow
/// reader holds no memory of the broker.
async fn read_in(
    env: &Env,
    cold_reads: &ColdReads,
    file: &FileRef,
    from: u64,
    to: u64,
) -> io::Result<()> {
    let file = file.clone();
    let read = move || {
        let mut buffer = vec![0; 64 * 1024];
        let mut at = from;
        while at < to {
            let len = usize::try_from(to - at).unwrap_or(usize::MAX).min(buffer.len());
            file.read_exact_at(buffer.get_mut(..len).unwrap_or_default(), at)?;
            at += len as u64;
        }
        Ok(())
    };
    cold_reads.run(env, read).await
}

/// Sends a range past user space while it is in the page cache; what is cold is first read in off
/// the async threads.
async fn send_file(
    stream: &mut BoxStream,
    env: &Env,
    cold_reads: &ColdReads,
    file: &FileRef,
    (position, len): (u64, u64),
    taken: &AtomicU64,
) -> io::Result<()> {
    let end = position + len;
    let mut at = position;
    while at < end {
        let chunk_end = end.min(at + CHUNK);
        if !is_warm(file, at, chunk_end)? {
            read_in(env, cold_reads, file, at, chunk_end).await?;
        }
        let (Some(tcp), Some(fd)) = (stream.as_tcp(), file.as_fd()) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        while at < chunk_end {
            let mut offset = at;
            let count = usize::try_from(chunk_end - at).unwrap_or(usize::MAX);
            #[expect(
                clippy::disallowed_methods,
                reason = "both ends are the seam's own, and only real ones have descriptors"
            )]
            let sent = tcp
                .async_io(Interest::WRITABLE, || {
                    Ok(rustix::fs::sendfile(tcp.as_fd(), fd, Some(&mut offset), count)?)
                })
                .await?;
            if sent == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            taken.fetch_add(sent as u64, Ordering::Relaxed);
            at += sent as u64;
        }
    }
    Ok(())
}

/// Probes one byte in every 64 KiB: readahead brings neighbours in together, so this finds cold
/// ranges without touching each page.
fn is_warm(file: &FileRef, from: u64, to: u64) -> io::Result<bool> {
    let mut byte = [0];
    let mut at = from;
    while at < to {
        if file.read_at_nowait(&mut byte, at)?.is_none() {
            return Ok(false);
        }
        at += 64 * 1024;
    }
    Ok(file.read_at_nowait(&mut byte, to.saturating_sub(1).max(from))?.is_some())
}
