//! What this broker is to a partition that is assigned to it: leader, follower, or neither while
//! its log is not open.
//!
//! A state machine without I/O: (state, event) → (state, effects). The partition
//! ([`super::Partition`]) carries out the effects in their order, under the lock that guards this
//! state; the transcripts below tell the rules.
//!
//! Invariants: the role is `Offline` as long as the log is not open; else it is `Leader` only if
//! the newest assignment names this broker, and then as soon as nothing that it began as a follower
//! changes the log any more. A change of the leader epoch has the log refuse every append of an
//! older epoch ([`Effect::BeginEpoch`]) before anybody is told the new one, so no record is
//! appended in an epoch that is over. What was asked of another broker ends with the epoch it was asked in
//! ([`Effect::Unfollow`]).

use std::fmt;

use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{BrokerId, LeaderEpoch, Offset};

use super::follower::{Answer, FollowerEffect, FollowerEvent, FollowerState, OwnLog};
use super::leader::{
    Begin, BrokerEpoch, Eligible, FollowerFetch, FollowerReport, IsrAnswer, LeaderEffect,
    LeaderState, NotEnoughReplicas,
};
use super::outbox::IsrWish;
use crate::metadata::PartitionState;

/// What happens to a partition.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The metadata's newest word on it, with `min.insync.replicas` as the same metadata has it: who
    /// is eligible to lead (KIP-966) follows from both. One that is older than the last is ignored.
    Assigned(PartitionState, usize),
    /// Its log is open.
    Opened,
    /// Its log cannot be opened or made now, or went out of use.
    Failed,
    /// `min.insync.replicas` is that now, and the newest assignment is known.
    MinInsync(usize),
    /// The brokers that may be in sync are these now.
    Eligible(Eligible),
    /// What was asked of the leader, or begun with the log, has come to that.
    Follower(FollowerEvent),
    /// What became of the ISR that was asked for.
    IsrAnswered(IsrWish, IsrAnswer),
    /// Time has passed.
    Tick,
    /// Its topic was deleted.
    Gone,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The log takes no append of an older leader epoch any more.
    BeginEpoch(LeaderEpoch),
    /// The high watermark is that now: store it, and wake who waits for it.
    HighWatermark(Offset),
    /// Nothing that was asked of another broker is wanted any more.
    Unfollow,
    /// As a follower. Never the high watermark.
    Follow(FollowerEffect),
    /// It leads in that epoch, and what its log lacks is lost: to be noted by the log, in which
    /// nothing counts before.
    LacksNothingMore(LeaderEpoch),
    /// Ask the controller for this ISR: see [`LeaderEffect::AskForIsr`].
    AskForIsr { epoch: LeaderEpoch, isr: Vec<(BrokerId, BrokerEpoch)>, partition_epoch: i32 },
    /// It is to be looked at again then: [`Event::Tick`].
    WaitUntil(u64),
    /// Wake all who wait: what they wait for may never come.
    WakeAll,
    /// The log belongs to nobody any more.
    Discard,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeginEpoch(epoch) => write!(f, "begin epoch {epoch}"),
            Self::HighWatermark(offset) => write!(f, "high watermark {offset}"),
            Self::Unfollow => f.write_str("unfollow"),
            Self::Follow(effect) => effect.fmt(f),
            Self::AskForIsr { epoch, isr, partition_epoch } => {
                let (isr, partition_epoch) = (isr.clone(), *partition_epoch);
                let ask = LeaderEffect::AskForIsr { isr, partition_epoch };
                write!(f, "in epoch {epoch}: {ask}")
            }
            Self::LacksNothingMore(epoch) => write!(f, "in epoch {epoch}: lacks nothing more"),
            Self::WaitUntil(at_ms) => write!(f, "wait until {at_ms}"),
            Self::WakeAll => f.write_str("wake all"),
            Self::Discard => f.write_str("discard the log"),
        }
    }
}

/// What this broker is to a partition.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    /// It leads in the epoch of the assignment.
    Leader(LeaderState),
    /// Another leads, or nobody; or this broker will, once its log is not changed any more.
    Follower(FollowerState),
    /// Its log is not open.
    Offline,
}

/// The log, as far as the role depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogState {
    /// Being opened or made.
    Opening,
    Open,
    /// Could not be opened or made, which is tried again; or went out of use until the next start.
    Failed,
    /// Its topic was deleted, or other brokers have the partition now. Nothing follows.
    Gone,
}

/// How a log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogStanding {
    /// It is out of use.
    pub(crate) is_offline: bool,
    /// It takes no records for want of space.
    pub(crate) is_full: bool,
}

/// Why an append may not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MayNotAppend {
    NotLeader,
    Offline,
    NotEnoughReplicas(NotEnoughReplicas),
}

/// What counts as acknowledged: what became of an append that waits to be committed. The one answer
/// that Produce, the readers that wait for what was acknowledged, and the coordinators share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Commit {
    /// Every replica that was in sync has it.
    Committed,
    /// So it is, and by now fewer replicas are in sync than `min.insync.replicas`. A producer is
    /// told so, as Kafka does; a reader need not care.
    CommittedBelowMinIsr,
    /// Not yet.
    Waiting,
    /// This broker does not lead any more in the epoch it was appended in: it may be committed or
    /// lost.
    NotLeader,
    /// The log can no longer be written.
    Offline,
    /// The topic was deleted.
    Gone,
}

