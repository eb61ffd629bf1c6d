//! The start, stage after stage: tell of health, identify the log directories, take the ports, open
//! the metadata and the logs, register, host the partitions, listen, serve.
//!
//! Up to its registration a start may be given up, or fail, at any moment; then what was begun is
//! ended in order. The controller begins and ends with the part in the quorum, because others wait
//! for a node that leads.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::FusedFuture;
use letterbox_env::{BoxListener, DirEntry, Disk, Env, with_causes};
use letterbox_protocol::topics::{KAFKA_METADATA_DIR, METADATA_DIR};
use letterbox_storage::{LogError, LogManager, LogManagerOptions};
use tokio::sync::{SetOnce, oneshot};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::Node;
use super::groups::GroupHost;
use super::hosting;
use super::identity::{self, Identity};
use super::patience::patiently;
use super::registration::Membership;
use super::replication;
use super::stage::Stage;
use crate::config::Config;
use crate::controller::Controller;
use crate::metadata::identity::IdentityError;
use crate::quorum::{MetadataQuorum, OpenError, QuorumConfig, QuorumTiming, Seat};
use crate::replication::{ReplicaManager, set_lost_aside};
use crate::server::admin_http::{self, Health, Whose};
use crate::server::listener::{self, ListenError};
use crate::server::{Rules, Services, Shown, descriptors_max};

