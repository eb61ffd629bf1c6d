//! Voters that are all new, or of several clusters.

use std::collections::BTreeMap;
use std::time::Duration;

use letterbox_env::Env;
use tokio::time::timeout;

use super::three_voters::{config, free_ports};
use crate::quorum::{FoundingError, RaftQuorum, agree_on_cluster_id};

async fn agree(id: i32, ports: &BTreeMap<i32, u16>) -> Result<String, FoundingError> {
    let voters = ports.iter().map(|(id, port)| (*id, ("127.0.0.1".to_owned(), *port))).collect();
    let listener = ("127.0.0.1".to_owned(), ports[&id]);
    agree_on_cluster_id(&Env::real(), id, &listener, &voters).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_voters_take_one_id_once_all_of_them_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports().await;
    // Two of three are not enough: the third may belong to a cluster.
    let two = async { tokio::join!(agree(1, &ports), agree(2, &ports)) };
    assert!(timeout(Duration::from_secs(2), two).await.is_err());
    // The first draws the id when it has heard of both; then it is asked for it.
    let first = async {
        let cluster_id = agree(1, &ports).await.unwrap();
        let mut config = config(dir.path(), 1, &ports);
        config.cluster_id = Some(cluster_id.clone());
        (RaftQuorum::open(Env::real(), config).await.unwrap(), cluster_id)
    };
    let all = async { tokio::join!(first, agree(2, &ports), agree(3, &ports)) };
    let ((quorum, drawn), second, third) =
        timeout(Duration::from_secs(30), all).await.expect("they agree");
    assert_eq!((second.unwrap(), third.unwrap()), (drawn.clone(), drawn));
    use crate::quorum::MetadataQuorum as _;
    quorum.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_of_two_clusters_are_told_apart_by_name() {
    use crate::quorum::MetadataQuorum as _;
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports().await;
    let mut quorums = Vec::new();
    for (id, cluster_id) in [(1, "one"), (2, "other")] {
        let mut config = config(dir.path(), id, &ports);
        config.cluster_id = Some(cluster_id.to_owned());
        quorums.push(RaftQuorum::open(Env::real(), config).await.unwrap());
    }
    let error = timeout(Duration::from_secs(30), agree(3, &ports)).await.unwrap().unwrap_err();
    let said = error.to_string();
    assert!(said.contains("voter 1 belongs to cluster one"), "{said}");
    assert!(said.contains("voter 2 to cluster other"), "{said}");
    super::eventually("they refuse one another", || {
        quorums.iter().all(|quorum| quorum.refused_connections() > 0)
    })
    .await;
    for quorum in &quorums {
        quorum.shutdown().await;
    }
}
