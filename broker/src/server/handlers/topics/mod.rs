//! Topics: making, growing and deleting them, and looking at their partitions.

pub(in crate::server) mod create;
pub(in crate::server) mod delete;
pub(in crate::server) mod grow;
pub(in crate::server) mod partitions;

use std::time::Duration;

use letterbox_protocol::ErrorCode;

use super::{Errors, Services, errors, of_controller, text, topic_name};
use crate::controller::ControllerError;
use crate::server::changes::Changed;

const TIMED_OUT: i16 = ErrorCode::RequestTimedOut as i16;

/// How long an answer waits until the change shows: `timeout_ms` of the request; what only checks
/// changes nothing. What it asks for is done even when the answer is REQUEST_TIMED_OUT, as with
/// Kafka.
fn show_within(timeout_ms: i32, validate_only: bool) -> Duration {
    let ms = if validate_only { 0 } else { u64::try_from(timeout_ms).unwrap_or(0) };
    Duration::from_millis(ms)
}

/// Whether the change took effect and does not show yet.
fn is_late<T>(changed: &Result<Changed<T>, ControllerError>) -> bool {
    changed.as_ref().is_ok_and(|changed| !changed.is_shown)
}
