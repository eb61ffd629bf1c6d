//! Whoever may not do what a request asks for is answered with Kafka's error.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::{ErrorCode, Response};
use tokio::time::Instant;

use super::Broker;
use crate::security::{AllowAll, Authorizer, Operation, Principal, Resource, ResourceType};

const TOPIC: ErrorCode = ErrorCode::TopicAuthorizationFailed;
const GROUP: ErrorCode = ErrorCode::GroupAuthorizationFailed;

/// Allows what a rule does.
struct Rule<F>(F);

impl<F: Fn(Operation, Resource<'_>) -> bool> Rule<F> {
    fn new(allows: F) -> Arc<Self> {
        Arc::new(Self(allows))
    }
}

impl<F: Fn(Operation, Resource<'_>) -> bool + Send + Sync> Authorizer for Rule<F> {
    fn allows(&self, _: &Principal, _: &str, operation: Operation, of: Resource<'_>) -> bool {
        (self.0)(operation, of)
    }

    fn allows_any(&self, _: &Principal, _: &str, operation: Operation, of: ResourceType) -> bool {
        assert_eq!(of, ResourceType::Topic);
        (self.0)(operation, Resource::Topic("any"))
    }
}

fn text(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

fn topic(name: &'static str) -> m::TopicName {
    m::TopicName(text(name))
}

fn group(name: &'static str) -> m::GroupId {
    m::GroupId(text(name))
}

fn commit(topics: &[m::TopicName]) -> m::OffsetCommitRequest {
    use m::offset_commit_request as r;
    let partition = r::OffsetCommitRequestPartition::default().with_committed_offset(3);
    let topic = |name: &m::TopicName| {
        r::OffsetCommitRequestTopic::default()
            .with_name(name.clone())
            .with_partitions(vec![partition.clone()])
    };
    m::OffsetCommitRequest::default()
        .with_group_id(group("g"))
        .with_topics(topics.iter().map(topic).collect())
}

fn produce(topics: &[&'static str]) -> m::ProduceRequest {
    use m::produce_request as r;
    let partition = r::PartitionProduceData::default();
    let topic = |name: &&'static str| {
        r::TopicProduceData::default()
            .with_name(topic(name))
            .with_partition_data(vec![partition.clone()])
    };
    m::ProduceRequest::default().with_acks(1).with_topic_data(topics.iter().map(topic).collect())
}

fn fetch(topics: &[&'static str]) -> m::FetchRequest {
    use m::fetch_request as r;
    let partition = r::FetchPartition::default().with_partition_max_bytes(1_000);
    let topic = |name: &&'static str| {
        r::FetchTopic::default().with_topic(topic(name)).with_partitions(vec![partition.clone()])
    };
    m::FetchRequest::default().with_max_bytes(1_000).with_topics(topics.iter().map(topic).collect())
}

fn describe_topics(names: &[&'static str]) -> m::MetadataRequest {
    let one = |name: &&'static str| {
        m::metadata_request::MetadataRequestTopic::default().with_name(Some(topic(name)))
    };
    m::MetadataRequest::default()
        .with_topics(Some(names.iter().map(one).collect()))
        .with_allow_auto_topic_creation(false)
}

fn fetch_offsets(topics: Option<&[&'static str]>) -> m::OffsetFetchRequest {
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

/// A broker with topics "t" and "secret", and groups "g" and "hidden" with offsets of both.
async fn broker() -> Broker {
    let broker = Broker::start().await;
    for name in ["t", "secret", "gone"] {
        broker.has_topic(name).await;
    }
    let all = Arc::new(AllowAll);
    let find = m::FindCoordinatorRequest::default().with_key(text("g"));
    broker.ask(&all, 3, find).await;
    for of in ["g", "hidden"] {
        let deadline = Instant::now() + Duration::from_secs(30);
        let request = commit(&[topic("t"), topic("secret")]).with_group_id(group(of));
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

macro_rules! answer {
    ($broker:ident, $rule:ident, $version:expr, $request:expr, $name:ident) => {
        match $broker.ask(&$rule, $version, $request).await {
            Response::$name(response) => response,
            other => panic!("{other:?}"),
        }
    };
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
    let both = commit(&[topic("t"), topic("secret")]);
    let committed = answer!(broker, mine, 9, both, OffsetCommit);
    let of: BTreeSet<_> = committed
        .topics
        .iter()
        .map(|topic| (topic.name.to_string(), topic.partitions[0].error_code))
        .collect();
    assert_eq!(of, BTreeSet::from([("secret".to_owned(), no), ("t".to_owned(), none)]));
    let secret = m::TopicName(StrBytes::from_string(id.to_string()));
    let committed = answer!(broker, mine, 10, commit(&[secret]), OffsetCommit);
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
    let make = m::CreateTopicsRequest::default().with_topics(vec![made]).with_timeout_ms(30_000);
    let may_make = Rule::new(|operation, _| operation == Operation::Create);
    let made = answer!(broker, may_make, 7, make, CreateTopics);
    let made = &made.topics[0];
    assert_eq!((made.error_code, made.topic_config_error_code), (none, no));
    assert_eq!((made.num_partitions, made.configs.as_ref().map_or(0, Vec::len)), (-1, 0));

    // What may be done to what cannot be seen is not told.
    let cluster = m::DescribeClusterRequest::default()
        .with_endpoint_type(1)
        .with_include_cluster_authorized_operations(true);
    let described = answer!(broker, mine, 2, cluster, DescribeCluster);
    assert_eq!(described.cluster_authorized_operations, 0);
    let topics = describe_topics(&["t"]).with_include_topic_authorized_operations(true);
    let reader =
        Rule::new(|operation, _| matches!(operation, Operation::Read | Operation::Describe));
    let described = answer!(broker, reader, 12, topics, Metadata);
    assert_eq!(described.topics[0].topic_authorized_operations, 1 << 3 | 1 << 8);
    broker.node.shutdown().await.unwrap();
}
