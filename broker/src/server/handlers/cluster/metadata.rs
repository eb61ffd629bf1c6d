//! Metadata 0–13 and DescribeCluster 0–2: who is there, who leads what, how to reach it.
//!
//! KIPs: 516 (topic ids), 430 (authorized operations), 919 (endpoint type), 1073 (fenced brokers).
//! Each client is told the endpoints of the listener it came in on, and of the topics that it may
//! see: whether others exist it does not learn.

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

use super::{Errors, Services, errors, text, topic_name};
use crate::metadata::decide::{METADATA_TOPIC, is_internal_topic, validate_topic_name};
use crate::metadata::{MetadataImage, PartitionState, Topic};
use crate::request::{OPERATIONS_NOT_ASKED, RequestContext};
use crate::security::{Operation, Resource};
use crate::server::handlers::topics::create::auto_create;

/// Whether a list of topics in a Metadata request stands for all of them: an empty one does in
/// version 0. Later ones say null for that, and with an empty list ask for the brokers alone.
pub(crate) fn is_all(version: i16, topics: &[MetadataRequestTopic]) -> bool {
    version == 0 && topics.is_empty()
}

/// Answers Metadata, making topics on the way where the client and `auto.create.topics.enable`
/// allow it.
pub(crate) async fn metadata(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::MetadataRequest,
) -> m::MetadataResponse {
    let may_create =
        request.allow_auto_topic_creation && services.config.is_true("auto.create.topics.enable");
    let asked = asked(ctx.api_version, request.topics);
    let not_made = match &asked {
        Some(topics) if may_create => create_missing(&services, &ctx, topics).await,
        _ => BTreeMap::new(),
    };
    let image = services.image();
    let shown = |topic: &Topic| {
        let operations = if request.include_topic_authorized_operations {
            ctx.authorized_operations(Resource::Topic(&topic.name))
        } else {
            OPERATIONS_NOT_ASKED
        };
        found(&services, &image, topic).with_topic_authorized_operations(operations)
    };
    let topics = match asked {
        None => {
            let may = |topic: &&Arc<Topic>| may_see(&ctx, &topic.name);
            image.topics().filter(may).map(|topic| shown(topic)).collect()
        }
        Some(asked) => asked
            .into_iter()
            .map(|topic| match look_up(&ctx, &image, &topic, &not_made) {
                Ok(found) => shown(found),
                Err(error) => missing(&ctx, topic, error),
            })
            .collect(),
    };
    let brokers = brokers(&services, &image, &ctx).map(|broker| {
        MetadataResponseBroker::default()
            .with_node_id(broker.id)
            .with_host(broker.host)
            .with_port(broker.port)
            .with_rack(broker.rack)
    });
    m::MetadataResponse::default()
        .with_brokers(brokers.collect())
        .with_cluster_id(image.cluster_id.as_ref().map(|id| text(id)))
        .with_controller_id(controller(&services, &image))
        .with_topics(topics)
        .with_cluster_authorized_operations(cluster_operations(
            &ctx,
            request.include_cluster_authorized_operations,
        ))
}

/// The topics that are asked for, each once; `None` for all.
fn asked(
    version: i16,
    topics: Option<Vec<MetadataRequestTopic>>,
) -> Option<Vec<MetadataRequestTopic>> {
    // Version 0 asks for everything with an empty list, later ones with null.
    let mut topics = topics.filter(|topics| !is_all(version, topics))?;
    // An id says which topic is meant: Java's admin client sends an empty name beside it.
    for topic in topics.iter_mut().filter(|topic| !topic.topic_id.is_nil()) {
        topic.name = None;
    }
    // Each is answered once, however often it is asked for.
    let mut seen = BTreeSet::new();
    topics.retain(|topic| seen.insert((topic.name.clone(), topic.topic_id)));
    Some(topics)
}

fn may_see(ctx: &RequestContext, topic: &str) -> bool {
    ctx.may(Operation::Describe, Resource::Topic(topic))
}

