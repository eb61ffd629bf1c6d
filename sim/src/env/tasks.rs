//! Blocking work: virtual time passes before the job (waiting for a thread) and after it (the
//! device), and the job itself runs in between at one moment on the simulation's only thread.
//!
//! As with a real pool, a job that was handed over runs even when nobody waits for it any more; a
//! crash can take it before it has begun, or its answer after it has run. A power cut in the middle
//! of a job is [`crate::disk::SimDisk::cut_power_after`].

use std::sync::Arc;
use std::time::Duration;

use letterbox_env::{BoxFuture, Tasks};
use tokio::time::sleep;

use super::Machine;

/// The longest wait for a thread of the pool, in microseconds.
const QUEUE_MICROS_MAX: u64 = 500;

/// The machine's threads, but only those that the paused time of a test waits for: while an urgent
/// job runs on its own threads, paused time passes as if nothing was going on.
pub struct Waited(pub Arc<dyn Tasks>);

impl Tasks for Waited {
    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        self.0.blocking(job)
    }
}

pub(super) struct SimTasks(pub(super) Machine);

impl Tasks for SimTasks {
    fn may_wait(&self) -> bool {
        false
    }

    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        let machine = self.0.clone();
        let queued = Duration::from_micros(machine.with_rng(|rng| rng.below(QUEUE_MICROS_MAX)));
        // Timers step in milliseconds, so half of the jobs run at once: a pool with a free thread.
        let queued = if queued.as_micros() < 250 { Duration::ZERO } else { queued };
        let (done, ended) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            sleep(queued).await;
            machine.event("blocking job", &[], &[]);
            machine.0.disk.blocking(true);
            job();
            let device = machine.0.disk.blocking(false);
            sleep(device).await;
            // Nobody may wait for it any more.
            let _ = done.send(());
        });
        Box::pin(async move {
            if ended.await.is_err()
                && let Err(error) = task.await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        })
    }
}
