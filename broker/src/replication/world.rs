//! A small world of the machines of replication: one partition on three brokers, a controller, and
//! messages that are late, lost or out of order. Crashes lose what was not synced; a disk may be
//! replaced by an empty one; the topic waits for the disk, or opts out. What the next step is, a
//! list of numbers decides, so that proptest finds the shortest list that breaks a rule.
//!
//! The rules, looked at after every step:
//! - What lies below a high watermark that a leader has reported never changes, and every replica
//!   that the controller takes for in sync has all of it on its disk.
//! - A leader epoch has one leader. The high watermark never moves back within it.
//! - At the end, once everything is up and every message arrives, all replicas are the same and in
//!   sync, and what was acknowledged is there.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use letterbox_protocol::model::{BrokerId, LeaderEpoch, Offset};

use super::follower::{Answer, FollowerEffect, FollowerEvent, FollowerState, OwnLog};
use super::leader::{
    Begin, BrokerEpoch, Eligible, FollowerFetch, FollowerReport, IsrAnswer, LeaderEffect,
    LeaderState,
};

const LAG_MAX_MS: u64 = 1_000;
const MESSAGES_MAX: usize = 12;
/// Records in one answer.
const BATCH: usize = 2;

type Value = u32;

/// The log of a replica. `start <= high watermark <= end` and `durable <= end`.
#[derive(Clone, Debug, Default)]
pub(super) struct ModelLog {
    pub(super) start: Offset,
    /// With the epoch they were appended in.
    pub(super) records: Vec<(LeaderEpoch, Value)>,
    pub(super) durable: Offset,
    pub(super) high_watermark: Offset,
    /// The topic opts out of waiting for the disk: what is appended counts.
    counts_page_cache: bool,
    /// Records are missing within it.
    pub(super) lacks_records: bool,
    /// It takes no records for want of space.
    pub(super) is_full: bool,
}

fn at(offset: Offset) -> usize {
    usize::try_from(offset).unwrap()
}

impl ModelLog {
    pub(super) fn get(&self, offset: Offset) -> Option<(LeaderEpoch, Value)> {
        self.records.get(usize::try_from(offset - self.start).ok()?).copied()
    }

    pub(super) fn truncate(&mut self, to: Offset) {
        self.records.truncate(at((to - self.start).max(0)));
        self.durable = self.durable.min(to);
        self.high_watermark = self.high_watermark.min(to);
    }

    pub(super) fn restart(&mut self, start: Offset) {
        (self.start, self.durable, self.high_watermark) = (start, start, start);
        self.records.clear();
    }

    pub(super) fn set_start(&mut self, start: Offset) {
        self.records.drain(..at(start - self.start));
        self.start = start;
        // What a log does not hold any more is on no disk, and needs none.
        self.durable = self.durable.max(start);
    }
}

/// As scripts write it: `0:6,2:4` for six records of epoch 0 and then four of epoch 2, all synced.
impl FromStr for ModelLog {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut log = Self::default();
        for run in text.split(',').filter(|run| !run.is_empty()) {
            let (epoch, count) = run.split_once(':').ok_or("epoch:count")?;
            let epoch = epoch.parse().map_err(|error| format!("{error}"))?;
            let count: usize = count.parse().map_err(|error| format!("{error}"))?;
            log.records.extend(vec![(epoch, 0); count]);
        }
        log.durable = log.end();
        Ok(log)
    }
}

impl OwnLog for ModelLog {
    fn start(&self) -> Offset {
        self.start
    }
    fn end(&self) -> Offset {
        self.start + Offset::try_from(self.records.len()).unwrap()
    }
    fn counts(&self) -> Offset {
        match self.lacks_records {
            true => self.start,
            false if self.counts_page_cache => self.end(),
            false => self.durable,
        }
    }
    fn high_watermark(&self) -> Offset {
        self.high_watermark
    }
    fn latest_epoch(&self) -> Option<LeaderEpoch> {
        self.records.last().map(|record| record.0)
    }
    fn lacks_records(&self) -> bool {
        self.lacks_records
    }
    fn is_full(&self) -> bool {
        self.is_full
    }
    fn may_lack_records(&self) -> bool {
        self.lacks_records
    }

    fn end_of_epoch(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, Offset)> {
        let after = self.records.partition_point(|record| record.0 <= epoch);
        let (found, _) = self.records.get(after.checked_sub(1)?)?;
        Some((*found, self.start + Offset::try_from(after).unwrap()))
    }
}

#[derive(Debug)]
enum Role {
    Leader(LeaderState),
    Follower(FollowerState),
    /// Before it has heard of the partition.
    None,
}

#[derive(Debug)]
struct Broker {
    id: BrokerId,
    is_up: bool,
    epoch: BrokerEpoch,
    log: ModelLog,
    /// The high watermark on its disk.
    checkpoint: Offset,
    role: Role,
    /// How much of the controller's history it knows.
    seen: usize,
    /// What its log is being changed by, and with which records.
    change: Option<(FollowerEffect, Vec<(LeaderEpoch, Value)>)>,
    /// Records that wait for their acknowledgement, and the epoch they were appended in.
    unanswered: Vec<(LeaderEpoch, Offset, Value)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    isr: Vec<BrokerId>,
    leader: Option<BrokerId>,
    leader_epoch: LeaderEpoch,
    partition_epoch: i32,
    eligible: Eligible,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids =
            |ids: &[BrokerId]| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(",");
        let (isr, leader) = (ids(&self.isr), self.leader.map_or(-1, |leader| leader.0));
        let (epoch, version) = (self.leader_epoch, self.partition_epoch);
        write!(f, "leader {leader} in epoch {epoch}, isr {isr}, version {version}")
    }
}

