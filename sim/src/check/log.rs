//! One partition's log as the clients saw it: C1 to C6, and C8 over scans.

use std::collections::{BTreeMap, BTreeSet};

use super::Report;
use crate::history::Read;

/// All partitions by topic and number.
#[derive(Default)]
pub(super) struct Logs(BTreeMap<String, BTreeMap<i32, Log>>);

/// Which operation sent a record.
pub(super) struct Sender {
    pub(super) process: usize,
    pub(super) session: u64,
    /// The line of the invocation: sends of one process begin in this order.
    pub(super) line: u64,
    pub(super) idempotent: bool,
    pub(super) must_survive: bool,
}

/// Which operation reads, and which partitions it has met so far.
pub(super) struct Reader<'a> {
    pub(super) process: usize,
    pub(super) name: &'a str,
    pub(super) op: u64,
    pub(super) first: BTreeMap<(String, i32), ()>,
}

/// What is known of one value.
#[derive(Default)]
struct Value {
    outcome: Option<Outcome>,
    idempotent: bool,
    must_survive: bool,
    acknowledged_at: Option<i64>,
    read_at: BTreeSet<i64>,
    /// Whether a consumer has read it; scans do not count.
    polled: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ok,
    Failed,
    Unknown,
}

/// Offsets that a reader jumped over: `after < jumped over < before`.
struct Jump {
    name: &'static str,
    after: i64,
    before: i64,
    reader: String,
    op: u64,
}

/// Where a send was acknowledged: line of the history, place in the operation, offset.
type Place = (u64, usize, i64);

#[derive(Default)]
struct Scan {
    start: i64,
    end: i64,
    ranges: Vec<(i64, i64)>,
    records: BTreeMap<i64, u64>,
}

#[derive(Default)]
pub(super) struct Log {
    values: BTreeMap<u64, Value>,
    /// The distinct values seen at each offset.
    offsets: BTreeMap<i64, Vec<u64>>,
    /// Acknowledged sends per process and session.
    sends: BTreeMap<(usize, u64), Vec<Place>>,
    /// The last offset each process has read or, after an assignment, the one before it.
    positions: BTreeMap<usize, i64>,
    jumps: Vec<Jump>,
    scans: BTreeMap<String, Scan>,
    /// The offsets that polls have reached: first and last.
    polled: Option<(i64, i64)>,
}

impl Logs {
    pub(super) fn log(&mut self, topic: &str, partition: i32) -> &mut Log {
        if !self.0.contains_key(topic) {
            self.0.insert(topic.to_owned(), BTreeMap::new());
        }
        self.0.entry(topic.to_owned()).or_default().entry(partition).or_default()
    }

    /// `process` starts anew: what it read before says nothing about what it reads next.
    pub(super) fn forget_positions(&mut self, process: usize) {
        for log in self.0.values_mut().flat_map(BTreeMap::values_mut) {
            log.positions.remove(&process);
        }
    }

    pub(super) fn polled(
        &mut self,
        report: &mut Report,
        reader: &mut Reader<'_>,
        read: &Read,
        value: u64,
    ) {
        let internal = reader.first.insert((read.topic.clone(), read.partition), ()).is_some();
        let log = self.log(&read.topic, read.partition);
        log.polled(report, reader, internal, read, value);
    }

    pub(super) fn finish(self, report: &mut Report) {
        for (topic, partitions) in self.0 {
            for (partition, log) in partitions {
                log.finish(report, &format!("{topic}-{partition}"));
            }
        }
    }
}

impl Log {
    /// Says whether `value` was not sent before.
    pub(super) fn invoke(&mut self, value: u64) -> bool {
        let new = Value { outcome: Some(Outcome::Unknown), ..Value::default() };
        self.values.insert(value, new).is_none()
    }

    pub(super) fn acknowledged(
        &mut self,
        value: u64,
        offset: Option<i64>,
        sender: &Sender,
        place: usize,
    ) {
        self.outcome(value, Outcome::Ok, sender).acknowledged_at = offset;
        if let Some(offset) = offset {
            self.see(offset, value);
            if sender.idempotent {
                self.sends.entry((sender.process, sender.session)).or_default().push((
                    sender.line,
                    place,
                    offset,
                ));
            }
        }
    }

