//! The Kafka client that the operator, the command line, the bench and the tests share.
//!
//! Not a general client product: applications should use the client of their language. What is here is
//! small, typed, runs on any [`letterbox_env::Env`] (so also in the simulation), and keeps these rules:
//! - every call ends by a deadline, every queue and every response has a bound;
//! - requests on one connection are pipelined and answered in order; a call that misses its deadline
//!   closes its connection, because what follows on it would be late as well;
//! - bytes of a broker are checked before they are decoded ([`Error::Malformed`], never a panic);
//! - record batches are read and written by this crate ([`record`]): header order and duplicates stay.
//!
//! ```ignore
//! ```
//!
//! It speaks plaintext only; TLS and SASL are refused by the command line by name.

mod admin;
mod client;
mod connection;
mod error;
mod metadata;
mod partitioner;
pub mod record;
mod versions;

pub use admin::{
    AlterOp, CommittedOffset, ConfigEntry, ConfigResource, ConfigSource, ConfigSynonym, DescribedCluster, DescribedGroup, FoundOffset,
    GroupMember, IsolationLevel, ListedGroup, NewTopic, OffsetSpec, ResourceType, TopicConfigs, TopicCreated,
};
pub use client::{Client, ClientOptions};
pub use error::{BrokerError, Error, ErrorCode};
pub use metadata::{Broker, Metadata, Partition, Topic, TopicPartition};
pub use partitioner::{murmur2, partition_for_key};
pub use record::Compression;
