//! `--generate`: where the partitions of topics could go.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use letterbox_client::{Broker, Client, TopicPartition};
use letterbox_env::Env;

use super::dirs::Dirs;
use super::file::{as_json, duplicates, topics_of};
use super::{failed, failed_call};
use crate::failure::Failure;
use crate::text::joined;

/// Prints the assignments of now and the proposed ones.
pub(super) async fn run(
    env: &Env,
    client: &Client,
    file: &str,
    broker_list: &str,
    by_rack: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let ids = broker_list
        .split(',')
        .map(|id| id.parse::<i32>().map_err(|_| failed(format!("For input string: \"{id}\""))));
    let ids = ids.collect::<Result<Vec<i32>, Failure>>()?;
    let again = duplicates(&ids);
    if !again.is_empty() {
        let again = joined(again.iter()).replace(',', ", ");
        return Err(failed(format!("Broker list contains duplicate entries: [{again}]")));
    }
    let topics = topics_of(file).map_err(failed)?;
    let again = duplicates(&topics);
    if !again.is_empty() {
        let again = again.join(", ");
        return Err(failed(format!(
            "List of topics to reassign contains duplicate entries: [{again}]"
        )));
    }
    let metadata = client.metadata(Some(&topics)).await.map_err(|error| failed_call(&error))?;
    let (mut present, mut proposed) = (BTreeMap::new(), BTreeMap::new());
    let mut wanted = Vec::new();
    for topic in metadata.topics.values() {
        if topic.error.is_some() {
            return Err(failed(format!(
                "org.apache.kafka.common.errors.UnknownTopicOrPartitionException: Topic {} not \
                 found.",
                topic.name
            )));
        }
        let replicas = topic.partitions.values().map(|partition| {
            (TopicPartition::new(&*topic.name, partition.index), partition.replicas.clone())
        });
        present.extend(replicas);
        let factor = topic.partitions.values().next().map_or(0, |first| first.replicas.len());
        wanted.push((topic, factor));
    }
    let brokers = metadata.brokers.values().filter(|broker| ids.contains(&broker.id));
    let order = in_turn(brokers.collect(), by_rack).map_err(failed)?;
    for (topic, factor) in wanted {
        let mut start = [0; 8];
        env.random.fill(&mut start);
        let placed = place(&order, topic.partitions.len(), factor, u64::from_le_bytes(start));
        let placed = placed.map_err(failed)?;
        let names = topic.partitions.keys().map(|index| TopicPartition::new(&*topic.name, *index));
        proposed.extend(names.zip(placed));
    }
    let holds = |id: &i32| metadata.brokers.contains_key(id);
    let dirs = Dirs::of(client, present.values().flatten().copied().filter(holds)).await;
    writeln!(out, "Current partition replica assignment\n{}\n", as_json(&present, &dirs))?;
    let proposed = as_json(&proposed, &Dirs::default());
    writeln!(out, "Proposed partition reassignment configuration\n{proposed}")?;
    Ok(())
}

/// A broker and its rack; without racks each is a rack of its own.
type Place = (i32, String);

/// The brokers, racks taking turns.
fn in_turn(brokers: Vec<&Broker>, by_rack: bool) -> Result<Vec<Place>, String> {
    let without = brokers.iter().filter(|broker| broker.rack.is_none()).count();
    if by_rack && without != 0 && without != brokers.len() {
        return Err("Not all brokers have rack information. Add --disable-rack-aware in command \
                    line to make replica assignment without rack information."
            .to_owned());
    }
    let mut racks: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for broker in &brokers {
        let rack = broker.rack.clone().filter(|_| by_rack);
        let rack = rack.unwrap_or_else(|| format!("{:010}", broker.id));
        racks.entry(rack).or_default().push(broker.id);
    }
    let longest = racks.values().map(Vec::len).max().unwrap_or(0);
    let row = |row: usize| {
        let of_rack =
            move |(rack, ids): (&String, &Vec<i32>)| ids.get(row).map(|id| (*id, rack.clone()));
        racks.iter().filter_map(of_rack).collect::<Vec<_>>()
    };
    Ok((0..longest).flat_map(row).collect())
}

