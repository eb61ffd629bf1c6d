//! Who waits for memory, and in which order those who wait are served.
//!
//! What frames hold while they are read lies in two pools, so that neither small frames nor large
//! ones keep the others waiting, whatever comes and however much of it does not go on:
//! - one is for the frames that need the least, by powers of two; each leaves room for smaller
//!   ones;
//! - one is for the frames that have waited longest, with turns between addresses: a large frame
//!   that is first waits until there is room for it, and nobody overtakes it there.
//!
//! Requests that were read and wait to be decoded come before both: they need their client no more.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::budget::{Account, Share};
use super::pace::Progress;

/// One who waits.
pub(super) struct Waiting {
    /// Bytes that it needs.
    pub(super) more: usize,
    pub(super) is_large: bool,
    pub(super) granted: oneshot::Sender<Share>,
}

/// A place in line.
#[derive(Clone, Copy)]
pub(super) enum At {
    /// Of a request that was read; in the order they came.
    Whole(u64),
    /// Of a frame that is to be read.
    Frame { turn: Turn, class: u32, ip: IpAddr },
}

/// The first one of each address comes before the second one of any.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    round: u64,
    number: u64,
}

/// What is given to one who waits.
#[derive(Default)]
pub(super) struct Grant {
    pub(super) reading: Option<Reading>,
    /// It goes past the account.
    pub(super) is_past: bool,
}

#[derive(Clone, Copy)]
enum Pool {
    ByNeed,
    ByTurn,
}

/// A frame that is being read; ends with [`Lines::ends`].
pub(super) struct Reading {
    number: u64,
    pool: Option<Pool>,
    bytes: usize,
    client: Arc<Client>,
}

/// How the client of a frame that is being read goes on.
struct Client {
    until: Mutex<Instant>,
    is_given_up: AtomicBool,
    given_up: Notify,
}

impl Reading {
    /// Bytes that it holds of a pool.
    pub(super) fn in_pool(&self) -> usize {
        if self.pool.is_some() { self.bytes } else { 0 }
    }

    /// The client moves something; it has until then for more, if others wait.
    pub(super) fn must_move_by(&self, until: Instant) {
        *self.client.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        self.client.is_given_up.store(false, Ordering::Relaxed);
    }

    /// Completes when the client is given up.
    pub(super) async fn given_up(&self) {
        while !self.client.is_given_up.load(Ordering::Relaxed) {
            self.client.given_up.notified().await;
        }
    }
}

impl Client {
    /// Whether it is too slow for what others need, and was not given up yet.
    fn is_late(&self, now: Instant) -> bool {
        !self.is_given_up.load(Ordering::Relaxed)
            && *self.until.lock().unwrap_or_else(PoisonError::into_inner) < now
    }
}

/// Who waits, and whose frames are being read.
pub(super) struct Lines {
    /// Bytes of each pool.
    pool: usize,
    /// Of them, those that are held.
    held: [usize; 2],
    /// Numbers those who wait and those who are read.
    last: u64,
    whole: BTreeMap<u64, Waiting>,
    frames: BTreeMap<Turn, Waiting>,
    by_need: BTreeSet<(u32, Turn)>,
    /// The round of the frame that was served last by its turn.
    round: u64,
    /// Frames that wait, by address.
    of_ip: BTreeMap<IpAddr, u64>,
    reading: BTreeMap<u64, (usize, Arc<Client>)>,
    /// One goes past the account.
    pub(super) is_past: bool,
}

