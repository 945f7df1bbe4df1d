"""Where two disk images differ, told by their chunk tables and without reading a chunk.

The same content has the same name in a repository, and zeros have the zero name, so two pages of
one name are the same and are never looked into. What that costs grows with what changed.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

from atoll.model.extents import Extent
from atoll.repository.chunks import NAME_BYTES
from atoll.repository.images import DiskRecord
from atoll.repository.pages import PAGE_NAMES, ChunkTable


def differing_extents(
    old: DiskRecord, old_table: ChunkTable, new: DiskRecord, new_table: ChunkTable
) -> Iterator[Extent]:
    """Ranges of the new image that may differ from the old one: in order, joined, none missed.

    Whole chunks, of which both have the same size; and all that lies past the
    old end. RepositoryDamagedError where a page cannot be read.
    """
    size, chunk = new.size_bytes, new.chunk_bytes
    # The chunk with the shorter end in it is cut in one of the two, so names say nothing there.
    shared = new.chunks if old.size_bytes == size else min(old.size_bytes, size) // chunk
    differing = (
        Extent(number * chunk, min(chunk, size - number * chunk))
        for number in _chunks(old_table, new_table, shared)
    )
    rest = [Extent(shared * chunk, size - shared * chunk)] if shared < new.chunks else []
    return _joined(chain(differing, rest))


def _joined(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Ordered, disjoint extents with those that touch made one."""
    start = end = 0
    for extent in extents:
        if extent.offset > end:
            if end > start:
                yield Extent(start, end - start)
            start = extent.offset
        end = extent.end
    if end > start:
        yield Extent(start, end - start)


def _chunks(old: ChunkTable, new: ChunkTable, count: int) -> Iterator[int]:
    """The numbers below `count` of the chunks that differ, in order."""

    def below(level: int, number: int) -> Iterator[int]:
        if number * PAGE_NAMES ** (level + 1) >= count:
            return
        if level < old.levels and old.page_name(level, number) == new.page_name(level, number):
            return
        if level:
            # A shallower table has no page at this level, which says nothing about those below.
            for child in range(number * PAGE_NAMES, (number + 1) * PAGE_NAMES):
                yield from below(level - 1, child)
            return
        left, right = old.page(0, number), new.page(0, number)
        for slot in range(min(PAGE_NAMES, count - number * PAGE_NAMES)):
            at = slot * NAME_BYTES
            if left[at : at + NAME_BYTES] != right[at : at + NAME_BYTES]:
                yield number * PAGE_NAMES + slot

    return below(new.levels - 1, 0)
