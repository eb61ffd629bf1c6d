//! Kafka's error codes as far as operations on metadata answer with them.

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

macro_rules! codes {
    ($($name:ident = $code:literal $kafka:literal,)+) => {
        /// The errors of this module, under Kafka's names.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(i16)]
        pub enum ErrorCode {
            $(#[doc = $kafka] $name = $code,)+
        }

        impl ErrorCode {
            /// Every error of this module.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Kafka's number.
            #[must_use]
            pub const fn code(self) -> i16 {
                self as i16
            }

            /// Kafka's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $kafka,)+
                }
            }
        }
    };
}

codes! {
    UnknownServerError = -1 "UNKNOWN_SERVER_ERROR",
    UnknownTopicOrPartition = 3 "UNKNOWN_TOPIC_OR_PARTITION",
    RequestTimedOut = 7 "REQUEST_TIMED_OUT",
    InvalidTopic = 17 "INVALID_TOPIC_EXCEPTION",
    TopicAuthorizationFailed = 29 "TOPIC_AUTHORIZATION_FAILED",
    TopicAlreadyExists = 36 "TOPIC_ALREADY_EXISTS",
    InvalidPartitions = 37 "INVALID_PARTITIONS",
    InvalidReplicationFactor = 38 "INVALID_REPLICATION_FACTOR",
    InvalidReplicaAssignment = 39 "INVALID_REPLICA_ASSIGNMENT",
    InvalidConfig = 40 "INVALID_CONFIG",
    NotController = 41 "NOT_CONTROLLER",
    InvalidRequest = 42 "INVALID_REQUEST",
    PolicyViolation = 44 "POLICY_VIOLATION",
    KafkaStorageError = 56 "KAFKA_STORAGE_ERROR",
    FencedLeaderEpoch = 74 "FENCED_LEADER_EPOCH",
    InvalidUpdateVersion = 95 "INVALID_UPDATE_VERSION",
    UnknownTopicId = 100 "UNKNOWN_TOPIC_ID",
    DuplicateBrokerRegistration = 101 "DUPLICATE_BROKER_REGISTRATION",
    BrokerIdNotRegistered = 102 "BROKER_ID_NOT_REGISTERED",
    InconsistentClusterId = 104 "INCONSISTENT_CLUSTER_ID",
    IneligibleReplica = 107 "INELIGIBLE_REPLICA",
    NewLeaderElected = 108 "NEW_LEADER_ELECTED",
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message crate knows Kafka's table; ours must agree with it.
    #[test]
    fn every_code_is_kafkas() {
        for error in ErrorCode::ALL {
            let theirs = kafka_protocol::error::ResponseError::try_from_code(error.code());
            assert!(theirs.is_some(), "{error:?}");
            let theirs = format!("{:?}", theirs.unwrap()).to_lowercase();
            let ours = error.name().replace('_', "").to_lowercase();
            assert!(theirs == ours || ours == format!("{theirs}exception"), "{theirs} against {ours}");
        }
    }
}
