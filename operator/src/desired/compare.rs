//! Whether a live object has everything that is desired of it, and nothing that was desired of it
//! once.
//!
//! What we applied earlier is told by the object's own managed fields. Fields that we never asked
//! for (defaults, other managers' additions) do not count, except in selectors, which are one value
//! each.
//!
//! Admission may make something else of what we apply, and applying it again would come to the same.
//! Kubernetes does not count what admission changes as a change of the field's manager, and it does
//! count what anybody else changes. So a field that differs and is still ours is as admission made
//! it, if what we applied last is what is desired now: the mark that is applied with each object
//! says so.

use serde_json::{Map, Value, json};

use super::fingerprint;
use super::objects::MANAGER;
use crate::api::nanos_of;

/// The annotation that says what was applied: this and a fingerprint. The fingerprint is in its name
/// because managed fields have the names of annotations, and keep them where admission takes the
/// annotations away.
const APPLIED: &str = "letterbox.dev/applied-";

/// `desired` as it is applied: with a mark that names it.
#[must_use]
pub fn marked(desired: &Value) -> Value {
    let mut marked = desired.clone();
    marked["metadata"]["annotations"][mark_of(desired)] = json!("");
    marked
}

fn mark_of(desired: &Value) -> String {
    let whole = fingerprint(std::iter::once(&desired.to_string()));
    format!("{APPLIED}{}", whole.get(..16).unwrap_or(&whole))
}

/// The paths at which `live` is not as `desired`; empty when it is.
#[must_use]
pub fn differences(desired: &Value, live: &Value) -> Vec<String> {
    let managers = live.pointer("/metadata/managedFields").and_then(Value::as_array);
    let ours: Vec<&Value> = managers
        .into_iter()
        .flatten()
        .filter(|entry| is_ours(entry))
        .map(|entry| &entry["fieldsV1"])
        .collect();
    let mark = format!("f:{}", mark_of(desired));
    let is_applied = |owned: &&&Value| {
        let annotations = owned.pointer("/f:metadata/f:annotations");
        annotations.is_some_and(|annotations| annotations.get(&mark).is_some())
    };
    let applied = ours.iter().find(is_applied).copied();
    let mut found = Vec::new();
    compare(desired, live, applied, "", &mut found);
    for owned in ours {
        abandoned(owned, &marked(desired), "", &mut found);
    }
    found
}

fn is_ours(entry: &Value) -> bool {
    entry["manager"] == MANAGER && entry["operation"] == "Apply"
}

/// The managed fields of `live`, changed so that what others have written of `refused` counts as
/// applied by us; `None` when there is none of it. `refused` are fields as the API server's answer
/// names them (`spec.ports[1].name`). Metadata and status stay whose they are, and so does what the
/// API server chose of something that is `desired`: it may count as written by somebody.
#[must_use]
pub fn taken_over(live: &Value, refused: &[&str], desired: &Value) -> Option<Vec<Value>> {
    let mut entries = live.pointer("/metadata/managedFields")?.as_array()?.clone();
    let mut paths: Vec<Vec<&str>> = refused.iter().map(|field| refused_path(field)).collect();
    paths.retain(|path| !matches!(path.first(), None | Some(&("metadata" | "status"))));
    let mut taken = json!({});
    for entry in &mut entries {
        let is_status = entry["subresource"].as_str().is_some_and(|of| !of.is_empty());
        if is_ours(entry) || is_status {
            continue;
        }
        let Some(fields) = entry["fieldsV1"].as_object_mut() else { continue };
        for path in &paths {
            unite(&mut taken, Value::Object(take_out(fields, path)));
        }
    }
    leave_chosen(&mut taken, desired);
    if is_whole(&taken) {
        return None;
    }
    entries.retain(|entry| !is_whole(&entry["fieldsV1"]));
    match entries.iter_mut().find(|entry| is_ours(entry)) {
        Some(entry) => unite(&mut entry["fieldsV1"], taken),
        None => entries.push(json!({
            "manager": MANAGER, "operation": "Apply", "apiVersion": live["apiVersion"],
            "fieldsType": "FieldsV1", "fieldsV1": taken,
        })),
    }
    Some(entries)
}

