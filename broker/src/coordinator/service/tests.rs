//! The service over a log in memory whose commits can be held back and whose appends can fail. Time is paused: tokio moves it on
//! when every task waits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError as E;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::{
    DescribeGroupsRequest, GroupId, HeartbeatRequest, JoinGroupRequest, ListGroupsRequest, OffsetCommitRequest, OffsetFetchRequest,
    SyncGroupRequest, TopicName,
};
use letterbox_env::{BoxFuture, Env};
use tokio::sync::watch;

use super::{GroupCoordinator, GroupMetadataView};
use crate::coordinator::group::str_bytes;
use crate::coordinator::{AppendError, GroupConfig, KeyValue, ReplicatedLog, RequestContext};
use crate::model::Offset;

struct MemoryLog {
    records: Mutex<BTreeMap<i32, Vec<KeyValue>>>,
    fails: Mutex<Option<AppendError>>,
    /// The high watermark; commits wait for it.
    high_watermark: watch::Sender<Offset>,
}

impl ReplicatedLog for MemoryLog {
    fn append(&self, partition: i32, records: Vec<KeyValue>, _: i64) -> BoxFuture<'static, Result<Offset, AppendError>> {
        let failure = *self.fails.lock().unwrap();
        let result = match failure {
            Some(error) => Err(error),
            None => {
                let mut all = self.records.lock().unwrap();
                let log = all.entry(partition).or_default();
                log.extend(records);
                Ok(i64::try_from(log.len()).unwrap())
            }
        };
        Box::pin(async move { result })
    }

    fn committed(&self, _: i32, end_offset: Offset) -> BoxFuture<'static, Result<(), AppendError>> {
        let mut high_watermark = self.high_watermark.subscribe();
        Box::pin(
            async move { high_watermark.wait_for(|offset| *offset >= end_offset).await.map(|_| ()).map_err(|_| AppendError::NotLeader) },
        )
    }

    fn read_all<'a>(
        &'a self,
        partition: i32,
        each: &'a mut (dyn FnMut(Bytes, Option<Bytes>) + Send),
    ) -> BoxFuture<'a, Result<(), AppendError>> {
        for (key, value) in self.records.lock().unwrap().get(&partition).cloned().unwrap_or_default() {
            each(key, value);
        }
        Box::pin(async { Ok(()) })
    }
}

fn coordinator() -> (GroupCoordinator, Arc<MemoryLog>) {
    let log = Arc::new(MemoryLog { records: Mutex::default(), fails: Mutex::default(), high_watermark: watch::channel(i64::MAX).0 });
    (over(log.clone()), log)
}

fn over(log: Arc<MemoryLog>) -> GroupCoordinator {
    let metadata = GroupMetadataView { topic_exists: Box::new(|topic| topic == "t"), partition_count: Box::new(|| Some(1)) };
    GroupCoordinator::new(Env::real(), GroupConfig::default(), log, metadata)
}

fn context(api_version: i16) -> RequestContext {
    RequestContext { client_id: "c".into(), client_host: "/127.0.0.1".into(), api_version }
}

fn group() -> GroupId {
    GroupId(str_bytes("g"))
}

fn join_request(member_id: &str) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default().with_name(str_bytes("range")).with_metadata(Bytes::from_static(b"x"));
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
    let topic = OffsetCommitRequestTopic::default().with_name(TopicName(str_bytes(topic))).with_partitions(vec![partition]);
    OffsetCommitRequest::default().with_group_id(group()).with_generation_id_or_member_epoch(-1).with_topics(vec![topic])
}

async fn commit(coordinator: &GroupCoordinator, topic: &str, offset: Offset) -> i16 {
    coordinator.offset_commit(&context(8), commit_request(topic, offset)).await.topics[0].partitions[0].error_code
}

