//! What is told of single topics and partitions: read when a scrape asks for it, kept nowhere.
//!
//! The names are those of the JMX exporter's rules that Strimzi's dashboards use, and of
//! kafka_exporter, which then need not run beside the broker. Of at most [`PARTITIONS_MAX`]
//! partitions, and as many committed offsets and groups, anything is told, so that a scrape stays
//! small.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;

use crate::coordinator::GroupFigures;

/// Partitions that one scrape tells of, the first by topic name; and committed offsets, and groups.
pub(crate) const PARTITIONS_MAX: usize = 4_000;

/// One topic with partitions that are led from here.
#[derive(Clone, Debug, Default)]
pub(crate) struct TopicDetails {
    /// Its name.
    pub name: Arc<str>,
    /// How many partitions it has in all.
    pub partitions_count: usize,
    /// Those led from here.
    pub partitions: Vec<PartitionDetails>,
}

/// One partition that is led from here.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PartitionDetails {
    /// Its index.
    pub index: i32,
    /// Records appended by clients since this broker leads it.
    pub records_in: u64,
    /// Bytes of them.
    pub bytes_in: u64,
    /// Bytes of records sent to consumers.
    pub bytes_out: u64,
    /// Batches that clients sent.
    pub produced: u64,
    /// Those of them that were answered with an error.
    pub produce_failed: u64,
    /// How often consumers were answered.
    pub fetched: u64,
    /// How often with an error.
    pub fetch_failed: u64,
    /// Replicas in sync beyond those that `acks=all` asks for; below 0 where they lack.
    pub spare_in_sync: Option<i64>,
    /// Bytes of its batches.
    pub size: u64,
    /// Segments of its log.
    pub segments: usize,
    /// Log start offset.
    pub start: i64,
    /// High watermark.
    pub high_watermark: i64,
    /// Log end offset.
    pub end: i64,
    /// The leader's id.
    pub leader: i32,
    /// Whether the leader is the first replica.
    pub leader_is_preferred: bool,
    /// Replicas.
    pub replicas: usize,
    /// Replicas in sync.
    pub in_sync: usize,
}

/// How far a group has read a partition that is led from here.
#[derive(Clone, Debug)]
pub(crate) struct GroupOffset {
    /// The group's id.
    pub group: Arc<str>,
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's index.
    pub partition: i32,
    /// The committed offset.
    pub offset: i64,
    /// Records from there to the high watermark.
    pub lag: i64,
}

/// All of it, at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Details {
    /// By name; cut to [`PARTITIONS_MAX`] partitions.
    pub topics: Vec<TopicDetails>,
    /// Partitions that were left out.
    pub left_out: usize,
    /// By group, topic and partition; cut to [`PARTITIONS_MAX`].
    pub group_offsets: Vec<GroupOffset>,
    /// Committed offsets that were left out.
    pub group_offsets_left_out: usize,
    /// Members by group; cut to [`PARTITIONS_MAX`].
    pub group_members: BTreeMap<Arc<str>, usize>,
    /// Groups that were left out.
    pub groups_left_out: usize,
    /// Groups, members and offsets.
    pub groups: GroupFigures,
    /// Brokers that are alive, and where each is reached.
    pub brokers: Vec<(i32, String)>,
    /// Topics of the cluster.
    pub topic_count: usize,
    /// Partitions of the cluster.
    pub partition_count: usize,
    /// Partitions of the cluster that nobody can write to: without a live leader, or with a log out
    /// of use here.
    pub offline_partition_count: usize,
    /// Partitions led from here with a replica that is not in sync.
    pub under_replicated: usize,
    /// Partitions led from here with fewer replicas in sync than `min.insync.replicas`.
    pub under_min_isr: usize,
    /// Idempotent producers with remembered state, counted once for each partition.
    pub producers: usize,
    /// Bytes of what is remembered of them.
    pub producers_memory: usize,
    /// Batches of new ones that were refused for lack of room.
    pub producers_refused: u64,
    /// Committed records that were cut here because the leader that was elected lacks them.
    pub records_lost: u64,
}

/// Of what a row tells.
enum Of {
    /// Whatever there is; also, without a label, of all topics together.
    TopicTotal(fn(&Totals) -> &Counter, fn(&PartitionDetails) -> u64),
    Topic(fn(&TopicDetails) -> i64),
    Partition(fn(&PartitionDetails) -> i64),
    GroupOffset(fn(&GroupOffset) -> i64),
    /// Of a group and a topic, over its partitions.
    GroupTopic(fn(&GroupOffset) -> i64),
    /// Of each broker that is alive: 1.
    EachBroker,
    /// Of a group: its members.
    Group(fn(usize) -> i64),
    Broker(fn(&Details) -> i64),
}

