"""Where two disk images differ: never a miss, and exact to the chunk."""

import random
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest

from atoll.model.extents import Extent
from atoll.repository.differences import differing_extents
from atoll.repository.images import PAGE_NAMES
from atoll.repository.pages import ChunkTable, Piece, TableWriter

CHUNK = 1000


class Pages(dict[bytes, bytes]):
    """Pages by name; `asked` counts what was read."""

    asked = 0

    def put(self, page: bytes) -> bytes:
        name = random.Random(page).randbytes(32)
        self[name] = page
        return name

    def read(self, name: bytes) -> bytes:
        self.asked += 1
        return self[name]


def image(
    pages: Pages, size: int, names: dict[int, bytes], parent: ChunkTable | None = None
) -> ChunkTable:
    writer = TableWriter(parent, size, CHUNK, pages.put)
    for number in sorted(names):
        start = number * CHUNK
        writer.set(start, min(CHUNK, size - start), names[number])
    return ChunkTable(writer.finish(), pages.read)


def name(number: int) -> bytes:
    return number.to_bytes(32, "big")


def _cut(rnd: random.Random, start: int, end: int) -> Iterator[Piece]:
    """Random pieces that cover a range, none of which reaches into the next leaf."""
    span = PAGE_NAMES * CHUNK
    while start < end:
        stop = min(end, start + rnd.randrange(1, 40 * CHUNK), (start // span + 1) * span)
        yield Piece(start, stop - start, name(rnd.choice([0, 0, 1, 2, 3])))
        start = stop


def _written(
    pages: Pages, size: int, pieces: Iterable[Piece], parent: ChunkTable | None = None
) -> ChunkTable:
    writer = TableWriter(parent, size, CHUNK, pages.put)
    for piece in pieces:
        writer.set(piece.start, piece.length, piece.name)
    return ChunkTable(writer.finish(), pages.read)


def _at(table: ChunkTable, offset: int) -> Piece:
    """Which byte of which chunk stands there."""
    [piece] = table.pieces(offset, offset + 1)
    return piece.part(offset, offset + 1)


@pytest.mark.parametrize("new_size", [1, 70_500, 256_000, 300_400, 7_000_000])
@pytest.mark.parametrize("old_size", [1, 70_500, 256_000, 300_400, 7_000_000])
def test_any_two_sizes(old_size: int, new_size: int) -> None:
    rnd = random.Random(old_size * 7 + new_size)
    pages = Pages()
    before = list(_cut(rnd, 0, old_size))
    old = _written(pages, old_size, before)
    starts = sorted(rnd.sample(range(0, max(new_size, 8_000_000), 100_000), 20))
    after = [
        piece
        for start in starts
        if start < new_size
        for piece in _cut(rnd, start, min(start + rnd.randrange(1, 90_000), new_size))
    ]
    new = _written(pages, new_size, after, old)
    found = list(differing_extents(old, new))
    assert all(a.end < b.offset for a, b in pairwise(found))
    assert all(0 <= each.offset < each.end <= new_size for each in found)
    ends = {end for piece in [*before, *after] for end in (piece.start, piece.end - 1)}
    for offset in sorted(end for end in ends if end < new_size):
        differs = offset >= old_size or _at(old, offset) != _at(new, offset)
        assert differs == any(each.offset <= offset < each.end for each in found), offset


def test_what_did_not_change_is_not_read() -> None:
    pages = Pages()
    chunks = 100 * PAGE_NAMES
    before = image(pages, chunks * CHUNK, {number: name(number + 1) for number in range(chunks)})
    changed = {5 * PAGE_NAMES + 7: name(1 << 40)}
    after = image(pages, chunks * CHUNK, changed, before)
    pages.asked = 0
    before = ChunkTable(before.record, pages.read)
    after = ChunkTable(after.record, pages.read)
    assert list(differing_extents(before, after)) == [Extent((5 * PAGE_NAMES + 7) * CHUNK, CHUNK)]
    assert pages.asked <= 4
    assert list(differing_extents(after, after)) == []
