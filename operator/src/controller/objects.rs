//! Our own objects as the API server has them, also those that this version cannot read: such a one
//! is told, and keeps no other from being looked after.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher::{self, Event};
use kube::{Resource, ResourceExt as _};
use letterbox_env::Gather;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Context;
use super::owner::{not_ours, while_ours};
use crate::api::{
    ACCEPT_LOSS_ANNOTATION, CLUSTER_CONFIG_MAX, CLUSTER_FINALIZER, ClusterRef, DeletionPolicy,
    KafkaCluster, KafkaClusterSpec, KafkaTopic, KafkaTopicSpec, PAUSE_ANNOTATION, Resources,
    TOPIC_CONFIG_MAX, TOPIC_FINALIZER, WaitStatus, is_paused, too_large,
};
use crate::platform::kubernetes::said;
use crate::status::{Fault, not_understood, only};

/// `KafkaCluster` or `KafkaTopic`.
pub(super) trait Ours:
    Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
    + Clone
    + std::fmt::Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// An object of which nothing is known but this.
    fn bare(metadata: ObjectMeta) -> Self;

    /// The subject of what is told about all of it.
    const SUBJECT: &'static str;

    /// What its status says.
    fn conditions(&self) -> &[Condition];

    /// What its status says that is waited for.
    fn waits(&self) -> &[WaitStatus];

    /// Its configuration, and how many bytes that may have.
    fn config(&self) -> (&BTreeMap<String, String>, usize);

    /// Drops what is read from the API server where it is needed, and not from the cache.
    fn reduce(&mut self);

    /// A status with these words beside its conditions, if it has such.
    fn phase(_: &str, _: &Time) -> Value {
        json!({})
    }
}

impl Ours for KafkaCluster {
    const SUBJECT: &'static str = "cluster";

    fn bare(metadata: ObjectMeta) -> Self {
        Self { metadata, ..Self::new("", KafkaClusterSpec::default()) }
    }

    fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default()
    }

    fn waits(&self) -> &[WaitStatus] {
        self.status.as_ref().map(|status| status.waits.as_slice()).unwrap_or_default()
    }

    fn config(&self) -> (&BTreeMap<String, String>, usize) {
        (&self.spec.config, CLUSTER_CONFIG_MAX)
    }

    fn reduce(&mut self) {
        self.spec.config = BTreeMap::new();
        self.spec.resources = Resources::default();
    }

    fn phase(words: &str, now: &Time) -> Value {
        json!({"phase": words, "phaseSince": now})
    }
}

impl Ours for KafkaTopic {
    const SUBJECT: &'static str = "topic";

    fn bare(metadata: ObjectMeta) -> Self {
        let spec = KafkaTopicSpec {
            cluster_ref: ClusterRef::default(),
            topic_name: None,
            partitions: None,
            replicas: None,
            config: BTreeMap::new(),
            deletion_policy: DeletionPolicy::default(),
        };
        Self { metadata, ..Self::new("", spec) }
    }

    fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default()
    }

    fn waits(&self) -> &[WaitStatus] {
        self.status.as_ref().map(|status| status.waits.as_slice()).unwrap_or_default()
    }

    fn config(&self) -> (&BTreeMap<String, String>, usize) {
        (&self.spec.config, TOPIC_CONFIG_MAX)
    }

    fn reduce(&mut self) {}
}

/// So many objects are listed at a time: each may have 1.5 MB, and a page is in memory twice while it
/// is read.
pub(super) const PAGE: u32 = 20;

/// A watch whose lists come in pages of a bounded size.
pub(super) fn paged() -> watcher::Config {
    watcher::Config::default().page_size(PAGE)
}

