//! What clients ask on the wire and what they are told, where Apache Kafka has one answer and an
//! easy guess has another.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

mod common;

use std::time::Instant;

use common::{Broker, ask, ask_for_topic, produce_request, produced, topic_name};
use kafka_protocol::messages as m;
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::Response;
use letterbox_protocol::batch::{BatchBuilder, Compression};

/// Fetch v11 of `topic`-0 from the start.
fn fetch_request(topic: &'static str) -> m::FetchRequest {
    let partition = m::fetch_request::FetchPartition::default().with_partition_max_bytes(1 << 20);
    let topic = m::fetch_request::FetchTopic::default()
        .with_topic(topic_name(topic))
        .with_partitions(vec![partition]);
    m::FetchRequest::default()
        .with_max_bytes(1 << 20)
        .with_min_bytes(1)
        .with_max_wait_ms(1_000)
        .with_topics(vec![topic])
}

/// Issue 7, 2.3: kafka-go sends session −1 with epoch −1 always. Kafka makes a new answer of all
/// partitions from it.
#[test]
fn a_fetch_of_a_whole_session_is_a_full_request_whatever_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    assert_eq!(ask_for_topic(&mut stream, "t"), 0);
    assert_eq!(produced(ask(&mut stream, 9, produce_request("t", b"v"))), (0, 0));
    for version in 7..=12 {
        for (id, epoch, error) in [
            (0, -1, 0),
            (0, 0, 0),
            (-1, -1, 0),
            (-1, 0, 0),
            (77, 0, 0),
            (77, -1, 0),
            (77, 1, 70),
            (0, 1, 70),
        ] {
            let request = fetch_request("t").with_session_id(id).with_session_epoch(epoch);
            let Response::Fetch(answer) = ask(&mut stream, version, request) else {
                unreachable!()
            };
            assert_eq!(
                (answer.error_code, answer.session_id > 0),
                (error, epoch == 0),
                "v{version} session {id} epoch {epoch}"
            );
            assert_eq!(answer.responses.len(), usize::from(error == 0));
            let bytes: usize = answer
                .responses
                .iter()
                .map(|topic| topic.partitions[0].records.as_ref().unwrap().len())
                .sum();
            assert_eq!(bytes > 0, error == 0, "v{version} session {id} epoch {epoch}");
        }
    }
}

/// No client goes on with it on another connection, and many that come and go would leave no place.
#[test]
fn a_fetch_session_ends_with_the_connection_on_which_it_began() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let (mut first, mut other) = (broker.connect(), broker.connect());
    assert_eq!(ask_for_topic(&mut first, "t"), 0);
    let begin = fetch_request("t").with_max_wait_ms(0).with_session_epoch(0);
    let Response::Fetch(answer) = ask(&mut first, 12, begin) else { unreachable!() };
    let id = answer.session_id;
    let mut go_on = |epoch| {
        let request = m::FetchRequest::default().with_session_id(id).with_session_epoch(epoch);
        let Response::Fetch(answer) = ask(&mut other, 12, request) else { unreachable!() };
        (answer.error_code, answer.session_id)
    };
    assert_eq!(go_on(1), (0, id));
    drop(first);
    let until = Instant::now() + common::PATIENCE;
    let mut epochs = (2..).take_while(|_| Instant::now() < until);
    // One that is under way meanwhile is answered, and says that there is no session any more.
    assert_eq!(epochs.find_map(|epoch| Some(go_on(epoch)).filter(|it| it.0 != 0)), Some((70, 0)));
}

#[test]
fn a_fetch_of_nothing_is_answered_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    let asked = Instant::now();
    // Whoever says that it is a replica waits for nothing either.
    for (version, replica) in
        [(4, -1), (7, -1), (12, -1), (4, 0), (6, 1), (11, 1), (12, 1), (15, 1), (17, 1)]
    {
        let request = m::FetchRequest::default()
            .with_replica_id(if version < 15 { replica.into() } else { (-1).into() })
            .with_replica_state(
                m::fetch_request::ReplicaState::default().with_replica_id(if version < 15 {
                    (-1).into()
                } else {
                    replica.into()
                }),
            )
            .with_min_bytes(1)
            .with_max_bytes(1 << 20)
            .with_max_wait_ms(600_000);
        let Response::Fetch(answer) = ask(&mut stream, version, request) else { unreachable!() };
        assert_eq!((answer.error_code, answer.responses.len()), (0, 0), "v{version} {replica}");
    }
    assert!(asked.elapsed() < common::PATIENCE, "max.wait.ms was waited for");
}

