//! The service over a log in memory whose commits can be held back and whose appends can fail. Time
//! is paused: tokio moves it on when every task waits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::offset_fetch_response::OffsetFetchResponseTopics;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    DeleteGroupsRequest, DescribeGroupsRequest, GroupId, HeartbeatRequest, JoinGroupRequest,
    LeaveGroupRequest, ListGroupsRequest, OffsetCommitRequest, OffsetDeleteRequest,
    OffsetFetchRequest, SyncGroupRequest, TopicName,
};
use letterbox_env::{BoxFuture, Env};
use letterbox_protocol::ErrorCode as E;
use letterbox_protocol::model::{LeaderEpoch, Offset, TopicId};
use tokio::sync::watch;

use super::{GroupCoordinator, GroupMetadataView, LiveGroups};
use crate::coordinator::group::{Now, Reply, ReplyId, str_bytes};
use crate::coordinator::memory::MEMBER_BYTES_MAX;
use crate::coordinator::records::Record;
use crate::coordinator::shard::Shard;
use crate::coordinator::{
    AppendError, GROUP_METADATA_TOPIC, GroupConfig, GroupFigures, KeyValue, LogEnd, ReplicatedLog,
};
use crate::request::RequestContext;

/// The id of topic "t".
const TOPIC_ID: TopicId = TopicId::from_u128(7);
/// `max.message.bytes` of the log.
const BATCH_BYTES_MAX: usize = 20_000;

struct MemoryLog {
    /// The epoch in which the partitions are led.
    leader_epoch: AtomicI32,
    records: Mutex<BTreeMap<i32, Vec<KeyValue>>>,
    fails: Mutex<Option<AppendError>>,
    /// The high watermark; commits wait for it.
    high_watermark: watch::Sender<Offset>,
    /// Whether waiting for a commit fails.
    is_lost: watch::Sender<bool>,
    /// Why it cannot be read.
    unreadable: Mutex<Option<AppendError>>,
    /// Reading waits for it.
    is_open: watch::Sender<bool>,
}

impl ReplicatedLog for MemoryLog {
    fn is_led_in(&self, _: i32, leader_epoch: LeaderEpoch) -> bool {
        leader_epoch == self.leader_epoch.load(Ordering::SeqCst)
    }

    fn append(
        &self,
        partition: i32,
        leader_epoch: LeaderEpoch,
        records: Vec<KeyValue>,
        _: i64,
    ) -> BoxFuture<'static, Result<LogEnd, AppendError>> {
        let failure = *self.fails.lock().unwrap();
        let other_epoch =
            (!self.is_led_in(partition, leader_epoch)).then_some(AppendError::NotLeader);
        let result = match failure.or(other_epoch) {
            Some(error) => Err(error),
            None => {
                let mut all = self.records.lock().unwrap();
                let log = all.entry(partition).or_default();
                log.extend(records);
                Ok(LogEnd { offset: i64::try_from(log.len()).unwrap(), leader_epoch })
            }
        };
        Box::pin(async move { result })
    }

    fn committed(&self, _: i32, end: LogEnd) -> BoxFuture<'static, Result<(), AppendError>> {
        let (mut high_watermark, mut is_lost) =
            (self.high_watermark.subscribe(), self.is_lost.subscribe());
        Box::pin(async move {
            tokio::select! {
                biased;
                _ = is_lost.wait_for(|is_lost| *is_lost) => Err(AppendError::Storage),
                _ = high_watermark.wait_for(|offset| *offset >= end.offset) => Ok(()),
            }
        })
    }

    fn batch_bytes_max(&self, _: i32) -> usize {
        BATCH_BYTES_MAX
    }

    fn read_all<'a>(
        &'a self,
        partition: i32,
        each: &'a mut (dyn FnMut(Bytes, Option<Bytes>) + Send),
    ) -> BoxFuture<'a, Result<LogEnd, AppendError>> {
        if let Some(error) = *self.unreadable.lock().unwrap() {
            return Box::pin(async move { Err(error) });
        }
        let mut is_open = self.is_open.subscribe();
        Box::pin(async move {
            is_open.wait_for(|is_open| *is_open).await.unwrap();
            let records = self.records.lock().unwrap().get(&partition).cloned().unwrap_or_default();
            let offset = Offset::try_from(records.len()).unwrap();
            records.into_iter().for_each(|(key, value)| each(key, value));
            Ok(LogEnd { offset, leader_epoch: self.leader_epoch.load(Ordering::SeqCst) })
        })
    }
}

/// One topic, "t", and so many partitions of groups.
struct Metadata(i32);

impl GroupMetadataView for Metadata {
    fn partitions_of(&self, topic: &str) -> Option<i32> {
        match topic {
            GROUP_METADATA_TOPIC => Some(self.0),
            "t" => Some(2),
            _ => None,
        }
    }

