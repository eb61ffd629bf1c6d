//! Volumes: their claims, their growth, and what about them cannot be as the spec says.

use super::loss::Loss;
use super::{Note, Plan, Step, Wait};
use crate::api::{DeletionPolicy, bytes_of};
use crate::desired::{Blueprint, BrokerVolume};
use crate::observe::{Observed, ObservedBroker, Run, Volume};

pub(super) fn plan_volumes(desired: &Blueprint, observed: &Observed, plan: &mut Plan) {
    // No volume has the cluster for an owner: what is deleted with it is decided when it goes, by
    // what its spec says then.
    let held = desired.storage.deletion_policy == DeletionPolicy::Delete;
    if observed.is_held.is_some_and(|is_held| is_held != held) {
        plan.steps.push(Step::HoldObject { held });
    }
    let absent = ObservedBroker::default();
    for (&id, broker) in &desired.brokers {
        let seen = observed.brokers.get(&id).unwrap_or(&absent);
        for volume in &broker.volumes {
            match seen.volumes.get(&volume.name) {
                None => plan_claim(id, volume, seen, plan),
                // What the spec says for all volumes is not said of one that it does not name.
                Some(live) if volume.in_spec => {
                    plan_class(id, volume, live, plan);
                    plan_size(id, volume, live, plan);
                }
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
            plan_use(id, volume, seen, plan);
        }
        let is_left = |(name, live): &(&String, &Volume)| {
            let is_wanted = broker.volumes.iter().any(|volume| volume.name == **name);
            !is_wanted && !live.is_bound && !live.is_ending
        };
        plan.steps.extend(
            seen.volumes
                .iter()
                .filter(is_left)
                .map(|(name, _)| Step::DropClaim { broker: id, volume: name.clone() }),
        );
    }
}

/// An empty claim in the place of a lost one is made only when the loss was accepted.
fn plan_claim(broker: i32, volume: &BrokerVolume, seen: &ObservedBroker, plan: &mut Plan) {
    let is_here = |loss: &&Loss| (loss.broker, &loss.volume) == (broker, &volume.name);
    // What a broker still uses is recorded by this pass, and a loss in the next one.
    let is_empty = match plan.losses.iter().find(is_here) {
        Some(loss) => loss.is_accepted,
        None => !seen.uses(&volume.log_dir),
    };
    if is_empty {
        plan.steps.push(Step::MakeClaim { broker, volume: volume.name.clone() });
    }
}

fn plan_class(broker: i32, wanted: &BrokerVolume, live: &Volume, plan: &mut Plan) {
    let volume = wanted.name.clone();
    let from = live.class.clone().unwrap_or_default();
    let differs = match &wanted.class {
        Some(class) => live.class.as_ref() != Some(class),
        // The default is right, whichever it is now; a class that was asked for once is not.
        None => !live.is_bound && live.asked_class.as_ref().is_some_and(|asked| !asked.is_empty()),
    };
    match (&wanted.class, &live.fault) {
        (Some(spec), _) if differs && live.is_bound => {
            plan.waits.push(Wait::OtherClass { broker, volume, live: from, spec: spec.clone() });
        }
        (to, _) if differs && !live.is_ending => {
            plan.steps.push(Step::RemakeClaim { broker, volume, from, to: to.clone() });
        }
        (_, Some(fault)) => {
            plan.waits.push(Wait::VolumeNotMade { broker, volume, fault: fault.clone() });
        }
        _ => {}
    }
}

fn plan_size(broker: i32, wanted: &BrokerVolume, live: &Volume, plan: &mut Plan) {
    let Some(spec) = bytes_of(&wanted.size) else { return };
    let (name, from) = (&wanted.name, live.requested);
    if from < spec {
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

/// A broker that was started with a volume, and answers, says whether it uses it.
fn plan_use(broker: i32, volume: &BrokerVolume, seen: &ObservedBroker, plan: &mut Plan) {
    let Some(said) = seen.identity.as_ref().filter(|_| seen.is_current) else { return };
    if !said.directories.contains_key(&volume.log_dir) {
        let (volume, log_dir) = (volume.name.clone(), volume.log_dir.clone());
        plan.waits.push(Wait::VolumeOffline { broker, volume, log_dir });
    }
}
