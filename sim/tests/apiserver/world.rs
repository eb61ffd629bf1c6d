//! Kubernetes around the API server: the controllers of sets, claims and owners, kubelets, and the
//! brokers in the pods.

use std::collections::BTreeMap;
use std::hash::{Hash as _, Hasher as _};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use letterbox_env::{BoxFuture, BoxListener, BoxStream, Net};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

use super::kafka::{Kafka, Listener};
use super::{ApiServer, Key, text};

const ACTOR: &str = "kubernetes";
const SETS: &str = "apps/statefulsets";
const PODS: &str = "/pods";
const CLAIMS: &str = "/persistentvolumeclaims";
/// How many ticks a pod runs before it is ready.
const STARTS_IN: u64 = 2;

/// How many more it runs until it is in sync.
const SYNCS_IN: u64 = 3;

/// An image with which no broker ever serves.
pub(crate) const NEVER_SERVES: &str = "never-serves:1";
/// The images that nobody can pull begin with this.
pub(crate) const NOT_PULLED: &str = "gone/";

/// The uids of the claims of a pod, by the names of its volumes.
type Claims = BTreeMap<String, String>;

/// What is on the volumes, by the uid of their claims, and how far pods are, by their uids.
#[derive(Default)]
struct Inside {
    directories: BTreeMap<String, String>,
    age: BTreeMap<String, u64>,
    /// When a node took a pod, and with which claims: it has these until it ends.
    scheduled: BTreeMap<String, (Value, Claims)>,
    /// The pods, by their uids, whose brokers have taken their volumes.
    started: std::collections::BTreeSet<String>,
    /// The restart lease of each cluster, by its name: a pod's name, and its uid at that time.
    leases: BTreeMap<String, (String, String)>,
    /// Whether nobody reaches the brokers' admin ports.
    is_mute: bool,
    /// The id of the cluster that brokers have, where it is not what their claims say now.
    cluster_id: Option<Value>,
    /// Whether brokers that start open their logs and do not get to the end; how many are open.
    opens: Option<u64>,
    /// Takes connections to the operator that was started last.
    operator: Option<mpsc::UnboundedSender<DuplexStream>>,
    made: u64,
}

/// Kubernetes. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct World {
    /// The API server.
    pub(crate) server: ApiServer,
    inside: Arc<Mutex<Inside>>,
}

impl World {
    /// Lets Kubernetes do what it has to do now, one step of each.
    pub(crate) fn tick(&self) {
        for (key, set) in self.server.all(SETS) {
            self.look_after_set(&key, &set);
        }
        for (key, pod) in self.server.all(PODS) {
            self.look_after_pod(&key, &pod);
        }
        for (key, claim) in self.server.all(CLAIMS) {
            self.look_after_claim(&key, &claim);
        }
        self.collect();
    }

    /// The `directory.id` on the volume of a claim.
    #[must_use]
    pub(crate) fn directory_of(&self, claim_uid: &str) -> Option<String> {
        self.with(|inside| inside.directories.get(claim_uid).cloned())
    }

    /// Keeps everybody from the brokers' admin ports, or no longer.
    pub(crate) fn mute(&self, is_mute: bool) {
        self.with(|inside| inside.is_mute = is_mute);
    }

    /// From now on brokers are of the cluster that their claims name now, whatever those say later.
    pub(crate) fn remember_ids(&self) {
        let mut claims = self.server.all(CLAIMS).into_iter();
        let id = |(_, claim): (Key, Arc<Value>)| {
            claim["metadata"]["annotations"].get("letterbox.dev/cluster-id").cloned()
        };
        let id = claims.find_map(id);
        self.with(|inside| inside.cluster_id = inside.cluster_id.take().or(id));
    }

    /// What the operator that was started last answers to `GET path`: status line, headers and body.
    pub(crate) async fn ask_operator(&self, path: &str) -> String {
        let operator = self.with(|inside| inside.operator.clone()).unwrap();
        let (mut ours, theirs) = tokio::io::duplex(4096);
        operator.send(theirs).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        ours.write_all(request.as_bytes()).await.unwrap();
        let mut said = String::new();
        ours.read_to_string(&mut said).await.unwrap();
        said
    }

