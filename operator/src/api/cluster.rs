//! `KafkaCluster`.
#![allow(unreachable_pub, reason = "the derive repeats the type inside a function")]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::config::{config_schema, config_values};
use super::{OWNED_KEYS, WaitStatus};

/// What a Kafka cluster should be.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "letterbox.dev",
    version = "v1alpha1",
    kind = "KafkaCluster",
    plural = "kafkaclusters",
    shortname = "kc",
    category = "letterbox",
    category = "kafka",
    namespaced,
    status = "KafkaClusterStatus",
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
    derive = "PartialEq",
    doc = "A Kafka cluster: brokers that every Kafka client can use, with their volumes, addresses \
        and configuration.",
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$')").message(NAME_MESSAGE),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether \
        clients can use the cluster as the spec describes it"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "Summary of the cluster's state"),
    printcolumn(name = "Since", type_ = "date", json_path = ".status.phaseSince", description = "Time since the phase changed"),
    printcolumn(name = "Brokers", type_ = "string", json_path = ".status.brokers", description = "Brokers that are ready / brokers that are wanted"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version", description = "The version that every broker runs"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why the cluster is or is not ready"),
    printcolumn(name = "Bootstrap", type_ = "string", json_path = ".status.listeners[0].bootstrapServers", description = "bootstrap.servers \
        of the first listener; status.listeners has them all"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", description = "Message of the Ready condition", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("!has(self.image) || !has(self.version)").message(IMAGE_AND_VERSION_MESSAGE))]
#[serde(rename_all = "camelCase")]
pub struct KafkaClusterSpec {
    /// How many brokers the cluster has: 1, 3 or 5. It cannot be changed later. Default: 1.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 1))]
    #[x_kube(validation = Rule::new("self in [1, 3, 5]").message(REPLICAS_MESSAGE))]
    #[x_kube(validation = Rule::new("self == oldSelf").message(REPLICAS_FIXED_MESSAGE))]
    pub replicas: i32,

    /// The version of Letterbox to run: a tag in the repository that the operator takes brokers
    /// from (`broker.image.repository` of the Helm chart). Changing it restarts the brokers; where
    /// only that repository changes, each broker takes it up when it restarts anyway. Absent: the
    /// operator's version when a broker of this cluster first became ready without one
    /// (`status.defaultImage`). It stays when the operator is upgraded, so that upgrading the
    /// operator never restarts a broker; set it to upgrade the brokers, and remove it again to go
    /// back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"))]
    pub version: Option<String>,

    /// The whole image reference to run instead of `version`, for example from a mirror. Changing
    /// it restarts the brokers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// The volumes of each broker.
    #[serde(default)]
    pub storage: ClusterStorage,

    /// Broker configuration: the keys and values of Kafka's server.properties. Values are strings,
    /// numbers, true or false, or lists of them. Changing it restarts the brokers. Keys that the
    /// operator sets itself (names, listeners, directories, quorum) are refused. At most 200 keys, and
    /// 256 KiB of keys and values together.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "config_values"
    )]
    #[schemars(schema_with = "broker_config_schema")]
    pub config: BTreeMap<String, String>,

    /// Where clients connect. Each listener has a name and a port of its own. Default: one of type
    /// `internal`, named `plain`, on port 9092.
    #[serde(default = "default_listeners")]
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, b.port == a.port))").message(PORTS_MESSAGE))]
    #[x_kube(validation = Rule::new("self.exists(l, l.type == 'internal')").message(INTERNAL_LISTENER_MESSAGE))]
    pub listeners: Vec<Listener>,

    /// CPU and memory of each broker. Changing them restarts the brokers.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
}

