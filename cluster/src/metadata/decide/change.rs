//! The next state of a partition: the one place that makes it.
//!
//! What keeps acknowledged records: the leader lets the high watermark pass nobody of the ISR, and
//! not move at all while the ISR is smaller than `min.insync.replicas`. So whoever is in the ISR
//! has every committed record, and so has whoever left an ISR that was too small afterwards, as
//! long as it stays too small: the ELR (KIP-966). A leader is taken from the ISR, or from the ELR
//! when the ISR is empty; from elsewhere only as [`Election`] says, and then the state tells.
//!
//! A log that lacks its end is apart from one that was lost. Who led last and lacks an end leads
//! again, because nobody is known to have more. A lost log leads by itself only where there is no
//! other replica: the others would empty theirs, and of several lost logs one may be empty and
//! another copied nearly whole. A person asks for one of them by an unclean election. Nor does by
//! itself who is only getting the partition, beside lost logs: it may be empty.
//!
//! Who has no room for records (`full`) leaves the ISR while another one in it has some, so that
//! nothing waits for it, and leads only where nobody else may. Where nobody has room it stays in
//! sync, or comes back when it has everything: else the last disk to fill would be the only one
//! that may lead.
//!
//! Invariants of every state made here: `leader ∈ isr ⊆ replicas \ offline`; the ISR is empty only without a
//! leader; `isr ⊆ full`, or nobody of `full` is in it; `lost ⊆ replicas \ (isr ∪ elr)`; `may_have_more ⊆ replicas \ isr`; ISR, ELR and last
//! known ELR are never all empty; the partition epoch goes up with every
//! change, and the leader epoch whenever the leader changes, may have lost its tail, or a replica
//! is taken away (which is when Apache Kafka raises it).

use std::sync::Arc;

use letterbox_protocol::model::BrokerId;

use super::ConfigRules;
use crate::metadata::record::PartitionRecord;
use crate::metadata::{Configs, Election, MetadataImage, MetadataRecord, PartitionState, Topic};

pub(super) const MIN_INSYNC: &str = "min.insync.replicas";
pub(super) const UNCLEAN: &str = "unclean.leader.election.enable";

/// What a partition is to become; what is not asked for stays.
pub(super) struct Change<'a> {
    image: &'a MetadataImage,
    topic: &'a Topic,
    before: &'a PartitionState,
    may_be_unclean: bool,
    /// A person asks for a leader, whoever it is.
    by_anybody: bool,
    replicas: Vec<BrokerId>,
    adding: Vec<BrokerId>,
    removing: Vec<BrokerId>,
    offline: Vec<BrokerId>,
    full: Vec<BrokerId>,
    isr: Vec<BrokerId>,
    /// The first of the assignment shall lead, if it may.
    prefers_the_first: bool,
    /// A leader that is about to restart gives way.
    hands_over: bool,
    /// Those that have nothing, or lack records within what they have.
    lost: Vec<BrokerId>,
    /// It may lack the end of what it had.
    shortened: Option<BrokerId>,
    /// The leader begins anew.
    renewed: bool,
}

impl<'a> Change<'a> {
    /// A change of one partition of `topic`, whose brokers and configurations are those of `image`.
    pub(super) fn of(
        image: &'a MetadataImage,
        rules: &dyn ConfigRules,
        topic: &'a Topic,
        before: &'a PartitionState,
    ) -> Self {
        Self {
            image,
            topic,
            before,
            may_be_unclean: may_be_unclean(image, rules, topic),
            by_anybody: false,
            replicas: before.replicas.to_vec(),
            adding: before.adding.to_vec(),
            removing: before.removing.to_vec(),
            offline: before.offline.to_vec(),
            full: before.full.to_vec(),
            isr: before.isr.to_vec(),
            prefers_the_first: false,
            hands_over: false,
            lost: before.lost.to_vec(),
            shortened: None,
            renewed: false,
        }
    }

    /// These replicas are in sync.
    pub(super) fn with_isr(mut self, isr: impl Fn(BrokerId) -> bool) -> Self {
        self.isr = self.replicas.iter().copied().filter(|id| isr(*id)).collect();
        self
    }

    /// A replica does not take part any more: it leaves the ISR, and does not lead.
    pub(super) fn without(mut self, id: BrokerId) -> Self {
        self.isr.retain(|member| *member != id);
        self
    }

    /// The log of a replica is out of use, or in use again.
    pub(super) fn with_log(mut self, id: BrokerId, is_offline: bool) -> Self {
        self.offline.retain(|known| *known != id);
        if is_offline {
            self.offline.push(id);
            return self.without(id);
        }
        self
    }

