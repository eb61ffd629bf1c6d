//! The leader's view of a partition: who is in sync, how far, and what is therefore committed.
//!
//! A state machine without I/O. What it asks for comes out as effects; what it knows comes in:
//! fetches and reports of followers, the answers of the controller, the time.
//!
//! Invariants:
//! - `high_watermark` never moves back within a leader epoch.
//! - It never passes the end of a replica of the maximal ISR: the one that the controller has
//!   committed, and whoever may have been added to it since (KIP-497).
//! - It does not move while fewer than `min_insync` replicas are in sync (KIP-966).
//! - A follower counts only up to where its log is known to be this leader's, and with what it has
//!   on stable storage; and only as the incarnation that is registered (KIP-903).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use letterbox_env::Gather;
use letterbox_protocol::model::{BrokerId, LeaderEpoch, Offset};

use super::follower::{Answer, OwnLog};

/// Counts the registrations of a broker (KIP-631): a broker that was started again has another.
pub(crate) type BrokerEpoch = i64;

/// The brokers that may be in sync: registered, not fenced, not stopping.
pub(crate) type Eligible = Arc<BTreeMap<BrokerId, BrokerEpoch>>;

/// Why an append with `acks=all` is refused before anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{in_sync} of {required} required replicas are in sync")]
pub(crate) struct NotEnoughReplicas {
    /// Replicas in sync.
    pub in_sync: usize,
    /// Replicas that must be.
    pub required: usize,
}

/// What the leader asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LeaderEffect {
    /// The high watermark is that now.
    HighWatermark(Offset),
    /// Ask the controller for this ISR (AlterPartition), which builds on that partition epoch.
    /// Each member with the registration it was in sync as; −1 where none is known.
    AskForIsr { isr: Vec<(BrokerId, BrokerEpoch)>, partition_epoch: i32 },
    /// Look again then ([`LeaderState::tick`]).
    WaitUntil(u64),
}

/// What became of an ISR that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IsrAnswer {
    /// The controller refused it (INELIGIBLE_REPLICA): it never was in force.
    Refused,
    /// The controller has a newer state (INVALID_UPDATE_VERSION, FENCED_LEADER_EPOCH), of which
    /// the asked one may be a part; the metadata will say so.
    Superseded,
    /// No answer came, or one that says nothing.
    Unknown,
}

/// A follower's request for records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FollowerFetch {
    pub(crate) replica: BrokerId,
    pub(crate) broker_epoch: BrokerEpoch,
    /// The epoch in which the follower follows.
    pub(crate) leader_epoch: LeaderEpoch,
    /// Where its log ends.
    pub(crate) at: Offset,
    /// The epoch of its last record; −1 without any.
    pub(crate) last_epoch: LeaderEpoch,
    /// Up to where it counts; at most `at`.
    pub(crate) counts: Offset,
    /// Where its log starts; −1 when it does not say.
    pub(crate) start: Offset,
}

/// A follower's word on how far its log counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FollowerReport {
    pub(crate) replica: BrokerId,
    pub(crate) broker_epoch: BrokerEpoch,
    /// The epoch in which the follower follows.
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) counts: Offset,
    /// The epoch of its last record then.
    pub(crate) last_epoch: LeaderEpoch,
}

/// What the leader knows of a follower since it leads.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    broker_epoch: BrokerEpoch,
    /// Its log is the leader's up to here; `None` until it has fetched.
    verified: Option<Offset>,
    /// It counts up to here; at most `verified`.
    end: Option<Offset>,
    /// It has reported that it counts up to here, where its log is the leader's; the fetch that says
    /// that it has that much may come later, and may have been sent before.
    reported: Offset,
    /// Its log starts here, as it said last.
    start: Option<Offset>,
    /// When it had all that the leader had, last; `None`: never.
    caught_up_ms: Option<u64>,
    last_fetch_ms: u64,
    /// The leader's end when it fetched last: who reaches that later was caught up then.
    leader_end: Offset,
    /// It is caught up and about to be in sync: the high watermark waits for it, or it would run
    /// away from it for ever.
    is_joining: bool,
}

impl Progress {
    /// Under a steady stream a follower never has all: it was caught up when it fetched last, as
    /// soon as it has what there was then.
    fn note_caught_up(&mut self, leader_end: Offset, now_ms: u64) {
        if self.end >= Some(leader_end) {
            self.caught_up_ms = Some(now_ms);
        } else if self.end >= Some(self.leader_end) && self.last_fetch_ms > 0 {
            self.caught_up_ms = self.caught_up_ms.max(Some(self.last_fetch_ms));
        }
    }
}

/// How long the controller may take at most to decide what it is asked for: an attempt that had no
/// answer may come into force until then.
pub(crate) const ISR_ATTEMPT_MAX: Duration = Duration::from_secs(10);
const ISR_ATTEMPT_MAX_MS: u64 = ISR_ATTEMPT_MAX.as_secs() * 1_000;
/// How long after a refusal it is looked again who is to leave the ISR.
const AFTER_REFUSAL_MS: u64 = 1_000;

/// An ISR that was asked for, on the present partition epoch.
#[derive(Clone, Debug)]
struct Asked {
    /// Each member as the registration that has earned it. What is asked again is asked with the
    /// same, or a broker that comes back with an empty disk would come into the ISR on what it had
    /// before.
    isr: BTreeMap<BrokerId, BrokerEpoch>,
    /// Until then an attempt that had no answer may still be decided.
    open_until_ms: u64,
    /// It was refused meanwhile: it is asked again when no other attempt is left, which then tells.
    is_put_off: bool,
}

/// A partition as its leader sees it.
#[derive(Clone, Debug)]
pub(crate) struct LeaderState {
    me: BrokerId,
    epoch: LeaderEpoch,
    /// Where the log ended when this epoch began.
    epoch_start: Offset,
    partition_epoch: i32,
    replicas: Arc<[BrokerId]>,
    /// As the controller has committed it.
    isr: BTreeSet<BrokerId>,
    /// Those that have no room, as it knows them.
    full: Arc<[BrokerId]>,
    /// An ISR that was asked for and may be in force.
    asked: Option<Asked>,
    min_insync: usize,
    /// `replica.lag.time.max.ms`.
    lag_max_ms: u64,
    /// The own log counts up to here: on stable storage, or appended where the topic opts out.
    own_end: Offset,
    high_watermark: Offset,
    followers: BTreeMap<BrokerId, Progress>,
    eligible: Eligible,
}

