//! What another voter may say to openraft, which trusts its peers: a term at the end of the
//! numbers, or entries with a gap, would end this node, some of them at every start again. Whoever
//! says such a thing loses its connection before openraft hears of it.

use std::io;

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, VoteRequest, VoteResponse,
};
use openraft::{EntryPayload, Membership};

use super::network::invalid;
use super::types::{Entry, NodeLogId, TypeConfig, Vote, Voter};

/// Terms and indexes are less: one is added to them again and again.
const NUMBER_END: u64 = 1 << 62;

/// What `from` asks for its election.
pub(super) fn check_vote_request(from: u64, request: &VoteRequest<u64>) -> io::Result<()> {
    check(
        is_vote_of(from, &request.vote)
            && !request.vote.committed
            && is_before(request.last_log_id, &request.vote),
    )
}

/// What `from`, which leads, wants to have appended.
pub(super) fn check_append(
    from: u64,
    request: &AppendEntriesRequest<TypeConfig>,
) -> io::Result<()> {
    let AppendEntriesRequest { vote, prev_log_id: prev, entries, leader_commit } = request;
    check(
        is_vote_of(from, vote)
            && vote.committed
            && is_before(*prev, vote)
            && is_before(*leader_commit, vote)
            && are_consecutive(*prev, entries, vote),
    )
}

/// A piece of a snapshot that `from`, which leads, sends.
pub(super) fn check_snapshot(
    from: u64,
    request: &InstallSnapshotRequest<TypeConfig>,
) -> io::Result<()> {
    let InstallSnapshotRequest { vote, meta, .. } = request;
    check(
        is_vote_of(from, vote)
            && vote.committed
            && meta.last_log_id.is_some()
            && is_before(meta.last_log_id, vote)
            && *meta.last_membership.log_id() <= meta.last_log_id
            && is_whole(meta.last_membership.membership()),
    )
}

/// What a voter answers to a request for its vote.
pub(super) fn check_vote_response(answer: &VoteResponse<u64>) -> io::Result<()> {
    check(is_vote(&answer.vote) && answer.last_log_id.is_none_or(is_log_id))
}

/// What a voter answers to entries behind `prev`, after it had everything up to `matched`.
pub(super) fn check_append_response(
    (vote, prev, matched): (&Vote, Option<NodeLogId>, Option<NodeLogId>),
    answer: &AppendEntriesResponse<u64>,
) -> io::Result<()> {
    check(match answer {
        AppendEntriesResponse::Success => true,
        // This version appends all or nothing.
        AppendEntriesResponse::PartialSuccess(_) => false,
        AppendEntriesResponse::Conflict => prev > matched,
        AppendEntriesResponse::HigherVote(higher) => is_vote(higher) && higher > vote,
    })
}

/// The vote that a voter tells.
pub(super) fn check_vote(vote: &Vote) -> io::Result<()> {
    check(is_vote(vote))
}

fn check(is_possible: bool) -> io::Result<()> {
    match is_possible {
        true => Ok(()),
        false => Err(invalid("what it says is not possible: it is no voter, or its memory failed")),
    }
}

fn is_vote(vote: &Vote) -> bool {
    vote.leader_id.term < NUMBER_END
}

fn is_vote_of(node: u64, vote: &Vote) -> bool {
    is_vote(vote) && vote.leader_id.voted_for == Some(node)
}

fn is_log_id(id: NodeLogId) -> bool {
    id.leader_id.term < NUMBER_END && id.index < NUMBER_END
}

/// Whether `id` may be in the log of who leads, or wants to, by `vote`.
fn is_before(id: Option<NodeLogId>, vote: &Vote) -> bool {
    id.is_none_or(|id| is_log_id(id) && id.leader_id.term <= vote.leader_id.term)
}

fn are_consecutive(prev: Option<NodeLogId>, entries: &[Entry], vote: &Vote) -> bool {
    let mut last = prev;
    entries.iter().all(|entry| {
        let follows = match last {
            Some(last) => {
                entry.log_id.index == last.index.saturating_add(1)
                    && entry.log_id.leader_id >= last.leader_id
            }
            None => entry.log_id.index == 0,
        };
        last = Some(entry.log_id);
        follows
            && is_before(last, vote)
            && match &entry.payload {
                EntryPayload::Membership(membership) => is_whole(membership),
                _ => true,
            }
    })
}

