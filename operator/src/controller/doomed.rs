//! Lets go of `KafkaCluster`s and `KafkaTopic`s whose namespace is being deleted, by their metadata
//! alone: of all when the operator stops, because nobody would do it after that, and at any time of
//! those that this version cannot read. Passes let go of the others.
//!
//! And of `KafkaTopic`s that are being deleted while there is no definition of `KafkaCluster`s: no
//! pass can tell then that their clusters are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, ObjectMeta};
use kube::{Client, Resource, ResourceExt as _};
use tokio::sync::watch;
use tokio::time::Instant;

use super::objects::PAGE;
use super::probe::{self, Health};
use super::{Context, scopes};
use crate::api::{CLUSTER_FINALIZER, KafkaCluster, KafkaTopic, TOPIC_FINALIZER};
use crate::platform::calls::{READ_WITHIN, no_answer};
use crate::platform::kubernetes::said;
use crate::platform::own::Own;

/// How long the answer to "is this namespace being deleted?" holds.
pub(super) const NAMESPACE_FRESH: Duration = Duration::from_secs(5);
/// For so long each look has to find no definition of clusters before a topic is let go for it: one
/// answer may be wrong, and the topic would be left behind in a cluster that is there.
const GONE_AFTER: Duration = Duration::from_secs(30);
/// So many objects are let go at a time.
const AT_ONCE: usize = 16;

/// The namespaces in which an object of ours is held and cannot be read.
#[derive(Default)]
pub(super) struct HeldUnread(Mutex<BTreeSet<String>>);

