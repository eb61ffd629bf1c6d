//! What each handler answers to whoever may ask.

use std::sync::Arc;

use kafka_protocol::messages as m;
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::batch::BatchBuilder;
use letterbox_protocol::model::BrokerId;
use letterbox_protocol::{ErrorCode, Response, apis};

use super::Broker;
use super::gate::{
    commit, describe_topics, fetch, fetch_offsets, group, offsets_of, produce, text, topic,
};
use crate::metadata::Stamp;
use crate::metadata::features::{FEATURE, Levels, Release};
use crate::security::AllowAll;

const NONE: i16 = 0;
const EARLIEST: i64 = -2;
const LATEST: i64 = -1;

/// A broker with the topic "t" and `records` records in it, and whoever may do everything.
async fn with_records(records: usize) -> (Broker, Arc<AllowAll>) {
    let (broker, any) = (Broker::start().await, Arc::new(AllowAll));
    broker.has_topic("t").await;
    for _ in 0..records {
        let answer = answer!(broker, any, 9, produce(&["t"]), Produce);
        assert_eq!(answer.responses[0].partition_responses[0].error_code, NONE);
    }
    (broker, any)
}

async fn offset(broker: &Broker, timestamp: i64) -> (i16, i64) {
    let any = Arc::new(AllowAll);
    let answer = answer!(broker, any, 6, offsets_of("t", timestamp), ListOffsets);
    let partition = &answer.topics[0].partitions[0];
    (partition.error_code, partition.offset)
}

