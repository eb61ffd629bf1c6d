//! The restart verdict: what the restart of a set of brokers at the same time would interrupt.
//!
//! For each partition that has a replica there the next state is made as it is when the brokers are
//! fenced, by the same code (`change`), and compared with the present one. So only what this
//! restart makes worse counts against it: a broker that is not in sync holds up no restart of
//! itself, and a partition that has no leader anyway is nobody's reason to wait. Brokers that are
//! about to stop, or that somebody has a restart lease over, count as gone before it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use letterbox_env::Gather;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use serde::{Deserialize, Serialize};

use super::change::{Change, min_insync};
use super::lease::end_those_over;
use super::{ConfigRules, Context, Decide, Decision, Draft, ItemResult};
use crate::metadata::{
    ApiError, BrokerRegistration, MetadataImage, PartitionState, RestartLease, Topic,
};

/// The most brokers that one question may name.
const BROKERS_MAX: usize = 1_000;
/// The most partitions that an answer names for each reason, whatever was asked for.
pub(super) const NAMES_MAX: usize = 1_000;

/// Asks what a restart of some brokers at the same time would interrupt. Changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JudgeRestart {
    /// Which brokers; a node that is a controller only is one of them, too.
    pub brokers: BTreeSet<BrokerId>,
    /// How many partitions are named for each reason, at most.
    pub names_max: usize,
}

/// What a restart would interrupt. Of each partition the worst is told, and nothing else: no
/// partition is in two of the lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The newest epoch of their registrations: who restarts registers with a higher one.
    pub epoch: i64,
    /// How many partitions have a replica on these brokers.
    pub partitions: usize,
    /// A replica would lead that may lack acknowledged records, because the topic allows it
    /// (`unclean.leader.election.enable`).
    pub records_lost: Named,
    /// No other broker has every acknowledged record: nobody would lead, and what these brokers do
    /// not bring back would be lost.
    pub only_copies: Named,
    /// Nobody would lead: who else has every acknowledged record is not there.
    pub without_leader: Named,
    /// Fewer replicas than `min.insync.replicas` would be in sync: `acks=all` would be refused.
    pub below_min_isr: Named,
    /// They have one replica: nobody leads while it restarts, whenever that is.
    pub single_replica: Named,
    /// They have no more replicas than `min.insync.replicas`: `acks=all` is refused while one of
    /// them restarts, whichever that is.
    pub no_spare_replica: Named,
    /// Other brokers that are fenced or about to stop, or of which somebody has a restart lease.
    pub away: BTreeSet<BrokerId>,
    /// The leases over other brokers. An earlier version has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<RestartLease>,
    /// What is left of the metadata quorum.
    pub voters: VotersLeft,
}

/// Some of the partitions to which the same applies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// How many there are.
    pub count: usize,
    /// The first of them: topic and partition.
    pub some: Vec<(String, i32)>,
}

/// The voters of the metadata quorum, as their leader knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Voters {
    /// All of them.
    pub all: BTreeSet<BrokerId>,
    /// Those that follow, the leader among them.
    pub in_step: BTreeSet<BrokerId>,
}

/// What a restart leaves of the metadata quorum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VotersLeft {
    /// How many voters there are.
    pub count: usize,
    /// How many of them are a majority.
    pub needed: usize,
    /// How many would be left that follow now.
    pub left: usize,
    /// Whether voters that follow now are among those that restart.
    pub restart: bool,
}

impl VotersLeft {
    /// Whether the metadata can be changed meanwhile as they can be now. One or two voters have
    /// nobody to spare, whenever one of them restarts.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        !self.restart || self.count <= 2 || self.left >= self.needed
    }
}

impl Verdict {
    /// Whether the restart interrupts nothing that a restart at another time would not.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        let lists =
            [&self.records_lost, &self.only_copies, &self.without_leader, &self.below_min_isr];
        lists.iter().all(|list| list.count == 0) && self.voters.is_kept()
    }
}

impl Decide for JudgeRestart {
    type Outcome = ItemResult<Verdict>;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let mut draft = Draft::new(image);
        let are_ended = end_those_over(&mut draft, &BTreeMap::new());
        let outcome = are_ended.and_then(|()| self.judge(&draft.image, context));
        Decision { records: Vec::new(), outcome }
    }
}

