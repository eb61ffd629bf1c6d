//! A follower's way to the log of its leader: fetch, append, sync, report; and where the two logs
//! differ, truncate to where they agree.
//!
//! A state machine without I/O: (state, event, log) → (state, effects). One thing at a time: while
//! its log is changed nothing is fetched, and an answer that was asked for in another epoch, or
//! from another place than where the log ends now, is dropped.
//!
//! Invariants:
//! - Only the leader's answer to "I end at this offset, with a record of that epoch" cuts the log,
//!   never the own high watermark (KIP-101, KIP-279, KIP-320; by way of the fetch itself, KIP-595).
//! - The high watermark and the log start are the leader's, within the own log.
//! - What is reported to count is on stable storage, unless the topic opts out.
//! - No records are asked for while there is no space for them. The leader is asked all the same:
//!   by its log start it may say what is to be deleted.
//!
//! Sources: the KIPs named above; Apache Kafka's AbstractFetcherThread for what they leave open.

use std::fmt;

use letterbox_protocol::model::{BrokerId, LeaderEpoch, Offset};

/// The own log, as the machines of replication look at it: nothing of this waits for a disk.
pub(crate) trait OwnLog {
    /// Log start offset.
    fn start(&self) -> Offset;
    /// Log end offset, exclusive.
    fn end(&self) -> Offset;
    /// Up to where it counts: on stable storage, or appended where the topic opts out; none of it
    /// while it may lack records.
    fn counts(&self) -> Offset;
    /// The high watermark, as it is known here.
    fn high_watermark(&self) -> Offset;
    /// The epoch of its last record. A log that holds none may know the last that it held.
    fn latest_epoch(&self) -> Option<LeaderEpoch>;
    /// Whether records are missing within it, which whoever leads may have.
    fn lacks_records(&self) -> bool;
    /// Whether that is so, or would be again after a power cut.
    fn may_lack_records(&self) -> bool;
    /// Whether it takes none of a leader's records for want of space.
    fn is_full(&self) -> bool;
    /// The largest epoch up to `epoch` that has a record, and where it ends.
    fn end_of_epoch(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, Offset)>;
}

/// How long a follower waits at first before it asks again.
const FIRST_WAIT_MS: u64 = 25;

/// What a leader answers a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The logs agree up to where was asked; the records that follow, maybe none.
    Records { high_watermark: Offset, leader_start: Offset },
    /// They do not: the largest epoch of the leader up to the asked one, and where it ends there.
    Diverging { epoch: LeaderEpoch, end: Offset },
    /// The leader's log is elsewhere than where was asked (OFFSET_OUT_OF_RANGE).
    OutOfRange { leader_start: Offset, leader_end: Offset },
    /// The follower's epoch is over (FENCED_LEADER_EPOCH): the metadata will tell the new one.
    Fenced,
    /// The leader does not know yet that it leads, or cannot answer now.
    NotReady,
}

/// What happens to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FollowerEvent {
    /// An answer to the fetch from `at` that was sent in `epoch`; `has_records` when it carries
    /// some, which begin at `at`.
    Answered { epoch: LeaderEpoch, at: Offset, answer: Answer, has_records: bool },
    /// What was to be appended, cut or emptied is.
    Done,
    /// It could not be done now.
    Failed,
    /// The log counts further.
    Synced,
    /// The time is that: what was put off is due.
    Tick,
}

/// What is to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FollowerEffect {
    /// Ask the leader for what follows `at`; without the records, where the log `is_full`.
    Fetch {
        leader: BrokerId,
        epoch: LeaderEpoch,
        at: Offset,
        last_epoch: LeaderEpoch,
        counts: Offset,
        is_full: bool,
    },
    /// Tell the leader up to where the log counts.
    Report { leader: BrokerId, epoch: LeaderEpoch, counts: Offset, last_epoch: LeaderEpoch },
    /// Append the records of the answer, in that epoch; then [`FollowerEvent::Done`].
    Append { epoch: LeaderEpoch },
    /// Cut the log to end at `to`; then [`FollowerEvent::Done`].
    Truncate { to: Offset },
    /// Empty the log and begin at `at`; then [`FollowerEvent::Done`].
    RestartAt { at: Offset },
    /// The same, and keep what the log had where a person finds it: the leader may have none of it,
    /// and some of it had been committed. Whatever made such a leader, it must not destroy the last
    /// copy.
    SetAside { at: Offset },
    /// Records that had been committed are cut, from `from` on: the leader was elected uncleanly.
    /// To be said in the log and in a metric.
    Lost { from: Offset, until: Offset },
    /// The high watermark is that now.
    HighWatermark(Offset),
    /// The log starts there now.
    LogStart(Offset),
    /// Nothing until then; then [`FollowerEvent::Tick`].
    WaitUntil(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// Nobody leads, or the epoch is over.
    Nothing,
    Fetching {
        at: Offset,
        is_full: bool,
    },
    /// The log is being changed; the high watermark and log start to take over then.
    Changing {
        taken: Option<(Offset, Offset)>,
    },
    Waiting {
        until_ms: u64,
    },
}

