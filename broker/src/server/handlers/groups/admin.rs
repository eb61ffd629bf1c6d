//! DescribeGroups 0–6, ListGroups 0–5 and DeleteGroups 0–2: groups as administrators see them.
//!
//! KIPs: 430 (authorized operations), 518 and 848 (filters), 1043 (GROUP_ID_NOT_FOUND).

use std::sync::Arc;

use kafka_protocol::messages as m;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::DescribedGroup;
use letterbox_protocol::ErrorCode;

use super::{Errors, Services, errors};
use crate::request::{OPERATIONS_NOT_ASKED, RequestContext};
use crate::security::{Operation, Resource};

const REFUSED: ErrorCode = ErrorCode::GroupAuthorizationFailed;

/// Answers DescribeGroups.
pub(crate) fn describe(
    services: &Services,
    ctx: &RequestContext,
    mut request: m::DescribeGroupsRequest,
) -> m::DescribeGroupsResponse {
    let is_refused = |group: &str| !ctx.may(Operation::Describe, Resource::Group(group));
    let refused: Vec<_> = request.groups.extract_if(.., |group| is_refused(group)).collect();
    let mut response = services.groups.describe_groups(ctx, &request);
    response.groups.extend(refused.into_iter().map(|group| {
        DescribedGroup::default()
            .with_group_id(group)
            .with_error_code(REFUSED.code())
            .with_authorized_operations(OPERATIONS_NOT_ASKED)
    }));
    response
}

/// Answers ListGroups: all groups to whoever may describe the cluster, to others theirs.
pub(crate) fn list(
    services: &Services,
    ctx: &RequestContext,
    request: &m::ListGroupsRequest,
) -> m::ListGroupsResponse {
    let mut response = services.groups.list_groups(ctx, request);
    if !ctx.may(Operation::Describe, Resource::Cluster) {
        let may = |group: &str| ctx.may(Operation::Describe, Resource::Group(group));
        response.groups.retain(|group| may(&group.group_id));
    }
    response
}

/// Answers DeleteGroups.
pub(crate) async fn delete(
    services: Arc<Services>,
    ctx: RequestContext,
    mut request: m::DeleteGroupsRequest,
) -> m::DeleteGroupsResponse {
    let is_refused = |group: &str| !ctx.may(Operation::Delete, Resource::Group(group));
    let refused: Vec<_> = request.groups_names.extract_if(.., |group| is_refused(group)).collect();
    let mut response = services.groups.delete_groups(&ctx, &request).await;
    response.results.extend(refused.into_iter().map(|group| {
        DeletableGroupResult::default().with_group_id(group).with_error_code(REFUSED.code())
    }));
    response
}

errors!(DescribeGroupsResponse, |all, each| {
    all.groups.iter().for_each(|one| each(one.error_code));
});
errors!(ListGroupsResponse, |all, each| each(all.error_code));
errors!(DeleteGroupsResponse, |all, each| {
    all.results.iter().for_each(|one| each(one.error_code));
});
