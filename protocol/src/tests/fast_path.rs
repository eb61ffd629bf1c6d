//! Produce and Fetch by hand against the codec: the same bytes out, the same values in, at every
//! version.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages as m;
use kafka_protocol::messages::{fetch_response as f, produce_response as p};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::make::{Maker, Rng};
use crate::fetch::{EpochEndOffset, FetchAnswer, FetchPartitionAnswer, FetchTopicAnswer, Part};
use crate::produce::{
    LeaderIdAndEpoch, NodeEndpoint, OwnedTopicKey, ProduceAnswer, ProducePartitionAnswer,
    ProduceRefusal, ProduceTopicAnswer, ProduceView, TopicKey, encode_produce_response,
};
use crate::schema;
use crate::schema_table::REQUESTS;
use crate::{Request, Response, decode_request, decode_response, encode_response};

const SEEDS: u64 = 150;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

type Taken = (OwnedTopicKey, Vec<(i32, Option<Bytes>)>);

fn taken(view: &ProduceView<'_>, body: &[u8]) -> Vec<Taken> {
    let (make, mut all) = (view.parts(), Vec::new());
    let mut parts = make(BytesMut::from(body));
    while let Some((topic, count)) = parts.next_topic() {
        let next = || parts.next_partition().map(|(at, records)| (at, records.map(Into::into)));
        let partitions: Vec<_> = std::iter::from_fn(next).collect();
        assert!(partitions.len() <= count);
        all.push((topic, partitions));
    }
    all
}

/// A topic whose partitions nobody takes is passed over.
#[test]
fn produce_parts_that_are_not_taken_are_passed_over() {
    for version in 3..=13 {
        for seed in 0..SEEDS {
            let mut maker = Maker::new(seed, true);
            maker.body(schema::find(REQUESTS, 0).unwrap(), version);
            let view = ProduceView::new(version, &maker.bytes).unwrap();
            let make = view.parts();
            let mut parts = make(BytesMut::from(&maker.bytes[..]));
            let topics: Vec<_> = std::iter::from_fn(|| parts.next_topic()).collect();
            let expected: Vec<_> = taken(&view, &maker.bytes);
            let expected = expected.into_iter().map(|(topic, all)| (topic, all.len()));
            assert_eq!(topics, expected.collect::<Vec<_>>(), "v{version} seed {seed}");
        }
    }
}

#[test]
fn produce_view_sees_what_the_codec_sees() {
    for version in 3..=13 {
        for seed in 0..SEEDS {
            let mut maker = Maker::new(seed, true);
            maker.body(schema::find(REQUESTS, 0).unwrap(), version);
            let body = Bytes::from(maker.bytes);
            let Ok(Request::Produce(request)) = decode_request(0, version, body.clone()) else {
                panic!("v{version} seed {seed}")
            };
            let view = ProduceView::new(version, &body).unwrap();
            assert_eq!(
                view.transactional_id(),
                request.transactional_id.as_ref().map(|id| id.as_str())
            );
            assert_eq!((view.acks, view.timeout_ms), (request.acks, request.timeout_ms));
            let expected: Vec<Taken> = request
                .topic_data
                .iter()
                .map(|t| {
                    let key = if version >= 13 {
                        TopicKey::Id(t.topic_id)
                    } else {
                        TopicKey::Name(t.name.as_str())
                    };
                    let partitions = t.partition_data.iter().map(|p| (p.index, p.records.clone()));
                    (key.into(), partitions.collect::<Vec<_>>())
                })
                .collect();
            assert_eq!(taken(&view, &body), expected, "v{version} seed {seed}");
            let indexes = |t: &Taken| (t.0.clone(), t.1.iter().map(|(index, _)| *index).collect());
            let expected: Vec<(_, Vec<_>)> = expected.iter().map(indexes).collect();
            let seen: Vec<_> =
                view.topics().map(|t| (t.topic.into(), t.partitions().collect())).collect();
            assert_eq!(seen, expected, "v{version} seed {seed}");
            assert_eq!(view.topic_count(), expected.len());
            let is_for_one = matches!(&expected[..], [(_, only)] if only.len() == 1);
            assert_eq!(view.is_for_one(), is_for_one, "v{version} seed {seed}");
        }
    }
}

