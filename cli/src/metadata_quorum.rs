//! `kafka-metadata-quorum`.

use std::collections::BTreeMap;
use std::io::Write;

use letterbox_client::{Error, QuorumReplica, QuorumStatus, decode_uuid, encode_uuid};
use letterbox_env::{Env, Gather, join_address, split_listener};
use uuid::Uuid;

use crate::args::{CONTROLLERS, Command, Grammar, Parsed, Spec, Takes};
use crate::connect;
use crate::failure::{Failure, java_cause};
use crate::files::read_properties;
use crate::json;
use crate::text::columns;

const SPECS: [Spec; 1] = [("bootstrap-controller", Takes::Refused, CONTROLLERS)];
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
    (
        "add-controller",
        "Add a controller to the KRaft controller cluster",
        &[(
            "dry-run",
            Takes::Nothing,
            "True if we should print what would be done, but not do it.",
        )],
    ),
    (
        "remove-controller",
        "Remove a controller from the KRaft controller cluster",
        &[
            ("controller-id", Takes::Value("ID"), "The id of the controller to remove."),
            (
                "controller-directory-id",
                Takes::Value("DIRECTORY"),
                "The directory ID of the controller to remove.",
            ),
            (
                "dry-run",
                Takes::Nothing,
                "True if we should print what would be done, but not do it.",
            ),
        ],
    ),
];
const SHORTS: &[(&str, &str)] =
    &[("h", "help"), ("i", "controller-id"), ("d", "controller-directory-id")];

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
        .shorts(SHORTS)
        .parse(args)?;
    match parsed.command() {
        "add-controller" => add(env, &parsed, out, err).await,
        "remove-controller" => remove(env, &parsed, out, err).await,
        _ => describe(env, &parsed, out, err).await,
    }
}

fn refuse<T>(line: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Stderr(line.into()))
}

/// As Java's tool tells what an admin call has failed with.
fn failed(error: Error) -> Failure {
    match &error {
        Error::Broker(refusal) => Failure::Stderr(java_cause(refusal)),
        _ => error.into(),
    }
}

async fn add(
    env: &Env,
    parsed: &Parsed,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let Some(file) = parsed.first(&["command-config"]) else {
        return refuse(
            "You must supply the configuration file of the controller you are adding when using \
             add-controller.",
        );
    };
    let client = connect::admin(env, parsed, None, err).await?;
    let properties: Settings = read_properties(env, file)?.into_iter().gather();
    let id = controller_id(&properties)?;
    let directory = metadata_directory(&properties)?;
    let directory_id = directory_id(env, directory)?;
    let endpoints = controller_endpoints(&properties)?;
    let is_dry = parsed.has("dry-run");
    if !is_dry {
        client.add_raft_voter(id, directory_id, &endpoints).await.map_err(failed)?;
    }
    let endpoints: Vec<String> = endpoints.iter().map(endpoint).collect();
    writeln!(
        out,
        "{} controller {id} with directory id {} and endpoints: {}",
        if is_dry { "DRY RUN of adding" } else { "Added" },
        encode_uuid(directory_id),
        endpoints.join(", ")
    )?;
    Ok(0)
}

async fn remove(
    env: &Env,
    parsed: &Parsed,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let required = |name: &'static str, short: &str| match parsed.first(&[name]) {
        Some(value) => Ok(value),
        None => Err(parsed.wrong(format!("argument --{name}/-{short} is required"))),
    };
    let (id, directory) =
        (required("controller-id", "i")?, required("controller-directory-id", "d")?);
    let Ok(id) = id.parse::<i32>() else {
        let line =
            format!("argument --controller-id/-i: could not convert '{id}' to integer (32 bit)");
        return Err(parsed.wrong(line));
    };
    let client = connect::admin(env, parsed, None, err).await?;
    if id < 0 {
        return refuse(format!("Invalid negative --controller-id: {id}"));
    }
    let Some(directory_id) = decode_uuid(directory) else {
        return refuse(format!(
            "Failed to parse --controller-directory-id: {directory:?} is no directory id"
        ));
    };
    let is_dry = parsed.has("dry-run");
    if !is_dry {
        client.remove_raft_voter(id, directory_id).await.map_err(failed)?;
    }
    // With two spaces, as Kafka prints it.
    let what = if is_dry { "DRY RUN of removing " } else { "Removed " };
    writeln!(out, "{what} KRaft controller {id} with directory id {}", encode_uuid(directory_id))?;
    Ok(0)
}

type Settings = BTreeMap<String, String>;

