//! The Kafka client that the operator, the command line and the tests share.
//!
//! Not a general client product: applications should use the client of their language. What is here
//! is small, typed, runs on any [`letterbox_env::Env`] (so also in the simulation), and keeps these
//! rules:
//! - every call ends by a deadline, every queue and every response has a bound;
//! - requests on one connection are pipelined and answered in order; a call that misses its
//!   deadline closes its connection, because what follows on it would be late as well;
//! - bytes of a broker are checked before they are decoded ([`Error::Malformed`], never a panic);
//! - records keep the order and the duplicates of their headers ([`record`]).
//!
//! ```no_run
//! # async fn example() -> Result<(), letterbox_client::Error> {
//! use letterbox_client::{Client, ClientOptions, Producer, ProducerOptions, ProducerRecord};
//!
//! let client = Client::connect(letterbox_env::Env::real(), &["localhost:9092".to_owned()], ClientOptions::default()).await?;
//! let producer = Producer::new(&client, ProducerOptions::default()).await?;
//! let sent = producer.send(ProducerRecord::new("orders").key("k").value("v")).await?;
//! let place = sent.await?;
//! println!("{}-{} at {:?}", place.topic, place.partition, place.offset);
//! producer.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! It speaks plaintext only; TLS and SASL are refused by the command line by name.

mod admin;
mod client;
mod connection;
mod consumer;
mod error;
mod group;
mod metadata;
mod partitioner;
mod producer;
pub mod record;
mod versions;

pub use admin::{
    AccessControlEntry, AclResource, AlterOp, ApiVersions, CommittedOffset, ConfigEntry,
    ConfigResource, ConfigSource, ConfigSynonym, DescribedCluster, DescribedGroup, ElectionType,
    EligibleLeaders, Endpoint, FinalizedFeatures, FoundOffset, GroupMember, IsolationLevel,
    ListedGroup, LogDirectory, LogReplica, MorePartitions, NewTopic, OffsetSpec,
    PartitionReassignment, ProducerState, QuorumNode, QuorumReplica, QuorumStatus, ResourceFilter,
    TopicConfigs, TopicCreated, UpgradeType, VersionRange,
};
pub use client::{Client, ClientOptions};
pub use consumer::{AutoOffsetReset, Consumer, ConsumerOptions, ConsumerRecord, GroupOptions};
pub use error::{BrokerError, Error};
pub use letterbox_protocol::ErrorCode;
pub use letterbox_protocol::model::{ResourceType, decode_uuid, encode_uuid};
pub use letterbox_protocol::properties;
pub use letterbox_protocol::topics::{
    METADATA_TOPIC, WrongTopicName, check_topic_name, is_internal_topic,
};
pub use metadata::{Broker, Metadata, Partition, Topic, TopicPartition};
pub use partitioner::{murmur2, partition_for_key};
pub use producer::{Acks, Delivery, Producer, ProducerOptions, ProducerRecord, RecordPlace};
pub use record::Compression;