/// Returns when the broker coordinates the group "g".
async fn coordinates(broker: &Broker) {
    let any = Arc::new(AllowAll);
    // The groups' topic is made by who first asks for a coordinator.
    let find = || {
        m::FindCoordinatorRequest::default().with_key_type(0).with_coordinator_keys(vec![text("g")])
    };
    let ready = async {
        loop {
            let found = answer!(broker, any, 4, find(), FindCoordinator);
            let asked = answer!(broker, any, 9, fetch_offsets(None), OffsetFetch);
            if (found.coordinators[0].error_code, asked.groups[0].error_code) == (NONE, NONE) {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), ready).await.unwrap();
}

#[tokio::test]
async fn api_versions_are_those_of_the_table() {
    let (broker, any) = (Broker::start().await, Arc::new(AllowAll));
    let answer = answer!(broker, any, 0, m::ApiVersionsRequest::default(), ApiVersions);
    let told: Vec<i16> = answer.api_keys.iter().map(|api| api.api_key).collect();
    assert_eq!(told, apis::APIS.iter().map(|api| api.key).collect::<Vec<_>>());
}

/// A new cluster has the highest level, and one that was founded before there were levels the first.
#[tokio::test]
async fn the_level_of_the_cluster_is_told_and_raised_for_good() {
    use m::update_features_request::FeatureUpdateKey;
    let (broker, any) = (Broker::start().await, Arc::new(AllowAll));
    let told = async |version| {
        let request = m::ApiVersionsRequest::default()
            .with_client_software_name(text("a"))
            .with_client_software_version(text("1"));
        let answer = answer!(broker, any, version, request, ApiVersions);
        let supported = answer.supported_features.iter();
        let supported = supported.map(|one| (one.name.clone(), one.min_version, one.max_version));
        let levels = answer.finalized_features.iter();
        let levels =
            levels.map(|one| (one.name.clone(), one.min_version_level, one.max_version_level));
        let epoch = answer.finalized_features_epoch;
        (supported.collect::<Vec<_>>(), levels.collect::<Vec<_>>(), epoch)
    };
    let Levels { min, max } = Levels::SUPPORTED;
    let finalized = |level| vec![(text(FEATURE), level, level)];
    let first = told(3).await;
    assert_eq!((first.0, first.1), (vec![(text(FEATURE), min, max)], finalized(max)));
    assert_eq!(told(2).await, (vec![], vec![], -1));
    broker.is_at_the_first_level().await;
    let (_, levels, epoch) = told(4).await;
    assert!(levels == finalized(1) && epoch > first.2, "{levels:?} {epoch}");

    let request = |level, kind| {
        let update = FeatureUpdateKey::default()
            .with_feature(text(FEATURE))
            .with_max_version_level(level)
            .with_upgrade_type(kind);
        m::UpdateFeaturesRequest::default()
            .with_feature_updates(vec![update])
            .with_timeout_ms(30_000)
    };
    let ask = async |version, request: m::UpdateFeaturesRequest| {
        let answer = answer!(broker, any, version, request, UpdateFeatures);
        let message = answer.error_message.map(|message| message.to_string());
        let results: Vec<_> = answer.results.iter().map(|one| one.error_code).collect();
        (answer.error_code, message.unwrap_or_default(), results, told(4).await.1[0].1)
    };
    let done = |results: &[i16], level| (NONE, String::new(), results.to_vec(), level);
    assert_eq!(ask(2, request(2, 1).with_validate_only(true)).await, done(&[], 1));
    let mut older = request(2, 1);
    older.feature_updates[0].allow_downgrade = true;
    for (version, request, why) in [
        (0, older, "Can't downgrade to a newer version."),
        (1, request(2, 2), "Can't downgrade to a newer version."),
        (2, request(2, 4), "The controller does not support the given upgrade type."),
        (2, request(5, 1), "Local controller 1 only supports versions 1-4"),
    ] {
        let level = request.feature_updates[0].max_version_level;
        let (code, message, results, at) = ask(version, request).await;
        let expected = format!(
            "The update failed for all features since the following feature had an error: Invalid \
             update version {level} for feature letterbox.version. {why}"
        );
        assert_eq!((message, results, at), (expected, vec![], 1));
        assert_eq!(code, ErrorCode::InvalidUpdateVersion.code());
    }
    // Answered when it is shown; of a feature that is named twice the last counts.
    let mut twice = request(7, 1);
    twice.feature_updates.extend(request(2, 1).feature_updates);
    assert_eq!(ask(1, twice).await, done(&[NONE, NONE], 2));
    assert_eq!(ask(2, m::UpdateFeaturesRequest::default()).await, done(&[], 2));
    let (code, message, _, at) = ask(2, request(1, 2)).await;
    assert!(message.contains("Unsupported letterbox.version downgrade from 2 to 1"), "{message}");
    assert_eq!((code, at), (ErrorCode::InvalidUpdateVersion.code(), 2));
}

#[tokio::test]
async fn records_are_read_from_where_they_were_written() {
    let (broker, any) = with_records(3).await;
    assert_eq!(offset(&broker, EARLIEST).await, (NONE, 0));
    assert_eq!(offset(&broker, LATEST).await, (NONE, 3));
    // All records are of the time 1000.
    assert_eq!(offset(&broker, 1_000).await, (NONE, 0));
    assert_eq!(offset(&broker, 1_001).await, (NONE, -1));
    let read = |at: i64| {
        let mut request = fetch(&["t"]);
        request.topics[0].partitions[0].fetch_offset = at;
        request
    };
    for (at, error) in [(0, NONE), (3, NONE), (4, ErrorCode::OffsetOutOfRange.code())] {
        let answer = answer!(broker, any, 12, read(at), Fetch);
        let partition = &answer.responses[0].partitions[0];
        assert_eq!((partition.error_code, at, partition.records.is_some()), (error, at, true));
        let is_empty = partition.records.as_ref().is_none_or(bytes::Bytes::is_empty);
        assert_eq!(is_empty, at != 0, "at {at}");
        if error == NONE {
            assert_eq!((partition.high_watermark, partition.log_start_offset), (3, 0));
        }
    }
    let unknown = answer!(broker, any, 12, fetch(&["nowhere"]), Fetch);
    let error = ErrorCode::UnknownTopicOrPartition.code();
    assert_eq!(unknown.responses[0].partitions[0].error_code, error);
    let unknown = answer!(broker, any, 9, produce(&["nowhere"]), Produce);
    assert_eq!(unknown.responses[0].partition_responses[0].error_code, error);
}

/// Both batches were stored, and in Kafka one of them, which one it is the client is not told.
#[tokio::test]
async fn a_request_that_names_a_partition_twice_stores_nothing() {
    let (broker, any) = with_records(1).await;
    let mut within = produce(&["t"]);
    let partitions = &mut within.topic_data[0].partition_data;
    partitions.push(partitions[0].clone());
    for request in [within, produce(&["t", "t"])] {
        let answer = answer!(broker, any, 9, request, Produce);
        let answers = answer.responses.iter().flat_map(|topic| &topic.partition_responses);
        let errors: Vec<i16> = answers.map(|partition| partition.error_code).collect();
        assert_eq!(errors, [ErrorCode::InvalidRequest.code(); 2]);
    }
    assert_eq!(offset(&broker, LATEST).await, (NONE, 1));
    broker.has_topic("other").await;
    let answer = answer!(broker, any, 9, produce(&["t", "other"]), Produce);
    assert!(answer.responses.iter().all(|it| it.partition_responses[0].error_code == NONE));
}

/// As in Kafka.
#[tokio::test]
async fn a_refused_batch_is_told_where_the_log_begins_when_the_log_has_looked_at_it() {
    use m::delete_records_request as r;
    let (broker, any) = with_records(3).await;
    let partition = r::DeleteRecordsPartition::default().with_offset(2);
    let of =
        r::DeleteRecordsTopic::default().with_name(topic("t")).with_partitions(vec![partition]);
    let delete = m::DeleteRecordsRequest::default().with_timeout_ms(30_000).with_topics(vec![of]);
    answer!(broker, any, 2, delete, DeleteRecords);
    let of_producer = |epoch: i16, sequence: i32, records: usize| {
        let mut builder = BatchBuilder::new(1_000).producer(7, epoch, sequence);
        for _ in 0..records {
            builder.push(1_000, None, Some(&[7; 100]), &[]);
        }
        builder.build().freeze()
    };
    let damaged = {
        let mut bytes = of_producer(1, 1, 1).to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        bytes.into()
    };
    for (name, records, expected) in [
        ("stored", of_producer(1, 0, 1), (NONE, 3, 2)),
        ("out of order", of_producer(1, 9, 1), (45, -1, 2)),
        ("an old epoch", of_producer(0, 1, 1), (47, -1, 2)),
        ("damaged", damaged, (2, -1, -1)),
        ("too large", of_producer(1, 1, 20_000), (10, -1, -1)),
    ] {
        let mut request = produce(&["t"]);
        request.topic_data[0].partition_data[0].records = Some(records);
        let answer = answer!(broker, any, 9, request, Produce);
        let found = &answer.responses[0].partition_responses[0];
        let found = (found.error_code, found.base_offset, found.log_start_offset);
        assert_eq!(found, expected, "{name}");
    }
}

#[tokio::test]
async fn records_are_deleted_up_to_the_high_watermark_and_not_beyond() {
    use m::delete_records_request as r;
    let (broker, any) = with_records(3).await;
    let delete = |offset: i64| {
        let partition = r::DeleteRecordsPartition::default().with_offset(offset);
        let of =
            r::DeleteRecordsTopic::default().with_name(topic("t")).with_partitions(vec![partition]);
        m::DeleteRecordsRequest::default().with_timeout_ms(30_000).with_topics(vec![of])
    };
    for (offset, expected) in [
        (4, (ErrorCode::OffsetOutOfRange.code(), -1)),
        (2, (NONE, 2)),
        // Less than before is no step back.
        (1, (NONE, 2)),
        (-1, (NONE, 3)),
    ] {
        let answer = answer!(broker, any, 2, delete(offset), DeleteRecords);
        let partition = &answer.topics[0].partitions[0];
        assert_eq!((partition.error_code, partition.low_watermark), expected, "{offset}");
    }
    assert_eq!(offset(&broker, EARLIEST).await, (NONE, 3));
}

#[tokio::test]
async fn an_epoch_ends_where_its_records_end() {
    use m::offset_for_leader_epoch_request as r;
    let (broker, any) = with_records(2).await;
    let asked = |epoch: i32| {
        let partition = r::OffsetForLeaderPartition::default()
            .with_current_leader_epoch(-1)
            .with_leader_epoch(epoch);
        let of = r::OffsetForLeaderTopic::default()
            .with_topic(topic("t"))
            .with_partitions(vec![partition]);
        m::OffsetForLeaderEpochRequest::default().with_topics(vec![of])
    };
    let answer = answer!(broker, any, 4, asked(0), OffsetForLeaderEpoch);
    let partition = &answer.topics[0].partitions[0];
    assert_eq!((partition.error_code, partition.leader_epoch, partition.end_offset), (NONE, 0, 2));
    let answer = answer!(broker, any, 4, asked(5), OffsetForLeaderEpoch);
    let partition = &answer.topics[0].partitions[0];
    assert_eq!((partition.leader_epoch, partition.end_offset), (-1, -1), "not known yet");
}

#[tokio::test]
async fn topics_are_made_grown_and_deleted_once() {
    let (broker, any) = (Broker::start().await, Arc::new(AllowAll));
    let make = |validate_only: bool| {
        let made = m::create_topics_request::CreatableTopic::default()
            .with_name(topic("t"))
            .with_num_partitions(2)
            .with_replication_factor(1);
        m::CreateTopicsRequest::default()
            .with_timeout_ms(30_000)
            .with_validate_only(validate_only)
            .with_topics(vec![made])
    };
    let exists = ErrorCode::TopicAlreadyExists.code();
    for (validate_only, error) in [(true, NONE), (false, NONE), (false, exists), (true, exists)] {
        let answer = answer!(broker, any, 7, make(validate_only), CreateTopics);
        assert_eq!(answer.topics[0].error_code, error, "validate_only={validate_only}");
    }
    let grow = |count: i32| {
        let grown = m::create_partitions_request::CreatePartitionsTopic::default()
            .with_name(topic("t"))
            .with_count(count)
            .with_assignments(None);
        m::CreatePartitionsRequest::default().with_timeout_ms(30_000).with_topics(vec![grown])
    };
    for (count, error) in [(3, NONE), (3, ErrorCode::InvalidPartitions.code())] {
        let answer = answer!(broker, any, 3, grow(count), CreatePartitions);
        assert_eq!(answer.results[0].error_code, error);
    }
    let described = answer!(broker, any, 9, describe_topics(&["t", "nowhere", "t"]), Metadata);
    let told: Vec<_> = described
        .topics
        .iter()
        .map(|one| {
            let name = one.name.as_ref().map(|name| name.to_string());
            (name.unwrap_or_default(), one.error_code, one.partitions.len())
        })
        .collect();
    let unknown = ErrorCode::UnknownTopicOrPartition.code();
    let (t, nowhere) = (("t".to_owned(), NONE, 3), ("nowhere".to_owned(), unknown, 0));
    assert!(told.contains(&t) && told.contains(&nowhere) && told.len() == 2, "{told:?}");
    let delete = || {
        m::DeleteTopicsRequest::default().with_timeout_ms(30_000).with_topic_names(vec![topic("t")])
    };
    for error in [NONE, unknown] {
        let answer = answer!(broker, any, 5, delete(), DeleteTopics);
        assert_eq!(answer.responses[0].error_code, error);
    }
}

/// As in Kafka: refused, and told once.
#[tokio::test]
async fn a_topic_that_is_named_twice_is_answered_once() {
    let (broker, any) = with_records(0).await;
    let refused = ErrorCode::InvalidRequest.code();
    let made = m::create_topics_request::CreatableTopic::default()
        .with_name(topic("twice"))
        .with_num_partitions(1)
        .with_replication_factor(1);
    let request = m::CreateTopicsRequest::default()
        .with_timeout_ms(30_000)
        .with_topics(vec![made.clone(), made]);
    let answer = answer!(broker, any, 7, request, CreateTopics);
    let told: Vec<_> = answer.topics.iter().map(|one| one.error_code).collect();
    assert_eq!(told, [refused]);
    let grown = m::create_partitions_request::CreatePartitionsTopic::default()
        .with_name(topic("t"))
        .with_count(7)
        .with_assignments(None);
    let request = m::CreatePartitionsRequest::default()
        .with_timeout_ms(30_000)
        .with_topics(vec![grown.clone(), grown]);
    let answer = answer!(broker, any, 3, request, CreatePartitions);
    let told: Vec<_> = answer.results.iter().map(|one| one.error_code).collect();
    assert_eq!(told, [refused]);
    for (names, expected) in [
        (["t", "t", "nowhere"], vec![refused, ErrorCode::UnknownTopicOrPartition.code()]),
        (["nowhere", "nowhere", "t"], vec![refused, NONE]),
    ] {
        let names = names.into_iter().map(topic).collect();
        let request =
            m::DeleteTopicsRequest::default().with_timeout_ms(30_000).with_topic_names(names);
        let answer = answer!(broker, any, 5, request, DeleteTopics);
        let told: Vec<_> = answer.responses.iter().map(|one| one.error_code).collect();
        assert_eq!(told, expected);
    }
}

#[tokio::test]
async fn the_settings_of_a_broker_of_a_negative_id_are_refused() {
    use m::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
    let (broker, any) = (Broker::start().await, Arc::new(AllowAll));
    let set = AlterableConfig::default()
        .with_name(StrBytes::from_static_str("log.cleaner.backoff.ms"))
        .with_value(Some(StrBytes::from_static_str("1000")));
    let resource = AlterConfigsResource::default()
        .with_resource_type(4)
        .with_resource_name(StrBytes::from_static_str("-1"))
        .with_configs(vec![set]);
    let request = m::IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    let answer = answer!(broker, any, 1, request, IncrementalAlterConfigs);
    let told = &answer.responses[0];
    let message = told.error_message.as_ref().map(|message| message.as_str());
    assert_eq!(
        (told.error_code, message),
        (ErrorCode::InvalidRequest.code(), Some("Invalid negative broker ID."))
    );
}

#[tokio::test]
async fn offsets_of_a_group_are_committed_for_topics_that_there_are() {
    let (broker, any) = with_records(0).await;
    coordinates(&broker).await;
    let both = [topic("t"), topic("nowhere")];
    let answer = answer!(broker, any, 9, commit(7, &both), OffsetCommit);
    let of: Vec<_> = answer.topics.iter().map(|one| one.partitions[0].error_code).collect();
    assert_eq!(of, [NONE, ErrorCode::UnknownTopicOrPartition.code()]);
    let answer = answer!(broker, any, 9, fetch_offsets(Some(&["t", "nowhere"])), OffsetFetch);
    let told: Vec<i64> =
        answer.groups[0].topics.iter().map(|one| one.partitions[0].committed_offset).collect();
    assert_eq!(told, [7, -1]);
    let described = answer!(
        broker,
        any,
        6,
        m::DescribeGroupsRequest::default().with_groups(vec![group("g"), group("none")]),
        DescribeGroups
    );
    let states: Vec<_> =
        described.groups.iter().map(|one| (one.error_code, one.group_state.to_string())).collect();
    assert_eq!(states[0], (NONE, "Empty".to_owned()));
    assert_eq!(states[1].0, ErrorCode::GroupIdNotFound.code());
}

#[tokio::test]
async fn what_is_not_offered_is_refused_in_kafkas_words() {
    let (broker, any) = (Broker::start().await, Arc::new(AllowAll));
    let transactional = m::InitProducerIdRequest::default()
        .with_transactional_id(Some(m::TransactionalId(text("x"))))
        .with_transaction_timeout_ms(1_000);
    let answer = answer!(broker, any, 4, transactional, InitProducerId);
    assert_ne!(answer.error_code, NONE);
    assert_eq!(answer.producer_id.0, -1);
    let ids = || m::InitProducerIdRequest::default().with_transactional_id(None);
    let first = answer!(broker, any, 4, ids(), InitProducerId);
    let second = answer!(broker, any, 4, ids(), InitProducerId);
    assert!(first.producer_id.0 >= 0 && first.producer_id != second.producer_id);
    let acls = m::DescribeAclsRequest::default();
    let answer = answer!(broker, any, 3, acls, DescribeAcls);
    assert_eq!(answer.error_code, ErrorCode::SecurityDisabled.code());
}

#[tokio::test]
async fn configurations_are_told_with_where_they_come_from() {
    use m::describe_configs_request::DescribeConfigsResource;
    let (broker, any) = with_records(0).await;
    let of = |name: &'static str| {
        let one = DescribeConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(text(name))
            .with_configuration_keys(Some(vec![StrBytes::from_static_str("retention.ms")]));
        m::DescribeConfigsRequest::default().with_resources(vec![one])
    };
    let answer = answer!(broker, any, 4, of("t"), DescribeConfigs);
    let told = &answer.results[0].configs;
    assert_eq!((answer.results[0].error_code, told.len()), (NONE, 1));
    // DEFAULT_CONFIG (KIP-226).
    assert_eq!((told[0].name.as_str(), told[0].config_source), ("retention.ms", 5));
    let answer = answer!(broker, any, 4, of("nowhere"), DescribeConfigs);
    assert_eq!(answer.results[0].error_code, ErrorCode::UnknownTopicOrPartition.code());
}

