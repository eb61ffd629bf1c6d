//! Metadata 0–13 and DescribeCluster 0–2: who is there, who leads what, how to reach it.
//!
//! KIPs: 516 (topic ids), 430 (authorized operations), 919 (endpoint type), 1073 (fenced brokers).
//! Each client is told the endpoints of the listener it came in on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kafka_protocol::messages as m;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;

use super::{Shared, text, topic_name};
use crate::metadata::decide::{is_internal_topic, validate_topic_name};
use crate::metadata::{MetadataImage, Topic};
use crate::server::context::{Operation, RequestContext, Resource};

/// What is answered for authorized operations that were not asked for (KIP-430).
const NOT_ASKED: i32 = i32::MIN;
/// Every operation on a topic (bits of Kafka's `AclOperation`): READ, WRITE, CREATE, DELETE, ALTER,
/// DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS.
pub(super) const TOPIC_OPERATIONS: i32 =
    1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11;
/// Every operation on the cluster: CREATE, ALTER, DESCRIBE, CLUSTER_ACTION, DESCRIBE_CONFIGS,
/// ALTER_CONFIGS, IDEMPOTENT_WRITE.
const CLUSTER_OPERATIONS: i32 = 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12;

/// Whether a list of topics in a Metadata request stands for all of them: an empty one does in
/// version 0. Later ones say null for that, and with an empty list ask for the brokers alone.
pub(crate) fn is_all(version: i16, topics: &[MetadataRequestTopic]) -> bool {
    version == 0 && topics.is_empty()
}

/// Answers Metadata, making topics on the way where the client and `auto.create.topics.enable`
/// allow it.
pub(crate) async fn metadata(
    shared: Arc<Shared>,
    ctx: RequestContext,
    request: m::MetadataRequest,
) -> m::MetadataResponse {
    let may_create =
        request.allow_auto_topic_creation && shared.config.is_true("auto.create.topics.enable");
    let version = ctx.api_version;
    let mut image = shared.image();
    let mut create_errors = BTreeMap::new();
    // Version 0 asks for everything with an empty list, later ones with null.
    let mut asked = request.topics.filter(|topics| !is_all(version, topics));
    if let Some(topics) = &mut asked {
        // An id says which topic is meant: Java's admin client sends an empty name beside it.
        for topic in topics.iter_mut().filter(|topic| !topic.topic_id.is_nil()) {
            topic.name = None;
        }
        // Each is answered once, however often it is asked for.
        let mut seen = BTreeSet::new();
        topics.retain(|topic| seen.insert((topic.name.clone(), topic.topic_id)));
    }
    if let (true, Some(topics)) = (may_create, &asked) {
        let names: Vec<Arc<str>> = topics
            .iter()
            .filter_map(|topic| topic.name.as_ref())
            .map(|name| Arc::from(name.as_str()))
            .collect();
        let missing: Vec<Arc<str>> = names
            .into_iter()
            .filter(|name| {
                image.topic(name).is_none() && ctx.may(Operation::Create, Resource::Topic(name))
            })
            .collect();
        if !missing.is_empty() {
            create_errors = super::topics::auto_create(&shared, missing).await;
            image = shared.image();
        }
    }
    let with_operations = request.include_topic_authorized_operations;
    let topics = match asked {
        None => image
            .topics()
            .filter(|topic| ctx.may(Operation::Describe, Resource::Topic(&topic.name)))
            .map(|topic| found(&shared, &image, topic, with_operations))
            .collect(),
        Some(asked) => {
            let one = |topic: m::metadata_request::MetadataRequestTopic| {
                let hit = match &topic.name {
                    Some(name) => image.topic(name.as_str()),
                    None => image.topic_by_id(&topic.topic_id),
                };
                if let Some(topic) =
                    hit.filter(|topic| ctx.may(Operation::Describe, Resource::Topic(&topic.name)))
                {
                    return found(&shared, &image, topic, with_operations);
                }
                let error = match &topic.name {
                    Some(name) => create_errors
                        .get(name.as_str())
                        .copied()
                        .unwrap_or_else(|| missing_error(name.as_str())),
                    None => ErrorCode::UnknownTopicId,
                };
                let mut answer = MetadataResponseTopic::default()
                    .with_error_code(error as i16)
                    .with_topic_id(topic.topic_id)
                    .with_topic_authorized_operations(NOT_ASKED);
                // Before version 12 the name cannot be null.
                answer.name = topic.name.or_else(|| (version < 12).then(Default::default));
                answer
            };
            asked.into_iter().map(one).collect()
        }
    };
    let cluster_operations =
        if request.include_cluster_authorized_operations { CLUSTER_OPERATIONS } else { NOT_ASKED };
    m::MetadataResponse::default()
        .with_brokers(
            brokers(&shared, &image, &ctx)
                .map(|broker| {
                    MetadataResponseBroker::default()
                        .with_node_id(broker.id)
                        .with_host(broker.host)
                        .with_port(broker.port)
                        .with_rack(broker.rack)
                })
                .collect(),
        )
        .with_cluster_id(image.cluster_id.as_ref().map(|id| text(id)))
        .with_controller_id(m::BrokerId(image.live_brokers().next().map_or(-1, |(id, _)| id.0)))
        .with_topics(topics)
        .with_cluster_authorized_operations(cluster_operations)
}

