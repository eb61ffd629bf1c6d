//! Which clusters this operator has looked at itself since it leads.
//!
//! A status that is there when an operator begins to lead was written before: a cluster may have
//! lost its volumes since, and come back empty. And a status may be refused, or reach the watch
//! late. So topics also go by what the last pass over their cluster found.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use futures::Stream;
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use super::topics::ClusterKey;
use crate::api::{KafkaCluster, KafkaClusterStatus};
use crate::observe::{Observed, Part};
use crate::plan::tell_their_directories;

/// What the last pass over a cluster found.
#[derive(Clone, Debug)]
pub(super) struct Look {
    uid: Option<String>,
    /// When the pass began.
    pub(super) began: Instant,
    /// [`KafkaClusterStatus::misses_records`].
    pub(super) misses_records: bool,
}

/// So many clusters wait to be looked at anew; another one is looked at in its turn.
const ASKED_MAX: usize = 256;

/// The clusters over which this operator has made a pass since it leads.
pub(super) struct Looked {
    last: Mutex<BTreeMap<ClusterKey, Look>>,
    /// Moves when topics may find something else than before.
    changed: watch::Sender<()>,
    /// The clusters of which somebody wants to know how they are now.
    asked: broadcast::Sender<ClusterKey>,
}

impl Looked {
    pub(super) fn new() -> Self {
        Self {
            last: Mutex::default(),
            changed: watch::Sender::new(()),
            asked: broadcast::Sender::new(ASKED_MAX),
        }
    }

    /// Forgets everything: somebody else may have led meanwhile.
    pub(super) fn forget_all(&self) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Forgets a cluster that is gone.
    pub(super) fn forget(&self, cluster: &ClusterKey) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster);
    }

    /// Takes up what the pass over `cluster` that began then found. One that could not see the
    /// volumes, neither by their claims nor by what the brokers say that they use, says nothing
    /// about them, and what was found before counts on. What was found before this operator acts
    /// in the namespace, `since` then, counts for nothing.
    pub(super) fn note(
        &self,
        cluster: &KafkaCluster,
        (since, began): (Instant, Instant),
        observed: &Observed,
        status: &KafkaClusterStatus,
    ) {
        let parts = [Part::Storage, Part::Definitions, Part::Brokers];
        let misses_records = status.misses_records();
        let was_seen = parts.into_iter().all(|part| observed.was_read(part))
            || tell_their_directories(cluster, observed);
        if !misses_records && !was_seen {
            return;
        }
        let look = Look { uid: cluster.uid(), began, misses_records };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let old = last.insert(key_of(cluster), look.clone());
        let old = old.filter(|old| old.began >= since);
        let is_news =
            old.is_none_or(|old| (old.uid, old.misses_records) != (look.uid, misses_records));
        if is_news {
            self.changed.send_replace(());
        }
    }

    /// What the last pass over `cluster` found; `None` before the first one.
    pub(super) fn last(&self, cluster: &KafkaCluster) -> Option<Look> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.get(&key_of(cluster)).filter(|look| look.uid == cluster.uid()).cloned()
    }

    /// An item each time when topics may find something else than before.
    pub(super) fn changes(&self) -> impl Stream<Item = ()> + Send + use<> {
        futures::stream::unfold(self.changed.subscribe(), |mut changed| async move {
            changed.changed().await.ok()?;
            Some(((), changed))
        })
    }

    /// Asks for a pass over a cluster.
    pub(super) fn ask(&self, cluster: &KafkaCluster) {
        // Nobody listens while nobody leads.
        let _ = self.asked.send(key_of(cluster));
    }

    /// The clusters of `namespace`, or of all, that somebody asks about.
    pub(super) fn asked(
        &self,
        namespace: Option<String>,
    ) -> impl Stream<Item = ObjectRef<KafkaCluster>> + Send + use<> {
        futures::stream::unfold(
            (self.asked.subscribe(), namespace),
            |(mut asked, namespace)| async move {
                loop {
                    match asked.recv().await {
                        Ok((of, name)) if namespace.as_ref().is_none_or(|it| *it == of) => {
                            let cluster = ObjectRef::new(&name).within(&of);
                            return Some((cluster, (asked, namespace)));
                        }
                        // What is left out is asked for again by who waits for it.
                        Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => return None,
                    }
                }
            },
        )
    }
}

fn key_of(cluster: &KafkaCluster) -> ClusterKey {
    (cluster.namespace().unwrap_or_default(), cluster.name_any())
}
