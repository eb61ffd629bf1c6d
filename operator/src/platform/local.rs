//! Local processes as a platform: one child process per broker, its data under a folder.
//!
//! ```text
//! DIR/.lock                            one `letterbox up` per folder
//! DIR/CLUSTER/ports.json               which ports its brokers have (`platform/ports.rs`)
//! DIR/CLUSTER/broker-ID/server.properties, broker.log (and broker.log.1 of the run before), pid
//! DIR/CLUSTER/broker-ID/data/          log.dirs: one folder for each of spec.storage.volumes
//! ```
//! Everything listens on 127.0.0.1.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use kube::ResourceExt as _;
use letterbox_env::{BoxFuture, Env, FileRef, OpenMode};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::ports::{self, ClusterPorts};
use super::{Live, Platform};
use crate::admin::{MayEnd, give_back, reserve};
use crate::api::KafkaCluster;
use crate::desired::{
    Address, Blueprint, Broker, BrokerFacts, Facts, Host, POOL, VolumePlace, broker_ids,
    volume_names,
};
use crate::observe::{Compared, Difference, Observed, ObservedBroker, Run};
use crate::plan::Step;
use crate::status::Fault;

const HOST: &str = "127.0.0.1";
/// Whose its restart leases are: one of each cluster at a time.
const HOLDER: &str = "letterbox-up";
/// How long a broker may take to end before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// The longest pause before a crashed broker is started again.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// What a broker ends with when it refuses its configuration: trying again cannot help (EX_CONFIG
/// of sysexits.h).
pub const CONFIGURATION_REFUSED: u8 = 78;
/// What a broker ends with when it cannot listen on a port (EX_UNAVAILABLE).
pub const PORT_TAKEN: u8 = 69;
/// How much of the end of a broker's log is read for its last words, in bytes.
const LOG_TAIL: u64 = 4096;
/// A broker that ran this long starts again at once.
const STEADY: Duration = Duration::from_secs(60);

/// The processes of `letterbox up`.
pub struct Local {
    env: Env,
    dir: PathBuf,
    /// The binary that is run as `BINARY broker --config FILE`.
    binary: PathBuf,
    ports: std::sync::Mutex<BTreeMap<String, ClusterPorts>>,
    brokers: Mutex<BTreeMap<(String, i32), Managed>>,
}

#[derive(Default)]
struct Managed {
    child: Option<Child>,
    revision: String,
    started: Option<Instant>,
    failures: u32,
    retry_at: Option<Instant>,
    /// How long it is left alone before that.
    pause: Duration,
    last_words: String,
    /// Whether it refused its configuration: it is not started again before that changes.
    refused: bool,
    /// Whether it ended because another process has a port of it.
    lacks_port: bool,
}

/// What was seen of one cluster's processes.
#[derive(Clone, Debug, Default)]
pub struct LocalLive {
    dir: PathBuf,
    ports: ClusterPorts,
    brokers: BTreeMap<i32, Seen>,
}

#[derive(Clone, Debug)]
struct Seen {
    revision: String,
    run: Run,
    /// Whether it should be started (again) now.
    start: bool,
}

impl Local {
    /// Processes of `binary` with their data under `dir`.
    #[must_use]
    pub fn new(env: Env, dir: PathBuf, binary: PathBuf) -> Self {
        Self { env, dir, binary, ports: std::sync::Mutex::default(), brokers: Mutex::default() }
    }

    /// Gives the brokers of `clusters` their ports, which they have from the next pass on.
    ///
    /// # Errors
    /// As [`ports::place`].
    pub async fn place(&self, clusters: &[KafkaCluster], first: u16) -> Result<(), String> {
        let (env, dir, clusters) = (self.env.clone(), self.dir.clone(), clusters.to_vec());
        let placed = move || ports::place(&env, &dir, &clusters, first);
        let placed = self.env.blocking(placed).await?;
        *self.ports.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = placed;
        Ok(())
    }

    /// The ports of the brokers of `cluster`.
    pub fn ports_of(&self, cluster: &str) -> ClusterPorts {
        self.ports
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .get(cluster)
            .cloned()
            .unwrap_or_default()
    }

