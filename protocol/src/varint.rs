//! Kafka's unsigned varints (KIP-482): seven bits a byte, the low ones first, at most five bytes.

use bytes::BufMut;

/// Why no number could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VarintError {
    /// The bytes end within it.
    Truncated,
    /// It has more than 32 bits.
    TooLong,
}

/// Takes a number from the front of `bytes`.
///
/// # Errors
/// There is none of 32 bits.
#[inline]
pub fn take(bytes: &mut &[u8]) -> Result<u32, VarintError> {
    let mut value = 0_u32;
    for shift in [0, 7, 14, 21, 28] {
        let (byte, rest) = bytes.split_first().ok_or(VarintError::Truncated)?;
        *bytes = rest;
        // The fifth byte has the upper four bits and ends the number.
        if shift == 28 && *byte > 0x0f {
            break;
        }
        value |= u32::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Ok(value);
        }
    }
    Err(VarintError::TooLong)
}

/// Puts a number behind what `bytes` has.
pub fn put(bytes: &mut impl BufMut, mut value: u32) {
    while value >= 0x80 {
        bytes.put_u8((value as u8) | 0x80);
        value >>= 7;
    }
    bytes.put_u8(value as u8);
}
