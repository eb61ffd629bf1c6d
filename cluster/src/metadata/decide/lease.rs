//! Restart leases: a restart verdict that reserves what it says.
//!
//! A lease is granted by the verdict, for which the brokers of all other leases count as away; so of
//! two who ask at the same time one is refused. It is a record, and so outlives the controller that
//! granted it. While it lasts its brokers lead only where nobody else may, and what they led is
//! handed over. It is over when its holder gives it back, when its time is, or when each of its
//! brokers has registered anew and is caught up.
//!
//! Time is counted by the active controller alone ([`LeaseTimes`]) and never by the wall clock. What
//! is left is written down now and then: a new controller goes on from there, so a lease lasts a
//! little longer for each change of the controller, and no shorter.

use std::collections::BTreeMap;

use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use serde::{Deserialize, Serialize};

use super::caught_up::is_back;
use super::change::{Change, changed};
use super::liveness::Millis;
use super::verdict::{JudgeRestart, Verdict};
use super::{Context, Decide, Decision, Draft, ItemResult};
use crate::metadata::features::{FEATURE, LEASES};
use crate::metadata::record::EndRestartLeaseRecord;
use crate::metadata::{ApiError, MetadataImage, MetadataRecord, RestartLease};

/// The least and the most time that a lease is granted for, in milliseconds.
const FOR_MS: std::ops::RangeInclusive<u64> = 1_000..=3_600_000;
/// The longest name of a holder, in bytes.
const HOLDER_LEN_MAX: usize = 200;
/// What is left of a lease is written down whenever it is a tenth less, or that much less.
const NOTE_EVERY_MS: Millis = 10_000;

/// Asks for a lease over brokers that are to restart at the same time, or, of who has it, for all of
/// its time anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeRestartLease {
    /// Who asks. Letters, digits and `._-/:@`, so that it can stand in a query.
    pub holder: String,
    /// Which brokers, and how many partitions are named for each reason.
    pub restart: JudgeRestart,
    /// For how long.
    pub for_ms: u64,
    /// How many leads are moved at once at most; [`TendLeases`] moves the others.
    pub leads_max: usize,
}

/// What becomes of the question for a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseAnswer {
    /// The lease; `None` when it is refused.
    pub lease: Option<RestartLease>,
    /// What the restart would interrupt while the brokers of other leases are away. One that is not
    /// safe has no lease.
    pub verdict: Verdict,
    /// Why there is none otherwise.
    pub conflict: Option<LeaseConflict>,
    /// How many leads its brokers have yet that others could take.
    pub leads_left: usize,
}

/// Why a lease is refused, whatever the verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseConflict {
    /// Another one has a lease over one of the brokers.
    BrokerLeased {
        /// The broker.
        broker: BrokerId,
        /// Who has it.
        holder: String,
    },
    /// The holder has a lease over other brokers, which is not over.
    HolderHasLease {
        /// Those brokers.
        brokers: Vec<BrokerId>,
    },
}

impl Decide for TakeRestartLease {
    type Outcome = ItemResult<LeaseAnswer>;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let mut draft = Draft::new(image);
        let outcome = self.take(&mut draft, context);
        draft.decided(outcome)
    }
}

impl TakeRestartLease {
    fn take(&self, draft: &mut Draft, context: &Context<'_>) -> ItemResult<LeaseAnswer> {
        self.check(&draft.image)?;
        end_those_over(draft, &BTreeMap::new())?;
        let verdict = self.restart.judge(&draft.image, context)?;
        let conflict = self.conflict(&draft.image);
        if conflict.is_some() || !verdict.is_safe() {
            return Ok(LeaseAnswer { verdict, conflict, ..LeaseAnswer::default() });
        }
        let image = &draft.image;
        let next_index = i64::try_from(image.applied_index).unwrap_or(i64::MAX).saturating_add(1);
        let before = image.lease(&self.holder).map_or(0, |lease| lease.grant);
        let epoch = |id: &BrokerId| image.brokers.get(id).map_or(0, |broker| broker.epoch);
        let lease = RestartLease {
            holder: self.holder.clone(),
            grant: next_index.max(before.saturating_add(1)),
            brokers: self.restart.brokers.iter().map(|id| (*id, epoch(id))).collect(),
            for_ms: self.for_ms,
            left_ms: self.for_ms,
        };
        draft.add(vec![MetadataRecord::RestartLease(lease.clone())])?;
        let leads_left = hand_over(draft, context, self.leads_max)?;
        Ok(LeaseAnswer { lease: Some(lease), verdict, conflict: None, leads_left })
    }

    fn check(&self, image: &MetadataImage) -> ItemResult<()> {
        let invalid = |message: String| Err(ApiError::new(ErrorCode::InvalidRequest, message));
        if !is_holder(&self.holder) {
            return invalid(format!(
                "Name the holder with 1 to {HOLDER_LEN_MAX} letters, digits and \"._-/:@\"."
            ));
        }
        if !FOR_MS.contains(&self.for_ms) {
            let (least, most) = (FOR_MS.start() / 1_000, FOR_MS.end() / 1_000);
            return invalid(format!("A lease is granted for {least} to {most} s."));
        }
        if !image.has_leases() {
            let message = format!(
                "Not all nodes know restart leases: {FEATURE} is finalized at level {}, and {LEASES} \
                 has them. Raise it when all run a release that supports it.",
                image.level(FEATURE)
            );
            return Err(ApiError::new(ErrorCode::UnsupportedVersion, message));
        }
        Ok(())
    }

