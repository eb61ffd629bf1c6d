//! Entries of the metadata log: the records of one decision, in one entry or in several.
//!
//! No decision is too large: its records are written as one text, and a text that is longer than an
//! entry may be is cut into parts. What it changes is seen when the last part is applied, as a
//! whole (as the transactions of KIP-868). A part that does not follow its predecessor does
//! nothing, and whatever begins anew gives up what was begun before it: a decision whose leader
//! ended in the middle of it is never seen.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::record::{self, DecodeError};
use super::{ApplyError, MetadataImage};

/// Which piece of a decision an entry carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Counts the parts of the decision from 0.
    pub number: u32,
    /// Whether another one follows.
    pub has_more: bool,
}

impl Part {
    /// The only part of a decision.
    pub const WHOLE: Self = Self { number: 0, has_more: false };
}

/// The parts of a decision that were applied, as long as its last one was not.
///
/// Part of the image because every replica must have the same of it, after a snapshot too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// The term of the leader that decided.
    pub term: u64,
    /// The number of the part that must follow.
    pub next: u32,
    /// The text so far.
    pub text: Text,
}

/// A text in the parts in which it came, which its clones share: an image is published after each
/// part, and would else copy all that came before. Written as one string.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Text(Vec<Arc<str>>);

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(vec![text.into()])
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.0.concat()
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.0.concat() == other.0.concat()
    }
}

impl Eq for Text {}

/// A committed entry that cannot be applied. The node must stop.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// Its records cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Its records do not fit.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// Cuts the text of a decision into parts of at most `len_max` bytes, or of one character.
pub fn cut(text: &str, len_max: usize) -> impl Iterator<Item = (Part, &str)> {
    let mut rest = Some(text);
    (0u32..).map_while(move |number| {
        let text = rest.take()?;
        let first = text.chars().next().map_or(0, char::len_utf8);
        let (head, tail) = text.split_at(text.floor_char_boundary(len_max).max(first));
        rest = Some(tail).filter(|tail| !tail.is_empty());
        Some((Part { number, has_more: rest.is_some() }, head))
    })
}

impl MetadataImage {
    /// Applies the entry `index`, written in `term`, that carries no records.
    pub(crate) fn apply_blank(&mut self, index: u64, term: u64) {
        self.applied_index = index;
        // A new leader goes on with nothing that another one began.
        self.unfinished.take_if(|unfinished| unfinished.term != term);
    }

    /// Applies the entry `index`, written in `term`, that carries `part` of a decision; tells
    /// whether it did, or did nothing because its predecessor is not there.
    ///
    /// # Errors
    /// [`EntryError`]; the image is then as it was but for its index.
    pub(crate) fn apply_part(
        &mut self,
        index: u64,
        term: u64,
        part: Part,
        text: &str,
    ) -> Result<bool, EntryError> {
        self.apply_blank(index, term);
        let begun = self.unfinished.take();
        if part == Part::WHOLE {
            self.apply_text(text)?;
            return Ok(true);
        }
        let mut unfinished = match begun {
            _ if part.number == 0 => Arc::new(Unfinished { term, next: 0, text: Text::default() }),
            Some(unfinished) if unfinished.next == part.number => unfinished,
            _ => return Ok(false),
        };
        let all = Arc::make_mut(&mut unfinished);
        all.text.0.push(text.into());
        all.next = part.number.saturating_add(1);
        if part.has_more {
            self.unfinished = Some(unfinished);
        } else {
            self.apply_text(&unfinished.text.0.concat())?;
        }
        Ok(true)
    }

    fn apply_text(&mut self, text: &str) -> Result<(), EntryError> {
        let records = record::decode(text)?;
        let mut next = self.clone();
        next.apply_in_place(&records)?;
        *self = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::metadata::record::{TopicRecord, decode, encode};
    use crate::metadata::{MetadataRecord, apply};

    #[derive(Clone, Debug)]
    enum Event {
        /// The leader decides on this many topics and writes this many parts before it gives up.
        Decide { topics: u8, parts: usize },
        /// Another leader begins.
        NewLeader,
        /// A part arrives whose beginning was given up.
        Stray(u32, bool),
        /// The image goes through a snapshot.
        Snapshot,
        /// The node begins anew at its newest snapshot and applies the log behind it.
        Crash,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => (0u8..4, prop_oneof![Just(usize::MAX), 0usize..6])
                .prop_map(|(topics, parts)| Event::Decide { topics, parts }),
            1 => Just(Event::NewLeader),
            1 => (1u32..4, any::<bool>()).prop_map(|(number, more)| Event::Stray(number, more)),
            1 => Just(Event::Snapshot),
            1 => Just(Event::Crash),
        ]
    }

    struct World {
        len_max: usize,
        term: u64,
        log: Vec<(u64, Option<(Part, String)>)>,
        image: MetadataImage,
        snapshot: MetadataImage,
        /// Every topic that must be seen.
        whole: Vec<String>,
    }

    impl World {
        fn append(&mut self, entry: Option<(Part, &str)>) {
            let entry = entry.map(|(part, text)| (part, text.to_owned()));
            self.log.push((self.term, entry));
            let mut image = self.image.clone();
            apply_at(&mut image, &self.log, self.log.len() - 1);
            self.image = image;
        }

