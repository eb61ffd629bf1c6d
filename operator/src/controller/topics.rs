//! The `KafkaTopic`s as the watch last saw them, or as this operator itself wrote them since, found
//! by what they are about without a look at all of them: a cluster may have thousands.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::Event;

use super::objects::{Names, NotUnderstood};
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

/// An object that cannot be read, which still speaks for its topic.
struct Unread {
    age: Age,
    names: Names,
}

/// Orders objects by age.
type Age = (Option<Time>, Option<String>);

/// The objects that cannot be read, by namespace and name.
#[derive(Default)]
struct AllUnread {
    known: BTreeMap<(String, String), Unread>,
    /// Those that the list which is being read has so far.
    listed: Option<BTreeSet<(String, String)>>,
}

/// What the watch has not brought yet.
#[derive(Default)]
struct Ahead {
    /// Each, and how many lists had been begun then.
    known: HashMap<ObjectRef<KafkaTopic>, (Arc<KafkaTopic>, u64)>,
    /// How many lists have been begun. A list that is begun later has what was answered before, or
    /// the API server lost it.
    lists: u64,
}

/// The topics.
pub(super) struct Topics {
    store: Store<KafkaTopic>,
    /// What this operator wrote, or read past the watch, and the watch has not brought yet: each is
    /// newer than what `store` has of it.
    ahead: Mutex<Ahead>,
    index: Mutex<Index>,
    unread: Mutex<AllUnread>,
}

/// Whether `one` is the same object as `other`, at a later version. Versions are decimal numbers of
/// any length (KEP-5504); of an API server that has others, what the watch brings is taken.
fn is_newer(one: &KafkaTopic, other: &KafkaTopic) -> bool {
    let number = |topic: &KafkaTopic| {
        let version = topic.resource_version()?;
        version.bytes().all(|digit| digit.is_ascii_digit()).then_some((version.len(), version))
    };
    one.uid() == other.uid()
        && number(one).zip(number(other)).is_some_and(|(one, other)| one > other)
}

impl Topics {
    /// The topics in `store`; [`Topics::take`] has to be told what it holds.
    pub(super) fn new(store: Store<KafkaTopic>) -> Self {
        let (ahead, index, unread) = Default::default();
        Self { store, ahead, index, unread }
    }

    /// Takes up an object as this operator has just written or read it.
    pub(super) fn note(&self, topic: KafkaTopic) {
        let key = ObjectRef::from_obj(&topic);
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: what the watch brings after this look is taken up by `catch_up`.
        let is_ahead = self.store.get(&key).is_some_and(|cached| is_newer(&topic, &cached));
        if is_ahead && ahead.known.get(&key).is_none_or(|(known, _)| is_newer(&topic, known)) {
            let lists = ahead.lists;
            ahead.known.insert(key, (Arc::new(topic), lists));
        }
    }

    /// `cached`, or what this operator made of it since.
    pub(super) fn newest(&self, cached: Arc<KafkaTopic>) -> Arc<KafkaTopic> {
        let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let known = ahead.known.get(&ObjectRef::from_obj(&*cached)).map(|(known, _)| known);
        known.filter(|known| is_newer(known, &cached)).cloned().unwrap_or(cached)
    }

