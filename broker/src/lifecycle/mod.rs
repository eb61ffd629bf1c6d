//! Lifecycle calls: what an operator asks the cluster before it restarts a broker, and afterwards.
//!
//! A call is asked at any broker and decided by the active controller, which confirms that it still
//! leads before its answer counts (`controller`). What comes and goes is text: HTTP is the business
//! of `server/admin_http.rs`, and docs/openapi.json describes the calls.

mod caught_up;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::controller::{Controller, ControllerError};
use crate::metadata::ApiError;
use crate::metadata::decide::{Kind, Named};

/// How long an answer may take: shorter than whoever probes a port waits.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

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