/// A follower of a partition, in one leader epoch.
#[derive(Clone, Debug)]
pub(crate) struct FollowerState {
    leader: Option<BrokerId>,
    epoch: LeaderEpoch,
    /// How long it waits at most before it asks a leader again that could not answer, or tries
    /// again what could not be done with its log (`replica.fetch.backoff.ms`).
    backoff_ms: u64,
    /// The leader may lack committed records that are here.
    may_have_more: bool,
    /// How long it waits next: twice as long each time. A leader that does not know yet that it
    /// leads will in a moment.
    wait_ms: u64,
    doing: Doing,
    /// What was reported last.
    reported: Offset,
    /// When it looks next whether a full log has space again.
    looks_ms: u64,
}

impl FollowerState {
    /// Follows `leader` in `epoch`. The log may still be changing from what was begun in the epoch
    /// before (`is_changing`); [`FollowerEvent::Done`] comes then, and nothing is asked before. With
    /// `may_have_more` the leader may lack committed records that are here.
    pub(crate) fn begin(
        leader: Option<BrokerId>,
        epoch: LeaderEpoch,
        backoff_ms: u64,
        (is_changing, may_have_more): (bool, bool),
        log: &impl OwnLog,
        now_ms: u64,
    ) -> (Self, Vec<FollowerEffect>) {
        let doing = if is_changing { Doing::Changing { taken: None } } else { Doing::Nothing };
        let mut this = Self {
            leader,
            epoch,
            backoff_ms,
            may_have_more,
            wait_ms: FIRST_WAIT_MS,
            doing,
            reported: 0,
            looks_ms: 0,
        };
        let effects = if is_changing { Vec::new() } else { this.fetch(log, now_ms) };
        (this, effects)
    }

    /// Whom it follows.
    pub(crate) fn leader(&self) -> Option<BrokerId> {
        self.leader
    }

    /// The epoch in which it follows.
    pub(crate) fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// Whether what it asked for changes the log now.
    pub(crate) fn is_changing(&self) -> bool {
        matches!(self.doing, Doing::Changing { .. })
    }

    /// Takes `event` in and gives what is to be done.
    pub(crate) fn step(
        &mut self,
        event: FollowerEvent,
        log: &impl OwnLog,
        now_ms: u64,
    ) -> Vec<FollowerEffect> {
        match (event, self.doing) {
            (
                FollowerEvent::Answered { epoch, at, answer, has_records },
                Doing::Fetching { at: asked, .. },
            ) if epoch == self.epoch && at == asked => {
                // An append from before this epoch may have ended since. What it wrote is compared
                // with the leader's log by the next fetch.
                if log.lacks_records() {
                    self.empty(answer, log, now_ms)
                } else if at == log.end() {
                    self.answered(answer, has_records, log, now_ms)
                } else {
                    self.fetch(log, now_ms)
                }
            }
            (FollowerEvent::Done, Doing::Changing { taken }) => {
                self.wait_ms = FIRST_WAIT_MS;
                let mut effects = self.take(taken, log);
                effects.extend(self.fetch(log, now_ms));
                effects
            }
            (FollowerEvent::Failed, Doing::Changing { .. }) => self.wait(now_ms),
            (FollowerEvent::Synced, Doing::Fetching { .. }) => self.report(log),
            (FollowerEvent::Tick, Doing::Waiting { until_ms }) if until_ms <= now_ms => {
                self.fetch(log, now_ms)
            }
            (FollowerEvent::Tick, Doing::Fetching { is_full: true, .. }) => match log.is_full() {
                true => self.look_again(now_ms).into_iter().collect(),
                false => self.fetch(log, now_ms),
            },
            _ => Vec::new(),
        }
    }

