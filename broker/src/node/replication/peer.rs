//! A connection to another broker, on the listener that brokers use between themselves.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use kafka_protocol::messages as m;
use kafka_protocol::protocol::{Request, StrBytes};
use letterbox_env::BoxStream;
use letterbox_protocol::model::BrokerId;
use letterbox_protocol::{ErrorCode, apis, decode_answer, encode_call};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::Shared;
use crate::metadata::{Endpoint, MetadataImage};

/// The versions of Fetch in which brokers of this project speak to one another.
const FETCH_MIN: i16 = 15;
const FETCH_MAX: i16 = 18;
/// The version of ApiVersions in which they ask for that.
const API_VERSIONS: i16 = 3;
/// An answer is at most so much longer than its records.
const FRAMING_MAX: usize = 16 << 20;

/// Why a peer gave no answer. The connection is given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// It is not registered, or not with that listener.
    #[error("broker {0} has no listener that other brokers could use")]
    NoEndpoint(BrokerId),
    /// The network's.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Nothing came in time.
    #[error("no answer within {} ms (replica.socket.timeout.ms)", .0.as_millis())]
    Timeout(Duration),
    /// It is no broker that this one understands.
    #[error("{0}")]
    Protocol(String),
}

/// An open connection.
pub(super) struct Peer {
    stream: BoxStream,
    correlation_id: i32,
    fetch_version: i16,
    client_id: String,
    answer_max: usize,
}

impl Peer {
    /// Connects, looking up anew where `broker` is and which versions it speaks.
    pub(super) async fn connect(shared: &Shared, broker: BrokerId) -> Result<Self, PeerError> {
        let within = shared.config.duration("replica.socket.timeout.ms");
        let deadline = Instant::now() + within;
        let image = shared.replicas.image();
        let endpoint =
            endpoint(shared, &image, broker).ok_or(PeerError::NoEndpoint(broker))?.clone();
        let connect = shared.env.net.connect(&endpoint.host, endpoint.port);
        let stream =
            timeout_at(deadline, connect).await.map_err(|_| PeerError::Timeout(within))??;
        let batch_max = shared.config.size("socket.request.max.bytes");
        let records_max = shared.config.size("replica.fetch.response.max.bytes").max(batch_max);
        let mut peer = Self {
            stream,
            correlation_id: 0,
            fetch_version: FETCH_MAX,
            client_id: format!("broker-{}-fetcher", shared.me.id),
            answer_max: records_max.saturating_add(FRAMING_MAX),
        };
        peer.fetch_version = peer.negotiate(deadline, within).await?;
        Ok(peer)
    }

    async fn negotiate(&mut self, deadline: Instant, within: Duration) -> Result<i16, PeerError> {
        let request = m::ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("letterbox"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let answer = self.exchange(API_VERSIONS, &request, deadline, within).await?;
        let theirs = answer.api_keys.iter().find(|api| api.api_key == apis::FETCH);
        let theirs = theirs.filter(|_| answer.error_code == ErrorCode::None.code());
        let version = theirs.map(|api| api.max_version.min(FETCH_MAX));
        version.filter(|version| *version >= FETCH_MIN).ok_or_else(|| {
            PeerError::Protocol(format!("it does not speak Fetch in version {FETCH_MIN}"))
        })
    }

    /// The answer to `request`, within `replica.socket.timeout.ms`.
    pub(super) async fn fetch(
        &mut self,
        shared: &Shared,
        request: m::FetchRequest,
    ) -> Result<m::FetchResponse, PeerError> {
        let within = shared.config.duration("replica.socket.timeout.ms");
        let (version, deadline) = (self.fetch_version, Instant::now() + within);
        self.exchange(version, &request, deadline, within).await
    }

    async fn exchange<R: Request>(
        &mut self,
        version: i16,
        request: &R,
        deadline: Instant,
        within: Duration,
    ) -> Result<R::Response, PeerError> {
        let exchange = self.exchange_unbounded(version, request);
        timeout_at(deadline, exchange).await.map_err(|_| PeerError::Timeout(within))?
    }

    async fn exchange_unbounded<R: Request>(
        &mut self,
        version: i16,
        request: &R,
    ) -> Result<R::Response, PeerError> {
        let unreadable =
            |error: letterbox_protocol::WireError| PeerError::Protocol(error.to_string());
        self.correlation_id = self.correlation_id.wrapping_add(1);
        let correlation_id = self.correlation_id;
        let frame = encode_call(correlation_id, Some(&self.client_id), version, request)
            .map_err(unreadable)?;
        self.stream.write_all(&frame).await?;
        let len = self.stream.read_u32().await?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > self.answer_max {
            return Err(PeerError::Protocol(format!("it answers with {len} bytes")));
        }
        // Grows with what comes, whatever length was said.
        let mut answer = BytesMut::new();
        while answer.len() < len {
            let left = u64::try_from(len - answer.len()).unwrap_or(u64::MAX);
            if (&mut self.stream).take(left).read_buf(&mut answer).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        let answer = decode_answer::<R>(version, answer.freeze()).map_err(unreadable)?;
        match answer {
            (id, answer) if id == correlation_id => Ok(answer),
            _ => Err(PeerError::Protocol("the answer is to another request".to_owned())),
        }
    }
}

/// Where other brokers reach `broker`: the listener of `inter.broker.listener.name`, else the one
/// that is called as `security.inter.broker.protocol`, else its first.
fn endpoint<'a>(
    shared: &Shared,
    image: &'a MetadataImage,
    broker: BrokerId,
) -> Option<&'a Endpoint> {
    let registration = image.brokers.get(&broker)?;
    match shared.config.entry("inter.broker.listener.name").value {
        Some(name) => registration.endpoint(name.trim()),
        None => {
            let protocol = shared.config.entry("security.inter.broker.protocol").value;
            let named = protocol.and_then(|name| registration.endpoint(name.trim()));
            named.or_else(|| registration.endpoints.first())
        }
    }
}
