//! The runtime that openraft runs on: tokio, with randomness from the `Env`.
//!
//! openraft draws its election timeout from a generator that it asks its runtime type for, without
//! an argument. So the source is kept in a thread-local while one of our futures is polled: many
//! nodes in one thread, each under its own seed, never see one another's.

use std::cell::RefCell;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use letterbox_env::Random;
use openraft::TokioInstant;
use openraft::async_runtime::{AsyncRuntime, TokioOneShotSender};

thread_local! {
    static SOURCE: RefCell<Option<Arc<dyn Random>>> = const { RefCell::new(None) };
}

/// Runs `future`, and whatever openraft spawns from inside it, with `source` as its randomness.
pub(super) async fn with_random<F: Future>(
    source: Option<Arc<dyn Random>>,
    future: F,
) -> F::Output {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| {
        let before = SOURCE.with(|current| current.replace(source.clone()));
        let result = future.as_mut().poll(context);
        SOURCE.with(|current| current.replace(before));
        result
    })
    .await
}

/// tokio, with [`HostRng`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Runtime;

/// The generator of the node whose future is being polled.
pub(super) struct HostRng;

impl rand_core::RngCore for HostRng {
    fn next_u32(&mut self) -> u32 {
        rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rand_core::impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        SOURCE.with(|source| match &*source.borrow() {
            Some(source) => source.fill(dest),
            None => panic!("openraft drew a random number outside of with_random"),
        });
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: Send + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + Send> = tokio::time::Timeout<T>;
    type ThreadLocalRng = HostRng;
    type OneshotSender<T: Send> = TokioOneShotSender<T>;
    type OneshotReceiver<T: Send> = tokio::sync::oneshot::Receiver<T>;
    type OneshotReceiverError = tokio::sync::oneshot::error::RecvError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        let source = SOURCE.with(|source| source.borrow().clone());
        tokio::spawn(with_random(source, future))
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        tokio::time::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        tokio::time::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + Send>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        tokio::time::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        tokio::time::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        error.is_panic()
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        HostRng
    }

    fn oneshot<T: Send>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        (TokioOneShotSender(sender), receiver)
    }
}
