//! What all logs share of memory.

use std::sync::Arc;

use super::producers::ProducerMemory;
use super::tail_cache::CacheBudget;

/// The bounds that all logs have together.
#[derive(Clone)]
pub(super) struct Memory {
    /// Of their newest batches.
    pub(super) cache: Arc<CacheBudget>,
    /// Of what is remembered of producers.
    pub(super) producers: Arc<ProducerMemory>,
}
