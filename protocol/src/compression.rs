//! Compression of a batch's records.
//!
//! Decompression is a stream with a bound: what the compressed bytes declare is never believed, and
//! the bound is checked against what has really come out.

use std::io::{self, Read, Write};

use crate::batch::Compression;

/// Block size of the Java snappy library; every reader copes with it.
const XERIAL_BLOCK: usize = 32 << 10;
const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEADER: usize = 16;
/// zstd frames that want a larger window than 2^27 bytes are refused (the library's own bound for
/// decoders).
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Decompresses `records` as a stream that fails once more than `max` bytes have come out.
///
/// # Errors
/// `InvalidData` and the like when the bytes are not what they should be; `FileTooLarge` past the
/// bound.
pub fn decompress(codec: Compression, records: &[u8], max: u64) -> io::Result<Box<dyn Read + '_>> {
    let inner: Box<dyn Read + '_> = match codec {
        Compression::None => Box::new(records),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(records)),
        Compression::Snappy => Box::new(SnappyBlocks::new(records, max)),
        Compression::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(records)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(records)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
    };
    Ok(Box::new(Bounded { inner, left: max }))
}

/// Whether every client can read the frame of `codec` around `records`. Apache Kafka's reads of lz4
/// one frame of independent blocks that has its end mark, and nothing else; who writes such a batch
/// to a log keeps Java's consumers from all that follows it.
///
/// # Errors
/// `InvalidData`, which says what to do.
pub fn check_frame(codec: Compression, records: &[u8]) -> io::Result<()> {
    match codec {
        Compression::Lz4 => check_lz4(records),
        _ => Ok(()),
    }
}

/// Source: the LZ4 frame format, and KafkaLZ4BlockInputStream for what of it Kafka reads.
fn check_lz4(records: &[u8]) -> io::Result<()> {
    let refused = |reason: &'static str| io::Error::new(io::ErrorKind::InvalidData, reason);
    let cut = || refused("the lz4 frame has no end mark");
    let Some(([0x04, 0x22, 0x4d, 0x18, flags, _], rest)) = records.split_first_chunk::<6>() else {
        return Err(refused("it is no lz4 frame (magic 0x184d2204)"));
    };
    if flags >> 6 != 1 || flags & LZ4_INDEPENDENT == 0 {
        return Err(refused(
            "its lz4 blocks depend on each other, which Kafka's clients cannot read: have the \
             encoder make independent blocks",
        ));
    }
    let header = if flags & LZ4_CONTENT_SIZE != 0 { 8 } else { 0 }
        + if flags & LZ4_DICTIONARY != 0 { 4 } else { 0 }
        + 1;
    let sum = if flags & LZ4_BLOCK_SUM != 0 { 4 } else { 0 };
    let mut rest = rest.get(header..).ok_or_else(cut)?;
    loop {
        let (len, block) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let len = u32::from_le_bytes(*len);
        if len == 0 {
            return Ok(());
        }
        let len = usize::try_from(len & !LZ4_NOT_PACKED).map_err(io::Error::other)?;
        rest = block.get(len.saturating_add(sum)..).ok_or_else(cut)?;
    }
}

const LZ4_INDEPENDENT: u8 = 1 << 5;
const LZ4_BLOCK_SUM: u8 = 1 << 4;
const LZ4_CONTENT_SIZE: u8 = 1 << 3;
const LZ4_DICTIONARY: u8 = 1;
const LZ4_NOT_PACKED: u32 = 1 << 31;

/// As [`decompress`], into memory.
pub fn decompress_all(codec: Compression, records: &[u8], max: u64) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    decompress(codec, records, max)?.read_to_end(&mut out)?;
    Ok(out)
}

/// Compresses `records`. `level` is the codec's own; `None` is its default.
pub fn compress(codec: Compression, level: Option<i32>, records: &[u8]) -> io::Result<Vec<u8>> {
    let mut packer = Packer::new(codec, level, Vec::new())?;
    packer.write_all(records)?;
    packer.finish()
}

