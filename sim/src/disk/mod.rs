//! A disk that keeps what a real one promises, and not more.
//!
//! - **Bytes.** A write is seen by readers at once and is durable after
//!   [`letterbox_env::File::sync`]. A power cut leaves each 512-byte sector as it was after some
//!   number of the writes since the last sync; the length likewise. A failed sync drops what was
//!   unsynced (it may have been saved or not) and the next sync succeeds.
//! - **Names.** Files made, renamed and removed are durable after [`Disk::sync_dir`] of the
//!   directory; syncing the file itself is not enough. A power cut keeps a prefix of the rest, in
//!   order; a rename is one step.
//! - **Space.** The sum of the lengths of files that can be opened or are open counts against the
//!   capacity, also what `set_len` adds: nothing is sparse. The part of a write that fits is
//!   written before ENOSPC (or EDQUOT, as drawn); on a disk without a free byte nothing is made
//!   either.
//! - **Descriptors.** Above the bound of open files nothing is opened (EMFILE), not even a
//!   directory to sync it.
//! - **Time.** Reads and syncs collect latency, which `Tasks::blocking` sleeps afterwards.
//! - **Reads** are sometimes short, and find pages dropped from the cache while the file is in use.
//! - **Processes.** When a process ends, its locks and handles go and its unsynced writes stay
//!   (page cache).
//!
//! The disk lives outside the host that uses it, so that it outlives its crashes.

mod content;
mod faults;
mod file;
mod names;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use letterbox_env::{DirEntry, Disk, Env, FileRef, OpenMode, not_synced};

use self::content::Content;
pub use self::faults::Fault;
use self::faults::{Faults, Operation};
use self::file::SimFile;
use self::names::{Inode, Names, ROOT};
use crate::env::Waited;
use crate::rng::Rng;
use crate::trace::Trace;

const ENOENT: i32 = 2;
const EIO: i32 = 5;
const EAGAIN: i32 = 11;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;
const ENOTEMPTY: i32 = 39;
const EDQUOT: i32 = 122;

/// Files and directories made between two looks for those that nothing leads to any more.
const COLLECT_EVERY: u64 = 200;

/// What `space` reports as total when no capacity is set.
const UNLIMITED: u64 = 1 << 40;

/// A simulated disk. Cheap to clone; all clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

/// What a disk has been through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Operations that change something or make it durable, counted as [`SimDisk::cut_power_after`]
    /// counts.
    pub operations: u64,
    /// Successful syncs of files.
    pub syncs: u64,
    /// Successful syncs of directories.
    pub dir_syncs: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// Writes that power cuts took back, wholly or in part.
    pub writes_lost: u64,
    /// Writes that power cuts took back in part.
    pub writes_torn: u64,
    /// Files of which a power cut took what an ignored sync had said to be durable.
    pub promises_broken: u64,
    /// Changes of names that power cuts took back.
    pub names_lost: u64,
    /// Injected faults that were met, by name.
    pub faults: BTreeMap<&'static str, u64>,
    /// Calls that may wait for the device, made outside of `Env::blocking`: they would stall a
    /// worker thread.
    pub waits_outside_blocking: u64,
}

/// Whether operations have an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Power {
    On,
    /// The process has ended; what its tasks still try has no effect.
    NoProcess,
    /// The power is gone and the loss is not settled yet.
    Failed,
}

struct Node {
    content: Content,
    handles: u64,
    /// Whether a read that may not wait has to say no first.
    cold: bool,
}

type OnMake = dyn Fn(&Path) + Send + Sync;

struct State {
    names: Names,
    files: BTreeMap<Inode, Node>,
    next_inode: Inode,
    /// When so many files and directories were made.
    collect_at: Inode,
    locks: BTreeMap<Inode, u64>,
    next_handle: u64,
    /// Handles of an earlier epoch belong to a process that is gone.
    epoch: u64,
    power: Power,
    cut_after: Option<u64>,
    rng: Rng,
    faults: Faults,
    capacity: Option<u64>,
    /// What others have of the capacity.
    taken: u64,
    on_make: Option<Arc<OnMake>>,
    on_read: Option<Arc<OnMake>>,
    handles_max: Option<u64>,
    slow: Duration,
    latency: Duration,
    in_blocking: Option<bool>,
    stats: DiskStats,
    trace: Option<(Trace, String)>,
}

