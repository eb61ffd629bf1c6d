//! openraft's type parameters, and entries as bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Cursor;
use std::sync::Arc;

use letterbox_env::Gather;
use openraft::{CommittedLeaderId, EntryPayload, LogId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::runtime::Runtime;
use crate::metadata::Part;

openraft::declare_raft_types!(
    /// The metadata log's types.
    pub(super) TypeConfig:
        D = Batch,
        R = Applied,
        NodeId = u64,
        Node = Voter,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = Runtime,
);

pub(super) type Raft = openraft::Raft<TypeConfig>;
pub(super) type Entry = openraft::Entry<TypeConfig>;
pub(super) type Vote = openraft::Vote<u64>;
pub(super) type NodeLogId = LogId<u64>;
pub(super) type StoredMembership = openraft::StoredMembership<u64, Voter>;
pub(super) type StorageError = openraft::StorageError<u64>;

/// Where a voter is reached, and which log it votes with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Voter {
    pub(super) host: String,
    pub(super) port: u16,
    /// The id of its log: a node with another log is not this voter, whatever its node id. Nil in
    /// the log of a sole voter from before this was written down.
    #[serde(default)]
    pub(super) incarnation: Uuid,
    /// `directory.id` of the directory with that log, by which Kafka's tools name it. Not known
    /// when a cluster is founded; each voter tells it then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) directory_id: Option<Uuid>,
}

impl Voter {
    /// One of which only the configuration is known.
    pub(super) fn at((host, port): &(String, u16)) -> Self {
        Self { host: host.clone(), port: *port, ..Self::default() }
    }

    /// Whether a connection to `self` is one to `other`.
    pub(super) fn is_reached_as(&self, other: &Self) -> bool {
        (&self.host, self.port, self.incarnation) == (&other.host, other.port, other.incarnation)
    }
}

/// The nodes of a membership.
pub(super) type Members = BTreeMap<u64, Voter>;

/// A membership, and the entry that it stands in. Nobody is in it before there is a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) at: Option<NodeLogId>,
    /// Voters and observers.
    pub(super) members: Members,
    /// Who votes. While that changes there are two sets, and a majority is one of each.
    pub(super) configs: Vec<BTreeSet<u64>>,
}

impl Known {
    pub(super) fn of(membership: &StoredMembership) -> Self {
        Self {
            at: *membership.log_id(),
            members: membership.nodes().map(|(id, voter)| (*id, voter.clone())).gather(),
            configs: membership.membership().get_joint_config().clone(),
        }
    }

    /// The membership that a cluster is founded with: these vote.
    pub(super) fn founding(members: Members) -> Self {
        let configs = vec![members.keys().copied().gather()];
        Self { at: Some(NodeLogId::default()), members, configs }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn voters(&self) -> BTreeSet<u64> {
        self.configs.iter().flatten().copied().gather()
    }

    pub(super) fn is_voter(&self, node: u64) -> bool {
        self.configs.iter().any(|voters| voters.contains(&node))
    }

    /// Whether the node `node` with the log `incarnation` is a member.
    pub(super) fn names(&self, node: u64, incarnation: Uuid) -> bool {
        self.members.get(&node).is_some_and(|member| member.incarnation == incarnation)
    }

    /// Whether those of whom `is_there` says so can commit something.
    pub(super) fn has_majority(&self, is_there: impl Fn(u64) -> bool) -> bool {
        let of = |voters: &BTreeSet<u64>| {
            let there = voters.iter().filter(|id| is_there(**id)).count();
            there > voters.len() / 2
        };
        !self.configs.is_empty() && self.configs.iter().all(of)
    }
}

/// The first entry of a metadata log: these vote.
pub(super) fn first_entry(members: Members) -> Entry {
    let voters = members.keys().copied().gather();
    let membership = openraft::Membership::new(vec![voters], members);
    Entry { log_id: LogId::default(), payload: EntryPayload::Membership(membership) }
}

/// The records of a decision, encoded, or a part of them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Batch {
    /// The term in which the decision was made; in another term's entry it does nothing.
    pub(super) term: u64,
    pub(super) part: Part,
    pub(super) records: Arc<str>,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { term, part, records } = self;
        write!(f, "Batch {{ term: {term}, {part:?}, {} bytes }}", records.len())
    }
}

