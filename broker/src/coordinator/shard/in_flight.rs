//! Decisions that are taken while earlier writes are on their way into the log, and failed appends.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::{GroupId, OffsetCommitRequest, OffsetDeleteRequest, TopicName};
use letterbox_protocol::ErrorCode as E;
use letterbox_protocol::model::TopicId;
use proptest::prelude::*;

use super::Shard;
use crate::coordinator::GroupConfig;
use crate::coordinator::group::{Now, Output, Reply, ReplyId, Write, str_bytes};
use crate::coordinator::records::{OffsetKey, Record};
use crate::coordinator::replicated_log::AppendError;

const RETENTION_MS: i64 = 60_000;
const START_MS: i64 = 1_700_000_000_000;

/// Who decided on a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    Client,
    Expiry,
}

/// A shard, the writes it decided on, and the log of what is committed. Every decision has a
/// number, which commits use as offset.
struct World {
    shard: Shard,
    now_ms: u64,
    decision: i64,
    on_the_way: VecDeque<(By, Write)>,
    /// What the committed records say, as a reader of the log would have it.
    log: BTreeMap<OffsetKey, (i64, i64)>,
    records: Vec<Record>,
    replies: BTreeMap<ReplyId, Reply>,
    answered_twice: bool,
    /// What the log must never say.
    faults: Vec<String>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            shard: Shard::new(config(), Arc::default()),
            now_ms: 0,
            decision: 0,
            on_the_way: VecDeque::new(),
            log: BTreeMap::new(),
            records: Vec::new(),
            replies: BTreeMap::new(),
            answered_twice: false,
            faults: Vec::new(),
        };
        let out = world.shard.on_loaded(world.now());
        world.take(out, By::Client);
        world
    }

    fn now(&self) -> Now {
        Now { mono_ms: self.now_ms, wall_ms: START_MS + i64::try_from(self.now_ms).unwrap() }
    }

    fn decide(&mut self) -> ReplyId {
        self.decision += 1;
        ReplyId(u64::try_from(self.decision).unwrap())
    }

    fn take(&mut self, out: Output, by: By) {
        for (id, reply) in out.replies {
            self.answered_twice |= self.replies.insert(id, reply).is_some();
        }
        self.on_the_way.extend(out.writes.into_iter().map(|write| (by, write)));
    }

    fn commit_offset(&mut self, group: &str, topic: &str) -> ReplyId {
        let id = self.decide();
        let partition =
            OffsetCommitRequestPartition::default().with_committed_offset(self.decision);
        let topic = OffsetCommitRequestTopic::default()
            .with_name(TopicName(str_bytes(topic)))
            .with_partitions(vec![partition]);
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(str_bytes(group)))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![topic]);
        let out =
            self.shard.commit_offsets(&request, 9, |_, _| Some(TopicId::nil()), id, self.now());
        self.take(out, By::Client);
        id
    }

    fn delete_group(&mut self, group: &str) -> ReplyId {
        let id = self.decide();
        let out = self.shard.delete_group(&GroupId(str_bytes(group)), id, self.now());
        self.take(out, By::Client);
        id
    }

    fn delete_offset(&mut self, group: &str, topic: &str) -> ReplyId {
        let id = self.decide();
        let partitions = vec![OffsetDeleteRequestPartition::default(); 2];
        let topic = OffsetDeleteRequestTopic::default()
            .with_name(TopicName(str_bytes(topic)))
            .with_partitions(partitions);
        let request = OffsetDeleteRequest::default()
            .with_group_id(GroupId(str_bytes(group)))
            .with_topics(vec![topic]);
        let out = self.shard.delete_offsets(&request, |_, _| true, id, self.now());
        self.take(out, By::Client);
        id
    }

    fn delete_topic(&mut self, topic: &str) {
        self.decision += 1;
        let out = self.shard.forget_topics(&[(Arc::from(topic), TopicId::nil())], self.now());
        self.take(out, By::Client);
    }

    fn advance(&mut self, ms: u64) {
        self.now_ms += ms;
        let out = self.shard.advance(self.now());
        self.take(out, By::Expiry);
    }

    /// Commits the oldest write.
    fn commit(&mut self) {
        let Some((by, write)) = self.on_the_way.pop_front() else { return };
        for record in &write.records {
            self.read(by, record);
        }
        self.records.extend(write.records.iter().cloned());
        let out = self.shard.committed(write.then, self.now());
        self.take(out, By::Client);
    }

    /// The write at `from` and every later one cannot be appended.
    fn fail(&mut self, from: usize) {
        let newest = self.on_the_way.split_off(from.min(self.on_the_way.len()));
        let newest = newest.into_iter().map(|(_, write)| write.then).collect();
        let out = self.shard.failed(newest, AppendError::NotEnoughReplicas, self.now());
        self.take(out, By::Client);
    }

    fn commit_all(&mut self) {
        while !self.on_the_way.is_empty() {
            self.commit();
        }
    }

    fn read(&mut self, by: By, record: &Record) {
        match record {
            Record::Offset { key, value: Some(value) } => {
                self.log.insert(key.clone(), (value.offset, value.commit_timestamp_ms));
            }
            Record::Offset { key, value: None } => {
                let removed = self.log.remove(key);
                if let (By::Expiry, Some((offset, committed_ms))) = (by, removed)
                    && self.now().wall_ms - committed_ms < RETENTION_MS
                {
                    self.faults.push(format!(
                        "offset {offset} expired {} ms after its commit",
                        self.now().wall_ms - committed_ms
                    ));
                }
            }
            Record::Group { group, .. } => {
                if self.log.keys().any(|key| key.group == *group) {
                    self.faults.push(format!("{group} is deleted while its offsets stay"));
                }
            }
            Record::Unknown { .. } => {}
        }
    }

    fn error(&self, id: ReplyId) -> Option<i16> {
        match self.replies.get(&id)? {
            Reply::OffsetCommit(response) => Some(response.topics[0].partitions[0].error_code),
            Reply::DeleteGroups(response) => Some(response.results[0].error_code),
            Reply::OffsetDelete(response) => Some(response.error_code),
            other => panic!("an answer to something else: {other:?}"),
        }
    }

    fn offsets(&self) -> Vec<(String, String, i64)> {
        let to_row = |(key, offset): (&OffsetKey, &super::OffsetAndMetadata)| {
            (key.group.to_string(), key.topic.to_string(), offset.offset)
        };
        self.shard.offsets.committed_range(..).map(to_row).collect()
    }

    fn groups(&self) -> Vec<String> {
        self.shard.groups().keys().map(|id| id.to_string()).collect()
    }

    /// What a broker would have that reads the log now.
    fn after_a_crash(&self) -> Shard {
        let mut shard = Shard::new(config(), Arc::default());
        for record in &self.records {
            shard.replay(record.clone(), self.now());
        }
        shard
    }
}

