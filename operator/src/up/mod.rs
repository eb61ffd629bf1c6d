//! `letterbox up FILE.yaml`: the clusters and topics of a file as local processes, through the same
//! planner.
//!
//! - The file is read again once a second; a change is reconciled, an invalid change is told and
//!   waits for the next edit.
//! - A cluster has one broker or three. Its brokers keep their ports and their number
//!   ([`crate::platform::ports`]); a topic is made when it has a broker for each replica.
//! - Data is never deleted: a cluster that leaves the file is stopped, a topic that leaves it
//!   stays, whatever the `deletionPolicy` says. Remove the folder to remove the data.
//! - `image`, `version`, `resources`, the volume's size and class, and node ports mean nothing to a
//!   local process.
//! - Ctrl-C or SIGTERM drains: brokers are asked to end and waited for. A second Ctrl-C kills them.

mod file;
mod home;
mod say;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use letterbox_env::Env;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::admin::{AdminError, ClientAdmin, KafkaAdmin};
use crate::api::{KafkaTopic, READY, find_condition};
use crate::plan::{BrokerCount, ClusterState, TopicFacts};
use crate::platform::local::Local;
use crate::reconcile::{reconcile_cluster, reconcile_topic};
use file::Documents;
use home::LocalHome;
use say::Say;

/// What `letterbox up` was asked for.
#[derive(Clone, Debug)]
pub struct UpOptions {
    /// The file: `KafkaCluster` and `KafkaTopic` documents, as `kubectl apply` takes them.
    pub file: PathBuf,
    /// The folder that data is kept under.
    pub data: PathBuf,
    /// The first client port.
    pub port: u16,
}

/// How often the file and the brokers are looked at when nothing is going on.
const IDLE: Duration = Duration::from_secs(1);
/// How often brokers are looked at while something is waited for.
const BUSY: Duration = Duration::from_millis(50);
/// How often a settled topic is compared with the cluster.
const TOPIC_RESYNC: Duration = Duration::from_secs(30);
/// How often in a row the file cannot be read before that is told.
const UNREAD_MAX: u32 = 3;
/// How long one admin call may take, retries included.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the file until Ctrl-C or SIGTERM; the result is the exit code.
///
/// # Errors
/// When the file cannot be read or is not valid at the start, when a broker refuses its settings
/// then, or when the folder is in use.
pub async fn up(options: UpOptions) -> anyhow::Result<i32> {
    let env = Env::real();
    let binary = std::env::current_exe().context("find this program's own file")?;
    up_in(env, options, binary).await
}

/// As [`up`], with another binary for the brokers.
///
/// # Errors
/// As [`up`].
pub async fn up_in(env: Env, options: UpOptions, binary: PathBuf) -> anyhow::Result<i32> {
    // Before the first broker starts, so that no signal finds us without a handler.
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let documents = file::read(&env, &options.file).await?;
    let dir = absolute(&options.data)?;
    let _lock = lock(&env, &dir).await?;
    let home = LocalHome::open(env.clone(), dir.join("topics.json")).await?;
    let local = Local::new(env.clone(), dir, binary);
    let mut run = Run {
        env,
        options,
        local,
        home,
        documents: Documents::default(),
        text: String::new(),
        unread: 0,
        admins: BTreeMap::new(),
        topics_at: BTreeMap::new(),
        say: Say::new(),
    };
    run.take(documents).await?;
    run.say.notes(&run.documents);

    let refused = tokio::select! {
        biased;
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        refused = run.keep_going() => Some(refused),
    };
    run.say.stopping();
    tokio::select! {
        biased;
        _ = interrupt.recv() => run.local.kill_all().await,
        () = run.local.stop_all_but(&[]) => {}
    }
    run.say.stopped();
    match refused {
        Some(refused) => anyhow::bail!("{}: {refused}", run.options.file.display()),
        None => Ok(0),
    }
}

struct Run {
    env: Env,
    options: UpOptions,
    local: Local,
    home: LocalHome,
    documents: Documents,
    /// The file as it was last read, valid or not.
    text: String,
    /// How often it could not be read since.
    unread: u32,
    admins: BTreeMap<String, ClientAdmin>,
    /// When each topic was last found as it should be.
    topics_at: BTreeMap<String, Instant>,
    say: Say,
}

impl Run {
    /// Goes on until a broker refuses its configuration before everything was ready once; returns
    /// what it said. Later, the refusal of an edited file is told, and waits for the next edit.
    async fn keep_going(&mut self) -> String {
        let (mut file_at, mut was_ready) = (Instant::now(), false);
        loop {
            if file_at.elapsed() >= IDLE {
                file_at = Instant::now();
                self.reread().await;
            }
            let settled = self.pass().await;
            was_ready |= settled;
            if let Some(refused) = self.local.refused().await.filter(|_| !was_ready) {
                return refused;
            }
            tokio::time::sleep(if settled { IDLE } else { BUSY }).await;
        }
    }

    /// Takes up an edited file; an invalid one is told and the old one stays.
    async fn reread(&mut self) {
        let text = match file::text(&self.env, &self.options.file).await {
            Ok(text) => text,
            Err(error) => {
                self.unread = self.unread.saturating_add(1);
                // An editor may be about to put it there.
                if self.unread == UNREAD_MAX {
                    self.not_applied(&error);
                }
                return;
            }
        };
        self.unread = 0;
        if text == self.text {
            return;
        }
        let taken = match file::parse(&text) {
            Ok(documents) => self.take(documents).await,
            Err(error) => Err(error),
        };
        self.text = text;
        match taken {
            Ok(()) => {
                self.say.line(&format!("{} has changed", self.options.file.display()));
                self.say.notes(&self.documents);
            }
            Err(error) => self.not_applied(&error),
        }
    }