/// Compresses what is written, as a stream: it holds what an encoder needs, and what comes out goes
/// to `W`.
#[allow(missing_docs, reason = "one variant for each of Compression's")]
pub enum Packer<W: Write> {
    None(W),
    Gzip(flate2::write::GzEncoder<W>),
    Snappy(XerialWriter<W>),
    Lz4(Box<lz4_flex::frame::FrameEncoder<W>>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Packer<W> {
    /// Compresses into `out`. `level` is the codec's own; `None` is its default.
    ///
    /// # Errors
    /// What writing to `out` fails with, and zstd without memory.
    pub fn new(codec: Compression, level: Option<i32>, out: W) -> io::Result<Self> {
        Ok(match codec {
            Compression::None => Self::None(out),
            Compression::Gzip => {
                let level = level
                    .and_then(|level| u32::try_from(level).ok())
                    .map_or_else(flate2::Compression::default, |level| {
                        flate2::Compression::new(level.min(9))
                    });
                Self::Gzip(flate2::write::GzEncoder::new(out, level))
            }
            Compression::Snappy => Self::Snappy(XerialWriter::new(out)?),
            Compression::Lz4 => {
                // lz4_flex has the fast mode only, so `compression.lz4.level` has nothing to choose
                // from.
                let info = lz4_flex::frame::FrameInfo::new()
                    .block_size(lz4_flex::frame::BlockSize::Max64KB)
                    .block_mode(lz4_flex::frame::BlockMode::Independent);
                Self::Lz4(Box::new(lz4_flex::frame::FrameEncoder::with_frame_info(info, out)))
            }
            Compression::Zstd => Self::Zstd(zstd::stream::write::Encoder::new(
                out,
                level.unwrap_or(zstd::DEFAULT_COMPRESSION_LEVEL),
            )?),
        })
    }

    /// Ends the stream; gives what it was written to.
    ///
    /// # Errors
    /// What writing fails with.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::None(out) => Ok(out),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Snappy(writer) => writer.finish(),
            Self::Lz4(encoder) => encoder.finish().map_err(io::Error::other),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Packer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(out) => out.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Snappy(writer) => writer.write(bytes),
            Self::Lz4(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    /// Ends no block: only [`Packer::finish`] gives everything out.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Snappy in the blocks of the Java library.
pub struct XerialWriter<W> {
    out: W,
    block: Vec<u8>,
}

impl<W: Write> XerialWriter<W> {
    fn new(mut out: W) -> io::Result<Self> {
        out.write_all(XERIAL_MAGIC)?;
        out.write_all(&1u32.to_be_bytes())?;
        out.write_all(&1u32.to_be_bytes())?;
        Ok(Self { out, block: Vec::new() })
    }

    fn end_block(&mut self) -> io::Result<()> {
        if !self.block.is_empty() {
            let compressed =
                snap::raw::Encoder::new().compress_vec(&self.block).map_err(io::Error::other)?;
            self.out.write_all(
                &u32::try_from(compressed.len()).map_err(io::Error::other)?.to_be_bytes(),
            )?;
            self.out.write_all(&compressed)?;
            self.block.clear();
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(XERIAL_BLOCK.saturating_sub(self.block.len()));
        self.block.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        if self.block.len() >= XERIAL_BLOCK {
            self.end_block()?;
        }
        Ok(taken)
    }

    fn finish(mut self) -> io::Result<W> {
        self.end_block()?;
        Ok(self.out)
    }
}

struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(too_much)?;
        Ok(n)
    }
}

fn too_much() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "the batch unpacks to more than a batch may")
}

/// Snappy in xerial's blocks, or, without their header, as one raw block.
struct SnappyBlocks<'a> {
    rest: &'a [u8],
    raw: bool,
    /// What may still come out of the blocks.
    left: u64,
    block: Vec<u8>,
    read: usize,
}

impl<'a> SnappyBlocks<'a> {
    fn new(records: &'a [u8], max: u64) -> Self {
        let framed = records.starts_with(XERIAL_MAGIC) && records.len() >= XERIAL_HEADER;
        let rest = if framed { records.get(XERIAL_HEADER..).unwrap_or_default() } else { records };
        Self { rest, raw: !framed, left: max, block: Vec::new(), read: 0 }
    }

