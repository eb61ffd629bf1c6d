//! What is remembered of each broker: the volumes that it has used, and the losses among them.
//!
//! All of it is recorded in `status.nodes`, and what a pass decides follows from what is recorded:
//! nothing is guessed from what happens to be readable now.
//!
//! - A volume is used, and recorded with the uid of its claim, from the first pass that sees a pod
//!   of ours on a node with that claim. The broker need not answer for that.
//! - A used claim that is gone, replaced or in phase Lost is a loss, and so is a directory that the
//!   broker shows in the place of the recorded one, or says that it misses. An open loss ends when
//!   the broker serves with what was lost, or when a person accepts it by its name. That something
//!   cannot be read ends no loss.
//! - An accepted loss stays until the broker is seen to go on without what was lost.

use kube::ResourceExt as _;

use super::loss::{Loss, loss_name};
use super::volumes::is_offline;
use crate::api::validate::volume_number;
use crate::api::{
    ACCEPT_LOSS_ANNOTATION, DATA_VOLUME, KafkaCluster, LossReason, LossStatus, NodeStatus,
    VolumeStatus,
};
use crate::desired::{Blueprint, Broker, BrokerVolume, POOL};
use crate::observe::{Observed, ObservedBroker, Part, Run, Volume};

/// What is to be remembered of each broker after what this pass sees.
pub(super) fn remember(
    cluster: &KafkaCluster,
    desired: &Blueprint,
    observed: &Observed,
) -> Vec<NodeStatus> {
    let accepted = cluster.annotations().get(ACCEPT_LOSS_ANNOTATION);
    let node = |broker: &Broker| {
        let mut node = known(cluster, broker.id);
        if let Some(seen) = observed.brokers.get(&broker.id) {
            let sight = Sight { broker, seen, observed };
            sight.end_losses(&mut node);
            sight.record_volumes(&mut node);
            sight.find_losses(&mut node);
        }
        if let Some(name) = accepted {
            accept(&mut node, name);
        }
        let open = node.open_losses().next().map(|loss| loss.name.clone());
        node.data_loss = open;
        node
    };
    desired.brokers.values().map(node).collect()
}

/// What is recorded of a broker, in today's form.
fn known(cluster: &KafkaCluster, id: i32) -> NodeStatus {
    let mut nodes = cluster.status.iter().flat_map(|status| &status.nodes);
    let new = || NodeStatus { id, incarnation: 1, ..NodeStatus::default() };
    let mut node = nodes.find(|node| node.id == id).cloned().unwrap_or_else(new);
    node.pool = POOL.to_owned();
    node.roles = vec!["broker".to_owned(), "controller".to_owned()];
    take_over_earlier_form(&mut node);
    node
}

/// An operator of an earlier version recorded only the ids of what was accepted, and only the name
/// of what was open.
fn take_over_earlier_form(node: &mut NodeStatus) {
    let is_data_unknown =
        node.volume(DATA_VOLUME).is_none_or(|volume| volume.directory_id.is_none());
    for id in std::mem::take(&mut node.given_up) {
        let volume = if is_data_unknown { DATA_VOLUME } else { "" }.to_owned();
        node.losses.push(LossStatus {
            name: format!("accepted-{id}"),
            volume,
            directory_id: Some(id),
            accepted: true,
            ..LossStatus::default()
        });
    }
    let Some(name) = node.data_loss.clone() else { return };
    if node.losses.iter().any(|loss| loss.name == name) {
        return;
    }
    let is_it = |volume: &&VolumeStatus| {
        loss_name(node, &volume.name, volume.directory_id.as_ref()) == name
    };
    let lost = node.volumes.iter().find(is_it).cloned();
    let reason = if lost.is_some() { LossReason::ClaimGone } else { LossReason::NotFound };
    let lost = lost.unwrap_or_default();
    node.losses.push(LossStatus {
        name,
        volume: lost.name,
        reason,
        claim_uid: lost.claim_uid,
        directory_id: lost.directory_id,
        ..LossStatus::default()
    });
}

