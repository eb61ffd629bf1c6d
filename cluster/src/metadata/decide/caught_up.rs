//! Caught up: what a broker still lacks after a restart, as the active controller knows it.
//!
//! Which replicas are in sync is in the image. How much the others lack their leaders say with
//! their heartbeats ([`Heartbeat::behind`](super::liveness::Heartbeat)), so that one question is
//! enough.

use std::collections::BTreeSet;

use letterbox_protocol::model::BrokerId;
use serde::{Deserialize, Serialize};

use super::liveness::Lag;
use super::verdict::{NAMES_MAX, Named, check_count, newest_epoch};
use super::{Context, Decide, Decision, ItemResult};
use crate::metadata::MetadataImage;

/// Asks how far brokers are. Changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskCaughtUp {
    /// Which brokers; all that are registered when nobody is named.
    pub brokers: BTreeSet<BrokerId>,
    /// How many partitions are named at most, divided among the brokers; one at least.
    pub names_max: usize,
    /// Only a registration with a higher epoch counts: the asker has restarted the brokers since.
    pub since_epoch: Option<i64>,
}

/// How far brokers are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaughtUp {
    /// The newest epoch of their registrations: who restarts registers with a higher one.
    pub epoch: i64,
    /// Each of them, in the order of the ids.
    pub brokers: Vec<BrokerCaughtUp>,
}

impl CaughtUp {
    /// Whether each of them is.
    #[must_use]
    pub fn are_caught_up(&self) -> bool {
        self.brokers.iter().all(BrokerCaughtUp::is_caught_up)
    }
}

/// How far a broker is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerCaughtUp {
    /// Which.
    pub broker: BrokerId,
    /// The epoch of its registration; `None` when it is not registered.
    pub epoch: Option<i64>,
    /// Whether its registration is the one from before the restart that the asker speaks of.
    pub is_of_before: bool,
    /// Whether it is registered, and neither fenced nor about to stop.
    pub is_serving: bool,
    /// How many replicas it has.
    pub replicas: usize,
    /// Those that are not in sync, although their logs are in use.
    pub not_in_sync: Named,
    /// Those whose logs are out of use.
    pub offline: Named,
    /// How many partitions it is the preferred leader of, in sync, and does not lead.
    pub led_elsewhere: usize,
    /// About how many bytes it has yet to copy; `None` while no leader of some of the partitions
    /// has told the active controller.
    pub bytes_left: Option<u64>,
    /// How many of them it has caught up with per second, on average since it lacked most; `None`
    /// while it does not catch up, or nothing is left.
    pub bytes_per_second: Option<u64>,
}

impl BrokerCaughtUp {
    /// Whether it serves, has restarted if that was asked, and every replica of it is in sync.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        let lacks = self.not_in_sync.count > 0 || self.offline.count > 0;
        self.is_serving && !self.is_of_before && !lacks
    }

    /// How many seconds it takes yet, if it goes on as it has.
    #[must_use]
    pub fn seconds_left(&self) -> Option<u64> {
        Some(self.bytes_left?.div_ceil(self.bytes_per_second.filter(|rate| *rate > 0)?))
    }
}

impl Decide for AskCaughtUp {
    type Outcome = ItemResult<CaughtUp>;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let outcome = check_count(&self.brokers, 0).map(|()| {
            let ids: Vec<_> = match self.brokers.is_empty() {
                true => image.brokers.keys().copied().collect(),
                false => self.brokers.iter().copied().collect(),
            };
            let names_max = self.names_max.min(NAMES_MAX) / ids.len().max(1);
            let lags = (context.lags)();
            let of_one = |id: &BrokerId| {
                let lag = lags.get(id).copied().unwrap_or_default();
                self.of_one(*id, image, lag, names_max.max(1))
            };
            CaughtUp { epoch: newest_epoch(image, &ids), brokers: ids.iter().map(of_one).collect() }
        });
        Decision { records: Vec::new(), outcome }
    }
}

/// Whether `broker` has registered again since the registration of `since_epoch`, and is caught up.
pub(super) fn is_back(image: &MetadataImage, broker: BrokerId, since_epoch: i64) -> bool {
    let has_restarted = image.brokers.get(&broker).is_some_and(|one| one.epoch > since_epoch);
    let asked =
        AskCaughtUp { brokers: [broker].into(), names_max: 0, since_epoch: Some(since_epoch) };
    has_restarted && asked.of_one(broker, image, Lag::default(), 0).is_caught_up()
}

impl AskCaughtUp {
    fn of_one(
        &self,
        broker: BrokerId,
        image: &MetadataImage,
        lag: Lag,
        names_max: usize,
    ) -> BrokerCaughtUp {
        let epoch = image.brokers.get(&broker).map(|broker| broker.epoch);
        let mut found = BrokerCaughtUp {
            broker,
            epoch,
            is_of_before: epoch.is_some_and(|epoch| self.since_epoch >= Some(epoch)),
            is_serving: image.is_serving(broker),
            replicas: 0,
            not_in_sync: Named::default(),
            offline: Named::default(),
            led_elsewhere: 0,
            bytes_left: None,
            bytes_per_second: None,
        };
        for (topic, index, state) in image.partitions_of(broker) {
            found.replicas += 1;
            let is_in_sync = state.isr.contains(&broker);
            if state.offline.contains(&broker) {
                found.offline.add(topic, index, names_max);
            } else if !is_in_sync && !state.removing.contains(&broker) {
                found.not_in_sync.add(topic, index, names_max);
            }
            let is_preferred = is_in_sync && state.replicas.first() == Some(&broker);
            found.led_elsewhere += usize::from(is_preferred && state.leader != Some(broker));
        }
        // What leaders have said may be older than the image.
        let is_told = lag.behind.partitions >= found.not_in_sync.count;
        found.bytes_left = match found.not_in_sync.count {
            0 => Some(0),
            _ => is_told.then_some(lag.behind.bytes),
        };
        let is_behind = found.bytes_left.is_some_and(|left| left > 0);
        found.bytes_per_second = lag.bytes_per_second.filter(|_| is_behind);
        found
    }
}
