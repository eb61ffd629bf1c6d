//! Three whole nodes, broker and controller each, under one seed: how they start beside one another
//! and stop, and what they answer when there is no majority.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::describe_quorum_request::{PartitionData, TopicData};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::protocol::StrBytes;
use letterbox_env::{BoxStream, Disk as _, Env};
use letterbox_protocol::{Request, Response, decode_response, encode_request};
use letterbox_sim::cluster::Cluster;
use letterbox_sim::disk::Fault;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use common::{DATA, NODES, node, show_log};

const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const REQUEST_TIMED_OUT: i16 = 7;
const COORDINATOR_LOAD_IN_PROGRESS: i16 = 14;
const NOT_CONTROLLER: i16 = 41;

/// How long a cluster may take for anything that nothing is in the way of.
const PATIENCE: Duration = Duration::from_secs(30);

fn cluster(seed: u64) -> Cluster {
    show_log();
    let mut cluster = Cluster::new(seed);
    (1..).zip(NODES).for_each(|(id, name)| cluster.host(name, node(id)));
    cluster
}

/// A connection to a node that serves.
async fn connect(env: &Env, name: &str) -> BoxStream {
    loop {
        if let Ok(Ok(mut stream)) = timeout(PATIENCE, env.net.connect(name, 9092)).await
            && ask(&mut stream, 0, m::ApiVersionsRequest::default()).await.is_some()
        {
            return stream;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// The answer to `request`; `None` when the connection ends before.
async fn ask(
    stream: &mut BoxStream,
    version: i16,
    request: impl Into<Request>,
) -> Option<Response> {
    let request = request.into();
    let frame = encode_request(7, Some("t"), version, &request).unwrap();
    stream.write_all(&frame).await.ok()?;
    let mut answer = vec![0; usize::try_from(stream.read_i32().await.ok()?).unwrap()];
    stream.read_exact(&mut answer).await.ok()?;
    Some(decode_response(request.api_key(), version, answer.into()).unwrap().1)
}

fn name(text: &str) -> m::TopicName {
    m::TopicName(StrBytes::from_string(text.to_owned()))
}

fn create(topic: &str, timeout_ms: i32) -> m::CreateTopicsRequest {
    let topic = CreatableTopic::default()
        .with_name(name(topic))
        .with_num_partitions(3)
        .with_replication_factor(1);
    m::CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(timeout_ms)
}

/// Runs until a topic was made at `at`.
fn make_topic(cluster: &mut Cluster, at: &'static str, topic: &'static str) {
    let done = Rc::new(RefCell::new(false));
    let told = Rc::clone(&done);
    cluster.client(&format!("maker of {topic}"), move |env| async move {
        let mut stream = connect(&env, at).await;
        loop {
            let Some(Response::CreateTopics(answer)) =
                ask(&mut stream, 5, create(topic, 5_000)).await
            else {
                return Err("the connection ended".to_owned());
            };
            if answer.topics[0].error_code == 0 {
                *told.borrow_mut() = true;
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(cluster.run_until(PATIENCE, |_| *done.borrow()), "{topic} is not made at {at}");
}

/// The answer to `request`, which has to come within `limit`.
async fn ask_within(
    stream: &mut BoxStream,
    limit: Duration,
    version: i16,
    request: impl Into<Request>,
) -> Result<Response, String> {
    let request = request.into();
    let what = format!("{request:?}");
    let answer = timeout(limit, ask(stream, version, request)).await;
    answer.map_err(|_| format!("not within {limit:?}: {what}"))?.ok_or(what)
}

/// A node without a majority: what needs one is refused in time, each request by its own, and in a
/// way that clients try again.
async fn ask_for_the_impossible(env: Env, at: &'static str) -> Result<(), String> {
    const SECOND: Duration = Duration::from_secs(1);
    let creates = async {
        let mut stream = connect(&env, at).await;
        let Response::CreateTopics(answer) =
            ask_within(&mut stream, 4 * SECOND, 5, create("never", 3_000)).await?
        else {
            unreachable!()
        };
        let code = answer.topics[0].error_code;
        [REQUEST_TIMED_OUT, NOT_CONTROLLER].contains(&code).then_some(()).ok_or(format!("{code}"))
    };
    let finds = async {
        let mut stream = connect(&env, at).await;
        let topic = MetadataRequestTopic::default().with_name(Some(name("neither")));
        let request = m::MetadataRequest::default()
            .with_topics(Some(vec![topic]))
            .with_allow_auto_topic_creation(true);
        let Response::Metadata(answer) = ask_within(&mut stream, 6 * SECOND, 8, request).await?
        else {
            unreachable!()
        };
        let code = answer.topics[0].error_code;
        (code == UNKNOWN_TOPIC_OR_PARTITION).then_some(()).ok_or(format!("{code}"))
    };
    let produces = async || {
        let mut stream = connect(&env, at).await;
        let request = m::InitProducerIdRequest::default().with_transactional_id(None);
        let Response::InitProducerId(answer) =
            ask_within(&mut stream, 3 * SECOND, 4, request).await?
        else {
            unreachable!()
        };
        let code = answer.error_code;
        (code == COORDINATOR_LOAD_IN_PROGRESS).then_some(()).ok_or(format!("{code}"))
    };
    let four = async { futures::try_join!(produces(), produces(), produces(), produces()) };
    futures::try_join!(creates, finds, four).map(|_| ())
}

#[test]
fn what_needs_a_majority_is_refused_in_time_without_one() {
    let mut cluster = cluster(4);
    make_topic(&mut cluster, NODES[0], "before");
    for name in NODES {
        // Until all serve.
        make_topic(&mut cluster, name, name);
        for other in NODES.into_iter().filter(|other| *other != name) {
            cluster.cut(name, other);
        }
        let asked = Rc::new(RefCell::new(None));
        let told = Rc::clone(&asked);
        cluster.client(&format!("asks {name}"), move |env| async move {
            *told.borrow_mut() = Some(ask_for_the_impossible(env, name).await);
            Ok(())
        });
        assert!(cluster.run_until(PATIENCE, |_| asked.borrow().is_some()));
        assert_eq!(asked.take(), Some(Ok(())), "{name}");
        NODES.into_iter().filter(|other| *other != name).for_each(|other| {
            cluster.mend(name, other);
        });
        cluster.run_for(Duration::from_secs(5));
    }
}

/// The node that leads is cut off: what was passed on to it is answered when another leads.
#[test]
fn an_operation_at_a_leader_that_hangs_is_answered_when_another_leads() {
    let mut cluster = cluster(5);
    NODES.into_iter().for_each(|name| make_topic(&mut cluster, name, name));
    let leader = Rc::new(RefCell::new(None));
    let told = Rc::clone(&leader);
    cluster.client("who leads", move |env| async move {
        let mut stream = connect(&env, NODES[0]).await;
        let partition = PartitionData::default().with_partition_index(0);
        let topic = TopicData::default()
            .with_topic_name(name("__cluster_metadata"))
            .with_partitions(vec![partition]);
        let request = m::DescribeQuorumRequest::default().with_topics(vec![topic]);
        let Some(Response::DescribeQuorum(answer)) = ask(&mut stream, 1, request).await else {
            unreachable!()
        };
        *told.borrow_mut() = usize::try_from(answer.topics[0].partitions[0].leader_id.0).ok();
        Ok(())
    });
    assert!(cluster.run_until(PATIENCE, |_| leader.borrow().is_some()));
    let leader = NODES[leader.take().unwrap() - 1];
    let mut others = NODES.into_iter().filter(|name| *name != leader);
    let (asked, other) = (others.next().unwrap(), others.next().unwrap());
    let took = Rc::new(RefCell::new(None));
    let told = Rc::clone(&took);
    let go = Rc::new(Cell::new(false));
    let may_go = Rc::clone(&go);
    cluster.client("asks", move |env| async move {
        let mut stream = connect(&env, asked).await;
        while !may_go.get() {
            sleep(Duration::from_millis(1)).await;
        }
        let begun = Instant::now();
        let answer = ask(&mut stream, 5, create("passed-on", 30_000)).await;
        *told.borrow_mut() = Some((begun.elapsed(), answer));
        Ok(())
    });
    cluster.run_for(Duration::from_secs(1));
    cluster.cut(leader, asked);
    cluster.cut(leader, other);
    go.set(true);
    assert!(cluster.run_until(Duration::from_secs(60), |_| took.borrow().is_some()));
    let (took, answer) = took.take().unwrap();
    let Some(Response::CreateTopics(answer)) = answer else { panic!("{answer:?}") };
    assert_eq!(answer.topics[0].error_code, REQUEST_TIMED_OUT, "it may have been carried out");
    assert!(took < Duration::from_secs(5), "answered after {took:?}");
}

/// Two nodes are a majority and cannot open their logs for want of descriptors. The one of them
/// that leads takes the third, and its clients' changes.
#[test]
fn a_node_that_leads_answers_the_others_while_it_opens_its_own_logs() {
    let mut cluster = cluster(1);
    make_topic(&mut cluster, NODES[0], "before");
    for name in NODES {
        assert!(cluster.stop(name, PATIENCE));
        assert_eq!(cluster.exit(name), Some(Ok(())));
    }
    for name in &NODES[..2] {
        cluster.disk(name).inject(Fault::NoDescriptor, &format!("{DATA}/.lock"), 0, u64::MAX);
        cluster.restart(name);
    }
    cluster.run_for(Duration::from_secs(5));
    cluster.restart(NODES[2]);
    make_topic(&mut cluster, NODES[2], "beside");
    // They go on when they can.
    NODES[..2].iter().for_each(|name| cluster.disk(name).heal());
    NODES.into_iter().for_each(|name| make_topic(&mut cluster, name, name));
}

#[test]
fn a_start_ends_with_the_cause_when_its_part_in_the_quorum_ends() {
    let mut cluster = cluster(2);
    make_topic(&mut cluster, NODES[0], "before");
    for name in NODES {
        assert!(cluster.stop(name, PATIENCE));
    }
    cluster.restart(NODES[0]);
    cluster.run_for(Duration::from_secs(5));
    assert!(cluster.is_running(NODES[0]), "{:?}", cluster.exit(NODES[0]));
    // It asks for votes, which it writes down first.
    cluster.disk(NODES[0]).inject(Fault::FailChange, "__cluster_metadata-0", 0, u64::MAX);
    assert!(cluster.run_until(PATIENCE, |cluster| cluster.exit(NODES[0]).is_some()), "it waits");
    let exit = cluster.exit(NODES[0]).unwrap().unwrap_err();
    assert!(exit.contains("os error 5"), "{exit}");
}

#[test]
fn a_start_that_is_given_up_leaves_its_directories_in_order() {
    let marker = Path::new(DATA).join(".kafka_cleanshutdown");
    let mut cluster = cluster(3);
    make_topic(&mut cluster, NODES[0], "before");
    for name in NODES {
        assert!(cluster.stop(name, PATIENCE));
    }
    // Without a majority, and in the middle of opening the logs.
    for waits_for_logs in [false, true] {
        assert!(cluster.disk(NODES[0]).exists(&marker).unwrap());
        if waits_for_logs {
            cluster.disk(NODES[0]).inject(Fault::NoDescriptor, "before-", 0, 2);
        }
        cluster.restart(NODES[0]);
        cluster.run_for(Duration::from_millis(if waits_for_logs { 50 } else { 5_000 }));
        assert!(!waits_for_logs || cluster.is_running(NODES[0]));
        assert!(cluster.stop(NODES[0], PATIENCE), "it does not end");
        assert_eq!(cluster.exit(NODES[0]), Some(Ok(())));
    }
    assert!(cluster.disk(NODES[0]).exists(&marker).unwrap());
    // After a crash the marker is not there, and is not made by who tells nobody.
    cluster.restart(NODES[0]);
    cluster.run_for(Duration::from_secs(2));
    cluster.kill(NODES[0]);
    cluster.restart(NODES[0]);
    cluster.run_for(Duration::from_secs(2));
    assert!(cluster.stop(NODES[0], PATIENCE));
    assert!(!cluster.disk(NODES[0]).exists(&marker).unwrap(), "nobody knows of the crash");
}
