//! The rules of the schemas, for files that never meet an API server (`letterbox up`).
//!
//! The sentences are the same constants that the CEL rules carry. The test against a real API
//! server feeds both the same bad documents. [`local_cluster`] and [`local_topic`] say more: what
//! `letterbox up` does not run, and what a topic cannot have of its cluster.

use kube::ResourceExt as _;
use letterbox_client::{WrongTopicName, check_topic_name};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::cluster::{
    ADMIN_NAME_MESSAGE, ADMIN_PORT, ADMIN_PORT_MESSAGE, CONTROLLER_NAME_MESSAGE,
    DATA_VOLUME_MESSAGE, IMAGE_AND_VERSION_MESSAGE, INTERNAL_LISTENER_MESSAGE, KAFKA_NAME_MESSAGE,
    NAME_MESSAGE, NODEPORT_ONLY_MESSAGE, PORTS_MESSAGE, REPLICAS_MESSAGE, SIZE_MESSAGE, SIZE_MIN,
    owned_keys_message,
};
use super::topic::{DOTS_MESSAGE, INTERNAL_TOPIC_MESSAGE, LONG_NAME_MESSAGE};
use super::{
    CLUSTER_CONFIG_MAX, ClusterStorage, DATA_VOLUME, KafkaCluster, KafkaTopic, Listener,
    ListenerType, OWNED_KEYS, TOPIC_CONFIG_MAX, bytes_of, too_large,
};

/// What is wrong with a document, where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Problem {
    /// The path of the field, for example `spec.replicas`.
    pub field: String,
    /// A sentence that says what to do.
    pub message: String,
}

/// Reads `document` as a `T`, refusing fields that `T` does not have.
///
/// # Errors
/// The first field that is missing, of the wrong type, or unknown.
pub fn parse_strict<T: DeserializeOwned + Serialize>(document: &Value) -> Result<T, Problem> {
    let typed: T = serde_json::from_value(document.clone())
        .map_err(|error| Problem { field: "document".to_owned(), message: error.to_string() })?;
    let back = serde_json::to_value(&typed)
        .map_err(|error| Problem { field: "document".to_owned(), message: error.to_string() })?;
    match first_unknown(document, &back, "") {
        Some(field) => Err(Problem { field, message: "there is no such field".to_owned() }),
        None => Ok(typed),
    }
}

/// Everything that the schema would refuse in `cluster`.
#[must_use]
pub fn cluster(cluster: &KafkaCluster) -> Vec<Problem> {
    cluster_with(cluster, &[1, 3, 5], REPLICAS_MESSAGE)
}

/// Everything that `letterbox up` refuses in `cluster`.
#[must_use]
pub fn local_cluster(cluster: &KafkaCluster) -> Vec<Problem> {
    cluster_with(cluster, &[1, 3], LOCAL_REPLICAS_MESSAGE)
}

const LOCAL_REPLICAS_MESSAGE: &str =
    "letterbox up runs one or three brokers per cluster; set spec.replicas to 1 or 3.";

/// There may be `numbers` of brokers, or `message` says what is wrong.
fn cluster_with(cluster: &KafkaCluster, numbers: &[i32], message: &str) -> Vec<Problem> {
    let mut problems = Problems(Vec::new());
    let spec = &cluster.spec;
    problems.unless(is_cluster_name(&cluster.name_any()), "metadata.name", NAME_MESSAGE);
    problems.unless(numbers.contains(&spec.replicas), "spec.replicas", message);
    problems.unless(
        spec.image.is_none() || spec.version.is_none(),
        "spec",
        IMAGE_AND_VERSION_MESSAGE,
    );
    storage(&spec.storage, &mut problems);
    let owned: Vec<&str> =
        spec.config.keys().map(String::as_str).filter(|key| OWNED_KEYS.contains(key)).collect();
    problems.unless(owned.is_empty(), "spec.config", &owned_keys_message(&owned.join(", ")));
    problems.if_any("spec.config", too_large(&spec.config, CLUSTER_CONFIG_MAX));
    problems.unless(
        spec.listeners.iter().any(|listener| listener.type_ == ListenerType::Internal),
        "spec.listeners",
        INTERNAL_LISTENER_MESSAGE,
    );
    listeners(&spec.listeners, &mut problems);
    problems.0
}

fn storage(storage: &ClusterStorage, problems: &mut Problems) {
    let is_size = |size: &str| bytes_of(size).is_some_and(|bytes| bytes >= SIZE_MIN);
    problems.unless(is_size(&storage.size), "spec.storage.size", SIZE_MESSAGE);
    let has_data = storage.volumes.iter().any(|volume| volume.name == DATA_VOLUME);
    problems.unless(has_data, "spec.storage.volumes", DATA_VOLUME_MESSAGE);
    problems.unless(storage.volumes.len() <= 16, "spec.storage.volumes", "has at most 16 volumes");
    for (index, volume) in storage.volumes.iter().enumerate() {
        let at = |field: &str| format!("spec.storage.volumes[{index}].{field}");
        problems.unless(
            volume_number(&volume.name).is_some(),
            &at("name"),
            "must be data, or data-1 to data-99",
        );
        problems.unless(
            storage.volumes.iter().filter(|other| other.name == volume.name).count() == 1,
            &at("name"),
            "another volume has the same name",
        );
        problems.unless(volume.size.as_deref().is_none_or(is_size), &at("size"), SIZE_MESSAGE);
    }
}

