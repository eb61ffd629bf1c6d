//! Looks at every write of an operator: C14 of the checkers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::world::World;
use super::{Change, Key, text};

/// What an operator did and must not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// It took a broker down while another one of the cluster did not serve.
    TwoBrokersDown {
        /// The pod that it ended.
        ended: String,
        /// The one that was down.
        down: String,
    },
    /// It deleted a claim with records on its volume, and the cluster's object does not ask for
    /// that, or somebody else made the claim.
    RecordsDeleted {
        /// The claim.
        claim: String,
    },
    /// It ended a pod whose claim is being deleted, and the records with it.
    RecordsEnded {
        /// The pod.
        ended: String,
        /// The claim.
        claim: String,
    },
    /// It ended a pod that had the last copy of records, because its claim was gone or lost its
    /// volume, and nobody accepted that.
    LastCopyEnded {
        /// The pod.
        ended: String,
        /// What it had: the uid of a claim.
        claim_uid: String,
    },
    /// It made an empty claim in the place of one with records whose loss nobody accepted.
    LossHealedOver {
        /// The claim.
        claim: String,
    },
}

const CLAIMS: &str = "/persistentvolumeclaims";
/// The operators' name for themselves begins with this.
pub(crate) const OPERATOR: &str = "operator";

/// Finds violations in what was written since it looked last.
#[derive(Default)]
pub(crate) struct Monitor {
    version: u64,
    /// What there was when the change was made that is looked at.
    objects: BTreeMap<Key, Arc<Value>>,
    /// Claims whose volumes had records, and are gone or other ones now.
    lost: BTreeSet<Key>,
    /// The uids of the claims that operators made.
    own: BTreeSet<String>,
    /// How often an operator took a broker down that served.
    pub(crate) restarts: u64,
    /// How often an operator wrote, leases and events left out.
    pub(crate) writes: u64,
}

impl Monitor {
    /// Looks at every change since the last look.
    pub(crate) fn look(&mut self, world: &World) -> Vec<Violation> {
        let (changes, version) = world.server.changes_since(self.version);
        self.version = version;
        let mut found = Vec::new();
        for change in changes {
            found.extend(self.of_change(world, &change));
            match change.after.clone() {
                Some(object) => drop(self.objects.insert(change.key.clone(), object)),
                None => drop(self.objects.remove(&change.key)),
            }
        }
        found
    }

    fn of_change(&mut self, world: &World, change: &Change) -> Option<Violation> {
        let has_records = |claim: &Value| {
            text(claim, "/metadata/uid").is_some_and(|uid| world.directory_of(uid).is_some())
        };
        let is_claim = change.key.resource == CLAIMS;
        if is_claim && change.after.is_none() && change.before.as_deref().is_some_and(has_records) {
            self.lost.insert(change.key.clone());
        }
        if !change.actor.starts_with(OPERATOR) {
            return None;
        }
        let is_told = ["/leases", "/events"].iter().any(|end| change.key.resource.ends_with(end));
        self.writes += u64::from(!is_told);
        if is_claim {
            let made = change.after.as_ref().filter(|_| change.before.is_none());
            self.own.extend(made.and_then(|it| text(it, "/metadata/uid")).map(ToOwned::to_owned));
            return self.of_claim(change, has_records);
        }
        // A set that is deleted goes after its pod.
        let ended = match change.key.resource.as_str() {
            "/pods" if is_ending(change) => Some(change.clone()),
            "apps/statefulsets" if is_ending(change) => self.pod_of(change),
            _ => None,
        };
        let change = &ended?;
        self.restarts += u64::from(change.before.as_deref().is_some_and(serves));
        let ends_records = self.records_ended(change, has_records);
        let ends_copy = || self.last_copy_ended(world, change);
        ends_records.or_else(ends_copy).or_else(|| self.two_down(change))
    }

    /// The end of the pod of a set that is deleted.
    fn pod_of(&self, change: &Change) -> Option<Change> {
        let name = format!("{}-0", change.key.name);
        let key = Key { name, ..Key::new("/pods", &change.key.namespace, "") };
        let before = self.objects.get(&key)?.clone();
        Some(Change { key, before: Some(before), after: None, ..change.clone() })
    }

    /// A claim of the pod that was ended which only the pod held.
    fn records_ended(
        &self,
        change: &Change,
        has_records: impl Fn(&Value) -> bool,
    ) -> Option<Violation> {
        let volumes = change.before.as_ref()?.pointer("/spec/volumes")?.as_array()?;
        let is_lent = |name: &&str| {
            let claim = Key::new(CLAIMS, &change.key.namespace, name);
            self.objects.get(&claim).is_some_and(|claim| {
                has_records(claim)
                    && claim.pointer("/metadata/deletionTimestamp").is_some()
                    && text(claim, "/status/phase") != Some("Lost")
            })
        };
        let mut claims =
            volumes.iter().filter_map(|each| text(each, "/persistentVolumeClaim/claimName"));
        let claim = claims.find(is_lent)?.to_owned();
        Some(Violation::RecordsEnded { ended: change.key.name.clone(), claim })
    }

