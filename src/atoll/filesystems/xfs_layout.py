"""Where things are on an XFS file system, and its inodes. Source: XFS Algorithms & Data Structures.

Both the format with checksums (version 5) and the one before it (version 4) are read; every
block and inode with a checksum is checked against it.
"""

import stat
import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from atoll.filesystems.crc32c import checksums
from atoll.filesystems.interface import Blocks
from atoll.filesystems.xfs_superblock import CORE_BYTES, OLD_CORE_BYTES, Geometry, damaged
from atoll.model.errors import UnsupportedFormatError

DEVICE, LOCAL, EXTENTS, BTREE = 0, 1, 2, 3
"""What a fork of an inode holds."""
REALTIME = 0x1
BIG_TIMES, BIG_COUNTS = 0x8, 0x10
INODE_MAGIC = b"IN"

_UNIT = 64  # inodes that are read and checked together, as many as the file system allocates
_KEPT_UNITS = 128
_OLD_CORE = struct.Struct(">2sHBBHIII4xQQQQQQ4xIHBb6xH8x")
_CORE = struct.Struct(">2sHBBHIII4xQQQQQQ4xIHBb6xH28xQ24xQ16x")
_BIGTIME_EPOCH = -(1 << 31) * 1_000_000_000


class Inode(NamedTuple):
    """An inode as it is on disk, with times in nanoseconds.

    `format` and `attribute_format` say what its two forks hold, `data` and `attributes` are
    their bytes; `extents` and `attribute_extents` count what they map.
    """

    number: int
    mode: int
    uid: int
    gid: int
    size: int
    blocks: int
    nlink: int
    flags: int
    format: int
    extents: int
    data: bytes
    attribute_format: int
    attribute_extents: int
    attributes: bytes
    atime_ns: int
    mtime_ns: int
    ctime_ns: int

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


class MapChange(NamedTuple):
    """`blocks` blocks of a file from `logical` on that are to be mapped to `block`, or unmapped."""

    unmap: bool
    logical: int
    blocks: int
    block: int
    unwritten: bool


class Replayed(Blocks, Protocol):
    """An image with the changes of its log made (see `xfs_replay.py`).

    `map_changes` are announced in the log and still to be made to the files with these numbers.
    """

    map_changes: Mapping[int, Sequence[MapChange]]
    stale_content: frozenset[int]
    stale_attributes: frozenset[int]

    def changed(self, offset: int, length: int) -> list[tuple[int, int]]:
        """The parts (start, end) of a range of the image that the log changes, ascending."""
        ...

    def inode(self, number: int, raw: bytes) -> bytes | None:
        """An inode with the changes in the log made to what is on disk; None where there are none."""
        ...


