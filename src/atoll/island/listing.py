"""One directory's entries, compact enough for millions of them."""

import tempfile
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from atoll.filesystems.rows import Row, starts

_CHUNK_ROWS = 256
_CHUNK_BYTES = 128 << 10
_CHUNKS_IN_MEMORY = 8
_INDEX_BYTES = 24
"""What finding a row by name and by inode takes for each."""


class _Chunk:
    """Rows side by side, and where each begins."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.starts = array("I", starts(raw))


class Listing:
    """Rows in a fixed order. A large directory lies in a temporary file that has no name."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._lock = threading.Lock()
        self._firsts = array("Q")  # the number of each chunk's first row
        self._offsets = array("Q", [0])
        self._chunks: OrderedDict[int, _Chunk] = OrderedDict()
        self._file: BinaryIO | None = None
        hashes, inodes = array("q"), array("Q")
        pending = bytearray()
        first = 0
        for row in rows:
            hashes.append(_hash(row.name))
            inodes.append(row.inode)
            pending += row.raw
            if len(hashes) - first >= _CHUNK_ROWS or len(pending) >= _CHUNK_BYTES:
                self._add(first, bytes(pending))
                first = len(hashes)
                pending.clear()
        if pending:
            self._add(first, bytes(pending))
        self._by_name, self._hashes = _ordered(np.frombuffer(hashes, dtype=np.int64))
        self._by_inode, self._inodes = _ordered(np.frombuffer(inodes, dtype=np.uint64))

    def __len__(self) -> int:
        return len(self._hashes)

    @property
    def weight_bytes(self) -> int:
        """What keeping it costs, in memory and in the temporary file."""
        in_memory = _CHUNKS_IN_MEMORY * _CHUNK_BYTES if self._file is not None else 0
        return 4096 + self._offsets[-1] + in_memory + _INDEX_BYTES * len(self)

    def rows(self, start: int = 0) -> Iterator[Row]:
        """All rows from number `start`."""
        if start >= len(self):
            return
        number = bisect_right(self._firsts, start) - 1
        skipped = start - self._firsts[number]
        while number < len(self._firsts):
            chunk = self._chunk(number)
            for at in chunk.starts[skipped:]:
                yield Row(chunk.raw, at)
            skipped = 0
            number += 1

    def find(self, name: bytes) -> Row | None:
        """The row of a name; the first where a damaged directory has it twice."""
        for row in self._found(self._by_name, self._hashes, np.int64(_hash(name))):
            if row.name == name:
                return row
        return None

    def by_inode(self, inode: int) -> Row | None:
        """The first row of an inode."""
        for row in self._found(self._by_inode, self._inodes, np.uint64(inode)):
            if row.inode == inode and row.kind is not None:
                return row
        return None

    def _found(
        self,
        order: NDArray[np.uint32],
        values: NDArray[np.generic],
        wanted: np.int64 | np.uint64,
    ) -> Iterator[Row]:
        at = int(np.searchsorted(values, wanted))
        while at < len(self) and values[at] == wanted:
            number = int(order[at])
            chunk = bisect_right(self._firsts, number) - 1
            found = self._chunk(chunk)
            yield Row(found.raw, found.starts[number - self._firsts[chunk]])
            at += 1

    def _add(self, first: int, raw: bytes) -> None:
        number = len(self._firsts)
        self._firsts.append(first)
        self._offsets.append(self._offsets[-1] + len(raw))
        if number < _CHUNKS_IN_MEMORY:
            self._chunks[number] = _Chunk(raw)
            return
        if self._file is None:
            # Open as long as the listing is kept.
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
            for known in self._chunks.values():
                self._file.write(known.raw)
        self._file.write(raw)

    def _chunk(self, number: int) -> _Chunk:
        with self._lock:
            chunk = self._chunks.get(number)
            if chunk is None and self._file is not None:
                start, end = self._offsets[number], self._offsets[number + 1]
                self._file.seek(start)
                chunk = self._chunks[number] = _Chunk(self._file.read(end - start))
                if len(self._chunks) > _CHUNKS_IN_MEMORY:
                    self._chunks.popitem(last=False)
            else:
                self._chunks.move_to_end(number)
            assert chunk is not None  # without a file all chunks are in memory
            return chunk


def _ordered(values: NDArray[np.generic]) -> tuple[NDArray[np.uint32], NDArray[np.generic]]:
    order = np.argsort(values, kind="stable").astype(np.uint32)
    return order, values[order]


def _hash(name: bytes) -> int:
    """By a key of this process alone, so that no guest can choose names that have it in common."""
    return hash(name)
