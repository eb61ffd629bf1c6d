//! Passing questions on to the node that leads, and answering those that others pass on: to carry
//! out an operation, that a broker lives, how the quorum is, who is to vote.
//!
//! A question is `{"v": version, "operation": …}` (or `"heartbeat"`, `"quorum"`, `"voters"`), an
//! answer `{"Ok": …}` or `{"Err": …}`; the operation and its outcome have versions of their own.

use std::sync::Weak;
use std::time::Duration;

use letterbox_env::{BoxFuture, with_causes};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::heartbeats::News;
use super::proposer::Job;
use super::{ControllerError, DECIDE_WITHIN_MAX, decide_here, hear, leading};
use crate::metadata::decide::liveness::{Heartbeat, HeartbeatAnswer};
use crate::metadata::decide::{Answer, DecodeError, Operation};
use crate::quorum::{
    Answering, AskError, Lane, MetadataQuorum, QuorumError, QuorumStatus, VoterChange,
};

/// The version of what surrounds operations and outcomes on their way.
const VERSION: u16 = 0;

/// A question as it is passed on.
#[derive(Serialize, Deserialize)]
struct Question {
    v: u16,
    #[serde(flatten)]
    what: What,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum What {
    /// Encoded.
    Operation(String),
    Heartbeat(Heartbeat),
    Quorum {},
    /// Of the voters.
    Voters(VoterChange),
}

/// How long an answer is waited for that needs no commit.
const STATUS_WITHIN: Duration = Duration::from_secs(5);

/// Has `leader` carry the operation out, which is encoded, before `deadline`.
pub(super) async fn operation(
    quorum: &dyn MetadataQuorum,
    leader: BrokerId,
    operation: &str,
    deadline: Instant,
) -> Result<Answer, ControllerError> {
    let (lane, what) = (Lane::Operations, What::Operation(operation.to_owned()));
    let answer: String = ask(quorum, leader, lane, deadline, what).await?;
    Answer::decode(&answer).map_err(other_version)
}

/// Tells `leader` that a broker lives.
pub(super) async fn heartbeat(
    quorum: &dyn MetadataQuorum,
    leader: BrokerId,
    heartbeat: Heartbeat,
) -> Result<HeartbeatAnswer, ControllerError> {
    let deadline = Instant::now() + STATUS_WITHIN;
    ask(quorum, leader, Lane::Heartbeats, deadline, What::Heartbeat(heartbeat)).await
}

/// What `leader` knows of the quorum.
pub(super) async fn status(
    quorum: &dyn MetadataQuorum,
    leader: BrokerId,
) -> Result<QuorumStatus, ControllerError> {
    let deadline = Instant::now() + STATUS_WITHIN;
    ask(quorum, leader, Lane::Status, deadline, What::Quorum {}).await
}

/// Has `leader` change who votes before `deadline`.
pub(super) async fn voters(
    quorum: &dyn MetadataQuorum,
    leader: BrokerId,
    change: &VoterChange,
    deadline: Instant,
) -> Result<(), ControllerError> {
    ask(quorum, leader, Lane::Operations, deadline, What::Voters(change.clone())).await
}

async fn ask<T: DeserializeOwned>(
    quorum: &dyn MetadataQuorum,
    leader: BrokerId,
    lane: Lane,
    deadline: Instant,
    what: What,
) -> Result<T, ControllerError> {
    let question = Question { v: VERSION, what };
    let question = serde_json::to_vec(&question).map_err(unreadable)?;
    match quorum.ask(leader, lane, deadline, &question).await {
        // An answer that cannot be read may be to an operation that was carried out.
        Ok(answer) => {
            let answer: Result<T, ControllerError> =
                serde_json::from_slice(&answer).map_err(unreadable)?;
            answer
        }
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

pub(super) fn unreadable(error: serde_json::Error) -> ControllerError {
    ControllerError::OtherVersion(error.to_string())
}

fn other_version(error: DecodeError) -> ControllerError {
    ControllerError::OtherVersion(with_causes(&error))
}

/// Where questions come in that other nodes pass on. They are never passed on again: who leads is
/// for the first node to find out.
pub(super) struct Door {
    pub(super) quorum: Weak<dyn MetadataQuorum>,
    pub(super) queue: mpsc::Sender<Job>,
    pub(super) news: mpsc::Sender<News>,
}

impl Answering for Door {
    fn answer<'a>(&'a self, from: BrokerId, question: Vec<u8>) -> BoxFuture<'a, Vec<u8>> {
        Box::pin(async move {
            let answer = match serde_json::from_slice(&question).map_err(unreadable) {
                Ok(Question { v, .. }) if v > VERSION => {
                    write(Err::<(), _>(ControllerError::OtherVersion(format!(
                        "this node reads forwarded operations of version {VERSION}, not {v}"
                    ))))
                }
                Ok(Question { what: What::Operation(operation), .. }) => {
                    let result = self.carry_out(&operation).await;
                    if let Err(error) = &result {
                        tracing::debug!(%from, %error, "a forwarded operation has no outcome");
                    }
                    write(result)
                }
                Ok(Question { what: What::Heartbeat(heartbeat), .. }) => {
                    // Nobody speaks for another broker.
                    write(match heartbeat.id == from {
                        true => hear(&self.news, heartbeat).await,
                        false => Err(ControllerError::Refused(ErrorCode::InvalidRequest.into())),
                    })
                }
                Ok(Question { what: What::Quorum {}, .. }) => write(self.status()),
                Ok(Question { what: What::Voters(change), .. }) => {
                    write(self.change_voters(&change).await)
                }
                Err(error) => write(Err::<(), _>(error)),
            };
            // Strings and numbers: they can always be written.
            answer.unwrap_or_default()
        })
    }

    fn ended(&self, node: BrokerId) {
        // When there is so much news that this one finds no place, the session of the broker ends.
        let _ = self.news.try_send(News::Ended(node));
    }
}

fn write<T: Serialize>(result: Result<T, ControllerError>) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&result)
}

impl Door {
    /// Dropped, and with it what was not begun, when the node that asks does not wait any more.
    async fn carry_out(&self, operation: &str) -> Result<String, ControllerError> {
        let operation = Operation::decode(operation).map_err(other_version)?;
        let deadline = Instant::now() + DECIDE_WITHIN_MAX;
        let answer = decide_here(&self.queue, operation, deadline).await?;
        answer.encode().map_err(unreadable)
    }

    /// Given up by the node that asks at its deadline; what was begun by then is finished.
    async fn change_voters(&self, change: &VoterChange) -> Result<(), ControllerError> {
        let quorum = self.quorum.upgrade().ok_or(ControllerError::ShuttingDown)?;
        let deadline = Instant::now() + DECIDE_WITHIN_MAX;
        Ok(quorum.change_voters(change, deadline).await?)
    }

    /// Of the leader alone: others do not know how far each voter is.
    fn status(&self) -> Result<QuorumStatus, ControllerError> {
        let quorum = self.quorum.upgrade().ok_or(ControllerError::ShuttingDown)?;
        leading(quorum.status())
    }
}
