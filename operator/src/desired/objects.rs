//! The Kubernetes objects of a cluster, whole, as they are applied.
//!
//! What keeps clients from a broker or a broker from its update is written even where it is the
//! default: nobody else puts it back. Kubernetes never replaces a pod because its template changed
//! (`OnDelete`): the operator does, when the spec asks for something else ([`Broker::asked`]).
//! Anything else that changes here waits until that broker restarts anyway.
//!
//! Selectors are for ever. They name the component, so that no other pod of the cluster is taken
//! for a broker, and whatever leads clients names the role.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Blueprint, Broker, BrokerVolume, CONTROLLER_PORT, POOL, bootstrap_name, claim_name};
use crate::api::{ADMIN_PORT, GROUP, Listener, ListenerType};

/// On every object of a cluster: the cluster's name.
pub const CLUSTER_LABEL: &str = "letterbox.dev/cluster";
/// On every object of one broker: the broker's id.
pub const BROKER_LABEL: &str = "letterbox.dev/broker";
/// On every object of one broker: its pool.
pub const POOL_LABEL: &str = "letterbox.dev/pool";
/// On every object of a cluster's Kafka nodes, as opposed to what else a cluster may come to have.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
/// The value of [`COMPONENT_LABEL`].
pub const COMPONENT: &str = "kafka";
/// On pods that serve clients.
pub const BROKER_ROLE_LABEL: &str = "letterbox.dev/role-broker";
/// On pods that vote in the metadata quorum.
pub const CONTROLLER_ROLE_LABEL: &str = "letterbox.dev/role-controller";
/// On the broker's pod template: the revision of the configuration that it is started with.
pub const CONFIG_ANNOTATION: &str = "letterbox.dev/config-revision";
/// On the broker's pod template: [`Broker::asked`].
pub const ASKED_ANNOTATION: &str = "letterbox.dev/asked-revision";
/// On the broker's pod template: the image that it was to have. Admission may write another
/// reference of it into the pod (a digest, a mirror).
pub const IMAGE_ANNOTATION: &str = "letterbox.dev/image";
/// On a volume claim: the id of the Kafka cluster whose records are on it.
pub const CLUSTER_ID_ANNOTATION: &str = "letterbox.dev/cluster-id";
/// On a volume claim: the storage class that the spec named when the claim was made, as opposed to
/// the default class, which Kubernetes writes into the claim itself; empty where it named none.
pub const ASKED_CLASS_ANNOTATION: &str = "letterbox.dev/asked-storage-class";
/// On a volume claim: the size that the spec named when the claim was made.
pub const ASKED_SIZE_ANNOTATION: &str = "letterbox.dev/asked-storage-size";
/// On a volume claim: its own uid, once the operator has made it. A copy, as a backup restores it,
/// has another one.
pub const MADE_ANNOTATION: &str = "letterbox.dev/made-as";
/// Where the keys and certificates of a broker are mounted, from a Secret that need not be there.
pub const SECRETS_PATH: &str = "/var/run/letterbox/secrets";
/// The value of `app.kubernetes.io/managed-by`, and the field manager.
pub const MANAGER: &str = "letterbox-operator";
/// The only container of a broker's pod.
pub const CONTAINER: &str = "kafka";
/// The kinds that are made, which is also what the operator's Role has to name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// v1
    ServiceAccount,
    /// v1
    Service,
    /// v1
    ConfigMap,
    /// policy/v1
    PodDisruptionBudget,
    /// apps/v1
    StatefulSet,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ServiceAccount => "ServiceAccount",
            Self::Service => "Service",
            Self::ConfigMap => "ConfigMap",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::StatefulSet => "StatefulSet",
        })
    }
}

/// Names one object in the cluster's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}", self.kind, self.name)
    }
}

/// Every object of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// Services, service account, disruption budget.
    pub access: BTreeMap<ObjectKey, Value>,
    /// By broker: its configuration and its set, in the order in which they are applied.
    pub brokers: BTreeMap<i32, Vec<(ObjectKey, Value)>>,
}

