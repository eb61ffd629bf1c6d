"""librdkafka through confluent-kafka."""
from common import *
from confluent_kafka import Consumer, Producer, TopicPartition, libversion, version
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

print("version", version(), "librdkafka", libversion()[0])
admin = AdminClient({"bootstrap.servers": BOOTSTRAP})
admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])[TOPIC].result(30)


def consumer():
    return Consumer({"bootstrap.servers": BOOTSTRAP, "group.id": GROUP, "enable.auto.commit": False, "auto.offset.reset": "earliest", "session.timeout.ms": 10000})


members = {"A": consumer(), "B": consumer()}
assignments = {}


def pump(handle):
    for name, each in members.items():
        message = each.poll(0.05)
        if message is not None and message.error() is None:
            handle(name, message)
        elif message is not None and not message.error().retriable():
            raise SystemExit(message.error())


for each in members.values():
    each.subscribe([TOPIC])
while not shared_out(assignments):
    in_time("two members join")
    pump(lambda name, message: None)
    assignments = {name: [part.partition for part in each.assignment()] for name, each in members.items()}
for name, parts in assignments.items():
    event("assigned", name, ",".join(map(str, parts)))

for codec, records in by_codec(["none", "gzip", "snappy", "lz4", "zstd"]):
    producer = Producer({"bootstrap.servers": BOOTSTRAP, "enable.idempotence": True, "compression.type": codec, "linger.ms": 5})

    def delivered(seq):
        def callback(error, message):
            if error is not None:
                raise SystemExit(f"record {seq}: {error}")
            event("produced", seq, message.partition(), message.offset())

        return callback

    for seq, key, value, headers in records:
        producer.produce(TOPIC, value, key, headers=headers, on_delivery=delivered(seq))
        producer.poll(0)
    if producer.flush(30):
        raise SystemExit("records were not acknowledged in time")

position, count = {}, 0


def first(name, message):
    global count
    if count < HALF:
        count += 1
        consumed(1, name, message.partition(), message.offset(), message.key(), message.value(), message.headers())
        position[(name, message.partition())] = message.offset() + 1


while count < HALF or len({name for name, _ in position}) < 2:
    in_time("the group consumes")
    pump(first)
for name, each in members.items():
    offsets = [TopicPartition(TOPIC, part, at) for (owner, part), at in position.items() if owner == name]
    for part in each.commit(offsets=offsets, asynchronous=False):
        event("committed", part.partition, part.offset)
    each.close()

members = {"C": consumer()}
members["C"].subscribe([TOPIC])


def rest(name, message):
    global count
    count += 1
    consumed(2, name, message.partition(), message.offset(), message.key(), message.value(), message.headers())


while count < len(RECORDS):
    in_time("consumption resumes")
    pump(rest)
members["C"].close()

# The other calls.
called("list", len(admin.list_topics(timeout=30).topics[TOPIC].partitions))
resource = ConfigResource(ConfigResource.Type.TOPIC, TOPIC)
called("config", admin.describe_configs([resource])[resource].result(30)["retention.ms"].value)


def fill(count):
    producer = Producer({"bootstrap.servers": BOOTSTRAP, "topic.metadata.refresh.fast.interval.ms": 50})
    for i in range(count):
        producer.produce(CALLS_TOPIC, b"%d" % i, timestamp=CALLS_START + 1000 * i)
    if producer.flush(30):
        raise SystemExit("the records of the other calls were not acknowledged in time")


def drain(each, count, doing):
    offsets = []
    while len(offsets) < count:
        in_time(doing)
        message = each.poll(0.1)
        if message is not None and message.error() is None:
            offsets.append(message.offset())
    return offsets


admin.create_topics([NewTopic(CALLS_TOPIC, 1, 1)])[CALLS_TOPIC].result(30)
fill(5)
GROUP += "-calls"
each = consumer()
each.subscribe([PATTERN])
called("pattern", len(drain(each, 5, "a pattern is consumed")))
called("time", each.offsets_for_times([TopicPartition(CALLS_TOPIC, 0, CALLS_START + 2500)], timeout=30)[0].offset)
each.close()
admin.delete_topics([CALLS_TOPIC])[CALLS_TOPIC].result(30)
admin.create_topics([NewTopic(CALLS_TOPIC, 1, 1)])[CALLS_TOPIC].result(30)
fill(3)
each = consumer()
each.assign([TopicPartition(CALLS_TOPIC, 0, 0)])
recreated(drain(each, 3, "a topic that was made again is consumed"))
each.close()
