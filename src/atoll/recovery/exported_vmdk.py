"""Reading the VMDKs of hosted products, flat or sparse, whole or split, as an export has them.

Source: VMware, "Virtual Disk Format 5.0", sections "The Descriptor File" and "Hosted Sparse
Extents". The counterpart of `hosted_vmdk`, which writes them.
"""

import os
import re
import struct
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from atoll.model.errors import UnsupportedFormatError
from atoll.model.extents import Extent

_SECTOR = 512
_MAX_DESCRIPTOR_BYTES = 64 << 10
_PIECE_BYTES = 4 << 20
_CACHED_TABLES = 64
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_ZEROED_GRAINS, _COMPRESSED = 1 << 2, 1 << 16
_LINE = re.compile(
    r"(?:RW|RDONLY) +(?P<sectors>\d{1,19}) +(?P<kind>[A-Z]+)"
    r'(?: +"(?P<file>[^"]*)")?(?: +(?P<offset>\d{1,19}))?\s*'
)


def open_exported(path: Path) -> "ExportedDisk":
    """Open a disk by its VMDK. UnsupportedFormatError for what is none, or damaged; OSError."""
    with path.open("rb") as file:
        text = file.read(_MAX_DESCRIPTOR_BYTES)
    if text.startswith(b"KDMV"):
        text = _embedded(text, path)
    if not text.lstrip().startswith(b"# Disk DescriptorFile"):
        raise UnsupportedFormatError(
            f"{path} is no VMDK descriptor; name the .vmdk file of the disk, not one of its extents."
        )
    parts: list[_Part] = []
    try:
        for length, kind, name, offset in _extents(text, path):
            parts.append(_open(path, length, kind, name, offset))
    except BaseException:
        for part in parts:
            part.close()
        raise
    return ExportedDisk(parts)


class ExportedDisk:
    """A BlockReader over the disk's extents."""

    def __init__(self, parts: Sequence["_Part"]) -> None:
        self._parts = parts
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + part.length)

    @property
    def size_bytes(self) -> int:
        """How many bytes the disk has."""
        return self._starts[-1]

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, fewer only past the end. UnsupportedFormatError, OSError."""
        end = min(offset + length, self.size_bytes)
        found = bytearray()
        while offset < end:
            number = bisect_right(self._starts, offset) - 1
            within = offset - self._starts[number]
            some = min(end, self._starts[number + 1]) - offset
            found += self._parts[number].read(within, some)
            offset += some
        return bytes(found)

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) for each extent in order, in pieces of 4 MiB at most."""
        for extent in extents:
            for at in range(extent.offset, extent.end, _PIECE_BYTES):
                yield at, self.read(at, min(_PIECE_BYTES, extent.end - at))

    def holes(self) -> Iterator[Extent]:
        """What the files have nothing for, in order."""
        for start, part in zip(self._starts, self._parts, strict=False):
            for hole in part.holes():
                yield Extent(start + hole.offset, hole.length)

    def close(self) -> None:
        """Close the files. Closing twice is harmless."""
        for part in self._parts:
            part.close()


class _Part(Protocol):
    """One extent; offsets are within it."""

    length: int

    def read(self, offset: int, length: int) -> bytes: ...

    def holes(self) -> Iterator[Extent]: ...

    def close(self) -> None: ...


class _Zeros:
    def __init__(self, length: int) -> None:
        self.length = length

    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)

    def holes(self) -> Iterator[Extent]:
        yield Extent(0, self.length)

    def close(self) -> None:
        """There is no file."""


