//! The checkers themselves: no alarm on clean histories, and each mutation found by its name.

use super::*;
use crate::history::Position;
use crate::rng::Rng;

const TOPIC: &str = "t";
const PARTITIONS: i32 = 2;

/// Writes a history that a correct broker could have given: idempotent producers with some unknown
/// and failed sends, consumers by assignment and a group with handovers, faults, and a scan of
/// everything at the end.
struct Clean {
    rng: Rng,
    time_ns: u64,
    events: Vec<Event>,
    logs: Vec<Vec<u64>>,
    ops: BTreeMap<String, u64>,
    next_value: u64,
}

impl Clean {
    fn history(seed: u64) -> Vec<Event> {
        let mut clean = Self {
            rng: Rng::new(seed),
            time_ns: 0,
            events: Vec::new(),
            logs: vec![Vec::new(); 2],
            ops: BTreeMap::new(),
            next_value: 1,
        };
        let mut readers = [[0_usize; 2]; 2];
        let (mut generation, mut owner, mut committed, mut position) =
            (0, 0, [-1_i64; 2], [0_usize; 2]);
        for reader in 0..2 {
            let partitions = (0..PARTITIONS).map(|partition| at(partition, 0)).collect();
            clean.at_once(&format!("reader-{reader}"), Action::Assign { partitions });
        }
        for _ in 0..clean.rng.between(40, 80) {
            match clean.rng.below(11) {
                0..5 => clean.send(),
                5 | 6 => {
                    let reader = clean.rng.index(2);
                    let mut records = Vec::new();
                    for (partition, next) in readers[reader].iter_mut().enumerate() {
                        clean.read(partition, next, &mut records);
                    }
                    clean.at_once(&format!("reader-{reader}"), Action::Poll { records });
                }
                7 | 8 if generation > 0 => {
                    let mut records = Vec::new();
                    for (partition, next) in position.iter_mut().enumerate() {
                        clean.read(partition, next, &mut records);
                    }
                    clean.at_once(&format!("member-{owner}"), Action::Poll { records });
                    let offsets: Vec<Position> = (0..2)
                        .map(|p| {
                            at(p, i64::try_from(position[usize::try_from(p).unwrap()]).unwrap())
                        })
                        .collect();
                    let commit = Action::Commit {
                        group: "g".into(),
                        generation,
                        member: format!("m{owner}"),
                        offsets: offsets.clone(),
                        reset: false,
                    };
                    if clean.operation(&format!("member-{owner}"), &commit, &commit, Phase::Ok) {
                        committed = [offsets[0].offset, offsets[1].offset];
                    }
                }
                9 => clean
                    .at_once("nemesis", Action::Fault { what: "kill".into(), target: "b1".into() }),
                _ => {
                    generation += 1;
                    owner = clean.rng.index(3);
                    let partitions = vec![at(0, committed[0]), at(1, committed[1])];
                    position = committed.map(|offset| usize::try_from(offset).unwrap_or(0));
                    let event = Action::Rebalance {
                        group: "g".into(),
                        generation,
                        member: format!("m{owner}"),
                        partitions,
                    };
                    clean.at_once(&format!("member-{owner}"), event);
                }
            }
        }
        for partition in 0..PARTITIONS {
            for broker in ["b1", "b2"] {
                let log = &clean.logs[usize::try_from(partition).unwrap()];
                let records: Vec<Read> =
                    (0..log.len()).map(|offset| read(partition, offset, log[offset])).collect();
                let middle = records.len() / 2;
                let (start, end) =
                    (i64::try_from(middle).unwrap(), i64::try_from(records.len()).unwrap());
                for (start, end, records) in [
                    (0, start, records[..middle].to_vec()),
                    (start, end, records[middle..].to_vec()),
                ] {
                    let scan = Action::Scan {
                        broker: broker.into(),
                        topic: TOPIC.into(),
                        partition,
                        start,
                        end,
                        records,
                    };
                    clean.at_once("scanner", scan);
                }
            }
        }
        clean.events
    }

