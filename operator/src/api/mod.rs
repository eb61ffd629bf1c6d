//! What users write and read: [`KafkaCluster`] and [`KafkaTopic`] of `letterbox.dev/v1alpha1`.
//!
//! Every field's comment becomes `kubectl explain`. Changes are additive. What a schema can refuse
//! is refused by the API server through CEL; [`validate`] holds the same rules for files that never
//! meet one.

mod cluster;
mod condition;
mod config;
mod quantity;
mod topic;
pub mod validate;
mod wait;

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

pub(crate) use cluster::needless_setting;
pub use cluster::{
    ADMIN_PORT, BrokerAddress, ClusterStorage, DATA_VOLUME, DeletionPolicy, KafkaCluster,
    KafkaClusterSpec, KafkaClusterStatus, Listener, ListenerBootstrap, ListenerStatus,
    ListenerType, LossReason, LossStatus, NodeStatus, Resources, StorageVolume, VolumeStatus,
};
pub use condition::{
    DEGRADED, PAUSED, PROGRESSING, READY, condition, find_condition, is_true, set_condition,
};
pub(crate) use config::{CLUSTER_CONFIG_MAX, TOPIC_CONFIG_MAX, too_large};
pub use quantity::{bytes_of, nanos_of, shown};
pub use topic::{ClusterRef, KafkaTopic, KafkaTopicSpec, KafkaTopicStatus};
pub use wait::{WaitProgress, WaitStatus};

/// The API group.
pub const GROUP: &str = "letterbox.dev";

/// Set to `"true"` on a `KafkaCluster` or `KafkaTopic`, it stops the operator from changing
/// anything for that object. So does any other value but `"false"` and an empty one: who writes
/// `"yes"` relies on it.
pub const PAUSE_ANNOTATION: &str = "letterbox.dev/pause-reconciliation";

/// Set on a `KafkaCluster` to the name of a loss (`status.nodes[].dataLoss`), it lets that broker
/// go on without the records that are lost. The name is of one loss only: it accepts no other.
pub const ACCEPT_LOSS_ANNOTATION: &str = "letterbox.dev/accept-data-loss";

/// Holds a `KafkaCluster` whose volumes go with it (`spec.storage.deletionPolicy: Delete`) until
/// they are deleted, or until that is read again and says that they stay.
pub const CLUSTER_FINALIZER: &str = "letterbox.dev/delete-volumes";

/// Holds a `KafkaTopic` whose `deletionPolicy` is `Delete` until its topic is gone from the
/// cluster.
pub const TOPIC_FINALIZER: &str = "letterbox.dev/delete-topic";

/// Whether the object asks to be left alone ([`PAUSE_ANNOTATION`]).
#[must_use]
pub fn is_paused(meta: &kube::core::ObjectMeta) -> bool {
    meta.annotations
        .as_ref()
        .and_then(|all| all.get(PAUSE_ANNOTATION))
        .is_some_and(|value| !["", "false"].contains(&value.trim().to_lowercase().as_str()))
}

/// Keys of server.properties that the operator sets itself, because names, ports, volumes and the
/// quorum follow from them.
///
/// `spec.config` must not contain them.
pub const OWNED_KEYS: &[&str] = &[
    "accepted.lost.directory.ids",
    "accepted.lost.metadata.log",
    "admin.listener",
    "advertised.listeners",
    "broker.id",
    "broker.id.generation.enable",
    "cluster.id",
    "control.plane.listener.name",
    "controller.listener.names",
    "controller.quorum.bootstrap.servers",
    "controller.quorum.voters",
    "expected.directory.ids",
    "inter.broker.listener.name",
    "listener.security.protocol.map",
    "listeners",
    "log.dir",
    "log.dirs",
    "metadata.log.dir",
    "missing.directories.wait.enable",
    "node.id",
    "process.roles",
    "security.inter.broker.protocol",
];

/// The custom resource definitions, in the order they are printed and checked in.
///
/// Each tells Helm to keep it, whoever puts it in place: with a definition go all its objects, and
/// an upgrade whose release no longer brings a definition deletes one that does not say so.
#[must_use]
pub fn crds()
-> Vec<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition>
{
    use kube::core::CustomResourceExt as _;
    let mut all = vec![KafkaCluster::crd(), KafkaTopic::crd()];
    for crd in &mut all {
        let annotations = crd.metadata.annotations.get_or_insert_default();
        annotations.insert("helm.sh/resource-policy".to_owned(), "keep".to_owned());
    }
    for version in all.iter_mut().flat_map(|crd| &mut crd.spec.versions) {
        if let Some(schema) =
            version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut())
        {
            unwrap_descriptions(schema);
        }
    }
    all
}

/// Makes each paragraph of a description one line: where a comment in the source is wrapped is
/// nothing that a user should see, or that changes a definition.
fn unwrap_descriptions(schema: &mut JSONSchemaProps) {
    if let Some(text) = &mut schema.description {
        let lines = |paragraph: &str| paragraph.lines().collect::<Vec<_>>().join(" ");
        *text = text.split("\n\n").map(lines).collect::<Vec<_>>().join("\n\n");
    }
    schema.properties.iter_mut().flat_map(BTreeMap::values_mut).for_each(unwrap_descriptions);
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => unwrap_descriptions(item),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => {
            items.iter_mut().for_each(unwrap_descriptions)
        }
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        unwrap_descriptions(values);
    }
}

/// [`crds`] as one YAML stream.
///
/// # Errors
/// When a definition cannot be written as YAML, which a test rules out.
pub fn crds_yaml() -> Result<String, serde_yaml::Error> {
    let mut text = String::new();
    for crd in crds() {
        text.push_str("---\n");
        text.push_str(&serde_yaml::to_string(&crd)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_person_may_mean_by_it_pauses() {
        let is_paused = |value: &str| {
            let annotations = [(PAUSE_ANNOTATION.to_owned(), value.to_owned())].into();
            is_paused(&kube::core::ObjectMeta {
                annotations: Some(annotations),
                ..Default::default()
            })
        };
        assert!(["true", "True", "yes", "1", " true "].into_iter().all(is_paused));
        assert!(!["false", "False", ""].into_iter().any(is_paused));
        assert!(!super::is_paused(&kube::core::ObjectMeta::default()));
    }
}
