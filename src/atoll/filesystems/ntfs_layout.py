"""NTFS on disk: boot sector, the MFT's records, and the attributes in them.

Sources: the structures as ntfs-3g's `include/ntfs-3g/layout.h` documents them, and Microsoft's
[MS-FSCC] for reparse points and file attributes.
"""

import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from atoll.filesystems.interface import Blocks
from atoll.model.errors import UnsupportedFormatError

STANDARD_INFORMATION, ATTRIBUTE_LIST, FILE_NAME = 0x10, 0x20, 0x30
SECURITY_DESCRIPTOR, VOLUME_NAME, VOLUME_INFORMATION = 0x50, 0x60, 0x70
DATA, INDEX_ROOT, INDEX_ALLOCATION, BITMAP = 0x80, 0x90, 0xA0, 0xB0
REPARSE_POINT, EXTENDED_ATTRIBUTES = 0xC0, 0xE0
COMPRESSED, ENCRYPTED, SPARSE = 0x00FF, 0x4000, 0x8000
SECTOR = 512
_END = 0xFFFFFFFF
_IN_USE, _DIRECTORY = 1, 2
_RECORD_NUMBER = (1 << 48) - 1
_MAX_RECORDS = 1 << 32
_MAX_LIST_BYTES = 1 << 20
_MAX_EXTENSIONS = 8192
_MAX_TABLE_RUNS = 1 << 20
_MAX_RECORD_BYTES, _MAX_INDEX_BYTES = 4096, 65536
_CACHED_RECORDS = 4096
EPOCH = 116_444_736_000_000_000  # of Unix, in Windows' count of 100 ns since 1601
_MAX_NANOSECONDS = 1 << 65
_RECORD = struct.Struct("<4sHHQHHHHIIQ")
_ATTRIBUTE = struct.Struct("<IIBBHHH")
_NON_RESIDENT = struct.Struct("<QQHHIQQQ")


def damaged(what: str) -> UnsupportedFormatError:
    """The error for a structure that contradicts itself or its surroundings."""
    return UnsupportedFormatError(f"The NTFS file system is damaged: {what}.")


def nanoseconds(filetime: int) -> int:
    """A time of Windows as nanoseconds since 1970; those no calendar has are brought near."""
    return max(-_MAX_NANOSECONDS, min((filetime - EPOCH) * 100, _MAX_NANOSECONDS))


class Piece(NamedTuple):
    """An attribute, or the part of one that lies in one record.

    `name` is UTF-16. `value` holds what is resident, else it is None and `runs` the packed runs
    of clusters from `first`. Sizes, in bytes, are the first part's; `unit` is how many clusters
    (as a power of two) are compressed together.
    """

    type: int
    name: bytes
    flags: int
    instance: int
    value: bytes | None
    first: int
    runs: bytes
    unit: int
    allocated: int
    size: int
    initialized: int


class Record(NamedTuple):
    """A record of the MFT with all its attributes, those of its extensions too."""

    number: int
    sequence: int
    is_directory: bool
    base: int
    pieces: tuple[Piece, ...]

    def first(self, kind: int, name: bytes = b"") -> Piece | None:
        """The attribute of that type and name, or its first part."""
        for piece in self.pieces:
            if piece.type == kind and piece.name == name and not piece.first:
                return piece
        return None

    def parts(self, kind: int, name: bytes = b"") -> list[Piece]:
        """All parts of an attribute, in the order of their clusters."""
        found = [piece for piece in self.pieces if piece.type == kind and piece.name == name]
        return sorted(found, key=lambda piece: piece.first) if len(found) > 1 else found


class Run(NamedTuple):
    """So many clusters of an attribute from `first`, stored from cluster `at`; None is a hole."""

    first: int
    clusters: int
    at: int | None