/// What a leader begins with.
#[derive(Clone, Debug)]
pub(crate) struct Begin {
    pub(crate) me: BrokerId,
    pub(crate) epoch: LeaderEpoch,
    pub(crate) partition_epoch: i32,
    pub(crate) replicas: Arc<[BrokerId]>,
    pub(crate) isr: Arc<[BrokerId]>,
    /// Those that have no room.
    pub(crate) full: Arc<[BrokerId]>,
    pub(crate) min_insync: usize,
    pub(crate) lag_max_ms: u64,
    /// Where its log ends.
    pub(crate) log_end: Offset,
    /// What it knows to be committed.
    pub(crate) high_watermark: Offset,
    pub(crate) eligible: Eligible,
}

impl LeaderState {
    /// Takes over a partition. Nothing is known of the followers; those in sync have
    /// `replica.lag.time.max.ms` from now on to catch up.
    pub(crate) fn begin(begin: Begin, now_ms: u64) -> Self {
        let Begin { me, replicas, isr, eligible, .. } = begin;
        let follower = |id: &BrokerId| {
            let caught_up_ms = isr.contains(id).then_some(now_ms);
            let broker_epoch = eligible.get(id).copied().unwrap_or(-1);
            (*id, Progress { broker_epoch, caught_up_ms, ..Progress::default() })
        };
        Self {
            me,
            epoch: begin.epoch,
            epoch_start: begin.log_end,
            partition_epoch: begin.partition_epoch,
            followers: replicas.iter().filter(|id| **id != me).map(follower).gather(),
            isr: isr.iter().copied().gather(),
            full: begin.full,
            replicas,
            asked: None,
            min_insync: begin.min_insync,
            lag_max_ms: begin.lag_max_ms,
            own_end: begin.high_watermark,
            high_watermark: begin.high_watermark,
            eligible,
        }
    }

    /// The epoch this broker leads in.
    #[must_use]
    pub(crate) fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// Exclusive end of what is committed.
    #[must_use]
    pub(crate) fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Whether the high watermark waits for nothing but the own log. What was appended is then
    /// committed as soon as it counts here.
    #[must_use]
    pub(crate) fn decides_alone(&self) -> bool {
        self.required() == 1
            && self.maximal_isr().all(|id| id == self.me)
            && self.followers.values().all(|follower| !follower.is_joining)
    }

    /// Whether the high watermark has reached where the log ended when this epoch began: what an
    /// earlier leader had shown as committed lies below that (KIP-207).
    #[must_use]
    pub(crate) fn shows_earlier_epochs(&self) -> bool {
        self.high_watermark >= self.epoch_start
    }

    /// Where every log starts at the earliest, of the replicas that may be in sync now: what lies
    /// before is deleted for good, whoever leads next. `own` is where the own log starts.
    pub(crate) fn low_watermark(&self, own: Offset, offline: &[BrokerId]) -> Offset {
        let is_there = |id: &BrokerId| self.eligible.contains_key(id) && !offline.contains(id);
        let others = self.followers.iter().filter(|(id, _)| is_there(id));
        others.map(|(_, follower)| follower.start.unwrap_or(-1)).fold(own, Offset::min)
    }

    /// Never asks for more replicas than the partition has (KIP-966, effective min ISR).
    fn required(&self) -> usize {
        self.min_insync.min(self.replicas.len()).max(1)
    }

    /// Whether that replica is in sync and has said where its log ends: the same from it once more
    /// changes nothing.
    pub(crate) fn knows_in_sync(&self, id: BrokerId) -> bool {
        let follower = self.followers.get(&id);
        self.isr.contains(&id) && follower.is_some_and(|follower| follower.verified.is_some())
    }

    /// How many replicas are in sync, and how many an append with `acks=all` asks for.
    pub(crate) fn in_sync_and_required(&self) -> (usize, usize) {
        (self.isr.len(), self.required())
    }

    /// The followers that are not in sync, and up to where the log of each is known to be this one.
    pub(crate) fn out_of_sync(&self) -> Vec<(BrokerId, Option<Offset>)> {
        // Mostly there are none.
        if self.isr.len() == self.replicas.len() {
            return Vec::new();
        }
        let followers = self.followers.iter().filter(|(id, _)| !self.isr.contains(id));
        followers.map(|(id, follower)| (*id, follower.verified)).collect()
    }

    /// Whether an append with `acks=all` may begin.
    ///
    /// # Errors
    /// [`NotEnoughReplicas`]; answer NOT_ENOUGH_REPLICAS.
    pub(crate) fn may_append_to_all(&self) -> Result<(), NotEnoughReplicas> {
        let (in_sync, required) = self.in_sync_and_required();
        if in_sync >= required { Ok(()) } else { Err(NotEnoughReplicas { in_sync, required }) }
    }

    /// Whether fewer may be in sync than what is committed asks for: to be said when an append that
    /// waited is committed (NOT_ENOUGH_REPLICAS_AFTER_APPEND, as Kafka does).
    #[must_use]
    pub(crate) fn is_below_min_isr(&self) -> bool {
        self.maximal_isr().count() < self.required()
    }

    /// The committed ISR, and whoever may have been added to it.
    fn maximal_isr(&self) -> impl Iterator<Item = BrokerId> {
        let asked = self.asked.iter().flat_map(|asked| asked.isr.keys());
        let asked = asked.filter(|id| !self.isr.contains(id));
        self.isr.iter().chain(asked).copied()
    }

    fn is_in_maximal_isr(&self, id: BrokerId) -> bool {
        let is_asked = |asked: &Asked| asked.isr.contains_key(&id);
        self.isr.contains(&id) || self.asked.as_ref().is_some_and(is_asked)
    }

