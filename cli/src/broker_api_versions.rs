//! `kafka-broker-api-versions`: what people's health checks call.

use std::collections::BTreeMap;
use std::io::Write;

use letterbox_client::{ApiVersions, Broker, VersionRange};
use letterbox_env::Env;

use crate::args::Grammar;
use crate::connect;
use crate::failure::{Failure, plain};

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let parsed =
        Grammar::new("This tool helps to retrieve broker version information.", &[]).parse(args)?;
    let client = connect::admin(env, &parsed, None, err).await?;
    for broker in client.metadata(Some(&[])).await?.brokers.values() {
        let node = node(broker);
        match client.api_versions(Some(broker.id)).await {
            Ok(versions) => writeln!(out, "{node} -> {}", table(&versions))?,
            Err(error) => writeln!(out, "{node} -> ERROR: {}", plain(&error))?,
        }
    }
    Ok(0)
}

/// As Kafka's clients print a node.
fn node(broker: &Broker) -> String {
    let rack = broker.rack.as_deref().unwrap_or("null");
    format!("{}:{} (id: {} rack: {rack} isFenced: false)", broker.host, broker.port, broker.id)
}

/// One line for each API that the broker offers or that brokers of Apache Kafka know.
fn table(versions: &ApiVersions) -> String {
    let mut lines: BTreeMap<i16, String> = BTreeMap::new();
    for api in APIS.iter().filter(|api| api.of_brokers) {
        lines.insert(api.key, format!("{}({}): UNSUPPORTED", api.name, api.key));
    }
    for (key, VersionRange { min, max }) in &versions.apis {
        let range = if min == max { min.to_string() } else { format!("{min} to {max}") };
        let line = match APIS.iter().find(|api| api.key == *key) {
            None => format!("UNKNOWN({key}): {range}"),
            Some(api) => {
                let usable = if *min > api.max {
                    "unusable: node too new".to_owned()
                } else if *max < api.min {
                    "unusable: node too old".to_owned()
                } else {
                    format!("usable: {}", api.max.min(*max))
                };
                format!("{}({key}): {range} [{usable}]", api.name)
            }
        };
        lines.insert(*key, line);
    }
    let lines: Vec<String> = lines.into_values().collect();
    format!("(\n\t{}\n)", lines.join(",\n\t"))
}

struct Api {
    key: i16,
    name: &'static str,
    min: i16,
    max: i16,
    /// Whether brokers serve it, and not only controllers.
    of_brokers: bool,
}

