"""Extents to block status: against the same answer worked out byte by byte."""

import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.model.extents import Extent
from atoll.nbd.contexts import CHANGED, StatusMap, changed_contexts, listed

SIZE = 60
FLAGS = 3
extents = st.lists(st.builds(Extent, st.integers(0, SIZE + 5), st.integers(1, SIZE)), max_size=6)
ranges = st.integers(0, SIZE - 1).flatmap(
    lambda offset: st.tuples(st.just(offset), st.integers(1, SIZE - offset))
)


def flagged(given_extents: list[Extent]) -> list[bool]:
    """Of each byte."""
    return [any(e.offset <= at < e.end for e in given_extents) for at in range(SIZE)]


def unpacked(data: bytes) -> list[tuple[int, int]]:
    return list(struct.iter_unpack(">II", data))


@given(extents, ranges)
def test_descriptors_say_what_each_byte_is(found: list[Extent], asked: tuple[int, int]) -> None:
    expected = flagged(found)
    offset, length = asked
    rows = unpacked(StatusMap.of(SIZE, found, FLAGS).descriptors(offset, length, False))
    at = offset
    for size, flags in rows:
        assert size > 0
        assert flags in (0, FLAGS)
        assert expected[at : at + size] == [bool(flags)] * size
        at += size
    # All but the last end within the range, and the last goes as far as its run.
    assert at - rows[-1][0] < offset + length <= at
    assert at == SIZE or expected[at] != expected[at - 1]
    assert all(a[1] != b[1] for a, b in pairwise(rows))


@given(extents, ranges)
def test_one_descriptor_stays_within_the_range(found: list[Extent], asked: tuple[int, int]) -> None:
    expected = flagged(found)
    offset, length = asked
    [(size, flags)] = unpacked(StatusMap.of(SIZE, found, FLAGS).descriptors(offset, length, True))
    assert 0 < size <= length
    assert expected[offset : offset + size] == [bool(flags)] * size
    assert size == length or expected[offset + size] != expected[offset]


@given(extents, ranges, st.integers(1, 10))
def test_runs_cover_the_range_and_short_ones_are_left_out(
    found: list[Extent], asked: tuple[int, int], least: int
) -> None:
    status = StatusMap.of(SIZE, found, FLAGS)
    offset, length = asked
    runs = list(status.runs(offset, length))
    told = [flag for _, size, flag in runs for _ in range(size)]
    assert told == flagged(found)[offset : offset + length]
    assert [at for at, _, _ in runs] == list(
        np.cumsum([offset, *(size for _, size, _ in runs[:-1])])
    )
    kept = [(at, size) for at, size, flag in status.runs(0, SIZE) if flag and size >= least]
    left = status.without_short(least).runs(0, SIZE)
    assert [(at, size) for at, size, flag in left if flag] == kept


@pytest.mark.parametrize("found", [[], [Extent(0, 1 << 44)], [Extent(1 << 43, 1 << 43)]])
def test_lengths_fit_32_bits_and_whole_blocks(found: list[Extent]) -> None:
    status = StatusMap.of(1 << 44, found, FLAGS)
    [(size, flags)] = unpacked(status.descriptors(4096, (1 << 32) - 1, False))
    assert size == (1 << 32) - 65536
    assert flags == (FLAGS if found and not found[0].offset else 0)


def test_a_wrong_extent_past_the_end_of_numbers_is_cut() -> None:
    status = StatusMap.of(SIZE, [Extent(10, (1 << 63) - 1)], FLAGS)
    assert list(status.runs(0, SIZE)) == [(0, 10, False), (10, SIZE - 10, True)]


def test_millions_of_extents_are_answered_a_part_at_a_time() -> None:
    count = 1_000_000
    starts = np.arange(count, dtype=np.int64) * 8192
    status = StatusMap(count * 8192, starts, starts + 4096, FLAGS)
    at = replies = 0
    while at < status.size_bytes:
        asked = min(status.size_bytes - at, (1 << 32) - 1)
        rows = unpacked(status.descriptors(at, asked, False))
        assert len(rows) <= 1 << 17
        assert [flags for _, flags in rows[:4]] == [FLAGS, 0, FLAGS, 0]
        at += sum(size for size, _ in rows)
        replies += 1
    assert at == status.size_bytes
    assert replies == 16
    middle = status.size_bytes // 2
    assert list(status.runs(middle + 100, 5000)) == [
        (middle + 100, 3996, True),
        (middle + 4096, 1004, False),
    ]


def test_changes_have_a_name_of_ours_and_one_of_qemu() -> None:
    ours, qemus = changed_contexts("monday", SIZE, [Extent(20, 5), Extent(10, 10)])
    assert (ours.name, qemus.name) == (CHANGED, "qemu:dirty-bitmap:monday")
    assert unpacked(ours.status.descriptors(0, SIZE, False)) == [(10, 0), (15, 1), (35, 0)]
    names = ["base:allocation", ours.name, qemus.name]
    assert listed(names, []) == names
    assert listed(names, ["qemu:"]) == listed(names, ["qemu:dirty-bitmap:"]) == [qemus.name]
    assert listed(names, ["qemu:dirty-bitmap:other", "base", "atoll:changed:"]) == []
