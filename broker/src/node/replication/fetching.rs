//! Fetching from one leader, for all partitions that follow it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages as m;
use kafka_protocol::messages::fetch_request::{
    FetchPartition, FetchTopic, ForgottenTopic, ReplicaState,
};
use kafka_protocol::messages::fetch_response::PartitionData;
use letterbox_env::BoxFuture;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{BrokerId, TopicId};
use letterbox_protocol::replica::{self, Standing};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::peer::{Peer, PeerError};
use super::{Me, Shared};
use crate::replication::fetcher::{
    FetchSession, Fetcher, FetcherEffect, FetcherEvent, Key, Position,
};
use crate::replication::follower::Answer;

/// A leader that has registered anew is known to its followers sooner.
const SAY_UNPROVEN_AFTER: Duration = Duration::from_secs(5);
/// Bytes that are appended before other tasks have a turn.
const APPENDED_AT_ONCE: usize = 256 << 10;

/// A request's end.
struct Ended {
    /// The connection, unless it was given up.
    peer: Option<Peer>,
    /// It was open before the request.
    was_open: bool,
    answer: Result<m::FetchResponse, PeerError>,
}

/// The task.
pub(super) struct Fetching {
    shared: Arc<Shared>,
    leader: BrokerId,
    news: Arc<Notify>,
    fetcher: Fetcher,
    peer: Option<Peer>,
    under_way: Option<BoxFuture<'static, Ended>>,
    /// Nothing is sent before; then the fetcher is told the time.
    wait_until_ms: Option<u64>,
    /// It was said that the leader cannot be reached.
    has_failed: bool,
    /// Since when somebody answers who does not prove to be the leader, and whether it was said.
    unproven: Option<(Instant, bool)>,
}

impl Fetching {
    pub(super) fn new(shared: Arc<Shared>, leader: BrokerId, news: Arc<Notify>) -> Self {
        let backoff_ms = shared.config.number("replica.fetch.backoff.ms");
        let fetcher = Fetcher::new(u64::try_from(backoff_ms).unwrap_or(0));
        let (peer, under_way, wait_until_ms) = (None, None, None);
        let (has_failed, unproven) = (false, None);
        Self { shared, leader, news, fetcher, peer, under_way, wait_until_ms, has_failed, unproven }
    }

