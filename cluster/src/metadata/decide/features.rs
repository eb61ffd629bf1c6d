//! The levels of features that the cluster finalizes (UpdateFeatures).

use std::cmp::Ordering;

use letterbox_protocol::ErrorCode;
use serde::{Deserialize, Serialize};

use super::{Context, Decide, Decision, Draft, ItemResult};
use crate::metadata::features::{FEATURE, Levels, Release};
use crate::metadata::record::FeatureRecord;
use crate::metadata::{ApiError, MetadataImage, MetadataRecord};

/// Finalizes levels of features, all or none. A higher one is taken when the node that decides and
/// every registered broker support it. A lower one is not: what the log holds may be read from the
/// higher one on only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateFeatures {
    /// What is asked for.
    pub updates: Vec<FeatureUpdate>,
    /// Whether it is only checked.
    pub validate_only: bool,
}

/// What is asked for one feature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureUpdate {
    /// Its name.
    pub name: String,
    /// The level.
    pub level: i16,
    /// What the level may be to the one before.
    pub kind: UpgradeType,
}

/// What a level may be to the one before (KIP-584, KIP-778).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpgradeType {
    /// Not lower.
    Upgrade,
    /// Not higher, and nothing is lost by it.
    SafeDowngrade,
    /// Not higher, whatever is lost by it.
    UnsafeDowngrade,
}

impl Decide for UpdateFeatures {
    type Outcome = ItemResult<()>;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let mut draft = Draft::new(image);
        let outcome = self.updates.iter().try_for_each(|one| one.update(&mut draft, context));
        let mut decision = draft.decided(outcome);
        if self.validate_only {
            decision.records.clear();
        }
        decision
    }
}

impl FeatureUpdate {
    fn update(&self, draft: &mut Draft, context: &Context<'_>) -> ItemResult<()> {
        let Self { name, level, kind } = self;
        let refuse = |why: &str| Err(self.invalid(why));
        if *level < 0 {
            return refuse("A feature version cannot be less than 0.");
        }
        if let Some(why) = self.not_supported(&draft.image, context) {
            return refuse(&why);
        }
        let present = draft.image.level(name);
        match (level.cmp(&present), kind) {
            (Ordering::Less, UpgradeType::Upgrade) => refuse(
                "Can't downgrade the version of this feature without setting the upgrade type to \
                 either safe or unsafe downgrade.",
            ),
            (Ordering::Less, _) => {
                let why = match kind {
                    UpgradeType::UnsafeDowngrade => {
                        "Unsafe metadata downgrade is not supported in this version."
                    }
                    _ => {
                        "Refusing to perform the requested downgrade because it might delete \
                         metadata information."
                    }
                };
                let message =
                    format!("Unsupported {name} downgrade from {present} to {level}. {why}");
                Err(ApiError::new(ErrorCode::InvalidUpdateVersion, message))
            }
            (Ordering::Equal, _) if name == FEATURE => Ok(()),
            (Ordering::Equal, _) => refuse(&format!("Feature {name} not found.")),
            (Ordering::Greater, UpgradeType::Upgrade) => {
                let record = FeatureRecord { name: name.clone(), level: *level };
                draft.add(vec![MetadataRecord::Feature(record)])
            }
            (Ordering::Greater, _) => refuse("Can't downgrade to a newer version."),
        }
    }

    /// The refusal of this update, as Kafka says it.
    pub fn invalid(&self, why: &str) -> ApiError {
        let Self { name, level, .. } = self;
        let message = format!("Invalid update version {level} for feature {name}. {why}");
        ApiError::new(ErrorCode::InvalidUpdateVersion, message)
    }

    /// Who does not support the level.
    fn not_supported(&self, image: &MetadataImage, context: &Context<'_>) -> Option<String> {
        let by = |who: String, levels: Levels| {
            let is_known = levels.max > 0;
            (!levels.has(self.level)).then(|| match is_known {
                true => format!("{who} only supports versions {levels}"),
                false => format!("{who} does not support this feature."),
            })
        };
        let own = Release::own().levels(&self.name);
        let of_broker = || {
            image.brokers.iter().find_map(|(id, broker)| {
                let release = &broker.release;
                by(format!("Broker {id} ({release})"), release.levels(&self.name))
            })
        };
        by(format!("Local controller {}", context.node), own).or_else(of_broker)
    }
}
