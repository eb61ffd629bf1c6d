//! What people's compose files, manifests and property files hold, in the style of the images and
//! tools they were written for. Apache Kafka's own image starts with each of these, and so must
//! this broker; the last rows are those that ask for security or for other nodes, where going on
//! alone would break a promise.

use std::collections::BTreeMap;

use letterbox_broker::config::{Config, parse_properties};

use crate::image_env;

/// What a set must end with.
enum Expect {
    /// It starts, tells clients this, and warns about these keys and no other.
    Starts { advertised: &'static str, warnings: &'static [&'static str] },
    /// It is refused, and the message says this.
    Refuses(&'static str),
}
use Expect::{Refuses, Starts};

/// Variables, one a line, as `docker compose config` prints them without the dash.
const ENVIRONMENTS: &[(&str, &str, Expect)] = &[
    ("nothing at all: docker run", "", Starts { advertised: "PLAINTEXT://localhost:9092", warnings: &[] }),
    (
        "apache/kafka: the single node of its documentation",
        "KAFKA_NODE_ID=1
KAFKA_PROCESS_ROLES=broker,controller
KAFKA_LISTENERS=PLAINTEXT://0.0.0.0:9092,CONTROLLER://localhost:9093
KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://localhost:9092
KAFKA_CONTROLLER_LISTENER_NAMES=CONTROLLER
KAFKA_LISTENER_SECURITY_PROTOCOL_MAP=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
KAFKA_CONTROLLER_QUORUM_VOTERS=1@localhost:9093
KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR=1
KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR=1
KAFKA_TRANSACTION_STATE_LOG_MIN_ISR=1
KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS=0
KAFKA_NUM_PARTITIONS=3",
        Starts {
            advertised: "PLAINTEXT://localhost:9092",
            warnings: &["transaction.state.log.min.isr", "transaction.state.log.replication.factor"],
        },
    ),
    (
        "apache/kafka: two listeners, for containers and for the host, with a hand-made cluster id",
        "CLUSTER_ID=my-dev-cluster
KAFKA_NODE_ID=1
KAFKA_PROCESS_ROLES=broker,controller
KAFKA_LISTENER_SECURITY_PROTOCOL_MAP=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PLAINTEXT_HOST:PLAINTEXT
KAFKA_LISTENERS=CONTROLLER://:29093,PLAINTEXT_HOST://:9092,PLAINTEXT://:19092
KAFKA_ADVERTISED_LISTENERS=PLAINTEXT_HOST://localhost:9092,PLAINTEXT://broker:19092
KAFKA_INTER_BROKER_LISTENER_NAME=PLAINTEXT
KAFKA_CONTROLLER_LISTENER_NAMES=CONTROLLER
KAFKA_CONTROLLER_QUORUM_VOTERS=1@broker:29093
KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR=1
KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR=1
KAFKA_LOG_DIRS=/tmp/kraft-combined-logs",
        Starts {
            advertised: "PLAINTEXT_HOST://localhost:9092,PLAINTEXT://broker:19092",
            warnings: &["share.coordinator.state.topic.min.isr", "share.coordinator.state.topic.replication.factor"],
        },
    ),
    (
        "apache/kafka: variables left empty by compose",
        "KAFKA_NODE_ID=1
KAFKA_PROCESS_ROLES=
KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://kafka:9092
KAFKA_NUM_PARTITIONS=
KAFKA_LOG_RETENTION_MS=
KAFKA_BROKER_RACK=
KAFKA_ZOOKEEPER_CONNECT=
KAFKA_SSL_ENDPOINT_IDENTIFICATION_ALGORITHM=
CLUSTER_ID=",
        Starts {
            advertised: "PLAINTEXT://kafka:9092",
            warnings: &["broker.rack", "log.retention.ms", "num.partitions", "ssl.endpoint.identification.algorithm"],
        },
    ),
    (
        "bitnami/kafka: KRaft",
        "KAFKA_CFG_NODE_ID=0
KAFKA_CFG_PROCESS_ROLES=controller,broker
KAFKA_CFG_LISTENERS=PLAINTEXT://:9092,CONTROLLER://:9093
KAFKA_CFG_LISTENER_SECURITY_PROTOCOL_MAP=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
KAFKA_CFG_CONTROLLER_QUORUM_VOTERS=0@kafka:9093
KAFKA_CFG_CONTROLLER_LISTENER_NAMES=CONTROLLER
ALLOW_PLAINTEXT_LISTENER=yes
BITNAMI_DEBUG=true",
        Starts { advertised: "PLAINTEXT://localhost:9092", warnings: &[] },
    ),
    (
        "bitnami/kafka: inside and outside, auto creation, its own cluster id and sizes",
        "KAFKA_ENABLE_KRAFT=yes
KAFKA_KRAFT_CLUSTER_ID=bitnami-dev
KAFKA_BROKER_ID=1
KAFKA_CFG_NODE_ID=1
KAFKA_CFG_PROCESS_ROLES=broker,controller
KAFKA_CFG_CONTROLLER_LISTENER_NAMES=CONTROLLER
KAFKA_CFG_LISTENERS=PLAINTEXT://:9092,CONTROLLER://:9093,EXTERNAL://:9094
KAFKA_CFG_LISTENER_SECURITY_PROTOCOL_MAP=CONTROLLER:PLAINTEXT,EXTERNAL:PLAINTEXT,PLAINTEXT:PLAINTEXT
KAFKA_CFG_ADVERTISED_LISTENERS=PLAINTEXT://kafka:9092,EXTERNAL://localhost:9094
KAFKA_CFG_CONTROLLER_QUORUM_VOTERS=1@127.0.0.1:9093
KAFKA_CFG_AUTO_CREATE_TOPICS_ENABLE=true
KAFKA_CFG_MESSAGE_MAX_BYTES=10485760
KAFKA_CFG_REPLICA_FETCH_MAX_BYTES=10485760
KAFKA_CFG_MAX_REQUEST_SIZE=10485760
KAFKA_CFG_MAX_PARTITION_FETCH_BYTES=10485760
KAFKA_HEAP_OPTS=-Xmx512m -Xms512m
ALLOW_PLAINTEXT_LISTENER=yes",
        Starts {
            advertised: "PLAINTEXT://kafka:9092,EXTERNAL://localhost:9094",
            warnings: &["max.partition.fetch.bytes", "max.request.size"],
        },
    ),
    (
        "bitnami/kafka: the last file that still names ZooKeeper",
        "KAFKA_CFG_ZOOKEEPER_CONNECT=zookeeper:2181
KAFKA_CFG_ADVERTISED_LISTENERS=PLAINTEXT://kafka:9092
KAFKA_CFG_LISTENERS=PLAINTEXT://:9092
KAFKA_CFG_OFFSETS_TOPIC_REPLICATION_FACTOR=1
KAFKA_CFG_LOG_RETENTION_HOURS=24
ALLOW_PLAINTEXT_LISTENER=yes",
        Starts { advertised: "PLAINTEXT://kafka:9092", warnings: &[] },
    ),
    (
        "confluentinc/cp-kafka: KRaft",
        "KAFKA_NODE_ID=1
KAFKA_LISTENER_SECURITY_PROTOCOL_MAP=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PLAINTEXT_HOST:PLAINTEXT
KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://broker:29092,PLAINTEXT_HOST://localhost:9092
KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR=1
KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS=0
KAFKA_TRANSACTION_STATE_LOG_MIN_ISR=1
KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR=1
KAFKA_JMX_PORT=9101
KAFKA_JMX_HOSTNAME=localhost
KAFKA_PROCESS_ROLES=broker,controller
KAFKA_CONTROLLER_QUORUM_VOTERS=1@broker:29093
KAFKA_LISTENERS=PLAINTEXT://broker:29092,CONTROLLER://broker:29093,PLAINTEXT_HOST://0.0.0.0:9092
KAFKA_INTER_BROKER_LISTENER_NAME=PLAINTEXT
KAFKA_CONTROLLER_LISTENER_NAMES=CONTROLLER
KAFKA_LOG_DIRS=/tmp/kraft-combined-logs
CLUSTER_ID=MkU3OEVBNTcwNTJENDM2Qk",
        Starts {
            advertised: "PLAINTEXT://broker:29092,PLAINTEXT_HOST://localhost:9092",
            warnings: &["transaction.state.log.min.isr", "transaction.state.log.replication.factor"],
        },
    ),
    (
        "confluentinc/cp-kafka: with ZooKeeper, metrics reporter and licence topic",
        "KAFKA_BROKER_ID=1
KAFKA_ZOOKEEPER_CONNECT=zookeeper:2181
KAFKA_LISTENER_SECURITY_PROTOCOL_MAP=PLAINTEXT:PLAINTEXT,PLAINTEXT_HOST:PLAINTEXT
KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://broker:29092,PLAINTEXT_HOST://localhost:9092
KAFKA_METRIC_REPORTERS=io.confluent.metrics.reporter.ConfluentMetricsReporter
KAFKA_CONFLUENT_LICENSE_TOPIC_REPLICATION_FACTOR=1
KAFKA_CONFLUENT_BALANCER_TOPIC_REPLICATION_FACTOR=1
KAFKA_CONFLUENT_SCHEMA_REGISTRY_URL=http://schema-registry:8081
CONFLUENT_METRICS_REPORTER_BOOTSTRAP_SERVERS=broker:29092
CONFLUENT_METRICS_ENABLE=true
CONFLUENT_SUPPORT_CUSTOMER_ID=anonymous",
        Starts { advertised: "PLAINTEXT://broker:29092,PLAINTEXT_HOST://localhost:9092", warnings: &["metric.reporters"] },
    ),
    (
        "wurstmeister/kafka: host and port apart, topics",
        "KAFKA_ADVERTISED_HOST_NAME=localhost
KAFKA_ADVERTISED_PORT=9092
KAFKA_PORT=9092
KAFKA_BROKER_ID=-1
KAFKA_ZOOKEEPER_CONNECT=zookeeper:2181
KAFKA_CREATE_TOPICS=orders:6:1,audit:1:1:compact
KAFKA_LOG_DIRS=/kafka/logs
KAFKA_AUTO_CREATE_TOPICS_ENABLE=false",
        Starts { advertised: "PLAINTEXT://localhost:9092", warnings: &[] },
    ),
    (
        "wurstmeister/kafka: INSIDE and OUTSIDE",
        "KAFKA_LISTENERS=INSIDE://:9093,OUTSIDE://:9092
KAFKA_ADVERTISED_LISTENERS=INSIDE://kafka:9093,OUTSIDE://localhost:9092
KAFKA_LISTENER_SECURITY_PROTOCOL_MAP=INSIDE:PLAINTEXT,OUTSIDE:PLAINTEXT
KAFKA_INTER_BROKER_LISTENER_NAME=INSIDE
KAFKA_ZOOKEEPER_CONNECT=zookeeper:2181
HOSTNAME_COMMAND=hostname -i",
        Starts { advertised: "INSIDE://kafka:9093,OUTSIDE://localhost:9092", warnings: &[] },
    ),
    (
        "Spring Boot: compose.yaml of a start project",
        "KAFKA_NODE_ID=1
KAFKA_PROCESS_ROLES=broker,controller
KAFKA_CONTROLLER_QUORUM_VOTERS=1@localhost:9093
KAFKA_CONTROLLER_LISTENER_NAMES=CONTROLLER
KAFKA_LISTENERS=PLAINTEXT://:9092,CONTROLLER://:9093
KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://localhost:9092
KAFKA_LISTENER_SECURITY_PROTOCOL_MAP=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR=1
KAFKA_MIN_IN_SYNC_REPLICAS=1
KAFKA_MIN_INSYNC_REPLICAS=1
KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS=0
KAFKA_AUTO_OFFSET_RESET=earliest
KAFKA_BOOTSTRAP_SERVERS=localhost:9092
SPRING_PROFILES_ACTIVE=dev",
        Starts { advertised: "PLAINTEXT://localhost:9092", warnings: &["auto.offset.reset", "bootstrap.servers", "min.in.sync.replicas"] },
    ),
    (
        "Debezium: tutorial",
        "CLUSTER_ID=oh-sxaDRTcyAr6pFRbXyzA
NODE_ID=1
NODE_ROLE=combined
KAFKA_CONTROLLER_QUORUM_VOTERS=1@kafka:9093
KAFKA_LISTENERS=PLAINTEXT://kafka:9092,CONTROLLER://kafka:9093
KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://kafka:9092",
        Starts { advertised: "PLAINTEXT://kafka:9092", warnings: &[] },
    ),
    (
        "Debezium: connect beside it reads the same variables",
        "KAFKA_NODE_ID=1
KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://kafka:9092
KAFKA_GROUP_ID=1
KAFKA_CONFIG_STORAGE_TOPIC=my_connect_configs
KAFKA_OFFSET_STORAGE_TOPIC=my_connect_offsets
KAFKA_STATUS_STORAGE_TOPIC=my_connect_statuses
KAFKA_KEY_CONVERTER=org.apache.kafka.connect.json.JsonConverter",
        Starts {
            advertised: "PLAINTEXT://kafka:9092",
            warnings: &["config.storage.topic", "group.id", "key.converter", "offset.storage.topic", "status.storage.topic"],
        },
    ),
    (
        "Testcontainers: ConfluentKafkaContainer",
        "KAFKA_LISTENERS=PLAINTEXT://0.0.0.0:9092,BROKER://0.0.0.0:9093,CONTROLLER://0.0.0.0:9094
KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://localhost:32789,BROKER://5b8a7c0d1e2f:9093
KAFKA_LISTENER_SECURITY_PROTOCOL_MAP=BROKER:PLAINTEXT,PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
KAFKA_INTER_BROKER_LISTENER_NAME=BROKER
KAFKA_PROCESS_ROLES=broker,controller
KAFKA_CONTROLLER_LISTENER_NAMES=CONTROLLER
KAFKA_NODE_ID=1
KAFKA_CONTROLLER_QUORUM_VOTERS=1@localhost:9094
KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR=1
KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS=1
KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR=1
KAFKA_TRANSACTION_STATE_LOG_MIN_ISR=1
KAFKA_LOG_FLUSH_INTERVAL_MESSAGES=9223372036854775807
KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS=0
CLUSTER_ID=4L6g3nShT-eMCtK--X86sw",
        Starts {
            advertised: "PLAINTEXT://localhost:32789,BROKER://5b8a7c0d1e2f:9093",
            warnings: &["transaction.state.log.min.isr", "transaction.state.log.replication.factor"],
        },
    ),
    (
        "GitHub Actions: a service container",
        "KAFKA_NODE_ID=0
KAFKA_PROCESS_ROLES=controller,broker
KAFKA_LISTENERS=PLAINTEXT://:9092,CONTROLLER://:9093
KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://localhost:9092
KAFKA_CONTROLLER_QUORUM_VOTERS=0@localhost:9093
KAFKA_CONTROLLER_LISTENER_NAMES=CONTROLLER
KAFKA_LOG_CLEANER_DEDUPE_BUFFER_SIZE=134217728
KAFKA_TRANSACTION_MAX_TIMEOUT_MS=3600000
KAFKA_REQUEST_TIMEOUT_MS=60000
KAFKA_DELETE_TOPIC_ENABLE=true",
        Starts { advertised: "PLAINTEXT://localhost:9092", warnings: &["request.timeout.ms", "transaction.max.timeout.ms"] },
    ),
    (
        "Sentry-like self-hosted bundle: retention and threads",
        "KAFKA_PROCESS_ROLES=broker,controller
KAFKA_CONTROLLER_QUORUM_VOTERS=1001@127.0.0.1:29093
KAFKA_CONTROLLER_LISTENER_NAMES=CONTROLLER
KAFKA_NODE_ID=1001
CLUSTER_ID=MkU3OEVBNTcwNTJENDM2Qk
KAFKA_LISTENERS=PLAINTEXT://0.0.0.0:29092,INTERNAL://0.0.0.0:9093,EXTERNAL://0.0.0.0:9092,CONTROLLER://0.0.0.0:29093
KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://127.0.0.1:29092,INTERNAL://kafka:9093,EXTERNAL://kafka:9092
KAFKA_LISTENER_SECURITY_PROTOCOL_MAP=PLAINTEXT:PLAINTEXT,INTERNAL:PLAINTEXT,EXTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT
KAFKA_INTER_BROKER_LISTENER_NAME=PLAINTEXT
KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR=1
KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS=1
KAFKA_LOG_RETENTION_HOURS=24
KAFKA_MESSAGE_MAX_BYTES=50000000
KAFKA_MAX_REQUEST_SIZE=50000000
CONFLUENT_SUPPORT_METRICS_ENABLE=false
KAFKA_LOG4J_LOGGERS=kafka.cluster=WARN,kafka.controller=WARN
KAFKA_LOG4J_ROOT_LOGLEVEL=WARN
KAFKA_TOOLS_LOG4J_LOGLEVEL=WARN",
        Starts { advertised: "PLAINTEXT://127.0.0.1:29092,INTERNAL://kafka:9093,EXTERNAL://kafka:9092", warnings: &["max.request.size"] },
    ),
    (
        "Kubernetes: a plain Deployment named kafka, with the variables of its service",
        "KAFKA_PORT=tcp://10.96.12.7:9092
KAFKA_SERVICE_HOST=10.96.12.7
KAFKA_SERVICE_PORT=9092
KAFKA_PORT_9092_TCP=tcp://10.96.12.7:9092
KAFKA_PORT_9092_TCP_ADDR=10.96.12.7
KAFKA_NODE_ID=1
KAFKA_LISTENERS=PLAINTEXT://:9092,CONTROLLER://:9093
KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://kafka.default.svc.cluster.local:9092
KAFKA_CONTROLLER_LISTENER_NAMES=CONTROLLER
KAFKA_CONTROLLER_QUORUM_VOTERS=1@localhost:9093
KAFKA_CLUSTER_ID=test",
        Starts { advertised: "PLAINTEXT://kafka.default.svc.cluster.local:9092", warnings: &[] },
    ),
    (
        "old advice: message format and protocol versions",
        "KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://kafka:9092
KAFKA_INTER_BROKER_PROTOCOL_VERSION=3.6
KAFKA_LOG_MESSAGE_FORMAT_VERSION=3.0
KAFKA_SECURITY_INTER_BROKER_PROTOCOL=PLAINTEXT
KAFKA_KRAFT_MODE=true
KAFKA_LOG_CLEANER_ENABLE=true
KAFKA_RETENTION_MS=3600000
KAFKA_DEFAULT_REPLICATION_FACTOR=1
KAFKA_NUM_REPLICA_FETCHERS=4",
        Starts {
            advertised: "PLAINTEXT://kafka:9092",
            warnings: &[
                "inter.broker.protocol.version",
                "kraft.mode",
                "log.message.format.version",
                "num.replica.fetchers",
                "retention.ms",
            ],
        },
    ),
    (
        "bitnami/kafka: SASL for clients",
        "KAFKA_CFG_NODE_ID=0
KAFKA_CFG_PROCESS_ROLES=controller,broker
KAFKA_CFG_LISTENERS=SASL_PLAINTEXT://:9092,CONTROLLER://:9093
KAFKA_CFG_LISTENER_SECURITY_PROTOCOL_MAP=CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT
KAFKA_CFG_CONTROLLER_LISTENER_NAMES=CONTROLLER
KAFKA_CFG_CONTROLLER_QUORUM_VOTERS=0@kafka:9093
KAFKA_CLIENT_USERS=user
KAFKA_CLIENT_PASSWORDS=secret",
        Refuses("listener SASL_PLAINTEXT asks for SASL_PLAINTEXT, which this version does not \
            offer"),
    ),
    (
        "apache/kafka: TLS for clients",
        "KAFKA_ADVERTISED_LISTENERS=SSL://localhost:9093
KAFKA_SSL_KEYSTORE_FILENAME=kafka.keystore.jks
KAFKA_SSL_KEYSTORE_CREDENTIALS=kafka_keystore_creds
KAFKA_SSL_CLIENT_AUTH=required",
        Refuses("ssl.client.auth was set by KAFKA_SSL_CLIENT_AUTH"),
    ),
    (
        "confluentinc/cp-kafka: an authorizer",
        "KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://kafka:9092
KAFKA_AUTHORIZER_CLASS_NAME=org.apache.kafka.metadata.authorizer.StandardAuthorizer
KAFKA_SUPER_USERS=User:ANONYMOUS
KAFKA_ALLOW_EVERYONE_IF_NO_ACL_FOUND=true",
        Refuses("authorizer.class.name is set: this version has no authorizer"),
    ),
    (
        "apache/kafka: one of three combined nodes",
        "KAFKA_NODE_ID=2
KAFKA_PROCESS_ROLES=broker,controller
KAFKA_LISTENERS=PLAINTEXT://:9092,CONTROLLER://:9093
KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://kafka-2:9092
KAFKA_CONTROLLER_LISTENER_NAMES=CONTROLLER
KAFKA_CONTROLLER_QUORUM_VOTERS=1@kafka-1:9093,2@kafka-2:9093,3@kafka-3:9093
CLUSTER_ID=4L6g3nShT-eMCtK--X86sw",
        Starts { advertised: "PLAINTEXT://kafka-2:9092", warnings: &[] },
    ),
    (
        "bitnami/kafka: one of the three nodes of its docker-compose-cluster.yml",
        "KAFKA_CFG_NODE_ID=1
KAFKA_CFG_PROCESS_ROLES=controller,broker
KAFKA_CFG_CONTROLLER_QUORUM_VOTERS=0@kafka-0:9093,1@kafka-1:9093,2@kafka-2:9093
KAFKA_KRAFT_CLUSTER_ID=abcdefghijklmnopqrstuv
KAFKA_CFG_LISTENERS=PLAINTEXT://:9092,CONTROLLER://:9093
KAFKA_CFG_ADVERTISED_LISTENERS=PLAINTEXT://:9092
KAFKA_CFG_LISTENER_SECURITY_PROTOCOL_MAP=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
KAFKA_CFG_CONTROLLER_LISTENER_NAMES=CONTROLLER
KAFKA_CFG_INTER_BROKER_LISTENER_NAME=PLAINTEXT
KAFKA_CFG_OFFSETS_TOPIC_REPLICATION_FACTOR=3
KAFKA_CFG_TRANSACTION_STATE_LOG_REPLICATION_FACTOR=3
KAFKA_CFG_TRANSACTION_STATE_LOG_MIN_ISR=2",
        Starts { advertised: "PLAINTEXT://kafka-1:9092", warnings: &[] },
    ),
    (
        "apache/kafka: a broker whose controllers are elsewhere",
        "KAFKA_NODE_ID=4
KAFKA_PROCESS_ROLES=broker
KAFKA_LISTENERS=PLAINTEXT://:9092
KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://kafka-4:9092
KAFKA_CONTROLLER_LISTENER_NAMES=CONTROLLER
KAFKA_CONTROLLER_QUORUM_BOOTSTRAP_SERVERS=controller-1:9093",
        Refuses("process.roles=broker: this version runs both roles in one process"),
    ),
];

const FILES: &[(&str, &[u8], Expect)] = &[
    (
        "a combined server.properties with comments, Windows line ends and a byte order mark",
        b"\xef\xbb\xbf# Server \
          basics\r\nprocess.roles=broker,controller\r\nnode.id=1\r\ncontroller.quorum.bootstrap.servers=localhost:9093\r\nlisteners=PLAINTEXT://:9092,CONTROLLER://:9093\r\nadvertised.listeners=PLAINTEXT://localhost:9092,CONTROLLER://localhost:9093\r\ncontroller.listener.names=CONTROLLER\r\nlog.dirs=/tmp/kraft-combined-logs\r\nnum.io.threads=16\r\n",
        Starts { advertised: "PLAINTEXT://localhost:9092", warnings: &["num.io.threads"] },
    ),
    (
        "an operator's file: prefixed settings, its own keys, a Latin-1 comment",
        b"# \
          g\xe9n\xe9r\xe9\nnode.id=0\nprocess.roles=broker,controller\ncontroller.listener.names=CONTROLPLANE-9090\ncontroller.quorum.voters=0@cluster-0.cluster-brokers.ns.svc:9090\nlisteners=CONTROLPLANE-9090://0.0.0.0:9090,REPLICATION-9091://0.0.0.0:9091,PLAIN-9092://0.0.0.0:9092\nadvertised.listeners=REPLICATION-9091://cluster-0:9091,PLAIN-9092://cluster-0:9092\nlistener.security.protocol.map=CONTROLPLANE-9090:PLAINTEXT,REPLICATION-9091:PLAINTEXT,PLAIN-9092:PLAINTEXT\ninter.broker.listener.name=REPLICATION-9091\nsasl.enabled.mechanisms=\nssl.endpoint.identification.algorithm=HTTPS\nlistener.name.plain-9092.max.connections=100\nlog.dirs=/var/lib/kafka/data-0/kafka-log0\nconfig.providers=strimzienv\nconfig.providers.strimzienv.class=org.apache.kafka.common.config.provider.EnvVarConfigProvider\noffsets.topic.replication.factor=1\ntransaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\ndefault.replication.factor=1\nmin.insync.replicas=1\n",
        Starts {
            advertised: "REPLICATION-9091://cluster-0:9091,PLAIN-9092://cluster-0:9092",
            warnings: &[
                "config.providers",
                "config.providers.strimzienv.class",
                "listener.name.plain-9092.max.connections",
                "sasl.enabled.mechanisms",
                "transaction.state.log.min.isr",
                "transaction.state.log.replication.factor",
            ],
        },
    ),
    (
        "one port, IPv4 and IPv6",
        b"node.id=1\nprocess.roles=broker,controller\ncontroller.listener.names=CONTROLLER\ncontroller.quorum.voters=1@localhost:9093\n\
listeners=V4://0.0.0.0:9092,V6://[::]:9092,CONTROLLER://localhost:9093\n\
advertised.listeners=V4://127.0.0.1:9092,V6://[::1]:9092\nlistener.security.protocol.map=V4:PLAINTEXT,V6:PLAINTEXT,CONTROLLER:PLAINTEXT\n",
        Starts { advertised: "V4://127.0.0.1:9092,V6://[::1]:9092", warnings: &[] },
    ),
    (
        "keys of Kafka that nothing acts on, with other values than the default",
        b"node.id=1\nprocess.roles=broker,controller\ncontroller.listener.names=CONTROLLER\ncontroller.quorum.voters=1@localhost:9093\n\
listeners=PLAINTEXT://:9092,CONTROLLER://:9093\nadvertised.listeners=PLAINTEXT://localhost:9092\nunclean.leader.election.enable=true\n\
log.preallocate=true\nmetadata.log.segment.bytes=8388608\nreplica.selector.class=org.example.Selector\n\
broker.session.timeout.ms=20000\ngroup.share.max.size=500\nremote.log.storage.system.enable=true\nlog.cleaner.enable=false\n",
        Starts {
            advertised: "PLAINTEXT://localhost:9092",
            warnings: &[
                "group.share.max.size",
                "log.cleaner.enable",
                "log.preallocate",
                "metadata.log.segment.bytes",
                "remote.log.storage.system.enable",
                "replica.selector.class",
            ],
        },
    ),
    ("a broken escape", b"node.id=1\n\nlog.dirs=C:\\users\n", Refuses("line 3")),
    (
        "a value that Kafka refuses too",
        b"node.id=1\nprocess.roles=broker,controller\ncontroller.listener.names=CONTROLLER\ncontroller.quorum.voters=1@localhost:9093\n\
listeners=PLAINTEXT://:9092,CONTROLLER://:9093\nnum.partitions=none\n",
        Refuses("num.partitions=none: must be a whole number from 1"),
    ),
];

fn check(name: &str, made: Result<Config, String>, expect: &Expect) {
    match (made, expect) {
        (Ok(config), Starts { advertised, warnings }) => {
            let told: Vec<String> = config.advertised.iter().map(ToString::to_string).collect();
            assert_eq!(told.join(","), *advertised, "{name}");
            let keys: Vec<&str> =
                config.warnings().iter().map(|warning| warning.key.as_str()).collect();
            assert_eq!(keys, *warnings, "{name}");
        }
        (Err(refused), Refuses(said)) => assert!(refused.contains(said), "{name}: {refused}"),
        (Ok(_), Refuses(said)) => panic!("{name}: not refused; expected \"{said}\""),
        (Err(refused), Starts { .. }) => panic!("{name}: {refused}"),
    }
}

#[test]
fn peoples_environments() {
    for (name, text, expect) in ENVIRONMENTS {
        let variables = text.lines().map(|line| line.split_once('=').unwrap());
        let variables: BTreeMap<String, String> =
            variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let image = image_env::from_environment(&variables, &[]).map_err(|error| error.to_string());
        check(
            name,
            image.and_then(|image| image.config().map_err(|error| error.to_string())),
            expect,
        );
    }
}

#[test]
fn peoples_files() {
    for (name, bytes, expect) in FILES {
        let pairs = parse_properties(bytes).map_err(|problem| problem.to_string());
        check(
            name,
            pairs.and_then(|pairs| Config::from_pairs(pairs).map_err(|error| error.to_string())),
            expect,
        );
    }
    assert!(ENVIRONMENTS.len() + FILES.len() >= 25);
}
