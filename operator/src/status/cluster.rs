//! The status of a cluster.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use letterbox_env::Gather;

use super::waits::{Waiting, waits};
use super::{Conditions, Fault, Told, nothing_changes, paused};
use crate::api::{
    DEGRADED, KafkaCluster, KafkaClusterStatus, ListenerStatus, PAUSED, PROGRESSING, WaitProgress,
    is_paused,
};
use crate::desired::{Blueprint, objects, tag_of};
use crate::observe::{Observed, Part, Run};
use crate::plan::{Plan, Step, Wait};

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
    // A pause does not hold up a deletion.
    let is_deleted = cluster.metadata.deletion_timestamp.is_some();
    let is_paused = is_paused(&cluster.metadata) && !is_deleted;
    let (ready, wanted) = (serving(desired, observed), desired.brokers.len());
    let readiness = readiness(ready, wanted, plan, faults);
    let is_well = readiness.told.status == "True";
    let phase = if is_paused && is_well { "Paused" } else { readiness.phase }.to_owned();
    let since = old.phase_since.filter(|_| phase == old.phase);
    let generation = cluster.metadata.generation;
    let mut conditions = Conditions { all: old.conditions, generation, now };
    set_conditions(&mut conditions, is_paused, readiness.told, plan, faults);
    let images = images(observed);
    let image = images.first().filter(|_| images.len() == 1).map(|image| (*image).clone());
    let asks_for_default = cluster.spec.image.is_none() && cluster.spec.version.is_none();
    let is_proven = asks_for_default && !is_paused && images.contains(&desired.image);
    let is_known = observed.was_read(Part::Access) && observed.was_read(Part::Brokers);
    let exist = observed.brokers.values().filter(|broker| broker.run != Run::Absent).count();
    let status = KafkaClusterStatus {
        observed_generation: generation,
        phase_since: since.or_else(|| Some(now.clone())),
        phase,
        conditions: conditions.all,
        waits: waits(&old.waits, all_waits(desired, observed, plan, faults), now),
        listeners: if is_known { listeners(desired, observed) } else { old.listeners },
        cluster_id: desired
            .cluster_id
            .clone()
            .filter(|_| ready > 0 || old.cluster_id.is_some())
            .or(old.cluster_id)
            .or_else(|| told_id(observed)),
        nodes: plan.nodes.clone(),
        replicas: i32::try_from(exist).unwrap_or(i32::MAX),
        ready_replicas: i32::try_from(ready).unwrap_or(i32::MAX),
        selector: Some(objects::selector_text(&desired.name)),
        brokers: format!("{ready}/{wanted}"),
        version: image.as_deref().and_then(tag_of).map(ToOwned::to_owned),
        image,
        default_image: if is_proven { Some(desired.image.clone()) } else { old.default_image },
    };
    if observed.was_read(Part::Brokers) {
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

/// How many of the brokers that should be serve clients.
fn serving(desired: &Blueprint, observed: &Observed) -> usize {
    let serves =
        |id: &&i32| observed.brokers.get(id).is_some_and(|broker| broker.run == Run::Ready);
    desired.brokers.keys().filter(serves).count()
}

/// What does not work, and then what is waited for.
fn all_waits(
    desired: &Blueprint,
    observed: &Observed,
    plan: &Plan,
    faults: &[(Step, Fault)],
) -> Vec<Waiting> {
    let failed = faults.iter().map(|(step, fault)| {
        Waiting::new(&fault.reason, step.subject(), format!("{step}: {}", fault.message))
    });
    let waits = plan.waits.iter().map(|wait| {
        let (progress, left) = progress_of(wait, desired, observed);
        Waiting { progress, left, ..Waiting::new(wait.reason(), wait.subject(), wait) }
    });
    failed.chain(waits).collect()
}

/// How far what is waited for is, and how long it takes yet.
fn progress_of(
    wait: &Wait,
    desired: &Blueprint,
    observed: &Observed,
) -> (Option<WaitProgress>, Option<Duration>) {
    let progress = |done: u64, total: u64, unit: &str| {
        let (done, total) = (i64::try_from(done).ok()?, i64::try_from(total).ok()?);
        Some(WaitProgress { done, total, unit: unit.to_owned() })
    };
    match wait {
        Wait::BrokerStarting { broker, .. } => {
            let identity = observed.brokers.get(broker).and_then(|seen| seen.identity.as_ref());
            match identity.and_then(|said| said.opening.as_ref()) {
                Some(opening) => (progress(opening.done, opening.total, "logs"), opening.left),
                None => (None, None),
            }
        }
        Wait::BrokerRestarting { .. }
        | Wait::OtherBrokerDown { .. }
        | Wait::RestartNotSafe { .. }
        | Wait::NotRestarted { .. } => {
            let is_done = |id: &&i32| {
                let seen = observed.brokers.get(id);
                seen.is_some_and(|seen| seen.run == Run::Ready && seen.is_current)
            };
            let done = desired.brokers.keys().filter(is_done).count();
            (progress(done as u64, desired.brokers.len() as u64, "brokers"), None)
        }
        _ => (None, None),
    }
}

/// The Ready condition, and what is going on in a few words.
struct Readiness {
    told: Told,
    phase: &'static str,
}

fn readiness(ready: usize, wanted: usize, plan: &Plan, faults: &[(Step, Fault)]) -> Readiness {
    // A volume that cannot grow, or a repair that does not work, keeps nobody from the cluster:
    // only Degraded tells it.
    let in_the_way = faults.iter().find(|(step, _)| step.blocks_ready()).map(|(_, fault)| fault);
    let blocking = plan.waits.iter().find(|wait| wait.blocks_ready());
    match (in_the_way, blocking) {
        // A change that does not work is what stands in the way, whatever is waited for besides.
        (Some(fault), _) => {
            Readiness { told: Told::fault("False", fault), phase: "Change failing" }
        }
        (None, Some(wait)) => {
            // Nothing is claimed that was not checked, good or bad.
            let is_unread = matches!(wait, Wait::NotRead { .. });
            let status = if is_unread { "Unknown" } else { "False" };
            Readiness { told: Told::new(status, wait.reason(), wait), phase: wait.phase() }
        }
        (None, None) if ready < wanted => Readiness {
            told: Told::new(
                "False",
                "BrokersNotReady",
                format!("{ready} of {wanted} brokers are ready"),
            ),
            phase: "Starting",
        },
        // Steps that repair an address or a definition without a restart keep nobody from the
        // cluster.
        (None, None) => {
            let note = plan.notes.first().map(ToString::to_string);
            let message = note.unwrap_or_else(|| "every broker is ready".to_owned());
            Readiness { told: Told::new("True", "Ready", message), phase: "Ready" }
        }
    }
}

fn set_conditions(
    conditions: &mut Conditions<'_>,
    is_paused: bool,
    ready: Told,
    plan: &Plan,
    faults: &[(Step, Fault)],
) {
    conditions.set_ready(ready, is_paused);
    let fault = faults.first().map(|(_, fault)| fault);
    let progressing = match (fault, plan.waits.first(), plan.steps.first()) {
        _ if is_paused => nothing_changes(),
        (Some(fault), ..) => Told::fault("True", fault),
        (None, Some(wait), _) => Told::new("True", wait.reason(), wait),
        (None, None, Some(step)) => Told::new("True", step.reason(), step),
        (None, None, None) => {
            Told::new("False", "AsDesired", "everything is as the spec describes it")
        }
    };
    conditions.set(PROGRESSING, progressing);
    let failed = faults.iter().map(|(_, fault)| Told::fault("True", fault));
    let waits = plan.waits.iter().filter(|wait| wait.is_fault());
    let waits = waits.map(|wait| Told::new("True", wait.reason(), wait));
    let degraded = all_of(failed.chain(waits).collect());
    conditions.set(DEGRADED, degraded.unwrap_or_else(|| Told::new("False", "NoFault", "")));
    conditions.set(PAUSED, paused(is_paused));
}

/// So many faults are told in full.
const FAULTS_TOLD: usize = 8;

/// All faults in one, the worst first: one of them hides no other.
fn all_of(mut faults: Vec<Told>) -> Option<Told> {
    let mut known = BTreeSet::new();
    faults.retain(|fault| known.insert(fault.message.clone()));
    let more = faults.len().saturating_sub(FAULTS_TOLD);
    faults.truncate(FAULTS_TOLD);
    let mut all = faults.into_iter();
    let mut told = all.next()?;
    for other in all {
        told.message = format!("{}; also, {}: {}", told.message, other.reason, other.message);
    }
    if more > 0 {
        told.message = format!("{}; and {more} more", told.message);
    }
    Some(told)
}

/// The images that serving brokers run. What is only asked for, and what could not be started, is
/// not what runs.
fn images(observed: &Observed) -> BTreeSet<&String> {
    let serving = observed.brokers.values().filter(|broker| broker.run == Run::Ready);
    serving.filter_map(|broker| broker.image.as_ref()).gather()
}

/// The cluster's id, as its brokers tell it.
fn told_id(observed: &Observed) -> Option<String> {
    let said = observed.brokers.values().filter_map(|broker| broker.identity.as_ref());
    let mut ids = said.map(|identity| identity.cluster_id.clone()).filter(|id| !id.is_empty());
    observed.cluster_id.clone().or_else(|| ids.next())
}

fn listeners(desired: &Blueprint, observed: &Observed) -> Vec<ListenerStatus> {
    let listeners = desired.listeners.iter().filter_map(|listener| {
        let bootstrap_servers = observed.bootstrap.get(&listener.name)?.clone();
        Some(ListenerStatus { name: listener.name.clone(), bootstrap_servers })
    });
    listeners.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::KafkaClusterSpec;
    use crate::desired::Facts;

    #[test]
    fn what_grows_at_once_has_no_progress_and_long_words_are_cut() {
        let cluster = KafkaCluster::new("c", KafkaClusterSpec::default());
        let desired = Blueprint::build(&cluster, &Facts::default());
        let grows = Wait::VolumeGrowing {
            broker: 0,
            volume: "data".to_owned(),
            from: 1 << 30,
            to: 2 << 30,
        };
        let unused = Wait::UnusedClaims {
            claims: (0..1000).map(|number| format!("data-c-broker-{number}-0")).collect(),
        };
        let long = Wait::NotRestarted { broker: 0, why: "é".repeat(5_000) };
        let plan = Plan { waits: vec![grows, unused, long], ..Plan::default() };
        let told = all_waits(&desired, &Observed::default(), &plan, &[]);
        assert_eq!(told[0].progress, None);
        assert!(told[1].message.contains("data-c-broker-7-0 and 992 more have this"));
        assert!(told[2].message.ends_with("é…") && told[2].message.chars().count() == 2_001);
    }
}
