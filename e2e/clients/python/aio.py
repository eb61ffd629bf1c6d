"""aiokafka."""
import asyncio

import aiokafka
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from common import *


async def consumer():
    each = AIOKafkaConsumer(TOPIC, bootstrap_servers=BOOTSTRAP, group_id=GROUP, enable_auto_commit=False, auto_offset_reset="earliest", session_timeout_ms=10000)
    await each.start()
    return each


async def take(each, limit, handle):
    for batch in (await each.getmany(timeout_ms=100)).values():
        for record in batch:
            if limit():
                handle(record)


async def main():
    print("version", aiokafka.__version__)
    admin = AIOKafkaAdminClient(bootstrap_servers=BOOTSTRAP)
    await admin.start()
    await admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])
    await admin.close()

    members = dict(zip("AB", await asyncio.gather(consumer(), consumer())))
    assignments = {}
    while not shared_out(assignments):
        in_time("two members join")
        await asyncio.gather(*(each.getmany(timeout_ms=100) for each in members.values()))
        assignments = {name: [part.partition for part in each.assignment()] for name, each in members.items()}
    for name, parts in assignments.items():
        event("assigned", name, ",".join(map(str, parts)))

    for codec, records in by_codec([None, "gzip", "snappy", "lz4", "zstd"]):
        producer = AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, enable_idempotence=True, compression_type=codec, linger_ms=5)
        await producer.start()
        sent = [(seq, await producer.send(TOPIC, value, key, headers=headers)) for seq, key, value, headers in records]
        for seq, future in sent:
            result = await future
            event("produced", seq, result.partition, result.offset)
        await producer.stop()

    count, position = 0, {"A": {}, "B": {}}

    def first(name):
        def handle(record):
            nonlocal count
            count += 1
            consumed(1, name, record.partition, record.offset, record.key, record.value, record.headers)
            position[name][record.partition] = record.offset + 1

        return handle

    while count < HALF or not all(position.values()):
        in_time("the group consumes")
        for name, each in members.items():
            await take(each, lambda: count < HALF, first(name))
    for name, each in members.items():
        await each.commit({TopicPartition(TOPIC, part): at for part, at in position[name].items()})
        for part in position[name]:
            event("committed", part, await each.committed(TopicPartition(TOPIC, part)))
    await asyncio.gather(*(each.stop() for each in members.values()))

    def rest(record):
        nonlocal count
        count += 1
        consumed(2, "C", record.partition, record.offset, record.key, record.value, record.headers)

    last = await consumer()
    while count < len(RECORDS):
        in_time("consumption resumes")
        await take(last, lambda: True, rest)
    await last.stop()
    await other_calls()


async def fill(count):
    producer = AIOKafkaProducer(bootstrap_servers=BOOTSTRAP)
    await producer.start()
    for i in range(count):
        await producer.send_and_wait(CALLS_TOPIC, b"%d" % i, timestamp_ms=CALLS_START + 1000 * i)
    await producer.stop()


async def drain(each, count, doing):
    offsets = []
    while len(offsets) < count:
        in_time(doing)
        await take(each, lambda: True, lambda record: offsets.append(record.offset))
    return offsets


async def other_calls():
    admin = AIOKafkaAdminClient(bootstrap_servers=BOOTSTRAP)
    await admin.start()
    found = [topic for topic in await admin.describe_topics() if topic["topic"] == TOPIC]
    called("list", len(found[0]["partitions"]) if TOPIC in await admin.list_topics() and found else "not there")
    (response,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, TOPIC)])
    called("config", next(entry[1] for entry in response.resources[0][4] if entry[0] == "retention.ms"))

    await admin.create_topics([NewTopic(CALLS_TOPIC, 1, 1)])
    await fill(5)
    each = AIOKafkaConsumer(bootstrap_servers=BOOTSTRAP, group_id=GROUP + "-calls", auto_offset_reset="earliest", metadata_max_age_ms=1000)
    each.subscribe(pattern=PATTERN)
    await each.start()
    called("pattern", len(await drain(each, 5, "a pattern is consumed")))
    part = TopicPartition(CALLS_TOPIC, 0)
    called("time", (await each.offsets_for_times({part: CALLS_START + 2500}))[part].offset)
    await each.stop()
    await admin.delete_topics([CALLS_TOPIC])
    await admin.create_topics([NewTopic(CALLS_TOPIC, 1, 1)])
    await fill(3)
    each = AIOKafkaConsumer(bootstrap_servers=BOOTSTRAP)
    await each.start()
    each.assign([part])
    each.seek(part, 0)
    recreated(await drain(each, 3, "a topic that was made again is consumed"))
    await each.stop()
    await admin.close()


asyncio.run(main())