/// The volumes of each broker.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStorage {
    /// How large each volume is that has no `size` of its own, for example `10Gi`. It can grow, if
    /// the storage class allows it. A volume that is larger, because it was grown by hand or this
    /// was set back, stays as large as it is. At least 64Mi. Default: 10Gi.
    #[serde(default = "default_size")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("isQuantity(self) && \
        !quantity(self).isLessThan(quantity('64Mi'))").message(SIZE_MESSAGE))]
    pub size: String,

    /// The storage class of each volume that has no `class` of its own. Absent: the Kubernetes
    /// cluster's default class. A volume that was made stays in its class; while it could not be
    /// made yet, another class may be named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub class: Option<String>,

    /// The volumes of each broker, each with a log directory of its own: `data`, which also holds
    /// the metadata of the cluster, and any of `data-1` to `data-99`. A volume that is added
    /// restarts the brokers. One that is taken out of here stays in use once a broker has used it.
    /// At most 16. Default: one, named data.
    #[serde(default = "default_volumes")]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(validation = Rule::new("self.exists(v, v.name == 'data')").message(DATA_VOLUME_MESSAGE))]
    pub volumes: Vec<StorageVolume>,

    /// What happens to the volumes, and with them to every record, when the cluster is deleted.
    /// Default: Retain.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// One volume of each broker.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StorageVolume {
    /// The volume's name: `data`, or `data-1` to `data-99`. Its PersistentVolumeClaim is called
    /// `NAME-CLUSTER-POOL-ID-0`.
    #[schemars(length(min = 1, max = 7), regex(pattern = r"^data(-[1-9][0-9]?)?$"))]
    pub name: String,

    /// How large this volume is. Absent: `spec.storage.size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("isQuantity(self) && \
        !quantity(self).isLessThan(quantity('64Mi'))").message(SIZE_MESSAGE))]
    pub size: Option<String>,

    /// The storage class of this volume. Absent: `spec.storage.class`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub class: Option<String>,
}

/// The name of the volume that every broker has.
pub const DATA_VOLUME: &str = "data";

/// What happens to data when the object that asked for it is deleted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// The data stays. An object of the same name takes it up again.
    #[default]
    Retain,
    /// The data is deleted with the object.
    Delete,
}

/// A place where clients connect.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[x_kube(validation = Rule::new("self.type == 'nodeport' || (!has(self.bootstrap) && \
    !has(self.brokers))").message(NODEPORT_ONLY_MESSAGE))]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// The listener's name: lower-case letters and digits, at most 11, beginning with a letter, and
    /// none of `admin`, `controller` and `kafka`.
    #[schemars(length(min = 1, max = 11), regex(pattern = r"^[a-z][a-z0-9]*$"))]
    #[x_kube(validation = Rule::new("self != 'controller'").message(CONTROLLER_NAME_MESSAGE))]
    #[x_kube(validation = Rule::new("self != 'admin'").message(ADMIN_NAME_MESSAGE))]
    #[x_kube(validation = Rule::new("self != 'kafka'").message(KAFKA_NAME_MESSAGE))]
    pub name: String,

    /// The port inside the Kubernetes cluster: 9092 or higher. 9644 is taken by health and metrics.
    #[schemars(range(min = 9092, max = 65535))]
    #[x_kube(validation = Rule::new("self != 9644").message(ADMIN_PORT_MESSAGE))]
    pub port: i32,

    /// Who can reach it: `internal` (clients in the Kubernetes cluster) or `nodeport` (clients
    /// outside, through a port of every node). Default: internal.
    #[serde(rename = "type", default)]
    pub type_: ListenerType,

    /// For `nodeport`: the first address that clients connect to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<ListenerBootstrap>,

    /// For `nodeport`: the address of each broker, where the one that Kubernetes gives is not right
    /// for the clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["broker"]))]
    pub brokers: Vec<BrokerAddress>,
}

/// Who can reach a listener.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum ListenerType {
    /// Clients inside the Kubernetes cluster.
    #[default]
    Internal,
    /// Clients outside, through a port of every node.
    Nodeport,
}

/// The first address that clients of a `nodeport` listener connect to.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ListenerBootstrap {
    /// The port of every node. Absent: Kubernetes chooses one. `status.listeners` tells where
    /// clients begin: here, or at the brokers' own addresses where they have an `advertisedHost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<i32>,
}

/// The address under which clients outside reach one broker.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BrokerAddress {
    /// The broker's id, one of `status.nodes`: 0 of a cluster with one broker.
    #[schemars(range(min = 0))]
    pub broker: i32,

    /// The port of every node that leads to this broker. Absent: Kubernetes chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<i32>,

    /// The host that clients are told to connect to. Absent: the address of the node that the
    /// broker runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9.:]*[A-Za-z0-9])?$")
    )]
    pub advertised_host: Option<String>,

    /// The port that clients are told to connect to, where something in front of the nodes changes
    /// it. Absent: the node port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub advertised_port: Option<i32>,
}

