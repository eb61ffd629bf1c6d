//! One connection to one broker: frames, correlation, order, deadlines.
//!
//! A task owns the socket. Callers hand it whole frames and get whole response bodies; responses
//! come in the order of the requests, so one queue of waiting callers is enough.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::ApiVersionsRequest;
use kafka_protocol::protocol::{Request, StrBytes};
use letterbox_env::{BoxStream, Env, Gather};
use letterbox_protocol::{apis, decode_answer, encode_call};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::client::ClientOptions;
use crate::error::Error;
use crate::versions;

/// Frames that wait for the socket; callers wait when there are more.
const QUEUE_MAX: usize = 64;

type Reply = oneshot::Sender<Result<Bytes, Error>>;

struct Outgoing {
    frame: Bytes,
    /// `None` when the broker does not answer (Produce with acks=0).
    reply: Option<(i32, Reply)>,
}

/// An open connection whose versions are known.
pub(crate) struct Connection {
    address: String,
    client_id: String,
    api_versions: BTreeMap<i16, (i16, i16)>,
    correlation: AtomicI32,
    requests: mpsc::Sender<Outgoing>,
    broken: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    /// Connects to `address` and asks for its versions.
    pub(crate) async fn open(
        env: &Env,
        address: &str,
        options: &ClientOptions,
    ) -> Result<Self, Error> {
        let (host, port) = split_address(address)?;
        let failed = |reason: String| Error::Connect { address: address.to_owned(), reason };
        let stream = match tokio::time::timeout(
            options.connect_timeout,
            env.net.connect(host, port),
        )
        .await
        {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => {
                return Err(failed(format!(
                    "no connection within {} ms",
                    options.connect_timeout.as_millis()
                )));
            }
        };
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        let broken = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(run(
            stream,
            queue,
            Arc::clone(&broken),
            address.to_owned(),
            options.response_bytes_max,
        ));
        let mut connection = Self {
            address: address.to_owned(),
            client_id: options.client_id.clone(),
            api_versions: BTreeMap::new(),
            correlation: AtomicI32::new(0),
            requests,
            broken,
            task,
        };
        // A peer that accepts and never answers (a TLS port, a dead process) is found here.
        let within =
            options.connect_timeout.max(Duration::from_secs(1)).min(options.request_timeout);
        connection.api_versions =
            connection.negotiate(Instant::now() + within).await.map_err(|error| match error {
                Error::Disconnected { reason, .. } => {
                    failed(format!("it closed the connection at the first request ({reason})"))
                }
                Error::Timeout { after, .. } => failed(format!(
                    "it accepts connections but did not answer within {} ms",
                    after.as_millis()
                )),
                other => other,
            })?;
        Ok(connection)
    }

    /// Where this connection goes, as it was given.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Whether the connection has ended; a new one is needed.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// The newest version of `R` that both sides speak, not above `max`.
    pub(crate) fn version_of<R: Request>(&self, max: i16) -> Result<i16, Error> {
        let ours = versions::range::<R>().map(|(min, newest)| (min, newest.min(max)));
        let theirs = self.api_versions.get(&R::KEY).copied();
        let told = |range: Option<(i16, i16)>| {
            range.map_or_else(|| "none".to_owned(), |(min, max)| format!("{min}-{max}"))
        };
        versions::agree(ours, theirs).ok_or_else(|| Error::Unsupported {
            address: self.address.clone(),
            api: api_name(R::KEY),
            ours: told(ours),
            theirs: told(theirs),
        })
    }

    /// Sends `request` and waits for its response until `deadline`; then the connection is given
    /// up.
    pub(crate) async fn call<R: Request>(
        &self,
        request: &R,
        version: i16,
        deadline: Instant,
    ) -> Result<R::Response, Error> {
        let body = self.exchange(request, version, deadline).await?;
        self.decode::<R>(body, version)
    }

    /// Sends `request`, to which the broker does not answer.
    pub(crate) async fn send_only<R: Request>(
        &self,
        request: &R,
        version: i16,
        deadline: Instant,
    ) -> Result<(), Error> {
        let (frame, _) = self.encode(request, version)?;
        self.enqueue(Outgoing { frame, reply: None }, deadline).await
    }

