"""Arithmetic on many byte ranges at once: two sorted NumPy columns, starts and ends."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from atoll.model.extents import Extent

Int64Array = npt.NDArray[np.int64]


def columns(extents: Iterable[Extent]) -> tuple[Int64Array, Int64Array]:
    """Starts and ends of extents, merged: sorted, disjoint, none empty."""
    flat = np.array([(e[0], e[1]) for e in extents], dtype=np.int64).reshape(-1, 2)
    flat = flat[flat[:, 1] > 0]
    return merge_ranges(flat[:, 0], flat[:, 0] + flat[:, 1])


def merge_ranges(starts: Int64Array, ends: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Sort ranges and join those that touch or overlap; empty ones must be gone already."""
    if not len(starts):
        return starts, ends
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    reach = np.maximum.accumulate(ends)
    first = np.concatenate(([True], starts[1:] > reach[:-1]))
    at = np.flatnonzero(first)
    return starts[at], reach[np.concatenate((at[1:] - 1, [len(reach) - 1]))]


def overlapping_pairs(
    starts: Int64Array, ends: Int64Array, other_starts: Int64Array, other_ends: Int64Array
) -> tuple[Int64Array, Int64Array]:
    """Index pairs (i, j) of every range i that shares a byte with range j of the others.

    The others must be sorted and disjoint; the first may overlap each other and
    come in any order. Pairs are grouped by i, j ascending.
    """
    first = np.searchsorted(other_ends, starts, side="right")
    last = np.searchsorted(other_starts, ends, side="left")
    counts = np.maximum(last - first, 0)
    i = np.repeat(np.arange(len(starts), dtype=np.int64), counts)
    within = np.arange(len(i), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    return i, np.repeat(first, counts) + within


def extents_of(starts: Int64Array, ends: Int64Array) -> list[Extent]:
    """The columns as extents."""
    return [Extent(s, e - s) for s, e in zip(starts.tolist(), ends.tolist(), strict=True)]


def gaps(starts: Int64Array, ends: Int64Array, size: int) -> tuple[Int64Array, Int64Array]:
    """What sorted, disjoint ranges leave out of `[0, size)`."""
    begin = np.concatenate((np.zeros(1, dtype=np.int64), ends))
    finish = np.concatenate((starts, np.array([size], dtype=np.int64)))
    keep = finish > begin
    return begin[keep], finish[keep]
