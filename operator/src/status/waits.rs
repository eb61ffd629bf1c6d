//! What is waited for, with what is known of it since before.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;

use super::words;
use crate::api::{WaitProgress, WaitStatus};

/// So many are told.
const TOLD_MAX: usize = 32;
/// An estimate stays while the new one is nearer to it than this.
const ESTIMATE_STEP: Duration = Duration::from_secs(5);

/// Something that is waited for now.
pub(super) struct Waiting {
    pub(super) reason: String,
    pub(super) subject: String,
    pub(super) message: String,
    pub(super) progress: Option<WaitProgress>,
    /// How long it takes yet.
    pub(super) left: Option<Duration>,
}

impl Waiting {
    pub(super) fn new(reason: &str, subject: String, message: impl ToString) -> Self {
        let (reason, message) = (reason.to_owned(), words(message));
        Self { reason, subject, message, progress: None, left: None }
    }
}

/// What is told of what is waited for `now`, after `old` was told. One thing is told once: of two
/// of the same reason and subject the first one.
pub(super) fn waits(
    old: &[WaitStatus],
    new: impl IntoIterator<Item = Waiting>,
    now: &Time,
) -> Vec<WaitStatus> {
    let mut all: Vec<WaitStatus> = Vec::new();
    for Waiting { reason, subject, message, progress, left } in new {
        let is_it = |one: &&WaitStatus| (&one.reason, &one.subject) == (&reason, &subject);
        if all.len() >= TOLD_MAX || all.iter().any(|one| is_it(&one)) {
            continue;
        }
        let known = old.iter().find(is_it);
        let estimated_completion = left.and_then(|left| {
            let estimate = now.0.checked_add(SignedDuration::try_from(left).ok()?).ok()?;
            let known = known.and_then(|known| known.estimated_completion.clone());
            // It would be another one at each look.
            let stays = |known: &Time| {
                known.0.duration_since(estimate).unsigned_abs() < ESTIMATE_STEP.max(left / 10)
            };
            known.filter(stays).or(Some(Time(estimate)))
        });
        all.push(WaitStatus {
            since: known.map_or(now, |known| &known.since).clone(),
            reason,
            subject,
            message,
            progress,
            estimated_completion,
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn since_moves_with_the_reason_and_the_subject_and_an_estimate_with_the_pace() {
        let waiting = |reason: &str, subject: &str, message: &str, left: Option<u64>| Waiting {
            left: left.map(Duration::from_secs),
            ..Waiting::new(reason, subject.to_owned(), message)
        };
        let told = |all: &[WaitStatus]| {
            let told = |one: &WaitStatus| {
                let ends = one.estimated_completion.as_ref().map(|at| at.0.as_second());
                (one.message.clone(), one.since.0.as_second(), ends)
            };
            all.iter().map(told).collect::<Vec<_>>()
        };
        let first = [
            waiting("A", "broker 0", "1 of 9", Some(100)),
            waiting("A", "broker 0", "once more", None),
            waiting("A", "broker 1", "x", None),
        ];
        let all = waits(&[], first, &at(1000));
        assert_eq!(told(&all), [("1 of 9".into(), 1000, Some(1100)), ("x".into(), 1000, None)]);
        let second =
            [waiting("B", "broker 1", "y", None), waiting("A", "broker 0", "2 of 9", Some(98))];
        let all = waits(&all, second, &at(1005));
        assert_eq!(told(&all), [("y".into(), 1005, None), ("2 of 9".into(), 1000, Some(1100))]);
        let all = waits(&all, [waiting("A", "broker 0", "3 of 9", Some(60))], &at(1010));
        assert_eq!(told(&all), [("3 of 9".into(), 1000, Some(1070))]);
        let many = (0..99).map(|number| waiting("A", &number.to_string(), "", Some(u64::MAX)));
        assert_eq!(waits(&[], many, &at(0)).len(), TOLD_MAX);
    }
}
