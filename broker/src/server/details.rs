//! Reads what the metrics tell of single topics and partitions.

use std::collections::BTreeMap;
use std::sync::Arc;

use letterbox_env::join_address;
use letterbox_protocol::ErrorCode;

use super::Services;
use crate::metadata::{BrokerRegistration, PartitionState};
use crate::metrics::{Details, GroupOffset, PARTITIONS_MAX, PartitionDetails, TopicDetails};
use crate::replication::Partition;

/// Everything at this moment; partitions beyond [`PARTITIONS_MAX`] are counted, and nothing else is
/// told of them.
pub(super) fn read(services: &Services) -> Details {
    let image = services.image();
    let mut details = Details {
        brokers: image.live_brokers().map(|(id, broker)| (id.0, address_of(broker))).collect(),
        records_lost: services.replicas.outbox().lost(),
        ..Details::default()
    };
    let mut left = PARTITIONS_MAX;
    for topic in image.topics() {
        details.topic_count += 1;
        let mut of_topic = TopicDetails {
            name: topic.name.clone(),
            partitions_count: topic.partitions.len(),
            partitions: Vec::new(),
        };
        for (index, state) in topic.indexed_partitions() {
            details.partition_count += 1;
            let is_led = state.leader.is_some_and(|leader| image.is_live(leader));
            let found = services.replicas.partition(&topic.id, index);
            details.offline_partition_count +=
                usize::from(!is_led || matches!(found, Err(ErrorCode::KafkaStorageError)));
            let Ok(partition) = found else { continue };
            details.under_min_isr += usize::from(
                partition.in_sync_and_required().is_some_and(|(have, need)| have < need),
            );
            details.under_replicated += usize::from(state.isr.len() < state.replicas.len());
            match left.checked_sub(1) {
                Some(fewer) => {
                    left = fewer;
                    of_topic.partitions.extend(of_partition(index, state, &partition));
                }
                None => details.left_out += 1,
            }
        }
        if !of_topic.partitions.is_empty() {
            details.topics.push(of_topic);
        }
    }
    details.groups = services.groups.figures();
    let (mut members, mut left_out) = (BTreeMap::new(), 0);
    services.groups.each_group(|group, count| {
        if members.len() < PARTITIONS_MAX {
            members.insert(Arc::from(group), count);
        } else {
            left_out += 1;
        }
    });
    (details.group_members, details.groups_left_out) = (members, left_out);
    (details.group_offsets, details.group_offsets_left_out) = group_offsets(services);
    details
}

/// Committed offsets in partitions that are led from here, in order, and how many were left out.
fn group_offsets(services: &Services) -> (Vec<GroupOffset>, usize) {
    let (mut offsets, mut left_out) = (Vec::new(), 0);
    // Requests to the groups wait meanwhile: lags are looked up afterwards.
    services.groups.each_offset(|key, committed| {
        if offsets.len() < PARTITIONS_MAX {
            let (group, topic) = (key.group.clone(), key.topic.clone());
            offsets.push(GroupOffset {
                group,
                topic,
                partition: key.partition,
                offset: committed.offset,
                lag: 0,
            });
        } else {
            left_out += 1;
        }
    });
    let image = services.image();
    offsets.retain_mut(|one| {
        let led = image
            .topic(&one.topic)
            .and_then(|topic| services.replicas.partition(&topic.id, one.partition).ok());
        if let Some(partition) = &led {
            one.lag = partition.high_watermark().saturating_sub(one.offset).max(0);
        }
        led.is_some()
    });
    offsets.sort_unstable_by(|a, b| {
        (&a.group, &a.topic, a.partition).cmp(&(&b.group, &b.topic, b.partition))
    });
    (offsets, left_out)
}

/// Where clients reach a broker.
fn address_of(broker: &BrokerRegistration) -> String {
    broker.endpoints.first().map_or_else(String::new, |at| join_address(&at.host, at.port))
}

fn of_partition(
    index: i32,
    state: &PartitionState,
    partition: &Partition,
) -> Option<PartitionDetails> {
    let log = partition.log().ok()?;
    let traffic = partition.traffic.so_far();
    Some(PartitionDetails {
        index,
        records_in: traffic.records_in,
        bytes_in: traffic.bytes_in,
        bytes_out: traffic.bytes_out,
        produced: traffic.produced,
        produce_failed: traffic.produce_failed,
        fetched: traffic.fetched,
        fetch_failed: traffic.fetch_failed,
        spare_in_sync: partition.in_sync_and_required().map(|(have, need)| {
            i64::try_from(have).unwrap_or(0) - i64::try_from(need).unwrap_or(0)
        }),
        size: log.size(),
        segments: log.segments_count(),
        start: log.start_offset(),
        high_watermark: partition.high_watermark(),
        end: log.end_offset(),
        leader: state.leader.map_or(-1, |leader| leader.0),
        leader_is_preferred: state.leader.is_some()
            && state.leader == state.replicas.first().copied(),
        replicas: state.replicas.len(),
        in_sync: state.isr.len(),
    })
}