/// KIP-110. A fetch of it is answered in every version, as in Kafka since 4.0, which converts
/// nothing for readers any more.
#[test]
fn zstd_is_taken_from_produce_7_on() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    assert_eq!(ask_for_topic(&mut stream, "t"), 0);
    let mut records = BatchBuilder::new(1_700_000_000_000);
    records.push(1_700_000_000_000, None, Some(b"v"), &[]);
    let packed = zstd::encode_all(records.records(), 0).unwrap();
    let batch = records.build_with(Compression::Zstd, &packed).freeze();
    for version in 3..=12 {
        let mut request = produce_request("t", b"");
        request.topic_data[0].partition_data[0].records = Some(batch.clone());
        let (error, offset) = produced(ask(&mut stream, version, request));
        let expected = if version < 7 { (76, -1) } else { (0, i64::from(version) - 7) };
        assert_eq!((error, offset), expected, "Produce v{version}");
    }
    for version in 4..=12 {
        let Response::Fetch(answer) = ask(&mut stream, version, fetch_request("t")) else {
            unreachable!()
        };
        let partition = &answer.responses[0].partitions[0];
        assert_eq!(
            (partition.error_code, partition.records.as_ref().unwrap().is_empty()),
            (0, false),
            "Fetch v{version}"
        );
    }
}

/// Produces `count` single records; the offset of the last.
fn produce_some(stream: &mut std::net::TcpStream, topic: &'static str, count: i64) -> i64 {
    (0..count)
        .map(|_| produced(ask(stream, 9, produce_request(topic, b"v"))))
        .inspect(|answer| assert_eq!(answer.0, 0))
        .last()
        .unwrap()
        .1
}

fn earliest(stream: &mut std::net::TcpStream, topic: &'static str) -> i64 {
    let partition = m::list_offsets_request::ListOffsetsPartition::default()
        .with_timestamp(-2)
        .with_current_leader_epoch(-1);
    let topic = m::list_offsets_request::ListOffsetsTopic::default()
        .with_name(topic_name(topic))
        .with_partitions(vec![partition]);
    let Response::ListOffsets(answer) =
        ask(stream, 4, m::ListOffsetsRequest::default().with_topics(vec![topic]))
    else {
        unreachable!()
    };
    answer.topics[0].partitions[0].offset
}

fn create(
    stream: &mut std::net::TcpStream,
    name: &'static str,
    partitions: i32,
    configs: &[(&'static str, &'static str)],
) {
    let config = |(key, value): &(&'static str, &'static str)| {
        m::create_topics_request::CreatableTopicConfig::default()
            .with_name(StrBytes::from_static_str(key))
            .with_value(Some(StrBytes::from_static_str(value)))
    };
    let topic = m::create_topics_request::CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(partitions)
        .with_replication_factor(1)
        .with_configs(configs.iter().map(config).collect());
    let request =
        m::CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(30_000);
    let Response::CreateTopics(answer) = ask(stream, 5, request) else { unreachable!() };
    assert_eq!(answer.topics[0].error_code, 0, "{name}");
}

