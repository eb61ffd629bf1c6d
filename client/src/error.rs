//! What can go wrong, as data; the text says what to do.

use std::fmt;
use std::io;
use std::time::Duration;

use kafka_protocol::error::ResponseError;

/// An error code of the Kafka protocol, as a broker sent it. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErrorCode(pub i16);

#[allow(missing_docs, reason = "named as in Kafka's protocol guide")]
impl ErrorCode {
    pub const OFFSET_OUT_OF_RANGE: Self = Self(1);
    pub const CORRUPT_MESSAGE: Self = Self(2);
    pub const UNKNOWN_TOPIC_OR_PARTITION: Self = Self(3);
    pub const LEADER_NOT_AVAILABLE: Self = Self(5);
    pub const NOT_LEADER_OR_FOLLOWER: Self = Self(6);
    pub const REQUEST_TIMED_OUT: Self = Self(7);
    pub const MESSAGE_TOO_LARGE: Self = Self(10);
    pub const COORDINATOR_LOAD_IN_PROGRESS: Self = Self(14);
    pub const COORDINATOR_NOT_AVAILABLE: Self = Self(15);
    pub const NOT_COORDINATOR: Self = Self(16);
    pub const INVALID_TOPIC_EXCEPTION: Self = Self(17);
    pub const ILLEGAL_GENERATION: Self = Self(22);
    pub const UNKNOWN_MEMBER_ID: Self = Self(25);
    pub const REBALANCE_IN_PROGRESS: Self = Self(27);
    pub const UNSUPPORTED_VERSION: Self = Self(35);
    pub const TOPIC_ALREADY_EXISTS: Self = Self(36);
    pub const INVALID_PARTITIONS: Self = Self(37);
    pub const NOT_CONTROLLER: Self = Self(41);
    pub const INVALID_REQUEST: Self = Self(42);
    pub const POLICY_VIOLATION: Self = Self(44);
    pub const OUT_OF_ORDER_SEQUENCE_NUMBER: Self = Self(45);
    pub const DUPLICATE_SEQUENCE_NUMBER: Self = Self(46);
    pub const INVALID_PRODUCER_EPOCH: Self = Self(47);
    pub const KAFKA_STORAGE_ERROR: Self = Self(56);
    pub const UNKNOWN_PRODUCER_ID: Self = Self(59);
    pub const NON_EMPTY_GROUP: Self = Self(68);
    pub const GROUP_ID_NOT_FOUND: Self = Self(69);
    pub const FENCED_LEADER_EPOCH: Self = Self(74);
    pub const UNKNOWN_LEADER_EPOCH: Self = Self(75);
    pub const MEMBER_ID_REQUIRED: Self = Self(79);
    pub const FENCED_INSTANCE_ID: Self = Self(82);
    pub const GROUP_SUBSCRIBED_TO_TOPIC: Self = Self(86);
    pub const INVALID_RECORD: Self = Self(87);

    /// `None` for 0, which means success.
    #[must_use]
    pub fn from_wire(code: i16) -> Option<Self> {
        (code != 0).then_some(Self(code))
    }

    /// Whether the same request may succeed later without anybody doing anything.
    #[must_use]
    pub fn is_retriable(self) -> bool {
        ResponseError::try_from_code(self.0).is_some_and(|error| error.is_retriable())
    }

    /// The name in CamelCase, as `UnknownTopicOrPartition`; `Unknown(N)` for a code that is newer than this client.
    #[must_use]
    pub fn name(self) -> String {
        ResponseError::try_from_code(self.0).map_or_else(|| "None".to_owned(), |error| format!("{error:?}"))
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

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
            Some(message) => write!(f, "{message} ({:?})", self.code),
            None => write!(f, "{:?}", self.code),
        }
    }
}

impl std::error::Error for BrokerError {}

impl BrokerError {
    /// `Err` unless `code` is 0.
    pub(crate) fn check(code: i16, message: Option<&str>) -> Result<(), Self> {
        match ErrorCode::from_wire(code) {
            None => Ok(()),
            Some(code) => Err(Self { code, message: message.filter(|text| !text.is_empty()).map(str::to_owned) }),
        }
    }
}

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No connection could be made to any of the addresses.
    #[error(
        "no broker answers at {address}: {reason}. Likely causes: the broker is not running or listens on another \
         address or port (its `listeners`); the port belongs to a listener with another security protocol; or the address that \
         the broker tells to its clients (`advertised.listeners`) cannot be reached from here"
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
    #[error("the broker at {address} does not offer {api} in a version this client speaks ({ours}; offered: {theirs})")]
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
    #[error("the answer of {address} is not a valid Kafka response ({reason}); is this the port of a plaintext Kafka listener?")]
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
    #[error("it is closed")]
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
