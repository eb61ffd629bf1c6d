//! The restart verdict in words: its question and its answer.

use std::collections::BTreeSet;

use letterbox_protocol::model::BrokerId;
use serde_json::{Value, json};

use super::{NAMES_MAX, Refusal, brokers_of, count, joined, lease, named, names, parameters};
use crate::metadata::decide::{JudgeRestart, Verdict};

const HOW_TO_ASK: &str = "name the brokers to restart by their ids, as in ?brokers=1,2";

/// What `query` asks for.
pub(super) fn question(query: &str) -> Result<JudgeRestart, Refusal> {
    let asked = parameters(query, &["brokers"]);
    let brokers = asked.and_then(|asked| brokers_of(asked.get("brokers")?));
    let brokers = brokers.ok_or_else(|| Refusal::BadRequest(HOW_TO_ASK.to_owned()))?;
    Ok(JudgeRestart { brokers, names_max: NAMES_MAX })
}

/// The answer, as docs/openapi.json has it.
pub(super) fn answer(brokers: &BTreeSet<BrokerId>, verdict: &Verdict) -> Value {
    let leases = verdict.leases.iter().map(|held| {
        json!({
            "holder": held.holder,
            "brokers": held.brokers.keys().collect::<Vec<_>>(),
            "secondsLeft": lease::seconds_left(held),
        })
    });
    json!({
        "brokers": brokers,
        "safe": verdict.is_safe(),
        "because": because(verdict),
        "epoch": verdict.epoch,
        "partitions": verdict.partitions,
        "recordsLost": named(&verdict.records_lost),
        "onlyCopies": named(&verdict.only_copies),
        "withoutLeader": named(&verdict.without_leader),
        "belowMinIsr": named(&verdict.below_min_isr),
        "singleReplica": named(&verdict.single_replica),
        "noSpareReplica": named(&verdict.no_spare_replica),
        "leases": leases.collect::<Vec<_>>(),
        "away": verdict.away.iter().map(|id| id.0).collect::<Vec<_>>(),
        "voters": {
            "count": verdict.voters.count,
            "needed": verdict.voters.needed,
            "left": verdict.voters.left,
            "kept": verdict.voters.is_kept(),
        },
    })
}

/// Why it is not safe, in words of a kind, worst first.
pub(super) fn reasons(verdict: &Verdict) -> Vec<&'static str> {
    let reasons = [
        (verdict.records_lost.count > 0, "recordsLost"),
        (verdict.only_copies.count > 0, "onlyCopies"),
        (verdict.without_leader.count > 0, "withoutLeader"),
        (verdict.below_min_isr.count > 0, "belowMinIsr"),
        (!verdict.voters.is_kept(), "quorum"),
    ];
    reasons.into_iter().filter(|(is_so, _)| *is_so).map(|(_, reason)| reason).collect()
}

/// Why it is not safe, worst first, and whose leases were counted.
pub(super) fn because(verdict: &Verdict) -> Vec<String> {
    let lists = [
        (
            &verdict.records_lost,
            "would be led by a replica that may lack acknowledged records \
             (unclean.leader.election.enable)",
        ),
        (&verdict.only_copies, "would have no leader, and no complete copy on other brokers"),
        (&verdict.without_leader, "would have no leader, because other brokers are not there"),
        (
            &verdict.below_min_isr,
            "would have fewer replicas in sync than min.insync.replicas, and acks=all would be \
             refused",
        ),
    ];
    let of_lists = lists.iter().filter(|(list, _)| list.count > 0);
    let mut because: Vec<String> =
        of_lists.map(|(list, what)| format!("{} {what}: {}", count(list), names(list))).collect();
    let voters = &verdict.voters;
    if !voters.is_kept() {
        because.push(format!(
            "the metadata quorum would have no majority: {} of {} voters would be left that \
             follow, and {} are needed",
            voters.left, voters.count, voters.needed
        ));
    }
    let leases = verdict.leases.iter().filter(|_| !because.is_empty()).map(|held| {
        let brokers: Vec<_> = held.brokers.keys().copied().collect();
        format!("with {} away, of which {} has the restart lease", joined(&brokers), held.holder)
    });
    let leases: Vec<_> = leases.collect();
    because.extend(leases);
    because
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::decide::Named;

    #[test]
    fn a_question_names_brokers_or_is_refused() {
        for (query, ids) in [
            ("brokers=2", Some(vec![2])),
            ("brokers=2,1,2", Some(vec![1, 2])),
            ("brokers=1%2C2", Some(vec![1, 2])),
            ("", None),
            ("brokers=", None),
            ("brokers=1,", None),
            ("brokers=1&force=true", None),
            ("broker=1", None),
            ("brokers=99999999999", None),
        ] {
            let ids = ids.map(|ids| ids.into_iter().map(BrokerId).collect());
            assert_eq!(question(query).ok().map(|asked| asked.brokers), ids, "{query}");
        }
    }

    #[test]
    fn reasons_are_told_with_numbers_and_some_names() {
        let some = (0..7).map(|index| ("orders".to_owned(), index)).collect();
        let mut verdict = Verdict { below_min_isr: Named { count: 9, some }, ..Verdict::default() };
        verdict.only_copies = Named { count: 1, some: vec![("a".to_owned(), 0)] };
        let said = because(&verdict);
        assert_eq!(said.len(), 2);
        assert!(
            said[0].starts_with("1 partition would have no leader") && said[0].ends_with(": a-0")
        );
        assert!(said[1].starts_with("9 partitions would have fewer"), "{said:?}");
        assert!(said[1].ends_with("orders-3, orders-4 and 4 more"), "{said:?}");
        verdict.voters.count = 3;
        (verdict.voters.needed, verdict.voters.left, verdict.voters.restart) = (2, 1, true);
        assert!(because(&verdict)[2].contains("1 of 3 voters would be left"));
        assert!(because(&Verdict::default()).is_empty());
    }
}
