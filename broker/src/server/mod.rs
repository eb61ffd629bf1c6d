//! The broker as a whole: start, serve, stop in order.
//!
//! Start: identify the directories, open logs and metadata, register, host the partitions, then
//! listen. Stop: accept nothing more, finish what was begun, flush, close. Nothing below uses this
//! module.

mod admin_http;
mod budget;
mod changes;
mod connection;
pub mod context;
mod details;
mod dispatch;
mod errors;
mod group_log;
mod handlers;
mod heavy;
mod in_flight;
mod listener;
mod pace;
mod response;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use letterbox_env::{BoxListener, Env, Fault};
use letterbox_protocol::model::TopicId;
use letterbox_storage::{LogManager, LogManagerOptions, QUORUM_DIR};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use self::budget::{Account, Connections};
use self::handlers::configs::Rules;
use self::handlers::init_producer_id::ProducerIds;
use self::handlers::topics::OFFSETS_TOPIC;
use self::heavy::Heavy;
use crate::config::Config;
use crate::controller::{Controller, ControllerError};
use crate::coordinator::service::GroupMetadataView;
use crate::coordinator::{GroupConfig, GroupCoordinator};
use crate::metadata::decide::{RegisterBroker, SetClusterId};
use crate::metadata::identity::Usable;
use crate::metadata::{Endpoint, MetadataDelta, MetadataImage, SecurityProtocol, Topic, identity};
use crate::metrics::Metrics;
use crate::quorum::{
    MetadataQuorum, OpenError, QuorumConfig, QuorumError, QuorumStatus, QuorumTiming, RaftQuorum,
};
use crate::replication::ReplicaManager;

/// How long requests that were begun may take to finish once the broker stops.
const STOP_GRACE: Duration = Duration::from_millis(1_000);
/// Between two tries of a part of the start that lacks space or descriptors.
const START_RETRY_AFTER: Duration = Duration::from_secs(1);

/// How often partitions that are offline are tried again.
const HEAL_EVERY: Duration = Duration::from_secs(1);
/// Partitions of `__consumer_offsets` that are read at once.
const LOADS_AT_ONCE: usize = 4;
/// Memory for requests and answers when `queued.max.request.bytes` is not set.
const REQUEST_MEMORY: usize = 256 * 1024 * 1024;
/// Memory for the newest batches of all logs together.
const TAIL_CACHE: usize = 24 * 1024 * 1024;

/// What every request may use.
pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    pub(crate) memory: Arc<Account>,
    /// Where large and compressed batches are validated.
    pub(crate) validation: Heavy,
    /// Where offsets are looked up by time.
    pub(crate) lookups: Heavy,
    /// Where requests with many elements, or many in their answers, are handled.
    pub(crate) wide: Heavy,
    pub(crate) connections: Arc<Connections>,
    pub(crate) replicas: Arc<ReplicaManager>,
    logs: Arc<LogManager>,
    pub(crate) controller: Controller,
    pub(crate) groups: GroupCoordinator,
    group_log: Arc<group_log::GroupLog>,
    pub(crate) producer_ids: ProducerIds,
    quorum: Arc<dyn MetadataQuorum>,
    /// The image whose partitions are open: what clients are told.
    hosted: Arc<ArcSwap<MetadataImage>>,
    hosted_index: watch::Sender<u64>,
    serving: AtomicBool,
}

impl Shared {
    /// The metadata clients are told: every partition in it that is led from here can be used.
    pub(crate) fn image(&self) -> Arc<MetadataImage> {
        self.hosted.load_full()
    }

    /// Who leads and who votes on the metadata, as far as this node knows.
    pub(crate) fn quorum_status(&self) -> QuorumStatus {
        self.quorum.status()
    }
}

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A log directory cannot be used by this node.
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    /// The logs cannot be opened.
    #[error("open the logs: {0}")]
    Log(#[from] letterbox_storage::LogError),
    /// The metadata cannot be opened.
    #[error("open the metadata: {0}")]
    Quorum(String),
    /// The cluster does not take this broker.
    #[error("register with the cluster: {0}")]
    Register(String),
    /// A host name leads nowhere, or to another machine.
    #[error(
        "{key}: the host name {host} does not lead to an address of this machine, after \
         {waited:?}; correct the name or its DNS entry"
    )]
    Name {
        /// The setting.
        key: String,
        /// Its host.
        host: String,
        /// How long it was looked up.
        waited: Duration,
        /// The last error.
        #[source]
        source: std::io::Error,
    },
    /// A port cannot be listened on.
    #[error("{key}: cannot listen on {host}:{port}; is another process using the port?")]
    Bind {
        /// The setting.
        key: String,
        /// Its host.
        host: String,
        /// Its port.
        port: u16,
        /// The socket's error.
        #[source]
        source: std::io::Error,
    },
}

