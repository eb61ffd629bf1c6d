//! The controller of `KafkaTopic`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use kube::api::Api;
use kube::runtime::controller::Action;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{Controller, PredicateConfig, WatchStreamExt as _, watcher};
use kube::{Client, Resource as _, ResourceExt as _};
use letterbox_env::{BoxFuture, Env, Gather};
use serde_json::json;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::doomed::{NAMESPACE_FRESH, is_terminating};
use super::objects::{
    Guarded, Ours as _, news_of, tell_later, tell_not_understood, untold, watched,
};
use super::owner::{OTHER_OPERATOR, not_ours, ours_since, while_ours};
use super::passes::{named, tell_failed};
use super::topics::{ClusterKey, Topics, cluster_key_of};
use super::{Context, PassFailed, RESYNC, jittered, scoped, told_gone, watches};
use crate::admin::{AdminError, ClientAdmin, KafkaAdmin as _, NewTopic, UNANSWERED};
use crate::api::{
    DEGRADED, DeletionPolicy, KafkaCluster, KafkaTopic, KafkaTopicStatus, READY, TOPIC_FINALIZER,
    find_condition, is_true,
};
use crate::desired::{bootstrap_name, internal_listener};
use crate::plan::{
    BrokerCount, ClusterState, RESTART_PATIENCE_SECONDS, TopicFacts, TopicStep, TopicWait,
    has_finalizer, put_together, to_make,
};
use crate::platform::kubernetes::{api_fault, said};
use crate::platform::own::Own;
use crate::reconcile::{TopicHome, TopicPass, reconcile_topic};
use crate::status::Fault;

const KIND: &str = "KafkaTopic";
/// How long one admin call may take, retries included.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The first pause after a pass that ended with a wait or a fault; it doubles with each one that
/// follows, up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(250);
/// The longest such pause. A pass that waits for its cluster asks nobody, so even thousands of them
/// cost the API server nothing.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// [`RESTART_PATIENCE_SECONDS`].
const RESTART_PATIENCE: Duration = Duration::from_secs(RESTART_PATIENCE_SECONDS.unsigned_abs());
/// How long a pass waits for the first list of clusters.
const LIST_DEADLINE: Duration = Duration::from_secs(10);

/// One Kafka client per cluster, shared by all of its topics.
pub(crate) struct Admins {
    env: Env,
    known: Mutex<BTreeMap<ClusterKey, (String, Arc<ClientAdmin>)>>,
}

impl Admins {
    pub(crate) fn new(env: Env) -> Self {
        Self { env, known: Mutex::default() }
    }

    /// The client of `cluster`, by its bootstrap service; `None` when it has no internal listener.
    pub(crate) async fn of(&self, cluster: &KafkaCluster) -> Option<Arc<ClientAdmin>> {
        let port = internal_listener(&cluster.spec.listeners)?.port;
        let address = format!(
            "{}.{}.svc:{port}",
            bootstrap_name(&cluster.name_any()),
            cluster.namespace().unwrap_or_default()
        );
        let mut known = self.known.lock().await;
        let make = || {
            (
                address.clone(),
                Arc::new(ClientAdmin::new(self.env.clone(), address.clone(), CALL_TIMEOUT)),
            )
        };
        let entry = known.entry(key_of(cluster)).or_insert_with(make);
        if entry.0 != address {
            *entry = make();
        }
        Some(entry.1.clone())
    }

    /// Closes the connections to a cluster that is gone.
    async fn forget(&self, cluster: &ClusterKey) {
        self.known.lock().await.remove(cluster);
    }
}

