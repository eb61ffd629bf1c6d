//! One client connection: frames in, responses out, in order.
//!
//! Produce requests are appended in the order they came and answered in that order, but several may
//! wait for the disk at once (a client has up to five in flight, and each waiting for its own sync
//! would make one sync a request). Any other request is finished before the next one is looked at,
//! as Kafka does.
//!
//! A large frame takes memory from the account before it is read ([`super::budget`]), and a client
//! that is slower than [`super::pace`] allows is given up. While a request waits, the broker reads
//! on into its small buffer, and when that is full asks the socket, so that it learns when the
//! client has gone: a Fetch that waits for records is dropped then, any other request is finished,
//! and what came behind it is carried out, as in Apache Kafka. A stop drops what was not started.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use letterbox_env::panics::{Confined, Panicked};
use letterbox_env::{BoxStream, TryWrite};
use letterbox_protocol::frame::FrameError;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::Services;
use super::budget::{Account, Share};
use super::context::Connection;
use super::dispatch::{self, Answer, Checked};
use super::in_flight::{InFlight, Never};
use super::incoming::Incoming;
use super::pace::{Pace, Progress, SILENCE_MAX};
use super::response::Response;

/// Requests of one connection that may wait for their answer at once.
const IN_FLIGHT_MAX: usize = 32;
/// How long one client's requests may keep a thread before other clients have their turn.
const TURN_MAX: Duration = Duration::from_millis(1);
/// How often it is looked whether an answer is being read, or a client is still there.
const WRITE_CHECK: Duration = Duration::from_secs(1);

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
    #[error(
        "a request stalled half-way: nothing for {SILENCE_MAX:?}, or less than 16 KiB a second, or \
         too little while others waited for its memory"
    )]
    Stalled,
    #[error("the client does not read its answer")]
    Unread,
    #[error("{0}")]
    Refused(String),
    #[error("a fault of the broker, please report it: {}", .0.0)]
    Panicked(Panicked),
    #[error("the broker is shutting down")]
    ShuttingDown,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What nothing is started past.
enum Barrier {
    None,
    /// A request that is not a Produce.
    Alone {
        /// Whether it may be dropped when the client has gone.
        may_cancel: bool,
    },
    /// A Produce whose batches are being validated elsewhere; resolves when they are appended.
    Appending(oneshot::Receiver<()>),
}

struct Loop<'a> {
    services: Arc<Services>,
    stream: &'a mut BoxStream,
    connection: Connection,
    incoming: Incoming,
    in_flight: InFlight,
    /// Of `stream`, for what needs no wait.
    writer: Option<Arc<dyn TryWrite>>,
    barrier: Barrier,
    /// Memory of the frame that is being read, or that waits to be started.
    share: Share,
    /// A request that waits for memory to be decoded in.
    held: Option<Checked>,
    /// Set while a part of a frame has come.
    progress: Option<Progress>,
    idle: Duration,
    /// The client has left while a request waited: what has come of it is carried out.
    is_left: bool,
    /// Nobody reads answers.
    is_deaf: bool,
}

/// Serves a connection until either side ends it. Says why, and what software the client is (empty
/// if it did not say).
///
/// A panic on the way is a fault of ours and ends this connection alone, see
/// [`letterbox_env::panics`].
pub(super) async fn serve(
    services: Arc<Services>,
    stream: BoxStream,
    connection: Connection,
    stop: CancellationToken,
) -> (Ended, String) {
    let metrics = services.clone();
    Confined::new(serve_confined(services, stream, connection, stop)).await.unwrap_or_else(
        |panicked| {
            metrics.metrics.panics.inc();
            (Ended::Panicked(panicked), String::new())
        },
    )
}

async fn serve_confined(
    services: Arc<Services>,
    mut stream: BoxStream,
    connection: Connection,
    stop: CancellationToken,
) -> (Ended, String) {
    let writer = stream.writer();
    let mut this = Loop {
        share: Share::new(&services.memory),
        idle: services.config.duration("connections.max.idle.ms"),
        in_flight: InFlight::new(services.metrics.bytes_sent_counter(), writer.clone()),
        writer,
        services,
        stream: &mut stream,
        connection,
        incoming: Incoming::new(),
        barrier: Barrier::None,
        held: None,
        progress: None,
        is_left: false,
        is_deaf: false,
    };
    let ended = match this.run(stop).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    };
    // What came before bad bytes was a request like any other, and who has closed only its own side
    // still reads. But nobody waits for records that nobody reads.
    let may_drop = matches!(ended, Ended::ShuttingDown)
        || matches!(this.barrier, Barrier::Alone { may_cancel: true });
    if !may_drop {
        // After half an answer no other can follow.
        let is_open = !matches!(ended, Ended::Unread | Ended::Io(_));
        let _ = tokio::time::timeout(SILENCE_MAX, this.finish_what_was_begun(is_open)).await;
    }
    (ended, this.connection.software)
}

