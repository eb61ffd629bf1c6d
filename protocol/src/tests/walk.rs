//! The walker against messages that are right, and against the same messages with one thing wrong.

use bytes::Bytes;

use super::make::{LengthForm, Maker};
use crate::produce::ProduceView;
use crate::put::Put;
use crate::schema::{self, Message};
use crate::schema_table::{REQUESTS, RESPONSES};
use crate::{
    ELEMENTS_MAX, Problem, Request, Step, WireError, apis, check_request, check_request_body,
    decode_checked_request, decode_request, decode_response, encode_request, encode_response,
    mend_text,
};

/// Every served API and version with its message in `table`.
pub(super) fn each_version(
    table: &'static [Message],
    mut run: impl FnMut(&'static apis::Api, i16, &'static Message),
) {
    for api in apis::APIS {
        for version in api.min..=api.max {
            run(api, version, schema::find(table, api.key).unwrap());
        }
    }
}

pub(super) fn request_frame(
    api: &apis::Api,
    version: i16,
    message: &'static Message,
    seed: u64,
) -> Maker {
    let mut maker = Maker::new(seed, true);
    maker.request_header(api.key, version, api.is_flexible(version));
    maker.body(message, version);
    maker
}

/// The codec is the oracle of the table: what the table makes, the codec reads to the last byte,
/// and what the codec writes, the walker accepts.
#[test]
fn right_requests_pass_and_the_codec_agrees() {
    each_version(REQUESTS, |api, version, message| {
        for seed in 0..60 {
            let case = format!("{} v{version} seed {seed}", api.name);
            let frame = request_frame(api, version, message, seed).bytes;
            let header = check_request(&frame).unwrap_or_else(|e| panic!("{case}: {e}"));
            assert_eq!(
                (header.api.key, header.api_version, header.correlation_id),
                (api.key, version, 77),
                "{case}"
            );
            let body = Bytes::copy_from_slice(&frame[header.body_offset..]);
            let request = decode_checked_request(api.key, version, body)
                .unwrap_or_else(|e| panic!("{case}: {e}"));
            let again = encode_request(78, Some("me"), version, &request)
                .unwrap_or_else(|e| panic!("{case}: {e}"));
            assert_eq!(again[..4], i32::try_from(again.len() - 4).unwrap().to_be_bytes(), "{case}");
            let header = check_request(&again[4..])
                .unwrap_or_else(|e| panic!("{case}: encoded by the codec: {e}"));
            assert_eq!((header.correlation_id, header.client_id), (78, Some(&b"me"[..])), "{case}");
            let body = again.slice(4 + header.body_offset..);
            assert_eq!(decode_request(api.key, version, body).unwrap(), request, "{case}");
        }
    });
}

#[test]
fn right_responses_pass_and_the_codec_agrees() {
    each_version(RESPONSES, |api, version, message| {
        for seed in 0..60 {
            let case = format!("{} v{version} seed {seed}", api.name);
            let mut maker = Maker::new(seed, true);
            maker.bytes.extend(5i32.to_be_bytes());
            if api.response_header_version(version) == 1 {
                maker.bytes.push(0);
            }
            maker.body(message, version);
            let (correlation_id, response) =
                decode_response(api.key, version, Bytes::from(maker.bytes))
                    .unwrap_or_else(|e| panic!("{case}: {e}"));
            assert_eq!(correlation_id, 5, "{case}");
            let again =
                encode_response(6, version, &response).unwrap_or_else(|e| panic!("{case}: {e}"));
            assert_eq!(again[..4], i32::try_from(again.len() - 4).unwrap().to_be_bytes(), "{case}");
            assert_eq!(
                decode_response(api.key, version, again.slice(4..)).unwrap(),
                (6, response),
                "{case}"
            );
        }
    });
}

#[test]
fn a_request_cut_anywhere_is_refused() {
    each_version(REQUESTS, |api, version, message| {
        for seed in 0..4 {
            let frame = request_frame(api, version, message, seed).bytes;
            for end in 0..frame.len() {
                assert!(
                    check_request(&frame[..end]).is_err(),
                    "{} v{version} seed {seed} cut at {end} of {}",
                    api.name,
                    frame.len()
                );
            }
        }
    });
}