/// Bytes that nobody checked: never a panic, at most fewer topics.
#[test]
fn produce_view_of_cut_bytes_ends_early() {
    for version in 3..=13 {
        let mut maker = Maker::new(3, true);
        maker.body(schema::find(REQUESTS, 0).unwrap(), version);
        let body = Bytes::from(maker.bytes);
        for end in 0..body.len() {
            assert!(ProduceView::new(version, &body[..end]).is_err(), "v{version} cut at {end}");
            if let Ok(view) = ProduceView::of_checked(version, &body[..end]) {
                view.topics().for_each(|topic| topic.partitions().for_each(drop));
                view.is_for_one();
                taken(&view, &body[..end]);
            }
        }
    }
}

struct Names {
    topic: String,
    host: String,
    rack: Option<String>,
    id: Uuid,
}

fn names(rng: &mut Rng) -> Names {
    let id = Uuid::from_u64_pair(rng.next(), rng.next());
    Names {
        topic: format!("t{}", rng.text()),
        host: rng.text(),
        rack: rng.chance(50).then(|| rng.text()),
        id,
    }
}

fn key(names: &Names, ids: bool) -> TopicKey<'_> {
    if ids { TopicKey::Id(names.id) } else { TopicKey::Name(&names.topic) }
}

fn leader(rng: &mut Rng) -> Option<LeaderIdAndEpoch> {
    rng.chance(40).then(|| LeaderIdAndEpoch {
        leader_id: rng.below(9) as i32,
        leader_epoch: rng.next() as i32,
    })
}

fn endpoints<'a>(rng: &mut Rng, names: &'a Names) -> Vec<NodeEndpoint<'a>> {
    let one =
        NodeEndpoint { node_id: 7, host: &names.host, port: 9092, rack: names.rack.as_deref() };
    vec![one; rng.below(4)]
}

fn produce_answer<'a>(rng: &mut Rng, version: i16, names: &'a Names) -> ProduceAnswer<'a> {
    let topics = (0..rng.below(4)).map(|_| ProduceTopicAnswer {
        topic: key(names, version >= 13).into(),
        partitions: (0..rng.below(4))
            .map(|_| ProducePartitionAnswer {
                index: rng.next() as i32,
                error_code: rng.next() as i16,
                base_offset: rng.next() as i64,
                log_append_time_ms: rng.next() as i64,
                log_start_offset: rng.next() as i64,
                refusal: rng.chance(70).then(|| {
                    let errors = 0..rng.below(3);
                    let error = |at| (at as i32, rng.chance(50).then(|| rng.text()));
                    Box::new(ProduceRefusal {
                        record_errors: errors.map(error).collect(),
                        error_message: rng.chance(50).then(|| rng.text()),
                        current_leader: leader(rng),
                    })
                }),
            })
            .collect(),
    });
    let topics = topics.collect();
    ProduceAnswer {
        topics,
        throttle_time_ms: rng.next() as i32,
        node_endpoints: endpoints(rng, names),
    }
}

fn codec_produce(answer: &ProduceAnswer<'_>, version: i16) -> m::ProduceResponse {
    let partition = |a: &ProducePartitionAnswer| {
        let refusal = a.refusal.as_deref().cloned().unwrap_or_default();
        let mut out = p::PartitionProduceResponse::default()
            .with_index(a.index)
            .with_error_code(a.error_code)
            .with_base_offset(a.base_offset)
            .with_log_append_time_ms(a.log_append_time_ms);
        if version >= 5 {
            out.log_start_offset = a.log_start_offset;
        }
        if version >= 8 {
            let error = |(index, message): &(i32, Option<String>)| {
                p::BatchIndexAndErrorMessage::default()
                    .with_batch_index(*index)
                    .with_batch_index_error_message(message.as_deref().map(text))
            };
            out.record_errors = refusal.record_errors.iter().map(error).collect();
            out.error_message = refusal.error_message.as_deref().map(text);
        }
        if let Some(leader) = refusal.current_leader.filter(|_| version >= 10) {
            out.current_leader = p::LeaderIdAndEpoch::default()
                .with_leader_id(leader.leader_id.into())
                .with_leader_epoch(leader.leader_epoch);
        }
        out
    };
    let topic = |t: &ProduceTopicAnswer| {
        let out = p::TopicProduceResponse::default()
            .with_partition_responses(t.partitions.iter().map(partition).collect());
        match t.topic.key() {
            TopicKey::Name(name) => out.with_name(text(name).into()),
            TopicKey::Id(id) => out.with_topic_id(id),
        }
    };
    let endpoint = |e: &NodeEndpoint<'_>| {
        p::NodeEndpoint::default()
            .with_node_id(e.node_id.into())
            .with_host(text(e.host))
            .with_port(e.port)
            .with_rack(e.rack.map(text))
    };
    let endpoints = if version >= 10 {
        answer.node_endpoints.iter().map(endpoint).collect()
    } else {
        Vec::new()
    };
    m::ProduceResponse::default()
        .with_responses(answer.topics.iter().map(topic).collect())
        .with_throttle_time_ms(answer.throttle_time_ms)
        .with_node_endpoints(endpoints)
}

