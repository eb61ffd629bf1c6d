//! Restart leases: brokers that somebody is about to restart.

use std::collections::{BTreeMap, BTreeSet};

use letterbox_protocol::model::BrokerId;
use serde::{Deserialize, Serialize};

use super::MetadataImage;

/// Who has it restarts its brokers: until it is over they count as away for everybody else, and
/// lead only where nobody else may.
///
/// No broker is in two leases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartLease {
    /// Who has it, by a name that it chose. It has no other one.
    pub holder: String,
    /// Which grant it is: a later one of this holder has a higher number.
    pub grant: i64,
    /// The brokers, and the epoch of the registration that each had when it was granted; 0 where it
    /// had none.
    pub brokers: BTreeMap<BrokerId, i64>,
    /// For how long it was granted.
    pub for_ms: u64,
    /// How much of that was left when this was written. The active controller counts it, and writes
    /// it down again and again: another one goes on from there.
    pub left_ms: u64,
}

impl MetadataImage {
    /// The lease of that holder.
    #[must_use]
    pub fn lease(&self, holder: &str) -> Option<&RestartLease> {
        self.leases.get(holder)
    }

    /// Every lease, by holder.
    pub fn leases(&self) -> impl Iterator<Item = &RestartLease> {
        self.leases.values()
    }

    /// Whether a lease names `broker`.
    #[must_use]
    pub fn is_leased(&self, broker: BrokerId) -> bool {
        self.leases().any(|lease| lease.brokers.contains_key(&broker))
    }

    /// The brokers that leases name.
    #[must_use]
    pub fn leased_brokers(&self) -> BTreeSet<BrokerId> {
        self.leases().flat_map(|lease| lease.brokers.keys().copied()).collect()
    }
}
