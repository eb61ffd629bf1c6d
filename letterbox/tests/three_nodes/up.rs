//! `letterbox up` with three brokers: they form a cluster from one file, one that is killed comes
//! back, and the records are there after a stop and a start.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};

use super::moves::Verifiable;
use super::*;

const TOPIC: &str = "orders";
const IDS: [u16; 3] = [0, 1, 2];

/// Above the first port: what `letterbox up` takes for three brokers.
const TAKEN: [u16; 9] = [0, 1, 2, 400, 401, 402, 552, 553, 554];

/// A first port whose nine are free; below those that other tests are given one by one.
fn first_port() -> u16 {
    let begin = u16::try_from(std::process::id() % 5_000).unwrap();
    let mut ports = (0..5_000u16).map(|at| 3_000 + (begin + at * 7) % 5_000);
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    ports.find(|first| TAKEN.into_iter().all(|above| is_free(first + above))).unwrap()
}

/// `letterbox up` as it runs.
struct Up {
    child: Child,
    data: PathBuf,
    port: u16,
}

impl Up {
    /// Starts it and waits until it says that everything is ready.
    fn start(dir: &Path, port: u16) -> Self {
        let (file, data) = (dir.join("three.yaml"), dir.join("data"));
        let text = std::fs::read_to_string(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/local/three-brokers.yaml"),
        );
        std::fs::write(&file, text.unwrap()).unwrap();
        let began = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_letterbox"))
            .arg("up")
            .arg(&file)
            .args(["--port", &port.to_string(), "--data"])
            .arg(&data)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (told, said) =
            (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        let up = Self { child, data, port };
        let [a, b, c] = IDS.map(|id| port + id);
        let mut expected = VecDeque::from([format!(
            "three plain bootstrap.servers=localhost:{a},localhost:{b},localhost:{c}"
        )]);
        expected.extend(IDS.map(|id| {
            let (plain, admin) = (port + id, port + 552 + id);
            format!("three broker-{id} plain=localhost:{plain} admin=localhost:{admin}")
        }));
        while let Some(line) = expected.pop_front() {
            let left = PATIENCE.saturating_sub(began.elapsed());
            let next = told.recv_timeout(left).unwrap_or_else(|_| {
                panic!("not said: {line}; {:#?}", said.try_iter().collect::<Vec<_>>())
            });
            assert_eq!(next, line);
        }
        let took = began.elapsed();
        eprintln!("ready after {took:?}");
        // Some 1.5 s. A topic that was refused because a broker was missing waits for 30 s.
        assert!(took < Duration::from_secs(20), "{took:?}");
        up
    }

    fn bootstrap(&self) -> String {
        IDS.map(|id| format!("127.0.0.1:{}", self.port + id)).join(",")
    }

    /// The process of a broker, as its folder tells it.
    fn pid(&self, id: u16) -> Option<Pid> {
        let file = self.data.join(format!("three/broker-{id}/pid"));
        std::fs::read_to_string(file).ok()?.trim().parse().ok().and_then(Pid::from_raw)
    }

    /// Whether each broker tells of three replicas of each partition, all in sync.
    fn is_in_sync(&self) -> bool {
        IDS.into_iter().all(|id| {
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port + id)) else {
                return false;
            };
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let request = m::MetadataRequest::default().with_topics(None);
            let Ok(Response::Metadata(seen)) = try_ask(&mut stream, 9, request) else {
                return false;
            };
            let topic = seen.topics.iter().find(|seen| seen.name == Some(name(TOPIC)));
            topic.is_some_and(|topic| {
                topic.partitions.len() == 3
                    && topic
                        .partitions
                        .iter()
                        .all(|one| one.isr_nodes.len() == 3 && one.replica_nodes.len() == 3)
            })
        })
    }

    /// Everything that is in the topic: partition and offset of each value.
    fn read_all(&self) -> Vec<(i64, i64, String)> {
        let read = Command::new("kcat")
            .args(["-b", &self.bootstrap(), "-C", "-q", "-e", "-t", TOPIC])
            .args(["-o", "beginning", "-f", "%p %o %s\\n"])
            .output()
            .expect("kcat is needed (apt-get install kcat)");
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        let text = String::from_utf8(read.stdout).unwrap();
        let lines = text.lines().map(|line| {
            let mut fields = line.split(' ');
            let mut number = || fields.next().unwrap().parse().unwrap();
            (number(), number(), fields.next().unwrap().to_owned())
        });
        lines.collect()
    }

    /// Asks it to end, as Ctrl-C does; it leaves no broker behind.
    fn stop(mut self) {
        let pids = IDS.map(|id| self.pid(id).unwrap());
        let began = Instant::now();
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        assert!(self.child.wait().unwrap().success());
        let took = began.elapsed();
        eprintln!("stopped after {took:?}");
        assert!(took < Duration::from_secs(8), "{took:?}");
        for pid in pids {
            assert!(rustix::process::test_kill_process(pid).is_err(), "{pid:?} lives");
        }
        for id in IDS {
            let log = self.data.join(format!("three/broker-{id}/broker.log"));
            let log = std::fs::read_to_string(log).unwrap();
            assert!(!log.contains("ERROR"), "{log}");
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            IDS.iter().filter_map(|id| self.pid(*id)).for_each(|pid| {
                let _ = kill_process(pid, Signal::KILL);
            });
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The lines of `output` as they come.
fn lines(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (send, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // Read on when nobody listens: nothing that writes waits.
            let _ = send.send(line);
        }
    });
    lines
}

fn check(seen: Vec<(i64, i64, String)>, acked: &BTreeSet<(i64, i64, String)>) {
    let len = seen.len();
    let seen: BTreeSet<_> = seen.into_iter().collect();
    let lost: Vec<_> = acked.difference(&seen).collect();
    assert!(lost.is_empty(), "acknowledged and not there: {lost:?}");
    assert_eq!((seen.len(), len), (acked.len(), acked.len()), "records that nobody was told of");
}

#[test]
fn three_brokers_of_letterbox_up_lose_nothing_when_one_is_killed_and_all_are_started_again() {
    let (dir, port) = (tempfile::tempdir().unwrap(), first_port());
    let up = Up::start(dir.path(), port);
    eventually("each broker tells of the topic, with three replicas", || up.is_in_sync());

    let producer = Verifiable::start(dir.path(), &up.bootstrap(), TOPIC);
    producer.wait_for_more();
    let killed = up.pid(1);
    kill_process(killed.unwrap(), Signal::KILL).unwrap();
    producer.wait_for_more();
    eventually("the killed broker is started again", || up.pid(1) != killed);
    eventually("it is in sync again", || up.is_in_sync());
    producer.wait_for_more();
    let mut acked = producer.stop();
    check(up.read_all(), &acked);

    up.stop();
    let up = Up::start(dir.path(), port);
    check(up.read_all(), &acked);
    let producer = Verifiable::start(dir.path(), &up.bootstrap(), TOPIC);
    producer.wait_for_more();
    acked.extend(producer.stop());
    check(up.read_all(), &acked);
    up.stop();
}
