"""All inodes and names of an NTFS volume, from its MFT front to back; runs in the jail.

Records are read by thousands and their attributes walked side by side, a step in all of them at once.
Names are those that records give themselves. What does not fit the pattern (lists of attributes,
reparse points, large streams) goes through the code that reads single files.
"""

import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.filesystems.interface import Entry, EntryKind
from atoll.filesystems.ntfs import DIRECTORY_MODE, DOS, FILE_MODE, FIRST_USER, ROOT, NtfsVolume
from atoll.filesystems.ntfs_layout import (
    ATTRIBUTE_LIST,
    DATA,
    EPOCH,
    FILE_NAME,
    INDEX_ALLOCATION,
    REPARSE_POINT,
    SECTOR,
    STANDARD_INFORMATION,
    Layout,
)
from atoll.filesystems.tables import INODE, KIND_NUMBERS, pack_inodes, pack_names
from atoll.filesystems.utf16_names import is_possible, to_bytes
from atoll.filesystems.wire import MAX_XATTR_BYTES, Kind
from atoll.model.errors import UnsupportedFormatError

Frame = tuple[Kind, bytes]
Numbers = NDArray[np.int64]
Name = tuple[int, int, bytes]

_STRETCH_BYTES = 4 << 20
_BATCH = 8192  # names of 765 bytes each still fit a frame
_FILE, _UNWRITTEN = 0x454C4946, 0x44414142  # "FILE", "BAAD"
_RECORD_NUMBER = (1 << 48) - 1
_END = 0xFFFFFFFF
_TICKS, _NANOS = 10_000_000, 1_000_000_000
_MAX_SECONDS = 1 << 35
_MAX_SIZE = 1 << 63
_PADDING = 128


class _Stretch:
    """Some records of the MFT that follow each other, mended, and views of them in words."""

    def __init__(self, layout: Layout, first: int, raw: bytes) -> None:
        self.size = layout.record_size
        self.count = len(raw) // self.size
        self.first = first
        self.bytes = np.frombuffer(bytearray(raw + bytes(_PADDING)), np.uint8)
        self.words = self.bytes.view("<u2")
        self.longs = self.bytes.view("<u4")
        self.quads = self.bytes.view("<u8")
        starts = np.arange(self.count, dtype=np.int64) * self.size
        magic = self.longs[starts >> 2]
        used = (magic == _FILE) & (self.words[(starts + 22) >> 1] & 1 == 1)
        sound = used & self._mend(starts, used)
        self.broken: list[int] = (
            np.flatnonzero((used & ~sound) | (magic == _UNWRITTEN)) + first
        ).tolist()
        base = self.quads[(starts + 32) >> 3] & np.uint64(_RECORD_NUMBER)
        numbers = np.arange(self.count) + first
        wanted = (numbers >= FIRST_USER) | (numbers == ROOT)
        self.records: Numbers = np.flatnonzero(sound & (base == 0) & wanted)

    def _mend(self, starts: Numbers, used: NDArray[np.bool_]) -> NDArray[np.bool_]:
        sectors = self.size // SECTOR
        at = self.words[(starts + 4) >> 1].astype(np.int64)
        sound: NDArray[np.bool_] = self.words[(starts + 6) >> 1] == sectors + 1
        sound &= (at >= 24) & (at % 2 == 0)
        sound &= used & (at + 2 * (sectors + 1) <= SECTOR - 2)
        where = np.flatnonzero(sound)
        begin, mark_at = starts[where], starts[where] + at[where]
        mark = self.words[mark_at >> 1].copy()
        good = np.ones(len(where), np.bool_)
        for number in range(1, sectors + 1):
            end = (begin + number * SECTOR - 2) >> 1
            good &= self.words[end] == mark
            self.words[end] = self.words[(mark_at + 2 * number) >> 1]
        sound[where[~good]] = False
        return sound


class _Found(NamedTuple):
    """By record of a stretch: where its standard information begins (-1 without), sizes, and which are
    for the other code; and of each name the record and where it begins."""

    standard: Numbers
    size: NDArray[np.uint64]
    index_size: NDArray[np.uint64]
    odd: NDArray[np.bool_]
    owners: Numbers
    places: Numbers


def frames(volume: NtfsVolume) -> Iterator[Frame]:
    """Tables of everything that is in use, and faults of records that cannot be read."""
    for first, raw in _stretches(volume.disk):
        stretch = _Stretch(volume.disk, first, raw)
        for number in stretch.broken:
            yield fault(f"record {number} of the MFT is damaged, its names are not listed")
        found = _attributes(stretch)
        yield from _plain(stretch, found)
        odd = stretch.records[found.odd[stretch.records]] + first
        yield from _odd(volume, odd.tolist())


