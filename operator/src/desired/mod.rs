//! What should be: pure builders, facts in and whole objects out. Same input, same bytes.
//!
//! [`Blueprint`] is the cluster as every platform understands it; [`objects`] turns it into
//! Kubernetes objects.

pub mod compare;
pub mod objects;
mod properties;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt as _;
use letterbox_env::Gather;
use serde_json::Value;

use crate::api::{ClusterStorage, KafkaCluster, Listener, NodeStatus, Resources};

pub(crate) use properties::fingerprint;
pub use properties::{Address, Host, advertised_in, internal_listener};
pub use volumes::{
    BrokerVolume, VolumePlace, claim_name, expected_directories, given_up_directories,
    lost_metadata_log, volume_names, volume_of_claim,
};

/// The pool that every broker belongs to; part of its name (`CLUSTER-POOL-ID`).
///
/// A service is called `CLUSTER-POOL-ID-LISTENER` and a label's value `CLUSTER-POOL-ID-HASH`, both
/// of at most 63 characters: with 32 for the cluster and 11 for the listener, a pool has room for
/// [`POOL_LEN_MAX`] and an id for five digits.
pub const POOL: &str = "broker";

/// How many characters the name of a pool may have.
pub const POOL_LEN_MAX: usize = 12;

/// The port of the listener that brokers use among themselves for the metadata quorum.
pub const CONTROLLER_PORT: u16 = 9090;

/// What a platform knows about where things are, before anything is built. It depends on the spec
/// and on what is live (a node port that Kubernetes chose), never on the clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The image that the brokers should run ([`image_of`]).
    pub image: String,
    /// The id of the cluster; `None` where the first broker that starts makes it up, or where it is
    /// yet to be learned from one.
    pub cluster_id: Option<String>,
    /// By broker id, for every broker that should be.
    pub brokers: BTreeMap<i32, BrokerFacts>,
}

/// Where one broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerFacts {
    /// Its volumes ([`volume_names`]), in the order of its log directories.
    pub volumes: Vec<VolumePlace>,
    /// By listener name: the address it listens on. An empty host means every interface.
    pub bind: BTreeMap<String, (String, u16)>,
    /// By listener name: the address that clients are told; `None` while it was never known.
    pub advertised: BTreeMap<String, Option<Address>>,
    /// Where the other voters reach its controller listener.
    pub quorum: (String, u16),
    /// Where its controller listener listens.
    pub quorum_bind: (String, u16),
    /// The address of health and metrics, where it is not the default port on every interface.
    pub admin_bind: Option<(String, u16)>,
    /// What its directories are known to be ([`expected_directories`]).
    pub directory_ids: Vec<String>,
    /// Which of its directories are lost and given up ([`given_up_directories`]).
    pub given_up: Vec<String>,
    /// Names the accepted loss of its metadata log ([`lost_metadata_log`]).
    pub begins_anew: Option<String>,
    /// The claim templates of a set that an older operator made: Kubernetes does not let anyone
    /// change or remove them.
    pub claim_templates: Option<Value>,
}

/// A whole cluster as it should be, in terms that every platform understands.
#[derive(Clone, Debug, PartialEq)]
pub struct Blueprint {
    /// The name of the `KafkaCluster`.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid; empty where there is none (local files).
    pub uid: String,
    /// The image that every broker runs.
    pub image: String,
    /// See [`Facts::cluster_id`].
    pub cluster_id: Option<String>,
    /// The brokers, by id.
    pub brokers: BTreeMap<i32, Broker>,
    /// The listeners, in the spec's order.
    pub listeners: Vec<Listener>,
    /// What the spec says about volumes.
    pub storage: ClusterStorage,
    /// CPU and memory of each broker.
    pub resources: Resources,
    /// Why no broker may be evicted now; `None` where one may, and where nobody has asked.
    pub evictions_held: Option<String>,
}

/// One broker as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Its node id.
    pub id: i32,
    /// `CLUSTER-POOL-ID`.
    pub name: String,
    /// What it is started with, without the listeners in `unknown`.
    pub config: BrokerConfig,
    /// Changes exactly when the user's spec asks for something that a running broker does not take
    /// up. A broker that runs another one has to restart. Whatever else changes in a definition is
    /// deferred until that broker restarts anyway.
    pub asked: String,
    /// The listeners whose addresses are not known yet.
    pub unknown: Vec<String>,
    /// Its volumes, in the order of its log directories.
    pub volumes: Vec<BrokerVolume>,
    /// See [`BrokerFacts::claim_templates`].
    pub claim_templates: Option<Value>,
}

/// What a broker is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerConfig {
    /// The content of server.properties.
    pub properties: String,
    /// `key=value` given as `--override`, because the value has `$(HOST_IP)` in it, which only the
    /// start of the container knows; or because it comes to be known after the first start, and
    /// leaves the file as it is.
    pub overrides: Vec<String>,
    /// Changes exactly when `properties` does.
    pub file_revision: String,
    /// Changes exactly when one of the two does.
    pub revision: String,
}