/// What a pass over a topic needs.
struct TopicContext {
    shared: Arc<Context>,
    /// When these passes began.
    began: Instant,
    topics: Arc<Topics>,
    /// The clusters as the watch that wakes their topics last saw them: a pass never misses what
    /// woke it.
    clusters: Store<KafkaCluster>,
    /// Whether they were listed. (Of those who wait for a store to be ready, one is woken.)
    listed: watch::Sender<bool>,
    /// The topics that were made together with others, until their own passes tell it.
    made: std::sync::Mutex<HashSet<ObjectRef<KafkaTopic>>>,
    /// How often in a row a topic was tried in vain.
    tries: std::sync::Mutex<HashMap<ObjectRef<KafkaTopic>, u32>>,
    /// The topics that were there once and were not found, and when that was seen first.
    missed: std::sync::Mutex<HashMap<ObjectRef<KafkaTopic>, Instant>>,
    /// Which namespaces are being deleted, and when that was asked.
    terminating: Mutex<BTreeMap<String, (Instant, bool)>>,
}

impl TopicContext {
    fn home(&self) -> KubernetesHome {
        KubernetesHome { client: self.shared.client.clone(), topics: self.topics.clone() }
    }

    /// The cluster of `topic`.
    async fn cluster_of(&self, topic: &KafkaTopic) -> Result<Option<Arc<KafkaCluster>>, Fault> {
        // An empty list is no news before there is one.
        let unread = || Fault {
            reason: "NotChecked".to_owned(),
            message: "the KafkaClusters could not be listed yet".to_owned(),
        };
        let mut listed = self.listed.subscribe();
        match tokio::time::timeout(LIST_DEADLINE, listed.wait_for(|listed| *listed)).await {
            Ok(Ok(_)) => {}
            _ => return Err(unread()),
        }
        let (namespace, name) = cluster_key_of(topic);
        Ok(self.clusters.get(&ObjectRef::new(&name).within(&namespace)))
    }

    /// Whether `namespace` is being deleted: asked at most once in a while, however many topics
    /// there are in it.
    async fn is_terminating(&self, namespace: &str, now_or_cached: Freshness) -> bool {
        let mut known = self.terminating.lock().await;
        if let (Freshness::Cached, Some((asked, answer))) = (now_or_cached, known.get(namespace))
            && asked.elapsed() < NAMESPACE_FRESH
        {
            return *answer;
        }
        let answer = is_terminating(&self.shared.client, namespace).await;
        known.insert(namespace.to_owned(), (Instant::now(), answer));
        answer
    }

    fn cluster(&self, key: &ClusterKey) -> Option<Arc<KafkaCluster>> {
        self.clusters.get(&ObjectRef::new(&key.1).within(&key.0))
    }

    /// Since when this operator acts in a namespace: one before may have asked for topics and have
    /// been killed. `None` where it does not act.
    fn ours_since(&self, namespace: &str) -> Option<Instant> {
        ours_since(&self.shared, namespace, self.began)
    }

    /// How `cluster` is, as its status says and as this operator's own last pass over it found. It
    /// is not asked about topics before that, because its status may be from before it lost them.
    fn state_of(&self, cluster: Option<&KafkaCluster>) -> ClusterState {
        let state = ClusterState::of(cluster, &self.shared.now());
        let (ClusterState::Ready, Some(cluster)) = (&state, cluster) else { return state };
        let since = self.ours_since(&cluster.namespace().unwrap_or_default());
        let Some(since) = since else { return ClusterState::NotChecked };
        match self.shared.looked.last(cluster).filter(|look| look.began >= since) {
            Some(look) if look.misses_records => ClusterState::NotReady,
            Some(_) => state,
            // That an operator begins to act changes nothing about a topic.
            None if since.elapsed() < RESTART_PATIENCE => ClusterState::Restarting,
            None => ClusterState::NotChecked,
        }
    }

    /// The cluster of `topic` and its state, not from a cache: letting the object of a topic go
    /// leaves the topic behind.
    async fn live_cluster_of(
        &self,
        topic: &KafkaTopic,
    ) -> (Option<Arc<KafkaCluster>>, ClusterState) {
        let (namespace, name) = cluster_key_of(topic);
        let clusters: Api<KafkaCluster> = Api::namespaced(self.shared.client.clone(), &namespace);
        match clusters.get_opt(&name).await {
            Ok(live) => {
                let state = self.state_of(live.as_ref());
                (live.map(Arc::new), state)
            }
            // What cannot be read is not gone.
            Err(error) => {
                let topic = topic.name_any();
                tracing::debug!(error = said(&error), topic, "the cluster was not read");
                (None, ClusterState::NotReady)
            }
        }
    }

