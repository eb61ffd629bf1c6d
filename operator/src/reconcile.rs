//! One pass: read, plan, act, say. The same for every platform.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use letterbox_env::BoxFuture;

use crate::admin::{AdminError, KafkaAdmin, MayEnd, NewTopic, TOPIC_ALREADY_EXISTS};
use crate::api::{DeletionPolicy, KafkaCluster, KafkaClusterStatus, KafkaTopic, KafkaTopicStatus};
use crate::desired::Blueprint;
use crate::observe::{Observed, ObservedBroker, Part};
use crate::plan::{Plan, Step, TopicFacts, TopicPlan, TopicStep, plan_cluster, plan_topic};
use crate::platform::{Live as _, Platform};
use crate::status::{Fault, cluster_status, topic_status};

/// What a pass over a cluster found and did.
#[derive(Debug)]
pub struct ClusterPass {
    /// What should be.
    pub desired: Blueprint,
    /// What was.
    pub observed: Observed,
    /// What was to be done and is waited for.
    pub plan: Plan,
    /// The steps that worked.
    pub done: Vec<Step>,
    /// The steps that did not, and why.
    pub faults: Vec<(Step, Fault)>,
    /// What is said about it.
    pub status: KafkaClusterStatus,
}

impl ClusterPass {
    /// Whether another pass is needed soon, whatever events come.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.plan.steps.is_empty() && self.plan.waits.is_empty() && self.faults.is_empty()
    }
}

/// One pass over `cluster`. `admin` answers for the cluster's id; without one the id is not asked
/// for.
///
/// # Errors
/// What could not be read. A step that fails is part of the result, and does not keep the others
/// from being tried.
pub async fn reconcile_cluster<P: Platform>(
    platform: &P,
    cluster: &KafkaCluster,
    admin: Option<&dyn KafkaAdmin>,
    now: &Time,
) -> Result<ClusterPass, Fault> {
    let live = platform.read(cluster).await?;
    let mut desired = Blueprint::build(cluster, &live.facts(cluster));
    let mut observed = live.observe(&desired);
    desired.evictions_held = why_none_may_be_evicted(platform, &desired, &live, &observed).await;
    if desired.evictions_held.is_some() {
        observed = live.observe(&desired);
    }
    if let Some(admin) = admin {
        observed.cluster_id = admin.cluster_id().await.ok().flatten();
    }
    let (mut plan, reserved) = plan_safely(platform, cluster, &desired, &live, &mut observed).await;
    let ends = plan.takes_down(&observed, |id| reserved == Some(id));
    if let Some(broker) = ends.filter(|_| desired.evictions_held.is_none()) {
        desired.evictions_held = Some(format!("broker {broker} is about to restart"));
        let closed = live.observe(&desired);
        (observed.budget, observed.holds_evictions) = (closed.budget, closed.holds_evictions);
        plan = plan_cluster(cluster, &desired, &observed);
    }
    let mut lanes: BTreeMap<Part, Vec<(usize, &Step)>> = BTreeMap::new();
    for (at, step) in plan.steps.iter().enumerate() {
        let part = match step.part() {
            Part::Definitions => Part::Brokers,
            // Kubernetes lets no other one go once this one is away. It may be evicting now.
            Part::Budget if ends.is_some() => Part::Brokers,
            part => part,
        };
        lanes.entry(part).or_default().push((at, step));
    }
    let lanes = lanes.into_values().map(|steps| act_in_order(platform, &desired, &live, steps));
    let mut outcomes: Vec<_> = join_all(lanes).await.into_iter().flatten().collect();
    outcomes.sort_by_key(|(at, ..)| *at);
    let (mut done, mut faults) = (Vec::new(), Vec::new());
    for (_, step, outcome) in outcomes {
        match outcome {
            Ok(()) => done.push(step.clone()),
            Err(fault) => faults.push((step.clone(), fault)),
        }
    }
    // The next pass takes it anew if it still is to end that broker. Until then it would hold up
    // whoever else ends brokers.
    let is_unused = |broker: &i32| !done.iter().any(|step| step.ends(*broker, &observed));
    if let Some(broker) = reserved.filter(is_unused) {
        platform.give_back(&live, broker).await;
    }
    let status = cluster_status(cluster, &desired, &observed, &plan, &faults, now);
    Ok(ClusterPass { desired, observed, plan, done, faults, status })
}

