//! Consuming: partitions by hand or as a member of a group, read in order from each leader.
//!
//! All work happens in [`Consumer::poll`], except heartbeats. One Fetch per leader is under way at
//! a time; the next one is sent before records are handed out, so that the network works while the
//! caller does.

mod fetch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use letterbox_env::Gather;
use letterbox_protocol::ErrorCode;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::admin::{CommittedOffset, IsolationLevel, OffsetSpec};
use crate::client::{Client, Lane};
use crate::error::{BrokerError, Error};
use crate::group::Membership;
use crate::metadata::TopicPartition;
use crate::record::Header;
use fetch::Fetched;

/// Where to begin when there is no committed offset, or it is out of range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoOffsetReset {
    /// At the log start offset.
    Earliest,
    /// At the end.
    #[default]
    Latest,
    /// Nowhere: report it.
    None,
}

/// Membership of a consumer group; names and defaults are those of Kafka's consumer settings.
#[derive(Clone, Debug)]
pub struct GroupOptions {
    /// `group.id`.
    pub group_id: String,
    /// `group.instance.id`.
    pub instance_id: Option<String>,
    /// `session.timeout.ms`.
    pub session_timeout: Duration,
    /// `heartbeat.interval.ms`.
    pub heartbeat_interval: Duration,
    /// `max.poll.interval.ms`: also how long others wait for this member in a rebalance.
    pub rebalance_timeout: Duration,
    /// `auto.commit.interval.ms`; `None` is `enable.auto.commit=false`.
    pub auto_commit: Option<Duration>,
}

impl GroupOptions {
    /// Group `group_id` with Kafka's defaults.
    #[must_use]
    pub fn new(group_id: impl Into<String>) -> Self {
        Self {
            group_id: group_id.into(),
            instance_id: None,
            session_timeout: Duration::from_secs(45),
            heartbeat_interval: Duration::from_secs(3),
            rebalance_timeout: Duration::from_secs(300),
            auto_commit: Some(Duration::from_secs(5)),
        }
    }
}

/// How a consumer behaves; names and defaults are those of Kafka's consumer settings.
#[derive(Clone, Debug)]
pub struct ConsumerOptions {
    /// For [`Consumer::subscribe`] and commits.
    pub group: Option<GroupOptions>,
    /// `isolation.level`.
    pub isolation: IsolationLevel,
    /// `auto.offset.reset`.
    pub offset_reset: AutoOffsetReset,
    /// `fetch.min.bytes`.
    pub fetch_min_bytes: i32,
    /// `fetch.max.wait.ms`.
    pub fetch_wait: Duration,
    /// `fetch.max.bytes`.
    pub fetch_max_bytes: i32,
    /// `max.partition.fetch.bytes`.
    pub partition_fetch_bytes: i32,
    /// `max.poll.records`.
    pub poll_records_max: usize,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self {
            group: None,
            isolation: IsolationLevel::ReadUncommitted,
            offset_reset: AutoOffsetReset::Latest,
            fetch_min_bytes: 1,
            fetch_wait: Duration::from_millis(500),
            fetch_max_bytes: 50 << 20,
            partition_fetch_bytes: 1 << 20,
            poll_records_max: 500,
        }
    }
}

/// A record and where it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerRecord {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// The epoch of the leader that wrote it; -1 when unknown.
    pub leader_epoch: i32,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// Whether the timestamp is the broker's (LogAppendTime) and not the producer's.
    pub log_append_time: bool,
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Option<Bytes>,
    /// The headers in their order.
    pub headers: Vec<Header>,
}

/// Where reading a partition stands.
#[derive(Default)]
struct Position {
    /// The next offset to hand out; `None` until it was looked up.
    next: Option<i64>,
    leader_epoch: i32,
    /// Read, not handed out; its first record is at `next` or later.
    buffer: VecDeque<ConsumerRecord>,
    /// The offset after the buffer: where the next fetch begins.
    fetch_from: i64,
    /// Changed by each seek, so that answers to older fetches are dropped.
    turn: u64,
}

