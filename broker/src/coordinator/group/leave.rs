//! LeaveGroup, by the members themselves or by an administrator.

use kafka_protocol::messages::LeaveGroupResponse;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use letterbox_protocol::ErrorCode;

use super::{Completion, Cx, Group, GroupState, Reply, ReplyId};

impl Group {
    /// Takes members out; each is answered for itself. The answer waits if the group became empty
    /// and that is to be written.
    pub(in crate::coordinator) fn leave(
        &mut self,
        members: &[MemberIdentity],
        reply: ReplyId,
        cx: &mut Cx<'_>,
    ) {
        let mut responses = Vec::with_capacity(members.len());
        let mut any_left = false;
        for member in members {
            let result = self.leave_one(member, cx);
            any_left |= result.is_ok();
            responses.push(member_response(member, result.err()));
        }
        let response = LeaveGroupResponse::default().with_members(responses);
        if any_left {
            match self.state {
                GroupState::Stable | GroupState::CompletingRebalance => self.prepare_rebalance(cx),
                GroupState::PreparingRebalance => self.complete_join_phase(cx),
                GroupState::Empty => {}
            }
        }
        match cx.out.writes.last_mut() {
            Some(write) => {
                write.then =
                    Completion::Emptied { group: self.id.clone(), leave: Some((reply, response)) }
            }
            None => cx.reply(reply, Reply::Leave(response)),
        }
    }

    fn leave_one(&mut self, member: &MemberIdentity, cx: &mut Cx<'_>) -> Result<(), ErrorCode> {
        let instance_id = member.group_instance_id.as_deref();
        if member.member_id.is_empty() {
            // An administrator names a static member by its instance id only.
            let member_id = instance_id.and_then(|id| self.static_members.get(id)).cloned();
            self.remove_answering(&member_id.ok_or(ErrorCode::UnknownMemberId)?, cx);
        } else if self.pending_join.contains(member.member_id.as_str()) {
            self.remove(&member.member_id, cx);
        } else {
            self.validate_member(&member.member_id, instance_id)?;
            self.remove_answering(&member.member_id, cx);
        }
        Ok(())
    }
}

/// One member's part of the answer.
pub(in crate::coordinator) fn member_response(
    member: &MemberIdentity,
    error: Option<ErrorCode>,
) -> MemberResponse {
    MemberResponse::default()
        .with_member_id(member.member_id.clone())
        .with_group_instance_id(member.group_instance_id.clone())
        .with_error_code(error.map_or(0, |error| error.code()))
}