impl Commit {
    /// What Produce answers; `None` while it waits.
    #[must_use]
    pub(crate) fn produce_answer(self) -> Option<ErrorCode> {
        Some(match self {
            Self::Committed => ErrorCode::None,
            Self::CommittedBelowMinIsr => ErrorCode::NotEnoughReplicasAfterAppend,
            Self::Waiting => return None,
            Self::NotLeader => ErrorCode::NotLeaderOrFollower,
            Self::Offline => ErrorCode::KafkaStorageError,
            Self::Gone => ErrorCode::UnknownTopicOrPartition,
        })
    }

    /// What somebody is told who only wants it to be committed.
    ///
    /// # Errors
    /// As with Produce, and OFFSET_NOT_AVAILABLE where it still waits.
    pub(crate) fn reached(self) -> Result<(), ErrorCode> {
        match self {
            Self::CommittedBelowMinIsr => Ok(()),
            other => match other.produce_answer().unwrap_or(ErrorCode::OffsetNotAvailable) {
                ErrorCode::None => Ok(()),
                error => Err(error),
            },
        }
    }
}

/// This broker's replica of a partition.
#[derive(Debug)]
pub(crate) struct Replica {
    me: BrokerId,
    assigned: PartitionState,
    eligible: Eligible,
    min_insync: usize,
    times: Times,
    log: LogState,
    role: Role,
}

/// What the configuration says of time, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// `replica.lag.time.max.ms`.
    pub(crate) lag_max_ms: u64,
    /// `replica.fetch.backoff.ms`.
    pub(crate) backoff_ms: u64,
}

impl Replica {
    /// A replica whose log is still to be opened.
    pub(crate) fn new(
        me: BrokerId,
        assigned: PartitionState,
        eligible: Eligible,
        min_insync: usize,
        times: Times,
    ) -> Self {
        let (log, role) = (LogState::Opening, Role::Offline);
        Self { me, assigned, eligible, min_insync, times, log, role }
    }

    pub(crate) fn log(&self) -> LogState {
        self.log
    }

    /// The state of the leader, when this broker is it.
    pub(crate) fn leader(&self) -> Option<&LeaderState> {
        if let Role::Leader(leader) = &self.role { Some(leader) } else { None }
    }

    /// Whether this broker has a replica; once it has none it never has one again: the object ends.
    pub(crate) fn is_assigned(&self) -> bool {
        self.assigned.replicas.contains(&self.me)
    }

    /// The epoch in which this broker leads; `None` when it does not.
    pub(crate) fn led_epoch(&self) -> Option<LeaderEpoch> {
        self.leader().map(LeaderState::epoch)
    }

    /// The epoch in which this broker follows; `None` when it does not.
    pub(crate) fn followed_epoch(&self) -> Option<LeaderEpoch> {
        if let Role::Follower(follower) = &self.role { Some(follower.epoch()) } else { None }
    }

    /// How its log is, where the metadata says otherwise; `is_full` while it is open. That it is
    /// out of use, or full, is to be told only where another broker could lead.
    pub(crate) fn unreported(&self, is_full: bool) -> Option<LogStanding> {
        let is_offline = match self.log {
            LogState::Open => false,
            LogState::Failed => true,
            LogState::Opening | LogState::Gone => return None,
        };
        let PartitionState { replicas, offline, full, .. } = &self.assigned;
        let may_tell = replicas.len() > 1;
        let is_full = is_full && !is_offline && may_tell;
        let is_told =
            offline.contains(&self.me) == is_offline && full.contains(&self.me) == is_full;
        (!is_told && (may_tell || !is_offline)).then_some(LogStanding { is_offline, is_full })
    }

    /// Whether its log is open, where the metadata has it as out of use.
    pub(crate) fn is_back(&self) -> bool {
        self.log == LogState::Open && self.assigned.offline.contains(&self.me)
    }

    /// Whether nobody counts on what is here, because another broker leads and this one is neither
    /// in sync nor eligible: what is not here is copied.
    pub(crate) fn may_be_copied(&self) -> bool {
        let is_led = self.assigned.leader.is_some_and(|leader| leader != self.me);
        is_led && !self.assigned.has_all(self.me)
    }

    /// Whether this broker leads and others have the partition too.
    pub(crate) fn is_replicated(&self) -> bool {
        self.leader().is_some() && self.assigned.replicas.len() > 1
    }

    /// The epoch in which an append may begin.
    ///
    /// # Errors
    /// [`MayNotAppend`]; `NotEnoughReplicas` only with `acks_all`.
    pub(crate) fn may_append(&self, acks_all: bool) -> Result<LeaderEpoch, MayNotAppend> {
        match &self.role {
            Role::Leader(leader) => {
                if acks_all {
                    leader.may_append_to_all().map_err(MayNotAppend::NotEnoughReplicas)?;
                }
                Ok(leader.epoch())
            }
            Role::Follower(_) => Err(MayNotAppend::NotLeader),
            Role::Offline => Err(MayNotAppend::Offline),
        }
    }

