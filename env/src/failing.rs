//! What fails again and again, and how often that is said.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::Fault;
use crate::panics::lock;

/// Time between two log lines about the same cause.
const SAID_EVERY: Duration = Duration::from_secs(600);

/// The most causes that are said within [`SAID_EVERY`]: others may come from clients without a
/// bound.
const CAUSES_MAX: usize = 64;

/// Whether work fails, as far as that was said. Of each cause there is one line, and another one
/// each ten minutes while it lasts.
pub struct Failing<C = Fault>(Mutex<Said<C>>);

struct Said<C> {
    /// The last line says that it fails.
    fails: bool,
    causes: Vec<(C, Instant)>,
}

impl<C> Default for Failing<C> {
    fn default() -> Self {
        Self(Mutex::new(Said { fails: false, causes: Vec::new() }))
    }
}

impl<C: PartialEq> Failing<C> {
    /// The work has failed; gives whether that is to be said.
    pub fn failed(&self, cause: C) -> bool {
        let now = Instant::now();
        let mut said = lock(&self.0);
        said.causes.retain(|(_, at)| now.saturating_duration_since(*at) < SAID_EVERY);
        let is_known = said.causes.iter().any(|(known, _)| *known == cause);
        if is_known || said.causes.len() == CAUSES_MAX {
            return false;
        }
        said.causes.push((cause, now));
        said.fails = true;
        true
    }

    /// The work was done; gives whether it is to be said that it fails no more.
    pub fn succeeded(&self) -> bool {
        std::mem::take(&mut lock(&self.0).fails)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Resource;

    #[tokio::test(start_paused = true)]
    async fn each_cause_is_said_once_then_now_and_then_and_when_it_is_over() {
        let (lacks, broken) = (Fault::State(Resource::Descriptors), Fault::BrokenInvariant);
        let failing = Failing::default();
        assert!(!failing.succeeded(), "nothing was said");
        assert_eq!(
            [lacks, lacks, broken, lacks].map(|it| failing.failed(it)),
            [true, false, true, false]
        );
        assert_eq!([failing.succeeded(), failing.succeeded()], [true, false]);
        assert!(!failing.failed(lacks), "it comes and goes");
        assert!(!failing.succeeded(), "nor is it said that this is over");
        tokio::time::advance(SAID_EVERY).await;
        assert_eq!([lacks, lacks, broken].map(|it| failing.failed(it)), [true, false, true]);
        assert!(failing.succeeded());
    }

    #[tokio::test(start_paused = true)]
    async fn causes_that_differ_each_time_have_a_bound() {
        let failing = Failing::default();
        let said = |ids: std::ops::Range<usize>| ids.filter(|id| failing.failed(*id)).count();
        assert_eq!(said(0..1000), CAUSES_MAX);
        tokio::time::advance(SAID_EVERY).await;
        assert_eq!(said(500..501), 1);
    }
}