    /// The log of a replica takes no records for want of space, or takes them again. Nobody is told
    /// before all nodes can read it.
    pub(super) fn with_room(mut self, id: BrokerId, has_room: bool) -> Self {
        self.full.retain(|known| *known != id);
        if !has_room && self.image.tells_room() {
            self.full.push(id);
        }
        self
    }

    /// A replica has lost its log, or records within it: it leaves ISR and ELR, and does not lead
    /// before it is in sync again, unless there is no other replica.
    pub(super) fn lost(mut self, id: BrokerId) -> Self {
        if !self.lost.contains(&id) {
            self.lost.push(id);
        }
        self.without(id)
    }

    /// A replica may have lost the end of what it had: it leaves ISR and ELR.
    pub(super) fn shortened(mut self, id: BrokerId) -> Self {
        self.shortened = Some(id);
        self.without(id)
    }

    /// Whether a replica is known to have every committed record.
    pub(super) fn is_elsewhere(&self) -> bool {
        !self.isr.is_empty() || !self.eligible().is_empty()
    }

    /// The leader begins a new epoch, because readers must see that its tail may be another one
    /// (KIP-320).
    pub(super) fn renewed(mut self) -> Self {
        self.renewed = true;
        self
    }

    /// The first replica of the assignment leads, if it has every committed record.
    pub(super) fn led_by_the_preferred(mut self) -> Self {
        self.prefers_the_first = true;
        self
    }

    /// A leader that is about to restart (a restart lease) gives way to another one in sync.
    pub(super) fn handed_over(mut self) -> Self {
        self.hands_over = true;
        self
    }

    /// Anybody may lead where nobody can who has every committed record; who has lost its log only
    /// when nobody else is there.
    pub(super) fn by_anybody(mut self) -> Self {
        self.by_anybody = true;
        self
    }

    /// The replicas move to `target`, whatever was under way before. Nobody goes before all of
    /// `target` are in sync, also who was only to come: it may be the only one that has everything.
    /// Such a one is both added and removed.
    pub(super) fn moving(mut self, target: &[BrokerId]) -> Self {
        let without = |ids: &[BrokerId], others: &[BrokerId]| -> Vec<BrokerId> {
            ids.iter().copied().filter(|id| !others.contains(id)).collect()
        };
        self.removing = without(&self.replicas, target);
        self.replicas = target.iter().chain(&self.removing).copied().collect();
        self.adding = without(&self.replicas, &self.before.original_replicas());
        self.keep_isr()
    }

    /// A move is given up: the replicas of before stay, and who was only to come goes at once, but
    /// who may have committed records that its leader lacks: that one is both added and removed.
    pub(super) fn given_up(mut self) -> Self {
        let before = self.before;
        let may_have_more = |id: &&BrokerId| before.may_have_more.contains(id);
        self.adding = before.adding.iter().filter(may_have_more).copied().collect();
        self.removing = self.adding.clone();
        self.replicas = before.original_replicas();
        self.replicas.extend(&self.adding);
        self.keep_isr()
    }

    /// Who was in the ISR and has a replica stays in it, in the order of the replicas.
    fn keep_isr(mut self) -> Self {
        let isr = std::mem::take(&mut self.isr);
        self.with_isr(|id| isr.contains(&id))
    }

    /// All replicas that stay are in sync: those that are to go do, and their logs are deleted.
    /// Not while one of them may have committed records that its leader lacks, unless its broker is
    /// unregistered, which says that it is gone for good.
    fn complete_move(&mut self, election: Election) {
        let stays = |id: &&BrokerId| !self.removing.contains(id);
        let is_there = |id: &BrokerId| self.image.brokers.contains_key(id);
        let may_go = |id: &BrokerId| !self.may_have_more(*id, election) || !is_there(id);
        let is_done = self.replicas.iter().filter(stays).all(|id| self.isr.contains(id));
        if is_done && self.removing.iter().all(may_go) {
            let removing = std::mem::take(&mut self.removing);
            self.replicas.retain(|id| !removing.contains(id));
            self.isr.retain(|id| !removing.contains(id));
            self.adding.clear();
        }
    }

    /// Whether a replica was not in sync since a leader was elected that may lack committed records.
    fn may_have_more(&self, id: BrokerId, election: Election) -> bool {
        let had_more = !election.is_clean() || self.before.may_have_more.contains(&id);
        had_more && !self.isr.contains(&id)
    }