    fn send(&mut self) {
        let producer = self.rng.index(2);
        let partition = self.rng.index(2);
        let count = self.rng.between(1, 4);
        let mut records = Vec::new();
        for _ in 0..count {
            self.next_value += 1;
            let value = (u64::try_from(producer).unwrap() << 40) | self.next_value;
            records.push(Sent {
                topic: TOPIC.into(),
                partition: i32::try_from(partition).unwrap(),
                value,
                offset: None,
            });
        }
        let action = |records| Action::Send { records, acks: -1, idempotent: true, session: 0 };
        let begun = action(records.clone());
        let fate = self.rng.below(10);
        let mut ended = records;
        if fate < 8 {
            for record in &mut ended {
                record.offset =
                    (fate < 7).then(|| i64::try_from(self.logs[partition].len()).unwrap());
                self.logs[partition].push(record.value);
            }
        }
        let phase = match fate {
            0..7 => Phase::Ok,
            7 | 8 => Phase::Info,
            _ => Phase::Fail,
        };
        self.operation(&format!("producer-{producer}"), &begun, &action(ended), phase);
    }

    fn read(&mut self, partition: usize, next: &mut usize, records: &mut Vec<Read>) {
        let end = (*next + self.rng.index(6)).min(self.logs[partition].len());
        for offset in *next..end {
            records.push(read(
                i32::try_from(partition).unwrap(),
                offset,
                self.logs[partition][offset],
            ));
        }
        *next = end;
    }

    fn operation(&mut self, process: &str, begun: &Action, ended: &Action, phase: Phase) -> bool {
        let op = self.ops.entry(process.to_owned()).or_default();
        *op += 1;
        let op = *op;
        for (phase, action) in [(Phase::Invoke, begun), (phase, ended)] {
            self.time_ns += 10;
            self.events.push(Event {
                process: process.into(),
                op,
                phase,
                time_ns: self.time_ns,
                action: action.clone(),
                error: None,
            });
        }
        phase == Phase::Ok
    }

    fn at_once(&mut self, process: &str, action: Action) {
        self.operation(process, &action.clone(), &action, Phase::Ok);
    }
}

fn at(partition: i32, offset: i64) -> Position {
    Position { topic: TOPIC.into(), partition, offset }
}

fn read(partition: i32, offset: usize, value: u64) -> Read {
    let payload = value.is_multiple_of(2).then(|| payload::encode(value, TOPIC, partition));
    let value = payload.is_none().then_some(value);
    Read { topic: TOPIC.into(), partition, offset: i64::try_from(offset).unwrap(), value, payload }
}

const NO_DEMANDS: Demands = Demands { sends_ok_min: 0, reads_min: 0, faults_min: 0 };

#[test]
fn ten_thousand_clean_histories_raise_no_alarm() {
    for seed in 0..10_000 {
        let report = Checker::check(Clean::history(seed), NO_DEMANDS);
        assert!(report.is_clean(), "seed {seed}: {report}");
    }
}

#[test]
fn histories_survive_json() {
    let history = crate::history::History::default();
    Clean::history(1).into_iter().for_each(|event| history.push(event));
    let lines = history.to_json_lines().unwrap();
    let back: Vec<Event> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(back, history.events());
}

/// Applies `mutate` to clean histories until it found something to change in at least 30, and
/// expects `name` among what is found, each time.
fn expect(name: &str, mutate: impl Fn(&mut Vec<Event>, &mut Rng) -> bool) {
    let mut changed = 0;
    for seed in 0..2000 {
        let mut events = Clean::history(seed);
        if mutate(&mut events, &mut Rng::new(seed)) {
            let report = Checker::check(events, NO_DEMANDS);
            assert!(
                report.names().contains(&name),
                "seed {seed}: {name} is not among what was found: {report}"
            );
            changed += 1;
        }
        if changed == 30 {
            return;
        }
    }
    panic!("only {changed} histories had something to change for {name}");
}

