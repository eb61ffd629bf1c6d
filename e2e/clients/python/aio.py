"""aiokafka."""
import asyncio

import aiokafka
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
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


asyncio.run(main())
