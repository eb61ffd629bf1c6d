//! Says how many partitions have another leader, and which restart leases begin and end.

use crate::metadata::{MetadataImage, MetadataRecord, RestartLease};

/// Says what `records`, decided on `image`, change of who leads.
pub(super) fn tell(image: &MetadataImage, records: &[MetadataRecord]) {
    let (moved, without_leader) = moved(image, records);
    if moved + without_leader > 0 {
        tracing::info!(moved, without_leader, "partition leaders changed");
    }
    for record in records {
        match record {
            MetadataRecord::RestartLease(lease) => {
                let is_known = |known: &RestartLease| known.grant == lease.grant;
                if !image.lease(&lease.holder).is_some_and(is_known) {
                    let (holder, brokers) = (&lease.holder, lease.brokers.keys());
                    let seconds = lease.for_ms / 1_000;
                    tracing::info!(holder, ?brokers, seconds, "restart lease granted");
                }
            }
            MetadataRecord::EndRestartLease(record) => {
                tracing::info!(holder = record.holder, "restart lease ended");
            }
            _ => {}
        }
    }
}

/// Partitions that another broker leads than before, and that nobody leads any more.
fn moved(image: &MetadataImage, records: &[MetadataRecord]) -> (usize, usize) {
    let (mut moved, mut without_leader) = (0, 0);
    for record in records {
        let MetadataRecord::Partition(record) = record else { continue };
        let topic = image.topic_by_id(&record.topic_id);
        let Some(before) = topic.and_then(|topic| topic.partition(record.partition)) else {
            continue;
        };
        match (before.leader, record.state.leader) {
            (before, after) if before == after => {}
            (_, Some(_)) => moved += 1,
            (_, None) => without_leader += 1,
        }
    }
    (moved, without_leader)
}

#[cfg(test)]
mod tests {
    use letterbox_protocol::model::{BrokerId, TopicId};

    use super::*;
    use crate::metadata::record::{PartitionRecord, TopicRecord};
    use crate::metadata::{PartitionState, apply};

    #[test]
    fn new_partitions_have_moved_no_lead() {
        let id = TopicId::from_u128(7);
        let led = |index, leader: Option<i32>| {
            let ids = [BrokerId(1), BrokerId(2)];
            let state = PartitionState {
                replicas: ids.into(),
                isr: if leader.is_some() { ids.into() } else { [].into() },
                last_known_elr: if leader.is_some() { [].into() } else { [ids[0]].into() },
                leader: leader.map(BrokerId),
                leader_epoch: 1,
                ..PartitionState::default()
            };
            MetadataRecord::Partition(PartitionRecord { topic_id: id, partition: index, state })
        };
        let topic = MetadataRecord::Topic(TopicRecord { name: "t".to_owned(), id });
        let records = [topic, led(0, Some(1)), led(1, Some(1)), led(2, Some(1)), led(3, None)];
        let image = apply(&MetadataImage::default(), 1, &records).unwrap();
        let next = [led(0, Some(2)), led(1, Some(1)), led(2, None), led(3, Some(1)), led(4, None)];
        assert_eq!(moved(&image, &next), (2, 1));
    }
}
