//! The metadata that clients are told.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::metadata::MetadataImage;

/// The image whose partitions are open here. It follows the one of the metadata log: what is
/// committed is shown only when it can be used.
#[derive(Default)]
pub(crate) struct Shown {
    image: ArcSwap<MetadataImage>,
    /// `index <= image.applied_index`: everything up to it is in force.
    index: watch::Sender<u64>,
}

impl Shown {
    /// What clients are told now.
    pub(crate) fn image(&self) -> Arc<MetadataImage> {
        self.image.load_full()
    }

    /// Tells clients of `image` from now on.
    pub(crate) fn show(&self, image: Arc<MetadataImage>) {
        self.image.store(image);
    }

    /// Answers those who wait for what the shown image holds: it is in force.
    pub(crate) fn in_force(&self) {
        self.index.send_replace(self.image.load().applied_index);
    }

    /// Waits until everything up to `index` of the metadata log is in force; tells whether it is in
    /// time.
    pub(crate) async fn reaches(&self, index: u64, timeout: Duration) -> bool {
        let mut reached = self.index.subscribe();
        // An error of the channel means that the broker stops; then nobody waits for an answer.
        tokio::time::timeout(timeout, reached.wait_for(|reached| *reached >= index)).await.is_ok()
    }
}