/// Kafka reads the fields that it knows and stops. Clients rely on it: see the next test.
#[test]
fn bytes_after_the_last_field_change_nothing() {
    each_version(REQUESTS, |api, version, message| {
        for (seed, surplus) in [&[0u8][..], &[1, 0, 0], &[0xff; 40]].into_iter().enumerate() {
            let case = format!("{} v{version} and {surplus:x?}", api.name);
            let frame = request_frame(api, version, message, seed as u64).bytes;
            let header = check_request(&frame).unwrap();
            let longer = [&frame[..], surplus].concat();
            assert_eq!(check_request(&longer), Ok(header), "{case}");
            let read = |frame: &[u8]| {
                decode_checked_request(
                    api.key,
                    version,
                    Bytes::copy_from_slice(&frame[header.body_offset..]),
                )
            };
            assert_eq!(read(&longer), read(&frame), "{case}");
            if api.key == apis::PRODUCE {
                let view = |frame: &[u8]| {
                    let view =
                        ProduceView::of_checked(version, &frame[header.body_offset..]).unwrap();
                    view.topics()
                        .flat_map(|topic| topic.partitions().collect::<Vec<_>>())
                        .collect::<Vec<_>>()
                };
                assert_eq!(view(&longer), view(&frame), "{case}");
            }
        }
    });
    each_version(RESPONSES, |api, version, message| {
        let mut maker = Maker::new(1, true);
        maker.bytes.extend(5i32.to_be_bytes());
        if api.response_header_version(version) == 1 {
            maker.bytes.push(0);
        }
        maker.body(message, version);
        let longer = [&maker.bytes[..], &[1, 0, 0]].concat();
        let read = |frame: Vec<u8>| decode_response(api.key, version, Bytes::from(frame));
        assert_eq!(read(longer), read(maker.bytes), "{} v{version}", api.name);
    });
}

/// Issue 7, 2.1: a client of librdkafka 2.1 or newer that asks for all topics.
#[test]
fn librdkafka_asks_for_all_topics_with_three_bytes_too_many() {
    let body = Bytes::from_static(&[0, 0, 0, 0, 1, 0, 0]);
    let Ok(Request::Metadata(request)) = decode_request(3, 13, body) else { panic!("refused") };
    assert_eq!((request.topics, request.allow_auto_topic_creation), (None, false));
}

/// Sets every length, count and size to what an attacker would. What still passes (a null where
/// null is allowed) must be readable; the codec reserves memory by these numbers, so a wrong "yes"
/// here ends the test process.
#[test]
fn a_wrong_length_is_refused() {
    each_version(REQUESTS, |api, version, message| {
        for seed in 0..4 {
            let made = request_frame(api, version, message, seed);
            for (at, size, form) in &made.lengths {
                let wrong: &[(&[u8], bool)] = match form {
                    LengthForm::Int16 => {
                        &[(&[0x7f, 0xff], true), (&[0xff, 0xfe], true), (&[0xff, 0xff], false)]
                    }
                    LengthForm::Int32 => &[
                        (&[0x7f, 0xff, 0xff, 0xff], true),
                        (&[0x80, 0, 0, 0], true),
                        (&[0xff, 0xff, 0xff, 0xff], false),
                    ],
                    LengthForm::Varint => &[
                        (&[0xff, 0xff, 0xff, 0xff, 0x0f], true),
                        (&[0xff, 0xff, 0xff, 0xff, 0x07], true),
                        (&[0xff, 0xff, 0xff, 0xff, 0x1f], true),
                        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], true),
                        (&[0x00], false),
                    ],
                };
                for (value, must_fail) in wrong {
                    let mut frame = made.bytes.clone();
                    frame.splice(*at..*at + *size, value.iter().copied());
                    let case = format!("{} v{version} seed {seed}: {value:x?} at {at}", api.name);
                    match check_request(&frame) {
                        Err(error) => assert!(error.path.len() <= 12, "{case}"),
                        Ok(header) => {
                            assert!(!must_fail, "{case}: passed");
                            let body = Bytes::copy_from_slice(&frame[header.body_offset..]);
                            let _ = decode_checked_request(api.key, version, body);
                        }
                    }
                }
            }
        }
    });
}

/// Random bytes behind a header that is right: no panic, and what passes can be read.
#[test]
fn noise_is_survived() {
    each_version(REQUESTS, |api, version, message| {
        for seed in 0..40 {
            let mut made = request_frame(api, version, message, seed);
            for _ in 0..3 {
                let at = 8 + made.rng.below(made.bytes.len() as u64 - 8);
                made.bytes[at] = made.rng.next() as u8;
            }
            if let Ok(header) = check_request(&made.bytes) {
                let _ = decode_checked_request(
                    api.key,
                    version,
                    Bytes::copy_from_slice(&made.bytes[header.body_offset..]),
                );
            }
        }
    });
}

