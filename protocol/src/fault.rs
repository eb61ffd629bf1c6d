//! Why bytes were refused: as data, so that one log line explains it and a handler can tell causes
//! apart.

use std::fmt;

/// A message that was refused, or could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {problem}{}", api_name(*.api_key, *.api_version), At(.path), Left(*.remaining))]
pub struct WireError {
    /// The API key the frame claims; `None` when the frame ends before it.
    pub api_key: Option<i16>,
    /// The version the frame claims; `None` when the frame ends before it.
    pub api_version: Option<i16>,
    /// From the message down to the field, in Kafka's names; empty when no field is meant.
    pub path: Vec<Step>,
    /// What is wrong there.
    pub problem: Problem,
    /// Bytes that were left in the frame where the problem was met.
    pub remaining: usize,
}

/// One step of a path into a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A field, by Kafka's name.
    Field(&'static str),
    /// An element of the array before it.
    Element(usize),
    /// A tagged field that the schema does not name.
    Tag(u32),
}

/// What is wrong with a message. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The frame ends inside a value of fixed size.
    #[error("needs {needed} bytes")]
    Truncated {
        /// The size of the value.
        needed: usize,
    },
    /// A length goes past the end of the frame.
    #[error("claims a length of {claimed} bytes")]
    LengthTooLarge {
        /// What was claimed.
        claimed: u64,
    },
    /// A count of elements that cannot fit into the frame.
    #[error("claims {claimed} elements")]
    CountTooLarge {
        /// What was claimed.
        claimed: u64,
    },
    /// A length or count below −1.
    #[error("has the negative length {claimed}")]
    NegativeLength {
        /// What was claimed.
        claimed: i32,
    },
    /// Null, where this version has no null.
    #[error("is null, which this version does not allow")]
    Null,
    /// The byte before a structure that may be null is neither -1, for null, nor 1.
    #[error("begins with {byte}, which is neither -1 for null nor 1")]
    NullMark {
        /// What stands there.
        byte: i8,
    },
    /// A varint of more than 32 bits.
    #[error("has a varint of more than 32 bits")]
    VarintTooLong,
    /// A string longer than Kafka's may be.
    #[error("is a string of {claimed} bytes; the longest may have 32767")]
    StringTooLong {
        /// Its length.
        claimed: usize,
    },
    /// A string that is not UTF-8.
    #[error("is not valid UTF-8")]
    NotUtf8,
    /// A tagged field whose value is not as long as its size says.
    #[error("has a size of {size} bytes, but its value takes {used}")]
    TagSize {
        /// The size before the value.
        size: usize,
        /// What the value took.
        used: usize,
    },
    /// The number of a tagged field beyond int32.
    #[error("has a tagged field with the number {tag}; the largest is 2147483647")]
    TagTooLarge {
        /// The number.
        tag: u32,
    },
    /// A tagged field that exists in other versions only.
    #[error("is a tagged field of other versions")]
    TagOfOtherVersion,
    /// More elements and tagged fields in all than one message may have.
    #[error("has more than {max} elements in all")]
    TooManyElements {
        /// [`super::check::ELEMENTS_MAX`].
        max: usize,
    },
    /// An API that Letterbox does not serve.
    #[error("unknown API key")]
    UnsupportedApi,
    /// A version that Letterbox does not serve.
    #[error("unsupported version; served are {min} to {max}")]
    UnsupportedVersion {
        /// Lowest version that is served.
        min: i16,
        /// Highest version that is served.
        max: i16,
    },
    /// The codec refused what the schema allows, or what a handler made.
    #[error("codec: {0}")]
    Codec(String),
}

impl WireError {
    /// A problem with a message as a whole.
    pub(super) fn of(api_key: i16, api_version: i16, problem: Problem) -> WireError {
        WireError {
            api_key: Some(api_key),
            api_version: Some(api_version),
            path: Vec::new(),
            problem,
            remaining: 0,
        }
    }

    /// The path in Kafka's words: `Topics[2].Name`.
    pub fn field_path(&self) -> String {
        PathText(&self.path).to_string()
    }
}

struct PathText<'a>(&'a [Step]);

impl fmt::Display for PathText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Element(at) => write!(f, "[{at}]")?,
                Step::Field(name) => write!(f, "{}{name}", if i == 0 { "" } else { "." })?,
                Step::Tag(tag) => write!(f, "{}tag {tag}", if i == 0 { "" } else { "." })?,
            }
        }
        Ok(())
    }
}

struct At<'a>(&'a [Step]);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", PathText(self.0)) }
    }
}

struct Left(usize);

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " ({} bytes left in the frame)", self.0)
    }
}

fn api_name(api_key: Option<i16>, api_version: Option<i16>) -> String {
    let name = api_key.and_then(super::apis::find).map(|api| api.name);
    match (name, api_key, api_version) {
        (Some(name), _, Some(version)) => format!("{name} v{version}"),
        (_, Some(key), Some(version)) => format!("API key {key} v{version}"),
        (_, Some(key), None) => format!("API key {key}"),
        (_, None, _) => "request".to_owned(),
    }
}
