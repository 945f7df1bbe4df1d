"""Where the content of an ext2/3/4 inode lies: extent trees, indirect blocks, inline data."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from atoll.filesystems.ext4_layout import EXTENTS, Inode, Layout, damaged

_EXTENT_MAGIC = 0xF30A
_MAX_DEPTH = 5
_UNWRITTEN = 0x8000
_DIRECT = 12
_INDEX = struct.Struct("<IIHxx")
_EXTENT = struct.Struct("<IHHI")


class Run(NamedTuple):
    """`blocks` written blocks of a file from `logical`, stored from block `physical`."""

    logical: int
    blocks: int
    physical: int


def runs(layout: Layout, inode: Inode) -> Iterator[Run]:
    """Written runs in ascending order, joined where they touch, each inside the file's size.

    What is missing is a hole: sparse, or preallocated and never written, whose
    blocks still hold what was deleted there.
    """
    limit = -(-inode.size // layout.block_size)
    found = _extents(layout, inode.block, None) if inode.flags & EXTENTS else _mapped(layout, inode)
    pending: Run | None = None
    end = 0
    for logical, count, physical in found:
        if logical < end:
            raise damaged(f"inode {inode.number} maps block {logical} twice")
        end = logical + count
        if physical == 0 or logical >= limit:
            continue  # preallocated, or kept beyond the end of the file
        if physical + count > layout.block_count:
            raise damaged(f"inode {inode.number} points at block {physical}, outside it")
        run = Run(logical, min(count, limit - logical), physical)
        if (
            pending is not None
            and pending.logical + pending.blocks == run.logical
            and pending.physical + pending.blocks == run.physical
        ):
            pending = Run(pending.logical, pending.blocks + run.blocks, pending.physical)
            continue
        if pending is not None:
            yield pending
        pending = run
    if pending is not None:
        yield pending


def _extents(layout: Layout, node: bytes, above: int | None) -> Iterator[Run]:
    magic, entries, _, depth = struct.unpack_from("<4H", node)
    if magic != _EXTENT_MAGIC or entries > (len(node) - 12) // 12:
        raise damaged("a node of an extent tree is not one")
    # Each level must be one nearer to the leaves, so no pointer can lead in a circle.
    if depth > _MAX_DEPTH or (above is not None and depth != above - 1):
        raise damaged("an extent tree has the wrong depth")
    if depth:
        for _, low, high in _INDEX.iter_unpack(node[12 : 12 + entries * 12]):
            yield from _extents(layout, layout.read_blocks(low | high << 32), depth)
        return
    for logical, count, high, low in _EXTENT.iter_unpack(node[12 : 12 + entries * 12]):
        written = count <= _UNWRITTEN
        physical = low | high << 32
        if count == 0 or (written and physical == 0):
            raise damaged("an extent is empty")
        yield Run(logical, count, physical) if written else Run(logical, count - _UNWRITTEN, 0)


def _mapped(layout: Layout, inode: Inode) -> Iterator[Run]:
    pointers = struct.unpack("<15I", inode.block)
    limit = -(-inode.size // layout.block_size)
    for logical, physical in enumerate(pointers[:_DIRECT]):
        if physical:
            yield Run(logical, 1, physical)
    per_block = layout.block_size // 4
    start, span = _DIRECT, 1
    for physical in pointers[_DIRECT:]:
        span *= per_block
        if physical:
            yield from _indirect(layout, physical, start, span // per_block, limit)
        start += span


def _indirect(layout: Layout, block: int, start: int, span: int, limit: int) -> Iterator[Run]:
    """Runs below a block of pointers, each of which covers `span` blocks of the file."""
    for number, (physical,) in enumerate(struct.iter_unpack("<I", layout.read_blocks(block))):
        logical = start + number * span
        if logical >= limit:
            return
        if physical == 0:
            continue
        if span == 1:
            yield Run(logical, 1, physical)
        else:
            per_block = layout.block_size // 4
            yield from _indirect(layout, physical, logical, span // per_block, limit)