/// Builds every object of `cluster`.
#[must_use]
pub fn build(cluster: &Blueprint) -> Objects {
    let mut objects = Objects::default();
    let mut add = |kind, value: Value| {
        let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        objects.access.insert(ObjectKey { kind, name }, value);
    };
    add(Kind::ServiceAccount, service_account(cluster));
    add(Kind::PodDisruptionBudget, disruption_budget(cluster));
    add(Kind::Service, brokers_service(cluster));
    add(Kind::Service, bootstrap_service(cluster));
    for listener in external_listeners(cluster) {
        add(Kind::Service, external_bootstrap_service(cluster, listener));
    }
    for broker in cluster.brokers.values() {
        add(Kind::Service, broker_service(cluster, broker));
        for listener in external_listeners(cluster) {
            add(Kind::Service, external_broker_service(cluster, broker, listener));
        }
        let map = ObjectKey { kind: Kind::ConfigMap, name: config_map_name(broker) };
        let set = ObjectKey { kind: Kind::StatefulSet, name: broker.name.clone() };
        objects.brokers.insert(
            broker.id,
            vec![(map, config_map(cluster, broker)), (set, stateful_set(cluster, broker))],
        );
    }
    objects
}

/// The service through which clients outside first reach `listener`.
#[must_use]
pub fn external_bootstrap_name(cluster: &str, listener: &str) -> String {
    format!("{cluster}-kafka-{listener}-bootstrap")
}

/// The service through which clients outside reach one broker.
#[must_use]
pub fn external_broker_name(broker: &str, listener: &str) -> String {
    format!("{broker}-{listener}")
}

fn external_listeners(cluster: &Blueprint) -> impl Iterator<Item = &Listener> {
    cluster.listeners.iter().filter(|listener| listener.type_ == ListenerType::Nodeport)
}

fn labels(cluster: &Blueprint, broker: Option<&Broker>) -> Value {
    let mut labels = selector(cluster, broker);
    for (key, value) in [
        ("app.kubernetes.io/instance", cluster.name.as_str()),
        ("app.kubernetes.io/managed-by", MANAGER),
        ("app.kubernetes.io/name", "letterbox"),
        ("app.kubernetes.io/part-of", "letterbox"),
    ] {
        labels[key] = json!(value);
    }
    labels
}

/// The labels of a pod: those of its broker, and its roles.
fn pod_labels(cluster: &Blueprint, broker: &Broker) -> Value {
    let mut labels = labels(cluster, Some(broker));
    for role in [BROKER_ROLE_LABEL, CONTROLLER_ROLE_LABEL] {
        labels[role] = json!("true");
    }
    labels
}

/// Selects every node of the cluster, or one broker. The roles of a broker are no part of it, so
/// that they can change.
fn selector(cluster: &Blueprint, broker: Option<&Broker>) -> Value {
    let mut labels = json!({ CLUSTER_LABEL: cluster.name, COMPONENT_LABEL: COMPONENT });
    if let Some(broker) = broker {
        labels[BROKER_LABEL] = json!(broker.id.to_string());
        labels[POOL_LABEL] = json!(POOL);
    }
    labels
}

/// Selects the nodes that serve clients.
pub(crate) fn client_selector(cluster: &Blueprint) -> Value {
    let mut labels = selector(cluster, None);
    labels[BROKER_ROLE_LABEL] = json!("true");
    labels
}

/// `selector` of every node of `cluster`, as `kubectl --selector` takes it.
#[must_use]
pub fn selector_text(cluster: &str) -> String {
    format!("{CLUSTER_LABEL}={cluster},{COMPONENT_LABEL}={COMPONENT}")
}

