//! The Kafka side of this world: a broker as it is, on a disk in memory, which counts what it is
//! asked.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use letterbox_broker::config::Config;
use letterbox_broker::node::Node;
use letterbox_env::{BoxFuture, BoxListener, BoxStream, Env, Net};
use letterbox_sim::disk::SimDisk;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;

/// A name that the operator looks up, and the port of the internal listener.
const ADDRESS: (&str, u16) = ("demo-bootstrap.ns.svc", 9092);
/// So many bytes are on their way in a direction at most.
const PIPE: usize = 64 << 10;

/// A broker, and its network. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Kafka(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
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
        Box::pin(async {
            let (ours, theirs) = tokio::io::duplex(PIPE);
            let refused = || io::ErrorKind::ConnectionRefused;
            let listener = self.with(|state| state.listener.clone()).ok_or_else(refused)?;
            listener.send(theirs).map_err(|_| refused())?;
            let counted = Connection { pipe: ours, asked: Some((self.clone(), Frames::default())) };
            Ok(Box::new(counted) as BoxStream)
        })
    }
}

struct Listener(tokio::sync::Mutex<mpsc::UnboundedReceiver<DuplexStream>>);

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
    /// The size of a frame and its API key, as far as they have come.
    head: Vec<u8>,
    /// How many bytes of the frame are to come behind these.
    left: u64,
}

impl Frames {
    /// The API keys in `bytes`.
    fn keys(&mut self, bytes: &[u8]) -> Vec<i16> {
        let mut keys = Vec::new();
        for byte in bytes {
            if self.left > 0 {
                self.left -= 1;
                continue;
            }
            self.head.push(*byte);
            if let [a, b, c, d, high, low] = self.head[..] {
                self.left = u64::from(u32::from_be_bytes([a, b, c, d])) - 2;
                keys.push(i16::from_be_bytes([high, low]));
                self.head.clear();
            }
        }
        keys
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
            let begins = frames.left == 0 && frames.head.is_empty();
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
            for key in frames.keys(&bytes[..*written]) {
                kafka.with(|state| *state.asked.entry(key).or_default() += 1);
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
