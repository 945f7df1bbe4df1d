"""Where chunks end: by content alone, however it is dealt out, and wherever it lies."""

import random
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.repository.cutting import BLOCK_BYTES, Cut, Cutter, Marks

CUTTER = Cutter(np.uint64(0x9E3779B97F4A7C15), 8)


def marks_of(draws: list[int]) -> Marks:
    """Blocks by their draws; 0 stands for a block of zeros."""
    values = np.array(draws, np.uint32)
    return Marks(values, values == 0)


def cut_at_once(marks: Marks) -> list[Cut]:
    cuts, used = CUTTER.cut(marks, last=True, in_zeros=False)
    assert used == len(marks.zero)
    return cuts


def cut_in_parts(marks: Marks, parts: list[int]) -> list[Cut]:
    found: list[Cut] = []
    at, kept, in_zeros = 0, 0, False
    for end in [*sorted(parts), len(marks.zero)]:
        last = end == len(marks.zero)
        part = Marks(marks.draws[kept:end], marks.zero[kept:end])
        cuts, used = CUTTER.cut(part, last=last, in_zeros=in_zeros)
        in_zeros = used == len(part.zero) and bool(cuts) and cuts[-1].zero
        found += cuts
        kept += used
        at = end
        if last:
            break
    assert (kept, at) == (len(marks.zero), len(marks.zero))
    return found


def joined(cuts: list[Cut]) -> list[Cut]:
    """With zeros that follow each other made one, as a table does."""
    made: list[Cut] = []
    for cut in cuts:
        if made and made[-1].zero and cut.zero:
            made[-1] = Cut(made[-1].blocks + cut.blocks, zero=True)
        else:
            made.append(cut)
    return made


BLOCKS = st.lists(
    st.tuples(st.sampled_from(["zeros", "noise", "easy", "hard"]), st.integers(1, 40)), max_size=12
)


def _draws(shape: list[tuple[str, int]], seed: int) -> list[int]:
    rnd = random.Random(seed)
    found: list[int] = []
    for kind, count in shape:
        for _ in range(count):
            easy, hard = rnd.randrange(1, 1 << 28), rnd.randrange(3 << 30, 1 << 32)
            noise = rnd.randrange(1, 1 << 32)
            found.append({"zeros": 0, "noise": noise, "easy": easy, "hard": hard}[kind])
    return found


@settings(deadline=None, max_examples=300)
@given(BLOCKS, st.integers(0, 1 << 30), st.lists(st.integers(0, 300), max_size=6))
def test_it_does_not_matter_how_a_disk_is_dealt_out(
    shape: list[tuple[str, int]], seed: int, parts: list[int]
) -> None:
    marks = marks_of(_draws(shape, seed))
    whole = cut_at_once(marks)
    inside = [part for part in parts if part < len(marks.zero)]
    assert joined(cut_in_parts(marks, inside)) == joined(whole)
    at = 0
    for cut in whole:
        if cut.zero:
            assert marks.zero[at : at + cut.blocks].all()
        else:
            assert 1 <= cut.blocks <= CUTTER.longest
        at += cut.blocks
    assert at == len(marks.zero)
    # Only an end of all makes a chunk short, or zeros on both sides.
    edges = list(accumulate((cut.blocks for cut in whole), initial=0))
    for index, ((start, end), cut) in enumerate(zip(pairwise(edges), whole, strict=True)):
        if not cut.zero and cut.blocks < CUTTER.shortest:
            assert index == 0 or whole[index - 1].zero
            assert index == len(whole) - 1 or whole[index + 1].zero
        if cut.zero and end - start < CUTTER.shortest:
            raise AssertionError("zeros this short are part of a chunk")


def test_the_same_content_elsewhere_gives_the_same_chunks() -> None:
    rnd = random.Random(5)
    content = [rnd.randrange(1, 1 << 32) for _ in range(2000)]
    found = []
    for before in (0, 3, 17):
        draws = [rnd.randrange(1, 1 << 32) for _ in range(before)] + content
        ends = set(accumulate(cut.blocks for cut in cut_at_once(marks_of(draws))))
        found.append({end - before for end in ends})
    alike = found[0] & found[1] & found[2]
    assert len(alike) > 0.9 * len(found[0])


def test_lengths_keep_close_to_the_mean() -> None:
    cutter = Cutter(CUTTER.secret, 64)
    draws = np.random.default_rng(3).integers(1, 1 << 32, 200_000, dtype=np.uint32)
    cuts, _ = cutter.cut(Marks(draws, draws == 0), last=True, in_zeros=False)
    lengths = [cut.blocks for cut in cuts[:-1]]
    assert 50 < sum(lengths) / len(lengths) < 80
    assert min(lengths) >= 16
    assert max(lengths) <= 256


@pytest.mark.parametrize("length", [1, BLOCK_BYTES, 3 * BLOCK_BYTES, 3 * BLOCK_BYTES + 512])
def test_zeros_are_zeros_and_nothing_else(length: int) -> None:
    assert CUTTER.marks(bytes(length)).zero.all()
    for at in {0, length // 2, length - 1}:
        data = bytearray(length)
        data[at] = 1
        blocks = CUTTER.marks(data).zero
        assert [int(block) for block in np.flatnonzero(~blocks)] == [at // BLOCK_BYTES]


def test_a_sum_that_overflows_to_nothing_is_not_zeros() -> None:
    block = bytearray(BLOCK_BYTES)
    block[0:8] = (1 << 63).to_bytes(8, "little")
    block[8:16] = (1 << 63).to_bytes(8, "little")
    assert CUTTER.marks(bytes(BLOCK_BYTES) + bytes(block)).zero.tolist() == [True, False]
