//! A member of a classic group.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::ReplyId;
use crate::coordinator::memory::{member_bytes, protocol_bytes};
use crate::coordinator::records::MemberMetadata;

/// A member, with the requests of it that wait for an answer.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(super) id: Arc<str>,
    /// Set for a static member (KIP-345).
    pub(super) instance_id: Option<Arc<str>>,
    pub(super) client_id: Arc<str>,
    pub(super) client_host: Arc<str>,
    pub(super) rebalance_timeout_ms: i32,
    pub(super) session_timeout_ms: i32,
    /// In the member's order of preference.
    pub(super) protocols: Vec<(Arc<str>, Bytes)>,
    pub(super) assignment: Bytes,
    /// It has not got its id through a completed join, so it cannot heartbeat yet.
    pub(super) is_new: bool,
    pub(super) awaiting_join: Option<ReplyId>,
    pub(super) awaiting_sync: Option<ReplyId>,
}

impl Member {
    pub(super) fn from_record(record: MemberMetadata, protocol: &Arc<str>) -> Self {
        // Version 0 of the record did not have it.
        let rebalance_timeout_ms = if record.rebalance_timeout_ms == -1 {
            record.session_timeout_ms
        } else {
            record.rebalance_timeout_ms
        };
        Self {
            id: record.member_id,
            instance_id: record.group_instance_id,
            client_id: record.client_id,
            client_host: record.client_host,
            rebalance_timeout_ms,
            session_timeout_ms: record.session_timeout_ms,
            protocols: vec![(protocol.clone(), record.subscription)],
            assignment: record.assignment,
            is_new: false,
            awaiting_join: None,
            awaiting_sync: None,
        }
    }

    /// What the member takes in memory, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        let instance_id = self.instance_id.as_ref().map_or(0, |id| id.len());
        // Its id is a key as well.
        let strings = [
            self.id.len(),
            self.id.len(),
            instance_id,
            instance_id,
            self.client_id.len(),
            self.client_host.len(),
        ];
        let protocols =
            self.protocols.iter().map(|(name, metadata)| protocol_bytes(name, metadata));
        let others = [member_bytes(strings.into_iter().sum()), self.assignment.len()];
        protocols.chain(others).fold(0, usize::saturating_add)
    }

    /// `group.instance.id`.
    #[must_use]
    pub(crate) fn instance_id(&self) -> Option<&Arc<str>> {
        self.instance_id.as_ref()
    }

    /// The `client.id` and the address of the client.
    #[must_use]
    pub(crate) fn client(&self) -> (&Arc<str>, &Arc<str>) {
        (&self.client_id, &self.client_host)
    }

    /// What the leader assigned.
    #[must_use]
    pub(crate) fn assignment(&self) -> &Bytes {
        &self.assignment
    }

    /// The member's metadata for `protocol`; empty when it does not support it.
    #[must_use]
    pub(crate) fn metadata_for(&self, protocol: &str) -> Bytes {
        self.metadata_of(protocol).cloned().unwrap_or_default()
    }

    /// The member's metadata for `protocol`, if it supports it.
    pub(super) fn metadata_of(&self, protocol: &str) -> Option<&Bytes> {
        let found = self.protocols.iter().find(|(name, _)| &**name == protocol);
        found.map(|(_, metadata)| metadata)
    }

    /// Whether silence is excused: a parked request shows that it is there. Not for new members,
    /// who could otherwise stay for ever after their client has gone.
    pub(super) fn has_satisfied_heartbeat(&self) -> bool {
        !self.is_new && (self.awaiting_join.is_some() || self.awaiting_sync.is_some())
    }
}

/// The topics in a consumer's subscription. Only the part that all versions share is read (version,
/// topics); `None` when the bytes are something else.
pub(super) fn subscribed_topics(mut metadata: &[u8]) -> Option<BTreeSet<&str>> {
    let version = i16::from_be_bytes(take(&mut metadata)?);
    let count = i32::from_be_bytes(take(&mut metadata)?);
    if version < 0 || count < 0 {
        return None;
    }
    let mut topics = BTreeSet::new();
    for _ in 0..count {
        let length = usize::try_from(i16::from_be_bytes(take(&mut metadata)?)).ok()?;
        let (topic, rest) = metadata.split_at_checked(length)?;
        topics.insert(std::str::from_utf8(topic).ok()?);
        metadata = rest;
    }
    Some(topics)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}
