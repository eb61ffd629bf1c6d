#!/usr/bin/env python3
"""Debian's package index as records, and the judge of what comes back.

    packages.py split DIR [LIMIT]        apt's index -> DIR/sent (what is produced), DIR/kcat/SECTION and DIR/java (as the clients read it)
    packages.py feed FILE SECONDS        writes FILE to standard output, spread over SECONDS
    packages.py relabel SENT SECTION OUT one section for all, for a producer that is one process
    packages.py judge FORM SENT DUMP...  FORM kcat or java: exit 0 and one line of facts, or exit 1 and what is wrong
    packages.py self-test                the judge finds each of a list of planted faults

A record is a stanza: its key is the source package, its headers the section (kcat) or section, architecture and number (java: kcat's headers hold for a
whole process). Java's console producer reads lines, so there a line end inside a stanza is written as 0x1f. No stanza has a control
character of its own. Several dumps are read as one, in the order given: a group that stopped and went on.
"""
import os
import subprocess
import sys
import time

FIELD, RECORD, LINE = b"\x02", b"\x01", b"\x1f"


class Wrong(Exception):
    pass


def stanzas():
    seen = set()
    index = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True).stdout
    for text in index.split(b"\n\n"):
        text = text.strip(b"\n")
        if not text or text in seen or any(byte < 32 and byte != 10 for byte in text):
            continue
        seen.add(text)
        fields = dict(line.split(b": ", 1) for line in text.split(b"\n") if b": " in line and not line.startswith(b" "))
        key = fields.get(b"Source", fields[b"Package"]).split(b" ")[0]
        yield key, fields.get(b"Section", b"none").replace(b"/", b"-"), fields.get(b"Architecture", b"none"), text


def split(folder, limit=None):
    os.makedirs(f"{folder}/kcat", exist_ok=True)
    records = sorted(list(stanzas())[: int(limit) if limit else None], key=lambda record: record[1])  # stable: by section, as kcat sends them
    sections = {}
    with open(f"{folder}/sent", "wb") as sent, open(f"{folder}/java", "wb") as java:
        for number, (key, section, architecture, text) in enumerate(records):
            sent.write(FIELD.join([key, section, architecture, text]) + RECORD)
            java.write(b"section:%s,architecture:%s,number:%d" % (section, architecture, number) + b"\x03" + key + FIELD + text.replace(b"\n", LINE) + b"\n")
            if section not in sections:
                sections[section] = open(f"{folder}/kcat/{section.decode()}", "wb")
            sections[section].write(key + FIELD + text + RECORD)
    print(f"{len(records)} stanzas, {len({record[0] for record in records})} source packages, {os.path.getsize(folder + '/sent')} bytes")


def relabel(sent, section, out):
    with open(out, "wb") as file:
        for record in read(sent).split(RECORD)[:-1]:
            key, _, architecture, text = record.split(FIELD)
            file.write(FIELD.join([key, section.encode(), architecture, text]) + RECORD)


def feed(path, seconds):
    size = os.path.getsize(path)
    began = time.monotonic()
    with open(path, "rb") as file:
        while chunk := file.read(65536):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            due = began + float(seconds) * file.tell() / size
            time.sleep(max(0.0, due - time.monotonic()))


def expected(form, data):
    """value -> (number, key, headers)"""
    records = {}
    for number, record in enumerate(data.split(RECORD)[:-1]):
        key, section, architecture, text = record.split(FIELD)
        if form == "java":
            headers = b"section:%s,architecture:%s,number:%d" % (section, architecture, number)
            records[text.replace(b"\n", LINE)] = (number, key, headers)
        else:
            records[text] = (number, key, b"section=" + section)
    return records


def dumped(form, data):
    """(partition, offset, headers, key, value) of each record of a dump"""
    if form == "java":
        for record in data.split(RECORD)[:-1]:
            partition, offset, headers, key, value = record.split(FIELD, 4)
            yield int(partition.split(b":")[1]), int(offset.split(b":")[1]), headers, key, value
        return
    at = 0
    while at < len(data):
        end = data.index(b"\n", at)
        partition, offset, key_size, value_size, headers = data[at:end].split(b" ", 4)
        key_end = end + 1 + int(key_size)
        value_end = key_end + int(value_size)
        yield int(partition), int(offset), headers, data[end + 1 : key_end], data[key_end:value_end]
        at = value_end + 1


