//! Bounds on what clients together can make the broker hold: memory of requests, connections.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use letterbox_storage::sealed_files_max;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::in_flight::Never;
use super::lines::{At, Lines, Reading, Waiting};

/// Requests and answers up to this size have a part of the account that larger ones cannot take.
pub(crate) const SMALL: usize = 64 * 1024;
/// The part of the account that is kept for small ones: one byte in so many.
const SMALL_PART: usize = 8;
/// How often it is looked who does not go on, while others wait.
const LOOK: Duration = Duration::from_millis(100);

/// The one account of what clients make the broker hold: requests while they are read, decoded and
/// handled, and answers until they are read.
///
/// `queued.max.request.bytes` is its size. A request that is read holds all of its bytes from its
/// beginning, or none of them and waits; so none holds what another waits for and waits itself.
/// Past its size:
/// - a request waits its turn ([`super::lines`]). So that those of any size end, and those that
///   were read whole are decoded, one at a time goes on regardless: what is held is at most the
///   account and one request (`socket.request.max.bytes`);
/// - while others wait, the client of a request that holds memory must be quick
///   ([`Progress`](super::pace::Progress)), or its connection is closed: the largest first, and no
///   more of them than those who wait need;
/// - an answer is refused, unless the records in it can be sent from their files;
/// - those up to [`SMALL`] have an eighth of the account that larger ones cannot take, so they
///   still pass.
///
/// Not in it, with bounds of their own: the two buffers of each connection (16 KiB each), the tail
/// cache, and the validation of compressed batches ([`super::heavy`]).
pub(crate) struct Account {
    bytes: usize,
    used: AtomicUsize,
    /// Of them, those of frames that are being read and go past nothing.
    being_read: AtomicUsize,
    /// Of them, those of the one that goes past the account; they are in no other's way.
    past: AtomicUsize,
    /// Requests that wait for room.
    waiting: AtomicUsize,
    lines: Mutex<Lines>,
    /// Someone began to wait.
    pressed: Notify,
    /// Held by the one of those who wait that looks who does not go on.
    look: tokio::sync::Mutex<()>,
}

