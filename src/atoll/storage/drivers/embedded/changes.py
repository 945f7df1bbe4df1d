"""Which ranges of a LUN differ between two snapshots, from where btrfs keeps them."""

from collections.abc import Iterable, Iterator

from atoll.model.extents import Extent
from atoll.storage.drivers.embedded.btrfs import FileExtent


def differences(
    older: Iterable[FileExtent], newer: Iterable[FileExtent], size_bytes: int
) -> Iterator[Extent]:
    """Ranges of the newer file, `size_bytes` long, that may differ; ordered and merged.

    Past the older file's end its bytes count as zeros, so the part a LUN grew by
    is listed as far as it holds data.
    """
    lefts, rights = _covering(older, size_bytes), _covering(newer, size_bytes)
    left, right = next(lefts, None), next(rights, None)
    start = end = 0
    position = 0
    while left is not None and right is not None:
        left_end, right_end = left.offset + left.length, right.offset + right.length
        until = min(left_end, right_end)
        if left.origin != right.origin:
            if position != end:
                if end > start:
                    yield Extent(start, end - start)
                start = position
            end = until
        position = until
        if left_end == until:
            left = next(lefts, None)
        if right_end == until:
            right = next(rights, None)
    if end > start:
        yield Extent(start, end - start)


def _covering(extents: Iterable[FileExtent], size_bytes: int) -> Iterator[FileExtent]:
    """The same extents with the holes between them, cut at `size_bytes`."""
    position = 0
    for extent in extents:
        if extent.offset >= size_bytes:
            break
        if extent.offset > position:
            yield FileExtent(position, extent.offset - position, None)
        length = min(extent.length, size_bytes - extent.offset)
        yield FileExtent(extent.offset, length, extent.origin)
        position = extent.offset + length
    if position < size_bytes:
        yield FileExtent(position, size_bytes - position, None)
