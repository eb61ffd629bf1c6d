//! What is generated and checked in is what the code generates.
//!
//! To refresh after a change: `LETTERBOX_UPDATE=1 cargo test --workspace --test generated`.

use std::path::{Path, PathBuf};

use letterbox_env::{Env, OpenMode};
use letterbox_operator::api::{KafkaCluster, crds};
use letterbox_operator::desired::objects;
use letterbox_operator::desired::{Blueprint, Facts};
use letterbox_operator::platform::Live as _;
use letterbox_operator::platform::kubernetes::KubernetesLive;
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn check(path: &str, generated: &str) {
    let disk = Env::real().disk;
    let path = root().join(path);
    if std::env::var_os("LETTERBOX_UPDATE").is_some() {
        let file = disk.open(&path, OpenMode::Truncate).unwrap();
        file.write_at(&[std::io::IoSlice::new(generated.as_bytes())], 0).unwrap();
        return;
    }
    let kept = disk.read(&path).map(|bytes| String::from_utf8(bytes).unwrap()).unwrap_or_default();
    assert!(
        kept == generated,
        "{} is not what the code generates; refresh with LETTERBOX_UPDATE=1 and review the change",
        path.display()
    );
}

#[test]
fn the_definitions_in_crds_and_in_the_chart_are_the_codes_own() {
    for crd in crds() {
        let text = serde_yaml::to_string(&crd).unwrap();
        check(&format!("crds/letterbox.dev_{}.yaml", crd.spec.names.plural), &text);
        check(
            &format!("charts/letterbox/files/letterbox.dev_{}.yaml", crd.spec.names.plural),
            &text,
        );
    }
}

#[test]
fn the_reference_page_of_the_definitions_is_the_codes_own() {
    let mut page = String::from(
        "# Reference of the custom resources\n\n`kubectl explain kafkacluster.spec` shows the same. \
         `[]` is each element of a list, `.*` each value of a map. This page is made from the \
         definitions in `crds/`.\n",
    );
    for crd in crds() {
        let names = &crd.spec.names;
        let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
        let schema = &schema["openAPIV3Schema"];
        page.push_str(&format!("\n# {}\n", names.kind));
        for part in ["spec", "status"] {
            page.push_str(&format!(
                "\n## {}.{part}\n\n| field | type | meaning |\n|---|---|---|\n",
                names.kind
            ));
            rows(&mut page, "", &schema["properties"][part]);
        }
    }
    check("docs/crds.md", &page);
}

/// A row for each field of an object, and then for the fields in it.
fn rows(page: &mut String, path: &str, schema: &Value) {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}{name}");
        let required = if required.contains(&name.as_str()) { ", required" } else { "" };
        page.push_str(&format!(
            "| `{path}` | {}{required} | {} |\n",
            type_of(field),
            field["description"]
                .as_str()
                .unwrap_or_default()
                .replace("\n", " ")
                .replace('|', "\\|"),
        ));
        rows(page, &format!("{path}."), field);
        rows(page, &format!("{path}[]."), &field["items"]);
        rows(page, &format!("{path}.*."), &field["additionalProperties"]);
    }
}

/// Type and bounds of a field.
fn type_of(field: &Value) -> String {
    let mut text = match field["type"].as_str() {
        Some("array") => format!("list of {}", type_of(&field["items"])),
        Some("object") if field["additionalProperties"].is_object() => {
            format!("map of {}", type_of(&field["additionalProperties"]))
        }
        Some(plain) => plain.to_owned(),
        None if field["x-kubernetes-int-or-string"] == json!(true) => "integer or string".into(),
        None => "any".to_owned(),
    };
    if let Some(values) = field["enum"].as_array() {
        let values: Vec<String> =
            values.iter().filter_map(Value::as_str).map(|value| format!("`{value}`")).collect();
        text = values.join(", ");
    }
    for (key, says) in [
        ("minimum", "at least"),
        ("maximum", "at most"),
        ("minLength", "characters at least"),
        ("maxLength", "characters at most"),
        ("minItems", "elements at least"),
        ("maxItems", "elements at most"),
    ] {
        if let Some(bound) = field[key].as_f64() {
            text.push_str(&format!(", {says} {bound}"));
        }
    }
    text
}

