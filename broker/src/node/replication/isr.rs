//! Asking the controller for the ISRs that leaders want: all in one operation, one under way
//! (AlterPartition, KIP-497).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use letterbox_protocol::ErrorCode;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Shared;
use crate::metadata::PartitionState;
use crate::metadata::decide::{AlterIsr, IsrChange, IsrMember, ItemResult};
use crate::replication::fetcher::Key;
use crate::replication::leader::{ISR_ATTEMPT_MAX, IsrAnswer};
use crate::replication::outbox::IsrWish;

/// Partitions in one operation: a broker that comes back joins all that it has at once. What they
/// and their states take, written down, is far within what one operation may be.
const TOGETHER_MAX: usize = 10_000;
/// How soon what has no answer is asked again.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Goes on until `stop`.
pub(super) async fn ask(shared: Arc<Shared>, stop: CancellationToken) {
    let outbox = shared.replicas.outbox();
    loop {
        let wishes = outbox.take_isr(TOGETHER_MAX);
        let work = async {
            if wishes.is_empty() {
                outbox.isr.notified().await;
            } else if !ask_for(&shared, wishes).await {
                tokio::time::sleep(RETRY_AFTER).await;
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = work => {}
        }
    }
}

/// Tells whether every wish has an answer.
async fn ask_for(shared: &Shared, wishes: BTreeMap<Key, IsrWish>) -> bool {
    let change = |((topic_id, partition), wish): (&Key, &IsrWish)| IsrChange {
        topic_id: *topic_id,
        partition: *partition,
        leader_epoch: wish.epoch,
        partition_epoch: wish.partition_epoch,
        isr: wish.isr.iter().map(|(id, epoch)| IsrMember { id: *id, epoch: *epoch }).collect(),
    };
    let operation = AlterIsr {
        broker: shared.me.id,
        broker_epoch: shared.me.epoch,
        changes: wishes.iter().map(change).collect(),
    };
    let outcome = match shared.controller.run_within(operation, ISR_ATTEMPT_MAX).await {
        Ok(done) => done.outcome,
        Err(error) => {
            debug!(%error, partitions = wishes.len(), "no answer to a change of the ISR");
            Vec::new()
        }
    };
    let mut outcome = outcome.into_iter();
    let mut has_all = true;
    for (key, wish) in wishes {
        // Of a change that was made the metadata tells.
        let answer =
            outcome.next().map_or(Some(IsrAnswer::Unknown), |result| said(shared, &key, &result));
        has_all &= answer != Some(IsrAnswer::Unknown);
        if let (Some(answer), Some(partition)) = (answer, shared.replicas.hosted(&key)) {
            partition.isr_answered(wish, answer);
        }
    }
    has_all
}

fn said(
    shared: &Shared,
    (topic_id, partition): &Key,
    result: &ItemResult<PartitionState>,
) -> Option<IsrAnswer> {
    let image = shared.replicas.image();
    let topic = image.topic_by_id(topic_id).map_or("(deleted)", |topic| &topic.name);
    match result {
        Ok(state) => {
            let isr: Vec<i32> = state.isr.iter().map(|id| id.0).collect();
            info!(topic, partition, ?isr, "changed the ISR");
            None
        }
        Err(error) => Some(match error.code {
            ErrorCode::IneligibleReplica => IsrAnswer::Refused,
            ErrorCode::InvalidUpdateVersion
            | ErrorCode::FencedLeaderEpoch
            | ErrorCode::UnknownTopicId
            | ErrorCode::UnknownTopicOrPartition => IsrAnswer::Superseded,
            _ => {
                warn!(topic, partition, %error, "the controller refuses a change of the ISR");
                IsrAnswer::Unknown
            }
        }),
    }
}
