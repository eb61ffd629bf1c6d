//! Volumes: their claims, their growth, and what about them cannot be as the spec says.

use super::cluster::recorded_node;
use super::safety::may_end;
use super::{Note, Plan, Step, Wait};
use crate::api::{DeletionPolicy, KafkaCluster, NodeStatus, VolumeStatus, bytes_of, shown};
use crate::desired::{Blueprint, BrokerVolume};
use crate::observe::{Observed, ObservedBroker, Part, Run, Volume};

pub(super) fn plan_volumes(
    cluster: &KafkaCluster,
    desired: &Blueprint,
    observed: &Observed,
    plan: &mut Plan,
) {
    // No volume has the cluster for an owner: what is deleted with it is decided when it goes, by
    // what its spec says then.
    let held = desired.storage.deletion_policy == DeletionPolicy::Delete;
    if observed.is_held.is_some_and(|is_held| is_held != held) {
        plan.steps.push(Step::HoldObject { held });
    }
    let absent = ObservedBroker::default();
    for (&id, broker) in &desired.brokers {
        let seen = observed.brokers.get(&id).unwrap_or(&absent);
        let node = plan.nodes.iter().find(|node| node.id == id).cloned().unwrap_or_default();
        let is_recorded = |volume: &BrokerVolume| {
            node.volume(&volume.name).is_some_and(|known| known.directory_id.is_some())
        };
        if seen.serves() && seen.identity.is_none() && !broker.volumes.iter().all(is_recorded) {
            plan.waits.push(Wait::IdentityUnknown { broker: id });
        }
        for volume in &broker.volumes {
            match seen.volumes.get(&volume.name) {
                None if volume.in_spec && observed.was_read(Part::Brokers) => {
                    let recorded = recorded_node(cluster, id);
                    if recorded.into_iter().chain([&node]).all(|node| is_free(node, volume)) {
                        let volume = volume.name.clone();
                        plan.steps.push(Step::MakeClaim { broker: id, volume });
                    }
                }
                None => {}
                Some(live) if live.is_gone => {
                    plan_gone(cluster, id, volume, live, observed, plan);
                }
                // What the spec says for all volumes is not said of one that it does not name.
                Some(live) if volume.in_spec => plan_live(id, volume, live, &node, plan),
                Some(_) => {}
            }
            if seen.run != Run::Absent
                && let Some(live) = seen.volumes.get(&volume.name).filter(|live| live.is_lent())
            {
                let claim = live.claim.clone();
                plan.waits.push(Wait::ClaimEnding { broker: id, claim });
            }
            if !volume.in_spec {
                let volume = volume.name.clone();
                plan.waits.push(Wait::VolumeStillUsed { broker: id, volume });
            }
            plan_use(id, volume, &node, seen, plan);
        }
        let is_left = |(name, live): &(&String, &Volume)| {
            let is_wanted = broker.volumes.iter().any(|volume| volume.name == **name);
            !is_wanted && !live.is_ending && !live.is_restored && !live.is_bound
        };
        plan.steps.extend(
            seen.volumes
                .iter()
                .filter(is_left)
                .map(|(name, _)| Step::DropClaim { broker: id, volume: name.clone() }),
        );
    }
}

/// Whether an empty claim may be made for a volume that has none: no broker has used it, and none
/// of what it had is missed. After a loss that is so once its acceptance is written down.
fn is_free(node: &NodeStatus, volume: &BrokerVolume) -> bool {
    node.volume(&volume.name).is_none()
        && !node.open_losses().any(|loss| loss.volume == volume.name)
}

/// A claim whose volume is gone says which volume it was: it stays until its loss was accepted.
/// Then it is deleted, and goes when the broker that has it ends.
fn plan_gone(
    cluster: &KafkaCluster,
    id: i32,
    wanted: &BrokerVolume,
    live: &Volume,
    observed: &Observed,
    plan: &mut Plan,
) {
    let volume = wanted.name.clone();
    if is_given_up(recorded_node(cluster, id), &volume, live) {
        if !live.is_ending && may_end(cluster, id, observed, plan).is_ok() {
            let why = "its PersistentVolume is gone".to_owned();
            plan.steps.push(Step::RemakeClaim { broker: id, volume, why });
        }
        return;
    }
    let node = plan.nodes.iter().find(|node| node.id == id);
    let is_lost = |node: &NodeStatus| node.losses.iter().any(|loss| loss.volume == volume);
    if let Some(fault) = live.fault.clone().filter(|_| !node.is_some_and(is_lost)) {
        plan.waits.push(Wait::VolumeNotMade { broker: id, volume, fault });
    }
}

