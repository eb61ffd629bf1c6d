//! Walks the bytes of a log segment file, independently of the broker's own code: is every batch
//! whole, does every checksum hold, do offsets go on without a gap or a step back?
//!
//! The format is Kafka's record batch, magic 2 (kafka.apache.org, "Message Format").

/// What is wrong with a segment, and at which byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The file ends inside a batch.
    Cut {
        /// Byte position of the batch.
        at: u64,
    },
    /// A length that cannot be.
    Length {
        /// Byte position of the batch.
        at: u64,
        /// What stands there.
        length: i32,
    },
    /// Not magic 2.
    Magic {
        /// Byte position of the batch.
        at: u64,
        /// What stands there.
        magic: u8,
    },
    /// The CRC-32C does not hold.
    Checksum {
        /// Byte position of the batch.
        at: u64,
    },
    /// The base offset is not the one that follows the batch before.
    Offset {
        /// Byte position of the batch.
        at: u64,
        /// What had to follow.
        expected: i64,
        /// What stands there.
        found: i64,
    },
    /// Something other than a broker's reserve after the last batch.
    Tail {
        /// Byte position.
        at: u64,
    },
}

/// What a whole segment holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Batches.
    pub batches: u64,
    /// The offset after the last record.
    pub end_offset: i64,
    /// Bytes of batches; what follows is reserve.
    pub len: u64,
}

/// Bytes before the batch length counts.
const LOG_OVERHEAD: usize = 12;
/// The smallest batch: a header without records.
const HEADER_LEN: usize = 61;

/// What a broker keeps ahead of the last batch is filled with: Letterbox's own byte, and zeros from
/// earlier versions and file systems.
const RESERVE_BYTES: [u8; 2] = [0x7f, 0];

/// Walks the segment that begins at `base_offset`.
///
/// # Errors
/// The first [`Fault`].
pub fn walk(bytes: &[u8], base_offset: i64) -> Result<Segment, Fault> {
    let mut segment = Segment { end_offset: base_offset, ..Segment::default() };
    let mut rest = bytes;
    while let Some(prefix) = rest.get(..LOG_OVERHEAD) {
        if prefix.iter().all(|byte| RESERVE_BYTES.contains(byte)) {
            break;
        }
        let at = segment.len;
        let length = i32::from_be_bytes(field(rest, 8).ok_or(Fault::Cut { at })?);
        let len = usize::try_from(length).ok().and_then(|length| length.checked_add(LOG_OVERHEAD));
        let len = len.filter(|len| *len >= HEADER_LEN).ok_or(Fault::Length { at, length })?;
        let batch = rest.get(..len).ok_or(Fault::Cut { at })?;
        segment.end_offset = check_batch(batch, at, segment.end_offset)?;
        segment.batches += 1;
        segment.len += len as u64;
        rest = &rest[len..];
    }
    match rest.iter().position(|byte| !RESERVE_BYTES.contains(byte)) {
        Some(more) => Err(Fault::Tail { at: segment.len + more as u64 }),
        None => Ok(segment),
    }
}

/// Checks one whole batch; the answer is the offset after it.
fn check_batch(batch: &[u8], at: u64, expected: i64) -> Result<i64, Fault> {
    let base = i64::from_be_bytes(field(batch, 0).ok_or(Fault::Cut { at })?);
    let [magic] = field(batch, 16).ok_or(Fault::Cut { at })?;
    let crc = u32::from_be_bytes(field(batch, 17).ok_or(Fault::Cut { at })?);
    let last_delta = i32::from_be_bytes(field(batch, 23).ok_or(Fault::Cut { at })?);
    if magic != 2 {
        return Err(Fault::Magic { at, magic });
    }
    if crc != crc32c(batch.get(21..).ok_or(Fault::Cut { at })?) {
        return Err(Fault::Checksum { at });
    }
    if base != expected || last_delta < 0 {
        return Err(Fault::Offset { at, expected, found: base });
    }
    Ok(base + i64::from(last_delta) + 1)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = crc_table(0x82F6_3B78);
    !bytes
        .iter()
        .fold(u32::MAX, |crc, byte| (crc >> 8) ^ TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)])
}

/// The table of a reflected CRC with this polynomial.
pub(crate) const fn crc_table(polynomial: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ polynomial } else { crc >> 1 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(base: i64, records: i32) -> Vec<u8> {
        let mut bytes = vec![7; HEADER_LEN + 40];
        let length = i32::try_from(bytes.len() - LOG_OVERHEAD).unwrap();
        bytes[..8].copy_from_slice(&base.to_be_bytes());
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        bytes[16] = 2;
        bytes[23..27].copy_from_slice(&(records - 1).to_be_bytes());
        let crc = crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    #[test]
    fn checksum_is_crc32c() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn whole_segments_with_and_without_a_reserve_are_fine() {
        let whole = [batch(100, 3), batch(103, 1)].concat();
        let expected = Segment { batches: 2, end_offset: 104, len: whole.len() as u64 };
        assert_eq!(walk(&whole, 100), Ok(expected));
        for reserve in [
            vec![0; 5000],
            vec![0x7f; 5000],
            vec![0x7f; 5],
            [vec![0x7f; 500], vec![0; 20]].concat(),
        ] {
            assert_eq!(walk(&[&whole[..], &reserve].concat(), 100), Ok(expected));
        }
        assert_eq!(walk(&[], 7), Ok(Segment { end_offset: 7, ..Segment::default() }));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let whole = [batch(0, 2), batch(2, 2)].concat();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            // The leader epoch is outside of the checksum: the leader writes it.
            let in_epoch = (12..16).contains(&(at % batch(0, 2).len()));
            assert_eq!(walk(&bytes, 0).is_err(), !in_epoch, "byte {at}");
            if at % batch(0, 2).len() != 0 {
                assert!(
                    walk(&whole[..at], 0).is_err()
                        || whole[..at].iter().skip(batch(0, 2).len()).all(|b| *b == 0),
                    "cut at {at}"
                );
            }
        }
    }

    #[test]
    fn gaps_repetitions_and_rubbish_are_named() {
        let at = batch(0, 2).len() as u64;
        for (second, fault) in [
            (batch(3, 1), Fault::Offset { at, expected: 2, found: 3 }),
            (batch(0, 2), Fault::Offset { at, expected: 2, found: 0 }),
            (vec![9; 4], Fault::Tail { at }),
        ] {
            assert_eq!(walk(&[batch(0, 2), second].concat(), 0), Err(fault));
        }
    }
}
