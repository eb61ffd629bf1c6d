//! Which ports the brokers of `letterbox up` have.
//!
//! Clients from the first port up: each listener has one for each broker. Controller listeners from
//! 400 above the first port, health and metrics from 552 above (9644 for 9092). A cluster keeps the
//! ports that it was given (`DIR/CLUSTER/ports.json`) whatever else comes into the file, because
//! clients have them in their configuration, and its brokers find each other by them; another
//! `--port` gives others.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use kube::ResourceExt as _;
use letterbox_env::{Env, Gather};
use serde::{Deserialize, Serialize};

use crate::api::KafkaCluster;
use crate::desired::{POOL, broker_ids};

/// Above the first port: those of clients.
const CLIENTS: Range<u16> = 0..400;
/// Those of controller listeners.
const CONTROLLERS: Range<u16> = 400..552;
/// Those of health and metrics.
const ADMINS: Range<u16> = 552..704;

/// The ports of one broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerPorts {
    /// By listener name.
    pub clients: BTreeMap<String, u16>,
    /// The controller listener.
    pub controller: u16,
    /// Health and metrics.
    pub admin: u16,
}

/// The ports of one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterPorts {
    /// The first port (`--port`) when they were given.
    pub first: u16,
    /// By broker id.
    pub brokers: BTreeMap<i32, BrokerPorts>,
}

/// Gives the brokers of every cluster their ports: those that they had (`kept`, by cluster), and
/// the lowest ones that are free: no cluster in `kept` has them, whether or not it is among
/// `clusters` now.
///
/// # Errors
/// When they do not fit below 65536, or are too many.
pub fn assign_ports(
    clusters: &[KafkaCluster],
    first: u16,
    kept: &BTreeMap<String, ClusterPorts>,
) -> Result<BTreeMap<String, ClusterPorts>, String> {
    if first == 0 {
        return Err("give a --port from 1 on: clients are told it".to_owned());
    }
    let mut free = Free { first, taken: BTreeSet::new() };
    let mut all = BTreeMap::new();
    for cluster in clusters {
        let name = cluster.name_any();
        let had = kept.get(&name).filter(|kept| kept.first == first);
        let had = had.map(|kept| kept.asked_by(cluster)).filter(|kept| free.take(kept));
        all.insert(name, had.unwrap_or_else(|| ClusterPorts { first, ..ClusterPorts::default() }));
    }
    let others = kept.iter().filter(|(name, _)| !all.contains_key(*name));
    free.taken.extend(others.flat_map(|(_, ports)| ports.all()));
    for cluster in clusters {
        let Some(ports) = all.get_mut(&cluster.name_any()) else { continue };
        for id in broker_ids(cluster) {
            if let std::collections::btree_map::Entry::Vacant(new) = ports.brokers.entry(id) {
                new.insert(BrokerPorts {
                    clients: BTreeMap::new(),
                    controller: free.next(CONTROLLERS)?,
                    admin: free.next(ADMINS)?,
                });
            }
        }
        for listener in &cluster.spec.listeners {
            for broker in ports.brokers.values_mut() {
                if !broker.clients.contains_key(&listener.name) {
                    broker.clients.insert(listener.name.clone(), free.next(CLIENTS)?);
                }
            }
        }
    }
    Ok(all)
}

impl ClusterPorts {
    fn all(&self) -> impl Iterator<Item = u16> {
        let of = |broker: &BrokerPorts| {
            let clients: Vec<u16> = broker.clients.values().copied().collect();
            clients.into_iter().chain([broker.controller, broker.admin])
        };
        self.brokers.values().flat_map(of)
    }

    /// Those of the brokers and listeners that `cluster` has.
    fn asked_by(&self, cluster: &KafkaCluster) -> Self {
        let mut asked = self.clone();
        let ids: BTreeSet<i32> = broker_ids(cluster).gather();
        asked.brokers.retain(|id, _| ids.contains(id));
        let listeners = &cluster.spec.listeners;
        for broker in asked.brokers.values_mut() {
            broker.clients.retain(|name, _| listeners.iter().any(|each| each.name == *name));
        }
        asked
    }
}