    fn id_of(&self, topic: &str) -> Option<TopicId> {
        (topic == "t").then_some(TOPIC_ID)
    }

    fn name_of(&self, id: TopicId) -> Option<Arc<str>> {
        (id == TOPIC_ID).then(|| "t".into())
    }
}

fn coordinator() -> (GroupCoordinator, Arc<MemoryLog>) {
    let log = Arc::new(MemoryLog {
        leader_epoch: AtomicI32::new(0),
        records: Mutex::default(),
        fails: Mutex::default(),
        high_watermark: watch::channel(i64::MAX).0,
        is_lost: watch::channel(false).0,
        unreadable: Mutex::default(),
        is_open: watch::channel(true).0,
    });
    (over(log.clone()), log)
}

fn over(log: Arc<MemoryLog>) -> GroupCoordinator {
    GroupCoordinator::new(Env::real(), GroupConfig::default(), log, Metadata(1))
}

fn context(api_version: i16) -> RequestContext {
    RequestContext::local("c", api_version)
}

fn group() -> GroupId {
    GroupId(str_bytes("g"))
}

fn join_request(member_id: &str) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(str_bytes("range"))
        .with_metadata(Bytes::from_static(b"x"));
    JoinGroupRequest::default()
        .with_group_id(group())
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(60_000)
        .with_member_id(str_bytes(member_id))
        .with_protocol_type(str_bytes("consumer"))
        .with_protocols(vec![protocol])
}

fn commit_request(topic: &str, offset: Offset) -> OffsetCommitRequest {
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(offset);
    let topic = OffsetCommitRequestTopic::default()
        .with_name(TopicName(str_bytes(topic)))
        .with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(group())
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic])
}

async fn commit(coordinator: &GroupCoordinator, topic: &str, offset: Offset) -> i16 {
    coordinator.offset_commit(&context(8), commit_request(topic, offset)).await.topics[0].partitions
        [0]
    .error_code
}

async fn fetch(coordinator: &GroupCoordinator, require_stable: bool) -> (i16, Option<Offset>) {
    let of_group = OffsetFetchRequestGroup::default().with_group_id(group()).with_topics(None);
    let request = OffsetFetchRequest::default()
        .with_groups(vec![of_group])
        .with_require_stable(require_stable);
    let response = coordinator.offset_fetch(&context(8), request).await;
    let first = &response.groups[0];
    (first.error_code, first.topics.first().map(|topic| topic.partitions[0].committed_offset))
}

/// What each API of groups answers, by its error.
async fn answers(to: &GroupCoordinator) -> Vec<String> {
    let topic = OffsetDeleteRequestTopic::default()
        .with_name(TopicName(str_bytes("t")))
        .with_partitions(vec![OffsetDeleteRequestPartition::default()]);
    let forget = OffsetDeleteRequest::default().with_group_id(group()).with_topics(vec![topic]);
    let member = MemberIdentity::default().with_member_id(str_bytes("m"));
    let leave = LeaveGroupRequest::default().with_group_id(group()).with_members(vec![member]);
    let beat = HeartbeatRequest::default().with_group_id(group()).with_member_id(str_bytes("m"));
    let sync = SyncGroupRequest::default().with_group_id(group()).with_member_id(str_bytes("m"));
    let describe = DescribeGroupsRequest::default().with_groups(vec![group()]);
    let delete = DeleteGroupsRequest::default().with_groups_names(vec![group()]);
    let ctx = &context(4);
    let told = [
        ("JoinGroup", to.join_group(ctx, join_request("")).await.await.error_code),
        ("SyncGroup", to.sync_group(ctx, sync).await.await.error_code),
        ("Heartbeat", to.heartbeat(ctx, &beat).error_code),
        ("LeaveGroup", to.leave_group(ctx, leave).await.error_code),
        ("OffsetCommit", commit(to, "t", 1).await),
        ("OffsetFetch", fetch(to, false).await.0),
        ("OffsetDelete", to.offset_delete(ctx, &forget).await.error_code),
        ("DescribeGroups", to.describe_groups(ctx, &describe).groups[0].error_code),
        ("DeleteGroups", to.delete_groups(ctx, &delete).await.results[0].error_code),
        ("ListGroups", to.list_groups(ctx, &ListGroupsRequest::default()).error_code),
    ];
    let error = |code| E::of_answer(code).map_or("NONE", E::name);
    told.map(|(api, code)| format!("{api} {}", error(code))).to_vec()
}