    /// Brokers that start have more logs than they can open.
    pub(crate) fn open_logs_for_ever(&self) {
        self.with(|inside| inside.opens = Some(0));
    }

    /// What a broker that opens its logs answers to `GET /readyz`: more of them at each look.
    fn not_ready(&self) -> Option<String> {
        let opened = self.with(|inside| {
            inside.opens = inside.opens.map(|opened| opened + 1);
            inside.opens
        })?;
        let body = format!("starting: {opened} of 5000 logs are open");
        Some(format!("HTTP/1.1 503 Service Unavailable\r\n\r\n{body}"))
    }

    /// Whether the broker in `pod` serves and has every record.
    pub(crate) fn is_in_sync(&self, pod: &Value) -> bool {
        let uid = text(pod, "/metadata/uid").unwrap_or_default();
        let age = self.with(|inside| inside.age.get(uid).copied().unwrap_or_default());
        text(pod, "/status/conditions/0/status") == Some("True") && age > STARTS_IN + SYNCS_IN
    }

    /// Why the cluster of the broker with this address does not do without it, if it does not: all
    /// others have to be in sync, and nobody may have the restart lease of one.
    fn held_back(&self, ip: &str, takes_lease: bool) -> Option<Vec<String>> {
        let pods = self.server.all(PODS);
        let asked = pods.iter().find(|(_, pod)| text(pod, "/status/podIP") == Some(ip))?;
        let cluster = &asked.1["metadata"]["labels"]["letterbox.dev/cluster"];
        let mut others = pods.iter().filter(|(key, pod)| {
            *key != asked.0 && pod["metadata"]["labels"]["letterbox.dev/cluster"] == *cluster
        });
        let uid = |pod: &Value| text(pod, "/metadata/uid").unwrap_or_default().to_owned();
        let name = cluster.as_str().unwrap_or_default();
        let lease = self.with(|inside| inside.leases.get(name).cloned());
        // It is over once another pod is in sync in place of the one that it was granted for.
        let lease = lease.filter(|(key, of)| {
            let now = pods.iter().find(|(it, _)| it.name == *key);
            *key != asked.0.name
                && !now.is_some_and(|(_, pod)| uid(pod) != *of && self.is_in_sync(pod))
        });
        let behind = others.find(|(_, pod)| !self.is_in_sync(pod));
        let behind = behind.map(|(key, _)| format!("{} is behind", key.name));
        let because: Vec<String> =
            behind.into_iter().chain(lease.map(|(key, _)| format!("{key} is leased"))).collect();
        if takes_lease && because.is_empty() {
            let lease = (asked.0.name.clone(), uid(&asked.1));
            self.with(|inside| inside.leases.insert(name.to_owned(), lease));
        }
        Some(because)
    }

    /// What the broker with this address answers to `POST /lifecycle/restart-lease`.
    fn lease(&self, ip: &str) -> Option<String> {
        let because = self.held_back(ip, true)?;
        let is_granted = because.is_empty();
        let body = json!({
            "granted": is_granted, "reasons": [], "because": because,
            "secondsLeft": is_granted.then_some(300), "leadsLeft": 0, "verdict": null,
        });
        let status = if is_granted { "200 OK" } else { "409 Conflict" };
        Some(format!("HTTP/1.1 {status}\r\n\r\n{body}"))
    }

    /// The pod whose end is reserved.
    pub(crate) fn leased(&self, cluster: &str) -> Option<String> {
        self.with(|inside| inside.leases.get(cluster).map(|(pod, _)| pod.clone()))
    }

