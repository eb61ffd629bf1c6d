//! One classic group as a state machine without I/O (KIP-62, KIP-345, KIP-394, KIP-814).
//!
//! ```text
//! Empty ─join→ PreparingRebalance ─all joined or timeout→ CompletingRebalance ─leader's assignment committed→ Stable
//! ```
//! Any join, leave or timeout of a member leads back to PreparingRebalance; a rebalance that no
//! member joins ends in Empty.
//!
//! Invariants: a generation has one leader and one protocol; the generation only grows; a parked
//! request is answered exactly once. The assignment counts only when its record is committed
//! ([`Completion::Assignment`]): until then the group stays in CompletingRebalance, so a failed
//! append leaves nothing to undo.
//!
//! Differences from Apache Kafka, each to the user's good: a parked request that the same member
//! repeats is answered (REBALANCE_IN_PROGRESS) instead of forgotten; a known static member may
//! rejoin a group that is at `group.max.size`; the creation of a group is not written before there
//! is something to keep.

mod heartbeat;
pub(super) mod join;
pub(super) mod leave;
mod member;
mod members;
mod rebalance;
pub(super) mod sync;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::{
    DeleteGroupsResponse, JoinGroupResponse, LeaveGroupResponse, OffsetCommitResponse,
    OffsetDeleteResponse, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;
use letterbox_env::Gather;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::TimestampMs;

use super::GroupConfig;
use super::memory::{Charge, GroupMemory, Of, group_bytes};
use super::records::{GroupMetadata, MemberMetadata, Record};
use super::runtime;

pub(crate) use join::JoinRequest;
pub(crate) use member::Member;
use members::{Members, Names};
pub(crate) use runtime::{Now, ReplyId, WriteId};

/// The protocol type of Kafka's consumers; the only one whose metadata is looked into, and only for
/// expiry (KIP-211).
const CONSUMER_PROTOCOL_TYPE: &str = "consumer";

/// How long a new member whose JoinGroup is parked may stay: it cannot heartbeat yet and may have
/// gone away unseen.
const NEW_MEMBER_JOIN_TIMEOUT_MS: u64 = 300_000;

/// The answer to a waiting request.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Reply {
    /// To JoinGroup.
    Join(JoinGroupResponse),
    /// To SyncGroup.
    Sync(SyncGroupResponse),
    /// To LeaveGroup.
    Leave(LeaveGroupResponse),
    /// To OffsetCommit.
    OffsetCommit(OffsetCommitResponse),
    /// To OffsetDelete.
    OffsetDelete(OffsetDeleteResponse),
    /// To DeleteGroups.
    DeleteGroups(DeleteGroupsResponse),
    /// Everything appended before is now committed and visible.
    Fence,
}

/// What an event leads to.
pub(crate) type Output = runtime::Output<Reply, Record, Completion>;
/// Records that stand or fall together, and what happens then.
pub(crate) type Write = runtime::Write<Record, Completion>;
pub(super) type Timers = runtime::timers::Timers<TimerKey>;

/// What a deadline is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum TimerKey {
    /// A member, or one that was given an id and has not joined yet, must show itself.
    Session { group: Arc<str>, member: Arc<str> },
    /// The members of a group must have joined.
    Join { group: Arc<str> },
    /// The members of a generation must have asked for their assignment.
    Sync { group: Arc<str> },
    /// Look for expired offsets.
    Expiry,
}

/// What a shard does once records are committed, or could not be.
#[derive(Debug)]
pub(crate) enum Completion {
    /// The leader's assignment: hand it out and become Stable.
    Assignment {
        /// The group.
        group: Arc<str>,
        /// For which generation; a later one makes this void.
        generation: i32,
        /// What each member gets.
        assignments: BTreeMap<Arc<str>, Bytes>,
    },
    /// A static member that came back with a new id in a Stable group.
    StaticMember(Box<join::StaticRejoin>),
    /// A group has become empty; perhaps a LeaveGroup waits for it.
    Emptied {
        /// The group.
        group: Arc<str>,
        /// The LeaveGroup to answer.
        leave: Option<(ReplyId, LeaveGroupResponse)>,
    },
    /// Offsets or tombstones, which decisions see already, are committed.
    Apply {
        /// Their write in the shard's timeline.
        write: WriteId,
        /// Who waits, and the answer if all went well.
        reply: Option<(ReplyId, Reply)>,
    },
    /// Nothing was written: everything before it is committed.
    Fence(ReplyId),
}

/// Kafka's states of a classic group. Dead is not one here: a group that is gone is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum GroupState {
    /// No members; perhaps offsets.
    Empty,
    /// Waiting for the members to join.
    PreparingRebalance,
    /// Waiting for the leader's assignment.
    CompletingRebalance,
    /// Every member has its assignment.
    Stable,
}

