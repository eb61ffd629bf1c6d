//! [`RaftQuorum`]: [`MetadataQuorum`] on openraft.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use letterbox_env::{BoxFuture, BoxListener, Env, Fault, FileRef, Random, with_causes};
use letterbox_protocol::model::BrokerId;
use openraft::error::{CheckIsLeaderError, ClientWriteError, InitializeError, RaftError};
use openraft::{ServerState, SnapshotPolicy};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::ask::{Asker, Ears};
use super::log_store::LogStore;
use super::network::{Dialer, Identity, Peers, serve};
use super::patience::Patience;
use super::runtime::with_random;
use super::snapshot::Slots;
use super::state_machine::{Published, StateMachine};
use super::types::{Applied, Batch, NodeLogId, Raft, Voter};
use super::wal::{FILE_NAME, Wal, WalError};
use super::{Answering, AskError, Lane, MetadataQuorum, Proposed, QuorumError, QuorumStatus};
use crate::metadata::{MetadataImage, MetadataRecord, Part, cut, record};

/// The most bytes of records in one entry; longer ones are cut into several. So small that a voter
/// far away has an entry on its disk within one heartbeat.
const ENTRY_LEN_MAX: usize = 256 << 10;

/// A snapshot is made after this many entries, or this many bytes of entries: a restart reads no
/// more.
const SNAPSHOT_ENTRIES: u64 = 1000;
const SNAPSHOT_BYTES: u64 = 4 << 20;

/// Entries kept behind a snapshot, so that a voter that is a little behind needs no snapshot.
const ENTRIES_KEPT: u64 = 100;

/// A majority has an entry this soon, or its outcome is not known.
const COMMIT_WITHIN: Duration = Duration::from_secs(10);

/// A sole voter leads this soon, unless its disk is full.
const LEAD_WITHIN: Duration = Duration::from_secs(30);
/// Between two tries of a sole voter whose disk is full.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// How a node takes part.
#[derive(Clone, Debug)]
pub struct QuorumConfig {
    /// `node.id`; not negative.
    pub node_id: i32,
    /// The directory of the metadata log, `…/__cluster_metadata-0`; made when it is not there.
    pub dir: PathBuf,
    /// Every voter with its address (`controller.quorum.voters`); this node is one of them.
    pub voters: BTreeMap<i32, (String, u16)>,
    /// Where this node listens for other voters. Needed when there are any.
    pub listener: Option<(String, u16)>,
    /// The cluster's id. Needed when there are other voters, because it is checked at connect.
    pub cluster_id: Option<String>,
    /// Whether this node is known to have taken part before (partitions lie beside the directory):
    /// a missing log is refused then, instead of begun anew.
    pub must_exist: bool,
    /// Times of heartbeats and elections.
    pub timing: QuorumTiming,
}

/// Times of heartbeats and elections. A slow flush holds up votes and heartbeats, so the election
/// timeout must be well above the slowest flush of the disk.
#[derive(Clone, Copy, Debug)]
pub struct QuorumTiming {
    /// Between two heartbeats of the leader; also the deadline of one replication request.
    pub heartbeat: Duration,
    /// A follower that heard of no leader for this long, and up to twice as long, asks for votes.
    pub election_timeout: Duration,
}

impl Default for QuorumTiming {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            // With the leader's lease, which openraft makes twice as long, there is a new leader
            // within about two seconds.
            election_timeout: Duration::from_millis(500),
        }
    }
}

/// Why the quorum cannot be opened.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum OpenError {
    #[error("metadata quorum: {0}")]
    Config(String),
    #[error("metadata directory {}: cannot be read or written", directory.display())]
    Io {
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("metadata directory {} is in use by another process", directory.display())]
    Locked { directory: PathBuf },
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error("metadata directory {} cannot be used: {reason}", directory.display())]
    Unusable { directory: PathBuf, reason: String },
    #[error(
        "this node is configured for cluster {configured}, but its metadata is of cluster {found}"
    )]
    WrongCluster { configured: String, found: String },
    #[error("cannot listen for other voters on {host}:{port}")]
    Listen {
        host: String,
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error("the metadata quorum did not start")]
    Raft(#[source] Box<dyn Error + Send + Sync>),
}

impl OpenError {
    fn of_raft(error: impl Error + Send + Sync + 'static) -> Self {
        Self::Raft(error.into())
    }

