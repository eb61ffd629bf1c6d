//! Who waits for a partition to move on: long polls and acknowledgements.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use letterbox_env::panics::lock;
use letterbox_protocol::model::Offset;
use tokio::sync::Notify;

use super::fetcher::Key;

/// Who waits.
pub(crate) enum Waiter {
    /// A request that looks at all that it asks for.
    Request(Arc<Notify>),
    /// A fetch session, for that partition.
    Session(Arc<Marks>, Key),
}

impl From<&Arc<Notify>> for Waiter {
    fn from(notify: &Arc<Notify>) -> Self {
        Self::Request(notify.clone())
    }
}

impl Waiter {
    fn wake(&self) {
        match self {
            Self::Request(notify) => notify.notify_one(),
            Self::Session(marks, key) => marks.mark(*key),
        }
    }
}

/// The partitions of a session that have moved: at most those that it has.
#[derive(Default)]
pub(crate) struct Marks {
    moved: Mutex<BTreeSet<Key>>,
    /// There is one.
    pub(crate) came: Notify,
}

impl Marks {
    fn mark(&self, key: Key) {
        self.note(key);
        self.came.notify_one();
    }

    /// As one that has moved, for the next request of the session; nobody waits now.
    pub(crate) fn note(&self, key: Key) {
        lock(&self.moved).insert(key);
    }

    pub(crate) fn take(&self) -> BTreeSet<Key> {
        std::mem::take(&mut *lock(&self.moved))
    }
}

/// Requests that wait until a partition's high watermark reaches an offset.
///
/// Ordered by what they wait for, so that a move costs what it wakes and nothing for those that
/// wait on.
#[derive(Default)]
pub(crate) struct Waiters {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// By target, and by number among those of one target.
    who: BTreeMap<(Offset, u64), Waiter>,
    next: u64,
}

/// A place among the waiters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(Offset, u64);

impl Waiters {
    /// Wakes `who` once `moved_to` is told an offset of at least `target`.
    ///
    /// The caller looks at the watermark again after this call, or a move in between is missed.
    pub(crate) fn register(&self, target: Offset, who: impl Into<Waiter>) -> Ticket {
        let mut waiting = self.lock();
        let ticket = Ticket(target, waiting.next);
        waiting.next += 1;
        waiting.who.insert((ticket.0, ticket.1), who.into());
        ticket
    }

    /// Gives a place up: its request was answered, or waits for something else. Nothing happens
    /// when it was woken already.
    pub(crate) fn forget(&self, Ticket(target, number): Ticket) {
        self.lock().who.remove(&(target, number));
    }

    /// Wakes everyone whose target is reached.
    pub(crate) fn moved_to(&self, offset: Offset) {
        let mut waiting = self.lock();
        while let Some(first) = waiting.who.first_entry()
            && first.key().0 <= offset
        {
            first.remove().wake();
        }
    }

    /// Wakes everyone: the partition is gone or can no longer be written.
    pub(crate) fn wake_all(&self) {
        self.moved_to(Offset::MAX);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn who_has_waited_for_what_is_reached_is_woken_and_nobody_else() {
        let waiters = Waiters::default();
        let notify: Vec<Arc<Notify>> = (0..4).map(|_| Arc::default()).collect();
        let tickets: Vec<Ticket> = notify
            .iter()
            .zip([5, 3, 5, 9])
            .map(|(who, target)| waiters.register(target, who))
            .collect();
        waiters.forget(tickets[2]);
        let woken =
            || notify.iter().map(|who| who.notified().now_or_never().is_some()).collect::<Vec<_>>();
        waiters.moved_to(5);
        assert_eq!(woken(), [true, true, false, false]);
        waiters.forget(tickets[0]);
        waiters.wake_all();
        assert_eq!(woken(), [false, false, false, true]);
    }
}
