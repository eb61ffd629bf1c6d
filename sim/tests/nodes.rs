//! Three whole nodes, broker and controller each, under one seed: how they start beside one another
//! and stop, what they answer when there is no majority, and that nothing acknowledged is lost
//! whatever happens to them, while every request is answered in time. Each partition has one
//! replica.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::describe_quorum_request::{PartitionData, TopicData};
use kafka_protocol::messages::describe_quorum_response;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use letterbox_env::{BoxStream, Disk as _, Env};
use letterbox_protocol::{Request, Response};
use letterbox_sim::check::{Checker, Demands};
use letterbox_sim::cluster::Cluster;
use letterbox_sim::disk::Fault;
use letterbox_sim::rng::Rng;
use letterbox_sim::seeds;
use tokio::time::{Instant, sleep, timeout};

use common::{
    Clients, DATA, NODES, PATIENCE, ask, connect, name, node, node_with, observer, show_log,
};

const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const REQUEST_TIMED_OUT: i16 = 7;
const COORDINATOR_LOAD_IN_PROGRESS: i16 = 14;
const NOT_CONTROLLER: i16 = 41;

fn cluster(seed: u64) -> Cluster {
    show_log();
    let mut cluster = Cluster::new(seed);
    (1..).zip(NODES).for_each(|(id, name)| cluster.host(name, node(id)));
    cluster
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

/// The quorum, as the first node describes it.
fn quorum(cluster: &mut Cluster, asked: &str) -> describe_quorum_response::PartitionData {
    let quorum = Rc::new(RefCell::new(None));
    let told = Rc::clone(&quorum);
    cluster.client(&format!("describe the quorum, {asked}"), move |env| async move {
        let mut stream = connect(&env, NODES[0]).await;
        let partition = PartitionData::default().with_partition_index(0);
        let topic = TopicData::default()
            .with_topic_name(name("__cluster_metadata"))
            .with_partitions(vec![partition]);
        let request = m::DescribeQuorumRequest::default().with_topics(vec![topic]);
        let Some(Response::DescribeQuorum(mut answer)) = ask(&mut stream, 1, request).await else {
            unreachable!()
        };
        *told.borrow_mut() = answer.topics[0].partitions.pop();
        Ok(())
    });
    assert!(cluster.run_until(PATIENCE, |_| quorum.borrow().is_some()));
    quorum.take().unwrap()
}

/// Who leads the quorum.
fn leader(cluster: &mut Cluster, asked: &str) -> &'static str {
    NODES[usize::try_from(quorum(cluster, asked).leader_id.0).unwrap() - 1]
}

const FOUR: &str = "node-4";

/// [`NODES`], and node 4, which observes.
fn cluster_of_four(seed: u64) -> Cluster {
    let mut cluster = cluster(seed);
    NODES.into_iter().for_each(|name| make_topic(&mut cluster, name, name));
    cluster.host(FOUR, observer(4, FOUR));
    make_topic(&mut cluster, FOUR, FOUR);
    cluster
}

/// Takes the registration of broker 4 away.
fn unregister_four(cluster: &mut Cluster) {
    cluster.client("unregisters", |env| async move {
        let mut stream = connect(&env, NODES[0]).await;
        loop {
            let request = m::UnregisterBrokerRequest::default().with_broker_id(m::BrokerId(4));
            let Some(Response::UnregisterBroker(answer)) = ask(&mut stream, 0, request).await
            else {
                return Err("the connection ended".to_owned());
            };
            if answer.error_code == 0 {
                return Ok(());
            }
            sleep(Duration::from_millis(100)).await;
        }
    });
    assert!(cluster.run_clients(PATIENCE), "broker 4 is not unregistered");
}

/// Whether node 4 is a member, as the quorum tells.
fn has_four(cluster: &mut Cluster, asked: &str) -> bool {
    let observers = quorum(cluster, asked).observers;
    observers.iter().any(|one| one.replica_id == m::BrokerId(4))
}

