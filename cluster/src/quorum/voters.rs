//! Who votes: how nodes become members of the quorum, and how members become voters and cease to
//! be.
//! `docs/design/0004-voters.md` says why this is safe.
//!
//! Every node has the membership say of it what it says of itself (its log, its directory, where it
//! is reached), and asks the leader for that again and again until it does. So a node that is new
//! becomes an observer; a person makes it a voter, or its configuration does. The leader makes one
//! change at a time, and each is an entry of the log like any other: whatever is killed in the
//! middle, whoever leads next goes on from what is in its log.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use letterbox_env::{Env, Failing, join_address};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{BrokerId, encode_uuid};
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, ServerState};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::identity::{CUT_OFF_AFTER, Hello, Identity, taken_over};
use super::network::{self, Dialer, ask_who, invalid};
use super::raft_quorum::{broker_id, hand_over, has_stopped};
use super::state_machine::Published;
use super::types::{Known, Raft, Voter};
use super::{ChangeError, QuorumError, VoterChange};
use crate::metadata::ApiError;

/// A change is committed this soon, or goes on without whoever asked for it.
const CHANGE_WITHIN: Duration = Duration::from_secs(4);
/// For one question to another node.
const ASK_WITHIN: Duration = Duration::from_secs(6);
/// Between two of them.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// A member that has been silent for so long gives its id to a node at another address.
const SILENT_AFTER: Duration = Duration::from_secs(10);
/// An observer that has been silent for so long, and is no broker, is gone.
const GONE_AFTER: Duration = Duration::from_secs(120);
/// No more are taken.
const MEMBERS_MAX: usize = 256;
/// No more vote: each hello names all voters (`HELLO_LEN_MAX`), also one that is to replace another.
const VOTERS_MAX: usize = 32;

/// What has come of asking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Attended {
    /// The membership says what the node says.
    Done,
    /// A step was made, or cannot be made yet: it may ask again.
    NotYet(String),
    /// It has to be asked who leads.
    NotLeader,
    /// A person has to do something.
    Refused(String),
    /// It was a member, and another process is in its place.
    Out(String),
}

/// What a node asks that says `hello`, which is believed only as far as the process says the same
/// that answers where it says that it is reached.
pub(super) async fn attend(env: &Env, identity: &Identity, hello: Hello) -> io::Result<Attended> {
    let Some(raft) = identity.raft.get() else { return Ok(Attended::NotLeader) };
    if raft.metrics().borrow().state != ServerState::Leader {
        return Ok(Attended::NotLeader);
    }
    if let Err(reason) = hello.speaks.version() {
        return Ok(Attended::Refused(reason));
    }
    let at = hello.reached_at.as_ref().ok_or_else(|| invalid("it does not say where it is"))?;
    let found = ask_who(env, &identity.hello(hello.from), Some(hello.from), &Voter::at(at)).await?;
    let is_it = (found.start, found.incarnation) == (hello.start, hello.incarnation)
        && found.reached_at == hello.reached_at;
    if !is_it || found.speaks.version().is_err() || found.from == identity.node_id {
        let (node, (host, port)) = (hello.from, at);
        let reason =
            format!("another process answers as node {node} at {}", join_address(host, port));
        return Ok(match hello.was_member() {
            true => Attended::Out(reason),
            false => Attended::Refused(reason),
        });
    }
    match (&found.cluster_id, identity.cluster_id.get()) {
        (Some(other), Some(own)) if own == other => take(identity, raft, &found).await,
        (other, own) => Ok(Attended::Refused(format!(
            "the node is of cluster {other:?}, and the one it wants to join is {own:?}"
        ))),
    }
}

/// What the leader does about a node that says `hello`.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Answer(Attended),
    Change(ChangeMembers<u64, Voter>),
}