#[derive(Clone, Debug)]
enum Message {
    Fetch {
        to: BrokerId,
        fetch: FollowerFetch,
    },
    Answer {
        to: (BrokerId, BrokerEpoch),
        epoch: LeaderEpoch,
        at: Offset,
        answer: Answer,
        records: Vec<(LeaderEpoch, Value)>,
    },
    Report {
        to: BrokerId,
        report: FollowerReport,
    },
    Ask {
        from: (BrokerId, BrokerEpoch, LeaderEpoch),
        isr: Vec<(BrokerId, BrokerEpoch)>,
        partition_epoch: i32,
    },
    IsrAnswer {
        to: (BrokerId, BrokerEpoch, LeaderEpoch),
        isr: Vec<(BrokerId, BrokerEpoch)>,
        partition_epoch: i32,
        answer: IsrAnswer,
    },
}

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Action {
    Produce(usize),
    Sync(usize),
    Finish(usize),
    Learn(usize),
    Crash(usize),
    Restart(usize),
    Wipe(usize),
    Fence(usize),
    Elect,
    DeleteRecords(usize),
    Tick,
    Deliver(usize),
    Lose(usize),
}

/// How much happened: a run in which nothing does proves nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) acknowledged: usize,
    pub(super) elections: usize,
    pub(super) truncations: usize,
    pub(super) restarts: usize,
}

pub(super) struct World {
    brokers: Vec<Broker>,
    controller: State,
    history: Vec<State>,
    messages: Vec<Message>,
    min_insync: usize,
    counts_page_cache: bool,
    now_ms: u64,
    next_value: Value,
    next_broker_epoch: BrokerEpoch,
    /// What is below a high watermark that was reported.
    committed: Vec<Value>,
    leaders: BTreeMap<LeaderEpoch, BrokerId>,
    seen: Seen,
    trace: Vec<String>,
}

type Broken = String;

impl World {
    /// With `counts_page_cache` a power cut takes what is acknowledged from the broker it hits; the
    /// world then has none as long as no other replica in sync is up.
    pub(super) fn new(brokers: i32, min_insync: usize, counts_page_cache: bool) -> Self {
        let ids: Vec<BrokerId> = (1..=brokers).map(BrokerId).collect();
        let eligible: BTreeMap<_, _> = ids.iter().map(|id| (*id, i64::from(id.0))).collect();
        let controller = State {
            isr: ids.clone(),
            leader: ids.first().copied(),
            leader_epoch: 0,
            partition_epoch: 0,
            eligible: Arc::new(eligible),
        };
        let broker = |id: &BrokerId| Broker {
            id: *id,
            is_up: true,
            epoch: i64::from(id.0),
            log: ModelLog { counts_page_cache, ..ModelLog::default() },
            checkpoint: 0,
            role: Role::None,
            seen: 0,
            change: None,
            unanswered: Vec::new(),
        };
        Self {
            brokers: ids.iter().map(broker).collect(),
            history: vec![controller.clone()],
            controller,
            messages: Vec::new(),
            min_insync,
            counts_page_cache,
            now_ms: 10,
            next_value: 0,
            next_broker_epoch: 100,
            committed: Vec::new(),
            leaders: BTreeMap::new(),
            seen: Seen::default(),
            trace: Vec::new(),
        }
    }

    /// Takes one step for each of `choices`, then heals and looks at the end.
    pub(super) fn run(mut self, choices: &[u16]) -> Result<Seen, Broken> {
        self.run_steps(choices).map_err(|broken| {
            let told = self.trace.iter().rev().take(60).rev().cloned().collect::<Vec<_>>();
            format!("{broken}\n{}", told.join("\n"))
        })
    }

    fn run_steps(&mut self, choices: &[u16]) -> Result<Seen, Broken> {
        for choice in choices {
            let actions = self.actions();
            let action = actions[usize::from(*choice) % actions.len()];
            self.trace.push(format!("{action:?}"));
            self.act(action, usize::from(*choice) / 97)?;
            self.check()?;
        }
        self.heal()?;
        Ok(self.seen)
    }

    /// What may happen now; what should happen often stands there more than once.
    fn actions(&self) -> Vec<Action> {
        let mut actions = vec![Action::Tick, Action::Tick, Action::Elect];
        let mut may = |times: usize, action: Action| actions.extend(vec![action; times]);
        for (at, broker) in self.brokers.iter().enumerate() {
            if !broker.is_up {
                may(2, Action::Restart(at));
                may(1, Action::Fence(at));
                if self.controller.isr != [broker.id] {
                    may(1, Action::Wipe(at));
                }
                continue;
            }
            if !self.counts_page_cache || self.has_other_in_sync(broker.id) {
                may(1, Action::Crash(at));
            }
            may(4, Action::Sync(at));
            if matches!(broker.role, Role::Leader(_)) {
                may(5, Action::Produce(at));
                may(1, Action::DeleteRecords(at));
            }
            if broker.change.is_some() {
                may(8, Action::Finish(at));
            }
            if broker.seen < self.history.len() {
                may(6, Action::Learn(at));
            }
        }
        for at in 0..self.messages.len() {
            may(8, Action::Deliver(at));
            may(1, Action::Lose(at));
        }
        actions
    }

    fn has_other_in_sync(&self, id: BrokerId) -> bool {
        let is_up = |other: &&Broker| other.is_up && other.id != id;
        self.brokers.iter().filter(is_up).any(|other| self.controller.isr.contains(&other.id))
    }

    fn act(&mut self, action: Action, more: usize) -> Result<(), Broken> {
        match action {
            Action::Produce(of) => self.produce(of),
            Action::Sync(of) => self.sync(of),
            Action::Finish(of) => self.finish(of),
            Action::Learn(of) => self.learn(of, more),
            Action::Crash(of) => self.crash(of, more),
            Action::Restart(of) => self.restart(of, false),
            Action::Wipe(of) => self.restart(of, true),
            Action::Fence(of) => self.fence(of),
            Action::Elect => self.elect_other(more),
            Action::DeleteRecords(of) => self.delete_records(of),
            Action::Tick => {
                self.now_ms += 300;
                (0..self.brokers.len()).try_for_each(|of| self.tick(of))
            }
            Action::Deliver(at) => {
                let message = self.messages.remove(at);
                self.deliver(message)
            }
            Action::Lose(at) => {
                let message = self.messages.remove(at);
                self.lose(message)
            }
        }
    }

