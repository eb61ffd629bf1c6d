//! `kafka-storage`: tells and gives the log directories' identity.
//!
//! A broker gives empty directories an identity itself when it starts. This tool is for those who
//! want to choose it: what it writes is what a start finds, because both read the same
//! configuration and use the same code. Kafka's other commands are about feature levels, which this
//! broker does not have.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use letterbox_broker::config::Config;
use letterbox_broker::metadata::identity::{
    DirectoryIdentity, META_PROPERTIES, decode_uuid, encode_uuid, open_directories_as,
    read_directory,
};
use letterbox_cli::command_line::{Command, Failure, Grammar, Parsed, Spec, Takes};
use letterbox_env::{Env, split_address, with_causes};
use uuid::Uuid;

const CONFIG: Spec =
    ("config", Takes::Value("CONFIG"), "REQUIRED: The server.properties file to use.");
const COMMANDS: &[Command] = &[
    ("info", "Get information about the Kafka log directories on this node.", &[CONFIG]),
    (
        "format",
        "Format the Kafka log directories on this node.",
        &[
            CONFIG,
            ("add-scram", Takes::Refused, ""),
            ("cluster-id", Takes::Value("CLUSTER_ID"), "REQUIRED: The cluster ID to use."),
            ("feature", Takes::Refused, ""),
            (
                "ignore-formatted",
                Takes::Nothing,
                "Skip directories that are already formatted instead of failing.",
            ),
            (
                "initial-controllers",
                Takes::Value("INITIAL_CONTROLLERS"),
                "The quorum, as a list of id@hostname:port:directory: this node, and the others of \
                 controller.quorum.bootstrap.servers.",
            ),
            (
                "no-initial-controllers",
                Takes::Nothing,
                "Do not set the quorum: the configuration does.",
            ),
            ("release-version", Takes::Refused, ""),
            ("standalone", Takes::Nothing, "Make this node a quorum of one."),
        ],
    ),
    ("random-uuid", "Print a random UUID.", &[]),
    ("version-mapping", "", &[]),
    ("feature-dependencies", "", &[]),
];
const SHORTS: &[(&str, &str)] = &[
    ("h", "help"),
    ("c", "config"),
    ("t", "cluster-id"),
    ("g", "ignore-formatted"),
    ("s", "standalone"),
    ("N", "no-initial-controllers"),
    ("I", "initial-controllers"),
    ("S", "add-scram"),
    ("r", "release-version"),
    ("f", "feature"),
];

/// Runs the tool; `read_config` reads a property file as a start does.
pub(crate) fn run(
    env: &Env,
    arguments: Vec<String>,
    read_config: impl Fn(&Path) -> anyhow::Result<Config>,
    out: &mut dyn Write,
) -> Result<i32, Failure> {
    let parsed = Grammar::local("The Kafka storage tool.", &[])
        .argparse(&[])
        .commands(COMMANDS)
        .shorts(SHORTS)
        .parse(arguments)?;
    if parsed.command() == "random-uuid" {
        writeln!(out, "{}", encode_uuid(env.random_uuid()))?;
        return Ok(0);
    }
    let file =
        parsed.value("config").ok_or_else(|| parsed.wrong("argument --config/-c is required"))?;
    let config = read_config(Path::new(file))
        .map_err(|error| Failure::Stderr(with_causes(error.as_ref())))?;
    let directories: BTreeSet<PathBuf> =
        config.log_dirs.iter().chain([&config.metadata_dir]).cloned().collect();
    if parsed.command() == "info" {
        info(env, &directories, out)
    } else {
        format(env, &parsed, &config, &directories, out)
    }
}

