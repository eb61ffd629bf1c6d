//! Bounds on what clients together make a broker hold: what is above them waits or is refused, and
//! is served later.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use common::{
    Broker, PATIENCE, PRODUCE_VERSION, ask, ask_for_topic, free_port, http_get, is_closed,
    produce_request, produced, read_answer, topic_name,
};
use kafka_protocol::messages as m;
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::batch::{BatchBuilder, Compression};
use letterbox_protocol::{Response, apis, encode_request};

fn greet(client: &mut TcpStream) {
    ask(client, 0, m::ApiVersionsRequest::default());
}

#[test]
fn a_connection_above_max_connections_is_refused_until_one_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "max.connections=2");
    let (mut leaves, mut stays) = (broker.connect(), broker.connect());
    greet(&mut leaves);
    greet(&mut stays);
    let mut third = broker.connect();
    let line = broker.wait_for_line("connection refused");
    assert!(
        line.contains(&third.local_addr().unwrap().to_string()) && line.contains("max.connections"),
        "{line}"
    );
    assert!(is_closed(&mut third));
    drop(leaves);
    // The broker sees in its own time that a client is gone.
    let deadline = Instant::now() + PATIENCE;
    let ask_for_versions =
        encode_request(7, None, 0, &m::ApiVersionsRequest::default().into()).unwrap();
    loop {
        let mut next = broker.connect();
        if next.write_all(&ask_for_versions).is_ok() && next.read_exact(&mut [0; 4]).is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "no place is free");
    }
    greet(&mut stays);
}

/// One that takes all of the memory and does not go on stops neither small requests nor large ones:
/// it is closed as soon as others wait for what it holds.
#[test]
fn a_large_request_that_does_not_go_on_stops_no_other() {
    const MEMORY: f64 = 1_048_576.0;
    let dir = tempfile::tempdir().unwrap();
    let admin = free_port();
    let broker = Broker::start(
        dir.path(),
        &format!("queued.max.request.bytes={MEMORY}\nadmin.listener=127.0.0.1:{admin}"),
    );
    let wait_for_memory = |enough: fn(f64) -> bool| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, metrics) = http_get(admin, "/metrics");
            let line = metrics
                .lines()
                .find_map(|line| line.strip_prefix("letterbox_request_memory_free_bytes "));
            if enough(line.unwrap().parse().unwrap()) {
                break;
            }
            assert!(Instant::now() < deadline, "{line:?}");
        }
    };
    let mut small = broker.connect();
    assert_eq!(ask_for_topic(&mut small, "orders"), 0);
    let large = encode_request(
        7,
        None,
        PRODUCE_VERSION,
        &produce_request("orders", &[b'x'; 900_000]).into(),
    )
    .unwrap();
    let mut clients: Vec<TcpStream> = (0..4).map(|_| broker.connect()).collect();
    clients.iter_mut().for_each(greet);
    let (first, others) = clients.split_first_mut().unwrap();
    first.write_all(&large[..large.len() - 1000]).unwrap();
    wait_for_memory(|free| free < MEMORY / 4.0);
    std::thread::scope(|scope| {
        for other in others.iter() {
            let (mut other, large) = (other.try_clone().unwrap(), &large);
            scope.spawn(move || other.write_all(large).unwrap());
        }
        // The four go at once, and which of them is appended first is nobody's promise.
        let mut offsets =
            vec![produced(ask(&mut small, PRODUCE_VERSION, produce_request("orders", b"small")))];
        offsets.extend(
            others
                .iter_mut()
                .map(|client| produced(read_answer(client, PRODUCE_VERSION, apis::PRODUCE))),
        );
        offsets.sort_unstable();
        assert_eq!(offsets, [(0, 0), (0, 1), (0, 2), (0, 3)]);
    });
    assert!(is_closed(first));
    wait_for_memory(|free| free == MEMORY);
}

/// Memory that a broker holds now.
fn resident_bytes(broker: &Broker) -> usize {
    let status = format!("/proc/{}/status", broker.pid().as_raw_nonzero());
    let status = std::fs::read_to_string(status).unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
    kib.unwrap().trim().parse::<usize>().unwrap() * 1024
}

