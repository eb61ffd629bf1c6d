//! Which version of each API this client speaks: one table.

use kafka_protocol::protocol::Request;
use letterbox_protocol::apis;

/// The versions this client speaks of the API `R`: those of the protocol crate, cut where a newer
/// version changes more than the client follows. `None` of an API that it does not know.
pub(crate) fn range<R: Request>() -> Option<(i16, i16)> {
    let newest = match R::KEY {
        // Topic ids instead of names from Produce 13, Fetch 13, OffsetCommit 10 and OffsetFetch 10
        // on: this client works with names.
        0 | 1 => 12,
        8 | 9 => 9,
        // 6 asks for two-phase commit, which this client does not use.
        22 => 5,
        _ => i16::MAX,
    };
    apis::find(R::KEY).map(|api| (api.min, api.max.min(newest)))
}

/// The newest version both sides speak.
pub(crate) fn agree(ours: Option<(i16, i16)>, theirs: Option<(i16, i16)>) -> Option<i16> {
    let (ours, (min, max)) = (ours?, theirs?);
    let newest = ours.1.min(max);
    (newest >= ours.0.max(min)).then_some(newest)
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages as m;
    use kafka_protocol::protocol::Request;
    use letterbox_protocol::{Problem, check_response_body};

    use super::{agree, range};

    /// An answer is walked by Kafka's newest definitions before it is decoded: they must have each
    /// version that may be agreed on.
    #[test]
    fn every_version_of_an_answer_is_defined() {
        fn check<R: Request>() {
            let (min, max) = range::<R>().unwrap();
            for version in min..=max {
                let problem =
                    check_response_body(R::KEY, version, &[]).map_err(|error| error.problem);
                let known = !matches!(
                    problem,
                    Err(Problem::UnsupportedApi | Problem::UnsupportedVersion { .. })
                );
                assert!(known, "API key {} v{version}: {problem:?}", R::KEY);
            }
        }
        macro_rules! check_all {
            ($($request:ident)*) => { $(check::<m::$request>();)* };
        }
        check_all!(AddRaftVoterRequest AlterPartitionReassignmentsRequest ApiVersionsRequest CreatePartitionsRequest CreateTopicsRequest DeleteGroupsRequest DeleteRecordsRequest
            DeleteTopicsRequest DescribeAclsRequest DescribeClusterRequest DescribeConfigsRequest DescribeGroupsRequest DescribeLogDirsRequest
            DescribeProducersRequest DescribeQuorumRequest DescribeTopicPartitionsRequest ElectLeadersRequest FetchRequest FindCoordinatorRequest HeartbeatRequest
            IncrementalAlterConfigsRequest InitProducerIdRequest JoinGroupRequest LeaveGroupRequest ListConfigResourcesRequest
            ListGroupsRequest ListOffsetsRequest ListPartitionReassignmentsRequest MetadataRequest OffsetCommitRequest OffsetDeleteRequest OffsetFetchRequest
            ProduceRequest RemoveRaftVoterRequest SyncGroupRequest UnregisterBrokerRequest UpdateFeaturesRequest);
    }

    #[test]
    fn newest_common_version_is_taken_and_disjoint_ranges_have_none() {
        assert_eq!(agree(Some((1, 9)), Some((0, 5))), Some(5));
        assert_eq!(agree(Some((1, 4)), Some((2, 50))), Some(4));
        assert_eq!(agree(Some((1, 4)), Some((5, 9))), None);
        assert_eq!(agree(Some((3, 4)), Some((0, 2))), None);
        assert_eq!(agree(Some((3, 4)), None), None);
    }
}
