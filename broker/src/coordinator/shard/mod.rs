//! One partition of `__consumer_offsets`: its groups and offsets, as a state machine without I/O.
//!
//! (state, request or time, now) → [`Output`]. Decisions see every write that was decided before,
//! also those on their way into the log: offsets are a timeline, and a group that is being deleted
//! is gone. What readers outside see of offsets is what is committed. [`Shard::failed`] takes
//! writes back; [`Shard::replay`] leads to the state that [`Shard::committed`] does.

mod admin;
mod expiry;
mod offsets;

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::{LeaveGroupResponse, SyncGroupRequest};
use letterbox_env::Failing;
use letterbox_protocol::ErrorCode;

use super::GroupConfig;
use super::group::leave::member_response;
use super::group::{
    Completion, Cx, Group, GroupState, JoinRequest, Now, Output, Reply, ReplyId, TimerKey, Timers,
    Write, WriteId,
};
use super::memory::{Charge, GroupMemory, Of, group_bytes, offset_bytes};
use super::records::{DecodeError, OffsetAndMetadata, OffsetKey, Record};
use super::replicated_log::{AppendError, KeyValue};
use super::runtime::Machine;
use super::runtime::timeline::Timeline;

pub(crate) use offsets::commit_error;

/// How many deadlines are looked at before other events of the partition have their turn.
const DUE_AT_ONCE_MAX: usize = 256;
/// Most tombstones of one write, and most bytes of their keys: far below any sensible
/// `max.message.bytes`.
const TOMBSTONES_PER_WRITE: usize = 500;
const TOMBSTONE_BYTES_PER_WRITE: usize = 64 * 1024;

/// The groups of one partition. See the module's documentation.
pub(crate) struct Shard {
    config: GroupConfig,
    /// A group whose deletion is on its way into the log is not here.
    groups: BTreeMap<Arc<str>, Group>,
    /// A group whose latest offsets are not empty is in `groups`.
    offsets: Timeline<OffsetKey, OffsetAndMetadata>,
    /// Groups whose deletion is on its way into the log, in the order of the writes.
    being_deleted: VecDeque<(WriteId, Group)>,
    timers: Timers,
    memory: Arc<GroupMemory>,
    offsets_charge: Charge,
    /// What of which group was not written.
    unwritten: Failing<(Arc<str>, AppendError)>,
}

/// Every offset of a group.
fn of_group(group: &Arc<str>) -> RangeInclusive<OffsetKey> {
    // Topic names are ASCII; a char that no UTF-8 string can exceed by its first character ends the
    // range.
    let key =
        |topic: &str, partition| OffsetKey { group: group.clone(), topic: topic.into(), partition };
    key("", i32::MIN)..=key("\u{10ffff}", i32::MAX)
}

/// Every offset of a group in a topic.
fn of_topic(group: &Arc<str>, topic: &Arc<str>) -> RangeInclusive<OffsetKey> {
    let key = |partition| OffsetKey { group: group.clone(), topic: topic.clone(), partition };
    key(i32::MIN)..=key(i32::MAX)
}

impl Shard {
    /// An empty shard; [`replay`](Self::replay) fills it, then [`on_loaded`](Self::on_loaded)
    /// starts it.
    #[must_use]
    pub(crate) fn new(config: GroupConfig, memory: Arc<GroupMemory>) -> Self {
        Self {
            config,
            groups: BTreeMap::new(),
            offsets: Timeline::new(|key, offset| {
                offset_bytes(&key.group, &key.topic, &offset.metadata)
            }),
            being_deleted: VecDeque::new(),
            timers: Timers::default(),
            memory,
            offsets_charge: Charge::none(Of::Offsets),
            unwritten: Failing::default(),
        }
    }

    /// Takes in a record of the log, in the log's order.
    pub(crate) fn replay(&mut self, record: Record, now: Now) {
        match record {
            Record::Offset { key, value } => {
                if value.is_some() {
                    self.ensure_group(&key.group, now);
                }
                self.offsets.replay(key, value);
                self.charge_offsets();
            }
            Record::Group { group, value: Some(value) } => {
                let mut state = Group::from_record(group.clone(), value, now);
                state.recharge(&self.memory);
                self.groups.insert(group, state);
            }
            Record::Group { group, value: None } => {
                self.groups.remove(&group);
            }
            Record::Unknown { .. } => {}
        }
    }