    /// How a cluster that serves is for a topic. One that was there and is not any more waits for a
    /// look at its cluster, whose broker may have come back empty: for a pass that began after the
    /// topic was missed first.
    fn after_look(
        &self,
        topic: &KafkaTopic,
        cluster: &KafkaCluster,
        is_missed: bool,
    ) -> ClusterState {
        let key = ObjectRef::from_obj(topic);
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_missed {
            missed.remove(&key);
            return ClusterState::Ready;
        }
        let since = *missed.entry(key).or_insert_with(Instant::now);
        if self.shared.looked.last(cluster).is_some_and(|look| look.began > since) {
            return ClusterState::Ready;
        }
        self.shared.looked.ask(cluster);
        match since.elapsed() < RESTART_PATIENCE {
            true => ClusterState::Restarting,
            false => ClusterState::NotChecked,
        }
    }

    /// What a cluster has to make of its `topics`, put together; nothing while it does not serve.
    async fn to_make(&self, cluster: &ClusterKey, topics: &[Arc<KafkaTopic>]) -> Vec<Batch> {
        let state = self.state_of(self.cluster(cluster).as_deref());
        if state != ClusterState::Ready || topics.is_empty() {
            return Vec::new();
        }
        let namespace_terminating = self.is_terminating(&cluster.0, Freshness::Cached).await;
        let new = topics.iter().filter_map(|topic| {
            let facts = TopicFacts {
                cluster: state.clone(),
                topic: None,
                may_come: false,
                other_owner: self.topics.other_owner(topic),
                namespace_terminating,
                brokers: self.cluster(cluster).map(|cluster| BrokerCount::of(&cluster)),
            };
            Some((ObjectRef::from_obj(&**topic), to_make(topic, &facts)?))
        });
        put_together(new.collect())
    }

    /// Makes topics with one request. Whatever comes of it, the pass of each looks at what is there
    /// then, and asks again, alone, for what is not.
    async fn make(&self, cluster: &ClusterKey, batch: &Batch) {
        let admin = match self.cluster(cluster) {
            Some(cluster) => self.shared.admins.of(&cluster).await,
            None => None,
        };
        let Some(admin) = admin else { return };
        // Before the objects are looked at for the last time: one that is deleted later waits.
        let _asking = admin.asking(batch.iter().map(|(_, new)| &new.name));
        // The batches before it took a while: an object may be gone, or the cluster lost something.
        let topics = batch.iter().filter_map(|(topic, _)| self.topics.get(topic));
        let topics: Vec<Arc<KafkaTopic>> = topics.collect();
        let Some(batch) = self.to_make(cluster, &topics).await.into_iter().next() else { return };
        let topics: Vec<NewTopic> = batch.iter().map(|(_, new)| new.clone()).collect();
        match admin.create_topics(&topics).await {
            Ok(outcomes) => {
                let made = batch.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok());
                let mut untold = self.made.lock().unwrap_or_else(PoisonError::into_inner);
                // No pass tells it of an object that is gone.
                untold.retain(|topic| self.topics.get(topic).is_some());
                untold.extend(made.map(|((topic, _), _)| topic.clone()));
            }
            Err(error) => tracing::debug!(%error, topics = topics.len(), "not made together"),
        }
    }

    /// The pause before `topic` is looked at again; shorter the less often it was tried. Never the
    /// same for two topics, so that they do not come all at once.
    fn next_pause(&self, topic: &KafkaTopic, settled: bool) -> Duration {
        let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        let key = ObjectRef::from_obj(topic);
        if settled {
            tries.remove(&key);
            return jittered(&self.shared.env, RESYNC);
        }
        let tried = tries.entry(key).or_default();
        let pause = RETRY_MIN.saturating_mul(1 << (*tried).min(16)).min(RETRY_MAX);
        *tried = tried.saturating_add(1);
        jittered(&self.shared.env, pause)
    }

    /// Whether `topic` was made together with others, and that was not told yet.
    fn was_made(&self, topic: &KafkaTopic) -> bool {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.remove(&ObjectRef::from_obj(topic))
    }

    fn forget(&self, topic: &KafkaTopic) {
        let key = ObjectRef::from_obj(topic);
        self.tries.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        self.missed.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}

