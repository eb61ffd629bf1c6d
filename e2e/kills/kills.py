"""Runs a broker process, loads it, kills it, and writes down what the clients saw (see sim/src/history.rs)."""

import argparse
import concurrent.futures
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

TOPIC = "orders"
PARTITIONS = 3
# Nothing heals within this many seconds: the run has failed.
PATIENCE = 90
OUTSTANDING_MAX = 200


class History:
    """Appends events; one lock keeps their order the order of time."""

    def __init__(self, path):
        self.file = open(path, "w", encoding="utf-8")
        self.lock = threading.Lock()
        self.started = time.monotonic_ns()

    def write(self, process, op, phase, kind, **fields):
        with self.lock:
            if self.file.closed:
                return
            event = {"process": process, "op": op, "phase": phase, "time_ns": time.monotonic_ns() - self.started, "kind": kind}
            event.update((name, value) for name, value in fields.items() if value is not None)
            self.file.write(json.dumps(event, separators=(",", ":")) + "\n")

    def close(self):
        with self.lock:
            self.file.close()


def payload(value, partition, padding):
    text = f"lb1 {value} {TOPIC} {partition} " + ("." * padding + " " if padding else "")
    return f"{text}{zlib.crc32(text.encode()):08x}"


def content(topic, partition, value):
    """What a history says of a record: its value where it is whole and where it belongs, else all of it, for the judge."""
    text = (value or b"").decode("utf-8", "replace")
    words = text[:-8].split()
    if f"{zlib.crc32(text[:-8].encode()):08x}" == text[-8:] and len(words) in (4, 5) and words[0] == "lb1" and words[2:4] == [topic, str(partition)]:
        return {"value": int(words[1])}
    return {"payload": text}


def read(message):
    at = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset()}
    return {**at, **content(message.topic(), message.partition(), message.value())}


