//! What should be: pure builders, facts in and whole objects out. Same input, same bytes.
//!
//! [`Blueprint`] is the cluster as every platform understands it; [`objects`] turns it into Kubernetes objects.

pub mod compare;
pub mod objects;
mod properties;

use std::collections::BTreeMap;

use kube::ResourceExt as _;

use crate::api::{ClusterStorage, KafkaCluster, Listener, Resources};

pub use properties::{Address, Host, advertised_in, internal_listener};

/// The pool that every broker belongs to; part of its name (`CLUSTER-POOL-ID`).
///
/// A service is called `CLUSTER-POOL-ID-LISTENER` and a label's value `CLUSTER-POOL-ID-HASH`, both of at most 63 characters: with 32
/// for the cluster and 11 for the listener, a pool has room for [`POOL_LEN_MAX`] and an id for five digits.
pub const POOL: &str = "broker";

/// How many characters the name of a pool may have.
pub const POOL_LEN_MAX: usize = 12;

/// The port of the listener that brokers use among themselves for the metadata quorum.
pub const CONTROLLER_PORT: u16 = 9090;

/// What a platform knows about where things are, before anything is built. It depends on the spec and on what is
/// live (a node port that Kubernetes chose), never on the clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The image that the brokers should run ([`image_of`]).
    pub image: String,
    /// By broker id, for every broker that should be.
    pub brokers: BTreeMap<i32, BrokerFacts>,
}

/// Where one broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerFacts {
    /// The directory of its log.
    pub data_dir: String,
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
    /// The size in the live claim template, which Kubernetes does not let anyone change; `None` before there is one.
    pub claim_size: Option<String>,
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
    /// The brokers, by id.
    pub brokers: BTreeMap<i32, Broker>,
    /// The listeners, in the spec's order.
    pub listeners: Vec<Listener>,
    /// The volume of each broker.
    pub storage: ClusterStorage,
    /// CPU and memory of each broker.
    pub resources: Resources,
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
    /// Changes exactly when the user's spec asks for something that a running broker does not take up. A broker that runs another
    /// one has to restart. Whatever else changes in a definition is deferred until that broker restarts anyway.
    pub asked: String,
    /// The listeners whose addresses are not known yet.
    pub unknown: Vec<String>,
    /// See [`BrokerFacts::claim_size`].
    pub claim_size: String,
}

/// What a broker is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerConfig {
    /// The content of server.properties.
    pub properties: String,
    /// `key=value` given as `--override`, because the value has `$(HOST_IP)` in it, which only the start of the container knows.
    pub overrides: Vec<String>,
    /// Changes exactly when one of the two does.
    pub revision: String,
}

impl Blueprint {
    /// Builds what `cluster` asks for, placed as `facts` say.
    #[must_use]
    pub fn build(cluster: &KafkaCluster, facts: &Facts) -> Self {
        let name = cluster.name_any();
        let voters =
            facts.brokers.iter().map(|(id, broker)| format!("{id}@{}:{}", broker.quorum.0, broker.quorum.1)).collect::<Vec<_>>().join(",");
        let brokers = facts
            .brokers
            .iter()
            .map(|(&id, broker)| {
                let (config, unknown) = properties::build(&cluster.spec, id, broker, &voters);
                let built = Broker {
                    id,
                    name: broker_name(&name, id),
                    asked: properties::asked(&cluster.spec, &facts.image, broker),
                    config,
                    unknown,
                    claim_size: broker.claim_size.clone().unwrap_or_else(|| cluster.spec.storage.size.clone()),
                };
                (id, built)
            })
            .collect();
        Self {
            namespace: cluster.namespace().unwrap_or_default(),
            uid: cluster.uid().unwrap_or_default(),
            image: facts.image.clone(),
            brokers,
            listeners: cluster.spec.listeners.clone(),
            storage: cluster.spec.storage.clone(),
            resources: cluster.spec.resources.clone(),
            name,
        }
    }
}

/// The image that the brokers should run: the one asked for; or else the default that a broker was once ready on, so that
/// upgrading the operator restarts nobody; or else, where no default is remembered, the one that a broker is ready on now
/// (`ready`); or else `default`.
///
/// What the spec asked for earlier does not count: an image that cannot run is forgotten with the spec that named it.
#[must_use]
pub fn image_of(cluster: &KafkaCluster, ready: Option<&str>, default: &str) -> String {
    let spec = &cluster.spec;
    let version = || Some(format!("{}:{}", repository_of(default), spec.version.as_ref()?));
    let remembered = || cluster.status.as_ref()?.default_image.clone();
    spec.image.clone().or_else(version).or_else(remembered).unwrap_or_else(|| ready.unwrap_or(default).to_owned())
}

/// The image reference without tag and digest.
fn repository_of(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => image,
    }
}

/// The ids that `cluster` should have.
pub fn broker_ids(cluster: &KafkaCluster) -> impl Iterator<Item = i32> + use<> {
    0..cluster.spec.replicas
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
            let spec = KafkaClusterSpec { image: text(image), version: text(version), ..KafkaClusterSpec::default() };
            let mut cluster = KafkaCluster::new("demo", spec);
            cluster.status = Some(KafkaClusterStatus { default_image: text(remembered), ..KafkaClusterStatus::default() });
            assert_eq!(image_of(&cluster, ready, "here/letterbox:9"), expected, "{image:?} {version:?} {remembered:?} {ready:?}");
        }
    }

    #[test]
    fn the_longest_names_fit() {
        let broker = format!("{}-{}-{}", "c".repeat(32), "p".repeat(POOL_LEN_MAX), 99_999);
        let service = objects::external_broker_name(&broker, &"l".repeat(11));
        let revision = format!("{broker}-{}", "h".repeat(10));
        assert!(service.len() <= 63 && revision.len() <= 63 && POOL.len() <= POOL_LEN_MAX, "{} {}", service.len(), revision.len());
    }

    #[test]
    fn the_repository_is_what_comes_before_tag_and_digest() {
        assert_eq!(repository_of("letterbox:0.1.0"), "letterbox");
        assert_eq!(repository_of("registry.example:5000/a/letterbox"), "registry.example:5000/a/letterbox");
        assert_eq!(repository_of("registry.example:5000/letterbox:1@sha256:0"), "registry.example:5000/letterbox");
    }
}
