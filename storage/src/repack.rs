//! The records of one batch as a stream, for compaction: told apart by their keys, and copied, some
//! of them, into a batch that takes its place.
//!
//! Nothing is held but what the codecs need, whatever the batch or one of its records unpacks to.

use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufRead, BufReader, Read, Write};

use letterbox_protocol::batch::{Batch, BatchHeader, put_varlong};
use letterbox_protocol::compression::decompress;
use letterbox_protocol::model::Offset;

use super::validate::varlong;

const BUFFER: usize = 16 << 10;
/// A key is hashed in pieces of this size, so that its hash does not depend on how it arrives.
const KEY_PIECE: usize = 4 << 10;

/// What compaction looks at of a record.
pub(super) struct Seen {
    pub(super) offset: Offset,
    pub(super) timestamp_delta: i64,
    /// The key's hash; `None` without a key.
    pub(super) key: Option<u128>,
    /// Its value is null.
    pub(super) is_tombstone: bool,
}

/// The records of a batch, in their order.
pub(super) struct Records<'a> {
    stream: BufReader<Box<dyn Read + 'a>>,
    base_offset: Offset,
    left: i32,
}

/// A record of which the beginning was read.
struct Begun {
    attributes: u8,
    timestamp_delta: i64,
    offset_delta: i64,
    /// Bytes that follow.
    rest: u64,
}

impl<'a> Records<'a> {
    /// Of a whole batch; it may unpack to `max` bytes.
    pub(super) fn of(batch: &'a [u8], header: &BatchHeader, max: u64) -> io::Result<Self> {
        let (batch, _) = Batch::split(batch).map_err(io::Error::other)?;
        let codec = header.compression().map_err(io::Error::other)?;
        let unpacked = decompress(codec, batch.records_bytes(), max)?;
        let stream = BufReader::with_capacity(BUFFER, unpacked);
        Ok(Self { stream, base_offset: header.base_offset, left: header.records_count })
    }

    fn begin(&mut self) -> io::Result<Option<Begun>> {
        if self.left <= 0 {
            return Ok(None);
        }
        self.left -= 1;
        let length = u64::try_from(varlong(&mut self.stream, &mut 0)?).map_err(|_| odd())?;
        let (mut used, mut attributes) = (1, [0]);
        self.stream.read_exact(&mut attributes)?;
        let timestamp_delta = varlong(&mut self.stream, &mut used)?;
        let offset_delta = varlong(&mut self.stream, &mut used)?;
        let rest = length.checked_sub(used).ok_or_else(odd)?;
        let [attributes] = attributes;
        Ok(Some(Begun { attributes, timestamp_delta, offset_delta, rest }))
    }

    /// The next record, its key hashed with `seed`.
    pub(super) fn see(&mut self, seed: u128) -> io::Result<Option<Seen>> {
        let Some(begun) = self.begin()? else { return Ok(None) };
        let mut used = 0;
        let key = match u64::try_from(varlong(&mut self.stream, &mut used)?) {
            Ok(len) => {
                used = used.saturating_add(len);
                Some(hash(&mut self.stream, seed, len)?)
            }
            Err(_) => None,
        };
        let is_tombstone = varlong(&mut self.stream, &mut used)? < 0;
        copy(&mut self.stream, begun.rest.checked_sub(used).ok_or_else(odd)?, &mut io::sink())?;
        Ok(Some(Seen {
            offset: self.base_offset.saturating_add(begun.offset_delta),
            timestamp_delta: begun.timestamp_delta,
            key,
            is_tombstone,
        }))
    }

    /// Copies the records that `stays` says, in their order, with the timestamp deltas that `delta`
    /// makes of theirs.
    pub(super) fn copy(
        mut self,
        stays: &Bits,
        delta: impl Fn(i64) -> i64,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let (mut at, mut head, mut length) = (0, Vec::new(), Vec::new());
        while let Some(begun) = self.begin()? {
            if stays.get(at) {
                head.clear();
                head.push(begun.attributes);
                put_varlong(&mut head, delta(begun.timestamp_delta));
                put_varlong(&mut head, begun.offset_delta);
                length.clear();
                let len = begun.rest.saturating_add(head.len() as u64);
                put_varlong(&mut length, i64::try_from(len).map_err(|_| odd())?);
                out.write_all(&length)?;
                out.write_all(&head)?;
                copy(&mut self.stream, begun.rest, out)?;
            } else {
                copy(&mut self.stream, begun.rest, &mut io::sink())?;
            }
            at += 1;
        }
        Ok(())
    }
}

/// Keys are told apart by this.
fn hash(stream: &mut impl BufRead, seed: u128, len: u64) -> io::Result<u128> {
    let mut halves = [0u8, 1].map(|salt| {
        let mut hasher = DefaultHasher::new();
        hasher.write_u128(seed);
        hasher.write_u8(salt);
        hasher.write_u64(len);
        hasher
    });
    let (mut piece, mut left) = ([0; KEY_PIECE], len);
    while left > 0 {
        let size = usize::try_from(left).unwrap_or(KEY_PIECE).min(KEY_PIECE);
        let Some(piece) = piece.get_mut(..size) else { break };
        stream.read_exact(piece)?;
        halves.iter_mut().for_each(|hasher| hasher.write(piece));
        left -= size as u64;
    }
    let [high, low] = halves.map(|hasher| u128::from(hasher.finish()));
    Ok(high << 64 | low)
}

fn copy(stream: &mut impl BufRead, len: u64, out: &mut impl Write) -> io::Result<()> {
    match io::copy(&mut stream.take(len), out)? {
        copied if copied == len => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn odd() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a record has another length than it says")
}

/// A list of yes and no.
#[derive(Default)]
pub(super) struct Bits {
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    pub(super) fn push(&mut self, bit: bool) {
        let at = self.len % 64;
        if at == 0 {
            self.words.push(0);
        }
        if let Some(word) = self.words.last_mut() {
            *word |= u64::from(bit) << at;
        }
        self.len += 1;
    }

    fn get(&self, at: usize) -> bool {
        self.words.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }
}
