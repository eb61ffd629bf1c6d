//! The controller of `KafkaTopic`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{Controller, watcher};
use kube::{Client, ResourceExt as _};
use letterbox_env::{BoxFuture, Env};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Context, PassFailed, RESYNC, WAITING, scoped, told};
use crate::admin::{ClientAdmin, KafkaAdmin as _};
use crate::api::{DEGRADED, DeletionPolicy, KafkaCluster, KafkaTopic, KafkaTopicStatus, READY, TOPIC_FINALIZER, find_condition, is_true};
use crate::desired::objects::MANAGER;
use crate::desired::{bootstrap_name, internal_listener};
use crate::plan::{ClusterState, TopicFacts, has_finalizer};
use crate::platform::kubernetes::api_fault;
use crate::reconcile::{TopicHome, TopicPass, reconcile_topic};
use crate::status::Fault;

const KIND: &str = "KafkaTopic";
/// How long one admin call may take, retries included.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// One Kafka client per cluster, shared by all of its topics.
pub(crate) struct Admins {
    env: Env,
    known: Mutex<BTreeMap<String, Arc<ClientAdmin>>>,
}

impl Admins {
    pub(crate) fn new(env: Env) -> Self {
        Self { env, known: Mutex::default() }
    }

    /// The client of `cluster`, by its bootstrap service; `None` when it has no internal listener.
    pub(crate) async fn of(&self, cluster: &KafkaCluster) -> Option<Arc<ClientAdmin>> {
        let port = internal_listener(&cluster.spec.listeners)?.port;
        let address = format!("{}.{}.svc:{port}", bootstrap_name(&cluster.name_any()), cluster.namespace().unwrap_or_default());
        let mut known = self.known.lock().await;
        let make = || Arc::new(ClientAdmin::new(self.env.clone(), address.clone(), CALL_TIMEOUT));
        Some(known.entry(address.clone()).or_insert_with(make).clone())
    }
}

/// What a pass over a topic needs.
struct TopicContext {
    shared: Arc<Context>,
    topics: Store<KafkaTopic>,
}

/// Reconciles the topics of one namespace, or of all, for ever.
pub(super) async fn run(context: Arc<Context>, namespace: Option<String>) {
    let client = &context.client;
    let scope = namespace.as_deref();
    let controller = Controller::new(scoped::<KafkaTopic>(client, scope), watcher::Config::default())
        .with_config(kube::runtime::controller::Config::default().concurrency(16));
    let topics = controller.store();
    let metrics = context.metrics.clone();
    let of_cluster = topics.clone();
    let own_context = Arc::new(TopicContext { shared: context.clone(), topics });
    controller
        .watches(scoped::<KafkaCluster>(client, scope), watcher::Config::default(), move |cluster| {
            let (name, namespace) = (cluster.name_any(), cluster.namespace());
            let is_its = |topic: &Arc<KafkaTopic>| topic.namespace() == namespace && topic.spec.cluster_ref.name == name;
            of_cluster.state().into_iter().filter(is_its).map(|topic| ObjectRef::from_obj(&*topic)).collect::<Vec<_>>()
        })
        .run(reconcile, |_, _, _| Action::requeue(WAITING), own_context)
        .for_each(|result| {
            told(&metrics, KIND, result);
            std::future::ready(())
        })
        .await;
}

async fn reconcile(topic: Arc<KafkaTopic>, context: Arc<TopicContext>) -> Result<Action, PassFailed> {
    let shared = &context.shared;
    let began = Instant::now();
    let result = pass(&topic, &context).await;
    let faulty = result.as_ref().map_or(true, |pass| pass.as_ref().is_some_and(|pass| pass.fault.is_some()));
    shared.metrics.count_pass(KIND, began.elapsed(), faulty);
    let (namespace, name) = (topic.namespace().unwrap_or_default(), topic.name_any());
    let Some(pass) = result.map_err(PassFailed)? else {
        shared.metrics.set_not_ready(KIND, &namespace, &name, None);
        return Ok(Action::await_change());
    };
    let ready = find_condition(&pass.status.conditions, READY).filter(|ready| ready.status != "True" && !pass.released);
    shared.metrics.set_not_ready(KIND, &namespace, &name, ready.map(|ready| ready.reason.as_str()));
    tell(shared, &topic, &pass).await;
    if pass.released {
        return Ok(Action::await_change());
    }
    let settled = pass.fault.is_none() && pass.plan.wait.is_none();
    Ok(Action::requeue(if settled { RESYNC } else { WAITING }))
}