    /// Changes `min.insync.replicas`. Returns the new high watermark when it moved.
    pub(crate) fn set_min_insync(&mut self, min_insync: usize) -> Option<Offset> {
        self.min_insync = min_insync;
        self.advance()
    }

    /// The own log counts up to `end`. Returns the new high watermark when it moved.
    pub(crate) fn own_end(&mut self, end: Offset) -> Option<Offset> {
        self.own_end = end.max(self.own_end);
        self.advance()
    }

    /// The controller has committed that, in this leader epoch, and as many must be in sync.
    /// Returns the new high watermark when it moved.
    pub(crate) fn committed(
        &mut self,
        partition_epoch: i32,
        replicas: &Arc<[BrokerId]>,
        (isr, full): (&[BrokerId], &Arc<[BrokerId]>),
        min_insync: usize,
    ) -> Option<Offset> {
        self.min_insync = min_insync;
        // What is known already is no answer: an ISR that was asked for may still come into force.
        if partition_epoch <= self.partition_epoch {
            return self.advance();
        }
        self.partition_epoch = partition_epoch;
        self.replicas = replicas.clone();
        self.isr = isr.iter().copied().gather();
        self.full = full.clone();
        self.asked = None;
        self.followers.retain(|id, _| replicas.contains(id));
        for id in replicas.iter().filter(|id| **id != self.me) {
            let broker_epoch = self.eligible.get(id).copied().unwrap_or(-1);
            let unknown = Progress { broker_epoch, ..Progress::default() };
            let follower = self.followers.entry(*id).or_insert(unknown);
            follower.is_joining &= !self.isr.contains(id) && !self.full.contains(id);
        }
        self.advance()
    }

    /// Who may be in sync has changed. What a broker said before it was registered again, it has
    /// said as another: its disk may be empty now. Returns the new high watermark when it moved.
    pub(crate) fn set_eligible(&mut self, eligible: Eligible) -> Option<Offset> {
        self.eligible = eligible;
        for (id, follower) in &mut self.followers {
            match self.eligible.get(id) {
                Some(epoch) if *epoch > follower.broker_epoch => {
                    let caught_up_ms = follower.caught_up_ms;
                    *follower =
                        Progress { broker_epoch: *epoch, caught_up_ms, ..Progress::default() };
                }
                Some(_) => {}
                None => follower.is_joining = false,
            }
        }
        self.advance()
    }

    /// A follower asks for records: what it is answered, and what follows for the partition.
    pub(crate) fn fetch(
        &mut self,
        fetch: FollowerFetch,
        log: &impl OwnLog,
        now_ms: u64,
    ) -> (Answer, Vec<LeaderEffect>) {
        let answer = match self.verdict(&fetch, log) {
            Ok(answer) => answer,
            Err(refusal) => return (refusal, Vec::new()),
        };
        let leader_end = log.end();
        let Some(follower) = self.followers.get_mut(&fetch.replica) else {
            return (Answer::NotReady, Vec::new());
        };
        if fetch.broker_epoch > follower.broker_epoch {
            let (broker_epoch, caught_up_ms) = (fetch.broker_epoch, follower.caught_up_ms);
            *follower = Progress { broker_epoch, caught_up_ms, ..Progress::default() };
        }
        follower.start = Some(fetch.start);
        // Up to where it asks, its log is this one: the last epochs were compared.
        follower.verified = Some(fetch.at);
        // A report may have come by another way before this fetch, which says less then. From then
        // on that a log was compared, what counts of it counts as long as this registration lives.
        let counts = fetch.counts.max(follower.reported);
        follower.end = follower.end.max(Some(counts.min(fetch.at)));
        follower.note_caught_up(leader_end, now_ms);
        (follower.last_fetch_ms, follower.leader_end) = (now_ms, leader_end);
        (answer, self.heard_of(fetch.replica, leader_end, now_ms))
    }

    /// A follower counts further now, because its disk has synced. It may have said so of a log that
    /// it has cut and filled again meanwhile, in the same leader epoch; that log was no part of this
    /// one, or it would not have been cut. Nor is it said again: what it has not fetched behind yet
    /// is kept for then.
    pub(crate) fn reported(
        &mut self,
        report: FollowerReport,
        log: &impl OwnLog,
        now_ms: u64,
    ) -> Vec<LeaderEffect> {
        let FollowerReport { replica, broker_epoch, leader_epoch, counts, last_epoch } = report;
        let agrees = |(epoch, end): (_, Offset)| epoch == last_epoch && counts <= end;
        if !log.end_of_epoch(last_epoch).is_some_and(agrees) {
            return Vec::new();
        }
        let leader_end = log.end();
        let Some(follower) = self.followers.get_mut(&replica) else { return Vec::new() };
        if leader_epoch != self.epoch || broker_epoch != follower.broker_epoch {
            return Vec::new();
        }
        follower.reported = counts.max(follower.reported);
        let Some(verified) = follower.verified else { return Vec::new() };
        follower.end = follower.end.max(Some(counts.min(verified)));
        follower.note_caught_up(leader_end, now_ms);
        self.heard_of(replica, leader_end, now_ms)
    }

    /// What a fetch is answered; `Err` when it says nothing about the follower's log.
    fn verdict(&self, fetch: &FollowerFetch, log: &impl OwnLog) -> Result<Answer, Answer> {
        if fetch.leader_epoch < self.epoch {
            return Err(Answer::Fenced);
        }
        let known = self.followers.get(&fetch.replica).map(|follower| follower.broker_epoch);
        if fetch.leader_epoch > self.epoch || known.is_none_or(|epoch| fetch.broker_epoch < epoch) {
            return Err(Answer::NotReady);
        }
        let out_of_range = Answer::OutOfRange { leader_start: log.start(), leader_end: log.end() };
        if fetch.at < log.start() {
            return Err(out_of_range);
        }
        if fetch.last_epoch >= 0 {
            let (epoch, end) = match log.end_of_epoch(fetch.last_epoch) {
                _ if fetch.last_epoch > self.epoch => return Err(out_of_range),
                Some(found) => found,
                // All that it has is older than every record here: it was deleted, or it was never
                // committed. Nothing here tells which, so none of it stays (Kafka keeps it).
                None => return Err(out_of_range),
            };
            if epoch < fetch.last_epoch || end < fetch.at {
                return Err(Answer::Diverging { epoch, end });
            }
        }
        if fetch.at > log.end() {
            return Err(out_of_range);
        }
        Ok(Answer::Records { high_watermark: self.high_watermark, leader_start: log.start() })
    }

