//! UpdateFeatures 0–2: finalizes levels of features.
//!
//! KIPs: 584 (features), 778 (safe and unsafe downgrades), 1022 (all or none).

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::messages as m;
use kafka_protocol::messages::update_features_request::FeatureUpdateKey;
use kafka_protocol::messages::update_features_response::UpdatableFeatureResult;
use letterbox_protocol::ErrorCode;

use super::{Errors, Services, errors, message, of_controller};
use crate::metadata::ApiError;
use crate::metadata::decide::{FeatureUpdate, UpdateFeatures, UpgradeType};
use crate::request::RequestContext;
use crate::server::changes::Within;

/// From this version on the request says what kind of update it wants.
const WITH_TYPE: i16 = 1;
/// Up to this version the answer names each feature.
const WITH_RESULTS: i16 = 1;

/// Answers UpdateFeatures.
pub(crate) async fn update(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::UpdateFeaturesRequest,
) -> m::UpdateFeaturesResponse {
    if let Err(error) = carry_out(&services, ctx.api_version, &request).await {
        return failed(&error);
    }
    let result = |update: FeatureUpdateKey| {
        UpdatableFeatureResult::default().with_feature(update.feature).with_error_message(None)
    };
    let results = match ctx.api_version {
        ..=WITH_RESULTS => request.feature_updates.into_iter().map(result).collect(),
        _ => Vec::new(),
    };
    m::UpdateFeaturesResponse::default().with_error_message(None).with_results(results)
}

async fn carry_out(
    services: &Services,
    version: i16,
    request: &m::UpdateFeaturesRequest,
) -> Result<(), ApiError> {
    let of_one = |error: ApiError| {
        let what = "The update failed for all features since the following feature had an error";
        ApiError::new(error.code, format!("{what}: {}", error.message))
    };
    let updates = updates(version, request).map_err(of_one)?;
    let validate_only = request.validate_only;
    let within = Within::asked(request.timeout_ms, validate_only);
    let changed = services.change(UpdateFeatures { updates, validate_only }, within).await;
    let changed = changed.map_err(|error| of_controller(&error))?;
    changed.outcome.map_err(of_one)?;
    match changed.is_shown || validate_only {
        true => Ok(()),
        false => Err(ErrorCode::RequestTimedOut.into()),
    }
}

/// What is asked for; of a feature that is named twice the last counts, as with Kafka.
fn updates(
    version: i16,
    request: &m::UpdateFeaturesRequest,
) -> Result<Vec<FeatureUpdate>, ApiError> {
    let mut updates = BTreeMap::new();
    for asked in &request.feature_updates {
        let kind = match (version, asked.upgrade_type) {
            (..WITH_TYPE, _) if asked.allow_downgrade => Some(UpgradeType::SafeDowngrade),
            (..WITH_TYPE, _) | (_, 1) => Some(UpgradeType::Upgrade),
            (_, 2) => Some(UpgradeType::SafeDowngrade),
            (_, 3) => Some(UpgradeType::UnsafeDowngrade),
            _ => None,
        };
        let (name, level) = (asked.feature.to_string(), asked.max_version_level);
        let is_known = kind.is_some();
        let kind = kind.unwrap_or(UpgradeType::Upgrade);
        let update = FeatureUpdate { name: name.clone(), level, kind };
        if !is_known {
            let why = "The controller does not support the given upgrade type.";
            return Err(update.invalid(why));
        }
        updates.insert(name, update);
    }
    Ok(updates.into_values().collect())
}

/// The answer to a request that changes nothing.
pub(crate) fn failed(error: &ApiError) -> m::UpdateFeaturesResponse {
    m::UpdateFeaturesResponse::default()
        .with_error_code(error.code.code())
        .with_error_message(message(error))
}

errors!(UpdateFeaturesResponse, |all, each| each(all.error_code));