#[tokio::test(start_paused = true)]
async fn clients_of_a_group_learn_that_its_partition_is_loading_or_has_gone() {
    let (coordinator, log) = coordinator();
    let all = |error: &str, but: &[(&str, &str)]| {
        let one = |api: &&str| {
            let other = but.iter().find(|(of, _)| of == api);
            format!("{api} {}", other.map_or(error, |(_, other)| *other))
        };
        APIS.iter().map(one).collect::<Vec<_>>()
    };
    // A list is of what is here.
    let elsewhere = all("NOT_COORDINATOR", &[("ListGroups", "NONE")]);
    assert_eq!(answers(&coordinator).await, elsewhere, "another node leads it");
    log.is_open.send_replace(false);
    let loader = coordinator.clone();
    let loaded = tokio::spawn(async move { loader.load(0, &LiveGroups::default()).await });
    tokio::task::yield_now().await;
    // A member goes on: what it says next is answered when its group is known.
    let is_loading = all("COORDINATOR_LOAD_IN_PROGRESS", &[("Heartbeat", "NONE")]);
    assert_eq!(answers(&coordinator).await, is_loading);
    log.is_open.send_replace(true);
    loaded.await.unwrap().unwrap();
    let served = all(
        "NONE",
        &[
            ("JoinGroup", "MEMBER_ID_REQUIRED"),
            ("SyncGroup", "UNKNOWN_MEMBER_ID"),
            ("Heartbeat", "UNKNOWN_MEMBER_ID"),
        ],
    );
    assert_eq!(answers(&coordinator).await, served);
    coordinator.unload(0).await;
    assert_eq!(answers(&coordinator).await, elsewhere, "another node leads it now");
    coordinator.shutdown().await;
}

/// A few partitions are read at a time. What waits for its turn is being loaded as well, and is no
/// more when its leader changes before.
#[tokio::test(start_paused = true)]
async fn partitions_that_wait_to_be_read_are_being_loaded() {
    let (_, log) = coordinator();
    let coordinator =
        GroupCoordinator::new(Env::real(), GroupConfig::default(), log.clone(), Metadata(20));
    log.is_open.send_replace(false);
    let loads: Vec<_> =
        (0..20).map(|partition| coordinator.load(partition, &LiveGroups::default())).collect();
    let of = |group: &str| {
        let heartbeat = HeartbeatRequest::default().with_group_id(GroupId(str_bytes(group)));
        coordinator.heartbeat(&context(4), &heartbeat).error_code
    };
    let groups: Vec<String> = (0..100).map(|n| format!("g{n}")).collect();
    assert!(groups.iter().all(|group| of(group) == 0), "a member goes on");
    for partition in 10..20 {
        coordinator.unload(partition).await;
    }
    log.is_open.send_replace(true);
    futures::future::join_all(loads).await;
    let expect = |group: &String| match coordinator.partition_of(group) {
        Some(10..) => E::NotCoordinator.code(),
        _ => E::UnknownMemberId.code(),
    };
    for group in &groups {
        assert_eq!(of(group), expect(group), "{group}");
    }
    coordinator.shutdown().await;
}

const APIS: [&str; 10] = [
    "JoinGroup",
    "SyncGroup",
    "Heartbeat",
    "LeaveGroup",
    "OffsetCommit",
    "OffsetFetch",
    "OffsetDelete",
    "DescribeGroups",
    "DeleteGroups",
    "ListGroups",
];

#[tokio::test(start_paused = true)]
async fn a_member_joins_syncs_and_is_there_after_the_coordinator_has_moved() {
    let (first, log) = coordinator();
    assert_eq!(fetch(&first, false).await.0, E::NotCoordinator.code());
    first.load(0, &LiveGroups::default()).await.unwrap();
    let given = first.join_group(&context(9), join_request("")).await.await;
    assert_eq!(given.error_code, E::MemberIdRequired.code());
    assert!(given.member_id.starts_with("c-"));
    let joined = first.join_group(&context(9), join_request(&given.member_id)).await.await;
    assert_eq!((joined.error_code, joined.generation_id), (0, 1));
    let sync = SyncGroupRequest::default()
        .with_group_id(group())
        .with_generation_id(1)
        .with_member_id(joined.member_id.clone());
    assert_eq!(
        first.sync_group(&context(5), sync.clone()).await.await.error_code,
        E::InconsistentGroupProtocol.code()
    );
    let sync = sync
        .with_protocol_type(joined.protocol_type.clone())
        .with_protocol_name(joined.protocol_name.clone());
    assert_eq!(first.sync_group(&context(5), sync).await.await.error_code, 0);
    for asked in [false, true] {
        let describe = DescribeGroupsRequest::default()
            .with_groups(vec![group()])
            .with_include_authorized_operations(asked);
        let operations =
            first.describe_groups(&context(5), &describe).groups[0].authorized_operations;
        // The bits of read, delete, describe, describe configs, alter configs.
        assert_eq!(operations, if asked { 0b1101_0100_1000 } else { i32::MIN });
    }
    assert_eq!(commit(&first, "missing", 1).await, E::UnknownTopicOrPartition.code());
    first.shutdown().await;

    let second = over(log);
    second.load(0, &LiveGroups::default()).await.unwrap();
    let beat = HeartbeatRequest::default()
        .with_group_id(group())
        .with_generation_id(1)
        .with_member_id(joined.member_id);
    assert_eq!(second.heartbeat(&context(4), &beat).error_code, 0);
    let listed = second.list_groups(
        &context(5),
        &ListGroupsRequest::default().with_states_filter(vec![str_bytes("stable")]),
    );
    assert_eq!(listed.groups.len(), 1);
    tokio::time::sleep(Duration::from_millis(10_001)).await;
    assert_eq!(
        second.heartbeat(&context(4), &beat).error_code,
        E::UnknownMemberId.code(),
        "the timer task ends its session"
    );
    second.shutdown().await;
}

