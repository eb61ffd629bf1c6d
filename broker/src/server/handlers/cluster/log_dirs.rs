//! DescribeLogDirs 1–4: how large each partition is, and how full its log directory.
//!
//! KIPs: 113, 827 (total and usable bytes). A partition's size is that of its batches: the zeroed
//! reserve behind the last one is not counted. Cordoned directories (version 5) do not exist here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kafka_protocol::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use kafka_protocol::messages::{self as m, TopicName};
use letterbox_protocol::ErrorCode;
use letterbox_storage::{Log, LogDir};

use super::{Errors, Services, errors, text, topic_name};

/// Answers DescribeLogDirs.
pub(crate) async fn describe(
    services: Arc<Services>,
    request: m::DescribeLogDirsRequest,
) -> m::DescribeLogDirsResponse {
    // Without a list everything is asked for; one that is asked for twice is told once.
    let wanted = request.topics.map(|topics| {
        let mut wanted = BTreeMap::<TopicName, BTreeSet<i32>>::new();
        for topic in topics {
            wanted.entry(topic.topic).or_default().extend(topic.partitions);
        }
        wanted
    });
    let (dirs, logs) = services.replicas.log_dirs();
    let is_wanted = |log: &Log| {
        wanted.as_ref().is_none_or(|wanted| {
            let partitions = wanted.get(&topic_name(log.topic()));
            partitions.is_some_and(|partitions| partitions.contains(&log.partition()))
        })
    };
    let logs: Vec<Arc<Log>> = logs.into_iter().filter(|log| is_wanted(log)).collect();
    let results =
        services.env.blocking(move || dirs.iter().map(|dir| of_dir(dir, &logs)).collect()).await;
    m::DescribeLogDirsResponse::default().with_results(results)
}

fn of_dir(dir: &Arc<LogDir>, logs: &[Arc<Log>]) -> DescribeLogDirsResult {
    let result = DescribeLogDirsResult::default().with_log_dir(text(&dir.path().to_string_lossy()));
    let space = if dir.offline().is_none() { dir.space().ok() } else { None };
    let Some((total, free)) = space else {
        return result.with_error_code(ErrorCode::KafkaStorageError as i16);
    };
    let mut topics: BTreeMap<&str, Vec<DescribeLogDirsPartition>> = BTreeMap::new();
    for log in logs.iter().filter(|log| Arc::ptr_eq(log.dir(), dir)) {
        let partition = DescribeLogDirsPartition::default()
            .with_partition_index(log.partition())
            .with_partition_size(i64::try_from(log.size()).unwrap_or(i64::MAX))
            .with_offset_lag(0);
        topics.entry(log.topic()).or_default().push(partition);
    }
    let topics = topics
        .into_iter()
        .map(|(topic, partitions)| {
            DescribeLogDirsTopic::default().with_name(topic_name(topic)).with_partitions(partitions)
        })
        .collect();
    let bytes = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
    result.with_topics(topics).with_total_bytes(bytes(total)).with_usable_bytes(bytes(free))
}

errors!(DescribeLogDirsResponse, |all, each| {
    each(all.error_code);
    all.results.iter().for_each(|one| each(one.error_code));
});
