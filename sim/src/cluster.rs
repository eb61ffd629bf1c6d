//! A whole cluster under one seed.
//!
//! [`Cluster`] hides two ways in which turmoil loses the promise "same seed, same run" (both
//! measured). Dropping a crashed host's runtime drops its tasks in an order that depends on how
//! many tasks the *process* has ever spawned; every stream among them sends FIN or RST, and each of
//! those draws a latency. The same happens when a host that ended by itself is started again. So a
//! host is always cut from its peers while its tasks are dropped. Nothing outside this file calls
//! turmoil's `crash` or `bounce`; clippy's disallowed list holds that.
#![allow(clippy::disallowed_methods, reason = "the one place that takes turmoil's hosts down")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use letterbox_env::Env;
use tokio::sync::watch;

use crate::disk::{DiskStats, Power, SimDisk};
use crate::env::{EPOCH_MS, Machine};
use crate::rng::Rng;
use crate::trace::Trace;

/// What software on a host ends with: nothing, or why it gave up.
pub type Exit = Result<(), String>;

/// What software on a host is given: its outside world, and the signal to stop.
pub struct Process {
    /// Network, disk, clock, randomness, blocking work of this machine.
    pub env: Env,
    /// Turns true when the process is asked to stop (SIGTERM).
    pub stop: watch::Receiver<bool>,
}

impl Process {
    /// Completes when the process is asked to stop. Cancel safe.
    pub async fn stopped(&self) {
        // An error means that the sender is gone, which is as good as a signal.
        let _ = self.stop.clone().wait_for(|stop| *stop).await;
    }
}

/// How the network behaves when nothing is cut. Latency in milliseconds, per direction and segment.
#[derive(Clone, Copy, Debug)]
pub struct NetworkOptions {
    /// The shortest way.
    pub latency_ms_min: u64,
    /// The longest way.
    pub latency_ms_max: u64,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self { latency_ms_min: 1, latency_ms_max: 8 }
    }
}

/// Hosts, clients, networks and disks in one thread.
pub struct Cluster {
    sim: turmoil::Sim<'static>,
    seed: u64,
    rng: Rng,
    trace: Trace,
    machines: BTreeMap<String, Slot>,
    /// Directed links that a fault holds cut.
    cuts: BTreeSet<(String, String)>,
    faults: u64,
}

struct Slot {
    machine: Machine,
    /// `None` for a client: it runs once and is never taken down.
    control: Option<Rc<RefCell<Control>>>,
}

/// What the cluster and the software of a host tell each other.
struct Control {
    stop: watch::Sender<bool>,
    kill: watch::Sender<bool>,
    exit: Option<Exit>,
    starts: u64,
}