    /// What the broker with this address answers to `DELETE /lifecycle/restart-lease`.
    fn release(&self, ip: &str) -> Option<String> {
        let pods = self.server.all(PODS);
        let asked = pods.iter().find(|(_, pod)| text(pod, "/status/podIP") == Some(ip))?;
        let cluster = text(&asked.1["metadata"]["labels"], "/letterbox.dev~1cluster")?;
        let was_there = self.with(|inside| inside.leases.remove(cluster).is_some());
        let body = json!({"holder": "letterbox-operator", "released": was_there});
        Some(format!("HTTP/1.1 200 OK\r\n\r\n{body}"))
    }

    /// What the broker with this address answers to `GET /lifecycle/restart-verdict`.
    fn verdict(&self, ip: &str) -> Option<String> {
        let because = self.held_back(ip, false)?;
        let none = json!({"count": 0, "partitions": []});
        let body = json!({
            "safe": because.is_empty(), "because": because, "singleReplica": none,
            "noSpareReplica": none,
        });
        Some(format!("HTTP/1.1 200 OK\r\n\r\n{body}"))
    }

    /// The claims, by their uids, that a pod has until it ends.
    pub(crate) fn held_by(&self, pod_uid: &str) -> Vec<String> {
        let of_pod = |inside: &mut Inside| inside.scheduled.get(pod_uid).cloned();
        self.with(of_pod).into_iter().flat_map(|(_, claims)| claims.into_values()).collect()
    }

    fn with<T>(&self, f: impl FnOnce(&mut Inside) -> T) -> T {
        f(&mut self.inside.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn look_after_set(&self, key: &Key, set: &Value) {
        let generation = set["metadata"]["generation"].clone();
        let mut hash = std::hash::DefaultHasher::new();
        set["spec"]["template"].to_string().hash(&mut hash);
        let revision = format!("{}-{:x}", key.name, hash.finish());
        let pod_key = Key { name: format!("{}-0", key.name), ..Key::new(PODS, &key.namespace, "") };
        if self.server.get(&pod_key).is_none() && set["spec"]["replicas"] != 0 {
            let template = &set["spec"]["template"];
            let mut metadata = template["metadata"].clone();
            metadata["ownerReferences"] = json!([{
                "apiVersion": "apps/v1", "kind": "StatefulSet", "name": key.name,
                "uid": set["metadata"]["uid"], "controller": true,
            }]);
            metadata["labels"]["controller-revision-hash"] = json!(revision);
            // Admission pins images, as policies of many clusters do.
            let mut spec = template["spec"].clone();
            spec["containers"][0]["image"] = json!("mirror/letterbox@sha256:5eed");
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
                "spec": spec, "status": {"phase": "Pending"},
            });
            // The next tick finds what this one did not make.
            let _ = self.server.create(ACTOR, &pod_key, pod);
        }
        self.server.edit(ACTOR, key, |set| {
            set["status"]["observedGeneration"] = generation;
            set["status"]["replicas"] = json!(1);
            set["status"]["updateRevision"] = json!(revision);
        });
    }

    fn look_after_pod(&self, key: &Key, pod: &Value) {
        let uid = text(pod, "/metadata/uid").unwrap_or_default().to_owned();
        if pod.pointer("/metadata/deletionTimestamp").is_some() {
            self.server.remove(ACTOR, key);
            return;
        }
        let Some((scheduled, claims)) = self.schedule(&uid, key, pod) else { return };
        let age = self.with(|inside| {
            let age = inside.age.entry(uid.clone()).or_default();
            *age += 1;
            *age
        });
        // One that does not take its volumes waits for others.
        let opens = self.with(|inside| inside.opens.is_some());
        let asked = text(pod, "/metadata/annotations/letterbox.dev~1image").unwrap_or_default();
        let is_pulled = !asked.starts_with(NOT_PULLED);
        let state = match is_pulled {
            true => json!({"running": {}}),
            false => json!({"waiting": {"reason": "ImagePullBackOff"}}),
        };
        let may_serve = is_pulled && text(pod, "/spec/containers/0/image") != Some(NEVER_SERVES);
        let is_ready =
            age > STARTS_IN && !opens && may_serve && self.start_broker(pod, &uid, &claims);
        let ready = if is_ready { "True" } else { "False" };
        let ip = format!(
            "10.0.{}.{}",
            key.namespace.len(),
            key.name.bytes().map(u32::from).sum::<u32>() % 250
        );
        self.server.edit(ACTOR, key, |pod| {
            pod["status"] = json!({
                "phase": "Running", "podIP": ip, "hostIP": "192.0.2.1",
                "conditions": [
                    {"type": "Ready", "status": ready},
                    {"type": "PodScheduled", "status": "True", "lastTransitionTime": scheduled},
                ],
                "containerStatuses": [{
                    "name": "kafka", "image": "letterbox:1", "imageID": "", "restartCount": 0,
                    "ready": is_ready, "state": state,
                }],
            });
        });
    }

