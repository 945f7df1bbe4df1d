"""Tables of the index: buckets, files, merging."""

import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atoll.repository.index import Index
from atoll.repository.index_file import FileTable, TableDamagedError, TableFile
from atoll.repository.index_merge import first_to_merge, merge
from atoll.repository.index_state import DEAD, Placed
from atoll.repository.index_table import (
    MIN_BITS,
    Buckets,
    MemoryTable,
    Table,
    in_order,
    prefixes_of,
    rows_named,
    unpack_prefix,
)
from atoll.repository.segments import ROW, Rows, entry_of
from index_parts import array, listing, named

EDGES = [bytes(32), bytes(31) + b"\1", b"\xff" * 32, b"\xff" * 8 + bytes(24), b"\x80" + bytes(31)]


def rows_of(names: Sequence[bytes], pack: int = 0) -> Rows:
    rows = np.zeros(len(names), ROW)
    if names:
        rows["name"] = array(names)
    rows["number"] = np.arange(len(names))
    rows["pack"] = pack
    return rows


def file_table(place: Path, rows: Rows, pieces: int = 1) -> FileTable:
    handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    table = TableFile(handle, len(rows))
    for piece in np.array_split(in_order(rows)[0], pieces):
        table.append(piece)
    table.finish()
    return FileTable(handle)


def _rows(table: Table, name: bytes) -> list[bytes]:
    found = [table.row(at) for at in table.buckets.places(*unpack_prefix(name))]
    return [row for row in found if row.startswith(name)]


def check_table(table: Table, names: Sequence[bytes]) -> None:
    assert len(table.buckets) == len(names)
    read = table.read(0, len(names))
    assert sorted(read["number"].tolist()) == list(range(len(names)))
    assert np.all(np.diff(prefixes_of(read["name"]).astype(object)) >= 0)
    assert (table.read(len(names) // 3, len(names)) == read[len(names) // 3 :]).all()
    for name in {*names, *EDGES, named(10**9)}:
        found = {entry_of(row).number for row in _rows(table, name)}
        assert found == {at for at, each in enumerate(names) if each == name}
    asked = [*names, *EDGES, named(10**9)]
    owners, places, rows = rows_named(table, array(asked), prefixes_of(array(asked)))
    told = {(owner, int(row["number"])) for owner, row in zip(owners.tolist(), rows, strict=True)}
    assert told == {
        (owner, at)
        for owner, name in enumerate(asked)
        for at, each in enumerate(names)
        if each == name
    }
    assert (table.gather(places) == rows).all()


@given(st.lists(st.one_of(st.sampled_from(EDGES), st.integers(0, 60).map(named)), max_size=60))
@example([])
@example(EDGES)
@example([b"\xff" * 32] * 40)
def test_every_table_finds_what_is_in_it(
    tmp_path_factory: pytest.TempPathFactory, names: list[bytes]
) -> None:
    check_table(MemoryTable(rows_of(names)), names)
    place = tmp_path_factory.mktemp("tables") / "table"
    check_table(file_table(place, rows_of(names), pieces=3), names)


def test_buckets_grow_with_the_table() -> None:
    assert Buckets.bits_for(0) == Buckets.bits_for(1000) == MIN_BITS
    for rows in (10**5, 10**6, 8 * 10**7, 4 * 10**8):
        assert 4 <= rows / 2 ** Buckets.bits_for(rows) <= 8


def test_a_table_of_many_blocks(tmp_path: Path) -> None:
    names = [named(number) for number in range(60_000)]
    table = file_table(tmp_path / "table", rows_of(names), pieces=7)
    for at in random.Random(1).sample(range(len(names)), 500):
        (row,) = _rows(table, names[at])
        assert entry_of(row).number == at
    _, places, rows = rows_named(table, array(names), prefixes_of(array(names)))
    assert rows["number"].tolist() == list(range(len(names)))
    assert (table.read(0, len(names))[places] == rows).all()


def test_rows_must_come_in_order(tmp_path: Path) -> None:
    handle = os.open(tmp_path / "table", os.O_RDWR | os.O_CREAT)
    table = TableFile(handle, 2)
    table.append(rows_of([b"\2" * 32]))
    with pytest.raises(ValueError, match="out of order"):
        table.append(rows_of([b"\1" * 32]))
    os.close(handle)


def test_an_unfinished_table_is_none(tmp_path: Path) -> None:
    handle = os.open(tmp_path / "table", os.O_RDWR | os.O_CREAT)
    TableFile(handle, 2).append(rows_of([named(1)] * 100))
    with pytest.raises(TableDamagedError):
        FileTable(handle)


def test_a_table_of_another_place_is_refused_block_by_block(tmp_path: Path) -> None:
    """Both are whole by themselves; only their blocks were exchanged."""
    names = [named(number) for number in range(18)]
    one, two = (file_table(tmp_path / place, rows_of(names)) for place in ("one", "two"))
    assert one.row(0) == two.row(0)
    data = (tmp_path / "two").read_bytes()
    with (tmp_path / "one").open("r+b") as file:
        file.seek(4096)
        file.write(data[4096:5120])
    again = FileTable(os.open(tmp_path / "one", os.O_RDONLY))
    with pytest.raises(TableDamagedError):
        again.row(0)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=12))
def test_merging_leaves_few_tables_and_few_dead_rows(weights: list[tuple[int, int]]) -> None:
    rows = [max(count, gone) for count, gone in weights]
    dead = [gone for _, gone in weights]
    first = first_to_merge(rows, dead)
    left = rows[:first]
    merged = sum(rows[first:]) - sum(dead[first:])
    for at, count in enumerate(left):
        assert dead[at] * 4 <= count
        assert count >= 4 * (sum(left[at + 1 :]) + merged)


def test_merging_renumbers_packs_and_leaves_out_the_dead(tmp_path: Path) -> None:
    names = [[named(pack * 1000 + number) for number in range(300)] for pack in range(4)]
    in_memory = MemoryTable(np.concatenate([rows_of(names[0], 0), rows_of(names[1], 1)]))
    in_file = file_table(
        tmp_path / "in", np.concatenate([rows_of(names[2], 0), rows_of(names[3], 1)])
    )
    handle = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    out = TableFile(handle, 900)
    merge([Placed(in_file, 0, 2), Placed(in_memory, 600, 0)], np.array([2, DEAD, 0, 1]), out)
    out.finish()
    table = FileTable(handle)
    for pack, renumbered in ((0, 2), (2, 0), (3, 1)):
        for number, name in enumerate(names[pack]):
            (row,) = table.gather(np.array(list(table.buckets.places(*unpack_prefix(name)))))
            assert row["name"].tobytes() == name
            assert (int(row["pack"]), int(row["number"])) == (renumbered, number)
    assert len(table.buckets) == 900
    assert not _rows(table, names[1][0])


def test_many_names_are_found_in_parts() -> None:
    names = [named(number) for number in range(70_000)]
    index = Index()
    index.add("0" * 32, [listing(1, names)])
    found = index.find(array([*names, named(10**9)]))
    assert found[-1] == -1
    ((_, rows),) = index.blocks()
    assert rows[found[:-1]]["number"].tolist() == list(range(70_000))
    swapped = array([*names, named(10**9)]).reshape(-1, 32)[::-1]
    assert (index.find(swapped)[::-1] == found).all()
