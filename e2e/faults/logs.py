"""The files of a broker that has ended: the batches of a partition's log, and their records."""

import glob
import os
import struct

# Base offset, length, leader epoch, magic, checksum, attributes, last offset delta, two timestamps, producer, epoch, sequence, count.
HEADER = struct.Struct(">qiibIhiqqqhii")


class Damaged(Exception):
    pass


def batches(directory):
    """(base offset, offset after the last, bytes) of each batch, in order; what is behind the last one is space that is kept ready."""
    next_offset = None
    for path in sorted(glob.glob(os.path.join(directory, "*.log"))):
        with open(path, "rb") as file:
            data = file.read()
        at = 0
        while at + HEADER.size <= len(data):
            base, length, _, magic, _, _, last_delta, *_ = HEADER.unpack_from(data, at)
            if length == 0:
                break
            end = at + 12 + length
            if magic != 2 or end > len(data) or (next_offset is not None and base != next_offset):
                raise Damaged(f"{path} at byte {at}: no batch that goes on at offset {next_offset}")
            next_offset = base + last_delta + 1
            yield base, next_offset, data[at:end]
            at = end


def numbering(batches):
    """What is wrong with how idempotent producers' batches are numbered: each goes on where the last one of its producer and epoch ended, from 0."""
    following = {}
    for base, _, batch in batches:
        *_, producer, epoch, sequence, count = HEADER.unpack_from(batch)
        if producer < 0:
            continue
        expected = following.get((producer, epoch), 0)
        if sequence != expected or any(newer > epoch for other, newer in following if other == producer):
            yield f"the batch at {base} of producer {producer}, epoch {epoch}, begins with sequence {sequence} where {expected} follows"
        following[producer, epoch] = sequence + count


def varint(data, at):
    shift = number = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return (number >> 1) ^ -(number & 1), at
        shift += 7


def records(base, batch):
    """(offset, value) of each record of an uncompressed batch."""
    attributes, count = HEADER.unpack_from(batch)[5], HEADER.unpack_from(batch)[-1]
    if attributes & 7:
        raise Damaged(f"the batch at {base} is compressed")
    at = HEADER.size
    for _ in range(count):
        length, at = varint(batch, at)
        end = at + length
        _, at = varint(batch, at + 1)   # behind the attributes: the timestamp
        delta, at = varint(batch, at)
        key, at = varint(batch, at)
        size, at = varint(batch, at + max(key, 0))
        yield base + delta, batch[at:at + max(size, 0)]
        at = end
