//! Conditions as the Kubernetes API conventions define them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The object does what its spec asks, as of the condition's `observedGeneration`.
pub const READY: &str = "Ready";
/// Something is being changed or waited for; the message names it.
pub const PROGRESSING: &str = "Progressing";
/// Something is wrong that does not go away by waiting alone; the message says what to do.
pub const DEGRADED: &str = "Degraded";
/// The object carries the pause annotation: nothing is changed for it.
pub const PAUSED: &str = "Paused";

/// A condition of type `type_`, to be merged with [`set_condition`].
#[must_use]
pub fn condition(
    type_: &str,
    status: bool,
    reason: &str,
    message: impl Into<String>,
    generation: Option<i64>,
    now: Time,
) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: now,
    }
}

/// Puts `new` in place of the condition of its type; the transition time moves only when the status
/// does.
pub fn set_condition(conditions: &mut Vec<Condition>, mut new: Condition) {
    match conditions.iter_mut().find(|old| old.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

/// The condition of a type.
#[must_use]
pub fn find_condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition of a type is there and true.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find_condition(conditions, type_).is_some_and(|condition| condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let mut all = Vec::new();
        set_condition(&mut all, condition(READY, false, "Starting", "a", Some(1), at(1)));
        set_condition(&mut all, condition(READY, false, "Waiting", "b", Some(2), at(2)));
        assert_eq!(
            (
                all[0].last_transition_time.clone(),
                all[0].reason.as_str(),
                all[0].observed_generation
            ),
            (at(1), "Waiting", Some(2))
        );
        set_condition(&mut all, condition(READY, true, "Ready", "", Some(2), at(3)));
        assert_eq!(all[0].last_transition_time, at(3));
        assert_eq!(all.len(), 1);
        assert!(is_true(&all, READY) && !is_true(&all, PAUSED));
    }
}
