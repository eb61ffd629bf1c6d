//! Which seeds a test runs, and how a failure is run again.
//!
//! `SEEDS=500 cargo test …` runs 500 seeds, `SEEDS=500..1000` those from 500 on and below 1000,
//! `SEED=17` that one.
#![allow(
    clippy::print_stderr,
    reason = "the way to a failing run has to reach the person at the terminal"
)]

use std::ops::Range;

/// Runs `test` for `count` seeds, or for those that `SEED` or `SEEDS` name.
///
/// When it panics, the seed and the command that replays it are printed: `file` is the name of the
/// test file (`--test file`), `name` the test's.
///
/// # Panics
/// When `test` does, or when `SEED` or `SEEDS` is neither a number nor, for `SEEDS`, a range.
pub fn for_each(count: u64, file: &str, name: &str, test: impl FnMut(u64)) {
    let variable = |name: &str| std::env::var(name).ok();
    let seeds = wanted(count, variable("SEED").as_deref(), variable("SEEDS").as_deref());
    for_these(seeds, file, name, test);
}

/// Runs `test` for these seeds. As with [`for_each`], whose test `name` is, a panic prints the
/// command that replays its seed.
///
/// # Panics
/// When `test` does.
pub fn for_these(
    seeds: impl IntoIterator<Item = u64>,
    file: &str,
    name: &str,
    mut test: impl FnMut(u64),
) {
    for seed in seeds {
        let on_panic = Replay { seed, file, name };
        test(seed);
        std::mem::forget(on_panic);
    }
}

fn wanted(count: u64, seed: Option<&str>, seeds: Option<&str>) -> Range<u64> {
    let number = |text: &str| {
        text.parse::<u64>().unwrap_or_else(|_| panic!("SEED or SEEDS: {text:?} is not a number"))
    };
    match (seed.map(number), seeds.and_then(|seeds| seeds.split_once("..")), seeds) {
        (Some(seed), _, _) => seed..seed.saturating_add(1),
        (None, Some((first, end)), _) => number(first)..number(end),
        (None, None, Some(count)) => 0..number(count),
        (None, None, None) => 0..count,
    }
}

struct Replay<'a> {
    seed: u64,
    file: &'a str,
    name: &'a str,
}

impl Drop for Replay<'_> {
    fn drop(&mut self) {
        eprintln!("seed {} failed; run it again with:\n  {}", self.seed, self.command());
    }
}

impl Replay<'_> {
    fn command(&self) -> String {
        format!(
            "SEED={} cargo test --workspace --test {} -- --exact {} --nocapture",
            self.seed, self.file, self.name
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_a_count_or_a_range() {
        assert_eq!(wanted(3, None, None), 0..3);
        assert_eq!(wanted(3, None, Some("500")), 0..500);
        assert_eq!(wanted(3, None, Some("500..1000")), 500..1000);
        assert_eq!(wanted(3, Some("17"), Some("500")), 17..18);
    }

    #[test]
    fn the_replay_command_names_seed_file_and_test() {
        let replay = Replay { seed: 17, file: "broker", name: "power_cut" };
        assert_eq!(
            replay.command(),
            "SEED=17 cargo test --workspace --test broker -- --exact power_cut --nocapture"
        );
        std::mem::forget(replay);
    }
}
