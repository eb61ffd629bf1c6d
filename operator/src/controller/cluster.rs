//! The controller of `KafkaCluster`.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::Api;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{Controller, PredicateConfig, WatchStreamExt as _, reflector};
use kube::{Resource as _, ResourceExt as _};
use serde_json::json;
use tokio::time::Instant;

use super::doomed::is_terminating;
use super::objects::{Ours as _, news_of, paged, tell_later, tell_not_understood, untold, watched};
use super::owner::{OTHER_OPERATOR, not_ours, ours_since, while_ours};
use super::passes::{named, tell_failed};
use super::{Context, PassFailed, RESYNC, WAITING, scoped, told_gone, watches};
use crate::admin::KafkaAdmin;
use crate::api::{
    CLUSTER_FINALIZER, DEGRADED, DeletionPolicy, KafkaCluster, READY, find_condition,
    needless_setting,
};
use crate::desired::objects::CLUSTER_LABEL;
use crate::platform::kubernetes::api_fault;
use crate::platform::own::Own;
use crate::reconcile::{ClusterPass, reconcile_cluster};
use crate::status::Fault;

const KIND: &str = "KafkaCluster";
/// How soon a cluster is looked at again of which something was written down.
const REMEMBERED: Duration = Duration::from_millis(20);
/// How soon a cluster is looked at again whose object changed during a pass.
const CHANGED: Duration = Duration::from_millis(500);
/// How soon a cluster is looked at again after the first pass that ended with an error.
const FAILED: Duration = Duration::from_secs(1);

/// Reconciles the clusters of one namespace, or of all, for ever.
pub(super) async fn run(context: Arc<Context>, namespace: Option<String>) {
    let client = &context.client;
    let scope = namespace.as_deref();
    let kubernetes = context.clusters.clone();
    let claims = scoped::<PersistentVolumeClaim>(client, scope);
    let claims = watcher(claims, paged().labels(CLUSTER_LABEL));
    let claims = watches::apart(&context, "persistentvolumeclaims", scope, claims);
    let claims = claims.flat_map(move |event| {
        if let Event::Delete(claim) = &event {
            kubernetes.saw_end(claim);
        }
        let clusters = match event {
            Event::Apply(claim) | Event::InitApply(claim) | Event::Delete(claim) => {
                watches::clusters_of(&claim.metadata)
            }
            Event::Init | Event::InitDone => Vec::new(),
        };
        futures::stream::iter(clusters)
    });
    let config = kube::runtime::controller::Config::default().concurrency(16);
    let (told, not_understood) = untold();
    let teller = context.clone();
    let (store, writer) = reflector::store();
    // What a pass writes itself wakes no other one: a message that changes all the time would be
    // written all the time.
    let tell = move |found| tell_later(&teller, &told, found);
    let seen = watched::<KafkaCluster>(scoped(client, scope), tell);
    let seen = watches::apart(&context, &KafkaCluster::plural(&()), scope, seen)
        .map(Ok::<_, watcher::Error>)
        .reflect(writer)
        .inspect_ok(told_gone(&context, KIND))
        .applied_objects()
        .predicate_filter(news_of, PredicateConfig::default());
    let reader = store.clone();
    let taken = context.owners.changed(KIND, scope).filter_map(move |(namespace, name)| {
        let cluster = ObjectRef::new(&name).within(&namespace);
        std::future::ready(reader.get(&cluster).map(|_| cluster))
    });
    let controller = Controller::for_stream(seen, store)
        .with_config(config)
        .reconcile_on(taken)
        .reconcile_on(futures::stream::select_all(watches::changed(&context, scope)))
        .reconcile_on(claims)
        .reconcile_on(context.looked.asked(namespace.clone()))
        .reconcile_all_on(context.clusters.unwatched.changes());
    let passes = controller
        .run(reconcile, |cluster, _, context| back_off(&cluster, &context), context.clone())
        .for_each(|result| {
            super::told(&context, KIND, result);
            std::future::ready(())
        });
    futures::join!(passes, tell_not_understood(context.clone(), KIND, scope, not_understood));
}

/// Whether the operator holds the object until its volumes are deleted.
fn is_held(cluster: &KafkaCluster) -> bool {
    cluster.finalizers().iter().any(|finalizer| finalizer == CLUSTER_FINALIZER)
}

fn back_off(cluster: &KafkaCluster, context: &Context) -> Action {
    let is_first = context.passes.is_first_failure(KIND, cluster);
    Action::requeue(if is_first { FAILED } else { WAITING })
}

async fn reconcile(
    cluster: Arc<KafkaCluster>,
    context: Arc<Context>,
) -> Result<Action, PassFailed> {
    let (began, object) = (Instant::now(), named(KIND, &*cluster));
    if let Some(fault) = not_ours(&context, &object).await {
        let is_others = fault.reason == OTHER_OPERATOR;
        context.metrics.count_pass(KIND, began.elapsed(), !is_others);
        tell_failed(&context, KIND, &*cluster, &fault).await;
        // The log has one line about it.
        return if is_others { Ok(back_off(&cluster, &context)) } else { Err(PassFailed(fault)) };
    }
    let passes = while_ours(&context, &object.1, reconcile_ours(cluster, &context)).await;
    passes.unwrap_or(Ok(Action::requeue(FAILED)))
}

