"""Where the forks of an XFS inode lie: extents in the inode, and B+trees of them.

Source: XFS Algorithms & Data Structures, "Data Extents"; fs/xfs/libxfs/xfs_bmap_btree.c.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from atoll.filesystems.xfs_layout import BTREE, EXTENTS, LOCAL, Inode, Layout, MapChange
from atoll.filesystems.xfs_superblock import damaged

_RECORD = struct.Struct(">QQ")
_UNWRITTEN = 1 << 63
_COUNT_BITS = 21
_COUNT_MASK = (1 << _COUNT_BITS) - 1
_START_MASK = (1 << 54) - 1
_MAX_LEVELS = 9  # XFS_BTREE_MAXLEVELS
_MAGIC, _OLD_MAGIC = b"BMA3", b"BMAP"
_HEAD_BYTES, _OLD_HEAD_BYTES, _CHECKSUM = 72, 24, 64


class Run(NamedTuple):
    """`blocks` blocks of a fork from `logical`, on the volume from byte `at`.

    Unwritten ones read as zeros, whatever lies there.
    """

    logical: int
    blocks: int
    at: int
    unwritten: bool


def data_runs(layout: Layout, inode: Inode) -> Iterator[Run]:
    """The runs of the data fork, ascending; none for a fork that is in the inode."""
    return _runs(layout, inode.number, inode.format, inode.extents, inode.data)


def attribute_runs(layout: Layout, inode: Inode) -> Iterator[Run]:
    """The runs of the attribute fork."""
    return _runs(
        *(layout, inode.number, inode.attribute_format),
        *(inode.attribute_extents, inode.attributes),
    )


def content_runs(layout: Layout, inode: Inode) -> Iterator[Run]:
    """The written runs inside the size of a file, joined where they touch."""
    block_size = layout.geometry.block_size
    limit = -(-inode.size // block_size)
    runs = data_runs(layout, inode)
    if layout.replayed is not None:
        changes = layout.replayed.map_changes.get(inode.number, ())
        if changes:
            runs = iter(_remapped(layout, inode.number, list(runs), changes))
    pending: Run | None = None
    for run in runs:
        if run.unwritten or run.logical >= limit:
            continue
        blocks = min(run.blocks, limit - run.logical)
        if pending is not None:
            if (
                pending.logical + pending.blocks == run.logical
                and pending.at + pending.blocks * block_size == run.at
            ):
                pending = pending._replace(blocks=pending.blocks + blocks)
                continue
            yield pending
        pending = run._replace(blocks=blocks)
    if pending is not None:
        yield pending


def _remapped(
    layout: Layout, number: int, runs: list[Run], changes: Sequence[MapChange]
) -> list[Run]:
    """Runs after changes that were announced in the log, and that recovery finishes."""
    block_size = layout.geometry.block_size
    for change in changes:
        start, end = change.logical, change.logical + change.blocks
        left: list[Run] = []
        for run in runs:
            run_end = run.logical + run.blocks
            if run_end <= start or end <= run.logical:
                left.append(run)
                continue
            if not change.unmap:
                raise damaged(f"its log maps a block of inode {number} that is mapped")
            if run.logical < start:
                left.append(run._replace(blocks=start - run.logical))
            if end < run_end:
                at = run.at + (end - run.logical) * block_size
                left.append(Run(end, run_end - end, at, run.unwritten))
        if not change.unmap:
            at = layout.place(change.block, change.blocks)
            left.append(Run(start, change.blocks, at, change.unwritten))
        runs = sorted(left)
    return runs


def _runs(layout: Layout, number: int, form: int, count: int, fork: bytes) -> Iterator[Run]:
    if form == EXTENTS:
        if count * _RECORD.size > len(fork):
            raise damaged(f"inode {number} has more extents than fit into it")
        yield from _records(layout, number, fork[: count * _RECORD.size], 0)
    elif form == BTREE:
        yield from _tree(layout, number, fork)
    elif form != LOCAL:
        raise damaged(f"inode {number} has a fork of unknown form {form}")


def _records(layout: Layout, number: int, raw: bytes, end: int) -> Iterator[Run]:
    """Runs of packed extents: 1 bit unwritten, 54 of the place in the file, 52 of the block, 21 of length."""
    for high, low in _RECORD.iter_unpack(raw):
        logical = high >> 9 & _START_MASK
        count = low & _COUNT_MASK
        if logical < end or not count:
            raise damaged(f"inode {number} maps block {logical} twice, or nothing")
        end = logical + count
        block = (high & 0x1FF) << 43 | low >> _COUNT_BITS
        yield Run(logical, count, layout.place(block, count), bool(high & _UNWRITTEN))


def _tree(layout: Layout, number: int, root: bytes) -> Iterator[Run]:
    level, entries = struct.unpack_from(">HH", root)
    room = (len(root) - 4) // 16
    if not 0 < level < _MAX_LEVELS or not 0 < entries <= room:
        raise damaged(f"inode {number} has an impossible extent tree")
    end = 0
    for raw in _leaves(layout, number, level, _pointers(root, 4, room, entries)):
        run = None
        for run in _records(layout, number, raw, end):
            yield run
        if run is not None:
            end = run.logical + run.blocks


def _pointers(node: bytes, head: int, room: int, entries: int) -> tuple[int, ...]:
    return struct.unpack_from(f">{entries}Q", node, head + 8 * room)


def _leaves(layout: Layout, number: int, level: int, pointers: tuple[int, ...]) -> Iterator[bytes]:
    """The records of each leaf below a node; its level falls with each step, so it ends.

    A leaf holds at least one record and records must ascend, so no leaf can be met twice either.
    """
    known = layout.geometry
    head = _HEAD_BYTES if known.checked else _OLD_HEAD_BYTES
    room = (known.block_size - head) // 16
    for pointer in pointers:
        block = layout.checked(layout.place(pointer), known.block_size, _CHECKSUM)
        magic, itself, entries = struct.unpack_from(">4sHH", block)
        if (
            magic != (_MAGIC if known.checked else _OLD_MAGIC)
            or itself != level - 1
            or not 0 < entries <= room
        ):
            raise damaged(f"a node of the extent tree of inode {number} is not one")
        if itself:
            yield from _leaves(layout, number, itself, _pointers(block, head, room, entries))
        else:
            yield block[head : head + entries * _RECORD.size]