    /// Whether it passes: there is no space, or no descriptor.
    pub(crate) fn is_state(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::Wal(WalError::Io { source, .. }) => {
                Fault::of(source).is_state()
            }
            _ => false,
        }
    }
}

/// This node's part in the quorum.
pub struct RaftQuorum {
    raft: Raft,
    node_id: BrokerId,
    identity: Arc<Identity>,
    published: Published,
    /// By node.
    askers: BTreeMap<BrokerId, Asker>,
    ears: Ears,
    fatal: watch::Receiver<Option<String>>,
    patience: Patience,
    tasks: Mutex<JoinSet<()>>,
    listening: Option<std::net::SocketAddr>,
    env: Env,
    slots: Arc<std::sync::Mutex<Slots>>,
    /// Held until shutdown.
    lock: std::sync::Mutex<Option<FileRef>>,
}

impl RaftQuorum {
    /// Opens the directory and takes part. A sole voter leads, with everything applied, when this
    /// returns; with more voters the first leader is elected later.
    ///
    /// # Errors
    /// [`OpenError`]; each says what to do.
    pub async fn open(env: Env, config: QuorumConfig) -> Result<Arc<Self>, OpenError> {
        let node_id = check_config(&config)?;
        let opened = {
            let (world, config) = (env.clone(), config.clone());
            env.blocking(move || open_directory(&world, &config, node_id)).await?
        };
        let Opened { lock, wal, items, slots, stored, peers } = opened;
        let unusable =
            |reason: String| OpenError::Unusable { directory: config.dir.clone(), reason };
        let incarnation = wal.incarnation();
        let patience = Patience::default();
        let store = LogStore::new(env.clone(), patience.clone(), wal, items).map_err(unusable)?;
        let snapshot_index = stored.as_ref().and_then(|stored| stored.meta.last_log_id);
        if store.purged() > snapshot_index {
            return Err(unusable(
                "the log begins after the newest whole snapshot; restore it from \
                the newest copy"
                    .to_owned(),
            ));
        }
        let published = Published::new();
        let slots = Arc::new(std::sync::Mutex::new(slots));
        let (told, kept) = (published.clone(), Arc::clone(&slots));
        let machine = StateMachine::new(env.clone(), patience.clone(), told, kept, stored)
            .map_err(unusable)?;
        let stopped = patience.stopped();
        let mut tasks = JoinSet::new();
        let cluster_id = config.cluster_id.clone();
        let identity = Arc::new(Identity::new(cluster_id, node_id, incarnation, peers));
        let pristine = store.is_pristine();
        let dialer = Dialer {
            env: env.clone(),
            identity: Arc::clone(&identity),
            voters: Arc::new(voters(&config)),
        };
        let ears = Ears::default();
        let raft =
            start_raft(&env, &config, node_id, dialer.clone(), store.clone(), machine).await?;
        let bound = bind(&env, config.listener.as_ref()).await?;
        let listening = bound.as_ref().map(|(_, address)| *address);
        if let Some((listener, _)) = bound {
            let (raft, identity) = (raft.clone(), Arc::clone(&identity));
            tasks.spawn(serve(listener, raft, identity, ears.clone(), stopped.clone()));
        }
        let (fatal_sender, fatal) = watch::channel(None);
        if config.voters.len() > 1 {
            let (raft, random, stopped) = (raft.clone(), env.random.clone(), stopped.clone());
            let longest = config.timing.election_timeout.saturating_mul(3);
            tasks.spawn(pause_between_elections(raft, random, longest, stopped));
        }
        tasks.spawn(watch_over(raft.clone(), store, fatal_sender, stopped));
        let quorum = Arc::new(Self {
            raft,
            node_id: BrokerId(config.node_id),
            identity,
            published,
            askers: askers(&config, &dialer),
            ears,
            fatal,
            patience,
            tasks: Mutex::new(tasks),
            listening,
            env,
            slots,
            lock: std::sync::Mutex::new(Some(lock)),
        });
        if let Err(error) = quorum.join(&config, pristine).await {
            quorum.shutdown().await;
            return Err(error);
        }
        Ok(quorum)
    }

