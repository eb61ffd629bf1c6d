//! A partition that is assigned to this broker: its role, its log and its waiters.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::{Bytes, BytesMut};
use letterbox_env::panics::lock;
use letterbox_env::{Clock, with_causes};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::batch::Batch;
use letterbox_protocol::model::{BrokerId, LeaderEpoch, Offset, TimestampMs, TopicId};
use letterbox_storage::{
    AppendError, AppendOptions, Effort, Log, LogConfig, LogError, Origin, Validated,
};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::fetcher::{Key, Position};
use super::follower::{Answer, FollowerEffect, FollowerEvent, OwnLog as _};
use super::leader::{Eligible, FollowerFetch, FollowerReport, IsrAnswer, NotEnoughReplicas};
use super::outbox::{Change, IsrWish, Outbox, Report};
use super::role::{Commit, Effect, Event, LogStanding, LogState, MayNotAppend, Replica, Times};
use super::waiters::{Ticket, Waiters};
use crate::metadata::PartitionState;

/// Stands for the epoch where this broker does not lead.
const NOT_LED: LeaderEpoch = -1;

/// What an append waits for before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acks {
    /// Nothing; there is no answer.
    None,
    /// The leader's log.
    Leader,
    /// Every in-sync replica, on stable storage unless the topic opts out.
    All,
}

/// What was appended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Appended {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// The offset that follows the last record: committed when the high watermark reaches it, as
    /// long as this broker leads in `leader_epoch` ([`Partition::commit`]).
    pub end_offset: Offset,
    /// The epoch it was appended in.
    pub leader_epoch: LeaderEpoch,
    /// Whether it is committed already.
    pub commit: Commit,
    /// The time all records got; −1 when they keep their own.
    pub log_append_time: TimestampMs,
    /// Log start offset after the append.
    pub log_start_offset: Offset,
    /// Records that were stored; 0 for a batch that was there already.
    pub records: u64,
    /// Bytes that were stored.
    pub bytes: u64,
}

/// Who appends.
#[derive(Clone, Copy)]
enum Writer {
    Client,
    /// As long as this broker leads in that epoch.
    Coordinator(LeaderEpoch),
}

/// What became of a batch that was to be appended within an effort.
#[derive(Debug)]
pub(crate) enum Within {
    /// It is in the log.
    Appended(Appended),
    /// Validating it takes longer; it is as it came.
    TooLong(BytesMut),
}

/// Why an append was refused; nothing was stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppendRefused {
    /// This broker does not lead the partition, or leads it in a newer epoch than a moment ago.
    #[error("this broker does not lead the partition; look up its leader again")]
    NotLeader,
    /// The log is not open.
    #[error("the partition is offline; see the broker's log")]
    Offline,
    /// `acks=all` with too small an in-sync set.
    #[error(transparent)]
    NotEnoughReplicas(#[from] NotEnoughReplicas),
    /// The log refused it.
    #[error(transparent)]
    Log(AppendError),
}

impl From<AppendError> for AppendRefused {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::StaleLeaderEpoch { .. } => Self::NotLeader,
            error => Self::Log(error),
        }
    }
}

impl From<MayNotAppend> for AppendRefused {
    fn from(why: MayNotAppend) -> Self {
        match why {
            MayNotAppend::NotLeader => Self::NotLeader,
            MayNotAppend::Offline => Self::Offline,
            MayNotAppend::NotEnoughReplicas(why) => Self::NotEnoughReplicas(why),
        }
    }
}

/// A place among the waiters, given up when it is dropped.
struct Place<'a> {
    waiters: &'a Waiters,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiters.forget(self.ticket);
    }
}

/// What clients have written to a partition and read from it, since this broker leads it.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    records_in: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    produced: AtomicU64,
    produce_failed: AtomicU64,
    fetched: AtomicU64,
    fetch_failed: AtomicU64,
}

/// A [`Traffic`] at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TrafficSoFar {
    /// Records appended.
    pub records_in: u64,
    /// Bytes of them.
    pub bytes_in: u64,
    /// Bytes of records sent.
    pub bytes_out: u64,
    /// Batches that came.
    pub produced: u64,
    /// Those of them that were answered with an error.
    pub produce_failed: u64,
    /// How often consumers were answered.
    pub fetched: u64,
    /// How often with an error.
    pub fetch_failed: u64,
}

impl Traffic {
    /// Counts what was sent to a client.
    pub(crate) fn sent(&self, bytes: u64, failed: bool) {
        self.bytes_out.fetch_add(bytes, Ordering::Relaxed);
        self.fetched.fetch_add(1, Ordering::Relaxed);
        self.fetch_failed.fetch_add(u64::from(failed), Ordering::Relaxed);
    }

