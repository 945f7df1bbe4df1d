"""Changes that an XFS log still holds, made to the image in memory as a mount would; nothing is written.

Blocks and inodes are patched when they are read. What is on the volume already and newer than
a logged change (each carries the place in the log of its last change) stays as it is, and what was
freed later is not changed at all. Not needed by who only reads, and left out: free space in
allocation groups, quotas, lists of unlinked inodes, and the intents to free extents (EFI) or to
adjust reverse mappings (RUI) and reference counts (CUI), which change no file. An intent that does,
and whose end is not in the log, is finished as recovery does (BUI: blocks of a file mapped and
unmapped), or makes the content or attributes of its inode unreadable (exchanges of ranges, logged
attributes).
Source: fs/xfs/xfs_buf_item_recover.c, xfs_inode_item_recover.c, xfs_icreate_item.c.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from atoll.filesystems.interface import Blocks
from atoll.filesystems.xfs_layout import INODE_MAGIC, MapChange
from atoll.filesystems.xfs_log import SECTOR, Log, Transaction
from atoll.filesystems.xfs_log_items import (
    BUFFER_HEAD_BYTES,
    buffer_head,
    core_on_disk,
    root_on_disk,
)
from atoll.filesystems.xfs_superblock import CORE_BYTES, Geometry, damaged, refused

_BUFFER, _INODE, _CREATE = 0x123C, 0x123B, 0x123F
_FREE, _FREED, _UNLINKED, _QUOTA, _QUOTA_OFF = 0x1236, 0x1237, 0x1238, 0x123D, 0x123E
_REVERSE, _REVERSED, _COUNT, _COUNTED = 0x1240, 0x1241, 0x1242, 0x1243
_MAP, _MAPPED, _ATTRIBUTE, _ATTRIBUTED, _EXCHANGE, _EXCHANGED = range(0x1244, 0x124A)
_WITHOUT_EFFECT = frozenset(
    (_FREE, _FREED, _UNLINKED, _QUOTA, _QUOTA_OFF, _REVERSE, _REVERSED, _COUNT, _COUNTED)
)
_ENDS = frozenset((_MAPPED, _ATTRIBUTED, _EXCHANGED))

_CANCELLED, _INODES_ONLY, _QUOTAS = 0x2, 0x1, 0x4 | 0x8 | 0x10
_KIND_SHIFT = 11
# Quotas, free space in allocation groups, index blocks of directories, bitmaps of realtime volumes.
_UNREAD_KINDS = frozenset((1, 2, 3, 5, 6, 12, 13, 14, 19, 20))
_INODES_KIND = 8
_PIECE = 128
_MAX_BUFFER_BYTES = 64 << 10

_DATA, _EXTENTS, _ROOT, _DEVICE = 0x2, 0x4, 0x8, 0x10
_ATTR_DATA, _ATTR_EXTENTS, _ATTR_ROOT = 0x40, 0x80, 0x100
_DATA_FORK, _ATTR_FORK = _DATA | _EXTENTS | _ROOT, _ATTR_DATA | _ATTR_EXTENTS | _ATTR_ROOT
_ATTR_OF_MAP, _UNWRITTEN_MAP = 1 << 31, 1 << 30
_MAP_IT, _UNMAP_IT = 1, 2
_KNOWN_MAP_FLAGS = 0xFF | _UNWRITTEN_MAP
_OLD_AND_USED = (
    "has the older format (V4) and was in use; its log, which holds changes, is replayed for the newer"
    " format alone"
)
_MAX_HELD_BYTES = 288 << 20
_OVERHEAD_BYTES = 160

_LSN_PLACES = {
    **dict.fromkeys((b"AB3B", b"AB3C", b"ABTB", b"ABTC", b"IAB3", b"IABT"), (24, 32)),
    **dict.fromkeys((b"FIB3", b"FIBT", b"RMB3", b"R3FC"), (24, 32)),
    **dict.fromkeys((b"BMA3", b"BMAP"), (32, 40)),
    **dict.fromkeys((b"XDB3", b"XDD3", b"XDF3"), (16, 24)),
    b"XSLM": (48, 16),
    b"XFSB": (240, 32),
}
"""Of a block by how it begins: where it keeps the place in the log of its last change, and a UUID."""
_TREE_MAGICS = (0x3DF1, 0x3DFF, 0x3EBE, 0x3BEE)
_TREE_PLACES = (24, 32)


@dataclass(slots=True)
class _Buffer:
    """What the log changes in a run of sectors, by (start, length), in the order of the last change."""

    at: int
    length: int
    parts: dict[tuple[int, int], tuple[int, bytes]] = field(default_factory=dict)
    base: int | None = None


@dataclass(slots=True)
class _Inode:
    """What the log changes in an inode: the core, the data fork, the attribute fork, as last written."""

    buffer: tuple[int, int]
    parts: dict[str, tuple[int, int, bytes]] = field(default_factory=dict)


class _Intent(NamedTuple):
    """An announced change of an inode; of its map if it can be finished here."""

    inode: int
    of_attributes: bool
    change: MapChange | None


class Replay:
    """The image as a mount would see it (see `xfs_layout.Replayed`)."""

    def __init__(self, blocks: Blocks, known: Geometry) -> None:
        self._blocks = blocks
        self._known = known
        self._buffers: dict[tuple[int, int], _Buffer] = {}
        self._inodes: dict[int, _Inode] = {}
        self._inodes_of: dict[tuple[int, int], set[int]] = {}
        self._created: dict[int, int] = {}
        self._is_created: set[int] = set()
        self._intents: dict[tuple[int, int], list[_Intent]] = {}
        self._held = 0
        self._group_bits = known.group_bits + known.inode_bits
        for transaction in Log(blocks, known).transactions():
            self._replay(transaction)
        left = [intent for announced in self._intents.values() for intent in announced]
        self.stale_attributes = frozenset(each.inode for each in left if each.of_attributes)
        self.stale_content = frozenset(
            each.inode for each in left if each.change is None and not each.of_attributes
        )
        changes: dict[int, list[MapChange]] = {}
        for each in left:
            if each.change is not None:
                changes.setdefault(each.inode, []).append(each.change)
        self.map_changes: Mapping[int, Sequence[MapChange]] = changes
        self._sorted = sorted(self._buffers.values(), key=lambda buffer: buffer.at)
        self._starts = [buffer.at for buffer in self._sorted]

    @property
    def empty(self) -> bool:
        """Whether there was nothing to do."""
        return not (self._buffers or self._inodes or self._is_created or self._intents)

    @property
    def superblock(self) -> bool:
        """Whether the log changes the superblock."""
        return bool(self.changed(0, SECTOR))

    @property
    def size_bytes(self) -> int:
        """Size of the image."""
        return self._blocks.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the image as a mount would see them."""
        raw = self._blocks.read(offset, length)
        touched = self._touched(offset, len(raw))
        if not touched:
            return raw
        result = bytearray(raw)
        for buffer in touched:
            for at, part in self._newer(buffer):
                start = at - offset
                begin, end = max(0, start), min(len(result), start + len(part))
                if begin < end:
                    result[begin:end] = part[begin - start : end - start]
        return bytes(result)

    def changed(self, offset: int, length: int) -> list[tuple[int, int]]:
        """The parts (start, end) of a range of the image that the log changes, ascending."""
        found: list[tuple[int, int]] = []
        for buffer in self._touched(offset, length):
            for at, part in self._newer(buffer):
                begin, end = max(at, offset), min(at + len(part), offset + length)
                if begin < end:
                    found.append((begin, end))
        return sorted(found)

    def inode(self, number: int, raw: bytes) -> bytes | None:
        """An inode with the changes in the log made to what is on disk; None where there are none."""
        state = self._inodes.get(number)
        created = number in self._is_created
        if state is None and not created:
            return None
        size = self._known.inode_size
        base = bytearray(size if created else raw)
        last = 0
        if not created:
            if len(raw) != size or raw[:2] != INODE_MAGIC:
                raise damaged(f"its log changes inode {number}, which is not one")
            last = int.from_bytes(raw[112:120])
            if last == (1 << 64) - 1:
                last = 0
        applied = created
        for lsn, at, part in state.parts.values() if state is not None else ():
            if lsn >= last:
                base[at : at + len(part)] = part
                applied = True
        return bytes(base) if applied else None

    def _touched(self, offset: int, length: int) -> list[_Buffer]:
        first = bisect_left(self._starts, offset - _MAX_BUFFER_BYTES)
        last = bisect_right(self._starts, offset + length - 1)
        return [
            buffer
            for buffer in self._sorted[first:last]
            if buffer.at + buffer.length > offset and buffer.at < offset + length
        ]

    def _newer(self, buffer: _Buffer) -> list[tuple[int, bytes]]:
        """The parts of a buffer that are newer than what is on disk, in the order they are to be written."""
        if buffer.base is None:
            buffer.base = self._lsn_on_disk(buffer.at)
        return [
            (buffer.at + start, part)
            for (start, _), (lsn, part) in buffer.parts.items()
            if lsn > buffer.base
        ]

    def _lsn_on_disk(self, at: int) -> int:
        """The place in the log of the last change that a block on disk had; -1 when it tells none."""
        head = self._blocks.read(at, SECTOR)
        if len(head) < SECTOR:
            return -1
        places = _LSN_PLACES.get(head[:4])
        if places is None and int.from_bytes(head[8:10]) in _TREE_MAGICS:
            places = _TREE_PLACES
        if places is None:
            return -1
        lsn_at, uuid_at = places
        known = self._known
        uuid = known.meta_uuid
        if head[:4] == b"XFSB" and known.meta_uuid != known.uuid:
            uuid_at = 248
        lsn = int.from_bytes(head[lsn_at : lsn_at + 8])
        if head[uuid_at : uuid_at + 16] != uuid or lsn in (0, (1 << 64) - 1):
            return -1
        return lsn

    def _replay(self, transaction: Transaction) -> None:
        """One transaction, in the order of the kernel: buffers and new inodes, then changes of inodes and
        intents, then what cancels buffers."""
        later: list[tuple[Callable[[int, list[bytes]], None], list[bytes]]] = []
        last: list[list[bytes]] = []
        for item in transaction.items:
            head = item[0]
            kind, regions = struct.unpack_from("<HH", head)
            if regions != len(item):
                raise damaged("a transaction in its log lacks a part of an item")
            if kind == _BUFFER:
                if len(head) < BUFFER_HEAD_BYTES:
                    raise damaged("a transaction in its log has a broken item")
                if struct.unpack_from("<H", head, 4)[0] & _CANCELLED:
                    last.append(item)
                else:
                    self._change(transaction.lsn, item)
            elif kind == _CREATE:
                self._create(item)
            elif kind == _INODE:
                later.append((self._change_inode, item))
            elif _MAP <= kind <= _EXCHANGED:
                later.append((self._announce, item))
            elif kind not in _WITHOUT_EFFECT:
                raise refused(
                    f"was in use, and its log holds changes of a kind ({kind:#x}) that Atoll does not"
                    " replay"
                )
        for act, item in later:
            act(transaction.lsn, item)
        for item in last:
            self._cancel(item)

    def _hold(self, added: int) -> None:
        self._held += added
        if self._held > _MAX_HELD_BYTES:
            raise refused("was in use, and its log holds more changes than are replayed in memory")

    def _change(self, lsn: int, item: list[bytes]) -> None:
        flags, length, at, map_words = buffer_head(item[0])
        kind = flags >> _KIND_SHIFT
        if flags & (_INODES_ONLY | _QUOTAS) or kind in _UNREAD_KINDS:
            return
        if not self._known.checked:
            if at == 0 and length <= self._known.sector_size:
                return  # the superblock's counters, which is what a freeze leaves in a log
            raise refused(_OLD_AND_USED)
        if kind == _INODES_KIND:
            raise refused("was in use by a kernel of another age, and its log is not replayed")
        if not 0 < length <= _MAX_BUFFER_BYTES or at + length > self.size_bytes:
            raise damaged("its log changes a block outside it")
        key = at, length
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = self._buffers[key] = _Buffer(at, length)
            self._hold(_OVERHEAD_BYTES)
        dirty = int.from_bytes(item[0][BUFFER_HEAD_BYTES:][: 4 * map_words], "little")
        place = 0
        for part in item[1:]:
            while not dirty >> place & 1:
                place += 1
                if not dirty >> place:
                    raise damaged("its log has a changed block with too many parts")
            count = 0
            while dirty >> (place + count) & 1 and (count + 1) * _PIECE <= len(part):
                count += 1
            start, size = place * _PIECE, count * _PIECE
            if not count or start + size > length:
                raise damaged("its log has a changed block whose parts do not fit it")
            older = buffer.parts.pop((start, size), None)
            buffer.parts[start, size] = lsn, part[:size]
            self._hold(0 if older is not None else size + _OVERHEAD_BYTES)
            place += count

    def _cancel(self, item: list[bytes]) -> None:
        """Blocks were freed: what the log changed in them until here is void."""
        _, length, at, _ = buffer_head(item[0])
        key = at, length
        buffer = self._buffers.pop(key, None)
        if buffer is not None:
            self._held -= sum(len(part) + _OVERHEAD_BYTES for _, part in buffer.parts.values())
        for number in self._inodes_of.pop(key, ()):
            state = self._inodes.get(number)
            if state is not None and state.buffer == key:
                del self._inodes[number]
        if self._created:
            per_block = 1 << self._known.inode_bits
            start = self._number(at)
            # Inodes are allocated in whole blocks, and not more at a time than this.
            end = start + length // self._known.inode_size
            for first in range(start - max(64, per_block), end, per_block):
                count = self._created.get(first, 0)
                if first + count > start and count:
                    self._is_created.difference_update(range(first, first + count))
                    del self._created[first]

    def _create(self, item: list[bytes]) -> None:
        """Inodes were allocated, all of them empty."""
        if len(item[0]) < 28:
            raise damaged("a transaction in its log has a broken item")
        group, block, count, size, length = struct.unpack_from(">5I", item[0], 4)
        known = self._known
        per_block = 1 << known.inode_bits
        if (
            size != known.inode_size
            or group >= known.group_count
            or block + length > known.group_blocks
            or count != length * per_block
            or not 0 < count <= max(64, per_block)
        ):
            raise damaged("its log creates inodes outside it")
        if not known.checked:
            raise damaged("its log holds what only the newer format has")
        first = group << self._group_bits | block << known.inode_bits
        self._created[first] = count
        self._is_created.update(range(first, first + count))
        self._hold(count * 64)
        for number in range(first, first + count):
            self._inodes.pop(number, None)

    def _change_inode(self, lsn: int, item: list[bytes]) -> None:
        if not self._known.checked:
            raise refused(_OLD_AND_USED)
        if len(item[0]) == 56:
            fields, _, _, _, number, rdev, at, length, _ = struct.unpack_from(
                "<IHHIQI12xqii", item[0], 4
            )
        elif len(item[0]) == 52:  # as 32-bit kernels lay it out
            fields, _, _, number, rdev, at, length, _ = struct.unpack_from(
                "<IHHQI12xqii", item[0], 4
            )
        else:
            raise damaged("a transaction in its log has a broken item")
        if len(item) < 2 or len(item[1]) < CORE_BYTES or item[1][:2] != INODE_MAGIC[::-1]:
            raise damaged(f"its log has a broken copy of inode {number}")
        key = at * SECTOR, length * SECTOR
        state = self._inodes.get(number)
        if state is None:
            state = self._inodes[number] = _Inode(key)
            self._hold(4 * _OVERHEAD_BYTES)
        state.buffer = key
        self._inodes_of.setdefault(key, set()).add(number)
        core = core_on_disk(item[1], number, lsn)
        self._put(state, "core", lsn, 0, core)
        fork = core[82]
        middle = CORE_BYTES + 8 * fork if fork else self._known.inode_size
        if middle > self._known.inode_size:
            raise damaged(f"its log gives inode {number} forks beyond its end")
        rest = iter(item[2:])
        if fields & _DEVICE:
            self._put(state, "data", lsn, CORE_BYTES, rdev.to_bytes(4))
        for name, mask, root, start, end in (
            ("data", _DATA_FORK, _ROOT, CORE_BYTES, middle),
            ("attributes", _ATTR_FORK, _ATTR_ROOT, middle, self._known.inode_size),
        ):
            if not fields & mask:
                continue
            part = next(rest, None)
            if part is None:
                # A fork that was emptied is marked as changed, and has nothing to copy.
                continue
            if fields & root:
                part = root_on_disk(part, end - start, number)
            if len(part) > end - start:
                raise damaged(f"its log gives inode {number} a fork larger than its room")
            self._put(state, name, lsn, start, part)

    def _put(self, state: _Inode, name: str, lsn: int, at: int, part: bytes) -> None:
        older = state.parts.pop(name, None)
        state.parts[name] = lsn, at, part
        self._hold(len(part) - (len(older[2]) if older is not None else 0))

    def _announce(self, lsn: int, item: list[bytes]) -> None:
        """Intents to change an inode, and their ends."""
        head = item[0]
        kind = int.from_bytes(head[:2], "little")
        if len(head) < 16:
            raise damaged("a transaction in its log has a broken item")
        (identity,) = struct.unpack_from("<Q", head, 8)
        if kind in _ENDS:
            self._intents.pop((kind - 1, identity), None)
            return
        announced: list[_Intent] = []
        if kind == _MAP:
            for owner, block, logical, count, flags in struct.iter_unpack(
                "<QQQII", head[16 : 16 + (len(head) - 16) // 32 * 32]
            ):
                change = None
                if not flags & ~_KNOWN_MAP_FLAGS and flags & 0xFF in (_MAP_IT, _UNMAP_IT):
                    unmap = flags & 0xFF == _UNMAP_IT
                    change = MapChange(unmap, logical, count, block, bool(flags & _UNWRITTEN_MAP))
                announced.append(_Intent(owner, bool(flags & _ATTR_OF_MAP), change))
        elif len(head) >= 32:
            announced.append(
                _Intent(struct.unpack_from("<Q", head, 16)[0], kind == _ATTRIBUTE, None)
            )
            if kind == _EXCHANGE:
                announced.append(_Intent(struct.unpack_from("<Q", head, 24)[0], False, None))
        self._intents[kind, identity] = announced
        self._hold(_OVERHEAD_BYTES)

    def _number(self, at: int) -> int:
        """The number that an inode at a byte of the volume has."""
        known = self._known
        group, block = divmod(at // known.block_size, known.group_blocks)
        inside = at % known.block_size // known.inode_size
        return group << self._group_bits | block << known.inode_bits | inside
