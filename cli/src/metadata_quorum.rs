//! `kafka-metadata-quorum`.

use std::io::Write;

use letterbox_client::{QuorumReplica, QuorumStatus, encode_uuid};
use letterbox_env::Env;

use crate::args::{Command, Grammar, Spec, Takes};
use crate::connect;
use crate::failure::Failure;
use crate::json;

const SPECS: [Spec; 1] = [("bootstrap-controller", Takes::Refused, "")];
const COMMANDS: &[Command] = &[
    (
        "describe",
        "Describe the metadata quorum info",
        &[
            ("status", Takes::Nothing, "A short summary of the quorum status."),
            ("replication", Takes::Nothing, "Detailed information about the status of replication"),
            (
                "human-readable",
                Takes::Nothing,
                "With --replication, show times as milliseconds ago.",
            ),
        ],
    ),
    ("add-controller", "", &[]),
    ("remove-controller", "", &[]),
];

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let parsed = Grammar::new("This tool describes kraft metadata quorum status.", &SPECS)
        .argparse(&[])
        .commands(COMMANDS)
        .parse(args)?;
    let refuse = |line: &str| Err(Failure::Stderr(line.to_owned()));
    match (parsed.has("status"), parsed.has("replication")) {
        (true, true) => {
            return refuse(
                "Only one of --status or --replication should be specified with describe \
                 sub-command",
            );
        }
        (false, false) => {
            return refuse(
                "One of --status or --replication must be specified with describe sub-command",
            );
        }
        (true, false) if parsed.has("human-readable") => {
            return refuse(
                "The option --human-readable is only supported along with --replication",
            );
        }
        _ => {}
    }
    let client = connect::admin(env, &parsed, None, err).await?;
    let quorum = client.describe_quorum().await?;
    let Some(leader) = quorum.voters.iter().find(|voter| voter.id == quorum.leader_id).copied()
    else {
        return refuse("The metadata quorum has no leader now; try again.");
    };
    if parsed.has("status") {
        let cluster_id = client.describe_cluster().await?.cluster_id;
        write!(out, "{}", status(&quorum, &leader, &cluster_id))?;
    } else {
        let now_ms = parsed.has("human-readable").then(|| env.clock.wall_ms());
        write!(out, "{}", replication(&quorum, &leader, now_ms))?;
    }
    Ok(0)
}

fn status(quorum: &QuorumStatus, leader: &QuorumReplica, cluster_id: &str) -> String {
    let last = quorum.voters.iter().min_by_key(|voter| voter.log_end_offset).unwrap_or(leader);
    let lag_ms = match (leader.last_caught_up_ms, last.last_caught_up_ms) {
        _ if last.id == leader.id => 0,
        (Some(leader), Some(last)) => leader.saturating_sub(last),
        _ => -1,
    };
    let rows = [
        ("ClusterId", cluster_id.to_owned()),
        ("LeaderId", quorum.leader_id.to_string()),
        ("LeaderEpoch", quorum.leader_epoch.to_string()),
        ("HighWatermark", quorum.high_watermark.to_string()),
        ("MaxFollowerLag", leader.log_end_offset.saturating_sub(last.log_end_offset).to_string()),
        ("MaxFollowerLagTimeMs", lag_ms.to_string()),
        ("CurrentVoters", replicas(quorum, &quorum.voters)),
        ("CurrentObservers", replicas(quorum, &quorum.observers)),
    ];
    rows.iter().map(|(name, value)| format!("{:<24}{value}\n", format!("{name}:"))).collect()
}

/// `[{"id": 1, "directoryId": "…", "endpoints": ["CONTROLLER://localhost:9093"]}]`; what is not
/// known is left out.
fn replicas(quorum: &QuorumStatus, replicas: &[QuorumReplica]) -> String {
    let replica = |replica: &QuorumReplica| {
        let directory = if replica.directory_id.is_nil() {
            String::new()
        } else {
            format!(", \"directoryId\": \"{}\"", encode_uuid(replica.directory_id))
        };
        let endpoints =
            quorum.nodes.get(&replica.id).map(|node| node.endpoints.as_slice()).unwrap_or_default();
        let endpoints: Vec<String> = endpoints
            .iter()
            .map(|(name, host, port)| {
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                json::text(&format!("{name}://{host}:{port}"))
            })
            .collect();
        let endpoints = if endpoints.is_empty() {
            String::new()
        } else {
            format!(", \"endpoints\": [{}]", endpoints.join(", "))
        };
        format!("{{\"id\": {}{directory}{endpoints}}}", replica.id)
    };
    format!("[{}]", replicas.iter().map(replica).collect::<Vec<_>>().join(", "))
}

