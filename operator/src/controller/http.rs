//! `/livez`, `/readyz` and `/metrics` of the operator itself.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use letterbox_env::{BoxListener, BoxStream};
use tokio::sync::watch;

use super::metrics::Metrics;
use super::passes::Passes;
use super::probe::Health;

/// Serves until it is dropped.
pub(crate) async fn serve(
    listener: BoxListener,
    health: watch::Receiver<Health>,
    metrics: Metrics,
    passes: Passes,
) {
    let ready = move || async move { ready(&health.borrow(), passes.in_vain()) };
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
/// Deployment does not end the one before it. So does one that does its work for no object of a
/// kind, which is said then.
fn ready(health: &Health, in_vain: Option<String>) -> (StatusCode, String) {
    let why = match health {
        Health::Well => in_vain,
        Health::Outdated(why) | Health::Waits(why) => Some(why.clone()),
    };
    match why {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
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
        let in_vain = || Some("in vain".to_owned());
        for (health, in_vain, code, text) in [
            (Health::Well, None, 200, "ok\n"),
            (Health::Well, in_vain(), 503, "in vain\n"),
            (Health::Waits("it is away".to_owned()), in_vain(), 503, "it is away\n"),
            (outdated, None, 503, "they lack a field\n"),
        ] {
            let (status, said) = ready(&health, in_vain);
            assert_eq!((status.as_u16(), said.as_str()), (code, text), "{health:?}");
        }
    }
}