fn info(env: &Env, directories: &BTreeSet<PathBuf>, out: &mut dyn Write) -> Result<i32, Failure> {
    let (mut found, mut problems): (Vec<&Path>, Vec<String>) = (Vec::new(), Vec::new());
    let mut first: Option<DirectoryIdentity> = None;
    for directory in directories {
        let name = directory.display();
        if !env.disk.exists(directory)? {
            problems.push(format!("{name} does not exist"));
            continue;
        }
        if let Err(error) = env.disk.list(directory) {
            problems.push(if error.kind() == std::io::ErrorKind::NotADirectory {
                format!("{name} is not a directory")
            } else {
                format!("{name} cannot be read: {error}")
            });
            continue;
        }
        found.push(directory);
        if !env.disk.exists(&directory.join(META_PROPERTIES))? {
            problems.push(format!("{name} is not formatted."));
            continue;
        }
        match (read_directory(env, directory), &first) {
            (Err(error), _) => problems.push(format!(
                "Error loading {}: {error}",
                directory.join(META_PROPERTIES).display()
            )),
            (Ok(None), _) => problems.push(format!("{name} is not formatted.")),
            (Ok(identity), None) => first = identity,
            (Ok(Some(identity)), Some(first)) if identity.cluster_id != first.cluster_id => {
                problems.push("Mismatched cluster IDs between storage directories.".to_owned());
            }
            (Ok(Some(identity)), Some(first)) if identity.node_id != first.node_id => {
                problems.push("Mismatched node IDs between storage directories.".to_owned());
            }
            (Ok(Some(_)), Some(_)) => {}
        }
    }
    let lines = |title: &str, lines: Vec<String>, out: &mut dyn Write| -> std::io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        writeln!(out, "{title}:")?;
        for line in lines {
            writeln!(out, "  {line}")?;
        }
        writeln!(out)
    };
    let title = if found.len() == 1 { "Found log directory" } else { "Found log directories" };
    lines(title, found.iter().map(|directory| directory.display().to_string()).collect(), out)?;
    if let Some(identity) = first {
        let directory_id = encode_uuid(identity.directory_id);
        let (cluster_id, node_id, version) =
            (&identity.cluster_id, identity.node_id, identity.version());
        writeln!(
            out,
            "Found metadata: {{cluster.id={cluster_id}, directory.id={directory_id}, \
             node.id={node_id}, version={version}}}\n"
        )?;
    }
    let code = i32::from(!problems.is_empty());
    lines(if problems.len() == 1 { "Found problem" } else { "Found problems" }, problems, out)?;
    Ok(code)
}

fn format(
    env: &Env,
    parsed: &Parsed,
    config: &Config,
    directories: &BTreeSet<PathBuf>,
    out: &mut dyn Write,
) -> Result<i32, Failure> {
    let cluster_id = parsed
        .value("cluster-id")
        .ok_or_else(|| parsed.wrong("argument --cluster-id/-t is required"))?;
    let quorum = quorum(parsed, config)?;
    if let Some(configured) =
        config.cluster_id.as_deref().filter(|configured| *configured != cluster_id)
    {
        return Err(Failure::Stderr(format!(
            "--cluster-id {cluster_id}: the configuration says cluster.id={configured}; a broker \
             would not start with these directories"
        )));
    }
    let metadata_id = parsed
        .value("initial-controllers")
        .map(|list| directory_of(list, config))
        .transpose()
        .map_err(Failure::Stderr)?;
    let all: Vec<PathBuf> = directories.iter().cloned().collect();
    let mut formatted = 0;
    for directory in &all {
        if read_directory(env, directory)
            .map_err(|error| Failure::Stderr(with_causes(&error)))?
            .is_none()
        {
            continue;
        }
        if !parsed.has("ignore-formatted") {
            let name = directory.display();
            return Err(Failure::Stderr(format!(
                "Log directory {name} is already formatted. Use --ignore-formatted to ignore this \
                 directory and format the others."
            )));
        }
        formatted += 1;
    }
    let new_id = |directory: &Path| {
        metadata_id
            .filter(|_| *directory == config.metadata_dir)
            .unwrap_or_else(|| env.random_uuid())
    };
    let identities = open_directories_as(env, &all, config.node_id.0, Some(cluster_id), new_id);
    let identities = identities.map_err(|error| Failure::Stderr(with_causes(&error)))?;
    if formatted == all.len() {
        writeln!(out, "All of the log directories are already formatted.")?;
    }
    for (directory, _) in all.iter().zip(&identities).filter(|(_, identity)| identity.created) {
        let kind = match quorum {
            _ if *directory != config.metadata_dir => "data directory",
            Some("standalone" | "initial-controllers") => "dynamic metadata voter directory",
            _ => "metadata directory",
        };
        writeln!(out, "Formatting {kind} {}.", directory.display())?;
    }
    Ok(0)
}

