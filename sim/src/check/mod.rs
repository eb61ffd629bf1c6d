//! Finds in a history what may not have happened. Streaming: each event is looked at once, in order
//! of time.
//!
//! | name | what is wrong | rule |
//! |---|---|---|
//! | `lost-write` | acknowledged (`acks=all`), and readers went past it without it | C1a |
//! | `lost-write-after-heal` | acknowledged or read by a consumer, and not in a full scan after all faults were healed | C1b |
//! | `inconsistent-offset` | two values at one offset, or a value read elsewhere than it was acknowledged | C2 |
//! | `duplicate` | a value of an idempotent producer at two offsets | C3 |
//! | `nonmonotonic-send` | later sends of an idempotent producer at earlier offsets | C4 |
//! | `internal-nonmonotonic-poll`, `external-nonmonotonic-poll` | offsets that go back, within a poll or between two | C4 |
//! | `internal-poll-skip`, `external-poll-skip` | a poll, or the next, jumps over a known record | C5 |
//! | `failed-write-read` | a record that was answered with a final error is there all the same | C6 (G1a) |
//! | `two-owners` | one partition, one generation, two members | C7 |
//! | `commit-went-back` | a committed offset moves back without a reset | C7 |
//! | `resume-differs` | a member resumes elsewhere than the group had committed | C7 |
//! | `zombie-commit` | a commit of a generation that was over is accepted | C7 |
//! | `replica-differs` | two brokers' scans differ at an offset | C8 |
//! | `scan-gap` | a scan has no record at an offset below its end | C8 |
//! | `corrupt-record`, `misplaced-record` | a payload that is damaged, or of another partition | C8 |
//! | `unknown-value` | a record that nobody sent | |
//! | `malformed-history` | the history contradicts itself; nothing can be concluded from it | |
//! | `vacuous` | too few successful operations or faults to conclude anything | |
//!
//! Retention and compaction are allowed for as far as a scan says where the log starts; a compacted
//! topic has gaps by right and is not for these checkers.

mod groups;
mod log;
pub mod segment;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use self::groups::Groups;
use self::log::{Logs, Reader, Sender};
use crate::history::{Action, Event, Phase, Position, Read, Sent, payload};

/// How many anomalies of one name are kept with their words; all are counted.
const KEPT_PER_NAME: usize = 10;

/// What makes a run worth its verdict.
#[derive(Clone, Copy, Debug)]
pub struct Demands {
    /// Acknowledged records.
    pub sends_ok_min: u64,
    /// Records read, in polls and scans.
    pub reads_min: u64,
    /// Faults injected.
    pub faults_min: u64,
}

impl Default for Demands {
    fn default() -> Self {
        Self { sends_ok_min: 100, reads_min: 100, faults_min: 1 }
    }
}

/// What the history was about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records acknowledged.
    pub sends_ok: u64,
    /// Records whose fate nobody knows.
    pub sends_info: u64,
    /// Records answered with a final error.
    pub sends_failed: u64,
    /// Records read, in polls and scans.
    pub reads: u64,
    /// Commits accepted.
    pub commits: u64,
    /// Faults injected.
    pub faults: u64,
}

/// The verdict.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What the history was about.
    pub counts: Counts,
    found: BTreeMap<&'static str, (u64, Vec<String>)>,
}

impl Report {
    /// Whether nothing was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.found.is_empty()
    }

    /// The anomalies found: name, how many, the first of them in words.
    pub fn anomalies(&self) -> impl Iterator<Item = (&'static str, u64, &[String])> {
        self.found.iter().map(|(name, (count, words))| (*name, *count, words.as_slice()))
    }

    /// The names of the anomalies found, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        self.found.keys().copied().collect()
    }

    pub(crate) fn add(&mut self, name: &'static str, words: impl FnOnce() -> String) {
        let (count, kept) = self.found.entry(name).or_default();
        *count += 1;
        if kept.len() < KEPT_PER_NAME {
            kept.push(words());
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { sends_ok, sends_info, sends_failed, reads, commits, faults } = self.counts;
        writeln!(
            f,
            "{sends_ok} records acknowledged, {sends_info} unknown, {sends_failed} failed, {reads} \
             read, {commits} commits, {faults} faults"
        )?;
        for (name, count, words) in self.anomalies() {
            writeln!(f, "{name}: {count}")?;
            for words in words {
                writeln!(f, "  {words}")?;
            }
        }
        Ok(())
    }
}

