//! What the tests of the broker under simulation share: its start, and the log of a failing run.
#![allow(dead_code, reason = "not every test program uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::protocol::StrBytes;
use letterbox_broker::config::Config;
use letterbox_broker::metadata::decide::{ConfigRules, ConfigScope};
use letterbox_broker::node::Node;
use letterbox_broker::quorum::QuorumStatus;
use letterbox_env::{BoxStream, Env};
use letterbox_protocol::model::BrokerId;
use letterbox_protocol::{Request, Response, decode_response, encode_request};
use letterbox_sim::check::{Checker, Demands};
use letterbox_sim::cluster::{Cluster, Exit, Process};
use letterbox_sim::history::{Action, Event, History, Phase};
use letterbox_sim::workload;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;

/// The name of the one broker's machine. It listens on port 9092.
pub(crate) const BROKER: &str = "broker-0";
/// Its `log.dirs`, unless a test says otherwise.
pub(crate) const DATA: &str = "/var/lib/letterbox";

/// The software of the broker's machine: a broker and controller with `more` lines of
/// configuration, until it is asked to stop or gives up.
pub(crate) fn broker(
    more: &str,
) -> impl Fn(Process) -> std::pin::Pin<Box<dyn Future<Output = Exit>>> + 'static {
    let text = format!(
        "process.roles=broker,controller\nnode.id=0\ncontroller.quorum.voters=0@{BROKER}:9093\ncontroller.listener.names=CONTROLLER\n\
         listeners=PLAINTEXT://:9092,CONTROLLER://:9093\nadvertised.listeners=PLAINTEXT://{BROKER}:9092\n{}\
         admin.listener=none\noffsets.topic.num.partitions=2\noffsets.topic.replication.factor=1\n{more}\n",
        if more.contains("log.dirs=") { String::new() } else { format!("log.dirs={DATA}\n") },
    );
    move |process| Box::pin(run(process, text.clone()))
}

/// The machines of a cluster of three. Each listens on port 9092, and on 9093 for the others.
pub(crate) const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];

/// The software of the machine `NODES[id - 1]`: a broker and controller, whose topics have one
/// replica unless they ask for more.
pub(crate) fn node(
    id: usize,
) -> impl Fn(Process) -> std::pin::Pin<Box<dyn Future<Output = Exit>>> + 'static {
    node_with(id, "offsets.topic.replication.factor=1")
}

/// As [`node`], with `more` lines of configuration.
pub(crate) fn node_with(
    id: usize,
    more: &str,
) -> impl Fn(Process) -> std::pin::Pin<Box<dyn Future<Output = Exit>>> + use<> {
    let voters: Vec<_> = (1..).zip(NODES).map(|(id, name)| format!("{id}@{name}:9093")).collect();
    let text = format!(
        "process.roles=broker,controller\nnode.id={id}\ncontroller.quorum.voters={}\n\
         controller.listener.names=CONTROLLER\nlisteners=PLAINTEXT://:9092,CONTROLLER://:9093\n\
         advertised.listeners=PLAINTEXT://{}:9092\n{}admin.listener=none\n\
         broker.session.timeout.ms=3000\n\
         broker.heartbeat.interval.ms=500\ngroup.initial.rebalance.delay.ms=0\n\
         offsets.topic.num.partitions=3\n{more}\n",
        voters.join(","),
        NODES[id - 1],
        if more.contains("log.dirs=") { String::new() } else { format!("log.dirs={DATA}\n") },
    );
    move |process| Box::pin(run(process, text.clone()))
}

/// The software of node `id` on the machine `host`, which joins the cluster of [`NODES`] and observes.
pub(crate) fn observer(
    id: i32,
    host: &str,
) -> impl Fn(Process) -> std::pin::Pin<Box<dyn Future<Output = Exit>>> + 'static {
    let servers = NODES.map(|name| format!("{name}:9093")).join(",");
    let text = format!(
        "process.roles=broker,controller\nnode.id={id}\n\
         controller.quorum.bootstrap.servers={servers}\n\
         controller.listener.names=CONTROLLER\nlisteners=PLAINTEXT://:9092,CONTROLLER://:9093\n\
         advertised.listeners=PLAINTEXT://{host}:9092\nlog.dirs={DATA}\nadmin.listener=none\n\
         broker.session.timeout.ms=3000\n\
         broker.heartbeat.interval.ms=500\noffsets.topic.num.partitions=3\n\
         offsets.topic.replication.factor=1\n",
    );
    move |process| Box::pin(run(process, text.clone()))
}

/// For quorums without brokers: every key is allowed, none is a list.
pub(crate) struct AnyConfig;

impl ConfigRules for AnyConfig {
    fn validate(&self, _: ConfigScope, _: &str, _: Option<&str>) -> Result<(), String> {
        Ok(())
    }

    fn list_default(&self, _: ConfigScope, _: &str) -> Option<String> {
        None
    }
}

