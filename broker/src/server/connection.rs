//! One client connection: frames in, responses out, in order.
//!
//! Produce requests are appended in the order they came and answered in that order, but several may wait
//! for the disk at once (a client has up to five in flight, and each waiting for its own sync would make
//! one sync a request). Any other request is finished before the next frame is looked at, as Kafka does.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use letterbox_env::BoxStream;
use letterbox_env::panics::{Confined, Panicked};
use tokio::io::AsyncReadExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::context::Connection;
use super::dispatch::{Answer, Outcome, dispatch};
use super::response::Response;
use crate::wire::frame::FrameError;

/// Requests of one connection that may wait for their answer at once.
const IN_FLIGHT_MAX: usize = 32;
/// A frame up to this size is read into the connection's own buffer; a larger one takes from the budget.
const BUFFER: usize = 16 * 1024;
/// A frame that has begun must move on at least this often.
const STALL_MAX: Duration = Duration::from_secs(30);

/// Why a connection ended; one log line each.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the client closed the connection")]
    ByClient,
    #[error("the client closed the connection in the middle of a request ({have} of {want} bytes)")]
    HalfFrame { have: usize, want: usize },
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("no request for {0:?} (connections.max.idle.ms)")]
    Idle(Duration),
    #[error("a request stalled half-way for {0:?}")]
    Stalled(Duration),
    #[error("{0}")]
    Refused(String),
    #[error("a fault of the broker, please report it: {}", .0.0)]
    Panicked(Panicked),
    #[error("the broker is shutting down")]
    ShuttingDown,
    #[error(transparent)]
    Io(#[from] io::Error),
}

type Pending = BoxFuture<'static, (Outcome, Option<OwnedSemaphorePermit>)>;

struct Loop<'a> {
    shared: Arc<Shared>,
    stream: &'a mut BoxStream,
    connection: Connection,
    buffer: BytesMut,
    in_flight: FuturesOrdered<Pending>,
    /// Set while a request that is not a Produce waits: nothing is read past it.
    barrier: bool,
    permit: Option<OwnedSemaphorePermit>,
}

/// Serves a connection until either side ends it. Says why, and what software the client is (empty if it did not say).
///
/// A panic on the way is a fault of ours and ends this connection alone, see [`letterbox_env::panics`].
pub(super) async fn serve(shared: Arc<Shared>, stream: BoxStream, connection: Connection, stop: CancellationToken) -> (Ended, String) {
    let metrics = shared.clone();
    Confined::new(serve_confined(shared, stream, connection, stop)).await.unwrap_or_else(|panicked| {
        metrics.metrics.panics.inc();
        (Ended::Panicked(panicked), String::new())
    })
}

async fn serve_confined(shared: Arc<Shared>, mut stream: BoxStream, connection: Connection, stop: CancellationToken) -> (Ended, String) {
    let mut this = Loop {
        shared,
        stream: &mut stream,
        connection,
        buffer: BytesMut::with_capacity(BUFFER),
        in_flight: FuturesOrdered::new(),
        barrier: false,
        permit: None,
    };
    let ended = match this.run(stop).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    };
    if matches!(ended, Ended::Frame(_) | Ended::Refused(_) | Ended::HalfFrame { .. }) {
        // What came before the bad bytes was a request like any other; its answer is owed.
        let _ = tokio::time::timeout(STALL_MAX, this.answer_what_was_begun()).await;
    }
    (ended, this.connection.software)
}

enum Never {}

