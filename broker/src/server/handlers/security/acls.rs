//! DescribeAcls, CreateAcls and DeleteAcls 1–3: there is no authorizer, and each says so.
//!
//! Without an authorizer there are no ACLs to list, and one that was made would protect nothing.
//! Kafka without `authorizer.class.name` answers the same; MirrorMaker asks by default and goes on.

use kafka_protocol::messages as m;
use kafka_protocol::messages::create_acls_response::AclCreationResult;
use kafka_protocol::messages::delete_acls_response::DeleteAclsFilterResult;
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::ErrorCode;

use super::{Errors, errors};

const NO_AUTHORIZER: ErrorCode = ErrorCode::SecurityDisabled;

fn text(message: Option<&'static str>) -> Option<StrBytes> {
    message.map(StrBytes::from_static_str)
}

/// Answers DescribeAcls.
pub(crate) fn describe() -> m::DescribeAclsResponse {
    described(NO_AUTHORIZER, Some("No Authorizer is configured on the broker"))
}

/// Answers CreateAcls.
pub(crate) fn create(request: &m::CreateAclsRequest) -> m::CreateAclsResponse {
    created(request, NO_AUTHORIZER, Some("No Authorizer is configured on the broker"))
}

/// Answers DeleteAcls.
pub(crate) fn delete(request: &m::DeleteAclsRequest) -> m::DeleteAclsResponse {
    deleted(request, NO_AUTHORIZER, Some("No Authorizer is configured."))
}

pub(crate) fn described(
    error: ErrorCode,
    message: Option<&'static str>,
) -> m::DescribeAclsResponse {
    m::DescribeAclsResponse::default()
        .with_error_code(error.code())
        .with_error_message(text(message))
}

pub(crate) fn created(
    request: &m::CreateAclsRequest,
    error: ErrorCode,
    message: Option<&'static str>,
) -> m::CreateAclsResponse {
    let result = AclCreationResult::default()
        .with_error_code(error.code())
        .with_error_message(text(message));
    m::CreateAclsResponse::default().with_results(vec![result; request.creations.len()])
}

pub(crate) fn deleted(
    request: &m::DeleteAclsRequest,
    error: ErrorCode,
    message: Option<&'static str>,
) -> m::DeleteAclsResponse {
    let result = DeleteAclsFilterResult::default()
        .with_error_code(error.code())
        .with_error_message(text(message));
    m::DeleteAclsResponse::default().with_filter_results(vec![result; request.filters.len()])
}

errors!(DescribeAclsResponse, |all, each| each(all.error_code));
errors!(CreateAclsResponse, |all, each| all.results.iter().for_each(|one| each(one.error_code)));
errors!(DeleteAclsResponse, |all, each| {
    all.filter_results.iter().for_each(|one| each(one.error_code));
});
