//! The gate that every request passes: what its API needs to be allowed, in one table.
//!
//! What the request needs as a whole is asked here, before it is handled; what it needs for each
//! element its handler asks, with [`RequestContext::check`], and answers that element alone with the
//! error, or leaves it out of a list. The table is Kafka's (its documentation, "Authorization and
//! ACLs: operations and resources on protocols", and `KafkaApis`). A new API does not compile
//! without a row, and `tests::gate` fails for one that asks less or more than its row says.

use kafka_protocol::messages as m;
use letterbox_protocol::{ErrorCode, Request, Response};

use super::handlers::{cluster, data, groups, security, topics};
use crate::request::RequestContext;
use crate::security::{Operation, Resource, ResourceType};

/// What a request needs.
pub(super) struct Need<'a> {
    /// As a whole.
    pub(super) whole: Whole<'a>,
    /// For its elements: what its handler asks.
    #[cfg_attr(not(test), expect(dead_code, reason = "a test compares what handlers ask with it"))]
    pub(super) each: Each,
}

type Each = &'static [(Operation, ResourceType)];

/// What a request needs as a whole.
#[derive(Clone, Copy)]
pub(super) enum Whole<'a> {
    /// Nothing.
    Nothing,
    /// To do this.
    To(Operation, Resource<'a>),
    /// To write as an idempotent producer, which is whoever may write to any topic (KIP-679).
    IdempotentWrite,
}

/// The table.
pub(super) fn need(request: &Request) -> Need<'_> {
    use Operation::{
        Alter, AlterConfigs, ClusterAction, Create, Delete, Describe, DescribeConfigs, Read, Write,
    };
    use Resource::{Cluster, Group, TransactionalId};
    use ResourceType as Of;
    use Whole::{IdempotentWrite, Nothing, To};
    let (whole, each): (Whole<'_>, Each) = match request {
        Request::ApiVersions(_) => (Nothing, &[]),
        // Records.
        Request::Produce(_) => (Nothing, &[(Write, Of::TransactionalId), (Write, Of::Topic)]),
        Request::Fetch(_) => (Nothing, &[(ClusterAction, Of::Cluster), (Read, Of::Topic)]),
        Request::ListOffsets(_) | Request::OffsetForLeaderEpoch(_) => {
            (Nothing, &[(Describe, Of::Topic)])
        }
        Request::DeleteRecords(_) => (Nothing, &[(Delete, Of::Topic)]),
        Request::DescribeProducers(_) => (Nothing, &[(Read, Of::Topic)]),
        Request::InitProducerId(m::InitProducerIdRequest { transactional_id, .. }) => {
            let whole = transactional_id.as_ref().map(|id| To(Write, TransactionalId(id.as_str())));
            (whole.unwrap_or(IdempotentWrite), &[])
        }
        // Groups.
        Request::FindCoordinator(_) => {
            (Nothing, &[(Describe, Of::Group), (Describe, Of::TransactionalId)])
        }
        Request::JoinGroup(request) => (To(Read, Group(&request.group_id)), &[]),
        Request::SyncGroup(request) => (To(Read, Group(&request.group_id)), &[]),
        Request::Heartbeat(request) => (To(Read, Group(&request.group_id)), &[]),
        Request::LeaveGroup(request) => (To(Read, Group(&request.group_id)), &[]),
        Request::OffsetCommit(request) => {
            (To(Read, Group(&request.group_id)), &[(Read, Of::Topic)])
        }
        Request::OffsetFetch(_) => (Nothing, &[(Describe, Of::Group), (Describe, Of::Topic)]),
        Request::OffsetDelete(request) => {
            (To(Delete, Group(&request.group_id)), &[(Read, Of::Topic)])
        }
        Request::DescribeGroups(_) => (Nothing, &[(Describe, Of::Group)]),
        Request::ListGroups(_) => (Nothing, &[(Describe, Of::Cluster), (Describe, Of::Group)]),
        Request::DeleteGroups(_) => (Nothing, &[(Delete, Of::Group)]),
        // Topics.
        Request::Metadata(_) => (
            Nothing,
            &[
                (Describe, Of::Topic),
                (Create, Of::Cluster),
                (Create, Of::Topic),
                (Describe, Of::Cluster),
            ],
        ),
        Request::DescribeTopicPartitions(_) => (Nothing, &[(Describe, Of::Topic)]),
        Request::CreateTopics(_) => {
            (Nothing, &[(Create, Of::Cluster), (Create, Of::Topic), (DescribeConfigs, Of::Topic)])
        }
        Request::DeleteTopics(_) => (Nothing, &[(Delete, Of::Topic)]),
        Request::CreatePartitions(_) => (Nothing, &[(Alter, Of::Topic)]),
        Request::ElectLeaders(_) | Request::AlterPartitionReassignments(_) => {
            (To(Alter, Cluster), &[])
        }
        Request::ListPartitionReassignments(_) => (To(Describe, Cluster), &[]),
        // The cluster.
        Request::DescribeCluster(_) => (Nothing, &[(Describe, Of::Cluster)]),
        Request::DescribeLogDirs(_) | Request::DescribeQuorum(_) | Request::DescribeAcls(_) => {
            (To(Describe, Cluster), &[])
        }
        Request::CreateAcls(_)
        | Request::DeleteAcls(_)
        | Request::AddRaftVoter(_)
        | Request::RemoveRaftVoter(_)
        | Request::UnregisterBroker(_)
        | Request::UpdateFeatures(_) => (To(Alter, Cluster), &[]),
        Request::ListConfigResources(_) => (To(DescribeConfigs, Cluster), &[]),
        Request::DescribeConfigs(_) => (
            Nothing,
            &[
                (DescribeConfigs, Of::Topic),
                (DescribeConfigs, Of::Group),
                (DescribeConfigs, Of::Cluster),
            ],
        ),
        Request::AlterConfigs(_) | Request::IncrementalAlterConfigs(_) => (
            Nothing,
            &[(AlterConfigs, Of::Topic), (AlterConfigs, Of::Group), (AlterConfigs, Of::Cluster)],
        ),
    };
    Need { whole, each }
}