async fn fetch(coordinator: &GroupCoordinator, require_stable: bool) -> (i16, Option<Offset>) {
    let of_group = OffsetFetchRequestGroup::default().with_group_id(group()).with_topics(None);
    let request = OffsetFetchRequest::default().with_groups(vec![of_group]).with_require_stable(require_stable);
    let response = coordinator.offset_fetch(&context(8), request).await;
    let first = &response.groups[0];
    (first.error_code, first.topics.first().map(|topic| topic.partitions[0].committed_offset))
}

#[tokio::test(start_paused = true)]
async fn a_member_joins_syncs_and_is_there_after_the_coordinator_has_moved() {
    let (first, log) = coordinator();
    assert_eq!(fetch(&first, false).await.0, E::NotCoordinator.code());
    first.load(0).await.unwrap();
    let given = first.join_group(&context(9), join_request("")).await;
    assert_eq!(given.error_code, E::MemberIdRequired.code());
    assert!(given.member_id.starts_with("c-"));
    let joined = first.join_group(&context(9), join_request(&given.member_id)).await;
    assert_eq!((joined.error_code, joined.generation_id), (0, 1));
    let sync = SyncGroupRequest::default().with_group_id(group()).with_generation_id(1).with_member_id(joined.member_id.clone());
    assert_eq!(first.sync_group(&context(5), sync.clone()).await.error_code, E::InconsistentGroupProtocol.code());
    let sync = sync.with_protocol_type(joined.protocol_type.clone()).with_protocol_name(joined.protocol_name.clone());
    assert_eq!(first.sync_group(&context(5), sync).await.error_code, 0);
    for asked in [false, true] {
        let describe = DescribeGroupsRequest::default().with_groups(vec![group()]).with_include_authorized_operations(asked);
        let operations = first.describe_groups(&context(5), &describe).groups[0].authorized_operations;
        // The bits of read, delete, describe, describe configs, alter configs.
        assert_eq!(operations, if asked { 0b1101_0100_1000 } else { i32::MIN });
    }
    assert_eq!(commit(&first, "missing", 1).await, E::UnknownTopicOrPartition.code());
    first.shutdown().await;

    let second = over(log);
    second.load(0).await.unwrap();
    let beat = HeartbeatRequest::default().with_group_id(group()).with_generation_id(1).with_member_id(joined.member_id);
    assert_eq!(second.heartbeat(&context(4), &beat).error_code, 0);
    let listed = second.list_groups(&context(5), &ListGroupsRequest::default().with_states_filter(vec![str_bytes("stable")]));
    assert_eq!(listed.groups.len(), 1);
    tokio::time::sleep(Duration::from_millis(10_001)).await;
    assert_eq!(second.heartbeat(&context(4), &beat).error_code, E::UnknownMemberId.code(), "the timer task ends its session");
    second.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_commit_is_answered_and_seen_only_below_the_high_watermark() {
    let (coordinator, log) = coordinator();
    coordinator.load(0).await.unwrap();
    log.high_watermark.send_replace(0);
    assert_eq!(commit(&coordinator, "t", 42).await, E::CoordinatorNotAvailable.code(), "offsets.commit.timeout.ms is over");
    assert_eq!(fetch(&coordinator, false).await, (0, None));
    let (stable, ()) = tokio::join!(fetch(&coordinator, true), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        log.high_watermark.send_replace(i64::MAX);
    });
    assert_eq!(stable, (0, Some(42)), "requireStable waits for what was appended");
    coordinator.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_append_changes_nothing_and_the_next_one_works() {
    let (coordinator, log) = coordinator();
    coordinator.load(0).await.unwrap();
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
    coordinator.load(0).await.unwrap();
    let version_0 = context(0);
    let (joined, ()) = tokio::join!(coordinator.join_group(&version_0, join_request("")), coordinator.unload(0));
    assert_eq!(joined.error_code, E::NotCoordinator.code());
    coordinator.shutdown().await;
    assert_eq!(commit(&coordinator, "t", 1).await, E::CoordinatorNotAvailable.code());
}