    /// How many replicas are in sync, and how many `acks=all` asks for, while this broker leads.
    pub(crate) fn in_sync_and_required(&self) -> Option<(usize, usize)> {
        match &self.role {
            Role::Leader(leader) => Some(leader.in_sync_and_required()),
            Role::Follower(_) | Role::Offline => None,
        }
    }

    /// See [`LeaderState::out_of_sync`].
    pub(crate) fn out_of_sync(&self) -> Vec<(BrokerId, Option<Offset>)> {
        match &self.role {
            Role::Leader(leader) => leader.out_of_sync(),
            Role::Follower(_) | Role::Offline => Vec::new(),
        }
    }

    /// What became of the records before `end` that were appended, or were there, when this broker
    /// led in `epoch`. In another epoch another leader may have put others in their place.
    pub(crate) fn commit(&self, epoch: LeaderEpoch, end: Offset) -> Commit {
        match &self.role {
            Role::Leader(leader) if leader.epoch() == epoch => {
                if leader.high_watermark() < end {
                    Commit::Waiting
                } else if leader.is_below_min_isr() {
                    Commit::CommittedBelowMinIsr
                } else {
                    Commit::Committed
                }
            }
            Role::Leader(_) | Role::Follower(_) => Commit::NotLeader,
            Role::Offline if !self.is_assigned() => Commit::NotLeader,
            Role::Offline if self.log == LogState::Gone => Commit::Gone,
            Role::Offline => Commit::Offline,
        }
    }

    /// Takes `event` in and gives what is to be done. `log` is the own log, as soon as it is open,
    /// and `now_ms` a monotonic clock.
    pub(crate) fn step<L: OwnLog>(
        &mut self,
        event: Event,
        log: Option<&L>,
        now_ms: u64,
    ) -> Vec<Effect> {
        if self.log == LogState::Gone {
            return match event {
                Event::Opened => vec![Effect::Discard],
                _ => Vec::new(),
            };
        }
        match event {
            Event::Assigned(state, _) if state.partition_epoch < self.assigned.partition_epoch => {
                Vec::new()
            }
            Event::Assigned(state, min_insync) => {
                self.assigned = state;
                self.min_insync = min_insync;
                if self.is_assigned() { self.take_role(log, now_ms) } else { self.leave() }
            }
            Event::Opened => {
                self.log = LogState::Open;
                self.take_role(log, now_ms)
            }
            Event::Failed => {
                self.log = LogState::Failed;
                let mut effects: Vec<_> = self.unfollow().into_iter().collect();
                if !matches!(std::mem::replace(&mut self.role, Role::Offline), Role::Offline) {
                    effects.push(Effect::WakeAll);
                }
                effects
            }
            Event::MinInsync(min_insync) => {
                self.min_insync = min_insync;
                let required = self.assigned.required_in_sync(min_insync);
                let moved = match &mut self.role {
                    Role::Leader(leader) => leader.set_min_insync(required),
                    Role::Follower(_) | Role::Offline => None,
                };
                moved.map(Effect::HighWatermark).into_iter().collect()
            }
            Event::Eligible(eligible) => {
                self.eligible = eligible.clone();
                let moved = match &mut self.role {
                    Role::Leader(leader) => leader.set_eligible(eligible),
                    Role::Follower(_) | Role::Offline => None,
                };
                moved.map(Effect::HighWatermark).into_iter().collect()
            }
            Event::Follower(event) => self.follow(event, log, now_ms),
            Event::IsrAnswered(wish, answer) => match &mut self.role {
                Role::Leader(leader) if leader.epoch() == wish.epoch => {
                    let asked = (&*wish.isr, wish.partition_epoch);
                    of_leader(wish.epoch, leader.answered(asked, answer, now_ms))
                }
                _ => Vec::new(),
            },
            Event::Tick => self.tick(log, now_ms),
            Event::Gone => self.leave(),
        }
    }

    /// The log is nobody's any more.
    fn leave(&mut self) -> Vec<Effect> {
        self.log = LogState::Gone;
        let mut effects: Vec<_> = self.unfollow().into_iter().collect();
        self.role = Role::Offline;
        effects.extend([Effect::Discard, Effect::WakeAll]);
        effects
    }

    fn unfollow(&self) -> Option<Effect> {
        let Role::Follower(follower) = &self.role else { return None };
        follower.leader().map(|_| Effect::Unfollow)
    }

    fn tick<L: OwnLog>(&mut self, log: Option<&L>, now_ms: u64) -> Vec<Effect> {
        match (&mut self.role, log) {
            (Role::Leader(leader), Some(log)) => {
                let epoch = leader.epoch();
                let mut effects = of_leader(epoch, leader.tick(log.end(), now_ms));
                effects.extend(log.may_lack_records().then_some(Effect::LacksNothingMore(epoch)));
                effects
            }
            (Role::Follower(_), Some(_)) => self.follow(FollowerEvent::Tick, log, now_ms),
            _ => Vec::new(),
        }
    }