/// Each kept the memory of its largest request, which the account took for given back: three of
/// them ended a broker in a container of 512 MiB.
#[test]
fn connections_that_sent_a_large_request_hold_nothing_of_it() {
    const CLIENTS: usize = 8;
    const BYTES: usize = 64 << 20;
    let dir = tempfile::tempdir().unwrap();
    let admin = free_port();
    let broker = Broker::start(dir.path(), &format!("admin.listener=127.0.0.1:{admin}"));
    let request = produce_request("nowhere", &vec![0; BYTES]).into();
    let request = encode_request(7, None, PRODUCE_VERSION, &request).unwrap();
    let before = resident_bytes(&broker);
    let mut clients: Vec<TcpStream> = (0..CLIENTS).map(|_| broker.connect()).collect();
    for client in &mut clients {
        client.write_all(&request).unwrap();
        assert_eq!(produced(read_answer(client, PRODUCE_VERSION, apis::PRODUCE)).0, 3);
    }
    wait_until(admin, "letterbox_client_memory_used_bytes ", "none", |used| used == 0.0);
    // The allocator keeps about what one of them took for the next one.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let more = resident_bytes(&broker).saturating_sub(before);
        if more < CLIENTS * BYTES / 2 {
            break;
        }
        assert!(Instant::now() < deadline, "{more} bytes are still held");
    }
    clients.iter_mut().for_each(greet);
}

/// A JoinGroup may wait for days, and four of them took the memory for requests.
#[test]
fn a_join_that_waits_for_its_group_holds_no_memory_of_requests() {
    const MEMORY: f64 = 1_048_576.0;
    let dir = tempfile::tempdir().unwrap();
    let admin = free_port();
    let broker = Broker::start(
        dir.path(),
        &format!(
            "queued.max.request.bytes={MEMORY}\nadmin.listener=127.0.0.1:{admin}\n\
             group.initial.rebalance.delay.ms=600000"
        ),
    );
    let mut client = broker.connect();
    ask_for_topic(&mut client, "orders");
    // Makes the topic of the coordinator, which may take a moment.
    let deadline = Instant::now() + PATIENCE;
    let find = || {
        let keys = vec![StrBytes::from_static_str("g")];
        m::FindCoordinatorRequest::default().with_coordinator_keys(keys)
    };
    loop {
        let Response::FindCoordinator(found) = ask(&mut client, 4, find()) else { panic!() };
        if found.coordinators[0].error_code == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "no coordinator: {found:?}");
    }
    let protocol = m::join_group_request::JoinGroupRequestProtocol::default()
        .with_name(StrBytes::from_static_str("range"))
        .with_metadata(vec![b'x'; 200_000].into());
    let join = m::JoinGroupRequest::default()
        .with_group_id(m::GroupId(StrBytes::from_static_str("g")))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(i32::MAX)
        .with_protocol_type(StrBytes::from_static_str("consumer"))
        .with_protocols(vec![protocol]);
    let join = encode_request(7, None, 1, &join.into()).unwrap();
    let mut waiting: Vec<TcpStream> = (0..6).map(|_| broker.connect()).collect();
    for client in &mut waiting {
        greet(client);
        client.write_all(&join).unwrap();
    }
    let groups = "letterbox_group_members_memory_bytes ";
    wait_until(admin, groups, "that of six members", |held| held > 1_200_000.0);
    let free = "letterbox_request_memory_free_bytes ";
    wait_until(admin, free, "all of it", |free| free == MEMORY);
    let large = produce_request("orders", &[b'x'; 500_000]);
    assert_eq!(produced(ask(&mut client, PRODUCE_VERSION, large)), (0, 0));
}

