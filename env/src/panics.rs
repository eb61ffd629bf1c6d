//! What a panic ends.
//!
//! A panic is a fault in our own code. The line is drawn here:
//! - While one connection is being handled ([`Confined`], [`confine`]) a panic ends that connection
//!   and nothing else: what it had in hand is dropped, and the client sees a closed connection.
//! - Anywhere else (the syncers, the metadata quorum, timers, the upkeep of logs) it ends the
//!   process, because nobody would do that work from then on. The next start recovers as from a
//!   power cut.
//! - State that several connections share lies behind locks. A lock whose holder panicked is
//!   poisoned: what is behind it may be half-changed, so the next one who wants it ends the process
//!   instead of going on with it ([`lock`]).
//!
//! [`end_process_on_panic`] puts this in force; a program calls it first. Without it (in tests) a
//! panic behaves as usual.

use std::any::Any;
use std::cell::Cell;
use std::future::Future;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll};

thread_local! {
    static IS_CONFINED: Cell<bool> = const { Cell::new(false) };
}

/// Makes every panic end the process, but for those that are confined. The message goes to standard
/// error first.
pub fn end_process_on_panic() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        if !IS_CONFINED.get() {
            std::process::abort();
        }
    }));
}

/// What a confined panic said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked(pub String);

impl Panicked {
    fn from_payload(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        Self(
            text.or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "a panic without words".to_owned()),
        )
    }
}

/// Sets the mark for as long as it lives.
struct Mark(bool);

impl Mark {
    fn set() -> Self {
        Self(IS_CONFINED.replace(true))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        IS_CONFINED.set(self.0);
    }
}

/// A future whose panics end it and nothing else.
pub struct Confined<F>(Pin<Box<F>>);

impl<F: Future> Confined<F> {
    /// Confines `future`.
    pub fn new(future: F) -> Self {
        Self(Box::pin(future))
    }
}

impl<F: Future> Future for Confined<F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let _mark = Mark::set();
        // Whoever shares something with it does so behind locks, see [`lock`].
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context))) {
            Ok(polled) => polled.map(Ok),
            Err(payload) => Poll::Ready(Err(Panicked::from_payload(&*payload))),
        }
    }
}

/// Runs a part of one connection's work on a thread that has other work: a panic in it is handed
/// over, to go on where the connection is served ([`std::panic::resume_unwind`]).
///
/// # Errors
/// What it panicked with.
pub fn catch<T>(job: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    let _mark = Mark::set();
    catch_unwind(AssertUnwindSafe(job))
}

/// Runs a blocking job of one connection: a panic in it goes on in who waits for the job.
pub fn confine<T>(job: impl FnOnce() -> T) -> T {
    let _mark = Mark::set();
    job()
}

/// Takes a lock whose state must be whole.
///
/// When a holder panicked the state may be half-changed, and answering from it could break what was
/// promised: the process ends.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|_| poisoned())
}

/// Ends the process because shared state may be half-changed.
pub fn poisoned() -> ! {
    // Who does not take it does not learn it.
    let _ = writeln!(
        std::io::stderr(),
        "a panic left shared state half-changed: the process ends, the next start recovers"
    );
    std::process::abort()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::sync::Arc;
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_confined_panic_ends_only_its_future_and_tells_what_it_said() {
        let mut confined = Confined::new(async {
            assert!(IS_CONFINED.get());
            panic!("number {}", 7)
        });
        let polled = Pin::new(&mut confined).poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(
            polled.map(|ended: Result<(), _>| ended),
            Poll::Ready(Err(Panicked("number 7".to_owned())))
        );
        assert!(!IS_CONFINED.get(), "the mark outlives the panic");
    }

    /// Runs `name`, a test of this file, in a process of its own; tells whether that was aborted.
    fn is_aborted(name: &str) -> bool {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("panics::tests::{name}"), "--ignored", "--nocapture"]);
        let status = command.output().unwrap().status;
        assert!(status.success() || status.signal().is_some(), "{name}: {status}");
        status.signal() == Some(rustix::process::Signal::ABORT.as_raw())
    }

    fn panics_confined(with: impl FnOnce() + 'static) {
        let polled = Pin::new(&mut Confined::new(async { with() }))
            .poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(Err(_))));
    }

    #[test]
    #[ignore = "run in a process of its own"]
    fn child_confined() {
        end_process_on_panic();
        panics_confined(|| panic!("one connection's"));
        panics_confined(|| confine(|| panic!("one connection's job")));
    }

    #[test]
    #[ignore = "run in a process of its own"]
    fn child_unconfined() {
        end_process_on_panic();
        let _ = std::thread::spawn(|| panic!("the syncer's")).join();
    }

    #[test]
    #[ignore = "run in a process of its own"]
    fn child_poisoned() {
        end_process_on_panic();
        let shared = Arc::new(Mutex::new(1));
        *lock(&shared) += 1;
        let of = shared.clone();
        panics_confined(move || {
            let _held = lock(&of);
            panic!("in the middle of a change")
        });
        assert_ne!(*lock(&shared), 2, "read what may be half-changed");
    }

    #[test]
    fn the_process_goes_on_only_after_a_confined_panic_that_held_no_lock() {
        assert!(!is_aborted("child_confined"));
        assert!(is_aborted("child_unconfined"));
        assert!(is_aborted("child_poisoned"));
    }
}