/// Asks what the request needs as a whole.
///
/// # Errors
/// What the client is told instead of being served.
pub(super) fn pass(ctx: &RequestContext, request: &Request) -> Result<(), ErrorCode> {
    match need(request).whole {
        Whole::Nothing => Ok(()),
        Whole::To(operation, resource) => ctx.check(operation, resource),
        Whole::IdempotentWrite => {
            let allowed = ctx.may(Operation::IdempotentWrite, Resource::Cluster)
                || ctx.may_any(Operation::Write, ResourceType::Topic);
            if allowed { Ok(()) } else { Err(ErrorCode::ClusterAuthorizationFailed) }
        }
    }
}

/// The answer to a request that did not pass, which [`pass`] has refused with `error`. `None` for
/// those that need nothing as a whole.
pub(super) fn refusal(
    ctx: &RequestContext,
    request: &Request,
    error: ErrorCode,
) -> Option<Response> {
    let code = error.code();
    Some(match request {
        Request::InitProducerId(_) => data::init_producer_id::refused(error).into(),
        Request::JoinGroup(request) => groups::members::refused_join(request, error).into(),
        Request::SyncGroup(_) => m::SyncGroupResponse::default().with_error_code(code).into(),
        Request::Heartbeat(_) => m::HeartbeatResponse::default().with_error_code(code).into(),
        Request::LeaveGroup(_) => m::LeaveGroupResponse::default().with_error_code(code).into(),
        Request::OffsetCommit(request) => groups::offsets::refused_commit(request, error).into(),
        Request::OffsetDelete(_) => m::OffsetDeleteResponse::default().with_error_code(code).into(),
        Request::DescribeLogDirs(_) => {
            m::DescribeLogDirsResponse::default().with_error_code(code).into()
        }
        Request::DescribeQuorum(_) => cluster::quorum::refused(error).into(),
        Request::ElectLeaders(request) => topics::elect::failed(ctx, request, &error.into()).into(),
        Request::AlterPartitionReassignments(_) => {
            topics::reassign::altered_nothing(&error.into()).into()
        }
        Request::ListPartitionReassignments(_) => {
            topics::reassign::listed_nothing(&error.into()).into()
        }
        Request::AddRaftVoter(_) => cluster::voters::added(Err(error.into())).into(),
        Request::RemoveRaftVoter(_) => cluster::voters::removed(Err(error.into())).into(),
        Request::UnregisterBroker(_) => cluster::unregister::unregistered(Err(error.into())).into(),
        Request::UpdateFeatures(_) => cluster::features::failed(&error.into()).into(),
        Request::ListConfigResources(_) => {
            m::ListConfigResourcesResponse::default().with_error_code(code).into()
        }
        Request::DescribeAcls(_) => security::acls::described(error, None).into(),
        Request::CreateAcls(request) => security::acls::created(request, error, None).into(),
        Request::DeleteAcls(request) => security::acls::deleted(request, error, None).into(),
        _ => return None,
    })
}
