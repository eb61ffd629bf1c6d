//! From a frame to its handler and back to a frame. The one place where every request passes:
//! check, decode, count, handle, encode.
//!
//! Nothing that takes more than about a millisecond is done on an async thread. What a request
//! costs follows from its elements and those of its answer, so a request with many of them
//! ([`WIDE`]) is decoded, handled and answered elsewhere ([`Heavy::carry`]), whatever its API: no
//! handler needs to think of it.
//!
//! [`Heavy::carry`]: super::heavy::Heavy::carry

use std::sync::Arc;

use bytes::BytesMut;
use futures::future::BoxFuture;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use letterbox_protocol::apis::Api;
use letterbox_protocol::{
    self as protocol, ErrorCode, Problem, Request, Response, WireError, apis,
};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, error};

use super::budget::Share;
use super::context::Connection;
use super::errors::Errors;
use super::handlers::cluster::{
    api_versions, configs, features, log_dirs, metadata, quorum, unregister, voters,
};
use super::handlers::data::produce::Produced;
use super::handlers::data::{
    delete_records, fetch, init_producer_id, list_offsets, offset_for_leader_epoch, produce,
    producers,
};
use super::handlers::groups::{admin, find, members, offsets};
use super::handlers::security::acls;
use super::handlers::topics::{create, delete, elect, grow, partitions, reassign};
use super::response::Response as Frame;
use super::{Services, gate};
use crate::request::RequestContext;

/// What a request ends with. `None`: it has no answer; an error: the connection cannot go on, and
/// why.
pub(super) type Outcome = Result<Option<Frame>, String>;

