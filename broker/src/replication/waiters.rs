//! Who waits for a partition to move on: long polls and acknowledgements.

use std::sync::{Arc, Mutex};

use letterbox_env::panics::lock;
use tokio::sync::Notify;

use crate::model::Offset;

/// Requests that wait until a partition's high watermark reaches an offset.
#[derive(Default)]
pub struct Waiters {
    waiting: Mutex<Vec<(Offset, Arc<Notify>)>>,
}

impl Waiters {
    /// Wakes `who` once `moved_to` is told an offset of at least `target`.
    ///
    /// The caller looks at the watermark again after this call, or a move in between is missed.
    pub fn register(&self, target: Offset, who: &Arc<Notify>) {
        self.lock().push((target, who.clone()));
    }

    /// Forgets `who`: its request was answered.
    pub fn forget(&self, who: &Arc<Notify>) {
        self.lock().retain(|(_, waiting)| !Arc::ptr_eq(waiting, who));
    }

    /// Wakes everyone whose target is reached.
    pub fn moved_to(&self, offset: Offset) {
        self.lock().retain(|(target, who)| {
            let reached = *target <= offset;
            if reached {
                who.notify_one();
            }
            !reached
        });
    }

    /// Wakes everyone: the partition is gone or can no longer be written.
    pub fn wake_all(&self) {
        self.moved_to(Offset::MAX);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Offset, Arc<Notify>)>> {
        lock(&self.waiting)
    }
}
