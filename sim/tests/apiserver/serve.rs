//! Requests and watches over the protocol that `kube` speaks.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt as _;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use kube::client::Body;
use letterbox_env::BoxFuture;
use serde_json::{Value, json};

use super::faults::{Fate, Faults};
use super::{ApiServer, Change, Key, Refused, conflict, not_found, text};

/// How long the server keeps a watch open.
const WATCH: Duration = Duration::from_secs(290);

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;
type Failed = Box<dyn std::error::Error + Send + Sync>;

pub(crate) fn client(server: ApiServer, actor: String, faults: Faults) -> kube::Client {
    kube::Client::new(Served { server, actor, faults }, "default")
}

#[derive(Clone)]
struct Served {
    server: ApiServer,
    actor: String,
    faults: Faults,
}

impl tower::Service<Request<Body>> for Served {
    type Response = Answer;
    type Error = Failed;
    type Future = BoxFuture<'static, Result<Answer, Failed>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let served = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let is_write = head.method != Method::GET;
            // Leases are how replicas know of each other; a budget of writes is about the rest.
            let asked = Asked::read(&head.uri, head.method, &head.headers);
            let counts = is_write && !asked.key.resource.ends_with("leases");
            let is_status = asked.is_apply && asked.part == "status";
            let resource = match asked.watches {
                true => format!("watch {}", asked.key.resource),
                false => asked.key.resource.clone(),
            };
            let fate = served.faults.of_request(&resource, is_write, is_status, counts);
            let body = body.collect_bytes().await?;
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let refused_as = |code, reason| (code, reason, "a fault of the model".to_owned());
            let (delay, answers) = match fate {
                Fate::Dead => return Err("the operator was killed".into()),
                Fate::Refused(code, reason) => return Ok(refused(refused_as(code, reason))),
                Fate::Hangs { is_done } => {
                    if is_done {
                        let _ = served.carry_out(&asked, &body);
                    }
                    std::future::pending().await
                }
                Fate::TimesOut(delay, code, reason) => {
                    (delay, Some(Some(refused_as(code, reason))))
                }
                Fate::Answered(delay) => (delay, Some(None)),
                Fate::NotAnswered(delay) => (delay, None),
            };
            // Half of the time goes by before it is carried out, so that others come in between.
            tokio::time::sleep(delay / 2).await;
            if served.faults.is_dead() {
                return Err("the operator was killed".into());
            }
            let is_defined =
                served.server.with(|state| !state.undefined.contains(&asked.key.resource));
            let answer = match asked.watches {
                _ if !is_defined => not_served(),
                true => watched(&served, &asked),
                false => served.carry_out(&asked, &body).map_or_else(refused, answered),
            };
            tokio::time::sleep(delay - delay / 2).await;
            match answers.filter(|_| !served.faults.is_dead()) {
                Some(None) => Ok(answer),
                Some(Some(instead)) => Ok(refused(instead)),
                None => Err("the connection ended before the answer came".into()),
            }
        })
    }
}

/// What a request asks for.
struct Asked {
    method: Method,
    key: Key,
    group_version: String,
    /// `status`, or nothing.
    part: String,
    query: BTreeMap<String, String>,
    watches: bool,
    is_apply: bool,
}

impl Asked {
    fn read(uri: &http::Uri, method: Method, headers: &http::HeaderMap) -> Self {
        let query: BTreeMap<String, String> = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), unescaped(value)))
            .collect();
        let parts: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            rest => ("", "", rest),
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let (plural, name, part) = match rest {
            [plural] => (*plural, "", ""),
            [plural, name] => (*plural, *name, ""),
            [plural, name, part, ..] => (*plural, *name, *part),
            [] => ("", "", ""),
        };
        let content = headers.get(http::header::CONTENT_TYPE);
        let is_apply = content.is_some_and(|kind| kind.as_bytes().ends_with(b"apply-patch+yaml"));
        Self {
            watches: query.get("watch").is_some_and(|watch| watch == "true"),
            method,
            key: Key::new(&format!("{group}/{plural}"), namespace, name),
            group_version: if group.is_empty() {
                version.to_owned()
            } else {
                format!("{group}/{version}")
            },
            part: part.to_owned(),
            query,
            is_apply,
        }
    }

    /// Whether an object is among those that are asked for.
    fn selects(&self, key: &Key, object: &Value) -> bool {
        let labels = self.query.get("labelSelector").map(String::as_str).unwrap_or_default();
        let fields = self.query.get("fieldSelector").map(String::as_str).unwrap_or_default();
        let label = |wanted: &str| {
            let (name, value) = match wanted.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (wanted, None),
            };
            let has = object["metadata"]["labels"].get(name).and_then(Value::as_str);
            has.is_some() && (value.is_none() || has == value)
        };
        let field = |wanted: &str| {
            wanted.split_once('=').is_some_and(|(path, value)| {
                text(object, &format!("/{}", path.replace('.', "/"))) == Some(value)
            })
        };
        let all = |list: &str, holds: &dyn Fn(&str) -> bool| {
            list.split(',').filter(|each| !each.is_empty()).all(holds)
        };
        key.resource == self.key.resource
            && (self.key.namespace.is_empty() || self.key.namespace == key.namespace)
            && all(labels, &label)
            && all(fields, &field)
    }
}

