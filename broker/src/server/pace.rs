//! How slowly a client may send a request or take an answer.
//!
//! Who falls behind holds memory and a connection that others need. Both directions have the same
//! measure: a client may be silent for [`SILENCE_MAX`], and what it moves buys time at the slowest
//! rate that is allowed: [`RATE_MIN`], or for a large frame the rate that ends it in [`WHOLE_MAX`].
//! Kafka's clients give a request up after 30 s (`request.timeout.ms`), so an honest one has long
//! gone when it is closed here.

use std::time::Duration;

use tokio::time::Instant;

/// How long a client may move nothing.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Bytes a second, at least.
const RATE_MIN: u64 = 16 * 1024;
/// How long the largest frame may take, besides [`SILENCE_MAX`].
const WHOLE_MAX: u64 = 120;

/// How long a client may read nothing of its answer while others wait for memory.
const SILENCE_IN_THE_WAY_MAX: Duration = Duration::from_secs(5);
/// How long a client may send nothing of its request while others wait for memory: all of it is
/// there when it begins, so this is a lost packet or two.
const SILENCE_WHILE_OTHERS_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long the largest frame may take while others wait for memory, besides the silence.
const WHOLE_IN_THE_WAY_MAX: u64 = 10;

/// The moment until which the next bytes of one frame must move.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    until: Instant,
    silence_max: Duration,
    whole_max: u64,
}

impl Pace {
    /// A frame begins, or goes on after the broker itself made it wait.
    pub(super) fn begin(now: Instant) -> Self {
        Self { until: now + SILENCE_MAX, silence_max: SILENCE_MAX, whole_max: WHOLE_MAX }
    }

    /// From now on others wait for what an answer holds: one slow client must not keep them for
    /// minutes.
    pub(super) fn begin_in_the_way(now: Instant) -> Self {
        Self::begin_quick(now, SILENCE_IN_THE_WAY_MAX)
    }

    fn begin_quick(now: Instant, silence_max: Duration) -> Self {
        Self { until: now + silence_max, silence_max, whole_max: WHOLE_IN_THE_WAY_MAX }
    }

    /// `bytes` of a frame of `whole` bytes have moved.
    pub(super) fn moved(&mut self, now: Instant, bytes: u64, whole: u64) {
        let rate = RATE_MIN.max(whole / self.whole_max);
        let bought = Duration::from_micros(bytes.saturating_mul(1_000_000) / rate);
        self.until = self
            .until
            .checked_add(bought)
            .map_or(self.until, |until| until.min(now + self.silence_max));
    }

    /// When the client is too slow.
    pub(super) fn until(&self) -> Instant {
        self.until
    }
}

/// How a request comes in: as it must at least, and as it must while others wait for its memory.
/// Both begin with it, so that who has stopped long ago is closed as soon as somebody waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    alone: Pace,
    while_others_wait: Pace,
}

impl Progress {
    /// A frame begins, or goes on after the broker itself made it wait.
    pub(super) fn begin(now: Instant) -> Self {
        let while_others_wait = Pace::begin_quick(now, SILENCE_WHILE_OTHERS_WAIT_MAX);
        Self { alone: Pace::begin(now), while_others_wait }
    }

    /// `bytes` of a frame of `whole` bytes have come.
    pub(super) fn moved(&mut self, now: Instant, bytes: u64, whole: u64) {
        self.alone.moved(now, bytes, whole);
        // It was late, and nobody needed what it holds; or the broker itself did not come to read.
        self.while_others_wait.until = self.while_others_wait.until.max(now);
        self.while_others_wait.moved(now, bytes, whole);
    }

    /// When the client is too slow.
    pub(super) fn until(&self) -> Instant {
        self.alone.until()
    }

    /// When it is too slow, if others wait for what it holds.
    pub(super) fn until_while_others_wait(&self) -> Instant {
        self.while_others_wait.until()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many seconds a client lasts that sends `bytes` each `every` seconds.
    fn lasts(every: u64, bytes: u64, whole: u64) -> u64 {
        lasts_at(Pace::begin, every, bytes, whole)
    }

    fn lasts_at(begin: fn(Instant) -> Pace, every: u64, bytes: u64, whole: u64) -> u64 {
        let start = Instant::now();
        let (mut pace, mut at, mut sent) = (begin(start), 0, 0);
        while sent < whole && start + Duration::from_secs(at + every) <= pace.until() {
            at += every;
            sent += bytes;
            pace.moved(start + Duration::from_secs(at), bytes, whole);
        }
        if sent < whole { at } else { u64::MAX }
    }

    #[test]
    fn who_is_slow_for_long_is_given_up_and_who_is_slow_for_a_while_is_not() {
        const MIB: u64 = 1024 * 1024;
        for (name, every, bytes, whole, lasting) in [
            ("a byte each ten seconds", 10, 1, 100 * MIB, 30),
            ("one that is silent", 31, 100 * MIB, 100 * MIB, 0),
            ("a slow line", 1, 20 * 1024, MIB, u64::MAX),
            ("in bursts", 25, MIB, 4 * MIB, u64::MAX),
            ("a small one over a poor line", 5, 10_000, 60_000, u64::MAX),
            (
                "the largest, too slow to end before its client gives it up",
                1,
                100 * 1024,
                100 * MIB,
                33,
            ),
            ("the largest, just fast enough", 1, MIB, 100 * MIB, u64::MAX),
        ] {
            assert_eq!(lasts(every, bytes, whole), lasting, "{name}");
        }
        for (name, every, bytes, whole, lasting) in [
            ("the largest, fast enough as long as nobody waits", 1, MIB, 100 * MIB, 5),
            ("the largest, over a good line", 1, 10 * MIB, 100 * MIB, u64::MAX),
            ("one that is silent", 6, 100 * MIB, 100 * MIB, 0),
        ] {
            assert_eq!(
                lasts_at(Pace::begin_in_the_way, every, bytes, whole),
                lasting,
                "others wait for {name}"
            );
        }
    }
}