/// The positions of completed events that `choose` accepts.
fn pick(events: &[Event], rng: &mut Rng, choose: impl Fn(&Action) -> bool) -> Option<usize> {
    let fitting: Vec<usize> = (0..events.len())
        .filter(|i| events[*i].phase == Phase::Ok && choose(&events[*i].action))
        .collect();
    (!fitting.is_empty()).then(|| fitting[rng.index(fitting.len())])
}

fn records_of(action: &mut Action) -> &mut Vec<Read> {
    match action {
        Action::Poll { records } | Action::Scan { records, .. } => records,
        _ => panic!("no records"),
    }
}

fn is_poll(action: &Action, min: usize) -> bool {
    matches!(action, Action::Poll { records } if records.iter().filter(|read| read.partition == 0).count() >= min)
}

/// Drops a value from every poll and every scan, and closes nothing: the offsets stay empty.
fn lose(events: &mut [Event], value: u64) {
    for event in events {
        if let Action::Poll { records } | Action::Scan { records, .. } = &mut event.action {
            records.retain(|read| value_of(read) != value);
        }
    }
}

fn value_of(read: &Read) -> u64 {
    read.value.unwrap_or_else(|| {
        payload::decode(read.payload.as_deref().unwrap(), &read.topic, read.partition).unwrap()
    })
}

fn acknowledged(events: &[Event], rng: &mut Rng) -> Option<Sent> {
    let at = pick(events, rng, |action| matches!(action, Action::Send { .. }))?;
    let Action::Send { records, .. } = &events[at].action else { return None };
    Some(records[rng.index(records.len())].clone())
}

#[test]
fn dropped_records_are_lost_writes() {
    expect("lost-write-after-heal", |events, rng| {
        acknowledged(events, rng).is_some_and(|sent| {
            lose(events, sent.value);
            true
        })
    });
    expect("scan-gap", |events, rng| {
        acknowledged(events, rng).is_some_and(|sent| {
            lose(events, sent.value);
            true
        })
    });
    // Read on both sides, and lost in between.
    expect("lost-write", |events, rng| {
        let Some(sent) = acknowledged(events, rng) else { return false };
        let polled = |side: fn(i64, i64) -> bool| {
            events.iter().any(|event| {
                event.phase == Phase::Ok
                    && matches!(&event.action, Action::Poll { records }
                        if records.iter().any(|read| read.partition == sent.partition && side(read.offset, sent.offset.unwrap())))
            })
        };
        let between = polled(|read, sent| read < sent) && polled(|read, sent| read > sent);
        lose(events, sent.value);
        between
    });
}

#[test]
fn an_acknowledgement_without_an_offset_binds_all_the_same() {
    expect("lost-write-after-heal", |events, rng| {
        let Some(sent) = acknowledged(events, rng) else { return false };
        for event in events.iter_mut().filter(|event| event.phase == Phase::Ok) {
            if let Action::Send { records, .. } = &mut event.action {
                records
                    .iter_mut()
                    .filter(|record| record.value == sent.value)
                    .for_each(|record| record.offset = None);
            }
        }
        assert!(
            Checker::check(events.clone(), NO_DEMANDS).is_clean(),
            "to know less is no anomaly"
        );
        lose(events, sent.value);
        true
    });
}

#[test]
fn a_record_that_was_read_and_is_gone_is_lost() {
    expect("lost-write-after-heal", |events, rng| {
        let unknown: Vec<u64> = events
            .iter()
            .filter_map(|event| match (&event.action, event.phase) {
                (Action::Send { records, .. }, Phase::Info) => Some(records[0].value),
                _ => None,
            })
            .collect();
        let read_by_poll = |value: &u64| {
            events
                .iter()
                .any(|event| matches!(&event.action, Action::Poll { records } if records.iter().any(|read| value_of(read) == *value)))
        };
        let Some(value) = unknown.into_iter().find(read_by_poll) else { return false };
        let _ = rng;
        for event in events {
            if let Action::Scan { records, .. } = &mut event.action {
                records.retain(|read| value_of(read) != value);
            }
        }
        true
    });
}