/// The counters of the broker as a whole: they go on counting what was counted for topics that are
/// gone.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    /// Records appended by clients.
    pub(super) messages_in: Counter,
    /// Bytes of records appended by clients.
    pub(super) bytes_in: Counter,
    /// Bytes of records sent to consumers.
    pub(super) bytes_out: Counter,
    /// Batches that clients sent.
    pub(super) produced: Counter,
    /// Those of them that were answered with an error.
    pub(super) produce_failed: Counter,
    /// Partitions in answers to Fetch.
    pub(super) fetched: Counter,
    /// Those of them with an error.
    pub(super) fetch_failed: Counter,
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn count(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

const BY_TOPIC: &str = "topic, or none for all topics together";

/// Name, of what, labels for the reference page, meaning.
const ROWS: &[(&str, Of, &str, &str)] = &[
    (
        "kafka_server_brokertopicmetrics_messagesin",
        Of::TopicTotal(|all| &all.messages_in, |one| one.records_in),
        BY_TOPIC,
        "Records appended by clients",
    ),
    (
        "kafka_server_brokertopicmetrics_bytesin",
        Of::TopicTotal(|all| &all.bytes_in, |one| one.bytes_in),
        BY_TOPIC,
        "Bytes of records appended by clients",
    ),
    (
        "kafka_server_brokertopicmetrics_bytesout",
        Of::TopicTotal(|all| &all.bytes_out, |one| one.bytes_out),
        BY_TOPIC,
        "Bytes of records sent to consumers",
    ),
    (
        "kafka_server_brokertopicmetrics_totalproducerequests",
        Of::TopicTotal(|all| &all.produced, |one| one.produced),
        BY_TOPIC,
        "Batches that clients sent, each of one partition",
    ),
    (
        "kafka_server_brokertopicmetrics_failedproducerequests",
        Of::TopicTotal(|all| &all.produce_failed, |one| one.produce_failed),
        BY_TOPIC,
        "Batches that were answered with an error; the value without a label includes topics that the broker does not have",
    ),
    (
        "kafka_server_brokertopicmetrics_totalfetchrequests",
        Of::TopicTotal(|all| &all.fetched, |one| one.fetched),
        BY_TOPIC,
        "Answers to consumers, each of one partition",
    ),
    (
        "kafka_server_brokertopicmetrics_failedfetchrequests",
        Of::TopicTotal(|all| &all.fetch_failed, |one| one.fetch_failed),
        BY_TOPIC,
        "Answers to consumers with an error; the value without a label includes topics that the broker does not have",
    ),
    (
        "kafka_cluster_partition_underminisr",
        Of::Partition(|one| i64::from(one.spare_in_sync.is_some_and(|spare| spare < 0))),
        "topic, partition",
        "1 while fewer replicas are in sync than min.insync.replicas",
    ),
    (
        "kafka_cluster_partition_atminisr",
        Of::Partition(|one| i64::from(one.spare_in_sync == Some(0))),
        "topic, partition",
        "1 while just as many replicas are in sync as min.insync.replicas asks for",
    ),
    (
        "kafka_log_log_size",
        Of::Partition(|one| gauge(one.size)),
        "topic, partition",
        "Bytes of the record batches of a log",
    ),
    (
        "kafka_log_log_numlogsegments",
        Of::Partition(|one| count(one.segments)),
        "topic, partition",
        "Segments of a log",
    ),
    (
        "kafka_log_log_logstartoffset",
        Of::Partition(|one| one.start),
        "topic, partition",
        "Log start offset",
    ),
    (
        "kafka_log_log_logendoffset",
        Of::Partition(|one| one.end),
        "topic, partition",
        "Log end offset",
    ),
    ("kafka_brokers", Of::Broker(|all| count(all.brokers.len())), "", "Brokers that are alive"),
    ("kafka_broker_info", Of::EachBroker, "id, address", "1 for each broker that is alive"),
    (
        "kafka_topic_partitions",
        Of::Topic(|topic| count(topic.partitions_count)),
        "topic",
        "Partitions of a topic",
    ),
    (
        "kafka_topic_partition_current_offset",
        Of::Partition(|one| one.high_watermark),
        "topic, partition",
        "High watermark: the offset that the next record to be seen by consumers gets",
    ),
    (
        "kafka_topic_partition_oldest_offset",
        Of::Partition(|one| one.start),
        "topic, partition",
        "Offset of the oldest record",
    ),
    (
        "kafka_topic_partition_leader",
        Of::Partition(|one| i64::from(one.leader)),
        "topic, partition",
        "Id of the leader",
    ),
    (
        "kafka_topic_partition_leader_is_preferred",
        Of::Partition(|one| i64::from(one.leader_is_preferred)),
        "topic, partition",
        "1 while the first replica leads",
    ),
    (
        "kafka_topic_partition_replicas",
        Of::Partition(|one| count(one.replicas)),
        "topic, partition",
        "Replicas",
    ),
    (
        "kafka_topic_partition_in_sync_replica",
        Of::Partition(|one| count(one.in_sync)),
        "topic, partition",
        "Replicas in sync",
    ),
    (
        "kafka_topic_partition_under_replicated_partition",
        Of::Partition(|one| i64::from(one.in_sync < one.replicas)),
        "topic, partition",
        "1 while a replica is not in sync",
    ),
    (
        "kafka_server_replicamanager_underreplicatedpartitions",
        Of::Broker(|all| count(all.under_replicated)),
        "",
        "Partitions led by this broker with a replica that is not in sync",
    ),
    (
        "kafka_server_replicamanager_underminisrpartitioncount",
        Of::Broker(|all| count(all.under_min_isr)),
        "",
        "Partitions led by this broker with fewer replicas in sync than min.insync.replicas",
    ),
    (
        "kafka_server_replicamanager_produceridcount",
        Of::Broker(|all| count(all.producers)),
        "",
        "Idempotent producers with remembered state, counted once for each partition",
    ),
    (
        "letterbox_replica_records_lost",
        Of::Broker(|all| i64::try_from(all.records_lost).unwrap_or(i64::MAX)),
        "",
        "Committed records that were cut from logs of this broker since its start, because the leader that was elected does not have them",
    ),
    (
        "kafka_controller_kafkacontroller_offlinepartitionscount",
        Of::Broker(|all| count(all.offline_partition_count)),
        "",
        "Partitions that no client can write to: they have no live leader, or their log is out of use",
    ),
    (
        "kafka_controller_kafkacontroller_globaltopiccount",
        Of::Broker(|all| count(all.topic_count)),
        "",
        "Topics of the cluster",
    ),
    (
        "kafka_controller_kafkacontroller_globalpartitioncount",
        Of::Broker(|all| count(all.partition_count)),
        "",
        "Partitions of the cluster",
    ),
    (
        "kafka_consumergroup_current_offset",
        Of::GroupOffset(|one| one.offset),
        "consumergroup, topic, partition",
        "Committed offset of a group",
    ),
    (
        "kafka_consumergroup_current_offset_sum",
        Of::GroupTopic(|one| one.offset),
        "consumergroup, topic",
        "Committed offsets of a group in all partitions of a topic together",
    ),
    (
        "kafka_consumergroup_lag",
        Of::GroupOffset(|one| one.lag),
        "consumergroup, topic, partition",
        "Records between the committed offset of a group and the high watermark",
    ),
    (
        "kafka_consumergroup_lag_sum",
        Of::GroupTopic(|one| one.lag),
        "consumergroup, topic",
        "Lag of a group in all partitions of a topic together",
    ),
    ("kafka_consumergroup_members", Of::Group(count), "consumergroup", "Members of a group"),
    (
        "kafka_coordinator_group_groupmetadatamanager_numgroups",
        Of::Broker(|all| {
            let figures = [
                all.groups.empty,
                all.groups.preparing_rebalance,
                all.groups.completing_rebalance,
                all.groups.stable,
            ];
            figures.into_iter().map(count).fold(0, i64::saturating_add)
        }),
        "",
        "Groups coordinated by this broker",
    ),
    (
        "kafka_coordinator_group_groupmetadatamanager_numgroupsempty",
        Of::Broker(|all| count(all.groups.empty)),
        "",
        "Groups without members",
    ),
    (
        "kafka_coordinator_group_groupmetadatamanager_numgroupspreparingrebalance",
        Of::Broker(|all| count(all.groups.preparing_rebalance)),
        "",
        "Groups that wait for their members to join",
    ),
    (
        "kafka_coordinator_group_groupmetadatamanager_numgroupscompletingrebalance",
        Of::Broker(|all| count(all.groups.completing_rebalance)),
        "",
        "Groups that wait for the assignment of their leader",
    ),
    (
        "kafka_coordinator_group_groupmetadatamanager_numgroupsstable",
        Of::Broker(|all| count(all.groups.stable)),
        "",
        "Groups whose members have their assignments",
    ),
    (
        "kafka_coordinator_group_groupmetadatamanager_numoffsets",
        Of::Broker(|all| count(all.groups.offsets)),
        "",
        "Committed offsets of the groups coordinated by this broker",
    ),
    (
        "letterbox_coordinator_group_members",
        Of::Broker(|all| count(all.groups.members)),
        "",
        "Members of the groups coordinated by this broker",
    ),
    (
        "letterbox_producers_memory_bytes",
        Of::Broker(|all| count(all.producers_memory)),
        "",
        "Memory of the state of idempotent producers; past 134217728 new ones are told to retry",
    ),
    (
        "letterbox_producers_batches_refused",
        Of::Broker(|all| gauge(all.producers_refused)),
        "",
        "Batches of new idempotent producers that were told to retry for lack of memory, since the start",
    ),
    (
        "letterbox_metrics_group_offsets_left_out",
        Of::Broker(|all| count(all.group_offsets_left_out)),
        "",
        "Committed offsets that this page leaves out, because there are more than 4000",
    ),
    (
        "letterbox_metrics_groups_left_out",
        Of::Broker(|all| count(all.groups_left_out)),
        "",
        "Groups whose members this page leaves out, because there are more than 4000",
    ),
    (
        "letterbox_metrics_partitions_left_out",
        Of::Broker(|all| count(all.left_out)),
        "",
        "Partitions led by this broker that this page leaves out, because there are more than 4000",
    ),
];

/// Name, type, labels and meaning of each row, for the reference page.
#[cfg(test)]
pub(super) fn rows() -> impl Iterator<Item = (&'static str, MetricType, &'static str, &'static str)>
{
    ROWS.iter().map(|(name, of, labels, help)| (*name, kind(of), *labels, *help))
}

fn kind(of: &Of) -> MetricType {
    if matches!(of, Of::TopicTotal(..)) { MetricType::Counter } else { MetricType::Gauge }
}

/// Writes the rows of the newest [`Details`] into a scrape.
#[derive(Clone, Debug, Default)]
pub(super) struct DetailsCollector {
    totals: Totals,
    newest: Arc<Mutex<Arc<Details>>>,
}

impl DetailsCollector {
    pub(super) fn new(totals: Totals) -> Self {
        Self { totals, newest: Arc::default() }
    }

    pub(super) fn show(&self, details: Details) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(details);
    }
}

impl Collector for DetailsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let details = self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, of, _, help) in ROWS {
            let mut out = encoder.encode_descriptor(name, help, None, kind(of))?;
            row(&mut out, &self.totals, &details, of)?;
        }
        Ok(())
    }
}

