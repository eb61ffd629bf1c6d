//! The plan of a topic.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use letterbox_env::Gather;

use super::wait::{being_deleted, listed};
use crate::admin::{NewTopic, Topic};
use crate::api::{
    DeletionPolicy, KafkaCluster, KafkaTopic, NodeStatus, READY, TOPIC_FINALIZER, find_condition,
    is_paused,
};

/// What is known about a topic's surroundings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicFacts {
    /// The cluster that it belongs to.
    pub cluster: ClusterState,
    /// The topic in the cluster; `None` when there is none. Means something only when the cluster
    /// is ready.
    pub topic: Option<Topic>,
    /// Another, older `KafkaTopic` that speaks for the same topic of the same cluster.
    pub other_owner: Option<String>,
    /// Whether a request to make the topic may still be carried out: it was on its way, or not
    /// answered, when `topic` was looked for.
    pub may_come: bool,
    /// Whether the namespace is being deleted; asked only while it matters.
    pub namespace_terminating: bool,
    /// The brokers of the cluster; `None` while they are not known.
    pub brokers: Option<BrokerCount>,
}

/// How many brokers there are for the replicas of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokerCount {
    /// So many the cluster is to have.
    wanted: i32,
    /// So many serve, or have told once which directories they use. The cluster places replicas also
    /// on those of its brokers that are down.
    there: i32,
    /// So many keep each partition of a topic that does not say how many.
    default: i32,
}

impl BrokerCount {
    /// What `cluster` says of its brokers.
    #[must_use]
    pub fn of(cluster: &KafkaCluster) -> Self {
        let status = cluster.status.as_ref();
        let has_started =
            |node: &&NodeStatus| node.volumes.iter().any(|volume| volume.directory_id.is_some());
        let started = status.map_or(0, |it| it.nodes.iter().filter(has_started).count());
        let ready = status.map_or(0, |it| it.ready_replicas);
        Self {
            wanted: cluster.spec.replicas,
            there: ready.max(i32::try_from(started).unwrap_or(i32::MAX)),
            default: cluster.spec.default_replication().trim().parse().unwrap_or(1),
        }
    }
}

/// The cluster of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClusterState {
    /// There is no such `KafkaCluster`.
    #[default]
    Missing,
    /// It is being deleted.
    Deleting,
    /// It is there and does not serve.
    NotReady,
    /// It served until less than [`RESTART_PATIENCE_SECONDS`] ago: most likely a broker restarts.
    Restarting,
    /// It serves, and for longer than that it could not be checked whether its brokers have their
    /// volumes.
    NotChecked,
    /// It should serve and has not answered for longer than that; what the first call met.
    Unreachable(String),
    /// It serves.
    Ready,
}

/// How long a cluster that served may be away before its topics report it: a restart of a broker
/// changes nothing about a topic.
pub const RESTART_PATIENCE_SECONDS: i64 = 60;

impl ClusterState {
    /// What `cluster` says of itself. One broker that serves is enough: a fault that has nothing to
    /// do with topics, such as a volume that cannot grow, does not hold them up.
    #[must_use]
    pub fn of(cluster: Option<&KafkaCluster>, now: &Time) -> Self {
        let Some(cluster) = cluster else { return Self::Missing };
        if cluster.metadata.deletion_timestamp.is_some() {
            return Self::Deleting;
        }
        let Some(status) = &cluster.status else { return Self::NotReady };
        let away_since = find_condition(&status.conditions, READY)
            .map(|ready| ready.last_transition_time.0.as_second());
        let is_brief =
            |since: i64| now.0.as_second().saturating_sub(since) < RESTART_PATIENCE_SECONDS;
        match status.cluster_id {
            // A topic that is not there may be one that is lost: it is not made again, and nothing
            // is made on a broker that is to go on without what it has.
            _ if status.misses_records() => Self::NotReady,
            _ if status.ready_replicas > 0 => Self::Ready,
            Some(_) if away_since.is_some_and(is_brief) => Self::Restarting,
            _ => Self::NotReady,
        }
    }

    /// Whether there is no cluster that a topic could be deleted from.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Missing | Self::Deleting)
    }
}

