//! A map that knows which of its changes are committed.
//!
//! Decisions look at the *latest* value of a key, so that what was decided before and is still on
//! its way into the log is not decided against; readers outside see the *committed* value, because
//! only that survives a crash. A write that cannot be appended is rolled back together with every
//! later one, because those were decided on top of it.
//!
//! Source: the idea of Kafka's `TimelineHashMap` and `SnapshotRegistry` (KIP-848, "Group
//! coordinator runtime"), with one entry per write in flight instead of snapshots of the whole map.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeBounds;

/// Names a write of a `Timeline`; later writes have larger ids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct WriteId(u64);

/// Values by key, with the writes that are not committed yet.
///
/// Invariants: the ids in each queue of `pending` grow; `pending` has no empty queue; a key is in a
/// queue exactly as often as its writes are in `in_flight`.
#[derive(Debug)]
pub(in crate::coordinator) struct Timeline<K, V> {
    committed: BTreeMap<K, V>,
    /// What the writes in flight make of each key, oldest first; `None` removes it.
    pending: BTreeMap<K, VecDeque<(WriteId, Option<V>)>>,
    /// The writes in flight, oldest first, with the keys they change.
    in_flight: VecDeque<(WriteId, Vec<K>)>,
    next_write: u64,
    weigh: fn(&K, &V) -> usize,
    /// The sum of `weigh` over all values, committed or in flight.
    weight: usize,
}

impl<K: Ord + Clone, V> Timeline<K, V> {
    /// Empty. `weigh` says how many bytes a value takes with its key; it must always say the same
    /// of them.
    pub(in crate::coordinator) fn new(weigh: fn(&K, &V) -> usize) -> Self {
        Self {
            committed: BTreeMap::new(),
            pending: BTreeMap::new(),
            in_flight: VecDeque::new(),
            next_write: 0,
            weigh,
            weight: 0,
        }
    }

    /// How many bytes all values take, committed or in flight.
    pub(in crate::coordinator) fn weight(&self) -> usize {
        self.weight
    }

    /// Takes in what the log says; only before the first write.
    pub(in crate::coordinator) fn replay(&mut self, key: K, value: Option<V>) {
        self.put(key, value);
    }

    /// Begins a write that makes `changes`. They are the latest values from now on, and committed
    /// when [`commit`](Self::commit) says so.
    pub(in crate::coordinator) fn write(
        &mut self,
        changes: impl IntoIterator<Item = (K, Option<V>)>,
    ) -> WriteId {
        let id = WriteId(self.next_write);
        self.next_write = self.next_write.wrapping_add(1);
        let mut keys = Vec::new();
        for (key, value) in changes {
            self.weight = self.weight.saturating_add(self.weight_of(&key, value.as_ref()));
            self.pending.entry(key.clone()).or_default().push_back((id, value));
            keys.push(key);
        }
        self.in_flight.push_back((id, keys));
        id
    }

    /// The write `id`, and every earlier one, is committed.
    pub(in crate::coordinator) fn commit(&mut self, id: WriteId) {
        while let Some((_, keys)) = self.in_flight.pop_front_if(|(write, _)| *write <= id) {
            for key in keys {
                let Some(values) = self.pending.get_mut(&key) else { continue };
                let value = values.pop_front().and_then(|(_, value)| value);
                if values.is_empty() {
                    self.pending.remove(&key);
                }
                self.weight = self.weight.saturating_sub(self.weight_of(&key, value.as_ref()));
                self.put(key, value);
            }
        }
    }

    /// Takes back the write `id` and every later one. Returns the keys whose latest value may have
    /// changed.
    pub(in crate::coordinator) fn roll_back(&mut self, id: WriteId) -> Vec<K> {
        let mut changed = Vec::new();
        while let Some((_, keys)) = self.in_flight.pop_back_if(|(write, _)| *write >= id) {
            for key in &keys {
                let Some(values) = self.pending.get_mut(key) else { continue };
                let value = values.pop_back().and_then(|(_, value)| value);
                if values.is_empty() {
                    self.pending.remove(key);
                }
                self.weight = self.weight.saturating_sub(self.weight_of(key, value.as_ref()));
            }
            changed.extend(keys);
        }
        changed
    }

    /// The value that survives a crash now.
    pub(in crate::coordinator) fn committed(&self, key: &K) -> Option<&V> {
        self.committed.get(key)
    }

    /// The committed values of a range, in order.
    pub(in crate::coordinator) fn committed_range(
        &self,
        range: impl RangeBounds<K>,
    ) -> impl Iterator<Item = (&K, &V)> {
        self.committed.range(range)
    }

    /// How many values survive a crash now.
    pub(in crate::coordinator) fn committed_count(&self) -> usize {
        self.committed.len()
    }

