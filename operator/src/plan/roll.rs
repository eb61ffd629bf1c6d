//! The brokers: set up, repaired, restarted one at a time.

use super::cluster::recorded_node;
use super::safety::{Down, is_let_go, may_end};
use super::volumes::{View, plan_removal, replaces};
use super::{Plan, Step, Wait};
use crate::api::{KafkaCluster, LossStatus, NodeStatus, VolumeStatus};
use crate::desired::{Blueprint, Broker, BrokerVolume, given_up_directories};
use crate::observe::{Observed, ObservedBroker, Part, Run, Volume};

pub(super) fn plan_brokers(
    cluster: &KafkaCluster,
    desired: &Blueprint,
    observed: &Observed,
    down: &mut Down,
    plan: &mut Plan,
) {
    let absent = ObservedBroker::default();
    for (&id, broker) in &desired.brokers {
        let seen = observed.brokers.get(&id).unwrap_or(&absent);
        if !broker.unknown.is_empty() {
            plan.waits.push(Wait::Address { broker: id, listeners: broker.unknown.clone() });
            // This first pass makes the services, and the next one mostly knows their ports: the
            // broker need not start twice. From then on it runs, and is repaired, without the
            // listeners that are not known.
            if cluster.status.is_none() {
                continue;
            }
        }
        if !can_start(broker, seen, plan) {
            continue;
        }
        if observed.was_read(Part::Definitions)
            && let Err(wait) = plan_definition(cluster, broker, seen, observed, down, plan)
        {
            // Whatever holds the restart up, the broker is not what the spec asks for.
            let is_behind = seen.serves() && !seen.is_current && !wait.blocks_ready();
            let why = wait.to_string();
            plan.waits.extend(is_behind.then_some(Wait::NotRestarted { broker: id, why }));
            if !plan.waits.contains(&wait) {
                plan.waits.push(wait);
            }
            // One that serves waits for nothing else.
            if seen.serves() {
                continue;
            }
        }
        plan.waits.extend(wait_for(id, seen));
        let image = seen.image.clone().filter(|_| seen.is_image_left);
        plan.waits.extend(image.map(|image| Wait::OtherImage { broker: id, image }));
    }
}

/// Whether a broker that is not there could come up: it would wait for a claim that is lost or
/// goes.
fn can_start(broker: &Broker, seen: &ObservedBroker, plan: &mut Plan) -> bool {
    let id = broker.id;
    let node = plan.nodes.iter().find(|node| node.id == id);
    let is_missing = |loss: &LossStatus| {
        broker.volumes.iter().any(|volume| volume.name == loss.volume)
            && !seen.volumes.contains_key(&loss.volume)
    };
    let is_gone = node.into_iter().flat_map(NodeStatus::open_losses).any(is_missing);
    let is_ending = seen.volumes.values().any(|volume| volume.is_ending);
    if seen.run == Run::Absent && is_ending && !is_gone {
        let detail = "its old volume claim is being deleted".to_owned();
        plan.waits.push(Wait::BrokerStarting { broker: id, detail });
    }
    seen.run != Run::Absent || !(is_gone || is_ending)
}

/// Puts a broker's definition right, and restarts it if the spec asks for that and nothing is in
/// the way. Otherwise not even the definition changes: whatever ends this broker meanwhile brings
/// it back as it was.
fn plan_definition(
    cluster: &KafkaCluster,
    broker: &Broker,
    seen: &ObservedBroker,
    observed: &Observed,
    down: &mut Down,
    plan: &mut Plan,
) -> Result<(), Wait> {
    let id = broker.id;
    if !seen.fixed.is_empty() {
        let why = format!("Kubernetes allows no change of {}", seen.fixed.join(", "));
        plan_removal(&View { cluster, observed, id, seen }, why, down, plan);
        return Ok(());
    }
    let is_beside = is_beside_its_claims(broker, seen) || has_given_up(cluster, id, seen);
    let restarts = seen.serves() && (is_beside || !seen.is_current);
    let ends = seen.to_end.is_some() && (is_beside || has_to_restart(seen));
    if restarts || ends {
        may_end(cluster, id, observed, plan)?;
    }
    if restarts {
        let unmade = |volume: &&BrokerVolume| {
            seen.volumes.get(&volume.name).is_none_or(|claim| {
                claim.fault.is_some() || !claim.is_bound && !claim.waits_for_pod
            })
        };
        if let Some(volume) = broker.volumes.iter().find(unmade).filter(|_| observed.has_claims()) {
            // It may not come back. A fault is told with the volumes.
            return Err(Wait::VolumePending { broker: id, volume: volume.name.clone() });
        }
        down.take(id, seen)?;
    } else if ends || seen.ends_with_its_definition() {
        is_let_go(id, seen)?;
    }
    if !seen.definition.is_as_desired() {
        write_before_use(cluster, broker, seen, observed, plan)?;
        let what = seen.definition.all();
        plan.steps.push(Step::ApplyBroker { broker: id, restarts, what });
    } else if let Some(ended) = seen.to_end.clone().filter(|_| ends) {
        plan.steps.push(Step::RestartBroker { broker: id, ended });
    }
    Ok(())
}