/// What to do and what is in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicPlan {
    /// In order; the first that fails ends the pass.
    pub steps: Vec<TopicStep>,
    /// What is waited for.
    pub wait: Option<TopicWait>,
    /// What is asked for and cannot be done.
    pub refusals: Vec<Refusal>,
}

/// One change to the world, safe to repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicStep {
    /// Hold the object until its topic is deleted.
    AddFinalizer,
    /// Let the object go.
    RemoveFinalizer,
    /// Write down, before it is done, which keys this object sets: what was set must be known to be
    /// unset later, whenever the operator is killed.
    RecordConfigKeys(BTreeSet<String>),
    /// Make the topic.
    Create(NewTopic),
    /// Add partitions.
    CreatePartitions {
        /// How many there are.
        from: i32,
        /// How many there should be.
        to: i32,
    },
    /// Have each partition kept by more or fewer brokers.
    ChangeReplicas {
        /// How many there are at most.
        from: i32,
        /// How many there should be.
        to: i32,
    },
    /// Change its configuration; `None` goes back to the cluster's default.
    AlterConfig(BTreeMap<String, Option<String>>),
    /// Delete the topic with this id, and its records.
    Delete {
        /// The id that was observed; a live read compares it before the deletion.
        id: String,
    },
}

/// What a topic waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicWait {
    /// Its cluster.
    Cluster(ClusterState),
    /// The topic is to be deleted before its object goes, and its cluster is waited for.
    NotDeleted(ClusterState),
    /// A request to make the topic that may still be carried out: what is deleted before it would
    /// be there after it.
    BeingMade,
    /// The brokers for its replicas.
    Brokers {
        /// So many it needs.
        needed: i32,
        /// So many there are.
        there: i32,
    },
    /// Partitions whose replicas move.
    Moving {
        /// So many are where they are to be.
        done: i32,
        /// So many there are.
        total: i32,
    },
    /// Another object speaks for the topic.
    OtherOwner(String),
    /// The object is being deleted, and held by these finalizers of others.
    Deleting(Vec<String>),
    /// The topic is not there, and is not made while its object is paused.
    NotMade,
    /// The topic is not as the spec describes it, and is not changed while its object is paused.
    NotChanged(Vec<String>),
    /// Nothing: the namespace is being deleted.
    NamespaceTerminating,
}

/// What is asked for and cannot be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Partitions cannot be taken away.
    PartitionsShrink {
        /// How many there are.
        current: i32,
        /// How many were asked for.
        requested: i32,
    },
    /// There will never be as many brokers as each partition is to have replicas.
    TooFewBrokers {
        /// How many the cluster is to have.
        brokers: i32,
        /// How many replicas were asked for.
        requested: i32,
    },
    /// The topic that this object made is gone, and another one has its name: it is not deleted.
    NotOurTopic {
        /// The id that this object's status names.
        ours: String,
        /// The id that the cluster names.
        theirs: String,
    },
}

/// Plans `topic`.
#[must_use]
pub fn plan_topic(topic: &KafkaTopic, facts: &TopicFacts) -> TopicPlan {
    if topic.metadata.deletion_timestamp.is_some() {
        plan_deletion(topic, facts)
    } else if facts.namespace_terminating {
        // Before the deletion reaches this object: then the operator may have lost the right to let
        // it go, or be gone itself (kubernetes/kubernetes#115070). A pause does not hold a
        // namespace either.
        let steps =
            has_finalizer(topic).then_some(TopicStep::RemoveFinalizer).into_iter().collect();
        TopicPlan { steps, wait: Some(TopicWait::NamespaceTerminating), ..TopicPlan::default() }
    } else if is_paused(&topic.metadata) {
        plan_pause(topic, facts)
    } else {
        plan_existence(topic, facts)
    }
}

