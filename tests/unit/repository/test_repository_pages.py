"""Chunk tables against a plain list, through growing, shrinking and changing."""

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.repository.chunks import ZERO_NAME
from atoll.repository.pages import PAGE_NAMES, ChunkTable, TableWriter, levels


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


def _write(
    pages: Pages, parent: ChunkTable | None, chunks: int, changes: dict[int, int]
) -> ChunkTable:
    writer = TableWriter(parent, chunks, pages.put)
    for number in sorted(changes):
        writer.set(number, _chunk(changes[number]))
    return ChunkTable(writer.finish(), chunks, pages.get)


def test_levels_follow_the_size() -> None:
    counts = [0, 1, 256, 257, 65536, 65537, 2**24 + 1]
    assert [levels(count) for count in counts] == [1, 1, 1, 2, 2, 3, 4]


def test_an_increment_writes_only_the_pages_above_what_changed() -> None:
    pages = Pages()
    full = _write(pages, None, 70_000, {n: n + 1 for n in range(70_000)})
    before = pages.written
    after = _write(pages, full, 70_000, {5: 0, 6: 99, 69_999: 7})
    assert pages.written - before == 2 + 2 + 1  # two leaves, two pages above, one top
    assert [after.name(n) for n in (4, 5, 6, 69_999)] == [_chunk(v) for v in (5, 0, 99, 7)]
    assert _write(pages, after, 70_000, {}).top == after.top


def test_a_sparse_disk_of_64_tib_costs_nothing_where_it_is_empty() -> None:
    pages = Pages()
    table = _write(pages, None, 2**28, {2**27: 5})
    assert pages.written == 4
    assert list(table.zero_runs()) == [(0, 2**27), (2**27 + 1, 2**27 - 1)]
    assert _write(Pages(), None, 2**28, {}).top == ZERO_NAME


SIZES = st.sampled_from([0, 1, 255, 256, 257, 600, 65_536, 65_537, 66_000])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(SIZES, st.sets(st.integers(0, 66_000), max_size=12)), max_size=5))
def test_a_table_is_the_list_it_stands_for(steps: list[tuple[int, set[int]]]) -> None:
    pages = Pages()
    table: ChunkTable | None = None
    model: dict[int, int] = {}
    for step, (size, touched) in enumerate(steps):
        changes = {n: (n + step) % 5 for n in touched if n < size}
        table = _write(pages, table, size, changes)
        model = {n: value for n, value in (model | changes).items() if n < size and value}
        probes = {0, 1, 255, 256, 65_535, 65_536, 65_999, *touched}
        for number in probes:
            assert table.name(number) == _chunk(model.get(number, 0))
        zeros = sum(count for _, count in table.zero_runs())
        assert zeros == size - len(model)
        # Equal contents have equal names, whatever the way there.
        assert table.top == _write(pages, None, size, model).top
    assert PAGE_NAMES == 256
