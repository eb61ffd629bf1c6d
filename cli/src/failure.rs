//! How a tool ends when it cannot do what was asked.

use std::io::{self, Write};

use letterbox_client::{BrokerError, Error, ErrorCode};

/// The end of a tool, with what is printed where. The exit code is 1, except after
/// [`Failure::Asked`].
#[derive(Debug)]
pub enum Failure {
    /// A line and then the table of options, on stderr.
    Usage(String, String),
    /// The answer to `--help` or `--version`, or a complaint where Kafka's tool ends well all the
    /// same, on stdout: exit code 0.
    Asked(String),
    /// A line on stderr.
    Stderr(String),
    /// A line on stdout: where some of Kafka's tools complain.
    Stdout(String),
    /// Nobody reads the output any more.
    Output(io::Error),
}

impl Failure {
    /// Prints it; returns the exit code.
    pub fn report(self, stdout: &mut dyn Write, stderr: &mut dyn Write) -> i32 {
        let (code, result) = match self {
            Self::Usage(line, usage) => (1, write!(stderr, "{line}\n{usage}")),
            Self::Asked(text) => (0, stdout.write_all(text.as_bytes())),
            Self::Stderr(line) => (1, writeln!(stderr, "{line}")),
            Self::Stdout(line) => (1, writeln!(stdout, "{line}")),
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => (1, Ok(())),
            Self::Output(error) => (1, writeln!(stderr, "cannot write the output: {error}")),
        };
        // There is nobody to tell when this fails as well.
        let _ = result;
        code
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Stderr(format!("Error: {}", plain(&error)))
    }
}

/// The sentence of an error as Kafka's tools print it: the broker's own, else that of Kafka's
/// exception for the code.
pub(crate) fn plain(error: &Error) -> String {
    match error {
        Error::Broker(error) => sentence(error),
        other => other.to_string(),
    }
}

/// The sentence of a broker's refusal.
pub(crate) fn sentence(error: &BrokerError) -> String {
    match &error.message {
        Some(message) => message.clone(),
        None => java(error.code).map_or_else(
            || format!("{:?} ({})", error.code, error.code.code()),
            |(_, sentence)| sentence.to_owned(),
        ),
    }
}

/// A refusal with the name of Kafka's exception in front, as Java prints a cause.
pub(crate) fn java_cause(error: &BrokerError) -> String {
    match java(error.code) {
        Some((class, _)) => format!("org.apache.kafka.common.errors.{class}: {}", sentence(error)),
        None => format!("{}: {}", java_class(error.code), sentence(error)),
    }
}

/// The class of Kafka's exception for a code, in full.
pub(crate) fn java_class(code: ErrorCode) -> String {
    let name = format!("{code:?}");
    let class = java(code).map_or_else(
        || format!("{}Exception", name.strip_suffix("Error").unwrap_or(&name)),
        |(class, _)| class.to_owned(),
    );
    format!("org.apache.kafka.common.errors.{class}")
}

/// Kafka's exception class and its default sentence, for the codes that scripts see.
fn java(code: ErrorCode) -> Option<(&'static str, &'static str)> {
    Some(match code {
        ErrorCode::OffsetOutOfRange => (
            "OffsetOutOfRangeException",
            "The requested offset is not within the range of offsets maintained by the server.",
        ),
        ErrorCode::UnknownTopicOrPartition => {
            ("UnknownTopicOrPartitionException", "This server does not host this topic-partition.")
        }
        ErrorCode::LeaderNotAvailable => (
            "LeaderNotAvailableException",
            "There is no leader for this topic-partition as we are in the middle of a leadership \
             election.",
        ),
        ErrorCode::MessageTooLarge => (
            "RecordTooLargeException",
            "The request included a message larger than the max message size the server will \
             accept.",
        ),
        ErrorCode::CoordinatorNotAvailable => {
            ("CoordinatorNotAvailableException", "The coordinator is not available.")
        }
        ErrorCode::NotCoordinator => {
            ("NotCoordinatorException", "This is not the correct coordinator.")
        }
        ErrorCode::InvalidTopicException => (
            "InvalidTopicException",
            "The request attempted to perform an operation on an invalid topic.",
        ),
        ErrorCode::UnknownMemberId => {
            ("UnknownMemberIdException", "The coordinator is not aware of this member.")
        }
        ErrorCode::InvalidRequest => (
            "InvalidRequestException",
            "This most likely occurs because of a request being malformed by the client library or \
             the message was sent to an incompatible broker. See the broker logs for more \
             details.",
        ),
        ErrorCode::PolicyViolation => {
            ("PolicyViolationException", "Request parameters do not satisfy the configured policy.")
        }
        ErrorCode::KafkaStorageError => {
            ("KafkaStorageException", "Disk error when trying to access log file on the disk.")
        }
        ErrorCode::PreferredLeaderNotAvailable => {
            ("PreferredLeaderNotAvailableException", "The preferred leader was not available.")
        }
        ErrorCode::EligibleLeadersNotAvailable => (
            "EligibleLeadersNotAvailableException",
            "Eligible topic partition leaders are not available.",
        ),
        ErrorCode::NoReassignmentInProgress => {
            ("NoReassignmentInProgressException", "No partition reassignment is in progress.")
        }
        ErrorCode::RequestTimedOut => ("TimeoutException", "The request timed out."),
        ErrorCode::NonEmptyGroup => ("GroupNotEmptyException", "The group is not empty."),
        ErrorCode::GroupIdNotFound => ("GroupIdNotFoundException", "The group id does not exist."),
        ErrorCode::GroupSubscribedToTopic => (
            "GroupSubscribedToTopicException",
            "Deleting offsets of a topic is forbidden while the consumer group is actively \
             subscribed to it.",
        ),
        _ => return None,
    })
}
