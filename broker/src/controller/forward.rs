//! Passing operations on to the node that leads, and answering those that others pass on.
//!
//! A question is `{"v": version, "operation": …}`, an answer `{"Ok": …}` or `{"Err": …}`; the
//! operation and its outcome have versions of their own.

use letterbox_env::{BoxFuture, with_causes};
use letterbox_protocol::model::BrokerId;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::proposer::Job;
use super::{ControllerError, decide_here};
use crate::metadata::decide::{Answer, DecodeError, Operation};
use crate::quorum::{Answering, AskError, MetadataQuorum, QuorumError};

/// The version of what surrounds operations and outcomes on their way.
const VERSION: u16 = 0;

/// An operation as it is passed on.
pub(super) struct Question(Vec<u8>);

#[derive(Serialize, Deserialize)]
struct Asked {
    v: u16,
    operation: String,
}

impl Question {
    pub(super) fn new(operation: &Operation) -> Result<Self, ControllerError> {
        let written = operation
            .encode()
            .and_then(|operation| serde_json::to_vec(&Asked { v: VERSION, operation }));
        written.map(Self).map_err(|error| ControllerError::OtherVersion(error.to_string()))
    }

    /// Has `leader` carry the operation out.
    pub(super) async fn ask(
        &self,
        quorum: &dyn MetadataQuorum,
        leader: BrokerId,
    ) -> Result<Answer, ControllerError> {
        match quorum.ask(leader, &self.0).await {
            Ok(answer) => read_answer(&answer),
            Err(AskError::NotSent { source, .. }) => {
                tracing::debug!(%leader, %source, "the active controller cannot be reached");
                Err(QuorumError::NotLeader { leader: None }.into())
            }
            // It may have been carried out, or may be still.
            Err(AskError::NoAnswer { source, .. }) => {
                tracing::warn!(%leader, %source, "the active controller did not answer");
                Err(QuorumError::OutcomeUnknown.into())
            }
        }
    }
}

fn read_answer(answer: &[u8]) -> Result<Answer, ControllerError> {
    // An answer that cannot be read may be to an operation that was carried out.
    let result: Result<String, ControllerError> = serde_json::from_slice(answer)
        .map_err(|error| ControllerError::OtherVersion(error.to_string()))?;
    Answer::decode(&result?).map_err(other_version)
}

fn other_version(error: DecodeError) -> ControllerError {
    ControllerError::OtherVersion(with_causes(&error))
}

/// Where operations come in that other nodes pass on. They are never passed on again: who leads is
/// for the first node to find out.
pub(super) struct Door {
    pub(super) queue: mpsc::Sender<Job>,
}

impl Answering for Door {
    fn answer<'a>(&'a self, from: BrokerId, question: Vec<u8>) -> BoxFuture<'a, Vec<u8>> {
        Box::pin(async move {
            let result = self.carry_out(&question).await;
            if let Err(error) = &result {
                tracing::debug!(%from, %error, "a forwarded operation has no outcome");
            }
            // Strings and numbers: they can always be written.
            serde_json::to_vec(&result).unwrap_or_default()
        })
    }
}

impl Door {
    async fn carry_out(&self, question: &[u8]) -> Result<String, ControllerError> {
        let asked: Asked = serde_json::from_slice(question)
            .map_err(|error| ControllerError::OtherVersion(error.to_string()))?;
        if asked.v > VERSION {
            return Err(ControllerError::OtherVersion(format!(
                "this node reads forwarded operations of version {}, not {}",
                VERSION, asked.v
            )));
        }
        let operation = Operation::decode(&asked.operation).map_err(other_version)?;
        let answer = decide_here(&self.queue, operation).await?;
        answer.encode().map_err(|error| ControllerError::OtherVersion(error.to_string()))
    }
}