    /// Goes on until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            self.take_news();
            let due = self.wait_until_ms.map(|until_ms| self.instant(until_ms));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                ended = async {
                    match &mut self.under_way {
                        Some(under_way) => under_way.await,
                        None => std::future::pending().await,
                    }
                } => {
                    self.under_way = None;
                    self.ended(ended).await;
                }
                () = self.news.notified() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.wait_until_ms = None;
                    self.step(FetcherEvent::Tick);
                }
            }
        }
    }

    /// What partitions want now.
    fn take_news(&mut self) {
        let (is_asking, outbox) = (self.under_way.is_some(), self.shared.replicas.outbox());
        let (mut is_more, news) = (false, outbox.take_fetches(self.leader));
        for (key, position) in news {
            is_more |= position.is_some();
            self.step(match position {
                Some(position) => FetcherEvent::Wants(key, position),
                None => FetcherEvent::Gone(key),
            });
        }
        for key in self.shared.replicas.outbox().take_reported(self.leader) {
            self.step(FetcherEvent::Reported(key));
        }
        if is_asking && is_more {
            self.shared.replicas.outbox().hurry(self.leader);
        }
    }

    fn instant(&self, at_ms: u64) -> Instant {
        let wait_ms = at_ms.saturating_sub(self.shared.replicas.now_ms());
        Instant::now() + Duration::from_millis(wait_ms)
    }

    /// Gives the partitions that are to be told.
    fn step(&mut self, event: FetcherEvent) -> Vec<(Key, Position)> {
        let now_ms = self.shared.replicas.now_ms();
        let mut told = Vec::new();
        for effect in self.fetcher.step(event, now_ms) {
            match effect {
                FetcherEffect::Send(session) => self.send(&session),
                FetcherEffect::Tell(key, position) => told.push((key, position)),
                FetcherEffect::WaitUntil(until_ms) => self.wait_until_ms = Some(until_ms),
            }
        }
        told
    }

    fn send(&mut self, session: &FetchSession) {
        let (shared, leader, peer) = (self.shared.clone(), self.leader, self.peer.take());
        let request = self.request(session);
        let was_open = peer.is_some();
        self.under_way = Some(Box::pin(async move {
            let connected = match peer {
                Some(peer) => Ok(peer),
                None => Peer::connect(&shared, leader).await,
            };
            match connected {
                Ok(mut peer) => {
                    let answer = peer.fetch(&shared, request).await;
                    Ended { peer: answer.is_ok().then_some(peer), was_open, answer }
                }
                Err(error) => Ended { peer: None, was_open, answer: Err(error) },
            }
        }));
    }

    async fn ended(&mut self, Ended { peer, was_open, answer }: Ended) {
        self.peer = peer;
        let answer = match answer {
            Ok(answer) => answer,
            Err(PeerError::Io(error)) if was_open => {
                debug!(leader = %self.leader, %error, "the connection to the leader has ended");
                self.step(FetcherEvent::ConnectionEnded);
                return;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    let leader = self.leader;
                    warn!(%leader, %error, "cannot fetch from the leader; retrying");
                }
                self.step(FetcherEvent::Failed);
                return;
            }
        };
        if std::mem::take(&mut self.has_failed) {
            info!(leader = %self.leader, "fetching from the leader again");
        }
        match ErrorCode::from_code(answer.error_code) {
            Some(ErrorCode::None) => self.take_answer(answer).await,
            Some(ErrorCode::FetchSessionIdNotFound | ErrorCode::InvalidFetchSessionEpoch) => {
                self.step(FetcherEvent::SessionEnded);
            }
            error => {
                warn!(leader = %self.leader, ?error, "the leader refused a fetch; retrying");
                self.step(FetcherEvent::Failed);
            }
        }
    }

    /// Gives the partitions what came for them, and asks for more when they have looked at it.
    async fn take_answer(&mut self, answer: m::FetchResponse) {
        self.take_news();
        let (session, is_proven) = (answer.session_id, self.is_proven(&answer));
        let (mut of_partitions, mut served) = (BTreeMap::<Key, (Answer, Bytes)>::new(), None);
        for topic in answer.responses {
            for partition in topic.partitions {
                let key = (topic.topic_id, partition.partition_index);
                if !is_proven {
                    of_partitions.insert(key, (Answer::NotReady, Bytes::new()));
                } else if self.is_news(&key, &partition) {
                    let records = partition.records.clone().unwrap_or_default();
                    served = if records.is_empty() { served } else { Some(key) };
                    of_partitions.insert(key, (said(&partition), records));
                }
            }
        }
        let about = of_partitions.keys().copied().collect();
        let told = self.step(FetcherEvent::Answered { session, about, served });
        let mut appended = 0;
        for (key, position) in told {
            let Some((answer, records)) = of_partitions.remove(&key) else { continue };
            let Some(partition) = self.shared.replicas.hosted(&key) else { continue };
            partition.answered(&position, answer, &records);
            appended += records.len();
            if appended > APPENDED_AT_ONCE {
                appended = 0;
                tokio::task::yield_now().await;
            }
        }
        self.take_news();
        self.step(FetcherEvent::Told);
    }

    /// Whether the leader has answered that the metadata of now know, and not who is reached there
    /// instead. It may not know this broker's registration yet, or this one the leader's; then it is
    /// asked again.
    fn is_proven(&mut self, answer: &m::FetchResponse) -> bool {
        let image = self.shared.replicas.image();
        let secret = image.brokers.get(&self.leader).and_then(|leader| leader.secret);
        let tags = &answer.unknown_tagged_fields;
        let is_proven = secret.is_some_and(|secret| replica::has_secret(tags, secret.as_bytes()));
        let leader = self.leader;
        if is_proven {
            if self.unproven.take().is_some_and(|(_, is_said)| is_said) {
                info!(%leader, "fetching from the leader again");
            }
        } else {
            let (since, is_said) = self.unproven.get_or_insert_with(|| (Instant::now(), false));
            if since.elapsed() >= SAY_UNPROVEN_AFTER && !std::mem::replace(is_said, true) {
                warn!(
                    %leader,
                    "who answers where the leader is registered does not prove that it is that \
                     broker of this cluster: nothing is taken from there; see its \
                     advertised.listeners"
                );
            }
        }
        is_proven
    }

    /// Whether the partition has something to look at.
    fn is_news(&self, key: &Key, said: &PartitionData) -> bool {
        let has_records = said.records.as_ref().is_some_and(|records| !records.is_empty());
        if has_records || said.error_code != 0 || is_diverging(said) {
            return true;
        }
        let hosted = self.shared.replicas.hosted(key);
        let log = hosted.as_ref().and_then(|partition| partition.log().ok());
        log.is_none_or(|log| {
            let known = log.high_watermark();
            log.lacks_records()
                || said.high_watermark.min(log.end_offset()) > known
                || said.log_start_offset.min(known) > log.start_offset()
        })
    }

    fn request(&self, session: &FetchSession) -> m::FetchRequest {
        let config = &self.shared.config;
        let number = |key| i32::try_from(config.number(key)).unwrap_or(i32::MAX);
        // None at all says that there is no space for them.
        let partition_max_bytes = number("replica.fetch.max.bytes").max(1);
        let mut topics: Vec<(TopicId, Vec<FetchPartition>)> = Vec::new();
        for ((topic, index), position) in &session.asks {
            let hosted = self.shared.replicas.hosted(&(*topic, *index));
            let (start, high_watermark, counts) =
                hosted.map_or((-1, -1, position.counts), |partition| partition.standing(position));
            let mut asked = FetchPartition::default()
                .with_partition(*index)
                .with_current_leader_epoch(position.epoch)
                .with_fetch_offset(position.at)
                .with_last_fetched_epoch(position.last_epoch)
                .with_log_start_offset(start)
                .with_partition_max_bytes(if position.is_full { 0 } else { partition_max_bytes });
            let standing = Standing { counts, high_watermark };
            replica::put_standing(&mut asked.unknown_tagged_fields, standing);
            match topics.last_mut().filter(|(last, _)| last == topic) {
                Some((_, partitions)) => partitions.push(asked),
                None => topics.push((*topic, vec![asked])),
            }
        }
        as_replica(self.shared.me, topics)
            .with_max_wait_ms(match session.is_more {
                true => 0,
                false => number("replica.fetch.wait.max.ms"),
            })
            .with_min_bytes(number("replica.fetch.min.bytes"))
            .with_max_bytes(number("replica.fetch.response.max.bytes"))
            .with_session_id(session.id)
            .with_session_epoch(session.epoch)
            .with_forgotten_topics_data(forgotten(&session.forgets))
    }
}

