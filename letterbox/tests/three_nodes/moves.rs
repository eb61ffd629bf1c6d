//! Partitions that move to other brokers (`kafka-reassign-partitions`) while two idempotent
//! producers write to them, and a broker is killed in the middle.

use std::io::BufRead as _;
use std::process::{Child, Command, Output};
use std::sync::Mutex;

use serde_json::Value;

use super::*;

const TOPIC: &str = "moved";
/// Enough that a new replica is not there at once.
const LOADED: usize = 20_000;

/// Replicas by partition.
type Assignment = BTreeMap<i64, Vec<i32>>;

fn as_json(assignment: &Assignment) -> String {
    let partitions = assignment.iter().map(|(partition, replicas)| {
        serde_json::json!({"topic": TOPIC, "partition": partition, "replicas": replicas})
    });
    serde_json::json!({"version": 1, "partitions": partitions.collect::<Vec<_>>()}).to_string()
}

fn of_json(text: &str) -> Assignment {
    let json: Value = serde_json::from_str(text).unwrap();
    let partitions = json["partitions"].as_array().unwrap().iter().map(|one| {
        let replicas = one["replicas"].as_array().unwrap().iter();
        let replicas = replicas.map(|id| i32::try_from(id.as_i64().unwrap()).unwrap());
        (one["partition"].as_i64().unwrap(), replicas.collect())
    });
    partitions.collect()
}

/// Who of the nodes is none of `ids`.
fn other(ids: &[i32]) -> i32 {
    NODES.into_iter().find(|id| !ids.contains(id)).unwrap()
}

/// Three nodes, and the tool.
struct Cluster {
    dir: tempfile::TempDir,
    ports: Ports,
    nodes: BTreeMap<i32, Broker>,
}

