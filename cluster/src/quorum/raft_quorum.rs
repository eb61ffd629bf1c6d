//! [`RaftQuorum`]: [`MetadataQuorum`] on openraft.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use letterbox_env::{BoxFuture, Env, Fault, FileRef, Gather, join_address, with_causes};
use letterbox_protocol::model::BrokerId;
use openraft::ServerState;
use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::ask::Ears;
use super::founding::FoundingError;
use super::identity::Identity;
use super::log_store::LogStore;
use super::network::Dialer;
use super::patience::Patience;
use super::seat::Seat;
use super::snapshot::Slots;
use super::state_machine::Published;
use super::types::{Applied, Batch, Known, NodeLogId, Raft, Voter};
use super::voters;
use super::wal::WalError;
use super::{
    Answering, AskError, ChangeError, Lane, MetadataQuorum, Proposed, QuorumError, QuorumStatus,
    VoterChange,
};
use crate::metadata::{MetadataImage, MetadataRecord, Part, cut, record};

/// The most bytes of records in one entry; longer ones are cut into several. So small that a voter
/// far away has an entry on its disk within one heartbeat.
const ENTRY_LEN_MAX: usize = 256 << 10;

/// A snapshot is made after this many bytes of entries: a restart reads no more.
const SNAPSHOT_BYTES: u64 = 4 << 20;

/// A majority has an entry this soon, or its outcome is not known.
const COMMIT_WITHIN: Duration = Duration::from_secs(10);

/// A voter that ends has handed the lead over this soon, or not at all.
const HAND_OVER_WITHIN: Duration = Duration::from_millis(500);

/// A sole voter leads this soon, unless its disk is full.
const LEAD_WITHIN: Duration = Duration::from_secs(30);
/// Between two tries of a sole voter whose disk is full.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// How a node takes part.
#[derive(Clone, Debug)]
pub struct QuorumConfig {
    /// `node.id`; not negative.
    pub node_id: i32,
    /// The directory of the metadata log, `…/__letterbox_metadata`; made when it is not there.
    pub dir: PathBuf,
    /// The voters that found the cluster, with their addresses (`controller.quorum.voters`). A node
    /// that is none of them observes until it is made a voter.
    pub voters: BTreeMap<i32, (String, u16)>,
    /// Where voters are found as well (`controller.quorum.bootstrap.servers`).
    pub servers: Vec<(String, u16)>,
    /// Where this node listens for other members. Needed when there are any, or may be.
    pub listener: Option<(String, u16)>,
    /// Where others reach that, unless `voters` says it.
    pub reached_at: Option<(String, u16)>,
    /// Whether this node becomes a voter by itself (`controller.quorum.auto.join.enable`).
    pub joins: bool,
    /// The cluster's id, if it is known. Voters that are all new agree on one.
    pub cluster_id: Option<String>,
    /// Whether this node is known to have taken part before (partitions lie beside the directory):
    /// a missing log is refused then, instead of begun anew.
    pub must_exist: bool,
    /// Times of heartbeats and elections.
    pub timing: QuorumTiming,
}

/// Times of heartbeats and elections. A slow flush holds up votes and heartbeats, so both timeouts
/// must be well above the slowest flush of the disk.
///
/// `heartbeat < votes_within() < patience()` and `lease <= patience()`, in each node; `heartbeat`
/// and `lease` are those of the release, so that nodes with other timeouts work together: a voter
/// whose patience were shorter than the lease of a leader would elect another one beside it.
#[derive(Clone, Copy, Debug)]
pub struct QuorumTiming {
    /// Between two heartbeats of the leader; also the deadline of one replication request.
    pub heartbeat: Duration,
    /// For so long after a majority has answered it, a leader counts on being the leader.
    pub lease: Duration,
    /// `controller.quorum.fetch.timeout.ms`: who hears of no leader asks for votes before that.
    pub fetch_timeout: Duration,
    /// `controller.quorum.election.timeout.ms`: a typical time between two tries to be elected.
    pub election_timeout: Duration,
    /// A node that others have taken for no member for so long ends (`broker.session.timeout.ms`).
    pub session: Duration,
}