impl SimDisk {
    /// An empty disk without bounds; what it draws depends on `seed` alone.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            names: Names::new(),
            files: BTreeMap::new(),
            next_inode: ROOT + 1,
            collect_at: ROOT + COLLECT_EVERY,
            locks: BTreeMap::new(),
            next_handle: 0,
            epoch: 0,
            power: Power::On,
            cut_after: None,
            rng: Rng::named(seed, "disk"),
            faults: Faults::default(),
            capacity: None,
            taken: 0,
            on_make: None,
            on_read: None,
            handles_max: None,
            slow: Duration::ZERO,
            latency: Duration::ZERO,
            in_blocking: None,
            stats: DiskStats::default(),
            trace: None,
        })))
    }

    /// Lets `fault` meet the operations on files whose path (at opening) contains `path_part`:
    /// `skip` of them pass first, then `times` are hit.
    pub fn inject(&self, fault: Fault, path_part: &str, skip: u64, times: u64) {
        self.state().faults.add(fault, path_part, skip, times);
    }

    /// The real world, but for this disk, and paused time waits for its threads.
    #[must_use]
    pub fn env(&self) -> Env {
        let real = Env::real();
        Env { disk: Arc::new(self.clone()), tasks: Arc::new(Waited(real.tasks)), ..real }
    }

    /// Lets `hear` know of each file that is about to be made or cut to nothing. It may keep the
    /// caller waiting.
    pub fn on_make(&self, hear: impl Fn(&Path) + Send + Sync + 'static) {
        self.state().on_make = Some(Arc::new(hear));
    }

    /// Lets `hear` know of each read that may wait for the device. It may keep the caller waiting.
    pub fn on_read(&self, hear: impl Fn(&Path) + Send + Sync + 'static) {
        self.state().on_read = Some(Arc::new(hear));
    }

    /// Forgets all faults that have not fired, the capacity, the bound of open files and the
    /// slowness.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.capacity = None;
        state.taken = 0;
        state.handles_max = None;
        state.slow = Duration::ZERO;
        state.cut_after = None;
    }

    /// Bounds the disk to `bytes`; `None` takes the bound away.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        let mut state = self.state();
        (state.capacity, state.taken) = (bytes, 0);
    }

    /// Bounds the disk to a large capacity of which `bytes` are free: others have the rest.
    pub fn set_free(&self, bytes: u64) {
        let mut state = self.state();
        state.taken = 0;
        state.taken = UNLIMITED.saturating_sub(state.used()).saturating_sub(bytes);
        state.capacity = Some(UNLIMITED);
    }

    /// Files that are open.
    #[must_use]
    pub fn open_files(&self) -> u64 {
        self.state().handles()
    }

    /// Bounds the files that are open at once to as many as are open now and `more`; `None` takes
    /// the bound away.
    pub fn set_descriptors_left(&self, more: Option<u64>) {
        let mut state = self.state();
        state.handles_max = more.map(|more| state.handles().saturating_add(more));
    }

    /// Each read that waits and each sync takes up to this much longer.
    pub fn set_slow(&self, extra: Duration) {
        self.state().slow = extra;
    }

    /// Flips one bit of a file, on the platter and in the cache (bit rot). Says whether there was
    /// such a bit.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> bool {
        let mut state = self.state();
        let Ok(inode) = state.resolve(path) else { return false };
        let flipped =
            state.files.get_mut(&inode).is_some_and(|node| node.content.flip_bit(offset, bit));
        if flipped {
            state.faults.note("bit rot");
        }
        flipped
    }

    /// Drops what is clean from the page cache: readers find what the platter has, also where the
    /// device lied.
    pub fn drop_caches(&self) {
        for node in self.state().files.values_mut().filter(|node| !node.content.is_dirty()) {
            node.content.drop_cache();
            node.cold = true;
        }
    }

    /// Cuts the power just before the `operations`-th operation from now that changes something or
    /// makes it durable, also in the middle of one blocking job. From then on every operation fails
    /// with EIO and changes nothing, until [`SimDisk::power_cut`] completes the crash.
    pub fn cut_power_after(&self, operations: u64) {
        self.state().cut_after = Some(operations);
    }

    /// Whether the power is on.
    #[must_use]
    pub fn is_powered(&self) -> bool {
        self.power() == Power::On
    }

    pub(crate) fn power(&self) -> Power {
        self.state().power
    }

    /// Takes the power away: from now on nothing changes. [`SimDisk::power_cut`] completes the
    /// crash.
    pub fn power_off(&self) {
        self.state().power = Power::Failed;
    }

    /// Completes a power cut: a seeded part of what was not synced is lost, locks and handles are
    /// gone, the cache is cold. Then the power is on again.
    pub fn power_cut(&self) {
        let mut guard = self.state();
        let state = &mut *guard;
        state.end_process();
        state.stats.power_cuts += 1;
        for node in state.files.values_mut() {
            let loss = node.content.power_cut(&mut state.rng);
            state.stats.writes_lost += loss.lost;
            state.stats.writes_torn += loss.torn;
            state.stats.promises_broken += u64::from(loss.is_broken_promise);
            node.cold = true;
        }
        state.stats.names_lost += state.names.power_cut(&mut state.rng);
        state.collect();
        state.power = Power::On;
        state.cut_after = None;
    }

    /// The process that used the disk has ended: locks and handles go, the page cache stays.
    pub fn end_process(&self) {
        self.detach();
        let mut state = self.state();
        if state.power == Power::NoProcess {
            state.power = Power::On;
        }
    }

    /// As [`SimDisk::end_process`], and until that is called nothing has an effect any more: the
    /// process's other tasks may run on for a moment.
    pub(crate) fn detach(&self) {
        let mut state = self.state();
        if state.power == Power::On {
            state.end_process();
            state.collect();
            state.power = Power::NoProcess;
        }
    }

    /// What the disk has been through.
    #[must_use]
    pub fn stats(&self) -> DiskStats {
        let state = self.state();
        DiskStats { faults: state.faults.fired(), ..state.stats.clone() }
    }

    /// Records every operation in `trace` under `host`.
    pub(crate) fn observe(&self, trace: Trace, host: &str) {
        self.state().trace = Some((trace, host.to_owned()));
    }

    /// Tells the disk that a blocking job begins or has ended; the answer is the latency to sleep.
    pub(crate) fn blocking(&self, inside: bool) -> Duration {
        let mut state = self.state();
        state.in_blocking = Some(inside);
        std::mem::take(&mut state.latency)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end_process(&mut self) {
        self.epoch += 1;
        self.locks.clear();
        self.latency = Duration::ZERO;
        self.in_blocking = self.in_blocking.map(|_| false);
        for node in self.files.values_mut() {
            node.handles = 0;
        }
    }

    /// Starts an operation; with `changes` it counts for [`SimDisk::cut_power_after`].
    fn begin(
        &mut self,
        kind: &str,
        path: &str,
        numbers: &[u64],
        bytes: &[u8],
        changes: bool,
    ) -> io::Result<()> {
        if changes && self.power == Power::On {
            if self.cut_after == Some(0) {
                self.power = Power::Failed;
                self.faults.note("power cut at an operation");
            }
            self.cut_after = self.cut_after.and_then(|left| left.checked_sub(1));
        }
        if self.power != Power::On {
            return Err(error(EIO));
        }
        if let Some(Fault::Refuse(errno)) = self.meet(Operation::Name, path) {
            return Err(error(errno));
        }
        self.stats.operations += u64::from(changes);
        let is_sync = kind.starts_with("sync");
        if changes && let Some(fault) = self.meet(Operation::Change { is_sync }, path) {
            return Err(error(if fault == Fault::NoSpace { ENOSPC } else { EIO }));
        }
        if let Some((trace, host)) = &self.trace {
            let at = turmoil::sim_elapsed().unwrap_or_default();
            trace.event(at, host, &format!("disk {kind} {path}"), numbers, bytes);
        }
        Ok(())
    }

    /// The operation waits for the device.
    fn wait(&mut self, micros_start: u64, micros_end: u64) {
        if self.in_blocking == Some(false) {
            self.stats.waits_outside_blocking += 1;
        }
        let slow = u64::try_from(self.slow.as_micros()).unwrap_or(u64::MAX);
        let micros =
            self.rng.between(micros_start, micros_end) + self.rng.below(slow.saturating_add(1));
        self.latency += Duration::from_micros(micros);
    }

    fn used(&self) -> u64 {
        let visible = self.names.visible();
        let counted =
            self.files.iter().filter(|(inode, node)| node.handles > 0 || visible.contains(inode));
        self.taken + counted.map(|(_, node)| node.content.len()).sum::<u64>()
    }

    /// How many bytes `inode` may have if it wants `len`.
    fn allow(&self, inode: Inode, len: u64) -> u64 {
        let Some(capacity) = self.capacity else { return len };
        let have = self.files.get(&inode).map_or(0, |node| node.content.len());
        let free = capacity.saturating_sub(self.used());
        len.min(have.saturating_add(free)).max(have.min(len))
    }

    /// The error of a write that does not fit, or of making something on a disk without a free
    /// byte.
    fn no_space(&mut self) -> io::Error {
        self.faults.note("disk full");
        error(if self.rng.percent(50) { ENOSPC } else { EDQUOT })
    }

    /// Whether a file or directory can be made.
    fn may_make(&mut self) -> io::Result<()> {
        let is_full = self.capacity.is_some_and(|capacity| self.used() >= capacity);
        if is_full { Err(self.no_space()) } else { Ok(()) }
    }

    fn handles(&self) -> u64 {
        self.files.values().map(|node| node.handles).sum()
    }

    /// Whether one more descriptor can be had.
    fn may_open(&mut self, path: &str) -> io::Result<()> {
        if self.meet(Operation::Open, path).is_some() {
            return Err(error(EMFILE));
        }
        if self.handles_max.is_some_and(|max| self.handles() >= max) {
            self.faults.note("no descriptor");
            return Err(error(EMFILE));
        }
        Ok(())
    }

    fn meet(&mut self, operation: Operation, path: &str) -> Option<Fault> {
        self.faults.meet(operation, path)
    }

    fn resolve(&self, path: &Path) -> io::Result<Inode> {
        parts(path)?.iter().try_fold(ROOT, |dir, part| self.step(dir, part))
    }

    fn step(&self, dir: Inode, name: &str) -> io::Result<Inode> {
        if !self.names.is_dir(dir) {
            return Err(error(ENOTDIR));
        }
        self.names.find(dir, name).ok_or_else(|| error(ENOENT))
    }

    /// The directory that holds `path`, and the last component.
    fn parent(&self, path: &Path) -> io::Result<(Inode, String)> {
        let mut parts = parts(path)?;
        let name = parts.pop().ok_or_else(|| error(EISDIR))?;
        let dir = parts.iter().try_fold(ROOT, |dir, part| self.step(dir, part))?;
        if self.names.is_dir(dir) { Ok((dir, name)) } else { Err(error(ENOTDIR)) }
    }

    fn make(&mut self) -> Inode {
        self.next_inode += 1;
        self.next_inode
    }

    fn remove_tree(&mut self, dir: Inode) {
        let entries: Vec<(String, Inode)> = self
            .names
            .entries(dir)
            .into_iter()
            .flatten()
            .map(|(name, inode)| (name.clone(), *inode))
            .collect();
        for (name, inode) in entries {
            if self.names.is_dir(inode) {
                self.remove_tree(inode);
            }
            self.names.unlink(dir, &name);
        }
    }

    /// Forgets what nothing leads to any more. That has no effect but on memory, so it is done when
    /// much may have come together.
    fn collect(&mut self) {
        if self.next_inode < self.collect_at {
            return;
        }
        let reachable: BTreeSet<Inode> = self.names.reachable();
        self.files.retain(|inode, node| node.handles > 0 || reachable.contains(inode));
        self.names.forget(&reachable);
        self.collect_at = self.next_inode + COLLECT_EVERY;
    }

    fn handle(&mut self, inode: Inode) -> u64 {
        if let Some(node) = self.files.get_mut(&inode) {
            node.handles += 1;
        }
        self.next_handle += 1;
        self.next_handle
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileRef> {
        let mut state = self.state();
        let makes =
            mode == OpenMode::Truncate || mode == OpenMode::Create && state.resolve(path).is_err();
        if let Some(hear) = state.on_make.clone().filter(|_| makes) {
            drop(state);
            hear(path);
            state = self.state();
        }
        let shown = path.display().to_string();
        let (dir, name) = state.parent(path)?;
        state.may_open(&shown)?;
        let inode = match state.names.find(dir, &name) {
            Some(inode) if state.names.is_dir(inode) => return Err(error(EISDIR)),
            Some(inode) => {
                state.begin("open", &shown, &[], &[], mode == OpenMode::Truncate)?;
                if mode == OpenMode::Truncate
                    && let Some(node) = state.files.get_mut(&inode)
                    && node.content.len() > 0
                {
                    node.content.set_len(0);
                }
                inode
            }
            None if matches!(mode, OpenMode::Read | OpenMode::ReadWrite) => {
                return Err(error(ENOENT));
            }
            None => {
                state.begin("create", &shown, &[], &[], true)?;
                state.may_make()?;
                let inode = state.make();
                state
                    .files
                    .insert(inode, Node { content: Content::default(), handles: 0, cold: false });
                state.names.link(dir, &name, inode);
                inode
            }
        };
        let handle = state.handle(inode);
        let epoch = state.epoch;
        drop(state);
        let writable = mode != OpenMode::Read;
        Ok(Arc::new(SimFile { disk: self.clone(), inode, handle, epoch, path: shown, writable }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let (from_dir, from_name) = state.parent(from)?;
        let (to_dir, to_name) = state.parent(to)?;
        let inode = state.step(from_dir, &from_name)?;
        if let Some(target) = state.names.find(to_dir, &to_name) {
            match (state.names.is_dir(inode), state.names.is_dir(target)) {
                (true, false) => return Err(error(ENOTDIR)),
                (false, true) => return Err(error(EISDIR)),
                (true, true)
                    if state.names.entries(target).is_some_and(|entries| !entries.is_empty()) =>
                {
                    return Err(error(ENOTEMPTY));
                }
                _ => {}
            }
        }
        if from.components().eq(to.components()) {
            return Ok(());
        }
        if to.starts_with(from) {
            return Err(error(EINVAL));
        }
        state.begin("rename", &format!("{} {}", from.display(), to.display()), &[], &[], true)?;
        state.names.rename((from_dir, from_name), (to_dir, to_name), inode);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let (dir, name) = state.parent(path)?;
        let inode = state.step(dir, &name)?;
        if state.names.is_dir(inode) {
            return Err(error(EISDIR));
        }
        state.begin("remove", &path.display().to_string(), &[], &[], true)?;
        state.names.unlink(dir, &name);
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let (dir, name) = state.parent(path)?;
        let inode = state.step(dir, &name)?;
        if !state.names.is_dir(inode) {
            return Err(error(ENOTDIR));
        }
        state.begin("remove tree", &path.display().to_string(), &[], &[], true)?;
        state.remove_tree(inode);
        state.names.unlink(dir, &name);
        Ok(())
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let mut dir = ROOT;
        for part in parts(path)? {
            dir = match state.names.find(dir, &part) {
                Some(inode) if state.names.is_dir(inode) => inode,
                Some(_) => return Err(error(EEXIST)),
                None => {
                    state.begin("make dir", &part, &[dir], &[], true)?;
                    state.may_make()?;
                    let inode = state.make();
                    state.names.make_dir(dir, &part, inode);
                    inode
                }
            };
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut state = self.state();
        let dir = state.resolve(path)?;
        state.begin("list", &path.display().to_string(), &[], &[], false)?;
        let entries = state.names.entries(dir).ok_or_else(|| error(ENOTDIR))?;
        Ok(entries
            .iter()
            .map(|(name, inode)| DirEntry {
                name: name.clone(),
                is_dir: state.names.is_dir(*inode),
            })
            .collect())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let dir = state.resolve(path)?;
        if !state.names.is_dir(dir) {
            return Err(error(ENOTDIR));
        }
        let shown = path.display().to_string();
        state.begin("sync dir", &shown, &[], &[], true)?;
        state.may_open(&shown)?;
        state.wait(100, 1000);
        if state.meet(Operation::SyncDir, &shown).is_some() {
            return Err(not_synced(error(EIO)));
        }
        state.names.sync(dir);
        state.stats.dir_syncs += 1;
        state.collect();
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.state();
        state.begin("exists", &path.display().to_string(), &[], &[], false)?;
        match state.resolve(path) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(ENOENT | ENOTDIR)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn lock(&self, path: &Path) -> io::Result<FileRef> {
        let file = SimFile::open(self, path)?;
        let mut state = self.state();
        if state.locks.contains_key(&file.inode) {
            drop(state);
            return Err(error(EAGAIN));
        }
        state.locks.insert(file.inode, file.handle);
        drop(state);
        Ok(Arc::new(file))
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        let mut state = self.state();
        state.resolve(path)?;
        state.begin("space", &path.display().to_string(), &[], &[], false)?;
        let total = state.capacity.unwrap_or(UNLIMITED);
        Ok((total, total.saturating_sub(state.used())))
    }
}

fn error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// The components of `path`; a relative path starts at the root.
fn parts(path: &Path) -> io::Result<Vec<String>> {
    let names =
        path.components().filter(|part| !matches!(part, Component::RootDir | Component::CurDir));
    names
        .map(|part| match part {
            Component::Normal(name) => {
                name.to_str().map(str::to_owned).ok_or_else(|| error(EINVAL))
            }
            _ => Err(error(EINVAL)),
        })
        .collect()
}
