//! A model of the Kubernetes API server with the controllers that an operator relies on, for an
//! operator that runs as it is: its own client, watches, leases.
//!
//! [`ApiServer`] keeps objects as a real one does: versions, uids, generations, finalizers,
//! preconditions, server-side apply with its managed fields, watches. [`faults::Faults`] decides per
//! client what becomes of a request: refused, met by a conflict, carried out and never answered, or
//! the end of the client. [`world::World`] plays Kubernetes: it makes and ends pods, binds claims,
//! collects what has lost its owner. [`monitor`] looks at every write of an operator (C14 of the
//! checkers).
//!
//! It validates no schema: `operator/tests/apiserver.rs` does that with a real one.

mod clock;
pub(crate) mod faults;
pub(crate) mod kafka;
pub(crate) mod monitor;
mod patch;
mod serve;
pub(crate) mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;

pub(crate) use self::clock::VirtualClock;
use self::faults::Faults;

/// Names an object: its resource as `group/plural` (`/pods`, `apps/statefulsets`), its namespace,
/// its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// `group/plural`.
    pub(crate) resource: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
}

impl Key {
    /// The key of an object.
    #[must_use]
    pub(crate) fn new(resource: &str, namespace: &str, name: &str) -> Self {
        let text = ToOwned::to_owned;
        Self { resource: text(resource), namespace: text(namespace), name: text(name) }
    }
}

/// One change of one object.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// Who asked for it.
    pub(crate) actor: String,
    /// Of what.
    pub(crate) key: Key,
    /// What it was; `None`: it is new.
    pub(crate) before: Option<Arc<Value>>,
    /// What it is; `None`: it is gone.
    pub(crate) after: Option<Arc<Value>>,
}

/// Why a request is refused: the status code and Kubernetes' word for it.
pub(crate) type Refused = (u16, &'static str, String);

struct State {
    objects: BTreeMap<Key, Arc<Value>>,
    /// What `MANAGER` applied last to each object, by the part that it applied (`""`, `status`).
    applied: BTreeMap<(Key, String), Value>,
    /// Every change; the version that it made is its index plus one.
    changes: Vec<Arc<Change>>,
    made: u64,
    clock: VirtualClock,
    /// What admission makes of an object that is written.
    admission: Option<Admission>,
    /// How many requests of clients asked for a change, leases and events left out.
    asked: u64,
    /// How often our own objects of each namespace were listed.
    lists: BTreeMap<String, u64>,
    /// The objects that a client would have changed by an older version than it wrote last itself.
    behind: Vec<Key>,
    /// The resources that are not defined.
    undefined: BTreeSet<String>,
}

/// Changes an object before it is kept.
pub(crate) type Admission = fn(&Key, &mut Value);

/// The API server. Clones are the same one.
#[derive(Clone)]
pub(crate) struct ApiServer {
    state: Arc<Mutex<State>>,
    version: watch::Sender<u64>,
}

impl Default for ApiServer {
    fn default() -> Self {
        let state = State {
            objects: BTreeMap::new(),
            applied: BTreeMap::new(),
            changes: Vec::new(),
            made: 0,
            clock: VirtualClock::default(),
            admission: None,
            asked: 0,
            lists: BTreeMap::new(),
            behind: Vec::new(),
            undefined: BTreeSet::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), version: watch::Sender::new(0) }
    }
}

impl ApiServer {
    /// A client of the name `actor`.
    #[must_use]
    pub(crate) fn client(&self, actor: &str, faults: &Faults) -> kube::Client {
        serve::client(self.clone(), actor.to_owned(), faults.clone())
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = f(&mut state);
        let version = state.version();
        self.version.send_if_modified(|known| std::mem::replace(known, version) != version);
        result
    }

    /// What time it is.
    #[must_use]
    pub(crate) fn clock(&self) -> VirtualClock {
        self.with(|state| state.clock)
    }

    /// The object, as it is.
    #[must_use]
    pub(crate) fn get(&self, key: &Key) -> Option<Value> {
        self.with(|state| state.object(key))
    }