/// KIP-107. Kafka Streams keeps its repartition topics small with it.
#[test]
fn deleted_records_stay_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    create(&mut stream, "t", 1, &[]);
    create(&mut stream, "compacted", 1, &[("cleanup.policy", "compact")]);
    create(&mut stream, "both", 1, &[("cleanup.policy", "compact,delete")]);
    assert_eq!(produce_some(&mut stream, "t", 10), 9);
    let delete = |stream: &mut std::net::TcpStream, version, topic, partition, offset| {
        let partition = m::delete_records_request::DeleteRecordsPartition::default()
            .with_partition_index(partition)
            .with_offset(offset);
        let topic = m::delete_records_request::DeleteRecordsTopic::default()
            .with_name(topic_name(topic))
            .with_partitions(vec![partition]);
        let request =
            m::DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(30_000);
        let Response::DeleteRecords(answer) = ask(stream, version, request) else { unreachable!() };
        let partition = &answer.topics[0].partitions[0];
        (partition.error_code, partition.low_watermark)
    };
    for (case, version, topic, partition, offset, expected) in [
        ("the first three", 0, "t", 0, 3, (0, 3)),
        ("what is deleted already", 1, "t", 0, 2, (0, 3)),
        ("beyond the end", 2, "t", 0, 11, (1, -1)),
        ("below zero", 2, "t", 0, -2, (1, -1)),
        ("no such partition", 2, "t", 1, 0, (3, -1)),
        ("no such topic", 2, "none", 0, 0, (3, -1)),
        ("a compacted topic", 2, "compacted", 0, 0, (44, -1)),
        ("one that is compacted and deleted", 2, "both", 0, 0, (0, 0)),
    ] {
        assert_eq!(delete(&mut stream, version, topic, partition, offset), expected, "{case}");
    }
    assert_eq!(earliest(&mut stream, "t"), 3);
    let fetch_at = |stream: &mut std::net::TcpStream, offset| {
        let mut request = fetch_request("t");
        request.topics[0].partitions[0].fetch_offset = offset;
        let Response::Fetch(answer) = ask(stream, 11, request) else { unreachable!() };
        let partition = &answer.responses[0].partitions[0];
        (partition.error_code, partition.log_start_offset)
    };
    assert_eq!(
        [fetch_at(&mut stream, 2), fetch_at(&mut stream, 3)],
        [(1, 3), (0, 3)],
        "OFFSET_OUT_OF_RANGE below the log start"
    );
    broker = broker.kill_and_restart();
    stream = broker.connect();
    assert_eq!(earliest(&mut stream, "t"), 3, "after SIGKILL");
    assert_eq!(delete(&mut stream, 2, "t", 0, -1), (0, 10), "−1 is the high watermark");
    broker = broker.kill_and_restart();
    assert_eq!(earliest(&mut broker.connect(), "t"), 10, "after another SIGKILL");
}

/// As with Apache Kafka: no member joins again, which would have it begin elsewhere, because what
/// it has committed went with the topic.
#[test]
fn a_member_of_a_group_goes_on_when_the_topic_of_offsets_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "group.initial.rebalance.delay.ms=0");
    let mut stream = broker.connect();
    assert_eq!(ask_for_topic(&mut stream, "t"), 0);
    // Makes the topic of the coordinator, which loads its partitions then.
    let find = |stream: &mut std::net::TcpStream| {
        let keys = vec![StrBytes::from_static_str("g")];
        let find = m::FindCoordinatorRequest::default().with_coordinator_keys(keys);
        let Response::FindCoordinator(found) = ask(stream, 4, find) else { unreachable!() };
        found.coordinators[0].error_code
    };
    let until = Instant::now() + common::PATIENCE;
    let is_loading = |error: i16| (14..=16).contains(&error) && Instant::now() < until;
    let protocol = m::join_group_request::JoinGroupRequestProtocol::default()
        .with_name(StrBytes::from_static_str("range"));
    let group = m::GroupId(StrBytes::from_static_str("g"));
    let join = m::JoinGroupRequest::default()
        .with_group_id(group.clone())
        .with_session_timeout_ms(60_000)
        .with_rebalance_timeout_ms(60_000)
        .with_protocol_type(StrBytes::from_static_str("consumer"))
        .with_protocols(vec![protocol]);
    while is_loading(find(&mut stream)) {}
    let joined = loop {
        let Response::JoinGroup(joined) = ask(&mut stream, 3, join.clone()) else { unreachable!() };
        if !is_loading(joined.error_code) {
            break joined;
        }
    };
    assert_eq!(joined.error_code, 0);
    let sync = m::SyncGroupRequest::default()
        .with_group_id(group.clone())
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone());
    let Response::SyncGroup(synced) = ask(&mut stream, 3, sync) else { unreachable!() };
    assert_eq!(synced.error_code, 0);

    let topic = topic_name("__consumer_offsets");
    let delete =
        m::DeleteTopicsRequest::default().with_topic_names(vec![topic]).with_timeout_ms(10_000);
    let Response::DeleteTopics(deleted) = ask(&mut stream, 4, delete) else { unreachable!() };
    assert_eq!(deleted.responses[0].error_code, 0);

    let partition =
        m::offset_commit_request::OffsetCommitRequestPartition::default().with_committed_offset(7);
    let topic = m::offset_commit_request::OffsetCommitRequestTopic::default()
        .with_name(topic_name("t"))
        .with_partitions(vec![partition]);
    let commit = m::OffsetCommitRequest::default()
        .with_group_id(group)
        .with_generation_id_or_member_epoch(joined.generation_id)
        .with_member_id(joined.member_id)
        .with_topics(vec![topic]);
    while is_loading(find(&mut stream)) {}
    let error = loop {
        let Response::OffsetCommit(answer) = ask(&mut stream, 9, commit.clone()) else {
            unreachable!()
        };
        let error = answer.topics[0].partitions[0].error_code;
        if !is_loading(error) {
            break error;
        }
    };
    assert_eq!(error, 0);
}

