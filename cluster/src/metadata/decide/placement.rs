//! Where replicas go.
//!
//! Rack-aware round robin. Racks take turns, and within a rack its brokers take turns, so that
//! replicas of a partition are in as many racks as there are, and leaders are spread evenly. Fenced
//! brokers, and those about to stop, get replicas only when the others are too few, and are never
//! first. Kafka's striped
//! placer has the same aims; the order itself is not Kafka's.

use std::collections::{BTreeMap, BTreeSet};

use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;

use super::ItemResult;
use crate::metadata::{ApiError, MetadataImage};

/// The brokers to choose from.
pub(super) struct Placement {
    /// Rack by rack; brokers without a rack are one rack together.
    racks: Vec<Vec<BrokerId>>,
    fenced: Vec<BrokerId>,
}

impl Placement {
    pub(super) fn of(image: &MetadataImage) -> Self {
        let mut racks: BTreeMap<Option<&str>, Vec<BrokerId>> = BTreeMap::new();
        for (id, registration) in image.live_brokers().filter(|(_, one)| !one.stopping) {
            racks.entry(registration.rack.as_deref()).or_default().push(*id);
        }
        let fenced = image.brokers.keys().filter(|id| !image.is_serving(**id)).copied().collect();
        Self { racks: racks.into_values().collect(), fenced }
    }

    /// `count` assignments of `factor` replicas each, beginning at a place that `seed` picks.
    pub(super) fn place(
        &self,
        count: usize,
        factor: i16,
        seed: u64,
    ) -> ItemResult<Vec<Vec<BrokerId>>> {
        let refuse =
            |message: String| Err(ApiError::new(ErrorCode::InvalidReplicationFactor, message));
        let Some(wanted) = usize::try_from(factor).ok().filter(|wanted| *wanted > 0) else {
            return refuse(
                "Replication factor must be larger than 0, or -1 to use the default value."
                    .to_owned(),
            );
        };
        let live: usize = self.racks.iter().map(Vec::len).sum();
        let unable = |why: String| {
            refuse(format!("Unable to replicate the partition {factor} time(s): {why}"))
        };
        if live == 0 {
            return unable(
                "All brokers are currently fenced or in controlled shutdown.".to_owned(),
            );
        }
        let registered = live.saturating_add(self.fenced.len());
        if wanted > registered {
            return unable(format!(
                "The target replication factor of {factor} cannot be reached because only \
                 {registered} broker(s) are registered."
            ));
        }
        Ok(self.rounds(live, seed).take(count).map(|order| self.pick(order, wanted)).collect())
    }

    /// The order in which live brokers are taken, for one partition after the other. The leader
    /// moves on by one broker each time; after a whole round the racks' inner orders move too, so
    /// that the same leader gets other followers.
    fn rounds(&self, live: usize, seed: u64) -> impl Iterator<Item = Vec<BrokerId>> {
        let start = usize::try_from(seed % live as u64).unwrap_or(0);
        let flat = self.interleaved();
        (0usize..).map(move |n| {
            let position = start.wrapping_add(n) % live;
            let shift = n / live;
            let leader = flat.get(position).copied();
            self.interleaved_from(leader, shift)
        })
    }

    /// All live brokers, racks taking turns.
    fn interleaved(&self) -> Vec<BrokerId> {
        let longest = self.racks.iter().map(Vec::len).max().unwrap_or(0);
        (0..longest)
            .flat_map(|row| self.racks.iter().filter_map(move |rack| rack_at(rack, row, 0)))
            .collect()
    }

    /// As [`Self::interleaved`], beginning with the leader in its rack; the other racks' orders
    /// begin `shift` further on. The leader's own does not, or its rack would be taken twice in the
    /// first row.
    fn interleaved_from(&self, leader: Option<BrokerId>, shift: usize) -> Vec<BrokerId> {
        let home = self
            .racks
            .iter()
            .position(|rack| leader.is_some_and(|id| rack.contains(&id)))
            .unwrap_or(0);
        let offset = self
            .racks
            .get(home)
            .and_then(|rack| rack.iter().position(|id| Some(*id) == leader))
            .unwrap_or(0);
        let longest = self.racks.iter().map(Vec::len).max().unwrap_or(0);
        let racks: Vec<_> =
            self.racks.iter().cycle().skip(home).take(self.racks.len()).enumerate().collect();
        let begin = |n: usize| if n == 0 { offset } else { offset.wrapping_add(shift) };
        (0..longest)
            .flat_map(|row| racks.iter().filter_map(move |(n, rack)| rack_at(rack, row, begin(*n))))
            .collect()
    }

    fn pick(&self, live: Vec<BrokerId>, wanted: usize) -> Vec<BrokerId> {
        live.into_iter().chain(self.fenced.iter().copied()).take(wanted).collect()
    }
}

/// The `row`th broker of a rack whose order begins at `shift`.
fn rack_at(rack: &[BrokerId], row: usize, shift: usize) -> Option<BrokerId> {
    if row >= rack.len() {
        return None;
    }
    rack.get(row.wrapping_add(shift) % rack.len()).copied()
}

/// Checks one assignment by hand.
pub(super) fn check_manual_assignment(
    image: &MetadataImage,
    replicas: &[BrokerId],
    factor: Option<usize>,
) -> ItemResult<()> {
    let invalid =
        |message: String| Err(ApiError::new(ErrorCode::InvalidReplicaAssignment, message));
    if replicas.is_empty() {
        return invalid(
            "The manual partition assignment includes an empty replica list.".to_owned(),
        );
    }
    let mut seen = BTreeSet::new();
    for id in replicas {
        if !image.brokers.contains_key(id) {
            return invalid(format!(
                "The manual partition assignment includes broker {id}, but no such broker is \
                 registered."
            ));
        }
        if !seen.insert(id) {
            return invalid(format!(
                "The manual partition assignment includes the broker {id} more than once."
            ));
        }
    }
    match factor {
        Some(factor) if factor != replicas.len() => invalid(format!(
            "The manual partition assignment includes a partition with {} replica(s), but this is \
             not consistent with previous partitions, which have {factor} replica(s).",
            replicas.len()
        )),
        _ => Ok(()),
    }
}

/// The replicas that are live and do not stop, in the order of the assignment.
pub(super) fn first_isr(image: &MetadataImage, replicas: &[BrokerId]) -> Vec<BrokerId> {
    replicas.iter().copied().filter(|id| image.is_serving(*id)).collect()
}
