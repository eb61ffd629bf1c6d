//! JoinGroup.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::JoinGroupResponse;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::ErrorCode;

use super::{
    Completion, Cx, Group, GroupState, Member, NEW_MEMBER_JOIN_TIMEOUT_MS, Reply, ReplyId,
    TimerKey, Write,
};
use super::{optional_str_bytes, str_bytes, timeout};
use crate::coordinator::memory::{member_bytes, protocol_bytes};

/// From this version on a new dynamic member is given its id first and joins with it (KIP-394).
const MEMBER_ID_REQUIRED_VERSION: i16 = 4;
/// From this version on a leader can be told to keep the assignment as it is (KIP-814).
const SKIP_ASSIGNMENT_VERSION: i16 = 9;

/// A JoinGroup, its strings owned: it may be parked for minutes and must not hold on to the
/// request's buffer.
#[derive(Clone, Debug)]
pub(crate) struct JoinRequest {
    /// Whom to answer.
    pub reply: ReplyId,
    /// The version of the request.
    pub api_version: i16,
    /// The `client.id`.
    pub client_id: Arc<str>,
    /// The client's address.
    pub client_host: Arc<str>,
    /// Empty for a member that has no id yet.
    pub member_id: Arc<str>,
    /// The id to give to a member that has none.
    pub new_member_id: Arc<str>,
    /// `group.instance.id`.
    pub instance_id: Option<Arc<str>>,
    /// How long the member may be silent.
    pub session_timeout_ms: i32,
    /// How long a rebalance waits for it.
    pub rebalance_timeout_ms: i32,
    /// "consumer", "connect", …
    pub protocol_type: Arc<str>,
    /// Name and metadata, in order of preference.
    pub protocols: Vec<(Arc<str>, Bytes)>,
}

impl JoinRequest {
    /// What a member of this request takes in memory, in bytes.
    #[must_use]
    pub(crate) fn held_bytes(&self) -> usize {
        let ids = [&self.new_member_id, &self.client_id, &self.client_host]
            .map(|string| string.len())
            .into_iter()
            .sum::<usize>();
        let instance_id = self.instance_id.as_ref().map_or(0, |id| id.len());
        let protocols =
            self.protocols.iter().map(|(name, metadata)| protocol_bytes(name, metadata));
        protocols.fold(member_bytes(ids.saturating_add(instance_id)), usize::saturating_add)
    }
}

/// A static member's rejoin that keeps the generation, waiting for its record.
#[derive(Debug)]
pub(crate) struct StaticRejoin {
    pub(in crate::coordinator) group: Arc<str>,
    generation: i32,
    /// The member as it was, to be put back when the record cannot be written.
    old: Member,
    new_member_id: Arc<str>,
    old_leader: Option<Arc<str>>,
    reply: ReplyId,
    skip_assignment: bool,
}

impl Group {
    /// A member wants to be in the next generation.
    pub(in crate::coordinator) fn join(&mut self, request: JoinRequest, cx: &mut Cx<'_>) {
        if !self.accepts(&request, cx.config.max_size) {
            let removed = self.remove_answering(&request.member_id, cx);
            cx.reply(request.reply, join_error("", ErrorCode::GroupMaxSizeReached));
            if removed {
                self.complete_join_if_all_joined(cx);
            }
        } else if !self.supports(&request.protocol_type, &request.protocols) {
            cx.reply(
                request.reply,
                join_error(&request.member_id, ErrorCode::InconsistentGroupProtocol),
            );
        } else if request.member_id.is_empty() {
            self.join_new(request, cx);
        } else if request.instance_id.is_none() && self.pending_join.contains(&request.member_id) {
            self.add_member(request.member_id.clone(), request, cx);
        } else {
            self.join_again(request, cx);
        }
    }

    fn accepts(&self, request: &JoinRequest, max_size: usize) -> bool {
        let member = self.members.get(&request.member_id);
        let known_static = request.member_id.is_empty()
            && request.instance_id.as_ref().is_some_and(|id| self.static_members.contains_key(id));
        match self.state {
            GroupState::Empty => true,
            // Those who wait are counted, not all members: when the limit was lowered the last to
            // rejoin are left out.
            GroupState::PreparingRebalance => {
                member.is_some_and(|member| member.awaiting_join.is_some())
                    || self.members.joining() < max_size
            }
            GroupState::CompletingRebalance | GroupState::Stable => {
                member.is_some() || known_static || self.members.len() < max_size
            }
        }
    }

