"""Runs clusters of three brokers, breaks one thing after the other, and judges what the clients and the disks say."""

import argparse
import glob
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "kills"))
sys.dont_write_bytecode = True

import logs
import others
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from kills import TOPIC, History, Load, content, read
from network import CLIENTS, Network, address

NODES = (1, 2, 3)
PARTITIONS = 6
# Nothing heals within this many seconds: the run has failed.
PATIENCE = 180
# A condition is looked at in less time than this, unless the machine has no time for anybody.
STANDSTILL = 7
TOPICS = {TOPIC: PARTITIONS, others.JAVA: 1, others.FRANZ: others.FRANZ_PARTITIONS}
PER_CLUSTER = 50
TOOL = os.path.join(HERE, "..", "apache-kafka", "tool")

# What is broken, and how often in relation to the others.
KINDS = {
    "kill one": 3, "kill a leader": 4, "kill the controller": 4, "kill two": 3, "kill all": 3,
    "stop one": 2, "stop a leader": 3, "stop the controller": 3,
    "end one": 3, "end the controller": 3,
    "cut one off": 3, "cut one off from brokers": 3, "cut what one sends": 3, "cut what one hears": 3, "cut two apart": 3,
    "lose packets": 3, "slow link": 2,
    "two at once": 6, "end one after the other": 1,
}


class Broker:
    def __init__(self, node, program, work, network, settings):
        self.node, self.program, self.network = node, program, network
        self.data = os.path.join(work, f"data-{node}")
        self.log = open(os.path.join(work, f"broker-{node}.log"), "ab")
        self.config = os.path.join(work, f"server-{node}.properties")
        self.process = None
        own = address(node)
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(
                f"process.roles=broker,controller\nnode.id={node}\ncontroller.listener.names=CONTROLLER\n"
                f"controller.quorum.voters={','.join(f'{each}@{address(each)}:9093' for each in NODES)}\n"
                f"listeners=PLAINTEXT://{own}:9092,CONTROLLER://{own}:9093\nadvertised.listeners=PLAINTEXT://{own}:9092\n"
                f"inter.broker.listener.name=PLAINTEXT\nlog.dirs={self.data}\nadmin.listener={own}:9644\n"
                "default.replication.factor=3\nmin.insync.replicas=2\n"
                f"offsets.topic.num.partitions={PARTITIONS}\noffsets.topic.replication.factor=3\n"
                "group.initial.rebalance.delay.ms=0\nauto.create.topics.enable=false\n" + settings
            )

    def start(self):
        command = [*self.network.inside(self.node), self.program, "broker", "--config", self.config]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, start_new_session=True)

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def end(self):
        """Asks it to end; returns the exit code."""
        self.process.terminate()
        return self.process.wait(timeout=PATIENCE)

    def metric(self, name):
        """A figure, or None where the broker does not answer."""
        try:
            with urllib.request.urlopen(f"http://{address(self.node)}:9644/metrics", timeout=1) as answer:
                found = re.search(rf"^{name} (-?\d+)", answer.read().decode(), re.MULTILINE)
                return int(found.group(1)) if found else None
        except OSError:
            return None


