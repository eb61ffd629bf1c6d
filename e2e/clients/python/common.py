"""What the Python clients share: the input, the report, and a deadline."""
import os
import time

BOOTSTRAP = os.environ["BOOTSTRAP"]
TOPIC = os.environ["TOPIC"]
GROUP = os.environ["GROUP"]
PARTITIONS = 4
# The topic of the other calls: five records, a second apart.
CALLS_TOPIC = TOPIC + "-calls"
PATTERN = "^" + TOPIC.replace(".", "[.]") + "-c.*"
CALLS_START = int(time.time() * 1000) - 60000
DEADLINE = time.monotonic() + float(os.environ.get("DEADLINE", "90"))


def unhex(text):
    return None if text == "-" else bytes.fromhex(text)


def read_records():
    """(seq, key, value, [(name, value)])"""
    records = []
    with open(os.environ["RECORDS"], encoding="utf-8") as file:
        for text in file.read().split("\n"):
            if text:
                seq, key, value, headers = text.split("\t")
                pairs = [pair.split("=") for pair in headers.split(",")]
                records.append((int(seq), unhex(key), unhex(value), [(name, unhex(data)) for name, data in pairs]))
    return records


RECORDS = read_records()
HALF = len(RECORDS) // 2
_events = open(os.environ["EVENTS"], "w", encoding="utf-8", buffering=1)


def event(*fields):
    _events.write("\t".join(map(str, fields)) + "\n")


def to_hex(data):
    return "-" if data is None else bytes(data).hex()


def consumed(phase, member, partition, offset, key, value, headers):
    pairs = ",".join(f"{name}={to_hex(data)}" for name, data in headers or [])
    event("consumed", phase, member, partition, offset, to_hex(key), to_hex(value), pairs)


def by_codec(codecs):
    """The records in as many runs as there are codecs."""
    size = -(-len(RECORDS) // len(codecs))
    return [(codec, RECORDS[i * size : (i + 1) * size]) for i, codec in enumerate(codecs)]


def shared_out(assignments):
    """Whether two members have all partitions between them, each at least one."""
    return len(assignments) == 2 and all(assignments.values()) and sorted(sum(map(list, assignments.values()), [])) == list(range(PARTITIONS))


def in_time(doing):
    if time.monotonic() > DEADLINE:
        raise SystemExit(f"out of time while {doing}")


def called(name, result):
    event("called", name, result)


def recreated(offsets):
    called("recreate", f"{min(offsets)}:{len(offsets)}")
