//! What is said: pure functions from spec, observation, plan and outcome to status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::admin::Topic;
use crate::api::{
    DEGRADED, KafkaCluster, KafkaClusterStatus, KafkaTopic, KafkaTopicStatus, ListenerStatus,
    NodeStatus, PAUSED, PROGRESSING, READY, VolumeStatus, condition, find_condition, is_paused,
    set_condition,
};
use crate::desired::{Blueprint, POOL, objects};
use crate::observe::{Observed, Part, Run};
use crate::plan::{ClusterState, Plan, Step, TopicPlan, TopicStep, TopicWait, Wait};

/// A step that did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// A CamelCase word for it.
    pub reason: String,
    /// What was tried and what was said.
    pub message: String,
}

/// The status of a cluster after a pass in which `faults` were met.
#[must_use]
pub fn cluster_status(
    cluster: &KafkaCluster,
    desired: &Blueprint,
    observed: &Observed,
    plan: &Plan,
    faults: &[(Step, Fault)],
    now: &Time,
) -> KafkaClusterStatus {
    let old = cluster.status.clone().unwrap_or_default();
    let generation = cluster.metadata.generation;
    let wanted = desired.brokers.len();
    let ready = desired
        .brokers
        .keys()
        .filter(|id| observed.brokers.get(id).is_some_and(|broker| broker.run == Run::Ready))
        .count();
    let paused = is_paused(&cluster.metadata);
    let blocking = plan.waits.iter().find(|wait| wait.blocks_ready());
    let fault = plan.waits.iter().find(|wait| wait.is_fault());

    // A volume that cannot grow, or a repair that does not work, keeps nobody from the cluster:
    // only Degraded tells it.
    let in_the_way = faults.iter().find(|(step, _)| step.blocks_ready()).map(|(_, fault)| fault);
    let (ready_now, reason, message) = match (in_the_way, blocking) {
        (Some(fault), _) => ("False", fault.reason.as_str(), fault.message.clone()),
        // Nothing is claimed that was not checked, good or bad.
        (None, Some(wait @ Wait::NotRead { .. })) => ("Unknown", wait.reason(), wait.to_string()),
        (None, Some(wait)) => ("False", wait.reason(), wait.to_string()),
        (None, None) if ready < wanted => {
            ("False", "BrokersNotReady", format!("{ready} of {wanted} brokers are ready"))
        }
        // Steps that repair an address or a definition without a restart keep nobody from the
        // cluster.
        (None, None) => (
            "True",
            "Ready",
            plan.notes
                .first()
                .map_or_else(|| "every broker is ready".to_owned(), ToString::to_string),
        ),
    };
    let mut conditions = old.conditions;
    let was_told = find_condition(&conditions, READY).is_some();
    let mut set_status = |type_: &str, status: &str, reason: &str, message: String| {
        let told = condition(type_, false, reason, message, generation, now.clone());
        set_condition(&mut conditions, Condition { status: status.to_owned(), ..told });
    };
    if !paused {
        set_status(READY, ready_now, reason, message);
    }
    let mut set = |type_: &str, status: bool, reason: &str, message: String| {
        set_status(type_, if status { "True" } else { "False" }, reason, message);
    };
    match (paused, was_told) {
        (false, _) => {}
        (true, false) => {
            set(READY, false, "Paused", "nothing was done for this cluster yet".to_owned())
        }
        // What was changed since the pause is not applied: Ready speaks of the generation before
        // it. Broker counts are told as they are.
        (true, true) => {}
    }
    match (faults.first(), plan.waits.first(), plan.steps.first()) {
        _ if paused => set(
            PROGRESSING,
            false,
            "Paused",
            "nothing is changed while the object is paused".to_owned(),
        ),
        (Some((_, fault)), ..) => set(PROGRESSING, true, &fault.reason, fault.message.clone()),
        (None, Some(wait), _) => set(PROGRESSING, true, wait.reason(), wait.to_string()),
        (None, None, Some(step)) => set(PROGRESSING, true, step.reason(), step.to_string()),
        (None, None, None) => set(
            PROGRESSING,
            false,
            "AsDesired",
            "everything is as the spec describes it".to_owned(),
        ),
    }
    match (faults.first(), fault) {
        (Some((_, fault)), _) => set(DEGRADED, true, &fault.reason, fault.message.clone()),
        (None, Some(wait)) => set(DEGRADED, true, wait.reason(), wait.to_string()),
        (None, None) => set(DEGRADED, false, "NoFault", String::new()),
    }
    set(PAUSED, paused, if paused { "PausedByAnnotation" } else { "NotPaused" }, String::new());

    let phase = match (paused, ready_now) {
        (true, _) => "Paused".to_owned(),
        (false, "True") => "Ready".to_owned(),
        // A change that does not work is what stands in the way, whatever is waited for besides.
        (false, _) if in_the_way.is_some() => "Change failing".to_owned(),
        (false, _) => blocking.map_or("Starting", Wait::phase).to_owned(),
    };
    // What is only asked for, and what could not be started, is not what runs.
    let serving = observed.brokers.values().filter(|broker| broker.run == Run::Ready);
    let images: std::collections::BTreeSet<&String> =
        serving.filter_map(|broker| broker.image.as_ref()).collect();
    let image = (images.len() == 1).then(|| images.first().map(|image| (*image).clone())).flatten();
    let asks_for_default = cluster.spec.image.is_none() && cluster.spec.version.is_none();
    let proven = asks_for_default && !paused && images.contains(&desired.image);
    let default_image = if proven { Some(desired.image.clone()) } else { old.default_image };
    let was_read = |part: Part| !observed.unread.contains_key(&part);
    let told_id = || {
        let identity = || {
            observed
                .brokers
                .values()
                .find_map(|broker| Some(broker.identity.as_ref()?.cluster_id.clone()))
        };
        observed.cluster_id.clone().or_else(identity)
    };
    let listeners = desired.listeners.iter().filter_map(|listener| {
        let bootstrap_servers = observed.bootstrap.get(&listener.name)?.clone();
        Some(ListenerStatus { name: listener.name.clone(), bootstrap_servers })
    });
    let listeners = if was_read(Part::Access) && was_read(Part::Brokers) {
        listeners.collect()
    } else {
        old.listeners
    };
    let status = KafkaClusterStatus {
        observed_generation: generation,
        phase_since: if phase == old.phase {
            old.phase_since.or_else(|| Some(now.clone()))
        } else {
            Some(now.clone())
        },
        phase,
        conditions,
        listeners,
        cluster_id: old
            .cluster_id
            .or_else(|| desired.cluster_id.clone().filter(|_| ready > 0))
            .or_else(told_id),
        nodes: if paused { old.nodes } else { nodes(&old.nodes, desired, observed, plan) },
        replicas: i32::try_from(
            observed.brokers.values().filter(|broker| broker.run != Run::Absent).count(),
        )
        .unwrap_or(i32::MAX),
        ready_replicas: i32::try_from(ready).unwrap_or(i32::MAX),
        selector: Some(objects::selector_text(&desired.name)),
        brokers: format!("{ready}/{wanted}"),
        version: image.as_deref().and_then(tag_of).map(ToOwned::to_owned),
        image,
        default_image,
    };
    if was_read(Part::Brokers) {
        return status;
    }
    // What was last seen stays: which brokers run now is not known.
    KafkaClusterStatus {
        replicas: old.replicas,
        ready_replicas: old.ready_replicas,
        brokers: old.brokers,
        version: old.version,
        image: old.image,
        ..status
    }
}