impl Blueprint {
    /// The log directory on a volume of a broker.
    #[must_use]
    pub fn log_dir_of(&self, broker: i32, volume: &str) -> Option<&str> {
        let mut volumes = self.brokers.get(&broker)?.volumes.iter();
        volumes.find(|each| each.name == volume).map(|each| each.log_dir.as_str())
    }

    /// The volume of a broker that a log directory is on.
    #[must_use]
    pub fn volume_at(&self, broker: i32, log_dir: &str) -> Option<&str> {
        let mut volumes = self.brokers.get(&broker)?.volumes.iter();
        volumes.find(|each| each.log_dir == log_dir).map(|each| each.name.as_str())
    }

    /// Builds what `cluster` asks for, placed as `facts` say.
    #[must_use]
    pub fn build(cluster: &KafkaCluster, facts: &Facts) -> Self {
        let name = cluster.name_any();
        let voters = facts
            .brokers
            .iter()
            .map(|(id, broker)| format!("{id}@{}:{}", broker.quorum.0, broker.quorum.1))
            .collect::<Vec<_>>()
            .join(",");
        let brokers = facts
            .brokers
            .iter()
            .map(|(&id, broker)| {
                let (config, unknown) = properties::build(
                    &cluster.spec,
                    id,
                    broker,
                    &voters,
                    facts.cluster_id.as_deref(),
                    &facts.image,
                );
                let built = Broker {
                    id,
                    name: broker_name(&name, id),
                    asked: properties::asked(&cluster.spec, &facts.image, broker),
                    config,
                    unknown,
                    volumes: broker
                        .volumes
                        .iter()
                        .map(|place| BrokerVolume::build(&cluster.spec.storage, place))
                        .collect(),
                    claim_templates: broker.claim_templates.clone(),
                };
                (id, built)
            })
            .gather();
        Self {
            namespace: cluster.namespace().unwrap_or_default(),
            uid: cluster.uid().unwrap_or_default(),
            image: facts.image.clone(),
            cluster_id: facts.cluster_id.clone(),
            brokers,
            listeners: cluster.spec.listeners.clone(),
            storage: cluster.spec.storage.clone(),
            resources: cluster.spec.resources.clone(),
            evictions_held: None,
            name,
        }
    }
}

/// The image that the brokers should run: the one asked for; or else the default that a broker was
/// once ready on, so that upgrading the operator restarts nobody; or else, where no default is
/// remembered, the one that a broker is ready on now (`ready`); or else `default`.
///
/// What the spec asked for earlier does not count: an image that cannot run is forgotten with the
/// spec that named it.
#[must_use]
pub fn image_of(cluster: &KafkaCluster, ready: Option<&str>, default: &str) -> String {
    let spec = &cluster.spec;
    let version = || Some(format!("{}:{}", repository_of(default), spec.version.as_ref()?));
    let remembered = || cluster.status.as_ref()?.default_image.clone();
    spec.image
        .clone()
        .or_else(version)
        .or_else(remembered)
        .unwrap_or_else(|| ready.unwrap_or(default).to_owned())
}

/// Whether the broker in `image` knows the key of server.properties that came with version `since`:
/// not where the tag is the number of an older version. Any other tag says nothing about that.
pub(crate) fn knows(image: &str, since: [u64; 3]) -> bool {
    version_in(image).is_none_or(|version| version >= since)
}

/// The version that the tag of an image is the number of.
fn version_in(image: &str) -> Option<[u64; 3]> {
    let tag = tag_of(image)?;
    let number = tag.strip_prefix('v').unwrap_or(tag).split(['-', '+']).next()?;
    let mut parts = number.split('.').map(|part| part.parse().ok());
    let version = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(version)
}

/// The tag of an image reference; `None` when it has none.
pub(crate) fn tag_of(image: &str) -> Option<&str> {
    let name = image.split('@').next()?;
    let (_, tag) = name.rsplit('/').next()?.split_once(':')?;
    Some(tag)
}

/// The image reference without tag and digest.
fn repository_of(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => image,
    }
}

/// The ids that `cluster` should have: those that were assigned (`status.nodes`), and the lowest
/// free ones for brokers that are to come.
pub fn broker_ids(cluster: &KafkaCluster) -> impl Iterator<Item = i32> + use<> {
    let mut ids: BTreeSet<i32> = nodes_of(cluster).map(|node| node.id).gather();
    let more = usize::try_from(cluster.spec.replicas).unwrap_or_default().saturating_sub(ids.len());
    let free: Vec<i32> = (0..).filter(|id| !ids.contains(id)).take(more).collect();
    ids.extend(free);
    ids.into_iter()
}

/// What is remembered of the brokers of `cluster`.
fn nodes_of(cluster: &KafkaCluster) -> impl Iterator<Item = &NodeStatus> {
    cluster.status.iter().flat_map(|status| &status.nodes)
}

/// The cluster id of a cluster that has none yet: from the uid of its object, so that whoever
/// looks, and however often, finds the same.
#[must_use]
pub fn cluster_id_of(uid: &str) -> Option<String> {
    let mut id = *uuid::Uuid::parse_str(uid).ok()?.as_bytes();
    // Never begins with a dash, which command lines take for a flag.
    id[0] &= 0x7f;
    Some(letterbox_client::encode_uuid(uuid::Uuid::from_bytes(id)))
}

