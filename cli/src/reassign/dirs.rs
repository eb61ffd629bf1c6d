//! In which log directories of their brokers replicas lie.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use letterbox_client::{Client, LogDirectory, TopicPartition};
use letterbox_env::Gather;

/// A replica that is to lie in a directory, by broker and partition, and where.
pub(super) type Named = BTreeMap<(i32, TopicPartition), String>;

/// The log directories of brokers. One that could not be asked has none.
#[derive(Default)]
pub(super) struct Dirs(BTreeMap<i32, Vec<LogDirectory>>);

/// How long a broker may take to say what lies where. One that hangs holds up no move.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

impl Dirs {
    /// Asks these brokers, all at once.
    pub(super) async fn of(client: &Client, brokers: impl Iterator<Item = i32>) -> Self {
        let ids: BTreeSet<i32> = brokers.gather();
        let asked = ids.into_iter().map(async |id| {
            let told = tokio::time::timeout(TOLD_WITHIN, client.describe_log_dirs(id)).await;
            (id, told.ok().and_then(Result::ok).unwrap_or_default())
        });
        Self(futures::future::join_all(asked).await.into_iter().gather())
    }

    fn found(&self, id: i32, partition: &TopicPartition, is_future: bool) -> Option<&str> {
        let has = |dir: &&LogDirectory| {
            dir.replicas.get(partition).is_some_and(|replica| replica.is_future == is_future)
        };
        Some(&*self.0.get(&id)?.iter().find(has)?.path)
    }

    /// Where the replica of a partition on broker `id` lies, as far as that is known.
    pub(super) fn place(&self, id: i32, partition: &TopicPartition) -> Option<&str> {
        self.found(id, partition, false)
    }

    /// Whether each of these replicas lies where it is to, or can lie nowhere else on its broker.
    pub(super) fn check(&self, named: &Named) -> Result<(), String> {
        let is_there = |id: i32, partition: &TopicPartition, wanted: &str| {
            let mut all = self.0.get(&id).into_iter().flatten();
            let is_moving = self.found(id, partition, true).is_some();
            match self.place(id, partition) {
                Some(place) => place == wanted && !is_moving,
                None => all.next().is_some_and(|dir| dir.path == wanted) && all.next().is_none(),
            }
        };
        match named.iter().find(|((id, partition), dir)| !is_there(*id, partition, dir)) {
            None => Ok(()),
            Some(((id, partition), dir)) => Err(format!(
                "The log_dirs of partition {partition} name {dir} for broker {id}, where its \
                 replica does not lie. Moving replicas between log directories is not supported \
                 by this tool yet: write \"any\" for it."
            )),
        }
    }

    /// Whether none of these replicas is being moved to another directory, which Kafka's brokers do.
    pub(super) fn check_none_moves(&self, named: &Named) -> Result<(), String> {
        let moves =
            |(id, partition): &&(i32, TopicPartition)| self.found(*id, partition, true).is_some();
        match named.keys().find(moves) {
            None => Ok(()),
            Some((id, partition)) => Err(format!(
                "The replica of partition {partition} on broker {id} is being moved to another log \
                 directory, and this tool does not support to cancel that yet."
            )),
        }
    }

    /// What Kafka's tool says of these replicas with --verify.
    pub(super) fn states(&self, named: &Named) -> Vec<String> {
        let state = |((id, partition), wanted): (&(i32, TopicPartition), &String)| {
            let future = self.found(*id, partition, true);
            match (self.place(*id, partition), future) {
                (_, Some(future)) if future == wanted => {
                    format!("Reassignment of replica {partition}-{id} is still in progress.")
                }
                (_, Some(future)) => format!(
                    "Partition {partition} on broker {id} is being moved to log dir {future} \
                     instead of {wanted}."
                ),
                (Some(place), None) if place == wanted => {
                    format!("Reassignment of replica {partition}-{id} completed successfully.")
                }
                (Some(place), None) => format!(
                    "Partition {partition} on broker {id} is not being moved from log dir {place} \
                     to {wanted}."
                ),
                (None, None) => format!(
                    "Partition {partition} is not found in any live log dir on broker {id}. There \
                     is likely an offline log directory on the broker."
                ),
            }
        };
        named.iter().map(state).collect()
    }

    #[cfg(test)]
    pub(super) fn known(id: i32, dirs: Vec<LogDirectory>) -> Self {
        Self(BTreeMap::from([(id, dirs)]))
    }
}

#[cfg(test)]
mod tests {
    use letterbox_client::LogReplica;

    use super::*;

    fn directory(path: &str, replicas: &[(i32, bool)]) -> LogDirectory {
        let replica = |(index, is_future): &(i32, bool)| {
            let is = LogReplica { bytes: 0, offset_lag: 0, is_future: *is_future };
            (TopicPartition::new("t", *index), is)
        };
        let replicas = replicas.iter().map(replica).collect();
        LogDirectory { path: path.to_owned(), error: None, replicas }
    }

    fn named(index: i32, dir: &str) -> Named {
        Named::from([((1, TopicPartition::new("t", index)), dir.to_owned())])
    }

    #[test]
    fn a_replica_that_lies_where_it_is_to_is_taken_and_no_other_is() {
        let one = Dirs::known(1, vec![directory("/a", &[(0, false)])]);
        let two = Dirs::known(1, vec![directory("/a", &[(0, false)]), directory("/b", &[])]);
        for (dirs, index, dir, is_taken) in [
            (&one, 0, "/a", true),
            (&one, 0, "/b", false),
            (&one, 1, "/a", true),
            (&one, 1, "/b", false),
            (&two, 0, "/a", true),
            (&two, 1, "/a", false),
            (&Dirs::default(), 0, "/a", false),
        ] {
            let checked = dirs.check(&named(index, dir));
            assert_eq!(checked.is_ok(), is_taken, "{index} in {dir}: {checked:?}");
        }
    }

    #[test]
    fn where_a_replica_lies_is_said_as_kafka_says_it() {
        let dirs = Dirs::known(
            1,
            vec![directory("/a", &[(0, false), (1, false)]), directory("/b", &[(1, true)])],
        );
        for (index, dir, said) in [
            (0, "/a", "Reassignment of replica t-0-1 completed successfully."),
            (0, "/b", "Partition t-0 on broker 1 is not being moved from log dir /a to /b."),
            (1, "/b", "Reassignment of replica t-1-1 is still in progress."),
            (1, "/a", "Partition t-1 on broker 1 is being moved to log dir /b instead of /a."),
            (
                2,
                "/a",
                "Partition t-2 is not found in any live log dir on broker 1. There is likely an \
                 offline log directory on the broker.",
            ),
        ] {
            assert_eq!(dirs.states(&named(index, dir)), [said]);
        }
    }
}
