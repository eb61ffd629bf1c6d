//! Being a member of a consumer group: join, assignment by range, heartbeats, leaving (the classic
//! protocol).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    GroupId, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    SyncGroupRequest,
};
use kafka_protocol::protocol::StrBytes;
use letterbox_env::Gather;
use letterbox_protocol::ErrorCode;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::admin::IsolationLevel;
use crate::client::{Client, Lane, text};
use crate::consumer::GroupOptions;
use crate::error::{BrokerError, Error};
use crate::metadata::TopicPartition;

/// The assignor, by the name members vote with.
const RANGE: &str = "range";

/// A membership; heartbeats go on by themselves until it is dropped.
pub(crate) struct Membership {
    client: Client,
    options: GroupOptions,
    shared: Arc<Shared>,
    heartbeats: Option<tokio::task::JoinHandle<()>>,
}

struct Shared {
    state: Mutex<Standing>,
    /// `must_join` became true.
    disturbed: Notify,
}

#[derive(Clone, Debug)]
struct Standing {
    member_id: String,
    generation: i32,
    must_join: bool,
    /// Does not heal by joining again.
    fatal: Option<BrokerError>,
    last_poll: Instant,
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Some(task) = self.heartbeats.take() {
            task.abort();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Membership {
    pub(crate) fn new(client: &Client, options: GroupOptions) -> Self {
        let standing = Standing {
            member_id: String::new(),
            generation: -1,
            must_join: true,
            fatal: None,
            last_poll: Instant::now(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(standing), disturbed: Notify::new() });
        Self { client: client.clone(), options, shared, heartbeats: None }
    }

    /// Notes that the application is alive; tells whether the group has to be joined (again).
    pub(crate) fn poll(&self) -> Result<bool, Error> {
        let mut standing = self.shared.lock();
        standing.last_poll = Instant::now();
        match standing.fatal.clone() {
            Some(error) => Err(error.into()),
            None => Ok(standing.must_join),
        }
    }

    /// Completes when the group has to be joined again.
    pub(crate) async fn disturbed(&self) {
        self.shared.disturbed.notified().await;
    }

    /// Generation and member id, for commits.
    pub(crate) fn identity(&self) -> (i32, String) {
        let standing = self.shared.lock();
        (standing.generation, standing.member_id.clone())
    }

    /// Joins and returns the partitions that are ours in this generation.
    pub(crate) async fn join(
        &mut self,
        topics: &BTreeSet<String>,
        deadline: Instant,
    ) -> Result<Vec<TopicPartition>, Error> {
        if let Some(task) = self.heartbeats.take() {
            task.abort();
        }
        loop {
            let attempt = self.try_join(topics, deadline).await;
            let code = attempt.as_ref().err().and_then(Error::code);
            match attempt {
                Ok(partitions) => {
                    self.heartbeats = Some(tokio::spawn(heartbeats(
                        self.client.clone(),
                        self.options.clone(),
                        Arc::clone(&self.shared),
                    )));
                    return Ok(partitions);
                }
                Err(error) => match code {
                    Some(ErrorCode::MemberIdRequired | ErrorCode::RebalanceInProgress)
                        if Instant::now() < deadline => {}
                    Some(ErrorCode::UnknownMemberId | ErrorCode::IllegalGeneration)
                        if Instant::now() < deadline =>
                    {
                        let mut standing = self.shared.lock();
                        standing.member_id.clear();
                        standing.generation = -1;
                    }
                    _ if error.is_retriable() && Instant::now() < deadline => {
                        self.client.forget_coordinator(&self.options.group_id);
                        tokio::time::sleep(self.client.options().retry_backoff).await;
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    /// Tells the group that this member goes; the broker finds out by itself when this fails.
    pub(crate) async fn leave(&mut self) -> Result<(), Error> {
        if let Some(task) = self.heartbeats.take() {
            task.abort();
        }
        let (_, member) = self.identity();
        // A static member keeps its place until its session times out (KIP-345).
        if member.is_empty() || self.options.instance_id.is_some() {
            return Ok(());
        }
        leave(&self.client, &self.options, &member).await
    }

    async fn try_join(
        &self,
        topics: &BTreeSet<String>,
        deadline: Instant,
    ) -> Result<Vec<TopicPartition>, Error> {
        let group = &self.options.group_id;
        let coordinator = self.client.coordinator(group, deadline).await?;
        let connection = self.client.node(coordinator, Lane::Group).await?;
        let (_, member_id) = self.identity();
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(StrBytes::from_static_str(RANGE))
            .with_metadata(subscription(topics));
        let request = JoinGroupRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_session_timeout_ms(millis(self.options.session_timeout))
            .with_rebalance_timeout_ms(millis(self.options.rebalance_timeout))
            .with_member_id(text(&member_id))
            .with_group_instance_id(self.options.instance_id.as_deref().map(text))
            .with_protocol_type(StrBytes::from_static_str("consumer"))
            .with_protocols(vec![protocol]);
        // The broker answers when the others have joined too, at most a rebalance timeout later.
        let within = self.options.rebalance_timeout + std::time::Duration::from_secs(5);
        let joined = connection
            .call(
                &request,
                connection.version_of::<JoinGroupRequest>(i16::MAX)?,
                Instant::now() + within,
            )
            .await?;
        if !joined.member_id.is_empty() {
            self.shared.lock().member_id = joined.member_id.to_string();
        }
        BrokerError::check(joined.error_code, None)?;
        let is_leader = joined.leader == joined.member_id && !joined.skip_assignment;
        let assignments =
            if is_leader { self.assign(&joined, deadline).await? } else { Vec::new() };
        let request = SyncGroupRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_generation_id(joined.generation_id)
            .with_member_id(joined.member_id.clone())
            .with_group_instance_id(self.options.instance_id.as_deref().map(text))
            .with_protocol_type(Some(StrBytes::from_static_str("consumer")))
            .with_protocol_name(Some(StrBytes::from_static_str(RANGE)))
            .with_assignments(assignments);
        let synced = connection
            .call(
                &request,
                connection.version_of::<SyncGroupRequest>(i16::MAX)?,
                Instant::now() + within,
            )
            .await?;
        BrokerError::check(synced.error_code, None)?;
        let mine = crate::admin::assignment(synced.assignment).ok_or_else(|| Error::Malformed {
            address: connection.address().to_owned(),
            reason: "an assignment that is not one of consumers".to_owned(),
        })?;
        let mut standing = self.shared.lock();
        standing.generation = joined.generation_id;
        standing.must_join = false;
        Ok(mine)
    }

    async fn assign(
        &self,
        joined: &JoinGroupResponse,
        deadline: Instant,
    ) -> Result<Vec<SyncGroupRequestAssignment>, Error> {
        let mut members: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for member in &joined.members {
            // Members whose bytes cannot be read get nothing rather than break the group.
            members.insert(
                member.member_id.to_string(),
                subscribed_topics(member.metadata.clone()).unwrap_or_default(),
            );
        }
        let topics: Vec<String> =
            members.values().flatten().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        let metadata = self.client.read_metadata(Some(&topics), false, deadline).await?;
        let counts = metadata
            .topics
            .iter()
            .map(|(name, topic)| (name.clone(), topic.partitions.keys().copied().collect()))
            .gather();
        let assigned = assign_ranges(&members, &counts);
        let rows = assigned.into_iter().map(|(member, topics)| {
            SyncGroupRequestAssignment::default()
                .with_member_id(text(&member))
                .with_assignment(encode_assignment(&topics))
        });
        Ok(rows.collect())
    }
}

/// Kafka's range assignor: topic by topic, each member in order of its id gets a contiguous run,
/// the first ones one more.
fn assign_ranges(
    members: &BTreeMap<String, BTreeSet<String>>,
    topics: &BTreeMap<String, Vec<i32>>,
) -> BTreeMap<String, BTreeMap<String, Vec<i32>>> {
    let mut assigned: BTreeMap<String, BTreeMap<String, Vec<i32>>> =
        members.keys().map(|member| (member.clone(), BTreeMap::new())).gather();
    for (topic, partitions) in topics {
        let takers: Vec<&String> = members
            .iter()
            .filter(|(_, wanted)| wanted.contains(topic))
            .map(|(member, _)| member)
            .collect();
        let Some(each) = partitions.len().checked_div(takers.len()) else { continue };
        let extra = partitions.len() % takers.len();
        let mut rest = partitions.iter().copied();
        for (index, member) in takers.into_iter().enumerate() {
            let run: Vec<i32> = rest.by_ref().take(each + usize::from(index < extra)).collect();
            if let Some(mine) = assigned.get_mut(member).filter(|_| !run.is_empty()) {
                mine.insert(topic.clone(), run);
            }
        }
    }
    assigned
}

async fn heartbeats(client: Client, options: GroupOptions, shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(options.heartbeat_interval).await;
        let standing = shared.lock().clone();
        if standing.last_poll.elapsed() > options.rebalance_timeout {
            // The application hangs: others take over (max.poll.interval.ms). It joins anew when it
            // polls again.
            tracing::warn!(
                group = options.group_id,
                "no poll within max.poll.interval.ms; leaving the group"
            );
            let _ = leave(&client, &options, &standing.member_id).await;
            lose(&shared, true);
            return;
        }
        let request = HeartbeatRequest::default()
            .with_group_id(GroupId(text(&options.group_id)))
            .with_generation_id(standing.generation)
            .with_member_id(text(&standing.member_id))
            .with_group_instance_id(options.instance_id.as_deref().map(text));
        let deadline = Instant::now() + options.session_timeout;
        let answer = client
            .call_coordinator(&options.group_id, &request, Lane::Group, deadline, |response| {
                response.error_code
            })
            .await;
        let code = answer.map(|(_, response)| ErrorCode::of_answer(response.error_code));
        match code {
            Ok(None) => {}
            Ok(Some(ErrorCode::RebalanceInProgress)) => lose(&shared, false),
            Ok(Some(code @ ErrorCode::FencedInstanceId)) => {
                shared.lock().fatal = Some(BrokerError { code, message: None });
                return shared.disturbed.notify_one();
            }
            Ok(Some(code)) => {
                tracing::debug!(group = options.group_id, ?code, "membership lost");
                return lose(&shared, true);
            }
            Err(error) => tracing::debug!(group = options.group_id, %error, "heartbeat failed"),
        }
    }
}

fn lose(shared: &Shared, as_new: bool) {
    let mut standing = shared.lock();
    standing.must_join = true;
    if as_new {
        standing.member_id.clear();
        standing.generation = -1;
    }
    drop(standing);
    shared.disturbed.notify_one();
}

async fn leave(client: &Client, options: &GroupOptions, member: &str) -> Result<(), Error> {
    let deadline =
        Instant::now() + client.options().request_timeout.min(std::time::Duration::from_secs(5));
    let coordinator = client.coordinator(&options.group_id, deadline).await?;
    let connection = client.node(coordinator, Lane::Group).await?;
    let version = connection.version_of::<LeaveGroupRequest>(i16::MAX)?;
    let request = LeaveGroupRequest::default().with_group_id(GroupId(text(&options.group_id)));
    // From version 3 on several members may leave at once.
    let request = if version < 3 {
        request.with_member_id(text(member))
    } else {
        request.with_members(vec![MemberIdentity::default().with_member_id(text(member))])
    };
    let response = connection.call(&request, version, deadline).await?;
    Ok(BrokerError::check(response.error_code, None)?)
}

fn millis(duration: std::time::Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// A consumer's subscription, version 0: version, topics, no user data.
fn subscription(topics: &BTreeSet<String>) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_i16(0);
    bytes.put_i32(i32::try_from(topics.len()).unwrap_or(i32::MAX));
    for topic in topics {
        put_string(&mut bytes, topic);
    }
    bytes.put_i32(-1);
    bytes.freeze()
}

/// The topics in a subscription of any version; `None` when it is not one. The bytes come from
/// other clients.
fn subscribed_topics(mut bytes: Bytes) -> Option<BTreeSet<String>> {
    bytes.try_get_i16().ok().filter(|version| *version >= 0)?;
    let count = bytes.try_get_i32().ok()?;
    let mut topics = BTreeSet::new();
    for _ in 0..count {
        let length = usize::try_from(bytes.try_get_i16().ok()?)
            .ok()
            .filter(|length| *length <= bytes.len())?;
        topics.insert(std::str::from_utf8(&bytes.split_to(length)).ok()?.to_owned());
    }
    Some(topics)
}

/// A consumer's assignment, version 0: version, partitions by topic, no user data.
fn encode_assignment(topics: &BTreeMap<String, Vec<i32>>) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_i16(0);
    bytes.put_i32(i32::try_from(topics.len()).unwrap_or(i32::MAX));
    for (topic, partitions) in topics {
        put_string(&mut bytes, topic);
        bytes.put_i32(i32::try_from(partitions.len()).unwrap_or(i32::MAX));
        for partition in partitions {
            bytes.put_i32(*partition);
        }
    }
    bytes.put_i32(-1);
    bytes.freeze()
}

/// Topic names have at most 249 characters.
fn put_string(to: &mut BytesMut, text: &str) {
    to.put_i16(i16::try_from(text.len()).unwrap_or(i16::MAX));
    to.put_slice(text.as_bytes());
}

impl IsolationLevel {
    pub(crate) fn wire(self) -> i8 {
        i8::from(self == Self::ReadCommitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(topics: &[&str]) -> BTreeSet<String> {
        topics.iter().map(|topic| (*topic).to_owned()).collect()
    }

    #[test]
    fn ranges_are_contiguous_and_the_first_members_get_the_rest() {
        let members = BTreeMap::from([
            ("a".to_owned(), wants(&["t", "u"])),
            ("b".to_owned(), wants(&["t"])),
            ("c".to_owned(), wants(&["none"])),
        ]);
        let topics = BTreeMap::from([("t".to_owned(), vec![0, 1, 2]), ("u".to_owned(), vec![0])]);
        let assigned = assign_ranges(&members, &topics);
        assert_eq!(
            assigned["a"],
            BTreeMap::from([("t".to_owned(), vec![0, 1]), ("u".to_owned(), vec![0])])
        );
        assert_eq!(assigned["b"], BTreeMap::from([("t".to_owned(), vec![2])]));
        assert!(assigned["c"].is_empty());
    }

    #[test]
    fn subscriptions_and_assignments_come_back_and_lies_do_not_allocate() {
        assert_eq!(subscribed_topics(subscription(&wants(&["x", "y"]))), Some(wants(&["x", "y"])));
        let bytes = encode_assignment(&BTreeMap::from([("x".to_owned(), vec![3, 1])]));
        assert_eq!(
            crate::admin::assignment(bytes),
            Some(vec![TopicPartition::new("x", 3), TopicPartition::new("x", 1)])
        );
        let lie = Bytes::from_static(&[0, 0, 0x7f, 0xff, 0xff, 0xff]);
        assert_eq!(subscribed_topics(lie.clone()), None);
        assert_eq!(crate::admin::assignment(lie), None);
        let lie = Bytes::from_static(&[0, 0, 0, 0, 0, 1, 0, 1, b'x', 0x7f, 0xff, 0xff, 0xff]);
        assert_eq!(crate::admin::assignment(lie), None);
    }
}
