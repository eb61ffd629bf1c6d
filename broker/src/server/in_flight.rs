//! The requests of one connection that were begun, and their answers in the order of the requests.
//!
//! The connection's task goes on with them and writes their answers. While it does nothing but wait
//! ([`InFlight::next`] with `may_leave`), the thread that has just synced a log does both in its
//! place, for what waited for that sync: then an answer leaves without a hop to another thread, and
//! the task is not woken at all. One lock is held by whoever does it, so answers leave whole and in
//! order.

use std::any::Any;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures::future::BoxFuture;
use futures::task::AtomicWaker;
use letterbox_env::{TryWrite, panics};
use prometheus_client::metrics::counter::Counter;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::dispatch::Outcome;
use super::response::Response;
use crate::replication::deliver::{self, Deliver};

/// Pieces of answers that are written at once.
const PARTS_MAX: usize = 64;

/// Is never there.
pub(super) enum Never {}

/// Requests that were begun, and their outcomes in the order of the requests. Owned by the
/// connection's task.
pub(super) struct InFlight {
    begun: Arc<Begun>,
    waker: Waker,
    /// Something was begun since it was last seen that nothing is left. While this is false there is
    /// no request and nobody else is at it, and no lock is taken to learn that.
    may_have: AtomicBool,
}

struct Begun {
    bytes_sent: Counter,
    /// Of the connection's task. The thread of a delivery has no timers of its own.
    runtime: Option<Handle>,
    inner: Mutex<Inner>,
    /// The connection's task.
    task: AtomicWaker,
    /// A delivery is to come.
    is_due: AtomicBool,
}

struct Inner {
    /// In the order they came. Each wake-up polls all that go on: they are few, and
    /// `FuturesOrdered` wakes its task once more whenever it has polled all it has.
    requests: VecDeque<Request>,
    writer: Option<Arc<dyn TryWrite>>,
    /// The task does nothing but wait: others may go on with what was begun, and write.
    is_left: bool,
    /// When others wrote last.
    answered_at: Option<Instant>,
    /// Others met a panic, which goes on in the task.
    panicked: Option<Box<dyn Any + Send>>,
}

enum Request {
    GoesOn(BoxFuture<'static, Outcome>),
    Ended(Outcome),
}

impl InFlight {
    /// Without a `writer` only the connection's task writes.
    pub(super) fn new(bytes_sent: Counter, writer: Option<Arc<dyn TryWrite>>) -> Self {
        let inner = Inner {
            requests: VecDeque::new(),
            writer,
            is_left: false,
            answered_at: None,
            panicked: None,
        };
        let begun = Arc::new(Begun {
            bytes_sent,
            runtime: Handle::try_current().ok(),
            inner: inner.into(),
            task: AtomicWaker::new(),
            is_due: AtomicBool::new(false),
        });
        Self { waker: begun.clone().into(), begun, may_have: AtomicBool::new(false) }
    }

    pub(super) fn push(&self, request: BoxFuture<'static, Outcome>) {
        self.may_have.store(true, Ordering::Relaxed);
        self.begun.lock().requests.push_back(Request::GoesOn(request));
    }

    pub(super) fn len(&self) -> usize {
        if self.may_have.load(Ordering::Relaxed) { self.count() } else { 0 }
    }