/// The place of a volume among those of a broker, by its name: 0 for `data`, N for `data-N`.
pub(crate) fn volume_number(name: &str) -> Option<u32> {
    match name.strip_prefix(DATA_VOLUME)? {
        "" => Some(0),
        rest => {
            let digits = rest.strip_prefix('-')?;
            let number: u32 = digits.parse().ok().filter(|number| (1..=99).contains(number))?;
            (digits == number.to_string()).then_some(number)
        }
    }
}

fn listeners(listeners: &[Listener], problems: &mut Problems) {
    for (index, listener) in listeners.iter().enumerate() {
        let at = |field: &str| format!("spec.listeners[{index}].{field}");
        let same = |other: &&Listener| other.port == listener.port;
        problems.unless(listeners.iter().filter(same).count() == 1, &at("port"), PORTS_MESSAGE);
        problems.unless(listener.port != ADMIN_PORT, &at("port"), ADMIN_PORT_MESSAGE);
        problems.unless(
            (9092..=65535).contains(&listener.port),
            &at("port"),
            "must be 9092 to 65535",
        );
        problems.unless(listener.name != "controller", &at("name"), CONTROLLER_NAME_MESSAGE);
        problems.unless(listener.name != "admin", &at("name"), ADMIN_NAME_MESSAGE);
        problems.unless(listener.name != "kafka", &at("name"), KAFKA_NAME_MESSAGE);
        problems.unless(
            is_listener_name(&listener.name),
            &at("name"),
            "has 1 to 11 lower-case letters and digits, the first a letter",
        );
        problems.unless(
            listeners.iter().filter(|other| other.name == listener.name).count() == 1,
            &at("name"),
            "another listener has the same name",
        );
        problems.unless(
            listener.type_ == ListenerType::Nodeport
                || (listener.bootstrap.is_none() && listener.brokers.is_empty()),
            &format!("spec.listeners[{index}]"),
            NODEPORT_ONLY_MESSAGE,
        );
    }
}

/// Everything that the schema would refuse in `topic`.
#[must_use]
pub fn topic(topic: &KafkaTopic) -> Vec<Problem> {
    let is_wrong = topic.spec.replicas.is_some_and(|it| !(1..=5).contains(&it));
    topic_with(topic, is_wrong.then(|| "must be 1 to 5".to_owned()))
}

/// Everything that `letterbox up` refuses in `topic`, whose cluster has so many `brokers`.
#[must_use]
pub fn local_topic(topic: &KafkaTopic, brokers: i32) -> Vec<Problem> {
    let is_wrong = topic.spec.replicas.is_some_and(|it| !(1..=brokers).contains(&it));
    let wrong = is_wrong.then(|| match brokers {
        1 => "The cluster has one broker; set spec.replicas to 1.".to_owned(),
        _ => format!("The cluster has {brokers} brokers; set spec.replicas to 1 to {brokers}."),
    });
    topic_with(topic, wrong)
}

/// `replicas` says what is wrong with their number.
fn topic_with(topic: &KafkaTopic, replicas: Option<String>) -> Vec<Problem> {
    let mut problems = Problems(Vec::new());
    let spec = &topic.spec;
    let name = topic.kafka_name();
    let field = if spec.topic_name.is_some() { "spec.topicName" } else { "metadata.name" };
    problems.unless(
        !spec.cluster_ref.name.is_empty(),
        "spec.clusterRef.name",
        "must name a KafkaCluster",
    );
    let wrong_name = check_topic_name(&name).err().map(|wrong| match wrong {
        WrongTopicName::TooLong => LONG_NAME_MESSAGE,
        WrongTopicName::Dots => DOTS_MESSAGE,
        WrongTopicName::Empty | WrongTopicName::Characters => {
            "has letters, digits, '.', '_' and '-' only"
        }
    });
    problems.if_any(field, wrong_name.map(str::to_owned));
    problems.unless(!name.starts_with("__"), field, INTERNAL_TOPIC_MESSAGE);
    problems.unless(
        spec.partitions.is_none_or(|count| (1..=100_000).contains(&count)),
        "spec.partitions",
        "must be 1 to 100000",
    );
    problems.if_any("spec.replicas", replicas);
    problems.if_any("spec.config", too_large(&spec.config, TOPIC_CONFIG_MAX));
    problems.0
}

struct Problems(Vec<Problem>);

