"""All inodes and names of an ext2/3/4 file system, from its tables front to back; runs in the jail.

Inode tables are read as columns, a piece at a time, as far as they were ever used. Then the blocks
of all directories, in the order in which they lie, are walked side by side: a step is taken in
thousands of blocks at once. What does not fit the pattern (deep extent trees, block maps, directories
inside their inode) goes through the same code that reads single directories.
Source: kernel.org ext4 disk layout.
"""

import itertools
import json
import stat
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from atoll.filesystems.ext4 import KINDS, Ext4Volume
from atoll.filesystems.ext4_content import runs
from atoll.filesystems.ext4_layout import DIRECTORY_TYPES, EXTENTS, INLINE_DATA, Layout
from atoll.filesystems.interface import EntryKind
from atoll.filesystems.tables import INODE, KIND_NUMBERS, bad_names, pack_inodes, pack_names
from atoll.filesystems.wire import MAX_READ_BYTES, Kind
from atoll.model.errors import UnsupportedFormatError

_TABLE_BYTES = 4 << 20
_BLOCKS_BYTES = 16 << 20
_BATCH_NAMES = 16384  # fit a frame however long they are
_BRIDGE_BYTES = 64 << 10
_FAST_SYMLINK_BYTES = 60
_MAX_TARGET_BYTES = 4096
_MAX_SIZE = np.uint64(1 << 63)
_EXTENT_MAGIC = 0xF30A
_UNWRITTEN = 0x8000
_BATCH_TARGETS_BYTES = 2 << 20
_KIND_OF_FORMAT = np.zeros(16, np.uint8)
for _format, _kind in KINDS.items():
    _KIND_OF_FORMAT[_format >> 12] = KIND_NUMBERS[_kind]
_DIRECTORY, _FILE, _SYMLINK = (
    KIND_NUMBERS[kind] for kind in (EntryKind.DIRECTORY, EntryKind.FILE, EntryKind.SYMLINK)
)

Frame = tuple[Kind, bytes]
Numbers = NDArray[np.int64]


def frames(volume: Ext4Volume) -> Iterator[Frame]:
    """Tables of everything that is in use, and faults of directories that cannot be read."""
    layout = volume.disk
    directories = _Directories(layout)
    for first, raw in layout.inode_tables(_TABLE_BYTES):
        yield from _inodes(volume, first, raw, directories)
    yield from directories.faults
    yield from _linear(layout, *directories.blocks())
    for number in directories.others:
        yield from _one_by_one(volume, number)


def _inode_dtype(size: int) -> np.dtype[np.void]:
    fields = {
        "mode": ("<u2", 0),
        "uid": ("<u2", 2),
        "size": ("<u4", 4),
        "ctime": ("<i4", 12),
        "mtime": ("<i4", 16),
        "gid": ("<u2", 24),
        "nlink": ("<u2", 26),
        "flags": ("<u4", 32),
        "block": ("V60", 40),
        "size_high": ("<u4", 108),
        "uid_high": ("<u2", 120),
        "gid_high": ("<u2", 122),
    }
    if size > 128:
        fields |= {"extra": ("<u2", 128), "ctime_extra": ("<u4", 132), "mtime_extra": ("<u4", 136)}
    return np.dtype(
        {
            "names": list(fields),
            "formats": [form for form, _ in fields.values()],
            "offsets": [at for _, at in fields.values()],
            "itemsize": size,
        }
    )