/// A consumer. Not a member of its group any more once it is closed or dropped (when dropped, the
/// broker notices by the session timeout).
pub struct Consumer {
    client: Client,
    options: ConsumerOptions,
    positions: BTreeMap<TopicPartition, Position>,
    subscribed: BTreeSet<String>,
    membership: Option<Membership>,
    /// Tasks, because a fetch that connects holds what others wait for, and nobody polls the
    /// consumer between two calls.
    fetching: JoinSet<Fetched>,
    busy: BTreeSet<i32>,
    /// Where the broker does not have the offset that was asked for.
    out_of_range: BTreeSet<TopicPartition>,
    backoff_until: Option<Instant>,
    next_commit: Option<Instant>,
    turns: u64,
    /// Which partition is handed out first next time.
    hand_out_after: Option<TopicPartition>,
    rejoins: u64,
}

impl Consumer {
    /// A consumer on the connections of `client`, reading nothing yet.
    #[must_use]
    pub fn new(client: &Client, options: ConsumerOptions) -> Self {
        Self {
            client: client.clone(),
            options,
            positions: BTreeMap::new(),
            subscribed: BTreeSet::new(),
            membership: None,
            fetching: JoinSet::new(),
            busy: BTreeSet::new(),
            out_of_range: BTreeSet::new(),
            backoff_until: None,
            next_commit: None,
            turns: 0,
            hand_out_after: None,
            rejoins: 0,
        }
    }

    /// Reads exactly `partitions` from now on, from the committed offsets of the group, or as
    /// `auto.offset.reset` says.
    pub fn assign(&mut self, partitions: impl IntoIterator<Item = TopicPartition>) {
        self.subscribed.clear();
        self.membership = None;
        self.replace_assignment(partitions.into_iter().gather());
    }

    /// Reads `topics` as a member of the group; it is joined by the next [`Consumer::poll`].
    ///
    /// # Errors
    /// [`Error::Invalid`] without [`ConsumerOptions::group`].
    pub fn subscribe(&mut self, topics: impl IntoIterator<Item = String>) -> Result<(), Error> {
        let Some(group) = self.options.group.clone() else {
            return Err(Error::Invalid(
                "to subscribe, a consumer needs a group.id; assign partitions instead".to_owned(),
            ));
        };
        self.subscribed = topics.into_iter().gather();
        self.membership = Some(Membership::new(&self.client, group));
        self.replace_assignment(BTreeSet::new());
        Ok(())
    }

    /// Continues `partition`, which must be assigned, at `offset`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not assigned.
    pub fn seek(&mut self, partition: &TopicPartition, offset: i64) -> Result<(), Error> {
        let turn = self.next_turn();
        let position = self
            .positions
            .get_mut(partition)
            .ok_or_else(|| Error::Invalid(format!("{partition} is not assigned")))?;
        *position = Position {
            next: Some(offset),
            fetch_from: offset,
            leader_epoch: -1,
            buffer: VecDeque::new(),
            turn,
        };
        Ok(())
    }

    /// The partitions that are read now.
    #[must_use]
    pub fn assignment(&self) -> Vec<TopicPartition> {
        self.positions.keys().cloned().collect()
    }

    /// The offset after the last record of `partition` that was handed out; `None` while it is not
    /// known.
    #[must_use]
    pub fn position(&self, partition: &TopicPartition) -> Option<i64> {
        self.positions.get(partition)?.next
    }

    /// How often the group was joined.
    #[must_use]
    pub fn joins(&self) -> u64 {
        self.rejoins
    }

    /// Generation and member id within the group, as commits carry them; `None` without a
    /// subscription.
    #[must_use]
    pub fn group_identity(&self) -> Option<(i32, String)> {
        self.membership.as_ref().map(Membership::identity)
    }

