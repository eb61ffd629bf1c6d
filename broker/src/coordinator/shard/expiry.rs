//! Offsets that nobody uses any more, and groups without them, are removed (KIP-211).

use std::sync::Arc;

use letterbox_protocol::model::TopicId;

use super::{Shard, of_group, of_topic};
use crate::coordinator::group::{Group, Now, Output, TimerKey};
use crate::coordinator::records::{OffsetAndMetadata, OffsetKey, Record};

fn tombstone(key: &OffsetKey) -> Record {
    Record::Offset { key: key.clone(), value: None }
}

impl Shard {
    pub(super) fn arm_expiry(&mut self, now: Now) {
        let deadline =
            now.mono_ms.saturating_add(self.config.offsets_retention_check_interval_ms.max(1));
        self.timers.set(TimerKey::Expiry, deadline);
    }

    pub(super) fn expire(&mut self, now: Now, out: &mut Output) {
        let mut tombstones = Vec::new();
        for group in self.groups.values() {
            let (mut all, mut expired) = (0_usize, Vec::new());
            for (key, offset) in self.offsets.latest_range(of_group(group.id())) {
                all = all.saturating_add(1);
                if self.is_expired(group, key, offset, now) {
                    expired.push(tombstone(key));
                }
            }
            let nothing_left = expired.len() == all;
            tombstones.append(&mut expired);
            if nothing_left && group.is_unused() {
                tombstones.push(Record::Group { group: group.id().clone(), value: None });
            }
        }
        self.remove(tombstones, None, now, out);
        self.arm_expiry(now);
    }

    /// A topic was deleted: its offsets go, or the groups would pass over the first records of one
    /// that gets this name later. Those of another topic of its name stay.
    pub fn forget_topic(&mut self, topic: &Arc<str>, id: TopicId, now: Now) -> Output {
        let gone = self
            .groups
            .keys()
            .flat_map(|group| self.offsets.latest_range(of_topic(group, topic)))
            .filter(|(_, offset)| offset.topic_id.is_nil() || offset.topic_id == id)
            .map(|(key, _)| tombstone(key))
            .collect();
        let mut out = Output::default();
        self.remove(gone, None, now, &mut out);
        out
    }

    fn is_expired(
        &self,
        group: &Group,
        key: &OffsetKey,
        offset: &OffsetAndMetadata,
        now: Now,
    ) -> bool {
        if group.is_subscribed_to(&key.topic) {
            return false;
        }
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
        self.offsets.latest_range(of_group(group)).map(|(key, _)| tombstone(key)).collect()
    }
}
