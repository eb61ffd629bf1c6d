//! What operations on metadata are refused with.

use letterbox_protocol::ErrorCode;
use serde::{Deserialize, Serialize};

/// A refusal that goes back to the client: Kafka's code and a sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code:?}: {message}")]
pub struct ApiError {
    /// Kafka's error.
    #[serde(with = "number")]
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

/// An error code as its number; one that this version does not know is UNKNOWN_SERVER_ERROR.
mod number {
    use letterbox_protocol::ErrorCode;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(code: &ErrorCode, to: S) -> Result<S::Ok, S::Error> {
        code.code().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ErrorCode, D::Error> {
        let code = i16::deserialize(from)?;
        Ok(ErrorCode::from_code(code).unwrap_or(ErrorCode::UnknownServerError))
    }
}
