//! What brokers offer and hold: API versions, features, endpoints, log directories, the metadata
//! quorum.

use std::collections::BTreeMap;

use kafka_protocol::messages::describe_quorum_request::{PartitionData, TopicData};
use kafka_protocol::messages::describe_quorum_response::ReplicaState;
use kafka_protocol::messages::{
    AddRaftVoterRequest, ApiVersionsRequest, DescribeClusterRequest, DescribeLogDirsRequest,
    DescribeQuorumRequest, RemoveRaftVoterRequest, UnregisterBrokerRequest, UpdateFeaturesRequest,
    add_raft_voter_request, update_features_request,
};
use kafka_protocol::protocol::StrBytes;
use letterbox_env::Gather;
use letterbox_protocol::topics::METADATA_TOPIC;
use tokio::time::Instant;
use uuid::Uuid;

use crate::client::{Client, Lane, topic_name};
use crate::error::{BrokerError, Error};
use crate::metadata::{Broker, TopicPartition};

/// The oldest and the newest version of something, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// The oldest.
    pub min: i16,
    /// The newest.
    pub max: i16,
}

/// The feature levels that the cluster has agreed on (KIP-584).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalizedFeatures {
    /// Grows with each change.
    pub epoch: i64,
    /// The level of each feature by name.
    pub levels: BTreeMap<String, i16>,
}

/// What the new level of a feature may be to the one before (KIP-584, KIP-778).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpgradeType {
    /// Not lower.
    Upgrade = 1,
    /// Not higher, and nothing is lost by it.
    SafeDowngrade = 2,
    /// Not higher, whatever is lost by it.
    UnsafeDowngrade = 3,
}

/// What one broker offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiVersions {
    /// By API key.
    pub apis: BTreeMap<i16, VersionRange>,
    /// The levels of each feature that the broker could run at.
    pub features: BTreeMap<String, VersionRange>,
    /// `None` when the broker does not tell.
    pub finalized: Option<FinalizedFeatures>,
}

/// A broker as DescribeCluster tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Id and address.
    pub broker: Broker,
    /// Whether the controller keeps it from serving clients.
    pub is_fenced: bool,
}

/// A log directory of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogDirectory {
    /// Its path on the broker's machine.
    pub path: String,
    /// Why it cannot be used.
    pub error: Option<BrokerError>,
    /// The replicas in it.
    pub replicas: BTreeMap<TopicPartition, LogReplica>,
}

/// A replica in a log directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogReplica {
    /// Bytes of its segments.
    pub bytes: i64,
    /// How far its log end offset is behind the high watermark, or, for a future replica, behind
    /// the current one.
    pub offset_lag: i64,
    /// Whether it is on its way from another directory of the same broker (KIP-113).
    pub is_future: bool,
}

/// A voter or an observer of the metadata quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuorumReplica {
    /// Its node id.
    pub id: i32,
    /// Its metadata directory's id; nil when not known.
    pub directory_id: Uuid,
    /// The offset after its last entry; -1 when not known.
    pub log_end_offset: i64,
    /// When it last asked for entries, in milliseconds since 1970 by the leader's clock; `None`
    /// when not known.
    pub last_fetch_ms: Option<i64>,
    /// When it was last at the end of the leader's log; `None` when not known.
    pub last_caught_up_ms: Option<i64>,
}

/// Where a node of the metadata quorum listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuorumNode {
    /// Its node id.
    pub id: i32,
    /// Listener name, host and port of each endpoint.
    pub endpoints: Vec<(String, String, u16)>,
}

/// The metadata quorum as its leader sees it (KIP-595, KIP-836).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuorumStatus {
    /// The leader's node id; -1 without one.
    pub leader_id: i32,
    /// The leader's epoch.
    pub leader_epoch: i32,
    /// The offset after the last committed entry.
    pub high_watermark: i64,
    /// Those that elect leaders.
    pub voters: Vec<QuorumReplica>,
    /// Those that only follow.
    pub observers: Vec<QuorumReplica>,
    /// Where they listen; empty from brokers that do not tell.
    pub nodes: BTreeMap<i32, QuorumNode>,
}