    async fn join(&self, config: &QuorumConfig, pristine: bool) -> Result<(), OpenError> {
        if pristine {
            match self.raft.initialize(voters(config)).await {
                // Another voter was faster and has already replicated to us.
                Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
                Err(error) => return Err(OpenError::of_raft(error)),
            }
        }
        self.check_voters(config).await?;
        if config.voters.len() > 1 {
            return self.check_cluster(config);
        }
        if self.raft.metrics().borrow().state != ServerState::Leader {
            self.raft.trigger().elect().await.map_err(OpenError::of_raft)?;
        }
        loop {
            let led = self
                .raft
                .wait(Some(LEAD_WITHIN))
                .state(ServerState::Leader, "sole voter leads")
                .await;
            match led {
                Ok(_) => break,
                // The vote waits for space, however long that takes.
                Err(_) if self.patience.waits_for().is_some() => {}
                Err(error) => return Err(OpenError::of_raft(error)),
            }
        }
        loop {
            match self.begin_leading().await {
                Ok(_) => return self.check_cluster(config),
                Err(QuorumError::Waiting { .. } | QuorumError::OutcomeUnknown) => {
                    tokio::time::sleep(RETRY_AFTER).await
                }
                Err(error) => return Err(OpenError::of_raft(error)),
            }
        }
    }

    /// The log says who votes; the configuration must say the same.
    async fn check_voters(&self, config: &QuorumConfig) -> Result<(), OpenError> {
        let waiting = self.raft.wait(None);
        let is_known = waiting.metrics(
            |metrics| metrics.membership_config.voter_ids().next().is_some(),
            "the voters are known",
        );
        is_known.await.map_err(OpenError::of_raft)?;
        let known: Vec<_> = self.status().voters.keys().map(ToString::to_string).collect();
        let configured: Vec<_> = config.voters.keys().map(ToString::to_string).collect();
        if known == configured {
            return Ok(());
        }
        let (known, configured) = (known.join(", "), configured.join(", "));
        Err(OpenError::Config(format!(
            "the voters of this cluster are {known}, and controller.quorum.voters names \
             {configured}; this version does not change voters: write the ones that there are"
        )))
    }

    fn check_cluster(&self, config: &QuorumConfig) -> Result<(), OpenError> {
        match (&config.cluster_id, &self.image().cluster_id) {
            (Some(configured), Some(found)) if **configured != **found => {
                Err(OpenError::WrongCluster {
                    configured: configured.clone(),
                    found: found.to_string(),
                })
            }
            _ => Ok(()),
        }
    }

    /// The id of this node's metadata log; another one after the log was lost.
    #[must_use]
    pub fn incarnation(&self) -> Uuid {
        self.identity.incarnation
    }

    /// How many connections of the quorum were refused because of who the other side is: another
    /// cluster, another node, or a voter that lost its log.
    #[must_use]
    pub fn refused_connections(&self) -> u64 {
        self.identity.refused.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Where this node listens for other voters.
    #[must_use]
    pub fn listening(&self) -> Option<std::net::SocketAddr> {
        self.listening
    }

    /// As [`Self::write_patiently`], but does not wait for space.
    async fn write(&self, batch: Batch) -> Result<(u64, u64), QuorumError> {
        if let Some(reason) = self.patience.waits_for() {
            return Err(QuorumError::Waiting { reason });
        }
        tokio::select! {
            biased;
            written = self.write_patiently(batch) => written,
            () = tokio::time::sleep(COMMIT_WITHIN) => Err(QuorumError::OutcomeUnknown),
            _ = self.patience.until_waiting() => Err(QuorumError::OutcomeUnknown),
        }
    }

    async fn write_patiently(&self, batch: Batch) -> Result<(u64, u64), QuorumError> {
        let led = self.raft.metrics().borrow().state == ServerState::Leader;
        match self.raft.client_write(batch).await {
            Ok(response) => match response.data {
                Applied::Done => Ok((response.log_id.leader_id.term, response.log_id.index)),
                Applied::Outdated => Err(QuorumError::NotLeader { leader: self.status().leader }),
            },
            // openraft answers so both when it did not take the entry and when it lost the lead
            // with the entry in its log.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) if led => {
                Err(QuorumError::OutcomeUnknown)
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(QuorumError::NotLeader { leader: forward.leader_id.and_then(broker_id) })
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(_))) => {
                Err(QuorumError::OutcomeUnknown)
            }
            Err(RaftError::Fatal(fatal)) => Err(has_stopped(&fatal)),
        }
    }

    /// Completes with the reason when no answer of `leader` is waited for any more.
    async fn given_up(&self, leader: BrokerId, deadline: Instant) -> io::Error {
        let mut metrics = self.raft.metrics();
        let another_leads = metrics.wait_for(|metrics| {
            metrics.current_leader.and_then(broker_id).is_some_and(|other| other != leader)
        });
        tokio::select! {
            biased;
            _ = another_leads => io::Error::other("another node leads by now"),
            () = tokio::time::sleep_until(deadline) => io::ErrorKind::TimedOut.into(),
        }
    }
}