/// CPU and memory of a broker, as Kubernetes counts them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the broker is promised, for example `cpu: 500m` and `memory: 512Mi`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, QuantitySchema>", extend("maxProperties" = 32))]
    pub requests: BTreeMap<String, Quantity>,

    /// What the broker may use at most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, QuantitySchema>", extend("maxProperties" = 32))]
    pub limits: BTreeMap<String, Quantity>,
}

impl Resources {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.limits.is_empty()
    }
}

/// A quantity that is not negative, as Kubernetes writes it.
const QUANTITY_PATTERN: &str =
    r"^\+?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?[0-9]+))?$";

/// The schema of a quantity, without the page of prose that the Kubernetes type carries.
struct QuantitySchema;

impl JsonSchema for QuantitySchema {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": QUANTITY_PATTERN,
            "maxLength": 64,
        })
    }
}

/// What a Kafka cluster is. Empty while no operator watches its namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KafkaClusterStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Summary of the cluster's state. The message of the Ready condition says more.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub phase: String,

    /// Since when the phase is what it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_since: Option<Time>,

    /// Ready, Progressing, Degraded and Paused, each with a reason and a message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,

    /// What is waited for and what is wrong, the worst first: why the object is not, or not only,
    /// what its spec asks for. Empty once it is. At most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub waits: Vec<WaitStatus>,

    /// Where clients connect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub listeners: Vec<ListenerStatus>,

    /// The cluster's id, as Kafka clients see it. It is fixed before the first broker starts, and
    /// never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,

    /// The brokers that this cluster has, and what is remembered of each, so that an empty volume
    /// is not taken for a lost one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub nodes: Vec<NodeStatus>,

    /// Brokers that exist.
    #[serde(default)]
    pub replicas: i32,

    /// Brokers that are ready.
    #[serde(default)]
    pub ready_replicas: i32,

    /// The labels of the brokers' pods, for whatever counts or scales them
    /// (`kubectl get pods --selector`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,

    /// Ready and wanted brokers, for example `1/1`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub brokers: String,

    /// The version that every ready broker runs; absent while they differ, while none is ready, or
    /// while it cannot be told from the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,

    /// The image that every ready broker runs; absent while they differ or none is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,

    /// The image that the brokers run whenever the spec names neither image nor version. Written
    /// when a broker first became ready on it, and kept when the operator is upgraded. An image or
    /// version in the spec is never remembered here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_image: Option<String>,
}

/// A broker of the cluster, as it is remembered.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its id. An id that was given is not given again while this entry is here.
    pub id: i32,

    /// The pool that it belongs to; its objects are called `CLUSTER-POOL-ID`.
    #[serde(default)]
    pub pool: String,

    /// What it does: `broker` (serves clients), `controller` (votes in the metadata quorum).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,

    /// 1 for the first broker of this id, and one more each time when the loss of its records was
    /// accepted.
    #[serde(default)]
    pub incarnation: i32,

    /// Its volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub volumes: Vec<VolumeStatus>,

    /// Volumes without the records that they had: open until the records are seen again or a person
    /// accepts the loss, and kept after that until the broker is seen to go on without them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub losses: Vec<LossStatus>,

    /// Read only: an operator of an earlier version kept here the `directory.id` of each log
    /// directory whose loss was accepted. They are in `losses` now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given_up: Vec<String>,

    /// The name of the first open loss: this broker's records are gone. It does not go on until a
    /// person sets the annotation `letterbox.dev/accept-data-loss` to this name, or until its volume
    /// is back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_loss: Option<String>,
}

impl KafkaClusterSpec {
    /// How many brokers keep each partition of a topic that does not say it.
    #[must_use]
    pub fn default_replication(&self) -> String {
        let set = self.config.get("default.replication.factor");
        set.cloned().unwrap_or_else(|| self.replicas.min(3).to_string())
    }
}

impl KafkaClusterStatus {
    /// Whether a majority of the brokers misses records, or is to go on without some: a topic that is
    /// not there may be one that is lost. What fewer lose, the others know.
    #[must_use]
    pub fn misses_records(&self) -> bool {
        let misses = |node: &&NodeStatus| {
            node.data_loss.is_some() || node.accepted_losses().next().is_some()
        };
        self.nodes.iter().filter(misses).count() > self.nodes.len() / 2
    }
}