class Layout:
    """Where things are on one NTFS volume; `cluster_count` and `cluster_size` bound them."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        boot = blocks.read(0, SECTOR)
        if len(boot) < SECTOR or boot[3:11] != b"NTFS    ":
            raise damaged("it has no boot sector")
        (sector,) = struct.unpack_from("<H", boot, 11)
        clusters = boot[13]
        per_cluster = clusters if clusters <= 0x80 else 1 << (256 - clusters)
        sectors, first, _ = struct.unpack_from("<QQQ", boot, 40)
        self.cluster_size = sector * per_cluster
        if (
            sector not in (512, 1024, 2048, 4096)
            or not SECTOR <= self.cluster_size <= 2 << 20
            or self.cluster_size & (self.cluster_size - 1)
        ):
            raise damaged("its boot sector gives impossible sizes")
        self.record_size = self._size(boot[64], _MAX_RECORD_BYTES)
        self.index_size = self._size(boot[68], _MAX_INDEX_BYTES)
        self.cluster_count = min(sectors * sector, blocks.size_bytes) // self.cluster_size
        self.uuid = f"{int.from_bytes(boot[72:80], 'little'):016X}"
        self._records: OrderedDict[int, Record] = OrderedDict()
        self._long: Record | None = None
        self.table: list[Run] = []
        self._starts: list[int] = []
        self._record_count = 0
        self._open_table(first)

    def _size(self, code: int, most: int) -> int:
        size = code * self.cluster_size if code < 0x80 else 1 << (256 - code)
        if not SECTOR <= size <= most or size & (size - 1):
            raise damaged("its boot sector gives an impossible size of records")
        return size

    def _open_table(self, first: int) -> None:
        """Find the MFT, whose own runs may be in records that its first runs lead to."""
        raw = self.blocks.read(first * self.cluster_size, self.record_size)
        base = self._parsed(0, raw)
        whole = [piece for piece in base.pieces if piece.type == DATA and not piece.name]
        if not whole or whole[0].value is not None or whole[0].first:
            raise damaged("its MFT is not to be found")
        self._record_count = min(whole[0].size // self.record_size, _MAX_RECORDS)
        self._lay_out(whole)
        if any(piece.type == ATTRIBUTE_LIST for piece in base.pieces):
            # The extensions lie in what is known so far: they come first in the list, and each
            # can be needed to find the next.
            for number in dict.fromkeys(self._extensions(base, DATA)):
                more = self._extension(base, number)
                whole += [piece for piece in more if piece.type == DATA and not piece.name]
                whole.sort(key=lambda piece: piece.first)
                self._lay_out(whole)

    def _lay_out(self, parts: list[Piece]) -> None:
        self.table = list(islice(runs(self, parts), _MAX_TABLE_RUNS))
        self._starts = [run.first * self.cluster_size for run in self.table]

    @property
    def record_count(self) -> int:
        """How many records the MFT has room for."""
        return self._record_count

    def record(self, number: int) -> Record:
        """A record in use, not one that extends another; with all its attributes."""
        found = self._records.get(number)
        if found is not None:
            self._records.move_to_end(number)
            return found
        if self._long is not None and self._long.number == number:
            return self._long
        base = self._parsed(number, self._raw(number))
        if base.base:
            raise damaged(f"record {number} is a part of another")
        if not any(piece.type == ATTRIBUTE_LIST for piece in base.pieces):
            self._records[number] = base
            if len(self._records) > _CACHED_RECORDS:
                self._records.popitem(last=False)
            return base
        pieces = [piece for piece in base.pieces if piece.type != ATTRIBUTE_LIST]
        for extension in dict.fromkeys(self._extensions(base, None)):
            pieces += self._extension(base, extension)
        self._long = base._replace(pieces=tuple(pieces))
        return self._long

    def _extensions(self, base: Record, kind: int | None) -> Iterator[int]:
        """Records that a list of attributes names, its own left out, in its order."""
        parts = base.parts(ATTRIBUTE_LIST)
        content = small_value(self, parts, _MAX_LIST_BYTES)
        at, count = 0, 0
        while at + 26 <= len(content):
            found, length = struct.unpack_from("<IH", content, at)
            number = int.from_bytes(content[at + 16 : at + 22], "little")
            if length < 26:
                raise damaged(f"record {base.number} has a broken list of attributes")
            if number != base.number and kind in (None, found):
                count += 1
                if count > _MAX_EXTENSIONS:
                    raise damaged(f"record {base.number} has more parts than a file can have")
                yield number
            at += length

    def _extension(self, base: Record, number: int) -> list[Piece]:
        part = self._parsed(number, self._raw(number))
        if part.base != base.number:
            raise damaged(f"record {number} is no part of record {base.number}")
        return [piece for piece in part.pieces if piece.type != ATTRIBUTE_LIST]

    def _raw(self, number: int) -> bytes:
        if not 0 <= number < self._record_count:
            raise damaged(f"record {number} is outside the MFT")
        at, wanted = number * self.record_size, self.record_size
        pieces = []
        while wanted:  # a record can be larger than a cluster
            index = bisect_right(self._starts, at) - 1
            run = self.table[index] if index >= 0 else None
            inside = 0 if run is None else at - self._starts[index]
            left = 0 if run is None else run.clusters * self.cluster_size - inside
            if run is None or run.at is None or left <= 0:
                raise damaged(f"record {number} lies in no cluster")
            count = min(wanted, left)
            pieces.append(self.blocks.read(run.at * self.cluster_size + inside, count))
            at += count
            wanted -= count
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _parsed(self, number: int, raw: bytes) -> Record:
        if len(raw) < self.record_size or raw[:4] != b"FILE":
            raise damaged(f"record {number} is not one")
        data = mended(raw, f"record {number}")
        _, _, _, _, sequence, _, at, flags, used, _, base = _RECORD.unpack_from(data)
        if not flags & _IN_USE:
            raise damaged(f"record {number} is not in use")
        pieces = tuple(_pieces(data, at, min(used, len(data)), number))
        return Record(number, sequence, bool(flags & _DIRECTORY), base & _RECORD_NUMBER, pieces)


def mended(raw: bytes, what: str) -> bytes:
    """A record or index block with the last two bytes of each sector put back.

    They are kept apart, and stand for a number instead that shows whether all sectors were written.
    """
    at, count = struct.unpack_from("<HH", raw, 4)
    if count != len(raw) // SECTOR + 1 or at + 2 * count > SECTOR - 2 or at < 24:
        raise damaged(f"{what} has an impossible update sequence")
    mark = raw[at : at + 2]
    data = bytearray(raw)
    for number in range(1, count):
        end = number * SECTOR
        if data[end - 2 : end] != mark:
            raise damaged(f"{what} was written in part only")
        data[end - 2 : end] = raw[at + 2 * number : at + 2 * number + 2]
    return bytes(data)


def _pieces(data: bytes, at: int, end: int, number: int) -> Iterator[Piece]:
    while at + 4 <= end:
        if data[at : at + 4] == b"\xff\xff\xff\xff":
            return
        if at + 24 > end:
            break
        kind, length, apart, name_length, name_at, flags, instance = _ATTRIBUTE.unpack_from(
            data, at
        )
        if length < 24 or at + length > end:
            break
        name = b""
        if name_length:
            name = data[at + name_at : at + name_at + 2 * name_length]
            if name_at + 2 * name_length > length:
                break
        if not apart:
            size, start = struct.unpack_from("<IH", data, at + 16)
            if start + size > length:
                break
            value = data[at + start : at + start + size]
            yield Piece(kind, name, flags, instance, value, 0, b"", 0, 0, size, size)
        else:
            if length < 64:
                break
            first, _, start, unit, _, allocated, size, initialized = _NON_RESIDENT.unpack_from(
                data, at + 16
            )
            if first:
                allocated = size = initialized = 0
            elif flags & (COMPRESSED | SPARSE) and start >= 72 <= length:
                (allocated,) = struct.unpack_from("<Q", data, at + 64)
            if start > length:
                break
            runs = data[at + start : at + length]
            yield Piece(
                *(kind, name, flags, instance, None, first, runs),
                *(unit & 0xFF, allocated, size, initialized),
            )
        at += length
    raise damaged(f"record {number} has an attribute that does not fit into it")


def runs(layout: Layout, parts: list[Piece]) -> Iterator[Run]:
    """The runs of an attribute that is not resident, from its first cluster, without gaps."""
    at = 0
    for piece in parts:
        if piece.value is not None or piece.first != at:
            raise damaged("an attribute lacks a part")
        cluster = 0
        packed, place = piece.runs, 0
        while place < len(packed) and packed[place]:
            sizes = packed[place]
            count_size, at_size = sizes & 15, sizes >> 4
            start = place + 1
            place = start + count_size + at_size
            count = int.from_bytes(packed[start : start + count_size], "little")
            if count_size > 8 or at_size > 8 or place > len(packed) or not 0 < count < 1 << 55:
                raise damaged("an attribute has impossible runs")
            if at_size:
                raw = packed[start + count_size : place]
                cluster += int.from_bytes(raw, "little", signed=True)
                if cluster < 0 or cluster + count > layout.cluster_count:
                    raise damaged(f"an attribute points at cluster {cluster}, outside the volume")
                yield Run(at, count, cluster)
            else:
                yield Run(at, count, None)
            at += count
            if at >= 1 << 56:
                raise damaged("an attribute has impossible runs")


def small_value(layout: Layout, parts: list[Piece], limit: int) -> bytes:
    """The whole value of an attribute that is neither compressed nor large; empty without parts."""
    if not parts:
        return b""
    first = parts[0]
    if first.value is not None:
        return first.value
    if first.first or first.size > limit or first.flags & (COMPRESSED | ENCRYPTED):
        raise damaged("an attribute is larger than it can be")
    value = bytearray()
    for run in runs(layout, parts):
        wanted = min(run.clusters * layout.cluster_size, first.size - len(value))
        if wanted <= 0:
            break
        if run.at is None:
            value += bytes(wanted)
        else:
            value += layout.blocks.read(run.at * layout.cluster_size, wanted)
    if len(value) != first.size:
        raise damaged("an attribute has fewer clusters than its size needs")
    if first.initialized < first.size:
        value[first.initialized :] = bytes(first.size - first.initialized)
    return bytes(value)