/// These, which are in order, by topic.
fn forgotten(keys: &[Key]) -> Vec<ForgottenTopic> {
    let of_topic = |keys: &[Key]| {
        let id = keys.first().map_or(TopicId::nil(), |(id, _)| *id);
        let partitions = keys.iter().map(|(_, index)| *index).collect();
        ForgottenTopic::default().with_topic_id(id).with_partitions(partitions)
    };
    keys.chunk_by(|(one, _), (other, _)| one == other).map(of_topic).collect()
}

/// A request that says who asks.
pub(super) fn as_replica(
    me: Me,
    topics: impl IntoIterator<Item = (TopicId, Vec<FetchPartition>)>,
) -> m::FetchRequest {
    let state =
        ReplicaState::default().with_replica_id(m::BrokerId(me.id.0)).with_replica_epoch(me.epoch);
    let topics = topics.into_iter().map(|(id, partitions)| {
        FetchTopic::default().with_topic_id(id).with_partitions(partitions)
    });
    let mut request =
        m::FetchRequest::default().with_replica_state(state).with_topics(topics.collect());
    if let Some(secret) = me.secret {
        replica::put_secret(&mut request.unknown_tagged_fields, secret.as_bytes());
    }
    request
}

fn is_diverging(said: &PartitionData) -> bool {
    said.diverging_epoch.end_offset >= 0
}

fn said(partition: &PartitionData) -> Answer {
    let (high_watermark, leader_start) = (partition.high_watermark, partition.log_start_offset);
    match ErrorCode::from_code(partition.error_code) {
        Some(ErrorCode::None) if is_diverging(partition) => {
            let diverging = &partition.diverging_epoch;
            Answer::Diverging { epoch: diverging.epoch, end: diverging.end_offset }
        }
        Some(ErrorCode::None) => Answer::Records { high_watermark, leader_start },
        Some(ErrorCode::OffsetOutOfRange) if leader_start >= 0 => {
            Answer::OutOfRange { leader_start, leader_end: high_watermark }
        }
        Some(ErrorCode::FencedLeaderEpoch) => Answer::Fenced,
        _ => Answer::NotReady,
    }
}
