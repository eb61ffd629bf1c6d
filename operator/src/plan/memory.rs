//! What is remembered of each broker: the volumes that it may have used, and the losses among them.
//!
//! All of it is recorded in `status.nodes`, and what a pass decides follows from what is recorded:
//! nothing is guessed from what happens to be readable now.
//!
//! - A volume is its claim's uid, and the `directory.id` that the broker has on it, once it told
//!   that. A claim is recorded before anything may use it: the operator makes one only while no
//!   definition of the broker names it (`plan/volumes.rs`), and writes a definition only while
//!   status has every claim that this names (`plan/roll.rs`). So a claim that is not recorded has
//!   nothing on it, and one that is recorded may have. A record leaves status when its loss is
//!   accepted, or while no definition names its claim and no volume was ever made for it.
//! - A recorded volume whose claim is gone, replaced or in phase Lost is a loss, and so is a
//!   directory that the broker misses, or shows another one in the place of. A loss is of one
//!   volume by these ids, not of whatever has its name: there may be two of one name.
//! - A claim that went without ever having had a volume is no loss, where somebody saw it go
//!   ([`Observed::unmade`]).
//! - What a broker uses in the place of an open loss is remembered with that
//!   (`LossStatus::replaced_by`), and is a loss of its own once it is gone.
//! - An open loss ends when the broker has what was lost, or when a person accepts it by its name,
//!   which is told in no other loss ([`pass_of`]), and only once it is recorded. That something
//!   cannot be read ends no loss.
//! - An accepted loss stays until the broker is seen to go on without what was lost.
//!
//! While a cluster is paused this goes on, except that nothing is accepted.

use kube::ResourceExt as _;

use super::loss::{Loss, loss_name};
use super::volumes::is_offline;
use crate::api::validate::volume_number;
use crate::api::{
    ACCEPT_LOSS_ANNOTATION, DATA_VOLUME, KafkaCluster, LossReason, LossStatus, NodeStatus,
    VolumeStatus, is_paused,
};
use crate::desired::{Blueprint, Broker, POOL, claim_name, fingerprint};
use crate::observe::{Observed, ObservedBroker, Part, Run, Volume};

/// Whether the brokers of `cluster` say now that they use every log directory that was recorded of
/// them before: they have their volumes, whatever became of the claims.
#[must_use]
pub fn tell_their_directories(cluster: &KafkaCluster, observed: &Observed) -> bool {
    let nodes = cluster.status.iter().flat_map(|status| &status.nodes);
    let mut nodes = nodes.peekable();
    nodes.peek().is_some()
        && nodes.all(|node| {
            let broker = observed.brokers.get(&node.id);
            let Some(said) = broker.and_then(|broker| broker.identity.as_ref()) else {
                return false;
            };
            let uses = |id: &String| said.directories.values().any(|used| used == id);
            !node.volumes.is_empty()
                && said.lost.is_empty()
                && node.volumes.iter().all(|it| it.directory_id.as_ref().is_some_and(uses))
        })
}

/// What is to be remembered of each broker after what this pass sees.
pub(super) fn remember(
    cluster: &KafkaCluster,
    desired: &Blueprint,
    observed: &Observed,
) -> Vec<NodeStatus> {
    let accepted = cluster.annotations().get(ACCEPT_LOSS_ANNOTATION);
    let accepted = accepted.filter(|_| !is_paused(&cluster.metadata));
    let pass = pass_of(cluster);
    let node = |broker: &Broker| {
        let mut node = known(cluster, broker.id);
        if let Some(seen) = observed.brokers.get(&broker.id) {
            let sight = Sight { broker, seen, observed, pass: &pass };
            // What this pass finds, nobody has read yet: it can be accepted by no annotation.
            let is_known = |name: &&String| node.open_losses().any(|loss| loss.name == **name);
            let accepted = accepted.filter(is_known).filter(|_| sight.sees_volumes());
            sight.end_losses(&mut node);
            sight.follow_volumes(&mut node);
            sight.record_volumes(&mut node);
            sight.find_losses(&mut node);
            if let Some(loss) = accepted.and_then(|name| accept(&mut node, name)) {
                sight.keep_replacement(&loss, &mut node);
                // What has the place of the lost one is written down with the acceptance.
                sight.record_volumes(&mut node);
            }
        }
        let open = node.open_losses().next().map(|loss| loss.name.clone());
        node.data_loss = open;
        node
    };
    desired.brokers.values().map(node).collect()
}