/// Whether somebody votes, and each voter has an address.
fn is_whole(membership: &Membership<u64, Voter>) -> bool {
    let configs = membership.get_joint_config();
    !configs.is_empty()
        && configs.iter().all(|voters| {
            !voters.is_empty() && voters.iter().all(|id| membership.get_node(id).is_some())
        })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::types::{Batch, Members, first_entry, log_id};
    use super::*;
    use crate::metadata::Part;

    fn entry(term: u64, index: u64) -> Entry {
        let batch = Batch { term, part: Part::WHOLE, records: "[]".into() };
        Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(batch) }
    }

    /// Voter 2 leads in term 5 and sends `entries`, which follow entry 7 of term 3.
    fn append(entries: Vec<Entry>) -> AppendEntriesRequest<TypeConfig> {
        AppendEntriesRequest {
            vote: Vote::new_committed(5, 2),
            prev_log_id: Some(log_id(3, 7)),
            entries,
            leader_commit: Some(log_id(3, 6)),
        }
    }

    #[test]
    fn entries_follow_one_another_and_are_of_the_leaders_term_or_before() {
        let is_taken = |request| check_append(2, &request).is_ok();
        assert!(is_taken(append(vec![])));
        assert!(is_taken(append(vec![entry(3, 8), entry(5, 9)])));
        let first = first_entry([(1, Voter::default())].into());
        let from_the_beginning = vec![first.clone(), entry(1, 1)];
        let beginning = |entries| AppendEntriesRequest { prev_log_id: None, ..append(entries) };
        assert!(is_taken(beginning(from_the_beginning)));
        for (what, request) in [
            ("a gap", append(vec![entry(3, 9)])),
            ("a gap in the middle", append(vec![entry(3, 8), entry(3, 10)])),
            ("a gap at the beginning", beginning(vec![entry(3, 1)])),
            ("again", append(vec![entry(3, 8), entry(3, 8)])),
            ("an earlier term", append(vec![entry(2, 8)])),
            ("a later term than the leader's", append(vec![entry(6, 8)])),
            (
                "the last index of all",
                AppendEntriesRequest {
                    prev_log_id: Some(log_id(3, u64::MAX - 1)),
                    ..append(vec![entry(3, u64::MAX)])
                },
            ),
            (
                "the last term of all",
                AppendEntriesRequest { vote: Vote::new_committed(u64::MAX, 2), ..append(vec![]) },
            ),
            (
                "another's lead",
                AppendEntriesRequest { vote: Vote::new_committed(5, 1), ..append(vec![]) },
            ),
            ("no lead", AppendEntriesRequest { vote: Vote::new(5, 2), ..append(vec![]) }),
            (
                "a later end",
                AppendEntriesRequest { leader_commit: Some(log_id(6, 7)), ..append(vec![]) },
            ),
        ] {
            assert!(!is_taken(request), "{what} is taken");
        }
    }

    #[test]
    fn a_membership_has_voters_and_their_addresses() {
        let nobody = Membership::new(vec![BTreeSet::new()], BTreeMap::new());
        let nowhere: Membership<u64, Voter> =
            serde_json::from_str(r#"{"configs": [[1]], "nodes": {}}"#).unwrap();
        let nothing: Membership<u64, Voter> =
            serde_json::from_str(r#"{"configs": [], "nodes": {}}"#).unwrap();
        for membership in [nobody, nowhere, nothing] {
            assert!(!is_whole(&membership), "{membership}");
            let payload = EntryPayload::Membership(membership);
            let entry = Entry { log_id: log_id(3, 8), payload };
            assert!(check_append(2, &append(vec![entry])).is_err());
        }
        let members: Members = [(1, Voter::default())].into();
        let EntryPayload::Membership(membership) = first_entry(members).payload else { panic!() };
        assert!(is_whole(&membership));
    }

    #[test]
    fn a_vote_is_asked_for_by_its_candidate_and_terms_have_an_end() {
        let is_taken = |vote, last| {
            let last_log_id = Some(last);
            check_vote_request(2, &VoteRequest { vote, last_log_id }).is_ok()
        };
        assert!(is_taken(Vote::new(5, 2), log_id(5, 7)));
        assert!(!is_taken(Vote::new(5, 1), log_id(3, 7)));
        assert!(!is_taken(Vote::new_committed(5, 2), log_id(3, 7)));
        assert!(!is_taken(Vote::new(u64::MAX, 2), log_id(3, 7)));
        assert!(!is_taken(Vote::new(5, 2), log_id(6, 7)));
        assert!(!is_taken(Vote::new(5, 2), log_id(3, u64::MAX)));
    }

    #[test]
    fn an_answer_raises_no_term_without_bound_and_takes_nothing_back() {
        let own = Vote::new_committed(5, 1);
        let request = (&own, Some(log_id(3, 7)), Some(log_id(3, 6)));
        let is_taken = |request, answer| check_append_response(request, &answer).is_ok();
        assert!(is_taken(request, AppendEntriesResponse::Success));
        assert!(is_taken(request, AppendEntriesResponse::Conflict));
        assert!(is_taken(request, AppendEntriesResponse::HigherVote(Vote::new(6, 3))));
        assert!(!is_taken(request, AppendEntriesResponse::HigherVote(own)));
        assert!(!is_taken(request, AppendEntriesResponse::HigherVote(Vote::new(u64::MAX, 3))));
        assert!(!is_taken(request, AppendEntriesResponse::PartialSuccess(None)));
        let had_it = (&own, Some(log_id(3, 7)), Some(log_id(3, 7)));
        assert!(!is_taken(had_it, AppendEntriesResponse::Conflict));
        assert!(!is_taken((&own, None, None), AppendEntriesResponse::Conflict));
        let answer = |vote| check_vote_response(&VoteResponse::new(vote, None, false));
        assert!(answer(Vote::new(6, 3)).is_ok() && answer(Vote::new(u64::MAX, 3)).is_err());
    }
}