impl NodeStatus {
    /// What is recorded of a volume, if it was used.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<&VolumeStatus> {
        self.volumes.iter().find(|volume| volume.name == name)
    }

    /// The losses that nobody accepted.
    pub fn open_losses(&self) -> impl Iterator<Item = &LossStatus> {
        self.losses.iter().filter(|loss| !loss.accepted)
    }

    /// The accepted losses that the broker was not yet seen to go on without.
    pub fn accepted_losses(&self) -> impl Iterator<Item = &LossStatus> {
        self.losses.iter().filter(|loss| loss.accepted)
    }
}

/// A volume that a broker uses, or may: its claim is recorded here before a pod can have it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// Its name in `spec.storage.volumes`.
    pub name: String,

    /// The name of its PersistentVolumeClaim.
    #[serde(default)]
    pub claim: String,

    /// The uid of that claim. Another one means that the claim was deleted and made again. Absent
    /// where the claim was gone before it was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_uid: Option<String>,

    /// The `directory.id` that the broker found on it. Another one means that its records are
    /// elsewhere. Absent while the broker has not told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory_id: Option<String>,

    /// Whether the broker said last that it does not use its log directory on this volume.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub offline: bool,
}

/// A volume of a broker without the records that it had.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LossStatus {
    /// The name of this loss, and of no other one, earlier or later: what the annotation
    /// `letterbox.dev/accept-data-loss` has to say.
    pub name: String,

    /// The volume. Empty where an earlier version did not record it.
    #[serde(default)]
    pub volume: String,

    /// What was seen last: `ClaimGone` (there is no claim), `VolumeGone` (the claim's phase is Lost),
    /// `ClaimMadeAgain` (another claim has its name), `NotFound` (the broker does not find the log
    /// directory), `OtherDirectory` (the broker runs on another one).
    #[serde(default)]
    pub reason: LossReason,

    /// The uid of the claim that it had, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_uid: Option<String>,

    /// The `directory.id` that is lost, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory_id: Option<String>,

    /// Whether the broker that runs still has the records, until it ends. The operator does not end
    /// it before the loss is accepted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,

    /// The uid of the claim that the broker has had in the place of the lost one since. It is a loss
    /// of its own once it is gone too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_by: Option<String>,

    /// Whether a person accepted it. It stays here until the broker is seen to go on without these
    /// records, and the broker is told so (`accepted.lost.directory.ids`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accepted: bool,
}

/// In which way a volume is lost.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LossReason {
    /// There is no claim.
    #[default]
    ClaimGone,
    /// The claim is there, and its volume is not.
    VolumeGone,
    /// The claim was deleted and made again, and the broker has not shown that its records are on
    /// the new one.
    ClaimMadeAgain,
    /// The broker remembers a log directory that it does not find, or cannot start without one that
    /// it must have used.
    NotFound,
    /// The broker came up on another directory.
    OtherDirectory,
}

/// Where clients of one listener connect.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// The listener's name in the spec.
    pub name: String,
    /// `host:port`, comma-separated: the value for a client's `bootstrap.servers`.
    pub bootstrap_servers: String,
}

pub(crate) const NAME_MESSAGE: &str = "A cluster's name has at most 32 characters, begins with a \
    letter, ends with a letter or digit, and has only lower-case letters, digits and '-' in it, \
    because services are named after it.";
pub(crate) const REPLICAS_MESSAGE: &str =
    "A cluster has one, three or five brokers; set spec.replicas to 1, 3 or 5.";
pub(crate) const REPLICAS_FIXED_MESSAGE: &str = "This version does not change how many brokers a \
    cluster has; set spec.replicas back, or make another KafkaCluster.";
/// The setting that several brokers needed in earlier versions.
const SEVERAL_NODES: &str = "unstable.several.nodes.enable";

/// What to remove from `spec.config` because it does nothing any more.
pub(crate) fn needless_setting(spec: &KafkaClusterSpec) -> Option<String> {
    spec.config.contains_key(SEVERAL_NODES).then(|| {
        format!(
            "{SEVERAL_NODES} in spec.config has no effect: several brokers form a cluster without \
             it; remove it"
        )
    })
}

