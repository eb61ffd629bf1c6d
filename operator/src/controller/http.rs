//! `/livez`, `/readyz` and `/metrics` of the operator itself.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use letterbox_env::{BoxListener, BoxStream};
use tokio::sync::watch;

use super::metrics::Metrics;
use super::probe::Health;

/// Serves until it is dropped.
pub(crate) async fn serve(
    listener: BoxListener,
    health: watch::Receiver<Health>,
    metrics: Metrics,
) {
    let ready = move || async move {
        match &*health.borrow() {
            Health::Well => (StatusCode::OK, "ok\n".to_owned()),
            Health::Outdated(why) | Health::Waits(why) => {
                (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
            }
        }
    };
    let text = || async move {
        (
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            metrics.text(),
        )
    };
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(text));
    if let Err(error) = axum::serve(EnvListener(listener), router).await {
        tracing::error!(%error, "health and metrics are no longer served");
    }
}

struct EnvListener(BoxListener);

impl axum::serve::Listener for EnvListener {
    type Io = BoxStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                // Out of descriptors, most likely: others have to close first.
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}
