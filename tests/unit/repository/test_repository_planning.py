"""What an increment reads: all that changed, and of the older chunks what is not worth keeping."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.model.extents import Extent, align, intersect
from atoll.repository.chunks import ZERO_NAME
from atoll.repository.images import PAGE_NAMES
from atoll.repository.pages import ChunkTable, TableWriter
from atoll.repository.planning import ranges_to_read

CHUNK = 4000
UNIT = 1000
SPAN = PAGE_NAMES * CHUNK


class Shelf(dict[bytes, bytes]):
    """Pages by name."""

    def put(self, page: bytes) -> bytes:
        name = random.Random(page).randbytes(32)
        self[name] = page
        return name


def _table(rnd: random.Random, size: int, lengths: dict[bytes, int]) -> ChunkTable:
    shelf = Shelf()
    writer = TableWriter(None, size, CHUNK, shelf.put)
    at = 0
    while at < size:
        length = min(UNIT * rnd.randrange(1, 16), size - at, SPAN - at % SPAN)
        name = ZERO_NAME if rnd.random() < 0.1 else rnd.randbytes(32)
        lengths[name] = length
        writer.set(at, length, name)
        at += length
    return ChunkTable(writer.finish(), shelf.__getitem__)


SIZES = st.sampled_from([1, 7_777, 100_000, SPAN, 2 * SPAN + 500])
CHANGES = st.lists(st.tuples(st.integers(0, 3 * SPAN), st.integers(1, 30_000)), max_size=12)


@settings(deadline=None, max_examples=150)
@given(SIZES, SIZES, CHANGES, st.integers(0, 1 << 30))
def test_all_that_changed_is_read_and_no_chunk_is_kept_for_a_little_of_it(
    older: int, size: int, changes: list[tuple[int, int]], seed: int
) -> None:
    lengths: dict[bytes, int] = {}
    table = _table(random.Random(seed), older, lengths)
    extents = [
        Extent(offset, min(length, size - offset)) for offset, length in changes if offset < size
    ]
    found = ranges_to_read(extents, table, size, UNIT, lengths.__getitem__)
    wanted = align(extents, UNIT, size)
    assert list(intersect(wanted, found)) == wanted
    edges = [0, *(edge for extent in found for edge in (extent.offset, extent.end)), size]
    kept: dict[bytes, int] = {}
    touched = set()
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        for piece in table.pieces(start, end) if start < end else ():
            part = piece.part(start, end)
            if piece.name == ZERO_NAME:
                continue
            kept[piece.name] = kept.get(piece.name, 0) + part.length
            # Cut by a change and not by the end of the disk.
            if part != piece and (part.start > piece.start or part.end < min(piece.end, size)):
                touched.add(piece.name)
                assert part.length >= UNIT
    assert all(kept[name] * 2 >= lengths[name] for name in touched)
    # Nothing else is read: each range begins and ends with a change, or with what it left of a chunk.
    for extent in found:
        assert list(intersect([extent], wanted))
        for edge in (extent.offset, extent.end):
            beside = [
                piece for at in (edge - 1, edge) for piece in table.pieces(at, at + 1) if at >= 0
            ]
            ends = {end for piece in beside for end in (piece.start, piece.end)}
            assert edge % UNIT == 0 or edge in ends or edge == size


def test_a_chunk_whose_length_is_not_known_is_read_whole() -> None:
    table = _table(random.Random(1), 100_000, {})
    piece = max(table.pieces(0, 100_000), key=lambda each: each.length * (each.name != ZERO_NAME))
    changed = Extent(piece.start + UNIT, UNIT)
    found = ranges_to_read([changed], table, 100_000, UNIT, lambda name: 1 << 62)
    assert found == [Extent(piece.start, piece.length)]
