//! Writing Kafka's primitive types, for the messages that are encoded by hand.

use bytes::{BufMut, BytesMut};

use super::check::STRING_MAX;
use super::varint;

/// Kafka's primitive types at the end of a buffer. Lengths and counts are those of the flexible
/// form (varint of length + 1) when `flexible`, else int16 for strings and int32 for arrays and
/// records.
pub(super) trait Put: BufMut + Sized {
    fn int16(&mut self, value: i16) {
        self.put_i16(value);
    }

    fn int32(&mut self, value: i32) {
        self.put_i32(value);
    }

    fn int64(&mut self, value: i64) {
        self.put_i64(value);
    }

    fn uuid(&mut self, value: uuid::Uuid) {
        self.put_slice(value.as_bytes());
    }

    /// An unsigned varint: seven bits per byte, low bits first.
    fn varint(&mut self, value: u32) {
        varint::put(self, value);
    }

    /// An empty section of tagged fields (KIP-482).
    fn no_tags(&mut self) {
        self.put_u8(0);
    }

    /// The count of an array, or null.
    fn count(&mut self, flexible: bool, count: Option<usize>) {
        match (flexible, count) {
            (true, None) => self.varint(0),
            (true, Some(count)) => self.varint(size_u32(count).saturating_add(1)),
            (false, None) => self.put_i32(-1),
            (false, Some(count)) => self.put_i32(size_i32(count)),
        }
    }

    /// The length of records, or null.
    fn records_length(&mut self, flexible: bool, length: Option<usize>) {
        self.count(flexible, length);
    }

    /// A string that cannot be null.
    fn string(&mut self, flexible: bool, value: &str) {
        self.nullable_string(flexible, Some(value));
    }

    /// A string or null. Kafka's strings have at most 32767 bytes; a longer one is cut, at a
    /// character.
    fn nullable_string(&mut self, flexible: bool, value: Option<&str>) {
        let Some(value) = value else {
            return if flexible { self.varint(0) } else { self.put_i16(-1) };
        };
        let value = cut(value);
        if flexible {
            self.varint(size_u32(value.len()).saturating_add(1));
        } else {
            self.put_i16(i16::try_from(value.len()).unwrap_or(i16::MAX));
        }
        self.put_slice(value.as_bytes());
    }
}

/// For what the codec writes the rest of.
impl Put for BytesMut {}

/// For what is written by hand as a whole: a few instructions each, where the other one calls.
impl Put for Vec<u8> {}

/// `value` as far as one of Kafka's strings goes, cut at a character.
pub(super) fn cut(value: &str) -> &str {
    value.get(..value.floor_char_boundary(STRING_MAX)).unwrap_or(value)
}

/// Counts and lengths are bounded by the frame, which has at most 2 GiB: the caller checks that.
fn size_i32(size: usize) -> i32 {
    i32::try_from(size).unwrap_or(i32::MAX)
}

fn size_u32(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}