impl Account {
    /// An account of `bytes`.
    #[must_use]
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        let most = bytes - bytes / SMALL_PART;
        Arc::new(Self {
            bytes,
            used: AtomicUsize::new(0),
            being_read: AtomicUsize::new(0),
            past: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            lines: Mutex::new(Lines::new(most - bytes / SMALL_PART)),
            pressed: Notify::new(),
            look: tokio::sync::Mutex::default(),
        })
    }

    /// Bytes that are free.
    #[must_use]
    pub(crate) fn free(&self) -> usize {
        self.bytes.saturating_sub(self.used())
    }

    /// Bytes that are held.
    #[must_use]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Its size.
    #[must_use]
    pub(crate) fn size(&self) -> usize {
        self.bytes
    }

    /// Whether somebody waits for it.
    #[must_use]
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Whether what is held should be given back soon: someone waits, or more than half is taken.
    #[must_use]
    pub(crate) fn is_tight(&self) -> bool {
        self.is_waited_for() || self.used() > self.bytes / 2
    }

    fn most(&self, is_large: bool) -> usize {
        if is_large { self.bytes - self.bytes / SMALL_PART } else { self.bytes }
    }

    pub(super) fn try_take(&self, more: usize, is_large: bool) -> bool {
        self.try_take_of(self.most(is_large), more)
    }

    /// Takes for what does not depend on a client that sends: besides all frames that are being
    /// read there is an eighth for it.
    pub(super) fn try_take_whole(&self, more: usize, is_large: bool) -> bool {
        let besides = self.being_read.load(Ordering::SeqCst) + self.bytes / SMALL_PART;
        self.try_take_of(self.most(is_large).max(besides), more)
    }

    fn try_take_of(&self, most: usize, more: usize) -> bool {
        let most = most.saturating_add(self.past.load(Ordering::SeqCst));
        let fits = |used: usize| used.checked_add(more).filter(|after| *after <= most);
        self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_ok()
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives those who wait what there is.
    fn serve(self: &Arc<Self>) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut left = Vec::new();
        let mut lines = self.lines();
        while let Some((waiting, grant)) = lines.next(self) {
            if grant.is_past {
                self.take_past(waiting.more);
            }
            self.begins(grant.reading.as_ref());
            let share = Share {
                of: self.clone(),
                bytes: waiting.more,
                is_large: waiting.is_large,
                is_past: grant.is_past,
                reading: grant.reading,
                at: None,
            };
            // Who has just given up gives it back, when the lines may be looked at again.
            left.extend(waiting.granted.send(share).err());
        }
        drop(lines);
        drop(left);
    }

    fn take_past(&self, more: usize) {
        self.past.fetch_add(more, Ordering::SeqCst);
        self.used.fetch_add(more, Ordering::SeqCst);
    }

    /// The next one may go past the account.
    fn end_past(&self, lines: &mut Lines) {
        self.past.store(0, Ordering::SeqCst);
        lines.is_past = false;
    }

    fn begins(&self, reading: Option<&Reading>) {
        self.being_read.fetch_add(reading.map_or(0, Reading::in_pool), Ordering::SeqCst);
    }

    fn ends(&self, lines: &mut Lines, reading: &Reading) {
        self.being_read.fetch_sub(reading.in_pool(), Ordering::SeqCst);
        lines.ends(reading);
    }

    /// A share of `more` bytes, once it is the turn of who is `at`. Cancel safe.
    async fn wait(self: &Arc<Self>, at: At, more: usize, is_large: bool) -> Share {
        let (granted, mut share) = oneshot::channel();
        let _in_line = InLine::enter(self, at, Waiting { more, is_large, granted });
        self.serve();
        tokio::select! {
            biased;
            share = &mut share => share.unwrap_or_else(|_| Share::new(self)),
            never = self.look_after() => match never {},
        }
    }

    /// Closes the connections of those who do not go on, for as long as it is polled.
    async fn look_after(&self) -> Never {
        let _one = self.look.lock().await;
        loop {
            self.lines().give_up_late(Instant::now());
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// What one request or answer holds of the [`Account`]; given back when dropped.
pub(crate) struct Share {
    of: Arc<Account>,
    bytes: usize,
    /// It will be more than [`SMALL`].
    is_large: bool,
    /// It may go past the account.
    is_past: bool,
    /// Its request is being read.
    reading: Option<Reading>,
    /// Its place in line; kept by one that was cancelled while it waited.
    at: Option<At>,
}

impl Share {
    /// A share of nothing.
    #[must_use]
    pub(crate) fn new(of: &Arc<Account>) -> Self {
        let of = of.clone();
        Self { of, bytes: 0, is_large: false, is_past: false, reading: None, at: None }
    }

    /// Bytes that it holds.
    #[must_use]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes all that a frame of `total` bytes needs, which is to be read, if there is room and
    /// nobody waits; tells whether it holds that much now.
    pub(crate) fn try_claim(&mut self, total: usize) -> bool {
        if self.bytes >= total {
            return true;
        }
        let is_large = total > SMALL;
        let account = self.of.clone();
        let reading = account.lines().try_read(&account, total, is_large);
        if let Some(reading) = reading {
            account.begins(Some(&reading));
            let mut granted = Self::new(&account);
            (granted.bytes, granted.is_large, granted.reading) = (total, is_large, Some(reading));
            self.add(granted);
        }
        self.bytes >= total
    }

    /// Waits until it holds all that a frame of `total` bytes needs, which comes from `ip`. Cancel
    /// safe, and keeps its place in line.
    pub(crate) async fn claim(&mut self, total: usize, ip: IpAddr) {
        while !self.try_claim(total) {
            let account = self.of.clone();
            let at = *self.at.get_or_insert_with(|| account.lines().frame_from(ip, total));
            self.add(account.wait(at, total, total > SMALL).await);
            self.at = None;
        }
    }

    /// Grows to `total` bytes if there is room; tells whether it holds that much now.
    pub(crate) fn try_grow_to(&mut self, total: usize) -> bool {
        let more = total.saturating_sub(self.bytes);
        if more > 0 {
            if self.is_past {
                self.of.take_past(more);
            } else if !self.of.try_take_whole(more, self.is_large || total > SMALL) {
                return false;
            }
            self.bytes = total;
        }
        true
    }

    /// Grows to `total` bytes for a request that was read, and waits for room. Cancel safe, and
    /// keeps its place in line.
    pub(crate) async fn grow_to(&mut self, total: usize) {
        while !self.try_grow_to(total) {
            self.is_large |= total > SMALL;
            let account = self.of.clone();
            let at = *self.at.get_or_insert_with(|| account.lines().whole());
            self.add(account.wait(at, total - self.bytes, self.is_large).await);
            self.at = None;
        }
    }

    /// Until when the client must move the next bytes of the frame that is being read, if others
    /// wait for its memory.
    pub(crate) fn must_move_by(&self, until: Instant) {
        if let Some(reading) = &self.reading {
            reading.must_move_by(until);
        }
    }

    /// Completes when the client is given up, because others need what it holds.
    pub(crate) async fn given_up(&self) {
        match &self.reading {
            Some(reading) => reading.given_up().await,
            None => std::future::pending().await,
        }
    }

    /// The frame was read: what is held no longer depends on its client.
    pub(crate) fn is_read(&mut self) {
        if let Some(reading) = self.reading.take() {
            self.of.ends(&mut self.of.lines(), &reading);
            self.of.serve();
        }
    }

    /// Holds what `other` held too.
    pub(crate) fn add(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
        self.is_large |= other.is_large;
        self.is_past |= std::mem::take(&mut other.is_past);
        self.reading = self.reading.take().or_else(|| other.reading.take());
    }

    /// Grows or shrinks to `total` bytes; tells whether it could.
    pub(crate) fn try_resize_to(&mut self, total: usize) -> bool {
        if total >= self.bytes {
            return self.try_grow_to(total);
        }
        self.shrink_to(total);
        true
    }

    /// Shrinks to `total` bytes, if it holds more. The right to go past the account goes with what
    /// was past it.
    pub(crate) fn shrink_to(&mut self, total: usize) {
        let less = self.bytes.saturating_sub(total);
        self.bytes -= less;
        self.of.used.fetch_sub(less, Ordering::SeqCst);
        let is_within = total <= SMALL || self.of.used() <= self.of.most(true);
        if self.is_past && is_within {
            self.is_past = false;
            self.of.end_past(&mut self.of.lines());
        }
        self.of.serve();
    }

    /// Completes when others wait for what this share holds. Small ones are in the way only when
    /// they have taken the part that is kept for them.
    pub(crate) async fn until_pressed(&self) {
        if self.bytes == 0 {
            return std::future::pending().await;
        }
        loop {
            let pressed = self.of.pressed.notified();
            let is_in_the_way =
                self.bytes > SMALL || self.of.used() > self.of.bytes - self.of.bytes / SMALL_PART;
            if is_in_the_way && self.of.waiting.load(Ordering::SeqCst) > 0 {
                return;
            }
            pressed.await;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.used.fetch_sub(self.bytes, Ordering::SeqCst);
        let reading = self.reading.take();
        if self.is_past || reading.is_some() {
            let mut lines = self.of.lines();
            if self.is_past {
                self.of.end_past(&mut lines);
            }
            reading.iter().for_each(|reading| self.of.ends(&mut lines, reading));
        } else if self.bytes == 0 {
            return;
        }
        self.of.serve();
    }
}

/// One who waits.
struct InLine<'a> {
    account: &'a Arc<Account>,
    at: At,
}

impl<'a> InLine<'a> {
    fn enter(account: &'a Arc<Account>, at: At, waiting: Waiting) -> Self {
        account.lines().enter(at, waiting);
        account.waiting.fetch_add(1, Ordering::SeqCst);
        account.pressed.notify_waiters();
        Self { account, at }
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.account.waiting.fetch_sub(1, Ordering::SeqCst);
        let was_waiting = self.account.lines().leave(self.at);
        if was_waiting {
            // Those behind it may need less.
            self.account.serve();
        }
    }
}

/// Files that a partition may hold open beside those of sealed segments: a segment and its two
/// indexes.
const FILES_PER_PARTITION: usize = 3;
/// Descriptors for everything else: standard streams, listeners, the admin port's connections, the
/// metadata log, cold reads.
const SPARE_DESCRIPTORS: usize = 160;

/// Counts connections, in all and by address.
pub(crate) struct Connections {
    most: AtomicUsize,
    most_per_ip: AtomicUsize,
    descriptors: usize,
    open: Mutex<(usize, BTreeMap<IpAddr, usize>)>,
}

/// A counted connection; dropping it gives its place back.
pub(crate) struct Place {
    of: Arc<Connections>,
    ip: IpAddr,
}

/// A bound on connections that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectionBound {
    #[error("max.connections is reached")]
    All,
    #[error("max.connections.per.ip is reached")]
    PerIp,
    #[error(
        "the remaining file descriptors are kept for the files of partitions; raise the limit of \
        open files (ulimit -n)"
    )]
    Descriptors,
}