    /// Behind the end of a log that lacks records, what is missing would not come: all of it is
    /// copied anew. Not before the leader has answered: by the metadata of now it may be none, also
    /// because its own log lacks records, and then what is here may be all there is.
    fn empty(&mut self, answer: Answer, log: &impl OwnLog, now_ms: u64) -> Vec<FollowerEffect> {
        if matches!(answer, Answer::Fenced | Answer::NotReady) {
            return self.answered(answer, false, log, now_ms);
        }
        self.doing = Doing::Changing { taken: None };
        let is_kept = self.may_have_more && log.start() < log.end();
        vec![match is_kept {
            true => FollowerEffect::SetAside { at: 0 },
            false => FollowerEffect::RestartAt { at: 0 },
        }]
    }

    fn answered(
        &mut self,
        answer: Answer,
        has_records: bool,
        log: &impl OwnLog,
        now_ms: u64,
    ) -> Vec<FollowerEffect> {
        match answer {
            Answer::Records { high_watermark, leader_start } => {
                let taken = Some((high_watermark, leader_start));
                let has_common = leader_start < log.end();
                if self.may_have_more && !has_common && log.start() < log.end() {
                    return self.restart(leader_start, log);
                }
                if has_records {
                    self.doing = Doing::Changing { taken };
                    return vec![FollowerEffect::Append { epoch: self.epoch }];
                }
                self.wait_ms = FIRST_WAIT_MS;
                let mut effects = self.take(taken, log);
                effects.extend(self.fetch(log, now_ms));
                effects
            }
            Answer::Diverging { epoch, end } => {
                // The leader's epoch may be one that is not known here: then the logs agree at most
                // to the end of the one before, and the next fetch asks from there.
                let own = log.end_of_epoch(epoch);
                let agreed = match own {
                    Some((own, own_end)) if own == epoch => own_end.min(end),
                    Some((_, own_end)) => own_end,
                    None => log.start(),
                };
                self.cut_to(agreed.min(log.end()).max(log.start()), log)
            }
            Answer::OutOfRange { leader_start, .. } => {
                // What the leader has dropped at its start was deleted on purpose. What lies between
                // is another history, as the last epochs have shown.
                self.restart(leader_start, log)
            }
            Answer::Fenced => {
                self.doing = Doing::Nothing;
                Vec::new()
            }
            Answer::NotReady => self.wait(now_ms),
        }
    }

    fn wait(&mut self, now_ms: u64) -> Vec<FollowerEffect> {
        let until_ms = now_ms.saturating_add(self.wait_ms.min(self.backoff_ms));
        self.wait_ms = self.wait_ms.saturating_mul(2).min(self.backoff_ms.max(1));
        self.doing = Doing::Waiting { until_ms };
        vec![FollowerEffect::WaitUntil(until_ms)]
    }

    fn cut_to(&mut self, to: Offset, log: &impl OwnLog) -> Vec<FollowerEffect> {
        let anew = if to <= log.start() { self.begin_anew(to, log) } else { None };
        self.doing = Doing::Changing { taken: None };
        anew.unwrap_or_else(|| {
            let mut effects = lost(to, log);
            effects.push(FollowerEffect::Truncate { to });
            effects
        })
    }

    fn restart(&mut self, at: Offset, log: &impl OwnLog) -> Vec<FollowerEffect> {
        self.begin_anew(at, log).unwrap_or_else(|| vec![FollowerEffect::RestartAt { at }])
    }

    /// Nothing of the own log stays, and the leader's begins at `at`; `None` when nothing that was
    /// committed goes by it. What lies in front of `at` was deleted on purpose, but not by a leader
    /// that may lack records and has none in common with this log: it may begin there because it was
    /// made anew, and nobody knows what was committed. One that has a record in common has moved its
    /// start since then.
    fn begin_anew(&mut self, at: Offset, log: &impl OwnLog) -> Option<Vec<FollowerEffect>> {
        self.doing = Doing::Changing { taken: None };
        let deleted = if self.may_have_more { log.start() } else { at };
        let lost = lost(deleted.max(log.start()), log);
        let is_kept = !lost.is_empty() || (self.may_have_more && log.start() < log.end());
        is_kept.then(|| lost.into_iter().chain([FollowerEffect::SetAside { at }]).collect())
    }