/// A person says that the broker goes on without what is lost.
fn accept(node: &mut NodeStatus, name: &str) {
    let mut losses = node.losses.iter_mut();
    let Some(loss) = losses.find(|loss| loss.name == *name && !loss.accepted) else { return };
    (loss.accepted, loss.held) = (true, false);
    let volume = loss.volume.clone();
    node.incarnation += 1;
    // What comes next is another volume, and its loss another one. A directory that is only missed
    // was never recorded here.
    if loss.reason != LossReason::NotFound {
        node.volumes.retain(|each| each.name != volume);
    }
}

/// What a pass sees of one broker.
struct Sight<'a> {
    broker: &'a Broker,
    seen: &'a ObservedBroker,
    observed: &'a Observed,
}

impl Sight<'_> {
    fn log_dir_of(&self, volume: &str) -> Option<&str> {
        let mut volumes = self.broker.volumes.iter();
        volumes.find(|each| each.name == volume).map(|each| each.log_dir.as_str())
    }

    /// What the broker says that it has in the log directory of a volume.
    fn said_of(&self, volume: &str) -> Option<&String> {
        let said = self.seen.identity.as_ref()?;
        said.directories.get(self.log_dir_of(volume)?)
    }

    /// The claim of a volume, if the broker that runs was started with it and it stays.
    fn sound(&self, volume: &str) -> Option<&Volume> {
        let live = self.seen.volumes.get(volume)?;
        (live.is_mounted && !live.is_gone && !live.is_ending).then_some(live)
    }

    /// Whether the broker serves with the directory `id`, on a claim that stays.
    fn serves_with(&self, id: &str) -> bool {
        let Some(said) = &self.seen.identity else { return false };
        let mut paths = said.directories.iter().filter(|(_, found)| *found == id);
        paths.any(|(path, _)| {
            let volume = self.broker.volumes.iter().find(|each| each.log_dir == *path);
            volume.is_some_and(|volume| self.sound(&volume.name).is_some())
        })
    }

    fn end_losses(&self, node: &mut NodeStatus) {
        node.losses.retain(|loss| match loss.accepted {
            false => !self.is_back(loss),
            true => !self.is_back(loss) && !self.goes_on_without(loss),
        });
    }

    /// Whether what was lost is seen to be there again.
    fn is_back(&self, loss: &LossStatus) -> bool {
        let sound = || self.sound(&loss.volume).filter(|_| self.seen.run == Run::Ready);
        match (&loss.directory_id, &loss.claim_uid) {
            (Some(id), _) => self.serves_with(id),
            (None, Some(uid)) => sound().is_some_and(|live| live.uid == *uid),
            // A broker that has partitions does not serve without the volume of its metadata.
            (None, None) => {
                let is_missed = loss.reason == LossReason::NotFound && !loss.accepted;
                is_missed && sound().is_some() && self.said_of(&loss.volume).is_some()
            }
        }
    }

    /// Whether the step that the acceptance allows is done: the broker serves, with another volume
    /// in the place of the lost one where one is wanted, and misses nothing.
    fn goes_on_without(&self, loss: &LossStatus) -> bool {
        if self.seen.run != Run::Ready {
            return false;
        }
        let is_wanted = self.log_dir_of(&loss.volume).is_some();
        let Some(said) = &self.seen.identity else {
            // It does not answer; it was told what there is to tell, and serves with another claim.
            let is_other = |live: &Volume| loss.claim_uid.as_ref() != Some(&live.uid);
            let has_other = self.sound(&loss.volume).is_some_and(is_other);
            let is_told = self.seen.is_newest || loss.directory_id.is_none();
            return is_told && (has_other || !is_wanted);
        };
        let has_other = self.sound(&loss.volume).is_some()
            && self
                .said_of(&loss.volume)
                .is_some_and(|found| loss.directory_id.as_ref() != Some(found));
        let is_missed = loss.directory_id.as_ref().is_some_and(|id| said.lost.contains_key(id));
        !is_missed && (has_other || !is_wanted)
    }

    /// Records what the broker has used. What is lost stays as it was, and what is known stays in
    /// the order in which the API server has it.
    fn record_volumes(&self, node: &mut NodeStatus) {
        let old = std::mem::take(&mut node.volumes);
        let is_new = |volume: &&BrokerVolume| !old.iter().any(|each| each.name == volume.name);
        let new = self.broker.volumes.iter().filter(is_new).map(|volume| (volume, None));
        let known = old.iter().filter_map(|known| {
            let volume = self.broker.volumes.iter().find(|volume| volume.name == known.name)?;
            Some((volume, Some(known.clone())))
        });
        for (volume, known) in known.chain(new) {
            let is_lost = node.open_losses().any(|loss| loss.volume == volume.name);
            let recorded = match is_lost || !self.observed.has_claims() {
                true => known,
                false => self.record(volume, known, node),
            };
            node.volumes.extend(recorded.map(|recorded| VolumeStatus {
                offline: is_offline(&volume.log_dir, Some(&recorded), self.seen),
                ..recorded
            }));
        }
    }

    fn record(
        &self,
        volume: &BrokerVolume,
        known: Option<VolumeStatus>,
        node: &NodeStatus,
    ) -> Option<VolumeStatus> {
        let said = self.said_of(&volume.name).cloned();
        let new = |claim_uid: Option<String>| VolumeStatus {
            name: volume.name.clone(),
            claim: crate::desired::claim_name(&self.broker.name, &volume.name),
            claim_uid,
            directory_id: said.clone(),
            offline: false,
        };
        let is_given_up =
            || node.losses.iter().any(|loss| loss.accepted && loss.volume == volume.name);
        match (self.seen.volumes.get(&volume.name), known) {
            // It goes, as a person said.
            (Some(live), None) if live.is_gone && is_given_up() => None,
            (Some(live), None) if live.is_mounted => {
                Some(VolumeStatus { claim: live.claim.clone(), ..new(Some(live.uid.clone())) })
            }
            // The broker has what no claim stands for any more.
            (_, None) => {
                (self.seen.mounts.contains(&volume.name) && !is_given_up()).then(|| new(None))
            }
            (Some(live), Some(known)) if known.claim_uid.as_ref() == Some(&live.uid) => {
                // There was never a volume behind it, so no pod had it.
                let is_unused = known.directory_id.is_none() && !live.is_bound && !live.is_gone;
                let told = said.filter(|_| live.is_mounted && !live.is_gone);
                let directory_id = known.directory_id.clone().or(told);
                (!is_unused).then_some(VolumeStatus { directory_id, ..known })
            }
            // A volume may be restored under a new claim: what the broker shows counts.
            (Some(live), Some(known))
                if live.is_mounted && said.is_some() && known.directory_id == said =>
            {
                Some(VolumeStatus { claim: live.claim.clone(), ..new(Some(live.uid.clone())) })
            }
            (_, known) => known,
        }
    }

    fn find_losses(&self, node: &mut NodeStatus) {
        self.look_again(node);
        for volume in node.volumes.clone() {
            if node.open_losses().any(|loss| loss.volume == volume.name) {
                continue;
            }
            let Some(reason) = self.reason_of(&volume) else { continue };
            let id = volume.directory_id.as_ref().or(volume.claim_uid.as_ref());
            let loss = LossStatus {
                name: loss_name(node, &volume.name, id),
                held: self.is_held(&volume.name, reason),
                volume: volume.name,
                reason,
                claim_uid: volume.claim_uid,
                directory_id: volume.directory_id,
                accepted: false,
            };
            node.losses.push(loss);
        }
        self.find_missed(node);
        if self.misses_data(node) {
            node.losses.push(LossStatus {
                name: loss_name(node, DATA_VOLUME, None),
                volume: DATA_VOLUME.to_owned(),
                reason: LossReason::NotFound,
                ..LossStatus::default()
            });
        }
    }

    /// Brings what is recorded about open losses up to date, as far as it can be seen.
    fn look_again(&self, node: &mut NodeStatus) {
        let volumes = node.volumes.clone();
        for loss in node.losses.iter_mut().filter(|loss| !loss.accepted) {
            let recorded = volumes.iter().find(|volume| volume.name == loss.volume);
            let is_missed = loss.reason == LossReason::NotFound;
            if let Some(reason) =
                recorded.filter(|_| !is_missed).and_then(|recorded| self.reason_of(recorded))
            {
                loss.reason = reason;
            }
            if self.observed.has_claims() && self.observed.was_read(Part::Brokers) {
                loss.held = self.is_held(&loss.volume, loss.reason);
            }
        }
    }

    /// In which way a volume that was used is lost, if it is.
    fn reason_of(&self, volume: &VolumeStatus) -> Option<LossReason> {
        let (said, recorded) = (self.said_of(&volume.name), &volume.directory_id);
        if recorded.is_some() && said.is_some_and(|found| Some(found) != recorded.as_ref()) {
            return Some(LossReason::OtherDirectory);
        }
        if !self.observed.has_claims() {
            return None;
        }
        let Some(live) = self.seen.volumes.get(&volume.name) else {
            return Some(LossReason::ClaimGone);
        };
        if live.is_gone {
            return Some(LossReason::VolumeGone);
        }
        (volume.claim_uid.as_ref() != Some(&live.uid)).then_some(LossReason::ClaimMadeAgain)
    }

    /// Whether the records of a lost volume go when the broker ends, and not before.
    fn is_held(&self, volume: &str, reason: LossReason) -> bool {
        let is_mounted = self.seen.volumes.get(volume).is_some_and(|live| live.is_mounted);
        let is_behind_claim = match reason {
            LossReason::NotFound | LossReason::OtherDirectory => return false,
            LossReason::ClaimMadeAgain => is_mounted,
            LossReason::ClaimGone | LossReason::VolumeGone => false,
        };
        self.seen.mounts.contains(volume) && !is_behind_claim
    }

    /// What the broker says that it misses, and nothing here knows of: a cluster that was made
    /// again knows less than its brokers do.
    fn find_missed(&self, node: &mut NodeStatus) {
        for (id, log_dir) in self.seen.identity.iter().flat_map(|said| &said.lost) {
            let is_it = |known: &Option<String>| known.as_ref() == Some(id);
            if node.volumes.iter().any(|volume| is_it(&volume.directory_id))
                || node.losses.iter().any(|loss| is_it(&loss.directory_id))
            {
                continue;
            }
            let at = self.broker.volumes.iter().find(|volume| volume.log_dir == *log_dir);
            // One that is not in use any more was where its name is in the path.
            let named = || log_dir.rsplit('/').nth(1).filter(|name| volume_number(name).is_some());
            let volume = at.map(|at| at.name.as_str()).or_else(named).unwrap_or(log_dir).to_owned();
            let name = loss_name(node, &volume, Some(id));
            // The broker leaves what is in its place empty: no records are on that.
            node.volumes.retain(|each| each.name != volume || each.directory_id.is_some());
            node.losses.retain(|loss| loss.name != name);
            node.losses.push(LossStatus {
                name,
                volume,
                reason: LossReason::NotFound,
                directory_id: Some(id.clone()),
                ..LossStatus::default()
            });
        }
    }

    /// Whether the volume of the metadata is missing beside others that are older than this
    /// KafkaCluster: every broker that had these had that one.
    fn misses_data(&self, node: &NodeStatus) -> bool {
        let is_kept = |live: &Volume| live.is_kept && live.is_bound;
        self.observed.has_claims()
            && self.observed.was_read(Part::Brokers)
            && node.losses.is_empty()
            && node.volume(DATA_VOLUME).is_none()
            && !self.seen.volumes.contains_key(DATA_VOLUME)
            && self.seen.volumes.values().any(is_kept)
    }
}

/// The open losses, with what is known besides.
pub(super) fn losses(desired: &Blueprint, observed: &Observed, nodes: &[NodeStatus]) -> Vec<Loss> {
    let of_node = |node: &NodeStatus| {
        let said = observed.brokers.get(&node.id).and_then(|seen| seen.identity.clone());
        let loss = |recorded: &LossStatus| {
            let known = node.volume(&recorded.volume);
            let path = desired.log_dir_of(node.id, &recorded.volume);
            let found = said.as_ref().and_then(|said| said.directories.get(path?)).cloned();
            let missed = said.as_ref().and_then(|said| {
                recorded.directory_id.as_ref().and_then(|id| said.lost.get(id)).cloned()
            });
            Loss {
                cluster: (desired.namespace.clone(), desired.name.clone()),
                broker: node.id,
                claim: known.map(|volume| volume.claim.clone()),
                log_dir: missed,
                found,
                recorded: recorded.clone(),
            }
        };
        node.open_losses().map(loss).collect::<Vec<_>>()
    };
    nodes.iter().flat_map(of_node).collect()
}
