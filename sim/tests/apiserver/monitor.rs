//! Looks at every write of an operator: C14 of the checkers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kafka_protocol::messages::ApiKey;
use serde_json::Value;

use super::kafka::About;
use super::world::World;
use super::{Change, Key, text};

/// What an operator did and must not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// It took a broker down while another one of the cluster did not serve.
    TwoBrokersDown {
        /// The pod that it ended.
        ended: String,
        /// The one that was down.
        down: String,
    },
    /// It took a broker down while another one of the cluster was not in sync.
    OtherBehind {
        /// The pod that it ended.
        ended: String,
        /// The one that was behind.
        behind: String,
    },
    /// It deleted a claim with records on its volume, and the cluster's object does not ask for
    /// that, or somebody else made the claim.
    RecordsDeleted {
        /// The claim.
        claim: String,
    },
    /// It ended a pod whose claim is being deleted, and the records with it.
    RecordsEnded {
        /// The pod.
        ended: String,
        /// The claim.
        claim: String,
    },
    /// It ended a pod that had the last copy of records, because its claim was gone or lost its
    /// volume, and nobody accepted that.
    LastCopyEnded {
        /// The pod.
        ended: String,
        /// What it had: the uid of a claim.
        claim_uid: String,
    },
    /// It says that a topic is ready for a spec, or again, and has not looked at it since.
    ReadyUnchecked {
        /// The object.
        topic: String,
    },
    /// It deleted a topic, and no object asks for that, or one asks for the topic.
    TopicDeleted {
        /// The topic.
        topic: String,
    },
    /// It let the object of a topic go that is to be deleted with it, and has not looked at it since
    /// that was asked for.
    LetGoUnchecked {
        /// The object.
        topic: String,
    },
    /// It removed somebody else's finalizer.
    OthersLetGo {
        /// The object.
        object: String,
        /// Theirs.
        finalizer: String,
    },
    /// It made an empty claim in the place of one with records whose loss nobody accepted.
    LossHealedOver {
        /// The claim.
        claim: String,
    },
}

const CLAIMS: &str = "/persistentvolumeclaims";
const TOPICS: &str = "letterbox.dev/kafkatopics";
const CLUSTERS: &str = "letterbox.dev/kafkaclusters";
const TOPIC_FINALIZER: &str = "letterbox.dev/delete-topic";
/// The operators' name for themselves begins with this.
pub(crate) const OPERATOR: &str = "operator";

/// Finds violations in what was written since it looked last.
#[derive(Default)]
pub(crate) struct Monitor {
    version: u64,
    /// What there was when the change was made that is looked at.
    objects: BTreeMap<Key, Arc<Value>>,
    /// Claims whose volumes had records, and are gone or other ones now.
    lost: BTreeSet<Key>,
    /// Claims whose present loss a person has accepted by its name.
    accepted: BTreeSet<Key>,
    /// The claims that there were, by their uids.
    claims: BTreeMap<String, Key>,
    /// The uids of the claims that operators made.
    own: BTreeSet<String>,
    /// The version at which a topic was looked at last, and deleted last, by its name.
    looked: BTreeMap<String, u64>,
    /// The versions at which the objects of topics came to what they are.
    topics: BTreeMap<Key, Since>,
    /// How often an operator took a broker down that served.
    pub(crate) restarts: u64,
    /// How often an operator wrote, leases and events left out.
    pub(crate) writes: u64,
}

/// Since which version of the API server something is so of the object of a topic.
#[derive(Clone, Debug, Default)]
struct Since {
    /// Its generation.
    generation: u64,
    /// It is not ready, or was not before.
    unready: u64,
    /// It is being deleted.
    deleted: u64,
}

impl Monitor {
    /// Looks at every change since the last look, and at what was asked `about` topics.
    pub(crate) fn look(&mut self, world: &World, about: Vec<About>) -> Vec<Violation> {
        let (changes, version) = world.server.changes_since(self.version);
        let from = std::mem::replace(&mut self.version, version);
        let mut found = Vec::new();
        let mut about = about.into_iter().peekable();
        for (at, change) in (from + 1..).zip(changes) {
            while let Some(asked) = about.next_if(|asked| asked.version < at) {
                found.extend(self.of_request(asked));
            }
            if change.key.resource == TOPICS {
                found.extend(self.of_topic(at, &change));
            }
            match change.key.resource.as_str() {
                CLUSTERS => self.accepted.extend(newly_accepted(&change)),
                CLAIMS => self.of_loss(&change),
                _ => {}
            }
            found.extend(others_let_go(&change));
            found.extend(self.of_change(world, &change));
            match change.after.clone() {
                Some(object) => drop(self.objects.insert(change.key.clone(), object)),
                None => drop(self.objects.remove(&change.key)),
            }
        }
        found.extend(about.flat_map(|asked| self.of_request(asked)).collect::<Vec<_>>());
        found
    }