    /// Hands out records, at most `max.poll.records`; waits up to `timeout` for the first.
    ///
    /// Joins the group, looks up positions and commits (`enable.auto.commit`) as needed. Cancel
    /// safe.
    ///
    /// # Errors
    /// What does not heal by itself: `OFFSET_OUT_OF_RANGE` with `auto.offset.reset=none`, an
    /// unreadable batch, a fenced member; a group that cannot be joined within
    /// `default.api.timeout.ms`. While brokers are away there are just no records.
    pub async fn poll(&mut self, timeout: Duration) -> Result<Vec<ConsumerRecord>, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            self.maybe_join(deadline).await?;
            self.maybe_auto_commit().await;
            self.take_completed()?;
            let records = self.hand_out();
            if !records.is_empty() {
                self.start_fetches();
                return Ok(records);
            }
            if Instant::now() >= deadline {
                return Ok(records);
            }
            match self.find_positions().await {
                Ok(()) => {}
                // Brokers restart; the caller sees no records meanwhile.
                Err(error) if error.is_retriable() => {
                    tracing::debug!(%error, "no positions yet");
                    self.backoff();
                }
                Err(error) => return Err(error),
            }
            self.read_leaders().await;
            self.start_fetches();
            let until = self
                .backoff_until
                .filter(|at| *at > Instant::now())
                .map_or(deadline, |at| at.min(deadline));
            let membership = &self.membership;
            let disturbed = async {
                match membership {
                    Some(membership) => membership.disturbed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(fetched) = self.fetching.join_next(), if !self.fetching.is_empty() => self.take_fetched(fetch::whole(fetched))?,
                () = disturbed => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Commits the positions of everything that was handed out.
    ///
    /// # Errors
    /// The broker's refusal (`ILLEGAL_GENERATION`, `UNKNOWN_MEMBER_ID`: the partitions have gone to
    /// another member); when the coordinator does not answer in time.
    pub async fn commit(&mut self) -> Result<(), Error> {
        let offsets = self.positions.iter().filter_map(|(partition, position)| {
            let committed = CommittedOffset {
                offset: position.next?,
                leader_epoch: position.leader_epoch,
                metadata: String::new(),
            };
            Some((partition.clone(), committed))
        });
        let offsets = offsets.gather();
        self.commit_offsets(&offsets).await
    }

    /// Commits these offsets.
    ///
    /// # Errors
    /// As [`Consumer::commit`].
    pub async fn commit_offsets(
        &mut self,
        offsets: &BTreeMap<TopicPartition, CommittedOffset>,
    ) -> Result<(), Error> {
        let Some(group) = self.options.group.as_ref() else {
            return Err(Error::Invalid("to commit, a consumer needs a group.id".to_owned()));
        };
        if offsets.is_empty() {
            return Ok(());
        }
        let (generation, member) =
            self.membership.as_ref().map_or((-1, String::new()), Membership::identity);
        let instance = group.instance_id.as_deref().filter(|_| self.membership.is_some());
        let lane = if self.membership.is_some() { Lane::Group } else { Lane::Main };
        let outcomes = self
            .client
            .commit_offsets(
                &group.group_id,
                generation,
                &member,
                instance,
                offsets,
                lane,
                self.client.api_deadline(),
            )
            .await?;
        outcomes.into_values().collect::<Result<(), BrokerError>>()?;
        Ok(())
    }

    /// Commits (with `enable.auto.commit`) and leaves the group.
    ///
    /// # Errors
    /// When the last commit failed; the group is left all the same.
    pub async fn close(mut self) -> Result<(), Error> {
        let committed = if self.auto_commits() { self.commit().await } else { Ok(()) };
        if let Some(membership) = &mut self.membership
            && let Err(error) = membership.leave().await
        {
            tracing::debug!(%error, "leaving the group failed");
        }
        committed
    }

    fn auto_commits(&self) -> bool {
        self.options.group.as_ref().is_some_and(|group| group.auto_commit.is_some())
    }

    async fn maybe_join(&mut self, deadline: Instant) -> Result<(), Error> {
        let must_join = match &self.membership {
            Some(membership) => membership.poll()?,
            None => false,
        };
        if !must_join {
            return Ok(());
        }
        // What was read is committed before others may get the partitions.
        if self.auto_commits()
            && !self.positions.is_empty()
            && let Err(error) = self.commit().await
        {
            tracing::debug!(%error, "commit before rejoining failed");
        }
        if let Some(membership) = &mut self.membership {
            // Joining may take longer than the caller wants to wait for records; it is not given up
            // half way.
            let partitions =
                membership.join(&self.subscribed, self.client.api_deadline().max(deadline)).await?;
            self.rejoins += 1;
            self.positions.clear();
            self.replace_assignment(partitions.into_iter().gather());
        }
        Ok(())
    }

    async fn maybe_auto_commit(&mut self) {
        let Some(interval) = self.options.group.as_ref().and_then(|group| group.auto_commit) else {
            return;
        };
        let now = Instant::now();
        match self.next_commit {
            None => self.next_commit = Some(now + interval),
            Some(at) if at <= now => {
                self.next_commit = Some(now + interval);
                if let Err(error) = self.commit().await {
                    tracing::debug!(%error, "auto commit failed");
                }
            }
            Some(_) => {}
        }
    }

    fn replace_assignment(&mut self, partitions: BTreeSet<TopicPartition>) {
        self.positions.retain(|partition, _| partitions.contains(partition));
        for partition in partitions {
            let turn = self.next_turn();
            self.positions.entry(partition).or_insert_with(|| Position {
                turn,
                leader_epoch: -1,
                ..Position::default()
            });
        }
    }

    fn next_turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }

    /// Looks up where to begin in the partitions that have no position.
    async fn find_positions(&mut self) -> Result<(), Error> {
        let missing: Vec<TopicPartition> = self
            .positions
            .iter()
            .filter(|(_, p)| p.next.is_none())
            .map(|(partition, _)| partition.clone())
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let mut left = missing.clone();
        let out_of_range = std::mem::take(&mut self.out_of_range);
        if let Some(group) = &self.options.group
            && !missing.iter().all(|partition| out_of_range.contains(partition))
        {
            let mut committed =
                self.client.list_group_offsets(&group.group_id, Some(&missing)).await?;
            committed.retain(|partition, _| !out_of_range.contains(partition));
            left.retain(|partition| !committed.contains_key(partition));
            for (partition, committed) in committed {
                self.set_position(&partition, committed.offset, committed.leader_epoch);
            }
        }
        self.reset_positions(&left).await
    }

    async fn reset_positions(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        let spec = match self.options.offset_reset {
            AutoOffsetReset::Earliest => OffsetSpec::Earliest,
            AutoOffsetReset::Latest => OffsetSpec::Latest,
            AutoOffsetReset::None => match partitions.first() {
                None => return Ok(()),
                Some(partition) => {
                    let message =
                        format!("{partition} has no valid position and auto.offset.reset=none");
                    return Err(BrokerError {
                        code: ErrorCode::OffsetOutOfRange,
                        message: Some(message),
                    }
                    .into());
                }
            },
        };
        if partitions.is_empty() {
            return Ok(());
        }
        let wanted = partitions.iter().map(|partition| (partition.clone(), spec)).gather();
        for (partition, found) in self.client.list_offsets(&wanted, self.options.isolation).await? {
            match found {
                Ok(found) => {
                    self.set_position(&partition, found.offset.unwrap_or(0), found.leader_epoch)
                }
                // It is asked again at the next round; a topic may be on its way.
                Err(error) if error.code.is_retriable() => self.backoff(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn set_position(&mut self, partition: &TopicPartition, offset: i64, leader_epoch: i32) {
        if let Some(position) = self.positions.get_mut(partition) {
            position.next = Some(offset);
            position.fetch_from = offset;
            position.leader_epoch = leader_epoch;
        }
    }

    fn backoff(&mut self) {
        self.backoff_until = Some(Instant::now() + self.client.options().retry_backoff);
    }

    /// Partitions take turns, so that none starves behind a busy one.
    fn hand_out(&mut self) -> Vec<ConsumerRecord> {
        let mut records = Vec::new();
        let after = self.hand_out_after.clone();
        let order: Vec<TopicPartition> = match &after {
            Some(after) => {
                let behind = self.positions.keys().filter(|partition| *partition > after);
                behind
                    .chain(self.positions.keys().filter(|partition| *partition <= after))
                    .cloned()
                    .collect()
            }
            None => self.positions.keys().cloned().collect(),
        };
        for partition in order {
            let Some(position) = self.positions.get_mut(&partition) else { continue };
            if position.next.is_none() {
                continue;
            }
            let room = self.options.poll_records_max.saturating_sub(records.len());
            if room == 0 {
                break;
            }
            let count = room.min(position.buffer.len());
            if count > 0 {
                records.extend(position.buffer.drain(..count));
                self.hand_out_after = Some(partition);
                if let Some(last) = records.last() {
                    position.next = Some(last.offset.saturating_add(1));
                    position.leader_epoch = last.leader_epoch;
                }
            }
            if position.buffer.is_empty() {
                // Past what was skipped: transaction markers, compacted records.
                position.next = Some(position.fetch_from);
            }
        }
        records
    }
}
