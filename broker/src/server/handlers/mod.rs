//! One file per API or family of APIs; each header says the versions served and the KIPs followed.
//!
//! Each answer says in its file which errors it carries ([`Errors`]). Generated message structs
//! stop here: what is below works with the broker's own types.

pub(super) mod cluster;
pub(super) mod data;
pub(super) mod groups;
pub(super) mod security;
pub(super) mod topics;

use std::time::Duration;

use kafka_protocol::messages::TopicName;
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::text;

use super::Services;
use super::errors::{Errors, errors};
use crate::controller::ControllerError;
use crate::metadata::ApiError;

/// How long a reader waits for what was acknowledged before it came to be durable, so that it may
/// be seen; a disk that takes longer for a sync is in trouble.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// A topic's name for a message.
fn topic_name(name: &str) -> TopicName {
    TopicName(text(name))
}

/// What a client is told when the controller could not take its operation.
pub(super) fn of_controller(error: &ControllerError) -> ApiError {
    match error {
        ControllerError::Refused(error) => error.clone(),
        error => ApiError::new(error.code(), error.to_string()),
    }
}

/// The sentence of a refusal, when it has one.
fn message(error: &ApiError) -> Option<StrBytes> {
    (!error.message.is_empty()).then(|| text(&error.message))
}