    fn not_applied(&self, error: &anyhow::Error) {
        self.say.line(&format!(
            "the change of {} is not applied: {error:#}",
            self.options.file.display()
        ));
    }

    async fn take(&mut self, mut documents: Documents) -> anyhow::Result<()> {
        let placed = self.local.place(&documents.clusters, self.options.port).await;
        placed.map_err(anyhow::Error::msg)?;
        for cluster in &mut documents.clusters {
            let name = cluster.name_any();
            cluster.status = self
                .documents
                .clusters
                .iter()
                .find(|old| old.name_any() == name)
                .and_then(|old| old.status.clone());
        }
        self.text.clone_from(&documents.text);
        self.admins.clear();
        self.topics_at.clear();
        self.documents = documents;
        Ok(())
    }

    /// Whether nothing is left to do or wait for.
    async fn pass(&mut self) -> bool {
        let now = Time(
            Timestamp::from_millisecond(self.env.clock.wall_ms()).unwrap_or(Timestamp::UNIX_EPOCH),
        );
        let names: Vec<String> =
            self.documents.clusters.iter().map(kube::ResourceExt::name_any).collect();
        self.local.stop_all_but(&names).await;
        let mut settled = true;
        for cluster in &mut self.documents.clusters {
            let name = cluster.name_any();
            let status = cluster.status.as_ref();
            let asks_id = status
                .is_some_and(|status| status.ready_replicas > 0 && status.cluster_id.is_none());
            let admin =
                self.admins.get(&name).filter(|_| asks_id).map(|admin| admin as &dyn KafkaAdmin);
            match reconcile_cluster(&self.local, cluster, admin, &now).await {
                Ok(pass) => {
                    settled &= pass.is_settled();
                    self.say.cluster(cluster, &pass.status);
                    if let Some(listener) =
                        pass.status.listeners.first().filter(|_| !self.admins.contains_key(&name))
                    {
                        let servers = listener.bootstrap_servers.clone();
                        self.admins.insert(
                            name,
                            ClientAdmin::new(self.env.clone(), servers, CALL_TIMEOUT),
                        );
                    }
                    cluster.status = Some(pass.status);
                }
                Err(fault) => {
                    settled = false;
                    self.say.line(&format!("{name}: {}: {}", fault.reason, fault.message));
                }
            }
        }
        for index in 0..self.documents.topics.len() {
            settled &= self.pass_topic(index, &now).await;
        }
        if settled {
            self.say.ready(&self.documents, |cluster| self.local.ports_of(cluster));
        }
        settled
    }

    async fn pass_topic(&mut self, index: usize, now: &Time) -> bool {
        let Some(topic) = self.documents.topics.get(index) else { return true };
        let name = topic.name_any();
        if self.topics_at.get(&name).is_some_and(|at| at.elapsed() < TOPIC_RESYNC) {
            return true;
        }
        let mut topic: KafkaTopic = topic.clone();
        topic.status = self.home.status(&topic).await;
        let cluster = self.documents.cluster_of(&topic);
        let mut state = ClusterState::of(cluster, now);
        let Some(admin) = self.admins.get(&topic.spec.cluster_ref.name) else {
            self.say.topic(&topic, None, &crate::plan::TopicWait::Cluster(state).to_string());
            return cluster.is_none();
        };
        let mut live = None;
        if state == ClusterState::Ready {
            match admin.describe_topic(&topic.kafka_name()).await {
                Ok(seen) => live = seen,
                Err(AdminError::Unreachable(why)) => state = ClusterState::Unreachable(why),
                Err(error) => state = ClusterState::Unreachable(error.to_string()),
            }
        }
        let facts = TopicFacts {
            may_come: false,
            cluster: state,
            topic: live,
            other_owner: None,
            namespace_terminating: false,
            brokers: cluster.map(BrokerCount::of),
        };
        match reconcile_topic(&self.home, admin, &topic, &facts, now).await {
            Ok(pass) => {
                let ready = find_condition(&pass.status.conditions, READY);
                let message = ready.map(|ready| ready.message.clone()).unwrap_or_default();
                self.say.topic(&topic, Some(&pass), &message);
                // The broker that was asked last may not know yet what another one has made.
                let is_seen = pass.status.partitions.is_some();
                let settled = pass.fault.is_none() && pass.plan.wait.is_none() && is_seen;
                // What was refused or failed is looked at again later, not at once: it may take an
                // edit.
                let is_over = settled || pass.plan.wait.is_none() && pass.fault.is_some();
                if is_over {
                    self.topics_at.insert(name, Instant::now());
                }
                is_over
            }
            Err(fault) => {
                self.say.topic(&topic, None, &fault.message);
                false
            }
        }
    }
}

fn absolute(path: &std::path::Path) -> anyhow::Result<PathBuf> {
    Ok(std::env::current_dir().context("find the current folder")?.join(path))
}

async fn lock(env: &Env, dir: &std::path::Path) -> anyhow::Result<letterbox_env::FileRef> {
    let (own, dir) = (env.clone(), dir.to_owned());
    let shown = dir.display().to_string();
    let locked = env.blocking(move || {
        own.disk.create_dir_all(&dir)?;
        own.disk.lock(&dir.join(".lock"))
    });
    match locked.await {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            anyhow::bail!(
                "another letterbox up uses {shown}; end it, or give another folder with --data"
            )
        }
        result => result.with_context(|| format!("use the folder {shown}")),
    }
}