    /// What follows from what is newly known of a follower.
    fn heard_of(
        &mut self,
        replica: BrokerId,
        leader_end: Offset,
        now_ms: u64,
    ) -> Vec<LeaderEffect> {
        let mut effects = Vec::new();
        let Some(follower) = self.followers.get(&replica).copied() else { return effects };
        let has_lost = follower.end.is_some_and(|end| end < self.high_watermark);
        if self.isr.contains(&replica) {
            // In a new epoch of its own; else this cannot be.
            if has_lost && self.asked.is_none() {
                let isr = self.isr.iter().copied().filter(|id| *id != replica).gather();
                effects.extend(self.ask(isr));
            }
        } else {
            let is_caught_up = self.is_caught_up(&follower, leader_end, now_ms);
            let may_join = self.is_registered(replica, &follower) && !self.is_held_up(replica);
            let is_joining = is_caught_up && may_join;
            if let Some(follower) = self.followers.get_mut(&replica) {
                follower.is_joining = is_joining;
            }
            let reaches =
                follower.end.is_some_and(|end| end >= self.high_watermark.max(self.epoch_start));
            if reaches && may_join && self.asked.is_none() {
                let isr = self.isr.iter().copied().chain([replica]).gather();
                effects.extend(self.ask(isr));
            }
        }
        effects.splice(0..0, self.advance().map(LeaderEffect::HighWatermark));
        effects
    }

    /// Whether it has no room, and is not to be in sync because others have some.
    fn is_held_up(&self, replica: BrokerId) -> bool {
        let is_full = |id: &BrokerId| self.full.contains(id);
        is_full(&replica) && !self.isr.iter().all(is_full)
    }

    /// Whether it fetches as the incarnation that the cluster knows (KIP-903).
    fn is_registered(&self, replica: BrokerId, follower: &Progress) -> bool {
        self.eligible.get(&replica) == Some(&follower.broker_epoch)
    }

    fn is_caught_up(&self, follower: &Progress, leader_end: Offset, now_ms: u64) -> bool {
        let is_recent = |at: u64| now_ms.saturating_sub(at) <= self.lag_max_ms;
        follower.end == Some(leader_end) || follower.caught_up_ms.is_some_and(is_recent)
    }

    /// Time has passed: asks for an ISR without those who lag.
    pub(crate) fn tick(&mut self, leader_end: Offset, now_ms: u64) -> Vec<LeaderEffect> {
        let lags = |id: &BrokerId| {
            let follower = self.followers.get(id);
            follower.is_some_and(|follower| !self.is_caught_up(follower, leader_end, now_ms))
        };
        let lagging: BTreeSet<BrokerId> =
            self.followers.keys().copied().filter(|id| lags(id)).gather();
        for id in &lagging {
            if let Some(follower) = self.followers.get_mut(id) {
                follower.is_joining = false;
            }
        }
        let mut effects: Vec<_> =
            self.advance().map(LeaderEffect::HighWatermark).into_iter().collect();
        if self.asked.is_none() && !self.isr.is_disjoint(&lagging) {
            let isr = self.isr.difference(&lagging).copied().gather();
            effects.extend(self.ask(isr));
        }
        let is_due = |asked: &&mut Asked| asked.is_put_off && now_ms >= asked.open_until_ms;
        if let Some(asked) = self.asked.as_mut().filter(is_due) {
            asked.is_put_off = false;
            effects.extend(self.ask_again());
        }
        effects
    }

    /// The controller has answered, or not, what was asked for on that partition epoch. What was
    /// asked since is another matter: the answer says nothing about it.
    pub(crate) fn answered(
        &mut self,
        (isr, partition_epoch): (&[(BrokerId, BrokerEpoch)], i32),
        answer: IsrAnswer,
        now_ms: u64,
    ) -> Vec<LeaderEffect> {
        let is_it = partition_epoch == self.partition_epoch;
        let is_same = |asked: &&mut Asked| is_it && isr.iter().copied().eq(asked.isr.clone());
        let Some(asked) = self.asked.as_mut().filter(is_same) else { return Vec::new() };
        match answer {
            IsrAnswer::Refused if now_ms < asked.open_until_ms => {
                asked.is_put_off = true;
                vec![LeaderEffect::WaitUntil(asked.open_until_ms)]
            }
            IsrAnswer::Refused => {
                // Who was to come in fetches again, and is looked at then.
                let leaves = self.isr.iter().any(|id| !asked.isr.contains_key(id));
                self.asked = None;
                let moved = self.advance().map(LeaderEffect::HighWatermark);
                let until_ms = now_ms.saturating_add(AFTER_REFUSAL_MS);
                let again = leaves.then_some(LeaderEffect::WaitUntil(until_ms));
                moved.into_iter().chain(again).collect()
            }
            IsrAnswer::Superseded => Vec::new(),
            IsrAnswer::Unknown => {
                asked.open_until_ms = now_ms.saturating_add(ISR_ATTEMPT_MAX_MS);
                self.ask_again().into_iter().collect()
            }
        }
    }

    fn ask(&mut self, isr: BTreeSet<BrokerId>) -> Option<LeaderEffect> {
        let epoch_of = |id: &BrokerId| {
            let follower = self.followers.get(id).map(|follower| follower.broker_epoch);
            follower.or_else(|| self.eligible.get(id).copied()).unwrap_or(-1)
        };
        let isr = isr.iter().map(|id| (*id, epoch_of(id))).gather();
        self.asked = Some(Asked { isr, open_until_ms: 0, is_put_off: false });
        self.ask_again()
    }

