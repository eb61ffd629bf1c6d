//! Topics: making, growing and deleting them; looking at their partitions, moving them, and electing
//! their leaders.

pub(in crate::server) mod create;
pub(in crate::server) mod delete;
pub(in crate::server) mod elect;
pub(in crate::server) mod grow;
pub(in crate::server) mod partitions;
pub(in crate::server) mod reassign;

use letterbox_protocol::ErrorCode;

use super::{Errors, Services, errors, message, of_controller, text, topic_name};
use crate::controller::ControllerError;
use crate::server::changes::Changed;

const TIMED_OUT: i16 = ErrorCode::RequestTimedOut as i16;

/// Whether the change took effect and does not show yet.
fn is_late<T>(changed: &Result<Changed<T>, ControllerError>) -> bool {
    changed.as_ref().is_ok_and(|changed| !changed.is_shown)
}