/// 100,000 times the same name would be an answer of some hundred megabytes.
#[test]
fn what_is_asked_for_many_times_is_answered_once() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "num.partitions=50");
    let mut client = broker.connect();
    assert_eq!(ask_for_topic(&mut client, "orders"), 0);

    let topic =
        m::metadata_request::MetadataRequestTopic::default().with_name(Some(topic_name("orders")));
    let unknown =
        m::metadata_request::MetadataRequestTopic::default().with_name(Some(topic_name("unknown")));
    let mut asked = vec![topic; 100_000];
    asked.extend(vec![unknown; 10]);
    let request = m::MetadataRequest::default()
        .with_topics(Some(asked))
        .with_allow_auto_topic_creation(false);
    let Response::Metadata(answer) = ask(&mut client, 8, request) else { unreachable!() };
    let errors: Vec<i16> = answer.topics.iter().map(|topic| topic.error_code).collect();
    assert_eq!((errors, answer.topics[0].partitions.len()), (vec![0, 3], 50));

    let resource = m::describe_configs_request::DescribeConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name("orders".into());
    let request = m::DescribeConfigsRequest::default().with_resources(vec![resource; 1_000]);
    let Response::DescribeConfigs(answer) = ask(&mut client, 4, request) else { unreachable!() };
    assert_eq!(answer.results.len(), 1);

    let partition = m::list_offsets_request::ListOffsetsPartition::default()
        .with_partition_index(1)
        .with_timestamp(-1);
    let topic = m::list_offsets_request::ListOffsetsTopic::default()
        .with_name(topic_name("orders"))
        .with_partitions(vec![partition; 3]);
    let request =
        m::ListOffsetsRequest::default().with_replica_id(m::BrokerId(-1)).with_topics(vec![topic]);
    let Response::ListOffsets(answer) = ask(&mut client, 7, request) else { unreachable!() };
    let errors: Vec<i16> =
        answer.topics[0].partitions.iter().map(|partition| partition.error_code).collect();
    assert_eq!(errors, [0, 42, 42]);

    let Response::Fetch(answer) = ask(&mut client, 11, fetch_request("orders", 5, 0)) else {
        unreachable!()
    };
    assert_eq!(answer.responses[0].partitions.len(), 1);
}

/// Asks for partition 0 of `topic` as many times.
fn fetch_request(topic: &'static str, times: usize, max_wait_ms: i32) -> m::FetchRequest {
    let partition = m::fetch_request::FetchPartition::default()
        .with_partition(0)
        .with_partition_max_bytes(1_000_000);
    let topic = m::fetch_request::FetchTopic::default()
        .with_topic(topic_name(topic))
        .with_partitions(vec![partition; times]);
    m::FetchRequest::default()
        .with_max_wait_ms(max_wait_ms)
        .with_min_bytes(1)
        .with_max_bytes(1_000_000)
        .with_topics(vec![topic])
}

/// The sizes of batches that lie one behind the other.
fn batch_sizes(mut records: &[u8]) -> Vec<usize> {
    let mut sizes = Vec::new();
    while let Some(len) = records.get(8..12) {
        let size = 12 + u32::from_be_bytes(len.try_into().unwrap()) as usize;
        sizes.push(size);
        records = &records[size..];
    }
    sizes
}

/// Each piece of a file in an answer keeps that file open until the answer is read. One Fetch of
/// many partitions that are made of small segments had 64 of them for each.
#[test]
fn an_answer_is_made_of_so_many_files_and_the_next_one_goes_on() {
    const PARTITIONS: i32 = 6;
    const BATCHES: usize = 70;
    let dir = tempfile::tempdir().unwrap();
    // Each batch has a segment of its own.
    let settings = format!("num.partitions={PARTITIONS}\nlog.index.size.max.bytes=4");
    let broker = Broker::start(dir.path(), &settings);
    let mut client = broker.connect();
    assert_eq!(ask_for_topic(&mut client, "orders"), 0);
    let mut request = produce_request("orders", b"a record");
    let one = request.topic_data[0].partition_data[0].clone();
    request.topic_data[0].partition_data =
        (0..PARTITIONS).map(|index| one.clone().with_index(index)).collect();
    for at in 0..BATCHES {
        let answer = produced(ask(&mut client, PRODUCE_VERSION, request.clone()));
        assert_eq!(answer, (0, i64::try_from(at).unwrap()));
    }
    drop(client);
    // Nothing is in its cache.
    let broker = broker.stop_and_restart();
    let mut client = broker.connect();
    let mut next = vec![0_usize; PARTITIONS as usize];
    let mut answers = Vec::new();
    while next.iter().any(|at| *at < BATCHES) {
        let mut request = fetch_request("orders", 1, 1_000);
        let one = request.topics[0].partitions[0].clone();
        let asked = |(index, at): (usize, &usize)| {
            one.clone().with_partition(index as i32).with_fetch_offset(*at as i64)
        };
        request.topics[0].partitions = next.iter().enumerate().map(asked).collect();
        let request = request.with_max_bytes(50_000_000).with_min_bytes(1_000_000);
        let Response::Fetch(answer) = ask(&mut client, 11, request) else { unreachable!() };
        let mut batches = 0;
        for partition in &answer.responses[0].partitions {
            let sizes = batch_sizes(partition.records.as_deref().unwrap_or_default());
            next[partition.partition_index as usize] += sizes.len();
            // A partition has so many of them at once.
            assert!(sizes.len() <= 64, "{}", sizes.len());
            batches += sizes.len();
        }
        answers.push(batches);
    }
    // How far a partition is read depends on which of its files are open at that moment, too.
    assert!(answers.iter().all(|files| *files <= 256), "{answers:?}");
    assert_eq!(next, [BATCHES; PARTITIONS as usize]);
}

