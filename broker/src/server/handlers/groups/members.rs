//! JoinGroup 0–9, SyncGroup 0–5, Heartbeat 0–4 and LeaveGroup 0–5: what members of a classic group
//! ask its coordinator. The gate has let them pass; nothing else is asked for them here.
//!
//! KIPs: 345 (static members), 394 (member id first), 559 (protocol in SyncGroup), 800 (reasons).

use std::sync::Arc;

use futures::future::BoxFuture;
use kafka_protocol::messages as m;
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::ErrorCode;

use super::{Errors, Services, errors};
use crate::request::RequestContext;

/// Answers JoinGroup, when the join phase ends; the request is gone before.
pub(crate) async fn join(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::JoinGroupRequest,
) -> BoxFuture<'static, m::JoinGroupResponse> {
    services.groups.join_group(&ctx, request).await
}

/// Answers SyncGroup, when the leader's assignment is committed; the request is gone before.
pub(crate) async fn sync(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::SyncGroupRequest,
) -> BoxFuture<'static, m::SyncGroupResponse> {
    services.groups.sync_group(&ctx, request).await
}

/// Answers Heartbeat, at once.
pub(crate) fn heartbeat(
    services: &Services,
    ctx: &RequestContext,
    request: &m::HeartbeatRequest,
) -> m::HeartbeatResponse {
    services.groups.heartbeat(ctx, request)
}

/// Answers LeaveGroup.
pub(crate) async fn leave(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::LeaveGroupRequest,
) -> m::LeaveGroupResponse {
    services.groups.leave_group(&ctx, request).await
}

/// The answer to a JoinGroup that is not allowed.
pub(crate) fn refused_join(
    request: &m::JoinGroupRequest,
    error: ErrorCode,
) -> m::JoinGroupResponse {
    m::JoinGroupResponse::default()
        .with_error_code(error.code())
        .with_generation_id(-1)
        // Before version 7 it cannot be null.
        .with_protocol_name(Some(StrBytes::default()))
        .with_member_id(request.member_id.clone())
}

errors!(JoinGroupResponse, |all, each| each(all.error_code));
errors!(SyncGroupResponse, |all, each| each(all.error_code));
errors!(HeartbeatResponse, |all, each| each(all.error_code));
errors!(LeaveGroupResponse, |all, each| {
    each(all.error_code);
    all.members.iter().for_each(|one| each(one.error_code));
});
