"""Tables of index rows in the order of the chunks' names, and how a name is found in one.

A table is cut into buckets by the first bits of the names, four to eight rows in each, for names are
hashes and so are spread evenly. Memory holds where each bucket starts and, of every row, the eight bits
that follow (its tag): less than two bytes a row. A name that is not there is mostly refused by these
alone; one that is there costs one look at a row, wherever the rows are kept.
"""

import struct
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from atoll.repository.segments import ROW, Rows

ROW_BYTES = ROW.itemsize
MIN_BITS = 12
_ROWS_PER_BUCKET = 8
_TAG_BITS = 8
unpack_prefix = struct.Struct(">Q").unpack_from
"""The first eight bytes of a name as a number that sorts as names do, in a tuple of one."""
_NAME_WORDS = 4
_ROW_WORDS = ROW_BYTES // 8


class Buckets:
    """Where names may stand in a table. `starts` has one number more than there are buckets."""

    def __init__(self, bits: int, starts: bytes, tags: bytes) -> None:
        """`starts` are numbers of four bytes, little-endian, as many as 2^bits and one."""
        self.bits = bits
        self.tags = tags
        self.starts = np.frombuffer(starts, "<u4")
        self._starts = memoryview(starts).cast("I")
        self._tag_numbers = np.frombuffer(tags, np.uint8)
        self._shift = 64 - bits
        self._tag_shift = 64 - bits - _TAG_BITS

    @staticmethod
    def bits_for(rows: int) -> int:
        """How many first bits make the buckets of a table of this many rows."""
        return max(MIN_BITS, (max(rows, 1) // _ROWS_PER_BUCKET).bit_length())

    @classmethod
    def of(cls, prefixes: NDArray[np.uint64]) -> Self:
        """The buckets of a whole table, by the first eight bytes of its names in order."""
        bits = cls.bits_for(len(prefixes))
        starts = np.zeros(2**bits + 1, "<u4")
        counts = np.bincount((prefixes >> np.uint64(64 - bits)).astype(np.int64), None, 2**bits)
        np.cumsum(counts, out=starts[1:], dtype=np.uint32)
        return cls(bits, starts.tobytes(), tags_of(prefixes, bits).tobytes())

    def __len__(self) -> int:
        return len(self.tags)

    def places(self, prefix: int) -> Sequence[int]:
        """Rows that may have a name that begins so."""
        bucket = prefix >> self._shift
        tag = prefix >> self._tag_shift & 255
        end = self._starts[bucket + 1]
        find = self.tags.find
        at = find(tag, self._starts[bucket], end)
        if at < 0:
            return ()
        found = []
        while at >= 0:
            found.append(at)
            at = find(tag, at + 1, end)
        return found

    def places_of_many(
        self, prefixes: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For many prefixes: which of them may stand in which row, in the rows' order for each."""
        buckets = (prefixes >> np.uint64(self._shift)).astype(np.int64)
        first = self.starts[buckets].astype(np.int64)
        counts = self.starts[buckets + 1].astype(np.int64) - first
        owners = np.repeat(np.arange(len(prefixes)), counts)
        ends = np.cumsum(counts)
        rows = np.arange(len(owners)) + np.repeat(first - ends + counts, counts)
        same = np.flatnonzero(self._tag_numbers[rows] == tags_of(prefixes, self.bits)[owners])
        return owners[same], rows[same]

    def row_at(self, part: int, parts_bits: int) -> int:
        """The first row of a part, if the names are cut by their first `parts_bits` (at most `bits`)."""
        return int(self._starts[part << (self.bits - parts_bits)])


class Table(Protocol):
    """Rows in the order of the first eight bytes of their names. Never changes; thread-safe."""

    @property
    def buckets(self) -> Buckets:
        """Where names may stand."""
        ...

    def row(self, at: int) -> bytes:
        """One row."""
        ...

    def gather(self, places: NDArray[np.int64]) -> Rows:
        """Rows from anywhere, in the order asked for."""
        ...

    def read(self, first: int, end: int) -> Rows:
        """Rows that follow each other."""
        ...


class MemoryTable:
    """A table in memory: about 58 bytes a row."""

    def __init__(self, rows: Rows) -> None:
        """`rows` in any order."""
        self._rows, prefixes = in_order(rows)
        self._bytes = self._rows.view(np.uint8).data
        self.buckets = Buckets.of(prefixes)

    def row(self, at: int) -> bytes:
        """One row."""
        return bytes(self._bytes[at * ROW_BYTES : (at + 1) * ROW_BYTES])

    def gather(self, places: NDArray[np.int64]) -> Rows:
        """Rows from anywhere."""
        return self._rows[places]

    def read(self, first: int, end: int) -> Rows:
        """A view, not to be written to."""
        return self._rows[first:end]


def rows_named(
    table: Table, names: NDArray[np.uint8], prefixes: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Rows]:
    """For many names (32 bytes each): which of them stands in which row, and those rows."""
    owners, places = table.buckets.places_of_many(prefixes)
    rows = table.gather(places)
    told = rows.view(np.uint64).reshape(-1, _ROW_WORDS)[:, :_NAME_WORDS]
    asked = names.view(np.uint64).reshape(-1, _NAME_WORDS)[owners]
    same = np.flatnonzero((told == asked).all(axis=1))
    return owners[same], places[same], rows[same]


def prefixes_of(names: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The first eight bytes of each name as a number that sorts as the names do."""
    return np.ascontiguousarray(names[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


def in_order(rows: Rows) -> tuple[Rows, NDArray[np.uint64]]:
    """Rows sorted by the first eight bytes of their names, and these."""
    prefixes = prefixes_of(rows["name"])
    order = np.argsort(prefixes, kind="stable")
    return rows[order], prefixes[order]


def tags_of(prefixes: NDArray[np.uint64], bits: int) -> NDArray[np.uint8]:
    """The eight bits after the first `bits`."""
    return (prefixes >> np.uint64(64 - bits - _TAG_BITS)).astype(np.uint8)
