//! UnregisterBroker 0: a broker that is gone for good leaves the cluster. As with Kafka its replicas
//! stay assigned to it; a node that is no voter leaves the quorum, too.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages as m;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;

use super::{Errors, Services, errors, message, of_controller};
use crate::metadata::ApiError;
use crate::metadata::decide::UnregisterBroker;
use crate::quorum::VoterChange;
use crate::server::changes::Within;

/// How long each of the two steps takes at most; the request names no time.
const WITHIN: Duration = Duration::from_secs(10);
const WITHIN_MS: i32 = 10_000;

/// Answers UnregisterBroker.
pub(crate) async fn unregister(
    services: Arc<Services>,
    request: m::UnregisterBrokerRequest,
) -> m::UnregisterBrokerResponse {
    unregistered(carry_out(&services, BrokerId(request.broker_id.0)).await)
}

/// Out of the metadata first: a process that still runs as this broker learns so that it is no longer
/// one, which a node that is out of the quorum hears from nobody. Where the quorum has not followed,
/// whoever asks again has it follow.
async fn carry_out(services: &Services, id: BrokerId) -> Result<(), ApiError> {
    let image = services.newest_image(WITHIN).await?;
    let unregistered = if image.brokers.contains_key(&id) {
        let done = services.change(UnregisterBroker { id }, Within::asked(WITHIN_MS, false)).await;
        done.map_err(|error| of_controller(&error))?.outcome
    } else {
        Err(UnregisterBroker { id }.not_registered())
    };
    if let Err(error) = &unregistered
        && error.code != ErrorCode::BrokerIdNotRegistered
    {
        return unregistered;
    }
    let forget = VoterChange::Forget { node: id };
    let forgotten = services.controller.change_voters(&forget, WITHIN).await;
    forgotten.map_err(|error| of_controller(&error))?;
    unregistered
}

/// The answer.
pub(crate) fn unregistered(result: Result<(), ApiError>) -> m::UnregisterBrokerResponse {
    let answer = m::UnregisterBrokerResponse::default().with_error_message(None);
    match result {
        Ok(()) => answer.with_error_code(ErrorCode::None.code()),
        Err(error) => answer.with_error_code(error.code.code()).with_error_message(message(&error)),
    }
}

errors!(UnregisterBrokerResponse, |all, each| each(all.error_code));