    /// Every object of a resource in every namespace.
    #[must_use]
    pub(crate) fn all(&self, resource: &str) -> Vec<(Key, Arc<Value>)> {
        self.with(|state| {
            let of_resource = state.objects.iter().filter(|(key, _)| key.resource == resource);
            of_resource.map(|(key, object)| (key.clone(), object.clone())).collect()
        })
    }

    /// Every change from `version` on, and the version after them.
    #[must_use]
    pub(crate) fn changes_since(&self, version: u64) -> (Vec<Arc<Change>>, u64) {
        self.with(|state| {
            let from = usize::try_from(version).unwrap_or(usize::MAX).min(state.changes.len());
            (state.changes[from..].to_vec(), state.version())
        })
    }

    /// From now on `admission` changes what is written.
    pub(crate) fn admit_with(&self, admission: Admission) {
        self.with(|state| state.admission = Some(admission));
    }

    /// How many requests of clients asked for a change, also of those that changed nothing; leases
    /// and events left out.
    #[must_use]
    pub(crate) fn writes_asked(&self) -> u64 {
        self.with(|state| state.asked)
    }

    /// How often our own objects of a namespace were listed.
    pub(crate) fn lists(&self, namespace: &str) -> u64 {
        self.with(|state| state.lists.get(namespace).copied().unwrap_or_default())
    }

    /// The objects of a resource that a client would have changed by an older version than it wrote
    /// last itself.
    #[must_use]
    pub(crate) fn written_behind(&self, resource: &str) -> Vec<Key> {
        self.with(|state| {
            let of_resource = state.behind.iter().filter(|key| key.resource == resource);
            of_resource.cloned().collect()
        })
    }

    /// Takes the definition of a resource away, with all of its objects, or brings it back.
    pub(crate) fn define(&self, resource: &str, is_defined: bool) {
        self.serve(resource, is_defined);
        for (key, _) in self.all(resource).into_iter().filter(|_| !is_defined) {
            self.remove("kubernetes", &key);
        }
    }

    /// Answers about a resource, or as if it were not defined; its objects stay.
    pub(crate) fn serve(&self, resource: &str, is_served: bool) {
        self.with(|state| match is_served {
            true => drop(state.undefined.remove(resource)),
            false => drop(state.undefined.insert(resource.to_owned())),
        });
    }

    /// Makes an object.
    ///
    /// # Errors
    /// When there is one of that name.
    pub(crate) fn create(&self, actor: &str, key: &Key, object: Value) -> Result<Value, Refused> {
        self.with(|state| state.create(actor, key, object))
    }

    /// Changes an object that is there, as its owner would: no precondition, no part.
    pub(crate) fn edit(&self, actor: &str, key: &Key, change: impl FnOnce(&mut Value)) {
        self.with(|state| {
            if let Some(before) = state.object(key) {
                let mut object = before.clone();
                change(&mut object);
                patch::disown(&mut object, &before);
                state.store(actor, key, Some(object));
            }
        });
    }

    /// Deletes an object, as far as its finalizers and, for a pod, its end allow.
    ///
    /// # Errors
    /// When it is not there, or `uid` or `version` are not its own.
    pub(crate) fn delete(
        &self,
        actor: &str,
        key: &Key,
        uid: Option<&str>,
        version: Option<&str>,
    ) -> Result<Value, Refused> {
        self.with(|state| state.delete(actor, key, uid, version))
    }

    /// Removes an object, whatever holds it.
    pub(crate) fn remove(&self, actor: &str, key: &Key) {
        self.with(|state| state.store(actor, key, None));
    }
}

fn conflict(what: &str) -> Refused {
    (409, "Conflict", format!("the object has been modified: {what}"))
}

fn not_found(key: &Key) -> Refused {
    (404, "NotFound", format!("{} \"{}\" not found", key.resource, key.name))
}

/// A text inside an object.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer).and_then(Value::as_str)
}

impl State {
    fn object(&self, key: &Key) -> Option<Value> {
        self.objects.get(key).map(|object| Value::clone(object))
    }

