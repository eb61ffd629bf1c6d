//! Who may do what. Pure: no I/O, no clock.
//!
//! The words are Kafka's (`AclOperation`, `ResourceType`). No authorizer can be configured in this
//! version, so [`AllowAll`] decides, as in Kafka without `authorizer.class.name`.

use std::sync::Arc;

use letterbox_protocol::ErrorCode;

/// Who a connection belongs to once it has logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    /// `User` in all that this version knows.
    pub kind: &'static str,
    /// The user's name.
    pub name: Arc<str>,
}

impl Principal {
    /// Who a client is on a listener without authentication.
    #[must_use]
    pub(crate) fn anonymous() -> Self {
        Self { kind: "User", name: Arc::from("ANONYMOUS") }
    }
}

/// What a request wants to do. The number is Kafka's code for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Operation {
    /// Read records, commit offsets, or be a member of a group.
    Read = 3,
    /// Append records.
    Write = 4,
    /// Make something.
    Create = 5,
    /// Remove something.
    Delete = 6,
    /// Change something.
    Alter = 7,
    /// See that something is there.
    Describe = 8,
    /// What brokers do among themselves.
    ClusterAction = 9,
    /// See configuration.
    DescribeConfigs = 10,
    /// Change configuration.
    AlterConfigs = 11,
    /// Append records as an idempotent producer.
    IdempotentWrite = 12,
}

/// What kind of thing a request wants to do it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ResourceType {
    /// A topic by name.
    Topic,
    /// A consumer group.
    Group,
    /// The cluster as a whole.
    Cluster,
    /// A transactional producer.
    TransactionalId,
}

impl ResourceType {
    /// What a client is told that may not do what it asks for.
    #[must_use]
    pub(crate) fn refusal(self) -> ErrorCode {
        match self {
            Self::Topic => ErrorCode::TopicAuthorizationFailed,
            Self::Group => ErrorCode::GroupAuthorizationFailed,
            Self::Cluster => ErrorCode::ClusterAuthorizationFailed,
            Self::TransactionalId => ErrorCode::TransactionalIdAuthorizationFailed,
        }
    }

    /// Every operation there is on such a resource (Kafka's `AclEntry.supportedOperations`).
    #[must_use]
    pub(crate) fn operations(self) -> &'static [Operation] {
        use Operation::{
            Alter, AlterConfigs, ClusterAction, Create, Delete, Describe, DescribeConfigs,
            IdempotentWrite, Read, Write,
        };
        match self {
            Self::Topic => {
                &[Read, Write, Create, Delete, Alter, Describe, DescribeConfigs, AlterConfigs]
            }
            Self::Group => &[Read, Delete, Describe, DescribeConfigs, AlterConfigs],
            Self::Cluster => &[
                Create,
                Alter,
                Describe,
                ClusterAction,
                DescribeConfigs,
                AlterConfigs,
                IdempotentWrite,
            ],
            Self::TransactionalId => &[Write, Describe],
        }
    }
}

/// What a request wants to do it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource<'a> {
    /// A topic by name.
    Topic(&'a str),
    /// A consumer group.
    Group(&'a str),
    /// The cluster as a whole.
    Cluster,
    /// A transactional producer.
    TransactionalId(&'a str),
}

impl Resource<'_> {
    /// What kind of thing it is.
    #[must_use]
    pub(crate) fn kind(&self) -> ResourceType {
        match self {
            Self::Topic(_) => ResourceType::Topic,
            Self::Group(_) => ResourceType::Group,
            Self::Cluster => ResourceType::Cluster,
            Self::TransactionalId(_) => ResourceType::TransactionalId,
        }
    }
}

/// Decides what a principal may do. Asked for each element of a request, so it must be quick and
/// must not block.
pub(crate) trait Authorizer: Send + Sync {
    /// Whether `principal`, which connects from `host`, may do `operation` to `resource`.
    fn allows(
        &self,
        principal: &Principal,
        host: &str,
        operation: Operation,
        resource: Resource<'_>,
    ) -> bool;

    /// Whether there may be a resource of `kind` to which it may do `operation`.
    fn allows_any(
        &self,
        principal: &Principal,
        host: &str,
        operation: Operation,
        kind: ResourceType,
    ) -> bool;
}

/// Everybody may do everything.
#[derive(Debug)]
pub(crate) struct AllowAll;

impl Authorizer for AllowAll {
    fn allows(&self, _: &Principal, _: &str, _: Operation, _: Resource<'_>) -> bool {
        true
    }

    fn allows_any(&self, _: &Principal, _: &str, _: Operation, _: ResourceType) -> bool {
        true
    }
}
