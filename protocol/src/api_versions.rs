//! The handshake, which has rules of its own (KIP-511, KIP-584, KIP-1022).

use bytes::Bytes;
use kafka_protocol::messages::ApiVersionsResponse;
use kafka_protocol::messages::api_versions_response::{
    ApiVersion, FinalizedFeatureKey, SupportedFeatureKey,
};
use kafka_protocol::protocol::StrBytes;

use super::apis::{self, API_VERSIONS, APIS};
use super::error::ErrorCode;
use super::put::Put;

/// A feature and the levels this broker can run it at (KIP-584).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SupportedFeature {
    /// Such as `metadata.version`.
    pub name: &'static str,
    /// Lowest level.
    pub min: i16,
    /// Highest level.
    pub max: i16,
}

/// A feature and the level that the whole cluster has agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FinalizedFeature {
    /// Such as `transaction.version`.
    pub name: &'static str,
    /// The level in force.
    pub level: i16,
}

/// The answer to an ApiVersions request of a version that is served.
///
/// `finalized_epoch` is where the finalized features were read from the metadata log; −1 when they
/// are unknown. Up to version 3 a supported feature whose lowest level is 0 is left out, because
/// clients of that time fail on it (KAFKA-17011); finalized features stay.
pub fn api_versions_response(
    version: i16,
    supported: &[SupportedFeature],
    finalized_epoch: i64,
    finalized: &[FinalizedFeature],
) -> ApiVersionsResponse {
    let response = ApiVersionsResponse::default().with_api_keys(
        APIS.iter().map(|api| range(api.key, api.advertised_min, api.max)).collect(),
    );
    if version < 3 {
        return response;
    }
    let supported =
        supported.iter().filter(|feature| version > 3 || feature.min > 0).map(|feature| {
            SupportedFeatureKey::default()
                .with_name(StrBytes::from_static_str(feature.name))
                .with_min_version(feature.min)
                .with_max_version(feature.max)
        });
    let finalized = finalized.iter().map(|feature| {
        FinalizedFeatureKey::default()
            .with_name(StrBytes::from_static_str(feature.name))
            .with_min_version_level(feature.level)
            .with_max_version_level(feature.level)
    });
    response
        .with_supported_features(supported.collect())
        .with_finalized_features_epoch(finalized_epoch)
        .with_finalized_features(finalized.collect())
}

/// The whole frame that answers an ApiVersions request of a version that is not served: error 35 in
/// version 0, with our range of ApiVersions, so that the client can ask again.
pub fn unsupported_api_versions_frame(correlation_id: i32) -> Bytes {
    let (min, max) = apis::find(API_VERSIONS).map_or((0, 0), |api| (api.advertised_min, api.max));
    let mut out = Vec::with_capacity(20);
    out.int32(16);
    out.int32(correlation_id);
    out.int16(ErrorCode::UnsupportedVersion.code());
    out.count(false, Some(1));
    out.int16(API_VERSIONS);
    out.int16(min);
    out.int16(max);
    out.into()
}

/// Whether the name or version of the client's software is one that Kafka accepts from version 3
/// on: letters, digits, `-` and `.`, the first and the last a letter or digit. Answer
/// INVALID_REQUEST when not (KIP-511).
pub fn is_client_software(text: &str) -> bool {
    let is_word = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let inside = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'.';
    is_word(bytes.first()) && is_word(bytes.last()) && bytes.iter().all(inside)
}

fn range(key: i16, min: i16, max: i16) -> ApiVersion {
    ApiVersion::default().with_api_key(key).with_min_version(min).with_max_version(max)
}

#[cfg(test)]
mod tests {
    use super::super::{Response, decode_response};
    use super::*;

    const FEATURES: &[SupportedFeature] = &[
        SupportedFeature { name: "metadata.version", min: 1, max: 3 },
        SupportedFeature { name: "group.version", min: 0, max: 1 },
    ];

    #[test]
    fn produce_is_listed_from_zero() {
        let response = api_versions_response(4, &[], -1, &[]);
        let produce = response
            .api_keys
            .iter()
            .find(|api| api.api_key == 0)
            .map(|api| (api.min_version, api.max_version));
        assert_eq!(produce, Some((0, 13)));
        assert_eq!(response.api_keys.len(), APIS.len());
    }

    #[test]
    fn features_from_zero_are_for_version_4() {
        let finalized = [FinalizedFeature { name: "group.version", level: 1 }];
        let count = |version| {
            let response = api_versions_response(version, FEATURES, 7, &finalized);
            (response.supported_features.len(), response.finalized_features.len())
        };
        assert_eq!([count(2), count(3), count(4)], [(0, 0), (1, 1), (2, 1)]);
    }

    #[test]
    fn a_version_from_the_future_gets_a_version_0_body() {
        let frame = unsupported_api_versions_frame(77);
        assert_eq!(frame[..], [0, 0, 0, 16, 0, 0, 0, 77, 0, 35, 0, 0, 0, 1, 0, 18, 0, 0, 0, 4]);
        let (correlation_id, response) = decode_response(18, 0, frame.slice(4..)).unwrap();
        let Response::ApiVersions(response) = response else { panic!("{response:?}") };
        assert_eq!((correlation_id, response.error_code), (77, 35));
    }

    #[test]
    fn client_software_follows_kafkas_pattern() {
        for good in ["apache-kafka-java", "librdkafka", "4.4.0", "a", "1.0.0-rc1", "a..b"] {
            assert!(is_client_software(good), "{good:?}");
        }
        for bad in ["", "-a", "a-", ".a", "a b", "a_b", "ä", "a\n"] {
            assert!(!is_client_software(bad), "{bad:?}");
        }
    }
}
