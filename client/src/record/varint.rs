//! Zigzag varints of at most 5 and 10 bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::BatchError;

pub(super) fn put_varint(to: &mut BytesMut, value: i32) {
    put_unsigned(to, u64::from(((value << 1) ^ (value >> 31)).cast_unsigned()));
}

pub(super) fn put_varlong(to: &mut BytesMut, value: i64) {
    put_unsigned(to, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

pub(super) fn take_varint(from: &mut Bytes) -> Result<i32, BatchError> {
    let raw = u32::try_from(take_unsigned(from, 5)?).map_err(|_| BatchError::Invalid("varint"))?;
    Ok((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
}

pub(super) fn take_varlong(from: &mut Bytes) -> Result<i64, BatchError> {
    let raw = take_unsigned(from, 10)?;
    Ok((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
}

pub(super) fn varint_len(value: i32) -> usize {
    unsigned_len(u64::from(((value << 1) ^ (value >> 31)).cast_unsigned()))
}

pub(super) fn varlong_len(value: i64) -> usize {
    unsigned_len(((value << 1) ^ (value >> 63)).cast_unsigned())
}

fn put_unsigned(to: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        to.put_u8(u8::try_from(value & 0x7f).unwrap_or(0) | 0x80);
        value >>= 7;
    }
    to.put_u8(u8::try_from(value).unwrap_or(0));
}

fn take_unsigned(from: &mut Bytes, bytes_max: u32) -> Result<u64, BatchError> {
    let mut value = 0u64;
    for index in 0..bytes_max {
        let byte = from.try_get_u8().map_err(|_| BatchError::Invalid("varint"))?;
        value |= u64::from(byte & 0x7f).checked_shl(index * 7).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(BatchError::Invalid("varint"))
}

fn unsigned_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros();
    usize::try_from(bits.div_ceil(7)).unwrap_or(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_with_the_length_that_was_foretold() {
        for value in [0, 1, -1, 63, 64, -64, -65, 300, -300, 1 << 20, i32::MAX, i32::MIN] {
            let mut bytes = BytesMut::new();
            put_varint(&mut bytes, value);
            assert_eq!(bytes.len(), varint_len(value));
            assert_eq!(take_varint(&mut bytes.freeze()).unwrap(), value);
        }
        for value in [0, -1, i64::from(i32::MAX) * 9, i64::MAX, i64::MIN] {
            let mut bytes = BytesMut::new();
            put_varlong(&mut bytes, value);
            assert_eq!(bytes.len(), varlong_len(value));
            assert_eq!(take_varlong(&mut bytes.freeze()).unwrap(), value);
        }
        assert!(take_varint(&mut Bytes::from_static(&[0xff; 6])).is_err());
        assert!(take_varint(&mut Bytes::from_static(&[0x80])).is_err());
    }
}