impl HeldUnread {
    /// Takes up an object that cannot be read.
    pub(super) fn note<K: Resource>(&self, object: &K) {
        let finalizers = object.finalizers().iter();
        let mut ours =
            finalizers.filter(|it| [CLUSTER_FINALIZER, TOPIC_FINALIZER].contains(&it.as_str()));
        if ours.next().is_some() {
            self.with(|held| held.insert(object.namespace().unwrap_or_default()));
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut BTreeSet<String>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Lets go of what is held in the namespaces in which something cannot be read, for ever.
pub(super) async fn let_go_of_unread(context: Arc<Context>) {
    loop {
        tokio::time::sleep(NAMESPACE_FRESH).await;
        let namespaces = context.held_unread.with(|held| held.clone());
        let looks = namespaces.into_iter().map(|namespace| look_at(&context, namespace));
        futures::future::join_all(looks).await;
    }
}

/// Lets go of the topics that are being deleted while there is no definition of clusters, for ever.
pub(super) async fn let_go_without_clusters(
    context: Arc<Context>,
    mut health: watch::Receiver<Health>,
) -> Infallible {
    let client = &context.client;
    let (clusters, topics) = (KafkaCluster::plural(&()), KafkaTopic::plural(&()));
    let mut gone_since = None;
    loop {
        if !matches!(*health.borrow(), Health::Waits(_)) {
            gone_since = None;
        }
        probe::waits(&mut health).await;
        let missing = probe::missing(client).await.unwrap_or_default();
        let is_gone = missing.contains(&clusters) && !missing.contains(&topics);
        gone_since = is_gone.then(|| gone_since.unwrap_or_else(Instant::now));
        if gone_since.is_some_and(|since| since.elapsed() >= GONE_AFTER) {
            let kind = ApiResource::erase::<KafkaTopic>(&());
            let looks = scopes(&context.options).into_iter().map(|scope| {
                let kind = kind.clone();
                async move {
                    let scope = scope.as_deref();
                    let_go_of(client, scope, kind, TOPIC_FINALIZER, Why::NoCluster).await
                }
            });
            futures::future::join_all(looks).await;
        }
        tokio::time::sleep(NAMESPACE_FRESH).await;
    }
}

async fn look_at(context: &Context, namespace: String) {
    if !is_terminating(&context.client, &namespace).await {
        return;
    }
    // What is found while it lets go is noted again.
    context.held_unread.with(|held| held.remove(&namespace));
    if !let_go(&context.client, Some(&namespace)).await {
        context.held_unread.with(|held| held.insert(namespace));
    }
}

/// Lets go of everything in the namespaces of `scope` that are being deleted. False when some of it
/// may still be held.
pub(super) async fn let_go(client: &Client, scope: Option<&str>) -> bool {
    let kinds = [
        (ApiResource::erase::<KafkaCluster>(&()), CLUSTER_FINALIZER),
        (ApiResource::erase::<KafkaTopic>(&()), TOPIC_FINALIZER),
    ];
    let why = Why::NamespaceGoes;
    let of_kinds = kinds.map(|(kind, finalizer)| let_go_of(client, scope, kind, finalizer, why));
    futures::future::join_all(of_kinds).await.into_iter().all(|is_done| is_done)
}

/// Why an object is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Its namespace is being deleted.
    NamespaceGoes,
    /// It is being deleted itself, and there are no clusters.
    NoCluster,
}

async fn let_go_of(
    client: &Client,
    scope: Option<&str>,
    kind: ApiResource,
    finalizer: &'static str,
    why: Why,
) -> bool {
    let held = match held_by(client, scope, &kind, finalizer, why).await {
        Ok(held) => held,
        Err(error) => {
            tracing::warn!(
                error = said(&error),
                namespace = scope,
                "cannot list {}; finalizers of some may not be removed",
                kind.plural
            );
            return false;
        }
    };
    let mut is_done = true;
    for (namespace, objects) in held {
        if why == Why::NamespaceGoes && !is_terminating(client, &namespace).await {
            continue;
        }
        let released =
            objects.into_iter().map(|object| release(client, &kind, object, finalizer, why));
        let released = futures::stream::iter(released).buffer_unordered(AT_ONCE);
        is_done &= released.all(std::future::ready).await;
    }
    is_done
}

/// Whether one object is let go, or gone.
async fn release(
    client: &Client,
    kind: &ApiResource,
    object: ObjectMeta,
    finalizer: &str,
    why: Why,
) -> bool {
    let own = Own::named(client, kind.clone(), &object);
    let released = own.set_finalizer(finalizer, false).await;
    let (kind, name, namespace) = (&*kind.kind, object.name, object.namespace);
    match &released {
        Ok(_) => tracing::info!(
            kind,
            name,
            namespace,
            "removed the finalizer, because {}",
            match why {
                Why::NamespaceGoes => "the namespace is being deleted",
                Why::NoCluster => "the API server has no definition of KafkaClusters",
            }
        ),
        Err(fault) => tracing::warn!(
            kind,
            name,
            namespace,
            fault.message,
            "cannot remove the finalizer: the namespace stays Terminating"
        ),
    }
    released.is_ok()
}

/// The objects of a kind with this finalizer, by namespace: what identifies each.
async fn held_by(
    client: &Client,
    scope: Option<&str>,
    kind: &ApiResource,
    finalizer: &str,
    why: Why,
) -> kube::Result<BTreeMap<String, Vec<ObjectMeta>>> {
    let api: Api<DynamicObject> = match scope {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, kind),
        None => Api::all_with(client.clone(), kind),
    };
    let mut held: BTreeMap<String, Vec<ObjectMeta>> = BTreeMap::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        // Lists in pages are the ones that the client does not bound.
        let page = tokio::time::timeout(READ_WITHIN, api.list_metadata(&params)).await;
        let page = page.unwrap_or_else(|_| Err(no_answer(READ_WITHIN)))?;
        for metadata in page.items.into_iter().map(|object| object.metadata) {
            let goes = why == Why::NamespaceGoes || metadata.deletion_timestamp.is_some();
            if goes && metadata.finalizers.iter().flatten().any(|each| each == finalizer) {
                let ObjectMeta { name, namespace, uid, .. } = metadata;
                let of = namespace.clone().unwrap_or_default();
                held.entry(of).or_default().push(ObjectMeta {
                    name,
                    namespace,
                    uid,
                    ..ObjectMeta::default()
                });
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(held),
        }
    }
}

/// Whether the namespace is being deleted; when that may not be asked, its cluster's own deletion
/// tells it.
pub(super) async fn is_terminating(client: &Client, namespace: &str) -> bool {
    match Api::<Namespace>::all(client.clone()).get_opt(namespace).await {
        Ok(found) => found.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()),
        Err(error) => {
            tracing::debug!(error = said(&error), namespace, "the namespace could not be read");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{Request, Response};
    use kube::client::Body;

    use super::*;
    use crate::platform::calls::Silences;

    #[tokio::test(start_paused = true)]
    async fn a_list_that_is_not_answered_holds_up_no_later_look() {
        let hangs = |_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, std::convert::Infallible>>()
        };
        let client = Silences::default().client(Client::new(tower::service_fn(hangs), "ns"));
        let looked = let_go(&client, Some("ns"));
        let is_done = tokio::time::timeout(READ_WITHIN * 2, looked).await.unwrap();
        assert!(!is_done, "it may still be held");
    }
}
