//! Bounds on what clients together can make the broker hold: memory of requests, connections.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One permit stands for this many bytes.
const UNIT: usize = 1024;

/// Memory that requests being read or handled may hold together.
///
/// A frame takes its share before memory is set aside for it and gives it back when it is answered.
#[derive(Clone)]
pub(crate) struct RequestMemory {
    permits: Arc<Semaphore>,
    most: u32,
}

impl RequestMemory {
    /// A budget of `bytes`.
    #[must_use]
    pub(crate) fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self { permits: Arc::new(Semaphore::new(units)), most: u32::try_from(units).unwrap_or(u32::MAX) }
    }

    /// Waits for the share of a frame of `len` bytes. A frame larger than the whole budget gets all of it,
    /// so that it is slow instead of stuck. Cancel safe.
    pub(crate) async fn take(&self, len: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(len.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.most);
        self.permits.clone().acquire_many_owned(units).await.ok()
    }

    /// Bytes that are free.
    #[must_use]
    pub(crate) fn free(&self) -> usize {
        self.permits.available_permits().saturating_mul(UNIT)
    }
}

/// Files that a partition may hold open: a segment and its two indexes.
const FILES_PER_PARTITION: usize = 3;
/// Descriptors for everything else: standard streams, listeners, the admin port's connections, the metadata log, cold reads.
const SPARE_DESCRIPTORS: usize = 160;

/// Counts connections, in all and by address.
pub(crate) struct Connections {
    most: AtomicUsize,
    most_per_ip: AtomicUsize,
    descriptors: usize,
    open: Mutex<(usize, BTreeMap<IpAddr, usize>)>,
}

/// A counted connection; dropping it gives its place back.
pub(crate) struct Place {
    of: Arc<Connections>,
    ip: IpAddr,
}

/// A bound on connections that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectionBound {
    #[error("max.connections is reached")]
    All,
    #[error("max.connections.per.ip is reached")]
    PerIp,
    #[error("the file descriptors that are left are for the files of partitions; raise the limit of open files (ulimit -n)")]
    Descriptors,
}

impl ConnectionBound {
    /// Its name in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::All => "max.connections",
            Self::PerIp => "max.connections.per.ip",
            Self::Descriptors => "open_files",
        }
    }
}

impl Connections {
    /// Bounds of `max.connections` and `max.connections.per.ip` in a process that may hold `descriptors`.
    #[must_use]
    pub(crate) fn new(most: usize, most_per_ip: usize, descriptors: usize) -> Self {
        Self { most: most.into(), most_per_ip: most_per_ip.into(), descriptors, open: Mutex::default() }
    }

    /// Sets other bounds. Connections above them stay; new ones are refused until there is a place.
    pub(crate) fn set_bounds(&self, most: usize, most_per_ip: usize) {
        self.most.store(most, Ordering::Relaxed);
        self.most_per_ip.store(most_per_ip, Ordering::Relaxed);
    }

    /// How many connections may be open beside the files of so many partitions. With more partitions than there are descriptors
    /// connections keep a quarter: files that are idle are closed.
    fn for_connections(&self, partitions: usize) -> usize {
        let for_files = partitions.saturating_mul(FILES_PER_PARTITION).saturating_add(SPARE_DESCRIPTORS);
        self.descriptors.saturating_sub(for_files).max(self.descriptors / 4)
    }

    /// A place for a connection from `ip`, while this broker has `partitions`.
    ///
    /// # Errors
    /// The bound that is reached.
    pub(crate) fn enter(self: &Arc<Self>, ip: IpAddr, partitions: usize) -> Result<Place, ConnectionBound> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.0 >= self.most.load(Ordering::Relaxed) {
            return Err(ConnectionBound::All);
        }
        if open.0 >= self.for_connections(partitions) {
            return Err(ConnectionBound::Descriptors);
        }
        let of_ip = open.1.get(&ip).copied().unwrap_or(0);
        if of_ip >= self.most_per_ip.load(Ordering::Relaxed) {
            return Err(ConnectionBound::PerIp);
        }
        open.1.insert(ip, of_ip + 1);
        open.0 += 1;
        Ok(Place { of: self.clone(), ip })
    }

    /// Connections that are open.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.of.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.0 = open.0.saturating_sub(1);
        if let Some(of_ip) = open.1.get_mut(&self.ip) {
            *of_ip -= 1;
            if *of_ip == 0 {
                open.1.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_bounded_in_all_and_by_address() {
        let connections = Arc::new(Connections::new(3, 2, 10_000));
        let (a, b) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let first = connections.enter(a, 0).unwrap();
        let _second = connections.enter(a, 0).unwrap();
        assert_eq!(connections.enter(a, 0).err(), Some(ConnectionBound::PerIp));
        let _third = connections.enter(b, 0).unwrap();
        assert_eq!(connections.enter(b, 0).err(), Some(ConnectionBound::All));
        drop(first);
        assert_eq!(connections.count(), 2);
        assert!(connections.enter(a, 0).is_ok());
    }

    #[test]
    fn connections_leave_the_files_of_partitions_their_descriptors() {
        let connections = Arc::new(Connections::new(usize::MAX, usize::MAX, 1_000));
        let ip = IpAddr::from([127, 0, 0, 1]);
        let mut places = Vec::new();
        let mut fill = |partitions| {
            let refused = loop {
                match connections.enter(ip, partitions) {
                    Ok(place) => places.push(place),
                    Err(bound) => break bound,
                }
            };
            (refused, places.len())
        };
        assert_eq!(fill(10_000), (ConnectionBound::Descriptors, 250), "a quarter, however many partitions");
        assert_eq!(fill(100), (ConnectionBound::Descriptors, 1_000 - 300 - SPARE_DESCRIPTORS));
        assert_eq!(fill(0), (ConnectionBound::Descriptors, 1_000 - SPARE_DESCRIPTORS));
    }

    #[tokio::test]
    async fn a_frame_larger_than_the_budget_gets_all_of_it() {
        let memory = RequestMemory::new(10 * UNIT);
        let all = memory.take(1_000_000).await.unwrap();
        assert_eq!(memory.free(), 0);
        drop(all);
        assert_eq!(memory.free(), 10 * UNIT);
    }
}