/// Another process has its id when it is back, and it would lead on by the metadata of before.
#[test]
fn a_node_whose_id_was_taken_over_while_it_was_cut_off_ends_with_those_words() {
    let mut cluster = cluster_of_four(8);
    NODES.into_iter().for_each(|name| cluster.cut(FOUR, name));
    cluster.run_for(Duration::from_secs(12));
    cluster.host("node-4b", observer(4, "node-4b"));
    make_topic(&mut cluster, "node-4b", "again");
    NODES.into_iter().for_each(|name| cluster.mend(FOUR, name));
    cluster.run_for(Duration::from_secs(1));
    assert!(cluster.is_running(FOUR), "{:?}", cluster.exit(FOUR));
    assert!(cluster.run_until(PATIENCE, |cluster| cluster.exit(FOUR).is_some()), "it goes on");
    let exit = cluster.exit(FOUR).unwrap().unwrap_err();
    assert!(exit.contains("has taken node.id 4 over") && exit.contains("node-4b:9093"), "{exit}");
    assert!(cluster.is_running("node-4b"));
}

/// It asks to be a member again before it learns that its broker was unregistered.
#[test]
fn a_node_that_is_unregistered_while_it_is_cut_off_does_not_stay_a_member() {
    let mut cluster = cluster_of_four(9);
    NODES.into_iter().for_each(|name| cluster.cut(FOUR, name));
    cluster.run_for(Duration::from_secs(4));
    unregister_four(&mut cluster);
    assert!(!has_four(&mut cluster, "after it was taken out"));
    NODES.into_iter().for_each(|name| cluster.mend(FOUR, name));
    assert!(cluster.run_until(PATIENCE, |cluster| cluster.exit(FOUR).is_some()), "it goes on");
    let exit = cluster.exit(FOUR).unwrap().unwrap_err();
    assert!(exit.contains("broker 4 was unregistered"), "{exit}");
    assert!(has_four(&mut cluster, "after it was back"), "it has not asked");
    cluster.run_for(Duration::from_secs(130));
    assert!(!has_four(&mut cluster, "in the end"), "one that is gone stays a member");
}

#[test]
fn a_node_that_is_unregistered_while_it_stops_does_not_ask_to_be_a_member_again() {
    let mut cluster = cluster_of_four(10);
    cluster.disk(FOUR).set_slow(Duration::from_secs(2));
    assert!(!cluster.stop(FOUR, Duration::from_secs(1)));
    unregister_four(&mut cluster);
    assert!(cluster.is_running(FOUR), "it has stopped too soon");
    assert!(cluster.stop(FOUR, PATIENCE * 4), "it does not stop");
    assert!(!has_four(&mut cluster, "in the end"));
}

/// It hands the lead over, so that nobody waits until it is noticed that it is gone.
#[test]
fn a_leader_that_stops_is_succeeded_at_once() {
    let mut cluster = cluster(7);
    NODES.into_iter().for_each(|name| make_topic(&mut cluster, name, name));
    cluster.run_for(Duration::from_secs(2));
    for round in ["first", "second", "third"] {
        let leader = leader(&mut cluster, round);
        assert!(cluster.stop(leader, PATIENCE));
        let (before, at) = (cluster.elapsed(), NODES.into_iter().find(|name| *name != leader));
        make_topic(&mut cluster, at.unwrap(), round);
        let took = cluster.elapsed() - before;
        assert!(took < Duration::from_millis(500), "{took:?} after {leader} has stopped");
        cluster.restart(leader);
        cluster.run_for(Duration::from_secs(3));
    }
}

/// Nobody of the others hears the active controller for five seconds, as where CPU lacks: another
/// one follows unless `controller.quorum.fetch.timeout.ms` lets them wait for longer.
#[test]
fn voters_wait_for_an_active_controller_as_long_as_they_are_set_to() {
    let waits = |more: &str| {
        show_log();
        let mut cluster = Cluster::new(8);
        (1..).zip(NODES).for_each(|(id, name)| cluster.host(name, node_with(id, more)));
        NODES.into_iter().for_each(|name| make_topic(&mut cluster, name, name));
        let before = quorum(&mut cluster, "before");
        let led = NODES[usize::try_from(before.leader_id.0).unwrap() - 1];
        let others = || NODES.into_iter().filter(|name| *name != led);
        others().for_each(|name| cluster.cut(led, name));
        cluster.run_for(Duration::from_secs(5));
        others().for_each(|name| cluster.mend(led, name));
        cluster.run_for(Duration::from_secs(3));
        let after = quorum(&mut cluster, "after");
        // And goes on.
        make_topic(&mut cluster, led, "after");
        (after.leader_id, after.leader_epoch) == (before.leader_id, before.leader_epoch)
    };
    let one_replica = "offsets.topic.replication.factor=1";
    assert!(!waits(one_replica), "nobody follows a controller that is gone");
    let patient = format!("{one_replica}\ncontroller.quorum.fetch.timeout.ms=15000");
    assert!(waits(&patient), "another node leads, although the others were to wait for 7.5 s");
}