    async fn negotiate(&self, deadline: Instant) -> Result<BTreeMap<i16, (i16, i16)>, Error> {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("letterbox"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let mut version = 3;
        let mut body = self.exchange(&request, version, deadline).await?;
        // A broker that does not know the version answers with code 35 and a body of version 0
        // (KIP-511).
        if body.len() >= 6 && body.get(4..6) == Some(&[0, 35]) {
            version = 0;
            body = self.exchange(&request, version, deadline).await?;
        }
        let response = self.decode::<ApiVersionsRequest>(body, version)?;
        crate::error::BrokerError::check(response.error_code, None)?;
        Ok(response
            .api_keys
            .iter()
            .map(|api| (api.api_key, (api.min_version, api.max_version)))
            .gather())
    }

    async fn exchange<R: Request>(
        &self,
        request: &R,
        version: i16,
        deadline: Instant,
    ) -> Result<Bytes, Error> {
        let started = Instant::now();
        let (frame, correlation) = self.encode(request, version)?;
        let (reply, answer) = oneshot::channel();
        self.enqueue(Outgoing { frame, reply: Some((correlation, reply)) }, deadline).await?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.ended()),
            Err(_) => {
                self.broken.store(true, Ordering::Relaxed);
                self.task.abort();
                Err(Error::Timeout {
                    what: format!("{} at {}", api_name(R::KEY), self.address),
                    after: started.elapsed(),
                })
            }
        }
    }

    async fn enqueue(&self, outgoing: Outgoing, deadline: Instant) -> Result<(), Error> {
        let started = Instant::now();
        match tokio::time::timeout_at(deadline, self.requests.send(outgoing)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(self.ended()),
            Err(_) => Err(Error::Timeout {
                what: format!("sending to {}", self.address),
                after: started.elapsed(),
            }),
        }
    }

    fn ended(&self) -> Error {
        Error::Disconnected { address: self.address.clone(), reason: "closed".to_owned() }
    }

    fn encode<R: Request>(&self, request: &R, version: i16) -> Result<(Bytes, i32), Error> {
        let correlation = self.correlation.fetch_add(1, Ordering::Relaxed) & i32::MAX;
        let frame = encode_call(correlation, Some(&self.client_id), version, request);
        frame.map(|frame| (frame, correlation)).map_err(|error| {
            let api = api_name(R::KEY);
            Error::Invalid(format!("{api} cannot be sent in version {version}: {error}"))
        })
    }

    /// Decodes a response that begins with the correlation id.
    fn decode<R: Request>(&self, frame: Bytes, version: i16) -> Result<R::Response, Error> {
        let answer = decode_answer::<R>(version, frame);
        answer.map(|(_, response)| response).map_err(|error| Error::Malformed {
            address: self.address.clone(),
            reason: error.to_string(),
        })
    }
}

/// Moves frames in both directions until either side ends; then every waiting caller is told.
async fn run(
    stream: BoxStream,
    mut queue: mpsc::Receiver<Outgoing>,
    broken: Arc<AtomicBool>,
    address: String,
    response_bytes_max: usize,
) {
    let (read_half, write_half) = tokio::io::split(stream);
    let waiting = Waiting::default();
    let error = tokio::select! {
        biased;
        error = read(read_half, &waiting, &address, response_bytes_max) => error,
        error = write(write_half, &mut queue, &waiting, &address) => error,
    };
    broken.store(true, Ordering::Relaxed);
    queue.close();
    tracing::debug!(%address, %error, "connection ended");
    for (_, reply) in waiting.lock().drain(..) {
        let _ = reply.send(Err(error.clone()));
    }
    while let Ok(outgoing) = queue.try_recv() {
        if let Some((_, reply)) = outgoing.reply {
            let _ = reply.send(Err(error.clone()));
        }
    }
}