pub(super) fn missing_error(name: &str) -> ErrorCode {
    if validate_topic_name(name).is_err() {
        ErrorCode::InvalidTopicException
    } else {
        ErrorCode::UnknownTopicOrPartition
    }
}

/// Whether a replica is out of use. As with Kafka, a partition whose log is out of use has no
/// leader until it is back.
pub(super) fn is_offline(
    shared: &Shared,
    image: &MetadataImage,
    topic: &Topic,
    partition: i32,
    replica: BrokerId,
) -> bool {
    !image.is_live(replica)
        || replica == shared.config.node_id && shared.replicas.is_offline(&topic.id, partition)
}

fn found(
    shared: &Shared,
    image: &MetadataImage,
    topic: &Topic,
    with_operations: bool,
) -> MetadataResponseTopic {
    let ids = |ids: &[BrokerId]| ids.iter().map(|id| m::BrokerId(id.0)).collect::<Vec<_>>();
    let partitions = topic.indexed_partitions().map(|(index, partition)| {
        let is_offline = |id: &BrokerId| is_offline(shared, image, topic, index, *id);
        let leader = partition.leader.filter(|leader| !is_offline(leader));
        MetadataResponsePartition::default()
            .with_error_code(if leader.is_some() {
                ErrorCode::None
            } else {
                ErrorCode::LeaderNotAvailable
            } as i16)
            .with_partition_index(index)
            .with_leader_id(m::BrokerId(leader.map_or(-1, |id| id.0)))
            .with_leader_epoch(partition.leader_epoch)
            .with_replica_nodes(ids(&partition.replicas))
            .with_isr_nodes(ids(&partition.isr))
            .with_offline_replicas(
                partition
                    .replicas
                    .iter()
                    .filter(|id| is_offline(id))
                    .map(|id| m::BrokerId(id.0))
                    .collect(),
            )
    });
    MetadataResponseTopic::default()
        .with_name(Some(topic_name(&topic.name)))
        .with_topic_id(topic.id)
        .with_is_internal(is_internal_topic(&topic.name))
        .with_partitions(partitions.collect())
        .with_topic_authorized_operations(if with_operations {
            TOPIC_OPERATIONS
        } else {
            NOT_ASKED
        })
}

struct Reachable {
    id: m::BrokerId,
    host: StrBytes,
    port: i32,
    rack: Option<StrBytes>,
}

/// The live brokers with their endpoints on the listener the client uses; a broker without that
/// listener cannot be reached by this client and is left out.
fn brokers<'a>(
    shared: &'a Shared,
    image: &'a MetadataImage,
    ctx: &'a RequestContext,
) -> impl Iterator<Item = Reachable> + 'a {
    let listener =
        shared.config.listeners.get(ctx.listener).map_or("", |listener| listener.name.as_str());
    image.live_brokers().filter_map(move |(id, broker)| {
        let endpoint = broker.endpoint(listener)?;
        Some(Reachable {
            id: m::BrokerId(id.0),
            host: text(&endpoint.host),
            port: i32::from(endpoint.port),
            rack: broker.rack.as_deref().map(text),
        })
    })
}

/// Where one broker is reached by this client; for FindCoordinator.
pub(crate) fn endpoint_of(
    shared: &Shared,
    image: &MetadataImage,
    ctx: &RequestContext,
    broker: BrokerId,
) -> Option<(StrBytes, i32)> {
    brokers(shared, image, ctx)
        .find(|reachable| reachable.id.0 == broker.0)
        .map(|reachable| (reachable.host, reachable.port))
}

/// Answers DescribeCluster. Controllers are not told apart: brokers and controllers are one process
/// here, and its controller listener takes no clients.
pub(crate) fn describe_cluster(
    shared: &Shared,
    ctx: &RequestContext,
    request: &m::DescribeClusterRequest,
) -> m::DescribeClusterResponse {
    const BROKERS: i8 = 1;
    let image = shared.image();
    let mut response = m::DescribeClusterResponse::default()
        .with_cluster_id(image.cluster_id.as_ref().map_or_else(StrBytes::default, |id| text(id)))
        .with_endpoint_type(request.endpoint_type)
        .with_cluster_authorized_operations(if request.include_cluster_authorized_operations {
            CLUSTER_OPERATIONS
        } else {
            NOT_ASKED
        });
    if ctx.api_version >= 1 && request.endpoint_type != BROKERS {
        let (error, message) = match request.endpoint_type {
            2 => (
                ErrorCode::MismatchedEndpointType,
                "This endpoint is a broker; ask for brokers (endpoint type 1).",
            ),
            _ => (ErrorCode::UnsupportedEndpointType, "Unsupported endpoint type"),
        };
        return response.with_error_code(error as i16).with_error_message(Some(text(message)));
    }
    response.controller_id = m::BrokerId(image.live_brokers().next().map_or(-1, |(id, _)| id.0));
    response.with_brokers(
        brokers(shared, &image, ctx)
            .map(|broker| {
                m::describe_cluster_response::DescribeClusterBroker::default()
                    .with_broker_id(broker.id)
                    .with_host(broker.host)
                    .with_port(broker.port)
                    .with_rack(broker.rack)
            })
            .collect(),
    )
}
