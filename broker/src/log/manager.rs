//! All logs of a broker. (Signatures first; the bodies follow.)
#![allow(clippy::unimplemented, unused_variables, missing_docs, clippy::unused_async)]

use std::path::PathBuf;
use std::sync::Arc;

use letterbox_env::Env;
use tokio_util::sync::CancellationToken;

use super::{DurabilityObserver, Log, LogConfig, LogError};
use crate::model::{TimestampMs, TopicId};

#[derive(Clone, Debug)]
pub struct LogManagerOptions {
    pub dirs: Vec<PathBuf>,
    pub default_config: LogConfig,
    pub tail_cache_bytes: usize,
    pub tail_cache_bytes_per_log: usize,
    pub reserve_bytes: u64,
    pub producer_id_expiration_ms: i64,
    pub cleaner_map_entries: usize,
}

/// A partition directory that was not opened.
#[derive(Clone, Debug)]
pub struct OfflineLog {
    pub topic: Arc<str>,
    pub partition: i32,
    pub topic_id: Option<TopicId>,
    pub error: LogError,
}

pub struct LogManager {}

impl LogManager {
    pub async fn open(env: Env, options: LogManagerOptions) -> Result<Arc<Self>, LogError> { unimplemented!() }
    pub fn logs(&self) -> Vec<Arc<Log>> { unimplemented!() }
    pub fn get(&self, topic_id: TopicId, partition: i32) -> Option<Arc<Log>> { unimplemented!() }
    pub fn offline_logs(&self) -> Vec<OfflineLog> { unimplemented!() }
    pub async fn create(&self, topic: &str, topic_id: TopicId, partition: i32, config: LogConfig) -> Result<Arc<Log>, LogError> { unimplemented!() }
    pub async fn delete(&self, topic_id: TopicId, partition: i32) -> Result<(), LogError> { unimplemented!() }
    pub async fn mark_stray(&self, topic_id: TopicId, partition: i32) -> Result<(), LogError> { unimplemented!() }
    /// Group commit: runs until `stop`, then syncs what is left and ends.
    pub async fn run_syncers(self: Arc<Self>, observer: Arc<dyn DurabilityObserver>, stop: CancellationToken) { unimplemented!() }
    /// Call it every second or so.
    pub async fn maintain(&self, now: TimestampMs) { unimplemented!() }
    /// Checkpoints only the high watermarks and log start offsets.
    pub async fn checkpoint(&self) { unimplemented!() }
    /// Syncs, trims, checkpoints, marks the directories clean. After `run_syncers` has ended.
    pub async fn close(&self) -> Result<(), LogError> { unimplemented!() }
}
