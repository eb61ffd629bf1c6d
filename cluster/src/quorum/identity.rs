//! Who a node of the quorum is, and whom it takes for a voter.
//!
//! A voter is a node id and an incarnation: the id of the log that it votes with, drawn when that
//! log is made and named in the membership. A node with another log may have lost votes and
//! entries that others counted on, so it is nobody's voter, under whatever node id it comes. The
//! same is so of observers. Who calls compares the answer with the member that it means to call, by
//! the membership in its own log: so nobody ever counts a log for another one. Who is called hears
//! the members of the newest membership that it knows of (`docs/design/0004-voters.md`).
//!
//! What a hello says is told to everybody who asks. So whoever comes as a voter must also know a
//! secret that this node tells only where that voter is reached, to each start of its process.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use letterbox_env::panics::lock;
use letterbox_env::{Env, Gather, join_address, with_causes};
use openraft::RaftMetrics;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::SeenVoter;
use super::log_store::LogStore;
use super::network::{VERSIONS, ask_who, invalid, tell_secret};
use super::types::{Known, Members, NodeLogId, Raft, Reached, Voter};

/// Nodes of which it is remembered why they were refused.
const SAID_MAX: usize = 16;
/// For finding out whether there is a newer membership, and between two times of that.
const ASK_AROUND_WITHIN: Duration = Duration::from_secs(1);
/// A node that has not heard of a leader for so long asks what it is to the others.
pub(super) const CUT_OFF_AFTER: Duration = Duration::from_secs(4);

/// What every version says of itself, and every other one reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Speaks {
    /// The oldest and the newest version that it speaks.
    pub(super) versions: (u16, u16),
    /// The release that it is of.
    #[serde(default)]
    pub(super) release: String,
}

impl Default for Speaks {
    fn default() -> Self {
        Self { versions: VERSIONS, release: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

impl Speaks {
    /// The newest version that both sides speak.
    ///
    /// # Errors
    /// There is none, in words for a person.
    pub(super) fn version(&self) -> Result<u16, String> {
        let own = Self::default();
        let (oldest, newest) =
            (self.versions.0.max(own.versions.0), self.versions.1.min(own.versions.1));
        if oldest <= newest {
            return Ok(newest);
        }
        let said = |Self { versions: (oldest, newest), release }: &Self| {
            let release = if release.is_empty() { "that has no name" } else { release };
            format!("{release} (versions {oldest} to {newest})")
        };
        Err(format!(
            "releases {} and {} have no version of the protocol between nodes in common; upgrade \
             one release at a time",
            said(self),
            said(&own)
        ))
    }
}

/// What each side says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    #[serde(flatten)]
    pub(super) speaks: Speaks,
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
    /// The voters that it founds a cluster with, and where each is reached:
    /// `controller.quorum.voters` in its configuration, or who is new at
    /// `controller.quorum.bootstrap.servers`.
    #[serde(default)]
    pub(super) voters: BTreeMap<u64, (String, u16)>,
    /// The voters in its log, who is addressed, and itself; nobody while the log is new.
    #[serde(default)]
    pub(super) members: Members,
    /// The entry of that membership.
    #[serde(default)]
    pub(super) at: Option<NodeLogId>,
    /// See [`Known::configs`].
    #[serde(default)]
    pub(super) configs: Vec<BTreeSet<u64>>,
    /// Where it is reached, as it says.
    #[serde(default)]
    pub(super) reached_at: Option<(String, u16)>,
    /// Whether it is to vote (`controller.quorum.auto.join.enable`).
    #[serde(default)]
    pub(super) joins: bool,
    #[serde(default)]
    pub(super) reached: Reached,
    /// The logs of the other voters that it has found, while it is new.
    #[serde(default)]
    pub(super) sees: BTreeMap<u64, Uuid>,
}

impl Hello {
    /// What the other side has said.
    ///
    /// # Errors
    /// It is no hello that this version reads; both releases are named where that is why.
    pub(super) fn read(body: &[u8]) -> io::Result<Self> {
        serde_json::from_slice(body).or_else(|error| {
            let speaks: Speaks = serde_json::from_slice(body)?;
            speaks.version().map_err(invalid)?;
            Err(error.into())
        })
    }

    /// Whether its own log says that it is a member.
    pub(super) fn was_member(&self) -> bool {
        self.known().names(self.from, self.incarnation)
    }

    pub(super) fn known(&self) -> Known {
        Known { at: self.at, members: self.members.clone(), configs: self.configs.clone() }
    }
}

/// Why the other side of a connection is not heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub(super) reason: String,
    /// It ends by itself, as a start does.
    pub(super) passes: bool,
    /// By its own log the other side is a member, and it is none any more.
    pub(super) is_out: bool,
}

impl Refusal {
    fn never(reason: String) -> Self {
        Self { reason, passes: false, is_out: false }
    }