    fn join_new(&mut self, request: JoinRequest, cx: &mut Cx<'_>) {
        let new_member_id = request.new_member_id.clone();
        let existing = request
            .instance_id
            .as_ref()
            .and_then(|instance_id| self.static_members.get(instance_id))
            .cloned();
        if let Some(existing) = existing {
            self.replace_static_member(&existing, request, cx);
        } else if request.instance_id.is_none() && request.api_version >= MEMBER_ID_REQUIRED_VERSION
        {
            let deadline = cx.after(timeout(request.session_timeout_ms));
            cx.timers.set(
                TimerKey::Session { group: self.id.clone(), member: new_member_id.clone() },
                deadline,
            );
            cx.reply(request.reply, join_error(&new_member_id, ErrorCode::MemberIdRequired));
            self.pending_join.insert(new_member_id);
        } else {
            self.add_member(new_member_id, request, cx);
        }
    }

    fn add_member(&mut self, member_id: Arc<str>, request: JoinRequest, cx: &mut Cx<'_>) {
        let member = Member {
            id: member_id.clone(),
            instance_id: request.instance_id,
            client_id: request.client_id,
            client_host: request.client_host,
            rebalance_timeout_ms: request.rebalance_timeout_ms,
            session_timeout_ms: request.session_timeout_ms,
            protocols: request.protocols,
            assignment: Bytes::new(),
            is_new: true,
            awaiting_join: Some(request.reply),
            awaiting_sync: None,
        };
        if self.members.is_empty() {
            self.protocol_type = Some(request.protocol_type);
        }
        if self.state == GroupState::PreparingRebalance && self.previous_state == GroupState::Empty
        {
            self.new_member_added = true;
        }
        self.insert(member);
        let deadline = cx.after(NEW_MEMBER_JOIN_TIMEOUT_MS);
        cx.timers.set(TimerKey::Session { group: self.id.clone(), member: member_id }, deadline);
        self.rebalance_or_complete_join(cx);
    }

    fn join_again(&mut self, request: JoinRequest, cx: &mut Cx<'_>) {
        if let Err(error) = self.validate_member(&request.member_id, request.instance_id.as_deref())
        {
            return cx.reply(request.reply, join_error(&request.member_id, error));
        }
        let unchanged = self
            .members
            .get(&request.member_id)
            .is_some_and(|member| member.protocols == request.protocols);
        let is_leader = self.is_leader(&request.member_id);
        match self.state {
            GroupState::Empty => {
                cx.reply(request.reply, join_error(&request.member_id, ErrorCode::UnknownMemberId))
            }
            // The answer to its first JoinGroup may have been lost; the leader of a Stable group
            // asks for a rebalance.
            GroupState::CompletingRebalance if unchanged => {
                self.reply_current_generation(&request, is_leader, cx)
            }
            GroupState::Stable if unchanged && !is_leader => {
                self.reply_current_generation(&request, false, cx)
            }
            GroupState::PreparingRebalance
            | GroupState::CompletingRebalance
            | GroupState::Stable => {
                let member_id = request.member_id.clone();
                self.update_member(&member_id, request, cx);
                self.rebalance_or_complete_join(cx);
            }
        }
    }

    fn reply_current_generation(&self, request: &JoinRequest, with_members: bool, cx: &mut Cx<'_>) {
        cx.reply(request.reply, Reply::Join(self.join_response(&request.member_id, with_members)));
    }

    /// Takes over what the member says now and parks its request.
    fn update_member(&mut self, member_id: &str, request: JoinRequest, cx: &mut Cx<'_>) {
        let Some(mut member) = self.members.remove(member_id) else { return };
        self.count_protocols(&member, false);
        member.protocols = request.protocols;
        member.rebalance_timeout_ms = request.rebalance_timeout_ms;
        member.session_timeout_ms = request.session_timeout_ms;
        if let Some(displaced) = member.awaiting_join.replace(request.reply) {
            cx.reply(displaced, join_error(member_id, ErrorCode::RebalanceInProgress));
        }
        self.count_protocols(&member, true);
        self.members.insert(member);
    }

    /// A static member came back without its member id: it gets a new one, and whoever still uses
    /// the old one is fenced.
    fn replace_static_member(&mut self, old_id: &Arc<str>, request: JoinRequest, cx: &mut Cx<'_>) {
        let Some(mut old) = self.members.remove(old_id) else { return };
        if let Some(waiting) = old.awaiting_join.take() {
            cx.reply(waiting, join_error(old_id, ErrorCode::FencedInstanceId));
        }
        if let Some(waiting) = old.awaiting_sync.take() {
            cx.reply(waiting, super::sync::sync_error(ErrorCode::FencedInstanceId));
        }
        let old_leader = self.leader.clone();
        let new_id = request.new_member_id.clone();
        self.rename_member(old.clone(), &new_id, cx);
        let reply = request.reply;
        let skip_assignment = request.api_version >= SKIP_ASSIGNMENT_VERSION;
        self.update_member(&new_id, request, cx);
        self.touch(&new_id, cx);
        match self.state {
            GroupState::Stable if self.select_protocol() == self.protocol => {
                let rejoin = StaticRejoin {
                    group: self.id.clone(),
                    generation: self.generation,
                    old,
                    new_member_id: new_id,
                    old_leader,
                    reply,
                    skip_assignment,
                };
                cx.out.writes.push(Write {
                    records: vec![self.to_record(None)],
                    then: Completion::StaticMember(Box::new(rejoin)),
                });
            }
            // In CompletingRebalance the leader may be assigning to the old id already.
            GroupState::Stable | GroupState::CompletingRebalance => self.prepare_rebalance(cx),
            GroupState::PreparingRebalance | GroupState::Empty => self.complete_join_phase(cx),
        }
    }