impl JudgeRestart {
    /// The verdict on `image`, in which no lease is over.
    pub(super) fn judge(
        &self,
        image: &MetadataImage,
        context: &Context<'_>,
    ) -> ItemResult<Verdict> {
        let voters = (context.voters)();
        self.check(image, &voters)?;
        let names_max = self.names_max.min(NAMES_MAX);
        Ok(Judge::new(image, context.rules, &self.brokers, names_max).judge(&voters))
    }

    fn check(&self, image: &MetadataImage, voters: &Voters) -> ItemResult<()> {
        check_count(&self.brokers, 1)?;
        let is_known = |id: &&BrokerId| image.brokers.contains_key(id) || voters.all.contains(id);
        match self.brokers.iter().find(|id| !is_known(id)) {
            None => Ok(()),
            Some(id) => {
                let message = format!("Broker ID {id} is not currently registered");
                Err(ApiError::new(ErrorCode::BrokerIdNotRegistered, message))
            }
        }
    }
}

/// Whether a question names at least `min` brokers, and not too many.
pub(super) fn check_count(brokers: &BTreeSet<BrokerId>, min: usize) -> ItemResult<()> {
    if (min..=BROKERS_MAX).contains(&brokers.len()) {
        return Ok(());
    }
    let message = format!("Name between {min} and {BROKERS_MAX} brokers.");
    Err(ApiError::new(ErrorCode::InvalidRequest, message))
}

/// The newest epoch of the registrations of these brokers.
pub(super) fn newest_epoch<'a>(
    image: &MetadataImage,
    brokers: impl IntoIterator<Item = &'a BrokerId>,
) -> i64 {
    let registered = brokers.into_iter().filter_map(|id| image.brokers.get(id));
    registered.map(|broker| broker.epoch).max().unwrap_or(0)
}

/// What becomes of one partition.
enum Fate {
    Unharmed,
    RecordsLost,
    OnlyCopies,
    WithoutLeader,
    BelowMinIsr,
    SingleReplica,
    NoSpareReplica,
}

struct Judge<'a> {
    rules: &'a dyn ConfigRules,
    /// Those that restart.
    brokers: &'a BTreeSet<BrokerId>,
    /// The others that somebody has a restart lease over.
    leased: BTreeSet<BrokerId>,
    /// Those, and the others that are about to stop: they are as good as gone.
    leaving: BTreeSet<BrokerId>,
    /// Without those.
    present: MetadataImage,
    /// Without those that restart, either.
    meanwhile: MetadataImage,
    names_max: usize,
}

impl<'a> Judge<'a> {
    fn new(
        image: &MetadataImage,
        rules: &'a dyn ConfigRules,
        brokers: &'a BTreeSet<BrokerId>,
        names_max: usize,
    ) -> Self {
        let is_other = |id: &BrokerId| !brokers.contains(id);
        let mut leased = image.leased_brokers();
        leased.retain(is_other);
        let leaves = |(id, broker): &(&BrokerId, &Arc<BrokerRegistration>)| {
            is_other(id) && (broker.stopping || leased.contains(id))
        };
        let leaving: BTreeSet<_> = image.live_brokers().filter(leaves).map(|(id, _)| *id).gather();
        let present = fenced(image, &leaving);
        let meanwhile = fenced(&present, brokers);
        Self { rules, brokers, leased, leaving, present, meanwhile, names_max }
    }

