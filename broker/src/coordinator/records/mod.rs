//! Keys and values of `__consumer_offsets`, in Kafka's binary schemas.
//!
//! Written as Apache Kafka 4 writes them (OffsetCommitValue 3 or 1, GroupMetadataValue 3), so that
//! a Kafka broker and Kafka's own formatter read what Letterbox wrote, and read in every version
//! Kafka has used (0–4). The bytes come from the disk: no length in them is trusted, and what
//! cannot be read is an error, never a panic.
//!
//! Source: group-coordinator/src/main/resources/common/message/*.json of Apache Kafka.

mod codec;
mod group_metadata;
mod offset_commit;

#[cfg(test)]
mod golden;

use std::sync::Arc;

use bytes::Bytes;

pub(crate) use codec::DecodeError;
pub(crate) use group_metadata::{GroupMetadata, MemberMetadata};
pub(crate) use offset_commit::{OffsetAndMetadata, OffsetKey};

use super::replicated_log::KeyValue;
use codec::{Reader, Writer};

/// One record of the topic, as the coordinator thinks of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    /// A committed offset, or that it was removed.
    Offset {
        /// Group, topic and partition.
        key: OffsetKey,
        /// `None` is a tombstone.
        value: Option<OffsetAndMetadata>,
    },
    /// A classic group's generation with its members, or that the group was removed.
    Group {
        /// The group's id.
        group: Arc<str>,
        /// `None` is a tombstone.
        value: Option<GroupMetadata>,
    },
    /// A record type that is not known here: newer group types, for example. Kept in the log,
    /// ignored by the coordinator.
    Unknown {
        /// The version number that a key begins with; it tells the types apart.
        key_type: i16,
    },
}

/// The key's type number of an offset commit, as written. Type 0 is the same schema and is still
/// read.
const OFFSET_COMMIT_KEY: i16 = 1;
/// The key's type number of a classic group's metadata.
const GROUP_METADATA_KEY: i16 = 2;

impl Record {
    /// The bytes to append.
    ///
    /// # Errors
    /// A string is longer than the schema can say (32,767 bytes).
    pub(crate) fn encode(&self) -> Result<KeyValue, DecodeError> {
        let mut key = Writer::default();
        let value = match self {
            Self::Offset { key: offset_key, value } => {
                key.i16(OFFSET_COMMIT_KEY);
                offset_key.encode(&mut key)?;
                value.as_ref().map(OffsetAndMetadata::encode).transpose()?
            }
            Self::Group { group, value } => {
                key.i16(GROUP_METADATA_KEY);
                key.string(group)?;
                value.as_ref().map(GroupMetadata::encode).transpose()?
            }
            Self::Unknown { key_type } => {
                return Err(DecodeError::NotWritable { key_type: *key_type });
            }
        };
        Ok((key.finish(), value))
    }

    /// Reads a record of the topic.
    ///
    /// # Errors
    /// The key or the value does not follow its schema, or the value's version is newer than any
    /// known one.
    pub(crate) fn decode(key: &Bytes, value: Option<&Bytes>) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(key);
        match reader.i16()? {
            0 | OFFSET_COMMIT_KEY => {
                let key = OffsetKey::decode(&mut reader)?;
                Ok(Self::Offset { key, value: value.map(OffsetAndMetadata::decode).transpose()? })
            }
            GROUP_METADATA_KEY => {
                let group = reader.string()?.into();
                Ok(Self::Group { group, value: value.map(GroupMetadata::decode).transpose()? })
            }
            key_type => Ok(Self::Unknown { key_type }),
        }
    }
}