impl Loop<'_> {
    async fn run(&mut self, stop: CancellationToken) -> Result<Never, Ended> {
        let idle = self.shared.config.duration("connections.max.idle.ms");
        let mut patience = Patience::new(idle);
        loop {
            // Everything that is whole in the buffer is dispatched before more is read.
            while !self.barrier && self.in_flight.len() < IN_FLIGHT_MAX {
                match self.next_frame()? {
                    Some(frame) => {
                        patience.ends_in(idle);
                        self.start(frame).await?;
                    }
                    None => break,
                }
            }
            if stop.is_cancelled() && self.in_flight.is_empty() {
                return Err(Ended::ShuttingDown);
            }
            let may_read = !self.barrier && self.in_flight.len() < IN_FLIGHT_MAX && !stop.is_cancelled();
            let wanted = if may_read { self.wanted()? } else { 0 };
            let needs_permit = wanted > BUFFER && self.permit.is_none();
            tokio::select! {
                biased;
                Some((outcome, permit)) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                    self.barrier = false;
                    if let Some(response) = outcome.map_err(Ended::Refused)? {
                        self.write(response).await?;
                    }
                    drop(permit);
                    patience.ends_in(self.wait_max(idle));
                }
                () = stop.cancelled(), if may_read => {}
                permit = self.shared.memory.take(wanted), if needs_permit => {
                    self.permit = permit;
                    // The client could not move on meanwhile.
                    patience.ends_in(self.wait_max(idle));
                }
                read = self.stream.read_buf(&mut self.buffer), if may_read && !needs_permit => {
                    if read? == 0 {
                        return Err(self.closed());
                    }
                    patience.ends_in(self.wait_max(idle));
                }
                () = patience.ended(), if self.in_flight.is_empty() && !needs_permit => {
                    return Err(if self.buffer.is_empty() { Ended::Idle(idle) } else { Ended::Stalled(STALL_MAX) });
                }
            }
        }
    }

    /// How long the client may take to go on.
    fn wait_max(&self, idle: Duration) -> Duration {
        if self.buffer.is_empty() { idle } else { STALL_MAX }
    }

    async fn answer_what_was_begun(&mut self) {
        while let Some((Ok(response), _permit)) = self.in_flight.next().await {
            if let Some(response) = response
                && self.write(response).await.is_err()
            {
                return;
            }
        }
    }

    async fn write(&mut self, response: Response) -> io::Result<()> {
        self.shared.metrics.bytes_sent(response.len());
        response.write(self.stream, &self.shared.env).await
    }

    fn closed(&self) -> Ended {
        match self.frame_len() {
            Ok(Some(want)) => Ended::HalfFrame { have: self.buffer.len(), want: want + 4 },
            _ if !self.buffer.is_empty() => Ended::HalfFrame { have: self.buffer.len(), want: 4 },
            _ => Ended::ByClient,
        }
    }

    /// The length of the frame at the front of the buffer, checked against its bound.
    fn frame_len(&self) -> Result<Option<usize>, Ended> {
        let Some(prefix) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        Ok(Some(self.connection.limit.frame_bytes(*prefix)?))
    }

    /// Bytes the frame at the front needs in all; 0 when its length is not there yet.
    fn wanted(&mut self) -> Result<usize, Ended> {
        let Some(len) = self.frame_len()? else {
            if self.buffer.capacity() == self.buffer.len() {
                self.buffer.reserve(BUFFER);
            }
            return Ok(0);
        };
        let wanted = len + 4;
        if self.buffer.capacity() < wanted && (wanted <= BUFFER || self.permit.is_some()) {
            self.buffer.reserve(wanted - self.buffer.len());
        }
        Ok(wanted)
    }

    fn next_frame(&mut self) -> Result<Option<BytesMut>, Ended> {
        let Some(len) = self.frame_len()? else { return Ok(None) };
        if self.buffer.len() < len + 4 {
            return Ok(None);
        }
        self.buffer.advance(4);
        Ok(Some(self.buffer.split_to(len)))
    }

    async fn start(&mut self, frame: BytesMut) -> Result<(), Ended> {
        self.shared.metrics.bytes_received(frame.len() as u64 + 4);
        let permit = self.permit.take();
        match dispatch(&self.shared, &mut self.connection, frame) {
            // Nothing is owed before it.
            Answer::Now(response) if self.in_flight.is_empty() => self.write(response).await?,
            Answer::Now(response) => self.in_flight.push_back(Box::pin(std::future::ready((Ok(Some(response)), permit)))),
            Answer::InOrder(future) => self.in_flight.push_back(Box::pin(async move { (future.await, permit) })),
            Answer::Alone(future) => {
                self.barrier = true;
                self.in_flight.push_back(Box::pin(async move { (future.await, permit) }));
            }
            Answer::Close(why) => return Err(Ended::Refused(why)),
        }
        Ok(())
    }
}

/// When a client has been silent for too long. Moving the end back costs nothing: the timer is set anew only when it rings too early.
struct Patience {
    end: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Patience {
    fn new(idle: Duration) -> Self {
        let end = Instant::now() + idle;
        Self { end, timer: Box::pin(tokio::time::sleep_until(end)) }
    }

    fn ends_in(&mut self, wait: Duration) {
        self.end = Instant::now() + wait;
        if self.end < self.timer.deadline() {
            self.timer.as_mut().reset(self.end);
        }
    }

    async fn ended(&mut self) {
        self.timer.as_mut().await;
        while self.timer.deadline() < self.end {
            self.timer.as_mut().reset(self.end);
            self.timer.as_mut().await;
        }
    }
}
