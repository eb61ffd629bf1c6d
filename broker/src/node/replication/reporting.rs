//! Telling one leader up to where its followers here count, as soon as the disk has synced: while
//! all that they have was fetched, their fetch is parked there and says nothing. And that this
//! fetch is to end when other partitions want records meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::messages as m;
use kafka_protocol::messages::fetch_request::FetchPartition;
use letterbox_protocol::model::{BrokerId, TopicId};
use letterbox_protocol::replica::{self, Standing};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Shared;
use super::fetching::as_replica;
use super::peer::{Peer, PeerError};
use crate::replication::fetcher::NAMED_MAX;
use crate::replication::outbox::{Report, Reports};

/// Goes on until `stop`. Reports that come while one is under way are the next, at most
/// [`NAMED_MAX`] at a time.
/// One that is lost is not repeated: the next fetch says the same.
pub(super) async fn report(
    shared: Arc<Shared>,
    leader: BrokerId,
    news: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut peer = None;
    loop {
        let request = request(&shared, leader);
        let work = async {
            match request {
                Some(request) => {
                    if let Err(error) = send(&shared, leader, &mut peer, request).await {
                        debug!(%leader, %error, "a report to the leader is lost");
                    }
                }
                None => news.notified().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = work => {}
        }
    }
}

fn request(shared: &Shared, leader: BrokerId) -> Option<m::FetchRequest> {
    let outbox = shared.replicas.outbox();
    let Reports { counts: reports, hurries } = outbox.take_reports(leader, NAMED_MAX);
    let mut topics: BTreeMap<TopicId, Vec<FetchPartition>> = BTreeMap::new();
    for ((topic, index), Report { epoch, counts, last_epoch }) in reports {
        let mut said = FetchPartition::default()
            .with_partition(index)
            .with_current_leader_epoch(epoch)
            .with_fetch_offset(counts)
            .with_last_fetched_epoch(last_epoch);
        let standing = Standing { counts, high_watermark: -1 };
        replica::put_standing(&mut said.unknown_tagged_fields, standing);
        topics.entry(topic).or_default().push(said);
    }
    if topics.is_empty() && !hurries {
        return None;
    }
    let mut request = as_replica(shared.me, topics).with_session_epoch(-1);
    replica::put_reports(&mut request.unknown_tagged_fields);
    if hurries {
        replica::put_hurries(&mut request.unknown_tagged_fields);
    }
    Some(request)
}

async fn send(
    shared: &Shared,
    leader: BrokerId,
    peer: &mut Option<Peer>,
    request: m::FetchRequest,
) -> Result<(), PeerError> {
    // One that was idle for long may have been closed by the leader.
    if let Some(mut known) = peer.take()
        && known.fetch(shared, request.clone()).await.is_ok()
    {
        *peer = Some(known);
        return Ok(());
    }
    let mut new = Peer::connect(shared, leader).await?;
    new.fetch(shared, request).await?;
    *peer = Some(new);
    Ok(())
}