/// Topics that are made with one request, and the objects that ask for them.
type Batch = Vec<(ObjectRef<KafkaTopic>, NewTopic)>;

/// How old an answer may be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Freshness {
    Now,
    Cached,
}

fn key_of(cluster: &KafkaCluster) -> ClusterKey {
    (cluster.namespace().unwrap_or_default(), cluster.name_any())
}

/// Reconciles the topics of one namespace, or of all, for ever.
pub(super) async fn run(context: Arc<Context>, namespace: Option<String>) {
    let client = &context.client;
    let scope = namespace.as_deref();
    let (store, writer) = reflector::store();
    let topics = Arc::new(Topics::new(store.clone()));
    let (own_topics, unread) = (topics.clone(), topics.clone());
    let (told, not_understood) = untold();
    let teller = context.clone();
    let seen = watched::<KafkaTopic>(scoped(client, scope), move |found| {
        unread.take_unread(&found);
        tell_later(&teller, &told, found);
    });
    let seen = watches::apart(&context, &KafkaTopic::plural(&()), scope, seen)
        .map(Ok::<_, watcher::Error>)
        .reflect(writer)
        .inspect_ok(move |event| own_topics.take(event))
        .inspect_ok(told_gone(&context, KIND))
        .applied_objects()
        .predicate_filter(news_of, PredicateConfig::default());
    let reader = store.clone();
    let taken = context.owners.changed(KIND, scope).filter_map(move |(namespace, name)| {
        let topic = ObjectRef::new(&name).within(&namespace);
        std::future::ready(reader.get(&topic).map(|_| topic))
    });
    let controller = Controller::for_stream(seen, store)
        .reconcile_on(taken)
        .with_config(kube::runtime::controller::Config::default().concurrency(16));
    let (clusters, writer) = reflector::store();
    let own_context = Arc::new(TopicContext {
        shared: context.clone(),
        began: Instant::now(),
        topics,
        clusters,
        listed: watch::Sender::new(false),
        made: std::sync::Mutex::default(),
        tries: std::sync::Mutex::default(),
        missed: std::sync::Mutex::default(),
        terminating: Mutex::default(),
    });
    let passes = controller
        .reconcile_on(woken_by_clusters(own_context.clone(), scope, writer))
        .reconcile_on(held_in_doomed_namespaces(own_context.clone()))
        .run(
            reconcile,
            |topic, _, context| Action::requeue(context.next_pause(&topic, false)),
            own_context,
        )
        .for_each(|result| {
            super::told(&context, KIND, result);
            std::future::ready(())
        });
    futures::join!(passes, tell_not_understood(context.clone(), KIND, scope, not_understood));
}

