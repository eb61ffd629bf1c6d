//! What partitions leave in the outbox (`crate::replication::outbox`), carried to other nodes, to
//! the controller and to the disk.
//!
//! - `fetching`: one fetch under way to each leader; what comes of it goes to the partitions.
//! - `reporting`: up to where followers count, over a connection of its own, because a fetch that
//!   is parked at its leader blocks the one it came on.
//! - `isr`: the ISRs that leaders ask for, all in one operation, one under way.
//! - `logs`: which logs are out of use, for the controller.
//! - `local`: logs that are cut, and what time brings.
//! - `peer`: a connection to another broker.
//!
//! Two tasks for each leader and a handful for the node; none for a partition. What they hold of
//! others is bounded: one answer of each leader, of at most `replica.fetch.response.max.bytes` or
//! one batch.

mod fetching;
mod isr;
mod local;
mod logs;
mod peer;
mod reporting;

use std::collections::BTreeSet;
use std::sync::Arc;

use letterbox_env::Env;
use letterbox_protocol::model::BrokerId;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::stage::Stage;
use crate::config::Config;
use crate::controller::Controller;
use crate::metadata::Secret;
use crate::replication::ReplicaManager;
use crate::replication::leader::BrokerEpoch;

/// What all tasks of this module use.
struct Shared {
    env: Env,
    config: Config,
    replicas: Arc<ReplicaManager>,
    controller: Controller,
    me: Me,
}

/// This broker as the cluster has registered it.
#[derive(Clone, Copy)]
struct Me {
    id: BrokerId,
    epoch: BrokerEpoch,
    secret: Option<Secret>,
}

/// Starts the tasks; `epoch` is that of this broker's registration.
pub(super) fn begin(
    stage: &mut Stage,
    env: Env,
    config: Config,
    replicas: Arc<ReplicaManager>,
    controller: Controller,
    epoch: BrokerEpoch,
) {
    let id = config.node_id;
    // It acts on no metadata that is older than its registration.
    let secret = replicas.image().brokers.get(&id).and_then(|own| own.secret);
    let me = Me { id, epoch, secret };
    let shared = Arc::new(Shared { env, config, replicas, controller, me });
    stage.run(|stop| ask_leaders(shared.clone(), stop));
    stage.run(|stop| isr::ask(shared.clone(), stop));
    stage.run(|stop| logs::tell(shared.clone(), stop));
    stage.run(|stop| local::change_logs(shared.clone(), stop));
    stage.run(|stop| local::wait(shared.clone(), stop));
    stage.run(|stop| local::look_behind(shared.clone(), stop));
    stage.run(|stop| local::look_at_lags(shared, stop));
}

/// Has two tasks for each broker that is asked for something.
async fn ask_leaders(shared: Arc<Shared>, stop: CancellationToken) {
    let (mut asked, mut tasks) = (BTreeSet::new(), JoinSet::new());
    let outbox = shared.replicas.outbox();
    loop {
        for (leader, wake) in outbox.leaders() {
            if asked.insert(leader) {
                let fetching = fetching::Fetching::new(shared.clone(), leader, wake.fetches);
                tasks.spawn(fetching.run(stop.clone()));
                let shared = shared.clone();
                tasks.spawn(reporting::report(shared, leader, wake.reports, stop.clone()));
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = outbox.leaders.notified() => {}
        }
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}
