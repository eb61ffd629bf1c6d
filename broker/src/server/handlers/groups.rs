//! The group APIs (8–16): who coordinates, and the coordinator's answers.
//!
//! FindCoordinator 0–6 is answered here; all else is the coordinator's (`crate::coordinator`).
//!
//! Transactions are not offered, and a producer that wants them must stop at once. From version 4
//! on an error with a message of our own does that in every client. Clients of older versions
//! (librdkafka) stop at an error about authorization alone, which it is not, and ask for ever after
//! any other: they are sent here, and InitProducerId stops them.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages as m;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::ErrorCode;

use super::init_producer_id::NO_TRANSACTIONS;
use super::topics::{OFFSETS_TOPIC, auto_create};
use super::{Shared, metadata, text};
use crate::coordinator::partition_for;
use crate::server::context::{Operation, RequestContext, Resource};

const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;

/// Answers FindCoordinator; makes `__consumer_offsets` when it is first needed.
pub(crate) async fn find_coordinator(
    shared: Arc<Shared>,
    ctx: RequestContext,
    request: m::FindCoordinatorRequest,
) -> m::FindCoordinatorResponse {
    let batched = ctx.api_version >= 4;
    // Each key once: an answer is many times larger than a short key.
    let mut seen = BTreeSet::new();
    let keys = if batched { request.coordinator_keys } else { vec![request.key] };
    let keys = keys.into_iter().filter(|key| seen.insert(key.clone()));
    if request.key_type == GROUP && shared.image().topic(OFFSETS_TOPIC).is_none() {
        auto_create(&shared, vec![Arc::from(OFFSETS_TOPIC)]).await;
    }
    let mut answers: Vec<Coordinator> =
        keys.map(|key| one(&shared, &ctx, request.key_type, key)).collect();
    if batched {
        return m::FindCoordinatorResponse::default().with_coordinators(answers);
    }
    let answer = answers.pop().unwrap_or_default();
    m::FindCoordinatorResponse::default()
        .with_error_code(answer.error_code)
        .with_error_message(answer.error_message)
        .with_node_id(answer.node_id)
        .with_host(answer.host)
        .with_port(answer.port)
}

fn one(shared: &Shared, ctx: &RequestContext, key_type: i8, key: StrBytes) -> Coordinator {
    let refuse = |key: StrBytes, error: ErrorCode, message: &str| {
        let message = (!message.is_empty()).then(|| text(message));
        Coordinator::default()
            .with_key(key)
            .with_error_code(error as i16)
            .with_error_message(message)
            .with_node_id(m::BrokerId(-1))
            .with_port(-1)
    };
    match key_type {
        GROUP => {}
        TRANSACTION if ctx.api_version >= 4 => {
            return refuse(key, ErrorCode::UnsupportedVersion, NO_TRANSACTIONS);
        }
        TRANSACTION => {
            let here = metadata::endpoint_of(shared, &shared.image(), ctx, shared.config.node_id);
            return match here {
                Some((host, port)) => Coordinator::default()
                    .with_key(key)
                    .with_node_id(m::BrokerId(shared.config.node_id.0))
                    .with_host(host)
                    .with_port(port),
                None => refuse(key, ErrorCode::CoordinatorNotAvailable, ""),
            };
        }
        _ => {
            return refuse(
                key,
                ErrorCode::InvalidRequest,
                "this kind of coordinator is not offered by this version",
            );
        }
    }
    if !ctx.may(Operation::Describe, Resource::Group(key.as_str())) {
        return refuse(key, ErrorCode::GroupAuthorizationFailed, "");
    }
    let image = shared.image();
    let found = image.topic(OFFSETS_TOPIC).and_then(|topic| {
        let count = i32::try_from(topic.partitions.len()).ok()?;
        let leader = topic.partition(partition_for(key.as_str(), count))?.leader?;
        let (host, port) = metadata::endpoint_of(shared, &image, ctx, leader)?;
        Some((leader, host, port))
    });
    match found {
        Some((leader, host, port)) => Coordinator::default()
            .with_key(key)
            .with_node_id(m::BrokerId(leader.0))
            .with_host(host)
            .with_port(port),
        None => refuse(key, ErrorCode::CoordinatorNotAvailable, ""),
    }
}