    /// Everything was replayed: sessions begin to count.
    pub(crate) fn on_loaded(&mut self, now: Now) -> Output {
        let mut out = Output::default();
        for group in self.groups.values_mut() {
            group.on_loaded(&mut Cx {
                config: &self.config,
                timers: &mut self.timers,
                out: &mut out,
                now,
            });
        }
        self.arm_expiry(now);
        out
    }

    /// What is written of the groups whose members have their assignment.
    pub(crate) fn live_groups(&self) -> Vec<Record> {
        let live = self.groups.values().filter(|group| group.state() == GroupState::Stable);
        live.map(|group| group.to_record(None)).collect()
    }

    pub(crate) fn has_no_groups(&self) -> bool {
        self.groups.is_empty()
    }

    /// Goes on with a group that outlived the topic in which it was written, and writes it in this
    /// one: its members stay, and what each commits next is taken. What they had committed went with
    /// that topic. One that cannot be written, because this topic allows smaller records, goes on
    /// until its partition is read again; then its members join again.
    pub(crate) fn go_on(&mut self, live: &Record, now: Now) -> Output {
        let mut out = Output::default();
        if let Record::Group { group, .. } = live {
            self.replay(live.clone(), now);
            self.write(vec![live.clone()], None, now, &mut out);
            self.with_group(group, &mut out, now, |group, cx| group.on_loaded(cx));
        }
        out
    }

