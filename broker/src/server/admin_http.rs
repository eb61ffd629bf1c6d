//! Health, readiness and metrics over HTTP, on a port of their own.
//!
//! `/livez`: the process answers. `/readyz`: it serves clients, at least one log directory takes
//! their records, and none holds up what is written to it, because all clients may wait for that. `/metrics`: OpenMetrics text. `/identity`: who this is, as JSON, from
//! before the logs are opened: the log directories that are in use now, those that are not and why,
//! and those that were used before and are not there:
//!
//! ```json
//! {"cluster.id": "4L6g3nShT-eMCtK--X86sw", "node.id": 0,
//!  "directories": [{"path": "/data/kafka-log", "directory.id": "k8mZzqPWTZqCBdkxnTnbYQ"}],
//!  "offline": [{"path": "/data-1/kafka-log", "reason": "sync a log: Input/output error"}],
//!  "lost": [{"path": "/data-2/kafka-log", "directory.id": "x0zVt4QbQkqW7rZp3mGv5A"}]}
//! ```
//! A node that waits for directories (`missing.directories.wait.enable`) tells what it has and what
//! it misses, and `"metadata.log": "missing"` where there is none beside partitions. One that opens
//! its logs tells how far it is: `"opening": {"done": 12, "total": 40, "seconds.left": 7}`.
//!
//! `/lifecycle/…`: what an operator asks the cluster (`crate::lifecycle`). docs/openapi.json describes
//! all of it. Nothing changes anything but `/lifecycle/restart-lease`.
//!
//! It is served apart from all other work (`letterbox_env::Tasks::apart`): `/livez`, `/readyz` and
//! `/identity` wait for no lock that is held while a partition is written.
//!
//! The port has bounds of its own, so that health is told however many clients there are:
//! [`CONNECTIONS_MAX`] connections, of one request each, with a time within which it has come and
//! one within which it is answered.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use axum::Router;
use axum::extract::RawQuery;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use letterbox_env::panics::Confined;
use letterbox_env::{BoxListener, Gather};
use letterbox_protocol::model::BrokerId;
use letterbox_storage::{LogDir, LogManager, OpenProgress};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Services;
use super::listener::{SaidRarely, accept_failed};
use crate::lifecycle::{Leased, Refusal};
use crate::metadata::identity::{DirectoryIdentity, encode_uuid};

/// Who this node is, as its log directories said when it started.
#[derive(Default)]
pub(crate) struct Whose {
    /// Which node of its cluster.
    pub(crate) node_id: i32,
    /// Its cluster, where that is known.
    pub(crate) cluster_id: Option<String>,
    /// Those that could be used, with what is written in each.
    pub(crate) directories: Vec<(PathBuf, DirectoryIdentity)>,
    /// Those that could not, and why.
    pub(crate) unusable: BTreeMap<PathBuf, Arc<io::Error>>,
    /// Those that were used before and are not there, by their ids.
    pub(crate) lost: BTreeMap<Uuid, PathBuf>,
    /// Whether it waits because the metadata log is missing beside partitions.
    pub(crate) misses_metadata: bool,
    /// Why it does not start with these directories, while it waits for others.
    pub(crate) refusal: Option<String>,
}

/// What is told about, which the node fills in as it starts and stops.
#[derive(Default)]
pub(crate) struct Health {
    /// Nothing while that is not known: its directories are not read, or its cluster waits for
    /// other nodes.
    whose: ArcSwapOption<Whose>,
    /// How far it is with that.
    pub(crate) opening: Arc<OpenProgress>,
    /// Nothing while the broker still recovers.
    broker: OnceLock<(Arc<Services>, Arc<LogManager>)>,
    is_stopping: AtomicBool,
}

impl Health {
    /// Whose health this is, as far as its directories say it now.
    pub(crate) fn is(&self, whose: Whose) {
        self.whose.store(Some(Arc::new(whose)));
    }

    /// Clients are served from now on.
    pub(crate) fn serves(&self, services: Arc<Services>, logs: Arc<LogManager>) {
        let _ = self.broker.set((services, logs)); // the node starts once
    }

    /// Clients are not served any more.
    pub(crate) fn stops(&self) {
        self.is_stopping.store(true, Ordering::Release);
    }
}

/// Connections at once. One more ends the oldest, which a probe is not for long.
const CONNECTIONS_MAX: usize = 64;
/// How often it is looked whether writes make progress.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time for the head of a request to come.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Time for a connection as a whole.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

const STARTING: &str =
    "starting: opening the metadata and the logs; the broker's log says what it waits for\n";
