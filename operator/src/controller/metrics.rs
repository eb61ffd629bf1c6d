//! The operator's own metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::objects::NOT_UNDERSTOOD;

/// Which controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Labels {
    kind: &'static str,
}

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct WatchLabels {
    resource: String,
}

/// An object: kind, namespace, name.
pub(super) type Object = (&'static str, String, String);

/// Which object waits, and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct WaitLabels {
    kind: &'static str,
    namespace: String,
    name: String,
    reason: String,
}

/// Cheap to clone; clones count together.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    passes: Family<Labels, Counter>,
    faults: Family<Labels, Counter>,
    seconds: Family<Labels, Histogram>,
    not_ready: Family<WaitLabels, Gauge>,
    /// The reason that is told of each object that is not ready.
    reasons: Arc<Mutex<BTreeMap<Object, String>>>,
    leader: Gauge,
    refused_watches: Family<WatchLabels, Counter>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("letterbox_operator");
        let passes = Family::<Labels, Counter>::default();
        let faults = Family::<Labels, Counter>::default();
        let seconds = Family::<Labels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.001, 2.0, 14))
        });
        let not_ready = Family::<WaitLabels, Gauge>::default();
        let leader = Gauge::default();
        registry.register("reconciliations", "Reconciles of an object", passes.clone());
        registry.register(
            "reconciliation_faults",
            "Reconciles in which something failed",
            faults.clone(),
        );
        registry.register(
            "reconciliation_duration_seconds",
            "Duration of a reconcile",
            seconds.clone(),
        );
        registry.register(
            "not_ready",
            "1 for each object that is not ready, with the reason",
            not_ready.clone(),
        );
        let refused_watches = Family::<WatchLabels, Counter>::default();
        registry.register(
            "refused_watches",
            "Attempts at a watch that the API server refused",
            refused_watches.clone(),
        );
        registry.register("leader", "1 while this replica leads", leader.clone());
        Self {
            registry: Arc::new(registry),
            passes,
            faults,
            seconds,
            not_ready,
            reasons: Arc::default(),
            leader,
            refused_watches,
        }
    }

    pub(crate) fn count_refused_watch(&self, resource: &str) {
        let labels = WatchLabels { resource: resource.to_owned() };
        self.refused_watches.get_or_create(&labels).inc();
    }

    pub(crate) fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
        if !leads {
            self.forget_all();
        }
    }

    /// Forgets which objects are not ready: nobody here looks at them, or all are looked at anew.
    pub(crate) fn forget_all(&self) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        reasons.clear();
        self.not_ready.clear();
    }

    pub(crate) fn count_pass(&self, kind: &'static str, took: Duration, faulty: bool) {
        let labels = Labels { kind };
        self.passes.get_or_create(&labels).inc();
        self.seconds.get_or_create(&labels).observe(took.as_secs_f64());
        if faulty {
            self.faults.get_or_create(&labels).inc();
        }
    }

    /// Why an object is not ready; `None` when it is, or is gone.
    pub(crate) fn set_not_ready(
        &self,
        kind: &'static str,
        namespace: &str,
        name: &str,
        reason: Option<&str>,
    ) {
        let object = (kind, namespace.to_owned(), name.to_owned());
        let labels = |reason: &str| WaitLabels {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            reason: reason.to_owned(),
        };
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let old = match reason {
            Some(reason) => reasons.insert(object, reason.to_owned()),
            None => reasons.remove(&object),
        };
        if let Some(old) = old.filter(|old| Some(old.as_str()) != reason) {
            self.not_ready.remove(&labels(&old));
        }
        if let Some(reason) = reason {
            self.not_ready.get_or_create(&labels(reason)).set(1);
        }
    }

    /// Takes up that the operator does not know an object any more: it is gone, or cannot be read.
    /// Of one that cannot be read, that is told until it can be, or is gone.
    pub(crate) fn forget(&self, kind: &'static str, namespace: &str, name: &str) {
        let object = (kind, namespace.to_owned(), name.to_owned());
        let reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let is_unread = reasons.get(&object).is_some_and(|reason| reason == NOT_UNDERSTOOD);
        drop(reasons);
        if !is_unread {
            self.set_not_ready(kind, namespace, name, None);
        }
    }

    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, type, labels and meaning, as a scrape has them.
    fn rows() -> Vec<[String; 4]> {
        let metrics = Metrics::new();
        metrics.set_leader(true);
        metrics.count_pass("KafkaTopic", Duration::from_secs(1), true);
        metrics.count_refused_watch("pods");
        metrics.set_not_ready("KafkaTopic", "ns", "a", Some("InvalidConfig"));
        let text = metrics.text();
        let words = |line: &str| line.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()));
        let about =
            |what| text.lines().filter_map(move |line: &str| words(line.strip_prefix(what)?));
        let kinds: BTreeMap<_, _> = about("# TYPE ").collect();
        let row = |(name, help): (String, String)| {
            let kind = kinds[&name].clone();
            let behind = BTreeMap::from([("counter", "_total"), ("histogram", "_sum")]);
            let told = format!("{name}{}", behind.get(&*kind).unwrap_or(&""));
            let sample = text.lines().find_map(|line| line.strip_prefix(&told)).unwrap();
            let labels = sample.split('{').nth(1).into_iter().flat_map(|of| of.split(','));
            let labels: Vec<_> = labels.filter_map(|one| Some(one.split_once('=')?.0)).collect();
            let name = if kind == "counter" { told } else { name };
            [name, kind, labels.join(", "), help.trim_end_matches('.').to_owned()]
        };
        let mut rows: Vec<_> = about("# HELP ").map(row).collect();
        rows.sort();
        rows
    }

    /// `LETTERBOX_UPDATE=1 cargo test --workspace --lib the_reference_page` writes it.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "a page of the repository")]
    fn the_reference_page_has_a_section_of_the_operator() {
        const HEAD: &str = "\n## The operator\n\nIt serves these at port 8080, path `/metrics`.\n\n\
            | name | type | labels | meaning |\n|---|---|---|---|\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let found = std::fs::read_to_string(path).unwrap();
        let brokers = found.split_once("\n## ").map_or(&*found, |(brokers, _)| brokers);
        let row = |[name, kind, labels, help]: [String; 4]| {
            format!("| `{name}` | {kind} | {labels} | {help} |\n")
        };
        let page = format!("{brokers}{HEAD}{}", rows().into_iter().map(row).collect::<String>());
        if std::env::var_os("LETTERBOX_UPDATE").is_some() {
            std::fs::write(path, &page).unwrap();
        } else {
            assert!(found == page, "docs/metrics.md is not what is told; see CONTRIBUTING.md");
        }
    }

    #[test]
    fn an_object_is_told_under_one_reason_until_it_is_ready_or_gone() {
        let metrics = Metrics::new();
        let told = || {
            metrics
                .text()
                .lines()
                .filter(|line| line.starts_with("letterbox_operator_not_ready{"))
                .count()
        };
        metrics.set_not_ready("KafkaTopic", "ns", "a", Some("WaitingForCluster"));
        metrics.set_not_ready("KafkaTopic", "ns", "b", Some("WaitingForCluster"));
        metrics.set_not_ready("KafkaTopic", "ns", "a", Some("InvalidConfig"));
        assert_eq!(told(), 2, "{}", metrics.text());
        assert!(
            metrics.text().contains(r#"name="a",reason="InvalidConfig"} 1"#),
            "{}",
            metrics.text()
        );
        metrics.forget("KafkaTopic", "ns", "a");
        metrics.set_not_ready("KafkaTopic", "ns", "b", Some(NOT_UNDERSTOOD));
        metrics.forget("KafkaTopic", "ns", "b");
        assert_eq!(told(), 1, "it cannot be read, and is there");
        metrics.set_not_ready("KafkaTopic", "ns", "b", None);
        assert_eq!(told(), 0);
        metrics.set_leader(true);
        metrics.set_not_ready("KafkaTopic", "ns", "a", Some("InvalidConfig"));
        metrics.set_not_ready("KafkaTopic", "ns", "b", Some(NOT_UNDERSTOOD));
        assert_eq!(told(), 2);
        metrics.set_leader(false);
        assert_eq!(told(), 0, "another replica tells of them now");
    }
}