#[test]
fn the_records_of_internal_topics_are_not_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "offsets.topic.num.partitions=1");
    let mut stream = broker.connect();
    assert_eq!(ask_for_topic(&mut stream, "__consumer_offsets"), 0);
    let partition = m::delete_records_request::DeleteRecordsPartition::default();
    let topic = m::delete_records_request::DeleteRecordsTopic::default()
        .with_name(topic_name("__consumer_offsets"))
        .with_partitions(vec![partition]);
    let Response::DeleteRecords(answer) =
        ask(&mut stream, 2, m::DeleteRecordsRequest::default().with_topics(vec![topic]))
    else {
        unreachable!()
    };
    assert_eq!(answer.topics[0].partitions[0].error_code, 17, "INVALID_TOPIC_EXCEPTION");
}

/// KIP-101 and KIP-320: a reader learns where the epoch of its last record ends.
#[test]
fn leader_epochs_end_where_the_next_began() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    create(&mut stream, "t", 1, &[]);
    produce_some(&mut stream, "t", 3);
    let ask_epoch = |stream: &mut std::net::TcpStream, version, current, epoch| {
        let partition = m::offset_for_leader_epoch_request::OffsetForLeaderPartition::default()
            .with_current_leader_epoch(current)
            .with_leader_epoch(epoch);
        let topic = m::offset_for_leader_epoch_request::OffsetForLeaderTopic::default()
            .with_topic(topic_name("t"))
            .with_partitions(vec![partition]);
        let request = m::OffsetForLeaderEpochRequest::default().with_topics(vec![topic]);
        let Response::OffsetForLeaderEpoch(answer) = ask(stream, version, request) else {
            unreachable!()
        };
        let partition = &answer.topics[0].partitions[0];
        (partition.error_code, partition.leader_epoch, partition.end_offset)
    };
    for version in 2..=4 {
        for (case, current, epoch, expected) in [
            ("the epoch in force", -1, 0, (0, 0, 3)),
            ("with the right current epoch", 0, 0, (0, 0, 3)),
            ("none", -1, -1, (0, -1, -1)),
            ("one of the future", -1, 1, (0, -1, -1)),
            ("a client that is ahead", 1, 0, (75, -1, -1)),
        ] {
            assert_eq!(
                ask_epoch(&mut stream, version, current, epoch),
                expected,
                "v{version}: {case}"
            );
        }
    }
    // A broker that did not stop in order leads in a new epoch.
    let broker = broker.kill_and_restart();
    let mut stream = broker.connect();
    assert_eq!(ask_epoch(&mut stream, 2, -1, 1), (0, 1, 3), "before its first record");
    produce_some(&mut stream, "t", 2);
    for (case, current, epoch, expected) in [
        ("the epoch before", -1, 0, (0, 0, 3)),
        ("the epoch in force", 1, 1, (0, 1, 5)),
        ("a client that is behind", 0, 1, (74, -1, -1)),
    ] {
        assert_eq!(ask_epoch(&mut stream, 4, current, epoch), expected, "{case}");
    }
}

/// Kafka without `authorizer.class.name`.
#[test]
fn acls_are_refused_because_security_is_disabled() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    for version in 1..=3 {
        let any = m::DescribeAclsRequest::default()
            .with_resource_type_filter(1)
            .with_pattern_type_filter(1)
            .with_operation(1)
            .with_permission_type(1);
        let Response::DescribeAcls(answer) = ask(&mut stream, version, any) else { unreachable!() };
        assert_eq!((answer.error_code, answer.resources.len()), (54, 0), "DescribeAcls v{version}");
        let creation = m::create_acls_request::AclCreation::default()
            .with_resource_type(2)
            .with_operation(3)
            .with_permission_type(3);
        let request =
            m::CreateAclsRequest::default().with_creations(vec![creation.clone(), creation]);
        let Response::CreateAcls(answer) = ask(&mut stream, version, request) else {
            unreachable!()
        };
        assert_eq!(
            answer.results.iter().map(|result| result.error_code).collect::<Vec<_>>(),
            [54, 54],
            "CreateAcls v{version}"
        );
        let filter = m::delete_acls_request::DeleteAclsFilter::default()
            .with_resource_type_filter(1)
            .with_operation(1)
            .with_permission_type(1);
        let Response::DeleteAcls(answer) =
            ask(&mut stream, version, m::DeleteAclsRequest::default().with_filters(vec![filter]))
        else {
            unreachable!()
        };
        assert_eq!(answer.filter_results[0].error_code, 54, "DeleteAcls v{version}");
    }
}

