//! The records of consumer groups of the new protocol (KIP-848), share groups (KIP-932) and streams
//! groups (KIP-1071).
//!
//! Source: the message definitions of Apache Kafka 4.3.

use super::{Field, NEWEST, Type};

const fn always(name: &'static str, kind: Type) -> Field {
    Field(name, 0, NEWEST, kind)
}

/// Key type, fields of the key, fields of the value. All of them have version 0 only, and the
/// values are flexible.
pub(super) const RECORDS: &[(i16, &[Field], &[Field])] = &[
    (3, GROUP_ID, CONSUMER_GROUP_METADATA),
    (4, GROUP_ID, CONSUMER_GROUP_PARTITION_METADATA),
    (5, GROUP_AND_MEMBER_ID, CONSUMER_GROUP_MEMBER_METADATA),
    (6, GROUP_ID, TARGET_ASSIGNMENT),
    (7, GROUP_AND_MEMBER_ID, TARGET_ASSIGNMENT_OF_MEMBER),
    (8, GROUP_AND_MEMBER_ID, CONSUMER_GROUP_CURRENT_MEMBER_ASSIGNMENT),
    (10, GROUP_AND_MEMBER_ID, SHARE_GROUP_MEMBER_METADATA),
    (11, GROUP_ID, SHARE_GROUP_METADATA),
    (12, GROUP_ID, TARGET_ASSIGNMENT),
    (13, GROUP_AND_MEMBER_ID, TARGET_ASSIGNMENT_OF_MEMBER),
    (14, GROUP_AND_MEMBER_ID, SHARE_GROUP_CURRENT_MEMBER_ASSIGNMENT),
    (15, GROUP_ID, SHARE_GROUP_STATE_PARTITION_METADATA),
    (16, GROUP_AND_REGULAR_EXPRESSION, CONSUMER_GROUP_REGULAR_EXPRESSION),
    (17, GROUP_ID, STREAMS_GROUP_METADATA),
    (19, GROUP_AND_MEMBER_ID, STREAMS_GROUP_MEMBER_METADATA),
    (20, GROUP_ID, TARGET_ASSIGNMENT),
    (21, GROUP_AND_MEMBER_ID, STREAMS_GROUP_TARGET_ASSIGNMENT_MEMBER),
    (22, GROUP_AND_MEMBER_ID, STREAMS_GROUP_CURRENT_MEMBER_ASSIGNMENT),
    (23, GROUP_ID, STREAMS_GROUP_TOPOLOGY),
];

const GROUP_ID: &[Field] = &[always("groupId", Type::Text)];
const CONSUMER_GROUP_METADATA: &[Field] =
    &[always("epoch", Type::I32), always("metadataHash", Type::Tagged(0, &Type::I64, "0"))];
const PARTITION_METADATA: &[Field] =
    &[always("partition", Type::I32), always("racks", Type::Texts)];
const TOPIC_METADATA: &[Field] = &[
    always("topicId", Type::Uuid),
    always("topicName", Type::Text),
    always("numPartitions", Type::I32),
    always("partitionMetadata", Type::Array(PARTITION_METADATA)),
];
const CONSUMER_GROUP_PARTITION_METADATA: &[Field] =
    &[always("topics", Type::Array(TOPIC_METADATA))];
const GROUP_AND_MEMBER_ID: &[Field] =
    &[always("groupId", Type::Text), always("memberId", Type::Text)];
const CLASSIC_PROTOCOL: &[Field] = &[always("name", Type::Text), always("metadata", Type::Blob)];
const CLASSIC_MEMBER_METADATA: &[Field] = &[
    always("sessionTimeoutMs", Type::I32),
    always("supportedProtocols", Type::Array(CLASSIC_PROTOCOL)),
];
const CONSUMER_GROUP_MEMBER_METADATA: &[Field] = &[
    always("instanceId", Type::MaybeText),
    always("rackId", Type::MaybeText),
    always("clientId", Type::Text),
    always("clientHost", Type::Text),
    always("subscribedTopicNames", Type::Texts),
    always("subscribedTopicRegex", Type::MaybeText),
    always("rebalanceTimeoutMs", Type::I32),
    always("serverAssignor", Type::MaybeText),
    always(
        "classicMemberMetadata",
        Type::Tagged(0, &Type::MaybeStruct(CLASSIC_MEMBER_METADATA), "null"),
    ),
];
const TARGET_ASSIGNMENT: &[Field] = &[
    always("assignmentEpoch", Type::I32),
    always("assignmentTimestamp", Type::Tagged(0, &Type::I64, "0")),
];
const TOPIC_PARTITION: &[Field] =
    &[always("topicId", Type::Uuid), always("partitions", Type::I32s)];
const TARGET_ASSIGNMENT_OF_MEMBER: &[Field] =
    &[always("topicPartitions", Type::Array(TOPIC_PARTITION))];
const TOPIC_PARTITIONS: &[Field] = &[
    always("topicId", Type::Uuid),
    always("partitions", Type::I32s),
    always("assignmentEpochs", Type::Tagged(0, &Type::MaybeI32s, "null")),
];
const CONSUMER_GROUP_CURRENT_MEMBER_ASSIGNMENT: &[Field] = &[
    always("memberEpoch", Type::I32),
    always("previousMemberEpoch", Type::I32),
    always("state", Type::I8),
    always("assignedPartitions", Type::Array(TOPIC_PARTITIONS)),
    always("partitionsPendingRevocation", Type::Array(TOPIC_PARTITIONS)),
];
const SHARE_GROUP_MEMBER_METADATA: &[Field] = &[
    always("rackId", Type::MaybeText),
    always("clientId", Type::Text),
    always("clientHost", Type::Text),
    always("subscribedTopicNames", Type::Texts),
];
const SHARE_GROUP_METADATA: &[Field] =
    &[always("epoch", Type::I32), always("metadataHash", Type::I64)];
