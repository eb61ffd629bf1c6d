//! One partition of `__consumer_offsets`: its groups and offsets, as a state machine without I/O.
//!
//! (state, request or time, now) → [`Output`]. Durable state changes in [`Shard::written`], when the records that say so are
//! committed, or in [`Shard::replay`], when they are read back; so both ways lead to the same state.

mod admin;
mod expiry;
mod offsets;

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::{LeaveGroupResponse, SyncGroupRequest};

use super::GroupConfig;
use super::group::leave::member_response;
use super::group::{Completion, Cx, Group, JoinRequest, Now, Output, Reply, ReplyId};
use super::records::{OffsetAndMetadata, Record};
use super::timers::{TimerKey, Timers};

pub(super) use offsets::commit_error;

type GroupOffsets = BTreeMap<Arc<str>, BTreeMap<i32, OffsetAndMetadata>>;

/// The groups of one partition. See the module's documentation.
pub struct Shard {
    config: GroupConfig,
    groups: BTreeMap<Arc<str>, Group>,
    /// By group, topic and partition. A group with offsets is in `groups` too.
    offsets: BTreeMap<Arc<str>, GroupOffsets>,
    timers: Timers,
}

impl Shard {
    /// An empty shard; [`replay`](Self::replay) fills it, then [`on_loaded`](Self::on_loaded) starts it.
    #[must_use]
    pub fn new(config: GroupConfig) -> Self {
        Self { config, groups: BTreeMap::new(), offsets: BTreeMap::new(), timers: Timers::default() }
    }

    /// Takes in a record of the log, in the log's order.
    pub fn replay(&mut self, record: Record, now: Now) {
        match record {
            Record::Offset { .. } => self.apply_offset(record, now),
            Record::Group { group, value: Some(value) } => {
                let state = Group::from_record(group.clone(), value, now);
                self.groups.insert(group, state);
            }
            Record::Group { group, value: None } => {
                self.groups.remove(&group);
            }
            Record::Unknown { .. } => {}
        }
    }

    /// Everything was replayed: sessions begin to count.
    pub fn on_loaded(&mut self, now: Now) -> Output {
        let mut out = Output::default();
        for group in self.groups.values_mut() {
            group.on_loaded(&mut Cx { config: &self.config, timers: &mut self.timers, out: &mut out, now });
        }
        self.arm_expiry(now);
        out
    }