    /// Takes the leader's high watermark and log start over, as far as the own log goes.
    fn take(&self, taken: Option<(Offset, Offset)>, log: &impl OwnLog) -> Vec<FollowerEffect> {
        let Some((high_watermark, leader_start)) = taken else { return Vec::new() };
        let mut effects = Vec::new();
        let high_watermark = high_watermark.min(log.end()).max(log.high_watermark());
        if high_watermark > log.high_watermark() {
            effects.push(FollowerEffect::HighWatermark(high_watermark));
        }
        let start = leader_start.min(high_watermark);
        if start > log.start() {
            effects.push(FollowerEffect::LogStart(start));
        }
        effects
    }

    fn report(&mut self, log: &impl OwnLog) -> Vec<FollowerEffect> {
        let counts = log.counts();
        match self.leader {
            Some(leader) if counts > self.reported && !log.lacks_records() => {
                self.reported = counts;
                let last_epoch = log.latest_epoch().unwrap_or(-1);
                vec![FollowerEffect::Report { leader, epoch: self.epoch, counts, last_epoch }]
            }
            _ => Vec::new(),
        }
    }

    /// Nobody tells it that there is space again.
    fn look_again(&mut self, now_ms: u64) -> Option<FollowerEffect> {
        if now_ms < self.looks_ms {
            return None;
        }
        self.looks_ms = now_ms.saturating_add(self.backoff_ms.max(1));
        Some(FollowerEffect::WaitUntil(self.looks_ms))
    }

    fn fetch(&mut self, log: &impl OwnLog, now_ms: u64) -> Vec<FollowerEffect> {
        let Some(leader) = self.leader else {
            self.doing = Doing::Nothing;
            return Vec::new();
        };
        // One that lacks records asks, and counts, as if it had none.
        let (at, last_epoch, counts) = match log.lacks_records() {
            true => (0, -1, 0),
            false => (log.end(), log.latest_epoch().unwrap_or(-1), log.counts()),
        };
        let (epoch, is_full) = (self.epoch, log.is_full());
        self.reported = counts;
        self.doing = Doing::Fetching { at, is_full };
        let fetch = FollowerEffect::Fetch { leader, epoch, at, last_epoch, counts, is_full };
        let look = if is_full { self.look_again(now_ms) } else { None };
        [fetch].into_iter().chain(look).collect()
    }
}

/// What a cut to `to` takes of what was committed.
fn lost(to: Offset, log: &impl OwnLog) -> Vec<FollowerEffect> {
    let until = log.high_watermark();
    if to < until { vec![FollowerEffect::Lost { from: to, until }] } else { Vec::new() }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Records { high_watermark, leader_start } => {
                write!(f, "records, high watermark {high_watermark}, log start {leader_start}")
            }
            Self::Diverging { epoch, end } => write!(f, "diverging: epoch {epoch} ends at {end}"),
            Self::OutOfRange { leader_start, leader_end } => {
                write!(f, "out of range, log is {leader_start}..{leader_end}")
            }
            Self::Fenced => f.write_str("fenced"),
            Self::NotReady => f.write_str("not ready"),
        }
    }
}