impl GroupState {
    /// Kafka's name for it.
    #[must_use]
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Stable => "Stable",
        }
    }
}

/// What a group's methods act on besides the group.
pub(super) struct Cx<'a> {
    pub(super) config: &'a GroupConfig,
    pub(super) timers: &'a mut Timers,
    pub(super) out: &'a mut Output,
    pub(super) now: Now,
}

impl Cx<'_> {
    fn reply(&mut self, id: ReplyId, reply: Reply) {
        self.out.replies.push((id, reply));
    }

    fn after(&self, timeout_ms: u64) -> u64 {
        self.now.mono_ms.saturating_add(timeout_ms)
    }
}

/// The topics that the members of a group read.
#[derive(Debug)]
pub(crate) enum Subscriptions<'a> {
    /// These.
    Of(BTreeSet<&'a str>),
    /// It is a group of consumers that do not say.
    Unknown,
}

impl Subscriptions<'_> {
    /// Whether a member reads `topic`, or may.
    #[must_use]
    pub(crate) fn may_read(&self, topic: &str) -> bool {
        match self {
            Self::Of(topics) => topics.contains(topic),
            Self::Unknown => true,
        }
    }
}

/// A classic group.
#[derive(Debug)]
pub(crate) struct Group {
    id: Arc<str>,
    state: GroupState,
    previous_state: GroupState,
    /// When the state was entered; −1: not known (an old record).
    state_timestamp_ms: TimestampMs,
    /// `None`: the group only stores offsets, or has never had a member.
    protocol_type: Option<Arc<str>>,
    /// The protocol of the generation.
    protocol: Option<Arc<str>>,
    generation: i32,
    leader: Option<Arc<str>>,
    members: Members,
    /// group.instance.id to member id; each value is a key of `members`.
    static_members: BTreeMap<Arc<str>, Arc<str>>,
    /// Ids that were given out (MEMBER_ID_REQUIRED) and have not joined yet; disjoint from
    /// `members`.
    pending_join: Names,
    /// Members of this generation that have not asked for their assignment yet.
    pending_sync: BTreeSet<Arc<str>>,
    /// How many members support each protocol.
    supported_protocols: BTreeMap<Arc<str>, usize>,
    /// A member has come during the initial delay, so the delay may be extended.
    new_member_added: bool,
    /// The initial delay that runs and what may be added to it, in milliseconds.
    initial_delay_ms: (u64, u64),
    /// What the group holds, as of the last event.
    charge: Charge,
}

impl Group {
    /// A group without members, as the first JoinGroup or a commit without membership makes it.
    #[must_use]
    pub(crate) fn new(id: Arc<str>, now: Now) -> Self {
        Self {
            id,
            state: GroupState::Empty,
            previous_state: GroupState::Empty,
            state_timestamp_ms: now.wall_ms,
            protocol_type: None,
            protocol: None,
            generation: 0,
            leader: None,
            members: Members::default(),
            static_members: BTreeMap::new(),
            pending_join: Names::default(),
            pending_sync: BTreeSet::new(),
            supported_protocols: BTreeMap::new(),
            new_member_added: false,
            initial_delay_ms: (0, 0),
            charge: Charge::none(Of::Groups),
        }
    }

    /// The group that `value` tells of, read back from the log: Stable if it has members, otherwise
    /// Empty.
    #[must_use]
    pub(crate) fn from_record(id: Arc<str>, value: GroupMetadata, now: Now) -> Self {
        let mut group = Self::new(id, now);
        let protocol = value.protocol.clone().unwrap_or_else(|| Arc::from(""));
        group.state = if value.members.is_empty() { GroupState::Empty } else { GroupState::Stable };
        group.state_timestamp_ms = value.current_state_timestamp_ms;
        group.generation = value.generation;
        for member in value.members {
            group.insert(Member::from_record(member, &protocol));
        }
        group.protocol_type = Some(value.protocol_type).filter(|name| !name.is_empty());
        group.protocol = value.protocol;
        group.leader = value.leader;
        group
    }

    /// Kafka's state of the group.
    #[must_use]
    pub(crate) fn state(&self) -> GroupState {
        self.state
    }

    /// The generation.
    #[must_use]
    pub(crate) fn generation(&self) -> i32 {
        self.generation
    }

    /// The group's id.
    #[must_use]
    pub(crate) fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// The protocol type; `None` for a group that only stores offsets.
    #[must_use]
    pub(crate) fn protocol_type(&self) -> Option<&Arc<str>> {
        self.protocol_type.as_ref()
    }