const SHARE_GROUP_CURRENT_MEMBER_ASSIGNMENT: &[Field] = &[
    always("memberEpoch", Type::I32),
    always("previousMemberEpoch", Type::I32),
    always("state", Type::I8),
    always("assignedPartitions", Type::Array(TOPIC_PARTITION)),
];
const TOPIC_PARTITIONS_INFO: &[Field] = &[
    always("topicId", Type::Uuid),
    always("topicName", Type::Text),
    always("partitions", Type::I32s),
];
const TOPIC_INFO: &[Field] = &[always("topicId", Type::Uuid), always("topicName", Type::Text)];
const SHARE_GROUP_STATE_PARTITION_METADATA: &[Field] = &[
    always("initializingTopics", Type::Array(TOPIC_PARTITIONS_INFO)),
    always("initializedTopics", Type::Array(TOPIC_PARTITIONS_INFO)),
    always("deletingTopics", Type::Array(TOPIC_INFO)),
];
const GROUP_AND_REGULAR_EXPRESSION: &[Field] =
    &[always("groupId", Type::Text), always("regularExpression", Type::Text)];
const CONSUMER_GROUP_REGULAR_EXPRESSION: &[Field] =
    &[always("topics", Type::Texts), always("version", Type::I64), always("timestamp", Type::I64)];
const PAIR: &[Field] = &[always("key", Type::Text), always("value", Type::Text)];
const STREAMS_GROUP_METADATA: &[Field] = &[
    always("epoch", Type::I32),
    always("metadataHash", Type::I64),
    always("validatedTopologyEpoch", Type::Tagged(0, &Type::I32, "-1")),
    always("lastAssignmentConfigs", Type::Tagged(1, &Type::MaybeArray(PAIR), "null")),
];
const ENDPOINT: &[Field] = &[always("host", Type::Text), always("port", Type::U16)];
const STREAMS_GROUP_MEMBER_METADATA: &[Field] = &[
    always("instanceId", Type::MaybeText),
    always("rackId", Type::MaybeText),
    always("clientId", Type::Text),
    always("clientHost", Type::Text),
    always("rebalanceTimeoutMs", Type::I32),
    always("topologyEpoch", Type::I32),
    always("processId", Type::Text),
    always("userEndpoint", Type::MaybeStruct(ENDPOINT)),
    always("clientTags", Type::Array(PAIR)),
];
const TASK_IDS: &[Field] = &[always("subtopologyId", Type::Text), always("partitions", Type::I32s)];
const STREAMS_GROUP_TARGET_ASSIGNMENT_MEMBER: &[Field] = &[
    always("activeTasks", Type::Array(TASK_IDS)),
    always("standbyTasks", Type::Array(TASK_IDS)),
    always("warmupTasks", Type::Array(TASK_IDS)),
];
const TASKS_WITH_EPOCHS: &[Field] = &[
    always("subtopologyId", Type::Text),
    always("partitions", Type::I32s),
    always("assignmentEpochs", Type::Tagged(0, &Type::MaybeI32s, "null")),
];
const STREAMS_GROUP_CURRENT_MEMBER_ASSIGNMENT: &[Field] = &[
    always("memberEpoch", Type::I32),
    always("previousMemberEpoch", Type::I32),
    always("state", Type::I8),
    always("activeTasks", Type::Array(TASKS_WITH_EPOCHS)),
    always("standbyTasks", Type::Array(TASKS_WITH_EPOCHS)),
    always("warmupTasks", Type::Array(TASKS_WITH_EPOCHS)),
    always("activeTasksPendingRevocation", Type::Array(TASKS_WITH_EPOCHS)),
    always("standbyTasksPendingRevocation", Type::Array(TASKS_WITH_EPOCHS)),
    always("warmupTasksPendingRevocation", Type::Array(TASKS_WITH_EPOCHS)),
];
const INTERNAL_TOPIC: &[Field] = &[
    always("name", Type::Text),
    always("partitions", Type::I32),
    always("replicationFactor", Type::I16),
    always("topicConfigs", Type::Array(PAIR)),
];
const COPARTITION_GROUP: &[Field] = &[
    always("sourceTopics", Type::I16s),
    always("sourceTopicRegex", Type::I16s),
    always("repartitionSourceTopics", Type::I16s),
];
const SUBTOPOLOGY: &[Field] = &[
    always("subtopologyId", Type::Text),
    always("sourceTopics", Type::Texts),
    always("sourceTopicRegex", Type::Texts),
    always("stateChangelogTopics", Type::Array(INTERNAL_TOPIC)),
    always("repartitionSinkTopics", Type::Texts),
    always("repartitionSourceTopics", Type::Array(INTERNAL_TOPIC)),
    always("copartitionGroups", Type::Array(COPARTITION_GROUP)),
];
const STREAMS_GROUP_TOPOLOGY: &[Field] =
    &[always("epoch", Type::I32), always("subtopologies", Type::Array(SUBTOPOLOGY))];