async fn take(identity: &Identity, raft: &Raft, hello: &Hello) -> io::Result<Attended> {
    let Ok(_turn) = identity.changing.try_lock() else {
        return Ok(Attended::NotYet("another change of the membership is under way".to_owned()));
    };
    let known = identity.own();
    // Of what a leader has not heard of yet, nothing is known.
    let elapsed = |at: Option<Instant>| at.map(|at| at.elapsed());
    let met = known.members.get(&hello.from).map(|is| identity.met_as(hello.from, is.incarnation));
    let (followed, caught_up) =
        met.map_or((None, None), |met| (elapsed(met.followed), elapsed(met.caught_up)));
    let seen = Seen {
        is_silent: hello.from == identity.node_id || followed.is_some_and(|ago| ago > SILENT_AFTER),
        is_caught_up: caught_up.is_some_and(|ago| ago <= CAUGHT_UP_WITHIN),
        reached_at: identity.member(&known, hello.from).map(|member| (member.host, member.port)),
        directory_id: known
            .members
            .get(&hello.from)
            .and_then(|member| identity.directory_of(hello.from, member)),
    };
    match next(&known, hello, &seen) {
        Next::Answer(answer) => Ok(answer),
        Next::Change(change) if !would_stand(identity, &known, &change) => {
            Ok(Attended::NotYet("a majority of the voters does not answer".to_owned()))
        }
        Next::Change(change) => Ok(match make(raft, change).await {
            Ok(()) => Attended::NotYet("a change is made".to_owned()),
            Err(ChangeError::Quorum(QuorumError::NotLeader { .. })) => Attended::NotLeader,
            Err(error) => Attended::NotYet(error.to_string()),
        }),
    }
}

/// An observer that has had everything in this time may vote.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(2);

/// What the leader has seen of the member that has the id of a node.
#[derive(Default)]
struct Seen {
    is_silent: bool,
    is_caught_up: bool,
    /// Where it is reached.
    reached_at: Option<(String, u16)>,
    /// By which it is removed.
    directory_id: Option<Uuid>,
}

/// The next step towards a membership that says of a node what it says of itself.
fn next(known: &Known, hello: &Hello, seen: &Seen) -> Next {
    let node = hello.from;
    let not_yet = |reason: &str| Next::Answer(Attended::NotYet(reason.to_owned()));
    let (Some((host, port)), [_]) = (hello.reached_at.clone(), known.configs.as_slice()) else {
        return not_yet("the voters are changing");
    };
    let (incarnation, directory_id) = (hello.incarnation, hello.directory_id);
    let mut own = Voter { host, port, incarnation, directory_id };
    let Some(present) = known.members.get(&node) else {
        if known.members.len() >= MEMBERS_MAX {
            let reason = format!("the metadata quorum has {MEMBERS_MAX} members already");
            return Next::Answer(Attended::Refused(reason));
        }
        return Next::Change(ChangeMembers::AddNodes([(node, own)].into()));
    };
    let is_voter = known.is_voter(node);
    if present.incarnation == incarnation {
        if !seen.is_silent {
            // It answers where it was reached all the time, under another name.
            (own.host, own.port) = (present.host.clone(), present.port);
        }
        return match *present == own {
            false => Next::Change(ChangeMembers::SetNodes([(node, own)].into())),
            true if is_voter || !hello.joins => Next::Answer(Attended::Done),
            true if !has_room(known) => Next::Answer(Attended::Refused(format!(
                "{VOTERS_MAX} nodes vote already, and no more do: set \
                     controller.quorum.auto.join.enable=false, and this node observes"
            ))),
            true if !seen.is_caught_up => not_yet("it does not have all entries yet"),
            true => Next::Change(ChangeMembers::AddVoterIds([node].into())),
        };
    }
    let is_there = seen.reached_at.as_ref() == hello.reached_at.as_ref();
    let may_replace = if is_voter { hello.joins && is_there } else { is_there || seen.is_silent };
    if !may_replace && hello.was_member() {
        return Next::Answer(Attended::Out(taken_over(hello, present)));
    }
    match (is_voter, may_replace) {
        (true, true) => Next::Change(ChangeMembers::RemoveVoters([node].into())),
        (true, false) => Next::Answer(Attended::Refused(lost(node, present, seen, incarnation))),
        (false, true) => Next::Change(ChangeMembers::RemoveNodes([node].into())),
        (false, false) => Next::Answer(Attended::Refused(format!(
            "node {node} observes with the metadata log {} at {}:{}; give this node another \
             node.id, or end that one",
            present.incarnation, present.host, present.port
        ))),
    }
}

/// An observer that is gone for good: `is_gone` is asked for each.
fn ghost(known: &Known, is_gone: impl Fn(u64, &Voter) -> bool) -> Option<u64> {
    let mut observers = known.members.iter().filter(|(id, _)| !known.is_voter(**id));
    observers.find(|(id, member)| is_gone(**id, member)).map(|(id, _)| *id)
}

