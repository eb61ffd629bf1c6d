//! Asking other voters what is not consensus: the same connections' frames, on connections of their
//! own, so that a long answer holds up no election. Each lane has its own, so that who is alive is
//! heard while changes wait for a majority.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use letterbox_protocol::model::BrokerId;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::links::{Link, OtherClock};
use super::network::{ASK, STAND, exchange};
use super::{Answering, AskError, Lane};

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
    link: Arc<Link>,
}

/// Asks one node.
pub(super) struct Asker {
    node: BrokerId,
    consensus: Arc<Link>,
    operations: Way,
    status: Way,
    heartbeats: Way,
}

impl Asker {
    pub(super) fn new(node: BrokerId, consensus: Arc<Link>, link: impl Fn() -> Arc<Link>) -> Self {
        let way = |at_once| Way { turns: Semaphore::new(at_once), link: link() };
        Self { node, consensus, operations: way(8), status: way(2), heartbeats: way(1) }
    }

    /// Waits until no connection is being made any more, after this node was told to stop.
    pub(super) async fn end(&self) {
        for way in [&self.operations, &self.status, &self.heartbeats] {
            way.link.end().await;
        }
    }

    /// Whether nothing listens any more where the node is reached; not when nobody can tell.
    pub(super) async fn is_refused(&self) -> bool {
        let refused = tokio::time::timeout(PROBE_WITHIN, self.consensus.is_refused());
        refused.await.unwrap_or(false)
    }

    /// Has the node ask for votes.
    pub(super) async fn stand(&self) -> io::Result<()> {
        let mut connection = self.consensus.take().await?;
        exchange(&mut connection.stream, STAND, &[]).await?;
        self.consensus.give_back(connection);
        Ok(())
    }

    /// Waits for the answer until `given_up`; at `deadline` the other side gives it up, too, by its
    /// own clock, however late the question arrives. Not cancel safe in effect: the question may
    /// have been heard.
    pub(super) async fn ask(
        &self,
        (lane, deadline): (Lane, Instant),
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
            io::Result::Ok((turn, way.link.take().await?))
        };
        let connected = tokio::select! {
            // Given up first: a turn that comes at the deadline is no reason to send anything.
            biased;
            source = &mut given_up => Err(source),
            connected = connected => connected,
        };
        let not_sent = |source| AskError::NotSent { node, source };
        let (_turn, mut connection) = connected.map_err(not_sent)?;
        // The turns of those that were given up at the same moment come free with it.
        if Instant::now() >= deadline {
            way.link.give_back(connection);
            return Err(not_sent(io::ErrorKind::TimedOut.into()));
        }
        let until = connection.clock.at(deadline).to_le_bytes();
        let question = [&until, question].concat();
        let answer = tokio::select! {
            biased;
            answer = exchange(&mut connection.stream, ASK, &question) => answer,
            source = given_up => Err(source),
        };
        let read = |mut answer: Vec<u8>| {
            let shown = *answer.last_chunk().ok_or(io::ErrorKind::InvalidData)?;
            answer.truncate(answer.len().saturating_sub(8));
            Ok((answer, OtherClock::read(shown)))
        };
        let read = answer.and_then(read).map_err(|source| AskError::NoAnswer { node, source });
        let (answer, clock) = read?;
        connection.clock = clock;
        way.link.give_back(connection);
        Ok(answer)
    }
}