/// How long requests that were begun may take to finish once the node stops.
const STOP_GRACE: Duration = Duration::from_millis(1_000);
/// How long a start that is not to be may take to open logs that were left in order.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// Memory for the newest batches of all logs together.
const TAIL_CACHE: usize = 24 * 1024 * 1024;

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A log directory cannot be used by this node.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A port cannot be taken.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// There is no thread for health and metrics.
    #[error("start a thread for admin.listener")]
    Admin(#[source] io::Error),
    /// The logs cannot be opened.
    #[error("open the logs")]
    Log(#[from] LogError),
    /// The metadata cannot be opened.
    #[error("open the metadata")]
    Quorum(#[from] OpenError),
    /// The part in the quorum ended meanwhile.
    #[error("the broker cannot go on: {0}")]
    Ended(String),
    /// The cluster does not take this node.
    #[error("register with the cluster")]
    Register(#[source] Box<dyn Error + Send + Sync>),
}

impl StartError {
    /// Whether another process has a port of the node.
    #[must_use]
    pub fn is_of_taken_port(&self) -> bool {
        matches!(self, Self::Listen(ListenError::Bind { .. }))
    }
}

impl Node {
    /// Starts a node and returns when it serves; `None` when `stop` completed before that, and what
    /// was begun has ended in order.
    ///
    /// # Errors
    /// [`StartError`], naming what to change.
    pub async fn start(
        env: Env,
        config: Config,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Self>, StartError> {
        let started = Instant::now();
        tell_warnings(&config);
        let mut stop = pin!(stop);
        let (found, seat) = tokio::select! {
            biased;
            () = &mut stop => return Ok(None),
            found = find(&env, &config) => found?,
        };
        match join_unless(&env, &config, &found, seat, stop).await? {
            Some(joined) => Ok(Some(serve(env, config, found, joined, started).await)),
            None => Ok(None),
        }
    }
}

/// What is known and taken before anything is opened.
struct Found {
    identity: Identity,
    listeners: Vec<BoxListener>,
    admin: Admin,
}

/// And the seat in the quorum, where that had to be taken to know the cluster.
async fn find(env: &Env, config: &Config) -> Result<(Found, Option<Seat>), StartError> {
    // First, because what lives and is not ready must not be taken for dead, however long it waits
    // for other nodes or for its logs.
    let admin = Admin::start(env, config).await?;
    let (cluster_id, seat) = identity::cluster_id(env, config).await?;
    let has_new_log = seat.as_ref().is_some_and(Seat::is_new);
    let waits = |whose| admin.health.is(whose);
    let identity = Identity::open(env, config, cluster_id, has_new_log, waits).await?;
    identity::settle_metadata_log(env, config).await?;
    admin.health.is(Whose {
        node_id: config.node_id.0,
        cluster_id: Some(identity.cluster_id.clone()),
        directories: identity.directories.clone(),
        unusable: identity.unusable.clone(),
        lost: identity.lost.clone(),
        misses_metadata: false,
        refusal: None,
    });
    // Taken early, so that a port in use is said before anything is recovered.
    let listeners = listener::bind(env, config).await?;
    Ok((Found { identity, listeners, admin }, seat))
}

/// What has to be ended in order, also when the start does not come to its end.
#[derive(Default)]
struct Begun {
    lead: SetOnce<Lead>,
    logs: SetOnce<Arc<LogManager>>,
}

/// The part in the quorum, and the controller, without which this node must not lead.
#[derive(Clone)]
struct Lead {
    quorum: Arc<dyn MetadataQuorum>,
    controller: Controller,
}

impl Begun {
    /// Ends what was begun by a start that was not registered. The log directories are marked as
    /// left in order if they were found so; after another end, the cluster has to be told first.
    async fn end(&self) {
        if let Some(logs) = self.logs.get().filter(|logs| logs.was_clean())
            && let Err(error) = logs.close().await
        {
            error!(error = with_causes(&error), "the logs were not closed cleanly");
        }
        if let Some(Lead { quorum, controller }) = self.lead.get() {
            controller.shutdown().await;
            quorum.shutdown().await;
        }
    }
}

/// Opens the metadata and the logs, and registers, unless `stop` completes before that; what was
/// begun in vain ends in order.
async fn join_unless(
    env: &Env,
    config: &Config,
    found: &Found,
    seat: Option<Seat>,
    stop: impl Future<Output = ()>,
) -> Result<Option<Joined>, StartError> {
    let ended_in_order = was_left_in_order(env, config).await;
    let begun = Begun::default();
    let mut logs = pin!(open_logs(env, config, found).fuse());
    let joined = tokio::select! {
        biased;
        () = stop => Ok(None),
        failure = lead(env, config, &found.identity, seat, &begun) => Err(failure),
        joined = join(env, config, found, logs.as_mut(), &begun) => joined.map(Some),
    };
    if matches!(joined, Ok(Some(_))) {
        return joined;
    }
    // Otherwise the next start had to look at the end of each log.
    if ended_in_order
        && !logs.is_terminated()
        && let Ok(Ok(logs)) = tokio::time::timeout(OPEN_WITHIN, logs).await
    {
        let _ = begun.logs.set(logs); // its only writer was dropped
    }
    begun.end().await;
    joined
}

/// Takes part in the quorum, with a controller from the first moment. Why it cannot, or not any
/// more: ends only then.
async fn lead(
    env: &Env,
    config: &Config,
    identity: &Identity,
    seat: Option<Seat>,
    begun: &Begun,
) -> StartError {
    let quorum = match open_quorum(env, config, identity, seat).await {
        Ok(quorum) => quorum,
        Err(error) => return error,
    };
    let rules = Arc::new(Rules { config: config.clone() });
    let session = config.duration("broker.session.timeout.ms");
    let controller = Controller::start(env.clone(), quorum.clone(), rules, session);
    let fatal = quorum.fatal();
    let _ = begun.lead.set(Lead { quorum, controller }); // its only writer
    StartError::Ended(fatal.await)
}

/// What a node has that is a member of its cluster.
struct Joined {
    lead: Lead,
    logs: Arc<LogManager>,
    membership: Membership,
}

/// Registers this node once its logs are open.
async fn join(
    env: &Env,
    config: &Config,
    found: &Found,
    logs: impl Future<Output = Result<Arc<LogManager>, LogError>>,
    begun: &Begun,
) -> Result<Joined, StartError> {
    let logs = logs.await?;
    let _ = begun.logs.set(logs.clone()); // its only writer
    let lead = begun.lead.wait().await.clone();
    let Found { identity, listeners, .. } = found;
    let Lead { quorum, controller } = &lead;
    let directories = identity.begin_run(env, config, &logs).await;
    let disks = (identity, &directories);
    let membership =
        Membership::begin(controller, &**quorum, config, disks, listeners, &logs).await?;
    // Before the next start takes what is in them for what counts.
    set_lost_aside(&logs, &quorum.image(), config.node_id).await;
    let image = quorum.image();
    let own = image.brokers.get(&config.node_id);
    let others = own.into_iter().flat_map(|own| &own.directories);
    let others = others.filter(|(_, stamp)| stamp.before.is_some()).map(|(id, _)| *id).collect();
    directories.settle(env, &others).await;
    Ok(Joined { lead, logs, membership })
}

/// Hosts what this node is to host, and serves clients.
async fn serve(env: Env, config: Config, found: Found, joined: Joined, started: Instant) -> Node {
    let Found { identity, listeners, admin } = found;
    let Joined { lead: Lead { quorum, controller }, logs, membership } = joined;
    let (mut heartbeats, epoch) = (Stage::default(), membership.epoch());
    let replicas = ReplicaManager::new(&env, config.clone(), logs.clone());
    let lead = config.has_several_nodes().then(|| membership.lead(replicas.clone()));
    heartbeats.run(|stop| membership.keep(controller.clone(), quorum.clone(), lead, stop));

    let deltas = quorum.deltas();
    let shown = Arc::new(Shown::default());
    let groups = GroupHost::new(&env, &config, replicas.clone(), shown.clone());
    let coordinator = groups.coordinator();
    let services =
        Arc::new(Services::new(env, config, quorum, controller, replicas, coordinator, shown));
    let (roles, hosted) = hosting::begin(services.clone(), logs.clone(), groups, deltas).await;

    let (mut syncing, mut hosting, mut replication, mut upkeep) =
        (Stage::default(), Stage::default(), Stage::default(), Stage::default());
    syncing.run(|stop| logs.clone().run_syncers(services.replicas.clone(), stop));
    hosting.run(|stop| roles.follow(stop));
    hosting.run(|stop| hosted.follow(stop));
    let (env, config) = (services.env.clone(), services.config.clone());
    let (replicas, controller) = (services.replicas.clone(), services.controller.clone());
    replication::begin(&mut replication, env, config, replicas, controller, epoch);
    upkeep.run(|stop| logs.clone().run_upkeep(stop));
    let (addresses, listening) = listen(&services, listeners);
    admin.health.serves(services.clone(), logs.clone());
    info!(
        node_id = services.config.node_id.0,
        cluster_id = identity.cluster_id,
        ?addresses,
        "Kafka Server started: Transitioning from RECOVERY to RUNNING; started in {} ms",
        started.elapsed().as_millis()
    );
    Node {
        services,
        logs,
        addresses,
        admin,
        epoch,
        heartbeats,
        syncing,
        hosting,
        replication,
        upkeep,
        listening,
    }
}

fn tell_warnings(config: &Config) {
    for warning in config.warnings() {
        warn!(key = warning.key, "{warning}");
    }
    if config.advertises_localhost() {
        warn!(
            "advertised.listeners names no host, so clients are told to connect to localhost, which \
            works only on this machine"
        );
    }
}

/// Health and metrics over HTTP, from the start to the stop.
pub(super) struct Admin {
    pub(super) address: Option<SocketAddr>,
    pub(super) health: Arc<Health>,
    pub(super) serving: Stage,
}

impl Admin {
    /// Serves apart from all other work: a probe must not take a broker for dead because a device
    /// holds up the writes of partitions, and with them the threads of all clients.
    async fn start(env: &Env, config: &Config) -> Result<Self, StartError> {
        let (health, mut serving) = (Arc::<Health>::default(), Stage::default());
        if config.admin.is_none() {
            return Ok(Self { address: None, health, serving });
        }
        let (told, begins, config) = (health.clone(), env.clone(), config.clone());
        let (bound, is_bound) = oneshot::channel();
        let stop = serving.stop();
        let serve = async move {
            // Here, because a socket is served by the runtime that made it.
            // Nobody waits for the answer when the start was given up.
            match listener::bind_admin(&begins, &config).await {
                Ok(None) => drop(bound.send(Ok(None))),
                Ok(Some(listener)) => {
                    let _ = bound.send(Ok(listener.local_addr().ok()));
                    admin_http::serve(told, listener, stop).await;
                }
                Err(error) => drop(bound.send(Err(error))),
            }
        };
        let serve = env.tasks.apart(Box::pin(serve)).map_err(StartError::Admin)?;
        serving.run(|_| serve);
        let address = is_bound.await.map_err(|ended| StartError::Ended(ended.to_string()))??;
        Ok(Self { address, health, serving })
    }
}

async fn open_quorum(
    env: &Env,
    config: &Config,
    identity: &Identity,
    seat: Option<Seat>,
) -> Result<Arc<dyn MetadataQuorum>, StartError> {
    let seat = match seat {
        Some(seat) => seat,
        None => take_seat(env, quorum_config(env, config, Some(identity)).await).await?,
    };
    Ok(seat.join(identity.metadata_directory_id).await?)
}

/// Opens the metadata log and takes the port for other voters.
pub(super) async fn take_seat(env: &Env, config: QuorumConfig) -> Result<Seat, OpenError> {
    let take = || Seat::take(env.clone(), config.clone());
    patiently("open the metadata", OpenError::is_state, take).await
}

/// A sole voter needs to be reached by nobody.
pub(super) async fn quorum_config(
    env: &Env,
    config: &Config,
    identity: Option<&Identity>,
) -> QuorumConfig {
    let controller = (config.controller.host.clone(), config.controller.port);
    let (disk, dirs) = (env.disk.clone(), config.log_dirs.clone());
    // Partitions without a metadata log are the remains of a lost one; beginning anew would disown
    // them.
    let has_partitions = move || partitions_in(&*disk, &dirs).is_some();
    let mut must_exist = env.blocking(has_partitions).await;
    if must_exist && identity.is_some_and(|identity| identity.begins_anew(config)) {
        must_exist = false;
        let (disk, log) = (env.disk.clone(), config.metadata_dir.join(METADATA_DIR));
        if !env.blocking(move || disk.exists(&log)).await.unwrap_or(true) {
            error!(
                "the metadata log was accepted as lost (accepted.lost.metadata.log): creating a \
                 new one in {}; it is filled by the other voters and, where there are none, the \
                 partitions in the log directories, which it does not know, are renamed to *-stray",
                config.metadata_dir.display()
            );
        }
    }
    QuorumConfig {
        node_id: config.node_id.0,
        dir: config.metadata_dir.join(METADATA_DIR),
        listener: Some(controller).filter(|_| config.has_several_nodes()),
        voters: config.voters.clone(),
        servers: config.quorum_servers.clone(),
        reached_at: Some(config.controller_reached_at()),
        joins: config.is_true("controller.quorum.auto.join.enable"),
        cluster_id: identity.map(|identity| identity.cluster_id.clone()),
        must_exist,
        timing: QuorumTiming {
            session: config.duration("broker.session.timeout.ms"),
            ..QuorumTiming::default()
        }
        .with_timeouts(
            config.duration("controller.quorum.fetch.timeout.ms"),
            config.duration("controller.quorum.election.timeout.ms"),
        ),
    }
}

/// The first of `directories` that has partitions. Blocks.
pub(super) fn partitions_in(disk: &dyn Disk, directories: &[PathBuf]) -> Option<PathBuf> {
    let is_partition = |entry: &DirEntry| {
        entry.is_dir && entry.name != KAFKA_METADATA_DIR && entry.name.contains('-')
    };
    let has = |dir: &&PathBuf| disk.list(dir).is_ok_and(|all| all.iter().any(is_partition));
    directories.iter().find(has).cloned()
}

/// Whether the last run closed every log, so that opening them takes no long.
async fn was_left_in_order(env: &Env, config: &Config) -> bool {
    let (disk, dirs) = (env.disk.clone(), config.log_dirs.clone());
    env.blocking(move || dirs.iter().all(|dir| LogManager::is_left_in_order(&*disk, dir))).await
}

async fn open_logs(env: &Env, config: &Config, found: &Found) -> Result<Arc<LogManager>, LogError> {
    let unusable = found.identity.unusable.clone();
    // Those that are lost keep their place: what lies in them is known to no other.
    let lost = unusable.keys().filter(|directory| !config.log_dirs.contains(directory));
    let log_dirs = config.log_dirs.iter().chain(lost).cloned().collect();
    let options = LogManagerOptions {
        unusable,
        default_config: ReplicaManager::default_log_config(config),
        tail_cache_bytes: TAIL_CACHE,
        reserve_bytes: u64::try_from(config.number("log.dir.reserve.bytes")).ok(),
        producer_id_expiration_ms: config.number("producer.id.expiration.ms"),
        retention_check_interval: config.duration("log.retention.check.interval.ms"),
        recovery_point_interval: config.duration("log.flush.offset.checkpoint.interval.ms"),
        cleaner_backoff: config.duration("log.cleaner.backoff.ms"),
        high_watermark_interval: config.duration("replica.high.watermark.checkpoint.interval.ms"),
        descriptors: descriptors_max(),
        progress: found.admin.health.opening.clone(),
        ..LogManagerOptions::new(log_dirs)
    };
    let open = || LogManager::open(env.clone(), options.clone());
    patiently("open the logs", |error: &LogError| error.fault().is_state(), open).await
}

/// Accepts clients on every listener; where they connect.
fn listen(services: &Arc<Services>, listeners: Vec<BoxListener>) -> (Vec<SocketAddr>, Stage) {
    let (mut addresses, mut listening) = (Vec::new(), Stage::default());
    for (index, listener) in listeners.into_iter().enumerate() {
        addresses.extend(listener.local_addr());
        let services = services.clone();
        listening.run(|stop| listener::accept(services, index, listener, stop, STOP_GRACE));
    }
    (addresses, listening)
}

#[cfg(test)]
mod tests {
    use letterbox_env::with_causes;
    use letterbox_sim::disk::{Fault, SimDisk};

    use super::*;

    #[tokio::test]
    async fn a_start_that_fails_says_each_cause_once() {
        const LOG: &str = "/data/__letterbox_metadata/00000000000000000000.log";
        let config = "process.roles=broker,controller\nnode.id=1\n\
             controller.quorum.voters=1@localhost:9093\ncontroller.listener.names=CONTROLLER\n\
             listeners=PLAINTEXT://127.0.0.1:0,CONTROLLER://127.0.0.1:9093\nlog.dirs=/data\n\
             admin.listener=none\n";
        let disk = SimDisk::new(1);
        disk.inject(Fault::FailWrite, LOG, 0, u64::MAX);
        let config = Config::parse(config).unwrap();
        let started = Node::start(disk.env(), config, std::future::pending()).await;
        assert_eq!(
            with_causes(&started.err().unwrap()),
            format!(
                "open the metadata: metadata log {LOG}: cannot be read or written: Input/output \
                 error (os error 5)"
            )
        );
    }
}
