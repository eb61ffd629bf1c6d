//! What the tools say without a broker: to a command line that they refuse, and when nobody
//! answers.

use std::time::Duration;

use letterbox_cli::Streams;
use letterbox_env::Env;
use tokio::net::TcpSocket;
use tokio::time::Instant;

/// A port that is taken and not listened at: it refuses connections for as long as the socket
/// lives.
fn refusing() -> (TcpSocket, String) {
    let taken = TcpSocket::new_v4().unwrap();
    taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    (taken, address)
}

/// The exit code, standard output and standard error of a tool that can reach no broker.
async fn run(line: &str) -> (i32, String, String) {
    let (_taken, address) = refusing();
    let bootstrap = ["--bootstrap-server".to_owned(), address];
    let mut words = line.split(' ').map(str::to_owned);
    let tool = words.next().unwrap();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let streams =
        Streams { stdin: &mut tokio::io::empty(), stdout: &mut stdout, stderr: &mut stderr };
    let code =
        letterbox_cli::run(Env::real(), &tool, words.chain(bootstrap).collect(), streams).await;
    (code, String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// `line` ends with 1, says `reason` first on standard error, and nothing else but the table of
/// options.
async fn refuses(line: &str, reason: &str) {
    let (code, stdout, stderr) = run(line).await;
    let (first, rest) = stderr.split_once('\n').unwrap_or_default();
    assert_eq!((code, first, stdout.as_str()), (1, reason, ""), "{line}");
    assert!(
        rest.is_empty() || rest.starts_with("Option ") || rest.starts_with("Command "),
        "{line}: {rest}"
    );
}

/// `line` is not refused: the tool goes on to connect.
async fn accepts(line: &str) {
    let (code, _, stderr) = run(line).await;
    assert!(code == 1 && stderr.contains("no broker answers at"), "{line}: {stderr}");
}

#[tokio::test(start_paused = true)]
async fn an_option_with_two_values_is_refused_as_kafkas_tools_refuse_it() {
    let two = |name: &str| {
        format!("Found multiple arguments for option {name}, but you asked for only one")
    };
    for line in
        ["kafka-topics --delete --topic a --topic b", "kafka-topics --create --topic a --topic b"]
    {
        assert_eq!(
            run(line).await,
            (1, format!("Error while executing topic command : {}\n", two("topic")), String::new()),
            "{line}"
        );
    }
    for (line, name) in [
        ("kafka-consumer-groups --delete-offsets --group a --group b --topic t", "group"),
        ("kafka-consumer-groups --describe --group a --timeout 1 --timeout 2", "timeout"),
        // Kafka's tool takes the first offset to reset to and passes over the second.
        (
            "kafka-consumer-groups --reset-offsets --group a --topic t --to-offset 1 --to-offset 2 \
             --execute",
            "to-offset",
        ),
    ] {
        let said =
            format!("\nError: Executing consumer group command failed due to {}\n", two(name));
        assert_eq!(run(line).await, (0, said, String::new()), "{line}");
    }
    refuses("kafka-get-offsets --topic a --topic b", &format!("Error occurred: {}", two("topic")))
        .await;
    for (line, name) in [
        ("kafka-configs --alter --topic a --add-config x=1 --add-config y=2", "add-config"),
        ("kafka-console-producer --topic a --topic b", "topic"),
        ("kafka-console-consumer --topic a --group x --group y", "group"),
        ("kafka-consumer-perf-test --topic a --num-records 1 --num-records 2", "num-records"),
    ] {
        refuses(line, &two(name)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn options_of_another_action_on_groups_are_refused() {
    for (line, options) in [
        ("kafka-consumer-groups --delete --group g --members", "members"),
        ("kafka-consumer-groups --list --offsets --verbose", "offsets,verbose"),
        ("kafka-consumer-groups --delete --group g --state", "state"),
        ("kafka-consumer-groups --describe --group g --type", "type"),
    ] {
        refuses(
            line,
            &format!(
                "Option(s) [{options}] are unavailable given other options on the command line"
            ),
        )
        .await;
    }
    for (line, option, other) in [
        ("kafka-consumer-groups --delete --group g --dry-run", "dry-run", "delete"),
        (
            "kafka-consumer-groups --delete-offsets --group g --topic t --dry-run",
            "dry-run",
            "delete-offsets",
        ),
        (
            "kafka-consumer-groups --delete-offsets --group g --topic t --execute",
            "execute",
            "delete-offsets",
        ),
        ("kafka-consumer-groups --describe --group g --export", "export", "describe"),
        ("kafka-consumer-groups --delete --group g --to-earliest", "to-earliest", "delete"),
        ("kafka-consumer-groups --list --shift-by 3", "shift-by", "list"),
        (
            "kafka-consumer-groups --describe --group g --from-file plan.csv",
            "from-file",
            "describe",
        ),
        (
            "kafka-consumer-groups --reset-offsets --group g --all-topics --topic t --to-latest",
            "topic",
            "all-topics",
        ),
        (
            "kafka-consumer-groups --reset-offsets --group g --topic t --from-file plan.csv",
            "topic",
            "from-file",
        ),
        (
            "kafka-consumer-groups --reset-offsets --group g --topic t --to-latest --to-earliest",
            "to-earliest",
            "to-latest",
        ),
        ("kafka-consumer-groups --list --group g", "group", "list"),
    ] {
        refuses(line, &format!("Option \"[{option}]\" can't be used with option \"[{other}]\""))
            .await;
    }
    for line in [
        "kafka-consumer-groups --list --all-groups --state --type",
        "kafka-consumer-groups --describe --all-groups --all-topics --offsets --verbose",
        "kafka-consumer-groups --delete --group g --all-topics",
        "kafka-consumer-groups --reset-offsets --all-groups --all-topics --from-file plan.csv \
         --export --dry-run",
    ] {
        accepts(line).await;
    }
}

#[tokio::test(start_paused = true)]
async fn kafka_configs_refuses_what_contradicts_itself() {
    for (line, reason) in [
        (
            "--describe --topic a --add-config x=1",
            "Option \"[describe]\" can't be used with option \"[add-config]\"",
        ),
        (
            "--describe --topic a --delete-config x",
            "Option \"[describe]\" can't be used with option \"[delete-config]\"",
        ),
        (
            "--describe --topic a --add-config-file f",
            "Option \"[describe]\" can't be used with option \"[add-config-file]\"",
        ),
        (
            "--alter --topic a --add-config x=1 --all",
            "Option \"[alter]\" can't be used with option \"[all]\"",
        ),
        (
            "--alter --topic a --add-config x=1 --add-config-file f",
            "Only one of --add-config or --add-config-file must be specified",
        ),
        (
            "--describe --topic a --broker 1",
            "Only 'users' and 'clients' entity types may be specified together",
        ),
        (
            "--describe --topic a --entity-type brokers",
            "Only 'users' and 'clients' entity types may be specified together",
        ),
        ("--describe --topic a --entity-type topics", "Duplicate entity type(s) specified: topics"),
        ("--describe --broker 1 --broker-defaults", "Duplicate entity type(s) specified: brokers"),
        (
            "--describe --topic a --entity-name b",
            "--entity-{type,name,default} should not be used in conjunction with specific entity \
             flags",
        ),
        (
            "--describe --entity-type brokers --entity-name 1 --entity-default",
            "Option \"[entity-name]\" can't be used with option \"[entity-default]\"",
        ),
        (
            "--describe --entity-type brokers --entity-name 1 --entity-name 2",
            "Found multiple arguments for option entity-name, but you asked for only one",
        ),
        (
            "--describe --entity-type topics --entity-default",
            "--entity-default must not be specified with --describe of topics",
        ),
        (
            "--alter --entity-type topics --entity-default --add-config x=1",
            "An entity name must be specified with --alter of topics",
        ),
        (
            "--alter --entity-type brokers --add-config x=1",
            "An entity-name or default entity must be specified with --alter of users, clients, \
             brokers or ips",
        ),
        (
            "--describe --broker one",
            "The entity name for brokers must be a valid integer broker id, but it is: one",
        ),
    ] {
        refuses(&format!("kafka-configs {line}"), reason).await;
    }
    for line in [
        "--alter --broker-defaults --delete-config a,b --delete-config c",
        "--describe --entity-type brokers --entity-default --all",
    ] {
        accepts(&format!("kafka-configs {line}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn groups_are_an_entity_of_kafka_configs() {
    refuses(
        "kafka-configs --alter --entity-type groups --add-config x=1",
        "An entity name must be specified with --alter of groups",
    )
    .await;
    let line = "--describe --entity-type groups --entity-default";
    refuses(
        &format!("kafka-configs {line}"),
        "--entity-default must not be specified with --describe of groups",
    )
    .await;
    for line in [
        "--describe --entity-type groups",
        "--describe --group g --all",
        "--alter --entity-type groups --entity-name g --add-config x=1",
    ] {
        accepts(&format!("kafka-configs {line}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn tools_with_commands_refuse_what_is_none() {
    for (line, reason) in [
        ("kafka-cluster --config /dev/null", "too few arguments"),
        (
            "kafka-cluster foo",
            "invalid choice: 'foo' (choose from 'cluster-id', 'unregister', 'list-endpoints')",
        ),
        ("kafka-cluster unregister", "argument --id/-i is required"),
        (
            "kafka-cluster unregister --id one",
            "argument --id/-i: could not convert 'one' to integer (32 bit)",
        ),
        (
            "kafka-cluster cluster-id --include-fenced-brokers",
            "include-fenced-brokers is not a recognized option",
        ),
        (
            "kafka-acls --add --topic a",
            "The option --add is not supported: there is no authorizer in this version, and so no \
             ACL to change (CreateAcls, DeleteAcls).",
        ),
        (
            "kafka-acls --topic a",
            "Command must include exactly one action: --list, --add, --remove. ",
        ),
        ("kafka-transactions list", "The command list is not supported by this tool yet."),
        ("kafka-transactions describe-producers --topic a", "argument --partition is required"),
        (
            "kafka-transactions describe-producers --topic a --partition x",
            "argument --partition: could not convert 'x' to integer (32 bit)",
        ),
        (
            "kafka-features version-mapping",
            "The command version-mapping is not supported by this tool yet.",
        ),
        ("kafka-features upgrade", "You must specify at least one feature to upgrade"),
        (
            "kafka-features upgrade --release-version 4.3",
            "The option --release-version is not supported: which levels a release of Apache Kafka \
             has is not known to this tool; use --feature.",
        ),
        (
            "kafka-features upgrade --feature a",
            "Can't parse feature=level string a: equals sign not found.",
        ),
        (
            "kafka-features upgrade --feature a=0",
            "The upgradeType flag should be set to SAFE_DOWNGRADE or UNSAFE_DOWNGRADE when the \
             provided maxVersionLevel:0 is < 1.",
        ),
        ("kafka-features downgrade --feature a=-1", "Cannot specify a negative version level."),
        (
            "kafka-features disable --feature a --feature a",
            "Feature a was specified more than once.",
        ),
        ("kafka-features disable --feature ", "Provided feature can not be empty."),
        ("kafka-features describe --node-id -1", "Invalid node id -1: must be non-negative."),
        (
            "kafka-metadata-quorum describe",
            "One of --status or --replication must be specified with describe sub-command",
        ),
        (
            "kafka-metadata-quorum describe --status --human-readable",
            "The option --human-readable is only supported along with --replication",
        ),
        (
            "kafka-metadata-quorum describe --status --replication",
            "Only one of --status or --replication should be specified with describe sub-command",
        ),
        (
            "kafka-metadata-quorum add-controller",
            "You must supply the configuration file of the controller you are adding when using \
             add-controller.",
        ),
        (
            "kafka-metadata-quorum remove-controller -i 1",
            "argument --controller-directory-id/-d is required",
        ),
        (
            "kafka-metadata-quorum remove-controller -i x -d y",
            "argument --controller-id/-i: could not convert 'x' to integer (32 bit)",
        ),
        ("kafka-groups --topic a", "topic is not a recognized option"),
        (
            "kafka-groups --list --consumer --share",
            "Option \"[consumer]\" can't be used with option \"[share]\"",
        ),
        (
            "kafka-groups --list --streams --protocol x",
            "Option \"[streams]\" can't be used with option \"[protocol]\"",
        ),
        ("kafka-groups --list --group-type bogus", "--group-type must be a valid group type."),
        ("kafka-log-dirs --topic-list a", "Missing required argument \"[describe]\""),
        (
            "kafka-verifiable-producer --topic a --acks 2",
            "argument --acks: invalid choice: '2' (choose from {0,1,-1})",
        ),
        ("kafka-verifiable-consumer --topic a", "Missing required argument \"[group-id]\""),
    ] {
        refuses(line, reason).await;
    }
    for line in [
        "kafka-cluster list-endpoints -c /dev/null",
        "kafka-metadata-quorum describe --replication --human-readable",
        "kafka-groups --list --share",
    ] {
        accepts(line).await;
    }
}

/// By the name of what is not offered.
#[tokio::test(start_paused = true)]
async fn what_the_broker_does_not_offer_is_refused_with_the_reason() {
    for (line, name, reason) in [
        ("kafka-configs --describe --entity-type users", "type users", "DescribeClientQuotas"),
        ("kafka-configs --describe --entity-type users", "type users", "AlterUserScramCredentials"),
        ("kafka-configs --describe --entity-type clients", "type clients", "AlterClientQuotas"),
        ("kafka-configs --describe --entity-type ips", "type ips", "quotas"),
        (
            "kafka-configs --describe --entity-type client-metrics",
            "client-metrics",
            "PushTelemetry",
        ),
        ("kafka-configs --describe --entity-type broker-loggers", "broker-loggers", "--log-level"),
        ("kafka-configs --describe --user alice", "--user", "SCRAM"),
        ("kafka-configs --describe --client-defaults", "--client-defaults", "quotas"),
        ("kafka-configs --describe --ip 1.2.3.4", "--ip", "quotas"),
        ("kafka-configs --describe --broker-logger 1", "--broker-logger", "BROKER_LOGGER"),
        ("kafka-reassign-partitions --execute --throttle 1", "--throttle", "throttle replication"),
        ("kafka-consumer-groups --validate-regex a.*", "--validate-regex", "KIP-848"),
        ("kafka-producer-perf-test --transactional-id t", "--transactional-id", "EndTxn"),
        ("kafka-dump-log --transaction-log-decoder", "-decoder", "__transaction_state"),
        ("kafka-dump-log --cluster-metadata-decoder", "-decoder", "__letterbox_metadata"),
        ("kafka-topics --list --bootstrap-controller a:1", "bootstrap-controller", "recognized"),
        ("kafka-features describe --bootstrap-controller a:1", "--bootstrap-controller", "brokers"),
    ] {
        let (code, stdout, stderr) = run(line).await;
        let first = stderr.lines().next().unwrap_or_default();
        assert!(
            code == 1 && stdout.is_empty() && first.contains(name) && first.contains(reason),
            "{line}: {stderr}"
        );
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file.as_file(), b"transactional.id=t\n").unwrap();
    for tool in [
        "kafka-console-producer --topic a",
        "kafka-producer-perf-test --topic a --num-records 1 --record-size 1 --throughput 1",
    ] {
        let (code, _, stderr) =
            run(&format!("{tool} --command-config {}", file.path().display())).await;
        assert!(code == 1 && stderr.contains("are not offered by this version"), "{stderr}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_option_that_does_nothing_any_more_is_said_as_kafkas_tool_says_it() {
    let (_, stdout, stderr) = run("kafka-topics --list --delete-config a --delete-config b").await;
    let first = stderr.lines().next().unwrap_or_default();
    assert!(
        stdout.is_empty() && first.starts_with("delete-config option is no longer"),
        "{stderr}"
    );
    assert!(stderr.contains("no broker answers at"), "{stderr}");
}

#[tokio::test(start_paused = true)]
async fn the_consumer_of_the_performance_test_reads_a_topic_or_those_that_match() {
    let one = "Exactly one of the following arguments is required: [topic], [include]";
    refuses("kafka-consumer-perf-test --num-records 1", one).await;
    refuses("kafka-consumer-perf-test --num-records 1 --topic a --include b", one).await;
    let line = "kafka-consumer-perf-test --num-records 1 --include a.*";
    accepts(&format!("{line} --date-format yyyy-MM-dd")).await;
    let refused = "--date-format EEE: the letter E is not supported; y, M, d, H, m, s and S are, \
        and others in single quotes";
    refuses(&format!("{line} --date-format EEE"), refused).await;
}

#[tokio::test(start_paused = true)]
async fn each_tool_has_a_help_of_its_own() {
    // The helper gives an address to each tool; kafka-dump-log takes none.
    for tool in letterbox_cli::tool_names().iter().filter(|tool| **tool != "kafka-dump-log") {
        let (code, stdout, stderr) = run(&format!("{tool} --help")).await;
        assert!(code == 0 && stderr.is_empty(), "{tool}: {stderr}");
        let known = stdout.lines().filter(|line| line.starts_with('-')).count();
        assert!(known >= 3, "{tool}: {stdout}");
    }
    let (code, stdout, _) = run("kafka-metadata-quorum describe --help").await;
    assert!(
        code == 0 && stdout.contains("--human-readable") && !stdout.contains("controller-id"),
        "{stdout}"
    );
}

#[tokio::test(start_paused = true)]
async fn client_settings_without_effect_are_told_and_those_of_security_refused() {
    let file = |text: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file.as_file(), text.as_bytes()).unwrap();
        file
    };
    let liberal = file(
        "security.protocol=PLAINTEXT\nsasl.mechanism=PLAIN\nssl.truststore.location=/x\nreceive.buffer.bytes \
         : 65536\nno.such.key=1\nrequest.timeout.ms=2000\n",
    );
    for tool in ["kafka-topics --list", "kafka-cluster cluster-id", "kafka-broker-api-versions"] {
        let (code, _, stderr) =
            run(&format!("{tool} --command-config {}", liberal.path().display())).await;
        let warned: Vec<&str> = stderr
            .lines()
            .filter_map(|line| line.strip_prefix("WARN The client setting ")?.split(' ').next())
            .collect();
        assert_eq!(
            warned,
            ["no.such.key", "receive.buffer.bytes", "sasl.mechanism", "ssl.truststore.location"],
            "{tool}"
        );
        assert!(code == 1 && stderr.contains("no broker answers at"), "{tool}: {stderr}");
    }
    let secure = file("security.protocol=SASL_SSL\n");
    let reason = "security.protocol=SASL_SSL is not supported yet; this version connects to \
        PLAINTEXT listeners only";
    refuses(&format!("kafka-topics --list --command-config {}", secure.path().display()), reason)
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_address_may_begin_with_its_protocol() {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let streams =
        Streams { stdin: &mut tokio::io::empty(), stdout: &mut stdout, stderr: &mut stderr };
    let args = ["--list", "--bootstrap-server", "PLAINTEXT://127.0.0.1:1,PLAINTEXT://[::1]:1"]
        .map(str::to_owned)
        .to_vec();
    letterbox_cli::run(Env::real(), "kafka-topics", args, streams).await;
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(stderr.starts_with("no broker answers at 127.0.0.1:1"), "{stderr}");
}

#[tokio::test(start_paused = true)]
async fn the_old_and_the_new_name_of_an_option_exclude_each_other() {
    for (line, one, other) in [
        (
            "kafka-console-consumer --topic a --consumer.config f --command-config g",
            "consumer.config",
            "command-config",
        ),
        (
            "kafka-console-consumer --topic a --consumer-property x=1 --command-property y=2",
            "consumer-property",
            "command-property",
        ),
        (
            "kafka-console-consumer --topic a --property x=1 --formatter-property y=2",
            "property",
            "formatter-property",
        ),
        (
            "kafka-console-producer --topic a --producer.config f --command-config g",
            "command-config",
            "producer.config",
        ),
        (
            "kafka-console-producer --topic a --producer-property x=1 --command-property y=2",
            "command-property",
            "producer-property",
        ),
        (
            "kafka-console-producer --topic a --property x=1 --reader-property y=2",
            "reader-property",
            "property",
        ),
    ] {
        refuses(line, &format!("Options --{one} and --{other} cannot be specified together."))
            .await;
    }
    for (line, one, other) in [
        ("--producer.config f --command-config g", "command-config", "producer.config"),
        ("--producer-props x=1 --command-property y=2", "command-property", "producer-props"),
    ] {
        let line = format!(
            "kafka-producer-perf-test --topic a --num-records 1 --record-size 1 --throughput 1 \
             {line}"
        );
        refuses(&line, &format!("--{one} and --{other} cannot be specified together.")).await;
    }
    let line =
        "kafka-consumer-perf-test --topic a --num-records 1 --consumer.config f --command-config g";
    refuses(line, "Option \"[consumer.config]\" can't be used with option \"[command-config]\"")
        .await;
    accepts("kafka-console-producer --topic a --batch-size 1 --max-partition-memory-bytes 2").await;
}

#[tokio::test(start_paused = true)]
async fn options_of_kafka_topics_that_leave_nothing_to_print_are_refused() {
    for (line, option, other) in [
        (
            "--describe --topics-with-overrides --unavailable-partitions",
            "unavailable-partitions",
            "topics-with-overrides",
        ),
        (
            "--describe --under-min-isr-partitions --topics-with-overrides",
            "under-min-isr-partitions",
            "topics-with-overrides",
        ),
        ("--list --under-replicated-partitions", "under-replicated-partitions", "list"),
        ("--list --config x=1", "config", "list"),
        ("--create --topic a --if-exists", "if-exists", "create"),
    ] {
        refuses(
            &format!("kafka-topics {line}"),
            &format!("Option \"[{option}]\" can't be used with option \"[{other}]\""),
        )
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn each_tool_says_at_once_that_nobody_answers_and_what_to_look_at_and_ends_after_a_while() {
    let lines = [
        "kafka-topics --list",
        "kafka-configs --describe --topic a",
        "kafka-get-offsets --topic a",
        "kafka-consumer-groups --list",
        "kafka-console-producer --topic a",
        "kafka-console-consumer --topic a",
        "kafka-producer-perf-test --topic a --num-records 1 --record-size 1 --throughput 1",
        "kafka-consumer-perf-test --topic a --num-records 1",
        "kafka-acls --list",
        "kafka-broker-api-versions --command-config /dev/null",
        "kafka-cluster cluster-id",
        "kafka-delete-records --offset-json-file FILE",
        "kafka-features describe",
        "kafka-groups --list",
        "kafka-leader-election --election-type preferred --all-topic-partitions",
        "kafka-log-dirs --describe",
        "kafka-metadata-quorum describe --status",
        "kafka-reassign-partitions --list",
        "kafka-transactions describe-producers --topic a --partition 0",
        "kafka-verifiable-consumer --topic a --group-id g",
        "kafka-verifiable-producer --topic a --max-messages 1",
    ];
    let file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file.as_file(), br#"{"partitions":[]}"#).unwrap();
    let file = file.path().display().to_string();
    // kafka-dump-log reads files.
    let connecting: Vec<&str> = letterbox_cli::tool_names()
        .iter()
        .filter(|tool| **tool != "kafka-dump-log")
        .copied()
        .collect();
    assert_eq!(lines.map(|line| line.split(' ').next().unwrap()), *connecting);
    let lines = lines.map(|line| line.replace("FILE", &file));
    for line in &lines {
        let began = Instant::now();
        let (code, stdout, stderr) = run(line).await;
        let took = began.elapsed();
        assert!(
            took > Duration::from_secs(4) && took < Duration::from_secs(6),
            "{line} took {took:?}"
        );
        assert_eq!((code, stdout.as_str()), (1, ""), "{line}");
        let (said, last) = stderr.trim_end().split_once('\n').unwrap();
        assert!(
            said.starts_with("no broker answers at 127.0.0.1:")
                && said.contains("Likely causes: ")
                && said.ends_with(". Trying for up to 5s."),
            "{line}: {stderr}"
        );
        assert_eq!(last, "Gave up after 5s.", "{line}");
    }
}

/// Says on `said` when something is written.
struct Telling(tokio::sync::mpsc::UnboundedSender<String>);

impl std::io::Write for Telling {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.send(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A broker that is started beside the tool, and a Service whose rules are not there yet: the tool
/// says at once that nobody answers, and connects when somebody does.
#[tokio::test]
async fn a_tool_waits_for_a_broker_that_does_not_listen_yet() {
    let (socket, address) = refusing();
    let (tell, mut said) = tokio::sync::mpsc::unbounded_channel();
    let mut tool = tokio::spawn(async move {
        let (mut stdout, mut stderr) = (Vec::new(), Telling(tell));
        let streams =
            Streams { stdin: &mut tokio::io::empty(), stdout: &mut stdout, stderr: &mut stderr };
        let args = ["--list", "--bootstrap-server", &address].map(str::to_owned).to_vec();
        letterbox_cli::run(Env::real(), "kafka-topics", args, streams).await
    });
    let first = said.recv().await.unwrap();
    assert!(first.contains("no broker answers at"), "{first}");
    let listener = socket.listen(8).unwrap();
    tokio::select! {
        accepted = listener.accept() => drop(accepted.unwrap()),
        code = &mut tool => panic!("it did not wait: {code:?}"),
    }
    tool.abort();
}

/// Whoever gives less time than that is not made to wait longer.
#[tokio::test(start_paused = true)]
async fn a_tool_waits_no_longer_than_its_own_time() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file.as_file(), b"default.api.timeout.ms=300\n").unwrap();
    let began = Instant::now();
    let (code, _, stderr) =
        run(&format!("kafka-topics --list --command-config {}", file.path().display())).await;
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    assert!(code == 1 && stderr.ends_with("Gave up after 300ms.\n"), "{stderr}");
}
