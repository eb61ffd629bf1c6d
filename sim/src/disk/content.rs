//! The bytes of one file: what readers see, what is on the platter, and what lies between.
//!
//! A write is kept as images of the whole 512-byte sectors it touches, as a page cache would hand
//! them to the device. So a sector is on the platter as it was after *some* number of the pending
//! changes, never as a mix.

use crate::rng::Rng;

/// What a device writes as a whole or not at all.
pub(crate) const SECTOR: u64 = 512;

/// What the device does with a write it said yes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// What it was told.
    Honest,
    /// Nothing.
    Dropped,
    /// Puts it this many sectors further on (or back).
    Moved(i64),
}

/// One change that is not yet durable.
struct Change {
    /// Where `bytes` belong, a multiple of [`SECTOR`]; for a change of length, the new length.
    offset: u64,
    /// Sector images; `None` for a change of length.
    bytes: Option<Vec<u8>>,
    /// The file's length after this change.
    len: u64,
    fate: Fate,
}

/// `durable` plus some of `pending`, per sector a prefix, is what a power cut may leave.
#[derive(Default)]
pub(crate) struct Content {
    view: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// What was there at the last sync that said yes and did nothing, without the run of one byte
    /// at its end, which may be room ahead of what counts.
    promised: Vec<u8>,
}

/// What a power cut did to one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loss {
    /// Changes of which at least one sector was not kept.
    pub(crate) lost: u64,
    /// Changes of which some sectors were kept and some not.
    pub(crate) torn: u64,
    /// Something that a sync had promised is not there.
    pub(crate) is_broken_promise: bool,
}

impl Content {
    pub(crate) fn len(&self) -> u64 {
        self.view.len() as u64
    }

    pub(crate) fn is_dirty(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let start = index(offset).min(self.view.len());
        let found = &self.view[start..];
        let n = found.len().min(buffer.len());
        buffer[..n].copy_from_slice(&found[..n]);
        n
    }

    pub(crate) fn write(&mut self, bytes: &[u8], offset: u64, fate: Fate) {
        if bytes.is_empty() {
            return;
        }
        let (start, end) = (index(offset), index(offset) + bytes.len());
        if self.view.len() < end {
            self.view.resize(end, 0);
        }
        self.view[start..end].copy_from_slice(bytes);
        let first = index(offset / SECTOR * SECTOR);
        let last = index((end as u64).next_multiple_of(SECTOR)).min(self.view.len());
        let images = self.view[first..last].to_vec();
        self.pending.push(Change {
            offset: first as u64,
            bytes: Some(images),
            len: self.len(),
            fate,
        });
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        self.view.resize(index(len), 0);
        self.pending.push(Change { offset: len, bytes: None, len, fate: Fate::Honest });
    }

    /// Everything written so far is on the platter (as far as the device tells the truth).
    pub(crate) fn sync(&mut self) {
        let all = self.pending.len();
        self.settle(all, |_| all);
    }

    /// A sync that says yes and does nothing.
    pub(crate) fn ignore_sync(&mut self) {
        self.promised.clone_from(&self.view);
        while self.promised.pop_if(|last| self.view.last() == Some(last)).is_some() {}
    }

    /// A sync that failed: some of it got there, the rest is forgotten, and the next sync will say
    /// yes. Readers go on to see what they saw, out of the cache.
    pub(crate) fn fail_sync(&mut self, rng: &mut Rng) {
        let all = self.pending.len();
        let size = rng.index(all + 1);
        self.settle(size, once_per_sector(|| rng.index(all + 1)));
    }

    /// Readers see the platter again: nothing of the cache is left.
    pub(crate) fn drop_cache(&mut self) {
        self.view.clone_from(&self.durable);
        self.pending.clear();
    }

    /// The power fails: per sector some prefix of the pending changes is kept.
    pub(crate) fn power_cut(&mut self, rng: &mut Rng) -> Loss {
        let all = self.pending.len();
        let mut kept = Kept::default();
        match rng.below(5) {
            0 => self.settle(0, |_| kept.note(0)),
            1 => self.settle(all, |_| kept.note(all)),
            // In order up to a torn change: the usual case of one writer and an orderly device.
            2 | 3 => {
                let whole = rng.index(all + 1);
                let size = whole + rng.index(2);
                self.settle(
                    size.min(all),
                    once_per_sector(|| kept.note((whole + rng.index(2)).min(all))),
                );
            }
            // Written back in any order.
            _ => {
                let size = rng.index(all + 1);
                self.settle(size, once_per_sector(|| kept.note(rng.index(all + 1))));
            }
        }
        self.view.clone_from(&self.durable);
        let all = all as u64;
        Loss {
            lost: all - kept.least(all),
            torn: kept.most.saturating_sub(kept.least(all)),
            is_broken_promise: !self.durable.starts_with(&std::mem::take(&mut self.promised)),
        }
    }

