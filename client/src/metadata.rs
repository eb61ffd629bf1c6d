//! What a cluster looks like from its Metadata response.

use std::collections::BTreeMap;
use std::fmt;

use kafka_protocol::messages::{BrokerId, MetadataResponse};
use kafka_protocol::protocol::StrBytes;
use letterbox_env::Gather;
use letterbox_protocol::ErrorCode;
use uuid::Uuid;

/// A partition of a topic, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: String,
    /// The partition's number.
    pub partition: i32,
}

impl TopicPartition {
    /// `topic`'s partition `partition`.
    #[must_use]
    pub fn new(topic: impl Into<String>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// A broker and where clients reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Its node id.
    pub id: i32,
    /// The advertised host.
    pub host: String,
    /// The advertised port.
    pub port: i32,
    /// Its rack, when it has one.
    pub rack: Option<String>,
}

impl Broker {
    /// As responses have it.
    pub(crate) fn new(id: BrokerId, host: &str, port: i32, rack: Option<&StrBytes>) -> Self {
        Self { id: id.0, host: host.to_owned(), port, rack: rack.map(|rack| rack.to_string()) }
    }

    /// `host:port`, an IPv6 host in brackets.
    #[must_use]
    pub fn address(&self) -> String {
        letterbox_env::join_address(&self.host, self.port)
    }
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number.
    pub index: i32,
    /// Why it cannot be used now.
    pub error: Option<ErrorCode>,
    /// The leader, when there is one.
    pub leader: Option<i32>,
    /// The leader's epoch; -1 when the broker does not tell.
    pub leader_epoch: i32,
    /// All replicas, the preferred leader first.
    pub replicas: Vec<i32>,
    /// The replicas that are in sync.
    pub isr: Vec<i32>,
    /// The replicas whose broker or log directory is down.
    pub offline: Vec<i32>,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its id; nil when the broker does not tell.
    pub id: Uuid,
    /// Why it cannot be used now: `UNKNOWN_TOPIC_OR_PARTITION` when it does not exist.
    pub error: Option<ErrorCode>,
    /// Whether it is one of the broker's own.
    pub is_internal: bool,
    /// Its partitions by number.
    pub partitions: BTreeMap<i32, Partition>,
}

/// The cluster as one broker knew it when it was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The id of the cluster.
    pub cluster_id: Option<String>,
    /// The broker that admin requests may be sent to.
    pub controller_id: Option<i32>,
    /// The live brokers by id.
    pub brokers: BTreeMap<i32, Broker>,
    /// The topics that were asked for, by name; those with [`Topic::error`] too.
    pub topics: BTreeMap<String, Topic>,
}

impl From<MetadataResponse> for Metadata {
    fn from(response: MetadataResponse) -> Self {
        let ids = |ids: &[BrokerId]| ids.iter().map(|id| id.0).collect();
        let brokers = response.brokers.iter().map(|broker| {
            let id = broker.node_id;
            (id.0, Broker::new(id, &broker.host, broker.port, broker.rack.as_ref()))
        });
        let topics = response.topics.iter().map(|topic| {
            let name = topic.name.as_ref().map(|name| name.0.to_string()).unwrap_or_default();
            let partitions = topic.partitions.iter().map(|p| {
                let partition = Partition {
                    index: p.partition_index,
                    error: ErrorCode::of_answer(p.error_code),
                    leader: (p.leader_id.0 >= 0).then_some(p.leader_id.0),
                    leader_epoch: p.leader_epoch,
                    replicas: ids(&p.replica_nodes),
                    isr: ids(&p.isr_nodes),
                    offline: ids(&p.offline_replicas),
                };
                (p.partition_index, partition)
            });
            let partitions = partitions.gather();
            (
                name.clone(),
                Topic {
                    name,
                    id: topic.topic_id,
                    error: ErrorCode::of_answer(topic.error_code),
                    is_internal: topic.is_internal,
                    partitions,
                },
            )
        });
        Self {
            cluster_id: response.cluster_id.as_ref().map(|id| id.to_string()),
            controller_id: (response.controller_id.0 >= 0).then_some(response.controller_id.0),
            brokers: brokers.gather(),
            topics: topics.gather(),
        }
    }
}
