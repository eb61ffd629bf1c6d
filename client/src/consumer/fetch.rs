//! Fetch requests and what comes back.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse};
use letterbox_env::Gather;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::batch::BatchError;
use tokio::task::JoinError;
use tokio::time::Instant;

use super::{Consumer, ConsumerRecord, Position};
use crate::admin::IsolationLevel;
use crate::client::{Client, Lane, topic_name};
use crate::error::{BrokerError, Error};
use crate::metadata::TopicPartition;
use crate::record::{Batch, RecordsError};

/// The end of one Fetch.
pub(super) struct Fetched {
    leader: i32,
    /// What was asked: the turn of each partition and the offset.
    asked: BTreeMap<TopicPartition, (u64, i64)>,
    result: Result<FetchResponse, Error>,
}

impl Consumer {
    /// Asks once per topic whose leaders are not known.
    pub(super) async fn read_leaders(&mut self) {
        if self.backoff_until.is_some_and(|at| at > Instant::now()) {
            return;
        }
        let unknown =
            self.positions.keys().filter(|partition| self.client.known_leader(partition).is_none());
        let topics: Vec<String> = unknown
            .map(|partition| partition.topic.clone())
            .gather::<BTreeSet<_>>()
            .into_iter()
            .collect();
        if topics.is_empty() {
            return;
        }
        let deadline = self.client.request_deadline(self.client.api_deadline());
        let read = self.client.read_metadata(Some(&topics), false, deadline).await;
        let led =
            self.positions.keys().all(|partition| self.client.known_leader(partition).is_some());
        if read.is_err() || !led {
            self.backoff();
        }
    }

    /// Sends a Fetch to each leader that has none under way, for the partitions without buffered
    /// records.
    pub(super) fn start_fetches(&mut self) {
        if self.backoff_until.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.backoff_until = None;
        let mut by_leader: BTreeMap<i32, BTreeMap<TopicPartition, (u64, i64)>> = BTreeMap::new();
        for (partition, position) in &self.positions {
            if position.next.is_none() || !position.buffer.is_empty() {
                continue;
            }
            if let Some((leader, _)) = self.client.known_leader(partition)
                && !self.busy.contains(&leader)
            {
                by_leader
                    .entry(leader)
                    .or_default()
                    .insert(partition.clone(), (position.turn, position.fetch_from));
            }
        }
        for (leader, asked) in by_leader {
            self.busy.insert(leader);
            let (client, request) = (self.client.clone(), self.request(&asked));
            self.fetching.spawn(async move {
                let result = fetch(&client, leader, &request).await;
                Fetched { leader, asked, result }
            });
        }
    }

    /// Takes what has arrived without waiting.
    pub(super) fn take_completed(&mut self) -> Result<(), Error> {
        while let Some(fetched) = self.fetching.try_join_next() {
            self.take_fetched(whole(fetched))?;
        }
        Ok(())
    }

    pub(super) fn take_fetched(&mut self, fetched: Fetched) -> Result<(), Error> {
        self.busy.remove(&fetched.leader);
        let response = match fetched.result {
            Ok(response) if response.error_code == 0 => response,
            Ok(response) => {
                let code = ErrorCode::of_answer(response.error_code)
                    .unwrap_or(ErrorCode::UnknownServerError);
                return self
                    .fetch_failed(&fetched.asked, &BrokerError { code, message: None }.into());
            }
            Err(error) => return self.fetch_failed(&fetched.asked, &error),
        };
        let isolation = self.options.isolation;
        for topic in response.responses {
            for data in topic.partitions {
                let partition =
                    TopicPartition::new(topic.topic.0.to_string(), data.partition_index);
                let Some((turn, offset)) = fetched.asked.get(&partition) else { continue };
                let Some(position) = self.positions.get_mut(&partition) else { continue };
                if position.turn != *turn
                    || position.fetch_from != *offset
                    || position.next.is_none()
                {
                    continue;
                }
                match ErrorCode::of_answer(data.error_code) {
                    None => take_records(&partition, position, data, isolation)?,
                    Some(ErrorCode::OffsetOutOfRange) => {
                        // The position is looked up again by `auto.offset.reset`, not by the
                        // committed offset, which is this one.
                        position.next = None;
                        self.out_of_range.insert(partition);
                    }
                    Some(code) if code.is_retriable() => {
                        tracing::debug!(%partition, ?code, "fetch refused");
                        self.client.forget_topic(&partition.topic);
                        self.backoff();
                    }
                    Some(code) => return Err(BrokerError { code, message: None }.into()),
                }
            }
        }
        Ok(())
    }

