//! What the partitions of this broker want of others and of the disk, until the tasks that speak
//! with them take it.
//!
//! Written to under the lock of a partition's role, so that what two changes of a role ask for
//! comes in their order; nothing here waits. What replaces what was asked before takes its place:
//! there is at most one wish of each kind for each partition, however slow the other side is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use letterbox_env::panics::lock;
use letterbox_protocol::model::{BrokerId, LeaderEpoch, Offset};
use tokio::sync::Notify;

use super::fetcher::{Key, Position};
use super::leader::BrokerEpoch;

/// An ISR that a leader asks the controller for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IsrWish {
    /// The epoch in which this broker leads.
    pub(crate) epoch: LeaderEpoch,
    /// The members, each as the registration that has earned it.
    pub(crate) isr: Vec<(BrokerId, BrokerEpoch)>,
    /// The state that it builds on.
    pub(crate) partition_epoch: i32,
}

/// A change of a log that waits for the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Cut it to end there.
    Truncate { to: Offset },
    /// Empty it; it begins and ends there.
    RestartAt { at: Offset },
    /// Keep what it has beside it, empty it; it begins and ends there.
    SetAside { at: Offset },
    /// It leads in that epoch: what it lacks is lost.
    LacksNothingMore { epoch: LeaderEpoch },
    /// Empty it; it begins there, with these batches of the leader of that epoch, whose high
    /// watermark was `committed`.
    BeginWith { at: Offset, records: Bytes, epoch: LeaderEpoch, committed: Offset },
}

/// What is wanted, by whom it is wanted of.
#[derive(Default)]
pub(crate) struct Outbox {
    inner: Mutex<Wishes>,
    /// Somebody is asked who was not before.
    pub(crate) leaders: Notify,
    /// An ISR is wanted.
    pub(crate) isr: Notify,
    /// A log is to be changed.
    pub(crate) changes: Notify,
    /// Something is put off.
    pub(crate) waits: Notify,
    /// A log is out of use.
    pub(crate) logs: Notify,
    /// Committed records that were cut because the leader does not have them.
    lost: AtomicU64,
}

#[derive(Default)]
struct Wishes {
    leaders: BTreeMap<BrokerId, OfLeader>,
    /// Who is asked for each partition.
    following: BTreeMap<Key, BrokerId>,
    isr: BTreeMap<Key, IsrWish>,
    changes: BTreeMap<Key, Change>,
    /// Milliseconds of the clock of the roles.
    waits: BTreeSet<(u64, Key)>,
}

/// What is wanted of one leader.
#[derive(Default)]
struct OfLeader {
    /// From where each partition wants records from now on; `None`: it wants none any more.
    fetches: BTreeMap<Key, Option<Position>>,
    reports: BTreeMap<Key, Report>,
    /// What was reported since the last fetch: that says the same, should a report be lost.
    reported: BTreeSet<Key>,
    /// The fetch that is parked there is to end.
    hurries: bool,
    wake: Wake,
}

/// Up to where a partition counts, in that leader epoch, with a last record of that epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) epoch: LeaderEpoch,
    pub(crate) counts: Offset,
    pub(crate) last_epoch: LeaderEpoch,
}

/// What is to be reported to a leader.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reports {
    /// Up to where each partition counts.
    pub(crate) counts: BTreeMap<Key, Report>,
    /// The fetch that is parked there is to end.
    pub(crate) hurries: bool,
}

/// Wakes the two tasks that speak with a leader.
#[derive(Clone, Default)]
pub(crate) struct Wake {
    pub(crate) fetches: Arc<Notify>,
    pub(crate) reports: Arc<Notify>,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Wishes> {
        lock(&self.inner)
    }