/// The topics of each cluster whose state, as far as topics are concerned, changed.
fn woken_by_clusters(
    context: Arc<TopicContext>,
    scope: Option<&str>,
    writer: Writer<KafkaCluster>,
) -> impl Stream<Item = ObjectRef<KafkaTopic>> + Send + 'static {
    let api = scoped(&context.shared.client, scope);
    let events = watched::<KafkaCluster>(api, drop);
    let events = watches::apart(&context.shared, &KafkaCluster::plural(&()), scope, events);
    let events = events.map(Ok::<_, watcher::Error>).reflect(writer);
    let looked = context.shared.looked.changes().map(|()| None);
    let events = futures::stream::select(events.map(Some), looked);
    let mut known: BTreeMap<ClusterKey, (ClusterState, BrokerCount)> = BTreeMap::new();
    let woken = events.map(move |event| {
        if matches!(event, Some(Ok(watcher::Event::InitDone))) {
            context.listed.send_replace(true);
        }
        let state_of = |cluster: &Arc<KafkaCluster>| {
            (key_of(cluster), (context.state_of(Some(cluster)), BrokerCount::of(cluster)))
        };
        let seen: BTreeMap<ClusterKey, _> = context.clusters.state().iter().map(state_of).gather();
        let keys: BTreeSet<ClusterKey> = known.keys().chain(seen.keys()).cloned().gather();
        let changed: BTreeSet<ClusterKey> =
            keys.into_iter().filter(|key| known.get(key) != seen.get(key)).gather();
        let gone: Vec<ClusterKey> =
            changed.iter().filter(|key| !seen.contains_key(key)).cloned().collect();
        known = seen;
        let context = context.clone();
        let woken = async move {
            for key in &gone {
                context.shared.looked.forget(key);
                context.shared.admins.forget(key).await;
            }
            let woken = changed.into_iter().map(move |key| woken_by_cluster(context.clone(), key));
            futures::stream::select_all(woken)
        };
        futures::stream::once(woken).flatten().boxed()
    });
    // A cluster that does not answer holds up no topic of another one.
    woken.flatten_unordered(None)
}

/// The topics of `cluster`, whose state changed. Those that it has to make are made first, as many
/// as possible with one request, and woken then.
fn woken_by_cluster(
    context: Arc<TopicContext>,
    key: ClusterKey,
) -> BoxStream<'static, ObjectRef<KafkaTopic>> {
    let woken = async move {
        let topics = context.topics.of_cluster(&key);
        // What was waited for before says nothing about how soon it works now.
        topics.iter().for_each(|topic| context.forget(topic));
        let batches = context.to_make(&key, &topics).await;
        let later: HashSet<ObjectRef<KafkaTopic>> =
            batches.iter().flatten().map(|(topic, _)| topic.clone()).collect();
        let now = topics.iter().map(|topic| ObjectRef::from_obj(&**topic));
        let now: Vec<_> = now.filter(|topic| !later.contains(topic)).collect();
        let made = futures::stream::iter(batches).then(move |batch| {
            let (context, key) = (context.clone(), key.clone());
            async move {
                while_ours(&context.shared, &key.0, context.make(&key, &batch)).await;
                futures::stream::iter(batch.into_iter().map(|(topic, _)| topic))
            }
        });
        futures::stream::iter(now).chain(made.flatten())
    };
    futures::stream::once(woken).flatten().boxed()
}

/// The topics whose objects are held in a namespace that is being deleted while their cluster does
/// not serve: they are to be let go before the deletion reaches them, because the right to do so
/// may go first.
fn held_in_doomed_namespaces(
    context: Arc<TopicContext>,
) -> impl Stream<Item = ObjectRef<KafkaTopic>> + Send + 'static {
    futures::stream::unfold(context, |context| async move {
        tokio::time::sleep(NAMESPACE_FRESH).await;
        let waits = |topic: &Arc<KafkaTopic>| {
            let cluster = context.cluster(&cluster_key_of(topic));
            has_finalizer(topic) && context.state_of(cluster.as_deref()) != ClusterState::Ready
        };
        let mut held: BTreeMap<String, Vec<ObjectRef<KafkaTopic>>> = BTreeMap::new();
        for topic in context.topics.all().iter().filter(|topic| waits(topic)) {
            held.entry(topic.namespace().unwrap_or_default())
                .or_default()
                .push(ObjectRef::from_obj(&**topic));
        }
        let mut doomed = Vec::new();
        for (namespace, topics) in held {
            if context.is_terminating(&namespace, Freshness::Now).await {
                doomed.extend(topics);
            }
        }
        Some((futures::stream::iter(doomed), context))
    })
    .flatten()
}

