//! How a value is written that other versions of Letterbox read: records in the log, operations
//! and their outcomes on their way.
//!
//! A JSON object `{"k": kind, "v": version, "d": fields}`. The version is the kind's own. A field
//! that an older reader may overlook is added with a default and the version stays; a change that
//! an older reader would get wrong raises it, and an older reader then refuses the value by name.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A value on its way: what every version can read of a value of any other version.
#[derive(Serialize, Deserialize)]
pub(super) struct Envelope {
    /// The kind.
    pub(super) k: String,
    /// The version of the kind.
    pub(super) v: u16,
    /// Whether a reader that does not know it may skip it. Records only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) i: bool,
    /// The fields.
    pub(super) d: Value,
}

/// What was to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A record of the metadata log.
    Record,
    /// An operation that somebody asks for.
    Operation,
    /// The outcome of an operation.
    Outcome,
}

impl Subject {
    /// What to do about one that is too new.
    fn remedy(self) -> &'static str {
        match self {
            Self::Record => "Start the newer version again",
            Self::Operation => "Upgrade the controllers before the brokers",
            Self::Outcome => {
                "Upgrade this broker, or ask again when the controllers are of one \
                version"
            }
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Record => "metadata record",
            Self::Operation => "controller operation",
            Self::Outcome => "outcome of a controller operation",
        })
    }
}

/// Why something cannot be read. A node that cannot read a record must stop: its image would
/// differ from the others'. An operation is refused to who asks for it.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer version of Letterbox.
    #[error(
        "{subject} of kind \"{kind}\" version {version} was written by a newer version; this one \
         reads that kind up to version {readable:?}. {remedy}",
        remedy = subject.remedy()
    )]
    FromTheFuture {
        /// What it is.
        subject: Subject,
        /// Its kind.
        kind: String,
        /// Its version.
        version: u16,
        /// The newest version this one reads; `None` when it does not know the kind.
        readable: Option<u16>,
    },
    /// Not what it should be at all, or a field is missing or of another type.
    #[error("{subject} is damaged")]
    Malformed {
        /// What it is.
        subject: Subject,
        /// What is wrong with its JSON.
        #[source]
        source: serde_json::Error,
    },
}

/// Lists every kind of an enum once: its name outside and the newest version that is read and
/// written.
macro_rules! kinds {
    ($enum:ident, $subject:expr; $($variant:ident $name:literal $version:literal,)+) => {
        impl $enum {
            fn to_envelope(&self) -> Result<Envelope, serde_json::Error> {
                let (k, v, d) = match self {
                    $(Self::$variant(value) => ($name, $version, serde_json::to_value(value)?),)+
                };
                Ok(Envelope { k: k.to_owned(), v, i: false, d })
            }

            fn from_envelope(envelope: Envelope) -> Result<Self, DecodeError> {
                let readable = match envelope.k.as_str() {
                    $($name => Some($version),)+
                    _ => None,
                };
                let future = |kind, version| DecodeError::FromTheFuture {
                    subject: $subject,
                    kind,
                    version,
                    readable,
                };
                if readable.is_none_or(|newest| envelope.v > newest) {
                    return Err(future(envelope.k, envelope.v));
                }
                match envelope.k.as_str() {
                    $($name => serde_json::from_value(envelope.d).map(Self::$variant),)+
                    _ => return Err(future(envelope.k, envelope.v)),
                }
                .map_err(|source| DecodeError::Malformed { subject: $subject, source })
            }
        }
    };
}

pub(super) use kinds;
