//! Asking other voters what is not consensus: the same connections' frames, on connections of their
//! own, so that a long answer holds up no heartbeat.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use letterbox_env::BoxStream;
use letterbox_protocol::model::BrokerId;
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;

use super::network::{Client, exchange};
use super::{Answering, AskError};

/// Questions under way to one node; more wait.
const AT_ONCE: usize = 8;
/// For a connection with both sides' hello.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// For the connection of a probe: who lives accepts it at once, who has died refuses it at once.
const PROBE_WITHIN: Duration = Duration::from_secs(1);
/// For an answer: longer than any decision takes to be committed while the leader leads.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Who answers, once there is somebody.
pub(super) type Ears = Arc<Mutex<Option<Arc<dyn Answering>>>>;

/// Asks one node.
pub(super) struct Asker {
    node: BrokerId,
    client: Client,
    turns: Semaphore,
    idle: Mutex<Vec<BoxStream>>,
}

impl Asker {
    pub(super) fn new(node: BrokerId, client: Client) -> Self {
        Self { node, client, turns: Semaphore::new(AT_ONCE), idle: Mutex::default() }
    }

    /// Whether nothing listens any more where the node is reached; not when nobody can tell.
    pub(super) async fn is_refused(&self) -> bool {
        let refused = tokio::time::timeout(PROBE_WITHIN, self.client.is_refused());
        refused.await.unwrap_or(false)
    }

    /// Not cancel safe in effect: the question may have been heard.
    pub(super) async fn ask(&self, question: &[u8]) -> Result<Vec<u8>, AskError> {
        let _turn = self.turns.acquire().await;
        let node = self.node;
        let not_sent = |source| AskError::NotSent { node, source };
        let mut stream = match self.take_idle() {
            Some(stream) => stream,
            None => match tokio::time::timeout(CONNECT_WITHIN, self.client.connect()).await {
                Ok(connected) => connected.map_err(not_sent)?,
                Err(late) => return Err(not_sent(late.into())),
            },
        };
        let answered = exchange(&mut stream, super::network::ASK, question);
        let answer = match tokio::time::timeout(ANSWER_WITHIN, answered).await {
            Ok(answer) => answer,
            Err(late) => Err(late.into()),
        };
        let answer = answer.map_err(|source| AskError::NoAnswer { node, source })?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
        Ok(answer)
    }

    /// A connection that the other side has not ended: what is written to one that it has is not
    /// heard, and nobody could tell.
    fn take_idle(&self) -> Option<BoxStream> {
        loop {
            let mut stream = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if stream.read_u8().now_or_never().is_none() {
                return Some(stream);
            }
        }
    }
}

/// The answer to what `from` asks.
pub(super) async fn answer(ears: &Ears, from: u64, question: Vec<u8>) -> io::Result<Vec<u8>> {
    let from = super::raft_quorum::broker_id(from).ok_or(io::ErrorKind::InvalidData)?;
    let answering = ears.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match answering {
        Some(answering) => Ok(answering.answer(from, question).await),
        None => Err(io::Error::other("this node is starting and does not answer yet")),
    }
}
