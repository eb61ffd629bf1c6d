//! What an operator has in memory does not follow from what others write into objects: labels,
//! annotations and managed fields of any size, and configurations from before there were bounds.
//!
//! One test alone, because it measures its process.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on has failed"
)]

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response};
use kube::client::Body;
use letterbox_env::Env;
use letterbox_operator::controller::{self, Options};
use serde_json::{Value, json};

const TOPICS: usize = 300;
/// Just below what etcd takes.
const LARGE: usize = 1_400_000;
/// The chart's limit is 256 MiB. The server that plays here is in the same process.
const PEAK_MAX_KIB: u64 = 160 << 10;

/// The topic of this number, as large as it may be: by what stands around its spec, or, every
/// second one, by its configuration.
fn topic(number: usize) -> Value {
    let words = "x".repeat(LARGE / 4);
    let (metadata, config) = match number % 2 {
        0 => (
            json!({
                "labels": {"a": words}, "annotations": {"b": words, "c": words},
                "managedFields": [{"manager": words, "operation": "Update"}],
            }),
            json!({"retention.ms": "1000"}),
        ),
        _ => (json!({}), json!({"a": words, "b": words, "c": words, "d": words})),
    };
    let mut topic = json!({
        "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaTopic", "metadata": metadata,
        "spec": {"clusterRef": {"name": "none"}, "config": config},
    });
    for (field, value) in [
        ("name", json!(format!("t{number}"))),
        ("namespace", json!("ns")),
        ("uid", json!(format!("{number}"))),
        ("resourceVersion", json!("7")),
        ("generation", json!(1)),
    ] {
        topic["metadata"][field] = value;
    }
    topic
}

/// Answers as an API server would, and notes which topics were told something.
async fn answer(request: Request<Body>, told: Arc<Mutex<BTreeSet<String>>>) -> Value {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let number = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse::<usize>().ok())
    };
    if query.contains("watch=") {
        std::future::pending::<()>().await;
    }
    let mut list = json!({
        "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "7"}, "items": [],
    });
    match path.rsplit('/').next().unwrap_or_default() {
        "v1alpha1" => {
            let resource = |name: &str| json!({"name": name, "singularName": "", "namespaced": true, "kind": "", "verbs": []});
            json!({
                "kind": "APIResourceList", "groupVersion": "letterbox.dev/v1alpha1",
                "resources": [resource("kafkaclusters"), resource("kafkatopics")],
            })
        }
        "kafkatopics" => {
            let from = number("continue").unwrap_or(0);
            let to = number("limit").map_or(TOPICS, |limit| TOPICS.min(from + limit));
            list["items"] = (from..to).map(topic).collect();
            if to < TOPICS {
                list["metadata"]["continue"] = json!(to.to_string());
            }
            list
        }
        "status" if request.method() == Method::PATCH => {
            let name = path.rsplit('/').nth(1).unwrap_or_default().to_owned();
            let metadata = json!({"name": name, "namespace": "ns", "resourceVersion": "8"});
            told.lock().unwrap().insert(name);
            json!({
                "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaTopic", "metadata": metadata,
                "spec": {"clusterRef": {"name": "none"}},
            })
        }
        _ => list,
    }
}

/// The most that this process has had in memory.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn hundreds_of_the_largest_objects_stay_within_the_charts_memory() {
    let told = Arc::new(Mutex::new(BTreeSet::new()));
    let noted = told.clone();
    let server = tower::service_fn(move |request: Request<Body>| {
        let told = noted.clone();
        async move {
            let answer = answer(request, told).await;
            Ok::<_, Infallible>(Response::new(Body::from(answer.to_string().into_bytes())))
        }
    });
    let options = Options {
        image: "letterbox:1".into(),
        namespaces: vec!["ns".into()],
        listen: ("127.0.0.1".into(), 0),
        lease: None,
    };
    let client = kube::Client::new(server, "ns");
    let operator = tokio::spawn(controller::run(Env::real(), client, options));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
    while told.lock().unwrap().len() < TOPICS {
        assert!(tokio::time::Instant::now() < deadline, "{} told", told.lock().unwrap().len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    operator.abort();
    let peak = peak_kib();
    println!("{TOPICS} topics of {LARGE} bytes: a peak of {} MiB", peak >> 10);
    assert!(peak < PEAK_MAX_KIB, "a peak of {} MiB", peak >> 10);
}
