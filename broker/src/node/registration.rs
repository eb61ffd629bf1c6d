//! What the cluster is told of this node, that it takes it, and that this node lives.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use letterbox_env::{BoxListener, Gather, join_address};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{BrokerId, decode_uuid, encode_uuid};
use letterbox_storage::{LogManager, Loss};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::identity::{Directories, Identity};
use super::lease::Lease;
use super::patience::{MAKE_ROOM, patiently_until};
use super::start::StartError;
use crate::config::Config;
use crate::controller::{Controller, ControllerError, DECIDE_WITHIN_MAX};
use crate::metadata::decide::liveness::{Heartbeat, HeartbeatAnswer};
use crate::metadata::decide::{Decide, FoundLogs, ItemResult, Kind, RegisterBroker, SetClusterId};
use crate::metadata::features::Release;
use crate::metadata::{BrokerRegistration, Endpoint, MetadataImage, SecurityProtocol};
use crate::quorum::{MetadataQuorum, QuorumError};
use crate::replication::ReplicaManager;
use crate::server::Services;

/// How soon a heartbeat is tried again that reached nobody.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How long a stop waits at most for other brokers to take over, and for a controller to hear it.
const LEAVE_WITHIN: Duration = Duration::from_secs(15);
const LEAVE_HEARD_WITHIN: Duration = Duration::from_secs(3);
/// And how long while no majority of the voters can be reached: longer than it takes to connect
/// anew.
const LEAVE_ALONE_AFTER: Duration = Duration::from_millis(500);
const LEAVE_ASKS_EVERY: Duration = Duration::from_millis(50);
/// How long a start has to take until it is said what it waits for: longer than an election, and
/// than an attempt to connect.
const MISSING_AFTER: Duration = Duration::from_secs(5);
/// And how often it is said again.
const SAY_EVERY: Duration = Duration::from_secs(30);

/// This start of the broker, as the cluster knows it.
pub(super) struct Membership {
    id: BrokerId,
    /// See [`crate::metadata::BrokerRegistration::epoch`].
    epoch: i64,
    heartbeat: Duration,
    /// As it has registered with.
    session: Duration,
    /// Before the controller was told of it.
    since: Instant,
}

impl Membership {
    /// Registers this broker, with the addresses that clients are told. Returns when this node
    /// shows that: it acts on no metadata that is older than its registration.
    pub(super) async fn begin(
        controller: &Controller,
        quorum: &dyn MetadataQuorum,
        config: &Config,
        (identity, directories): (&Identity, &Directories),
        listeners: &[BoxListener],
        logs: &LogManager,
    ) -> Result<Self, StartError> {
        let clean_start = logs.was_clean();
        let session = config.duration("broker.session.timeout.ms");
        let found = found_logs(config, directories, logs);
        let set = SetClusterId { cluster_id: identity.cluster_id.clone() };
        run(controller, quorum, set).await?;
        // An earlier run's. A directory that was only formatted has seen no run.
        let image = quorum.image();
        if !clean_start && image.brokers.contains_key(&config.node_id) {
            warn!(
                "the last run did not end cleanly; the partitions that this broker leads get a new \
                leader epoch"
            );
        }
        let endpoints = endpoints(config, listeners);
        let operation = |present: Option<&BrokerRegistration>| RegisterBroker {
            id: config.node_id,
            replaces: Some(present.map_or(0, |present| present.epoch)),
            directories: directories
                .in_use
                .values()
                .map(|identity| (identity.directory_id, identity.stamp))
                .collect(),
            absent: directories.absent.clone(),
            endpoints: endpoints.clone(),
            rack: config.rack.clone(),
            clean_start,
            found: Some(found.clone()),
            flushes_on_ack: config.in_file("log.flush.on.ack").eq_ignore_ascii_case("true"),
            min_insync_replicas: config.in_file("min.insync.replicas").parse().unwrap_or(1),
            session_ms: u64::try_from(session.as_millis()).unwrap_or(u64::MAX),
            release: Release::own(),
        };
        let (mut waits, mut epoch, mut since) = (false, None, Instant::now());
        while epoch.is_none() {
            since = Instant::now();
            let shown = quorum.image();
            let operation = operation(shown.brokers.get(&config.node_id).map(|own| &**own));
            match carry_out(controller, quorum, operation).await? {
                // This node has shown another one meanwhile: this start's own, perhaps, whose
                // answer was lost, or one of an earlier start that was long on its way.
                Err(error) if error.code == ErrorCode::StaleBrokerEpoch => {}
                Err(error) if error.code == ErrorCode::DuplicateBrokerRegistration => {
                    if !std::mem::replace(&mut waits, true) {
                        warn!(%error, "cannot register with the new disk yet; retrying");
                    }
                    tokio::time::sleep(RETRY_AFTER).await;
                }
                registered => epoch = Some(registered.map_err(refused)?),
            }
        }
        let epoch = epoch.unwrap_or_default();
        tell_gone(&quorum.image(), config.node_id);
        let heartbeat = config.duration("broker.heartbeat.interval.ms");
        Ok(Self { id: config.node_id, epoch, heartbeat, session, since })
    }

