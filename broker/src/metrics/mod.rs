//! What the broker tells Prometheus: one table of names, served on the admin port.
//!
//! Counters that Kafka has keep the names its users' dashboards know (the JMX exporter's spelling
//! as in Strimzi's rules); what Kafka has no name for begins with `letterbox_`.

mod details;

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry, Unit};

pub use self::details::{Details, GroupOffset, PARTITIONS_MAX, PartitionDetails, TopicDetails};
use self::details::{DetailsCollector, Totals};

/// The label of per-API metrics.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ApiLabel {
    /// The API's name: `Produce`, `Fetch`, …
    pub request: &'static str,
}

/// The label of errors.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ErrorLabel {
    /// The API's name.
    pub request: &'static str,
    /// Kafka's error name.
    pub error: &'static str,
}

/// The label of ended connections.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabel {
    /// Why the connection was closed.
    pub reason: &'static str,
}

/// Every metric of the broker.
pub struct Metrics {
    table: Table,
    details: DetailsCollector,
    bytes_in: Counter,
    bytes_out: Counter,
    /// Records appended by clients.
    pub messages_in: Counter,
    /// Bytes of records appended by clients.
    pub produce_bytes: Counter,
    /// Bytes of records sent to consumers.
    pub fetch_bytes: Counter,
    /// Requests by API.
    pub requests: Family<ApiLabel, Counter>,
    /// Seconds from a whole request to its whole answer.
    pub request_seconds: Family<ApiLabel, Histogram>,
    /// Answers that carry an error.
    pub errors: Family<ErrorLabel, Counter>,
    /// Open client connections.
    pub connections: Gauge,
    /// Connections closed by the broker.
    pub closed: Family<ReasonLabel, Counter>,
    /// Partitions kept here.
    pub partitions: Gauge<i64, AtomicI64>,
    /// Partitions led from here.
    pub leaders: Gauge<i64, AtomicI64>,
    /// Partitions whose log cannot be written.
    pub offline: Gauge<i64, AtomicI64>,
    /// Log directories that are out of use.
    pub offline_dirs: Gauge<i64, AtomicI64>,
    /// 1 while this node leads the metadata quorum.
    pub active_controller: Gauge<i64, AtomicI64>,
    /// Applied metadata.
    pub metadata_offset: Gauge<i64, AtomicI64>,
    /// Connections that a panic ended.
    pub panics: Counter,
    /// Bytes that clients make the broker hold.
    pub client_memory_used: Gauge<f64, AtomicU64>,
    /// Their bound.
    pub client_memory_size: Gauge<f64, AtomicU64>,
    /// Bytes in the tail cache of all logs.
    pub tail_cache_used: Gauge<f64, AtomicU64>,
    /// Free bytes of request memory.
    pub request_memory_free: Gauge<f64, AtomicU64>,
    /// Bytes that groups with their members hold.
    pub group_members_memory: Gauge<i64, AtomicI64>,
    /// Bytes that committed offsets hold.
    pub group_offsets_memory: Gauge<i64, AtomicI64>,
}

/// What is registered, and what the reference page says of it.
#[derive(Default)]
struct Table {
    registry: Registry,
    /// As they appear in a scrape, each with its type and meaning.
    #[cfg_attr(not(test), allow(dead_code, reason = "the reference page is made by a test"))]
    rows: Vec<(String, &'static str, &'static str)>,
}

impl Table {
    fn register(&mut self, name: &'static str, help: &'static str, metric: impl Metric) {
        self.note(name.to_owned(), metric.metric_type(), help);
        self.registry.register(name, help, metric);
    }

    fn register_with_unit(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Unit,
        metric: impl Metric,
    ) {
        self.note(format!("{name}_{}", unit.as_str()), metric.metric_type(), help);
        self.registry.register_with_unit(name, help, unit, metric);
    }

    fn note(&mut self, name: String, kind: MetricType, help: &'static str) {
        self.rows.push((name, kind_name(kind), help));
    }
}

