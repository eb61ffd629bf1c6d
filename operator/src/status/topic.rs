//! The status of a topic.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use letterbox_env::Gather;

use super::waits::{Waiting, waits};
use super::{Conditions, Fault, Told, nothing_changes, paused};
use crate::admin::Topic;
use crate::api::{
    DEGRADED, KafkaTopic, KafkaTopicStatus, PAUSED, PROGRESSING, READY, WaitProgress,
    find_condition, is_paused,
};
use crate::plan::{ClusterState, TopicPlan, TopicStep, TopicWait};

/// The status of a topic after a pass; `live` is the topic as it is after the steps.
#[must_use]
pub fn topic_status(
    topic: &KafkaTopic,
    plan: &TopicPlan,
    live: Option<&Topic>,
    fault: Option<&Fault>,
    now: &Time,
) -> KafkaTopicStatus {
    let old = topic.status.clone().unwrap_or_default();
    if fault.is_none() && is_told_by_its_cluster(topic, plan) {
        return old;
    }
    let generation = topic.metadata.generation;
    let mut conditions = Conditions { all: old.conditions, generation, now };
    set_conditions(&mut conditions, is_paused(&topic.metadata), plan, fault);
    let waits = waits(&old.waits, waiting(topic, plan, fault), now);
    KafkaTopicStatus {
        observed_generation: generation,
        conditions: conditions.all,
        waits,
        topic_name: Some(topic.kafka_name()),
        topic_id: live.map(|live| live.id.clone()).or(old.topic_id),
        partitions: live.map(|live| live.partitions).or(old.partitions),
        replicas: live.map(|live| live.replicas).or(old.replicas),
        config_keys: recorded_keys(plan, fault)
            .unwrap_or_else(|| known_keys(topic, plan, old.config_keys)),
    }
}

/// What does not work, what cannot be done, or what is waited for.
fn waiting(topic: &KafkaTopic, plan: &TopicPlan, fault: Option<&Fault>) -> Vec<Waiting> {
    let own = || "topic".to_owned();
    if let Some(fault) = fault {
        return vec![Waiting::new(&fault.reason, own(), &fault.message)];
    }
    let refusals = plan.refusals.iter();
    let refusals = refusals.map(|refusal| Waiting::new(refusal.reason(), own(), refusal));
    let wait = plan.wait.iter().map(|wait| {
        let subject = match wait {
            TopicWait::Cluster(_) | TopicWait::NotDeleted(_) => {
                format!("KafkaCluster {}", topic.spec.cluster_ref.name)
            }
            TopicWait::OtherOwner(other) => format!("KafkaTopic {other}"),
            _ => own(),
        };
        let progress = match wait {
            TopicWait::Moving { done, total } => Some(WaitProgress {
                done: (*done).into(),
                total: (*total).into(),
                unit: "partitions".to_owned(),
            }),
            _ => None,
        };
        Waiting { progress, ..Waiting::new(wait.reason(), subject, wait) }
    });
    refusals.chain(wait).collect()
}

/// Whether its cluster is away for a moment: that changes nothing about a topic that was looked at
/// since its spec changed.
fn is_told_by_its_cluster(topic: &KafkaTopic, plan: &TopicPlan) -> bool {
    let restarting = TopicWait::Cluster(ClusterState::Restarting);
    let ready = topic.status.as_ref().and_then(|old| find_condition(&old.conditions, READY));
    plan.wait.as_ref() == Some(&restarting)
        && topic.metadata.deletion_timestamp.is_none()
        && ready.is_some_and(|ready| {
            ready.observed_generation == topic.metadata.generation
                && ready.reason != restarting.reason()
        })
}

fn set_conditions(
    conditions: &mut Conditions<'_>,
    is_paused: bool,
    plan: &TopicPlan,
    fault: Option<&Fault>,
) {
    let refusal = plan.refusals.first();
    // Each is Ready, Progressing and Degraded.
    let (ready, progressing, degraded) = match (fault, refusal, &plan.wait) {
        (Some(fault), ..) => (
            Told::fault("False", fault),
            Told::fault("True", fault),
            Some(Told::fault("True", fault)),
        ),
        (None, Some(refusal), _) => {
            let told = |status| Told::new(status, refusal.reason(), refusal);
            (told("False"), told("False"), Some(told("True")))
        }
        (None, None, Some(wait)) => {
            let told = |status| Told::new(status, wait.reason(), wait);
            (told("False"), told("True"), wait.is_fault().then(|| told("True")))
        }
        (None, None, None) => {
            (Told::new("True", "Ready", ""), Told::new("False", "AsDesired", ""), None)
        }
    };
    conditions.set_ready(ready, is_paused);
    conditions.set(PROGRESSING, if is_paused { nothing_changes() } else { progressing });
    conditions.set(DEGRADED, degraded.unwrap_or_else(|| Told::new("False", "NoFault", "")));
    conditions.set(PAUSED, paused(is_paused));
}

/// The keys that are recorded while the cluster is waited for: what its topic will be made with is
/// written down by the same write that tells the wait.
fn known_keys(topic: &KafkaTopic, plan: &TopicPlan, old: Vec<String>) -> Vec<String> {
    if is_paused(&topic.metadata) || !matches!(plan.wait, Some(TopicWait::Cluster(_))) {
        return old;
    }
    let all: BTreeSet<String> = old.into_iter().chain(topic.spec.config.keys().cloned()).gather();
    all.into_iter().collect()
}

/// The last record of keys that was reached; a pass that failed on the way keeps the larger set.
fn recorded_keys(plan: &TopicPlan, fault: Option<&Fault>) -> Option<Vec<String>> {
    let mut recorded = plan.steps.iter().filter_map(|step| match step {
        TopicStep::RecordConfigKeys(keys) => Some(keys.iter().cloned().collect::<Vec<_>>()),
        _ => None,
    });
    if fault.is_none() { recorded.next_back() } else { recorded.next() }
}
