//! A log on the disk, as the machines of replication look at it.

use letterbox_protocol::model::{LeaderEpoch, Offset};
use letterbox_storage::Log;

use super::follower::OwnLog;

impl OwnLog for Log {
    fn start(&self) -> Offset {
        self.start_offset()
    }

    fn end(&self) -> Offset {
        self.end_offset()
    }

    fn counts(&self) -> Offset {
        // What a log does not hold any more is on no disk, and needs none.
        let held = if Log::may_lack_records(self) { 0 } else { self.durable_end() };
        held.max(self.start_offset())
    }

    fn high_watermark(&self) -> Offset {
        Log::high_watermark(self)
    }

    fn latest_epoch(&self) -> Option<LeaderEpoch> {
        Log::latest_epoch(self)
    }

    fn lacks_records(&self) -> bool {
        Log::lacks_records(self)
    }

    fn is_full(&self) -> bool {
        self.takes_no_copies()
    }

    fn may_lack_records(&self) -> bool {
        Log::may_lack_records(self)
    }

    fn end_of_epoch(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, Offset)> {
        self.end_offset_for_epoch(epoch)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use letterbox_env::Env;
    use letterbox_protocol::batch::BatchBuilder;
    use letterbox_storage::{
        AppendOptions, LogConfig, LogManager, LogManagerOptions, Origin, WantedLog,
    };
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::replication::world::ModelLog;

    const EPOCH_MAX: LeaderEpoch = 12;

    /// A log of its own, and the model, of which the same is asked.
    struct Pair {
        log: Arc<Log>,
        model: ModelLog,
        epoch: LeaderEpoch,
    }

    impl Pair {
        async fn new(env: &Env, dir: &std::path::Path) -> Self {
            let options = LogManagerOptions {
                reserve_bytes: Some(0),
                ..LogManagerOptions::new(vec![dir.into()])
            };
            let logs = LogManager::open(env.clone(), options).await.unwrap();
            let config =
                LogConfig { segment_bytes: 400, index_interval_bytes: 100, ..LogConfig::default() };
            let wanted = WantedLog {
                topic: "orders".into(),
                topic_id: Uuid::from_u128(1),
                partition: 0,
                config,
                is_new: true,
                may_be_copied: false,
            };
            let log = logs.host(vec![wanted]).await.remove(0).unwrap();
            Self { log, model: ModelLog::default(), epoch: 0 }
        }

        fn append(&mut self, count: u16) {
            for _ in 0..count {
                let mut batch = BatchBuilder::new(1).at(self.model.end(), self.epoch);
                batch.push(1, None, Some(b"record"), &[]);
                let (leader_epoch, origin) = (self.epoch, Origin::Replication { committed: 0 });
                let options = AppendOptions { leader_epoch, now_ms: 1, origin };
                self.log.append(batch.build(), &options).unwrap();
                self.model.records.push((self.epoch, 0));
            }
        }

        /// One of the effects of a machine; `within` says where, in hundredths.
        fn step(&mut self, kind: u16, within: u16) {
            let between =
                |from: Offset, to: Offset| from + (to - from) * Offset::from(within) / 100;
            let (start, end) = (self.model.start(), self.model.end());
            let high_watermark = self.model.high_watermark();
            match kind {
                0..5 => self.append(1 + within / 20),
                5 => self.epoch = (self.epoch + 1).min(EPOCH_MAX),
                6..8 => {
                    self.log.sync().unwrap();
                    self.model.durable = end;
                }
                8..10 => {
                    let to = between(high_watermark, end);
                    self.log.set_high_watermark(to);
                    self.model.high_watermark = to;
                }
                10 => {
                    let to = between(start, high_watermark);
                    assert_eq!(self.log.delete_records_before(to).unwrap(), to);
                    self.model.set_start(to);
                }
                11..13 => {
                    let to = between(start, end);
                    self.log.truncate_to(to).unwrap();
                    self.model.truncate(to);
                }
                _ => {
                    let at = between(0, end + 20);
                    self.log.truncate_fully_and_start_at(at).unwrap();
                    self.model.restart(at);
                }
            }
        }

        fn check(&self) {
            let look =
                |log: &dyn OwnLog| (log.start(), log.end(), log.counts(), log.high_watermark());
            assert_eq!(look(&*self.log), look(&self.model));
            // One that holds no record may know the epoch of the last that it held.
            if self.model.start() < self.model.end() {
                let epochs = |log: &dyn OwnLog| {
                    let ends: Vec<_> =
                        (-1..=EPOCH_MAX + 1).map(|epoch| log.end_of_epoch(epoch)).collect();
                    (log.latest_epoch(), ends)
                };
                assert_eq!(epochs(&*self.log), epochs(&self.model));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

        /// What was proven of the machines over the model holds over the disk.
        #[test]
        fn a_log_answers_as_the_model_does(
            steps in proptest::collection::vec((0u16..14, 0u16..=100), 1..40),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let dir = tempfile::tempdir().unwrap();
            let mut pair = runtime.block_on(Pair::new(&Env::real(), dir.path()));
            for (kind, within) in steps {
                pair.step(kind, within);
                pair.check();
            }
        }
    }
}