def fault(reason: str) -> Frame:
    """What could not be read, in no directory that is known."""
    return Kind.FAULT, json.dumps(["0", reason, False]).encode()


def _stretches(layout: Layout) -> Iterator[tuple[int, bytes]]:
    """The MFT in pieces of whole records, with the number of the first; gaps in it are left out."""
    size, cluster = layout.record_size, layout.cluster_size
    pending = bytearray()
    begin = 0
    for run in layout.table:
        at, end = run.first * cluster, (run.first + run.clusters) * cluster
        end = min(end, layout.record_count * size)
        if at != begin + len(pending):
            pending.clear()
            begin = at = -(-at // size) * size
        while at < end and run.at is not None:
            count = min(_STRETCH_BYTES, end - at)
            pending += layout.blocks.read(run.at * cluster + at - run.first * cluster, count)
            at += count
            whole = len(pending) // size * size
            if whole:
                yield begin // size, bytes(pending[:whole])
                del pending[:whole]
                begin += whole


def _attributes(stretch: _Stretch) -> _Found:
    """Walk the attributes of all records, one of each at a time."""
    standard = np.full(stretch.count, -1, np.int64)
    size = np.zeros(stretch.count, np.uint64)
    index_size = np.zeros(stretch.count, np.uint64)
    odd = np.zeros(stretch.count, np.bool_)
    owners: list[Numbers] = []
    places: list[Numbers] = []
    records = stretch.records
    begin = records * stretch.size
    at = begin + stretch.words[(begin + 20) >> 1]
    end = begin + np.minimum(stretch.longs[(begin + 24) >> 2], stretch.size)
    while len(records):
        inside = (at + 8 <= end) & (at % 8 == 0)
        odd[records[~inside]] = True
        records, at, end = records[inside], at[inside], end[inside]
        kind = stretch.longs[at >> 2]
        length = stretch.longs[(at + 4) >> 2].astype(np.int64)
        done = kind == _END
        bad = ~done & ((length < 24) | (length % 8 != 0) | (at + length > end))
        odd[records[bad]] = True
        more = ~done & ~bad
        records, at, end, kind, length = (each[more] for each in (records, at, end, kind, length))
        apart = stretch.bytes[at + 8] != 0
        named = stretch.bytes[at + 9] != 0
        short = stretch.longs[(at + 16) >> 2].astype(np.int64)
        value = at + stretch.words[(at + 20) >> 1]
        first = apart & (stretch.quads[(at + 16) >> 3] == 0) & (length >= 64)
        whole = ~apart & (value % 8 == 0) & (value + short <= at + length)
        sizes = np.where(first, stretch.quads[(at + 48) >> 3], short.astype(np.uint64))

        here = kind == STANDARD_INFORMATION
        known = here & whole & (short >= 48)
        standard[records[known]] = value[known]
        odd[records[here & ~known]] = True
        here = kind == FILE_NAME
        fits = here & whole & (short >= 66)
        fits[fits] &= 66 + 2 * stretch.bytes[value[fits] + 64].astype(np.int64) <= short[fits]
        owners.append(records[fits])
        places.append(value[fits])
        odd[records[here & ~fits]] = True
        here = (kind == DATA) & (first | whole)
        size[records[here & ~named]] = sizes[here & ~named]
        odd[records[here & named & (sizes > MAX_XATTR_BYTES)]] = True
        odd[records[(kind == DATA) & ~(first | whole)]] = True
        here = (kind == INDEX_ALLOCATION) & first
        index_size[records[here]] = sizes[here]
        odd[records[(kind == ATTRIBUTE_LIST) | (kind == REPARSE_POINT)]] = True
        at = at + length
    odd |= (standard < 0) | (size >= _MAX_SIZE) | (index_size >= _MAX_SIZE)
    none = np.zeros(0, np.int64)
    return _Found(
        *(standard, size, index_size, odd),
        *(np.concatenate([none, *owners]), np.concatenate([none, *places])),
    )


def _plain(stretch: _Stretch, found: _Found) -> Iterator[Frame]:
    """Tables of what fits the pattern."""
    shown = stretch.bytes[found.places + 65] != DOS
    shown &= ~found.odd[found.owners]
    owners, places = found.owners[shown], found.places[shown]
    links = np.bincount(owners, minlength=stretch.count)
    records = stretch.records[~found.odd[stretch.records]]
    rows = np.zeros(len(records), INODE)
    at = found.standard[records]
    directory = (stretch.words[(records * stretch.size + 22) >> 1] & 2) != 0
    rows["inode"] = records + stretch.first
    rows["size"] = np.where(directory, found.index_size[records], found.size[records])
    for name, offset in (("mtime", 8), ("ctime", 16)):
        ticks = stretch.quads[(at + offset) >> 3]
        seconds = (ticks // _TICKS).astype(np.int64) - EPOCH // _TICKS
        rows[name] = np.clip(seconds, -_MAX_SECONDS, _MAX_SECONDS)
        rows[f"{name}_nanos"] = ticks % _TICKS * 100
    rows["nlink"] = np.where(directory, 1, np.maximum(links[records], 1))
    rows["mode"] = np.where(directory, DIRECTORY_MODE, FILE_MODE)
    kinds = KIND_NUMBERS[EntryKind.DIRECTORY], KIND_NUMBERS[EntryKind.FILE]
    rows["kind"] = np.where(directory, *kinds)
    for start in range(0, len(rows), _BATCH):
        yield Kind.INODES, pack_inodes(rows[start : start + _BATCH], [])
    parents = stretch.quads[places >> 3] & np.uint64(_RECORD_NUMBER)
    raw = stretch.bytes.tobytes()
    names = [
        (parent, owner, to_bytes(raw[place + 66 : place + 66 + 2 * raw[place + 64]]))
        for parent, owner, place in zip(
            *(parents.tolist(), (owners + stretch.first).tolist(), places.tolist()), strict=True
        )
    ]
    yield from _names(names)


def _odd(volume: NtfsVolume, numbers: list[int]) -> Iterator[Frame]:
    """The same of what does not, one by one."""
    entries: list[Entry] = []
    names: list[Name] = []
    for number in numbers:
        try:
            record = volume.disk.record(number)
            found = [
                piece.value
                for piece in record.pieces
                if piece.type == FILE_NAME and piece.value is not None and len(piece.value) >= 66
            ]
            shown = [
                (int.from_bytes(raw[:6], "little"), to_bytes(raw[66 : 66 + 2 * raw[64]]))
                for raw in found
                if raw[65] != DOS
            ]
            names += [(parent, number, name) for parent, name in shown]
            streams = list(volume.large_streams(b"", record))
            for parent, name in [(ROOT, b"")] if number == ROOT else shown:
                names += [(parent, stream, name + text) for text, stream in streams]
            entries.append(volume.entry(number, "/"))
            entries += [volume.entry(stream, "/") for _, stream in streams]
        except UnsupportedFormatError as error:
            yield fault(str(error))
        if len(entries) >= _BATCH or len(names) >= _BATCH:
            yield from _inodes(entries)
            yield from _names(names)
            entries, names = [], []
    yield from _inodes(entries)
    yield from _names(names)


def _inodes(entries: list[Entry]) -> Iterator[Frame]:
    if not entries:
        return
    targets = [(entry.target or "").encode("utf-8", "surrogateescape") for entry in entries]
    rows = [
        (
            *(entry.inode, entry.size, entry.mtime_ns // _NANOS, entry.ctime_ns // _NANOS),
            *(entry.mtime_ns % _NANOS, entry.ctime_ns % _NANOS, entry.uid, entry.gid),
            *(entry.nlink, entry.mode, len(target), KIND_NUMBERS[entry.kind]),
        )
        for entry, target in zip(entries, targets, strict=True)
    ]
    yield Kind.INODES, pack_inodes(np.array(rows, INODE), targets)


def _names(found: list[Name]) -> Iterator[Frame]:
    """Name tables; what is the file system's own, and the root's name of itself, are left out."""
    names = []
    for parent, number, name in found:
        if number == ROOT or (parent < FIRST_USER and parent != ROOT):
            continue
        if is_possible(name):
            names.append((parent, number, name))
        else:
            yield fault(f"record {number} of the MFT has an impossible name")
    for start in range(0, len(names), _BATCH):
        part = names[start : start + _BATCH]
        yield (
            Kind.NAMES,
            pack_names(
                np.array([parent for parent, _, _ in part], np.uint64),
                np.array([number for _, number, _ in part], np.uint64),
                np.array([len(name) for _, _, name in part], np.uint16),
                b"".join(name for _, _, name in part),
            ),
        )
