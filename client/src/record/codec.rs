//! Compression of record batches, in the framings that other clients read.

use std::io::{Read, Write};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::BatchError;

/// What snappy-java (Xerial) puts in front of its blocks: magic, version 1, compatible with 1.
const XERIAL: [u8; 16] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1];
/// Bytes of one block of the Xerial framing, before compression.
const XERIAL_BLOCK: usize = 32 * 1024;

/// How the records of a batch are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Snappy in snappy-java's framing.
    Snappy,
    /// LZ4 frames.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// By the name in `compression.type`; `None` for a name that does not exist.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd].into_iter().find(|codec| codec.name() == name)
    }

    /// The name in `compression.type`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    pub(super) fn attributes(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    pub(super) fn from_attributes(bits: i16) -> Result<Self, BatchError> {
        let all = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];
        all.into_iter().find(|codec| codec.attributes() == bits).ok_or(BatchError::Compression(bits))
    }

    pub(super) fn compress(self, data: &[u8]) -> Result<Bytes, BatchError> {
        let failed = |reason: String| BatchError::Decompress { codec: self.name(), reason };
        let result = match self {
            Self::None => return Ok(Bytes::copy_from_slice(data)),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(data).and_then(|()| encoder.finish())
            }
            Self::Snappy => return compress_xerial(data).map_err(|error| failed(error.to_string())),
            Self::Lz4 => {
                // Independent blocks of 64 KiB, as Java's client writes them.
                let info = lz4_flex::frame::FrameInfo::new().block_size(lz4_flex::frame::BlockSize::Max64KB);
                let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
                encoder.write_all(data).and_then(|()| encoder.finish().map_err(std::io::Error::other))
            }
            Self::Zstd => zstd::stream::encode_all(data, 3),
        };
        result.map(Bytes::from).map_err(|error| failed(error.to_string()))
    }

    pub(super) fn decompress(self, data: &Bytes, bytes_max: usize) -> Result<Bytes, BatchError> {
        let failed = |reason: String| BatchError::Decompress { codec: self.name(), reason };
        match self {
            Self::None => Ok(data.clone()),
            Self::Gzip => read_bounded(flate2::read::MultiGzDecoder::new(data.as_ref()), bytes_max).map_err(failed),
            Self::Snappy => decompress_snappy(data, bytes_max).map_err(failed),
            Self::Lz4 => read_bounded(lz4_flex::frame::FrameDecoder::new(data.as_ref()), bytes_max).map_err(failed),
            Self::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(data.as_ref()).map_err(|error| failed(error.to_string()))?;
                read_bounded(decoder, bytes_max).map_err(failed)
            }
        }
    }
}

fn read_bounded(reader: impl Read, bytes_max: usize) -> Result<Bytes, String> {
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    let mut out = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut out).map_err(|error| error.to_string())?;
    if out.len() > bytes_max {
        return Err(format!("more than {bytes_max} bytes"));
    }
    Ok(out.into())
}

fn compress_xerial(data: &[u8]) -> Result<Bytes, snap::Error> {
    let mut out = BytesMut::from(&XERIAL[..]);
    let mut encoder = snap::raw::Encoder::new();
    for block in data.chunks(XERIAL_BLOCK) {
        let compressed = encoder.compress_vec(block)?;
        out.put_u32(u32::try_from(compressed.len()).unwrap_or(u32::MAX));
        out.put_slice(&compressed);
    }
    Ok(out.freeze())
}

/// Both framings that producers write: Xerial's, and one bare block (librdkafka).
fn decompress_snappy(data: &Bytes, bytes_max: usize) -> Result<Bytes, String> {
    if data.get(..8) != XERIAL.get(..8) {
        return decompress_block(data, bytes_max).map(Bytes::from);
    }
    let mut rest = data.clone();
    rest.advance(XERIAL.len().min(rest.len()));
    let mut out = Vec::new();
    while !rest.is_empty() {
        let length = rest.try_get_u32().map_err(|_| "a block is cut off".to_owned())?;
        let length = usize::try_from(length).ok().filter(|length| *length <= rest.len()).ok_or("a block is cut off")?;
        let block = rest.split_to(length);
        out.extend_from_slice(&decompress_block(&block, bytes_max - out.len())?);
    }
    Ok(out.into())
}

fn decompress_block(block: &[u8], bytes_max: usize) -> Result<Vec<u8>, String> {
    let length = snap::raw::decompress_len(block).map_err(|error| error.to_string())?;
    if length > bytes_max {
        return Err(format!("more than {bytes_max} bytes"));
    }
    // Snappy cannot make more than 64 bytes of 3 (a copy element), so a length far above that is a lie.
    if length > block.len().saturating_mul(32).saturating_add(64) {
        return Err("the length does not fit the data".to_owned());
    }
    snap::raw::Decoder::new().decompress_vec(block).map_err(|error| error.to_string())
}