    fn produce(&mut self, of: usize) -> Result<(), Broken> {
        let broker = &mut self.brokers[of];
        let Role::Leader(leader) = &broker.role else { return Ok(()) };
        if leader.may_append_to_all().is_ok() {
            let (value, epoch) = (self.next_value, leader.epoch());
            self.next_value += 1;
            broker.log.records.push((epoch, value));
            broker.unanswered.push((epoch, broker.log.end(), value));
            return self.leader_counts(of);
        }
        Ok(())
    }

    fn sync(&mut self, of: usize) -> Result<(), Broken> {
        let (broker, now_ms) = (&mut self.brokers[of], self.now_ms);
        broker.log.durable = broker.log.end();
        broker.checkpoint = broker.log.high_watermark;
        match &mut broker.role {
            Role::Leader(_) => self.leader_counts(of),
            Role::Follower(follower) => {
                let effects = follower.step(FollowerEvent::Synced, &broker.log, now_ms);
                self.follow_on(of, effects, Vec::new())
            }
            Role::None => Ok(()),
        }
    }

    fn leader_counts(&mut self, of: usize) -> Result<(), Broken> {
        let broker = &mut self.brokers[of];
        let Role::Leader(leader) = &mut broker.role else { return Ok(()) };
        let moved = leader.own_end(broker.log.counts());
        self.lead_on(of, moved.map(LeaderEffect::HighWatermark).into_iter().collect())
    }

    fn tick(&mut self, of: usize) -> Result<(), Broken> {
        let (broker, now_ms) = (&mut self.brokers[of], self.now_ms);
        match &mut broker.role {
            _ if !broker.is_up => Ok(()),
            Role::Leader(leader) => {
                let effects = leader.tick(broker.log.end(), now_ms);
                self.lead_on(of, effects)
            }
            Role::Follower(follower) => {
                let effects = follower.step(FollowerEvent::Tick, &broker.log, now_ms);
                self.follow_on(of, effects, Vec::new())
            }
            Role::None => Ok(()),
        }
    }

    /// Carries out what a leader asks for.
    fn lead_on(&mut self, of: usize, effects: Vec<LeaderEffect>) -> Result<(), Broken> {
        for effect in effects {
            let broker = &mut self.brokers[of];
            let Role::Leader(leader) = &broker.role else { return Ok(()) };
            let epoch = leader.epoch();
            self.trace.push(format!("    broker {}: {effect}", broker.id));
            match effect {
                LeaderEffect::HighWatermark(offset) => {
                    if offset < broker.log.high_watermark || offset > broker.log.end() {
                        return Err(format!("the high watermark moves to {offset}"));
                    }
                    broker.log.high_watermark = offset;
                    self.note_committed(of)?;
                }
                LeaderEffect::AskForIsr { isr, partition_epoch } => {
                    let from = (broker.id, broker.epoch, epoch);
                    self.send(Message::Ask { from, isr, partition_epoch })?;
                }
                LeaderEffect::WaitUntil(_) => {}
            }
        }
        Ok(())
    }

    /// What a leader shows is committed, for good.
    fn note_committed(&mut self, of: usize) -> Result<(), Broken> {
        let broker = &mut self.brokers[of];
        for offset in broker.log.start..broker.log.high_watermark {
            let Some((_, value)) = broker.log.get(offset) else {
                return Err(format!("{offset} is below the high watermark and not there"));
            };
            match self.committed.get(at(offset)) {
                Some(known) if *known != value => {
                    return Err(format!("committed {offset} was {known} and is {value}"));
                }
                Some(_) => {}
                None => self.committed.push(value),
            }
        }
        let Role::Leader(leader) = &broker.role else { return Ok(()) };
        let (epoch, high_watermark) = (leader.epoch(), leader.high_watermark());
        let (seen, committed) = (&mut self.seen, &self.committed);
        let mut wrong = None;
        broker.unanswered.retain(|(appended_in, end, value)| {
            let is_acknowledged = *appended_in == epoch && *end <= high_watermark;
            if is_acknowledged {
                seen.acknowledged += 1;
                if committed.get(at(end - 1)).is_some_and(|known| known != value) {
                    wrong = Some(format!("{value} was acknowledged at {}", end - 1));
                }
            }
            !is_acknowledged
        });
        wrong.map_or(Ok(()), Err)
    }

    /// Carries out what a follower asks for.
    fn follow_on(
        &mut self,
        of: usize,
        effects: Vec<FollowerEffect>,
        records: Vec<(LeaderEpoch, Value)>,
    ) -> Result<(), Broken> {
        for effect in effects {
            let broker = &mut self.brokers[of];
            self.trace.push(format!("    broker {}: {effect}", broker.id));
            match effect {
                FollowerEffect::Fetch { leader, epoch, at, last_epoch, counts, .. } => {
                    let fetch = FollowerFetch {
                        replica: broker.id,
                        broker_epoch: broker.epoch,
                        leader_epoch: epoch,
                        at,
                        last_epoch,
                        counts,
                        start: broker.log.start(),
                    };
                    self.send(Message::Fetch { to: leader, fetch })?;
                }
                FollowerEffect::Report { leader, epoch, counts, last_epoch } => {
                    let (replica, broker_epoch, leader_epoch) = (broker.id, broker.epoch, epoch);
                    let report =
                        FollowerReport { replica, broker_epoch, leader_epoch, counts, last_epoch };
                    self.send(Message::Report { to: leader, report })?;
                }
                FollowerEffect::Append { .. }
                | FollowerEffect::Truncate { .. }
                | FollowerEffect::RestartAt { .. }
                | FollowerEffect::SetAside { .. } => {
                    broker.change = Some((effect, records.clone()));
                }
                FollowerEffect::Lost { from, until } => {
                    return Err(format!("{from}..{until} is lost though no election was unclean"));
                }
                FollowerEffect::HighWatermark(offset) => broker.log.high_watermark = offset,
                FollowerEffect::LogStart(offset) => broker.log.set_start(offset),
                FollowerEffect::WaitUntil(_) => {}
            }
        }
        Ok(())
    }

    /// The log is changed now, as it was begun.
    fn finish(&mut self, of: usize) -> Result<(), Broken> {
        let now_ms = self.now_ms;
        self.change_log(of, false);
        let broker = &mut self.brokers[of];
        let Role::Follower(follower) = &mut broker.role else { return Ok(()) };
        let effects = follower.step(FollowerEvent::Done, &broker.log, now_ms);
        self.follow_on(of, effects, Vec::new())
    }

