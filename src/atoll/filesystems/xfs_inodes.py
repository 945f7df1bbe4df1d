"""All inodes of an XFS file system, in the order in which they lie: from the trees that count them.

Source: XFS Algorithms & Data Structures, "Inode Allocation"; fs/xfs/libxfs/xfs_format.h.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from atoll.filesystems.xfs_layout import Layout
from atoll.filesystems.xfs_superblock import damaged

_GROUP_SECTOR, _GROUP_CHECKSUM = 2, 312
_CHECKSUM = 52
_MAX_LEVELS = 9
_CHUNK = 64
_MAX_READ_BYTES = 2 << 20


class Chunk(NamedTuple):
    """`inodes` inodes in one piece of the volume from byte `at`, the first of them number `first`."""

    first: int
    inodes: int
    at: int


def chunks(layout: Layout) -> Iterator[Chunk]:
    """All inodes there are, used and free, ascending; neighbours together, at most 2 MiB of them."""
    size = layout.geometry.inode_size
    most = _MAX_READ_BYTES // size
    pending: Chunk | None = None
    for chunk in _all(layout):
        if pending is not None:
            if (
                pending.first + pending.inodes == chunk.first
                and pending.at + pending.inodes * size == chunk.at
                and pending.inodes + chunk.inodes <= most
            ):
                pending = pending._replace(inodes=pending.inodes + chunk.inodes)
                continue
            yield pending
        pending = chunk
    if pending is not None:
        yield pending


def _all(layout: Layout) -> Iterator[Chunk]:
    known = layout.geometry
    for group in range(known.group_count):
        start = group * known.group_blocks * known.block_size
        length = min(known.group_blocks, known.block_count - group * known.group_blocks)
        base = group << known.group_bits + known.inode_bits
        end = length << known.inode_bits
        last = 0
        for first, missing in _records(layout, group):
            if first < last or first >= end:
                raise damaged(
                    f"the inodes of its group {group} are counted twice, or lie outside it"
                )
            last = first + _CHUNK
            for place, count in _there(missing):
                if first + place + count > end:
                    raise damaged(f"group {group} has inodes outside itself")
                yield Chunk(base + first + place, count, start + (first + place) * known.inode_size)


def _there(missing: int) -> Iterator[tuple[int, int]]:
    """The pieces of a chunk that exist: each bit of a hole stands for four inodes."""
    if not missing:
        yield 0, _CHUNK
        return
    place = 0
    while place < 16:
        count = 0
        while place + count < 16 and not missing >> (place + count) & 1:
            count += 1
        if count:
            yield 4 * place, 4 * count
        place += count + 1


def _records(layout: Layout, group: int) -> Iterator[tuple[int, int]]:
    """(first inode in its group, holes) of each chunk of a group."""
    known = layout.geometry
    at = group * known.group_blocks * known.block_size + _GROUP_SECTOR * known.sector_size
    raw = layout.checked(at, known.sector_size, _GROUP_CHECKSUM)
    magic, _, itself = struct.unpack_from(">4sII", raw)
    root, level = struct.unpack_from(">II", raw, 20)
    if magic != b"XAGI" or itself != group or not 0 < level <= _MAX_LEVELS:
        raise damaged(f"the head of its group {group} is not one")
    yield from _below(layout, group, level, (root,))


def _below(
    layout: Layout, group: int, level: int, pointers: tuple[int, ...]
) -> Iterator[tuple[int, int]]:
    """Records below a node; the level falls with each step, and records must ascend, so it ends."""
    known = layout.geometry
    head = 56 if known.checked else 16
    for pointer in pointers:
        block = layout.checked(
            layout.place(group << known.group_bits | pointer), known.block_size, _CHECKSUM
        )
        magic, itself, entries = struct.unpack_from(">4sHH", block)
        room = (known.block_size - head) // (8 if itself else 16)
        if (
            magic != (b"IAB3" if known.checked else b"IABT")
            or itself != level - 1
            or entries > room
        ):
            raise damaged(f"a node of the tree of inodes of group {group} is not one")
        if itself:
            if not entries:
                raise damaged(f"a node of the tree of inodes of group {group} is empty")
            inner = struct.unpack_from(f">{entries}I", block, head + 4 * room)
            yield from _below(layout, group, itself, inner)
            continue
        for first, missing, _, _ in struct.iter_unpack(">IHHQ", block[head : head + 16 * entries]):
            # Elsewhere that place has a part of a wider count.
            yield first, missing if known.sparse_inodes else 0