    /// Counts a batch that was refused.
    pub(crate) fn refused(&self) {
        self.produced.fetch_add(1, Ordering::Relaxed);
        self.answered_with_error();
    }

    /// Counts that the answer to a batch is an error.
    pub(crate) fn answered_with_error(&self) {
        self.produce_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts what a client has written.
    pub(crate) fn received(&self, appended: &Appended) {
        self.records_in.fetch_add(appended.records, Ordering::Relaxed);
        self.bytes_in.fetch_add(appended.bytes, Ordering::Relaxed);
        self.produced.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts.
    #[must_use]
    pub(crate) fn so_far(&self) -> TrafficSoFar {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        TrafficSoFar {
            records_in: read(&self.records_in),
            bytes_in: read(&self.bytes_in),
            bytes_out: read(&self.bytes_out),
            produced: read(&self.produced),
            produce_failed: read(&self.produce_failed),
            fetched: read(&self.fetched),
            fetch_failed: read(&self.fetch_failed),
        }
    }
}

/// A partition that is assigned to this broker: one object from the assignment to the end of the
/// topic, whatever the role.
///
/// The lock of `role` is held for a few instructions and never over I/O. What the role asks of
/// others is left in the outbox under that lock, so that it comes in order. What an append
/// needs of it (the epoch, and whether it may begin) is looked up before, and the log compares that
/// epoch under its own lock with the one that was begun last ([`Log::begin_epoch`]): between the two the
/// role may change, and the append is refused then.
pub(crate) struct Partition {
    /// Who waits for its high watermark.
    pub waiters: Waiters,
    /// Followers that wait for its end; told of it only where there are any.
    pub(crate) ends: Waiters,
    /// Who waits until every replica has dropped what lies before an offset.
    starts: Waiters,
    /// For the metrics.
    pub traffic: Traffic,
    topic_id: TopicId,
    index: i32,
    /// Its records, as soon as they are open.
    log: OnceLock<Arc<Log>>,
    role: Mutex<Replica>,
    /// The epoch in which this broker leads, or −1: what `role` says, for those who only read it.
    led_epoch: AtomicI32,
    /// Whether it leads others: as `led_epoch`.
    is_replicated: AtomicBool,
    /// It was said that the log does not take what its leader has, or what it lacks cannot be noted.
    is_refusal_said: AtomicBool,
    /// Until then it is not tried again to note what it lacks: whatever ticks its role asks for it.
    notes_again_ms: AtomicU64,
    shared: Arc<Shared>,
}

/// What all partitions of a broker share.
pub(super) struct Shared {
    pub(super) me: BrokerId,
    pub(super) clock: Arc<dyn Clock>,
    /// What the times that roles are told count from.
    pub(super) began: Instant,
    pub(super) times: Times,
    pub(super) outbox: Outbox,
    /// Up to when this broker leads, by `now_ms`; after that only the active controller knows.
    pub(super) leads_until_ms: AtomicU64,
}

impl Shared {
    /// What roles are told for the time.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether no other broker can lead what this one leads by the metadata that it shows.
    pub(super) fn may_lead(&self) -> bool {
        let until_ms = self.leads_until_ms.load(Ordering::Relaxed);
        // Each append asks: no look at the clock where there is no end.
        until_ms == u64::MAX || self.now_ms() < until_ms
    }
}

impl Partition {
    pub(super) fn new(
        (topic_id, index): Key,
        assigned: PartitionState,
        eligible: Eligible,
        min_insync: usize,
        shared: Arc<Shared>,
    ) -> Self {
        let role = Replica::new(shared.me, assigned, eligible, min_insync, shared.times);
        Self {
            waiters: Waiters::default(),
            ends: Waiters::default(),
            starts: Waiters::default(),
            traffic: Traffic::default(),
            topic_id,
            index,
            log: OnceLock::new(),
            role: Mutex::new(role),
            led_epoch: NOT_LED.into(),
            is_replicated: false.into(),
            is_refusal_said: false.into(),
            notes_again_ms: 0.into(),
            shared,
        }
    }

    /// The topic's id and the partition's index.
    #[must_use]
    pub(crate) fn key(&self) -> (TopicId, i32) {
        (self.topic_id, self.index)
    }

    /// Its records.
    ///
    /// # Errors
    /// `KAFKA_STORAGE_ERROR` when they are not open. They are where this broker leads.
    pub(crate) fn log(&self) -> Result<&Arc<Log>, ErrorCode> {
        self.log.get().ok_or(ErrorCode::KafkaStorageError)
    }

    /// Whether its topic was deleted, or other brokers have it now.
    #[must_use]
    pub(crate) fn is_gone(&self) -> bool {
        match self.log.get() {
            Some(log) => log.is_gone(),
            None => self.role().log() == LogState::Gone,
        }
    }

    /// What a client is told of one that is gone: `deleted`, unless other brokers have it.
    #[must_use]
    pub(crate) fn gone_as(&self, deleted: ErrorCode) -> ErrorCode {
        if self.role().is_assigned() { deleted } else { ErrorCode::NotLeaderOrFollower }
    }

    /// Whether its log is out of use; not while it is being made.
    #[must_use]
    pub(crate) fn is_offline(&self) -> bool {
        match self.log.get() {
            Some(log) => log.is_offline(),
            None => self.role().log() == LogState::Failed,
        }
    }

    /// Whether its log is still to be opened or made.
    pub(super) fn is_opening(&self) -> bool {
        self.role().log() == LogState::Opening
    }

    /// Whether this broker leads it.
    ///
    /// # Errors
    /// `NOT_LEADER_OR_FOLLOWER`; `KAFKA_STORAGE_ERROR` when its log is out of use;
    /// `UNKNOWN_TOPIC_OR_PARTITION` while it is being made.
    pub(crate) fn check_led(&self) -> Result<(), ErrorCode> {
        if self.leader_epoch() != NOT_LED {
            return Ok(());
        }
        Err(match self.role().log() {
            LogState::Open => ErrorCode::NotLeaderOrFollower,
            LogState::Failed => ErrorCode::KafkaStorageError,
            LogState::Opening | LogState::Gone => ErrorCode::UnknownTopicOrPartition,
        })
    }

    /// The newest word of the metadata.
    pub(super) fn assign(&self, state: &PartitionState, min_insync: usize) {
        // Before the role looks at the log: an append of the epoch before is in it by then, or is
        // refused.
        if let Some(log) = self.log.get() {
            log.begin_epoch(state.leader_epoch);
        }
        self.step(Event::Assigned(state.clone(), min_insync));
        // Sessions of followers that are not in sync any more.
        self.ends.wake_all();
    }

    /// Its log is open.
    pub(super) fn opened(&self, log: Arc<Log>) {
        let _ = self.log.set(log);
        self.step(Event::Opened);
    }

    /// Its log cannot be opened now, or went out of use.
    pub(super) fn failed(&self) {
        self.step(Event::Failed);
    }

    /// Its log may have gone out of use.
    pub(super) fn look_at_log(&self) {
        if self.log.get().is_some_and(|log| log.is_offline()) {
            self.failed();
        }
    }

    /// What its log lacks is to be told only where the metadata has it as out of use and is told
    /// that it is back. Else the registration has told it, or the partition is new here.
    pub(super) fn look_at_loss(&self) {
        self.look_at_log();
        if let Some(log) = self.log.get().filter(|_| !self.role().is_back()) {
            log.loss_is_known();
        }
    }

    /// See [`Replica::may_be_copied`].
    pub(super) fn may_be_copied(&self) -> bool {
        self.role().may_be_copied()
    }

    /// How its log is, where the metadata says otherwise; whether it is full only if the metadata
    /// can say that.
    pub(super) fn unreported(&self, tells_room: bool) -> Option<LogStanding> {
        self.look_at_log();
        let is_full = tells_room && self.log.get().is_some_and(|log| log.is_full());
        self.role().unreported(is_full)
    }

    /// Its topic was deleted, or other brokers have the partition now.
    pub(super) fn set_gone(&self) {
        self.step(Event::Gone);
    }

    /// Its topic's configuration changed.
    pub(super) fn reconfigure(&self, config: LogConfig, min_insync: usize) {
        let is_durable = config.durable;
        if let Some(log) = self.log.get() {
            log.set_config(config);
            // A topic that stops waiting for the disk has already appended what it waited for.
            if !is_durable {
                self.counts();
            }
        }
        self.step(Event::MinInsync(min_insync));
    }

    /// The brokers that may be in sync are these now.
    pub(super) fn set_eligible(&self, eligible: Eligible) {
        self.step(Event::Eligible(eligible));
    }

    /// Time has passed: who lags, and what was put off.
    pub(crate) fn tick(&self) {
        self.step(Event::Tick);
    }

    /// What became of the ISR that was asked for.
    pub(crate) fn isr_answered(&self, wish: IsrWish, answer: IsrAnswer) {
        self.step(Event::IsrAnswered(wish, answer));
    }

    /// A follower asks for records: what it is answered.
    pub(crate) fn follower_fetches(&self, fetch: FollowerFetch) -> Answer {
        let answer = self.act(|role, log, now_ms| role.fetched(fetch, log, now_ms));
        // Who waits looks at the low watermark: hardly ever does anybody.
        self.starts.wake_all();
        answer
    }

    /// See [`super::leader::LeaderState::knows_in_sync`].
    pub(crate) fn knows_in_sync(&self, id: BrokerId) -> bool {
        self.role().leader().is_some_and(|leader| leader.knows_in_sync(id))
    }

    /// A follower counts further than when it fetched last.
    pub(crate) fn follower_reports(&self, report: FollowerReport) {
        self.act(|role, log, now_ms| ((), role.reported(report, log, now_ms)));
    }

    /// Log start, high watermark and up to where the log counts, as they are now: an idle partition
    /// is asked for again and again from the same place. When what it asked for is over, the log
    /// may be another leader's, and nothing new is said of it.
    pub(crate) fn standing(&self, asked: &Position) -> (Offset, Offset, Offset) {
        let role = self.role();
        match self.log.get() {
            Some(log) if role.followed_epoch() == Some(asked.epoch) => {
                (log.start_offset(), log.high_watermark(), log.counts())
            }
            _ => (-1, -1, asked.counts),
        }
    }

    /// The leader's answer to what was asked `from` there, with the records that follow it. Appends
    /// them, which touches the page cache only.
    pub(crate) fn answered(&self, from: &Position, answer: Answer, records: &[u8]) {
        let event = FollowerEvent::Answered {
            epoch: from.epoch,
            at: from.at,
            answer,
            has_records: !records.is_empty(),
        };
        let append = self.act(|role, log, now_ms| {
            let effects = role.step(Event::Follower(event), log, now_ms);
            let append = effects.iter().find_map(|effect| match effect {
                Effect::Follow(FollowerEffect::Append { epoch }) => Some(*epoch),
                _ => None,
            });
            (append, effects)
        });
        if let (Some(epoch), Answer::Records { high_watermark, .. }) = (append, answer) {
            self.append_of_leader(epoch, high_watermark, records);
        }
    }

    /// `committed`: the leader's high watermark.
    fn append_of_leader(&self, epoch: LeaderEpoch, committed: Offset, records: &[u8]) {
        let Some(log) = self.log.get() else { return };
        match append_runs(log, records, (epoch, committed), self.shared.clock.wall_ms()) {
            Ok(()) => {
                self.say_appends_again(log);
                self.step(Event::Follower(FollowerEvent::Done));
            }
            Err(AppendError::OutOfOrderOffset { base_offset, .. })
                if base_offset < log.end_offset() && log.start_offset() == log.end_offset() =>
            {
                // The leader's log begins within a batch, because records were deleted. The empty
                // log here begins with that batch then, and its log start moves afterwards.
                let (at, records) = (base_offset, Bytes::copy_from_slice(records));
                let change = Change::BeginWith { at, records, epoch, committed };
                self.shared.outbox.change(self.key(), change);
            }
            Err(why) => self.refused(epoch, log, &why),
        }
    }

    /// The log does not take what its leader in `epoch` has.
    fn refused(&self, epoch: LeaderEpoch, log: &Log, why: &AppendError) {
        let is_over = self.act(|role, log, now_ms| {
            // One that came too late is none to wait for.
            let is_over = role.followed_epoch() != Some(epoch);
            let event = if is_over { FollowerEvent::Done } else { FollowerEvent::Failed };
            (is_over, role.step(Event::Follower(event), log, now_ms))
        });
        if !is_over && !self.is_refusal_said.swap(true, Ordering::Relaxed) {
            let (topic, partition, why) = (log.topic(), self.index, with_causes(why));
            warn!(
                %topic,
                partition,
                why,
                "cannot append records from the leader; retrying"
            );
        }
    }

    fn say_appends_again(&self, log: &Log) {
        if self.is_refusal_said.load(Ordering::Relaxed) {
            self.is_refusal_said.store(false, Ordering::Relaxed);
            info!(topic = %log.topic(), partition = self.index, "appending records from the leader \
                again");
        }
    }

    /// Changes the log as its role has asked for. Blocks.
    pub(crate) fn change_log(&self, change: &Change) {
        let Some(log) = self.log.get() else { return };
        let changed = match change {
            Change::Truncate { to } => log.truncate_to(*to),
            Change::RestartAt { at } => {
                log.truncate_fully_and_start_at(*at).and_then(|()| log.lacks_nothing_more())
            }
            Change::SetAside { at } => {
                log.set_aside_and_start_at(*at).and_then(|()| log.lacks_nothing_more())
            }
            Change::LacksNothingMore { epoch } => {
                if self.shared.now_ms() < self.notes_again_ms.load(Ordering::Relaxed) {
                    return;
                }
                // Under the lock: who has begun to follow copies what is missing, and would not if
                // nothing were missing any more.
                let while_it_leads = |settle: &dyn Fn()| {
                    let role = self.role();
                    if role.led_epoch() == Some(*epoch) {
                        settle();
                    }
                };
                match log.goes_on_with_loss(while_it_leads) {
                    Ok(()) => {
                        self.is_refusal_said.store(false, Ordering::Relaxed);
                        self.counts();
                    }
                    Err(why) => self.tries_to_note_again(log, &why),
                }
                return;
            }
            Change::BeginWith { at, records, epoch, committed } => {
                match log.truncate_fully_and_start_at(*at) {
                    Ok(()) => {
                        let now_ms = self.shared.clock.wall_ms();
                        let of_leader = (*epoch, *committed);
                        if let Err(why) = append_runs(log, records, of_leader, now_ms) {
                            return self.refused(*epoch, log, &why);
                        }
                        Ok(())
                    }
                    Err(why) => Err(why),
                }
            }
        };
        let done = match changed {
            Ok(()) => FollowerEvent::Done,
            Err(why) => {
                let (topic, partition, why) = (log.topic(), self.index, with_causes(&why));
                error!(%topic, partition, why, "cannot truncate the log to the leader's");
                FollowerEvent::Failed
            }
        };
        self.step(Event::Follower(done));
    }

    /// That it goes on with a loss could not be noted now: it is tried again when its role is told the
    /// time.
    fn tries_to_note_again(&self, log: &Log, why: &LogError) {
        let (topic, partition, why) = (log.topic(), self.index, with_causes(why));
        if !self.is_refusal_said.swap(true, Ordering::Relaxed) {
            error!(
                %topic,
                partition,
                why,
                "cannot note that the partition goes on without the records that it lacks; nothing is \
                 acknowledged in it before; retrying"
            );
        }
        let until_ms = self.shared.now_ms().saturating_add(self.shared.times.backoff_ms.max(1));
        self.notes_again_ms.store(until_ms, Ordering::Relaxed);
        self.shared.outbox.wait_until(self.key(), until_ms);
    }

    fn step(&self, event: Event) {
        self.act(|role, log, now_ms| ((), role.step(event, log, now_ms)));
        // Who leads, and who is there, may be others now: look again.
        self.starts.wake_all();
    }

    /// Has the role look at something, and does what follows.
    fn act<T>(&self, look: impl FnOnce(&mut Replica, Option<&Log>, u64) -> (T, Vec<Effect>)) -> T {
        let log = self.log.get();
        let mut role = self.role();
        let (seen, effects) = look(&mut role, log.map(|log| &**log), self.shared.now_ms());
        // Under the lock, so that two changes take effect in their order; and readers are told an
        // epoch only when the log has begun it.
        effects.iter().for_each(|effect| self.carry_out(effect, log));
        self.led_epoch.store(role.led_epoch().unwrap_or(NOT_LED), Ordering::Release);
        self.is_replicated.store(role.is_replicated(), Ordering::Relaxed);
        drop(role);
        for effect in effects {
            match effect {
                Effect::HighWatermark(offset) => self.waiters.moved_to(offset),
                Effect::WakeAll => {
                    self.waiters.wake_all();
                    self.ends.wake_all();
                }
                _ => {}
            }
        }
        seen
    }

    /// What waits for nothing.
    fn carry_out(&self, effect: &Effect, log: Option<&Arc<Log>>) {
        let (key, outbox) = (self.key(), &self.shared.outbox);
        match effect {
            Effect::BeginEpoch(epoch) => log.into_iter().for_each(|log| log.begin_epoch(*epoch)),
            Effect::HighWatermark(offset) => {
                log.into_iter().for_each(|log| log.set_high_watermark(*offset));
            }
            Effect::Discard => log.into_iter().for_each(|log| log.set_gone()),
            Effect::LacksNothingMore(epoch) => {
                outbox.change(key, Change::LacksNothingMore { epoch: *epoch });
            }
            Effect::WaitUntil(until_ms) => outbox.wait_until(key, *until_ms),
            Effect::Unfollow => outbox.unfollow(key),
            Effect::AskForIsr { epoch, isr, partition_epoch } => {
                let (epoch, isr, partition_epoch) = (*epoch, isr.clone(), *partition_epoch);
                outbox.ask_for_isr(key, IsrWish { epoch, isr, partition_epoch });
            }
            Effect::Follow(effect) => self.carry_out_following(effect, log),
            // After the lock.
            Effect::WakeAll => {}
        }
    }

    fn carry_out_following(&self, effect: &FollowerEffect, log: Option<&Arc<Log>>) {
        let (key, outbox) = (self.key(), &self.shared.outbox);
        match *effect {
            FollowerEffect::Fetch { leader, epoch, at, last_epoch, counts, is_full } => {
                let from = Position { epoch, at, last_epoch, counts, is_full };
                outbox.fetch(key, leader, from);
            }
            FollowerEffect::Report { leader, epoch, counts, last_epoch } => {
                outbox.report(key, leader, Report { epoch, counts, last_epoch });
            }
            FollowerEffect::Truncate { to } => outbox.change(key, Change::Truncate { to }),
            FollowerEffect::RestartAt { at } => outbox.change(key, Change::RestartAt { at }),
            FollowerEffect::SetAside { at } => outbox.change(key, Change::SetAside { at }),
            FollowerEffect::LogStart(offset) => {
                // It only moves what is kept in memory.
                if let Some(Err(why)) = log.map(|log| log.delete_records_before(offset)) {
                    let (topic, why) = (log.map_or("", |log| log.topic()), with_causes(&why));
                    warn!(
                        topic,
                        partition = self.index,
                        why,
                        "cannot advance the log start offset"
                    );
                }
            }
            FollowerEffect::Lost { from, until } => {
                outbox.count_lost(u64::try_from(until.saturating_sub(from)).unwrap_or(0));
                let topic = log.map_or("", |log| log.topic());
                error!(
                    topic,
                    partition = self.index,
                    from,
                    until,
                    "committed records are lost, because the leader that was elected does not have \
                     them"
                );
            }
            // Who has the records appends them; the others are effects of every role.
            FollowerEffect::Append { .. }
            | FollowerEffect::HighWatermark(_)
            | FollowerEffect::WaitUntil(_) => {}
        }
    }

    /// Appends one batch of a client.
    ///
    /// # Errors
    /// [`AppendRefused`]; nothing was stored.
    pub(crate) fn append(&self, batch: BytesMut, acks: Acks) -> Result<Appended, AppendRefused> {
        self.append_from(Writer::Client, batch, acks)
    }

    /// Appends one batch of a coordinator, which has read the log in `epoch`: in another one others
    /// may have decided otherwise meanwhile.
    ///
    /// # Errors
    /// [`AppendRefused`]; nothing was stored. `NotLeader` also when this broker leads in another
    /// epoch.
    pub(crate) fn append_decided_in(
        &self,
        epoch: LeaderEpoch,
        batch: BytesMut,
    ) -> Result<Appended, AppendRefused> {
        self.append_from(Writer::Coordinator(epoch), batch, Acks::All)
    }

    fn append_from(
        &self,
        writer: Writer,
        batch: BytesMut,
        acks: Acks,
    ) -> Result<Appended, AppendRefused> {
        self.append_with(batch, acks, writer, &mut Effort::unbounded()).and_then(|appended| {
            match appended {
                Within::Appended(appended) => Ok(appended),
                Within::TooLong(_) => Err(AppendError::InvalidRecord {
                    message: "not validated".into(),
                    records: Vec::new(),
                }
                .into()),
            }
        })
    }

    /// As [`Partition::append`], as long as validating the batch takes no more than `effort`.
    ///
    /// # Errors
    /// [`AppendRefused`]; nothing was stored.
    pub(crate) fn append_within(
        &self,
        batch: BytesMut,
        acks: Acks,
        effort: &mut Effort,
    ) -> Result<Within, AppendRefused> {
        self.append_with(batch, acks, Writer::Client, effort)
    }

    fn append_with(
        &self,
        batch: BytesMut,
        acks: Acks,
        writer: Writer,
        effort: &mut Effort,
    ) -> Result<Within, AppendRefused> {
        let origin = match writer {
            Writer::Client => Origin::Client,
            Writer::Coordinator(_) => Origin::Coordinator,
        };
        let Some(log) = self.log.get() else { return Err(AppendRefused::Offline) };
        let bytes = batch.len() as u64;
        let now_ms = self.shared.clock.wall_ms();
        let batch = match log.validate(batch, origin, now_ms, effort)? {
            Validated::Valid(batch) => batch,
            Validated::TooLong(batch) => return Ok(Within::TooLong(batch)),
        };
        // Asked after the validation, which may take long.
        let leader_epoch = self.role().may_append(acks == Acks::All)?;
        let is_over = matches!(writer, Writer::Coordinator(epoch) if epoch != leader_epoch);
        if is_over || !self.shared.may_lead() {
            return Err(AppendRefused::NotLeader);
        }
        let info = log.append_valid(batch, &AppendOptions { leader_epoch, now_ms, origin })?;
        let end_offset = info.last_offset.saturating_add(1);
        if self.is_replicated.load(Ordering::Relaxed) {
            self.ends.moved_to(end_offset);
        }
        let commit = if !log.is_durable() {
            self.count(|role| role.commit(leader_epoch, end_offset))
        } else if self.high_watermark() < end_offset {
            Commit::Waiting
        } else {
            // It was there already.
            self.commit(leader_epoch, end_offset)
        };
        let stored = !info.duplicate;
        Ok(Within::Appended(Appended {
            base_offset: info.base_offset,
            end_offset,
            leader_epoch,
            commit,
            log_append_time: info.log_append_time,
            log_start_offset: info.log_start_offset,
            records: if stored {
                u64::try_from(end_offset - info.base_offset).unwrap_or(0)
            } else {
                0
            },
            bytes: if stored { bytes } else { 0 },
        }))
    }

    /// The own log counts further: more of it is durable, or appended where the topic opts out.
    pub(super) fn counts(&self) {
        self.count(|_| ());
    }

    /// As [`Partition::counts`], and looks at what that makes of it.
    fn count<T>(&self, look: impl FnOnce(&Replica) -> T) -> T {
        let mut role = self.role();
        // How far is asked of the log, under the lock: what was synced a moment ago may have been
        // cut since, before this broker began to lead. Without an allocation: a leader comes here
        // after each sync or append.
        let log = self.log.get();
        let moved = log.and_then(|log| role.own_end(log.counts()));
        if let (Some(high_watermark), Some(log)) = (moved, log) {
            // Under the lock, so that two moves are stored in their order.
            log.set_high_watermark(high_watermark);
        }
        let (seen, leads) = (look(&role), role.leader().is_some());
        drop(role);
        if let Some(high_watermark) = moved {
            self.waiters.moved_to(high_watermark);
        } else if !leads {
            self.step(Event::Follower(FollowerEvent::Synced));
        }
        seen
    }

    /// Log end offset, exclusive.
    #[must_use]
    pub(crate) fn end_offset(&self) -> Offset {
        self.log.get().map_or(0, |log| log.end_offset())
    }

    /// Exclusive end of what clients may see.
    #[must_use]
    pub(crate) fn high_watermark(&self) -> Offset {
        self.log.get().map_or(0, |log| log.high_watermark())
    }

    /// What became of the records before `end` that were appended, or were there, when this broker
    /// led in `epoch`.
    #[must_use]
    pub(crate) fn commit(&self, epoch: LeaderEpoch, end: Offset) -> Commit {
        match self.role().commit(epoch, end) {
            Commit::Waiting if self.log.get().is_some_and(|log| log.is_offline()) => {
                Commit::Offline
            }
            commit => commit,
        }
    }

    /// As [`Partition::commit`], once it is known; [`Commit::Waiting`] only at the `deadline`.
    /// Cancel safe.
    pub(crate) async fn committed(
        &self,
        epoch: LeaderEpoch,
        end: Offset,
        deadline: Option<Instant>,
    ) -> Commit {
        let notify = Arc::new(Notify::new());
        loop {
            // Registered before the look, so that no move is missed in between.
            let place =
                Place { waiters: &self.waiters, ticket: self.waiters.register(end, &notify) };
            let commit = self.commit(epoch, end);
            if commit != Commit::Waiting {
                return commit;
            }
            match deadline {
                None => notify.notified().await,
                Some(at) if tokio::time::timeout_at(at, notify.notified()).await.is_ok() => {}
                Some(_) => return self.commit(epoch, end),
            }
            drop(place);
        }
    }

    /// Waits until no replica that is there has anything before `offset` any more, where the own
    /// log starts already; at most until `deadline`. Gives the low watermark. Cancel safe.
    ///
    /// # Errors
    /// REQUEST_TIMED_OUT: others may still have it; NOT_LEADER_OR_FOLLOWER.
    pub(crate) async fn low_watermark_reaches(
        &self,
        offset: Offset,
        deadline: Instant,
    ) -> Result<Offset, ErrorCode> {
        let log = self.log()?;
        // Followers whose fetch is parked learn it now.
        self.ends.wake_all();
        let (notify, mut led_in) = (Arc::new(Notify::new()), None);
        loop {
            let place =
                Place { waiters: &self.starts, ticket: self.starts.register(offset, &notify) };
            let (epoch, low) =
                self.role().low_watermark(&**log).ok_or(ErrorCode::NotLeaderOrFollower)?;
            // Another leader may have had less.
            if *led_in.get_or_insert(epoch) != epoch {
                return Err(ErrorCode::NotLeaderOrFollower);
            }
            if low >= offset {
                return Ok(low);
            }
            let waited = tokio::time::timeout_at(deadline, notify.notified()).await;
            waited.map_err(|_| ErrorCode::RequestTimedOut)?;
            drop(place);
        }
    }

    /// Waits until readers may see everything that was appended before this call, where that
    /// depends on this broker alone; at most until `deadline`.
    ///
    /// With `acks=1` an append is answered before it is durable, and readers never see what is not
    /// durable. Without this wait "produce, then read to the end" would miss records that were
    /// acknowledged. Where other replicas decide, there is no wait, as in Kafka.
    ///
    /// # Errors
    /// `OFFSET_NOT_AVAILABLE` at the deadline, and where other replicas decide until all that was
    /// there when this broker began to lead is committed (KIP-207); else as [`Commit::reached`].
    pub(crate) async fn settle(&self, deadline: Instant) -> Result<(), ErrorCode> {
        let end = self.log()?.end_offset();
        let epoch = {
            let role = self.role();
            match role.leader() {
                Some(leader) if leader.decides_alone() => {
                    if leader.high_watermark() >= end {
                        return Ok(());
                    }
                    leader.epoch()
                }
                // What an earlier leader has shown may lie in between (KIP-207).
                Some(leader) if !leader.shows_earlier_epochs() => {
                    return Err(ErrorCode::OffsetNotAvailable);
                }
                _ => return Ok(()),
            }
        };
        self.committed(epoch, end, Some(deadline)).await.reached()
    }

    /// The epoch this broker leads in; −1 when it does not.
    #[must_use]
    pub(crate) fn leader_epoch(&self) -> LeaderEpoch {
        self.led_epoch.load(Ordering::Acquire)
    }

    /// Compares the epoch a client believes in; −1 believes in none (KIP-320).
    ///
    /// # Errors
    /// `FENCED_LEADER_EPOCH` when the client's is older, `UNKNOWN_LEADER_EPOCH` when it is newer.
    pub(crate) fn check_epoch(&self, current: LeaderEpoch) -> Result<(), ErrorCode> {
        let own = self.leader_epoch();
        match current {
            -1 => Ok(()),
            older if older < own => Err(ErrorCode::FencedLeaderEpoch),
            newer if newer > own => Err(ErrorCode::UnknownLeaderEpoch),
            _ => Ok(()),
        }
    }

    /// How many replicas are in sync, and how many an append with `acks=all` asks for, while this
    /// broker leads.
    #[must_use]
    pub(crate) fn in_sync_and_required(&self) -> Option<(usize, usize)> {
        self.role().in_sync_and_required()
    }

    /// About how many bytes each follower that is not in sync has yet to copy; empty where this
    /// broker does not lead.
    #[must_use]
    pub(crate) fn behind(&self) -> Vec<(BrokerId, u64)> {
        let Ok(log) = self.log() else { return Vec::new() };
        let out_of_sync = self.role().out_of_sync();
        let bytes = |(id, at): (BrokerId, Option<Offset>)| {
            (id, log.bytes_from(at.unwrap_or_else(|| log.start_offset())))
        };
        out_of_sync.into_iter().map(bytes).collect()
    }

    /// Where `epoch` ends: the largest known epoch up to it and the offset that follows its last
    /// record; (−1, −1) for an epoch that has not begun. One older than every record ends where the
    /// log starts.
    ///
    /// Source: KIP-101, KIP-279; Apache Kafka's LeaderEpochFileCache for what they leave open.
    #[must_use]
    pub(crate) fn end_of_epoch(&self, epoch: LeaderEpoch) -> (LeaderEpoch, Offset) {
        let own = self.leader_epoch();
        let Some(log) = self.log.get() else { return (-1, -1) };
        if epoch < 0 || epoch > own {
            (-1, -1)
        } else if epoch == own {
            // It may have no record yet.
            (own, log.end_offset())
        } else {
            log.end_offset_for_epoch(epoch).unwrap_or((epoch, log.start_offset()))
        }
    }

    /// The leader epoch of the record at `offset`, or of the last record before it; without any
    /// record that of the leader, as with Kafka, whose epoch begins with the leader and not with
    /// its first record.
    #[must_use]
    pub(crate) fn epoch_at(&self, offset: Offset) -> LeaderEpoch {
        self.log
            .get()
            .and_then(|log| log.epoch_for_offset(offset).or_else(|| log.latest_epoch()))
            .unwrap_or_else(|| self.leader_epoch())
    }

    fn role(&self) -> MutexGuard<'_, Replica> {
        lock(&self.role)
    }
}

/// Appends batches of a leader, as many at once as a segment takes. `committed`: its high watermark
/// as it gave them.
fn append_runs(
    log: &Arc<Log>,
    records: &[u8],
    (leader_epoch, committed): (LeaderEpoch, Offset),
    now_ms: TimestampMs,
) -> Result<(), AppendError> {
    let origin = Origin::Replication { committed };
    let options = AppendOptions { leader_epoch, now_ms, origin };
    let run_max = usize::try_from(log.config().segment_bytes).unwrap_or(usize::MAX);
    let (mut rest, mut run_len) = (records, 0);
    while run_len < rest.len() {
        let next = rest.get(run_len..).unwrap_or_default();
        let len = next.len() - Batch::split(next)?.1.len();
        if run_len > 0 && run_len.saturating_add(len) > run_max {
            let (run, after) = rest.split_at(run_len);
            log.append(run.into(), &options)?;
            (rest, run_len) = (after, 0);
        } else {
            run_len += len;
        }
    }
    if rest.is_empty() { Ok(()) } else { log.append(rest.into(), &options).map(drop) }
}
