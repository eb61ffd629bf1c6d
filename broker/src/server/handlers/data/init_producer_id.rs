//! InitProducerId 0–5: an id for an idempotent producer (KIP-98, KIP-360).
//!
//! Ids come from the controller in blocks and are handed out once, so a restart skips what was left
//! of a block. Transactions are not offered by this version. Of the errors that stop every client
//! at once here, INVALID_TRANSACTION_TIMEOUT is the one that speaks neither of authorization nor of
//! another producer: no transaction is short enough.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages as m;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::ProducerId;
use tokio::sync::Mutex;
use tracing::info;

use super::{Errors, Services, errors};
use crate::metadata::decide::AllocateProducerIds;
use crate::request::RequestContext;

/// What a client is told that wants transactions, wherever there is room for words.
pub(crate) const NO_TRANSACTIONS: &str = "transactions are not offered by this version of \
    Letterbox; remove transactional.id (Kafka Streams: processing.guarantee=at_least_once), \
    idempotence works without it";

/// The rest of the current block: next and end.
#[derive(Default)]
pub(crate) struct ProducerIds {
    block: Mutex<(ProducerId, ProducerId)>,
}

impl ProducerIds {
    async fn next(&self, services: &Services) -> Result<ProducerId, ErrorCode> {
        let mut block = self.block.lock().await;
        if block.0 >= block.1 {
            let operation = AllocateProducerIds { broker: services.config.node_id };
            // No request shows which ids are handed out, so nothing is waited for.
            let fresh = services.change(operation, Duration::ZERO).await;
            let fresh = fresh
                .map_err(|_| ErrorCode::CoordinatorLoadInProgress)?
                .outcome
                .map_err(|_| ErrorCode::CoordinatorLoadInProgress)?;
            *block = (fresh.first_id, fresh.first_id.saturating_add(i64::from(fresh.len)));
        }
        let id = block.0;
        block.0 += 1;
        Ok(id)
    }
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
        Ok(id) => m::InitProducerIdResponse::default()
            .with_producer_id(m::ProducerId(id))
            .with_producer_epoch(0),
        Err(error) => refused(error),
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
