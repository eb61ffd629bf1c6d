//! What can go wrong, as data; the text says what to do.

use std::fmt;
use std::io;
use std::time::Duration;

use letterbox_protocol::ErrorCode;

/// A broker's refusal: its code and, where the API has one, its sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerError {
    /// Why.
    pub code: ErrorCode,
    /// What the broker says about it; not all APIs have it.
    pub message: Option<String>,
}

impl fmt::Display for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => write!(f, "{message} ({:?} ({}))", self.code, self.code.code()),
            None => write!(f, "{:?} ({})", self.code, self.code.code()),
        }
    }
}

impl std::error::Error for BrokerError {}

impl BrokerError {
    /// `Err` unless `code` is 0.
    pub(crate) fn check(code: i16, message: Option<&str>) -> Result<(), Self> {
        match ErrorCode::of_answer(code) {
            None => Ok(()),
            Some(error) => {
                let newer = || {
                    ErrorCode::from_code(code)
                        .is_none()
                        .then(|| format!("error code {code}, which is newer than this client"))
                };
                Err(Self {
                    code: error,
                    message: message
                        .filter(|text| !text.is_empty())
                        .map(str::to_owned)
                        .or_else(newer),
                })
            }
        }
    }
}

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No connection could be made to any of the addresses.
    #[error(
        "no broker answers at {address}: {reason}. Likely causes: the broker is not running or \
         listens on another address or port (its `listeners`); the port belongs to a listener with \
         another security protocol; or the address that the broker tells to its clients \
         (`advertised.listeners`) cannot be reached from here"
    )]
    Connect {
        /// The address or addresses that were tried.
        address: String,
        /// What the last attempt ended with.
        reason: String,
    },
    /// `host:port` was expected.
    #[error("invalid address {address:?}: give host:port, as localhost:9092 or [::1]:9092")]
    Address {
        /// As it was given.
        address: String,
    },
    /// The connection ended before the answer came. The broker may have carried out the request.
    #[error("the connection to {address} ended: {reason}")]
    Disconnected {
        /// The other side.
        address: String,
        /// Why, as far as it is known.
        reason: String,
    },
    /// The deadline passed. The broker may have carried out the request.
    #[error("{what} did not complete within {} ms", after.as_millis())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// The broker refused.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The broker does not speak a version of this API that the client speaks.
    #[error(
        "the broker at {address} does not offer {api} in a version this client speaks ({ours}; \
         offered: {theirs})"
    )]
    Unsupported {
        /// The broker.
        address: String,
        /// The name of the API.
        api: String,
        /// What this client speaks, as `1-9`.
        ours: String,
        /// What the broker offers, as `1-9`, or `none`.
        theirs: String,
    },
    /// The other side sent something that is not a Kafka response.
    #[error(
        "the answer of {address} is not a valid Kafka response ({reason}); is this the port of a \
         plaintext Kafka listener?"
    )]
    Malformed {
        /// The other side.
        address: String,
        /// What does not fit.
        reason: String,
    },
    /// A record batch of a topic cannot be read.
    #[error("partition {partition} has an unreadable record batch at offset {offset}: {reason}")]
    Batch {
        /// The partition, as `topic-0`.
        partition: String,
        /// Where reading stopped.
        offset: i64,
        /// What does not fit.
        reason: String,
    },
    /// What was asked cannot be done with the options as they are.
    #[error("{0}")]
    Invalid(String),
    /// The producer, consumer or client was closed.
    #[error("the client is closed")]
    Closed,
}

impl Error {
    /// The broker's code, when a broker refused.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Broker(error) => Some(error.code),
            _ => None,
        }
    }

    /// Whether trying again may help without anybody doing anything.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Disconnected { .. } | Self::Timeout { .. } => true,
            Self::Broker(error) => error.code.is_retriable(),
            _ => false,
        }
    }

    pub(crate) fn disconnected(address: &str, error: &io::Error) -> Self {
        Self::Disconnected { address: address.to_owned(), reason: error.to_string() }
    }
}
