"""What an increment has to read: what changed, and what is not worth keeping of the older chunks."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

from atoll.model.extents import Extent, align, merge
from atoll.repository.chunks import ZERO_NAME
from atoll.repository.pages import ChunkTable, Piece


def ranges_to_read(
    extents: Iterable[Extent],
    parent: ChunkTable | None,
    size: int,
    unit: int,
    length_of: Callable[[bytes], int],
) -> list[Extent]:
    """Widen what changed on a disk of `size` bytes to what is read of it: merged, in order.

    To multiples of `unit` bytes, the shortest chunk. What that leaves of the parent's chunks stays in
    use, unless it is shorter than a unit, or less than half of its chunk (`length_of` a name is the
    chunk's length): otherwise chunks would be kept for ever for a little of them.
    """
    wanted = align(extents, unit, size)
    if parent is None:
        return wanted
    found = list(wanted)
    for number, changed in _by_leaf(wanted, parent.span):
        if number * parent.span < parent.record.size_bytes:
            found += _not_worth_keeping(parent.leaf(number), changed, size, unit, length_of)
    return merge(found)


def _by_leaf(extents: Iterable[Extent], span: int) -> Iterator[tuple[int, list[Extent]]]:
    """The ranges in each leaf that is not covered by them whole, in order."""
    number, inside = -1, list[Extent]()
    for extent in extents:
        first, last = extent.offset // span, (extent.end - 1) // span
        # Of those that it runs through only the first and the last have anything else in them.
        for leaf in sorted({first, last}):
            start, end = max(extent.offset, leaf * span), min(extent.end, (leaf + 1) * span)
            if leaf != number:
                if inside:
                    yield number, inside
                number, inside = leaf, []
            inside.append(Extent(start, end - start))
    if inside:
        yield number, inside


def _not_worth_keeping(
    leaf: Sequence[Piece],
    changed: Sequence[Extent],
    size: int,
    unit: int,
    length_of: Callable[[bytes], int],
) -> Iterator[Extent]:
    ends = [each.end for each in changed]
    touched: set[bytes] = set()
    left: dict[bytes, list[Extent]] = {}
    for piece in leaf:
        if piece.name == ZERO_NAME or piece.start >= size:
            continue
        end = min(piece.end, size)
        rest = list(_without(piece.start, end, changed[bisect_right(ends, piece.start) :]))
        if rest == [Extent(piece.start, end - piece.start)]:
            left.setdefault(piece.name, []).extend(rest)
            continue
        touched.add(piece.name)
        for extent in rest:
            if extent.length < unit:
                yield extent
            else:
                left.setdefault(piece.name, []).append(extent)
    for name in touched & left.keys():
        if sum(extent.length for extent in left[name]) * 2 < length_of(name):
            yield from left[name]


def _without(start: int, end: int, changed: Sequence[Extent]) -> Iterator[Extent]:
    """What is left of `[start, end)`; the first of the changes ends after its start."""
    for each in changed:
        if each.offset >= end:
            break
        if each.offset > start:
            yield Extent(start, each.offset - start)
        start = each.end
    if start < end:
        yield Extent(start, end - start)