class Clients(Load):
    """The load of the test of one broker, two members in one group, Java's clients, and what watches committed offsets."""

    def __init__(self, history, bootstrap, work, arguments):
        super().__init__(history, bootstrap, PARTITIONS, pause=0.05)
        self.work, self.bootstrap, self.arguments = work, bootstrap, arguments
        # librdkafka's own.
        self.common.pop("socket.timeout.ms")
        self.producing.pop("message.timeout.ms")
        self.notes = defaultdict(int)
        self.others = []
        self.threads = []
        self.commits_lock = threading.Lock()
        # The highest offset whose commit a client knows to be done, by group, topic and partition.
        self.done = {}

    def trouble(self, words):
        # What comes after the test has given up is its consequence.
        if not (self.over.is_set() and self.troubles):
            super().trouble(words)

    def note(self, words):
        """What a client may be told, but should be looked at."""
        self.notes[words] += 1

    def start(self):
        for target, number in [(self.produce, 1), (self.produce, 2), (self.read_alone, 1), (self.read_in_group, 1), (self.share, 1), (self.share, 2), (self.watch, 1)]:
            self.threads.append(threading.Thread(target=target, args=(number,), name=f"{target.__name__}-{number}"))
            self.threads[-1].start()
        if self.arguments.franz:
            self.others = [others.Franz(self, self.arguments.franz, self.work, self.bootstrap, 102)]
        if not self.arguments.without_java:
            self.others += [others.JavaProducer(self, TOOL, self.work, self.bootstrap, 101, 50), others.JavaConsumer(self, TOOL, self.work, self.bootstrap)]

    def end(self):
        for each in self.others:
            each.stop(PATIENCE)
        self.over.set()
        for thread in self.threads:
            thread.join(PATIENCE * 2)
            if thread.is_alive():
                self.trouble(f"{thread.name} does not end")

    def committed(self, group, topic, partition, offset):
        with self.commits_lock:
            self.done[group, topic, partition] = max(offset, self.done.get((group, topic, partition), -1))

    def share(self, number):
        """One of two members of a group; commits what it was handed. Groups' generations are not told by librdkafka."""
        process, group = f"share-{number}", "shared"
        consumer = Consumer({**self.common, "group.id": group, "enable.auto.commit": False, "auto.offset.reset": "earliest"})
        op = 0

        def assigned(consumer, partitions):
            nonlocal op
            with self.commits_lock:
                least = {p.partition: self.done.get((group, p.topic, p.partition), -1) for p in partitions}
            at = self.ask_committed(consumer, partitions, process)
            for p in at or []:
                if p.offset < least[p.partition]:
                    self.trouble(f"{process} resumes {p.topic}-{p.partition} at {p.offset}, and {least[p.partition]} was committed")
            op += 1
            at = [{"topic": p.topic, "partition": p.partition, "offset": p.offset if p.offset >= 0 else 0} for p in at or []]
            self.history.write(process, op, "ok", "assign", partitions=at)

        consumer.subscribe([TOPIC], on_assign=assigned)
        while not self.over.is_set():
            messages = [message for message in consumer.consume(500, timeout=0.2) if not message.error()]
            op += 1
            self.history.write(process, op, "ok", "poll", records=[read(message) for message in messages])
            offsets = {message.partition(): message.offset() + 1 for message in messages}
            if not offsets:
                continue
            try:
                consumer.commit(offsets=[TopicPartition(TOPIC, partition, offset) for partition, offset in offsets.items()], asynchronous=False)
                for partition, offset in offsets.items():
                    self.committed(group, TOPIC, partition, offset)
            except KafkaException as error:
                self.note(f"share: commit: {error.args[0].name()}")
        consumer.close()

    def ask_committed(self, consumer, partitions, process):
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                found = consumer.committed(partitions, timeout=10)
                for each in found:
                    each.offset = max(each.offset, -1)   # nothing is committed
                return found
            except KafkaException as error:
                if time.monotonic() > deadline or self.over.is_set():
                    self.trouble(f"{process}: committed offsets: {error}")
                    return None

    def watch(self, _):
        """Asks for the committed offsets of the shared group again and again: they never go back."""
        consumer = Consumer({**self.common, "group.id": "shared"})
        partitions = [TopicPartition(TOPIC, partition) for partition in range(PARTITIONS)]
        seen = defaultdict(lambda: -1)
        while not self.over.wait(0.25):
            with self.commits_lock:
                least = {p: max(seen[p], self.done.get(("shared", TOPIC, p), -1)) for p in range(PARTITIONS)}
            try:
                found = consumer.committed(partitions, timeout=10)
            except KafkaException as error:
                self.note(f"watch: committed: {error.args[0].name()}")
                continue
            for each in found:
                if max(each.offset, -1) < least[each.partition]:
                    self.trouble(f"the group's committed offset of {TOPIC}-{each.partition} goes back from {least[each.partition]} to {each.offset}")
                seen[each.partition] = max(seen[each.partition], each.offset)
        consumer.close()


