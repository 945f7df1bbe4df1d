"""Which pages of names cannot have a fragment: a local file that saves reading them.

Of each page it is kept which threes and fives of bytes in a row (ASCII letters in lower case) its names
have, as bits in 32,768 buckets. The bits lie bucket by bucket, those of thousands of pages side by side,
so that a question reads one short row for each bucket of what is looked for. Which bucket bytes are in
depends on the repository's key. Rows carry a keyed checksum: one that is not as it was written counts
for nothing, for a bit too few would hide files.

All of it may be deleted at any time, and is made again by reading the pages' names.
"""

import os
import struct
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

BUCKETS = 1 << 15
_SHIFT = np.uint64(64 - 15)
_MAGIC = b"ATOLCTF\x01"
_HEAD = struct.Struct("<8sI32s")
_NAME_BYTES = 32
_CHECK_BYTES = 8
_MOST_PAGES = 4096
_SMALL_FILES = 8
_SUFFIX = ".filter"
_SLAB = 2048

Signature = NDArray[np.uint8]
"""Bits of a page: BUCKETS / 8 bytes."""


class Grams:
    """Which bucket three or five bytes in a row are in, for one key.

    Threes serve short fragments. Fives tell numbered names apart, whose threes all pages have.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = secret
        factors = struct.unpack("<3Q", secret[:24])
        self._first, self._second, self._third = (np.uint64(factor | 1) for factor in factors)

    def buckets(self, text: bytes) -> list[int]:
        """Those of all fives, and then threes, of a text, names in it being ended by zeros; each once."""
        threes, fives = self._of(text)
        return list(dict.fromkeys([*fives.tolist(), *threes.tolist()]))

    def signature(self, text: bytes) -> Signature:
        """The bits of a page with that text."""
        bits = np.zeros(BUCKETS, np.bool_)
        for found in self._of(text):
            bits[found] = True
        return np.packbits(bits)

    def _of(self, text: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The buckets of each three and each five, as often as they come."""
        letters = np.frombuffer(text.lower(), np.uint8)
        if len(letters) < 3:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        wide = letters.astype(np.uint64)
        threes = wide[:-2] << np.uint64(16) | wide[1:-1] << np.uint64(8) | wide[2:]
        there = letters != 0
        inside = there[:-2] & there[1:-1] & there[2:]
        fives = threes[:-2] << np.uint64(16) | threes[2:] & np.uint64(0xFFFF)
        return (
            self._mixed(threes[inside], self._first),
            self._mixed(fives[inside[:-2] & inside[2:]], self._third),
        )

    def _mixed(self, grams: NDArray[np.uint64], factor: np.uint64) -> NDArray[np.int64]:
        mixed = (grams + np.uint64(1)) * factor
        mixed ^= mixed >> np.uint64(29)
        mixed *= self._second
        return (mixed >> _SHIFT).astype(np.int64)

    def check(self, *parts: bytes, length: int = _CHECK_BYTES) -> bytes:
        """A checksum that only who has the key can make."""
        keyed = blake3(key=self._key)
        for part in parts:
            keyed.update(part)
        return keyed.digest(length=length)


class Absent:
    """Pages that cannot have what is looked for.

    By the first 64 bits of their names: these are keyed hashes, of which no two of some millions begin alike.
    """

    def __init__(self, prefixes: Sequence[NDArray[np.uint64]] = ()) -> None:
        self._sorted = np.sort(np.concatenate([np.zeros(0, np.uint64), *prefixes]))

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, name: bytes) -> bool:
        return bool(self.among([name])[0])

    def among(self, names: Sequence[bytes]) -> NDArray[np.bool_]:
        """Which of these pages are such."""
        return _has(self._sorted, _prefixes(b"".join(names)))