const NOT_HEARD: &str = "this broker was fenced, or was paused for longer than its session; waiting \
    for the active controller\n";

/// Serves until `stop`. A scrape that hangs does not hold that up.
pub(crate) async fn serve(health: Arc<Health>, listener: BoxListener, stop: CancellationToken) {
    let service = TowerToHyperService::new(router(health.clone()));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).keep_alive(false);
    let (mut open, mut oldest_first) = (JoinSet::new(), VecDeque::new());
    let (mut said, mut looks) = (SaidRarely::default(), tokio::time::interval(LOOK_EVERY));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = looks.tick() => {
                drop(health.broker.get().map(|(_, logs)| logs.held_up()));
                continue;
            }
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                accept_failed(&error, &mut said, &stop).await;
                continue;
            }
        };
        oldest_first.retain(|connection: &AbortHandle| !connection.is_finished());
        if oldest_first.len() >= CONNECTIONS_MAX
            && let Some(oldest) = oldest_first.pop_front()
        {
            oldest.abort();
        }
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        oldest_first.push_back(open.spawn(async move {
            // Whoever asked badly was told so, and whoever went away needs no line in the log.
            // hyper panics where the clock is before 1970.
            let _ = tokio::time::timeout(ANSWERED_WITHIN, Confined::new(connection)).await;
        }));
    }
}

/// The log directories that are not in use now, and why.
fn offline(whose: &Whose, health: &Health) -> BTreeMap<PathBuf, String> {
    let Some((_, logs)) = health.broker.get() else {
        return whose.unusable.iter().map(|(path, why)| (path.clone(), why.to_string())).gather();
    };
    let why = |dir: &Arc<LogDir>| Some((dir.path().to_owned(), dir.offline()?.to_string()));
    logs.dirs().iter().filter_map(why).collect()
}

/// How many logs are open, how many there are, and how long the others take.
type Opening = (usize, usize, Option<Duration>);

/// What `/identity` answers: a directory that fails while the broker serves is told at once.
fn identity(
    whose: &Whose,
    offline: &BTreeMap<PathBuf, String>,
    opening: Option<Opening>,
) -> String {
    let in_use = whose.directories.iter().filter(|(path, _)| !offline.contains_key(path));
    let directory = |path: &PathBuf, id: Uuid| {
        let (path, id) = (path.to_string_lossy(), encode_uuid(id));
        serde_json::json!({"path": path, "directory.id": id})
    };
    let in_use = in_use.map(|(path, identity)| directory(path, identity.directory_id));
    let unusable = offline
        .iter()
        .map(|(path, why)| serde_json::json!({"path": path.to_string_lossy(), "reason": why}));
    let lost = whose.lost.iter().map(|(id, path)| directory(path, *id));
    let mut said = serde_json::json!({
        "cluster.id": whose.cluster_id,
        "node.id": whose.node_id,
        "directories": in_use.collect::<Vec<_>>(),
        "offline": unusable.collect::<Vec<_>>(),
        "lost": lost.collect::<Vec<_>>(),
    });
    if whose.misses_metadata {
        said["metadata.log"] = "missing".into();
    }
    if let Some((done, total, left)) = opening {
        let left = left.map(|left| left.as_secs());
        said["opening"] = serde_json::json!({"done": done, "total": total, "seconds.left": left});
    }
    said.to_string()
}

fn router(health: Arc<Health>) -> Router {
    let (ready, living, asked) = (health.clone(), health.clone(), health.clone());
    let identity = move || async move {
        match living.whose.load_full() {
            Some(whose) => {
                let opening = living.opening.now().filter(|_| living.broker.get().is_none());
                json(StatusCode::OK, identity(&whose, &offline(&whose, &living), opening))
            }
            None => (StatusCode::SERVICE_UNAVAILABLE, STARTING).into_response(),
        }
    };
    let router =
        Router::new().route("/livez", get(|| async { "ok\n" })).route("/identity", get(identity));
    let (verdict, far, take, release) = (asked.clone(), asked.clone(), asked.clone(), asked);
    let verdict = move |RawQuery(query): RawQuery| async move {
        let (services, query) = (serving(&verdict), query.unwrap_or_default());
        answered(async { services?.lifecycle.restart_verdict(&query).await }.await)
    };
    let far = move |RawQuery(query): RawQuery| async move {
        let (services, query) = (serving(&far), query.unwrap_or_default());
        answered(async { services?.lifecycle.caught_up(&query).await }.await)
    };
    let take = move |RawQuery(query): RawQuery| async move {
        let (services, query) = (serving(&take), query.unwrap_or_default());
        match async { services?.lifecycle.take_restart_lease(&query).await }.await {
            Ok(Leased::Refused(answer)) => json(StatusCode::CONFLICT, answer),
            Ok(Leased::Granted(answer)) => json(StatusCode::OK, answer),
            Err(refusal) => answered(Err(refusal)),
        }
    };
    let release = move |RawQuery(query): RawQuery| async move {
        let (services, query) = (serving(&release), query.unwrap_or_default());
        answered(async { services?.lifecycle.release_restart_lease(&query).await }.await)
    };
    let router = router.route("/lifecycle/restart-verdict", get(verdict));
    let router = router.route("/lifecycle/restart-lease", post(take).delete(release));
    let router = router.route("/lifecycle/caught-up", get(far));
    router.route("/readyz", get(move || async move { readiness(&ready) })).route(
        "/metrics",
        get(move || async move {
            let Some((services, logs)) = health.broker.get().cloned() else {
                return (StatusCode::SERVICE_UNAVAILABLE, STARTING).into_response();
            };
            // Thousands of partitions have tens of thousands of lines.
            let env = services.env.clone();
            let render = move || {
                refresh(&services, &logs);
                services.metrics.render()
            };
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], env.blocking(render).await).into_response()
        }),
    )
}

