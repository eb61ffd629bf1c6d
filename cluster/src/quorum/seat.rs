//! A node's seat in the quorum, before it takes part: its directory is open and locked, its log has
//! an incarnation that is durable, and its port is taken.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use letterbox_env::panics::lock;
use letterbox_env::{Env, FileRef, Gather, with_causes};
use letterbox_protocol::model::BrokerId;
use openraft::SnapshotPolicy;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::MetadataQuorum as _;
use super::ask::Ears;
use super::door::Door;
use super::elections::Elections;
use super::founding::{self, Cluster, ids};
use super::identity::Identity;
use super::log_store::LogStore;
use super::network::Dialer;
use super::patience::Patience;
use super::raft_quorum::{OpenError, QuorumConfig, RaftQuorum, watch_over};
use super::runtime::with_random;
use super::snapshot::{Slots, Stored};
use super::state_machine::{Published, StateMachine};
use super::types::{Known, Raft, Voter, first_entry};
use super::voters::Attendant;
use super::wal::{Item, RESTORE, Wal};

/// A snapshot is made after this many entries: a restart reads no more.
const SNAPSHOT_ENTRIES: u64 = 1000;
/// Entries kept behind a snapshot, so that a voter that is a little behind needs no snapshot.
const ENTRIES_KEPT: u64 = 100;

/// See the module.
pub struct Seat {
    env: Env,
    config: QuorumConfig,
    /// Held until the end.
    lock: FileRef,
    slots: Slots,
    snapshot: Option<Stored>,
    store: LogStore,
    patience: Patience,
    identity: Arc<Identity>,
    ears: Ears,
    /// Answers other voters.
    tasks: JoinSet<()>,
    listening: Option<SocketAddr>,
    /// Whether there is a cluster for this node, whose log is new.
    agreed: bool,
    /// The membership that an empty log begins with.
    begins_with: Option<Known>,
    founds: bool,
}

impl Seat {
    /// Opens the directory, makes its log when this node is new, and listens for other voters.
    ///
    /// # Errors
    /// [`OpenError`]; each says what to do.
    pub async fn take(env: Env, config: QuorumConfig) -> Result<Self, OpenError> {
        let node_id = check_config(&config)?;
        let opened = {
            let (world, config) = (env.clone(), config.clone());
            env.blocking(move || open_directory(&world, &config, node_id)).await?
        };
        let Opened { lock, wal, items, slots, snapshot } = opened;
        let unusable =
            |reason: String| OpenError::Unusable { directory: config.dir.clone(), reason };
        let incarnation = wal.incarnation();
        let patience = Patience::default();
        let coverage = slots.coverage();
        let store = LogStore::new(env.clone(), patience.clone(), coverage, wal, items);
        let store = store.map_err(unusable)?;
        if store.purged() > snapshot.as_ref().and_then(|stored| stored.meta.last_log_id) {
            let reason = "the log begins after the newest whole snapshot";
            return Err(unusable(format!("{reason}. {RESTORE}")));
        }
        let membership = store.membership();
        let membership =
            membership.or(snapshot.as_ref().map(|stored| stored.meta.last_membership.clone()));
        let known = membership.as_ref().map(Known::of).unwrap_or_default();
        check_members(&config, node_id, incarnation, &known)?;
        // The vote of a leader may come before its first entry.
        if known.is_empty() && store.end() > 0 {
            return Err(unusable(format!("its log has no membership. {RESTORE}")));
        }
        // Where others found the cluster with it, before what it only says of itself.
        let member = known.members.get(&node_id).map(|own| (own.host.clone(), own.port));
        let member = member.filter(|at| config.servers.contains(at));
        let own = config.voters.get(&config.node_id).or(member.as_ref());
        let own = own.or(config.reached_at.as_ref()).cloned();
        let reached_at = own.filter(|_| config.listener.is_some());
        let says = (reached_at, config.joins, config.timing.lease);
        let (who, configured) = ((node_id, incarnation), voters(&config));
        let identity = Identity::new(&env, who, configured, says, known, store.clone());
        let identity = Arc::new(identity);
        if let Some(cluster_id) = config.cluster_id.clone() {
            let _ = identity.cluster_id.set(cluster_id);
        }
        let (ears, mut tasks, mut listening) = (Ears::default(), JoinSet::new(), None);
        if let Some((host, port)) = &config.listener {
            let failed = |source| OpenError::Listen { host: host.clone(), port: *port, source };
            let listener = env.net.bind(host, *port).await.map_err(failed)?;
            listening = Some(listener.local_addr().map_err(failed)?);
            let timing = config.timing;
            let door = Door::new(env.clone(), Arc::clone(&identity), ears.clone(), timing);
            tasks.spawn(Arc::new(door).serve(listener, patience.stopped()));
        }
        Ok(Self {
            env,
            config,
            lock,
            slots,
            snapshot,
            store,
            patience,
            identity,
            ears,
            tasks,
            listening,
            agreed: false,
            begins_with: None,
            founds: false,
        })
    }