/// What is told of a topic of which nothing is changed. It is compared with the spec that Ready
/// speaks of: with the newest one, unless that came during the pause.
fn plan_pause(topic: &KafkaTopic, facts: &TopicFacts) -> TopicPlan {
    let plan = plan_existence(topic, facts);
    let is_missing = facts.cluster == ClusterState::Ready && facts.topic.is_none();
    let missing = is_missing.then_some(TopicWait::NotMade);
    let ready = topic.status.as_ref().and_then(|it| find_condition(&it.conditions, READY));
    let acted_on = ready.and_then(|ready| ready.observed_generation);
    if acted_on.is_some() && acted_on != topic.metadata.generation {
        return TopicPlan { wait: plan.wait.or(missing), ..TopicPlan::default() };
    }
    let is_change = |step: &&TopicStep| {
        matches!(
            step,
            TopicStep::CreatePartitions { .. }
                | TopicStep::ChangeReplicas { .. }
                | TopicStep::AlterConfig(_)
        )
    };
    let changes: Vec<String> =
        plan.steps.iter().filter(is_change).map(ToString::to_string).collect();
    let differs = (!changes.is_empty()).then_some(TopicWait::NotChanged(changes));
    let begins = |wait: &TopicWait| matches!(wait, TopicWait::Moving { .. }) && differs.is_some();
    let wait = plan.wait.filter(|wait| !begins(wait)).or(missing).or(differs);
    TopicPlan { wait, refusals: plan.refusals, ..TopicPlan::default() }
}

/// What is to be made for a topic that no pass has seen in its cluster, when nothing has to be
/// done before it: such topics are made together, with few requests. What has to be recorded first
/// is left to the pass of each, and so is what is refused here.
#[must_use]
pub fn to_make(topic: &KafkaTopic, facts: &TopicFacts) -> Option<NewTopic> {
    let is_seen = topic.status.as_ref().is_some_and(|status| status.topic_id.is_some());
    match plan_topic(topic, facts).steps.into_iter().next() {
        Some(TopicStep::Create(new)) if !is_seen => Some(new),
        _ => None,
    }
}

/// So many topics are made with one request at most, with so many partitions and so many bytes of
/// configuration altogether. Brokers make 10,000 partitions at once.
const TOGETHER_MAX: (usize, i64, usize) = (500, 5_000, 1 << 20);

/// Puts topics together that are to be made with one request. One that is too large for the bounds
/// is alone.
#[must_use]
pub fn put_together<T>(topics: Vec<(T, NewTopic)>) -> Vec<Vec<(T, NewTopic)>> {
    let mut batches: Vec<Vec<(T, NewTopic)>> = Vec::new();
    let (mut partitions, mut bytes) = (0, 0);
    for (of, topic) in topics {
        let own_partitions = i64::from(topic.partitions.unwrap_or(1));
        let own_bytes: usize =
            topic.config.iter().map(|(key, value)| key.len() + value.len()).sum();
        let fits = |batch: &&mut Vec<(T, NewTopic)>| {
            batch.len() < TOGETHER_MAX.0
                && partitions + own_partitions <= TOGETHER_MAX.1
                && bytes + own_bytes <= TOGETHER_MAX.2
        };
        match batches.last_mut().filter(fits) {
            Some(batch) => batch.push((of, topic)),
            None => {
                (partitions, bytes) = (0, 0);
                batches.push(vec![(of, topic)]);
            }
        }
        (partitions, bytes) = (partitions + own_partitions, bytes + own_bytes);
    }
    batches
}

/// Whether the operator holds the object until its topic is deleted.
#[must_use]
pub fn has_finalizer(topic: &KafkaTopic) -> bool {
    topic.finalizers().iter().any(|finalizer| finalizer == TOPIC_FINALIZER)
}

