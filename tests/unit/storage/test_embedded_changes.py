"""Diffs of extent lists against a byte-for-byte model."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from atoll.model.extents import Extent
from atoll.storage.drivers.embedded.btrfs import FileExtent
from atoll.storage.drivers.embedded.changes import differences

UNIT = 4096


@st.composite
def files(draw: st.DrawFn) -> list[FileExtent]:
    """Ordered extents, some of them holes, addresses from a few so that files share them."""
    extents, position = [], 0
    for _ in range(draw(st.integers(0, 8))):
        position += draw(st.integers(0, 3)) * UNIT
        length = draw(st.integers(1, 4)) * UNIT
        origin = draw(st.none() | st.tuples(st.integers(1, 3), st.just(position - position % 8192)))
        extents.append(FileExtent(position, length, origin))
        position += length
    return extents


def model(extents: list[FileExtent], size: int) -> list[object]:
    """What each unit of the file comes from."""
    units: list[object] = [None] * (size // UNIT)
    for extent in extents:
        for position in range(extent.offset, min(extent.offset + extent.length, size), UNIT):
            units[position // UNIT] = extent.origin
    return units


@given(files(), files(), st.integers(1, 40))
def test_lists_exactly_the_units_whose_origin_differs(
    older: list[FileExtent], newer: list[FileExtent], units: int
) -> None:
    size = units * UNIT
    found = list(differences(older, newer, size))
    listed = {p // UNIT for e in found for p in range(e.offset, e.end, UNIT)}
    before, after = model(older, size), model(newer, size)
    assert listed == {unit for unit in range(units) if before[unit] != after[unit]}
    assert all(a.end < b.offset for a, b in itertools.pairwise(found))  # ordered, merged


def test_growth_is_listed_as_far_as_it_holds_data() -> None:
    older = [FileExtent(0, UNIT, (1, 0))]
    newer = [FileExtent(0, UNIT, (1, 0)), FileExtent(4 * UNIT, UNIT, (9, 0))]
    assert list(differences(older, newer, 8 * UNIT)) == [Extent(4 * UNIT, UNIT)]


def test_a_discarded_range_is_listed() -> None:
    older = [FileExtent(0, 4 * UNIT, (1, 0))]
    newer = [FileExtent(0, UNIT, (1, 0)), FileExtent(3 * UNIT, UNIT, (1, 0))]
    assert list(differences(older, newer, 4 * UNIT)) == [Extent(UNIT, 2 * UNIT)]
