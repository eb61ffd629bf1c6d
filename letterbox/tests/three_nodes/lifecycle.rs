//! Three processes say whether one of them may restart, wherever they are asked.

use serde_json::Value;

use super::*;

/// Starts these nodes with an admin port each.
fn start_with_admin(
    dir: &Path,
    ids: &[i32],
    ports: &Ports,
    admin: &BTreeMap<i32, u16>,
) -> BTreeMap<i32, Broker> {
    thread::scope(|scope| {
        let starting: Vec<_> = ids
            .iter()
            .map(|id| {
                let (file, address) = configure(dir, *id, ports);
                let admin = format!("admin.listener=127.0.0.1:{}", admin[id]);
                let arguments = vec!["--override".to_owned(), admin];
                (*id, scope.spawn(move || Broker::run(file, arguments, address)))
            })
            .collect();
        starting.into_iter().map(|(id, started)| (id, started.join().unwrap())).collect()
    })
}

/// The verdict over `brokers`, as the broker with that admin port tells it.
fn verdict(port: u16, brokers: &str) -> Value {
    answer(port, &format!("/lifecycle/restart-verdict?brokers={brokers}"))
}

/// How far all brokers are, as the one with that admin port tells it, where `query` says nothing
/// else.
fn caught_up(port: u16, query: &str) -> Value {
    answer(port, &format!("/lifecycle/caught-up?{query}"))
}

fn answer(port: u16, path: &str) -> Value {
    let (status, body) = http_get(port, path);
    // There is no active controller while one is elected.
    assert!(["200", "503"].contains(&status.as_str()), "{status} {body}");
    serde_json::from_str(&body).unwrap()
}

#[test]
fn a_broker_may_restart_only_while_the_others_do_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let ports: Ports = NODES.into_iter().map(|id| (id, (free_port(), free_port()))).collect();
    let admin: BTreeMap<i32, u16> = NODES.into_iter().map(|id| (id, free_port())).collect();
    let mut nodes = start_with_admin(dir.path(), &NODES, &ports, &admin);
    assert_eq!(create(&mut nodes[&1].connect(), "replicated", 3).0, 0);
    // Each node says the same, whoever leads.
    for port in admin.values() {
        eventually("one of three may restart", || verdict(*port, "1")["safe"] == true);
        let two = verdict(*port, "1,2");
        assert_eq!(two["safe"], false, "{two}");
        assert_eq!(two["belowMinIsr"]["count"], PARTITIONS, "{two}");
        assert_eq!(two["belowMinIsr"]["partitions"][0]["topic"], "replicated", "{two}");
        let left = serde_json::json!({"count": 3, "needed": 2, "left": 1, "kept": false});
        assert_eq!(two["voters"], left, "{two}");
        assert_eq!(two["because"].as_array().unwrap().len(), 2, "{two}");
    }
    // It is dead at once, and the registration of before it is not the one after it.
    let restarted = format!("brokers=3&since-epoch={}", verdict(admin[&1], "3")["epoch"]);
    nodes.remove(&3).unwrap().kill();
    let three = caught_up(admin[&1], &restarted);
    assert_eq!((&three["caughtUp"], &three["brokers"][0]["broker"]), (&false.into(), &3.into()));
    for id in [1, 2] {
        eventually("while one is away, no other may restart", || {
            let one = verdict(admin[&id], "1");
            one["safe"] == false
                && one["away"] == serde_json::json!([3])
                && one["belowMinIsr"]["count"] == PARTITIONS
                && one["voters"]["kept"] == false
        });
        let away = verdict(admin[&id], "3");
        assert_eq!(away["safe"], true, "the one that is away may: {away}");
    }
    fill(&nodes, "replicated");
    for id in [1, 2] {
        let mut seen = Value::Null;
        eventually("the leaders have told how much it lacks", || {
            seen = caught_up(admin[&id], "");
            seen["brokers"][2]["bytesLeft"].as_u64() > Some(0)
        });
        let (one, three) = (&seen["brokers"][0], &seen["brokers"][2]);
        assert_eq!((&seen["caughtUp"], &one["caughtUp"]), (&false.into(), &true.into()), "{seen}");
        assert_eq!((&three["broker"], &three["serving"]), (&3.into(), &false.into()), "{seen}");
        assert_eq!(three["notInSync"]["count"], PARTITIONS, "{seen}");
    }
    nodes.extend(start_with_admin(dir.path(), &[3], &ports, &admin));
    for port in admin.values() {
        eventually("it is back and in sync", || verdict(*port, "1")["safe"] == true);
        eventually("it is told so", || caught_up(*port, &restarted)["caughtUp"] == true);
        assert_eq!(caught_up(*port, "")["brokers"][2]["bytesLeft"], 0);
    }
    for node in nodes.values_mut() {
        node.stop();
    }
}

