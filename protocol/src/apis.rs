//! The one table of APIs, their versions and their messages that Letterbox serves; a new version
//! touches this table and one handler.
//!
//! What is listed here works completely. Ceilings are the lower of Kafka 4.4 and what
//! [`super::codec_range`] knows.

/// One API and its versions, all ends inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Api {
    /// The API key.
    pub key: i16,
    /// Kafka's name.
    pub name: &'static str,
    /// Lowest version listed in ApiVersions.
    pub advertised_min: i16,
    /// Lowest version that is accepted; `advertised_min <= min <= max`.
    pub min: i16,
    /// Highest version listed and accepted.
    pub max: i16,
    /// First version with compact lengths, tagged fields and the longer header (KIP-482).
    pub flexible_min: i16,
}

impl Api {
    /// Whether a request of `version` is accepted.
    pub const fn accepts(&self, version: i16) -> bool {
        self.min <= version && version <= self.max
    }

    /// Whether `version` has compact lengths and tagged fields.
    pub const fn is_flexible(&self, version: i16) -> bool {
        version >= self.flexible_min
    }

    /// The version of the header in front of a request: 1, or 2 when flexible.
    pub const fn request_header_version(&self, version: i16) -> i16 {
        if self.is_flexible(version) { 2 } else { 1 }
    }

    /// The version of the header in front of a response: 0, or 1 when flexible. ApiVersions always
    /// has 0, because the client does not yet know what the broker speaks (KIP-511).
    pub const fn response_header_version(&self, version: i16) -> i16 {
        if self.key != API_VERSIONS && self.is_flexible(version) { 1 } else { 0 }
    }
}

/// The API key of ApiVersions, which has rules of its own.
pub const API_VERSIONS: i16 = 18;
/// The API key of Produce.
pub const PRODUCE: i16 = 0;
/// The API key of Fetch.
pub const FETCH: i16 = 1;

