//! Three nodes that know one another's addresses, and nobody's id.

use super::*;

/// A file as people write it for `controller.quorum.bootstrap.servers`. Where the node is reached
/// is nowhere in it but among those.
fn configure(dir: &Path, id: i32, ports: &Ports) -> (PathBuf, SocketAddr) {
    let servers: Vec<_> = ports.values().map(|(_, port)| format!("127.0.0.1:{port}")).collect();
    let (clients, voter) = ports[&id];
    let text = format!(
        "process.roles=broker,controller\nnode.id={id}\n\
         controller.quorum.bootstrap.servers={}\ncontroller.listener.names=CONTROLLER\n\
         listeners=PLAINTEXT://127.0.0.1:{clients},CONTROLLER://:{voter}\n\
         advertised.listeners=PLAINTEXT://localhost:{clients}\n\
         inter.broker.listener.name=PLAINTEXT\nlog.dirs={}\nadmin.listener=none\n\
         min.insync.replicas=2\n",
        servers.join(","),
        dir.join(format!("data-{id}")).display()
    );
    let file = dir.join(format!("server-{id}.properties"));
    std::fs::write(&file, text).unwrap();
    (file, SocketAddr::from(([127, 0, 0, 1], clients)))
}

#[test]
fn nodes_that_are_told_addresses_alone_found_a_cluster_and_come_back() {
    const TOPIC: &str = "told";
    let dir = tempfile::tempdir().unwrap();
    let ports: Ports = NODES.into_iter().map(|id| (id, (free_port(), free_port()))).collect();
    for round in 0..2 {
        let mut nodes: BTreeMap<i32, Broker> = thread::scope(|scope| {
            let starting = NODES.map(|id| {
                let (file, address) = configure(dir.path(), id, &ports);
                (id, scope.spawn(move || Broker::run(file, Vec::new(), address)))
            });
            starting.into_iter().map(|(id, started)| (id, started.join().unwrap())).collect()
        });
        let mut stream = nodes[&1].connect();
        let ids: Vec<_> =
            nodes.values().map(|node| metadata(&mut node.connect()).cluster_id).collect();
        assert!(ids[0].is_some() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        eventually("all brokers are there", || metadata(&mut stream).brokers.len() == 3);
        eventually("a leader of the quorum", || quorum(&mut stream).is_some());
        assert!(quorum(&mut stream).unwrap().1.into_keys().eq(NODES));
        if round == 0 {
            assert_eq!(create(&mut stream, TOPIC, 3).0, 0);
        }
        eventually("all replicas are in sync", || {
            led_by(&mut stream, TOPIC).is_some_and(|(_, in_sync)| in_sync == NODES.len())
        });
        let topics = [TOPIC.to_owned()];
        eventually("everybody tells of it", || {
            nodes.values().all(|node| is_whole(&mut node.connect(), &topics))
        });
        if round == 0 {
            fill(&nodes, TOPIC);
        }
        // Offsets of groups have as many replicas as elsewhere.
        let keys = vec![StrBytes::from_static_str("group")];
        let find = || m::FindCoordinatorRequest::default().with_coordinator_keys(keys.clone());
        eventually("the group has a coordinator", || {
            let Response::FindCoordinator(found) = ask(&mut stream, 4, find()) else {
                unreachable!()
            };
            found.coordinators[0].error_code == 0
        });
        let seen = metadata(&mut stream);
        let offsets = seen.topics.iter().find(|one| one.name == Some(name("__consumer_offsets")));
        let replicas = offsets.unwrap().partitions.iter().map(|one| one.replica_nodes.len());
        assert_eq!(replicas.min(), Some(3));
        for node in nodes.values_mut() {
            node.stop();
        }
    }
}
