//! The controller's decisions: what an operation on the metadata changes, or why it is refused.
//!
//! Pure: an [`Operation`] looks at an image and returns the records to write and an outcome for its
//! caller; `crate::controller` evaluates it, commits the records and then hands out the
//! outcome. Randomness (topic ids, where placement starts) and the meaning of configuration keys
//! come in through [`Context`]. The records of a decision always fit the image they were decided on
//! (see the property tests).

mod brokers;
mod caught_up;
mod change;
mod configs;
mod elect;
mod features;
mod isr;
mod lease;
pub mod liveness;
mod logs;
mod names;
mod operation;
mod partitions;
mod placement;
mod reassign;
mod stop;
mod topics;
mod unregister;
mod verdict;

#[cfg(test)]
mod tests;

pub use brokers::{
    AllocateProducerIds, FenceBrokers, FoundLogs, OpenLogs, PRODUCER_ID_BLOCK_LEN, ProducerIdBlock,
    RegisterBroker, SetClusterId,
};
pub use caught_up::{AskCaughtUp, BrokerCaughtUp, CaughtUp};
pub use configs::{AlterConfigs, ConfigOp, ConfigRules, ConfigScope, ResourceAlteration};
pub use elect::{BalanceLeaders, ElectLeaders, WantedLeader};
pub use features::{FeatureUpdate, UpdateFeatures, UpgradeType};
pub use isr::{AlterIsr, IsrChange, IsrMember};
pub use lease::{
    LeaseAnswer, LeaseConflict, LeaseTimes, ReleaseRestartLease, TakeRestartLease, TendLeases,
};
pub use letterbox_protocol::topics::{METADATA_TOPIC, is_internal_topic};
pub use logs::{LogReport, ReportLogs};
pub use names::validate_topic_name;
pub use operation::{Answer, DecodeError, Kind, Operation, Outcome};
pub use partitions::{CreatePartitions, TopicGrowth};
pub use reassign::{AlterReassignments, Reassignment};
pub use stop::StopBroker;
pub use topics::{
    CreateTopics, CreatedTopic, DeleteTopics, DeletedTopic, NewTopic, TopicPlacement, TopicSelector,
};
pub use unregister::UnregisterBroker;
pub use verdict::{JudgeRestart, Named, Verdict, Voters, VotersLeft};

use std::collections::BTreeMap;

use letterbox_env::Random;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;

use self::liveness::Lags;
use super::{ApiError, MetadataImage, MetadataRecord};

/// The most partitions that one operation may make. A bound on what one request can cost (Kafka's
/// too).
pub const PARTITIONS_PER_OPERATION_MAX: usize = 10_000;

/// Decides each of `items` in the order of the request; a name that is there twice fails everywhere
/// with `again`.
fn each_once<T, O>(
    items: &[T],
    name: impl Fn(&T) -> String,
    again: &str,
    mut decide: impl FnMut(&T) -> ItemResult<O>,
) -> Vec<(String, ItemResult<O>)> {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for item in items {
        *times.entry(name(item)).or_default() += 1;
    }
    let each = items.iter().map(|item| {
        let name = name(item);
        let result = if times.get(&name).is_some_and(|times| *times > 1) {
            Err(ApiError::new(ErrorCode::InvalidRequest, again))
        } else {
            decide(item)
        };
        (name, result)
    });
    each.collect()
}

/// What a decision needs beside the image.
pub struct Context<'a> {
    /// The node that decides.
    pub node: BrokerId,
    /// Where ids and the start of a placement come from.
    pub random: &'a dyn Random,
    /// What the configuration keys mean.
    pub rules: &'a dyn ConfigRules,
    /// Who votes, for the few that ask.
    pub voters: &'a dyn Fn() -> Voters,
    /// How far behind brokers are, likewise.
    pub lags: &'a dyn Fn() -> Lags,
}

impl Context<'_> {
    fn random_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// An id that is neither in use nor one of those that Kafka reserves (KIP-516).
    fn new_topic_id(&self, image: &MetadataImage) -> letterbox_protocol::model::TopicId {
        loop {
            let mut bytes = [0; 16];
            self.random.fill(&mut bytes);
            let id = uuid::Builder::from_random_bytes(bytes).into_uuid();
            if image.topic_by_id(&id).is_none() {
                return id;
            }
        }
    }
}

/// What an operation decided.
#[derive(Clone, Debug)]
pub struct Decision<T> {
    /// What to write, all or nothing; empty when nothing changes.
    pub records: Vec<MetadataRecord>,
    /// What the caller is told once the records are committed.
    pub outcome: T,
}

/// How one kind of [`Operation`] decides.
pub trait Decide {
    /// What the caller gets.
    type Outcome;

    /// Decides on `image`. Pure.
    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome>;
}

/// The result of one item of an operation; one bad item fails alone.
pub type ItemResult<T> = Result<T, ApiError>;

/// Decides item after item on one operation's own view of the image, so that later items see what
/// earlier ones did.
struct Draft {
    image: MetadataImage,
    records: Vec<MetadataRecord>,
}

impl Draft {
    fn new(image: &MetadataImage) -> Self {
        Self { image: image.clone(), records: Vec::new() }
    }

    /// What an operation decided that changes all it says or nothing.
    fn decided<T>(self, outcome: ItemResult<T>) -> Decision<ItemResult<T>> {
        Decision { records: if outcome.is_ok() { self.records } else { Vec::new() }, outcome }
    }

    /// Takes over what one item decided.
    fn add(&mut self, records: Vec<MetadataRecord>) -> ItemResult<()> {
        self.image.apply_in_place(&records).map_err(|error| {
            // A fault of ours, found before it reached the log.
            ApiError::new(letterbox_protocol::ErrorCode::UnknownServerError, error.to_string())
        })?;
        self.records.extend(records);
        Ok(())
    }
}
