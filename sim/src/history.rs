//! What clients saw: one JSON object per line, appended when it happened, read by [`crate::check`].
//!
//! An operation is written twice: `invoke` before it begins, and `ok`, `fail` or `info` when it has
//! ended. `fail` is for errors that prove that nothing happened and nothing was retried; everything
//! else is `info` (it may have happened, it may still happen). An operation that has only its
//! `invoke` counts as `info`.
//!
//! Values are unique in the whole history (client number shifted left by 40, plus a counter). A
//! record's payload repeats where it belongs ([`payload`]), so that a record in a wrong place shows
//! itself.
//!
//! ```
//! use letterbox_sim::history::Event;
//! let line = r#"{"process":"producer-1","op":7,"phase":"ok","time_ns":12,"kind":"send","idempotent":true,
//!     "records":[{"topic":"orders","partition":0,"value":1099511627776,"offset":41}]}"#;
//! let event: Event = serde_json::from_str(line).unwrap();
//! assert_eq!(event.op, 7);
//! ```

pub mod payload;

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Who did it: one sequential client.
    pub process: String,
    /// The number of the operation within its process; grows with the order of invocation.
    pub op: u64,
    /// How far it is.
    pub phase: Phase,
    /// Nanoseconds since the start of the run, on one clock for all processes.
    pub time_ns: u64,
    /// What it is.
    #[serde(flatten)]
    pub action: Action,
    /// Why it failed, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It begins.
    Invoke,
    /// It has happened.
    Ok,
    /// It has not happened and never will.
    Fail,
    /// Nobody knows.
    Info,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Action {
    /// Records sent in one operation. At `ok` each has its offset.
    Send {
        /// In the order of sending.
        records: Vec<Sent>,
        /// As in the request: -1 all, 1 leader, 0 none.
        #[serde(default = "acks_all")]
        acks: i16,
        /// Whether the producer is idempotent: then duplicates and reordering are errors.
        #[serde(default)]
        idempotent: bool,
        /// Counts the producers that this process has had: order is promised within one.
        #[serde(default)]
        session: u64,
    },
    /// Records received in one poll, in the order of receiving.
    Poll {
        /// Of any partitions, mixed.
        records: Vec<Read>,
    },
    /// The process reads these partitions from these offsets on; what it read before does not count
    /// for order.
    Assign {
        /// Where reading goes on; an offset of -1 is "not known".
        partitions: Vec<Position>,
    },
    /// The process got these partitions from its group, with the committed offsets it found (-1:
    /// none).
    Rebalance {
        /// The group.
        group: String,
        /// The group's generation.
        generation: i64,
        /// The member's id.
        member: String,
        /// What it owns from now on.
        partitions: Vec<Position>,
    },
    /// Offsets committed for a group.
    Commit {
        /// The group.
        group: String,
        /// The generation the member believed in; -1 outside of a generation.
        generation: i64,
        /// The member's id.
        member: String,
        /// The next offset to read, per partition.
        offsets: Vec<Position>,
        /// Set when going back is intended.
        #[serde(default)]
        reset: bool,
    },
    /// After the last fault was healed: all records of `start..end` on one broker, read from there.
    Scan {
        /// Whose log.
        broker: String,
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// The first offset that was looked for; in the first chunk, the log start offset.
        start: i64,
        /// Exclusive; in the last chunk, the high watermark.
        end: i64,
        /// All that was found in between.
        records: Vec<Read>,
    },
    /// Something was broken on purpose.
    Fault {
        /// `kill`, `power cut`, …
        what: String,
        /// The broker or link.
        #[serde(default)]
        target: String,
    },
}

/// A record that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Unique in the history.
    pub value: u64,
    /// What the broker answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<i64>,
}

/// A record that was received. Has `payload` as received, or `value` when the client has checked
/// it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// The value in the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<u64>,
    /// The payload as received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
}

/// A place in a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// The next offset to read; -1 when there is none.
    pub offset: i64,
}

fn acks_all() -> i16 {
    -1
}

/// A history that is being written by many clients. Cheap to clone; all clones are the same
/// history.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Vec<Event>>>);

impl History {
    /// Appends one event.
    pub fn push(&self, event: Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    /// What was written so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The history as JSON lines.
    ///
    /// # Errors
    /// When a value cannot be written as JSON.
    pub fn to_json_lines(&self) -> serde_json::Result<String> {
        let mut text = String::new();
        for event in self.events() {
            text.push_str(&serde_json::to_string(&event)?);
            text.push('\n');
        }
        Ok(text)
    }
}
