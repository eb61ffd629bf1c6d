//! A whole, checked broker configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use letterbox_env::{Gather, split_address};
use letterbox_protocol::model::BrokerId;

use super::keys::{self, Problem, Verdict};
use super::listener::{parse_endpoints, port_taken, protocol_of};
use super::{ConfigError, Endpoint, parse_properties};

/// The longest cluster id, in bytes: it is part of many answers.
const CLUSTER_ID_MAX: usize = 1024;

/// What this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// Stores and serves records.
    pub broker: bool,
    /// Votes in the metadata quorum.
    pub controller: bool,
}

/// A value with where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The broker key.
    pub name: &'static str,
    /// The value; `None` where Kafka has null.
    pub value: Option<String>,
    /// Where it comes from.
    pub source: Source,
}

/// Where a value comes from, with Kafka's numbers. The strongest comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i8)]
pub enum Source {
    /// Set on the topic.
    Topic = 1,
    /// Set on this broker while it runs.
    DynamicBroker = 2,
    /// Set on all brokers while they run.
    DynamicDefault = 3,
    /// The file or the environment.
    StaticBroker = 4,
    /// Nobody set it.
    Default = 5,
    /// Set on the group.
    Group = 8,
}

/// What was set while the broker runs (KIP-226), by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Dynamic {
    broker: BTreeMap<String, String>,
    cluster: BTreeMap<String, String>,
}

/// A setting that does not do what somebody may expect of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// As written.
    pub key: String,
    /// Why; completes "has no effect: …". Never holds the value, which may be a secret.
    pub reason: String,
    /// The variable that set it, where that is how it was set.
    pub variable: Option<String>,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.variable {
            Some(variable) => write!(f, "{variable} ({}) has no effect: {}", self.key, self.reason),
            None => write!(f, "{} has no effect: {}", self.key, self.reason),
        }
    }
}

/// The configuration a broker runs with: made once at start, and what is set while it runs over
/// that. Clones share the latter, so that whoever holds one sees a change at once.
#[derive(Clone, Debug)]
pub struct Config {
    /// `node.id`.
    pub node_id: BrokerId,
    /// `broker.rack`.
    pub rack: Option<String>,
    /// `cluster.id`, when the file gives one.
    pub cluster_id: Option<String>,
    /// The listeners clients use, in order.
    pub listeners: Vec<Endpoint>,
    /// What clients of each of `listeners` are told, in the same order.
    pub advertised: Vec<Endpoint>,
    /// The metadata quorum's listener.
    pub controller: Endpoint,
    /// `controller.quorum.voters`: the voters that found the metadata quorum, and where they are
    /// reached. This node, when nothing is said.
    pub voters: BTreeMap<i32, (String, u16)>,
    /// `controller.quorum.bootstrap.servers`, unless that is this node alone: where voters are
    /// found.
    pub quorum_servers: Vec<(String, u16)>,
    /// `admin.listener`: host and port, and whether it was asked for by name.
    pub admin: Option<(String, u16, bool)>,
    /// `log.dirs`.
    pub log_dirs: Vec<PathBuf>,
    /// `metadata.log.dir`.
    pub metadata_dir: PathBuf,
    /// `accepted.lost.directory.ids`.
    pub accepted_lost_directory_ids: Vec<String>,
    /// `accepted.lost.metadata.log`.
    pub accepted_lost_metadata_log: Option<String>,
    /// `expected.directory.ids`; empty when any will do.
    pub expected_directory_ids: Vec<String>,
    set: BTreeMap<String, String>,
    warnings: Vec<Warning>,
    dynamic: Arc<ArcSwap<Dynamic>>,
}

