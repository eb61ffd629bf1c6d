//! The deadlines of a state machine, in one ordered set: no task and no sleep per deadline.

use std::collections::{BTreeMap, BTreeSet};

/// Deadlines in milliseconds of the coordinator's monotonic clock; one per key.
#[derive(Debug)]
pub(in crate::coordinator) struct Timers<K> {
    due: BTreeSet<(u64, K)>,
    at: BTreeMap<K, u64>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { due: BTreeSet::new(), at: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Timers<K> {
    /// Sets or moves the deadline of `key`.
    pub(in crate::coordinator) fn set(&mut self, key: K, deadline_ms: u64) {
        self.cancel(&key);
        self.due.insert((deadline_ms, key.clone()));
        self.at.insert(key, deadline_ms);
    }

    pub(in crate::coordinator) fn cancel(&mut self, key: &K) {
        if let Some((key, deadline_ms)) = self.at.remove_entry(key) {
            self.due.remove(&(deadline_ms, key));
        }
    }

    pub(in crate::coordinator) fn next_ms(&self) -> Option<u64> {
        self.due.first().map(|(deadline_ms, _)| *deadline_ms)
    }

    /// Takes the earliest key whose deadline is at or before `now_ms`.
    pub(in crate::coordinator) fn pop_due(&mut self, now_ms: u64) -> Option<K> {
        if self.next_ms()? > now_ms {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        self.at.remove(&key);
        Some(key)
    }
}
