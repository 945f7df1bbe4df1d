"""exFAT: the parser that runs in the jail.

An inode's number is the place of the first of a file's entries in its directory, in units of 32
bytes from the start of the volume, and 1 for the root. Times say their zone; those that do not are
taken as UTC. Source: Microsoft's exFAT file system specification.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from atoll.filesystems.fat_chains import (
    DIRECTORY,
    Chains,
    kind_of,
    mode_of,
    nanoseconds,
    xattrs_of,
)
from atoll.filesystems.interface import Blocks, Data, Entry, EntryKind, Journal, Placed
from atoll.filesystems.utf16_names import is_possible, to_bytes, to_text
from atoll.model.errors import UnsupportedFormatError

_ROOT = 1
_ENTRY_BYTES = 32
_MAX_DIRECTORY_BYTES = 256 << 20
_FILE, _STREAM, _NAME, _LABEL = 0x85, 0xC0, 0xC1, 0x83
_MAX_SECONDARIES = 18
_CONTIGUOUS = 2
_MAX_BYTES = 1 << 63


class _File(NamedTuple):
    """A file's entries together; `first` is its cluster, and what is behind `valid` is zeros."""

    attributes: int
    name: bytes
    size: int
    valid: int
    first: int
    contiguous: bool
    mtime_ns: int
    atime_ns: int
    ctime_ns: int


def open_volume(blocks: Blocks) -> "ExfatVolume":
    """Open an image. There is no journal: what is read is what is there."""
    return ExfatVolume(blocks)


