"""btrfs on disk: superblock, the map from logical to physical bytes, and the B-trees.

Checksums are not compared: a node must say that it is the one that was looked for, and its keys must
lie where its parent says. Source: the kernel's `include/uapi/linux/btrfs_tree.h`.
"""

import struct
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple
from uuid import UUID

from atoll.filesystems.interface import Blocks
from atoll.model.errors import UnsupportedFormatError

TOP_LEVEL_NAME = b".btrfs-top-level"
"""In the root of a file system whose default subvolume is another: the rest of it."""
DEFAULT_HERE = 1 << 47
"""The lower 48 bits of the inode of the empty directory that stands there for the default itself."""
SUPERBLOCK_AT = 65536
CHUNK_ITEM = 228
_SUPERBLOCK_BYTES = 4096
_MAGIC = b"_BHRfS_M"
_KNOWN_INCOMPAT = 0xFFF | 0x1000 | 0x10000  # not: extent tree v2, RAID stripe tree
_CHUNK_TREE_OBJECT = 256
_SYSTEM_CHUNKS_AT, _MAX_SYSTEM_CHUNKS = 811, 2048
_STRIPED = 0x40 | 0x80 | 0x100  # RAID10, RAID5, RAID6
_HEADER_BYTES = 101
_ITEM = struct.Struct("<QBQII")
_POINTER = struct.Struct("<QBQQQ")
_CHUNK_HEAD = struct.Struct("<QQQQIIIHH")
_MAX_LEVEL = 8
_CACHED_NODES = 384
_MAX_CHUNKS = 1 << 20

Key = tuple[int, int, int]
_LAST_KEY: Key = (1 << 64, 0, 0)


def damaged(what: str) -> UnsupportedFormatError:
    """The error for a structure that contradicts itself or its surroundings."""
    return UnsupportedFormatError(f"The btrfs file system is damaged: {what}.")


class Root(NamedTuple):
    """Where a tree begins, in logical bytes, and how many levels are above its leaves."""

    at: int
    level: int


class Node(NamedTuple):
    """A node: `places` are offsets and sizes in `raw` of a leaf's items, else children's addresses."""

    keys: list[Key]
    places: list[tuple[int, int]]
    raw: bytes


class _Chunk(NamedTuple):
    start: int
    length: int
    copies: tuple[int, ...]