/// A value of a query, without its percent signs.
fn unescaped(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| char::from(byte.unwrap_or_default()).to_digit(16);
        match byte {
            b'%' => {
                let (high, low) = (digit(rest.next()), digit(rest.next()));
                bytes.push(u8::try_from(high.unwrap_or(0) * 16 + low.unwrap_or(0)).unwrap_or(b'?'));
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Served {
    fn carry_out(&self, asked: &Asked, body: &Value) -> Result<Value, Refused> {
        let key = &asked.key;
        let is_told = ["/leases", "/events"].iter().any(|end| key.resource.ends_with(end));
        if asked.method != Method::GET && !is_told {
            self.server.with(|state| state.asked += 1);
        }
        if key.resource == "/version" {
            return Ok(version());
        }
        if key.resource.ends_with('/') {
            let mut all = resources(&asked.group_version);
            let is_served = |it: &Value| {
                let resource = format!("{}{}", key.resource, it["name"].as_str().unwrap_or(""));
                self.server.with(|state| !state.undefined.contains(&resource))
            };
            if let Some(all) = all["resources"].as_array_mut() {
                all.retain(is_served);
            }
            return Ok(all);
        }
        if key.resource == "/namespaces" && self.server.get(key).is_none() {
            return Ok(
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": key.name}}),
            );
        }
        let tries = asked.query.get("dryRun").is_some_and(|it| it == "All");
        match asked.method {
            Method::GET if key.name.is_empty() => {
                if key.resource.starts_with("letterbox.dev/") {
                    let namespace = key.namespace.clone();
                    self.server.with(|state| *state.lists.entry(namespace).or_default() += 1);
                }
                Ok(self.list(asked))
            }
            Method::GET => self.server.get(key).ok_or_else(|| not_found(key)),
            Method::POST => {
                let name = text(body, "/metadata/name").unwrap_or_default();
                let key = Key { name: name.to_owned(), ..key.clone() };
                if tries && self.server.get(&key).is_none() {
                    return Ok(body.clone());
                }
                self.server.create(&self.actor, &key, body.clone())
            }
            Method::PUT => self.replace(key, body, tries),
            Method::PATCH => self
                .server
                .with(|state| state.patch(&self.actor, key, &asked.part, body, asked.is_apply)),
            Method::DELETE => {
                let precondition = |name: &str| text(body, &format!("/preconditions/{name}"));
                let (uid, version) = (precondition("uid"), precondition("resourceVersion"));
                if body["dryRun"] == json!(["All"]) {
                    return self.server.get(key).ok_or_else(|| not_found(key));
                }
                self.server.delete(&self.actor, key, uid, version)
            }
            _ => Err((405, "MethodNotAllowed", String::new())),
        }
    }

    fn list(&self, asked: &Asked) -> Value {
        let number = |name: &str| asked.query.get(name).and_then(|it| it.parse::<usize>().ok());
        let limit = number("limit").unwrap_or(usize::MAX);
        let from = number("continue").unwrap_or(0);
        let selected = self.server.all(&asked.key.resource).into_iter();
        let mut rest = selected.filter(|(key, object)| asked.selects(key, object)).skip(from);
        let items: Vec<Arc<Value>> = rest.by_ref().take(limit).map(|(_, object)| object).collect();
        let more = rest.next().map(|_| (from + items.len()).to_string());
        let version = self.server.changes_since(u64::MAX).1.to_string();
        json!({
            "apiVersion": asked.group_version, "kind": "List",
            "metadata": {"resourceVersion": version, "continue": more.unwrap_or_default()},
            "items": items,
        })
    }

    fn replace(&self, key: &Key, body: &Value, tries: bool) -> Result<Value, Refused> {
        self.server.with(|state| {
            let live = state.object(key).ok_or_else(|| not_found(key))?;
            let version = "/metadata/resourceVersion";
            if text(body, version).is_some() && text(body, version) != text(&live, version) {
                return Err(conflict("another version is there"));
            }
            if tries {
                return Ok(body.clone());
            }
            let mut object = body.clone();
            object["metadata"]["uid"] = live["metadata"]["uid"].clone();
            Ok(state.store(&self.actor, key, Some(object.clone())).unwrap_or(object))
        })
    }
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "34", "gitVersion": "v1.34.0", "gitCommit": "", "gitTreeState": "",
        "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
    })
}

fn resources(group_version: &str) -> Value {
    let resource = |name: &str| json!({"name": name, "singularName": "", "namespaced": true, "kind": "", "verbs": []});
    json!({
        "kind": "APIResourceList", "groupVersion": group_version,
        "resources": [resource("kafkaclusters"), resource("kafkatopics")],
    })
}

fn once(code: u16, value: &Value) -> Answer {
    let body = Bytes::from(value.to_string());
    let body = http_body_util::Full::new(body).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
    answer
}

/// What a path is answered with that nothing is at.
fn not_served() -> Answer {
    let mut answer =
        Response::new(http_body_util::Full::new(Bytes::from("404 page not found")).boxed_unsync());
    *answer.status_mut() = http::StatusCode::NOT_FOUND;
    answer
}

fn answered(value: Value) -> Answer {
    once(200, &value)
}

fn refused((code, reason, message): Refused) -> Answer {
    once(
        code,
        &json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        }),
    )
}

