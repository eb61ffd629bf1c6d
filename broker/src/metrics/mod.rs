//! What the broker tells Prometheus: one table of names, served on the admin port.
//!
//! Counters that Kafka has keep the names its users' dashboards know (the JMX exporter's spelling as in
//! Strimzi's rules); what Kafka has no name for begins with `letterbox_`.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

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
    registry: Registry,
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
    /// Bytes of all logs.
    pub log_bytes: Gauge<i64, AtomicI64>,
    /// 1 while this node leads the metadata quorum.
    pub active_controller: Gauge<i64, AtomicI64>,
    /// Applied metadata.
    pub metadata_offset: Gauge<i64, AtomicI64>,
    /// Free bytes of request memory.
    pub request_memory_free: Gauge<f64, AtomicU64>,
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
        let mut registry = Registry::default();
        let new_histogram: fn() -> Histogram =
            || Histogram::new([0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0]);
        let request_seconds = Family::new_with_constructor(new_histogram);
        let this = Self {
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            messages_in: Counter::default(),
            produce_bytes: Counter::default(),
            fetch_bytes: Counter::default(),
            requests: Family::default(),
            request_seconds,
            errors: Family::default(),
            connections: Gauge::default(),
            closed: Family::default(),
            partitions: Gauge::default(),
            leaders: Gauge::default(),
            offline: Gauge::default(),
            offline_dirs: Gauge::default(),
            log_bytes: Gauge::default(),
            active_controller: Gauge::default(),
            metadata_offset: Gauge::default(),
            request_memory_free: Gauge::default(),
            registry: Registry::default(),
        };
        let r = &mut registry;
        r.register("kafka_server_brokertopicmetrics_messagesin", "Records appended by clients", this.messages_in.clone());
        r.register("kafka_server_brokertopicmetrics_bytesin", "Bytes of records appended by clients", this.produce_bytes.clone());
        r.register("kafka_server_brokertopicmetrics_bytesout", "Bytes of records sent to consumers", this.fetch_bytes.clone());
        r.register("kafka_network_requestmetrics_requests", "Requests by API", this.requests.clone());
        r.register("kafka_network_requestmetrics_errors", "Answers that carry an error, by API and error", this.errors.clone());
        r.register("kafka_server_socket_server_metrics_connection_count", "Open client connections", this.connections.clone());
        r.register("kafka_server_replicamanager_partitioncount", "Partitions kept by this broker", this.partitions.clone());
        r.register("kafka_server_replicamanager_leadercount", "Partitions led by this broker", this.leaders.clone());
        r.register("kafka_server_replicamanager_offlinereplicacount", "Partitions whose log cannot be written", this.offline.clone());
        r.register("kafka_log_logmanager_offlinelogdirectorycount", "Log directories out of use", this.offline_dirs.clone());
        r.register("kafka_log_log_size", "Bytes of all logs of this broker", this.log_bytes.clone());
        r.register(
            "kafka_controller_kafkacontroller_activecontrollercount",
            "1 while this node leads the metadata quorum",
            this.active_controller.clone(),
        );
        r.register("kafka_server_raftmetrics_high_watermark", "Metadata entries applied by this node", this.metadata_offset.clone());
        r.register_with_unit(
            "letterbox_request_duration",
            "From a whole request to its answer, by API",
            Unit::Seconds,
            this.request_seconds.clone(),
        );
        r.register_with_unit("letterbox_network_received", "Bytes read from clients", Unit::Bytes, this.bytes_in.clone());
        r.register_with_unit("letterbox_network_sent", "Bytes written to clients", Unit::Bytes, this.bytes_out.clone());
        r.register("letterbox_connections_closed", "Connections closed by the broker, by reason", this.closed.clone());
        r.register_with_unit(
            "letterbox_request_memory_free",
            "Memory left for requests in flight (queued.max.request.bytes)",
            Unit::Bytes,
            this.request_memory_free.clone(),
        );
        Self { registry, ..this }
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

    /// The whole table in OpenMetrics text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::new();
        metrics.messages_in.inc_by(3);
        metrics.requests.get_or_create(&ApiLabel { request: "Produce" }).inc();
        let text = metrics.render();
        assert!(text.contains("kafka_server_brokertopicmetrics_messagesin_total 3\n"), "{text}");
        assert!(text.contains("kafka_network_requestmetrics_requests_total{request=\"Produce\"} 1\n"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