/// A group of one member that has its assignment, and a commit of that member.
async fn live_group(of: &GroupCoordinator) -> OffsetCommitRequest {
    let given = of.join_group(&context(9), join_request("")).await.await;
    let joined = of.join_group(&context(9), join_request(&given.member_id)).await.await;
    let sync = SyncGroupRequest::default()
        .with_group_id(group())
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone());
    assert_eq!(of.sync_group(&context(4), sync).await.await.error_code, 0);
    commit_request("t", 42)
        .with_generation_id_or_member_epoch(joined.generation_id)
        .with_member_id(joined.member_id)
}

/// Its members do not join again, which would have each begin where it is told to without a
/// committed offset.
#[tokio::test(start_paused = true)]
async fn a_group_goes_on_when_its_topic_is_deleted_and_made_again() {
    let (coordinator, log) = coordinator();
    coordinator.load(0, &LiveGroups::default()).await.unwrap();
    let request = live_group(&coordinator).await;
    coordinator.keep_live();
    coordinator.unload(0).await;
    log.records.lock().unwrap().clear();
    coordinator.load(0, &coordinator.take_live()).await.unwrap();
    let commit = async |to: &GroupCoordinator| {
        let answer = to.offset_commit(&context(9), request.clone()).await;
        answer.topics[0].partitions[0].error_code
    };
    assert_eq!(commit(&coordinator).await, 0);
    coordinator.shutdown().await;

    // It is in the new topic.
    let next = over(log);
    next.load(0, &LiveGroups::default()).await.unwrap();
    assert_eq!((commit(&next).await, fetch(&next, false).await), (0, (0, Some(42))));
    // Where groups are, those of another topic do not come back.
    next.keep_live();
    let kept = next.take_live();
    next.unload(0).await;
    next.load(0, &kept).await.unwrap();
    assert_eq!(next.figures().stable, 1);
    tokio::time::sleep(Duration::from_millis(10_001)).await;
    assert_eq!(commit(&next).await, E::UnknownMemberId.code(), "its session has ended");
    next.shutdown().await;
}

/// The broker ended after the deletion and before it wrote that the offsets go.
#[tokio::test(start_paused = true)]
async fn offsets_of_a_topic_that_was_removed_before_a_load_go_after_it() {
    let (coordinator, log) = coordinator();
    coordinator.load(0, &LiveGroups::default()).await.unwrap();
    let answer = coordinator.offset_commit(&context(9), commit_request("t", 42)).await;
    assert_eq!(answer.topics[0].partitions[0].error_code, 0);
    coordinator.shutdown().await;
    for (removed, left) in [(6, Some(42)), (7, None)] {
        let next = over(log.clone());
        let loaded = next.load(0, &LiveGroups::default());
        next.topics_removed([TopicId::from_u128(removed)].into());
        loaded.await.unwrap();
        assert_eq!(fetch(&next, false).await, (0, left));
        next.shutdown().await;
    }
    // It is written.
    let next = over(log);
    next.load(0, &LiveGroups::default()).await.unwrap();
    assert_eq!(fetch(&next, false).await, (0, None));
    next.shutdown().await;
}