    /// The state; `None` when nothing changes.
    pub(super) fn build(mut self) -> Option<PartitionState> {
        let election = self.bring_back();
        let has_room = |id: &BrokerId| !self.full.contains(id);
        if self.isr.iter().any(|id| self.may_lead(*id) && has_room(id)) {
            self.isr.retain(|id| !self.full.contains(id));
        }
        self.complete_move(election);
        let before = self.before;
        let elr = if election.is_clean() { self.eligible() } else { Vec::new() };
        let last_known = if self.isr.is_empty() { self.last_known() } else { Vec::new() };
        let out_of_sync = || self.replicas.iter().copied().filter(|id| !self.isr.contains(id));
        let lost = out_of_sync().filter(|id| self.lost.contains(id)).collect();
        let may_have_more = out_of_sync().filter(|id| self.may_have_more(*id, election)).collect();
        let leader = self.leader();
        let is_offline = |id: &BrokerId| self.offline.contains(id);
        let offline = self.replicas.iter().copied().filter(is_offline).collect();
        let is_full = |id: &BrokerId| self.full.contains(id);
        let full = self.replicas.iter().copied().filter(is_full).collect();
        let is_new_epoch = leader != before.leader
            || self.renewed
            || !election.is_clean()
            || before.replicas.iter().any(|id| !self.replicas.contains(id));
        let mut next = PartitionState {
            replicas: kept(&before.replicas, self.replicas),
            isr: kept(&before.isr, self.isr),
            elr: kept(&before.elr, elr),
            last_known_elr: kept(&before.last_known_elr, last_known),
            adding: kept(&before.adding, self.adding),
            removing: kept(&before.removing, self.removing),
            offline: kept(&before.offline, offline),
            full: kept(&before.full, full),
            lost: kept(&before.lost, lost),
            may_have_more: kept(&before.may_have_more, may_have_more),
            leader,
            ..before.clone()
        };
        if is_new_epoch {
            next.leader_epoch = next.leader_epoch.saturating_add(1);
            next.election = election;
        }
        if next == *before {
            return None;
        }
        next.partition_epoch = next.partition_epoch.saturating_add(1);
        Some(next)
    }

    /// Where nobody in sync is live, somebody else makes the ISR, if anybody may; how.
    fn bring_back(&mut self) -> Election {
        if self.isr.iter().any(|id| self.may_lead(*id)) {
            return Election::Clean;
        }
        let elr = self.eligible();
        let of_elr = self.first_of(if self.isr.is_empty() { &elr } else { &[] });
        let last = || {
            let is_none = self.isr.is_empty() && elr.is_empty();
            let known = if is_none { self.last_known() } else { Vec::new() };
            // Of several it is not known who has more, also where all of them have lost some.
            self.first_of(if known.len() == 1 { &known } else { &[] })
        };
        let found = of_elr
            .map(|id| (id, Election::Clean))
            .or_else(|| Some((last()?, Election::LastKnown)))
            .or_else(|| Some((self.any()?, Election::Unclean)));
        found.map_or(Election::Clean, |(id, election)| {
            self.isr = vec![id];
            election
        })
    }

    /// Whom an unclean election takes: who had the partition before it moved rather than who is
    /// only getting it. Who has lost its log only when nobody else has a replica or, where a person
    /// asks, when nobody else is there.
    fn any(&self) -> Option<BrokerId> {
        if !self.may_be_unclean && !self.by_anybody {
            return None;
        }
        let (lost, left): (Vec<BrokerId>, Vec<_>) =
            self.replicas.iter().partition(|id| self.lost.contains(id));
        let (new, old): (Vec<_>, Vec<_>) = left.iter().partition(|id| self.adding.contains(id));
        let may_be_lost = self.by_anybody || left.is_empty();
        let of_lost = || self.first_of(if may_be_lost { &lost } else { &[] });
        self.first_of(&old).or_else(|| self.first_of(&new)).or_else(of_lost)
    }

    /// Who has every committed record beside the ISR: nobody as soon as the ISR is large enough, also
    /// because fewer have to be in it now.
    fn eligible(&self) -> Vec<BrokerId> {
        if self.isr.len() >= self.required() {
            return Vec::new();
        }
        let had_all = |id: &BrokerId| self.before.elr.contains(id) || self.before.isr.contains(id);
        let may_lack = |id: &BrokerId| self.lost.contains(id) || self.shortened == Some(*id);
        let is_eligible = |id: &BrokerId| had_all(id) && !self.isr.contains(id) && !may_lack(id);
        self.replicas.iter().copied().filter(is_eligible).collect()
    }

    /// Who may have the most, while nobody is known to have everything: who led last, if it still
    /// has a replica and has not lost it; else all that have not lost theirs; else all.
    fn last_known(&self) -> Vec<BrokerId> {
        let before = self.before;
        let has_some = |id: &BrokerId| self.replicas.contains(id) && !self.lost.contains(id);
        // It may have nothing yet, and the logs of all others would be emptied for it.
        let is_one_to_come = |left: &[BrokerId]| matches!(left, [one] if self.adding.contains(one));
        // Where an earlier version wrote no last leader, somebody who had everything.
        let had_all = || before.isr.iter().chain(&*before.elr).copied().find(has_some);
        let known: Vec<_> = before.last_known_elr.iter().copied().filter(has_some).collect();
        let led_last = before.last_known_elr.len() == 1;
        let left: Vec<_> = self.replicas.iter().copied().filter(has_some).collect();
        if let Some(leader) = before.leader.filter(has_some) {
            vec![leader]
        } else if !known.is_empty() && (led_last || !is_one_to_come(&known)) {
            known
        } else if let Some(one) = had_all() {
            vec![one]
        } else if left.is_empty() || is_one_to_come(&left) {
            self.replicas.clone()
        } else {
            left
        }
    }