/// A running broker.
pub struct Broker {
    shared: Arc<Shared>,
    logs: Arc<LogManager>,
    addresses: Vec<SocketAddr>,
    admin_address: Option<SocketAddr>,
    stop_accepting: CancellationToken,
    stop_syncers: CancellationToken,
    accepting: JoinSet<()>,
    background: JoinSet<()>,
    syncers: JoinSet<()>,
    stop_background: CancellationToken,
    stop_upkeep: CancellationToken,
}

impl Broker {
    /// Starts a broker and returns when it serves.
    ///
    /// # Errors
    /// [`StartError`], naming what to change.
    pub async fn start(env: Env, config: Config) -> Result<Self, StartError> {
        let started = Instant::now();
        for warning in config.warnings() {
            warn!(key = warning.key, "{warning}");
        }
        if config.advertises_localhost() {
            warn!(
                "advertised.listeners is not set: clients are told localhost, which only clients \
                 on this machine reach"
            );
        }
        let Usable { identities, unusable } = {
            let (blocking, config) = (env.clone(), config.clone());
            let passes = |error: &identity::IdentityError| match error {
                identity::IdentityError::Io { source, .. } => Fault::of(source).is_state(),
                _ => false,
            };
            patiently("identify the log directories", passes, || {
                let (env, config) = (blocking.clone(), config.clone());
                blocking.blocking(move || {
                    let directories = config.log_dirs.iter().chain([&config.metadata_dir]);
                    identity::expect_directories(
                        &env,
                        directories,
                        &config.expected_directory_ids,
                    )?;
                    identity::open_usable(
                        &env,
                        &config.log_dirs,
                        &config.metadata_dir,
                        config.node_id.0,
                        config.cluster_id.as_deref(),
                    )
                })
            })
            .await?
        };
        let (_, first) =
            identities.first().cloned().ok_or(identity::IdentityError::NoDirectories)?;
        let has_metadata = identities
            .iter()
            .any(|(directory, identity)| *directory == config.metadata_dir && !identity.created);
        // The directory that this broker is registered under may be one that cannot be used now;
        // the metadata log is witness enough.
        let keeps_incarnation = !unusable.is_empty() && has_metadata;

        // Taken early, so that a port in use is said before anything is recovered.
        let listeners = listener::bind(&env, &config).await?;
        let admin = listener::bind_admin(&env, &config).await?;
        let admin_address = admin.as_ref().and_then(|admin| admin.local_addr().ok());
        let (running, stop_background, mut background) =
            (admin_http::Running::default(), CancellationToken::new(), JoinSet::new());
        if let Some(admin) = admin {
            // Before the logs are opened, which may take long: what lives and is not ready must not
            // be taken for dead.
            let identity = admin_http::identity(&identities);
            background.spawn(admin_http::serve(
                running.clone(),
                identity,
                admin,
                stop_background.clone(),
            ));
        }

        let quorum_config = quorum_config(&env, &config, &first.cluster_id).await?;
        let open_quorum = patiently("open the metadata", OpenError::is_state, || {
            RaftQuorum::open(env.clone(), quorum_config.clone())
        });
        // Those that are lost keep their place: what lies in them is known to no other.
        let lost = unusable.keys().filter(|directory| !config.log_dirs.contains(directory));
        let log_dirs = config.log_dirs.iter().chain(lost).cloned().collect();
        let options = LogManagerOptions {
            unusable: unusable
                .into_iter()
                .map(|(directory, error)| (directory, Arc::new(error)))
                .collect(),
            default_config: ReplicaManager::default_log_config(&config),
            tail_cache_bytes: TAIL_CACHE,
            reserve_bytes: u64::try_from(config.number("log.dir.reserve.bytes")).ok(),
            producer_id_expiration_ms: config.number("producer.id.expiration.ms"),
            retention_check_interval: config.duration("log.retention.check.interval.ms"),
            recovery_point_interval: config.duration("log.flush.offset.checkpoint.interval.ms"),
            cleaner_backoff: config.duration("log.cleaner.backoff.ms"),
            high_watermark_interval: config
                .duration("replica.high.watermark.checkpoint.interval.ms"),
            ..LogManagerOptions::new(log_dirs)
        };
        let open_logs = patiently(
            "open the logs",
            |error: &letterbox_storage::LogError| error.fault().is_state(),
            || LogManager::open(env.clone(), options.clone()),
        );
        let (quorum, logs) = tokio::join!(biased; open_quorum, open_logs);
        let quorum: Arc<dyn MetadataQuorum> =
            quorum.map_err(|error| StartError::Quorum(error.to_string()))?;
        let logs = logs?;
        let replicas = ReplicaManager::new(env.clone(), config.clone(), logs.clone());
        let controller = Controller::start(
            env.clone(),
            quorum.clone(),
            Arc::new(Rules { config: config.clone() }),
        );
        let known = quorum
            .image()
            .brokers
            .get(&config.node_id)
            .map(|present| present.incarnation)
            .filter(|_| keeps_incarnation);
        let incarnation = known.unwrap_or(first.directory_id);
        register(
            &controller,
            &*quorum,
            &config,
            &listeners,
            (&first.cluster_id, incarnation),
            logs.was_clean(),
        )
        .await?;

        let group_log = Arc::new(group_log::GroupLog::new(env.clone(), replicas.clone()));
        let hosted: Arc<ArcSwap<MetadataImage>> = Arc::default();
        let groups = GroupCoordinator::new(
            env.clone(),
            group_config(&config),
            group_log.clone(),
            GroupView(hosted.clone()),
        );
        #[expect(
            clippy::disallowed_methods,
            reason = "how many files may be open is the system's to say, in a simulation too"
        )]
        let descriptors = usize::try_from(
            rustix::process::getrlimit(rustix::process::Resource::Nofile)
                .current
                .unwrap_or(u64::MAX),
        )
        .unwrap_or(usize::MAX);
        let connections = Connections::new(
            config.size("max.connections"),
            config.size("max.connections.per.ip"),
            descriptors,
        );
        let memory = match config.number("queued.max.request.bytes") {
            ..=0 => REQUEST_MEMORY,
            bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
        };
        let workers = tokio::runtime::Handle::current().metrics().num_workers();
        let mut deltas = quorum.deltas();
        let shared = Arc::new(Shared {
            env: env.clone(),
            metrics: Metrics::new(),
            memory: Account::new(memory),
            validation: Heavy::new(workers),
            lookups: Heavy::new(workers),
            wide: Heavy::new(workers),
            connections: Arc::new(connections),
            replicas: replicas.clone(),
            logs: logs.clone(),
            controller,
            groups,
            group_log,
            producer_ids: ProducerIds::default(),
            quorum,
            hosted,
            hosted_index: watch::Sender::new(0),
            serving: AtomicBool::new(false),
            config,
        });
        let mut loads = JoinSet::new();
        if let Some(first) = deltas.next().await {
            shared.take_dynamic_configs(&first.after);
            replicas.start(&first.after).await;
            shared.publish(&first, &mut loads).await;
        }

        let mut broker = Self {
            addresses: Vec::new(),
            admin_address,
            stop_accepting: CancellationToken::new(),
            stop_syncers: CancellationToken::new(),
            stop_background,
            stop_upkeep: CancellationToken::new(),
            accepting: JoinSet::new(),
            background,
            syncers: JoinSet::new(),
            logs,
            shared,
        };
        broker.run_background(deltas, loads);
        broker.listen(listeners);
        broker.shared.serving.store(true, Ordering::Release);
        let _ = running.set((broker.shared.clone(), broker.logs.clone())); // nobody else sets it
        info!(
            node_id = broker.shared.config.node_id.0,
            cluster_id = first.cluster_id,
            addresses = ?broker.addresses,
            "Kafka Server started: Transitioning from RECOVERY to RUNNING; started in {} ms",
            started.elapsed().as_millis()
        );
        Ok(broker)
    }

    fn run_background(&mut self, mut deltas: crate::quorum::DeltaStream, loads: JoinSet<()>) {
        self.syncers.spawn(
            self.logs.clone().run_syncers(self.shared.replicas.clone(), self.stop_syncers.clone()),
        );
        let (shared, stop) = (self.shared.clone(), self.stop_background.clone());
        let newest = watch::Sender::new(self.shared.image());
        let newer = newest.subscribe();
        self.background.spawn(async move {
            loop {
                let delta = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    delta = deltas.next() => delta,
                };
                let Some(delta) = delta else { return };
                if !delta.configs_changed.is_empty() {
                    shared.take_dynamic_configs(&delta.after);
                }
                shared.replicas.apply(&delta);
                newest.send_replace(delta.after);
            }
        });
        self.background.spawn(self.shared.clone().follow_logs(
            newer,
            loads,
            self.stop_background.clone(),
        ));
        self.background.spawn(self.logs.clone().run_upkeep(self.stop_upkeep.clone()));
    }

    fn listen(&mut self, listeners: Vec<BoxListener>) {
        for (index, listener) in listeners.into_iter().enumerate() {
            if let Ok(address) = listener.local_addr() {
                self.addresses.push(address);
            }
            self.accepting.spawn(listener::accept(
                self.shared.clone(),
                index,
                listener,
                self.stop_accepting.clone(),
                STOP_GRACE,
            ));
        }
    }

    /// Where clients connect, in the order of the listeners.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where health and metrics are served.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// Makes a topic unless it is there.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub async fn ensure_topic(
        &self,
        name: &str,
        partitions: i32,
        replication_factor: i16,
        configs: BTreeMap<String, String>,
    ) -> Result<(), String> {
        handlers::topics::ensure(&self.shared, name, partitions, replication_factor, configs).await
    }

    /// Completes, with the reason, when the broker cannot go on and the process must end.
    pub async fn fatal(&self) -> String {
        tokio::select! {
            biased;
            reason = self.shared.quorum.fatal() => reason,
            reason = self.logs.until_all_offline() => format!("every log directory is offline: {reason}"),
        }
    }

    /// Stops in order: accept nothing more, finish what was begun, flush, close.
    ///
    /// # Errors
    /// When the logs could not be closed cleanly; nothing that was acknowledged is lost, the next
    /// start recovers.
    pub async fn shutdown(mut self) -> Result<(), letterbox_storage::LogError> {
        let started = Instant::now();
        info!("stopping: no new connections, finishing what was begun");
        self.shared.serving.store(false, Ordering::Release);
        // First, so that the disk is free for what was begun.
        self.stop_upkeep.cancel();
        self.stop_accepting.cancel();
        while self.accepting.join_next().await.is_some() {}
        self.shared.groups.shutdown().await;
        self.shared.controller.shutdown().await;
        self.stop_background.cancel();
        while self.background.join_next().await.is_some() {}
        self.stop_syncers.cancel();
        while self.syncers.join_next().await.is_some() {}
        let closed = self.logs.close().await;
        self.shared.quorum.shutdown().await;
        match &closed {
            Ok(()) => info!("stopped in {} ms", started.elapsed().as_millis()),
            Err(error) => error!(%error, "the logs were not closed cleanly"),
        }
        closed
    }
}

