//! What the broker tells Prometheus: one table of names, served on the admin port.
//!
//! Counters that Kafka has keep the names its users' dashboards know (the JMX exporter's spelling
//! as in Strimzi's rules); what Kafka has no name for begins with `letterbox_`.

mod details;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64};

use letterbox_protocol::apis::{APIS, Api};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry, Unit};

pub(crate) use self::details::{
    Details, GroupOffset, PARTITIONS_MAX, PartitionDetails, TopicDetails,
};
use self::details::{DetailsCollector, Totals};

/// The label of per-API metrics.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ApiLabel {
    /// The API's name: `Produce`, `Fetch`, …
    pub request: &'static str,
}

/// The label of errors.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ErrorLabel {
    /// The API's name.
    pub request: &'static str,
    /// Kafka's error name.
    pub error: &'static str,
}

/// The label of ended connections.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    /// Why the connection was closed.
    pub reason: &'static str,
}

/// The label of the node's state in the metadata quorum.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct StateLabel {
    /// Kafka's word for it.
    pub current_state: &'static str,
}

/// What is counted of each request to one API.
pub(crate) struct OfApi {
    /// See [`Metrics::requests`].
    pub requests: Counter,
    /// See [`Metrics::request_seconds`].
    pub seconds: Histogram,
}

/// Every metric of the broker.
pub(crate) struct Metrics {
    table: Table,
    /// By API key.
    of_apis: Vec<OnceLock<OfApi>>,
    details: DetailsCollector,
    bytes_in: Counter,
    bytes_out: Counter,
    /// Records appended by clients.
    pub messages_in: Counter,
    /// Bytes of records appended by clients.
    pub produce_bytes: Counter,
    /// Bytes of records sent to consumers.
    pub fetch_bytes: Counter,
    /// Batches that clients sent.
    pub produced: Counter,
    /// Those of them that were answered with an error.
    pub produce_failed: Counter,
    /// Partitions in answers to Fetch.
    pub fetched: Counter,
    /// Those of them with an error.
    pub fetch_failed: Counter,
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
    /// The end of the metadata log here.
    pub metadata_end: Gauge<i64, AtomicI64>,
    /// The term of the metadata quorum.
    pub quorum_epoch: Gauge<i64, AtomicI64>,
    /// Who leads it; −1 for nobody.
    pub quorum_leader: Gauge<i64, AtomicI64>,
    /// Whom this node has voted for; −1 for nobody.
    pub quorum_vote: Gauge<i64, AtomicI64>,
    quorum_state: Family<StateLabel, Gauge<i64, AtomicI64>>,
    /// Leaders elected without knowing that they have every committed record.
    pub unclean_elections: Counter,
    /// Connections that a panic ended.
    pub panics: Counter,
    /// Fetch sessions of consumers.
    pub fetch_sessions: Gauge<i64, AtomicI64>,
    /// Partitions in them.
    pub session_partitions: Gauge<i64, AtomicI64>,
    /// Bytes that clients make the broker hold.
    pub client_memory_used: Gauge<f64, AtomicU64>,
    /// Their bound.
    pub client_memory_size: Gauge<f64, AtomicU64>,
    /// Bytes in the tail cache of all logs.
    pub tail_cache_used: Gauge<f64, AtomicU64>,
    /// Bytes of the keys that compaction has in memory.
    pub compaction_memory: Gauge<f64, AtomicU64>,
    /// Decoders at work apart from the threads that serve connections.
    pub decoders: Gauge<i64, AtomicI64>,
    /// Files that answers keep open.
    pub answer_files: Gauge<i64, AtomicI64>,
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
    /// As they appear in a scrape, each with its type, labels and meaning.
    #[cfg_attr(not(test), allow(dead_code, reason = "the reference page is made by a test"))]
    rows: Vec<(String, MetricType, &'static str, &'static str)>,
}

impl Table {
    fn add(
        &mut self,
        name: &'static str,
        unit: Option<Unit>,
        labels: &'static str,
        help: &'static str,
        metric: &(impl Metric + Clone),
    ) {
        let unit_name = unit.iter().map(|unit| format!("_{}", unit.as_str())).collect::<String>();
        self.rows.push((format!("{name}{unit_name}"), metric.metric_type(), labels, help));
        match unit {
            Some(unit) => self.registry.register_with_unit(name, help, unit, metric.clone()),
            None => self.registry.register(name, help, metric.clone()),
        }
    }
}