#[tokio::test]
async fn sizes_and_producers_are_told_of_partitions_that_there_are() {
    use m::describe_log_dirs_request::DescribableLogDirTopic;
    use m::describe_producers_request::TopicRequest;
    let (broker, any) = with_records(1).await;
    let asked = |partitions: Vec<i32>| {
        let of =
            DescribableLogDirTopic::default().with_topic(topic("t")).with_partitions(partitions);
        m::DescribeLogDirsRequest::default().with_topics(Some(vec![of.clone(), of]))
    };
    let answer = answer!(broker, any, 4, asked(vec![0, 0, 9]), DescribeLogDirs);
    let topics = &answer.results[0].topics;
    assert_eq!((topics.len(), topics[0].partitions.len()), (1, 1));
    assert!(topics[0].partitions[0].partition_size > 0);
    let of = TopicRequest::default().with_name(topic("t")).with_partition_indexes(vec![0, 9]);
    let request = m::DescribeProducersRequest::default().with_topics(vec![of]);
    let answer = answer!(broker, any, 0, request, DescribeProducers);
    let errors: Vec<i16> =
        answer.topics[0].partitions.iter().map(|partition| partition.error_code).collect();
    assert_eq!(errors, [NONE, ErrorCode::UnknownTopicOrPartition.code()]);
    let quorum = m::describe_quorum_request::TopicData::default()
        .with_topic_name(topic("__cluster_metadata"))
        .with_partitions(vec![m::describe_quorum_request::PartitionData::default()]);
    let request = m::DescribeQuorumRequest::default().with_topics(vec![quorum]);
    let answer = answer!(broker, any, 2, request, DescribeQuorum);
    let partition = &answer.topics[0].partitions[0];
    assert_eq!((partition.error_code, partition.leader_id.0), (NONE, 1));
    assert_eq!(partition.current_voters.len(), 1);
}