/// What is kept of the metadata of our objects. Labels, managed fields and what others annotate may
/// be much, and nothing is decided by them.
fn reduced(metadata: ObjectMeta) -> ObjectMeta {
    const ANNOTATION_LEN_MAX: usize = 256;
    const FINALIZER_LEN_MAX: usize = 128;
    const OTHERS_MAX: usize = 8;
    let annotations = metadata.annotations.unwrap_or_default().into_iter();
    let annotations = annotations
        .filter(|(name, _)| [PAUSE_ANNOTATION, ACCEPT_LOSS_ANNOTATION].contains(&name.as_str()))
        .map(|(name, value)| (name, value.chars().take(ANNOTATION_LEN_MAX).collect()))
        .gather::<BTreeMap<_, _>>();
    // Those of others are named to who waits for them.
    let (mut finalizers, others): (Vec<String>, Vec<String>) = metadata
        .finalizers
        .unwrap_or_default()
        .into_iter()
        .partition(|name| [CLUSTER_FINALIZER, TOPIC_FINALIZER].contains(&name.as_str()));
    let is_short = |name: &String| name.len() <= FINALIZER_LEN_MAX;
    finalizers.extend(others.into_iter().filter(is_short).take(OTHERS_MAX));
    ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        resource_version: metadata.resource_version,
        generation: metadata.generation,
        creation_timestamp: metadata.creation_timestamp,
        deletion_timestamp: metadata.deletion_timestamp,
        finalizers: Some(finalizers).filter(|finalizers| !finalizers.is_empty()),
        annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
        ..ObjectMeta::default()
    }
}

/// An object that this version cannot read.
pub(super) struct NotUnderstood<K> {
    /// Its metadata; nothing else is known of it but its names.
    pub(super) bare: K,
    pub(super) names: Names,
    /// What its status says.
    pub(super) told: ToldBefore,
    /// Why.
    pub(super) error: String,
    /// Whether it was deleted.
    pub(super) is_gone: bool,
}

/// What the status of an object says, as far as it can be read and is not large.
#[derive(Clone, Debug, Default)]
pub(super) struct ToldBefore {
    conditions: Vec<Condition>,
    waits: Vec<WaitStatus>,
}

impl ToldBefore {
    fn of(raw: &Value) -> Self {
        fn list<T: DeserializeOwned>(raw: &Value, pointer: &str) -> Vec<T> {
            const LEN_MAX: usize = 8 << 10;
            let all = raw.pointer(pointer).filter(|all| all.to_string().len() <= LEN_MAX);
            all.and_then(|all| Vec::deserialize(all).ok()).unwrap_or_default()
        }
        Self { conditions: list(raw, "/status/conditions"), waits: list(raw, "/status/waits") }
    }
}

/// The topic that an object speaks for, as far as that can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// The cluster; `None`: it may be any.
    pub(super) cluster: Option<String>,
    /// The topic in it; `None`: it may be any.
    pub(super) topic: Option<String>,
}

impl Names {
    pub(super) fn of(raw: &Value) -> Self {
        const LEN_MAX: usize = 253;
        let text = |pointer: &str| {
            let text = raw.pointer(pointer)?.as_str()?;
            (text.len() <= LEN_MAX).then(|| text.to_owned())
        };
        let topic = match raw.pointer("/spec/topicName") {
            // A name that was read once cannot have changed.
            Some(_) => text("/spec/topicName").or_else(|| text("/status/topicName")),
            None => text("/metadata/name"),
        };
        Self { cluster: text("/spec/clusterRef/name"), topic }
    }
}

/// What is kept of an object that this version reads, or cannot read. What is larger than may be is
/// not understood. (`DeserializeGuard` keeps the metadata alone.)
#[derive(Clone, Debug)]
pub(super) struct Guarded<K>(Result<K, Box<Unread>>);

#[derive(Clone, Debug)]
pub(super) struct Unread {
    metadata: ObjectMeta,
    names: Names,
    told: ToldBefore,
    error: String,
}

impl<'de, K: Ours> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Value::deserialize(deserializer)?;
        let (metadata, error) = match K::deserialize(&raw) {
            Ok(mut object) => {
                let metadata = reduced(std::mem::take(object.meta_mut()));
                let (config, max) = object.config();
                let Some(error) = too_large(config, max) else {
                    *object.meta_mut() = metadata;
                    object.reduce();
                    return Ok(Self(Ok(object)));
                };
                (metadata, error)
            }
            Err(error) => {
                let partial =
                    PartialObjectMeta::<K>::deserialize(&raw).map_err(D::Error::custom)?;
                (reduced(partial.metadata), error.to_string())
            }
        };
        let (names, told) = (Names::of(&raw), ToldBefore::of(&raw));
        Ok(Self(Err(Box::new(Unread { metadata, names, told, error }))))
    }
}

impl<K: Ours> Guarded<K> {
    /// Whether an operator has written a status.
    pub(super) fn has_status(&self) -> bool {
        let told = self.0.as_ref().map_or_else(|unread| &*unread.told.conditions, K::conditions);
        !told.is_empty()
    }
}