    /// The next time [`advance`](Self::advance) has something to do, in milliseconds of the
    /// monotonic clock.
    #[must_use]
    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        self.timers.next_ms()
    }

    /// Does what is due, some of it if that is much: then [`Self::next_deadline_ms`] is still past.
    pub(crate) fn advance(&mut self, now: Now) -> Output {
        let mut out = Output::default();
        for _ in 0..DUE_AT_ONCE_MAX {
            let Some(key) = self.timers.pop_due(now.mono_ms) else { break };
            match key {
                TimerKey::Session { group, member } => {
                    self.with_group(&group, &mut out, now, |group, cx| {
                        group.session_expired(&member, cx)
                    });
                    self.drop_if_unused(&group);
                }
                TimerKey::Join { group } => {
                    self.with_group(&group, &mut out, now, |group, cx| group.join_timed_out(cx))
                }
                TimerKey::Sync { group } => {
                    self.with_group(&group, &mut out, now, |group, cx| group.sync_timed_out(cx))
                }
                TimerKey::Expiry => self.expire(now, &mut out),
            }
        }
        out
    }

    /// The records of a write are committed.
    pub(crate) fn committed(&mut self, then: Completion, now: Now) -> Output {
        if let Completion::Apply { write, .. } = &then {
            self.offsets.commit(*write);
            self.charge_offsets();
            while self.being_deleted.pop_front_if(|(of, _)| *of <= *write).is_some() {}
        }
        let mut out = Output::default();
        self.complete(then, Ok(()), &mut out, now);
        out
    }

    /// The records of the newest writes, oldest first, were not appended: what was decided with
    /// them is taken back.
    pub(crate) fn failed(&mut self, newest: Vec<Completion>, why: AppendError, now: Now) -> Output {
        let writes = newest.iter().filter_map(|then| {
            if let Completion::Apply { write, .. } = then { Some(*write) } else { None }
        });
        if let Some(first) = writes.min() {
            self.roll_back(first, now);
        }
        let mut out = Output::default();
        for then in newest {
            self.complete(then, Err(why), &mut out, now);
        }
        out
    }

    fn complete(
        &mut self,
        then: Completion,
        result: Result<(), AppendError>,
        out: &mut Output,
        now: Now,
    ) {
        let told = result.map_err(to_response);
        match then {
            Completion::Assignment { group, generation, assignments } => {
                if result == Err(AppendError::TooLarge)
                    && self.unwritten.failed((group.clone(), AppendError::TooLarge))
                {
                    tracing::warn!(%group, members = assignments.len(), "cannot store the \
                        assignment of a group, because the group's record, which has all members' \
                        subscriptions, is larger than max.message.bytes of __consumer_offsets: the \
                        group rebalances until it has fewer members or topics");
                }
                self.with_group(&group, out, now, |group, cx| {
                    group.assignment_written(generation, assignments, told, cx)
                });
            }
            Completion::StaticMember(rejoin) => {
                self.with_group(&rejoin.group.clone(), out, now, |group, cx| {
                    group.static_rejoin_written(*rejoin, told, cx)
                });
            }
            Completion::Emptied { group, leave } => {
                // The old generation comes back if the coordinator moves now; its sessions then
                // end by themselves.
                if let Err(error) = result
                    && self.unwritten.failed((group.clone(), error))
                {
                    tracing::warn!(%group, %error, "could not write to the log that the group is \
                        empty");
                }
                if let Some((reply, response)) = leave {
                    let response = match told {
                        Ok(()) => response,
                        Err(error) => LeaveGroupResponse::default().with_error_code(error.code()),
                    };
                    out.replies.push((reply, Reply::Leave(response)));
                }
            }
            Completion::Apply { reply: Some((id, reply)), .. } => {
                out.replies.push((
                    id,
                    result
                        .err()
                        .map_or_else(|| reply.clone(), |error| with_error(reply.clone(), error)),
                ));
            }
            Completion::Apply { reply: None, .. } if result == Err(AppendError::TooLarge) => {
                tracing::warn!(
                    "a group does not go on in the new __consumer_offsets after a \
                    restart, because its record is larger than max.message.bytes there"
                );
            }
            Completion::Apply { reply: None, .. } => {}
            Completion::Fence(reply) => out.replies.push((reply, Reply::Fence)),
        }
    }

    /// JoinGroup. The caller has checked the group id, the session timeout and the size of the
    /// metadata.
    pub(crate) fn join(&mut self, group_id: &Arc<str>, request: JoinRequest, now: Now) -> Output {
        let mut out = Output::default();
        let bytes = request.held_bytes();
        let (of_group, of_member) = match self.groups.get(group_id) {
            Some(group) => (0, group.held_by(&request)),
            None => (group_bytes(group_id), 0),
        };
        if !self.memory.takes_member(
            bytes,
            of_group.saturating_add(bytes.saturating_sub(of_member)),
            now,
        ) {
            let refused = super::group::join::join_error(
                &request.member_id,
                ErrorCode::CoordinatorNotAvailable,
            );
            out.replies.push((request.reply, refused));
            return out;
        }
        if !self.groups.contains_key(group_id) {
            if !request.member_id.is_empty() {
                out.replies.push((
                    request.reply,
                    super::group::join::join_error(&request.member_id, ErrorCode::UnknownMemberId),
                ));
                return out;
            }
            self.groups.insert(group_id.clone(), Group::new(group_id.clone(), now));
        }
        self.with_group(group_id, &mut out, now, |group, cx| group.join(request, cx));
        self.drop_if_unused(group_id);
        out
    }

    /// SyncGroup.
    pub(crate) fn sync(&mut self, request: &SyncGroupRequest, reply: ReplyId, now: Now) -> Output {
        let mut out = Output::default();
        let bytes = request
            .assignments
            .iter()
            .map(|said| said.assignment.len())
            .fold(0, usize::saturating_add);
        if !self.memory.takes_member(bytes, bytes, now) {
            out.replies
                .push((reply, super::group::sync::sync_error(ErrorCode::CoordinatorNotAvailable)));
        } else if self.groups.contains_key(request.group_id.as_str()) {
            self.with_group(&request.group_id, &mut out, now, |group, cx| {
                group.sync(request, reply, cx)
            });
        } else {
            out.replies.push((reply, super::group::sync::sync_error(ErrorCode::UnknownMemberId)));
        }
        out
    }

    /// Heartbeat; answered at once.
    ///
    /// # Errors
    /// What the member is to be told; REBALANCE_IN_PROGRESS asks it to join again.
    pub(crate) fn heartbeat(
        &mut self,
        group_id: &str,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
        now: Now,
    ) -> Result<(), ErrorCode> {
        let mut out = Output::default();
        let group = self.groups.get_mut(group_id).ok_or(ErrorCode::UnknownMemberId)?;
        let mut cx = Cx { config: &self.config, timers: &mut self.timers, out: &mut out, now };
        group.heartbeat(member_id, instance_id, generation, &mut cx)
    }

    /// LeaveGroup, as a list of members whatever the version.
    pub(crate) fn leave(
        &mut self,
        group_id: &str,
        members: &[MemberIdentity],
        reply: ReplyId,
        now: Now,
    ) -> Output {
        let mut out = Output::default();
        if let Some((group_id, _)) = self.groups.get_key_value(group_id) {
            let group_id = group_id.clone();
            self.with_group(&group_id, &mut out, now, |group, cx| group.leave(members, reply, cx));
            self.drop_if_unused(&group_id);
        } else {
            let members = members
                .iter()
                .map(|member| member_response(member, Some(ErrorCode::UnknownMemberId)));
            out.replies.push((
                reply,
                Reply::Leave(LeaveGroupResponse::default().with_members(members.collect())),
            ));
        }
        out
    }

    /// The groups by id, for reading.
    #[cfg(test)]
    pub(crate) fn groups(&self) -> &BTreeMap<Arc<str>, Group> {
        &self.groups
    }

    /// Writes `records`, which take effect for decisions now. Group records are tombstones.
    fn write(
        &mut self,
        records: Vec<Record>,
        reply: Option<(ReplyId, Reply)>,
        now: Now,
        out: &mut Output,
    ) {
        let changes = records.iter().filter_map(|record| match record {
            Record::Offset { key, value } => Some((key.clone(), value.clone())),
            Record::Group { .. } | Record::Unknown { .. } => None,
        });
        let write = self.offsets.write(changes);
        self.charge_offsets();
        for record in &records {
            match record {
                Record::Offset { key, value: Some(_) } => self.ensure_group(&key.group, now),
                Record::Group { group, value: None } => {
                    if let Some(group) = self.groups.remove(group) {
                        self.being_deleted.push_back((write, group));
                    }
                }
                Record::Offset { value: None, .. }
                | Record::Group { .. }
                | Record::Unknown { .. } => {}
            }
        }
        out.writes.push(Write { records, then: Completion::Apply { write, reply } });
    }

    /// Writes tombstones, in pieces that each fit into a batch; `reply` waits for the last of them.
    /// Also without any, `reply` waits for what was decided before it, because that may have made
    /// them unnecessary.
    fn remove(
        &mut self,
        tombstones: Vec<Record>,
        mut reply: Option<(ReplyId, Reply)>,
        now: Now,
        out: &mut Output,
    ) {
        let mut tombstones = tombstones.into_iter().peekable();
        while tombstones.peek().is_some() || reply.is_some() {
            let (mut records, mut bytes) = (Vec::new(), 0_usize);
            while let Some(record) = tombstones.next_if(|_| {
                records.len() < TOMBSTONES_PER_WRITE && bytes < TOMBSTONE_BYTES_PER_WRITE
            }) {
                bytes = bytes.saturating_add(match &record {
                    Record::Offset { key, .. } => key.group.len().saturating_add(key.topic.len()),
                    Record::Group { group, .. } => group.len(),
                    Record::Unknown { .. } => 0,
                });
                records.push(record);
            }
            let reply = if tombstones.peek().is_none() { reply.take() } else { None };
            self.write(records, reply, now, out);
        }
    }

    /// Takes back the write `first` and every later one.
    fn roll_back(&mut self, first: WriteId, now: Now) {
        let changed = self.offsets.roll_back(first);
        self.charge_offsets();
        while let Some((_, group)) = self.being_deleted.pop_back_if(|(write, _)| *write >= first) {
            // Who joined meanwhile goes on; the older generation has no members.
            self.groups.entry(group.id().clone()).or_insert(group);
        }
        for key in changed {
            if self.offsets.latest_range(of_group(&key.group)).next().is_some() {
                self.ensure_group(&key.group, now);
            } else {
                self.drop_if_unused(&key.group);
            }
        }
    }

    fn ensure_group(&mut self, group_id: &Arc<str>, now: Now) {
        if !self.groups.contains_key(group_id) {
            let mut group = Group::new(group_id.clone(), now);
            group.recharge(&self.memory);
            self.groups.insert(group_id.clone(), group);
        }
    }

    fn charge_offsets(&mut self) {
        self.offsets_charge.set(&self.memory, self.offsets.weight());
    }

    fn with_group(
        &mut self,
        group_id: &str,
        out: &mut Output,
        now: Now,
        event: impl FnOnce(&mut Group, &mut Cx<'_>),
    ) {
        if let Some(group) = self.groups.get_mut(group_id) {
            event(group, &mut Cx { config: &self.config, timers: &mut self.timers, out, now });
            group.recharge(&self.memory);
        }
    }

    /// Forgets a group that never had a generation nor offsets: nothing of it was written.
    fn drop_if_unused(&mut self, group_id: &Arc<str>) {
        let is_unused = |group: &Group| {
            group.is_unused() && group.generation() == 0 && group.protocol_type().is_none()
        };
        if self.groups.get(group_id).is_some_and(is_unused)
            && self.offsets.latest_range(of_group(group_id)).next().is_none()
        {
            self.groups.remove(group_id);
        }
    }
}