/// Any client may say that it is a replica, and would then move the high watermark.
#[tokio::test]
async fn only_the_registered_broker_speaks_as_a_replica() {
    use letterbox_protocol::replica;
    use m::fetch_request::ReplicaState;
    let (broker, any) = with_records(1).await;
    let image = broker.node.services().replicas.image();
    let (id, own) = image.brokers.first_key_value().unwrap();
    let asked = |epoch: i64, secret: Option<[u8; 16]>, reports: bool| {
        let state = ReplicaState::default().with_replica_id(m::BrokerId(id.0));
        let mut request = fetch(&["t"]).with_replica_state(state.with_replica_epoch(epoch));
        request.topics[0].topic_id = image.topic("t").unwrap().id;
        request.topics[0].partitions[0].current_leader_epoch = 0;
        let tags = &mut request.unknown_tagged_fields;
        secret.iter().for_each(|it| replica::put_secret(tags, it));
        if reports {
            replica::put_reports(tags);
        }
        request
    };
    let (secret, unknown) = (*own.secret.unwrap().as_bytes(), ErrorCode::ReplicaNotAvailable);
    for (epoch, said, expected) in [
        (own.epoch, None, unknown),
        // DescribeQuorum tells it.
        (own.epoch, Some(*own.directories.first_key_value().unwrap().0.as_bytes()), unknown),
        (own.epoch - 1, Some(secret), unknown),
        // It leads this partition: nobody follows it from there.
        (own.epoch, Some(secret), ErrorCode::NotLeaderOrFollower),
    ] {
        let answer = answer!(broker, any, 17, asked(epoch, said, false), Fetch);
        let code = answer.responses[0].partitions[0].error_code;
        assert_eq!(code, expected.code(), "{epoch} {said:?}");
        let answer = answer!(broker, any, 17, asked(epoch, said, true), Fetch);
        assert_eq!(answer.responses.is_empty(), expected != unknown, "a report");
        // Only who has proved itself is told what proves who answers.
        let answer = answer!(broker, any, 17, asked(epoch, said, false), Fetch);
        let is_told = replica::has_secret(&answer.unknown_tagged_fields, &secret);
        assert_eq!(is_told, expected != unknown, "{epoch} {said:?}");
    }
    // It has a session, of which an error names what it remembers no more.
    let go_on = async |id: i32, epoch: i32| {
        let request = asked(own.epoch, Some(secret), false).with_max_wait_ms(0);
        let request = request.with_session_id(id).with_session_epoch(epoch);
        let request = if epoch > 0 { request.with_topics(vec![]) } else { request };
        let answer = answer!(broker, any, 17, request, Fetch);
        (answer.session_id, answer.error_code, answer.responses.len())
    };
    let (not_found, wrong) =
        (ErrorCode::FetchSessionIdNotFound.code(), ErrorCode::InvalidFetchSessionEpoch.code());
    let (id, ..) = go_on(0, 0).await;
    assert!(id > 0);
    assert_eq!(go_on(id, 1).await, (id, NONE, 0), "an error is told once");
    assert_eq!(go_on(id, 2).await, (id, NONE, 0));
    assert_eq!(go_on(id, 2).await, (0, wrong, 0));
    assert_eq!(go_on(id, 3).await, (0, not_found, 0), "it has ended");
    let (next, ..) = go_on(0, 0).await;
    assert!(next > id);
    assert_eq!(go_on(id, 1).await, (0, not_found, 0));
    assert_eq!(go_on(0, -1).await, (0, NONE, 1), "without a session");
}