/// It took those with it that came after it: a restart forgot them.
#[tokio::test(start_paused = true)]
async fn a_group_that_is_too_large_for_its_new_topic_takes_no_other_with_it() {
    let (coordinator, log) = coordinator();
    coordinator.load(0, &LiveGroups::default()).await.unwrap();
    let request = live_group(&coordinator).await;
    coordinator.keep_live();
    coordinator.unload(0).await;
    log.records.lock().unwrap().clear();
    let mut live = coordinator.take_live();
    let mut large = live.0[0].clone();
    let Record::Group { group, value: Some(value) } = &mut large else { panic!("{large:?}") };
    *group = "a".into();
    value.members[0].subscription = vec![0; BATCH_BYTES_MAX].into();
    live.0.insert(0, large);
    coordinator.load(0, &live).await.unwrap();
    assert_eq!(coordinator.figures().stable, 2);
    coordinator.shutdown().await;

    let next = over(log);
    next.load(0, &LiveGroups::default()).await.unwrap();
    assert_eq!(next.figures().stable, 1);
    let answer = next.offset_commit(&context(9), request).await;
    assert_eq!(answer.topics[0].partitions[0].error_code, 0);
    next.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_commit_is_answered_and_seen_only_below_the_high_watermark() {
    let (coordinator, log) = coordinator();
    coordinator.load(0, &LiveGroups::default()).await.unwrap();
    log.high_watermark.send_replace(0);
    assert_eq!(
        commit(&coordinator, "t", 42).await,
        E::CoordinatorNotAvailable.code(),
        "offsets.commit.timeout.ms is over"
    );
    assert_eq!(fetch(&coordinator, false).await, (0, None));
    let (stable, ()) = tokio::join!(fetch(&coordinator, true), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        log.high_watermark.send_replace(i64::MAX);
    });
    assert_eq!(stable, (0, Some(42)), "requireStable waits for what was appended");
    coordinator.shutdown().await;
}

