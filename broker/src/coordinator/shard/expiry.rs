//! Offsets that nobody uses any more, and groups without them, are removed (KIP-211).

use std::sync::Arc;

use super::Shard;
use crate::coordinator::group::{Completion, Group, Now, Output, Write};
use crate::coordinator::records::{OffsetAndMetadata, OffsetKey, Record};
use crate::coordinator::timers::TimerKey;

/// Tombstones of one write: far below any sensible `max.message.bytes`.
const TOMBSTONES_PER_WRITE: usize = 500;

impl Shard {
    pub(super) fn arm_expiry(&mut self, now: Now) {
        let deadline = now.mono_ms.saturating_add(self.config.offsets_retention_check_interval_ms.max(1));
        self.timers.set(TimerKey::Expiry, deadline);
    }

    pub(super) fn expire(&mut self, now: Now, out: &mut Output) {
        let mut tombstones = Vec::new();
        for (id, group) in &self.groups {
            let expired = self.expired_offsets(group, now);
            let all = expired.len() == self.offsets.get(id).map_or(0, |topics| topics.values().map(|offsets| offsets.len()).sum());
            tombstones.extend(expired.into_iter().map(|key| Record::Offset { key, value: None }));
            if all && group.is_unused() {
                tombstones.push(Record::Group { group: id.clone(), value: None });
            }
        }
        for records in tombstones.chunks(TOMBSTONES_PER_WRITE) {
            let then = Completion::Apply { records: records.to_vec(), reply: None };
            out.writes.push(Write { records: records.to_vec(), then });
        }
        self.arm_expiry(now);
    }

    fn expired_offsets(&self, group: &Group, now: Now) -> Vec<OffsetKey> {
        let is_expired = |offset: &OffsetAndMetadata| match (group.expiry_base_ms(offset.commit_timestamp_ms), offset.expire_timestamp_ms) {
            (None, _) => false,
            (Some(_), Some(expire_ms)) => now.wall_ms >= expire_ms,
            (Some(base_ms), None) => now.wall_ms.saturating_sub(base_ms) >= self.config.offsets_retention_ms,
        };
        let topics = self.offsets.get(group.id()).into_iter().flatten().filter(|(topic, _)| !group.is_subscribed_to(topic));
        topics
            .flat_map(|(topic, offsets)| offsets.iter().map(move |(partition, offset)| (topic, *partition, offset)))
            .filter(|(_, _, offset)| is_expired(offset))
            .map(|(topic, partition, _)| OffsetKey { group: group.id().clone(), topic: topic.clone(), partition })
            .collect()
    }

    /// The tombstones that remove every offset of a group.
    pub(super) fn offset_tombstones(&self, group: &Arc<str>) -> Vec<Record> {
        let topics = self.offsets.get(group).into_iter().flatten();
        topics
            .flat_map(|(topic, offsets)| offsets.keys().map(move |partition| (topic, *partition)))
            .map(|(topic, partition)| Record::Offset {
                key: OffsetKey { group: group.clone(), topic: topic.clone(), partition },
                value: None,
            })
            .collect()
    }
}