#[track_caller]
fn check_refused(
    api_key: i16,
    version: i16,
    body: &[u8],
    problem: Problem,
    path: &str,
) -> WireError {
    let error = decode_request(api_key, version, Bytes::copy_from_slice(body)).unwrap_err();
    assert_eq!((&error.problem, error.field_path().as_str()), (&problem, path));
    error
}

/// These four bytes ended the process of a broker that decodes without looking.
#[test]
fn four_bytes_of_metadata_do_no_harm() {
    let error = check_refused(
        3,
        0,
        &[0x7f, 0xff, 0xff, 0xff],
        Problem::CountTooLarge { claimed: 0x7fff_ffff },
        "Topics",
    );
    assert_eq!(
        error.to_string(),
        "Metadata v0: Topics: claims 2147483647 elements (0 bytes left in the frame)"
    );
}

#[test]
fn twenty_million_tagged_fields_are_not_believed() {
    // Metadata v9: no topics, three booleans, then the count.
    check_refused(
        3,
        9,
        &[1, 0, 0, 0, 0x80, 0xda, 0xc4, 0x09],
        Problem::CountTooLarge { claimed: 20_000_000 },
        "",
    );
    // The same number with bytes behind it, every field empty: too many in all.
    let mut body = vec![1, 0, 0, 0, 0x80, 0xda, 0xc4, 0x09];
    body.resize(body.len() + 40_000_000, 0);
    check_refused(3, 9, &body, Problem::TooManyElements { max: ELEMENTS_MAX }, "");
}

/// Read carelessly these are a count of zero topics: the bits above the 32nd fall off, or the sixth
/// byte is not looked at.
#[test]
fn varints_have_at_most_32_bits() {
    check_refused(
        3,
        9,
        &[0x81, 0x80, 0x80, 0x80, 0x10, 0, 0, 0, 0],
        Problem::VarintTooLong,
        "Topics",
    );
    check_refused(
        3,
        9,
        &[0x81, 0x80, 0x80, 0x80, 0x80, 0x00, 0, 0, 0, 0],
        Problem::VarintTooLong,
        "Topics",
    );
    assert_eq!(
        check_request_body(3, 9, &[0x81, 0x80, 0x80, 0x80, 0x00, 0, 0, 0, 0]),
        Ok(()),
        "long, but of 32 bits"
    );
}

#[test]
fn refusals_say_where() {
    // Produce v9: no transactional id, acks, timeout, one topic "t", one partition, records of 100
    // bytes that are not there.
    let body = [0, 0, 1, 0, 0, 0, 9, 2, 2, b't', 2, 0, 0, 0, 0, 101];
    let error = check_refused(
        0,
        9,
        &body,
        Problem::LengthTooLarge { claimed: 100 },
        "TopicData[0].PartitionData[0].Records",
    );
    assert_eq!(error.path[1], Step::Element(0));
    // Metadata v1 with a topic name that is not UTF-8.
    check_refused(3, 1, &[0, 0, 0, 1, 0, 1, 0xff], Problem::NotUtf8, "Topics[0].Name");
    // Metadata v1 with a name of null.
    check_refused(3, 1, &[0, 0, 0, 1, 0xff, 0xff], Problem::Null, "Topics[0].Name");
    check_refused(75, 0, &[1, 0, 0, 0, 9, 0, 0, 0], Problem::NullMark { byte: 0 }, "Cursor");
    // Fetch v14 with the tagged field ReplicaState, which begins with version 15.
    let mut fetch = vec![0u8; 4 + 12 + 1 + 4 + 4];
    fetch.extend([1, 1, 1, 1, 1, 2, 0, 0]);
    check_refused(1, 14, &fetch, Problem::TagOfOtherVersion, "ReplicaState");
    // Fetch v12 with the tagged field ClusterId, a string of two bytes in a field of four.
    let mut fetch = vec![0u8; 4 + 12 + 1 + 4 + 4];
    fetch.extend([1, 1, 1, 1, 0, 4, 3, b'a', b'b', 0]);
    check_refused(1, 12, &fetch, Problem::TagSize { size: 4, used: 3 }, "ClusterId");
}

