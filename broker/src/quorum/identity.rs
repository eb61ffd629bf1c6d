//! Who a node of the quorum is, and whom it takes for a voter.
//!
//! A voter is a node id and an incarnation: the id of the log that it votes with, drawn when that
//! log is made and named in the membership. A node with another log may have lost votes and
//! entries that others counted on, so it is nobody's voter, under whatever node id it comes. Each
//! side of a connection compares the other's hello with its own membership; a node without one is
//! heard by nobody, and hears nobody.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use letterbox_env::panics::lock;
use letterbox_env::{Env, with_causes};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::SeenVoter;
use super::log_store::LogStore;
use super::network::{VERSIONS, ask_who};
use super::types::{Members, Raft, Voter, members};

/// Nodes of which it is remembered why they were refused.
const SAID_MAX: usize = 16;

/// What each side says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// The oldest and the newest version that it speaks.
    pub(super) versions: (u16, u16),
    /// Not known to a voter that is new.
    pub(super) cluster_id: Option<String>,
    pub(super) from: u64,
    pub(super) to: u64,
    /// The id of its log.
    pub(super) incarnation: Uuid,
    /// Drawn at each start of the process: tells a node from a copy of it.
    #[serde(default)]
    pub(super) start: Uuid,
    /// `directory.id` of the directory with its log, once it has one.
    #[serde(default)]
    pub(super) directory_id: Option<Uuid>,
    /// `controller.quorum.voters` in its configuration: where each voter is reached.
    #[serde(default)]
    pub(super) voters: BTreeMap<u64, (String, u16)>,
    /// The membership in its log; nobody while the log is new.
    #[serde(default)]
    pub(super) members: Members,
    /// Where its log ends: the index after the last entry.
    #[serde(default)]
    pub(super) log_end: u64,
}

impl Hello {
    /// The newest version that both sides speak.
    pub(super) fn version(&self) -> Option<u16> {
        let (oldest, newest) = (self.versions.0.max(VERSIONS.0), self.versions.1.min(VERSIONS.1));
        (oldest <= newest).then_some(newest)
    }
}

/// Why the other side of a connection is not heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub(super) reason: String,
    /// It ends by itself, as a start does.
    pub(super) passes: bool,
}

impl Refusal {
    fn never(reason: String) -> Self {
        Self { reason, passes: false }
    }

    pub(super) fn not_yet(reason: String) -> Self {
        Self { reason, passes: true }
    }
}

/// Who this node is, and whom it has met.
pub(super) struct Identity {
    pub(super) node_id: u64,
    /// The id of this node's log.
    pub(super) incarnation: Uuid,
    start: Uuid,
    /// As configured.
    pub(super) voters: BTreeMap<u64, Voter>,
    /// The membership in the log when it was opened, or begun.
    pub(super) stored: OnceLock<Members>,
    pub(super) log: LogStore,
    pub(super) cluster_id: OnceLock<String>,
    pub(super) directory_id: OnceLock<Uuid>,
    /// Once this node takes part.
    pub(super) raft: OnceLock<Raft>,
    /// Connections that were refused because of who the other side is.
    pub(super) refused: AtomicU64,
    /// Why each node was refused last: it tries again and again.
    said: Mutex<BTreeMap<u64, String>>,
    /// What is known of each other voter.
    met: Mutex<BTreeMap<u64, Met>>,
}

/// What is known of another voter.
#[derive(Clone, Debug, Default)]
pub(super) struct Met {
    /// Its process, which answers where it is reached.
    start: Option<Uuid>,
    pub(super) seen: SeenVoter,
    /// Why it could not be reached when that was tried last.
    pub(super) unreachable: Option<String>,
}

impl Identity {
    pub(super) fn new(
        env: &Env,
        (node_id, incarnation): (u64, Uuid),
        voters: BTreeMap<u64, Voter>,
        known: Members,
        log: LogStore,
    ) -> Self {
        let stored = OnceLock::new();
        if !known.is_empty() {
            let _ = stored.set(known);
        }
        Self {
            node_id,
            incarnation,
            start: env.random_uuid(),
            voters,
            stored,
            log,
            cluster_id: OnceLock::new(),
            directory_id: OnceLock::new(),
            raft: OnceLock::new(),
            refused: AtomicU64::new(0),
            said: Mutex::default(),
            met: Mutex::default(),
        }
    }

    pub(super) fn hello(&self, to: u64) -> Hello {
        let address = |voter: &Voter| (voter.host.clone(), voter.port);
        Hello {
            versions: VERSIONS,
            cluster_id: self.cluster_id.get().cloned(),
            from: self.node_id,
            to,
            incarnation: self.incarnation,
            start: self.start,
            directory_id: self.directory_id.get().copied(),
            voters: self.voters.iter().map(|(id, voter)| (*id, address(voter))).collect(),
            members: self.members(),
            log_end: self.log.end(),
        }
    }

