//! Requests with many elements: answered like any other, but not on an async thread, which all
//! other clients need.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

mod common;

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{PATIENCE, ask, free_port};
use kafka_protocol::messages as m;
use kafka_protocol::protocol::StrBytes;
use letterbox_broker::config::Config;
use letterbox_broker::node::Node;
use letterbox_env::{BoxFuture, Env, Tasks};
use letterbox_protocol::Request;
use tokio::runtime::Runtime;

/// Counts what is done off the async threads.
struct Counted(Arc<dyn Tasks>, AtomicUsize);

impl Tasks for Counted {
    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.blocking(job)
    }
}

const WIDE: usize = 1_000;
const TIMES: usize = 20;

fn text(text: String) -> StrBytes {
    StrBytes::from_string(text)
}

fn topic(at: usize) -> m::TopicName {
    m::TopicName(text(format!("unknown.{at}")))
}

fn each<T>(make: impl Fn(usize) -> T) -> Vec<T> {
    (0..WIDE).map(make).collect()
}

/// A version and a request with [`WIDE`] elements, of which each fails.
fn requests() -> Vec<(i16, Request)> {
    let group = |at| m::GroupId(text(format!("group-{at}")));
    vec![
        (
            9,
            m::MetadataRequest::default()
                .with_topics(Some(each(|at| {
                    m::metadata_request::MetadataRequestTopic::default().with_name(Some(topic(at)))
                })))
                .into(),
        ),
        (
            7,
            m::ListOffsetsRequest::default()
                .with_topics(each(|at| {
                    m::list_offsets_request::ListOffsetsTopic::default()
                        .with_name(topic(at))
                        .with_partitions(vec![Default::default()])
                }))
                .into(),
        ),
        (
            11,
            m::FetchRequest::default()
                .with_session_epoch(-1)
                .with_replica_id(m::BrokerId(-1))
                .with_topics(each(|at| {
                    m::fetch_request::FetchTopic::default()
                        .with_topic(topic(at))
                        .with_partitions(vec![Default::default()])
                }))
                .into(),
        ),
        (
            8,
            m::OffsetCommitRequest::default()
                .with_group_id(group(0))
                .with_generation_id_or_member_epoch(-1)
                .with_topics(each(|at| {
                    m::offset_commit_request::OffsetCommitRequestTopic::default()
                        .with_name(topic(at))
                        .with_partitions(vec![Default::default()])
                }))
                .into(),
        ),
        (
            5,
            m::OffsetFetchRequest::default()
                .with_group_id(group(0))
                .with_topics(Some(each(|at| {
                    m::offset_fetch_request::OffsetFetchRequestTopic::default()
                        .with_name(topic(at))
                        .with_partition_indexes(vec![0])
                })))
                .into(),
        ),
        (0, m::DescribeGroupsRequest::default().with_groups(each(group)).into()),
        (0, m::DeleteGroupsRequest::default().with_groups_names(each(group)).into()),
        (
            4,
            m::CreateTopicsRequest::default()
                .with_validate_only(true)
                .with_timeout_ms(60_000)
                .with_topics(each(|at| {
                    m::create_topics_request::CreatableTopic::default()
                        .with_name(topic(at))
                        .with_num_partitions(1)
                        .with_replication_factor(9)
                }))
                .into(),
        ),
        (
            6,
            m::DeleteTopicsRequest::default()
                .with_timeout_ms(60_000)
                .with_topics(each(|at| {
                    m::delete_topics_request::DeleteTopicState::default().with_name(Some(topic(at)))
                }))
                .into(),
        ),
        (
            3,
            m::CreatePartitionsRequest::default()
                .with_timeout_ms(60_000)
                .with_topics(each(|at| {
                    m::create_partitions_request::CreatePartitionsTopic::default()
                        .with_name(topic(at))
                        .with_count(2)
                        .with_assignments(None)
                }))
                .into(),
        ),
        (
            1,
            m::DescribeConfigsRequest::default()
                .with_resources(each(|at| {
                    m::describe_configs_request::DescribeConfigsResource::default()
                        .with_resource_type(2)
                        .with_resource_name(topic(at).0)
                        .with_configuration_keys(None)
                }))
                .into(),
        ),
        (
            1,
            m::IncrementalAlterConfigsRequest::default()
                .with_resources(each(|at| {
                    m::incremental_alter_configs_request::AlterConfigsResource::default()
                        .with_resource_type(2)
                        .with_resource_name(topic(at).0)
                }))
                .into(),
        ),
        (
            1,
            m::DeleteRecordsRequest::default()
                .with_timeout_ms(60_000)
                .with_topics(each(|at| {
                    m::delete_records_request::DeleteRecordsTopic::default()
                        .with_name(topic(at))
                        .with_partitions(vec![Default::default()])
                }))
                .into(),
        ),
        (
            3,
            m::OffsetForLeaderEpochRequest::default()
                .with_replica_id(m::BrokerId(-2))
                .with_topics(each(|at| {
                    m::offset_for_leader_epoch_request::OffsetForLeaderTopic::default()
                        .with_topic(topic(at))
                        .with_partitions(vec![Default::default()])
                }))
                .into(),
        ),
        (
            8,
            m::ProduceRequest::default()
                .with_acks(-1)
                .with_timeout_ms(60_000)
                .with_topic_data(each(|at| {
                    m::produce_request::TopicProduceData::default()
                        .with_name(topic(at))
                        .with_partition_data(vec![Default::default()])
                }))
                .into(),
        ),
    ]
}

