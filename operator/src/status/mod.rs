//! What is said: pure functions from spec, observation, plan and outcome to status.

mod cluster;
mod topic;
mod waits;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

pub use crate::observe::Fault;
pub use cluster::cluster_status;
pub use topic::topic_status;

#[cfg(feature = "kubernetes")]
use crate::api::{DEGRADED, PAUSED, PROGRESSING, WaitStatus};
use crate::api::{READY, condition, find_condition, set_condition};

/// What one condition says.
struct Told {
    status: &'static str,
    reason: String,
    message: String,
}

/// So many characters are told of each thing: the words of others may be many.
const WORDS_MAX: usize = 2_000;

/// `message`, or the beginning of a long one.
fn words(message: impl ToString) -> String {
    let mut message = message.to_string();
    if let Some((end, _)) = message.char_indices().nth(WORDS_MAX) {
        message.truncate(end);
        message.push('…');
    }
    message
}

impl Told {
    fn new(status: &'static str, reason: &str, message: impl ToString) -> Self {
        Self { status, reason: reason.to_owned(), message: words(message) }
    }

    fn fault(status: &'static str, fault: &Fault) -> Self {
        Self::new(status, &fault.reason, &fault.message)
    }
}

/// The conditions of an object of this generation, as they become.
struct Conditions<'a> {
    all: Vec<Condition>,
    generation: Option<i64>,
    now: &'a Time,
}

impl Conditions<'_> {
    fn set(&mut self, type_: &str, told: Told) {
        let Told { status, reason, message } = told;
        let new = condition(type_, false, &reason, message, self.generation, self.now.clone());
        set_condition(&mut self.all, Condition { status: status.to_owned(), ..new });
    }

    /// Sets Ready. While the object is paused, that speaks of the spec that was acted on last, and
    /// never says more than was compared before the pause.
    fn set_ready(&mut self, mut told: Told, is_paused: bool) {
        if !is_paused {
            return self.set(READY, told);
        }
        let old = find_condition(&self.all, READY);
        let acted_on = old.and_then(|ready| ready.observed_generation);
        let was_ready = old.is_some_and(|ready| ready.status == "True");
        if acted_on.is_none() && told.status == "True" {
            let message = "the object was paused before it was compared with its spec";
            told = Told::new("False", "Paused", message);
        } else if acted_on != self.generation && !was_ready && told.status == "True" {
            let message = "the spec changed while the object is paused, so that the operator \
                cannot tell whether it is met";
            told = Told::new("Unknown", "Paused", message);
        }
        let newest = std::mem::replace(&mut self.generation, acted_on);
        self.set(READY, told);
        self.generation = newest;
    }
}

/// What is told of an object of which only `fault` is known.
#[cfg(feature = "kubernetes")]
pub(crate) fn only(
    old: &[WaitStatus],
    subject: &str,
    fault: &Fault,
    now: &Time,
) -> Vec<WaitStatus> {
    let fault = waits::Waiting::new(&fault.reason, subject.to_owned(), &fault.message);
    waits::waits(old, [fault], now)
}

/// The conditions of an object whose last pass ended with `fault`, so that they may be out of date.
#[cfg(feature = "kubernetes")]
pub(crate) fn not_checked(
    all: Vec<Condition>,
    generation: Option<i64>,
    now: &Time,
    fault: &Fault,
) -> Vec<Condition> {
    let mut conditions = Conditions { all, generation, now };
    for (type_, status) in [(READY, "Unknown"), (DEGRADED, "True")] {
        conditions.set(type_, Told::fault(status, fault));
    }
    conditions.all
}

/// The conditions of an object that this version cannot read, and does not act on.
#[cfg(feature = "kubernetes")]
pub(crate) fn not_understood(
    all: Vec<Condition>,
    generation: Option<i64>,
    now: &Time,
    is_paused: bool,
    fault: &Fault,
) -> Vec<Condition> {
    let mut conditions = Conditions { all, generation, now };
    for (type_, status) in [(READY, "False"), (PROGRESSING, "False"), (DEGRADED, "True")] {
        conditions.set(type_, Told::fault(status, fault));
    }
    conditions.set(PAUSED, paused(is_paused));
    conditions.all
}

fn paused(is_paused: bool) -> Told {
    match is_paused {
        true => Told::new("True", "PausedByAnnotation", ""),
        false => Told::new("False", "NotPaused", ""),
    }
}

fn nothing_changes() -> Told {
    Told::new("False", "Paused", "nothing is changed while the object is paused")
}
