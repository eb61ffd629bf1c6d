//! The simulated side of [`letterbox_env::Env`]: turmoil's network, a [`SimDisk`], a wall clock
//! that can jump, seeded random bytes, and blocking work that takes virtual time on the one thread
//! there is.

mod clock;
mod net;
mod random;
mod tasks;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use letterbox_env::Env;
pub use tasks::Waited;

use crate::disk::SimDisk;
use crate::env::net::Socket;
use crate::rng::Rng;
use crate::trace::Trace;

/// Where every simulation's wall clock starts: 2026-01-01T00:00:00Z.
pub const EPOCH_MS: i64 = 1_767_225_600_000;

/// One simulated machine: what stays when the process on it goes.
#[derive(Clone)]
pub(crate) struct Machine(Arc<Shared>);

struct Shared {
    name: String,
    disk: SimDisk,
    trace: Trace,
    rng: Mutex<Rng>,
    wall_offset_ms: AtomicI64,
    running: AtomicBool,
    /// The open streams of the process, in the order they were made.
    sockets: Mutex<BTreeMap<u64, Socket>>,
}

impl Machine {
    pub(crate) fn new(name: &str, seed: u64, trace: &Trace) -> Self {
        let disk = SimDisk::new(Rng::named(seed, name).next_u64());
        disk.observe(trace.clone(), name);
        Self(Arc::new(Shared {
            name: name.to_owned(),
            disk,
            trace: trace.clone(),
            rng: Mutex::new(Rng::named(seed, &format!("{name} random"))),
            wall_offset_ms: AtomicI64::new(0),
            running: AtomicBool::new(false),
            sockets: Mutex::new(BTreeMap::new()),
        }))
    }

    /// The outside world as software on this machine reaches it.
    pub(crate) fn env(&self) -> Env {
        Env {
            net: Arc::new(net::SimNet(self.clone())),
            disk: Arc::new(self.0.disk.clone()),
            clock: Arc::new(clock::SimClock(self.clone())),
            random: Arc::new(random::SimRandom(self.clone())),
            tasks: Arc::new(tasks::SimTasks(self.clone())),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    pub(crate) fn disk(&self) -> &SimDisk {
        &self.0.disk
    }

    /// Lets this machine's wall clock jump by `by_ms`.
    pub(crate) fn jump_clock(&self, by_ms: i64) {
        self.0.wall_offset_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// Whether there is a process that can still do something. While there is none, streams send
    /// nothing and nothing is traced: a runtime drops its tasks in an order that depends on the
    /// process's earlier runs.
    pub(crate) fn is_running(&self) -> bool {
        self.0.running.load(Ordering::Relaxed) && self.0.disk.is_powered()
    }

    pub(crate) fn set_running(&self, running: bool) {
        self.0.running.store(running, Ordering::Relaxed);
    }

    /// Ends all connections in the order they were made, as a kernel does for a process that ended.
    /// Call it on the machine, that is, from inside the simulation.
    pub(crate) fn close_sockets(&self) {
        let sockets =
            std::mem::take(&mut *self.0.sockets.lock().unwrap_or_else(PoisonError::into_inner));
        for socket in sockets.into_values() {
            socket.close();
        }
    }

    fn event(&self, kind: &str, numbers: &[u64], bytes: &[u8]) {
        if self.is_running() {
            self.0.trace.event(now(), &self.0.name, kind, numbers, bytes);
        }
    }

    fn with_rng<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.0.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Virtual time since the simulation began; zero outside of it.
pub(crate) fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}