    fn count(&self) -> usize {
        let mut inner = self.begun.lock();
        let len = inner.requests.len();
        if len == 0 {
            inner.is_left = false;
            self.may_have.store(false, Ordering::Relaxed);
        }
        len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When another thread has answered last.
    pub(super) fn answered_at(&self) -> Option<Instant> {
        self.begun.lock().answered_at
    }

    /// The outcome of the oldest request; none without one. Cancel safe.
    ///
    /// With `may_leave` another thread may answer in the meantime, and this does not complete then.
    /// That ends with [`InFlight::come_back`], to be called before the connection is written to.
    pub(super) async fn next(&self, may_leave: bool) -> Option<Outcome> {
        poll_fn(|context| {
            self.begun.task.register(context.waker());
            let mut inner = self.begun.lock();
            inner.is_left = false;
            let next = inner.next(&self.waker);
            inner.is_left = may_leave && next.is_pending();
            next
        })
        .await
    }

    /// The task does more than wait again.
    pub(super) fn come_back(&self) {
        if self.may_have.load(Ordering::Relaxed) {
            self.begun.lock().is_left = false;
        }
    }

    /// Only the connection's task writes from now on.
    pub(super) fn stop_writing(&self) {
        self.begun.lock().writer = None;
    }

    /// Drops what was begun and is not answered; nobody writes for it.
    pub(super) fn drop_all(&self) {
        let begun = {
            let mut inner = self.begun.lock();
            inner.writer = None;
            std::mem::take(&mut inner.requests)
        };
        // Not under the lock: what was begun may wake the task when it is dropped.
        drop(begun);
    }

    /// Goes on with what was begun, for as long as it is polled. What is begun may hold what others
    /// wait for (a turn, a lock), so it must never stand still because of this connection's client.
    pub(super) async fn go_on(&self) -> Never {
        poll_fn(|context| {
            self.begun.task.register(context.waker());
            self.begun.lock().go_on(&self.waker);
            Poll::Pending
        })
        .await
    }
}

impl Drop for InFlight {
    /// What goes on knows how to wake its connection, and so holds it.
    fn drop(&mut self) {
        let mut inner = self.begun.lock();
        inner.is_left = false;
        let held = (inner.writer.take(), std::mem::take(&mut inner.requests));
        drop(inner);
        drop(held);
    }
}

impl Begun {
    /// A panic under this lock ends the connection, to which alone belongs what is behind it.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Begun {
    fn wake(self: Arc<Self>) {
        Self::wake_by_ref(&self);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !deliver::is_delivering() {
            self.task.wake();
        } else if !self.is_due.swap(true, Ordering::AcqRel) {
            deliver::deliver_next(self.clone());
        }
    }
}

impl Deliver for Begun {
    fn deliver(self: Arc<Self>, may_write: bool) {
        // In front of the look at what has ended: what ends after it makes a delivery of its own.
        self.is_due.store(false, Ordering::Release);
        let _in_runtime = self.runtime.as_ref().map(Handle::enter);
        // Where the lock is taken, somebody is at it and may have looked already: the task looks
        // again.
        let is_done = may_write
            && self.inner.try_lock().is_ok_and(|mut inner| {
                let answered = inner.is_left.then(|| {
                    panics::catch(|| inner.answer(&self.bytes_sent, &self.clone().into()))
                });
                match answered {
                    Some(Err(panicked)) => {
                        inner.panicked = Some(panicked);
                        false
                    }
                    Some(Ok(is_done)) => is_done,
                    None => false,
                }
            });
        if !is_done {
            self.task.wake();
        }
    }
}

impl Inner {
    fn next(&mut self, waker: &Waker) -> Poll<Option<Outcome>> {
        if let Some(panicked) = self.panicked.take() {
            std::panic::resume_unwind(panicked);
        }
        self.go_on(waker);
        match self.requests.pop_front() {
            Some(Request::Ended(outcome)) => Poll::Ready(Some(outcome)),
            Some(goes_on) => {
                self.requests.push_front(goes_on);
                Poll::Pending
            }
            None => Poll::Ready(None),
        }
    }

    fn go_on(&mut self, waker: &Waker) {
        for request in &mut self.requests {
            if let Request::GoesOn(future) = request
                && let Poll::Ready(outcome) = future.as_mut().poll(&mut Context::from_waker(waker))
            {
                *request = Request::Ended(outcome);
            }
        }
    }

    /// Goes on with what was begun and writes what has ended, as far as that needs no waiting;
    /// tells whether nothing is left for the task.
    fn answer(&mut self, bytes_sent: &Counter, waker: &Waker) -> bool {
        self.go_on(waker);
        loop {
            while let Some(Request::Ended(Ok(answer))) = self.requests.front()
                && answer.as_ref().is_none_or(Response::is_empty)
            {
                self.requests.pop_front();
            }
            // Several answers are one write.
            let parts: Vec<IoSlice<'_>> = self
                .requests
                .iter()
                .map_while(Request::answer_in_memory)
                .flatten()
                .take(PARTS_MAX)
                .collect();
            let writer = self.writer.as_ref().filter(|_| !parts.is_empty());
            let mut written = writer.map_or(0, |writer| writer.try_write(&parts).unwrap_or(0));
            if written == 0 {
                // Nothing is left, or the task waits for the client, meets the error, sends from
                // files, closes the connection.
                break;
            }
            bytes_sent.inc_by(written as u64);
            for request in &mut self.requests {
                if let Request::Ended(Ok(Some(answer))) = request {
                    written = answer.advance(written);
                }
            }
            self.answered_at = Some(Instant::now());
        }
        !matches!(self.requests.front(), Some(Request::Ended(_)))
    }
}

impl Request {
    fn answer_in_memory(&self) -> Option<impl Iterator<Item = IoSlice<'_>>> {
        if let Self::Ended(Ok(Some(answer))) = self { answer.in_memory_parts() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use bytes::Bytes;
    use tokio::sync::oneshot;

    use super::*;
    use crate::replication::deliver::delivering;

    /// A client that takes `room` bytes.
    struct Client {
        room: Mutex<usize>,
        got: Mutex<Vec<Vec<u8>>>,
    }

    impl TryWrite for Client {
        fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
            let mut room = panics::lock(&self.room);
            let bytes: Vec<u8> =
                parts.iter().flat_map(|part| part.iter().copied()).take(*room).collect();
            if bytes.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            *room -= bytes.len();
            panics::lock(&self.got).push(bytes.clone());
            Ok(bytes.len())
        }
    }

    struct Fixture {
        client: Arc<Client>,
        sent: Counter,
        in_flight: InFlight,
        /// Each ends one request with its answer.
        ends: Vec<Option<oneshot::Sender<&'static str>>>,
    }