    fn conflict(&self, image: &MetadataImage) -> Option<LeaseConflict> {
        let brokers = &self.restart.brokers;
        let of_other = image.leases().filter(|lease| lease.holder != self.holder).find_map(|it| {
            let broker = brokers.iter().copied().find(|id| it.brokers.contains_key(id))?;
            Some(LeaseConflict::BrokerLeased { broker, holder: it.holder.clone() })
        });
        let own = || {
            let own = image.lease(&self.holder)?;
            let are_same = own.brokers.keys().eq(brokers);
            let held = own.brokers.keys().copied();
            (!are_same).then(|| LeaseConflict::HolderHasLease { brokers: held.collect() })
        };
        of_other.or_else(own)
    }
}

fn is_holder(name: &str) -> bool {
    let is_plain = |c: u8| c.is_ascii_alphanumeric() || b"._-/:@".contains(&c);
    (1..=HOLDER_LEN_MAX).contains(&name.len()) && name.bytes().all(is_plain)
}

/// Gives a lease back. The brokers that it names are not looked at: who has restarted them, and does
/// not wait for them, may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRestartLease {
    /// Who has it.
    pub holder: String,
}

impl Decide for ReleaseRestartLease {
    /// Whether there was one.
    type Outcome = bool;

    fn decide(&self, image: &MetadataImage, _: &Context<'_>) -> Decision<Self::Outcome> {
        let records: Vec<_> = image.lease(&self.holder).map(end).into_iter().collect();
        Decision { outcome: !records.is_empty(), records }
    }
}

/// Ends the leases that are over, and hands over what the brokers of the others lead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TendLeases {
    /// The grants whose time is over, by holder.
    pub expired: BTreeMap<String, i64>,
    /// What is left of other grants, in milliseconds, where that is to be written down.
    pub left: BTreeMap<String, (i64, u64)>,
    /// How many leads are moved at once at most.
    pub leads_max: usize,
}

impl Decide for TendLeases {
    /// How many leads are left that others could take.
    type Outcome = ItemResult<usize>;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let mut draft = Draft::new(image);
        let outcome = self.tend(&mut draft, context);
        draft.decided(outcome)
    }
}

impl TendLeases {
    fn tend(&self, draft: &mut Draft, context: &Context<'_>) -> ItemResult<usize> {
        end_those_over(draft, &self.expired)?;
        let less = draft.image.leases().filter_map(|lease| {
            let (grant, left_ms) = *self.left.get(&lease.holder)?;
            let is_it = grant == lease.grant && left_ms < lease.left_ms;
            is_it.then(|| MetadataRecord::RestartLease(RestartLease { left_ms, ..lease.clone() }))
        });
        let less = less.collect();
        draft.add(less)?;
        hand_over(draft, context, self.leads_max)
    }
}

/// Ends the leases of which each broker is back or gone for good, and those of `expired`.
pub(super) fn end_those_over(draft: &mut Draft, expired: &BTreeMap<String, i64>) -> ItemResult<()> {
    let image = &draft.image;
    let is_back = |(id, epoch): (&BrokerId, &i64)| {
        let is_gone = *epoch > 0 && !image.brokers.contains_key(id);
        is_gone || is_back(image, *id, *epoch)
    };
    let is_over = |lease: &&RestartLease| {
        let is_expired = expired.get(&lease.holder) == Some(&lease.grant);
        is_expired || lease.brokers.iter().all(is_back)
    };
    let ended = image.leases().filter(is_over).map(end).collect();
    draft.add(ended)
}

fn end(lease: &RestartLease) -> MetadataRecord {
    let holder = lease.holder.clone();
    MetadataRecord::EndRestartLease(EndRestartLeaseRecord { holder })
}

/// Has others lead what the brokers of leases lead, `leads_max` partitions at most; how many are
/// left.
fn hand_over(draft: &mut Draft, context: &Context<'_>, leads_max: usize) -> ItemResult<usize> {
    let image = &draft.image;
    let led = image.leased_brokers().into_iter().flat_map(|id| {
        image.partitions_of(id).filter(move |(_, _, state)| state.leader == Some(id))
    });
    let mut moved = changed(led, |topic, _, state| {
        let next = Change::of(image, context.rules, topic, state).handed_over().build();
        next.filter(|next| next.leader != state.leader)
    });
    let left = moved.len().saturating_sub(leads_max);
    moved.truncate(leads_max);
    draft.add(moved)?;
    Ok(left)
}

/// How long the leases last yet, as the active controller counts it: (state, now) → what is to be
/// done.
#[derive(Debug, Default)]
pub struct LeaseTimes(BTreeMap<String, Running>);

#[derive(Debug)]
struct Running {
    grant: i64,
    ends: Millis,
    /// What is left as it is written down.
    noted: u64,
    /// How much less is worth writing down.
    step: u64,
}

impl LeaseTimes {
    /// Takes over what `image` says. A grant that was not known lasts from now on as long as it says.
    pub fn take(&mut self, image: &MetadataImage, now: Millis) {
        self.0.retain(|holder, known| {
            image.lease(holder).is_some_and(|lease| lease.grant == known.grant)
        });
        for lease in image.leases() {
            let RestartLease { grant, left_ms: noted, for_ms, .. } = *lease;
            let step = (for_ms / 10).clamp(1, NOTE_EVERY_MS);
            let new = Running { grant, ends: now.saturating_add(noted), noted, step };
            self.0.entry(lease.holder.clone()).or_insert(new).noted = noted;
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is to be done now.
    #[must_use]
    pub fn tend(&self, now: Millis, leads_max: usize) -> TendLeases {
        let mut tend = TendLeases { leads_max, ..TendLeases::default() };
        for (holder, Running { grant, ends, noted, step }) in &self.0 {
            let left = ends.saturating_sub(now);
            if left == 0 {
                tend.expired.insert(holder.clone(), *grant);
            } else if noted.saturating_sub(left) >= *step {
                tend.left.insert(holder.clone(), (*grant, left));
            }
        }
        tend
    }
}
