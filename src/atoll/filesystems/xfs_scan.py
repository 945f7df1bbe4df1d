"""All inodes and names of an XFS file system, from its tables front to back; runs in the jail.

Inodes are read as columns, in the order in which they lie. Then the blocks of all directories, also in
that order, are walked side by side: a step is taken in thousands of blocks at once. What does not fit the
pattern (names in the inode, directory blocks in several pieces) goes through the code that reads
single directories.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from atoll.filesystems.crc32c import checksums
from atoll.filesystems.interface import EntryKind
from atoll.filesystems.tables import INODE, KIND_NUMBERS, bad_names, pack_inodes, pack_names
from atoll.filesystems.wire import MAX_READ_BYTES, Kind
from atoll.filesystems.xfs import KINDS, XfsVolume
from atoll.filesystems.xfs_content import data_runs
from atoll.filesystems.xfs_directory import (
    CHECKED,
    HEADS,
    INDEX_AT,
    SINGLE,
    names,
)
from atoll.filesystems.xfs_inodes import Chunk, chunks
from atoll.filesystems.xfs_layout import BIG_TIMES, LOCAL, Layout
from atoll.filesystems.xfs_superblock import damaged
from atoll.model.errors import UnsupportedFormatError

_BLOCKS_BYTES = 8 << 20
_BRIDGE_BYTES = 64 << 10
_BATCH_NAMES = 16384  # fit a frame however long they are
_BATCH_INODES = 4096
_BATCH_TARGETS_BYTES = 2 << 20
_MAX_SIZE = np.uint64(1 << 63)
_NANOS = 1_000_000_000
_KIND_OF_FORMAT = np.zeros(16, np.uint8)
for _format, _kind in KINDS.items():
    _KIND_OF_FORMAT[_format >> 12] = KIND_NUMBERS[_kind]
_DIRECTORY, _SYMLINK = KIND_NUMBERS[EntryKind.DIRECTORY], KIND_NUMBERS[EntryKind.SYMLINK]

Frame = tuple[Kind, bytes]
Numbers = NDArray[np.int64]
Bytes = NDArray[np.uint8]


def pieces(volume: XfsVolume) -> list[Chunk] | None:
    """Where all inodes lie; None if what says so is damaged, when names may still lead to all of them."""
    try:
        return list(chunks(volume.disk))
    except UnsupportedFormatError:
        return None


def frames(volume: XfsVolume, inodes: Sequence[Chunk]) -> Iterator[Frame]:
    """Tables of everything that is in use, and faults of directories that cannot be read."""
    layout = volume.disk
    directories = _Directories(volume)
    for batch in _batches(inodes):
        yield from _inodes(volume, batch, directories)
    for owners, places in directories.blocks():
        yield from _walk(layout, owners, _read(layout, places))
    yield from directories.rest()


def _batches(inodes: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    """Pieces in batches that are worth the effort of taking them as columns."""
    batch: list[Chunk] = []
    count = 0
    for chunk in inodes:
        batch.append(chunk)
        count += chunk.inodes
        if count >= _BATCH_INODES:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch


def _dtype(layout: Layout) -> np.dtype[np.void]:
    fields = {
        "magic": ("S2", 0),
        "mode": (">u2", 2),
        "version": ("u1", 4),
        "format": ("u1", 5),
        "old_nlink": (">u2", 6),
        "uid": (">u4", 8),
        "gid": (">u4", 12),
        "nlink": (">u4", 16),
        "mtime": (">u8", 40),
        "ctime": (">u8", 48),
        "size": (">u8", 56),
    }
    if layout.geometry.checked:
        fields |= {"crc": ("<u4", 100), "flags2": (">u8", 120), "number": (">u8", 152)}
    return np.dtype(
        {
            "names": list(fields),
            "formats": [form for form, _ in fields.values()],
            "offsets": [at for _, at in fields.values()],
            "itemsize": layout.geometry.inode_size,
        }
    )


def _inodes(
    volume: XfsVolume, batch: Sequence[Chunk], directories: "_Directories"
) -> Iterator[Frame]:
    """The table of what is in use in some pieces of the inodes, and what it says of directories."""
    layout = volume.disk
    parts: list[bytes] = []
    newer: list[int] = []
    before = 0
    for chunk in batch:
        part, changed = layout.raw_inodes(chunk.first, chunk.inodes, chunk.at)
        parts.append(part)
        newer += [before + number for number in changed]
        before += chunk.inodes
    raw = b"".join(parts)
    disk = np.frombuffer(raw, _dtype(layout))
    numbers = np.concatenate([np.arange(c.first, c.first + c.inodes) for c in batch])
    numbers = numbers.astype(np.uint64)
    kinds = _KIND_OF_FORMAT[disk["mode"] >> 12]
    used = (kinds != 0) & (disk["magic"] == b"IN")
    if layout.geometry.checked:
        whole = checksums(raw, layout.geometry.inode_size, 100) == disk["crc"]
        whole[newer] = True
        used &= whole & (disk["version"] == 3) & (disk["number"] == numbers)
        nlink = disk["nlink"].astype(np.uint32)
    else:
        used &= (disk["version"] == 1) | (disk["version"] == 2)
        nlink = np.where(disk["version"] == 1, disk["old_nlink"], disk["nlink"]).astype(np.uint32)
    used &= (nlink != 0) & (disk["size"] < _MAX_SIZE)
    where = np.flatnonzero(used)
    if not len(where):
        return
    disk = disk[where]
    rows = np.zeros(len(where), INODE)
    rows["inode"], rows["kind"], rows["nlink"] = numbers[where], kinds[where], nlink[where]
    rows["mode"] = disk["mode"] & 0o7777
    for name in ("uid", "gid", "size"):
        rows[name] = disk[name]
    wide = (disk["flags2"] & BIG_TIMES) != 0 if layout.geometry.checked else None
    for name in ("mtime", "ctime"):
        rows[name], rows[f"{name}_nanos"] = _times(disk[name], wide)
    keep = (rows["mtime_nanos"] < _NANOS) & (rows["ctime_nanos"] < _NANOS)
    targets: list[bytes] = []
    for at in np.flatnonzero(rows["kind"] == _SYMLINK):
        target = _target(volume, int(rows["inode"][at])) if keep[at] else b""
        if target:
            rows["target"][at] = len(target)
            targets.append(target)
        else:
            keep[at] = False
    if not keep.all():
        rows, where = rows[keep], where[keep]
    size = layout.geometry.inode_size
    for at in np.flatnonzero(rows["kind"] == _DIRECTORY):
        start = int(where[at]) * size
        directories.add(int(rows["inode"][at]), raw[start : start + size])
    yield from _inode_frames(rows, targets)


def _times(
    values: NDArray[np.uint64], wide: NDArray[np.bool_] | None
) -> tuple[Numbers, NDArray[np.uint32]]:
    """Seconds and nanoseconds from both encodings."""
    plain = values.astype(np.uint64)
    seconds = (plain >> np.uint64(32)).astype(np.uint32).view(np.int32).astype(np.int64)
    nanos = plain.astype(np.uint32)
    if wide is not None:
        whole, rest = np.divmod(plain, np.uint64(_NANOS))
        seconds = np.where(wide, whole.astype(np.int64) - (1 << 31), seconds)
        nanos = np.where(wide, rest.astype(np.uint32), nanos)
    return seconds, nanos


def _target(volume: XfsVolume, number: int) -> bytes:
    """A symlink's text; empty when it is damaged."""
    try:
        text = volume.entry(number, "/").target
    except UnsupportedFormatError:
        return b""
    return (text or "").encode("utf-8", "surrogateescape")