/// The node that leads is cut off: what was passed on to it is answered when another leads.
#[test]
fn an_operation_at_a_leader_that_hangs_is_answered_when_another_leads() {
    let mut cluster = cluster(5);
    NODES.into_iter().for_each(|name| make_topic(&mut cluster, name, name));
    let leader = leader(&mut cluster, "now");
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

/// What a node passes on is long on its way: its client was told that the time is over, and may
/// have asked for something else since.
#[test]
fn a_change_that_its_client_was_told_of_as_late_is_not_begun_later() {
    for seed in 0..5 {
        let mut cluster = cluster(seed);
        NODES.into_iter().for_each(|name| make_topic(&mut cluster, name, name));
        let leader = leader(&mut cluster, "now");
        let asked = NODES.into_iter().find(|name| *name != leader).unwrap();
        let answer = Rc::new(RefCell::new(None));
        let (told, go) = (Rc::clone(&answer), Rc::new(Cell::new(false)));
        let may_go = Rc::clone(&go);
        cluster.client("asks", move |env| async move {
            let mut stream = connect(&env, asked).await;
            while !may_go.get() {
                sleep(Duration::from_millis(1)).await;
            }
            *told.borrow_mut() = ask(&mut stream, 5, create("late", 1_000)).await;
            Ok(())
        });
        cluster.run_for(Duration::from_secs(1));
        cluster.hold(asked, leader);
        go.set(true);
        assert!(cluster.run_until(PATIENCE, |_| answer.borrow().is_some()));
        let Some(Response::CreateTopics(answer)) = answer.take() else { panic!() };
        assert_eq!(answer.topics[0].error_code, REQUEST_TIMED_OUT);
        cluster.release(asked, leader);
        cluster.run_for(Duration::from_secs(3));
        let found = Rc::new(RefCell::new(None));
        let told = Rc::clone(&found);
        cluster.client("looks", move |env| async move {
            let mut stream = connect(&env, leader).await;
            let topic = MetadataRequestTopic::default().with_name(Some(name("late")));
            let request = m::MetadataRequest::default()
                .with_topics(Some(vec![topic]))
                .with_allow_auto_topic_creation(false);
            *told.borrow_mut() = ask(&mut stream, 8, request).await;
            Ok(())
        });
        assert!(cluster.run_until(PATIENCE, |_| found.borrow().is_some()));
        let Some(Response::Metadata(found)) = found.take() else { panic!() };
        assert_eq!(found.topics[0].error_code, UNKNOWN_TOPIC_OR_PARTITION, "seed {seed}");
    }
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
    // With another one there is an election, and it writes its vote down.
    cluster.disk(NODES[0]).inject(Fault::FailChange, "__letterbox_metadata", 0, u64::MAX);
    cluster.restart(NODES[1]);
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

/// What the clients of a run and its schedule tell one another.
#[derive(Default)]
struct Seen {
    /// By node, how often it went down or came back.
    turns: BTreeMap<&'static str, u64>,
    /// Nodes whose power failed.
    unplugged: BTreeSet<&'static str>,
    /// Topics whose creation was answered.
    created: BTreeSet<String>,
    /// Requests that were answered, by anything.
    answered: u64,
    is_over: bool,
}

type Shared = Rc<RefCell<Seen>>;

/// Asks one node for changes, one after the other, over a link that is never cut. While the node
/// runs, each is answered in time: two seconds more than was asked for.
async fn changes(env: Env, at: &'static str, seen: Shared) -> Result<(), String> {
    const LIMIT: Duration = Duration::from_secs(5);
    let turns = || seen.borrow().turns.get(at).copied();
    // Nobody hears of it.
    let is_unplugged = || seen.borrow().unplugged.contains(at);
    let mut n = 0;
    while !seen.borrow().is_over {
        // Until the node serves; one that has died says nothing.
        let Ok(mut stream) = timeout(LIMIT, connect(&env, at)).await else { continue };
        while !seen.borrow().is_over {
            n += 1;
            let (topic, before) = (format!("{at}-{n}"), turns());
            let answer = timeout(LIMIT, ask(&mut stream, 5, create(&topic, 3_000))).await;
            let answer = match answer {
                Ok(Some(Response::CreateTopics(answer))) => answer,
                Err(_) if turns() == before && !is_unplugged() => {
                    return Err(format!("{topic} is not answered"));
                }
                _ => break,
            };
            seen.borrow_mut().answered += 1;
            match answer.topics[0].error_code {
                0 => drop(seen.borrow_mut().created.insert(topic)),
                REQUEST_TIMED_OUT | NOT_CONTROLLER => {}
                // No disk fails, and nobody else makes a topic of that name.
                code => return Err(format!("{topic}: error {code}")),
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

/// Whether `name` tells of three brokers, and of a leader of each partition of these topics.
async fn tells_all(env: &Env, name: &str, topics: &BTreeSet<String>) -> bool {
    let Ok(mut stream) = timeout(Duration::from_secs(5), connect(env, name)).await else {
        return false;
    };
    let request = m::MetadataRequest::default().with_topics(None);
    let Some(Response::Metadata(told)) = ask(&mut stream, 9, request).await else { return false };
    let is_led = |topic: &m::metadata_response::MetadataResponseTopic| {
        topic.partitions.len() == 3 && topic.partitions.iter().all(|one| one.error_code == 0)
    };
    let led = told.topics.iter().filter(|topic| is_led(topic));
    let led: BTreeSet<_> =
        led.filter_map(|topic| Some(topic.name.as_ref()?.as_str().to_owned())).collect();
    told.brokers.len() == NODES.len() && led.is_superset(topics)
}

/// One fault, and what it is called.
fn break_something(cluster: &mut Cluster, rng: &mut Rng) -> (&'static str, &'static str) {
    let name = NODES[rng.index(3)];
    let other = NODES[(NODES.iter().position(|node| *node == name).unwrap() + 1) % 3];
    let what = match rng.below(7) {
        0 => {
            cluster.power_cut(name);
            "power cut"
        }
        1 => {
            cluster.kill(name);
            "kill"
        }
        2 => {
            assert!(cluster.stop(name, PATIENCE), "{name} does not stop");
            "stop"
        }
        3 => {
            cluster.cut(name, other);
            "cut"
        }
        4 => {
            cluster.cut_one_way(name, other);
            "cut of one way"
        }
        5 => {
            NODES.into_iter().filter(|node| *node != name).for_each(|node| cluster.cut(name, node));
            "isolation"
        }
        _ => {
            cluster.disk(name).set_slow(Duration::from_millis(rng.between(20, 400)));
            "slow disk"
        }
    };
    (name, what)
}

/// Everything goes on. No node ended by itself.
fn heal(cluster: &mut Cluster, seen: &Shared) {
    for (at, name) in NODES.into_iter().enumerate() {
        cluster.disk(name).set_slow(Duration::ZERO);
        NODES[at + 1..].iter().for_each(|other| cluster.mend(name, other));
        if !cluster.is_running(name) {
            let exit = cluster.exit(name);
            // Whose power fails may just say so.
            let is_well = exit.as_ref().is_none_or(Result::is_ok);
            assert!(seen.borrow_mut().unplugged.remove(name) || is_well, "{name} ended: {exit:?}");
            *seen.borrow_mut().turns.entry(name).or_default() += 1;
            cluster.restart(name);
        }
    }
}

fn run(seed: u64) {
    let (mut cluster, seen) = (cluster(seed), Shared::default());
    let clients = Clients::begin(&mut cluster);
    for name in NODES {
        let seen = Rc::clone(&seen);
        cluster.client(&format!("asks {name}"), move |env| changes(env, name, seen));
    }
    let mut rng = cluster.schedule_rng();
    cluster.run_for(Duration::from_secs(4));
    for _ in 0..8 {
        let (name, what) = break_something(&mut cluster, &mut rng);
        *seen.borrow_mut().turns.entry(name).or_default() += 1;
        if what == "power cut" {
            seen.borrow_mut().unplugged.insert(name);
        }
        clients.note_fault(&cluster, name, what);
        cluster.run_for(Duration::from_millis(rng.between(50, 5_000)));
        if rng.percent(70) {
            heal(&mut cluster, &seen);
            cluster.run_for(Duration::from_millis(rng.between(50, 4_000)));
        }
    }
    heal(&mut cluster, &seen);
    let (before, answered) = (seen.borrow().created.len(), seen.borrow().answered);
    let goes_on = |_: &Cluster| seen.borrow().created.len() > before + 5;
    assert!(cluster.run_until(PATIENCE, goes_on), "the healed cluster stands still");
    seen.borrow_mut().is_over = true;
    clients.ask_to_end();
    assert!(cluster.run_clients(PATIENCE * 2), "clients do not end");

    let created = seen.borrow().created.clone();
    println!(
        "seed {seed}, {:?} of virtual time: {} topics made, {answered} requests answered",
        cluster.elapsed(),
        created.len(),
    );
    let to_scan = clients.clone();
    cluster.client("scanner", move |env| async move {
        for name in NODES {
            while !tells_all(&env, name, &created).await {
                sleep(Duration::from_millis(200)).await;
            }
        }
        to_scan.scan(env).await
    });
    assert!(cluster.run_clients(PATIENCE * 2), "not every node tells of everything");
    NODES.into_iter().for_each(|name| {
        assert!(cluster.stop(name, PATIENCE), "{name} does not stop");
        assert_eq!(cluster.exit(name), Some(Ok(())), "{name}");
    });
    let demands = Demands { sends_ok_min: 100, reads_min: 200, faults_min: 8 };
    let report = Checker::check(clients.history.events(), demands);
    println!("{report}");
    assert!(report.is_clean(), "{report}");
    assert!(before > 20, "only {before} topics were made while something was broken");
}

#[test]
fn three_nodes_lose_nothing_and_answer_everything_in_time() {
    const NAME: &str = "three_nodes_lose_nothing_and_answer_everything_in_time";
    seeds::for_each(3, "nodes", NAME, run);
}

/// One after the other is stopped and started, twice, while changes are asked for: none is refused
/// for good, and no start fails beside a stop.
#[test]
fn a_rolling_restart_refuses_no_change_and_fails_no_start() {
    let (mut cluster, seen) = (cluster(6), Shared::default());
    NODES.into_iter().for_each(|name| make_topic(&mut cluster, name, name));
    for name in NODES {
        let seen = Rc::clone(&seen);
        cluster.client(&format!("asks {name}"), move |env| changes(env, name, seen));
    }
    for (at, name) in NODES.into_iter().cycle().take(6).enumerate() {
        let next = NODES[(at + 1) % 3];
        *seen.borrow_mut().turns.entry(name).or_default() += 1;
        assert!(cluster.stop(name, PATIENCE));
        assert_eq!(cluster.exit(name), Some(Ok(())));
        cluster.restart(name);
        // It registers while the next one stops.
        cluster.run_for(Duration::from_millis(50 * u64::try_from(at).unwrap()));
        *seen.borrow_mut().turns.entry(next).or_default() += 1;
        // It takes a while to close its logs.
        cluster.disk(next).set_slow(Duration::from_millis(100));
        assert!(cluster.stop(next, PATIENCE));
        cluster.disk(next).set_slow(Duration::ZERO);
        cluster.restart(next);
        let before = seen.borrow().created.len();
        let goes_on = |_: &Cluster| seen.borrow().created.len() > before + 10;
        assert!(cluster.run_until(PATIENCE, goes_on), "the cluster stands still");
        for name in NODES {
            let exit = cluster.exit(name);
            assert!(cluster.is_running(name), "{name} ended: {exit:?}");
        }
    }
    seen.borrow_mut().is_over = true;
    assert!(cluster.run_clients(PATIENCE), "clients do not end");
}