async fn reconcile(
    topic: Arc<KafkaTopic>,
    context: Arc<TopicContext>,
) -> Result<Action, PassFailed> {
    let shared = &context.shared;
    let (began, object) = (Instant::now(), named(KIND, &*topic));
    if let Some(fault) = not_ours(shared, &object).await {
        let is_others = fault.reason == OTHER_OPERATOR;
        shared.metrics.count_pass(KIND, began.elapsed(), !is_others);
        // The cluster tells it once for all.
        shared.metrics.set_not_ready(KIND, &object.1, &object.2, None);
        if !is_others {
            return Err(PassFailed(fault));
        }
        shared.passes.forget(&object);
        return Ok(Action::requeue(jittered(&shared.env, RETRY_MAX)));
    }
    let passes = while_ours(shared, &object.1, reconcile_ours(topic, &context)).await;
    passes.unwrap_or_else(|| Ok(Action::requeue(jittered(&shared.env, RETRY_MIN))))
}

async fn reconcile_ours(
    topic: Arc<KafkaTopic>,
    context: &TopicContext,
) -> Result<Action, PassFailed> {
    let shared = &context.shared;
    let began = Instant::now();
    let mut topic = context.topics.newest(topic);
    let result = newest_pass(&mut topic, context).await;
    let faulty =
        result.as_ref().map_or(true, |pass| pass.as_ref().is_some_and(|it| it.fault.is_some()));
    shared.metrics.count_pass(KIND, began.elapsed(), faulty);
    let (namespace, name) = (topic.namespace().unwrap_or_default(), topic.name_any());
    let mut pass = match result {
        Ok(Some(pass)) => pass,
        Ok(None) => {
            shared.metrics.set_not_ready(KIND, &namespace, &name, None);
            shared.gone(&named(KIND, &*topic));
            context.forget(&topic);
            return Ok(Action::await_change());
        }
        Err(fault) => {
            let told = tell_failed(shared, KIND, &*topic, &fault).await;
            told.into_iter().for_each(|told| context.topics.note(told));
            return Err(PassFailed(fault));
        }
    };
    shared.passes.worked(KIND, &*topic);
    let was_made = context.was_made(&topic);
    let ready = find_condition(&pass.status.conditions, READY)
        .filter(|ready| ready.status != "True" && !pass.released);
    shared.metrics.set_not_ready(KIND, &namespace, &name, ready.map(|ready| ready.reason.as_str()));
    if was_made && pass.status.topic_id.is_some() {
        let name = topic.kafka_name();
        pass.done.insert(0, TopicStep::Create(NewTopic { name, ..NewTopic::default() }));
    }
    tell(shared, &topic, &pass).await;
    if pass.released {
        shared.gone(&named(KIND, &*topic));
        context.forget(&topic);
        return Ok(Action::await_change());
    }
    // A cluster that is ready wakes its topics.
    let cluster = context.cluster(&cluster_key_of(&topic));
    let is_woken = context.state_of(cluster.as_deref()) != ClusterState::Ready;
    let is_others = matches!(pass.plan.wait, None | Some(TopicWait::Deleting(_)));
    let settled = pass.fault.is_none() && !pass.is_outdated && (is_others || is_woken);
    Ok(Action::requeue(context.next_pause(&topic, settled)))
}

/// A pass over `topic`, and another one where it changed during the first, over what it is then;
/// `None` when it is gone.
async fn newest_pass(
    topic: &mut Arc<KafkaTopic>,
    context: &TopicContext,
) -> Result<Option<TopicPass>, Fault> {
    match pass(topic, context).await? {
        // Somebody else has changed it, or a write was carried out and not answered.
        Some(first) if first.is_outdated => tell(&context.shared, topic, &first).await,
        done => return Ok(done),
    }
    let Some(live) = context.home().read(topic).await? else { return Ok(None) };
    *topic = Arc::new(live);
    pass(topic, context).await
}