    pub(super) fn failed(&mut self, value: u64, sender: &Sender) {
        self.outcome(value, Outcome::Failed, sender);
    }

    pub(super) fn unknown(&mut self, value: u64, sender: &Sender) {
        self.outcome(value, Outcome::Unknown, sender);
    }

    fn outcome(&mut self, value: u64, outcome: Outcome, sender: &Sender) -> &mut Value {
        let known = self.values.entry(value).or_default();
        known.outcome = Some(outcome);
        known.idempotent = sender.idempotent;
        known.must_survive = sender.must_survive;
        known
    }

    pub(super) fn assign(&mut self, process: usize, offset: i64) {
        if offset >= 0 {
            self.positions.insert(process, offset - 1);
        }
    }

    pub(super) fn scan(&mut self, broker: &str, start: i64, end: i64) {
        let new = self.scans.get(broker).is_none_or(|scan| scan.ranges.is_empty());
        let scan = self.scans.entry(broker.to_owned()).or_default();
        scan.start = if new { start } else { scan.start.min(start) };
        scan.end = if new { end } else { scan.end.max(end) };
        scan.ranges.push((start, end));
    }

    pub(super) fn scanned(&mut self, broker: &str, offset: i64, value: u64) {
        self.see(offset, value);
        self.values.entry(value).or_default().read_at.insert(offset);
        self.scans.entry(broker.to_owned()).or_default().records.insert(offset, value);
    }

    fn polled(
        &mut self,
        report: &mut Report,
        reader: &Reader<'_>,
        internal: bool,
        read: &Read,
        value: u64,
    ) {
        let offset = read.offset;
        self.see(offset, value);
        let known = self.values.entry(value).or_default();
        known.read_at.insert(offset);
        known.polled = true;
        let (first, last) = self.polled.unwrap_or((offset, offset));
        self.polled = Some((first.min(offset), last.max(offset)));
        let Some(before) = self.positions.insert(reader.process, offset) else { return };
        if offset <= before {
            let name =
                if internal { "internal-nonmonotonic-poll" } else { "external-nonmonotonic-poll" };
            report.add(name, || {
                format!(
                    "{}-{}: {} op {} reads offset {offset} after {before}",
                    read.topic, read.partition, reader.name, reader.op
                )
            });
        } else if offset > before + 1 {
            let name = if internal { "internal-poll-skip" } else { "external-poll-skip" };
            self.jumps.push(Jump {
                name,
                after: before,
                before: offset,
                reader: reader.name.to_owned(),
                op: reader.op,
            });
        }
    }

    fn see(&mut self, offset: i64, value: u64) {
        let values = self.offsets.entry(offset).or_default();
        if !values.contains(&value) {
            values.push(value);
        }
    }

    fn finish(self, report: &mut Report, name: &str) {
        self.check_offsets(report, name);
        self.check_values(report, name);
        self.check_sends(report, name);
        self.check_lost(report, name);
        self.check_jumps(report, name);
        self.check_scans(report, name);
    }

    fn check_offsets(&self, report: &mut Report, name: &str) {
        for (offset, values) in self.offsets.iter().filter(|(_, values)| values.len() > 1) {
            report.add("inconsistent-offset", || {
                format!("{name} offset {offset}: values {values:?}")
            });
        }
    }

    fn check_values(&self, report: &mut Report, name: &str) {
        for (value, known) in &self.values {
            let Value { outcome, idempotent, acknowledged_at, read_at, .. } = known;
            match outcome {
                None => report.add("unknown-value", || {
                    format!("{name}: value {value} at {read_at:?} was never sent")
                }),
                Some(Outcome::Failed) if !read_at.is_empty() => {
                    report.add("failed-write-read", || {
                        format!("{name}: value {value} at {read_at:?} was answered with an error")
                    });
                }
                _ => {}
            }
            let mut everywhere = read_at.clone();
            everywhere.extend(acknowledged_at);
            if *idempotent && everywhere.len() > 1 {
                report.add("duplicate", || format!("{name}: value {value} at {everywhere:?}"));
            }
            if let Some(offset) = acknowledged_at
                && !read_at.is_empty()
                && !read_at.contains(offset)
            {
                report.add("inconsistent-offset", || {
                    format!("{name}: value {value} acknowledged at {offset}, read at {read_at:?}")
                });
            }
        }
    }