impl Cluster {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ports: Ports = NODES.into_iter().map(|id| (id, (free_port(), free_port()))).collect();
        let nodes = start(dir.path(), &NODES, &ports);
        Self { dir, ports, nodes }
    }

    /// What the tool says, when it has done what it was asked for.
    fn tool(&self, arguments: &[&str], file: &str) -> String {
        let output = self.try_tool(arguments, file);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn try_tool(&self, arguments: &[&str], file: &str) -> Output {
        let path = self.dir.path().join("file.json");
        std::fs::write(&path, file).unwrap();
        let option = match arguments[0] {
            "--generate" => "--topics-to-move-json-file",
            _ => "--reassignment-json-file",
        };
        Command::new(env!("CARGO_BIN_EXE_letterbox"))
            .args(["tool", "kafka-reassign-partitions"])
            .args(["--bootstrap-server", &bootstrap(&self.ports)])
            .args(arguments)
            .arg(option)
            .arg(path)
            .output()
            .unwrap()
    }

    /// The assignment that there is, and one that the tool proposes.
    fn generate(&self) -> (Assignment, Assignment) {
        let topics = format!(r#"{{"version":1,"topics":[{{"topic":"{TOPIC}"}}]}}"#);
        let said = self.tool(&["--generate", "--broker-list", "1,2,3"], &topics);
        let mut found = said.lines().filter(|line| line.starts_with('{')).map(of_json);
        (found.next().unwrap(), found.next().unwrap())
    }

    fn execute(&self, wanted: &Assignment) {
        let said = self.tool(&["--execute"], &as_json(wanted));
        assert!(said.contains("Successfully started partition reassignments for"), "{said}");
    }

    /// What `--verify` says of each partition.
    fn verify(&self, wanted: &Assignment) -> Vec<String> {
        // Throttles are cleared at each broker, and one may be paused.
        let said = self.tool(&["--verify", "--preserve-throttles"], &as_json(wanted));
        let of_partition = |line: &&str| line.contains("eassignment of partition moved-");
        said.lines().filter(of_partition).map(str::to_owned).collect()
    }

    fn wait_until_moved(&self, wanted: &Assignment) {
        let mut said = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while !(said.len() == wanted.len()
            && said.iter().all(|line: &String| line.ends_with("is completed.")))
        {
            assert!(Instant::now() < deadline, "not in time: {said:#?}");
            said = self.verify(wanted);
        }
        let present = self.assignment();
        for (partition, replicas) in wanted {
            assert_eq!(present.get(partition), Some(replicas), "{partition}");
        }
    }

    /// As the metadata have it.
    fn assignment(&self) -> Assignment {
        self.generate().0
    }

    fn quorum_leader(&self) -> i32 {
        let mut leader = None;
        eventually("a leader of the quorum is told of", || {
            let told = self.nodes.values().find_map(|node| quorum(&mut node.connect()));
            leader = told.map(|(leader, _)| leader).filter(|leader| NODES.contains(leader));
            leader.is_some()
        });
        leader.unwrap()
    }

    fn signal(&self, id: i32, signal: Signal) {
        kill_process(self.nodes[&id].pid(), signal).unwrap();
    }

    fn kill_and_restart(&mut self, id: i32) {
        self.nodes.remove(&id).unwrap().kill();
        self.nodes.extend(start(self.dir.path(), &[id], &self.ports));
    }

    fn wait_for_isr(&self, count: usize) {
        eventually("every replica is in sync", || {
            self.nodes.values().all(|node| {
                let seen = led_by(&mut node.connect(), TOPIC);
                seen.is_some_and(|(leader, in_sync)| leader >= 0 && in_sync == count)
            })
        });
    }

    /// Everything that is in the topic: partition and offset of each value.
    fn read_all(&self) -> Vec<(i64, i64, String)> {
        let read = ["-C", "-q", "-e", "-t", TOPIC, "-o", "beginning", "-f", "%p %o %s\\n"];
        let seen = common::kcat(self.nodes.values().next().unwrap(), &read, "");
        let lines = seen.lines().map(|line| {
            let mut fields = line.split(' ');
            let mut number = || fields.next().unwrap().parse().unwrap();
            (number(), number(), fields.next().unwrap().to_owned())
        });
        lines.collect()
    }

    /// Whether each node has the directories of the partitions that it shall have, and no others.
    fn has_exactly(&self, wanted: &Assignment) -> bool {
        NODES.into_iter().all(|id| {
            let entries = std::fs::read_dir(self.dir.path().join(format!("data-{id}"))).unwrap();
            let names = entries.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
            let here: BTreeSet<_> = names.filter(|name| name.starts_with("moved-")).collect();
            let of_it = wanted.iter().filter(|(_, replicas)| replicas.contains(&id));
            here == of_it.map(|(partition, _)| format!("moved-{partition}")).collect()
        })
    }
}

/// `kafka-verifiable-producer`, which tells at which offset each record lies.
pub(super) struct Verifiable {
    child: Child,
    reading: thread::JoinHandle<()>,
    said: std::sync::Arc<Mutex<Vec<Value>>>,
}

impl Verifiable {
    pub(super) fn start(dir: &Path, bootstrap: &str, topic: &str) -> Self {
        let file = dir.join("producer.properties");
        let settings = "enable.idempotence=true\nretries=2147483647\ndelivery.timeout.ms=300000\n";
        std::fs::write(&file, settings).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_letterbox"))
            .args(["tool", "kafka-verifiable-producer", "--topic", topic])
            .args(["--bootstrap-server", bootstrap])
            .args(["--throughput", "500", "--value-prefix", "1", "--command-config"])
            .arg(file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = std::sync::Arc::<Mutex<Vec<Value>>>::default();
        let (output, to) = (child.stdout.take().unwrap(), said.clone());
        let reading = thread::spawn(move || {
            for line in std::io::BufReader::new(output).lines() {
                to.lock().unwrap().push(serde_json::from_str(&line.unwrap()).unwrap());
            }
        });
        Self { child, reading, said }
    }

    fn acked(&self) -> usize {
        let said = self.said.lock().unwrap();
        said.iter().filter(|event| event["name"] == "producer_send_success").count()
    }

    pub(super) fn wait_for_more(&self) {
        let before = self.acked();
        eventually("more is acknowledged", || self.acked() > before + 300);
    }

    /// Ends it: each record that it has sent, and where it lies.
    pub(super) fn stop(mut self) -> BTreeSet<(i64, i64, String)> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        self.reading.join().unwrap();
        let mut acked = BTreeSet::new();
        for event in self.said.lock().unwrap().iter() {
            match event["name"].as_str().unwrap() {
                "producer_send_success" => {
                    let number = |field: &str| event[field].as_i64().unwrap();
                    let value = event["value"].as_str().unwrap().to_owned();
                    acked.insert((number("partition"), number("offset"), value));
                }
                "tool_data" => assert_eq!(event["sent"], acked.len(), "{event}"),
                "startup_complete" | "shutdown_complete" => {}
                _ => panic!("{event}"),
            }
        }
        acked
    }
}

/// The records of librdkafka are 0 to `fed`, in order in each partition; those of the other
/// producer are where it was told.
fn check(seen: &[(i64, i64, String)], fed: usize, acked: &BTreeSet<(i64, i64, String)>) {
    let (by_ours, by_kcat): (Vec<_>, Vec<_>) =
        seen.iter().cloned().partition(|(_, _, value)| value.contains('.'));
    let (len, as_set) = (by_ours.len(), by_ours.into_iter().collect::<BTreeSet<_>>());
    let missed: Vec<_> = acked.difference(&as_set).take(5).collect();
    let more: Vec<_> = as_set.difference(acked).take(5).collect();
    assert!(missed.is_empty() && more.is_empty(), "missed: {missed:?}, more: {more:?}");
    assert_eq!(len, acked.len());
    let mut of_partitions: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (partition, _, value) in by_kcat {
        of_partitions.entry(partition).or_default().push(value.parse().unwrap());
    }
    assert!(of_partitions.values().all(|values| values.is_sorted()), "out of order");
    let mut all: Vec<usize> = of_partitions.into_values().flatten().collect();
    all.sort_unstable();
    assert!(all.iter().copied().eq(0..fed), "{} of {fed} are there", all.len());
}

/// Ends who feeds also when the test fails: it would be waited for.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One replica becomes three, then two, then others. Before each move but the second a broker that
/// is to get replicas is paused, so that what follows happens in the middle of the move.
fn move_around(cluster: &mut Cluster, load: &Verifiable) -> Assignment {
    let (present, proposed) = cluster.generate();
    assert!(present.len() == 6 && present.values().all(|replicas| replicas.len() == 1));
    let in_progress = |said: &[String]| said.iter().any(|line| line.contains("still in progress"));

    // To three; the broker that is paused is killed.
    let three = |replicas: &Vec<i32>| {
        let first = replicas[0];
        let second = other(&[first]);
        vec![first, second, other(&[first, second])]
    };
    let wanted: Assignment = proposed.iter().map(|(at, one)| (*at, three(one))).collect();
    let paused = other(&[cluster.quorum_leader()]);
    cluster.signal(paused, Signal::STOP);
    cluster.execute(&wanted);
    assert!(in_progress(&cluster.verify(&wanted)));
    cluster.kill_and_restart(paused);
    cluster.wait_until_moved(&wanted);
    load.wait_for_more();

    // To two, with other leaders; whoever leads the quorum is killed.
    let wanted: Assignment =
        wanted.into_iter().map(|(at, replicas)| (at, vec![replicas[2], replicas[0]])).collect();
    cluster.execute(&wanted);
    let killed = cluster.quorum_leader();
    cluster.kill_and_restart(killed);
    cluster.wait_until_moved(&wanted);
    cluster.wait_for_isr(2);
    load.wait_for_more();

    // To other sets of two; one that gets replicas is paused, and who leads the quorum is killed.
    let mut wanted: Assignment = wanted
        .into_iter()
        .map(|(at, replicas)| (at, vec![other(&replicas), replicas[0]]))
        .collect();
    let killed = cluster.quorum_leader();
    let paused = other(&[killed]);
    cluster.signal(paused, Signal::STOP);
    cluster.execute(&wanted);
    assert!(in_progress(&cluster.verify(&wanted)));
    cluster.kill_and_restart(killed);
    cluster.signal(paused, Signal::CONT);
    cluster.wait_until_moved(&wanted);
    cluster.wait_for_isr(2);
    load.wait_for_more();

    // What would go to a broker that is paused is given up.
    let paused = other(&[cluster.quorum_leader()]);
    let to_it = wanted.iter().filter(|(_, replicas)| !replicas.contains(&paused));
    let cancelled: Assignment = to_it.map(|(at, old)| (*at, vec![paused, old[1]])).collect();
    assert!(!cancelled.is_empty());
    cluster.signal(paused, Signal::STOP);
    cluster.execute(&cancelled);
    assert!(cluster.verify(&cancelled).iter().all(|line| line.contains("still in progress")));
    let said = cluster.tool(&["--cancel", "--preserve-throttles"], &as_json(&cancelled));
    assert!(said.contains("Successfully cancelled partition reassignments for:"), "{said}");
    for line in cluster.verify(&cancelled) {
        assert!(line.starts_with("There is no active reassignment"), "{line}");
    }
    cluster.signal(paused, Signal::CONT);
    // The order may be another one, as with Kafka.
    let as_sets = |assignment: &Assignment| -> BTreeMap<i64, BTreeSet<i32>> {
        assignment.iter().map(|(at, all)| (*at, all.iter().copied().collect())).collect()
    };
    assert_eq!(as_sets(&cluster.assignment()), as_sets(&wanted));
    cluster.wait_for_isr(2);
    load.wait_for_more();
    // Now it is not.
    cluster.execute(&cancelled);
    cluster.wait_until_moved(&cancelled);
    wanted.extend(cancelled);
    wanted
}

#[test]
fn partitions_move_under_load_and_nothing_acknowledged_is_lost_doubled_or_moved() {
    let mut cluster = Cluster::start();
    assert_eq!(create(&mut cluster.nodes[&1].connect(), TOPIC, 1), (0, String::new()));
    let mut kcat = Command::new("kcat")
        .args(["-P", "-q", "-b", &bootstrap(&cluster.ports), "-t", TOPIC])
        .args(["-X", "acks=all", "-X", "enable.idempotence=true"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("kcat is needed (apt-get install kcat)");
    let (fed, may_end) = (AtomicUsize::new(0), AtomicBool::new(false));
    let load = Verifiable::start(cluster.dir.path(), &bootstrap(&cluster.ports), TOPIC);
    let (wanted, acked) = thread::scope(|scope| {
        let input = kcat.stdin.take().unwrap();
        let feeding = scope.spawn(|| feed(input, &fed, &may_end));
        let ends = Ends(&may_end);
        eventually("there is something to copy", || fed.load(Ordering::Relaxed) > LOADED);
        load.wait_for_more();
        let wanted = move_around(&mut cluster, &load);
        load.wait_for_more();
        drop(ends);
        feeding.join().unwrap();
        (wanted, load.stop())
    });
    assert!(kcat.wait().unwrap().success());
    let fed = fed.load(Ordering::Relaxed);
    cluster.wait_for_isr(2);
    check(&cluster.read_all(), fed, &acked);
    eventually("what has moved away is deleted", || cluster.has_exactly(&wanted));
    // Each replica that was made has everything.
    for id in NODES {
        cluster.nodes.remove(&id).unwrap().kill();
        eventually("others lead", || {
            let seen = metadata(&mut cluster.nodes[&other(&[id])].connect());
            let topic = seen.topics.iter().find(|found| found.name == Some(name(TOPIC))).unwrap();
            topic.partitions.iter().all(|one| one.leader_id.0 >= 0 && one.leader_id.0 != id)
        });
        check(&cluster.read_all(), fed, &acked);
        cluster.nodes.extend(start(cluster.dir.path(), &[id], &cluster.ports));
        cluster.wait_for_isr(2);
    }
}

/// A question changes nothing: where the active controller does not answer it, the next one is asked.
#[test]
fn what_moves_is_listed_while_the_active_controller_stands_still() {
    let cluster = Cluster::start();
    let leader = cluster.quorum_leader();
    let mut asked = cluster.nodes[&other(&[leader])].connect();
    cluster.signal(leader, Signal::STOP);
    let request = m::ListPartitionReassignmentsRequest::default().with_timeout_ms(30_000);
    let answer = ask(&mut asked, 0, request.with_topics(None));
    cluster.signal(leader, Signal::CONT);
    let Response::ListPartitionReassignments(answer) = answer else { unreachable!() };
    assert_eq!((answer.error_code, answer.error_message), (0, None));
}