/// A value of `/metrics` on the admin port: the line's name with its labels.
fn metric(admin: u16, name: &str) -> Option<f64> {
    let (_, metrics) = http_get(admin, "/metrics");
    metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn wait_until(admin: u16, name: &str, expected: &str, is_expected: impl Fn(f64) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !metric(admin, name).is_some_and(&is_expected) {
        assert!(
            Instant::now() < deadline,
            "{name} is {:?} and not {expected}",
            metric(admin, name)
        );
    }
}

#[test]
fn a_client_that_leaves_while_its_fetch_waits_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let admin = free_port();
    let broker = Broker::start(dir.path(), &format!("admin.listener=127.0.0.1:{admin}"));
    let wait_for = |name: &str, value: f64| {
        wait_until(admin, name, &value.to_string(), |found| found == value)
    };
    assert_eq!(ask_for_topic(&mut broker.connect(), "orders"), 0);
    wait_for("kafka_server_socket_server_metrics_connection_count", 0.0);
    let fetch = encode_request(7, None, 11, &fetch_request("orders", 1, 600_000).into()).unwrap();
    for (round, more) in [0, 42_000].into_iter().enumerate() {
        let mut client = broker.connect();
        // The second time with more behind it than the broker reads meanwhile.
        client.write_all(&[&fetch[..], &fetch.repeat(more / fetch.len())].concat()).unwrap();
        let begun = (round + 1) as f64;
        wait_for("kafka_network_requestmetrics_requests_total{request=\"Fetch\"}", begun);
        assert_eq!(metric(admin, "kafka_server_socket_server_metrics_connection_count"), Some(1.0));
        drop(client);
        wait_for("kafka_server_socket_server_metrics_connection_count", 0.0);
        wait_for("letterbox_client_memory_used_bytes", 0.0);
    }
}

/// Of 20 records, which take long to validate.
fn unpacks_to_much() -> bytes::Bytes {
    let mut large = BatchBuilder::new(1_700_000_000_000);
    for _ in 0..20 {
        large.push(1_700_000_000_000, None, Some(&vec![0; 1 << 20]), &[]);
    }
    let packed = zstd::encode_all(large.records(), 3).unwrap();
    let large = large.build_with(Compression::Zstd, &packed);
    assert!(large.len() < 64 * 1024, "{} bytes would not be tried at once", large.len());
    large.freeze()
}

/// A Produce to "orders", as it is sent: `records`, or a small one.
fn produce(acks: i16, records: Option<bytes::Bytes>) -> bytes::Bytes {
    let mut request = produce_request("orders", b"small").with_acks(acks);
    let partition = &mut request.topic_data[0].partition_data[0];
    partition.records = records.or(partition.records.take());
    encode_request(7, None, PRODUCE_VERSION, &request.into()).unwrap()
}

