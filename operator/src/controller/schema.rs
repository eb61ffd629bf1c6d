//! Whether the definitions that the API server has know all that this operator writes and reads. The
//! API server takes no field that its definitions lack.
//!
//! What it serves is read as every client may read it: its OpenAPI document, which names a version
//! of each part, so that a part is read again only when it has changed.

use std::collections::BTreeMap;

use axum::http::Request;
use kube::{Client, Resource as _};
use serde::Deserialize;
use serde_json::Value;

use crate::api::{KafkaCluster, crds};

/// So many fields are named at most.
const NAMED_MAX: usize = 5;

/// What was compared last.
#[derive(Default)]
pub(super) struct Served {
    /// Where the document was, which changes with its content.
    url: String,
    missing: Vec<String>,
}

/// The parts of the OpenAPI document.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    paths: BTreeMap<String, Part>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    #[serde(rename = "serverRelativeURL")]
    url: String,
}

impl Served {
    /// Looks whether the definitions have changed. A document that does not speak of them says
    /// nothing about them: it follows them within seconds.
    pub(super) async fn look(&mut self, client: &Client) -> kube::Result<()> {
        let ask = |path: &str| Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError);
        let parts: Parts = client.request(ask("/openapi/v3")?).await?;
        let of_group = format!("apis/{}", KafkaCluster::api_version(&()));
        let url = parts.paths.get(&of_group).map(|part| part.url.clone()).unwrap_or_default();
        if url != self.url {
            self.missing = match url.as_str() {
                "" => Vec::new(),
                url => missing_in(&client.request(ask(url)?).await?),
            };
            self.url = url;
        }
        Ok(())
    }

    /// The fields and values that this version knows and the definitions do not, as `KIND.PATH`.
    pub(super) fn missing(&self) -> &[String] {
        &self.missing
    }
}

/// `missing` in a few words.
pub(super) fn named(missing: &[String]) -> String {
    let first = missing.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    match missing.len().checked_sub(NAMED_MAX) {
        None | Some(0) => first,
        Some(more) => format!("{first} and {more} more"),
    }
}

fn missing_in(document: &Value) -> Vec<String> {
    let schemas = document.pointer("/components/schemas").and_then(Value::as_object);
    let of_kind = |kind: &str| {
        schemas.into_iter().flatten().map(|(_, schema)| schema).find(|schema| {
            let kinds = schema["x-kubernetes-group-version-kind"].as_array();
            kinds.into_iter().flatten().any(|each| each["kind"] == kind)
        })
    };
    let mut missing = Vec::new();
    for crd in crds() {
        let kind = crd.spec.names.kind;
        let schemas = crd.spec.versions.into_iter().filter_map(|version| version.schema);
        for schema in schemas.filter_map(|schema| serde_json::to_value(schema).ok()) {
            let Some(served) = of_kind(&kind) else { continue };
            for part in ["spec", "status"] {
                let ours = &schema["openAPIV3Schema"]["properties"][part];
                lacks(&served["properties"][part], ours, &format!("{kind}.{part}"), &mut missing);
            }
        }
    }
    missing
}

/// Notes what `ours` has and `served` has not.
fn lacks(served: &Value, ours: &Value, path: &str, missing: &mut Vec<String>) {
    if served["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    if let Some(values) = served["enum"].as_array() {
        let of_ours = ours["enum"].as_array().into_iter().flatten();
        let unknown = of_ours.filter(|value| !values.contains(value));
        missing.extend(unknown.map(|value| format!("{path}={}", value.as_str().unwrap_or("?"))));
    }
    for (name, field) in ours["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match served["properties"].get(name) {
            Some(served) => lacks(served, field, &path, missing),
            None => missing.push(path),
        }
    }
    for inner in ["items", "additionalProperties"] {
        if ours[inner].is_object() && served[inner].is_object() {
            lacks(&served[inner], &ours[inner], path, missing);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// What an API server serves that has our definitions.
    pub(in crate::controller) fn served() -> Value {
        let mut schemas = serde_json::Map::new();
        for crd in crds() {
            let schema = crd.spec.versions[0].schema.clone().unwrap().open_api_v3_schema;
            let mut schema = serde_json::to_value(schema).unwrap();
            let kind = json!([{"group": "letterbox.dev", "kind": crd.spec.names.kind, "version": "v1alpha1"}]);
            schema["x-kubernetes-group-version-kind"] = kind;
            schemas.insert(format!("dev.letterbox.v1alpha1.{}", crd.spec.names.kind), schema);
        }
        json!({"components": {"schemas": schemas}})
    }

    #[test]
    fn fields_and_values_that_the_definitions_lack_are_named() {
        assert_eq!(missing_in(&served()), Vec::<String>::new());
        assert_eq!(missing_in(&json!({})), Vec::<String>::new(), "it says nothing about them");
        let at = |kind: &str, path: &str| {
            format!("/components/schemas/dev.letterbox.v1alpha1.{kind}/properties/{path}")
        };
        let losses = "status/properties/nodes/items/properties/losses/items/properties";
        for (pointer, field, expected) in [
            (at("KafkaCluster", "status/properties"), "selector", "KafkaCluster.status.selector"),
            (at("KafkaCluster", losses), "held", "KafkaCluster.status.nodes.losses.held"),
            (at("KafkaTopic", "spec/properties"), "partitions", "KafkaTopic.spec.partitions"),
        ] {
            let mut older = served();
            older.pointer_mut(&pointer).unwrap().as_object_mut().unwrap().remove(field);
            assert_eq!(missing_in(&older), [expected]);
        }
        let mut older = served();
        let reasons = at("KafkaCluster", &format!("{losses}/reason/enum"));
        older.pointer_mut(&reasons).unwrap().as_array_mut().unwrap().retain(|it| it != "NotFound");
        assert_eq!(missing_in(&older), ["KafkaCluster.status.nodes.losses.reason=NotFound"]);
    }

    #[test]
    fn a_few_are_named() {
        let all: Vec<String> = ('a'..='g').map(|letter| letter.to_string()).collect();
        assert_eq!(named(&all[..5]), "a, b, c, d, e");
        assert_eq!(named(&all), "a, b, c, d, e and 2 more");
    }
}
