//! `KafkaTopic`.
#![allow(unreachable_pub, reason = "the derive repeats the type inside a function")]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema, ResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::config::{config_values, topic_config_schema};
use super::{DeletionPolicy, WaitStatus};

/// What a topic should be.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[kube(
    group = "letterbox.dev",
    version = "v1alpha1",
    kind = "KafkaTopic",
    plural = "kafkatopics",
    shortname = "kt",
    category = "letterbox",
    category = "kafka",
    namespaced,
    status = "KafkaTopicStatus",
    derive = "PartialEq",
    doc = "A topic of a KafkaCluster in the same namespace.",
    validation = Rule::new("has(self.spec.topicName) || size(self.metadata.name) <= 249").message(LONG_NAME_MESSAGE),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name", description = "The cluster that the topic belongs to"),
    printcolumn(name = "Partitions", type_ = "integer", json_path = ".status.partitions", description = "Partitions that the topic has"),
    printcolumn(name = "Replication factor", type_ = "integer", json_path = ".status.replicas", description = "Replicas of each partition"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether the topic is as the spec describes it"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why the topic is or is not ready"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("has(self.topicName) == has(oldSelf.topicName) && \
    (!has(self.topicName) || self.topicName == oldSelf.topicName)").message(TOPIC_NAME_IMMUTABLE_MESSAGE))]
#[serde(rename_all = "camelCase")]
pub struct KafkaTopicSpec {
    /// The cluster that the topic belongs to.
    #[x_kube(validation = Rule::new("self == oldSelf").message(CLUSTER_IMMUTABLE_MESSAGE))]
    pub cluster_ref: ClusterRef,

    /// The topic's name in Kafka, where it is not a name that Kubernetes allows. Absent: the name
    /// of this object. It cannot be changed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249), regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    #[x_kube(validation = Rule::new("self != '.' && self != '..'").message(DOTS_MESSAGE))]
    #[x_kube(validation = Rule::new("!self.startsWith('__')").message(INTERNAL_TOPIC_MESSAGE))]
    pub topic_name: Option<String>,

    /// How many partitions the topic has. It can grow and never shrink. Absent: what the cluster's
    /// `num.partitions` says when the topic is made, and left alone afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub partitions: Option<i32>,

    /// How many brokers keep each partition: no more than the cluster has. Another number is copied
    /// to, or taken from, some of them. Absent: what the
    /// cluster's `default.replication.factor` says when the topic is made, and left alone
    /// afterwards; that is 3 where a cluster has several brokers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 5))]
    pub replicas: Option<i32>,

    /// Topic configuration: Kafka's keys; values are strings, numbers, true or false, or lists of
    /// them. A value that was changed by hand is put back; a key that leaves this map goes back to
    /// the cluster's default; keys that were never in it are left alone. At most 100 keys, and 32 KiB
    /// of keys and values together.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "config_values"
    )]
    #[schemars(schema_with = "topic_config_schema")]
    pub config: BTreeMap<String, String>,

    /// What happens to the topic, and with it to its records, when this object is deleted. Default:
    /// Retain.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// Names a `KafkaCluster` in the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRef {
    /// The name of the `KafkaCluster`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// What a topic is. Empty while no operator watches its namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KafkaTopicStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready, Progressing, Degraded and Paused, each with a reason and a message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,

    /// What is waited for and what is wrong, the worst first: why the object is not, or not only,
    /// what its spec asks for. Empty once it is. At most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub waits: Vec<WaitStatus>,

    /// The topic's name in Kafka.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_name: Option<String>,

    /// The topic's id in Kafka. It changes when a topic is deleted and made again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,

    /// Partitions that the topic has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<i32>,

    /// Replicas of each partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,

    /// Configuration keys that this object has set, which go back to the default when they leave
    /// the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub config_keys: Vec<String>,
}

impl KafkaTopic {
    /// The topic's name in Kafka: `spec.topicName`, or else the object's own name.
    #[must_use]
    pub fn kafka_name(&self) -> String {
        self.spec.topic_name.clone().unwrap_or_else(|| self.name_any())
    }
}

pub(crate) const LONG_NAME_MESSAGE: &str =
    "A topic's name in Kafka has at most 249 characters; set spec.topicName to a shorter one.";
pub(crate) const TOPIC_NAME_IMMUTABLE_MESSAGE: &str =
    "A topic cannot be renamed; make a new KafkaTopic for the new name (spec.topicName).";
pub(crate) const CLUSTER_IMMUTABLE_MESSAGE: &str = "A topic cannot move to another cluster; make a \
    new KafkaTopic for that cluster (spec.clusterRef).";
pub(crate) const DOTS_MESSAGE: &str = "A topic cannot be named '.' or '..'.";
pub(crate) const INTERNAL_TOPIC_MESSAGE: &str =
    "Topics whose names begin with two underscores are the brokers' own; choose another name.";
