//! Whether the device holds up what was begun.
//!
//! Who is held up may hold any lock, and threads that others need. So it is counted without one, and
//! looked at by somebody apart.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use letterbox_env::panics::lock;
use tokio::time::Instant;

/// Work of one kind: how much was begun, and how much has ended.
#[derive(Default)]
pub(super) struct UnderWay {
    begun: AtomicU64,
    ended: AtomicU64,
    /// How much had ended at the last look, and since which one nothing more has ended of what was
    /// under way.
    seen: Mutex<(u64, Option<Instant>)>,
}

/// Is under way until this is dropped.
pub(super) struct Begun<'a>(&'a UnderWay);

impl UnderWay {
    pub(super) fn begin(&self) -> Begun<'_> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Begun(self)
    }

    /// For how long some of it has been under way and none has ended, as far as looks have seen.
    pub(super) fn held_up(&self) -> Option<Duration> {
        let ended = self.ended.load(Ordering::Acquire);
        let is_under_way = self.begun.load(Ordering::Relaxed) != ended;
        let mut seen = lock(&self.seen);
        if !is_under_way || seen.0 != ended || seen.1.is_none() {
            *seen = (ended, is_under_way.then(Instant::now));
        }
        seen.1.map(|since| since.elapsed())
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn held_up_is_what_was_begun_while_nothing_of_its_kind_ends() {
        let (all, second) = (UnderWay::default(), Duration::from_secs(1));
        assert_eq!(all.held_up(), None);
        let slow = all.begin();
        tokio::time::advance(second).await;
        assert_eq!(all.held_up(), Some(Duration::ZERO), "it is seen first");
        let other = all.begin();
        tokio::time::advance(second).await;
        assert_eq!(all.held_up(), Some(second), "to begin is no progress");
        drop(other);
        tokio::time::advance(second).await;
        assert_eq!(all.held_up(), Some(Duration::ZERO), "something has ended");
        tokio::time::advance(second).await;
        assert_eq!(all.held_up(), Some(second));
        drop(slow);
        assert_eq!(all.held_up(), None);
        let _next = all.begin();
        assert_eq!(all.held_up(), Some(Duration::ZERO), "it is not as old as the one before");
    }
}