/// Notes whether the node `id` leads by its own `status`: in each term one does.
pub(crate) fn note_leader(leaders: &mut BTreeMap<u64, i32>, status: &QuorumStatus, id: i32) {
    if status.leader == Some(BrokerId(id)) {
        let before = leaders.insert(status.term, id);
        assert!(before.is_none_or(|before| before == id), "two leaders in {}", status.term);
    }
}

/// How long a cluster may take for anything that nothing is in the way of.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The topic of [`Clients`], and how many partitions it has.
pub(crate) const TOPIC: &str = "orders";
pub(crate) const PARTITIONS: i32 = 3;

/// Two producers, a reader and a member of a group, over all [`NODES`], and what they have seen.
#[derive(Clone, Default)]
pub(crate) struct Clients {
    pub(crate) history: History,
    stop: Arc<AtomicBool>,
}

impl Clients {
    /// They make their topic first.
    pub(crate) fn begin(cluster: &mut Cluster) -> Self {
        let this = Self::default();
        let clients = this.clone();
        cluster.client("clients", move |env| async move {
            let load = clients.load(env);
            load.create_topic(BTreeMap::new()).await?;
            tokio::join!(
                workload::producer(load.clone(), 1),
                workload::producer(load.clone(), 2),
                workload::reader(load.clone(), 1),
                workload::member(load.clone(), "readers".to_owned(), 1),
            );
            Ok(())
        });
        this
    }

    fn load(&self, env: Env) -> workload::Load {
        workload::Load {
            env,
            bootstrap: NODES.map(|name| format!("{name}:9092")).to_vec(),
            topic: TOPIC.to_owned(),
            partitions: PARTITIONS,
            history: self.history.clone(),
            stop: Arc::clone(&self.stop),
        }
    }

    pub(crate) fn ask_to_end(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Reads all that is there, after they have ended.
    pub(crate) async fn scan(self, env: Env) -> Result<(), String> {
        let load = workload::Load { stop: Arc::default(), ..self.load(env) };
        workload::scan(&load, "all", PATIENCE).await
    }

    /// Reads all that is there, and has what they have seen judged.
    pub(crate) fn scan_and_check(&self, cluster: &mut Cluster, demands: Demands) {
        let to_scan = self.clone();
        cluster.client("scanner", move |env| to_scan.scan(env));
        assert!(cluster.run_clients(PATIENCE * 2));
        let report = Checker::check(self.history.events(), demands);
        assert!(report.is_clean(), "{report}");
    }

    /// Sends that were acknowledged, and offsets that were committed.
    pub(crate) fn done(&self) -> (usize, usize) {
        let events = self.history.events();
        let of = |is: fn(&Action) -> bool| {
            let all = events.iter().filter(|event| event.phase == Phase::Ok);
            all.filter(|event| is(&event.action)).count()
        };
        let sends = of(|action| matches!(action, Action::Send { .. }));
        (sends, of(|action| matches!(action, Action::Commit { .. })))
    }

    /// Whether they go on within a while.
    pub(crate) fn go_on(&self, cluster: &mut Cluster) -> bool {
        let ((sends, commits), from) = (self.done(), cluster.elapsed());
        while cluster.elapsed() < from + PATIENCE {
            cluster.run_for(Duration::from_millis(500));
            let (sends_now, commits_now) = self.done();
            if sends_now > sends + 100 && commits_now > commits {
                return true;
            }
        }
        false
    }

    pub(crate) fn note_fault(&self, cluster: &Cluster, target: &str, what: &str) {
        let time_ns = u64::try_from(cluster.elapsed().as_nanos()).unwrap();
        let op = self.history.events().len() as u64;
        let action = Action::Fault { what: what.to_owned(), target: target.to_owned() };
        let (process, phase) = ("nemesis".to_owned(), Phase::Ok);
        self.history.push(Event { process, op, phase, time_ns, action, error: None });
    }
}

/// A connection to a node that serves.
pub(crate) async fn connect(env: &Env, name: &str) -> BoxStream {
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
pub(crate) async fn ask(
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

pub(crate) fn name(text: &str) -> m::TopicName {
    m::TopicName(StrBytes::from_string(text.to_owned()))
}

async fn run(process: Process, text: String) -> Exit {
    let config = Config::parse(&text).map_err(|error| error.to_string())?;
    let started = Node::start(process.env.clone(), config, process.stopped()).await;
    let Some(broker) = started.map_err(with_causes)? else { return Ok(()) };
    let fatal = tokio::select! {
        biased;
        () = process.stopped() => None,
        reason = broker.fatal() => Some(reason),
    };
    match fatal {
        Some(reason) => Err(reason),
        None => broker.shutdown().await.map_err(|error| error.to_string()),
    }
}

/// As the program says it, which tells whether it was the disk.
fn with_causes(error: impl Into<anyhow::Error>) -> String {
    format!("{:#}", error.into())
}

/// `RUST_LOG=debug` shows what the broker, the clients and the simulation say.
pub(crate) fn show_log() {
    let level = std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned());
    let filter = letterbox_env::log_filter(&level).unwrap();
    let lines = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .without_time()
        .with_test_writer()
        .finish();
    // Another test of the program may have set it up already.
    let _ = lines.with(filter).try_init();
}
