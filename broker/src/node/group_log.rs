//! `__consumer_offsets` as the group coordinator sees it: appends, commits and reads over the
//! partition's log.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use letterbox_env::{BoxFuture, Env, with_causes};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::batch::{Batch, BatchBuilder, RecordIter};
use letterbox_protocol::model::{LeaderEpoch, Offset, TimestampMs, TopicId};
use tracing::error;

use crate::coordinator::{AppendError, KeyValue, LogEnd, ReplicatedLog};
use crate::replication::{AppendRefused, Partition, ReplicaManager};

/// Bytes read at once while a partition is loaded.
const READ_CHUNK: usize = 4 * 1024 * 1024;

/// The offsets topic's partitions on this broker.
pub(super) struct GroupLog {
    env: Env,
    replicas: Arc<ReplicaManager>,
    topic: ArcSwap<TopicId>,
}

impl GroupLog {
    pub(super) fn new(env: Env, replicas: Arc<ReplicaManager>) -> Self {
        Self { env, replicas, topic: ArcSwap::default() }
    }

    /// Which topic is `__consumer_offsets` now.
    pub(super) fn set_topic(&self, topic: TopicId) {
        self.topic.store(Arc::new(topic));
    }

    fn partition(&self, index: i32) -> Result<Arc<Partition>, AppendError> {
        self.replicas.partition(&self.topic.load(), index).map_err(append_error)
    }
}

impl ReplicatedLog for GroupLog {
    fn is_led_in(&self, partition: i32, leader_epoch: LeaderEpoch) -> bool {
        self.partition(partition).is_ok_and(|partition| partition.leader_epoch() == leader_epoch)
    }

    fn append(
        &self,
        partition: i32,
        leader_epoch: LeaderEpoch,
        records: Vec<KeyValue>,
        now: TimestampMs,
    ) -> BoxFuture<'static, Result<LogEnd, AppendError>> {
        let appended = self.partition(partition).and_then(|partition| {
            let mut batch = BatchBuilder::new(now);
            for (key, value) in &records {
                batch.push(now, Some(key), value.as_deref(), &[]);
            }
            let appended =
                partition.append_decided_in(leader_epoch, batch.build()).map_err(|refused| {
                    match refused {
                        AppendRefused::NotLeader => AppendError::NotLeader,
                        AppendRefused::Offline => AppendError::Storage,
                        AppendRefused::NotEnoughReplicas(_) => AppendError::NotEnoughReplicas,
                        AppendRefused::Log(
                            letterbox_storage::AppendError::MessageTooLarge { .. }
                            | letterbox_storage::AppendError::RecordListTooLarge { .. },
                        ) => AppendError::TooLarge,
                        AppendRefused::Log(letterbox_storage::AppendError::Closed) => {
                            AppendError::UnknownPartition
                        }
                        AppendRefused::Log(_) => AppendError::Storage,
                    }
                })?;
            Ok(LogEnd { offset: appended.end_offset, leader_epoch: appended.leader_epoch })
        });
        Box::pin(std::future::ready(appended))
    }

    fn committed(
        &self,
        partition: i32,
        end: LogEnd,
    ) -> BoxFuture<'static, Result<(), AppendError>> {
        let partition = self.partition(partition);
        Box::pin(async move {
            let commit = partition?.committed(end.leader_epoch, end.offset, None).await;
            commit.reached().map_err(append_error)
        })
    }

    fn batch_bytes_max(&self, partition: i32) -> usize {
        // Without the partition nothing can be appended anyway, which the append then says.
        self.partition(partition)
            .and_then(|partition| Ok(partition.log().map_err(append_error)?.config()))
            .map_or(usize::MAX, |config| config.max_message_bytes)
    }

    fn read_all<'a>(
        &'a self,
        partition: i32,
        each: &'a mut (dyn FnMut(Bytes, Option<Bytes>) + Send),
    ) -> BoxFuture<'a, Result<LogEnd, AppendError>> {
        Box::pin(async move {
            let partition = self.partition(partition)?;
            let failed = |at: Offset, why: String| {
                let partition = partition.key().1;
                error!(partition, offset = at, why, "cannot read __consumer_offsets");
                AppendError::Storage
            };
            // Before the end: what another leader appends afterwards is of another epoch.
            let leader_epoch = partition.leader_epoch();
            let end = partition.end_offset();
            let mut at = partition.log().map_err(append_error)?.start_offset();
            while at < end {
                let copied = partition.copy(&self.env, at, end, READ_CHUNK).await;
                let (bytes, next) = copied.map_err(|why| failed(at, with_causes(&why)))?;
                for_each_record(&bytes, each).map_err(|why| failed(at, why))?;
                if next <= at {
                    break;
                }
                at = next;
            }
            Ok(LogEnd { offset: end, leader_epoch })
        })
    }
}

fn append_error(error: ErrorCode) -> AppendError {
    match error {
        ErrorCode::KafkaStorageError => AppendError::Storage,
        ErrorCode::NotLeaderOrFollower => AppendError::NotLeader,
        _ => AppendError::UnknownPartition,
    }
}

fn for_each_record(
    mut bytes: &[u8],
    each: &mut (dyn FnMut(Bytes, Option<Bytes>) + Send),
) -> Result<(), String> {
    while !bytes.is_empty() {
        let (batch, rest) = Batch::split(bytes).map_err(|error| error.to_string())?;
        // A client would check it, too: nobody else reads these batches.
        batch.check_crc().map_err(|error| error.to_string())?;
        bytes = rest;
        if batch.header.is_control() {
            continue;
        }
        let records = batch.unpacked().map_err(|error| error.to_string())?;
        for record in RecordIter::new(&records, batch.header.records_count) {
            let record = record.map_err(|error| error.to_string())?;
            if let Some(key) = record.key {
                each(Bytes::copy_from_slice(key), record.value.map(Bytes::copy_from_slice));
            }
        }
    }
    Ok(())
}
