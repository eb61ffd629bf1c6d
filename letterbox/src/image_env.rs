//! What the container image starts with: environment variables and a mounted property file become
//! configuration pairs.
//!
//! The rules are the ones of the `apache/kafka` image, so that a compose file or a Testcontainers
//! module works with only the image's name changed: `KAFKA_NODE_ID` is `node.id`, two underscores
//! are one underscore, three are a dash; variables win over `/mnt/shared/config/server.properties`;
//! `listeners` follow from `advertised.listeners`. Variables of the `bitnami/kafka`, `cp-kafka` and
//! `wurstmeister/kafka` images are accepted where they mean the same, and each such variable is
//! named in a [`Note`].
//!
//! One difference, on purpose: the `apache/kafka` image drops all of its defaults as soon as one
//! variable is set, and a single node then waits for ever for three replicas of
//! `__consumer_offsets`. Here each missing key keeps its default.
//!
//! Everything here is pure: no variable is read, no file is opened. Values are checked by the
//! configuration table, not here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use letterbox_broker::config::{Config, ConfigError, Problem};
use letterbox_env::split_listener;

/// Where the image keeps data unless `log.dirs` says otherwise; a volume of the image.
pub(crate) const DATA_DIR: &str = "/var/lib/kafka/data";

/// Where a folder with a `server.properties` may be mounted; a volume of the image.
pub(crate) const MOUNTED_CONFIG: &str = "/mnt/shared/config/server.properties";

/// The configuration of one container, with where each value came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageConfig {
    /// `server.properties` names and values, complete: a broker starts from these alone.
    pub(crate) properties: BTreeMap<String, Property>,
    /// The cluster id that was asked for (`CLUSTER_ID`); `None` lets the first start make one.
    pub(crate) cluster_id: Option<String>,
    /// Topics to create once the broker is ready (`KAFKA_CREATE_TOPICS`), in the order given.
    pub(crate) topics: Vec<TopicToCreate>,
    /// What a person should know: what was mapped from another image's spelling, and what has no
    /// effect. One line each.
    pub(crate) notes: Vec<Note>,
    /// What the oldest images know instead of `advertised.listeners`.
    advertised_host: Option<String>,
    advertised_port: Option<String>,
}

/// A value and its source, so that a refusal can name the variable that has to be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Property {
    /// The value as it was written.
    pub(crate) value: String,
    /// Who wrote it.
    pub(crate) origin: Origin,
}

/// Who gave a property its value. Displayed in errors: "KAFKA_NODE_ID", "the mounted
/// server.properties", "the image".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An environment variable, by name.
    Variable(String),
    /// The mounted property file.
    File,
    /// The image's own default.
    Image,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Variable(name) => f.write_str(name),
            Origin::File => f.write_str("the mounted server.properties"),
            Origin::Image => f.write_str("the image"),
        }
    }
}

/// One entry of `KAFKA_CREATE_TOPICS`: `NAME:PARTITIONS:REPLICATION_FACTOR[:CLEANUP_POLICY]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicToCreate {
    /// The topic's name, not yet checked against Kafka's rules for names.
    pub(crate) name: String,
    /// At least 1.
    pub(crate) partitions: i32,
    /// At least 1.
    pub(crate) replication_factor: i16,
    /// `cleanup.policy`, when given.
    pub(crate) cleanup_policy: Option<String>,
}

/// Something to say once at start. Names variables, never values: a value may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Note {
    /// A variable in another image's spelling was taken as this property.
    Mapped {
        /// The variable.
        variable: String,
        /// What it was taken as.
        property: String,
    },
    /// A variable that means something only elsewhere.
    NoEffect {
        /// The variable.
        variable: String,
        /// Why.
        reason: NoEffect,
    },
}

/// Why a variable changes nothing here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoEffect {
    /// It sets an option of a Java virtual machine or of log4j.
    Jvm,
    /// It points to ZooKeeper.
    ZooKeeper,
    /// It belongs to Confluent's own components.
    Confluent,
    /// It steers another image's start script.
    StartScript,
    /// Kubernetes puts it into every pod for a service whose name begins with "kafka".
    KubernetesService,
    /// It holds a command whose output would be a value.
    Command,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Mapped { variable, property } => write!(f, "{variable} is taken as {property}"),
            Note::NoEffect { variable, reason } => write!(f, "{variable} has no effect: {reason}"),
        }
    }
}

impl fmt::Display for NoEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NoEffect::Jvm => "there is no Java virtual machine here",
            NoEffect::ZooKeeper => "metadata is kept by the brokers' own quorum, without ZooKeeper",
            NoEffect::Confluent => "it belongs to a component of Confluent Platform",
            NoEffect::StartScript => "it configures the start script of another image",
            NoEffect::KubernetesService => {
                "Kubernetes made it for a service of that name; it is not configuration"
            }
            NoEffect::Command => {
                "no commands are run; write the value itself into the KAFKA_* variable"
            }
        })
    }
}