/// Whether one more may vote.
fn has_room(known: &Known) -> bool {
    known.voters().len() < VOTERS_MAX
}

fn lost(node: u64, present: &Voter, seen: &Seen, incarnation: Uuid) -> String {
    let directory = seen.directory_id.unwrap_or_default();
    format!(
        "node {node} votes with the metadata log {}, and the log here is a new one \
         ({incarnation}): it has lost its own. Mount the volume with its own directory again or, \
         when that is gone for good, remove that voter: kafka-metadata-quorum remove-controller \
         --controller-id {node} --controller-directory-id {}. Then this node observes, and \
         add-controller has it vote",
        present.incarnation,
        encode_uuid(directory)
    )
}

/// Whether those that vote after `change` can commit it, and what comes after it.
fn would_stand(identity: &Identity, known: &Known, change: &ChangeMembers<u64, Voter>) -> bool {
    let mut voters = known.voters();
    match change {
        ChangeMembers::AddVoterIds(ids) => voters.extend(ids),
        ChangeMembers::RemoveVoters(ids) => voters.retain(|id| !ids.contains(id)),
        _ => {}
    }
    let after = Known { configs: vec![voters], ..known.clone() };
    after.has_majority(|id| identity.is_followed_by(known, id, identity.lease))
}

/// Has a change committed. When nobody waits for it any more it goes on.
async fn make(raft: &Raft, change: ChangeMembers<u64, Voter>) -> Result<(), ChangeError> {
    let changed = timeout(CHANGE_WITHIN, raft.change_membership(change, true)).await;
    match changed {
        Err(_) => Err(QuorumError::OutcomeUnknown.into()),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
            let leader = forward.leader_id.and_then(broker_id);
            Err(QuorumError::NotLeader { leader }.into())
        }
        Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => {
            let code = match &error {
                ChangeMembershipError::InProgress(_) => ErrorCode::RequestTimedOut,
                _ => ErrorCode::InvalidRequest,
            };
            Err(ApiError::new(code, error.to_string()).into())
        }
        Ok(Err(RaftError::Fatal(fatal))) => Err(has_stopped(&fatal).into()),
    }
}

// Each node.

/// Keeps the membership as this node says, and finishes changes while this node leads.
pub(super) struct Attendant {
    pub(super) env: Env,
    pub(super) raft: Raft,
    pub(super) identity: Arc<Identity>,
    pub(super) dialer: Dialer,
    pub(super) servers: Vec<(String, u16)>,
    pub(super) published: Published,
    /// See [`super::QuorumTiming::session`].
    pub(super) session: Duration,
    pub(super) fatal: watch::Sender<Option<String>>,
}

impl Attendant {
    /// Until this node is told to stop, or its part in the quorum ends.
    pub(super) async fn run(self, mut stopped: watch::Receiver<bool>) {
        tokio::select! {
            biased;
            () = super::stopped(&mut stopped) => {}
            reason = self.until_out() => drop(self.fatal.send_replace(Some(reason))),
            () = self.watch() => {}
        }
    }

    /// Completes, with why, when others have taken this node for no member for a session.
    async fn until_out(&self) -> String {
        let mut out = self.identity.out.subscribe();
        loop {
            let told = out.wait_for(Option::is_some).await.map(|out| out.clone());
            // The sender lives in `self`.
            let Ok(Some((since, reason))) = told else { return std::future::pending().await };
            tokio::select! {
                biased;
                _ = out.wait_for(Option::is_none) => {}
                () = tokio::time::sleep_until(since + self.session) => return format!(
                    "the metadata quorum has not taken this node for a member for {:?}, which it \
                     was by its own log: {reason}",
                    self.session
                ),
            }
        }
    }

