//! Transcripts: each line is an event and its moment in milliseconds, the indented ones after it
//! are all that comes of it. A broker in an epoch is `id@epoch`, with `!` when the image has it fenced.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use letterbox_protocol::model::BrokerId;

use crate::metadata::decide::liveness::{Behind, Effect, Heartbeat, Liveness};
use crate::metadata::features::Release;
use crate::metadata::{BrokerRegistration, MetadataImage};

const SESSION_MS: u64 = 9_000;

fn broker(word: &str) -> (BrokerId, i64, bool) {
    let (id, rest) = word.split_once('@').unwrap();
    let epoch = rest.trim_end_matches('!').parse().unwrap();
    (BrokerId(id.parse().unwrap()), epoch, rest.ends_with('!'))
}

fn image(words: &[&str]) -> MetadataImage {
    let registration = |(id, epoch, fenced)| {
        let registration = BrokerRegistration {
            id,
            directories: BTreeMap::new(),
            gone: Vec::new(),
            epoch,
            endpoints: Vec::new(),
            rack: None,
            fenced,
            stopping: false,
            min_insync_replicas: 1,
            session_ms: 0,
            secret: None,
            release: Release::own(),
        };
        (id, Arc::new(registration))
    };
    let brokers = words.iter().map(|word| registration(broker(word))).collect();
    MetadataImage { brokers: Arc::new(brokers), ..MetadataImage::default() }
}

fn effect(effect: Effect) -> String {
    match effect {
        Effect::Fence(brokers) => {
            let one = |(id, epoch): &(BrokerId, i64)| format!(" {id}@{epoch}");
            format!("fence{}", brokers.iter().map(one).collect::<String>())
        }
        Effect::Unfence(id, epoch) => format!("unfence {id}@{epoch}"),
        Effect::Probe(id, epoch) => format!("probe {id}@{epoch}"),
        Effect::Stop(id, epoch) => format!("stop {id}@{epoch}"),
    }
}

/// Runs the events of `transcript` and compares all of it.
fn check(transcript: &str) {
    let mut liveness = None;
    let mut told = String::new();
    let is_event = |line: &&str| !line.is_empty() && !line.starts_with('#');
    let events = transcript.lines().map(str::trim_end).filter(is_event);
    let expected: Vec<&str> = events.clone().collect();
    for line in events.filter(|line| !line.starts_with(' ')) {
        let words: Vec<&str> = line.split(' ').collect();
        let (now, args) = (words[0].parse().unwrap(), &words[2..]);
        writeln!(told, "{line}").unwrap();
        let mut out = Vec::new();
        if words[1] == "lead" {
            liveness = Some(Liveness::new(SESSION_MS, &image(args), now));
        }
        let state = liveness.as_mut().unwrap();
        match words[1] {
            "lead" => {}
            "image" => state.take(&image(args), now),
            "tick" => out.extend(state.tick(now).into_iter().map(effect)),
            "next" => out.push(format!("{:?}", state.next_end())),
            "heartbeat" => {
                let (id, epoch, wants_fence) = broker(args[0]);
                let applied_index = args[1].parse().unwrap();
                let wants_stop = args.get(2) == Some(&"stop");
                let behind = args.last().and_then(|word| word.strip_prefix("behind="));
                let behind = behind.map_or(Vec::new(), behind_of);
                let heartbeat =
                    Heartbeat { id, epoch, applied_index, wants_fence, wants_stop, behind };
                match state.heartbeat(heartbeat, now) {
                    Ok((answer, effects)) => {
                        let caught_up = if answer.is_caught_up { "caught up" } else { "behind" };
                        let fenced = if answer.is_fenced { "fenced" } else { "unfenced" };
                        let stop = if answer.may_stop { ", may stop" } else { "" };
                        out.push(format!("answer {caught_up}, {fenced}{stop}"));
                        out.extend(effects.map(effect));
                    }
                    Err(code) => out.push(format!("refused {code:?}")),
                }
            }
            "lag-of" => {
                let id = BrokerId(args[0].parse().unwrap());
                let lag = state.lags(now).get(&id).copied().unwrap_or_default();
                let (Behind { partitions, bytes }, rate) = (lag.behind, lag.bytes_per_second);
                out.push(format!("{partitions} partitions, {bytes} bytes, {rate:?} per second"));
            }
            "ended" => {
                let (id, epoch, _) = broker(args[0]);
                out.extend(state.connections_ended(id, epoch).map(effect));
            }
            "left" => {
                let (id, epoch, _) = broker(args[0]);
                state.has_left(id, epoch, args[1].parse().unwrap());
            }
            "probed" => {
                let (id, epoch, _) = broker(args[0]);
                out.extend(state.probed(id, epoch, args[1] == "refused", now).map(effect));
            }
            other => panic!("{other}"),
        }
        out.iter().for_each(|line| writeln!(told, "    {line}").unwrap());
    }
    assert_eq!(told.lines().collect::<Vec<_>>(), expected, "{told}");
}

