//! Volumes: their claims, their growth, and what about them cannot be as the spec says.

use super::cluster::recorded_node;
use super::safety::{Down, is_let_go, may_end};
use super::{Note, Plan, Step, Wait};
use crate::api::{DeletionPolicy, KafkaCluster, NodeStatus, VolumeStatus, bytes_of, shown};
use crate::desired::{Blueprint, BrokerVolume};
use crate::observe::{Observed, ObservedBroker, Part, Run, Volume};

/// What is looked at while volumes are planned.
pub(super) struct View<'a> {
    pub(super) cluster: &'a KafkaCluster,
    pub(super) observed: &'a Observed,
    pub(super) id: i32,
    pub(super) seen: &'a ObservedBroker,
}

impl View<'_> {
    /// What is remembered of the broker: as it is written down, and as it is to be.
    fn memory(&self, plan: &Plan) -> [NodeStatus; 2] {
        let planned = plan.nodes.iter().find(|node| node.id == self.id).cloned();
        [
            recorded_node(self.cluster, self.id).cloned().unwrap_or_default(),
            planned.unwrap_or_default(),
        ]
    }
}

pub(super) fn plan_volumes(
    cluster: &KafkaCluster,
    desired: &Blueprint,
    observed: &Observed,
    down: &mut Down,
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
        let view = View { cluster, observed, id, seen };
        let [_, node] = view.memory(plan);
        let is_recorded = |volume: &BrokerVolume| {
            node.volume(&volume.name).is_some_and(|known| known.directory_id.is_some())
        };
        if seen.serves() && seen.identity.is_none() && !broker.volumes.iter().all(is_recorded) {
            plan.waits.push(Wait::IdentityUnknown { broker: id });
        }
        for volume in &broker.volumes {
            plan_volume(&view, volume, down, plan);
            plan_use(id, volume, &node, seen, plan);
        }
        let unmarked = seen.volumes.iter().filter(|(_, live)| live.is_unmarked && !live.is_ending);
        plan.steps
            .extend(unmarked.map(|(name, _)| Step::MarkClaim { broker: id, volume: name.clone() }));
        let is_left = |(name, live): &(&String, &Volume)| {
            let is_wanted = broker.volumes.iter().any(|volume| volume.name == **name);
            !is_wanted && !live.is_ending && is_unmade(live) && !seen.defined.contains(*name)
        };
        let left = seen.volumes.iter().filter(|_| observed.was_read(Part::Definitions));
        plan.steps.extend(
            left.filter(is_left)
                .map(|(name, _)| Step::DropClaim { broker: id, volume: name.clone() }),
        );
    }
}

fn plan_volume(view: &View<'_>, volume: &BrokerVolume, down: &mut Down, plan: &mut Plan) {
    let (id, seen) = (view.id, view.seen);
    let live = seen.volumes.get(&volume.name);
    match live {
        None if volume.in_spec => plan_missing(view, volume, down, plan),
        None => {}
        Some(live) if live.is_gone => plan_gone(view, volume, live, down, plan),
        Some(live) => plan_live(view, volume, live, down, plan),
    }
    if seen.run != Run::Absent
        && let Some(live) = live.filter(|live| live.is_lent())
    {
        let claim = live.claim.clone();
        plan.waits.push(Wait::ClaimEnding { broker: id, claim });
    }
    if !volume.in_spec {
        let volume = volume.name.clone();
        plan.waits.push(Wait::VolumeStillUsed { broker: id, volume });
    }
}

/// Makes the claim of a volume, if no broker may have used one of its name, or that loss was
/// accepted. Never while a definition names it: Kubernetes would start the broker on a claim that
/// is not written down yet, and nobody would know of it once it is gone.
fn plan_missing(view: &View<'_>, volume: &BrokerVolume, down: &mut Down, plan: &mut Plan) {
    let is_known =
        view.observed.was_read(Part::Brokers) && view.observed.was_read(Part::Definitions);
    let memory = view.memory(plan);
    // A claim that went without a volume is forgotten once no definition names it.
    let is_unused = |known: &VolumeStatus| {
        view.observed.never_was(known.claim_uid.as_ref(), known.directory_id.as_ref())
    };
    let may_be_made = |node: &NodeStatus| {
        is_free(node, volume)
            || node.volume(&volume.name).is_some_and(is_unused)
                && !node.open_losses().any(|loss| loss.volume == volume.name)
    };
    if !is_known || !memory.iter().all(may_be_made) {
        return;
    }
    let name = volume.name.clone();
    if view.seen.defined.contains(&name) {
        plan_removal(view, format!("its volume {name} is recreated"), down, plan);
    } else if memory.iter().all(|node| is_free(node, volume)) {
        plan.steps.push(Step::MakeClaim { broker: view.id, volume: name });
    }
}

