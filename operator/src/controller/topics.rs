//! The `KafkaTopic`s as the watch last saw them, found by what they are about without a look at all
//! of them: a cluster may have thousands.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use kube::ResourceExt as _;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::Event;

use crate::api::KafkaTopic;

/// A namespace and the name of a cluster in it.
pub(super) type ClusterKey = (String, String);

/// The cluster that `topic` belongs to.
pub(super) fn cluster_key_of(topic: &KafkaTopic) -> ClusterKey {
    (topic.namespace().unwrap_or_default(), topic.spec.cluster_ref.name.clone())
}

/// Names of objects by cluster and by the topic in it that they speak for. What is in here for an
/// object that is gone, or was made again, is not believed.
type Index = BTreeMap<(ClusterKey, String), BTreeSet<String>>;

/// The topics.
pub(super) struct Topics {
    store: Store<KafkaTopic>,
    index: Mutex<Index>,
}

impl Topics {
    /// The topics in `store`; [`Topics::take`] has to be told what it holds.
    pub(super) fn new(store: Store<KafkaTopic>) -> Self {
        Self { store, index: Mutex::default() }
    }

    /// Takes up an event that the store has taken up already.
    pub(super) fn take(&self, event: &Event<KafkaTopic>) {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let place = |topic: &KafkaTopic| (cluster_key_of(topic), topic.kafka_name());
        match event {
            Event::Apply(topic) | Event::InitApply(topic) => {
                index.entry(place(topic)).or_default().insert(topic.name_any());
            }
            Event::Delete(topic) => {
                if let Some(names) = index.get_mut(&place(topic)) {
                    names.remove(&topic.name_any());
                    if names.is_empty() {
                        index.remove(&place(topic));
                    }
                }
            }
            Event::Init => {}
            // What is not listed is gone.
            Event::InitDone => {
                index.clear();
                for topic in self.store.state() {
                    index.entry(place(&topic)).or_default().insert(topic.name_any());
                }
            }
        }
    }

    /// Every topic.
    pub(super) fn all(&self) -> Vec<Arc<KafkaTopic>> {
        self.store.state()
    }

    /// The object of this name.
    pub(super) fn get(&self, topic: &ObjectRef<KafkaTopic>) -> Option<Arc<KafkaTopic>> {
        self.store.get(topic)
    }

    /// The topics of `cluster`.
    pub(super) fn of_cluster(&self, cluster: &ClusterKey) -> Vec<Arc<KafkaTopic>> {
        let from = (Bound::Included((cluster.clone(), String::new())), Bound::Unbounded);
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let of_cluster = index.range(from).take_while(|((of, _), _)| of == cluster);
        let found = of_cluster.flat_map(|(_, names)| names).filter_map(|name| {
            let topic = self.store.get(&ObjectRef::new(name).within(&cluster.0))?;
            (cluster_key_of(&topic) == *cluster).then_some(topic)
        });
        found.collect()
    }

    /// The oldest other object that speaks for the same topic, if it is older than `topic`.
    pub(super) fn other_owner(&self, topic: &KafkaTopic) -> Option<String> {
        let age = |topic: &KafkaTopic| (topic.creation_timestamp(), topic.uid());
        let place = (cluster_key_of(topic), topic.kafka_name());
        let same = |other: &Arc<KafkaTopic>| {
            other.uid() != topic.uid()
                && other.metadata.deletion_timestamp.is_none()
                && (cluster_key_of(other), other.kafka_name()) == place
        };
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let others = index.get(&place)?.iter();
        let others = others.filter_map(|name| {
            self.store.get(&ObjectRef::new(name).within(&place.0.0)).filter(same)
        });
        let oldest = others.min_by_key(|other| age(other))?;
        // While this one is being deleted, any other that still stands for the topic keeps it.
        (topic.metadata.deletion_timestamp.is_some() || age(&oldest) < age(topic))
            .then(|| oldest.name_any())
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector;
    use serde_json::json;

    use super::*;

    fn topic(object: &str, cluster: &str, name: &str, second: u32) -> KafkaTopic {
        serde_json::from_value(json!({
            "metadata": {
                "name": object, "namespace": "ns", "uid": format!("{object}-{second}"),
                "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
            },
            "spec": {"clusterRef": {"name": cluster}, "topicName": name},
        }))
        .unwrap()
    }

    #[test]
    fn topics_are_found_by_cluster_and_the_older_object_speaks_for_a_topic() {
        let (store, mut writer) = reflector::store();
        let topics = Topics::new(store);
        let mut take = |event: Event<KafkaTopic>| {
            writer.apply_watcher_event(&event);
            topics.take(&event);
        };
        let (older, newer) = (topic("a", "x", "orders", 1), topic("b", "x", "orders", 2));
        let elsewhere = topic("c", "y", "orders", 0);
        take(Event::Init);
        take(Event::InitApply(newer.clone()));
        take(Event::InitDone);
        take(Event::Apply(elsewhere.clone()));
        take(Event::Apply(older.clone()));
        let names = |cluster: &str| {
            let of_cluster = topics.of_cluster(&("ns".into(), cluster.into()));
            of_cluster.iter().map(|topic| topic.name_any()).collect::<Vec<_>>()
        };
        assert_eq!((names("x"), names("y")), (vec!["a".into(), "b".into()], vec!["c".to_owned()]));
        assert_eq!(topics.other_owner(&newer).as_deref(), Some("a"));
        assert_eq!((topics.other_owner(&older), topics.other_owner(&elsewhere)), (None, None));
        // One that is being deleted gives its topic to any other.
        let mut going = older.clone();
        going.metadata.deletion_timestamp = older.metadata.creation_timestamp.clone();
        take(Event::Apply(going.clone()));
        assert_eq!(topics.other_owner(&going).as_deref(), Some("b"));
        assert_eq!(topics.other_owner(&newer), None);
        // It is gone, and made again for another topic while nobody watched.
        take(Event::Delete(going));
        assert_eq!(names("x"), ["b"]);
        take(Event::Init);
        take(Event::InitApply(topic("b", "x", "payments", 3)));
        take(Event::InitDone);
        assert_eq!((topics.other_owner(&older), names("y")), (None, Vec::new()));
    }
}