    fn next_block(&mut self) -> io::Result<()> {
        let damaged = |reason: &'static str| io::Error::new(io::ErrorKind::InvalidData, reason);
        let compressed = if self.raw {
            std::mem::take(&mut self.rest)
        } else {
            let (len, rest) = self
                .rest
                .split_first_chunk::<4>()
                .ok_or_else(|| damaged("snappy block has no length"))?;
            let (block, rest) = usize::try_from(u32::from_be_bytes(*len))
                .ok()
                .and_then(|len| rest.split_at_checked(len))
                .ok_or_else(|| damaged("snappy block reaches past the end"))?;
            self.rest = rest;
            block
        };
        // The format cannot pack more than 64 bytes into 3; a length beyond that is a lie and is
        // not allocated.
        let len = snap::raw::decompress_len(compressed).map_err(io::Error::other)?;
        if len > compressed.len().saturating_mul(22).saturating_add(64) {
            return Err(damaged("snappy block declares more bytes than it can hold"));
        }
        // Before it is unpacked: a raw block is the whole batch.
        self.left = self.left.checked_sub(len as u64).ok_or_else(too_much)?;
        self.block.resize(len, 0);
        let n = snap::raw::Decoder::new()
            .decompress(compressed, &mut self.block)
            .map_err(io::Error::other)?;
        self.block.truncate(n);
        self.read = 0;
        Ok(())
    }
}

impl Read for SnappyBlocks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.block.len() {
            if self.rest.is_empty() {
                return Ok(0);
            }
            self.next_block()?;
        }
        let ready = self.block.get(self.read..).unwrap_or_default();
        let n = ready.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..n), ready.get(..n)) {
            to.copy_from_slice(from);
        }
        self.read += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODECS: [Compression; 5] = [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ];

    #[test]
    fn every_codec_reads_back_what_it_wrote() {
        let data: Vec<u8> = (0..200_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
        for codec in CODECS {
            let packed = compress(codec, None, &data).unwrap();
            assert_eq!(
                decompress_all(codec, &packed, data.len() as u64).unwrap(),
                data,
                "{codec:?}"
            );
            assert!(
                decompress_all(codec, &packed, data.len() as u64 - 1).is_err(),
                "{codec:?} passes the bound"
            );
        }
        let raw = snap::raw::Encoder::new().compress_vec(&data).unwrap();
        assert_eq!(decompress_all(Compression::Snappy, &raw, 1 << 30).unwrap(), data);
    }

    /// Java's consumers stop for ever at what they cannot read.
    #[test]
    fn only_lz4_frames_that_kafka_reads_pass() {
        use lz4_flex::frame::{BlockMode, FrameEncoder, FrameInfo};
        let data: Vec<u8> = (0..50_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
        let frame = |info: FrameInfo| {
            let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
            encoder.write_all(&data).unwrap();
            encoder.finish().unwrap()
        };
        let passes = |records: &[u8]| check_frame(Compression::Lz4, records).is_ok();
        let independent = FrameInfo::new().block_mode(BlockMode::Independent);
        let whole = frame(independent.clone());
        assert!(passes(&whole) && passes(&compress(Compression::Lz4, None, &data).unwrap()));
        assert!(passes(&compress(Compression::Lz4, None, &[]).unwrap()));
        for info in [
            independent.clone().content_size(Some(data.len() as u64)),
            independent.clone().block_checksums(true).content_checksum(true),
        ] {
            assert!(passes(&frame(info)));
        }
        assert!(!passes(&frame(FrameInfo::new().block_mode(BlockMode::Linked))));
        assert!((0..whole.len()).all(|len| !passes(&whole[..len])), "an end mark is there");
        assert!(!passes(b"\x02\x21\x4c\x18\x04\0\0\0abcd"), "a legacy frame");
        assert!(check_frame(Compression::Zstd, b"anything").is_ok());
    }

    #[test]
    fn declared_sizes_are_not_believed() {
        let mut lie = vec![0xff, 0xff, 0xff, 0xff, 0x0f];
        lie.extend([0; 20]);
        assert!(decompress_all(Compression::Snappy, &lie, u64::MAX).is_err());
        for codec in CODECS.into_iter().skip(1) {
            assert!(decompress_all(codec, b"not compressed at all", 1 << 20).is_err(), "{codec:?}");
        }
    }

    /// A raw block of snappy is unpacked at once, however large it is.
    #[test]
    fn what_unpacks_to_too_much_is_not_unpacked_first() {
        let packed = snap::raw::Encoder::new().compress_vec(&vec![0; 1_000_000]).unwrap();
        let mut blocks = SnappyBlocks::new(&packed, 999_999);
        assert_eq!(blocks.next_block().unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(blocks.block.capacity(), 0);
        assert!(SnappyBlocks::new(&packed, 1_000_000).next_block().is_ok());
    }
}