    /// Forgets what the store has caught up with.
    fn catch_up(&self, event: &Event<KafkaTopic>) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Apply(topic) | Event::Delete(topic) => {
                let key = ObjectRef::from_obj(topic);
                let is_behind = matches!(event, Event::Apply(_))
                    && ahead.known.get(&key).is_some_and(|(known, _)| is_newer(known, topic));
                if !is_behind {
                    ahead.known.remove(&key);
                }
            }
            // The store takes a list up as a whole.
            Event::InitApply(_) => {}
            Event::Init => ahead.lists = ahead.lists.saturating_add(1),
            Event::InitDone => {
                let now = ahead.lists;
                ahead.known.retain(|key, (known, lists)| {
                    let is_ahead = |cached: Arc<KafkaTopic>| is_newer(known, &cached);
                    *lists == now && self.store.get(key).is_some_and(is_ahead)
                });
            }
        }
    }

    /// Takes up an object that cannot be read, before the store forgets it: there is no moment at
    /// which nobody speaks for its topic.
    pub(super) fn take_unread(&self, found: &NotUnderstood<KafkaTopic>) {
        let (metadata, names) = (&found.bare.metadata, found.names.clone());
        let age = (metadata.creation_timestamp.clone(), metadata.uid.clone());
        let unread = Unread { age, names };
        let key = (found.bare.namespace().unwrap_or_default(), found.bare.name_any());
        let mut all = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        if found.is_gone {
            all.known.remove(&key);
            return;
        }
        if let Some(listed) = &mut all.listed {
            listed.insert(key.clone());
        }
        all.known.insert(key, unread);
    }

    /// Takes up what an event says about objects that could not be read before.
    fn take_read(&self, event: &Event<KafkaTopic>) {
        let key = |topic: &KafkaTopic| (topic.namespace().unwrap_or_default(), topic.name_any());
        let mut all = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Apply(topic) | Event::InitApply(topic) => drop(all.known.remove(&key(topic))),
            Event::Init => all.listed = Some(BTreeSet::new()),
            // What is not listed is gone.
            Event::InitDone => {
                let listed = all.listed.take().unwrap_or_default();
                all.known.retain(|key, _| listed.contains(key));
            }
            Event::Delete(_) => {}
        }
    }

    /// The oldest object that cannot be read and manages this topic, or may.
    fn unread_owner(&self, (cluster, topic): &(ClusterKey, String)) -> Option<(Age, String)> {
        let (namespace, cluster) = cluster;
        let all = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |unread: &Unread| {
            unread.names.cluster.as_ref().is_none_or(|name| name == cluster)
                && unread.names.topic.as_ref().is_none_or(|name| name == topic)
        };
        let owners = all.known.iter().filter(|((of, _), it)| of == namespace && is_it(it));
        owners.map(|((_, name), it)| (it.age.clone(), name.clone())).min()
    }

    /// Takes up an event that the store has taken up already.
    pub(super) fn take(&self, event: &Event<KafkaTopic>) {
        self.take_read(event);
        self.catch_up(event);
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
        self.store.state().into_iter().map(|topic| self.newest(topic)).collect()
    }

    /// The object of this name.
    pub(super) fn get(&self, topic: &ObjectRef<KafkaTopic>) -> Option<Arc<KafkaTopic>> {
        self.store.get(topic).map(|topic| self.newest(topic))
    }

    /// The topics of `cluster`.
    pub(super) fn of_cluster(&self, cluster: &ClusterKey) -> Vec<Arc<KafkaTopic>> {
        let from = (Bound::Included((cluster.clone(), String::new())), Bound::Unbounded);
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let of_cluster = index.range(from).take_while(|((of, _), _)| of == cluster);
        let found = of_cluster.flat_map(|(_, names)| names).filter_map(|name| {
            let topic = self.get(&ObjectRef::new(name).within(&cluster.0))?;
            (cluster_key_of(&topic) == *cluster).then_some(topic)
        });
        found.collect()
    }

    /// The oldest other object that speaks for the same topic, if it is older than `topic`. One
    /// that cannot be read stays the owner.
    pub(super) fn other_owner(&self, topic: &KafkaTopic) -> Option<String> {
        let age = |topic: &KafkaTopic| -> Age { (topic.creation_timestamp(), topic.uid()) };
        let place = (cluster_key_of(topic), topic.kafka_name());
        let same = |other: &Arc<KafkaTopic>| {
            other.uid() != topic.uid()
                && other.metadata.deletion_timestamp.is_none()
                && (cluster_key_of(other), other.kafka_name()) == place
        };
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let others = index.get(&place).into_iter().flatten();
        let others = others
            .filter_map(|name| self.get(&ObjectRef::new(name).within(&place.0.0)).filter(same));
        let others = others.map(|other| (age(&other), other.name_any()));
        let (oldest, name) = others.chain(self.unread_owner(&place)).min()?;
        // While this one is being deleted, any other that still stands for the topic keeps it.
        (topic.metadata.deletion_timestamp.is_some() || oldest < age(topic)).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector;
    use serde_json::{Value, json};

    use super::super::objects::ToldBefore;

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

    fn unread(object: &str, second: u32, spec: Value, is_gone: bool) -> NotUnderstood<KafkaTopic> {
        let bare = KafkaTopic { status: None, ..topic(object, "", "", second) };
        let names = Names::of(&json!({"metadata": {"name": object}, "spec": spec}));
        let told = ToldBefore::default();
        NotUnderstood { bare, names, told, error: String::new(), is_gone }
    }

    #[test]
    fn an_object_that_cannot_be_read_stays_the_owner_of_its_topic() {
        let orders = json!({"clusterRef": {"name": "x"}, "topicName": "orders", "partitions": "?"});
        let by_own_name = json!({"clusterRef": {"name": "x"}, "partitions": "?"});
        for (case, object, second, spec, is_owner) in [
            ("the older one", "a", 1, orders.clone(), true),
            ("a younger one", "a", 3, orders.clone(), false),
            ("by its own name", "orders", 1, by_own_name.clone(), true),
            ("another name", "payments", 1, by_own_name, false),
            ("another cluster", "a", 1, json!({"clusterRef": {"name": "y"}}), false),
            ("any cluster", "orders", 1, json!({"clusterRef": 7}), true),
            ("any topic", "a", 1, json!({"clusterRef": {"name": "x"}, "topicName": 7}), true),
            ("anything", "a", 1, json!(null), false),
        ] {
            let (store, mut writer) = reflector::store();
            let topics = Topics::new(store);
            let double = topic("b", "x", "orders", 2);
            writer.apply_watcher_event(&Event::Apply(double.clone()));
            topics.take(&Event::Apply(double.clone()));
            topics.take_unread(&unread(object, second, spec.clone(), false));
            // What the store is told of it.
            topics.take(&Event::Delete(unread(object, second, spec.clone(), false).bare));
            let owner = || topics.other_owner(&double);
            assert_eq!(owner().as_deref(), is_owner.then_some(object), "{case}");
            // While the double is deleted, whoever is there keeps the topic.
            let mut going = double.clone();
            going.metadata.deletion_timestamp = double.metadata.creation_timestamp.clone();
            let keeps = is_owner || second > 2;
            assert_eq!(topics.other_owner(&going).is_some(), keeps, "{case}");
            topics.take_unread(&unread(object, second, spec, true));
            assert_eq!(owner(), None, "{case}: it is gone");
        }
    }

    #[test]
    fn what_cannot_be_read_is_known_until_a_list_is_without_it_or_it_is_read() {
        let (store, _) = reflector::store();
        let topics = Topics::new(store);
        let spec = json!({"clusterRef": {"name": "x"}, "topicName": "orders"});
        let found = || unread("a", 1, spec.clone(), false);
        let owner = || topics.other_owner(&topic("b", "x", "orders", 2));
        topics.take(&Event::Init);
        topics.take_unread(&found());
        topics.take(&Event::InitDone);
        assert_eq!(owner().as_deref(), Some("a"));
        topics.take(&Event::Init);
        assert_eq!(owner().as_deref(), Some("a"), "while the list is read");
        topics.take(&Event::InitDone);
        assert_eq!(owner(), None);
        topics.take_unread(&found());
        topics.take(&Event::Apply(topic("a", "x", "payments", 1)));
        assert_eq!(owner(), None);
    }

    #[test]
    fn what_the_operator_wrote_itself_counts_until_the_watch_brings_it() {
        let (store, mut writer) = reflector::store();
        let topics = Topics::new(store);
        let mut take = |event: Event<KafkaTopic>| {
            writer.apply_watcher_event(&event);
            topics.take(&event);
        };
        let at = |version: &str| {
            let mut topic = topic("a", "x", "orders", 1);
            topic.metadata.resource_version = Some(version.to_owned());
            topic
        };
        let key = ObjectRef::from_obj(&at("9"));
        let is = |version: Option<&str>| {
            let newest = topics.get(&key).and_then(|topic| topic.resource_version());
            assert_eq!(newest.as_deref(), version);
        };
        let rest = |count: usize| assert_eq!(topics.ahead.lock().unwrap().known.len(), count);
        topics.note(at("9"));
        rest(0);
        take(Event::Apply(at("9")));
        topics.note(at("11"));
        topics.note(at("10"));
        is(Some("11"));
        take(Event::Apply(at("10")));
        is(Some("11"));
        assert_eq!(topics.all()[0].resource_version().as_deref(), Some("11"));
        take(Event::Apply(at("11")));
        rest(0);
        // What the watch brings comes before the answer to the write.
        topics.note(at("11"));
        let mut made_again = at("20");
        made_again.metadata.uid = Some("another".to_owned());
        topics.note(made_again);
        rest(0);
        // Noted before the list is begun, or while it is read: only the latter may be missing.
        for (noted, noted_later, listed, before, after) in [
            ("12", "12", Some("11"), "12", Some("11")),
            ("11", "12", Some("11"), "12", Some("12")),
            ("12", "12", Some("13"), "12", Some("13")),
            ("13", "13", None, "13", None),
        ] {
            topics.note(at(noted));
            take(Event::Init);
            topics.note(at(noted_later));
            if let Some(version) = listed {
                take(Event::InitApply(at(version)));
            }
            is(Some(before));
            take(Event::InitDone);
            is(after);
        }
        rest(0);
        take(Event::Apply(at("14")));
        topics.note(at("15"));
        take(Event::Delete(at("16")));
        rest(0);
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
