//! One connection, as far as its requests need to know.

use std::net::SocketAddr;
use std::sync::Arc;

use letterbox_protocol::frame::FrameLimit;

use crate::request::{Caller, RequestContext};
use crate::security::Authorizer;

/// What a connection knows of its client.
pub(crate) struct Connection {
    /// Counts the connections of this process.
    pub(crate) id: u64,
    /// Who is at the other end.
    pub(crate) caller: Arc<Caller>,
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
    pub(crate) fn new(
        id: u64,
        listener: usize,
        peer: SocketAddr,
        authorizer: Arc<dyn Authorizer>,
        limit: FrameLimit,
    ) -> Self {
        Self {
            id,
            caller: Arc::new(Caller::anonymous(listener, peer, authorizer)),
            client_id: Arc::default(),
            software: String::new(),
            limit,
        }
    }

    /// `client_id`, which is UTF-8, as a request of this connection keeps it.
    pub(super) fn client_id(&mut self, client_id: &[u8]) -> Arc<str> {
        if self.client_id.as_bytes() != client_id {
            self.client_id = String::from_utf8_lossy(client_id).into();
        }
        self.client_id.clone()
    }

    /// What a request of this connection carries.
    pub(super) fn request(
        &self,
        client_id: Arc<str>,
        api_version: i16,
        correlation_id: i32,
    ) -> RequestContext {
        RequestContext { caller: self.caller.clone(), client_id, api_version, correlation_id }
    }
}