/// A set of variables that cannot be turned into one configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ImageEnvError {
    /// Two variables mean the same and differ.
    #[error("{first} and {second} both set {property}, to different values; remove one of them")]
    Conflict {
        /// A variable.
        first: String,
        /// Another variable.
        second: String,
        /// What both mean.
        property: String,
    },
    /// A controller has no clients, so there is nothing to advertise to them.
    #[error(
        "KAFKA_ADVERTISED_LISTENERS is set, but process.roles is controller: a controller \
         advertises nothing; remove the variable"
    )]
    AdvertisedOnController,
    /// An entry of `KAFKA_CREATE_TOPICS` that is not
    /// `NAME:PARTITIONS:REPLICATION_FACTOR[:CLEANUP_POLICY]`.
    #[error(
        "KAFKA_CREATE_TOPICS: {entry:?} is not \
         NAME:PARTITIONS:REPLICATION_FACTOR[:CLEANUP_POLICY]: {problem}"
    )]
    CreateTopics {
        /// The entry as written.
        entry: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Why the settings of a container are refused, and where each was set.
#[derive(Debug, thiserror::Error)]
#[error("{refused}{origins}")]
pub(crate) struct RefusedEnvironment {
    refused: ConfigError,
    origins: String,
}

/// Makes the configuration of one container from its environment and the mounted property file, if
/// there is one.
///
/// `mounted` holds the file's pairs in order; a later pair wins over an earlier one of the same
/// name, as in Kafka.
///
/// # Errors
/// [`ImageEnvError`] when the variables contradict each other or ask for something that cannot be
/// had. Values of properties are not checked here.
///
/// Source: the `apache/kafka` image's usage guide; KIP-975.
pub(crate) fn from_environment(
    environment: &BTreeMap<String, String>,
    mounted: &[(String, String)],
) -> Result<ImageConfig, ImageEnvError> {
    let mut config = ImageConfig::default();
    for (name, value) in mounted {
        config.set(name, value, Origin::File);
    }
    for (variable, value) in environment {
        config.take(variable, value)?;
    }
    config.settle_identity()?;
    config.fill_listeners();
    config.fill_defaults();
    Ok(config)
}

/// What a variable means.
enum Meaning {
    Property(String),
    /// As `Property`, in a spelling that the `apache/kafka` image does not know.
    Alias(String),
    ClusterId,
    Topics,
    AdvertisedHost,
    AdvertisedPort,
    None(NoEffect),
    /// Not for us: no note either.
    Foreign,
}

fn meaning_of(variable: &str, value: &str) -> Meaning {
    match variable {
        "CLUSTER_ID" | "KAFKA_CLUSTER_ID" | "KAFKA_KRAFT_CLUSTER_ID" => return Meaning::ClusterId,
        "KAFKA_CREATE_TOPICS" => return Meaning::Topics,
        "KAFKA_ZOOKEEPER_CONNECT" | "KAFKA_CFG_ZOOKEEPER_CONNECT" => {
            return Meaning::None(NoEffect::ZooKeeper);
        }
        "KAFKA_BROKER_ID" | "KAFKA_CFG_BROKER_ID" => return Meaning::Alias("node.id".to_owned()),
        "KAFKA_ADVERTISED_HOST_NAME" => return Meaning::AdvertisedHost,
        "KAFKA_ADVERTISED_PORT" if !is_service_link(variable, value) => {
            return Meaning::AdvertisedPort;
        }
        "HOSTNAME_COMMAND" | "PORT_COMMAND" | "BROKER_ID_COMMAND" | "RACK_COMMAND" => {
            return Meaning::None(NoEffect::Command);
        }
        _ => {}
    }
    let Some(rest) = variable.strip_prefix("KAFKA_").filter(|rest| !rest.is_empty()) else {
        return Meaning::Foreign;
    };
    if is_service_link(variable, value) {
        return Meaning::None(NoEffect::KubernetesService);
    }
    if rest.starts_with("ZOOKEEPER_") {
        return Meaning::None(NoEffect::ZooKeeper);
    }
    if rest.starts_with("CONFLUENT_") {
        return Meaning::None(NoEffect::Confluent);
    }
    if JVM_PREFIXES.iter().any(|prefix| rest.starts_with(prefix)) {
        return Meaning::None(NoEffect::Jvm);
    }
    if START_SCRIPT.contains(&rest) {
        return Meaning::None(NoEffect::StartScript);
    }
    match rest.strip_prefix("CFG_") {
        Some(bitnami) => Meaning::Alias(property_name(bitnami)),
        None => Meaning::Property(property_name(rest)),
    }
}

/// Beginnings, without `KAFKA_`, of variables that only a Java virtual machine or log4j reads.
const JVM_PREFIXES: [&str; 8] =
    ["HEAP_OPT", "JMX_", "JVM_", "GC_LOG_", "LOG4J_", "TOOLS_LOG4J_", "OPTS", "DEBUG"];

/// Variables, without `KAFKA_`, that only another image's start script reads. Users and passwords
/// act only where a listener asks for SASL, which is refused by itself.
const START_SCRIPT: [&str; 26] = [
    "AUTO_DISCOVER",
    "BASE_DIR",
    "CERTIFICATE_PASSWORD",
    "CLIENT_LISTENER_NAME",
    "CLIENT_PASSWORDS",
    "CLIENT_USERS",
    "CONF_DIR",
    "CONTROLLER_PASSWORD",
    "CONTROLLER_USER",
    "DAEMON_GROUP",
    "DAEMON_USER",
    "DATA_DIR",
    "ENABLE_KRAFT",
    "EXTRA_FLAGS",
    "HOME",
    "INTER_BROKER_PASSWORD",
    "INTER_BROKER_USER",
    "KRAFT_BOOTSTRAP_SCRAM_USERS",
    "MOUNTED_CONF_DIR",
    "PRE_START",
    "SKIP_KRAFT_STORAGE_INIT",
    "TLS_CLIENT_AUTH",
    "TLS_TYPE",
    "TOOL_HOME",
    "VERSION",
    "VOLUME_DIR",
];

/// `OFFSETS_TOPIC_NUM_PARTITIONS` → `offsets.topic.num.partitions`; `__` → `_`, `___` → `-`.
fn property_name(rest: &str) -> String {
    rest.to_lowercase().replace('_', ".").replace("...", "-").replace("..", "_")
}

/// Whether Kubernetes made this variable for a service (its "docker links" variables):
/// `KAFKA_SERVICE_HOST`, `KAFKA_PORT=tcp://…`, `KAFKA_PORT_9092_TCP_ADDR`, and the same for
/// `kafka-bootstrap` and so on.
fn is_service_link(variable: &str, value: &str) -> bool {
    let link =
        |text: &str| ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme));
    if variable.ends_with("_SERVICE_HOST") || variable.contains("_SERVICE_PORT") {
        return true;
    }
    if variable.ends_with("_PORT") && link(value) {
        return true;
    }
    variable.split("_PORT_").skip(1).any(|tail| {
        let mut parts = tail.split('_');
        let port = parts
            .next()
            .is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
        port && parts.next().is_some_and(|protocol| ["TCP", "UDP", "SCTP"].contains(&protocol))
    })
}