    /// An append that was begun in an epoch that is over is refused by the log.
    fn change_log(&mut self, of: usize, is_over: bool) {
        let broker = &mut self.brokers[of];
        let current = match &broker.role {
            Role::Follower(follower) => follower.epoch(),
            Role::Leader(leader) => leader.epoch(),
            Role::None => -1,
        };
        match broker.change.take() {
            Some((FollowerEffect::Append { epoch }, records)) if epoch == current && !is_over => {
                broker.log.records.extend(records);
            }
            Some((FollowerEffect::Truncate { to }, _)) => {
                self.seen.truncations += usize::from(to < broker.log.end());
                broker.log.truncate(to);
            }
            Some((FollowerEffect::RestartAt { at } | FollowerEffect::SetAside { at }, _)) => {
                broker.log.restart(at);
            }
            _ => {}
        }
    }

    /// A broker learns what the controller has decided, or a part of it.
    fn learn(&mut self, of: usize, more: usize) -> Result<(), Broken> {
        let (now_ms, min_insync) = (self.now_ms, self.min_insync);
        let ids: Arc<[BrokerId]> = self.brokers.iter().map(|broker| broker.id).collect();
        let broker = &self.brokers[of];
        let left = self.history.len() - broker.seen;
        let seen = broker.seen + if more == usize::MAX { left } else { 1 + more % left };
        let state = self.history[seen - 1].clone();
        self.brokers[of].seen = seen;
        let led = match &self.brokers[of].role {
            Role::Leader(leader) => Some(leader.epoch()),
            Role::Follower(_) | Role::None => None,
        };
        let followed = match &self.brokers[of].role {
            Role::Follower(follower) => Some(follower.epoch()),
            Role::Leader(_) | Role::None => None,
        };
        let me = self.brokers[of].id;
        if state.leader == Some(me) && led == Some(state.leader_epoch) {
            let Role::Leader(leader) = &mut self.brokers[of].role else { return Ok(()) };
            let eligible = leader.set_eligible(state.eligible.clone());
            let moved = leader.committed(
                state.partition_epoch,
                &ids,
                (&state.isr, &Arc::default()),
                min_insync,
            );
            let moved = eligible.into_iter().chain(moved).map(LeaderEffect::HighWatermark);
            return self.lead_on(of, moved.collect());
        }
        if state.leader == Some(me) {
            // Who leads waits for what is being done with its log.
            self.change_log(of, true);
            let broker = &mut self.brokers[of];
            let begin = Begin {
                me,
                epoch: state.leader_epoch,
                partition_epoch: state.partition_epoch,
                replicas: ids,
                isr: state.isr.clone().into(),
                full: Arc::default(),
                min_insync,
                lag_max_ms: LAG_MAX_MS,
                log_end: broker.log.end(),
                high_watermark: broker.log.high_watermark,
                eligible: state.eligible.clone(),
            };
            let mut leader = LeaderState::begin(begin, now_ms);
            let moved = leader.own_end(broker.log.counts());
            broker.role = Role::Leader(leader);
            self.seen.elections += 1;
            if self.leaders.insert(state.leader_epoch, me).is_some_and(|other| other != me) {
                return Err(format!("epoch {} has two leaders", state.leader_epoch));
            }
            return self.lead_on(of, moved.map(LeaderEffect::HighWatermark).into_iter().collect());
        }
        if followed == Some(state.leader_epoch) {
            return Ok(());
        }
        let broker = &mut self.brokers[of];
        let is_changing = broker.change.is_some();
        let (follower, effects) = FollowerState::begin(
            state.leader,
            state.leader_epoch,
            1_000,
            (is_changing, false),
            &broker.log,
            now_ms,
        );
        broker.role = Role::Follower(follower);
        broker.unanswered.clear();
        self.follow_on(of, effects, Vec::new())
    }

    fn learn_all(&mut self, of: usize) -> Result<(), Broken> {
        while self.brokers[of].seen < self.history.len() {
            self.learn(of, usize::MAX)?;
        }
        Ok(())
    }

    /// Every message that is under way arrives, and what follows from it is done and synced, until
    /// there is nothing but followers that ask for more.
    fn exchange(&mut self) -> Result<(), Broken> {
        let (mut idle_since, mut idle_rounds) = (self.trace.len(), 0);
        // A round for the request, one for the answer.
        while idle_rounds < 3 {
            let before = self.trace.len();
            for message in std::mem::take(&mut self.messages) {
                self.deliver(message)?;
            }
            for of in 0..self.brokers.len() {
                if self.brokers[of].change.is_some() {
                    self.finish(of)?;
                    self.sync(of)?;
                }
            }
            let is_idle = |line: &String| line.contains("-> ") || line.contains(": fetch ");
            idle_rounds += 1;
            if !self.trace[before..].iter().all(is_idle) {
                (idle_since, idle_rounds) = (self.trace.len(), 0);
            }
        }
        // They asked again, and got nothing.
        self.trace.truncate(idle_since);
        Ok(())
    }

    fn crash(&mut self, of: usize, more: usize) -> Result<(), Broken> {
        // Of a change that was begun anything may be done.
        if more.is_multiple_of(2) {
            self.change_log(of, false);
        }
        let broker = &mut self.brokers[of];
        broker.change = None;
        let unsynced = at(broker.log.end() - broker.log.durable);
        let kept = Offset::try_from(more % (unsynced + 1)).unwrap();
        let end = broker.log.durable + kept;
        broker.log.truncate(end);
        broker.log.high_watermark = broker.checkpoint.clamp(broker.log.start, end);
        (broker.is_up, broker.role) = (false, Role::None);
        broker.unanswered.clear();
        Ok(())
    }

