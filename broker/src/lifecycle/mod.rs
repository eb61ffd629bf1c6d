//! Lifecycle calls: what an operator asks the cluster before it restarts a broker, and afterwards.
//! All but those of restart leases change nothing.
//!
//! A call is asked at any broker and decided by the active controller, which confirms that it still
//! leads before its answer counts (`controller`). What comes and goes is text: HTTP is the business
//! of `server/admin_http.rs`, and docs/openapi.json describes the calls.

mod caught_up;
mod lease;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::controller::{Controller, ControllerError};
use crate::metadata::ApiError;
use crate::metadata::decide::{Kind, LeaseAnswer, Named, TendLeases};

/// How long an answer may take. Our own programs wait a little longer, so that they are told why
/// there is none (`operator/src/admin/lifecycle.rs`).
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long leads are moved on before what is left is told.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(2);

/// Partitions that an answer names in each list, and that a sentence names.
const NAMES_MAX: usize = 20;
const NAMES_IN_SENTENCE_MAX: usize = 5;

/// Why a call is not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The question is not understood.
    #[error("{0}")]
    BadRequest(String),
    /// There is no such broker.
    #[error("{0}")]
    NotFound(String),
    /// Not all nodes of the cluster know what is asked for.
    #[error("{0}")]
    NotSupported(String),
    /// Nobody can tell now; asked again, somebody may.
    #[error("{0}")]
    Unavailable(String),
}