/// Makes those of `topics` that are not there and that the caller may make. Why others were not
/// made, by name.
async fn create_missing(
    services: &Arc<Services>,
    ctx: &RequestContext,
    topics: &[MetadataRequestTopic],
) -> BTreeMap<String, ErrorCode> {
    let image = services.image();
    let names = topics.iter().filter_map(|topic| topic.name.as_ref());
    let names = names.filter(|name| name.as_str() != METADATA_TOPIC);
    let missing = names.filter(|name| image.topic(name).is_none() && may_see(ctx, name));
    let missing: Vec<Arc<str>> = missing.map(|name| Arc::from(name.as_str())).collect();
    if missing.is_empty() {
        return BTreeMap::new();
    }
    let may_all = ctx.may(Operation::Create, Resource::Cluster);
    let may = |name: &Arc<str>| may_all || ctx.may(Operation::Create, Resource::Topic(name));
    let (allowed, refused): (Vec<_>, Vec<_>) = missing.into_iter().partition(may);
    let mut not_made = match allowed.is_empty() {
        true => BTreeMap::new(),
        false => auto_create(services, allowed).await,
    };
    let refused = refused.into_iter();
    not_made.extend(refused.map(|name| (name.to_string(), ErrorCode::TopicAuthorizationFailed)));
    not_made
}

/// The topic that is asked for, or why it is not shown.
fn look_up<'a>(
    ctx: &RequestContext,
    image: &'a MetadataImage,
    asked: &MetadataRequestTopic,
    not_made: &BTreeMap<String, ErrorCode>,
) -> Result<&'a Topic, ErrorCode> {
    let Some(name) = &asked.name else {
        let found = image.topic_by_id(&asked.topic_id).ok_or(ErrorCode::UnknownTopicId)?;
        ctx.check(Operation::Describe, Resource::Topic(&found.name))?;
        return Ok(found);
    };
    ctx.check(Operation::Describe, Resource::Topic(name))?;
    let why = || not_made.get(name.as_str()).copied().unwrap_or_else(|| missing_error(name));
    image.topic(name).map(|topic| &**topic).ok_or_else(why)
}

fn missing(
    ctx: &RequestContext,
    asked: MetadataRequestTopic,
    error: ErrorCode,
) -> MetadataResponseTopic {
    MetadataResponseTopic::default()
        .with_error_code(error.code())
        .with_topic_id(asked.topic_id)
        .with_topic_authorized_operations(OPERATIONS_NOT_ASKED)
        // Before version 12 the name cannot be null.
        .with_name(asked.name.or_else(|| (ctx.api_version < 12).then(Default::default)))
}

/// What the caller may do to the cluster: nothing is told to one that may not see it.
fn cluster_operations(ctx: &RequestContext, is_asked: bool) -> i32 {
    match is_asked {
        false => OPERATIONS_NOT_ASKED,
        true if ctx.may(Operation::Describe, Resource::Cluster) => {
            ctx.authorized_operations(Resource::Cluster)
        }
        true => 0,
    }
}

pub(crate) fn missing_error(name: &str) -> ErrorCode {
    if validate_topic_name(name).is_err() {
        ErrorCode::InvalidTopicException
    } else {
        ErrorCode::UnknownTopicOrPartition
    }
}

/// A partition as clients are told of it.
pub(crate) struct Told {
    /// LEADER_NOT_AVAILABLE without a leader.
    pub(crate) error: ErrorCode,
    /// −1: none.
    pub(crate) leader: m::BrokerId,
    pub(crate) replicas: Vec<m::BrokerId>,
    pub(crate) isr: Vec<m::BrokerId>,
    /// Replicas that are out of use.
    pub(crate) offline: Vec<m::BrokerId>,
}

/// What clients are told of a partition. As with Kafka, one whose log is out of use has no leader
/// until it is back.
pub(crate) fn told(
    services: &Services,
    image: &MetadataImage,
    topic: &Topic,
    index: i32,
    partition: &PartitionState,
) -> Told {
    let is_offline = |id: &BrokerId| {
        !image.is_live(*id)
            || partition.offline.contains(id)
            || *id == services.config.node_id && services.replicas.is_offline(&topic.id, index)
    };
    let ids = |ids: &[BrokerId]| ids.iter().map(|id| m::BrokerId(id.0)).collect();
    let offline = partition.replicas.iter().filter(|id| is_offline(id));
    let leader = partition.leader.filter(|leader| !is_offline(leader));
    Told {
        error: leader.map_or(ErrorCode::LeaderNotAvailable, |_| ErrorCode::None),
        leader: m::BrokerId(leader.map_or(-1, |id| id.0)),
        replicas: ids(&partition.replicas),
        isr: ids(&partition.isr),
        offline: offline.map(|id| m::BrokerId(id.0)).collect(),
    }
}

