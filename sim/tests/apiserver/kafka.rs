//! The Kafka side of this world: a broker as it is, on a disk in memory, which counts what it is
//! asked.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use kafka_protocol::messages::{ApiKey, DeleteTopicsRequest, MetadataRequest, RequestHeader};
use kafka_protocol::protocol::Decodable as _;
use letterbox_broker::config::Config;
use letterbox_broker::node::Node;
use letterbox_env::{BoxFuture, BoxListener, BoxStream, Env, Net};
use letterbox_sim::disk::SimDisk;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;

use super::ApiServer;

/// A name that the operator looks up, and the port of the internal listener.
const ADDRESS: (&str, u16) = ("demo-bootstrap.ns.svc", 9092);
/// So many bytes are on their way in a direction at most.
const PIPE: usize = 64 << 10;

/// A request of an operator about topics.
#[derive(Clone, Debug)]
pub(crate) struct About {
    /// The newest version of the API server then.
    pub(crate) version: u64,
    /// Which API.
    pub(crate) key: ApiKey,
    /// The names of the topics.
    pub(crate) topics: Vec<String>,
}

/// The topics that a request is about, if it looks at some or deletes some.
fn topics_of(mut frame: Bytes) -> Option<(ApiKey, Vec<String>)> {
    let number = |at: usize| Some(i16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let (key, version) = (ApiKey::try_from(number(0)?).ok()?, number(2)?);
    if ![ApiKey::Metadata, ApiKey::DeleteTopics].contains(&key) {
        return None;
    }
    RequestHeader::decode(&mut frame, key.request_header_version(version)).ok()?;
    let topics: Vec<String> = match key {
        ApiKey::Metadata => {
            let topics = MetadataRequest::decode(&mut frame, version).ok()?.topics?;
            topics.into_iter().filter_map(|topic| Some(topic.name?.to_string())).collect()
        }
        _ => {
            let request = DeleteTopicsRequest::decode(&mut frame, version).ok()?;
            let named = request.topics.into_iter().filter_map(|topic| topic.name);
            named.chain(request.topic_names).map(|name| name.to_string()).collect()
        }
    };
    Some((key, topics))
}

/// A broker, and its network. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Kafka(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// What an operator asked about topics since somebody looked at it last.
    about: Vec<About>,
    /// Whose version is noted with that.
    server: Option<ApiServer>,
    listener: Option<mpsc::UnboundedSender<DuplexStream>>,
    /// How many requests came, by API key.
    asked: BTreeMap<i16, u64>,
    broker: Option<Node>,
    /// The API whose requests are on their way and do not arrive, and who waits for the end of
    /// that.
    held: Option<i16>,
    waiting: Vec<Waker>,
}

