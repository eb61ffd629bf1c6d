//! Caught up, in words: the question and its answer.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{NAMES_MAX, Refusal, brokers_of, count, named, names, parameters};
use crate::metadata::decide::{AskCaughtUp, BrokerCaughtUp, CaughtUp};

const HOW_TO_ASK: &str = "name brokers by their ids, as in ?brokers=1,2, or none for all, and with \
    since-epoch=N the epoch that was told before they restarted";

/// What `query` asks for.
pub(super) fn question(query: &str) -> Result<AskCaughtUp, Refusal> {
    read(query).ok_or_else(|| Refusal::BadRequest(HOW_TO_ASK.to_owned()))
}

fn read(query: &str) -> Option<AskCaughtUp> {
    let asked = parameters(query, &["brokers", "since-epoch"])?;
    let brokers = asked.get("brokers").map_or(Some(BTreeSet::new()), |ids| brokers_of(ids))?;
    let since_epoch = asked.get("since-epoch").map(|epoch| epoch.parse()).transpose().ok()?;
    Some(AskCaughtUp { brokers, names_max: NAMES_MAX, since_epoch })
}

/// The answer, as docs/openapi.json has it.
pub(super) fn answer(found: &CaughtUp) -> Value {
    let brokers = found.brokers.iter().map(|one| {
        json!({
            "broker": one.broker,
            "caughtUp": one.is_caught_up(),
            "because": because(one),
            "epoch": one.epoch,
            "serving": one.is_serving,
            "replicas": one.replicas,
            "notInSync": named(&one.not_in_sync),
            "offline": named(&one.offline),
            "ledElsewhere": one.led_elsewhere,
            "bytesLeft": one.bytes_left,
            "bytesPerSecond": one.bytes_per_second,
            "secondsLeft": one.seconds_left(),
        })
    });
    json!({
        "caughtUp": found.are_caught_up(),
        "epoch": found.epoch,
        "brokers": brokers.collect::<Vec<_>>(),
    })
}

/// Why a broker is not caught up.
fn because(one: &BrokerCaughtUp) -> Vec<String> {
    let mut because = Vec::new();
    let serves = match one.epoch {
        None => Some("it is not registered"),
        Some(_) if one.is_of_before => Some("it has not registered since its restart"),
        Some(_) if !one.is_serving => Some("it is fenced, or about to stop"),
        Some(_) => None,
    };
    because.extend(serves.map(str::to_owned));
    if one.not_in_sync.count > 0 {
        let left = match (one.bytes_left, one.seconds_left()) {
            (Some(bytes), Some(seconds)) => {
                format!(", about {bytes} bytes and {seconds} s behind")
            }
            (Some(bytes), None) => format!(", about {bytes} bytes behind"),
            (None, _) => String::new(),
        };
        let list = &one.not_in_sync;
        because.push(format!("{} not in sync{left}: {}", count(list), names(list)));
    }
    if one.offline.count > 0 {
        let list = &one.offline;
        because.push(format!("{} with logs out of use: {}", count(list), names(list)));
    }
    because
}

#[cfg(test)]
mod tests {
    use letterbox_protocol::model::BrokerId;

    use super::*;
    use crate::metadata::decide::Named;

    #[test]
    fn a_question_names_brokers_or_nobody_and_an_epoch_or_none() {
        for (query, expected) in [
            ("", Some((0, None))),
            ("brokers=1,2", Some((2, None))),
            ("since-epoch=7", Some((0, Some(7)))),
            ("since-epoch=7&brokers=1%2C2", Some((2, Some(7)))),
            ("brokers=", None),
            ("all", None),
            ("brokers=1&brokers=2", None),
            ("since-epoch=x", None),
        ] {
            let found = read(query).map(|asked| (asked.brokers.len(), asked.since_epoch));
            assert_eq!(found, expected, "{query}");
        }
    }

    #[test]
    fn what_is_missing_is_told_with_bytes_and_seconds_as_far_as_they_are_known() {
        let list = |count| Named { count, some: vec![("t".to_owned(), 0)] };
        let all = BrokerCaughtUp {
            broker: BrokerId(1),
            epoch: Some(9),
            is_of_before: false,
            is_serving: true,
            replicas: 9,
            not_in_sync: Named::default(),
            offline: Named::default(),
            led_elsewhere: 1,
            bytes_left: Some(0),
            bytes_per_second: None,
        };
        assert_eq!((all.is_caught_up(), because(&all)), (true, Vec::new()));
        let behind =
            BrokerCaughtUp { not_in_sync: list(2), bytes_left: Some(3_001), ..all.clone() };
        assert_eq!(
            because(&behind),
            ["2 partitions not in sync, about 3001 bytes behind: t-0 and 1 more"]
        );
        let moves = BrokerCaughtUp { bytes_per_second: Some(1_000), ..behind.clone() };
        assert!(because(&moves)[0].contains("about 3001 bytes and 4 s behind"));
        let unknown = BrokerCaughtUp { bytes_left: None, ..behind };
        assert!(because(&unknown)[0].starts_with("2 partitions not in sync: "));
        let before = BrokerCaughtUp { is_of_before: true, ..all.clone() };
        let said = vec!["it has not registered since its restart".to_owned()];
        assert_eq!((before.is_caught_up(), because(&before)), (false, said));
        let gone = BrokerCaughtUp { is_serving: false, offline: list(1), ..all };
        let said = ["it is fenced, or about to stop", "1 partition with logs out of use: t-0"];
        assert_eq!((gone.is_caught_up(), because(&gone)), (false, said.map(str::to_owned).into()));
    }
}