    fn check_sends(&self, report: &mut Report, name: &str) {
        for sends in self.sends.values() {
            let mut sends = sends.clone();
            sends.sort_unstable();
            for pair in sends.windows(2) {
                if let [(_, _, earlier), (_, _, later)] = pair
                    && later <= earlier
                {
                    report.add("nonmonotonic-send", || {
                        format!(
                            "{name}: a later send of one producer is at {later}, an earlier \
                            one at {earlier}"
                        )
                    });
                }
            }
        }
    }

    /// Acknowledged, between the first and the last offset that readers reached, and never read; or
    /// acknowledged or read, and not in a scan after everything was healed.
    fn check_lost(&self, report: &mut Report, name: &str) {
        for (value, known) in self.values.iter().filter(|(_, known)| known.must_survive) {
            // A record that a consumer has seen was committed, whatever its producer was told.
            if known.outcome != Some(Outcome::Ok) && !known.polled {
                continue;
            }
            // An answer to a repeated request may come without an offset.
            let offset = known.acknowledged_at.or_else(|| known.read_at.first().copied());
            if let (Some(offset), Some((first, last))) = (offset, self.polled)
                && known.read_at.is_empty()
                && (first..=last).contains(&offset)
            {
                report.add("lost-write", || {
                    format!(
                        "{name}: value {value} acknowledged at {offset}, readers saw {first} \
                        to {last} without it"
                    )
                });
            }
            for (broker, scan) in self.scans.iter().filter(|(_, scan)| {
                !scan.ranges.is_empty() && offset.is_none_or(|at| at >= scan.start)
            }) {
                let mut places = known.read_at.iter().chain(&known.acknowledged_at);
                if !places.any(|at| scan.records.get(at) == Some(value)) {
                    report.add("lost-write-after-heal", || {
                        let (start, end) = (scan.start, scan.end);
                        format!(
                            "{name}: value {value} (offset {offset:?}) is not in {broker}'s \
                            log {start}..{end}"
                        )
                    });
                }
            }
        }
    }

    fn check_jumps(&self, report: &mut Report, name: &str) {
        for Jump { name: kind, after, before, reader, op } in &self.jumps {
            let known = self.offsets.range(after + 1..*before).find(|(offset, values)| {
                // Known to be there: acknowledged as surviving, or read by somebody.
                values.iter().filter_map(|value| self.values.get(value)).any(|known| {
                    known.read_at.contains(offset)
                        || (known.acknowledged_at == Some(**offset) && known.must_survive)
                })
            });
            if let Some((offset, _)) = known {
                report.add(kind, || {
                    format!(
                        "{name}: {reader} op {op} goes from {after} to \
                    {before} and leaves out {offset}"
                    )
                });
            }
        }
    }

    fn check_scans(&self, report: &mut Report, name: &str) {
        for (broker, scan) in &self.scans {
            let mut ranges = scan.ranges.clone();
            ranges.sort_unstable();
            let mut covered = scan.start;
            for (start, end) in ranges {
                if start > covered {
                    report.add("malformed-history", || {
                        format!("{name}: nobody scanned {covered}..{start} on {broker}")
                    });
                }
                covered = covered.max(end);
            }
            let mut next = scan.start;
            for offset in
                scan.records.range(scan.start..).map(|(offset, _)| *offset).chain([scan.end])
            {
                if offset > next {
                    report.add("scan-gap", || {
                        format!("{name}: {broker} has no records at {next}..{offset}")
                    });
                }
                next = next.max(offset + 1);
            }
        }
        let mut scans = self.scans.iter();
        if let Some((broker, first)) = scans.next() {
            for (other, scan) in scans {
                let (start, end) = (first.start.max(scan.start), first.end.min(scan.end));
                if let Some(at) =
                    (start..end).find(|at| first.records.get(at) != scan.records.get(at))
                {
                    let (a, b) = (first.records.get(&at), scan.records.get(&at));
                    report.add("replica-differs", || {
                        format!("{name} offset {at}: {a:?} on {broker}, {b:?} on {other}")
                    });
                }
            }
        }
    }
}
