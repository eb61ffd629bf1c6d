//! ApiVersions 0–4: what this broker speaks.
//!
//! KIPs: 511 (client software), 584 (features). Advertised is [`letterbox_protocol::apis::APIS`],
//! nothing else. Of the features there is our own alone ([`FEATURE`]): clients switch protocols on
//! Kafka's. The epoch is the place in the metadata log up to which the finalized level is true.

use kafka_protocol::messages as m;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::api_versions::{
    FinalizedFeature, SupportedFeature, api_versions_response, is_client_software,
};

use super::{Errors, Services, errors};
use crate::metadata::features::{FEATURE, Levels};
use crate::server::context::Connection;

/// Answers a version that is served.
pub(crate) fn api_versions(
    services: &Services,
    connection: &mut Connection,
    version: i16,
    request: &m::ApiVersionsRequest,
) -> m::ApiVersionsResponse {
    if version >= 3 {
        let (name, software_version) =
            (request.client_software_name.as_str(), request.client_software_version.as_str());
        if !is_client_software(name) || !is_client_software(software_version) {
            return m::ApiVersionsResponse::default()
                .with_error_code(ErrorCode::InvalidRequest as i16);
        }
        connection.software = format!("{name} {software_version}");
    }
    let image = services.image();
    let Levels { min, max } = Levels::SUPPORTED;
    let supported = [SupportedFeature { name: FEATURE, min, max }];
    let finalized = [FinalizedFeature { name: FEATURE, level: image.level(FEATURE) }];
    let epoch = i64::try_from(image.applied_index).unwrap_or(i64::MAX);
    api_versions_response(version, &supported, epoch, &finalized)
}

errors!(ApiVersionsResponse, |all, each| each(all.error_code));