    fn of_request(&mut self, asked: About) -> Vec<Violation> {
        let is_deletion = asked.key == ApiKey::DeleteTopics;
        let mut found = Vec::new();
        for topic in asked.topics {
            self.looked.insert(topic.clone(), asked.version);
            let objects = self
                .objects
                .iter()
                .filter(|(key, object)| key.resource == TOPICS && topic_of(key, object) == topic);
            let (going, standing): (Vec<_>, Vec<_>) = objects.partition(|(_, it)| is_going(it));
            let mut going = going.into_iter();
            let asks = going.any(|(_, object)| goes_with_topic(object)) && standing.is_empty();
            if is_deletion && !asks {
                found.push(Violation::TopicDeleted { topic });
            }
        }
        found
    }

    fn of_topic(&mut self, at: u64, change: &Change) -> Option<Violation> {
        let (before, after) = (change.before.as_deref(), change.after.as_deref());
        let since = self.topics.entry(change.key.clone()).or_default();
        let topic = change.key.name.clone();
        let object = after.or(before)?;
        let generation = |object: &Value| object["metadata"]["generation"].as_u64();
        let is_new =
            before.is_none_or(|before| before["metadata"]["uid"] != object["metadata"]["uid"]);
        if is_new {
            *since = Since { generation: at, unready: at, deleted: 0 };
        }
        let (was_ready, is_ready) = (before.and_then(ready_for), after.and_then(ready_for));
        let looked = self.looked.get(&topic_of(&change.key, object)).copied().unwrap_or(0);
        let mut found = None;
        if change.actor.starts_with(OPERATOR) && is_ready.is_some() && is_ready != was_ready {
            // Of an older generation it is said while the object is paused.
            let is_newest = is_ready == generation(object);
            let from = if is_newest { since.generation.max(since.unready) } else { since.unready };
            found = (looked < from).then_some(Violation::ReadyUnchecked { topic: topic.clone() });
        }
        if before.and_then(generation) != after.and_then(generation) {
            since.generation = at;
        }
        if was_ready.is_some() && is_ready.is_none() {
            since.unready = at;
        }
        if is_going(object) && !before.is_some_and(is_going) {
            since.deleted = at;
        }
        let deleted = since.deleted;
        let is_let_go = before.is_some_and(is_held) && !after.is_some_and(is_held);
        if change.actor.starts_with(OPERATOR) && is_let_go && before.is_some_and(goes_with_topic) {
            let is_unchecked = looked < deleted && self.keeps_topics(&change.key, object);
            return is_unchecked.then_some(Violation::LetGoUnchecked { topic }).or(found);
        }
        found
    }

    /// Whether the topic of an object that goes is to be deleted from its cluster.
    fn keeps_topics(&self, key: &Key, object: &Value) -> bool {
        let name = text(object, "/spec/clusterRef/name").unwrap_or_default();
        let cluster = self.objects.get(&Key::new(CLUSTERS, &key.namespace, name));
        let namespace = self.objects.get(&Key::new("/namespaces", "", &key.namespace));
        let topic = topic_of(key, object);
        let is_other = |(other, it): (&Key, &Arc<Value>)| {
            other.resource == TOPICS
                && other != key
                && topic_of(other, it) == topic
                && !is_going(it)
        };
        cluster.is_some_and(|cluster| !is_going(cluster))
            && !namespace.is_some_and(|namespace| is_going(namespace))
            && !self.objects.iter().any(is_other)
    }

    /// Takes up what becomes of a claim: what somebody else does to it is a loss of its own.
    fn of_loss(&mut self, change: &Change) {
        let key = &change.key;
        let uid = change.after.as_ref().and_then(|claim| text(claim, "/metadata/uid"));
        self.claims.extend(uid.map(|uid| (uid.to_owned(), key.clone())));
        let is_lost = |claim: &Arc<Value>| text(claim, "/status/phase") == Some("Lost");
        let is_lost = change.after.as_ref().is_some_and(is_lost)
            && !change.before.as_ref().is_some_and(is_lost);
        if (is_lost || is_ending(change)) && !change.actor.starts_with(OPERATOR) {
            self.accepted.remove(key);
        }
    }