fn controller_id(properties: &Settings) -> Result<i32, Failure> {
    const VALID: &str = "configuration file. Is this a valid controller configuration file?";
    let Some(id) = properties.get("node.id") else {
        return refuse(format!("node.id not found in {VALID}"));
    };
    match id.trim().parse::<i32>() {
        Err(_) => refuse(format!("For input string: \"{}\"", id.trim())),
        Ok(id) if id < 0 => refuse(format!("node.id was negative in {VALID}")),
        Ok(_) if !properties.get("process.roles").is_some_and(|it| it.contains("controller")) => {
            refuse(format!("process.roles did not contain 'controller' in {VALID}"))
        }
        Ok(id) => Ok(id),
    }
}

fn metadata_directory(properties: &Settings) -> Result<&str, Failure> {
    let dirs = properties.get("log.dirs").map(|dirs| dirs.trim().split(',').next());
    match (properties.get("metadata.log.dir"), dirs) {
        (Some(directory), _) => Ok(directory),
        (None, Some(Some(first))) => Ok(first),
        _ => refuse(
            "Neither metadata.log.dir nor log.dirs were found. Is this a valid controller \
             configuration file?",
        ),
    }
}

/// Of the `meta.properties` there, which the controller has written.
fn directory_id(env: &Env, directory: &str) -> Result<Uuid, Failure> {
    let file = format!("{directory}/meta.properties");
    let Ok(properties) = read_properties(env, &file) else {
        return refuse(format!("Unable to read meta.properties from {directory}"));
    };
    let id = properties.iter().find(|(key, _)| key == "directory.id");
    match id.and_then(|(_, id)| decode_uuid(id.trim())) {
        Some(id) => Ok(id),
        None => refuse(format!("No directory id found in {directory}")),
    }
}

/// The controller listeners, where they are advertised.
fn controller_endpoints(properties: &Settings) -> Result<Vec<(String, String, u16)>, Failure> {
    let mut all = BTreeMap::new();
    for key in ["listeners", "advertised.listeners"] {
        let given = properties.get(key).map(String::as_str).unwrap_or_default();
        for one in given.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let Ok((name, host, port)) = split_listener(one) else {
                return refuse(format!("Unable to parse {one} to a broker endpoint"));
            };
            all.insert(name.to_ascii_uppercase(), (host.to_owned(), port));
        }
    }
    let Some(names) = properties.get("controller.listener.names") else {
        return refuse(
            "controller.listener.names was not found. Is this a valid controller configuration \
             file?",
        );
    };
    let of = |name: &str| match all.get(&name.to_ascii_uppercase()) {
        Some((host, port)) => {
            let host = if host.is_empty() { "localhost" } else { host };
            Ok((name.to_ascii_uppercase(), host.to_owned(), *port))
        }
        None => refuse(format!("Cannot find information about controller listener name: {name}")),
    };
    names.split(',').map(|name| of(name.trim())).collect()
}

fn endpoint((name, host, port): &(String, String, u16)) -> String {
    format!("{name}://{}", join_address(host, *port))
}

async fn describe(
    env: &Env,
    parsed: &Parsed,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
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
    let client = connect::admin(env, parsed, None, err).await?;
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
        let endpoints: Vec<String> =
            endpoints.iter().map(|one| json::text(&endpoint(one))).collect();
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
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use letterbox_client::QuorumNode;

    use super::*;

    #[test]
    fn a_controller_is_read_from_its_configuration_as_kafka_reads_it() {
        let of = |text: &str| -> Settings {
            let pairs = text.lines().filter_map(|line| line.split_once('='));
            pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
        };
        let said = |result: Result<i32, Failure>| match result {
            Err(Failure::Stderr(line)) => line,
            other => panic!("{other:?}"),
        };
        assert!(said(controller_id(&of("a=b"))).starts_with("node.id not found in configuration"));
        assert!(said(controller_id(&of("node.id=-1"))).starts_with("node.id was negative"));
        let broker = "node.id=4\nprocess.roles=broker";
        assert!(said(controller_id(&of(broker))).starts_with("process.roles did not contain"));
        let all = of("node.id=4\nprocess.roles=broker,controller\nlog.dirs=/a,/b\n\
             listeners=PLAINTEXT://:9092,CONTROLLER://:9093,SECOND://[::1]:9094\n\
             advertised.listeners=CONTROLLER://me:9095\n\
             controller.listener.names=controller,SECOND");
        assert_eq!(controller_id(&all).unwrap(), 4);
        assert_eq!(metadata_directory(&all).unwrap(), "/a");
        let endpoints: Vec<String> =
            controller_endpoints(&all).unwrap().iter().map(endpoint).collect();
        assert_eq!(endpoints, ["CONTROLLER://me:9095", "SECOND://[::1]:9094"]);
        assert!(metadata_directory(&of("a=b")).is_err() && controller_endpoints(&of("")).is_err());
    }

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
