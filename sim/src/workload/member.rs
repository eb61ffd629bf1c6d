//! A member of a consumer group that commits what it was handed out.

use std::collections::BTreeMap;
use std::time::Duration;

use letterbox_client::{
    AutoOffsetReset, Client, CommittedOffset, Consumer, ConsumerOptions, Error, GroupOptions,
    TopicPartition,
};
use tokio::time::sleep;

use super::reader::{position, read};
use super::{Load, PAUSE, Scribe};
use crate::history::{Action, Phase, Position};

/// Reads as a member of `group` until the load ends. After an error it joins anew, as a new member.
pub async fn member(load: Load, group: String, number: u64) {
    let mut scribe = Scribe::new(&load, format!("member-{number}"));
    while let Some(client) = load.client().await {
        if let Err(error) = belong(&load, &client, &group, &mut scribe).await {
            tracing::debug!(%error, number, "member joins anew");
        }
        sleep(PAUSE).await;
    }
}

async fn belong(
    load: &Load,
    client: &Client,
    group: &str,
    scribe: &mut Scribe,
) -> Result<(), Error> {
    let options = GroupOptions {
        session_timeout: Duration::from_secs(6),
        heartbeat_interval: Duration::from_millis(500),
        rebalance_timeout: Duration::from_secs(4),
        auto_commit: None,
        ..GroupOptions::new(group)
    };
    let options = ConsumerOptions {
        group: Some(options),
        offset_reset: AutoOffsetReset::Earliest,
        fetch_wait: Duration::from_millis(100),
        ..ConsumerOptions::default()
    };
    let mut consumer = Consumer::new(client, options);
    consumer.subscribe([load.topic.clone()])?;
    let mut joins = 0;
    while !load.is_over() {
        // Joins if it must, and hands out nothing that was not read before.
        let op = scribe.begin(Action::Poll { records: Vec::new() });
        let records = match consumer
            .poll(if consumer.joins() == joins && joins > 0 {
                Duration::from_millis(200)
            } else {
                Duration::ZERO
            })
            .await
        {
            Ok(records) => records,
            Err(error) => {
                scribe.end(
                    op,
                    Phase::Fail,
                    Action::Poll { records: Vec::new() },
                    Some(error.to_string()),
                );
                return Err(error);
            }
        };
        if consumer.joins() != joins {
            joins = consumer.joins();
            rebalanced(client, group, &consumer, scribe).await?;
        }
        scribe.end(
            op,
            Phase::Ok,
            Action::Poll { records: records.iter().map(read).collect() },
            None,
        );
        if !records.is_empty() {
            commit(group, &mut consumer, scribe).await?;
        }
    }
    // The members leave, so that the next one does not wait for them.
    consumer.close().await
}

/// Writes down what is owned from now on, and where the group says it goes on.
async fn rebalanced(
    client: &Client,
    group: &str,
    consumer: &Consumer,
    scribe: &mut Scribe,
) -> Result<(), Error> {
    let (generation, member) = consumer.group_identity().unwrap_or((-1, String::new()));
    let owned = consumer.assignment();
    let action = |partitions| Action::Rebalance {
        group: group.to_owned(),
        generation: generation.into(),
        member: member.clone(),
        partitions,
    };
    let op = scribe.begin(action(Vec::new()));
    let committed = if owned.is_empty() {
        BTreeMap::new()
    } else {
        client.list_group_offsets(group, Some(&owned)).await?
    };
    let place = |partition: &TopicPartition| {
        position(partition, committed.get(partition).map_or(-1, |committed| committed.offset))
    };
    scribe.end(op, Phase::Ok, action(owned.iter().map(place).collect()), None);
    Ok(())
}

async fn commit(group: &str, consumer: &mut Consumer, scribe: &mut Scribe) -> Result<(), Error> {
    let (generation, member) = consumer.group_identity().unwrap_or((-1, String::new()));
    let positions: BTreeMap<TopicPartition, i64> = consumer
        .assignment()
        .into_iter()
        .filter_map(|partition| Some((partition.clone(), consumer.position(&partition)?)))
        .collect();
    let offsets: Vec<Position> =
        positions.iter().map(|(partition, offset)| position(partition, *offset)).collect();
    let action = || Action::Commit {
        group: group.to_owned(),
        generation: generation.into(),
        member: member.clone(),
        offsets: offsets.clone(),
        reset: false,
    };
    let committed = positions.into_iter().map(|(partition, offset)| {
        (partition, CommittedOffset { offset, leader_epoch: -1, metadata: String::new() })
    });
    let op = scribe.begin(action());
    match consumer.commit_offsets(&committed.collect()).await {
        Ok(()) => scribe.end(op, Phase::Ok, action(), None),
        Err(error) => {
            // A retry may have met a refusal after the first attempt was carried out.
            scribe.end(op, Phase::Info, action(), Some(error.to_string()));
            return Err(error);
        }
    }
    Ok(())
}