    /// The next time [`advance`](Self::advance) has something to do, in milliseconds of the monotonic clock.
    #[must_use]
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.timers.next_ms()
    }

    /// Does what is due.
    pub fn advance(&mut self, now: Now) -> Output {
        let mut out = Output::default();
        while let Some(key) = self.timers.pop_due(now.mono_ms) {
            match key {
                TimerKey::Session { group, member } => {
                    self.with_group(&group, &mut out, now, |group, cx| group.session_expired(&member, cx));
                    self.drop_if_unused(&group);
                }
                TimerKey::Join { group } => self.with_group(&group, &mut out, now, |group, cx| group.join_timed_out(cx)),
                TimerKey::Sync { group } => self.with_group(&group, &mut out, now, |group, cx| group.sync_timed_out(cx)),
                TimerKey::Expiry => self.expire(now, &mut out),
            }
        }
        out
    }

    /// The records of a write are committed (`Ok`), or are not and will not be (`Err`, as clients are to be told).
    pub fn written(&mut self, then: Completion, result: Result<(), ResponseError>, now: Now) -> Output {
        let mut out = Output::default();
        match then {
            Completion::Assignment { group, generation, assignments } => {
                self.with_group(&group, &mut out, now, |group, cx| group.assignment_written(generation, assignments, result, cx));
            }
            Completion::StaticMember(rejoin) => {
                self.with_group(&rejoin.group.clone(), &mut out, now, |group, cx| group.static_rejoin_written(*rejoin, result, cx));
            }
            Completion::Emptied { group, leave } => {
                if let Err(error) = result {
                    // The old generation comes back if the coordinator moves now; its sessions then end by themselves.
                    tracing::warn!(%group, ?error, "that the group is empty could not be written");
                }
                if let Some((reply, response)) = leave {
                    let response = match result {
                        Ok(()) => response,
                        Err(error) => LeaveGroupResponse::default().with_error_code(error.code()),
                    };
                    out.replies.push((reply, Reply::Leave(response)));
                }
            }
            Completion::Apply { records, reply } => {
                if result.is_ok() {
                    for record in records {
                        self.apply(record, now);
                    }
                }
                if let Some((id, reply)) = reply {
                    out.replies.push((id, result.err().map_or_else(|| reply.clone(), |error| with_error(reply.clone(), error))));
                }
            }
            Completion::Fence(reply) => out.replies.push((reply, Reply::Fence)),
        }
        out
    }

    /// JoinGroup. The caller has checked the group id and the session timeout.
    pub fn join(&mut self, group_id: &Arc<str>, request: JoinRequest, now: Now) -> Output {
        let mut out = Output::default();
        if !self.groups.contains_key(group_id) {
            if !request.member_id.is_empty() {
                out.replies.push((request.reply, super::group::join::join_error(&request.member_id, ResponseError::UnknownMemberId)));
                return out;
            }
            self.groups.insert(group_id.clone(), Group::new(group_id.clone(), now));
        }
        self.with_group(group_id, &mut out, now, |group, cx| group.join(request, cx));
        self.drop_if_unused(group_id);
        out
    }

    /// SyncGroup.
    pub fn sync(&mut self, request: &SyncGroupRequest, reply: ReplyId, now: Now) -> Output {
        let mut out = Output::default();
        if self.groups.contains_key(request.group_id.as_str()) {
            self.with_group(&request.group_id, &mut out, now, |group, cx| group.sync(request, reply, cx));
        } else {
            out.replies.push((reply, super::group::sync::sync_error(ResponseError::UnknownMemberId)));
        }
        out
    }

    /// Heartbeat; answered at once.
    ///
    /// # Errors
    /// What the member is to be told; REBALANCE_IN_PROGRESS asks it to join again.
    pub fn heartbeat(
        &mut self,
        group_id: &str,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
        now: Now,
    ) -> Result<(), ResponseError> {
        let mut out = Output::default();
        let group = self.groups.get_mut(group_id).ok_or(ResponseError::UnknownMemberId)?;
        let mut cx = Cx { config: &self.config, timers: &mut self.timers, out: &mut out, now };
        group.heartbeat(member_id, instance_id, generation, &mut cx)
    }

    /// LeaveGroup, as a list of members whatever the version.
    pub fn leave(&mut self, group_id: &str, members: &[MemberIdentity], reply: ReplyId, now: Now) -> Output {
        let mut out = Output::default();
        if let Some((group_id, _)) = self.groups.get_key_value(group_id) {
            let group_id = group_id.clone();
            self.with_group(&group_id, &mut out, now, |group, cx| group.leave(members, reply, cx));
            self.drop_if_unused(&group_id);
        } else {
            let members = members.iter().map(|member| member_response(member, Some(ResponseError::UnknownMemberId)));
            out.replies.push((reply, Reply::Leave(LeaveGroupResponse::default().with_members(members.collect()))));
        }
        out
    }

    /// The groups by id, for reading.
    #[must_use]
    pub fn groups(&self) -> &BTreeMap<Arc<str>, Group> {
        &self.groups
    }

    /// A record that this broker wrote has been committed. Unlike in [`replay`](Self::replay) the group may have gone on.
    fn apply(&mut self, record: Record, now: Now) {
        match record {
            Record::Offset { .. } => self.apply_offset(record, now),
            Record::Group { group, value: None } if self.groups.get(&group).is_some_and(Group::is_unused) => {
                self.groups.remove(&group);
            }
            Record::Group { .. } | Record::Unknown { .. } => {}
        }
    }

    fn with_group(&mut self, group_id: &str, out: &mut Output, now: Now, event: impl FnOnce(&mut Group, &mut Cx<'_>)) {
        if let Some(group) = self.groups.get_mut(group_id) {
            event(group, &mut Cx { config: &self.config, timers: &mut self.timers, out, now });
        }
    }

    /// Forgets a group that never had a generation nor offsets: nothing of it was written.
    fn drop_if_unused(&mut self, group_id: &str) {
        let is_unused = |group: &Group| group.is_unused() && group.generation() == 0 && group.protocol_type().is_none();
        if self.groups.get(group_id).is_some_and(is_unused) && !self.offsets.contains_key(group_id) {
            self.groups.remove(group_id);
        }
    }
}

/// The answer instead of `reply` when its records were not committed.
fn with_error(reply: Reply, error: ResponseError) -> Reply {
    match reply {
        Reply::OffsetCommit(mut response) => {
            for partition in response.topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
                if partition.error_code == 0 {
                    partition.error_code = error.code();
                }
            }
            Reply::OffsetCommit(response)
        }
        Reply::OffsetDelete(response) => Reply::OffsetDelete(response.with_error_code(error.code()).with_topics(Vec::new())),
        Reply::DeleteGroups(mut response) => {
            for result in response.results.iter_mut().filter(|result| result.error_code == 0) {
                result.error_code = error.code();
            }
            Reply::DeleteGroups(response)
        }
        Reply::Leave(_) => Reply::Leave(LeaveGroupResponse::default().with_error_code(error.code())),
        reply @ (Reply::Join(_) | Reply::Sync(_) | Reply::Fence) => reply,
    }
}

#[cfg(test)]
mod tests;
