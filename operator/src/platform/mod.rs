//! What a plan's steps act on: Kubernetes, local processes, and, in `sim/`, a model for tests.

#[cfg(feature = "kubernetes")]
pub(crate) mod calls;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod local;
#[cfg(feature = "kubernetes")]
pub(crate) mod own;
#[cfg(feature = "kubernetes")]
mod pods;
pub mod ports;
#[cfg(feature = "kubernetes")]
pub(crate) mod unwatched;

use letterbox_env::BoxFuture;

use crate::admin::MayEnd;
use crate::api::KafkaCluster;
use crate::desired::{Blueprint, Facts};
use crate::observe::Observed;
use crate::plan::Step;
use crate::status::Fault;

/// Reads the world and changes it; nothing left to decide.
pub trait Platform: Send + Sync {
    /// What one read gives.
    type Live: Live;

    /// Reads everything that belongs to `cluster`, as it is now, not from a cache.
    fn read<'a>(&'a self, cluster: &'a KafkaCluster) -> BoxFuture<'a, Result<Self::Live, Fault>>;

    /// Reserves the end of `broker` at its cluster, for which others count it as away from then on.
    /// Asked of one of several that answers, right before it is ended.
    fn reserve<'a>(&'a self, live: &'a Self::Live, broker: i32) -> BoxFuture<'a, MayEnd>;

    /// Gives back what was reserved for `broker`, as far as that can be done now.
    fn give_back<'a>(&'a self, live: &'a Self::Live, broker: i32) -> BoxFuture<'a, ()>;

    /// Whether the cluster does without `broker` now. Reserves nothing. Yes where nobody else ends
    /// brokers.
    fn may_end<'a>(&'a self, live: &'a Self::Live, broker: i32) -> BoxFuture<'a, MayEnd>;

    /// Carries out `step`. Safe to repeat; cancelling it leaves nothing that a repetition does not
    /// put right.
    fn act<'a>(
        &'a self,
        desired: &'a Blueprint,
        live: &'a Self::Live,
        step: &'a Step,
    ) -> BoxFuture<'a, Result<(), Fault>>;
}

/// What was read, and what follows from it without any further I/O.
pub trait Live: Send + Sync {
    /// Where things are.
    fn facts(&self, cluster: &KafkaCluster) -> Facts;

    /// How things are, compared with `desired`.
    fn observe(&self, desired: &Blueprint) -> Observed;
}

/// The sentence with which a broker refuses its configuration, at the end of what it logged: it may
/// be several lines.
pub(crate) fn sentence_of(log_tail: &str) -> &str {
    log_tail.rsplit_once("letterbox: ").map_or(log_tail, |(_, refusal)| refusal).trim()
}
