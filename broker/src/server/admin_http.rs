//! Health, readiness and metrics over HTTP, on a port of their own.
//!
//! `/livez`: the process answers. `/readyz`: it serves clients, and at least one log directory
//! takes their records. `/metrics`: OpenMetrics text. `/identity`: who this is, as JSON, from
//! before the logs are opened:
//!
//! ```json
//! {"cluster.id": "4L6g3nShT-eMCtK--X86sw", "node.id": 0, "directories": [{"path": "/data/kafka-log", "directory.id": "k8mZzqPWTZqCBdkxnTnbYQ"}]}
//! ```
//! Nothing here changes anything.
//!
//! The port has bounds of its own, so that health is told however many clients there are:
//! [`CONNECTIONS_MAX`] connections, of one request each, with a time within which it has come and
//! one within which it is answered.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use letterbox_env::BoxListener;
use letterbox_storage::LogManager;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::listener::{SaidRarely, accept_failed};
use crate::metadata::identity::{DirectoryIdentity, encode_uuid};

/// What is told about; nothing while the broker still recovers.
pub(super) type Running = Arc<OnceLock<(Arc<Shared>, Arc<LogManager>)>>;

/// Connections at once. One more ends the oldest, which a probe is not for long.
const CONNECTIONS_MAX: usize = 64;
/// Time for the head of a request to come.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Time for a connection as a whole.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

const STARTING: &str =
    "starting: the metadata and the logs are being opened; the log says what is waited for\n";

/// Serves until `stop`. A scrape that hangs does not hold that up.
pub(super) async fn serve(
    running: Running,
    identity: String,
    listener: BoxListener,
    stop: CancellationToken,
) {
    let service = TowerToHyperService::new(router(running, identity));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).keep_alive(false);
    let (mut open, mut oldest_first) = (JoinSet::new(), VecDeque::new());
    let mut said = SaidRarely::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
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
            let _ = tokio::time::timeout(ANSWERED_WITHIN, connection).await;
        }));
    }
}

/// What `/identity` answers.
pub(super) fn identity(identities: &[(PathBuf, DirectoryIdentity)]) -> String {
    let directory = |(path, identity): &(PathBuf, DirectoryIdentity)| serde_json::json!({"path": path.to_string_lossy(), "directory.id": encode_uuid(identity.directory_id)});
    let directories: Vec<serde_json::Value> = identities.iter().map(directory).collect();
    let first = identities.first().map(|(_, identity)| identity);
    serde_json::json!({
        "cluster.id": first.map(|identity| &identity.cluster_id),
        "node.id": first.map(|identity| identity.node_id),
        "directories": directories,
    })
    .to_string()
}

fn router(running: Running, identity: String) -> Router {
    let ready = running.clone();
    let identity = move || async move { ([(header::CONTENT_TYPE, "application/json")], identity) };
    let router =
        Router::new().route("/livez", get(|| async { "ok\n" })).route("/identity", get(identity));
    router.route("/readyz", get(move || async move { readiness(&ready) })).route(
        "/metrics",
        get(move || async move {
            let Some((shared, logs)) = running.get() else {
                return (StatusCode::SERVICE_UNAVAILABLE, STARTING).into_response();
            };
            refresh(shared, logs);
            (
                [(
                    header::CONTENT_TYPE,
                    "application/openmetrics-text; version=1.0.0; charset=utf-8",
                )],
                shared.metrics.render(),
            )
                .into_response()
        }),
    )
}

/// Whether clients are served, or why not.
fn readiness(running: &Running) -> (StatusCode, String) {
    let no = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, why.to_owned());
    match running.get() {
        None => no(STARTING),
        Some((shared, _)) if !shared.serving.load(Ordering::Acquire) => {
            no("starting or stopping\n")
        }
        Some((_, logs)) => {
            logs.refusal().map_or((StatusCode::OK, "ok\n".to_owned()), |why| no(&why))
        }
    }
}

/// Reads what is counted elsewhere.
fn refresh(shared: &Shared, logs: &LogManager) {
    let metrics = &shared.metrics;
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let (hosted, leading, offline) = shared.replicas.counts();
    metrics.partitions.set(count(hosted));
    metrics.leaders.set(count(leading));
    metrics.offline.set(count(offline));
    metrics
        .offline_dirs
        .set(count(logs.dirs().iter().filter(|dir| dir.offline().is_some()).count()));
    metrics.show(super::details::read(shared));
    let status = shared.quorum.status();
    metrics.active_controller.set(i64::from(status.leader == Some(status.node_id)));
    metrics.metadata_offset.set(i64::try_from(status.applied_index).unwrap_or(i64::MAX));
    #[allow(clippy::cast_precision_loss, reason = "a gauge")]
    {
        metrics.request_memory_free.set(shared.memory.free() as f64);
        metrics.client_memory_used.set(shared.memory.used() as f64);
        metrics.client_memory_size.set(shared.memory.size() as f64);
        metrics.tail_cache_used.set(logs.tail_cache_bytes() as f64);
    }
    let groups = shared.groups.memory();
    metrics.group_members_memory.set(count(groups.groups_bytes()));
    metrics.group_offsets_memory.set(count(groups.offsets_bytes()));
}
