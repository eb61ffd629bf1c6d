//! Deleting records from the front of partitions (KIP-107).

use std::collections::BTreeMap;

use kafka_protocol::messages::DeleteRecordsRequest;
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use tokio::time::Instant;

use crate::admin::offsets::Answers;
use crate::client::{Client, Lane, topic_name};
use crate::error::{BrokerError, Error};
use crate::metadata::TopicPartition;

impl Client {
    /// Deletes the records before an offset of each partition, -1 for its high watermark; answers
    /// with the new first offset that all replicas have.
    ///
    /// # Errors
    /// Per partition in the map: the broker's refusal, after retries (`OFFSET_OUT_OF_RANGE` past
    /// the high watermark). As a whole: when the leaders cannot be asked in time.
    pub async fn delete_records(
        &self,
        before: &BTreeMap<TopicPartition, i64>,
    ) -> Result<BTreeMap<TopicPartition, Result<i64, BrokerError>>, Error> {
        let deadline = self.api_deadline();
        self.ask_leaders(before, deadline, |leader, offsets| {
            self.delete_records_at(leader, offsets, deadline)
        })
        .await
    }

    async fn delete_records_at(
        &self,
        leader: i32,
        offsets: BTreeMap<TopicPartition, i64>,
        deadline: Instant,
    ) -> Result<Answers<i64>, Error> {
        let mut topics: BTreeMap<&str, Vec<DeleteRecordsPartition>> = BTreeMap::new();
        for (partition, offset) in &offsets {
            let wanted = DeleteRecordsPartition::default()
                .with_partition_index(partition.partition)
                .with_offset(*offset);
            topics.entry(partition.topic.as_str()).or_default().push(wanted);
        }
        let topics = topics.into_iter().map(|(name, partitions)| {
            DeleteRecordsTopic::default().with_name(topic_name(name)).with_partitions(partitions)
        });
        let request = DeleteRecordsRequest::default()
            .with_topics(topics.collect())
            .with_timeout_ms(self.timeout_ms());
        let response = self.call_node(leader, Lane::Main, &request, deadline).await?;
        let answers = response.topics.iter().flat_map(|topic| {
            topic.partitions.iter().map(|partition| {
                let name = TopicPartition::new(topic.name.0.to_string(), partition.partition_index);
                (
                    name,
                    BrokerError::check(partition.error_code, None)
                        .map(|()| partition.low_watermark),
                )
            })
        });
        Ok(answers.collect())
    }
}