    fn of_change(&mut self, world: &World, change: &Change) -> Option<Violation> {
        let has_records = |claim: &Value| {
            text(claim, "/metadata/uid").is_some_and(|uid| world.directory_of(uid).is_some())
        };
        let is_claim = change.key.resource == CLAIMS;
        if is_claim && change.after.is_none() && change.before.as_deref().is_some_and(has_records) {
            self.lost.insert(change.key.clone());
        }
        if !change.actor.starts_with(OPERATOR) {
            return None;
        }
        let is_told = ["/leases", "/events"].iter().any(|end| change.key.resource.ends_with(end));
        self.writes += u64::from(!is_told);
        if is_claim {
            let made = change.after.as_ref().filter(|_| change.before.is_none());
            self.own.extend(made.and_then(|it| text(it, "/metadata/uid")).map(ToOwned::to_owned));
            return self.of_claim(change, has_records);
        }
        // A set that is deleted goes after its pod.
        let ended = match change.key.resource.as_str() {
            "/pods" if is_ending(change) => Some(change.clone()),
            "apps/statefulsets" if is_ending(change) => self.pod_of(change),
            _ => None,
        };
        let change = &ended?;
        self.restarts += u64::from(change.before.as_deref().is_some_and(serves));
        let ends_records = self.records_ended(change, has_records);
        let ends_copy = || self.last_copy_ended(world, change);
        ends_records.or_else(ends_copy).or_else(|| self.two_down(world, change))
    }

    /// The end of the pod of a set that is deleted.
    fn pod_of(&self, change: &Change) -> Option<Change> {
        let name = format!("{}-0", change.key.name);
        let key = Key { name, ..Key::new("/pods", &change.key.namespace, "") };
        let before = self.objects.get(&key)?.clone();
        Some(Change { key, before: Some(before), after: None, ..change.clone() })
    }

    /// A claim of the pod that was ended which only the pod held.
    fn records_ended(
        &self,
        change: &Change,
        has_records: impl Fn(&Value) -> bool,
    ) -> Option<Violation> {
        let volumes = change.before.as_ref()?.pointer("/spec/volumes")?.as_array()?;
        let is_lent = |name: &&str| {
            let claim = Key::new(CLAIMS, &change.key.namespace, name);
            self.objects.get(&claim).is_some_and(|claim| {
                has_records(claim)
                    && claim.pointer("/metadata/deletionTimestamp").is_some()
                    && text(claim, "/status/phase") != Some("Lost")
            })
        };
        let mut claims =
            volumes.iter().filter_map(|each| text(each, "/persistentVolumeClaim/claimName"));
        let claim = claims.find(is_lent)?.to_owned();
        Some(Violation::RecordsEnded { ended: change.key.name.clone(), claim })
    }

    /// What the pod that was ended had, and no claim stands for any more.
    fn last_copy_ended(&self, world: &World, change: &Change) -> Option<Violation> {
        let pod = change.before.as_deref()?;
        let stands = |uid: &String| {
            let mut claims = self.objects.iter().filter(|(key, _)| key.resource == CLAIMS);
            claims.any(|(_, claim)| {
                text(claim, "/metadata/uid") == Some(uid)
                    && text(claim, "/status/phase") != Some("Lost")
            })
        };
        let held = world.held_by(text(pod, "/metadata/uid")?);
        let mut used = held.into_iter().filter(|uid| world.directory_of(uid).is_some());
        let is_accepted =
            |uid: &String| self.claims.get(uid).is_some_and(|claim| self.accepted.contains(claim));
        let claim_uid = used.find(|uid| !stands(uid) && !is_accepted(uid))?;
        Some(Violation::LastCopyEnded { ended: change.key.name.clone(), claim_uid })
    }

    fn of_claim(&self, change: &Change, has_records: impl Fn(&Value) -> bool) -> Option<Violation> {
        let claim = change.key.name.clone();
        let object = change.after.as_ref().or(change.before.as_ref())?;
        let cluster = Key::new(
            "letterbox.dev/kafkaclusters",
            &change.key.namespace,
            cluster_of(object).unwrap_or_default(),
        );
        let cluster = self.objects.get(&cluster);
        let accepted = self.accepted.contains(&change.key);
        if is_ending(change) && change.before.as_deref().is_some_and(has_records) {
            let is_own = text(object, "/metadata/uid").is_some_and(|uid| self.own.contains(uid));
            let asks = cluster.is_none_or(|cluster| {
                cluster.pointer("/metadata/deletionTimestamp").is_some()
                    && text(cluster, "/spec/storage/deletionPolicy") == Some("Delete")
            }) && is_own;
            let is_lost = text(object, "/status/phase") == Some("Lost") && accepted;
            return (!asks && !is_lost).then_some(Violation::RecordsDeleted { claim });
        }
        let is_healed_over =
            change.before.is_none() && self.lost.contains(&change.key) && !accepted;
        is_healed_over.then_some(Violation::LossHealedOver { claim })
    }