class Layout:
    """One file system on one device."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        raw = blocks.read(SUPERBLOCK_AT, _SUPERBLOCK_BYTES)
        if len(raw) < _SUPERBLOCK_BYTES or raw[64:72] != _MAGIC:
            raise damaged("it has no superblock")
        root, chunk_root, self.log_root = struct.unpack_from("<QQQ", raw, 80)
        (devices,) = struct.unpack_from("<Q", raw, 136)
        self.sector_size, self.node_size = struct.unpack_from("<II", raw, 144)
        (incompat,) = struct.unpack_from("<Q", raw, 188)
        if devices != 1:
            raise UnsupportedFormatError(
                f"The btrfs file system lies on {devices} devices, of which this is one; Atoll reads"
                " those on one device alone: restore the whole disks instead."
            )
        if incompat & ~_KNOWN_INCOMPAT:
            raise UnsupportedFormatError(
                f"The btrfs file system uses features Atoll does not know"
                f" ({incompat & ~_KNOWN_INCOMPAT:#x}); restore the whole disk instead."
            )
        for size in (self.sector_size, self.node_size):
            if not 4096 <= size <= 65536 or size & (size - 1):
                raise damaged("its superblock gives impossible sizes")
        self.label = raw[299:555].split(b"\0")[0].decode("utf-8", "surrogateescape")
        self.uuid = str(UUID(bytes=raw[32:48]))
        self._nodes: OrderedDict[int, Node] = OrderedDict()
        self._chunks: list[_Chunk] = []
        self._starts: list[int] = []
        self._learn(_system_chunks(raw))
        chunks = Root(chunk_root, raw[199])
        found = self.items(
            chunks, (_CHUNK_TREE_OBJECT, CHUNK_ITEM, 0), (_CHUNK_TREE_OBJECT, CHUNK_ITEM, 1 << 64)
        )
        self._learn([(key[2], item) for key, item in found])
        self.root_tree = Root(root, raw[198])

    def _learn(self, found: list[tuple[int, bytes]]) -> None:
        """Take chunks, those of the superblock first, for they lead to all others."""
        if len(found) > _MAX_CHUNKS:
            raise damaged("it has more chunks than a device can hold")
        self._chunks = sorted(_chunk(start, item) for start, item in found)
        self._starts = [chunk.start for chunk in self._chunks]
        for one, other in pairwise(self._chunks):
            if one.start + one.length > other.start:
                raise damaged("two of its chunks overlap")

    def places(self, logical: int, length: int, copy: int = 0) -> Iterator[tuple[int, int]]:
        """Where logical bytes lie on the device: (offset, length) of each piece."""
        while length:
            index = bisect_right(self._starts, logical) - 1
            chunk = self._chunks[index] if index >= 0 else None
            if chunk is None or logical >= chunk.start + chunk.length or copy >= len(chunk.copies):
                raise damaged(f"no chunk holds the byte {logical}")
            inside = logical - chunk.start
            count = min(length, chunk.length - inside)
            at = chunk.copies[copy] + inside
            if at + count > self.blocks.size_bytes:
                raise damaged(f"a chunk lies outside the volume, at byte {at}")
            yield at, count
            logical += count
            length -= count

    def read(self, logical: int, length: int, copy: int = 0) -> bytes:
        """Bytes at a logical address."""
        pieces = [self.blocks.read(*place) for place in self.places(logical, length, copy)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def item(self, root: Root, key: Key) -> bytes | None:
        """The item of exactly that key."""
        for _, item in self.items(root, key, key):
            return item
        return None

    def items(self, root: Root, low: Key, high: Key) -> Iterator[tuple[Key, bytes]]:
        """Items from one key to another, both included, ascending."""
        if root.level >= _MAX_LEVEL:
            raise damaged("a tree is higher than any can be")
        return self._below(self._node(root.at, root.level), root.level, low, high, _LAST_KEY)

    def _below(
        self, node: Node, level: int, low: Key, high: Key, end: Key
    ) -> Iterator[tuple[Key, bytes]]:
        keys = node.keys
        if not level:
            for index in range(bisect_left(keys, low), len(keys)):
                if keys[index] > high:
                    return
                at, size = node.places[index]
                yield keys[index], node.raw[at : at + size]
            return
        for index in range(max(0, bisect_right(keys, low) - 1), len(keys)):
            if keys[index] > high:
                return
            child = self._node(node.places[index][0], level - 1)
            behind = keys[index + 1] if index + 1 < len(keys) else end
            # So no key comes twice, whichever nodes hostile pointers lead to.
            if not child.keys or child.keys[0] != keys[index] or child.keys[-1] >= behind:
                raise damaged("a tree has a node that does not belong where it is")
            yield from self._below(child, level - 1, low, high, behind)

    def _node(self, at: int, level: int) -> Node:
        node = self._nodes.get(at)
        if node is not None:
            self._nodes.move_to_end(at)
            if node.raw[100] != level:
                raise damaged("a tree has a node on the wrong level")
            return node
        try:
            raw = self.read(at, self.node_size)
            self._check(raw, at, level)
        except UnsupportedFormatError:
            raw = self.read(at, self.node_size, copy=1)  # where metadata are kept twice
            self._check(raw, at, level)
        node = _parsed(raw)
        self._nodes[at] = node
        if len(self._nodes) > _CACHED_NODES:
            self._nodes.popitem(last=False)
        return node

    def _check(self, raw: bytes, at: int, level: int) -> None:
        if len(raw) != self.node_size or int.from_bytes(raw[48:56], "little") != at:
            raise damaged(f"there is no node at byte {at}")
        if raw[100] != level:
            raise damaged("a tree has a node on the wrong level")


def _parsed(raw: bytes) -> Node:
    (count,) = struct.unpack_from("<I", raw, 96)
    form = _POINTER if raw[100] else _ITEM
    if count > (len(raw) - _HEADER_BYTES) // form.size:
        raise damaged("a node says that it is larger than it is")
    rows = list(form.iter_unpack(raw[_HEADER_BYTES : _HEADER_BYTES + count * form.size]))
    keys = [row[:3] for row in rows]
    for one, other in pairwise(keys):
        if one >= other:
            raise damaged("the keys of a node are out of order")
    if raw[100]:
        return Node(keys, [row[3:] for row in rows], raw)
    places = [(_HEADER_BYTES + at, size) for _, _, _, at, size in rows]
    for at, size in places:
        if at + size > len(raw):
            raise damaged("a leaf has an item outside it")
    return Node(keys, places, raw)


def _system_chunks(raw: bytes) -> list[tuple[int, bytes]]:
    (size,) = struct.unpack_from("<I", raw, 160)
    if size > _MAX_SYSTEM_CHUNKS:
        raise damaged("its superblock has impossible chunks")
    area = raw[_SYSTEM_CHUNKS_AT : _SYSTEM_CHUNKS_AT + size]
    found = []
    at = 0
    while at + 17 + _CHUNK_HEAD.size <= len(area):
        object_id, kind, start = struct.unpack_from("<QBQ", area, at)
        if (object_id, kind) != (_CHUNK_TREE_OBJECT, CHUNK_ITEM):
            raise damaged("its superblock has impossible chunks")
        (stripes,) = struct.unpack_from("<H", area, at + 17 + 44)
        length = _CHUNK_HEAD.size + 32 * stripes
        found.append((start, area[at + 17 : at + 17 + length]))
        at += 17 + length
    return found


def _chunk(start: int, item: bytes) -> _Chunk:
    if len(item) < _CHUNK_HEAD.size + 32:
        raise damaged("it has a chunk without a place")
    length, _, _, kind, _, _, _, stripes, _ = _CHUNK_HEAD.unpack_from(item)
    if not length or not stripes or len(item) < _CHUNK_HEAD.size + 32 * stripes:
        raise damaged("it has an impossible chunk")
    if kind & _STRIPED or (kind & 0x8 and stripes > 1):
        raise UnsupportedFormatError(
            "The btrfs file system is striped over devices, which Atoll does not read; restore the"
            " whole disks instead."
        )
    places = range(_CHUNK_HEAD.size, _CHUNK_HEAD.size + 32 * stripes, 32)
    return _Chunk(start, length, tuple(struct.unpack_from("<8xQ", item, at)[0] for at in places))
