"""Range arithmetic against plain sets of bytes."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from atoll.blocks.ranges import columns, extents_of, gaps, merge_ranges, overlapping_pairs
from atoll.model.extents import Extent

_SIZE = 60
_extents = st.lists(st.builds(Extent, st.integers(0, _SIZE - 1), st.integers(1, 20)), max_size=12)


def _bytes(extents: list[Extent]) -> set[int]:
    return {b for e in extents for b in range(e.offset, e.end)}


@given(_extents)
def test_merging_keeps_every_byte_and_leaves_no_neighbours(extents: list[Extent]) -> None:
    merged = extents_of(*columns(extents))
    assert _bytes(merged) == _bytes(extents)
    assert all(a.end < b.offset for a, b in itertools.pairwise(merged))


@given(_extents)
def test_gaps_are_what_is_left_out(extents: list[Extent]) -> None:
    cut = [Extent(e.offset, min(e.end, _SIZE) - e.offset) for e in extents]
    found = extents_of(*gaps(*columns(cut), _SIZE))
    assert _bytes(found) == set(range(_SIZE)) - _bytes(cut)


@given(_extents, _extents)
def test_pairs_are_exactly_those_that_share_a_byte(left: list[Extent], right: list[Extent]) -> None:
    starts = np.array([e.offset for e in left], dtype=np.int64)
    ends = np.array([e.end for e in left], dtype=np.int64)
    others = extents_of(*columns(right))
    i, j = overlapping_pairs(starts, ends, *columns(right))
    expected = [
        (a, b)
        for a, one in enumerate(left)
        for b, other in enumerate(others)
        if one.offset < other.end and other.offset < one.end
    ]
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == expected


def test_nothing_merges_to_nothing() -> None:
    empty = np.zeros(0, dtype=np.int64)
    assert extents_of(*merge_ranges(empty, empty)) == []
    assert extents_of(*gaps(empty, empty, 0)) == []
