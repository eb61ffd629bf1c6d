//! Turns for reads that wait for the device.
//!
//! Hundreds of consumers that catch up read what is not in memory at the same time. A volume that
//! is slow or hangs holds up those who read from it, but never all threads that may wait: syncs,
//! other log directories and the metadata need them.

use std::sync::Arc;

use letterbox_env::Env;
use tokio::sync::Semaphore;

/// Reads at once in one log directory: a device that has more of them waiting gets no faster.
const AT_ONCE: usize = 64;
/// Reads at once in all log directories together, of the 512 threads that may wait; each directory
/// has at least [`LEAST`].
const ALL: usize = 256;
const LEAST: usize = 4;

/// The turns of one log directory.
#[derive(Clone)]
pub struct ColdReads(Arc<Semaphore>);

impl ColdReads {
    /// Of one of `dirs` log directories.
    pub(super) fn new(dirs: usize) -> Self {
        Self(Arc::new(Semaphore::new((ALL / dirs.max(1)).clamp(LEAST, AT_ONCE))))
    }

    /// Runs `read`, of a file of the directory, off the async threads when it is its turn; first
    /// come, first served. One that has begun runs to its end, and keeps its turn until then, when
    /// the future is dropped.
    pub async fn run<T: Send + 'static>(
        &self,
        env: &Env,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        // The semaphore is never closed.
        let turn = self.0.clone().acquire_owned().await;
        env.blocking(move || {
            let _turn = turn;
            read()
        })
        .await
    }
}
