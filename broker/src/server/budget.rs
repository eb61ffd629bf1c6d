//! Bounds on what clients together can make the broker hold: memory of requests, connections.

use std::collections::BTreeMap;
use std::net::IpAddr;
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

/// Counts connections, in all and by address.
pub(crate) struct Connections {
    most: usize,
    most_per_ip: usize,
    open: Mutex<(usize, BTreeMap<IpAddr, usize>)>,
}

/// A counted connection; dropping it gives its place back.
pub(crate) struct Place {
    of: Arc<Connections>,
    ip: IpAddr,
}

impl Connections {
    /// Bounds of `max.connections` and `max.connections.per.ip`.
    #[must_use]
    pub(crate) fn new(most: usize, most_per_ip: usize) -> Self {
        Self { most, most_per_ip, open: Mutex::default() }
    }

    /// A place for a connection from `ip`.
    ///
    /// # Errors
    /// The name of the key whose bound is reached.
    pub(crate) fn enter(self: &Arc<Self>, ip: IpAddr) -> Result<Place, &'static str> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.0 >= self.most {
            return Err("max.connections");
        }
        let of_ip = open.1.entry(ip).or_default();
        if *of_ip >= self.most_per_ip {
            return Err("max.connections.per.ip");
        }
        *of_ip += 1;
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
        let connections = Arc::new(Connections::new(3, 2));
        let (a, b) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let first = connections.enter(a).unwrap();
        let _second = connections.enter(a).unwrap();
        assert_eq!(connections.enter(a).err(), Some("max.connections.per.ip"));
        let _third = connections.enter(b).unwrap();
        assert_eq!(connections.enter(b).err(), Some("max.connections"));
        drop(first);
        assert_eq!(connections.count(), 2);
        assert!(connections.enter(a).is_ok());
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