    /// See [`crate::metadata::BrokerRegistration::epoch`].
    pub(super) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// By what this broker leads: up to when, if nothing is heard of the controller.
    pub(super) fn lead(&self, replicas: Arc<ReplicaManager>) -> Lead {
        let lead = Lead { lease: Lease::new(self.since, self.session), replicas, is_over: false };
        lead.replicas.lead_until(lead.lease.until());
        lead
    }

    /// Tells the active controller that this broker lives, until `stop`.
    pub(super) async fn keep(
        self,
        controller: Controller,
        quorum: Arc<dyn MetadataQuorum>,
        mut lead: Option<Lead>,
        stop: CancellationToken,
    ) {
        let (mut was_fenced, mut failed) = (false, false);
        loop {
            let (asked, applied_index) = (Instant::now(), quorum.image().applied_index);
            let Self { id, epoch, .. } = self;
            let behind = lead.as_ref().map_or_else(Vec::new, |lead| lead.replicas.behind());
            let (wants_fence, wants_stop) = (false, false);
            let heartbeat = Heartbeat { id, epoch, applied_index, wants_fence, wants_stop, behind };
            // A single one that is not answered is no reason to lead no more.
            let every = lead.as_ref().map(|lead| lead.lease.tell_every());
            let every = every.map_or(self.heartbeat, |every| every.min(self.heartbeat));
            let told = tokio::time::timeout(every, controller.heartbeat(heartbeat));
            let told = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                told = told => told,
            };
            if let Some(lead) = &mut lead {
                let answer = told.as_ref().ok().and_then(|told| told.as_ref().ok());
                lead.look(&*quorum, asked, answer, every + RETRY_AFTER * 2);
            }
            let wait = match told {
                Ok(Ok(HeartbeatAnswer { is_fenced, session_ms, .. })) => {
                    failed = false;
                    match (std::mem::replace(&mut was_fenced, is_fenced), is_fenced) {
                        (false, true) => warn!(
                            "this broker is fenced; it leads no partition until the active \
                             controller gets its next heartbeat"
                        ),
                        (true, false) => info!("this broker is unfenced"),
                        _ => {}
                    }
                    // It is being fenced.
                    if session_ms == 0 { every.min(RETRY_AFTER) } else { every }
                }
                failure => {
                    if !std::mem::replace(&mut failed, true) {
                        let why = match failure {
                            Ok(Err(error)) => error.to_string(),
                            _ => "it does not answer".to_owned(),
                        };
                        warn!(why, "cannot send a heartbeat to the active controller; retrying");
                    }
                    every.min(RETRY_AFTER)
                }
            };
            let next = Instant::now() + wait;
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep_until(next) => break,
                    () = shown(&mut lead) => {}
                }
            }
        }
    }
}

/// Completes when `lead` has become one because the metadata was shown that it waited for.
async fn shown(lead: &mut Option<Lead>) {
    match lead {
        Some(lead) => lead.shown().await,
        None => std::future::pending().await,
    }
}

/// Says which lost log directories records are missing of.
fn tell_gone(image: &MetadataImage, id: BrokerId) {
    let Some(own) = image.brokers.get(&id).filter(|own| !own.gone.is_empty()) else { return };
    let gone: Vec<_> = own.gone.iter().map(|(id, _)| encode_uuid(*id)).collect();
    warn!(
        directories = gone.join(","),
        "records that lay in lost log directories of this broker are nowhere else; their \
         partitions wait for the directories, or until the loss of all of them is accepted \
         (accepted.lost.directory.ids)"
    );
}

/// By what this broker leads: see [`Lease`].
pub(super) struct Lead {
    lease: Lease,
    replicas: Arc<ReplicaManager>,
    /// It was said that this broker does not lead.
    is_over: bool,
}

