"""FAT12, FAT16 and FAT32 with long names: the parser that runs in the jail.

There are no inodes; an inode's number is the place of the entry in its directory, in units of 32
bytes from the start of the volume, and 1 for the root. Times are the local time of whoever wrote
them, in a zone that nothing tells: they are taken as UTC. Source: Microsoft's FAT specification
(fatgen103).
"""

import codecs
import struct
from collections.abc import Iterator

from atoll.filesystems.fat_chains import (
    DIRECTORY,
    LABEL,
    Chains,
    kind_of,
    mode_of,
    nanoseconds,
    xattrs_of,
)
from atoll.filesystems.interface import Blocks, Data, Entry, EntryKind, Journal, Placed
from atoll.filesystems.utf16_names import is_possible, to_bytes
from atoll.model.errors import UnsupportedFormatError

_ROOT = 1
_ENTRY_BYTES = 32
_MAX_DIRECTORY_BYTES = 65536 * _ENTRY_BYTES
_LONG_NAME = 0x0F
_MAX_LONG_PARTS = 20
_DELETED, _END = 0xE5, 0
_LOWER_BASE, _LOWER_EXTENSION = 0x08, 0x10
_CODE_PAGE = "cp437"  # of short names; which one a guest had is written nowhere
_FAT12_CLUSTERS, _FAT16_CLUSTERS = 4085, 65525
codecs.lookup(_CODE_PAGE)  # loads it: in the jail nothing can be
_SHORT = struct.Struct("<11s3BHHHHHHHI")


def open_volume(blocks: Blocks) -> "FatVolume":
    """Open an image. There is no journal: what is read is what is there."""
    return FatVolume(blocks)