#[test]
fn broker_joins_fenced_and_serves_when_it_has_caught_up() {
    check(
        "
0 lead 1@5
0 image 1@5 2@9!
100 heartbeat 2@9 4
    answer behind, fenced
200 heartbeat 2@9 9
    answer caught up, fenced
    unfence 2@9
250 heartbeat 2@9 9
    answer caught up, fenced
    unfence 2@9
260 image 1@5 2@9
300 heartbeat 2@9 12
    answer caught up, unfenced
",
    );
}

#[test]
fn silent_broker_is_fenced_after_its_session_and_returns_with_a_heartbeat() {
    check(
        "
0 lead 1@5 2@6
0 next
    Some(9000)
5000 heartbeat 1@5 20
    answer caught up, unfenced
8999 tick
9000 tick
    fence 2@6
9100 tick
    fence 2@6
9200 image 1@5 2@6!
9300 tick
9300 next
    Some(14000)
9400 heartbeat 2@6 20
    answer caught up, fenced
    unfence 2@6
9500 image 1@5 2@6
9500 next
    Some(14000)
18400 tick
    fence 1@5 2@6
",
    );
}

#[test]
fn broker_whose_process_died_is_fenced_after_one_refused_probe() {
    check(
        "
0 lead 1@5 2@6
100 ended 2@6
    probe 2@6
110 ended 2@6
120 probed 2@6 refused
    fence 2@6
130 tick
320 tick
    fence 2@6
330 image 1@5 2@6!
340 tick
",
    );
}

#[test]
fn brokers_that_die_together_are_fenced_together() {
    check(
        "
0 lead 1@5 2@6 3@7 4@8
100 ended 2@6
    probe 2@6
110 ended 3@7
    probe 3@7
115 ended 4@8
    probe 4@8
120 probed 2@6 refused
130 probed 4@8 answered
150 probed 3@7 refused
    fence 2@6 3@7
160 image 1@5 2@6! 3@7! 4@8
# A probe that takes long holds up nobody for long.
200 ended 1@5
    probe 1@5
210 ended 4@8
    probe 4@8
220 probed 1@5 refused
230 next
    Some(420)
419 tick
420 tick
    fence 1@5
430 image 1@5! 2@6! 3@7! 4@8
500 probed 4@8 answered
510 tick
",
    );
}

#[test]
fn broken_connection_of_a_broker_that_lives_changes_nothing() {
    check(
        "
0 lead 1@5 2@6
100 ended 2@6
    probe 2@6
120 probed 2@6 answered
130 tick
200 ended 2@6
    probe 2@6
210 heartbeat 2@6 20
    answer caught up, unfenced
220 probed 2@6 refused
230 tick
",
    );
}

#[test]
fn what_an_earlier_start_says_counts_no_more() {
    check(
        "
0 lead 2@6
10 image 2@11!
20 heartbeat 2@6 20
    refused StaleBrokerEpoch
30 ended 2@6
40 probed 2@6 refused
50 heartbeat 2@11 11
    answer caught up, fenced
    unfence 2@11
60 image 2@11
70 image
80 heartbeat 2@11 20
    refused BrokerIdNotRegistered
90 tick
",
    );
}