/// What becomes of a request.
pub(super) enum Answer {
    /// Answered already.
    Now(Frame),
    /// Work is done in order already; the answer waits, and later requests may start.
    InOrder(BoxFuture<'static, Outcome>),
    /// As `InOrder`, but later requests may start only when the receiver resolves: batches are
    /// still being validated.
    Appending(BoxFuture<'static, Outcome>, oneshot::Receiver<()>),
    /// To be finished before the next request is looked at.
    Alone {
        /// The work and its answer.
        answer: BoxFuture<'static, Outcome>,
        /// Whether it may be dropped when the client has gone: it changes nothing.
        may_cancel: bool,
    },
    /// The connection cannot go on, and why.
    Close(String),
}

impl Answer {
    /// What it ends with.
    pub(super) async fn outcome(self) -> Outcome {
        match self {
            Self::Now(frame) => Ok(Some(frame)),
            Self::InOrder(answer) | Self::Appending(answer, _) | Self::Alone { answer, .. } => {
                answer.await
            }
            Self::Close(why) => Err(why),
        }
    }
}

/// What one array element of a request takes once it is decoded, at most.
const ELEMENT_BYTES: usize = 192;
/// What one array element of an answer takes before it is written down, mostly.
const ANSWER_ELEMENT_BYTES: usize = 256;
/// A request with more elements, in itself or in its answer, is handled off the async threads. At a
/// microsecond or two for each.
const WIDE: usize = 500;
/// Configurations of one resource, about.
const CONFIGS_OF_RESOURCE: usize = 100;
/// Partitions in an answer to DescribeTopicPartitions, at most
/// (`max.request.partition.size.limit`).
const DESCRIBED_PARTITIONS_MAX: usize = 2_000;
/// The first version of OffsetFetch that asks for several groups.
const OFFSET_FETCH_GROUPS: i16 = 8;
/// What is not worth counting: less than the buffer of the connection that brought it.
const NOT_COUNTED: usize = 4 * 1024;

fn counted(bytes: usize) -> usize {
    if bytes > NOT_COUNTED { bytes } else { 0 }
}

/// A request that was proven whole and is not decoded yet.
pub(super) struct Checked {
    frame: BytesMut,
    api: &'static Api,
    api_version: i16,
    correlation_id: i32,
    client_id: Arc<str>,
    body_offset: usize,
    elements: usize,
}

impl Checked {
    /// What the request takes of the account once it is decoded; its frame already takes
    /// `frame_bytes`.
    pub(super) fn cost(&self, frame_bytes: usize) -> usize {
        frame_bytes.saturating_add(self.decoded())
    }

    /// What of that is not the frame's.
    fn decoded(&self) -> usize {
        counted(self.elements.saturating_mul(ELEMENT_BYTES))
    }

    /// Whether handling it takes long enough for others to have their turn next.
    pub(super) fn is_large(&self) -> bool {
        self.frame.len() > 256 * 1024
    }
}

/// Proves that `frame` is a whole request.
///
/// # Errors
/// The answer to one that is not, or that is of a version which is not served.
pub(super) fn check(
    services: &Arc<Services>,
    connection: &mut Connection,
    mut frame: BytesMut,
) -> Result<Checked, Answer> {
    let mut checked = checked_by(connection, &frame);
    if checked.as_ref().is_err_and(|refused| refused.problem == Problem::NotUtf8) {
        protocol::mend_text(&mut frame);
        checked = checked_by(connection, &frame);
    }
    match checked {
        Ok(checked) => {
            connection.limit.client_is_known();
            Ok(Checked { frame, ..checked })
        }
        Err(refused) => {
            let prefix = protocol::peek_request(&frame);
            // A client that speaks a newer ApiVersions learns in version 0 which it can speak.
            if let (Some(prefix), Problem::UnsupportedVersion { .. }) = (prefix, &refused.problem)
                && prefix.api_key == apis::API_VERSIONS
            {
                services.metrics.answered_with("ApiVersions", ErrorCode::UnsupportedVersion.name());
                return Err(Answer::Now(
                    protocol::api_versions::unsupported_api_versions_frame(prefix.correlation_id)
                        .into(),
                ));
            }
            Err(Answer::Close(refused.to_string()))
        }
    }
}

/// What is known of a whole request, still without its frame.
fn checked_by(connection: &mut Connection, frame: &[u8]) -> Result<Checked, WireError> {
    protocol::check_request(frame).map(|header| Checked {
        api: header.api,
        api_version: header.api_version,
        correlation_id: header.correlation_id,
        client_id: connection.client_id(header.client_id.unwrap_or_default()),
        body_offset: header.body_offset,
        elements: header.elements,
        frame: BytesMut::new(),
    })
}

/// Starts one request, which holds `share`. Appends of a Produce have happened when this returns,
/// unless it says so.
pub(super) fn dispatch(
    services: &Arc<Services>,
    connection: &mut Connection,
    request: Checked,
    share: Share,
) -> Answer {
    let decoded = request.decoded();
    let Checked {
        mut frame,
        api,
        api_version: version,
        correlation_id,
        client_id,
        body_offset,
        elements,
    } = request;
    let ctx = connection.request(client_id, version, correlation_id);
    let body = frame.split_off(body_offset);
    drop(frame);
    if let Some(of_api) = services.metrics.of_api(api) {
        of_api.requests.inc();
    }
    debug!(api = api.name, version, client_id = %ctx.client_id, "request");
    let timed = Timed { services: services.clone(), api, started: Instant::now(), share };
    let is_wide = elements > WIDE;
    if api.key == apis::PRODUCE {
        return if is_wide {
            produce_elsewhere(timed, ctx, body, decoded)
        } else {
            start_produce(timed, &ctx, body, decoded)
        };
    }
    let decode = move || {
        protocol::decode_checked_request(api.key, version, body.freeze())
            .map_err(|refused| refused.to_string())
    };
    if is_wide {
        return elsewhere(timed, ctx, elements, decode);
    }
    match decode() {
        Ok(Request::ApiVersions(request)) => {
            let response = api_versions::api_versions(services, connection, version, &request);
            timed.now(&ctx, response)
        }
        Ok(request) => match answer_elements(services, version, &request) {
            0..=WIDE => route(timed, ctx, request),
            elements => elsewhere(timed, ctx, elements, || Ok(request)),
        },
        Err(refused) => Answer::Close(refused),
    }
}

/// Elements of the answer, where the request does not bound them: more than [`WIDE`] for what has
/// no cheap measure. One arm for each API, so that nobody forgets to think of a new one: a table,
/// whatever its length.
fn answer_elements(services: &Services, version: i16, request: &Request) -> usize {
    let hosted = || services.replicas.hosted_count();
    match request {
        Request::Metadata(request) => match &request.topics {
            Some(topics) if !metadata::is_all(version, topics) => {
                let image = services.image();
                let of = |topic: &MetadataRequestTopic| match &topic.name {
                    Some(name) => {
                        image.topic(name.as_str()).map_or(1, |topic| topic.partitions.len())
                    }
                    None => {
                        image.topic_by_id(&topic.topic_id).map_or(1, |topic| topic.partitions.len())
                    }
                };
                topics.iter().map(of).sum()
            }
            _ => hosted(),
        },
        Request::DescribeLogDirs(request) if request.topics.is_none() => hosted(),
        Request::DescribeTopicPartitions(_) => hosted().min(DESCRIBED_PARTITIONS_MAX),
        Request::DescribeConfigs(request) => {
            request.resources.len().saturating_mul(CONFIGS_OF_RESOURCE)
        }
        Request::ListConfigResources(_) => services.image().topic_count(),
        // What groups and producers hold has an account of its own.
        Request::ListGroups(_) | Request::DescribeGroups(_) | Request::DescribeProducers(_) => {
            WIDE + 1
        }
        // Those of all partitions that are moved or get another leader.
        Request::ElectLeaders(request) if request.topic_partitions.is_none() => WIDE + 1,
        Request::ListPartitionReassignments(request) if request.topics.is_none() => WIDE + 1,
        // All that a group committed.
        Request::OffsetFetch(request)
            if request.groups.iter().any(|group| group.topics.is_none())
                || (version < OFFSET_FETCH_GROUPS && request.topics.is_none()) =>
        {
            WIDE + 1
        }
        // One of these for each of the request, or fewer than a handful.
        Request::Produce(_)
        | Request::Fetch(_)
        | Request::ListOffsets(_)
        | Request::OffsetCommit(_)
        | Request::OffsetFetch(_)
        | Request::FindCoordinator(_)
        | Request::JoinGroup(_)
        | Request::Heartbeat(_)
        | Request::LeaveGroup(_)
        | Request::SyncGroup(_)
        | Request::ApiVersions(_)
        | Request::CreateTopics(_)
        | Request::DeleteTopics(_)
        | Request::DeleteRecords(_)
        | Request::InitProducerId(_)
        | Request::OffsetForLeaderEpoch(_)
        | Request::DescribeAcls(_)
        | Request::CreateAcls(_)
        | Request::DeleteAcls(_)
        | Request::AlterConfigs(_)
        | Request::DescribeLogDirs(_)
        | Request::CreatePartitions(_)
        | Request::ElectLeaders(_)
        | Request::AlterPartitionReassignments(_)
        | Request::ListPartitionReassignments(_)
        | Request::DeleteGroups(_)
        | Request::IncrementalAlterConfigs(_)
        | Request::OffsetDelete(_)
        | Request::DescribeQuorum(_)
        | Request::AddRaftVoter(_)
        | Request::RemoveRaftVoter(_)
        | Request::UnregisterBroker(_)
        | Request::UpdateFeatures(_)
        | Request::DescribeCluster(_) => 0,
    }
}

/// Handles a request off the async threads. What its answer takes is taken from the account first.
fn elsewhere(
    mut timed: Timed,
    ctx: RequestContext,
    elements: usize,
    decode: impl FnOnce() -> Result<Request, String> + Send + 'static,
) -> Answer {
    let services = timed.services.clone();
    // A Fetch may wait for long, and takes memory for what it has found only when it has.
    let may_cancel = timed.api.key == apis::FETCH;
    let handled = async move {
        let request = decode()?;
        if !may_cancel {
            let elements =
                elements.max(answer_elements(&timed.services, ctx.api_version, &request));
            timed
                .share
                .grow_to(timed.share.bytes() + elements.saturating_mul(ANSWER_ELEMENT_BYTES))
                .await;
        }
        route(timed, ctx, request).outcome().await
    };
    Answer::Alone {
        answer: Box::pin(
            async move { services.wide.carry(&services.env, Box::pin(handled)).await },
        ),
        may_cancel,
    }
}

/// As [`start_produce`], off the async threads.
fn produce_elsewhere(timed: Timed, ctx: RequestContext, body: BytesMut, decoded: usize) -> Answer {
    let services = timed.services.clone();
    let (done, appended) = oneshot::channel::<()>();
    let produced = async move {
        match start_produce(timed, &ctx, body, decoded) {
            Answer::Appending(answer, appended) => {
                let passed_on = async move {
                    // An error means that it ended without an append.
                    let _ = appended.await;
                    drop(done);
                };
                tokio::join!(biased; answer, passed_on).0
            }
            answer => {
                drop(done);
                answer.outcome().await
            }
        }
    };
    Answer::Appending(
        Box::pin(async move { services.wide.carry(&services.env, Box::pin(produced)).await }),
        appended,
    )
}

fn no_memory(bytes: usize) -> String {
    format!(
        "there is no memory for a response of {bytes} bytes, because other clients do not read \
        theirs (queued.max.request.bytes)"
    )
}

struct Timed {
    services: Arc<Services>,
    api: &'static Api,
    started: Instant,
    /// What the request holds, and then its answer.
    share: Share,
}

impl Timed {
    /// The answer as it is sent; the time that it took is counted.
    fn frame(
        &self,
        encoded: Result<impl Into<Frame>, protocol::WireError>,
    ) -> Result<Frame, String> {
        if let Some(of_api) = self.services.metrics.of_api(self.api) {
            of_api.seconds.observe(self.started.elapsed().as_secs_f64());
        }
        encoded.map(Into::into).map_err(|why| {
            error!(%why, api = self.api.name, "cannot encode a response");
            format!("the response cannot be encoded: {why}")
        })
    }

    fn failed(&self, error: ErrorCode) {
        self.services.metrics.answered_with(self.api.name, error.name());
    }

    /// The answer, whose errors are counted.
    fn counted(&self, response: impl Errors + Into<Response>) -> Response {
        response.each_error(&mut |code| {
            self.failed(ErrorCode::from_code(code).unwrap_or(ErrorCode::UnknownServerError))
        });
        response.into()
    }

    fn encoded(
        mut self,
        correlation_id: i32,
        version: i16,
        response: &Response,
    ) -> Result<Frame, String> {
        let mut needed = 0;
        let encoded = protocol::encode_response_if(correlation_id, version, response, |bytes| {
            needed = bytes;
            self.share.try_resize_to(counted(bytes))
        });
        match encoded.transpose() {
            Some(encoded) => self.frame(encoded).map(|frame| frame.holding(self.share)),
            None => Err(no_memory(needed)),
        }
    }

    /// The answer as it is sent, which holds what it takes; `records` of its bytes are held
    /// already.
    fn whole(
        mut self,
        encoded: Result<impl Into<Frame>, protocol::WireError>,
        records: usize,
    ) -> Result<Frame, String> {
        let frame = self.frame(encoded)?;
        let rest = frame.in_memory().saturating_sub(records);
        if !self.share.try_resize_to(counted(rest)) {
            return Err(no_memory(rest));
        }
        Ok(frame.holding(self.share))
    }

    fn now(self, ctx: &RequestContext, response: impl Errors + Into<Response>) -> Answer {
        let response = self.counted(response);
        self.encoded(ctx.correlation_id, ctx.api_version, &response)
            .map_or_else(Answer::Close, Answer::Now)
    }

    /// The answer to a request that the gate has refused.
    fn refused(self, ctx: &RequestContext, request: &Request, error: ErrorCode) -> Answer {
        self.failed(error);
        match gate::refusal(ctx, request, error) {
            Some(response) => self
                .encoded(ctx.correlation_id, ctx.api_version, &response)
                .map_or_else(Answer::Close, Answer::Now),
            None => Answer::Close(format!("{} has no answer for {error:?}", self.api.name)),
        }
    }

    fn alone<R: Errors + Into<Response>>(
        self,
        ctx: &RequestContext,
        response: impl Future<Output = R> + Send + 'static,
    ) -> Answer {
        let (correlation_id, version) = (ctx.correlation_id, ctx.api_version);
        let answer = Box::pin(async move {
            let response = self.counted(response.await);
            self.encoded(correlation_id, version, &response).map(Some)
        });
        Answer::Alone { answer, may_cancel: false }
    }

    /// As [`alone`](Self::alone), for a request that is gone long before its answer is there: it
    /// holds nothing meanwhile, and the answer waits for its memory.
    fn parked<R: Errors + Into<Response>>(
        mut self,
        ctx: &RequestContext,
        response: impl Future<Output = BoxFuture<'static, R>> + Send + 'static,
    ) -> Answer {
        let (correlation_id, version) = (ctx.correlation_id, ctx.api_version);
        let answer = Box::pin(async move {
            let response = response.await;
            self.share.try_resize_to(0);
            let response = self.counted(response.await);
            let mut needed = 0;
            let size = |bytes| {
                needed = bytes;
                false
            };
            // Only its size is asked for; a failure comes again below.
            let _ = protocol::encode_response_if(correlation_id, version, &response, size);
            self.share.grow_to(counted(needed)).await;
            self.encoded(correlation_id, version, &response).map(Some)
        });
        Answer::Alone { answer, may_cancel: false }
    }
}

/// Produce has a way of its own: nothing of it is decoded into owned messages, and its records are
/// appended where they lie.
///
/// What it takes `decoded` is held until the answer is written down, for which it is about enough.
fn start_produce(mut timed: Timed, ctx: &RequestContext, body: BytesMut, decoded: usize) -> Answer {
    match produce::produce(&timed.services, ctx, body) {
        Ok(Produced::Unanswered) => Answer::InOrder(Box::pin(std::future::ready(Ok(None)))),
        Ok(Produced::Answered(frame)) => {
            timed.whole(frame, 0).map_or_else(Answer::Close, Answer::Now)
        }
        Ok(Produced::Waiting(answer)) => {
            // The request is gone; what is left of it is in the log.
            timed.share.try_resize_to(decoded);
            Answer::InOrder(Box::pin(async move {
                let frame = answer.await;
                timed.whole(frame, 0).map(Some)
            }))
        }
        Ok(Produced::Validating { appending, appended }) => {
            let answer = async move {
                let waiting = appending.await;
                timed.share.try_resize_to(decoded);
                match waiting? {
                    Some(answer) => timed.whole(answer.await, 0).map(Some),
                    None => Ok(None),
                }
            };
            Answer::Appending(Box::pin(answer), appended)
        }
        Err(why) => Answer::Close(why),
    }
}

/// Gives a request to its handler, if it passes the gate. One arm for each API: a table, whatever
/// its length.
fn route(timed: Timed, ctx: RequestContext, request: Request) -> Answer {
    if let Err(error) = gate::pass(&ctx, &request) {
        return timed.refused(&ctx, &request, error);
    }
    let (services, of) = (timed.services.clone(), ctx.clone());
    match request {
        Request::Produce(_) => {
            Answer::Close("a Produce request took the way of the others".to_owned())
        }
        Request::Fetch(request) => {
            let answer = Box::pin(async move {
                let (fetched, records) = fetch::fetch(services, ctx, request, &timed.share).await;
                fetched.errors().for_each(|error| timed.failed(error));
                let encoded = fetch::encode(of.correlation_id, of.api_version, fetched);
                let held = records.bytes();
                timed.whole(encoded, held).map(|frame| Some(frame.holding(records)))
            });
            Answer::Alone { answer, may_cancel: true }
        }
        // It has no elements, but tagged fields count as some.
        Request::ApiVersions(_) => {
            Answer::Close("an ApiVersions request with too many tagged fields".to_owned())
        }
        Request::ListOffsets(request) => {
            timed.alone(&of, list_offsets::list_offsets(services, ctx, request))
        }
        Request::Metadata(request) => timed.alone(&of, metadata::metadata(services, ctx, request)),
        Request::InitProducerId(request) => {
            timed.alone(&of, init_producer_id::init_producer_id(services, ctx, request))
        }
        Request::FindCoordinator(request) => timed.alone(&of, find::find(services, ctx, request)),
        Request::OffsetCommit(request) => timed.alone(&of, offsets::commit(services, ctx, request)),
        Request::OffsetFetch(request) => timed.alone(&of, offsets::fetch(services, ctx, request)),
        Request::OffsetDelete(request) => timed.alone(&of, offsets::delete(services, ctx, request)),
        Request::JoinGroup(request) => timed.parked(&of, members::join(services, ctx, request)),
        Request::SyncGroup(request) => timed.parked(&of, members::sync(services, ctx, request)),
        Request::LeaveGroup(request) => timed.alone(&of, members::leave(services, ctx, request)),
        Request::Heartbeat(request) => {
            timed.now(&of, members::heartbeat(&services, &ctx, &request))
        }
        Request::DescribeGroups(request) => {
            timed.now(&of, admin::describe(&services, &ctx, request))
        }
        Request::ListGroups(request) => timed.now(&of, admin::list(&services, &ctx, &request)),
        Request::DeleteGroups(request) => timed.alone(&of, admin::delete(services, ctx, request)),
        Request::CreateTopics(request) => timed.alone(&of, create::create(services, ctx, request)),
        Request::DeleteTopics(request) => timed.alone(&of, delete::delete(services, ctx, request)),
        Request::CreatePartitions(request) => timed.alone(&of, grow::grow(services, ctx, request)),
        Request::ElectLeaders(request) => timed.alone(&of, elect::elect(services, ctx, request)),
        Request::AlterPartitionReassignments(request) => {
            timed.alone(&of, reassign::alter(services, request))
        }
        Request::ListPartitionReassignments(request) => {
            timed.alone(&of, reassign::list(services, request))
        }
        Request::DescribeTopicPartitions(request) => {
            timed.now(&of, partitions::describe(&services, &ctx, &request))
        }
        Request::DescribeConfigs(request) => {
            timed.now(&of, configs::describe(&services, &ctx, request))
        }
        Request::AlterConfigs(request) => {
            timed.alone(&of, configs::replace(services, ctx, request))
        }
        Request::IncrementalAlterConfigs(request) => {
            timed.alone(&of, configs::alter(services, ctx, request))
        }
        Request::ListConfigResources(request) => {
            timed.now(&of, configs::list(&services, &ctx, &request))
        }
        Request::DescribeCluster(request) => {
            timed.now(&of, metadata::describe_cluster(&services, &ctx, &request))
        }
        Request::DeleteRecords(request) => {
            timed.alone(&of, delete_records::delete_records(services, ctx, request))
        }
        Request::OffsetForLeaderEpoch(request) => timed
            .now(&of, offset_for_leader_epoch::offset_for_leader_epoch(&services, &ctx, request)),
        Request::DescribeQuorum(request) => {
            timed.alone(&of, quorum::describe(services, ctx, request))
        }
        Request::AddRaftVoter(request) => timed.alone(&of, voters::add(services, request)),
        Request::RemoveRaftVoter(request) => timed.alone(&of, voters::remove(services, request)),
        Request::UnregisterBroker(request) => {
            timed.alone(&of, unregister::unregister(services, request))
        }
        Request::UpdateFeatures(request) => {
            timed.alone(&of, features::update(services, ctx, request))
        }
        Request::DescribeProducers(request) => {
            timed.now(&of, producers::describe(&services, &ctx, request))
        }
        Request::DescribeLogDirs(request) => {
            timed.alone(&of, log_dirs::describe(services, request))
        }
        Request::DescribeAcls(_) => timed.now(&of, acls::describe()),
        Request::CreateAcls(request) => timed.now(&of, acls::create(&request)),
        Request::DeleteAcls(request) => timed.now(&of, acls::delete(&request)),
    }
}