impl Kafka {
    /// Starts a broker that serves clients at port 9092, whatever name they use for it.
    pub(crate) async fn start() -> Self {
        let kafka = Self::default();
        let (host, port) = ADDRESS;
        let config = format!(
            "process.roles=broker,controller\nnode.id=0\n\
             controller.quorum.voters=0@localhost:9093\ncontroller.listener.names=CONTROLLER\n\
             listeners=PLAINTEXT://:{port},CONTROLLER://:9093\n\
             advertised.listeners=PLAINTEXT://{host}:{port}\nlog.dirs=/data\n\
             admin.listener=none\n"
        );
        let env = SimDisk::new(1).env();
        let env = Env { net: Arc::new(kafka.clone()), ..env };
        let never = std::future::pending();
        let broker = Node::start(env, Config::parse(&config).unwrap(), never).await.unwrap();
        kafka.with(|state| state.broker = broker);
        kafka
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Holds requests of an API on their way, or none any more.
    pub(crate) fn hold(&self, api_key: Option<i16>) {
        let woken = self.with(|state| {
            state.held = api_key;
            std::mem::take(&mut state.waiting)
        });
        woken.into_iter().for_each(Waker::wake);
    }

    /// Whether a request is held.
    pub(crate) fn holds_one(&self) -> bool {
        self.with(|state| !state.waiting.is_empty())
    }

    /// From now on the version of `server` is noted with what an operator asks.
    pub(crate) fn follow(&self, server: &ApiServer) {
        self.with(|state| state.server = Some(server.clone()));
    }

    /// What operators asked about topics since this was called last.
    pub(crate) fn take_about(&self) -> Vec<About> {
        self.with(|state| std::mem::take(&mut state.about))
    }

    /// A connection of an operator: what it asks about topics is noted.
    pub(crate) fn connect_operator(&self) -> io::Result<BoxStream> {
        self.connection(true)
    }

    fn connection(&self, is_operator: bool) -> io::Result<BoxStream> {
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let refused = || io::ErrorKind::ConnectionRefused;
        let listener = self.with(|state| state.listener.clone()).ok_or_else(refused)?;
        listener.send(theirs).map_err(|_| refused())?;
        let frames = Frames { is_operator, ..Frames::default() };
        Ok(Box::new(Connection { pipe: ours, asked: Some((self.clone(), frames)) }) as BoxStream)
    }

    /// Takes up a request.
    fn take(&self, frame: Vec<u8>, is_operator: bool) {
        let key = frame.get(..2).map(|key| i16::from_be_bytes([key[0], key[1]]));
        let about = topics_of(frame.into()).filter(|_| is_operator);
        self.with(|state| {
            *state.asked.entry(key.unwrap_or_default()).or_default() += 1;
            let version = state.server.as_ref().map(|server| server.changes_since(u64::MAX).1);
            state.about.extend(about.zip(version).map(|((key, topics), version)| About {
                version,
                key,
                topics,
            }));
        });
    }

    /// How many requests of an API came so far.
    pub(crate) fn asked(&self, api_key: i16) -> u64 {
        self.with(|state| state.asked.get(&api_key).copied().unwrap_or_default())
    }
}

impl Net for Kafka {
    fn bind<'a>(&'a self, _: &'a str, _: u16) -> BoxFuture<'a, io::Result<BoxListener>> {
        let (connections, accepted) = mpsc::unbounded_channel();
        self.with(|state| state.listener = Some(connections));
        let accepted = tokio::sync::Mutex::new(accepted);
        Box::pin(async { Ok(Box::new(Listener(accepted)) as BoxListener) })
    }

    fn connect<'a>(&'a self, _: &'a str, _: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async { self.connection(false) })
    }
}

/// Accepts the connections that come over a channel.
pub(crate) struct Listener(pub(crate) tokio::sync::Mutex<mpsc::UnboundedReceiver<DuplexStream>>);

impl letterbox_env::Listener for Listener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxStream, SocketAddr)>> {
        Box::pin(async {
            let pipe = self.0.lock().await.recv().await.ok_or(io::ErrorKind::BrokenPipe)?;
            Ok((Box::new(Connection { pipe, asked: None }) as BoxStream, peer()))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([0, 0, 0, 0], ADDRESS.1)))
    }
}

fn peer() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], ADDRESS.1))
}

/// Where in a stream of frames the last byte was.
#[derive(Default)]
struct Frames {
    /// What has come of a frame, with its size.
    frame: Vec<u8>,
    is_operator: bool,
}

impl Frames {
    /// The frames that end in `bytes`.
    fn ended(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.frame.extend(bytes);
        let mut ended = Vec::new();
        while let Some(size) = self.frame.first_chunk().map(|size| u32::from_be_bytes(*size)) {
            let end = 4 + size as usize;
            if self.frame.len() < end {
                break;
            }
            let rest = self.frame.split_off(end);
            ended.push(std::mem::replace(&mut self.frame, rest).split_off(4));
        }
        ended
    }
}

struct Connection {
    pipe: DuplexStream,
    /// Who counts the requests that are written.
    asked: Option<(Kafka, Frames)>,
}

impl letterbox_env::Stream for Connection {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(peer())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some((kafka, frames)) = &self.asked {
            let begins = frames.frame.is_empty();
            let key = bytes.get(4..6).map(|key| i16::from_be_bytes([key[0], key[1]]));
            let is_held = kafka.with(|state| {
                let is_held = begins && key.is_some() && state.held == key;
                state.waiting.extend(is_held.then(|| context.waker().clone()));
                is_held
            });
            if is_held {
                return Poll::Pending;
            }
        }
        let written = Pin::new(&mut self.pipe).poll_write(context, bytes);
        if let (Poll::Ready(Ok(written)), Some((kafka, frames))) = (&written, &mut self.asked) {
            for frame in frames.ended(&bytes[..*written]) {
                kafka.take(frame, frames.is_operator);
            }
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(context)
    }
}