    /// What the pod that was ended had, and no claim stands for any more.
    fn last_copy_ended(&self, world: &World, change: &Change) -> Option<Violation> {
        let pod = change.before.as_deref()?;
        let cluster = cluster_of(pod).unwrap_or_default();
        let cluster = Key::new("letterbox.dev/kafkaclusters", &change.key.namespace, cluster);
        if self.objects.get(&cluster).is_some_and(|cluster| accepts(cluster)) {
            return None;
        }
        let stands = |uid: &String| {
            let mut claims = self.objects.iter().filter(|(key, _)| key.resource == CLAIMS);
            claims.any(|(_, claim)| {
                text(claim, "/metadata/uid") == Some(uid)
                    && text(claim, "/status/phase") != Some("Lost")
            })
        };
        let held = world.held_by(text(pod, "/metadata/uid")?);
        let mut used = held.into_iter().filter(|uid| world.directory_of(uid).is_some());
        let claim_uid = used.find(|uid| !stands(uid))?;
        Some(Violation::LastCopyEnded { ended: change.key.name.clone(), claim_uid })
    }

    fn of_claim(&self, change: &Change, has_records: impl Fn(&Value) -> bool) -> Option<Violation> {
        let claim = change.key.name.clone();
        let object = change.after.as_ref().or(change.before.as_ref())?;
        let cluster = Key::new(
            "letterbox.dev/kafkaclusters",
            &change.key.namespace,
            cluster_of(object).unwrap_or_default(),
        );
        let cluster = self.objects.get(&cluster);
        if is_ending(change) && change.before.as_deref().is_some_and(has_records) {
            let is_own = text(object, "/metadata/uid").is_some_and(|uid| self.own.contains(uid));
            let asks = cluster.is_none_or(|cluster| {
                cluster.pointer("/metadata/deletionTimestamp").is_some()
                    && text(cluster, "/spec/storage/deletionPolicy") == Some("Delete")
            }) && is_own;
            let is_lost = text(object, "/status/phase") == Some("Lost")
                && cluster.is_some_and(|cluster| accepts(cluster));
            return (!asks && !is_lost).then_some(Violation::RecordsDeleted { claim });
        }
        let accepted = cluster.is_some_and(|cluster| accepts(cluster));
        let is_healed_over =
            change.before.is_none() && self.lost.contains(&change.key) && !accepted;
        is_healed_over.then_some(Violation::LossHealedOver { claim })
    }

    /// Another broker of the cluster that did not serve when one that served was ended.
    fn two_down(&self, change: &Change) -> Option<Violation> {
        let ended = change.before.as_ref().filter(|pod| serves(pod))?;
        let cluster = cluster_of(ended)?;
        let is_other = |(key, set): &(&Key, &Arc<Value>)| {
            key.resource == "apps/statefulsets"
                && key.namespace == change.key.namespace
                && cluster_of(set) == Some(cluster)
                && format!("{}-0", key.name) != change.key.name
        };
        let pods = self.objects.iter().filter(is_other).map(|(key, _)| format!("{}-0", key.name));
        let serves_now = |pod: &String| {
            let key = Key::new("/pods", &change.key.namespace, pod);
            self.objects.get(&key).is_some_and(|pod| serves(pod))
        };
        let down = pods.into_iter().find(|pod| !serves_now(pod))?;
        Some(Violation::TwoBrokersDown { ended: change.key.name.clone(), down })
    }
}

/// Whether a person has accepted a loss.
fn accepts(cluster: &Value) -> bool {
    cluster["metadata"]["annotations"].get("letterbox.dev/accept-data-loss").is_some()
}

fn is_ending(change: &Change) -> bool {
    let ends = |object: &Option<Arc<Value>>| {
        object.as_ref().is_none_or(|object| object.pointer("/metadata/deletionTimestamp").is_some())
    };
    change.before.is_some() && !ends(&change.before) && ends(&change.after)
}

fn serves(pod: &Value) -> bool {
    text(pod, "/status/conditions/0/status") == Some("True")
        && pod.pointer("/metadata/deletionTimestamp").is_none()
}

fn cluster_of(object: &Value) -> Option<&str> {
    object.get("metadata")?.get("labels")?.get("letterbox.dev/cluster")?.as_str()
}
