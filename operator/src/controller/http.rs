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
    let ready = move || async move { ready(&health.borrow()) };
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

/// What `/readyz` says. An operator beside older definitions works and is not ready, so that a
/// Deployment does not end the one before it.
fn ready(health: &Health) -> (StatusCode, String) {
    match health {
        Health::Well => (StatusCode::OK, "ok\n".to_owned()),
        Health::Outdated(why) | Health::Waits(why) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readyz_is_503_with_the_reason_until_the_operator_works_and_its_definitions_are_its_own() {
        let outdated = Health::Outdated("they lack a field".to_owned());
        for (health, code, text) in [
            (Health::Well, 200, "ok\n"),
            (Health::Waits("it is away".to_owned()), 503, "it is away\n"),
            (outdated, 503, "they lack a field\n"),
        ] {
            let (status, said) = ready(&health);
            assert_eq!((status.as_u16(), said.as_str()), (code, text), "{health:?}");
        }
    }
}
