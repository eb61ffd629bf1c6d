//! ElectLeaders 0–2: who leads partitions, on request.
//!
//! KIPs: 183 (the preferred replica), 460 (also one that may miss committed records).

use std::sync::Arc;

use kafka_protocol::messages as m;
use kafka_protocol::messages::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use letterbox_protocol::ErrorCode;

use super::{Errors, Services, errors, is_late, message, of_controller, topic_name};
use crate::metadata::ApiError;
use crate::metadata::decide::{ElectLeaders, WantedLeader};
use crate::request::RequestContext;
use crate::server::changes::Within;

/// From this version on the answer has an error of its own, beside those of its partitions, and the
/// request says which replica it wants.
const WITH_TYPE: i16 = 1;
const PREFERRED: i8 = 0;
const UNCLEAN: i8 = 1;

/// Answers ElectLeaders.
pub(crate) async fn elect(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::ElectLeadersRequest,
) -> m::ElectLeadersResponse {
    let wanted = match request.election_type {
        PREFERRED => WantedLeader::Preferred,
        UNCLEAN => WantedLeader::Unclean,
        other => {
            let why = format!("Unknown election type {other}");
            return failed(&ctx, &request, &ApiError::new(ErrorCode::InvalidRequest, why));
        }
    };
    let within = Within::asked(request.timeout_ms, false);
    let operation = ElectLeaders { wanted, partitions: partitions(&request) };
    let changed = services.change(operation, within).await;
    let is_late = is_late(&changed);
    let outcome = match changed {
        Ok(changed) => changed.outcome,
        Err(error) => return failed(&ctx, &request, &of_controller(&error)),
    };
    let late = || Err(ApiError::from(ErrorCode::RequestTimedOut));
    let results = outcome.into_iter().map(|(partition, result)| {
        (partition, if is_late && result.is_ok() { late() } else { result })
    });
    m::ElectLeadersResponse::default().with_replica_election_results(by_topic(results))
}

/// Every partition that is named, in the order of the request; `None` for all there are.
fn partitions(request: &m::ElectLeadersRequest) -> Option<Vec<(String, i32)>> {
    let topics = request.topic_partitions.as_ref()?;
    let each = topics.iter().flat_map(|topic| {
        topic.partitions.iter().map(|index| (topic.topic.as_str().to_owned(), *index))
    });
    Some(each.collect())
}

/// The answer to a request that was refused as a whole.
pub(crate) fn failed(
    ctx: &RequestContext,
    request: &m::ElectLeadersRequest,
    error: &ApiError,
) -> m::ElectLeadersResponse {
    let each = partitions(request).unwrap_or_default().into_iter();
    let answer = m::ElectLeadersResponse::default()
        .with_replica_election_results(by_topic(each.map(|one| (one, Err(error.clone())))));
    match ctx.api_version {
        ..WITH_TYPE => answer,
        _ => answer.with_error_code(error.code.code()),
    }
}

/// Results of partitions of the same topic that follow each other, together.
fn by_topic(
    results: impl Iterator<Item = ((String, i32), Result<(), ApiError>)>,
) -> Vec<ReplicaElectionResult> {
    let mut topics: Vec<ReplicaElectionResult> = Vec::new();
    for ((name, index), result) in results {
        let mut answer = PartitionResult::default().with_partition_id(index);
        if let Err(error) = result {
            answer.error_code = error.code.code();
            answer.error_message = message(&error);
        }
        match topics.last_mut().filter(|topic| *topic.topic.0 == *name) {
            Some(topic) => topic.partition_result.push(answer),
            None => topics.push(
                ReplicaElectionResult::default()
                    .with_topic(topic_name(&name))
                    .with_partition_result(vec![answer]),
            ),
        }
    }
    topics
}

errors!(ElectLeadersResponse, |all, each| {
    each(all.error_code);
    let partitions = all.replica_election_results.iter().flat_map(|topic| &topic.partition_result);
    partitions.for_each(|one| each(one.error_code));
});
