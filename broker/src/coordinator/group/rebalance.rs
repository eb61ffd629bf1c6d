//! The join phase of a rebalance, from its start to the new generation.

use std::sync::Arc;

use letterbox_env::Gather;
use letterbox_protocol::ErrorCode;

use super::join::join_error;
use super::{Completion, Cx, Group, GroupState, TimerKey, Write};

impl Group {
    /// Starts a rebalance, or ends the join phase if this was the last member it waited for.
    pub(super) fn rebalance_or_complete_join(&mut self, cx: &mut Cx<'_>) {
        if self.state == GroupState::PreparingRebalance {
            self.complete_join_phase(cx);
        } else {
            self.prepare_rebalance(cx);
        }
    }

    /// Calls on every member to join again.
    pub(super) fn prepare_rebalance(&mut self, cx: &mut Cx<'_>) {
        if self.state == GroupState::CompletingRebalance {
            self.cancel_assignment(ErrorCode::RebalanceInProgress, cx);
        }
        self.pending_sync.clear();
        cx.timers.cancel(&TimerKey::Sync { group: self.id.clone() });
        let initial = self.state == GroupState::Empty;
        self.transition_to(GroupState::PreparingRebalance, cx.now);
        if initial {
            let delay_ms = cx.config.initial_rebalance_delay_ms;
            self.new_member_added = false;
            self.initial_delay_ms =
                (delay_ms, self.rebalance_timeout_ms().saturating_sub(delay_ms));
            self.arm_join(delay_ms, cx);
        } else if self.has_all_joined() {
            self.complete_join(cx);
        } else {
            self.arm_join(self.rebalance_timeout_ms(), cx);
        }
    }

    /// Ends the join phase if nobody is missing. The initial delay is always waited for.
    pub(super) fn complete_join_phase(&mut self, cx: &mut Cx<'_>) {
        if self.previous_state != GroupState::Empty {
            self.complete_join_if_all_joined(cx);
        }
    }

    /// Ends the join phase, the initial one too, if nobody is missing: after a member was taken
    /// out.
    pub(super) fn complete_join_if_all_joined(&mut self, cx: &mut Cx<'_>) {
        if self.state == GroupState::PreparingRebalance && self.has_all_joined() {
            self.complete_join(cx);
        }
    }

    /// The time to join is over.
    pub(in crate::coordinator) fn join_timed_out(&mut self, cx: &mut Cx<'_>) {
        if self.state != GroupState::PreparingRebalance {
            return;
        }
        let (delay_ms, remaining_ms) = self.initial_delay_ms;
        if self.previous_state == GroupState::Empty && self.new_member_added && remaining_ms != 0 {
            self.new_member_added = false;
            let next_ms = cx.config.initial_rebalance_delay_ms.min(remaining_ms);
            self.initial_delay_ms = (next_ms, remaining_ms.saturating_sub(delay_ms));
            self.arm_join(next_ms, cx);
        } else {
            self.complete_join(cx);
        }
    }

    fn complete_join(&mut self, cx: &mut Cx<'_>) {
        cx.timers.cancel(&TimerKey::Join { group: self.id.clone() });
        // Static members that are away keep their place until their session ends.
        let missing: Vec<Arc<str>> = self
            .members
            .values()
            .filter(|member| member.awaiting_join.is_none() && member.instance_id.is_none())
            .map(|member| member.id.clone())
            .collect();
        for member_id in &missing {
            self.remove(member_id, cx);
        }
        if self.members.is_empty() {
            return self.become_empty(cx);
        }
        if !self.elect_joined_leader() {
            // Only absent static members: wait until they come or their sessions end.
            return self.arm_join(self.rebalance_timeout_ms(), cx);
        }
        self.generation = next_generation(self.generation);
        self.protocol = self.select_protocol();
        self.transition_to(GroupState::CompletingRebalance, cx.now);
        self.pending_sync = self.members.keys().cloned().gather();
        for member_id in self.pending_sync.clone() {
            self.joined(&member_id, cx);
        }
        let deadline = cx.after(self.rebalance_timeout_ms());
        cx.timers.set(TimerKey::Sync { group: self.id.clone() }, deadline);
        tracing::info!(group = %self.id, generation = self.generation, members = self.members.len(), "new generation");
    }

    fn become_empty(&mut self, cx: &mut Cx<'_>) {
        self.generation = next_generation(self.generation);
        self.protocol = None;
        self.leader = None;
        self.pending_sync.clear();
        self.transition_to(GroupState::Empty, cx.now);
        let then = Completion::Emptied { group: self.id.clone(), leave: None };
        cx.out.writes.push(Write { records: vec![self.to_record(None)], then });
        tracing::info!(group = %self.id, generation = self.generation, "group is empty");
    }

    /// Makes sure that the leader is one who joined. `false`: nobody did.
    fn elect_joined_leader(&mut self) -> bool {
        let has_joined = |id: &Arc<str>| {
            self.members.get(id).is_some_and(|member| member.awaiting_join.is_some())
        };
        if !self.leader.as_ref().is_some_and(has_joined) {
            let Some(joined) = self.members.keys().find(|id| has_joined(id)).cloned() else {
                return false;
            };
            self.leader = Some(joined);
        }
        true
    }

    fn has_all_joined(&self) -> bool {
        self.pending_join.is_empty() && self.members.joining() == self.members.len()
    }

    fn arm_join(&self, timeout_ms: u64, cx: &mut Cx<'_>) {
        let deadline = cx.after(timeout_ms);
        cx.timers.set(TimerKey::Join { group: self.id.clone() }, deadline);
    }

    /// Takes a member out and answers what it still waits for. `false`: there was none.
    pub(super) fn remove_answering(&mut self, member_id: &str, cx: &mut Cx<'_>) -> bool {
        let Some(member) = self.remove(member_id, cx) else { return false };
        if let Some(waiting) = member.awaiting_join {
            cx.reply(waiting, join_error("", ErrorCode::UnknownMemberId));
        }
        if let Some(waiting) = member.awaiting_sync {
            cx.reply(waiting, super::sync::sync_error(ErrorCode::UnknownMemberId));
        }
        true
    }
}

/// Generations are not negative; after the largest comes the first.
fn next_generation(generation: i32) -> i32 {
    generation.checked_add(1).unwrap_or(0)
}
