#!/usr/bin/env python3
"""The input of every client's run, and the judge of what the client then reports.

    check.py generate COUNT > records.tsv      records to produce
    check.py judge records.tsv events.tsv [--without …]      exit 0 and one line of facts, or exit 1 and what is wrong
    check.py self-test                         the judge finds each of a list of planted faults

A line of records.tsv: SEQ, KEY, VALUE, HEADERS, parted by tabs; bytes in hexadecimal, `-` for null; headers as NAME=HEX,NAME=HEX.

A client writes events.tsv, one line per event in the order in which they happened to it:

    produced   SEQ PARTITION OFFSET                     acknowledged; offset -1 where the client does not tell
    assigned   MEMBER PARTITIONS                        partitions of the first group, comma-separated; the last line of a member counts
    consumed   PHASE MEMBER PARTITION OFFSET KEY VALUE HEADERS     phase 1: the group of two; phase 2: after the commit
    committed  PARTITION OFFSET                         what phase 1 committed
    called     NAME RESULT                              a call of CALLS, on a topic of its own with five records a second apart

`judge --without NAME,NAME` is for clients that do not have these calls.
"""
import sys

PARTITIONS = 4
KEYS = 23
# What each of the less usual calls must give.
CALLS = {
    "list": "4",  # partitions of the first topic, found in a list of all topics
    "config": "604800000",  # retention.ms, described
    "pattern": "5",  # records that a subscription to a regular expression gets
    "time": "3",  # the first offset at or after the middle between the third and the fourth record
    "recreate": "0:3",  # first offset and number of records of a topic that was deleted and made again with three
}


def record(seq):
    key = b"key-%02d" % (seq % KEYS)
    size = (seq * 37) % 1500
    value = None if seq % 97 == 50 else b"%d:" % seq + bytes((seq + 7 * i) & 0xFF for i in range(size))
    # No zero byte and no comma: kcat prints headers as text.
    headers = [("seq", b"%d" % seq), ("binary", bytes([0xFF, 0x80 | (seq & 0x7F), 0xFE])), ("empty", b"")]
    return key, value, headers


def to_hex(data):
    return "-" if data is None else data.hex()


def line(seq):
    key, value, headers = record(seq)
    return "\t".join([str(seq), to_hex(key), to_hex(value), ",".join(f"{name}={data.hex()}" for name, data in headers)])


class Wrong(Exception):
    pass


def need(condition, message):
    if not condition:
        raise Wrong(message)


def judge(records, events, without=()):
    """Returns a line of facts; raises Wrong."""
    by_seq, seq_of = {}, {}
    for text in records:
        seq, key, value, headers = text.split("\t")
        by_seq[int(seq)] = (key, value, headers)
        seq_of[headers] = int(seq)
    total = len(by_seq)
    produced, assigned, consumed, committed, called = {}, {}, {1: [], 2: []}, {}, {}
    for text in events:
        kind, *fields = text.split("\t")
        if kind == "produced":
            seq, partition, offset = map(int, fields)
            need(seq not in produced, f"record {seq} was acknowledged twice")
            produced[seq] = (partition, offset)
        elif kind == "assigned":
            member, partitions = fields
            assigned[member] = {int(p) for p in partitions.split(",") if p}
        elif kind == "consumed":
            phase, member, partition, offset, key, value, headers = fields
            consumed[int(phase)].append((member, int(partition), int(offset), key, value, headers))
        elif kind == "committed":
            committed[int(fields[0])] = int(fields[1])
        elif kind == "called":
            called[fields[0]] = fields[1]
        else:
            raise Wrong(f"unknown event {kind}")

    for name, result in CALLS.items():
        need(name in without or called.get(name) == result, f"call {name}: {called.get(name, 'nothing')}, not {result}")
    need(len(produced) == total, f"{len(produced)} of {total} records were acknowledged")
    need(len(assigned) == 2, f"the group had {len(assigned)} members, not two")
    need(all(assigned.values()), "a member of the group got no partition")
    first, second = assigned.values()
    need(not first & second, f"both members got partitions {sorted(first & second)}")
    need(first | second == set(range(PARTITIONS)), f"nobody got partitions {sorted(set(range(PARTITIONS)) - first - second)}")
    for member in assigned:
        need(any(each[0] == member for each in consumed[1]), f"member {member} of the group consumed nothing")

    for member, partition, offset, *_ in consumed[1]:
        need(partition in assigned.get(member, ()), f"member {member} consumed partition {partition}, which is not its own")
    need(committed, "nothing was committed")
    need(sum(committed.values()) * 2 >= total, f"only {sum(committed.values())} of {total} records lie before the committed offsets")
    need(consumed[2], "the commit left nothing to resume with")

    next_offset, last_seq, place_of_key, seen = {}, {}, {}, set()
    for phase in (1, 2):
        if phase == 2:
            for partition in range(PARTITIONS):
                at = next_offset.get(partition, 0)
                need(committed.get(partition, 0) == at, f"partition {partition}: {at} records consumed, offset {committed.get(partition)} committed")
        for _, partition, offset, key, value, headers in consumed[phase]:
            where = f"partition {partition}, offset {offset}, phase {phase}"
            expected = next_offset.get(partition, 0)
            need(offset == expected, f"{where}: offset {expected} was due")
            next_offset[partition] = offset + 1
            need(headers in seq_of, f"{where}: no record has the headers {headers}")
            seq = seq_of[headers]
            need(seq not in seen, f"{where}: record {seq} came twice")
            seen.add(seq)
            need((key, value, headers) == by_seq[seq], f"{where}: record {seq} has other bytes than were produced")
            at_partition, at_offset = produced[seq]
            need(at_partition in (-1, partition) and at_offset in (-1, offset), f"{where}: record {seq} was acknowledged at {at_partition}/{at_offset}")
            need(last_seq.get(partition, -1) < seq, f"{where}: record {seq} came after {last_seq.get(partition)}")
            last_seq[partition] = seq
            need(place_of_key.setdefault(key, partition) == partition, f"{where}: key {key} is also in partition {place_of_key[key]}")
    need(len(seen) == total, f"{total - len(seen)} of {total} records never came")
    return f"{total} records, {len(place_of_key)} keys, {len(last_seq)} partitions, {len(consumed[1])} before the commit and {len(consumed[2])} after; {len(called)} of {len(CALLS)} other calls"