    /// `key` wants records of `leader`, and of nobody else.
    pub(super) fn fetch(&self, key: Key, leader: BrokerId, from: Position) {
        let mut wishes = self.lock();
        if wishes.following.get(&key).is_some_and(|followed| *followed != leader) {
            wishes.unfollow(key);
        }
        wishes.following.insert(key, leader);
        let is_new = !wishes.leaders.contains_key(&leader);
        let of_leader = wishes.leaders.entry(leader).or_default();
        of_leader.fetches.insert(key, Some(from));
        of_leader.reports.remove(&key);
        of_leader.reported.remove(&key);
        of_leader.wake.fetches.notify_one();
        drop(wishes);
        if is_new {
            self.leaders.notify_one();
        }
    }

    /// `key` counts up to there.
    pub(super) fn report(&self, key: Key, leader: BrokerId, report: Report) {
        if let Some(of_leader) = self.lock().leaders.get_mut(&leader) {
            of_leader.reports.insert(key, report);
            of_leader.reported.insert(key);
            of_leader.wake.reports.notify_one();
        }
    }

    /// The fetch that is parked at `leader` is to end: more is wanted than it asks for.
    pub(crate) fn hurry(&self, leader: BrokerId) {
        if let Some(of_leader) = self.lock().leaders.get_mut(&leader) {
            of_leader.hurries = true;
            of_leader.wake.reports.notify_one();
        }
    }

    /// `key` wants nothing of any leader.
    pub(super) fn unfollow(&self, key: Key) {
        self.lock().unfollow(key);
    }

    pub(super) fn ask_for_isr(&self, key: Key, wish: IsrWish) {
        self.lock().isr.insert(key, wish);
        self.isr.notify_one();
    }

    pub(super) fn change(&self, key: Key, change: Change) {
        self.lock().changes.insert(key, change);
        self.changes.notify_one();
    }

    pub(super) fn wait_until(&self, key: Key, until_ms: u64) {
        self.lock().waits.insert((until_ms, key));
        self.waits.notify_one();
    }

    pub(super) fn count_lost(&self, records: u64) {
        self.lost.fetch_add(records, Ordering::Relaxed);
    }

    /// Committed records that were cut here since the start, because the leader lacks them.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Everybody who is or was asked, and what wakes those who ask.
    pub(crate) fn leaders(&self) -> Vec<(BrokerId, Wake)> {
        let wishes = self.lock();
        wishes.leaders.iter().map(|(id, of_leader)| (*id, of_leader.wake.clone())).collect()
    }

    /// What has changed of what is wanted of `leader`.
    pub(crate) fn take_fetches(&self, leader: BrokerId) -> BTreeMap<Key, Option<Position>> {
        let mut wishes = self.lock();
        let of_leader = wishes.leaders.get_mut(&leader);
        of_leader.map(|of_leader| std::mem::take(&mut of_leader.fetches)).unwrap_or_default()
    }

    /// What was reported to `leader` since it was asked last.
    pub(crate) fn take_reported(&self, leader: BrokerId) -> BTreeSet<Key> {
        let mut wishes = self.lock();
        let of_leader = wishes.leaders.get_mut(&leader);
        of_leader.map(|of_leader| std::mem::take(&mut of_leader.reported)).unwrap_or_default()
    }

    /// What is to be reported to `leader`, of at most `most` partitions.
    pub(crate) fn take_reports(&self, leader: BrokerId, most: usize) -> Reports {
        let mut wishes = self.lock();
        let Some(of_leader) = wishes.leaders.get_mut(&leader) else { return Reports::default() };
        let counts = take_at_most(&mut of_leader.reports, most);
        Reports { counts, hurries: std::mem::take(&mut of_leader.hurries) }
    }

    /// At most `most` of the ISRs that are wanted.
    pub(crate) fn take_isr(&self, most: usize) -> BTreeMap<Key, IsrWish> {
        take_at_most(&mut self.lock().isr, most)
    }

    /// The logs that are to be changed.
    pub(crate) fn take_changes(&self) -> BTreeMap<Key, Change> {
        std::mem::take(&mut self.lock().changes)
    }

    /// What was put off until `now_ms`, and until when the next is.
    pub(crate) fn take_due(&self, now_ms: u64) -> (Vec<Key>, Option<u64>) {
        let mut wishes = self.lock();
        let mut due = Vec::new();
        while let Some((until_ms, key)) = wishes.waits.first().copied() {
            if until_ms > now_ms {
                return (due, Some(until_ms));
            }
            wishes.waits.pop_first();
            due.push(key);
        }
        (due, None)
    }
}

