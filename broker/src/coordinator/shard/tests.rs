//! Groups driven event by event; `in_flight` has what happens while writes are on their way. Times
//! are milliseconds since the start of each test.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopics;
use kafka_protocol::messages::offset_fetch_response::OffsetFetchResponseTopics;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    GroupId, JoinGroupResponse, OffsetCommitRequest, SyncGroupRequest, SyncGroupResponse, TopicName,
};
use letterbox_protocol::ErrorCode as E;
use letterbox_protocol::model::TopicId;
use proptest::prelude::*;

use super::Shard;
use crate::coordinator::GroupConfig;
use crate::coordinator::group::{
    Group, GroupState, JoinRequest, Now, Output, Reply, ReplyId, Write, str_bytes,
};
use crate::coordinator::memory::GroupMemory;
use crate::coordinator::records::{OffsetKey, Record};
use crate::coordinator::replicated_log::AppendError;

const WALL_MS: i64 = 1_700_000_000_000;
const TOPIC_ID: TopicId = TopicId::from_u128(7);

/// A shard with a log that commits when told to.
struct World {
    shard: Shard,
    now_ms: u64,
    next_id: u64,
    replies: Vec<(ReplyId, Reply)>,
    pending: Vec<Write>,
    log: Vec<Record>,
    commit_at_once: bool,
}

impl World {
    fn new(config: GroupConfig) -> Self {
        Self::with_memory(config, GroupMemory::default())
    }

    fn with_memory(config: GroupConfig, memory: GroupMemory) -> Self {
        let mut shard = Shard::new(config, Arc::new(memory));
        shard.on_loaded(Now { mono_ms: 0, wall_ms: WALL_MS });
        Self {
            shard,
            now_ms: 0,
            next_id: 0,
            replies: Vec::new(),
            pending: Vec::new(),
            log: Vec::new(),
            commit_at_once: true,
        }
    }

    fn now(&self) -> Now {
        Now { mono_ms: self.now_ms, wall_ms: WALL_MS + i64::try_from(self.now_ms).unwrap() }
    }

    fn id(&mut self) -> ReplyId {
        self.next_id += 1;
        ReplyId(self.next_id)
    }

    fn take(&mut self, out: Output) {
        self.replies.extend(out.replies);
        self.pending.extend(out.writes);
        while self.commit_at_once && !self.pending.is_empty() {
            self.commit(Ok(()));
        }
    }

    /// Ends the oldest write, or says that it and all later ones cannot be appended.
    fn commit(&mut self, result: Result<(), AppendError>) {
        let now = self.now();
        let out = match result {
            Ok(()) => {
                let write = self.pending.remove(0);
                for record in &write.records {
                    let (key, value) = record.encode().unwrap();
                    self.log.push(Record::decode(&key, value.as_ref()).unwrap());
                }
                self.shard.committed(write.then, now)
            }
            Err(why) => self.shard.failed(
                self.pending.drain(..).map(|write| write.then).collect(),
                why,
                now,
            ),
        };
        self.take(out);
    }

    fn advance(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while let Some(at) = self.shard.next_deadline_ms().filter(|at| *at <= end) {
            self.now_ms = at.max(self.now_ms);
            let out = self.shard.advance(self.now());
            self.take(out);
        }
        self.now_ms = end;
    }

    fn forget(&mut self, topic: &str, id: TopicId) -> Output {
        let now = self.now();
        self.shard.forget_topics(&[(topic.into(), id)], now)
    }

    fn join(&mut self, join: Join) -> ReplyId {
        let protocols = join
            .protocols
            .iter()
            .map(|(name, data)| ((*name).into(), Bytes::from_static(data.as_bytes())))
            .collect();
        self.join_with(join, protocols)
    }

    fn join_with(&mut self, join: Join, protocols: Vec<(Arc<str>, Bytes)>) -> ReplyId {
        let reply = self.id();
        let request = JoinRequest {
            reply,
            api_version: join.version,
            client_id: "client".into(),
            client_host: "/127.0.0.1".into(),
            member_id: join.member.as_str().into(),
            new_member_id: format!("m{}", reply.0).into(),
            instance_id: join.instance.map(Arc::from),
            session_timeout_ms: 10_000,
            rebalance_timeout_ms: 60_000,
            protocol_type: join.protocol_type.into(),
            protocols,
        };
        let out = self.shard.join(&"g".into(), request, self.now());
        self.take(out);
        reply
    }