#[test]
fn two_values_at_one_offset_are_inconsistent() {
    expect("inconsistent-offset", |events, rng| {
        let Some(at) = pick(events, rng, |action| is_poll(action, 2)) else { return false };
        let records = records_of(&mut events[at].action);
        let (first, second) = (records[0].clone(), records[1].clone());
        (records[0].value, records[0].payload) = (second.value, second.payload);
        (records[1].value, records[1].payload) = (first.value, first.payload);
        true
    });
    // Acknowledged at another offset than it is.
    expect("inconsistent-offset", |events, rng| {
        let Some(at) = pick(events, rng, |action| matches!(action, Action::Send { .. })) else {
            return false;
        };
        let Action::Send { records, .. } = &mut events[at].action else { return false };
        records[0].offset = records[0].offset.map(|offset| offset + 1000);
        true
    });
}

#[test]
fn a_value_written_twice_is_a_duplicate() {
    expect("duplicate", |events, rng| {
        let Some(sent) = acknowledged(events, rng) else { return false };
        let scan = events.iter_mut().rev().find(|event| {
            event.phase == Phase::Ok && matches!(&event.action, Action::Scan { partition, .. } if *partition == sent.partition)
        });
        let Some(Event { action: Action::Scan { end, records, .. }, .. }) = scan else {
            return false;
        };
        records.push(read(sent.partition, usize::try_from(*end).unwrap(), sent.value));
        *end += 1;
        true
    });
}

#[test]
fn swapped_acknowledgements_are_nonmonotonic_sends() {
    expect("nonmonotonic-send", |events, rng| {
        let Some(at) = pick(
            events,
            rng,
            |action| matches!(action, Action::Send { records, .. } if records.len() > 1),
        ) else {
            return false;
        };
        let Action::Send { records, .. } = &mut events[at].action else { return false };
        (records[0].offset, records[1].offset) = (records[1].offset, records[0].offset);
        true
    });
}

#[test]
fn polls_that_go_back_or_skip_are_named() {
    expect("internal-nonmonotonic-poll", |events, rng| {
        let Some(at) = pick(events, rng, |action| is_poll(action, 2)) else { return false };
        records_of(&mut events[at].action).swap(0, 1);
        true
    });
    expect("external-nonmonotonic-poll", |events, rng| {
        let Some(at) = pick(events, rng, |action| is_poll(action, 1)) else { return false };
        let again = Event { op: 100_000, ..events[at].clone() };
        events.insert(at + 1, again);
        true
    });
    expect("internal-poll-skip", |events, rng| {
        let Some(at) = pick(events, rng, |action| is_poll(action, 3)) else { return false };
        records_of(&mut events[at].action).remove(1);
        true
    });
    expect("external-poll-skip", |events, rng| {
        let Some(at) = pick(events, rng, |action| is_poll(action, 2)) else { return false };
        if !events[at].process.starts_with("reader") {
            return false;
        }
        records_of(&mut events[at].action).remove(0);
        true
    });
}

#[test]
fn a_failed_write_that_is_there_is_named() {
    expect("failed-write-read", |events, rng| {
        let Some(at) = pick(events, rng, |action| matches!(action, Action::Send { .. })) else {
            return false;
        };
        events[at].phase = Phase::Fail;
        true
    });
}

#[test]
fn a_value_that_nobody_sent_is_named() {
    expect("unknown-value", |events, rng| {
        let Some(at) = pick(events, rng, |action| is_poll(action, 1)) else { return false };
        let read = &mut records_of(&mut events[at].action)[0];
        (read.value, read.payload) = (Some(u64::MAX), None);
        true
    });
}

