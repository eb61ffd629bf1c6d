//! The controller of `KafkaCluster`.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use tokio::time::Instant;

use super::topic::is_terminating;
use super::{Context, PassFailed, RESYNC, WAITING, scoped, told};
use crate::admin::KafkaAdmin;
use crate::api::{
    CLUSTER_FINALIZER, DEGRADED, DeletionPolicy, KafkaCluster, READY, find_condition,
};
use crate::desired::objects::{CLUSTER_LABEL, MANAGER};
use crate::platform::kubernetes::{Kubernetes, api_fault, in_time};
use crate::reconcile::{ClusterPass, reconcile_cluster};
use crate::status::Fault;

const KIND: &str = "KafkaCluster";
/// How soon a cluster is looked at again whose object changed during a pass.
const CHANGED: Duration = Duration::from_millis(500);

/// Reconciles the clusters of one namespace, or of all, for ever.
pub(super) async fn run(context: Arc<Context>, namespace: Option<String>) {
    let client = &context.client;
    let scope = namespace.as_deref();
    let ours = watcher::Config::default().labels(CLUSTER_LABEL);
    let by_label = |meta: &kube::api::ObjectMeta| {
        let name = meta.labels.as_ref()?.get(CLUSTER_LABEL)?;
        Some(ObjectRef::<KafkaCluster>::new(name).within(meta.namespace.as_deref()?))
    };
    let metrics = context.metrics.clone();
    let config = kube::runtime::controller::Config::default().concurrency(16);
    Controller::new(scoped::<KafkaCluster>(client, scope), watcher::Config::default())
        .with_config(config)
        .owns(scoped::<StatefulSet>(client, scope), ours.clone())
        .owns(scoped::<Service>(client, scope), ours.clone())
        .owns(scoped::<ConfigMap>(client, scope), ours.clone())
        .owns(scoped::<ServiceAccount>(client, scope), ours.clone())
        .owns(scoped::<PodDisruptionBudget>(client, scope), ours.clone())
        .watches(scoped::<Pod>(client, scope), ours.clone(), move |pod| by_label(&pod.metadata))
        .watches(scoped::<PersistentVolumeClaim>(client, scope), ours, move |claim| {
            by_label(&claim.metadata)
        })
        .run(reconcile, |_, error, _| back_off(error), context)
        .for_each(|result| {
            told(&metrics, KIND, result);
            std::future::ready(())
        })
        .await;
}

/// Whether the operator holds the object until its volumes are deleted.
fn is_held(cluster: &KafkaCluster) -> bool {
    cluster.finalizers().iter().any(|finalizer| finalizer == CLUSTER_FINALIZER)
}

/// Lets go of every cluster whose namespace is being deleted, as
/// [`let_go_of_doomed`](super::topic::let_go_of_doomed) does for topics.
pub(super) async fn let_go_of_doomed(
    client: &Client,
    kubernetes: &Kubernetes,
    scope: Option<&str>,
) {
    let clusters = match scoped::<KafkaCluster>(client, scope).list(&ListParams::default()).await {
        Ok(clusters) => clusters.items.into_iter().filter(is_held),
        Err(error) => {
            tracing::warn!(%error, namespace = scope, "clusters could not be listed; those of a \
                namespace that is being deleted may hold it");
            return;
        }
    };
    for cluster in clusters {
        if is_terminating(client, &cluster.namespace().unwrap_or_default()).await
            && let Err(fault) = kubernetes.let_go(&cluster, true).await
        {
            tracing::warn!(
                cluster = cluster.name_any(),
                namespace = cluster.namespace(),
                fault.message,
                "not let go"
            );
        }
    }
}

fn back_off(_: &PassFailed) -> Action {
    Action::requeue(WAITING)
}

