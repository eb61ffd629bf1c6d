//! Fetch sessions of consumers (KIP-227), by names and by ids.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
use letterbox_protocol::batch::BatchBuilder;
use letterbox_protocol::model::TopicId;
use letterbox_protocol::{ErrorCode, Response};

use super::Broker;
use super::gate::{produce, topic};
use crate::security::{AllowAll, Authorizer, Operation, Principal, Resource, ResourceType};

const NONE: i16 = 0;
/// The last version with names, and the newest.
const VERSIONS: [i16; 2] = [12, 18];

/// A consumer of the broker, and its session.
struct Consumer<'a> {
    broker: &'a Broker,
    version: i16,
    id: i32,
    epoch: i32,
    wait_ms: i32,
}

/// Index, error, high watermark, log start and whether there are records, by topic.
type Told = Vec<(String, i32, i16, i64, i64, bool)>;

impl<'a> Consumer<'a> {
    fn new(broker: &'a Broker, version: i16) -> Self {
        Self { broker, version, id: 0, epoch: 0, wait_ms: 0 }
    }

    fn id_of(&self, name: &str) -> TopicId {
        let image = self.broker.node.services().image();
        image.topic(name).map_or(TopicId::from_u128(7), |topic| topic.id)
    }

    fn request(
        &self,
        asks: &[(&'static str, i32, i64)],
        forgets: &[(&'static str, i32)],
    ) -> m::FetchRequest {
        let asks = asks.iter().map(|(name, index, at)| {
            let partition = FetchPartition::default()
                .with_partition(*index)
                .with_fetch_offset(*at)
                .with_partition_max_bytes(1_000);
            FetchTopic::default()
                .with_topic(topic(name))
                .with_topic_id(self.id_of(name))
                .with_partitions(vec![partition])
        });
        let forgets = forgets.iter().map(|(name, index)| {
            ForgottenTopic::default()
                .with_topic(topic(name))
                .with_topic_id(self.id_of(name))
                .with_partitions(vec![*index])
        });
        m::FetchRequest::default()
            .with_max_bytes(1_000)
            .with_min_bytes(1)
            .with_max_wait_ms(self.wait_ms)
            .with_session_id(self.id)
            .with_session_epoch(self.epoch)
            .with_topics(asks.collect())
            .with_forgotten_topics_data(forgets.collect())
    }

    async fn answer(&self, request: m::FetchRequest) -> m::FetchResponse {
        let any = Arc::new(AllowAll);
        answer!(self.broker, any, self.version, request, Fetch)
    }

    fn told(&self, answer: m::FetchResponse) -> Told {
        let image = self.broker.node.services().image();
        let mut told = Told::new();
        for of in answer.responses {
            let name = match self.version {
                ..13 => of.topic.to_string(),
                _ => image
                    .topic_by_id(&of.topic_id)
                    .map_or("?".into(), |topic| topic.name.to_string()),
            };
            for one in of.partitions {
                let has_records = one.records.as_ref().is_some_and(|records| !records.is_empty());
                let (index, error) = (one.partition_index, one.error_code);
                let (end, start) = (one.high_watermark, one.log_start_offset);
                told.push((name.clone(), index, error, end, start, has_records));
            }
        }
        told
    }

    /// The next request of the session, which the broker keeps.
    async fn next(
        &mut self,
        asks: &[(&'static str, i32, i64)],
        forgets: &[(&'static str, i32)],
    ) -> Told {
        let answer = self.answer(self.request(asks, forgets)).await;
        assert_eq!(answer.error_code, NONE);
        assert!(answer.session_id > 0 && (self.id == 0 || answer.session_id == self.id));
        self.id = answer.session_id;
        self.epoch += 1;
        self.told(answer)
    }

    async fn refused(&self, id: i32, epoch: i32) -> i16 {
        let request = self.request(&[], &[]).with_session_id(id).with_session_epoch(epoch);
        let answer = self.answer(request).await;
        assert_eq!((answer.session_id, answer.responses.len()), (0, 0));
        answer.error_code
    }
}

fn told(name: &str, index: i32, end: i64, has_records: bool) -> (String, i32, i16, i64, i64, bool) {
    (name.into(), index, NONE, end, 0, has_records)
}

fn failed(name: &str, index: i32, error: ErrorCode) -> (String, i32, i16, i64, i64, bool) {
    (name.into(), index, error.code(), -1, -1, false)
}

/// A broker with the topic "t" of three partitions.
async fn with_topic() -> Broker {
    let broker = Broker::start().await;
    broker.node.ensure_topic("t", 3, 1, BTreeMap::new()).await.unwrap();
    broker
}

/// One record into partition 0.
async fn write(broker: &Broker, name: &'static str) {
    let any = Arc::new(AllowAll);
    let answer = answer!(broker, any, 9, produce(&[name]), Produce);
    assert_eq!(answer.responses[0].partition_responses[0].error_code, NONE);
}

#[tokio::test]
async fn a_consumer_names_what_changed_and_is_told_what_is_new() {
    for version in VERSIONS {
        let broker = with_topic().await;
        let mut consumer = Consumer::new(&broker, version);
        let all = [("t", 0, 0), ("t", 1, 0), ("t", 2, 0)];
        let first = consumer.next(&all, &[]).await;
        assert_eq!(first, [0, 1, 2].map(|index| told("t", index, 0, false)));
        assert_eq!(consumer.next(&[], &[]).await, Told::new());
        write(&broker, "t").await;
        assert_eq!(consumer.next(&[], &[]).await, [told("t", 0, 1, true)]);
        // It did not take them, and would miss them.
        assert_eq!(consumer.next(&[], &[]).await, [told("t", 0, 1, true)]);
        assert_eq!(consumer.next(&[("t", 0, 1)], &[]).await, Told::new());
        // One that is parked is answered by the next record.
        consumer.wait_ms = 60_000;
        let both = async { tokio::join!(consumer.next(&[], &[]), write(&broker, "t")) };
        let (answer, ()) = tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
        assert_eq!(answer, [told("t", 0, 2, true)]);
        consumer.wait_ms = 0;
        // What it forgets it is not told of, also when it names it too, and is when it asks again.
        assert_eq!(consumer.next(&[("t", 0, 2)], &[("t", 0)]).await, Told::new());
        write(&broker, "t").await;
        assert_eq!(consumer.next(&[], &[]).await, Told::new());
        assert_eq!(consumer.next(&[("t", 0, 2)], &[]).await, [told("t", 0, 3, true)]);
        // Out of the log's range, until it asks from within.
        let out = ErrorCode::OffsetOutOfRange.code();
        for asks in [&[("t", 0, 9)][..], &[]] {
            let answer = consumer.next(asks, &[]).await;
            assert_eq!(answer.iter().map(|one| (one.1, one.2)).collect::<Vec<_>>(), [(0, out)]);
        }
        assert_eq!(consumer.next(&[("t", 0, 3)], &[]).await, [told("t", 0, 3, false)]);
        // Without any partition there is no session.
        let forgets = [("t", 0), ("t", 1), ("t", 2)];
        let answer = consumer.answer(consumer.request(&[], &forgets)).await;
        assert_eq!((answer.error_code, answer.session_id), (NONE, 0));
        assert_eq!(broker.node.services().consumers.counts(), (0, 0));
    }
}

/// "Produce with acks=1, then read to the end", in a session.
#[tokio::test]
async fn an_answer_without_records_says_that_there_are_none() {
    let broker = with_topic().await;
    let any = Arc::new(AllowAll);
    let mut consumer = Consumer::new(&broker, 18);
    consumer.next(&[("t", 0, 0), ("t", 1, 0)], &[]).await;
    for end in 1..50 {
        let answer = answer!(broker, any, 9, produce(&["t"]).with_acks(1), Produce);
        assert_eq!(answer.responses[0].partition_responses[0].error_code, NONE);
        assert_eq!(consumer.next(&[], &[]).await, [told("t", 0, end, true)]);
        assert_eq!(consumer.next(&[("t", 0, end)], &[]).await, Told::new());
    }
}

#[tokio::test]
async fn a_session_goes_on_with_its_own_epochs_only() {
    let broker = with_topic().await;
    let (not_found, wrong) =
        (ErrorCode::FetchSessionIdNotFound.code(), ErrorCode::InvalidFetchSessionEpoch.code());
    for version in VERSIONS {
        let mut consumer = Consumer::new(&broker, version);
        consumer.next(&[("t", 0, 0)], &[]).await;
        let (id, epoch) = (consumer.id, consumer.epoch);
        assert_eq!(consumer.refused(id ^ 1, epoch).await, not_found);
        assert_eq!(consumer.refused(id, epoch + 1).await, wrong);
        assert_eq!(consumer.refused(id, epoch - 2).await, NONE, "that is no session");
        assert_eq!(consumer.refused(id, epoch).await, not_found, "and ends this one");
        // A new one in place of another.
        consumer = Consumer::new(&broker, version);
        consumer.next(&[("t", 0, 0)], &[]).await;
        let before = consumer.id;
        let again = consumer.request(&[("t", 0, 0)], &[]).with_session_epoch(0);
        let answer = consumer.answer(again).await;
        assert!(answer.session_id > 0 && answer.session_id != before);
        assert_eq!(consumer.refused(before, 1).await, not_found);
        // Names and ids are not for one session.
        let other = Consumer { version: VERSIONS[usize::from(version == VERSIONS[0])], ..consumer };
        let mixed = ErrorCode::FetchSessionTopicIdError.code();
        assert_eq!(other.refused(answer.session_id, 1).await, mixed);
        consumer.epoch = -1;
        assert_eq!(consumer.refused(answer.session_id, -1).await, NONE);
        assert_eq!(broker.node.services().consumers.counts(), (0, 0));
    }
}

#[tokio::test]
async fn a_topic_that_was_made_again_is_another_one_by_id_and_the_next_one_by_name() {
    for version in VERSIONS {
        let broker = with_topic().await;
        let any = Arc::new(AllowAll);
        broker.has_topic("u").await;
        let mut consumer = Consumer::new(&broker, version);
        write(&broker, "u").await;
        consumer.next(&[("t", 0, 0), ("u", 0, 0)], &[]).await;
        assert_eq!(consumer.next(&[("u", 0, 1)], &[]).await, Told::new());
        let delete = m::DeleteTopicsRequest::default()
            .with_topic_names(vec![topic("u")])
            .with_timeout_ms(30_000);
        let answer = answer!(broker, any, 5, delete, DeleteTopics);
        assert_eq!(answer.responses[0].error_code, NONE);
        let missing = match version {
            ..13 => failed("u", 0, ErrorCode::UnknownTopicOrPartition),
            _ => failed("?", 0, ErrorCode::UnknownTopicId),
        };
        // Each time: its client may have missed it.
        assert_eq!(consumer.next(&[], &[]).await, std::slice::from_ref(&missing));
        assert_eq!(consumer.next(&[], &[]).await, std::slice::from_ref(&missing));
        broker.has_topic("u").await;
        write(&broker, "u").await;
        let expected = match version {
            ..13 => told("u", 0, 1, false),
            _ => missing,
        };
        assert_eq!(consumer.next(&[], &[]).await, [expected]);
    }
}

/// Nobody tells a session of it.
#[tokio::test]
async fn a_log_start_that_moves_and_a_right_that_is_lost_are_noticed_without_records() {
    struct Nobody;
    impl Authorizer for Nobody {
        fn allows(&self, _: &Principal, _: &str, _: Operation, of: Resource<'_>) -> bool {
            of.kind() != ResourceType::Topic
        }

        fn allows_any(&self, _: &Principal, _: &str, _: Operation, _: ResourceType) -> bool {
            true
        }
    }
    for version in VERSIONS {
        let broker = with_topic().await;
        write(&broker, "t").await;
        let mut consumer = Consumer::new(&broker, version);
        consumer.next(&[("t", 0, 1), ("t", 1, 0)], &[]).await;
        let services = broker.node.services();
        let partition = services.replicas.partition(&consumer.id_of("t"), 0).unwrap();
        partition.log().unwrap().delete_records_before(1).unwrap();
        assert_eq!(consumer.next(&[], &[]).await, Told::new());
        later().await;
        let moved = ("t".to_owned(), 0, NONE, 1, 1, false);
        assert_eq!(consumer.next(&[], &[]).await, [moved]);
        assert_eq!(consumer.next(&[], &[]).await, Told::new());
        later().await;
        let nobody = Arc::new(Nobody);
        let answer = answer!(broker, nobody, version, consumer.request(&[], &[]), Fetch);
        let denied = ErrorCode::TopicAuthorizationFailed;
        let all = [0, 1].map(|index| failed("t", index, denied));
        assert_eq!(consumer.told(answer), all);
    }
}

/// More than the time between two looks at all.
async fn later() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(6)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn sessions_are_bounded_in_number_and_memory_and_the_others_are_served_without() {
    let broker = with_topic().await;
    let services = broker.node.services();
    let before = services.memory.used();
    let mut ids = Vec::new();
    for n in 0..=1_000 {
        let consumer = Consumer::new(&broker, 18);
        let answer = consumer.answer(consumer.request(&[("t", 0, 0)], &[])).await;
        assert_eq!((answer.session_id > 0, answer.responses.len()), (n < 1_000, 1));
        ids.push(answer.session_id);
    }
    assert_eq!(services.consumers.counts(), (1_000, 1_000));
    assert!(services.memory.used() > before);
    // One that was not used for two minutes gives its place to a new one, and is not known any more.
    services.consumers.grow_older(Duration::from_secs(121));
    let consumer = Consumer::new(&broker, 18);
    let newest = consumer.answer(consumer.request(&[("t", 0, 0)], &[])).await.session_id;
    let (mut gone, not_found) = (0, ErrorCode::FetchSessionIdNotFound.code());
    for id in ids.iter().copied().filter(|id| *id > 0) {
        let request = consumer.request(&[], &[]).with_session_id(id).with_session_epoch(1);
        let answer = consumer.answer(request).await;
        gone += usize::from((answer.error_code, answer.session_id) == (not_found, 0));
    }
    assert_eq!((gone, services.consumers.counts()), (1, (1_000, 1_000)));
    ids.push(newest);
    let end = async |id| {
        let mut consumer = Consumer::new(&broker, 18);
        consumer.epoch = -1;
        assert_eq!(consumer.refused(id, -1).await, NONE);
    };
    for id in ids {
        end(id).await;
    }
    assert_eq!((services.consumers.counts(), services.memory.used()), ((0, 0), before));

    // Partitions that there are not take as much.
    let consumer = Consumer::new(&broker, 18);
    let mut request = consumer.request(&[("t", 0, 0)], &[]);
    let one = request.topics[0].partitions[0].clone();
    request.topics[0].partitions =
        (0..18_000).map(|index| one.clone().with_partition(index)).collect();
    let mut ids = Vec::new();
    while ids.last() != Some(&0) {
        assert!(ids.len() < 20, "sessions hold {} bytes", services.memory.used());
        let answer = consumer.answer(request.clone()).await;
        assert_eq!(answer.responses[0].partitions.len(), 18_000);
        ids.push(answer.session_id);
    }
    assert!(ids.len() > 2 && services.memory.used() - before <= services.memory.size() / 8);
    // One that would grow past the bound begins anew.
    let other: Vec<_> = (18_000..36_000).map(|index| one.clone().with_partition(index)).collect();
    let mut grown = request.clone().with_session_id(ids[0]).with_session_epoch(1);
    grown.topics[0].partitions = other;
    let answer = consumer.answer(grown).await;
    assert_eq!((answer.error_code, answer.session_id), (not_found, 0));
    for id in ids {
        end(id).await;
    }
    assert_eq!((services.consumers.counts(), services.memory.used()), ((0, 0), before));
}

/// Names are the client's, of any length, and are part of a frame.
#[tokio::test]
async fn a_session_by_names_holds_them_and_counts_them() {
    let broker = with_topic().await;
    let services = broker.node.services();
    let before = services.memory.used();
    let mut consumer = Consumer::new(&broker, 12);
    let mut request = consumer.request(&[("t", 0, 0)], &[]);
    request.topics[0].topic = topic(Box::leak("x".repeat(30_000).into_boxed_str()));
    let answer = consumer.answer(request).await;
    assert!(answer.session_id > 0 && services.memory.used() >= before + 30_000);
    (consumer.id, consumer.epoch) = (answer.session_id, 1);
    let mut request = consumer.request(&[("t", 0, 0)], &[("t", 0)]);
    request.forgotten_topics_data[0].topic = answer.responses[0].topic.clone();
    let answer = consumer.answer(request).await;
    assert_eq!(consumer.told(answer), [told("t", 0, 0, false)]);
    assert!(services.memory.used() < before + 30_000);
}

/// It would take its thread from others for long. None is left out for good.
#[tokio::test]
async fn an_answer_of_a_session_that_goes_on_is_bounded_and_the_next_one_is_about_the_rest() {
    let broker = with_topic().await;
    let mut consumer = Consumer::new(&broker, 18);
    // Each of those that there are not is news, time and again.
    let mut request = consumer.request(&[("t", 0, 0)], &[]);
    let one = request.topics[0].partitions[0].clone();
    request.topics[0].partitions =
        (0..1_200).map(|index| one.clone().with_partition(index)).collect();
    let answer = consumer.answer(request).await;
    assert_eq!(answer.responses[0].partitions.len(), 1_200);
    (consumer.id, consumer.epoch) = (answer.session_id, 1);
    write(&broker, "t").await;
    let (mut named, mut has_records) = (BTreeSet::new(), false);
    for _ in 0..3 {
        let answer = consumer.next(&[], &[]).await;
        assert!(answer.len() <= 500, "{}", answer.len());
        has_records |= answer.iter().any(|one| one.5);
        named.extend(answer.into_iter().map(|one| one.1));
    }
    assert_eq!((named.len(), has_records), (1_198, true));
}

/// Whose next batch is larger than what others leave of an answer gets it when it is first.
#[tokio::test]
async fn a_large_batch_comes_in_its_turn_whoever_gets_records_meanwhile() {
    let broker = Broker::start().await;
    for name in ["a", "b", "c"] {
        broker.node.ensure_topic(name, 1, 1, BTreeMap::new()).await.unwrap();
    }
    let mut batch = BatchBuilder::new(1_000);
    batch.push(1_000, None, Some(&[7; 5_000]), &[]);
    let mut large = produce(&["b"]);
    large.topic_data[0].partition_data[0].records = Some(batch.build().freeze());
    let any = Arc::new(AllowAll);
    let answer = answer!(broker, any, 9, large, Produce);
    assert_eq!(answer.responses[0].partition_responses[0].error_code, NONE);
    // Names have numbers in the order in which they came.
    let mut consumer = Consumer::new(&broker, 12);
    let (mut read, mut asks) = (0_i64, vec![("a", 0, 0), ("b", 0, 0), ("c", 0, 0)]);
    let got = loop {
        write(&broker, "a").await;
        write(&broker, "c").await;
        let answer = consumer.next(&asks, &[]).await;
        let got: Vec<_> = answer.iter().filter(|one| one.5).map(|one| one.0.clone()).collect();
        read += 1;
        if got.iter().any(|name| name == "b") || read == 5 {
            break got;
        }
        asks = vec![("a", 0, read), ("c", 0, read)];
    };
    assert!(got.contains(&"b".to_owned()), "in {read} answers: {got:?}");
}

#[tokio::test]
async fn who_wants_no_session_has_none_however_he_says_so() {
    let broker = with_topic().await;
    let services = broker.node.services();
    for version in VERSIONS {
        let mut other = Consumer::new(&broker, version);
        other.next(&[("t", 0, 0)], &[]).await;
        // librdkafka, and kafka-go.
        for id in [0, -1] {
            let consumer = Consumer { id, epoch: -1, ..Consumer::new(&broker, version) };
            for _ in 0..2 {
                let answer = consumer.answer(consumer.request(&[("t", 1, 0)], &[])).await;
                assert_eq!((answer.error_code, answer.session_id), (NONE, 0));
                assert_eq!(consumer.told(answer), [told("t", 1, 0, false)]);
            }
        }
        assert_eq!(other.next(&[], &[]).await, Told::new());
        assert_eq!(services.consumers.counts(), (1, 1));
        other.epoch = -1;
        assert_eq!(other.refused(other.id, -1).await, NONE);
    }
}
