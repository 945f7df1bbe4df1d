"""No change may be missed: random maps and LUN contents, compared byte by byte."""

import random

from hypothesis import given
from hypothesis import strategies as st

from atoll.blocks.changes import changed_disk_extents
from atoll.blocks.extent_map import DiskMap
from atoll.blocks.readers import MappedReader
from atoll.model.extents import Extent, merge

_UNIT = 4
_BLOCKS = 12
_LUNS = ("a", "b")


@st.composite
def maps(draw: st.DrawFn, luns: tuple[str, ...]) -> DiskMap:
    block = st.none() | st.tuples(st.integers(0, len(luns) - 1), st.integers(0, _BLOCKS - 1))
    blocks = draw(st.lists(block, max_size=10))
    size = len(blocks) * _UNIT - (draw(st.integers(0, _UNIT - 1)) if blocks else 0)
    rows = [
        (n * _UNIT, min(_UNIT, size - n * _UNIT), place[0], place[1] * _UNIT)
        for n, place in enumerate(blocks)
        if place
    ]
    return DiskMap.of(size, luns, rows)


def _content(disk: DiskMap, luns: dict[str, bytes], memory: type) -> bytes:
    reader = MappedReader(disk, {name: memory(data) for name, data in luns.items()})
    return reader.read(0, disk.size_bytes)


_orders = st.permutations(_LUNS).map(tuple)


@given(old_luns=_orders, new_luns=_orders, seed=st.integers(0, 1 << 32), data=st.data())
def test_what_is_not_listed_is_the_same(
    memory: type,
    old_luns: tuple[str, ...],
    new_luns: tuple[str, ...],
    seed: int,
    data: st.DataObject,
) -> None:
    old = data.draw(maps(old_luns))
    new = data.draw(maps(new_luns) | st.just(old))
    rng = random.Random(seed)
    before = {name: rng.randbytes(_BLOCKS * _UNIT) for name in _LUNS}
    after, written = {}, {}
    for name in _LUNS:
        content = bytearray(before[name])
        touched = [
            Extent(at, rng.randint(1, 3))
            for at in rng.sample(range(_BLOCKS * _UNIT - 3), rng.randint(0, 3))
        ]
        for extent in touched:
            content[extent.offset : extent.end] = rng.randbytes(extent.length)
        after[name], written[name] = bytes(content), merge(touched)

    found = changed_disk_extents(old, new, written)

    assert found == merge(found)
    assert all(0 <= e.offset < e.end <= new.size_bytes for e in found)
    restored = bytearray(
        _content(old, before, memory)[: new.size_bytes].ljust(new.size_bytes, b"?")
    )
    truth = _content(new, after, memory)
    for extent in found:
        restored[extent.offset : extent.end] = truth[extent.offset : extent.end]
    assert bytes(restored) == truth


@given(maps(_LUNS))
def test_nothing_written_and_nothing_moved_is_nothing(disk: DiskMap) -> None:
    assert changed_disk_extents(disk, disk, {"a": [], "b": []}) == []


def test_without_an_old_map_all_is_listed() -> None:
    disk = DiskMap.of(8, ("a",), [(0, 4, 0, 0)])
    assert changed_disk_extents(None, disk, {}) == [Extent(0, 8)]
    assert changed_disk_extents(None, DiskMap.of(0, (), []), {}) == []


def test_a_lun_nothing_is_known_about_counts_as_changed() -> None:
    disk = DiskMap.of(12, ("a", "b"), [(0, 4, 0, 0), (4, 4, 1, 0)])
    assert changed_disk_extents(disk, disk, {"a": []}) == [Extent(4, 4)]


def test_each_kind_of_move_is_listed() -> None:
    old = DiskMap.of(16, ("a",), [(0, 4, 0, 0), (4, 4, 0, 100), (8, 4, 0, 50)])
    new = DiskMap.of(24, ("b", "a"), [(0, 4, 1, 0), (4, 4, 1, 60), (12, 4, 1, 70), (20, 4, 0, 0)])
    # kept, moved, became a hole, newly allocated, grown (a hole and a block)
    assert changed_disk_extents(old, new, {"a": [], "b": []}) == [Extent(4, 20)]


def test_what_lies_past_a_smaller_end_is_not_listed() -> None:
    old = DiskMap.of(16, ("a",), [(0, 16, 0, 0)])
    new = DiskMap.of(8, ("a",), [(0, 8, 0, 0)])
    assert changed_disk_extents(old, new, {"a": [Extent(4, 100)]}) == [Extent(4, 4)]