fn config() -> GroupConfig {
    GroupConfig {
        offsets_retention_ms: RETENTION_MS,
        offsets_retention_check_interval_ms: 1_000,
        ..GroupConfig::default()
    }
}

fn rows(rows: &[(&str, &str, i64)]) -> Vec<(String, String, i64)> {
    rows.iter()
        .map(|(group, topic, offset)| ((*group).to_owned(), (*topic).to_owned(), *offset))
        .collect()
}

#[test]
fn a_commit_on_its_way_keeps_its_offset_from_expiring() {
    let mut world = World::new();
    world.commit_offset("g", "t");
    world.commit_all();
    world.advance(u64::try_from(RETENTION_MS).unwrap() - 10);
    let renewed = world.commit_offset("g", "t");
    world.advance(1_010);
    world.commit_all();
    assert_eq!(world.error(renewed), Some(0));
    assert_eq!((world.offsets(), world.groups()), (rows(&[("g", "t", 2)]), vec!["g".to_owned()]));
    world.advance(u64::try_from(RETENTION_MS).unwrap());
    world.commit_all();
    assert_eq!(
        (world.offsets(), world.groups()),
        (Vec::new(), Vec::new()),
        "it does expire later, with its group"
    );
    assert_eq!(world.faults, Vec::<String>::new());
}

#[test]
fn deleting_a_group_removes_offsets_that_are_on_their_way() {
    let mut world = World::new();
    world.commit_offset("g", "t");
    world.commit_all();
    let late = world.commit_offset("g", "u");
    let deleted = world.delete_group("g");
    assert_eq!(world.groups(), Vec::<String>::new(), "it is gone for decisions");
    assert_eq!(world.offsets(), rows(&[("g", "t", 1)]), "readers see what is committed");
    world.commit_all();
    assert_eq!((world.error(late), world.error(deleted)), (Some(0), Some(0)));
    assert_eq!((world.offsets(), world.faults), (Vec::new(), Vec::new()));
}

