//! Our own objects as the API server has them, also those that this version cannot read: such a one
//! is told, and keeps no other from being looked after.

use std::collections::BTreeMap;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::watcher::{self, Event};
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::mpsc;

use super::Context;
use crate::api::{
    ClusterRef, DeletionPolicy, KafkaCluster, KafkaClusterSpec, KafkaTopic, KafkaTopicSpec, READY,
    condition,
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
}

impl Ours for KafkaCluster {
    fn bare(metadata: ObjectMeta) -> Self {
        Self { metadata, ..Self::new("", KafkaClusterSpec::default()) }
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
    let bare = move |found: InvalidObject, is_news: bool| {
        let object = K::bare(found.metadata);
        if let Some(told) = not_understood.as_ref().filter(|_| is_news) {
            // One that does not fit is told by the next watch.
            let _ = told.try_send((object.clone(), found.error));
        }
        object
    };
    let read = move |event: Event<DeserializeGuard<K>>| match event {
        Event::Init => Some(Event::Init),
        Event::InitDone => Some(Event::InitDone),
        Event::InitApply(DeserializeGuard(Ok(object))) => Some(Event::InitApply(object)),
        Event::Apply(DeserializeGuard(Ok(object))) => Some(Event::Apply(object)),
        Event::Delete(DeserializeGuard(Ok(object))) => Some(Event::Delete(object)),
        Event::InitApply(DeserializeGuard(Err(found))) => {
            bare(found, true);
            None
        }
        Event::Apply(DeserializeGuard(Err(found))) => Some(Event::Delete(bare(found, true))),
        Event::Delete(DeserializeGuard(Err(found))) => Some(Event::Delete(bare(found, false))),
    };
    kube::runtime::watcher(api, watcher::Config::default())
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

    use super::*;

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