    pub(super) fn not_yet(reason: String) -> Self {
        Self { reason, passes: true, is_out: false }
    }

    fn out(reason: String) -> Self {
        Self { reason, passes: false, is_out: true }
    }
}

/// Who this node is, and whom it has met.
pub(super) struct Identity {
    pub(super) node_id: u64,
    /// The id of this node's log.
    pub(super) incarnation: Uuid,
    start: Uuid,
    /// As configured: where these are reached, whatever the membership says.
    pub(super) voters: BTreeMap<u64, Voter>,
    /// Without a list of voters: those that were all new where voters are found, with this one.
    found: Mutex<BTreeMap<u64, Voter>>,
    /// See [`Self::reached_at`] and [`Hello::joins`].
    reached_at: Option<(String, u16)>,
    pub(super) joins: bool,
    /// Who has answered the leader within this time is there.
    pub(super) lease: Duration,
    /// The membership in the log when it was opened, or begun.
    pub(super) stored: Mutex<Known>,
    /// The newest membership that a member has told, or a node that was found where the
    /// configuration says.
    told: Mutex<Known>,
    /// When it was asked for last.
    asked_around: tokio::sync::Mutex<Option<Instant>>,
    /// Held by who changes the membership.
    pub(super) changing: tokio::sync::Mutex<()>,
    pub(super) log: LogStore,
    pub(super) cluster_id: OnceLock<String>,
    pub(super) directory_id: OnceLock<Uuid>,
    /// Once this node takes part.
    pub(super) raft: OnceLock<Raft>,
    /// Connections that were refused because of who the other side is.
    pub(super) refused: AtomicU64,
    /// Why each node was refused last: it tries again and again.
    said: Mutex<BTreeMap<u64, String>>,
    /// When a leader last had entries for this node, or none.
    heard_at: Mutex<Option<Instant>>,
    /// Since when, and why, others take this node for no member any more; no leader has called
    /// since.
    pub(super) out: watch::Sender<Option<(Instant, String)>>,
    /// Whether this node is about to end, and asks to be a member no more.
    pub(super) leaves: watch::Sender<bool>,
    /// What is known of each other voter.
    met: Mutex<BTreeMap<u64, Met>>,
    /// What each voter tells only this node, by which it knows that this is the voter it is.
    secrets: Mutex<BTreeMap<u64, Uuid>>,
    /// See [`Hello::sees`].
    pub(super) sees: Mutex<BTreeMap<u64, Uuid>>,
}

/// What is known of another voter.
#[derive(Clone, Debug, Default)]
pub(super) struct Met {
    /// Of which log of it; what is known of another one is forgotten.
    incarnation: Uuid,
    /// Its process that answered last where it is reached, and the secret that this was told.
    current: Option<(Uuid, Uuid)>,
    log: MetLog,
    pub(super) seen: SeenVoter,
    /// When that was sent which it answered last as a follower of this node.
    pub(super) followed: Option<Instant>,
    /// When that was sent with which it had everything.
    pub(super) caught_up: Option<Instant>,
    /// Why it could not be reached when that was tried last.
    pub(super) unreachable: Option<String>,
}

/// How far the log of a voter has come, as its processes said. Kept by process: what one of them
/// says may be older than what it has acknowledged meanwhile; the next one begins with all of it.
#[derive(Clone, Debug, Default)]
struct MetLog {
    /// The process that has spoken last.
    start: Uuid,
    /// What it has said or acknowledged at most.
    reached: Reached,
    /// The same of those before it.
    before: Reached,
}

impl MetLog {
    /// What a process says at least when it has the directory of those before it.
    fn least(&self, start: Uuid) -> Reached {
        if start == self.start { self.before } else { self.before.max(self.reached) }
    }

