//! Offsets that nobody uses any more, and groups without them, are removed (KIP-211).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Shard;
use crate::coordinator::group::{Completion, Group, Now, Output, Write};
use crate::coordinator::records::{OffsetAndMetadata, OffsetKey, Record};
use crate::coordinator::timers::TimerKey;

/// Tombstones of one write: far below any sensible `max.message.bytes`.
const TOMBSTONES_PER_WRITE: usize = 500;

fn tombstones<'a>(
    group: &'a Arc<str>,
    topic: &'a Arc<str>,
    offsets: &'a BTreeMap<i32, OffsetAndMetadata>,
) -> impl Iterator<Item = Record> + 'a {
    let key = |partition: &i32| OffsetKey { group: group.clone(), topic: topic.clone(), partition: *partition };
    offsets.keys().map(move |partition| Record::Offset { key: key(partition), value: None })
}

fn write(tombstones: &[Record], out: &mut Output) {
    for records in tombstones.chunks(TOMBSTONES_PER_WRITE) {
        let then = Completion::Apply { records: records.to_vec(), reply: None };
        out.writes.push(Write { records: records.to_vec(), then });
    }
}

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
        write(&tombstones, out);
        self.arm_expiry(now);
    }

    /// Topics were deleted: their offsets go, or the groups would pass over the first records of topics that get these names later.
    pub fn forget_topics(&self, topics: &[Arc<str>]) -> Output {
        let mut gone = Vec::new();
        for (group, of_group) in &self.offsets {
            for (topic, offsets) in topics.iter().filter_map(|topic| of_group.get_key_value(topic)) {
                gone.extend(tombstones(group, topic, offsets));
            }
        }
        let mut out = Output::default();
        write(&gone, &mut out);
        out
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
        topics.flat_map(|(topic, offsets)| tombstones(group, topic, offsets)).collect()
    }
}
