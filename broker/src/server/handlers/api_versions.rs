//! ApiVersions 0–4: what this broker speaks.
//!
//! KIPs: 511 (client software), 584 (features). Advertised is [`crate::wire::apis::APIS`], nothing else; no
//! feature is finalized in this version, since clients switch protocols on them.

use kafka_protocol::messages as m;
use kafka_protocol::messages::api_versions_response::ApiVersion;

use crate::server::context::Connection;
use crate::wire::ErrorCode;
use crate::wire::apis::{API_VERSIONS, APIS};

/// Answers a version that is served.
pub(crate) fn api_versions(connection: &mut Connection, version: i16, request: &m::ApiVersionsRequest) -> m::ApiVersionsResponse {
    if version >= 3 {
        let (name, software_version) = (request.client_software_name.as_str(), request.client_software_version.as_str());
        if !is_software_word(name) || !is_software_word(software_version) {
            return m::ApiVersionsResponse::default().with_error_code(ErrorCode::InvalidRequest as i16);
        }
        connection.software = Some((name.to_owned(), software_version.to_owned()));
    }
    let keys = APIS.iter().map(|api| ApiVersion::default().with_api_key(api.key).with_min_version(api.advertised_min).with_max_version(api.max));
    m::ApiVersionsResponse::default().with_api_keys(keys.collect()).with_finalized_features_epoch(0)
}

/// Answers a version that is not served: to be written in version 0, so that every client can read which are.
pub(crate) fn unsupported() -> m::ApiVersionsResponse {
    let own = APIS.iter().filter(|api| api.key == API_VERSIONS);
    m::ApiVersionsResponse::default()
        .with_error_code(ErrorCode::UnsupportedVersion as i16)
        .with_api_keys(own.map(|api| ApiVersion::default().with_api_key(api.key).with_min_version(api.advertised_min).with_max_version(api.max)).collect())
}

/// Letters, digits, `-` and `.`, beginning and ending with a letter or digit (KIP-511).
fn is_software_word(word: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    edge(word.as_bytes().first()) && edge(word.as_bytes().last()) && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_names_as_kip_511_has_them() {
        for good in ["librdkafka", "apache-kafka-java", "2.0.2", "a"] {
            assert!(is_software_word(good), "{good}");
        }
        for bad in ["", "-a", "a.", "a b", "é", "a/b"] {
            assert!(!is_software_word(bad), "{bad}");
        }
    }
}