#[test]
fn log_dirs_tell_sizes_and_space() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    create(&mut stream, "t", 2, &[]);
    create(&mut stream, "u", 1, &[]);
    produce_some(&mut stream, "t", 3);
    let topic = |name, partitions| {
        m::describe_log_dirs_request::DescribableLogDirTopic::default()
            .with_topic(topic_name(name))
            .with_partitions(partitions)
    };
    for version in 1..=4 {
        for (case, topics, expected) in [
            ("everything", None, vec![("t", 2), ("u", 1)]),
            ("one partition, twice", Some(vec![topic("t", vec![0, 0])]), vec![("t", 1)]),
            ("what is not there", Some(vec![topic("t", vec![7]), topic("none", vec![0])]), vec![]),
            ("nothing", Some(vec![]), vec![]),
        ] {
            let request = m::DescribeLogDirsRequest::default().with_topics(topics);
            let Response::DescribeLogDirs(answer) = ask(&mut stream, version, request) else {
                unreachable!()
            };
            assert_eq!((answer.error_code, answer.results.len()), (0, 1), "v{version} {case}");
            let result = &answer.results[0];
            assert_eq!(
                (result.error_code, result.log_dir.as_str()),
                (0, dir.path().join("data").to_str().unwrap()),
                "v{version} {case}"
            );
            let told: Vec<(&str, usize)> = result
                .topics
                .iter()
                .map(|topic| (topic.name.as_str(), topic.partitions.len()))
                .collect();
            assert_eq!(told, expected, "v{version} {case}");
            if let Some(topic) = result.topics.iter().find(|topic| topic.name.as_str() == "t") {
                let partition = topic
                    .partitions
                    .iter()
                    .find(|partition| partition.partition_index == 0)
                    .unwrap();
                let batch = i64::try_from(
                    produce_request("t", b"v").topic_data[0].partition_data[0]
                        .records
                        .as_ref()
                        .unwrap()
                        .len(),
                )
                .unwrap();
                assert_eq!(
                    (partition.partition_size, partition.offset_lag, partition.is_future_key),
                    (3 * batch, 0, false),
                    "v{version}"
                );
            }
            assert_eq!(
                result.total_bytes > 0 && result.usable_bytes > 0,
                version >= 4,
                "v{version}"
            );
        }
    }
}

/// KIP-664.
#[test]
fn producers_are_told_with_their_last_sequence() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    create(&mut stream, "t", 1, &[]);
    let mut batch = BatchBuilder::new(1_700_000_000_000).producer(4711, 2, 0);
    for _ in 0..3 {
        batch.push(1_700_000_000_005, None, Some(b"v"), &[]);
    }
    let mut request = produce_request("t", b"");
    request.topic_data[0].partition_data[0].records = Some(batch.build().freeze());
    assert_eq!(produced(ask(&mut stream, 9, request)), (0, 0));
    let ask_for = |stream: &mut std::net::TcpStream, topic, partition| {
        let topic = m::describe_producers_request::TopicRequest::default()
            .with_name(topic_name(topic))
            .with_partition_indexes(vec![partition; 3]);
        let request =
            m::DescribeProducersRequest::default().with_topics(vec![topic.clone(), topic]);
        let Response::DescribeProducers(answer) = ask(stream, 0, request) else { unreachable!() };
        let told: Vec<usize> = answer.topics.iter().map(|topic| topic.partitions.len()).collect();
        assert_eq!(told, [1, 0], "a partition is told once");
        answer.topics[0].partitions[0].clone()
    };
    let answer = ask_for(&mut stream, "t", 0);
    assert_eq!((answer.error_code, answer.active_producers.len()), (0, 1));
    let producer = &answer.active_producers[0];
    assert_eq!(
        (producer.producer_id.0, producer.producer_epoch, producer.last_sequence),
        (4711, 2, 2)
    );
    assert_eq!(
        (producer.last_timestamp, producer.coordinator_epoch, producer.current_txn_start_offset),
        (1_700_000_000_005, -1, -1)
    );
    assert_eq!(ask_for(&mut stream, "t", 1).error_code, 3);
    assert_eq!(ask_for(&mut stream, "none", 0).error_code, 3);
    assert_eq!(ask_for(&mut stream, "not/a name", 0).error_code, 17);
}

