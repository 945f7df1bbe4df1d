"""What a scan of a whole file system sends: tables of inodes and tables of names, as columns.

An *inode table* is a count and a length (32 bits each, little-endian), a row of fixed size for each
inode, and the texts of symlinks in the order of their rows. A *name table* is a count and a length,
then for each name the directory's inode, then for each the inode it stands for, then lengths of
the names in two bytes each, and the names. One inode may have several names; a name whose inode is in
no table stands for a damaged one. Whoever reads tables takes none that `inode_table` and `name_table`
have not looked at: a hostile image may have chosen every byte.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atoll.filesystems.interface import EntryKind
from atoll.filesystems.wire import distrust

INODE = np.dtype(
    [
        ("inode", "<u8"),
        ("size", "<u8"),
        ("mtime", "<i8"),
        ("ctime", "<i8"),
        ("mtime_nanos", "<u4"),
        ("ctime_nanos", "<u4"),
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("nlink", "<u4"),
        ("mode", "<u2"),
        ("target", "<u2"),
        ("kind", "u1"),
    ]
)
"""`kind` counts from 1 in EntryKind's order, `target` is the length of a symlink's text in bytes."""

KINDS = tuple(EntryKind)
KIND_NUMBERS = {kind: number for number, kind in enumerate(KINDS, 1)}
DIRECTORY = KIND_NUMBERS[EntryKind.DIRECTORY]
SYMLINK = KIND_NUMBERS[EntryKind.SYMLINK]
_COUNTS = struct.Struct("<II")
_NANOS = 1_000_000_000
_MAX_SECONDS = 1 << 40
_MAX_SIZE = 1 << 63
_MAX_NAME_BYTES = 3 * 255  # 255 UTF-16 units as UTF-8


@dataclass(frozen=True, slots=True)
class InodeTable:
    """Rows of INODE, and the symlinks' texts one after the other."""

    rows: NDArray[np.void]
    targets: bytes


@dataclass(frozen=True, slots=True)
class NameTable:
    """Names, one after the other in `text`; `parents` and `inodes` are by inode number."""

    parents: NDArray[np.uint64]
    inodes: NDArray[np.uint64]
    lengths: NDArray[np.uint16]
    text: bytes


def pack_inodes(rows: NDArray[np.void], targets: Sequence[bytes]) -> bytes:
    """An inode table; the rows say how long each target is."""
    text = b"".join(targets)
    return _COUNTS.pack(len(rows), len(text)) + rows.tobytes() + text


def pack_names(
    parents: NDArray[np.uint64],
    inodes: NDArray[np.uint64],
    lengths: NDArray[np.uint16],
    text: bytes,
) -> bytes:
    """A name table."""
    head = _COUNTS.pack(len(lengths), len(text))
    columns = (parents.astype("<u8"), inodes.astype("<u8"), lengths.astype("<u2"))
    return head + b"".join(column.tobytes() for column in columns) + text


def inode_table(payload: bytes) -> InodeTable:
    """What was packed; UnsupportedFormatError for what no honest parser sends."""
    count, length = _counts(payload)
    at = _COUNTS.size + count * INODE.itemsize
    if at + length != len(payload):
        raise distrust("a table of the wrong length")
    rows = np.frombuffer(payload, INODE, count, _COUNTS.size)
    kind = rows["kind"]
    targets = rows["target"]
    if (
        np.any((kind < 1) | (kind > len(KINDS)))
        or np.any(rows["mode"] >= 0o10000)
        or np.any(rows["size"] >= _MAX_SIZE)
        or np.any(rows["inode"] == 0)
        or np.any(rows["mtime_nanos"] >= _NANOS)
        or np.any(rows["ctime_nanos"] >= _NANOS)
        or np.any((rows["mtime"] <= -_MAX_SECONDS) | (rows["mtime"] >= _MAX_SECONDS))
        or np.any((rows["ctime"] <= -_MAX_SECONDS) | (rows["ctime"] >= _MAX_SECONDS))
    ):
        raise distrust("a number out of range")
    links = kind == SYMLINK
    text = payload[at:]
    if (
        np.any(targets[~links])
        or np.any(targets[links] == 0)
        or int(targets.sum(dtype=np.int64)) != length
        or b"\0" in text
    ):
        raise distrust("an impossible symlink")
    return InodeTable(rows, text)


def name_table(payload: bytes) -> NameTable:
    """What was packed; UnsupportedFormatError for what no honest parser sends."""
    count, length = _counts(payload)
    at = _COUNTS.size + 18 * count
    if at + length != len(payload):
        raise distrust("a table of the wrong length")
    parents = np.frombuffer(payload, "<u8", count, _COUNTS.size)
    inodes = np.frombuffer(payload, "<u8", count, _COUNTS.size + 8 * count)
    lengths = np.frombuffer(payload, "<u2", count, _COUNTS.size + 16 * count)
    text = payload[at:]
    if not parents.all() or not inodes.all() or not lengths.all():
        raise distrust("a number out of range")
    if (
        int(lengths.sum(dtype=np.int64)) != length
        or bad_names(lengths, text).any()
        or np.any(lengths > _MAX_NAME_BYTES)
    ):
        raise distrust("an impossible name")
    return NameTable(parents, inodes, lengths, text)


def bad_names(lengths: NDArray[np.uint16], text: bytes) -> NDArray[np.bool_]:
    """Which of the names, none of them empty, no directory can have: `.`, `..`, and with `/` or zero."""
    bad = np.zeros(len(lengths), np.bool_)
    if not len(lengths):
        return bad
    ends = np.cumsum(lengths, dtype=np.int64)
    letters = np.frombuffer(text, np.uint8)
    if b"/" in text or b"\0" in text:
        where = np.flatnonzero((letters == 0x2F) | (letters == 0))
        bad[np.searchsorted(ends, where, side="right")] = True
    first, last = letters[ends - lengths] == 0x2E, letters[ends - 1] == 0x2E
    bad |= first & last & (lengths <= 2)
    return bad


def _counts(payload: bytes) -> tuple[int, int]:
    if len(payload) < _COUNTS.size:
        raise distrust("a table that is cut off")
    count, length = _COUNTS.unpack_from(payload)
    return count, length
