//! Evaluates operations one after the other and commits them together.
//!
//! openraft writes one entry per proposal and waits for each flush. So one proposer takes
//! everything that is queued while a write is in flight and makes one decision of it: each
//! operation is evaluated on an image that already contains what the ones before it decided, and
//! each caller gets its own outcome when the decision is applied.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use letterbox_env::Env;
use letterbox_env::panics::lock;
use letterbox_protocol::model::BrokerId;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{ControllerError, leads, unclean};
use crate::metadata::decide::liveness::Lags;
use crate::metadata::decide::{Answer, ConfigRules, Context, Decision, Operation, Outcome, Voters};
use crate::metadata::{MetadataImage, MetadataRecord};
use crate::quorum::{MetadataQuorum, QuorumError};

/// Operations that wait; more wait at the callers.
pub(super) const QUEUE_LEN_MAX: usize = 1024;

/// Operations are decided together until they have this many records, whatever else is queued.
const RECORDS_TOGETHER_MAX: usize = 20_000;

/// How long what was begun may take once this node stops.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// A voter follows if it had all entries so long ago, at most. Heartbeats are more frequent.
const IN_STEP_MS: i64 = 2_000;

/// A queued operation and who waits for it.
pub(super) struct Job {
    operation: Operation,
    /// What was decided last; it counts once its records are committed.
    outcome: Option<Outcome>,
    reply: oneshot::Sender<Result<Answer, ControllerError>>,
}

impl Job {
    pub(super) fn new(
        operation: Operation,
        reply: oneshot::Sender<Result<Answer, ControllerError>>,
    ) -> Self {
        Self { operation, outcome: None, reply }
    }

    /// Whether nobody waits for the outcome any more: the caller was told that the time is over.
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Hands the outcome, or the error, to the caller, who may have gone away.
    fn complete(self, result: Result<u64, ControllerError>) {
        let answer = result.and_then(|index| {
            let outcome = self.outcome.ok_or(ControllerError::ShuttingDown)?;
            Ok(Answer { index, outcome })
        });
        let _ = self.reply.send(answer);
    }
}

pub(super) struct Proposer {
    pub(super) node: BrokerId,
    pub(super) env: Env,
    pub(super) quorum: Arc<dyn MetadataQuorum>,
    pub(super) rules: Arc<dyn ConfigRules>,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) stopped: CancellationToken,
    /// See [`super::Controller::unclean_elections`].
    pub(super) unclean: Arc<AtomicU64>,
    /// See [`super::heartbeats::Watch::lags`].
    pub(super) lags: Arc<Mutex<Lags>>,
    /// The term in which this node's image is known to be complete.
    pub(super) term: Option<u64>,
}

impl Proposer {
    pub(super) async fn run(mut self) {
        loop {
            let first = tokio::select! {
                biased;
                () = self.stopped.cancelled() => break,
                job = self.jobs.recv() => match job {
                    Some(job) => job,
                    None => break,
                },
            };
            let mut batch = vec![first];
            while batch.len() < QUEUE_LEN_MAX
                && let Ok(job) = self.jobs.try_recv()
            {
                batch.push(job);
            }
            self.commit(batch).await;
        }
        self.jobs.close();
        while let Some(job) = self.jobs.recv().await {
            job.complete(Err(ControllerError::ShuttingDown));
        }
    }

    /// Commits the operations in their order, as few decisions of bounded length.
    async fn commit(&mut self, batch: Vec<Job>) {
        let mut rest = batch.into_iter();
        loop {
            let term = match self.lead().await {
                Ok(term) => term,
                Err(error) => {
                    return rest.for_each(|job| job.complete(Err(error.clone().into())));
                }
            };
            let mut image = (*self.quorum.image()).clone();
            let mut decided = Vec::new();
            let mut jobs = Vec::new();
            let mut unclean = 0_usize;
            while decided.len() < RECORDS_TOGETHER_MAX
                && let Some(mut job) = rest.next()
            {
                if job.is_abandoned() {
                    continue;
                }
                let elected = self.evaluate(&mut job, &mut image, &mut decided);
                unclean = unclean.saturating_add(elected);
                jobs.push(job);
            }
            if jobs.is_empty() {
                return;
            }
            let result = self.propose(term, &decided).await;
            if result.is_ok() {
                let unclean = u64::try_from(unclean).unwrap_or(u64::MAX);
                self.unclean.fetch_add(unclean, Ordering::Relaxed);
            } else {
                self.term = None;
            }
            jobs.into_iter().for_each(|job| job.complete(result.clone().map_err(Into::into)));
        }
    }