#[test]
fn a_commit_after_a_deletion_that_is_on_its_way_stays() {
    let mut world = World::new();
    world.commit_offset("g", "t");
    world.commit_all();
    world.delete_group("g");
    let after = world.commit_offset("g", "t");
    world.commit_all();
    assert_eq!(world.error(after), Some(0));
    assert_eq!((world.offsets(), world.groups()), (rows(&[("g", "t", 3)]), vec!["g".to_owned()]));
    assert_eq!(world.after_a_crash().groups().len(), 1);
}

#[test]
fn a_deleted_topic_takes_commits_with_it_that_are_on_their_way() {
    let mut world = World::new();
    let late = world.commit_offset("g", "t");
    world.commit_offset("g", "u");
    world.delete_topic("t");
    world.commit_all();
    assert_eq!((world.error(late), world.offsets()), (Some(0), rows(&[("g", "u", 2)])));
}

#[test]
fn offset_delete_sees_commits_that_are_on_their_way() {
    let mut world = World::new();
    world.commit_offset("g", "t");
    let deleted = world.delete_offset("g", "t");
    world.commit_all();
    assert_eq!((world.error(deleted), world.offsets()), (Some(0), Vec::new()));
    assert_eq!(world.records.len(), 2, "a partition that is named twice gets one tombstone");
}

#[test]
fn a_failed_append_takes_back_what_was_decided() {
    let mut world = World::new();
    world.commit_offset("g", "t");
    world.commit_all();
    let on_its_way = world.commit_offset("g", "u");
    let deleted = world.delete_group("g");
    let on_top = world.commit_offset("h", "t");
    assert_eq!(world.groups(), ["h"]);
    world.fail(1);
    assert_eq!(
        (world.error(deleted), world.error(on_top)),
        (Some(E::CoordinatorNotAvailable.code()), Some(E::CoordinatorNotAvailable.code()))
    );
    assert_eq!(world.groups(), ["g"], "the deleted group is back, the new one is not there");
    world.commit_all();
    assert_eq!(
        (world.error(on_its_way), world.offsets()),
        (Some(0), rows(&[("g", "t", 1), ("g", "u", 2)]))
    );
    let again = world.delete_group("g");
    world.commit_all();
    assert_eq!(
        (world.error(again), world.offsets(), world.faults),
        (Some(0), Vec::new(), Vec::new())
    );
}

#[test]
fn not_found_is_answered_when_the_deletion_it_rests_on_is_committed() {
    for (fails, expected) in
        [(false, E::GroupIdNotFound.code()), (true, E::CoordinatorNotAvailable.code())]
    {
        let mut world = World::new();
        world.commit_offset("g", "t");
        world.commit_all();
        world.delete_group("g");
        let second = world.delete_group("g");
        assert_eq!(world.error(second), None);
        if fails {
            world.fail(0);
        }
        world.commit_all();
        assert_eq!(world.error(second), Some(expected));
    }
}

#[test]
fn a_large_group_is_deleted_in_pieces_that_fit_into_a_batch() {
    let mut world = World::new();
    let group = "g".repeat(1_000);
    for topic in 0..200 {
        world.commit_offset(&group, &format!("t{topic}"));
    }
    world.commit_all();
    let deleted = world.delete_group(&group);
    assert!(world.on_the_way.len() > 1);
    let largest = world
        .on_the_way
        .iter()
        .map(|(_, write)| {
            write.records.iter().map(|record| record.encode().unwrap().0.len()).sum::<usize>()
        })
        .max();
    assert!(largest.is_some_and(|bytes| bytes < 128 * 1024), "{largest:?}");
    world.commit();
    assert_eq!(world.error(deleted), None, "the answer waits for the last piece");
    world.commit_all();
    assert_eq!(
        (world.error(deleted), world.offsets().len(), world.faults),
        (Some(0), 0, Vec::new())
    );
}