fn json(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// What answers calls of `/lifecycle`, once there is something.
fn serving(health: &Health) -> Result<Arc<Services>, Refusal> {
    let starts = || Refusal::Unavailable(STARTING.trim_end().to_owned());
    health.broker.get().map(|(services, _)| Arc::clone(services)).ok_or_else(starts)
}

/// The answer of a call of `/lifecycle`, or why there is none.
fn answered(answer: Result<String, Refusal>) -> Response {
    let status = match &answer {
        Ok(_) => StatusCode::OK,
        Err(Refusal::BadRequest(_)) => StatusCode::BAD_REQUEST,
        Err(Refusal::NotFound(_)) => StatusCode::NOT_FOUND,
        Err(Refusal::NotSupported(_) | Refusal::Unavailable(_)) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let why = |refusal: Refusal| serde_json::json!({"error": refusal.to_string()}).to_string();
    json(status, answer.unwrap_or_else(why))
}

/// Whether clients are served, or why not.
fn readiness(health: &Health) -> (StatusCode, String) {
    let no = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, why.to_owned());
    match health.broker.get() {
        None => match health.whose.load().as_ref().and_then(|whose| whose.refusal.as_ref()) {
            Some(refusal) => no(&format!("waiting for log directories: {refusal}\n")),
            None => no(&starting(health.opening.now())),
        },
        Some(_) if health.is_stopping.load(Ordering::Acquire) => no("stopping\n"),
        Some((services, logs)) => {
            let out = services.quorum.refusal().map(|why| format!("cut off: {why}\n"));
            let waits = || (!services.replicas.may_lead()).then(|| NOT_HEARD.to_owned());
            let held_up = || Some(logs.held_up()).filter(|why| !why.is_empty());
            match out.or_else(waits).or_else(|| logs.refusal()).or_else(held_up) {
                Some(why) => no(&why),
                None => (StatusCode::OK, "ok\n".to_owned()),
            }
        }
    }
}

/// What a start waits for, and how far it is.
fn starting(opening: Option<Opening>) -> String {
    let Some((done, total, left)) = opening else { return STARTING.to_owned() };
    let left = left.map_or_else(String::new, |left| format!(", about {} s left", left.as_secs()));
    format!(
        "starting: {done} of {total} logs are open{left}; the broker's log says what it waits for\n"
    )
}

/// What a node is in the metadata quorum, in the words of Kafka's metric.
fn state_of(
    node: BrokerId,
    is_voter: bool,
    leader: Option<BrokerId>,
    vote: Option<BrokerId>,
) -> &'static str {
    match (leader, vote) {
        (Some(leader), _) if leader == node => "leader",
        _ if !is_voter => "observer",
        (Some(_), _) => "follower",
        (None, Some(vote)) if vote == node => "candidate",
        (None, Some(_)) => "voted",
        (None, None) => "unattached",
    }
}