impl ImageConfig {
    fn get(&self, name: &str) -> Option<&str> {
        self.properties.get(name).map(|property| property.value.as_str())
    }

    /// As `get`, where an empty value counts as none: compose writes `${LISTENERS:-}` as an empty
    /// string.
    fn get_filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.trim().is_empty())
    }

    fn set(&mut self, name: &str, value: &str, origin: Origin) {
        self.properties.insert(name.to_owned(), Property { value: value.to_owned(), origin });
    }

    /// Makes the configuration that a broker starts with.
    ///
    /// # Errors
    /// Every problem, and which variable each key was set by.
    pub(crate) fn config(&self) -> Result<Config, RefusedEnvironment> {
        let id = self.cluster_id.iter().map(|id| ("cluster.id".to_owned(), id.clone()));
        let pairs = self
            .properties
            .iter()
            .map(|(key, property)| (key.clone(), property.value.clone()))
            .chain(id);
        let origin = |key: &str| Some(self.properties.get(key)?.origin.clone());
        match Config::from_pairs(pairs) {
            Ok(mut config) => {
                config.name_variables(|key| match origin(key)? {
                    Origin::Variable(variable) => Some(variable),
                    Origin::File | Origin::Image => None,
                });
                Ok(config)
            }
            Err(refused) => {
                let keys: BTreeSet<&str> = refused.0.iter().filter_map(Problem::key).collect();
                let origins = keys
                    .into_iter()
                    .filter_map(|key| Some(format!("\n{key} was set by {}", origin(key)?)))
                    .collect();
                Err(RefusedEnvironment { refused, origins })
            }
        }
    }

    fn default_to(&mut self, name: &str, value: &str) {
        if self.get_filled(name).is_none() {
            self.set(name, value, Origin::Image);
        }
    }

    fn take(&mut self, variable: &str, value: &str) -> Result<(), ImageEnvError> {
        match meaning_of(variable, value) {
            Meaning::Property(property) => self.take_property(variable, &property, value),
            Meaning::Alias(property) => {
                self.note(Note::Mapped {
                    variable: variable.to_owned(),
                    property: property.clone(),
                });
                self.take_property(variable, &property, value)
            }
            Meaning::ClusterId => self.take_cluster_id(variable, value),
            Meaning::Topics => {
                self.topics = parse_topics(value)?;
                Ok(())
            }
            Meaning::None(reason) => {
                self.note(Note::NoEffect { variable: variable.to_owned(), reason });
                Ok(())
            }
            Meaning::AdvertisedHost | Meaning::AdvertisedPort if value.trim().is_empty() => Ok(()),
            Meaning::AdvertisedHost => {
                self.advertised_host = Some(value.trim().to_owned());
                Ok(())
            }
            Meaning::AdvertisedPort => {
                self.advertised_port = Some(value.trim().to_owned());
                Ok(())
            }
            Meaning::Foreign => Ok(()),
        }
    }

    fn note(&mut self, note: Note) {
        self.notes.push(note);
    }

    fn take_property(
        &mut self,
        variable: &str,
        property: &str,
        value: &str,
    ) -> Result<(), ImageEnvError> {
        if let Some(Property { value: other, origin: Origin::Variable(first) }) =
            self.properties.get(property)
            && other != value
        {
            // Compose writes what is not set as an empty text, and Kafka's -1 asks for an id that
            // is made up.
            let says_nothing = |value: &str| {
                matches!(value.trim(), "" | "-1")
                    && (property == "node.id" || value.trim().is_empty())
            };
            if says_nothing(value) {
                return Ok(());
            }
            if says_nothing(other) {
                self.set(property, value, Origin::Variable(variable.to_owned()));
                return Ok(());
            }
            return Err(ImageEnvError::Conflict {
                first: first.clone(),
                second: variable.to_owned(),
                property: property.to_owned(),
            });
        }
        self.set(property, value, Origin::Variable(variable.to_owned()));
        Ok(())
    }

    fn take_cluster_id(&mut self, variable: &str, value: &str) -> Result<(), ImageEnvError> {
        let value = value.trim();
        if value.is_empty() {
            return Ok(());
        }
        if variable != "CLUSTER_ID" {
            self.note(Note::Mapped {
                variable: variable.to_owned(),
                property: "CLUSTER_ID".to_owned(),
            });
        }
        match &self.cluster_id {
            Some(other) if other != value => Err(ImageEnvError::Conflict {
                first: "CLUSTER_ID".to_owned(),
                second: variable.to_owned(),
                property: "the cluster id".to_owned(),
            }),
            _ => {
                self.cluster_id = Some(value.to_owned());
                Ok(())
            }
        }
    }

    /// Who this process is: its roles and its id.
    fn settle_identity(&mut self) -> Result<(), ImageEnvError> {
        // Kafka's -1 asks for a number that is made up.
        for name in ["broker.id", "node.id"] {
            if self.get(name).is_some_and(|id| matches!(id.trim(), "" | "-1")) {
                self.properties.remove(name);
            }
        }
        if let Some(property) = self.properties.remove("broker.id")
            && self.get("node.id").is_none()
        {
            self.properties.insert("node.id".to_owned(), property);
        }
        self.default_to("process.roles", "broker,controller");
        // A quorum of one names its only node.
        let voter =
            self.get_filled("controller.quorum.voters").filter(|voters| !voters.contains(','));
        let id = voter
            .and_then(|voter| voter.split_once('@'))
            .map_or("1", |(id, _)| id)
            .trim()
            .to_owned();
        self.default_to("node.id", &id);
        if self.is_controller() && !self.is_broker() {
            if self.get_filled("advertised.listeners").is_some() {
                return Err(ImageEnvError::AdvertisedOnController);
            }
            self.properties.remove("advertised.listeners");
        }
        Ok(())
    }

    fn has_role(&self, role: &str) -> bool {
        self.get("process.roles")
            .is_some_and(|roles| roles.split(',').any(|each| each.trim() == role))
    }

    fn is_broker(&self) -> bool {
        self.has_role("broker")
    }

    fn is_controller(&self) -> bool {
        self.has_role("controller")
    }

    /// `listeners`, `advertised.listeners`, the controller's listener and the protocol map, as far
    /// as they are missing.
    fn fill_listeners(&mut self) {
        self.listen_the_old_way();
        self.advertise_the_old_way();
        let listeners_given = self.get_filled("listeners").is_some();
        let controllers_given = self.get_filled("controller.listener.names").is_some();
        let advertised = self.get_filled("advertised.listeners").map(str::to_owned);
        if !listeners_given && self.is_broker() {
            let listeners = advertised
                .as_deref()
                .map_or_else(|| "PLAINTEXT://:9092".to_owned(), listen_everywhere);
            self.set("listeners", &listeners, Origin::Image);
            if advertised.is_none() {
                self.set("advertised.listeners", "PLAINTEXT://localhost:9092", Origin::Image);
            }
        } else if advertised.is_none() {
            // Empty means unset: the broker then advertises what `listeners` says, as Kafka does.
            self.properties.remove("advertised.listeners");
        }
        if !self.is_controller() {
            return;
        }
        if !controllers_given {
            self.set("controller.listener.names", "CONTROLLER", Origin::Image);
        }
        if !listeners_given || !controllers_given {
            self.add_controller_listener();
        }
        if self.get_filled("controller.quorum.voters").is_none()
            && self.get_filled("controller.quorum.bootstrap.servers").is_none()
            && let Some(port) = self.controller_port()
        {
            let voter = format!("{}@localhost:{port}", self.get("node.id").unwrap_or("1"));
            self.set("controller.quorum.voters", &voter, Origin::Image);
        }
    }

    /// `port`, which the first images had, as `listeners`: the port of the one listener that
    /// clients are told of, if they are told of one.
    fn listen_the_old_way(&mut self) {
        if self.get_filled("listeners").is_some() || !self.is_broker() {
            return;
        }
        let Some(port) = self.get_filled("port").and_then(|port| port.trim().parse::<u16>().ok())
        else {
            return;
        };
        let mut advertised = endpoints(self.get_filled("advertised.listeners").unwrap_or_default());
        let first_two =
            (advertised.next().map(|first| first.name.to_owned()), advertised.next().is_some());
        drop(advertised);
        let name = match first_two {
            (None, _) => "PLAINTEXT".to_owned(),
            (Some(only), false) => only,
            // Which of them it belongs to is not said; they name their ports.
            (Some(_), true) => return,
        };
        let listeners = format!("{name}://:{port}");
        let origin =
            self.properties.remove("port").map_or(Origin::Image, |property| property.origin);
        if let Origin::Variable(variable) = &origin {
            self.note(Note::Mapped {
                variable: variable.clone(),
                property: format!("listeners={listeners}"),
            });
        }
        self.set("listeners", &listeners, origin);
        if self.get_filled("advertised.listeners").is_none()
            && self.advertised_host.is_none()
            && self.advertised_port.is_none()
        {
            self.set(
                "advertised.listeners",
                &format!("PLAINTEXT://localhost:{port}"),
                Origin::Image,
            );
        }
    }

    /// `advertised.host.name` and `advertised.port`, which the first images had, as
    /// `advertised.listeners`.
    fn advertise_the_old_way(&mut self) {
        let (host, port) = (self.advertised_host.take(), self.advertised_port.take());
        if host.is_none() && port.is_none() || self.get_filled("advertised.listeners").is_some() {
            return;
        }
        let controller = self.controller_name();
        let listeners = self.get_filled("listeners").unwrap_or_default();
        let first = endpoints(listeners).find(|endpoint| endpoint.name != controller);
        let name = first.as_ref().map_or("PLAINTEXT", |endpoint| endpoint.name);
        let port = port
            .or_else(|| first.as_ref()?.port.map(|port| port.to_string()))
            .unwrap_or_else(|| "9092".to_owned());
        let advertised = format!("{name}://{}:{port}", host.as_deref().unwrap_or("localhost"));
        let variable =
            if host.is_some() { "KAFKA_ADVERTISED_HOST_NAME" } else { "KAFKA_ADVERTISED_PORT" };
        self.note(Note::Mapped {
            variable: variable.to_owned(),
            property: format!("advertised.listeners={advertised}"),
        });
        if self.get_filled("listeners").is_none() {
            self.set("listeners", "PLAINTEXT://:9092", Origin::Image);
        }
        self.set("advertised.listeners", &advertised, Origin::Variable(variable.to_owned()));
    }

    fn controller_name(&self) -> String {
        let names = self.get("controller.listener.names").unwrap_or("CONTROLLER");
        names.split(',').next().unwrap_or(names).trim().to_owned()
    }

    fn controller_port(&self) -> Option<u16> {
        let name = self.controller_name();
        endpoints(self.get("listeners")?).find(|endpoint| endpoint.name == name)?.port
    }

    /// Adds the controller's listener on the first port from 9093 that no other listener has, and
    /// gives its name a protocol.
    fn add_controller_listener(&mut self) {
        let name = self.controller_name();
        let listeners = self.get("listeners").unwrap_or_default().to_owned();
        if endpoints(&listeners).any(|endpoint| endpoint.name == name) {
            return;
        }
        let taken: Vec<u16> = endpoints(&listeners).filter_map(|endpoint| endpoint.port).collect();
        let port = (9093..=u16::MAX).find(|port| !taken.contains(port)).unwrap_or(9093);
        let separator = if listeners.trim().is_empty() { "" } else { "," };
        self.set("listeners", &format!("{listeners}{separator}{name}://:{port}"), Origin::Image);
        if let Some(map) = self.get_filled("listener.security.protocol.map")
            && !map.split(',').any(|pair| pair.trim().split(':').next() == Some(name.as_str()))
        {
            let map = format!("{map},{name}:PLAINTEXT");
            self.set("listener.security.protocol.map", &map, Origin::Image);
        }
    }

    fn fill_defaults(&mut self) {
        if self.get_filled("log.dirs").is_none() && self.get_filled("log.dir").is_none() {
            self.set("log.dirs", DATA_DIR, Origin::Image);
        }
        if self.is_single_node() {
            for name in SINGLE_NODE {
                self.default_to(name, "1");
            }
        }
    }

    /// Broker and controller in one, and no second voter known: more than one replica could never
    /// be had.
    fn is_single_node(&self) -> bool {
        let one = |name: &str| self.get_filled(name).is_none_or(|list| !list.contains(','));
        self.is_broker()
            && self.is_controller()
            && one("controller.quorum.voters")
            && one("controller.quorum.bootstrap.servers")
    }
}