async fn start_raft(
    env: &Env,
    config: &QuorumConfig,
    node_id: u64,
    dialer: Dialer,
    store: LogStore,
    machine: StateMachine,
) -> Result<Raft, OpenError> {
    let start = Raft::new(node_id, Arc::new(raft_config(config)?), dialer, store, machine);
    with_random(Some(Arc::clone(&env.random)), start).await.map_err(OpenError::of_raft)
}

/// The listener that other voters connect to, and where it listens.
async fn bind(
    env: &Env,
    at: Option<&(String, u16)>,
) -> Result<Option<(BoxListener, SocketAddr)>, OpenError> {
    let Some((host, port)) = at else { return Ok(None) };
    let failed = |source| OpenError::Listen { host: host.clone(), port: *port, source };
    let listener = env.net.bind(host, *port).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Some((listener, address)))
}

impl MetadataQuorum for RaftQuorum {
    fn propose<'a>(
        &'a self,
        term: u64,
        records: &'a [MetadataRecord],
    ) -> BoxFuture<'a, Result<Proposed, QuorumError>> {
        Box::pin(async move {
            let text = record::encode(records).map_err(|error| has_stopped(&error))?;
            let mut index = 0;
            for (part, text) in cut(&text, ENTRY_LEN_MAX) {
                let written = self.write(Batch { term, part, records: text.into() }).await;
                (_, index) = written.map_err(|error| match error {
                    // It may be in the log.
                    QuorumError::Stopped { .. } => QuorumError::OutcomeUnknown,
                    error => error,
                })?;
            }
            Ok(Proposed { index })
        })
    }

    fn begin_leading(&self) -> BoxFuture<'_, Result<u64, QuorumError>> {
        Box::pin(async move {
            let (state, term, leader) = {
                let metrics = self.raft.metrics();
                let metrics = metrics.borrow();
                (metrics.state, metrics.current_term, metrics.current_leader)
            };
            if state != ServerState::Leader {
                return Err(QuorumError::NotLeader { leader: leader.and_then(broker_id) });
            }
            // An empty entry of this term: when it is applied, everything before it is. A lead that
            // was resumed after a restart has entries in its log that are not applied yet.
            let nothing = Batch { term, part: Part::WHOLE, records: "[]".into() };
            let (term, _) = self.write(nothing).await?;
            Ok(term)
        })
    }

    fn image(&self) -> Arc<MetadataImage> {
        self.published.image()
    }

    fn linearizable_image(&self) -> BoxFuture<'_, Result<Arc<MetadataImage>, QuorumError>> {
        Box::pin(async move {
            let ensured = tokio::select! {
                biased;
                ensured = self.raft.ensure_linearizable() => ensured,
                () = tokio::time::sleep(COMMIT_WITHIN) => {
                    return Err(QuorumError::NotLeader { leader: None });
                }
                reason = self.patience.until_waiting() => return Err(QuorumError::Waiting { reason }),
            };
            match ensured {
                Ok(_) => Ok(self.image()),
                Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward))) => {
                    Err(QuorumError::NotLeader { leader: forward.leader_id.and_then(broker_id) })
                }
                Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => {
                    Err(QuorumError::NotLeader { leader: None })
                }
                Err(RaftError::Fatal(fatal)) => Err(has_stopped(&fatal)),
            }
        })
    }

    fn subscribe(&self) -> watch::Receiver<Arc<MetadataImage>> {
        self.published.subscribe()
    }

    fn status(&self) -> QuorumStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let voter_ids: Vec<u64> = metrics.membership_config.voter_ids().collect();
        let nodes = metrics.membership_config.nodes().filter(|(id, _)| voter_ids.contains(id));
        let voters = nodes
            .filter_map(|(id, node)| Some((broker_id(*id)?, (node.host.clone(), node.port))))
            .collect();
        QuorumStatus {
            node_id: self.node_id,
            leader: metrics.current_leader.and_then(broker_id),
            term: metrics.current_term,
            voters,
            last_log_index: metrics.last_log_index.unwrap_or(0),
            matched: metrics.replication.iter().flatten().filter_map(matched).collect(),
            applied_index: metrics.last_applied.map_or(0, |id| id.index),
            snapshot_index: metrics.snapshot.map_or(0, |id| id.index),
        }
    }

    fn ask<'a>(
        &'a self,
        leader: BrokerId,
        lane: Lane,
        deadline: Instant,
        question: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, AskError>> {
        Box::pin(async move {
            match self.askers.get(&leader) {
                Some(asker) => asker.ask(lane, question, self.given_up(leader, deadline)).await,
                None => {
                    let source = io::Error::other("it is not among the voters");
                    Err(AskError::NotSent { node: leader, source })
                }
            }
        })
    }

    fn is_refused(&self, node: BrokerId) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            match self.askers.get(&node) {
                Some(asker) => asker.is_refused().await,
                None => false,
            }
        })
    }

    fn answer_with(&self, answering: Arc<dyn Answering>) {
        self.ears.set(answering);
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<(), QuorumError>> {
        Box::pin(async move {
            self.raft.trigger().snapshot().await.map_err(|fatal| has_stopped(&fatal))
        })
    }

    fn fatal(&self) -> BoxFuture<'static, String> {
        let mut fatal = self.fatal.clone();
        Box::pin(async move {
            loop {
                if let Some(reason) = fatal.borrow_and_update().clone() {
                    return reason;
                }
                if fatal.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        })
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.patience.stop();
            let _ = self.raft.shutdown().await;
            let mut tasks = self.tasks.lock().await;
            while tasks.join_next().await.is_some() {}
            // openraft does not wait for a snapshot that is being written; its writer holds the
            // slots.
            let slots = Arc::clone(&self.slots);
            self.env
                .blocking(move || slots.lock().unwrap_or_else(PoisonError::into_inner).close())
                .await;
            self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        })
    }
}