/// A broker whose work off the async threads is counted, and a client.
fn started(dir: &Path) -> (Runtime, Node, Arc<Counted>, TcpStream) {
    let port = free_port();
    let text = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@localhost:9093\ncontroller.listener.names=CONTROLLER\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:9093\nlog.dirs={}\nadmin.listener=none\n\
         auto.create.topics.enable=false\n",
        dir.join("data").display()
    );
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let real = Env::real();
    let tasks = Arc::new(Counted(real.tasks.clone(), AtomicUsize::new(0)));
    let env = Env { tasks: tasks.clone(), ..real };
    let config = Config::parse(&text).unwrap();
    let started = runtime.block_on(Node::start(env, config, std::future::pending()));
    let broker = started.unwrap().unwrap();
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    (runtime, broker, tasks, client)
}

/// What is done off the async threads while a request is answered [`TIMES`] times; other work (the
/// upkeep's) counts too.
fn elsewhere(tasks: &Counted, client: &mut TcpStream, version: i16, request: &Request) -> usize {
    let before = tasks.1.load(Ordering::SeqCst);
    for _ in 0..TIMES {
        ask(client, version, request.clone());
    }
    tasks.1.load(Ordering::SeqCst) - before
}

#[test]
fn requests_with_many_elements_leave_the_async_threads_whatever_their_api() {
    let dir = tempfile::tempdir().unwrap();
    let (runtime, broker, tasks, mut client) = started(dir.path());
    for (version, request) in requests() {
        // This may miss a fault because of what else counts, and finds none that is not there.
        let elsewhere = elsewhere(&tasks, &mut client, version, &request);
        assert!(elsewhere >= TIMES, "API key {}: {elsewhere} of {TIMES}", request.api_key());
    }
    runtime.block_on(broker.shutdown()).unwrap();
}

/// Clients begin with a request for the brokers alone, which must not wait for the large ones of
/// others.
#[test]
fn a_request_for_the_brokers_alone_stays_on_the_async_threads_however_many_partitions_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let (runtime, broker, tasks, mut client) = started(dir.path());
    let topic = m::create_topics_request::CreatableTopic::default()
        .with_name(topic(0))
        .with_num_partitions(i32::try_from(WIDE).unwrap())
        .with_replication_factor(1);
    ask(
        &mut client,
        7,
        m::CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(60_000),
    );
    let all: Request = m::MetadataRequest::default().with_topics(None).into();
    assert!(elsewhere(&tasks, &mut client, 12, &all) >= TIMES);
    let brokers: Request = m::MetadataRequest::default().with_topics(Some(Vec::new())).into();
    // What else counts may spoil a round, not all of them.
    assert!((0..100).any(|_| elsewhere(&tasks, &mut client, 12, &brokers) < TIMES));
    runtime.block_on(broker.shutdown()).unwrap();
}