    fn follow<L: OwnLog>(
        &mut self,
        event: FollowerEvent,
        log: Option<&L>,
        now_ms: u64,
    ) -> Vec<Effect> {
        let (Role::Follower(follower), Some(own)) = (&mut self.role, log) else {
            return Vec::new();
        };
        let was_changing = follower.is_changing();
        let mut effects = of_follower(follower.step(event, own, now_ms));
        // Who is to lead waits for what was begun with its log.
        if was_changing && !follower.is_changing() && self.assigned.leader == Some(self.me) {
            effects.extend(self.take_role(log, now_ms));
        }
        effects
    }

    /// A follower asks for records; what it is answered.
    pub(crate) fn fetched<L: OwnLog>(
        &mut self,
        fetch: FollowerFetch,
        log: Option<&L>,
        now_ms: u64,
    ) -> (Answer, Vec<Effect>) {
        let (Role::Leader(leader), Some(log)) = (&mut self.role, log) else {
            return (Answer::NotReady, Vec::new());
        };
        let (answer, effects) = leader.fetch(fetch, log, now_ms);
        (answer, of_leader(leader.epoch(), effects))
    }

    /// See [`LeaderState::low_watermark`], and the epoch; `None` where this broker does not lead.
    pub(crate) fn low_watermark<L: OwnLog>(&self, log: &L) -> Option<(LeaderEpoch, Offset)> {
        let leader = self.leader()?;
        Some((leader.epoch(), leader.low_watermark(log.start(), &self.assigned.offline)))
    }

    /// A follower counts further than when it fetched last.
    pub(crate) fn reported<L: OwnLog>(
        &mut self,
        report: FollowerReport,
        log: Option<&L>,
        now_ms: u64,
    ) -> Vec<Effect> {
        let (Role::Leader(leader), Some(log)) = (&mut self.role, log) else { return Vec::new() };
        let effects = leader.reported(report, log, now_ms);
        of_leader(leader.epoch(), effects)
    }

    /// The own log of a leader counts up to there: durable, or appended where the topic opts out.
    /// Gives the new high watermark when it moved.
    pub(crate) fn own_end(&mut self, counted: Offset) -> Option<Offset> {
        match &mut self.role {
            Role::Leader(leader) => leader.own_end(counted),
            Role::Follower(_) | Role::Offline => None,
        }
    }

    /// Becomes what the newest assignment says.
    fn take_role<L: OwnLog>(&mut self, log: Option<&L>, now_ms: u64) -> Vec<Effect> {
        let (LogState::Open, Some(log)) = (self.log, log) else { return Vec::new() };
        let PartitionState {
            replicas,
            isr,
            full,
            leader,
            leader_epoch: epoch,
            partition_epoch,
            ..
        } = self.assigned.clone();
        let required = self.assigned.required_in_sync(self.min_insync);
        let (leads, was_led) = (leader == Some(self.me), self.led_epoch());
        let mut is_changing = false;
        match &mut self.role {
            Role::Leader(leader) if leads && leader.epoch() == epoch => {
                let moved = leader.committed(partition_epoch, &replicas, (&isr, &full), required);
                return moved.map(Effect::HighWatermark).into_iter().collect();
            }
            Role::Follower(follower) => {
                is_changing = follower.is_changing();
                if follower.epoch() == epoch && (!leads || is_changing) {
                    return Vec::new();
                }
            }
            Role::Leader(_) | Role::Offline => {}
        }
        let mut effects = vec![Effect::BeginEpoch(epoch)];
        effects.extend(self.unfollow());
        if leads && !is_changing {
            let begin = Begin {
                me: self.me,
                epoch,
                partition_epoch,
                replicas,
                isr,
                full,
                min_insync: required,
                lag_max_ms: self.times.lag_max_ms,
                log_end: log.end(),
                high_watermark: log.high_watermark(),
                eligible: self.eligible.clone(),
            };
            let mut leader = LeaderState::begin(begin, now_ms);
            effects.extend(leader.own_end(log.counts()).map(Effect::HighWatermark));
            effects.extend(log.may_lack_records().then_some(Effect::LacksNothingMore(epoch)));
            self.role = Role::Leader(leader);
        } else {
            let leader = leader.filter(|_| !leads);
            let backoff_ms = self.times.backoff_ms;
            let how = (is_changing, self.assigned.may_have_more.contains(&self.me));
            let (follower, asks) =
                FollowerState::begin(leader, epoch, backoff_ms, how, log, now_ms);
            effects.extend(of_follower(asks));
            self.role = Role::Follower(follower);
        }
        if was_led.is_some() && self.led_epoch() != was_led {
            effects.push(Effect::WakeAll);
        }
        effects
    }
}

fn of_follower(effects: Vec<FollowerEffect>) -> Vec<Effect> {
    let of_one = |effect| match effect {
        FollowerEffect::HighWatermark(offset) => Effect::HighWatermark(offset),
        FollowerEffect::WaitUntil(at_ms) => Effect::WaitUntil(at_ms),
        effect => Effect::Follow(effect),
    };
    effects.into_iter().map(of_one).collect()
}

