"""The rows of the tables: what is sent or read, and how much of it."""
from dataclasses import dataclass

BOTH = ("durable", "page-cache")
# Kafka with a flush on every message syncs before it answers acks=1 too; we do not. The durability differs, so such rows
# are compared in page-cache mode only.
PAGE_CACHE = ("page-cache",)


@dataclass(frozen=True)
class Row:
    """One row. `full` and `short` are options of the load program for the two lengths of a run."""
    key: str
    title: str
    kind: str                 # produce, fetch, small, paced or tail
    mode: str                 # of the load program
    options: dict
    full: dict
    short: dict
    durabilities: tuple = BOTH
    reads: str = None         # the row whose topic is read instead of an own one

    @property
    def partitions(self):
        return self.options.get("partitions", 1)


IDEMPOTENT = {"acks": "all", "idempotent": 1}
RAW_16 = {"size": 100, "connections": 16}

ROWS = [
    Row("produce-1k", "produce 1 KiB, acks=all, idempotent, batches to 1 MB", "produce", "produce", {"size": 1024, **IDEMPOTENT},
        {"count": 600_000, "seconds": 10}, {"count": 120_000, "seconds": 2}),
    Row("produce-100", "produce 100 B, acks=all, idempotent, batches to 1 MB", "produce", "produce", {"size": 100, **IDEMPOTENT},
        {"count": 2_500_000, "seconds": 8}, {"count": 500_000, "seconds": 2}),
    Row("produce-1k-16k", "produce 1 KiB, acks=all, idempotent, batches to 16 KiB (Java's default)", "produce", "produce",
        {"size": 1024, "batch-bytes": 16384, **IDEMPOTENT}, {"count": 250_000, "seconds": 5}, {"count": 60_000, "seconds": 1}),
    # librdkafka keeps one batch of a partition in flight when it is idempotent (confluentinc/librdkafka#4989); Java's producer keeps five.
    Row("produce-1k-16k-five", "produce 1 KiB, acks=all, batches to 16 KiB, five in flight", "produce", "produce",
        {"size": 1024, "batch-bytes": 16384, "acks": "all"}, {"count": 250_000, "seconds": 5}, {"count": 60_000, "seconds": 1}),
    Row("produce-1k-acks1", "produce 1 KiB, acks=1, batches to 1 MB", "produce", "produce", {"size": 1024, "acks": "1"},
        {"count": 600_000, "seconds": 8}, {"count": 120_000, "seconds": 2}, PAGE_CACHE),
    Row("produce-ten", "produce 1 KiB, acks=all, idempotent, keyed, 10 partitions", "produce", "produce",
        {"size": 1024, "partitions": 10, "keyed": 1, **IDEMPOTENT}, {"count": 500_000, "seconds": 8}, {"count": 120_000, "seconds": 2}),
    Row("consume-1k", "consume 1 KiB from the beginning (page cache)", "fetch", "consume", {},
        {"count": 600_000}, {"count": 120_000}, reads="produce-1k"),
    Row("consume-ten", "consume 1 KiB from the beginning, 10 partitions", "fetch", "consume", {"partitions": 10},
        {"count": 500_000}, {"count": 120_000}, reads="produce-ten"),
    Row("paced", "produce 1 KiB at 5,000/s, acks=all, idempotent, linger 1 ms", "paced", "produce",
        {"size": 1024, "rate": 5000, "linger-ms": "1", "count": 10_000_000, **IDEMPOTENT}, {"seconds": 6}, {"seconds": 1.5}),
    Row("tail", "produce and consume 1 KiB at 5,000/s, end to end at the tail, acks=all, linger 1 ms", "tail", "tail",
        {"size": 1024, "rate": 5000, "linger-ms": "1", "count": 10_000_000, **IDEMPOTENT}, {"seconds": 6}, {"seconds": 1.5}),
    Row("small-all", "one record of 100 B a request, one at a time, acks=all", "small", "produce",
        {"size": 100, "window": 1, "linger-ms": "0", "acks": "all", "count": 10_000_000}, {"seconds": 5}, {"seconds": 1}),
    Row("small-1", "one record of 100 B a request, one at a time, acks=1", "small", "produce",
        {"size": 100, "window": 1, "linger-ms": "0", "acks": "1", "count": 10_000_000}, {"seconds": 5}, {"seconds": 1}, PAGE_CACHE),
    Row("small-all-16", "one record of 100 B a request, 16 connections, acks=all", "small", "ping",
        {**RAW_16, "acks": "all", "count": 10_000_000}, {"seconds": 5}, {"seconds": 1}),
    Row("small-1-16", "one record of 100 B a request, 16 connections, acks=1", "small", "ping",
        {**RAW_16, "acks": "1", "count": 10_000_000}, {"seconds": 5}, {"seconds": 1}, PAGE_CACHE),
]

# Run before the measured rows in every session and thrown away, in this order; each again and again until it costs the broker
# no less CPU than before (`session.warm_up`). Kafka's compiler needs this; its own CPU would be counted as the rows'.
WARM_UP = [
    Row("warm-produce", "", "produce", "produce", {"size": 1024, **IDEMPOTENT}, {"count": 250_000, "seconds": 3}, {"count": 100_000, "seconds": 1}),
    Row("warm-16k", "", "produce", "produce", {"size": 1024, "batch-bytes": 16384, **IDEMPOTENT}, {"count": 250_000, "seconds": 3}, {"count": 60_000, "seconds": 1}),
    Row("warm-consume", "", "fetch", "consume", {}, {"count": 250_000}, {"count": 100_000}, reads="warm-produce"),
    Row("warm-small", "", "small", "ping", {**RAW_16, "acks": "all", "count": 10_000_000}, {"seconds": 3}, {"seconds": 1.5}),
]
WARM_UPS_MAX = {"full": 6, "short": 2}