async fn pass(topic: &KafkaTopic, context: &TopicContext) -> Result<Option<TopicPass>, Fault> {
    let shared = &context.shared;
    let namespace = topic.namespace().unwrap_or_default();
    let deleting = topic.metadata.deletion_timestamp.is_some();
    let held = has_finalizer(topic);
    if deleting && !held {
        return Ok(None);
    }
    let clusters: Api<KafkaCluster> = Api::namespaced(shared.client.clone(), &namespace);
    let cluster = clusters.get_opt(&topic.spec.cluster_ref.name).await.map_err(|error| api_fault("read the cluster", &error))?;
    let mut state = ClusterState::of(cluster.as_ref());
    let admin = match &cluster {
        Some(cluster) => shared.admins.of(cluster).await,
        None => None,
    };
    let admin = admin.unwrap_or_else(|| Arc::new(ClientAdmin::new(shared.env.clone(), String::new(), CALL_TIMEOUT)));
    let mut live = None;
    if state == ClusterState::Ready {
        match admin.describe_topic(&topic.kafka_name()).await {
            Ok(seen) => live = seen,
            Err(error) => state = ClusterState::Unreachable(error.to_string()),
        }
    }
    // A namespace that is being deleted loses its pods first: its clusters stop serving before its topics are reached.
    let may_hold = held || topic.spec.deletion_policy == DeletionPolicy::Delete;
    let asks = may_hold && (deleting || !held || state != ClusterState::Ready);
    let namespace_terminating = asks && is_terminating(&shared.client, &namespace).await;
    let facts = TopicFacts { cluster: state, topic: live, other_owner: other_owner(topic, &context.topics), namespace_terminating };
    let home = KubernetesHome { client: shared.client.clone() };
    reconcile_topic(&home, &*admin, topic, &facts, &shared.now()).await.map(Some)
}

/// The oldest other object that speaks for the same topic, if it is older than this one.
fn other_owner(topic: &KafkaTopic, topics: &Store<KafkaTopic>) -> Option<String> {
    let age = |topic: &KafkaTopic| (topic.creation_timestamp(), topic.uid());
    let same = |other: &Arc<KafkaTopic>| {
        other.namespace() == topic.namespace()
            && other.uid() != topic.uid()
            && other.metadata.deletion_timestamp.is_none()
            && other.spec.cluster_ref == topic.spec.cluster_ref
            && other.kafka_name() == topic.kafka_name()
    };
    let oldest = topics.state().into_iter().filter(same).min_by_key(|other| age(other))?;
    // While this one is being deleted, any other that still stands for the topic keeps it.
    (topic.metadata.deletion_timestamp.is_some() || age(&oldest) < age(topic)).then(|| oldest.name_any())
}

/// Whether the namespace is being deleted; when that may not be asked, its cluster's own deletion tells it.
async fn is_terminating(client: &Client, namespace: &str) -> bool {
    match Api::<Namespace>::all(client.clone()).get_opt(namespace).await {
        Ok(found) => found.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()),
        Err(error) => {
            tracing::debug!(%error, namespace, "the namespace could not be read");
            false
        }
    }
}

/// Lets go of every topic whose namespace is being deleted. An operator that is stopped may be going with that namespace, and
/// nobody would let go of them after it.
pub(super) async fn let_go_of_doomed(client: &Client, scope: Option<&str>) {
    let topics = match scoped::<KafkaTopic>(client, scope).list(&ListParams::default()).await {
        Ok(topics) => topics.items.into_iter().filter(has_finalizer),
        Err(error) => {
            tracing::warn!(%error, namespace = scope, "topics could not be listed; those of a namespace that is being deleted may hold it");
            return;
        }
    };
    let mut by_namespace: BTreeMap<String, Vec<KafkaTopic>> = BTreeMap::new();
    topics.for_each(|topic| by_namespace.entry(topic.namespace().unwrap_or_default()).or_default().push(topic));
    let home = &KubernetesHome { client: client.clone() };
    for (namespace, topics) in by_namespace {
        if is_terminating(client, &namespace).await {
            let let_go = |topic: KafkaTopic| async move {
                match home.set_finalizer(&topic, false).await {
                    Ok(()) => tracing::info!(topic = topic.name_any(), namespace = topic.namespace(), "let go with its namespace"),
                    Err(fault) => tracing::warn!(topic = topic.name_any(), namespace = topic.namespace(), fault.message, "not let go"),
                }
            };
            futures::stream::iter(topics).for_each_concurrent(16, let_go).await;
        }
    }
}

