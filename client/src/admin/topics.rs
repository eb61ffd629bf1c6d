//! Topics, partitions and the cluster.

use std::collections::BTreeMap;

use kafka_protocol::messages::create_partitions_request::{
    CreatePartitionsAssignment, CreatePartitionsTopic,
};
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use kafka_protocol::messages::{
    BrokerId, CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest,
    DescribeClusterRequest, DescribeTopicPartitionsRequest,
};
use kafka_protocol::protocol::Request;
use letterbox_env::Gather;
use letterbox_protocol::ErrorCode;
use uuid::Uuid;

use crate::client::{Client, text, topic_name};
use crate::error::{BrokerError, Error};
use crate::metadata::{Broker, TopicPartition};

/// A topic to create.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// Number of partitions; `None`: the broker's default.
    pub partitions: Option<i32>,
    /// Replicas of each partition; `None`: the broker's default.
    pub replication_factor: Option<i16>,
    /// Brokers by partition, the preferred leader first; then the two fields above must be `None`.
    pub assignments: BTreeMap<i32, Vec<i32>>,
    /// Topic configuration.
    pub configs: BTreeMap<String, String>,
}

/// A topic that was created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicCreated {
    /// Its id; nil when the broker is too old to tell.
    pub id: Uuid,
    /// Partitions; -1 when the broker is too old to tell.
    pub partitions: i32,
    /// Replicas of each; -1 when the broker is too old to tell.
    pub replication_factor: i16,
}

/// The cluster as [`Client::describe_cluster`] sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedCluster {
    /// The id of the cluster.
    pub cluster_id: String,
    /// The broker that admin requests may be sent to.
    pub controller_id: Option<i32>,
    /// The live brokers by id.
    pub brokers: BTreeMap<i32, Broker>,
}

/// Brokers that may lead a partition without losing anything although they are not in sync
/// (KIP-966).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EligibleLeaders {
    /// Those that may now.
    pub now: Vec<i32>,
    /// Those that were the last to be able to, after an unclean end.
    pub last_known: Vec<i32>,
}

/// The new number of partitions, and perhaps the brokers of each added one, the preferred leader
/// first.
pub type MorePartitions = (i32, Option<Vec<Vec<i32>>>);

/// What became of each topic of a request, by name.
type Outcomes<T> = BTreeMap<String, Result<T, BrokerError>>;

impl Client {
    /// Creates topics; with `validate_only` only says whether they could be.
    ///
    /// # Errors
    /// Per topic in the map: the broker's refusal. As a whole: when no broker answers in time.
    pub async fn create_topics(
        &self,
        topics: &[NewTopic],
        validate_only: bool,
    ) -> Result<Outcomes<TopicCreated>, Error> {
        let creatable = topics.iter().map(|topic| {
            let assignments = topic.assignments.iter().map(|(index, brokers)| {
                let brokers = brokers.iter().map(|id| BrokerId(*id)).collect();
                CreatableReplicaAssignment::default()
                    .with_partition_index(*index)
                    .with_broker_ids(brokers)
            });
            let configs = topic.configs.iter().map(|(name, value)| {
                CreatableTopicConfig::default().with_name(text(name)).with_value(Some(text(value)))
            });
            CreatableTopic::default()
                .with_name(topic_name(&topic.name))
                .with_num_partitions(topic.partitions.unwrap_or(-1))
                .with_replication_factor(topic.replication_factor.unwrap_or(-1))
                .with_assignments(assignments.collect())
                .with_configs(configs.collect())
        });
        let request = CreateTopicsRequest::default()
            .with_topics(creatable.collect())
            .with_timeout_ms(self.timeout_ms())
            .with_validate_only(validate_only);
        let response = self
            .call_until_accepted(&request, |response| {
                response.topics.iter().map(|topic| topic.error_code).collect()
            })
            .await?;
        let outcomes = response.topics.iter().map(|topic| {
            let created = TopicCreated {
                id: topic.topic_id,
                partitions: topic.num_partitions,
                replication_factor: topic.replication_factor,
            };
            (
                topic.name.0.to_string(),
                BrokerError::check(topic.error_code, topic.error_message.as_deref())
                    .map(|()| created),
            )
        });
        Ok(outcomes.gather())
    }

    /// Deletes topics by name.
    ///
    /// # Errors
    /// Per topic in the map: the broker's refusal. As a whole: when no broker answers in time.
    pub async fn delete_topics(&self, topics: &[String]) -> Result<Outcomes<()>, Error> {
        // Version 6 names topics in another field; both are filled, the encoder takes the one the
        // version has.
        let names = topics.iter().map(|name| topic_name(name)).collect();
        let states = topics
            .iter()
            .map(|name| DeleteTopicState::default().with_name(Some(topic_name(name))))
            .collect();
        let deadline = self.api_deadline();
        let old = DeleteTopicsRequest::default()
            .with_topic_names(names)
            .with_timeout_ms(self.timeout_ms());
        let new =
            DeleteTopicsRequest::default().with_topics(states).with_timeout_ms(self.timeout_ms());
        let response = self
            .retrying(deadline, async || {
                let connection = self.any().await?;
                let version = connection.version_of::<DeleteTopicsRequest>(i16::MAX)?;
                let request = if version >= 6 { &new } else { &old };
                let response =
                    connection.call(request, version, self.request_deadline(deadline)).await?;
                reject_temporary(response.responses.iter().map(|topic| topic.error_code))?;
                Ok(response)
            })
            .await?;
        let outcomes = response.responses.iter().map(|topic| {
            let name = topic.name.as_ref().map(|name| name.0.to_string()).unwrap_or_default();
            (name, BrokerError::check(topic.error_code, topic.error_message.as_deref()))
        });
        for topic in topics {
            self.forget_topic(topic);
        }
        Ok(outcomes.gather())
    }