    /// Whether the log holds no membership.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.identity.own().is_empty()
    }

    /// The id of the cluster, if it is known or other voters have to be agreed with on one: then
    /// this waits until there is a cluster for this node (`founding`).
    ///
    /// # Errors
    /// [`OpenError::Founding`].
    pub async fn agree(&mut self) -> Result<Option<String>, OpenError> {
        if self.is_new() && !self.agreed {
            let alone = self.config.voters.keys().eq([&self.config.node_id]);
            let cluster = match alone && self.config.servers.is_empty() {
                true => return Ok(self.begin_alone()),
                false => founding::agree(&self.env, &self.identity, &self.config.servers).await?,
            };
            let Cluster { id, known, begins, founds } = cluster;
            let _ = self.identity.cluster_id.set(id);
            (self.agreed, self.founds) = (true, founds);
            match begins {
                true => self.begins_with = Some(known),
                false => self.identity.tell(known),
            }
        }
        Ok(self.identity.cluster_id.get().cloned())
    }

    fn begin_alone(&mut self) -> Option<String> {
        let Identity { node_id, incarnation, voters, cluster_id, .. } = &*self.identity;
        let incarnation = *incarnation;
        let own = voters.get(node_id).map(|at| Voter { incarnation, ..at.clone() });
        self.begins_with = own.map(|own| Known::founding([(*node_id, own)].into()));
        self.agreed = true;
        cluster_id.get().cloned()
    }

    /// Takes part, after [`Self::agree`]. A sole voter leads, with everything applied, when this
    /// returns; with more voters the first leader is elected later. `directory_id` is of the
    /// directory that the log lies in; others are told.
    ///
    /// # Errors
    /// [`OpenError`]; each says what to do.
    pub async fn join(mut self, directory_id: Option<Uuid>) -> Result<Arc<RaftQuorum>, OpenError> {
        self.agree().await?;
        if let Some(directory_id) = directory_id {
            let _ = self.identity.directory_id.set(directory_id);
        }
        let Self { env, config, patience, identity, store, mut tasks, .. } = self;
        let published = Published::new();
        let slots = Arc::new(std::sync::Mutex::new(self.slots));
        let (told, kept) = (published.clone(), Arc::clone(&slots));
        let machine = StateMachine::new(env.clone(), patience.clone(), told, kept, self.snapshot);
        let machine = machine
            .map_err(|reason| OpenError::Unusable { directory: config.dir.clone(), reason })?;
        let dialer = Dialer::new(env.clone(), Arc::clone(&identity), patience.stopped());
        if let Some(known) = self.begins_with {
            // From its first write on it is of that cluster, whatever ends it.
            let begun = store.begin(first_entry(known.members.clone())).await;
            begun.map_err(|source| OpenError::Io { directory: config.dir.clone(), source })?;
            *lock(&identity.stored) = known;
        }
        let raft_config = Arc::new(raft_config(&config)?);
        let start =
            Raft::new(identity.node_id, raft_config, dialer.clone(), store.clone(), machine);
        let raft = with_random(Some(Arc::clone(&env.random)), start).await;
        let raft = raft.map_err(OpenError::of_raft)?;
        let _ = identity.raft.set(raft.clone());
        let (fatal_sender, fatal) = watch::channel(None);
        if config.listener.is_some() {
            let elections = Elections {
                raft: raft.clone(),
                identity: Arc::clone(&identity),
                dialer: dialer.clone(),
                random: env.random.clone(),
                timing: config.timing,
            };
            tasks.spawn(elections.run(patience.stopped()));
            let attendant = Attendant {
                env: env.clone(),
                raft: raft.clone(),
                identity: Arc::clone(&identity),
                dialer: dialer.clone(),
                servers: config.servers.clone(),
                published: published.clone(),
                session: config.timing.session,
                fatal: fatal_sender.clone(),
            };
            tasks.spawn(attendant.run(patience.stopped()));
        }
        tasks.spawn(watch_over(raft.clone(), store, fatal_sender, patience.stopped()));
        let quorum = Arc::new(RaftQuorum {
            raft,
            node_id: BrokerId(config.node_id),
            dialer,
            identity,
            published,
            ears: self.ears,
            fatal,
            patience,
            tasks: Mutex::new(tasks),
            listening: self.listening,
            env,
            slots,
            lock: std::sync::Mutex::new(Some(self.lock)),
        });
        if let Err(error) = quorum.begin(self.founds).await {
            quorum.shutdown().await;
            return Err(error);
        }
        Ok(quorum)
    }
}

