//! A fault of the broker that one connection meets ends that connection, and nothing else.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

mod common;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use common::{PATIENCE, ask, free_port, http_get, is_closed};
use kafka_protocol::messages as m;
use letterbox_broker::config::Config;
use letterbox_broker::node::Node;
use letterbox_env::{BoxFuture, BoxListener, BoxStream, Env, Listener, Net, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The real network, but whoever reads from the first connection to each of the ports panics.
struct Faulty(Arc<dyn Net>, [u16; 2]);

struct FaultyListener(BoxListener, AtomicBool);

struct FaultyStream(BoxStream);

impl Net for Faulty {
    fn bind<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, std::io::Result<BoxListener>> {
        Box::pin(async move {
            Ok(Box::new(FaultyListener(
                self.0.bind(host, port).await?,
                AtomicBool::new(self.1.contains(&port)),
            )) as BoxListener)
        })
    }
    fn connect<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, std::io::Result<BoxStream>> {
        self.0.connect(host, port)
    }
}

impl Listener for FaultyListener {
    fn accept(&self) -> BoxFuture<'_, std::io::Result<(BoxStream, SocketAddr)>> {
        Box::pin(async move {
            let (stream, peer) = self.0.accept().await?;
            let is_first = self.1.swap(false, Ordering::Relaxed);
            Ok((if is_first { Box::new(FaultyStream(stream)) as BoxStream } else { stream }, peer))
        })
    }
    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Stream for FaultyStream {
    fn peer_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.peer_addr()
    }
}

impl AsyncRead for FaultyStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match Pin::new(&mut self.0).poll_read(context, buffer) {
            Poll::Ready(_) => panic!("met on this connection"),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for FaultyStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }
    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }
    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_ends_its_connection_is_counted_and_the_others_go_on() {
    letterbox_env::panics::end_process_on_panic();
    let dir = tempfile::tempdir().unwrap();
    let (port, admin) = (free_port(), free_port());
    let text = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@localhost:9093\ncontroller.listener.names=CONTROLLER\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{}\nlog.dirs={}\nadmin.listener=127.0.0.1:{admin}\n",
        free_port(),
        dir.path().display()
    );
    let env = Env { net: Arc::new(Faulty(Env::real().net, [port, admin])), ..Env::real() };
    let config = Config::parse(&text).unwrap();
    let broker = Node::start(env, config, std::future::pending()).await.unwrap().unwrap();
    tokio::task::spawn_blocking(move || {
        let connect = || {
            let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        };
        let mut unlucky = connect();
        unlucky.write_all(b"anything").unwrap();
        assert!(is_closed(&mut unlucky));
        ask(&mut connect(), 0, m::ApiVersionsRequest::default());
        let mut unlucky = TcpStream::connect(("127.0.0.1", admin)).unwrap();
        unlucky.write_all(b"GET /livez HTTP/1.1\r\n\r\n").unwrap();
        assert!(is_closed(&mut unlucky));
        // The connection is closed before its end is counted.
        let counted = [
            "letterbox_panics_total 1\n",
            "letterbox_connections_closed_total{reason=\"panic\"} 1\n",
        ];
        let until = Instant::now() + PATIENCE;
        loop {
            let (_, metrics) = http_get(admin, "/metrics");
            if counted.iter().all(|row| metrics.contains(row)) {
                break;
            }
            assert!(Instant::now() < until, "{metrics}");
        }
    })
    .await
    .unwrap();
    broker.shutdown().await.unwrap();
}