/// Internal topics of a broker that is alone have one replica. Those of transactions and share
/// groups join this list when the broker offers them.
const SINGLE_NODE: [&str; 1] = ["offsets.topic.replication.factor"];

/// One `NAME://HOST:PORT`; the port is `None` when it is not a number, which the configuration
/// table then refuses.
struct Endpoint<'a> {
    name: &'a str,
    port: Option<u16>,
}

fn endpoints(list: &str) -> impl Iterator<Item = Endpoint<'_>> {
    list.split(',').filter_map(|each| {
        let (name, _) = each.trim().split_once("://")?;
        Some(Endpoint { name, port: split_listener(each).ok().map(|(_, _, port)| port) })
    })
}

/// `PLAINTEXT://kafka:9092` → `PLAINTEXT://0.0.0.0:9092`, for each listener of the list.
fn listen_everywhere(advertised: &str) -> String {
    let each = |listener: &str| match split_listener(listener) {
        Ok((name, _, port)) => format!("{name}://0.0.0.0:{port}"),
        Err(_) => listener.trim().to_owned(),
    };
    advertised.split(',').map(each).collect::<Vec<_>>().join(",")
}

/// `orders:3:1,audit:1:1:compact` as the wurstmeister image reads it; entries may also be parted by
/// line ends.
fn parse_topics(list: &str) -> Result<Vec<TopicToCreate>, ImageEnvError> {
    let entries = list.split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty());
    entries.map(parse_topic).collect()
}

