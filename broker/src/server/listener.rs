//! Listening and accepting.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use letterbox_env::{BoxListener, BoxStream, Env};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::connection::{Ended, serve};
use super::context::Connection;
use super::{Shared, StartError};
use crate::config::Config;
use crate::metrics::ReasonLabel;
use crate::wire::frame::{FrameError, FrameLimit};

/// How long accepting pauses when the process is out of file descriptors.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Takes the ports of all client listeners.
pub(super) async fn bind(env: &Env, config: &Config) -> Result<Vec<BoxListener>, StartError> {
    let mut listeners = Vec::with_capacity(config.listeners.len());
    for endpoint in &config.listeners {
        let bound = env.net.bind(&endpoint.host, endpoint.port).await;
        listeners.push(bound.map_err(|source| StartError::Bind {
            key: format!("listeners={endpoint}"),
            host: endpoint.host.clone(),
            port: endpoint.port,
            source,
        })?);
    }
    Ok(listeners)
}

/// Takes the admin port. When it was not asked for by name and is taken (a second broker on one machine), the
/// broker goes on without.
pub(super) async fn bind_admin(env: &Env, config: &Config) -> Result<Option<BoxListener>, StartError> {
    let Some((host, port, is_set)) = &config.admin else { return Ok(None) };
    match env.net.bind(host, *port).await {
        Ok(listener) => Ok(Some(listener)),
        Err(source) if *is_set => {
            Err(StartError::Bind { key: format!("admin.listener={host}:{port}"), host: host.clone(), port: *port, source })
        }
        Err(error) => {
            warn!(%error, port, "no health and metrics: the default admin port is taken; set admin.listener");
            Ok(None)
        }
    }
}

/// Accepts until `stop`, then waits up to `grace` for what was begun.
pub(super) async fn accept(shared: Arc<Shared>, index: usize, listener: BoxListener, stop: CancellationToken, grace: Duration) {
    static NEXT_ID: AtomicU64 = AtomicU64::new(0);
    let limit = FrameLimit::new(shared.config.size("socket.request.max.bytes"));
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                admit(&shared, &mut open, stream, Connection::new(NEXT_ID.fetch_add(1, Ordering::Relaxed), index, peer, limit), &stop)
            }
            Err(error) => {
                warn!(%error, "cannot accept connections; trying again");
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
    drop(listener);
    let all = async { while open.join_next().await.is_some() {} };
    if tokio::time::timeout(grace, all).await.is_err() {
        debug!(connections = open.len(), "closing connections that still wait");
        open.shutdown().await;
    }
}

fn admit(shared: &Arc<Shared>, open: &mut JoinSet<()>, stream: BoxStream, connection: Connection, stop: &CancellationToken) {
    let peer: SocketAddr = connection.peer;
    let place = match shared.connections.enter(peer.ip().to_canonical()) {
        Ok(place) => place,
        Err(key) => {
            shared.metrics.closed.get_or_create(&ReasonLabel { reason: key }).inc();
            warn!(%peer, key, "connection refused: the bound is reached");
            return;
        }
    };
    let (shared, stop) = (shared.clone(), stop.clone());
    shared.metrics.connections.inc();
    open.spawn(async move {
        let id = connection.id;
        let (ended, software) = serve(shared.clone(), stream, connection, stop).await;
        shared.metrics.connections.dec();
        drop(place);
        let reason = match &ended {
            Ended::ByClient => "client",
            Ended::Io(_) => "io",
            Ended::Idle(_) => "idle",
            Ended::ShuttingDown => "shutdown",
            Ended::HalfFrame { .. } | Ended::Stalled(_) => "half_request",
            Ended::Frame(FrameError::Tls | FrameError::Http) => "protocol",
            Ended::Frame(_) => "size",
            Ended::Refused(_) => "refused",
        };
        shared.metrics.closed.get_or_create(&ReasonLabel { reason }).inc();
        match ended {
            Ended::ByClient | Ended::Io(_) | Ended::Idle(_) | Ended::ShuttingDown => {
                debug!(id, %peer, software, reason = %ended, "connection closed")
            }
            _ => info!(id, %peer, software, reason = %ended, "connection closed"),
        }
    });
}
