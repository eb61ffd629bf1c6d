//! Says which partitions are led by somebody who may miss acknowledged records, and which ones
//! nobody leads until a person says who.

use crate::metadata::{Election, MetadataImage, MetadataRecord, PartitionState};

/// Partitions that one line names; a power cut may make it thousands.
const NAMED_MAX: usize = 20;

/// Says what `records`, decided on `image`, elect without knowing that it has every committed
/// record, and how many those are.
pub(super) fn tell(image: &MetadataImage, records: &[MetadataRecord]) -> usize {
    let mut count = 0_usize;
    for (election, why) in [
        (
            Election::LastKnown,
            "no replica is known to have every acknowledged record, and the last leader was \
             elected although it may lack some: it did not wait for the disk (flush.on.ack=false), \
             its disk or a loss in it was accepted, or it was unregistered meanwhile",
        ),
        (
            Election::Unclean,
            "no live replica is known to have every acknowledged record, and another one was \
             elected: the records that it lacks are lost (unclean.leader.election.enable, or an \
             unclean election was requested)",
        ),
    ] {
        let named = elected(image, records, election);
        count = count.saturating_add(named.len());
        if !named.is_empty() {
            tracing::warn!(partitions = named.len(), first = first(&named), "{why}");
        }
    }
    let named = waiting(image, records);
    if !named.is_empty() {
        tracing::error!(
            partitions = named.len(),
            first = first(&named),
            "no leader: no replica is known to have every acknowledged record, and of several it \
             is not known which has the most. kafka-leader-election --election-type unclean elects \
             the first one of the assignment that is there; what that one misses is lost, and what \
             the others have is set aside or cut. See docs/offline-partitions.md for how to choose"
        );
    }
    count
}

fn first(named: &[String]) -> String {
    named.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Those that wait for a person from now on, each with who may have the most.
fn waiting(image: &MetadataImage, records: &[MetadataRecord]) -> Vec<String> {
    let of_one = |record: &MetadataRecord| {
        let MetadataRecord::Partition(record) = record else { return None };
        let topic = image.topic_by_id(&record.topic_id)?;
        let waited =
            topic.partition(record.partition).is_some_and(PartitionState::waits_for_a_person);
        (record.state.waits_for_a_person() && !waited).then(|| {
            let ids = record.state.last_known_elr.iter().map(ToString::to_string);
            let (name, index) = (&topic.name, record.partition);
            format!("{name}-{index} (replicas {})", ids.collect::<Vec<_>>().join(","))
        })
    };
    records.iter().filter_map(of_one).collect()
}

/// Each with who leads and in which epoch.
fn elected(image: &MetadataImage, records: &[MetadataRecord], election: Election) -> Vec<String> {
    let of_one = |record: &MetadataRecord| {
        let MetadataRecord::Partition(record) = record else { return None };
        let PartitionState { leader, leader_epoch, election: how, .. } = record.state;
        let topic = image.topic_by_id(&record.topic_id)?;
        let was_led_so = topic
            .partition(record.partition)
            .is_some_and(|before| before.leader_epoch == leader_epoch);
        (how == election && !was_led_so).then(|| {
            let (name, index) = (&topic.name, record.partition);
            format!("{name}-{index} by {} in epoch {leader_epoch}", leader.map_or(-1, |id| id.0))
        })
    };
    records.iter().filter_map(of_one).collect()
}

#[cfg(test)]
mod tests {
    use letterbox_protocol::model::{BrokerId, TopicId};

    use super::*;
    use crate::metadata::apply;
    use crate::metadata::record::{PartitionRecord, TopicRecord};

    #[test]
    fn an_unclean_election_is_named_once() {
        let id = TopicId::from_u128(7);
        let partition = |index, leader_epoch, election| {
            let replicas = [BrokerId(1), BrokerId(2)];
            let state = PartitionState {
                replicas: replicas.into(),
                isr: replicas.into(),
                leader: Some(BrokerId(2)),
                leader_epoch,
                election,
                ..PartitionState::default()
            };
            MetadataRecord::Partition(PartitionRecord { topic_id: id, partition: index, state })
        };
        let topic = MetadataRecord::Topic(TopicRecord { name: "t".to_owned(), id });
        let records = [
            topic,
            partition(0, 0, Election::Clean),
            partition(1, 4, Election::Unclean),
            partition(2, 0, Election::Clean),
        ];
        let image = apply(&MetadataImage::default(), 1, &records).unwrap();
        let next = [
            partition(0, 1, Election::Unclean),
            // Led so already: another in-sync replica is no election.
            partition(1, 4, Election::Unclean),
            partition(2, 1, Election::LastKnown),
        ];
        assert_eq!(elected(&image, &next, Election::Unclean), ["t-0 by 2 in epoch 1"]);
        assert_eq!(elected(&image, &next, Election::LastKnown), ["t-2 by 2 in epoch 1"]);
        assert_eq!((tell(&image, &next), tell(&image, &next[1..2])), (2, 0));
    }

    #[test]
    fn a_partition_that_waits_for_a_person_is_named_once() {
        let id = TopicId::from_u128(7);
        let state = |isr: &[BrokerId], last_known_elr: &[BrokerId]| PartitionState {
            replicas: [BrokerId(1), BrokerId(2)].into(),
            isr: isr.into(),
            leader: isr.first().copied(),
            last_known_elr: last_known_elr.into(),
            ..PartitionState::default()
        };
        let both = [BrokerId(1), BrokerId(2)];
        let led = state(&[BrokerId(1)], &[]);
        let partition = |partition, state: &PartitionState| {
            let state = state.clone();
            MetadataRecord::Partition(PartitionRecord { topic_id: id, partition, state })
        };
        let topic = MetadataRecord::Topic(TopicRecord { name: "t".to_owned(), id });
        let records =
            [topic, partition(0, &led), partition(1, &state(&[], &both)), partition(2, &led)];
        let image = apply(&MetadataImage::default(), 1, &records).unwrap();
        let next = [
            partition(0, &state(&[], &both)),
            // It did before.
            partition(1, &PartitionState { partition_epoch: 1, ..state(&[], &both) }),
            // The one that led last comes back by itself.
            partition(2, &state(&[], &both[..1])),
        ];
        assert_eq!(waiting(&image, &next), ["t-0 (replicas 1,2)"]);
    }
}
