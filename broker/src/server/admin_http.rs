//! Health, readiness and metrics over HTTP, on a port of their own.
//!
//! `/livez`: the process answers. `/readyz`: it serves clients. `/metrics`: OpenMetrics text. Nothing here
//! changes anything.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use letterbox_env::{BoxListener, BoxStream};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Shared;
use crate::log::LogManager;

/// What is told about; nothing while the broker still recovers.
pub(super) type Running = Arc<OnceLock<(Arc<Shared>, Arc<LogManager>)>>;

/// Serves until `stop`.
pub(super) async fn serve(running: Running, listener: BoxListener, stop: CancellationToken) {
    let ready = running.clone();
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || async move {
                match ready.get() {
                    Some((shared, _)) if shared.serving.load(Ordering::Acquire) => (StatusCode::OK, "ok\n"),
                    Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "starting or stopping\n"),
                    None => (StatusCode::SERVICE_UNAVAILABLE, "starting: the logs are being opened\n"),
                }
            }),
        )
        .route(
            "/metrics",
            get(move || async move {
                let Some((shared, logs)) = running.get() else {
                    return (StatusCode::SERVICE_UNAVAILABLE, "starting: the logs are being opened\n").into_response();
                };
                refresh(shared, logs);
                ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], shared.metrics.render())
                    .into_response()
            }),
        );
    let served = axum::serve(Admin(listener), router).with_graceful_shutdown({
        let stop = stop.clone();
        async move { stop.cancelled().await }
    });
    tokio::select! {
        biased;
        // A scrape that hangs must not hold the shutdown up.
        () = stop.cancelled() => {}
        result = served => if let Err(error) = result { warn!(%error, "admin port") },
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
    metrics.offline_dirs.set(count(logs.dirs().iter().filter(|dir| dir.offline().is_some()).count()));
    metrics.show(super::details::read(shared));
    let status = shared.quorum.status();
    metrics.active_controller.set(i64::from(status.leader == Some(status.node_id)));
    metrics.metadata_offset.set(i64::try_from(status.applied_index).unwrap_or(i64::MAX));
    #[allow(clippy::cast_precision_loss, reason = "a gauge")]
    metrics.request_memory_free.set(shared.memory.free() as f64);
}

struct Admin(BoxListener);

impl axum::serve::Listener for Admin {
    type Io = BoxStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    warn!(%error, "admin port: cannot accept; trying again");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}