#[test]
fn the_quorum_is_described() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    let before = quorum(&mut stream, 0, "__cluster_metadata");
    create(&mut stream, "t", 1, &[]);
    for version in 0..=2 {
        let answer = quorum(&mut stream, version, "__cluster_metadata");
        let partition = &answer.topics[0].partitions[0];
        assert_eq!(
            (answer.error_code, partition.error_code, partition.leader_id.0),
            (0, 0, 1),
            "v{version}"
        );
        let voters: Vec<(i32, i64)> = partition
            .current_voters
            .iter()
            .map(|voter| (voter.replica_id.0, voter.log_end_offset))
            .collect();
        assert_eq!(voters, [(1, partition.high_watermark)], "v{version}");
        assert!(
            partition.high_watermark > before.topics[0].partitions[0].high_watermark,
            "v{version}: a topic was made"
        );
        assert!(partition.observers.is_empty() && partition.leader_epoch > 0, "v{version}");
        assert_eq!(answer.nodes.len(), usize::from(version >= 2), "v{version}");
        if let Some(node) = answer.nodes.first() {
            assert_eq!((node.node_id.0, node.listeners[0].name.as_str()), (1, "CONTROLLER"));
        }
    }
    assert_eq!(quorum(&mut stream, 2, "t").topics[0].partitions[0].error_code, 3);
}

fn quorum(
    stream: &mut std::net::TcpStream,
    version: i16,
    topic: &'static str,
) -> m::DescribeQuorumResponse {
    let partition = m::describe_quorum_request::PartitionData::default();
    let partitions = vec![partition.clone(), partition];
    let topic = m::describe_quorum_request::TopicData::default()
        .with_topic_name(topic_name(topic))
        .with_partitions(partitions);
    let Response::DescribeQuorum(answer) =
        ask(stream, version, m::DescribeQuorumRequest::default().with_topics(vec![topic]))
    else {
        unreachable!()
    };
    assert_eq!(answer.topics[0].partitions.len(), 1, "a partition is told once");
    answer
}

/// KIP-966: page by page, each partition once.
#[test]
fn topics_are_described_page_by_page() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "max.request.partition.size.limit=5");
    let mut stream = broker.connect();
    for (name, partitions) in [("a", 3), ("b", 1), ("c", 2)] {
        create(&mut stream, name, partitions, &[]);
    }
    let pages = |stream: &mut std::net::TcpStream, names: &[&'static str], limit: i32| {
        let topics: Vec<_> = names
            .iter()
            .map(|name| {
                m::describe_topic_partitions_request::TopicRequest::default()
                    .with_name(topic_name(name))
            })
            .collect();
        let (mut told, mut sizes, mut cursor) = (Vec::new(), Vec::new(), None);
        loop {
            let request = m::DescribeTopicPartitionsRequest::default()
                .with_topics(topics.clone())
                .with_response_partition_limit(limit)
                .with_cursor(cursor.take());
            let Response::DescribeTopicPartitions(answer) = ask(stream, 0, request) else {
                unreachable!()
            };
            sizes.push(answer.topics.iter().map(|topic| topic.partitions.len()).sum::<usize>());
            for topic in &answer.topics {
                let name = topic.name.as_ref().unwrap().to_string();
                if topic.error_code != 0 {
                    told.push((name, i32::from(topic.error_code)));
                    continue;
                }
                for partition in &topic.partitions {
                    assert_eq!(
                        (partition.error_code, partition.leader_id.0, partition.isr_nodes.len()),
                        (0, 1, 1)
                    );
                    told.push((name.clone(), partition.partition_index));
                }
            }
            match answer.next_cursor {
                Some(next) => {
                    cursor = Some(
                        m::describe_topic_partitions_request::Cursor::default()
                            .with_topic_name(next.topic_name)
                            .with_partition_index(next.partition_index),
                    );
                }
                None => return (told, sizes),
            }
        }
    };
    let all: Vec<(String, i32)> = [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 0), ("c", 1)]
        .iter()
        .map(|(name, index)| ((*name).to_owned(), *index))
        .collect();
    for (limit, sizes) in [
        (100, vec![5, 1]),
        (6, vec![5, 1]),
        (4, vec![4, 2]),
        (3, vec![3, 3]),
        (2, vec![2, 2, 2]),
        (1, vec![1; 6]),
        (0, vec![1; 6]),
    ] {
        assert_eq!(pages(&mut stream, &[], limit), (all.clone(), sizes), "limit {limit}");
    }
    let (told, _) = pages(&mut stream, &["c", "none", "c", "not/a name"], 100);
    let expected = [("c", 0), ("c", 1), ("none", 3), ("not/a name", 17)];
    assert_eq!(
        told,
        expected.map(|(name, what)| (name.to_owned(), what)),
        "each topic once, in order, with its error"
    );
    for cursor in [("a", -1), ("z", 0)] {
        let request = m::DescribeTopicPartitionsRequest::default()
            .with_topics(vec![
                m::describe_topic_partitions_request::TopicRequest::default()
                    .with_name(topic_name("a")),
            ])
            .with_cursor(Some(
                m::describe_topic_partitions_request::Cursor::default()
                    .with_topic_name(topic_name(cursor.0))
                    .with_partition_index(cursor.1),
            ));
        let Response::DescribeTopicPartitions(answer) = ask(&mut stream, 0, request) else {
            unreachable!()
        };
        assert_eq!(answer.topics[0].error_code, 42, "{cursor:?}");
    }
}

