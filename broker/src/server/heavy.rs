//! Work on the CPU that takes long: the validation of large or compressed batches, look-ups by
//! time, requests with many elements.
//!
//! It runs where blocking is allowed, on no more than half of the CPUs, so that the async threads
//! always have some of them. What one job may hold is bounded too: a decoder's window and one
//! record of a batch.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use futures::future::BoxFuture;
use letterbox_env::{Env, panics};
use tokio::sync::{Notify, Semaphore};

/// Turns for such work; first come, first served.
pub(crate) struct Heavy {
    turns: Semaphore,
    most: usize,
}

impl Heavy {
    /// For a process with `workers` async threads.
    pub(crate) fn new(workers: usize) -> Self {
        let most = (workers / 2).max(1);
        Self { turns: Semaphore::new(most), most }
    }

    /// Jobs that have begun.
    pub(crate) fn begun(&self) -> usize {
        self.most.saturating_sub(self.turns.available_permits())
    }

    /// Runs `job` of a connection when it is its turn. A job that has begun runs to its end when
    /// the future is dropped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        env: &Env,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        // The semaphore is never closed.
        let _turn = self.turns.acquire().await;
        env.blocking(move || panics::confine(job)).await
    }

    /// Carries out `work` of a connection, each stretch between two waits as [`Heavy::run`] does.
    /// It takes no turn while it waits. Dropped, it is dropped too, at the end of the stretch that
    /// has begun.
    pub(crate) async fn carry<T: Send + 'static>(
        &self,
        env: &Env,
        mut work: BoxFuture<'static, T>,
    ) -> T {
        let woken = Arc::new(Woken::default());
        loop {
            let waker = Waker::from(woken.clone());
            let stretch = move || {
                let polled = work.as_mut().poll(&mut Context::from_waker(&waker));
                (work, polled)
            };
            let (rest, polled) = self.run(env, stretch).await;
            match polled {
                Poll::Ready(result) => return result,
                Poll::Pending => work = rest,
            }
            woken.0.notified().await;
        }
    }
}

/// Notes that work which waited can go on.
#[derive(Default)]
struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{ThreadId, current};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn work_that_is_carried_runs_elsewhere_and_holds_no_turn_while_it_waits() {
        let (env, heavy) = (Env::real(), Heavy::new(1));
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let started = Arc::new(Notify::new());
        let work = {
            let started = started.clone();
            async move {
                let mut threads: Vec<ThreadId> = vec![current().id()];
                started.notify_one();
                wait.await.unwrap();
                threads.push(current().id());
                tokio::time::sleep(Duration::from_millis(1)).await;
                threads.push(current().id());
                threads
            }
        };
        let carried = heavy.carry(&env, Box::pin(work));
        let other = async {
            started.notified().await;
            // There is one turn.
            heavy.run(&env, || ()).await;
            go.send(()).unwrap();
        };
        let (threads, ()) = tokio::join!(carried, other);
        assert!(threads.len() == 3 && !threads.contains(&current().id()));
    }
}