/// The first `most` of them.
fn take_at_most<T>(all: &mut BTreeMap<Key, T>, most: usize) -> BTreeMap<Key, T> {
    let rest = all.keys().nth(most).copied();
    let rest = rest.map(|first| all.split_off(&first)).unwrap_or_default();
    std::mem::replace(all, rest)
}

impl Wishes {
    fn unfollow(&mut self, key: Key) {
        let followed = self.following.remove(&key);
        if let Some(of_leader) = followed.and_then(|leader| self.leaders.get_mut(&leader)) {
            of_leader.fetches.insert(key, None);
            of_leader.reports.remove(&key);
            of_leader.reported.remove(&key);
            of_leader.wake.fetches.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use letterbox_protocol::model::TopicId;

    use super::*;

    const KEY: Key = (TopicId::from_u128(1), 0);

    fn from(at: Offset) -> Position {
        Position { epoch: 0, at, last_epoch: 0, counts: at, is_full: false }
    }

    #[test]
    fn a_partition_is_fetched_from_one_leader() {
        let (outbox, one, other) = (Outbox::default(), BrokerId(1), BrokerId(2));
        outbox.fetch(KEY, one, from(3));
        outbox.report(KEY, one, Report { epoch: 0, counts: 3, last_epoch: 0 });
        assert_eq!(outbox.take_fetches(one), BTreeMap::from([(KEY, Some(from(3)))]));
        outbox.fetch(KEY, other, from(3));
        assert_eq!(outbox.take_fetches(one), BTreeMap::from([(KEY, None)]));
        assert_eq!(outbox.take_reports(one, 9), Reports::default(), "it is another's to know");
        outbox.unfollow(KEY);
        assert_eq!(outbox.take_fetches(other), BTreeMap::from([(KEY, None)]));
        assert!(outbox.take_fetches(one).is_empty());
    }

    #[test]
    fn the_newest_wish_replaces_the_one_before() {
        let (outbox, leader) = (Outbox::default(), BrokerId(1));
        outbox.fetch(KEY, leader, from(3));
        outbox.fetch(KEY, leader, from(5));
        for counts in [6, 7] {
            outbox.report(KEY, leader, Report { epoch: 0, counts, last_epoch: 0 });
        }
        assert_eq!(outbox.take_fetches(leader), BTreeMap::from([(KEY, Some(from(5)))]));
        let report = Report { epoch: 0, counts: 7, last_epoch: 0 };
        let counts = BTreeMap::from([(KEY, report)]);
        assert_eq!(outbox.take_reports(leader, 9), Reports { counts, hurries: false });
    }

    /// A larger request would wait at the leader behind those of its clients that take long.
    #[test]
    fn what_many_partitions_report_is_taken_so_many_at_a_time() {
        let (outbox, leader) = (Outbox::default(), BrokerId(1));
        let report = Report { epoch: 0, counts: 3, last_epoch: 0 };
        for index in 0..5 {
            outbox.fetch((KEY.0, index), leader, from(3));
            outbox.report((KEY.0, index), leader, report);
        }
        outbox.hurry(leader);
        for (expected, hurries) in [(0..2, true), (2..4, false), (4..5, false), (5..5, false)] {
            let counts = expected.map(|index| ((KEY.0, index), report)).collect();
            assert_eq!(outbox.take_reports(leader, 2), Reports { counts, hurries });
        }
    }

    #[test]
    fn what_is_put_off_is_due_in_its_time() {
        let outbox = Outbox::default();
        outbox.wait_until(KEY, 20);
        outbox.wait_until((KEY.0, 1), 10);
        assert_eq!(outbox.take_due(5), (vec![], Some(10)));
        assert_eq!(outbox.take_due(10), (vec![(KEY.0, 1)], Some(20)));
        assert_eq!(outbox.take_due(30), (vec![KEY], None));
    }
}