impl Lines {
    /// Nobody waits; frames that are read may hold `bytes`.
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            pool: bytes / 2,
            held: [0; 2],
            last: 0,
            whole: BTreeMap::new(),
            frames: BTreeMap::new(),
            by_need: BTreeSet::new(),
            round: 0,
            of_ip: BTreeMap::new(),
            reading: BTreeMap::new(),
            is_past: false,
        }
    }

    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// A place for a request that was read.
    pub(super) fn whole(&mut self) -> At {
        At::Whole(self.number())
    }

    /// A place for a frame of `bytes` from `ip`.
    pub(super) fn frame_from(&mut self, ip: IpAddr, bytes: usize) -> At {
        let before = self.of_ip.get(&ip).copied().unwrap_or(0);
        let turn = Turn { round: self.round + before + 1, number: self.number() };
        At::Frame { turn, class: bytes.max(1).ilog2(), ip }
    }

    /// Waits at a place.
    pub(super) fn enter(&mut self, at: At, waiting: Waiting) {
        match at {
            At::Whole(number) => drop(self.whole.insert(number, waiting)),
            At::Frame { turn, class, ip } => {
                self.frames.insert(turn, waiting);
                self.by_need.insert((class, turn));
                *self.of_ip.entry(ip).or_default() += 1;
            }
        }
    }

    /// Leaves a place, served or not; tells whether it was not.
    pub(super) fn leave(&mut self, at: At) -> bool {
        match at {
            At::Whole(number) => self.whole.remove(&number).is_some(),
            At::Frame { turn, class, ip } => {
                self.by_need.remove(&(class, turn));
                if let Some(of_ip) = self.of_ip.get_mut(&ip) {
                    *of_ip = of_ip.saturating_sub(1);
                    if *of_ip == 0 {
                        self.of_ip.remove(&ip);
                    }
                }
                self.frames.remove(&turn).is_some()
            }
        }
    }

    /// Begins to read a frame if nobody waits and there is room.
    pub(super) fn try_read(
        &mut self,
        account: &Account,
        bytes: usize,
        is_large: bool,
    ) -> Option<Reading> {
        let pool = [Pool::ByNeed, Pool::ByTurn]
            .into_iter()
            .find(|pool| !is_large || self.has_room(*pool, bytes))?;
        let may_read = self.frames.is_empty() && account.try_take(bytes, is_large);
        may_read.then(|| self.begins(bytes, is_large.then_some(pool)))
    }

    /// The next one to be served; what it needs is taken, unless it goes past the account.
    pub(super) fn next(&mut self, account: &Account) -> Option<(Waiting, Grant)> {
        if let Some((&number, waiting)) = self.whole.first_key_value()
            && account.try_take_whole(waiting.more, waiting.is_large)
        {
            return Some((self.whole.remove(&number)?, Grant::default()));
        }
        let first = self.frames.first_key_value().map(|(turn, _)| *turn);
        let least = self.by_need.first().map(|(_, turn)| *turn);
        for (pool, turn) in [(Pool::ByNeed, least), (Pool::ByTurn, first)] {
            if let Some(turn) = turn
                && let Some(Waiting { more, is_large, .. }) = self.frames.get(&turn)
                && (!is_large || self.has_room(pool, *more))
                && account.try_take(*more, *is_large)
            {
                let pool = is_large.then_some(pool);
                return self.begin_next(turn, pool, false);
            }
        }
        self.next_past(first)
    }

    /// The one that goes past the account next: it has waited longest of those who are first.
    fn next_past(&mut self, first: Option<Turn>) -> Option<(Waiting, Grant)> {
        if self.is_past {
            return None;
        }
        let whole = self.whole.first_key_value().map(|(number, _)| *number);
        let granted = match (whole, first) {
            (Some(whole), first) if first.is_none_or(|first| whole < first.number) => {
                (self.whole.remove(&whole)?, Grant { reading: None, is_past: true })
            }
            (_, first) => self.begin_next(first?, None, true)?,
        };
        self.is_past = true;
        Some(granted)
    }

    fn begin_next(
        &mut self,
        turn: Turn,
        pool: Option<Pool>,
        is_past: bool,
    ) -> Option<(Waiting, Grant)> {
        let waiting = self.frames.remove(&turn)?;
        self.by_need.remove(&(waiting.more.max(1).ilog2(), turn));
        if !matches!(pool, Some(Pool::ByNeed)) {
            self.round = self.round.max(turn.round);
        }
        let reading = Some(self.begins(waiting.more, pool));
        Some((waiting, Grant { reading, is_past }))
    }

    fn has_room(&self, pool: Pool, more: usize) -> bool {
        // Smaller ones than an eighth of it are never kept waiting by it, however long it takes.
        let for_smaller = if matches!(pool, Pool::ByNeed) { more / 8 } else { 0 };
        let needed = more
            .checked_add(for_smaller)
            .and_then(|needed| needed.checked_add(self.held[pool as usize]));
        needed.is_some_and(|needed| needed <= self.pool)
    }

    fn begins(&mut self, bytes: usize, pool: Option<Pool>) -> Reading {
        if let Some(pool) = pool {
            self.held[pool as usize] += bytes;
        }
        let number = self.number();
        let client = Arc::new(Client {
            until: Mutex::new(Progress::begin(Instant::now()).until_while_others_wait()),
            is_given_up: AtomicBool::new(false),
            given_up: Notify::new(),
        });
        self.reading.insert(number, (bytes, client.clone()));
        Reading { number, pool, bytes, client }
    }

    /// A frame is read no more.
    pub(super) fn ends(&mut self, reading: &Reading) {
        if let Some(pool) = reading.pool {
            self.held[pool as usize] -= reading.bytes;
        }
        self.reading.remove(&reading.number);
    }

    /// Gives up clients that do not go on: those that hold most, and no more of them than those who
    /// wait need.
    pub(super) fn give_up_late(&mut self, now: Instant) {
        let waiting = self.whole.values().chain(self.frames.values());
        let mut needed = waiting.fold(0_usize, |sum, waiting| sum.saturating_add(waiting.more));
        let mut late: Vec<_> =
            self.reading.values().filter(|(_, client)| client.is_late(now)).collect();
        late.sort_unstable_by_key(|(bytes, _)| Reverse(*bytes));
        for (bytes, client) in late {
            if needed == 0 {
                break;
            }
            needed = needed.saturating_sub(*bytes);
            client.is_given_up.store(true, Ordering::Relaxed);
            client.given_up.notify_one();
        }
    }
}