fn kind_name(kind: MetricType) -> &'static str {
    match kind {
        MetricType::Counter => "counter",
        MetricType::Gauge => "gauge",
        MetricType::Histogram => "histogram",
        _ => "other",
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A table with everything at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut table = Table::default();
        let totals = Totals::default();
        let new_histogram: fn() -> Histogram = || {
            Histogram::new([
                0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
                10.0, 30.0,
            ])
        };
        let request_seconds = Family::new_with_constructor(new_histogram);
        let this = Self {
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            messages_in: totals.messages_in.clone(),
            produce_bytes: totals.bytes_in.clone(),
            fetch_bytes: totals.bytes_out.clone(),
            requests: Family::default(),
            request_seconds,
            errors: Family::default(),
            connections: Gauge::default(),
            closed: Family::default(),
            partitions: Gauge::default(),
            leaders: Gauge::default(),
            offline: Gauge::default(),
            offline_dirs: Gauge::default(),
            active_controller: Gauge::default(),
            metadata_offset: Gauge::default(),
            panics: Counter::default(),
            client_memory_used: Gauge::default(),
            client_memory_size: Gauge::default(),
            tail_cache_used: Gauge::default(),
            request_memory_free: Gauge::default(),
            group_members_memory: Gauge::default(),
            group_offsets_memory: Gauge::default(),
            details: DetailsCollector::new(totals),
            table: Table::default(),
        };
        table.registry.register_collector(Box::new(this.details.clone()));
        this.register_as_kafka(&mut table);
        this.register_own(&mut table);
        Self { table, ..this }
    }

    /// What Kafka has a name for.
    fn register_as_kafka(&self, r: &mut Table) {
        r.register(
            "kafka_network_requestmetrics_requests",
            "Requests by API",
            self.requests.clone(),
        );
        r.register(
            "kafka_network_requestmetrics_errors",
            "Answers that carry an error, by API and error",
            self.errors.clone(),
        );
        r.register(
            "kafka_server_socket_server_metrics_connection_count",
            "Open client connections",
            self.connections.clone(),
        );
        r.register(
            "kafka_server_replicamanager_partitioncount",
            "Partitions kept by this broker",
            self.partitions.clone(),
        );
        r.register(
            "kafka_server_replicamanager_leadercount",
            "Partitions led by this broker",
            self.leaders.clone(),
        );
        r.register(
            "kafka_server_replicamanager_offlinereplicacount",
            "Partitions whose log cannot be written",
            self.offline.clone(),
        );
        r.register(
            "kafka_log_logmanager_offlinelogdirectorycount",
            "Log directories out of use",
            self.offline_dirs.clone(),
        );
        r.register(
            "kafka_controller_kafkacontroller_activecontrollercount",
            "1 while this node leads the metadata quorum",
            self.active_controller.clone(),
        );
        r.register(
            "kafka_server_raftmetrics_high_watermark",
            "Metadata entries applied by this node",
            self.metadata_offset.clone(),
        );
    }

    /// What Kafka has no name for.
    fn register_own(&self, r: &mut Table) {
        r.register_with_unit(
            "letterbox_request_duration",
            "From a whole request to its answer, by API",
            Unit::Seconds,
            self.request_seconds.clone(),
        );
        r.register_with_unit(
            "letterbox_network_received",
            "Bytes read from clients",
            Unit::Bytes,
            self.bytes_in.clone(),
        );
        r.register_with_unit(
            "letterbox_network_sent",
            "Bytes written to clients",
            Unit::Bytes,
            self.bytes_out.clone(),
        );
        r.register(
            "letterbox_connections_closed",
            "Connections closed by the broker, by reason",
            self.closed.clone(),
        );
        r.register(
            "letterbox_panics",
            "Faults of the broker that ended the connection they were met on",
            self.panics.clone(),
        );
        self.register_memory(r);
    }

    fn register_memory(&self, r: &mut Table) {
        r.register_with_unit(
            "letterbox_request_memory_free",
            "Memory left for requests and answers (queued.max.request.bytes)",
            Unit::Bytes,
            self.request_memory_free.clone(),
        );
        r.register_with_unit(
            "letterbox_group_members_memory",
            "Memory of groups with their members' metadata and assignments; past 134217728 new \
            members are told to retry",
            Unit::Bytes,
            self.group_members_memory.clone(),
        );
        r.register_with_unit(
            "letterbox_group_offsets_memory",
            "Memory of committed offsets; past 536870912 commits that add to it are told to retry",
            Unit::Bytes,
            self.group_offsets_memory.clone(),
        );
        r.register_with_unit(
            "letterbox_client_memory_used",
            "Memory that clients hold: requests, and answers that they have not read",
            Unit::Bytes,
            self.client_memory_used.clone(),
        );
        r.register_with_unit(
            "letterbox_client_memory_limit",
            "Bound of letterbox_client_memory_used (queued.max.request.bytes)",
            Unit::Bytes,
            self.client_memory_size.clone(),
        );
        r.register_with_unit(
            "letterbox_tail_cache_used",
            "Memory for the newest batches of all logs",
            Unit::Bytes,
            self.tail_cache_used.clone(),
        );
    }

    /// What the next scrape tells of single topics and partitions.
    pub fn show(&self, details: Details) {
        self.details.show(details);
    }

    /// Counts an error in an answer to `request`.
    pub fn answered_with(&self, request: &'static str, error: &'static str) {
        self.errors.get_or_create(&ErrorLabel { request, error }).inc();
    }

    /// Counts what came in from a client.
    pub fn bytes_received(&self, bytes: u64) {
        self.bytes_in.inc_by(bytes);
    }

    /// Counts what went out to a client.
    pub fn bytes_sent(&self, bytes: u64) {
        self.bytes_out.inc_by(bytes);
    }

    /// What [`Metrics::bytes_sent`] counts in.
    #[must_use]
    pub fn bytes_sent_counter(&self) -> Counter {
        self.bytes_out.clone()
    }

    /// The whole table in OpenMetrics text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &self.table.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page as the table says it must be.
    /// `LETTERBOX_UPDATE=1 cargo test --workspace --lib metrics::` writes it.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "a page of the repository")]
    fn the_reference_page_is_the_table() {
        let mut rows: Vec<(String, &str, &str, &str)> = Metrics::new()
            .table
            .rows
            .into_iter()
            .map(|(name, kind, help)| (name, kind, "", help))
            .collect();
        rows.extend(
            details::rows()
                .map(|(name, kind, labels, help)| (name.to_owned(), kind_name(kind), labels, help)),
        );
        rows.sort();
        let mut page = String::from(INTRODUCTION);
        for (name, kind, labels, help) in rows {
            let name = if kind == "counter" { format!("{name}_total") } else { name };
            page += &format!("| `{name}` | {kind} | {labels} | {help} |\n");
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        if std::env::var_os("LETTERBOX_UPDATE").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            found == page,
            "docs/metrics.md is not what the table says; run LETTERBOX_UPDATE=1 cargo test --workspace \
             --lib metrics::"
        );
    }

    const INTRODUCTION: &str = "\
# Metrics