fn parse_topic(entry: &str) -> Result<TopicToCreate, ImageEnvError> {
    let refuse = |problem| ImageEnvError::CreateTopics { entry: entry.to_owned(), problem };
    let mut parts = entry.split(':').map(str::trim);
    let name =
        parts.next().filter(|name| !name.is_empty()).ok_or_else(|| refuse("the name is empty"))?;
    let partitions = parts.next().ok_or_else(|| refuse("the number of partitions is missing"))?;
    let partitions = partitions.parse().ok().filter(|count| *count >= 1);
    let factor = parts.next().ok_or_else(|| refuse("the replication factor is missing"))?;
    let factor = factor.parse().ok().filter(|factor| *factor >= 1);
    let topic = TopicToCreate {
        name: name.to_owned(),
        partitions: partitions
            .ok_or_else(|| refuse("the number of partitions is not a number of at least 1"))?,
        replication_factor: factor
            .ok_or_else(|| refuse("the replication factor is not a number of at least 1"))?,
        cleanup_policy: parts.next().filter(|policy| !policy.is_empty()).map(str::to_owned),
    };
    match parts.next() {
        Some(_) => Err(refuse("there are more than four parts")),
        None => Ok(topic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn configured(pairs: &[(&str, &str)]) -> ImageConfig {
        from_environment(&environment(pairs), &[]).expect("a configuration")
    }

    fn refused(pairs: &[(&str, &str)]) -> String {
        from_environment(&environment(pairs), &[]).expect_err("a refusal").to_string()
    }

    /// Every row of `expected` holds; a `-` says that the property is absent.
    fn check(config: &ImageConfig, expected: &[(&str, &str)]) {
        for (name, value) in expected {
            assert_eq!(config.get(name).unwrap_or("-"), *value, "{name}");
        }
    }

    #[test]
    fn nothing_given_is_a_single_node_on_port_9092() {
        let config = configured(&[("PATH", "/bin"), ("HOSTNAME", "abc"), ("LETTERBOX_X", "1")]);
        let text: Vec<String> = config
            .properties
            .iter()
            .map(|(name, property)| format!("{name}={}", property.value))
            .collect();
        assert_eq!(
            text,
            [
                "advertised.listeners=PLAINTEXT://localhost:9092",
                "controller.listener.names=CONTROLLER",
                "controller.quorum.voters=1@localhost:9093",
                "listeners=PLAINTEXT://:9092,CONTROLLER://:9093",
                "log.dirs=/var/lib/kafka/data",
                "node.id=1",
                "offsets.topic.replication.factor=1",
                "process.roles=broker,controller",
            ]
        );
        assert_eq!(config.cluster_id, None);
        assert!(config.notes.is_empty() && config.topics.is_empty());
    }

    #[test]
    fn names_follow_the_rules_for_underscores() {
        let cases = [
            ("ABC_DEF", "abc.def"),
            ("ABC__DEF", "abc_def"),
            ("ABC___DEF", "abc-def"),
            ("ABC____DEF", "abc-.def"),
            ("LISTENER_NAME_SASL__SSL_PLAIN_SASL", "listener.name.sasl_ssl.plain.sasl"),
        ];
        for (rest, property) in cases {
            assert_eq!(property_name(rest), property);
        }
    }

    #[test]
    fn one_variable_keeps_the_other_defaults() {
        let config = configured(&[("KAFKA_NUM_PARTITIONS", "3")]);
        check(
            &config,
            &[
                ("num.partitions", "3"),
                ("offsets.topic.replication.factor", "1"),
                ("advertised.listeners", "PLAINTEXT://localhost:9092"),
                ("log.dirs", "/var/lib/kafka/data"),
            ],
        );
        assert_eq!(
            config.properties["num.partitions"].origin,
            Origin::Variable("KAFKA_NUM_PARTITIONS".to_owned())
        );
        assert_eq!(config.properties["log.dirs"].origin, Origin::Image);
    }

    #[test]
    fn listeners_follow_from_what_is_advertised() {
        let config = configured(&[(
            "KAFKA_ADVERTISED_LISTENERS",
            "PLAINTEXT://kafka:9092,HOST://[::1]:19092",
        )]);
        check(
            &config,
            &[
                ("listeners", "PLAINTEXT://0.0.0.0:9092,HOST://0.0.0.0:19092,CONTROLLER://:9093"),
                ("advertised.listeners", "PLAINTEXT://kafka:9092,HOST://[::1]:19092"),
            ],
        );
    }

    #[test]
    fn the_controller_takes_a_free_port_and_a_place_in_the_map() {
        let config = configured(&[
            ("KAFKA_ADVERTISED_LISTENERS", "A://kafka:9093,B://localhost:9094"),
            ("KAFKA_LISTENER_SECURITY_PROTOCOL_MAP", "A:PLAINTEXT,B:PLAINTEXT"),
            ("KAFKA_NODE_ID", "7"),
        ]);
        check(
            &config,
            &[
                ("listeners", "A://0.0.0.0:9093,B://0.0.0.0:9094,CONTROLLER://:9095"),
                ("listener.security.protocol.map", "A:PLAINTEXT,B:PLAINTEXT,CONTROLLER:PLAINTEXT"),
                ("controller.quorum.voters", "7@localhost:9095"),
            ],
        );
    }

    #[test]
    fn the_compose_example_of_apache_kafka_is_taken_as_it_is() {
        let pairs = [
            ("KAFKA_NODE_ID", "1"),
            (
                "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP",
                "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PLAINTEXT_HOST:PLAINTEXT",
            ),
            (
                "KAFKA_ADVERTISED_LISTENERS",
                "PLAINTEXT_HOST://localhost:9092,PLAINTEXT://broker:19092",
            ),
            ("KAFKA_PROCESS_ROLES", "broker,controller"),
            ("KAFKA_CONTROLLER_QUORUM_VOTERS", "1@broker:29093"),
            ("KAFKA_LISTENERS", "CONTROLLER://:29093,PLAINTEXT_HOST://:9092,PLAINTEXT://:19092"),
            ("KAFKA_INTER_BROKER_LISTENER_NAME", "PLAINTEXT"),
            ("KAFKA_CONTROLLER_LISTENER_NAMES", "CONTROLLER"),
            ("KAFKA_LOG_DIRS", "/tmp/kraft-combined-logs"),
        ];
        let mut all = pairs.to_vec();
        all.push(("CLUSTER_ID", "4L6g3nShT-eMCtK--X86sw"));
        let config = configured(&all);
        for (variable, value) in pairs {
            assert_eq!(
                config.get(&property_name(&variable["KAFKA_".len()..])),
                Some(value),
                "{variable}"
            );
        }
        assert_eq!(config.cluster_id.as_deref(), Some("4L6g3nShT-eMCtK--X86sw"));
        assert!(config.notes.is_empty());
    }

    #[test]
    fn three_voters_keep_kafkas_own_replication_factors() {
        let config =
            configured(&[("KAFKA_CONTROLLER_QUORUM_VOTERS", "1@a:9093,2@b:9093,3@c:9093")]);
        check(&config, &[("offsets.topic.replication.factor", "-")]);
        let config = configured(&[
            ("KAFKA_PROCESS_ROLES", "broker"),
            ("KAFKA_CONTROLLER_QUORUM_VOTERS", "9@c:9093"),
        ]);
        check(
            &config,
            &[
                ("offsets.topic.replication.factor", "-"),
                ("controller.listener.names", "-"),
                ("listeners", "PLAINTEXT://:9092"),
            ],
        );
    }

    #[test]
    fn listeners_given_without_a_controller_get_one_unless_its_name_was_given_too() {
        let config = configured(&[("KAFKA_LISTENERS", "PLAINTEXT://:9092")]);
        check(
            &config,
            &[("listeners", "PLAINTEXT://:9092,CONTROLLER://:9093"), ("advertised.listeners", "-")],
        );
        let config = configured(&[
            ("KAFKA_LISTENERS", "PLAINTEXT://:9092"),
            ("KAFKA_CONTROLLER_LISTENER_NAMES", "CTRL"),
        ]);
        check(&config, &[("listeners", "PLAINTEXT://:9092"), ("controller.quorum.voters", "-")]);
    }

    #[test]
    fn an_empty_listener_variable_counts_as_unset() {
        let config = configured(&[("KAFKA_ADVERTISED_LISTENERS", ""), ("KAFKA_LISTENERS", " ")]);
        check(
            &config,
            &[
                ("listeners", "PLAINTEXT://:9092,CONTROLLER://:9093"),
                ("advertised.listeners", "PLAINTEXT://localhost:9092"),
            ],
        );
    }

    #[test]
    fn a_variable_wins_over_the_mounted_file_and_the_file_over_the_defaults() {
        let file =
            [("node.id", "4"), ("num.partitions", "2"), ("log.dirs", "/data"), ("node.id", "5")];
        let file: Vec<_> = file.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let config = from_environment(&environment(&[("KAFKA_NUM_PARTITIONS", "9")]), &file)
            .expect("a configuration");
        check(&config, &[("node.id", "5"), ("num.partitions", "9"), ("log.dirs", "/data")]);
        assert_eq!(config.properties["log.dirs"].origin, Origin::File);
        check(&config, &[("controller.quorum.voters", "5@localhost:9093")]);
    }

    #[test]
    fn spellings_of_other_images_are_mapped_and_said() {
        let config = configured(&[
            ("KAFKA_CFG_NUM_PARTITIONS", "3"),
            ("KAFKA_BROKER_ID", "2"),
            ("KAFKA_KRAFT_CLUSTER_ID", "abcdefghijklmnopqrstuv"),
        ]);
        check(&config, &[("num.partitions", "3"), ("node.id", "2")]);
        assert_eq!(config.cluster_id.as_deref(), Some("abcdefghijklmnopqrstuv"));
        let notes: Vec<String> = config.notes.iter().map(ToString::to_string).collect();
        assert_eq!(
            notes,
            [
                "KAFKA_BROKER_ID is taken as node.id",
                "KAFKA_CFG_NUM_PARTITIONS is taken as num.partitions",
                "KAFKA_KRAFT_CLUSTER_ID is taken as CLUSTER_ID",
            ]
        );
    }

    #[test]
    fn variables_without_effect_are_named_and_change_nothing() {
        let variables = [
            ("KAFKA_HEAP_OPTS", "-Xmx1g", NoEffect::Jvm),
            ("KAFKA_JMX_PORT", "9999", NoEffect::Jvm),
            ("KAFKA_LOG4J_ROOT_LOGLEVEL", "DEBUG", NoEffect::Jvm),
            ("KAFKA_OPTS", "-Dx=y", NoEffect::Jvm),
            ("KAFKA_TOOLS_LOG4J_LOGLEVEL", "WARN", NoEffect::Jvm),
            ("KAFKA_ZOOKEEPER_CONNECT", "zookeeper:2181", NoEffect::ZooKeeper),
            ("KAFKA_CONFLUENT_BALANCER_ENABLE", "true", NoEffect::Confluent),
            ("KAFKA_ENABLE_KRAFT", "yes", NoEffect::StartScript),
            ("KAFKA_PORT", "tcp://10.0.0.1:9092", NoEffect::KubernetesService),
            ("KAFKA_SERVICE_HOST", "10.0.0.1", NoEffect::KubernetesService),
            ("KAFKA_SERVICE_PORT_TCP_CLIENTS", "9092", NoEffect::KubernetesService),
            ("KAFKA_BOOTSTRAP_PORT_9092_TCP_ADDR", "10.0.0.1", NoEffect::KubernetesService),
        ];
        let plain = configured(&[]);
        for (variable, value, reason) in variables {
            let config = configured(&[(variable, value)]);
            assert_eq!(config.properties, plain.properties, "{variable}");
            assert_eq!(config.notes, [Note::NoEffect { variable: variable.to_owned(), reason }]);
            assert!(
                !config.notes[0].to_string().contains(value),
                "{variable}: a note must not show the value"
            );
        }
    }

    #[test]
    fn a_property_that_ends_in_port_is_not_taken_for_a_service() {
        let config = configured(&[
            ("KAFKA_LOG_FLUSH_INTERVAL_MESSAGES", "9223372036854775807"),
            ("KAFKA_PORT", "9092"),
        ]);
        check(&config, &[("port", "-"), ("log.flush.interval.messages", "9223372036854775807")]);
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        let cases: [(&[(&str, &str)], &str); 3] = [
            (
                &[("KAFKA_CFG_NODE_ID", "1"), ("KAFKA_NODE_ID", "2")],
                "KAFKA_CFG_NODE_ID and KAFKA_NODE_ID both set node.id, to different values; remove \
                 one of them",
            ),
            (
                &[("CLUSTER_ID", "a"), ("KAFKA_CLUSTER_ID", "b")],
                "CLUSTER_ID and KAFKA_CLUSTER_ID both set the cluster id, to different values; \
                 remove one of them",
            ),
            (
                &[
                    ("KAFKA_PROCESS_ROLES", "controller"),
                    ("KAFKA_ADVERTISED_LISTENERS", "PLAINTEXT://a:1"),
                ],
                "KAFKA_ADVERTISED_LISTENERS is set, but process.roles is controller: a controller \
                 advertises nothing; remove the variable",
            ),
        ];
        for (pairs, message) in cases {
            assert_eq!(refused(pairs), message);
        }
        configured(&[("KAFKA_CFG_NODE_ID", "1"), ("KAFKA_NODE_ID", "1")]);
    }

    #[test]
    fn the_first_images_advertised_a_host_and_a_port() {
        for (pairs, listeners, advertised) in [
            (
                &[("KAFKA_ADVERTISED_HOST_NAME", "kafka")][..],
                "PLAINTEXT://:9092,CONTROLLER://:9093",
                "PLAINTEXT://kafka:9092",
            ),
            (
                &[("KAFKA_ADVERTISED_HOST_NAME", "10.0.0.5"), ("KAFKA_ADVERTISED_PORT", "32000")],
                "PLAINTEXT://:9092,CONTROLLER://:9093",
                "PLAINTEXT://10.0.0.5:32000",
            ),
            (
                &[("KAFKA_ADVERTISED_HOST_NAME", "kafka"), ("KAFKA_LISTENERS", "IN://:9094")],
                "IN://:9094,CONTROLLER://:9093",
                "IN://kafka:9094",
            ),
        ] {
            check(
                &configured(pairs),
                &[("listeners", listeners), ("advertised.listeners", advertised)],
            );
        }
        for (pairs, listeners, advertised) in [
            (
                &[("KAFKA_PORT", "9094")][..],
                "PLAINTEXT://:9094,CONTROLLER://:9093",
                "PLAINTEXT://localhost:9094",
            ),
            (
                &[("KAFKA_PORT", "9094"), ("KAFKA_ADVERTISED_HOST_NAME", "kafka")],
                "PLAINTEXT://:9094,CONTROLLER://:9093",
                "PLAINTEXT://kafka:9094",
            ),
            (
                &[("KAFKA_PORT", "9094"), ("KAFKA_ADVERTISED_LISTENERS", "OUT://kafka:32000")],
                "OUT://:9094,CONTROLLER://:9093",
                "OUT://kafka:32000",
            ),
            (
                &[("KAFKA_PORT", "9094"), ("KAFKA_LISTENERS", "IN://:9095")],
                "IN://:9095,CONTROLLER://:9093",
                "-",
            ),
        ] {
            check(
                &configured(pairs),
                &[("listeners", listeners), ("advertised.listeners", advertised)],
            );
        }
        let both = [
            ("KAFKA_ADVERTISED_HOST_NAME", "old"),
            ("KAFKA_ADVERTISED_LISTENERS", "PLAINTEXT://new:1"),
        ];
        check(&configured(&both), &[("advertised.listeners", "PLAINTEXT://new:1")]);
    }

    #[test]
    fn the_only_voter_is_this_node() {
        check(
            &configured(&[("KAFKA_CONTROLLER_QUORUM_VOTERS", "3@kafka:9093")]),
            &[("node.id", "3")],
        );
        check(
            &configured(&[("KAFKA_BROKER_ID", "-1"), ("KAFKA_NODE_ID", "")]),
            &[("node.id", "1")],
        );
    }

    #[test]
    fn a_refusal_names_the_variable() {
        let refusal =
            configured(&[("KAFKA_SSL_KEYSTORE_LOCATION", "/x"), ("KAFKA_NUM_PARTITIONS", "many")])
                .config()
                .unwrap_err()
                .to_string();
        for said in [
            "ssl.keystore.location was set by KAFKA_SSL_KEYSTORE_LOCATION",
            "num.partitions was set by KAFKA_NUM_PARTITIONS",
        ] {
            assert!(refusal.contains(said), "{refusal}");
        }
        let config = configured(&[("KAFKA_MIN_IN_SYNC_REPLICAS", "1")]).config().unwrap();
        let warnings: Vec<String> = config.warnings().iter().map(ToString::to_string).collect();
        let said = "KAFKA_MIN_IN_SYNC_REPLICAS (min.in.sync.replicas) has no effect: no setting \
            has this name; the nearest is min.insync.replicas";
        assert_eq!(warnings, [said]);
    }

    #[test]
    fn topics_to_create_are_read_in_order() {
        let config =
            configured(&[("KAFKA_CREATE_TOPICS", "orders:3:1,\naudit : 1 : 1 : compact,")]);
        let topic = |name: &str, partitions, policy: Option<&str>| TopicToCreate {
            name: name.to_owned(),
            partitions,
            replication_factor: 1,
            cleanup_policy: policy.map(str::to_owned),
        };
        assert_eq!(config.topics, [topic("orders", 3, None), topic("audit", 1, Some("compact"))]);
        for (list, problem) in [
            ("orders", "the number of partitions is missing"),
            ("orders:3", "the replication factor is missing"),
            (":3:1", "the name is empty"),
            ("orders:0:1", "the number of partitions is not a number of at least 1"),
            ("orders:3:99999999", "the replication factor is not a number of at least 1"),
            ("orders:3:1:compact:x", "there are more than four parts"),
        ] {
            assert!(refused(&[("KAFKA_CREATE_TOPICS", list)]).ends_with(problem), "{list}");
        }
    }
}
