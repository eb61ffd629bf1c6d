//! Work on the CPU that takes long: the validation of large or compressed batches, look-ups by time.
//!
//! It runs where blocking is allowed, on no more than half of the CPUs, so that the async threads always have some of them.
//! What one job may hold is bounded too: a decoder's window and one record of a batch.

use letterbox_env::{Env, panics};
use tokio::sync::Semaphore;

/// Turns for such work; first come, first served.
pub(crate) struct Heavy {
    turns: Semaphore,
}

impl Heavy {
    /// For a process with `workers` async threads.
    pub(crate) fn new(workers: usize) -> Self {
        Self { turns: Semaphore::new((workers / 2).max(1)) }
    }

    /// Runs `job` of a connection when it is its turn. A job that has begun runs to its end when the future is dropped.
    pub(crate) async fn run<T: Send + 'static>(&self, env: &Env, job: impl FnOnce() -> T + Send + 'static) -> T {
        // The semaphore is never closed.
        let _turn = self.turns.acquire().await;
        env.blocking(move || panics::confine(job)).await
    }
}
