//! How voters that are all new begin a cluster. `docs/design/0002-founding.md` has the cases.
//!
//! A voter is new while its log is empty. It asks every other voter who it is, again and again,
//! until it has the membership of a cluster or has founded one:
//!
//! - One of them has a membership. If that is the founding one and names this voter's log, this
//!   voter begins its own log with it. Otherwise the node has to become a member (`voters`), and
//!   its log stays empty until the leader fills it; if a voter with another log has its id, that
//!   one has to be removed first.
//! - All of them are new: the one with the lowest id founds the cluster. It begins its log with a
//!   membership that names the log of each voter as that voter has told it.
//!
//! Only one voter ever founds, and only when it has heard every other voter say that it is new. So
//! two voters that lost their logs never begin a second cluster beside the third, and a voter that
//! comes with a new log is in no membership until all voters are new. Of two processes that are the
//! first voter, by a wrong list or a name that has moved, none founds: every other voter has to
//! have found the one that does, and finds one process at an address. Nobody votes, or asks for
//! votes, before the membership is in its own log: a voter that is new has promised nothing. Each
//! makes its log durable before it tells of it: whatever is killed in the middle says the same
//! again.
//!
//! A node that has only the addresses of voters (`controller.quorum.bootstrap.servers`) asks there
//! for their ids. Where all of them answer, are new, and one of them is the node itself, these are
//! the voters, and it goes on as one that has a list of them: alone where there is one address.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use letterbox_env::panics::lock;
use letterbox_env::{Env, Gather, join_address, with_causes};
use letterbox_protocol::model::encode_uuid;
use uuid::Uuid;

use super::identity::{Hello, Identity};
use super::network::ask_who;
use super::types::{Known, Members, Voter};

/// Between two rounds of asking.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// How often it is said who is waited for, in rounds.
const SAY_EVERY: u64 = 40;

/// What can be done about a voter that lost its log.
pub(super) const LOST: &str = "Mount the volume with its own directory again or, when that is \
    gone for good, have the lost voter removed (kafka-metadata-quorum remove-controller) and this \
    one added (add-controller); the cluster goes on meanwhile while a majority of its voters is \
    there";

/// Why there is no cluster for this voter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum FoundingError {
    #[error(
        "voter {first} belongs to cluster {first_cluster}, and voter {second} to cluster \
         {second_cluster}; correct controller.quorum.voters, so that it names the voters of one"
    )]
    SeveralClusters { first: u64, first_cluster: String, second: u64, second_cluster: String },
    #[error(
        "controller.quorum.voters is {own} here, and {other} {whose}; write the same voters in the \
         configuration of each of them"
    )]
    VotersDiffer { own: String, other: String, whose: String },
    #[error(
        "voter {told_by} finds another process as voter {node} at {at}, with the metadata log \
         {found}; the log here is {incarnation}. Write the same addresses in \
         controller.quorum.voters of each voter, and run one process with node.id {node}"
    )]
    FoundElsewhere { told_by: u64, node: u64, at: String, found: Uuid, incarnation: Uuid },
    #[error("voter {node}: {reason}")]
    OtherVersion { node: u64, reason: String },
}

/// What a new voter does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It waits: for these voters, or for the first one to found the cluster.
    Wait { missing: BTreeSet<u64> },
    /// It waits until somebody has corrected what these new voters say.
    Correct(FoundingError),
    /// It founds the cluster with these voters; its id has to be drawn unless one of them has it.
    Found { cluster_id: Option<String>, members: Members },
    /// There is a cluster. With its founding membership this voter begins its log; otherwise it has
    /// to become a member, or to be filled.
    Join { cluster_id: String, known: Known, begins: bool },
}