def self_test():
    total = 200
    records = [line(seq) for seq in range(total)]
    events, offsets = ["assigned\tA\t0,1", "assigned\tB\t2,3"], {}
    for seq in range(total):
        _, key, value, headers = records[seq].split("\t")
        partition = (seq % KEYS) % PARTITIONS
        offset = offsets[partition] = offsets.get(partition, -1) + 1
        events.append(f"produced\t{seq}\t{partition}\t{offset}")
        events.append(f"consumed\t{1 if seq < 120 else 2}\t{'AABB'[partition]}\t{partition}\t{offset}\t{key}\t{value}\t{headers}")
        if seq == 119:
            events += [f"committed\t{p}\t{o + 1}" for p, o in offsets.items()]
    events += [f"called\t{name}\t{result}" for name, result in CALLS.items()]
    judge(records, events)

    def swap(events, index, column, value):
        fields = events[index].split("\t")
        fields[column] = value
        return events[:index] + ["\t".join(fields)] + events[index + 1 :]

    at = [i for i, event in enumerate(events) if event.startswith("consumed\t1")]
    late = [i for i, event in enumerate(events) if event.startswith("consumed\t2")]
    commit = next(i for i, event in enumerate(events) if event.startswith("committed"))
    faults = {
        "a record is missing": events[: late[-1]] + events[late[-1] + 1 :],
        "a record is doubled": events + [events[late[-1]]],
        "an acknowledgement is missing": [e for e in events if not e.startswith("produced\t7\t")],
        "a byte of a value differs": swap(events, at[5], 6, "00" + events[at[5]].split("\t")[6][2:]),
        "a key differs": swap(events, at[5], 5, "aa"),
        "a header is gone": swap(events, at[5], 7, events[at[5]].split("\t")[7].rsplit(",", 1)[0]),
        "two records change places": [events[at[4]] if i == at[0] else events[at[0]] if i == at[4] else e for i, e in enumerate(events)],
        "a commit is one too low": swap(events, commit, 2, "1"),
        "no commit": [e for e in events if not e.startswith("committed")],
        "a member has nothing": swap(events, 1, 2, ""),
        "members share a partition": swap(events, 1, 2, "1,2,3"),
        "an offset differs from its acknowledgement": swap(events, events.index(next(e for e in events if e.startswith("produced\t9\t"))), 3, "77"),
        "a call gives something else": [e.replace("called\ttime\t3", "called\ttime\t2") for e in events],
        "a call is missing": [e for e in events if not e.startswith("called\tlist")],
        "a tombstone becomes empty": swap(events, next(i for i in at if events[i].split("\t")[6] == "-"), 6, ""),
    }
    for name, broken in faults.items():
        try:
            judge(records, broken)
        except Wrong:
            continue
        print(f"the judge did not notice: {name}", file=sys.stderr)
        return 1
    print(f"the judge notices {len(faults)} of {len(faults)} planted faults")
    return 0


def read(path):
    with open(path, encoding="utf-8") as file:
        return [text for text in file.read().split("\n") if text]


def main(args):
    if args[:1] == ["generate"] and len(args) == 2:
        for seq in range(int(args[1])):
            print(line(seq))
    elif args[:1] == ["judge"] and (len(args) == 3 or len(args) == 5 and args[3] == "--without"):
        try:
            print(judge(read(args[1]), read(args[2]), args[4].split(",") if len(args) == 5 else ()))
        except Wrong as wrong:
            print(wrong)
            return 1
    elif args == ["self-test"]:
        return self_test()
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