/// `CLUSTER-POOL-ID`.
#[must_use]
pub fn broker_name(cluster: &str, id: i32) -> String {
    format!("{cluster}-{POOL}-{id}")
}

/// The name of the service that clients inside Kubernetes connect to first.
#[must_use]
pub fn bootstrap_name(cluster: &str) -> String {
    format!("{cluster}-kafka-bootstrap")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{KafkaClusterSpec, KafkaClusterStatus};

    #[test]
    fn an_image_stays_until_the_spec_names_another() {
        for (image, version, remembered, ready, expected) in [
            (None, None, None, None, "here/letterbox:9"),
            (None, None, None, Some("a:1"), "a:1"),
            (None, None, Some("b:1"), Some("a:1"), "b:1"),
            (None, Some("2"), Some("b:1"), Some("a:1"), "here/letterbox:2"),
            (Some("c:1"), None, Some("b:1"), Some("a:1"), "c:1"),
        ] {
            let text = |text: Option<&str>| text.map(ToOwned::to_owned);
            let spec = KafkaClusterSpec {
                image: text(image),
                version: text(version),
                ..KafkaClusterSpec::default()
            };
            let mut cluster = KafkaCluster::new("demo", spec);
            cluster.status = Some(KafkaClusterStatus {
                default_image: text(remembered),
                ..KafkaClusterStatus::default()
            });
            assert_eq!(
                image_of(&cluster, ready, "here/letterbox:9"),
                expected,
                "{image:?} {version:?} {remembered:?} {ready:?}"
            );
        }
    }

    #[test]
    fn only_the_number_of_an_older_version_says_that_a_key_is_not_known() {
        for (image, expected) in [
            ("letterbox:0.0.9", false),
            ("registry.example:5000/a/letterbox:v0.0.9-rc.1@sha256:00", false),
            ("letterbox:0.1.0", true),
            ("letterbox:0.10.0+dirty", true),
            ("letterbox:0", true),
            ("letterbox:main", true),
            ("registry.example:5000/a/letterbox", true),
        ] {
            assert_eq!(knows(image, [0, 1, 0]), expected, "{image}");
        }
    }

    #[test]
    fn ids_that_were_assigned_stay_and_the_lowest_free_ones_come() {
        for (assigned, replicas, expected) in
            [(vec![], 3, vec![0, 1, 2]), (vec![1, 5], 4, vec![0, 1, 2, 5]), (vec![7], 1, vec![7])]
        {
            let mut cluster = KafkaCluster::new(
                "demo",
                KafkaClusterSpec { replicas, ..KafkaClusterSpec::default() },
            );
            let nodes = assigned
                .iter()
                .map(|id| crate::api::NodeStatus { id: *id, ..Default::default() })
                .collect();
            cluster.status = Some(KafkaClusterStatus { nodes, ..KafkaClusterStatus::default() });
            assert_eq!(
                broker_ids(&cluster).collect::<Vec<_>>(),
                expected,
                "{assigned:?} {replicas}"
            );
        }
    }

    #[test]
    fn the_id_of_a_new_cluster_follows_from_its_object() {
        assert_eq!(
            cluster_id_of("30313233-3435-3637-3839-616263646566").as_deref(),
            Some("MDEyMzQ1Njc4OWFiY2RlZg")
        );
        assert_eq!(
            cluster_id_of("ffffffff-ffff-ffff-ffff-ffffffffffff").as_deref(),
            Some("f____________________w")
        );
        assert_eq!(cluster_id_of(""), None);
    }

    #[test]
    fn the_longest_names_fit() {
        let broker = format!("{}-{}-{}", "c".repeat(32), "p".repeat(POOL_LEN_MAX), 99_999);
        let service = objects::external_broker_name(&broker, &"l".repeat(11));
        let revision = format!("{broker}-{}", "h".repeat(10));
        assert!(
            service.len() <= 63 && revision.len() <= 63 && POOL.len() <= POOL_LEN_MAX,
            "{} {}",
            service.len(),
            revision.len()
        );
    }

    #[test]
    fn the_repository_is_what_comes_before_tag_and_digest() {
        assert_eq!(repository_of("letterbox:0.1.0"), "letterbox");
        assert_eq!(
            repository_of("registry.example:5000/a/letterbox"),
            "registry.example:5000/a/letterbox"
        );
        assert_eq!(
            repository_of("registry.example:5000/letterbox:1@sha256:0"),
            "registry.example:5000/letterbox"
        );
    }

    #[test]
    fn the_version_is_the_tag() {
        assert_eq!(tag_of("letterbox:0.1.0"), Some("0.1.0"));
        assert_eq!(tag_of("registry.example:5000/a/letterbox:0.1.0@sha256:00"), Some("0.1.0"));
        assert_eq!(tag_of("registry.example:5000/a/letterbox"), None);
    }
}
