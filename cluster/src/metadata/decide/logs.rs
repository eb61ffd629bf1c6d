//! Logs that are out of use on a broker that lives (KIP-858), or have no room.

use letterbox_protocol::model::{BrokerId, TopicId};
use serde::{Deserialize, Serialize};

use super::brokers::registered;
use super::change::Change;
use super::{Context, Decide, Decision, Draft, ItemResult};
use crate::metadata::record::PartitionRecord;
use crate::metadata::{MetadataImage, MetadataRecord};

/// A broker says which of its logs are out of use, because their log directory has failed say, and
/// which are back. Somebody else leads then, if anybody has every committed record; who has and is
/// out of use stays eligible (KIP-966).
///
/// Unlike with Kafka, the controller is told of partitions, not of directories: it need not know
/// what lies where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportLogs {
    /// The broker.
    pub broker: BrokerId,
    /// Which start of it: what an earlier one says does nothing.
    pub broker_epoch: i64,
    /// Its logs.
    pub logs: Vec<LogReport>,
}

/// The log of one replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogReport {
    /// The topic.
    pub topic_id: TopicId,
    /// The partition.
    pub partition: i32,
    /// Whether it is out of use.
    pub is_offline: bool,
    /// Whether it takes no records for want of space. An earlier version does not say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_full: bool,
    /// It may lack what counted: see [`FoundLogs::may_have_lost`](super::FoundLogs), which tells of
    /// logs that could be opened by then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_have_lost: bool,
    /// It lacks records within it, or all: see [`FoundLogs::lacks_records`](super::FoundLogs). An
    /// earlier version does not say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lacks_records: bool,
    /// It was made since its broker has started, and was never there before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_new: bool,
}

impl Decide for ReportLogs {
    type Outcome = ItemResult<()>;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let mut draft = Draft::new(image);
        let outcome = self.take(&mut draft, context);
        draft.decided(outcome)
    }
}

impl ReportLogs {
    fn take(&self, draft: &mut Draft, context: &Context<'_>) -> ItemResult<()> {
        registered(&draft.image, self.broker, self.broker_epoch)?;
        for log in &self.logs {
            let LogReport { topic_id, partition, may_have_lost, lacks_records, is_new, .. } = log;
            let image = &draft.image;
            let Some(topic) = image.topic_by_id(topic_id) else { continue };
            // It may have been taken away meanwhile.
            let state = topic.partition(*partition);
            let Some(state) = state.filter(|state| state.replicas.contains(&self.broker)) else {
                continue;
            };
            let mut change = Change::of(image, context.rules, topic, state);
            // Nothing was committed as long as it counted without a log.
            let is_whole = *is_new && state.has_all(self.broker);
            if *lacks_records && !is_whole {
                change = change.lost(self.broker);
            } else if *may_have_lost && !is_whole {
                change = change.shortened(self.broker);
            }
            let change = change.with_log(self.broker, log.is_offline);
            let change = change.with_room(self.broker, !log.is_full);
            let Some(next) = change.build() else { continue };
            let record = PartitionRecord::of(*topic_id, *partition, &next);
            draft.add(vec![MetadataRecord::Partition(record)])?;
        }
        Ok(())
    }
}