    fn hear(&mut self, start: Uuid, reached: Reached) {
        if start != self.start {
            *self = Self { start, before: self.least(start), reached };
        }
        self.reached = self.reached.max(reached);
    }
}

impl Met {
    /// The voter has said `hello`, and it is that voter.
    pub(super) fn hear(&mut self, hello: &Hello) {
        self.seen.directory_id = hello.directory_id;
        self.log.hear(hello.start, hello.reached);
    }

    /// The voter has acknowledged that its log has come so far.
    pub(super) fn acknowledged(&mut self, reached: Reached) {
        self.log.reached = self.log.reached.max(reached);
    }
}

pub(super) fn address(voter: &Voter) -> (String, u16) {
    (voter.host.clone(), voter.port)
}

impl Identity {
    pub(super) fn new(
        env: &Env,
        (node_id, incarnation): (u64, Uuid),
        voters: BTreeMap<u64, Voter>,
        (reached_at, joins, lease): (Option<(String, u16)>, bool, Duration),
        known: Known,
        log: LogStore,
    ) -> Self {
        Self {
            node_id,
            incarnation,
            start: env.random_uuid(),
            voters,
            found: Mutex::default(),
            reached_at,
            joins,
            lease,
            stored: Mutex::new(known),
            told: Mutex::default(),
            asked_around: tokio::sync::Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            log,
            cluster_id: OnceLock::new(),
            directory_id: OnceLock::new(),
            raft: OnceLock::new(),
            refused: AtomicU64::new(0),
            said: Mutex::default(),
            heard_at: Mutex::default(),
            out: watch::Sender::default(),
            leaves: watch::Sender::default(),
            met: Mutex::default(),
            secrets: Mutex::default(),
            sees: Mutex::default(),
        }
    }

    /// The voters that a cluster is founded with: as configured, or found.
    pub(super) fn founders(&self) -> BTreeMap<u64, Voter> {
        match self.voters.is_empty() {
            true => lock(&self.found).clone(),
            false => self.voters.clone(),
        }
    }

    /// Keeps who was found; nobody is no news, because an answer may be missing for a moment.
    pub(super) fn find_founders(&self, found: BTreeMap<u64, Voter>) {
        if !found.is_empty() {
            *lock(&self.found) = found;
        }
    }

    /// Where this node is reached, as it says.
    pub(super) fn reached_at(&self) -> Option<(String, u16)> {
        let found = lock(&self.found).get(&self.node_id).map(address);
        found.filter(|_| self.voters.is_empty()).or_else(|| self.reached_at.clone())
    }

    pub(super) fn hello(&self, to: u64) -> Hello {
        let Known { at, mut members, configs } = self.own();
        let is_told = |id: &u64| [to, self.node_id].contains(id);
        members.retain(|id, _| is_told(id) || configs.iter().any(|voters| voters.contains(id)));
        Hello {
            speaks: Speaks::default(),
            cluster_id: self.cluster_id.get().cloned(),
            from: self.node_id,
            to,
            incarnation: self.incarnation,
            start: self.start,
            directory_id: self.directory_id.get().copied(),
            voters: self.founders().iter().map(|(id, voter)| (*id, address(voter))).gather(),
            members,
            at,
            configs,
            reached_at: self.reached_at(),
            joins: self.joins,
            reached: self.log.reached(),
            sees: lock(&self.sees).clone(),
        }
    }

    /// The membership in this node's log.
    pub(super) fn own(&self) -> Known {
        let newest = self.raft.get().map(|raft| {
            let metrics = raft.metrics();
            let metrics = metrics.borrow();
            Known::of(&metrics.membership_config)
        });
        newest.filter(|own| !own.is_empty()).unwrap_or_else(|| lock(&self.stored).clone())
    }

    /// The newest membership that this node knows of.
    pub(super) fn newest(&self) -> Known {
        // Asked before the membership: what is applied then may only be more than this.
        let applied = self.applied();
        newest_of(self.own(), lock(&self.told).clone(), applied)
    }

    /// A member has told its membership.
    pub(super) fn tell(&self, known: Known) {
        let (applied, own) = (self.applied(), self.own());
        let mut told = lock(&self.told);
        if known.at > newest_of(own, told.clone(), applied).at {
            *told = known;
        }
    }