#[test]
fn produce_response_is_the_codecs_byte_for_byte() {
    for version in 3..=13 {
        for seed in 0..SEEDS {
            let mut rng = Rng(seed);
            let names = names(&mut rng);
            let answer = produce_answer(&mut rng, version, &names);
            let expected = Response::from(codec_produce(&answer, version));
            let frame = encode_produce_response(9, version, &answer).unwrap();
            assert_eq!(
                frame,
                encode_response(9, version, &expected).unwrap(),
                "v{version} seed {seed}"
            );
            assert_eq!(
                decode_response(0, version, frame.slice(4..)).unwrap(),
                (9, expected),
                "v{version} seed {seed}"
            );
        }
    }
}

fn epoch(rng: &mut Rng) -> Option<EpochEndOffset> {
    rng.chance(30)
        .then(|| EpochEndOffset { epoch: rng.below(100) as i32, end_offset: rng.next() as i64 })
}

fn fetch_answer<'a>(rng: &mut Rng, version: i16, names: &'a Names) -> FetchAnswer<'a> {
    let topics = (0..rng.below(4)).map(|_| FetchTopicAnswer {
        topic: key(names, version >= 13),
        partitions: (0..rng.below(4))
            .map(|_| FetchPartitionAnswer {
                index: rng.next() as i32,
                error_code: rng.next() as i16,
                high_watermark: rng.next() as i64,
                last_stable_offset: rng.next() as i64,
                log_start_offset: rng.next() as i64,
                diverging_epoch: epoch(rng),
                current_leader: leader(rng),
                snapshot_id: epoch(rng),
                aborted_transactions: rng
                    .chance(60)
                    .then(|| (0..rng.below(3)).map(|at| (at as i64, rng.next() as i64)).collect()),
                preferred_read_replica: if version >= 11 { rng.next() as i32 } else { -1 },
                // Around the lengths at which the varint grows by a byte.
                records_bytes: [
                    None,
                    Some(0),
                    Some(1),
                    Some(126),
                    Some(127),
                    Some(128),
                    Some(16_383),
                    Some(16_384),
                ][rng.below(8)],
            })
            .collect(),
    });
    FetchAnswer {
        topics: topics.collect(),
        throttle_time_ms: rng.next() as i32,
        error_code: rng.next() as i16,
        session_id: if version >= 7 { rng.next() as i32 } else { 0 },
        node_endpoints: endpoints(rng, names),
        secret: (rng.below(2) == 0).then_some([7; 16]),
    }
}

/// The records of the n-th partition of an answer.
fn records(partition: usize, bytes: usize) -> Bytes {
    Bytes::from(vec![partition as u8; bytes])
}

