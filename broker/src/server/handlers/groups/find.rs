//! FindCoordinator 0–6: which broker coordinates a group.
//!
//! KIPs: 98 (transactions), 699 (several keys from version 4 on).
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
use letterbox_protocol::model::BrokerId;

use super::{Errors, Services, errors, text};
use crate::coordinator::{GROUP_METADATA_TOPIC, partition_for};
use crate::request::RequestContext;
use crate::security::{Operation, Resource};
use crate::server::handlers::cluster::metadata::endpoint_of;
use crate::server::handlers::data::init_producer_id::NO_TRANSACTIONS;
use crate::server::handlers::topics::create::auto_create;

const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;
/// From this version on several keys are asked for, and errors have messages.
const SEVERAL_KEYS: i16 = 4;

/// Answers FindCoordinator; makes `__consumer_offsets` when it is first needed.
pub(crate) async fn find(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::FindCoordinatorRequest,
) -> m::FindCoordinatorResponse {
    let are_several = ctx.api_version >= SEVERAL_KEYS;
    // Each key once: an answer is many times larger than a short key.
    let mut seen = BTreeSet::new();
    let mut keys = if are_several { request.coordinator_keys } else { vec![request.key] };
    keys.retain(|key| seen.insert(key.clone()));
    let may_coordinate = |key: &StrBytes| ctx.may(Operation::Describe, Resource::Group(key));
    if request.key_type == GROUP
        && services.image().topic(GROUP_METADATA_TOPIC).is_none()
        && keys.iter().any(may_coordinate)
    {
        auto_create(&services, vec![Arc::from(GROUP_METADATA_TOPIC)]).await;
    }
    let answers = keys.into_iter().map(|key| {
        let answer = Coordinator::default().with_key(key.clone());
        match coordinator_of(&services, &ctx, request.key_type, &key) {
            Ok((broker, host, port)) => {
                answer.with_node_id(m::BrokerId(broker.0)).with_host(host).with_port(port)
            }
            Err((error, message)) => answer
                .with_error_code(error.code())
                .with_error_message(message.map(text))
                .with_node_id(m::BrokerId(-1))
                .with_port(-1),
        }
    });
    let mut answers: Vec<Coordinator> = answers.collect();
    if are_several {
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

/// A broker and where this client reaches it.
type Found = Result<(BrokerId, StrBytes, i32), (ErrorCode, Option<&'static str>)>;

fn coordinator_of(services: &Services, ctx: &RequestContext, key_type: i8, key: &str) -> Found {
    let refused = |error| (error, None);
    match key_type {
        GROUP => {
            ctx.check(Operation::Describe, Resource::Group(key)).map_err(refused)?;
            of_group(services, ctx, key).ok_or(refused(ErrorCode::CoordinatorNotAvailable))
        }
        TRANSACTION => {
            ctx.check(Operation::Describe, Resource::TransactionalId(key)).map_err(refused)?;
            if ctx.api_version >= SEVERAL_KEYS {
                return Err((ErrorCode::UnsupportedVersion, Some(NO_TRANSACTIONS)));
            }
            let here = services.config.node_id;
            endpoint_of(services, &services.image(), ctx, here)
                .map(|(host, port)| (here, host, port))
                .ok_or(refused(ErrorCode::CoordinatorNotAvailable))
        }
        _ => Err((
            ErrorCode::InvalidRequest,
            Some("this kind of coordinator is not offered by this version"),
        )),
    }
}

/// The leader of the partition that a group lies in.
fn of_group(
    services: &Services,
    ctx: &RequestContext,
    group: &str,
) -> Option<(BrokerId, StrBytes, i32)> {
    let image = services.image();
    let topic = image.topic(GROUP_METADATA_TOPIC)?;
    let count = i32::try_from(topic.partitions.len()).ok()?;
    let leader = topic.partition(partition_for(group, count))?.leader?;
    let (host, port) = endpoint_of(services, &image, ctx, leader)?;
    Some((leader, host, port))
}

errors!(FindCoordinatorResponse, |all, each| {
    each(all.error_code);
    all.coordinators.iter().for_each(|one| each(one.error_code));
});
