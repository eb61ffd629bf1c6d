//! InitProducerId 0–5: an id for an idempotent producer (KIP-98, KIP-360).
//!
//! Ids come from the controller in blocks and are handed out once, so a restart skips what was left
//! of a block. Transactions are not offered by this version. Of the errors that stop every client
//! at once here, INVALID_TRANSACTION_TIMEOUT is the one that speaks neither of authorization nor of
//! another producer: no transaction is short enough.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use kafka_protocol::messages as m;
use letterbox_env::panics::lock;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::ProducerId;
use tokio::time::{Instant, timeout_at};
use tracing::info;

use super::{Errors, Services, errors};
use crate::metadata::decide::{AllocateProducerIds, ProducerIdBlock};
use crate::request::RequestContext;

/// What a client is told that wants transactions, wherever there is room for words.
pub(crate) const NO_TRANSACTIONS: &str = "transactions are not offered by this version of \
    Letterbox; remove transactional.id (Kafka Streams: processing.guarantee=at_least_once), \
    idempotence works without it";

/// How long a client waits for an id. It asks again when told COORDINATOR_LOAD_IN_PROGRESS, as by
/// Kafka, which waits for nothing.
const ID_WITHIN: Duration = Duration::from_secs(2);

/// The ids that this broker hands out.
#[derive(Default)]
pub(crate) struct ProducerIds(Mutex<Ids>);

/// `next..end` is the rest of the current block.
#[derive(Default)]
struct Ids {
    next: ProducerId,
    end: ProducerId,
    /// The block that is being fetched, once for all who wait.
    fetching: Option<Fetching>,
}

type Fetching = Shared<BoxFuture<'static, Option<ProducerIdBlock>>>;

impl Ids {
    fn take(&mut self) -> Option<ProducerId> {
        let id = self.next;
        (id < self.end).then(|| {
            self.next = id.saturating_add(1);
            id
        })
    }
}

impl ProducerIds {
    /// The next id; nothing when there is none in time.
    async fn next(&self, services: &Services) -> Option<ProducerId> {
        let deadline = Instant::now() + ID_WITHIN;
        loop {
            let fetching = {
                let mut ids = lock(&self.0);
                if let Some(id) = ids.take() {
                    return Some(id);
                }
                ids.fetching.get_or_insert_with(|| fetch(services)).clone()
            };
            let block = timeout_at(deadline, fetching.clone()).await.ok()?;
            let mut ids = lock(&self.0);
            // Who comes first of those who wait takes it over.
            if ids.fetching.as_ref().is_some_and(|present| present.ptr_eq(&fetching)) {
                ids.fetching = None;
                if let Some(ProducerIdBlock { first_id, len }) = block {
                    (ids.next, ids.end) = (first_id, first_id.saturating_add(len.into()));
                }
            }
            drop(ids);
            block?;
        }
    }
}

/// No request shows which ids are handed out, so nothing is waited for beyond the decision.
fn fetch(services: &Services) -> Fetching {
    let operation = AllocateProducerIds { broker: services.config.node_id };
    let controller = services.controller.clone();
    let fetched = async move { controller.run(operation).await.ok()?.outcome.ok() };
    fetched.boxed().shared()
}

/// Answers InitProducerId.
pub(crate) async fn init_producer_id(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::InitProducerIdRequest,
) -> m::InitProducerIdResponse {
    if let Some(transactional_id) = &request.transactional_id {
        let (transactional_id, peer) = (transactional_id.as_str(), ctx.caller.peer);
        let client_id = &*ctx.client_id;
        info!(transactional_id, client_id, %peer, "producer refused: {NO_TRANSACTIONS}");
        return refused(ErrorCode::InvalidTransactionTimeout);
    }
    match services.producer_ids.next(&services).await {
        Some(id) => m::InitProducerIdResponse::default()
            .with_producer_id(m::ProducerId(id))
            .with_producer_epoch(0),
        None => refused(ErrorCode::CoordinatorLoadInProgress),
    }
}

/// The answer without an id.
pub(crate) fn refused(error: ErrorCode) -> m::InitProducerIdResponse {
    m::InitProducerIdResponse::default()
        .with_error_code(error.code())
        .with_producer_id(m::ProducerId(-1))
        .with_producer_epoch(-1)
}

errors!(InitProducerIdResponse, |all, each| each(all.error_code));
