//! The watches that the API server refuses. What changes there is noticed at the next look, and that
//! is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::Stream;
use letterbox_env::Gather;
use tokio::sync::watch;
use tokio::time::Instant;

/// So often in a row a watch has to be refused before it is told: it may be a fault of a moment.
const REFUSALS: u32 = 3;
/// A watch that was not refused again for so long works: it has no news to tell. Longer than the
/// longest pause before it is tried again.
pub(crate) const FORGOTTEN_AFTER: Duration = Duration::from_secs(20);

/// Clones are the same.
#[derive(Clone)]
pub(crate) struct Unwatched(Arc<Inside>);

struct Inside {
    /// By what is watched, and where; `None`: everywhere.
    refused: Mutex<BTreeMap<(String, Option<String>), Refusal>>,
    /// Moves when something else is told than before.
    changed: watch::Sender<()>,
}

struct Refusal {
    times: u32,
    last: Instant,
    message: String,
}

impl Refusal {
    fn is_told(&self) -> bool {
        self.times >= REFUSALS && self.last.elapsed() < FORGOTTEN_AFTER
    }
}

impl Default for Unwatched {
    fn default() -> Self {
        let changed = watch::Sender::new(());
        Self(Arc::new(Inside { refused: Mutex::default(), changed }))
    }
}

impl Unwatched {
    /// Takes up that the API server refuses a watch. True when that is told from now on.
    pub(crate) fn refused(&self, what: &str, scope: Option<&str>, message: &str) -> bool {
        let place = (what.to_owned(), scope.map(ToOwned::to_owned));
        let now = Instant::now();
        let new = || Refusal { times: 0, last: now, message: String::new() };
        let is_news = self.with(|all| {
            let refusal = all.entry(place).or_insert_with(new);
            let was_told = refusal.is_told();
            if refusal.last.elapsed() >= FORGOTTEN_AFTER {
                *refusal = new();
            }
            (refusal.times, refusal.last) = (refusal.times.saturating_add(1), now);
            message.clone_into(&mut refusal.message);
            refusal.is_told() && !was_told
        });
        if is_news {
            self.0.changed.send_replace(());
        }
        is_news
    }

    /// Takes up that a watch works.
    pub(crate) fn works(&self, what: &str, scope: Option<&str>) {
        let place = (what.to_owned(), scope.map(ToOwned::to_owned));
        if self.with(|all| all.remove(&place)).is_some_and(|refusal| refusal.is_told()) {
            self.0.changed.send_replace(());
        }
    }

    /// Forgets all of them: watches begin afresh.
    pub(crate) fn forget_all(&self) {
        self.with(BTreeMap::clear);
    }

    /// What is not watched in a namespace, and what the API server says.
    pub(crate) fn of(&self, namespace: &str) -> BTreeMap<String, String> {
        let is_it = |scope: &Option<String>| scope.as_ref().is_none_or(|it| it == namespace);
        self.with(|all| {
            let told = all.iter().filter(|((_, scope), refusal)| is_it(scope) && refusal.is_told());
            told.map(|((what, _), refusal)| (what.clone(), refusal.message.clone())).gather()
        })
    }

    /// An item each time when something else is told than before.
    pub(crate) fn changes(&self) -> impl Stream<Item = ()> + Send + use<> {
        futures::stream::unfold(self.0.changed.subscribe(), |mut changed| async move {
            changed.changed().await.ok()?;
            Some(((), changed))
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<(String, Option<String>), Refusal>) -> T) -> T {
        f(&mut self.0.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
