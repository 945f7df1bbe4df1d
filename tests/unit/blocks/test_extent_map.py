"""Disk maps: their rules, their arithmetic against a model of single bytes, their stored form."""

import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from atoll.blocks.extent_map import DiskMap
from atoll.model.errors import RepositoryDamagedError
from atoll.model.extents import Extent

_UNIT = 4
_LUNS = ("a", "b", "ü-lun")
_Place = tuple[int, int] | None


@st.composite
def disk_maps(draw: st.DrawFn) -> DiskMap:
    """Maps of up to 16 blocks, in any order on three LUNs, LUN places shared now and then."""
    places = draw(
        st.lists(
            st.none() | st.tuples(st.integers(0, len(_LUNS) - 1), st.integers(0, 20)), max_size=16
        )
    )
    tail = draw(st.integers(1, _UNIT))
    size = max(len(places) * _UNIT - _UNIT + tail, 0)
    rows = [
        (n * _UNIT, min(_UNIT, size - n * _UNIT), place[0], place[1] * _UNIT)
        for n, place in enumerate(places)
        if place
    ]
    return DiskMap.of(size, _LUNS, rows)


def places(disk: DiskMap) -> list[_Place]:
    """Where each single byte is."""
    found: list[_Place] = [None] * disk.size_bytes
    for at, length, lun, offset in zip(
        disk.disk_offset.tolist(),
        disk.length.tolist(),
        disk.lun_index.tolist(),
        disk.lun_offset.tolist(),
        strict=True,
    ):
        for n in range(length):
            found[at + n] = (lun, offset + n)
    return found


@given(disk_maps())
def test_the_stored_form_reads_back_equal(disk: DiskMap) -> None:
    assert DiskMap.from_bytes(disk.to_bytes()) == disk


@given(disk_maps())
def test_holes_and_pieces_cover_the_disk(disk: DiskMap) -> None:
    holes = {b for e in disk.holes() for b in range(e.offset, e.end)}
    assert holes == {n for n, place in enumerate(places(disk)) if place is None}
    assert disk.mapped_bytes == disk.size_bytes - len(holes)


@given(disk_maps(), st.lists(st.tuples(st.integers(0, 90), st.integers(1, 30)), max_size=5))
def test_projection_finds_every_byte_of_the_disk(
    disk: DiskMap, ranges: list[tuple[int, int]]
) -> None:
    for index, lun in enumerate(_LUNS):
        extents = [Extent(*r) for r in ranges]
        touched = {b for e in extents for b in range(e.offset, e.end)}
        found = {b for e in disk.project(lun, extents) for b in range(e.offset, e.end)}
        expected = {
            n
            for n, place in enumerate(places(disk))
            if place and place[0] == index and place[1] in touched
        }
        assert found == expected


@given(disk_maps(), st.data())
def test_rearranging_moves_every_byte_along(disk: DiskMap, data: st.DataObject) -> None:
    pieces: list[tuple[int, int, int]] = []
    at = 0
    for _ in range(data.draw(st.integers(0, 4)) if disk.size_bytes else 0):
        source = data.draw(st.integers(0, disk.size_bytes - 1))
        length = data.draw(st.integers(1, disk.size_bytes - source))
        pieces.append((at, length, source))
        at += length
    expected = [place for _, length, s in pieces for place in places(disk)[s : s + length]]
    assert places(disk.rearranged(at, pieces)) == expected


def test_neighbours_that_continue_each_other_are_joined() -> None:
    disk = DiskMap.of(40, ("l",), [(10, 10, 0, 110), (0, 10, 0, 100), (30, 10, 0, 120)])
    assert disk.disk_offset.tolist() == [0, 30]
    assert disk.length.tolist() == [20, 10]
    assert disk.lun_extents("l") == [Extent(100, 30)]


def test_an_unknown_lun_holds_nothing_of_the_disk() -> None:
    disk = DiskMap.of(8, ("l",), [(0, 8, 0, 0)])
    assert disk.project("other", [Extent(0, 8)]) == []


def test_a_piece_outside_the_disk_cannot_be_rearranged() -> None:
    with pytest.raises(ValueError, match="not within"):
        DiskMap.of(8, ("l",), [(0, 8, 0, 0)]).rearranged(8, [(0, 8, 1)])


@pytest.mark.parametrize(
    ("rows", "luns", "size"),
    [
        ([(0, 8, 0, 0), (4, 8, 0, 100)], ("l",), 20),
        ([(0, 8, 0, 0)], ("l",), 7),
        ([(0, 0, 0, 0)], ("l",), 8),
        ([(0, 8, 1, 0)], ("l",), 8),
        ([(0, 8, 0, -4)], ("l",), 8),
        ([(-4, 8, 0, 0)], ("l",), 8),
        ([(0, 8, 0, 0)], ("l", "l"), 8),
        ([(0, 1 << 62, 0, 0)], ("l",), 1 << 62),
    ],
)
def test_maps_that_break_a_rule_are_refused(
    rows: list[tuple[int, int, int, int]], luns: tuple[str, ...], size: int
) -> None:
    with pytest.raises(ValueError, match="disk map"):
        DiskMap.of(size, luns, rows)


def test_columns_cannot_be_changed_later() -> None:
    disk = DiskMap.of(8, ("l",), [(0, 8, 0, 0)])
    with pytest.raises(ValueError, match="read-only"):
        disk.length[0] = 4


@given(disk_maps(), st.data())
def test_damage_is_named_or_harmless(disk: DiskMap, data: st.DataObject) -> None:
    stored = bytearray(disk.to_bytes())
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= data.draw(st.integers(1, 255))
    cut = bytes(stored[: data.draw(st.integers(0, len(stored)))])
    for damaged in (bytes(stored), cut):
        try:
            DiskMap.from_bytes(damaged)
        except RepositoryDamagedError as error:
            assert "read the whole disk at the next backup" in str(error)


def test_a_cut_map_never_reads() -> None:
    stored = DiskMap.of(8, ("l",), [(0, 8, 0, 0)]).to_bytes()
    for length in range(len(stored)):
        with pytest.raises(RepositoryDamagedError):
            DiskMap.from_bytes(stored[:length])


def test_a_huge_claim_is_refused_before_memory_is_spent() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 20))
    for rows in (1 << 40, (1 << 27) - 1):
        header = struct.pack("<8sHHQQ", b"ATOLLMAP", 1, 0, 8, rows)
        with pytest.raises(RepositoryDamagedError):
            DiskMap.from_bytes(header + bomb)


def test_another_version_is_refused() -> None:
    stored = bytearray(DiskMap.of(8, (), []).to_bytes())
    stored[8] = 2
    with pytest.raises(RepositoryDamagedError, match="version 2"):
        DiskMap.from_bytes(bytes(stored))


def test_a_fragmented_terabyte_is_small() -> None:
    count, block = 1 << 19, 1 << 20
    order = np.random.default_rng(7).permutation(count // 4)
    offset = (np.repeat(order * 8, 4) + np.tile(np.arange(4), count // 4)) * block
    at = np.arange(count, dtype=np.int64) * 2 * block
    disk = DiskMap.joined(
        count * 2 * block,
        ("l",),
        at,
        np.full(count, block, dtype=np.int64),
        np.zeros(count, dtype=np.int32),
        offset,
    )
    stored = disk.to_bytes()
    assert len(stored) < 2 << 20
    assert DiskMap.from_bytes(stored) == disk