impl Machine for Shard {
    type Record = Record;
    type Reply = Reply;
    type Completion = Completion;
    type CodecError = DecodeError;

    fn encode(record: &Record) -> Result<KeyValue, DecodeError> {
        record.encode()
    }

    fn replay(&mut self, key: &Bytes, value: Option<&Bytes>, now: Now) -> Result<(), DecodeError> {
        Record::decode(key, value).map(|record| self.replay(record, now))
    }

    fn on_loaded(&mut self, now: Now) -> Output {
        self.on_loaded(now)
    }

    fn next_deadline_ms(&self) -> Option<u64> {
        self.next_deadline_ms()
    }

    fn advance(&mut self, now: Now) -> Output {
        self.advance(now)
    }

    fn committed(&mut self, then: Completion, now: Now) -> Output {
        self.committed(then, now)
    }

    fn failed(&mut self, newest: Vec<Completion>, why: AppendError, now: Now) -> Output {
        self.failed(newest, why, now)
    }
}

/// What a client is told when its records were not appended, as Kafka maps the errors of the log.
fn to_response(error: AppendError) -> ErrorCode {
    match error {
        AppendError::NotEnoughReplicas | AppendError::UnknownPartition => {
            ErrorCode::CoordinatorNotAvailable
        }
        AppendError::NotLeader | AppendError::Storage => ErrorCode::NotCoordinator,
        AppendError::TooLarge => ErrorCode::UnknownServerError,
    }
}

