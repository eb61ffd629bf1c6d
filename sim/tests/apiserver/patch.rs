//! Merge patches and server-side apply, for the one manager that applies.

use serde_json::{Map, Value, json};

/// RFC 7396.
pub(crate) fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    let Some(object) = object.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            object.remove(key);
        } else {
            merge(object.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// The field by which the items of a list at `path` are told apart, where it is merged.
fn merge_key(path: &str, item: &Value) -> Option<&'static str> {
    let keys: &[&str] = match path.rsplit('.').next()? {
        "ownerReferences" => &["uid"],
        "containers" | "volumes" | "env" => &["name"],
        "volumeMounts" => &["mountPath"],
        "ports" => &["containerPort", "port"],
        "conditions" => &["type"],
        _ => &[],
    };
    let known = ["uid", "name", "mountPath", "containerPort", "port", "type", "id"];
    let key = keys.iter().find(|key| item.get(**key).is_some())?;
    known.into_iter().find(|known| known == key)
}

fn at(path: &str, key: &str) -> String {
    format!("{path}.{key}")
}

/// Makes `live` what is `wanted`, without what was applied `before` and is not wanted any more.
pub(crate) fn apply(live: &mut Value, before: &Value, wanted: &Value) {
    apply_at(live, before, wanted, "");
}

fn apply_at(live: &mut Value, before: &Value, wanted: &Value, path: &str) {
    match wanted {
        Value::Object(wanted) => {
            if !live.is_object() {
                *live = json!({});
            }
            let Some(live) = live.as_object_mut() else { return };
            for key in before.as_object().into_iter().flat_map(Map::keys) {
                if !wanted.contains_key(key) {
                    live.remove(key);
                }
            }
            for (key, value) in wanted {
                let before = before.get(key).unwrap_or(&Value::Null);
                let entry = live.entry(key.clone()).or_insert(Value::Null);
                apply_at(entry, before, value, &at(path, key));
            }
        }
        Value::Array(items) => apply_list(live, before, items, path),
        other => *live = other.clone(),
    }
}

fn apply_list(live: &mut Value, before: &Value, wanted: &[Value], path: &str) {
    let Some(key) = wanted.first().or(before.get(0)).and_then(|item| merge_key(path, item)) else {
        *live = json!(wanted);
        return;
    };
    let same = |one: &Value, other: &Value| one.get(key) == other.get(key);
    let mut items = live.as_array().cloned().unwrap_or_default();
    let before = before.as_array().cloned().unwrap_or_default();
    items.retain(|item| {
        wanted.iter().any(|wanted| same(wanted, item)) || !before.iter().any(|old| same(old, item))
    });
    for item in wanted {
        let old = before.iter().find(|old| same(old, item)).unwrap_or(&Value::Null);
        match items.iter_mut().find(|live| same(live, item)) {
            Some(live) => apply_at(live, old, item, path),
            None => items.push(item.clone()),
        }
    }
    *live = Value::Array(items);
}

/// `wanted` as a set of fields, as managed fields have it.
pub(crate) fn fields(wanted: &Value, path: &str) -> Value {
    let mut set = Map::new();
    match wanted {
        // One value.
        Value::Object(_) if path.ends_with("elector") => {}
        Value::Object(wanted) => {
            for (key, value) in wanted {
                set.insert(format!("f:{key}"), fields(value, &at(path, key)));
            }
        }
        Value::Array(items) => {
            for item in items {
                let Some(key) = merge_key(path, item) else { break };
                let name = json!({ key: item[key] });
                set.insert(format!("k:{name}"), fields(item, path));
            }
        }
        _ => {}
    }
    Value::Object(set)
}

/// Takes what differs between `before` and `object` out of the fields that were applied to it: from
/// now on they are another manager's.
pub(crate) fn disown(object: &mut Value, before: &Value) {
    let after = object.clone();
    if let Some(fields) = object.pointer_mut("/metadata/managedFields/0/fieldsV1") {
        disown_at(fields, before, &after);
    }
}

/// Whether nothing of `fields` is left.
fn disown_at(fields: &mut Value, before: &Value, after: &Value) -> bool {
    let Some(fields) = fields.as_object_mut() else { return false };
    if fields.is_empty() {
        return before != after;
    }
    fields.retain(|name, inner| {
        let part = |of: &Value| match name.split_once(':') {
            Some(("k", keys)) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let is_it = |item: &&Value| keys.iter().all(|(key, it)| item.get(key) == Some(it));
                of.as_array().and_then(|items| items.iter().find(is_it)).cloned()
            }
            Some((_, name)) => of.get(name).cloned(),
            None => None,
        };
        let of = |value: &Value| part(value).unwrap_or(Value::Null);
        !disown_at(inner, &of(before), &of(after))
    });
    fields.is_empty()
}