impl Lead {
    /// The controller was told at `asked` that this broker lives, and has said `answer`, if it has;
    /// where it runs, it looks at that `within` so long.
    fn look(
        &mut self,
        quorum: &dyn MetadataQuorum,
        asked: Instant,
        answer: Option<&HeartbeatAnswer>,
        within: Duration,
    ) {
        let now = Instant::now();
        self.tell(now);
        match answer {
            // Others take this node for no member any more.
            _ if quorum.refusal().is_some() => self.lease.end(),
            Some(answer) => self.lease.heard(now, asked, answer),
            None => self.lease.unanswered(now, asked, within),
        }
        self.take(now);
    }

    /// Completes when the roles follow the metadata that was waited for. Cancel safe.
    async fn shown(&mut self) {
        match self.lease.awaited() {
            Some(index) => self.replicas.follow(index).await,
            None => std::future::pending().await,
        }
        self.lease.shown();
        self.take(Instant::now());
    }

    fn take(&mut self, now: Instant) {
        self.replicas.lead_until(self.lease.until());
        self.tell(now);
    }

    fn tell(&mut self, now: Instant) {
        let is_over = self.lease.until().is_none_or(|until| until <= now);
        if std::mem::replace(&mut self.is_over, is_over) != is_over {
            match is_over {
                false => info!("heartbeats are answered again: this broker serves as leader"),
                true => warn!(
                    "this broker does not serve as leader: it was fenced, or no heartbeat was \
                     answered within its session"
                ),
            }
        }
    }
}

/// Completes, with why, when another process has registered as this broker, or nobody is any more.
pub(super) async fn until_replaced(
    quorum: &dyn MetadataQuorum,
    id: BrokerId,
    epoch: i64,
) -> String {
    let is_replaced =
        |image: &Arc<MetadataImage>| image.brokers.get(&id).is_none_or(|own| own.epoch > epoch);
    match quorum.subscribe().wait_for(is_replaced).await {
        Ok(image) if !image.brokers.contains_key(&id) => {
            format!("broker {id} was unregistered; it registers again when it is started again")
        }
        Ok(_) => format!(
            "another process has registered as broker {id} after this one; give one of them its \
             own node.id if both are to run"
        ),
        // The part in the quorum has ended, and says why.
        Err(_) => std::future::pending().await,
    }
}

fn found_logs(config: &Config, directories: &Directories, logs: &LogManager) -> FoundLogs {
    let given_up = config.accepted_lost_directory_ids.iter();
    let given_up = given_up.filter_map(|id| decode_uuid(id)).gather();
    let (has_unread, has_lists) = (logs.has_unread(), logs.had_lists());
    let mut found = FoundLogs { has_unread, has_lists, given_up, ..FoundLogs::default() };
    for (topic, id, index) in logs.not_open() {
        match id {
            Some(id) => found.offline.entry(id).or_default().insert(index),
            None => found.offline_by_name.entry(topic.to_string()).or_default().insert(index),
        };
    }
    for log in logs.logs() {
        let (id, index, loss) = (log.topic_id(), log.partition(), log.loss());
        let Some(directory) = directories.in_use.get(log.dir().path()) else {
            // It has failed since.
            found.offline.entry(id).or_default().insert(index);
            continue;
        };
        let open = found.open.entry(directory.directory_id).or_default();
        let whole = loss == Loss::None;
        let list = if whole { &mut open.whole } else { &mut open.may_have_lost };
        list.entry(id).or_default().insert(index);
        if matches!(loss, Loss::Records | Loss::New) {
            open.lacks_records.entry(id).or_default().insert(index);
        }
    }
    found
}

/// Has the other brokers take over what this one leads, where there are others (KIP-841). Ends also
/// when that takes too long, or no controller hears it.
pub(super) async fn leave(services: &Services) {
    let (config, image) = (&services.config, services.quorum.image());
    let Some(own) = image.brokers.get(&config.node_id) else { return };
    if !config.is_true("controlled.shutdown.enable") || image.live_brokers().count() < 2 {
        return;
    }
    let (id, epoch) = (own.id, own.epoch);
    let heartbeat = || async {
        let applied_index = services.quorum.image().applied_index;
        let (wants_fence, wants_stop, behind) = (false, true, Vec::new());
        let heartbeat = Heartbeat { id, epoch, applied_index, wants_fence, wants_stop, behind };
        tokio::time::timeout(LEAVE_HEARD_WITHIN, services.controller.heartbeat(heartbeat)).await
    };
    let begun = Instant::now();
    let (mut heard, mut had_majority) = (begun, begun);
    while begun.elapsed() < LEAVE_WITHIN && heard.elapsed() < LEAVE_HEARD_WITHIN {
        if let Ok(Ok(answer)) = heartbeat().await {
            heard = Instant::now();
            if answer.may_stop {
                info!("moved the leadership of all partitions to other brokers");
                return;
            }
        }
        if has_majority(&*services.quorum) {
            had_majority = Instant::now();
        } else if had_majority.elapsed() >= LEAVE_ALONE_AFTER {
            warn!(
                "stopping without moving leadership, because no majority of the voters is reachable"
            );
            return;
        }
        tokio::time::sleep(LEAVE_ASKS_EVERY).await;
    }
    warn!(
        "stopping before other brokers lead all partitions that this one leads; they take over \
         when this broker's session ends"
    );
}