def _inode_frames(rows: NDArray[np.void], targets: Sequence[bytes]) -> Iterator[Frame]:
    """One table, or several where symlinks are so long that it would not fit a frame."""
    if sum(map(len, targets)) <= _BATCH_TARGETS_BYTES:
        yield Kind.INODES, pack_inodes(rows, targets)
        return
    ends = np.cumsum(rows["target"] > 0)
    for at in range(0, len(rows), 256):
        part = rows[at : at + 256]
        first = int(ends[at - 1]) if at else 0
        yield Kind.INODES, pack_inodes(part, targets[first : int(ends[at + len(part) - 1])])


class _Directories:
    """Where the blocks of directories lie, and the names that lie elsewhere."""

    def __init__(self, volume: XfsVolume) -> None:
        self._volume = volume
        self._owners: list[int] = []
        self._places: list[int] = []
        self._counts: list[int] = []
        self._others: list[int] = []
        self._short: list[tuple[int, bytes, int]] = []
        self._faults: list[Frame] = []

    def add(self, number: int, raw: bytes) -> None:
        """Take in a directory."""
        layout = self._volume.disk
        step, size = layout.geometry.block_size, layout.geometry.directory_block_size
        try:
            inode = layout.parse(number, raw)
            if inode.format == LOCAL:
                self._short += [(number, name, child) for name, child in names(layout, inode)]
                return
            runs = list(
                takewhile(lambda run: run.logical * step < INDEX_AT, data_runs(layout, inode))
            )
            if number in self._volume.stale_content or any(
                run.unwritten or run.logical * step % size or run.blocks * step % size
                for run in runs
            ):
                self._others.append(number)
                return
            for run in runs:
                self._owners.append(number)
                self._places.append(run.at)
                self._counts.append(run.blocks * step // size)
        except UnsupportedFormatError as error:
            self._faults.append(fault(number, str(error)))

    def blocks(self) -> Iterator[tuple[Numbers, Numbers]]:
        """Directory and place, in the order of places, of all blocks that lie in one piece."""
        known = self._volume.disk.geometry
        if not self._owners:
            return
        counts = np.array(self._counts, np.int64)
        total = int(counts.sum())
        # Blocks that several directories claim are a hostile image's way to make few many.
        if total * known.directory_block_size > known.block_count * known.block_size:
            raise damaged("its directories have more blocks than it has")
        owners = np.repeat(np.array(self._owners, np.int64), counts)
        inside = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(np.array(self._places, np.int64), counts)
        places += inside * known.directory_block_size
        order = np.argsort(places, kind="stable")
        step = _BLOCKS_BYTES // known.directory_block_size
        for first in range(0, total, step):
            part = order[first : first + step]
            yield owners[part], places[part]

    def rest(self) -> Iterator[Frame]:
        """What is not in such blocks."""
        yield from self._faults
        found = self._short
        for number in self._others:
            try:
                found += [(number, name, child) for name, child in self._volume.names(number)]
            except UnsupportedFormatError as error:
                yield fault(number, str(error))
        for first in range(0, len(found), _BATCH_NAMES):
            part = found[first : first + _BATCH_NAMES]
            yield (
                Kind.NAMES,
                pack_names(
                    np.array([parent for parent, _, _ in part], np.uint64),
                    np.array([child for _, _, child in part], np.uint64),
                    np.array([len(name) for _, name, _ in part], np.uint16),
                    b"".join(name for _, name, _ in part),
                ),
            )


def fault(inode: int, reason: str) -> Frame:
    """A directory that could not be read whole."""
    return Kind.FAULT, json.dumps([str(inode), reason, False]).encode()


def _read(layout: Layout, places: Numbers) -> Bytes:
    """The directory blocks at these places, which ascend; neighbours are read together."""
    size = layout.geometry.directory_block_size
    found = np.empty((len(places), size), np.uint8)
    at = 0
    while at < len(places):
        start = int(places[at])
        end = at + 1
        while (
            end < len(places)
            and int(places[end]) + size - start <= MAX_READ_BYTES
            and int(places[end]) - int(places[end - 1]) - size <= _BRIDGE_BYTES
        ):
            end += 1
        raw = np.frombuffer(layout.read(start, int(places[end - 1]) + size - start), np.uint8)
        for place in range(at, end):
            inside = int(places[place]) - start
            found[place] = raw[inside : inside + size]
        at = end
    if layout.geometry.checked:
        whole = checksums(found.tobytes(), size, 4) == found[:, 4:8].copy().view("<u4")[:, 0]
        for number in np.flatnonzero(~whole):
            if not layout.fresh(int(places[number]), size):
                found[number, :4] = 0  # so that it is none
    return found


def _walk(layout: Layout, owners: Numbers, raw: Bytes) -> Iterator[Frame]:
    """Names in blocks of directories, all blocks side by side, one entry of each at a time."""
    size = layout.geometry.directory_block_size
    flat = raw.reshape(-1)
    words = flat.view(">u8")
    magics = raw[:, :4].copy().view("S4")[:, 0]
    starts, ends = np.zeros(len(owners), np.int64), np.full(len(owners), size, np.int64)
    for magic, head in HEADS.items():
        if (magic in CHECKED) == layout.geometry.checked:
            here = magics == magic
            starts[here] = head
            if magic in SINGLE and here.any():
                ends[here] -= 8 + 8 * raw[here, -8:-4].copy().view(">u4")[:, 0].astype(np.int64)
    broken = (starts == 0) | (ends < starts)
    extra = 18 + (1 if layout.geometry.kinds_in_directories else 0)
    alive = np.flatnonzero(~broken)
    place, ends = starts[alive], ends[alive]
    found: list[tuple[Numbers, NDArray[np.uint64], Numbers]] = []
    while True:
        more = place + 16 <= ends
        if not more.all():
            alive, place, ends = alive[more], place[more], ends[more]
        if not len(alive):
            break
        at = alive * size + place
        word = words[at >> 3].astype(np.uint64)
        name = flat[at + 8].astype(np.int64)
        gap = word >> np.uint64(48) == 0xFFFF
        length = np.where(
            gap, (word >> np.uint64(32)).astype(np.int64) & 0xFFFF, (name + extra) & ~7
        )
        sound = (length >= 8) & (length % 8 == 0) & (place + length <= ends)
        there = sound & ~gap
        found.append((at[there] + 9, word[there], name[there]))
        if not sound.all():
            broken[alive[~sound]] = True
            alive, place, ends, length = alive[sound], place[sound], ends[sound], length[sound]
        place = place + length
    for number in np.unique(owners[broken]):
        yield fault(int(number), f"directory {number} has a block that is damaged")
    if not found:
        return
    starts, inodes, lengths = (np.concatenate([each[c] for each in found]) for c in range(3))
    order = np.argsort(starts, kind="stable")
    for first in range(0, len(order), _BATCH_NAMES):
        part = order[first : first + _BATCH_NAMES]
        yield from _names(flat, owners, starts[part], inodes[part], lengths[part], size)


def _names(
    flat: Bytes,
    owners: Numbers,
    starts: Numbers,
    inodes: NDArray[np.uint64],
    lengths: Numbers,
    size: int,
) -> Iterator[Frame]:
    parents = owners[starts // size]
    own = (flat[starts] == 0x2E) & (
        (lengths == 1) | ((lengths == 2) & (flat[np.minimum(starts + 1, len(flat) - 1)] == 0x2E))
    )
    there = ~own & (lengths > 0)
    text = _gathered(flat, starts[there], lengths[there])
    bad = lengths == 0
    bad[there] = bad_names(lengths[there].astype(np.uint16), text) | (inodes[there] == 0)
    for number in np.unique(parents[bad]):
        yield fault(int(number), f"directory {number} has an impossible name in it")
    if bad.any():
        there &= ~bad
        text = _gathered(flat, starts[there], lengths[there])
    if there.any():
        yield (
            Kind.NAMES,
            pack_names(
                parents[there].astype(np.uint64),
                inodes[there],
                lengths[there].astype(np.uint16),
                text,
            ),
        )


def _gathered(flat: Bytes, starts: Numbers, lengths: Numbers) -> bytes:
    """Texts that lie apart, one after the other."""
    before = np.cumsum(lengths) - lengths
    places = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
    return flat[places].tobytes()
