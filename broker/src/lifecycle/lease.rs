//! Restart leases in words: the questions and their answers.

use std::collections::BTreeSet;

use letterbox_protocol::model::BrokerId;
use serde_json::{Value, json};

use super::{NAMES_MAX, Refusal, brokers_of, joined, parameters, verdict};
use crate::metadata::RestartLease;
use crate::metadata::decide::{
    JudgeRestart, LeaseAnswer, LeaseConflict, ReleaseRestartLease, TakeRestartLease,
};

/// For how long a lease is granted where nobody says, in seconds.
const SECONDS: u64 = 600;
/// Leads that are moved at once, because clients then look for the leaders.
pub(super) const LEADS_TOGETHER_MAX: usize = 1_000;

const HOW_TO_ASK: &str = "name who asks, and the brokers to restart by their ids, as in \
    ?holder=me&brokers=1,2, and with seconds=N for how long at most (600 where it is left out)";
const HOW_TO_RELEASE: &str = "name who has the lease, as in ?holder=me";

/// What `query` asks for.
pub(super) fn question(query: &str) -> Result<TakeRestartLease, Refusal> {
    read(query).ok_or_else(|| Refusal::BadRequest(HOW_TO_ASK.to_owned()))
}

fn read(query: &str) -> Option<TakeRestartLease> {
    let asked = parameters(query, &["holder", "brokers", "seconds"])?;
    let seconds = asked.get("seconds").map_or(Some(SECONDS), |text| text.parse().ok())?;
    let brokers = brokers_of(asked.get("brokers")?)?;
    Some(TakeRestartLease {
        holder: (*asked.get("holder")?).to_owned(),
        restart: JudgeRestart { brokers, names_max: NAMES_MAX },
        for_ms: seconds.saturating_mul(1_000),
        leads_max: LEADS_TOGETHER_MAX,
    })
}

/// Whose lease `query` gives back.
pub(super) fn release(query: &str) -> Result<ReleaseRestartLease, Refusal> {
    let asked = parameters(query, &["holder"]);
    let holder = asked.and_then(|asked| Some((*asked.get("holder")?).to_owned()));
    let holder = holder.ok_or_else(|| Refusal::BadRequest(HOW_TO_RELEASE.to_owned()))?;
    Ok(ReleaseRestartLease { holder })
}

/// The answer, as docs/openapi.json has it.
pub(super) fn answer(
    holder: &str,
    brokers: &BTreeSet<BrokerId>,
    answer: &LeaseAnswer,
    leads_left: usize,
) -> Value {
    let (mut reasons, mut because) = (verdict::reasons(&answer.verdict), Vec::new());
    match &answer.conflict {
        Some(LeaseConflict::BrokerLeased { broker, holder }) => {
            reasons.push("brokerLeased");
            because.push(format!("{holder} has the restart lease of broker {broker}"));
        }
        Some(LeaseConflict::HolderHasLease { brokers }) => {
            reasons.push("holderHasLease");
            because.push(format!(
                "{holder} has a restart lease over {}, and a holder has one at a time",
                joined(brokers)
            ));
        }
        None => {}
    }
    because.extend(verdict::because(&answer.verdict));
    json!({
        "holder": holder,
        "brokers": brokers,
        "granted": answer.lease.is_some(),
        "reasons": reasons,
        "because": because,
        "secondsLeft": answer.lease.as_ref().map(seconds_left),
        "leadsLeft": leads_left,
        "verdict": verdict::answer(brokers, &answer.verdict),
    })
}

/// The answer where not all nodes know leases.
pub(super) fn not_supported(holder: &str, brokers: &BTreeSet<BrokerId>, why: &str) -> Value {
    json!({
        "holder": holder,
        "brokers": brokers,
        "granted": false,
        "reasons": ["notSupported"],
        "because": [why],
        "secondsLeft": null,
        "leadsLeft": 0,
        "verdict": null,
    })
}

/// About how long a lease lasts yet.
pub(super) fn seconds_left(lease: &RestartLease) -> u64 {
    lease.left_ms.div_ceil(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::decide::{Named, Verdict};

    #[test]
    fn a_question_names_a_holder_and_brokers_and_perhaps_a_time() {
        for (query, expected) in [
            ("holder=me&brokers=1,2", Some((2, 600_000))),
            ("brokers=1%2C2&seconds=7&holder=a/b", Some((2, 7_000))),
            ("holder=me&brokers=1&seconds=-1", None),
            ("holder=me&brokers=1&seconds=x", None),
            ("holder=me&brokers=", None),
            ("holder=me", None),
            ("brokers=1", None),
            ("holder=me&brokers=1&force=true", None),
        ] {
            let found = read(query).map(|asked| (asked.restart.brokers.len(), asked.for_ms));
            assert_eq!(found, expected, "{query}");
        }
        assert_eq!(release("holder=me").unwrap().holder, "me");
        assert!(release("").is_err() && release("holder=me&brokers=1").is_err());
    }

    #[test]
    fn a_refusal_has_its_reasons_as_words_of_a_kind_and_as_sentences() {
        let brokers: BTreeSet<_> = [BrokerId(2)].into();
        let said = |found: &LeaseAnswer| answer("me", &brokers, found, 0);
        let of_other = LeaseConflict::BrokerLeased { broker: BrokerId(2), holder: "you".into() };
        let found = LeaseAnswer { conflict: Some(of_other), ..LeaseAnswer::default() };
        assert_eq!(
            (&said(&found)["granted"], &said(&found)["reasons"][0]),
            (&json!(false), &json!("brokerLeased"))
        );
        assert_eq!(said(&found)["because"], json!(["you has the restart lease of broker 2"]));
        let own = LeaseConflict::HolderHasLease { brokers: vec![BrokerId(4), BrokerId(5)] };
        let found = LeaseAnswer { conflict: Some(own), ..LeaseAnswer::default() };
        let words = "me has a restart lease over brokers 4 and 5, and a holder has one at a time";
        assert_eq!(
            (&said(&found)["reasons"], &said(&found)["because"]),
            (&json!(["holderHasLease"]), &json!([words]))
        );
        let below_min_isr = Named { count: 1, some: vec![("t".to_owned(), 0)] };
        let lease = RestartLease {
            holder: "you".to_owned(),
            brokers: [(BrokerId(1), 7)].into(),
            left_ms: 8_200,
            ..RestartLease::default()
        };
        let verdict = Verdict { below_min_isr, leases: vec![lease], ..Verdict::default() };
        let found = LeaseAnswer { verdict, ..LeaseAnswer::default() };
        assert_eq!(said(&found)["reasons"], json!(["belowMinIsr"]));
        let words = "with broker 1 away, of which you has the restart lease";
        assert_eq!(said(&found)["because"][1], words);
        let granted = RestartLease { left_ms: 9_999, ..RestartLease::default() };
        let found = LeaseAnswer { lease: Some(granted), ..LeaseAnswer::default() };
        assert_eq!(
            (&said(&found)["granted"], &said(&found)["secondsLeft"]),
            (&json!(true), &json!(10))
        );
    }
}
