//! AddRaftVoter 0, RemoveRaftVoter 0: who votes on the metadata (KIP-853). Answered when the change
//! is committed, whoever leads. Who is to be added observes already: a node does that by itself
//! when it is started with `controller.quorum.bootstrap.servers`.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use uuid::Uuid;

use super::{Errors, Services, errors, message, of_controller};
use crate::metadata::ApiError;
use crate::quorum::VoterChange;

/// How long a removal takes at most; its request names no time.
const REMOVE_WITHIN: Duration = Duration::from_secs(30);

/// Has an observer vote.
pub(crate) async fn add(
    services: Arc<Services>,
    request: m::AddRaftVoterRequest,
) -> m::AddRaftVoterResponse {
    let names = &services.config.controller.name;
    let is_named = |it: &m::add_raft_voter_request::Listener| it.name.eq_ignore_ascii_case(names);
    if !request.listeners.iter().any(is_named) {
        let message = format!(
            "Add voter request didn't include the endpoint for the default listener {names}"
        );
        return added(Err(ApiError::new(ErrorCode::InvalidRequest, message)));
    }
    let within = u64::try_from(request.timeout_ms).unwrap_or_default();
    let key = (request.voter_id, request.voter_directory_id);
    let change = |node, directory_id| VoterChange::Add { node, directory_id };
    let within = Duration::from_millis(within);
    added(carry_out(&services, request.cluster_id.as_ref(), key, change, within).await)
}

/// Has a voter vote no more.
pub(crate) async fn remove(
    services: Arc<Services>,
    request: m::RemoveRaftVoterRequest,
) -> m::RemoveRaftVoterResponse {
    let key = (request.voter_id, request.voter_directory_id);
    let change = |node, directory_id| VoterChange::Remove { node, directory_id };
    removed(carry_out(&services, request.cluster_id.as_ref(), key, change, REMOVE_WITHIN).await)
}

async fn carry_out(
    services: &Services,
    cluster_id: Option<&StrBytes>,
    (node, directory_id): (i32, Uuid),
    change: impl Fn(BrokerId, Uuid) -> VoterChange,
    within: Duration,
) -> Result<(), ApiError> {
    let own = services.quorum.image().cluster_id.clone().unwrap_or_default();
    if cluster_id.is_some_and(|asked| **asked != *own) {
        return Err(ErrorCode::InconsistentClusterId.into());
    }
    if node < 0 {
        let message = "the request names no voter: its id must not be negative";
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    let change = change(BrokerId(node), directory_id);
    let changed = services.controller.change_voters(&change, within).await;
    changed.map_err(|error| of_controller(&error))
}

/// The answer to AddRaftVoter.
pub(crate) fn added(result: Result<(), ApiError>) -> m::AddRaftVoterResponse {
    let (code, message) = told(result);
    m::AddRaftVoterResponse::default().with_error_code(code).with_error_message(message)
}

/// The answer to RemoveRaftVoter.
pub(crate) fn removed(result: Result<(), ApiError>) -> m::RemoveRaftVoterResponse {
    let (code, message) = told(result);
    m::RemoveRaftVoterResponse::default().with_error_code(code).with_error_message(message)
}

fn told(result: Result<(), ApiError>) -> (i16, Option<StrBytes>) {
    match result {
        Ok(()) => (ErrorCode::None.code(), None),
        Err(error) => (error.code.code(), message(&error)),
    }
}

errors!(AddRaftVoterResponse, |all, each| each(all.error_code));
errors!(RemoveRaftVoterResponse, |all, each| each(all.error_code));