impl ConnectionBound {
    /// Its name in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::All => "max.connections",
            Self::PerIp => "max.connections.per.ip",
            Self::Descriptors => "open_files",
        }
    }
}

impl Connections {
    /// Bounds of `max.connections` and `max.connections.per.ip` in a process that may hold
    /// `descriptors`.
    #[must_use]
    pub(crate) fn new(most: usize, most_per_ip: usize, descriptors: usize) -> Self {
        Self {
            most: most.into(),
            most_per_ip: most_per_ip.into(),
            descriptors,
            open: Mutex::default(),
        }
    }

    /// Sets other bounds. Connections above them stay; new ones are refused until there is a place.
    pub(crate) fn set_bounds(&self, most: usize, most_per_ip: usize) {
        self.most.store(most, Ordering::Relaxed);
        self.most_per_ip.store(most_per_ip, Ordering::Relaxed);
    }

    /// How many connections may be open beside the files of so many partitions. With more
    /// partitions than there are descriptors connections keep a quarter: files that are idle are
    /// closed.
    fn for_connections(&self, partitions: usize) -> usize {
        let for_files = partitions
            .saturating_mul(FILES_PER_PARTITION)
            .saturating_add(SPARE_DESCRIPTORS)
            .saturating_add(sealed_files_max(self.descriptors));
        self.descriptors.saturating_sub(for_files).max(self.descriptors / 4)
    }