/// The ports that no broker has yet.
struct Free {
    first: u16,
    taken: BTreeSet<u16>,
}

impl Free {
    /// Takes these ports if nobody has any of them.
    fn take(&mut self, ports: &ClusterPorts) -> bool {
        let all: Vec<u16> = ports.all().collect();
        let distinct: BTreeSet<u16> = all.iter().copied().gather();
        let is_free = distinct.len() == all.len()
            && distinct.is_disjoint(&self.taken)
            && !distinct.contains(&0);
        if is_free {
            self.taken.extend(distinct);
        }
        is_free
    }

    /// The lowest one so far above the first port.
    fn next(&mut self, above: Range<u16>) -> Result<u16, String> {
        let first = self.first;
        for above in above {
            let port = first.checked_add(above).ok_or_else(|| {
                format!(
                    "the ports that the clusters need from {first} on do not fit below 65536; give \
                     a lower --port"
                )
            })?;
            if self.taken.insert(port) {
                return Ok(port);
            }
        }
        Err(format!(
            "a file may have at most {} brokers, and {} listeners of all of them together",
            ADMINS.len(),
            CLIENTS.len()
        ))
    }
}

/// The ports of `clusters` with their data under `dir`, written down before a broker has one.
///
/// # Errors
/// A cluster that was made with another number of brokers; what [`assign_ports`] refuses; and what
/// could not be read or written.
pub fn place(
    env: &Env,
    dir: &Path,
    clusters: &[KafkaCluster],
    first: u16,
) -> Result<BTreeMap<String, ClusterPorts>, String> {
    let mut kept = others(env, dir);
    for cluster in clusters {
        let name = cluster.name_any();
        let dir = dir.join(&name);
        let (ports, made) = read(env, &dir)?;
        if let Some(made) = made {
            check_count(cluster, made, &dir)?;
        }
        kept.remove(&name);
        kept.extend(ports.map(|ports| (name, ports)));
    }
    let all = assign_ports(clusters, first, &kept)?;
    for (name, ports) in all.iter().filter(|(name, ports)| kept.get(*name) != Some(*ports)) {
        write(env, &dir.join(name), ports)?;
    }
    Ok(all)
}

/// The ports of all clusters that have a folder in `dir`. One whose ports cannot be read is told
/// when it is asked for.
fn others(env: &Env, dir: &Path) -> BTreeMap<String, ClusterPorts> {
    let folders = env.disk.list(dir).unwrap_or_default().into_iter();
    let ports = |name: String| {
        let text = env.disk.read(&dir.join(&name).join(FILE)).ok()?;
        Some((name, serde_json::from_slice(&text).ok()?))
    };
    folders.filter_map(|folder| ports(folder.name)).gather()
}

/// The ports that the cluster in `dir` has, and of how many brokers it was made; `None` where it
/// was not made yet. One that an earlier version made has no file, and one broker.
fn read(env: &Env, dir: &Path) -> Result<(Option<ClusterPorts>, Option<usize>), String> {
    let file = dir.join(FILE);
    let tell = |error: &dyn std::fmt::Display| {
        format!("read {}: {error}; without it the brokers get new ports", file.display())
    };
    let exists = |path: &Path| env.disk.exists(path).map_err(|error| tell(&error));
    let ports: Option<ClusterPorts> = match exists(&file)? {
        true => {
            let bytes = env.disk.read(&file).map_err(|error| tell(&error))?;
            Some(serde_json::from_slice(&bytes).map_err(|error| tell(&error))?)
        }
        false => None,
    };
    let has = |id: i32| exists(&dir.join(format!("{POOL}-{id}")));
    let (has_more, has_any) = (has(1)? || has(2)?, has(0)? || has(1)? || has(2)?);
    let made = match &ports {
        _ if !has_any => None,
        Some(ports) => Some(ports.brokers.len()),
        None => Some(if has_more { 3 } else { 1 }),
    };
    Ok((ports, made))
}