fn check_config(config: &QuorumConfig) -> Result<u64, OpenError> {
    let refuse = |message: String| Err(OpenError::Config(message));
    let Ok(node_id) = u64::try_from(config.node_id) else {
        return refuse(format!("node.id is {}; it must not be negative", config.node_id));
    };
    let is_alone = config.voters.keys().eq([&config.node_id]);
    if !is_alone && config.listener.is_none() {
        return refuse("with more than one voter this node needs a controller listener".to_owned());
    }
    Ok(node_id)
}

/// The log says who votes, and with which log.
fn check_members(
    config: &QuorumConfig,
    node_id: u64,
    incarnation: Uuid,
    known: &Known,
) -> Result<(), OpenError> {
    if known.is_empty() {
        return Ok(());
    }
    if config.listener.is_none() && known.members.len() > 1 {
        let known = ids(known.members.keys());
        return Err(OpenError::Config(format!(
            "the members of this cluster are {known}, and the configuration names this node alone; \
             name the voters in controller.quorum.voters, or the others in \
             controller.quorum.bootstrap.servers"
        )));
    }
    let unusable = |reason: &str| {
        Err(OpenError::Unusable { directory: config.dir.clone(), reason: reason.to_owned() })
    };
    let is_named = known.members.values().all(|voter| !voter.incarnation.is_nil());
    if !is_named && config.listener.is_some() {
        return unusable(
            "an earlier version made this log, which does not say which log each voter votes with; \
             name this node alone in controller.quorum.voters where it is that of a sole voter, or \
             found the cluster anew with empty directories",
        );
    }
    // Among several, it may be that of an earlier voter with this id: the log of a node that took
    // its place has the memberships from before that.
    if is_named
        && known.members.len() == 1
        && config.listener.is_none()
        && !known.names(node_id, incarnation)
    {
        return unusable(
            "its log and its snapshot are of several nodes' directories, or of several times; a \
             directory must be moved as a whole, and only by its own node",
        );
    }
    Ok(())
}

/// The voters and where they are reached, as configured.
fn voters(config: &QuorumConfig) -> BTreeMap<u64, Voter> {
    let voters = config.voters.iter();
    voters.filter_map(|(id, at)| Some((u64::try_from(*id).ok()?, Voter::at(at)))).gather()
}

fn raft_config(config: &QuorumConfig) -> Result<openraft::Config, OpenError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let timing = &config.timing;
    openraft::Config {
        cluster_name: "letterbox".to_owned(),
        heartbeat_interval: millis(timing.heartbeat),
        // Votes are waited for so long,
        election_timeout_min: millis(timing.votes_within()),
        // and for so long who has heard of a leader votes for nobody.
        election_timeout_max: millis(timing.patience()),
        // Among several voters, `Elections` says when.
        enable_elect: config.listener.is_none(),
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
    items: Vec<Item>,
    slots: Slots,
    snapshot: Option<Stored>,
}

fn open_directory(env: &Env, config: &QuorumConfig, node_id: u64) -> Result<Opened, OpenError> {
    let directory = config.dir.clone();
    let io = |source| OpenError::Io { directory: directory.clone(), source };
    env.disk.create_dir_all_durably(&directory).map_err(io)?;
    let lock = env.disk.lock(&directory.join(".lock")).map_err(|source| {
        let locked = source.kind() == io::ErrorKind::WouldBlock;
        if locked { OpenError::Locked { directory: directory.clone() } } else { io(source) }
    })?;
    let (slots, snapshot) = Slots::open(Arc::clone(&env.disk), &directory).map_err(io)?;
    // A snapshot without a log: the log was lost.
    let may_create = !config.must_exist && snapshot.is_none();
    let (wal, items) =
        Wal::open(Arc::clone(&env.disk), &*env.random, &directory, node_id, may_create)?;
    Ok(Opened { lock, wal, items, slots, snapshot })
}