    /// A broker comes back and registers: what recovery has found is durable.
    fn restart(&mut self, of: usize, is_empty: bool) -> Result<(), Broken> {
        self.next_broker_epoch += 1;
        self.seen.restarts += 1;
        let broker = &mut self.brokers[of];
        if is_empty {
            broker.log.restart(0);
            broker.checkpoint = 0;
        }
        broker.log.durable = broker.log.end();
        (broker.is_up, broker.epoch) = (true, self.next_broker_epoch);
        // It acts on nothing that is older than its registration: in that it may lead, with a disk
        // that is empty now.
        broker.seen = self.history.len();
        let (id, epoch) = (broker.id, broker.epoch);
        // It may lack what it had said it has: it is not in sync before it has shown so.
        let may_lack = is_empty || self.counts_page_cache;
        self.decide(|state| {
            Arc::make_mut(&mut state.eligible).insert(id, epoch);
            if may_lack && state.isr.len() > 1 {
                state.isr.retain(|member| *member != id);
            }
            if state.leader == Some(id) || state.leader.is_none() {
                let live = |member: &&BrokerId| state.eligible.contains_key(*member);
                state.leader = state.isr.iter().find(live).copied();
                state.leader_epoch += 1;
            }
        });
        Ok(())
    }

    /// The controller notices that a broker is down.
    fn fence(&mut self, of: usize) -> Result<(), Broken> {
        let id = self.brokers[of].id;
        if self.controller.eligible.contains_key(&id) {
            self.decide(|state| {
                Arc::make_mut(&mut state.eligible).remove(&id);
                if state.isr.len() > 1 {
                    state.isr.retain(|member| *member != id);
                }
                if state.leader == Some(id) {
                    let live = |member: &&BrokerId| state.eligible.contains_key(*member);
                    state.leader = state.isr.iter().find(live).copied();
                    state.leader_epoch += 1;
                }
            });
        }
        Ok(())
    }

    /// The controller moves the lead to another replica that is in sync.
    fn elect_other(&mut self, more: usize) -> Result<(), Broken> {
        let state = &self.controller;
        let live = state.isr.iter().filter(|id| state.eligible.contains_key(*id));
        let others: Vec<_> = live.copied().filter(|id| Some(*id) != state.leader).collect();
        if !others.is_empty() {
            return self.elect(others[more % others.len()]);
        }
        Ok(())
    }

    fn elect(&mut self, next: BrokerId) -> Result<(), Broken> {
        self.decide(|state| {
            state.leader = Some(next);
            state.leader_epoch += 1;
        });
        Ok(())
    }

    /// Who may be in sync is no part of the partition's state: its version stays.
    fn decide(&mut self, change: impl FnOnce(&mut State)) {
        let before = self.controller.clone();
        change(&mut self.controller);
        let is_same = |one: &State, other: &State| {
            (&one.isr, one.leader, one.leader_epoch)
                == (&other.isr, other.leader, other.leader_epoch)
        };
        self.controller.partition_epoch += i32::from(!is_same(&before, &self.controller));
        self.history.push(self.controller.clone());
        self.trace.push(format!("    controller: {}", self.controller));
    }

    fn delete_records(&mut self, of: usize) -> Result<(), Broken> {
        let log = &mut self.brokers[of].log;
        if log.high_watermark > log.start {
            log.set_start(log.start + 1);
        }
        Ok(())
    }

    fn send(&mut self, message: Message) -> Result<(), Broken> {
        self.messages.push(message);
        if self.messages.len() > MESSAGES_MAX {
            let oldest = self.messages.remove(0);
            return self.lose(oldest);
        }
        Ok(())
    }

    fn of(&self, id: BrokerId) -> usize {
        self.brokers.iter().position(|broker| broker.id == id).unwrap()
    }

