//! The leader's view of a partition: who is in sync, how far, and what is therefore committed.
//!
//! A state machine without I/O. With one broker a cluster the in-sync set is the leader alone, and
//! the high watermark follows the leader's own durable end; the rules are written for any number.
//!
//! Invariants: `high_watermark` never moves back within a leader epoch; it never passes the end of
//! any in-sync replica; it does not move while fewer than `min_insync` replicas are in sync
//! (KIP-966).

use std::collections::BTreeMap;

use letterbox_protocol::model::{BrokerId, LeaderEpoch, Offset};

/// Why an append with `acks=all` is refused before anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{in_sync} of {required} required replicas are in sync")]
pub struct NotEnoughReplicas {
    /// Replicas in sync.
    pub in_sync: usize,
    /// Replicas that must be.
    pub required: usize,
}

/// A partition as its leader sees it.
#[derive(Clone, Debug)]
pub struct LeaderState {
    me: BrokerId,
    epoch: LeaderEpoch,
    replica_count: usize,
    min_insync: usize,
    /// The end that each in-sync replica has made durable (or appended, for topics that opt out).
    in_sync: BTreeMap<BrokerId, Offset>,
    high_watermark: Offset,
}

impl LeaderState {
    /// Takes over the partition in `epoch` with what is known to be committed.
    #[must_use]
    pub fn new(
        me: BrokerId,
        epoch: LeaderEpoch,
        replicas: &[BrokerId],
        isr: &[BrokerId],
        min_insync: usize,
        high_watermark: Offset,
    ) -> Self {
        let in_sync = isr.iter().map(|id| (*id, high_watermark)).collect();
        Self { me, epoch, replica_count: replicas.len(), min_insync, in_sync, high_watermark }
    }

    /// The epoch this broker leads in.
    #[must_use]
    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// Exclusive end of what is committed.
    #[must_use]
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Changes `min.insync.replicas`. Returns the new high watermark when it moved.
    pub fn set_min_insync(&mut self, min_insync: usize) -> Option<Offset> {
        self.min_insync = min_insync;
        self.advance()
    }

    /// Changes who is in sync, within the leader epoch. Returns the new high watermark when it
    /// moved.
    ///
    /// Nothing above the high watermark counts on a replica that comes in until it says so.
    pub fn set_in_sync(&mut self, replicas: &[BrokerId], isr: &[BrokerId]) -> Option<Offset> {
        self.replica_count = replicas.len();
        let known = std::mem::take(&mut self.in_sync);
        let end = |id: &BrokerId| known.get(id).copied().unwrap_or(self.high_watermark);
        self.in_sync = isr.iter().map(|id| (*id, end(id))).collect();
        self.advance()
    }

    /// Whether the high watermark waits for nothing but the own log. What was appended is then
    /// committed as soon as it counts here.
    pub fn decides_alone(&self) -> bool {
        self.in_sync.len() == 1 && self.in_sync.contains_key(&self.me) && self.required() == 1
    }

    /// Never asks for more replicas than the partition has (KIP-966, effective min ISR).
    fn required(&self) -> usize {
        self.min_insync.min(self.replica_count).max(1)
    }

    /// Whether an append with `acks=all` may begin.
    ///
    /// # Errors
    /// [`NotEnoughReplicas`]; answer NOT_ENOUGH_REPLICAS.
    pub fn may_append_to_all(&self) -> Result<(), NotEnoughReplicas> {
        let (in_sync, required) = (self.in_sync.len(), self.required());
        if in_sync >= required { Ok(()) } else { Err(NotEnoughReplicas { in_sync, required }) }
    }

    /// The leader's own log counts up to `end`. Returns the new high watermark when it moved.
    pub fn own_end(&mut self, end: Offset) -> Option<Offset> {
        self.replica_end(self.me, end)
    }

    /// An in-sync replica's log counts up to `end`. Returns the new high watermark when it moved.
    pub fn replica_end(&mut self, replica: BrokerId, end: Offset) -> Option<Offset> {
        let known = self.in_sync.get_mut(&replica)?;
        *known = end.max(*known);
        self.advance()
    }

    fn advance(&mut self) -> Option<Offset> {
        if self.in_sync.len() < self.required() {
            return None;
        }
        let committed = self.in_sync.values().copied().min()?;
        (committed > self.high_watermark).then(|| {
            self.high_watermark = committed;
            committed
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[i32]) -> Vec<BrokerId> {
        ids.iter().copied().map(BrokerId).collect()
    }

    #[test]
    fn alone_the_high_watermark_follows_the_own_end() {
        let mut state = LeaderState::new(BrokerId(1), 0, &ids(&[1]), &ids(&[1]), 2, 5);
        assert_eq!(
            state.may_append_to_all(),
            Ok(()),
            "min.insync.replicas never asks for more than there are"
        );
        assert_eq!(state.own_end(9), Some(9));
        assert_eq!(state.own_end(7), None, "never back");
        assert!(state.decides_alone());
        assert_eq!(state.high_watermark(), 9);
    }

    #[test]
    fn the_slowest_in_sync_replica_decides() {
        let mut state = LeaderState::new(BrokerId(1), 3, &ids(&[1, 2, 3]), &ids(&[1, 2]), 2, 0);
        assert_eq!(state.own_end(10), None);
        assert_eq!(state.replica_end(BrokerId(3), 10), None, "not in sync, does not count");
        assert_eq!(state.replica_end(BrokerId(2), 4), Some(4));
        assert_eq!(state.replica_end(BrokerId(2), 12), Some(10));
        assert!(!state.decides_alone());
    }

    #[test]
    fn below_min_insync_nothing_is_committed_or_begun() {
        let mut state = LeaderState::new(BrokerId(1), 3, &ids(&[1, 2, 3]), &ids(&[1]), 2, 4);
        assert_eq!(state.may_append_to_all(), Err(NotEnoughReplicas { in_sync: 1, required: 2 }));
        assert_eq!(state.own_end(10), None);
        assert_eq!(state.high_watermark(), 4);
        assert!(!state.decides_alone(), "it waits for a replica to come back");
    }
}