/// The APIs of Apache Kafka 4.3.1 with the versions that its own tools speak.
#[rustfmt::skip]
const APIS: &[Api] = &[
    Api { key: 0, name: "Produce", min: 3, max: 13, of_brokers: true },
    Api { key: 1, name: "Fetch", min: 4, max: 18, of_brokers: true },
    Api { key: 2, name: "ListOffsets", min: 1, max: 11, of_brokers: true },
    Api { key: 3, name: "Metadata", min: 0, max: 13, of_brokers: true },
    Api { key: 8, name: "OffsetCommit", min: 2, max: 10, of_brokers: true },
    Api { key: 9, name: "OffsetFetch", min: 1, max: 10, of_brokers: true },
    Api { key: 10, name: "FindCoordinator", min: 0, max: 6, of_brokers: true },
    Api { key: 11, name: "JoinGroup", min: 0, max: 9, of_brokers: true },
    Api { key: 12, name: "Heartbeat", min: 0, max: 4, of_brokers: true },
    Api { key: 13, name: "LeaveGroup", min: 0, max: 5, of_brokers: true },
    Api { key: 14, name: "SyncGroup", min: 0, max: 5, of_brokers: true },
    Api { key: 15, name: "DescribeGroups", min: 0, max: 6, of_brokers: true },
    Api { key: 16, name: "ListGroups", min: 0, max: 5, of_brokers: true },
    Api { key: 17, name: "SaslHandshake", min: 0, max: 1, of_brokers: true },
    Api { key: 18, name: "ApiVersions", min: 0, max: 4, of_brokers: true },
    Api { key: 19, name: "CreateTopics", min: 2, max: 7, of_brokers: true },
    Api { key: 20, name: "DeleteTopics", min: 1, max: 6, of_brokers: true },
    Api { key: 21, name: "DeleteRecords", min: 0, max: 2, of_brokers: true },
    Api { key: 22, name: "InitProducerId", min: 0, max: 6, of_brokers: true },
    Api { key: 23, name: "OffsetForLeaderEpoch", min: 2, max: 4, of_brokers: true },
    Api { key: 24, name: "AddPartitionsToTxn", min: 0, max: 5, of_brokers: true },
    Api { key: 25, name: "AddOffsetsToTxn", min: 0, max: 4, of_brokers: true },
    Api { key: 26, name: "EndTxn", min: 0, max: 5, of_brokers: true },
    Api { key: 27, name: "WriteTxnMarkers", min: 1, max: 2, of_brokers: true },
    Api { key: 28, name: "TxnOffsetCommit", min: 0, max: 5, of_brokers: true },
    Api { key: 29, name: "DescribeAcls", min: 1, max: 3, of_brokers: true },
    Api { key: 30, name: "CreateAcls", min: 1, max: 3, of_brokers: true },
    Api { key: 31, name: "DeleteAcls", min: 1, max: 3, of_brokers: true },
    Api { key: 32, name: "DescribeConfigs", min: 1, max: 4, of_brokers: true },
    Api { key: 33, name: "AlterConfigs", min: 0, max: 2, of_brokers: true },
    Api { key: 34, name: "AlterReplicaLogDirs", min: 1, max: 2, of_brokers: true },
    Api { key: 35, name: "DescribeLogDirs", min: 1, max: 5, of_brokers: true },
    Api { key: 36, name: "SaslAuthenticate", min: 0, max: 2, of_brokers: true },
    Api { key: 37, name: "CreatePartitions", min: 0, max: 3, of_brokers: true },
    Api { key: 38, name: "CreateDelegationToken", min: 1, max: 3, of_brokers: true },
    Api { key: 39, name: "RenewDelegationToken", min: 1, max: 2, of_brokers: true },
    Api { key: 40, name: "ExpireDelegationToken", min: 1, max: 2, of_brokers: true },
    Api { key: 41, name: "DescribeDelegationToken", min: 1, max: 3, of_brokers: true },
    Api { key: 42, name: "DeleteGroups", min: 0, max: 2, of_brokers: true },
    Api { key: 43, name: "ElectLeaders", min: 0, max: 2, of_brokers: true },
    Api { key: 44, name: "IncrementalAlterConfigs", min: 0, max: 1, of_brokers: true },
    Api { key: 45, name: "AlterPartitionReassignments", min: 0, max: 1, of_brokers: true },
    Api { key: 46, name: "ListPartitionReassignments", min: 0, max: 0, of_brokers: true },
    Api { key: 47, name: "OffsetDelete", min: 0, max: 0, of_brokers: true },
    Api { key: 48, name: "DescribeClientQuotas", min: 0, max: 1, of_brokers: true },
    Api { key: 49, name: "AlterClientQuotas", min: 0, max: 1, of_brokers: true },
    Api { key: 50, name: "DescribeUserScramCredentials", min: 0, max: 0, of_brokers: true },
    Api { key: 51, name: "AlterUserScramCredentials", min: 0, max: 0, of_brokers: true },
    Api { key: 52, name: "Vote", min: 0, max: 2, of_brokers: false },
    Api { key: 53, name: "BeginQuorumEpoch", min: 0, max: 1, of_brokers: false },
    Api { key: 54, name: "EndQuorumEpoch", min: 0, max: 1, of_brokers: false },
    Api { key: 55, name: "DescribeQuorum", min: 0, max: 2, of_brokers: true },
    Api { key: 56, name: "AlterPartition", min: 2, max: 3, of_brokers: false },
    Api { key: 57, name: "UpdateFeatures", min: 0, max: 2, of_brokers: true },
    Api { key: 58, name: "Envelope", min: 0, max: 0, of_brokers: false },
    Api { key: 59, name: "FetchSnapshot", min: 0, max: 1, of_brokers: false },
    Api { key: 60, name: "DescribeCluster", min: 0, max: 2, of_brokers: true },
    Api { key: 61, name: "DescribeProducers", min: 0, max: 0, of_brokers: true },
    Api { key: 62, name: "BrokerRegistration", min: 0, max: 4, of_brokers: false },
    Api { key: 63, name: "BrokerHeartbeat", min: 0, max: 2, of_brokers: false },
    Api { key: 64, name: "UnregisterBroker", min: 0, max: 0, of_brokers: true },
    Api { key: 65, name: "DescribeTransactions", min: 0, max: 0, of_brokers: true },
    Api { key: 66, name: "ListTransactions", min: 0, max: 2, of_brokers: true },
    Api { key: 67, name: "AllocateProducerIds", min: 0, max: 0, of_brokers: false },
    Api { key: 68, name: "ConsumerGroupHeartbeat", min: 0, max: 1, of_brokers: true },
    Api { key: 69, name: "ConsumerGroupDescribe", min: 0, max: 1, of_brokers: true },
    Api { key: 70, name: "ControllerRegistration", min: 0, max: 0, of_brokers: false },
    Api { key: 71, name: "GetTelemetrySubscriptions", min: 0, max: 0, of_brokers: true },
    Api { key: 72, name: "PushTelemetry", min: 0, max: 0, of_brokers: true },
    Api { key: 73, name: "AssignReplicasToDirs", min: 0, max: 0, of_brokers: false },
    Api { key: 74, name: "ListConfigResources", min: 0, max: 1, of_brokers: true },
    Api { key: 75, name: "DescribeTopicPartitions", min: 0, max: 0, of_brokers: true },
    Api { key: 76, name: "ShareGroupHeartbeat", min: 1, max: 1, of_brokers: true },
    Api { key: 77, name: "ShareGroupDescribe", min: 1, max: 1, of_brokers: true },
    Api { key: 78, name: "ShareFetch", min: 1, max: 2, of_brokers: true },
    Api { key: 79, name: "ShareAcknowledge", min: 1, max: 2, of_brokers: true },
    Api { key: 80, name: "AddRaftVoter", min: 0, max: 1, of_brokers: true },
    Api { key: 81, name: "RemoveRaftVoter", min: 0, max: 0, of_brokers: true },
    Api { key: 82, name: "UpdateRaftVoter", min: 0, max: 0, of_brokers: false },
    Api { key: 83, name: "InitializeShareGroupState", min: 0, max: 0, of_brokers: true },
    Api { key: 84, name: "ReadShareGroupState", min: 0, max: 0, of_brokers: true },
    Api { key: 85, name: "WriteShareGroupState", min: 0, max: 1, of_brokers: true },
    Api { key: 86, name: "DeleteShareGroupState", min: 0, max: 0, of_brokers: true },
    Api { key: 87, name: "ReadShareGroupStateSummary", min: 0, max: 1, of_brokers: true },
    Api { key: 88, name: "StreamsGroupHeartbeat", min: 0, max: 0, of_brokers: true },
    Api { key: 89, name: "StreamsGroupDescribe", min: 0, max: 0, of_brokers: true },
    Api { key: 90, name: "DescribeShareGroupOffsets", min: 0, max: 1, of_brokers: true },
    Api { key: 91, name: "AlterShareGroupOffsets", min: 0, max: 0, of_brokers: true },
    Api { key: 92, name: "DeleteShareGroupOffsets", min: 0, max: 0, of_brokers: true },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_api_has_its_range_and_what_is_usable_of_it() {
        let range = |min, max| VersionRange { min, max };
        let apis = [
            (0, range(0, 13)),
            (1, range(19, 20)),
            (2, range(0, 0)),
            (46, range(0, 0)),
            (9999, range(1, 2)),
        ];
        let text = table(&ApiVersions {
            apis: apis.into_iter().collect(),
            features: BTreeMap::new(),
            finalized: None,
        });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..3],
            [
                "(",
                "\tProduce(0): 0 to 13 [usable: 13],",
                "\tFetch(1): 19 to 20 [unusable: node too new],"
            ]
        );
        for line in [
            "\tListOffsets(2): 0 [unusable: node too old],",
            "\tListPartitionReassignments(46): 0 [usable: 0],",
            "\tMetadata(3): UNSUPPORTED,",
        ] {
            assert!(lines.contains(&line), "{line}");
        }
        assert_eq!(lines[lines.len() - 2..], ["\tUNKNOWN(9999): 1 to 2", ")"]);
    }
}
