//! When this voter asks for votes.
//!
//! openraft asks as soon as it has not heard of a leader for a while: so a voter whose process was
//! stopped for a moment takes the lead from a leader that everybody else hears, and one that was
//! cut off for a while comes back with a term that ends the leader's. So openraft's own timer is
//! off, and this one asks the others first whether they would vote for this node (a pre-vote).
//! Nothing is changed by that. It asks for votes only when a majority would.
//!
//! Times are drawn anew each time. Two voters that always asked at the same moment would vote for
//! themselves, and so on for ever.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use letterbox_env::Random;
use openraft::{RaftMetrics, ServerState};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::identity::Identity;
use super::network::{Dialer, WOULD};
use super::raft_quorum::QuorumTiming;
use super::types::{NodeLogId, Raft, Vote, Voter};

/// What is asked in advance.
#[derive(Serialize, Deserialize)]
pub(super) struct Would {
    /// The last entry of who asks.
    last: Option<NodeLogId>,
}

/// Has this node ask for votes in time.
pub(super) struct Elections {
    pub(super) raft: Raft,
    pub(super) identity: Arc<Identity>,
    pub(super) dialer: Dialer,
    pub(super) random: Arc<dyn Random>,
    pub(super) timing: QuorumTiming,
}

impl Elections {
    /// Until this node is told to stop, or its part in the quorum ends.
    pub(super) async fn run(self, mut stopped: watch::Receiver<bool>) {
        tokio::select! {
            biased;
            () = super::stopped(&mut stopped) => {}
            _ = self.watch() => {}
        }
    }

    async fn watch(&self) -> io::Result<()> {
        let mut metrics = self.raft.metrics();
        let mut drawn = self.draw();
        loop {
            // Of an observer, or a new log under the id of a voter, that is not asked.
            let may_stand = |metrics: &RaftMetrics<u64, Voter>| {
                metrics.state != ServerState::Leader && self.identity.is_voter_in(metrics)
            };
            metrics.wait_for(may_stand).await.map_err(io::Error::other)?;
            let (vote, heard) = self.heard().await?;
            let due = heard + self.silence(&vote, drawn);
            if Instant::now() < due {
                // It may hear again until then.
                tokio::time::sleep_until(due).await;
                continue;
            }
            drawn = self.draw();
            if self.would_be_elected().await {
                self.raft.trigger().elect().await.map_err(io::Error::other)?;
                // Until it has begun: that is heard as its own vote.
                self.heard().await?;
            } else {
                let heartbeat = self.timing.heartbeat;
                tokio::time::sleep(heartbeat + heartbeat.mul_f64(drawn)).await;
            }
        }
    }

    /// The vote, and when it was given or, that of a leader, confirmed.
    async fn heard(&self) -> io::Result<(Vote, Instant)> {
        let heard =
            self.raft.with_raft_state(|state| (*state.vote_ref(), state.vote_last_modified()));
        let (vote, heard) = heard.await.map_err(io::Error::other)?;
        Ok((vote, heard.unwrap_or_else(Instant::now)))
    }

    /// How long nothing has to be heard of a leader, or of an election.
    fn silence(&self, vote: &Vote, drawn: f64) -> Duration {
        let (patience, votes_within) = (self.timing.patience(), self.timing.votes_within());
        match vote.committed {
            true => patience + patience.mul_f64(drawn / 2.0),
            false => votes_within + votes_within.mul_f64(drawn * 2.0),
        }
    }

    /// Up to one.
    fn draw(&self) -> f64 {
        let mut drawn = [0; 2];
        self.random.fill(&mut drawn);
        f64::from(u16::from_le_bytes(drawn)) / f64::from(u16::MAX)
    }

    /// Whether a majority would vote for this node, as far as that can be found out soon.
    async fn would_be_elected(&self) -> bool {
        let question = Would { last: self.identity.log.last() };
        let Ok(question) = serde_json::to_vec(&question) else { return false };
        let own = self.identity.own();
        let others = self.dialer.voters(&own);
        let mut answers = FuturesUnordered::new();
        for (id, other) in &others {
            let asked = other.request::<bool>(WOULD, &question);
            answers.push(async move { asked.await.unwrap_or(false).then_some(*id) });
        }
        let mut granted = BTreeSet::from([self.identity.node_id]);
        let counted = async {
            while !own.has_majority(|id| granted.contains(&id)) {
                match answers.next().await {
                    Some(answer) => granted.extend(answer),
                    None => return false,
                }
            }
            true
        };
        tokio::time::timeout(self.timing.votes_within(), counted).await.unwrap_or(false)
    }
}

/// Whether this node would vote for who asks, as openraft would decide, and knows of no leader that
/// a majority follows.
pub(super) async fn would(
    raft: &Raft,
    identity: &Identity,
    timing: &QuorumTiming,
    question: Would,
) -> io::Result<bool> {
    let state = raft.with_raft_state(|state| (*state.vote_ref(), state.vote_last_modified()));
    let (vote, heard) = state.await.map_err(io::Error::other)?;
    // An election is under way for as long as its votes are waited for.
    let held_for = if vote.committed { timing.patience() } else { timing.votes_within() };
    let is_held = heard.is_some_and(|heard| heard + held_for >= Instant::now());
    let is_leader = vote.committed && vote.leader_id.voted_for == Some(identity.node_id);
    let is_led = is_held || (is_leader && identity.is_followed(timing.patience()));
    Ok(!is_led && question.last >= identity.log.last())
}