/// Calls the macro that it is given with a row for each API that is served, in the order of the API
/// key: key, Kafka's name, the messages, and (lowest version, highest version, first flexible one).
macro_rules! served {
    ($with:ident) => {
        $with! {
            0 Produce ProduceRequest ProduceResponse (3, 13, 9),
            1 Fetch FetchRequest FetchResponse (4, 18, 12),
            2 ListOffsets ListOffsetsRequest ListOffsetsResponse (1, 11, 6),
            3 Metadata MetadataRequest MetadataResponse (0, 13, 9),
            8 OffsetCommit OffsetCommitRequest OffsetCommitResponse (2, 10, 8),
            9 OffsetFetch OffsetFetchRequest OffsetFetchResponse (1, 10, 6),
            10 FindCoordinator FindCoordinatorRequest FindCoordinatorResponse (0, 6, 3),
            11 JoinGroup JoinGroupRequest JoinGroupResponse (0, 9, 6),
            12 Heartbeat HeartbeatRequest HeartbeatResponse (0, 4, 4),
            13 LeaveGroup LeaveGroupRequest LeaveGroupResponse (0, 5, 4),
            14 SyncGroup SyncGroupRequest SyncGroupResponse (0, 5, 4),
            15 DescribeGroups DescribeGroupsRequest DescribeGroupsResponse (0, 6, 5),
            16 ListGroups ListGroupsRequest ListGroupsResponse (0, 5, 3),
            18 ApiVersions ApiVersionsRequest ApiVersionsResponse (0, 4, 3),
            19 CreateTopics CreateTopicsRequest CreateTopicsResponse (2, 7, 5),
            20 DeleteTopics DeleteTopicsRequest DeleteTopicsResponse (1, 6, 4),
            21 DeleteRecords DeleteRecordsRequest DeleteRecordsResponse (0, 2, 2),
            22 InitProducerId InitProducerIdRequest InitProducerIdResponse (0, 5, 2),
            23 OffsetForLeaderEpoch OffsetForLeaderEpochRequest OffsetForLeaderEpochResponse (2, 4, 4),
            29 DescribeAcls DescribeAclsRequest DescribeAclsResponse (1, 3, 2),
            30 CreateAcls CreateAclsRequest CreateAclsResponse (1, 3, 2),
            31 DeleteAcls DeleteAclsRequest DeleteAclsResponse (1, 3, 2),
            32 DescribeConfigs DescribeConfigsRequest DescribeConfigsResponse (1, 4, 4),
            33 AlterConfigs AlterConfigsRequest AlterConfigsResponse (0, 2, 2),
            35 DescribeLogDirs DescribeLogDirsRequest DescribeLogDirsResponse (1, 4, 2),
            37 CreatePartitions CreatePartitionsRequest CreatePartitionsResponse (0, 3, 2),
            42 DeleteGroups DeleteGroupsRequest DeleteGroupsResponse (0, 2, 2),
            43 ElectLeaders ElectLeadersRequest ElectLeadersResponse (0, 2, 2),
            44 IncrementalAlterConfigs IncrementalAlterConfigsRequest IncrementalAlterConfigsResponse (0, 1, 1),
            45 AlterPartitionReassignments AlterPartitionReassignmentsRequest AlterPartitionReassignmentsResponse (0, 1, 0),
            46 ListPartitionReassignments ListPartitionReassignmentsRequest ListPartitionReassignmentsResponse (0, 0, 0),
            // Never flexible.
            47 OffsetDelete OffsetDeleteRequest OffsetDeleteResponse (0, 0, 1),
            55 DescribeQuorum DescribeQuorumRequest DescribeQuorumResponse (0, 2, 0),
            57 UpdateFeatures UpdateFeaturesRequest UpdateFeaturesResponse (0, 2, 0),
            60 DescribeCluster DescribeClusterRequest DescribeClusterResponse (0, 2, 0),
            61 DescribeProducers DescribeProducersRequest DescribeProducersResponse (0, 0, 0),
            64 UnregisterBroker UnregisterBrokerRequest UnregisterBrokerResponse (0, 0, 0),
            74 ListConfigResources ListConfigResourcesRequest ListConfigResourcesResponse (0, 1, 0),
            75 DescribeTopicPartitions DescribeTopicPartitionsRequest DescribeTopicPartitionsResponse (0, 0, 0),
            80 AddRaftVoter AddRaftVoterRequest AddRaftVoterResponse (0, 0, 0),
            81 RemoveRaftVoter RemoveRaftVoterRequest RemoveRaftVoterResponse (0, 0, 0),
        }
    };
}
pub(crate) use served;

macro_rules! apis {
    ($($key:literal $name:ident $request:ident $response:ident ($min:literal, $max:literal, $flexible:literal),)*) => {
        /// Every API that is served, in the order of the API key.
        pub static APIS: &[Api] = &[$(api($key, stringify!($name), $min, $max, $flexible),)*];
    };
}

served!(apis);

/// The API of a key that is served, known when this is compiled.
pub(crate) const fn served_api(api_key: i16) -> &'static Api {
    let mut rest = APIS;
    while let [api, after @ ..] = rest {
        if api.key == api_key {
            return api;
        }
        rest = after;
    }
    panic!("the API is not served")
}

/// The API of a key, when it is served.
pub fn find(api_key: i16) -> Option<&'static Api> {
    APIS.binary_search_by_key(&api_key, |api| api.key).ok().and_then(|at| APIS.get(at))
}

const fn api(key: i16, name: &'static str, min: i16, max: i16, flexible_min: i16) -> Api {
    // Versions 0 to 2 of Produce are listed and refused: older librdkafka turns compression off
    // otherwise (KAFKA-18659).
    let advertised_min = if key == PRODUCE { 0 } else { min };
    Api { key, name, advertised_min, min, max, flexible_min }
}
