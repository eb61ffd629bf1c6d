//! Kafka's primitive types, bounded by the bytes that are there.

use bytes::{BufMut, Bytes, BytesMut};
use letterbox_protocol::varint::{self, VarintError};

/// Why bytes of `__consumer_offsets` could not be read, or a value could not be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    /// A field wants more bytes than remain.
    #[error("{wanted} bytes wanted where {remaining} remain")]
    Truncated {
        /// How many the field needs.
        wanted: usize,
        /// How many are left.
        remaining: usize,
    },
    /// A length is negative where the field may not be null.
    #[error("length {0} is negative")]
    NegativeLength(i64),
    /// A string is not UTF-8.
    #[error("a string is not UTF-8")]
    NotUtf8,
    /// A variable-length number is longer than its type.
    #[error("a variable-length number has too many bytes")]
    VarintTooLong,
    /// The value's version is not one of those Kafka has defined so far.
    #[error("value version {0} is not known")]
    UnknownVersion(i16),
    /// A string or array is longer than the schema can say.
    #[error("{0} does not fit into the schema's length field")]
    TooLong(usize),
    /// A record of a type that is only passed over was to be written.
    #[error("a record of type {key_type} cannot be written")]
    NotWritable {
        /// The type number of its key.
        key_type: i16,
    },
}

/// Reads fields one after another; never past the end.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(DecodeError::Truncated { wanted: count, remaining: self.rest.len() });
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn i16(&mut self) -> Result<i16, DecodeError> {
        self.array().map(i16::from_be_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_be_bytes)
    }

    pub(super) fn unsigned_varint(&mut self) -> Result<u32, DecodeError> {
        varint::take(&mut self.rest).map_err(|error| match error {
            VarintError::Truncated => DecodeError::Truncated { wanted: 1, remaining: 0 },
            VarintError::TooLong => DecodeError::VarintTooLong,
        })
    }

    /// A length that a fixed-size field of a non-flexible version said; `None` is null.
    fn sized(&mut self, length: i64) -> Result<Option<&'a [u8]>, DecodeError> {
        match usize::try_from(length) {
            Ok(length) => self.take(length).map(Some),
            Err(_) if length == -1 => Ok(None),
            Err(_) => Err(DecodeError::NegativeLength(length)),
        }
    }

    /// A length of a flexible version: one more than the bytes, zero for null.
    fn compact(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        let length = i64::from(self.unsigned_varint()?) - 1;
        self.sized(length)
    }

    pub(super) fn string(&mut self) -> Result<&'a str, DecodeError> {
        self.nullable_string()?.ok_or(DecodeError::NegativeLength(-1))
    }

    pub(super) fn nullable_string(&mut self) -> Result<Option<&'a str>, DecodeError> {
        let length = i64::from(self.i16()?);
        utf8(self.sized(length)?)
    }

    pub(super) fn compact_nullable_string(&mut self) -> Result<Option<&'a str>, DecodeError> {
        utf8(self.compact()?)
    }

    pub(super) fn nullable_bytes(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        let length = i64::from(self.i32()?);
        self.sized(length)
    }

    pub(super) fn compact_nullable_bytes(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        self.compact()
    }

    /// How many elements follow. Each takes at least one byte, so more than the bytes that remain
    /// is an error and a caller may loop this often.
    pub(super) fn count(&mut self, flexible: bool) -> Result<usize, DecodeError> {
        let count =
            if flexible { i64::from(self.unsigned_varint()?) - 1 } else { i64::from(self.i32()?) };
        let count = usize::try_from(count).map_err(|_| DecodeError::NegativeLength(count))?;
        if count > self.rest.len() {
            return Err(DecodeError::Truncated { wanted: count, remaining: self.rest.len() });
        }
        Ok(count)
    }

    /// Passes over the tagged fields that end a struct of a flexible version (KIP-482).
    pub(super) fn skip_tagged_fields(&mut self) -> Result<(), DecodeError> {
        self.tagged_fields(|_, _| Ok(()))
    }

    /// Gives each of the tagged fields that end a struct of a flexible version (KIP-482), with its
    /// number, to `each`.
    pub(super) fn tagged_fields(
        &mut self,
        mut each: impl FnMut(u32, &'a [u8]) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        for _ in 0..self.unsigned_varint()? {
            let tag = self.unsigned_varint()?;
            let size = self.unsigned_varint()?;
            each(tag, self.take(usize::try_from(size).map_err(|_| DecodeError::VarintTooLong)?)?)?;
        }
        Ok(())
    }
}

fn utf8(bytes: Option<&[u8]>) -> Result<Option<&str>, DecodeError> {
    bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| DecodeError::NotUtf8)).transpose()
}

/// Writes fields.
#[derive(Default)]
pub(super) struct Writer {
    bytes: BytesMut,
}

impl Writer {
    pub(super) fn i16(&mut self, value: i16) {
        self.bytes.put_i16(value);
    }

    pub(super) fn i32(&mut self, value: i32) {
        self.bytes.put_i32(value);
    }

    pub(super) fn i64(&mut self, value: i64) {
        self.bytes.put_i64(value);
    }

    pub(super) fn string(&mut self, value: &str) -> Result<(), DecodeError> {
        self.i16(i16::try_from(value.len()).map_err(|_| DecodeError::TooLong(value.len()))?);
        self.bytes.put_slice(value.as_bytes());
        Ok(())
    }

    pub(super) fn unsigned_varint(&mut self, value: u32) {
        varint::put(&mut self.bytes, value);
    }

    /// A string of a flexible version: one more than its length, and its bytes.
    pub(super) fn compact_string(&mut self, value: &str) -> Result<(), DecodeError> {
        let length = i16::try_from(value.len()).map_err(|_| DecodeError::TooLong(value.len()))?;
        self.unsigned_varint(u32::from(length.unsigned_abs()).saturating_add(1));
        self.bytes.put_slice(value.as_bytes());
        Ok(())
    }

    /// The tagged fields at the end of a struct of a flexible version, in the order of their
    /// numbers.
    pub(super) fn tagged_fields(&mut self, fields: &[(u32, &[u8])]) -> Result<(), DecodeError> {
        let size = |bytes: usize| u32::try_from(bytes).map_err(|_| DecodeError::TooLong(bytes));
        self.unsigned_varint(size(fields.len())?);
        for (tag, bytes) in fields {
            self.unsigned_varint(*tag);
            self.unsigned_varint(size(bytes.len())?);
            self.bytes.put_slice(bytes);
        }
        Ok(())
    }

    pub(super) fn nullable_string(&mut self, value: Option<&str>) -> Result<(), DecodeError> {
        match value {
            Some(value) => self.string(value),
            None => {
                self.i16(-1);
                Ok(())
            }
        }
    }

    pub(super) fn bytes(&mut self, value: &[u8]) -> Result<(), DecodeError> {
        self.count(value.len())?;
        self.bytes.put_slice(value);
        Ok(())
    }

    pub(super) fn count(&mut self, count: usize) -> Result<(), DecodeError> {
        self.i32(i32::try_from(count).map_err(|_| DecodeError::TooLong(count))?);
        Ok(())
    }

    pub(super) fn finish(self) -> Bytes {
        self.bytes.freeze()
    }
}
