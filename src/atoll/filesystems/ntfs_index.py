"""Entries of NTFS indexes: the names of a directory, and where security descriptors are.

Blocks of an index are read as they lie, those that its bitmap says are in use: every entry comes
once, and no pointer between blocks can lead in a circle.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from atoll.filesystems.ntfs_layout import (
    BITMAP,
    INDEX_ALLOCATION,
    INDEX_ROOT,
    Layout,
    Record,
    damaged,
    mended,
    runs,
    small_value,
)

_NAMES = "$I30".encode("utf-16-le")
_SECURITY_IDS = "$SII".encode("utf-16-le")
_LAST = 2
_MAX_BITMAP_BYTES = 8 << 20
_MAX_ROOT_BYTES = 64 << 10
_NAME_BYTES = 66


class IndexedName(NamedTuple):
    """A name in a directory: the record it stands for, and `name` in UTF-16.

    `space` is 0 for POSIX, 1 for Windows, 2 for DOS alone, 3 for a name that is both.
    """

    record: int
    sequence: int
    name: bytes
    space: int


class Stored(NamedTuple):
    """Where a security descriptor lies in the stream `$SDS`, its head of 20 bytes before it."""

    offset: int
    length: int


def names(layout: Layout, directory: Record) -> Iterator[IndexedName]:
    """The names in a directory."""
    for entry, key in _entries(layout, directory, _NAMES):
        if len(key) < _NAME_BYTES:
            raise damaged("a directory has an entry that is no name")
        name = key[_NAME_BYTES : _NAME_BYTES + 2 * key[64]]
        if len(name) != 2 * key[64]:
            raise damaged("a directory has an entry that does not fit into it")
        record = int.from_bytes(entry[:6], "little")
        yield IndexedName(record, int.from_bytes(entry[6:8], "little"), name, key[65])


def security_descriptors(layout: Layout, secure: Record) -> Iterator[tuple[int, Stored]]:
    """The number of each security descriptor, and where it lies."""
    for entry, key in _entries(layout, secure, _SECURITY_IDS):
        start = int.from_bytes(entry[:2], "little")
        data = entry[start : start + 20]
        if len(key) != 4 or len(data) != 20:
            raise damaged("its index of security descriptors is not one")
        offset, length = struct.unpack_from("<QI", data, 8)
        yield int.from_bytes(key, "little"), Stored(offset, length)


def allocated_bytes(directory: Record) -> tuple[int, int]:
    """Size of a directory's index outside its record, and what it takes on the volume."""
    piece = directory.first(INDEX_ALLOCATION, _NAMES)
    return (0, 0) if piece is None else (piece.size, piece.allocated)


def _entries(layout: Layout, record: Record, name: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each entry of an index, and the key in it."""
    root = record.first(INDEX_ROOT, name)
    if root is None or root.value is None or not 32 <= len(root.value) <= _MAX_ROOT_BYTES:
        raise damaged(f"record {record.number} has no index")
    yield from _node(root.value, 16)
    size = int.from_bytes(root.value[8:12], "little")
    parts = record.parts(INDEX_ALLOCATION, name)
    if not parts:
        return
    if not 512 <= size <= 65536 or size & (size - 1):
        raise damaged(f"record {record.number} has an index of impossible blocks")
    used = small_value(layout, record.parts(BITMAP, name), _MAX_BITMAP_BYTES)
    limit = min(parts[0].size // size, 8 * len(used))
    pending = bytearray()
    number = 0
    for run in runs(layout, parts):
        if number >= limit:
            return
        if run.at is None:
            raise damaged(f"record {record.number} has an index with holes")
        at, left = run.at * layout.cluster_size, run.clusters * layout.cluster_size
        while left and number < limit:
            taken = min(left, size - len(pending))
            if used[number >> 3] >> (number & 7) & 1:
                pending += layout.blocks.read(at, taken)
            else:
                pending += bytes(taken)
            at += taken
            left -= taken
            if len(pending) == size:
                if used[number >> 3] >> (number & 7) & 1:
                    yield from _block(bytes(pending), record.number)
                pending.clear()
                number += 1


def _block(raw: bytes, number: int) -> Iterator[tuple[bytes, bytes]]:
    if raw[:4] != b"INDX":
        raise damaged(f"record {number} has an index block that is not one")
    yield from _node(mended(raw, f"an index block of record {number}"), 24)


def _node(raw: bytes, head: int) -> Iterator[tuple[bytes, bytes]]:
    start, used = struct.unpack_from("<II", raw, head)
    at, end = head + start, head + used
    if end > len(raw):
        raise damaged("an index block says that it is larger than it is")
    while at + 16 <= end:
        length, key, flags = struct.unpack_from("<HHH", raw, at + 8)
        if flags & _LAST:
            return
        if length < 16 or at + length > end or key > length - 16:
            raise damaged("an index has an entry that does not fit into it")
        yield raw[at : at + length], raw[at + 16 : at + 16 + key]
        at += length
    raise damaged("an index block has no end")