    pub(crate) fn flip_bit(&mut self, offset: u64, bit: u8) -> bool {
        let at = index(offset);
        let mut flipped = false;
        for bytes in [&mut self.view, &mut self.durable] {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << (bit % 8);
                flipped = true;
            }
        }
        flipped
    }

    /// Puts the first `cut(sector)` pending changes of each touched sector on the platter, with the
    /// length after the first `size` changes, and forgets the rest.
    fn settle(&mut self, size: usize, mut cut: impl FnMut(u64) -> usize) {
        let pending = std::mem::take(&mut self.pending);
        let durable_len = self.durable.len();
        for (i, change) in pending.iter().enumerate() {
            match &change.bytes {
                None => {
                    // What lies beyond a new end reads as zeros from then on.
                    let end = self.durable.len() as u64;
                    let mut at = change.offset;
                    while at < end {
                        let next = (at / SECTOR + 1) * SECTOR;
                        if i < cut(at / SECTOR) {
                            self.durable[index(at)..index(next.min(end))].fill(0);
                        }
                        at = next;
                    }
                }
                Some(bytes) => {
                    for (n, image) in bytes.chunks(index(SECTOR)).enumerate() {
                        let sector = change.offset / SECTOR + n as u64;
                        if i < cut(sector) {
                            self.put(sector, image, change.fate);
                        }
                    }
                }
            }
        }
        let len = size
            .checked_sub(1)
            .and_then(|last| pending.get(last))
            .map_or(durable_len, |change| index(change.len));
        self.durable.resize(len, 0);
    }

    fn put(&mut self, sector: u64, image: &[u8], fate: Fate) {
        let sector = match fate {
            Fate::Honest => sector,
            Fate::Dropped => return,
            Fate::Moved(by) => sector.saturating_add_signed(by),
        };
        let at = index(sector * SECTOR);
        if self.durable.len() < at + image.len() {
            self.durable.resize(at + image.len(), 0);
        }
        self.durable[at..at + image.len()].copy_from_slice(image);
    }
}

/// What `draw` gives for a sector when it is asked about first.
fn once_per_sector(mut draw: impl FnMut() -> usize) -> impl FnMut(u64) -> usize {
    let mut drawn = std::collections::BTreeMap::new();
    move |sector| *drawn.entry(sector).or_insert_with(&mut draw)
}

/// Which cuts were drawn.
#[derive(Default)]
struct Kept {
    least: Option<u64>,
    most: u64,
}

impl Kept {
    fn note(&mut self, cut: usize) -> usize {
        let kept = cut as u64;
        self.least = Some(self.least.map_or(kept, |least| least.min(kept)));
        self.most = self.most.max(kept);
        cut
    }

    fn least(&self, all: u64) -> u64 {
        self.least.unwrap_or(all).min(all)
    }
}