fn meta(cluster: &Blueprint, name: &str, broker: Option<&Broker>) -> Value {
    json!({
        "name": name,
        "namespace": cluster.namespace,
        "labels": labels(cluster, broker),
        "ownerReferences": [{
            "apiVersion": format!("{GROUP}/v1alpha1"),
            "kind": "KafkaCluster",
            "name": cluster.name,
            "uid": cluster.uid,
            "controller": true,
            "blockOwnerDeletion": true,
        }],
    })
}

fn service_account_name(cluster: &Blueprint) -> String {
    format!("{}-kafka", cluster.name)
}

/// Brokers ask nothing of the API server: the account has no token mounted and no role.
fn service_account(cluster: &Blueprint) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": meta(cluster, &service_account_name(cluster), None),
        "automountServiceAccountToken": false,
    })
}

/// One broker may be taken down on purpose at a time, and none while the cluster would not do
/// without it. A cluster of one still lets its node be drained.
fn disruption_budget(cluster: &Blueprint) -> Value {
    let most = i32::from(cluster.evictions_held.is_none());
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": meta(cluster, &service_account_name(cluster), None),
        "spec": {"maxUnavailable": most, "selector": {"matchLabels": selector(cluster, None)}},
    })
}

/// Whether a disruption budget, as it is, lets no broker be evicted.
pub(crate) fn holds_evictions(budget: &Value) -> bool {
    budget.pointer("/spec/maxUnavailable").and_then(Value::as_i64) == Some(0)
}

fn port(name: &str, port: i32) -> Value {
    json!({"name": name, "port": port, "targetPort": name, "protocol": "TCP"})
}

fn internal_ports(cluster: &Blueprint) -> Vec<Value> {
    let internal =
        cluster.listeners.iter().filter(|listener| listener.type_ == ListenerType::Internal);
    internal.map(|listener| port(&listener.name, listener.port)).collect()
}

fn peer_ports(cluster: &Blueprint) -> Vec<Value> {
    let mut ports = internal_ports(cluster);
    ports.extend([port("controller", i32::from(CONTROLLER_PORT)), port("admin", ADMIN_PORT)]);
    ports
}

/// Gives every pod a name of its own, ready or not.
fn brokers_service(cluster: &Blueprint) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(cluster, &format!("{}-kafka-brokers", cluster.name), None),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "internalTrafficPolicy": "Cluster",
            "selector": selector(cluster, None),
            "ports": peer_ports(cluster),
        },
    })
}

/// Where clients inside Kubernetes connect first.
fn bootstrap_service(cluster: &Blueprint) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(cluster, &bootstrap_name(&cluster.name), None),
        "spec": {
            "type": "ClusterIP",
            "publishNotReadyAddresses": false,
            "internalTrafficPolicy": "Cluster",
            "selector": client_selector(cluster),
            "ports": internal_ports(cluster),
        },
    })
}

/// One broker's own address, which stays when its pod is made anew. Also while it is not ready:
/// brokers find each other before they serve clients.
fn broker_service(cluster: &Blueprint, broker: &Broker) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(cluster, &broker.name, Some(broker)),
        "spec": {
            "type": "ClusterIP",
            "publishNotReadyAddresses": true,
            "internalTrafficPolicy": "Cluster",
            "selector": selector(cluster, Some(broker)),
            "ports": peer_ports(cluster),
        },
    })
}

fn node_port_service(
    meta: Value,
    selector: Value,
    listener: &Listener,
    node_port: Option<i32>,
) -> Value {
    let mut port = port(&listener.name, listener.port);
    if let Some(node_port) = node_port {
        port["nodePort"] = json!(node_port);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {
            "type": "NodePort",
            "publishNotReadyAddresses": false,
            "internalTrafficPolicy": "Cluster",
            "externalTrafficPolicy": "Cluster",
            "selector": selector,
            "ports": [port],
        },
    })
}

