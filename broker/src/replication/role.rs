//! What this broker is to a partition that is assigned to it: leader, follower, or neither while
//! its log is not open.
//!
//! A state machine without I/O: (state, event) → (state, effects). The partition
//! ([`super::Partition`]) carries out the effects in their order, under the lock that guards this
//! state; the transcripts below tell the rules.
//!
//! Invariants: the role is `Offline` as long as the log is not open; else it is `Leader` if and
//! only if the newest assignment names this broker. A change of the leader epoch has the log
//! refuse every append of an older epoch ([`Effect::BeginEpoch`]) before anybody is told the new
//! one, so no record is appended in an epoch that is over.

use std::fmt;

use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{BrokerId, LeaderEpoch, Offset};

use super::leader::{Begin, Eligible, LeaderState, NotEnoughReplicas};
use crate::metadata::PartitionState;

/// What happens to a partition.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The metadata's newest word on it. One that is older than the last is ignored.
    Assigned(PartitionState),
    /// Its log is open: up to where it counts, and the high watermark it was closed with.
    Opened { end: Offset, high_watermark: Offset },
    /// Its log cannot be opened or made now.
    OpenFailed,
    /// `min.insync.replicas` is that now.
    MinInsync(usize),
    /// Its topic was deleted.
    Gone,
}

/// What is to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The log takes no append of an older leader epoch any more.
    BeginEpoch(LeaderEpoch),
    /// The high watermark is that now: store it, and wake who waits for it.
    HighWatermark(Offset),
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
    /// Another leads, or nobody.
    Follower,
    /// Its log is not open.
    Offline,
}