/// Events for what was done, and when the state changes.
async fn tell(context: &Context, topic: &KafkaTopic, pass: &TopicPass) {
    let name = topic.name_any();
    for step in &pass.done {
        let Some(reason) = event_reason(step) else { continue };
        tracing::info!(topic = name, namespace = topic.namespace(), %step, "done");
        context.events.tell(topic, false, reason, "Reconcile", &step.to_string()).await;
    }
    let ready = |status: Option<&KafkaTopicStatus>| {
        find_condition(&status?.conditions, READY)
            .map(|condition| (condition.status.clone(), condition.reason.clone(), condition.message.clone()))
    };
    let new = ready(Some(&pass.status));
    let short = |state: &Option<(String, String, String)>| state.as_ref().map(|(status, reason, _)| (status.clone(), reason.clone()));
    if short(&new) != short(&ready(topic.status.as_ref()))
        && let Some((_, reason, message)) = new
    {
        let is_bad = is_true(&pass.status.conditions, DEGRADED);
        tracing::info!(topic = name, namespace = topic.namespace(), reason, message, "state changed");
        context.events.tell(topic, is_bad, &reason, "Reconcile", &message).await;
    }
}

fn event_reason(step: &crate::plan::TopicStep) -> Option<&'static str> {
    use crate::plan::TopicStep as Step;
    match step {
        Step::AddFinalizer | Step::RemoveFinalizer | Step::RecordConfigKeys(_) => None,
        Step::Create { .. } => Some("TopicCreated"),
        Step::CreatePartitions { .. } => Some("PartitionsAdded"),
        Step::AlterConfig(_) => Some("ConfigChanged"),
        Step::Delete { .. } => Some("TopicDeleted"),
    }
}

/// `KafkaTopic` objects on the API server.
pub struct KubernetesHome {
    /// How it is reached.
    pub client: Client,
}

impl KubernetesHome {
    fn api(&self, topic: &KafkaTopic) -> Api<KafkaTopic> {
        Api::namespaced(self.client.clone(), &topic.namespace().unwrap_or_default())
    }
}

impl TopicHome for KubernetesHome {
    fn read<'a>(&'a self, topic: &'a KafkaTopic) -> BoxFuture<'a, Result<Option<KafkaTopic>, Fault>> {
        Box::pin(async move {
            let live = self.api(topic).get_opt(&topic.name_any()).await.map_err(|error| api_fault("read the topic's object", &error))?;
            Ok(live.filter(|live| live.uid() == topic.uid()))
        })
    }

    fn set_finalizer<'a>(&'a self, topic: &'a KafkaTopic, present: bool) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            // From a live read, and with its version: other controllers' finalizers must not be lost.
            let Some(live) = self.read(topic).await? else { return Ok(()) };
            let mut finalizers: Vec<String> = live.finalizers().iter().filter(|name| *name != TOPIC_FINALIZER).cloned().collect();
            if present {
                finalizers.push(TOPIC_FINALIZER.to_owned());
            }
            if finalizers == live.finalizers() {
                return Ok(());
            }
            let patch = json!({"metadata": {"resourceVersion": live.resource_version(), "uid": live.uid(), "finalizers": finalizers}});
            match self.api(topic).patch(&topic.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                result => result.map(drop).map_err(|error| api_fault("change the finalizers", &error)),
            }
        })
    }

    fn write_status<'a>(&'a self, topic: &'a KafkaTopic, status: &'a KafkaTopicStatus) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            let name = topic.name_any();
            let patch = json!({
                "apiVersion": "letterbox.dev/v1alpha1",
                "kind": KIND,
                "metadata": {"name": name, "uid": topic.uid()},
                "status": status,
            });
            match self.api(topic).patch_status(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                result => result.map(drop).map_err(|error| api_fault("write the status", &error)),
            }
        })
    }
}
