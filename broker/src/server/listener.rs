//! Listening and accepting.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use letterbox_env::{BoxListener, BoxStream, Env, Fault, Resource, join_address};
use letterbox_protocol::frame::{FrameError, FrameLimit};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::Services;
use super::connection::{Ended, serve};
use super::context::Connection;
use crate::config::Config;
use crate::metrics::ReasonLabel;

/// How long accepting pauses when the process is out of file descriptors: files that wait for one
/// come first.
const BACK_OFF: Duration = Duration::from_millis(100);
/// Time between two log lines about connections that are not taken.
const SAID_EVERY: Duration = Duration::from_secs(10);
/// How long a host name is looked up again until it leads to an address of this machine: a name may
/// be published only when its machine is up.
const NAME_WITHIN: Duration = Duration::from_secs(30);
const LOOK_UP_EVERY: Duration = Duration::from_millis(500);

/// Why a port was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A host name leads nowhere, or to another machine.
    #[error(
        "{key}: the host name {host} does not resolve to an address of this machine after \
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
        source: io::Error,
    },
    /// A port cannot be listened on.
    #[error(
        "{key}: cannot listen on {}; is another process using the port?",
        join_address(.host, .port)
    )]
    Bind {
        /// The setting.
        key: String,
        /// Its host.
        host: String,
        /// Its port.
        port: u16,
        /// The socket's error.
        #[source]
        source: io::Error,
    },
}

/// Takes the ports of all client listeners.
pub(crate) async fn bind(env: &Env, config: &Config) -> Result<Vec<BoxListener>, ListenError> {
    let mut listeners = Vec::with_capacity(config.listeners.len());
    for endpoint in &config.listeners {
        let is_ipv4 = |host: &str| host.parse::<Ipv4Addr>().is_ok();
        let leaves_ipv4 = endpoint.host.parse::<Ipv6Addr>().is_ok_and(|host| host.is_unspecified())
            && config
                .listeners
                .iter()
                .any(|other| other.port == endpoint.port && is_ipv4(&other.host));
        listeners.push(
            bind_one(
                env,
                format!("listeners={endpoint}"),
                &endpoint.host,
                endpoint.port,
                leaves_ipv4,
            )
            .await?,
        );
    }
    Ok(listeners)
}

/// Takes one port; waits for the name.
async fn bind_one(
    env: &Env,
    key: String,
    host: &str,
    port: u16,
    leaves_ipv4: bool,
) -> Result<BoxListener, ListenError> {
    let is_name = !host.is_empty() && host.parse::<IpAddr>().is_err();
    let deadline = Instant::now() + NAME_WITHIN;
    let mut is_said = false;
    loop {
        let bound = if leaves_ipv4 {
            env.net.bind_ipv6_only(host, port).await
        } else {
            env.net.bind(host, port).await
        };
        let source = match bound {
            Ok(listener) => return Ok(listener),
            Err(source) => source,
        };
        if !(is_name && matches!(source.kind(), ErrorKind::NotFound | ErrorKind::AddrNotAvailable))
        {
            return Err(ListenError::Bind { key, host: host.to_owned(), port, source });
        }
        if Instant::now() >= deadline {
            return Err(ListenError::Name {
                key,
                host: host.to_owned(),
                waited: NAME_WITHIN,
                source,
            });
        }
        if !std::mem::replace(&mut is_said, true) {
            warn!(key, host, error = %source, "the host name does not resolve to an address of \
                this machine yet; retrying for up to {NAME_WITHIN:?}");
        }
        tokio::time::sleep(LOOK_UP_EVERY).await;
    }
}

/// Takes the admin port. When it was not asked for by name and is taken (a second broker on one
/// machine), the broker goes on without.
pub(crate) async fn bind_admin(
    env: &Env,
    config: &Config,
) -> Result<Option<BoxListener>, ListenError> {
    let Some((host, port, is_set)) = &config.admin else { return Ok(None) };
    if *is_set {
        return bind_one(env, format!("admin.listener={host}:{port}"), host, *port, false)
            .await
            .map(Some);
    }
    match env.net.bind(host, *port).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) => {
            warn!(%error, port, "health and metrics are not served, because the default port of \
                admin.listener is in use; set admin.listener to another port");
            Ok(None)
        }
    }
}

/// Limits log lines that strangers can cause.
#[derive(Default)]
pub(super) struct SaidRarely(Option<Instant>);

impl SaidRarely {
    /// Whether a line may be said now.
    pub(super) fn may_say(&mut self) -> bool {
        let now = Instant::now();
        let may = self.0.is_none_or(|next| now >= next);
        if may {
            self.0 = Some(now + SAID_EVERY);
        }
        may
    }
}

/// Pauses after a failed accept, unless it was the client's fault; `stop` ends the pause.
pub(super) async fn accept_failed(
    error: &io::Error,
    said: &mut SaidRarely,
    stop: &CancellationToken,
) {
    if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) {
        return;
    }
    if said.may_say() {
        let hint = if Fault::of(error) == Fault::State(Resource::Descriptors) {
            "; raise the limit of open files (ulimit -n)"
        } else {
            ""
        };
        warn!(%error, "cannot accept connections; retrying{hint}");
    }
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(BACK_OFF) => {}
    }
}