    fn version(&self) -> u64 {
        self.changes.len() as u64
    }

    /// Puts `after` in the place of what is there. What does not change makes no version.
    fn store(&mut self, actor: &str, key: &Key, after: Option<Value>) -> Option<Value> {
        let before = self.objects.get(key).cloned();
        // After the managers of fields are known, as in Kubernetes.
        let admitted = after.map(|mut object| {
            if let Some(admission) = self.admission {
                admission(key, &mut object);
            }
            object
        });
        let mut after = admitted.filter(|object| {
            // Whatever held it is gone.
            object.pointer("/metadata/deletionTimestamp").is_none()
                || object
                    .pointer("/metadata/finalizers")
                    .and_then(Value::as_array)
                    .is_some_and(|held| !held.is_empty())
                || key.resource == "/pods"
        });
        if before.as_deref() == after.as_ref() {
            return after;
        }
        if let Some(object) = &mut after {
            let generation = |object: &Value| object.pointer("/metadata/generation").cloned();
            let changed = before.as_ref().is_none_or(|before| before["spec"] != object["spec"]);
            let old = before.as_deref().and_then(generation).and_then(|old| old.as_u64());
            let generation = old.unwrap_or(0) + u64::from(changed);
            object["metadata"]["generation"] = json!(generation.max(1));
            object["metadata"]["resourceVersion"] = json!((self.version() + 1).to_string());
            self.objects.insert(key.clone(), Arc::new(object.clone()));
        } else {
            self.objects.remove(key);
            self.applied.retain(|(of, _), _| of != key);
        }
        let (actor, key) = (actor.to_owned(), key.clone());
        let kept = after.clone().map(Arc::new);
        self.changes.push(Arc::new(Change { actor, key, before, after: kept }));
        after
    }

    fn create(&mut self, actor: &str, key: &Key, mut object: Value) -> Result<Value, Refused> {
        if self.objects.contains_key(key) {
            let message = format!("{} \"{}\" already exists", key.resource, key.name);
            return Err((409, "AlreadyExists", message));
        }
        self.made += 1;
        let uid = format!("00000000-0000-4000-8000-{:012}", self.made);
        object["metadata"]["uid"] = json!(uid);
        object["metadata"]["name"] = json!(key.name);
        object["metadata"]["namespace"] = json!(key.namespace);
        object["metadata"]["creationTimestamp"] = json!(self.clock.now());
        if key.resource == "/persistentvolumeclaims" {
            object["metadata"]["finalizers"] = json!(["kubernetes.io/pvc-protection"]);
        }
        self.store(actor, key, Some(object)).ok_or_else(|| not_found(key))
    }

    fn delete(
        &mut self,
        actor: &str,
        key: &Key,
        uid: Option<&str>,
        version: Option<&str>,
    ) -> Result<Value, Refused> {
        let mut object = self.object(key).ok_or_else(|| not_found(key))?;
        for (wanted, at) in [(uid, "/metadata/uid"), (version, "/metadata/resourceVersion")] {
            if wanted.is_some() && wanted != text(&object, at) {
                return Err(conflict("a precondition failed"));
            }
        }
        let is_ending = object.pointer("/metadata/deletionTimestamp").is_some();
        if !is_ending {
            object["metadata"]["deletionTimestamp"] = json!(self.clock.now());
            self.store(actor, key, Some(object.clone()));
        }
        Ok(object)
    }