    /// A connection with three requests that wait for a sync.
    fn fixture(room: usize) -> Fixture {
        let (client, sent) =
            (Arc::new(Client { room: room.into(), got: Mutex::default() }), Counter::default());
        let in_flight = InFlight::new(sent.clone(), Some(client.clone()));
        let ends = (0..3).map(|_| {
            let (end, answer) = oneshot::channel();
            in_flight.push(Box::pin(async move {
                Ok(answer.await.ok().map(|text: &str| Bytes::from(text).into()))
            }));
            Some(end)
        });
        let ends = ends.collect();
        Fixture { client, sent, in_flight, ends }
    }

    impl Fixture {
        /// The requests end on a thread that has just synced.
        fn sync_ends(&mut self, requests: &[(usize, &'static str)]) {
            delivering(|| {
                for (at, answer) in requests {
                    self.ends[*at].take().unwrap().send(answer).unwrap();
                }
            });
        }

        fn got(&self) -> Vec<String> {
            panics::lock(&self.client.got)
                .drain(..)
                .map(|bytes| String::from_utf8(bytes).unwrap())
                .collect()
        }

        /// What the task finds when it looks.
        fn found(&self, may_leave: bool) -> Option<Option<u64>> {
            match std::pin::pin!(self.in_flight.next(may_leave))
                .poll(&mut Context::from_waker(Waker::noop()))
            {
                Poll::Pending => None,
                Poll::Ready(found) => {
                    Some(found.map(|outcome| outcome.unwrap().map_or(0, |response| response.len())))
                }
            }
        }
    }

    #[test]
    fn answers_leave_in_order_from_the_thread_that_synced_in_one_write() {
        let mut f = fixture(100);
        assert_eq!(f.found(true), None);
        f.sync_ends(&[(1, "second")]);
        assert_eq!(f.got(), [""; 0], "the first is not answered");
        f.sync_ends(&[(2, "third"), (0, "first ")]);
        assert_eq!(f.got(), ["first secondthird"]);
        assert_eq!((f.in_flight.len(), f.sent.get()), (0, 17));
        assert!(f.in_flight.answered_at().is_some());
    }

    #[test]
    fn while_the_task_does_more_than_wait_nobody_else_writes() {
        let mut f = fixture(100);
        assert_eq!(f.found(false), None);
        f.sync_ends(&[(0, "first")]);
        assert_eq!((f.got().len(), f.in_flight.len()), (0, 3));
        assert_eq!(f.found(true), Some(Some(5)));
        f.sync_ends(&[(1, "second")]);
        assert_eq!(f.got().len(), 0, "the task has been given an answer to write");
        assert_eq!(f.found(true), Some(Some(6)));
        assert_eq!(f.found(true), None);
        f.in_flight.come_back();
        f.sync_ends(&[(2, "third")]);
        assert_eq!(f.got().len(), 0, "the task is back");
    }

    #[test]
    fn what_the_client_does_not_take_at_once_is_left_to_the_task() {
        let mut f = fixture(8);
        assert_eq!(f.found(true), None);
        f.sync_ends(&[(0, "first "), (1, "second")]);
        assert_eq!(f.got(), ["first se"]);
        assert_eq!(f.in_flight.len(), 2, "the rest of the second, and the third");
        assert_eq!(f.found(true), Some(Some(4)), "cond");
    }

    #[test]
    fn a_panic_goes_on_where_the_connection_is_served() {
        let mut f = fixture(100);
        let (end, answer) = oneshot::channel::<()>();
        f.in_flight.push(Box::pin(async move {
            let _ = answer.await;
            panic!("met while answering")
        }));
        assert_eq!(f.found(true), None);
        delivering(|| end.send(()).unwrap());
        assert!(panics::catch(|| f.found(true)).is_err());
        f.sync_ends(&[(0, "first")]);
        drop(f);
    }

    /// A Produce to several partitions waits for each of them up to its timeout: when one was
    /// synced before the others, its connection ended.
    #[tokio::test]
    async fn what_goes_on_on_the_thread_that_synced_may_wait_for_a_time() {
        let mut f = fixture(100);
        let (end, answer) = oneshot::channel::<()>();
        f.in_flight.push(Box::pin(async move {
            let _ = answer.await;
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            Ok(Some(Bytes::from("late").into()))
        }));
        assert_eq!(f.found(true), None);
        std::thread::scope(|threads| threads.spawn(|| delivering(|| end.send(()).unwrap())).join())
            .unwrap();
        f.sync_ends(&[(0, "a"), (1, "b"), (2, "c")]);
        let late = f.in_flight.next(true).await.unwrap().unwrap();
        assert_eq!((f.got().concat(), late.map_or(0, |late| late.len())), ("abc".into(), 4));
    }

    #[test]
    fn a_connection_that_ends_lets_go_of_its_socket() {
        let mut f = fixture(100);
        assert_eq!(f.found(true), None);
        drop(std::mem::replace(&mut f.in_flight, InFlight::new(Counter::default(), None)));
        assert_eq!(Arc::strong_count(&f.client), 1);
    }
}