/// Whether it is written down that a person accepted the loss of what this claim stands for.
pub(super) fn is_given_up(recorded: Option<&NodeStatus>, volume: &str, live: &Volume) -> bool {
    let mut accepted = recorded.into_iter().flat_map(NodeStatus::accepted_losses);
    accepted.any(|loss| loss.volume == volume && loss.claim_uid.as_ref() == Some(&live.uid))
}

/// A claim that is there, compared with what the spec says of it.
fn plan_live(id: i32, wanted: &BrokerVolume, live: &Volume, node: &NodeStatus, plan: &mut Plan) {
    let is_lost = node.open_losses().any(|loss| loss.volume == wanted.name);
    if is_lost || live.is_ending {
        return; // Nothing is done to what a person is to decide on, or has decided on.
    }
    let volume = wanted.name.clone();
    let is_free = !live.is_bound && !live.is_restored;
    if let Some(why) = fault_of(wanted, live).filter(|_| is_free) {
        plan.steps.push(Step::RemakeClaim { broker: id, volume, why });
        return;
    }
    match (&wanted.class, &live.fault) {
        (Some(spec), _) if live.class.as_ref() != Some(spec) => {
            let (from, spec) = (live.class.clone().unwrap_or_default(), spec.clone());
            plan.waits.push(Wait::OtherClass { broker: id, volume, live: from, spec });
        }
        (_, Some(fault)) => {
            plan.waits.push(Wait::VolumeNotMade { broker: id, volume, fault: fault.clone() });
        }
        _ => {}
    }
    plan_size(id, wanted, live, plan);
}

/// What is wrong with a claim that has nothing behind it, and that can only be made again.
fn fault_of(wanted: &BrokerVolume, live: &Volume) -> Option<String> {
    let differs = match &wanted.class {
        Some(class) => live.class.as_ref() != Some(class),
        // The default is right, whichever it is now; a class that was asked for once is not.
        None => live.asked_class.as_ref().is_some_and(|asked| !asked.is_empty()),
    };
    if differs {
        let from = live.class.as_deref().unwrap_or("the default one");
        let to = wanted.class.as_deref().unwrap_or("the default one");
        return Some(format!(
            "no volume was made for it in storage class {from}, and the spec says {to}"
        ));
    }
    let size = bytes_of(&wanted.size).filter(|size| *size != live.requested)?;
    let (from, to) = (shown(live.requested), shown(size));
    Some(format!("no volume was made for it, and it asks for {from} where the spec says {to}"))
}

fn plan_size(broker: i32, wanted: &BrokerVolume, live: &Volume, plan: &mut Plan) {
    let Some(spec) = bytes_of(&wanted.size) else { return };
    let (name, from) = (&wanted.name, live.requested);
    if from < spec && live.is_bound {
        plan.steps.push(Step::GrowVolume { broker, volume: name.clone(), from, to: spec });
    } else if from > spec {
        let note = Note::VolumeLargerThanSpec { broker, volume: name.clone(), live: from, spec };
        plan.notes.push(note);
    }
    let to = from.max(spec);
    if live.capacity > 0 && live.capacity < to {
        let from = live.capacity;
        plan.waits.push(Wait::VolumeGrowing { broker, volume: name.clone(), from, to });
    }
}

/// A broker that was started with a volume, or used it once, says whether it uses it. What it said
/// last is so until it says something else.
fn plan_use(
    id: i32,
    volume: &BrokerVolume,
    node: &NodeStatus,
    seen: &ObservedBroker,
    plan: &mut Plan,
) {
    let is_lost = node.losses.iter().any(|loss| loss.volume == volume.name);
    if !is_lost && is_offline(&volume.log_dir, node.volume(&volume.name), seen) {
        let (volume, log_dir) = (volume.name.clone(), volume.log_dir.clone());
        plan.waits.push(Wait::VolumeOffline { broker: id, volume, log_dir });
    }
}

/// Whether a broker that should use `log_dir` does not.
pub(super) fn is_offline(
    log_dir: &str,
    recorded: Option<&VolumeStatus>,
    seen: &ObservedBroker,
) -> bool {
    match seen.identity {
        Some(_) => {
            let was_used = recorded.is_some_and(|volume| volume.directory_id.is_some());
            (was_used || seen.is_current) && !seen.uses(log_dir)
        }
        None => recorded.is_some_and(|volume| volume.offline),
    }
}