fn external_bootstrap_service(cluster: &Blueprint, listener: &Listener) -> Value {
    let node_port = listener.bootstrap.as_ref().and_then(|bootstrap| bootstrap.node_port);
    let name = external_bootstrap_name(&cluster.name, &listener.name);
    node_port_service(meta(cluster, &name, None), client_selector(cluster), listener, node_port)
}

fn external_broker_service(cluster: &Blueprint, broker: &Broker, listener: &Listener) -> Value {
    let node_port = listener
        .brokers
        .iter()
        .find(|address| address.broker == broker.id)
        .and_then(|address| address.node_port);
    let name = external_broker_name(&broker.name, &listener.name);
    node_port_service(
        meta(cluster, &name, Some(broker)),
        selector(cluster, Some(broker)),
        listener,
        node_port,
    )
}

/// A name for each revision, so that a configuration never reaches a pod that was not made for it.
fn config_map_name(broker: &Broker) -> String {
    format!(
        "{}-{}",
        broker.name,
        broker.config.file_revision.get(..10).unwrap_or(&broker.config.file_revision)
    )
}

fn config_map(cluster: &Blueprint, broker: &Broker) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta(cluster, &config_map_name(broker), Some(broker)),
        "immutable": true,
        "data": {"server.properties": broker.config.properties},
    })
}

/// One set of one replica per broker: what the spec asks reaches a broker's template only when its
/// restart was granted, and Kubernetes brings its pod back while the operator is down.
fn stateful_set(cluster: &Blueprint, broker: &Broker) -> Value {
    let mut set = json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": meta(cluster, &broker.name, Some(broker)),
        "spec": {
            "replicas": 1,
            "serviceName": format!("{}-kafka-brokers", cluster.name),
            "podManagementPolicy": "Parallel",
            // Only the operator ends pods.
            "updateStrategy": {"type": "OnDelete"},
            // A set that is deleted by hand comes back, and so must its records: what goes with the
            // cluster is owned by the cluster, never by the set.
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            "selector": {"matchLabels": selector(cluster, Some(broker))},
            "template": pod_template(cluster, broker),
        },
    });
    if let Some(templates) = &broker.claim_templates {
        set["spec"]["volumeClaimTemplates"] = templates.clone();
    }
    set
}

/// A volume claim. It has no owner: what becomes of it is decided when the cluster goes. It says
/// which cluster its volume belongs to, for whoever finds it later.
#[must_use]
pub fn claim(cluster: &Blueprint, broker: &Broker, volume: &BrokerVolume) -> Value {
    let mut annotations = json!({
        ASKED_CLASS_ANNOTATION: volume.class.as_deref().unwrap_or_default(),
        ASKED_SIZE_ANNOTATION: volume.size,
    });
    if let Some(id) = &cluster.cluster_id {
        annotations[CLUSTER_ID_ANNOTATION] = json!(id);
    }
    let mut claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": claim_name(&broker.name, &volume.name),
            "namespace": cluster.namespace,
            "labels": labels(cluster, Some(broker)),
            "annotations": annotations,
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": volume.size}},
        },
    });
    if let Some(class) = &volume.class {
        claim["spec"]["storageClassName"] = json!(class);
    }
    claim
}

fn pod_template(cluster: &Blueprint, broker: &Broker) -> Value {
    let claim = |volume: &BrokerVolume| {
        let name = claim_name(&broker.name, &volume.name);
        json!({"name": volume.name, "persistentVolumeClaim": {"claimName": name}})
    };
    let mut volumes: Vec<Value> = broker.volumes.iter().map(claim).collect();
    volumes.push(json!({"name": "config", "configMap": {"name": config_map_name(broker)}}));
    // There from the first start, so that a Secret that comes later restarts nobody.
    volumes.push(json!({"name": "secrets", "projected": {
        "defaultMode": 0o440,
        "sources": [{"secret": {"name": format!("{}-secrets", broker.name), "optional": true}}],
    }}));
    let mut template = json!({
        "metadata": {
            "labels": pod_labels(cluster, broker),
            "annotations": {
                ASKED_ANNOTATION: broker.asked,
                CONFIG_ANNOTATION: broker.config.revision,
                IMAGE_ANNOTATION: cluster.image,
                "kubectl.kubernetes.io/default-container": CONTAINER,
            },
        },
        "spec": {
            "serviceAccountName": service_account_name(cluster),
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 60,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 1000,
                "runAsGroup": 1000,
                "fsGroup": 1000,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container(cluster, broker)],
            "volumes": volumes,
        },
    });
    if cluster.brokers.len() > 1 {
        template["spec"]["topologySpreadConstraints"] = spread(cluster);
    }
    template
}