/// Tells the pass that read `cluster` from every other one that writes something: the object's
/// version changes with each write, and its uid when it is made again.
pub(super) fn pass_of(cluster: &KafkaCluster) -> String {
    let (uid, version) = (cluster.uid(), cluster.resource_version());
    fingerprint([uid.unwrap_or_default(), version.unwrap_or_default()].iter())
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
    let volume = volume_in(node, &name);
    let is_it = |each: &&VolumeStatus| {
        let id = each.directory_id.as_ref().or(each.claim_uid.as_ref());
        let part = id.map(|id| id.get(..8).unwrap_or(id));
        each.name == volume && part.is_some_and(|part| name.ends_with(part))
    };
    let lost = node.volumes.iter().find(is_it).cloned();
    let reason = if lost.is_some() { LossReason::ClaimGone } else { LossReason::NotFound };
    let lost = lost.unwrap_or_default();
    node.losses.push(LossStatus {
        name,
        volume,
        reason,
        claim_uid: lost.claim_uid,
        directory_id: lost.directory_id,
        ..LossStatus::default()
    });
}

/// The volume that the name of a loss is of; empty where it tells none.
fn volume_in(node: &NodeStatus, name: &str) -> String {
    let of_broker = name.split_once("-incarnation-").map(|(begin, _)| begin);
    let rest = of_broker.and_then(|begin| begin.strip_prefix(&format!("{POOL}-{}", node.id)));
    match rest.map(|rest| rest.strip_prefix('-').unwrap_or(rest)) {
        Some("") => DATA_VOLUME.to_owned(),
        Some(volume) if volume_number(volume).is_some() => volume.to_owned(),
        _ => String::new(),
    }
}

/// A person says that the broker goes on without what is lost, and does so if that is open.
fn accept(node: &mut NodeStatus, name: &str) -> Option<LossStatus> {
    let mut losses = node.losses.iter_mut();
    let loss = losses.find(|loss| loss.name == *name && !loss.accepted)?;
    (loss.accepted, loss.held) = (true, false);
    let loss = loss.clone();
    node.incarnation = node.incarnation.saturating_add(1);
    // What comes next is another volume, and its loss another one.
    node.volumes.retain(|each| !is_of(&loss, each));
    Some(loss)
}

/// Whether `loss` is that of the volume in this record, and not of one that had its name before.
fn is_of(loss: &LossStatus, record: &VolumeStatus) -> bool {
    let is_same = match (&loss.directory_id, &record.directory_id) {
        (Some(lost), Some(has)) => lost == has,
        (lost, has) => match (&loss.claim_uid, &record.claim_uid) {
            (Some(lost), Some(has)) => lost == has,
            // The broker misses a directory, and leaves alone what is in its place.
            (None, _) if lost.is_some() => true,
            (lost_claim, has_claim) => lost_claim == has_claim && lost == has,
        },
    };
    loss.volume == record.name && is_same
}