/// Where to look for what is not allowed: the field that the API server names, without the indices
/// of lists, which are those of an object that does not exist. In an item of a list it names one of
/// the fields that exclude each other (`tcpSocket` beside `httpGet`), or one that two items may not
/// both have: there it is what has the field.
fn refused_path(field: &str) -> Vec<&str> {
    let (mut path, mut rest, mut list) = (Vec::new(), field, None);
    while !rest.is_empty() {
        let (name, more) = rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()));
        path.extend(Some(name).filter(|name| !name.is_empty()));
        rest = match more.strip_prefix('[') {
            // What is in the brackets may have dots.
            Some(index) => {
                list = Some(path.len());
                index.split_once(']').map_or("", |(_, more)| more)
            }
            None => more.strip_prefix('.').unwrap_or_default(),
        };
    }
    if let Some(list) = list {
        path.truncate(path.len().saturating_sub(1).max(list));
    }
    path
}

/// Removes what of `fields` is at or below `path`, in any item of the lists on the way, and returns
/// it. A field that is one value goes as a whole.
fn take_out(fields: &mut Map<String, Value>, path: &[&str]) -> Map<String, Value> {
    let mut taken = Map::new();
    let Some((name, below)) = path.split_first() else { return taken };
    fields.retain(|key, inner| {
        let below = match key.split_once(':') {
            Some(("f", field)) if field == *name => below,
            Some(("k" | "v", _)) if !is_whole(inner) => path,
            _ => return true,
        };
        if below.is_empty() || is_whole(inner) {
            taken.insert(key.clone(), inner.take());
            return false;
        }
        let Some(inner) = inner.as_object_mut() else { return true };
        let more = take_out(inner, below);
        if !more.is_empty() {
            taken.insert(key.clone(), Value::Object(more));
        }
        !inner.is_empty()
    });
    taken
}

/// What the API server chooses where nobody does.
const CHOSEN: [&str; 6] =
    ["clusterIP", "clusterIPs", "healthCheckNodePort", "ipFamilies", "ipFamilyPolicy", "nodePort"];

/// Leaves what the API server chose of something that is desired out of a set of fields.
fn leave_chosen(fields: &mut Value, desired: &Value) {
    let Some(fields) = fields.as_object_mut() else { return };
    fields.retain(|key, inner| {
        let wanted = match key.split_once(':') {
            Some(("f", name)) => desired.get(name).or_else(|| {
                // Nobody has it then, and it stays.
                (desired.is_object() && CHOSEN.contains(&name)).then_some(&Value::Null)
            }),
            Some(("k", _)) => desired.as_array().and_then(|items| {
                items.iter().find(|item| item_of(&json!({ key: {} }), item).is_some())
            }),
            _ => None,
        };
        match wanted {
            Some(Value::Null) => return false,
            Some(wanted) if !is_whole(inner) => leave_chosen(inner, wanted),
            _ => return true,
        }
        !is_whole(inner)
    });
}

/// Adds a set of fields to another one. An empty one is the thing itself, which is `.` beside parts
/// of it.
fn unite(fields: &mut Value, more: Value) {
    let Value::Object(more) = more else { return };
    let Some(fields) = fields.as_object_mut() else { return };
    for (name, more) in more {
        match fields.get_mut(&name) {
            None => drop(fields.insert(name, more)),
            Some(known) => {
                let is_mixed = is_whole(known) != is_whole(&more);
                unite(known, more);
                if is_mixed {
                    known["."] = json!({});
                }
            }
        }
    }
}

/// What we applied and do not ask for any more: applying what is desired takes it away. `owned` is
/// a set of fields as server-side apply writes it: `f:` a field, `k:` an item of a list by its
/// keys, `v:` an item by its value, `.` the thing itself.
fn abandoned(owned: &Value, desired: &Value, path: &str, found: &mut Vec<String>) {
    for (key, inner) in owned.as_object().into_iter().flatten() {
        let (at, wanted) = match key.split_once(':') {
            // The mark of what was applied before.
            Some(("f", name)) if name.starts_with(APPLIED) => continue,
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

/// `applied` is what of `desired` we applied last and nobody else has changed since, as managed
/// fields have it.
fn compare(
    desired: &Value,
    live: &Value,
    applied: Option<&Value>,
    path: &str,
    found: &mut Vec<String>,
) {
    match (desired, live) {
        (Value::Object(desired), Value::Object(live)) => {
            for (key, value) in desired {
                // Lists of objects come without the type of each.
                if path.is_empty() && (key == "apiVersion" || key == "kind") {
                    continue;
                }
                let applied = inside(applied, |fields| fields.get(format!("f:{key}")));
                let live = live.get(key).unwrap_or(&Value::Null);
                compare(value, live, applied, &join(path, key), found);
            }
            let is_selector = path.split('.').any(|part| part == "selector");
            if is_selector && !applied.is_some_and(is_whole) {
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
                        inside(applied, |fields| item_of(fields, item)),
                        &format!("{path}[{index}]"),
                        found,
                    );
                }
            }
            None if applied.is_some_and(is_whole) => {}
            None if desired.len() == live.len() => {
                for (index, (desired, live)) in desired.iter().zip(live).enumerate() {
                    compare(desired, live, None, &format!("{path}[{index}]"), found);
                }
            }
            None => found.push(path.to_owned()),
        },
        // The API server leaves out what is empty.
        (Value::Object(desired), Value::Null) if desired.is_empty() => {}
        (Value::Array(desired), Value::Null) if desired.is_empty() => {}
        // The one `false` among what the builders write that it leaves out too.
        (Value::Bool(false), Value::Null) if path == "spec.publishNotReadyAddresses" => {}
        _ if desired == live || is_same_quantity(desired, live, path) => {}
        _ if applied.is_some_and(|applied| covers(applied, desired)) => {}
        _ => found.push(path.to_owned()),
    }
}

/// Whether a field is one value for managed fields: all that is in it has one manager.
fn is_whole(fields: &Value) -> bool {
    fields.as_object().is_some_and(serde_json::Map::is_empty)
}

/// What of `applied` is about a part of the field.
fn inside<'a>(
    applied: Option<&'a Value>,
    part: impl Fn(&'a Value) -> Option<&'a Value>,
) -> Option<&'a Value> {
    applied.and_then(|fields| if is_whole(fields) { Some(fields) } else { part(fields) })
}