/// What is remembered of each broker. What was recorded stays as it was while it is not seen, and
/// while its loss is not accepted.
fn nodes(
    old: &[NodeStatus],
    desired: &Blueprint,
    observed: &Observed,
    plan: &Plan,
) -> Vec<NodeStatus> {
    let node = |id: &i32| {
        let new = || NodeStatus { id: *id, incarnation: 1, ..NodeStatus::default() };
        let mut node = old.iter().find(|node| node.id == *id).cloned().unwrap_or_else(new);
        node.pool = POOL.to_owned();
        node.roles = vec!["broker".to_owned(), "controller".to_owned()];
        match plan.losses.iter().find(|loss| loss.broker == *id) {
            Some(loss) if !loss.is_accepted => {
                node.data_loss = Some(loss.name.clone());
                return node;
            }
            Some(_) => {
                node.incarnation += 1;
                node.volumes.clear();
            }
            None => {}
        }
        node.data_loss = None;
        let seen = observed.brokers.get(id);
        if let Some(live) = seen.and_then(|broker| broker.volume.as_ref()) {
            if node.volumes.is_empty() {
                node.volumes.push(VolumeStatus {
                    name: objects::CLAIM.to_owned(),
                    ..VolumeStatus::default()
                });
            }
            for volume in node.volumes.iter_mut().filter(|volume| volume.name == objects::CLAIM) {
                (volume.claim, volume.claim_uid) = (live.claim.clone(), Some(live.uid.clone()));
                let told = seen
                    .and_then(|broker| broker.identity.as_ref()?.directory_ids.first().cloned());
                volume.directory_id = told.or(volume.directory_id.take());
            }
        }
        node
    };
    desired.brokers.keys().map(node).collect()
}

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
    let generation = topic.metadata.generation;
    let paused = is_paused(&topic.metadata);
    if fault.is_none()
        && plan.wait == Some(TopicWait::Cluster(ClusterState::Restarting))
        && topic.metadata.deletion_timestamp.is_none()
    {
        // It changes nothing about a topic that was looked at since its spec changed.
        let told = find_condition(&old.conditions, READY)
            .filter(|ready| ready.observed_generation == generation);
        if told.is_some_and(|ready| {
            ready.reason != TopicWait::Cluster(ClusterState::Restarting).reason()
        }) {
            return old;
        }
    }
    let mut conditions: Vec<Condition> = old.conditions;
    let mut set = |type_: &str, status: bool, reason: &str, message: String| {
        set_condition(
            &mut conditions,
            condition(type_, status, reason, message, generation, now.clone()),
        );
    };
    let refusal = plan.refusals.first();
    match (fault, refusal, &plan.wait) {
        // What was true before the pause is still what is known.
        _ if paused => {
            if find_condition(&old_conditions(topic), READY).is_none() {
                set(READY, false, "Paused", "nothing was done for this topic yet".to_owned());
            }
        }
        (Some(fault), ..) => set(READY, false, &fault.reason, fault.message.clone()),
        (None, Some(refusal), _) => set(READY, false, refusal.reason(), refusal.to_string()),
        (None, None, Some(wait)) => set(READY, false, wait.reason(), wait.to_string()),
        (None, None, None) => set(READY, true, "Ready", String::new()),
    }
    match (fault, refusal, &plan.wait) {
        _ if paused => set(
            PROGRESSING,
            false,
            "Paused",
            "nothing is changed while the object is paused".to_owned(),
        ),
        (Some(fault), ..) => set(PROGRESSING, true, &fault.reason, fault.message.clone()),
        (None, Some(refusal), _) => set(PROGRESSING, false, refusal.reason(), refusal.to_string()),
        (None, None, Some(wait)) => set(PROGRESSING, true, wait.reason(), wait.to_string()),
        (None, None, None) => set(PROGRESSING, false, "AsDesired", String::new()),
    }
    match (fault, refusal, &plan.wait) {
        (Some(fault), ..) => set(DEGRADED, true, &fault.reason, fault.message.clone()),
        (None, Some(refusal), _) => set(DEGRADED, true, refusal.reason(), refusal.to_string()),
        (None, None, Some(wait @ TopicWait::OtherOwner(_))) => {
            set(DEGRADED, true, wait.reason(), wait.to_string())
        }
        _ => set(DEGRADED, false, "NoFault", String::new()),
    }
    set(PAUSED, paused, if paused { "PausedByAnnotation" } else { "NotPaused" }, String::new());
    // The last record that was reached; a pass that failed on the way keeps the larger set.
    let mut recorded = plan.steps.iter().filter_map(|step| match step {
        TopicStep::RecordConfigKeys(keys) => Some(keys.iter().cloned().collect::<Vec<_>>()),
        _ => None,
    });
    let config_keys = if fault.is_none() { recorded.next_back() } else { recorded.next() };
    KafkaTopicStatus {
        observed_generation: generation,
        conditions,
        topic_name: Some(topic.kafka_name()),
        topic_id: live.map(|live| live.id.clone()).or(old.topic_id),
        partitions: live.map(|live| live.partitions).or(old.partitions),
        replicas: live.map(|live| live.replicas).or(old.replicas),
        config_keys: config_keys.unwrap_or(old.config_keys),
    }
}

fn old_conditions(topic: &KafkaTopic) -> Vec<Condition> {
    topic.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default()
}

/// The tag of an image reference; `None` when it has none.
fn tag_of(image: &str) -> Option<&str> {
    let name = image.split('@').next()?;
    let (_, tag) = name.rsplit('/').next()?.split_once(':')?;
    Some(tag)
}

#[cfg(test)]
mod tests {
    use super::tag_of;

    #[test]
    fn the_version_is_the_tag() {
        assert_eq!(tag_of("letterbox:0.1.0"), Some("0.1.0"));
        assert_eq!(tag_of("registry.example:5000/a/letterbox:0.1.0@sha256:00"), Some("0.1.0"));
        assert_eq!(tag_of("registry.example:5000/a/letterbox"), None);
    }
}