/// A partition without its records has no leader, whichever way it is asked for.
#[test]
fn offline_partitions_are_told_alike_by_all_descriptions_of_topics() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    create(&mut stream, "t", 2, &[]);
    produce_some(&mut stream, "t", 1);
    broker.stop();
    drop(broker);
    std::fs::remove_dir_all(dir.path().join("data/t-0")).unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    let topic =
        m::metadata_request::MetadataRequestTopic::default().with_name(Some(topic_name("t")));
    let Response::Metadata(answer) =
        ask(&mut stream, 12, m::MetadataRequest::default().with_topics(Some(vec![topic])))
    else {
        unreachable!()
    };
    let by_metadata: Vec<_> = answer.topics[0]
        .partitions
        .iter()
        .map(|partition| {
            (
                partition.partition_index,
                partition.error_code,
                partition.leader_id.0,
                partition.offline_replicas.clone(),
            )
        })
        .collect();
    let topic =
        m::describe_topic_partitions_request::TopicRequest::default().with_name(topic_name("t"));
    let request = m::DescribeTopicPartitionsRequest::default()
        .with_topics(vec![topic])
        .with_response_partition_limit(10);
    let Response::DescribeTopicPartitions(answer) = ask(&mut stream, 0, request) else {
        unreachable!()
    };
    let by_description: Vec<_> = answer.topics[0]
        .partitions
        .iter()
        .map(|partition| {
            (
                partition.partition_index,
                partition.error_code,
                partition.leader_id.0,
                partition.offline_replicas.clone(),
            )
        })
        .collect();
    assert_eq!(by_metadata, [(0, 5, -1, vec![m::BrokerId(1)]), (1, 0, 1, vec![])]);
    assert_eq!(by_description, by_metadata);
}

/// An answer is many times larger than a short key.
#[test]
fn coordinators_of_a_group_that_is_asked_for_twice_are_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    for version in 4..=6 {
        let keys = ["b", "a", "b", "", "a", "b"].map(StrBytes::from_static_str).to_vec();
        let Response::FindCoordinator(answer) = ask(
            &mut stream,
            version,
            m::FindCoordinatorRequest::default().with_coordinator_keys(keys),
        ) else {
            unreachable!()
        };
        let told: Vec<_> = answer
            .coordinators
            .iter()
            .map(|found| (found.key.to_string(), found.error_code, found.node_id.0))
            .collect();
        assert_eq!(told, ["b", "a", ""].map(|key| (key.to_owned(), 0, 1)), "v{version}");
    }
}