async fn pass(topic: &KafkaTopic, context: &TopicContext) -> Result<Option<TopicPass>, Fault> {
    let shared = &context.shared;
    let namespace = topic.namespace().unwrap_or_default();
    let deleting = topic.metadata.deletion_timestamp.is_some();
    let held = has_finalizer(topic);
    let now = shared.now();
    let home = context.home();
    if deleting && !held {
        return match topic.finalizers() {
            [] => Ok(None),
            // It is told what holds the object; its topic is not looked at any more.
            _ => {
                let (admin, facts) = (nobody(shared), TopicFacts::default());
                reconcile_topic(&home, &admin, topic, &facts, &now).await.map(Some)
            }
        };
    }
    let cluster = context.cluster_of(topic).await?;
    let state = context.state_of(cluster.as_deref());
    let (cluster, mut state) = match held && state.is_gone() {
        true => context.live_cluster_of(topic).await,
        false => (cluster, state),
    };
    let admin = match &cluster {
        Some(cluster) => shared.admins.of(cluster).await,
        None => None,
    };
    let admin = admin.unwrap_or_else(|| Arc::new(nobody(shared)));
    let mut may_come = admin.may_come(&topic.kafka_name());
    let mut live = None;
    if state == ClusterState::Ready {
        match admin.describe_topic(&topic.kafka_name()).await {
            Ok(seen) => live = seen,
            Err(AdminError::Unreachable(why)) => state = silent(&admin, why),
            Err(error) => state = ClusterState::Unreachable(error.to_string()),
        }
    }
    let is_seen = topic.status.as_ref().is_some_and(|status| status.topic_id.is_some());
    let is_missed = is_seen && live.is_none();
    if let Some(cluster) = cluster.as_deref().filter(|_| state == ClusterState::Ready) {
        state = context.after_look(topic, cluster, is_missed);
    }
    let is_new = || context.ours_since(&namespace).is_none_or(|it| it.elapsed() < UNANSWERED);
    may_come |= live.is_none() && !is_seen && is_new();
    // A namespace that is being deleted loses its pods first: its clusters stop serving before its
    // topics are reached.
    let may_hold = held || topic.spec.deletion_policy == DeletionPolicy::Delete;
    let asks = may_hold && (deleting || !held || state != ClusterState::Ready);
    let freshness = if deleting { Freshness::Now } else { Freshness::Cached };
    let namespace_terminating = asks && context.is_terminating(&namespace, freshness).await;
    let facts = TopicFacts {
        cluster: state,
        topic: live,
        may_come,
        other_owner: context.topics.other_owner(topic),
        namespace_terminating,
        brokers: cluster.as_deref().map(BrokerCount::of),
    };
    let pass = reconcile_topic(&home, &*admin, topic, &facts, &now).await?;
    if pass.done.iter().any(|step| matches!(step, TopicStep::Create(_))) {
        // Once it vanishes again, that is seen anew.
        context.forget(topic);
    }
    Ok(Some(pass))
}

/// A client of no cluster.
fn nobody(shared: &Context) -> ClientAdmin {
    ClientAdmin::new(shared.env.clone(), String::new(), CALL_TIMEOUT)
}

/// A cluster that should serve and does not answer: for the time that a restart takes it is taken
/// for one.
fn silent(admin: &ClientAdmin, why: String) -> ClusterState {
    match admin.silence() {
        Some((away, first)) if away.as_secs() >= RESTART_PATIENCE_SECONDS.unsigned_abs() => {
            ClusterState::Unreachable(first)
        }
        Some(_) => ClusterState::Restarting,
        None => ClusterState::Unreachable(why),
    }
}