impl From<ControllerError> for Refusal {
    fn from(error: ControllerError) -> Self {
        match error {
            ControllerError::Refused(error) => error.into(),
            ControllerError::OtherVersion(why) => Self::NotSupported(why),
            error => Self::Unavailable(format!("the active controller did not answer: {error}")),
        }
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        match error.code {
            ErrorCode::BrokerIdNotRegistered => Self::NotFound(error.message),
            ErrorCode::InvalidRequest => Self::BadRequest(error.message),
            ErrorCode::UnsupportedVersion => Self::NotSupported(error.message),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

/// What `query` says: each of these parameters at most once, and no other.
fn parameters<'a>(query: &'a str, known: &[&str]) -> Option<BTreeMap<&'a str, &'a str>> {
    let mut all = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=')?;
        if !known.contains(&key) || all.insert(key, value).is_some() {
            return None;
        }
    }
    Some(all)
}

/// The brokers of a list of ids.
fn brokers_of(ids: &str) -> Option<BTreeSet<BrokerId>> {
    let ids = ids.replace("%2C", ",").replace("%2c", ",");
    ids.split(',').map(|id| id.parse().ok().map(BrokerId)).collect()
}

/// A list as docs/openapi.json has it.
fn named(list: &Named) -> Value {
    let partitions =
        list.some.iter().map(|(topic, index)| json!({"topic": topic, "partition": index}));
    json!({"count": list.count, "partitions": partitions.collect::<Vec<_>>()})
}

/// Some of the names, for a sentence.
fn names(list: &Named) -> String {
    let shown = list.some.iter().take(NAMES_IN_SENTENCE_MAX);
    let shown: Vec<_> = shown.map(|(topic, index)| format!("{topic}-{index}")).collect();
    match list.count.saturating_sub(shown.len()) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// How many partitions they are.
fn count(list: &Named) -> String {
    let partitions = if list.count == 1 { "partition" } else { "partitions" };
    format!("{} {partitions}", list.count)
}

/// These brokers, in a sentence.
fn joined(brokers: &[BrokerId]) -> String {
    let ids: Vec<_> = brokers.iter().map(ToString::to_string).collect();
    match ids.as_slice() {
        [one] => format!("broker {one}"),
        [first @ .., last] => format!("brokers {} and {last}", first.join(", ")),
        [] => "no broker".to_owned(),
    }
}

/// What was asked for, or that it is refused; as JSON.
pub(crate) enum Leased {
    Granted(String),
    Refused(String),
}

/// Answers the calls.
pub(crate) struct Lifecycle {
    controller: Controller,
    turns: Turns,
}

impl Lifecycle {
    /// Must be called within the runtime that the controller's tasks run in.
    pub(crate) fn new(controller: Controller) -> Self {
        Self { controller, turns: Turns::new(Handle::current()) }
    }

    /// The restart verdict, as JSON; `query` is `brokers=1,2`.
    pub(crate) async fn restart_verdict(&self, query: &str) -> Result<String, Refusal> {
        let question = verdict::question(query)?;
        let brokers = question.brokers.clone();
        let verdict = self.ask(question).await??;
        Ok(verdict::answer(&brokers, &verdict).to_string())
    }

    /// How far brokers are, as JSON; `query` is `brokers=1,2&since-epoch=9`, and each may be left out.
    pub(crate) async fn caught_up(&self, query: &str) -> Result<String, Refusal> {
        let found = self.ask(caught_up::question(query)?).await??;
        Ok(caught_up::answer(&found).to_string())
    }

    /// Takes a restart lease, and has its brokers hand over what they lead; `query` is
    /// `holder=me&brokers=1,2&seconds=60`, and the last may be left out.
    pub(crate) async fn take_restart_lease(&self, query: &str) -> Result<Leased, Refusal> {
        let question = lease::question(query)?;
        let (holder, brokers) = (question.holder.clone(), question.restart.brokers.clone());
        let begun = Instant::now();
        let found: LeaseAnswer = match self.ask(question).await.and_then(|found| Ok(found?)) {
            Err(Refusal::NotSupported(why)) => {
                let refused = lease::not_supported(&holder, &brokers, &why);
                return Ok(Leased::Refused(refused.to_string()));
            }
            found => found?,
        };
        let mut left = found.leads_left;
        // The active controller goes on with it, whoever waits.
        while left > 0 && begun.elapsed() < HAND_OVER_WITHIN {
            let more = TendLeases { leads_max: lease::LEADS_TOGETHER_MAX, ..TendLeases::default() };
            match self.ask(more).await {
                Ok(Ok(still)) => left = still,
                Ok(Err(_)) | Err(_) => break,
            }
        }
        let said = lease::answer(&holder, &brokers, &found, left).to_string();
        let is_granted = found.lease.is_some();
        Ok(if is_granted { Leased::Granted(said) } else { Leased::Refused(said) })
    }

    /// Gives a restart lease back; `query` is `holder=me`.
    pub(crate) async fn release_restart_lease(&self, query: &str) -> Result<String, Refusal> {
        let question = lease::release(query)?;
        let holder = question.holder.clone();
        let released = self.ask(question).await?;
        Ok(json!({"holder": holder, "released": released}).to_string())
    }

    async fn ask<O: Kind>(&self, operation: O) -> Result<O::Outcome, Refusal>
    where
        O::Outcome: Send,
    {
        let controller = self.controller.clone();
        let question = async move { controller.run_within(operation, ANSWER_WITHIN).await };
        let late = || Refusal::Unavailable("the broker did not answer in time".to_owned());
        Ok(self.turns.take(question).await.ok_or_else(late)??.outcome)
    }
}

/// The turns of this node's questions, one at a time: what a question costs the controller grows
/// with the partitions, and nobody has to prove who asks.
struct Turns {
    /// Where the controller's connections belong to. Calls come in on a thread apart, whose
    /// runtime ends earlier.
    runtime: Handle,
    turn: Arc<Semaphore>,
}

impl Turns {
    fn new(runtime: Handle) -> Self {
        Self { runtime, turn: Arc::new(Semaphore::new(1)) }
    }

    /// The answer to a question that ends by itself; `None` when it is late. Whoever hangs up gives
    /// up a place in the queue, but not a question that was begun, because a call that is cut off
    /// costs the connection to the node that leads. The next question waits for its end.
    async fn take<T: Send + 'static>(
        &self,
        question: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let answered = async {
            let turn = Arc::clone(&self.turn).acquire_owned().await.ok()?;
            let asking = self.runtime.spawn(async move {
                let _turn = turn;
                question.await
            });
            asking.await.ok()
        };
        tokio::time::timeout(ANSWER_WITHIN, answered).await.ok()?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_question_whose_asker_hangs_up_ends_by_itself_before_the_next_one() {
        let turns = Turns::new(Handle::current());
        let (begun, ended) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let question = |takes: Duration| {
            let (begun, ended) = (Arc::clone(&begun), Arc::clone(&ended));
            async move {
                begun.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(takes).await;
                ended.fetch_add(1, Ordering::Relaxed);
            }
        };
        let counts = || (begun.load(Ordering::Relaxed), ended.load(Ordering::Relaxed));
        let soon = Duration::from_millis(50);
        // One is asked, and nine give up waiting for their turn.
        for _ in 0..10 {
            let hangs_up = tokio::time::timeout(soon, turns.take(question(ANSWER_WITHIN / 2)));
            assert!(hangs_up.await.is_err());
        }
        assert_eq!(counts(), (1, 0));
        assert!(turns.take(question(soon)).await.is_some());
        assert_eq!(counts(), (2, 2), "what was begun has come to its end");
        assert!(turns.take(question(ANSWER_WITHIN * 2)).await.is_none(), "it is late");
    }
}
