//! A broker stands still, and another process gets its id meanwhile.

use std::io::Write as _;

use kafka_protocol::messages::create_topics_request::CreatableReplicaAssignment;
use letterbox_protocol::encode_request;

use super::*;

const TOPIC: &str = "led-by-four";
const NOT_LEADER: i16 = 6;

/// Node 4, which observes; with its data in `data-{of}`.
fn observer(dir: &Path, of: &str, ports: &Ports, admin: u16) -> Broker {
    let servers: Vec<_> = ports.values().map(|(_, port)| format!("127.0.0.1:{port}")).collect();
    let (clients, voter) = (free_port(), free_port());
    let text = format!(
        "process.roles=broker,controller\nnode.id=4\n\
         controller.quorum.bootstrap.servers={}\ncontroller.listener.names=CONTROLLER\n\
         listeners=PLAINTEXT://127.0.0.1:{clients},CONTROLLER://127.0.0.1:{voter}\n\
         log.dirs={}\nadmin.listener=127.0.0.1:{admin}\n\
         broker.session.timeout.ms=6000\nbroker.heartbeat.interval.ms=500\n",
        servers.join(","),
        dir.join(format!("data-{of}")).display()
    );
    let file = dir.join(format!("server-{of}.properties"));
    std::fs::write(&file, text).unwrap();
    Broker::run(file, Vec::new(), SocketAddr::from(([127, 0, 0, 1], clients)))
}

/// Whether each thread of the process is stopped (`T` in proc(5)).
fn is_stopped(pid: rustix::process::Pid) -> bool {
    let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
    std::fs::read_dir(tasks).unwrap().all(|task| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    })
}

/// What was written to it before it stood still is there, and nothing that it is sent after that is
/// acknowledged.
#[test]
fn a_broker_whose_id_was_taken_over_while_it_stood_still_acknowledges_nothing_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let ports: Ports = NODES.into_iter().map(|id| (id, (free_port(), free_port()))).collect();
    let mut nodes = start(dir.path(), &NODES, &ports);
    let admin = free_port();
    let mut four = observer(dir.path(), "4", &ports, admin);
    let assigned = CreatableReplicaAssignment::default()
        .with_partition_index(0)
        .with_broker_ids(vec![m::BrokerId(4), m::BrokerId(1)]);
    let topic = CreatableTopic::default()
        .with_name(name(TOPIC))
        .with_num_partitions(-1)
        .with_replication_factor(-1)
        .with_assignments(vec![assigned]);
    let request =
        m::CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
    let Response::CreateTopics(made) = ask(&mut nodes[&1].connect(), 5, request) else {
        unreachable!()
    };
    assert_eq!(made.topics[0].error_code, 0);
    let leader = |node: &Broker| led_by(&mut node.connect(), TOPIC).map(|(leader, _)| leader);
    eventually("node 4 leads", || {
        nodes.values().chain([&four]).all(|node| leader(node) == Some(4))
    });
    let mut stream = four.connect();
    let request = |value: &[u8]| produce_request(TOPIC, value).with_acks(1);
    eventually("it takes records", || {
        produced(ask(&mut stream, PRODUCE_VERSION, request(b"before"))).0 == 0
    });
    assert_eq!(http_get(admin, "/readyz").0, "200");

    kill_process(four.pid(), Signal::STOP).unwrap();
    // One thread hears of it and stops the others, when it gets a processor.
    eventually("all of its threads stand still", || is_stopped(four.pid()));
    let stopped = Instant::now();
    // It finds this when it goes on, before anybody could tell it anything.
    let written = encode_request(7, Some("t"), PRODUCE_VERSION, &request(b"after").into()).unwrap();
    stream.write_all(&written).unwrap();
    eventually("another one leads", || nodes.values().all(|node| leader(node) == Some(1)));
    // The one before has to be silent for a while.
    let mut other = observer(dir.path(), "4-other", &ports, free_port());
    // It stands still for more than its session, which an unanswered heartbeat begins anew: others
    // may lead before that.
    std::thread::sleep(Duration::from_secs(7).saturating_sub(stopped.elapsed()));
    kill_process(four.pid(), Signal::CONT).unwrap();
    let answer = common::read_answer(&mut stream, PRODUCE_VERSION, 0);
    assert_eq!(produced(answer).0, NOT_LEADER, "it leads by what it knew before");
    let (status, said) = http_get(admin, "/readyz");
    assert_eq!(status, "503", "{said}");
    let said = four.wait_for_line("the broker cannot go on");
    assert!(said.contains("another process has taken node.id 4 over"), "{said}");
    assert_eq!(four.wait().code(), Some(1));
    other.stop();
    for node in nodes.values_mut() {
        node.stop();
    }
}
