//! What becomes of a client's requests.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use letterbox_sim::rng::Rng;

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is answered after this time.
    Answered(Duration),
    /// It is refused with this status, and nothing happens.
    Refused(u16, &'static str),
    /// It is carried out after this time, and the connection ends without an answer.
    NotAnswered(Duration),
    /// It is carried out after this time, and refused with this status all the same.
    TimesOut(Duration, u16, &'static str),
    /// It is not carried out, or is, and nobody answers.
    Hangs {
        /// Whether it is carried out.
        is_done: bool,
    },
    /// The client was killed before it could send it.
    Dead,
}

/// What becomes of every call of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Refused: there is no right to it.
    Refused,
    /// Refused: it has changed since.
    Conflicts,
    /// An apply of a status is refused: it has fields that are not declared.
    Undeclared,
    /// Never answered, and not carried out.
    Hangs,
    /// Answered after this time.
    Slow(Duration),
    /// Carried out, and then the server says that it took too long.
    TimesOut,
    /// Carried out, and never answered.
    HangsWhenDone,
}

/// Calls that meet a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    /// Of which resource: `group/plural`.
    pub(crate) resource: &'static str,
    /// Whether changes meet it, or reads.
    pub(crate) is_write: bool,
    /// Which.
    pub(crate) how: How,
}

/// How often what happens, in percent of the requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chances {
    /// Refused: too many requests, an error inside, a timeout.
    pub(crate) refused: u64,
    /// A write that meets a conflict.
    pub(crate) conflict: u64,
    /// A write that is carried out and not answered.
    pub(crate) not_answered: u64,
    /// A watch that ends within seconds.
    pub(crate) watch_ends: u64,
    /// A watch that stays open and brings nothing more.
    pub(crate) watch_hangs: u64,
    /// The longest time that a request or an event takes.
    pub(crate) delay_max: Duration,
}

struct State {
    rng: Rng,
    chances: Chances,
    /// How many more writes reach the server before the client is killed. `None`: all.
    writes_left: Option<u64>,
    dead: bool,
    broken: Vec<Broken>,
}

/// The faults of one client. Clones are the same.
#[derive(Clone)]
pub(crate) struct Faults(Arc<Mutex<State>>);

impl Faults {
    /// A client without faults.
    #[must_use]
    pub(crate) fn none() -> Self {
        Self::new(0, "none", Chances::default())
    }

    /// The faults that `seed` has for the client `name`.
    #[must_use]
    pub(crate) fn new(seed: u64, name: &str, chances: Chances) -> Self {
        let rng = Rng::named(seed, name);
        Self(Arc::new(Mutex::new(State {
            rng,
            chances,
            writes_left: None,
            dead: false,
            broken: Vec::new(),
        })))
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Kills the client after so many more writes: nothing after them reaches the server.
    #[must_use]
    pub(crate) fn killed_after(self, writes: u64) -> Self {
        self.with(|state| state.writes_left = Some(writes));
        self
    }

    /// From now on these calls meet a fault; watches do not.
    pub(crate) fn set_broken(&self, broken: &[Broken]) {
        self.with(|state| state.broken = broken.to_vec());
    }

    /// Whether the client was killed.
    #[must_use]
    pub(crate) fn is_dead(&self) -> bool {
        self.with(|state| state.dead)
    }

    /// From now on nothing goes wrong.
    pub(crate) fn end(&self) {
        self.with(|state| state.chances = Chances::default());
    }

    /// What becomes of a call about `resource`; `counts` says whether it is one of the writes after
    /// which the client is killed, and `is_status` whether it applies a status.
    pub(crate) fn of_request(
        &self,
        resource: &str,
        is_write: bool,
        is_status: bool,
        counts: bool,
    ) -> Fate {
        self.with(|state| {
            if state.dead {
                return Fate::Dead;
            }
            let is_it =
                |broken: &Broken| broken.resource == resource && broken.is_write == is_write;
            if let Some(broken) = state.broken.iter().copied().find(is_it) {
                return match broken.how {
                    How::Refused => Fate::Refused(403, "Forbidden"),
                    How::Undeclared if !is_status => Fate::Answered(Duration::ZERO),
                    How::Undeclared => Fate::Refused(422, "Invalid"),
                    How::Conflicts => Fate::Refused(409, "Conflict"),
                    How::Hangs => Fate::Hangs { is_done: false },
                    How::Slow(time) => Fate::Answered(time),
                    How::TimesOut => Fate::TimesOut(Duration::ZERO, 504, "Timeout"),
                    How::HangsWhenDone => Fate::Hangs { is_done: true },
                };
            }
            if let Some(left) = state.writes_left.as_mut().filter(|_| counts) {
                match left.checked_sub(1) {
                    Some(fewer) => *left = fewer,
                    None => {
                        state.dead = true;
                        return Fate::Dead;
                    }
                }
            }
            let State { rng, chances, .. } = state;
            let delay = delay(rng, chances.delay_max);
            if rng.percent(chances.refused) {
                let answers = [
                    (429, "TooManyRequests"),
                    (500, "InternalError"),
                    (503, "ServiceUnavailable"),
                    (403, "Forbidden"),
                ];
                let (code, reason) = answers[rng.index(answers.len())];
                return Fate::Refused(code, reason);
            }
            match is_write {
                true if rng.percent(chances.conflict) => Fate::Refused(409, "Conflict"),
                true if rng.percent(chances.not_answered) => Fate::NotAnswered(delay),
                _ => Fate::Answered(delay),
            }
        })
    }

    /// How late an event is, or `None` when the watch ends instead; `Err` when it hangs.
    pub(crate) fn of_event(&self) -> Result<Option<Duration>, ()> {
        self.with(|state| {
            let State { rng, chances, dead, .. } = state;
            if *dead || rng.percent(chances.watch_hangs) {
                return Err(());
            }
            let ends = rng.percent(chances.watch_ends);
            Ok((!ends).then(|| delay(rng, chances.delay_max)))
        })
    }
}

fn delay(rng: &mut Rng, max: Duration) -> Duration {
    Duration::from_millis(rng.below(u64::try_from(max.as_millis()).unwrap_or(u64::MAX) + 1))
}
