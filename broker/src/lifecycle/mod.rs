//! Lifecycle calls: what an operator asks the cluster before it restarts a broker.
//!
//! A call is asked at any broker and decided by the active controller, which confirms that it still
//! leads before its answer counts (`controller`). What comes and goes is text: HTTP is the business
//! of `server/admin_http.rs`, and docs/openapi.json describes the calls.

mod verdict;

use std::sync::Arc;
use std::time::Duration;

use letterbox_protocol::ErrorCode;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::controller::{Controller, ControllerError};
use crate::metadata::ApiError;
use crate::metadata::decide::Kind;

/// How long an answer may take: shorter than whoever probes a port waits.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Why a call is not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The question is not understood.
    #[error("{0}")]
    BadRequest(String),
    /// There is no such broker.
    #[error("{0}")]
    NotFound(String),
    /// Nobody can tell now; asked again, somebody may.
    #[error("{0}")]
    Unavailable(String),
}

impl From<ControllerError> for Refusal {
    fn from(error: ControllerError) -> Self {
        match error {
            ControllerError::Refused(error) => error.into(),
            error => Self::Unavailable(format!("the active controller did not answer: {error}")),
        }
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        match error.code {
            ErrorCode::BrokerIdNotRegistered => Self::NotFound(error.message),
            ErrorCode::InvalidRequest => Self::BadRequest(error.message),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

/// Answers the calls.
pub(crate) struct Lifecycle {
    controller: Controller,
    /// Where the controller's connections belong to. Calls come in on a thread apart, whose
    /// runtime ends earlier.
    runtime: Handle,
    /// A question of this node is with the controller: its cost grows with the partitions, and
    /// nobody has to prove who asks.
    turn: Arc<Semaphore>,
}

impl Lifecycle {
    /// Must be called within the runtime that the controller's tasks run in.
    pub(crate) fn new(controller: Controller) -> Self {
        Self { controller, runtime: Handle::current(), turn: Arc::new(Semaphore::new(1)) }
    }

    /// The restart verdict, as JSON; `query` is `brokers=1,2`.
    pub(crate) async fn restart_verdict(&self, query: &str) -> Result<String, Refusal> {
        let (brokers, question) = verdict::question(query)?;
        let verdict = self.ask(question).await??;
        Ok(verdict::answer(&brokers, &verdict).to_string())
    }

    /// Given up with the future.
    async fn ask<O: Kind>(&self, operation: O) -> Result<O::Outcome, Refusal>
    where
        O::Outcome: Send,
    {
        let (controller, turn) = (self.controller.clone(), Arc::clone(&self.turn));
        let mut asking = JoinSet::new();
        let ask = async move {
            let _turn = turn.acquire_owned().await;
            controller.run_within(operation, ANSWER_WITHIN).await
        };
        asking.spawn_on(ask, &self.runtime);
        let late = || Refusal::Unavailable("the broker did not answer in time".to_owned());
        let asked = tokio::time::timeout(ANSWER_WITHIN, asking.join_next()).await;
        let ended = asked.map_err(|_| late())?;
        let ended = ended.and_then(Result::ok).ok_or_else(late)?;
        Ok(ended?.outcome)
    }
}