/// Broker 2 is registered, and does nothing by itself: its epoch and what proves that it asks.
async fn second_broker(broker: &Broker) -> (i64, [u8; 16]) {
    use crate::metadata::decide::RegisterBroker;
    use crate::metadata::decide::liveness::Heartbeat;
    let (services, id) = (broker.node.services(), BrokerId(2));
    let registration = RegisterBroker {
        id,
        directories: [(uuid::Uuid::from_u128(2), Stamp::default())].into(),
        absent: Default::default(),
        endpoints: Vec::new(),
        rack: None,
        clean_start: true,
        flushes_on_ack: true,
        found: None,
        min_insync_replicas: 1,
        session_ms: 600_000,
        replaces: None,
        release: Release::own(),
    };
    let done = services.controller.run(registration).await.unwrap();
    let (epoch, wants_fence, wants_stop) = (done.outcome.unwrap(), false, false);
    let applied_index = services.replicas.image().applied_index.max(done.index);
    let behind = Vec::new();
    let heartbeat = Heartbeat { id, epoch, applied_index, wants_fence, wants_stop, behind };
    let mut images = services.quorum.subscribe();
    while services.controller.heartbeat(heartbeat.clone()).await.unwrap().is_fenced {
        images.changed().await.unwrap();
    }
    let image = services.quorum.image();
    (epoch, *image.brokers[&id].secret.unwrap().as_bytes())
}

#[tokio::test]
async fn a_follower_without_space_is_sent_no_records_and_the_rest() {
    use crate::metadata::decide::{CreateTopics, NewTopic, TopicPlacement};
    use letterbox_protocol::replica::{self, Standing};
    use m::delete_records_request as dr;
    use m::fetch_request::ReplicaState;
    let (broker, any) = with_records(0).await;
    let (epoch, secret) = second_broker(&broker).await;
    let services = broker.node.services();
    let placement = TopicPlacement {
        num_partitions: -1,
        replication_factor: -1,
        assignments: vec![(0, vec![BrokerId(1), BrokerId(2)])],
    };
    let topics = vec![NewTopic { name: "r".into(), placement, configs: Default::default() }];
    let create = CreateTopics {
        topics,
        validate_only: false,
        default_partitions: 1,
        default_replication_factor: 1,
    };
    let done = services.controller.run(create).await.unwrap();
    assert!(services.shown.reaches(done.index, std::time::Duration::from_secs(30)).await);
    let answer = answer!(broker, any, 9, produce(&["r"]).with_acks(1), Produce);
    assert_eq!(answer.responses[0].partition_responses[0].error_code, NONE);
    let id = services.replicas.image().topic("r").unwrap().id;
    for (bytes, expected) in [(0, false), (1, true)] {
        let state = ReplicaState::default().with_replica_id(m::BrokerId(2));
        let mut request = fetch(&["r"]).with_replica_state(state.with_replica_epoch(epoch));
        request.topics[0].topic_id = id;
        let asked = &mut request.topics[0].partitions[0];
        asked.current_leader_epoch = 0;
        asked.partition_max_bytes = bytes;
        replica::put_secret(&mut request.unknown_tagged_fields, &secret);
        let answer = answer!(broker, any, 17, request, Fetch);
        let told = &answer.responses[0].partitions[0];
        let has_records = told.records.as_ref().is_some_and(|records| !records.is_empty());
        assert_eq!((told.error_code, told.high_watermark), (NONE, 0));
        assert_eq!(has_records, expected, "of {bytes} bytes");
    }

    // In a session, where nothing but a new log start may make room: it hears of that at once.
    let asked = |session: i32, session_epoch: i32, wait_ms: i32, at: Option<i64>| {
        let state = ReplicaState::default().with_replica_id(m::BrokerId(2));
        let mut request = fetch(&["r"]).with_replica_state(state.with_replica_epoch(epoch));
        request.topics[0].topic_id = id;
        let asked = &mut request.topics[0].partitions[0];
        (asked.current_leader_epoch, asked.last_fetched_epoch) = (0, 0);
        (asked.partition_max_bytes, asked.log_start_offset) = (0, 0);
        asked.fetch_offset = at.unwrap_or(0);
        let standing = Standing { counts: asked.fetch_offset, high_watermark: 0 };
        replica::put_standing(&mut asked.unknown_tagged_fields, standing);
        replica::put_secret(&mut request.unknown_tagged_fields, &secret);
        let topics = if at.is_some() { request.topics.clone() } else { Vec::new() };
        request
            .with_topics(topics)
            .with_session_id(session)
            .with_session_epoch(session_epoch)
            .with_max_wait_ms(wait_ms)
            .with_min_bytes(1)
    };
    let mut answer = answer!(broker, any, 17, asked(0, 0, 0, Some(1)), Fetch);
    let (session, mut next) = (answer.session_id, 1);
    // The leader's disk may not have it yet.
    while answer.responses.is_empty() {
        answer = answer!(broker, any, 17, asked(session, next, 60_000, None), Fetch);
        next += 1;
    }
    assert_eq!(answer.responses[0].partitions[0].high_watermark, 1);
    let parked = async {
        let answer = answer!(broker, any, 17, asked(session, next, 60_000, None), Fetch);
        let told = &answer.responses[0].partitions[0];
        assert_eq!((told.error_code, told.high_watermark, told.log_start_offset), (NONE, 1, 1));
    };
    let partition = dr::DeleteRecordsPartition::default().with_offset(1);
    let deleted =
        dr::DeleteRecordsTopic::default().with_name(topic("r")).with_partitions(vec![partition]);
    let delete = m::DeleteRecordsRequest::default().with_topics(vec![deleted]);
    let delete = delete.with_timeout_ms(60_000);
    let deleting = async {
        // Records that it does not want do not end its wait.
        answer!(broker, any, 9, produce(&["r"]).with_acks(1), Produce);
        answer!(broker, any, 2, delete, DeleteRecords)
    };
    let within = std::time::Duration::from_secs(10);
    let heard = async {
        tokio::select! {
            biased;
            () = parked => {}
            answer = deleting => panic!("nobody said that the follower has it no more: {answer:?}"),
        }
    };
    tokio::time::timeout(within, heard).await.expect("it hears of the log start at once");
}