/// What of `fields` is about an item of a list.
fn item_of<'a>(fields: &'a Value, item: &Value) -> Option<&'a Value> {
    let is_it = |name: &str| match name.split_once(':') {
        Some(("k", keys)) => serde_json::from_str::<Value>(keys).is_ok_and(|keys| {
            let mut keys = keys.as_object().into_iter().flatten();
            keys.all(|(key, value)| item.get(key) == Some(value))
        }),
        Some(("v", value)) => serde_json::from_str::<Value>(value).is_ok_and(|it| it == *item),
        _ => false,
    };
    fields.as_object()?.iter().find(|(name, _)| is_it(name)).map(|(_, inner)| inner)
}

/// Whether everything in `desired` is among `fields`.
fn covers(fields: &Value, desired: &Value) -> bool {
    is_whole(fields)
        || match desired {
            Value::Object(desired) => desired.iter().all(|(key, value)| {
                fields.get(format!("f:{key}")).is_some_and(|fields| covers(fields, value))
            }),
            Value::Array(items) => items
                .iter()
                .all(|item| item_of(fields, item).is_some_and(|fields| covers(fields, item))),
            _ => true,
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

/// Whether both are the same amount of a resource: `1024Mi` and `1Gi` are, and so are `1` and `"1"`.
/// Kubernetes rounds up what is finer than a thousandth.
fn is_same_quantity(desired: &Value, live: &Value, path: &str) -> bool {
    const MILLI: u128 = 1_000_000;
    let millis = |value: &Value| match value {
        Value::String(text) => Some(nanos_of(text)?.div_ceil(MILLI)),
        Value::Number(number) => Some(nanos_of(&number.to_string())?.div_ceil(MILLI)),
        _ => None,
    };
    path.split('.').any(|part| part == "resources")
        && matches!((millis(desired), millis(live)), (Some(a), Some(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(quantity: &str) -> Value {
        json!({"resources": {"limits": {"x": quantity}}})
    }

    #[test]
    fn only_what_is_asked_for_counts() {
        for (desired, live, expected) in [
            (json!({"a": 1}), json!({"a": 1, "b": 2}), vec![]),
            (json!({"a": {"b": 1, "c": 2}}), json!({"a": {"b": 1}}), vec!["a.c"]),
            (resources("1Gi"), resources("1024Mi"), vec![]),
            (resources("1Gi"), resources("1025Mi"), vec!["resources.limits.x"]),
            (resources("1"), resources("1000m"), vec![]),
            (resources("0.0001"), resources("1m"), vec![]),
            (resources("0.0011"), resources("1m"), vec!["resources.limits.x"]),
            // Elsewhere a text is a text.
            (json!({"labels": {"id": "0"}}), json!({"labels": {"id": "00"}}), vec!["labels.id"]),
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

    #[test]
    fn what_others_put_there_counts_as_applied_when_it_is_taken_over() {
        let port = |number: u16| format!("k:{{\"port\":{number}}}");
        let entry = |manager: &str, operation: &str, fields: Value| json!({"manager": manager, "operation": operation, "fieldsV1": fields});
        let live =
            |entries: Value| json!({"apiVersion": "v1", "metadata": {"managedFields": entries}});
        let ours = json!({"f:spec": {"f:a": {}, "f:ports": {port(1): {".": {}, "f:name": {}}}}});
        let theirs = json!({
            "f:metadata": {"f:labels": {"f:x": {}}},
            "f:spec": {"f:a": {"f:b": {}}, "f:ports": {port(2): {".": {}}}, "f:c": {}},
        });
        let mut status = entry("c", "Update", json!({"f:status": {}}));
        status["subresource"] = json!("status");
        let all = json!([
            entry("a", "Update", theirs),
            entry(MANAGER, "Apply", ours.clone()),
            entry("b", "Apply", json!({"f:spec": {"f:d": {}}})),
            status,
        ]);
        let taken = json!([
            entry("a", "Update", json!({"f:metadata": {"f:labels": {"f:x": {}}}})),
            entry(
                MANAGER,
                "Apply",
                json!({"f:spec": {
                    "f:a": {".": {}, "f:b": {}},
                    "f:ports": {port(1): {".": {}, "f:name": {}}, port(2): {".": {}}},
                    "f:c": {}, "f:d": {},
                }})
            ),
            status,
        ]);
        let all = live(all);
        assert_eq!(taken_over(&all, &["spec"], &json!({})).map(Value::from), Some(taken));
        let nothing = [&[][..], &[""], &["<nil>"], &["metadata.labels"], &["status"], &["spec.e"]];
        for refused in nothing {
            assert_eq!(taken_over(&all, refused, &json!({})), None, "{refused:?}");
        }
        assert_eq!(
            taken_over(
                &live(json!([entry(MANAGER, "Apply", ours), status])),
                &["spec"],
                &json!({})
            ),
            None
        );
        assert_eq!(taken_over(&json!({"metadata": {}}), &["spec"], &json!({})), None);
        let data = live(json!([entry("a", "Update", json!({"f:data": {}}))]));
        let new = taken_over(&data, &["data[a.b]"], &json!({})).unwrap();
        assert_eq!((new.len(), &new[0]["manager"]), (1, &json!(MANAGER)));
        assert_eq!(new[0]["fieldsV1"], json!({"f:data": {}}));
    }

    #[test]
    fn what_the_refusal_does_not_name_stays_that_of_others() {
        let item = |name: &str| format!("k:{{\"name\":\"{name}\"}}");
        let theirs = json!({"f:spec": {
            "f:ports": {item("p"): {".": {}, "f:port": {}}},
            "f:containers": {
                item("kafka"): {
                    "f:env": {item("X"): {".": {}}},
                    "f:probe": {"f:tcpSocket": {".": {}, "f:port": {}}},
                    "f:resources": {"f:limits": {"f:cpu": {}}},
                },
                item("other"): {".": {}, "f:image": {}},
            },
            "f:policy": {},
        }});
        let fields = |of: &[Value], manager: &str| {
            let of = of.iter().find(|entry| entry["manager"] == manager);
            of.map(|entry| entry["fieldsV1"].clone()).unwrap_or_default()
        };
        let entry = json!({"manager": "a", "operation": "Update", "fieldsV1": theirs});
        let live = json!({"metadata": {"managedFields": [entry]}});
        let kafka = |inner: Value| json!({"f:spec": {"f:containers": {item("kafka"): inner}}});
        let ports = json!({"f:spec": {"f:ports": {item("p"): {".": {}, "f:port": {}}}}});
        let socket = json!({"f:probe": {"f:tcpSocket": {".": {}, "f:port": {}}}});
        let limits = json!({"f:resources": {"f:limits": {"f:cpu": {}}}});
        for (refused, expected) in [
            ("spec.ports[1].name", ports.clone()),
            ("spec.ports[1]", ports.clone()),
            ("spec.ports", ports),
            // It names one of the two handlers, which may be ours.
            ("spec.containers[0].probe.tcpSocket", kafka(socket.clone())),
            ("spec.containers[0].probe.httpGet", kafka(socket)),
            ("spec.containers[0].resources.limits[example.com/a]", kafka(limits)),
            (
                "spec.containers[0].env[3].valueFrom",
                kafka(json!({"f:env": {item("X"): {".": {}}}})),
            ),
            // A part of what is one value.
            ("spec.policy.kind", json!({"f:spec": {"f:policy": {}}})),
        ] {
            let mut all = taken_over(&live, &[refused], &json!({})).unwrap();
            assert_eq!(fields(&all, MANAGER), expected, "{refused}");
            let mut left = fields(&all, "a");
            assert_ne!(left, theirs, "{refused}");
            unite(&mut left, fields(&all, MANAGER));
            assert_eq!(left, theirs, "{refused}");
            all.retain(|entry| !is_ours(entry));
            assert_eq!(all.len(), 1, "{refused}");
        }
    }

    #[test]
    fn what_the_api_server_chose_of_what_is_desired_stays_when_the_rest_is_taken_over() {
        let port = |number: u16| format!("k:{{\"port\":{number}}}");
        let all = json!({".": {}, "f:name": {}, "f:nodePort": {}, "f:port": {}});
        let theirs = json!({"f:spec": {
            "f:clusterIP": {}, "f:x": {}, "f:ports": {port(1): all, port(2): all},
        }});
        let entry =
            json!({"manager": "before-first-apply", "operation": "Update", "fieldsV1": theirs});
        let live = json!({"metadata": {"managedFields": [entry]}});
        let desired = json!({"spec": {"ports": [{"port": 1, "name": "a"}]}});
        let kept = json!({".": {}, "f:name": {}, "f:port": {}});
        let taken = taken_over(&live, &["spec"], &desired).unwrap();
        let expected = json!({"f:spec": {"f:x": {}, "f:ports": {port(1): kept, port(2): all}}});
        assert_eq!(taken[0]["fieldsV1"], expected);
        // What the spec names is the operator's own.
        let desired = json!({"spec": {"clusterIP": "None", "ports": [{"port": 1, "nodePort": 7}]}});
        let taken = taken_over(&live, &["spec"], &desired).unwrap();
        assert_eq!(taken[0]["fieldsV1"], theirs);
    }

    /// What we applied, as the API server tells it.
    fn applied(desired: &Value) -> Value {
        let mark = format!("f:{}", mark_of(desired));
        json!({
            "f:metadata": {"f:annotations": {mark: {}}, "f:labels": {"f:a": {}, "f:b": {}}},
            "f:spec": {
                "f:selector": {},
                "f:words": {},
                "f:ports": {"k:{\"port\":1,\"protocol\":\"TCP\"}": {
                    ".": {}, "f:name": {}, "f:port": {}, "f:protocol": {},
                }},
                "f:resources": {"f:limits": {"f:memory": {}}},
            },
        })
    }

    #[test]
    fn what_admission_makes_of_what_was_applied_is_left_alone_and_what_others_make_of_it_is_not() {
        let desired = json!({
            "metadata": {"labels": {"a": "1", "b": "2"}},
            "spec": {
                "selector": {"x": "1"}, "words": ["a"],
                "ports": [{"port": 1, "protocol": "TCP", "name": "x"}],
                "resources": {"limits": {"memory": "1Gi"}},
            },
        });
        let differing = |fields: Value, spec: Value| {
            let entry = json!({"manager": MANAGER, "operation": "Apply", "fieldsV1": fields});
            let labels = json!({"b": "3"});
            let metadata = json!({"managedFields": [entry], "labels": labels});
            differences(&desired, &json!({"metadata": metadata, "spec": spec}))
        };
        let made = || {
            json!({
                "selector": {"x": "1", "y": "2"}, "words": ["a", "b"],
                "ports": [{"port": 1, "protocol": "TCP", "name": "z"}],
            })
        };
        // Labels, a selector and the name of a port are other ones, the resources are gone.
        assert_eq!(differing(applied(&desired), made()), Vec::<String>::new());
        assert_eq!(differing(applied(&desired), json!({})), Vec::<String>::new());
        // Something else was applied.
        let all = differing(applied(&json!({})), made());
        let expected = [
            "metadata.labels.a",
            "metadata.labels.b",
            "spec.ports[0].name",
            "spec.resources",
            "spec.selector.y",
            "spec.words",
        ];
        assert_eq!(all, expected);
        // Somebody else has written a field since, or taken one away.
        for (field, path) in [
            ("/f:metadata/f:labels/f:a", "metadata.labels.a"),
            ("/f:metadata/f:labels/f:b", "metadata.labels.b"),
            ("/f:spec/f:selector", "spec.selector.y"),
            ("/f:spec/f:words", "spec.words"),
            ("/f:spec/f:ports", "spec.ports[0].name"),
            ("/f:spec/f:resources/f:limits/f:memory", "spec.resources"),
        ] {
            let mut fields = applied(&desired);
            let (parent, name) = field.rsplit_once('/').unwrap();
            fields.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name);
            // What is in nobody's fields is a member, not the whole.
            fields.pointer_mut(parent).unwrap()["."] = json!({});
            assert_eq!(differing(fields, made()), [path]);
        }
    }
}