    /// The last entry of the log that this node has applied.
    fn applied(&self) -> Option<NodeLogId> {
        self.raft.get().and_then(|raft| raft.metrics().borrow().last_applied)
    }

    /// Whether this node votes, and not another log under its id.
    pub(super) fn is_voter(&self) -> bool {
        self.votes_in(&self.own())
    }

    /// The same, by what openraft tells.
    pub(super) fn is_voter_in(&self, metrics: &RaftMetrics<u64, Voter>) -> bool {
        self.votes_in(&Known::of(&metrics.membership_config))
    }

    fn votes_in(&self, known: &Known) -> bool {
        known.is_voter(self.node_id) && self.is_named_in(known)
    }

    /// Whether this node votes alone.
    pub(super) fn is_sole_voter(&self) -> bool {
        let own = self.own();
        self.is_named_in(&own) && own.configs == [[self.node_id].into()]
    }

    /// The log of a sole voter is not named in a membership from before that was written down.
    fn is_named_in(&self, known: &Known) -> bool {
        let is_alone = self.reached_at.is_none() && known.members.len() == 1;
        let is_own = |member: &Voter| {
            member.incarnation == self.incarnation || (member.incarnation.is_nil() && is_alone)
        };
        known.members.get(&self.node_id).is_some_and(is_own)
    }

    /// The member `node` of `known`, and where it is reached.
    pub(super) fn member(&self, known: &Known, node: u64) -> Option<Voter> {
        Some(self.reached(node, known.members.get(&node)?.clone()))
    }

    /// `member`, where it is reached: what is configured counts before what the metadata log says,
    /// because a voter may move.
    pub(super) fn reached(&self, node: u64, member: Voter) -> Voter {
        match self.voters.get(&node) {
            Some(at) => Voter { host: at.host.clone(), port: at.port, ..member },
            None => member,
        }
    }

    /// What is known of `node`.
    pub(super) fn met(&self, node: u64) -> Met {
        lock(&self.met).get(&node).cloned().unwrap_or_default()
    }

    /// The same, of its log `incarnation`.
    pub(super) fn met_as(&self, node: u64, incarnation: Uuid) -> Met {
        let met = self.met(node);
        if met.incarnation == incarnation { met } else { Met::default() }
    }

    /// `directory.id` of a member, as the membership says or the member itself.
    pub(super) fn directory_of(&self, node: u64, member: &Voter) -> Option<Uuid> {
        let told = || match node == self.node_id {
            true => self.directory_id.get().copied(),
            false => self.met_as(node, member.incarnation).seen.directory_id,
        };
        member.directory_id.or_else(told)
    }

    pub(super) fn meet(&self, node: u64, incarnation: Uuid, meet: impl FnOnce(&mut Met)) {
        // No more than there are members: who is none is not let in.
        if self.newest().names(node, incarnation) {
            let mut met = lock(&self.met);
            let met = met.entry(node).or_default();
            if met.incarnation != incarnation {
                *met = Met { incarnation, ..Met::default() };
            }
            meet(met);
        }
    }

    /// Whether the member `node` has answered this node as its leader within `lease`.
    pub(super) fn is_followed_by(&self, known: &Known, node: u64, lease: Duration) -> bool {
        let incarnation = known.members.get(&node).map(|member| member.incarnation);
        let followed = incarnation.and_then(|log| self.met_as(node, log).followed);
        node == self.node_id || followed.is_some_and(|at| at.elapsed() <= lease)
    }

    /// Whether a majority, with this node, has answered it as their leader within `lease`.
    pub(super) fn is_followed(&self, lease: Duration) -> bool {
        let own = self.own();
        own.has_majority(|id| self.is_followed_by(&own, id, lease))
    }

    /// Whether the other side of a connection is a member, and this node one to it, by what it
    /// says. `called` is the node that was called, and its log.
    pub(super) fn check(&self, hello: &Hello, called: Option<(u64, Uuid)>) -> Result<(), Refusal> {
        let met = self.met_as(hello.from, hello.incarnation);
        let least = met.log.least(hello.start);
        examine(&self.hello(hello.from), &self.newest().members, hello, called, least)
    }

    /// Whether who said `hello` is still a member.
    pub(super) fn hears(&self, hello: &Hello) -> bool {
        self.newest().names(hello.from, hello.incarnation)
    }