/// As Apache Kafka answers on one broker.
#[tokio::test]
async fn one_broker_has_no_other_leader_and_nowhere_to_move_a_partition() {
    use m::{alter_partition_reassignments_request as ar, elect_leaders_request as el};
    let (broker, any) = with_records(0).await;
    let unknown = ErrorCode::UnknownTopicOrPartition.code();
    let of = |name, partitions: &[i32]| {
        el::TopicPartitions::default().with_topic(topic(name)).with_partitions(partitions.to_vec())
    };
    let elect = |kind: i8, topics: Option<Vec<el::TopicPartitions>>| {
        let request = m::ElectLeadersRequest::default().with_election_type(kind);
        request.with_timeout_ms(30_000).with_topic_partitions(topics)
    };
    let named = Some(vec![of("t", &[0, 7]), of("nowhere", &[0])]);
    let no_need = ErrorCode::ElectionNotNeeded.code();
    for kind in [0, 1] {
        let answer = answer!(broker, any, 2, elect(kind, named.clone()), ElectLeaders);
        assert_eq!(answer.error_code, NONE);
        let told: Vec<(String, i32, i16)> = answer
            .replica_election_results
            .iter()
            .flat_map(|topic| topic.partition_result.iter().map(move |one| (topic, one)))
            .map(|(topic, one)| (topic.topic.to_string(), one.partition_id, one.error_code))
            .collect();
        let expected = [("t", 0, no_need), ("t", 7, unknown), ("nowhere", 0, unknown)];
        assert_eq!(told, expected.map(|(name, index, code)| (name.to_owned(), index, code)));
        // Of all partitions those that need no election are not told.
        let answer = answer!(broker, any, 2, elect(kind, None), ElectLeaders);
        assert_eq!((answer.error_code, answer.replica_election_results), (NONE, vec![]));
    }
    let answer = answer!(broker, any, 2, elect(2, named.clone()), ElectLeaders);
    let refused = ErrorCode::InvalidRequest.code();
    assert_eq!(answer.error_code, refused);
    let results = answer.replica_election_results.iter().flat_map(|one| &one.partition_result);
    assert!(results.map(|one| one.error_code).eq([refused; 3]));

    let part = |index, to: Option<&[i32]>| {
        let ids = to.map(|to| to.iter().map(|id| m::BrokerId(*id)).collect());
        ar::ReassignablePartition::default().with_partition_index(index).with_replicas(ids)
    };
    let topics = vec![
        ar::ReassignableTopic::default().with_name(topic("t")).with_partitions(vec![
            part(0, Some(&[9])),
            part(0, Some(&[1, 1])),
            part(0, Some(&[])),
            part(0, None),
            part(0, Some(&[1])),
            part(7, Some(&[1])),
        ]),
        ar::ReassignableTopic::default()
            .with_name(topic("nowhere"))
            .with_partitions(vec![part(0, Some(&[1]))]),
    ];
    let request = m::AlterPartitionReassignmentsRequest::default();
    let request = request.with_timeout_ms(30_000).with_topics(topics);
    let invalid = ErrorCode::InvalidReplicaAssignment.code();
    let none_moves = ErrorCode::NoReassignmentInProgress.code();
    for version in [0, 1] {
        let answer = answer!(broker, any, version, request.clone(), AlterPartitionReassignments);
        assert_eq!((answer.error_code, answer.responses.len()), (NONE, 2));
        assert!(answer.allow_replication_factor_change);
        let told: Vec<i16> =
            answer.responses[0].partitions.iter().map(|one| one.error_code).collect();
        assert_eq!(told, [invalid, invalid, invalid, none_moves, NONE, unknown]);
        let message = answer.responses[0].partitions[0].error_message.as_deref();
        assert!(message.is_some_and(|text| text.contains("no such broker")), "{message:?}");
        assert_eq!(answer.responses[1].partitions[0].error_code, unknown);
    }
    let one = m::list_partition_reassignments_request::ListPartitionReassignmentsTopics::default()
        .with_name(topic("t"))
        .with_partition_indexes(vec![0, 7]);
    for topics in [None, Some(vec![one])] {
        let request = m::ListPartitionReassignmentsRequest::default();
        let request = request.with_timeout_ms(30_000).with_topics(topics);
        let answer = answer!(broker, any, 0, request, ListPartitionReassignments);
        assert_eq!((answer.error_code, answer.topics), (NONE, vec![]));
    }
}

/// Topics and how many partitions of each an answer tells of, and where the next answer begins.
type Page = (Vec<(String, i16, usize)>, Option<(String, i32)>);

#[tokio::test]
async fn partitions_of_topics_are_told_page_by_page() {
    use m::describe_topic_partitions_request::{Cursor, TopicRequest};
    let (broker, any) = with_records(0).await;
    broker.node.ensure_topic("a", 3, 1, Default::default()).await.unwrap();
    let page = async |names: &[&'static str], cursor: Option<(&'static str, i32)>| -> Page {
        let topics = names.iter().map(|name| TopicRequest::default().with_name(topic(name)));
        let cursor = cursor.map(|(name, index)| {
            Cursor::default().with_topic_name(topic(name)).with_partition_index(index)
        });
        let request = m::DescribeTopicPartitionsRequest::default()
            .with_topics(topics.collect())
            .with_response_partition_limit(2)
            .with_cursor(cursor);
        let answer = answer!(broker, any, 0, request, DescribeTopicPartitions);
        let told = answer.topics.iter().map(|one| {
            let name = one.name.as_ref().map(|name| name.to_string());
            assert!(one.partitions.iter().all(|it| (it.error_code, it.leader_id.0) == (NONE, 1)));
            (name.unwrap_or_default(), one.error_code, one.partitions.len())
        });
        let next = answer.next_cursor;
        (told.collect(), next.map(|it| (it.topic_name.to_string(), it.partition_index)))
    };
    let of = |name: &str, code: i16, count| (name.to_owned(), code, count);
    let unknown = ErrorCode::UnknownTopicOrPartition.code();
    for names in [&["t", "nowhere", "a"][..], &[]] {
        let first = page(names, None).await;
        assert_eq!(first, (vec![of("a", NONE, 2)], Some(("a".to_owned(), 2))), "{names:?}");
        let (second, next) = page(names, Some(("a", 2))).await;
        let all = [of("a", NONE, 1), of("nowhere", unknown, 0), of("t", NONE, 1)];
        let expected = all.into_iter().filter(|(_, code, _)| *code == NONE || !names.is_empty());
        assert_eq!((second, next), (expected.collect(), None), "{names:?}");
    }
    for cursor in [("a", -1), ("other", 0)] {
        let (refused, next) = page(&["a"], Some(cursor)).await;
        let expected = vec![of("a", ErrorCode::InvalidRequest.code(), 0)];
        assert_eq!((refused, next), (expected, None), "{cursor:?}");
    }
}