class Cluster:
    """Three brokers, the network between them, and their clients."""

    def __init__(self, arguments, network, seed, work):
        self.arguments, self.network, self.work = arguments, network, work
        self.rng = random.Random(seed)
        os.makedirs(work)
        self.history = History(os.path.join(work, "history.jsonl"))
        settings = self.rng.choice(["", "", "broker.session.timeout.ms=3000\nbroker.heartbeat.interval.ms=500\n", "log.segment.bytes=1048576\n"])
        self.brokers = {node: Broker(node, arguments.program, work, network, settings) for node in NODES}
        self.clients = Clients(self.history, ",".join(f"{address(node)}:9092" for node in NODES), work, arguments)
        self.admin = AdminClient({**self.clients.common, "bootstrap.servers": self.clients.bootstrap})
        self.faults, self.doubled = 0, set()
        self.log = open(os.path.join(work, "faults.log"), "a", encoding="utf-8")

    def say(self, words):
        self.log.write(f"{time.strftime('%H:%M:%S')} {words}\n")
        self.log.flush()

    # ---- what is there

    def wait(self, what, condition, patience=PATIENCE):
        """Seconds until it holds; None, and trouble, when it does not. Time in which the machine stands still counts for little."""
        begun = last = time.monotonic()
        waited = 0.0
        while not condition():
            time.sleep(0.005)
            now = time.monotonic()
            if now - last > STANDSTILL:
                self.say(f"the test itself did not run for {now - last:.0f} s")
            waited += min(now - last, STANDSTILL)
            last = now
            if waited > patience:
                self.clients.trouble(f"fault {self.faults}: not within {patience} s: {what}")
                return None
        return last - begun

    def topics(self):
        try:
            return self.admin.list_topics(timeout=5).topics
        except KafkaException:
            return {}

    def leaders(self):
        topics = self.topics()
        return [p.leader for p in topics[TOPIC].partitions.values() if p.leader in NODES] if TOPIC in topics else []

    def controller(self):
        said = [self.brokers[node].metric("kafka_server_raftmetrics_current_leader") for node in NODES if self.brokers[node].alive()]
        said = [node for node in said if node in NODES]
        return statistics.mode(said) if said else self.rng.choice(NODES)

    def in_sync(self):
        topics = self.topics()
        return bool(topics) and all(len(p.isrs) == 3 for topic in topics.values() for p in topic.partitions.values())

    def acknowledges(self, since):
        """Whether each partition has acknowledged a record that was sent after that moment."""
        return all(newest > since for newest in self.clients.newest)

    # ---- what is broken

    def apply(self, kind, spared=None):
        """Breaks something, of a broker that is not spared; returns its target, what heals it, and for how long it is left."""
        rng = self.rng
        if kind == "two at once":
            return self.apply_two()
        if kind == "end one after the other":
            return self.roll()
        one = rng.choice([node for node in NODES if node != spared])
        if "leader" in kind:
            one = rng.choice(self.leaders() or NODES)
        elif "controller" in kind:
            one = self.controller()
        broker = self.brokers[one]
        self.begin()
        rest = [node for node in NODES if node != one]
        verb = kind.split()[0]
        if verb == "kill":
            victims = {"kill two": rng.sample(NODES, 2), "kill all": list(NODES)}.get(kind, [one])
            for node in victims:
                self.brokers[node].process.kill()
            for node in victims:
                self.brokers[node].process.wait()

            def heal():
                rng.shuffle(victims)
                for node in victims:
                    self.brokers[node].start()
                    if rng.random() < 0.3:
                        time.sleep(rng.uniform(0, 1))

            return victims, heal, rng.choice([0, 0, 0.5, 2, 5])
        if verb == "stop":
            broker.signal(signal.SIGSTOP)
            return [one], lambda: broker.signal(signal.SIGCONT), rng.uniform(2, 10)
        if verb == "end":
            self.end(one)
            return [one], broker.start, rng.choice([0, 0.5, 3])
        hold = rng.choice([rng.uniform(0.5, 3), rng.uniform(0.5, 3), rng.uniform(3, 12)])
        if kind == "cut one off":
            self.network.cut(one, [*rest, CLIENTS])
        elif kind == "cut one off from brokers":
            self.network.cut(one, rest)
        elif kind == "cut what one sends":
            self.network.cut(one, rng.choice([rest, [*rest, CLIENTS]]), ["output"])
        elif kind == "cut what one hears":
            self.network.cut(one, rng.choice([rest, [*rest, CLIENTS]]), ["input"])
        elif kind == "cut two apart":
            self.network.cut(one, rest[:1])
            return [one, rest[0]], lambda: self.network.heal(one), hold
        elif kind == "lose packets":
            self.network.lose(one, rng.choice([3, 10, 25]))
        else:
            self.network.delay(one, rng.choice([100, 400]))
        return [one], lambda: self.network.heal(one), hold

    def begin(self):
        """What is measured is measured from here."""
        self.clients.measured_from = time.monotonic()
        self.clients.longest_wait = 0.0

    def apply_two(self):
        """A link is broken, and a process of another broker before it is healed."""
        links = [kind for kind in KINDS if kind.split()[0] in ("cut", "lose", "slow")]
        link, process = self.rng.choice(links), self.rng.choice(["kill one", "kill two", "kill all", "stop one", "end one"])
        first, heal_first, hold = self.apply(link)
        time.sleep(self.rng.uniform(0, hold))
        second, heal_second, more = self.apply(process, spared=first[0])
        heals = [heal_first, heal_second]
        self.rng.shuffle(heals)

        def heal():
            heals[0]()
            time.sleep(self.rng.choice([0, 0.3, 3]))
            heals[1]()

        return f"{link}: {first}, {process}: {second}", heal, more

    def roll(self):
        """Ends and starts every broker, each when all replicas are in sync."""
        self.begin()
        for node in self.rng.sample(NODES, 3):
            self.wait("every replica in sync before the next broker ends", self.in_sync)
            self.end(node)
            self.brokers[node].start()
        return list(NODES), lambda: None, 0

    def end(self, node):
        code = self.brokers[node].end()
        if code != 0:
            self.clients.trouble(f"fault {self.faults}: broker {node} ended with {code} when it was asked to")

    def fault(self, kind, times):
        self.faults += 1
        before = [each.progress for each in self.clients.others]
        target, heal, hold = self.apply(kind)
        begun = self.clients.measured_from
        self.history.write("nemesis", self.faults, "ok", "fault", what=kind, target=str(target))
        self.say(f"fault {self.faults}: {kind}: {target}, for {hold:.1f} s")
        until = begun + hold
        passed = None
        while time.monotonic() < until:
            if passed is None and self.acknowledges(begun):
                passed = time.monotonic() - begun
            time.sleep(0.01)
        healing = time.monotonic()
        heal()
        if passed is None:
            if self.wait(f"every partition acknowledges again after {kind} of {target}", lambda: self.acknowledges(begun)) is None:
                return False
            passed = time.monotonic() - begun
        for client, progress in zip(self.clients.others, before):
            if self.wait(f"{client.name} goes on after {kind} of {target}", lambda: client.progress > progress) is None:
                return False
        healed = time.monotonic() - healing
        times[kind].append((passed, max(0.0, passed - (healing - begun)), self.clients.longest_wait))
        self.say(f"fault {self.faults}: all acknowledge after {passed:.2f} s, {healed:.2f} s after it was healed; a record waited for {self.clients.longest_wait:.2f} s")
        # Mostly the next fault meets a whole cluster, sometimes one that still recovers.
        if self.rng.random() < 0.7:
            took = self.wait(f"every replica in sync after {kind} of {target}", self.in_sync)
            if took is None:
                return False
            self.say(f"fault {self.faults}: in sync after {took:.2f} s")
        time.sleep(self.rng.uniform(0, 0.5))
        for node, broker in self.brokers.items():
            if not broker.alive():
                self.clients.trouble(f"fault {self.faults}: broker {node} is gone: {broker.process.returncode}")
                return False
        return True

    # ---- the whole story

    def run(self, faults, times):
        clients = self.clients
        try:
            for broker in self.brokers.values():
                broker.start()
            self.create_topics()
            self.say("topics are there")
            if self.wait("every replica in sync at the start", self.in_sync) is None:
                return
            clients.start()
            if self.wait("the load begins", lambda: self.acknowledges(0) and all(each.progress for each in clients.others), patience=300) is None:
                return
            self.say("the load runs")
            for kind in self.rng.choices(list(KINDS), list(KINDS.values()), k=faults):
                if not self.fault(kind, times):
                    break
            for node in NODES:
                self.network.heal(node)
            self.wait("every replica in sync in the end", self.in_sync)
            time.sleep(1)
            self.say("ending the load")
            clients.end()
            self.say("reading all")
            self.ends = self.scan()
            codes = {node: broker.end() for node, broker in self.brokers.items()}
            if any(codes.values()):
                clients.trouble(f"brokers ended with {codes}")
            wrong = list(self.differences(self.ends)) or list(self.misnumbered(self.ends))
            for words in wrong:
                clients.trouble(words)
            if not wrong:
                self.write_scans(self.ends)
                self.doubled = self.doubled_by_client(self.ends)
        finally:
            clients.over.set()
            for broker in self.brokers.values():
                if broker.alive():
                    broker.signal(signal.SIGCONT)
                    broker.kill()
            for each in clients.others:
                if each.process.poll() is None:
                    each.process.kill()
            for node in NODES:
                self.network.heal(node)
            self.history.close()

    def create_topics(self):
        wanted = [NewTopic(topic, partitions, 3) for topic, partitions in TOPICS.items()]

        def there():
            for future in self.admin.create_topics(wanted, operation_timeout=10).values():
                try:
                    future.result(timeout=20)
                except (KafkaException, TimeoutError):
                    pass
            topics = self.topics()
            return all(each.topic in topics for each in wanted)

        self.wait("topics are made", there)

    def scan(self):
        """Reads everything through the leaders; returns the end of each partition that clients write to."""
        self.clients.scan("leader")
        consumer = Consumer({**self.clients.common, "group.id": "ends"})
        ends = {(topic, partition): consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=PATIENCE)[1]
                for topic, count in TOPICS.items() for partition in range(count)}
        consumer.close()
        return {**ends, **{("__consumer_offsets", partition): None for partition in range(PARTITIONS)}}

    def replicas(self, topic, partition, end):
        """The batches of each broker's log below `end`; without one, below where the shortest log ends."""
        found = {node: list(logs.batches(os.path.join(broker.data, f"{topic}-{partition}"))) for node, broker in self.brokers.items()}
        upto = min(batches[-1][1] if batches else 0 for batches in found.values()) if end is None else end
        return {node: [batch for batch in batches if batch[0] < upto] for node, batches in found.items()}

    def differences(self, ends):
        """Where the logs of a partition are not the same bytes below the high watermark."""
        for (topic, partition), end in ends.items():
            try:
                replicas = self.replicas(topic, partition, end)
            except logs.Damaged as error:
                yield str(error)
                continue
            first = replicas[NODES[0]]
            for node in NODES[1:]:
                if replicas[node] != first:
                    at = next((a[0] for a, b in zip(replicas[node], first) if a != b), "its end")
                    yield f"{topic}-{partition}: broker {node} differs from {NODES[0]} at {at}"

    def misnumbered(self, ends):
        for (topic, partition), end in ends.items():
            if end is not None:
                for words in logs.numbering(self.replicas(topic, partition, end)[NODES[0]]):
                    yield f"{topic}-{partition}: {words}"

    def doubled_by_client(self, ends):
        """Values that librdkafka has sent again under a new producer epoch, where no broker can know them. It does so with several requests in flight:
        github.com/confluentinc/librdkafka/issues/4953."""
        doubled = set()
        for partition in range(PARTITIONS):
            epochs = defaultdict(set)
            for base, _, batch in self.replicas(TOPIC, partition, ends[TOPIC, partition])[NODES[0]]:
                epoch = logs.HEADER.unpack_from(batch)[-3]
                for _, value in logs.records(base, batch):
                    epochs[self.content(TOPIC, partition, value).get("value")].add(epoch)
            doubled.update(value for value, seen in epochs.items() if len(seen) > 1)
        return doubled

    def write_scans(self, ends):
        """What each replica holds goes into the history, as if a consumer had read it there."""
        for (topic, partition), end in ends.items():
            if end is None:
                continue
            for node, batches in self.replicas(topic, partition, end).items():
                found = [{"topic": topic, "partition": partition, "offset": offset, **self.content(topic, partition, value)}
                         for base, _, batch in batches for offset, value in logs.records(base, batch)]
                start = batches[0][0] if batches else 0
                self.history.write("scanner", self.next_scan(), "ok", "scan", broker=str(node), topic=topic, partition=partition, start=start, end=end, records=found)

    def next_scan(self):
        self.scans = getattr(self, "scans", 1_000_000) + 1
        return self.scans

    def content(self, topic, partition, value):
        if topic != others.JAVA:
            return content(topic, partition, value)
        number, count = value.decode().split(".")
        return {"value": (int(number) << 40) | int(count)}