/// Simulated files fit into memory.
fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{
        Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
    };

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, usize, u8),
        SetLen(u64),
        Sync,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0u64..4000, 1usize..3000, any::<u8>()).prop_map(|(at, len, byte)| Step::Write(at, len, byte)),
            1 => (0u64..6000).prop_map(Step::SetLen),
            2 => Just(Step::Sync),
        ];
        prop::collection::vec(step, 1..30)
    }

    fn apply(content: &mut Content, model: &mut Vec<u8>, step: &Step) {
        match *step {
            Step::Write(at, len, byte) => {
                content.write(&vec![byte; len], at, Fate::Honest);
                let end = index(at) + len;
                model.resize(model.len().max(end), 0);
                model[index(at)..end].fill(byte);
            }
            Step::SetLen(len) => {
                content.set_len(len);
                model.resize(index(len), 0);
            }
            Step::Sync => content.sync(),
        }
    }

    fn all(content: &Content) -> Vec<u8> {
        let mut bytes = vec![0; index(content.len())];
        content.read(&mut bytes, 0);
        bytes
    }

    proptest! {
        /// Readers see every write at once, whatever was synced.
        #[test]
        fn reads_see_what_was_written(steps in steps()) {
            let (mut content, mut model) = (Content::default(), Vec::new());
            for step in &steps {
                apply(&mut content, &mut model, step);
                prop_assert_eq!(&all(&content), &model);
            }
        }

        /// Each sector that is left is one that was there after some change since the last sync:
        /// synced data is never lost, pieces are torn at sector borders only.
        #[test]
        fn a_power_cut_leaves_each_sector_at_one_moment_since_the_last_sync(steps in steps(), seed: u64) {
            let (mut content, mut model) = (Content::default(), Vec::new());
            let mut moments = vec![Vec::new()];
            for step in &steps {
                apply(&mut content, &mut model, step);
                if matches!(step, Step::Sync) {
                    moments.clear();
                }
                moments.push(model.clone());
            }
            content.power_cut(&mut Rng::new(seed));
            let left = all(&content);
            prop_assert!(moments.iter().any(|moment| moment.len() == left.len()), "length {} was never", left.len());
            for (n, sector) in left.chunks(index(SECTOR)).enumerate() {
                let was = moments.iter().any(|moment| {
                    let mut then = moment.get(n * index(SECTOR)..).unwrap_or_default().to_vec();
                    then.resize(then.len().max(sector.len()), 0);
                    // A shorter length of another moment hides a sector's end; a longer one shows
                    // zeros.
                    then[..sector.len()] == *sector
                        || sector.iter().zip(&then).rposition(|(a, b)| a != b).is_none_or(|last| sector[last..].iter().all(|b| *b == 0) && shortened(&moments, n, last))
                });
                prop_assert!(was, "sector {n} was never so");
            }
        }
    }

    /// Whether the file once ended inside sector `n`, before or at byte `last` of it.
    fn shortened(moments: &[Vec<u8>], n: usize, last: usize) -> bool {
        moments.iter().any(|moment| moment.len() <= n * index(SECTOR) + last)
    }

    #[test]
    fn unsynced_writes_are_sometimes_lost_kept_and_torn() {
        let (mut lost, mut kept, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let mut content = Content::default();
            content.write(&[1; 2048], 0, Fate::Honest);
            content.sync();
            content.write(&[2; 2048], 0, Fate::Honest);
            content.power_cut(&mut Rng::new(seed));
            let twos = all(&content).iter().filter(|b| **b == 2).count();
            assert_eq!(twos % 512, 0);
            match twos {
                0 => lost += 1,
                2048 => kept += 1,
                _ => torn += 1,
            }
        }
        assert!(lost > 20 && kept > 20 && torn > 20, "{lost} {kept} {torn}");
    }

    #[test]
    fn after_a_failed_sync_the_next_one_saves_nothing_of_what_was_dropped() {
        let survived = (0..50).filter(|seed| {
            let mut content = Content::default();
            content.write(&[1; 512], 0, Fate::Honest);
            content.fail_sync(&mut Rng::new(*seed));
            assert_eq!(all(&content), [1; 512], "the cache still shows it");
            content.sync();
            content.power_cut(&mut Rng::new(*seed));
            all(&content) == [1; 512]
        });
        let survived = survived.count();
        assert!((1..50).contains(&survived), "{survived} of 50");
    }

    #[test]
    fn a_write_after_a_failed_sync_takes_its_whole_sector_along() {
        let mut content = Content::default();
        content.write(&[1; 100], 0, Fate::Honest);
        content.pending.clear(); // As a failed sync that saved nothing.
        content.write(&[2; 100], 100, Fate::Honest);
        content.sync();
        content.drop_cache();
        assert_eq!(all(&content), [[1; 100], [2; 100]].concat());
    }

    #[test]
    fn a_promise_is_broken_when_a_byte_of_it_is_gone() {
        let cut = |seed| {
            let mut content = Content::default();
            content.write(&[7; 600], 0, Fate::Honest);
            content.write(&[0; 600], 600, Fate::Honest);
            content.ignore_sync();
            let is_broken = content.power_cut(&mut Rng::new(seed)).is_broken_promise;
            assert_eq!(is_broken, !all(&content).starts_with(&[7; 600]));
            is_broken
        };
        let broken = (0..50).filter(|seed| cut(*seed)).count();
        assert!((1..50).contains(&broken), "{broken} of 50");
    }

    #[test]
    fn a_lying_device_is_seen_only_after_the_cache_is_gone() {
        for (fate, left) in [(Fate::Dropped, [0, 0]), (Fate::Moved(1), [0, 7])] {
            let mut content = Content::default();
            content.write(&[0; 1024], 0, Fate::Honest);
            content.write(&[7; 512], 0, fate);
            content.sync();
            assert_eq!(all(&content)[0], 7);
            content.drop_cache();
            let seen = all(&content);
            assert_eq!([seen[0], seen[512]], left);
        }
    }
}
