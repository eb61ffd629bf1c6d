//! What the nodes of a cluster agree on before any of them uses it (KIP-584): one feature, whose
//! level says which versions of records, operations and requests between nodes may be used.
//!
//! `docs/design/0006-versions.md` lists what the levels cover. A cluster that has finalized none is
//! at level 1, as every cluster is that was founded before there were levels.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::MetadataImage;

/// The name of the feature. Not `metadata.version`: the levels of that are Apache Kafka's, and
/// tools give them the names of its releases.
pub const FEATURE: &str = "letterbox.version";
/// Of a cluster that has finalized none.
pub(super) const FIRST: i16 = 1;

/// From this level of [`FEATURE`] on the metadata tells which replicas have no room.
const TELLS_ROOM: i16 = 3;

/// From this level of [`FEATURE`] on there are restart leases.
pub(super) const LEASES: i16 = 4;

/// The level of a feature where none is said, of a cluster and of a release; 0 is none.
fn not_said(feature: &str) -> i16 {
    if feature == FEATURE { FIRST } else { 0 }
}

/// The levels of a feature that a release supports, from the lowest to the highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Levels {
    /// The lowest.
    pub min: i16,
    /// The highest; `min <= max`.
    pub max: i16,
}

impl Levels {
    /// Those of [`FEATURE`] that this release supports. A cluster is founded at the highest one.
    pub const SUPPORTED: Self = Self { min: FIRST, max: 4 };

    /// Whether `level` is one of them.
    #[must_use]
    pub fn has(self, level: i16) -> bool {
        (self.min..=self.max).contains(&level)
    }
}

/// As Kafka writes them in its messages.
impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.min == self.max {
            true => write!(f, "{}", self.min),
            false => write!(f, "{}-{}", self.min, self.max),
        }
    }
}

/// What a node says of the release that it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Its number; empty for one that does not say.
    #[serde(default)]
    pub version: String,
    /// The levels of each feature that it supports, by name.
    #[serde(default)]
    pub features: BTreeMap<String, Levels>,
}

impl Release {
    /// This one.
    #[must_use]
    pub fn own() -> Self {
        let features = [(FEATURE.to_owned(), Levels::SUPPORTED)].into();
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), features }
    }

    /// The levels of `feature` that it supports. One that does not say supports the first level of
    /// [`FEATURE`], and nothing else.
    #[must_use]
    pub fn levels(&self, feature: &str) -> Levels {
        let not_said = Levels { min: not_said(feature), max: not_said(feature) };
        self.features.get(feature).copied().unwrap_or(not_said)
    }

    pub(super) fn is_unknown(&self) -> bool {
        *self == Self::default()
    }
}

/// As a part of a sentence: which release it is.
impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version.as_str() {
            "" => f.write_str("a release that does not name itself"),
            version => write!(f, "release {version}"),
        }
    }
}

impl MetadataImage {
    /// The finalized level of `feature`; 0 when it is not used.
    #[must_use]
    pub fn level(&self, feature: &str) -> i16 {
        self.features.get(feature).copied().unwrap_or(not_said(feature))
    }

    /// Whether every node of the cluster reads which replicas have no room.
    #[must_use]
    pub fn tells_room(&self) -> bool {
        self.level(FEATURE) >= TELLS_ROOM
    }

    /// Whether every node of the cluster reads restart leases.
    #[must_use]
    pub fn has_leases(&self) -> bool {
        self.level(FEATURE) >= LEASES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::record::{FeatureRecord, decode, encode};
    use crate::metadata::{ApplyError, MetadataRecord, apply};

    fn record(name: &str, level: i16) -> MetadataRecord {
        MetadataRecord::Feature(FeatureRecord { name: name.to_owned(), level })
    }

    /// It would misread what comes after that.
    #[test]
    fn a_level_that_this_release_does_not_support_ends_it() {
        let level = |name: &str, level| {
            let image = apply(&MetadataImage::default(), 1, &[record(name, level)]);
            image.map(|image| image.level(name))
        };
        let Levels { min, max } = Levels::SUPPORTED;
        for (name, at) in [(FEATURE, max + 1), (FEATURE, min - 2), ("transaction.version", 1)] {
            let refused = level(name, at).unwrap_err();
            let expected = ApplyError::UnsupportedLevel { name: name.to_owned(), level: at };
            assert_eq!(refused, expected);
            let words = format!("{name} is finalized at level {at}, which release");
            assert!(refused.to_string().contains(&words), "{refused}");
        }
        for at in [min, max] {
            assert_eq!(level(FEATURE, at), Ok(at));
        }
        assert_eq!((level(FEATURE, 0), level("transaction.version", 0)), (Ok(FIRST), Ok(0)));
        assert_eq!(MetadataImage::default().level(FEATURE), FIRST);
    }

    /// What knows no levels refuses the record by its version, and reads what was there before.
    #[test]
    fn a_level_above_the_first_one_is_not_read_by_what_knows_no_levels() {
        for (level, version) in [(1, 0), (2, 1)] {
            let written = format!(
                r#"[{{"k":"feature","v":{version},"d":{{"level":{level},"name":"letterbox.version"}}}}]"#
            );
            let record = record(FEATURE, level);
            assert_eq!(encode(std::slice::from_ref(&record)).unwrap(), written);
            assert_eq!(decode(&written).unwrap(), [record]);
        }
    }
}