/// What the new voter that says `own` of itself does after what the others answered.
///
/// # Errors
/// What a voter of a cluster answers excludes this one. Nothing that a new voter says does: it may
/// be corrected while this one waits.
pub(super) fn decide(own: &Hello, answers: &BTreeMap<u64, Hello>) -> Result<Step, FoundingError> {
    let founded: Vec<&Hello> = answers.values().filter(|hello| !hello.members.is_empty()).collect();
    for hello in &founded {
        check_version(hello)?;
    }
    one_cluster(own, founded.iter().copied())?;
    if let Some(hello) = founded.iter().max_by_key(|hello| hello.at)
        && let Some(cluster_id) = hello.cluster_id.clone()
    {
        let known = hello.known();
        let is_founding = known.at.is_none_or(|at| at.index == 0);
        let begins = is_founding && known.names(own.from, own.incarnation);
        return Ok(Step::Join { cluster_id, known, begins });
    }
    if own.voters.is_empty() {
        return Ok(Step::Wait { missing: BTreeSet::new() });
    }
    let agree = || {
        answers.values().try_for_each(|hello| compare(own, hello))?;
        one_cluster(own, answers.values())
    };
    let cluster_id = match agree() {
        Ok(cluster_id) => cluster_id,
        Err(error) => return Ok(Step::Correct(error)),
    };
    let others = own.voters.keys().copied().filter(|id| *id != own.from);
    let mut missing: BTreeSet<u64> = others.filter(|id| !answers.contains_key(id)).gather();
    let is_first = own.voters.keys().next() == Some(&own.from);
    if missing.is_empty() && is_first {
        match unconvinced(own, answers) {
            Ok(waiting) => missing = waiting,
            Err(error) => return Ok(Step::Correct(error)),
        }
    }
    if missing.is_empty() && is_first {
        let incarnation = |id: &u64| match *id == own.from {
            true => Some(own.incarnation),
            false => Some(answers.get(id)?.incarnation),
        };
        let member = |(id, at): (&u64, &(String, u16))| {
            Some((*id, Voter { incarnation: incarnation(id)?, ..Voter::at(at) }))
        };
        let members = own.voters.iter().filter_map(member).gather();
        return Ok(Step::Found { cluster_id, members });
    }
    Ok(Step::Wait { missing })
}

/// The voters that have not found this one yet.
///
/// # Errors
/// One of them has found another process in its place.
fn unconvinced(
    own: &Hello,
    answers: &BTreeMap<u64, Hello>,
) -> Result<BTreeSet<u64>, FoundingError> {
    let mut waiting = BTreeSet::new();
    for hello in answers.values() {
        match hello.sees.get(&own.from) {
            Some(found) if *found == own.incarnation => {}
            Some(found) => {
                let at = hello.voters.get(&own.from).map(|(host, port)| join_address(host, port));
                return Err(FoundingError::FoundElsewhere {
                    told_by: hello.from,
                    node: own.from,
                    at: at.unwrap_or_default(),
                    found: *found,
                    incarnation: own.incarnation,
                });
            }
            None => drop(waiting.insert(hello.from)),
        }
    }
    Ok(waiting)
}

/// The voters that are all new at the addresses `servers`, of which `own` is one; nobody unless each
/// of them is known. `answers` are in the order of `servers`.
fn voters_at(
    own: &Hello,
    servers: &[(String, u16)],
    answers: &[Option<Hello>],
) -> BTreeMap<u64, Voter> {
    let is_new = |hello: &&Hello| hello.members.is_empty();
    let answered = servers.iter().zip(answers);
    let voters: BTreeMap<u64, Voter> = answered
        .filter_map(|(at, hello)| Some((hello.as_ref().filter(is_new)?.from, Voter::at(at))))
        .gather();
    let is_own = |hello: &Hello| hello.incarnation == own.incarnation && hello.from == own.from;
    let has_own = answers.iter().flatten().any(is_own);
    match has_own && voters.len() == servers.len() && matches!(voters.len(), 1 | 3 | 5) {
        true => voters,
        false => BTreeMap::new(),
    }
}

/// Whether both speak a common version and have the same list of voters. Addresses may differ: a
/// host may have several names.
fn compare(own: &Hello, hello: &Hello) -> Result<(), FoundingError> {
    check_version(hello)?;
    if !hello.voters.keys().eq(own.voters.keys()) {
        return Err(FoundingError::VotersDiffer {
            own: written(&own.voters),
            other: written(&hello.voters),
            whose: format!("at voter {}", hello.from),
        });
    }
    Ok(())
}

