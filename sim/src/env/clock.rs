//! The wall clock: virtual time after a fixed epoch, plus what faults have added on this machine.

use std::sync::atomic::Ordering;

use letterbox_env::Clock;

use super::{EPOCH_MS, Machine, now};

pub(super) struct SimClock(pub(super) Machine);

impl Clock for SimClock {
    fn wall_ms(&self) -> i64 {
        let elapsed = i64::try_from(now().as_millis()).unwrap_or(i64::MAX);
        EPOCH_MS
            .saturating_add(elapsed)
            .saturating_add(self.0.0.wall_offset_ms.load(Ordering::Relaxed))
    }
}