impl Loop<'_> {
    async fn run(&mut self, stop: CancellationToken) -> Result<Never, Ended> {
        let mut patience = Patience::new(self.idle);
        let (mut stopped, mut turn) = (pin!(stop.cancelled()), None);
        loop {
            let stops = stop.is_cancelled();
            if !stops {
                self.start_what_has_come(&stop, &mut patience, &mut turn).await?;
            }
            if stops && self.in_flight.is_empty() && self.held.is_none() {
                return Err(Ended::ShuttingDown);
            }
            let may_start = !stops && self.may_start();
            // What the share must grow to before anything else of this client goes on.
            let needs = match &self.held {
                Some(held) => Some(held.cost(self.share.bytes())),
                None if may_start => self.make_room()?,
                None => None,
            };
            let may_read = needs.is_none()
                && (may_start
                    || (!self.is_left && self.held.is_none() && self.incoming.may_watch()))
                && !stops;
            let watches = !self.is_left && matches!(self.barrier, Barrier::Alone { .. }) && !stops;
            if let Some(progress) = &self.progress {
                self.share.must_move_by(progress.until_while_others_wait());
            }
            let frame_from = self.held.is_none().then(|| self.connection.caller.peer.ip());
            tokio::select! {
                biased;
                Some(outcome) = self.in_flight.next(may_start), if !self.in_flight.is_empty() => {
                    let response = outcome.map_err(Ended::Refused)?;
                    if self.in_flight.is_empty() {
                        self.barrier = Barrier::None;
                    }
                    if let Some(response) = response {
                        self.write(response).await?;
                    }
                    patience.ends_at(self.made_wait());
                }
                () = appended(&mut self.barrier) => {
                    self.barrier = Barrier::None;
                    patience.ends_at(self.made_wait());
                }
                read = read(&mut self.incoming, self.stream, may_read), if may_read || watches => {
                    patience.ends_at(self.has_read(read, may_start)?);
                }
                // Asked for above as well: it wakes who waits.
                () = &mut stopped, if may_read => {}
                memory = memory(&mut self.share, needs, frame_from), if needs.is_some() || may_read => {
                    if matches!(memory, Memory::IsTaken) {
                        return Err(Ended::Stalled);
                    }
                    if let Some(held) = self.held.take() {
                        self.handle(held).await?;
                    }
                    patience.ends_at(self.made_wait());
                }
                () = patience.ended(), if may_read || self.is_left => match self.excused_until(may_start) {
                    _ if self.is_left => return Err(self.closed()),
                    Some(until) => patience.ends_at(until),
                    None if self.incoming.is_empty() => return Err(Ended::Idle(self.idle)),
                    None => return Err(Ended::Stalled),
                },
                // Looked at last: everything else waits, and others have their turn.
                never = end_turn(&mut turn) => match never {},
            }
        }
    }

    /// Starts everything that is whole in the buffer, before more is read. `turn` is when this
    /// client's turn began: hundreds of small requests may lie in the buffer, and nothing else
    /// holds them back when nobody reads their answers.
    async fn start_what_has_come(
        &mut self,
        stop: &CancellationToken,
        patience: &mut Patience,
        turn: &mut Option<Instant>,
    ) -> Result<(), Ended> {
        while self.may_start() {
            let Some(frame) = self.next_frame()? else { break };
            let now = Instant::now();
            self.progress = None;
            self.share.is_read();
            patience.ends_at(now + self.idle);
            self.start(frame).await?;
            if now.duration_since(*turn.get_or_insert(now)) >= TURN_MAX {
                tokio::task::yield_now().await;
                *turn = None;
                if stop.is_cancelled() {
                    break;
                }
            }
        }
        if self.progress.is_none() && !self.incoming.is_empty() && self.may_start() {
            // The next frame has begun behind the last one.
            patience.ends_at(self.made_wait());
        }
        Ok(())
    }

    /// Whether another request may be started.
    fn may_start(&self) -> bool {
        matches!(self.barrier, Barrier::None)
            && self.held.is_none()
            && self.in_flight.len() < IN_FLIGHT_MAX
    }

    /// How long the client may take to go on after the broker itself made it wait.
    fn made_wait(&mut self) -> Instant {
        let now = Instant::now();
        if self.incoming.is_empty() {
            return now + self.idle;
        }
        self.progress.insert(Progress::begin(now)).until()
    }

    /// Until when the client need not have gone on: it waits for an answer, got the last one a
    /// moment ago, or keeps its pace.
    fn excused_until(&mut self, may_start: bool) -> Option<Instant> {
        let now = Instant::now();
        let is_waited_for = self.in_flight.is_empty() || (may_start && self.progress.is_some());
        let until = if !is_waited_for {
            now + self.idle
        } else if let Some(progress) = &self.progress {
            progress.until()
        } else {
            self.in_flight.answered_at().map_or(now, |at| at + self.idle)
        };
        (until > now).then_some(until)
    }

    /// How long the client may take to go on after it has sent `bytes`.
    fn moved(&mut self, bytes: usize) -> Instant {
        let now = Instant::now();
        let whole = self.frame_len().ok().flatten().unwrap_or_default();
        match &mut self.progress {
            Some(progress) => {
                progress.moved(now, bytes as u64, whole as u64);
                progress.until()
            }
            // A whole frame need not go on.
            None if whole > 0 && self.incoming.has_whole(whole) => now + self.idle,
            None => self.progress.insert(Progress::begin(now)).until(),
        }
    }

    /// Finishes what is in flight, and answers it while the connection is open for that.
    async fn finish_what_was_begun(&mut self, mut is_open: bool) {
        while let Some(outcome) = self.in_flight.next(false).await {
            if let Ok(Some(response)) = outcome
                && is_open
            {
                is_open = self.write(response).await.is_ok();
            }
        }
    }

    async fn write(&mut self, mut response: Response) -> Result<(), Ended> {
        self.in_flight.come_back();
        if self.is_deaf {
            return Ok(());
        }
        self.services.metrics.bytes_sent(response.len());
        if let Err(error) = self.write_at_once(&mut response) {
            return self.not_written(error);
        }
        let len = response.len();
        if len == 0 {
            return Ok(());
        }
        let is_holding =
            response.held() > 0 || self.share.bytes() > 0 || !self.in_flight.is_empty();
        let taken = AtomicU64::new(0);
        tokio::select! {
            biased;
            written = response.write(self.stream, &self.services.env, &taken) => {
                written.or_else(|error| self.not_written(error))
            }
            // Looked at only when the client does not take all of it at once.
            never = self.in_flight.go_on() => match never {},
            () = is_not_read(&self.services.memory, &taken, len, is_holding, self.idle) => Err(Ended::Unread),
        }
    }

    /// Writes what the socket takes now, which is nearly always all of an answer in one piece.
    fn write_at_once(&self, response: &mut Response) -> io::Result<()> {
        let (Some(writer), Some(bytes)) = (&self.writer, response.one_piece()) else {
            return Ok(());
        };
        match writer.try_write(&[IoSlice::new(bytes)]) {
            Ok(written) => {
                response.advance(written);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// An answer could not be written: a client that has left is no error.
    fn not_written(&mut self, error: io::Error) -> Result<(), Ended> {
        if !is_gone(&error) {
            return Err(error.into());
        }
        self.is_left = true;
        self.stop_answering();
        Ok(())
    }

    /// What a read brought, or that the client has left; until when to be patient now.
    fn has_read(&mut self, read: io::Result<usize>, may_start: bool) -> Result<Instant, Ended> {
        let read = match read {
            Err(error) if is_gone(&error) && !may_start => {
                self.stop_answering();
                0
            }
            read => read?,
        };
        match read {
            0 if may_start => Err(self.closed()),
            0 => Ok(self.leave()),
            _ => Ok(self.moved(read)),
        }
    }

    /// The client has left, and requests that came before are still to be carried out, until the
    /// time that this gives. But nobody waits for records that nobody reads.
    fn leave(&mut self) -> Instant {
        self.is_left = true;
        if matches!(self.barrier, Barrier::Alone { may_cancel: true }) {
            self.in_flight.drop_all();
            (self.barrier, self.is_deaf) = (Barrier::None, true);
        }
        Instant::now() + SILENCE_MAX
    }

    fn stop_answering(&mut self) {
        self.is_deaf = true;
        self.in_flight.stop_writing();
    }

    fn closed(&self) -> Ended {
        match self.frame_len() {
            Ok(Some(want)) => {
                Ended::HalfFrame { have: self.incoming.bytes().len(), want: want + 4 }
            }
            // Its size, or which request a large one would be.
            _ => match self.incoming.bytes().len() {
                0 => Ended::ByClient,
                have @ ..4 => Ended::HalfFrame { have, want: 4 },
                have => Ended::HalfFrame { have, want: 8 },
            },
        }
    }

    /// The length of the frame at the front of the buffer, checked against its bound.
    fn frame_len(&self) -> Result<Option<usize>, Ended> {
        Ok(self.connection.limit.frame_bytes(self.incoming.bytes())?)
    }

    /// Makes room for the next bytes of the frame at the front; says what the share must grow to
    /// when there is not enough memory for that.
    fn make_room(&mut self) -> Result<Option<usize>, Ended> {
        let len = self.frame_len()?.unwrap_or_default();
        Ok(self.incoming.make_room(len, &mut self.share))
    }

    fn next_frame(&mut self) -> Result<Option<BytesMut>, Ended> {
        Ok(self.frame_len()?.and_then(|len| self.incoming.take(len)))
    }

    async fn start(&mut self, frame: BytesMut) -> Result<(), Ended> {
        self.services.metrics.bytes_received(frame.len() as u64 + 4);
        match dispatch::check(&self.services, &mut self.connection, frame) {
            Ok(request) if self.share.try_grow_to(request.cost(self.share.bytes())) => {
                self.handle(request).await
            }
            Ok(request) => {
                self.held = Some(request);
                Ok(())
            }
            Err(answer) => {
                self.share = Share::new(&self.services.memory);
                self.take(answer).await
            }
        }
    }

    async fn handle(&mut self, request: Checked) -> Result<(), Ended> {
        self.in_flight.come_back();
        let share = std::mem::replace(&mut self.share, Share::new(&self.services.memory));
        let is_large = request.is_large();
        let answer = dispatch::dispatch(&self.services, &mut self.connection, request, share);
        self.take(answer).await?;
        if is_large {
            // A client that sends one large request after the other takes turns with others.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn take(&mut self, answer: Answer) -> Result<(), Ended> {
        match answer {
            // Nothing is owed before it.
            Answer::Now(response) if self.in_flight.is_empty() => self.write(response).await?,
            Answer::Now(response) => {
                self.in_flight.push(Box::pin(std::future::ready(Ok(Some(response)))))
            }
            Answer::InOrder(future) => self.in_flight.push(future),
            Answer::Appending(future, appended) => {
                self.barrier = Barrier::Appending(appended);
                self.in_flight.push(future);
            }
            Answer::Alone { may_cancel: true, .. } if self.is_left => self.stop_answering(),
            Answer::Alone { answer, may_cancel } => {
                self.barrier = Barrier::Alone { may_cancel };
                self.in_flight.push(answer);
            }
            Answer::Close(why) => return Err(Ended::Refused(why)),
        }
        Ok(())
    }
}

/// Whether the client is not there any more.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected)
}

/// Reads on; who may not read learns only that the client has gone.
async fn read(
    incoming: &mut Incoming,
    stream: &mut BoxStream,
    may_read: bool,
) -> io::Result<usize> {
    if may_read {
        return incoming.read_from(stream).await;
    }
    while !stream.is_left() {
        tokio::time::sleep(WRITE_CHECK).await;
    }
    Ok(0)
}

enum Memory {
    IsThere,
    /// Others need it, and the client does not go on.
    IsTaken,
}

/// Waits until `share` holds what it `needs`: for a frame from an address that is to be read, or
/// for a request that was read. Who needs nothing waits until it is to give back what it holds.
async fn memory(share: &mut Share, needs: Option<usize>, frame_from: Option<IpAddr>) -> Memory {
    match (needs, frame_from) {
        (None, _) => {
            share.given_up().await;
            return Memory::IsTaken;
        }
        (Some(total), Some(ip)) => share.claim(total, ip.to_canonical()).await,
        (Some(total), None) => share.grow_to(total).await,
    }
    Memory::IsThere
}

/// Ends the turn when it is polled; never completes.
async fn end_turn(turn: &mut Option<Instant>) -> Never {
    std::future::poll_fn(|_| {
        *turn = None;
        Poll::Pending
    })
    .await
}

/// Completes when the Produce that is being validated has been appended; never without one.
async fn appended(barrier: &mut Barrier) {
    match barrier {
        // An error means that it ended without an append.
        Barrier::Appending(appended) => drop(appended.await),
        _ => std::future::pending().await,
    }
}

/// Completes when an answer of `len` bytes has been waiting for its reader for too long. `taken`
/// counts what is read.
///
/// Java's consumer reads only when its application polls, which may be minutes apart. So an answer
/// may wait as long as Kafka lets a connection be idle. But when its connection holds memory
/// (`is_holding`: the answer, a request behind it) it must keep pace once that is short, and go on
/// soon while others wait for it: thousands that never read are many times faster here than those
/// who wait.
async fn is_not_read(
    memory: &Account,
    taken: &AtomicU64,
    len: u64,
    is_holding: bool,
    idle: Duration,
) {
    let (mut seen, mut moved_at) = (0, Instant::now());
    let (mut pace, mut pace_in_the_way) = (Pace::begin(moved_at), None);
    loop {
        tokio::time::sleep(WRITE_CHECK.min(idle)).await;
        let (now, sum) = (Instant::now(), taken.load(Ordering::Relaxed));
        if is_holding && memory.is_waited_for() {
            pace_in_the_way.get_or_insert_with(|| Pace::begin_in_the_way(now));
        } else {
            pace_in_the_way = None;
        }
        if sum > seen {
            let paces = std::iter::once(&mut pace).chain(&mut pace_in_the_way);
            paces.for_each(|pace| pace.moved(now, sum - seen, len));
            (seen, moved_at) = (sum, now);
        }
        let is_slow = is_holding && now > pace.until() && memory.is_tight();
        let is_in_the_way = pace_in_the_way.is_some_and(|pace| now > pace.until());
        if is_slow || is_in_the_way || now.duration_since(moved_at) >= idle {
            return;
        }
    }
}

/// When a client has been silent for too long. Moving the end back costs nothing: the timer is set
/// anew only when it rings too early.
struct Patience {
    end: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Patience {
    fn new(idle: Duration) -> Self {
        let end = Instant::now() + idle;
        Self { end, timer: Box::pin(tokio::time::sleep_until(end)) }
    }

    fn ends_at(&mut self, end: Instant) {
        self.end = end;
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;
    const IDLE: Duration = Duration::from_secs(600);

    /// After how many seconds an answer of 1 MiB is given up of which the client takes `bytes` each
    /// second.
    async fn given_up_after(bytes: u64, is_holding: bool, is_tight: bool) -> Option<u64> {
        let account = Account::new(4 * MIB);
        let mut others = Share::new(&account);
        assert!(others.try_grow_to(if is_tight { 3 * MIB } else { MIB }));
        let (taken, begun) = (AtomicU64::new(0), Instant::now());
        tokio::select! {
            biased;
            () = is_not_read(&account, &taken, MIB as u64, is_holding, IDLE) => Some(begun.elapsed().as_secs()),
            () = async {
                while taken.load(Ordering::Relaxed) < MIB as u64 && bytes > 0 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    taken.fetch_add(bytes, Ordering::Relaxed);
                }
                if bytes == 0 {
                    std::future::pending::<()>().await;
                }
            } => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_read_waits_until_others_need_its_memory() {
        assert_eq!(given_up_after(0, true, true).await, Some(31));
        assert_eq!(
            given_up_after(0, true, false).await,
            Some(600),
            "a consumer that does not poll is let be"
        );
        assert_eq!(given_up_after(0, false, true).await, Some(600), "it holds nothing");
        assert_eq!(given_up_after(1_000, true, true).await, Some(32), "it is read too slowly");
        assert_eq!(given_up_after(20 * 1024, true, true).await, None);
    }

    /// One who waits may go past the account; two are kept by those who hold it.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_others_wait_for_goes_on_soon_or_is_given_up() {
        let account = Account::new(MIB);
        let mut held = Share::new(&account);
        assert!(held.try_grow_to(MIB / 2));
        let wait = || async {
            let mut share = Share::new(&account);
            share.grow_to(MIB).await;
            std::future::pending::<()>().await;
        };
        let (taken, begun) = (AtomicU64::new(0), Instant::now());
        tokio::select! {
            biased;
            () = wait() => {}
            () = wait() => {}
            () = is_not_read(&account, &taken, MIB as u64, true, IDLE) => {}
        }
        assert!((6..=7).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    }
}