/// The callers that wait for an answer, in the order of their requests, with the correlation ids.
#[derive(Default)]
struct Waiting(Mutex<VecDeque<(i32, Reply)>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(i32, Reply)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what is queued; why it ended.
async fn write(
    mut half: WriteHalf<BoxStream>,
    queue: &mut mpsc::Receiver<Outgoing>,
    waiting: &Waiting,
    address: &str,
) -> Error {
    while let Some(outgoing) = queue.recv().await {
        if let Some(reply) = outgoing.reply {
            waiting.lock().push_back(reply);
        }
        if let Err(error) = half.write_all(&outgoing.frame).await {
            return Error::disconnected(address, &error);
        }
    }
    Error::Closed
}

/// Gives each answer to the caller that waits for it; why it ended.
async fn read(
    mut half: ReadHalf<BoxStream>,
    waiting: &Waiting,
    address: &str,
    bytes_max: usize,
) -> Error {
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    loop {
        match next_frame(&mut buffer, address, bytes_max) {
            Err(error) => return error,
            Ok(Some(frame)) => {
                let front = waiting.lock().pop_front();
                let correlation = frame.get(..4).map_or(-1, |mut bytes| bytes.get_i32());
                match front {
                    // The caller may have stopped waiting.
                    Some((expected, reply)) if expected == correlation => {
                        drop(reply.send(Ok(frame)));
                    }
                    _ => {
                        return Error::Malformed {
                            address: address.to_owned(),
                            reason: "an answer to no request".to_owned(),
                        };
                    }
                }
            }
            Ok(None) => match half.read_buf(&mut buffer).await {
                Ok(0) => {
                    return Error::Disconnected {
                        address: address.to_owned(),
                        reason: "closed by the broker".to_owned(),
                    };
                }
                Ok(_) => {}
                Err(error) => return Error::disconnected(address, &error),
            },
        }
    }
}

/// Takes one whole frame (without its length) off the front of `buffer`, when it is there.
fn next_frame(
    buffer: &mut BytesMut,
    address: &str,
    bytes_max: usize,
) -> Result<Option<Bytes>, Error> {
    let Some(prefix) = buffer.get(..4) else { return Ok(None) };
    let size = prefix.iter().fold(0u32, |value, byte| (value << 8) | u32::from(*byte));
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if !(4..=bytes_max).contains(&size) {
        return Err(Error::Malformed {
            address: address.to_owned(),
            reason: format!("a frame of {size} bytes; at most {bytes_max} are accepted"),
        });
    }
    let whole = size.saturating_add(4);
    if buffer.len() < whole {
        // Grows with what has arrived, at most doubling: a length alone does not make us allocate.
        buffer.reserve((whole - buffer.len()).min(buffer.len().max(64 * 1024)));
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(size).freeze()))
}

/// The host and port of a broker.
pub(crate) fn split_address(address: &str) -> Result<(&str, u16), Error> {
    letterbox_env::split_address(address)
        .filter(|(host, port)| !host.is_empty() && *port != 0)
        .ok_or_else(|| Error::Address { address: address.to_owned() })
}

fn api_name(key: i16) -> String {
    apis::find(key).map_or_else(|| format!("API {key}"), |api| api.name.to_owned())
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    #[test]
    fn addresses_are_split_and_wrong_ones_refused() {
        assert_eq!(split_address("localhost:9092").unwrap(), ("localhost", 9092));
        assert_eq!(split_address("[::1]:9092").unwrap(), ("::1", 9092));
        for wrong in ["localhost", ":9092", "localhost:0", ""] {
            assert!(split_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn frames_are_cut_at_any_boundary_and_a_length_alone_allocates_little() {
        let mut buffer = BytesMut::new();
        let mut frames = Vec::new();
        for byte in [0, 0, 0, 5, 0, 0, 0, 1, 9, 0, 0, 0, 4, 0, 0, 0, 2] {
            buffer.put_u8(byte);
            if let Some(frame) = next_frame(&mut buffer, "b:1", 1000).unwrap() {
                frames.push(frame);
            }
        }
        assert_eq!(
            frames,
            [Bytes::from_static(&[0, 0, 0, 1, 9]), Bytes::from_static(&[0, 0, 0, 2])]
        );

        let mut huge = BytesMut::from(&[0x07, 0, 0, 0, 1][..]);
        assert!(next_frame(&mut huge, "b:1", usize::MAX).unwrap().is_none());
        assert!(huge.capacity() < 1 << 20);
        assert!(next_frame(&mut BytesMut::from(&[0x07, 0, 0, 0][..]), "b:1", 1000).is_err());
        assert!(next_frame(&mut BytesMut::from(&[0xff; 4][..]), "b:1", 1000).is_err());
        assert!(next_frame(&mut BytesMut::from(&[0, 0, 0, 3][..]), "b:1", 1000).is_err());
    }
}