/// The answer instead of `reply` when its records were not appended.
fn with_error(reply: Reply, why: AppendError) -> Reply {
    let error = to_response(why);
    match reply {
        Reply::OffsetCommit(mut response) => {
            // Only for offsets there is an error that says it: send fewer, or less metadata.
            let error = if why == AppendError::TooLarge {
                ErrorCode::InvalidCommitOffsetSize
            } else {
                error
            };
            for partition in response.topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
                if partition.error_code == 0 {
                    partition.error_code = error.code();
                }
            }
            Reply::OffsetCommit(response)
        }
        Reply::OffsetDelete(response) => {
            Reply::OffsetDelete(response.with_error_code(error.code()).with_topics(Vec::new()))
        }
        Reply::DeleteGroups(mut response) => {
            // Not only what was to be removed: "not found" may rest on a deletion that has failed
            // as well.
            for result in &mut response.results {
                result.error_code = error.code();
            }
            Reply::DeleteGroups(response)
        }
        Reply::Leave(_) => {
            Reply::Leave(LeaveGroupResponse::default().with_error_code(error.code()))
        }
        reply @ (Reply::Join(_) | Reply::Sync(_) | Reply::Fence) => reply,
    }
}

#[cfg(test)]
mod in_flight;
#[cfg(test)]
mod tests;