    fn sync(
        &mut self,
        member: &str,
        generation: i32,
        assignments: &[(&str, &'static str)],
    ) -> ReplyId {
        let reply = self.id();
        let assignments = assignments.iter().map(|(id, bytes)| {
            SyncGroupRequestAssignment::default()
                .with_member_id(str_bytes(id))
                .with_assignment(Bytes::from_static(bytes.as_bytes()))
        });
        let request = SyncGroupRequest::default()
            .with_group_id(GroupId(str_bytes("g")))
            .with_member_id(str_bytes(member))
            .with_generation_id(generation)
            .with_assignments(assignments.collect());
        let out = self.shard.sync(&request, reply, self.now());
        self.take(out);
        reply
    }

    fn leave(&mut self, member: &str, instance: Option<&str>) -> ReplyId {
        let reply = self.id();
        let identity = MemberIdentity::default()
            .with_member_id(str_bytes(member))
            .with_group_instance_id(instance.map(str_bytes));
        let out = self.shard.leave("g", &[identity], reply, self.now());
        self.take(out);
        reply
    }

    fn commit_offset(
        &mut self,
        member: &str,
        generation: i32,
        offset: i64,
        metadata: &str,
    ) -> ReplyId {
        let reply = self.id();
        let partition = OffsetCommitRequestPartition::default()
            .with_partition_index(3)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(7)
            .with_committed_metadata(Some(str_bytes(metadata)));
        let topic = OffsetCommitRequestTopic::default()
            .with_name(TopicName(str_bytes("t")))
            .with_partitions(vec![partition]);
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(str_bytes("g")))
            .with_member_id(str_bytes(member))
            .with_generation_id_or_member_epoch(generation)
            .with_topics(vec![topic]);
        let out = self.shard.commit_offsets(&request, 9, |_, _| Some(TOPIC_ID), reply, self.now());
        self.take(out);
        reply
    }

    fn beat(&mut self, member: &str, generation: i32) -> Result<(), E> {
        let now = self.now();
        self.shard.heartbeat("g", member, None, generation, now)
    }

    fn reply(&self, id: ReplyId) -> Option<&Reply> {
        self.replies.iter().find(|(of, _)| *of == id).map(|(_, reply)| reply)
    }

    fn joined(&self, id: ReplyId) -> JoinGroupResponse {
        match self.reply(id) {
            Some(Reply::Join(response)) => response.clone(),
            other => panic!("no answer to JoinGroup: {other:?}"),
        }
    }

    fn synced(&self, id: ReplyId) -> SyncGroupResponse {
        match self.reply(id) {
            Some(Reply::Sync(response)) => response.clone(),
            other => panic!("no answer to SyncGroup: {other:?}"),
        }
    }

    fn commit_error(&self, id: ReplyId) -> i16 {
        match self.reply(id) {
            Some(Reply::OffsetCommit(response)) => response.topics[0].partitions[0].error_code,
            other => panic!("no answer to OffsetCommit: {other:?}"),
        }
    }

    fn state(&self) -> Option<GroupState> {
        self.shard.groups().get("g").map(|group| group.state())
    }

    fn offset(&self) -> Option<(i64, i32, String)> {
        let key = OffsetKey { group: "g".into(), topic: "t".into(), partition: 3 };
        self.shard
            .offset(&key)
            .map(|offset| (offset.offset, offset.leader_epoch, offset.metadata.to_string()))
    }

    /// A group of two dynamic members of version 0, Stable in generation 1. Returns leader and
    /// follower.
    fn stable_pair(&mut self) -> (String, String) {
        let a = self.join(Join::new().version(0));
        let b = self.join(Join::new().version(0));
        self.advance(6_000);
        let (a, b) = (self.joined(a), self.joined(b));
        assert_eq!(a.generation_id, 1);
        let leader = a.leader.to_string();
        let follower = [&a, &b]
            .into_iter()
            .map(|joined| joined.member_id.to_string())
            .find(|id| *id != leader)
            .unwrap();
        self.sync(&follower, 1, &[]);
        self.sync(&leader, 1, &[(&leader, "L"), (&follower, "F")]);
        assert_eq!(self.state(), Some(GroupState::Stable));
        (leader, follower)
    }

    /// What the log would give back.
    fn replayed(&self) -> Shard {
        let mut shard = Shard::new(GroupConfig::default(), Arc::default());
        for record in &self.log {
            shard.replay(record.clone(), self.now());
        }
        shard
    }
}

#[derive(Clone)]
struct Join {
    version: i16,
    member: String,
    instance: Option<&'static str>,
    protocol_type: &'static str,
    protocols: Vec<(&'static str, &'static str)>,
}

impl Join {
    fn new() -> Self {
        Self {
            version: 9,
            member: String::new(),
            instance: None,
            protocol_type: "consumer",
            protocols: vec![("range", "x")],
        }
    }
    fn version(mut self, version: i16) -> Self {
        self.version = version;
        self
    }
    fn member(mut self, member: &str) -> Self {
        self.member = member.to_owned();
        self
    }
    fn instance(mut self, instance: &'static str) -> Self {
        self.instance = Some(instance);
        self
    }
    fn protocols(mut self, protocols: &[(&'static str, &'static str)]) -> Self {
        self.protocols = protocols.to_vec();
        self
    }
}

#[test]
fn a_new_member_gets_its_id_first_and_the_first_generation_waits_for_others() {
    let mut world = World::new(GroupConfig::default());
    let first = world.join(Join::new());
    let given = world.joined(first);
    assert_eq!(given.error_code, E::MemberIdRequired.code());
    let joining = world.join(Join::new().member(&given.member_id));
    world.advance(2_999);
    assert!(world.reply(joining).is_none(), "the initial delay is waited for");
    world.advance(1);
    let joined = world.joined(joining);
    assert_eq!(
        (joined.error_code, joined.generation_id, &*joined.leader),
        (0, 1, &*given.member_id)
    );
    assert_eq!(joined.members.len(), 1);
    let syncing = world.sync(&given.member_id, 1, &[(&given.member_id, "mine")]);
    assert_eq!(&*world.synced(syncing).assignment, b"mine");
    assert_eq!(world.state(), Some(GroupState::Stable));
}

#[test]
fn the_assignment_is_handed_out_only_when_it_is_committed() {
    let mut world = World::new(GroupConfig::default());
    let joining = world.join(Join::new().version(0));
    world.advance(3_000);
    let member = world.joined(joining).member_id.to_string();
    world.commit_at_once = false;
    let syncing = world.sync(&member, 1, &[(&member, "mine")]);
    assert!(world.reply(syncing).is_none());
    assert_eq!(world.state(), Some(GroupState::CompletingRebalance));
    world.commit(Err(AppendError::NotLeader));
    assert_eq!(world.synced(syncing).error_code, E::NotCoordinator.code());
    assert_eq!(world.state(), Some(GroupState::PreparingRebalance));
}

#[test]
fn a_third_member_makes_all_join_again_and_generations_grow() {
    let mut world = World::new(GroupConfig::default());
    let (leader, follower) = world.stable_pair();
    let third = world.join(Join::new().version(0));
    assert_eq!(world.beat(&follower, 1), Err(E::RebalanceInProgress));
    let a = world.join(Join::new().version(0).member(&leader));
    let b = world.join(Join::new().version(0).member(&follower));
    for id in [a, b, third] {
        assert_eq!(world.joined(id).generation_id, 2);
    }
    assert_eq!(world.joined(a).members.len(), 3);
    assert!(world.joined(b).members.is_empty(), "only the leader learns of the others");
    assert_eq!(world.beat(&follower, 1), Err(E::IllegalGeneration));
}

#[test]
fn silence_for_the_session_timeout_takes_a_member_out() {
    let mut world = World::new(GroupConfig::default());
    let (leader, follower) = world.stable_pair();
    for _ in 0..4 {
        world.advance(3_000);
        let _ = world.beat(&leader, 1);
    }
    assert_eq!(world.beat(&follower, 1), Err(E::UnknownMemberId));
    assert_eq!(world.beat(&leader, 1), Err(E::RebalanceInProgress));
}

#[test]
fn who_does_not_join_within_the_rebalance_timeout_is_out() {
    let mut world = World::new(GroupConfig::default());
    let (leader, follower) = world.stable_pair();
    let rejoining = world.join(Join::new().version(0).member(&leader));
    for _ in 0..12 {
        world.advance(5_000);
        let _ = world.beat(&follower, 1);
    }
    assert_eq!(
        (world.joined(rejoining).generation_id, world.joined(rejoining).members.len()),
        (2, 1)
    );
    assert_eq!(world.beat(&follower, 2), Err(E::UnknownMemberId));
}

#[test]
fn the_last_to_leave_empties_the_group_and_is_answered_when_that_is_written() {
    let mut world = World::new(GroupConfig::default());
    let joining = world.join(Join::new().version(0));
    world.advance(3_000);
    let member = world.joined(joining).member_id.to_string();
    world.sync(&member, 1, &[]);
    world.commit_at_once = false;
    let leaving = world.leave(&member, None);
    assert!(world.reply(leaving).is_none());
    world.commit(Ok(()));
    assert!(
        matches!(world.reply(leaving), Some(Reply::Leave(response)) if response.members[0].error_code == 0)
    );
    assert_eq!(world.state(), Some(GroupState::Empty));
    assert_eq!(world.shard.groups()["g"].generation(), 2);
}

#[test]
fn a_static_member_comes_back_without_a_rebalance_and_fences_its_old_self() {
    let mut world = World::new(GroupConfig::default());
    let a = world.join(Join::new().instance("i1"));
    let b = world.join(Join::new().instance("i2"));
    world.advance(6_000);
    let (a, b) = (world.joined(a).member_id.to_string(), world.joined(b).member_id.to_string());
    world.sync(&a, 1, &[(&a, "A"), (&b, "B")]);
    world.sync(&b, 1, &[]);
    let again = world.join(Join::new().instance("i1"));
    let again = world.joined(again);
    assert_eq!((again.error_code, again.generation_id, again.skip_assignment), (0, 1, true));
    assert_ne!(*again.member_id, *a);
    assert_eq!(world.state(), Some(GroupState::Stable));
    let syncing = world.sync(&again.member_id, 1, &[]);
    assert_eq!(&*world.synced(syncing).assignment, b"A", "it keeps what it had");
    let now = world.now();
    assert_eq!(world.shard.heartbeat("g", &a, Some("i1"), 1, now), Err(E::FencedInstanceId));
}

#[test]
fn a_static_members_new_id_is_taken_back_when_it_cannot_be_written() {
    let mut world = World::new(GroupConfig::default());
    let a = world.join(Join::new().instance("i1"));
    world.advance(3_000);
    let a = world.joined(a).member_id.to_string();
    world.sync(&a, 1, &[(&a, "A")]);
    world.commit_at_once = false;
    let again = world.join(Join::new().instance("i1"));
    world.commit(Err(AppendError::NotLeader));
    assert_eq!(world.joined(again).error_code, E::NotCoordinator.code());
    let now = world.now();
    assert_eq!(world.shard.heartbeat("g", &a, Some("i1"), 1, now), Ok(()));
    assert_eq!(&*world.shard.groups()["g"].members()[a.as_str()].assignment().clone(), b"A");
}

#[test]
fn the_protocol_most_members_prefer_is_chosen_among_those_all_know() {
    let mut world = World::new(GroupConfig::default());
    let ids = [
        world.join(Join::new().version(0).protocols(&[("a", ""), ("b", ""), ("c", "")])),
        world.join(Join::new().version(0).protocols(&[("c", ""), ("b", "")])),
        world.join(Join::new().version(0).protocols(&[("c", ""), ("b", "")])),
    ];
    let refused = world.join(Join::new().version(0).protocols(&[("d", "")]));
    assert_eq!(world.joined(refused).error_code, E::InconsistentGroupProtocol.code());
    world.advance(10_000);
    for id in ids {
        assert_eq!(world.joined(id).protocol_name.as_deref(), Some("c"));
    }
}

#[test]
fn a_full_group_refuses_new_members() {
    let mut world = World::new(GroupConfig { max_size: 2, ..GroupConfig::default() });
    world.stable_pair();
    let refused = world.join(Join::new().version(0));
    assert_eq!(world.joined(refused).error_code, E::GroupMaxSizeReached.code());
}

#[test]
fn offsets_are_kept_with_metadata_and_epoch_and_checked_against_the_generation() {
    let mut world = World::new(GroupConfig::default());
    let (leader, _) = world.stable_pair();
    let stale = world.commit_offset(&leader, 0, 5, "");
    assert_eq!(world.commit_error(stale), E::IllegalGeneration.code());
    let outsider = world.commit_offset("", -1, 5, "");
    assert_eq!(world.commit_error(outsider), E::UnknownMemberId.code());
    let too_long = world.commit_offset(&leader, 1, 5, &"x".repeat(4_097));
    assert_eq!(world.commit_error(too_long), E::OffsetMetadataTooLarge.code());
    let good = world.commit_offset(&leader, 1, 42, "mein Text ä");
    assert_eq!(world.commit_error(good), 0);
    assert_eq!(world.offset(), Some((42, 7, "mein Text ä".to_owned())));
}

#[test]
fn an_offset_counts_only_when_it_is_committed() {
    let mut world = World::new(GroupConfig::default());
    world.commit_at_once = false;
    let id = world.commit_offset("", -1, 42, "");
    assert!(world.reply(id).is_none() && world.offset().is_none());
    world.commit(Err(AppendError::NotEnoughReplicas));
    assert_eq!(world.commit_error(id), E::CoordinatorNotAvailable.code());
    assert!(
        world.offset().is_none() && world.state().is_none(),
        "a failed append leaves nothing behind"
    );
    let id = world.commit_offset("", -1, 43, "");
    world.commit(Ok(()));
    assert_eq!((world.commit_error(id), world.offset().map(|offset| offset.0)), (0, Some(43)));
}

#[test]
fn offsets_outlive_their_group_by_the_retention_time() {
    let retention_ms = 3_600_000;
    let config = GroupConfig { offsets_retention_ms: retention_ms, ..GroupConfig::default() };
    let mut world = World::new(config);
    let joining = world.join(Join::new().version(0));
    world.advance(3_000);
    let member = world.joined(joining).member_id.to_string();
    world.sync(&member, 1, &[]);
    world.commit_offset(&member, 1, 42, "");
    for _ in 0..1_000 {
        world.advance(9_000);
        assert_eq!(world.beat(&member, 1), Ok(()));
    }
    assert!(
        world.offset().is_some(),
        "the metadata of the members cannot be read, so nothing expires while they are there"
    );
    world.leave(&member, None);
    world.advance(3_000_000);
    assert!(world.offset().is_some());
    world.advance(1_300_000);
    assert_eq!((world.offset(), world.state()), (None, None));
    let replayed = world.replayed();
    assert!(replayed.groups().is_empty(), "the tombstones say the same");
}

/// Random events of up to four clients, two of them static.
#[derive(Clone, Debug)]
enum Event {
    Join(usize),
    Sync(usize),
    Beat(usize),
    Leave(usize),
    Commit(usize),
    Advance(u64),
    Written(bool),
}

fn event() -> impl Strategy<Value = Event> {
    let client = 0..4_usize;
    prop_oneof![
        4 => client.clone().prop_map(Event::Join),
        4 => client.clone().prop_map(Event::Sync),
        1 => client.clone().prop_map(Event::Beat),
        1 => client.clone().prop_map(Event::Leave),
        2 => client.prop_map(Event::Commit),
        3 => (0..8_000_u64).prop_map(Event::Advance),
        5 => prop::bool::weighted(0.85).prop_map(Event::Written),
    ]
}

/// What of a group the log must be able to give back.
fn durable(
    group: &crate::coordinator::group::Group,
) -> Option<crate::coordinator::records::GroupMetadata> {
    match group.to_record(None) {
        // The record is written just before the group becomes Stable, so its time differs.
        Record::Group { value: Some(value), .. } => {
            Some(crate::coordinator::records::GroupMetadata {
                current_state_timestamp_ms: 0,
                ..value
            })
        }
        _ => None,
    }
}

#[derive(Default, Clone)]
struct Client {
    member: String,
    generation: i32,
    is_leader: bool,
    waits: Option<ReplyId>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_answered_once_and_replay_gives_the_same_state(events in prop::collection::vec(event(), 1..120)) {
        let mut world = World::new(GroupConfig::default());
        world.commit_at_once = false;
        let mut clients = vec![Client::default(); 4];
        let (mut asked, mut generation, mut seen) = (BTreeSet::new(), 0, 0);
        for event in events {
            match event {
                Event::Join(n) if clients[n].waits.is_none() => {
                    let mut join = Join::new().member(&clients[n].member);
                    if n >= 2 {
                        join = join.instance(["", "", "i2", "i3"][n]);
                    }
                    let id = world.join(join);
                    clients[n].waits = Some(id);
                    asked.insert(id);
                }
                Event::Sync(n) if clients[n].waits.is_none() => {
                    let client = clients[n].clone();
                    let members: Vec<String> = world.shard.groups().get("g").into_iter().flat_map(|g| g.members().keys()).map(|id| id.to_string()).collect();
                    let assignments: Vec<(&str, &'static str)> = if client.is_leader { members.iter().map(|id| (id.as_str(), "p")).collect() } else { Vec::new() };
                    let id = world.sync(&client.member, client.generation, &assignments);
                    clients[n].waits = Some(id);
                    asked.insert(id);
                }
                Event::Beat(n) => { let (member, generation) = (clients[n].member.clone(), clients[n].generation); let _ = world.beat(&member, generation); }
                Event::Leave(n) => { let member = clients[n].member.clone(); asked.insert(world.leave(&member, None)); }
                Event::Commit(n) => { let (member, generation) = (clients[n].member.clone(), clients[n].generation); asked.insert(world.commit_offset(&member, generation, i64::try_from(seen).unwrap(), "")); }
                Event::Advance(ms) => world.advance(ms),
                Event::Written(ok) if !world.pending.is_empty() => world.commit(if ok { Ok(()) } else { Err(AppendError::NotEnoughReplicas) }),
                _ => {}
            }
            for (id, reply) in &world.replies[seen..] {
                for client in clients.iter_mut().filter(|client| client.waits == Some(*id)) {
                    client.waits = None;
                    if let Reply::Join(joined) = &reply {
                        client.member = joined.member_id.to_string();
                        client.generation = joined.generation_id;
                        client.is_leader = !client.member.is_empty() && joined.leader == joined.member_id;
                    }
                }
            }
            seen = world.replies.len();
            let counted: usize = world.shard.groups().values().map(Group::counted_bytes).sum();
            // A group that is being deleted counts until its tombstone is committed.
            prop_assert!(world.shard.memory.groups_bytes() >= counted);
            if world.pending.is_empty() {
                prop_assert_eq!(world.shard.memory.groups_bytes(), counted);
            }
            if let Some(group) = world.shard.groups().get("g") {
                prop_assert!(group.generation() >= generation, "generations grow");
                generation = group.generation();
                if matches!(group.state(), GroupState::CompletingRebalance | GroupState::Stable) {
                    prop_assert!(group.leader().is_some_and(|leader| group.members().contains_key(leader)), "the leader is a member");
                }
            } else {
                generation = 0;
            }
        }
        if let Some(group) = world.shard.groups().get("g").filter(|group| group.state() == GroupState::Stable && world.pending.is_empty()) {
            let replayed = world.replayed();
            prop_assert_eq!(replayed.groups().get("g").map(durable), Some(durable(group)));
        }
        // Let everything end: no one is left waiting, and each was answered once.
        world.commit_at_once = true;
        while !world.pending.is_empty() { world.commit(Ok(())); }
        world.advance(1_000_000);
        let answered: Vec<ReplyId> = world.replies.iter().map(|(id, _)| *id).collect();
        prop_assert_eq!(answered.len(), answered.iter().collect::<BTreeSet<_>>().len(), "answered twice");
        prop_assert_eq!(answered.into_iter().collect::<BTreeSet<_>>(), asked);
        let replayed = world.replayed();
        let committed = |shard: &Shard| shard.offsets.committed_range(..).map(|(key, offset)| (key.clone(), offset.clone())).collect::<Vec<_>>();
        prop_assert_eq!(committed(&replayed), committed(&world.shard));
        let memory = world.shard.memory.clone();
        prop_assert_eq!(memory.offsets_bytes() == 0, world.shard.offsets.committed_range(..).next().is_none());
        prop_assert_eq!(memory.groups_bytes() == 0, world.shard.groups().is_empty());
        drop(world);
        prop_assert_eq!((memory.groups_bytes(), memory.offsets_bytes()), (0, 0), "what was counted is given back");
    }
}

#[test]
fn offsets_of_deleted_topics_go_and_stay_gone() {
    let mut world = World::new(GroupConfig::default());
    world.commit_offset("", -1, 41, "");
    let untouched = world.forget("another", TOPIC_ID);
    world.take(untouched);
    assert_eq!(world.offset(), Some((41, 7, String::new())));
    let forgotten = world.forget("t", TOPIC_ID);
    world.take(forgotten);
    assert_eq!(world.offset(), None);
    let mut again = Shard::new(GroupConfig::default(), Arc::default());
    for record in &world.log {
        again.replay(record.clone(), world.now());
    }
    assert!(again.fetch_offsets("g", None, |_| None).answer().is_empty());
    // A topic that has the name later begins anew.
    world.commit_offset("", -1, 3, "");
    assert_eq!(world.offset(), Some((3, 7, String::new())));
}

/// By their ids alone, as one knows them who loads a partition.
#[test]
fn offsets_of_topics_that_were_removed_before_a_start_go() {
    let mut world = World::new(GroupConfig::default());
    world.commit_offset("", -1, 41, "");
    let other = HashSet::from([TopicId::from_u128(6)]);
    assert!(world.shard.forget_removed(&other, world.now()).writes.is_empty());
    let forgotten = world.shard.forget_removed(&HashSet::from([TOPIC_ID]), world.now());
    world.take(forgotten);
    assert_eq!(world.offset(), None);
}

/// Few topics are looked up in each group, of many every offset is looked at.
#[test]
fn offsets_of_many_deleted_topics_go_as_those_of_one() {
    for others in [0, 3, 4, 40] {
        let mut world = World::new(GroupConfig::default());
        world.commit_offset("", -1, 41, "");
        let other = |n| (Arc::from(format!("other{n}")), TopicId::from_u128(n));
        let mut topics: Vec<(Arc<str>, TopicId)> = (0..others).map(other).collect();
        topics.push(("t".into(), TopicId::from_u128(6)));
        let none = world.shard.forget_topics(&topics, world.now());
        assert!(none.writes.is_empty(), "{others}: another topic of that name was deleted");
        topics.push(("t".into(), TOPIC_ID));
        let forgotten = world.shard.forget_topics(&topics, world.now());
        world.take(forgotten);
        assert_eq!(world.offset(), None, "{others}");
    }
}

/// What a member says of its topics takes no more than it said, however many there are.
#[test]
fn topics_that_members_name_are_not_held_as_a_set() {
    let topics: Vec<String> = (0..10_000).map(|n| format!("{n:05}")).collect();
    let mut metadata = vec![0, 1];
    metadata.extend(i32::try_from(topics.len()).unwrap().to_be_bytes());
    for topic in &topics {
        metadata.extend(i16::try_from(topic.len()).unwrap().to_be_bytes());
        metadata.extend(topic.as_bytes());
    }
    let said = metadata.len();
    let mut world = World::new(GroupConfig::default());
    let protocols = vec![("range".into(), Bytes::from(metadata))];
    let joining = world.join_with(Join::new().version(0), protocols);
    world.advance(3_000);
    assert_eq!(world.joined(joining).error_code, 0);
    let held = world.shard.memory.groups_bytes();
    assert!((said..said + 4_096).contains(&held), "{held} of {said}");
    let read = world.shard.groups()["g"].subscriptions();
    assert!(topics.iter().all(|topic| read.may_read(topic)) && !read.may_read("t"));
}

/// The broker may end between a topic's deletion and its offsets'.
#[test]
fn an_offset_of_another_topic_of_that_name_does_not_count() {
    let mut world = World::new(GroupConfig::default());
    world.commit_offset("", -1, 41, "");
    let mut again = Shard::new(GroupConfig::default(), Arc::default());
    for record in &world.log {
        again.replay(record.clone(), world.now());
    }
    let asked = [OffsetFetchRequestTopics::default()
        .with_name(TopicName(str_bytes("t")))
        .with_partition_indexes(vec![3])];
    let committed = |shard: &Shard, id: Option<TopicId>| {
        let all = shard.fetch_offsets("g", None, |_| id).answer();
        let one = shard.fetch_offsets("g", Some(&asked), |_| id).answer();
        let of = |topic: &OffsetFetchResponseTopics| topic.partitions[0].committed_offset;
        (all.iter().map(of).collect::<Vec<_>>(), of(&one[0]))
    };
    let another = Some(TopicId::from_u128(8));
    let of_the_one_before = world.forget("t", TopicId::from_u128(6));
    assert!(of_the_one_before.writes.is_empty(), "this topic was not deleted");
    for shard in [&world.shard, &again] {
        assert_eq!(committed(shard, Some(TOPIC_ID)), (vec![41], 41));
        assert_eq!(committed(shard, another), (vec![], -1));
        // Not known is not another.
        assert_eq!(committed(shard, None), (vec![41], 41));
    }
}

#[test]
fn members_are_refused_when_their_bytes_reach_the_bound_and_small_ones_last() {
    static LARGE: [u8; 20_000] = [b'x'; 20_000];
    let large = std::str::from_utf8(&LARGE).unwrap();
    let mut world =
        World::with_memory(GroupConfig::default(), GroupMemory::new(100_000, 1_000_000));
    let mut joins = Vec::new();
    for _ in 0..6 {
        joins.push(world.join(Join::new().version(0).protocols(&[("range", large)])));
    }
    world.advance(6_000);
    let errors: Vec<i16> = joins.iter().map(|id| world.joined(*id).error_code).collect();
    let full = E::CoordinatorNotAvailable.code();
    assert_eq!(errors, [0, 0, 0, full, full, full]);
    let member = world.joined(joins[0]).member_id.to_string();
    let again = world.join(Join::new().version(0).member(&member).protocols(&[("range", large)]));
    assert!(
        world
            .reply(again)
            .is_none_or(|reply| !matches!(reply, Reply::Join(joined) if joined.error_code == full)),
        "who is in may rejoin"
    );
    for _ in 0..1_000 {
        world.join(Join::new());
    }
    let held = world.shard.memory.groups_bytes();
    assert!((60_000..=100_000).contains(&held), "{held}");
    let refused = world.join(Join::new());
    assert_eq!(
        world.joined(refused).error_code,
        full,
        "ids that were only given out count as well"
    );
    world.advance(1_000_000);
    assert!(world.shard.memory.groups_bytes() < 2_000, "sessions have ended");
}

#[test]
fn sessions_that_end_together_leave_others_their_turn() {
    let mut world = World::new(GroupConfig::default());
    for _ in 0..1_000 {
        world.join(Join::new());
    }
    let ends_ms = world.shard.next_deadline_ms().unwrap();
    world.now_ms = ends_ms;
    let mut turns = 0;
    while world.shard.next_deadline_ms().is_some_and(|at| at <= ends_ms) {
        let out = world.shard.advance(world.now());
        world.take(out);
        turns += 1;
    }
    assert!((4..=8).contains(&turns), "{turns}");
    assert!(world.shard.groups().is_empty(), "all of them have ended");
}

#[test]
fn commits_that_add_bytes_are_refused_at_the_bound_and_others_go_on() {
    let mut world = World::with_memory(GroupConfig::default(), GroupMemory::new(1_000_000, 400));
    let first = world.commit_offset("", -1, 1, "");
    let longer = world.commit_offset("", -1, 2, &"x".repeat(300));
    let same = world.commit_offset("", -1, 3, "");
    assert_eq!(
        (world.commit_error(first), world.commit_error(longer), world.commit_error(same)),
        (0, E::CoordinatorNotAvailable.code(), 0)
    );
    assert_eq!(world.offset().map(|offset| offset.0), Some(3));
    let forgotten = world.forget("t", TOPIC_ID);
    world.take(forgotten);
    assert_eq!(world.shard.memory.offsets_bytes(), 0);
}
