"""Samples into tables, and the targets of the project judged by the same numbers."""
import statistics

from .rows import ROWS

GB = 1e9
SYMBOL = {True: "met", False: "**missed**"}


# Which durability of each broker is set beside which. As they come, Letterbox syncs and Kafka does not.
COMPARED = {
    "durable": {"letterbox": "durable", "kafka": "durable"},
    "page-cache": {"letterbox": "page-cache", "kafka": "page-cache"},
    "default": {"letterbox": "durable", "kafka": "page-cache"},
}


class Spread:
    """Median and range of one value over the rounds."""

    def __init__(self, values):
        self.values = [v for v in values if v is not None]
        self.median = statistics.median(self.values) if self.values else None
        self.low, self.high = (min(self.values), max(self.values)) if self.values else (None, None)

    def overlaps(self, other):
        """Whether the ranges share a value: the rounds do not tell the two apart."""
        return self.low <= other.high and other.low <= self.high

    def __str__(self):
        if self.median is None:
            return "–"
        return f"{number(self.median)} <sub>{number(self.low)}–{number(self.high)}</sub>"


def number(value):
    """Three significant digits at least, thousands apart."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


# What a sample gives: name → (how it is computed, kinds of rows that it is meaningful for).
METRICS = {
    "records/s": lambda s: s["records"] / s["seconds"],
    "MB/s": lambda s: s["bytes"] / 1e6 / s["seconds"],
    "p50 ms": lambda s: s["p50_us"] / 1e3 if "p50_us" in s else None,
    "p99 ms": lambda s: s["p99_us"] / 1e3 if "p99_us" in s else None,
    "p99.9 ms": lambda s: s["p999_us"] / 1e3 if "p999_us" in s else None,
    "CPU s/million records": lambda s: s["cpu_s"] / s["records"] * 1e6,
    "CPU s/GB": lambda s: s["cpu_s"] / s["bytes"] * GB,
    "CPU µs/request": lambda s: s["cpu_s"] / s["records"] * 1e6,
}


class Results:
    """All sessions, asked by durability, broker, row and metric."""

    def __init__(self, sessions):
        self.sessions = sessions

    def of(self, durability, broker):
        return [s for s in self.sessions if s["durability"] == durability and s["broker"] == broker]

    def spread(self, durability, broker, row, metric):
        return Spread([METRICS[metric](s["samples"][row.key]) for s in self.of(durability, broker) if row.key in s["samples"]])

    def pair(self, comparison, row, metric):
        return tuple(self.spread(durability, broker, row, metric) for broker, durability in COMPARED[comparison].items())

    def session_spread(self, durability, broker, read):
        return Spread([read(s) for s in self.of(durability, broker)])

    def rows(self, comparison):
        """The rows that both sides have."""
        def has(row, broker, durability):
            return durability in row.durabilities and any(row.key in s["samples"] for s in self.of(durability, broker))
        return [r for r in ROWS if all(has(r, *side) for side in COMPARED[comparison].items())]


def ratio(ours, theirs):
    """Letterbox's median over Kafka's."""
    return "–" if not ours.values or not theirs.values or not theirs.median else f"{ours.median / theirs.median:.2f}"


def table(head, lines):
    """A markdown table; the first column is text, the others numbers."""
    return "\n".join(["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|",
                      *("| " + " | ".join(str(c) for c in line) + " |" for line in lines), ""])


def compare(results, durability, metrics, kinds):
    """Both numbers and their ratio for each metric."""
    head = ["row"] + [cell for m in metrics for cell in (f"Letterbox {m}", f"Kafka {m}", "ratio")]
    lines = []
    for row in results.rows(durability):
        if row.kind in kinds:
            pairs = [results.pair(durability, row, m) for m in metrics]
            lines.append([row.title] + [cell for ours, theirs in pairs for cell in (ours, theirs, ratio(ours, theirs))])
    return table(head, lines)


def mib(path):
    """Reads a value of memory in MiB."""
    phase, name = path
    return lambda s: s[phase][name] / 1024 if phase in s else None


FOOTPRINT = [
    ("exec to first connection taken, ms", lambda s: s["first_connection_ms"]),
    ("exec to first record accepted, new data directory, ms", lambda s: s["first_record_ms"]),
    ("exec to first record accepted, with the rows' data, ms", lambda s: s.get("restart_first_record_ms")),
    ("SIGTERM to exit after the rows, ms", lambda s: s["stop_s"] * 1e3 if s.get("stop_s") else None),
    ("resident when idle, MiB", mib(("idle", "VmRSS"))),
    ("resident after the rows, MiB", mib(("loaded", "VmRSS"))),
    ("… of that not backed by files, MiB", mib(("loaded", "RssAnon"))),
    ("most resident at any time, MiB", mib(("loaded", "VmHWM"))),
]


def footprint(results, durability):
    """Start, stop and memory."""
    lines = []
    for title, read in FOOTPRINT:
        ours, theirs = (results.session_spread(durability, b, read) for b in ("letterbox", "kafka"))
        if ours.values:
            lines.append([title, ours, theirs, ratio(ours, theirs)])
    return table(["", "Letterbox", "Kafka", "ratio"], lines)


def targets(results, durability):
    """Each goal with the numbers it is judged by: (text, met, evidence)."""
    judged = []

    def at_most(goal, row_title, ours, theirs, share):
        if ours.values and theirs.values and theirs.median:
            judged.append((goal, row_title, ours.median <= theirs.median * share, f"{number(ours.median)} of {number(theirs.median)}: {ours.median / theirs.median:.3f}"))

    for row in results.rows(durability):
        cpu = results.pair(durability, row, "CPU s/GB")
        if row.kind == "produce":
            at_most("≤ 1/3 of Kafka's broker CPU per GB, produce", row.title, *cpu, 1 / 3)
        if row.kind == "fetch":
            at_most("≤ 1/2 of Kafka's broker CPU per GB, fetch", row.title, *cpu, 1 / 2)
        if row.kind == "small":
            ours, theirs = results.pair(durability, row, "CPU µs/request")
            judged.append(("≤ 10 µs of broker CPU per small unbatched request", row.title, ours.median <= 10, f"{number(ours.median)} µs (Kafka {number(theirs.median)})"))
    for title, read in FOOTPRINT:
        pair = tuple(results.session_spread(durability, b, read) for b in ("letterbox", "kafka"))
        if title.startswith("resident") or title.startswith("most"):
            at_most("≤ 1/10 of Kafka's memory", title, *pair, 1 / 10)
        if "first record" in title:
            at_most("≤ 1/20 of Kafka's start time", title, *pair, 1 / 20)
    for row in results.rows(durability):
        if row.kind not in ("paced", "tail"):  # their rate is given
            ours, theirs = results.pair(durability, row, "records/s")
            judged.append(("throughput no worse than Kafka's", row.title, ours.median >= theirs.median, versus(ours, theirs)))
        ours, theirs = results.pair(durability, row, "p99 ms")
        if ours.values and theirs.values:
            judged.append(("p99 no worse than Kafka's", row.title, ours.median <= theirs.median, versus(ours, theirs)))
    return judged


def default_targets(results, sync_ms):
    """The goals of both brokers as they come. One request at a time cannot be faster than the disk: it is judged by our own page cache."""
    judged = []
    for row in results.rows("default"):
        ours, theirs = results.pair("default", row, "records/s")
        p99 = results.pair("default", row, "p99 ms")
        if row.key == "small-all":
            synced, cached = (results.spread(durability, "letterbox", row, "p50 ms") for durability in ("durable", "page-cache"))
            if synced.values and cached.values:
                judged.append(("at most one fdatasync more than without waiting for the disk, p50", row.title, synced.median <= cached.median + sync_ms,
                               f"{number(synced.median)} ms against {number(cached.median)} + {number(sync_ms)}"))
        elif row.kind in ("produce", "small"):
            judged.append(("throughput no worse than Kafka's", row.title, ours.median >= theirs.median, versus(ours, theirs)))
            judged.append(("p99 no worse than Kafka's", row.title, p99[0].median <= p99[1].median, versus(*p99)))
    return judged


def goals(judged):
    """The goals as a table with its heading."""
    return [f"### Targets: {sum(met for _, _, met, _ in judged)} of {len(judged)} met", "",
            table(["goal", "row", "", "numbers"], [[goal, title, SYMBOL[met], evidence] for goal, title, met, evidence in judged])]


def versus(ours, theirs):
    """Two medians, and whether the rounds tell them apart."""
    return f"{number(ours.median)} against {number(theirs.median)}" + (" (ranges overlap)" if ours.overlaps(theirs) else "")


WHAT = {
    "durable": "Kafka with `log.flush.interval.messages=1`, Letterbox as it comes: an answer to `acks=all` leaves after the records are synced to the disk.",
    "page-cache": "Kafka as it comes, Letterbox with `log.flush.on.ack=false`: an answer leaves when the records are in the page cache.",
}


def markdown(run):
    """The whole report of one run."""
    results, m, s = Results(run["sessions"]), run["machine"], run["sizes"]
    others = [x["others_share"] for session in run["sessions"] for x in session["samples"].values()]
    out = [
        "# Letterbox beside Apache Kafka", "",
        "Made by `bench/run`; do not edit. Every cell is the median of the rounds, with the smallest and the largest beside it; ratio is Letterbox over Kafka.",
        "Broker and load share the machine's cores; the brokers take turns, each round on a new data directory.", "",
        f"- {m['date']}; {run['length']} run, {run['rounds']} rounds, {run['minutes']:.1f} minutes",
        f"- {m['cores']} × {m['cpu']}, {m['memory_gib']} GiB, Linux {m['kernel']}, {m['file_system']}, {m['appends_with_fdatasync_per_s']:,} appends of 4 KiB with fdatasync a second",
        f"- {m['letterbox']}; Apache Kafka {m['kafka']} on Java {m['java']} with its scripts' options (1 GiB heap, G1); load: librdkafka {m['librdkafka']} and raw sockets",
        f"- other processes used {statistics.median(others):.0%} of the machine while a row ran (median; most {max(others):.0%}); load average at start {m['load_average_at_start'][0]:.1f}", "",
    ]
    for durability in ("durable", "page-cache"):
        if not results.of(durability, "letterbox") or not results.of(durability, "kafka"):
            continue
        judged = targets(results, durability)
        out += [f"## {'Durable' if durability == 'durable' else 'Page cache'}", "", WHAT[durability], "",
                "### Throughput", "", compare(results, durability, ["records/s", "MB/s"], ("produce", "fetch", "small")),
                "### Latency", "", "From when a record was due to its answer, or at the tail to its arrival at the consumer.", "",
                compare(results, durability, ["p50 ms", "p99 ms", "p99.9 ms"], ("produce", "small", "paced", "tail")),
                "### Broker CPU", "", "A GB is 10⁹ bytes of values.", "",
                compare(results, durability, ["CPU s/million records", "CPU s/GB"], ("produce", "fetch", "paced", "tail")),
                compare(results, durability, ["CPU µs/request"], ("small",)),
                "### Start and memory", "", footprint(results, durability),
                *goals(judged)]
    if results.rows("default"):
        sync_ms = 1e3 / m["appends_with_fdatasync_per_s"]
        out += ["## As they come", "", "Letterbox syncs before it answers `acks=all`, Kafka does not: what a user compares who changes no setting.", "",
                compare(results, "default", ["records/s", "p50 ms", "p99 ms"], ("produce", "small", "paced", "tail")),
                *goals(default_targets(results, sync_ms))]
    if "echo_us" in run:
        each = ", ".join(f"{number(us)} µs with {count} connection{'s' * (int(count) > 1)}" for count, us in run["echo_us"].items())
        out += ["## What a request costs at least", "", f"CPU of a server in C that only answers (one thread, epoll): {each}.", ""]
    sizes = [("Letterbox's image, as `deploy/build` makes it", s["image"]), ("Letterbox, one static binary", s["letterbox"]),
             ("Kafka's jars", s["kafka_jars"]), ("the Java runtime they need (here a JDK)", s["java_runtime"])]
    out += ["## Size on disk", "", table(["", "MB"], [[title, number(size / 1e6)] for title, size in sizes if size])]
    return "\n".join(out)
