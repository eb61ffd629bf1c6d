//! Electing leaders on request, and giving them back to those that the assignment prefers.

use std::sync::Arc;

use letterbox_protocol::ErrorCode;
use serde::{Deserialize, Serialize};

use super::change::Change;
use super::{Context, Decide, Decision, Draft, ItemResult};
use crate::metadata::record::PartitionRecord;
use crate::metadata::{ApiError, MetadataImage, MetadataRecord, Topic};

/// ElectLeaders (KIP-183, KIP-460).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElectLeaders {
    /// Which replica is wanted.
    pub wanted: WantedLeader,
    /// The topics and partitions; `None` for all there are, of which those that need no election are
    /// left out of the outcome.
    pub partitions: Option<Vec<(String, i32)>>,
}

/// Which replica is to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WantedLeader {
    /// The first of the assignment, if it is in sync and nobody has a restart lease over it.
    Preferred,
    /// Any, where nobody leads: also one that may miss committed records.
    Unclean,
}

impl Decide for ElectLeaders {
    /// In the order of the request.
    type Outcome = Vec<((String, i32), ItemResult<()>)>;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let mut draft = Draft::new(image);
        let mut elect = |(name, index): &(String, i32)| {
            let result = self.elect(name, *index, &mut draft, context);
            ((name.clone(), *index), result)
        };
        let outcome = match &self.partitions {
            Some(partitions) => partitions.iter().map(elect).collect(),
            None => {
                let all = image.topics().flat_map(Topic::all);
                let all = all.map(|(topic, index, _)| elect(&(topic.name.to_string(), index)));
                let is_needed = |result: &ItemResult<()>| !matches!(result, Err(error) if error.code == ErrorCode::ElectionNotNeeded);
                all.filter(|(_, result)| is_needed(result)).collect()
            }
        };
        Decision { records: draft.records, outcome }
    }
}

impl ElectLeaders {
    fn elect(
        &self,
        name: &str,
        index: i32,
        draft: &mut Draft,
        context: &Context<'_>,
    ) -> ItemResult<()> {
        let unknown = |what| ApiError::new(ErrorCode::UnknownTopicOrPartition, what);
        let image = &draft.image;
        let topic = image.topic(name).ok_or_else(|| unknown(format!("No such topic as {name}")))?;
        let state = topic
            .partition(index)
            .ok_or_else(|| unknown(format!("No such partition as {name}-{index}")))?;
        let change = Change::of(image, context.rules, topic, state);
        let (is_needed, change, unable) = match self.wanted {
            WantedLeader::Preferred => (
                state.leader != state.replicas.first().copied(),
                change.led_by_the_preferred(),
                ErrorCode::PreferredLeaderNotAvailable,
            ),
            WantedLeader::Unclean => (
                state.leader.is_none(),
                change.by_anybody(),
                ErrorCode::EligibleLeadersNotAvailable,
            ),
        };
        if !is_needed {
            return Err(ErrorCode::ElectionNotNeeded.into());
        }
        let state = change.build().ok_or(unable)?;
        let record = PartitionRecord::of(topic.id, index, &state);
        draft.add(vec![MetadataRecord::Partition(record)])
    }
}

/// Gives leads back to the preferred replicas that are in sync (`auto.leader.rebalance.enable`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalanceLeaders {
    /// The most leads that are moved at once: each makes clients look for a leader.
    pub leads_max: usize,
}

impl Decide for BalanceLeaders {
    /// How many leads are moved; `leads_max` when there may be more.
    type Outcome = usize;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let may_lead = image.serving_brokers().filter(|id| !image.is_leased(*id));
        let elsewhere = may_lead.flat_map(|id| {
            image.partitions_of(id).filter(move |(_, _, state)| {
                state.replicas.first() == Some(&id)
                    && state.leader.is_some_and(|leader| leader != id)
                    && state.isr.contains(&id)
            })
        });
        let moved = elsewhere.filter_map(|(topic, index, state): (&Arc<Topic>, _, _)| {
            let change = Change::of(image, context.rules, topic, state);
            let state = change.led_by_the_preferred().build()?;
            Some(MetadataRecord::Partition(PartitionRecord::of(topic.id, index, &state)))
        });
        let records: Vec<_> = moved.take(self.leads_max).collect();
        Decision { outcome: records.len(), records }
    }
}