class ExfatVolume:
    """A Volume (see `interface.py`)."""

    kind = "exfat"
    root = _ROOT
    journal: Journal = "clean"

    def __init__(self, blocks: Blocks) -> None:
        boot = blocks.read(0, 512)
        if len(boot) < 512:
            raise UnsupportedFormatError("The exFAT file system is damaged: it has no boot sector.")
        table, table_length, heap, count, root, serial, _, flags = struct.unpack_from(
            "<6IHH", boot, 80
        )
        sector_shift, cluster_shift, tables = boot[108], boot[109], boot[110]
        if (
            not 9 <= sector_shift <= 12
            or sector_shift + cluster_shift > 25
            or tables not in (1, 2)
            or not table
        ):
            raise UnsupportedFormatError(
                "The exFAT file system is damaged: its boot sector gives impossible sizes."
            )
        if flags & 1 and tables == 2:
            table += table_length
        self._chains = Chains(
            *(blocks, "exFAT"),
            (table << sector_shift, table_length << sector_shift, 32, 0xFFFFFFFF),
            *(heap << sector_shift, 1 << sector_shift + cluster_shift, count),
        )
        self._blocks = blocks
        self._root_cluster = root
        self._last: tuple[int, _File] | None = None
        self.uuid = f"{serial >> 16:04X}-{serial & 0xFFFF:04X}"
        self.label = ""
        for _, raw in self._entries(_ROOT):
            if raw[0] == _LABEL:
                self.label = to_text(raw[2 : 2 + 2 * min(raw[1], 11)])
                break

    def entry(self, inode: int, path: str) -> Entry:
        """Metadata; the root has none."""
        if inode == _ROOT:
            return Entry(path, EntryKind.DIRECTORY, 0, mode_of(DIRECTORY), 0, 0, 0, 0, 0, 1, inode)
        file = self._file(inode)
        kind = kind_of(file.attributes)
        size = file.size if kind is EntryKind.FILE else 0
        if size >= _MAX_BYTES or file.valid > file.size:
            raise self._chains.damaged(f"{path} has an impossible size")
        return Entry(
            path=path,
            kind=kind,
            size=size,
            mode=mode_of(file.attributes),
            uid=0,
            gid=0,
            mtime_ns=file.mtime_ns,
            atime_ns=file.atime_ns,
            ctime_ns=file.mtime_ns,
            nlink=1,
            inode=inode,
            allocated_bytes=self._chains.rounded(size) if file.first else 0,
        )

    def names(self, inode: int) -> Iterator[tuple[bytes, int]]:
        """Names of a directory."""
        pending: list[bytes] = []
        start = wanted = 0
        for place, raw in self._entries(inode):
            if pending and not raw[0] & 0x40:
                raise self._chains.damaged("a directory has a file that lacks entries")
            if raw[0] == _FILE:
                pending, start, wanted = [raw], place, self._count(raw)
            elif pending:
                pending.append(raw)
            if pending and len(pending) == wanted:
                name = self._put_together(pending).name
                if not is_possible(name):
                    raise self._chains.damaged("a directory has an impossible name in it")
                yield name, start // _ENTRY_BYTES
                pending = []

    def content(self, inode: int) -> Iterator[Data]:
        """Bytes of a file as far as they were ever written."""
        file = self._file(inode)
        return self._chains.content(file.first, file.valid, file.contiguous)

    def layout(self, inode: int) -> Iterator[Placed | Data]:
        """Where they lie."""
        file = self._file(inode)
        return self._chains.placed(file.first, file.valid, file.contiguous)

    def xattrs(self, inode: int) -> tuple[tuple[str, bytes], ...]:
        """`user.DOSATTRIB` of what is hidden or the system's."""
        return () if inode == _ROOT else xattrs_of(self._file(inode).attributes)

    def _entries(self, inode: int) -> Iterator[tuple[int, bytes]]:
        """Place and bytes of each entry in use."""
        size = self._chains.cluster_size
        limit = _MAX_DIRECTORY_BYTES // size
        clusters: Iterator[int] | range
        if inode == _ROOT:
            clusters = self._chains.chain(self._root_cluster, limit)
        else:
            file = self._file(inode)
            if not file.attributes & DIRECTORY:
                raise self._chains.damaged(f"entry {inode} is not a directory")
            count = min(-(-file.size // size), limit)
            clusters = (
                range(file.first, file.first + count)
                if file.contiguous
                else self._chains.chain(file.first, count)
            )
        for cluster in clusters:
            place = self._chains.place(cluster)
            raw = self._blocks.read(place, min(size, 1 << 20))
            for at in range(0, size, _ENTRY_BYTES):
                if at and not at % (1 << 20):
                    raw = self._blocks.read(place + at, min(size - at, 1 << 20))
                inside = at % (1 << 20)
                entry = raw[inside : inside + _ENTRY_BYTES]
                if len(entry) < _ENTRY_BYTES or not entry[0]:
                    return
                if entry[0] & 0x80:
                    yield place + at, entry

    def _count(self, raw: bytes) -> int:
        if not 2 <= raw[1] <= _MAX_SECONDARIES:
            raise self._chains.damaged("a file has an impossible number of entries")
        return raw[1] + 1

    def _file(self, inode: int) -> _File:
        """A file's entries from the first on, which can lie at the end of a cluster.

        Whether the directory's chain leads on from there, or its clusters are in a row, only its
        own entry tells: the checksum decides.
        """
        if self._last is not None and self._last[0] == inode:
            return self._last[1]
        place = inode * _ENTRY_BYTES
        if place < self._chains.heap_at:
            raise self._chains.damaged(f"there is no entry at byte {place}")
        cluster = self._chains.cluster_at(place)
        follower = self._chains.following(cluster)
        for successor in (follower, cluster + 1):
            found = self._set_from(place, cluster, successor)
            if found is not None:
                file = self._put_together(found)
                self._last = inode, file
                return file
        raise self._chains.damaged(f"the entries from byte {place} on are not those of a file")

    def _set_from(self, place: int, cluster: int, successor: int | None) -> list[bytes] | None:
        end = self._chains.place(cluster) + self._chains.cluster_size
        raw = self._blocks.read(place, min(end - place, (_MAX_SECONDARIES + 1) * _ENTRY_BYTES))
        if len(raw) < _ENTRY_BYTES or raw[0] != _FILE:
            return None
        wanted = self._count(raw) * _ENTRY_BYTES
        while len(raw) < wanted:
            if successor is None or not 2 <= successor < 2 + self._chains.cluster_count:
                return None
            more = min(wanted - len(raw), self._chains.cluster_size)
            raw += self._blocks.read(self._chains.place(successor), more)
            chained = self._chains.following(successor)
            successor = successor + 1 if successor == cluster + 1 else chained
        raw = raw[:wanted]
        entries = [raw[at : at + _ENTRY_BYTES] for at in range(0, wanted, _ENTRY_BYTES)]
        return entries if _sum(raw) == int.from_bytes(raw[2:4], "little") else None

    def _put_together(self, entries: Sequence[bytes]) -> _File:
        head, stream, *rest = entries
        if stream[0] != _STREAM:
            raise self._chains.damaged("a file lacks the entry of its content")
        parts = [raw[2:] for raw in rest if raw[0] == _NAME]
        name = b"".join(parts)[: 2 * stream[3]]
        if len(name) != 2 * stream[3]:
            raise self._chains.damaged("a file lacks a part of its name")
        (attributes,) = struct.unpack_from("<H", head, 4)
        (valid,) = struct.unpack_from("<Q", stream, 8)
        first, size = struct.unpack_from("<IQ", stream, 20)
        modified, accessed = struct.unpack_from("<II", head, 12)
        mtime = nanoseconds(modified >> 16, modified & 0xFFFF, head[21], _quarters(head[23]))
        return _File(
            attributes=attributes,
            name=to_bytes(name),
            size=size,
            valid=valid,
            first=first,
            contiguous=bool(stream[1] & _CONTIGUOUS),
            mtime_ns=mtime,
            atime_ns=nanoseconds(accessed >> 16, accessed & 0xFFFF, 0, _quarters(head[24])),
            ctime_ns=mtime,
        )


def _quarters(raw: int) -> int:
    """Quarters of an hour east of UTC, seven bits with a sign; none where it is not given."""
    if not raw & 0x80:
        return 0
    value = raw & 0x7F
    return value - 128 if value & 0x40 else value


def _sum(raw: bytes) -> int:
    value = 0
    for at, byte in enumerate(raw):
        if at not in (2, 3):
            value = ((value & 1) << 15) + (value >> 1) + byte & 0xFFFF
    return value