    /// A place for a connection from `ip`, while this broker has `partitions`.
    ///
    /// # Errors
    /// The bound that is reached.
    pub(crate) fn enter(
        self: &Arc<Self>,
        ip: IpAddr,
        partitions: usize,
    ) -> Result<Place, ConnectionBound> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.0 >= self.most.load(Ordering::Relaxed) {
            return Err(ConnectionBound::All);
        }
        if open.0 >= self.for_connections(partitions) {
            return Err(ConnectionBound::Descriptors);
        }
        let of_ip = open.1.get(&ip).copied().unwrap_or(0);
        if of_ip >= self.most_per_ip.load(Ordering::Relaxed) {
            return Err(ConnectionBound::PerIp);
        }
        open.1.insert(ip, of_ip + 1);
        open.0 += 1;
        Ok(Place { of: self.clone(), ip })
    }

    /// Connections that are open.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.of.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.0 = open.0.saturating_sub(1);
        if let Some(of_ip) = open.1.get_mut(&self.ip) {
            *of_ip -= 1;
            if *of_ip == 0 {
                open.1.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_bounded_in_all_and_by_address() {
        let connections = Arc::new(Connections::new(3, 2, 10_000));
        let (a, b) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let first = connections.enter(a, 0).unwrap();
        let _second = connections.enter(a, 0).unwrap();
        assert_eq!(connections.enter(a, 0).err(), Some(ConnectionBound::PerIp));
        let _third = connections.enter(b, 0).unwrap();
        assert_eq!(connections.enter(b, 0).err(), Some(ConnectionBound::All));
        drop(first);
        assert_eq!(connections.count(), 2);
        assert!(connections.enter(a, 0).is_ok());
    }

    #[test]
    fn connections_leave_the_files_of_partitions_their_descriptors() {
        let connections = Arc::new(Connections::new(usize::MAX, usize::MAX, 2_000));
        let ip = IpAddr::from([127, 0, 0, 1]);
        let mut places = Vec::new();
        let mut fill = |partitions| {
            let refused = loop {
                match connections.enter(ip, partitions) {
                    Ok(place) => places.push(place),
                    Err(bound) => break bound,
                }
            };
            (refused, places.len())
        };
        assert_eq!(
            fill(10_000),
            (ConnectionBound::Descriptors, 500),
            "a quarter, however many partitions"
        );
        let spare = SPARE_DESCRIPTORS + sealed_files_max(2_000);
        assert!(sealed_files_max(2_000) > 3 * (125 + 64 + 16) + 124, "also the files of answers");
        assert_eq!(fill(50), (ConnectionBound::Descriptors, 2_000 - 150 - spare));
        assert_eq!(fill(0), (ConnectionBound::Descriptors, 2_000 - spare));
    }

    const MIB: usize = 1024 * 1024;

    fn share(account: &Arc<Account>, bytes: usize) -> Share {
        let mut share = Share::new(account);
        assert!(share.try_grow_to(bytes), "no room for {bytes}");
        share
    }

    #[test]
    fn small_ones_have_a_part_that_large_ones_cannot_take() {
        let account = Account::new(8 * MIB);
        let large = share(&account, 7 * MIB);
        assert!(!Share::new(&account).try_grow_to(SMALL + 1));
        assert!(!Share::new(&account).try_claim(MIB), "nor a large frame");
        let small: Vec<Share> = (0..MIB / SMALL).map(|_| share(&account, SMALL)).collect();
        assert!(!Share::new(&account).try_grow_to(1), "more than the account");
        drop(large);
        assert_eq!(account.free(), 7 * MIB);
        drop(small);
        assert_eq!(account.used(), 0);
    }

    #[tokio::test]
    async fn a_share_gives_back_what_it_no_longer_needs() {
        let account = Account::new(MIB);
        let mut held = share(&account, MIB / 2);
        assert!(held.try_resize_to(10));
        assert_eq!((held.bytes(), account.used()), (10, 10));
        held.grow_to(30).await;
        assert_eq!(account.used(), 30);
    }

    #[tokio::test]
    async fn requests_that_were_read_and_wait_for_each_other_all_end() {
        let account = Account::new(MIB);
        // Each has half of what it needs, and nothing is left.
        let held: Vec<Share> = (0..2).map(|_| share(&account, MIB * 7 / 16)).collect();
        let ended = Arc::new(AtomicUsize::new(0));
        let mut waiting = tokio::task::JoinSet::new();
        for mut share in held {
            let ended = ended.clone();
            waiting.spawn(async move {
                share.grow_to(3 * MIB / 4).await;
                ended.fetch_add(1, Ordering::Relaxed);
            });
        }
        while waiting.join_next().await.is_some() {}
        assert_eq!((ended.load(Ordering::Relaxed), account.used()), (2, 0));
    }

    #[tokio::test]
    async fn one_goes_past_the_account_and_the_others_wait() {
        let account = Account::new(MIB);
        let mut first = Share::new(&account);
        first.grow_to(3 * MIB).await;
        let mut second = Share::new(&account);
        let mut growing = Box::pin(second.grow_to(3 * MIB));
        assert!(futures::poll!(&mut growing).is_pending());
        assert!(Share::new(&account).try_grow_to(MIB / 2), "the account itself is not taken");
        // It holds what others need, and is told so.
        first.until_pressed().await;
        drop(first);
        growing.await;
        drop(second);
        assert_eq!(account.used(), 0);
    }

    const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    /// Connections that each announce a request of `bytes` and stop; each comes back at once when
    /// it is closed.
    fn stallers(account: &Arc<Account>, many: usize, bytes: usize) -> tokio::task::JoinSet<()> {
        let mut stallers = tokio::task::JoinSet::new();
        for _ in 0..many {
            let account = account.clone();
            stallers.spawn(async move {
                loop {
                    let mut share = Share::new(&account);
                    share.claim(bytes, STRANGER).await;
                    share.given_up().await;
                }
            });
        }
        stallers
    }

    /// How long a request of `bytes` waits that is read in no time, and the longest of ten.
    async fn longest_wait(account: &Arc<Account>, bytes: usize, ip: IpAddr) -> Duration {
        let mut longest = Duration::ZERO;
        for _ in 0..10 {
            let begun = Instant::now();
            let mut share = Share::new(account);
            share.claim(bytes, ip).await;
            share.is_read();
            longest = longest.max(begun.elapsed());
            assert!(account.used() <= account.size() + 100 * MIB, "{}", account.used());
            drop(share);
            tokio::time::sleep(Duration::from_millis(770)).await;
        }
        longest
    }

    /// 400 of them kept a request of 1 MiB waiting for 20 to 45 s.
    #[tokio::test(start_paused = true)]
    async fn requests_that_stop_keep_no_other_waiting() {
        for (stall, honest, ip, most_ms) in [
            // From the same address, as all are behind one NAT.
            (99 * MIB, MIB, STRANGER, 1_200),
            (99 * MIB, 40 * MIB, STRANGER, 1_200),
            (90 * MIB, MIB, STRANGER, 1_200),
            (90 * MIB, 60 * MIB, STRANGER, 1_200),
            (20 * MIB, MIB, STRANGER, 1_200),
            (80 * MIB, MIB, STRANGER, 100),
            // As large as those that stop, or larger: they share what there is.
            (MIB, MIB, STRANGER, 4_000),
            (MIB, 3 * MIB, STRANGER, 4_000),
            (MIB, 100 * MIB, STRANGER, 5_000),
            // From an address of its own it has the next turn.
            (99 * MIB, 99 * MIB, OTHER, 2_400),
            (99 * MIB, 100 * MIB, OTHER, 2_400),
            (MIB, MIB, OTHER, 1_400),
        ] {
            let account = Account::new(256 * MIB);
            let stallers = stallers(&account, 400, stall);
            tokio::time::sleep(Duration::from_millis(500)).await;
            let waited = longest_wait(&account, honest, ip).await;
            let of = format!("{} MiB from {ip} beside {} MiB", honest / MIB, stall / MIB);
            assert!(waited <= Duration::from_millis(most_ms), "{of}: {waited:?}");
            let metadata = Share::new(&account).try_resize_to(10 * MIB);
            assert!(metadata, "{of}: no answer is refused for requests that are not there");
            drop(stallers);
        }
    }

    #[tokio::test]
    async fn large_requests_that_go_on_for_long_keep_no_small_one_waiting() {
        let account = Account::new(256 * MIB);
        let mut large = Vec::new();
        for bytes in [80 * MIB, 96 * MIB, 100 * MIB, 8 * MIB] {
            loop {
                let mut share = Share::new(&account);
                if futures::poll!(Box::pin(share.claim(bytes, STRANGER))).is_pending() {
                    break;
                }
                large.push(share);
            }
        }
        assert!(large.len() > 3, "two pools, and one goes past the account");
        let mut small = Share::new(&account);
        assert!(futures::poll!(Box::pin(small.claim(MIB, STRANGER))).is_ready());
    }

    /// Those who are slow and in nobody's way are let be, and of the others the largest goes first.
    #[tokio::test(start_paused = true)]
    async fn no_more_clients_are_given_up_than_those_who_wait_need() {
        let account = Account::new(64 * MIB);
        let mut reading: Vec<Share> = Vec::new();
        for bytes in [20 * MIB, 2 * MIB, 22 * MIB] {
            let mut share = Share::new(&account);
            assert!(share.try_claim(bytes));
            reading.push(share);
        }
        tokio::time::sleep(Duration::from_secs(20)).await;
        reading[2].must_move_by(Instant::now() + Duration::from_secs(5));
        for share in &reading {
            assert!(futures::poll!(Box::pin(share.given_up())).is_pending(), "nobody waits");
        }
        // The right to go past the account is taken.
        let mut past = Share::new(&account);
        past.claim(70 * MIB, STRANGER).await;
        past.is_read();
        let mut waits = Share::new(&account);
        let mut claim = Box::pin(waits.claim(3 * MIB, STRANGER));
        assert!(futures::poll!(&mut claim).is_pending());
        let mut given_up = Vec::new();
        for share in &reading {
            given_up.push(futures::poll!(Box::pin(share.given_up())).is_ready());
        }
        assert_eq!(given_up, [true, false, false]);
        drop((reading, past));
        claim.await;
        drop(waits);
        assert_eq!((account.used(), account.being_read.load(Ordering::Relaxed)), (0, 0));
    }

    #[tokio::test]
    async fn one_that_was_cancelled_keeps_its_place_in_line() {
        let account = Account::new(8 * MIB);
        let mut past = Share::new(&account);
        past.claim(10 * MIB, STRANGER).await;
        let (mut first, mut second) = (Share::new(&account), Share::new(&account));
        assert!(futures::poll!(Box::pin(first.claim(5 * MIB, STRANGER))).is_pending());
        let mut waits = Box::pin(second.claim(5 * MIB, STRANGER));
        assert!(futures::poll!(&mut waits).is_pending());
        let mut again = Box::pin(first.claim(5 * MIB, STRANGER));
        assert!(futures::poll!(&mut again).is_pending());
        drop(past);
        assert!(futures::poll!(&mut waits).is_pending());
        again.await;
        drop(first);
        waits.await;
    }

    #[tokio::test]
    async fn one_that_gives_up_waiting_leaves_nothing_behind() {
        let account = Account::new(MIB);
        let first = {
            let mut share = Share::new(&account);
            share.grow_to(2 * MIB).await;
            share
        };
        let mut second = Share::new(&account);
        assert!(futures::poll!(Box::pin(second.grow_to(MIB))).is_pending());
        assert_eq!(account.waiting.load(Ordering::Relaxed), 0);
        drop(first);
        assert!(second.try_grow_to(MIB / 2));
        drop(second);
        assert_eq!(account.used(), 0);
    }

    #[tokio::test]
    async fn many_small_ones_give_way_when_they_are_all_there_is() {
        let account = Account::new(MIB);
        let parked: Vec<Share> = (0..MIB / SMALL).map(|_| share(&account, SMALL)).collect();
        assert!(futures::poll!(Box::pin(parked[0].until_pressed())).is_pending(), "nobody waits");
        let mut past = Share::new(&account);
        past.grow_to(1).await;
        let mut waits = Share::new(&account);
        let mut growing = Box::pin(waits.grow_to(1));
        assert!(futures::poll!(&mut growing).is_pending());
        assert!(futures::poll!(Box::pin(parked[0].until_pressed())).is_ready());
        drop((parked, past));
        growing.await;
    }

    #[test]
    fn a_share_that_is_added_is_given_back_once() {
        let account = Account::new(MIB);
        let mut held = share(&account, 10);
        held.add(share(&account, 20));
        assert_eq!((held.bytes(), account.used()), (30, 30));
        drop(held);
        assert_eq!(account.used(), 0);
    }
}