/// `count` assignments of `factor` brokers each: the leader moves on by one broker each time, and
/// after each round the followers do, so that they do not always follow the same leader. No rack has
/// two replicas of a partition while another has none.
fn place(
    brokers: &[Place],
    count: usize,
    factor: usize,
    seed: u64,
) -> Result<Vec<Vec<i32>>, String> {
    let len = brokers.len();
    if len == 0 {
        return Err(
            "All brokers are currently fenced, or have all their log directories cordoned."
                .to_owned(),
        );
    }
    if factor == 0 || factor > len {
        return Err(format!("Replication factor: {factor} larger than available brokers: {len}."));
    }
    let start = usize::try_from(seed % len as u64).unwrap_or(0);
    let others = len.saturating_sub(1).max(1);
    let of_partition = |nth: usize| {
        let (first, shift) = (start.wrapping_add(nth) % len, nth / len % others);
        let followers = (0..others).map(|at| 1 + (at + shift) % others);
        let order: Vec<&Place> = std::iter::once(0)
            .chain(followers)
            .filter_map(|step| brokers.get((first + step) % len))
            .collect();
        pick(&order, factor)
    };
    Ok((0..count).map(of_partition).collect())
}

/// The first `factor` of `order` that have racks of their own; when there are no more racks, they
/// may come again.
fn pick(order: &[&Place], factor: usize) -> Vec<i32> {
    let mut picked: Vec<i32> = Vec::new();
    while picked.len() < factor.min(order.len()) {
        let mut racks = BTreeSet::new();
        for (id, rack) in order {
            if picked.len() < factor && !picked.contains(id) && racks.insert(rack) {
                picked.push(*id);
            }
        }
    }
    picked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(id: i32, rack: Option<&str>) -> Broker {
        let rack = rack.map(str::to_owned);
        Broker { id, host: "h".to_owned(), port: 1, rack }
    }

    #[test]
    fn leads_and_followers_are_spread_and_racks_are_used() {
        let all: Vec<Broker> =
            (0..6).map(|id| broker(id, Some(["a", "b", "c"][(id / 2) as usize]))).collect();
        let order = in_turn(all.iter().collect(), true).unwrap();
        assert_eq!(order.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 2, 4, 1, 3, 5]);
        for seed in 0..6 {
            let placed = place(&order, 60, 3, seed).unwrap();
            let mut leads = BTreeMap::new();
            for replicas in &placed {
                let racks: BTreeSet<i32> = replicas.iter().map(|id| id / 2).collect();
                assert_eq!(racks.len(), 3, "{replicas:?}");
                *leads.entry(replicas[0]).or_insert(0) += 1;
            }
            assert!(leads.values().all(|count| *count == 10), "{leads:?}");
            let of_first: BTreeSet<&[i32]> =
                placed.iter().filter(|one| one[0] == 0).map(|one| &one[1..]).collect();
            assert!(of_first.len() > 1, "one leader always has the same followers");
        }
        // More replicas than racks: the racks come again.
        let four = place(&order, 1, 4, 0).unwrap().remove(0);
        assert_eq!(four.iter().collect::<BTreeSet<_>>().len(), 4);
    }

    #[test]
    fn what_cannot_be_placed_is_said() {
        let (one, other) = (broker(1, None), broker(2, Some("a")));
        let too_many = "Replication factor: 3 larger than available brokers: 2.";
        let order = in_turn(vec![&one, &other], false).unwrap();
        assert_eq!(place(&order, 1, 3, 0), Err(too_many.to_owned()));
        assert_eq!(place(&order, 3, 1, 1), Ok(vec![vec![2], vec![1], vec![2]]));
        assert!(place(&[], 1, 1, 0).is_err());
        assert!(in_turn(vec![&one, &other], true).is_err_and(|why| why.contains("rack")));
        assert_eq!(place(&order[..1], 2, 1, 5), Ok(vec![vec![1], vec![1]]));
    }
}
