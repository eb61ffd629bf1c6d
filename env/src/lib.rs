//! The seam between Letterbox and the outside world.
//!
//! Everything that reaches a socket, a disk, the wall clock or a source of randomness goes through
//! an [`Env`]. The real one ([`Env::real`]) stands on tokio and rustix; the simulated one lives in
//! `sim/` and runs whole clusters in one thread under one seed. clippy's disallowed lists
//! (`clippy.toml`) hold the seam: the calls this crate wraps may not be made anywhere else.
//!
//! Monotonic time is `tokio::time` in both worlds: the simulation pauses and advances tokio's
//! clock.

mod causes;
mod disk;
mod failing;
mod fault;
mod gather;
mod log_filter;
mod net;
pub mod panics;
mod real;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

pub use causes::with_causes;
pub use disk::{DirEntry, Disk, File, FileRef, OpenMode};
pub use failing::Failing;
pub use fault::{Fault, Resource, has_all_descriptors, not_synced};
pub use gather::Gather;
pub use log_filter::{WrongDirective, log_filter};
pub use net::{
    BoxListener, BoxStream, Listener, Net, Stream, TryWrite, join_address, split_address,
    split_listener,
};

/// A boxed future, as the object-safe traits of this crate return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The wall clock. Never used to decide who leads or whether a lease still holds.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970-01-01T00:00:00Z. May jump in either direction.
    fn wall_ms(&self) -> i64;
}

/// A source of random bytes: ids, jitter.
pub trait Random: Send + Sync {
    /// Fills `buffer` with random bytes.
    fn fill(&self, buffer: &mut [u8]);
}

/// Where work that may block a thread runs.
pub trait Tasks: Send + Sync {
    /// Runs `job` where blocking is allowed and completes when it has returned.
    ///
    /// Not cancel safe in effect: a job that has started runs to its end when the future is
    /// dropped.
    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()>;

    /// As [`Tasks::blocking`], on threads that nothing else uses: for the work that acknowledgements
    /// and the metadata wait for, a few jobs at a time, so that no other work that waits holds it
    /// up. In the simulation, which has one thread, it is like any other.
    fn urgent(&self, job: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        self.blocking(job)
    }

    /// Runs `work` to its end where no other task can hold it up: on a thread and a runtime of its
    /// own, to which the sockets belong that it makes. In the simulation, whose tasks never block,
    /// it is a task like any other. Dropping the future ends the work.
    ///
    /// # Errors
    /// There is no thread or descriptor for it.
    fn apart(&self, work: BoxFuture<'static, ()>) -> io::Result<BoxFuture<'static, ()>> {
        Ok(work)
    }

    /// Whether such a job may wait for what tasks do. Not in the simulation, whose one thread would
    /// wait for itself.
    fn may_wait(&self) -> bool {
        true
    }
}

/// Everything the outside world is reached through. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    /// Listeners, streams, name look-up.
    pub net: Arc<dyn Net>,
    /// Files and directories.
    pub disk: Arc<dyn Disk>,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Ids and jitter.
    pub random: Arc<dyn Random>,
    /// Blocking work.
    pub tasks: Arc<dyn Tasks>,
}

impl Env {
    /// The real world: tokio's sockets, positioned file I/O, the system's clock and randomness.
    #[must_use]
    pub fn real() -> Self {
        real::env()
    }

    /// Runs `job` off the async threads and returns its result.
    ///
    /// # Panics
    /// When `job` panicked or the runtime is shutting down.
    pub async fn blocking<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (job, result) = with_result(job);
        self.tasks.blocking(job).await;
        result.await.expect("blocking job ended without a result")
    }

    /// As [`Env::blocking`], where no other work that may wait holds it up ([`Tasks::urgent`]).
    ///
    /// # Panics
    /// When `job` panicked or the runtime is shutting down.
    pub async fn urgent<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (job, result) = with_result(job);
        self.tasks.urgent(job).await;
        result.await.expect("urgent job ended without a result")
    }

    /// A random 64-bit number.
    #[must_use]
    pub fn random_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A random (version 4) id, never one that Kafka reserves (`0`, `1`: KIP-516, KIP-858).
    #[must_use]
    pub fn random_uuid(&self) -> uuid::Uuid {
        let mut bytes = [0; 16];
        self.random.fill(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }
}

/// `job`, and where its result comes.
fn with_result<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> (Box<dyn FnOnce() + Send>, tokio::sync::oneshot::Receiver<T>) {
    let (result, receive) = tokio::sync::oneshot::channel();
    let job = Box::new(move || {
        // The caller may have gone away; then nobody wants the result.
        let _ = result.send(job());
    });
    (job, receive)
}