impl<K> Guarded<K> {
    /// The object.
    ///
    /// # Errors
    /// Why this version cannot read it.
    pub(super) fn understood(self) -> Result<K, Fault> {
        self.0.map_err(|unread| Fault { reason: NOT_UNDERSTOOD.to_owned(), message: unread.error })
    }
}

impl<K: Ours> Resource for Guarded<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|unread| &unread.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|unread| &mut unread.metadata, K::meta_mut)
    }
}

/// What is said of an object that this version cannot read.
pub(super) const NOT_UNDERSTOOD: &str = "NotUnderstood";
/// So many of them wait to be told, and are known, at most; a watch that begins again tells the others.
const UNTOLD_MAX: usize = 1024;

/// What `api` has and will have. What cannot be read is as if it were not there, and goes to
/// `not_understood` before that.
pub(super) fn watched<K: Ours>(
    api: Api<Guarded<K>>,
    mut not_understood: impl FnMut(NotUnderstood<K>) + Send + 'static,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static {
    let mut tell = move |unread: Unread, is_gone: bool| {
        let Unread { metadata, names, told, error } = unread;
        let bare = K::bare(metadata);
        not_understood(NotUnderstood { bare: bare.clone(), names, told, error, is_gone });
        bare
    };
    let mut known = KnownUnread::default();
    let read = move |event: Event<Guarded<K>>| {
        for (namespace, name) in known.take(&event) {
            let metadata = ObjectMeta { namespace, name, ..ObjectMeta::default() };
            let (names, told) = (Names::default(), ToldBefore::default());
            tell(Unread { metadata, names, told, error: String::new() }, true);
        }
        understood(event, &mut tell)
    };
    kube::runtime::watcher(api, paged())
        .map_ok(read)
        .filter_map(|event| std::future::ready(event.transpose()))
}

/// An event about objects that can be read; the others are told.
fn understood<K>(
    event: Event<Guarded<K>>,
    tell: &mut impl FnMut(Unread, bool) -> K,
) -> Option<Event<K>> {
    match event {
        Event::Init => Some(Event::Init),
        Event::InitDone => Some(Event::InitDone),
        Event::InitApply(Guarded(Ok(object))) => Some(Event::InitApply(object)),
        Event::Apply(Guarded(Ok(object))) => Some(Event::Apply(object)),
        Event::Delete(Guarded(Ok(object))) => Some(Event::Delete(object)),
        Event::InitApply(Guarded(Err(found))) => {
            tell(*found, false);
            None
        }
        Event::Apply(Guarded(Err(found))) => Some(Event::Delete(tell(*found, false))),
        Event::Delete(Guarded(Err(found))) => Some(Event::Delete(tell(*found, true))),
    }
}

/// Namespace and name of an object.
type Place = (Option<String>, Option<String>);

/// The objects of a watch that cannot be read.
#[derive(Default)]
struct KnownUnread {
    known: BTreeSet<Place>,
    /// Those that the list which is being read has so far.
    listed: BTreeSet<Place>,
}

impl KnownUnread {
    /// Takes up an event. Answers with those that went while nobody watched: a list is without
    /// them.
    fn take<K: Ours>(&mut self, event: &Event<Guarded<K>>) -> BTreeSet<Place> {
        let place = |object: &Guarded<K>| {
            let metadata = object.meta();
            (metadata.namespace.clone(), metadata.name.clone())
        };
        match event {
            Event::Init => self.listed.clear(),
            Event::InitDone => {
                let before = std::mem::replace(&mut self.known, std::mem::take(&mut self.listed));
                return before.difference(&self.known).cloned().gather();
            }
            Event::InitApply(object) if object.0.is_err() => {
                self.known.insert(place(object));
                self.listed.insert(place(object));
            }
            Event::Apply(object) if object.0.is_err() => drop(self.known.insert(place(object))),
            // A pass, or the end of the object, tells what is so from now on.
            Event::InitApply(object) | Event::Apply(object) | Event::Delete(object) => {
                self.known.remove(&place(object));
            }
        }
        BTreeSet::new()
    }
}

