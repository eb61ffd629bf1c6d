//! How far a start with many logs is.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Counts the logs that are opened at a start, for whoever waits for it.
#[derive(Debug, Default)]
pub struct OpenProgress(Mutex<Option<Opening>>);

#[derive(Clone, Copy, Debug)]
struct Opening {
    began: Instant,
    /// `done <= total`.
    done: usize,
    total: usize,
}

impl OpenProgress {
    pub(super) fn begin(&self, total: usize) {
        self.with(|opening| *opening = Some(Opening { began: Instant::now(), done: 0, total }));
    }

    pub(super) fn set_done(&self, done: usize) {
        self.with(|opening| {
            if let Some(opening) = opening {
                opening.done = done.min(opening.total);
            }
        });
    }

    fn with<T>(&self, f: impl FnOnce(&mut Option<Opening>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many logs are open, how many there are, and how long the others will take at the pace so
    /// far. `None` before the logs are counted.
    #[must_use]
    pub fn now(&self) -> Option<(usize, usize, Option<Duration>)> {
        let Opening { began, done, total } = self.with(|opening| *opening)?;
        Some((done, total, time_left(began.elapsed(), done, total)))
    }
}

/// `None` while nothing can be told from the pace so far, or nothing is left.
fn time_left(passed: Duration, done: usize, total: usize) -> Option<Duration> {
    let left = u32::try_from(total.saturating_sub(done)).ok().filter(|left| *left > 0)?;
    let each = passed.checked_div(u32::try_from(done).ok()?)?;
    Some(each.saturating_mul(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_from_the_pace_so_far() {
        let second = Duration::from_secs(1);
        for (passed, done, total, left) in [
            (second, 0, 10, None),
            (second, 10, 10, None),
            (second * 3, 2, 10, Some(second * 12)),
            (Duration::MAX, 1, usize::MAX, None),
            (Duration::MAX, 1, 9, Some(Duration::MAX)),
        ] {
            assert_eq!(time_left(passed, done, total), left, "{done} of {total}");
        }
    }
}