#[tokio::test]
async fn the_old_call_replaces_all_settings_of_a_resource_that_is_then_listed() {
    use m::alter_configs_request::{AlterConfigsResource, AlterableConfig};
    use m::describe_configs_request::DescribeConfigsResource;
    let (broker, any) = with_records(0).await;
    let replace = async |kind: i8, name: &'static str, key: &'static str, validate_only: bool| {
        let set = AlterableConfig::default().with_name(text(key)).with_value(Some(text("50000")));
        let resource = AlterConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(text(name))
            .with_configs(vec![set]);
        let request = m::AlterConfigsRequest::default().with_resources(vec![resource]);
        let request = request.with_validate_only(validate_only);
        answer!(broker, any, 2, request, AlterConfigs).responses[0].error_code
    };
    // Those that the topic itself has (DYNAMIC_TOPIC_CONFIG, KIP-226).
    let own = async || -> Vec<String> {
        let of = DescribeConfigsResource::default().with_resource_type(2);
        let of = of.with_resource_name(text("t")).with_configuration_keys(None);
        let request = m::DescribeConfigsRequest::default().with_resources(vec![of]);
        let answer = answer!(broker, any, 4, request, DescribeConfigs);
        let own = answer.results[0].configs.iter().filter(|one| one.config_source == 1);
        own.map(|one| one.name.to_string()).collect()
    };
    assert_eq!(replace(2, "t", "retention.ms", true).await, NONE);
    assert_eq!(own().await, [""; 0]);
    for key in ["retention.ms", "retention.bytes"] {
        assert_eq!(replace(2, "t", key, false).await, NONE);
        assert_eq!(own().await, [key]);
    }
    let unknown = ErrorCode::UnknownTopicOrPartition.code();
    assert_eq!(replace(2, "nowhere", "retention.ms", false).await, unknown);
    assert_eq!(replace(2, "t", "no.such.key", false).await, ErrorCode::InvalidConfig.code());
    assert_eq!(own().await, ["retention.bytes"]);
    assert_eq!(replace(32, "g", "consumer.session.timeout.ms", false).await, NONE);

    for (version, types, expected) in [
        (1, vec![], Ok(vec![("t", 2), ("1", 4), ("g", 32)])),
        (1, vec![32, 2], Ok(vec![("t", 2), ("g", 32)])),
        (0, vec![], Ok(vec![])),
        (1, vec![99], Err(ErrorCode::UnsupportedVersion.code())),
    ] {
        let request = m::ListConfigResourcesRequest::default().with_resource_types(types.clone());
        let answer = answer!(broker, any, version, request, ListConfigResources);
        let all = answer.config_resources.iter();
        let all = all.map(|one| (&*one.resource_name, one.resource_type)).collect();
        let told = if answer.error_code == NONE { Ok(all) } else { Err(answer.error_code) };
        assert_eq!(told, expected, "{types:?} v{version}");
    }
}

/// Each element of its own, in Apache Kafka's words where it has no authorizer.
#[tokio::test]
async fn acls_are_refused_one_by_one() {
    use m::{create_acls_request::AclCreation, delete_acls_request::DeleteAclsFilter};
    let (broker, any) = (Broker::start().await, Arc::new(AllowAll));
    let request = m::CreateAclsRequest::default();
    let request = request.with_creations(vec![AclCreation::default().with_operation(3); 2]);
    let made = answer!(broker, any, 3, request, CreateAcls);
    let made = made.results.iter().map(|one| (one.error_code, one.error_message.as_deref()));
    let disabled = ErrorCode::SecurityDisabled.code();
    assert!(made.eq([(disabled, Some("No Authorizer is configured on the broker")); 2]));
    let request = m::DeleteAclsRequest::default();
    let request = request.with_filters(vec![DeleteAclsFilter::default().with_operation(3); 2]);
    let gone = answer!(broker, any, 3, request, DeleteAcls);
    let gone = gone.filter_results.iter().map(|one| (one.error_code, one.error_message.as_deref()));
    assert!(gone.eq([(disabled, Some("No Authorizer is configured.")); 2]));
}