impl fmt::Display for FollowerEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fetch { leader, epoch, at, last_epoch, counts, is_full } => write!(
                f,
                "fetch from broker {leader} in epoch {epoch}: at {at} after epoch {last_epoch}, \
                 counts {counts}{}",
                if *is_full { ", no records" } else { "" }
            ),
            Self::Report { leader, epoch, counts, last_epoch } => write!(
                f,
                "report to broker {leader} in epoch {epoch}: counts {counts}, epoch {last_epoch}"
            ),
            Self::Append { epoch } => write!(f, "append in epoch {epoch}"),
            Self::Truncate { to } => write!(f, "truncate to {to}"),
            Self::RestartAt { at } => write!(f, "restart at {at}"),
            Self::SetAside { at } => write!(f, "set aside and restart at {at}"),
            Self::Lost { from, until } => write!(f, "lost {from}..{until}"),
            Self::HighWatermark(offset) => write!(f, "high watermark {offset}"),
            Self::LogStart(offset) => write!(f, "log start {offset}"),
            Self::WaitUntil(at_ms) => write!(f, "wait until {at_ms}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::world::ModelLog;
    use letterbox_sim::transcript::check;

    /// Broker 2 follows; its log is changed as it asks for, when the script says `done`.
    fn tell(script: &str) {
        let (mut follower, mut log, mut now_ms) = (None, ModelLog::default(), 1_000);
        let mut change = None;
        let mut coming = ModelLog::default();
        check(script, |line| {
            now_ms = line.find("now").map_or(now_ms, |now| now.parse().unwrap());
            let event = match line.word() {
                "log" => {
                    log = line.number("is");
                    log.high_watermark = line.number("hw");
                    log.is_full = line.find("full").is_some();
                    return Vec::new();
                }
                "follow" => {
                    let leader = line.ids("leader").first().copied();
                    let is_changing = change.is_some();
                    let (begun, effects) = FollowerState::begin(
                        leader,
                        line.number("epoch"),
                        1_000,
                        (is_changing, line.find("may-have-more").is_some()),
                        &log,
                        now_ms,
                    );
                    follower = Some(begun);
                    return told(effects, &mut log, &mut change);
                }
                "answered" => {
                    let number = |key: &str| line.find(key).map(|text| text.parse().unwrap());
                    coming = line
                        .find("records")
                        .map_or_else(ModelLog::default, |text| text.parse().unwrap());
                    let answer = match (number("hw"), number("diverging"), number("out-of-range")) {
                        (Some(high_watermark), ..) => Answer::Records {
                            high_watermark,
                            leader_start: number("start").unwrap_or(0),
                        },
                        (_, Some(epoch), _) => Answer::Diverging {
                            epoch: i32::try_from(epoch).unwrap(),
                            end: line.number("end"),
                        },
                        (.., Some(leader_start)) => {
                            Answer::OutOfRange { leader_start, leader_end: line.number("end") }
                        }
                        _ if line.text("with") == "fenced" => Answer::Fenced,
                        _ => Answer::NotReady,
                    };
                    let (epoch, at) = (line.number("epoch"), line.number("at"));
                    let has_records = !coming.records.is_empty();
                    FollowerEvent::Answered { epoch, at, answer, has_records }
                }
                "done" => {
                    match change.take() {
                        Some(FollowerEffect::Append { .. }) => {
                            log.records.append(&mut coming.records);
                        }
                        Some(FollowerEffect::Truncate { to }) => log.truncate(to),
                        Some(
                            FollowerEffect::RestartAt { at } | FollowerEffect::SetAside { at },
                        ) => {
                            log.restart(at);
                        }
                        other => panic!("{other:?}"),
                    }
                    FollowerEvent::Done
                }
                "synced" => {
                    log.durable = log.end();
                    FollowerEvent::Synced
                }
                "failed" => {
                    change = None;
                    FollowerEvent::Failed
                }
                "tick" => FollowerEvent::Tick,
                other => panic!("{other}"),
            };
            let follower: &mut FollowerState = follower.as_mut().unwrap();
            told(follower.step(event, &log, now_ms), &mut log, &mut change)
        });
    }

    fn told(
        effects: Vec<FollowerEffect>,
        log: &mut ModelLog,
        change: &mut Option<FollowerEffect>,
    ) -> Vec<String> {
        for effect in &effects {
            match effect {
                FollowerEffect::Append { .. }
                | FollowerEffect::Truncate { .. }
                | FollowerEffect::RestartAt { .. }
                | FollowerEffect::SetAside { .. } => *change = Some(*effect),
                FollowerEffect::HighWatermark(offset) => log.high_watermark = *offset,
                FollowerEffect::LogStart(offset) => log.set_start(*offset),
                _ => {}
            }
        }
        effects.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn records_are_appended_and_count_when_they_are_synced() {
        tell(
            "
            > log is=0:4 hw=4
            > follow leader=1 epoch=0
              fetch from broker 1 in epoch 0: at 4 after epoch 0, counts 4
            > answered epoch=0 at=4 records=0:3 hw=4
              append in epoch 0
            # Until that is done nothing is asked and nothing is reported.
            > synced
            > done
              fetch from broker 1 in epoch 0: at 7 after epoch 0, counts 4
            > synced
              report to broker 1 in epoch 0: counts 7, epoch 0
            > synced
            > answered epoch=0 at=7 hw=7
              high watermark 7
              fetch from broker 1 in epoch 0: at 7 after epoch 0, counts 7
            ",
        );
    }

    /// The epoch is begun in the log after its end was read, and waits there for the append.
    #[test]
    fn an_append_that_ends_after_the_change_of_leaders_stops_no_follower() {
        tell(
            "
            > log is=0:4 hw=4
            > follow leader=1 epoch=1
              fetch from broker 1 in epoch 1: at 4 after epoch 0, counts 4
            > log is=0:5 hw=4
            > answered epoch=1 at=4 records=1:2 hw=4
              fetch from broker 1 in epoch 1: at 5 after epoch 0, counts 5
            > answered epoch=1 at=5 diverging=0 end=4
              truncate to 4
            > done
              fetch from broker 1 in epoch 1: at 4 after epoch 0, counts 4
            ",
        );
    }

    #[test]
    fn high_watermark_and_log_start_are_the_leaders_within_the_own_log() {
        tell(
            "
            > log is=0:4 hw=1
            > follow leader=1 epoch=0
              fetch from broker 1 in epoch 0: at 4 after epoch 0, counts 4
            > answered epoch=0 at=4 records=0:1 hw=9 start=2
              append in epoch 0
            > done
              high watermark 5
              log start 2
              fetch from broker 1 in epoch 0: at 5 after epoch 0, counts 4
            # A new leader may know less; what is known stays known.
            > follow leader=3 epoch=1
              fetch from broker 3 in epoch 1: at 5 after epoch 0, counts 4
            > answered epoch=1 at=5 hw=3 start=1
              fetch from broker 3 in epoch 1: at 5 after epoch 0, counts 4
            ",
        );
    }

    /// KIP-101: a follower that cut its log at its own high watermark has lost committed records,
    /// because it learns the high watermark one fetch later than the leader.
    #[test]
    fn a_restart_does_not_cut_the_log_at_the_high_watermark() {
        tell(
            "
            > log is=0:10 hw=8
            > follow leader=1 epoch=0
              fetch from broker 1 in epoch 0: at 10 after epoch 0, counts 10
            > follow leader= epoch=1
            > follow leader=1 epoch=2
              fetch from broker 1 in epoch 2: at 10 after epoch 0, counts 10
            ",
        );
    }

    /// KAFKA-6361, KIP-279: after two quick failovers the leader answers with an epoch that this
    /// log has never seen. What it says about the end of that one is no place to cut at.
    #[test]
    fn where_the_leader_names_an_unknown_epoch_the_one_before_decides() {
        tell(
            "
            > log is=0:4,2:6 hw=4
            > follow leader=3 epoch=4
              fetch from broker 3 in epoch 4: at 10 after epoch 2, counts 10
            # The leader has epochs 0, 1 and 3: the largest up to 2 is 1, which ends at 8 there.
            > answered epoch=4 at=10 diverging=1 end=8
              truncate to 4
            > done
              fetch from broker 3 in epoch 4: at 4 after epoch 0, counts 4
            > answered epoch=4 at=4 diverging=0 end=3
              lost 3..4
              truncate to 3
            > done
              fetch from broker 3 in epoch 4: at 3 after epoch 0, counts 3
            ",
        );
    }

    #[test]
    fn the_same_epoch_is_cut_where_the_shorter_log_ends_it() {
        tell(
            "
            > log is=0:4,2:6 hw=4
            > follow leader=3 epoch=4
              fetch from broker 3 in epoch 4: at 10 after epoch 2, counts 10
            > answered epoch=4 at=10 diverging=2 end=7
              truncate to 7
            > done
              fetch from broker 3 in epoch 4: at 7 after epoch 2, counts 7
            > answered epoch=4 at=7 hw=7
              high watermark 7
              fetch from broker 3 in epoch 4: at 7 after epoch 2, counts 7
            # Nothing in common: from where the log starts.
            > follow leader=1 epoch=5
              fetch from broker 1 in epoch 5: at 7 after epoch 2, counts 7
            > answered epoch=5 at=7 diverging=-1 end=0
              lost 0..7
              set aside and restart at 0
            ",
        );
    }

    #[test]
    fn a_log_that_is_elsewhere_begins_anew_where_the_leaders_does() {
        tell(
            "
            > log is=0:4 hw=4
            > follow leader=1 epoch=3
              fetch from broker 1 in epoch 3: at 4 after epoch 0, counts 4
            # The leader has deleted more than this log has: nothing is lost that way.
            > answered epoch=3 at=4 out-of-range=9 end=20
              restart at 9
            > done
              fetch from broker 1 in epoch 3: at 9 after epoch -1, counts 9
            # The leader has less, and was elected uncleanly. Nothing is here that it lacks.
            > answered epoch=3 at=9 out-of-range=2 end=5
              restart at 2
            > done
              fetch from broker 1 in epoch 3: at 2 after epoch -1, counts 2
            ",
        );
    }

    /// The leader has lost its log, and leads because nobody else was there, or somebody asked for
    /// it; it may have other records by now, also more of them.
    #[test]
    fn the_last_copy_of_committed_records_is_set_aside() {
        for end in ["0", "3", "90"] {
            tell(
                &"
            > log is=0:6,2:4 hw=8
            > follow leader=1 epoch=3
              fetch from broker 1 in epoch 3: at 10 after epoch 2, counts 10
            > answered epoch=3 at=10 out-of-range=0 end=END
              lost 0..8
              set aside and restart at 0
            > done
              fetch from broker 1 in epoch 3: at 0 after epoch -1, counts 0
            "
                .replace("END", end),
            );
        }
        // Nothing of it was committed, or all that was has been deleted.
        tell(
            "
            > log is=0:6 hw=0
            > follow leader=1 epoch=3
              fetch from broker 1 in epoch 3: at 6 after epoch 0, counts 6
            > answered epoch=3 at=6 out-of-range=0 end=3
              restart at 0
            > done
              fetch from broker 1 in epoch 3: at 0 after epoch -1, counts 0
            > log is=0:6 hw=5
            > follow leader=1 epoch=4
              fetch from broker 1 in epoch 4: at 6 after epoch 0, counts 6
            > answered epoch=4 at=6 out-of-range=5 end=30
              restart at 5
            ",
        );
    }

    /// The leader's log was made anew where a loss was accepted, and nobody knows what of the rest
    /// was committed.
    #[test]
    fn who_may_have_more_keeps_what_the_leader_begins_behind() {
        tell(
            "
            > log is=0:10 hw=4
            > follow leader=1 epoch=3 may-have-more=yes
              fetch from broker 1 in epoch 3: at 10 after epoch 0, counts 10
            > answered epoch=3 at=10 out-of-range=12 end=12
              lost 0..4
              set aside and restart at 12
            > done
              fetch from broker 1 in epoch 3: at 12 after epoch -1, counts 12
            # Nothing is known to be committed, and it begins where this one ends.
            > log is=0:10 hw=0
            > follow leader=1 epoch=4 may-have-more=yes
              fetch from broker 1 in epoch 4: at 10 after epoch 0, counts 10
            > answered epoch=4 at=10 records=4:2 hw=10 start=10
              set aside and restart at 10
            > done
              fetch from broker 1 in epoch 4: at 10 after epoch -1, counts 10
            > answered epoch=4 at=10 records=4:2 hw=10 start=10
              append in epoch 4
            ",
        );
    }

    /// Retention moves the leader's start on while this one catches up, over changes of leaders.
    #[test]
    fn who_only_catches_up_sets_aside_only_what_the_leader_has_wholly_deleted() {
        tell(
            "
            > log is=0:10 hw=10
            > follow leader=1 epoch=3 may-have-more=yes
              fetch from broker 1 in epoch 3: at 10 after epoch 0, counts 10
            > answered epoch=3 at=10 records=0:5 hw=40 start=4
              append in epoch 3
            > done
              high watermark 15
              log start 4
              fetch from broker 1 in epoch 3: at 15 after epoch 0, counts 10
            > follow leader=3 epoch=4 may-have-more=yes
              fetch from broker 3 in epoch 4: at 15 after epoch 0, counts 10
            > answered epoch=4 at=15 records=0:5 hw=40 start=14
              append in epoch 4
            > done
              high watermark 20
              log start 14
              fetch from broker 3 in epoch 4: at 20 after epoch 0, counts 10
            # It was away until all of it was deleted.
            > follow leader=1 epoch=5 may-have-more=yes
              fetch from broker 1 in epoch 5: at 20 after epoch 0, counts 14
            > answered epoch=5 at=20 out-of-range=30 end=40
              lost 14..20
              set aside and restart at 30
            > done
              fetch from broker 1 in epoch 5: at 30 after epoch -1, counts 30
            > answered epoch=5 at=30 records=0:5 hw=40 start=30
              append in epoch 5
            > done
              high watermark 35
              fetch from broker 1 in epoch 5: at 35 after epoch 0, counts 30
            > follow leader=3 epoch=6 may-have-more=yes
              fetch from broker 3 in epoch 6: at 35 after epoch 0, counts 30
            > answered epoch=6 at=35 records=0:5 hw=40 start=34
              append in epoch 6
            > done
              high watermark 40
              log start 34
              fetch from broker 3 in epoch 6: at 40 after epoch 0, counts 30
            ",
        );
    }

    /// An answer is for the log as it was when it was asked for.
    #[test]
    fn an_answer_that_comes_too_late_is_dropped() {
        tell(
            "
            > log is=0:4 hw=0
            > follow leader=1 epoch=3
              fetch from broker 1 in epoch 3: at 4 after epoch 0, counts 4
            > follow leader=3 epoch=4
              fetch from broker 3 in epoch 4: at 4 after epoch 0, counts 4
            > answered epoch=3 at=4 records=3:2 hw=4
            > answered epoch=4 at=4 diverging=0 end=2
              truncate to 2
            > answered epoch=4 at=4 records=4:2 hw=4
            > done
              fetch from broker 3 in epoch 4: at 2 after epoch 0, counts 2
            > answered epoch=4 at=4 records=4:2 hw=4
            > answered epoch=4 at=2 records=4:2 hw=2
              append in epoch 4
            ",
        );
    }

    #[test]
    fn nothing_is_asked_while_the_log_is_changed_for_an_epoch_that_is_over() {
        tell(
            "
            > log is=0:4,1:3 hw=0
            > follow leader=1 epoch=3
              fetch from broker 1 in epoch 3: at 7 after epoch 1, counts 7
            > answered epoch=3 at=7 diverging=0 end=4
              truncate to 4
            > follow leader=3 epoch=4
            > synced
            > done
              fetch from broker 3 in epoch 4: at 4 after epoch 0, counts 4
            ",
        );
    }

    #[test]
    fn a_leader_that_is_not_ready_is_asked_again_and_one_that_is_over_is_not() {
        tell(
            "
            > log is=0:4 hw=0
            > follow leader=1 epoch=3
              fetch from broker 1 in epoch 3: at 4 after epoch 0, counts 4
            > answered epoch=3 at=4 with=not-ready now=5000
              wait until 5025
            > tick now=5024
            > tick now=5025
              fetch from broker 1 in epoch 3: at 4 after epoch 0, counts 4
            # Longer each time, up to replica.fetch.backoff.ms.
            > answered epoch=3 at=4 with=not-ready now=5100
              wait until 5150
            > tick now=5150
              fetch from broker 1 in epoch 3: at 4 after epoch 0, counts 4
            > answered epoch=3 at=4 hw=0
              fetch from broker 1 in epoch 3: at 4 after epoch 0, counts 4
            > answered epoch=3 at=4 with=not-ready now=6000
              wait until 6025
            > tick now=6025
              fetch from broker 1 in epoch 3: at 4 after epoch 0, counts 4
            > answered epoch=3 at=4 with=fenced
            > tick now=9000
            # The metadata goes on.
            > follow leader=3 epoch=4
              fetch from broker 3 in epoch 4: at 4 after epoch 0, counts 4
            ",
        );
    }

    #[test]
    fn no_records_are_asked_for_while_there_is_no_space_for_them() {
        tell(
            "
            > log is=0:4 hw=2
            > follow leader=1 epoch=3
              fetch from broker 1 in epoch 3: at 4 after epoch 0, counts 4
            > answered epoch=3 at=4 records=3:2 hw=4
              append in epoch 3
            > log is=0:4 hw=2 full=yes
            > failed now=5000
              wait until 5025
            > tick now=5025
              fetch from broker 1 in epoch 3: at 4 after epoch 0, counts 4, no records
              wait until 6025
            # What the leader tells beside records is taken, and makes no second look.
            > answered epoch=3 at=4 hw=6 start=3 now=5500
              high watermark 4
              log start 3
              fetch from broker 1 in epoch 3: at 4 after epoch 0, counts 4, no records
            > tick now=6025
              wait until 7025
            > tick now=6500
            > log is=0:4 hw=4
            > tick now=7025
              fetch from broker 1 in epoch 3: at 4 after epoch 0, counts 4
            > tick now=9000
            # Full from the start on.
            > log is=0:4 hw=4 full=yes
            > follow leader=3 epoch=4 now=9500
              fetch from broker 3 in epoch 4: at 4 after epoch 0, counts 4, no records
              wait until 10500
            ",
        );
    }

    #[test]
    fn what_the_log_does_not_take_is_fetched_again_later() {
        tell(
            "
            > log is=0:4 hw=0
            > follow leader=1 epoch=3
              fetch from broker 1 in epoch 3: at 4 after epoch 0, counts 4
            > answered epoch=3 at=4 records=3:2 hw=4
              append in epoch 3
            > failed now=5000
              wait until 5025
            > tick now=5025
              fetch from broker 1 in epoch 3: at 4 after epoch 0, counts 4
            ",
        );
    }
}