class _File:
    """A file that is read at places, by any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        found = b""
        while len(found) < length:
            more = os.pread(self._descriptor, length - len(found), offset + len(found))
            if not more:
                raise _odd(self.path, "ends before what it is said to hold")
            found = found + more if found else more
        return found

    def holes(self, begin: int, end: int) -> Iterator[Extent]:
        at = begin
        while at < end:
            try:
                data = os.lseek(self._descriptor, at, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end of the file
                data = end
            if data > at:
                yield Extent(at, min(data, end) - at)
            if data >= end:
                return
            at = os.lseek(self._descriptor, data, os.SEEK_HOLE)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Flat:
    """Every byte at its place."""

    def __init__(self, path: Path, length: int, offset: int) -> None:
        self.length = length
        self._offset = offset
        self._file = _File(path)
        if offset + length > self._file.size:
            self._file.close()
            raise _odd(path, f"has {self._file.size} bytes and should have {offset + length}")

    def read(self, offset: int, length: int) -> bytes:
        return self._file.read(self._offset + offset, length)

    def holes(self) -> Iterator[Extent]:
        for hole in self._file.holes(self._offset, self._offset + self.length):
            yield Extent(hole.offset - self._offset, hole.length)

    def close(self) -> None:
        self._file.close()


class _Sparse:
    """Grains where tables say; tables are read when they are needed."""

    def __init__(self, path: Path, length: int) -> None:
        self.length = length
        self._file = _File(path)
        try:
            self._read_header(path)
        except BaseException:
            self._file.close()
            raise
        self._tables: OrderedDict[int, array[int]] = OrderedDict()
        self._lock = threading.Lock()

    def _read_header(self, path: Path) -> None:
        fields = _HEADER.unpack(self._file.read(0, _HEADER.size))
        magic, version, flags, capacity, grain, _, _, entries, _, directory, *_ = fields
        if magic != b"KDMV" or version not in (1, 2, 3):
            raise _odd(path, "is no sparse extent")
        if flags & _COMPRESSED:
            raise UnsupportedFormatError(
                f"{path} is compressed, which exports of vcbMounter are not; convert it with "
                "`qemu-img convert -O vmdk` first."
            )
        if grain < 8 or grain & (grain - 1) or grain > 1 << 14 or not 0 < entries <= 1 << 14:
            raise _odd(path, "has grains or tables of a size that cannot be right")
        if capacity * _SECTOR < self.length:
            raise _odd(path, "holds less than its descriptor says")
        self._grain_bytes = grain * _SECTOR
        self._entries = entries
        # Where grains may be marked as zeroed, 1 says so; else no grain can lie at sector 1.
        self._absent = (0, 1) if flags & _ZEROED_GRAINS else (0,)
        tables = -(-self.length // (self._grain_bytes * entries))
        self._directory = self._numbers(directory * _SECTOR, tables)

    def _numbers(self, offset: int, count: int) -> "array[int]":
        found: array[int] = array("I")
        found.frombytes(self._file.read(offset, count * 4))
        return found

    def _table(self, number: int) -> "array[int] | None":
        place = self._directory[number]
        if not place:
            return None
        with self._lock:
            known = self._tables.get(number)
            if known is not None:
                self._tables.move_to_end(number)
                return known
        known = self._numbers(place * _SECTOR, self._entries)
        with self._lock:
            self._tables[number] = known
            while len(self._tables) > _CACHED_TABLES:
                self._tables.popitem(last=False)
        return known

    def read(self, offset: int, length: int) -> bytes:
        found = bytearray()
        end = offset + length
        while offset < end:
            grain, within = divmod(offset, self._grain_bytes)
            some = min(self._grain_bytes - within, end - offset)
            table = self._table(grain // self._entries)
            place = 0 if table is None else table[grain % self._entries]
            if place in self._absent:
                found += bytes(some)
            else:
                found += self._file.read(place * _SECTOR + within, some)
            offset += some
        return bytes(found)

    def holes(self) -> Iterator[Extent]:
        begin: int | None = None
        for number in range(len(self._directory)):
            table = self._table(number)
            first = number * self._entries * self._grain_bytes
            if table is None:
                begin = first if begin is None else begin
                continue
            for entry, place in enumerate(table):
                at = first + entry * self._grain_bytes
                if at >= self.length:
                    break
                if place in self._absent:
                    begin = at if begin is None else begin
                elif begin is not None:
                    yield Extent(begin, at - begin)
                    begin = None
        if begin is not None:
            yield Extent(begin, self.length - begin)

    def close(self) -> None:
        self._file.close()


def _open(path: Path, length: int, kind: str, name: str, offset: int) -> _Part:
    if kind == "ZERO":
        return _Zeros(length)
    # Nothing outside the directory is read, whatever the descriptor names.
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise _odd(path, "has an extent outside its own directory")
    where = path.parent / name
    return _Flat(where, length, offset) if kind == "FLAT" else _Sparse(where, length)


def _embedded(text: bytes, path: Path) -> bytes:
    """The descriptor in a sparse file that is the whole disk."""
    if len(text) < _HEADER.size:
        raise _odd(path, "is cut off")
    fields = _HEADER.unpack_from(text)
    place, sectors = fields[5] * _SECTOR, fields[6] * _SECTOR
    if not place or place + sectors > len(text):
        raise UnsupportedFormatError(
            f"{path} is one extent of a disk; name the small .vmdk file that lists it."
        )
    return text[place : place + sectors].rstrip(b"\0")


def _extents(text: bytes, path: Path) -> Iterator[tuple[int, str, str, int]]:
    """Bytes, kind, file and offset in bytes of each."""
    found = 0
    for raw in text.decode("utf-8", "surrogateescape").splitlines():
        line = raw.strip()
        if line.replace(" ", "").startswith("parentCID=") and not line.lower().endswith("ffffffff"):
            raise _odd(path, "is a delta of another disk, which an export never is")
        if not line.startswith(("RW ", "RDONLY ")):
            continue
        match = _LINE.fullmatch(line)
        if match is None or match["kind"] not in ("FLAT", "SPARSE", "ZERO"):
            raise _odd(path, f"has an extent that is not read ({line[:60]})")
        found += 1
        yield (
            int(match["sectors"]) * _SECTOR,
            match["kind"],
            match["file"] or "",
            int(match["offset"] or 0) * _SECTOR,
        )
    if not found:
        raise _odd(path, "lists no extent")


def _odd(path: Path, what: str) -> UnsupportedFormatError:
    return UnsupportedFormatError(f"{path} {what}; copy the export from its backup once more.")