    /// Ends the brokers of every cluster that is not in `keep`: asks, waits, and kills what does
    /// not end in time. Their data stays.
    pub async fn stop_all_but(&self, keep: &[String]) {
        let mut brokers = self.brokers.lock().await;
        let gone: Vec<(String, i32)> =
            brokers.keys().filter(|(cluster, _)| !keep.contains(cluster)).cloned().collect();
        let stops = brokers
            .iter_mut()
            .filter(|(key, _)| gone.contains(key))
            .filter_map(|(_, broker)| broker.child.as_mut())
            .map(stop);
        futures::future::join_all(stops).await;
        brokers.retain(|key, _| !gone.contains(key));
    }

    /// Kills every broker at once: for a second Ctrl-C.
    pub async fn kill_all(&self) {
        for child in
            self.brokers.lock().await.values_mut().filter_map(|broker| broker.child.as_mut())
        {
            // It may have ended already.
            let _ = child.kill().await;
        }
    }

    async fn start(
        &self,
        desired: &Blueprint,
        broker: &Broker,
        managed: &mut Managed,
    ) -> Result<(), Fault> {
        let dir = self.dir.join(&desired.name).join(format!("{POOL}-{}", broker.id));
        let tell = |what: &str, error: std::io::Error| Fault {
            reason: "StartFailed".to_owned(),
            message: format!("{what} in {}: {error}", dir.display()),
        };
        let file = dir.join("server.properties");
        let prepared: std::io::Result<FileRef> = self
            .env
            .blocking({
                let (env, dir, file, properties) =
                    (self.env.clone(), dir.clone(), file.clone(), broker.config.properties.clone());
                move || {
                    env.disk.create_dir_all(&dir)?;
                    env.disk.write_atomically(&file, properties.as_bytes())?;
                    let log = dir.join("broker.log");
                    if env.disk.exists(&log)? {
                        env.disk.rename(&log, &dir.join("broker.log.1"))?;
                    }
                    env.disk.open(&log, OpenMode::Truncate)
                }
            })
            .await;
        let log = prepared.map_err(|error| tell("write the configuration", error))?;
        self.end_leftover(&dir, &file).await?;
        let output = || -> std::io::Result<Stdio> {
            let descriptor = log.as_fd().ok_or(std::io::ErrorKind::Unsupported)?;
            Ok(Stdio::from(descriptor.try_clone_to_owned()?))
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "this platform is processes; the simulated one is sim/tests/platform"
        )]
        let mut command = Command::new(&self.binary);
        command.arg("broker").arg("--config").arg(&file).stdin(Stdio::null());
        command
            .stdout(output().map_err(|error| tell("open the log", error))?)
            .stderr(output().map_err(|error| tell("open the log", error))?);
        // Ctrl-C reaches only us: brokers are ended in order.
        command.process_group(0);
        let child = command.spawn().map_err(|error| tell("start the broker", error))?;
        let pid = child.id();
        // Before anything is awaited: a pass that is given up must not lose a process.
        managed.child = Some(child);
        managed.started = Some(Instant::now());
        if let Some(pid) = pid {
            let (env, path) = (self.env.clone(), dir.join("pid"));
            let written = self
                .env
                .blocking(move || env.disk.write_atomically(&path, pid.to_string().as_bytes()))
                .await;
            written.map_err(|error| tell("write the process id", error))?;
        }
        Ok(())
    }

    /// Ends a broker that an earlier `letterbox up` left behind when it was killed.
    async fn end_leftover(&self, dir: &Path, file: &Path) -> Result<(), Fault> {
        let (env, path, file) = (self.env.clone(), dir.join("pid"), file.to_owned());
        let leftover = move || {
            let pid: i32 =
                String::from_utf8(env.disk.read(&path).ok()?).ok()?.trim().parse().ok()?;
            let arguments = read_proc(&env, &PathBuf::from(format!("/proc/{pid}/cmdline")))?;
            let is_ours = arguments
                .split(|byte| *byte == 0)
                .any(|argument| argument == file.as_os_str().as_encoded_bytes());
            is_ours.then_some(pid)
        };
        let Some(pid) = self.env.blocking(leftover).await.and_then(Pid::from_raw) else {
            return Ok(());
        };
        tracing::warn!(
            pid = pid.as_raw_nonzero(),
            "stopping a broker that an earlier run left behind"
        );
        let deadline = Instant::now() + STOP_DEADLINE;
        // It may have ended already.
        let _ = rustix::process::kill_process(pid, Signal::TERM);
        while rustix::process::test_kill_process(pid).is_ok() {
            if Instant::now() >= deadline {
                return Err(Fault {
                    reason: "LeftoverBroker".to_owned(),
                    message: format!(
                        "process {} of an earlier run does not end; end it, then this goes on by \
                         itself",
                        pid.as_raw_nonzero()
                    ),
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Whether `/readyz` answers with 200.
    async fn is_ready(&self, port: u16) -> bool {
        let ask = async {
            let mut stream = self.env.net.connect(HOST, port).await?;
            stream
                .write_all(
                    format!("GET /readyz HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")
                        .as_bytes(),
                )
                .await?;
            let mut status = [0; 12];
            stream.read_exact(&mut status).await?;
            std::io::Result::Ok(status.ends_with(b" 200"))
        };
        matches!(tokio::time::timeout(Duration::from_secs(1), ask).await, Ok(Ok(true)))
    }

    /// What the first broker says that refused its configuration; `None` when none did.
    pub async fn refused(&self) -> Option<String> {
        let brokers = self.brokers.lock().await;
        let refused = brokers.iter().find(|(_, broker)| broker.refused);
        refused.map(|((cluster, id), broker)| {
            format!("{cluster}: broker {id} refuses its configuration: {}", broker.last_words)
        })
    }

    async fn last_words(&self, cluster: &str, id: i32) -> String {
        let tail = self.log_tail(cluster, id).await;
        tail.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
    }

    /// Why a broker does not take its configuration: it may be several lines.
    async fn refusal(&self, cluster: &str, id: i32) -> String {
        let tail = self.log_tail(cluster, id).await;
        super::sentence_of(&tail).to_owned()
    }

    async fn log_tail(&self, cluster: &str, id: i32) -> String {
        let (env, path) = (
            self.env.clone(),
            self.dir.join(cluster).join(format!("{POOL}-{id}")).join("broker.log"),
        );
        let tail = move || -> std::io::Result<String> {
            let file = env.disk.open(&path, OpenMode::Read)?;
            let len = file.len()?;
            let mut tail = vec![0; usize::try_from(len.min(LOG_TAIL)).unwrap_or_default()];
            let read = file.read_at(&mut tail, len.saturating_sub(LOG_TAIL))?;
            tail.truncate(read);
            Ok(String::from_utf8_lossy(&tail).into_owned())
        };
        self.env.blocking(tail).await.unwrap_or_default()
    }

    /// Looks at one broker; notices its end.
    async fn look(&self, cluster: &str, id: i32, broker: &mut Managed, admin: u16) -> Seen {
        let seen = |run, start, broker: &Managed| {
            let revision = broker.revision.clone();
            Seen { revision, run, start }
        };
        let Some(child) = &mut broker.child else {
            if broker.refused {
                return seen(broker.exited(), false, broker);
            }
            let start = broker.retry_at.is_none_or(|at| Instant::now() >= at);
            let run = if broker.retry_at.is_some() { broker.exited() } else { Run::Absent };
            return seen(run, start, broker);
        };
        match child.try_wait() {
            Ok(None) => {
                let run = if self.is_ready(admin).await {
                    Run::Ready
                } else {
                    Run::Starting("it runs and is not ready yet".to_owned())
                };
                seen(run, false, broker)
            }
            Ok(Some(status)) => {
                broker.child = None;
                if status.code() == Some(i32::from(CONFIGURATION_REFUSED)) {
                    (broker.refused, broker.last_words) = (true, self.refusal(cluster, id).await);
                    return seen(broker.exited(), false, broker);
                }
                broker.lacks_port = status.code() == Some(i32::from(PORT_TAKEN));
                broker.last_words = format!("{status}: {}", self.last_words(cluster, id).await);
                let steady = broker.started.is_some_and(|at| at.elapsed() >= STEADY);
                broker.failures = if steady { 1 } else { broker.failures.saturating_add(1) };
                broker.retry_after(back_off(broker.failures));
                seen(broker.exited(), false, broker)
            }
            Err(error) => seen(
                Run::Failing { reason: "Unknown".to_owned(), message: error.to_string() },
                false,
                broker,
            ),
        }
    }
}

impl Managed {
    fn retry_after(&mut self, pause: Duration) {
        (self.pause, self.retry_at) = (pause, Some(Instant::now() + pause));
    }

    /// The same words until it is started again: where lines are printed, not bars, each is printed
    /// once.
    fn exited(&self) -> Run {
        if self.refused {
            return Run::Failing {
                reason: "ConfigurationRefused".to_owned(),
                message: self.last_words.clone(),
            };
        }
        let seconds = self.pause.as_secs_f32();
        // What the broker's own words cannot know: here a flag gives the ports.
        let hint = if self.lacks_port { " (--port N gives all brokers other ports)" } else { "" };
        Run::Failing {
            reason: "Exited".to_owned(),
            message: format!("{}{hint}; started again after {seconds} s", self.last_words),
        }
    }
}

/// How long a broker that ended `failures` times in a row is left alone.
fn back_off(failures: u32) -> Duration {
    Duration::from_millis(500)
        .saturating_mul(1 << failures.saturating_sub(1).min(6))
        .min(BACK_OFF_MAX)
}

/// A file of /proc, whose length is not told.
fn read_proc(env: &Env, path: &Path) -> Option<Vec<u8>> {
    let file = env.disk.open(path, OpenMode::Read).ok()?;
    let mut bytes = vec![0; 16 << 10];
    let read = file.read_at(&mut bytes, 0).ok()?;
    bytes.truncate(read);
    Some(bytes)
}

/// Asks a child to end, waits, and kills it when it does not.
async fn stop(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
        // It may have ended already.
        let _ = rustix::process::kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(STOP_DEADLINE, child.wait()).await.is_err() {
        tracing::warn!(
            "a broker did not end within {} s and is killed; it recovers its log when it starts",
            STOP_DEADLINE.as_secs()
        );
        let _ = child.kill().await;
    }
}

impl Platform for Local {
    type Live = LocalLive;

    fn read<'a>(&'a self, cluster: &'a KafkaCluster) -> BoxFuture<'a, Result<LocalLive, Fault>> {
        Box::pin(async move {
            let name = cluster.name_any();
            let ports = self.ports_of(&name);
            let mut brokers = self.brokers.lock().await;
            for id in broker_ids(cluster) {
                brokers.entry((name.clone(), id)).or_default();
            }
            // Side by side: one that does not answer holds up the look at no other.
            let of_cluster = brokers.iter_mut().filter(|((of, _), _)| *of == name);
            let looks = of_cluster.map(|((name, id), broker)| {
                let admin = ports.brokers.get(id).map_or(0, |ports| ports.admin);
                async move { (*id, self.look(name, *id, broker, admin).await) }
            });
            let looked = futures::future::join_all(looks).await.into_iter().collect();
            drop(brokers);
            Ok(LocalLive { dir: self.dir.join(&name), ports, brokers: looked })
        })
    }

    fn reserve<'a>(&'a self, live: &'a LocalLive, broker: i32) -> BoxFuture<'a, MayEnd> {
        Box::pin(reserve(&self.env, (HOST, live.admin_of(broker)), HOLDER, broker))
    }

    fn give_back<'a>(&'a self, live: &'a LocalLive, broker: i32) -> BoxFuture<'a, ()> {
        Box::pin(give_back(&self.env, (HOST, live.admin_of(broker)), HOLDER))
    }

    fn may_end<'a>(&'a self, _: &'a LocalLive, _: i32) -> BoxFuture<'a, MayEnd> {
        Box::pin(std::future::ready(MayEnd::Yes))
    }

    fn act<'a>(
        &'a self,
        desired: &'a Blueprint,
        _: &'a LocalLive,
        step: &'a Step,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            // Only brokers are observed here: no other step is planned.
            let Step::ApplyBroker { broker: id, .. } = step else { return Ok(()) };
            let Some(broker) = desired.brokers.get(id) else { return Ok(()) };
            let config = &broker.config;
            let mut brokers = self.brokers.lock().await;
            let managed = brokers.entry((desired.name.clone(), *id)).or_default();
            if let Some(old) = &mut managed.child {
                stop(old).await;
            }
            managed.child = None;
            if managed.revision != config.revision {
                managed.failures = 0;
            }
            managed.revision.clone_from(&config.revision);
            managed.retry_at = None;
            managed.refused = false;
            let started = self.start(desired, broker, managed).await;
            if let Err(fault) = &started {
                managed.last_words.clone_from(&fault.message);
                managed.retry_after(BACK_OFF_MAX);
            }
            started
        })
    }
}

impl LocalLive {
    fn admin_of(&self, broker: i32) -> u16 {
        self.ports.brokers.get(&broker).map_or(0, |ports| ports.admin)
    }
}

impl Live for LocalLive {
    fn facts(&self, cluster: &KafkaCluster) -> Facts {
        let local = |port: u16| (HOST.to_owned(), port);
        let brokers = broker_ids(cluster).map(|id| {
            let address =
                |port: u16| Some(Address { host: Host::Named("localhost".to_owned()), port });
            let ports = self.ports.brokers.get(&id).cloned().unwrap_or_default();
            let clients = &ports.clients;
            let facts = BrokerFacts {
                volumes: volume_names(cluster, id, [])
                    .into_iter()
                    .map(|name| {
                        let dir = self.dir.join(format!("{POOL}-{id}")).join(&name);
                        VolumePlace { name, log_dir: dir.to_string_lossy().into_owned() }
                    })
                    .collect(),
                bind: clients.iter().map(|(name, port)| (name.clone(), local(*port))).collect(),
                advertised: clients
                    .iter()
                    .map(|(name, port)| (name.clone(), address(*port)))
                    .collect(),
                quorum: local(ports.controller),
                quorum_bind: local(ports.controller),
                admin_bind: Some(local(ports.admin)),
                directory_ids: Vec::new(),
                given_up: Vec::new(),
                begins_anew: None,
                claim_templates: None,
            };
            (id, facts)
        });
        Facts {
            image: format!("letterbox:{}", env!("CARGO_PKG_VERSION")),
            cluster_id: None,
            brokers: brokers.collect(),
        }
    }

    fn observe(&self, desired: &Blueprint) -> Observed {
        let brokers = desired.brokers.iter().map(|(&id, broker)| {
            let Some(seen) = self.brokers.get(&id) else { return (id, ObservedBroker::default()) };
            let differs = broker.config.revision != seen.revision;
            let mut definition = Compared::default();
            if seen.start {
                definition.missing.push("process".to_owned());
            } else if differs {
                definition.differs.push(Difference {
                    what: "configuration".to_owned(),
                    is_of_spec: true,
                    is_fixed: false,
                });
            }
            let image = (seen.run == Run::Ready).then(|| desired.image.clone());
            let is_current = !differs && seen.run == Run::Ready;
            let run = seen.run.clone();
            (
                id,
                ObservedBroker {
                    definition,
                    run,
                    is_current,
                    is_newest: is_current,
                    to_end: None,
                    volumes: BTreeMap::new(),
                    mounts: BTreeSet::new(),
                    defined: BTreeSet::new(),
                    fixed: Vec::new(),
                    is_removed: false,
                    identity: None,
                    image,
                    is_image_left: false,
                    held_back: None,
                },
            )
        });
        let mut bootstrap: BTreeMap<String, String> = BTreeMap::new();
        for (name, port) in self.ports.brokers.values().flat_map(|broker| &broker.clients) {
            let servers = bootstrap.entry(name.clone()).or_default();
            let comma = if servers.is_empty() { "" } else { "," };
            servers.push_str(&format!("{comma}localhost:{port}"));
        }
        Observed { brokers: brokers.collect(), bootstrap, ..Observed::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_keeps_ending_is_started_less_and_less_often() {
        for (failures, seconds) in
            [(0, 0.5), (1, 0.5), (2, 1.0), (4, 4.0), (u32::MAX, BACK_OFF_MAX.as_secs_f32())]
        {
            assert_eq!(back_off(failures).as_secs_f32(), seconds, "{failures}");
        }
    }
}