#[tokio::test]
async fn a_member_joins_commits_and_leaves_and_its_group_is_deleted() {
    use m::{join_group_request as jg, leave_group_request as lg, sync_group_request as sg};
    let (broker, any) = with_records(0).await;
    coordinates(&broker).await;
    // Version 0 of a consumer's subscription: the topic t, without data of its own.
    let subscription = bytes::Bytes::from_static(b"\0\0\0\0\0\x01\0\x01t\xff\xff\xff\xff");
    let protocol = jg::JoinGroupRequestProtocol::default();
    let protocol = protocol.with_name(text("range")).with_metadata(subscription.clone());
    let join = |member: &StrBytes| {
        m::JoinGroupRequest::default()
            .with_group_id(group("g"))
            .with_member_id(member.clone())
            .with_session_timeout_ms(30_000)
            .with_rebalance_timeout_ms(30_000)
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![protocol.clone()])
    };
    let first = answer!(broker, any, 9, join(&StrBytes::default()), JoinGroup);
    assert_eq!(first.error_code, ErrorCode::MemberIdRequired.code());
    let id = first.member_id;
    let joined = answer!(broker, any, 9, join(&id), JoinGroup);
    let told = (joined.error_code, joined.generation_id, &joined.leader, joined.members.len());
    assert_eq!(told, (NONE, 1, &id, 1));
    assert_eq!(joined.members[0].metadata, subscription);
    let mine = sg::SyncGroupRequestAssignment::default().with_member_id(id.clone());
    let sync = m::SyncGroupRequest::default()
        .with_group_id(group("g"))
        .with_member_id(id.clone())
        .with_generation_id(1)
        .with_protocol_type(Some(text("consumer")))
        .with_protocol_name(Some(text("range")))
        .with_assignments(vec![mine.with_assignment(bytes::Bytes::from_static(b"all"))]);
    let synced = answer!(broker, any, 5, sync, SyncGroup);
    assert_eq!((synced.error_code, &*synced.assignment), (NONE, &b"all"[..]));
    let beat = |generation: i32| {
        let request = m::HeartbeatRequest::default().with_group_id(group("g"));
        request.with_member_id(id.clone()).with_generation_id(generation)
    };
    for (generation, error) in [(1, NONE), (2, ErrorCode::IllegalGeneration.code())] {
        assert_eq!(answer!(broker, any, 4, beat(generation), Heartbeat).error_code, error);
    }
    let committed = commit(7, &[topic("t")]).with_member_id(id.clone());
    let committed = committed.with_generation_id_or_member_epoch(1);
    let committed = answer!(broker, any, 9, committed, OffsetCommit);
    assert_eq!(committed.topics[0].partitions[0].error_code, NONE);
    let listed = async |state: &'static str| {
        let request = m::ListGroupsRequest::default().with_states_filter(vec![text(state)]);
        let answer = answer!(broker, any, 5, request, ListGroups);
        let names = answer.groups.iter().map(|one| one.group_id.to_string());
        (answer.error_code, names.collect::<Vec<_>>())
    };
    assert_eq!(listed("Stable").await, (NONE, vec!["g".to_owned()]));
    assert_eq!(listed("Empty").await, (NONE, vec![]));
    let request = m::DescribeGroupsRequest::default().with_groups(vec![group("g"), group("none")]);
    let groups = answer!(broker, any, 5, request, DescribeGroups).groups;
    let told = groups.iter().map(|one| (one.error_code, &*one.group_state, one.members.len()));
    assert!(told.eq([(NONE, "Stable", 1), (NONE, "Dead", 0)]), "{groups:?}");
    let member = &groups[0].members[0];
    assert_eq!((&member.member_id, &*member.member_assignment), (&id, &b"all"[..]));
    assert_eq!(member.member_metadata, subscription);

    let forgotten = async || {
        use m::offset_delete_request as od;
        let of = od::OffsetDeleteRequestTopic::default()
            .with_name(topic("t"))
            .with_partitions(vec![od::OffsetDeleteRequestPartition::default()]);
        let request = m::OffsetDeleteRequest::default().with_group_id(group("g"));
        let answer = answer!(broker, any, 0, request.with_topics(vec![of]), OffsetDelete);
        (answer.error_code, answer.topics[0].partitions[0].error_code)
    };
    let deleted = async || {
        let request = m::DeleteGroupsRequest::default().with_groups_names(vec![group("g")]);
        answer!(broker, any, 2, request, DeleteGroups).results[0].error_code
    };
    assert_eq!(forgotten().await, (NONE, ErrorCode::GroupSubscribedToTopic.code()));
    assert_eq!(deleted().await, ErrorCode::NonEmptyGroup.code());
    let leave = || {
        let member = lg::MemberIdentity::default().with_member_id(id.clone());
        m::LeaveGroupRequest::default().with_group_id(group("g")).with_members(vec![member])
    };
    for error in [NONE, ErrorCode::UnknownMemberId.code()] {
        let left = answer!(broker, any, 5, leave(), LeaveGroup);
        assert_eq!((left.error_code, left.members[0].error_code), (NONE, error));
    }
    assert_eq!(listed("Empty").await, (NONE, vec!["g".to_owned()]));
    let offset = async || {
        let answer = answer!(broker, any, 9, fetch_offsets(Some(&["t"])), OffsetFetch);
        answer.groups[0].topics[0].partitions[0].committed_offset
    };
    assert_eq!(offset().await, 7);
    assert_eq!(forgotten().await, (NONE, NONE));
    assert_eq!(offset().await, -1);
    for error in [NONE, ErrorCode::GroupIdNotFound.code()] {
        assert_eq!(deleted().await, error);
    }
    assert_eq!(listed("").await, (NONE, vec![]));
}

#[tokio::test]
async fn the_one_voter_stays_and_an_unknown_broker_is_not_unregistered() {
    let (broker, any) = with_records(0).await;
    let add = |listener: &'static str, cluster: Option<&'static str>, id: i32| {
        let listener =
            m::add_raft_voter_request::Listener::default().with_name(text(listener)).with_port(1);
        m::AddRaftVoterRequest::default()
            .with_listeners(vec![listener])
            .with_cluster_id(cluster.map(text))
            .with_voter_id(id)
            .with_timeout_ms(200)
    };
    for (request, error) in [
        (add("OTHER", None, 2), ErrorCode::InvalidRequest),
        (add("CONTROLLER", Some("other"), 2), ErrorCode::InconsistentClusterId),
        (add("CONTROLLER", None, -1), ErrorCode::InvalidRequest),
        (add("CONTROLLER", None, 1), ErrorCode::DuplicateVoter),
        // Nobody with that id observes the cluster, and it may come yet.
        (add("CONTROLLER", None, 2), ErrorCode::RequestTimedOut),
    ] {
        let answer = answer!(broker, any, 0, request.clone(), AddRaftVoter);
        assert_eq!(answer.error_code, error.code(), "{request:?}: {answer:?}");
    }
    let remove = |cluster: Option<&'static str>, id: i32| {
        m::RemoveRaftVoterRequest::default().with_cluster_id(cluster.map(text)).with_voter_id(id)
    };
    for (request, error) in [
        (remove(Some("other"), 1), ErrorCode::InconsistentClusterId),
        (remove(None, -1), ErrorCode::InvalidRequest),
        (remove(None, 7), ErrorCode::VoterNotFound),
        // It has another directory.
        (remove(None, 1), ErrorCode::VoterNotFound),
    ] {
        let answer = answer!(broker, any, 0, request.clone(), RemoveRaftVoter);
        assert_eq!(answer.error_code, error.code(), "{request:?}: {answer:?}");
    }
    for (id, error) in [
        (7, ErrorCode::BrokerIdNotRegistered),
        (-1, ErrorCode::BrokerIdNotRegistered),
        (1, ErrorCode::InvalidRequest),
    ] {
        let request = m::UnregisterBrokerRequest::default().with_broker_id(m::BrokerId(id));
        let answer = answer!(broker, any, 0, request, UnregisterBroker);
        assert_eq!(answer.error_code, error.code(), "{id}: {answer:?}");
    }
    let cluster = m::DescribeClusterRequest::default().with_endpoint_type(1);
    let cluster = answer!(broker, any, 2, cluster, DescribeCluster);
    assert_eq!(cluster.brokers.iter().map(|one| one.broker_id.0).collect::<Vec<_>>(), [1]);
}
