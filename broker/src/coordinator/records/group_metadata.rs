//! A classic group's generation with its members: GroupMetadataValue.

use std::sync::Arc;

use bytes::Bytes;
use letterbox_protocol::model::TimestampMs;

use super::codec::{DecodeError, Reader, Writer};

/// The version written; 4 differs only in its encoding and is for downgrades of later versions
/// (KIP-915).
const WRITTEN_VERSION: i16 = 3;

/// What is kept of a classic group: enough to go on without a rebalance after the coordinator has
/// moved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct GroupMetadata {
    /// "consumer", "connect", …; empty for a group that only stores offsets.
    pub protocol_type: Arc<str>,
    /// The generation; it grows by one with each rebalance.
    pub generation: i32,
    /// The protocol all members agreed on; `None` when the group is empty.
    pub protocol: Option<Arc<str>>,
    /// The member that computes assignments.
    pub leader: Option<Arc<str>>,
    /// When the group came into its present state, from which expiry counts; −1 when not known
    /// (before version 2).
    pub current_state_timestamp_ms: TimestampMs,
    /// The members, in the order of their ids as the coordinator writes them.
    pub members: Vec<MemberMetadata>,
}

/// One member of a generation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MemberMetadata {
    /// The id that the coordinator gave out.
    pub member_id: Arc<str>,
    /// `group.instance.id` of a static member (KIP-345).
    pub group_instance_id: Option<Arc<str>>,
    /// The `client.id`.
    pub client_id: Arc<str>,
    /// The client's address, with Java's leading slash.
    pub client_host: Arc<str>,
    /// How long a rebalance waits for this member; −1 in version 0, which means the session
    /// timeout.
    pub rebalance_timeout_ms: i32,
    /// How long the member may be silent.
    pub session_timeout_ms: i32,
    /// The member's metadata for the agreed protocol; opaque.
    pub subscription: Bytes,
    /// What the leader assigned to it; opaque.
    pub assignment: Bytes,
}

impl GroupMetadata {
    pub(super) fn encode(&self) -> Result<Bytes, DecodeError> {
        let mut writer = Writer::default();
        writer.i16(WRITTEN_VERSION);
        writer.string(&self.protocol_type)?;
        writer.i32(self.generation);
        writer.nullable_string(self.protocol.as_deref())?;
        writer.nullable_string(self.leader.as_deref())?;
        writer.i64(self.current_state_timestamp_ms);
        writer.count(self.members.len())?;
        for member in &self.members {
            member.encode(&mut writer)?;
        }
        Ok(writer.finish())
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let version = reader.i16()?;
        if !(0..=4).contains(&version) {
            return Err(DecodeError::UnknownVersion(version));
        }
        let flexible = version >= 4;
        let protocol_type = required(string(&mut reader, flexible)?)?.into();
        let generation = reader.i32()?;
        let protocol = string(&mut reader, flexible)?.map(Arc::from);
        let leader = string(&mut reader, flexible)?.map(Arc::from);
        let current_state_timestamp_ms = if version >= 2 { reader.i64()? } else { -1 };
        let count = reader.count(flexible)?;
        // The capacity follows what is there, not what is said: a member has at least 20 bytes.
        let mut members = Vec::with_capacity(count.min(reader.remaining() / 20));
        for _ in 0..count {
            members.push(MemberMetadata::decode(&mut reader, version)?);
        }
        if flexible {
            reader.skip_tagged_fields()?;
        }
        Ok(Self {
            protocol_type,
            generation,
            protocol,
            leader,
            current_state_timestamp_ms,
            members,
        })
    }
}

impl MemberMetadata {
    fn encode(&self, writer: &mut Writer) -> Result<(), DecodeError> {
        writer.string(&self.member_id)?;
        writer.nullable_string(self.group_instance_id.as_deref())?;
        writer.string(&self.client_id)?;
        writer.string(&self.client_host)?;
        writer.i32(self.rebalance_timeout_ms);
        writer.i32(self.session_timeout_ms);
        writer.bytes(&self.subscription)?;
        writer.bytes(&self.assignment)
    }

    fn decode(reader: &mut Reader<'_>, version: i16) -> Result<Self, DecodeError> {
        let flexible = version >= 4;
        let member = Self {
            member_id: required(string(reader, flexible)?)?.into(),
            group_instance_id: if version >= 3 {
                string(reader, flexible)?.map(Arc::from)
            } else {
                None
            },
            client_id: required(string(reader, flexible)?)?.into(),
            client_host: required(string(reader, flexible)?)?.into(),
            rebalance_timeout_ms: if version >= 1 { reader.i32()? } else { -1 },
            session_timeout_ms: reader.i32()?,
            subscription: Bytes::copy_from_slice(required(bytes(reader, flexible)?)?),
            assignment: Bytes::copy_from_slice(required(bytes(reader, flexible)?)?),
        };
        if flexible {
            reader.skip_tagged_fields()?;
        }
        Ok(member)
    }
}

fn string<'a>(reader: &mut Reader<'a>, flexible: bool) -> Result<Option<&'a str>, DecodeError> {
    if flexible { reader.compact_nullable_string() } else { reader.nullable_string() }
}

fn bytes<'a>(reader: &mut Reader<'a>, flexible: bool) -> Result<Option<&'a [u8]>, DecodeError> {
    if flexible { reader.compact_nullable_bytes() } else { reader.nullable_bytes() }
}

fn required<T>(field: Option<T>) -> Result<T, DecodeError> {
    field.ok_or(DecodeError::NegativeLength(-1))
}