/// Whether an empty claim may be made for a volume that has none: nothing that a broker may have
/// used is recorded, and none of what it had is missed. After a loss that is so once its acceptance
/// is written down.
fn is_free(node: &NodeStatus, volume: &BrokerVolume) -> bool {
    node.volume(&volume.name).is_none()
        && !node.open_losses().any(|loss| loss.volume == volume.name)
}

/// Takes away the definition of a broker, and what runs by it.
pub(super) fn plan_removal(view: &View<'_>, why: String, down: &mut Down, plan: &mut Plan) {
    let broker = view.id;
    let is_step =
        |step: &Step| matches!(step, Step::RemoveBroker { broker: of, .. } if *of == broker);
    if plan.steps.iter().any(is_step) {
        return;
    }
    let may_end = match view.seen.is_removed {
        true => Err(Wait::BrokerRestarting { broker }),
        false => may_end(view.cluster, broker, view.observed, plan),
    };
    let may_end = may_end.and_then(|()| match view.seen.serves() {
        true => down.take(broker, view.seen),
        false => is_let_go(broker, view.seen),
    });
    match may_end {
        Ok(()) => plan.steps.push(Step::RemoveBroker { broker, why }),
        Err(wait) if plan.waits.contains(&wait) => {}
        Err(wait) => plan.waits.push(wait),
    }
}

/// A claim whose volume is gone says which volume it was: it stays until its loss was accepted.
/// Then it is deleted, once nothing has it any more.
fn plan_gone(
    view: &View<'_>,
    wanted: &BrokerVolume,
    live: &Volume,
    down: &mut Down,
    plan: &mut Plan,
) {
    let memory = view.memory(plan);
    let volume = wanted.name.clone();
    if is_given_up(&memory, wanted) {
        let why = "its PersistentVolume is gone".to_owned();
        if view.seen.defined.contains(&volume) {
            plan_removal(view, format!("volume {volume} is recreated: {why}"), down, plan);
        } else if !live.is_ending && view.observed.was_read(Part::Definitions) {
            plan.steps.push(Step::RemakeClaim { broker: view.id, volume, why });
        }
        return;
    }
    let is_lost = memory[1].losses.iter().any(|loss| loss.volume == volume);
    if let Some(fault) = live.fault.clone().filter(|_| !is_lost) {
        plan.waits.push(Wait::VolumeNotMade { broker: view.id, volume, fault });
    }
}

/// Whether it is written down that a person accepted the loss of a volume, and nothing that came
/// after that may have been used.
fn is_given_up(memory: &[NodeStatus; 2], volume: &BrokerVolume) -> bool {
    let mut accepted = memory[0].accepted_losses();
    accepted.any(|loss| loss.volume == volume.name)
        && memory.iter().all(|node| is_free(node, volume))
}

/// Whether no volume was ever made for a claim of the operator: nothing is on it. One that somebody
/// else made may wait for a volume that comes with records.
fn is_unmade(live: &Volume) -> bool {
    live.asked.is_some() && !live.is_bound && !live.is_restored
}

/// Why a claim is to be deleted, and made again if the spec asks for it, before anything may use
/// it.
pub(super) fn replaces(
    cluster: &KafkaCluster,
    plan: &Plan,
    id: i32,
    wanted: &BrokerVolume,
    live: &Volume,
) -> Option<String> {
    if live.is_gone {
        let view = |node: Option<&NodeStatus>| node.cloned().unwrap_or_default();
        let planned = plan.nodes.iter().find(|node| node.id == id);
        let memory = [view(recorded_node(cluster, id)), view(planned)];
        return is_given_up(&memory, wanted).then(|| "its PersistentVolume is gone".to_owned());
    }
    if !is_unmade(live) {
        return None;
    }
    match wanted.in_spec {
        true => fault_of(wanted, live),
        false => Some("the spec no longer names it".to_owned()),
    }
}

