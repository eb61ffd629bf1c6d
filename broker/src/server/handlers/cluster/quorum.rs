//! DescribeQuorum 0–2: who votes on the metadata, who observes, who leads, how far each is (KIPs
//! 595, 836, 853).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::messages::describe_quorum_request::TopicData as AskedTopic;
use kafka_protocol::messages::describe_quorum_response::{
    Listener, Node, PartitionData, ReplicaState, TopicData,
};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;

use super::{Errors, Services, errors, text, topic_name};
use crate::metadata::decide::METADATA_TOPIC;
use crate::quorum::QuorumStatus;
use crate::request::RequestContext;

/// How long the active controller may take to say how the quorum is.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// Answers DescribeQuorum, from what the active controller has seen since it started; what it has
/// not seen yet of a voter is not known (-1, or no id).
pub(crate) async fn describe(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::DescribeQuorumRequest,
) -> m::DescribeQuorumResponse {
    let told = tokio::time::timeout(TOLD_WITHIN, services.controller.quorum_status()).await;
    let status = match told {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => {
            return refused(error.code()).with_error_message(Some(text(&error.to_string())));
        }
        Err(_) => return refused(ErrorCode::RequestTimedOut),
    };
    let now = services.env.clock.wall_ms();
    let mut seen = BTreeSet::new();
    let topics =
        request.topics.iter().map(|topic| of_topic(topic, &mut seen, &status, &ctx, now)).collect();
    let members = status.voters.iter().chain(&status.observers);
    let nodes = members.map(|(id, (host, port))| {
        let listener = Listener::default()
            .with_name(text(&services.config.controller.name))
            .with_host(text(host))
            .with_port(*port);
        Node::default().with_node_id(node(*id)).with_listeners(vec![listener])
    });
    let nodes = if ctx.api_version >= 2 { nodes.collect() } else { Vec::new() };
    m::DescribeQuorumResponse::default().with_topics(topics).with_nodes(nodes)
}

/// Answers for the partitions that are not in `seen` yet.
fn of_topic(
    topic: &AskedTopic,
    seen: &mut BTreeSet<(m::TopicName, i32)>,
    status: &QuorumStatus,
    ctx: &RequestContext,
    now: i64,
) -> TopicData {
    let one = |index: i32| {
        let answer = PartitionData::default().with_partition_index(index);
        if topic.topic_name.as_str() != METADATA_TOPIC || index != 0 {
            let error = ErrorCode::UnknownTopicOrPartition;
            return answer.with_error_code(error as i16);
        }
        let Some(leader) = status.leader else {
            return answer.with_error_code(ErrorCode::LeaderNotAvailable as i16);
        };
        let end = |last: u64| i64::try_from(last).unwrap_or(i64::MAX).saturating_add(1);
        let replica = |id: &BrokerId| {
            let seen = status.seen.get(id).copied().unwrap_or_default();
            let directory_id = seen.directory_id.filter(|_| ctx.api_version >= 2);
            let state = ReplicaState::default()
                .with_replica_id(node(*id))
                .with_replica_directory_id(directory_id.unwrap_or_default());
            if *id == status.node_id {
                let end = end(status.last_log_index);
                state
                    .with_log_end_offset(end)
                    .with_last_fetch_timestamp(now)
                    .with_last_caught_up_timestamp(now)
            } else {
                state
                    .with_log_end_offset(status.matched.get(id).map_or(-1, |last| end(*last)))
                    .with_last_fetch_timestamp(seen.fetched_ms.unwrap_or(-1))
                    .with_last_caught_up_timestamp(seen.caught_up_ms.unwrap_or(-1))
            }
        };
        answer
            .with_leader_id(node(leader))
            .with_leader_epoch(i32::try_from(status.term).unwrap_or(i32::MAX))
            .with_high_watermark(end(status.applied_index))
            .with_current_voters(status.voters.keys().map(replica).collect())
            .with_observers(status.observers.keys().map(replica).collect())
    };
    let indexes = topic.partitions.iter().map(|partition| partition.partition_index);
    let partitions =
        indexes.filter(|index| seen.insert((topic.topic_name.clone(), *index))).map(one).collect();
    TopicData::default()
        .with_topic_name(topic_name(topic.topic_name.as_str()))
        .with_partitions(partitions)
}

fn node(id: BrokerId) -> m::BrokerId {
    m::BrokerId(id.0)
}

/// The answer to a request that is not allowed.
pub(crate) fn refused(error: ErrorCode) -> m::DescribeQuorumResponse {
    m::DescribeQuorumResponse::default()
        .with_error_code(error.code())
        .with_error_message(Some(text(error.name())))
}

errors!(DescribeQuorumResponse, |all, each| {
    each(all.error_code);
    let partitions = all.topics.iter().flat_map(|topic| &topic.partitions);
    partitions.for_each(|one| each(one.error_code));
});