    /// The membership that this node knows.
    pub(super) fn members(&self) -> Members {
        let newest = self.raft.get().map(|raft| {
            let metrics = raft.metrics();
            let metrics = metrics.borrow();
            members(&metrics.membership_config)
        });
        newest
            .filter(|members| !members.is_empty())
            .unwrap_or_else(|| self.stored.get().cloned().unwrap_or_default())
    }

    /// What is known of `node`.
    pub(super) fn met(&self, node: u64) -> Met {
        lock(&self.met).get(&node).cloned().unwrap_or_default()
    }

    pub(super) fn meet(&self, node: u64, meet: impl FnOnce(&mut Met)) {
        // No more than there are voters: who is none is not let in.
        if self.voters.contains_key(&node) {
            meet(lock(&self.met).entry(node).or_default());
        }
    }

    /// Whether the other side of a connection is a voter, and this node one to it.
    pub(super) fn check(&self, hello: &Hello, called: Option<u64>) -> Result<(), Refusal> {
        let known = self.raft.get().filter(|_| called.is_some()).and_then(|raft| {
            let metrics = raft.metrics();
            let metrics = metrics.borrow();
            let matched = metrics.replication.as_ref()?.get(&hello.from).copied()??;
            Some(matched.index.saturating_add(1))
        });
        examine(&self.hello(hello.from), hello, called, known.unwrap_or(0))
    }

    /// Whether the process that says `hello` is the one that answers where its node is reached: of
    /// a voter and its copy, which vote with the same log, only that one is heard.
    pub(super) async fn prove(&self, env: &Env, hello: &Hello) -> Result<(), Refusal> {
        let node = hello.from;
        if self.is_current(hello) {
            return Ok(());
        }
        let Some(at) = self.voters.get(&node) else {
            return Err(Refusal::never(format!("node {node} is not among the voters")));
        };
        let place = format!("{}:{} (controller.quorum.voters)", at.host, at.port);
        match ask_who(env, &self.hello(node), node, at).await {
            Ok(found) if found.start == hello.start && found.incarnation == hello.incarnation => {
                self.meet(node, |met| met.start = Some(found.start));
                Ok(())
            }
            Ok(_) => Err(Refusal::never(format!(
                "another process is node {node} at {place}: the directory of a voter must not be \
                 copied, and serves one process; end this one"
            ))),
            Err(error) => Err(Refusal::not_yet(format!(
                "node {node} is not found at {place}: {}",
                with_causes(&error)
            ))),
        }
    }

    /// Whether `hello` is of the process that is node `hello.from` for all that this node knows.
    pub(super) fn is_current(&self, hello: &Hello) -> bool {
        self.met(hello.from).start == Some(hello.start)
    }