fn plan_deletion(topic: &KafkaTopic, facts: &TopicFacts) -> TopicPlan {
    let mut plan = TopicPlan::default();
    if !has_finalizer(topic) {
        plan.wait = Some(TopicWait::Deleting(topic.finalizers().to_vec()));
        return plan;
    }
    let keeps_data =
        topic.spec.deletion_policy == DeletionPolicy::Retain || is_paused(&topic.metadata);
    // Nothing may hold a namespace or outlive its cluster; the topic's records go, or stay, with
    // the cluster's volumes.
    if keeps_data
        || facts.cluster.is_gone()
        || facts.namespace_terminating
        || facts.other_owner.is_some()
    {
        plan.steps.push(TopicStep::RemoveFinalizer);
        return plan;
    }
    match (&facts.cluster, &facts.topic) {
        (ClusterState::Ready, _) if facts.may_come => plan.wait = Some(TopicWait::BeingMade),
        (ClusterState::Ready, Some(live)) => {
            match topic.status.as_ref().and_then(|status| status.topic_id.clone()) {
                Some(ours) if ours != live.id => {
                    plan.refusals.push(Refusal::NotOurTopic { ours, theirs: live.id.clone() });
                    plan.steps.push(TopicStep::RemoveFinalizer);
                }
                _ => plan.steps.extend([
                    TopicStep::Delete { id: live.id.clone() },
                    TopicStep::RemoveFinalizer,
                ]),
            }
        }
        (ClusterState::Ready, None) => plan.steps.push(TopicStep::RemoveFinalizer),
        (state, _) => plan.wait = Some(TopicWait::NotDeleted(state.clone())),
    }
    plan
}

fn plan_existence(topic: &KafkaTopic, facts: &TopicFacts) -> TopicPlan {
    let mut plan = TopicPlan::default();
    if let Some(other) = &facts.other_owner {
        plan.wait = Some(TopicWait::OtherOwner(other.clone()));
        // It must not be able to delete what it does not own.
        if has_finalizer(topic) {
            plan.steps.push(TopicStep::RemoveFinalizer);
        }
        return plan;
    }
    // Where there is no cluster, there is no topic to wait for.
    let wants_finalizer =
        topic.spec.deletion_policy == DeletionPolicy::Delete && !facts.cluster.is_gone();
    match (wants_finalizer, has_finalizer(topic)) {
        (true, false) => plan.steps.push(TopicStep::AddFinalizer),
        (false, true) => plan.steps.push(TopicStep::RemoveFinalizer),
        _ => {}
    }
    if facts.cluster != ClusterState::Ready {
        plan.wait = Some(TopicWait::Cluster(facts.cluster.clone()));
        return plan;
    }
    let spec = &topic.spec;
    let recorded: BTreeSet<String> =
        topic.status.iter().flat_map(|status| status.config_keys.iter().cloned()).gather();
    let wanted: BTreeSet<String> = spec.config.keys().cloned().gather();
    if !wanted.is_subset(&recorded) {
        plan.steps.push(TopicStep::RecordConfigKeys(recorded.union(&wanted).cloned().gather()));
    }
    let Some(live) = &facts.topic else {
        plan_brokers(topic, facts, &mut plan);
        if plan.wait.is_some() || !plan.refusals.is_empty() {
            return plan;
        }
        plan.steps.push(TopicStep::Create(NewTopic {
            name: topic.kafka_name(),
            partitions: spec.partitions,
            replicas: spec.replicas,
            config: spec.config.clone(),
        }));
        plan.steps.extend(forget(&recorded, &wanted));
        return plan;
    };
    match spec.partitions {
        Some(to) if to > live.partitions => {
            plan.steps.push(TopicStep::CreatePartitions { from: live.partitions, to })
        }
        Some(requested) if requested < live.partitions => {
            plan.refusals.push(Refusal::PartitionsShrink { current: live.partitions, requested });
        }
        _ => {}
    }
    plan_replicas(topic, facts, live, &mut plan);
    let set = spec.config.iter().filter(|(key, value)| live.config.get(*key) != Some(value));
    let unset = recorded.difference(&wanted).filter(|key| live.config.contains_key(*key));
    let changes: BTreeMap<String, Option<String>> = set
        .map(|(key, value)| (key.clone(), Some(value.clone())))
        .chain(unset.map(|key| (key.clone(), None)))
        .gather();
    if !changes.is_empty() {
        plan.steps.push(TopicStep::AlterConfig(changes));
    }
    plan.steps.extend(forget(&recorded, &wanted));
    plan
}

/// Whether there are, or will be, as many brokers as each partition is to have replicas.
fn plan_brokers(topic: &KafkaTopic, facts: &TopicFacts, plan: &mut TopicPlan) {
    let Some(BrokerCount { wanted, there, default }) = facts.brokers else { return };
    let needed = topic.spec.replicas.unwrap_or(default);
    if needed > wanted {
        plan.refusals.push(Refusal::TooFewBrokers { brokers: wanted, requested: needed });
    } else if needed > there {
        plan.wait = Some(TopicWait::Brokers { needed, there });
    }
}