/// Why no node with one of several brokers may be drained now: the cluster would not do without it.
/// Kubernetes counts only who is ready.
async fn why_none_may_be_evicted<P: Platform>(
    platform: &P,
    desired: &Blueprint,
    live: &P::Live,
    observed: &Observed,
) -> Option<String> {
    if desired.brokers.len() < 2 {
        return None;
    }
    let serves = |id: &i32| observed.brokers.get(id).is_some_and(ObservedBroker::serves);
    // Kubernetes itself lets none that is ready go beside one that is not. That one has to be free:
    // its node may be why it is not ready.
    if !desired.brokers.keys().all(serves) {
        return None;
    }
    let ask = desired.brokers.keys().map(|id| async move {
        match platform.may_end(live, *id).await {
            MayEnd::Yes => None,
            MayEnd::No(why) | MayEnd::NotYet(why) => Some(format!("broker {id}: {why}")),
            MayEnd::Unknown(why) => Some(format!("broker {id} cannot tell: {why}")),
        }
    });
    join_all(ask).await.into_iter().flatten().next()
}

/// Plans `cluster` so that it does without the broker that is taken down, if any, as it says itself
/// now. One that it does not do without is held back, and another one may be in its place. One that
/// does not serve, and does not say, is not held back. Answers with the broker, too, whose end is
/// reserved by that.
async fn plan_safely<P: Platform>(
    platform: &P,
    cluster: &KafkaCluster,
    desired: &Blueprint,
    live: &P::Live,
    observed: &mut Observed,
) -> (Plan, Option<i32>) {
    let (mut asked, mut reserved) = (BTreeSet::new(), None);
    loop {
        let plan = plan_cluster(cluster, desired, observed);
        let is_open = |id| !asked.contains(&id) && desired.brokers.len() > 1;
        let Some(broker) = plan.takes_down(observed, is_open) else {
            return (plan, reserved);
        };
        asked.insert(broker);
        let answer = platform.reserve(live, broker).await;
        if matches!(answer, MayEnd::Yes | MayEnd::NotYet(_)) {
            reserved = Some(broker);
        }
        if let Some(seen) = observed.brokers.get_mut(&broker) {
            seen.held_back = match answer {
                MayEnd::Yes => None,
                MayEnd::No(why) | MayEnd::NotYet(why) => Some(why),
                MayEnd::Unknown(_) if !seen.serves() => None,
                MayEnd::Unknown(why) => Some(format!("it cannot tell whether it may: {why}")),
            };
        }
    }
}

/// Carries out the steps of one lane: what takes long, or is never answered, holds up none of
/// another.
async fn act_in_order<'a, P: Platform>(
    platform: &P,
    desired: &Blueprint,
    live: &P::Live,
    steps: Vec<(usize, &'a Step)>,
) -> Vec<(usize, &'a Step, Result<(), Fault>)> {
    let mut outcomes = Vec::with_capacity(steps.len());
    for (at, step) in steps {
        outcomes.push((at, step, platform.act(desired, live, step).await));
    }
    outcomes
}

