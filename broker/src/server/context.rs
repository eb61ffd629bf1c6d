//! Who asks: what every request carries through the pipeline.

use std::net::SocketAddr;
use std::sync::Arc;

use letterbox_protocol::frame::FrameLimit;

/// Who a connection belongs to once it has logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    /// `User` in all that this version knows.
    pub(crate) kind: &'static str,
    /// The user's name.
    pub(crate) name: Arc<str>,
}

impl Principal {
    /// Who a client is on a listener without authentication.
    #[must_use]
    pub(crate) fn anonymous() -> Self {
        Self { kind: "User", name: Arc::from("ANONYMOUS") }
    }
}

/// What a request wants to do; Kafka's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Read records or commit offsets.
    Read,
    /// Append records.
    Write,
    /// Make something.
    Create,
    /// Remove something.
    Delete,
    /// Change something.
    Alter,
    /// See that something is there.
    Describe,
    /// See configuration.
    DescribeConfigs,
    /// Change configuration.
    AlterConfigs,
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
}

/// One connection, as far as its requests need to know.
pub(crate) struct Connection {
    /// Counts the connections of this process.
    pub(crate) id: u64,
    /// Who it belongs to.
    pub(crate) principal: Principal,
    /// Which of `Config::listeners` it came in on.
    pub(crate) listener: usize,
    /// Where it comes from.
    pub(crate) peer: SocketAddr,
    /// The address as Java prints it, with a leading slash.
    pub(crate) host: Arc<str>,
    /// The `client.id` of the last request; nearly always that of the next one.
    client_id: Arc<str>,
    /// `client.software.name` and version, once told (KIP-511); empty before.
    pub(crate) software: String,
    /// How large the next frame may be.
    pub(crate) limit: FrameLimit,
}

impl Connection {
    /// A new connection.
    #[must_use]
    pub(crate) fn new(id: u64, listener: usize, peer: SocketAddr, limit: FrameLimit) -> Self {
        let host = format!("/{}", peer.ip().to_canonical()).into();
        Self {
            id,
            principal: Principal::anonymous(),
            listener,
            peer,
            host,
            client_id: Arc::default(),
            software: String::new(),
            limit,
        }
    }

    /// `client_id` as a request of this connection keeps it.
    pub(super) fn client_id(&mut self, client_id: &str) -> Arc<str> {
        if *self.client_id != *client_id {
            self.client_id = client_id.into();
        }
        self.client_id.clone()
    }
}

/// One request's view of its connection.
#[derive(Clone, Debug)]
pub(crate) struct RequestContext {
    /// Who asks.
    #[expect(dead_code, reason = "no authorizer can be configured")]
    pub(crate) principal: Principal,
    /// Which of `Config::listeners` it came in on.
    pub(crate) listener: usize,
    /// Where it comes from.
    pub(crate) peer: SocketAddr,
    /// `client.id`; empty when none was given.
    pub(crate) client_id: Arc<str>,
    /// The version of the API the client speaks.
    pub(crate) api_version: i16,
    /// Echoed in the response.
    pub(crate) correlation_id: i32,
}

impl RequestContext {
    /// Whether the principal may do `operation` to `resource`.
    ///
    /// The one place where authorization is decided. No authorizer can be configured in this
    /// version, so everything is allowed, as in Kafka without `authorizer.class.name`.
    #[must_use]
    pub(crate) fn may(&self, _operation: Operation, _resource: Resource<'_>) -> bool {
        true
    }
}
