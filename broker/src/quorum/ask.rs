//! Asking other voters what is not consensus: the same connections' frames, on connections of their
//! own, so that a long answer holds up no election. Each lane has its own, so that who is alive is
//! heard while changes wait for a majority.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use letterbox_env::BoxStream;
use letterbox_env::panics::lock;
use letterbox_protocol::model::BrokerId;
use tokio::io::AsyncReadExt;
use tokio::sync::{Semaphore, watch};

use super::network::{ASK, Client, STAND, exchange};
use super::{Answering, AskError, Lane};

/// For a connection with both sides' hello.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// For the connection of a probe: who lives accepts it at once, who has died refuses it at once.
const PROBE_WITHIN: Duration = Duration::from_secs(1);

/// Who answers, once there is somebody.
#[derive(Clone, Default)]
pub(super) struct Ears(Arc<watch::Sender<Option<Arc<dyn Answering>>>>);

impl Ears {
    pub(super) fn set(&self, answering: Arc<dyn Answering>) {
        self.0.send_replace(Some(answering));
    }

    pub(super) fn get(&self) -> Option<Arc<dyn Answering>> {
        self.0.borrow().clone()
    }

    /// The answer to what `from` asks. Waits for who answers: a node may lead just before its
    /// controller begins.
    pub(super) async fn answer(&self, from: u64, question: Vec<u8>) -> io::Result<Vec<u8>> {
        let from = super::raft_quorum::broker_id(from).ok_or(io::ErrorKind::InvalidData)?;
        let mut ears = self.0.subscribe();
        let answering = ears.wait_for(Option::is_some).await.ok().and_then(|ears| ears.clone());
        let answering = answering.ok_or(io::ErrorKind::ConnectionAborted)?;
        Ok(answering.answer(from, question).await)
    }
}

/// Questions of one lane, to one node.
struct Way {
    /// Questions under way; more wait.
    turns: Semaphore,
    idle: Mutex<Vec<BoxStream>>,
}

/// Asks one node.
pub(super) struct Asker {
    node: BrokerId,
    client: Client,
    operations: Way,
    status: Way,
    heartbeats: Way,
}

impl Asker {
    pub(super) fn new(node: BrokerId, client: Client) -> Self {
        let way = |at_once| Way { turns: Semaphore::new(at_once), idle: Mutex::default() };
        Self { node, client, operations: way(8), status: way(2), heartbeats: way(1) }
    }

    /// Whether nothing listens any more where the node is reached; not when nobody can tell.
    pub(super) async fn is_refused(&self) -> bool {
        let refused = tokio::time::timeout(PROBE_WITHIN, self.client.is_refused());
        refused.await.unwrap_or(false)
    }

    /// Has the node ask for votes.
    pub(super) async fn stand(&self) -> io::Result<()> {
        let mut stream = self.client.connect().await?;
        exchange(&mut stream, STAND, &[]).await.map(|_| ())
    }

    /// Waits for the answer until `given_up`. Not cancel safe in effect: the question may have been
    /// heard.
    pub(super) async fn ask(
        &self,
        lane: Lane,
        question: &[u8],
        given_up: impl Future<Output = io::Error>,
    ) -> Result<Vec<u8>, AskError> {
        let (node, mut given_up) = (self.node, std::pin::pin!(given_up));
        let way = match lane {
            Lane::Operations => &self.operations,
            Lane::Status => &self.status,
            Lane::Heartbeats => &self.heartbeats,
        };
        let connected = async {
            let turn = way.turns.acquire().await;
            let stream = match way.take_idle() {
                Some(stream) => stream,
                None => tokio::time::timeout(CONNECT_WITHIN, self.client.connect()).await??,
            };
            io::Result::Ok((turn, stream))
        };
        let connected = tokio::select! {
            biased;
            connected = connected => connected,
            source = &mut given_up => Err(source),
        };
        let not_sent = |source| AskError::NotSent { node, source };
        let (_turn, mut stream) = connected.map_err(not_sent)?;
        let answer = tokio::select! {
            biased;
            answer = exchange(&mut stream, ASK, question) => answer,
            source = given_up => Err(source),
        };
        let answer = answer.map_err(|source| AskError::NoAnswer { node, source })?;
        lock(&way.idle).push(stream);
        Ok(answer)
    }
}

impl Way {
    /// A connection that the other side has not ended: what is written to one that it has is not
    /// heard, and nobody could tell.
    fn take_idle(&self) -> Option<BoxStream> {
        loop {
            let mut stream = lock(&self.idle).pop()?;
            if stream.read_u8().now_or_never().is_none() {
                return Some(stream);
            }
        }
    }
}