def excuse(history, values):
    """Takes from these records the promise of being there once."""
    with open(history, encoding="utf-8") as file, open(history + ".new", "w", encoding="utf-8") as new:
        for line in file:
            if '"kind":"send"' in line and json.loads(line)["records"][0]["value"] in values:
                line = line.replace('"idempotent":true', '"idempotent":false')
            new.write(line)
    os.replace(history + ".new", history)


def judge(program, history, faults):
    """What letterbox-check says of a history: its exit code, and its words."""
    done = subprocess.run([program, "--faults-min", str(faults), "--sends-ok-min", str(faults * 100), "--reads-min", str(faults * 300), history],
                          stdout=subprocess.PIPE, text=True)
    return done.returncode, done.stdout


def plant(check, cluster, faults):
    """What is not found: a record that is taken out of one replica, one that is there twice, two in each other's place, a changed byte of a log."""
    work = cluster.work
    with open(os.path.join(work, "history.jsonl"), encoding="utf-8") as file:
        lines = file.readlines()
    at = max(i for i, line in enumerate(lines) if '"kind":"scan"' in line and '"broker":"2"' in line)
    whole = json.loads(lines[at])
    middle = len(whole["records"]) // 2
    missed = []
    for name, anomaly, records in [
        ("a record is taken out", "lost-write-after-heal", whole["records"][:middle] + whole["records"][middle + 1:]),
        ("a record is there twice", "duplicate", whole["records"] + [{**whole["records"][middle], "offset": whole["end"]}]),
        ("two records changed places", "inconsistent-offset", [{**each, "offset": whole["records"][middle * 2 - i]["offset"]} if abs(i - middle) == 1 else each for i, each in enumerate(whole["records"])]),
    ]:
        planted = os.path.join(work, "planted.jsonl")
        with open(planted, "w", encoding="utf-8") as file:
            file.writelines([*lines[:at], json.dumps({**whole, "records": records}, separators=(",", ":")) + "\n", *lines[at + 1:]])
        code, words = judge(check, planted, faults)
        if code != 1 or f"\n{anomaly}: " not in words:
            missed.append(f"{name}: {code} {words}")
        os.remove(planted)
    batches = cluster.replicas(TOPIC, 0, cluster.ends[TOPIC, 0])[NODES[0]]
    if not list(logs.numbering([*batches, batches[-1]])):
        missed.append("a batch is there twice")
    oldest = sorted(glob.glob(os.path.join(cluster.brokers[3].data, f"{TOPIC}-0", "*.log")))[0]
    with open(oldest, "r+b") as file:
        file.seek(logs.HEADER.size)
        byte = file.read(1)
        file.seek(logs.HEADER.size)
        file.write(bytes([byte[0] ^ 1]))
    if not list(cluster.differences(cluster.ends)):
        missed.append("a byte of a log is another one")
    return missed


