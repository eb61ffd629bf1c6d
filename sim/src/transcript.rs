//! Scripts of events with the effects they lead to, so that rules can be read line by line.
//!
//! A line that begins with `>` is an event; those that follow are its effects, all of them and in
//! their order. `#` begins a comment.

use std::fmt::Debug;
use std::str::FromStr;

use letterbox_protocol::model::BrokerId;

/// An event: a word, and what it says as `key=value`.
pub struct Line<'a>(&'a str);

impl<'a> Line<'a> {
    /// What happens.
    #[must_use]
    pub fn word(&self) -> &'a str {
        self.0.split_whitespace().next().unwrap_or_default()
    }

    /// The value of `key`, when the line has it.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<&'a str> {
        self.0.split_whitespace().find_map(|part| part.strip_prefix(key)?.strip_prefix('='))
    }

    /// The value of `key`.
    ///
    /// # Panics
    /// When the line does not have it.
    #[must_use]
    pub fn text(&self, key: &str) -> &'a str {
        self.find(key).unwrap_or_else(|| panic!("{key}= is missing in: {}", self.0))
    }

    /// The value of `key`, read.
    ///
    /// # Panics
    /// When the line does not have it, or it is none.
    #[must_use]
    pub fn number<T: FromStr<Err: Debug>>(&self, key: &str) -> T {
        let text = self.text(key);
        text.parse().unwrap_or_else(|error| panic!("{key}={text}: {error:?} in: {}", self.0))
    }

    /// The brokers that `key` names, with commas between them.
    ///
    /// # Panics
    /// When the line does not have it, or one is no number.
    #[must_use]
    pub fn ids(&self, key: &str) -> Vec<BrokerId> {
        let ids = self.text(key).split(',').filter(|id| !id.is_empty());
        ids.map(|id| BrokerId(id.parse().unwrap())).collect()
    }
}

/// Runs the events of `script` and compares what each leads to with what the script says.
///
/// # Panics
/// At the first line that differs.
pub fn check(script: &str, mut run: impl FnMut(&Line<'_>) -> Vec<String>) {
    let lines = || script.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut told = Vec::new();
    for line in lines() {
        if let Some(event) = line.strip_prefix('>') {
            told.push(line.to_owned());
            told.extend(run(&Line(event.trim())));
        } else if line.starts_with('#') {
            told.push(line.to_owned());
        }
    }
    let expected: Vec<&str> = lines().collect();
    let differs = told.iter().zip(&expected).take_while(|(told, expected)| told == *expected);
    let first = differs.count();
    assert!(
        told.len() == expected.len() && first == told.len(),
        "from line {} on this happened:\n{}\nand not:\n{}",
        first + 1,
        told[first..].join("\n"),
        expected[first..].join("\n")
    );
}