fn check_version(hello: &Hello) -> Result<(), FoundingError> {
    let other = |reason| FoundingError::OtherVersion { node: hello.from, reason };
    hello.speaks.version().map(drop).map_err(other)
}

/// The one cluster that these and this voter name, if any does.
fn one_cluster<'a>(
    own: &'a Hello,
    answers: impl Iterator<Item = &'a Hello>,
) -> Result<Option<String>, FoundingError> {
    let all = [own].into_iter().chain(answers);
    let mut clusters = all.filter_map(|hello| Some((hello.from, hello.cluster_id.as_ref()?)));
    let Some((first, first_cluster)) = clusters.next() else { return Ok(None) };
    match clusters.find(|(_, cluster)| *cluster != first_cluster) {
        None => Ok(Some(first_cluster.clone())),
        Some((second, second_cluster)) => Err(FoundingError::SeveralClusters {
            first,
            first_cluster: first_cluster.clone(),
            second,
            second_cluster: second_cluster.clone(),
        }),
    }
}

/// As in the configuration.
fn written(voters: &BTreeMap<u64, (String, u16)>) -> String {
    let voter =
        |(id, (host, port)): (&u64, &(String, u16))| format!("{id}@{}", join_address(host, port));
    voters.iter().map(voter).collect::<Vec<_>>().join(",")
}