/// The one option that says what the quorum is; none when `config` lists the voters.
fn quorum(parsed: &Parsed, config: &Config) -> Result<Option<&'static str>, Failure> {
    let mut given = ["standalone", "no-initial-controllers", "initial-controllers"]
        .into_iter()
        .filter(|option| parsed.has(option));
    let quorum = given.next();
    if let (Some(one), Some(other)) = (quorum, given.next()) {
        return Err(parsed.wrong(format!("argument --{one}: not allowed with argument --{other}")));
    }
    let voters = config.entry("controller.quorum.voters").value;
    let line = match (voters.is_some_and(|voters| !voters.is_empty()), quorum) {
        (true, Some("standalone" | "initial-controllers")) => {
            "You cannot specify controller.quorum.voters and format the node with \
             --initial-controllers or --standalone. If you want to use dynamic quorum, please \
             remove controller.quorum.voters and specify controller.quorum.bootstrap.servers \
             instead."
        }
        (false, None) => {
            "Because controller.quorum.voters is not set on this controller, you must specify one \
             of the following: --standalone, --initial-controllers, or --no-initial-controllers."
        }
        (false, Some("standalone")) if !config.quorum_servers.is_empty() => {
            "--standalone: controller.quorum.bootstrap.servers names other nodes, with which this \
             one creates a cluster, or which it joins. Specify --no-initial-controllers or \
             --initial-controllers, or name this node alone there."
        }
        _ => return Ok(quorum),
    };
    Err(Failure::Stderr(line.to_owned()))
}