Every broker serves these as OpenMetrics text at `http://HOST:9644/metrics` (`admin.listener`). Names that Apache Kafka has are spelled
as in the JMX exporter's rules that Strimzi's dashboards use; `kafka_brokers`, `kafka_topic_*` and `kafka_consumergroup_*` are those of
kafka_exporter, which need not run beside the broker. What neither has a name for begins with `letterbox_`. Of single topics and
partitions a broker tells those that it leads, at most 4,000 partitions; of groups, those that it coordinates, at most 4,000 of them and 4,000
offsets. Labels of the other rows: `request` is the API's name, `error` Kafka's name of an error.

| name | type | labels | meaning |
|---|---|---|---|
";

    #[test]
    fn topics_and_partitions_are_told_apart() {
        let metrics = Metrics::new();
        metrics.messages_in.inc_by(7);
        let one = PartitionDetails {
            index: 1,
            records_in: 3,
            size: 512,
            replicas: 3,
            in_sync: 2,
            ..PartitionDetails::default()
        };
        let topic = TopicDetails {
            name: "orders".into(),
            partitions_count: 2,
            partitions: vec![one, PartitionDetails { index: 0, ..one }],
        };
        let offset = |group: &str, partition, lag| GroupOffset {
            group: group.into(),
            topic: "orders".into(),
            partition,
            offset: 10,
            lag,
        };
        let group_offsets = vec![offset("a", 0, 2), offset("a", 1, 3), offset("b\"\n", 0, 4)];
        metrics.show(Details {
            topics: vec![topic],
            under_replicated: 2,
            group_offsets,
            group_members: [("a".into(), 2)].into(),
            ..Details::default()
        });
        let text = metrics.render();
        for line in [
            "kafka_server_brokertopicmetrics_messagesin_total 7",
            "kafka_server_brokertopicmetrics_messagesin_total{topic=\"orders\"} 6",
            "kafka_log_log_size{topic=\"orders\",partition=\"1\"} 512",
            "kafka_topic_partitions{topic=\"orders\"} 2",
            "kafka_topic_partition_under_replicated_partition{topic=\"orders\",partition=\"0\"} 1",
            "kafka_server_replicamanager_underreplicatedpartitions 2",
            "kafka_consumergroup_lag{consumergroup=\"a\",topic=\"orders\",partition=\"1\"} 3",
            "kafka_consumergroup_members{consumergroup=\"a\"} 2",
            "kafka_consumergroup_lag_sum{consumergroup=\"a\",topic=\"orders\"} 5",
            "kafka_consumergroup_lag_sum{consumergroup=\"b\\\"\\n\",topic=\"orders\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::new();
        metrics.messages_in.inc_by(3);
        metrics.requests.get_or_create(&ApiLabel { request: "Produce" }).inc();
        let text = metrics.render();
        assert!(text.contains("kafka_server_brokertopicmetrics_messagesin_total 3\n"), "{text}");
        assert!(
            text.contains("kafka_network_requestmetrics_requests_total{request=\"Produce\"} 1\n"),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"));
    }
}
