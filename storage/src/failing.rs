//! Upkeep that fails again and again, and how often that is said.

use std::sync::Mutex;
use std::time::Duration;

use letterbox_env::Fault;
use letterbox_env::panics::lock;
use tokio::time::Instant;

/// Time between two log lines about the same cause.
const SAID_EVERY: Duration = Duration::from_secs(600);

/// Whether work fails, as far as that was said. Of each kind of fault there is one line, and
/// another one each [`SAID_EVERY`] while it lasts.
#[derive(Default)]
pub(super) struct Failing(Mutex<Said>);

#[derive(Default)]
struct Said {
    /// The last line says that it fails.
    fails: bool,
    causes: Vec<(Fault, Instant)>,
}

impl Failing {
    /// The work has failed; gives whether that is to be said.
    pub(super) fn failed(&self, cause: Fault) -> bool {
        let now = Instant::now();
        let mut said = lock(&self.0);
        let known = said.causes.iter().position(|(known, _)| *known == cause);
        let at = known.and_then(|at| said.causes.get_mut(at));
        match at {
            Some((_, at)) if now.saturating_duration_since(*at) < SAID_EVERY => return false,
            Some((_, at)) => *at = now,
            None => said.causes.push((cause, now)),
        }
        said.fails = true;
        true
    }

    /// The work was done; gives whether it is to be said that it fails no more.
    pub(super) fn succeeded(&self) -> bool {
        std::mem::take(&mut lock(&self.0).fails)
    }
}

#[cfg(test)]
mod tests {
    use letterbox_env::Resource;

    use super::*;

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
}