/// The directory id of this node in a list of `id@hostname:port:directory`. Several nodes find one
/// another at the addresses of the configuration, so the list has the same.
fn directory_of(list: &str, config: &Config) -> Result<Uuid, String> {
    let wrong = |why: String| format!("--initial-controllers {list}: {why}");
    let (mut addresses, mut own) = (BTreeSet::new(), None);
    for controller in list.split(',').map(str::trim) {
        let parts = controller.split_once('@').and_then(|(id, rest)| {
            let (address, directory) = rest.rsplit_once(':')?;
            let (host, port) = split_address(address)?;
            Some((id.parse::<i32>().ok()?, (host.to_owned(), port), directory))
        });
        let (id, address, directory) = parts
            .ok_or_else(|| wrong("it must be written id@hostname:port:directory".to_owned()))?;
        if id == config.node_id.0 {
            own = Some(directory);
        }
        addresses.insert(address);
    }
    let Some(directory) = own else {
        let id = config.node_id;
        return Err(wrong(format!("it does not name this node, which has node.id={id}")));
    };
    let is_alone = config.quorum_servers.is_empty() && addresses.len() == 1;
    let servers: BTreeSet<_> = config.quorum_servers.iter().cloned().collect();
    if !is_alone && servers != addresses {
        return Err(wrong(
            "its addresses must be those of controller.quorum.bootstrap.servers, where the nodes \
             look for one another"
                .to_owned(),
        ));
    }
    let directory_id = decode_uuid(directory).filter(|id| id.as_u128() > 1);
    directory_id.ok_or_else(|| {
        wrong(format!(
            "{directory} is not a directory id; create one with kafka-storage random-uuid"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node(tempfile::TempDir);

    impl Node {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn directory(&self, name: &str) -> String {
            self.0.path().join(name).display().to_string()
        }

        /// Exit code with standard output, or what is said on standard error; without the folder's
        /// path.
        fn run(&self, line: &str, quorum: &str) -> Result<(i32, String), String> {
            let read = |_: &Path| {
                let dirs = format!("{},{}", self.directory("d2"), self.directory("d1"));
                let text = format!(
                    "process.roles=broker,controller\nnode.id=3\nlisteners=PLAINTEXT://:9092,CONTROLLER://:9093\n\
                     controller.listener.names=CONTROLLER\nlog.dirs={dirs}\nmetadata.log.dir={}\n{quorum}\n",
                    self.directory("d1")
                );
                let pairs = text
                    .lines()
                    .filter_map(|line| line.split_once('='))
                    .map(|(key, value)| (key.to_owned(), value.to_owned()));
                Ok(Config::from_pairs(pairs)?)
            };
            let mut out = Vec::new();
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            let words = line.split(' ').map(str::to_owned).collect();
            let result = run(&Env::real(), words, read, &mut out);
            let folder = format!("{}/", self.0.path().display());
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(&folder, "");
            match result {
                Ok(code) => Ok((code, text(out))),
                Err(failure) => {
                    failure.report(&mut stdout, &mut stderr);
                    Err(text(stderr).lines().next().unwrap_or_default().to_owned())
                }
            }
        }
    }

    const VOTERS: &str = "controller.quorum.voters=3@localhost:9093";
    const DYNAMIC: &str = "controller.quorum.bootstrap.servers=localhost:9093";
    const THREE: &str = "controller.quorum.bootstrap.servers=a:9093,b:9093,c:9093";
    const ID: &str = "4L6g3nShT-eMCtK--X86sw";

    #[test]
    fn what_is_formatted_is_told_and_found_by_a_start() {
        let node = Node::new();
        let nothing = "Found problems:\n  d1 does not exist\n  d2 does not exist\n\n";
        assert_eq!(node.run("info -c f", VOTERS), Ok((1, nothing.to_owned())));
        let done = "Formatting metadata directory d1.\nFormatting data directory d2.\n";
        assert_eq!(node.run(&format!("format -t {ID} -c f"), VOTERS), Ok((0, done.to_owned())));
        let (code, told) = node.run("info --config=f", VOTERS).unwrap();
        assert!(
            code == 0
                && told.starts_with(
                    "Found log directories:\n  d1\n  d2\n\nFound metadata: \
                        {cluster.id=4L6g3nShT-eMCtK--X86sw, directory.id="
                ),
            "{told}"
        );
        assert!(told.ends_with(", node.id=3, version=letterbox-1}\n\n"), "{told}");
        let again = "Log directory d1 is already formatted. Use --ignore-formatted to ignore this \
            directory and format the others.";
        assert_eq!(node.run(&format!("format -t {ID} -c f"), VOTERS), Err(again.to_owned()));
        let ignored = "All of the log directories are already formatted.\n";
        assert_eq!(
            node.run(&format!("format -t {ID} -c f --ignore-formatted"), VOTERS),
            Ok((0, ignored.to_owned()))
        );
        Env::real().disk.remove_dir_all(&node.0.path().join("d2")).unwrap();
        let (code, told) = node.run("info -c f", VOTERS).unwrap();
        assert!(
            code == 1
                && told.starts_with("Found log directory:\n  d1\n\n")
                && told.ends_with("Found problem:\n  d2 does not exist\n\n"),
            "{told}"
        );
        assert_eq!(
            node.run(&format!("format -t {ID} -c f -g"), VOTERS),
            Ok((0, "Formatting data directory d2.\n".to_owned()))
        );
        // What a start does with the directories.
        let dirs = [node.0.path().join("d1"), node.0.path().join("d2")];
        let found =
            letterbox_broker::metadata::identity::open_directories(&Env::real(), &dirs, 3, None)
                .unwrap();
        assert!(found.iter().all(|identity| identity.cluster_id == ID
            && identity.node_id == 3
            && !identity.created));
        let other = node.run("format -t AAAAAAAAAAAAAAAAAAAAAg -c f -g", VOTERS).unwrap_err();
        assert!(other.contains("d1 belongs to cluster 4L6g3nShT-eMCtK--X86sw"), "{other}");
    }

    #[test]
    fn the_quorum_is_this_node_however_it_is_said() {
        let node = Node::new();
        let line = |rest: &str| format!("format -t {ID} -c f{rest}");
        for (rest, quorum, said) in [
            (
                "",
                DYNAMIC,
                "Because controller.quorum.voters is not set on this controller, you must specify \
                 one of",
            ),
            (
                " -s",
                VOTERS,
                "You cannot specify controller.quorum.voters and format the node with \
                 --initial-controllers or --standalone.",
            ),
            (
                " -s -N",
                DYNAMIC,
                "argument --standalone: not allowed with argument --no-initial-controllers",
            ),
            (
                " -I 3@localhost:9093",
                DYNAMIC,
                "--initial-controllers 3@localhost:9093: it must be written \
                 id@hostname:port:directory",
            ),
            (
                " -I 4@localhost:9093:JEXY6aqzQY-32P5TStzaFg",
                DYNAMIC,
                "--initial-controllers 4@localhost:9093:JEXY6aqzQY-32P5TStzaFg: it does not name \
                 this node",
            ),
            (
                " -I 3@h:9093:JEXY6aqzQY-32P5TStzaFg,4@h:9094:MvDxzVmcRsaTz33bUuRU6A",
                DYNAMIC,
                "--initial-controllers \
                 3@h:9093:JEXY6aqzQY-32P5TStzaFg,4@h:9094:MvDxzVmcRsaTz33bUuRU6A: its addresses \
                 must be those of controller.quorum.bootstrap.servers",
            ),
            (
                " -I 3@h:9093:JEXY6aqzQY-32P5TStzaFg,4@h:9094:MvDxzVmcRsaTz33bUuRU6A",
                THREE,
                "--initial-controllers \
                 3@h:9093:JEXY6aqzQY-32P5TStzaFg,4@h:9094:MvDxzVmcRsaTz33bUuRU6A: its addresses \
                 must be those",
            ),
            (" -s", THREE, "--standalone: controller.quorum.bootstrap.servers names other nodes"),
            (
                " -S SCRAM-SHA-256=[name=a,password=b]",
                VOTERS,
                "The option --add-scram is not supported by this tool yet.",
            ),
            (
                " --feature kraft.version=1",
                VOTERS,
                "The option --feature is not supported by this tool yet.",
            ),
        ] {
            let refused = node.run(&line(rest), quorum).unwrap_err();
            assert!(refused.starts_with(said), "{rest}: {refused}");
        }
        assert_eq!(node.run("info -c f", DYNAMIC).unwrap().0, 1, "nothing was written");
        let done =
            "Formatting dynamic metadata voter directory d1.\nFormatting data directory d2.\n";
        assert_eq!(
            node.run(&line(" -I 3@localhost:9093:JEXY6aqzQY-32P5TStzaFg"), DYNAMIC),
            Ok((0, done.to_owned()))
        );
        let identity = read_directory(&Env::real(), &node.0.path().join("d1")).unwrap().unwrap();
        assert_eq!(encode_uuid(identity.directory_id), "JEXY6aqzQY-32P5TStzaFg");
        let other = Node::new();
        assert_eq!(other.run(&line(" --standalone"), DYNAMIC), Ok((0, done.to_owned())));
        // As Kafka's documentation has it for three.
        let all = "1@a:9093:JEXY6aqzQY-32P5TStzaFg,2@b:9093:MvDxzVmcRsaTz33bUuRU6A,\
            3@c:9093:07R5amHmR32VDA6jHkGbTA";
        let among = Node::new();
        assert_eq!(among.run(&line(&format!(" -I {all}")), THREE), Ok((0, done.to_owned())));
        let identity = read_directory(&Env::real(), &among.0.path().join("d1")).unwrap().unwrap();
        assert_eq!(encode_uuid(identity.directory_id), "07R5amHmR32VDA6jHkGbTA");
        let done = "Formatting metadata directory d1.\nFormatting data directory d2.\n";
        assert_eq!(Node::new().run(&line(" -N"), THREE), Ok((0, done.to_owned())));
    }

    #[test]
    fn a_directory_with_data_of_nobody_is_not_formatted() {
        let node = Node::new();
        Env::real().disk.create_dir_all(&node.0.path().join("d1/orders-0")).unwrap();
        let refused = node.run(&format!("format -t {ID} -c f"), VOTERS).unwrap_err();
        assert!(refused.contains("has data but no meta.properties"), "{refused}");
        let (code, told) = node.run("info -c f", VOTERS).unwrap();
        assert!(code == 1 && told.contains("  d1 is not formatted.\n"), "{told}");
    }

    #[test]
    fn random_ids_are_those_of_kafka() {
        let (code, text) = Node::new().run("random-uuid", VOTERS).unwrap();
        assert!(code == 0 && decode_uuid(text.trim_end()).is_some() && text.len() == 23, "{text}");
    }
}
