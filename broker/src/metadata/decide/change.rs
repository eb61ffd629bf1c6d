//! The next state of a partition: the one place that makes it.
//!
//! What keeps acknowledged records: the leader lets the high watermark pass nobody of the ISR, and
//! not move at all while the ISR is smaller than `min.insync.replicas`. So whoever is in the ISR
//! has every committed record, and so has whoever left an ISR that was too small afterwards, as
//! long as it stays too small: the ELR (KIP-966). A leader is taken from the ISR, or from the ELR
//! when the ISR is empty; from elsewhere only as [`Election`] says, and then the state tells.
//!
//! Invariants of every state made here: `leader ∈ isr ⊆ replicas`; the ISR is empty only without a
//! leader; ISR, ELR and last known ELR are never all empty; the partition epoch goes up with every
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
    before: &'a PartitionState,
    /// How many must be in sync.
    required: usize,
    may_be_unclean: bool,
    isr: Vec<BrokerId>,
    /// It may have lost what it had.
    lost: Option<BrokerId>,
    /// The leader begins anew.
    renewed: bool,
}

impl<'a> Change<'a> {
    /// A change of one partition of `topic`, whose brokers and configurations are those of `image`.
    pub(super) fn of(
        image: &'a MetadataImage,
        rules: &dyn ConfigRules,
        topic: &Topic,
        before: &'a PartitionState,
    ) -> Self {
        Self {
            image,
            before,
            required: required_in_sync(image, topic, before),
            may_be_unclean: may_be_unclean(image, rules, topic),
            isr: before.isr.to_vec(),
            lost: None,
            renewed: false,
        }
    }

    /// These replicas are in sync.
    pub(super) fn with_isr(mut self, isr: impl Fn(BrokerId) -> bool) -> Self {
        self.isr = self.before.replicas.iter().copied().filter(|id| isr(*id)).collect();
        self
    }

    /// A replica does not take part any more: it leaves the ISR, and does not lead.
    pub(super) fn without(mut self, id: BrokerId) -> Self {
        self.isr.retain(|member| *member != id);
        self
    }

    /// A replica may have lost what it had: it leaves ISR and ELR.
    pub(super) fn lost(mut self, id: BrokerId) -> Self {
        self.lost = Some(id);
        self.without(id)
    }

    /// The leader begins a new epoch, because readers must see that its tail may be another one
    /// (KIP-320).
    pub(super) fn renewed(mut self) -> Self {
        self.renewed = true;
        self
    }

    /// The state; `None` when nothing changes.
    pub(super) fn build(self) -> Option<PartitionState> {
        let before = self.before;
        let mut isr = self.isr.clone();
        let mut elr = self.eligible(&isr);
        let mut last_known = self.last_known(&isr);
        let elected = self.elect(&isr, &elr, &last_known);
        if let Some((leader, election)) = elected {
            if isr.is_empty() || !election.is_clean() {
                isr = vec![leader];
                elr.retain(|id| *id != leader && election.is_clean() && self.required > 1);
            }
            last_known.clear();
        }
        let leader = elected.map(|(leader, _)| leader);
        let election = elected.map_or(Election::Clean, |(_, election)| election);
        let is_new_epoch = leader != before.leader || self.renewed || !election.is_clean();
        let mut next = PartitionState {
            isr: isr.into(),
            elr: shared(elr),
            last_known_elr: shared(last_known),
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

    /// Who has every committed record beside the ISR: nobody as soon as the ISR is large enough, also
    /// because fewer have to be in it now.
    fn eligible(&self, isr: &[BrokerId]) -> Vec<BrokerId> {
        if isr.len() >= self.required {
            return Vec::new();
        }
        let had_all = |id: &BrokerId| self.before.elr.contains(id) || self.before.isr.contains(id);
        let is_eligible =
            |id: &BrokerId| had_all(id) && !isr.contains(id) && self.lost != Some(*id);
        self.before.replicas.iter().copied().filter(is_eligible).collect()
    }

    /// Who led last; nobody while the ISR is not empty.
    fn last_known(&self, isr: &[BrokerId]) -> Vec<BrokerId> {
        let before = self.before;
        if !isr.is_empty() {
            return Vec::new();
        }
        let last = before.leader.or_else(|| before.last_known_elr.first().copied());
        // Where an earlier version wrote no last leader, the last that had everything.
        last.or_else(|| before.isr.first().or(before.elr.first()).copied()).into_iter().collect()
    }

    fn elect(
        &self,
        isr: &[BrokerId],
        elr: &[BrokerId],
        last_known: &[BrokerId],
    ) -> Option<(BrokerId, Election)> {
        let is_live = |id: &BrokerId| self.image.is_live(*id);
        let first = |among: &[BrokerId]| {
            let all = self.before.replicas.iter().copied();
            all.filter(|id| among.contains(id)).find(is_live)
        };
        let present = self.before.leader.filter(|leader| isr.contains(leader) && is_live(leader));
        if let Some(leader) = present.or_else(|| first(if isr.is_empty() { elr } else { isr })) {
            return Some((leader, Election::Clean));
        }
        if let [last] = last_known
            && isr.is_empty()
            && elr.is_empty()
            && is_live(last)
        {
            return Some((*last, Election::LastKnown));
        }
        let any = self.may_be_unclean.then(|| first(&self.before.replicas)).flatten();
        any.map(|leader| (leader, Election::Unclean))
    }
}

/// An empty list takes no memory of its own.
fn shared(ids: Vec<BrokerId>) -> Arc<[BrokerId]> {
    if ids.is_empty() { Default::default() } else { ids.into() }
}

/// How many replicas must be in sync for any leader of this partition to commit a record: the least
/// that one of its brokers goes by. If it were more, the ELR could hold somebody who has missed
/// what was committed.
pub(super) fn required_in_sync(
    image: &MetadataImage,
    topic: &Topic,
    state: &PartitionState,
) -> usize {
    let set = |configs: &Configs| configs.get(MIN_INSYNC).map(|text| text.trim().parse().ok());
    let of_broker = |id: &BrokerId| {
        image
            .broker_configs
            .get(id)
            .and_then(set)
            .or_else(|| set(&image.cluster_configs))
            .unwrap_or_else(|| Some(image.brokers.get(id)?.min_insync_replicas))
    };
    let min_insync = match set(&topic.configs) {
        Some(of_topic) => of_topic,
        None => state.replicas.iter().map(of_broker).min().flatten(),
    };
    state.required_in_sync(min_insync.unwrap_or(1))
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
    change: impl Fn(&Topic, &PartitionState) -> Option<PartitionState>,
) -> Vec<MetadataRecord> {
    let changed = partitions.filter_map(|(topic, index, state)| {
        let state = change(topic, state)?;
        Some(MetadataRecord::Partition(PartitionRecord::of(topic.id, index, &state)))
    });
    changed.collect()
}