    /// When a pod came to its node, and the claims that it has there; `None` while it waits for
    /// them.
    fn schedule(&self, uid: &str, key: &Key, pod: &Value) -> Option<(Value, Claims)> {
        let known = self.with(|inside| inside.scheduled.get(uid).cloned());
        known.or_else(|| {
            let scheduled = (json!(self.server.clock().now()), self.claims_of(key, pod)?);
            self.with(|inside| inside.scheduled.insert(uid.to_owned(), scheduled.clone()));
            Some(scheduled)
        })
    }

    /// The uids of the claims that a pod needs, by the name of their volumes; `None` while one of
    /// them is not bound.
    fn claims_of(&self, pod_key: &Key, pod: &Value) -> Option<Claims> {
        let volumes = pod.pointer("/spec/volumes")?.as_array()?;
        let mut claims = BTreeMap::new();
        for volume in volumes {
            let Some(name) = text(volume, "/persistentVolumeClaim/claimName") else { continue };
            let claim = self.server.get(&Key::new(CLAIMS, &pod_key.namespace, name))?;
            if text(&claim, "/status/phase") != Some("Bound") {
                return None;
            }
            let volume = text(volume, "/name")?.to_owned();
            claims.insert(volume, text(&claim, "/metadata/uid")?.to_owned());
        }
        Some(claims)
    }

    /// Whether a broker takes its volumes: all that it expects are there. What is empty beside
    /// them becomes its own.
    fn start_broker(&self, pod: &Value, uid: &str, claims: &Claims) -> bool {
        let begins_anew = !told(pod, "accepted.lost.metadata.log=").is_empty();
        let expected = told(pod, "expected.directory.ids=");
        self.with(|inside| {
            if inside.started.contains(uid) {
                return true;
            }
            let found: Vec<&String> =
                claims.values().filter_map(|uid| inside.directories.get(uid)).collect();
            let has_metadata = claims
                .get("data")
                .is_none_or(|uid| found.is_empty() || inside.directories.contains_key(uid));
            let takes = expected.iter().all(|each| found.contains(&each))
                && (has_metadata || begins_anew)
                && (expected.is_empty() || found.iter().all(|each| expected.contains(each)));
            if takes {
                inside.started.insert(uid.to_owned());
                for uid in claims.values() {
                    if !inside.directories.contains_key(uid) {
                        inside.made += 1;
                        inside
                            .directories
                            .insert(uid.clone(), format!("directory-{}", inside.made));
                    }
                }
            }
            takes
        })
    }