    /// The value as of the newest write, committed or not.
    pub(in crate::coordinator) fn latest(&self, key: &K) -> Option<&V> {
        match self.pending.get(key).and_then(VecDeque::back) {
            Some((_, value)) => value.as_ref(),
            None => self.committed.get(key),
        }
    }

    /// The values of a range as of the newest write; first those without a write in flight.
    pub(in crate::coordinator) fn latest_range(
        &self,
        range: impl RangeBounds<K> + Clone,
    ) -> impl Iterator<Item = (&K, &V)> {
        let settled =
            self.committed.range(range.clone()).filter(|(key, _)| !self.pending.contains_key(key));
        let pending = self
            .pending
            .range(range)
            .filter_map(|(key, values)| Some((key, values.back()?.1.as_ref()?)));
        settled.chain(pending)
    }

    fn put(&mut self, key: K, value: Option<V>) {
        let more = self.weight_of(&key, value.as_ref());
        let less = self.weight_of(&key, self.committed.get(&key));
        self.weight = self.weight.saturating_add(more).saturating_sub(less);
        match value {
            Some(value) => self.committed.insert(key, value),
            None => self.committed.remove(&key),
        };
    }

    fn weight_of(&self, key: &K, value: Option<&V>) -> usize {
        value.map_or(0, |value| (self.weigh)(key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn decisions_see_what_is_in_flight_and_readers_do_not() {
        let mut timeline = Timeline::new(|_, _| 1);
        timeline.replay("a", Some(1));
        let first = timeline.write([("a", Some(2)), ("b", Some(3))]);
        let second = timeline.write([("a", None)]);
        assert_eq!((timeline.latest(&"a"), timeline.committed(&"a")), (None, Some(&1)));
        timeline.commit(first);
        assert_eq!((timeline.latest(&"a"), timeline.committed(&"a")), (None, Some(&2)));
        assert_eq!(timeline.roll_back(second), ["a"]);
        assert_eq!((timeline.latest(&"a"), timeline.latest(&"b")), (Some(&2), Some(&3)));
    }

    type Changes = Vec<(u8, Option<u32>)>;

    /// The plain meaning: a list of writes, of which a prefix is committed.
    #[derive(Default)]
    struct Model {
        committed: BTreeMap<u8, u32>,
        in_flight: Vec<(WriteId, Changes)>,
    }

    impl Model {
        fn latest(&self) -> BTreeMap<u8, u32> {
            let mut map = self.committed.clone();
            for (key, value) in self.in_flight.iter().flat_map(|(_, changes)| changes) {
                put(&mut map, *key, *value);
            }
            map
        }
    }

    fn put(map: &mut BTreeMap<u8, u32>, key: u8, value: Option<u32>) {
        match value {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        };
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(Changes),
        Commit(prop::sample::Index),
        RollBack(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        let changes = prop::collection::vec((0..4_u8, prop::option::of(any::<u32>())), 0..4);
        prop_oneof![
            3 => changes.prop_map(Step::Write),
            1 => any::<prop::sample::Index>().prop_map(Step::Commit),
            1 => any::<prop::sample::Index>().prop_map(Step::RollBack),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_list_of_writes_with_a_committed_prefix(steps in prop::collection::vec(step(), 0..40)) {
            let (mut timeline, mut model) = (Timeline::new(|_, value| *value as usize), Model::default());
            for step in steps {
                match step {
                    Step::Write(changes) => model.in_flight.push((timeline.write(changes.clone()), changes)),
                    Step::Commit(_) | Step::RollBack(_) if model.in_flight.is_empty() => {}
                    Step::Commit(at) => {
                        let at = at.index(model.in_flight.len());
                        timeline.commit(model.in_flight[at].0);
                        for (_, changes) in model.in_flight.drain(..=at) {
                            for (key, value) in changes {
                                put(&mut model.committed, key, value);
                            }
                        }
                    }
                    Step::RollBack(at) => {
                        let at = at.index(model.in_flight.len());
                        timeline.roll_back(model.in_flight[at].0);
                        model.in_flight.truncate(at);
                    }
                }
                let latest = timeline.latest_range(..).map(|(key, value)| (*key, *value)).collect::<BTreeMap<_, _>>();
                prop_assert_eq!(latest, model.latest());
                let committed = timeline.committed_range(..).map(|(key, value)| (*key, *value)).collect::<BTreeMap<_, _>>();
                prop_assert_eq!(committed, model.committed.clone());
                let in_flight = model.in_flight.iter().flat_map(|(_, changes)| changes).filter_map(|(_, value)| *value);
                let weight = model.committed.values().copied().chain(in_flight).map(|value| value as usize).sum::<usize>();
                prop_assert_eq!(timeline.weight(), weight);
                for key in 0..4 {
                    prop_assert_eq!(timeline.latest(&key).copied(), model.latest().get(&key).copied());
                }
                prop_assert_eq!(timeline.pending.is_empty(), model.in_flight.iter().all(|(_, changes)| changes.is_empty()));
            }
        }
    }
}
