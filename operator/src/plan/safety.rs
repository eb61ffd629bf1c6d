//! How many brokers may be down on purpose: at most one.
//!
//! One that does not serve anyway may be put right at once: that is how a bad image or
//! configuration heals.

use super::Wait;
use crate::desired::Blueprint;
use crate::observe::{Observed, ObservedBroker, Run};

/// The broker that is down, or is taken down by this plan.
pub(super) struct Down(Option<i32>);

impl Down {
    /// The first broker that should serve and does not.
    pub(super) fn of(desired: &Blueprint, observed: &Observed) -> Self {
        let serves = |id: &&i32| observed.brokers.get(id).is_some_and(ObservedBroker::serves);
        Self(desired.brokers.keys().find(|id| !serves(id)).copied())
    }

    /// Takes down a broker that serves.
    ///
    /// # Errors
    /// Why it has to wait.
    pub(super) fn take(&mut self, broker: i32) -> Result<(), Wait> {
        match self.0.filter(|other| *other != broker) {
            Some(other) => Err(Wait::OtherBrokerDown { broker, other }),
            None => {
                self.0 = Some(broker);
                Ok(())
            }
        }
    }
}

impl ObservedBroker {
    pub(super) fn serves(&self) -> bool {
        self.run == Run::Ready
    }
}
