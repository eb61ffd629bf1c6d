//! One number that stands for a whole run: every byte on the network, every disk operation, every
//! draw and the virtual time of each are folded into it. The same seed must give the same number.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::rng::mix;

/// The trace of one run. Cheap to clone; all clones are the same trace.
#[derive(Clone, Debug, Default)]
pub struct Trace(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    hash: u64,
    events: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// An empty trace. With `keep_lines` each event is also kept as a line of text, for
    /// [`Trace::first_difference`].
    #[must_use]
    pub fn new(keep_lines: bool) -> Self {
        Self(Arc::new(Mutex::new(State { lines: keep_lines.then(Vec::new), ..State::default() })))
    }

    /// Folds one event in: at what virtual time, where, what kind, with which numbers and bytes.
    pub fn event(&self, at: Duration, host: &str, kind: &str, numbers: &[u64], bytes: &[u8]) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let nanos = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        let content = digest(bytes);
        let mut hash = mix(state.hash ^ nanos);
        for word in [digest(host.as_bytes()), digest(kind.as_bytes()), bytes.len() as u64, content]
            .iter()
            .chain(numbers)
        {
            hash = mix(hash.rotate_left(7) ^ *word);
        }
        state.hash = hash;
        state.events += 1;
        if let Some(lines) = &mut state.lines {
            let mut line = format!("{nanos} {host} {kind} {numbers:?}");
            if !bytes.is_empty() {
                let _ = write!(line, " {} bytes {content:016x}", bytes.len());
            }
            lines.push(line);
        }
    }

    /// The number, and how many events it stands for.
    #[must_use]
    pub fn hash(&self) -> (u64, u64) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (state.hash, state.events)
    }

    /// Where two runs part: the number of the first line that differs, with both lines. Needs kept
    /// lines.
    #[must_use]
    pub fn first_difference(&self, other: &Self) -> Option<(usize, String, String)> {
        let ours =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).lines.clone().unwrap_or_default();
        let theirs = other
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lines
            .clone()
            .unwrap_or_default();
        let end = || "(end)".to_owned();
        (0..ours.len().max(theirs.len())).find(|&i| ours.get(i) != theirs.get(i)).map(|i| {
            let line = |lines: &[String]| lines.get(i).cloned().unwrap_or_else(end);
            (i, line(&ours), line(&theirs))
        })
    }
}

fn digest(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(bytes.len() as u64, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(hash ^ u64::from_le_bytes(word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_event_moves_the_hash() {
        let base =
            |trace: &Trace| trace.event(Duration::from_millis(1), "a", "write", &[1, 2], b"xyz");
        let variants: [fn(&Trace); 6] = [
            |t| t.event(Duration::from_millis(2), "a", "write", &[1, 2], b"xyz"),
            |t| t.event(Duration::from_millis(1), "b", "write", &[1, 2], b"xyz"),
            |t| t.event(Duration::from_millis(1), "a", "read", &[1, 2], b"xyz"),
            |t| t.event(Duration::from_millis(1), "a", "write", &[2, 1], b"xyz"),
            |t| t.event(Duration::from_millis(1), "a", "write", &[1, 2], b"xyz\0"),
            |t| t.event(Duration::from_millis(1), "a", "write", &[1, 2], b"xyy"),
        ];
        let (same, again) = (Trace::new(true), Trace::new(true));
        base(&same);
        base(&again);
        assert_eq!(same.hash(), again.hash());
        assert_eq!(same.first_difference(&again), None);
        for variant in variants {
            let other = Trace::new(true);
            variant(&other);
            assert_ne!(same.hash(), other.hash());
            assert_eq!(same.first_difference(&other).map(|found| found.0), Some(0));
        }
    }
}
