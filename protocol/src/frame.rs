//! How large a frame may be, and what else it could be that knocks on the port.

use super::apis;

/// Largest frame from a peer that has not yet sent one whole request and does not begin one either,
/// in bytes. A stranger costs no more than this.
pub const STRANGER_FRAME_BYTES_MAX: usize = 512 * 1024;

/// Kafka's default of `socket.request.max.bytes`.
pub const REQUEST_BYTES_MAX_DEFAULT: usize = 100 * 1024 * 1024;

/// API key, version, correlation id and the length of the client id: no request is shorter.
const REQUEST_BYTES_MIN: usize = 10;

/// The bound on the next frame of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimit {
    request_bytes_max: usize,
    known: bool,
}

/// Why a frame was refused by its first four bytes; the connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The peer speaks TLS to a listener that does not.
    #[error("the peer speaks TLS, this listener does not; check the client's security.protocol")]
    Tls,
    /// The peer speaks HTTP.
    #[error("the peer speaks HTTP, not Kafka's protocol")]
    Http,
    /// A size below zero.
    #[error("the peer claims a frame of {size} bytes")]
    Negative {
        /// What was claimed.
        size: i32,
    },
    /// A size that no request has.
    #[error("the peer claims a frame of {size} bytes, no request is that short")]
    TooSmall {
        /// What was claimed.
        size: usize,
    },
    /// A size above the bound.
    #[error("the peer claims a frame of {size} bytes, allowed are {max}{}", if *.known { " (socket.request.max.bytes)" } else { " before the first valid request" })]
    TooLarge {
        /// What was claimed.
        size: usize,
        /// The bound in force.
        max: usize,
        /// Whether the peer had already sent a valid request.
        known: bool,
    },
}

impl FrameLimit {
    /// For a new connection; `request_bytes_max` is `socket.request.max.bytes`.
    pub fn new(request_bytes_max: usize) -> FrameLimit {
        FrameLimit { request_bytes_max, known: false }
    }

    /// The peer has sent a whole, valid request.
    pub fn client_is_known(&mut self) {
        self.known = true;
    }

    /// The largest frame that is accepted now, in bytes.
    pub fn max(&self) -> usize {
        if self.known {
            self.request_bytes_max
        } else {
            self.request_bytes_max.min(STRANGER_FRAME_BYTES_MAX)
        }
    }

    /// How many bytes follow the four bytes of the size, by how the frame begins: `None` until as
    /// much of it is there as it takes to tell. A stranger's large frame is one when it is a
    /// request of an API and version that is served: a client may begin with a Produce.
    ///
    /// # Errors
    /// What the peer seems to speak instead, or what is wrong with the size.
    pub fn frame_bytes(&self, begins: &[u8]) -> Result<Option<usize>, FrameError> {
        let Some((first, rest)) = begins.split_first_chunk::<4>() else { return Ok(None) };
        let size = i32::from_be_bytes(*first);
        let Ok(size) = usize::try_from(size) else { return Err(FrameError::Negative { size }) };
        if size < REQUEST_BYTES_MIN {
            return Err(FrameError::TooSmall { size });
        }
        if size <= self.max() {
            return Ok(Some(size));
        }
        match first {
            // A record of a TLS handshake; every 3.x version writes 3 as its major number.
            [0x16, 0x03, ..] => return Err(FrameError::Tls),
            b"GET " | b"POST" | b"HEAD" | b"PUT " | b"DELE" | b"OPTI" | b"PATC" | b"CONN"
            | b"PRI " => return Err(FrameError::Http),
            _ => {}
        }
        let (key, version) = match rest {
            [a, b, c, d, ..] => (i16::from_be_bytes([*a, *b]), i16::from_be_bytes([*c, *d])),
            _ if size <= self.request_bytes_max => return Ok(None),
            _ => (-1, -1),
        };
        let is_request = apis::find(key).is_some_and(|api| api.accepts(version));
        if is_request && size <= self.request_bytes_max {
            return Ok(Some(size));
        }
        let max = if is_request { self.request_bytes_max } else { self.max() };
        Err(FrameError::TooLarge { size, max, known: self.known || is_request })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_who_knocks() {
        let stranger = FrameLimit::new(REQUEST_BYTES_MAX_DEFAULT);
        let mut client = stranger;
        client.client_is_known();
        let too_large = |size, max, known| Err(FrameError::TooLarge { size, max, known });
        let whole = |size| Ok(Some(size));
        type Case = (&'static str, FrameLimit, &'static [u8], Result<Option<usize>, FrameError>);
        let cases: &[Case] = &[
            ("half a size", stranger, &[0, 0, 0], Ok(None)),
            ("a small request", stranger, &[0, 0, 0, 40], whole(40)),
            ("the largest of a stranger", stranger, &[0, 8, 0, 0], whole(512 * 1024)),
            ("one more", stranger, &[0, 8, 0, 1], Ok(None)),
            ("and not yet an API", stranger, &[0, 8, 0, 1, 0, 0, 0], Ok(None)),
            ("a large Produce 9", stranger, &[0, 8, 0, 1, 0, 0, 0, 9], whole(512 * 1024 + 1)),
            (
                "of no version that is served",
                stranger,
                &[0, 8, 0, 1, 0, 0, 0, 99],
                too_large(512 * 1024 + 1, 512 * 1024, false),
            ),
            (
                "of no API that is served",
                stranger,
                &[0, 8, 0, 1, 0x7f, 0xff, 0, 9],
                too_large(512 * 1024 + 1, 512 * 1024, false),
            ),
            (
                "too large for anybody",
                stranger,
                &[0x7f, 0xff, 0xff, 0xff],
                too_large(i32::MAX as usize, 512 * 1024, false),
            ),
            (
                "a Produce too large for anybody",
                stranger,
                &[6, 0x40, 0, 1, 0, 0, 0, 9],
                too_large((100 << 20) + 1, 100 << 20, true),
            ),
            ("the same of a client", client, &[0, 8, 0, 1], whole(512 * 1024 + 1)),
            ("the largest of a client", client, &[6, 0x40, 0, 0], whole(100 << 20)),
            ("one more", client, &[6, 0x40, 0, 1], too_large((100 << 20) + 1, 100 << 20, true)),
            ("a TLS hello", stranger, &[0x16, 3, 1, 2], Err(FrameError::Tls)),
            ("a browser", stranger, b"GET ", Err(FrameError::Http)),
            ("a hook", stranger, b"POST", Err(FrameError::Http)),
            ("below zero", client, &[0xff; 4], Err(FrameError::Negative { size: -1 })),
            (
                "the most below zero",
                client,
                &[0x80, 0, 0, 0],
                Err(FrameError::Negative { size: i32::MIN }),
            ),
            ("nothing", client, &[0; 4], Err(FrameError::TooSmall { size: 0 })),
        ];
        for (name, limit, begins, expected) in cases {
            assert_eq!(limit.frame_bytes(begins), *expected, "{name}");
        }
    }

    #[test]
    fn a_small_configured_bound_holds_for_strangers_too() {
        assert_eq!(FrameLimit::new(1000).max(), 1000);
    }
}
