//! Heartbeats and what happens without them.

use letterbox_protocol::ErrorCode;

use super::{Cx, Group, GroupState, arm_session};

impl Group {
    /// Answers a heartbeat: `Ok` to go on, REBALANCE_IN_PROGRESS to join again.
    pub(in crate::coordinator) fn heartbeat(
        &mut self,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
        cx: &mut Cx<'_>,
    ) -> Result<(), ErrorCode> {
        self.validate_member(member_id, instance_id)?;
        if generation != self.generation {
            return Err(ErrorCode::IllegalGeneration);
        }
        self.touch(member_id, cx);
        match self.state {
            GroupState::Empty => Err(ErrorCode::UnknownMemberId),
            GroupState::PreparingRebalance => Err(ErrorCode::RebalanceInProgress),
            GroupState::CompletingRebalance | GroupState::Stable => Ok(()),
        }
    }

    /// Restarts the session of a member that has shown itself.
    pub(in crate::coordinator) fn touch(&mut self, member_id: &str, cx: &mut Cx<'_>) {
        if let Some(member) = self.members.get(member_id) {
            arm_session(&self.id, member, cx);
        }
    }

    /// A member was silent for its session timeout.
    pub(in crate::coordinator) fn session_expired(&mut self, member_id: &str, cx: &mut Cx<'_>) {
        if self.pending_join.contains(member_id) {
            self.remove(member_id, cx);
            self.complete_join_if_all_joined(cx);
        } else if self
            .members
            .get(member_id)
            .is_some_and(|member| !member.has_satisfied_heartbeat())
        {
            tracing::info!(group = %self.id, member = member_id, "removed a member that sent no \
                heartbeat within its session timeout");
            self.remove_answering(member_id, cx);
            match self.state {
                GroupState::Stable | GroupState::CompletingRebalance => self.prepare_rebalance(cx),
                GroupState::PreparingRebalance => self.complete_join_if_all_joined(cx),
                GroupState::Empty => {}
            }
        }
    }

    /// Whether offsets may be committed with this generation and member (`generation` −1 and no
    /// member: without membership).
    pub(in crate::coordinator) fn validate_offset_commit(
        &self,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
    ) -> Result<(), ErrorCode> {
        if generation < 0 && self.state == GroupState::Empty {
            return Ok(());
        }
        if generation < 0 && member_id.is_empty() && instance_id.is_none() {
            return Err(ErrorCode::UnknownMemberId);
        }
        self.validate_member(member_id, instance_id)?;
        if generation != self.generation {
            return Err(ErrorCode::IllegalGeneration);
        }
        if self.state == GroupState::CompletingRebalance {
            return Err(ErrorCode::RebalanceInProgress);
        }
        Ok(())
    }

    /// From when the retention of an offset of a topic that no member reads counts (KIP-211), given
    /// when it was committed; `None`: it does not expire now.
    pub(in crate::coordinator) fn expiry_base_ms(&self, commit_timestamp_ms: i64) -> Option<i64> {
        match (&self.protocol_type, self.state) {
            (None, _) => Some(commit_timestamp_ms),
            (Some(_), GroupState::Empty) => {
                Some(self.state_timestamp_ms().unwrap_or(commit_timestamp_ms))
            }
            (Some(_), GroupState::Stable) if self.is_consumer_group() => Some(commit_timestamp_ms),
            (Some(_), _) => None,
        }
    }
}