/// Takes a history event by event.
#[derive(Default)]
pub struct Checker {
    report: Report,
    logs: Logs,
    groups: Groups,
    processes: BTreeMap<String, usize>,
    /// Operations that have begun and not ended.
    open: BTreeMap<(usize, u64), Open>,
    events: u64,
}

struct Open {
    time_ns: u64,
    /// Which event of the history it was.
    line: u64,
    action: Action,
}

impl Checker {
    /// A checker that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Checks a whole history.
    #[must_use]
    pub fn check(events: impl IntoIterator<Item = Event>, demands: Demands) -> Report {
        let mut checker = Self::new();
        for event in events {
            checker.event(event);
        }
        checker.finish(demands)
    }

    /// Takes the next event.
    pub fn event(&mut self, event: Event) {
        self.events += 1;
        let known = self.processes.len();
        let process = *self.processes.entry(event.process.clone()).or_insert(known);
        if event.phase == Phase::Invoke {
            self.invoke(process, event);
        } else {
            self.complete(process, event);
        }
    }

    fn invoke(&mut self, process: usize, event: Event) {
        if let Action::Send { records, .. } = &event.action {
            for record in records {
                if !self.logs.log(&record.topic, record.partition).invoke(record.value) {
                    self.report.add("malformed-history", || {
                        format!(
                            "value {} is sent twice ({} op {})",
                            record.value, event.process, event.op
                        )
                    });
                }
            }
        }
        if let Action::Commit { group, offsets, .. } = &event.action {
            self.groups.commit_begins(group, offsets, (process, event.op));
        }
        let open = Open { time_ns: event.time_ns, line: self.events, action: event.action };
        if self.open.insert((process, event.op), open).is_some() {
            self.report.add("malformed-history", || {
                format!("{} begins op {} twice", event.process, event.op)
            });
        }
    }

    fn complete(&mut self, process: usize, event: Event) {
        let begun = self.open.remove(&(process, event.op));
        let time_ns = event.time_ns;
        let began_ns = begun.as_ref().map_or(time_ns, |open| open.time_ns);
        match event.action {
            Action::Send { records, acks, idempotent, session } => {
                let Some(Open { action: Action::Send { records: sent, .. }, line, .. }) = begun
                else {
                    return self.ends_what_was_not_begun("send", &event.process, event.op);
                };
                let sender =
                    Sender { process, session, line, idempotent, must_survive: acks == -1 };
                self.sent(&sender, event.phase, &sent, &records);
            }
            Action::Poll { records } if event.phase != Phase::Fail => {
                self.polled(process, &event.process, event.op, &records)
            }
            Action::Assign { partitions } if event.phase == Phase::Ok => {
                self.assigned(process, &partitions);
            }
            Action::Rebalance { group, generation, member, partitions }
                if event.phase == Phase::Ok =>
            {
                self.assigned(process, &partitions);
                self.groups.rebalanced(
                    &mut self.report,
                    &group,
                    generation,
                    &member,
                    &partitions,
                    (began_ns, time_ns),
                );
            }
            Action::Commit { group, generation, member, offsets, reset } => {
                if begun.is_none() {
                    return self.ends_what_was_not_begun("commit", &event.process, event.op);
                }
                let commit = groups::Commit {
                    generation,
                    member,
                    offsets,
                    reset,
                    id: (process, event.op),
                    began_ns,
                    ended_ns: time_ns,
                };
                if event.phase == Phase::Ok {
                    self.report.counts.commits += 1;
                    self.groups.committed(&mut self.report, &group, &commit);
                } else if event.phase == Phase::Fail {
                    self.groups.commit_failed(&group, &commit);
                }
            }
            Action::Scan { broker, topic, partition, start, end, records }
                if event.phase == Phase::Ok =>
            {
                for read in &records {
                    if let Some(value) = self.value(&event.process, read) {
                        self.logs.log(&topic, partition).scanned(&broker, read.offset, value);
                    }
                }
                self.report.counts.reads += records.len() as u64;
                self.logs.log(&topic, partition).scan(&broker, start, end);
            }
            Action::Fault { .. } => self.report.counts.faults += 1,
            _ => {}
        }
    }