/// The table; with `now_ms` times are told as how long ago.
fn replication(quorum: &QuorumStatus, leader: &QuorumReplica, now_ms: Option<i64>) -> String {
    let time = |at: Option<i64>| match (at, now_ms) {
        (None, _) => "-1".to_owned(),
        (Some(at), None) => at.to_string(),
        // The clocks of two machines differ; a time that is yet to come is now.
        (Some(at), Some(now)) => format!("{} ms ago", now.saturating_sub(at).max(0)),
    };
    let row = |replica: &QuorumReplica, status: &str| {
        [
            replica.id.to_string(),
            encode_uuid(replica.directory_id),
            replica.log_end_offset.to_string(),
            leader.log_end_offset.saturating_sub(replica.log_end_offset).to_string(),
            time(replica.last_fetch_ms),
            time(replica.last_caught_up_ms),
            status.to_owned(),
        ]
    };
    let names = [
        "NodeId",
        "DirectoryId",
        "LogEndOffset",
        "Lag",
        "LastFetchTimestamp",
        "LastCaughtUpTimestamp",
        "Status",
    ];
    let mut rows = vec![names.map(str::to_owned), row(leader, "Leader")];
    rows.extend(
        quorum
            .voters
            .iter()
            .filter(|voter| voter.id != leader.id)
            .map(|voter| row(voter, "Follower")),
    );
    rows.extend(quorum.observers.iter().map(|observer| row(observer, "Observer")));
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let line = |row: &[String; 7]| -> String {
        row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}\t")).collect()
    };
    rows.iter().map(|row| format!("{}\n", line(row))).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use letterbox_client::QuorumNode;
    use uuid::Uuid;

    use super::*;

    fn quorum() -> QuorumStatus {
        let voter = |id, log_end_offset, at| QuorumReplica {
            id,
            directory_id: Uuid::nil(),
            log_end_offset,
            last_fetch_ms: Some(at),
            last_caught_up_ms: Some(at),
        };
        let node = QuorumNode {
            id: 1,
            endpoints: vec![("CONTROLLER".to_owned(), "::1".to_owned(), 9093)],
        };
        QuorumStatus {
            leader_id: 1,
            leader_epoch: 4,
            high_watermark: 131,
            voters: vec![voter(2, 129, 900), voter(1, 131, 1000)],
            observers: vec![QuorumReplica {
                directory_id: Uuid::from_u128(1),
                last_fetch_ms: None,
                last_caught_up_ms: None,
                ..voter(3, 130, 0)
            }],
            nodes: BTreeMap::from([(1, node)]),
        }
    }

    #[test]
    fn the_status_is_printed_as_kafka_prints_it() {
        let quorum = quorum();
        let text = status(&quorum, &quorum.voters[1], "abc");
        let expected = "ClusterId:              abc\nLeaderId:               1\nLeaderEpoch:            \
            4\nHighWatermark:          131\nMaxFollowerLag:         2\nMaxFollowerLagTimeMs:   \
            100\nCurrentVoters:          [{\"id\": 2}, \
            {\"id\": 1, \"endpoints\": [\"CONTROLLER://[::1]:9093\"]}]\nCurrentObservers:       \
            [{\"id\": 3, \"directoryId\": \"AAAAAAAAAAAAAAAAAAAAAQ\"}]\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn replicas_are_listed_leader_first() {
        let quorum = quorum();
        let text = replication(&quorum, &quorum.voters[1], Some(1009));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "NodeId\tDirectoryId           \
             \tLogEndOffset\tLag\tLastFetchTimestamp\tLastCaughtUpTimestamp\tStatus  \t"
        );
        assert_eq!(
            lines[1],
            "1     \tAAAAAAAAAAAAAAAAAAAAAA\t131         \t0  \t9 ms ago          \t9 ms ago             \
             \tLeader  \t"
        );
        assert_eq!(
            lines[3],
            "3     \tAAAAAAAAAAAAAAAAAAAAAQ\t130         \t1  \t-1                \t-1                   \
             \tObserver\t"
        );
    }
}
