//! A client that commits offsets of several groups without a pause, and deletes the groups now and
//! then, also while a commit is under way. The group's offsets expire meanwhile when the broker's
//! clock jumps.

use std::collections::BTreeMap;
use std::time::Duration;

use letterbox_client::{Client, CommittedOffset, Error, ErrorCode, TopicPartition};
use tokio::time::sleep;

use super::{Broken, Load, PAUSE, SETTLED};
use crate::rng::Rng;

const GROUPS: u64 = 4;

/// Commits for partition 0 of the load's topic until the load ends. What was acknowledged last is
/// found, unless it has expired: the broker's clock has jumped since it was committed. Answers with
/// how often it was.
///
/// # Errors
/// What is not as it must be, in words.
pub async fn committer(load: Load, broken: Broken) -> Result<u64, String> {
    let mut rng = Rng::new(load.env.random_u64());
    let (mut offset, mut found_again) = (0, 0);
    while let Some(client) = load.client().await {
        while !load.is_over() {
            let group = format!("committers-{}", rng.below(GROUPS));
            offset += 1;
            let jumps = broken.jumps();
            // Whatever comes first, the group is deleted or has this commit; the next one is on its
            // own.
            let deletes = rng.percent(10);
            let (committed, deleted) =
                tokio::join!(commit(&client, &load.topic, &group, offset), async {
                    if deletes { delete(&client, &group).await } else { Ok(()) }
                });
            let found = match committed.and(deleted) {
                Ok(()) => client.list_group_offsets(&group, None).await,
                Err(error) => Err(error),
            };
            match found {
                Ok(found) => {
                    let found = found
                        .get(&TopicPartition::new(load.topic.clone(), 0))
                        .map(|committed| committed.offset);
                    if found != Some(offset)
                        && !(found.is_none() && (deletes || jumps != broken.jumps()))
                    {
                        return Err(format!("group {group}: committed {offset}, found {found:?}"));
                    }
                    found_again += u64::from(found.is_some());
                }
                Err(error) => {
                    tracing::debug!(%error, "committer begins anew");
                    // What has no answer may be carried out until then, after what comes next.
                    sleep(SETTLED).await;
                    break;
                }
            }
            sleep(Duration::from_millis(rng.below(30))).await;
        }
        sleep(PAUSE).await;
    }
    Ok(found_again)
}

async fn commit(client: &Client, topic: &str, group: &str, offset: i64) -> Result<(), Error> {
    let committed = CommittedOffset { offset, leader_epoch: -1, metadata: String::new() };
    let offsets = BTreeMap::from([(TopicPartition::new(topic, 0), committed)]);
    for outcome in client.alter_group_offsets(group, &offsets).await?.into_values() {
        outcome.map_err(Error::from)?;
    }
    Ok(())
}

async fn delete(client: &Client, group: &str) -> Result<(), Error> {
    match client.delete_groups(&[group.to_owned()]).await.remove(group) {
        Some(Err(error)) if error.code() != Some(ErrorCode::GroupIdNotFound) => Err(error),
        _ => Ok(()),
    }
}
