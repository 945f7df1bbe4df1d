"""What state each part of an export is in: metadata contexts, answered by bisection.

Source: doc/proto.md, sections "Metadata querying" and `NBD_REPLY_TYPE_BLOCK_STATUS`; for
`qemu:dirty-bitmap:NAME`, QEMU's docs/interop/nbd.rst.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np
import numpy.typing as npt

from atoll.model.extents import Extent
from atoll.nbd import protocol

BASE_ALLOCATION = "base:allocation"
CHANGED = "atoll:changed"

_MAX_DESCRIPTORS = 1 << 17
"""A mebibyte in one reply; the client asks on from where it ends."""
_MAX_RUN_BYTES = (1 << 32) - (64 << 10)
"""Lengths in a reply have 32 bits, and stay whole blocks."""

_Int64Array = npt.NDArray[np.int64]


class StatusMap:
    """Runs of bytes, in turn with and without `flags`, that cover `[0, size_bytes)` without a gap.

    Immutable and thread-safe; eight bytes for each border between two runs.
    """

    def __init__(self, size_bytes: int, starts: _Int64Array, ends: _Int64Array, flags: int) -> None:
        """`starts` and `ends` of the runs with `flags`: sorted, disjoint, apart, within the size."""
        self.size_bytes = size_bytes
        self.flags = flags
        borders = np.empty(2 * len(starts), dtype=np.int64)
        borders[0::2], borders[1::2] = starts, ends
        self._flagged_first = bool(len(starts)) and int(starts[0]) == 0
        if not self._flagged_first:
            borders = np.concatenate((np.zeros(1, dtype=np.int64), borders))
        if size_bytes and len(borders) > 1 and int(borders[-1]) == size_bytes:
            borders = borders[:-1]
        self._borders = borders
        # Bisecting a memoryview compares Python numbers; an array would box one at every step.
        self._view = borders.data

    @classmethod
    def of(cls, size_bytes: int, extents: Iterable[Extent], flags: int) -> Self:
        """From extents in any order, which may touch, overlap or reach past the end."""
        flat = np.fromiter(chain.from_iterable(extents), dtype=np.int64).reshape(-1, 2)
        starts = np.minimum(flat[:, 0], size_bytes)
        # A length is cut before it is added: the sum of a wrong one may not fit 64 bits.
        ends = starts + np.minimum(flat[:, 1], size_bytes - starts)
        keep = ends > starts
        return cls(size_bytes, *_merged(starts[keep], ends[keep]), flags)

    def without_short(self, least_bytes: int) -> "StatusMap":
        """The same with flagged runs shorter than `least_bytes` taken as not flagged."""
        starts, ends = self._flagged()
        keep = ends - starts >= least_bytes
        return StatusMap(self.size_bytes, starts[keep], ends[keep], self.flags)

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """(offset, length, flagged) of each run within a range inside the size, in order."""
        view, end = self._view, offset + length
        row = bisect_right(view, offset) - 1
        while offset < end:
            stop = min(end, view[row + 1]) if row + 1 < len(view) else end
            yield offset, stop - offset, self._is_flagged(row)
            offset, row = stop, row + 1

    def descriptors(self, offset: int, length: int, only_one: bool) -> bytes:
        """Block descriptors from `offset` on, for a range inside the size; at least one.

        The last reaches as far as its run, past the range, unless `only_one` was
        asked for; fewer than the range holds come when there are too many.
        """
        view, end = self._view, offset + length
        first = bisect_right(view, offset) - 1
        last = first + 1 if only_one else bisect_left(view, end, first + 1)
        last = min(last, first + _MAX_DESCRIPTORS)
        edges = np.empty(last - first + 1, dtype=np.int64)
        edges[0] = offset
        edges[1:-1] = self._borders[first + 1 : last]
        edges[-1] = view[last] if last < len(view) else self.size_bytes
        lengths = np.diff(edges)
        lengths[-1] = min(int(lengths[-1]), _MAX_RUN_BYTES, length if only_one else _MAX_RUN_BYTES)
        described = np.zeros((len(lengths), 2), dtype=">u4")
        described[:, 0] = lengths
        described[0 if self._is_flagged(first) else 1 :: 2, 1] = self.flags
        return described.tobytes()

    def _is_flagged(self, row: int) -> bool:
        return (row % 2 == 0) == self._flagged_first

    def _flagged(self) -> tuple[_Int64Array, _Int64Array]:
        edges = np.append(self._borders, self.size_bytes)
        first = 0 if self._flagged_first else 1
        starts = edges[first:-1:2]
        return starts, edges[first + 1 :: 2][: len(starts)]


@dataclass(frozen=True, slots=True)
class Context:
    """A metadata context that clients can ask for: `namespace:leaf`, and what it says."""

    name: str
    status: StatusMap


def changed_contexts(
    bitmap: str, size_bytes: int, changed: Iterable[Extent]
) -> tuple[Context, ...]:
    """`atoll:changed` and `qemu:dirty-bitmap:BITMAP` of what differs from an older state.

    `changed` may come in any order; `bitmap` names that state. Bit 0 of the
    status says that a run may differ.
    """
    status = StatusMap.of(size_bytes, changed, protocol.STATE_DIRTY)
    return Context(CHANGED, status), Context(f"qemu:dirty-bitmap:{bitmap}", status)


def listed(names: Iterable[str], queries: Iterable[str]) -> list[str]:
    """The names that queries of a listing ask for, all without any; `qemu:` asks for all such."""
    asked = list(queries)
    return [name for name in names if not asked or any(_matches(name, query) for query in asked)]


def _matches(name: str, query: str) -> bool:
    return name == query or (query.endswith(":") and name.startswith(query))


def _merged(starts: _Int64Array, ends: _Int64Array) -> tuple[_Int64Array, _Int64Array]:
    """Sorted, with ranges that touch or overlap joined."""
    if not len(starts):
        return starts, ends
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(ends[order])
    at = np.flatnonzero(np.concatenate(([True], starts[1:] > reach[:-1])))
    return starts[at], reach[np.append(at[1:], len(reach)) - 1]
