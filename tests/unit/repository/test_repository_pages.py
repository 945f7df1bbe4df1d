"""Chunk tables against a plain list, through growing, shrinking and changing."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.model.errors import RepositoryDamagedError
from atoll.model.extents import Extent
from atoll.repository.chunks import ZERO_NAME
from atoll.repository.images import FIXED, PAGE_NAMES, DiskRecord, levels
from atoll.repository.pages import ChunkTable, Piece, TableWriter

CHUNK = 1000
SPAN = PAGE_NAMES * CHUNK


class Pages:
    """A content-addressed shelf that counts what is new."""

    def __init__(self) -> None:
        self.shelf: dict[bytes, bytes] = {}
        self.written = 0

    def put(self, page: bytes) -> bytes:
        from hashlib import sha256

        name = sha256(page).digest()
        if name not in self.shelf:
            self.written += 1
        self.shelf[name] = page
        return name

    def get(self, name: bytes) -> bytes:
        return self.shelf[name]


def _chunk(value: int) -> bytes:
    return value.to_bytes(32, "big")


def _write(pages: Pages, parent: ChunkTable | None, size: int, pieces: list[Piece]) -> ChunkTable:
    writer = TableWriter(parent, size, CHUNK, pages.put)
    for piece in pieces:
        writer.set(piece.start, piece.length, piece.name)
    return ChunkTable(writer.finish(), pages.get)


def _even(numbers: dict[int, int]) -> list[Piece]:
    return [Piece(n * CHUNK, CHUNK, _chunk(value)) for n, value in sorted(numbers.items())]


def test_levels_follow_the_size() -> None:
    counts = [0, 1, 256, 257, 65536, 65537, 2**24 + 1]
    assert [levels(count) for count in counts] == [1, 1, 1, 2, 2, 3, 4]


def test_an_increment_writes_only_the_pages_above_what_changed() -> None:
    pages = Pages()
    size = 70_000 * CHUNK
    full = _write(pages, None, size, _even({n: n + 1 for n in range(70_000)}))
    before = pages.written
    after = _write(pages, full, size, _even({5: 0, 6: 99, 69_999: 7}))
    assert pages.written - before == 2 + 2 + 1  # two leaves, two pages above, one top
    names = [next(after.pieces(n * CHUNK, n * CHUNK + 1)).name for n in (4, 5, 6, 69_999)]
    assert names == [_chunk(v) for v in (5, 0, 99, 7)]
    assert _write(pages, after, size, []).record == after.record


def test_a_sparse_disk_of_64_tib_costs_nothing_where_it_is_empty() -> None:
    pages = Pages()
    size = 2**28 * CHUNK
    table = _write(pages, None, size, _even({2**27: 5}))
    assert pages.written == 4
    half = 2**27 * CHUNK
    assert list(table.zero_runs()) == [
        Extent(0, half),
        Extent(half + CHUNK, half - CHUNK),
    ]
    assert _write(Pages(), None, size, []).record.top == ZERO_NAME


SIZES = st.sampled_from([0, 1, SPAN - 1, SPAN, SPAN + 1, 3 * SPAN + 77, 256 * SPAN, 257 * SPAN + 5])
RANGES = st.lists(st.tuples(st.integers(0, 258 * SPAN), st.integers(1, 2 * SPAN)), max_size=6)


def _pieces(rnd: random.Random, start: int, end: int) -> list[Piece]:
    """Random pieces that cover a range, none of which reaches into the next leaf."""
    made = []
    while start < end:
        stop = min(end, start + rnd.randrange(1, SPAN), (start // SPAN + 1) * SPAN)
        made.append(Piece(start, stop - start, _chunk(rnd.choice([0, 0, 1, 2, 3]))))
        start = stop
    return made


def _model(
    older: list[Piece], ranges: list[tuple[int, int]], pieces: list[Piece], size: int
) -> list[Piece]:
    """The chunks, and parts of chunks, that are left when ranges are replaced and the end is cut."""
    made = list(older)
    for start, end in [*ranges, (size, 1 << 62)]:
        made = [
            piece.part(first, last)
            for piece in made
            for first, last in ((0, start), (end, 1 << 62))
            if piece.start < last and piece.end > first
        ]
    return sorted([*made, *(piece for piece in pieces if piece.name != ZERO_NAME)])


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(SIZES, RANGES), max_size=5), st.integers(0, 1 << 30))
def test_a_table_is_the_list_it_stands_for(
    steps: list[tuple[int, list[tuple[int, int]]]], seed: int
) -> None:
    rnd = random.Random(seed)
    pages = Pages()
    table: ChunkTable | None = None
    model: list[Piece] = []
    for size, wanted in steps:
        touched = [(start, min(start + length, size)) for start, length in wanted if start < size]
        ranges: list[tuple[int, int]] = []
        for start, end in sorted(touched):
            if ranges and start <= ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
            else:
                ranges.append((start, end))
        pieces = [piece for start, end in ranges for piece in _pieces(rnd, start, end)]
        table = _write(pages, table, size, pieces)
        model = _model(model, ranges, pieces, size)
        found = list(table.pieces(0, size))
        assert [piece for piece in found if piece.name != ZERO_NAME] == model
        assert sum(piece.length for piece in found) == size
        assert all(a.end == b.start for a, b in pairwise(found))
        # The same pieces give the same pages, whatever the way there.
        whole = [piece for piece in model if not piece.skip]
        if whole == model:
            assert table.record == _write(pages, None, size, model).record
        zeros = sum(extent.length for extent in table.zero_runs())
        assert zeros == size - sum(piece.length for piece in model)
        for offset in (0, 1, SPAN - 1, SPAN, size - 1):
            if 0 <= offset < size:
                [piece] = table.pieces(offset, offset + 1)
                assert piece.start <= offset < piece.end


def test_as_it_stands_is_what_finish_would_give_and_disturbs_nothing() -> None:
    pages = Pages()
    size = 3 * SPAN
    older = _write(pages, None, size, _even(dict.fromkeys(range(768), 1)))
    changes = _even(dict.fromkeys((3, 300, 301, 700), 2))
    writer = TableWriter(older, size, CHUNK, pages.put)
    for count, piece in enumerate(changes, 1):
        writer.set(piece.start, piece.length, piece.name)
        so_far = _write(pages, older, size, changes[:count]).record
        assert writer.as_it_stands() == so_far
    assert writer.finish() == so_far


@pytest.mark.parametrize(("start", "length"), [(SPAN - 1, 2), (-1, 1), (0, 0), (2 * SPAN, 1)])
def test_what_cannot_stand_in_a_table_is_refused(start: int, length: int) -> None:
    pages = Pages()
    older = _write(pages, None, 2 * SPAN, _even(dict.fromkeys(range(512), 1)))
    writer = TableWriter(older, 2 * SPAN, CHUNK, pages.put)
    with pytest.raises(ValueError, match=r"past the end|one leaf"):
        writer.set(start, length, _chunk(4))
        writer.finish()


def _fixed(pages: Pages, size: int, numbers: dict[int, int]) -> ChunkTable:
    """A table of the first version: leaves are names."""
    assert size <= PAGE_NAMES * SPAN
    leaves = bytearray(PAGE_NAMES * 32)
    for leaf in {n // PAGE_NAMES for n in numbers}:
        page = bytearray(PAGE_NAMES * 32)
        for n, value in numbers.items():
            if n // PAGE_NAMES == leaf:
                at = n % PAGE_NAMES * 32
                page[at : at + 32] = _chunk(value)
        leaves[leaf * 32 : leaf * 32 + 32] = pages.put(bytes(page))
    top = pages.put(bytes(leaves)) if size > SPAN else bytes(leaves[:32])
    return ChunkTable(DiskRecord(size, CHUNK, top, FIXED), pages.get)


def test_a_table_of_the_first_version_is_read_and_gone_on_with() -> None:
    pages = Pages()
    size = 20 * SPAN + 700
    numbers = {n: n % 5 + 1 for n in (0, 1, 255, 256, 3000, 20 * PAGE_NAMES)}
    older = _fixed(pages, size, numbers)
    last = Piece(20 * SPAN, 700, _chunk(numbers[20 * PAGE_NAMES]))
    model = [*_even({n: v for n, v in numbers.items() if n < 20 * PAGE_NAMES}), last]
    assert [p for p in older.pieces(0, size) if p.name != ZERO_NAME] == model
    change = Piece(255 * CHUNK, CHUNK, _chunk(9))
    newer = _write(pages, older, size, [change])
    assert newer.record == _write(Pages(), None, size, [*model[:2], change, *model[3:]]).record


@pytest.mark.parametrize("leaf", [b"", b"x" * 39, bytes(80), b"\1\0\0\0" * 4 + b"n" * 64])
def test_a_leaf_that_says_too_little_or_nothing_is_damage(leaf: bytes) -> None:
    table = ChunkTable(DiskRecord(SPAN, CHUNK, b"n" * 32), lambda _: leaf)
    with pytest.raises(RepositoryDamagedError, match="verify"):
        list(table.pieces(0, 1))