/// What a pass sees of one broker.
struct Sight<'a> {
    broker: &'a Broker,
    seen: &'a ObservedBroker,
    observed: &'a Observed,
    /// [`pass_of`] it.
    pass: &'a str,
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

    /// Whether it is known which claims there are, and what names and has them.
    fn sees_volumes(&self) -> bool {
        self.observed.has_claims()
            && self.observed.was_read(Part::Brokers)
            && self.observed.was_read(Part::Definitions)
    }

    /// The claim of a volume, if the broker that runs was started with it and it stays.
    fn sound(&self, volume: &str) -> Option<&Volume> {
        let live = self.seen.volumes.get(volume)?;
        (live.is_mounted && !live.is_gone && !live.is_ending).then_some(live)
    }

    /// Whether the broker has what is behind no claim of a volume any more, or is about to be.
    fn has_old(&self, volume: &str) -> bool {
        let live = self.seen.volumes.get(volume);
        self.seen.mounts.contains(volume)
            && !live.is_some_and(|live| live.is_mounted && !live.is_gone)
    }

    /// Where the broker has the directory `id`, if that is on a claim that stays: the volume's name,
    /// and its claim.
    fn place_of(&self, id: &str) -> Option<(&String, &Volume)> {
        let said = self.seen.identity.as_ref()?;
        let mut paths = said.directories.iter().filter(|(_, found)| *found == id);
        paths.find_map(|(path, _)| {
            let volume = self.broker.volumes.iter().find(|each| each.log_dir == *path)?;
            Some((&volume.name, self.sound(&volume.name)?))
        })
    }

    /// The claim of a volume whose directory nobody knows, if that was restored under a new one, and
    /// the broker serves with it.
    fn restored(&self, volume: &str) -> Option<(&Volume, &String)> {
        let live = self.sound(volume).filter(|live| live.is_restored)?;
        (self.seen.run == Run::Ready).then_some((live, self.said_of(volume)?))
    }

    /// What is there is recorded where it is: a volume may be restored under another claim, or under
    /// the name of another one. Losses end by the same ([`Self::is_back`]): else one would end and
    /// be found again in each pass.
    fn follow_volumes(&self, node: &mut NodeStatus) {
        if !self.observed.has_claims() {
            return;
        }
        for record in &mut node.volumes {
            let found = match &record.directory_id {
                // Where it was, it is looked for first: a copy may be elsewhere.
                Some(id)
                    if self.said_of(&record.name) == Some(id)
                        && self.sound(&record.name).is_some() =>
                {
                    self.sound(&record.name).map(|live| (record.name.clone(), live, id.clone()))
                }
                Some(id) => self.place_of(id).map(|(name, live)| (name.clone(), live, id.clone())),
                None if self
                    .sound(&record.name)
                    .is_some_and(|live| record.claim_uid.as_ref() == Some(&live.uid)) =>
                {
                    None
                }
                None => self
                    .restored(&record.name)
                    .map(|(live, id)| (record.name.clone(), live, id.clone())),
            };
            if let Some((name, live, id)) = found {
                (record.name, record.directory_id) = (name, Some(id));
                (record.claim, record.claim_uid) = (live.claim.clone(), Some(live.uid.clone()));
            }
        }
        // What is there under the name was noted before it was seen that it is another one's.
        let known = node.volumes.clone();
        node.volumes.retain(|each| {
            let is_same = |other: &VolumeStatus| {
                other.directory_id.is_some()
                    && (&other.name, &other.claim_uid) == (&each.name, &each.claim_uid)
            };
            each.directory_id.is_some() || !known.iter().any(is_same)
        });
    }

    fn end_losses(&self, node: &mut NodeStatus) {
        node.losses.retain(|loss| match loss.accepted {
            false => {
                let (uid, id) = (loss.claim_uid.as_ref(), loss.directory_id.as_ref());
                !self.observed.never_was(uid, id) && !self.is_back(loss)
            }
            true => !self.is_back(loss) && !self.goes_on_without(loss),
        });
    }

    /// Whether what was lost is seen to be there again.
    fn is_back(&self, loss: &LossStatus) -> bool {
        if let Some(id) = &loss.directory_id {
            return self.place_of(id).is_some();
        }
        if self.seen.run != Run::Ready {
            return false;
        }
        let (live, said) = (self.sound(&loss.volume), self.said_of(&loss.volume));
        match &loss.claim_uid {
            Some(uid) => {
                live.is_some_and(|live| live.uid == *uid) || self.restored(&loss.volume).is_some()
            }
            None if loss.accepted || loss.reason != LossReason::NotFound => false,
            // What is there may be an empty volume that somebody made.
            None if loss.volume == DATA_VOLUME => {
                let is_old = |live: &Volume| live.is_kept || live.is_restored;
                let misses = self.seen.identity.as_ref().is_some_and(|said| said.misses_metadata);
                said.is_some() && live.is_some_and(is_old) && !misses
            }
            // An operator of an earlier version told what the broker missed, and no more.
            None => {
                let is_wanted = self.log_dir_of(&loss.volume).is_some();
                let misses_nothing = |said: &crate::admin::Identity| said.lost.is_empty();
                self.seen.identity.as_ref().is_some_and(misses_nothing)
                    && (!is_wanted || said.is_some())
            }
        }
    }

    /// Whether the step that the acceptance allows is done: the broker serves, with another volume
    /// in the place of the lost one where one is wanted, and neither has nor misses that.
    fn goes_on_without(&self, loss: &LossStatus) -> bool {
        if self.seen.run != Run::Ready || self.has_old(&loss.volume) {
            return false;
        }
        let is_wanted = self.log_dir_of(&loss.volume).is_some();
        // A directory may be lost and its claim stay, or another claim may have come.
        let is_emptied = matches!(loss.reason, LossReason::NotFound | LossReason::OtherDirectory);
        let is_other = |live: &Volume| is_emptied || loss.claim_uid.as_ref() != Some(&live.uid);
        let has_other = self.sound(&loss.volume).is_some_and(is_other);
        let Some(said) = &self.seen.identity else {
            // It does not answer; it was told what there is to tell.
            let is_told = self.seen.is_newest || loss.directory_id.is_none();
            return is_told && (has_other || !is_wanted);
        };
        let is_lost = |id: &String| {
            said.lost.contains_key(id) || said.directories.values().any(|has| has == id)
        };
        !loss.directory_id.as_ref().is_some_and(is_lost)
            && (!is_wanted || has_other && self.said_of(&loss.volume).is_some())
    }

    /// Records what the broker may have used. What is lost stays as it was, and what is known stays
    /// in the order in which the API server has it.
    fn record_volumes(&self, node: &mut NodeStatus) {
        if !self.observed.has_claims() {
            return;
        }
        let mut old = std::mem::take(&mut node.volumes);
        // While a definition names it, it would be noted again.
        let is_over = |each: &VolumeStatus| {
            self.observed.never_was(each.claim_uid.as_ref(), each.directory_id.as_ref())
                && self.sees_volumes()
                && !self.seen.defined.contains(&each.name)
        };
        old.retain(|each| !is_over(each));
        let names = self.broker.volumes.iter().map(|volume| &volume.name);
        let is_new = |name: &&String| !old.iter().any(|each| each.name == **name);
        let new = names.filter(is_new).filter_map(|name| self.record_first(name, node));
        let known = old.iter().map(|known| self.record_again(known, node));
        let recorded: Vec<VolumeStatus> = known.chain(new).collect();
        let with_use = |recorded: VolumeStatus| VolumeStatus {
            offline: self
                .log_dir_of(&recorded.name)
                .is_some_and(|log_dir| is_offline(log_dir, Some(&recorded), self.seen)),
            ..recorded
        };
        node.volumes = recorded.into_iter().map(with_use).collect();
    }

    fn record_again(&self, known: &VolumeStatus, node: &NodeStatus) -> VolumeStatus {
        let (mut known, said) = (known.clone(), self.said_of(&known.name));
        let is_lost = node.open_losses().any(|loss| is_of(loss, &known));
        let live = self.seen.volumes.get(&known.name);
        let Some(live) = live.filter(|live| live.is_mounted && !live.is_gone && !is_lost) else {
            return known;
        };
        if known.claim_uid.as_ref() == Some(&live.uid) {
            known.directory_id = known.directory_id.or_else(|| said.cloned());
        }
        known
    }

    /// What is to be recorded of a volume that nothing is recorded of: what a definition names, or
    /// a broker has, though nobody wrote it down. It is not this version that made it so.
    fn record_first(&self, name: &str, node: &NodeStatus) -> Option<VolumeStatus> {
        let (live, said) = (self.seen.volumes.get(name), self.said_of(name));
        let is_lost =
            |id: &String| node.losses.iter().any(|loss| loss.directory_id.as_ref() == Some(id));
        let is_other = said.is_some_and(|id| !is_lost(id));
        // The broker leaves alone what is in the place of what it misses.
        if node.open_losses().any(|loss| loss.volume == name) && !is_other {
            return None;
        }
        let new = |claim_uid: Option<String>, directory_id: Option<&String>| VolumeStatus {
            name: name.to_owned(),
            claim: claim_name(&self.broker.name, name),
            claim_uid,
            directory_id: directory_id.cloned(),
            offline: false,
        };
        let given_up = || node.accepted_losses().filter(|loss| loss.volume == name);
        let is_mounted = self.seen.mounts.contains(name);
        let Some(live) = live else {
            // The broker has what no claim stands for any more, or waits for a claim that nobody
            // saw. That goes only if a person said so of this one.
            let may_have = is_mounted || self.is_named_by_us(name);
            let goes = given_up().next().is_some() && !(is_mounted && is_other);
            return (may_have && !goes).then(|| new(None, said));
        };
        let is_it = |loss: &LossStatus| loss.claim_uid.as_ref() == Some(&live.uid);
        if live.is_gone && given_up().any(|loss| is_it(loss) || !is_mounted) {
            return None;
        }
        // A claim in phase Lost had a volume.
        let may_have = live.is_mounted || live.is_gone || self.seen.defined.contains(name);
        may_have.then(|| VolumeStatus {
            claim: live.claim.clone(),
            ..new(Some(live.uid.clone()), said.filter(|_| live.is_mounted && !live.is_gone))
        })
    }

    /// Whether the broker's definition names the claim of a volume, and does not make it by itself.
    fn is_named_by_us(&self, volume: &str) -> bool {
        let templates = self.broker.claim_templates.as_ref().and_then(|all| all.as_array());
        let mut made = templates.into_iter().flatten();
        self.seen.defined.contains(volume)
            && self.sees_volumes()
            && !made.any(|template| template.pointer("/metadata/name") == Some(&volume.into()))
    }

    fn find_losses(&self, node: &mut NodeStatus) {
        self.look_again(node);
        for volume in node.volumes.clone() {
            if node.open_losses().any(|loss| is_of(loss, &volume)) {
                continue;
            }
            let Some(reason) = self.reason_of(&volume) else { continue };
            node.losses.push(self.loss_of(node, volume, reason));
        }
        self.find_missed(node);
        if self.misses_data(node) {
            let new = || VolumeStatus { name: DATA_VOLUME.to_owned(), ..VolumeStatus::default() };
            let data = node.volume(DATA_VOLUME).cloned().unwrap_or_else(new);
            let data = VolumeStatus { directory_id: None, ..data };
            node.losses.push(self.loss_of(node, data, LossReason::NotFound));
        }
        self.look_at_replacements(node);
    }

    /// The loss of a volume of which this is recorded.
    fn loss_of(&self, node: &NodeStatus, lost: VolumeStatus, reason: LossReason) -> LossStatus {
        let id = lost.directory_id.as_ref().or(lost.claim_uid.as_ref());
        LossStatus {
            name: loss_name(node, &lost.name, id, self.pass),
            held: self.is_held(&lost.name, reason),
            volume: lost.name,
            reason,
            claim_uid: lost.claim_uid,
            directory_id: lost.directory_id,
            replaced_by: None,
            accepted: false,
        }
    }

    /// Notes what the broker uses in the place of what is lost, and what of that is gone by now. One
    /// that was told which directory to expect uses nothing else before it is ready.
    fn look_at_replacements(&self, node: &mut NodeStatus) {
        if !self.sees_volumes() {
            return;
        }
        let mut gone = Vec::new();
        for loss in node.losses.iter_mut().filter(|loss| !loss.accepted) {
            let live = self.seen.volumes.get(&loss.volume).filter(|live| !live.is_gone);
            let is_there = |uid: &mut String| live.is_some_and(|live| live.uid == *uid);
            if let Some(uid) = loss.replaced_by.take_if(|uid| !is_there(uid)) {
                gone.push((loss.volume.clone(), uid));
            }
            let may_use = self.seen.run == Run::Ready || loss.directory_id.is_none();
            // One that answers says what it uses.
            let denies = self.seen.identity.is_some() && self.said_of(&loss.volume).is_none();
            let is_used = |live: &&Volume| {
                live.is_mounted && may_use && !denies && loss.claim_uid.as_ref() != Some(&live.uid)
            };
            if loss.replaced_by.is_none() {
                loss.replaced_by = live.filter(is_used).map(|live| live.uid.clone());
            }
        }
        for (volume, uid) in gone {
            let is_known = |loss: &LossStatus| loss.claim_uid.as_ref() == Some(&uid);
            if self.observed.never_was(Some(&uid), None) || node.losses.iter().any(is_known) {
                continue;
            }
            let reason = match self.seen.volumes.get(&volume) {
                None => LossReason::ClaimGone,
                Some(live) if live.is_gone => LossReason::VolumeGone,
                Some(_) => LossReason::ClaimMadeAgain,
            };
            let claim_uid = Some(uid);
            let lost = VolumeStatus { name: volume, claim_uid, ..VolumeStatus::default() };
            node.losses.push(self.loss_of(node, lost, reason));
        }
    }

    /// What the broker has used in the place of what it goes on without is what it has now.
    fn keep_replacement(&self, loss: &LossStatus, node: &mut NodeStatus) {
        let Some(uid) = loss.replaced_by.clone() else { return };
        if node.volume(&loss.volume).is_none() {
            node.volumes.push(VolumeStatus {
                name: loss.volume.clone(),
                claim: claim_name(&self.broker.name, &loss.volume),
                claim_uid: Some(uid),
                ..VolumeStatus::default()
            });
        }
    }

    /// Brings what is recorded about open losses up to date, as far as it can be seen.
    fn look_again(&self, node: &mut NodeStatus) {
        let volumes = node.volumes.clone();
        for loss in node.losses.iter_mut().filter(|loss| !loss.accepted) {
            let recorded = volumes.iter().find(|volume| is_of(loss, volume));
            let is_missed = loss.reason == LossReason::NotFound && loss.claim_uid.is_none();
            if let Some(reason) =
                recorded.filter(|_| !is_missed).and_then(|recorded| self.reason_of(recorded))
            {
                loss.reason = reason;
            }
            if self.sees_volumes() {
                loss.held = self.is_held(&loss.volume, loss.reason);
            }
        }
    }

    /// In which way a volume that may have been used is lost, if it is.
    fn reason_of(&self, volume: &VolumeStatus) -> Option<LossReason> {
        if let Some((id, said)) = volume.directory_id.as_ref().zip(self.seen.identity.as_ref()) {
            if self.said_of(&volume.name).is_some_and(|found| found != id) {
                return Some(LossReason::OtherDirectory);
            }
            if said.lost.contains_key(id) {
                return Some(LossReason::NotFound);
            }
        }
        let (uid, id) = (volume.claim_uid.as_ref(), volume.directory_id.as_ref());
        if !self.observed.has_claims() || self.observed.never_was(uid, id) {
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

    /// Whether the records of a lost volume go when the broker ends, and not before. While it is
    /// not known what runs, they may.
    fn is_held(&self, volume: &str, reason: LossReason) -> bool {
        let is_behind_claim = match reason {
            LossReason::NotFound | LossReason::OtherDirectory => return false,
            LossReason::ClaimMadeAgain => {
                self.seen.volumes.get(volume).is_some_and(|live| live.is_mounted)
            }
            LossReason::ClaimGone | LossReason::VolumeGone => false,
        };
        let is_mounted = self.seen.mounts.contains(volume);
        is_mounted && !is_behind_claim || !self.observed.was_read(Part::Brokers)
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
            // The broker leaves what is in its place empty: no records are on that.
            node.volumes.retain(|each| each.name != volume || each.directory_id.is_some());
            let directory_id = Some(id.clone());
            let lost = VolumeStatus { name: volume, directory_id, ..VolumeStatus::default() };
            let loss = self.loss_of(node, lost, LossReason::NotFound);
            node.losses.retain(|known| known.name != loss.name);
            node.losses.push(loss);
        }
    }

    /// Whether the volume of the metadata is missing, or is another one, beside others that an
    /// earlier KafkaCluster had: every broker that had these had that one. Or whether the broker
    /// says so.
    fn misses_data(&self, node: &NodeStatus) -> bool {
        if !self.sees_volumes() || node.losses.iter().any(|loss| loss.volume == DATA_VOLUME) {
            return false;
        }
        if self.seen.identity.as_ref().is_some_and(|said| said.misses_metadata) {
            return true;
        }
        let is_old = |live: &Volume| live.is_kept || live.is_restored;
        let data = self.seen.volumes.get(DATA_VOLUME);
        let mut others = self.seen.volumes.iter().filter(|(name, _)| *name != DATA_VOLUME);
        node.volume(DATA_VOLUME).is_none()
            && !data.is_some_and(is_old)
            && others.any(|(_, live)| live.is_kept && live.is_bound)
    }
}

/// The open losses, with what is known besides.
pub(super) fn losses(desired: &Blueprint, nodes: &[NodeStatus]) -> Vec<Loss> {
    let of_node = |node: &NodeStatus| {
        let known = |volume: &str| node.volume(volume).map(|known| known.claim.clone());
        let broker = desired.brokers.get(&node.id).map(|broker| broker.name.as_str());
        let named = |volume: &str| claim_name(broker.unwrap_or_default(), volume);
        let loss = |recorded: &LossStatus| Loss {
            cluster: (desired.namespace.clone(), desired.name.clone()),
            broker: node.id,
            claim: known(&recorded.volume).unwrap_or_else(|| named(&recorded.volume)),
            recorded: recorded.clone(),
        };
        node.open_losses().map(loss).collect::<Vec<_>>()
    };
    nodes.iter().flat_map(of_node).collect()
}
