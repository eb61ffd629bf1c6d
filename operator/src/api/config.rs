//! Kafka's keys and values as people write them in YAML: `retention.ms: 60000`,
//! `preallocate: false`, `min.cleanable.dirty.ratio: 0.1`, `cleanup.policy: [compact, delete]`.
//! Kafka knows texts alone.

use std::collections::BTreeMap;

use letterbox_env::Gather;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Reads a map of any values as texts. Never fails on a value, so that one object cannot end the
/// watch over all; what is no value of the key is refused by the broker, by name.
pub(super) fn config_values<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let values: Option<BTreeMap<String, Value>> = Deserialize::deserialize(deserializer)?;
    Ok(values.unwrap_or_default().into_iter().map(|(key, value)| (key, text_of(value))).gather())
}

fn text_of(value: Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text,
        Value::Array(items) => items.into_iter().map(text_of).collect::<Vec<_>>().join(","),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Object(_)) => other.to_string(),
    }
}

/// How many bytes the keys and values of a topic's configuration may have together. The operator
/// keeps every topic in memory, and Kafka's users come to some hundred bytes.
pub(crate) const TOPIC_CONFIG_MAX: usize = 32 << 10;
/// And those of a cluster's.
pub(crate) const CLUSTER_CONFIG_MAX: usize = 256 << 10;

/// What is wrong with a configuration whose keys and values have more than `max` bytes together.
pub(crate) fn too_large(config: &BTreeMap<String, String>, max: usize) -> Option<String> {
    let bytes: usize = config.iter().map(|(key, value)| key.len() + value.len()).sum();
    (bytes > max).then(|| {
        format!(
            "Keys and values have {bytes} bytes together, and may have {max}; remove some from \
             spec.config."
        )
    })
}

/// A topic's configuration: [`config_schema`] with bounds. What the whole may be is no rule that a
/// schema can have ([`too_large`]).
pub(super) fn topic_config_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 100,
        "additionalProperties": {
            "x-kubernetes-preserve-unknown-fields": true, "maxLength": 16384, "maxItems": 1000,
        },
    })
}

/// Values of any type: `x-kubernetes-int-or-string` would refuse `true` and `0.5`.
pub(super) fn config_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{KafkaClusterSpec, KafkaTopicSpec};

    #[test]
    fn keys_count_as_values_do() {
        let config = |text: &str| BTreeMap::from([(text.to_owned(), text.to_owned())]);
        assert_eq!(too_large(&config("1234"), 8), None);
        let said = too_large(&config("12345"), 8).unwrap();
        assert!(said.contains("have 10 bytes") && said.contains("may have 8;"), "{said}");
    }

    #[test]
    fn values_are_taken_as_they_are_written_in_yaml() {
        let yaml = "config:\n  a: 1\n  b: true\n  c: 0.5\n  d: '7'\n  e: [compact, delete]\n  f:\n  \
            g: -1\n  h: 9223372036854775807\n";
        let expected = [
            ("a", "1"),
            ("b", "true"),
            ("c", "0.5"),
            ("d", "7"),
            ("e", "compact,delete"),
            ("f", ""),
            ("g", "-1"),
        ];
        let expected = expected
            .into_iter()
            .chain([("h", "9223372036854775807")])
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let expected = expected.collect();
        assert_eq!(serde_yaml::from_str::<KafkaClusterSpec>(yaml).unwrap().config, expected);
        assert_eq!(
            serde_yaml::from_str::<KafkaTopicSpec>(&format!("clusterRef: {{name: a}}\n{yaml}"))
                .unwrap()
                .config,
            expected
        );
        assert!(serde_yaml::from_str::<KafkaClusterSpec>("config:\n").unwrap().config.is_empty());
    }
}