/// Status and answer of a question for a restart lease.
fn lease(port: u16, holder: &str, brokers: i32) -> (String, Value) {
    let query = format!("holder={holder}&brokers={brokers}&seconds=3600");
    let head = format!("POST /lifecycle/restart-lease?{query} HTTP/1.1\r\nHost: broker\r\n");
    let answer = http(port, format!("{head}Connection: close\r\n\r\n").as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().to_owned(), serde_json::from_str(body).unwrap())
}

#[test]
fn a_restart_lease_holds_others_up_until_its_broker_is_back_whoever_the_controller_is() {
    let dir = tempfile::tempdir().unwrap();
    let ports: Ports = NODES.into_iter().map(|id| (id, (free_port(), free_port()))).collect();
    let admin: BTreeMap<i32, u16> = NODES.into_iter().map(|id| (id, free_port())).collect();
    let mut nodes = start_with_admin(dir.path(), &NODES, &ports, &admin);
    assert_eq!(create(&mut nodes[&1].connect(), "replicated", 3).0, 0);
    eventually("one of three may restart", || verdict(admin[&1], "1")["safe"] == true);
    let controller = quorum(&mut nodes[&1].connect()).unwrap().0;
    let mut others = NODES.into_iter().filter(|id| *id != controller);
    let (leased, other) = (others.next().unwrap(), others.next().unwrap());
    let mut granted = Value::Null;
    eventually("it is granted, and hands over", || {
        granted = lease(admin[&other], "a", leased).1;
        granted["granted"] == true && granted["leadsLeft"] == 0
    });
    let is_without = |node: &Broker| leaders(node, "replicated").iter().all(|id| *id != leased);
    for node in nodes.values() {
        eventually("it leads nothing", || is_without(node));
    }
    let held = |port: u16, brokers: i32| {
        let found = verdict(port, &brokers.to_string());
        found["leases"][0]["holder"] == "a" && found["safe"] == false
    };
    for port in admin.values() {
        let (status, refused) = lease(*port, "b", other);
        assert_eq!((status.as_str(), &refused["granted"]), ("409", &false.into()), "{refused}");
        let reasons = serde_json::json!(["belowMinIsr", "quorum"]);
        assert_eq!(refused["reasons"], reasons, "{refused}");
        assert!(held(*port, other));
        assert_eq!(verdict(*port, &leased.to_string())["safe"], true);
    }
    // Another controller knows it, and elects who has no lease over it.
    let epoch = |id: i32| verdict(admin[&other], &id.to_string())["epoch"].clone();
    let before = epoch(controller);
    nodes.remove(&controller).unwrap().kill();
    let left = &nodes[&other];
    eventually("the other one leads all", || {
        leaders(left, "replicated").iter().all(|id| *id == other)
    });
    eventually("the next controller knows it", || held(admin[&leased], other));
    nodes.extend(start_with_admin(dir.path(), &[controller], &ports, &admin));
    let caught_up_again = |id: i32, since: &Value| {
        let query = format!("brokers={id}&since-epoch={since}");
        eventually("it is back", || caught_up(admin[&other], &query)["caughtUp"] == true);
    };
    caught_up_again(controller, &before);
    assert!(held(admin[&controller], other), "its own broker has not restarted");
    let before = epoch(leased);
    nodes.remove(&leased).unwrap().kill();
    nodes.extend(start_with_admin(dir.path(), &[leased], &ports, &admin));
    caught_up_again(leased, &before);
    for port in admin.values() {
        eventually("it is over", || verdict(*port, "1")["leases"] == serde_json::json!([]));
    }
    eventually("another one is granted", || lease(admin[&other], "b", other).0 == "200");
    for node in nodes.values_mut() {
        node.stop();
    }
}
