//! Connections to other voters. They are made apart from the requests that need them: a look-up of
//! the name, and a few ways there and back, may take longer than one request to consensus may. A
//! request that is late costs the connection it was sent on, never the one that is being made.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared};
use letterbox_env::panics::lock;
use letterbox_env::{BoxStream, Env, with_causes};
use tokio::io::AsyncReadExt;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::identity::{Identity, Met};
use super::network::say_hello;
use super::types::Voter;

/// For a connection on which each side has proved who it is.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// Connections that nobody uses; more are ended.
const IDLE_MAX: usize = 8;

/// A connection on which each side has proved who it is.
pub(super) struct Connection {
    pub(super) stream: BoxStream,
    pub(super) clock: OtherClock,
}

/// What the clock of the other side has shown, in ms since it began to listen.
#[derive(Clone, Copy)]
pub(super) struct OtherClock {
    ms: u64,
    /// When that was heard.
    heard: Instant,
}

impl OtherClock {
    /// `bytes` were just heard.
    pub(super) fn read(bytes: [u8; 8]) -> Self {
        Self { ms: u64::from_le_bytes(bytes), heard: Instant::now() }
    }

    /// What it shows at `moment`, or a little before.
    pub(super) fn at(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.heard).as_millis();
        self.ms.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

/// The ways to one voter, for one purpose: what waits there holds up nothing else.
pub(super) struct Link {
    env: Env,
    identity: Arc<Identity>,
    target: u64,
    node: Voter,
    stopped: watch::Receiver<bool>,
    idle: Mutex<Vec<Connection>>,
    attempt: Mutex<Option<Attempt>>,
    /// The attempt under way.
    tasks: Mutex<JoinSet<()>>,
}

/// A connection that is being made, for whoever takes it.
type Attempt = Shared<BoxFuture<'static, Result<(), Arc<io::Error>>>>;

impl Link {
    pub(super) fn new(
        (env, identity): (Env, Arc<Identity>),
        (target, node): (u64, Voter),
        stopped: watch::Receiver<bool>,
    ) -> Arc<Self> {
        Arc::new(Self {
            env,
            identity,
            target,
            node,
            stopped,
            idle: Mutex::default(),
            attempt: Mutex::default(),
            tasks: Mutex::default(),
        })
    }

    /// A connection that nobody uses. Waits for the one that is being made; when that is given up,
    /// the connection is for who comes next.
    pub(super) async fn take(self: &Arc<Self>) -> io::Result<Connection> {
        loop {
            if let Some(connection) = self.take_idle() {
                return Ok(connection);
            }
            let made = self.attempt().await;
            made.map_err(|error| io::Error::new(error.kind(), with_causes(&*error)))?;
        }
    }

    /// Gives a connection back on which nothing is under way.
    pub(super) fn give_back(&self, connection: Connection) {
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }

    /// Not one that the other side has ended: what is written to that is not heard, and nobody
    /// could tell.
    fn take_idle(&self) -> Option<Connection> {
        loop {
            let mut connection = lock(&self.idle).pop()?;
            if connection.stream.read_u8().now_or_never().is_none() {
                return Some(connection);
            }
        }
    }

    fn attempt(self: &Arc<Self>) -> Attempt {
        let mut attempt = lock(&self.attempt);
        if let Some(attempt) = attempt.as_ref().filter(|attempt| attempt.peek().is_none()) {
            return attempt.clone();
        }
        let (tell, told) = oneshot::channel();
        let link = Arc::clone(self);
        {
            let mut tasks = lock(&self.tasks);
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                let made = link.connect().await.map(|connection| link.give_back(connection));
                let _ = tell.send(made.map_err(Arc::new));
            });
        }
        let ended = |_| Err(Arc::new(io::ErrorKind::ConnectionAborted.into()));
        attempt.insert(told.map(move |made| made.unwrap_or_else(ended)).boxed().shared()).clone()
    }

    /// Notes why the voter cannot be reached, or that it can.
    async fn connect(&self) -> io::Result<Connection> {
        let mut stopped = self.stopped.clone();
        let connected = tokio::select! {
            biased;
            () = super::stopped(&mut stopped) => {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            connected = tokio::time::timeout(CONNECT_WITHIN, self.say_hello()) => connected,
        };
        let late = |_| {
            let message = format!("it does not answer within {CONNECT_WITHIN:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, message))
        };
        let connected = connected.unwrap_or_else(late);
        let unreachable = connected.as_ref().err().map(|error| with_causes(error));
        let met = |met: &mut Met| met.unreachable = unreachable;
        self.identity.meet(self.target, self.node.incarnation, met);
        connected
    }

    async fn say_hello(&self) -> io::Result<Connection> {
        // Looked up again each time: the address of a pod changes.
        let stream = self.env.net.connect(&self.node.host, self.node.port).await?;
        say_hello(stream, &self.identity, (self.target, self.node.incarnation)).await
    }

    /// Whether nothing listens where the voter is reached.
    pub(super) async fn is_refused(&self) -> bool {
        let connected = self.env.net.connect(&self.node.host, self.node.port).await;
        connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// Waits until nothing is under way, after this node was told to stop.
    pub(super) async fn end(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        while tasks.join_next().await.is_some() {}
    }
}
