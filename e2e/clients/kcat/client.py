"""kcat with the newest librdkafka: one process per record, because kcat's headers hold for all records of a process.

kcat has no admin calls, so the topic is made by `kafka-topics` or whatever CREATE_TOPIC names; it commits what it has printed when it ends.
"""
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../python"))
from common import *

FORMAT = "@%p %o %K %S\n%k%s\n%h\n"
about = subprocess.run(["kcat", "-V"], capture_output=True, text=True).stdout
print("version", " ".join(re.findall(r"Version (\S+)|(librdkafka \S+)", about)[i][i] for i in (0, 1)))
subprocess.run(shlex.split(os.environ["CREATE_TOPIC"]) + [TOPIC, str(PARTITIONS)], check=True, timeout=30)


class Member:
    """One `kcat -G`, read without blocking."""

    def __init__(self, name, phase):
        self.name, self.phase, self.out, self.err = name, phase, b"", b""
        options = ["-X", "auto.offset.reset=earliest", "-X", "session.timeout.ms=10000", "-f", FORMAT, "-u"]
        self.process = subprocess.Popen(["kcat", "-b", BOOTSTRAP, *options, "-G", GROUP, TOPIC], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.selector = selectors.DefaultSelector()
        for stream in (self.process.stdout, self.process.stderr):
            os.set_blocking(stream.fileno(), False)
            self.selector.register(stream, selectors.EVENT_READ)

    def read(self, wait=0.05):
        """Takes what is there; returns the number of records it held."""
        for key, _ in self.selector.select(wait):
            data = key.fileobj.read() or b""
            if key.fileobj is self.process.stdout:
                self.out += data
            else:
                self.err += data
        return self.parse()

    def parse(self):
        count = 0
        while True:
            head, newline, rest = self.out.partition(b"\n")
            if not newline:
                return count
            partition, offset, key_size, value_size = map(int, head.lstrip(b"@").split())
            sizes = max(key_size, 0) + max(value_size, 0)
            end = rest.find(b"\n", sizes + 1)
            if len(rest) <= sizes or end < 0:
                return count
            key = rest[: max(key_size, 0)] if key_size >= 0 else None
            value = rest[max(key_size, 0) : sizes] if value_size >= 0 else None
            headers = [pair.split(b"=", 1) for pair in rest[sizes + 1 : end].split(b",")]
            consumed(self.phase, self.name, partition, offset, key, value, [(name.decode(), data) for name, data in headers])
            at[partition] = offset + 1
            self.out = rest[end + 1 :]
            count += 1

    def assigned(self):
        lines = [text for text in self.err.decode(errors="replace").split("\n") if "assigned:" in text or "revoked:" in text]
        return [int(part) for part in re.findall(r"\[(\d+)\]", lines[-1])] if lines and " assigned:" in lines[-1] else []

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return self.read(0)


def produce(records, codec):
    with tempfile.NamedTemporaryFile() as file:
        for seq, key, value, headers in records:
            file.seek(0)
            file.truncate()
            file.write(value or b"")
            file.flush()
            options = [b"-X", b"enable.idempotence=true", b"-z", codec.encode()]
            for name, data in headers:
                options += [b"-H", name.encode() + b"=" + data]
            # To kcat an empty file is no message; a line that ends after its key is a null with -Z.
            if value is None:
                options += [b"-Z", b"-K", b":"]
                source = {"input": key + b":\n"}
            else:
                options += [b"-k", key, file.name.encode()]
                source = {"stdin": subprocess.DEVNULL}
            subprocess.run([b"kcat", b"-b", BOOTSTRAP.encode(), b"-P", b"-t", TOPIC.encode(), *options], check=True, timeout=30, **source)
            event("produced", seq, -1, -1)


at, count = {}, 0
members = {name: Member(name, 1) for name in "AB"}
assignments = {}
while not shared_out(assignments):
    in_time("two members join")
    for each in members.values():
        each.read()
    assignments = {name: each.assigned() for name, each in members.items()}
for name, parts in assignments.items():
    event("assigned", name, ",".join(map(str, parts)))

codecs = ["none", "gzip", "snappy", "lz4", "zstd"]
half = RECORDS[: HALF + 1]
for index, record in enumerate(half):
    produce([record], codecs[index % len(codecs)])
while count < len(half):
    in_time("the group consumes")
    count += sum(each.read() for each in members.values())
for each in members.values():
    count += each.stop()
for partition, offset in at.items():
    event("committed", partition, offset)

for index, record in enumerate(RECORDS[len(half) :]):
    produce([record], codecs[index % len(codecs)])
last = Member("C", 2)
while count < len(RECORDS):
    in_time("consumption resumes")
    count += last.read()
last.stop()

# The other calls: kcat has none for configurations and for deleting.
listed = subprocess.run(["kcat", "-b", BOOTSTRAP, "-L"], capture_output=True, text=True, check=True, timeout=30).stdout
called("list", "".join(re.findall(rf'topic "{re.escape(TOPIC)}" with (\d+) partitions', listed)) or "not there")
subprocess.run(shlex.split(os.environ["CREATE_TOPIC"]) + [CALLS_TOPIC, "1"], check=True, timeout=30)
for seq in range(5):
    # kcat stamps records itself: the offset by time is the one of a time after the third and before the fourth.
    if seq == 3:
        time.sleep(0.05)
        between = int(time.time() * 1000)
        time.sleep(0.05)
    subprocess.run(["kcat", "-b", BOOTSTRAP, "-P", "-t", CALLS_TOPIC], input=b"%d\n" % seq, check=True, timeout=30)
queried = subprocess.run(["kcat", "-b", BOOTSTRAP, "-Q", "-t", f"{CALLS_TOPIC}:0:{between}"], capture_output=True, text=True, check=True, timeout=30).stdout
called("time", (re.findall(r"offset (\d+)", queried) or [queried])[0])
options = ["-X", "auto.offset.reset=earliest", "-c", "5", "-f", "%o\n"]
taken = subprocess.run(["kcat", "-b", BOOTSTRAP, "-q", *options, "-G", GROUP + "-calls", PATTERN], capture_output=True, text=True, check=True, timeout=60).stdout
called("pattern", len(taken.split()))
