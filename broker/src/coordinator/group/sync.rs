//! SyncGroup: the leader's assignment and how it reaches the members.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::{SyncGroupRequest, SyncGroupResponse};
use letterbox_env::Gather;
use letterbox_protocol::ErrorCode;

use super::{Completion, Cx, Group, GroupState, Member, Reply, ReplyId, Write, optional_str_bytes};

impl Group {
    /// A member asks for its assignment; the leader brings everybody's.
    pub(in crate::coordinator) fn sync(
        &mut self,
        request: &SyncGroupRequest,
        reply: ReplyId,
        cx: &mut Cx<'_>,
    ) {
        if let Err(error) = self.validate_sync(request) {
            return cx.reply(reply, sync_error(error));
        }
        let member_id = request.member_id.as_str();
        match self.state {
            GroupState::Empty => cx.reply(reply, sync_error(ErrorCode::UnknownMemberId)),
            GroupState::PreparingRebalance => {
                cx.reply(reply, sync_error(ErrorCode::RebalanceInProgress))
            }
            GroupState::CompletingRebalance => {
                self.pending_sync.remove(member_id);
                let displaced =
                    self.members.change(member_id, |member| member.awaiting_sync.replace(reply));
                if let Some(displaced) = displaced.flatten() {
                    cx.reply(displaced, sync_error(ErrorCode::RebalanceInProgress));
                }
                if self.is_leader(member_id) {
                    self.write_assignment(request, cx);
                }
            }
            GroupState::Stable => {
                self.pending_sync.remove(member_id);
                if let Some(member) = self.members.get(member_id) {
                    cx.reply(reply, Reply::Sync(self.sync_response(member)));
                }
            }
        }
    }

    fn validate_sync(&self, request: &SyncGroupRequest) -> Result<(), ErrorCode> {
        self.validate_member(&request.member_id, request.group_instance_id.as_deref())?;
        if request.generation_id != self.generation {
            return Err(ErrorCode::IllegalGeneration);
        }
        let differs = |said: Option<&str>, ours: Option<&Arc<str>>| matches!((said, ours), (Some(said), Some(ours)) if said != &**ours);
        if differs(request.protocol_type.as_deref(), self.protocol_type.as_ref())
            || differs(request.protocol_name.as_deref(), self.protocol.as_ref())
        {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        Ok(())
    }

    fn write_assignment(&mut self, request: &SyncGroupRequest, cx: &mut Cx<'_>) {
        // Members the leader forgot get an empty assignment; ids it made up are dropped.
        let mut assignments: BTreeMap<Arc<str>, Bytes> =
            self.members.keys().map(|id| (id.clone(), Bytes::new())).gather();
        for said in &request.assignments {
            if let Some(assignment) = assignments.get_mut(said.member_id.as_str()) {
                *assignment = Bytes::copy_from_slice(&said.assignment);
            }
        }
        let records = vec![self.to_record(Some(&assignments))];
        let then = Completion::Assignment {
            group: self.id.clone(),
            generation: self.generation,
            assignments,
        };
        cx.out.writes.push(Write { records, then });
    }

    /// The assignment is committed, or could not be written. Void when a rebalance has begun since.
    pub(in crate::coordinator) fn assignment_written(
        &mut self,
        generation: i32,
        mut assignments: BTreeMap<Arc<str>, Bytes>,
        result: Result<(), ErrorCode>,
        cx: &mut Cx<'_>,
    ) {
        if self.state != GroupState::CompletingRebalance || self.generation != generation {
            return;
        }
        if let Err(error) = result {
            self.cancel_assignment(error, cx);
            return self.prepare_rebalance(cx);
        }
        let mut waiting = Vec::new();
        self.members.change_all(|member| {
            member.assignment = assignments.remove(&member.id).unwrap_or_default();
            waiting.extend(member.awaiting_sync.take().map(|reply| (member.id.clone(), reply)));
        });
        self.transition_to(GroupState::Stable, cx.now);
        for (member_id, reply) in waiting {
            if let Some(member) = self.members.get(&member_id) {
                cx.reply(reply, Reply::Sync(self.sync_response(member)));
            }
            self.touch(&member_id, cx);
        }
    }

    /// Answers everybody who waits for an assignment with `error`.
    pub(super) fn cancel_assignment(&mut self, error: ErrorCode, cx: &mut Cx<'_>) {
        let mut answered = Vec::new();
        self.members.change_all(|member| {
            member.assignment = Bytes::new();
            if let Some(waiting) = member.awaiting_sync.take() {
                cx.out.replies.push((waiting, sync_error(error)));
                answered.push(member.id.clone());
            }
        });
        for member_id in answered {
            self.touch(&member_id, cx);
        }
    }

    /// The time to ask for the assignment is over: whoever has not is out.
    pub(in crate::coordinator) fn sync_timed_out(&mut self, cx: &mut Cx<'_>) {
        if !matches!(self.state, GroupState::CompletingRebalance | GroupState::Stable)
            || self.pending_sync.is_empty()
        {
            return;
        }
        for member_id in self.pending_sync.clone() {
            self.remove_answering(&member_id, cx);
        }
        self.prepare_rebalance(cx);
    }

    fn sync_response(&self, member: &Member) -> SyncGroupResponse {
        SyncGroupResponse::default()
            .with_protocol_type(optional_str_bytes(self.protocol_type.as_ref()))
            .with_protocol_name(optional_str_bytes(self.protocol.as_ref()))
            .with_assignment(member.assignment.clone())
    }
}

pub(in crate::coordinator) fn sync_error(error: ErrorCode) -> Reply {
    Reply::Sync(SyncGroupResponse::default().with_error_code(error.code()))
}
