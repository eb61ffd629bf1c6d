//! Offsets that nobody uses any more, and groups without them, are removed (KIP-211).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use letterbox_protocol::model::TopicId;

use super::{Shard, of_group, of_topic};
use crate::coordinator::group::{Group, Now, Output, TimerKey};
use crate::coordinator::records::{OffsetAndMetadata, OffsetKey, Record};

/// So many deleted topics are looked up in each group; for more, every offset is looked at once.
const LOOKED_UP_TOPICS_MAX: usize = 4;

fn tombstone(key: &OffsetKey) -> Record {
    Record::Offset { key: key.clone(), value: None }
}

fn tombstones<'a>(
    offsets: impl Iterator<Item = (&'a OffsetKey, &'a OffsetAndMetadata)>,
) -> Vec<Record> {
    offsets.map(|(key, _)| tombstone(key)).collect()
}

impl Shard {
    pub(super) fn arm_expiry(&mut self, now: Now) {
        let deadline =
            now.mono_ms.saturating_add(self.config.offsets_retention_check_interval_ms.max(1));
        self.timers.set(TimerKey::Expiry, deadline);
    }

    pub(super) fn expire(&mut self, now: Now, out: &mut Output) {
        let mut gone = Vec::new();
        for group in self.groups.values() {
            let (mut all, mut expired) = (0_usize, Vec::new());
            let mut subscriptions = None;
            for (key, offset) in self.offsets.latest_range(of_group(group.id())) {
                all = all.saturating_add(1);
                if self.is_past(group, offset, now)
                    && !subscriptions
                        .get_or_insert_with(|| group.subscriptions())
                        .may_read(&key.topic)
                {
                    expired.push(tombstone(key));
                }
            }
            let nothing_left = expired.len() == all;
            gone.append(&mut expired);
            if nothing_left && group.is_unused() {
                gone.push(Record::Group { group: group.id().clone(), value: None });
            }
        }
        self.remove(gone, None, now, out);
        self.arm_expiry(now);
    }

    /// Topics were deleted: their offsets go, or the groups would pass over the first records of one
    /// that gets the name later. Those of another topic of the name stay.
    pub(crate) fn forget_topics(&mut self, topics: &[(Arc<str>, TopicId)], now: Now) -> Output {
        let mut ids: BTreeMap<&str, Vec<TopicId>> = BTreeMap::new();
        for (topic, id) in topics {
            ids.entry(topic).or_default().push(*id);
        }
        let is_gone = |(key, offset): &(&OffsetKey, &OffsetAndMetadata)| {
            let ids = ids.get(&*key.topic).map_or(&[][..], Vec::as_slice);
            !ids.is_empty() && (offset.topic_id.is_nil() || ids.contains(&offset.topic_id))
        };
        let gone = if topics.len() <= LOOKED_UP_TOPICS_MAX {
            let pairs = ids.keys().flat_map(|topic| {
                let topic: Arc<str> = (*topic).into();
                self.groups.keys().map(move |group| of_topic(group, &topic))
            });
            let found = pairs.flat_map(|range| self.offsets.latest_range(range));
            tombstones(found.filter(is_gone))
        } else {
            let all =
                self.groups.keys().flat_map(|group| self.offsets.latest_range(of_group(group)));
            tombstones(all.filter(is_gone))
        };
        self.forget(gone, now)
    }

    /// As [`Shard::forget_topics`], of topics that were deleted at any time, by their ids: who led
    /// this partition then may have ended before it wrote that their offsets go.
    pub(crate) fn forget_removed(&mut self, removed: &HashSet<TopicId>, now: Now) -> Output {
        let all = self.groups.keys().flat_map(|group| self.offsets.latest_range(of_group(group)));
        let gone = all.filter(|(_, offset)| removed.contains(&offset.topic_id));
        self.forget(tombstones(gone), now)
    }

    fn forget(&mut self, gone: Vec<Record>, now: Now) -> Output {
        let mut out = Output::default();
        self.remove(gone, None, now, &mut out);
        out
    }

    /// Whether the offset has expired, if no member reads its topic.
    fn is_past(&self, group: &Group, offset: &OffsetAndMetadata, now: Now) -> bool {
        match (group.expiry_base_ms(offset.commit_timestamp_ms), offset.expire_timestamp_ms) {
            (None, _) => false,
            (Some(_), Some(expire_ms)) => now.wall_ms >= expire_ms,
            (Some(base_ms), None) => {
                now.wall_ms.saturating_sub(base_ms) >= self.config.offsets_retention_ms
            }
        }
    }

    /// The tombstones that remove every offset of a group.
    pub(super) fn offset_tombstones(&self, group: &Arc<str>) -> Vec<Record> {
        tombstones(self.offsets.latest_range(of_group(group)))
    }
}