    async fn lead(&mut self) -> Result<u64, QuorumError> {
        match self.term {
            Some(term) if self.quorum.status().term == term => Ok(term),
            _ => {
                let begun = self.unless_it_stops(self.quorum.begin_leading()).await;
                let term = begun.map_err(|error| match error {
                    // What was not confirmed is that this node leads; nothing else was begun.
                    QuorumError::OutcomeUnknown => QuorumError::NotLeader { leader: None },
                    error => error,
                })?;
                self.term = Some(term);
                Ok(term)
            }
        }
    }

    /// How many leaders the operation elects uncleanly.
    fn evaluate(
        &self,
        job: &mut Job,
        image: &mut MetadataImage,
        decided: &mut Vec<MetadataRecord>,
    ) -> usize {
        let context = Context {
            node: self.node,
            random: &*self.env.random,
            rules: &*self.rules,
            voters: &|| self.voters(),
            lags: &|| lock(&self.lags).clone(),
        };
        let Decision { records, outcome } = job.operation.decide(image, &context);
        let unclean = unclean::tell(image, &records);
        // Leads that are given back are told of where that is begun.
        if !matches!(job.operation, Operation::BalanceLeaders(_)) {
            leads::tell(image, &records);
        }
        // Each operation has applied its records to its own draft already, so this cannot fail.
        if let Err(error) = image.apply_in_place(&records) {
            panic!("an operation decided on records that do not fit its own image: {error}");
        }
        decided.extend(records);
        job.outcome = Some(outcome);
        unclean
    }

    /// The voters as this node, which leads, knows them.
    fn voters(&self) -> Voters {
        let (status, unreachable) = (self.quorum.status(), self.quorum.unreachable());
        let now = self.env.clock.wall_ms();
        let had_all = |id: &BrokerId| status.seen.get(id).and_then(|seen| seen.caught_up_ms);
        let is_in_step = |id: &&BrokerId| {
            let is_in_step = had_all(id).is_some_and(|at| is_recent(now, at));
            **id == self.node || !unreachable.contains_key(id) && is_in_step
        };
        let in_step = status.voters.keys().filter(is_in_step).copied().collect();
        Voters { all: status.voters.keys().copied().collect(), in_step }
    }

    /// Commits `records`; the index that shows them.
    async fn propose(&self, term: u64, records: &[MetadataRecord]) -> Result<u64, QuorumError> {
        if records.is_empty() {
            // Nothing to write, but the outcomes must not come from a leader that was deposed, nor
            // from the image that it had before it was elected again.
            return self.unless_it_stops(self.quorum.confirm_leading(term)).await;
        }
        Ok(self.unless_it_stops(self.quorum.propose(term, records)).await?.index)
    }

    /// What comes of `work`, which ends soon after this node was asked to stop: a majority may not
    /// be there any more.
    async fn unless_it_stops<T>(
        &self,
        work: impl Future<Output = Result<T, QuorumError>>,
    ) -> Result<T, QuorumError> {
        let stopped = async {
            self.stopped.cancelled().await;
            tokio::time::sleep(STOP_GRACE).await;
        };
        tokio::select! {
            biased;
            result = work => result,
            () = stopped => Err(QuorumError::OutcomeUnknown),
        }
    }
}

/// Whether a voter that had all entries `at` then is in step. While a clock that was set back shows
/// less than then, nobody is.
fn is_recent(now: i64, at: i64) -> bool {
    (0..=IN_STEP_MS).contains(&now.saturating_sub(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_voter_is_in_step_by_what_it_had_just_now_also_when_the_clock_is_set_back() {
        let at = 3_600_000;
        for (now, expected) in [
            (at, true),
            (at + IN_STEP_MS, true),
            (at + IN_STEP_MS + 1, false),
            (at - 1, false),
            (0, false),
        ] {
            assert_eq!(is_recent(now, at), expected, "{now}");
        }
        assert!(!is_recent(i64::MIN, i64::MAX) && !is_recent(i64::MAX, i64::MIN));
    }
}