/// Has each partition kept by as many brokers as the spec says, and tells which of them move.
fn plan_replicas(topic: &KafkaTopic, facts: &TopicFacts, live: &Topic, plan: &mut TopicPlan) {
    let to = topic.spec.replicas.unwrap_or(live.replicas);
    let differs = topic.spec.replicas.is_some() && (to != live.replicas || live.fewer > 0);
    if differs {
        plan_brokers(topic, facts, plan);
        if plan.wait.is_some() || !plan.refusals.is_empty() {
            return;
        }
        plan.steps.push(TopicStep::ChangeReplicas { from: live.replicas, to });
    }
    if differs || live.moving > 0 {
        // What this step begins moves from the next look on.
        let done = if differs { 0 } else { live.partitions.saturating_sub(live.moving) };
        plan.wait = Some(TopicWait::Moving { done, total: live.partitions });
    }
}

/// After they were unset, keys that left the spec need not be known any more.
fn forget(recorded: &BTreeSet<String>, wanted: &BTreeSet<String>) -> Option<TopicStep> {
    (!recorded.is_subset(wanted)).then(|| TopicStep::RecordConfigKeys(wanted.clone()))
}

impl Refusal {
    /// A CamelCase word for conditions, as Strimzi's topics have it.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PartitionsShrink { .. } | Self::TooFewBrokers { .. } => "NotSupported",
            Self::NotOurTopic { .. } => "ResourceConflict",
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PartitionsShrink { current, requested } => write!(
                f,
                "PartitionsShrink: the topic has {current} partitions and cannot go down to \
                 {requested}, because records would be lost; set spec.partitions to {current} or \
                 more"
            ),
            Self::TooFewBrokers { brokers, requested } => write!(
                f,
                "TooFewBrokers: each partition is to have {requested} replicas, and the cluster \
                 has {brokers} brokers; set spec.replicas to {brokers} or less"
            ),
            Self::NotOurTopic { ours, theirs } => {
                write!(
                    f,
                    "NotOurTopic: the topic of this object had id {ours}; the one that has its \
                     name now, {theirs}, is left alone"
                )
            }
        }
    }
}

impl TopicWait {
    /// Whether waiting alone will not end it.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        matches!(
            self,
            Self::OtherOwner(_)
                | Self::Cluster(ClusterState::NotChecked)
                | Self::NotDeleted(ClusterState::NotChecked)
        )
    }

    /// A CamelCase word for conditions and events.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Cluster(ClusterState::NotChecked) => "ClusterNotChecked",
            Self::Cluster(_) => "WaitingForCluster",
            Self::BeingMade => "BeingMade",
            Self::Brokers { .. } => "WaitingForBrokers",
            Self::Moving { .. } => "ReplicasMoving",
            Self::OtherOwner(_) => "ResourceConflict",
            Self::Deleting(_) | Self::NotDeleted(_) => "Deleting",
            Self::NotMade | Self::NotChanged(_) => "Paused",
            Self::NamespaceTerminating => "NamespaceTerminating",
        }
    }
}

/// What a topic says that waits for a cluster which is [`ClusterState::NotChecked`].
const NOT_CHECKED: &str = "the cluster serves, and the operator cannot check whether its brokers \
                           have the volumes that they had, so that topics would be made on empty \
                           ones; the conditions of the KafkaCluster tell what cannot be checked";

