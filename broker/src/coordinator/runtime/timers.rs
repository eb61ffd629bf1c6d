//! The deadlines of a shard, in one ordered set: no task and no sleep per member.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a deadline is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum TimerKey {
    /// A member, or one that was given an id and has not joined yet, must show itself.
    Session { group: Arc<str>, member: Arc<str> },
    /// The members of a group must have joined.
    Join { group: Arc<str> },
    /// The members of a generation must have asked for their assignment.
    Sync { group: Arc<str> },
    /// Look for expired offsets.
    Expiry,
}

/// Deadlines in milliseconds of the coordinator's monotonic clock; one per key.
#[derive(Default, Debug)]
pub(super) struct Timers {
    due: BTreeSet<(u64, TimerKey)>,
    at: BTreeMap<TimerKey, u64>,
}

impl Timers {
    /// Sets or moves the deadline of `key`.
    pub(super) fn set(&mut self, key: TimerKey, deadline_ms: u64) {
        self.cancel(&key);
        self.due.insert((deadline_ms, key.clone()));
        self.at.insert(key, deadline_ms);
    }

    pub(super) fn cancel(&mut self, key: &TimerKey) {
        if let Some(deadline_ms) = self.at.remove(key) {
            self.due.remove(&(deadline_ms, key.clone()));
        }
    }

    pub(super) fn next_ms(&self) -> Option<u64> {
        self.due.first().map(|(deadline_ms, _)| *deadline_ms)
    }

    /// Takes the earliest key whose deadline is at or before `now_ms`.
    pub(super) fn pop_due(&mut self, now_ms: u64) -> Option<TimerKey> {
        if self.next_ms()? > now_ms {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        self.at.remove(&key);
        Some(key)
    }
}
