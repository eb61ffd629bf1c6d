//! Consumer groups: who owns what, and what was committed (C7).

use std::collections::BTreeMap;

use super::Report;
use crate::history::Position;

/// An operation: process and number.
type Id = (usize, u64);

#[derive(Default)]
pub(super) struct Groups(BTreeMap<String, Group>);

#[derive(Default)]
struct Group {
    /// Per generation and partition, the member that owns it.
    owners: BTreeMap<(i64, String, i32), String>,
    /// When each generation was first known to exist.
    generations: BTreeMap<i64, u64>,
    partitions: BTreeMap<(String, i32), Commits>,
}

/// The commits of one partition that can still be what the group has.
#[derive(Default)]
struct Commits {
    /// Accepted ones that no later one has replaced for sure: (began, ended, offset).
    accepted: Vec<(u64, u64, i64)>,
    /// Begun, and not known to have ended; each may take effect at any time.
    open: BTreeMap<Id, i64>,
}

pub(super) struct Commit {
    pub(super) generation: i64,
    pub(super) member: String,
    pub(super) offsets: Vec<Position>,
    pub(super) reset: bool,
    pub(super) id: Id,
    pub(super) began_ns: u64,
    pub(super) ended_ns: u64,
}

impl Groups {
    fn group(&mut self, name: &str) -> &mut Group {
        self.0.entry(name.to_owned()).or_default()
    }

    pub(super) fn rebalanced(
        &mut self,
        report: &mut Report,
        name: &str,
        generation: i64,
        member: &str,
        partitions: &[Position],
        (began_ns, ended_ns): (u64, u64),
    ) {
        let group = self.group(name);
        let seen = group.generations.entry(generation).or_insert(ended_ns);
        *seen = (*seen).min(ended_ns);
        for Position { topic, partition, offset } in partitions {
            let owner = group
                .owners
                .entry((generation, topic.clone(), *partition))
                .or_insert_with(|| member.to_owned());
            if owner != member {
                report.add("two-owners", || {
                    format!(
                        "{name} generation {generation}: \
                    {topic}-{partition} belongs to {owner} and {member}"
                    )
                });
            }
            let commits = group.partitions.entry((topic.clone(), *partition)).or_default();
            if !commits.may_resume_at(*offset, began_ns) {
                let possible = commits.possible();
                report.add("resume-differs", || {
                    format!(
                        "{name}: {member} resumes {topic}-{partition} at {offset}, committed \
                        was one of {possible:?}"
                    )
                });
            }
        }
    }

    pub(super) fn commit_begins(&mut self, name: &str, offsets: &[Position], id: Id) {
        let group = self.group(name);
        for at in offsets {
            group
                .partitions
                .entry((at.topic.clone(), at.partition))
                .or_default()
                .open
                .insert(id, at.offset);
        }
    }

    pub(super) fn commit_failed(&mut self, name: &str, commit: &Commit) {
        let group = self.group(name);
        for at in &commit.offsets {
            group
                .partitions
                .entry((at.topic.clone(), at.partition))
                .or_default()
                .open
                .remove(&commit.id);
        }
    }

    pub(super) fn committed(&mut self, report: &mut Report, name: &str, commit: &Commit) {
        let group = self.group(name);
        let newer = group
            .generations
            .range(commit.generation + 1..)
            .find(|(_, seen)| **seen < commit.began_ns);
        if commit.generation >= 0
            && let Some((newer, _)) = newer
        {
            report.add("zombie-commit", || {
                format!(
                    "{name}: {} commits in generation {} while {newer} was already there",
                    commit.member, commit.generation
                )
            });
        }
        for Position { topic, partition, offset } in &commit.offsets {
            let commits = group.partitions.entry((topic.clone(), *partition)).or_default();
            commits.open.remove(&commit.id);
            let earlier = commits
                .accepted
                .iter()
                .filter(|(_, ended, _)| *ended < commit.began_ns)
                .map(|(_, _, offset)| *offset)
                .max();
            if let Some(earlier) = earlier
                && *offset < earlier
                && !commit.reset
            {
                report.add("commit-went-back", || {
                    format!("{name}: {topic}-{partition} goes from {earlier} back to {offset}")
                });
            }
            // Those that ended before this one began are replaced.
            commits.accepted.retain(|(_, ended, _)| *ended >= commit.began_ns);
            commits.accepted.push((commit.began_ns, commit.ended_ns, *offset));
        }
    }
}

impl Commits {
    /// Whether a member that asked at `asked_ns` can have been told `offset` (-1: nothing
    /// committed).
    fn may_resume_at(&self, offset: i64, asked_ns: u64) -> bool {
        let settled = self.accepted.iter().any(|(_, ended, _)| *ended < asked_ns);
        self.open.values().any(|open| *open == offset)
            || self.accepted.iter().any(|(_, _, accepted)| *accepted == offset)
            || (offset < 0 && !settled)
    }

    fn possible(&self) -> Vec<i64> {
        self.accepted
            .iter()
            .map(|(_, _, offset)| *offset)
            .chain(self.open.values().copied())
            .collect()
    }
}