    fn judge(&self, voters: &Voters) -> Verdict {
        let goes = |id: &&BrokerId| self.brokers.contains(id) || self.leased.contains(id);
        let left = voters.in_step.iter().filter(|id| !goes(id)).count();
        let needed = voters.all.len() / 2 + 1;
        // A majority has just confirmed who leads. So where fewer are in step some are late only for
        // a moment, and nobody knows who is not needed.
        let follow = if voters.in_step.len() < needed { &voters.all } else { &voters.in_step };
        let voters = VotersLeft {
            count: voters.all.len(),
            needed,
            left,
            restart: !follow.is_disjoint(self.brokers),
        };
        let fenced = self.present.brokers.iter().filter(|(_, broker)| broker.fenced);
        let away = fenced.map(|(id, _)| *id).filter(|id| !self.brokers.contains(id)).collect();
        let epoch = newest_epoch(&self.present, self.brokers);
        let is_of_others =
            |lease: &&RestartLease| lease.brokers.keys().any(|id| self.leased.contains(id));
        let leases = self.present.leases().filter(is_of_others).cloned().collect();
        let mut verdict = Verdict { epoch, voters, away, leases, ..Verdict::default() };
        for broker in self.brokers {
            for (topic, index, state) in self.present.partitions_of(*broker) {
                // Each once, whoever else of them has a replica.
                if self.first_of(state) == Some(*broker) {
                    verdict.partitions += 1;
                    let fate = self.fate(topic, state);
                    verdict.add(fate, topic, index, self.names_max);
                }
            }
        }
        verdict
    }

    fn first_of(&self, state: &PartitionState) -> Option<BrokerId> {
        state.replicas.iter().copied().filter(|id| self.brokers.contains(id)).min()
    }

    fn fate(&self, topic: &Topic, state: &PartitionState) -> Fate {
        let before = self.without(&self.present, topic, state, &self.leaving);
        let after = self.without(&self.meanwhile, topic, &before, self.brokers);
        let kept = before.replicas.len().saturating_sub(before.adding.len());
        let is_elected = after.leader.is_some() && after.leader_epoch != before.leader_epoch;
        if is_elected && !after.election.is_clean() {
            return Fate::RecordsLost;
        }
        if before.leader.is_some() && after.leader.is_none() {
            let mut others = before.replicas.iter().filter(|id| !self.brokers.contains(id));
            return match others.any(|id| before.has_all(*id)) {
                _ if kept <= 1 => Fate::SingleReplica,
                false => Fate::OnlyCopies,
                true => Fate::WithoutLeader,
            };
        }
        let required = before.required_in_sync(min_insync(&self.present, topic, &before.replicas));
        if before.isr.len() < required || after.isr.len() >= required {
            return Fate::Unharmed;
        }
        if kept <= required { Fate::NoSpareReplica } else { Fate::BelowMinIsr }
    }

    /// The state once `gone` have left the partition, and `image` has them fenced.
    fn without(
        &self,
        image: &MetadataImage,
        topic: &Topic,
        state: &PartitionState,
        gone: &BTreeSet<BrokerId>,
    ) -> PartitionState {
        let mut leave = state.replicas.iter().filter(|id| gone.contains(id)).peekable();
        if leave.peek().is_none() {
            return state.clone();
        }
        let change = Change::of(image, self.rules, topic, state);
        let next = leave.fold(change, |change, id| change.without(*id)).build();
        next.unwrap_or_else(|| state.clone())
    }
}

impl Verdict {
    fn add(&mut self, fate: Fate, topic: &Topic, index: i32, names_max: usize) {
        let list = match fate {
            Fate::Unharmed => return,
            Fate::RecordsLost => &mut self.records_lost,
            Fate::OnlyCopies => &mut self.only_copies,
            Fate::WithoutLeader => &mut self.without_leader,
            Fate::BelowMinIsr => &mut self.below_min_isr,
            Fate::SingleReplica => &mut self.single_replica,
            Fate::NoSpareReplica => &mut self.no_spare_replica,
        };
        list.add(topic, index, names_max);
    }
}

impl Named {
    pub(super) fn add(&mut self, topic: &Topic, index: i32, names_max: usize) {
        self.count += 1;
        if self.some.len() < names_max {
            self.some.push((topic.name.to_string(), index));
        }
    }
}

/// `image` with these brokers fenced.
fn fenced(image: &MetadataImage, ids: &BTreeSet<BrokerId>) -> MetadataImage {
    if ids.is_empty() {
        return image.clone();
    }
    let fence = |(id, broker): (&BrokerId, &Arc<BrokerRegistration>)| {
        let broker = match ids.contains(id) {
            true => Arc::new(BrokerRegistration { fenced: true, ..(**broker).clone() }),
            false => Arc::clone(broker),
        };
        (*id, broker)
    };
    let brokers: BTreeMap<_, _> = image.brokers.iter().map(fence).gather();
    MetadataImage { brokers: Arc::new(brokers), ..image.clone() }
}