async fn reconcile_ours(
    mut cluster: Arc<KafkaCluster>,
    context: &Context,
) -> Result<Action, PassFailed> {
    let began = Instant::now();
    let result = pass(&mut cluster, context).await;
    let faulty = result.as_ref().map_or(true, |ended| ended.as_ref().is_some_and(|it| it.faulty));
    context.metrics.count_pass(KIND, began.elapsed(), faulty);
    match result {
        Ok(Some(ended)) => {
            context.passes.worked(KIND, &*cluster);
            Ok(ended.next)
        }
        Ok(None) => {
            context.gone(&named(KIND, &*cluster));
            Ok(Action::await_change())
        }
        Err(fault) => {
            tell_failed(context, KIND, &*cluster, &fault).await;
            Err(PassFailed(fault))
        }
    }
}

/// What a pass without an error came to.
struct Ended {
    /// When the next one is.
    next: Action,
    /// Whether something that it tried did not work.
    faulty: bool,
}

/// One pass over `cluster`, which becomes what the API server has; `None` when it is gone.
async fn pass(cluster: &mut Arc<KafkaCluster>, context: &Context) -> Result<Option<Ended>, Fault> {
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    // What woke this pass may be behind: its own last status, or a spec that another replica acts
    // on already.
    let api: Api<KafkaCluster> = Api::namespaced(context.client.clone(), &namespace);
    let began = Instant::now();
    let live = api.get_opt(&name).await.map_err(|error| api_fault("read the cluster", &error))?;
    let Some(live) = live.filter(|live| live.uid() == cluster.uid()) else { return Ok(None) };
    *cluster = Arc::new(live);
    if let Some(next) = goes_with_namespace(context, cluster).await? {
        // One that was let go is as good as gone.
        let is_let_go = cluster.metadata.deletion_timestamp.is_some();
        return Ok((!is_let_go).then_some(Ended { next, faulty: false }));
    }
    // The id never changes: a cluster that does not answer later holds up no pass.
    let asks_id = cluster
        .status
        .as_ref()
        .is_some_and(|status| status.ready_replicas > 0 && status.cluster_id.is_none());
    let admin = if asks_id { context.admins.of(cluster).await } else { None };
    let pass = reconcile_cluster(
        &context.clusters,
        cluster,
        admin.as_deref().map(|admin| admin as &dyn KafkaAdmin),
        &context.now(),
    )
    .await?;
    let faulty = !pass.faults.is_empty();
    // Before it is written: topics act on it from now on, whatever becomes of the status.
    let since = ours_since(context, &namespace, began).unwrap_or(began);
    context.looked.note(cluster, (since, began), &pass.observed, &pass.status);
    let next = tell(context, cluster, pass).await?;
    Ok(Some(Ended { next, faulty }))
}

/// What is done about a cluster whose namespace is being deleted; `None` for any other.
async fn goes_with_namespace(
    context: &Context,
    cluster: &KafkaCluster,
) -> Result<Option<Action>, Fault> {
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let volumes_go = cluster.spec.storage.deletion_policy == DeletionPolicy::Delete;
    if !(volumes_go || is_held(cluster)) || !is_terminating(&context.client, &namespace).await {
        return Ok(None);
    }
    context.metrics.set_not_ready(KIND, &namespace, &name, None);
    // Before the deletion reaches this object: then the operator may have lost the right to let it
    // go. The volumes go with the namespace.
    context.clusters.release(cluster).await?;
    Ok(Some(match cluster.metadata.deletion_timestamp {
        Some(_) => Action::await_change(),
        None => Action::requeue(WAITING),
    }))
}

/// Says what a pass found and did; and when the next one is.
async fn tell(
    context: &Context,
    cluster: &KafkaCluster,
    pass: ClusterPass,
) -> Result<Action, Fault> {
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let ready =
        find_condition(&pass.status.conditions, READY).filter(|ready| ready.status != "True");
    // Before any event: these are words about it, and may take as long as they like.
    let is_news = cluster.status.as_ref() != Some(&pass.status);
    let written = match is_news {
        true => write_status(context, cluster, &pass).await,
        false => Ok(true),
    };
    tell_done(context, cluster, &pass).await;
    let is_written = written?;
    let reason = ready.map(|ready| ready.reason.as_str());
    context.metrics.set_not_ready(KIND, &namespace, &name, reason);
    if !is_written {
        return Ok(Action::requeue(CHANGED));
    }
    if is_news {
        tell_news(context, cluster, &pass).await;
    }
    // What is remembered now may be what the next step waited for.
    let new = &pass.status;
    let is_new = cluster.status.as_ref().is_none_or(|old| {
        (&old.nodes, &old.cluster_id, &old.default_image)
            != (&new.nodes, &new.cluster_id, &new.default_image)
    });
    Ok(Action::requeue(match pass.is_settled() {
        _ if is_new => REMEMBERED,
        true => RESYNC,
        false => WAITING,
    }))
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
    let seen = cluster.status.as_ref().and_then(|status| status.observed_generation);
    if let Some(needless) = needless_setting(&cluster.spec)
        && seen != cluster.metadata.generation
    {
        context.events.tell(cluster, false, "SettingNeedless", "Reconcile", &needless).await;
    }
}

/// Writes the status, unless the object changed during the pass.
async fn write_status(
    context: &Context,
    cluster: &KafkaCluster,
    pass: &ClusterPass,
) -> Result<bool, Fault> {
    let had_waits = !cluster.waits().is_empty();
    let own = Own::of(&context.client, cluster);
    Ok(own.write_status(json!(pass.status), had_waits).await?.is_some())
}