        /// What a node has after a snapshot of `image` was written and read.
        fn restored(image: &MetadataImage) -> MetadataImage {
            let records = decode(&encode(&image.to_records()).unwrap()).unwrap();
            apply(&MetadataImage::default(), image.applied_index, &records).unwrap()
        }

        fn step(&mut self, event: Event) {
            match event {
                Event::Decide { topics, parts } => {
                    let names: Vec<String> = (0..topics)
                        .map(|n| format!("topic-\u{e4}-{}-{n}", self.log.len()))
                        .collect();
                    let first_id = (self.log.len() as u128) << 8;
                    let records: Vec<_> = (first_id..)
                        .zip(&names)
                        .map(|(id, name)| {
                            let id = Uuid::from_u128(id);
                            MetadataRecord::Topic(TopicRecord { name: name.clone(), id })
                        })
                        .collect();
                    let text = encode(&records).unwrap();
                    let mut is_whole = false;
                    for (part, text) in cut(&text, self.len_max).take(parts) {
                        self.append(Some((part, text)));
                        self.check();
                        is_whole = !part.has_more;
                    }
                    if is_whole {
                        self.whole.extend(names);
                    }
                }
                Event::NewLeader => {
                    self.term += 1;
                    self.append(None);
                    assert!(self.image.unfinished.is_none());
                }
                Event::Stray(number, has_more) => {
                    self.term += 1;
                    self.append(Some((Part { number, has_more }, "[]")));
                }
                Event::Snapshot => {
                    self.snapshot = Self::restored(&self.image);
                    assert_eq!(self.snapshot, self.image);
                }
                Event::Crash => {
                    let mut image = self.snapshot.clone();
                    for at in usize::try_from(image.applied_index).unwrap()..self.log.len() {
                        apply_at(&mut image, &self.log, at);
                    }
                    assert_eq!(image, self.image);
                }
            }
        }

        /// Called after every entry but the last of a decision: nothing of it is seen.
        fn check(&self) {
            let seen: Vec<_> = self.image.topics().map(|topic| topic.name.to_string()).collect();
            let mut whole = self.whole.clone();
            whole.sort();
            if self.image.unfinished.is_some() {
                assert_eq!(seen, whole);
            }
        }
    }

    fn apply_at(image: &mut MetadataImage, log: &[(u64, Option<(Part, String)>)], at: usize) {
        let (term, entry) = &log[at];
        let index = at as u64 + 1;
        match entry {
            Some((part, text)) => {
                image.apply_part(index, *term, *part, text).unwrap();
            }
            None => image.apply_blank(index, *term),
        }
    }

    proptest! {
        #[test]
        fn decision_is_seen_as_a_whole_or_never_whoever_ends_in_its_middle(
            len_max in 1usize..200, events in prop::collection::vec(event(), 0..30),
        ) {
            let mut world = World {
                len_max,
                term: 1,
                log: Vec::new(),
                image: MetadataImage::default(),
                snapshot: MetadataImage::default(),
                whole: Vec::new(),
            };
            for event in events {
                world.step(event);
                let mut whole = world.whole.clone();
                whole.sort();
                let seen: Vec<_> =
                    world.image.topics().map(|topic| topic.name.to_string()).collect();
                prop_assert_eq!(seen, whole);
            }
        }

        #[test]
        fn parts_of_a_text_are_the_text(text in "\\PC{0,60}", len_max in 0usize..20) {
            let parts: Vec<_> = cut(&text, len_max).collect();
            prop_assert_eq!(&parts.iter().map(|(_, text)| *text).collect::<String>(), &text);
            for (at, (part, text)) in parts.iter().enumerate() {
                prop_assert!(text.len() <= len_max.max(4));
                prop_assert_eq!(part.number as usize, at);
                prop_assert_eq!(part.has_more, at + 1 < parts.len());
            }
        }
    }

    #[test]
    fn text_that_fits_is_one_part() {
        assert_eq!(cut("[]", 16).collect::<Vec<_>>(), [(Part::WHOLE, "[]")]);
        assert_eq!(cut("", 16).collect::<Vec<_>>(), [(Part::WHOLE, "")]);
    }

    /// Each image is read by others as soon as it is there.
    #[test]
    fn a_part_copies_nothing_of_those_before_it() {
        let mut images = vec![MetadataImage::default()];
        for number in 0..4 {
            let mut next = images[images.len() - 1].clone();
            next.apply_part(1, 1, Part { number, has_more: true }, "[]").unwrap();
            images.push(next);
        }
        let first = |image: &MetadataImage| image.unfinished.as_ref().unwrap().text.0[0].as_ptr();
        let all: Vec<_> = images[1..].iter().map(first).collect();
        assert!(all.iter().all(|one| *one == all[0]), "{all:?}");
    }

    #[test]
    fn whole_decision_ends_an_unfinished_one_of_the_same_leader() {
        let mut image = MetadataImage::default();
        let first = Part { number: 0, has_more: true };
        let last = Part { number: 1, has_more: false };
        assert!(image.apply_part(1, 1, first, "[").unwrap());
        assert!(image.apply_part(2, 1, Part::WHOLE, "[]").unwrap());
        assert!(!image.apply_part(3, 1, last, "]").unwrap());
        assert!(image.apply_part(4, 1, first, "[").unwrap());
        assert!(image.apply_part(5, 1, last, "]").unwrap());
        assert_eq!(image, MetadataImage { applied_index: 5, ..MetadataImage::default() });
    }
}
