"""Chunk tables: which chunk stands where, as a tree of content-addressed pages.

A leaf says for its part of the disk, 256 times the usual size of a chunk, which pieces follow each other,
each a chunk or a part of one. The pages above are 256 names of pages each. A part that is all zeros is the
zero name and has no pages. An increment writes only the pages above what changed.

Disks of the first version have chunks of one size, and leaves that are names alone.
"""

import sys
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from copy import copy
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple

from atoll.model.errors import RepositoryDamagedError
from atoll.model.extents import Extent
from atoll.repository.chunks import NAME_BYTES, ZERO_NAME
from atoll.repository.images import FIXED, PAGE_NAMES, DiskRecord, levels

PAGE_BYTES = PAGE_NAMES * NAME_BYTES
LEAF_ROW_BYTES = 4 + 4 + NAME_BYTES
"""Of a leaf: how long a piece is, where it begins in its chunk, and the chunk's name."""
_ZERO_PAGE = bytes(PAGE_BYTES)
_CACHED_PAGES = 1024
_CACHED_LEAVES = 256
_start = attrgetter("start")


class Piece(NamedTuple):
    """`length` bytes of a disk from `start`: those of a chunk from `skip` on, or zeros (the zero name)."""

    start: int
    length: int
    name: bytes
    skip: int = 0

    @property
    def end(self) -> int:
        """First byte past the piece."""
        return self.start + self.length

    def part(self, start: int, end: int) -> "Piece":
        """What of it lies in `[start, end)`, which it reaches into."""
        start, end = max(start, self.start), min(end, self.end)
        skip = 0 if self.name == ZERO_NAME else self.skip + start - self.start
        return Piece(start, end - start, self.name, skip)