#[derive(Clone, Debug)]
enum Event {
    Commit(&'static str, &'static str),
    DeleteGroup(&'static str),
    DeleteOffset(&'static str, &'static str),
    DeleteTopic(&'static str),
    Advance(u64),
    Committed,
    Failed(usize),
    Crash,
}

fn event() -> impl Strategy<Value = Event> {
    let group = || prop::sample::select(vec!["g", "h"]);
    let topic = || prop::sample::select(vec!["t", "u"]);
    prop_oneof![
        6 => (group(), topic()).prop_map(|(group, topic)| Event::Commit(group, topic)),
        2 => group().prop_map(Event::DeleteGroup),
        1 => (group(), topic()).prop_map(|(group, topic)| Event::DeleteOffset(group, topic)),
        1 => topic().prop_map(Event::DeleteTopic),
        3 => prop::sample::select(vec![500, 1_000, 30_000, 61_000_u64]).prop_map(Event::Advance),
        6 => Just(Event::Committed),
        1 => (0..6_usize).prop_map(Event::Failed),
        1 => Just(Event::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn acknowledged_offsets_stay_until_they_expire_or_are_removed(events in prop::collection::vec(event(), 1..80)) {
        let mut world = World::new();
        // Commits that were answered, by key; a removal decided later takes them out, whether or
        // not it was answered.
        let mut asked: BTreeMap<ReplyId, (OffsetKey, i64)> = BTreeMap::new();
        let mut deletions: BTreeMap<ReplyId, (String, i64)> = BTreeMap::new();
        let mut removed_at: BTreeMap<OffsetKey, i64> = BTreeMap::new();
        let keys: Vec<OffsetKey> = ["g", "h"].into_iter().flat_map(|group| ["t", "u"].map(|topic| OffsetKey { group: group.into(), topic: topic.into(), partition: 0 })).collect();
        for event in events {
            match event {
                Event::Commit(group, topic) => {
                    let id = world.commit_offset(group, topic);
                    asked.insert(id, (OffsetKey { group: group.into(), topic: topic.into(), partition: 0 }, world.now().wall_ms));
                }
                Event::DeleteGroup(group) => {
                    let id = world.delete_group(group);
                    deletions.insert(id, (group.to_owned(), world.decision));
                    removed_at.extend(keys.iter().filter(|key| &*key.group == group).map(|key| (key.clone(), world.decision)));
                }
                Event::DeleteOffset(group, topic) => {
                    world.delete_offset(group, topic);
                    removed_at.extend(keys.iter().filter(|key| &*key.group == group && &*key.topic == topic).map(|key| (key.clone(), world.decision)));
                }
                Event::DeleteTopic(topic) => {
                    world.delete_topic(topic);
                    removed_at.extend(keys.iter().filter(|key| &*key.topic == topic).map(|key| (key.clone(), world.decision)));
                }
                Event::Advance(ms) => world.advance(ms),
                Event::Committed => world.commit(),
                Event::Failed(from) => world.fail(from),
                Event::Crash => {
                    world.on_the_way.clear();
                    world.shard = world.after_a_crash();
                    let out = world.shard.on_loaded(world.now());
                    world.take(out, By::Client);
                }
            }
            prop_assert_eq!(&world.faults, &Vec::<String>::new());
            prop_assert!(!world.answered_twice);
            // What is answered is what a reader of the log would have, and the other way round.
            let log: Vec<(OffsetKey, i64)> = world.log.iter().map(|(key, (offset, _))| (key.clone(), *offset)).collect();
            let committed: Vec<(OffsetKey, i64)> = world.shard.offsets.committed_range(..).map(|(key, offset)| (key.clone(), offset.offset)).collect();
            prop_assert_eq!(&log, &committed);
            for (key, _) in world.shard.offsets.latest_range(..) {
                prop_assert!(world.shard.groups().contains_key(&key.group), "offsets without a group");
            }
            for (id, (key, committed_ms)) in &asked {
                let offset = i64::try_from(id.0).unwrap();
                let is_removed = removed_at.get(key).is_some_and(|at| *at > offset);
                if world.error(*id) == Some(0) && !is_removed && world.now().wall_ms - committed_ms < RETENTION_MS {
                    prop_assert!(world.log.get(key).is_some_and(|(found, _)| *found >= offset), "acknowledged offset {} of {:?} is gone", offset, key);
                }
            }
            for (id, (group, decision)) in &deletions {
                if world.error(*id) == Some(0) {
                    prop_assert!(world.log.iter().all(|(key, (offset, _))| &*key.group != group.as_str() || offset > decision), "a deleted group has old offsets");
                }
            }
        }
        world.commit_all();
        prop_assert_eq!(&world.faults, &Vec::<String>::new());
    }
}
