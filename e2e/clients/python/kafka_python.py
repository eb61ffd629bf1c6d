"""kafka-python, two members in two threads (its consumer sends heartbeats from poll's own thread)."""
import threading

import kafka
from common import *
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, NewTopic
from kafka.structs import OffsetAndMetadata

print("version", kafka.__version__)
admin = KafkaAdminClient(bootstrap_servers=BOOTSTRAP)
admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])
admin.close()


def consumer():
    # Its leader may assign before it knows the topic, and looks again when its metadata is too old:
    # by default after five minutes. A member whose join outlives its poll may never notice that the
    # join was answered, beside Apache Kafka too (3.0.12): the other one hears of it within 200 ms.
    settings = {"session_timeout_ms": 10000, "metadata_max_age_ms": 1000, "heartbeat_interval_ms": 200}
    each = KafkaConsumer(bootstrap_servers=BOOTSTRAP, group_id=GROUP, enable_auto_commit=False, auto_offset_reset="earliest", **settings)
    each.subscribe([TOPIC])
    return each


assignments, position = {}, {"A": {}, "B": {}}
lock, count, stop, failure = threading.Lock(), 0, threading.Event(), []


def member(name):
    global count
    try:
        each = consumer()
        while not stop.is_set():
            for batch in each.poll(timeout_ms=1000).values():
                for record in batch:
                    with lock:
                        if count < HALF:
                            count += 1
                            consumed(1, name, record.partition, record.offset, record.key, record.value, record.headers)
                            position[name][record.partition] = record.offset + 1
            with lock:
                assignments[name] = [part.partition for part in each.assignment()]
        each.commit({TopicPartition(TOPIC, part): OffsetAndMetadata(at, "", -1) for part, at in position[name].items()})
        for part in position[name]:
            event("committed", part, each.committed(TopicPartition(TOPIC, part)))
        each.close(autocommit=False)
    except Exception as error:  # the main thread reports it
        failure.append(error)
        raise


threads = [threading.Thread(target=member, args=(name,), daemon=True) for name in "AB"]
for each in threads:
    each.start()


def wait(condition, doing):
    while True:
        with lock:
            if condition():
                return
        if failure:
            raise SystemExit(f"{doing}: {failure[0]!r}")
        in_time(doing)
        time.sleep(0.05)


wait(lambda: shared_out(assignments), "two members join")
for name, parts in assignments.items():
    event("assigned", name, ",".join(map(str, parts)))

for codec, records in by_codec([None, "gzip", "lz4", "snappy", "zstd"]):
    producer = KafkaProducer(bootstrap_servers=BOOTSTRAP, acks="all", enable_idempotence=True, compression_type=codec, linger_ms=5)
    futures = [(seq, producer.send(TOPIC, value, key, headers)) for seq, key, value, headers in records]
    producer.flush(30)
    for seq, future in futures:
        result = future.get(30)
        event("produced", seq, result.partition, result.offset)
    producer.close()

wait(lambda: count >= HALF and all(position.values()), "the group consumes")
stop.set()
for each in threads:
    each.join(30)
if failure:
    raise SystemExit(repr(failure[0]))

last = consumer()
while count < len(RECORDS):
    in_time("consumption resumes")
    for batch in last.poll(timeout_ms=200).values():
        for record in batch:
            count += 1
            consumed(2, "C", record.partition, record.offset, record.key, record.value, record.headers)
last.close(autocommit=False)

# The other calls.
admin = KafkaAdminClient(bootstrap_servers=BOOTSTRAP)
found = [topic for topic in admin.describe_topics() if TOPIC in (topic.get("topic"), topic.get("name"))]
called("list", len(found[0]["partitions"]) if TOPIC in admin.list_topics() and found else "not there")
resource = ConfigResource(ConfigResourceType.TOPIC, TOPIC, configs=None)
described = admin.describe_configs([resource], config_filter="all")
called("config", next(iter(described.values()))[TOPIC]["retention.ms"]["value"])


def fill(count):
    producer = KafkaProducer(bootstrap_servers=BOOTSTRAP)
    futures = [producer.send(CALLS_TOPIC, b"%d" % i, timestamp_ms=CALLS_START + 1000 * i) for i in range(count)]
    for future in futures:
        future.get(30)
    producer.close()


def drain(each, count, doing):
    offsets = []
    while len(offsets) < count:
        in_time(doing)
        offsets += [record.offset for batch in each.poll(timeout_ms=100).values() for record in batch]
    return offsets


admin.create_topics([NewTopic(CALLS_TOPIC, 1, 1)])
fill(5)
each = KafkaConsumer(bootstrap_servers=BOOTSTRAP, group_id=GROUP + "-calls", auto_offset_reset="earliest", metadata_max_age_ms=1000)
each.subscribe(pattern=PATTERN)
called("pattern", len(drain(each, 5, "a pattern is consumed")))
part = TopicPartition(CALLS_TOPIC, 0)
called("time", each.offsets_for_times({part: CALLS_START + 2500})[part].offset)
each.close()
admin.delete_topics([CALLS_TOPIC])
admin.create_topics([NewTopic(CALLS_TOPIC, 1, 1)])
fill(3)
each = KafkaConsumer(bootstrap_servers=BOOTSTRAP)
each.assign([part])
each.seek(part, 0)
recreated(drain(each, 3, "a topic that was made again is consumed"))
each.close()
admin.close()