impl Default for QuorumTiming {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            lease: Duration::from_secs(1),
            // There is a new leader within about a second and a half.
            fetch_timeout: Duration::from_secs(2),
            election_timeout: Duration::from_secs(1),
            session: Duration::from_secs(9),
        }
    }
}

impl QuorumTiming {
    /// With what is configured. What is less than the least that works counts as that: no patience
    /// is less than the default, and votes are waited for half as long as a leader, at most.
    #[must_use]
    pub fn with_timeouts(self, fetch_timeout: Duration, election_timeout: Duration) -> Self {
        // More than two heartbeats.
        let election_timeout = election_timeout.max(Duration::from_millis(600));
        let least = Self::default().fetch_timeout.max(election_timeout.saturating_mul(2));
        Self { fetch_timeout: fetch_timeout.max(least), election_timeout, ..self }
    }

    /// For so long after it has heard of a leader, a voter votes for nobody. It asks for votes
    /// itself after that and half of it more, at the latest, which leaves a quarter of the fetch
    /// timeout for the vote.
    pub(super) fn patience(&self) -> Duration {
        self.fetch_timeout / 2
    }

    /// For so long votes are waited for.
    pub(super) fn votes_within(&self) -> Duration {
        self.election_timeout / 2
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
    #[error(
        "{} is Apache Kafka's metadata log, which Letterbox does not read; nothing was changed. \
         Give Letterbox directories of its own (log.dirs, metadata.log.dir), and copy the records \
         while both run, as MirrorMaker does",
        log.display()
    )]
    Kafkas { log: PathBuf },
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error("metadata directory {} cannot be used: {reason}", directory.display())]
    Unusable { directory: PathBuf, reason: String },
    #[error(
        "this node is configured for cluster {configured}, but its metadata is of cluster {found}"
    )]
    WrongCluster { configured: String, found: String },
    #[error(transparent)]
    Founding(#[from] FoundingError),
    #[error("cannot listen for other voters on {}", join_address(.host, .port))]
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
    pub(super) fn of_raft(error: impl Error + Send + Sync + 'static) -> Self {
        Self::Raft(error.into())
    }

    /// Whether it passes: there is no space, or no descriptor.
    pub fn is_state(&self) -> bool {
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
    pub(super) raft: Raft,
    pub(super) node_id: BrokerId,
    pub(super) identity: Arc<Identity>,
    pub(super) published: Published,
    pub(super) dialer: Dialer,
    pub(super) ears: Ears,
    pub(super) fatal: watch::Receiver<Option<String>>,
    pub(super) patience: Patience,
    pub(super) tasks: Mutex<JoinSet<()>>,
    pub(super) listening: Option<std::net::SocketAddr>,
    pub(super) env: Env,
    pub(super) slots: Arc<std::sync::Mutex<Slots>>,
    /// Held until shutdown.
    pub(super) lock: std::sync::Mutex<Option<FileRef>>,
}

impl RaftQuorum {
    /// Opens the directory and takes part: [`Seat::take`], [`Seat::agree`] and [`Seat::join`].
    ///
    /// # Errors
    /// [`OpenError`]; each says what to do.
    pub async fn open(env: Env, config: QuorumConfig) -> Result<Arc<Self>, OpenError> {
        Seat::take(env, config).await?.join(None).await
    }

    /// Has an election begin where nobody else would begin one soon, and waits for its end as a sole
    /// voter, with everything applied.
    pub(super) async fn begin(&self, founds: bool) -> Result<(), OpenError> {
        if !self.identity.is_sole_voter() {
            if founds {
                self.raft.trigger().elect().await.map_err(|error| self.not_begun(error))?;
            }
            return self.check_cluster();
        }
        if self.raft.metrics().borrow().state != ServerState::Leader {
            self.raft.trigger().elect().await.map_err(|error| self.not_begun(error))?;
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
                Err(error) => return Err(self.not_begun(error)),
            }
        }
        loop {
            match self.ensure_leading().await {
                Ok(()) => return self.check_cluster(),
                Err(QuorumError::Waiting { .. } | QuorumError::NotLeader { .. }) => {
                    tokio::time::sleep(RETRY_AFTER).await
                }
                Err(error) => return Err(self.not_begun(error)),
            }
        }
    }

    /// That a majority takes this node for the leader now, and everything that was committed before
    /// is applied.
    pub(super) async fn ensure_leading(&self) -> Result<(), QuorumError> {
        let ensured = tokio::select! {
            biased;
            ensured = self.raft.ensure_linearizable() => ensured,
            () = tokio::time::sleep(COMMIT_WITHIN) => {
                return Err(QuorumError::NotLeader { leader: None });
            }
            reason = self.patience.until_waiting() => return Err(QuorumError::Waiting { reason }),
        };
        match ensured {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward))) => {
                Err(QuorumError::NotLeader { leader: forward.leader_id.and_then(broker_id) })
            }
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => {
                Err(QuorumError::NotLeader { leader: None })
            }
            Err(RaftError::Fatal(fatal)) => Err(has_stopped(&fatal)),
        }
    }

    /// That `error` is why, or what has ended raft: a wait hears only that it has ended.
    fn not_begun(&self, error: impl Error + Send + Sync + 'static) -> OpenError {
        let ended = self.raft.metrics().borrow().running_state.clone().err();
        ended.map_or_else(|| OpenError::of_raft(error), OpenError::of_raft)
    }

    fn check_cluster(&self) -> Result<(), OpenError> {
        match (self.identity.cluster_id.get(), &self.image().cluster_id) {
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

/// Has another voter lead, if this node does: the others would only notice after an election
/// timeout that it is gone. One is asked that has everything, and it is elected by the vote of this node;
/// with more than three voters, others may have to wait all the same.
pub(super) async fn hand_over(raft: &Raft, identity: &Identity, dialer: &Dialer) {
    let (leads, last, matched) = {
        let metrics = raft.metrics();
        let metrics = metrics.borrow();
        let leads = metrics.state == ServerState::Leader;
        (leads, metrics.last_log_index, metrics.replication.clone().unwrap_or_default())
    };
    if !leads {
        return;
    }
    let has_all = |id: &u64| {
        matched.get(id).is_some_and(|matched| matched.as_ref().map(|id| id.index) == last)
    };
    for next in identity.own().voters().into_iter().filter(has_all) {
        let Some(ways) = broker_id(next).and_then(|next| dialer.ways_to(next)) else { continue };
        if ways.asker.stand().await.is_ok() {
            let mut metrics = raft.metrics();
            let another =
                |leader: Option<u64>| leader.is_some_and(|leader| leader != identity.node_id);
            let _ = metrics.wait_for(|metrics| another(metrics.current_leader)).await;
            return;
        }
    }
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
            // An empty entry of this term: when it is applied, everything before it is.
            let nothing = Batch { term, part: Part::WHOLE, records: "[]".into() };
            let (term, _) = self.write(nothing).await?;
            Ok(term)
        })
    }

    fn image(&self) -> Arc<MetadataImage> {
        self.published.image()
    }

    fn confirm_leading(&self, term: u64) -> BoxFuture<'_, Result<u64, QuorumError>> {
        Box::pin(async move {
            self.ensure_leading().await?;
            match self.raft.metrics().borrow().current_term == term {
                true => Ok(self.image().applied_index),
                false => Err(QuorumError::NotLeader { leader: None }),
            }
        })
    }

    fn subscribe(&self) -> watch::Receiver<Arc<MetadataImage>> {
        self.published.subscribe()
    }

    fn status(&self) -> QuorumStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let known = Known::of(&metrics.membership_config);
        let (mut voters, mut observers) = (BTreeMap::new(), BTreeMap::new());
        for (id, node) in &known.members {
            let of = if known.is_voter(*id) { &mut voters } else { &mut observers };
            if let Some(id) = broker_id(*id) {
                of.insert(id, (node.host.clone(), node.port));
            }
        }
        let seen = known.members.iter().filter_map(|(id, node)| {
            let mut seen = self.identity.met_as(*id, node.incarnation).seen;
            seen.directory_id = self.identity.directory_of(*id, node);
            Some((broker_id(*id)?, seen))
        });
        QuorumStatus {
            seen: seen.gather(),
            node_id: self.node_id,
            leader: metrics.current_leader.and_then(broker_id),
            term: metrics.current_term,
            vote: metrics.vote.leader_id.voted_for().and_then(broker_id),
            voters,
            observers,
            last_log_index: metrics.last_log_index.unwrap_or(0),
            matched: metrics.replication.iter().flatten().filter_map(matched).gather(),
            applied_index: metrics.last_applied.map_or(0, |id| id.index),
            snapshot_index: metrics.snapshot.map_or(0, |id| id.index),
        }
    }

    fn unreachable(&self) -> BTreeMap<BrokerId, String> {
        let own = self.identity.own();
        let others = own.members.iter().filter(|(id, _)| **id != self.identity.node_id);
        let why = |(id, member): (&u64, &Voter)| {
            Some((broker_id(*id)?, self.identity.met_as(*id, member.incarnation).unreachable?))
        };
        others.filter_map(why).gather()
    }

    fn refusal(&self) -> Option<String> {
        self.identity.out.borrow().as_ref().map(|(_, reason)| reason.clone())
    }

    fn leads_alone(&self) -> bool {
        let leads = self.raft.metrics().borrow().state == ServerState::Leader;
        leads && !self.identity.is_followed(self.identity.lease)
    }

    fn leave(&self) {
        self.identity.leaves.send_replace(true);
    }

    fn ask<'a>(
        &'a self,
        leader: BrokerId,
        lane: Lane,
        deadline: Instant,
        question: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, AskError>> {
        Box::pin(async move {
            match self.dialer.ways_to(leader) {
                Some(ways) => {
                    let given_up = self.given_up(leader, deadline);
                    ways.asker.ask((lane, deadline), question, given_up).await
                }
                None => {
                    let source = io::Error::other("it is not a member of the quorum");
                    Err(AskError::NotSent { node: leader, source })
                }
            }
        })
    }

    fn is_refused(&self, node: BrokerId) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            match self.dialer.ways_to(node) {
                Some(ways) => ways.asker.is_refused().await,
                None => false,
            }
        })
    }

    fn change_voters<'a>(
        &'a self,
        change: &'a VoterChange,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), ChangeError>> {
        Box::pin(voters::change(&self.raft, &self.dialer, change, deadline))
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
            let _ = tokio::time::timeout(
                HAND_OVER_WITHIN,
                hand_over(&self.raft, &self.identity, &self.dialer),
            )
            .await;
            self.patience.stop();
            let _ = self.raft.shutdown().await;
            let mut tasks = self.tasks.lock().await;
            while tasks.join_next().await.is_some() {}
            self.dialer.end().await;
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

pub(super) fn has_stopped(error: &dyn std::error::Error) -> QuorumError {
    QuorumError::Stopped { reason: with_causes(error).into() }
}

fn matched((id, log_id): (&u64, &Option<NodeLogId>)) -> Option<(BrokerId, u64)> {
    Some((broker_id(*id)?, log_id.as_ref()?.index))
}

pub(super) fn broker_id(key: u64) -> Option<BrokerId> {
    i32::try_from(key).ok().map(BrokerId)
}

/// Tells when raft has died, and has a snapshot made when many bytes have gone into the log.
pub(super) async fn watch_over(
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
