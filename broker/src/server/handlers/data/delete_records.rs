//! DeleteRecords 0–2: moves the log start forward, for good.
//!
//! KIP-107. Kafka Streams empties its repartition topics with it: they have `retention.ms=-1` and
//! would grow for ever. When the answer leaves, the new log start is on stable storage (Kafka's is
//! not), and every replica whose broker lives has it, so that the records are gone whoever leads
//! next; whole segments before it go with the next retention check. REQUEST_TIMED_OUT when a replica
//! has not got there within the request's timeout: they are gone here, and will be there.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::messages::delete_records_request::DeleteRecordsTopic;
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::Offset;
use tokio::time::Instant;

use super::{Errors, SETTLE_MAX, Services, errors};
use crate::metadata::decide::is_internal_topic;
use crate::replication::Partition;
use crate::request::RequestContext;
use crate::security::{Operation, Resource};

/// How long a request waits for replicas at most, whatever it says.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Asks for the high watermark.
const HIGH_WATERMARK: Offset = -1;

/// Answers DeleteRecords.
pub(crate) async fn delete_records(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::DeleteRecordsRequest,
) -> m::DeleteRecordsResponse {
    let begun = Instant::now();
    let within = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    let (settle_by, deadline) = (begun + SETTLE_MAX, begun + within.min(WAIT_MAX));
    let mut moved = Vec::new();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let of_topic = topic_id(&services, &ctx, &topic);
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in topic.partitions {
            let outcome = match of_topic
                .and_then(|id| services.replicas.partition(&id, asked.partition_index))
            {
                Ok(partition) => one(&partition, asked.offset, settle_by)
                    .await
                    .inspect(|start| moved.push((partition, *start))),
                Err(error) => Err(error),
            };
            let result =
                DeleteRecordsPartitionResult::default().with_partition_index(asked.partition_index);
            partitions.push(match outcome {
                Ok(low_watermark) => result.with_low_watermark(low_watermark),
                Err(error) => refused(result, error),
            });
        }
        topics.push(
            DeleteRecordsTopicResult::default().with_name(topic.name).with_partitions(partitions),
        );
    }
    let logs = moved.iter().filter_map(|(partition, _)| partition.log().ok().cloned()).collect();
    let kept = services.replicas.keep_log_starts(logs).await;
    let reached = moved.iter().map(|(partition, start)| {
        let is_kept = kept.is_ok();
        async move {
            match is_kept {
                true => partition.low_watermark_reaches(*start, deadline).await,
                false => Err(ErrorCode::KafkaStorageError),
            }
        }
    });
    let mut reached = futures::future::join_all(reached).await.into_iter();
    // In the order in which they were moved.
    let answers = topics.iter_mut().flat_map(|topic| &mut topic.partitions);
    for answer in answers.filter(|answer| answer.error_code == 0) {
        let result = std::mem::take(answer);
        *answer = match reached.next().unwrap_or(Err(ErrorCode::UnknownServerError)) {
            Ok(low_watermark) => result.with_low_watermark(low_watermark),
            Err(error) => refused(result, error),
        };
    }
    m::DeleteRecordsResponse::default().with_topics(topics)
}

fn refused(result: DeleteRecordsPartitionResult, error: ErrorCode) -> DeleteRecordsPartitionResult {
    result.with_low_watermark(-1).with_error_code(error as i16)
}

fn topic_id(
    services: &Services,
    ctx: &RequestContext,
    topic: &DeleteRecordsTopic,
) -> Result<uuid::Uuid, ErrorCode> {
    let name = topic.name.as_str();
    ctx.check(Operation::Delete, Resource::Topic(name))?;
    let id = services
        .image()
        .topic(name)
        .map(|topic| topic.id)
        .ok_or(ErrorCode::UnknownTopicOrPartition)?;
    // What they hold is not records to their readers.
    if is_internal_topic(name) { Err(ErrorCode::InvalidTopicException) } else { Ok(id) }
}

async fn one(
    partition: &Partition,
    offset: Offset,
    settle_by: Instant,
) -> Result<Offset, ErrorCode> {
    let log = partition.log()?;
    let policy = log.config().cleanup_policy;
    if policy.compact && !policy.delete {
        return Err(ErrorCode::PolicyViolation);
    }
    // A client may delete up to what was acknowledged to it.
    partition.settle(settle_by).await?;
    let high_watermark = partition.high_watermark();
    let before = if offset == HIGH_WATERMARK { high_watermark } else { offset };
    if !(0..=high_watermark).contains(&before) {
        return Err(ErrorCode::OffsetOutOfRange);
    }
    log.delete_records_before(before).map_err(|_| ErrorCode::KafkaStorageError)
}

errors!(DeleteRecordsResponse, |all, each| {
    let partitions = all.topics.iter().flat_map(|topic| &topic.partitions);
    partitions.for_each(|one| each(one.error_code));
});