def leaf_names(page: bytes, version: int) -> bytes:
    """The names in a leaf, joined; those of a disk of the first version may be zero past its end."""
    if version == FIXED:
        if len(page) == PAGE_BYTES:
            return page
    elif page and len(page) % LEAF_ROW_BYTES == 0:
        return page[len(page) // LEAF_ROW_BYTES * 8 :]
    raise _no_page()


def leaf_pieces(page: bytes, version: int, base: int, span: int, chunk_bytes: int) -> list[Piece]:
    """What a leaf says of the `span` bytes from `base`; RepositoryDamagedError if it is none."""
    names = leaf_names(page, version)
    if version == FIXED:
        starts = range(0, span, chunk_bytes)
        lengths = [min(chunk_bytes, span - start) for start in starts]
        skips = [0] * len(lengths)
    else:
        numbers = _little(array("I", page[: len(page) - len(names)])).tolist()
        lengths, skips = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
        if sum(lengths) != span or not all(lengths):
            raise _no_page()
    at = range(0, len(names), NAME_BYTES)
    return [
        Piece(start, length, names[name : name + NAME_BYTES], skip)
        for start, length, name, skip in zip(
            accumulate(lengths, initial=base), lengths, at, skips, strict=False
        )
    ]


def _little(numbers: "array[int]") -> "array[int]":
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _no_page() -> RepositoryDamagedError:
    return RepositoryDamagedError(
        "A page of a disk's table is not what belongs there; verify the repository."
    )


class ChunkTable:
    """Reads the table of a disk. Thread-safe; keeps recent pages, up to about 24 MiB."""

    def __init__(self, record: DiskRecord, get: Callable[[bytes], bytes]) -> None:
        self.record = record
        self.levels = levels(record.chunks)
        self.span = record.chunk_bytes * PAGE_NAMES
        """How many bytes of the disk a leaf covers."""
        self._get = get
        self._recent: OrderedDict[bytes, bytes] = OrderedDict()
        self._leaves: OrderedDict[int, list[Piece]] = OrderedDict()
        self._lock = threading.Lock()

    def pieces(self, offset: int, end: int) -> Iterator[Piece]:
        """The pieces that have a byte in `[offset, end)`, whole and in order."""
        end = min(end, self.record.size_bytes)
        while offset < end:
            leaf = self.leaf(offset // self.span)
            at = bisect_right(leaf, offset, key=_start) - 1
            for piece in leaf[at:]:
                if piece.start >= end:
                    return
                yield piece
            offset = leaf[-1].end

    def leaf(self, number: int) -> list[Piece]:
        """What the `number`-th leaf says; a single piece of zeros where there is none."""
        with self._lock:
            known = self._leaves.get(number)
            if known is not None:
                self._leaves.move_to_end(number)
                return known
        base = number * self.span
        span = min(self.span, self.record.size_bytes - base)
        name = self.page_name(0, number)
        if name == ZERO_NAME:
            pieces = [Piece(base, span, ZERO_NAME)]
        else:
            record = self.record
            pieces = leaf_pieces(self._get(name), record.version, base, span, record.chunk_bytes)
        with self._lock:
            self._leaves[number] = pieces
            if len(self._leaves) > _CACHED_LEAVES:
                self._leaves.popitem(last=False)
        return pieces

    def page_name(self, level: int, number: int) -> bytes:
        """The name of the `number`-th page of a level; zero where the table has none."""
        if level == self.levels - 1:
            return self.record.top if number == 0 else ZERO_NAME
        if level >= self.levels:
            return ZERO_NAME
        above = self.page(level + 1, number // PAGE_NAMES)
        at = number % PAGE_NAMES * NAME_BYTES
        return above[at : at + NAME_BYTES]

    def page(self, level: int, number: int) -> bytes:
        """The 256 names of a page above the leaves, of level 1 at least."""
        return self._load(self.page_name(level, number))

    def leaves(self) -> Iterator[int]:
        """The numbers of all leaves that are not zeros, in order."""
        yield from self._leaves_below(self.levels - 1, 0, self.record.top)

    def zero_runs(self) -> Iterator[Extent]:
        """Each longest run of zeros that the table knows of, in order."""
        begin = 0
        for number in self.leaves():
            for piece in self.leaf(number):
                if piece.name == ZERO_NAME:
                    continue
                if piece.start > begin:
                    yield Extent(begin, piece.start - begin)
                begin = piece.end
        if begin < self.record.size_bytes:
            yield Extent(begin, self.record.size_bytes - begin)

    def _leaves_below(self, level: int, number: int, name: bytes) -> Iterator[int]:
        if name == ZERO_NAME or number * PAGE_NAMES**level >= valid_names(self.record.chunks, 1):
            return
        if level == 0:
            yield number
            return
        page = self._load(name)
        for slot in range(PAGE_NAMES):
            below = page[slot * NAME_BYTES : (slot + 1) * NAME_BYTES]
            yield from self._leaves_below(level - 1, number * PAGE_NAMES + slot, below)

    def _load(self, name: bytes) -> bytes:
        if name == ZERO_NAME:
            return _ZERO_PAGE
        with self._lock:
            page = self._recent.get(name)
            if page is not None:
                self._recent.move_to_end(name)
                return page
        page = self._get(name)
        if len(page) != PAGE_BYTES:
            raise _no_page()
        with self._lock:
            self._recent[name] = page
            if len(self._recent) > _CACHED_PAGES:
                self._recent.popitem(last=False)
        return page


def valid_names(chunks: int, level: int) -> int:
    """How many names of a level's pages mean something; those past it are zero."""
    span: int = PAGE_NAMES**level
    return -(-chunks // span)


class TableWriter:
    """Writes a table, from nothing or by changing an older one.

    Pieces are set in ascending order, so only one leaf is in memory at a time
    and 32 bytes for each leaf that was touched. Not thread-safe.
    """

    def __init__(
        self,
        parent: ChunkTable | None,
        size_bytes: int,
        chunk_bytes: int,
        put: Callable[[bytes], bytes],
    ) -> None:
        self._parent = parent
        self._size = size_bytes
        self._chunk_bytes = chunk_bytes
        self._chunks = -(-size_bytes // chunk_bytes)
        self._span = chunk_bytes * PAGE_NAMES
        self._put = put
        self._leaf: list[Piece] | None = None
        self._number = -1  # of the leaf that is open, or was last
        self._at = 0  # all before is said
        self._changed: dict[int, bytes] = {}
        self._due = [] if parent is None else _leaves_to_renew(parent, size_bytes)

    def set(self, start: int, length: int, name: bytes) -> None:
        """Say which chunk stands at a place, within one leaf.

        ValueError if that is out of order, past the end, or in two leaves.
        """
        if length <= 0 or start < self._at or start + length > self._size:
            raise ValueError(f"{length} bytes at {start} are out of order or past the end")
        self._go_to(start // self._span)
        self._carry(start)
        self._append(Piece(start, length, name))

    def as_it_stands(self) -> DiskRecord:
        """The disk if nothing more were set, its pages written; more can be set afterwards."""
        other = copy(self)
        other._leaf = None if self._leaf is None else list(self._leaf)
        other._changed = dict(self._changed)
        return other.finish()

    def finish(self) -> DiskRecord:
        """Write what is left. The record is the caller's to store."""
        parent = self._parent
        self._go_to(-(-self._size // self._span))
        changed = self._changed
        depth = levels(self._chunks)
        for level in range(1, depth):
            if parent is not None and parent.levels == level:
                # The older top becomes the first page below.
                changed.setdefault(0, parent.record.top)
            changed = self._level(level, changed)
        top = ZERO_NAME
        if 0 in changed:
            top = changed[0]
        elif parent is not None and self._size:
            top = parent.page_name(depth - 1, 0)
        return DiskRecord(self._size, self._chunk_bytes, top)

    def _go_to(self, number: int) -> None:
        """Close the leaf that is open, write those that are due before `number`, and open that."""
        if self._leaf is not None:
            if number == self._number:
                return
            self._close()
        for due in self._due:
            if self._number < due < number:
                self._open(due)
                self._close()
        if number * self._span < self._size:
            self._open(number)

    def _open(self, number: int) -> None:
        self._leaf, self._number, self._at = [], number, number * self._span

    def _close(self) -> None:
        self._carry(min((self._number + 1) * self._span, self._size))
        leaf, self._leaf = self._leaf, None
        assert leaf is not None
        if len(leaf) == 1 and leaf[0].name == ZERO_NAME:
            self._changed[self._number] = ZERO_NAME
            return
        numbers = [*(piece.length for piece in leaf), *(piece.skip for piece in leaf)]
        page = _little(array("I", numbers)).tobytes() + b"".join([piece.name for piece in leaf])
        self._changed[self._number] = self._put(page)

    def _carry(self, to: int) -> None:
        """Take over what the parent has up to there, zeros where it has nothing."""
        parent = self._parent
        if parent is not None and self._at < to:
            for piece in parent.pieces(self._at, to):
                self._append(piece.part(self._at, to))
        if self._at < to:
            self._append(Piece(self._at, to - self._at, ZERO_NAME))

    def _append(self, piece: Piece) -> None:
        leaf = self._leaf
        assert leaf is not None
        if piece.end > (self._number + 1) * self._span:
            raise ValueError(f"{piece.length} bytes at {piece.start} do not lie in one leaf")
        self._at = piece.end
        if leaf and leaf[-1].name == piece.name:
            last = leaf[-1]
            if piece.name == ZERO_NAME or last.skip + last.length == piece.skip:
                piece = last._replace(length=last.length + piece.length)
                del leaf[-1]
        leaf.append(piece)

    def _level(self, level: int, below: dict[int, bytes]) -> dict[int, bytes]:
        made: dict[int, bytes] = {}
        number, page = -1, bytearray()
        for child in sorted(below):
            if child // PAGE_NAMES != number:
                if number >= 0:
                    made[number] = self._write(page)
                number = child // PAGE_NAMES
                page = self._old_page(level, number)
            at = child % PAGE_NAMES * NAME_BYTES
            page[at : at + NAME_BYTES] = below[child]
        if number >= 0:
            made[number] = self._write(page)
        return made

    def _old_page(self, level: int, number: int) -> bytearray:
        if self._parent is None:
            return bytearray(PAGE_BYTES)
        page = bytearray(self._parent.page(level, number))
        meant = valid_names(self._chunks, level) - number * PAGE_NAMES
        if meant < PAGE_NAMES:
            cut = max(meant, 0) * NAME_BYTES
            page[cut:] = bytes(PAGE_BYTES - cut)
        return page

    def _write(self, page: bytearray) -> bytes:
        return ZERO_NAME if page == _ZERO_PAGE else self._put(bytes(page))


def _leaves_to_renew(parent: ChunkTable, size_bytes: int) -> list[int]:
    """Leaves of an older table that cannot be taken over as they are, in order."""
    older, span = parent.record.size_bytes, parent.span
    if parent.record.version == FIXED:
        return list(parent.leaves())  # of a form that this table's leaves do not have
    if size_bytes < older:
        # What the older table has past the new end must not come back when it grows again.
        return [(size_bytes - 1) // span] if size_bytes else []
    return [older // span] if older < size_bytes and older % span else []