impl Problems {
    fn unless(&mut self, right: bool, field: &str, message: &str) {
        if !right {
            self.if_any(field, Some(message.to_owned()));
        }
    }

    fn if_any(&mut self, field: &str, message: Option<String>) {
        self.0.extend(message.map(|message| Problem { field: field.to_owned(), message }));
    }
}

fn is_cluster_name(name: &str) -> bool {
    name.len() <= 32
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn is_listener_name(name: &str) -> bool {
    name.len() <= 11
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
}

/// The path of the first field of `given` that `known` does not have. Empty objects and lists may
/// be left out by serialisation.
fn first_unknown(given: &Value, known: &Value, path: &str) -> Option<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().find_map(|(key, value)| {
            let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match known.get(key) {
                Some(known) => first_unknown(value, known, &at),
                None if value.is_null()
                    || value.as_object().is_some_and(serde_json::Map::is_empty)
                    || value.as_array().is_some_and(Vec::is_empty) =>
                {
                    None
                }
                None => Some(at),
            }
        }),
        (Value::Array(given), Value::Array(known)) => {
            given.iter().zip(known).enumerate().find_map(|(index, (given, known))| {
                first_unknown(given, known, &format!("{path}[{index}]"))
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check_cluster(spec: Value, expected: &[&str]) {
        let cluster: KafkaCluster = parse_strict(
            &json!({"apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaCluster", "metadata": {"name": "demo"}, "spec": spec}),
        )
        .unwrap();
        let problems: Vec<String> =
            super::cluster(&cluster).iter().map(ToString::to_string).collect();
        assert_eq!(problems, expected, "{spec}");
    }

    #[test]
    fn bad_clusters_are_refused_with_a_sentence() {
        check_cluster(json!({}), &[]);
        check_cluster(json!({"replicas": 3}), &[]);
        check_cluster(json!({"replicas": 5}), &[]);
        for wrong in [0, 2, 7] {
            check_cluster(
                json!({"replicas": wrong}),
                &[&format!("spec.replicas: {REPLICAS_MESSAGE}")],
            );
        }
        // As earlier versions asked for.
        let needless = json!({"unstable.several.nodes.enable": true, "config.strict": true});
        check_cluster(json!({"replicas": 3, "config": needless}), &[]);
        check_cluster(json!({"config": needless}), &[]);
        check_cluster(
            json!({"config": {"node.id": "4", "num.partitions": "3", "log.dirs": "/x"}}),
            &["spec.config: The operator sets log.dirs, node.id itself; remove it from \
                 spec.config."],
        );
        check_cluster(
            json!({"storage": {"size": "lots"}}),
            &["spec.storage.size: The size must be a quantity of at least 64Mi, for example 10Gi."],
        );
        check_cluster(
            json!({"storage": {"volumes": [
                {"name": "data-1", "size": "1Mi"}, {"name": "data-1"}, {"name": "data-01"},
            ]}}),
            &[
                &format!("spec.storage.volumes: {DATA_VOLUME_MESSAGE}"),
                "spec.storage.volumes[0].name: another volume has the same name",
                "spec.storage.volumes[0].size: The size must be a quantity of at least 64Mi, for example 10Gi.",
                "spec.storage.volumes[1].name: another volume has the same name",
                "spec.storage.volumes[2].name: must be data, or data-1 to data-99",
            ],
        );
        check_cluster(json!({"storage": {"volumes": [{"name": "data-7"}, {"name": "data"}]}}), &[]);
        check_cluster(
            json!({"listeners": [{"name": "plain", "port": 9092, "brokers": [{"broker": 0, "nodePort": 31000}]}]}),
            &[&format!("spec.listeners[0]: {NODEPORT_ONLY_MESSAGE}")],
        );
        check_cluster(
            json!({"listeners": [
                {"name": "admin", "port": 9092},
                {"name": "outside", "port": 9094, "type": "nodeport", "brokers": [{"broker": 1, "nodePort": 31000}]},
                {"name": "kafka", "port": 9095, "type": "nodeport"},
            ]}),
            &[
                &format!("spec.listeners[0].name: {ADMIN_NAME_MESSAGE}"),
                &format!("spec.listeners[2].name: {KAFKA_NAME_MESSAGE}"),
            ],
        );
    }

    #[test]
    fn unknown_fields_are_named() {
        let document = |spec: Value| json!({"apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaCluster", "metadata": {"name": "demo"}, "spec": spec});
        let refused =
            |spec: Value| parse_strict::<KafkaCluster>(&document(spec)).unwrap_err().to_string();
        assert_eq!(refused(json!({"replica": 1})), "spec.replica: there is no such field");
        assert_eq!(
            refused(json!({"listeners": [{"name": "a", "port": 9092, "tls": true}]})),
            "spec.listeners[0].tls: there is no such field"
        );
        parse_strict::<KafkaCluster>(&document(
            json!({"config": {}, "listeners": [{"name": "a", "port": 9092, "brokers": []}]}),
        ))
        .unwrap();
    }
}
