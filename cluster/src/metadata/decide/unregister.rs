//! A broker that is gone for good (UnregisterBroker).

use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use serde::{Deserialize, Serialize};

use super::change::{Change, changed};
use super::{Context, Decide, Decision, Draft, ItemResult};
use crate::metadata::record::RemoveBrokerRecord;
use crate::metadata::{ApiError, MetadataImage, MetadataRecord};

/// Takes the registration of a broker away. As with Kafka its replicas stay assigned, out of ISR and
/// ELR, until they are moved to others, and a broker that lives is not spared: it registers again
/// when it starts again. Only the last one stays: its process would end, and nobody would serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnregisterBroker {
    /// Which broker.
    pub id: BrokerId,
}

impl Decide for UnregisterBroker {
    type Outcome = ItemResult<()>;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let mut draft = Draft::new(image);
        let outcome = self.unregister(&mut draft, context);
        draft.decided(outcome)
    }
}

impl UnregisterBroker {
    /// The refusal of a broker that is not there.
    pub fn not_registered(&self) -> ApiError {
        let message = format!("Broker ID {} is not currently registered", self.id);
        ApiError::new(ErrorCode::BrokerIdNotRegistered, message)
    }

    fn unregister(&self, draft: &mut Draft, context: &Context<'_>) -> ItemResult<()> {
        if !draft.image.brokers.contains_key(&self.id) {
            return Err(self.not_registered());
        }
        if draft.image.brokers.len() == 1 {
            let message = format!(
                "Broker {} is the only one of the cluster. Unregister it when another one has taken \
                 its place.",
                self.id
            );
            return Err(ApiError::new(ErrorCode::InvalidRequest, message));
        }
        draft.add(vec![MetadataRecord::RemoveBroker(RemoveBrokerRecord { id: self.id })])?;
        let image = &draft.image;
        let changes = changed(image.partitions_of(self.id), |topic, _, state| {
            Change::of(image, context.rules, topic, state).shortened(self.id).build()
        });
        draft.add(changes)
    }
}