    fn look_after_claim(&self, key: &Key, claim: &Value) {
        let is_used = self.server.all(PODS).iter().any(|(pod, object)| {
            let uid = text(object, "/metadata/uid").unwrap_or_default();
            if !self.with(|inside| inside.scheduled.contains_key(uid)) {
                return false;
            }
            let volumes = object.pointer("/spec/volumes").and_then(Value::as_array);
            pod.namespace == key.namespace
                && volumes.into_iter().flatten().any(|volume| {
                    text(volume, "/persistentVolumeClaim/claimName") == Some(&key.name)
                })
        });
        if claim.pointer("/metadata/deletionTimestamp").is_some() {
            if !is_used {
                self.server.edit(ACTOR, key, |claim| claim["metadata"]["finalizers"] = json!([]));
            }
            return;
        }
        // There is no class of this name.
        let can_be_made = text(claim, "/spec/storageClassName") != Some("fsat");
        let is_bound = text(claim, "/status/phase") == Some("Bound");
        if text(claim, "/status/phase") == Some("Lost") {
            return; // For good.
        }
        let size = claim.pointer("/spec/resources/requests/storage").cloned();
        if is_bound || can_be_made {
            self.server.edit(ACTOR, key, |claim| {
                claim["spec"]["volumeName"] = json!(format!("volume-of-{}", key.name));
                claim["status"] = json!({"phase": "Bound", "capacity": {"storage": size}});
            });
        } else {
            self.server.edit(ACTOR, key, |claim| claim["status"] = json!({"phase": "Pending"}));
        }
    }

    /// Deletes what has lost its owner.
    fn collect(&self) {
        let resources = [
            (SETS, "letterbox.dev/kafkaclusters"),
            ("/services", "letterbox.dev/kafkaclusters"),
            ("/configmaps", "letterbox.dev/kafkaclusters"),
            ("/serviceaccounts", "letterbox.dev/kafkaclusters"),
            ("policy/poddisruptionbudgets", "letterbox.dev/kafkaclusters"),
            (PODS, SETS),
        ];
        for (resource, owners) in resources {
            let alive: Vec<String> = self
                .server
                .all(owners)
                .iter()
                .filter_map(|(_, owner)| text(owner, "/metadata/uid").map(ToOwned::to_owned))
                .collect();
            for (key, object) in self.server.all(resource) {
                let owner = text(&object, "/metadata/ownerReferences/0/uid");
                if owner.is_some_and(|uid| !alive.iter().any(|alive| alive == uid)) {
                    // Somebody else may have been faster.
                    let _ = self.server.delete(ACTOR, &key, None, None);
                }
            }
        }
    }

    /// What the broker with this address answers to `GET /identity`: one that serves, or waits for
    /// its directories.
    fn identity(&self, ip: &str) -> Option<String> {
        let mut pods = self.server.all(PODS).into_iter();
        let (key, pod) = pods.find(|(_, pod)| text(pod, "/status/podIP") == Some(ip))?;
        let uid = text(&pod, "/metadata/uid")?;
        if self.with(|inside| inside.age.get(uid).is_none_or(|age| *age <= STARTS_IN)) {
            return None;
        }
        let (_, claims) = self.schedule(uid, &key, &pod)?;
        let mounts = pod.pointer("/spec/containers/0/volumeMounts")?.as_array()?;
        let directories: Vec<Value> = mounts
            .iter()
            .filter_map(|mount| {
                let uid = claims.get(text(mount, "/name")?)?;
                let path = format!("{}/kafka-log", text(mount, "/mountPath")?);
                Some(json!({"path": path, "directory.id": self.directory_of(uid)?}))
            })
            .collect();
        let is_there = |id: &String| directories.iter().any(|each| each["directory.id"] == **id);
        let is_started = self.with(|inside| inside.started.contains(uid));
        let lost = told(&pod, "expected.directory.ids=").into_iter();
        let lost: Vec<Value> = lost
            .filter(|id| !is_started && !is_there(id))
            .map(|id| json!({"path": "/", "directory.id": id}))
            .collect();
        let id: Option<i32> = pod.pointer("/metadata/labels")?["letterbox.dev/broker"]
            .as_str()
            .and_then(|id| id.parse().ok());
        // Which cluster it is of, its claims say.
        let cluster = self.server.all(CLAIMS).into_iter().find_map(|(_, claim)| {
            let is_its = claims.values().any(|uid| text(&claim, "/metadata/uid") == Some(uid));
            let id = claim["metadata"]["annotations"]["letterbox.dev/cluster-id"].clone();
            is_its.then_some(id)
        });
        let cluster = self.with(|inside| inside.cluster_id.clone()).or(cluster);
        let opening = |done: u64| json!({"done": done, "total": 5000, "seconds.left": 5000 - done});
        let opening = self.with(|inside| inside.opens).map(opening);
        Some(
            json!({
                "cluster.id": cluster, "node.id": id, "directories": directories, "lost": lost,
                "opening": opening,
            })
            .to_string(),
        )
    }