impl Cluster {
    /// An empty cluster; everything that follows depends on `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with(seed, NetworkOptions::default(), false)
    }

    /// As [`Cluster::new`], with other latencies, and with the events kept as text if `keep_lines`.
    #[must_use]
    pub fn with(seed: u64, network: NetworkOptions, keep_lines: bool) -> Self {
        let epoch = UNIX_EPOCH + Duration::from_millis(u64::try_from(EPOCH_MS).unwrap_or(0));
        let sim = turmoil::Builder::new()
            .rng_seed(seed)
            .epoch(epoch)
            .enable_random_order()
            .tcp_capacity(4096)
            .min_message_latency(Duration::from_millis(network.latency_ms_min))
            .max_message_latency(Duration::from_millis(network.latency_ms_max))
            .simulation_duration(Duration::from_secs(24 * 3600))
            .build();
        let rng = Rng::named(seed, "cluster");
        Self {
            sim,
            seed,
            rng,
            trace: Trace::new(keep_lines),
            machines: BTreeMap::new(),
            cuts: BTreeSet::new(),
            faults: 0,
        }
    }

    /// Adds a machine called `name` and starts `software` on it; after a crash it is started by
    /// [`Cluster::restart`].
    ///
    /// An error ends the process and is kept for [`Cluster::exit`]; a panic in any of its tasks
    /// fails the run.
    pub fn host<S, F>(&mut self, name: &str, software: S)
    where
        S: Fn(Process) -> F + 'static,
        F: Future<Output = Exit> + 'static,
    {
        let machine = self.machine(name);
        let control = Rc::new(RefCell::new(Control {
            stop: watch::channel(false).0,
            kill: watch::channel(false).0,
            exit: None,
            starts: 0,
        }));
        self.machines.insert(
            name.to_owned(),
            Slot { machine: machine.clone(), control: Some(Rc::clone(&control)) },
        );
        self.sim.host(name, move || {
            let (stop, stopped) = watch::channel(false);
            let (kill, mut killed) = watch::channel(false);
            let starts = {
                let mut control = control.borrow_mut();
                *control = Control { stop, kill, exit: None, starts: control.starts + 1 };
                control.starts
            };
            let process = Process { env: machine.env(), stop: stopped };
            let work = software(process);
            let (machine, control) = (machine.clone(), Rc::clone(&control));
            async move {
                machine.set_running(true);
                tracing::debug!(host = machine.name(), starts, "process starts");
                let exit = tokio::select! {
                    biased;
                    _ = killed.wait_for(|kill| *kill) => None,
                    exit = work => Some(exit),
                };
                // As the kernel does for a process that has ended, however it has: connections end,
                // locks and handles go, and nothing of it runs any more.
                machine.close_sockets();
                machine.set_running(false);
                machine.disk().detach();
                control.borrow_mut().exit = exit;
                Ok(())
            }
        });
    }

    /// Adds a machine called `name` that runs `work` once. It is not taken down; an error fails the
    /// run.
    pub fn client<W, F>(&mut self, name: &str, work: W)
    where
        W: FnOnce(Env) -> F,
        F: Future<Output = Exit> + 'static,
    {
        let machine = self.machine(name);
        machine.set_running(true);
        self.machines.insert(name.to_owned(), Slot { machine: machine.clone(), control: None });
        let work = work(machine.env());
        self.sim.client(name, async move { work.await.map_err(Into::into) });
    }

    fn machine(&self, name: &str) -> Machine {
        assert!(!self.machines.contains_key(name), "{name} is already a machine");
        Machine::new(name, self.seed, &self.trace)
    }

    /// One step of 1 ms. Says whether all clients are done. A machine whose power failed in the
    /// middle of an operation ([`SimDisk::cut_power_after`]) is taken down here.
    ///
    /// # Panics
    /// When a client's work ended with an error or a task panicked.
    pub fn step(&mut self) -> bool {
        let done = match self.sim.step() {
            Ok(done) => done,
            Err(error) => panic!("simulation failed at {:?}: {error}", self.sim.elapsed()),
        };
        for (name, power) in self
            .machines
            .iter()
            .map(|(name, slot)| (name.clone(), slot.machine.disk().power()))
            .collect::<Vec<_>>()
        {
            match power {
                Power::On => {}
                Power::NoProcess => self.machines[&name].machine.disk().end_process(),
                Power::Failed => self.power_cut(&name),
            }
        }
        done
    }

    /// Lets `time` of virtual time pass.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            self.step();
        }
    }

    /// Steps until `condition` holds; says whether it did within `limit` of virtual time.
    pub fn run_until(&mut self, limit: Duration, mut condition: impl FnMut(&Self) -> bool) -> bool {
        let end = self.sim.elapsed() + limit;
        while !condition(self) {
            if self.sim.elapsed() >= end {
                return false;
            }
            self.step();
        }
        true
    }

    /// Steps until all clients are done; says whether they were within `limit` of virtual time.
    pub fn run_clients(&mut self, limit: Duration) -> bool {
        let end = self.sim.elapsed() + limit;
        while !self.step() {
            if self.sim.elapsed() >= end {
                return false;
            }
        }
        true
    }

    /// Takes the power of `name` away: nothing it does from now on has an effect, its peers hear
    /// nothing, and of what it had not synced a seeded part is lost. What it had sent before is
    /// delivered or lost, by seed.
    pub fn power_cut(&mut self, name: &str) {
        self.faults += 1;
        let machine = self.host_slot(name).0.clone();
        self.event(name, "power cut");
        machine.disk().power_off();
        if self.rng.percent(70) {
            self.deliver_sent_by(name);
            self.sim.step().unwrap_or_else(|error| panic!("simulation failed: {error}"));
        }
        self.drop_tasks(name, |sim| sim.crash(name));
        machine.set_running(false);
        machine.disk().power_cut();
    }

    /// Kills the process on `name` (SIGKILL): its connections end, its page cache stays.
    pub fn kill(&mut self, name: &str) {
        self.faults += 1;
        let (machine, control) = self.host_slot(name);
        let (machine, control) = (machine.clone(), Rc::clone(control));
        self.event(name, "kill");
        if self.sim.is_host_running(name) {
            control.borrow().kill.send_replace(true);
            while self.sim.is_host_running(name) {
                self.sim.step().unwrap_or_else(|error| panic!("simulation failed: {error}"));
            }
        }
        machine.set_running(false);
        machine.disk().end_process();
    }

    /// Asks the process on `name` to stop (SIGTERM); says whether it ended within `limit`.
    pub fn stop(&mut self, name: &str, limit: Duration) -> bool {
        self.event(name, "stop");
        self.host_slot(name).1.borrow().stop.send_replace(true);
        let name = name.to_owned();
        let end = self.sim.elapsed() + limit;
        while self.sim.is_host_running(name.as_str()) {
            if self.sim.elapsed() >= end {
                return false;
            }
            self.step();
        }
        true
    }

    /// Starts the software of a host that was taken down or has ended.
    ///
    /// # Panics
    /// When it is still running: say first how it ends.
    pub fn restart(&mut self, name: &str) {
        assert!(!self.sim.is_host_running(name), "{name} is running");
        self.event(name, "restart");
        self.drop_tasks(name, |sim| sim.bounce(name));
    }

    /// Whether the software of `name` is running.
    pub fn is_running(&mut self, name: &str) -> bool {
        self.sim.is_host_running(name)
    }

    /// What the process on `name` ended with; `None` while it runs and after a kill or a power cut.
    #[must_use]
    pub fn exit(&self, name: &str) -> Option<Exit> {
        self.host_slot(name).1.borrow().exit.clone()
    }

    /// Cuts the network between `a` and `b`, both ways; what is under way is lost.
    pub fn cut(&mut self, a: &str, b: &str) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Cuts the way from `from` to `to`; what is under way is lost.
    pub fn cut_one_way(&mut self, from: &str, to: &str) {
        self.faults += 1;
        self.event(from, &format!("cut to {to}"));
        self.cuts.insert((from.to_owned(), to.to_owned()));
        self.apply_cuts(from, to);
    }

    /// Ends a cut between `a` and `b`, both ways. Connections that lost something stay stuck.
    pub fn mend(&mut self, a: &str, b: &str) {
        self.event(a, &format!("mend to {b}"));
        self.cuts.remove(&(a.to_owned(), b.to_owned()));
        self.cuts.remove(&(b.to_owned(), a.to_owned()));
        self.apply_cuts(a, b);
    }

    /// Keeps back what `a` and `b` send one another, until [`Cluster::release`].
    pub fn hold(&mut self, a: &str, b: &str) {
        self.faults += 1;
        self.event(a, &format!("what it sends to {b} is held"));
        self.sim.hold(a, b);
    }

    /// Lets what was held arrive, in order.
    pub fn release(&mut self, a: &str, b: &str) {
        self.event(a, &format!("what it sent to {b} arrives"));
        self.sim.release(a, b);
    }

    /// Lets the wall clock of `name` jump.
    pub fn jump_clock(&mut self, name: &str, by_ms: i64) {
        self.faults += 1;
        self.event(name, &format!("clock jumps by {by_ms} ms"));
        self.machines[name].machine.jump_clock(by_ms);
    }

    /// The disk of `name`.
    #[must_use]
    pub fn disk(&self, name: &str) -> SimDisk {
        self.machines[name].machine.disk().clone()
    }

    /// What the disk of `name` has been through.
    #[must_use]
    pub fn disk_stats(&self, name: &str) -> DiskStats {
        self.disk(name).stats()
    }

    /// Virtual time since the beginning.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// A seeded stream for the test's own schedule.
    #[must_use]
    pub fn schedule_rng(&self) -> Rng {
        Rng::named(self.seed, "schedule")
    }

    /// Power cuts, kills, network cuts and clock jumps so far; faults of disks are in
    /// [`Cluster::disk_stats`].
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// The trace of this run so far.
    #[must_use]
    pub fn trace(&self) -> Trace {
        self.trace.clone()
    }

    fn host_slot(&self, name: &str) -> (&Machine, &Rc<RefCell<Control>>) {
        let slot = self.machines.get(name).unwrap_or_else(|| panic!("no machine {name}"));
        (
            &slot.machine,
            slot.control.as_ref().unwrap_or_else(|| panic!("{name} is a client, not a host")),
        )
    }

    fn event(&self, name: &str, kind: &str) {
        tracing::debug!(host = name, at = ?self.sim.elapsed(), "{kind}");
        self.trace.event(self.sim.elapsed(), name, kind, &[], &[]);
    }

    /// Lets everything that `name` has on the way arrive with the next step.
    fn deliver_sent_by(&self, name: &str) {
        let address = self.sim.lookup(name);
        self.sim.links(|links| {
            for sent in links.flatten() {
                if sent.pair().0.ip() == address {
                    sent.deliver();
                }
            }
        });
    }

    /// Runs `change`, which drops the tasks of `name`, while nothing they send is sent.
    fn drop_tasks(&mut self, name: &str, change: impl FnOnce(&mut turmoil::Sim<'static>)) {
        let machine = self.machines[name].machine.clone();
        let was_running = machine.is_running();
        machine.set_running(false);
        let peers: Vec<String> =
            self.machines.keys().filter(|peer| *peer != name).cloned().collect();
        for peer in &peers {
            self.sim.partition(name, peer.as_str());
        }
        change(&mut self.sim);
        machine.set_running(was_running);
        for peer in &peers {
            self.apply_cuts(name, peer);
        }
    }

    /// Brings the link between `a` and `b` to what the faults say.
    fn apply_cuts(&self, a: &str, b: &str) {
        let is_cut = |from: &str, to: &str| self.cuts.contains(&(from.to_owned(), to.to_owned()));
        match (is_cut(a, b), is_cut(b, a)) {
            (true, true) => self.sim.partition(a, b),
            (false, false) => self.sim.repair(a, b),
            (there, _) => {
                self.sim.repair(a, b);
                let (from, to) = if there { (a, b) } else { (b, a) };
                self.sim.partition_oneway(from, to);
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // What tasks do while they are dropped is in no particular order: it is not part of the
        // run.
        for slot in self.machines.values() {
            slot.machine.set_running(false);
        }
    }
}