    /// Says why `node` is not heard, or does not hear this node, when that has changed.
    pub(super) fn say(&self, node: u64, refusal: Option<&Refusal>, by_other: bool) {
        let mut said = lock(&self.said);
        let Some(Refusal { reason, passes }) = refusal else {
            said.remove(&node);
            return;
        };
        if !passes && !by_other {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        if said.len() >= SAID_MAX {
            said.clear();
        }
        if said.insert(node, reason.clone()).as_ref() == Some(reason) {
            return;
        }
        drop(said);
        match (passes, by_other) {
            (true, _) => tracing::debug!(node, reason, "a voter of the metadata quorum must wait"),
            (false, false) => {
                tracing::error!(node, reason, "refusing a voter of the metadata quorum");
            }
            (false, true) => {
                tracing::error!(node, reason, "a voter of the metadata quorum refuses this node");
            }
        }
    }
}

/// Compares `hello` with what its receiver would say, `own`. `matched` is how far the log of the
/// sender is known to have gone.
fn examine(own: &Hello, hello: &Hello, called: Option<u64>, matched: u64) -> Result<(), Refusal> {
    let (node, to) = (hello.from, own.from);
    if hello.version().is_none() {
        let ((oldest, newest), (own_oldest, own_newest)) = (hello.versions, VERSIONS);
        return Err(Refusal::never(format!(
            "it speaks versions {oldest} to {newest} of the protocol between brokers, and this \
             node {own_oldest} to {own_newest}; upgrade one version at a time"
        )));
    }
    if called.is_some_and(|called| called != node) {
        return Err(Refusal::never(format!("it is node {node}, not the node that was called")));
    }
    if hello.to != to {
        return Err(Refusal::never(format!(
            "it addresses node {}, but this is node {to}",
            hello.to
        )));
    }
    match (&own.cluster_id, &hello.cluster_id) {
        (Some(own), Some(other)) if own == other => {}
        (Some(own), Some(other)) => {
            return Err(Refusal::never(format!(
                "node {node} belongs to cluster {other:?}, and node {to} to {own:?}; correct \
                 controller.quorum.voters, so that it names the voters of one cluster"
            )));
        }
        _ => return Err(Refusal::not_yet("one of both does not know its cluster yet".to_owned())),
    }
    if node == to || !own.voters.contains_key(&node) {
        return Err(Refusal::never(format!("node {node} is not among controller.quorum.voters")));
    }
    if own.members.is_empty() || hello.members.is_empty() {
        return Err(Refusal::not_yet("the cluster is not founded yet".to_owned()));
    }
    is_member(&own.members, node, hello.incarnation)?;
    is_member(&hello.members, to, own.incarnation)?;
    if hello.log_end < matched {
        return Err(Refusal::never(format!(
            "node {node} has had {matched} entries of the metadata log and comes back with {}: an \
             older state of its directory was put in its place, without votes and entries that \
             others counted on. {}",
            hello.log_end,
            super::founding::LOST
        )));
    }
    Ok(())
}

/// Whether `node` votes with the log `incarnation`.
fn is_member(members: &Members, node: u64, incarnation: Uuid) -> Result<(), Refusal> {
    match members.get(&node).map(|voter| voter.incarnation) {
        Some(known) if known == incarnation => Ok(()),
        Some(known) => Err(Refusal::never(format!(
            "node {node} votes with the metadata log {known}, and its log is {incarnation}: it has \
             lost its own. {}",
            super::founding::LOST
        ))),
        None => Err(Refusal::never(format!("node {node} is not a voter of this cluster"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn with_log(n: u128) -> Voter {
        Voter { incarnation: log(n), ..Voter::default() }
    }

    /// Voter `from` of three, whose log is `log(from)`; it knows these logs of voters 1, 2 and 3.
    fn voter(from: u64, to: u64, logs: &[u128]) -> Hello {
        Hello {
            versions: VERSIONS,
            cluster_id: Some("one".to_owned()),
            from,
            to,
            incarnation: log(from.into()),
            start: Uuid::nil(),
            directory_id: None,
            voters: (1..=3).map(|id| (id, (format!("host-{id}"), 9093))).collect(),
            members: (1..).zip(logs).map(|(id, n)| (id, with_log(*n))).collect(),
            log_end: 5,
        }
    }

    #[test]
    fn the_newest_version_that_both_sides_speak_is_spoken() {
        let version = |versions| Hello { versions, ..voter(1, 2, &[]) }.version();
        assert_eq!(version(VERSIONS), Some(VERSIONS.1));
        assert_eq!(version((VERSIONS.0, u16::MAX)), Some(VERSIONS.1));
        assert_eq!(version((0, VERSIONS.0)), Some(VERSIONS.0));
        assert_eq!(version((VERSIONS.1 + 1, u16::MAX)), None);
        assert_eq!(version((3, 2)), None);
    }

    #[test]
    fn a_voter_is_heard_with_the_log_that_the_membership_names_and_no_other() {
        const ALL: &[u128] = &[1, 2, 3];
        let own = voter(1, 2, ALL);
        let heard = |own: &Hello, other: &Hello| examine(own, other, None, 0);
        let refused = |own: &Hello, other: &Hello, with: &str| {
            let refusal = heard(own, other).unwrap_err();
            assert!(refusal.reason.contains(with), "{refusal:?}");
            refusal.passes
        };
        assert_eq!(heard(&own, &voter(2, 1, ALL)), Ok(()));
        assert!(refused(&own, &voter(2, 1, &[]), "not founded yet"));
        assert!(refused(&voter(1, 2, &[]), &voter(2, 1, ALL), "not founded yet"));
        let unknown = Hello { cluster_id: None, ..voter(2, 1, &[]) };
        assert!(refused(&own, &unknown, "does not know its cluster yet"));

        // The other one has lost its log, or this one has; each side says so.
        let emptied = Hello { incarnation: log(22), ..voter(2, 1, &[1, 22, 3]) };
        assert!(!refused(&own, &emptied, "node 2 votes with"));
        assert!(!refused(&own, &emptied, "has lost its own"));
        assert!(!refused(&own, &voter(2, 1, &[11, 2, 3]), "node 1 votes with"));
        let older = voter(2, 1, ALL);
        assert!(examine(&own, &older, Some(2), 5).is_ok());
        let refusal = examine(&own, &older, Some(2), 6).unwrap_err();
        assert!(refusal.reason.contains("had 6 entries") && !refusal.passes, "{refusal:?}");

        // Another node, another cluster, another version, itself.
        let other = Hello { cluster_id: Some("other".to_owned()), ..voter(2, 1, ALL) };
        assert!(!refused(&own, &other, "node 2 belongs to cluster \"other\", and node 1 to"));
        assert!(!refused(&own, &voter(7, 1, ALL), "node 7 is not among controller.quorum.voters"));
        assert!(!refused(&own, &voter(1, 1, ALL), "node 1 is not among"));
        assert!(!refused(&own, &voter(2, 3, ALL), "addresses node 3, but this is node 1"));
        assert!(examine(&own, &voter(3, 1, ALL), Some(2), 0).is_err());
        let other = Hello { versions: (VERSIONS.1 + 1, u16::MAX), ..voter(2, 1, ALL) };
        assert!(!refused(&own, &other, "upgrade one version at a time"));
        // A member of neither's lists alone is not enough.
        assert!(!refused(&voter(1, 3, &[1, 2]), &voter(3, 1, ALL), "not a voter of this cluster"));
    }
}
