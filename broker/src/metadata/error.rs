//! What operations on metadata are refused with.

use letterbox_protocol::ErrorCode;

/// A refusal that goes back to the client: Kafka's code and a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {message}")]
pub struct ApiError {
    /// Kafka's error.
    pub code: ErrorCode,
    /// What is wrong and what would be right; empty when the code says it all.
    pub message: String,
}

impl ApiError {
    /// An error with a message.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<ErrorCode> for ApiError {
    fn from(code: ErrorCode) -> Self {
        Self { code, message: String::new() }
    }
}