def main():
    parser = argparse.ArgumentParser()
    for name, kind in (("program", str), ("check", str), ("faults", int), ("seed", int), ("work", str)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--franz")
    parser.add_argument("--without-java", action="store_true")
    arguments = parser.parse_args()
    network = Network(NODES)
    times, notes, done, failed = defaultdict(list), defaultdict(int), 0, False
    while done < arguments.faults and not failed:
        faults = min(PER_CLUSTER, arguments.faults - done)
        work = os.path.join(arguments.work, f"from-{done + 1}")
        cluster = Cluster(arguments, network, arguments.seed * 1000 + done, work)
        cluster.run(faults, times)
        history = os.path.join(work, "history.jsonl")
        if cluster.doubled:
            notes["records doubled by librdkafka, under a new producer epoch"] += len(cluster.doubled)
            excuse(history, cluster.doubled)
        code, words = judge(arguments.check, history, faults)
        print(f"faults {done + 1} to {done + cluster.faults}: {words}", end="", flush=True)
        failed = code != 0 or bool(cluster.clients.troubles)
        for words, count in cluster.clients.notes.items():
            notes[words] += count
        if not failed and done == 0:
            missed = plant(arguments.check, cluster, faults)
            print("".join(f"NOT FOUND although planted: {each}\n" for each in missed) or "planted losses, doubles, moves and damages are found\n", end="")
            failed = bool(missed)
        if failed:
            print(f"FAILED at fault {done + cluster.faults}: {cluster.clients.troubles or 'see the anomalies'}; logs in {work}", flush=True)
        elif done + faults < arguments.faults:
            subprocess.run(["rm", "-rf", work], check=True)
        done += faults
    print("seconds until all partitions acknowledge again, from the fault on and after it was healed (0: before), and the longest wait of a record\n"
          f"{'':48} times  median  longest   median  longest   median  longest")
    for kind, took in sorted(times.items()):
        figures = "   ".join(f"{statistics.median(each):6.2f}   {max(each):6.2f}" for each in zip(*took))
        print(f"  {kind:46} {len(took):5}  {figures}")
    for words, count in sorted(notes.items()):
        print(f"  told to clients: {words}: {count}")
    sys.stdout.flush()
    os._exit(1 if failed else 0)   # clients that find no broker any more may take minutes to end


if __name__ == "__main__":
    main()