/// What applying an entry did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Applied {
    /// It is part of the image now.
    Done,
    /// It was decided in another term and did nothing.
    Outdated,
}

/// How far a voter's log has come, by itself: the term of its vote, and where its entries of that
/// term end (0 when there are none). This never goes back: whoever leads in a term cuts off no
/// entries of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Reached {
    pub(super) term: u64,
    /// The index after the last entry of that term.
    pub(super) end: u64,
}

impl Reached {
    pub(super) fn new(term: u64, last: Option<NodeLogId>) -> Self {
        let of_term = last.filter(|last| last.leader_id.term == term);
        Self { term, end: of_term.map_or(0, |last| last.index.saturating_add(1)) }
    }
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term {} and entry {}", self.term, self.end)
    }
}

pub(super) fn log_id(term: u64, index: u64) -> NodeLogId {
    LogId::new(CommittedLeaderId::new(term, 0), index)
}

const BLANK: u8 = 0;
const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;
const PART: u8 = 3;
/// A membership that is not the founding one: versions that change none do not read it.
const CHANGED_MEMBERSHIP: u8 = 4;
/// The version of its body, which is one byte in front of it.
const MEMBERSHIP_VERSION: u8 = 0;

/// `u64 term, u64 index, u8 kind, body`, all little endian. The body of a decision's part is `u64
/// term, u32 number, u8 whether more follow, text`; of a whole decision `u64 term, text`; of a
/// membership JSON, behind its version unless it is the founding one.
pub(super) fn encode_entry(entry: &Entry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    bytes.extend(entry.log_id.leader_id.term.to_le_bytes());
    bytes.extend(entry.log_id.index.to_le_bytes());
    match &entry.payload {
        EntryPayload::Blank => bytes.push(BLANK),
        EntryPayload::Normal(batch) => {
            bytes.push(if batch.part == Part::WHOLE { NORMAL } else { PART });
            bytes.extend(batch.term.to_le_bytes());
            if batch.part != Part::WHOLE {
                bytes.extend(batch.part.number.to_le_bytes());
                bytes.push(batch.part.has_more.into());
            }
            bytes.extend(batch.records.as_bytes());
        }
        EntryPayload::Membership(membership) => {
            match entry.log_id.index {
                0 => bytes.push(MEMBERSHIP),
                _ => bytes.extend([CHANGED_MEMBERSHIP, MEMBERSHIP_VERSION]),
            }
            bytes.extend(serde_json::to_vec(membership).unwrap_or_default());
        }
    }
    bytes
}

/// The inverse of [`encode_entry`]; `None` when the bytes are not an entry.
pub(super) fn decode_entry(bytes: &[u8]) -> Option<Entry> {
    let (term, rest) = take_u64(bytes)?;
    let (index, rest) = take_u64(rest)?;
    let (kind, body) = rest.split_first()?;
    let payload = match *kind {
        BLANK => EntryPayload::Blank,
        NORMAL => {
            let (term, records) = take_u64(body)?;
            EntryPayload::Normal(batch(term, Part::WHOLE, records)?)
        }
        PART => {
            let (term, rest) = take_u64(body)?;
            let (number, rest) = take_u32(rest)?;
            let (has_more, records) = rest.split_first()?;
            let part = Part { number, has_more: *has_more != 0 };
            EntryPayload::Normal(batch(term, part, records)?)
        }
        MEMBERSHIP => EntryPayload::Membership(serde_json::from_slice(body).ok()?),
        CHANGED_MEMBERSHIP => {
            let body = body.strip_prefix(&[MEMBERSHIP_VERSION])?;
            EntryPayload::Membership(serde_json::from_slice(body).ok()?)
        }
        _ => return None,
    };
    Some(Entry { log_id: log_id(term, index), payload })
}

fn batch(term: u64, part: Part, records: &[u8]) -> Option<Batch> {
    Some(Batch { term, part, records: str::from_utf8(records).ok()?.into() })
}

pub(super) fn take_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*head), rest))
}

pub(super) fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (head, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*head), rest))
}

/// `u32 length, bytes`.
pub(super) fn put_block(buffer: &mut Vec<u8>, block: &[u8]) {
    buffer.extend(u32::try_from(block.len()).unwrap_or(u32::MAX).to_le_bytes());
    buffer.extend(block);
}

pub(super) fn take_block(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = take_u32(bytes)?;
    rest.split_at_checked(usize::try_from(len).ok()?)
}