impl std::fmt::Display for TopicWait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cluster(ClusterState::Deleting) => f.write_str("the cluster is being deleted"),
            // The same sentence until the cluster serves, so that each topic is written once: what
            // the cluster waits for is told once, by the cluster.
            Self::Cluster(
                ClusterState::Missing | ClusterState::NotReady | ClusterState::Restarting,
            ) => f.write_str(
                "cluster not ready: there is no KafkaCluster of the name in spec.clusterRef in \
                 this namespace, or its conditions say why it does not serve",
            ),
            Self::Cluster(ClusterState::NotChecked) => f.write_str(NOT_CHECKED),
            Self::Cluster(ClusterState::Unreachable(why)) => {
                write!(f, "the cluster is ready, but does not answer: {why}")
            }
            Self::NotDeleted(state) => {
                f.write_str("the object is being deleted; its topic must be deleted first: ")?;
                match state {
                    ClusterState::NotChecked => f.write_str(NOT_CHECKED)?,
                    ClusterState::Unreachable(why) => {
                        write!(f, "the KafkaCluster is ready, but does not answer: {why}")?;
                    }
                    _ => f.write_str("the KafkaCluster does not serve; its conditions say why")?,
                }
                f.write_str(
                    "; to delete the object at once and keep the topic, set spec.deletionPolicy to \
                     Retain",
                )
            }
            Self::Cluster(ClusterState::Ready) => f.write_str("the cluster is ready"),
            Self::BeingMade => f.write_str(
                "a CreateTopics request is not answered yet; the topic is deleted once it is",
            ),
            Self::Brokers { needed, there } => write!(
                f,
                "waiting for {needed} brokers, one for each replica; {there} have started so far"
            ),
            Self::Moving { done, total } => write!(
                f,
                "replicas are copied to other brokers, or taken from them: {done} of {total} \
                 partitions are done"
            ),
            Self::NamespaceTerminating => f.write_str("the namespace is being deleted"),
            Self::Deleting(held_by) => being_deleted(f, held_by),
            Self::NotMade => f.write_str(
                "the topic does not exist, and is not created while the object is paused",
            ),
            Self::NotChanged(changes) => {
                write!(f, "not done while the object is paused: {}", listed(changes))
            }
            Self::OtherOwner(other) => {
                write!(
                    f,
                    "the older KafkaTopic {other} manages this topic; delete one of the two, or \
                     give this one another spec.topicName"
                )
            }
        }
    }
}

impl std::fmt::Display for TopicStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AddFinalizer => {
                f.write_str("add a finalizer, so that the topic is deleted before the object")
            }
            Self::RemoveFinalizer => f.write_str("remove the finalizer"),
            Self::RecordConfigKeys(_) => {
                f.write_str("record the configured keys in status.configKeys")
            }
            Self::Create(_) => f.write_str("create the topic"),
            Self::CreatePartitions { from, to } => write!(f, "grow from {from} to {to} partitions"),
            Self::ChangeReplicas { from, to } => {
                write!(f, "change the replicas of each partition from {from} to {to}")
            }
            Self::AlterConfig(changes) => {
                let said: Vec<String> = changes
                    .iter()
                    .map(|(key, value)| {
                        format!("{key}={}", value.as_deref().unwrap_or("(default)"))
                    })
                    .collect();
                write!(f, "set {}", said.join(", "))
            }
            Self::Delete { .. } => f.write_str("delete the topic"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_put_together_within_bounds_and_a_large_one_is_alone() {
        let topics = |all: &[(i32, usize)]| -> Vec<(usize, NewTopic)> {
            let new = |(partitions, bytes): &(i32, usize)| NewTopic {
                partitions: (*partitions > 0).then_some(*partitions),
                config: BTreeMap::from([(String::new(), "x".repeat(*bytes))]),
                ..NewTopic::default()
            };
            all.iter().map(new).enumerate().collect()
        };
        let large = TOGETHER_MAX.2;
        for (case, all, expected) in [
            ("none", vec![], vec![]),
            ("many small ones", vec![(1, 0); 1100], vec![500, 500, 100]),
            ("partitions are counted", vec![(3000, 0), (2000, 0), (1, 0)], vec![2, 1]),
            ("too many alone", vec![(1, 0), (100_000, 0), (0, 0)], vec![1, 1, 1]),
            ("bytes are counted", vec![(1, 10), (1, large), (1, large + 1), (1, 9)], vec![1; 4]),
        ] {
            let batches = put_together(topics(&all));
            assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), expected, "{case}");
            let kept: Vec<usize> = batches.into_iter().flatten().map(|(at, _)| at).collect();
            assert_eq!(kept, (0..all.len()).collect::<Vec<_>>(), "{case}");
        }
    }
}