fn has_stopped(error: &dyn std::error::Error) -> QuorumError {
    QuorumError::Stopped { reason: with_causes(error).into() }
}

fn matched((id, log_id): (&u64, &Option<NodeLogId>)) -> Option<(BrokerId, u64)> {
    Some((broker_id(*id)?, log_id.as_ref()?.index))
}

/// The voters and where they are reached, as configured.
fn voters(config: &QuorumConfig) -> BTreeMap<u64, Voter> {
    let voter = |(id, (host, port)): (&i32, &(String, u16))| {
        (u64::try_from(*id).unwrap_or(u64::MAX), Voter { host: host.clone(), port: *port })
    };
    config.voters.iter().map(voter).collect()
}

/// One for each other voter.
fn askers(config: &QuorumConfig, dialer: &Dialer) -> BTreeMap<BrokerId, Asker> {
    let others = config.voters.iter().filter(|(id, _)| **id != config.node_id);
    let asker = |(id, (host, port)): (&i32, &(String, u16))| {
        let voter = Voter { host: host.clone(), port: *port };
        let client = dialer.client(u64::try_from(*id).ok()?, &voter);
        Some((BrokerId(*id), Asker::new(BrokerId(*id), client)))
    };
    others.filter_map(asker).collect()
}

pub(super) fn broker_id(key: u64) -> Option<BrokerId> {
    i32::try_from(key).ok().map(BrokerId)
}

fn check_config(config: &QuorumConfig) -> Result<u64, OpenError> {
    let refuse = |message: String| Err(OpenError::Config(message));
    let Ok(node_id) = u64::try_from(config.node_id) else {
        return refuse(format!("node.id is {}; it must not be negative", config.node_id));
    };
    if !config.voters.contains_key(&config.node_id) {
        return refuse(format!(
            "node.id {} is not among controller.quorum.voters; add it",
            config.node_id
        ));
    }
    if config.voters.len() > 1 && config.cluster_id.is_none() {
        return refuse("with more than one voter the cluster id must be configured".to_owned());
    }
    if config.voters.len() > 1 && config.listener.is_none() {
        return refuse("with more than one voter this node needs a controller listener".to_owned());
    }
    Ok(node_id)
}