    /// Puts `member` in under `new_id`, with all that went by its old one. It is no longer in
    /// `members`.
    fn rename_member(&mut self, mut member: Member, new_id: &Arc<str>, cx: &mut Cx<'_>) {
        let old_id = std::mem::replace(&mut member.id, new_id.clone());
        cx.timers.cancel(&TimerKey::Session { group: self.id.clone(), member: old_id.clone() });
        if let Some(instance_id) = &member.instance_id {
            self.static_members.insert(instance_id.clone(), new_id.clone());
        }
        if self.is_leader(&old_id) {
            self.leader = Some(new_id.clone());
        }
        if self.pending_sync.remove(&old_id) {
            self.pending_sync.insert(new_id.clone());
        }
        self.members.insert(member);
    }

    /// The record of a static member's new id is committed, or could not be written. In the
    /// meantime the group may have gone on; then the rebalance answers the parked request.
    pub(in crate::coordinator) fn static_rejoin_written(
        &mut self,
        rejoin: StaticRejoin,
        result: Result<(), ErrorCode>,
        cx: &mut Cx<'_>,
    ) {
        let waits = self
            .members
            .get(&rejoin.new_member_id)
            .is_some_and(|member| member.awaiting_join == Some(rejoin.reply));
        if !waits || self.state != GroupState::Stable || self.generation != rejoin.generation {
            return;
        }
        if let Err(error) = result {
            if let Some(new) = self.members.remove(&rejoin.new_member_id) {
                self.count_protocols(&new, false);
                self.count_protocols(&rejoin.old, true);
                let old_id = rejoin.old.id.clone();
                self.rename_member(Member { id: new.id, ..rejoin.old }, &old_id, cx);
                self.touch(&old_id, cx);
            }
            return cx.reply(rejoin.reply, join_error("", error));
        }
        let is_leader = self.is_leader(&rejoin.new_member_id);
        let mut response =
            self.join_response(&rejoin.new_member_id, rejoin.skip_assignment && is_leader);
        if rejoin.skip_assignment {
            response.skip_assignment = is_leader;
        } else {
            // The old id as leader keeps an older client from computing an assignment nobody asked
            // for.
            response.leader = optional_str_bytes(rejoin.old_leader.as_ref()).unwrap_or_default();
        }
        self.members.change(&rejoin.new_member_id, |member| member.awaiting_join = None);
        cx.reply(rejoin.reply, Reply::Join(response));
        self.touch(&rejoin.new_member_id, cx);
    }

    /// The present generation, as `member_id` is told of it.
    pub(super) fn join_response(&self, member_id: &str, with_members: bool) -> JoinGroupResponse {
        let protocol = self.protocol.as_deref().unwrap_or("");
        let members = self.members.values().filter(|_| with_members).map(|member| {
            JoinGroupResponseMember::default()
                .with_member_id(str_bytes(&member.id))
                .with_group_instance_id(optional_str_bytes(member.instance_id.as_ref()))
                .with_metadata(member.metadata_for(protocol))
        });
        JoinGroupResponse::default()
            .with_generation_id(self.generation)
            .with_protocol_type(optional_str_bytes(self.protocol_type.as_ref()))
            .with_protocol_name(Some(str_bytes(protocol)))
            .with_leader(optional_str_bytes(self.leader.as_ref()).unwrap_or_default())
            .with_member_id(str_bytes(member_id))
            .with_members(members.collect())
    }
}

/// A refusal. The protocol name is empty rather than null, because versions before 7 cannot say
/// null.
pub(in crate::coordinator) fn join_error(member_id: &str, error: ErrorCode) -> Reply {
    Reply::Join(
        JoinGroupResponse::default()
            .with_error_code(error.code())
            .with_generation_id(-1)
            .with_protocol_name(Some(StrBytes::default()))
            .with_member_id(str_bytes(member_id)),
    )
}

impl Group {
    /// Ends a member's part in the join: its session starts anew.
    pub(super) fn joined(&mut self, member_id: &Arc<str>, cx: &mut Cx<'_>) {
        let with_members = self.is_leader(member_id);
        let response = self.join_response(member_id, with_members);
        let waiting = self.members.change(member_id, |member| {
            member.is_new = false;
            member.awaiting_join.take()
        });
        if let Some(waiting) = waiting.flatten() {
            cx.reply(waiting, Reply::Join(response));
        }
        self.touch(member_id, cx);
    }
}