    /// Looks for a newer membership than this node knows of, where the members that it knows are
    /// reached, and those that are configured: a node that was away may be called by one that was
    /// added meanwhile.
    pub(super) async fn ask_around(&self, env: &Env) {
        let mut asked = self.asked_around.lock().await;
        if asked.is_some_and(|at| at.elapsed() < ASK_AROUND_WITHIN) {
            return;
        }
        let newest = self.newest();
        let known = newest.members.keys().filter_map(|id| Some((*id, self.member(&newest, *id)?)));
        let mut all: BTreeMap<u64, Voter> = self.voters.clone();
        all.extend(known);
        all.remove(&self.node_id);
        let answers = all.iter().map(|(id, at)| async move {
            let hello = self.hello(*id);
            let asked = ask_who(env, &hello, Some(*id), at);
            tokio::time::timeout(ASK_AROUND_WITHIN, asked).await.ok()?.ok()
        });
        for hello in futures::future::join_all(answers).await.into_iter().flatten() {
            let told = hello.known();
            let is_trusted = match newest.members.get(&hello.from) {
                Some(member) if member.incarnation == hello.incarnation => true,
                _ => {
                    self.voters.contains_key(&hello.from)
                        && told.names(hello.from, hello.incarnation)
                }
            };
            if is_trusted && hello.cluster_id.as_ref() == self.cluster_id.get() {
                self.tell(told);
            }
        }
        *asked = Some(Instant::now());
    }

    /// Whether `hello` is of the process that is node `hello.from` for all that this node knows: of
    /// a voter and its copy, which vote with the same log, only the one is heard that answers where
    /// the voter is reached.
    pub(super) fn is_current(&self, hello: &Hello) -> bool {
        let met = self.met_as(hello.from, hello.incarnation);
        met.current.is_some_and(|(start, _)| start == hello.start)
    }

    /// Whether `said` is the secret that the current process of `node` was told.
    pub(super) fn is_secret(&self, node: u64, said: &[u8]) -> bool {
        self.met(node).current.is_some_and(|(_, secret)| secret.as_bytes() == said)
    }