fn write(env: &Env, dir: &Path, ports: &ClusterPorts) -> Result<(), String> {
    let file = dir.join(FILE);
    let tell = |error: &dyn std::fmt::Display| format!("write {}: {error}", file.display());
    let text = serde_json::to_vec_pretty(ports).map_err(|error| tell(&error))?;
    env.disk.create_dir_all_durably(dir).map_err(|error| tell(&error))?;
    env.disk.write_atomically(&file, &text).map_err(|error| tell(&error))
}

/// The file, in the folder of a cluster.
const FILE: &str = "ports.json";

/// A cluster goes on with as many brokers as it was made of: voters and replicas are not moved here.
fn check_count(cluster: &KafkaCluster, made: usize, dir: &Path) -> Result<(), String> {
    let replicas = cluster.spec.replicas;
    if usize::try_from(replicas) == Ok(made) {
        return Ok(());
    }
    let (name, dir) = (cluster.name_any(), dir.display());
    Err(format!(
        "KafkaCluster {name}: spec.replicas: the cluster in {dir} was made with {made}, and this \
         version does not change that to {replicas}; set spec.replicas to {made}, give another \
         folder with --data, or remove {dir} and all its records to begin anew"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{KafkaClusterSpec, Listener};

    fn cluster(name: &str, replicas: i32, listeners: &[&str]) -> KafkaCluster {
        let one = KafkaClusterSpec::default().listeners[0].clone();
        let named = |name: &&str| Listener { name: (*name).to_owned(), ..one.clone() };
        let listeners = listeners.iter().map(named).collect();
        KafkaCluster::new(name, KafkaClusterSpec { replicas, listeners, ..Default::default() })
    }

    fn of(clients: &[(&str, u16)], controller: u16, admin: u16) -> BrokerPorts {
        let clients = clients.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect();
        BrokerPorts { clients, controller, admin }
    }

    #[test]
    fn each_listener_has_a_port_for_each_broker() {
        let (a, b) = (cluster("a", 1, &["plain", "other"]), cluster("b", 3, &["plain", "other"]));
        let ports = assign_ports(&[a, b], 9092, &BTreeMap::new()).unwrap();
        assert_eq!(
            ports["a"].brokers,
            BTreeMap::from([(0, of(&[("plain", 9092), ("other", 9093)], 9492, 9644))])
        );
        assert_eq!(
            ports["b"].brokers,
            BTreeMap::from([
                (0, of(&[("plain", 9094), ("other", 9097)], 9493, 9645)),
                (1, of(&[("plain", 9095), ("other", 9098)], 9494, 9646)),
                (2, of(&[("plain", 9096), ("other", 9099)], 9495, 9647)),
            ])
        );
        let high = assign_ports(&[cluster("a", 3, &["plain"])], 65_000, &BTreeMap::new());
        assert!(high.unwrap_err().contains("lower --port"));
        let none = assign_ports(&[cluster("a", 1, &["plain"])], 0, &BTreeMap::new());
        assert!(none.unwrap_err().contains("--port from 1 on"));
        let many: Vec<KafkaCluster> =
            (0..51).map(|at| cluster(&format!("c{at}"), 3, &["plain"])).collect();
        let many = assign_ports(&many, 9092, &BTreeMap::new()).unwrap_err();
        assert!(many.contains("at most 152 brokers, and 400 listeners"), "{many}");
    }

    #[test]
    fn a_cluster_keeps_its_ports_whatever_comes_into_the_file() {
        let b = cluster("b", 3, &["plain"]);
        let kept = assign_ports(std::slice::from_ref(&b), 9092, &BTreeMap::new()).unwrap();
        let more = [cluster("a", 1, &["plain"]), cluster("b", 3, &["plain", "other"])];
        let ports = assign_ports(&more, 9092, &kept).unwrap();
        for (id, broker) in &kept["b"].brokers {
            let now = &ports["b"].brokers[id];
            assert_eq!(
                (now.clients["plain"], now.controller, now.admin),
                (broker.clients["plain"], broker.controller, broker.admin)
            );
        }
        assert_eq!(ports["a"].brokers[&0], of(&[("plain", 9095)], 9495, 9647));
        assert_eq!(ports["b"].brokers[&2].clients["other"], 9098);
        // Back as it was; the other listener's ports are free again.
        assert_eq!(assign_ports(std::slice::from_ref(&b), 9092, &ports).unwrap(), kept);
        let moved = assign_ports(&[b], 9192, &ports).unwrap();
        assert_eq!(moved["b"].brokers[&0], of(&[("plain", 9192)], 9592, 9744));
    }

    #[test]
    fn a_cluster_that_is_not_in_the_file_keeps_its_ports_and_its_number() {
        let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
        let place = |clusters: &[KafkaCluster]| super::place(&env, dir.path(), clusters, 9092);
        let (a, b) = (cluster("a", 3, &["plain"]), cluster("b", 3, &["plain"]));
        env.disk.create_dir_all(&dir.path().join("lost+found")).unwrap();
        let first = place(std::slice::from_ref(&a)).unwrap();
        let other = place(std::slice::from_ref(&b)).unwrap();
        let both = place(&[a, b]).unwrap();
        assert_eq!((&both["a"], &both["b"]), (&first["a"], &other["b"]));
        // Of three brokers, the folder of the first one is lost.
        env.disk.create_dir_all(&dir.path().join("a/broker-1")).unwrap();
        let refused = place(&[cluster("a", 1, &["plain"])]).unwrap_err();
        assert!(refused.contains("was made with 3,"), "{refused}");
    }

    #[test]
    fn no_two_have_the_same_port_whatever_was_kept() {
        let all = [cluster("a", 3, &["plain"]), cluster("b", 3, &["plain"])];
        let apart = assign_ports(&all[..1], 9092, &BTreeMap::new()).unwrap();
        let mut kept = apart.clone();
        kept.insert("b".to_owned(), apart["a"].clone());
        let ports = assign_ports(&all, 9092, &kept).unwrap();
        assert_eq!(ports["a"], apart["a"]);
        let brokers = || ports.values().flat_map(|cluster| cluster.brokers.values());
        let of = |each: &BrokerPorts| [each.clients["plain"], each.controller, each.admin];
        let distinct: BTreeSet<u16> = brokers().flat_map(of).collect();
        assert_eq!(distinct.len(), 18, "{ports:?}");
    }

    #[test]
    fn the_ports_are_written_down_and_the_number_of_brokers_stays() {
        let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
        let place = |replicas: i32| {
            super::place(&env, dir.path(), &[cluster("a", replicas, &["plain"])], 9092)
        };
        // Nothing was made yet: it may still be another number.
        place(1).unwrap();
        let three = place(3).unwrap();
        env.disk.create_dir_all(&dir.path().join("a/broker-0")).unwrap();
        assert_eq!(place(3).unwrap(), three);
        let refused = place(1).unwrap_err();
        assert!(
            refused.starts_with("KafkaCluster a: spec.replicas: ")
                && refused.contains("was made with 3,")
                && refused.contains("does not change that to 1; set spec.replicas to 3, "),
            "{refused}"
        );
        // A folder without the file is of an earlier version, which made one broker.
        env.disk.remove_file(&dir.path().join("a").join(FILE)).unwrap();
        assert!(place(3).unwrap_err().contains("was made with 1, and this version does not"));
        place(1).unwrap();
        let bad = dir.path().join("a").join(FILE);
        env.disk.write_atomically(&bad, b"{").unwrap();
        let refused = place(1).unwrap_err();
        assert!(refused.contains("ports.json: EOF") && refused.contains("new ports"), "{refused}");
    }
}
