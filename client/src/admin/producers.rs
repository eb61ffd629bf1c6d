//! Which producers a partition knows (KIP-664).

use std::collections::BTreeMap;

use kafka_protocol::messages::DescribeProducersRequest;
use kafka_protocol::messages::describe_producers_request::TopicRequest;
use tokio::time::Instant;

use crate::admin::ids_by_topic;
use crate::admin::offsets::Answers;
use crate::client::{Client, Lane, topic_name};
use crate::error::{BrokerError, Error};
use crate::metadata::TopicPartition;

/// What a partition knows of a producer; −1 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerState {
    /// Its id.
    pub id: i64,
    /// Its epoch.
    pub epoch: i32,
    /// The sequence of its last record.
    pub last_sequence: i32,
    /// The timestamp of its last record.
    pub last_timestamp: i64,
    /// The epoch of the coordinator of its last transaction.
    pub coordinator_epoch: i32,
    /// Where its open transaction begins.
    pub transaction_start: i64,
}

impl Client {
    /// The producers that are active in `partition`, as its leader or the replica `at` knows them.
    ///
    /// # Errors
    /// The broker's refusal, after retries; when it does not answer in time.
    pub async fn describe_producers(
        &self,
        partition: &TopicPartition,
        at: Option<i32>,
    ) -> Result<Vec<ProducerState>, Error> {
        let deadline = self.api_deadline();
        let wanted = BTreeMap::from([(partition.clone(), ())]);
        let found = match at {
            Some(id) => {
                self.retrying(deadline, async || {
                    self.describe_producers_at(id, &wanted, deadline).await
                })
                .await?
            }
            None => {
                let ask = |leader, wanted| async move {
                    self.describe_producers_at(leader, &wanted, deadline).await
                };
                self.ask_leaders(&wanted, deadline, ask).await?.into_iter().collect()
            }
        };
        let answer = found.into_iter().next().map(|(_, answer)| answer);
        Ok(answer.unwrap_or(Ok(Vec::new()))?)
    }

    async fn describe_producers_at(
        &self,
        id: i32,
        wanted: &BTreeMap<TopicPartition, ()>,
        deadline: Instant,
    ) -> Result<Answers<Vec<ProducerState>>, Error> {
        let wanted: Vec<TopicPartition> = wanted.keys().cloned().collect();
        let topics = ids_by_topic(&wanted).into_iter().map(|(name, partitions)| {
            TopicRequest::default().with_name(topic_name(name)).with_partition_indexes(partitions)
        });
        let request = DescribeProducersRequest::default().with_topics(topics.collect());
        let response = self.call_node(id, Lane::Main, &request, deadline).await?;
        let answers = response.topics.iter().flat_map(|topic| {
            topic.partitions.iter().map(|partition| {
                let name = TopicPartition::new(topic.name.0.to_string(), partition.partition_index);
                let message = partition.error_message.as_ref().map(ToString::to_string);
                let producers = partition.active_producers.iter().map(|one| ProducerState {
                    id: one.producer_id.0,
                    epoch: one.producer_epoch,
                    last_sequence: one.last_sequence,
                    last_timestamp: one.last_timestamp,
                    coordinator_epoch: one.coordinator_epoch,
                    transaction_start: one.current_txn_start_offset,
                });
                let refused = BrokerError::check(partition.error_code, message.as_deref());
                (name, refused.map(|()| producers.collect()))
            })
        });
        Ok(answers.collect())
    }
}