/// Whether status has the claim of each volume that the definition names: from then on the broker
/// may use it. Those that it has not are noted in the plan, and the definition is written by the
/// pass after.
fn write_before_use(
    cluster: &KafkaCluster,
    broker: &Broker,
    seen: &ObservedBroker,
    observed: &Observed,
    plan: &mut Plan,
) -> Result<(), Wait> {
    // There are no claims here.
    if observed.is_held.is_none() {
        return Ok(());
    }
    let id = broker.id;
    let mut is_written = !seen.is_removed;
    for volume in &broker.volumes {
        let live = seen.volumes.get(&volume.name);
        let is_it = |known: &VolumeStatus| {
            live.is_none_or(|live| known.claim_uid.as_ref() == Some(&live.uid))
        };
        let is_noted = |node: &NodeStatus| {
            node.volume(&volume.name).is_some_and(is_it)
                || node.open_losses().any(|loss| loss.volume == volume.name)
        };
        let is_recorded = recorded_node(cluster, id).is_some_and(is_noted);
        let is_planned = plan.nodes.iter().find(|node| node.id == id).is_some_and(is_noted);
        is_written &= is_recorded && is_planned;
        // One that is deleted, or is about to be, is not for use.
        let for_use = |live: &&Volume| {
            let stays = !live.is_ending && !live.is_gone;
            stays && replaces(cluster, plan, id, volume, live).is_none()
        };
        let Some(live) = live.filter(|_| !is_planned).filter(for_use) else { continue };
        let noted = VolumeStatus {
            name: volume.name.clone(),
            claim: live.claim.clone(),
            claim_uid: Some(live.uid.clone()),
            ..VolumeStatus::default()
        };
        for node in plan.nodes.iter_mut().filter(|node| node.id == id) {
            node.volumes.push(noted.clone());
        }
    }
    match is_written {
        true => Ok(()),
        false if seen.serves() => Err(Wait::BrokerRestarting { broker: id }),
        false => {
            let detail = "its volume claims are created and recorded in status first".to_owned();
            Err(Wait::BrokerStarting { broker: id, detail })
        }
    }
}

/// Whether the broker has what its claims no longer stand for: a loss was accepted, and there is a
/// new claim.
fn is_beside_its_claims(broker: &Broker, seen: &ObservedBroker) -> bool {
    let is_beside = |volume: &BrokerVolume| {
        let live = seen.volumes.get(&volume.name);
        seen.mounts.contains(&volume.name) && live.is_some_and(|live| !live.is_mounted)
    };
    broker.volumes.iter().any(is_beside)
}

/// Whether a loss was accepted that the broker was not told of when it started: one that it misses,
/// or, while it does not serve, any.
fn has_given_up(cluster: &KafkaCluster, id: i32, seen: &ObservedBroker) -> bool {
    let given_up = given_up_directories(cluster, id);
    let mut lost = seen.identity.iter().flat_map(|said| said.lost.keys());
    let accepted = recorded_node(cluster, id).into_iter().flat_map(NodeStatus::accepted_losses);
    let waits = !seen.serves() && accepted.count() > 0;
    !seen.is_newest && (waits || lost.any(|id| given_up.contains(id)))
}

/// A change that the spec did not ask for ends nothing that serves, or may yet. What fails is
/// started as it should be. One whose node does not answer could not be started anywhere: it would
/// be ended when its node is back, for nothing.
fn has_to_restart(seen: &ObservedBroker) -> bool {
    match seen.run {
        Run::Failing { .. } => !seen.is_newest,
        Run::Ready | Run::Starting(_) => !seen.is_current,
        Run::Absent | Run::Unreachable(_) => false,
    }
}

fn wait_for(broker: i32, seen: &ObservedBroker) -> Option<Wait> {
    match seen.run.clone() {
        Run::Failing { reason, message } => Some(Wait::BrokerFailing { broker, reason, message }),
        Run::Unreachable(message) => {
            let reason = "NodeNotReady".to_owned();
            Some(Wait::BrokerFailing { broker, reason, message })
        }
        Run::Starting(detail) => Some(Wait::BrokerStarting { broker, detail }),
        Run::Absent => Some(Wait::BrokerStarting { broker, detail: "not started yet".to_owned() }),
        Run::Ready if !seen.is_current => Some(Wait::BrokerRestarting { broker }),
        Run::Ready => None,
    }
}
