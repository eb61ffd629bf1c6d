//! The time of a world without machines: tokio's, which is virtual when it is paused.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use letterbox_env::Clock;
use letterbox_sim::env::EPOCH_MS;
use tokio::time::Instant;

/// A wall clock that began when it was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VirtualClock(Instant);

impl Default for VirtualClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl VirtualClock {
    /// The time as an object has it: whole seconds.
    #[must_use]
    pub(crate) fn now(&self) -> Time {
        Time(Timestamp::from_second(self.wall_ms() / 1000).unwrap_or(Timestamp::UNIX_EPOCH))
    }
}

impl Clock for VirtualClock {
    fn wall_ms(&self) -> i64 {
        EPOCH_MS.saturating_add(i64::try_from(self.0.elapsed().as_millis()).unwrap_or(i64::MAX))
    }
}
