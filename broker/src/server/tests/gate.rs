//! Each API asks what the table of the gate says, and answers whoever may not with Kafka's error.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::batch::BatchBuilder;
use letterbox_protocol::{ErrorCode, Request, Response, apis};
use tokio::time::Instant;

use super::Broker;
use crate::metadata::MetadataImage;
use crate::metadata::features::{FEATURE, Levels};
use crate::security::{AllowAll, Authorizer, Operation, Principal, Resource, ResourceType};
use crate::server::gate::{Need, Whole, need};

const TOPIC: ErrorCode = ErrorCode::TopicAuthorizationFailed;
const GROUP: ErrorCode = ErrorCode::GroupAuthorizationFailed;
const CLUSTER: ErrorCode = ErrorCode::ClusterAuthorizationFailed;
/// Until what was asked shows.
const WAIT_MS: i32 = 30_000;
const TRANSACTION: ErrorCode = ErrorCode::TransactionalIdAuthorizationFailed;

/// Allows what a rule does, and keeps what it was asked.
struct Rule<F> {
    allows: F,
    asked: Mutex<BTreeSet<(Operation, ResourceType)>>,
}

impl<F: Fn(Operation, Resource<'_>) -> bool> Rule<F> {
    fn new(allows: F) -> Arc<Self> {
        Arc::new(Self { allows, asked: Mutex::default() })
    }

    fn asked(&self) -> BTreeSet<(Operation, ResourceType)> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl<F: Fn(Operation, Resource<'_>) -> bool + Send + Sync> Authorizer for Rule<F> {
    fn allows(&self, _: &Principal, _: &str, operation: Operation, of: Resource<'_>) -> bool {
        self.asked.lock().unwrap().insert((operation, of.kind()));
        (self.allows)(operation, of)
    }

    fn allows_any(&self, _: &Principal, _: &str, operation: Operation, of: ResourceType) -> bool {
        assert_eq!(of, ResourceType::Topic);
        (self.allows)(operation, Resource::Topic("any"))
    }
}

pub(super) fn text(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

pub(super) fn topic(name: &'static str) -> m::TopicName {
    m::TopicName(text(name))
}

pub(super) fn group(name: &'static str) -> m::GroupId {
    m::GroupId(text(name))
}

pub(super) fn commit(offset: i64, topics: &[m::TopicName]) -> m::OffsetCommitRequest {
    use m::offset_commit_request as r;
    let partition = r::OffsetCommitRequestPartition::default().with_committed_offset(offset);
    let topic = |name: &m::TopicName| {
        r::OffsetCommitRequestTopic::default()
            .with_name(name.clone())
            .with_partitions(vec![partition.clone()])
    };
    m::OffsetCommitRequest::default()
        .with_group_id(group("g"))
        .with_topics(topics.iter().map(topic).collect())
}

pub(super) fn produce(topics: &[&'static str]) -> m::ProduceRequest {
    use m::produce_request as r;
    let mut batch = BatchBuilder::new(1_000);
    batch.push(1_000, None, Some(b"value"), &[]);
    let partition = r::PartitionProduceData::default().with_records(Some(batch.build().freeze()));
    let topic = |name: &&'static str| {
        r::TopicProduceData::default()
            .with_name(topic(name))
            .with_partition_data(vec![partition.clone()])
    };
    // What is answered is what others see.
    m::ProduceRequest::default()
        .with_acks(-1)
        .with_timeout_ms(WAIT_MS)
        .with_topic_data(topics.iter().map(topic).collect())
}

pub(super) fn fetch(topics: &[&'static str]) -> m::FetchRequest {
    use m::fetch_request as r;
    let partition = r::FetchPartition::default().with_partition_max_bytes(1_000);
    let topic = |name: &&'static str| {
        r::FetchTopic::default().with_topic(topic(name)).with_partitions(vec![partition.clone()])
    };
    m::FetchRequest::default().with_max_bytes(1_000).with_topics(topics.iter().map(topic).collect())
}

pub(super) fn describe_topics(names: &[&'static str]) -> m::MetadataRequest {
    let one = |name: &&'static str| {
        m::metadata_request::MetadataRequestTopic::default().with_name(Some(topic(name)))
    };
    m::MetadataRequest::default()
        .with_topics(Some(names.iter().map(one).collect()))
        .with_allow_auto_topic_creation(false)
}

pub(super) fn offsets_of(name: &'static str, timestamp: i64) -> m::ListOffsetsRequest {
    use m::list_offsets_request as r;
    let partition = r::ListOffsetsPartition::default().with_timestamp(timestamp);
    let asked =
        r::ListOffsetsTopic::default().with_name(topic(name)).with_partitions(vec![partition]);
    m::ListOffsetsRequest::default().with_topics(vec![asked])
}

pub(super) fn fetch_offsets(topics: Option<&[&'static str]>) -> m::OffsetFetchRequest {
    use m::offset_fetch_request as r;
    let one = |name: &&'static str| {
        r::OffsetFetchRequestTopics::default()
            .with_name(topic(name))
            .with_partition_indexes(vec![0])
    };
    let asked = r::OffsetFetchRequestGroup::default()
        .with_group_id(group("g"))
        .with_topics(topics.map(|topics| topics.iter().map(one).collect()));
    m::OffsetFetchRequest::default().with_groups(vec![asked])
}

/// Requests of data, and the errors of whoever may do nothing.
fn of_records() -> Vec<(i16, Request, &'static [ErrorCode])> {
    use m::{
        delete_records_request as dr, describe_producers_request as dp,
        offset_for_leader_epoch_request as le,
    };
    let as_follower = fetch(&["t"]).with_replica_id(m::BrokerId(1));
    let epoch = le::OffsetForLeaderTopic::default()
        .with_topic(topic("t"))
        .with_partitions(vec![le::OffsetForLeaderPartition::default()]);
    let first = dr::DeleteRecordsTopic::default()
        .with_name(topic("t"))
        .with_partitions(vec![dr::DeleteRecordsPartition::default().with_offset(1)]);
    let cut = m::DeleteRecordsRequest::default().with_topics(vec![first]).with_timeout_ms(WAIT_MS);
    let producers =
        dp::TopicRequest::default().with_name(topic("t")).with_partition_indexes(vec![0]);
    let id = m::TransactionalId(text("x"));
    vec![
        (9, produce(&["t", "not there"]).into(), &[TOPIC]),
        (9, produce(&["t"]).with_transactional_id(Some(id.clone())).into(), &[TRANSACTION]),
        (12, fetch(&["t", "not there"]).into(), &[TOPIC]),
        (12, as_follower.into(), &[TOPIC]),
        (7, offsets_of("t", -1).into(), &[TOPIC]),
        (4, m::OffsetForLeaderEpochRequest::default().with_topics(vec![epoch]).into(), &[TOPIC]),
        (2, cut.into(), &[TOPIC]),
        (0, m::DescribeProducersRequest::default().with_topics(vec![producers]).into(), &[TOPIC]),
        (4, m::InitProducerIdRequest::default().with_transactional_id(None).into(), &[CLUSTER]),
        (
            4,
            m::InitProducerIdRequest::default().with_transactional_id(Some(id)).into(),
            &[TRANSACTION],
        ),
    ]
}

/// As [`of_records`].
fn of_groups() -> Vec<(i16, Request, &'static [ErrorCode])> {
    use m::offset_fetch_request as of;
    let find =
        |kind, key| m::FindCoordinatorRequest::default().with_key_type(kind).with_key(text(key));
    let find_all = |kind, key| {
        m::FindCoordinatorRequest::default()
            .with_key_type(kind)
            .with_coordinator_keys(vec![text(key)])
    };
    let member = m::leave_group_request::MemberIdentity::default();
    let one = of::OffsetFetchRequestTopic::default()
        .with_name(topic("t"))
        .with_partition_indexes(vec![0]);
    let of_one =
        m::OffsetFetchRequest::default().with_group_id(group("g")).with_topics(Some(vec![one]));
    vec![
        (3, find(0, "g").into(), &[GROUP]),
        (4, find_all(0, "g").into(), &[GROUP]),
        (3, find(1, "x").into(), &[TRANSACTION]),
        (4, find_all(1, "x").into(), &[TRANSACTION]),
        // In every version: what cannot be null in older ones is not.
        (0, join().into(), &[GROUP]),
        (9, join().into(), &[GROUP]),
        (0, m::SyncGroupRequest::default().with_group_id(group("g")).into(), &[GROUP]),
        (5, m::SyncGroupRequest::default().with_group_id(group("g")).into(), &[GROUP]),
        (4, m::HeartbeatRequest::default().with_group_id(group("g")).into(), &[GROUP]),
        (
            5,
            m::LeaveGroupRequest::default()
                .with_group_id(group("g"))
                .with_members(vec![member])
                .into(),
            &[GROUP],
        ),
        (9, commit(5, &[topic("t")]).into(), &[GROUP]),
        (1, of_one.clone().into(), &[GROUP]),
        (7, of_one.into(), &[GROUP]),
        (9, fetch_offsets(Some(&["t"])).into(), &[GROUP]),
        (0, forget(&["t"]).into(), &[GROUP]),
        (6, m::DescribeGroupsRequest::default().with_groups(vec![group("g")]).into(), &[GROUP]),
        (5, m::ListGroupsRequest::default().into(), &[]),
        (
            2,
            m::DeleteGroupsRequest::default().with_groups_names(vec![group("old")]).into(),
            &[GROUP],
        ),
    ]
}

/// Of the group "old".
fn forget(topics: &[&'static str]) -> m::OffsetDeleteRequest {
    use m::offset_delete_request as r;
    let one = |name: &&'static str| {
        r::OffsetDeleteRequestTopic::default()
            .with_name(topic(name))
            .with_partitions(vec![r::OffsetDeleteRequestPartition::default()])
    };
    m::OffsetDeleteRequest::default()
        .with_group_id(group("old"))
        .with_topics(topics.iter().map(one).collect())
}

fn join() -> m::JoinGroupRequest {
    // Neither session nor protocol: refused at once by whoever passes the gate.
    m::JoinGroupRequest::default().with_group_id(group("g"))
}

/// As [`of_records`].
fn of_topics() -> Vec<(i16, Request, &'static [ErrorCode])> {
    use m::{
        alter_partition_reassignments_request as ar, create_partitions_request as cp,
        create_topics_request as ct, delete_topics_request as dt,
        describe_topic_partitions_request as dp, elect_leaders_request as el,
    };
    let made = ct::CreatableTopic::default()
        .with_name(topic("made"))
        .with_num_partitions(1)
        .with_replication_factor(1);
    let more = cp::CreatePartitionsTopic::default()
        .with_name(topic("t"))
        .with_count(2)
        .with_assignments(None);
    let gone = dt::DeleteTopicState::default().with_name(Some(topic("gone")));
    let create = m::CreateTopicsRequest::default().with_topics(vec![made]);
    let grow = m::CreatePartitionsRequest::default().with_topics(vec![more]);
    let delete = m::DeleteTopicsRequest::default().with_topics(vec![gone]);
    let moved = ar::ReassignableTopic::default().with_name(topic("t")).with_partitions(vec![
        ar::ReassignablePartition::default().with_replicas(Some(vec![m::BrokerId(1)])),
    ]);
    let led = el::TopicPartitions::default().with_topic(topic("t")).with_partitions(vec![0]);
    let elect = m::ElectLeadersRequest::default().with_topic_partitions(Some(vec![led]));
    let all = describe_topics(&[]).with_topics(None);
    let looked_at = dp::TopicRequest::default().with_name(topic("t"));
    vec![
        (9, describe_topics(&["t", "asked"]).with_allow_auto_topic_creation(true).into(), &[TOPIC]),
        (9, all.into(), &[]),
        (10, describe_topics(&[]).with_include_cluster_authorized_operations(true).into(), &[]),
        (
            0,
            m::DescribeTopicPartitionsRequest::default().with_topics(vec![looked_at]).into(),
            &[TOPIC],
        ),
        (0, m::DescribeTopicPartitionsRequest::default().into(), &[]),
        (7, create.with_timeout_ms(WAIT_MS).into(), &[TOPIC]),
        (3, grow.with_timeout_ms(WAIT_MS).into(), &[TOPIC]),
        (6, delete.with_timeout_ms(WAIT_MS).into(), &[TOPIC]),
        // The first version has errors of partitions only.
        (0, elect.clone().into(), &[CLUSTER]),
        (2, elect.with_timeout_ms(WAIT_MS).into(), &[CLUSTER]),
        (1, m::ElectLeadersRequest::default().with_topic_partitions(None).into(), &[CLUSTER]),
        (
            1,
            m::AlterPartitionReassignmentsRequest::default()
                .with_topics(vec![moved])
                .with_timeout_ms(WAIT_MS)
                .into(),
            &[CLUSTER],
        ),
        (0, m::ListPartitionReassignmentsRequest::default().into(), &[CLUSTER]),
    ]
}

/// As [`of_records`].
fn of_the_cluster() -> Vec<(i16, Request, &'static [ErrorCode])> {
    use m::{
        alter_configs_request as ac, describe_configs_request as dc,
        incremental_alter_configs_request as ic,
    };
    let things: [(i8, &'static str); 3] = [(2, "t"), (4, "1"), (32, "g")];
    let described = things.map(|(kind, name)| {
        dc::DescribeConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(text(name))
    });
    // Each resource has one that can be set.
    let settings = ["retention.ms", "log.cleaner.backoff.ms", "consumer.session.timeout.ms"];
    // The two APIs have the same fields in types of their own.
    macro_rules! altered {
        ($module:ident, $request:ident, $value:literal) => {{
            let resources = things.iter().zip(settings).map(|((kind, name), setting)| {
                let set = $module::AlterableConfig::default().with_name(text(setting));
                $module::AlterConfigsResource::default()
                    .with_resource_type(*kind)
                    .with_resource_name(text(name))
                    .with_configs(vec![set.with_value(Some(text($value)))])
            });
            m::$request::default().with_resources(resources.collect())
        }};
    }
    let acl = m::create_acls_request::AclCreation::default().with_operation(3);
    let filter = m::delete_acls_request::DeleteAclsFilter::default().with_operation(3);
    let level = m::update_features_request::FeatureUpdateKey::default()
        .with_feature(text(FEATURE))
        .with_max_version_level(Levels::SUPPORTED.max);
    let finalize = m::UpdateFeaturesRequest::default().with_feature_updates(vec![level]);
    let all: &[ErrorCode] = &[TOPIC, GROUP, CLUSTER];
    vec![
        (0, m::ApiVersionsRequest::default().into(), &[]),
        (
            2,
            m::DescribeClusterRequest::default()
                .with_endpoint_type(1)
                .with_include_cluster_authorized_operations(true)
                .into(),
            &[],
        ),
        (4, m::DescribeConfigsRequest::default().with_resources(described.to_vec()).into(), all),
        (2, altered!(ac, AlterConfigsRequest, "50000").into(), all),
        (1, altered!(ic, IncrementalAlterConfigsRequest, "51000").into(), all),
        (1, m::ListConfigResourcesRequest::default().into(), &[CLUSTER]),
        (4, m::DescribeLogDirsRequest::default().into(), &[CLUSTER]),
        (2, m::DescribeQuorumRequest::default().into(), &[CLUSTER]),
        (0, m::AddRaftVoterRequest::default().into(), &[CLUSTER]),
        (0, m::RemoveRaftVoterRequest::default().into(), &[CLUSTER]),
        (
            0,
            m::UnregisterBrokerRequest::default().with_broker_id(m::BrokerId(7)).into(),
            &[CLUSTER],
        ),
        (2, finalize.with_timeout_ms(WAIT_MS).into(), &[CLUSTER]),
        (3, m::DescribeAclsRequest::default().into(), &[CLUSTER]),
        (3, m::CreateAclsRequest::default().with_creations(vec![acl]).into(), &[CLUSTER]),
        (3, m::DeleteAclsRequest::default().with_filters(vec![filter]).into(), &[CLUSTER]),
    ]
}

/// A broker with topics "t" and "secret", and groups "g", "hidden" and "old" with offsets of both.
async fn broker() -> Broker {
    let broker = Broker::start().await;
    broker.is_at_the_first_level().await;
    for name in ["t", "secret", "gone"] {
        broker.has_topic(name).await;
    }
    let all = Arc::new(AllowAll);
    let find = m::FindCoordinatorRequest::default().with_key(text("g"));
    broker.ask(&all, 3, find).await;
    for of in ["g", "hidden", "old"] {
        let deadline = Instant::now() + Duration::from_secs(30);
        let request = commit(3, &[topic("t"), topic("secret")]).with_group_id(group(of));
        // Until the group's partition is loaded.
        loop {
            let codes = codes(&broker.ask(&all, 9, request.clone()).await);
            if codes.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "{codes:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    broker
}

/// Every error code in an answer.
fn codes(response: &Response) -> BTreeSet<i16> {
    let shown = format!("{response:?}");
    let code = |rest: &str| rest.split([',', ' ', '}']).next().and_then(|code| code.parse().ok());
    shown.split(" error_code: ").skip(1).filter_map(code).filter(|code| *code != 0).collect()
}

/// What requests can change: the metadata, what topics hold, and the groups.
async fn state(broker: &Broker) -> (Arc<MetadataImage>, String) {
    let all = Arc::new(AllowAll);
    let mut shown = String::new();
    for (name, at) in [("t", -1), ("t", -2), ("secret", -1)] {
        write!(shown, "{:?}", broker.ask(&all, 7, offsets_of(name, at)).await).unwrap();
    }
    for name in ["g", "old"] {
        let mut of = fetch_offsets(None);
        of.groups[0].group_id = group(name);
        write!(shown, "{:?}", broker.ask(&all, 9, of).await).unwrap();
    }
    let groups = broker.ask(&all, 5, m::ListGroupsRequest::default()).await;
    write!(shown, "{groups:?}").unwrap();
    (broker.node.services().image(), shown)
}

/// The requests that are made for what they change. On one broker no partition moves or gets
/// another leader.
fn is_change(request: &Request) -> bool {
    matches!(
        request,
        Request::Produce(m::ProduceRequest { transactional_id: None, .. })
            | Request::DeleteRecords(_)
            | Request::OffsetCommit(_)
            | Request::OffsetDelete(_)
            | Request::DeleteGroups(_)
            | Request::CreateTopics(_)
            | Request::DeleteTopics(_)
            | Request::CreatePartitions(_)
            | Request::AlterConfigs(_)
            | Request::IncrementalAlterConfigs(_)
            | Request::UpdateFeatures(_)
    )
}

/// The requests whose answers say what the principal may do: every operation is asked for them.
fn tells_operations(request: &Request) -> bool {
    match request {
        Request::Metadata(request) => request.include_cluster_authorized_operations,
        Request::DescribeCluster(request) => request.include_cluster_authorized_operations,
        Request::DescribeTopicPartitions(_) => true,
        _ => false,
    }
}

#[tokio::test]
async fn every_api_asks_what_the_gate_says_and_refuses_whoever_may_not() {
    let broker = broker().await;
    let mut rows = of_records();
    rows.extend(of_groups());
    rows.extend(of_topics());
    rows.extend(of_the_cluster());
    let known: BTreeSet<i16> = rows.iter().map(|(_, request, _)| request.api_key()).collect();
    let served: BTreeSet<i16> = apis::APIS.iter().map(|api| api.key).collect();
    assert_eq!(known, served, "an API without a row: what may be asked of it is not tested");

    let (nothing, everything) = (Rule::new(|_, _| false), Rule::new(|_, _| true));
    let no_cluster = Rule::new(|_, of| of.kind() != ResourceType::Cluster);
    let authorization: BTreeSet<i16> =
        [TOPIC, GROUP, CLUSTER, TRANSACTION].iter().map(|code| code.code()).collect();
    let (mut declared, mut asked, mut of_answers) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (version, request, expected) in &rows {
        let (version, key) = (*version, request.api_key());
        let expected: BTreeSet<i16> = expected.iter().map(|code| code.code()).collect();
        let before = state(&broker).await;
        let refused = broker.ask(&nothing, version, request.clone()).await;
        assert_eq!(codes(&refused), expected, "{request:?} v{version}: {refused:?}");
        let shown = format!("{refused:?}");
        let is_told = shown.contains("secret") || shown.contains("hidden");
        assert!(!is_told, "{request:?} v{version}: {shown}");
        assert!(state(&broker).await == before, "{request:?} v{version} was refused, and done");
        broker.ask(&no_cluster, version, request.clone()).await;
        let allowed = broker.ask(&everything, version, request.clone()).await;
        assert!(codes(&allowed).is_disjoint(&authorization), "{request:?} v{version}: {allowed:?}");
        // Or else the row shows nothing.
        let is_done = !is_change(request) || state(&broker).await != before;
        assert!(is_done, "{request:?} v{version} was allowed and changed nothing: {allowed:?}");
        let Need { whole, each } = need(request);
        declared.extend(each.iter().map(|(operation, of)| (key, *operation, *of)));
        match whole {
            Whole::Nothing => {}
            Whole::To(operation, of) => drop(declared.insert((key, operation, of.kind()))),
            Whole::IdempotentWrite => {
                declared.insert((key, Operation::IdempotentWrite, ResourceType::Cluster));
            }
        }
        let all = [nothing.asked(), no_cluster.asked(), everything.asked()];
        let all = all.into_iter().flatten().map(|(operation, of)| (key, operation, of));
        match tells_operations(request) {
            true => of_answers.extend(all),
            false => asked.extend(all),
        }
    }
    let never: Vec<_> =
        declared.iter().filter(|it| !(asked.contains(it) || of_answers.contains(it))).collect();
    assert!(never.is_empty(), "in the table of the gate, and never asked: {never:?}");
    let more: Vec<_> = asked.difference(&declared).collect();
    assert!(more.is_empty(), "asked, and not in the table of the gate: {more:?}");
    broker.node.shutdown().await.unwrap();
}

/// Whoever may use one topic and one group is served, and learns nothing of others.
#[tokio::test]
async fn what_a_principal_may_not_see_is_refused_alone_or_left_out() {
    let broker = broker().await;
    let mine = Rule::new(|_, of| match of {
        Resource::Topic(name) => name == "t",
        Resource::Group(name) => name == "g",
        Resource::Cluster | Resource::TransactionalId(_) => false,
    });
    let names = |topics: &[m::metadata_response::MetadataResponseTopic]| -> Vec<String> {
        topics.iter().filter_map(|topic| Some(topic.name.as_ref()?.as_str().to_owned())).collect()
    };
    let (none, no) = (0, TOPIC.code());

    // Metadata: one of all is there; by name others are refused whether they exist or not.
    let all = answer!(broker, mine, 12, describe_topics(&[]).with_topics(None), Metadata);
    assert_eq!(names(&all.topics), ["t"]);
    let by_name = describe_topics(&["t", "secret", "not there"]);
    let some = answer!(broker, mine, 12, by_name, Metadata);
    let of: Vec<i16> = some.topics.iter().map(|topic| topic.error_code).collect();
    assert_eq!(of, [none, no, no]);
    assert!(some.topics[1].topic_id.is_nil());
    // By id, of which one can be guessed, the name is not told.
    let everything = Arc::new(AllowAll);
    let known = answer!(broker, everything, 12, describe_topics(&["secret"]), Metadata);
    let id = known.topics[0].topic_id;
    let mut by_id = describe_topics(&["secret"]);
    by_id.topics.as_mut().unwrap()[0].topic_id = id;
    let refused = answer!(broker, mine, 12, by_id, Metadata);
    assert_eq!((refused.topics[0].error_code, names(&refused.topics)), (no, vec![]));

    // A topic is made only for whoever may make it.
    let asked = describe_topics(&["asked"]).with_allow_auto_topic_creation(true);
    let may_not_make = Rule::new(|operation, _| operation != Operation::Create);
    let made = answer!(broker, may_not_make, 12, asked, Metadata);
    assert_eq!(made.topics[0].error_code, no);
    let after = answer!(broker, everything, 12, describe_topics(&["asked"]), Metadata);
    assert_eq!(after.topics[0].error_code, ErrorCode::UnknownTopicOrPartition.code());

    // Produce and Fetch.
    let produced = answer!(broker, mine, 9, produce(&["t", "secret"]), Produce);
    let of: Vec<i16> =
        produced.responses.iter().map(|topic| topic.partition_responses[0].error_code).collect();
    assert!(of[0] != no && of[1] == no, "{of:?}");
    let fetched = answer!(broker, mine, 12, fetch(&["t", "secret"]), Fetch);
    let of: Vec<i16> =
        fetched.responses.iter().map(|topic| topic.partitions[0].error_code).collect();
    assert_eq!(of, [none, no]);

    // Offsets, by name and by id.
    let both = commit(3, &[topic("t"), topic("secret")]);
    let committed = answer!(broker, mine, 9, both, OffsetCommit);
    let of: BTreeSet<_> = committed
        .topics
        .iter()
        .map(|topic| (topic.name.to_string(), topic.partitions[0].error_code))
        .collect();
    assert_eq!(of, BTreeSet::from([("secret".to_owned(), no), ("t".to_owned(), none)]));
    let secret = m::TopicName(StrBytes::from_string(id.to_string()));
    let committed = answer!(broker, mine, 10, commit(3, &[secret]), OffsetCommit);
    assert_eq!(committed.topics[0].partitions[0].error_code, no);
    let fetched = answer!(broker, mine, 9, fetch_offsets(None), OffsetFetch);
    let of: Vec<_> = fetched.groups[0].topics.iter().map(|topic| &*topic.name).collect();
    assert_eq!(of, ["t"], "of all topics, those that may be seen");
    let fetched = answer!(broker, mine, 9, fetch_offsets(Some(&["t", "secret"])), OffsetFetch);
    let of: Vec<_> = fetched.groups[0]
        .topics
        .iter()
        .map(|topic| (&**topic.name, topic.partitions[0].error_code))
        .collect();
    assert_eq!(of, [("t", none), ("secret", no)]);

    let mine_to_delete = Rule::new(|operation, of| match of {
        Resource::Group(name) => (operation, name) == (Operation::Delete, "old"),
        Resource::Topic(name) => name == "t",
        Resource::Cluster | Resource::TransactionalId(_) => false,
    });
    let deleted = answer!(broker, mine_to_delete, 0, forget(&["t", "secret"]), OffsetDelete);
    let of: BTreeSet<_> = deleted
        .topics
        .iter()
        .map(|topic| (&**topic.name, topic.partitions[0].error_code))
        .collect();
    assert_eq!(of, BTreeSet::from([("t", none), ("secret", no)]));
    let mut left = fetch_offsets(None);
    left.groups[0].group_id = group("old");
    let left = answer!(broker, everything, 9, left, OffsetFetch);
    let of: Vec<_> = left.groups[0].topics.iter().map(|topic| &**topic.name).collect();
    assert_eq!(of, ["secret"]);

    // Groups.
    let listed = answer!(broker, mine, 5, m::ListGroupsRequest::default(), ListGroups);
    let of: Vec<_> = listed.groups.iter().map(|group| &**group.group_id).collect();
    assert_eq!(of, ["g"]);
    let both = m::DescribeGroupsRequest::default().with_groups(vec![group("hidden"), group("g")]);
    let described = answer!(broker, mine, 6, both, DescribeGroups);
    let of: Vec<_> = described
        .groups
        .iter()
        .map(|group| (&**group.group_id, group.error_code, group.group_state.is_empty()))
        .collect();
    assert_eq!(of, [("g", none, false), ("hidden", GROUP.code(), true)]);

    // Whoever makes a topic without seeing configurations is not told them.
    let made = m::create_topics_request::CreatableTopic::default()
        .with_name(topic("mine"))
        .with_num_partitions(1)
        .with_replication_factor(1);
    let make = m::CreateTopicsRequest::default().with_topics(vec![made]).with_timeout_ms(WAIT_MS);
    let may_make = Rule::new(|operation, _| operation == Operation::Create);
    let made = answer!(broker, may_make, 7, make, CreateTopics);
    let made = &made.topics[0];
    assert_eq!((made.error_code, made.topic_config_error_code), (none, no));
    assert_eq!((made.num_partitions, made.configs.as_ref().map_or(0, Vec::len)), (-1, 0));

    // What may be done to what cannot be seen is not told.
    let cluster = m::DescribeClusterRequest::default()
        .with_endpoint_type(1)
        .with_include_cluster_authorized_operations(true);
    let may_only_alter = Rule::new(|operation, _| operation == Operation::Alter);
    let described = answer!(broker, may_only_alter, 2, cluster, DescribeCluster);
    assert_eq!(described.cluster_authorized_operations, 0);
    let topics = describe_topics(&["t"]).with_include_topic_authorized_operations(true);
    let reader =
        Rule::new(|operation, _| matches!(operation, Operation::Read | Operation::Describe));
    let described = answer!(broker, reader, 12, topics, Metadata);
    assert_eq!(described.topics[0].topic_authorized_operations, 1 << 3 | 1 << 8);
    broker.node.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_topic_of_groups_is_not_made_for_whoever_may_see_no_group() {
    let broker = Broker::start().await;
    let is_made = || broker.node.services().image().topic("__consumer_offsets").is_some();
    let find = m::FindCoordinatorRequest::default().with_key(text("g"));
    let (nothing, everything) = (Rule::new(|_, _| false), Arc::new(AllowAll));
    let found = answer!(broker, nothing, 3, find.clone(), FindCoordinator);
    assert_eq!((found.error_code, is_made()), (GROUP.code(), false));
    answer!(broker, everything, 3, find, FindCoordinator);
    assert!(is_made());
    broker.node.shutdown().await.unwrap();
}