pub(crate) const IMAGE_AND_VERSION_MESSAGE: &str =
    "spec.image is a whole image reference; set it or spec.version, not both.";
pub(crate) const PORTS_MESSAGE: &str =
    "Two listeners have the same port; give each listener a port of its own.";
pub(crate) const INTERNAL_LISTENER_MESSAGE: &str =
    "One listener must be of type internal: the operator itself connects to it.";
pub(crate) const NODEPORT_ONLY_MESSAGE: &str = "Only a listener of type nodeport has bootstrap and \
    brokers; remove them or set type: nodeport.";
pub(crate) const CONTROLLER_NAME_MESSAGE: &str = "The name controller is taken by the listener \
    that brokers use among themselves; choose another one.";
pub(crate) const ADMIN_NAME_MESSAGE: &str =
    "The name admin is taken by the port of health and metrics; choose another one.";
pub(crate) const KAFKA_NAME_MESSAGE: &str = "The name kafka is taken: the Service of such a \
    listener could have the name of another cluster's; choose another one.";
pub(crate) const ADMIN_PORT_MESSAGE: &str =
    "Port 9644 is taken by health and metrics; choose another one.";
pub(crate) const SIZE_MESSAGE: &str =
    "The size must be a quantity of at least 64Mi, for example 10Gi.";

pub(crate) const DATA_VOLUME_MESSAGE: &str = "Every broker has a volume named data, which holds the \
    metadata of the cluster; put it back into spec.storage.volumes.";

/// The least size of a volume, in bytes: the broker keeps a part of it free, and a smaller one has
/// room for little else.
pub(crate) const SIZE_MIN: u64 = 64 << 20;

/// The port of health, metrics and lifecycle.
pub const ADMIN_PORT: i32 = 9644;

/// The sentence for keys of `spec.config` that belong to the operator.
pub(crate) fn owned_keys_message(keys: &str) -> String {
    format!("The operator sets {keys} itself; remove it from spec.config.")
}

/// [`config_schema`], and a rule for each key that the operator sets itself. A rule can only speak
/// of a property that the schema names, with its dots escaped.
fn broker_config_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let mut schema = config_schema(generator);
    let rule = |key: &&str| {
        let escaped = key.replace('.', "__dot__");
        serde_json::json!({"rule": format!("!has(self.{escaped})"), "message": owned_keys_message(key)})
    };
    let refused = "Refused: the operator sets it itself.";
    let any = || serde_json::json!({"x-kubernetes-int-or-string": true, "description": refused});
    let mut properties: serde_json::Map<String, serde_json::Value> =
        OWNED_KEYS.iter().map(|key| ((*key).to_owned(), any())).collect();
    let description = "Needless: several brokers form a cluster without it. Remove it.";
    let needless = serde_json::json!({"type": "boolean", "description": description});
    properties.insert(SEVERAL_NODES.to_owned(), needless);
    schema.insert("maxProperties".to_owned(), 200.into());
    schema.insert("properties".to_owned(), properties.into());
    schema.insert("x-kubernetes-validations".to_owned(), OWNED_KEYS.iter().map(rule).collect());
    schema
}

fn default_replicas() -> i32 {
    1
}

fn default_size() -> String {
    "10Gi".to_owned()
}

fn default_volumes() -> Vec<StorageVolume> {
    vec![StorageVolume { name: DATA_VOLUME.to_owned(), ..StorageVolume::default() }]
}

fn default_listeners() -> Vec<Listener> {
    vec![Listener {
        name: "plain".to_owned(),
        port: 9092,
        type_: ListenerType::Internal,
        bootstrap: None,
        brokers: Vec::new(),
    }]
}

impl Default for ClusterStorage {
    fn default() -> Self {
        Self {
            size: default_size(),
            class: None,
            volumes: default_volumes(),
            deletion_policy: DeletionPolicy::default(),
        }
    }
}

impl Default for KafkaClusterSpec {
    fn default() -> Self {
        Self {
            replicas: default_replicas(),
            version: None,
            image: None,
            storage: ClusterStorage::default(),
            config: BTreeMap::new(),
            listeners: default_listeners(),
            resources: Resources::default(),
        }
    }
}