fn row(out: &mut MetricEncoder<'_>, totals: &Totals, details: &Details, of: &Of) -> fmt::Result {
    match of {
        Of::Broker(value) => out.encode_gauge(&value(details)),
        Of::TopicTotal(all, one) => {
            out.encode_counter::<NoLabelSet, u64, u64>(&all(totals).get(), None)?;
            details.topics.iter().try_for_each(|topic| {
                let sum: u64 = topic.partitions.iter().map(one).sum();
                out.encode_family(&[("topic", &*topic.name)])?
                    .encode_counter::<NoLabelSet, u64, u64>(&sum, None)
            })
        }
        Of::EachBroker => details.brokers.iter().try_for_each(|(id, address)| {
            out.encode_family(&[("id", &*id.to_string()), ("address", address)])?
                .encode_gauge(&1i64)
        }),
        Of::Topic(value) => details.topics.iter().try_for_each(|topic| {
            out.encode_family(&[("topic", &*topic.name)])?.encode_gauge(&value(topic))
        }),
        Of::GroupOffset(value) => details.group_offsets.iter().try_for_each(|one| {
            let index = one.partition.to_string();
            let labels = [
                ("consumergroup", &*one.group),
                ("topic", &*one.topic),
                ("partition", index.as_str()),
            ];
            out.encode_family(&labels)?.encode_gauge(&value(one))
        }),
        Of::GroupTopic(value) => {
            let same = |a: &GroupOffset, b: &GroupOffset| a.group == b.group && a.topic == b.topic;
            details.group_offsets.chunk_by(same).try_for_each(|of_topic| {
                let Some(first) = of_topic.first() else { return Ok(()) };
                let sum = of_topic.iter().map(value).fold(0, i64::saturating_add);
                out.encode_family(&[("consumergroup", &*first.group), ("topic", &*first.topic)])?
                    .encode_gauge(&sum)
            })
        }
        Of::Group(value) => details.group_members.iter().try_for_each(|(group, members)| {
            out.encode_family(&[("consumergroup", &**group)])?.encode_gauge(&value(*members))
        }),
        Of::Partition(value) => details.topics.iter().try_for_each(|topic| {
            topic.partitions.iter().try_for_each(|one| {
                let index = one.index.to_string();
                out.encode_family(&[("topic", &*topic.name), ("partition", index.as_str())])?
                    .encode_gauge(&value(one))
            })
        }),
    }
}