/// The log, as far as the role depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnLog {
    /// Being opened or made.
    Opening,
    /// `end` counts: it is durable, or appended where the topic opts out.
    Open {
        end: Offset,
        /// `high_watermark <= log end`.
        high_watermark: Offset,
    },
    /// Could not be opened or made; tried again.
    Failed,
    /// Its topic was deleted. Nothing follows.
    Gone,
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
pub enum Commit {
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
    pub fn produce_answer(self) -> Option<ErrorCode> {
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
    pub fn reached(self) -> Result<(), ErrorCode> {
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
    min_insync: usize,
    /// `replica.lag.time.max.ms`.
    lag_max_ms: u64,
    log: OwnLog,
    role: Role,
}

impl Replica {
    /// A replica whose log is still to be opened.
    pub(crate) fn new(
        me: BrokerId,
        assigned: PartitionState,
        min_insync: usize,
        lag_max_ms: u64,
    ) -> Self {
        Self { me, assigned, min_insync, lag_max_ms, log: OwnLog::Opening, role: Role::Offline }
    }

    pub(crate) fn log(&self) -> OwnLog {
        self.log
    }

    /// The state of the leader, when this broker is it.
    pub(crate) fn leader(&self) -> Option<&LeaderState> {
        if let Role::Leader(leader) = &self.role { Some(leader) } else { None }
    }

    /// The epoch in which this broker leads; `None` when it does not.
    pub(crate) fn led_epoch(&self) -> Option<LeaderEpoch> {
        self.leader().map(LeaderState::epoch)
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
            Role::Follower => Err(MayNotAppend::NotLeader),
            Role::Offline => Err(MayNotAppend::Offline),
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
            Role::Leader(_) | Role::Follower => Commit::NotLeader,
            Role::Offline if self.log == OwnLog::Gone => Commit::Gone,
            Role::Offline => Commit::Offline,
        }
    }

    /// Takes `event` in and gives what is to be done. `log_end` is where the own log ends now, and
    /// `now_ms` a monotonic clock.
    pub(crate) fn step(&mut self, event: Event, log_end: Offset, now_ms: u64) -> Vec<Effect> {
        if self.log == OwnLog::Gone {
            return if matches!(event, Event::Opened { .. }) {
                vec![Effect::Discard]
            } else {
                Vec::new()
            };
        }
        match event {
            Event::Assigned(state) if state.partition_epoch < self.assigned.partition_epoch => {
                Vec::new()
            }
            Event::Assigned(state) => {
                self.assigned = state;
                self.take_role(log_end, now_ms)
            }
            Event::Opened { end, high_watermark } => {
                self.log = OwnLog::Open { end, high_watermark };
                self.take_role(log_end, now_ms)
            }
            Event::OpenFailed => {
                self.log = OwnLog::Failed;
                Vec::new()
            }
            Event::MinInsync(min_insync) => {
                self.min_insync = min_insync;
                let moved = if let Role::Leader(leader) = &mut self.role {
                    leader.set_min_insync(min_insync)
                } else {
                    None
                };
                self.moved_to(moved).map(Effect::HighWatermark).into_iter().collect()
            }
            Event::Gone => {
                self.log = OwnLog::Gone;
                self.role = Role::Offline;
                vec![Effect::Discard, Effect::WakeAll]
            }
        }
    }

    /// The own log counts up to there: durable, or appended where the topic opts out. Gives the new
    /// high watermark when it moved.
    pub(crate) fn counts_up_to(&mut self, counted: Offset) -> Option<Offset> {
        let OwnLog::Open { end, .. } = &mut self.log else { return None };
        *end = counted.max(*end);
        let moved = match &mut self.role {
            Role::Leader(leader) => leader.own_end(counted),
            Role::Follower | Role::Offline => None,
        };
        self.moved_to(moved)
    }

    fn moved_to(&mut self, moved: Option<Offset>) -> Option<Offset> {
        if let (Some(moved), OwnLog::Open { high_watermark, .. }) = (moved, &mut self.log) {
            *high_watermark = moved;
        }
        moved
    }

    /// Becomes what the newest assignment says.
    fn take_role(&mut self, log_end: Offset, now_ms: u64) -> Vec<Effect> {
        let OwnLog::Open { end, high_watermark } = self.log else { return Vec::new() };
        let (epoch, was_led) = (self.assigned.leader_epoch, self.led_epoch());
        let mut effects = Vec::new();
        if self.assigned.leader != Some(self.me) {
            effects.push(Effect::BeginEpoch(epoch));
            self.role = Role::Follower;
        } else {
            let PartitionState { replicas, isr, partition_epoch, .. } = self.assigned.clone();
            let moved = match &mut self.role {
                Role::Leader(leader) if leader.epoch() == epoch => {
                    leader.committed(partition_epoch, &replicas, &isr)
                }
                role => {
                    effects.push(Effect::BeginEpoch(epoch));
                    let begin = Begin {
                        me: self.me,
                        epoch,
                        partition_epoch,
                        replicas,
                        isr,
                        min_insync: self.min_insync,
                        lag_max_ms: self.lag_max_ms,
                        log_end,
                        high_watermark,
                        eligible: Eligible::default(),
                    };
                    let mut leader = LeaderState::begin(begin, now_ms);
                    let moved = leader.own_end(end);
                    *role = Role::Leader(leader);
                    moved
                }
            };
            effects.extend(self.moved_to(moved).map(Effect::HighWatermark));
        }
        if was_led.is_some() && self.led_epoch() != was_led {
            effects.push(Effect::WakeAll);
        }
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::transcript::{Line, check};

    /// Broker 1's replica of a partition of three, with `min.insync.replicas=2`.
    fn tell(script: &str) {
        let mut replica = None;
        check(script, |line| {
            let event = match line.word() {
                "assigned" => Event::Assigned(state(line)),
                "opened" => {
                    Event::Opened { end: line.number("end"), high_watermark: line.number("hw") }
                }
                "open-failed" => Event::OpenFailed,
                "counts" => {
                    let replica: &mut Replica = replica.as_mut().unwrap();
                    let moved = replica.counts_up_to(line.number("end"));
                    return moved
                        .map(|to| Effect::HighWatermark(to).to_string())
                        .into_iter()
                        .collect();
                }
                "min-insync" => Event::MinInsync(line.number("is")),
                "gone" => Event::Gone,
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
                (Some(replica), event) => replica.step(event, 0, 0),
                (none, Event::Assigned(state)) => {
                    *none = Some(Replica::new(BrokerId(1), state, 2, 30_000));
                    Vec::new()
                }
                (None, event) => panic!("{event:?} before the assignment"),
            };
            effects.iter().map(ToString::to_string).collect()
        });
    }

    fn state(line: &Line<'_>) -> PartitionState {
        PartitionState {
            replicas: line.ids("replicas").into(),
            isr: line.ids("isr").into(),
            leader: line.ids("leader").first().copied(),
            leader_epoch: line.number("epoch"),
            partition_epoch: line.number("version"),
        }
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
              wake all
            > append acks=all
              NotLeader
            # Nobody leads: the same.
            > assigned leader= epoch=5 version=2 replicas=1,2,3 isr=1
              begin epoch 5
            > append acks=1
              NotLeader
            # What had been in sync before is not known to be so in the new epoch.
            > assigned leader=1 epoch=6 version=3 replicas=1,2,3 isr=1
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
              wake all
            > commit epoch=3 end=6
              NotLeader
            > min-insync is=1
            > assigned leader=1 epoch=5 version=2 replicas=1,2 isr=1
              begin epoch 5
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

    #[test]
    fn alone_the_replica_takes_up_what_recovery_found() {
        tell(
            "
            > assigned leader=1 epoch=0 version=0 replicas=1 isr=1
            > open-failed
            > append acks=1
              Offline
            > opened end=3 hw=0
              begin epoch 0
              high watermark 3
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
}
