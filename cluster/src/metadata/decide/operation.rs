//! The closed set of operations, and how they and their outcomes are written down.
//!
//! A broker that does not lead the quorum passes an operation on to the one that does; so each has
//! a name and a version of its own (see `metadata/envelope.rs`), and so has its outcome, which is
//! written in the version of the operation that it answers.

use serde::{Deserialize, Serialize};

use super::{
    AllocateProducerIds, AlterConfigs, AlterIsr, AlterReassignments, AskCaughtUp, BalanceLeaders,
    Context, CreatePartitions, CreateTopics, Decide, Decision, DeleteTopics, ElectLeaders,
    FenceBrokers, JudgeRestart, RegisterBroker, ReleaseRestartLease, ReportLogs, SetClusterId,
    StopBroker, TakeRestartLease, TendLeases, UnregisterBroker, UpdateFeatures,
};
use crate::metadata::MetadataImage;
pub use crate::metadata::envelope::DecodeError;
use crate::metadata::envelope::{Envelope, Subject, kinds};

/// One of the kinds of [`Operation`].
pub trait Kind: Decide + Into<Operation> + Send + 'static {
    /// The outcome of this kind; `None` when `outcome` is one of another kind.
    fn outcome(outcome: Outcome) -> Option<Self::Outcome>;
}

/// What an operation came to, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The index of the metadata log that shows the outcome: whoever has applied it sees what the
    /// operation changed, and what it was refused for.
    pub index: u64,
    /// What the operation came to.
    pub outcome: Outcome,
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident $text:literal $version:literal,)+) => {
        /// A change of the metadata that somebody asks for.
        #[expect(clippy::large_enum_variant, reason = "few are under way at a time")]
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Operation {
            $($(#[$doc])* $name($name),)+
        }

        /// What each kind of operation came to.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Outcome {
            $($(#[$doc])* $name(<$name as Decide>::Outcome),)+
        }

        impl Operation {
            /// Decides on `image`. Pure.
            #[must_use]
            pub fn decide(
                &self,
                image: &MetadataImage,
                context: &Context<'_>,
            ) -> Decision<Outcome> {
                match self {
                    $(Self::$name(operation) => {
                        let Decision { records, outcome } = operation.decide(image, context);
                        Decision { records, outcome: Outcome::$name(outcome) }
                    })+
                }
            }
        }

        $(impl From<$name> for Operation {
            fn from(operation: $name) -> Self {
                Self::$name(operation)
            }
        }

        impl Kind for $name {
            fn outcome(outcome: Outcome) -> Option<Self::Outcome> {
                match outcome {
                    Outcome::$name(outcome) => Some(outcome),
                    _ => None,
                }
            }
        })+

        kinds! { Operation, Subject::Operation; $($name $text $version,)+ }
        kinds! { Outcome, Subject::Outcome; $($name $text $version,)+ }
    };
}

operations! {
    /// Makes topics.
    CreateTopics "createTopics" 0,
    /// Deletes topics.
    DeleteTopics "deleteTopics" 0,
    /// Adds partitions to topics.
    CreatePartitions "createPartitions" 0,
    /// Changes dynamic configurations.
    AlterConfigs "alterConfigs" 0,
    /// Registers a broker that has started.
    RegisterBroker "registerBroker" 2,
    /// Takes the registration of a broker away.
    UnregisterBroker "unregisterBroker" 0,
    /// Fences brokers or lifts their fence.
    FenceBrokers "fenceBrokers" 0,
    /// Has a broker that is about to stop leave its partitions.
    StopBroker "stopBroker" 0,
    /// Says what a restart of brokers would interrupt.
    JudgeRestart "judgeRestart" 0,
    /// Grants a restart lease.
    TakeRestartLease "takeRestartLease" 0,
    /// Gives a restart lease back.
    ReleaseRestartLease "releaseRestartLease" 0,
    /// Ends leases that are over, and hands over leads.
    TendLeases "tendLeases" 0,
    /// Says how far brokers are.
    AskCaughtUp "askCaughtUp" 0,
    /// Elects leaders.
    ElectLeaders "electLeaders" 0,
    /// Gives leads back to the preferred replicas.
    BalanceLeaders "balanceLeaders" 0,
    /// Moves replicas.
    AlterReassignments "alterReassignments" 0,
    /// Changes ISRs on their leader's word.
    AlterIsr "alterIsr" 0,
    /// Takes note of logs that are out of use on a broker that lives.
    ReportLogs "reportLogs" 0,
    /// Finalizes levels of features.
    UpdateFeatures "updateFeatures" 0,
    /// Hands out a block of producer ids.
    AllocateProducerIds "allocateProducerIds" 0,
    /// Gives a new cluster its id.
    SetClusterId "setClusterId" 0,
}

impl Operation {
    /// Writes the operation.
    ///
    /// # Errors
    /// When it cannot be written as JSON, which no operation of this module is.
    pub fn encode(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(&self.to_envelope()?)
    }

    /// Reads what [`Self::encode`] wrote, here or in another version.
    ///
    /// # Errors
    /// [`DecodeError`]; the operation is refused.
    pub fn decode(text: &str) -> Result<Self, DecodeError> {
        Self::from_envelope(read(text, Subject::Operation)?)
    }
}

/// An [`Answer`] on its way.
#[derive(Serialize, Deserialize)]
struct Written {
    index: u64,
    outcome: Envelope,
}

impl Answer {
    /// Writes the answer.
    ///
    /// # Errors
    /// When it cannot be written as JSON, which no outcome of this module is.
    pub fn encode(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(&Written { index: self.index, outcome: self.outcome.to_envelope()? })
    }

    /// Reads what [`Self::encode`] wrote, here or in another version.
    ///
    /// # Errors
    /// [`DecodeError`]; the operation took effect nevertheless, if it was not refused.
    pub fn decode(text: &str) -> Result<Self, DecodeError> {
        let Written { index, outcome } = read(text, Subject::Outcome)?;
        Ok(Self { index, outcome: Outcome::from_envelope(outcome)? })
    }
}

fn read<'a, T: Deserialize<'a>>(text: &'a str, subject: Subject) -> Result<T, DecodeError> {
    serde_json::from_str(text).map_err(|source| DecodeError::Malformed { subject, source })
}
