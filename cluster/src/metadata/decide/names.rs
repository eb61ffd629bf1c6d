//! Names of topics.

use letterbox_protocol::ErrorCode;
use letterbox_protocol::topics::{
    METADATA_TOPIC, TOPIC_NAME_LEN_MAX, WrongTopicName, check_topic_name,
};

use crate::metadata::image::metric_name;
use crate::metadata::{ApiError, MetadataImage};

/// Checks a topic's name by Kafka's rules, with messages of the same form.
///
/// # Errors
/// INVALID_TOPIC_EXCEPTION.
pub fn validate_topic_name(name: &str) -> Result<(), ApiError> {
    let reason = match check_topic_name(name) {
        Ok(()) => return Ok(()),
        Err(WrongTopicName::Empty) => "the empty string is not allowed".to_owned(),
        Err(WrongTopicName::Dots) => format!("'{name}' is not allowed"),
        Err(WrongTopicName::TooLong) => format!(
            "the length of '{name}' is longer than the max allowed length {TOPIC_NAME_LEN_MAX}"
        ),
        Err(WrongTopicName::Characters) => format!(
            "'{name}' contains one or more characters other than ASCII alphanumerics, '.', '_' and \
             '-'"
        ),
    };
    let message = format!("Topic name is invalid: {reason}");
    Err(ApiError::new(ErrorCode::InvalidTopicException, message))
}

/// Checks that `name` is not the quorum's own, and free, also as the name of a metric.
///
/// # Errors
/// INVALID_REQUEST, TOPIC_ALREADY_EXISTS, INVALID_TOPIC_EXCEPTION for a collision.
pub(super) fn check_free(image: &MetadataImage, name: &str) -> Result<(), ApiError> {
    if name == METADATA_TOPIC {
        return Err(ApiError::new(
            ErrorCode::InvalidRequest,
            format!("{name} is the cluster's own and cannot be created."),
        ));
    }
    if image.topic(name).is_some() {
        return Err(ApiError::new(
            ErrorCode::TopicAlreadyExists,
            format!("Topic '{name}' already exists."),
        ));
    }
    let form = metric_name(name);
    match form.and_then(|form| image.topics_by_metric_name.get(&*form)) {
        Some(other) => Err(ApiError::new(
            ErrorCode::InvalidTopicException,
            format!("Topic '{name}' collides with existing topic: {other}"),
        )),
        None => Ok(()),
    }
}