impl Shared {
    /// Brings the dynamic configurations of this broker into force; topics follow with their
    /// partitions.
    fn take_dynamic_configs(&self, image: &MetadataImage) {
        let none = crate::metadata::Configs::new();
        let own = image.broker_configs.get(&self.config.node_id).unwrap_or(&none);
        self.config.set_dynamic(own, &image.cluster_configs);
        self.connections.set_bounds(
            self.config.size("max.connections"),
            self.config.size("max.connections.per.ip"),
        );
        self.logs.set_cleaner_backoff(self.config.duration("log.cleaner.backoff.ms"));
    }

    /// Has the logs follow the metadata, beside the roles of their partitions, which have followed
    /// already; what changes while logs are made is done in one go afterwards. Clients are shown
    /// what is open.
    async fn follow_logs(
        self: Arc<Self>,
        mut newest: watch::Receiver<Arc<MetadataImage>>,
        mut loads: JoinSet<()>,
        stop: CancellationToken,
    ) {
        let mut heal = tokio::time::interval(HEAL_EVERY);
        heal.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = newest.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let after = newest.borrow_and_update().clone();
                    let delta = MetadataDelta::between(self.image(), after);
                    self.replicas.apply_to_logs(&delta).await;
                    self.publish(&delta, &mut loads).await;
                }
                Some(_) = loads.join_next(), if !loads.is_empty() => {}
                _ = heal.tick() => {
                    let image = self.image();
                    let offsets = image.topic(OFFSETS_TOPIC).map(|topic| topic.id);
                    let back = self.replicas.heal(&image).await.into_iter();
                    let back = back.filter(|(topic, _)| Some(*topic) == offsets);
                    self.load_groups(back.map(|(_, partition)| partition), &mut loads);
                }
            }
        }
    }

    /// Shows clients what is open now, and lets the group coordinator take over its partitions;
    /// loading them goes on in `loads`.
    async fn publish(self: &Arc<Self>, delta: &MetadataDelta, loads: &mut JoinSet<()>) {
        let (before, after) = (delta.before.topic(OFFSETS_TOPIC), delta.after.topic(OFFSETS_TOPIC));
        let count = |topic: Option<&Arc<Topic>>| {
            topic.map_or(0, |topic| i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX))
        };
        let same_topic = before.map(|topic| topic.id) == after.map(|topic| topic.id);
        if !same_topic {
            for partition in 0..count(before) {
                self.groups.unload(partition).await;
            }
            self.group_log.set_topic(after.map(|topic| topic.id).unwrap_or_default());
        }
        self.hosted.store(delta.after.clone());
        let deleted: Vec<Arc<str>> =
            delta.topics_removed.iter().map(|topic| topic.name.clone()).collect();
        if !deleted.is_empty() {
            self.groups.topics_deleted(&deleted);
        }
        let first = if same_topic { count(before) } else { 0 };
        if first < count(after) {
            info!(partitions = count(after), "coordinating groups");
        }
        self.load_groups(first..count(after), loads);
        self.hosted_index.send_replace(delta.after.applied_index);
    }

    /// Lets the group coordinator take over these partitions of `__consumer_offsets`.
    fn load_groups(
        self: &Arc<Self>,
        partitions: impl Iterator<Item = i32>,
        loads: &mut JoinSet<()>,
    ) {
        let partitions: Vec<i32> = partitions.collect();
        if !partitions.is_empty() {
            loads.spawn(self.clone().read_groups(partitions));
        }
    }

    async fn read_groups(self: Arc<Self>, partitions: Vec<i32>) {
        let (started, partitions_count) = (Instant::now(), partitions.len());
        let (mut loads, at_once) =
            (JoinSet::new(), Arc::new(tokio::sync::Semaphore::new(LOADS_AT_ONCE)));
        for partition in partitions {
            let (shared, at_once) = (self.clone(), at_once.clone());
            loads.spawn(async move {
                let _turn = at_once.acquire().await;
                let loaded = shared.groups.load(partition).await;
                loaded
                    .inspect_err(|error| {
                        error!(partition, %error, "load groups and offsets; their \
                        clients are told to come back")
                    })
                    .is_ok()
            });
        }
        let loaded_count = loads.join_all().await.into_iter().filter(|loaded| *loaded).count();
        info!(
            partitions_count,
            loaded_count,
            elapsed_ms = started.elapsed().as_millis(),
            "groups and offsets are loaded"
        );
    }
}