    fn ask_again(&self) -> Option<LeaderEffect> {
        let isr = self.asked.as_ref()?.isr.iter().map(|(id, epoch)| (*id, *epoch)).collect();
        Some(LeaderEffect::AskForIsr { isr, partition_epoch: self.partition_epoch })
    }

    fn advance(&mut self) -> Option<Offset> {
        if self.isr.len() < self.required() {
            return None;
        }
        let mut committed = self.own_end;
        for (id, follower) in &self.followers {
            if follower.is_joining || self.is_in_maximal_isr(*id) {
                committed = committed.min(follower.end?);
            }
        }
        (committed > self.high_watermark).then(|| {
            self.high_watermark = committed;
            committed
        })
    }
}

impl fmt::Display for LeaderEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HighWatermark(offset) => write!(f, "high watermark {offset}"),
            Self::AskForIsr { isr, partition_epoch } => {
                let members: Vec<_> =
                    isr.iter().map(|(id, epoch)| format!("{id}@{epoch}")).collect();
                write!(f, "ask for isr {} on version {partition_epoch}", members.join(","))
            }
            Self::WaitUntil(at_ms) => write!(f, "wait until {at_ms}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::world::ModelLog;
    use letterbox_sim::transcript::check;

    /// Broker 1 leads; what its log holds stands in the script.
    fn tell(script: &str) {
        let (mut leader, mut log, mut now_ms) = (None, ModelLog::default(), 1_000);
        check(script, |line| {
            now_ms = line.find("now").map_or(now_ms, |now| now.parse().unwrap());
            if line.word() == "begin" {
                log = line.number("log");
                log.set_start(line.find("start").map_or(0, |start| start.parse().unwrap()));
                let begin = Begin {
                    me: BrokerId(1),
                    epoch: line.number("epoch"),
                    partition_epoch: 7,
                    replicas: line.ids("replicas").into(),
                    isr: line.ids("isr").into(),
                    full: line.find("full").map_or(vec![], |_| line.ids("full")).into(),
                    min_insync: line.number("min"),
                    lag_max_ms: 30_000,
                    log_end: log.end(),
                    high_watermark: line.number("hw"),
                    eligible: Arc::new(registrations(line.text("live")).into_iter().collect()),
                };
                let mut begun = LeaderState::begin(begin, now_ms);
                let moved = begun.own_end(log.counts());
                leader = Some(begun);
                return told(moved.map(LeaderEffect::HighWatermark));
            }
            let leader: &mut LeaderState = leader.as_mut().unwrap();
            match line.word() {
                "append" => {
                    let more: ModelLog = line.number("records");
                    log.records.extend(more.records);
                    Vec::new()
                }
                "counts" => {
                    told(leader.own_end(line.number("end")).map(LeaderEffect::HighWatermark))
                }
                "fetch" => {
                    let (replica, broker_epoch) = registrations(line.text("by"))[0];
                    let fetch = FollowerFetch {
                        replica,
                        broker_epoch,
                        leader_epoch: line.number("epoch"),
                        at: line.number("at"),
                        last_epoch: line.number("last"),
                        counts: line.number("counts"),
                        start: line.find("start").map_or(0, |start| start.parse().unwrap()),
                    };
                    let (answer, effects) = leader.fetch(fetch, &log, now_ms);
                    let mut all = vec![format!("answer {answer}")];
                    all.extend(told(effects));
                    all
                }
                "report" => {
                    let (replica, broker_epoch) = registrations(line.text("by"))[0];
                    let by = (replica, broker_epoch, line.number("epoch"));
                    let report = FollowerReport {
                        replica: by.0,
                        broker_epoch: by.1,
                        leader_epoch: by.2,
                        counts: line.number("counts"),
                        last_epoch: line.find("last").map_or(by.2, |last| last.parse().unwrap()),
                    };
                    told(leader.reported(report, &log, now_ms))
                }
                "tick" => told(leader.tick(log.end(), now_ms)),
                "committed" => {
                    let replicas = leader.replicas.clone();
                    let version = line.number("version");
                    let full = line.find("full").map_or(vec![], |_| line.ids("full")).into();
                    let isr = line.ids("isr");
                    let min_insync = leader.min_insync;
                    let moved = leader.committed(version, &replicas, (&isr, &full), min_insync);
                    told(moved.map(LeaderEffect::HighWatermark))
                }
                "answered" => {
                    let answer = match line.text("with") {
                        "refused" => IsrAnswer::Refused,
                        "superseded" => IsrAnswer::Superseded,
                        _ => IsrAnswer::Unknown,
                    };
                    // What was asked for last, unless it is said what.
                    let asked = leader.asked.iter().flat_map(|asked| asked.isr.clone()).collect();
                    let isr = line.find("isr").map_or(asked, registrations);
                    let version = line.find("version").map(|version| version.parse().unwrap());
                    let version = version.unwrap_or(leader.partition_epoch);
                    told(leader.answered((&isr, version), answer, now_ms))
                }
                "live" => {
                    let brokers = registrations(line.text("brokers")).into_iter().collect();
                    let moved = leader.set_eligible(Arc::new(brokers));
                    told(moved.map(LeaderEffect::HighWatermark))
                }
                "low-watermark" => {
                    let offline = line.find("offline").map_or(Vec::new(), |_| line.ids("offline"));
                    vec![leader.low_watermark(log.start(), &offline).to_string()]
                }
                "may-append-to-all" => vec![match leader.may_append_to_all() {
                    Ok(()) => "yes".to_owned(),
                    Err(why) => format!("no: {why}"),
                }],
                "is-committed" => {
                    let is = leader.high_watermark() >= line.number("end");
                    let below = if leader.is_below_min_isr() { ", below min isr" } else { "" };
                    vec![format!("{is}{below}")]
                }
                other => panic!("{other}"),
            }
        });
    }

    fn told(effects: impl IntoIterator<Item = LeaderEffect>) -> Vec<String> {
        effects.into_iter().map(|effect| effect.to_string()).collect()
    }

    /// `2@12`: broker 2 as it registered with epoch 12.
    fn registrations(text: &str) -> Vec<(BrokerId, BrokerEpoch)> {
        let one = |text: &str| {
            let (id, epoch) = text.split_once('@').unwrap();
            (BrokerId(id.parse().unwrap()), epoch.parse().unwrap())
        };
        text.split(',').map(one).collect()
    }

    #[test]
    fn alone_the_high_watermark_follows_the_own_end() {
        tell(
            "
            > begin epoch=0 replicas=1 isr=1 min=2 hw=5 log=0:5 live=1@11
            > may-append-to-all
              yes
            > append records=0:4
            > counts end=9
              high watermark 9
            > counts end=7
            ",
        );
    }

    #[test]
    fn the_slowest_replica_in_sync_decides_and_counts_what_is_on_its_disk() {
        tell(
            "
            > begin epoch=3 replicas=1,2,3 isr=1,2 min=2 hw=0 log=3:10 live=1@11,2@12,3@13
            # Broker 3 is not in sync, and would be as soon as it has what was there when the epoch
            # began; the high watermark already waits for it.
            > fetch by=2@12 epoch=3 at=4 last=3 counts=4
              answer records, high watermark 0, log start 0
              high watermark 4
            # It has appended up to 10 and synced up to 8.
            > fetch by=2@12 epoch=3 at=10 last=3 counts=8
              answer records, high watermark 4, log start 0
              high watermark 8
            > report by=2@12 epoch=3 counts=10
              high watermark 10
            # A fetch that was sent before comes after it: nothing is lost.
            > fetch by=2@12 epoch=3 at=10 last=3 counts=8
              answer records, high watermark 10, log start 0
            ",
        );
    }

    /// Nothing waits for it, and it is not asked for; where nobody has room it is in sync as any.
    #[test]
    fn a_follower_without_room_joins_only_where_nobody_has_some() {
        tell(
            "
            > begin epoch=3 replicas=1,2,3 isr=1,2 full=3 min=2 hw=0 log=3:10 live=1@11,2@12,3@13
            > fetch by=3@13 epoch=3 at=4 last=3 counts=4
              answer records, high watermark 0, log start 0
            > fetch by=2@12 epoch=3 at=10 last=3 counts=10
              answer records, high watermark 0, log start 0
              high watermark 10
            > fetch by=3@13 epoch=3 at=10 last=3 counts=10
              answer records, high watermark 10, log start 0
            > committed version=8 isr=1,2 full=1,2,3
            > fetch by=3@13 epoch=3 at=10 last=3 counts=10
              answer records, high watermark 10, log start 0
              ask for isr 1@11,2@12,3@13 on version 8
            ",
        );
    }

    /// They come on two connections. The fetch was sent first, before the disk had synced, and says
    /// less; it is parked then, and nothing else would say more until that ends.
    #[test]
    fn a_report_that_overtakes_the_fetch_counts_with_it() {
        tell(
            "
            > begin epoch=3 replicas=1,2 isr=1,2 min=2 hw=0 log=3:10 live=1@11,2@12
            # The very first fetch is on its way.
            > report by=2@12 epoch=3 counts=4
            > fetch by=2@12 epoch=3 at=4 last=3 counts=0
              answer records, high watermark 0, log start 0
              high watermark 4
            > report by=2@12 epoch=3 counts=6
            > report by=2@12 epoch=3 counts=5
            > fetch by=2@12 epoch=3 at=6 last=3 counts=4
              answer records, high watermark 4, log start 0
              high watermark 6
            # What it has said is not more than what it asks behind.
            > report by=2@12 epoch=3 counts=10
            > fetch by=2@12 epoch=3 at=8 last=3 counts=6
              answer records, high watermark 6, log start 0
              high watermark 8
            # Started again, it has said nothing yet.
            > report by=2@14 epoch=3 counts=10
            > fetch by=2@14 epoch=3 at=8 last=3 counts=8
              answer records, high watermark 8, log start 0
            > fetch by=2@14 epoch=3 at=10 last=3 counts=9
              answer records, high watermark 8, log start 0
              high watermark 9
            # Nor as the leader's follower in another epoch.
            > report by=2@14 epoch=2 counts=10 last=3
            > fetch by=2@14 epoch=3 at=10 last=3 counts=9
              answer records, high watermark 9, log start 0
            ",
        );
    }

    /// Before the logs were compared nothing counts: the tail may be of another leader (KIP-101).
    #[test]
    fn a_log_that_differs_counts_for_nothing() {
        tell(
            "
            > begin epoch=3 replicas=1,2 isr=1,2 min=1 hw=4 log=1:6,3:4 live=1@11,2@12
            > report by=2@12 epoch=3 counts=9
            > fetch by=2@12 epoch=3 at=9 last=2 counts=9
              answer diverging: epoch 1 ends at 6
            > fetch by=2@12 epoch=3 at=8 last=1 counts=8
              answer diverging: epoch 1 ends at 6
            > fetch by=2@12 epoch=3 at=6 last=1 counts=6
              answer records, high watermark 4, log start 0
              high watermark 6
            # A report counts up to where was asked from: what follows may be another record.
            > report by=2@12 epoch=3 counts=9
            > fetch by=2@12 epoch=2 at=10 last=3 counts=10
              answer fenced
            > fetch by=2@12 epoch=4 at=10 last=3 counts=10
              answer not ready
            ",
        );
    }

    /// It had said so of the log that it has cut since, in the same leader epoch, and what it has in
    /// its place is not on its disk.
    #[test]
    fn a_report_of_what_was_cut_since_counts_for_nothing() {
        tell(
            "
            > begin epoch=3 replicas=1,2 isr=1,2 min=1 hw=4 log=1:6,3:4 live=1@11,2@12
            > fetch by=2@12 epoch=3 at=9 last=2 counts=8
              answer diverging: epoch 1 ends at 6
            > fetch by=2@12 epoch=3 at=6 last=1 counts=6
              answer records, high watermark 4, log start 0
              high watermark 6
            > fetch by=2@12 epoch=3 at=10 last=3 counts=6
              answer records, high watermark 6, log start 0
            > report by=2@12 epoch=3 counts=9 last=2
            # An earlier version does not say of which log.
            > report by=2@12 epoch=3 counts=9 last=-1
            > report by=2@12 epoch=3 counts=10 last=3
              high watermark 10
            ",
        );
    }

    #[test]
    fn a_fetch_from_elsewhere_is_told_where_the_log_is() {
        tell(
            "
            > begin epoch=3 replicas=1,2 isr=1 min=1 hw=10 log=1:6,3:4 start=8 live=1@11,2@12
            > fetch by=2@12 epoch=3 at=5 last=1 counts=5
              answer out of range, log is 8..10
            > fetch by=2@12 epoch=3 at=12 last=-1 counts=12
              answer out of range, log is 8..10
            # All it has is older than what is left here: it may never have been committed.
            > fetch by=2@12 epoch=3 at=8 last=1 counts=8
              answer out of range, log is 8..10
            > fetch by=2@12 epoch=3 at=8 last=-1 counts=8
              answer records, high watermark 10, log start 8
            > fetch by=9@12 epoch=3 at=8 last=-1 counts=8
              answer not ready
            ",
        );
    }

    /// KIP-966: a broker that is alone must not commit what it may lose alone.
    #[test]
    fn below_min_insync_nothing_is_committed_or_begun() {
        tell(
            "
            > begin epoch=3 replicas=1,2,3 isr=1 min=2 hw=4 log=3:10 live=1@11,2@12
            > may-append-to-all
              no: 1 of 2 required replicas are in sync
            > counts end=10
            > fetch by=2@12 epoch=3 at=10 last=3 counts=10
              answer records, high watermark 4, log start 0
              ask for isr 1@11,2@12 on version 7
            # Not before the controller has committed it.
            > counts end=10
            > committed version=8 isr=1,2
              high watermark 10
            > may-append-to-all
              yes
            ",
        );
    }

    #[test]
    fn what_was_committed_is_answered_with_the_isr_that_shrank_afterwards() {
        tell(
            "
            > begin epoch=3 replicas=1,2 isr=1,2 min=2 hw=0 log=3:2 live=1@11,2@12
            > fetch by=2@12 epoch=3 at=2 last=3 counts=2
              answer records, high watermark 0, log start 0
              high watermark 2
            > append records=3:2
            > tick now=40000
              ask for isr 1@11 on version 7
            > is-committed end=2
              true
            > committed version=8 isr=1
            > is-committed end=2
              true, below min isr
            > is-committed end=4
              false, below min isr
            ",
        );
    }

    #[test]
    fn who_lags_leaves_and_who_keeps_up_under_load_stays() {
        tell(
            "
            > begin epoch=3 replicas=1,2,3 isr=1,2,3 min=2 hw=10 log=3:10 live=1@11,2@12,3@13
            > fetch by=2@12 epoch=3 at=10 last=3 counts=10
              answer records, high watermark 10, log start 0
            > append records=3:5
            > fetch by=2@12 epoch=3 at=10 last=3 counts=10 now=20000
              answer records, high watermark 10, log start 0
            > append records=3:5
            # It never has all, but what there was when it fetched last: it was caught up then.
            > fetch by=2@12 epoch=3 at=15 last=3 counts=15 now=40000
              answer records, high watermark 10, log start 0
            # Broker 3 has said nothing since the epoch began.
            > tick now=31000
            > tick now=31001
              ask for isr 1@11,2@12 on version 7
            # Until that is in force it may not be: broker 3 still decides.
            > counts end=20
            > tick now=31002
            > committed version=8 isr=1,2
              high watermark 15
            ",
        );
    }

    /// What was asked for may be in force, whatever became of the answer (KIP-497). Kafka's name
    /// for the larger of the two is maximal ISR.
    #[test]
    fn an_isr_that_may_be_in_force_counts_until_the_metadata_says_otherwise() {
        tell(
            "
            > begin epoch=3 replicas=1,2 isr=1 min=1 hw=10 log=3:10 live=1@11,2@12
            > fetch by=2@12 epoch=3 at=10 last=3 counts=10
              answer records, high watermark 10, log start 0
              ask for isr 1@11,2@12 on version 7
            > append records=3:5
            > counts end=15
            > answered with=unknown
              ask for isr 1@11,2@12 on version 7
            > answered with=superseded
            > tick now=60000
            # The metadata says what was known before.
            > committed version=7 isr=1
            > counts end=15
            # The first request had arrived.
            > committed version=8 isr=1,2
            > tick now=60001
              ask for isr 1@11 on version 8
            > committed version=9 isr=1
              high watermark 15
            # Only what was refused was never in force.
            > fetch by=2@12 epoch=3 at=15 last=3 counts=15
              answer records, high watermark 15, log start 0
              ask for isr 1@11,2@12 on version 9
            > append records=3:1
            > live brokers=1@11
            > counts end=16
            > answered with=refused
              high watermark 16
            ",
        );
    }

    /// A follower that is behind what was there when the epoch began may lack what an earlier
    /// leader has committed, however low the own high watermark is.
    #[test]
    fn nobody_comes_in_sync_before_it_has_what_the_leader_began_with() {
        tell(
            "
            > begin epoch=3 replicas=1,2,3 isr=1,2 min=2 hw=4 log=1:10 live=1@11,2@12,3@13
            > fetch by=3@13 epoch=3 at=6 last=1 counts=6
              answer records, high watermark 4, log start 0
            > fetch by=3@13 epoch=3 at=10 last=1 counts=9
              answer records, high watermark 4, log start 0
            > report by=3@13 epoch=3 counts=10 last=1
              ask for isr 1@11,2@12,3@13 on version 7
            ",
        );
    }

    /// KAFKA-14139: what a broker said before it was started again says nothing of its disk now
    /// (KIP-903).
    #[test]
    fn a_broker_that_registers_again_has_said_nothing_yet() {
        tell(
            "
            > begin epoch=3 replicas=1,2 isr=1 min=1 hw=10 log=3:10 live=1@11
            > fetch by=2@12 epoch=3 at=10 last=3 counts=10
              answer records, high watermark 10, log start 0
            # Fenced: nothing is asked for. Then it is there again, with an empty disk.
            > live brokers=1@11,2@14
            > tick now=2000
            > fetch by=2@12 epoch=3 at=10 last=3 counts=10
              answer not ready
            > report by=2@12 epoch=3 counts=10
            > fetch by=2@14 epoch=3 at=0 last=-1 counts=0
              answer records, high watermark 10, log start 0
            > fetch by=2@14 epoch=3 at=10 last=3 counts=10
              answer records, high watermark 10, log start 0
              ask for isr 1@11,2@14 on version 7
            ",
        );
    }

    /// What is asked again is asked for the broker that has earned it, not for the one that has its
    /// id now.
    #[test]
    fn an_isr_is_asked_for_again_with_the_registrations_of_the_first_time() {
        tell(
            "
            > begin epoch=3 replicas=1,2 isr=1 min=1 hw=10 log=3:10 live=1@11,2@12
            > fetch by=2@12 epoch=3 at=10 last=3 counts=10
              answer records, high watermark 10, log start 0
              ask for isr 1@11,2@12 on version 7
            > live brokers=1@11,2@14
            > answered with=unknown
              ask for isr 1@11,2@12 on version 7
            # The first attempt may still be on its way, and be taken.
            > answered with=refused
              wait until 11000
            > fetch by=2@14 epoch=3 at=0 last=-1 counts=0
              answer records, high watermark 10, log start 0
            > tick now=10999
            > tick now=11000
              ask for isr 1@11,2@12 on version 7
            > answered with=refused
            > fetch by=2@14 epoch=3 at=10 last=3 counts=10
              answer records, high watermark 10, log start 0
              ask for isr 1@11,2@14 on version 7
            ",
        );
    }

    /// Who lags may not come again, and who appends waits for it. It was refused because 2 has
    /// registered anew, say, which was not known here.
    #[test]
    fn who_was_to_leave_and_was_not_let_is_soon_looked_at_again() {
        tell(
            "
            > begin epoch=3 replicas=1,2,3 isr=1,2,3 min=1 hw=10 log=3:10 live=1@11,2@12,3@13
            > fetch by=2@12 epoch=3 at=10 last=3 counts=10
              answer records, high watermark 10, log start 0
            > tick now=40000
              ask for isr 1@11,2@12 on version 7
            > answered with=refused
              wait until 41000
            > tick now=41000
              ask for isr 1@11,2@12 on version 7
            ",
        );
    }

    /// Nothing else may come that says how far it is: who appends waits.
    #[test]
    fn who_was_about_to_be_in_sync_and_is_fenced_is_not_waited_for() {
        tell(
            "
            > begin epoch=3 replicas=1,2 isr=1,2 min=1 hw=10 log=3:10 live=1@11,2@12
            > live brokers=1@11
            > committed version=8 isr=1
            > live brokers=1@11,2@14
            > fetch by=2@14 epoch=3 at=5 last=3 counts=5 now=2000
              answer records, high watermark 10, log start 0
            > append records=3:5
            > counts end=15
            > live brokers=1@11
              high watermark 15
            ",
        );
    }

    /// It comes on a connection of its own, and so after what the metadata tells.
    #[test]
    fn an_answer_is_about_what_it_answers() {
        tell(
            "
            > begin epoch=3 replicas=1,2,3 isr=1,2 min=1 hw=10 log=3:10 live=1@11,2@12,3@13
            > fetch by=3@13 epoch=3 at=10 last=3 counts=10
              answer records, high watermark 10, log start 0
              ask for isr 1@11,2@12,3@13 on version 7
            # 3 and 2 are fenced: the ISR with 3 is refused.
            > live brokers=1@11
            > committed version=8 isr=1
            > append records=3:5
            > counts end=15
              high watermark 15
            > append records=3:5
            > live brokers=1@11,3@13
            > fetch by=3@13 epoch=3 at=15 last=3 counts=15 now=60000
              answer records, high watermark 15, log start 0
              ask for isr 1@11,3@13 on version 8
            > answered with=refused isr=1@11,2@12,3@13 version=7
            # 3 may be in sync by now, and has not these.
            > counts end=20
            > committed version=9 isr=1,3
            > fetch by=3@13 epoch=3 at=20 last=3 counts=20
              answer records, high watermark 15, log start 0
              high watermark 20
            ",
        );
    }

    /// What was deleted is gone when nobody who may lead has it any more.
    #[test]
    fn the_low_watermark_is_that_of_every_replica_that_is_there() {
        tell(
            "
            > begin epoch=3 replicas=1,2,3 isr=1,2 min=1 hw=10 log=3:10 live=1@11,2@12,3@13 start=4
            > low-watermark
              -1
            > fetch by=2@12 epoch=3 at=10 last=3 counts=10 start=4
              answer records, high watermark 10, log start 4
            > low-watermark
              -1
            > low-watermark offline=3
              4
            > live brokers=1@11,2@12
            > low-watermark
              4
            # Started again: what its log is like is not known.
            > live brokers=1@11,2@14
            > low-watermark
              -1
            > fetch by=2@14 epoch=3 at=10 last=3 counts=10 start=2
              answer records, high watermark 10, log start 4
            > low-watermark
              2
            ",
        );
    }

    /// The broker is known to the leader by its fetch before the metadata tells.
    #[test]
    fn a_replica_in_sync_that_comes_back_with_less_leaves_at_once() {
        tell(
            "
            > begin epoch=3 replicas=1,2,3 isr=1,2,3 min=2 hw=10 log=3:10 live=1@11,2@12,3@13
            > fetch by=2@15 epoch=3 at=0 last=-1 counts=0
              answer records, high watermark 10, log start 0
              ask for isr 1@11,3@13 on version 7
            ",
        );
    }
}
