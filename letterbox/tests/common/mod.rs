//! A real broker process on free ports, for tests that talk to it as anybody would.
#![allow(
    dead_code,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test stands outside of the seam"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kafka_protocol::messages as m;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::batch::BatchBuilder;
use letterbox_protocol::{Request, Response, decode_response, encode_request};

/// How long anything may take before the test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A broker process and its data.
pub(crate) struct Broker {
    child: Child,
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    config: PathBuf,
    arguments: Vec<String>,
    lines: std::sync::mpsc::Receiver<String>,
    /// Lines that were looked at.
    said: std::cell::RefCell<Vec<String>>,
}

/// A port that was free a moment ago, and that no other call of this process has given out. It lies
/// below the range from which the kernel takes the ports of outgoing connections (32768 and up): a
/// broker that ends and starts again finds it free.
pub(crate) fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU32, Ordering};
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Other test programs begin elsewhere.
    let begin = std::process::id().wrapping_mul(97);
    let next = || begin.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % COUNT + FIRST;
    let mut ports = (0..COUNT).map(|_| u16::try_from(next()).unwrap());
    ports.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

impl Broker {
    /// Starts a broker with its data under `dir` and waits until it serves.
    pub(crate) fn start(dir: &Path, extra: &str) -> Self {
        let port = free_port();
        let config = dir.join("server.properties");
        let text = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@localhost:9093\ncontroller.listener.names=CONTROLLER\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{}\nadvertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
             log.dirs={}\nadmin.listener=none\ngroup.initial.rebalance.delay.ms=0\n{extra}\n",
            free_port(),
            dir.join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        Self::run(config, Vec::new(), SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// Starts a broker on the file `config` with more `arguments`, and waits until it serves.
    pub(crate) fn run(config: PathBuf, arguments: Vec<String>, address: SocketAddr) -> Self {
        let mut by = command(&config);
        by.args(&arguments);
        Self::run_by(by, config, arguments, address)
    }

    /// As [`Broker::run`], started by `by`, which becomes the broker.
    pub(crate) fn run_by(
        by: Command,
        config: PathBuf,
        arguments: Vec<String>,
        address: SocketAddr,
    ) -> Self {
        let this = Self::begin(by, config, arguments, address);
        this.wait_until_it_serves();
        this
    }

    /// As [`Broker::run_by`], but does not wait.
    pub(crate) fn begin(
        mut by: Command,
        config: PathBuf,
        arguments: Vec<String>,
        address: SocketAddr,
    ) -> Self {
        let mut child = by.stdout(Stdio::piped()).spawn().unwrap();
        let output = child.stdout.take().unwrap();
        let (send, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let said = std::cell::RefCell::default();
        Self { child, address, config, arguments, lines, said }
    }

    /// Waits until it says that it serves.
    pub(crate) fn wait_until_it_serves(&self) {
        self.wait_for_line("Transitioning from RECOVERY to RUNNING");
    }

    /// The next log line that holds `part`.
    pub(crate) fn wait_for_line(&self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("no log line with {part:?}"));
            self.said.borrow_mut().push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
    }

    /// The log lines up to the one that was waited for last.
    pub(crate) fn said(&self) -> Vec<String> {
        self.said.borrow().clone()
    }

    /// Kills the process without warning.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Kills the process without warning and starts it again on the same data and port.
    pub(crate) fn kill_and_restart(mut self) -> Self {
        self.kill();
        let (config, arguments, address) =
            (self.config.clone(), self.arguments.clone(), self.address);
        drop(self);
        Self::run(config, arguments, address)
    }

    /// Asks the process to stop, waits, and starts it again.
    pub(crate) fn stop_and_restart(mut self) -> Self {
        self.stop();
        let (config, arguments, address) =
            (self.config.clone(), self.arguments.clone(), self.address);
        drop(self);
        Self::run(config, arguments, address)
    }

    /// Stops the broker; the log lines that nobody has waited for.
    pub(crate) fn stop_and_read_log(mut self) -> Vec<String> {
        self.stop();
        self.lines.iter().collect()
    }

    /// Waits until the process has ended.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    /// The process's id.
    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// A connection of a client that has not said anything yet.
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends SIGTERM and tells how long the process took to end well.
    pub(crate) fn stop(&mut self) -> Duration {
        self.stop_by(rustix::process::Signal::TERM)
    }

    /// As [`Broker::stop`], by another signal.
    pub(crate) fn stop_by(&mut self, signal: rustix::process::Signal) -> Duration {
        let started = Instant::now();
        rustix::process::kill_process(self.pid(), signal).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
        started.elapsed()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A broker that is to run on the file `config`.
pub(crate) fn command(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_letterbox"));
    command.arg("broker").arg("--config").arg(config);
    command
}

/// What a broker says that must not start.
pub(crate) fn refusal(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let (send, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    let output = ended.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        panic!("the broker runs: {command:?}")
    });
    let output = output.unwrap();
    assert!(matches!(output.status.code(), Some(1 | 69 | 78)), "{command:?}");
    output
}

/// The next frame, without its size.
pub(crate) fn read_frame(stream: &mut TcpStream) -> Vec<u8> {
    try_read_frame(stream).unwrap()
}

fn try_read_frame(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let mut frame = vec![0; usize::try_from(i32::from_be_bytes(size)).unwrap()];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}

/// Whether the broker closes the connection before it says anything more.
pub(crate) fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 16]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// The answer to `request` in `version`.
pub(crate) fn ask(stream: &mut TcpStream, version: i16, request: impl Into<Request>) -> Response {
    let request = request.into();
    stream.write_all(&encode_request(7, Some("t"), version, &request).unwrap()).unwrap();
    read_answer(stream, version, request.api_key())
}

/// As [`ask`], of a broker that may end meanwhile.
pub(crate) fn try_ask(
    stream: &mut TcpStream,
    version: i16,
    request: impl Into<Request>,
) -> std::io::Result<Response> {
    let request = request.into();
    stream.write_all(&encode_request(7, Some("t"), version, &request).unwrap())?;
    let frame = try_read_frame(stream)?;
    Ok(decode_response(request.api_key(), version, frame.into()).unwrap().1)
}

/// The answer to the request that was sent before.
pub(crate) fn read_answer(stream: &mut TcpStream, version: i16, api_key: i16) -> Response {
    let (correlation_id, response) =
        decode_response(api_key, version, read_frame(stream).into()).unwrap();
    assert_eq!(correlation_id, 7);
    response
}

/// Makes `topic` if it is not there, as a client does that asks for it; the error of the answer.
pub(crate) fn ask_for_topic(stream: &mut TcpStream, topic: &'static str) -> i16 {
    let topic =
        m::metadata_request::MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
    let request = m::MetadataRequest::default()
        .with_topics(Some(vec![topic]))
        .with_allow_auto_topic_creation(true);
    let Response::Metadata(answer) = ask(stream, 8, request) else { unreachable!() };
    answer.topics[0].error_code
}

/// One record with `value` for partition 0 of `topic`.
pub(crate) fn produce_request(topic: &'static str, value: &[u8]) -> m::ProduceRequest {
    let mut batch = BatchBuilder::new(1_700_000_000_000);
    batch.push(1_700_000_000_000, None, Some(value), &[]);
    let partition = PartitionProduceData::default().with_records(Some(batch.build().freeze()));
    let topic = TopicProduceData::default()
        .with_name(topic_name(topic))
        .with_partition_data(vec![partition]);
    m::ProduceRequest::default().with_acks(-1).with_timeout_ms(30_000).with_topic_data(vec![topic])
}

/// The version that [`produce_request`] is sent in.
pub(crate) const PRODUCE_VERSION: i16 = 9;

/// Error and base offset of the answer to a [`produce_request`].
pub(crate) fn produced(answer: Response) -> (i16, i64) {
    let Response::Produce(answer) = answer else { panic!("{answer:?}") };
    let partition = &answer.responses[0].partition_responses[0];
    (partition.error_code, partition.base_offset)
}

/// A topic's name as messages hold it.
pub(crate) fn topic_name(name: &'static str) -> m::TopicName {
    m::TopicName(StrBytes::from_static_str(name))
}

/// Everything that comes back for `bytes` until the broker closes.
pub(crate) fn http(port: u16, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Status and body of `GET path`.
pub(crate) fn http_get(port: u16, path: &str) -> (String, String) {
    let answer = http(
        port,
        format!("GET {path} HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n\r\n").as_bytes(),
    );
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split_whitespace().nth(1).unwrap().to_owned(), body.to_owned())
}

/// Runs kcat against `broker` with `input`; its standard output.
pub(crate) fn kcat(broker: &Broker, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("kcat")
        .arg("-b")
        .arg(broker.address.to_string())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kcat is needed (apt-get install kcat)");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "kcat {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