/// The metadata that clients see, as the group coordinator asks for it.
struct GroupView(Arc<ArcSwap<MetadataImage>>);

impl GroupMetadataView for GroupView {
    fn partitions_of(&self, topic: &str) -> Option<i32> {
        self.0.load().topic(topic).and_then(|topic| i32::try_from(topic.partitions.len()).ok())
    }

    fn id_of(&self, topic: &str) -> Option<TopicId> {
        self.0.load().topic(topic).map(|topic| topic.id)
    }

    fn name_of(&self, id: TopicId) -> Option<Arc<str>> {
        self.0.load().topic_by_id(&id).map(|topic| topic.name.clone())
    }
}

async fn register(
    controller: &Controller,
    quorum: &dyn MetadataQuorum,
    config: &Config,
    listeners: &[BoxListener],
    (cluster_id, incarnation): (&str, Uuid),
    clean_start: bool,
) -> Result<(), StartError> {
    let failed = |error: &dyn std::fmt::Display| StartError::Register(error.to_string());
    let passes = |error: &ControllerError| {
        matches!(
            error,
            ControllerError::Quorum(QuorumError::Waiting { .. } | QuorumError::OutcomeUnknown)
        )
    };
    let set = SetClusterId { cluster_id: cluster_id.to_owned() };
    let set = patiently("register with the cluster", passes, || controller.run(set.clone())).await;
    set.map_err(|error| failed(&error))?.outcome.map_err(|error| failed(&error))?;
    // A port of 0 was chosen by the system; clients are told the one it chose.
    let port = |at: usize, port: u16| {
        if port == 0 {
            listeners.get(at).and_then(|l| l.local_addr().ok()).map_or(0, |a| a.port())
        } else {
            port
        }
    };
    let endpoints = config.advertised.iter().enumerate().map(|(at, endpoint)| Endpoint {
        listener: endpoint.name.clone(),
        host: endpoint.host.clone(),
        port: port(at, endpoint.port),
        security_protocol: SecurityProtocol::Plaintext,
    });
    let operation = RegisterBroker {
        id: config.node_id,
        incarnation,
        endpoints: endpoints.collect(),
        rack: config.rack.clone(),
        clean_start,
    };
    // The image holds what came before the cluster id was set again. A directory that was only
    // formatted has seen no run.
    if !clean_start && quorum.image().brokers.contains_key(&config.node_id) {
        warn!("the last run did not end cleanly; partitions led from here get a new leader epoch");
    }
    let registered =
        patiently("register with the cluster", passes, || controller.run(operation.clone())).await;
    registered.map_err(|error| failed(&error))?.outcome.map_err(|error| failed(&error))?;
    Ok(())
}

