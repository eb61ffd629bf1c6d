//! DescribeAcls, CreateAcls and DeleteAcls 1–3: there is no authorizer, and each says so.
//!
//! Without an authorizer there are no ACLs to list, and one that was made would protect nothing.
//! Kafka without `authorizer.class.name` answers the same; MirrorMaker asks by default and goes on.

use kafka_protocol::messages as m;
use kafka_protocol::messages::create_acls_response::AclCreationResult;
use kafka_protocol::messages::delete_acls_response::DeleteAclsFilterResult;
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::ErrorCode;

use crate::server::context::{Operation, RequestContext, Resource};

/// Error and message of every answer here.
fn refusal(
    ctx: &RequestContext,
    operation: Operation,
    message: &'static str,
) -> (i16, Option<StrBytes>) {
    if ctx.may(operation, Resource::Cluster) {
        (ErrorCode::SecurityDisabled as i16, Some(StrBytes::from_static_str(message)))
    } else {
        (ErrorCode::ClusterAuthorizationFailed as i16, None)
    }
}

/// Answers DescribeAcls.
pub(crate) fn describe(ctx: &RequestContext) -> m::DescribeAclsResponse {
    let (error, message) =
        refusal(ctx, Operation::Describe, "No Authorizer is configured on the broker");
    m::DescribeAclsResponse::default().with_error_code(error).with_error_message(message)
}

/// Answers CreateAcls.
pub(crate) fn create(
    ctx: &RequestContext,
    request: &m::CreateAclsRequest,
) -> m::CreateAclsResponse {
    let (error, message) =
        refusal(ctx, Operation::Alter, "No Authorizer is configured on the broker");
    let result = AclCreationResult::default().with_error_code(error).with_error_message(message);
    m::CreateAclsResponse::default().with_results(vec![result; request.creations.len()])
}

/// Answers DeleteAcls.
pub(crate) fn delete(
    ctx: &RequestContext,
    request: &m::DeleteAclsRequest,
) -> m::DeleteAclsResponse {
    let (error, message) = refusal(ctx, Operation::Alter, "No Authorizer is configured.");
    let result =
        DeleteAclsFilterResult::default().with_error_code(error).with_error_message(message);
    m::DeleteAclsResponse::default().with_filter_results(vec![result; request.filters.len()])
}
