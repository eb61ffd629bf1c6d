//! What goes on, on the thread that has synced a log, once the high watermark has moved: the
//! answers that waited for it.

use std::cell::RefCell;
use std::sync::Arc;

/// Of what one move lets go on, so much may write on the thread that moved; the rest writes
/// elsewhere, so that the next sync is not held up.
const WRITES_MAX: usize = 16;

/// A connection with answers that waited for a watermark.
pub(crate) trait Deliver: Send + Sync {
    /// Goes on, on the thread that moved the watermark, which holds no lock then. Must not wait for
    /// anything, and may write to a client only with `may_write`.
    fn deliver(self: Arc<Self>, may_write: bool);
}

thread_local! {
    /// What is to go on, while this thread is in [`delivering`].
    static DUE: RefCell<Option<Vec<Arc<dyn Deliver>>>> = const { RefCell::new(None) };
}

/// Runs `moving`, and then lets go on what it woke and that asked for it ([`deliver_next`]).
pub(crate) fn delivering(moving: impl FnOnce()) {
    DUE.set(Some(Vec::new()));
    moving();
    for (at, due) in DUE.take().unwrap_or_default().into_iter().enumerate() {
        due.deliver(at < WRITES_MAX);
    }
}

/// Whether this thread moves a watermark and delivers what that lets go on: whoever is woken on it
/// may ask for [`deliver_next`].
#[must_use]
pub(crate) fn is_delivering() -> bool {
    DUE.with_borrow(Option::is_some)
}

/// Lets `due` go on when the watermark has moved. Only where [`is_delivering`].
pub(crate) fn deliver_next(due: Arc<dyn Deliver>) {
    DUE.with_borrow_mut(|all| all.get_or_insert_default().push(due));
}