def _inodes(
    volume: Ext4Volume, first: int, raw: bytes, directories: "_Directories"
) -> Iterator[Frame]:
    """The inode table of what is in use in a piece of the disk's, and what it says of directories."""
    layout = volume.disk
    disk = np.frombuffer(raw, _inode_dtype(layout.inode_size))
    kinds = _KIND_OF_FORMAT[disk["mode"] >> 12]
    used = (kinds != 0) & (disk["nlink"] != 0)
    if layout.inode_size > 128:
        extra = disk["extra"]
        used &= (extra <= layout.inode_size - 128) & (extra % 4 == 0)
    numbers = np.flatnonzero(used)
    if not len(numbers):
        return
    disk, kinds = disk[numbers], kinds[numbers]
    rows = np.zeros(len(numbers), INODE)
    rows["inode"] = numbers + first
    rows["kind"] = kinds
    rows["mode"] = disk["mode"] & 0o7777
    rows["nlink"] = disk["nlink"]
    rows["uid"] = disk["uid"] | disk["uid_high"].astype(np.uint32) << 16
    rows["gid"] = disk["gid"] | disk["gid_high"].astype(np.uint32) << 16
    wide = (kinds == _FILE) | ((kinds == _DIRECTORY) & layout.large_directories)
    size = disk["size"].astype(np.uint64)
    size[wide] |= disk["size_high"][wide].astype(np.uint64) << np.uint64(32)
    rows["size"] = size
    for name, least in (("ctime", 8), ("mtime", 12)):
        seconds = disk[name].astype(np.int64)
        if layout.inode_size > 128:
            finer = np.where(disk["extra"] >= least, disk[f"{name}_extra"], 0).astype(np.int64)
            seconds += (finer & 3) << 32
            rows[f"{name}_nanos"] = finer >> 2
        rows[name] = seconds
    good = (size < _MAX_SIZE) & (rows["mtime_nanos"] < 10**9) & (rows["ctime_nanos"] < 10**9)
    if not good.all():
        rows, disk = rows[good], disk[good]
    targets: list[bytes] = []
    links = np.flatnonzero(rows["kind"] == _SYMLINK)
    if len(links):
        keep = np.ones(len(rows), np.bool_)
        for at in links:
            target = _target(volume, rows[at], disk[at])
            if target is None:
                keep[at] = False
            else:
                rows["target"][at] = len(target)
                targets.append(target)
        if not keep.all():
            rows, disk = rows[keep], disk[keep]
    found = rows["kind"] == _DIRECTORY
    directories.add(rows["inode"][found], rows["size"][found], disk[found])
    yield from _inode_frames(rows, targets)


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


def _target(volume: Ext4Volume, row: np.void, disk: np.void) -> bytes | None:
    """A symlink's text; None if it is damaged or absurdly long."""
    size = int(row["size"])
    if 0 < size < _FAST_SYMLINK_BYTES and not int(disk["flags"]) & INLINE_DATA:
        target = disk["block"].tobytes()[:size]
        return None if b"\0" in target else target
    if not 0 < size <= _MAX_TARGET_BYTES:
        return None
    try:
        text = volume.entry(int(row["inode"]), "/").target
    except UnsupportedFormatError:
        return None
    target = (text or "").encode("utf-8", "surrogateescape")
    return target if 0 < len(target) <= _MAX_TARGET_BYTES else None


