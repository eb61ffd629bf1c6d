//! The topics that were removed last, by their ids.
//!
//! A node may end, or be away, between the removal of a topic and that of its directories. Ids are
//! never used again: a directory whose topic is known to be removed can be deleted, while one whose
//! topic is not known at all may be all that is left of lost metadata.

use letterbox_protocol::model::TopicId;
use serde::{Deserialize, Serialize};

use super::shared_map::SharedMap;

/// So many are remembered: some 400 kB of a snapshot.
const REMEMBERED: u64 = 10_000;

/// See the module. Part of an image: versions share what is the same in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemovedTopics {
    /// By the number of the removal, without a gap; the last is `count - 1`.
    ids: SharedMap<u64, TopicId>,
    /// Removals since the cluster began, or since a version that remembers them.
    count: u64,
}

/// What a snapshot has of [`RemovedTopics`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedTopicsRecord {
    /// Removals that are not remembered any more.
    pub forgotten: u64,
    /// The others, in their order.
    pub ids: Vec<TopicId>,
}

impl RemovedTopics {
    /// The topics that are remembered, in the order of their removal.
    pub fn ids(&self) -> impl Iterator<Item = &TopicId> {
        self.ids.values()
    }

    pub(super) fn push(&mut self, id: TopicId) {
        self.ids.insert(self.count, id);
        self.count = self.count.saturating_add(1);
        if let Some(oldest) = self.count.checked_sub(REMEMBERED + 1) {
            self.ids.remove(&oldest);
        }
    }

    pub(super) fn restore(&mut self, record: &RemovedTopicsRecord) {
        *self = Self { ids: SharedMap::default(), count: record.forgotten };
        record.ids.iter().for_each(|id| self.push(*id));
    }

    /// `None` while no topic was removed.
    pub(super) fn to_record(&self) -> Option<RemovedTopicsRecord> {
        let ids: Vec<_> = self.ids().copied().collect();
        let forgotten = self.count.saturating_sub(ids.len() as u64);
        (self.count > 0).then_some(RemovedTopicsRecord { forgotten, ids })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_remembered_and_a_snapshot_has_them() {
        let mut removed = RemovedTopics::default();
        assert_eq!(removed.to_record(), None);
        for n in 0..REMEMBERED + 5 {
            removed.push(TopicId::from_u128(n.into()));
        }
        let record = removed.to_record().unwrap();
        assert_eq!((record.forgotten, record.ids.len() as u64), (5, REMEMBERED));
        assert_eq!(record.ids[0], TopicId::from_u128(5));
        let mut again = RemovedTopics::default();
        again.restore(&record);
        assert_eq!(again, removed);
        again.push(TopicId::from_u128(7));
        assert_eq!(again.to_record().unwrap().forgotten, 6);
    }
}