    async fn watch(&self) {
        let mut metrics = self.raft.metrics();
        let refused = Failing::default();
        let (began, mut led_since) = (Instant::now(), None);
        let mut leaves = self.identity.leaves.subscribe();
        loop {
            let leads = metrics.borrow_and_update().state == ServerState::Leader;
            led_since = leads.then(|| led_since.unwrap_or_else(Instant::now));
            // Who led, and was replaced while it stood still, is told so by nobody who leads.
            if leads && self.identity.is_followed(self.identity.lease) {
                self.identity.hear_leader();
            }
            // What its own log says of a member that was taken out need not be true any more.
            let heard_at = self.identity.heard_at().max(led_since).unwrap_or(began);
            let is_cut_off = heard_at.elapsed() > CUT_OFF_AFTER;
            let reason = match led_since {
                Some(since) if !is_cut_off => self.lead(since).await,
                None if self.is_as_said() && !is_cut_off => None,
                _ => tokio::select! {
                    biased;
                    () = super::stopped(&mut leaves) => None,
                    reason = self.ask() => reason,
                },
            };
            if let Some(reason) = reason {
                if refused.failed(reason.clone()) {
                    tracing::error!(reason, "this node cannot take part in the metadata quorum");
                }
                tokio::time::sleep(ASK_EVERY * 4).await;
            } else if is_cut_off {
                tokio::time::sleep(ASK_EVERY * 4).await;
            } else if self.is_settled(leads) {
                // Nothing wakes a node that was taken out.
                if let Ok(Err(_)) = timeout(CUT_OFF_AFTER, metrics.changed()).await {
                    return;
                }
            } else {
                tokio::time::sleep(ASK_EVERY).await;
            }
        }
    }

    /// Whether the membership says of this node what it says of itself.
    fn is_as_said(&self) -> bool {
        let own = self.identity.own();
        let (node, hello) = (self.identity.node_id, self.identity.hello(self.identity.node_id));
        let Some((host, port)) = hello.reached_at else { return true };
        let said =
            Voter { host, port, incarnation: hello.incarnation, directory_id: hello.directory_id };
        own.members.get(&node) == Some(&said) && (!hello.joins || own.is_voter(node))
    }

    fn is_settled(&self, leads: bool) -> bool {
        let own = self.identity.own();
        let is_even = own.configs.len() == 1 && own.is_voter(self.identity.node_id);
        self.is_as_said() && (is_even || !leads)
    }

    /// What is left to do for who leads, since that moment.
    async fn lead(&self, since: Instant) -> Option<String> {
        let own = self.identity.own();
        if !own.is_voter(self.identity.node_id) {
            // It was removed: others go on without it.
            let _ =
                timeout(CHANGE_WITHIN, hand_over(&self.raft, &self.identity, &self.dialer)).await;
        }
        if own.configs.len() > 1 {
            if let Ok(_turn) = self.identity.changing.try_lock() {
                // Towards the second one; what another leader began is ended.
                let change = ChangeMembers::AddVoterIds(BTreeSet::new());
                let _ = make(&self.raft, change).await;
            }
        } else if !self.is_as_said() {
            let hello = self.identity.hello(self.identity.node_id);
            let _ = take(&self.identity, &self.raft, &hello).await;
        } else if let Some(id) = ghost(&own, |id, member| self.is_gone(id, member, since)) {
            let change = ChangeMembers::RemoveNodes([id].into());
            if let Ok(_turn) = self.identity.changing.try_lock()
                && would_stand(&self.identity, &own, &change)
                && make(&self.raft, change).await.is_ok()
            {
                tracing::info!(node = id, "removed an observer that is gone and is no broker");
            }
        }
        None
    }

    /// Whether nothing was heard of a member for long, in which this node has led, and its broker is
    /// not registered: that was taken away as it went, say. One that lives asks to be a member again.
    fn is_gone(&self, id: u64, member: &Voter, since: Instant) -> bool {
        let heard = self.identity.met_as(id, member.incarnation).followed;
        heard.map_or(since, |at| at.max(since)).elapsed() > GONE_AFTER
            && broker_id(id).is_some_and(|id| !self.published.image().brokers.contains_key(&id))
    }