fn codec_fetch(answer: &FetchAnswer<'_>, version: i16) -> m::FetchResponse {
    let mut at = 0;
    let mut partition = |a: &FetchPartitionAnswer| {
        let aborted = |(producer_id, first_offset): &(i64, i64)| {
            f::AbortedTransaction::default()
                .with_producer_id((*producer_id).into())
                .with_first_offset(*first_offset)
        };
        let mut out = f::PartitionData::default()
            .with_partition_index(a.index)
            .with_error_code(a.error_code)
            .with_high_watermark(a.high_watermark)
            .with_last_stable_offset(a.last_stable_offset)
            .with_aborted_transactions(
                a.aborted_transactions.as_ref().map(|list| list.iter().map(aborted).collect()),
            )
            .with_preferred_read_replica(a.preferred_read_replica.into())
            .with_records(a.records_bytes.map(|bytes| records(at, bytes)));
        at += 1;
        if version >= 5 {
            out.log_start_offset = a.log_start_offset;
        }
        if version >= 12 {
            if let Some(e) = a.diverging_epoch {
                out.diverging_epoch =
                    f::EpochEndOffset::default().with_epoch(e.epoch).with_end_offset(e.end_offset);
            }
            if let Some(l) = a.current_leader {
                out.current_leader = f::LeaderIdAndEpoch::default()
                    .with_leader_id(l.leader_id.into())
                    .with_leader_epoch(l.leader_epoch);
            }
            if let Some(e) = a.snapshot_id {
                out.snapshot_id =
                    f::SnapshotId::default().with_epoch(e.epoch).with_end_offset(e.end_offset);
            }
        }
        out
    };
    let mut topic = |t: &FetchTopicAnswer<'_>| {
        let out = f::FetchableTopicResponse::default()
            .with_partitions(t.partitions.iter().map(&mut partition).collect());
        match t.topic {
            TopicKey::Name(name) => out.with_topic(text(name).into()),
            TopicKey::Id(id) => out.with_topic_id(id),
        }
    };
    let responses = answer.topics.iter().map(&mut topic).collect();
    let endpoint = |e: &NodeEndpoint<'_>| {
        f::NodeEndpoint::default()
            .with_node_id(e.node_id.into())
            .with_host(text(e.host))
            .with_port(e.port)
            .with_rack(e.rack.map(text))
    };
    let endpoints = if version >= 16 {
        answer.node_endpoints.iter().map(endpoint).collect()
    } else {
        Vec::new()
    };
    let mut tags = std::collections::BTreeMap::new();
    if let Some(secret) = answer.secret.filter(|_| version >= 12) {
        crate::replica::put_secret(&mut tags, &secret);
    }
    m::FetchResponse::default()
        .with_unknown_tagged_fields(tags)
        .with_throttle_time_ms(answer.throttle_time_ms)
        .with_error_code(if version >= 7 { answer.error_code } else { 0 })
        .with_session_id(answer.session_id)
        .with_responses(responses)
        .with_node_endpoints(endpoints)
}

#[test]
fn fetch_response_is_the_codecs_byte_for_byte() {
    for version in 4..=18 {
        for seed in 0..SEEDS {
            let mut rng = Rng(seed);
            let names = names(&mut rng);
            let answer = fetch_answer(&mut rng, version, &names);
            let expected = Response::from(codec_fetch(&answer, version));
            let mut frame = Vec::new();
            for part in answer.frame(9, version).unwrap() {
                match part {
                    Part::Bytes(bytes) => frame.extend(bytes),
                    Part::Records { partition, bytes } => frame.extend(records(partition, bytes)),
                }
            }
            let frame = Bytes::from(frame);
            assert_eq!(
                frame,
                encode_response(9, version, &expected).unwrap(),
                "v{version} seed {seed}"
            );
            assert_eq!(
                decode_response(1, version, frame.slice(4..)).unwrap(),
                (9, expected),
                "v{version} seed {seed}"
            );
        }
    }
}

#[test]
fn what_a_version_cannot_say_is_refused() {
    let by_id = FetchTopicAnswer { topic: TopicKey::Id(Uuid::nil()), partitions: Vec::new() };
    let by_name = FetchTopicAnswer { topic: TopicKey::Name("t"), partitions: Vec::new() };
    let answer = |topic: &FetchTopicAnswer<'static>, session_id| FetchAnswer {
        topics: vec![topic.clone()],
        session_id,
        ..FetchAnswer::default()
    };
    assert!(answer(&by_id, 0).frame(1, 12).is_err());
    assert!(answer(&by_name, 0).frame(1, 13).is_err());
    assert!(answer(&by_name, 5).frame(1, 6).is_err());
    assert!(answer(&by_name, 5).frame(1, 7).is_ok());
    assert!(answer(&by_id, 0).frame(1, 19).is_err());
}

/// Records of more than 2 GiB in one frame: the size would be negative.
#[test]
fn a_frame_of_more_than_2_gib_is_refused() {
    let partition = FetchPartitionAnswer {
        index: 0,
        error_code: 0,
        high_watermark: 0,
        last_stable_offset: 0,
        log_start_offset: 0,
        diverging_epoch: None,
        current_leader: None,
        snapshot_id: None,
        aborted_transactions: None,
        preferred_read_replica: -1,
        records_bytes: Some(i32::MAX as usize),
    };
    let topic = FetchTopicAnswer { topic: TopicKey::Id(Uuid::nil()), partitions: vec![partition] };
    assert!(FetchAnswer { topics: vec![topic], ..FetchAnswer::default() }.frame(1, 17).is_err());
}
