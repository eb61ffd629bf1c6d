//! Whether a live object has everything that is desired of it, and nothing that was desired of it
//! once.
//!
//! What we applied earlier is told by the object's own managed fields. Fields that we never asked
//! for (defaults, other managers' additions) do not count, except in selectors, which are one value
//! each.

use serde_json::Value;

use super::objects::MANAGER;
use crate::api::nanos_of;

/// The paths at which `live` is not as `desired`; empty when it is.
#[must_use]
pub fn differences(desired: &Value, live: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(desired, live, "", &mut found);
    let managers = live.pointer("/metadata/managedFields").and_then(Value::as_array);
    for ours in managers
        .into_iter()
        .flatten()
        .filter(|entry| entry["manager"] == MANAGER && entry["operation"] == "Apply")
    {
        abandoned(&ours["fieldsV1"], desired, "", &mut found);
    }
    found
}

/// What we applied and do not ask for any more: applying what is desired takes it away. `owned` is
/// a set of fields as server-side apply writes it: `f:` a field, `k:` an item of a list by its
/// keys, `v:` an item by its value, `.` the thing itself.
fn abandoned(owned: &Value, desired: &Value, path: &str, found: &mut Vec<String>) {
    for (key, inner) in owned.as_object().into_iter().flatten() {
        let (at, wanted) = match key.split_once(':') {
            Some(("f", name)) => (join(path, name), desired.get(name)),
            Some(("k", keys)) => {
                let keys: Value = serde_json::from_str(keys).unwrap_or_default();
                let same = |item: &&Value| {
                    keys.as_object()
                        .into_iter()
                        .flatten()
                        .all(|(key, value)| item.get(key) == Some(value))
                };
                (
                    format!("{path}[{keys}]"),
                    desired.as_array().and_then(|items| items.iter().find(same)),
                )
            }
            Some(("v", value)) => {
                let value: Value = serde_json::from_str(value).unwrap_or_default();
                (
                    format!("{path}[{value}]"),
                    desired.as_array().and_then(|items| items.iter().find(|item| **item == value)),
                )
            }
            _ => continue,
        };
        match wanted {
            Some(wanted) => abandoned(inner, wanted, &at, found),
            None => found.push(at),
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn compare(desired: &Value, live: &Value, path: &str, found: &mut Vec<String>) {
    match (desired, live) {
        (Value::Object(desired), Value::Object(live)) => {
            for (key, value) in desired {
                // Lists of objects come without the type of each.
                if path.is_empty() && (key == "apiVersion" || key == "kind") {
                    continue;
                }
                compare(value, live.get(key).unwrap_or(&Value::Null), &join(path, key), found);
            }
            if path.split('.').any(|part| part == "selector") {
                let more = live.keys().filter(|key| !desired.contains_key(*key));
                found.extend(more.map(|key| join(path, key)));
            }
        }
        (Value::Array(desired), Value::Array(live)) => match merge_key(path) {
            Some(keys) => {
                for (index, item) in desired.iter().enumerate() {
                    let same =
                        |other: &&Value| keys.iter().all(|key| item.get(key) == other.get(key));
                    compare(
                        item,
                        live.iter().find(same).unwrap_or(&Value::Null),
                        &format!("{path}[{index}]"),
                        found,
                    );
                }
            }
            None if desired.len() == live.len() => {
                for (index, (desired, live)) in desired.iter().zip(live).enumerate() {
                    compare(desired, live, &format!("{path}[{index}]"), found);
                }
            }
            None => found.push(path.to_owned()),
        },
        // The API server leaves out what is empty.
        (Value::Object(desired), Value::Null) if desired.is_empty() => {}
        (Value::Array(desired), Value::Null) if desired.is_empty() => {}
        // The one `false` among what the builders write that it leaves out too.
        (Value::Bool(false), Value::Null) if path == "spec.publishNotReadyAddresses" => {}
        _ if desired == live || same_quantity(desired, live) => {}
        _ => found.push(path.to_owned()),
    }
}

/// Lists that server-side apply merges by key, among those that the builders write.
fn merge_key(path: &str) -> Option<&'static [&'static str]> {
    match path.rsplit('.').next()? {
        "ownerReferences" => Some(&["uid"]),
        "containers" | "volumes" | "env" => Some(&["name"]),
        "volumeMounts" => Some(&["mountPath"]),
        "ports" if path.contains("containers[") => Some(&["containerPort"]),
        "ports" => Some(&["port"]),
        _ => None,
    }
}

/// `1024Mi` and `1Gi` are the same, and so are `1` and `"1"`.
fn same_quantity(desired: &Value, live: &Value) -> bool {
    let nanos = |value: &Value| match value {
        Value::String(text) => nanos_of(text),
        Value::Number(number) => nanos_of(&number.to_string()),
        _ => None,
    };
    matches!((nanos(desired), nanos(live)), (Some(a), Some(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_asked_for_counts() {
        for (desired, live, expected) in [
            (json!({"a": 1}), json!({"a": 1, "b": 2}), vec![]),
            (json!({"a": {"b": 1, "c": 2}}), json!({"a": {"b": 1}}), vec!["a.c"]),
            (json!({"size": "1Gi"}), json!({"size": "1024Mi"}), vec![]),
            (json!({"size": "1Gi"}), json!({"size": "1025Mi"}), vec!["size"]),
            (json!({"cpu": "1"}), json!({"cpu": "1000m"}), vec![]),
            (json!({"command": ["a", "b"]}), json!({"command": ["a", "b", "c"]}), vec!["command"]),
            (
                json!({"ports": [{"port": 1, "name": "x"}]}),
                json!({"ports": [{"port": 2, "name": "y"}, {"port": 1, "name": "x"}]}),
                vec![],
            ),
            (
                json!({"ports": [{"port": 1, "name": "x"}]}),
                json!({"ports": [{"port": 1, "name": "z"}]}),
                vec!["ports[0].name"],
            ),
            (json!({"ports": [{"port": 1}]}), json!({"ports": [{"port": 2}]}), vec!["ports[0]"]),
            (json!({"a": [], "b": {}}), json!({}), vec![]),
            (json!({"c": false}), json!({}), vec!["c"]),
            (json!({"selector": {"x": "1"}}), json!({}), vec!["selector"]),
            (
                json!({"selector": {"x": "1"}}),
                json!({"selector": {"x": "1", "y": "2"}}),
                vec!["selector.y"],
            ),
            (
                json!({"selector": {"matchLabels": {"x": "1"}}}),
                json!({"selector": {"matchLabels": {"x": "1", "y": "2"}}}),
                vec!["selector.matchLabels.y"],
            ),
        ] {
            assert_eq!(differences(&desired, &live), expected, "{desired} in {live}");
        }
    }

    #[test]
    fn what_was_applied_and_is_not_asked_for_any_more_counts() {
        let live = |manager: &str| {
            json!({
                "metadata": {"managedFields": [{"manager": manager, "operation": "Apply", "fieldsV1": {"f:spec": {
                    "f:limits": {"f:cpu": {}},
                    "f:ports": {"k:{\"port\":1,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {}}},
                    "f:words": {"v:\"a\"": {}},
                }}}]},
                "spec": {"limits": {"cpu": "1"}, "ports": [{"port": 1, "protocol": "TCP", "name": "x"}], "words": ["a"]},
            })
        };
        let port = json!({"port": 1, "protocol": "TCP", "name": "x"});
        for (desired, expected) in [
            (json!({"spec": {"limits": {"cpu": "1"}, "ports": [port], "words": ["a"]}}), vec![]),
            (json!({"spec": {"ports": [port], "words": ["a"]}}), vec!["spec.limits"]),
            (
                json!({"spec": {"limits": {}, "ports": [port], "words": ["a"]}}),
                vec!["spec.limits.cpu"],
            ),
            (
                json!({"spec": {"limits": {"cpu": "1"}, "ports": [], "words": ["a"]}}),
                vec!["spec.ports[{\"port\":1,\"protocol\":\"TCP\"}]"],
            ),
        ] {
            assert_eq!(differences(&desired, &live(MANAGER)), expected, "{desired}");
        }
        assert!(differences(&json!({"spec": {}}), &live("somebody-else")).is_empty());
    }
}
