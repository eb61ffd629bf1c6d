//! ListOffsets 1–11: the offset at a time, or at one of the named places.
//!
//! KIPs: 734 (max timestamp), 405, 1005 and 1023 (tiered places: nothing is tiered, so
//! earliest-local is the earliest, and latest-tiered and earliest-pending-upload have no offset).
//! With no transactions the last stable offset is the high watermark.
//!
//! Every place but the earliest covers what was acknowledged before the request came, with `acks=1`
//! too: see [`Partition::settle`].

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use kafka_protocol::messages as m;
use kafka_protocol::messages::list_offsets_request::ListOffsetsPartition;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use letterbox_protocol::ErrorCode;
use tokio::time::Instant;

use super::{Errors, SETTLE_MAX, Services, errors};
use crate::replication::Partition;
use crate::request::RequestContext;
use crate::security::{Operation, Resource};

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;
const EARLIEST_PENDING_UPLOAD: i64 = -6;

/// Look-ups by time that one request runs at once.
const AT_ONCE: usize = 4;

/// Answers ListOffsets.
pub(crate) async fn list_offsets(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::ListOffsetsRequest,
) -> m::ListOffsetsResponse {
    let version = ctx.api_version;
    let settle_by = Instant::now() + SETTLE_MAX;
    let mut topics = Vec::with_capacity(request.topics.len());
    let mut seen = BTreeSet::new();
    for topic in request.topics {
        let name = topic.name.as_str();
        let topic_id = ctx.check(Operation::Describe, Resource::Topic(name)).and_then(|()| {
            let id = services.image().topic(name).map(|topic| topic.id);
            id.ok_or(ErrorCode::UnknownTopicOrPartition)
        });
        let answers = stream::iter(topic.partitions).map(|asked| {
            let services = services.clone();
            let is_repeated = !seen.insert((topic.name.clone(), asked.partition_index));
            async move {
                // As with Kafka: which of them is meant is not known.
                let found = if is_repeated { Err(ErrorCode::InvalidRequest) } else { topic_id };
                let found =
                    found.and_then(|id| services.replicas.partition(&id, asked.partition_index));
                let answer = ListOffsetsPartitionResponse::default()
                    .with_partition_index(asked.partition_index);
                let looked_up = match found {
                    Ok(partition) => one(&services, partition, &asked, version, settle_by).await,
                    Err(error) => Err(error),
                };
                match looked_up {
                    Ok((timestamp, offset, epoch)) => answer
                        .with_timestamp(timestamp)
                        .with_offset(offset)
                        .with_leader_epoch(if version >= 4 { epoch } else { -1 }),
                    Err(error) => {
                        answer.with_error_code(error as i16).with_timestamp(-1).with_offset(-1)
                    }
                }
            }
        });
        let partitions = answers.buffered(AT_ONCE).collect().await;
        topics.push(
            ListOffsetsTopicResponse::default().with_name(topic.name).with_partitions(partitions),
        );
    }
    m::ListOffsetsResponse::default().with_topics(topics)
}

async fn one(
    services: &Services,
    partition: Arc<Partition>,
    asked: &ListOffsetsPartition,
    version: i16,
    settle_by: Instant,
) -> Result<(i64, i64, i32), ErrorCode> {
    partition.check_epoch(asked.current_leader_epoch)?;
    // KIPs 734, 405, 1005 and 1023 each brought one with a version.
    let since = match asked.timestamp {
        MAX_TIMESTAMP => 7,
        EARLIEST_LOCAL => 8,
        LATEST_TIERED => 9,
        EARLIEST_PENDING_UPLOAD => 11,
        _ => 0,
    };
    if version < since {
        return Err(ErrorCode::UnsupportedVersion);
    }
    if !matches!(
        asked.timestamp,
        EARLIEST | EARLIEST_LOCAL | LATEST_TIERED | EARLIEST_PENDING_UPLOAD
    ) {
        // Clients older than the error code look for the leader again instead.
        let for_client = |error| {
            if error == ErrorCode::OffsetNotAvailable && version < 5 {
                ErrorCode::LeaderNotAvailable
            } else {
                error
            }
        };
        partition.settle(settle_by).await.map_err(for_client)?;
    }
    let place = |offset: i64| Ok((-1, offset, partition.epoch_at(offset)));
    match asked.timestamp {
        LATEST => place(partition.high_watermark()),
        EARLIEST | EARLIEST_LOCAL => place(partition.log()?.start_offset()),
        LATEST_TIERED | EARLIEST_PENDING_UPLOAD => Ok((-1, -1, -1)),
        timestamp if timestamp >= 0 || timestamp == MAX_TIMESTAMP => {
            let log = partition.log()?.clone();
            let look_up = move || {
                if timestamp == MAX_TIMESTAMP {
                    log.max_timestamp()
                } else {
                    log.offset_for_timestamp(timestamp)
                }
            };
            let found = services.lookups.run(&services.env, look_up).await;
            let found = found.map_err(|error| error.code())?;
            // What is not committed is not there yet for clients.
            Ok(found
                .filter(|found| found.offset < partition.high_watermark())
                .map_or((-1, -1, -1), |found| {
                    (found.timestamp, found.offset, partition.epoch_at(found.offset))
                }))
        }
        _ => Err(ErrorCode::UnsupportedVersion),
    }
}

errors!(ListOffsetsResponse, |all, each| {
    let partitions = all.topics.iter().flat_map(|topic| &topic.partitions);
    partitions.for_each(|one| each(one.error_code));
});
