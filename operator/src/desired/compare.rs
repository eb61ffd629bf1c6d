//! Whether a live object has everything that is desired of it.
//!
//! Fields that nobody asked for (defaults, other managers' additions) do not count.

use serde_json::Value;

use crate::api::millis_of;

/// The paths at which `live` is not as `desired`; empty when it is.
#[must_use]
pub fn differences(desired: &Value, live: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(desired, live, "", &mut found);
    found
}

fn compare(desired: &Value, live: &Value, path: &str, found: &mut Vec<String>) {
    match (desired, live) {
        (Value::Object(desired), Value::Object(live)) => {
            for (key, value) in desired {
                let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(value, live.get(key).unwrap_or(&Value::Null), &at, found);
            }
        }
        (Value::Array(desired), Value::Array(live)) => match merge_key(path) {
            Some(keys) => {
                for (index, item) in desired.iter().enumerate() {
                    let same = |other: &&Value| keys.iter().all(|key| item.get(key) == other.get(key));
                    compare(item, live.iter().find(same).unwrap_or(&Value::Null), &format!("{path}[{index}]"), found);
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
        (Value::Bool(false), Value::Null) => {}
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
    let millis = |value: &Value| match value {
        Value::String(text) => millis_of(text),
        Value::Number(number) => millis_of(&number.to_string()),
        _ => None,
    };
    matches!((millis(desired), millis(live)), (Some(a), Some(b)) if a == b)
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
            (json!({"ports": [{"port": 1, "name": "x"}]}), json!({"ports": [{"port": 2, "name": "y"}, {"port": 1, "name": "x"}]}), vec![]),
            (json!({"ports": [{"port": 1, "name": "x"}]}), json!({"ports": [{"port": 1, "name": "z"}]}), vec!["ports[0].name"]),
            (json!({"ports": [{"port": 1}]}), json!({"ports": [{"port": 2}]}), vec!["ports[0]"]),
            (json!({"a": [], "b": {}, "c": false}), json!({}), vec![]),
            (json!({"selector": {"x": "1"}}), json!({}), vec!["selector"]),
        ] {
            assert_eq!(differences(&desired, &live), expected, "{desired} in {live}");
        }
    }
}