impl Client {
    /// The API versions and features that broker `id` offers; with `None` those of any broker.
    ///
    /// # Errors
    /// When the broker does not answer in time.
    pub async fn api_versions(&self, id: Option<i32>) -> Result<ApiVersions, Error> {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("letterbox"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let deadline = self.api_deadline();
        let response = match id {
            None => self.call_any(&request, i16::MAX, deadline).await?,
            Some(id) => {
                self.retrying(deadline, async || {
                    self.call_node(id, Lane::Main, &request, deadline).await
                })
                .await?
            }
        };
        BrokerError::check(response.error_code, None)?;
        let apis = response
            .api_keys
            .iter()
            .map(|api| (api.api_key, VersionRange { min: api.min_version, max: api.max_version }));
        let features = response.supported_features.iter().map(|feature| {
            (
                feature.name.to_string(),
                VersionRange { min: feature.min_version, max: feature.max_version },
            )
        });
        let levels = response
            .finalized_features
            .iter()
            .map(|feature| (feature.name.to_string(), feature.max_version_level));
        let epoch = response.finalized_features_epoch;
        let finalized = (epoch >= 0).then(|| FinalizedFeatures { epoch, levels: levels.gather() });
        Ok(ApiVersions { apis: apis.collect(), features: features.collect(), finalized })
    }

    /// The brokers with their addresses, with `include_fenced` also those that serve no clients
    /// (KIP-1073).
    ///
    /// # Errors
    /// When no broker answers in time, or it refuses; [`Error::Unsupported`] for `include_fenced`
    /// from brokers before 4.0.
    pub async fn endpoints(&self, include_fenced: bool) -> Result<Vec<Endpoint>, Error> {
        let request = DescribeClusterRequest::default().with_include_fenced_brokers(include_fenced);
        let deadline = self.api_deadline();
        let response = self
            .retrying(deadline, async || {
                let connection = self.any().await?;
                let version = connection.version_of::<DescribeClusterRequest>(i16::MAX)?;
                if include_fenced && version < 2 {
                    return Err(Error::Unsupported {
                        address: connection.address().to_owned(),
                        api: "DescribeCluster with fenced brokers".to_owned(),
                        ours: "2 at least".to_owned(),
                        theirs: version.to_string(),
                    });
                }
                connection.call(&request, version, self.request_deadline(deadline)).await
            })
            .await?;
        BrokerError::check(response.error_code, response.error_message.as_deref())?;
        let mut endpoints: Vec<Endpoint> = response
            .brokers
            .iter()
            .map(|broker| Endpoint {
                broker: Broker::new(
                    broker.broker_id,
                    &broker.host,
                    broker.port,
                    broker.rack.as_ref(),
                ),
                is_fenced: broker.is_fenced,
            })
            .collect();
        endpoints.sort_by_key(|endpoint| endpoint.broker.id);
        Ok(endpoints)
    }

    /// The log directories of broker `id` with all replicas in them.
    ///
    /// # Errors
    /// When the broker does not answer in time, or refuses.
    pub async fn describe_log_dirs(&self, id: i32) -> Result<Vec<LogDirectory>, Error> {
        let request = DescribeLogDirsRequest::default().with_topics(None);
        let deadline = self.api_deadline();
        let response = self
            .retrying(deadline, async || self.call_node(id, Lane::Main, &request, deadline).await)
            .await?;
        BrokerError::check(response.error_code, None)?;
        let directories = response.results.iter().map(|directory| {
            let replicas = directory.topics.iter().flat_map(|topic| {
                topic.partitions.iter().map(|replica| {
                    let name =
                        TopicPartition::new(topic.name.0.to_string(), replica.partition_index);
                    let (bytes, offset_lag, is_future) =
                        (replica.partition_size, replica.offset_lag, replica.is_future_key);
                    (name, LogReplica { bytes, offset_lag, is_future })
                })
            });
            let error = BrokerError::check(directory.error_code, None).err();
            LogDirectory { path: directory.log_dir.to_string(), error, replicas: replicas.gather() }
        });
        Ok(directories.collect())
    }

    /// Has an observer of the metadata quorum vote (KIP-853): the node `id` with the directory
    /// `directory_id`, reached at `endpoints` (listener, host, port).
    ///
    /// # Errors
    /// When the quorum refuses it, or does not have it committed in time.
    pub async fn add_raft_voter(
        &self,
        id: i32,
        directory_id: Uuid,
        endpoints: &[(String, String, u16)],
    ) -> Result<(), Error> {
        let text = |text: &String| StrBytes::from_string(text.clone());
        let listener = |(name, host, port): &(String, String, u16)| {
            let listener = add_raft_voter_request::Listener::default();
            listener.with_name(text(name)).with_host(text(host)).with_port(*port)
        };
        let deadline = self.api_deadline();
        let within = deadline.saturating_duration_since(Instant::now());
        let request = AddRaftVoterRequest::default()
            .with_cluster_id(None)
            .with_timeout_ms(i32::try_from(within.as_millis() / 2).unwrap_or(i32::MAX))
            .with_voter_id(id)
            .with_voter_directory_id(directory_id)
            .with_listeners(endpoints.iter().map(listener).collect());
        let response = self.call_any(&request, i16::MAX, deadline).await?;
        Ok(BrokerError::check(response.error_code, response.error_message.as_deref())?)
    }

    /// Has a voter of the metadata quorum vote no more (KIP-853).
    ///
    /// # Errors
    /// When the quorum refuses it, or does not have it committed in time.
    pub async fn remove_raft_voter(&self, id: i32, directory_id: Uuid) -> Result<(), Error> {
        let request = RemoveRaftVoterRequest::default()
            .with_cluster_id(None)
            .with_voter_id(id)
            .with_voter_directory_id(directory_id);
        let response = self.call_any(&request, i16::MAX, self.api_deadline()).await?;
        Ok(BrokerError::check(response.error_code, response.error_message.as_deref())?)
    }

    /// Takes the registration of a broker away that is gone for good.
    ///
    /// # Errors
    /// When the cluster refuses it, or does not have it committed in time.
    pub async fn unregister_broker(&self, id: i32) -> Result<(), Error> {
        let id = kafka_protocol::messages::BrokerId(id);
        let request = UnregisterBrokerRequest::default().with_broker_id(id);
        let response = self.call_any(&request, i16::MAX, self.api_deadline()).await?;
        Ok(BrokerError::check(response.error_code, response.error_message.as_deref())?)
    }

    /// Finalizes levels of features (KIP-584), or only checks whether that is possible; what has
    /// come of each. From version 2 of the API on all are finalized or none.
    ///
    /// # Errors
    /// When no broker answers in time, or all are refused.
    pub async fn update_features(
        &self,
        levels: &BTreeMap<String, i16>,
        kind: UpgradeType,
        validate_only: bool,
    ) -> Result<BTreeMap<String, Result<(), BrokerError>>, Error> {
        let update = |(name, level): (&String, &i16)| {
            update_features_request::FeatureUpdateKey::default()
                .with_feature(StrBytes::from_string(name.clone()))
                .with_max_version_level(*level)
                .with_upgrade_type(kind as i8)
        };
        let deadline = self.api_deadline();
        let within = deadline.saturating_duration_since(Instant::now());
        let request = UpdateFeaturesRequest::default()
            .with_timeout_ms(i32::try_from(within.as_millis() / 2).unwrap_or(i32::MAX))
            .with_feature_updates(levels.iter().map(update).collect())
            .with_validate_only(validate_only);
        let response = self.call_any(&request, i16::MAX, deadline).await?;
        BrokerError::check(response.error_code, response.error_message.as_deref())?;
        let mut results: BTreeMap<_, _> = levels.keys().map(|name| (name.clone(), Ok(()))).gather();
        for one in &response.results {
            let result = BrokerError::check(one.error_code, one.error_message.as_deref());
            results.insert(one.feature.to_string(), result);
        }
        Ok(results)
    }

    /// The metadata quorum.
    ///
    /// # Errors
    /// When no broker answers in time, or it refuses.
    pub async fn describe_quorum(&self) -> Result<QuorumStatus, Error> {
        let partitions = vec![PartitionData::default().with_partition_index(0)];
        let topic = TopicData::default()
            .with_topic_name(topic_name(METADATA_TOPIC))
            .with_partitions(partitions);
        let request = DescribeQuorumRequest::default().with_topics(vec![topic]);
        let deadline = self.api_deadline();
        let response = self
            .retrying(deadline, async || {
                let response = self.call_any(&request, i16::MAX, deadline).await?;
                BrokerError::check(response.error_code, response.error_message.as_deref())?;
                for partition in response.topics.iter().flat_map(|topic| &topic.partitions) {
                    BrokerError::check(partition.error_code, partition.error_message.as_deref())?;
                }
                Ok(response)
            })
            .await?;
        let Some(partition) = response.topics.first().and_then(|topic| topic.partitions.first())
        else {
            return Err(Error::Invalid(format!(
                "the broker answered without the partition {METADATA_TOPIC}-0"
            )));
        };
        let nodes = response.nodes.iter().map(|node| {
            let endpoints = node.listeners.iter().map(|listener| {
                (listener.name.to_string(), listener.host.to_string(), listener.port)
            });
            (node.node_id.0, QuorumNode { id: node.node_id.0, endpoints: endpoints.collect() })
        });
        Ok(QuorumStatus {
            leader_id: partition.leader_id.0,
            leader_epoch: partition.leader_epoch,
            high_watermark: partition.high_watermark,
            voters: partition.current_voters.iter().map(quorum_replica).collect(),
            observers: partition.observers.iter().map(quorum_replica).collect(),
            nodes: nodes.gather(),
        })
    }
}

fn quorum_replica(replica: &ReplicaState) -> QuorumReplica {
    let known = |ms: i64| (ms >= 0).then_some(ms);
    QuorumReplica {
        id: replica.replica_id.0,
        directory_id: replica.replica_directory_id,
        log_end_offset: replica.log_end_offset,
        last_fetch_ms: known(replica.last_fetch_timestamp),
        last_caught_up_ms: known(replica.last_caught_up_timestamp),
    }
}