    /// Grows each topic to a number of partitions; with assignments for the added ones, or none for
    /// the broker's choice.
    ///
    /// # Errors
    /// Per topic in the map: the broker's refusal. As a whole: when no broker answers in time.
    pub async fn create_partitions(
        &self,
        topics: &BTreeMap<String, MorePartitions>,
    ) -> Result<Outcomes<()>, Error> {
        let wanted = topics.iter().map(|(name, (count, assignments))| {
            let assignments = assignments.as_ref().map(|assignments| {
                let assignments = assignments.iter();
                let assignments = assignments.map(|ids| {
                    CreatePartitionsAssignment::default()
                        .with_broker_ids(ids.iter().map(|id| BrokerId(*id)).collect())
                });
                assignments.collect()
            });
            CreatePartitionsTopic::default()
                .with_name(topic_name(name))
                .with_count(*count)
                .with_assignments(assignments)
        });
        let request = CreatePartitionsRequest::default()
            .with_topics(wanted.collect())
            .with_timeout_ms(self.timeout_ms());
        let response = self
            .call_until_accepted(&request, |response| {
                response.results.iter().map(|topic| topic.error_code).collect()
            })
            .await?;
        let outcomes = response.results.iter().map(|topic| {
            self.forget_topic(&topic.name.0);
            (
                topic.name.0.to_string(),
                BrokerError::check(topic.error_code, topic.error_message.as_deref()),
            )
        });
        Ok(outcomes.gather())
    }

    /// The cluster's id, its brokers and the broker for admin requests.
    ///
    /// # Errors
    /// When no broker answers in time, or it refuses.
    pub async fn describe_cluster(&self) -> Result<DescribedCluster, Error> {
        let request = DescribeClusterRequest::default();
        let response = self.call_any(&request, i16::MAX, self.api_deadline()).await?;
        BrokerError::check(response.error_code, response.error_message.as_deref())?;
        let brokers = response.brokers.iter().map(|broker| {
            let id = broker.broker_id;
            (id.0, Broker::new(id, &broker.host, broker.port, broker.rack.as_ref()))
        });
        Ok(DescribedCluster {
            cluster_id: response.cluster_id.to_string(),
            controller_id: (response.controller_id.0 >= 0).then_some(response.controller_id.0),
            brokers: brokers.gather(),
        })
    }

    /// The eligible leaders of partitions without enough replicas in sync (KIP-966), for all
    /// partitions of `topics`, asked for `limit` partitions at a time; `None` when the broker does
    /// not keep them.
    ///
    /// # Errors
    /// When no broker answers in time.
    pub async fn eligible_leaders(
        &self,
        topics: &[String],
        limit: i32,
    ) -> Result<Option<BTreeMap<TopicPartition, EligibleLeaders>>, Error> {
        if topics.is_empty() {
            return Ok(None); // an empty list asks for every topic
        }
        let wanted = topics.iter().map(|name| TopicRequest::default().with_name(topic_name(name)));
        let mut request = DescribeTopicPartitionsRequest::default()
            .with_topics(wanted.collect())
            .with_response_partition_limit(limit);
        let mut found = BTreeMap::new();
        loop {
            let response = match self.call_any(&request, i16::MAX, self.api_deadline()).await {
                Err(Error::Unsupported { .. }) => return Ok(None),
                response => response?,
            };
            for topic in &response.topics {
                let name = topic.name.as_ref().map(|name| name.0.to_string()).unwrap_or_default();
                for partition in &topic.partitions {
                    let ids =
                        |ids: &Option<Vec<BrokerId>>| ids.iter().flatten().map(|id| id.0).collect();
                    let leaders = EligibleLeaders {
                        now: ids(&partition.eligible_leader_replicas),
                        last_known: ids(&partition.last_known_elr),
                    };
                    found.insert(
                        TopicPartition::new(name.clone(), partition.partition_index),
                        leaders,
                    );
                }
            }
            let Some(next) = response.next_cursor else { return Ok(Some(found)) };
            let cursor = Cursor::default()
                .with_topic_name(next.topic_name)
                .with_partition_index(next.partition_index);
            if request.cursor.as_ref() == Some(&cursor) {
                return Ok(Some(found)); // the broker does not get on
            }
            request.cursor = Some(cursor);
        }
    }

    /// As `call_any`, trying again while one of the codes in the response says that the controller
    /// is moving.
    pub(crate) async fn call_until_accepted<R: Request>(
        &self,
        request: &R,
        codes: impl Fn(&R::Response) -> Vec<i16>,
    ) -> Result<R::Response, Error> {
        let deadline = self.api_deadline();
        self.retrying(deadline, async || {
            let connection = self.any().await?;
            let version = connection.version_of::<R>(i16::MAX)?;
            let response =
                connection.call(request, version, self.request_deadline(deadline)).await?;
            reject_temporary(codes(&response).into_iter())?;
            Ok(response)
        })
        .await
    }

    /// `timeout_ms` of requests that wait in the controller.
    pub(crate) fn timeout_ms(&self) -> i32 {
        i32::try_from(self.options().request_timeout.as_millis()).unwrap_or(i32::MAX)
    }
}

/// `Err` when a code says that the controller is not there right now.
fn reject_temporary(mut codes: impl Iterator<Item = i16>) -> Result<(), Error> {
    match codes.find(|code| *code == ErrorCode::NotController.code()) {
        Some(_) => Err(BrokerError { code: ErrorCode::NotController, message: None }.into()),
        None => Ok(()),
    }
}