class Layout:
    """Where things are on one XFS file system, and the check of all that is read."""

    def __init__(self, known: Geometry, blocks: Blocks, replayed: Replayed | None = None) -> None:
        self.geometry = known
        self.blocks: Blocks = blocks if replayed is None else replayed
        self.replayed = replayed
        self._image = blocks
        self._units: OrderedDict[int, tuple[bytes, list[bool] | None]] = OrderedDict()
        self._unit: tuple[int, bytes, list[bool] | None] = (-1, b"", None)
        self._group_bytes = known.group_blocks * known.block_size
        self._in_group_bits = known.group_bits + known.inode_bits
        self._in_group_mask = (1 << self._in_group_bits) - 1
        self._end = known.block_count * known.block_size
        self._group_mask = (1 << known.group_bits) - 1

    def place(self, block: int, count: int = 1) -> int:
        """Where a run of blocks, addressed by group and block in it, begins on the volume, in bytes."""
        known = self.geometry
        inside = block & self._group_mask
        linear = (block >> known.group_bits) * known.group_blocks + inside
        if inside + count > known.group_blocks or linear + count > known.block_count:
            raise damaged(f"it points at block {block:#x}, outside itself")
        return linear * known.block_size

    def read(self, at: int, length: int) -> bytes:
        """Bytes of the volume; UnsupportedFormatError past a cut-off end."""
        data = self.blocks.read(at, length)
        if len(data) != length:
            raise damaged("it is larger than the partition it is in")
        return data

    def checked(self, at: int, length: int, field: int) -> bytes:
        """Metadata in one piece, its checksum in the four bytes from `field`."""
        raw = self.read(at, length)
        if self.geometry.checked and not self.fresh(at, length):
            self.verify(raw, field, at)
        return raw

    def fresh(self, at: int, length: int) -> bool:
        """Whether a part of it comes from the log, which keeps no checksums of blocks."""
        return self.replayed is not None and bool(self.replayed.changed(at, length))

    def verify(self, raw: bytes, field: int, at: int) -> None:
        """Compare a checksum; UnsupportedFormatError."""
        known = int.from_bytes(raw[field : field + 4], "little")
        if int(checksums(raw, len(raw), field)[0]) != known:
            raise damaged(f"the block at byte {at} has a wrong checksum")

    def inode(self, number: int) -> Inode:
        """Read an inode by number."""
        return self.parse(number, self._raw_inode(number))

    def _raw_inode(self, number: int) -> bytes:
        key = number // _UNIT
        if self._unit[0] != key:
            self._unit = (key, *self._read_unit(key))
        _, unit, whole = self._unit
        size = self.geometry.inode_size
        index = number % _UNIT
        raw = unit[index * size : (index + 1) * size]
        if self.replayed is not None:
            newer = self.replayed.inode(number, raw)
            if newer is not None:
                return newer
        if len(raw) != size or (whole is not None and not whole[index]):
            if raw[:2] != INODE_MAGIC:
                raise damaged(f"there is no inode {number}")
            raise damaged(f"inode {number} has a wrong checksum")
        return raw

    def raw_inodes(self, first: int, count: int, at: int) -> tuple[bytes, list[int]]:
        """Inodes that lie in one piece, and which of them (from 0) the log changes.

        One that its log cannot be applied to is zeros.
        """
        size = self.geometry.inode_size
        raw = self._image.read(at, count * size)
        if len(raw) != count * size:
            raise damaged("it is larger than the partition it is in")
        if self.replayed is None:
            return raw, []
        patched = bytearray(raw)
        changed = []
        for number in range(count):
            part = slice(number * size, (number + 1) * size)
            try:
                newer = self.replayed.inode(first + number, raw[part])
            except UnsupportedFormatError:
                newer = bytes(size)
            if newer is not None:
                patched[part] = newer
                changed.append(number)
        return bytes(patched), changed

    def _read_unit(self, key: int) -> tuple[bytes, list[bool] | None]:
        """The inodes whose numbers are `key` * 64 and so on; of each, whether its checksum is right."""
        found = self._units.get(key)
        if found is not None:
            self._units.move_to_end(key)
            return found
        known = self.geometry
        number = key * _UNIT
        group, inside = number >> self._in_group_bits, number & self._in_group_mask
        at = group * self._group_bytes + inside * known.inode_size
        end = min(self._end, (group + 1) * self._group_bytes)
        if not 0 <= group < known.group_count or at >= end:
            raise damaged(f"it names inode {number} or one near it, outside itself")
        raw = self._image.read(at, min(_UNIT * known.inode_size, end - at))
        raw = raw[: len(raw) // known.inode_size * known.inode_size]
        whole = None
        if known.checked:
            stored = [
                int.from_bytes(raw[at + 100 : at + 104], "little")
                for at in range(0, len(raw), known.inode_size)
            ]
            sums = checksums(raw, known.inode_size, 100).tolist() if raw else []
            whole = [mine == its for mine, its in zip(sums, stored, strict=True)]
        self._units[key] = raw, whole
        if len(self._units) > _KEPT_UNITS:
            self._units.popitem(last=False)
        return raw, whole

    def parse(self, number: int, raw: bytes) -> Inode:
        """An inode from its bytes."""
        # fmt: off
        if self.geometry.checked:
            (
                magic, mode, version, form, _, uid, gid, nlink,
                big, atime, mtime, ctime, size, blocks, extents, attribute_extents,
                fork, attribute_form, flags, flags2, itself,
            ) = _CORE.unpack_from(raw)
            start = CORE_BYTES
            if version != 3 or itself != number:
                raise damaged(f"inode {number} is not where it should be")
        else:
            (
                magic, mode, version, form, old_nlink, uid, gid, nlink,
                big, atime, mtime, ctime, size, blocks, extents, attribute_extents,
                fork, attribute_form, flags,
            ) = _OLD_CORE.unpack_from(raw)
            start, flags2 = OLD_CORE_BYTES, 0
            if version == 1:
                nlink = old_nlink
            elif version != 2:
                raise damaged(f"inode {number} has an unknown version")
        # fmt: on
        if magic != INODE_MAGIC:
            raise damaged(f"there is no inode {number}")
        if flags2 & BIG_COUNTS:
            extents, attribute_extents = big, extents  # both moved into larger fields
        middle = start + 8 * fork if fork else len(raw)
        if middle > len(raw):
            raise damaged(f"inode {number} has forks beyond its end")
        if flags2 & BIG_TIMES:
            atime, mtime, ctime = (time + _BIGTIME_EPOCH for time in (atime, mtime, ctime))
        else:
            atime, mtime, ctime = _old_time(atime), _old_time(mtime), _old_time(ctime)
        # fmt: off
        return Inode(
            number, mode, uid, gid, size, blocks, nlink, flags,
            form, extents, raw[start:middle],
            attribute_form, attribute_extents, raw[middle:],
            atime, mtime, ctime,
        )
        # fmt: on


def _old_time(value: int) -> int:
    """Signed seconds and nanoseconds, 32 bits each."""
    seconds = value >> 32
    if seconds & 0x80000000:
        seconds -= 1 << 32
    return seconds * 1_000_000_000 + (value & 0xFFFFFFFF)
