//! Where the replicas of partitions are, and which of them leads.

use std::collections::BTreeMap;

use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::elect_leaders_request::TopicPartitions;
use kafka_protocol::messages::list_partition_reassignments_request::ListPartitionReassignmentsTopics;
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, BrokerId, ElectLeadersRequest,
    ListPartitionReassignmentsRequest,
};
use letterbox_env::Gather;

use super::{by_topic, ids_by_topic};
use crate::client::{Client, topic_name};
use crate::error::{BrokerError, Error};
use crate::metadata::TopicPartition;

/// Which replica is to lead; the number is the protocol's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElectionType {
    /// The first of the assignment, if it is in sync (KIP-183).
    Preferred = 0,
    /// Any, where nobody leads: also one that may miss committed records (KIP-460).
    Unclean = 1,
}

/// A partition whose replicas move.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionReassignment {
    /// All replicas, of before and of after, the preferred leader first.
    pub replicas: Vec<i32>,
    /// Those that it gets.
    pub adding: Vec<i32>,
    /// Those that go when the others are in sync.
    pub removing: Vec<i32>,
}

/// What became of each partition.
type Outcomes = BTreeMap<TopicPartition, Result<(), BrokerError>>;

impl Client {
    /// Elects leaders of `partitions`; with `None` of all there are, of which those that need no
    /// election are left out.
    ///
    /// # Errors
    /// Per partition in the map: the broker's refusal. As a whole: when no broker answers in time,
    /// or refuses.
    pub async fn elect_leaders(
        &self,
        election: ElectionType,
        partitions: Option<&[TopicPartition]>,
    ) -> Result<Outcomes, Error> {
        let topics = partitions.map(|partitions| {
            let topics = ids_by_topic(partitions);
            let topic = |(name, partitions): (&str, Vec<i32>)| {
                TopicPartitions::default().with_topic(topic_name(name)).with_partitions(partitions)
            };
            topics.into_iter().map(topic).collect()
        });
        let request = ElectLeadersRequest::default()
            .with_election_type(election as i8)
            .with_topic_partitions(topics)
            .with_timeout_ms(self.timeout_ms());
        let response =
            self.call_until_accepted(&request, |response| vec![response.error_code]).await?;
        BrokerError::check(response.error_code, None)?;
        let results = response.replica_election_results.iter().flat_map(|topic| {
            topic.partition_result.iter().map(|one| {
                let partition = TopicPartition::new(topic.topic.0.to_string(), one.partition_id);
                (partition, BrokerError::check(one.error_code, one.error_message.as_deref()))
            })
        });
        Ok(results.gather())
    }

    /// Moves each partition to these brokers, the preferred leader first; with `None` gives up a
    /// move that is under way. With `may_change_factor` off, a partition gets neither more nor fewer
    /// replicas (KIP-860).
    ///
    /// # Errors
    /// Per partition in the map: the broker's refusal. As a whole: when no broker answers in time,
    /// or refuses.
    pub async fn alter_partition_reassignments(
        &self,
        moves: &BTreeMap<TopicPartition, Option<Vec<i32>>>,
        may_change_factor: bool,
    ) -> Result<Outcomes, Error> {
        let partitions = moves.iter().map(|(one, replicas)| {
            let ids = |ids: &Vec<i32>| ids.iter().map(|id| BrokerId(*id)).collect();
            let partition = ReassignablePartition::default()
                .with_partition_index(one.partition)
                .with_replicas(replicas.as_ref().map(ids));
            (one, partition)
        });
        let topics = by_topic(partitions).into_iter().map(|(name, partitions)| {
            ReassignableTopic::default().with_name(topic_name(name)).with_partitions(partitions)
        });
        let request = AlterPartitionReassignmentsRequest::default()
            .with_allow_replication_factor_change(may_change_factor)
            .with_topics(topics.collect())
            .with_timeout_ms(self.timeout_ms());
        let response =
            self.call_until_accepted(&request, |response| vec![response.error_code]).await?;
        BrokerError::check(response.error_code, response.error_message.as_deref())?;
        let results = response.responses.iter().flat_map(|topic| {
            topic.partitions.iter().map(|one| {
                let partition = TopicPartition::new(topic.name.0.to_string(), one.partition_index);
                (partition, BrokerError::check(one.error_code, one.error_message.as_deref()))
            })
        });
        Ok(results.gather())
    }

    /// Which of `partitions` move now; with `None` of all there are.
    ///
    /// # Errors
    /// When no broker answers in time, or it refuses.
    pub async fn partition_reassignments(
        &self,
        partitions: Option<&[TopicPartition]>,
    ) -> Result<BTreeMap<TopicPartition, PartitionReassignment>, Error> {
        let topics = partitions.map(|partitions| {
            let topics = ids_by_topic(partitions);
            let topic = |(name, indexes): (&str, Vec<i32>)| {
                ListPartitionReassignmentsTopics::default()
                    .with_name(topic_name(name))
                    .with_partition_indexes(indexes)
            };
            topics.into_iter().map(topic).collect()
        });
        let request = ListPartitionReassignmentsRequest::default()
            .with_topics(topics)
            .with_timeout_ms(self.timeout_ms());
        let response =
            self.call_until_accepted(&request, |response| vec![response.error_code]).await?;
        BrokerError::check(response.error_code, response.error_message.as_deref())?;
        let moving = response.topics.iter().flat_map(|topic| {
            topic.partitions.iter().map(|one| {
                let ids = |ids: &[BrokerId]| ids.iter().map(|id| id.0).collect();
                let moving = PartitionReassignment {
                    replicas: ids(&one.replicas),
                    adding: ids(&one.adding_replicas),
                    removing: ids(&one.removing_replicas),
                };
                (TopicPartition::new(topic.name.0.to_string(), one.partition_index), moving)
            })
        });
        Ok(moving.gather())
    }
}