    /// Another broker of the cluster that did not serve, or was behind, when one that served was
    /// ended.
    fn two_down(&self, world: &World, change: &Change) -> Option<Violation> {
        let ended = change.before.as_ref().filter(|pod| serves(pod))?;
        let cluster = cluster_of(ended)?;
        let is_other = |(key, set): &(&Key, &Arc<Value>)| {
            key.resource == "apps/statefulsets"
                && key.namespace == change.key.namespace
                && cluster_of(set) == Some(cluster)
                && format!("{}-0", key.name) != change.key.name
        };
        let pods = self.objects.iter().filter(is_other).map(|(key, _)| format!("{}-0", key.name));
        let ended = change.key.name.clone();
        let of_pod =
            |pod: &String| self.objects.get(&Key::new("/pods", &change.key.namespace, pod));
        let pods: Vec<String> = pods.collect();
        if let Some(down) = pods.iter().find(|pod| !of_pod(pod).is_some_and(|pod| serves(pod))) {
            return Some(Violation::TwoBrokersDown { ended, down: down.clone() });
        }
        let is_behind = |pod: &&String| !of_pod(pod).is_some_and(|pod| world.is_in_sync(pod));
        let behind = pods.iter().find(is_behind)?.clone();
        Some(Violation::OtherBehind { ended, behind })
    }
}

/// Somebody else's finalizer that an operator removed.
fn others_let_go(change: &Change) -> Option<Violation> {
    let held = |object: &Option<Arc<Value>>| {
        let held = object.as_ref()?.pointer("/metadata/finalizers")?.as_array().cloned();
        Some(held.into_iter().flatten().filter_map(|it| Some(it.as_str()?.to_owned())))
    };
    let is_ours = change.key.resource.starts_with("letterbox.dev/");
    let mut before = held(&change.before).into_iter().flatten().filter(|_| is_ours);
    let after: Vec<String> = held(&change.after).into_iter().flatten().collect();
    let lost = before.find(|it| !it.starts_with("letterbox.dev/") && !after.contains(it));
    let finalizer = lost.filter(|_| change.actor.starts_with(OPERATOR))?;
    Some(Violation::OthersLetGo { object: change.key.name.clone(), finalizer })
}

/// The topic that an object speaks for.
fn topic_of(key: &Key, object: &Value) -> String {
    text(object, "/spec/topicName").unwrap_or(&key.name).to_owned()
}

/// The generation that an object says that it is ready for.
fn ready_for(object: &Value) -> Option<u64> {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let mut ready = conditions.filter(|it| it["type"] == "Ready" && it["status"] == "True");
    ready.next()?["observedGeneration"].as_u64()
}

fn is_going(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
}

fn is_held(object: &Value) -> bool {
    let held = object["metadata"]["finalizers"].as_array();
    held.is_some_and(|held| held.iter().any(|it| it == TOPIC_FINALIZER))
}

/// Whether an object that is being deleted takes its topic along.
fn goes_with_topic(object: &Value) -> bool {
    let pause = &object["metadata"]["annotations"]["letterbox.dev/pause-reconciliation"];
    let is_paused = pause.is_string() && pause != "false";
    is_going(object) && text(object, "/spec/deletionPolicy") == Some("Delete") && !is_paused
}

/// The claim whose loss a person has just accepted: the status has a loss of that name.
fn newly_accepted(change: &Change) -> Option<Key> {
    let path = "/metadata/annotations/letterbox.dev~1accept-data-loss";
    let name = text(change.after.as_deref()?, path)?;
    let before = change.before.as_deref().filter(|before| text(before, path) != Some(name))?;
    let nodes = before["status"]["nodes"].as_array().into_iter().flatten();
    let mut losses = nodes.flat_map(|node| {
        let losses = node["losses"].as_array().into_iter().flatten();
        losses.map(move |loss| (node, loss))
    });
    let (node, loss) = losses.find(|(_, loss)| loss["name"] == name)?;
    let (volume, pool) = (text(loss, "/volume")?, text(node, "/pool")?);
    let claim = format!("{volume}-{}-{pool}-{}-0", change.key.name, node["id"]);
    Some(Key::new(CLAIMS, &change.key.namespace, &claim))
}

fn is_ending(change: &Change) -> bool {
    let ends = |object: &Option<Arc<Value>>| {
        object.as_ref().is_none_or(|object| object.pointer("/metadata/deletionTimestamp").is_some())
    };
    change.before.is_some() && !ends(&change.before) && ends(&change.after)
}

fn serves(pod: &Value) -> bool {
    text(pod, "/status/conditions/0/status") == Some("True")
        && pod.pointer("/metadata/deletionTimestamp").is_none()
}

fn cluster_of(object: &Value) -> Option<&str> {
    object.get("metadata")?.get("labels")?.get("letterbox.dev/cluster")?.as_str()
}
