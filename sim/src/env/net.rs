//! turmoil's network behind `letterbox_env::Net`. Every byte that is read or written is traced.
//!
//! turmoil's TCP never retransmits: what a cut eats is gone and the stream stays open for ever, as
//! behind a firewall that drops packets. Every call over it needs a deadline.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use letterbox_env::{BoxFuture, BoxListener, BoxStream, Listener, Net, Stream, TryWrite};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

use super::Machine;

/// A stream that both its user and the machine can end.
#[derive(Clone)]
pub(super) struct Socket(Arc<Mutex<Option<TcpStream>>>);

impl Socket {
    /// Drops turmoil's stream: FIN, or RST when there was something unread.
    pub(super) fn close(self) {
        drop(self.lock().take());
    }

    fn lock(&self) -> MutexGuard<'_, Option<TcpStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct SimNet(pub(super) Machine);

struct SimListener {
    machine: Machine,
    listener: TcpListener,
}

struct SimStream {
    id: u64,
    end: End,
}

/// This machine's end of a stream.
#[derive(Clone)]
struct End {
    machine: Machine,
    socket: Socket,
    local: SocketAddr,
    peer: SocketAddr,
}

impl Net for SimNet {
    fn bind<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<BoxListener>> {
        Box::pin(async move {
            let address = match host {
                "localhost" => Ipv4Addr::LOCALHOST,
                "" | "::" => Ipv4Addr::UNSPECIFIED,
                // turmoil listens on all addresses or on the loopback; a machine has one address of
                // its own.
                name if name == self.0.name() => Ipv4Addr::UNSPECIFIED,
                name => match name.parse::<Ipv4Addr>() {
                    Ok(address) if address.is_unspecified() || address.is_loopback() => address,
                    _ => {
                        return Err(io::Error::new(
                            io::ErrorKind::AddrNotAvailable,
                            format!("{name} is not an address of this machine"),
                        ));
                    }
                },
            };
            let listener = TcpListener::bind((address, port)).await?;
            self.0.event("bind", &[u64::from(listener.local_addr()?.port())], &[]);
            Ok(Box::new(SimListener { machine: self.0.clone(), listener }) as BoxListener)
        })
    }

    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async move {
            if !self.0.is_running() {
                return pending().await;
            }
            self.0.event("connect", &[u64::from(port)], host.as_bytes());
            let host = if host == "localhost" { "127.0.0.1" } else { host };
            let stream = TcpStream::connect((host, port)).await?;
            SimStream::boxed(&self.0, stream)
        })
    }
}

impl Listener for SimListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxStream, SocketAddr)>> {
        Box::pin(async move {
            let (stream, peer) = self.listener.accept().await?;
            Ok((SimStream::boxed(&self.machine, stream)?, peer))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl SimStream {
    fn boxed(machine: &Machine, stream: TcpStream) -> io::Result<BoxStream> {
        let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
        let socket = Socket(Arc::new(Mutex::new(Some(stream))));
        let mut sockets = machine.0.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let id = next_id(&sockets);
        sockets.insert(id, socket.clone());
        drop(sockets);
        let stream = Self { id, end: End { machine: machine.clone(), socket, local, peer } };
        stream.end.event("open", &[]);
        Ok(Box::new(stream))
    }
}

impl End {
    fn event(&self, kind: &str, bytes: &[u8]) {
        let numbers =
            [u64::from(self.local.port()), address(self.peer), u64::from(self.peer.port())];
        self.machine.event(kind, &numbers, bytes);
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.machine.is_running() {
            return Poll::Pending;
        }
        let mut socket = self.socket.lock();
        let Some(stream) = socket.as_mut() else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let written = ready!(Pin::new(stream).poll_write(cx, bytes))?;
        drop(socket);
        self.event("send", &bytes[..written]);
        Poll::Ready(Ok(written))
    }
}

impl TryWrite for End {
    fn try_write(&self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let first = parts.iter().find(|part| !part.is_empty()).map_or(&[][..], |part| part);
        match self.poll_write(&mut Context::from_waker(Waker::noop()), first) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

fn next_id(sockets: &BTreeMap<u64, Socket>) -> u64 {
    sockets.last_key_value().map_or(0, |(last, _)| last + 1)
}

fn address(of: SocketAddr) -> u64 {
    match of {
        SocketAddr::V4(v4) => u64::from(v4.ip().to_bits()),
        SocketAddr::V6(v6) => u64::try_from(v6.ip().to_bits() & u128::from(u64::MAX)).unwrap_or(0),
    }
}

impl Stream for SimStream {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.end.peer)
    }

    fn writer(&self) -> Option<Arc<dyn TryWrite>> {
        Some(Arc::new(self.end.clone()))
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let mut socket = self.end.socket.lock();
        let Some(stream) = socket.as_mut() else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        ready!(Pin::new(stream).poll_read(cx, buffer))?;
        drop(socket);
        self.end.event("receive", &buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.end.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.end.machine.is_running() {
            return Poll::Pending;
        }
        self.end.event("shutdown", &[]);
        let mut socket = self.end.socket.lock();
        match socket.as_mut() {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.end.event("close", &[]);
        let registered = self
            .end
            .machine
            .0
            .sockets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.id);
        drop(registered);
    }
}
