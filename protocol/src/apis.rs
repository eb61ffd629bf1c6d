//! The one table of APIs and versions that Letterbox serves; a new version touches this table and
//! one handler.
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

/// Every API that is served, in the order of the API key.
pub static APIS: &[Api] = &[
    // Versions 0 to 2 are listed and refused: older librdkafka turns compression off otherwise
    // (KAFKA-18659).
    Api { advertised_min: 0, ..api(0, "Produce", 3, 13, 9) },
    api(1, "Fetch", 4, 18, 12),
    api(2, "ListOffsets", 1, 11, 6),
    api(3, "Metadata", 0, 13, 9),
    api(8, "OffsetCommit", 2, 10, 8),
    api(9, "OffsetFetch", 1, 10, 6),
    api(10, "FindCoordinator", 0, 6, 3),
    api(11, "JoinGroup", 0, 9, 6),
    api(12, "Heartbeat", 0, 4, 4),
    api(13, "LeaveGroup", 0, 5, 4),
    api(14, "SyncGroup", 0, 5, 4),
    api(15, "DescribeGroups", 0, 6, 5),
    api(16, "ListGroups", 0, 5, 3),
    api(18, "ApiVersions", 0, 4, 3),
    api(19, "CreateTopics", 2, 7, 5),
    api(20, "DeleteTopics", 1, 6, 4),
    api(21, "DeleteRecords", 0, 2, 2),
    api(22, "InitProducerId", 0, 5, 2),
    api(23, "OffsetForLeaderEpoch", 2, 4, 4),
    api(29, "DescribeAcls", 1, 3, 2),
    api(30, "CreateAcls", 1, 3, 2),
    api(31, "DeleteAcls", 1, 3, 2),
    api(32, "DescribeConfigs", 1, 4, 4),
    api(33, "AlterConfigs", 0, 2, 2),
    api(35, "DescribeLogDirs", 1, 4, 2),
    api(37, "CreatePartitions", 0, 3, 2),
    api(42, "DeleteGroups", 0, 2, 2),
    api(44, "IncrementalAlterConfigs", 0, 1, 1),
    // Never flexible.
    api(47, "OffsetDelete", 0, 0, 1),
    api(55, "DescribeQuorum", 0, 2, 0),
    api(60, "DescribeCluster", 0, 2, 0),
    api(61, "DescribeProducers", 0, 0, 0),
    api(74, "ListConfigResources", 0, 1, 0),
    api(75, "DescribeTopicPartitions", 0, 0, 0),
];

/// The API of a key, when it is served.
pub fn find(api_key: i16) -> Option<&'static Api> {
    APIS.binary_search_by_key(&api_key, |api| api.key).ok().and_then(|at| APIS.get(at))
}

const fn api(key: i16, name: &'static str, min: i16, max: i16, flexible_min: i16) -> Api {
    Api { key, name, advertised_min: min, min, max, flexible_min }
}
