//! Bounds on what clients together can make the broker hold: memory of requests, connections.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use letterbox_storage::sealed_files_max;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Requests and answers up to this size have a part of the account that larger ones cannot take.
pub(crate) const SMALL: usize = 64 * 1024;
/// The part of the account that is kept for small ones: one byte in so many.
const SMALL_PART: usize = 8;

/// The one account of what clients make the broker hold: requests while they are read, decoded and
/// handled, and answers until they are read.
///
/// `queued.max.request.bytes` is its size. Shares grow as bytes come and are given back as they go.
/// Past its size:
/// - a request waits, holding what it has. So that requests which wait for each other always end,
///   the one that has waited longest goes on regardless, one at a time: what is held is at most the
///   account and one request (`socket.request.max.bytes`; twice while its buffer grows). Its client
///   must be quicker than others
///   ([`Pace::begin_in_the_way`](super::pace::Pace::begin_in_the_way)) as long as others wait;
/// - an answer is refused, unless the records in it can be sent from their files;
/// - those up to [`SMALL`] have an eighth of the account that larger ones cannot take, so they
///   still pass.
///
/// Not in it, with bounds of their own: the two buffers of each connection (16 KiB each), the tail
/// cache, and the validation of compressed batches ([`super::heavy`]).
pub(crate) struct Account {
    bytes: usize,
    used: AtomicUsize,
    /// Requests that wait for room.
    waiting: AtomicUsize,
    large_freed: Notify,
    small_freed: Notify,
    /// Someone began to wait.
    pressed: Notify,
    /// The right to go past the account.
    lane: Arc<Semaphore>,
}

impl Account {
    /// An account of `bytes`.
    #[must_use]
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes,
            used: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            large_freed: Notify::new(),
            small_freed: Notify::new(),
            pressed: Notify::new(),
            lane: Arc::new(Semaphore::new(1)),
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

    fn try_take(&self, more: usize, is_large: bool) -> bool {
        let most = self.most(is_large);
        let fits = |used: usize| used.checked_add(more).filter(|after| *after <= most);
        self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            self.used.fetch_sub(bytes, Ordering::SeqCst);
            self.freed();
        }
    }

    fn freed(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.small_freed.notify_one();
            self.large_freed.notify_one();
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
    lane: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// A share of nothing.
    #[must_use]
    pub(crate) fn new(of: &Arc<Account>) -> Self {
        Self { of: of.clone(), bytes: 0, is_large: false, lane: None }
    }

    /// Bytes that it holds.
    #[must_use]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Says that the share will grow to `total` in the end: a large one takes nothing of the part
    /// for small ones, not even at first.
    pub(crate) fn expect(&mut self, total: usize) {
        self.is_large |= total > SMALL;
    }

    /// Grows to `total` bytes if there is room; tells whether it holds that much now.
    pub(crate) fn try_grow_to(&mut self, total: usize) -> bool {
        let more = total.saturating_sub(self.bytes);
        if more > 0 {
            if self.lane.is_some() {
                self.of.used.fetch_add(more, Ordering::SeqCst);
            } else if !self.of.try_take(more, self.is_large || total > SMALL) {
                return false;
            }
            self.bytes = total;
        }
        true
    }

    /// Grows to `total` bytes, and waits for room. Cancel safe; who waited and is cancelled has
    /// lost its place in line.
    pub(crate) async fn grow_to(&mut self, total: usize) {
        if self.try_grow_to(total) {
            return;
        }
        let account = self.of.clone();
        let _waits = Waits::new(&account);
        let freed = if self.is_large || total > SMALL {
            &account.large_freed
        } else {
            &account.small_freed
        };
        let mut lane = pin!(account.lane.clone().acquire_owned());
        loop {
            let notified = freed.notified();
            if self.try_grow_to(total) {
                // What is left may do for the next one.
                return freed.notify_one();
            }
            tokio::select! {
                biased;
                // The semaphore is never closed.
                permit = &mut lane => self.lane = permit.ok(),
                () = notified => {}
            }
        }
    }

    /// Whether it goes past the account.
    pub(crate) fn is_past(&self) -> bool {
        self.lane.is_some()
    }

    /// Whether it goes past the account while others wait, who can only when it is given back.
    pub(crate) fn is_in_the_way(&self) -> bool {
        self.is_past() && self.of.waiting.load(Ordering::SeqCst) > 0
    }

    /// Holds what `other` held too.
    pub(crate) fn add(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
        self.is_large |= other.is_large;
        self.lane = self.lane.take().or_else(|| other.lane.take());
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
        self.of.give_back(less);
        if total <= SMALL || self.of.used() <= self.of.most(true) {
            self.lane = None;
        }
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
        self.lane = None;
        self.of.give_back(self.bytes);
    }
}

/// Counts one who waits.
struct Waits<'a>(&'a Account);

impl<'a> Waits<'a> {
    fn new(account: &'a Account) -> Self {
        account.waiting.fetch_add(1, Ordering::SeqCst);
        account.pressed.notify_waiters();
        Self(account)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
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
        let connections = Arc::new(Connections::new(usize::MAX, usize::MAX, 1_000));
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
            (ConnectionBound::Descriptors, 250),
            "a quarter, however many partitions"
        );
        let spare = SPARE_DESCRIPTORS + sealed_files_max(1_000);
        assert_eq!(fill(50), (ConnectionBound::Descriptors, 1_000 - 150 - spare));
        assert_eq!(fill(0), (ConnectionBound::Descriptors, 1_000 - spare));
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
        let mut begins = Share::new(&account);
        begins.expect(MIB);
        assert!(!begins.try_grow_to(1), "a large one begins with what is kept for small ones");
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
    async fn requests_that_wait_for_each_other_all_end() {
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
        assert!(!Share::new(&account).try_grow_to(1));
        // It holds what others need, and is told so.
        first.until_pressed().await;
        drop(first);
        growing.await;
        drop(second);
        assert_eq!(account.used(), 0);
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
        assert!(futures::poll!(Box::pin(second.grow_to(MIB / 2))).is_pending());
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