/// A claim that is there, compared with what the spec says of it.
fn plan_live(
    view: &View<'_>,
    wanted: &BrokerVolume,
    live: &Volume,
    down: &mut Down,
    plan: &mut Plan,
) {
    let (id, [recorded, node]) = (view.id, view.memory(plan));
    let is_lost = node.open_losses().any(|loss| loss.volume == wanted.name);
    if is_lost || live.is_ending {
        return; // Nothing is done to what a person is to decide on, or has decided on.
    }
    let volume = wanted.name.clone();
    let known = [&recorded, &node].into_iter().filter_map(|node| node.volume(&volume));
    let known: Vec<&VolumeStatus> = known.collect();
    let is_used = known.iter().any(|known| known.directory_id.is_some());
    if let Some(why) = replaces(view.cluster, plan, id, wanted, live).filter(|_| !is_used) {
        if !view.observed.was_read(Part::Definitions) || !view.observed.was_read(Part::Brokers) {
            return;
        }
        if view.seen.defined.contains(&volume) || view.seen.mounts.contains(&volume) {
            plan_removal(view, format!("volume {volume} is recreated: {why}"), down, plan);
        } else if !known.is_empty() {
            // Nothing can use it now. It is deleted once nothing says that it was used.
            let node = plan.nodes.iter_mut().filter(|node| node.id == id);
            node.for_each(|node| node.volumes.retain(|known| known.name != volume));
            plan.waits.push(Wait::VolumePending { broker: id, volume });
        } else if wanted.in_spec {
            plan.steps.push(Step::RemakeClaim { broker: id, volume, why });
        }
        return;
    }
    if !wanted.in_spec {
        return; // What the spec says for all volumes is not said of one that it does not name.
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

/// What is wrong with a claim that has nothing behind it, and that can only be made again: the spec
/// is another one since. What admission made of it is not compared: it would do so again.
fn fault_of(wanted: &BrokerVolume, live: &Volume) -> Option<String> {
    let asked = live.asked.as_ref()?;
    let is_it = wanted.class.is_some() && live.class == wanted.class;
    if asked.class != wanted.class && !is_it {
        let [from, to] = [&asked.class, &wanted.class]
            .map(|class| class.as_deref().unwrap_or("the default one"));
        return Some(format!(
            "no volume was made for it in storage class {from}, and the spec says {to}"
        ));
    }
    let from = asked.size.or(live.requested)?;
    let size = bytes_of(&wanted.size).filter(|size| *size != from)?;
    let (from, to) = (shown(from), shown(size));
    Some(format!("no volume was made for it, and it asks for {from} where the spec says {to}"))
}

fn plan_size(broker: i32, wanted: &BrokerVolume, live: &Volume, plan: &mut Plan) {
    let Some(spec) = bytes_of(&wanted.size) else { return };
    let (volume, Some(to)) = (wanted.name.clone(), live.requested) else { return };
    let from = if live.capacity > 0 { live.capacity } else { to };
    if from > spec {
        let volume = volume.clone();
        plan.notes.push(Note::VolumeLargerThanSpec { broker, volume, live: from, spec });
    }
    if live.is_to_ask_for(spec) {
        plan.steps.push(Step::GrowVolume { broker, volume, from, to: spec });
    } else if from < to {
        // One that has what the spec says is missed by nobody.
        match live.not_grown.clone() {
            Some(_) if from >= spec => {}
            Some(fault) => {
                plan.waits.push(Wait::VolumeNotGrown { broker, volume, from, to, fault })
            }
            None => plan.waits.push(Wait::VolumeGrowing { broker, volume, from, to }),
        }
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
        Some(_) if seen.serves() => {
            let was_used = recorded.is_some_and(|volume| volume.directory_id.is_some());
            (was_used || seen.is_current) && !seen.uses(log_dir)
        }
        _ => recorded.is_some_and(|volume| volume.offline),
    }
}