#[test]
fn unknown_apis_and_versions_are_named() {
    let frame = |key: i16, version: i16| {
        [&key.to_be_bytes()[..], &version.to_be_bytes(), &[0, 0, 0, 1, 0xff, 0xff]].concat()
    };
    let refused = |key, version| check_request(&frame(key, version)).unwrap_err();
    assert_eq!(refused(4, 0).problem, Problem::UnsupportedApi);
    assert_eq!(refused(-1, 0).problem, Problem::UnsupportedApi);
    assert_eq!(
        refused(0, 2).problem,
        Problem::UnsupportedVersion { min: 3, max: 13 },
        "listed, but refused"
    );
    assert_eq!(refused(3, 14).problem, Problem::UnsupportedVersion { min: 0, max: 13 });
    assert_eq!(refused(18, 5).problem, Problem::UnsupportedVersion { min: 0, max: 4 });
    assert_eq!(refused(18, i16::MIN).problem, Problem::UnsupportedVersion { min: 0, max: 4 });
    assert_eq!(
        refused(999, 7).to_string(),
        "API key 999 v7: unknown API key (10 bytes left in the frame)"
    );
    assert_eq!(check_request(&[0, 3, 0]).unwrap_err().api_key, Some(3));
    assert_eq!(check_request(&[]).unwrap_err().api_key, None);
    assert!(check_request_body(0, 2, &[]).is_err());
}

/// Four bytes of a request are a partition that a handler looks at: they count as any element does.
#[test]
fn plain_numbers_of_an_array_are_elements() {
    // DescribeLogDirs v1: one topic "t" with so many partitions.
    let request = |count: usize| {
        let mut frame = vec![0, 35, 0, 1, 0, 0, 0, 7, 0xff, 0xff];
        frame.extend([0, 0, 0, 1, 0, 1, b't']);
        frame.extend(u32::try_from(count).unwrap().to_be_bytes());
        frame.resize(frame.len() + 4 * count, 0);
        frame
    };
    assert_eq!(check_request(&request(1_000)).unwrap().elements, 1_001);
    let error = check_request(&request(ELEMENTS_MAX)).unwrap_err();
    assert_eq!(error.problem, Problem::TooManyElements { max: ELEMENTS_MAX });
}

/// As Apache Kafka's readers, whatever the form of the length: what names a string in an answer, a
/// log line or a key can rely on it.
#[test]
fn a_string_is_at_most_as_long_as_kafkas() {
    // Metadata v9: one topic with a name of so many bytes, no tags, three booleans, no tags.
    let body = |length: u32| {
        let mut body = vec![2];
        body.varint(length + 1);
        body.extend(std::iter::repeat_n(b't', length as usize));
        body.extend([0, 0, 0, 0, 0]);
        body
    };
    assert!(decode_request(3, 9, body(32_767).into()).is_ok());
    let problem = Problem::StringTooLong { claimed: 32_768 };
    check_refused(3, 9, &body(32_768), problem, "Topics[0].Name");
}

#[test]
fn a_text_for_a_message_is_cut_at_a_character() {
    assert_eq!(crate::text("short").as_str(), "short");
    let text = crate::text(&format!("{}é", "a".repeat(32_766)));
    assert_eq!(text.len(), 32_766);
}

/// A client with a Latin-1 letter in its id, group or host was closed for ever.
#[test]
fn text_that_is_not_utf8_is_mended_and_nothing_else() {
    // FindCoordinator v0: a header with a client id, then a group.
    let request = |client: &[u8], group: &[u8]| {
        let mut frame = vec![0, 10, 0, 0, 0, 0, 0, 7];
        for text in [client, group] {
            frame.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
            frame.extend(text);
        }
        frame
    };
    for (client, group, wanted_client, wanted_group) in [
        (&b"caf\xe9"[..], &b"g"[..], &b"caf\x1a"[..], &b"g"[..]),
        (b"ok", b"\xff\xfe\xe2\x82", b"ok", b"\x1a\x1a\x1a\x1a"),
        ("café".as_bytes(), b"a\xe9b", "café".as_bytes(), b"a\x1ab"),
        (b"", b"\xf0\x9f\x98", b"", b"\x1a\x1a\x1a"),
    ] {
        let mut frame = request(client, group);
        assert_eq!(check_request(&frame).unwrap_err().problem, Problem::NotUtf8);
        mend_text(&mut frame);
        assert_eq!(frame, request(wanted_client, wanted_group));
        check_request(&frame).unwrap();
    }
    // What is wrong with anything else stays refused, untouched.
    let mut frame = request(b"caf\xe9", b"group");
    frame.truncate(frame.len() - 1);
    let before = frame.clone();
    mend_text(&mut frame);
    assert_eq!(frame, before);
}