def _prefixes(names: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(names, "<u8")[:: _NAME_BYTES // 8]


def _has(ascending: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(ascending):
        return np.zeros(len(wanted), np.bool_)
    at = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    found: NDArray[np.bool_] = ascending[at] == wanted
    return found


@dataclass(frozen=True)
class _File:
    """A file of filters: a head, the pages' names, and for each bucket a checksum and a row."""

    path: Path
    names: bytes

    @property
    def pages(self) -> int:
        """How many pages it has, those that fill up to eight among them."""
        return len(self.names) // _NAME_BYTES

    @property
    def _width(self) -> int:
        return _CHECK_BYTES + self.pages // 8

    @property
    def _rows_at(self) -> int:
        return _HEAD.size + len(self.names)

    def may_have(self, grams: Grams, buckets: Sequence[int]) -> NDArray[np.bool_]:
        """Which of the pages may have all of these; OSError."""
        found = np.ones(self.pages, np.bool_)
        with self.path.open("rb", buffering=0) as file:
            for bucket in buckets:
                at = self._rows_at + bucket * self._width
                stored = os.pread(file.fileno(), self._width, at)
                row = stored[_CHECK_BYTES:]
                if grams.check(struct.pack("<I", bucket), row) == stored[:_CHECK_BYTES]:
                    found &= np.unpackbits(np.frombuffer(row, np.uint8)).astype(np.bool_)
                    if not found.any():
                        break
        return found

    def rows(self, grams: Grams) -> NDArray[np.uint8] | None:
        """All rows; None if one is not as it was written."""
        data = self.path.read_bytes()[self._rows_at :]
        if len(data) != BUCKETS * self._width:
            return None
        for bucket in range(BUCKETS):
            at = bucket * self._width
            row = data[at + _CHECK_BYTES : at + self._width]
            if grams.check(struct.pack("<I", bucket), row) != data[at : at + _CHECK_BYTES]:
                return None
        return np.frombuffer(data, np.uint8).reshape(BUCKETS, self._width)[:, _CHECK_BYTES:]


class PageFilters:
    """Filters of the pages of one repository, in a directory, or in memory alone without one.

    What cannot be read or written there makes searching slower and nothing else.
    """

    def __init__(self, directory: Path | None, secret: bytes) -> None:
        self._directory = directory
        self._grams = Grams(secret)
        self._files = [] if directory is None else self._open(directory)
        self._fresh: dict[bytes, Signature] = {}
        self._saved: NDArray[np.uint64] | None = None

    def knows(self, page: bytes) -> bool:
        """Whether the page of that name has a filter."""
        if page in self._fresh:
            return True
        if self._saved is None:
            found = [_prefixes(file.names) for file in self._files]
            self._saved = np.sort(np.concatenate([np.zeros(0, np.uint64), *found]))
        return bool(_has(self._saved, _prefixes(page))[0])

    def add(self, page: bytes, text: bytes) -> None:
        """Take in a page of that name, whose names are `text`; see `save`."""
        if self.knows(page):
            return
        self._fresh[page] = self._grams.signature(text)
        if self._directory is not None and len(self._fresh) >= _MOST_PAGES:
            self.save()

    def without(self, literals: Iterable[bytes]) -> Absent:
        """The pages in which no name has all of these; none if none of them is three bytes long."""
        found = [self._grams.buckets(run) for run in literals]
        buckets = list(dict.fromkeys(each for run in found for each in run))
        if not buckets:
            return Absent()
        absent = []
        for file in self._files:
            with suppress(OSError):
                absent.append(_prefixes(file.names)[~file.may_have(self._grams, buckets)])
        for name, bits in self._fresh.items():
            if not np.unpackbits(bits)[buckets].all():
                absent.append(_prefixes(name))
        return Absent(absent)

    def save(self) -> None:
        """Keep what was added for the next time."""
        if not self._fresh or self._directory is None:
            return
        fresh, self._fresh, self._saved = self._fresh, {}, None
        with suppress(OSError):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            names = list(fresh)
            for first in range(0, len(names), _MOST_PAGES):
                part = names[first : first + _MOST_PAGES]
                rows = _turned(np.array([fresh[name] for name in part]))
                self._files.append(self._write(b"".join(part), rows))
            self._join_small()

    def _join_small(self) -> None:
        small = [file for file in self._files if file.pages < _MOST_PAGES // 2]
        if len(small) < _SMALL_FILES:
            return
        joined: list[tuple[_File, NDArray[np.uint8]]] = []
        for file in small:
            if sum(each.pages for each, _ in joined) + file.pages > _MOST_PAGES:
                break
            rows = file.rows(self._grams)
            if rows is not None:
                joined.append((file, rows))
        if len(joined) > 1:
            names = b"".join(file.names for file, _ in joined)
            made = self._write(names, np.concatenate([rows for _, rows in joined], axis=1))
            gone = [file for file, _ in joined]
            self._files = [file for file in self._files if file not in gone] + [made]
            for file in gone:
                file.path.unlink(missing_ok=True)

    def _write(self, names: bytes, rows: NDArray[np.uint8]) -> _File:
        """A file whose rows are as wide as the names, filled up to eight, need."""
        assert self._directory is not None
        table = names + bytes(rows.shape[1] * 8 * _NAME_BYTES - len(names))
        descriptor, new = tempfile.mkstemp(dir=self._directory, suffix=".new")
        try:
            with os.fdopen(descriptor, "wb") as file:
                check = self._grams.check(b"names", table, length=32)
                file.write(_HEAD.pack(_MAGIC, len(table) // _NAME_BYTES, check) + table)
                for bucket, row in enumerate(rows):
                    bits = row.tobytes()
                    file.write(self._grams.check(struct.pack("<I", bucket), bits) + bits)
            path = Path(new).with_suffix(_SUFFIX)
            Path(new).rename(path)
        except BaseException:
            Path(new).unlink(missing_ok=True)
            raise
        return _File(path, table)

    def _open(self, directory: Path) -> list[_File]:
        """The files that are whole as far as their names go; none where others may write."""
        found = []
        with suppress(OSError):
            status = directory.stat()
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                return []
            for path in sorted(directory.glob(f"*{_SUFFIX}")):
                file = self._opened(path)
                if file is not None:
                    found.append(file)
                else:
                    path.unlink(missing_ok=True)
        return found

    def _opened(self, path: Path) -> _File | None:
        try:
            with path.open("rb") as file:
                magic, count, check = _HEAD.unpack(file.read(_HEAD.size))
                if magic != _MAGIC or count > _MOST_PAGES or count % 8:
                    return None
                table = file.read(_NAME_BYTES * count)
        except (FileNotFoundError, struct.error):
            return None
        if self._grams.check(b"names", table, length=32) != check:
            return None
        return _File(path, table)


def _turned(signatures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bits of pages, a row each, as bits of buckets, a row each; pages are filled up to eight."""
    rows = np.empty((BUCKETS, -(-len(signatures) // 8)), np.uint8)
    for first in range(0, BUCKETS, _SLAB):
        part = signatures[:, first // 8 : (first + _SLAB) // 8]
        rows[first : first + _SLAB] = np.packbits(np.unpackbits(part, axis=1).T, axis=1)
    return rows
