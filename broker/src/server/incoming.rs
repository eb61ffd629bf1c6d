//! What has come of the next requests of one connection.
//!
//! Small frames are cut out of the connection's own buffer, which is never larger than [`BUFFER`].
//! A larger frame has a buffer made for it, which the request takes along as a whole. If that frame
//! were cut out of the connection's buffer, the rest of the buffer would share its allocation, and
//! an idle connection would hold the memory of its largest request while the account says that it
//! was given back.

use std::io;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::budget::Share;

/// A frame up to this size is read into the connection's own buffer; a larger one takes all of its
/// bytes from the account before it is read on. Those are addresses alone until bytes come.
pub(super) const BUFFER: usize = 16 * 1024;
/// Bytes of a frame's size.
const SIZE: usize = 4;

/// The bytes that are not a request yet. They begin with a frame, or a part of one.
pub(super) struct Incoming {
    /// The beginning of the next frame and what follows it; empty while `large` is not.
    buffer: BytesMut,
    /// A frame that is larger than [`BUFFER`], as far as it has come, and nothing after it; empty
    /// between such frames.
    large: BytesMut,
    /// The bytes of the frame in `large`, with its size.
    wanted: usize,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self { buffer: BytesMut::with_capacity(BUFFER), large: BytesMut::new(), wanted: 0 }
    }

    /// The bytes that have come.
    pub(super) fn bytes(&self) -> &[u8] {
        if self.large.is_empty() { &self.buffer } else { &self.large }
    }

    /// Whether none has come.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    /// Makes room for the next bytes of the frame at the front, which has `len` bytes after its
    /// size; 0: not known yet. Says what `share` must hold when there is not enough memory.
    pub(super) fn make_room(&mut self, len: usize, share: &mut Share) -> Option<usize> {
        let wanted = len.saturating_add(SIZE);
        if wanted <= BUFFER {
            if self.buffer.capacity() < wanted.max(self.buffer.len() + 1) {
                self.renew_buffer();
            }
            return None;
        }
        if self.large.is_empty() {
            if !share.try_claim(wanted) {
                return Some(wanted);
            }
            let mut large = BytesMut::with_capacity(wanted);
            large.extend_from_slice(&self.buffer);
            (self.large, self.wanted) = (large, wanted);
            self.buffer.clear();
        }
        None
    }

    /// Makes room in the buffer for what may come while a request is handled, to learn that the
    /// client has gone; false when it is full.
    pub(super) fn may_watch(&mut self) -> bool {
        let is_room = self.large.is_empty() && self.buffer.len() < BUFFER;
        if is_room && self.buffer.capacity() == self.buffer.len() {
            self.renew_buffer();
        }
        is_room
    }

    /// Gives the buffer [`BUFFER`] bytes: its own ones when no request has a part of them any more.
    fn renew_buffer(&mut self) {
        if !self.buffer.try_reclaim(BUFFER.saturating_sub(self.buffer.len())) {
            let mut fresh = BytesMut::with_capacity(BUFFER);
            fresh.extend_from_slice(&self.buffer);
            self.buffer = fresh;
        }
    }

    /// Reads into the room that was made; 0 at the end of the stream. Cancel safe.
    pub(super) async fn read_from(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> io::Result<usize> {
        if self.large.is_empty() {
            return stream.read_buf(&mut self.buffer).await;
        }
        let left = self.wanted.saturating_sub(self.large.len());
        stream.read_buf(&mut (&mut self.large).limit(left)).await
    }

    /// Whether all of the frame at the front is there, which is `len` bytes long without its size.
    pub(super) fn has_whole(&self, len: usize) -> bool {
        self.bytes().len() >= len.saturating_add(SIZE)
    }

    /// The frame at the front without its size, which is `len` bytes long, when all of it is there.
    pub(super) fn take(&mut self, len: usize) -> Option<BytesMut> {
        if !self.has_whole(len) {
            return None;
        }
        if self.large.is_empty() {
            self.buffer.advance(SIZE);
            return Some(self.buffer.split_to(len));
        }
        let mut frame = std::mem::take(&mut self.large);
        frame.advance(SIZE);
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use super::super::budget::Account;
    use super::*;

    const MIB: usize = 1024 * 1024;

    /// A frame of `len` bytes after its size, all of them `fill`.
    fn frame(len: usize, fill: u8) -> Vec<u8> {
        let mut bytes = u32::try_from(len).unwrap().to_be_bytes().to_vec();
        bytes.resize(SIZE + len, fill);
        bytes
    }

    struct Client {
        incoming: Incoming,
        account: Arc<Account>,
        share: Share,
    }

    impl Client {
        fn new(account: usize) -> Self {
            let account = Account::new(account);
            Self { incoming: Incoming::new(), share: Share::new(&account), account }
        }

        fn len(&self) -> usize {
            let bytes = self.incoming.bytes().first_chunk::<4>();
            bytes.map_or(0, |size| u32::from_be_bytes(*size) as usize)
        }

        fn room(&mut self) -> Option<usize> {
            let len = self.len();
            self.incoming.make_room(len, &mut self.share)
        }

        /// The next frame of `stream`, with its share.
        async fn next(&mut self, stream: &mut &[u8]) -> (BytesMut, Share) {
            loop {
                let len = self.len();
                if len > 0
                    && let Some(frame) = self.incoming.take(len)
                {
                    let fresh = Share::new(&self.account);
                    return (frame, std::mem::replace(&mut self.share, fresh));
                }
                if let Some(total) = self.room() {
                    self.share.claim(total, IpAddr::from([127, 0, 0, 1])).await;
                    assert_eq!(self.room(), None);
                }
                assert!(self.incoming.large.capacity() <= self.share.bytes());
                assert!(self.incoming.read_from(stream).await.unwrap() > 0, "the stream ended");
            }
        }
    }

    /// A connection had the allocation of its largest request for as long as it lived, and the
    /// account said that nothing was held.
    #[tokio::test]
    async fn a_connection_keeps_nothing_of_a_large_request() {
        let mut client = Client::new(64 * MIB);
        for pipelined in [0, 10, BUFFER - SIZE, BUFFER, 3 * MIB] {
            let mut bytes = frame(5 * MIB, b'l');
            if pipelined > 0 {
                bytes.extend(frame(pipelined, b's'));
            }
            let mut stream = &bytes[..];
            let (large, share) = client.next(&mut stream).await;
            assert_eq!((large.len(), large.capacity()), (5 * MIB, 5 * MIB));
            assert!(large.iter().all(|byte| *byte == b'l'));
            assert!(share.bytes() >= large.len());
            drop((large, share));
            assert_eq!(client.account.used(), 0);
            if pipelined > 0 {
                assert_eq!(client.next(&mut stream).await.0, frame(pipelined, b's')[SIZE..]);
            }
            assert!(client.incoming.may_watch(), "as an idle connection does");
            let Incoming { buffer, large, .. } = &mut client.incoming;
            assert_eq!((buffer.len(), large.capacity(), client.account.used()), (0, 0, 0));
            assert!(buffer.capacity() <= BUFFER && !buffer.try_reclaim(BUFFER + 1));
        }
    }

    #[tokio::test]
    async fn the_buffer_of_small_requests_does_not_grow() {
        let mut client = Client::new(MIB);
        // Those in flight hold their part of the buffer.
        let mut in_flight = std::collections::VecDeque::new();
        let mut bytes = Vec::new();
        let lens = || (1..400).map(|n| n * 997 % (BUFFER - SIZE) + 1);
        lens().for_each(|len| bytes.extend(frame(len, len as u8)));
        let mut stream = &bytes[..];
        for len in lens() {
            let (small, share) = client.next(&mut stream).await;
            assert_eq!((&small[..], share.bytes()), (&frame(len, len as u8)[SIZE..], 0));
            in_flight.push_back(small);
            if in_flight.len() > len % 5 {
                in_flight.pop_front();
            }
            client.incoming.may_watch();
            assert!(client.incoming.buffer.capacity() <= BUFFER);
        }
        in_flight.clear();
        assert!(client.incoming.is_empty());
        assert!(!client.incoming.buffer.try_reclaim(BUFFER + 1));
    }

    #[tokio::test]
    async fn a_large_frame_takes_all_that_it_needs_or_nothing() {
        let mut client = Client::new(16 * MIB);
        let bytes = frame(3 * MIB, b'l');
        let mut stream = &bytes[..BUFFER];
        assert_eq!(client.room(), None);
        client.incoming.read_from(&mut stream).await.unwrap();
        let mut others = Share::new(&client.account);
        assert!(others.try_grow_to(11 * MIB));
        assert_eq!(client.room(), Some(3 * MIB + SIZE));
        assert_eq!((client.share.bytes(), client.account.used()), (0, others.bytes()));
        drop(others);
        assert_eq!((client.room(), client.account.used()), (None, 3 * MIB + SIZE));
    }
}