/// `kubectl explain` shows descriptions, and no defaults.
#[test]
fn each_default_is_in_the_description_of_its_field() {
    fn look(path: &str, schema: &Value, missing: &mut Vec<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let at = format!("{path}.{name}");
            let says = field["description"].as_str().is_some_and(|text| text.contains("Default: "));
            if !says
                && !field["default"].is_null()
                && field["default"] != json!({})
                && !field["default"].is_object()
            {
                missing.push(at.clone());
            }
            look(&at, field, missing);
            look(&at, &field["items"], missing);
        }
    }
    let mut missing = Vec::new();
    for crd in crds() {
        let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
        look(&crd.spec.names.kind, &schema["openAPIV3Schema"]["properties"]["spec"], &mut missing);
    }
    assert_eq!(missing, Vec::<String>::new());
}

/// A change here reaches every broker of every user at its next restart. Selectors and the names of
/// claims can never change.
#[test]
fn the_objects_of_a_cluster_stay_as_they_are() {
    let cluster: KafkaCluster = serde_json::from_value(json!({
        "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaCluster",
        "metadata": {"name": "demo", "namespace": "ns", "uid": "0000"},
        "spec": {
            "image": "letterbox:1",
            "config": {"num.partitions": "3"},
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
            "storage": {"size": "1Gi", "class": "fast", "volumes": [{"name": "data"}, {"name": "data-1", "size": "2Gi"}]},
            "listeners": [
                {"name": "plain", "port": 9092},
                {"name": "external", "port": 9094, "type": "nodeport", "bootstrap": {"nodePort": 31000}, "brokers": [{"broker": 0, "nodePort": 31001}]},
            ],
        },
    }))
    .unwrap();
    let live = KubernetesLive::default();
    let mut facts: Facts = live.facts(&cluster);
    // The node port is there from the second pass on.
    let broker = facts.brokers.get_mut(&0).unwrap();
    broker.advertised.insert(
        "external".into(),
        Some(letterbox_operator::desired::Address {
            host: letterbox_operator::desired::Host::Node,
            port: 31001,
        }),
    );
    let blueprint = Blueprint::build(&cluster, &facts);
    let built = objects::build(&blueprint);
    let claims: Vec<Value> = blueprint
        .brokers
        .values()
        .flat_map(|broker| broker.volumes.iter().map(move |volume| (broker, volume)))
        .map(|(broker, volume)| objects::claim(&blueprint, broker, volume))
        .collect();
    let all: Vec<&Value> = built
        .access
        .values()
        .chain(built.brokers.values().flatten().map(|(_, object)| object))
        .chain(&claims)
        .collect();
    for object in &all {
        is_known(object);
    }
    let texts: Vec<String> =
        all.iter().map(|object| serde_yaml::to_string(object).unwrap()).collect();
    check("operator/tests/golden/objects.yaml", &texts.join("---\n"));
}

/// What a broker among several has besides.
#[test]
fn the_objects_of_a_broker_among_three_stay_as_they_are() {
    let cluster: KafkaCluster = serde_json::from_value(json!({
        "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaCluster",
        "metadata": {"name": "demo", "namespace": "ns", "uid": "0000"},
        "spec": {"replicas": 3, "image": "letterbox:1"},
    }))
    .unwrap();
    let blueprint = Blueprint::build(&cluster, &KubernetesLive::default().facts(&cluster));
    let built = objects::build(&blueprint);
    assert_eq!(built.brokers.keys().collect::<Vec<_>>(), [&0, &1, &2]);
    let all: Vec<&Value> = built.brokers[&1].iter().map(|(_, object)| object).collect();
    all.iter().for_each(|object| is_known(object));
    let texts: Vec<String> =
        all.iter().map(|object| serde_yaml::to_string(object).unwrap()).collect();
    check("operator/tests/golden/broker-of-three.yaml", &texts.join("---\n"));
}

/// Every field is one that the Kubernetes type has.
fn is_known(object: &Value) {
    use k8s_openapi::api::apps::v1::StatefulSet;
    use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Service, ServiceAccount};
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;
    fn round<T: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) -> Vec<String> {
        let typed: T = serde_json::from_value(object.clone()).unwrap();
        letterbox_operator::desired::compare::differences(
            object,
            &serde_json::to_value(typed).unwrap(),
        )
    }
    let lost = match object["kind"].as_str().unwrap() {
        "StatefulSet" => round::<StatefulSet>(object),
        "ConfigMap" => round::<ConfigMap>(object),
        "Service" => round::<Service>(object),
        "ServiceAccount" => round::<ServiceAccount>(object),
        "PersistentVolumeClaim" => round::<PersistentVolumeClaim>(object),
        "PodDisruptionBudget" => round::<PodDisruptionBudget>(object),
        other => panic!("{other}"),
    };
    assert_eq!(lost, Vec::<String>::new(), "{}", object["kind"]);
}