/// Tells each object that cannot be read, in its status and by an event, once for each change of
/// its spec; for ever.
pub(super) async fn tell_not_understood<K: Ours>(
    context: Arc<Context>,
    kind: &'static str,
    scope: Option<&str>,
    mut found: mpsc::Receiver<NotUnderstood<K>>,
) {
    /// The uid and generation of an object when it was told.
    type Told = (Option<String>, Option<i64>);
    // By namespace and name; `None` where another operator acts.
    let mut known: BTreeMap<(String, String), Option<Told>> = BTreeMap::new();
    let mut changed = std::pin::pin!(context.owners.changed(kind, scope));
    loop {
        let found = tokio::select! {
            found = found.recv() => match found {
                Some(found) => found,
                None => return,
            },
            Some(at) = changed.next() => match known.get_mut(&at) {
                None => continue,
                Some(told) => {
                    *told = None;
                    let Some(found) = read_again(&context, &at).await else { continue };
                    found
                }
            },
        };
        let at = (found.bare.namespace().unwrap_or_default(), found.bare.name_any());
        let object = (kind, at.0.clone(), at.1.clone());
        if found.is_gone {
            known.remove(&at);
            context.owners.forget(&object);
            context.metrics.set_not_ready(kind, &at.0, &at.1, None);
            continue;
        }
        // Those that do not fit are told by the next watch.
        if known.len() >= UNTOLD_MAX {
            known.clear();
        }
        let told = known.entry(at.clone()).or_default();
        if not_ours(&context, &object).await.is_some() {
            context.metrics.set_not_ready(kind, &at.0, &at.1, None);
            continue;
        }
        let now = Some((found.bare.uid(), found.bare.meta().generation));
        if *told != now {
            *told = now;
            while_ours(&context, &at.0, tell_unread(&context, kind, found)).await;
        }
    }
}

/// An object that could not be read when it was read last, if it cannot be read now.
async fn read_again<K: Ours>(
    context: &Context,
    (namespace, name): &(String, String),
) -> Option<NotUnderstood<K>> {
    let api: Api<Guarded<K>> = Api::namespaced(context.client.clone(), namespace);
    // The watch brings what is so then.
    let live = api.get_opt(name).await.ok()??;
    let Unread { metadata, names, told, error } = *live.0.err()?;
    Some(NotUnderstood { bare: K::bare(metadata), names, told, error, is_gone: false })
}

async fn tell_unread<K: Ours>(context: &Context, kind: &'static str, found: NotUnderstood<K>) {
    let NotUnderstood { bare: object, told, error, .. } = found;
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    tracing::warn!(kind, name, namespace, error, "cannot parse an object; it is not reconciled");
    context.metrics.set_not_ready(kind, &namespace, &name, Some(NOT_UNDERSTOOD));
    let message = format!(
        "this version of the operator cannot parse the object, so that it is not reconciled: \
         {error}"
    );
    let fault = Fault { reason: NOT_UNDERSTOOD.to_owned(), message };
    let (now, is_paused, generation) =
        (context.now(), is_paused(object.meta()), object.meta().generation);
    let conditions = not_understood(told.conditions, generation, &now, is_paused, &fault);
    let mut status = K::phase("Not understood", &now);
    status["observedGeneration"] = json!(generation);
    status["conditions"] = json!(conditions);
    status["waits"] = json!(only(&told.waits, K::SUBJECT, &fault, &now));
    let api: Api<DeserializeGuard<K>> = Api::namespaced(context.client.clone(), &namespace);
    let patch = Patch::Merge(json!({ "status": status }));
    if let Err(error) = api.patch_status(&name, &PatchParams::default(), &patch).await {
        tracing::warn!(
            error = said(&error),
            name,
            namespace,
            "cannot write the status of an object that cannot be parsed"
        );
    }
    context.events.tell(&object, true, NOT_UNDERSTOOD, "Read", &fault.message).await;
}

/// What about an object a pass is for, as a hash: its own status is no news.
pub(super) fn news_of<K: Resource>(object: &K) -> Option<u64> {
    let mut hash = std::hash::DefaultHasher::new();
    let metadata = object.meta();
    let deleted = metadata.deletion_timestamp.as_ref().map(|time| time.0.as_second());
    (&metadata.uid, metadata.generation, deleted).hash(&mut hash);
    (&metadata.finalizers, &metadata.annotations).hash(&mut hash);
    Some(hash.finish())
}

