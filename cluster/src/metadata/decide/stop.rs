//! A broker that is about to stop (controlled shutdown, KIP-841).

use letterbox_protocol::model::BrokerId;
use serde::{Deserialize, Serialize};

use super::brokers::registered;
use super::change::{Change, changed};
use super::{Context, Decide, Decision, Draft, ItemResult};
use crate::metadata::record::BrokerFenceRecord;
use crate::metadata::{MetadataImage, MetadataRecord, PartitionState};

/// A broker is about to stop: it comes into no ISR any more and gets no lead and no new replica, and
/// leaves those that it has, some at a time. Asked again until nothing is left.
///
/// Where it is the only one in sync that does not stop, it stays: nobody else could lead. So what is
/// left ends also when several brokers stop at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopBroker {
    /// Which broker.
    pub id: BrokerId,
    /// Which start of it.
    pub epoch: i64,
    /// How many partitions it leaves at once at most.
    pub partitions_max: usize,
}

impl Decide for StopBroker {
    /// How many partitions are left that it can leave.
    type Outcome = ItemResult<usize>;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let mut draft = Draft::new(image);
        let outcome = self.stop(&mut draft, context);
        draft.decided(outcome)
    }
}

impl StopBroker {
    fn stop(&self, draft: &mut Draft, context: &Context<'_>) -> ItemResult<usize> {
        let present = registered(&draft.image, self.id, self.epoch)?;
        if present.fenced {
            return Ok(0);
        }
        if !present.stopping {
            let record = BrokerFenceRecord { id: self.id, fenced: false, stopping: true };
            draft.add(vec![MetadataRecord::BrokerFence(record)])?;
        }
        let image = &draft.image;
        let may_leave = |state: &PartitionState| {
            let mut others = state.isr.iter().filter(|id| **id != self.id);
            state.isr.contains(&self.id) && others.any(|id| image.is_serving(*id))
        };
        let all = || image.partitions_of(self.id).filter(|(_, _, state)| may_leave(state));
        let left = all().skip(self.partitions_max).count();
        let changes = changed(all().take(self.partitions_max), |topic, _, state| {
            Change::of(image, context.rules, topic, state).without(self.id).build()
        });
        draft.add(changes)?;
        Ok(left)
    }
}