    fn deliver(&mut self, message: Message) -> Result<(), Broken> {
        self.trace.push(format!("    -> {message:?}"));
        let now_ms = self.now_ms;
        match message {
            Message::Fetch { to, fetch } => {
                let of = self.of(to);
                let broker = &mut self.brokers[of];
                let (answer, effects) = match &mut broker.role {
                    Role::Leader(leader) if broker.is_up => {
                        leader.fetch(fetch, &broker.log, now_ms)
                    }
                    _ => (Answer::NotReady, Vec::new()),
                };
                let mut records = Vec::new();
                if matches!(answer, Answer::Records { .. }) {
                    let from = at(fetch.at - broker.log.start);
                    records.extend(broker.log.records.iter().skip(from).take(BATCH));
                }
                self.lead_on(of, effects)?;
                let (to, epoch) = ((fetch.replica, fetch.broker_epoch), fetch.leader_epoch);
                self.send(Message::Answer { to, epoch, at: fetch.at, answer, records })
            }
            Message::Answer { to, epoch, at, answer, records } => {
                let of = self.of(to.0);
                let broker = &mut self.brokers[of];
                let Role::Follower(follower) = &mut broker.role else { return Ok(()) };
                if broker.epoch != to.1 || !broker.is_up {
                    return Ok(());
                }
                let has_records = !records.is_empty();
                let event = FollowerEvent::Answered { epoch, at, answer, has_records };
                let effects = follower.step(event, &broker.log, now_ms);
                self.follow_on(of, effects, records)
            }
            Message::Report { to, report } => {
                let of = self.of(to);
                let broker = &mut self.brokers[of];
                let Role::Leader(leader) = &mut broker.role else { return Ok(()) };
                let effects = leader.reported(report, &broker.log, now_ms);
                self.lead_on(of, effects)
            }
            Message::Ask { from, isr, partition_epoch } => {
                let answer = self.alter(from, &isr, partition_epoch);
                match answer {
                    Some(answer) => {
                        self.send(Message::IsrAnswer { to: from, isr, partition_epoch, answer })
                    }
                    None => Ok(()),
                }
            }
            Message::IsrAnswer { to, isr, partition_epoch, answer } => {
                let of = self.of(to.0);
                let broker = &mut self.brokers[of];
                match &mut broker.role {
                    Role::Leader(leader) if broker.epoch == to.1 && leader.epoch() == to.2 => {
                        let effects = leader.answered((&isr, partition_epoch), answer, now_ms);
                        self.lead_on(of, effects)
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// A connection is lost with what was on it: who waits for an answer notices.
    fn lose(&mut self, message: Message) -> Result<(), Broken> {
        match message {
            Message::Fetch { fetch, .. } => {
                let (to, epoch) = ((fetch.replica, fetch.broker_epoch), fetch.leader_epoch);
                let (at, answer) = (fetch.at, Answer::NotReady);
                self.deliver(Message::Answer { to, epoch, at, answer, records: Vec::new() })
            }
            Message::Answer { to, epoch, at, .. } => {
                let (answer, records) = (Answer::NotReady, Vec::new());
                self.deliver(Message::Answer { to, epoch, at, answer, records })
            }
            Message::Report { .. } => Ok(()),
            Message::Ask { from: to, isr, partition_epoch }
            | Message::IsrAnswer { to, isr, partition_epoch, .. } => {
                let answer = IsrAnswer::Unknown;
                self.deliver(Message::IsrAnswer { to, isr, partition_epoch, answer })
            }
        }
    }

    /// The controller's answer; none when it is done, which the metadata say.
    fn alter(
        &mut self,
        (from, _, leader_epoch): (BrokerId, BrokerEpoch, LeaderEpoch),
        isr: &[(BrokerId, BrokerEpoch)],
        partition_epoch: i32,
    ) -> Option<IsrAnswer> {
        let state = &self.controller;
        if state.leader != Some(from)
            || state.leader_epoch != leader_epoch
            || state.partition_epoch != partition_epoch
        {
            return Some(IsrAnswer::Superseded);
        }
        let is_eligible = |(id, epoch): &(BrokerId, BrokerEpoch)| {
            state.isr.contains(id) || state.eligible.get(id) == Some(epoch)
        };
        if !isr.iter().all(is_eligible) {
            return Some(IsrAnswer::Refused);
        }
        self.decide(|state| state.isr = isr.iter().map(|member| member.0).collect());
        None
    }

    fn check(&self) -> Result<(), Broken> {
        for broker in &self.brokers {
            let (log, id) = (&broker.log, broker.id);
            let agrees = |offset: &Offset| {
                log.get(*offset).map(|record| record.1) == self.committed.get(at(*offset)).copied()
            };
            if let Some(offset) = (log.start..log.high_watermark).find(|offset| !agrees(offset)) {
                return Err(format!("broker {id} shows another record at {offset}"));
            }
            let committed = Offset::try_from(self.committed.len()).unwrap();
            if self.controller.isr.contains(&id) && (broker.is_up || !self.counts_page_cache) {
                if let Some(offset) = (log.start..committed).find(|offset| !agrees(offset)) {
                    return Err(format!("broker {id} is in sync without committed {offset}"));
                }
                if log.counts() < committed {
                    return Err(format!("broker {id} is in sync and has no durable {committed}"));
                }
            }
        }
        Ok(())
    }

    /// Everything comes up and every message arrives.
    fn heal(&mut self) -> Result<(), Broken> {
        self.trace.push("healing".into());
        for round in 0..400 {
            for of in 0..self.brokers.len() {
                if !self.brokers[of].is_up {
                    self.restart(of, false)?;
                }
                self.learn_all(of)?;
                if self.brokers[of].change.is_some() {
                    self.finish(of)?;
                }
                self.sync(of)?;
            }
            for message in std::mem::take(&mut self.messages) {
                self.deliver(message)?;
            }
            self.check()?;
            self.now_ms += 200;
            (0..self.brokers.len()).try_for_each(|of| self.tick(of))?;
            if round > 20 && self.is_whole() {
                return Ok(());
            }
        }
        let brokers: Vec<_> = self.brokers.iter().map(|broker| format!("{broker:?}")).collect();
        Err(format!("it does not become whole: {:?}\n{}", self.controller, brokers.join("\n")))
    }

    fn is_whole(&self) -> bool {
        let end = self.brokers[0].log.end();
        let start = self.brokers.iter().map(|broker| broker.log.start).max().unwrap_or(0);
        self.controller.isr.len() == self.brokers.len()
            && self.brokers.iter().all(|broker| {
                broker.log.end() == end
                    && broker.log.high_watermark == end
                    && (start..end)
                        .all(|offset| broker.log.get(offset) == self.brokers[0].log.get(offset))
            })
    }
}

mod tests {
    use proptest::prelude::*;

    use super::*;
    use letterbox_sim::transcript::check;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

        /// PROPTEST_CASES=20000 for a long run.
        #[test]
        fn nothing_below_a_reported_high_watermark_is_lost_or_changed(
            brokers in 2i32..=3,
            min_insync in 1usize..=2,
            counts_page_cache: bool,
            choices in proptest::collection::vec(any::<u16>(), 0..300),
        ) {
            let world = World::new(brokers, min_insync, counts_page_cache);
            world.run(&choices).map_err(TestCaseError::fail)?;
        }
    }

    /// A world in which nothing happens proves nothing.
    #[test]
    fn worlds_are_busy() {
        let mut sum = Seen::default();
        for seed in 0..200u32 {
            let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
            let choices: Vec<u16> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                u16::try_from(state >> 16).unwrap()
            })
            .take(300)
            .collect();
            let seen = World::new(3, 2, seed % 2 == 1).run(&choices).unwrap();
            sum.acknowledged += seen.acknowledged;
            sum.elections += seen.elections;
            sum.truncations += seen.truncations;
            sum.restarts += seen.restarts;
        }
        assert!(
            sum.acknowledged > 100
                && sum.elections > 1_000
                && sum.truncations > 30
                && sum.restarts > 1_000,
            "{sum:?}"
        );
    }

    /// Three brokers, `min.insync.replicas=2`; broker 1 leads in epoch 0.
    fn tell(script: &str) {
        let mut world = World::new(3, 2, false);
        check(script, |line| {
            let of = line.find("at").map_or(0, |id| world.of(BrokerId(id.parse().unwrap())));
            let before = world.trace.len();
            let done = match line.word() {
                "produce" => world.produce(of),
                "sync" => world.sync(of),
                "finish" => world.finish(of),
                "learn" => world.learn_all(of),
                // What was not synced is lost.
                "power-cut" => world.crash(of, 0),
                "restart" => world.restart(of, false),
                "fence" => world.fence(of),
                "elect" => world.elect(BrokerId(line.number("id"))),
                "lose-all" => {
                    let lost = std::mem::take(&mut world.messages);
                    lost.into_iter().try_for_each(|message| world.lose(message))
                }
                "forget-all" => {
                    world.messages.clear();
                    Ok(())
                }
                "deliver" => {
                    let message = world.messages.remove(0);
                    world.deliver(message)
                }
                "exchange" => world.exchange(),
                "tick" => {
                    world.now_ms += 1_100;
                    (0..world.brokers.len()).try_for_each(|of| world.tick(of))
                }
                "log" => {
                    let log = &world.brokers[of].log;
                    let records: Vec<_> = log
                        .records
                        .iter()
                        .map(|(epoch, value)| format!("{value}@{epoch}"))
                        .collect();
                    let (durable, hw) = (log.durable, log.high_watermark);
                    world.trace.push(format!(
                        "    {}, durable {durable}, high watermark {hw}",
                        records.join(" ")
                    ));
                    Ok(())
                }
                other => panic!("{other}"),
            };
            done.and_then(|()| world.check()).unwrap();
            let told = world.trace[before..].iter().map(|line| line.trim().to_owned());
            told.filter(|line| !line.starts_with("->")).collect()
        });
    }

    /// A failover, line by line.
    #[test]
    fn the_leader_dies_and_comes_back() {
        tell(
            "
            > learn at=1
            > learn at=2
              broker 2: fetch from broker 1 in epoch 0: at 0 after epoch -1, counts 0
            > learn at=3
              broker 3: fetch from broker 1 in epoch 0: at 0 after epoch -1, counts 0
            > produce at=1
            > sync at=1
            > exchange
              broker 2: append in epoch 0
              broker 3: append in epoch 0
              broker 2: fetch from broker 1 in epoch 0: at 1 after epoch 0, counts 0
              broker 2: report to broker 1 in epoch 0: counts 1, epoch 0
              broker 3: fetch from broker 1 in epoch 0: at 1 after epoch 0, counts 0
              broker 3: report to broker 1 in epoch 0: counts 1, epoch 0
              broker 1: high watermark 1
              broker 2: fetch from broker 1 in epoch 0: at 1 after epoch 0, counts 1
              broker 3: fetch from broker 1 in epoch 0: at 1 after epoch 0, counts 1
              broker 2: high watermark 1
              broker 2: fetch from broker 1 in epoch 0: at 1 after epoch 0, counts 1
              broker 3: high watermark 1
              broker 3: fetch from broker 1 in epoch 0: at 1 after epoch 0, counts 1
            > log at=1
              0@0, durable 1, high watermark 1
            > produce at=1
            # Power goes before the second record is on any disk but the leader's.
            > sync at=1
            > forget-all
            > power-cut at=1
            > fence at=1
              controller: leader 2 in epoch 1, isr 2,3, version 1
            > learn at=2
            > learn at=3
              broker 3: fetch from broker 2 in epoch 1: at 1 after epoch 0, counts 1
            > produce at=2
            > sync at=2
            > exchange
              broker 3: append in epoch 1
              broker 3: fetch from broker 2 in epoch 1: at 2 after epoch 1, counts 1
              broker 3: report to broker 2 in epoch 1: counts 2, epoch 1
              broker 2: high watermark 2
              broker 3: fetch from broker 2 in epoch 1: at 2 after epoch 1, counts 2
              broker 3: high watermark 2
              broker 3: fetch from broker 2 in epoch 1: at 2 after epoch 1, counts 2
            > log at=2
              0@0 2@1, durable 2, high watermark 2
            # Its second record was never committed, and goes.
            > restart at=1
              controller: leader 2 in epoch 1, isr 2,3, version 1
            > learn at=1
              broker 1: fetch from broker 2 in epoch 1: at 2 after epoch 0, counts 2
            > exchange
              broker 3: fetch from broker 2 in epoch 1: at 2 after epoch 1, counts 2
              broker 1: truncate to 1
              broker 1: fetch from broker 2 in epoch 1: at 1 after epoch 0, counts 1
              broker 3: fetch from broker 2 in epoch 1: at 2 after epoch 1, counts 2
              broker 1: append in epoch 1
              broker 1: high watermark 2
              broker 1: fetch from broker 2 in epoch 1: at 2 after epoch 1, counts 1
              broker 1: report to broker 2 in epoch 1: counts 2, epoch 1
            > log at=1
              0@0 2@1, durable 2, high watermark 2
            > log at=3
              0@0 2@1, durable 2, high watermark 2
            # The leader hears that broker 1 has registered again, and takes it into the ISR.
            > learn at=2
            > exchange
              broker 1: fetch from broker 2 in epoch 1: at 2 after epoch 1, counts 2
              broker 3: fetch from broker 2 in epoch 1: at 2 after epoch 1, counts 2
              broker 2: ask for isr 1@101,2@2,3@3 on version 1
              controller: leader 2 in epoch 1, isr 1,2,3, version 2
              broker 1: fetch from broker 2 in epoch 1: at 2 after epoch 1, counts 2
            > learn at=2
            ",
        );
    }

    /// KIP-101: a follower learns the high watermark one fetch later than the leader. One that cut
    /// its log there when it came back, and led then, has lost what was acknowledged.
    #[test]
    fn a_follower_that_comes_back_and_leads_has_what_was_committed() {
        tell(
            "
            > learn at=1
            > learn at=2
              broker 2: fetch from broker 1 in epoch 0: at 0 after epoch -1, counts 0
            > learn at=3
              broker 3: fetch from broker 1 in epoch 0: at 0 after epoch -1, counts 0
            > produce at=1
            > sync at=1
            > deliver
            > deliver
            > deliver
              broker 2: append in epoch 0
            > deliver
              broker 3: append in epoch 0
            > finish at=2
              broker 2: fetch from broker 1 in epoch 0: at 1 after epoch 0, counts 0
            > finish at=3
              broker 3: fetch from broker 1 in epoch 0: at 1 after epoch 0, counts 0
            > sync at=2
              broker 2: report to broker 1 in epoch 0: counts 1, epoch 0
            > sync at=3
              broker 3: report to broker 1 in epoch 0: counts 1, epoch 0
            > deliver
            > deliver
            > deliver
            > deliver
              broker 1: high watermark 1
            > forget-all
            > log at=2
              0@0, durable 1, high watermark 0
            > power-cut at=2
            > restart at=2
              controller: leader 1 in epoch 0, isr 1,2,3, version 0
            > power-cut at=1
            > fence at=1
              controller: leader 2 in epoch 1, isr 2,3, version 1
            > learn at=2
            > log at=2
              0@0, durable 1, high watermark 0
            > learn at=3
              broker 3: fetch from broker 2 in epoch 1: at 1 after epoch 0, counts 1
            > exchange
              broker 2: high watermark 1
              broker 3: fetch from broker 2 in epoch 1: at 1 after epoch 0, counts 1
              broker 3: high watermark 1
              broker 3: fetch from broker 2 in epoch 1: at 1 after epoch 0, counts 1
            > log at=3
              0@0, durable 1, high watermark 1
            ",
        );
    }

    /// KAFKA-6361, KIP-279: two failovers before anybody has fetched. Each of the three logs ends
    /// in an epoch of its own, which the others have never heard of.
    #[test]
    fn after_two_quick_failovers_the_logs_are_the_same_again() {
        tell(
            "
            > learn at=1
            > learn at=2
              broker 2: fetch from broker 1 in epoch 0: at 0 after epoch -1, counts 0
            > learn at=3
              broker 3: fetch from broker 1 in epoch 0: at 0 after epoch -1, counts 0
            > produce at=1
            > sync at=1
            > exchange
              broker 2: append in epoch 0
              broker 3: append in epoch 0
              broker 2: fetch from broker 1 in epoch 0: at 1 after epoch 0, counts 0
              broker 2: report to broker 1 in epoch 0: counts 1, epoch 0
              broker 3: fetch from broker 1 in epoch 0: at 1 after epoch 0, counts 0
              broker 3: report to broker 1 in epoch 0: counts 1, epoch 0
              broker 1: high watermark 1
              broker 2: fetch from broker 1 in epoch 0: at 1 after epoch 0, counts 1
              broker 3: fetch from broker 1 in epoch 0: at 1 after epoch 0, counts 1
              broker 2: high watermark 1
              broker 2: fetch from broker 1 in epoch 0: at 1 after epoch 0, counts 1
              broker 3: high watermark 1
              broker 3: fetch from broker 1 in epoch 0: at 1 after epoch 0, counts 1
            > produce at=1
            > produce at=1
            > sync at=1
            > forget-all
            > elect id=2
              controller: leader 2 in epoch 1, isr 1,2,3, version 1
            > learn at=2
            > produce at=2
            > sync at=2
            > elect id=3
              controller: leader 3 in epoch 2, isr 1,2,3, version 2
            > forget-all
            > learn at=3
            > produce at=3
            > produce at=3
            > sync at=3
            > log at=1
              0@0 1@0 2@0, durable 3, high watermark 1
            > log at=2
              0@0 3@1, durable 2, high watermark 1
            > log at=3
              0@0 4@2 5@2, durable 3, high watermark 1
            > learn at=1
              broker 1: fetch from broker 3 in epoch 2: at 3 after epoch 0, counts 3
            > learn at=2
              broker 2: fetch from broker 3 in epoch 2: at 2 after epoch 1, counts 2
            > exchange
              broker 1: truncate to 1
              broker 2: truncate to 1
              broker 1: fetch from broker 3 in epoch 2: at 1 after epoch 0, counts 1
              broker 2: fetch from broker 3 in epoch 2: at 1 after epoch 0, counts 1
              broker 1: append in epoch 2
              broker 2: append in epoch 2
              broker 1: fetch from broker 3 in epoch 2: at 3 after epoch 2, counts 1
              broker 1: report to broker 3 in epoch 2: counts 3, epoch 2
              broker 2: fetch from broker 3 in epoch 2: at 3 after epoch 2, counts 1
              broker 2: report to broker 3 in epoch 2: counts 3, epoch 2
              broker 3: high watermark 3
              broker 1: fetch from broker 3 in epoch 2: at 3 after epoch 2, counts 3
              broker 2: fetch from broker 3 in epoch 2: at 3 after epoch 2, counts 3
              broker 1: high watermark 3
              broker 1: fetch from broker 3 in epoch 2: at 3 after epoch 2, counts 3
              broker 2: high watermark 3
              broker 2: fetch from broker 3 in epoch 2: at 3 after epoch 2, counts 3
            > log at=1
              0@0 4@2 5@2, durable 3, high watermark 3
            > log at=2
              0@0 4@2 5@2, durable 3, high watermark 3
            ",
        );
    }

    /// All that is committed is on the disks of those in sync.
    #[test]
    fn nothing_counts_before_it_is_on_a_disk() {
        tell(
            "
            > learn at=1
            > learn at=2
              broker 2: fetch from broker 1 in epoch 0: at 0 after epoch -1, counts 0
            > learn at=3
              broker 3: fetch from broker 1 in epoch 0: at 0 after epoch -1, counts 0
            > produce at=1
            # The followers have it before the leader's own disk has.
            > exchange
              broker 2: append in epoch 0
              broker 3: append in epoch 0
              broker 2: fetch from broker 1 in epoch 0: at 1 after epoch 0, counts 0
              broker 2: report to broker 1 in epoch 0: counts 1, epoch 0
              broker 3: fetch from broker 1 in epoch 0: at 1 after epoch 0, counts 0
              broker 3: report to broker 1 in epoch 0: counts 1, epoch 0
            > log at=1
              0@0, durable 0, high watermark 0
            > power-cut at=1
            > restart at=1
              controller: leader 1 in epoch 1, isr 1,2,3, version 1
            > log at=1
              , durable 0, high watermark 0
            > learn at=2
              broker 2: fetch from broker 1 in epoch 1: at 1 after epoch 0, counts 1
            > learn at=3
              broker 3: fetch from broker 1 in epoch 1: at 1 after epoch 0, counts 1
            > learn at=1
            > exchange
              broker 2: restart at 0
              broker 3: restart at 0
              broker 2: fetch from broker 1 in epoch 1: at 0 after epoch -1, counts 0
              broker 3: fetch from broker 1 in epoch 1: at 0 after epoch -1, counts 0
            > log at=1
              , durable 0, high watermark 0
            > log at=2
              , durable 0, high watermark 0
            ",
        );
    }
}