/// A channel for what cannot be read, and what of that is gone.
pub(super) fn untold<K>() -> (mpsc::Sender<NotUnderstood<K>>, mpsc::Receiver<NotUnderstood<K>>) {
    mpsc::channel(UNTOLD_MAX)
}

/// Leaves an object that cannot be read to [`tell_not_understood`], and notes whether it is held.
pub(super) fn tell_later<K: Ours>(
    context: &Context,
    told: &mpsc::Sender<NotUnderstood<K>>,
    found: NotUnderstood<K>,
) {
    if !found.is_gone {
        context.held_unread.note(&found.bare);
    }
    // One that does not fit is told by the next watch.
    let _ = told.try_send(found);
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    #[test]
    fn nothing_is_kept_of_an_object_but_what_passes_read_and_one_that_is_too_large_is_told() {
        let object = |config: Value| {
            let words = "x".repeat(1 << 20);
            let metadata = json!({
                "name": "a", "namespace": "ns", "uid": "1", "generation": 2,
                "labels": {"a": words}, "managedFields": [{"manager": words}],
                "finalizers": [TOPIC_FINALIZER, words],
                "annotations": {PAUSE_ANNOTATION: words, "other": words},
            });
            let spec = json!({"clusterRef": {"name": "c"}, "config": config});
            let guard = json!({"metadata": metadata, "spec": spec});
            serde_json::from_value::<Guarded<KafkaTopic>>(guard).unwrap().0
        };
        let kept = object(json!({"a": "1"})).unwrap();
        let text = serde_json::to_string(&kept).unwrap();
        assert!(text.len() < 1000, "{}", text.len());
        assert!(crate::api::is_paused(&kept.metadata) && crate::plan::has_finalizer(&kept));
        assert_eq!((kept.metadata.generation, &*kept.spec.config["a"]), (Some(2), "1"));
        let found = object(json!({"a": "1".repeat(TOPIC_CONFIG_MAX)})).unwrap_err();
        assert!(found.error.contains("may have 32768"), "{}", found.error);
        assert!(serde_json::to_string(&found.metadata).unwrap().len() < 1000);
    }

    #[test]
    fn an_object_that_cannot_be_read_is_known_until_it_can_be_or_is_gone() {
        let object = |name: &str, is_read: bool| {
            let config = if is_read { json!({}) } else { json!(7) };
            let spec = json!({"clusterRef": {"name": "c"}, "config": config});
            let guard = json!({"metadata": {"name": name}, "spec": spec});
            serde_json::from_value::<Guarded<KafkaTopic>>(guard).unwrap()
        };
        let mut known = KnownUnread::default();
        let mut listed = |objects: &[(&str, bool)], then: Vec<Event<Guarded<KafkaTopic>>>| {
            let all = objects.iter().map(|(name, is_read)| object(name, *is_read));
            let all = all.map(Event::InitApply).chain([Event::InitDone]).chain(then);
            let gone = std::iter::once(Event::Init).chain(all).flat_map(|it| known.take(&it));
            gone.filter_map(|(_, name)| name).collect::<Vec<_>>()
        };
        assert_eq!(listed(&[("a", false), ("b", true)], vec![]), Vec::<String>::new());
        assert_eq!(listed(&[("b", false), ("a", false)], vec![]), Vec::<String>::new());
        let again = vec![Event::Apply(object("b", false)), Event::Apply(object("c", false))];
        assert_eq!(listed(&[("b", true)], again), ["a"]);
        let ends = vec![Event::Delete(object("b", false)), Event::Apply(object("c", true))];
        assert_eq!(listed(&[("b", false), ("c", false)], ends), Vec::<String>::new());
        assert_eq!(listed(&[], vec![]), Vec::<String>::new());
    }

    #[test]
    fn a_status_is_no_news() {
        let now = Time(Timestamp::UNIX_EPOCH);
        let metadata =
            ObjectMeta { creation_timestamp: Some(now.clone()), ..ObjectMeta::default() };
        let mut of = KafkaTopic::bare(metadata);
        let before = news_of(&of);
        of.status = Some(crate::api::KafkaTopicStatus::default());
        of.metadata.resource_version = Some("2".into());
        assert_eq!(news_of(&of), before);
        of.metadata.deletion_timestamp = Some(now);
        assert_ne!(news_of(&of), before);
    }
}