fn raft_config(config: &QuorumConfig) -> Result<openraft::Config, OpenError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let election = millis(config.timing.election_timeout);
    openraft::Config {
        cluster_name: "letterbox".to_owned(),
        heartbeat_interval: millis(config.timing.heartbeat),
        election_timeout_min: election,
        election_timeout_max: election.saturating_mul(2),
        install_snapshot_timeout: 10_000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
        max_in_snapshot_log_to_keep: ENTRIES_KEPT,
        snapshot_max_chunk_size: 1 << 20,
        // Purge when a few entries can go together: each purge is a write.
        purge_batch_size: 64,
        ..openraft::Config::default()
    }
    .validate()
    .map_err(|error| OpenError::Config(with_causes(&error)))
}

struct Opened {
    lock: FileRef,
    wal: Wal,
    items: Vec<super::wal::Item>,
    slots: Slots,
    stored: Option<super::snapshot::Stored>,
    peers: Peers,
}

fn open_directory(env: &Env, config: &QuorumConfig, node_id: u64) -> Result<Opened, OpenError> {
    let directory = config.dir.clone();
    let io = |source| OpenError::Io { directory: directory.clone(), source };
    env.disk.create_dir_all_durably(&directory).map_err(io)?;
    let lock = env.disk.lock(&directory.join(".lock")).map_err(|source| {
        let locked = source.kind() == io::ErrorKind::WouldBlock;
        if locked { OpenError::Locked { directory: directory.clone() } } else { io(source) }
    })?;
    let (slots, stored) = Slots::open(Arc::clone(&env.disk), &directory).map_err(io)?;
    let peers = Peers::open(env, &directory).map_err(io)?;
    // A snapshot or known peers without a log: the log was lost.
    let log_is_there = env.disk.exists(&directory.join(FILE_NAME)).map_err(io)?;
    let may_create = !config.must_exist && stored.is_none() && (log_is_there || peers.is_empty());
    let (wal, items) =
        Wal::open(Arc::clone(&env.disk), &*env.random, &directory, node_id, may_create)?;
    Ok(Opened { lock, wal, items, slots, stored, peers })
}

/// Whoever was not elected pauses for a time up to `longest` before it asks for votes again, drawn
/// anew each time. openraft draws a time once, and looks at it from tick to tick: two voters whose
/// ticks are in step would ask at the same moment, vote for themselves, and so on for ever.
async fn pause_between_elections(
    raft: Raft,
    random: Arc<dyn Random>,
    longest: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    let mut metrics = raft.metrics();
    let mut asked_in = 0;
    loop {
        let (state, term) = {
            let metrics = metrics.borrow_and_update();
            (metrics.state, metrics.current_term)
        };
        if state == ServerState::Candidate && term != asked_in {
            asked_in = term;
            let mut drawn = [0; 2];
            random.fill(&mut drawn);
            let pause = longest / 65_536 * u32::from(u16::from_le_bytes(drawn));
            raft.runtime_config().elect(false);
            tokio::select! {
                biased;
                () = super::stopped(&mut stopped) => return,
                () = tokio::time::sleep(pause) => {}
            }
            raft.runtime_config().elect(true);
        }
        tokio::select! {
            biased;
            () = super::stopped(&mut stopped) => return,
            changed = metrics.changed() => if changed.is_err() { return },
        }
    }
}

/// Tells when raft has died, and has a snapshot made when many bytes have gone into the log.
async fn watch_over(
    raft: Raft,
    store: LogStore,
    fatal: watch::Sender<Option<String>>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut metrics = raft.metrics();
    let mut covered = 0;
    loop {
        let running = metrics.borrow_and_update().running_state.clone();
        match running {
            Ok(()) => {}
            // Also a write that waited for space and was told to end.
            Err(_) if *stopped.borrow() => return,
            Err(error) => {
                fatal.send_replace(Some(with_causes(&error)));
                return;
            }
        }
        let appended = store.appended_bytes();
        if appended.saturating_sub(covered) > SNAPSHOT_BYTES
            && raft.trigger().snapshot().await.is_ok()
        {
            covered = appended;
        }
        let ended = tokio::select! {
            biased;
            () = super::stopped(&mut stopped) => return,
            changed = metrics.changed() => changed.is_err(),
        };
        if ended {
            if !*stopped.borrow() {
                fatal.send_replace(Some("the core of the metadata quorum panicked".to_owned()));
            }
            return;
        }
    }
}