/// Where the `KafkaTopic` object itself is kept.
pub trait TopicHome: Send + Sync {
    /// The object as it is now, not from a cache; `None` when it is gone.
    fn read<'a>(
        &'a self,
        topic: &'a KafkaTopic,
    ) -> BoxFuture<'a, Result<Option<KafkaTopic>, Fault>>;

    /// Adds or removes the finalizer. `topic` gets the version that the object has then, if that
    /// alone has changed about it.
    fn set_finalizer<'a>(
        &'a self,
        topic: &'a mut KafkaTopic,
        present: bool,
    ) -> BoxFuture<'a, Result<(), Fault>>;

    /// Writes the status over the version that `topic` has, which gets the new one. False when it
    /// was not written, because the object has changed or is gone.
    fn write_status<'a>(
        &'a self,
        topic: &'a mut KafkaTopic,
        status: &'a KafkaTopicStatus,
    ) -> BoxFuture<'a, Result<bool, Fault>>;
}

/// What a pass over a topic found and did.
#[derive(Debug)]
pub struct TopicPass {
    /// What was to be done and is in the way.
    pub plan: TopicPlan,
    /// The steps that worked.
    pub done: Vec<TopicStep>,
    /// The step that did not.
    pub fault: Option<Fault>,
    /// What is said about it.
    pub status: KafkaTopicStatus,
    /// Whether the object was let go: there is nothing left to write a status to.
    pub released: bool,
    /// Whether the object changed before its status was written, which it was not then.
    pub is_outdated: bool,
}

/// One pass over `topic`, of whose surroundings `facts` are known. Its status is written when it
/// changed.
///
/// # Errors
/// When the status could not be written.
pub async fn reconcile_topic(
    home: &dyn TopicHome,
    admin: &dyn KafkaAdmin,
    topic: &KafkaTopic,
    facts: &TopicFacts,
    now: &Time,
) -> Result<TopicPass, Fault> {
    let (mut plan, mut live) = (plan_topic(topic, facts), facts.topic.clone());
    let mut current = topic.clone();
    let mut done = Vec::new();
    let mut failed = act_all(home, admin, &mut current, &plan, &mut done).await;
    if let Err(Failed::MadeMeanwhile(_)) = failed {
        // It is looked at again, once: what was made may differ from the spec.
        live = admin.describe_topic(&topic.kafka_name()).await.ok().flatten();
        plan = plan_topic(&current, &TopicFacts { topic: live.clone(), ..facts.clone() });
        failed = act_all(home, admin, &mut current, &plan, &mut done).await;
    }
    let fault = failed.err().map(|(Failed::Fault(fault) | Failed::MadeMeanwhile(fault))| fault);
    let released =
        current.metadata.deletion_timestamp.is_some() && done.contains(&TopicStep::RemoveFinalizer);
    let changes = |step: &TopicStep| {
        matches!(
            step,
            TopicStep::Create(_)
                | TopicStep::CreatePartitions { .. }
                | TopicStep::ChangeReplicas { .. }
                | TopicStep::AlterConfig(_)
        )
    };
    if done.iter().any(changes) {
        live = admin.describe_topic(&topic.kafka_name()).await.ok().flatten().or(live);
    }
    let status = topic_status(&current, &plan, live.as_ref(), fault.as_ref(), now);
    let is_news = !released && topic.status.as_ref() != Some(&status);
    let is_outdated = is_news && !home.write_status(&mut current, &status).await?;
    Ok(TopicPass { plan, done, fault, status, released, is_outdated })
}

/// Why a step did not work.
enum Failed {
    Fault(Fault),
    /// The topic was not there when it was looked at, and is there now.
    MadeMeanwhile(Fault),
}

/// Carries out the steps of `plan` up to the first that fails; those that worked are in `done`.
async fn act_all(
    home: &dyn TopicHome,
    admin: &dyn KafkaAdmin,
    topic: &mut KafkaTopic,
    plan: &TopicPlan,
    done: &mut Vec<TopicStep>,
) -> Result<(), Failed> {
    for step in &plan.steps {
        act(home, admin, topic, step).await?;
        done.push(step.clone());
    }
    Ok(())
}

