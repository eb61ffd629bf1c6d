//! Committed offsets: OffsetCommitKey and OffsetCommitValue.

use std::sync::Arc;

use bytes::Bytes;
use letterbox_protocol::model::{LeaderEpoch, Offset, TimestampMs, TopicId};

use super::codec::{DecodeError, Reader, Writer};

/// Whose offset, of which partition.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct OffsetKey {
    /// The group's id.
    pub group: Arc<str>,
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's index.
    pub partition: i32,
}

/// A committed offset with what the client said about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct OffsetAndMetadata {
    /// The id of the topic that it is an offset of; nil where the record does not say so, as one of
    /// an earlier version. The name may be another topic's today.
    pub topic_id: TopicId,
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

/// The tagged field of OffsetCommitValue version 4 that has the topic's id.
const TOPIC_ID_TAG: u32 = 0;
/// A tagged field of our own, far from those that Kafka may come to: when the offset expires, eight
/// bytes. Only version 1 of the schema can say that, which has no topic's id.
const EXPIRY_TAG: u32 = 10_000;

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
    /// Version 4.
    pub(super) fn encode(&self) -> Result<Bytes, DecodeError> {
        let mut writer = Writer::default();
        writer.i16(4);
        writer.i64(self.offset);
        writer.i32(self.leader_epoch);
        writer.compact_string(&self.metadata)?;
        writer.i64(self.commit_timestamp_ms);
        let topic_id = (!self.topic_id.is_nil()).then_some(self.topic_id.as_bytes());
        let expiry = self.expire_timestamp_ms.map(i64::to_be_bytes);
        let topic_id = topic_id.map(|id| (TOPIC_ID_TAG, &id[..]));
        let expiry = expiry.as_ref().map(|at| (EXPIRY_TAG, &at[..]));
        writer.tagged_fields(&topic_id.into_iter().chain(expiry).collect::<Vec<_>>())?;
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
        let mut expire_timestamp_ms = if version == 1 {
            Some(reader.i64()?).filter(|&timestamp| timestamp != -1)
        } else {
            None
        };
        let mut topic_id = TopicId::nil();
        if version >= 4 {
            let fixed =
                |wanted, bytes: &[u8]| DecodeError::Truncated { wanted, remaining: bytes.len() };
            reader.tagged_fields(|tag, bytes| {
                match tag {
                    TOPIC_ID_TAG => {
                        topic_id = TopicId::from_slice(bytes)
                            .map_err(|_| fixed(size_of::<TopicId>(), bytes))?;
                    }
                    EXPIRY_TAG => {
                        let at = bytes.try_into().map_err(|_| fixed(size_of::<i64>(), bytes))?;
                        expire_timestamp_ms = Some(i64::from_be_bytes(at));
                    }
                    _ => {}
                }
                Ok(())
            })?;
        }
        Ok(Self {
            topic_id,
            offset,
            leader_epoch,
            metadata,
            commit_timestamp_ms,
            expire_timestamp_ms,
        })
    }
}