/// Accepts until `stop`, then waits up to `grace` for what was begun.
pub(crate) async fn accept(
    services: Arc<Services>,
    index: usize,
    listener: BoxListener,
    stop: CancellationToken,
    grace: Duration,
) {
    static NEXT_ID: AtomicU64 = AtomicU64::new(0);
    let limit = FrameLimit::new(services.config.size("socket.request.max.bytes"));
    let mut open = JoinSet::new();
    let (mut said, mut said_refused) = (SaidRarely::default(), SaidRarely::default());
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
                let authorizer = services.authorizer.clone();
                let connection = Connection::new(id, index, peer, authorizer, limit);
                admit(&services, &mut open, stream, connection, &stop, &mut said_refused)
            }
            Err(error) => {
                if Fault::of(&error) == Fault::State(Resource::Descriptors) {
                    services.replicas.lacks_descriptors();
                }
                accept_failed(&error, &mut said, &stop).await;
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

fn admit(
    services: &Arc<Services>,
    open: &mut JoinSet<()>,
    stream: BoxStream,
    connection: Connection,
    stop: &CancellationToken,
    said: &mut SaidRarely,
) {
    let peer: SocketAddr = connection.caller.peer;
    let place = match services
        .connections
        .enter(peer.ip().to_canonical(), services.replicas.hosted_count())
    {
        Ok(place) => place,
        Err(bound) => {
            services.metrics.closed.get_or_create(&ReasonLabel { reason: bound.name() }).inc();
            if said.may_say() {
                warn!(%peer, "connection refused: {bound}");
            }
            return;
        }
    };
    let (services, stop) = (services.clone(), stop.clone());
    services.metrics.connections.inc();
    open.spawn(async move {
        let (id, caller) = (connection.id, connection.caller.clone());
        let (ended, software) = serve(services.clone(), stream, connection, stop).await;
        services.metrics.connections.dec();
        services.consumers.connection_ended(&caller);
        drop(place);
        let reason = match &ended {
            Ended::ByClient => "client",
            Ended::Io(_) => "io",
            Ended::Idle(_) => "idle",
            Ended::ShuttingDown => "shutdown",
            Ended::HalfFrame { .. } | Ended::Stalled => "half_request",
            Ended::Unread => "unread_answer",
            Ended::Frame(FrameError::Tls | FrameError::Http) => "protocol",
            Ended::Frame(_) => "size",
            Ended::Refused(_) => "refused",
            Ended::Panicked(_) => "panic",
        };
        services.metrics.closed.get_or_create(&ReasonLabel { reason }).inc();
        match ended {
            Ended::ByClient | Ended::Io(_) | Ended::Idle(_) | Ended::ShuttingDown => {
                debug!(id, %peer, software, reason = %ended, "connection closed")
            }
            Ended::Panicked(_) => error!(id, %peer, software, reason = %ended, "connection closed"),
            _ => info!(id, %peer, software, reason = %ended, "connection closed"),
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use letterbox_env::{BoxFuture, Net};

    use super::*;

    /// A machine whose name is published after some look-ups.
    struct Published {
        after: u32,
        asked: AtomicU32,
        real: Arc<dyn Net>,
    }

    impl Net for Published {
        fn bind<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<BoxListener>> {
            if host == "127.0.0.1" || self.asked.fetch_add(1, Ordering::Relaxed) >= self.after {
                return self.real.bind("127.0.0.1", port);
            }
            Box::pin(async { Err(ErrorKind::NotFound.into()) })
        }

        fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
            self.real.connect(host, port)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_published_late_is_waited_for() {
        let env = |after| Env {
            net: Arc::new(Published { after, asked: 0.into(), real: Env::real().net }),
            ..Env::real()
        };
        bind_one(&env(10), "listeners".into(), "broker-0.brokers", 0, false).await.unwrap();
        let error = bind_one(
            &env(u32::MAX),
            "listeners=A://broker-0.brokers:0".into(),
            "broker-0.brokers",
            0,
            false,
        )
        .await
        .err()
        .unwrap();
        assert!(
            matches!(error, ListenError::Name { .. })
                && error.to_string().contains("listeners=A://broker-0.brokers:0"),
            "{error}"
        );
        let taken = bind_one(&env(0), "listeners".into(), "127.0.0.1", 0, false).await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let error =
            bind_one(&env(0), "listeners".into(), "127.0.0.1", port, false).await.err().unwrap();
        assert!(
            matches!(error, ListenError::Bind { .. }),
            "a port that is taken is said at once: {error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_gone_holds_up_nobody_and_a_lack_of_descriptors_pauses() {
        let (stop, mut said) = (CancellationToken::new(), SaidRarely::default());
        let before = Instant::now();
        accept_failed(&ErrorKind::ConnectionAborted.into(), &mut said, &stop).await;
        assert_eq!(before.elapsed(), Duration::ZERO);
        accept_failed(&io::Error::from_raw_os_error(24), &mut said, &stop).await;
        assert!(before.elapsed() >= BACK_OFF && !said.may_say());
    }
}
