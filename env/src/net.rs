//! Listeners, streams and name look-up.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::BoxFuture;

/// A connected byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Where the other side is.
    fn peer_addr(&self) -> io::Result<SocketAddr>;

    /// The socket behind this stream when bytes may be sent past it (`sendfile`): `None` in the
    /// simulation and for TLS.
    fn as_tcp(&self) -> Option<&tokio::net::TcpStream> {
        None
    }

    /// Whether the other side sends nothing more, even if what it has sent is not read yet: for who
    /// does not read. False where that cannot be told.
    fn is_left(&self) -> bool {
        false
    }

    /// A way to write to this stream from any thread, while its owner does not write: `None` where
    /// there is none.
    fn writer(&self) -> Option<Arc<dyn TryWrite>> {
        None
    }
}

/// Writes to a stream without waiting.
pub trait TryWrite: Send + Sync {
    /// Writes the beginning of `parts`; tells how much.
    ///
    /// # Errors
    /// `WouldBlock` when the other side must read first; the socket's own.
    fn try_write(&self, parts: &[io::IoSlice<'_>]) -> io::Result<usize>;
}

/// A boxed [`Stream`].
pub type BoxStream = Box<dyn Stream>;

/// An open listener.
pub trait Listener: Send + Sync {
    /// The next connection and its address. Cancel safe.
    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxStream, SocketAddr)>>;

    /// The address that is listened on; tells the port when 0 was asked for.
    ///
    /// # Errors
    /// The socket's own.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// Splits `host:port` as Kafka's settings and tools do: the port is behind the last colon, and
/// brackets around the host, which an IPv6 address may have, are left out. The host may be empty,
/// the port 0.
#[must_use]
pub fn split_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.trim().rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    // Parsing a number takes a sign, too.
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse().ok().filter(|_| is_number && !bare.contains(['[', ']']))?;
    Some((bare, port))
}

/// Splits `NAME://host:port`, as Kafka's `listeners` has them, the address as [`split_address`]
/// does.
///
/// # Errors
/// What is wrong with it, as words that follow it.
pub fn split_listener(listener: &str) -> Result<(&str, &str, u16), &'static str> {
    let (name, address) = listener.trim().split_once("://").ok_or("has no ://")?;
    let (host, port) = split_address(address).ok_or("has no port from 0 to 65535")?;
    Ok((name, host, port))
}

/// `host:port` as [`split_address`] reads it: an IPv6 address stands in brackets.
#[must_use]
pub fn join_address(host: &str, port: impl Display) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A boxed [`Listener`].
pub type BoxListener = Box<dyn Listener>;

/// The network.
pub trait Net: Send + Sync {
    /// Listens on `host:port`. An empty host means every interface; `::` takes IPv4 too.
    ///
    /// Fails with `NotFound` while the name has no address.
    fn bind<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<BoxListener>>;

    /// As [`Net::bind`] for an IPv6 address, and leaves IPv4 on that port to another listener.
    fn bind_ipv6_only<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<BoxListener>> {
        self.bind(host, port)
    }

    /// Connects to `host:port`, looking the name up anew each time (pod addresses change).
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<BoxStream>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_split_at_its_last_colon_and_loses_brackets() {
        for (address, host, port) in [
            ("localhost:9092", "localhost", 9092),
            (" localhost:9092 ", "localhost", 9092),
            ("[::1]:9092", "::1", 9092),
            ("::1:9092", "::1", 9092),
            (":0", "", 0),
            ("$(HOST_IP):30000", "$(HOST_IP)", 30000),
        ] {
            assert_eq!(split_address(address), Some((host, port)), "{address}");
        }
        for (host, port, address) in
            [("localhost", 9092, "localhost:9092"), ("::1", 9092, "[::1]:9092"), ("", 0, ":0")]
        {
            assert_eq!(join_address(host, port), address);
            assert_eq!(split_address(address), Some((host, port)));
        }
        assert_eq!(split_listener(" A://[::1]:1 "), Ok(("A", "::1", 1)));
        assert_eq!(split_listener("a:1"), Err("has no ://"));
        assert_eq!(split_listener("A://a"), Err("has no port from 0 to 65535"));
        for wrong in ["", "localhost", "localhost:", "a:-1", "a:+1", "a:70000", "[::1:1", "::1]:1"]
        {
            assert_eq!(split_address(wrong), None, "{wrong}");
        }
    }
}