fn of_leader(epoch: LeaderEpoch, effects: Vec<LeaderEffect>) -> Vec<Effect> {
    let of_one = |effect| match effect {
        LeaderEffect::HighWatermark(offset) => Effect::HighWatermark(offset),
        LeaderEffect::AskForIsr { isr, partition_epoch } => {
            Effect::AskForIsr { epoch, isr, partition_epoch }
        }
        LeaderEffect::WaitUntil(at_ms) => Effect::WaitUntil(at_ms),
    };
    effects.into_iter().map(of_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::world::ModelLog;
    use letterbox_sim::transcript::{Line, check};

    const TIMES: Times = Times { lag_max_ms: 30_000, backoff_ms: 1_000 };

    /// Broker 1's replica of a partition of three, with `min.insync.replicas=2`.
    fn tell(script: &str) {
        let (mut replica, mut log, mut min) = (None, None::<ModelLog>, 2);
        check(script, |line| {
            min = line.find("min").map_or(min, |min| min.parse().unwrap());
            let event = match line.word() {
                "assigned" => Event::Assigned(state(line), min),
                "opened" => {
                    let epoch = line.find("of").unwrap_or("0");
                    let mut own: ModelLog =
                        format!("{epoch}:{}", line.text("end")).parse().unwrap();
                    own.high_watermark = line.number("hw");
                    own.lacks_records = line.find("lacks").is_some();
                    log = Some(own);
                    Event::Opened
                }
                "failed" => Event::Failed,
                "counts" => {
                    let replica: &mut Replica = replica.as_mut().unwrap();
                    let (own, end) = (log.as_mut().unwrap(), line.number("end"));
                    while own.end() < end {
                        own.records.push((replica.assigned.leader_epoch, 0));
                    }
                    own.durable = end;
                    let moved = replica.own_end(own.counts()).map(Effect::HighWatermark);
                    return told(moved.as_slice(), log.as_mut());
                }
                "noted" => {
                    let (replica, own) = (replica.as_mut().unwrap(), log.as_mut().unwrap());
                    own.lacks_records = false;
                    let moved = replica.own_end(own.counts()).map(Effect::HighWatermark);
                    return told(moved.as_slice(), log.as_mut());
                }
                "tick" => Event::Tick,
                "diverging" => Event::Follower(FollowerEvent::Answered {
                    epoch: line.number("in"),
                    at: line.number("at"),
                    answer: Answer::Diverging {
                        epoch: line.number("epoch"),
                        end: line.number("end"),
                    },
                    has_records: false,
                }),
                "not-ready" => Event::Follower(FollowerEvent::Answered {
                    epoch: line.number("in"),
                    at: line.number("at"),
                    answer: Answer::NotReady,
                    has_records: false,
                }),
                "done" => {
                    log.as_mut().unwrap().truncate(line.number("end"));
                    log.as_mut().unwrap().lacks_records = false;
                    Event::Follower(FollowerEvent::Done)
                }
                "min-insync" => {
                    min = line.number("is");
                    Event::MinInsync(min)
                }
                "live" => {
                    let brokers = line.text("brokers").split(',').map(registered);
                    Event::Eligible(Eligible::new(brokers.collect()))
                }
                "fetch" => {
                    let (id, broker_epoch) = registered(line.text("by"));
                    let fetch = FollowerFetch {
                        replica: id,
                        broker_epoch,
                        leader_epoch: line.number("in"),
                        at: line.number("at"),
                        last_epoch: line.number("last"),
                        counts: line.number("at"),
                        start: 0,
                    };
                    let replica: &mut Replica = replica.as_mut().unwrap();
                    let (answer, effects) = replica.fetched(fetch, log.as_ref(), 0);
                    let told = told(&effects, log.as_mut());
                    return [format!("answer {answer}")].into_iter().chain(told).collect();
                }
                "gone" => Event::Gone,
                "unreported" => {
                    let replica: &Replica = replica.as_ref().unwrap();
                    let word = |is: LogStanding| match is {
                        LogStanding { is_offline: true, is_full: false } => "offline",
                        LogStanding { is_offline: false, is_full: true } => "full",
                        _ => "back",
                    };
                    let is = replica.unreported(line.find("is") == Some("full"));
                    return is.map(|is| word(is).to_owned()).into_iter().collect();
                }
                "may-be-copied" => {
                    return vec![replica.as_ref().unwrap().may_be_copied().to_string()];
                }
                "commit" => {
                    let replica: &Replica = replica.as_ref().unwrap();
                    let commit = replica.commit(line.number("epoch"), line.number("end"));
                    return vec![format!("{commit:?}")];
                }
                "append" => {
                    let replica: &Replica = replica.as_ref().unwrap();
                    return vec![match replica.may_append(line.text("acks") == "all") {
                        Ok(epoch) => format!("in epoch {epoch}"),
                        Err(why) => format!("{why:?}"),
                    }];
                }
                other => panic!("{other}"),
            };
            let effects = match (&mut replica, event) {
                (Some(replica), event) => replica.step(event, log.as_ref(), 0),
                (none, Event::Assigned(state, min)) => {
                    let eligible = Eligible::default();
                    *none = Some(Replica::new(BrokerId(1), state, eligible, min, TIMES));
                    Vec::new()
                }
                (None, event) => panic!("{event:?} before the assignment"),
            };
            told(&effects, log.as_mut())
        });
    }

    #[test]
    fn a_replica_that_nobody_counts_on_may_be_copied() {
        tell(
            "
            > assigned replicas=1,2,3 isr=2,3 leader=2 epoch=3 version=5
            > may-be-copied
              true
            > assigned replicas=1,2,3 isr=2 elr=1 leader=2 epoch=3 version=6
            > may-be-copied
              false
            > assigned replicas=1,2,3 isr=1,2 leader=2 epoch=3 version=7
            > may-be-copied
              false
            > assigned replicas=1,2,3 isr= elr=3 leader= epoch=4 version=8
            > may-be-copied
              false
            ",
        );
    }

    fn told(effects: &[Effect], log: Option<&mut ModelLog>) -> Vec<String> {
        let moved = effects.iter().find_map(|effect| match effect {
            Effect::HighWatermark(offset) => Some(*offset),
            _ => None,
        });
        if let (Some(log), Some(moved)) = (log, moved) {
            log.high_watermark = moved;
        }
        effects.iter().map(ToString::to_string).collect()
    }

    /// `2@12`: broker 2 as it registered with epoch 12.
    fn registered(text: &str) -> (BrokerId, BrokerEpoch) {
        let (id, epoch) = text.split_once('@').unwrap();
        (BrokerId(id.parse().unwrap()), epoch.parse().unwrap())
    }

    fn state(line: &Line<'_>) -> PartitionState {
        PartitionState {
            replicas: line.ids("replicas").into(),
            isr: line.ids("isr").into(),
            leader: line.ids("leader").first().copied(),
            leader_epoch: line.number("epoch"),
            partition_epoch: line.number("version"),
            offline: line.find("offline").map_or(Vec::new(), |_| line.ids("offline")).into(),
            full: line.find("full").map_or(Vec::new(), |_| line.ids("full")).into(),
            elr: line.find("elr").map_or(Vec::new(), |_| line.ids("elr")).into(),
            adding: line.find("adding").map_or(Vec::new(), |_| line.ids("adding")).into(),
            may_have_more: line.find("more").map_or(Vec::new(), |_| line.ids("more")).into(),
            ..PartitionState::default()
        }
    }

    /// A topic that gets more replicas is written to meanwhile.
    #[test]
    fn replicas_that_a_move_adds_need_not_be_in_sync() {
        tell(
            "
            > assigned leader=1 epoch=0 version=0 replicas=1,2,3 isr=1 adding=2,3
            > opened end=3 hw=0
              begin epoch 0
              high watermark 3
            > append acks=all
              in epoch 0
            > assigned leader=1 epoch=0 version=1 replicas=1,2,3 isr=1
            > append acks=all
              NotEnoughReplicas(NotEnoughReplicas { in_sync: 1, required: 2 })
            ",
        );
    }

    #[test]
    fn a_role_begins_when_the_log_is_open() {
        tell(
            "
            > assigned leader=1 epoch=3 version=7 replicas=1,2,3 isr=1,2
            > append acks=1
              Offline
            # The assignment that counts is the newest, also while the log is being made.
            > assigned leader=1 epoch=4 version=8 replicas=1,2,3 isr=1
            > opened end=10 hw=6
              begin epoch 4
            > append acks=1
              in epoch 4
            > append acks=all
              NotEnoughReplicas(NotEnoughReplicas { in_sync: 1, required: 2 })
            ",
        );
    }

    #[test]
    fn a_leader_that_is_replaced_appends_nothing_more_and_tells_who_waits() {
        tell(
            "
            > assigned leader=1 epoch=3 version=0 replicas=1,2,3 isr=1,2,3
            > opened end=10 hw=10
              begin epoch 3
            > append acks=all
              in epoch 3
            > assigned leader=2 epoch=4 version=1 replicas=1,2,3 isr=1,2,3
              begin epoch 4
              fetch from broker 2 in epoch 4: at 10 after epoch 0, counts 10
              wake all
            > append acks=all
              NotLeader
            # Only who is in sync has changed.
            > assigned leader=2 epoch=4 version=2 replicas=1,2,3 isr=2,3
            # Nobody leads: the same.
            > assigned leader= epoch=5 version=3 replicas=1,2,3 isr=1
              begin epoch 5
              unfollow
            > append acks=1
              NotLeader
            # What had been in sync before is not known to be so in the new epoch.
            > assigned leader=1 epoch=6 version=4 replicas=1,2,3 isr=1
              begin epoch 6
            > counts end=15
            > append acks=all
              NotEnoughReplicas(NotEnoughReplicas { in_sync: 1, required: 2 })
            ",
        );
    }

    #[test]
    fn a_change_of_the_in_sync_replicas_is_no_new_epoch() {
        tell(
            "
            > assigned leader=1 epoch=3 version=0 replicas=1,2 isr=1,2
            > opened end=10 hw=4
              begin epoch 3
            > counts end=20
            > min-insync is=1
            > assigned leader=1 epoch=3 version=1 replicas=1,2 isr=1
              high watermark 20
            # A word that comes late is not the newest.
            > assigned leader=1 epoch=3 version=0 replicas=1,2 isr=1,2
            > counts end=25
              high watermark 25
            ",
        );
    }

    /// What counts as acknowledged. An offset alone says nothing once another broker has led: the
    /// record there may be another.
    #[test]
    fn what_was_appended_is_committed_in_the_epoch_it_was_appended_in() {
        tell(
            "
            > assigned leader=1 epoch=3 version=0 replicas=1,2 isr=1
            > commit epoch=3 end=5
              Offline
            > min-insync is=1
            > opened end=4 hw=4
              begin epoch 3
            > commit epoch=3 end=5
              Waiting
            > counts end=5
              high watermark 5
            > commit epoch=3 end=5
              Committed
            > min-insync is=2
            > commit epoch=3 end=5
              CommittedBelowMinIsr
            > commit epoch=3 end=6
              Waiting
            > assigned leader=2 epoch=4 version=1 replicas=1,2 isr=1,2
              begin epoch 4
              fetch from broker 2 in epoch 4: at 5 after epoch 3, counts 5
              wake all
            > commit epoch=3 end=6
              NotLeader
            > min-insync is=1
            > assigned leader=1 epoch=5 version=2 replicas=1,2 isr=1
              begin epoch 5
              unfollow
            > counts end=9
              high watermark 9
            > commit epoch=3 end=6
              NotLeader
            > commit epoch=5 end=9
              Committed
            > gone
              discard the log
              wake all
            > commit epoch=5 end=10
              Gone
            ",
        );
    }

    #[test]
    fn a_smaller_min_insync_commits_what_waited_for_it() {
        tell(
            "
            > assigned leader=1 epoch=0 version=0 replicas=1,2 isr=1
            > opened end=3 hw=0
              begin epoch 0
            > counts end=9
            > min-insync is=1
              high watermark 9
            ",
        );
    }

    /// What left an ISR that is too small is eligible to lead, so nothing may be committed with such
    /// an ISR, however late the larger `min.insync.replicas` is seen.
    #[test]
    fn a_larger_min_insync_is_seen_with_the_isr_that_came_after_it() {
        tell(
            "
            > assigned leader=1 epoch=0 version=0 replicas=1,2 isr=1,2 min=1
            > opened end=3 hw=0
              begin epoch 0
            > counts end=9
            > assigned leader=1 epoch=0 version=1 replicas=1,2 isr=1 min=2
            > min-insync is=2
            > append acks=all
              NotEnoughReplicas(NotEnoughReplicas { in_sync: 1, required: 2 })
            ",
        );
    }

    /// The fenced one had not come up with the leader, and it will not.
    #[test]
    fn a_follower_that_is_fenced_is_not_waited_for() {
        tell(
            "
            > assigned leader=1 epoch=3 version=0 replicas=1,2 isr=1,2 min=1
            > live brokers=1@11,2@12
            > opened end=10 hw=10
              begin epoch 3
            > assigned leader=1 epoch=3 version=1 replicas=1,2 isr=1
            > live brokers=1@11,2@14
            > fetch by=2@14 in=3 at=5 last=0
              answer records, high watermark 10, log start 0
            > counts end=15
            > live brokers=1@11
              high watermark 15
            ",
        );
    }

    #[test]
    fn alone_the_replica_takes_up_what_recovery_found() {
        tell(
            "
            > assigned leader=1 epoch=0 version=0 replicas=1 isr=1
            > failed
            > append acks=1
              Offline
            > opened end=3 hw=0
              begin epoch 0
              high watermark 3
            ",
        );
    }

    /// Its log directory fails; what waits is told, and another may lead.
    #[test]
    fn a_log_that_goes_out_of_use_ends_every_role() {
        tell(
            "
            > assigned leader=1 epoch=0 version=0 replicas=1,2 isr=1,2 min=1
            > opened end=3 hw=3
              begin epoch 0
            > unreported
            > failed
              wake all
            > append acks=1
              Offline
            > commit epoch=0 end=4
              Offline
            > unreported
              offline
            > assigned leader=2 epoch=1 version=1 replicas=1,2 isr=2 offline=1
            > unreported
            > opened end=3 hw=3
              begin epoch 1
              fetch from broker 2 in epoch 1: at 3 after epoch 0, counts 3
            > unreported
              back
            > failed
              unfollow
              wake all
            # Nobody else could lead.
            > assigned leader=1 epoch=2 version=2 replicas=1 isr=1
            > unreported
            ",
        );
    }

    #[test]
    fn a_log_without_room_is_told_of_where_another_broker_could_lead() {
        tell(
            "
            > assigned leader=1 epoch=0 version=0 replicas=1,2 isr=1,2 min=1
            > unreported is=full
            > opened end=3 hw=3
              begin epoch 0
            > unreported is=full
              full
            > assigned leader=2 epoch=1 version=1 replicas=1,2 isr=2 full=1
              begin epoch 1
              fetch from broker 2 in epoch 1: at 3 after epoch 0, counts 3
              wake all
            > unreported is=full
            > unreported
              back
            > failed
              unfollow
              wake all
            > unreported is=full
              offline
            > assigned leader=1 epoch=2 version=2 replicas=1 isr=1
            > opened end=3 hw=3
              begin epoch 2
            > unreported is=full
            ",
        );
    }

    #[test]
    fn a_deleted_partition_is_over_even_when_its_log_was_being_made() {
        tell(
            "
            > assigned leader=1 epoch=0 version=0 replicas=1 isr=1
            > gone
              discard the log
              wake all
            > opened end=0 hw=0
              discard the log
            > assigned leader=1 epoch=1 version=1 replicas=1 isr=1
            > append acks=1
              Offline
            ",
        );
    }

    /// A move has ended: the leader hands over and has no replica any more.
    #[test]
    fn a_replica_that_is_taken_away_is_over_and_its_topic_is_not() {
        tell(
            "
            > assigned leader=1 epoch=0 version=0 replicas=1,2 isr=1,2
            > opened end=3 hw=3
              begin epoch 0
            > assigned leader=2 epoch=1 version=1 replicas=2,3 isr=2,3
              discard the log
              wake all
            > commit epoch=0 end=4
              NotLeader
            > append acks=1
              Offline
            > assigned leader=2 epoch=2 version=2 replicas=1,2 isr=2
            > opened end=3 hw=3
              discard the log
            ",
        );
    }

    /// A person has accepted that records are lost, and others have them.
    #[test]
    fn a_log_that_lacks_records_is_copied_anew_unless_it_leads() {
        tell(
            "
            > assigned leader=2 epoch=3 version=0 replicas=1,2 isr=2
            > opened end=10 hw=4 lacks=some
              begin epoch 3
              fetch from broker 2 in epoch 3: at 0 after epoch -1, counts 0
            # The other one may have started again, and have lost more.
            > not-ready in=3 at=0
              wait until 25
            > assigned leader=2 epoch=4 version=1 replicas=1,2 isr=2
              begin epoch 4
              unfollow
              fetch from broker 2 in epoch 4: at 0 after epoch -1, counts 0
            > diverging in=4 at=0 epoch=-1 end=-1
              restart at 0
            > assigned leader=2 epoch=5 version=2 replicas=1,2 isr=2
              begin epoch 5
              unfollow
            > done end=0
              fetch from broker 2 in epoch 5: at 0 after epoch -1, counts 0
            ",
        );
        tell(
            "
            > assigned leader= epoch=3 version=0 replicas=1,2 isr= min=1
            > opened end=10 hw=4 lacks=some
              begin epoch 3
            > assigned leader=1 epoch=4 version=1 replicas=1,2 isr=1 min=1
              begin epoch 4
              in epoch 4: lacks nothing more
            > counts end=12
            # The disk may have been full.
            > tick
              in epoch 4: lacks nothing more
            > noted
              high watermark 12
            > tick
            ",
        );
    }

    /// Somebody was elected who may have nothing, also an earlier leader than this one: what is here
    /// may be the most that there is.
    #[test]
    fn a_log_that_lacks_records_is_set_aside_where_its_leader_may_have_less() {
        tell(
            "
            > assigned leader=2 epoch=4 version=0 replicas=1,2 isr=2 more=1
            > opened end=10 hw=4 lacks=some
              begin epoch 4
              fetch from broker 2 in epoch 4: at 0 after epoch -1, counts 0
            > diverging in=4 at=0 epoch=-1 end=-1
              set aside and restart at 0
            > done end=0
              fetch from broker 2 in epoch 4: at 0 after epoch -1, counts 0
            ",
        );
        // There is nothing to keep.
        tell(
            "
            > assigned leader=2 epoch=4 version=0 replicas=1,2 isr=2 more=1
            > opened end=0 hw=0 lacks=some
              begin epoch 4
              fetch from broker 2 in epoch 4: at 0 after epoch -1, counts 0
            > diverging in=4 at=0 epoch=-1 end=-1
              restart at 0
            ",
        );
    }

    /// A cut that was begun for another leader is carried out whatever the metadata says meanwhile:
    /// who leads begins with what it leaves.
    #[test]
    fn who_is_to_lead_waits_for_what_was_begun_with_its_log() {
        tell(
            "
            > assigned leader=2 epoch=3 version=0 replicas=1,2 isr=1,2
            > min-insync is=1
            > opened end=10 hw=4
              begin epoch 3
              fetch from broker 2 in epoch 3: at 10 after epoch 0, counts 10
            > diverging in=3 at=10 epoch=0 end=6
              truncate to 6
            > assigned leader=1 epoch=4 version=1 replicas=1,2 isr=1
              begin epoch 4
              unfollow
            > append acks=1
              NotLeader
            > assigned leader=1 epoch=4 version=2 replicas=1,2 isr=1
            > done end=6
              begin epoch 4
              high watermark 6
            > append acks=1
              in epoch 4
            ",
        );
    }
}
