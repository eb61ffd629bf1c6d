//! Watches, each at its own pace: the kube runtime lets all streams of a controller wait for the one
//! that failed.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Resource as _;
use kube::api::{Api, ApiResource, DynamicObject, ObjectMeta};
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::{self, Event};

use super::Context;
use super::objects::paged;
use crate::api::KafkaCluster;
use crate::desired::objects::CLUSTER_LABEL;
use crate::platform::kubernetes::{said, words_of};
use crate::platform::unwatched::FORGOTTEN_AFTER;

/// The first pause before a watch that failed is tried again; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);
const _: () = assert!(PAUSE_MAX.as_secs() < FORGOTTEN_AFTER.as_secs());

/// `events` about objects of the plural `what`, without failures: a pause after one is this watch's
/// own, and a refusal is told.
pub(super) fn apart<T: Send + 'static>(
    context: &Arc<Context>,
    what: &str,
    scope: Option<&str>,
    events: impl Stream<Item = watcher::Result<Event<T>>> + Send + 'static,
) -> BoxStream<'static, Event<T>> {
    let (context, what, scope) = (context.clone(), what.to_owned(), scope.map(ToOwned::to_owned));
    let begin = (events.boxed(), 0_u32);
    let paced = futures::stream::unfold(begin, move |(mut events, mut failed)| {
        let (context, what, scope) = (context.clone(), what.clone(), scope.clone());
        async move {
            loop {
                match events.next().await? {
                    // A list is yet to be read.
                    Ok(event @ Event::Init) => return Some((event, (events, failed))),
                    Ok(event) => {
                        context.clusters.unwatched.works(&what, scope.as_deref());
                        return Some((event, (events, 0)));
                    }
                    Err(error) => note(&context, &what, scope.as_deref(), &error),
                }
                tokio::time::sleep(PAUSE_MAX.min(PAUSE_MIN * 2_u32.pow(failed.min(8)))).await;
                failed = failed.saturating_add(1);
            }
        }
    });
    paced.boxed()
}

fn note(context: &Context, what: &str, scope: Option<&str>, error: &watcher::Error) {
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    let refusal = match error {
        InitialListFailed(error @ kube::Error::Api(status))
        | WatchStartFailed(error @ kube::Error::Api(status))
            // It is too old, or too much at once.
            if ![410, 429].contains(&status.code) =>
        {
            error
        }
        other => {
            tracing::debug!(error = words_of(other), what, "watched again");
            return;
        }
    };
    context.metrics.count_refused_watch(what);
    if context.clusters.unwatched.refused(what, scope, &said(refusal)) {
        tracing::warn!(error = said(refusal), what, scope, "cannot watch a resource; retrying");
    }
}

/// The clusters whose objects have changed, of all kinds but volume claims: a watch for each kind.
pub(super) fn changed(
    context: &Arc<Context>,
    scope: Option<&str>,
) -> Vec<BoxStream<'static, ObjectRef<KafkaCluster>>> {
    let kinds = [
        ApiResource::erase::<StatefulSet>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<ConfigMap>(&()),
        ApiResource::erase::<ServiceAccount>(&()),
        ApiResource::erase::<PodDisruptionBudget>(&()),
        ApiResource::erase::<Pod>(&()),
    ];
    let watch = |kind: ApiResource| {
        let client = context.client.clone();
        let api: Api<PartialObjectMeta<DynamicObject>> = match scope {
            Some(namespace) => Api::namespaced_with(client, namespace, &kind),
            None => Api::all_with(client, &kind),
        };
        let events = watcher::watcher(api, paged().labels(CLUSTER_LABEL));
        let events = apart(context, &kind.plural, scope, events).flat_map(|event| {
            let clusters = match event {
                Event::Apply(object) | Event::InitApply(object) | Event::Delete(object) => {
                    clusters_of(&object.metadata)
                }
                Event::Init | Event::InitDone => Vec::new(),
            };
            futures::stream::iter(clusters)
        });
        events.boxed()
    };
    kinds.into_iter().map(watch).collect()
}

/// The clusters that an object is of: by its controller, and by its label, which may be gone or
/// another one.
pub(super) fn clusters_of(metadata: &ObjectMeta) -> Vec<ObjectRef<KafkaCluster>> {
    let Some(namespace) = &metadata.namespace else { return Vec::new() };
    let owners = metadata.owner_references.iter().flatten();
    let mut owners = owners
        .filter(|owner| owner.controller == Some(true) && owner.kind == KafkaCluster::kind(&()));
    let owner = owners.next().map(|owner| owner.name.as_str());
    let label = metadata.labels.as_ref().and_then(|labels| labels.get(CLUSTER_LABEL));
    let label = label.map(String::as_str).filter(|label| Some(*label) != owner);
    let names = owner.into_iter().chain(label);
    names.map(|name| ObjectRef::new(name).within(namespace)).collect()
}
