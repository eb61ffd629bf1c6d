//! Which seeds a test runs, and how a failure is run again.
//!
//! `SEEDS=500 cargo test …` runs 500 seeds, `SEED=17 cargo test …` runs that one.
#![allow(clippy::print_stderr, reason = "the way to a failing run has to reach the person at the terminal")]

/// Runs `test` for `count` seeds, or for those that `SEED` or `SEEDS` name.
///
/// When it panics, the seed and the command that replays it are printed: `file` is the name of the test file
/// (`--test file`), `name` the test's.
///
/// # Panics
/// When `test` does, or when `SEED` or `SEEDS` is not a number.
pub fn for_each(count: u64, file: &str, name: &str, mut test: impl FnMut(u64)) {
    let number = |variable: &str| {
        let text = std::env::var(variable).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
    };
    let seeds = match (number("SEED"), number("SEEDS")) {
        (Some(seed), _) => seed..seed.saturating_add(1),
        (None, seeds) => 0..seeds.unwrap_or(count),
    };
    for seed in seeds {
        let on_panic = Replay { seed, file, name };
        test(seed);
        std::mem::forget(on_panic);
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
        format!("SEED={} cargo test -p letterbox-sim --test {} -- --exact {} --nocapture", self.seed, self.file, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replay_command_names_seed_file_and_test() {
        let replay = Replay { seed: 17, file: "broker", name: "power_cut" };
        assert_eq!(replay.command(), "SEED=17 cargo test -p letterbox-sim --test broker -- --exact power_cut --nocapture");
        std::mem::forget(replay);
    }
}