/// As in Kafka: with `acks=0` nobody would ever learn that it was not.
#[test]
fn what_a_client_sent_before_it_left_is_carried_out_also_behind_a_request_that_waits() {
    let dir = tempfile::tempdir().unwrap();
    let admin = free_port();
    let broker = Broker::start(dir.path(), &format!("admin.listener=127.0.0.1:{admin}"));
    let mut client = broker.connect();
    assert_eq!(ask_for_topic(&mut client, "orders"), 0);
    let fetch = fetch_request("orders", 1, 600_000);
    let fetch = encode_request(7, None, 11, &fetch.into()).unwrap();
    let (zero, all) = (produce(0, None), produce(-1, None));
    let large = produce(0, Some(unpacks_to_much()));
    let (mut end, mut sent) = (0, 0.0);
    // The Fetch finds nothing in the first round only.
    for (waits, produces, records) in
        [(&fetch[..], 0.0, 0), (&large, 1.0, 20), (&[&*large, &all].concat(), 2.0, 21)]
    {
        let mut client = broker.connect();
        client.write_all(waits).unwrap();
        // Some of it is more than the broker reads meanwhile.
        client.write_all(&[zero.repeat(400), all.repeat(400)].concat()).unwrap();
        drop(client);
        // That all of it has come; it may not even have been accepted yet.
        sent += produces + 800.0;
        let requests = "kafka_network_requestmetrics_requests_total{request=\"Produce\"}";
        wait_until(admin, requests, &sent.to_string(), |count| count == sent);
        let open = "kafka_server_socket_server_metrics_connection_count";
        wait_until(admin, open, "1", |count| count == 1.0);
        end += records + 800;
        let answer = ask(&mut broker.connect(), PRODUCE_VERSION, produce_request("orders", b"x"));
        assert_eq!(produced(answer), (0, end));
        (end, sent) = (end + 1, sent + 1.0);
        wait_until(admin, open, "1", |count| count == 1.0);
    }
}

/// Clients that have left many small requests which cost much: others are served between them, and
/// a stop waits for none of them.
#[test]
fn what_clients_sent_before_they_left_holds_up_neither_others_nor_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let admin = free_port();
    let mut broker = Broker::start(dir.path(), &format!("admin.listener=127.0.0.1:{admin}"));
    let mut honest = broker.connect();
    let broker_configs = m::describe_configs_request::DescribeConfigsResource::default()
        .with_resource_type(4)
        .with_resource_name(StrBytes::from_static_str("1"))
        .with_configuration_keys(None);
    let request = m::DescribeConfigsRequest::default().with_resources(vec![broker_configs]);
    let request = encode_request(1, None, 4, &request.into()).unwrap();
    let all = request.repeat(600);
    let clients: Vec<_> = (0..30).map(|_| broker.connect()).collect();
    for mut client in clients {
        // The last of it may be more than the broker takes.
        let _ = client.write_all(&all);
    }
    let name = "kafka_network_requestmetrics_requests_total{request=\"DescribeConfigs\"}";
    wait_until(admin, name, "some", |count| count > 0.0);
    greet(&mut honest);
    let started = metric(admin, name).unwrap();
    assert!(started < 3_000.0, "{started} of 18,000 requests were started before another client's");
    let took = broker.stop();
    assert!(took < PATIENCE / 6, "{took:?}");
}

/// A batch that unpacks to much is validated apart from the connection, and what follows it still
/// comes after it.
#[test]
fn the_order_of_a_connection_holds_when_a_batch_takes_long_to_validate() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut client = broker.connect();
    assert_eq!(ask_for_topic(&mut client, "orders"), 0);
    let (small, large) = (produce(-1, None), produce(-1, Some(unpacks_to_much())));
    client.write_all(&[&small[..], &large, &small, &large, &small].concat()).unwrap();
    let offsets: Vec<(i16, i64)> = (0..5)
        .map(|_| produced(read_answer(&mut client, PRODUCE_VERSION, apis::PRODUCE)))
        .collect();
    assert_eq!(offsets, [(0, 0), (0, 1), (0, 21), (0, 22), (0, 42)]);
    // Found by time without unpacking it into memory.
    let partition = m::list_offsets_request::ListOffsetsPartition::default().with_timestamp(-3);
    let topic = m::list_offsets_request::ListOffsetsTopic::default()
        .with_name(topic_name("orders"))
        .with_partitions(vec![partition]);
    let request =
        m::ListOffsetsRequest::default().with_replica_id(m::BrokerId(-1)).with_topics(vec![topic]);
    let Response::ListOffsets(answer) = ask(&mut client, 7, request) else { unreachable!() };
    assert_eq!(
        (answer.topics[0].partitions[0].error_code, answer.topics[0].partitions[0].offset),
        (0, 0)
    );
}