fn found(services: &Services, image: &MetadataImage, topic: &Topic) -> MetadataResponseTopic {
    let partitions = topic.indexed_partitions().map(|(index, partition)| {
        let told = told(services, image, topic, index, partition);
        MetadataResponsePartition::default()
            .with_error_code(told.error.code())
            .with_partition_index(index)
            .with_leader_id(told.leader)
            .with_leader_epoch(partition.leader_epoch)
            .with_replica_nodes(told.replicas)
            .with_isr_nodes(told.isr)
            .with_offline_replicas(told.offline)
    });
    MetadataResponseTopic::default()
        .with_name(Some(topic_name(&topic.name)))
        .with_topic_id(topic.id)
        .with_is_internal(is_internal_topic(&topic.name))
        .with_partitions(partitions.collect())
}

/// Where clients send changes of the metadata: here, because every broker passes them on to the
/// active controller, which clients need not reach (KIP-590).
fn controller(services: &Services, image: &MetadataImage) -> m::BrokerId {
    let own = Some(services.config.node_id).filter(|id| image.is_live(*id));
    let any = || image.live_brokers().next().map(|(id, _)| *id);
    m::BrokerId(own.or_else(any).map_or(-1, |id| id.0))
}

struct Reachable {
    id: m::BrokerId,
    is_fenced: bool,
    host: StrBytes,
    port: i32,
    rack: Option<StrBytes>,
}

/// The live brokers with their endpoints on the listener the client uses; a broker without that
/// listener cannot be reached by this client and is left out.
fn brokers<'a>(
    services: &'a Services,
    image: &'a MetadataImage,
    ctx: &'a RequestContext,
) -> impl Iterator<Item = Reachable> + 'a {
    registered(services, image, ctx).filter(|broker| !broker.is_fenced)
}

/// As [`brokers`], with those that are fenced.
fn registered<'a>(
    services: &'a Services,
    image: &'a MetadataImage,
    ctx: &'a RequestContext,
) -> impl Iterator<Item = Reachable> + 'a {
    let listener = services
        .config
        .listeners
        .get(ctx.caller.listener)
        .map_or("", |listener| listener.name.as_str());
    image.brokers.iter().filter_map(move |(id, broker)| {
        let endpoint = broker.endpoint(listener)?;
        Some(Reachable {
            id: m::BrokerId(id.0),
            is_fenced: broker.fenced,
            host: text(&endpoint.host),
            port: i32::from(endpoint.port),
            rack: broker.rack.as_deref().map(text),
        })
    })
}

/// Where one broker is reached by this client; for FindCoordinator.
pub(crate) fn endpoint_of(
    services: &Services,
    image: &MetadataImage,
    ctx: &RequestContext,
    broker: BrokerId,
) -> Option<(StrBytes, i32)> {
    brokers(services, image, ctx)
        .find(|reachable| reachable.id.0 == broker.0)
        .map(|reachable| (reachable.host, reachable.port))
}

/// Answers DescribeCluster. Controllers are not told apart: brokers and controllers are one process
/// here, and its controller listener takes no clients.
pub(crate) fn describe_cluster(
    services: &Services,
    ctx: &RequestContext,
    request: &m::DescribeClusterRequest,
) -> m::DescribeClusterResponse {
    const BROKERS: i8 = 1;
    let image = services.image();
    let mut response = m::DescribeClusterResponse::default()
        .with_cluster_id(image.cluster_id.as_ref().map_or_else(StrBytes::default, |id| text(id)))
        .with_endpoint_type(request.endpoint_type)
        .with_cluster_authorized_operations(cluster_operations(
            ctx,
            request.include_cluster_authorized_operations,
        ));
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
    response.controller_id = controller(services, &image);
    response.with_brokers(
        registered(services, &image, ctx)
            .filter(|broker| request.include_fenced_brokers || !broker.is_fenced)
            .map(|broker| {
                m::describe_cluster_response::DescribeClusterBroker::default()
                    .with_broker_id(broker.id)
                    .with_host(broker.host)
                    .with_port(broker.port)
                    .with_rack(broker.rack)
                    .with_is_fenced(broker.is_fenced)
            })
            .collect(),
    )
}

errors!(MetadataResponse, |all, each| {
    each(all.error_code);
    for topic in &all.topics {
        each(topic.error_code);
        topic.partitions.iter().for_each(|one| each(one.error_code));
    }
});
errors!(DescribeClusterResponse, |all, each| each(all.error_code));