/// One broker per zone and node where there are enough; fewer zones or nodes keep none from
/// running.
fn spread(cluster: &Blueprint) -> Value {
    let over = |key| {
        json!({
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(cluster, None)},
        })
    };
    json!([over("topology.kubernetes.io/zone"), over("kubernetes.io/hostname")])
}

/// Where a volume is mounted. `data` exactly on the folder that the image declares as a volume:
/// above it, the container runtime would put a volume of its own over it.
fn mount_path(volume: &str) -> String {
    format!("/var/lib/kafka/{volume}")
}

/// The log directory on a volume: below its root, because a fresh file system has a lost+found of
/// its own.
#[must_use]
pub fn log_dir(volume: &str) -> String {
    format!("{}/kafka-log", mount_path(volume))
}

fn container(cluster: &Blueprint, broker: &Broker) -> Value {
    let config = &broker.config;
    let mut command = vec!["letterbox", "broker", "--config", "/etc/letterbox/server.properties"];
    command.extend(config.overrides.iter().flat_map(|value| ["--override", value]));
    let mut ports: Vec<Value> = cluster
        .listeners
        .iter()
        .filter(|listener| !broker.unknown.contains(&listener.name))
        .map(|listener| json!({"name": listener.name, "containerPort": listener.port, "protocol": "TCP"}))
        .collect();
    ports.push(json!({"name": "controller", "containerPort": CONTROLLER_PORT, "protocol": "TCP"}));
    ports.push(json!({"name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP"}));
    let mount =
        |volume: &BrokerVolume| json!({"name": volume.name, "mountPath": mount_path(&volume.name)});
    let mut mounts: Vec<Value> = broker.volumes.iter().map(mount).collect();
    mounts.extend([
        json!({"name": "config", "mountPath": "/etc/letterbox", "readOnly": true}),
        json!({"name": "secrets", "mountPath": SECRETS_PATH, "readOnly": true}),
    ]);
    let mut container = json!({
        "name": CONTAINER,
        "image": cluster.image,
        "command": command,
        "ports": ports,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        // Ten minutes for the recovery of a large log; alive, not ready, is all that is asked.
        "startupProbe": probe("/livez", 1, 5, 600),
        "livenessProbe": probe("/livez", 10, 5, 6),
        "readinessProbe": probe("/readyz", 2, 5, 3),
        // A broker that refuses its configuration says so in its last lines; they become the
        // cluster's status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    });
    if config.overrides.iter().any(|value| value.contains("$(HOST_IP)")) {
        container["env"] =
            json!([{"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}]);
    }
    let mut resources = Map::new();
    for (name, amounts) in
        [("requests", &cluster.resources.requests), ("limits", &cluster.resources.limits)]
    {
        if !amounts.is_empty() {
            resources.insert(name.to_owned(), json!(amounts));
        }
    }
    if !resources.is_empty() {
        container["resources"] = Value::Object(resources);
    }
    container
}

fn probe(path: &str, period_seconds: u32, timeout_seconds: u32, failure_threshold: u32) -> Value {
    json!({
        "httpGet": {"path": path, "port": "admin"},
        "periodSeconds": period_seconds,
        "timeoutSeconds": timeout_seconds,
        "failureThreshold": failure_threshold,
    })
}
