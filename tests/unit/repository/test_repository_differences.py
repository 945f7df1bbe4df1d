"""Where two disk images differ: never a miss, and exact to the chunk."""

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest

from atoll.model.extents import Extent
from atoll.repository.chunks import ZERO_NAME
from atoll.repository.differences import differing_extents
from atoll.repository.images import DiskRecord
from atoll.repository.pages import PAGE_NAMES, ChunkTable, TableWriter

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
) -> tuple[DiskRecord, ChunkTable]:
    chunks = -(-size // CHUNK)
    writer = TableWriter(parent, chunks, pages.put)
    for number in sorted(names):
        writer.set(number, names[number])
    record = DiskRecord(size, CHUNK, writer.finish())
    return record, ChunkTable(record.top, chunks, pages.read)


def name(number: int) -> bytes:
    return number.to_bytes(32, "big")


def expected(
    old: dict[int, bytes], new: dict[int, bytes], old_size: int, new_size: int
) -> Iterator[int]:
    for number in range(-(-new_size // CHUNK)):
        past_the_end = (number + 1) * CHUNK > old_size and old_size != new_size
        cut = (number + 1) * CHUNK > new_size and old_size != new_size
        if past_the_end or cut or old.get(number, ZERO_NAME) != new.get(number, ZERO_NAME):
            yield number


@pytest.mark.parametrize("new_size", [1, 70_500, 256_000, 300_400, 70_000_000])
@pytest.mark.parametrize("old_size", [1, 70_500, 256_000, 300_400, 70_000_000])
def test_any_two_sizes(old_size: int, new_size: int) -> None:
    rnd = random.Random(old_size * 7 + new_size)
    pages = Pages()
    old = {rnd.randrange(-(-old_size // CHUNK)): name(rnd.randrange(1, 4)) for _ in range(60)}
    new = {number: chunk for number, chunk in old.items() if number * CHUNK < new_size}
    for _ in range(20):
        new[rnd.randrange(-(-new_size // CHUNK))] = rnd.choice([ZERO_NAME, name(1), name(2)])
    before, after = image(pages, old_size, old), image(pages, new_size, new)
    found = list(differing_extents(*before, *after))
    numbers = [
        number
        for extent in found
        for number in range(extent.offset // CHUNK, -(-extent.end // CHUNK))
    ]
    assert numbers == list(expected(old, new, old_size, new_size))
    assert all(extent.offset % CHUNK == 0 for extent in found)
    assert all(extent.end % CHUNK == 0 or extent.end == new_size for extent in found)
    assert all(a.end < b.offset for a, b in pairwise(found))


def test_what_did_not_change_is_not_read() -> None:
    pages = Pages()
    chunks = 100 * PAGE_NAMES
    before = image(pages, chunks * CHUNK, {number: name(number + 1) for number in range(chunks)})
    changed = {5 * PAGE_NAMES + 7: name(1 << 40)}
    after = image(pages, chunks * CHUNK, changed, before[1])
    pages.asked = 0
    before = before[0], ChunkTable(before[0].top, chunks, pages.read)
    assert list(differing_extents(*before, *after)) == [Extent((5 * PAGE_NAMES + 7) * CHUNK, CHUNK)]
    assert pages.asked <= 4
    assert list(differing_extents(*after, *after)) == []