/// As for want of descriptors.
#[tokio::test(start_paused = true)]
async fn a_partition_that_could_not_be_read_is_read_again_until_it_can() {
    let (first, log) = coordinator();
    first.load(0, &LiveGroups::default()).await.unwrap();
    assert_eq!(commit(&first, "t", 42).await, 0);
    first.shutdown().await;

    let second = over(log.clone());
    *log.unreadable.lock().unwrap() = Some(AppendError::Storage);
    assert!(second.load(0, &LiveGroups::default()).await.is_err());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        fetch(&second, false).await.0,
        E::NotCoordinator.code(),
        "clients are told to come back"
    );
    *log.unreadable.lock().unwrap() = None;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(fetch(&second, false).await, (0, Some(42)));
    second.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_append_changes_nothing_and_the_next_one_works() {
    let (coordinator, log) = coordinator();
    coordinator.load(0, &LiveGroups::default()).await.unwrap();
    assert_eq!(commit(&coordinator, "t", 1).await, 0);
    *log.fails.lock().unwrap() = Some(AppendError::NotEnoughReplicas);
    assert_eq!(commit(&coordinator, "t", 2).await, E::CoordinatorNotAvailable.code());
    assert_eq!(fetch(&coordinator, true).await, (0, Some(1)));
    *log.fails.lock().unwrap() = None;
    assert_eq!(commit(&coordinator, "t", 3).await, 0);
    assert_eq!(fetch(&coordinator, true).await, (0, Some(3)));
    coordinator.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_when_leadership_goes_learns_it() {
    let (coordinator, _log) = coordinator();
    coordinator.load(0, &LiveGroups::default()).await.unwrap();
    let version_0 = context(0);
    let parked = coordinator.join_group(&version_0, join_request("")).await;
    let (joined, ()) = tokio::join!(parked, coordinator.unload(0));
    assert_eq!(joined.error_code, E::NotCoordinator.code());
    coordinator.shutdown().await;
    assert_eq!(commit(&coordinator, "t", 1).await, E::CoordinatorNotAvailable.code());
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_does_not_exist_is_refused_alone() {
    let (coordinator, _log) = coordinator();
    coordinator.load(0, &LiveGroups::default()).await.unwrap();
    let partitions = [0, 1, 2, -1]
        .map(|index| OffsetCommitRequestPartition::default().with_partition_index(index))
        .to_vec();
    let topic = OffsetCommitRequestTopic::default()
        .with_name(TopicName(str_bytes("t")))
        .with_partitions(partitions);
    let request = commit_request("t", 1).with_topics(vec![topic]);
    let response = coordinator.offset_commit(&context(8), request).await;
    let errors: Vec<i16> =
        response.topics[0].partitions.iter().map(|partition| partition.error_code).collect();
    let unknown = E::UnknownTopicOrPartition.code();
    assert_eq!(errors, [0, 0, unknown, unknown]);

    let partitions = [1, 7]
        .map(|index| OffsetDeleteRequestPartition::default().with_partition_index(index))
        .to_vec();
    let topic = OffsetDeleteRequestTopic::default()
        .with_name(TopicName(str_bytes("t")))
        .with_partitions(partitions);
    let request = OffsetDeleteRequest::default().with_group_id(group()).with_topics(vec![topic]);
    let response = coordinator.offset_delete(&context(0), &request).await;
    let errors: Vec<i16> =
        response.topics[0].partitions.iter().map(|partition| partition.error_code).collect();
    assert_eq!((response.error_code, errors), (0, vec![0, unknown]));
    coordinator.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_is_too_large_for_a_batch_fails_alone_and_says_so() {
    let (coordinator, log) = coordinator();
    coordinator.load(0, &LiveGroups::default()).await.unwrap();
    log.high_watermark.send_replace(0);
    let partition = OffsetCommitRequestPartition::default()
        .with_committed_metadata(Some(str_bytes(&"x".repeat(4_000))));
    let topic = OffsetCommitRequestTopic::default()
        .with_name(TopicName(str_bytes("t")))
        .with_partitions(vec![partition; 6]);
    let too_large = commit_request("t", 1).with_topics(vec![topic]);
    let version_8 = context(8);
    let (before, refused, after, ()) = tokio::join!(
        biased;
        commit(&coordinator, "t", 1),
        coordinator.offset_commit(&version_8, too_large),
        commit(&coordinator, "t", 2),
        async {
            tokio::task::yield_now().await;
            log.high_watermark.send_replace(i64::MAX);
        }
    );
    assert_eq!(refused.topics[0].partitions[0].error_code, E::InvalidCommitOffsetSize.code());
    assert_eq!((before, after, fetch(&coordinator, true).await), (0, 0, (0, Some(2))));
    let expected = GroupFigures { empty: 1, offsets: 1, ..GroupFigures::default() };
    assert_eq!(coordinator.figures(), expected);
    let mut shown = Vec::new();
    coordinator.each_offset(|key, offset| {
        shown.push((key.topic.to_string(), key.partition, offset.offset))
    });
    assert_eq!(shown, [("t".to_owned(), 0, 2)]);
    coordinator.shutdown().await;
}

#[test]
fn errors_of_the_log_are_mapped_as_kafka_maps_them() {
    for (why, offsets, others) in [
        (AppendError::UnknownPartition, E::CoordinatorNotAvailable, E::CoordinatorNotAvailable),
        (AppendError::NotEnoughReplicas, E::CoordinatorNotAvailable, E::CoordinatorNotAvailable),
        (AppendError::NotLeader, E::NotCoordinator, E::NotCoordinator),
        (AppendError::Storage, E::NotCoordinator, E::NotCoordinator),
        (AppendError::TooLarge, E::InvalidCommitOffsetSize, E::UnknownServerError),
    ] {
        let now = Now { mono_ms: 0, wall_ms: 0 };
        let mut shard = Shard::new(GroupConfig::default(), Arc::default());
        let committed = shard.commit_offsets(
            &commit_request("t", 1),
            8,
            |_, _| Some(TOPIC_ID),
            ReplyId(1),
            now,
        );
        let deleted = shard.delete_group(&group(), ReplyId(2), now);
        let newest =
            committed.writes.into_iter().chain(deleted.writes).map(|write| write.then).collect();
        let errors: Vec<i16> = shard
            .failed(newest, why, now)
            .replies
            .iter()
            .map(|(_, reply)| match reply {
                Reply::OffsetCommit(response) => response.topics[0].partitions[0].error_code,
                Reply::DeleteGroups(response) => response.results[0].error_code,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(errors, [offsets.code(), others.code()], "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn when_a_commit_is_lost_the_partition_is_read_again_and_serves_what_the_log_has() {
    let (coordinator, log) = coordinator();
    coordinator.load(0, &LiveGroups::default()).await.unwrap();
    assert_eq!(commit(&coordinator, "t", 1).await, 0);
    log.high_watermark.send_replace(1);
    let (answer, ()) = tokio::join!(commit(&coordinator, "t", 2), async {
        tokio::task::yield_now().await;
        log.is_lost.send_replace(true);
    });
    assert_eq!(answer, E::NotCoordinator.code());
    assert_eq!(fetch(&coordinator, false).await.0, E::NotCoordinator.code());
    let listed = coordinator.list_groups(&context(5), &ListGroupsRequest::default());
    assert_eq!(
        listed.error_code, 0,
        "one partition that is out of use does not hide the groups of the others"
    );
    log.is_lost.send_replace(false);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        fetch(&coordinator, false).await.0,
        E::CoordinatorLoadInProgress.code(),
        "what was read is not committed yet"
    );
    log.high_watermark.send_replace(i64::MAX);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(fetch(&coordinator, false).await, (0, Some(2)), "the records survived");
    assert_eq!(commit(&coordinator, "t", 3).await, 0);
    coordinator.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_repeated_is_answered_once() {
    let (coordinator, _log) = coordinator();
    coordinator.load(0, &LiveGroups::default()).await.unwrap();
    assert_eq!(commit(&coordinator, "t", 1).await, 0);
    let describe = DescribeGroupsRequest::default().with_groups(vec![group(); 1_000]);
    assert_eq!(coordinator.describe_groups(&context(5), &describe).groups.len(), 1);

    let topic = OffsetFetchRequestTopics::default()
        .with_name(TopicName(str_bytes("t")))
        .with_partition_indexes(vec![0, 1, 0, 0]);
    let of_group = OffsetFetchRequestGroup::default()
        .with_group_id(group())
        .with_topics(Some(vec![topic.clone(), topic]));
    let request = OffsetFetchRequest::default().with_groups(vec![of_group; 3]);
    let response = coordinator.offset_fetch(&context(8), request).await;
    let rows: Vec<usize> = response
        .groups
        .iter()
        .flat_map(|group| &group.topics)
        .map(|topic| topic.partitions.len())
        .collect();
    assert_eq!((response.groups.len(), rows), (1, vec![2]));

    let topic = OffsetFetchRequestTopic::default()
        .with_name(TopicName(str_bytes("t")))
        .with_partition_indexes(vec![0; 100]);
    let single =
        OffsetFetchRequest::default().with_group_id(group()).with_topics(Some(vec![topic; 100]));
    let response = coordinator.offset_fetch(&context(7), single).await;
    assert_eq!((response.topics.len(), response.topics[0].partitions.len()), (1, 1));

    let delete = DeleteGroupsRequest::default().with_groups_names(vec![group(); 100]);
    let response = coordinator.delete_groups(&context(2), &delete).await;
    assert_eq!((response.results.len(), response.results[0].error_code), (1, 0));
    coordinator.shutdown().await;
}

/// The buffer of a request's frame; tells when nobody holds it any more.
struct Frame {
    bytes: Vec<u8>,
    _held: Arc<()>,
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[tokio::test(start_paused = true)]
async fn a_parked_join_and_a_parked_sync_do_not_hold_their_frames() {
    let (coordinator, _log) = coordinator();
    coordinator.load(0, &LiveGroups::default()).await.unwrap();
    let held = Arc::new(());
    let frame = || Bytes::from_owner(Frame { bytes: vec![b'x'; 100_000], _held: held.clone() });
    let request = |version| {
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(str_bytes("range"))
            .with_metadata(frame().slice(0..10));
        (context(version), join_request("").with_protocols(vec![protocol]))
    };
    let (version_0, large) = request(0);
    let mut parked = coordinator.join_group(&version_0, large).await;
    assert!(futures::poll!(parked.as_mut()).is_pending());
    assert_eq!(Arc::strong_count(&held), 1, "the frame of JoinGroup is held");
    let (_, second) = request(0);
    let second = coordinator.join_group(&version_0, second).await;
    let (leader, follower) = tokio::join!(parked, second);
    let follower = if leader.leader == leader.member_id { follower } else { leader };

    let assignment = SyncGroupRequestAssignment::default().with_assignment(frame());
    let sync = SyncGroupRequest::default()
        .with_group_id(group())
        .with_generation_id(1)
        .with_member_id(follower.member_id);
    let mut parked =
        coordinator.sync_group(&version_0, sync.with_assignments(vec![assignment])).await;
    assert!(futures::poll!(parked.as_mut()).is_pending());
    assert_eq!(Arc::strong_count(&held), 1, "the frame of SyncGroup is held");
    assert!(coordinator.memory().groups_bytes() > 0);
    drop(parked);
    coordinator.shutdown().await;
    assert_eq!(coordinator.memory().groups_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_member_with_more_metadata_than_can_be_written_is_refused() {
    let (coordinator, _log) = coordinator();
    coordinator.load(0, &LiveGroups::default()).await.unwrap();
    for (bytes, expected) in [(MEMBER_BYTES_MAX, E::InvalidRequest), (100, E::MemberIdRequired)] {
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(str_bytes("range"))
            .with_metadata(vec![0; bytes].into());
        let joined = coordinator
            .join_group(&context(9), join_request("").with_protocols(vec![protocol]))
            .await
            .await;
        assert_eq!(joined.error_code, expected.code());
    }
    coordinator.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn version_10_names_topics_by_id() {
    let (coordinator, _log) = coordinator();
    coordinator.load(0, &LiveGroups::default()).await.unwrap();
    let (known, unknown) = (TOPIC_ID.to_string(), TopicId::from_u128(8).to_string());
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(42);
    let topics = [&known, &unknown].map(|id| {
        OffsetCommitRequestTopic::default()
            .with_name(TopicName(str_bytes(id)))
            .with_partitions(vec![partition.clone()])
    });
    let response = coordinator
        .offset_commit(&context(10), commit_request("", 0).with_topics(topics.to_vec()))
        .await;
    let rows: Vec<_> = response
        .topics
        .iter()
        .map(|topic| (topic.name.to_string(), topic.partitions[0].error_code))
        .collect();
    let no_such_id = E::UnknownTopicId.code();
    assert_eq!(rows, [(known.clone(), 0), (unknown.clone(), no_such_id)]);

    let topics = [&known, &unknown].map(|id| {
        OffsetFetchRequestTopics::default()
            .with_name(TopicName(str_bytes(id)))
            .with_partition_indexes(vec![0])
    });
    for (asked, expected) in [
        (Some(topics.to_vec()), vec![(known.clone(), 42, 0), (unknown, -1, no_such_id)]),
        (None, vec![(known, 42, 0)]),
    ] {
        let of_group = OffsetFetchRequestGroup::default().with_group_id(group()).with_topics(asked);
        let response = coordinator
            .offset_fetch(&context(10), OffsetFetchRequest::default().with_groups(vec![of_group]))
            .await;
        let row = |topic: &OffsetFetchResponseTopics| {
            (
                topic.name.to_string(),
                topic.partitions[0].committed_offset,
                topic.partitions[0].error_code,
            )
        };
        assert_eq!(response.groups[0].topics.iter().map(row).collect::<Vec<_>>(), expected);
    }
    coordinator.shutdown().await;
}

/// What clients that have gone left to be written is bounded: later requests wait before they are
/// looked at, and then get their answers.
#[tokio::test(start_paused = true)]
async fn requests_wait_while_much_is_to_be_written() {
    let (coordinator, log) = coordinator();
    coordinator.load(0, &LiveGroups::default()).await.unwrap();
    log.high_watermark.send_replace(0);
    let commit_of = |group: usize| {
        let mut request = commit_request("t", 5);
        request.group_id = GroupId(str_bytes(&format!("g{group}")));
        request.topics[0].partitions[0].committed_metadata = Some(str_bytes(&"m".repeat(4_000)));
        request
    };
    let context = context(8);
    for group in 0..2_000 {
        let mut goes = Box::pin(coordinator.offset_commit(&context, commit_of(group)));
        assert!(futures::poll!(goes.as_mut()).is_pending());
        // Its client has gone; the coordinator goes on with what it has of it.
        drop(goes);
        tokio::task::yield_now().await;
    }
    let held = coordinator.memory().offsets_bytes();
    assert!((1_000_000..2_000_000).contains(&held), "{held}");
    let mut waits = Box::pin(coordinator.offset_commit(&context, commit_of(2_000)));
    assert!(futures::poll!(waits.as_mut()).is_pending());
    assert_eq!(coordinator.memory().offsets_bytes(), held, "it was not looked at");
    log.high_watermark.send_replace(Offset::MAX);
    assert_eq!(waits.await.topics[0].partitions[0].error_code, 0);
    coordinator.shutdown().await;
}

/// Another node led meanwhile, and this one has not noticed: what it knows may be old.
#[tokio::test(start_paused = true)]
async fn what_was_read_in_an_earlier_epoch_is_neither_told_nor_built_on() {
    let (coordinator, log) = coordinator();
    coordinator.load(0, &LiveGroups::default()).await.unwrap();
    assert_eq!(commit(&coordinator, "t", 1).await, 0);
    // A commit is decided in the old epoch and waits for its turn to be appended.
    let ctx = context(8);
    let mut late = std::pin::pin!(coordinator.offset_commit(&ctx, commit_request("t", 2)));
    assert!(futures::poll!(&mut late).is_pending());
    log.leader_epoch.store(2, Ordering::SeqCst);
    let not_here = E::NotCoordinator.code();
    assert_eq!(late.await.topics[0].partitions[0].error_code, not_here);
    assert_eq!(fetch(&coordinator, false).await, (not_here, None));
    assert_eq!(commit(&coordinator, "t", 3).await, not_here);
    let appended = log.records.lock().unwrap()[&0].len();
    assert_eq!(appended, 1, "only what was decided before");
    coordinator.unload(0).await;
    coordinator.load(0, &LiveGroups::default()).await.unwrap();
    assert_eq!(fetch(&coordinator, false).await, (0, Some(1)));
    assert_eq!(commit(&coordinator, "t", 4).await, 0);
}

/// A partition whose replicas are missing waits for them alone.
#[tokio::test(start_paused = true)]
async fn partitions_that_cannot_be_committed_hold_up_no_others() {
    let (_, log) = coordinator();
    let coordinator =
        GroupCoordinator::new(Env::real(), GroupConfig::default(), log.clone(), Metadata(8));
    log.high_watermark.send_replace(0);
    let record = (Bytes::from_static(b"k"), None);
    for partition in 0..7 {
        log.records.lock().unwrap().insert(partition, vec![record.clone()]);
        tokio::spawn(coordinator.load(partition, &LiveGroups::default()));
    }
    tokio::task::yield_now().await;
    let last =
        tokio::time::timeout(Duration::from_secs(60), coordinator.load(7, &LiveGroups::default()))
            .await;
    assert_eq!(last, Ok(Ok(())));
}
