"""Where two disk images differ, told by their chunk tables and without reading a chunk.

The same content has the same name in a repository, and zeros have the zero name, so two pages of
one name are the same and are never looked into. What that costs grows with what changed.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

from atoll.model.extents import Extent
from atoll.repository.images import PAGE_NAMES
from atoll.repository.pages import ChunkTable, Piece


def differing_extents(old: ChunkTable, new: ChunkTable) -> Iterator[Extent]:
    """Ranges of the new image that may differ from the old one: in order, joined, none missed.

    Where other chunks stand, or other parts of them; and all that lies past the old end. Both have
    the same `chunk_bytes`. RepositoryDamagedError where a page cannot be read.
    """
    size, shared = new.record.size_bytes, min(old.record.size_bytes, new.record.size_bytes)
    rest = [Extent(shared, size - shared)] if shared < size else []
    return _joined(chain(_differing(old, new, shared), rest))


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


def _differing(old: ChunkTable, new: ChunkTable, shared: int) -> Iterator[Extent]:
    """The same below the shorter end."""
    alike = old.record.version == new.record.version

    def below(level: int, number: int) -> Iterator[Extent]:
        base = number * new.span * PAGE_NAMES**level
        if base >= shared:
            return
        same = level < old.levels and old.page_name(level, number) == new.page_name(level, number)
        # The page with the shorter end in it may say more in one of the two.
        if same and alike and base + new.span * PAGE_NAMES**level <= shared:
            return
        if level:
            # A shallower table has no page at this level, which says nothing about those below.
            for child in range(number * PAGE_NAMES, (number + 1) * PAGE_NAMES):
                yield from below(level - 1, child)
            return
        end = min(base + new.span, shared)
        yield from _of_leaves(old.leaf(number), new.leaf(number), end)

    return below(new.levels - 1, 0)


def _of_leaves(old: list[Piece], new: list[Piece], end: int) -> Iterator[Extent]:
    """What two leaves do not say alike below `end`."""
    olds = iter(old)
    before = next(olds)
    for piece in new:
        at = piece.start
        while at < min(piece.end, end):
            while before.end <= at:
                before = next(olds)
            stop = min(piece.end, before.end, end)
            if before.part(at, stop) != piece.part(at, stop):
                yield Extent(at, stop - at)
            at = stop