    fn fetch_failed(
        &mut self,
        asked: &BTreeMap<TopicPartition, (u64, i64)>,
        error: &Error,
    ) -> Result<(), Error> {
        if !error.is_retriable() {
            return Err(error.clone());
        }
        tracing::debug!(%error, "fetch failed");
        for partition in asked.keys() {
            self.client.forget_topic(&partition.topic);
        }
        self.backoff();
        Ok(())
    }

    fn request(&self, asked: &BTreeMap<TopicPartition, (u64, i64)>) -> FetchRequest {
        let mut topics: BTreeMap<&str, Vec<FetchPartition>> = BTreeMap::new();
        for (partition, (_, offset)) in asked {
            let row = FetchPartition::default()
                .with_partition(partition.partition)
                .with_current_leader_epoch(-1)
                .with_fetch_offset(*offset)
                .with_last_fetched_epoch(-1)
                .with_log_start_offset(-1)
                .with_partition_max_bytes(self.options.partition_fetch_bytes);
            topics.entry(&partition.topic).or_default().push(row);
        }
        let topics = topics.into_iter().map(|(name, rows)| {
            FetchTopic::default().with_topic(topic_name(name)).with_partitions(rows)
        });
        FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(
                i32::try_from(self.options.fetch_wait.as_millis()).unwrap_or(i32::MAX),
            )
            .with_min_bytes(self.options.fetch_min_bytes)
            .with_max_bytes(self.options.fetch_max_bytes)
            .with_isolation_level(self.options.isolation.wire())
            .with_session_epoch(-1)
            .with_topics(topics.collect())
    }
}

async fn fetch(
    client: &Client,
    leader: i32,
    request: &FetchRequest,
) -> Result<FetchResponse, Error> {
    client.call_node(leader, Lane::Fetch, request, client.api_deadline()).await
}

/// Reads the batches of one partition into its buffer.
fn take_records(
    partition: &TopicPartition,
    position: &mut Position,
    data: PartitionData,
    isolation: IsolationLevel,
) -> Result<(), Error> {
    let mut bytes: Bytes = data.records.unwrap_or_default();
    let mut aborted: Vec<(i64, i64)> = match isolation {
        IsolationLevel::ReadUncommitted => Vec::new(),
        IsolationLevel::ReadCommitted => {
            let aborted = data.aborted_transactions.unwrap_or_default();
            aborted
                .iter()
                .map(|transaction| (transaction.first_offset, transaction.producer_id.0))
                .collect()
        }
    };
    aborted.sort_unstable();
    let mut aborted = aborted.into_iter().peekable();
    let mut aborting: BTreeSet<i64> = BTreeSet::new();
    let mut any = false;
    loop {
        let unreadable = |error: &RecordsError, offset| Error::Batch {
            partition: partition.to_string(),
            offset,
            reason: error.to_string(),
        };
        let batch = match Batch::take(&mut bytes) {
            Ok(Some(batch)) => batch,
            Ok(None) => return Ok(()),
            // A fetch may end inside a batch, but never inside its first.
            Err(RecordsError::Batch(BatchError::Truncated { .. })) if any => return Ok(()),
            Err(error) => return Err(unreadable(&error, position.fetch_from)),
        };
        any = true;
        let header = batch.header;
        while let Some((_, producer)) = aborted.next_if(|(first, _)| *first < header.next_offset())
        {
            aborting.insert(producer);
        }
        if header.is_control() {
            if batch.is_abort_marker() == Some(true) {
                aborting.remove(&header.producer_id);
            }
        } else if !(header.is_transactional() && aborting.contains(&header.producer_id))
            && header.next_offset() > position.fetch_from
        {
            let records =
                batch.records().map_err(|error| unreadable(&error, position.fetch_from))?;
            let from = position.fetch_from;
            position.buffer.extend(records.into_iter().filter(|record| record.offset >= from).map(
                |record| ConsumerRecord {
                    topic: partition.topic.clone(),
                    partition: partition.partition,
                    offset: record.offset,
                    leader_epoch: header.leader_epoch,
                    timestamp: record.timestamp,
                    log_append_time: header.is_log_append_time(),
                    key: record.key,
                    value: record.value,
                    headers: record.headers,
                },
            ));
        }
        position.fetch_from = position.fetch_from.max(header.next_offset());
    }
}

/// What a fetch brought; a panic in it goes on here. Fetches are aborted only together with the
/// consumer.
pub(super) fn whole(ended: Result<Fetched, JoinError>) -> Fetched {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