    fn ends_what_was_not_begun(&mut self, what: &str, process: &str, op: u64) {
        self.report.add("malformed-history", || {
            format!("{process} ends {what} {op} that it has not begun")
        });
    }

    fn assigned(&mut self, process: usize, partitions: &[Position]) {
        self.logs.forget_positions(process);
        for at in partitions {
            self.logs.log(&at.topic, at.partition).assign(process, at.offset);
        }
    }

    fn sent(&mut self, sender: &Sender, phase: Phase, sent: &[Sent], answered: &[Sent]) {
        for (i, record) in sent.iter().enumerate() {
            let offset = answered
                .iter()
                .find(|answer| answer.value == record.value)
                .and_then(|answer| answer.offset);
            let log = self.logs.log(&record.topic, record.partition);
            let counts = &mut self.report.counts;
            match phase {
                Phase::Ok => {
                    counts.sends_ok += 1;
                    log.acknowledged(record.value, offset, sender, i);
                }
                Phase::Fail => {
                    counts.sends_failed += 1;
                    log.failed(record.value, sender);
                }
                Phase::Info | Phase::Invoke => {
                    counts.sends_info += 1;
                    log.unknown(record.value, sender);
                }
            }
        }
    }

    fn polled(&mut self, process: usize, name: &str, op: u64, records: &[Read]) {
        self.report.counts.reads += records.len() as u64;
        let mut reader = Reader { process, name, op, first: BTreeMap::new() };
        for read in records {
            if let Some(value) = self.value(name, read) {
                self.logs.polled(&mut self.report, &mut reader, read, value);
            }
        }
    }

    /// The value of a record, if it is whole and where it belongs.
    fn value(&mut self, reader: &str, read: &Read) -> Option<u64> {
        let Read { topic, partition, offset, value, payload } = read;
        let words =
            || format!("{topic}-{partition} offset {offset}, read by {reader}: {payload:?}");
        match payload {
            Some(text) => match payload::decode(text, topic, *partition) {
                Ok(value) => return Some(value),
                Err(payload::Damage::Corrupt) => self.report.add("corrupt-record", words),
                Err(payload::Damage::Misplaced) => self.report.add("misplaced-record", words),
            },
            None if value.is_some() => return *value,
            None => self.report.add("corrupt-record", words),
        }
        None
    }

    /// The verdict over all that was seen.
    #[must_use]
    pub fn finish(mut self, demands: Demands) -> Report {
        for ((process, _), open) in std::mem::take(&mut self.open) {
            if let Action::Send { records, acks, idempotent, session } = open.action {
                let sender = Sender {
                    process,
                    session,
                    line: open.line,
                    idempotent,
                    must_survive: acks == -1,
                };
                self.sent(&sender, Phase::Info, &records, &[]);
            }
        }
        self.logs.finish(&mut self.report);
        let counts = self.report.counts;
        let wanted = [
            ("acknowledged records", counts.sends_ok, demands.sends_ok_min),
            ("records read", counts.reads, demands.reads_min),
            ("faults", counts.faults, demands.faults_min),
        ];
        for (what, have, min) in wanted {
            if have < min {
                self.report.add("vacuous", || {
                    format!("{have} {what}, at least {min} are needed to conclude anything")
                });
            }
        }
        self.report
    }
}