    /// Asks whoever may lead; why not, if a person has to do something.
    async fn ask(&self) -> Option<String> {
        let known = self.identity.newest();
        let leader = self.raft.metrics().borrow().current_leader;
        let mut others: Vec<Voter> = Vec::new();
        let mut ids: Vec<u64> = known.voters().into_iter().collect();
        ids.sort_by_key(|id| Some(*id) != leader);
        let is_other = |id: &u64| *id != self.identity.node_id;
        others.extend(
            ids.into_iter().filter(is_other).filter_map(|id| self.identity.member(&known, id)),
        );
        let configured = self.identity.voters.iter().filter(|(id, _)| is_other(id));
        others.extend(configured.map(|(_, at)| at.clone()));
        others.extend(self.servers.iter().map(Voter::at));
        let mut asked = BTreeSet::new();
        let hello = self.identity.hello(self.identity.node_id);
        for at in &others {
            if !asked.insert((at.host.as_str(), at.port)) {
                continue;
            }
            let answer = timeout(ASK_WITHIN, network::attend(&self.env, &hello, at)).await;
            match answer {
                Ok(Ok(Attended::Refused(reason))) => return Some(reason),
                Ok(Ok(Attended::Out(reason))) => {
                    self.identity.told_out(&reason);
                    return Some(reason);
                }
                Ok(Ok(Attended::NotYet(reason))) => {
                    tracing::debug!(reason, "this node waits to be a member of the quorum");
                    return None;
                }
                Ok(Ok(Attended::Done)) => {
                    if !self.is_as_said() {
                        // All but where it is reached, which others find out by themselves.
                        tokio::time::sleep(SILENT_AFTER).await;
                    }
                    return None;
                }
                Ok(Ok(Attended::NotLeader) | Err(_)) | Err(_) => {}
            }
        }
        None
    }
}

// What a person asks for.

/// What the leader does about `change`.
enum Step {
    Change(ChangeMembers<u64, Voter>),
    /// Another one has to do it: this node is to be removed.
    HandOver,
    /// It may be possible later.
    Wait(String),
    /// There is nothing to change.
    Done,
}

/// Makes `change`, with this node in the lead, before `deadline`.
pub(super) async fn change(
    raft: &Raft,
    dialer: &Dialer,
    change: &VoterChange,
    deadline: Instant,
) -> Result<(), ChangeError> {
    let identity = &*dialer.identity;
    let began = Instant::now();
    let mut metrics = raft.metrics();
    let late = |reason: String| ApiError::new(ErrorCode::RequestTimedOut, reason).into();
    loop {
        let (leads, leader) = {
            let now = metrics.borrow_and_update();
            (now.state == ServerState::Leader, now.current_leader.and_then(broker_id))
        };
        if !leads {
            return Err(QuorumError::NotLeader { leader }.into());
        }
        // Not held while it waits: what it waits for may be a change of the membership.
        let turn = timeout_at(deadline, identity.changing.lock()).await;
        let reason = match turn {
            Err(_) => {
                "Request timed out waiting for leader to handle previous voter change request"
                    .to_owned()
            }
            Ok(_turn) => match step(identity, &identity.own(), change, began)? {
                Step::Change(next) => match make(raft, next).await {
                    Err(ChangeError::Refused(error))
                        if error.code == ErrorCode::RequestTimedOut =>
                    {
                        error.message
                    }
                    made => return made,
                },
                Step::HandOver => {
                    let over = hand_over(raft, identity, dialer);
                    let _ = timeout_at(deadline.min(Instant::now() + CHANGE_WITHIN), over).await;
                    "no other voter became leader".to_owned()
                }
                Step::Wait(reason) => reason,
                Step::Done => return Ok(()),
            },
        };
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(deadline) => return Err(late(reason)),
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
    }
}

fn step(
    identity: &Identity,
    own: &Known,
    change: &VoterChange,
    began: Instant,
) -> Result<Step, ApiError> {
    let [voters] = own.configs.as_slice() else {
        return Ok(Step::Wait(
            "Request timed out waiting for voters to commit the latest voter change".to_owned(),
        ));
    };
    let named = |node, directory_id| Named::of(identity, own, node, directory_id);
    let step = match change {
        VoterChange::Forget { node } => return Ok(forget(identity, own, *node, began)),
        VoterChange::Add { node, directory_id } => {
            add(identity, own, voters, &named(*node, *directory_id)?)?
        }
        VoterChange::Remove { node, directory_id } => {
            remove(identity, own, voters, &named(*node, *directory_id)?)?
        }
    };
    let Step::Change(next) = step else { return Ok(step) };
    // It would never be committed, and nothing after it.
    if !would_stand(identity, own, &next) {
        return Ok(Step::Wait(format!(
            "a majority of the voters that there would be does not answer: {}",
            voter_keys(identity, own)
        )));
    }
    match &next {
        ChangeMembers::RemoveVoters(ids) if ids.contains(&identity.node_id) => Ok(Step::HandOver),
        _ => Ok(Step::Change(next)),
    }
}