def judge(form, sent, dumps):
    records = expected(form, sent)
    total, next_offset, last_number, place_of_key, seen, number_at, again = len(records), {}, {}, {}, set(), {}, 0
    for dump in dumps:
        for partition, offset, headers, key, value in dumped(form, dump):
            where = f"partition {partition}, offset {offset}"
            if value not in records:
                raise Wrong(f"{where}: {value[:60]!r} was never sent")
            number, sent_key, sent_headers = records[value]
            # A group reads again what it had not committed when its coordinator went away; the log must say the same then.
            if form == "group" and offset < next_offset.get(partition, 0):
                if number_at[partition, offset] != number:
                    raise Wrong(f"{where}: record {number} now, record {number_at[partition, offset]} before")
                again += 1
                continue
            if next_offset.setdefault(partition, 0) != offset:
                raise Wrong(f"{where}: offset {next_offset[partition]} was due")
            next_offset[partition] = offset + 1
            number_at[partition, offset] = number
            if number in seen:
                raise Wrong(f"{where}: record {number} ({sent_key.decode()}) came twice")
            seen.add(number)
            if key != sent_key:
                raise Wrong(f"{where}: key {key!r} instead of {sent_key!r}")
            if headers != sent_headers:
                raise Wrong(f"{where}: headers {headers!r} instead of {sent_headers!r}")
            if place_of_key.setdefault(key, partition) != partition:
                raise Wrong(f"{where}: {key!r} is also in partition {place_of_key[key]}")
            if last_number.get(partition, -1) >= number:
                raise Wrong(f"{where}: record {number} came after {last_number[partition]}")
            last_number[partition] = number
    if len(seen) != total:
        raise Wrong(f"{total - len(seen)} of {total} records did not come")
    return f"{total} records, {len(place_of_key)} keys, {len(next_offset)} partitions, {again} read again"


def self_test():
    texts = [b"Package: p%d\nText: t%d" % (i, i) for i in range(40)]
    sent = b"".join(FIELD.join([b"k%d" % (i % 8), b"s", b"all", text]) + RECORD for i, text in enumerate(texts))

    def dump(form, order, key=lambda i: b"k%d" % (i % 8), partition=lambda i: i % 8 % 3, change=lambda i, text: text, header=lambda i: b"s"):
        offsets, out = {}, b""
        for i in order:
            at = offsets[partition(i)] = offsets.get(partition(i), -1) + 1
            text = change(i, texts[i])
            if form == "java":
                headers = b"section:%s,architecture:all,number:%d" % (header(i), i)
                out += FIELD.join([b"Partition:%d" % partition(i), b"Offset:%d" % at, headers, key(i), text.replace(b"\n", LINE)]) + RECORD
            else:
                out += b"%d %d %d %d section=%s\n%s%s\n" % (partition(i), at, len(key(i)), len(text), header(i), key(i), text)
        return out

    for form in ("kcat", "java"):
        all_of = list(range(40))
        judge(form, sent, [dump(form, all_of)])
        faults = {
            "lost": dump(form, all_of[:-1]),
            "doubled": dump(form, all_of + [39]),
            "order": dump(form, all_of[:5] + [13, 5] + all_of[6:13] + all_of[14:]),
            "bytes": dump(form, all_of, change=lambda i, text: text + b"x" if i == 9 else text),
            "key": dump(form, all_of, key=lambda i: b"other" if i == 9 else b"k%d" % (i % 8)),
            "headers": dump(form, all_of, header=lambda i: b"other" if i == 9 else b"s"),
            "key in two partitions": dump(form, all_of, partition=lambda i: 3 if i == 39 else i % 8 % 3),
        }
        for name, broken in faults.items():
            try:
                judge(form, sent, [broken])
            except Wrong:
                continue
            print(f"the judge did not notice: {name} ({form})")
            return 1
    judge("group", sent, [dump("kcat", all_of[:30]), dump("kcat", all_of)])
    try:
        judge("group", sent, [dump("kcat", all_of + [39])])
        print("the judge did not notice: doubled (group)")
        return 1
    except Wrong:
        pass
    print("the judge notices 15 of 15 planted faults")
    return 0


def read(path):
    with open(path, "rb") as file:
        return file.read()


def main(args):
    if args[:1] == ["split"] and len(args) in (2, 3):
        split(*args[1:])
    elif args[:1] == ["relabel"] and len(args) == 4:
        relabel(*args[1:])
    elif args[:1] == ["feed"] and len(args) == 3:
        feed(*args[1:])
    elif args[:1] == ["judge"] and len(args) > 3:
        try:
            print(judge(args[1], read(args[2]), [read(path) for path in args[3:]]))
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