#[test]
fn an_answer_that_is_never_read_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let admin = free_port();
    let broker = Broker::start(
        dir.path(),
        &format!("admin.listener=127.0.0.1:{admin}\nconnections.max.idle.ms=1000"),
    );
    let mut client = broker.connect();
    greet(&mut client);
    let resource = m::describe_configs_request::DescribeConfigsResource::default()
        .with_resource_type(4)
        .with_resource_name("1".into());
    let request = m::DescribeConfigsRequest::default()
        .with_resources(vec![resource])
        .with_include_documentation(true);
    let request = encode_request(7, None, 4, &request.into()).unwrap();
    // Until the broker reads no more, because its answers find no room in the sockets.
    client.set_write_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
    let many = request.repeat(100);
    while client.write_all(&many).is_ok() {}
    let deadline = Instant::now() + PATIENCE;
    while !http_get(admin, "/metrics")
        .1
        .contains("letterbox_connections_closed_total{reason=\"unread_answer\"} 1")
    {
        assert!(Instant::now() < deadline, "the connection is kept");
    }
}

/// Both kinds of answers that have a way of their own count while they are not read. A request
/// behind them goes on meanwhile: it may have a turn or a lock that others wait for.
#[test]
fn an_answer_that_is_not_read_counts_and_holds_up_no_other_client() {
    const PARTITIONS: usize = 300_000;
    let dir = tempfile::tempdir().unwrap();
    let admin = free_port();
    let broker = Broker::start(dir.path(), &format!("admin.listener=127.0.0.1:{admin}"));
    let wait_for = |name: &str, least: usize| {
        wait_until(admin, name, &format!("at least {least}"), |found| found >= least as f64)
    };
    let mut honest = broker.connect();
    assert_eq!(ask_for_topic(&mut honest, "orders"), 0);

    // One record that is to be made durable, and an answer that finds no room in the sockets.
    let mut large = produce_request("orders", b"small");
    let nothing = m::produce_request::PartitionProduceData::default();
    let unknown = m::produce_request::TopicProduceData::default().with_name(topic_name("unknown"));
    let unknown = unknown.with_partition_data(
        (0..PARTITIONS).map(|index| nothing.clone().with_index(index as i32)).collect(),
    );
    large.topic_data.push(unknown);
    let large = encode_request(7, None, PRODUCE_VERSION, &large.into()).unwrap();
    let mut slow = BatchBuilder::new(1_700_000_000_000);
    for _ in 0..20 {
        slow.push(1_700_000_000_000, None, Some(&vec![0; 1 << 20]), &[]);
    }
    let packed = zstd::encode_all(slow.records(), 3).unwrap();
    let mut slow_request = produce_request("orders", b"");
    slow_request.topic_data[0].partition_data[0].records =
        Some(slow.build_with(Compression::Zstd, &packed).freeze());
    let slow = encode_request(7, None, PRODUCE_VERSION, &slow_request.clone().into()).unwrap();
    let unread: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut client = broker.connect();
            greet(&mut client);
            client.write_all(&[&large[..], &slow].concat()).unwrap();
            client
        })
        .collect();
    // All large ones are in the log, so what they took decoded is gone; their answers take 33 bytes
    // for each partition.
    let refused = "kafka_network_requestmetrics_errors_total{request=\"Produce\",error=\"UNKNOWN_TOPIC_OR_PARTITION\"}";
    wait_for(refused, unread.len() * PARTITIONS);
    wait_for("letterbox_client_memory_used_bytes", unread.len() * PARTITIONS * 33);
    assert_eq!(produced(ask(&mut honest, PRODUCE_VERSION, slow_request)).0, 0);
    drop(unread);

    let partition = m::fetch_request::FetchPartition::default()
        .with_partition(0)
        .with_partition_max_bytes(1_000_000);
    let topic = m::fetch_request::FetchTopic::default()
        .with_topic(topic_name("unknown"))
        .with_partitions(vec![partition; PARTITIONS]);
    let fetch = m::FetchRequest::default().with_max_bytes(1_000_000).with_topics(vec![topic]);
    let mut unread = broker.connect();
    greet(&mut unread);
    unread.write_all(&encode_request(7, None, 11, &fetch.into()).unwrap()).unwrap();
    wait_for("letterbox_request_duration_seconds_count{request=\"Fetch\"}", 1);
    wait_for("letterbox_client_memory_used_bytes", PARTITIONS * 42);
}
