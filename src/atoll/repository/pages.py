"""Chunk tables: which chunk stands where, as a tree of content-addressed pages.

A page is 256 names of 32 bytes. Level 0 names chunks, level n+1 names pages of
level n; a part that is all zeros is the zero name and has no pages. An increment
writes only the pages above what changed.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.chunks import NAME_BYTES, ZERO_NAME

PAGE_NAMES = 256
PAGE_BYTES = PAGE_NAMES * NAME_BYTES
_ZERO_PAGE = bytes(PAGE_BYTES)
_CACHED_PAGES = 4096


def levels(chunks: int) -> int:
    """How many levels of pages a table of this many chunks has, at least one."""
    count, capacity = 1, PAGE_NAMES
    while capacity < chunks:
        count, capacity = count + 1, capacity * PAGE_NAMES
    return count


def valid_names(chunks: int, level: int) -> int:
    """How many names of a level's pages mean something; those past it are zero."""
    span: int = PAGE_NAMES**level
    return -(-chunks // span)


class ChunkTable:
    """Reads a table. Thread-safe; keeps recent pages (up to 32 MiB)."""

    def __init__(self, top: bytes, chunks: int, get: Callable[[bytes], bytes]) -> None:
        self.top = top
        self.chunks = chunks
        self.levels = levels(chunks)
        self._get = get
        self._recent: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def name(self, chunk: int) -> bytes:
        """The chunk's name; the zero name past the end."""
        page = self.page(0, chunk // PAGE_NAMES)
        at = chunk % PAGE_NAMES * NAME_BYTES
        return page[at : at + NAME_BYTES]

    def page_name(self, level: int, number: int) -> bytes:
        """The name of the `number`-th page of a level; zero where the table has none."""
        if level == self.levels - 1:
            return self.top if number == 0 else ZERO_NAME
        if level >= self.levels:
            return ZERO_NAME
        above = self.page(level + 1, number // PAGE_NAMES)
        at = number % PAGE_NAMES * NAME_BYTES
        return above[at : at + NAME_BYTES]

    def page(self, level: int, number: int) -> bytes:
        """A page's 8192 bytes."""
        return self.load(self.page_name(level, number))

    def load(self, name: bytes) -> bytes:
        """A page by its name; RepositoryDamagedError if it is not one."""
        if name == ZERO_NAME:
            return _ZERO_PAGE
        with self._lock:
            page = self._recent.get(name)
            if page is not None:
                self._recent.move_to_end(name)
                return page
        page = self._get(name)
        if len(page) != PAGE_BYTES:
            raise RepositoryDamagedError(
                f"Page {name.hex()[:16]} of a disk's table has {len(page)} bytes and not "
                f"{PAGE_BYTES}; verify the repository."
            )
        with self._lock:
            self._recent[name] = page
            if len(self._recent) > _CACHED_PAGES:
                self._recent.popitem(last=False)
        return page

    def zero_runs(self) -> Iterator[tuple[int, int]]:
        """(first chunk, count) of each longest run of zero chunks, in order."""
        start, end = 0, 0
        for first, count in self._zeros(self.levels - 1, 0, self.top):
            if first == end:
                end += count
                continue
            if end > start:
                yield start, end - start
            start, end = first, first + count
        if end > start:
            yield start, end - start

    def _zeros(self, level: int, number: int, name: bytes) -> Iterator[tuple[int, int]]:
        span = PAGE_NAMES ** (level + 1)
        first = number * span
        if first >= self.chunks:
            return
        if name == ZERO_NAME:
            yield first, min(span, self.chunks - first)
            return
        page = self.load(name)
        for slot in range(PAGE_NAMES):
            below = page[slot * NAME_BYTES : (slot + 1) * NAME_BYTES]
            child = number * PAGE_NAMES + slot
            if level:
                yield from self._zeros(level - 1, child, below)
            elif below == ZERO_NAME and child < self.chunks:
                yield child, 1


class TableWriter:
    """Writes a table, from nothing or by changing an older one.

    Chunks are set in ascending order, so only one leaf is in memory at a time
    and 32 bytes for each leaf that was touched. Not thread-safe.
    """

    def __init__(
        self, parent: ChunkTable | None, chunks: int, put: Callable[[bytes], bytes]
    ) -> None:
        self._parent = parent
        self._chunks = chunks
        self._put = put
        self._leaf = bytearray()
        self._leaf_number = -1
        self._changed: dict[int, bytes] = {}

    def set(self, chunk: int, name: bytes) -> None:
        """Say which chunk stands at this place."""
        number = chunk // PAGE_NAMES
        if number != self._leaf_number:
            if number < self._leaf_number or chunk >= self._chunks:
                raise ValueError(f"chunk {chunk} is out of order or past the end")
            self._open_leaf(number)
        at = chunk % PAGE_NAMES * NAME_BYTES
        self._leaf[at : at + NAME_BYTES] = name

    def finish(self) -> bytes:
        """Write what is left and return the name of the top page."""
        parent = self._parent
        if parent is not None and 0 < self._chunks < parent.chunks:
            # What the older table has past the new end must not come back when it grows again.
            last = (self._chunks - 1) // PAGE_NAMES
            if last != self._leaf_number:
                self._open_leaf(last)
        self._close_leaf()
        changed = self._changed
        for level in range(1, levels(self._chunks)):
            if parent is not None and parent.levels == level:
                changed.setdefault(0, parent.top)  # the older top becomes the first page below
            changed = self._level(level, changed)
        if self._chunks == 0:
            return ZERO_NAME
        if 0 in changed:
            return changed[0]
        return ZERO_NAME if parent is None else parent.page_name(levels(self._chunks) - 1, 0)

    def _open_leaf(self, number: int) -> None:
        self._close_leaf()
        self._leaf = self._old_page(0, number)
        self._leaf_number = number

    def _close_leaf(self) -> None:
        if self._leaf_number >= 0:
            self._changed[self._leaf_number] = self._write(self._leaf)
            self._leaf_number = -1

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
