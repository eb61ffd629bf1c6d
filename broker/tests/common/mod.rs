//! A real broker process on free ports, for tests that talk to it as anybody would.
#![allow(dead_code, clippy::disallowed_methods, clippy::unwrap_used, reason = "a test stands outside of the seam")]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take before the test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A broker process and its data.
pub(crate) struct Broker {
    child: Child,
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    config: PathBuf,
    lines: std::sync::mpsc::Receiver<String>,
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
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
        Self::run(config, SocketAddr::from(([127, 0, 0, 1], port)))
    }

    fn run(config: PathBuf, address: SocketAddr) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_letterbox"))
            .arg("broker")
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let (send, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let this = Self { child, address, config, lines };
        this.wait_for_line("Transitioning from RECOVERY to RUNNING");
        this
    }

    /// The next log line that holds `part`.
    pub(crate) fn wait_for_line(&self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("no log line with {part:?}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Kills the process without warning and starts it again on the same data and port.
    pub(crate) fn kill_and_restart(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let (config, address) = (self.config.clone(), self.address);
        drop(self);
        Self::run(config, address)
    }

    /// Asks the process to stop, waits, and starts it again.
    pub(crate) fn stop_and_restart(mut self) -> Self {
        self.stop();
        let (config, address) = (self.config.clone(), self.address);
        drop(self);
        Self::run(config, address)
    }

    /// Sends SIGTERM and tells how long the process took to end well.
    pub(crate) fn stop(&mut self) -> Duration {
        let started = Instant::now();
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
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

/// Runs kcat against `broker` with `input`; its standard output.
pub(crate) fn kcat(broker: &Broker, arguments: &[&str], input: &str) -> String {
    use std::io::Write;
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
    assert!(output.status.success(), "kcat {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
