//! Where the replicas of a topic go that is to have more or fewer of them.

use std::collections::BTreeMap;

/// The brokers that serve, with their racks.
pub(super) type Racks = BTreeMap<i32, Option<String>>;

/// The replicas of a partition, the preferred leader first, and which of them are in sync.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Replicas {
    /// All that it is to have now.
    pub(super) all: Vec<i32>,
    /// Those that are in sync.
    pub(super) in_sync: Vec<i32>,
}

/// The replicas of each of `partitions` that is to have another number of them than `wanted`; `None`
/// when too few brokers serve. Those that stay keep their order. New ones go to a rack that has none
/// yet, and to the broker with the fewest; the ones that go are those that are behind, then those
/// whose rack has another one, then those whose broker has the most, and the preferred leader last.
pub(super) fn placed(
    partitions: &BTreeMap<i32, Replicas>,
    racks: &Racks,
    wanted: usize,
) -> Option<BTreeMap<i32, Vec<i32>>> {
    let mut load: BTreeMap<i32, usize> = BTreeMap::new();
    for id in partitions.values().flat_map(|it| &it.all) {
        *load.entry(*id).or_default() += 1;
    }
    let mut moves = BTreeMap::new();
    for (partition, known) in partitions.iter().filter(|(_, it)| it.all.len() != wanted) {
        let mut all = known.all.clone();
        while all.len() < wanted {
            let id = best(&all, racks, &load)?;
            *load.entry(id).or_default() += 1;
            all.push(id);
        }
        while all.len() > wanted {
            let at = worst(&all, known, racks, &load)?;
            let id = all.remove(at);
            load.entry(id).and_modify(|count| *count = count.saturating_sub(1));
        }
        moves.insert(*partition, all);
    }
    Some(moves)
}

/// The rack of a broker; one without a rack, or that does not serve, is its own.
fn rack(id: i32, racks: &Racks) -> Result<&str, i32> {
    racks.get(&id).and_then(|rack| rack.as_deref()).ok_or(id)
}

fn best(all: &[i32], racks: &Racks, load: &BTreeMap<i32, usize>) -> Option<i32> {
    let is_taken = |id: i32| all.iter().any(|one| rack(*one, racks) == rack(id, racks));
    let others = racks.keys().copied().filter(|id| !all.contains(id));
    others.min_by_key(|id| (is_taken(*id), load.get(id).copied().unwrap_or_default(), *id))
}

/// The place in `all` of the replica that goes first.
fn worst(
    all: &[i32],
    known: &Replicas,
    racks: &Racks,
    load: &BTreeMap<i32, usize>,
) -> Option<usize> {
    let is_double =
        |id: i32| all.iter().filter(|one| rack(**one, racks) == rack(id, racks)).count() > 1;
    let worth = |(at, id): &(usize, &i32)| {
        let count = load.get(*id).copied().unwrap_or_default();
        (!known.in_sync.contains(id), *at > 0, is_double(**id), count, *at)
    };
    all.iter().enumerate().max_by_key(worth).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_spread_and_the_ones_in_sync_stay() {
        let free: &[(i32, &str)] = &[(0, ""), (1, ""), (2, ""), (3, "")];
        let two_racks: &[(i32, &str)] = &[(0, "a"), (1, "a"), (2, "b"), (3, "b")];
        let few: &[(i32, &str)] = &[(0, ""), (1, "")];
        let of = |all: &[i32], in_sync: &[i32]| Replicas {
            all: all.to_vec(),
            in_sync: in_sync.to_vec(),
        };
        for (case, brokers, before, wanted, expected) in [
            ("nothing to do", free, vec![of(&[0, 1], &[0])], 2, Some("{}")),
            (
                "the load is spread",
                free,
                vec![of(&[0], &[0]), of(&[0], &[0]), of(&[1], &[1])],
                2,
                Some("{0: [0, 2], 1: [0, 3], 2: [1, 2]}"),
            ),
            ("another rack", two_racks, vec![of(&[0], &[0])], 2, Some("{0: [0, 2]}")),
            ("all racks have one", two_racks, vec![of(&[0, 2], &[])], 3, Some("{0: [0, 2, 1]}")),
            ("too few serve", few, vec![of(&[0], &[0])], 3, None),
            ("one that is away stays", few, vec![of(&[7], &[])], 2, Some("{0: [7, 0]}")),
            ("who is behind goes", free, vec![of(&[0, 1, 2], &[0, 2])], 2, Some("{0: [0, 2]}")),
            ("even the first", free, vec![of(&[0, 1], &[1])], 1, Some("{0: [1]}")),
            ("the first stays", free, vec![of(&[2, 1, 0], &[0, 1, 2])], 1, Some("{0: [2]}")),
            (
                "each rack keeps one",
                two_racks,
                vec![of(&[0, 2, 1], &[0, 1, 2])],
                2,
                Some("{0: [0, 2]}"),
            ),
        ] {
            let racks = brokers
                .iter()
                .map(|(id, rack)| (*id, Some((*rack).to_owned()).filter(|rack| !rack.is_empty())));
            let before: BTreeMap<i32, Replicas> = (0..).zip(before).collect();
            let moves = placed(&before, &racks.collect(), wanted).map(|moves| format!("{moves:?}"));
            assert_eq!(moves.as_deref(), expected, "{case}");
        }
    }
}
