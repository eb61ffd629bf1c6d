//! What a test has broken, as far as clients have to know it to tell a loss that is fair from a
//! promise that was broken.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::disk::SimDisk;

/// How the log of one partition was hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hurt {
    /// Its directory was taken away. It is not served until the directory is back, or somebody has
    /// accepted the loss.
    Missing,
    /// Bits of it have changed. Nothing is demanded of it but that it hurts no other.
    Damaged,
}

/// Shared by the test that breaks things and the clients that judge. Cheap to clone; all clones are
/// the same.
#[derive(Clone)]
pub struct Broken(Rc<RefCell<State>>);

struct State {
    disk: SimDisk,
    jumps: u64,
    ahead_ms: i64,
    ahead_ms_max: i64,
    hurt: BTreeMap<(String, i32), Hurt>,
    dropped: BTreeSet<(String, i32)>,
    /// How often a log was hurt, or its records were given up.
    harms: u64,
}

impl Broken {
    /// Nothing yet; `disk` is the broker's.
    #[must_use]
    pub fn new(disk: SimDisk) -> Self {
        let (hurt, dropped) = (BTreeMap::new(), BTreeSet::new());
        Self(Rc::new(RefCell::new(State {
            disk,
            jumps: 0,
            ahead_ms: 0,
            ahead_ms_max: 0,
            hurt,
            dropped,
            harms: 0,
        })))
    }

    /// Grows with everything that may take records that were there: what was read before it grew
    /// need not be found after. [`Broken::losses`] is a part of it.
    #[must_use]
    pub fn harms(&self) -> u64 {
        self.losses() + self.0.borrow().harms
    }

    /// How often something may have been lost that was not synced: power cuts, and failed writes
    /// and syncs. A record that was acknowledged before it was synced is demanded only while this
    /// stays.
    #[must_use]
    pub fn losses(&self) -> u64 {
        let stats = self.0.borrow().disk.stats();
        stats.power_cuts
            + ["failed sync", "failed write"]
                .iter()
                .filter_map(|fault| stats.faults.get(fault))
                .sum::<u64>()
    }

    /// The broker's clock is about to jump.
    pub fn note_jump(&self, by_ms: i64) {
        let mut state = self.0.borrow_mut();
        state.jumps += 1;
        state.ahead_ms += by_ms;
        state.ahead_ms_max = state.ahead_ms_max.max(state.ahead_ms);
    }

    /// How often the broker's clock has jumped.
    #[must_use]
    pub fn jumps(&self) -> u64 {
        self.0.borrow().jumps
    }

    /// How far the broker's clock was ahead of the clients', at most.
    #[must_use]
    pub fn ahead_ms_max(&self) -> i64 {
        self.0.borrow().ahead_ms_max
    }

    /// The log of a partition of the topic called `topic` is about to be hurt.
    pub fn note_hurt(&self, topic: &str, partition: i32, hurt: Hurt) {
        tracing::debug!(topic, partition, ?hurt, "a log is hurt");
        let mut state = self.0.borrow_mut();
        state.harms += 1;
        let before = state.hurt.entry((topic.to_owned(), partition)).or_insert(hurt);
        if hurt == Hurt::Damaged {
            // It stays damaged when its directory is taken away and comes back.
            *before = hurt;
        }
    }

    /// The directory is back. Says whether it was still missed: a topic that was deleted misses
    /// nothing.
    pub fn note_back(&self, topic: &str, partition: i32) -> bool {
        let mut state = self.0.borrow_mut();
        let place = (topic.to_owned(), partition);
        let is_missed = state.hurt.get(&place) == Some(&Hurt::Missing);
        if is_missed {
            state.hurt.remove(&place);
        }
        is_missed
    }

    /// The loss of the records of this partition is about to be accepted.
    pub fn note_dropped(&self, topic: &str, partition: i32) {
        let mut state = self.0.borrow_mut();
        state.harms += 1;
        state.dropped.insert((topic.to_owned(), partition));
    }

    /// The partitions of `topic` that are hurt.
    #[must_use]
    pub fn hurt(&self, topic: &str) -> BTreeMap<i32, Hurt> {
        let state = self.0.borrow();
        state
            .hurt
            .iter()
            .filter(|((name, _), _)| name == topic)
            .map(|((_, partition), hurt)| (*partition, *hurt))
            .collect()
    }

    /// The partitions of `topic` whose records were given up since this was asked last.
    pub(super) fn take_dropped(&self, topic: &str) -> BTreeSet<i32> {
        self.0
            .borrow_mut()
            .dropped
            .extract_if(.., |(name, _)| name == topic)
            .map(|(_, partition)| partition)
            .collect()
    }

    /// The topic is gone, and with it whatever was wrong with it.
    pub(super) fn topic_gone(&self, topic: &str) {
        let mut state = self.0.borrow_mut();
        state.hurt.retain(|(name, _), _| name != topic);
        state.dropped.retain(|(name, _)| name != topic);
    }
}