#[cfg(test)]
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
    pub(crate) fn new() -> Self {
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
            produced: totals.produced.clone(),
            produce_failed: totals.produce_failed.clone(),
            fetched: totals.fetched.clone(),
            fetch_failed: totals.fetch_failed.clone(),
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
            metadata_end: Gauge::default(),
            quorum_epoch: Gauge::default(),
            quorum_leader: Gauge::default(),
            quorum_vote: Gauge::default(),
            quorum_state: Family::default(),
            unclean_elections: Counter::default(),
            panics: Counter::default(),
            fetch_sessions: Gauge::default(),
            session_partitions: Gauge::default(),
            client_memory_used: Gauge::default(),
            client_memory_size: Gauge::default(),
            tail_cache_used: Gauge::default(),
            compaction_memory: Gauge::default(),
            decoders: Gauge::default(),
            answer_files: Gauge::default(),
            request_memory_free: Gauge::default(),
            group_members_memory: Gauge::default(),
            group_offsets_memory: Gauge::default(),
            details: DetailsCollector::new(totals),
            table: Table::default(),
            of_apis: (0..=APIS.last().map_or(0, |api| api.key)).map(|_| OnceLock::new()).collect(),
        };
        table.registry.register_collector(Box::new(this.details.clone()));
        this.register(&mut table);
        Self { table, ..this }
    }

    /// Name, unit, labels and meaning of each, and what counts it; rows of single topics, partitions
    /// and groups are in `details`.
    #[rustfmt::skip]
    fn register(&self, r: &mut Table) {
        const BYTES: Option<Unit> = Some(Unit::Bytes);
        r.add("kafka_network_requestmetrics_requests", None, "request", "Requests by API", &self.requests);
        r.add("kafka_network_requestmetrics_errors", None, "request, error", "Answers that carry an error, by API and error", &self.errors);
        r.add("kafka_server_fetchsessioncache_numincrementalfetchpartitionscached", None, "", "Partitions in fetch sessions of consumers", &self.session_partitions);
        r.add("kafka_server_fetchsessioncache_numincrementalfetchsessions", None, "", "Fetch sessions of consumers; at most max.incremental.fetch.session.cache.slots", &self.fetch_sessions);
        r.add("kafka_server_socket_server_metrics_connection_count", None, "", "Open client connections", &self.connections);
        r.add("kafka_server_replicamanager_partitioncount", None, "", "Partitions kept by this broker", &self.partitions);
        r.add("kafka_server_replicamanager_leadercount", None, "", "Partitions led by this broker", &self.leaders);
        r.add("kafka_server_replicamanager_offlinereplicacount", None, "", "Partitions whose log cannot be written", &self.offline);
        r.add("kafka_log_logmanager_offlinelogdirectorycount", None, "", "Log directories out of use", &self.offline_dirs);
        r.add("kafka_controller_kafkacontroller_activecontrollercount", None, "", "1 while this node leads the metadata quorum", &self.active_controller);
        r.add("kafka_server_raftmetrics_high_watermark", None, "", "Metadata entries applied by this node", &self.metadata_offset);
        r.add("kafka_server_raftmetrics_log_end_offset", None, "", "Metadata entries in the log of this node", &self.metadata_end);
        r.add("kafka_server_raftmetrics_current_epoch", None, "", "Epoch of the metadata quorum", &self.quorum_epoch);
        r.add("kafka_server_raftmetrics_current_leader", None, "", "node.id of the leader of the metadata quorum; -1 while none is known", &self.quorum_leader);
        r.add("kafka_server_raftmetrics_current_vote", None, "", "node.id that this node has voted for in this epoch; -1 for none", &self.quorum_vote);
        r.add("kafka_server_raftmetrics_current_state", None, "current_state", "1 for what this node is in the metadata quorum: leader, follower, candidate, voted, unattached or observer", &self.quorum_state);
        r.add("kafka_controller_controllerstats_uncleanleaderelections", None, "", "Leaders that this node elected as the active controller, since its start, without knowing that they have every committed record", &self.unclean_elections);
        r.add("letterbox_request_duration", Some(Unit::Seconds), "request", "Time from the last byte of a request to its response, by API", &self.request_seconds);
        r.add("letterbox_network_received", BYTES, "", "Bytes read from clients", &self.bytes_in);
        r.add("letterbox_network_sent", BYTES, "", "Bytes written to clients", &self.bytes_out);
        r.add("letterbox_connections_closed", None, "reason", "Connections closed by the broker, by reason", &self.closed);
        r.add("letterbox_panics", None, "", "Panics that ended a connection", &self.panics);
        r.add("letterbox_request_memory_free", BYTES, "", "Memory left for requests and answers (queued.max.request.bytes)", &self.request_memory_free);
        r.add("letterbox_group_members_memory", BYTES, "", "Memory of groups with their members' metadata and assignments; past 134217728 new members are told to retry", &self.group_members_memory);
        r.add("letterbox_group_offsets_memory", BYTES, "", "Memory of committed offsets; past 536870912 commits that add to it are told to retry", &self.group_offsets_memory);
        r.add("letterbox_client_memory_used", BYTES, "", "Memory that clients hold: requests, answers that they have not read, and fetch sessions", &self.client_memory_used);
        r.add("letterbox_client_memory_limit", BYTES, "", "Bound of letterbox_client_memory_used (queued.max.request.bytes)", &self.client_memory_size);
        r.add("letterbox_compaction_memory", BYTES, "", "Memory of the keys that compaction remembers, at most log.cleaner.dedupe.buffer.size", &self.compaction_memory);
        r.add("letterbox_decoders", None, "", "Large batches that are unpacked now, to be checked or to look up a time; at most one for each CPU", &self.decoders);
        r.add("letterbox_answer_files", None, "", "Files that answers to Fetch keep open until they are read; past a sixteenth of the open files that the process may have, an answer has copies or the file of one large batch", &self.answer_files);
        r.add("letterbox_tail_cache_used", BYTES, "", "Memory for the newest batches of all logs", &self.tail_cache_used);
    }

    /// What the next scrape tells of single topics and partitions.
    pub(crate) fn show(&self, details: Details) {
        self.details.show(details);
    }

    /// This node is that in the metadata quorum, and nothing else.
    pub(crate) fn show_quorum_state(&self, current_state: &'static str) {
        self.quorum_state.clear();
        self.quorum_state.get_or_create(&StateLabel { current_state }).set(1);
    }

    /// Looked up by its name once: that takes longer than to count.
    pub(crate) fn of_api(&self, api: &Api) -> Option<&OfApi> {
        let of_api = self.of_apis.get(usize::try_from(api.key).ok()?)?;
        Some(of_api.get_or_init(|| {
            let label = ApiLabel { request: api.name };
            let requests = self.requests.get_or_create_owned(&label);
            OfApi { requests, seconds: self.request_seconds.get_or_create_owned(&label) }
        }))
    }

    /// Counts an error in an answer to `request`.
    pub(crate) fn answered_with(&self, request: &'static str, error: &'static str) {
        self.errors.get_or_create(&ErrorLabel { request, error }).inc();
    }

    /// Counts what came in from a client.
    pub(crate) fn bytes_received(&self, bytes: u64) {
        self.bytes_in.inc_by(bytes);
    }

    /// Counts what went out to a client.
    pub(crate) fn bytes_sent(&self, bytes: u64) {
        self.bytes_out.inc_by(bytes);
    }

    /// What [`Metrics::bytes_sent`] counts in.
    #[must_use]
    pub(crate) fn bytes_sent_counter(&self) -> Counter {
        self.bytes_out.clone()
    }

    /// The whole table in OpenMetrics text.
    #[must_use]
    pub(crate) fn render(&self) -> String {
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
    /// `LETTERBOX_UPDATE=1 cargo test --workspace --lib the_reference_page` writes it.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "a page of the repository")]
    fn the_reference_page_is_the_table() {
        let of_details = details::rows();
        let of_details = of_details.map(|(name, kind, of, help)| (name.to_owned(), kind, of, help));
        let mut rows: Vec<_> = Metrics::new().table.rows.into_iter().chain(of_details).collect();
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        let mut page = String::from(INTRODUCTION);
        for (name, kind, labels, help) in rows {
            let kind = kind_name(kind);
            let name = if kind == "counter" { format!("{name}_total") } else { name };
            page += &format!("| `{name}` | {kind} | {labels} | {help} |\n");
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let found = std::fs::read_to_string(path).unwrap_or_default();
        // The operator writes its own section.
        page += found.find("\n## ").and_then(|at| found.get(at..)).unwrap_or_default();
        if std::env::var_os("LETTERBOX_UPDATE").is_some() {
            std::fs::write(path, &page).unwrap();
        } else {
            assert!(
                found == page,
                "docs/metrics.md is not what the table says; see CONTRIBUTING.md"
            );
        }
    }

    #[test]
    fn each_metric_has_the_labels_that_its_row_says() {
        let metrics = Metrics::new();
        metrics.requests.get_or_create(&ApiLabel { request: "Fetch" }).inc();
        metrics.request_seconds.get_or_create(&ApiLabel { request: "Fetch" }).observe(1.0);
        metrics.answered_with("Fetch", "NONE");
        metrics.closed.get_or_create(&ReasonLabel { reason: "idle" }).inc();
        metrics.show_quorum_state("follower");
        metrics.show_quorum_state("leader");
        let text = metrics.render();
        assert!(!text.contains("\"follower\""), "{text}");
        for (name, kind, labels, _) in &metrics.table.rows {
            let behind = match kind_name(*kind) {
                "counter" => "_total",
                "histogram" => "_sum",
                _ => "",
            };
            let sample =
                text.lines().find_map(|line| line.strip_prefix(&format!("{name}{behind}")));
            let sample = sample.unwrap_or_else(|| panic!("{name} is not told: {text}"));
            let names = sample.split('{').nth(1).into_iter().flat_map(|of| of.split(','));
            let names: Vec<&str> = names.filter_map(|one| Some(one.split_once('=')?.0)).collect();
            assert_eq!(names.join(", "), *labels, "{name}");
        }
    }

    const INTRODUCTION: &str = "\
# Metrics

Every broker serves these as OpenMetrics text at `http://HOST:9644/metrics` (`admin.listener`). Names that Apache Kafka has are spelled
as in the JMX exporter's rules that Strimzi's dashboards use; `kafka_brokers`, `kafka_topic_*` and `kafka_consumergroup_*` are those of
kafka_exporter, which need not run beside the broker. What neither has a name for begins with `letterbox_`. Metrics by topic
and partition cover the partitions that the broker leads, at most 4,000; those by group cover the groups that it coordinates, at most 4,000 of
them and 4,000 offsets. Of the labels, `request` is the API's name and `error` Kafka's name of an error.

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
            produce_failed: 2,
            spare_in_sync: Some(0),
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
            brokers: vec![(3, "[::1]:9092".into())],
            group_offsets,
            group_members: [("a".into(), 2)].into(),
            ..Details::default()
        });
        let text = metrics.render();
        for line in [
            "kafka_server_brokertopicmetrics_messagesin_total 7",
            "kafka_server_brokertopicmetrics_messagesin_total{topic=\"orders\"} 6",
            "kafka_server_brokertopicmetrics_failedproducerequests_total{topic=\"orders\"} 4",
            "kafka_cluster_partition_atminisr{topic=\"orders\",partition=\"1\"} 1",
            "kafka_cluster_partition_underminisr{topic=\"orders\",partition=\"1\"} 0",
            "kafka_brokers 1",
            "kafka_broker_info{id=\"3\",address=\"[::1]:9092\"} 1",
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
        for _ in 0..2 {
            let of_api = metrics.of_api(letterbox_protocol::apis::find(0).unwrap()).unwrap();
            of_api.requests.inc();
            of_api.seconds.observe(1.0);
        }
        assert!(APIS.iter().all(|api| metrics.of_api(api).is_some()));
        let text = metrics.render();
        assert!(text.contains("kafka_server_brokertopicmetrics_messagesin_total 3\n"), "{text}");
        for line in [
            "kafka_network_requestmetrics_requests_total{request=\"Produce\"} 2\n",
            "letterbox_request_duration_seconds_count{request=\"Produce\"} 2\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
