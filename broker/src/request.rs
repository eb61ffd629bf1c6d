//! Who asks: what every request carries on its way.

use std::net::SocketAddr;
use std::sync::Arc;

use letterbox_protocol::ErrorCode;

use crate::security::{Authorizer, Operation, Principal, Resource, ResourceType};

/// The client of a connection, as its requests need to know it. All of them share it.
pub(crate) struct Caller {
    /// Who the connection belongs to.
    pub principal: Principal,
    /// Which of `Config::listeners` it came in on.
    pub listener: usize,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// The address as Java prints it, with a leading slash: `/127.0.0.1`. Shown by DescribeGroups.
    pub host: Arc<str>,
    /// Decides what it may do.
    pub authorizer: Arc<dyn Authorizer>,
}

impl Caller {
    /// A client that has not logged in.
    #[must_use]
    pub(crate) fn anonymous(
        listener: usize,
        peer: SocketAddr,
        authorizer: Arc<dyn Authorizer>,
    ) -> Self {
        let host = format!("/{}", peer.ip().to_canonical()).into();
        Self { principal: Principal::anonymous(), listener, peer, host, authorizer }
    }
}

/// One request's view of its connection.
#[derive(Clone)]
pub(crate) struct RequestContext {
    /// Who asks.
    pub caller: Arc<Caller>,
    /// `client.id`; empty when none was given. Member ids of groups begin with it.
    pub client_id: Arc<str>,
    /// The version of the API the client speaks.
    pub api_version: i16,
    /// Echoed in the response.
    pub correlation_id: i32,
}

impl RequestContext {
    /// Whether the caller may do `operation` to `resource`.
    #[must_use]
    pub(crate) fn may(&self, operation: Operation, resource: Resource<'_>) -> bool {
        let Caller { principal, host, authorizer, .. } = &*self.caller;
        authorizer.allows(principal, host, operation, resource)
    }

    /// As [`Self::may`], with what the client is told.
    ///
    /// # Errors
    /// The authorization error of the resource's kind.
    pub(crate) fn check(
        &self,
        operation: Operation,
        resource: Resource<'_>,
    ) -> Result<(), ErrorCode> {
        if self.may(operation, resource) { Ok(()) } else { Err(resource.kind().refusal()) }
    }

    /// Whether there may be a resource of `kind` to which the caller may do `operation`.
    #[must_use]
    pub(crate) fn may_any(&self, operation: Operation, kind: ResourceType) -> bool {
        let Caller { principal, host, authorizer, .. } = &*self.caller;
        authorizer.allows_any(principal, host, operation, kind)
    }

    /// What the caller may do to `resource`, a bit for each operation (KIP-430).
    #[must_use]
    pub(crate) fn authorized_operations(&self, resource: Resource<'_>) -> i32 {
        let allowed = resource.kind().operations().iter().filter(|one| self.may(**one, resource));
        allowed.fold(0, |bits, one| bits | 1 << *one as u8)
    }
}

/// What is answered for authorized operations that were not asked for (KIP-430).
pub(crate) const OPERATIONS_NOT_ASKED: i32 = i32::MIN;

#[cfg(test)]
impl RequestContext {
    /// A request from this machine that may do everything.
    pub(crate) fn local(client_id: &str, api_version: i16) -> Self {
        let caller =
            Caller::anonymous(0, ([127, 0, 0, 1], 1).into(), Arc::new(crate::security::AllowAll));
        Self {
            caller: Arc::new(caller),
            client_id: client_id.into(),
            api_version,
            correlation_id: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Kafka 4.x answers without an authorizer.
    #[test]
    fn whoever_may_do_everything_has_every_bit_that_kafka_shows() {
        let ctx = RequestContext::local("c", 0);
        for (resource, bits) in [
            (Resource::Topic("t"), 0b1101_1111_1000),
            (Resource::Group("g"), 0b1101_0100_1000),
            (Resource::Cluster, 0b1_1111_1010_0000),
        ] {
            assert_eq!(ctx.authorized_operations(resource), bits, "{resource:?}");
        }
    }
}