/// Begins a part of the start again and again while its error `passes`: on a full disk a broker
/// waits for space, since one that ended would only be started again. Cancel safe where the part
/// is.
async fn patiently<T, E: std::fmt::Display, F: Future<Output = Result<T, E>>>(
    action: &str,
    passes: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> F,
) -> Result<T, E> {
    let mut is_said = false;
    loop {
        match attempt().await {
            Err(error) if passes(&error) => {
                if !std::mem::replace(&mut is_said, true) {
                    error!(%error, "cannot {action} now; it is tried again until it can: free some \
                        space, or raise the limit of open files");
                }
                tokio::time::sleep(START_RETRY_AFTER).await;
            }
            result => return result,
        }
    }
}

/// A quorum of one: this node votes, and nobody needs to reach it for that.
async fn quorum_config(
    env: &Env,
    config: &Config,
    cluster_id: &str,
) -> Result<QuorumConfig, StartError> {
    let host =
        if config.controller.host.is_empty() { "localhost" } else { &config.controller.host };
    let (disk, dirs) = (env.disk.clone(), config.log_dirs.clone());
    // Partitions without a metadata log are the remains of a lost one; beginning anew would disown
    // them.
    let has_partitions = move || {
        dirs.iter().any(|dir| {
            disk.list(dir).is_ok_and(|entries| {
                entries.iter().any(|entry| {
                    entry.is_dir && entry.name != QUORUM_DIR && entry.name.contains('-')
                })
            })
        })
    };
    Ok(QuorumConfig {
        node_id: config.node_id.0,
        dir: config.metadata_dir.join(QUORUM_DIR),
        voters: BTreeMap::from([(config.node_id.0, (host.to_owned(), config.controller.port))]),
        listener: None,
        cluster_id: Some(cluster_id.to_owned()),
        must_exist: env.blocking(has_partitions).await,
        timing: QuorumTiming::default(),
    })
}

fn group_config(config: &Config) -> GroupConfig {
    let int = |key| i32::try_from(config.number(key)).unwrap_or(i32::MAX);
    let long = |key| u64::try_from(config.number(key)).unwrap_or(u64::MAX);
    GroupConfig {
        initial_rebalance_delay_ms: long("group.initial.rebalance.delay.ms"),
        min_session_timeout_ms: int("group.min.session.timeout.ms"),
        max_session_timeout_ms: int("group.max.session.timeout.ms"),
        max_size: config.size("group.max.size"),
        offset_metadata_max_bytes: config.size("offset.metadata.max.bytes"),
        offsets_retention_ms: config.number("offsets.retention.minutes").saturating_mul(60_000),
        offsets_retention_check_interval_ms: long("offsets.retention.check.interval.ms"),
        offset_commit_timeout_ms: long("offsets.commit.timeout.ms"),
    }
}
