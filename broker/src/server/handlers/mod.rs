//! One file per family of APIs; each header says the versions served and the KIPs followed.
//!
//! Generated message structs stop here: what is below works with the broker's own types.

pub(super) mod acls;
pub(super) mod api_versions;
pub(super) mod configs;
pub(super) mod delete_records;
pub(super) mod fetch;
pub(super) mod groups;
pub(super) mod init_producer_id;
pub(super) mod list_offsets;
pub(super) mod log_dirs;
pub(super) mod metadata;
pub(super) mod offset_for_leader_epoch;
pub(super) mod produce;
pub(super) mod producers;
pub(super) mod quorum;
pub(super) mod topic_partitions;
pub(super) mod topics;

use std::time::Duration;

use kafka_protocol::messages::TopicName;
use kafka_protocol::protocol::StrBytes;

use super::Shared;
use crate::controller::ControllerError;
use crate::metadata::ApiError;

/// How long a reader waits for what was acknowledged before it came to be durable, so that it may
/// be seen; a disk that takes longer for a sync is in trouble.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// A string for a message.
fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// A topic's name for a message.
fn topic_name(name: &str) -> TopicName {
    TopicName(text(name))
}

/// What a client is told when the controller could not take its operation.
fn of_controller(error: &ControllerError) -> ApiError {
    ApiError::new(error.code(), error.to_string())
}