impl Config {
    /// Reads the text of a `server.properties` file.
    ///
    /// # Errors
    /// Every problem found, each naming its key, the value, why, and the range.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::from_pairs(parse_properties(text).map_err(|problem| ConfigError(vec![problem]))?)
    }

    /// Makes a configuration of settings that are already apart; of two with one name the last
    /// counts. Settings without effect become [`Config::warnings`].
    ///
    /// # Errors
    /// As [`Config::parse`].
    pub fn from_pairs(
        pairs: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let given: BTreeMap<String, String> = pairs.into_iter().gather();
        let strict = given
            .get("config.strict")
            .is_some_and(|value| value.trim().eq_ignore_ascii_case("true"));
        let (mut set, mut warnings, mut problems) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (key, value) in given {
            match keys::judge(&key, &value, strict) {
                Verdict::Keep(reason) => {
                    warnings.extend(reason.map(|reason| Warning {
                        key: key.clone(),
                        reason,
                        variable: None,
                    }));
                    set.insert(key, value);
                }
                Verdict::Ignore(reason) => warnings.push(Warning { key, reason, variable: None }),
                Verdict::Refuse(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() {
            match Self::build(set) {
                Ok(config) => return Ok(Self { warnings, ..config }),
                Err(problem) => problems.push(problem),
            }
        }
        Err(ConfigError(problems))
    }

    fn build(set: BTreeMap<String, String>) -> Result<Self, Problem> {
        let given = Given(&set);
        let node_id = given.node_id()?;
        given.check_roles()?;
        let Listeners { controller_names, controller, clients } = given.listeners()?;
        given.check_groups()?;
        given.check_contradictions()?;
        given.check_session()?;
        let voters = given.voters(node_id, &controller)?;
        // Other nodes connect to what clients are told.
        let own = voters.get(&node_id.0).filter(|_| voters.len() > 1).map(|(host, _)| host.clone());
        let own = own.unwrap_or_else(|| "localhost".to_owned());
        let advertised =
            Self::advertised(given.get("advertised.listeners"), &clients, &controller_names, &own)?;
        let quorum_servers = match voters.is_empty() {
            true => given.bootstrap_servers()?,
            false => Vec::new(),
        };
        let cluster_id = given.cluster_id()?;
        let (log_dirs, metadata_dir) = given.directories()?;
        let ids = |key| -> Vec<String> {
            let all = given.or_default(key).split(',').map(str::trim);
            all.filter(|id| !id.is_empty()).map(str::to_owned).collect()
        };
        let is_set = given.get("admin.listener").is_some();
        let admin = parse_admin(given.or_default("admin.listener"), is_set, &clients)?;
        Ok(Self {
            node_id,
            accepted_lost_directory_ids: ids("accepted.lost.directory.ids"),
            accepted_lost_metadata_log: given
                .get("accepted.lost.metadata.log")
                .filter(|name| !name.is_empty())
                .map(str::to_owned),
            expected_directory_ids: ids("expected.directory.ids"),
            rack: given.get("broker.rack").map(str::to_owned),
            cluster_id,
            admin,
            listeners: clients,
            advertised,
            controller,
            voters,
            quorum_servers,
            log_dirs,
            metadata_dir,
            set,
            warnings: Vec::new(),
            dynamic: Arc::default(),
        })
    }

    fn advertised(
        given: Option<&str>,
        listeners: &[Endpoint],
        controllers: &[String],
        own_host: &str,
    ) -> Result<Vec<Endpoint>, Problem> {
        const KEY: &str = "advertised.listeners";
        let given_text = given.unwrap_or_default();
        let all = parse_endpoints(KEY, given_text)?;
        // Kafka allows a combined node to advertise its controller listener too; clients never see
        // it.
        let advertised: Vec<Endpoint> =
            all.into_iter().filter(|endpoint| !controllers.contains(&endpoint.name)).collect();
        for endpoint in &advertised {
            if !listeners.iter().any(|listener| listener.name == endpoint.name) {
                return Err(Problem::value(
                    KEY,
                    given_text,
                    format!(
                        "{} is not in listeners; add it there or remove it here",
                        endpoint.name
                    ),
                ));
            }
            if endpoint.host == "0.0.0.0" || endpoint.host == "::" {
                return Err(Problem::value(
                    KEY,
                    given_text,
                    format!(
                        "{endpoint} cannot be connected to; write a host name or address that \
                         clients reach"
                    ),
                ));
            }
        }
        let of = |listener: &Endpoint| {
            let found = advertised
                .iter()
                .find(|endpoint| endpoint.name == listener.name)
                .unwrap_or(listener)
                .clone();
            let wildcard = matches!(found.host.as_str(), "" | "0.0.0.0" | "::");
            Endpoint { host: if wildcard { own_host.to_owned() } else { found.host }, ..found }
        };
        Ok(listeners.iter().map(of).collect())
    }

    /// The value of a broker key and where it comes from. `name` must be in the table.
    #[must_use]
    pub fn entry(&self, name: &'static str) -> Entry {
        let dynamic = self.dynamic.load();
        let layers = [
            (Source::DynamicBroker, &dynamic.broker),
            (Source::DynamicDefault, &dynamic.cluster),
            (Source::StaticBroker, &self.set),
        ];
        let found = layers
            .into_iter()
            .find_map(|(source, layer)| Some((layer.get(name)?.trim().to_owned(), source)));
        match found {
            Some((value, source)) => Entry { name, value: Some(value), source },
            None => Entry {
                name,
                value: keys::find(name).and_then(|key| key.default).map(str::to_owned),
                source: Source::Default,
            },
        }
    }

    /// The value of a broker key without what was set while the broker runs.
    #[must_use]
    pub fn in_file(&self, name: &'static str) -> &str {
        let default = || keys::find(name).and_then(|key| key.default);
        self.set.get(name).map(|value| value.trim()).or_else(default).unwrap_or_default()
    }

    /// Every value that the key has, the one that counts first, the default last (KIP-226).
    #[must_use]
    pub fn synonyms(&self, name: &'static str) -> Vec<Entry> {
        let dynamic = self.dynamic.load();
        let layers = [
            (Source::DynamicBroker, &dynamic.broker),
            (Source::DynamicDefault, &dynamic.cluster),
            (Source::StaticBroker, &self.set),
        ];
        let set = layers
            .into_iter()
            .filter_map(|(source, layer)| Some((layer.get(name)?.trim().to_owned(), source)));
        let default = keys::find(name)
            .and_then(|key| key.default)
            .map(|default| (default.to_owned(), Source::Default));
        set.chain(default)
            .map(|(value, source)| Entry { name, value: Some(value), source })
            .collect()
    }

    /// Puts what was set while the broker runs over the file: for this broker alone, and for all
    /// brokers.
    pub fn set_dynamic(
        &self,
        broker: &BTreeMap<String, String>,
        cluster: &BTreeMap<String, String>,
    ) {
        let changeable = |configs: &BTreeMap<String, String>| {
            let is = |key: &&String| keys::find(key).is_some_and(|key| key.dynamic);
            configs
                .iter()
                .filter(|(key, _)| is(key))
                .map(|(key, value)| (key.clone(), value.clone()))
                .gather()
        };
        self.dynamic
            .store(Arc::new(Dynamic { broker: changeable(broker), cluster: changeable(cluster) }));
    }

    /// Checks what would hold with these settings over the file; `None` leaves what is set now.
    ///
    /// # Errors
    /// A sentence that names the settings that contradict one another.
    pub fn check_dynamic(
        &self,
        broker: Option<&BTreeMap<String, String>>,
        cluster: Option<&BTreeMap<String, String>>,
    ) -> Result<(), String> {
        let (present, changed) =
            (self.dynamic.load(), Self { dynamic: Arc::default(), ..self.clone() });
        changed.set_dynamic(broker.unwrap_or(&present.broker), cluster.unwrap_or(&present.cluster));
        match contradiction(|name| changed.entry(name).value) {
            Some((less, more)) => Err(format!("{less} must not be more than {more}")),
            None => Ok(()),
        }
    }

    /// The value of a whole-number key.
    #[must_use]
    pub fn number(&self, name: &'static str) -> i64 {
        // Every value was checked against its kind when the configuration was made.
        self.entry(name).value.and_then(|value| value.parse().ok()).unwrap_or_default()
    }

    /// The value of a number key that is a count of bytes or things.
    #[must_use]
    pub fn size(&self, name: &'static str) -> usize {
        usize::try_from(self.number(name)).unwrap_or(usize::MAX)
    }

    /// The value of a key in milliseconds; below 0 is never.
    #[must_use]
    pub fn duration(&self, name: &'static str) -> Duration {
        Duration::from_millis(u64::try_from(self.number(name)).unwrap_or(u64::MAX))
    }

    /// The value of a yes-or-no key.
    #[must_use]
    pub fn is_true(&self, name: &'static str) -> bool {
        self.entry(name).value.is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// Whether other nodes are to be of this node's cluster. A cluster of one stays alone.
    #[must_use]
    pub fn has_several_nodes(&self) -> bool {
        self.voters.len() != 1
    }

    /// Where other nodes reach the controller listener.
    #[must_use]
    pub fn controller_reached_at(&self) -> (String, u16) {
        (Given(&self.set).controller_host(&self.controller), self.controller.port)
    }

    /// Whether clients are told localhost because nothing says what else to tell them.
    #[must_use]
    pub fn advertises_localhost(&self) -> bool {
        let told = |(listener, advertised): (&Endpoint, &Endpoint)| {
            advertised.host == "localhost" && listener.host != "localhost"
        };
        let is_meant = Given(&self.set)
            .get("advertised.listeners")
            .is_some_and(|all| all.contains("localhost"));
        !is_meant && self.listeners.iter().zip(&self.advertised).any(told)
    }

    /// Names the environment variables behind the warnings.
    pub fn name_variables(&mut self, variable_of: impl Fn(&str) -> Option<String>) {
        for warning in &mut self.warnings {
            warning.variable = variable_of(&warning.key);
        }
    }

    /// What was set without effect, and why; logged at start.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

/// What a file sets, and the defaults of the rest.
#[derive(Clone, Copy)]
struct Given<'a>(&'a BTreeMap<String, String>);

/// The listeners of a node, by who uses them.
struct Listeners {
    controller_names: Vec<String>,
    controller: Endpoint,
    clients: Vec<Endpoint>,
}

impl<'a> Given<'a> {
    /// What is set; an empty value is none.
    fn get(self, name: &str) -> Option<&'a str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    fn or_default(self, name: &str) -> &'a str {
        self.get(name).or_else(|| keys::find(name)?.default).unwrap_or_default()
    }

    fn node_id(self) -> Result<BrokerId, Problem> {
        // Kafka's default of broker.id, which means that it is not set.
        let node_id = match (self.get("node.id"), self.get("broker.id").filter(|id| *id != "-1")) {
            (Some(a), Some(b)) if a != b => {
                return Err(Problem::value(
                    "broker.id",
                    b,
                    format!("must be equal to node.id={a}; remove the line"),
                ));
            }
            (Some(id), _) | (None, Some(id)) => id,
            (None, None) => {
                return Err(Problem::Missing {
                    key: "node.id",
                    why: "give this node a number, for example node.id=1",
                });
            }
        };
        let node_id = node_id.parse().ok().filter(|id| *id >= 0);
        Ok(BrokerId(node_id.ok_or_else(|| {
            Problem::value("node.id", self.get("node.id").unwrap_or("-1"), "must be 0 or more")
        })?))
    }

    fn check_roles(self) -> Result<(), Problem> {
        let roles = self.get("process.roles").ok_or(Problem::Missing {
            key: "process.roles",
            why: "write process.roles=broker,controller",
        })?;
        let has = |role| roles.split(',').any(|item| item.trim() == role);
        if (Roles { broker: has("broker"), controller: has("controller") })
            != (Roles { broker: true, controller: true })
        {
            return Err(Problem::value(
                "process.roles",
                roles,
                "this version runs both roles in one process; write broker,controller",
            ));
        }
        Ok(())
    }

    fn listeners(self) -> Result<Listeners, Problem> {
        let names = self.get("controller.listener.names").ok_or(Problem::Missing {
            key: "controller.listener.names",
            why: "write controller.listener.names=CONTROLLER",
        })?;
        let controller_names: Vec<String> =
            names.split(',').map(|name| name.trim().to_ascii_uppercase()).collect();
        let (given, map) =
            (self.or_default("listeners"), self.or_default("listener.security.protocol.map"));
        let all = parse_endpoints("listeners", given)?;
        for endpoint in &all {
            protocol_of(&endpoint.name, map, &controller_names)?;
        }
        let (controllers, clients): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|endpoint| controller_names.contains(&endpoint.name));
        let controller = controllers.into_iter().next().ok_or_else(|| {
            let add = controller_names.join(",");
            let why = format!("lacks the controller listener {names}; add {add}://:9093");
            Problem::value("listeners", given, why)
        })?;
        if clients.is_empty() {
            let why = "has no listener for clients; add PLAINTEXT://:9092";
            return Err(Problem::value("listeners", given, why));
        }
        if let Some(name) = self.get("inter.broker.listener.name")
            && !clients.iter().any(|listener| listener.name.eq_ignore_ascii_case(name))
        {
            return Err(Problem::value(
                "inter.broker.listener.name",
                name,
                "is not the name of a client listener in listeners",
            ));
        }
        Ok(Listeners { controller_names, controller, clients })
    }

    /// The voters that found the metadata quorum. Without `controller.quorum.voters` that is this
    /// node alone, which `controller.quorum.bootstrap.servers` names; nobody, when that names
    /// others, too, which this node looks for.
    fn voters(
        self,
        node_id: BrokerId,
        controller: &Endpoint,
    ) -> Result<BTreeMap<i32, (String, u16)>, Problem> {
        if let Some(given) = self.get("controller.quorum.voters") {
            return parse_voters(given, node_id);
        }
        match self.bootstrap_servers()?.as_slice() {
            [] => Err(Problem::Missing {
                key: "controller.quorum.voters",
                why: "name this node, for example controller.quorum.voters=1@localhost:9093",
            }),
            [(host, port)] if *port == controller.port && !self.is_elsewhere(host, controller) => {
                let own = if controller.host.is_empty() { "localhost" } else { &controller.host };
                Ok(BTreeMap::from([(node_id.0, (own.to_owned(), controller.port))]))
            }
            _ => Ok(BTreeMap::new()),
        }
    }

    /// Whether `host` is another one than where others reach the controller listener, as far as
    /// that is said: a machine has several names.
    fn is_elsewhere(self, host: &str, controller: &Endpoint) -> bool {
        let given = self.get("advertised.listeners").unwrap_or_default();
        let advertised = parse_endpoints("advertised.listeners", given).unwrap_or_default();
        let advertised = advertised.iter().find(|endpoint| endpoint.name == controller.name);
        let own = advertised.unwrap_or(controller).host.as_str();
        let is_own_machine = |host: &str| {
            let address = host.parse::<std::net::IpAddr>();
            host == "localhost" || address.is_ok_and(|address| address.is_loopback())
        };
        let says_nothing = matches!(own, "" | "0.0.0.0" | "::") || is_own_machine(own);
        !says_nothing && !is_own_machine(host) && own != host
    }

    /// `controller.quorum.bootstrap.servers`.
    fn bootstrap_servers(self) -> Result<Vec<(String, u16)>, Problem> {
        let key = "controller.quorum.bootstrap.servers";
        let given = self.get(key).unwrap_or_default();
        let all = given.split(',').map(str::trim).filter(|server| !server.is_empty());
        let parsed: Option<Vec<_>> = all.map(parse_address).collect();
        parsed.ok_or_else(|| Problem::value(key, given, "must be written host:port".to_owned()))
    }

    /// Where others reach the controller listener: as advertised, or as it listens, or as the first
    /// listener is advertised.
    fn controller_host(self, controller: &Endpoint) -> String {
        let given = self.get("advertised.listeners").unwrap_or_default();
        let advertised = parse_endpoints("advertised.listeners", given).unwrap_or_default();
        let is_named = |host: &&String| !matches!(host.as_str(), "" | "0.0.0.0" | "::");
        let of_controller = advertised.iter().find(|endpoint| endpoint.name == controller.name);
        let hosts = of_controller.into_iter().chain([controller]).chain(&advertised);
        let mut hosts = hosts.map(|endpoint| &endpoint.host).filter(is_named);
        hosts.next().cloned().unwrap_or_else(|| "localhost".to_owned())
    }

    fn check_groups(self) -> Result<(), Problem> {
        let given = self.or_default("group.coordinator.rebalance.protocols");
        if given.split(',').any(|name| name.trim() == "classic") {
            return Ok(());
        }
        Err(Problem::value(
            "group.coordinator.rebalance.protocols",
            given,
            "must hold classic; this version offers no other",
        ))
    }

    /// A broker that lives would be fenced between two heartbeats.
    fn check_session(self) -> Result<(), Problem> {
        const SESSION: &str = "broker.session.timeout.ms";
        const HEARTBEAT: &str = "broker.heartbeat.interval.ms";
        let ms = |name| self.or_default(name).trim().parse::<i64>().unwrap_or_default();
        match ms(SESSION) > ms(HEARTBEAT) {
            true => Ok(()),
            false => Err(Problem::value(
                SESSION,
                self.or_default(SESSION),
                format!("must be more than {HEARTBEAT}={}", self.or_default(HEARTBEAT)),
            )),
        }
    }

    fn check_contradictions(self) -> Result<(), Problem> {
        match contradiction(|name| Some(self.or_default(name).to_owned())) {
            None => Ok(()),
            Some((less, more)) => Err(Problem::value(
                less,
                self.or_default(less),
                format!("must not be more than {more}={}", self.or_default(more)),
            )),
        }
    }

    fn cluster_id(self) -> Result<Option<String>, Problem> {
        match self.get("cluster.id") {
            Some(id) if id.len() > CLUSTER_ID_MAX => Err(Problem::value(
                "cluster.id",
                id,
                format!("must have at most {CLUSTER_ID_MAX} bytes"),
            )),
            id => Ok(id.map(str::to_owned)),
        }
    }

    /// `log.dirs` and `metadata.log.dir`.
    fn directories(self) -> Result<(Vec<PathBuf>, PathBuf), Problem> {
        let key = if self.get("log.dirs").is_some() { "log.dirs" } else { "log.dir" };
        let given = self.or_default(key);
        let dirs = given.split(',').map(str::trim).filter(|dir| !dir.is_empty());
        let dirs: Vec<PathBuf> = dirs.map(PathBuf::from).collect();
        let first = dirs.first().ok_or_else(|| Problem::value(key, given, "names no directory"))?;
        if let Some(twice) = dirs
            .iter()
            .enumerate()
            .find(|(at, dir)| dirs.iter().take(*at).any(|other| other == *dir))
        {
            return Err(Problem::value(key, given, format!("names {} twice", twice.1.display())));
        }
        let metadata = self.get("metadata.log.dir").map_or_else(|| first.clone(), PathBuf::from);
        Ok((dirs, metadata))
    }
}

/// Reads `controller.quorum.voters`. One of several voters need not be this node, which observes
/// then.
fn parse_voters(given: &str, node_id: BrokerId) -> Result<BTreeMap<i32, (String, u16)>, Problem> {
    let bad = |why: String| Problem::value("controller.quorum.voters", given, why);
    let mut voters = BTreeMap::new();
    for voter in given.split(',').map(str::trim) {
        let parsed = voter.split_once('@').and_then(|(id, address)| {
            let id = id.trim().parse::<i32>().ok().filter(|id| *id >= 0)?;
            Some((id, parse_address(address)?))
        });
        let (id, address) =
            parsed.ok_or_else(|| bad(format!("\"{voter}\" must be written id@host:port")))?;
        if voters.insert(id, address).is_some() {
            return Err(bad(format!("names {id} twice")));
        }
    }
    if voters.len() == 1 && !voters.contains_key(&node_id.0) {
        return Err(bad(format!("does not name this node; write {node_id}@localhost:9093")));
    }
    if !matches!(voters.len(), 1 | 3 | 5) {
        return Err(bad(format!("names {} voters; this version takes 1, 3 or 5", voters.len())));
    }
    Ok(voters)
}

fn parse_address(text: &str) -> Option<(String, u16)> {
    split_address(text).map(|(host, port)| (host.to_owned(), port))
}

/// Two keys of which the first must not be more than the second, and is.
fn contradiction(
    value: impl Fn(&'static str) -> Option<String>,
) -> Option<(&'static str, &'static str)> {
    let number =
        |name| value(name).and_then(|value| value.trim().parse::<i64>().ok()).unwrap_or_default();
    [
        ("group.min.session.timeout.ms", "group.max.session.timeout.ms"),
        ("log.cleaner.min.compaction.lag.ms", "log.cleaner.max.compaction.lag.ms"),
        ("replica.fetch.wait.max.ms", "replica.socket.timeout.ms"),
        ("replica.fetch.wait.max.ms", "replica.lag.time.max.ms"),
    ]
    .into_iter()
    .find(|(less, more)| number(less) > number(more))
}

fn parse_admin(
    value: &str,
    is_set: bool,
    listeners: &[Endpoint],
) -> Result<Option<(String, u16, bool)>, Problem> {
    if value.eq_ignore_ascii_case("none") {
        return Ok(None);
    }
    let bad = |why: &str| Problem::value("admin.listener", value, why);
    let (host, port) = parse_address(value)
        .ok_or_else(|| bad("must be host:port (the host may be empty) or none"))?;
    if let Some(taken) = port_taken(listeners, &host, port).filter(|_| is_set) {
        return Err(bad(&taken));
    }
    Ok(Some((host, port, is_set)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK_START: &str = "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.bootstrap.servers=localhost:9093\nlisteners=PLAINTEXT://:9092,CONTROLLER://:9093\ninter.broker.listener.name=PLAINTEXT\nadvertised.listeners=PLAINTEXT://localhost:9092,CONTROLLER://localhost:9093\ncontroller.listener.names=CONTROLLER\nlistener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL\nnum.network.threads=3\nnum.io.threads=8\nsocket.send.buffer.bytes=102400\nsocket.receive.buffer.bytes=102400\nsocket.request.max.bytes=104857600\nlog.dirs=/tmp/kraft-combined-logs\nnum.partitions=1\nnum.recovery.threads.per.data.dir=1\noffsets.topic.replication.factor=1\nshare.coordinator.state.topic.replication.factor=1\nshare.coordinator.state.topic.min.isr=1\ntransaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\nlog.retention.hours=168\nlog.segment.bytes=1073741824\nlog.retention.check.interval.ms=300000\n";

    fn refused(change: &str) -> String {
        Config::parse(&format!("{QUICK_START}{change}\n")).unwrap_err().to_string()
    }

    #[test]
    fn kafkas_quick_start_file_is_taken_as_it_is() {
        let config = Config::parse(QUICK_START).unwrap();
        assert_eq!(config.node_id, BrokerId(1));
        assert_eq!(
            config.listeners.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["PLAINTEXT://:9092"]
        );
        assert_eq!(
            config.advertised.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["PLAINTEXT://localhost:9092"]
        );
        assert_eq!((config.controller.port, config.log_dirs.len()), (9093, 1));
        let moved = Config::parse(&format!("{QUICK_START}admin.listener=[::1]:9645\n")).unwrap();
        assert_eq!(moved.admin, Some(("::1".to_owned(), 9645, true)));
        let warned: Vec<&str> =
            config.warnings().iter().map(|warning| warning.key.as_str()).collect();
        let others = "num.recovery.threads.per.data.dir share.coordinator.state.topic.min.isr \
            share.coordinator.state.topic.replication.factor transaction.state.log.min.isr \
            transaction.state.log.replication.factor";
        assert_eq!(warned.join(" "), others, "and not of those that have their default");
    }

    #[test]
    fn voters_are_read_with_their_addresses() {
        let voters = "controller.quorum.voters=3@[::1]:9095, 1@a:9093,2@b:9094\n";
        let config = Config::parse(&format!("{QUICK_START}{voters}")).unwrap();
        assert!(config.has_several_nodes());
        let voter = |id, host: &str, port| (id, (host.to_owned(), port));
        let expected = [voter(1, "a", 9093), voter(2, "b", 9094), voter(3, "::1", 9095)];
        assert_eq!(config.voters, BTreeMap::from(expected));
        let alone = Config::parse(QUICK_START).unwrap();
        assert_eq!(alone.voters, BTreeMap::from([voter(1, "localhost", 9093)]));
        assert!(alone.quorum_servers.is_empty() && !alone.has_several_nodes());
    }

    /// A node that is no voter finds those that there are, and says where it is reached.
    #[test]
    fn a_node_that_joins_a_cluster_is_none_of_its_founders() {
        let text = |more: &str| {
            let base = QUICK_START.replace("CONTROLLER://localhost", "CONTROLLER://me");
            Config::parse(&format!("{base}{more}\n")).unwrap()
        };
        let joins = text("controller.quorum.bootstrap.servers=a:9093,[::1]:9094");
        let servers = [("a".to_owned(), 9093), ("::1".to_owned(), 9094)];
        assert_eq!((joins.voters.len(), joins.quorum_servers.as_slice()), (0, &servers[..]));
        assert_eq!(joins.controller_reached_at(), ("me".to_owned(), 9093));
        assert!(joins.has_several_nodes());
        for other in ["a:9093", "me:9094", "localhost:9094"] {
            let other = text(&format!("controller.quorum.bootstrap.servers={other}"));
            assert_eq!((other.voters.len(), other.quorum_servers.len()), (0, 1));
        }
        let among = text("controller.quorum.voters=4@a:1,2@b:1,3@c:1");
        assert_eq!((among.voters.len(), among.quorum_servers.len()), (3, 0));
    }

    /// As Kafka's and other people's files for a node alone, whose machine has several names.
    #[test]
    fn one_server_is_this_node_unless_it_says_that_it_is_elsewhere() {
        let alone = |more: &str| {
            let config = Config::parse(&format!("{QUICK_START}{more}\n")).unwrap();
            assert_eq!(config.quorum_servers.is_empty(), !config.has_several_nodes());
            !config.has_several_nodes()
        };
        let at = |own: &str| {
            format!(
                "controller.quorum.bootstrap.servers=kafka-1:9093\nlisteners=PLAINTEXT://:9092,\
                 CONTROLLER://{own}:9093\nadvertised.listeners=PLAINTEXT://kafka-2:9092"
            )
        };
        for own in ["", "0.0.0.0", "localhost", "[::1]", "kafka-1"] {
            assert!(alone(&at(own)), "{own}");
        }
        assert!(!alone(&at("kafka-2")));
        for own in ["localhost:9093", "127.0.0.1:9093"] {
            let own = format!(
                "controller.quorum.bootstrap.servers={own}\n\
                 advertised.listeners=PLAINTEXT://me:9092,CONTROLLER://me:9093"
            );
            assert!(alone(&own));
        }
    }

    /// A file of an earlier version starts, whatever it says, also where it asks to be refused for
    /// what nothing acts on.
    #[test]
    fn the_key_that_several_nodes_needed_is_a_warning() {
        let voters = "controller.quorum.voters=1@a:1,2@b:1,3@c:1\n";
        for value in ["true", "false"] {
            let text = format!(
                "process.roles=broker,controller\nnode.id=1\n{voters}config.strict=true\n\
                 controller.listener.names=CONTROLLER\nlisteners=PLAINTEXT://:9092,\
                 CONTROLLER://:9093\nunstable.several.nodes.enable={value}\n"
            );
            let config = Config::parse(&text).unwrap();
            assert_eq!((config.voters.len(), config.has_several_nodes()), (3, true));
            let said: Vec<String> = config.warnings().iter().map(ToString::to_string).collect();
            assert_eq!(
                said,
                ["unstable.several.nodes.enable has no effect: several nodes form a cluster \
                  without it; remove it"]
            );
        }
        let alone = format!("{QUICK_START}unstable.several.nodes.enable=true\n");
        assert!(!Config::parse(&alone).unwrap().has_several_nodes());
    }

    /// As bitnami's and Kafka's files that advertise no host: localhost is the other broker to each
    /// of them.
    #[test]
    fn where_no_host_is_told_a_broker_is_reached_where_its_voter_is() {
        let several = "controller.quorum.voters=1@kafka-1:9093,2@kafka-2:9093,3@kafka-3:9093\n";
        let alone = "controller.quorum.voters=1@kafka-1:9093\n";
        let told = |voters: &str, advertised: &str| {
            let text = format!("{QUICK_START}{voters}advertised.listeners={advertised}\n");
            let config = Config::parse(&text).unwrap();
            (config.advertised[0].to_string(), config.advertises_localhost())
        };
        let at = |host: &str| format!("PLAINTEXT://{host}:9092");
        for advertised in ["", "PLAINTEXT://:9092"] {
            assert_eq!(told(several, advertised), (at("kafka-1"), false), "{advertised}");
            assert_eq!(told(alone, advertised), (at("localhost"), true), "{advertised}");
        }
        assert_eq!(told(several, "PLAINTEXT://here:9092"), (at("here"), false));
        assert_eq!(told(alone, "PLAINTEXT://localhost:9092"), (at("localhost"), false));
    }

    #[test]
    fn impossible_values_are_refused_with_name_and_way_out() {
        for (change, said) in [
            ("process.roles=broker", "process.roles=broker: this version runs both roles"),
            ("listeners=PLAINTEXT://:9092", "lacks the controller listener"),
            ("listeners=CONTROLLER://:9093", "has no listener for clients"),
            ("advertised.listeners=OTHER://x:1", "OTHER is not in listeners"),
            ("advertised.listeners=PLAINTEXT://0.0.0.0:9092", "cannot be connected to"),
            ("controller.quorum.voters=1@a:1,2@b:1", "names 2 voters; this version takes 1, 3"),
            ("controller.quorum.voters=1@a:1,2@b:1,2@c:1", "names 2 twice"),
            ("controller.quorum.voters=1@a:1,2@b,3@c:1", "\"2@b\" must be written id@host:port"),
            ("controller.quorum.bootstrap.servers=a", "must be written host:port"),
            ("controller.quorum.voters=2@a:1", "does not name this node"),
            ("node.id=-1", "node.id=-1: must be a whole number from 0"),
            ("admin.listener=here", "host:port"),
            ("admin.listener=127.0.0.1:9092", "uses port 9092, which listener PLAINTEXT"),
            ("log.dirs=/a,/b/, /b", "log.dirs=/a,/b/, /b: names /b twice"),
            (
                "broker.session.timeout.ms=2000",
                "broker.session.timeout.ms=2000: must be more than \
                 broker.heartbeat.interval.ms=2000",
            ),
            ("listener.security.protocol.map=PLAINTEXT:SSL,CONTROLLER:PLAINTEXT", "asks for SSL"),
            ("group.coordinator.rebalance.protocols=consumer", "must hold classic"),
            (
                "group.min.session.timeout.ms=1800001",
                "must not be more than group.max.session.timeout.ms=1800000",
            ),
            (
                "log.cleaner.max.compaction.lag.ms=5\nlog.cleaner.min.compaction.lag.ms=6",
                "log.cleaner.min.compaction.lag.ms=6: must not be more",
            ),
            (
                "config.strict=true\nno.such.key=1",
                "no.such.key: has no effect: no setting has this name",
            ),
            (
                "authorizer.class.name=x",
                "authorizer.class.name is set: this version has no authorizer",
            ),
        ] {
            let message = refused(change);
            assert!(message.contains(said), "{change}: {message}");
        }
    }
}
