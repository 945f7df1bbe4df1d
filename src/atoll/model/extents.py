"""Byte ranges and their arithmetic."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Extent(NamedTuple):
    """A range of bytes: `offset` and `length`, both in bytes, length above zero."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """First byte past the range."""
        return self.offset + self.length


def merge(extents: Iterable[Extent]) -> list[Extent]:
    """Sort, and join ranges that touch or overlap."""
    merged: list[Extent] = []
    for extent in sorted(extents):
        if extent.length <= 0:
            continue
        if merged and extent.offset <= merged[-1].end:
            last = merged[-1]
            merged[-1] = Extent(last.offset, max(last.end, extent.end) - last.offset)
        else:
            merged.append(extent)
    return merged


def intersect(left: Iterable[Extent], right: Iterable[Extent]) -> Iterator[Extent]:
    """What two ordered, merged sequences have in common, in order."""
    lefts, rights = iter(left), iter(right)
    a, b = next(lefts, None), next(rights, None)
    while a is not None and b is not None:
        start, end = max(a.offset, b.offset), min(a.end, b.end)
        if start < end:
            yield Extent(start, end - start)
        if a.end <= b.end:
            a = next(lefts, None)
        else:
            b = next(rights, None)


def complement(extents: Iterable[Extent], size: int) -> Iterator[Extent]:
    """What ordered, merged ranges leave out of `[0, size)`, in order."""
    at = 0
    for extent in extents:
        if extent.offset > at:
            yield Extent(at, min(extent.offset, size) - at)
        at = max(at, extent.end)
    if at < size:
        yield Extent(at, size - at)


def align(extents: Iterable[Extent], unit: int, size: int) -> list[Extent]:
    """Widen each range to multiples of `unit` bytes, cut at `size`, and merge."""
    widened = []
    for extent in extents:
        start = extent.offset // unit * unit
        end = min(-(-extent.end // unit) * unit, size)
        if end > start:
            widened.append(Extent(start, end - start))
    return merge(widened)


def total_bytes(extents: Iterable[Extent]) -> int:
    """Sum of the lengths."""
    return sum(extent.length for extent in extents)