    /// The protocol of the generation.
    #[must_use]
    pub(crate) fn protocol(&self) -> Option<&Arc<str>> {
        self.protocol.as_ref()
    }

    /// The leader's member id.
    #[cfg(test)]
    pub(crate) fn leader(&self) -> Option<&Arc<str>> {
        self.leader.as_ref()
    }

    /// The members by id.
    #[must_use]
    pub(crate) fn members(&self) -> &BTreeMap<Arc<str>, Member> {
        &self.members
    }

    /// Whether nobody is in the group or about to be.
    #[must_use]
    pub(crate) fn is_unused(&self) -> bool {
        self.state == GroupState::Empty && self.members.is_empty() && self.pending_join.is_empty()
    }

    /// When the group came into its state; `None` when that is not known.
    #[must_use]
    pub(crate) fn state_timestamp_ms(&self) -> Option<TimestampMs> {
        Some(self.state_timestamp_ms).filter(|&timestamp| timestamp != -1)
    }

    /// What the members read. Read out of their metadata, which says it in far fewer bytes than a
    /// set of names, so ask once for many topics.
    #[must_use]
    pub(crate) fn subscriptions(&self) -> Subscriptions<'_> {
        if !self.is_consumer_group() {
            return Subscriptions::Of(BTreeSet::new());
        }
        let (mut topics, protocol) = (BTreeSet::new(), self.protocol.as_deref());
        for member in self.members.values() {
            let metadata = protocol.and_then(|protocol| member.metadata_of(protocol));
            match metadata.and_then(|metadata| member::subscribed_topics(metadata)) {
                Some(more) => topics.extend(more),
                None => return Subscriptions::Unknown,
            }
        }
        Subscriptions::Of(topics)
    }

    /// Whether the members are Kafka consumers.
    #[must_use]
    pub(crate) fn is_consumer_group(&self) -> bool {
        self.protocol_type.as_deref() == Some(CONSUMER_PROTOCOL_TYPE)
    }

    /// Tells what the group holds now.
    pub(super) fn recharge(&mut self, memory: &Arc<GroupMemory>) {
        let bytes = group_bytes(&self.id)
            .saturating_add(self.members.held_bytes())
            .saturating_add(self.pending_join.held_bytes());
        self.charge.set(memory, bytes);
    }

    /// What [`Self::recharge`] tells, counted anew.
    #[cfg(test)]
    pub(super) fn counted_bytes(&self) -> usize {
        assert_eq!(
            self.members.joining(),
            self.members.values().filter(|member| member.awaiting_join.is_some()).count()
        );
        let names = self.pending_join.iter();
        group_bytes(&self.id)
            + self.members.values().map(Member::held_bytes).sum::<usize>()
            + names.map(|name| super::memory::name_bytes(name)).sum::<usize>()
    }

    /// The bytes of the member that `request` comes from; 0 when it is new.
    pub(super) fn held_by(&self, request: &JoinRequest) -> usize {
        let by_instance =
            || request.instance_id.as_ref().and_then(|id| self.static_members.get(id));
        let member_id =
            if request.member_id.is_empty() { by_instance() } else { Some(&request.member_id) };
        member_id.and_then(|id| self.members.get(id)).map_or(0, Member::held_bytes)
    }

    /// What is written of the group, with `assignments` in place of what the members have now.
    #[must_use]
    pub(crate) fn to_record(&self, assignments: Option<&BTreeMap<Arc<str>, Bytes>>) -> Record {
        let protocol = self.protocol.as_deref().unwrap_or("");
        let members = self
            .members
            .values()
            .map(|member| MemberMetadata {
                member_id: member.id.clone(),
                group_instance_id: member.instance_id.clone(),
                client_id: member.client_id.clone(),
                client_host: member.client_host.clone(),
                rebalance_timeout_ms: member.rebalance_timeout_ms,
                session_timeout_ms: member.session_timeout_ms,
                subscription: member.metadata_for(protocol),
                assignment: assignments.map_or_else(
                    || member.assignment.clone(),
                    |all| all.get(&member.id).cloned().unwrap_or_default(),
                ),
            })
            .collect();
        let value = GroupMetadata {
            protocol_type: self.protocol_type.clone().unwrap_or_else(|| Arc::from("")),
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            current_state_timestamp_ms: self.state_timestamp_ms,
            members,
        };
        Record::Group { group: self.id.clone(), value: Some(value) }
    }

    /// Starts the session timers of a group that was just loaded, and sheds members beyond the
    /// limit by a rebalance.
    pub(super) fn on_loaded(&mut self, cx: &mut Cx<'_>) {
        for member in self.members.values() {
            arm_session(&self.id, member, cx);
        }
        if self.members.len() > cx.config.max_size {
            self.prepare_rebalance(cx);
        }
    }

    /// Checks that a request comes from who it says (KIP-345: an instance id belongs to the newest
    /// member with it).
    fn validate_member(&self, member_id: &str, instance_id: Option<&str>) -> Result<(), ErrorCode> {
        if let Some(instance_id) = instance_id {
            match self.static_members.get(instance_id) {
                None => return Err(ErrorCode::UnknownMemberId),
                Some(existing) if &**existing != member_id => {
                    return Err(ErrorCode::FencedInstanceId);
                }
                Some(_) => {}
            }
        }
        if self.members.contains_key(member_id) { Ok(()) } else { Err(ErrorCode::UnknownMemberId) }
    }

    fn is_leader(&self, member_id: &str) -> bool {
        self.leader.as_deref() == Some(member_id)
    }

    fn transition_to(&mut self, state: GroupState, now: Now) {
        self.previous_state = self.state;
        self.state = state;
        self.state_timestamp_ms = now.wall_ms;
    }

    fn insert(&mut self, member: Member) {
        if let Some(instance_id) = &member.instance_id {
            self.static_members.insert(instance_id.clone(), member.id.clone());
        }
        if self.leader.is_none() {
            self.leader = Some(member.id.clone());
        }
        self.pending_join.remove(&member.id);
        self.count_protocols(&member, true);
        self.members.insert(member);
    }

    fn count_protocols(&mut self, member: &Member, add: bool) {
        let names: BTreeSet<&Arc<str>> = member.protocols.iter().map(|(name, _)| name).gather();
        for name in names {
            let count = self.supported_protocols.entry(name.clone()).or_default();
            *count = if add { count.saturating_add(1) } else { count.saturating_sub(1) };
            if *count == 0 {
                self.supported_protocols.remove(name);
            }
        }
    }

    /// Takes `member_id` out, pending or not, with its timer; another member becomes leader if it
    /// was the leader.
    fn remove(&mut self, member_id: &str, cx: &mut Cx<'_>) -> Option<Member> {
        let member = self.members.remove(member_id);
        if let Some(member) = &member {
            self.count_protocols(member, false);
            if let Some(instance_id) = &member.instance_id {
                self.static_members.remove(instance_id);
            }
        }
        if self.is_leader(member_id) {
            self.leader = self.members.keys().next().cloned();
        }
        self.pending_join.remove(member_id);
        self.pending_sync.remove(member_id);
        cx.timers
            .cancel(&TimerKey::Session { group: self.id.clone(), member: Arc::from(member_id) });
        member
    }

    fn supports(&self, protocol_type: &str, protocols: &[(Arc<str>, Bytes)]) -> bool {
        if self.state == GroupState::Empty {
            return !protocol_type.is_empty() && !protocols.is_empty();
        }
        self.protocol_type.as_deref() == Some(protocol_type)
            && protocols.iter().any(|(name, _)| {
                self.supported_protocols.get(name).copied().unwrap_or(0) == self.members.len()
            })
    }

    /// The protocol that all members support and most put first; the name decides a draw.
    fn select_protocol(&self) -> Option<Arc<str>> {
        let is_candidate =
            |name: &Arc<str>| self.supported_protocols.get(name) == Some(&self.members.len());
        let mut votes: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some((name, _)) = member.protocols.iter().find(|(name, _)| is_candidate(name)) {
                *votes.entry(name).or_default() += 1;
            }
        }
        // `rev`, so that the first name wins: `max_by_key` returns the last of equals.
        votes.into_iter().rev().max_by_key(|(_, count)| *count).map(|(name, _)| name.clone())
    }

    fn rebalance_timeout_ms(&self) -> u64 {
        self.members.values().map(|member| timeout(member.rebalance_timeout_ms)).max().unwrap_or(0)
    }
}

/// A timeout as a client gave it; a negative one is none at all.
fn timeout(timeout_ms: i32) -> u64 {
    u64::try_from(timeout_ms).unwrap_or(0)
}

fn arm_session(group: &Arc<str>, member: &Member, cx: &mut Cx<'_>) {
    let deadline = cx.after(timeout(member.session_timeout_ms));
    cx.timers.set(TimerKey::Session { group: group.clone(), member: member.id.clone() }, deadline);
}

pub(super) use letterbox_protocol::text as str_bytes;

fn optional_str_bytes(string: Option<&Arc<str>>) -> Option<StrBytes> {
    string.map(|string| str_bytes(string))
}