async fn run<T, O: Kind + Clone + Decide<Outcome = ItemResult<T>>>(
    controller: &Controller,
    quorum: &dyn MetadataQuorum,
    operation: O,
) -> Result<T, StartError> {
    carry_out(controller, quorum, operation).await?.map_err(refused)
}

/// Has an operation carried out that the start needs, however long there is no majority, and waits
/// until this node shows it.
async fn carry_out<T, O: Kind + Clone + Decide<Outcome = ItemResult<T>>>(
    controller: &Controller,
    quorum: &dyn MetadataQuorum,
    operation: O,
) -> Result<ItemResult<T>, StartError> {
    // When it is this node's own part in the quorum that has stopped, the start ends by that.
    let advice = |error: &ControllerError| match error {
        ControllerError::Quorum(QuorumError::Waiting { .. }) => Some(MAKE_ROOM),
        ControllerError::Quorum(_) | ControllerError::ShuttingDown => Some(
            "a majority of the voters (controller.quorum.voters) has to be there; it goes on by \
             itself",
        ),
        _ => None,
    };
    // With many partitions it is a large decision.
    let attempt = || controller.run_within(operation.clone(), DECIDE_WITHIN_MAX);
    let registered = async {
        let done = patiently_until("register with the cluster", advice, attempt).await;
        let done = done.map_err(refused)?;
        let mut images = quorum.subscribe();
        let shown = images.wait_for(|image| image.applied_index >= done.index).await;
        shown.map_err(refused)?;
        Ok(done.outcome)
    };
    tokio::select! {
        biased;
        registered = registered => registered,
        never = say_what_is_missing(quorum) => match never {},
    }
}

/// Whether a majority of the voters was reached when that was tried last.
fn has_majority(quorum: &dyn MetadataQuorum) -> bool {
    let (missing, voters) = (quorum.unreachable(), quorum.status().voters);
    let there = voters.keys().filter(|id| !missing.contains_key(id)).count();
    there > voters.len() / 2
}

/// Says whom this node waits for, and which voters it does not reach and why.
async fn say_what_is_missing(quorum: &dyn MetadataQuorum) -> Infallible {
    tokio::time::sleep(MISSING_AFTER).await;
    loop {
        let (missing, status) = (quorum.unreachable(), quorum.status());
        let voters = &status.voters;
        let there = voters.keys().filter(|id| !missing.contains_key(id)).count();
        let missing: Vec<String> = missing
            .iter()
            .map(|(id, why)| match voters.get(id) {
                Some((host, port)) => format!("{id}@{} ({why})", join_address(host, port)),
                None => format!("{id} ({why})"),
            })
            .collect();
        let what = match status.leader {
            _ if there <= voters.len() / 2 => "a majority of the voters".to_owned(),
            None => "the voters to elect a leader".to_owned(),
            Some(leader) => format!("voter {leader}, which leads, to register it"),
        };
        warn!(
            missing = missing.join(", "),
            "this node waits for {what} (controller.quorum.voters): {there} of {} can be reached",
            voters.len()
        );
        tokio::time::sleep(SAY_EVERY).await;
    }
}

fn refused(error: impl Error + Send + Sync + 'static) -> StartError {
    StartError::Register(error.into())
}

/// Where clients are told to connect.
fn endpoints(config: &Config, listeners: &[BoxListener]) -> Vec<Endpoint> {
    // A port of 0 was chosen by the system; clients are told the one it chose.
    let port = |at: usize, port: u16| {
        if port == 0 {
            listeners.get(at).and_then(|l| l.local_addr().ok()).map_or(0, |a| a.port())
        } else {
            port
        }
    };
    let endpoint = |(at, endpoint): (usize, &crate::config::Endpoint)| Endpoint {
        listener: endpoint.name.clone(),
        host: endpoint.host.clone(),
        port: port(at, endpoint.port),
        security_protocol: SecurityProtocol::Plaintext,
    };
    config.advertised.iter().enumerate().map(endpoint).collect()
}