async fn create(admin: &dyn KafkaAdmin, step: &TopicStep, new: &NewTopic) -> Result<(), Failed> {
    let made = admin.create_topics(std::slice::from_ref(new)).await;
    match made.and_then(|made| made.into_iter().collect()) {
        Err(error) => Err(match &error {
            AdminError::Refused { code, .. } if code == TOPIC_ALREADY_EXISTS => {
                Failed::MadeMeanwhile(admin_fault(step, &error))
            }
            _ => Failed::Fault(admin_fault(step, &error)),
        }),
        Ok(()) => Ok(()),
    }
}

async fn act(
    home: &dyn TopicHome,
    admin: &dyn KafkaAdmin,
    topic: &mut KafkaTopic,
    step: &TopicStep,
) -> Result<(), Failed> {
    let name = topic.kafka_name();
    let tell = |error: AdminError| admin_fault(step, &error);
    let done = match step {
        TopicStep::AddFinalizer => home.set_finalizer(topic, true).await,
        TopicStep::RemoveFinalizer => home.set_finalizer(topic, false).await,
        TopicStep::RecordConfigKeys(keys) => {
            let mut status = topic.status.clone().unwrap_or_default();
            status.config_keys = keys.iter().cloned().collect();
            match home.write_status(topic, &status).await {
                Ok(true) => {
                    topic.status = Some(status);
                    Ok(())
                }
                Ok(false) => Err(changed("the object has changed")),
                Err(fault) => Err(fault),
            }
        }
        TopicStep::Create(new) => return create(admin, step, new).await,
        TopicStep::CreatePartitions { to, .. } => {
            admin.create_partitions(&name, *to).await.map_err(tell)
        }
        TopicStep::ChangeReplicas { to, .. } => {
            admin.change_replicas(&name, *to).await.map_err(tell)
        }
        TopicStep::AlterConfig(changes) => {
            admin.alter_topic_config(&name, changes).await.map_err(tell)
        }
        TopicStep::Delete { id } => delete(home, admin, topic, id).await,
    };
    done.map_err(Failed::Fault)
}

/// Deletes the topic after a live read of the object that asks for it and of the topic that goes.
async fn delete(
    home: &dyn TopicHome,
    admin: &dyn KafkaAdmin,
    topic: &KafkaTopic,
    id: &str,
) -> Result<(), Fault> {
    let live = home.read(topic).await?.ok_or_else(|| changed("the object is gone"))?;
    if live.metadata.uid != topic.metadata.uid
        || live.metadata.deletion_timestamp.is_none()
        || live.spec.deletion_policy != DeletionPolicy::Delete
        || crate::api::is_paused(&live.metadata)
    {
        return Err(changed("the object no longer asks for its topic's deletion"));
    }
    let step = TopicStep::Delete { id: id.to_owned() };
    match admin
        .describe_topic(&topic.kafka_name())
        .await
        .map_err(|error| admin_fault(&step, &error))?
    {
        None => Ok(()),
        Some(seen) if seen.id != id => Err(changed("another topic took the name")),
        Some(_) => match admin.delete_topic(&topic.kafka_name()).await {
            Err(AdminError::Refused { code, .. }) if code == "UNKNOWN_TOPIC_OR_PARTITION" => Ok(()),
            result => result.map_err(|error| admin_fault(&step, &error)),
        },
    }
}

fn changed(message: &str) -> Fault {
    Fault {
        reason: "Changed".to_owned(),
        message: format!("{message}; the reconcile of the topic is retried"),
    }
}

fn admin_fault(step: &TopicStep, error: &AdminError) -> Fault {
    let reason = match error {
        AdminError::Unreachable(_) => "WaitingForCluster",
        AdminError::Refused { code, .. } if code == "INVALID_CONFIG" => "InvalidConfig",
        AdminError::Refused { .. } => "KafkaError",
    };
    Fault { reason: reason.to_owned(), message: format!("{step}: {error}") }
}