    fn patch(
        &mut self,
        actor: &str,
        key: &Key,
        part: &str,
        body: &Value,
        is_apply: bool,
    ) -> Result<Value, Refused> {
        let live = self.object(key);
        for at in ["/metadata/uid", "/metadata/resourceVersion"] {
            let wanted = text(body, at);
            if wanted.is_some() && live.as_ref().is_some_and(|live| text(live, at) != wanted) {
                let last = self.changes.iter().rev().find(|change| change.key == *key);
                let is_own = last.is_some_and(|last| last.actor == actor);
                self.behind.extend(is_own.then(|| key.clone()));
                return Err(conflict("a precondition failed"));
            }
        }
        if !is_apply {
            let before = live.ok_or_else(|| not_found(key))?;
            let mut object = before.clone();
            patch::merge(&mut object, body);
            patch::disown(&mut object, &before);
            return Ok(self.store(actor, key, Some(object.clone())).unwrap_or(object));
        }
        let fixed = ["/spec/serviceName", "/spec/selector"].into_iter();
        let mut fixed = fixed.filter(|_| key.resource == "apps/statefulsets");
        let differs = |at: &str| live.as_ref().is_some_and(|it| it.pointer(at) != body.pointer(at));
        if let Some(field) = fixed.find(|at| differs(at)) {
            return Err((422, "Invalid", format!("{field}: it may not be changed")));
        }
        let is_new = live.is_none();
        let mut object = match live {
            Some(live) => live,
            None if part.is_empty() => json!({
                "apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": {},
            }),
            None => return Err(not_found(key)),
        };
        let mut wanted = body.clone();
        // What names the object is nobody's field.
        for name in ["name", "namespace", "uid", "resourceVersion"] {
            wanted["metadata"].as_object_mut().and_then(|metadata| metadata.remove(name));
        }
        let slot = (key.clone(), part.to_owned());
        let before = self.applied.get(&slot).cloned().unwrap_or_else(|| json!({}));
        patch::apply(&mut object, &before, &wanted);
        object["metadata"]["managedFields"] = json!([{
            "manager": "letterbox-operator", "operation": "Apply",
            "fieldsV1": patch::fields(&wanted, ""),
        }]);
        self.applied.insert(slot, wanted);
        if is_new {
            return self.create(actor, key, object);
        }
        Ok(self.store(actor, key, Some(object.clone())).unwrap_or(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::new("/persistentvolumeclaims", "ns", "a")
    }

    #[test]
    fn a_deletion_waits_for_finalizers_and_honours_preconditions() {
        let server = ApiServer::default();
        let made = server.create("a", &key(), json!({"metadata": {}})).unwrap();
        assert_eq!(
            server.create("a", &key(), json!({"metadata": {}})).unwrap_err().1,
            "AlreadyExists"
        );
        assert_eq!(server.delete("a", &key(), Some("other"), None).unwrap_err().1, "Conflict");
        server.delete("a", &key(), text(&made, "/metadata/uid"), None).unwrap();
        assert!(server.get(&key()).is_some(), "it is protected");
        server.edit("kubernetes", &key(), |claim| claim["metadata"]["finalizers"] = json!([]));
        assert_eq!(server.get(&key()), None);
        assert_eq!(server.changes_since(0).0.len(), 3);
    }

    #[test]
    fn an_apply_takes_away_what_it_no_longer_asks_for_and_nothing_else() {
        let server = ApiServer::default();
        let key = Key::new("/services", "ns", "a");
        let apply = |body: Value| {
            server.with(|state| state.patch("operator", &key, "", &body, true)).unwrap()
        };
        apply(
            json!({"kind": "Service", "metadata": {"labels": {"a": "1"}}, "spec": {"ports": [{"port": 1, "name": "x"}, {"port": 2}]}}),
        );
        server.edit("person", &key, |service| service["spec"]["ports"][0]["nodePort"] = json!(7));
        let first = server.changes_since(0).1;
        let same = json!({"kind": "Service", "metadata": {"labels": {"a": "1"}}, "spec": {"ports": [{"port": 1, "name": "x"}, {"port": 2}]}});
        apply(same);
        assert_eq!(server.changes_since(0).1, first, "no version for no change");
        let now =
            apply(json!({"kind": "Service", "metadata": {}, "spec": {"ports": [{"port": 1}]}}));
        assert_eq!(now["spec"]["ports"], json!([{"port": 1, "nodePort": 7}]));
        assert_eq!(now.pointer("/metadata/labels/a"), None);
        assert_eq!(now["metadata"]["generation"], 3);
    }
}