    /// Makes the volume behind a claim anew, empty, and ends the pod that has it.
    pub(crate) fn empty(&self, claim: &Key, pod: &Key) {
        let uid = self
            .server
            .get(claim)
            .and_then(|claim| Some(text(&claim, "/metadata/uid")?.to_owned()));
        self.with(|inside| uid.and_then(|uid| inside.directories.remove(&uid)));
        self.server.remove("thief", pod);
    }
}

/// What is behind `key` in the command of a pod.
fn told(pod: &Value, key: &str) -> Vec<String> {
    let command = pod.pointer("/spec/containers/0/command").and_then(Value::as_array);
    let words = command.into_iter().flatten().filter_map(Value::as_str);
    let lists = words.filter_map(|word| word.strip_prefix(key));
    lists.flat_map(|list| list.split(',')).map(ToOwned::to_owned).collect()
}

/// The network of this world: brokers answer `GET /identity`, restart verdicts and leases, and clients if there is a
/// [`Kafka`]; an operator is reached by [`World::ask_operator`], and nothing else is there.
pub(crate) struct WorldNet {
    world: World,
    kafka: Option<Kafka>,
}

impl WorldNet {
    /// The network of `world`.
    #[must_use]
    pub(crate) fn new(world: World, kafka: Option<Kafka>) -> Self {
        Self { world, kafka }
    }
}

impl Net for WorldNet {
    fn bind<'a>(&'a self, _: &'a str, _: u16) -> BoxFuture<'a, io::Result<BoxListener>> {
        let (connections, accepted) = mpsc::unbounded_channel();
        self.world.with(|inside| inside.operator = Some(connections));
        let listener = Box::new(Listener(tokio::sync::Mutex::new(accepted))) as BoxListener;
        Box::pin(std::future::ready(Ok(listener)))
    }

    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        if let Some(kafka) = self.kafka.as_ref().filter(|_| port == 9092) {
            return Box::pin(std::future::ready(kafka.connect_operator()));
        }
        Box::pin(async move {
            let is_mute = self.world.with(|inside| inside.is_mute);
            let body = self.world.identity(host).filter(|_| port == 9644 && !is_mute);
            let body = body.ok_or(io::ErrorKind::ConnectionRefused)?;
            let (ours, mut theirs) = tokio::io::duplex(4096);
            let (world, host) = (self.world.clone(), host.to_owned());
            tokio::spawn(async move {
                let mut request = [0; 1024];
                // A client that went away needs no answer.
                let _ = theirs.read(&mut request).await;
                let other = match &request {
                    it if it.starts_with(b"GET /readyz") => world.not_ready(),
                    it if it.starts_with(b"GET /lifecycle/") => world.verdict(&host),
                    it if it.starts_with(b"POST /lifecycle/") => world.lease(&host),
                    it if it.starts_with(b"DELETE /lifecycle/") => world.release(&host),
                    _ => None,
                };
                let answer = other.unwrap_or_else(|| format!("HTTP/1.1 200 OK\r\n\r\n{body}"));
                let _ = theirs.write_all(answer.as_bytes()).await;
            });
            Ok(Box::new(Pipe(ours)) as BoxStream)
        })
    }
}

pub(crate) struct Pipe(pub(crate) tokio::io::DuplexStream);

impl letterbox_env::Stream for Pipe {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([10, 0, 0, 1], 9644)))
    }
}

impl tokio::io::AsyncRead for Pipe {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl tokio::io::AsyncWrite for Pipe {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(context)
    }
}