/// Who is to become a voter, or to cease to be one.
struct Named<'a> {
    id: u64,
    /// As Kafka names it.
    key: String,
    /// The member of this id, if its directory is that one too.
    member: Option<&'a Voter>,
}

impl<'a> Named<'a> {
    fn of(
        identity: &Identity,
        own: &'a Known,
        node: BrokerId,
        directory_id: Uuid,
    ) -> Result<Self, ApiError> {
        let id = u64::try_from(node.0).map_err(|_| ErrorCode::InvalidRequest)?;
        let is_it =
            |member: &&Voter| identity.directory_of(id, member).unwrap_or_default() == directory_id;
        let member = own.members.get(&id).filter(is_it);
        Ok(Self { id, key: voter_key(node, Some(directory_id)), member })
    }
}

fn add(
    identity: &Identity,
    own: &Known,
    voters: &BTreeSet<u64>,
    Named { id, key, member }: &Named<'_>,
) -> Result<Step, ApiError> {
    if voters.contains(id) {
        let all = voter_keys(identity, own);
        let message = format!("The voter id for {key} is already part of the set of voters {all}.");
        return Err(ApiError::new(ErrorCode::DuplicateVoter, message));
    }
    if !has_room(own) {
        let message = format!(
            "{VOTERS_MAX} nodes vote already, and no more do; {key} observes. Remove a voter first"
        );
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    let Some(member) = member else {
        return Ok(Step::Wait(format!(
            "Aborted add voter operation for {key} since it does not observe this cluster: start it \
             with controller.quorum.bootstrap.servers"
        )));
    };
    let caught_up = identity.met_as(*id, member.incarnation).caught_up;
    if caught_up.is_none_or(|at| at.elapsed() > CAUGHT_UP_WITHIN) {
        return Ok(Step::Wait(format!(
            "Aborted add voter operation for {key} since it is lagging behind"
        )));
    }
    Ok(Step::Change(ChangeMembers::AddVoterIds([*id].into())))
}

fn remove(
    identity: &Identity,
    own: &Known,
    voters: &BTreeSet<u64>,
    Named { id, key, member }: &Named<'_>,
) -> Result<Step, ApiError> {
    if member.is_none() || !voters.contains(id) {
        let all = voter_keys(identity, own);
        let message = format!("Cannot remove voter {key} from the set of voters {all}");
        return Err(ApiError::new(ErrorCode::VoterNotFound, message));
    }
    if voters.len() == 1 {
        let message = format!("{key} is the only voter; add another one first");
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    Ok(Step::Change(ChangeMembers::RemoveVoters([*id].into())))
}

/// A node that is there is forgotten once it has all entries up to `began`: among them may be the one
/// that tells it so.
fn forget(identity: &Identity, own: &Known, node: BrokerId, began: Instant) -> Step {
    let member = u64::try_from(node.0).ok().and_then(|id| own.members.get_key_value(&id));
    let Some((&id, member)) = member.filter(|(id, _)| !own.is_voter(**id)) else {
        return Step::Done;
    };
    let has_all = identity.met_as(id, member.incarnation).caught_up.is_some_and(|at| at >= began);
    if identity.is_followed_by(own, id, identity.lease) && !has_all {
        return Step::Wait(format!("node {node} is there, and does not have all entries yet"));
    }
    let next = ChangeMembers::RemoveNodes([id].into());
    if would_stand(identity, own, &next) {
        return Step::Change(next);
    }
    let voters = voter_keys(identity, own);
    Step::Wait(format!("a majority of the voters does not answer: {voters}"))
}

/// As Kafka names a voter.
fn voter_key(node: BrokerId, directory_id: Option<Uuid>) -> String {
    let directory = directory_id.map_or_else(|| "<undefined>".to_owned(), encode_uuid);
    format!("ReplicaKey(id={node}, directoryId={directory})")
}

fn voter_keys(identity: &Identity, known: &Known) -> String {
    let key = |id: u64| {
        let member = known.members.get(&id)?;
        Some(voter_key(broker_id(id)?, identity.directory_of(id, member)))
    };
    let keys: Vec<String> = known.voters().into_iter().filter_map(key).collect();
    format!("[{}]", keys.join(", "))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::identity::{Hello, Speaks};
    use super::super::network::HELLO_LEN_MAX;
    use super::super::types::{Members, Reached, log_id};
    use super::*;

    fn log(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn member(id: u64, n: u128) -> Voter {
        let (host, incarnation) = (format!("host-{id}"), log(n));
        Voter { host, port: 9093, incarnation, directory_id: Some(log(n + 100)) }
    }

    /// Voters 1, 2 and 3; 4 observes. The log of each is `log(id)`.
    fn known() -> Known {
        let members = (1..=4).map(|id| (id, member(id, id.into()))).collect();
        Known { at: None, members, configs: vec![[1, 2, 3].into()] }
    }

    /// Node `from` with the log `log(n)`, where node `from` is reached.
    fn node(from: u64, n: u128) -> Hello {
        Hello {
            speaks: Speaks::default(),
            cluster_id: Some("one".to_owned()),
            from,
            to: 1,
            incarnation: log(n),
            start: Uuid::nil(),
            directory_id: Some(log(n + 100)),
            voters: BTreeMap::new(),
            members: BTreeMap::new(),
            at: None,
            configs: Vec::new(),
            reached_at: Some((format!("host-{from}"), 9093)),
            joins: false,
            reached: Reached::default(),
            sees: BTreeMap::new(),
        }
    }

    fn joins(hello: Hello) -> Hello {
        Hello { joins: true, ..hello }
    }

    /// With every entry, and as silent as `is_silent`, at its address.
    fn seen(id: u64, is_silent: bool) -> Seen {
        let reached_at = Some((format!("host-{id}"), 9093));
        let directory_id = Some(log(u128::from(id) + 100));
        Seen { is_silent, is_caught_up: true, reached_at, directory_id }
    }

    fn changes(change: ChangeMembers<u64, Voter>) -> Next {
        Next::Change(change)
    }

    fn is_refused(next: &Next, with: &str) -> bool {
        matches!(next, Next::Answer(Attended::Refused(reason)) if reason.contains(with))
    }

    #[test]
    fn a_node_that_is_new_observes_and_votes_only_if_it_is_to_join_and_has_everything() {
        let known = known();
        let one = next(&known, &node(7, 7), &Seen::default());
        assert_eq!(one, changes(ChangeMembers::AddNodes([(7, member(7, 7))].into())));
        let done = Next::Answer(Attended::Done);
        assert_eq!(next(&known, &node(4, 4), &seen(4, false)), done);
        let votes = changes(ChangeMembers::AddVoterIds([4].into()));
        assert_eq!(next(&known, &joins(node(4, 4)), &seen(4, false)), votes);
        let behind = Seen { is_caught_up: false, ..seen(4, false) };
        let waits = next(&known, &joins(node(4, 4)), &behind);
        assert!(matches!(waits, Next::Answer(Attended::NotYet(_))), "{waits:?}");
        assert_eq!(next(&known, &joins(node(2, 2)), &seen(2, false)), done);
        // One change at a time.
        let joint = Known { configs: vec![[1, 2, 3].into(), [1, 2].into()], ..known };
        let waits = next(&joint, &node(7, 7), &Seen::default());
        assert!(matches!(waits, Next::Answer(Attended::NotYet(_))), "{waits:?}");
    }

    /// Or no leader would be found after the next restart.
    #[test]
    fn no_more_vote_than_a_hello_can_name() {
        let most = u64::try_from(VOTERS_MAX).unwrap();
        let members = |from| -> Members {
            let long = |id: u64| Voter { host: "h".repeat(253), port: u16::MAX, ..member(id, 7) };
            (from..=from + most).map(|id| (id, long(id))).collect()
        };
        // As many as may vote, and one that is no voter, which joins.
        let first = u64::try_from(i32::MAX).unwrap() - most;
        let voters: BTreeSet<u64> = (first..first + most).collect();
        let known = Known { at: None, members: members(first), configs: vec![voters.clone()] };
        let last = first + most;
        let hello = Hello {
            reached_at: known.members.get(&last).map(|is| (is.host.clone(), is.port)),
            ..node(last, 7)
        };
        let observes = Seen { reached_at: hello.reached_at.clone(), ..seen(last, false) };
        assert_eq!(next(&known, &hello, &observes), Next::Answer(Attended::Done));
        let refused = next(&known, &joins(hello.clone()), &observes);
        assert!(is_refused(&refused, "auto.join.enable=false"), "{refused:?}");
        let mut fewer = known.clone();
        fewer.configs = vec![(first..last - 1).collect()];
        let votes = changes(ChangeMembers::AddVoterIds([last].into()));
        assert_eq!(next(&fewer, &joins(hello.clone()), &observes), votes);
        // While one of them changes, as long as its parts can be.
        let at = || ("h".repeat(253), u16::MAX);
        let whole = Hello {
            cluster_id: Some("c".repeat(64)),
            voters: (1..=5).map(|id| (first + id, at())).collect(),
            members: known.members,
            at: Some(log_id(u64::MAX, u64::MAX)),
            configs: vec![voters, (first + 1..=last).collect()],
            sees: (1..=5).map(|id| (first + id, log(u128::MAX))).collect(),
            ..hello
        };
        let len = serde_json::to_vec(&whole).unwrap().len();
        assert!(len < HELLO_LEN_MAX / 4 * 3, "{len}");
    }

    #[test]
    fn a_new_log_under_the_id_of_a_voter_is_no_member_before_that_is_removed() {
        let known = known();
        for is_silent in [false, true] {
            let lost = next(&known, &node(2, 22), &seen(2, is_silent));
            let directory = encode_uuid(log(102));
            assert!(is_refused(&lost, "has lost its own") && is_refused(&lost, &directory));
        }
        let removed = changes(ChangeMembers::RemoveVoters([2].into()));
        assert_eq!(next(&known, &joins(node(2, 22)), &seen(2, false)), removed);
        // Somebody else says that it is that voter.
        let elsewhere = Hello { reached_at: Some(("x".to_owned(), 1)), ..node(2, 22) };
        assert!(is_refused(&next(&known, &joins(elsewhere), &seen(2, true)), "has lost its own"));
        // An observer gives its id up, where it was reached or when it has been silent.
        let gone = || changes(ChangeMembers::RemoveNodes([4].into()));
        assert_eq!(next(&known, &node(4, 44), &seen(4, false)), gone());
        let elsewhere = Hello { reached_at: Some(("x".to_owned(), 1)), ..node(4, 44) };
        assert!(is_refused(&next(&known, &elsewhere, &seen(4, false)), "another node.id"));
        assert_eq!(next(&known, &elsewhere, &seen(4, true)), gone());
    }

    #[test]
    fn who_was_a_member_is_told_that_another_process_is_in_its_place() {
        let known = known();
        let before = |id: u64, n| Hello {
            members: [(id, member(id, n))].into(),
            reached_at: Some(("x".to_owned(), 1)),
            ..node(id, n)
        };
        for (id, n) in [(2, 22), (4, 44)] {
            let told = next(&known, &before(id, n), &seen(id, false));
            let Next::Answer(Attended::Out(reason)) = told else { panic!("{told:?}") };
            let says = format!("has taken node.id {id} over");
            assert!(reason.contains(&says) && reason.contains(&format!("host-{id}:9093")));
        }
        // The other one has gone.
        let gone = changes(ChangeMembers::RemoveNodes([4].into()));
        assert_eq!(next(&known, &before(4, 44), &seen(4, true)), gone);
    }

    #[test]
    fn observers_that_are_gone_are_forgotten_and_voters_are_not() {
        let known = known();
        assert_eq!(ghost(&known, |_, _| true), Some(4));
        assert_eq!(ghost(&known, |id, _| id != 4), None);
    }

    #[test]
    fn an_address_is_taken_once_nobody_answers_at_the_one_before() {
        let known = known();
        let moved = Hello { reached_at: Some(("x".to_owned(), 1)), ..node(2, 2) };
        let done = Next::Answer(Attended::Done);
        assert_eq!(next(&known, &moved, &seen(2, false)), done);
        let there = Voter { host: "x".to_owned(), port: 1, ..member(2, 2) };
        let set = changes(ChangeMembers::SetNodes([(2, there)].into()));
        assert_eq!(next(&known, &moved, &seen(2, true)), set);
        // What the founder did not know.
        let mut founded = known;
        founded.members.insert(2, Voter { directory_id: None, ..member(2, 2) });
        let set = changes(ChangeMembers::SetNodes([(2, member(2, 2))].into()));
        assert_eq!(next(&founded, &node(2, 2), &seen(2, false)), set);
    }
}
