//! What the operator asks of a running cluster, as a trait: the Kafka client behind it, or a model
//! in tests.

mod client;
mod identity;
mod lifecycle;
mod replicas;

use std::collections::BTreeMap;

use letterbox_env::BoxFuture;

pub use client::ClientAdmin;
#[cfg(feature = "kubernetes")]
pub(crate) use client::UNANSWERED;
pub use identity::{AskIdentity, HttpIdentity, Identity, Opening};
pub use lifecycle::{
    BrokerCaughtUp, CaughtUp, LeaseReleased, MayEnd, Partition, Partitions, RestartLease,
    RestartVerdict, caught_up, release_restart_lease, restart_lease, restart_verdict,
};
pub(crate) use lifecycle::{give_back, may_end, reserve};

/// The admin calls that topics need.
pub trait KafkaAdmin: Send + Sync {
    /// The cluster's id, as Kafka clients see it.
    fn cluster_id(&self) -> BoxFuture<'_, Result<Option<String>, AdminError>>;

    /// The topic with its own (not inherited) configuration; `None` when there is none of that
    /// name.
    fn describe_topic<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Topic>, AdminError>>;

    /// Makes topics with one request; what became of each, in their order. No name may be there
    /// twice.
    fn create_topics<'a>(
        &'a self,
        topics: &'a [NewTopic],
    ) -> BoxFuture<'a, Result<Vec<Result<(), AdminError>>, AdminError>>;

    /// Adds partitions until there are `total`.
    fn create_partitions<'a>(
        &'a self,
        name: &'a str,
        total: i32,
    ) -> BoxFuture<'a, Result<(), AdminError>>;

    /// Has each partition kept by `replicas` brokers: begins to move those that neither are nor are
    /// to be, some at a time. Safe to repeat.
    fn change_replicas<'a>(
        &'a self,
        name: &'a str,
        replicas: i32,
    ) -> BoxFuture<'a, Result<(), AdminError>>;

    /// Sets each key to its value, or back to the cluster's default where it is `None`.
    fn alter_topic_config<'a>(
        &'a self,
        name: &'a str,
        changes: &'a BTreeMap<String, Option<String>>,
    ) -> BoxFuture<'a, Result<(), AdminError>>;

    /// Deletes the topic and its records.
    fn delete_topic<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), AdminError>>;
}

/// A topic to make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewTopic {
    /// Its name in Kafka.
    pub name: String,
    /// `None`: what the cluster's `num.partitions` says.
    pub partitions: Option<i32>,
    /// Replicas of each partition. `None`: what the cluster's `default.replication.factor` says.
    pub replicas: Option<i32>,
    /// Its configuration.
    pub config: BTreeMap<String, String>,
}

/// A topic as the cluster describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topic {
    /// Its id, in Kafka's base64 form.
    pub id: String,
    /// How many partitions it has.
    pub partitions: i32,
    /// The most replicas that a partition has, or is to have where it moves.
    pub replicas: i32,
    /// How many partitions have fewer, or are to have.
    pub fewer: i32,
    /// How many partitions move.
    pub moving: i32,
    /// What was set on the topic itself.
    pub config: BTreeMap<String, String>,
}

/// What Kafka answers when there is a topic of the name already.
pub(crate) const TOPIC_ALREADY_EXISTS: &str = "TOPIC_ALREADY_EXISTS";

/// Why an admin call did not work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// No answer: worth trying again.
    #[error("the cluster did not answer: {0}")]
    Unreachable(String),
    /// The cluster understood and said no.
    #[error("{code}: {message}")]
    Refused {
        /// Kafka's name of the error, such as `INVALID_CONFIG`.
        code: String,
        /// What the broker said.
        message: String,
    },
}