    /// How many must be in sync in the state that is made.
    fn required(&self) -> usize {
        let kept = self.replicas.len().saturating_sub(self.adding.len());
        min_insync(self.image, self.topic, &self.replicas).min(kept).max(1)
    }

    /// The first live one of these in the order of the assignment. Who has no room comes after
    /// those that have, of both who is about to restart after those that are not, and who is about to
    /// stop comes last.
    fn first_of(&self, among: &[BrokerId]) -> Option<BrokerId> {
        let all = || self.replicas.iter().copied().filter(|id| among.contains(id));
        let all = || all().filter(|id| self.may_lead(*id));
        let serving = || all().filter(|id| self.image.is_serving(*id));
        let has_room = |id: &BrokerId| !self.full.contains(id);
        let stays = |id: &BrokerId| !self.image.is_leased(*id);
        let with_room = || serving().filter(has_room);
        let best = with_room().find(stays).or_else(|| with_room().next());
        best.or_else(|| serving().find(stays)).or_else(|| serving().next()).or_else(|| all().next())
    }

    /// Whether it is there with its log.
    fn may_lead(&self, id: BrokerId) -> bool {
        self.image.is_live(id) && !self.offline.contains(&id)
    }

    /// Who leads, of the ISR.
    fn leader(&self) -> Option<BrokerId> {
        let goes = |id: &BrokerId| self.image.is_leased(*id);
        let preferred = self.replicas.first().copied().filter(|id| {
            let may_lead = self.isr.contains(id) && self.image.is_serving(*id) && !goes(id);
            self.prefers_the_first && may_lead
        });
        let may_stay = |id: &BrokerId| self.isr.contains(id) && self.may_lead(*id);
        let gives_way = |id: &BrokerId| self.hands_over && goes(id);
        let present = self.before.leader.filter(|id| may_stay(id) && !gives_way(id));
        preferred.or(present).or_else(|| self.first_of(&self.isr))
    }
}

/// What did not change is shared; an empty list takes no memory of its own.
fn kept(before: &Arc<[BrokerId]>, after: Vec<BrokerId>) -> Arc<[BrokerId]> {
    if **before == *after {
        Arc::clone(before)
    } else if after.is_empty() {
        Arc::default()
    } else {
        after.into()
    }
}

/// `min.insync.replicas` of a partition on these brokers: the least that one of them goes by, for
/// it may lead. If it were more, the ELR could hold somebody who has missed what was committed.
pub(super) fn min_insync(image: &MetadataImage, topic: &Topic, replicas: &[BrokerId]) -> usize {
    let set = |configs: &Configs| configs.get(MIN_INSYNC).map(|text| text.trim().parse().ok());
    // Who is not registered does not lead, and says nothing.
    let of_broker = |id: &BrokerId| {
        let broker = image.brokers.get(id)?;
        let configs = image.broker_configs.get(id);
        let set = configs.and_then(set).or_else(|| set(&image.cluster_configs));
        set.unwrap_or(Some(broker.min_insync_replicas))
    };
    let min_insync = match set(&topic.configs) {
        Some(of_topic) => of_topic,
        None => replicas.iter().filter_map(of_broker).min(),
    };
    min_insync.unwrap_or(1)
}

fn may_be_unclean(image: &MetadataImage, rules: &dyn ConfigRules, topic: &Topic) -> bool {
    let set = topic.configs.get(UNCLEAN).or_else(|| image.cluster_configs.get(UNCLEAN));
    match set {
        Some(value) => value.trim().eq_ignore_ascii_case("true"),
        None => rules.may_be_unclean(),
    }
}

/// The records that change each of `partitions` as `change` says.
pub(super) fn changed<'a>(
    partitions: impl Iterator<Item = (&'a Arc<Topic>, i32, &'a PartitionState)>,
    change: impl Fn(&Topic, i32, &PartitionState) -> Option<PartitionState>,
) -> Vec<MetadataRecord> {
    let changed = partitions.filter_map(|(topic, index, state)| {
        let state = change(topic, index, state)?;
        Some(MetadataRecord::Partition(PartitionRecord::of(topic.id, index, &state)))
    });
    changed.collect()
}
