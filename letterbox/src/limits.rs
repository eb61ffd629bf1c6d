//! The limits that the system sets this process: raised where that may be, and named where they are
//! too low.

use std::io;
use std::panic::resume_unwind;
use std::process::ExitCode;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::bail;
use rustix::process::{Resource, Rlimit, Signal as Number, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

/// Threads beside one for each CPU without which a broker does not start: for what blocks, for what
/// is urgent, and those of health and of heartbeats. With more of them it waits less.
const THREADS_MIN: usize = 4;
/// The stack of the first thread, as large as it mostly is.
const STACK_BYTES: usize = 8 << 20;
/// Between two log lines about one limit.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// Runs the program on a stack of its own: how large that of the process is says the limit of
/// stacks (`ulimit -s`), and who overflows it is ended without a line.
#[expect(clippy::disallowed_methods, reason = "the program is not there yet")]
pub(crate) fn on_own_stack(program: fn() -> ExitCode) -> ExitCode {
    let thread = thread::Builder::new().name("main".to_owned()).stack_size(STACK_BYTES);
    match thread.spawn(program) {
        Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
        // A broker says why there is no thread.
        Err(_) => program(),
    }
}

/// Connections and segments need descriptors, and segments may be large; a soft limit is only a
/// default.
#[expect(clippy::disallowed_methods, reason = "the limits are this process's own")]
pub(crate) fn raise() {
    for (resource, what) in [(Resource::Nofile, "open files"), (Resource::Fsize, "file sizes")] {
        let limit = getrlimit(resource);
        if let Err(error) = setrlimit(resource, Rlimit { current: limit.maximum, ..limit }) {
            info!(%error, current = limit.current, "cannot raise the limit of {what}");
        }
    }
    if let Some(bytes) = getrlimit(Resource::Fsize).current {
        warn!(
            bytes,
            "this process may write no larger file (ulimit -f, RLIMIT_FSIZE): what goes past it is \
             refused; raise the limit, or set log.segment.bytes below it"
        );
    }
}

/// Refuses a start without enough threads, which would end in a panic later.
///
/// # Errors
/// What limits them.
#[expect(clippy::disallowed_methods, reason = "only whether there can be threads is asked")]
pub(crate) fn check_threads() -> anyhow::Result<()> {
    let wanted = thread::available_parallelism().map_or(1, usize::from) + THREADS_MIN;
    check_threads_by(wanted, || thread::Builder::new().spawn(thread::park))
}

fn check_threads_by(
    wanted: usize,
    mut begin: impl FnMut() -> io::Result<JoinHandle<()>>,
) -> anyhow::Result<()> {
    let (mut begun, mut refused) = (Vec::with_capacity(wanted), None);
    while begun.len() < wanted && refused.is_none() {
        match begin() {
            Ok(thread) => begun.push(thread),
            Err(error) => refused = Some(error),
        }
    }
    let count = begun.len();
    begun.iter().for_each(|thread| thread.thread().unpark());
    for thread in begun {
        let _ = thread.join(); // it only waited
    }
    match refused {
        Some(error) => bail!(
            "cannot start {wanted} threads, only {count}: {error}; raise the limit of processes \
             and threads (ulimit -u, or the container's pids limit)"
        ),
        None => Ok(()),
    }
}

/// Who writes past the limit of file sizes is ended by the kernel, unless the signal is heard; then
/// the write fails.
pub(crate) struct FileLimit(Signal);

impl FileLimit {
    /// From now on such a write fails.
    pub(crate) fn hear() -> io::Result<Self> {
        signal(SignalKind::from_raw(Number::XFSZ.as_raw())).map(Self)
    }

    /// Says that writes fail, and why; never ends.
    pub(crate) async fn tell(&mut self) {
        while self.0.recv().await.is_some() {
            error!(
                "a write was refused by this process's limit of file sizes (ulimit -f, \
                 RLIMIT_FSIZE); raise the limit and restart the broker, or set log.segment.bytes \
                 below it"
            );
            tokio::time::sleep(SAID_EVERY).await;
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "threads are what it is about")]
    fn too_few_threads_are_refused_with_what_to_do() {
        check_threads_by(4, || thread::Builder::new().spawn(thread::park)).unwrap();
        let mut left = 3;
        let refused = check_threads_by(4, || {
            if left == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            left -= 1;
            thread::Builder::new().spawn(thread::park)
        });
        let said = refused.unwrap_err().to_string();
        assert!(said.contains("4 threads, only 3") && said.contains("ulimit -u"), "{said}");
    }
}