/// Events for what was done, and when the state changes.
async fn tell(context: &Context, topic: &KafkaTopic, pass: &TopicPass) {
    let name = topic.name_any();
    let mut is_told = false;
    for step in &pass.done {
        let Some(reason) = event_reason(step) else { continue };
        is_told = true;
        tracing::info!(topic = name, namespace = topic.namespace(), %step, "done");
        context.events.tell(topic, false, reason, "Reconcile", &step.to_string()).await;
    }
    if pass.is_outdated {
        return;
    }
    let ready = |status: Option<&KafkaTopicStatus>| {
        find_condition(&status?.conditions, READY).map(|condition| {
            (condition.status.clone(), condition.reason.clone(), condition.message.clone())
        })
    };
    let new = ready(Some(&pass.status));
    // A topic that is there and whose cluster is away tells nothing of its own: the cluster tells
    // it once for all.
    let about_cluster = [ClusterState::NotReady, ClusterState::NotChecked]
        .map(|state| TopicWait::Cluster(state).reason());
    let is_about_cluster = |state: &Option<(String, String, String)>| {
        state.as_ref().is_some_and(|(_, reason, _)| about_cluster.contains(&reason.as_str()))
    };
    let old = ready(topic.status.as_ref());
    let was_there = topic.status.as_ref().is_some_and(|status| status.topic_id.is_some());
    if was_there && (is_about_cluster(&new) || is_about_cluster(&old)) {
        return;
    }
    let short = |state: &Option<(String, String, String)>| {
        state.as_ref().map(|(status, reason, _)| (status.clone(), reason.clone()))
    };
    let is_ready = is_true(&pass.status.conditions, READY);
    // What was done tells it: there may be thousands.
    if short(&new) != short(&old)
        && !(is_told && is_ready)
        && let Some((_, reason, message)) = new
    {
        let is_bad = is_true(&pass.status.conditions, DEGRADED);
        tracing::info!(
            topic = name,
            namespace = topic.namespace(),
            reason,
            message,
            "state changed"
        );
        context.events.tell(topic, is_bad, &reason, "Reconcile", &message).await;
    }
}

fn event_reason(step: &TopicStep) -> Option<&'static str> {
    use TopicStep as Step;
    match step {
        Step::AddFinalizer | Step::RemoveFinalizer | Step::RecordConfigKeys(_) => None,
        Step::Create(_) => Some("TopicCreated"),
        Step::CreatePartitions { .. } => Some("PartitionsAdded"),
        Step::ChangeReplicas { .. } => Some("ReplicasChanged"),
        Step::AlterConfig(_) => Some("ConfigChanged"),
        Step::Delete { .. } => Some("TopicDeleted"),
    }
}

/// `KafkaTopic` objects on the API server.
pub struct KubernetesHome {
    client: Client,
    /// They are told what is written or read here: a pass may begin before the watch brings it.
    topics: Arc<Topics>,
}

impl KubernetesHome {
    /// The objects that `client` reaches.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, topics: Arc::new(Topics::new(reflector::store().0)) }
    }
}

impl TopicHome for KubernetesHome {
    fn read<'a>(
        &'a self,
        topic: &'a KafkaTopic,
    ) -> BoxFuture<'a, Result<Option<KafkaTopic>, Fault>> {
        Box::pin(async move {
            let api: Api<Guarded<KafkaTopic>> =
                Api::namespaced(self.client.clone(), &topic.namespace().unwrap_or_default());
            let live = api.get_opt(&topic.name_any()).await;
            let live = live.map_err(|error| api_fault("read the topic's object", &error))?;
            let live = live.filter(|live| live.uid() == topic.uid());
            let live = live.map(Guarded::understood).transpose()?;
            live.iter().for_each(|live| self.topics.note(live.clone()));
            Ok(live)
        })
    }

    fn set_finalizer<'a>(
        &'a self,
        topic: &'a mut KafkaTopic,
        present: bool,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            let own = Own::of(&self.client, topic);
            if let Some(version) = own.set_finalizer(TOPIC_FINALIZER, present).await? {
                topic.metadata.resource_version = Some(version);
                let finalizers = topic.finalizers_mut();
                finalizers.retain(|each| each != TOPIC_FINALIZER);
                finalizers.extend(present.then(|| TOPIC_FINALIZER.to_owned()));
                self.topics.note(topic.clone());
            }
            Ok(())
        })
    }

    fn write_status<'a>(
        &'a self,
        topic: &'a mut KafkaTopic,
        status: &'a KafkaTopicStatus,
    ) -> BoxFuture<'a, Result<bool, Fault>> {
        Box::pin(async move {
            let (own, had_waits) = (Own::of(&self.client, topic), !topic.waits().is_empty());
            let version = own.write_status(json!(status), had_waits).await?;
            let Some(version) = version else { return Ok(false) };
            topic.metadata.resource_version = Some(version);
            topic.status = Some(status.clone());
            self.topics.note(topic.clone());
            Ok(true)
        })
    }
}
