//! Sending many records: those that are not answered yet, and the pace.

use std::future::Future;
use std::time::Duration;

use futures::future::FusedFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::time::Instant;

/// Further away than any run of a tool.
const NEVER: Duration = Duration::from_secs(86_400 * 365);

/// When the record after the first `sent` is due, at `per_second` records from `began` on; at once
/// without a rate (0 and below).
pub(crate) fn due(began: Instant, sent: u64, per_second: f64) -> Instant {
    if per_second > 0.0 {
        #[allow(clippy::cast_precision_loss, reason = "about is enough")]
        let after = Duration::try_from_secs_f64(sent as f64 / per_second);
        began + after.unwrap_or(NEVER).min(NEVER)
    } else {
        began
    }
}

/// Records that were sent and are not answered yet: `F` ends with the answer.
pub(crate) struct UnderWay<F> {
    answers: FuturesUnordered<F>,
    max: usize,
}

impl<F: Future> UnderWay<F> {
    /// Of which there are at most about `max`: see [`Self::next_before`].
    pub(crate) fn new(max: usize) -> Self {
        Self { answers: FuturesUnordered::new(), max }
    }

    pub(crate) fn push(&self, answer: F) {
        self.answers.push(answer);
    }

    /// An answer that is there already.
    pub(crate) fn next_ready(&mut self) -> Option<F::Output> {
        self.answers.next().now_or_never().flatten()
    }

    /// An answer, while the next record is not `due` or too many are under way; then `None`.
    ///
    /// Cancel safe: an answer is returned or stays.
    pub(crate) async fn next_before(&mut self, due: Instant) -> Option<F::Output> {
        if self.answers.len() >= self.max {
            return self.answers.next().await;
        }
        if Instant::now() >= due {
            return None;
        }
        tokio::select! {
            biased;
            Some(answer) = self.answers.next(), if !self.answers.is_empty() => Some(answer),
            () = tokio::time::sleep_until(due) => None,
        }
    }

    /// An answer, until there are no more and `flush` has ended.
    pub(crate) async fn next_flushed(
        &mut self,
        flush: &mut (impl FusedFuture<Output = ()> + Unpin),
    ) -> Option<F::Output> {
        while !flush.is_terminated() {
            tokio::select! {
                biased;
                Some(answer) = self.answers.next(), if !self.answers.is_empty() => {
                    return Some(answer);
                }
                () = &mut *flush => {}
            }
        }
        self.answers.next().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn records_are_due_at_the_rate_that_was_asked_for() {
        let began = Instant::now();
        for (sent, per_second, after) in [
            (10, 4.0, Duration::from_millis(2500)),
            (10, 0.0, Duration::ZERO),
            (10, -1.0, Duration::ZERO),
            (10, f64::NAN, Duration::ZERO),
            (10, f64::INFINITY, Duration::ZERO),
            (1, 1e-300, NEVER),
            (u64::MAX, 1e-9, NEVER),
        ] {
            assert_eq!(due(began, sent, per_second), began + after, "{sent} at {per_second}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_taken_until_a_record_is_due_and_all_at_the_end() {
        let began = Instant::now();
        let mut under_way = UnderWay::new(3);
        let answer = |seconds| {
            let at = began + Duration::from_secs(seconds);
            async move {
                tokio::time::sleep_until(at).await;
                seconds
            }
        };
        under_way.push(answer(5));
        under_way.push(answer(1));
        assert_eq!(under_way.next_ready(), None);
        let due = began + Duration::from_secs(2);
        assert_eq!(under_way.next_before(due).await, Some(1));
        assert_eq!(under_way.next_before(due).await, None);
        assert_eq!(began.elapsed(), Duration::from_secs(2));
        // It is due, but there are too many.
        under_way.push(answer(6));
        under_way.push(answer(7));
        assert_eq!(under_way.next_before(due).await, Some(5));
        let mut flush = std::pin::pin!(tokio::time::sleep(Duration::from_secs(3)).fuse());
        assert_eq!(under_way.next_flushed(&mut flush).await, Some(6));
        assert_eq!(under_way.next_flushed(&mut flush).await, Some(7));
        assert_eq!(under_way.next_flushed(&mut flush).await, None);
        assert_eq!(began.elapsed(), Duration::from_secs(8));
    }
}