class _Directories:
    """Where the blocks of directories lie; `others` have to be read one by one."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._runs: list[tuple[Numbers, Numbers, Numbers]] = []
        self.others: list[int] = []
        self.faults: list[Frame] = []

    def add(
        self, numbers: NDArray[np.uint64], sizes: NDArray[np.uint64], disk: NDArray[np.void]
    ) -> None:
        """Take in directories of a piece of the inode tables."""
        if not len(numbers):
            return
        block = np.frombuffer(disk["block"].tobytes(), "<u2").reshape(-1, 30)
        plain = (disk["flags"] & EXTENTS != 0) & (disk["flags"] & INLINE_DATA == 0)
        plain &= (block[:, 0] == _EXTENT_MAGIC) & (block[:, 3] == 0) & (block[:, 1] <= 4)
        inodes = numbers.astype(np.int64)
        size = self._layout.block_size
        limit = -(-sizes.astype(np.int64) // size)
        for slot in range(4):
            at = 6 + 6 * slot
            logical = block[:, at].astype(np.int64) | block[:, at + 1].astype(np.int64) << 16
            count = block[:, at + 2].astype(np.int64)
            start = block[:, at + 3].astype(np.int64) << 32
            start |= block[:, at + 4].astype(np.int64) | block[:, at + 5].astype(np.int64) << 16
            there = plain & (block[:, 1] > slot)
            sound = (count > 0) & (count <= _UNWRITTEN) & (start > 0) & (logical + count <= limit)
            sound &= start + count <= self._layout.block_count
            plain &= sound | ~there  # what is odd is looked at, and complained of, one by one
            there &= plain
            self._runs.append((inodes[there], start[there], count[there]))
        self.others += map(int, inodes[~plain])
        odd = set(self.others)
        if odd:
            # A later slot may have been odd when an earlier was taken already.
            self._runs[-4:] = [
                (n[keep], s[keep], c[keep])
                for n, s, c in self._runs[-4:]
                for keep in (np.isin(n, inodes[~plain], invert=True),)
            ]

    def blocks(self) -> tuple[Numbers, Numbers]:
        """Directory and block number, in the order of blocks, of all that were found in extents."""
        self._indirect()
        if not self._runs:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        inodes, starts, counts = (
            np.concatenate([run[column] for run in self._runs]) for column in range(3)
        )
        total = int(counts.sum())
        # Blocks that several directories claim are a hostile image's way to make few many.
        if total > self._layout.block_count:
            raise UnsupportedFormatError(
                "The ext4 file system is damaged: its directories have more blocks than it has."
            )
        owners = np.repeat(inodes, counts)
        before = np.repeat(np.cumsum(counts) - counts, counts)
        blocks = np.repeat(starts, counts) + np.arange(total) - before
        order = np.argsort(blocks, kind="stable")
        return owners[order], blocks[order]

    def _indirect(self) -> None:
        """Directories with deeper trees or block maps, as far as they are sound."""
        left = []
        for number in self.others:
            try:
                inode = self._layout.inode(number)
                if inode.flags & INLINE_DATA:
                    left.append(number)
                    continue
                found = list(runs(self._layout, inode))
            except UnsupportedFormatError as error:
                self.faults.append(fault(number, str(error)))
                continue
            columns = np.array([(number, run.physical, run.blocks) for run in found], np.int64)
            columns = columns.reshape(-1, 3)
            self._runs.append((columns[:, 0], columns[:, 1], columns[:, 2]))
        self.others = left


def fault(inode: int, reason: str) -> Frame:
    """A directory that could not be read whole."""
    return Kind.FAULT, json.dumps([str(inode), reason, False]).encode()


def _linear(layout: Layout, owners: Numbers, blocks: Numbers) -> Iterator[Frame]:
    step = _BLOCKS_BYTES // layout.block_size
    for first in range(0, len(blocks), step):
        part = slice(first, first + step)
        raw = _read(layout, blocks[part])
        yield from _walk(layout, owners[part], raw)


def _read(layout: Layout, blocks: Numbers) -> NDArray[np.uint8]:
    """These blocks, which ascend, one after the other; neighbours are read together."""
    size = layout.block_size
    found = np.empty((len(blocks), size), np.uint8)
    most = MAX_READ_BYTES // size
    ends = np.flatnonzero(np.diff(blocks) > _BRIDGE_BYTES // size) + 1
    bounds = [0, *map(int, ends), len(blocks)]
    for first, last in itertools.pairwise(bounds):
        at = first
        while at < last:
            start = int(blocks[at])
            end = at + int(np.searchsorted(blocks[at:last], start + most))
            count = int(blocks[end - 1]) - start + 1
            raw = np.frombuffer(layout.read_blocks(start, count), np.uint8).reshape(-1, size)
            found[at:end] = raw[blocks[at:end] - start]
            at = end
    return found


def _walk(layout: Layout, owners: Numbers, raw: NDArray[np.uint8]) -> Iterator[Frame]:
    """Names in blocks of directories, all blocks side by side, one entry of each at a time."""
    size = layout.block_size
    flat = raw.reshape(-1)
    words = flat.view("<u4")
    alive = np.arange(len(owners))
    place = np.zeros(len(owners), np.int64)
    damaged = np.zeros(len(owners), np.bool_)
    found: list[tuple[Numbers, NDArray[np.uint32], Numbers]] = []
    while len(alive):
        at = alive * size + place
        inode, second = words[at >> 2], words[(at >> 2) + 1]
        length = (second & 0xFFFF).astype(np.int64)
        if size == 65536:  # a block of 64 KiB does not fit the field
            length[(length == 0) | (length == 0xFFFF)] = 65536
        name = (second >> 16).astype(np.int64)
        if layout.incompat & DIRECTORY_TYPES:
            name &= 0xFF  # the byte above is the kind
        sound = (length >= 8) & (length % 4 == 0) & (place + length <= size) & (name <= length - 8)
        if not sound.all():
            damaged[alive[~sound]] = True
            alive, place, at = alive[sound], place[sound], at[sound]
            inode, length, name = inode[sound], length[sound], name[sound]
        there = inode != 0
        found.append((at[there] + 8, inode[there], name[there]))
        place = place + length
        more = place + 8 <= size
        alive, place = alive[more], place[more]
    for number in np.unique(owners[damaged]):
        yield fault(int(number), "a directory has an entry that does not fit into it")
    starts, inodes, lengths = (np.concatenate([each[c] for each in found]) for c in range(3))
    order = np.argsort(starts, kind="stable")
    for first in range(0, len(order), _BATCH_NAMES):
        part = order[first : first + _BATCH_NAMES]
        yield from _names(flat, owners, starts[part], inodes[part], lengths[part], size)


def _names(
    flat: NDArray[np.uint8],
    owners: Numbers,
    starts: Numbers,
    inodes: NDArray[np.uint32],
    lengths: Numbers,
    block_size: int,
) -> Iterator[Frame]:
    parents = owners[starts // block_size]
    first, second = flat[starts], flat[np.minimum(starts + 1, len(flat) - 1)]
    own = ((lengths == 1) & (first == 0x2E)) | ((lengths == 2) & (first == 0x2E) & (second == 0x2E))
    fits = (lengths > 0) & (lengths <= 255)
    text = gather(flat, starts[fits & ~own], lengths[fits & ~own])
    bad = ~fits
    bad[fits & ~own] = bad_names(lengths[fits & ~own].astype(np.uint16), text)
    for number in np.unique(parents[bad]):
        yield fault(int(number), "a directory has an impossible name in it")
    good = ~bad & ~own
    if bad.any():
        text = gather(flat, starts[good], lengths[good])
    if good.any():
        yield (
            Kind.NAMES,
            pack_names(
                parents[good].astype(np.uint64),
                inodes[good].astype(np.uint64),
                lengths[good].astype(np.uint16),
                text,
            ),
        )


def gather(flat: NDArray[np.uint8], starts: Numbers, lengths: Numbers) -> bytes:
    """Texts that lie apart, one after the other."""
    before = np.cumsum(lengths) - lengths
    places = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
    return flat[places].tobytes()


def _one_by_one(volume: Ext4Volume, number: int) -> Iterator[Frame]:
    """The names of a directory that lies in its inode."""
    found: list[tuple[bytes, int]] = []
    try:
        for pair in volume.names(number):
            found.append(pair)
    except UnsupportedFormatError as error:
        yield fault(number, str(error))
    if found:
        yield (
            Kind.NAMES,
            pack_names(
                np.full(len(found), number, np.uint64),
                np.array([inode for _, inode in found], np.uint64),
                np.array([len(name) for name, _ in found], np.uint16),
                b"".join(name for name, _ in found),
            ),
        )


assert stat.S_IFMT(0o170000) >> 12 == 15  # the formats index a table of sixteen
