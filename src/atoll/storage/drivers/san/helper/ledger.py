"""What Atoll has in a thin pool: a book kept on a small logical volume beside it.

The kernel knows thin devices by number. Which number is whose, how large it is and what is served
stands here, and travels with the disks. The book is written whole, into one half of the volume and
then the other, so that after a loss of power it is either the one before or the one after.

A half is a header of one sector (magic, version, generation, length and SHA-256 of the text) and,
from 4096 on, the text: JSON, compressed by zlib. The text is on disk before its header.
"""

import hashlib
import json
import mmap
import os
import struct
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from atoll.model.errors import PoolFullError, StorageUnreachableError

_MAGIC, _VERSION = b"ATOLLSAN", 1
_HEADER = struct.Struct("<8sIQQ32s")
_BLOCK = 4096
_TRIES = 5
_THIN_IDS = 1 << 24
"""dm-thin's device numbers have 24 bits."""


@dataclass(frozen=True, slots=True)
class Thin:
    """A thin device: its number in the pool and its size in bytes."""

    number: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume and the group it is in; `unit` is its LUN number where targets are shared (FC)."""

    group: str
    thin: Thin
    label: str
    unit: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One instant of several volumes: their thin devices, and when it was (see SnapshotTimes)."""

    volumes: dict[str, Thin]
    started_at: float
    finished_at: float
    pause_seconds: float


@dataclass(slots=True)
class Book:
    """All of it. `orphans` are numbers that belong to nobody: being made, or to be deleted."""

    next_number: int = 1
    orphans: list[int] = field(default_factory=list)
    volumes: dict[str, Volume] = field(default_factory=dict)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    served: dict[str, Any] = field(default_factory=dict)

    def number(self) -> int:
        """A number no thin device has, an orphan until it is given to somebody."""
        taken = {volume.thin.number for volume in self.volumes.values()} | set(self.orphans)
        for snapshot in self.snapshots.values():
            taken |= {thin.number for thin in snapshot.volumes.values()}
        if len(taken) >= _THIN_IDS - 1:
            raise PoolFullError(
                "The thin pool has no device number left; delete snapshots that are not needed."
            )
        number = self.next_number
        while number in taken or number == 0:
            number = (number + 1) % _THIN_IDS
        self.next_number = (number + 1) % _THIN_IDS
        self.orphans.append(number)
        return number

    def unit(self) -> int:
        """The lowest LUN number no volume has."""
        taken = {volume.unit for volume in self.volumes.values()}
        return next(unit for unit in range(len(taken) + 1) if unit not in taken)

    def move(self, volume: str, group: str) -> None:
        """Put a volume into another group."""
        self.volumes[volume] = replace(self.volumes[volume], group=group)


class Ledger:
    """The book on the block device at `path`. One writer at a time: callers hold the lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._generation = 0
        self._book: Book | None = None

    def prepare(self) -> None:
        """Begin an empty book where there is none."""
        with self._opened() as half:
            if half.newest() is None:
                half.write(1, _encode(Book()))

    def read(self) -> Book:
        """The book as it is; callers change it only to write it."""
        for _ in range(_TRIES):
            with self._opened() as half:
                newest = half.newest()
                if newest is None:
                    raise StorageUnreachableError(
                        f"{self._path} on the SAN server holds no book of Atoll's; prepare the "
                        "storage system with `atoll storage init`."
                    )
                if self._book is not None and newest.generation == self._generation:
                    return self._book
                text = half.text(newest)
            if text is not None:  # else somebody wrote twice meanwhile
                self._book, self._generation = _decode(text), newest.generation
                return self._book
        raise StorageUnreachableError(
            f"The book at {self._path} on the SAN server is damaged; restore that logical volume, "
            "for it alone knows which thin device is which LUN."
        )

    def write(self, book: Book) -> None:
        """Make this the book; on return it is on disk."""
        with self._opened() as half:
            newest = half.newest()
            self._generation = (newest.generation if newest else 0) + 1
            self._book = None  # unknown until it is written
            half.write(self._generation, _encode(book))
        self._book = book

    def forget(self) -> None:
        """Read it from the disk next time, whatever was changed in memory."""
        self._book = None

    def _opened(self) -> "_Halves":
        return _Halves(self._path)


@dataclass(frozen=True, slots=True)
class _Header:
    generation: int
    length: int
    digest: bytes


class _Halves:
    """The volume, open past the page cache: other processes see what is written at once."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_DSYNC | os.O_CLOEXEC)
        self._bytes = os.lseek(self._descriptor, 0, os.SEEK_END) // 2 // _BLOCK * _BLOCK

    def __enter__(self) -> "_Halves":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def newest(self) -> _Header | None:
        """The header written last."""
        headers = [self._header(number) for number in (0, 1)]
        return max(
            (header for header in headers if header is not None),
            key=lambda header: header.generation,
            default=None,
        )

    def text(self, header: _Header) -> bytes | None:
        """What the header is about; None when it is another text by now."""
        place = header.generation % 2 * self._bytes + _BLOCK
        text = self._read(place, header.length)[: header.length]
        return text if hashlib.sha256(text).digest() == header.digest else None

    def write(self, generation: int, text: bytes) -> None:
        """Put a text in the half that is its turn, then its header."""
        place = generation % 2 * self._bytes
        if _BLOCK + len(text) > self._bytes:
            raise PoolFullError(
                "Atoll's book on the SAN server is full; extend its logical volume, whose name "
                "ends in _atoll, or delete snapshots."
            )
        header = _HEADER.pack(
            _MAGIC, _VERSION, generation, len(text), hashlib.sha256(text).digest()
        )
        self._write(place + _BLOCK, text)
        self._write(place, header)

    def _header(self, number: int) -> _Header | None:
        block = self._read(number * self._bytes, _BLOCK)
        magic, version, generation, length, digest = _HEADER.unpack_from(block)
        if magic != _MAGIC:
            return None
        if version != _VERSION:
            raise StorageUnreachableError(
                f"Atoll's book on the SAN server has format {version}, which this version does "
                "not read; use the newer Atoll that wrote it."
            )
        return _Header(generation, length, digest)

    def _read(self, offset: int, length: int) -> bytes:
        with mmap.mmap(-1, max(_BLOCK, -(-length // _BLOCK) * _BLOCK)) as aligned:
            os.preadv(self._descriptor, [aligned], offset)
            return bytes(aligned)

    def _write(self, offset: int, data: bytes) -> None:
        with mmap.mmap(-1, -(-len(data) // _BLOCK) * _BLOCK) as aligned:
            aligned.write(data)
            if os.pwritev(self._descriptor, [aligned], offset) != len(aligned):
                raise OSError("short write to the book")


def _encode(book: Book) -> bytes:
    return zlib.compress(json.dumps(asdict(book), separators=(",", ":")).encode(), 1)


def _decode(text: bytes) -> Book:
    raw = json.loads(zlib.decompress(text))
    volumes = {
        name: Volume(**{**value, "thin": Thin(**value["thin"])})
        for name, value in raw.pop("volumes").items()
    }
    snapshots = {
        name: Snapshot(
            **{
                **value,
                "volumes": {each: Thin(**thin) for each, thin in value["volumes"].items()},
            }
        )
        for name, value in raw.pop("snapshots").items()
    }
    return Book(**raw, volumes=volumes, snapshots=snapshots)