    /// Looks who answers where `hello.from` is reached, and tells it its secret.
    pub(super) async fn ask_back(&self, env: &Env, hello: &Hello) -> Result<(), Refusal> {
        let node = hello.from;
        let Some(at) = self.member(&self.newest(), node) else {
            return Err(Refusal::never(format!("node {node} is not a member of this cluster")));
        };
        let place = format!("{}:{} (controller.quorum.voters)", at.host, at.port);
        let secret = |found: &Hello| {
            let is_it = found.start == hello.start && found.incarnation == hello.incarnation;
            is_it.then(|| self.secret_for(env, found))
        };
        match tell_secret(env, &self.hello(node), node, &at, secret).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refusal::out(format!(
                "another process is node {node} at {place}: the directory of a voter must not be \
                 copied, and serves one process; end this one"
            ))),
            Err(error) => Err(Refusal::not_yet(format!(
                "node {node} is not found at {place}: {}",
                with_causes(&error)
            ))),
        }
    }

    /// The secret of the process that answers where its node is reached; another one for each
    /// start.
    fn secret_for(&self, env: &Env, found: &Hello) -> Uuid {
        let mut secret = env.random_uuid();
        self.meet(found.from, found.incarnation, |met| match met.current {
            Some((current, known)) if current == found.start => secret = known,
            _ => met.current = Some((found.start, secret)),
        });
        secret
    }

    /// Keeps what `node` has told, or somebody who says that it is that node.
    pub(super) fn keep_secret(&self, node: u64, secret: Uuid) {
        if self.voters.contains_key(&node) || self.newest().members.contains_key(&node) {
            lock(&self.secrets).insert(node, secret);
        }
    }

    /// What proves to `node` that this is the voter it is.
    pub(super) fn secret_of(&self, node: u64) -> Uuid {
        lock(&self.secrets).get(&node).copied().unwrap_or_default()
    }

    /// A leader has called, with entries or without.
    pub(super) fn hear_leader(&self) {
        *lock(&self.heard_at) = Some(Instant::now());
        self.out.send_if_modified(|out| out.take().is_some());
    }

    /// Another member takes this node for none any more, which counts only while no leader calls.
    pub(super) fn told_out(&self, reason: &str) {
        if self.heard_at().is_none_or(|at| at.elapsed() > CUT_OFF_AFTER) {
            self.out.send_if_modified(|out| {
                let is_news = out.is_none();
                out.get_or_insert_with(|| (Instant::now(), reason.to_owned()));
                is_news
            });
        }
    }

    /// When a leader has called last.
    pub(super) fn heard_at(&self) -> Option<Instant> {
        *lock(&self.heard_at)
    }

    /// Says why `node` is not heard, or does not hear this node, when that has changed.
    pub(super) fn say(&self, node: u64, refusal: Option<&Refusal>, by_other: bool) {
        let mut said = lock(&self.said);
        let Some(Refusal { reason, passes, is_out }) = refusal else {
            said.remove(&node);
            return;
        };
        if by_other && *is_out {
            self.told_out(reason);
        }
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

/// Compares `hello` with what its receiver would say, `own`, and with the members that it knows of.
/// The log of the sender is known to have come as far as `least` before this process of it.
fn examine(
    own: &Hello,
    newest: &Members,
    hello: &Hello,
    called: Option<(u64, Uuid)>,
    least: Reached,
) -> Result<(), Refusal> {
    let (node, to) = (hello.from, own.from);
    hello.speaks.version().map_err(Refusal::never)?;
    if called.is_some_and(|(called, _)| called != node) {
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
    if node == to {
        return Err(Refusal::never(format!("node {node} is this node itself")));
    }
    if newest.is_empty() || (called.is_none() && hello.members.is_empty()) {
        return Err(Refusal::not_yet("the cluster is not founded yet".to_owned()));
    }
    match called {
        // Whatever is known by now: it would be counted as the one that was called.
        Some((_, log)) if log == hello.incarnation => {}
        Some((_, log)) => return Err(other_log(node, log, hello.incarnation)),
        None => {
            is_known(newest, hello)?;
            is_member(&hello.members, to, own.incarnation)?;
        }
    }
    if hello.reached < least {
        return Err(Refusal::never(format!(
            "the metadata log of node {node} was at {least}, and it comes back with one at {}: an \
             older state of its directory was put in its place, without votes and entries that \
             others counted on. {}",
            hello.reached,
            super::founding::LOST
        )));
    }
    Ok(())
}

/// Whether `hello` is of a member.
fn is_known(newest: &Members, hello: &Hello) -> Result<(), Refusal> {
    let known = is_member(newest, hello.from, hello.incarnation);
    known.map_err(|refusal| match newest.get(&hello.from) {
        _ if !hello.was_member() => refusal,
        Some(present) => Refusal::out(taken_over(hello, present)),
        None => Refusal::out(refusal.reason),
    })
}

/// Who says `hello` was the member that is `present` now.
pub(super) fn taken_over(hello: &Hello, present: &Voter) -> String {
    let (node, Voter { host, port, incarnation, .. }) = (hello.from, present);
    format!(
        "another process has taken node.id {node} over while this one was not heard: it is reached \
         at {} and has the metadata log {incarnation}, and this one has {}. Give one of them its \
         own node.id if both are to run",
        join_address(host, port),
        hello.incarnation
    )
}

/// Whether `node` votes with the log `incarnation`.
fn is_member(members: &Members, node: u64, incarnation: Uuid) -> Result<(), Refusal> {
    match members.get(&node).map(|voter| voter.incarnation) {
        Some(known) if known == incarnation => Ok(()),
        Some(known) => Err(other_log(node, known, incarnation)),
        None => Err(Refusal::never(format!("node {node} is not a member of this cluster"))),
    }
}

fn other_log(node: u64, known: Uuid, incarnation: Uuid) -> Refusal {
    Refusal::never(format!(
        "node {node} votes with the metadata log {known}, and its log is {incarnation}: it has \
         lost its own. {}",
        super::founding::LOST
    ))
}

/// The newest of the membership in this node's log, of which it has applied what is there up to
/// `applied`, and of the one that another node has told. Where this log has applied another entry
/// than the told one, that was rolled back: it never was in force.
fn newest_of(own: Known, told: Known, applied: Option<NodeLogId>) -> Known {
    let is_over = |at: NodeLogId| applied.is_some_and(|applied| at.index <= applied.index);
    if told.at > own.at && !told.at.is_some_and(is_over) { told } else { own }
}

#[cfg(test)]
mod tests {
    use super::super::types::log_id;
    use super::*;

    /// A leader that was cut off had told it, and another one wrote other entries in its place.
    #[test]
    fn a_membership_that_was_rolled_back_is_not_the_newest_any_more() {
        let known = |at| Known { at: Some(at), ..Known::default() };
        let newest = |applied| {
            let (own, told) = (known(log_id(2, 5)), known(log_id(3, 10)));
            newest_of(own, told, applied).at
        };
        for (applied, is) in [
            (None, log_id(3, 10)),
            (Some(log_id(2, 9)), log_id(3, 10)),
            (Some(log_id(4, 10)), log_id(2, 5)),
            (Some(log_id(4, 11)), log_id(2, 5)),
        ] {
            assert_eq!(newest(applied), Some(is), "{applied:?}");
        }
        let later = newest_of(known(log_id(4, 12)), known(log_id(3, 10)), None);
        assert_eq!(later.at, Some(log_id(4, 12)));
    }

    fn log(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn with_log(n: u128) -> Voter {
        Voter { incarnation: log(n), ..Voter::default() }
    }

    /// Voter `from` of three, whose log is `log(from)`; it knows these logs of voters 1, 2 and 3.
    fn voter(from: u64, to: u64, logs: &[u128]) -> Hello {
        Hello {
            speaks: Speaks::default(),
            cluster_id: Some("one".to_owned()),
            from,
            to,
            incarnation: log(from.into()),
            start: Uuid::nil(),
            directory_id: None,
            voters: (1..=3).map(|id| (id, (format!("host-{id}"), 9093))).collect(),
            members: (1..).zip(logs).map(|(id, n)| (id, with_log(*n))).collect(),
            at: None,
            configs: Vec::new(),
            reached_at: None,
            joins: false,
            reached: Reached { term: 2, end: 5 },
            sees: BTreeMap::new(),
        }
    }

    #[test]
    fn the_newest_version_that_both_sides_speak_is_spoken() {
        let speaks = |versions| Speaks { versions, release: "9.9".to_owned() };
        let version = |versions| speaks(versions).version().ok();
        assert_eq!(version(VERSIONS), Some(VERSIONS.1));
        assert_eq!(version((VERSIONS.0, u16::MAX)), Some(VERSIONS.1));
        assert_eq!(version((0, VERSIONS.0)), Some(VERSIONS.0));
        assert_eq!(version((VERSIONS.1 + 1, u16::MAX)), None);
        assert_eq!(version((3, 2)), None);
    }

    /// Whatever else a later release says, which this one need not understand.
    #[test]
    fn a_hello_of_another_version_is_refused_with_the_name_of_both_releases() {
        let own = serde_json::to_vec(&voter(1, 2, &[])).unwrap();
        assert_eq!(Hello::read(&own).unwrap(), voter(1, 2, &[]));
        for (hello, release) in [
            (r#"{"versions":[900,901],"release":"9.9","from":"another form"}"#, "9.9 (versions"),
            (r#"{"versions":[1,2],"from":1}"#, "that has no name (versions 1 to 2)"),
        ] {
            let refused = Hello::read(hello.as_bytes()).unwrap_err().to_string();
            let own = format!("and {} (versions {}", env!("CARGO_PKG_VERSION"), VERSIONS.0);
            assert!(refused.contains(release) && refused.contains(&own), "{refused}");
        }
    }

    #[test]
    fn a_voter_is_heard_with_the_log_that_the_membership_names_and_no_other() {
        const ALL: &[u128] = &[1, 2, 3];
        let own = voter(1, 2, ALL);
        let nothing = Reached::default();
        let heard = |own: &Hello, other: &Hello| examine(own, &own.members, other, None, nothing);
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
        let emptied = Hello { incarnation: log(22), ..voter(2, 1, ALL) };
        assert!(!refused(&own, &emptied, "node 2 votes with"));
        assert!(!refused(&own, &emptied, "has lost its own"));
        assert!(!refused(&own, &voter(2, 1, &[11, 2, 3]), "node 1 votes with"));

        // Another node, another cluster, another version, itself.
        let other = Hello { cluster_id: Some("other".to_owned()), ..voter(2, 1, ALL) };
        assert!(!refused(&own, &other, "node 2 belongs to cluster \"other\", and node 1 to"));
        assert!(!refused(&own, &voter(7, 1, ALL), "node 7 is not a member"));
        let is_out = |own: &Hello, other: &Hello| heard(own, other).unwrap_err().is_out;
        assert!(!is_out(&own, &emptied) && !is_out(&own, &voter(7, 1, ALL)));

        // By its own log it is a member, as it was before.
        let before = Hello { incarnation: log(22), ..voter(2, 1, &[1, 22, 3]) };
        assert!(!refused(&own, &before, "has taken node.id 2 over"));
        let removed = voter(1, 2, &[1]);
        assert!(!refused(&removed, &voter(2, 1, ALL), "node 2 is not a member"));
        assert!(is_out(&own, &before) && is_out(&removed, &voter(2, 1, ALL)));
        assert!(!refused(&own, &voter(1, 1, ALL), "node 1 is this node itself"));
        assert!(!refused(&own, &voter(2, 3, ALL), "addresses node 3, but this is node 1"));
        let called = |node, n, other: &Hello| {
            examine(&own, &own.members, other, Some((node, log(n))), nothing).is_ok()
        };
        assert!(!called(2, 2, &voter(3, 1, ALL)));
        // Who calls asks for the log that it counts; a new observer has no membership yet.
        assert!(called(2, 2, &voter(2, 1, &[])) && !called(2, 22, &voter(2, 1, ALL)));
        let speaks = Speaks { versions: (VERSIONS.1 + 1, u16::MAX), ..Speaks::default() };
        let other = Hello { speaks, ..voter(2, 1, ALL) };
        assert!(!refused(&own, &other, "upgrade one release at a time"));
        // A member of neither's lists alone is not enough.
        assert!(!refused(&voter(1, 3, &[1, 2]), &voter(3, 1, ALL), "not a member of this cluster"));
    }

    fn at(term: u64, end: u64) -> Reached {
        Reached { term, end }
    }

    /// A log is compared with what earlier processes of its voter said, whoever leads.
    #[test]
    fn a_voter_comes_back_with_all_that_it_has_ever_said_of_its_log() {
        let own = voter(1, 2, &[1, 2, 3]);
        let comes = |met: &Met, start: u128, reached| {
            let hello = Hello { start: log(start), reached, ..voter(2, 1, &[1, 2, 3]) };
            let heard = examine(&own, &own.members, &hello, None, met.log.least(hello.start));
            if let Err(refusal) = &heard {
                assert!(refusal.reason.contains("an older state") && !refusal.passes);
            }
            (heard.is_ok(), hello)
        };
        let mut met = Met::default();
        let mut hears = |start, reached| {
            let (is_heard, hello) = comes(&met, start, reached);
            if is_heard {
                met.hear(&hello);
            }
            is_heard
        };
        assert!(hears(1, at(3, 8)));
        // The next process has an older vote, or fewer entries of that term.
        assert!(!hears(2, at(2, 9)) && !hears(2, at(3, 7)));
        assert!(hears(2, at(3, 8)));
        // Entries of earlier terms are cut off by whoever leads: in a new term its own count.
        assert!(hears(3, at(4, 0)));
        assert!(!hears(4, at(3, 90)));
    }

    /// An acknowledgement overtakes the hello that was written before it, on another connection.
    #[test]
    fn a_hello_that_an_acknowledgement_has_overtaken_is_no_older_state() {
        let own = voter(1, 2, &[1, 2, 3]);
        let hello =
            |start, reached| Hello { start: log(start), reached, ..voter(2, 1, &[1, 2, 3]) };
        let mut met = Met::default();
        met.hear(&hello(1, at(3, 5)));
        met.acknowledged(at(3, 9));
        let crossing = hello(1, at(3, 6));
        assert_eq!(
            examine(&own, &own.members, &crossing, None, met.log.least(crossing.start)),
            Ok(())
        );
        met.hear(&crossing);
        // It counts for the next process.
        for (reached, is_heard) in [(at(3, 8), false), (at(3, 9), true)] {
            let next = hello(2, reached);
            let heard = examine(&own, &own.members, &next, None, met.log.least(next.start));
            assert_eq!(heard.is_ok(), is_heard);
        }
    }
}