async fn reconcile(
    cluster: Arc<KafkaCluster>,
    context: Arc<Context>,
) -> Result<Action, PassFailed> {
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    // What woke this pass may be behind: its own last status, or a spec that another replica acts
    // on already.
    let api: Api<KafkaCluster> = Api::namespaced(context.client.clone(), &namespace);
    let live = api.get_opt(&name).await;
    let live = live.map_err(|error| PassFailed(api_fault("read the cluster", &error)))?;
    let Some(cluster) = live.filter(|live| live.uid() == cluster.uid()) else {
        return Ok(Action::await_change());
    };
    if cluster.metadata.deletion_timestamp.is_some() {
        context.metrics.set_not_ready(KIND, &namespace, &name, None);
        if is_held(&cluster) {
            let keeps_all = is_terminating(&context.client, &namespace).await;
            context.clusters.let_go(&cluster, keeps_all).await.map_err(PassFailed)?;
        }
        // Everything but the volumes has an owner reference: Kubernetes removes it, and brokers end
        // as they do on any SIGTERM.
        return Ok(Action::await_change());
    }
    let volumes_go = cluster.spec.storage.deletion_policy == DeletionPolicy::Delete;
    if (volumes_go || is_held(&cluster)) && is_terminating(&context.client, &namespace).await {
        // Before the deletion reaches this object: then the operator may have lost the right to let
        // it go. The volumes go with the namespace.
        context.clusters.let_go(&cluster, true).await.map_err(PassFailed)?;
        return Ok(Action::requeue(WAITING));
    }
    let began = Instant::now();
    // The id never changes: a cluster that does not answer later holds up no pass.
    let asks_id = cluster
        .status
        .as_ref()
        .is_some_and(|status| status.ready_replicas > 0 && status.cluster_id.is_none());
    let admin = if asks_id { context.admins.of(&cluster).await } else { None };
    let result = reconcile_cluster(
        &context.clusters,
        &cluster,
        admin.as_deref().map(|admin| admin as &dyn KafkaAdmin),
        &context.now(),
    )
    .await;
    let faulty = result.as_ref().map_or(true, |pass| !pass.faults.is_empty());
    context.metrics.count_pass(KIND, began.elapsed(), faulty);
    let pass = result.map_err(PassFailed)?;

    tell_done(&context, &cluster, &pass).await;
    let ready =
        find_condition(&pass.status.conditions, READY).filter(|ready| ready.status != "True");
    context.metrics.set_not_ready(
        KIND,
        &namespace,
        &name,
        ready.map(|ready| ready.reason.as_str()),
    );
    if cluster.status.as_ref() != Some(&pass.status) {
        if !write_status(&context, &cluster, &pass).await.map_err(PassFailed)? {
            return Ok(Action::requeue(CHANGED));
        }
        tell_news(&context, &cluster, &pass).await;
    }
    Ok(Action::requeue(if pass.is_settled() { RESYNC } else { WAITING }))
}

/// An event for each thing done.
async fn tell_done(context: &Context, cluster: &KafkaCluster, pass: &ClusterPass) {
    let name = cluster.name_any();
    for step in &pass.done {
        tracing::info!(cluster = name, namespace = cluster.namespace(), %step, "done");
        context.events.tell(cluster, false, step.reason(), "Reconcile", &step.to_string()).await;
    }
}

/// An event when what is waited for, or wrong, changes.
async fn tell_news(context: &Context, cluster: &KafkaCluster, pass: &ClusterPass) {
    let name = cluster.name_any();
    let degraded = find_condition(&pass.status.conditions, DEGRADED)
        .filter(|condition| condition.status == "True");
    let is_news = |new: &&Condition| {
        let old = cluster
            .status
            .as_ref()
            .and_then(|status| find_condition(&status.conditions, &new.type_));
        // A fault is told anew when its cause is another one; what is waited for changes too often
        // for that.
        let is_same = |old: &Condition| {
            let is_fault = degraded.is_some_and(|degraded| degraded.reason == new.reason);
            (&old.status, &old.reason) == (&new.status, &new.reason)
                && (!is_fault || old.message == new.message)
        };
        !old.is_some_and(is_same)
    };
    let ready = find_condition(&pass.status.conditions, READY);
    // A fault that keeps nobody from the cluster is told too.
    let fault =
        degraded.filter(|degraded| ready.is_none_or(|ready| ready.reason != degraded.reason));
    for new in ready.into_iter().chain(fault).filter(is_news) {
        let is_bad = degraded.is_some_and(|degraded| degraded.reason == new.reason);
        tracing::info!(
            cluster = name,
            namespace = cluster.namespace(),
            reason = new.reason,
            message = new.message,
            "state changed"
        );
        context.events.tell(cluster, is_bad, &new.reason, "Reconcile", &new.message).await;
    }
}

/// Writes the status, unless the object changed during the pass.
async fn write_status(
    context: &Context,
    cluster: &KafkaCluster,
    pass: &ClusterPass,
) -> Result<bool, Fault> {
    let api: Api<KafkaCluster> =
        Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    let name = cluster.name_any();
    // Only in the place of the status that it follows from: what another replica has recorded since
    // is not taken back.
    let version = cluster.resource_version();
    let patch = json!({
        "apiVersion": "letterbox.dev/v1alpha1",
        "kind": KIND,
        "metadata": {"name": name, "uid": cluster.uid(), "resourceVersion": version},
        "status": pass.status,
    });
    let params = PatchParams::apply(MANAGER).force();
    match in_time(api.patch_status(&name, &params, &Patch::Apply(&patch))).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(false),
        Err(error) => Err(api_fault("write the status", &error)),
    }
}
