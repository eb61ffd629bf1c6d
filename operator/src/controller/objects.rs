//! Our own objects as the API server has them, also those that this version cannot read: such a one
//! is told, and keeps no other from being looked after.

use std::collections::BTreeMap;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use kube::api::{Api, ListParams, ObjectMeta, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::watcher::{self, Event};
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::mpsc;

use super::Context;
use crate::api::{
    ACCEPT_LOSS_ANNOTATION, CLUSTER_CONFIG_MAX, CLUSTER_FINALIZER, ClusterRef, DeletionPolicy,
    KafkaCluster, KafkaClusterSpec, KafkaTopic, KafkaTopicSpec, PAUSE_ANNOTATION, READY, Resources,
    TOPIC_CONFIG_MAX, TOPIC_FINALIZER, condition, too_large,
};
use crate::platform::kubernetes::said;

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

    /// Its configuration, and how many bytes that may have.
    fn config(&self) -> (&BTreeMap<String, String>, usize);

    /// Drops what is read from the API server where it is needed, and not from the cache.
    fn reduce(&mut self);
}

impl Ours for KafkaCluster {
    fn bare(metadata: ObjectMeta) -> Self {
        Self { metadata, ..Self::new("", KafkaClusterSpec::default()) }
    }

    fn config(&self) -> (&BTreeMap<String, String>, usize) {
        (&self.spec.config, CLUSTER_CONFIG_MAX)
    }

    fn reduce(&mut self) {
        self.spec.config = BTreeMap::new();
        self.spec.resources = Resources::default();
    }
}

impl Ours for KafkaTopic {
    fn bare(metadata: ObjectMeta) -> Self {
        let spec = KafkaTopicSpec {
            cluster_ref: ClusterRef::default(),
            topic_name: None,
            partitions: None,
            replicas: 1,
            config: BTreeMap::new(),
            deletion_policy: DeletionPolicy::default(),
        };
        Self { metadata, ..Self::new("", spec) }
    }

    fn config(&self) -> (&BTreeMap<String, String>, usize) {
        (&self.spec.config, TOPIC_CONFIG_MAX)
    }

    fn reduce(&mut self) {}
}

/// So many objects are listed at a time: each may have 1.5 MB, and a page is in memory twice while it
/// is read.
const PAGE: u32 = 20;

/// A watch whose lists come in pages of a bounded size.
pub(super) fn paged() -> watcher::Config {
    watcher::Config::default().page_size(PAGE)
}

/// Every object that `api` has, of which nothing is known but its metadata.
pub(super) async fn listed<K: Ours>(api: &Api<K>) -> kube::Result<Vec<K>> {
    let mut all = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list_metadata(&params).await?;
        all.extend(page.items.into_iter().map(|object| K::bare(reduced(object.metadata))));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// What is kept of the metadata of our objects. Labels, managed fields and what others annotate may
/// be much, and nothing is decided by them.
fn reduced(metadata: ObjectMeta) -> ObjectMeta {
    const ANNOTATION_LEN_MAX: usize = 256;
    let annotations = metadata.annotations.unwrap_or_default().into_iter();
    let annotations = annotations
        .filter(|(name, _)| [PAUSE_ANNOTATION, ACCEPT_LOSS_ANNOTATION].contains(&name.as_str()))
        .map(|(name, value)| (name, value.chars().take(ANNOTATION_LEN_MAX).collect()))
        .collect::<BTreeMap<_, _>>();
    let mut finalizers = metadata.finalizers.unwrap_or_default();
    finalizers.retain(|name| [CLUSTER_FINALIZER, TOPIC_FINALIZER].contains(&name.as_str()));
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

/// What is kept of an object; what is larger than may be is not understood.
fn understood<K: Ours>(object: DeserializeGuard<K>) -> Result<K, Box<InvalidObject>> {
    let mut object = object.0.map_err(Box::new)?;
    let (config, max) = object.config();
    let too_large = too_large(config, max);
    *object.meta_mut() = reduced(std::mem::take(object.meta_mut()));
    match too_large {
        None => {
            object.reduce();
            Ok(object)
        }
        Some(error) => Err(Box::new(InvalidObject { error, metadata: object.meta().clone() })),
    }
}

/// An object that this version cannot read, and why.
pub(super) type NotUnderstood<K> = (K, String);

/// So many of them wait to be told at most; a watch that begins again tells the others.
const UNTOLD_MAX: usize = 1024;

/// What `api` has and will have. What cannot be read is as if it were not there, and goes to
/// `not_understood`, if anybody listens.
pub(super) fn watched<K: Ours>(
    api: Api<DeserializeGuard<K>>,
    not_understood: Option<mpsc::Sender<NotUnderstood<K>>>,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static {
    let bare = move |found: Box<InvalidObject>, is_news: bool| {
        let object = K::bare(reduced(found.metadata));
        if let Some(told) = not_understood.as_ref().filter(|_| is_news) {
            // One that does not fit is told by the next watch.
            let _ = told.try_send((object.clone(), found.error));
        }
        object
    };
    let read = move |event: Event<DeserializeGuard<K>>| match event {
        Event::Init => Some(Event::Init),
        Event::InitDone => Some(Event::InitDone),
        Event::InitApply(object) => match understood(object) {
            Ok(object) => Some(Event::InitApply(object)),
            Err(found) => {
                bare(found, true);
                None
            }
        },
        Event::Apply(object) => Some(match understood(object) {
            Ok(object) => Event::Apply(object),
            Err(found) => Event::Delete(bare(found, true)),
        }),
        Event::Delete(object) => {
            Some(Event::Delete(understood(object).unwrap_or_else(|found| bare(found, false))))
        }
    };
    kube::runtime::watcher(api, paged())
        .map_ok(read)
        .filter_map(|event| std::future::ready(event.transpose()))
}

/// Tells each object that cannot be read, in its status and by an event, once for each change of
/// its spec; for ever.
pub(super) async fn tell_not_understood<K: Ours>(
    context: Arc<Context>,
    kind: &'static str,
    mut found: mpsc::Receiver<NotUnderstood<K>>,
) {
    let mut told: BTreeMap<(Option<String>, String), Option<i64>> = BTreeMap::new();
    while let Some((object, error)) = found.recv().await {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let generation = object.meta().generation;
        let key = (object.uid(), name.clone());
        if told.get(&key) == Some(&generation) {
            continue;
        }
        if told.len() >= UNTOLD_MAX {
            told.clear();
        }
        told.insert(key, generation);
        let reason = "NotUnderstood";
        let message = format!(
            "this version of the operator cannot read the object, and leaves everything about it \
             as it is: {error}"
        );
        tracing::warn!(kind, name, namespace, error, "an object cannot be read");
        context.metrics.set_not_ready(kind, &namespace, &name, Some(reason));
        let ready = condition(READY, false, reason, message.clone(), generation, context.now());
        let api: Api<DeserializeGuard<K>> = Api::namespaced(context.client.clone(), &namespace);
        let patch = Patch::Merge(json!({"status": {"conditions": [ready]}}));
        if let Err(error) = api.patch_status(&name, &PatchParams::default(), &patch).await {
            tracing::warn!(error = said(&error), name, namespace, "that was not written");
        }
        context.events.tell(&object, true, reason, "Read", &message).await;
    }
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

/// A channel for what cannot be read.
pub(super) fn untold<K>() -> (mpsc::Sender<NotUnderstood<K>>, mpsc::Receiver<NotUnderstood<K>>) {
    mpsc::channel(UNTOLD_MAX)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::Value;

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
            understood(serde_json::from_value::<DeserializeGuard<KafkaTopic>>(guard).unwrap())
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
