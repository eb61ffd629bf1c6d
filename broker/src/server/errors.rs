//! The errors that an answer carries: what `kafka_network_requestmetrics_errors` counts.

/// Calls `found` with each error code in `response`, as often as it is there. Produce and Fetch
/// have no such message; theirs are counted where their answers are made.
use letterbox_protocol::Response;

pub(super) fn each(response: &Response, mut found: impl FnMut(i16)) {
    let mut each = |code: i16| {
        if code != 0 {
            found(code);
        }
    };
    match response {
        Response::Produce(_) | Response::Fetch(_) => {}
        Response::ListOffsets(all) => all
            .topics
            .iter()
            .flat_map(|topic| &topic.partitions)
            .for_each(|one| each(one.error_code)),
        Response::Metadata(all) => {
            each(all.error_code);
            for topic in &all.topics {
                each(topic.error_code);
                topic.partitions.iter().for_each(|one| each(one.error_code));
            }
        }
        Response::OffsetCommit(all) => all
            .topics
            .iter()
            .flat_map(|topic| &topic.partitions)
            .for_each(|one| each(one.error_code)),
        Response::OffsetFetch(all) => {
            each(all.error_code);
            all.topics
                .iter()
                .flat_map(|topic| &topic.partitions)
                .for_each(|one| each(one.error_code));
            for group in &all.groups {
                each(group.error_code);
                group
                    .topics
                    .iter()
                    .flat_map(|topic| &topic.partitions)
                    .for_each(|one| each(one.error_code));
            }
        }
        Response::FindCoordinator(all) => {
            each(all.error_code);
            all.coordinators.iter().for_each(|one| each(one.error_code));
        }
        Response::JoinGroup(all) => each(all.error_code),
        Response::SyncGroup(all) => each(all.error_code),
        Response::Heartbeat(all) => each(all.error_code),
        Response::LeaveGroup(all) => {
            each(all.error_code);
            all.members.iter().for_each(|one| each(one.error_code));
        }
        Response::DescribeGroups(all) => all.groups.iter().for_each(|one| each(one.error_code)),
        Response::ListGroups(all) => each(all.error_code),
        Response::DeleteGroups(all) => all.results.iter().for_each(|one| each(one.error_code)),
        Response::OffsetDelete(all) => {
            each(all.error_code);
            all.topics
                .iter()
                .flat_map(|topic| &topic.partitions)
                .for_each(|one| each(one.error_code));
        }
        Response::ApiVersions(all) => each(all.error_code),
        Response::CreateTopics(all) => all.topics.iter().for_each(|one| each(one.error_code)),
        Response::DeleteTopics(all) => all.responses.iter().for_each(|one| each(one.error_code)),
        Response::CreatePartitions(all) => all.results.iter().for_each(|one| each(one.error_code)),
        Response::InitProducerId(all) => each(all.error_code),
        Response::DescribeConfigs(all) => all.results.iter().for_each(|one| each(one.error_code)),
        Response::AlterConfigs(all) => all.responses.iter().for_each(|one| each(one.error_code)),
        Response::IncrementalAlterConfigs(all) => {
            all.responses.iter().for_each(|one| each(one.error_code))
        }
        Response::DescribeCluster(all) => each(all.error_code),
        Response::DeleteRecords(all) => all
            .topics
            .iter()
            .flat_map(|topic| &topic.partitions)
            .for_each(|one| each(one.error_code)),
        Response::OffsetForLeaderEpoch(all) => all
            .topics
            .iter()
            .flat_map(|topic| &topic.partitions)
            .for_each(|one| each(one.error_code)),
        Response::DescribeAcls(all) => each(all.error_code),
        Response::CreateAcls(all) => all.results.iter().for_each(|one| each(one.error_code)),
        Response::DeleteAcls(all) => all.filter_results.iter().for_each(|one| each(one.error_code)),
        Response::DescribeLogDirs(all) => {
            each(all.error_code);
            all.results.iter().for_each(|one| each(one.error_code));
        }
        Response::DescribeQuorum(all) => {
            each(all.error_code);
            all.topics
                .iter()
                .flat_map(|topic| &topic.partitions)
                .for_each(|one| each(one.error_code));
        }
        Response::DescribeProducers(all) => all
            .topics
            .iter()
            .flat_map(|topic| &topic.partitions)
            .for_each(|one| each(one.error_code)),
        Response::DescribeTopicPartitions(all) => {
            for topic in &all.topics {
                each(topic.error_code);
                topic.partitions.iter().for_each(|one| each(one.error_code));
            }
        }
        Response::ListConfigResources(all) => each(all.error_code),
    }
}
