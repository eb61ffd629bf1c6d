//! Committed offsets: OffsetCommitKey and OffsetCommitValue.

use std::sync::Arc;

use bytes::Bytes;
use letterbox_protocol::model::{LeaderEpoch, Offset, TimestampMs};

use super::codec::{DecodeError, Reader, Writer};

/// Whose offset, of which partition.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OffsetKey {
    /// The group's id.
    pub group: Arc<str>,
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's index.
    pub partition: i32,
}

/// A committed offset with what the client said about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OffsetAndMetadata {
    /// The next offset that the group will read.
    pub offset: Offset,
    /// The leader epoch of the last record read, for detecting a truncated log (KIP-320); −1 when
    /// not known.
    pub leader_epoch: LeaderEpoch,
    /// Free text of the client; given back as it was.
    pub metadata: Arc<str>,
    /// When it was committed.
    pub commit_timestamp_ms: TimestampMs,
    /// When it expires, if the client said so itself (OffsetCommit up to version 4); otherwise the
    /// broker's retention holds.
    pub expire_timestamp_ms: Option<TimestampMs>,
}

impl OffsetKey {
    pub(super) fn encode(&self, writer: &mut Writer) -> Result<(), DecodeError> {
        writer.string(&self.group)?;
        writer.string(&self.topic)?;
        writer.i32(self.partition);
        Ok(())
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            group: reader.string()?.into(),
            topic: reader.string()?.into(),
            partition: reader.i32()?,
        })
    }
}

impl OffsetAndMetadata {
    /// Version 3; version 1 where an expiry was asked for, the only one that can say so (it has no
    /// leader epoch).
    pub(super) fn encode(&self) -> Result<Bytes, DecodeError> {
        let version = if self.expire_timestamp_ms.is_some() { 1 } else { 3 };
        let mut writer = Writer::default();
        writer.i16(version);
        writer.i64(self.offset);
        if version == 3 {
            writer.i32(self.leader_epoch);
        }
        writer.string(&self.metadata)?;
        writer.i64(self.commit_timestamp_ms);
        if let Some(expire_timestamp_ms) = self.expire_timestamp_ms {
            writer.i64(expire_timestamp_ms);
        }
        Ok(writer.finish())
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let version = reader.i16()?;
        if !(0..=4).contains(&version) {
            return Err(DecodeError::UnknownVersion(version));
        }
        let offset = reader.i64()?;
        let leader_epoch = if version >= 3 { reader.i32()? } else { -1 };
        let metadata = if version >= 4 {
            reader.compact_nullable_string()?
        } else {
            reader.nullable_string()?
        };
        let metadata = metadata.ok_or(DecodeError::NegativeLength(-1))?.into();
        let commit_timestamp_ms = reader.i64()?;
        let expire_timestamp_ms = if version == 1 {
            Some(reader.i64()?).filter(|&timestamp| timestamp != -1)
        } else {
            None
        };
        if version >= 4 {
            reader.skip_tagged_fields()?;
        }
        Ok(Self { offset, leader_epoch, metadata, commit_timestamp_ms, expire_timestamp_ms })
    }
}