class FatVolume:
    """A Volume (see `interface.py`)."""

    kind = "fat"
    root = _ROOT
    journal: Journal = "clean"

    def __init__(self, blocks: Blocks) -> None:
        boot = blocks.read(0, 512)
        if len(boot) < 512:
            raise UnsupportedFormatError("The FAT file system is damaged: it has no boot sector.")
        sector, per_cluster, reserved, tables, root_entries, small_total = struct.unpack_from(
            "<HBHBHH", boot, 11
        )
        (small_table,) = struct.unpack_from("<H", boot, 22)
        large_total, large_table, flags, _, root = struct.unpack_from("<IIHHI", boot, 32)
        table_sectors = small_table or large_table
        if (
            sector not in (512, 1024, 2048, 4096)
            or per_cluster not in (1, 2, 4, 8, 16, 32, 64, 128)
            or not reserved
            or not 1 <= tables <= 4
            or not table_sectors
        ):
            raise UnsupportedFormatError(
                "The FAT file system is damaged: its boot sector gives impossible sizes."
            )
        fixed_at = (reserved + tables * table_sectors) * sector
        fixed_sectors = -(-root_entries * _ENTRY_BYTES // sector)
        heap_at = fixed_at + fixed_sectors * sector
        count = ((small_total or large_total) - heap_at // sector) // per_cluster
        if small_table == 0:
            width, mask = 32, 0x0FFFFFFF
        elif count < _FAT12_CLUSTERS:
            width, mask = 12, 0xFFF
        else:
            width, mask = 16, 0xFFFF
        active = flags & 15 if width == 32 and flags & 0x80 else 0
        table_at = (reserved + min(active, tables - 1) * table_sectors) * sector
        self._chains = Chains(
            *(blocks, "FAT", (table_at, table_sectors * sector, width, mask)),
            *(heap_at, sector * per_cluster, max(0, count)),
        )
        self._blocks = blocks
        self._root_cluster = root if width == 32 else 0
        self._fixed = (fixed_at, root_entries * _ENTRY_BYTES)
        serial = int.from_bytes(boot[67:71] if width == 32 else boot[39:43], "little")
        self.uuid = f"{serial >> 16:04X}-{serial & 0xFFFF:04X}"
        self.label = self._label(boot[71:82] if width == 32 else boot[43:54])

    def entry(self, inode: int, path: str) -> Entry:
        """Metadata; the directory itself tells nothing of its root."""
        if inode == _ROOT:
            return Entry(path, EntryKind.DIRECTORY, 0, mode_of(DIRECTORY), 0, 0, 0, 0, 0, 1, inode)
        short = self._short(inode)
        _, attributes, _, _, _, _, accessed, _, time, date, _, size = short
        modified = nanoseconds(date, time)
        kind = kind_of(attributes)
        if kind is EntryKind.DIRECTORY:
            size = 0
        return Entry(
            path=path,
            kind=kind,
            size=size,
            mode=mode_of(attributes),
            uid=0,
            gid=0,
            mtime_ns=modified,
            atime_ns=nanoseconds(accessed, 0),
            ctime_ns=modified,
            nlink=1,
            inode=inode,
            allocated_bytes=self._chains.rounded(size),
        )

    def names(self, inode: int) -> Iterator[tuple[bytes, int]]:
        """Long names where there are, else short ones in the case that Windows shows."""
        for name, place, _ in self._entries(inode):
            if name in (b".", b".."):
                continue
            if not is_possible(name):
                raise self._chains.damaged("a directory has an impossible name in it")
            yield name, place // _ENTRY_BYTES

    def content(self, inode: int) -> Iterator[Data]:
        """Bytes of a file."""
        first, size = self._extent(inode)
        return self._chains.content(first, size)

    def layout(self, inode: int) -> Iterator[Placed | Data]:
        """Where they lie."""
        first, size = self._extent(inode)
        return self._chains.placed(first, size)

    def xattrs(self, inode: int) -> tuple[tuple[str, bytes], ...]:
        """`user.DOSATTRIB` of what is hidden or the system's."""
        return () if inode == _ROOT else xattrs_of(self._short(inode)[1])

    def _short(
        self, inode: int
    ) -> tuple[bytes, int, int, int, int, int, int, int, int, int, int, int]:
        place = inode * _ENTRY_BYTES
        raw = self._blocks.read(place, _ENTRY_BYTES)
        if place < self._fixed[0] or len(raw) < _ENTRY_BYTES or raw[0] in (_DELETED, _END):
            raise self._chains.damaged(f"there is no entry at byte {place}")
        return _SHORT.unpack(raw)

    def _extent(self, inode: int) -> tuple[int, int]:
        if inode == _ROOT:
            raise self._chains.damaged("the root is no file")
        short = self._short(inode)
        return short[7] << 16 | short[10], short[11]

    def _label(self, fallback: bytes) -> str:
        for _, _, raw in self._entries(_ROOT, labels=True):
            return raw[:11].decode(_CODE_PAGE).rstrip()
        text = fallback.decode(_CODE_PAGE).rstrip(" \0")
        return "" if text == "NO NAME" else text

    def _pieces(self, inode: int) -> Iterator[tuple[int, bytes]]:
        """The bytes of a directory, and where each piece of them lies."""
        first = self._root_cluster
        if inode != _ROOT:
            short = self._short(inode)
            if not short[1] & DIRECTORY:
                raise self._chains.damaged(f"entry {inode} is not a directory")
            first = short[7] << 16 | short[10]
        elif not first:
            at, size = self._fixed
            yield at, self._blocks.read(at, size)
            return
        size = self._chains.cluster_size
        limit = max(1, _MAX_DIRECTORY_BYTES // size)
        for cluster in self._chains.chain(first, limit):
            place = self._chains.place(cluster)
            yield place, self._blocks.read(place, size)

    def _entries(self, inode: int, labels: bool = False) -> Iterator[tuple[bytes, int, bytes]]:
        """Name, place and bytes of each entry, or else of each that holds the volume's label."""
        parts: dict[int, bytes] = {}
        checksum = -1
        for at, raw in self._pieces(inode):
            for start in range(0, len(raw) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
                entry = raw[start : start + _ENTRY_BYTES]
                if entry[0] == _END:
                    return
                if entry[0] == _DELETED:
                    parts.clear()
                elif entry[11] & 0x3F == _LONG_NAME:
                    if entry[0] & 0x40:
                        parts.clear()
                        checksum = entry[13]
                    number = entry[0] & 0x3F
                    if entry[13] == checksum and 0 < number <= _MAX_LONG_PARTS:
                        parts[number] = entry[1:11] + entry[14:26] + entry[28:32]
                elif entry[11] & LABEL:
                    parts.clear()
                    if labels:
                        yield b"", at + start, entry
                else:
                    if not labels:
                        yield _name(entry, parts, checksum), at + start, entry
                    parts.clear()


def _name(entry: bytes, parts: dict[int, bytes], checksum: int) -> bytes:
    if parts and sorted(parts) == list(range(1, len(parts) + 1)) and checksum == _sum(entry[:11]):
        raw = b"".join(parts[number] for number in sorted(parts))
        for at in range(0, len(raw), 2):
            if raw[at : at + 2] == b"\0\0":
                raw = raw[:at]
                break
        return to_bytes(raw[:510])
    base, extension = entry[:8], entry[8:11]
    if base[0] == 0x05:  # stands for what would mean "deleted"
        base = b"\xe5" + base[1:]
    first = base.decode(_CODE_PAGE).rstrip(" ")
    second = extension.decode(_CODE_PAGE).rstrip(" ")
    if entry[12] & _LOWER_BASE:
        first = first.lower()
    if entry[12] & _LOWER_EXTENSION:
        second = second.lower()
    return (f"{first}.{second}" if second else first).encode()


def _sum(name: bytes) -> int:
    value = 0
    for byte in name:
        value = ((value & 1) << 7) + (value >> 1) + byte & 0xFF
    return value