#[test]
fn broker_that_asks_for_it_is_fenced_and_stays_so() {
    check(
        "
0 lead 2@6
10 heartbeat 2@6! 20
    answer caught up, unfenced
    fence 2@6
20 image 2@6!
30 heartbeat 2@6! 20
    answer caught up, fenced
9900 tick
",
    );
}

#[test]
fn broker_may_stop_when_every_other_one_knows_that_it_leads_nothing() {
    check(
        "
0 lead 1@5 2@6 3@7!
10 heartbeat 1@5 20
    answer caught up, unfenced
20 heartbeat 2@6 20 stop
    answer caught up, unfenced
    stop 2@6
30 left 2@6 25
40 heartbeat 2@6 24 stop
    answer caught up, unfenced
50 heartbeat 1@5 25
    answer caught up, unfenced
60 heartbeat 2@6 24 stop
    answer caught up, unfenced, may stop
70 heartbeat 2@6 25
    answer caught up, unfenced
",
    );
}

#[test]
fn broker_that_is_not_heard_from_holds_up_no_stop_for_ever() {
    check(
        "
0 lead 1@5 2@6
8000 heartbeat 2@6 20 stop
    answer caught up, unfenced
    stop 2@6
8010 left 2@6 25
8900 heartbeat 2@6 25 stop
    answer caught up, unfenced
9000 tick
    fence 1@5
9010 image 1@5! 2@6
9020 heartbeat 2@6 25 stop
    answer caught up, unfenced, may stop
",
    );
}

#[test]
fn broker_that_stops_stays_fenced_and_a_new_leader_asks_anew() {
    check(
        "
0 lead 1@5 2@6!
10 heartbeat 2@6 20 stop
    answer caught up, fenced, may stop
20 lead 1@5 2@6
30 heartbeat 2@6 20 stop
    answer caught up, unfenced
    stop 2@6
40 heartbeat 2@6 20 stop
    answer caught up, unfenced
    stop 2@6
",
    );
}

#[test]
fn new_leader_gives_every_broker_a_whole_session() {
    check(
        "
0 lead 1@5 2@6
8000 lead 1@5 2@6
9000 tick
16999 tick
17000 tick
    fence 1@5 2@6
",
    );
}

#[test]
fn what_a_broker_lacks_is_what_its_leaders_say() {
    check(
        "
0 lead 1@1 2@2 3@3
100 lag-of 3
    0 partitions, 0 bytes, None per second
100 heartbeat 1@1 9 behind=3:2:4000
    answer caught up, unfenced
200 heartbeat 2@2 9
    answer caught up, unfenced
200 lag-of 3
    2 partitions, 4000 bytes, None per second
# It grows yet: what was caught up with counts from when it was most.
600 heartbeat 2@2 9 behind=3:1:6000
    answer caught up, unfenced
600 lag-of 3
    3 partitions, 10000 bytes, None per second
1600 heartbeat 1@1 9 behind=3:2:2000
    answer caught up, unfenced
1600 lag-of 3
    3 partitions, 8000 bytes, Some(2000) per second
2600 heartbeat 2@2 9 behind=3:1:1000
    answer caught up, unfenced
2600 lag-of 3
    3 partitions, 3000 bytes, Some(3500) per second
# Who is fenced leads nothing.
2800 image 1@1! 2@2 3@3
2800 lag-of 3
    1 partitions, 1000 bytes, Some(4090) per second
2800 heartbeat 2@2 9
    answer caught up, unfenced
2800 lag-of 3
    0 partitions, 0 bytes, None per second
",
    );
}

/// As in `2:3:4096,3:1:0`: broker, partitions, bytes.
fn behind_of(text: &str) -> Vec<(BrokerId, Behind)> {
    let one = |one: &str| {
        let all: Vec<u64> = one.split(':').map(|part| part.parse().unwrap()).collect();
        let partitions = usize::try_from(all[1]).unwrap();
        (BrokerId(i32::try_from(all[0]).unwrap()), Behind { partitions, bytes: all[2] })
    };
    text.split(',').map(one).collect()
}
