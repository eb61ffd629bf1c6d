//! Topics: making, growing and deleting them; looking at their partitions, moving them, and electing
//! their leaders.

pub(in crate::server) mod create;
pub(in crate::server) mod delete;
pub(in crate::server) mod elect;
pub(in crate::server) mod grow;
pub(in crate::server) mod partitions;
pub(in crate::server) mod reassign;

use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::ErrorCode;

use super::{Errors, Services, errors, of_controller, text, topic_name};
use crate::controller::ControllerError;
use crate::metadata::ApiError;
use crate::server::changes::Changed;

const TIMED_OUT: i16 = ErrorCode::RequestTimedOut as i16;

/// The sentence of a refusal, when it has one.
fn message(error: &ApiError) -> Option<StrBytes> {
    (!error.message.is_empty()).then(|| text(&error.message))
}

/// Whether the change took effect and does not show yet.
fn is_late<T>(changed: &Result<Changed<T>, ControllerError>) -> bool {
    changed.as_ref().is_ok_and(|changed| !changed.is_shown)
}