#[test]
fn damaged_and_misplaced_payloads_are_named() {
    let with_payload = |events: &mut Vec<Event>, rng: &mut Rng, change: fn(&mut Read)| {
        let Some(at) = pick(
            events,
            rng,
            |action| matches!(action, Action::Poll { records } if records.iter().any(|read| read.payload.is_some())),
        ) else {
            return false;
        };
        records_of(&mut events[at].action)
            .iter_mut()
            .filter(|read| read.payload.is_some())
            .for_each(change);
        true
    };
    expect("corrupt-record", |events, rng| {
        with_payload(events, rng, |read| {
            read.payload = read.payload.as_ref().map(|text| text.replace("lb1", "lb2"))
        })
    });
    expect("misplaced-record", |events, rng| {
        with_payload(events, rng, |read| {
            read.payload = Some(payload::encode(2, "elsewhere", read.partition))
        })
    });
}

#[test]
fn replicas_that_differ_are_named() {
    expect("replica-differs", |events, rng| {
        let Some(at) = pick(
            events,
            rng,
            |action| matches!(action, Action::Scan { records, .. } if records.len() > 1),
        ) else {
            return false;
        };
        records_of(&mut events[at].action).remove(0);
        true
    });
}

#[test]
fn groups_with_two_owners_zombies_and_wrong_offsets_are_named() {
    let rebalance = |action: &Action| matches!(action, Action::Rebalance { .. });
    let commit =
        |action: &Action| matches!(action, Action::Commit { offsets, .. } if offsets[0].offset > 0);
    expect("two-owners", |events, rng| {
        let Some(at) = pick(events, rng, rebalance) else { return false };
        let mut second = Event { op: 100_000, process: "member-x".into(), ..events[at].clone() };
        if let Action::Rebalance { member, .. } = &mut second.action {
            *member = "x".into();
        }
        events.insert(at + 1, second);
        true
    });
    expect("resume-differs", |events, rng| {
        let Some(at) = pick(events, rng, rebalance) else { return false };
        let Action::Rebalance { partitions, .. } = &mut events[at].action else { return false };
        partitions[0].offset += 1_000;
        true
    });
    // Nothing found although something was committed.
    expect("resume-differs", |events, rng| {
        let Some(at) = pick(
            events,
            rng,
            |action| matches!(action, Action::Rebalance { partitions, .. } if partitions[0].offset > 0),
        ) else {
            return false;
        };
        let Action::Rebalance { partitions, .. } = &mut events[at].action else { return false };
        partitions[0].offset = -1;
        true
    });
    expect("zombie-commit", |events, rng| {
        let Some(at) = pick(
            events,
            rng,
            |action| matches!(action, Action::Commit { generation, .. } if *generation > 1),
        ) else {
            return false;
        };
        for event in &mut events[at - 1..=at] {
            if let Action::Commit { generation, .. } = &mut event.action {
                *generation -= 1;
            }
        }
        true
    });
    expect("commit-went-back", |events, rng| {
        let Some(at) = pick(events, rng, commit) else { return false };
        let mut back = events[at - 1..=at].to_vec();
        for event in &mut back {
            event.op = 100_000;
            event.time_ns += 3;
            if let Action::Commit { offsets, .. } = &mut event.action {
                offsets[0].offset -= 1;
            }
        }
        // After the first has ended.
        back[0].time_ns = events[at].time_ns + 1;
        events.splice(at + 1..at + 1, back);
        true
    });
}

#[test]
fn contradictions_and_empty_runs_are_not_passed() {
    expect("malformed-history", |events, rng| {
        let Some(at) = pick(events, rng, |action| matches!(action, Action::Send { .. })) else {
            return false;
        };
        let twice = events[at].clone();
        events.push(twice);
        true
    });
    expect("malformed-history", |events, rng| {
        let Some(at) = pick(
            events,
            rng,
            |action| matches!(action, Action::Scan { records, .. } if records.len() > 1),
        ) else {
            return false;
        };
        let middle = |action: &Action| matches!(action, Action::Scan { start, end, .. } if *start == 0 && *end > 0);
        if !middle(&events[at].action) {
            return false;
        }
        let Action::Scan { end, .. } = &mut events[at].action else { return false };
        *end -= 1;
        true
    });
    assert_eq!(Checker::check([], Demands::default()).names(), ["vacuous"]);
    assert_eq!(Checker::check([], NO_DEMANDS).names(), Vec::<&str>::new());
}