pub(super) fn ids<'a>(ids: impl Iterator<Item = &'a u64>) -> String {
    ids.map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The cluster that a new voter has found, or founds.
pub(super) struct Cluster {
    pub(super) id: String,
    /// Its membership.
    pub(super) known: Known,
    /// Whether the log of this voter begins with that.
    pub(super) begins: bool,
    /// Whether this voter is the one that founds it.
    pub(super) founds: bool,
}

/// Asks the other voters, and whoever answers at one of `servers`, until there is a cluster for
/// this node. Waits as long as it takes, and says for whom. Cancel safe.
pub(super) async fn agree(
    env: &Env,
    identity: &Identity,
    servers: &[(String, u16)],
) -> Result<Cluster, FoundingError> {
    let mut round = 0u64;
    loop {
        let voters = identity.founders();
        let others = voters.iter().filter(|(id, _)| **id != identity.node_id);
        let asked = others.map(|(id, at)| async move {
            (*id, ask_who(env, &identity.hello(*id), Some(*id), at).await)
        });
        let (mut answers, mut unreachable) = (BTreeMap::new(), BTreeMap::new());
        for (id, answer) in futures::future::join_all(asked).await {
            match answer {
                Ok(hello) => drop(answers.insert(id, hello)),
                Err(error) => drop(unreachable.insert(id, with_causes(&error))),
            }
        }
        let found = answers.iter().map(|(id, hello)| (*id, hello.incarnation)).collect();
        *lock(&identity.sees) = found;
        let asked = servers.iter().map(Voter::at).map(|at| async move {
            ask_who(env, &identity.hello(identity.node_id), None, &at).await.ok()
        });
        let asked = futures::future::join_all(asked).await;
        identity.find_founders(voters_at(&identity.hello(identity.node_id), servers, &asked));
        let is_other = |hello: &Hello| hello.from != identity.node_id && !hello.members.is_empty();
        let asked = asked.into_iter().flatten();
        answers.extend(asked.filter(is_other).map(|hello| (hello.from, hello)));
        match decide(&identity.hello(identity.node_id), &answers)? {
            Step::Join { cluster_id: id, known, begins } => {
                tracing::info!(cluster_id = id, "joining the existing cluster");
                return Ok(Cluster { id, known, begins, founds: false });
            }
            Step::Found { cluster_id, members } => {
                let id = cluster_id.unwrap_or_else(|| encode_uuid(env.random_uuid()));
                tracing::info!(
                    cluster_id = id,
                    "all voters are new: this node creates the cluster"
                );
                let known = Known::founding(members);
                return Ok(Cluster { id, known, begins: true, founds: true });
            }
            Step::Wait { missing } if round % SAY_EVERY == SAY_EVERY / 8 => {
                say_who_is_missing(&voters, &missing, &unreachable);
            }
            Step::Correct(error) if round % SAY_EVERY == SAY_EVERY / 8 => {
                tracing::error!("cannot create the cluster yet: {error}");
            }
            Step::Wait { .. } | Step::Correct(_) => {}
        }
        round = round.wrapping_add(1);
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn say_who_is_missing(
    voters: &BTreeMap<u64, Voter>,
    missing: &BTreeSet<u64>,
    unreachable: &BTreeMap<u64, String>,
) {
    if voters.is_empty() {
        tracing::warn!(
            "no voter of a cluster answers at controller.quorum.bootstrap.servers yet; waiting for \
             one or, to create a cluster, for one, three or five new nodes there, this one \
             included"
        );
        return;
    }
    if missing.is_empty() {
        let first = voters.keys().next();
        tracing::warn!(
            ?first,
            "all voters are reachable; waiting for the first one to create the cluster"
        );
        return;
    }
    let missing: Vec<String> = missing
        .iter()
        .filter_map(|id| Some((id, voters.get(id)?)))
        .map(|(id, at)| {
            let why = unreachable.get(id).map_or("it has not found this voter yet", String::as_str);
            format!("{id}@{} ({why})", join_address(&at.host, at.port))
        })
        .collect();
    tracing::warn!(
        missing = missing.join(", "),
        "this voter's metadata log is new: waiting for all voters (controller.quorum.voters or \
         controller.quorum.bootstrap.servers), to create the cluster with them, or for one that knows this voter"
    );
}

#[cfg(test)]
mod tests {
    use super::super::identity::{Speaks, address};
    use super::super::types::{Reached, log_id};
    use super::*;

    const ALL: [u64; 3] = [1, 2, 3];

    fn log(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn at(id: u64) -> (String, u16) {
        (format!("host-{id}"), 9093)
    }

    /// A voter that is new; its log is `log(id)`.
    fn new(from: u64) -> Hello {
        Hello {
            speaks: Speaks::default(),
            cluster_id: None,
            from,
            to: 0,
            incarnation: log(from.into()),
            start: Uuid::nil(),
            directory_id: None,
            voters: ALL.iter().map(|id| (*id, at(*id))).collect(),
            members: Members::new(),
            reached: Reached::default(),
            sees: ALL.iter().map(|id| (*id, log((*id).into()))).collect(),
            at: None,
            configs: Vec::new(),
            reached_at: None,
            joins: false,
        }
    }

    fn members(logs: [u128; 3]) -> Members {
        let voter = |(id, n)| (id, Voter { incarnation: log(n), ..Voter::at(&at(id)) });
        ALL.into_iter().zip(logs).map(voter).collect()
    }

    /// A voter of cluster "one" with these logs of the three.
    fn founded(from: u64, logs: [u128; 3]) -> Hello {
        Hello { cluster_id: Some("one".to_owned()), members: members(logs), ..new(from) }
    }

    fn of_cluster(hello: Hello, id: &str) -> Hello {
        Hello { cluster_id: Some(id.to_owned()), ..hello }
    }

    fn check(own: Hello, others: &[Hello]) -> Result<Step, FoundingError> {
        decide(&own, &others.iter().map(|hello| (hello.from, hello.clone())).collect())
    }

    fn waits_for(missing: &[u64]) -> Result<Step, FoundingError> {
        Ok(Step::Wait { missing: missing.iter().copied().collect() })
    }

    fn founds(cluster_id: Option<&str>) -> Result<Step, FoundingError> {
        let members = members([1, 2, 3]);
        Ok(Step::Found { cluster_id: cluster_id.map(str::to_owned), members })
    }

    fn joins() -> Result<Step, FoundingError> {
        let known = founded(1, [1, 2, 3]).known();
        Ok(Step::Join { cluster_id: "one".to_owned(), known, begins: true })
    }

    /// Whether it waits to become a member, and its log to be filled.
    fn observes(own: Hello, others: &[Hello]) -> bool {
        matches!(check(own, others), Ok(Step::Join { begins: false, .. }))
    }

    #[test]
    fn the_first_of_voters_that_are_all_new_founds_and_names_each_log() {
        assert_eq!(check(new(1), &[new(2), new(3)]), founds(None));
        assert_eq!(check(new(2), &[new(1), new(3)]), waits_for(&[]));
        assert_eq!(check(new(3), &[new(1), new(2)]), waits_for(&[]));
        // A majority is not enough: the third may be of a cluster.
        assert_eq!(check(new(1), &[new(2)]), waits_for(&[3]));
        assert_eq!(check(new(1), &[]), waits_for(&[2, 3]));
        // It died after it had told the id of the cluster, or that is configured.
        assert_eq!(check(new(1), &[of_cluster(new(2), "one"), new(3)]), founds(Some("one")));
        assert_eq!(check(of_cluster(new(1), "one"), &[new(2), new(3)]), founds(Some("one")));
    }

    /// Two processes are voter 1: the others have found one of them, each the one at its address.
    #[test]
    fn the_first_voter_founds_when_every_other_has_found_it_and_no_other_process() {
        let sees = |hello: Hello, first: Option<u128>| Hello {
            sees: first.map(|n| (1, log(n))).into_iter().collect(),
            ..hello
        };
        let answers = |second, third| [sees(new(2), second), sees(new(3), third)];
        assert_eq!(check(new(1), &answers(Some(1), Some(1))), founds(None));
        assert_eq!(check(new(1), &answers(Some(1), None)), waits_for(&[3]));
        assert_eq!(check(new(1), &answers(None, None)), waits_for(&[2, 3]));
        for (second, third) in [(Some(1), Some(9)), (Some(9), Some(1)), (None, Some(9))] {
            let said = corrects(new(1), &answers(second, third));
            assert!(said.contains("another process as voter 1 at host-1:9093"), "{said}");
        }
    }

    #[test]
    fn those_that_are_all_new_where_voters_are_found_are_the_voters() {
        let servers = ALL.map(at);
        let unlisted = |id| Hello { voters: BTreeMap::new(), ..new(id) };
        let found = |own: u64, answers: [Option<Hello>; 3]| {
            let found = voters_at(&unlisted(own), &servers, &answers);
            found.into_iter().map(|(id, at)| (id, address(&at))).collect::<Vec<_>>()
        };
        let all = || ALL.map(|id| Some(unlisted(id)));
        assert_eq!(found(2, all()), ALL.map(|id| (id, at(id))));
        let other = |n: usize, hello: Option<Hello>| {
            let mut answers = all();
            answers[n] = hello;
            answers
        };
        // One that has a list has the same, or both are told.
        assert_eq!(found(2, other(0, Some(new(1)))).len(), 3);
        for (said, own, answers) in [
            ("one does not answer", 1, other(2, None)),
            ("one has a cluster", 1, other(2, Some(founded(3, [1, 2, 3])))),
            ("one of them is reached at two addresses", 1, other(2, Some(unlisted(2)))),
            ("none of them is this node", 4, all()),
            ("another process has this node's id", 1, {
                other(0, Some(Hello { incarnation: log(9), ..unlisted(1) }))
            }),
        ] {
            assert_eq!(found(own, answers), [], "{said}");
        }
        // One that is reached under another name or port than it knows of.
        let alone = |own| voters_at(&unlisted(own), &servers[..1], &all()[..1]).into_keys();
        assert!(alone(1).eq([1]) && alone(2).next().is_none());
        let two = voters_at(&unlisted(1), &servers[..2], &all()[..2]);
        assert!(two.is_empty(), "two are no number of voters");
    }

    #[test]
    fn a_voter_that_the_cluster_knows_joins_whoever_else_is_there() {
        assert_eq!(check(new(2), &[founded(1, [1, 2, 3])]), joins());
        assert_eq!(check(new(3), &[new(2), founded(1, [1, 2, 3])]), joins());
        assert_eq!(check(new(3), &[founded(2, [1, 2, 3]), new(1)]), joins());
        // Whatever is wrong with one that is new.
        let wrong = Hello { voters: [(2, at(2))].into(), ..of_cluster(new(2), "other") };
        assert_eq!(check(new(3), &[wrong, founded(1, [1, 2, 3])]), joins());
    }

    #[test]
    fn a_voter_that_lost_its_log_begins_none_whatever_others_say() {
        for id in ALL {
            let others = ALL.into_iter().filter(|other| *other != id);
            for witness in others.clone() {
                // One voter that has its log is enough, the other being new too, or not there.
                let witness = founded(witness, [11, 12, 13]);
                let other = others.clone().find(|other| *other != witness.from).unwrap();
                for others in [vec![witness.clone()], vec![witness, new(other)]] {
                    assert!(observes(new(id), &others));
                }
            }
        }
    }

    /// The first entry of the log is the founding membership: a later one in its place would be
    /// another entry under the same id.
    #[test]
    fn a_log_begins_with_the_founding_membership_and_no_later_one() {
        let later = |hello| Hello { at: Some(log_id(1, 5)), ..hello };
        let first = |hello| Hello { at: Some(log_id(0, 0)), ..hello };
        assert!(observes(new(3), &[later(founded(1, [1, 2, 3]))]));
        assert!(observes(new(3), &[first(founded(2, [1, 2, 3])), later(founded(1, [1, 2, 3]))]));
        let known = first(founded(1, [1, 2, 3])).known();
        let begins = Ok(Step::Join { cluster_id: "one".to_owned(), known, begins: true });
        assert_eq!(check(new(3), &[first(founded(1, [1, 2, 3]))]), begins);
        // One that is not among the voters, and one that has no list of them.
        let stranger = Hello { voters: BTreeMap::new(), ..new(7) };
        assert!(observes(stranger.clone(), &[founded(1, [1, 2, 3])]));
        assert_eq!(check(stranger.clone(), &[new(1), new(2)]), waits_for(&[]));
        assert_eq!(check(stranger, &[]), waits_for(&[]));
    }

    /// What is said while it waits for a correction.
    fn corrects(own: Hello, others: &[Hello]) -> String {
        match check(own, others) {
            Ok(Step::Correct(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lists_of_voters_that_differ_are_told_side_by_side() {
        let wrong = Hello { voters: [3, 4, 5].map(|id| (id, at(id))).into(), ..new(3) };
        let right = "1@host-1:9093,2@host-2:9093,3@host-3:9093";
        let says_both = |said: String| {
            assert!(said.contains(right), "{said}");
            assert!(said.contains("3@host-3:9093,4@host-4:9093,5@host-5:9093"), "{said}");
            assert!(said.contains("controller.quorum.voters"), "{said}");
        };
        says_both(corrects(new(1), &[new(2), wrong.clone()]));
        says_both(corrects(wrong.clone(), &[new(1), new(2)]));
        // Those of a cluster count, whatever the lists are.
        assert!(observes(wrong, &[new(1), founded(2, [1, 2, 13])]));
        let elsewhere = ALL.iter().map(|id| (*id, (format!("10.0.0.{id}"), 9093))).collect();
        let elsewhere = Hello { voters: elsewhere, ..new(3) };
        assert_eq!(check(new(1), &[new(2), elsewhere]), founds(None));
    }

    #[test]
    fn voters_of_two_clusters_are_told_apart_by_name() {
        let said = |own, others: &[Hello]| check(own, others).unwrap_err().to_string();
        let expected = "voter 1 belongs to cluster one, and voter 2 to cluster other; correct \
             controller.quorum.voters, so that it names the voters of one";
        let others = [founded(1, [1, 2, 3]), of_cluster(founded(2, [1, 2, 3]), "other")];
        assert_eq!(said(new(3), &others), expected);
        // Its own directories name one, and its log is not there any more.
        let other = of_cluster(founded(2, [1, 2, 3]), "other");
        assert_eq!(said(of_cluster(new(1), "one"), &[other]), expected);
        assert_eq!(corrects(of_cluster(new(1), "one"), &[of_cluster(new(2), "other")]), expected);
        let speaks = Speaks { versions: (900, 901), ..Speaks::default() };
        let other = Hello { speaks, ..new(2) };
        assert!(corrects(new(1), &[other]).contains("upgrade one release at a time"));
    }
}
