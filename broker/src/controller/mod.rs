//! The controller: carries out operations on the metadata, wherever they are asked for.
//!
//! Every node has one. The node that leads the quorum decides (`proposer`); the others pass the
//! operation on to it (`forward`). An operation is carried out once or not at all: it is passed
//! on again only when it was surely not begun.

mod forward;
mod proposer;

use std::sync::Arc;
use std::time::Duration;

use letterbox_env::Env;
use letterbox_protocol::ErrorCode;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::forward::{Door, Question};
use self::proposer::{Job, Proposer, QUEUE_LEN_MAX};
use crate::metadata::decide::{Answer, ConfigRules, Kind, Operation};
use crate::quorum::{MetadataQuorum, QuorumError};

/// How long an operation waits for a leader that takes it.
const LEADER_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks at who leads.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Why an operation has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ControllerError {
    /// The quorum did not take it.
    #[error(transparent)]
    Quorum(#[from] QuorumError),
    /// This node is shutting down; the operation was not begun.
    #[error("the controller is shutting down")]
    ShuttingDown,
    /// The active controller, or this node, is of another version and does not understand.
    #[error("{0}")]
    OtherVersion(String),
}

impl ControllerError {
    /// What a client is told. All but [`Self::OtherVersion`] are retried by clients.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Quorum(QuorumError::OutcomeUnknown) => ErrorCode::RequestTimedOut,
            Self::Quorum(QuorumError::Waiting { .. }) => ErrorCode::KafkaStorageError,
            Self::Quorum(QuorumError::NotLeader { .. } | QuorumError::Stopped { .. })
            | Self::ShuttingDown => ErrorCode::NotController,
            Self::OtherVersion(_) => ErrorCode::UnsupportedVersion,
        }
    }
}

/// What an operation came to, typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done<T> {
    /// See [`Answer::index`].
    pub index: u64,
    /// What the operation came to.
    pub outcome: T,
}

/// A handle to the controller of this node. Cheap to clone.
#[derive(Clone)]
pub struct Controller {
    quorum: Arc<dyn MetadataQuorum>,
    queue: mpsc::Sender<Job>,
    stop: CancellationToken,
    task: Arc<Mutex<Option<tokio::task::JoinHandle<()>>>>,
}

impl Controller {
    /// Starts the controller of the node that takes part in `quorum`.
    #[must_use]
    pub fn start(env: Env, quorum: Arc<dyn MetadataQuorum>, rules: Arc<dyn ConfigRules>) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE_LEN_MAX);
        let stop = CancellationToken::new();
        quorum.answer_with(Arc::new(Door { queue: queue.clone() }));
        let proposer = Proposer {
            env,
            quorum: Arc::clone(&quorum),
            rules,
            jobs,
            stopped: stop.clone(),
            term: None,
        };
        let task = Arc::new(Mutex::new(Some(tokio::spawn(proposer.run()))));
        Self { quorum, queue, stop, task }
    }

    /// Carries out an operation, here or at the node that leads.
    ///
    /// Not cancel safe in effect: an operation that was queued may take effect although the future
    /// was dropped.
    ///
    /// # Errors
    /// [`ControllerError`] when there is no outcome.
    pub async fn run<O: Kind>(&self, operation: O) -> Result<Done<O::Outcome>, ControllerError> {
        let Answer { index, outcome } = self.submit(operation.into()).await?;
        let other_kind = || {
            ControllerError::OtherVersion(
                "the active controller answered another operation than it was asked for".to_owned(),
            )
        };
        Ok(Done { index, outcome: O::outcome(outcome).ok_or_else(other_kind)? })
    }

    /// Carries out an operation of any kind; as [`Self::run`].
    ///
    /// # Errors
    /// [`ControllerError`] when there is no outcome.
    pub async fn submit(&self, operation: Operation) -> Result<Answer, ControllerError> {
        let deadline = tokio::time::Instant::now() + LEADER_WITHIN;
        loop {
            let status = self.quorum.status();
            let result = match status.leader {
                Some(leader) if leader == status.node_id => {
                    decide_here(&self.queue, operation.clone()).await
                }
                Some(leader) => Question::new(&operation)?.ask(&*self.quorum, leader).await,
                None => Err(QuorumError::NotLeader { leader: None }.into()),
            };
            let is_begun = !matches!(
                result,
                Err(ControllerError::Quorum(QuorumError::NotLeader { .. })
                    | ControllerError::ShuttingDown)
            );
            if is_begun || self.stop.is_cancelled() || tokio::time::Instant::now() >= deadline {
                return result;
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(ControllerError::ShuttingDown),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Begins no further operation, waits for the one under way, and refuses what is queued.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        if let Some(task) = self.task.lock().await.take()
            && let Err(error) = task.await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// Hands an operation to this node's proposer.
async fn decide_here(
    queue: &mpsc::Sender<Job>,
    operation: Operation,
) -> Result<Answer, ControllerError> {
    let (reply, receive) = oneshot::channel();
    queue.send(Job::new(operation, reply)).await.map_err(|_| ControllerError::ShuttingDown)?;
    receive.await.map_err(|_| ControllerError::ShuttingDown)?
}