/// A stream of what changes after the version that is asked for.
fn watched(served: &Served, asked: &Asked) -> Answer {
    let from = asked.query.get("resourceVersion").and_then(|version| version.parse().ok());
    let asked = Asked {
        method: asked.method.clone(),
        key: asked.key.clone(),
        group_version: String::new(),
        part: String::new(),
        query: asked.query.clone(),
        watches: true,
        is_apply: false,
    };
    let ends = tokio::time::Instant::now() + WATCH;
    let state = Watch { served: served.clone(), asked, version: from.unwrap_or(0), ends };
    let events = stream::unfold(state, |mut watch| async move {
        let lines = watch.next().await?;
        Some((stream::iter(lines), watch))
    });
    let frames: BoxStream<'static, Result<Frame<Bytes>, Infallible>> =
        events.flatten().map(|line| Ok(Frame::data(line))).boxed();
    Response::new(StreamBody::new(frames).boxed_unsync())
}

struct Watch {
    served: Served,
    asked: Asked,
    version: u64,
    ends: tokio::time::Instant,
}

impl Watch {
    /// The next events; `None` when the watch ends.
    async fn next(&mut self) -> Option<Vec<Bytes>> {
        let mut newest = self.served.server.version.subscribe();
        let from = self.version;
        let is_newer = newest.wait_for(|version| *version > from);
        tokio::time::timeout_at(self.ends, is_newer).await.ok()?.ok()?;
        match self.served.faults.of_event() {
            Ok(None) => return None,
            Ok(Some(delay)) => tokio::time::sleep(delay).await,
            Err(()) => {
                tokio::time::sleep_until(self.ends).await;
                return None;
            }
        }
        let (changes, version) = self.served.server.changes_since(self.version);
        self.version = version;
        Some(changes.iter().filter_map(|change| self.event(change)).collect())
    }

    fn event(&self, Change { key, before, after, .. }: &Change) -> Option<Bytes> {
        let selected = |object: &Option<Arc<Value>>| {
            object.clone().filter(|object| self.asked.selects(key, object))
        };
        let (type_, object) = match (selected(before), selected(after)) {
            (None, Some(after)) => ("ADDED", after),
            (Some(_), Some(after)) => ("MODIFIED", after),
            (Some(before), None) => ("DELETED", before),
            (None, None) => return None,
        };
        Some(Bytes::from(format!("{}\n", json!({"type": type_, "object": object}))))
    }
}
