//! The volumes of a broker.
//!
//! The operator makes the claims itself, and a broker's set names them: what a set says about
//! claims can never change, and Kubernetes would make an empty claim in place of a lost one.

use super::nodes_of;
use crate::api::{ClusterStorage, DATA_VOLUME, KafkaCluster, validate::volume_number};

/// Where a platform keeps one volume of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumePlace {
    /// The volume's name.
    pub name: String,
    /// The log directory on it.
    pub log_dir: String,
}

/// One volume of a broker as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerVolume {
    /// Its name.
    pub name: String,
    /// The log directory on it.
    pub log_dir: String,
    /// How large the spec wants it.
    pub size: String,
    /// The class that the spec names; `None`: the default class.
    pub class: Option<String>,
    /// Whether the spec names it. One that records are on stays without.
    pub in_spec: bool,
}

impl BrokerVolume {
    /// The volume at `place` as `storage` asks for it.
    pub(super) fn build(storage: &ClusterStorage, place: &VolumePlace) -> Self {
        let named = storage.volumes.iter().find(|volume| volume.name == place.name);
        let size = named.and_then(|volume| volume.size.clone());
        let class = named.and_then(|volume| volume.class.clone());
        Self {
            name: place.name.clone(),
            log_dir: place.log_dir.clone(),
            size: size.unwrap_or_else(|| storage.size.clone()),
            class: class.or_else(|| storage.class.clone()),
            in_spec: named.is_some(),
        }
    }
}

/// The names of the volumes that broker `id` should have, in the order of its log directories:
/// those of the spec, those that it has used, and those of `kept`, which are there. `data`,
/// where the metadata log is, comes first.
#[must_use]
pub fn volume_names(
    cluster: &KafkaCluster,
    id: i32,
    kept: impl IntoIterator<Item = String>,
) -> Vec<String> {
    let spec = cluster.spec.storage.volumes.iter().map(|volume| volume.name.clone());
    let used = nodes_of(cluster)
        .filter(|node| node.id == id)
        .flat_map(|node| &node.volumes)
        .map(|volume| volume.name.clone());
    let mut names: Vec<(u32, String)> = spec
        .chain(used)
        .chain(kept)
        .filter_map(|name| Some((volume_number(&name)?, name)))
        .collect();
    names.sort();
    names.dedup();
    names.into_iter().map(|(_, name)| name).collect()
}

/// What the directories of a broker are known to be, from the status of its cluster; empty before
/// its first start.
#[must_use]
pub fn expected_directories(cluster: &KafkaCluster, id: i32) -> Vec<String> {
    nodes_of(cluster)
        .filter(|node| node.id == id)
        .flat_map(|node| node.volumes.iter().filter_map(|volume| volume.directory_id.clone()))
        .collect()
}

/// The directories of a broker whose loss was accepted.
#[must_use]
pub fn given_up_directories(cluster: &KafkaCluster, id: i32) -> Vec<String> {
    let Some(node) = nodes_of(cluster).find(|node| node.id == id) else { return Vec::new() };
    let accepted = node.accepted_losses().filter_map(|loss| loss.directory_id.clone());
    node.given_up.iter().cloned().chain(accepted).collect()
}

/// Names the loss of a broker's metadata log, if one was accepted: by the `directory.id`, where it
/// is known.
#[must_use]
pub fn lost_metadata_log(cluster: &KafkaCluster, id: i32) -> Option<String> {
    let node = nodes_of(cluster).find(|node| node.id == id)?;
    let lost = node.accepted_losses().filter(|loss| loss.volume == DATA_VOLUME).last()?;
    Some(lost.directory_id.clone().unwrap_or_else(|| lost.name.clone()))
}

/// The name of the claim of a volume: what a set of the name `broker` would call it, were the claim
/// made from a template.
#[must_use]
pub fn claim_name(broker: &str, volume: &str) -> String {
    format!("{volume}-{broker}-0")
}

/// The volume that a claim of this name is for, where it is one of `broker`.
#[must_use]
pub fn volume_of_claim(broker: &str, claim: &str) -> Option<String> {
    let volume = claim.strip_suffix("-0")?.strip_suffix(broker)?.strip_suffix('-')?;
    volume_number(volume).map(|_| volume.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{KafkaClusterSpec, KafkaClusterStatus};
    use serde_json::json;

    #[test]
    fn a_volume_that_is_used_stays_and_data_comes_first() {
        let volume =
            |name: &str| json!({"name": name, "size": "1Gi", "class": format!("for-{name}")});
        let spec: KafkaClusterSpec = serde_json::from_value(json!({
            "storage": {"size": "5Gi", "volumes": [volume("data-10"), volume("data-2"), {"name": "data"}]},
        }))
        .unwrap();
        let mut cluster = KafkaCluster::new("demo", spec);
        let status: KafkaClusterStatus = serde_json::from_value(json!({"nodes": [
            {"id": 0, "volumes": [
                {"name": "data", "directoryId": "a"}, {"name": "data-1", "directoryId": "b"},
                {"name": "data-4", "claimUid": "d"},
            ]},
            {"id": 1, "volumes": [{"name": "data-5", "directoryId": "c"}]},
        ]}))
        .unwrap();
        cluster.status = Some(status);
        let names = volume_names(&cluster, 0, ["data-3".to_owned(), "other".to_owned()]);
        assert_eq!(names, ["data", "data-1", "data-2", "data-3", "data-4", "data-10"]);
        assert_eq!(expected_directories(&cluster, 0), ["a", "b"]);
        let built = |name: &str| {
            let place = VolumePlace { name: name.to_owned(), log_dir: format!("/{name}") };
            let volume = BrokerVolume::build(&cluster.spec.storage, &place);
            (volume.size, volume.class, volume.in_spec)
        };
        assert_eq!(built("data-2"), ("1Gi".into(), Some("for-data-2".into()), true));
        assert_eq!(built("data"), ("5Gi".into(), None, true));
        assert_eq!(built("data-1"), ("5Gi".into(), None, false));
    }

    #[test]
    fn a_claim_is_known_by_its_name() {
        for (claim, volume) in [
            ("data-demo-broker-0-0", Some("data")),
            ("data-12-demo-broker-0-0", Some("data-12")),
            ("data-demo-broker-1-0", None),
            ("data-a-demo-broker-0-0", None),
            ("data-01-demo-broker-0-0", None),
            ("demo-broker-0-0", None),
        ] {
            assert_eq!(volume_of_claim("demo-broker-0", claim).as_deref(), volume, "{claim}");
            if let Some(volume) = volume {
                assert_eq!(claim_name("demo-broker-0", volume), claim);
            }
        }
    }
}