/// KIP-1023, without tiered storage: nothing waits for its upload.
#[test]
fn list_offsets_11_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    create(&mut stream, "t", 1, &[]);
    produce_some(&mut stream, "t", 3);
    for (version, timestamp, expected) in [
        (11, -6, (0, -1)),
        (10, -6, (35, -1)),
        (11, -1, (0, 3)),
        (11, -2, (0, 0)),
        (11, -7, (35, -1)),
    ] {
        let partition = m::list_offsets_request::ListOffsetsPartition::default()
            .with_timestamp(timestamp)
            .with_current_leader_epoch(-1);
        let topic = m::list_offsets_request::ListOffsetsTopic::default()
            .with_name(topic_name("t"))
            .with_partitions(vec![partition]);
        let Response::ListOffsets(answer) =
            ask(&mut stream, version, m::ListOffsetsRequest::default().with_topics(vec![topic]))
        else {
            unreachable!()
        };
        let partition = &answer.topics[0].partitions[0];
        assert_eq!((partition.error_code, partition.offset), expected, "v{version} at {timestamp}");
    }
}

/// KIP-516: the id says which topic is meant. Java's admin client sends an empty name beside it.
#[test]
fn a_topic_is_found_by_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    create(&mut stream, "t", 1, &[]);
    let mut described = |asked: m::metadata_request::MetadataRequestTopic| {
        let request = m::MetadataRequest::default()
            .with_topics(Some(vec![asked]))
            .with_allow_auto_topic_creation(true);
        let Response::Metadata(mut answer) = ask(&mut stream, 12, request) else { unreachable!() };
        let topic = answer.topics.remove(0);
        (topic.error_code, topic.name.map(|name| name.to_string()), topic.topic_id)
    };
    let asked = m::metadata_request::MetadataRequestTopic::default;
    let (_, _, id) = described(asked().with_name(Some(topic_name("t"))));
    for name in [None, Some(topic_name("")), Some(topic_name("other"))] {
        assert_eq!(
            described(asked().with_name(name).with_topic_id(id)),
            (0, Some("t".to_owned()), id)
        );
    }
    let unknown = uuid::Uuid::from_u128(7);
    assert_eq!(
        described(asked().with_name(Some(topic_name(""))).with_topic_id(unknown)),
        (100, None, unknown)
    );
    assert_eq!(
        described(asked().with_name(Some(topic_name("nope")))).0,
        0,
        "the name alone makes it"
    );
}

/// As with Kafka: a partition has a leader epoch from its first leader on, not from its first
/// record.
#[test]
fn the_places_of_an_empty_partition_have_a_leader_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    create(&mut stream, "t", 1, &[]);
    for timestamp in [-1, -2, -4] {
        let partition = m::list_offsets_request::ListOffsetsPartition::default()
            .with_timestamp(timestamp)
            .with_current_leader_epoch(-1);
        let topic = m::list_offsets_request::ListOffsetsTopic::default()
            .with_name(topic_name("t"))
            .with_partitions(vec![partition]);
        let Response::ListOffsets(answer) =
            ask(&mut stream, 11, m::ListOffsetsRequest::default().with_topics(vec![topic]))
        else {
            unreachable!()
        };
        let partition = &answer.topics[0].partitions[0];
        assert_eq!(
            (partition.error_code, partition.offset, partition.leader_epoch),
            (0, 0, 0),
            "at {timestamp}"
        );
    }
}

#[test]
fn every_resource_that_is_listed_can_be_described_and_none_is_altered_without_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    create(&mut stream, "t", 1, &[]);
    let Response::ListConfigResources(listed) =
        ask(&mut stream, 1, m::ListConfigResourcesRequest::default())
    else {
        unreachable!()
    };
    assert!(!listed.config_resources.is_empty());
    for resource in listed.config_resources {
        let asked = m::describe_configs_request::DescribeConfigsResource::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone())
            .with_configuration_keys(None);
        let request = m::DescribeConfigsRequest::default().with_resources(vec![asked]);
        let Response::DescribeConfigs(answer) = ask(&mut stream, 4, request) else {
            unreachable!()
        };
        assert_eq!(answer.results[0].error_code, 0, "{resource:?}");
    }
    for resource_type in [2, 32] {
        let asked = m::incremental_alter_configs_request::AlterConfigsResource::default()
            .with_resource_type(resource_type);
        let request = m::IncrementalAlterConfigsRequest::default().with_resources(vec![asked]);
        let Response::IncrementalAlterConfigs(answer) = ask(&mut stream, 1, request) else {
            unreachable!()
        };
        assert_eq!(answer.responses[0].error_code, 42, "{resource_type}");
    }
}