/// Reads what is counted elsewhere.
fn refresh(services: &Services, logs: &LogManager) {
    let metrics = &services.metrics;
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let (hosted, leading, offline) = services.replicas.counts();
    metrics.partitions.set(count(hosted));
    metrics.leaders.set(count(leading));
    metrics.offline.set(count(offline));
    metrics
        .offline_dirs
        .set(count(logs.dirs().iter().filter(|dir| dir.offline().is_some()).count()));
    let mut details = super::details::read(services);
    (details.producers, details.producers_memory, details.producers_refused) =
        logs.producers_memory();
    metrics.show(details);
    let status = services.quorum.status();
    metrics.active_controller.set(i64::from(status.leader == Some(status.node_id)));
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    metrics.metadata_offset.set(number(status.applied_index));
    metrics.metadata_end.set(number(status.last_log_index));
    metrics.quorum_epoch.set(number(status.term));
    let id = |of: Option<BrokerId>| of.map_or(-1, |id| id.0.into());
    metrics.quorum_leader.set(id(status.leader));
    metrics.quorum_vote.set(id(status.vote));
    let is_voter = status.voters.contains_key(&status.node_id);
    metrics.show_quorum_state(state_of(status.node_id, is_voter, status.leader, status.vote));
    let unclean = services.controller.unclean_elections();
    metrics.unclean_elections.inner().store(unclean, Ordering::Relaxed);
    #[allow(clippy::cast_precision_loss, reason = "a gauge")]
    {
        metrics.request_memory_free.set(services.memory.free() as f64);
        metrics.client_memory_used.set(services.memory.used() as f64);
        metrics.client_memory_size.set(services.memory.size() as f64);
        metrics.tail_cache_used.set(logs.tail_cache_bytes() as f64);
        metrics.compaction_memory.set(logs.compaction_bytes() as f64);
    }
    let (sessions, in_sessions) = services.consumers.counts();
    metrics.fetch_sessions.set(count(sessions));
    metrics.session_partitions.set(count(in_sessions));
    let groups = services.groups.memory();
    metrics.answer_files.set(count(logs.answer_files()));
    metrics.decoders.set(count(services.validation.begun() + services.lookups.begun()));
    metrics.group_members_memory.set(count(groups.groups_bytes()));
    metrics.group_offsets_memory.set(count(groups.offsets_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_state_in_the_quorum_is_told_in_kafkas_words() {
        let id = |id: i32| Some(BrokerId(id)).filter(|id| id.0 > 0);
        for (is_voter, leader, vote, word) in [
            (true, 1, 1, "leader"),
            (true, 2, 2, "follower"),
            (true, 0, 1, "candidate"),
            (true, 0, 2, "voted"),
            (true, 0, 0, "unattached"),
            (false, 2, 2, "observer"),
            (false, 0, 0, "observer"),
        ] {
            assert_eq!(state_of(BrokerId(1), is_voter, id(leader), id(vote)), word);
        }
    }

    #[test]
    fn a_start_says_how_far_it_is() {
        let left = Some(Duration::from_millis(7900));
        for (opening, said) in [
            (None, "starting: opening the metadata and the logs;"),
            (Some((0, 40, None)), "starting: 0 of 40 logs are open;"),
            (Some((12, 40, left)), "starting: 12 of 40 logs are open, about 7 s left;"),
        ] {
            assert!(starting(opening).starts_with(said), "{}", starting(opening));
        }
        assert_eq!(readiness(&Health::default()).0, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn what_fails_after_the_start_is_told_by_the_next_answer() {
        let directory = |path: &str, id: u128| {
            let identity = DirectoryIdentity {
                cluster_id: "c".into(),
                node_id: 0,
                directory_id: Uuid::from_u128(id),
                stamp: crate::metadata::Stamp::default(),
                is_used: true,
                created: false,
                is_marked: true,
            };
            (PathBuf::from(path), identity)
        };
        let whose = Whose {
            directories: vec![directory("/a", 1), directory("/b", 2)],
            lost: BTreeMap::from([(Uuid::from_u128(3), PathBuf::from("/c"))]),
            ..Whose::default()
        };
        let said = |offline: &[(&str, &str)]| -> serde_json::Value {
            let offline = offline.iter().map(|(path, why)| ((*path).into(), (*why).into()));
            let left = Some(Duration::from_millis(7900));
            let said = identity(&whose, &offline.collect(), Some((12, 40, left)));
            serde_json::from_str(&said).unwrap()
        };
        let first = said(&[]);
        assert_eq!(first["opening"], json!({"done": 12, "total": 40, "seconds.left": 7}));
        assert_eq!(first["directories"].as_array().unwrap().len(), 2);
        assert_eq!((&first["offline"], &first["lost"][0]["path"]), (&json!([]), &json!("/c")));
        let second = said(&[("/b", "sync: EIO")]);
        assert_eq!(second["directories"].as_array().unwrap().len(), 1);
        assert_eq!(second["directories"][0]["path"], "/a");
        assert_eq!(second["offline"], json!([{"path": "/b", "reason": "sync: EIO"}]));
    }
}