class Broker:
    """The process under test."""

    def __init__(self, subject, program, work):
        self.subject, self.program, self.work = subject, program, work
        self.port = free_port()
        self.process = None
        self.log = open(os.path.join(work, "broker.log"), "ab")
        if subject == "letterbox":
            self.config = os.path.join(work, "server.properties")
            with open(self.config, "w", encoding="utf-8") as file:
                file.write(
                    "process.roles=broker,controller\nnode.id=1\n"
                    f"controller.quorum.voters=1@127.0.0.1:{self.port + 1}\ncontroller.listener.names=CONTROLLER\n"
                    f"listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.port + 1}\n"
                    f"advertised.listeners=PLAINTEXT://127.0.0.1:{self.port}\nlog.dirs={work}/data\nadmin.listener=none\n"
                    "offsets.topic.num.partitions=3\noffsets.topic.replication.factor=1\n"
                    "group.initial.rebalance.delay.ms=0\nauto.create.topics.enable=false\n"
                )

    def start(self):
        if self.subject == "letterbox":
            command = [self.program, "broker", "--config", self.config]
        else:
            command = [self.program, f"{self.work}/kafka", str(self.port), "log.flush.interval.messages=1"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def alive(self):
        return self.process.poll() is None

    def stop(self):
        """Asks it to stop; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE)


def free_port():
    """A port with a free one after it, outside of the usual ephemeral range."""
    for port in random.SystemRandom().sample(range(20011, 31000, 2), 200):
        try:
            for candidate in (port, port + 1):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", candidate))
            return port
        except OSError:
            continue
    raise SystemExit("no two free ports")


class Load:
    """The clients; each runs in a thread until `over` is set."""

    def __init__(self, history, bootstrap, partitions=PARTITIONS, pause=0.02):
        self.history, self.partitions = history, partitions
        # How long a producer waits between two bursts.
        self.pause = pause
        self.over = threading.Event()
        self.acknowledged = 0
        # For each partition, when the newest record was sent that is acknowledged.
        self.newest = [0.0] * partitions
        # The longest that a record waited for its acknowledgement, of those sent after a moment; whoever measures sets both.
        self.measured_from, self.longest_wait = 0.0, 0.0
        self.outstanding = 0
        self.troubles = []
        self.producing = {"enable.idempotence": True, "linger.ms": 2, "message.timeout.ms": PATIENCE * 1000, "retry.backoff.ms": 20, "retry.backoff.max.ms": 250}
        self.common = {
            "bootstrap.servers": bootstrap,
            "reconnect.backoff.ms": 20,
            "reconnect.backoff.max.ms": 250,
            "socket.timeout.ms": 10_000,
            "log_level": 2,
            "error_cb": lambda error: None,
        }

    def trouble(self, words):
        self.troubles.append(words)
        print("TROUBLE:", words, flush=True)

    def produce(self, number):
        producer = Producer({**self.common, **self.producing})
        process, rng, op = f"producer-{number}", random.Random(number), 0
        outstanding = 0

        def settled(op, record):
            sent = time.monotonic()

            def callback(error, message):
                nonlocal outstanding
                outstanding -= 1
                if error is None:
                    self.acknowledged += 1
                    self.newest[record["partition"]] = max(self.newest[record["partition"]], sent)
                    if sent >= self.measured_from:
                        self.longest_wait = max(self.longest_wait, time.monotonic() - sent)
                    # A repeated request may be answered without an offset.
                    record["offset"] = message.offset() if message.offset() >= 0 else None
                    fields = {name: value for name, value in record.items() if value is not None}
                    self.history.write(process, op, "ok", "send", idempotent=True, records=[fields])
                else:
                    self.trouble(f"{process}: value {record['value']} was given up: {error}")
                    self.history.write(process, op, "info", "send", idempotent=True, records=[record], error=str(error))

            return callback

        while not self.over.is_set():
            for _ in range(rng.randint(1, 20)):
                op += 1
                partition = rng.randrange(self.partitions)
                record = {"topic": TOPIC, "partition": partition, "value": (number << 40) | op}
                self.history.write(process, op, "invoke", "send", idempotent=True, records=[record])
                outstanding += 1
                padding = rng.randrange(6000) if rng.random() < 0.1 else 0
                producer.produce(TOPIC, payload(record["value"], partition, padding), partition=partition, on_delivery=settled(op, record))
            producer.poll(self.pause)
            while outstanding > OUTSTANDING_MAX and not self.over.is_set():
                producer.poll(0.1)
        left = producer.flush(PATIENCE)
        if left:
            self.trouble(f"{process}: {left} records have no fate {PATIENCE} s after the last kill")

    def read_alone(self, number):
        """Reads all partitions from the beginning, by assignment."""
        options = {"group.id": f"unused-{number}", "enable.auto.commit": False, "auto.offset.reset": "error", "fetch.wait.max.ms": 100}
        consumer = Consumer({**self.common, **options})
        process = f"reader-{number}"
        at = [{"topic": TOPIC, "partition": partition, "offset": 0} for partition in range(self.partitions)]
        consumer.assign([TopicPartition(TOPIC, place["partition"], 0) for place in at])
        self.history.write(process, 0, "ok", "assign", partitions=at)
        op = 0
        while not self.over.is_set():
            op += 1
            messages = consumer.consume(500, timeout=0.2)
            for message in messages:
                if message.error():
                    self.trouble(f"{process}: {message.error()}")
            self.history.write(process, op, "ok", "poll", records=[read(message) for message in messages if not message.error()])
        consumer.close()

    def read_in_group(self, number):
        """The only member of a group; each of its assignments counts as a generation. Commits what it was handed."""
        process, group = f"member-{number}", f"readers-{number}"
        options = {
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "session.timeout.ms": 10_000,
            "heartbeat.interval.ms": 500,
            "fetch.wait.max.ms": 100,
        }
        consumer = Consumer({**self.common, **options})
        state = {"op": 0, "generation": 0}

        def begin(kind, **fields):
            state["op"] += 1
            self.history.write(process, state["op"], "invoke", kind, **fields)
            return state["op"]

        def assigned(consumer, partitions):
            state["generation"] += 1
            fields = {"group": group, "generation": state["generation"], "member": process}
            op = begin("rebalance", partitions=[], **fields)
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    committed = consumer.committed(partitions, timeout=5)
                    break
                except KafkaException as error:
                    if time.monotonic() > deadline:
                        self.trouble(f"{process}: committed offsets: {error}")
                        return
            at = [{"topic": p.topic, "partition": p.partition, "offset": max(p.offset, -1)} for p in committed]
            self.history.write(process, op, "ok", "rebalance", partitions=at, **fields)

        consumer.subscribe([TOPIC], on_assign=assigned)
        while not self.over.is_set():
            op = None
            messages = [message for message in consumer.consume(500, timeout=0.2) if not message.error()]
            op = begin("poll", records=[])
            self.history.write(process, op, "ok", "poll", records=[read(message) for message in messages])
            if not messages:
                continue
            next_offsets = {}
            for message in messages:
                next_offsets[message.partition()] = message.offset() + 1
            offsets = [{"topic": TOPIC, "partition": partition, "offset": offset} for partition, offset in sorted(next_offsets.items())]
            fields = {"group": group, "generation": state["generation"], "member": process, "offsets": offsets}
            op = begin("commit", **fields)
            try:
                consumer.commit(offsets=[TopicPartition(TOPIC, o["partition"], o["offset"]) for o in offsets], asynchronous=False)
                self.history.write(process, op, "ok", "commit", **fields)
            except KafkaException as error:
                self.history.write(process, op, "info", "commit", error=str(error), **fields)
        consumer.close()

    def scan(self, broker):
        """Reads everything that is there, from the log start offset to the high watermark."""
        consumer = Consumer({**self.common, "group.id": "scanner", "enable.auto.commit": False, "auto.offset.reset": "error", "enable.partition.eof": False})
        op = 0
        for partition in range(self.partitions):
            start, end = consumer.get_watermark_offsets(TopicPartition(TOPIC, partition), timeout=PATIENCE)
            consumer.assign([TopicPartition(TOPIC, partition, start)])
            position, deadline = start, time.monotonic() + PATIENCE
            while position < end:
                messages = [message for message in consumer.consume(1000, timeout=1) if not message.error()]
                messages = [message for message in messages if message.offset() < end]
                if messages:
                    upto = messages[-1].offset() + 1
                    op += 1
                    self.history.write("scanner", op, "ok", "scan", broker=broker, topic=TOPIC, partition=partition, start=position, end=upto,
                                       records=[read(message) for message in messages])
                    position, deadline = upto, time.monotonic() + PATIENCE
                elif time.monotonic() > deadline:
                    self.trouble(f"scan of partition {partition} stops at {position} of {end}")
                    return
        consumer.close()


def create_topic(common):
    admin = AdminClient(common)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])[TOPIC].result(timeout=20)
            return
        except (KafkaException, concurrent.futures.TimeoutError) as error:
            if isinstance(error, KafkaException) and error.args[0].name() == "TOPIC_ALREADY_EXISTS":
                return
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def wait_for_progress(load, broker, since, records):
    """Waits until that many more records were acknowledged; returns how long it took, or None."""
    started = time.monotonic()
    while load.acknowledged < since + records:
        if time.monotonic() - started > PATIENCE:
            return None
        if not broker.alive():
            return None
        time.sleep(0.002)
    return time.monotonic() - started


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--subject", choices=["letterbox", "apache-kafka"], required=True)
    parser.add_argument("--program", required=True)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--work", required=True)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    history = History(os.path.join(arguments.work, "history.jsonl"))
    broker = Broker(arguments.subject, arguments.program, arguments.work)
    load = Load(history, f"127.0.0.1:{broker.port}")
    threads = []
    try:
        broker.start()
        create_topic(load.common)
        for target, number in [(load.produce, 1), (load.produce, 2), (load.read_alone, 1), (load.read_in_group, 1)]:
            threads.append(threading.Thread(target=target, args=(number,)))
            threads[-1].start()
        outages, done = [], 0
        while done < arguments.kills:
            took = wait_for_progress(load, broker, load.acknowledged, 30)
            if took is None:
                load.trouble(f"no progress after kill {done}; the broker is {'running' if broker.alive() else 'gone'}")
                break
            if done:
                outages.append(took)
            time.sleep(rng.uniform(0, 0.3))
            again = True
            while again and done < arguments.kills:
                broker.kill()
                done += 1
                history.write("nemesis", done, "ok", "fault", what="kill", target=arguments.subject)
                broker.start()
                # Some of them in the middle of the recovery.
                again = rng.random() < 0.15
                if again:
                    time.sleep(rng.uniform(0, 0.15))
            if done % 10 == 0 or done == arguments.kills:
                print(f"{done} kills, {load.acknowledged} records acknowledged", flush=True)
        if wait_for_progress(load, broker, load.acknowledged, 30) is None:
            load.trouble("no progress after the last kill")
        time.sleep(1)
        load.over.set()
        for thread in threads:
            thread.join(PATIENCE * 2)
        load.scan(arguments.subject)
        code = broker.stop()
        if code not in ([0] if arguments.subject == "letterbox" else [0, 143]):
            load.trouble(f"the broker ended with {code} when it was asked to stop")
        if outages:
            outages.sort()
            print(f"from a kill to 30 more acknowledged records: median {outages[len(outages) // 2]:.2f} s, longest {outages[-1]:.2f} s")
    finally:
        load.over.set()
        if broker.process and broker.alive():
            broker.kill()
        history.close()
    sys.exit(1 if load.troubles else 0)


if __name__ == "__main__":
    main()
