"""Grains of deltas: bounds that damage runs into, and the overlay against a byte by byte model."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.blocks import grains as module
from atoll.blocks.cowd import open_cowd
from atoll.blocks.extent_map import DiskMap
from atoll.blocks.grains import ZEROED, Grains, SparseFile, overlaid, read_grains
from atoll.blocks.readers import FileReader
from atoll.blocks.sesparse import open_sesparse
from atoll.model.readers import BlockReader
from sparse_deltas import UNMAPPED, ZERO, write_cowd, write_sesparse

_SIZE = 20 << 20


def opened(path: Path) -> tuple[SparseFile, BlockReader]:
    reader = FileReader(path)
    head = reader.read(0, 4)
    return (open_cowd(reader) if head == b"COWD" else open_sesparse(reader, "delta")), reader


def patched(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def cowd(tmp_path: Path) -> Path:
    grains = dict.fromkeys((0, 1, 2, 5000), b"x" * 512)
    write_cowd(tmp_path / "delta", _SIZE, grains, random.Random(1))
    return tmp_path / "delta"


@pytest.fixture
def sesparse(tmp_path: Path) -> Path:
    grains = {0: b"a" * 4096, 1: ZERO, 2: UNMAPPED, 3: b"b" * 4096, 4097: b"c" * 4096}
    write_sesparse(tmp_path / "delta", _SIZE, grains, random.Random(1))
    return tmp_path / "delta"


def test_neighbours_are_joined_and_zeros_lie_nowhere(sesparse: Path) -> None:
    found = read_grains(*opened(sesparse))
    assert found.disk_offset.tolist() == [0, 4096, 12288, 4097 * 4096]
    assert found.length.tolist() == [4096, 8192, 4096, 4096]
    assert (found.file_offset == ZEROED).tolist() == [False, True, False, False]


def test_the_last_grain_ends_with_the_disk(tmp_path: Path) -> None:
    write_sesparse(tmp_path / "d", 4096 + 512, {0: ZERO, 1: b"x" * 512}, random.Random(2))
    assert read_grains(*opened(tmp_path / "d")).length.tolist() == [4096, 512]


def _directory(path: Path) -> int:
    head = path.read_bytes()[:208]
    layout, at = ("<I", 20) if head[:4] == b"COWD" else ("<Q", 16 * 8)
    return int(struct.unpack_from(layout, head, at)[0]) * 512


@pytest.mark.parametrize(
    ("entry", "says"),
    [(1 << 31, "past the end"), (1, "same place|past the end"), (4, "same place|past the end")],
)
def test_a_table_where_none_can_be_is_named(cowd: Path, entry: int, says: str) -> None:
    patched(cowd, _directory(cowd), struct.pack("<I", entry))
    with pytest.raises(ValueError, match=says):
        read_grains(*opened(cowd))


def test_a_grain_that_two_places_claim_is_named(cowd: Path) -> None:
    (table,) = struct.unpack("<I", cowd.read_bytes()[_directory(cowd) :][:4])
    (first,) = struct.unpack("<I", cowd.read_bytes()[table * 512 :][:4])
    for entry, says in ((first, "same place"), (1 << 30, "past the end"), (2, "same place")):
        patched(cowd, table * 512 + 4 * 77, struct.pack("<I", entry))
        with pytest.raises(ValueError, match=says):
            read_grains(*opened(cowd))


@pytest.mark.parametrize(
    ("entry", "says"),
    [(1, "unknown kind"), (0x1 << 60 | 4096, "not there"), (0x2 << 60, "unknown kind")],
)
def test_a_directory_that_means_nothing_known_is_named(
    sesparse: Path, entry: int, says: str
) -> None:
    patched(sesparse, _directory(sesparse), struct.pack("<Q", entry))
    with pytest.raises(ValueError, match=says):
        opened(sesparse)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (7, "unknown kind"),
        (0x4 << 60, "unknown kind"),
        (0x3 << 60 | 0xFFFF_FFFF_FFFF, "past the end"),
        (0x3 << 60 | 0x5FF << 48, "past the end"),
    ],
)
def test_a_table_entry_that_means_nothing_known_is_named(
    sesparse: Path, entry: int, says: str
) -> None:
    data = sesparse.read_bytes()
    (number,) = struct.unpack_from("<I", data, _directory(sesparse))
    (tables,) = struct.unpack_from("<Q", data, 18 * 8)
    patched(sesparse, tables * 512 + number * 32768 + 8 * 9, struct.pack("<Q", entry))
    with pytest.raises(ValueError, match=says):
        read_grains(*opened(sesparse))


def test_a_file_cut_short_is_named(sesparse: Path, tmp_path: Path) -> None:
    data = sesparse.read_bytes()
    for length in (0, 511, 512, 1024, _directory(sesparse), len(data) - (16 << 12)):
        (tmp_path / "short").write_bytes(data[:length])
        reader = FileReader(tmp_path / "short")
        with pytest.raises(ValueError, match="past the end"):
            read_grains(open_sesparse(reader, "short"), reader)


def test_no_more_pieces_than_can_be_kept(sesparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIECES", 3)
    with pytest.raises(ValueError, match="more than 3 places"):
        read_grains(*opened(sesparse))


_RANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 9), st.integers(-1, 50)), max_size=9
)


@settings(max_examples=150, deadline=None)
@given(below=_RANGES, delta=_RANGES, file=_RANGES)
def test_the_overlay_is_what_a_model_of_single_bytes_says(below, delta, file) -> None:
    size = 70
    under = {n: ("raw", place + n) for n, place in _cells(below, size).items() if place >= 0}
    lies = {n: ("lun", 500 + n) for n in range(size)}
    for at, length, value in file:
        for n in range(at, min(at + length, size)):
            if value >= 0:
                lies[n] = ("lun", 1000 + value + n)
            else:
                lies.pop(n, None)
    held = _cells(delta, size)
    if any(at >= 0 and at not in lies for at in held.values()):
        with pytest.raises(ValueError, match="not noted as its own yet"):
            overlaid(_map_of(under, size), _grains_of(held), _map_of(lies, size), size)
        return
    made = overlaid(_map_of(under, size), _grains_of(held), _map_of(lies, size), size)
    expected = {n: place for n, place in under.items() if n not in held}
    expected |= {n: lies[at] for n, at in held.items() if at >= 0}
    assert _cells_of(made) == expected


def _cells(ranges, size: int) -> dict[int, int]:
    """What is at each place: for a delta a place in its file (each once), or ZEROED."""
    cells: dict[int, int] = {}
    for at, length, value in ranges:
        for n in range(at, min(at + length, size)):
            place = value + n - at if value >= 0 else ZEROED
            if place < 0 or (place < size and place not in cells.values()):
                cells[n] = place
    return dict(sorted(cells.items()))


def _grains_of(cells: dict[int, int]) -> Grains:
    rows = np.array([(n, 1, place) for n, place in cells.items()], dtype=np.int64)
    return Grains(*rows.reshape(-1, 3).T)


def _map_of(cells: dict[int, tuple[str, int]], size: int) -> DiskMap:
    luns = sorted({name for name, _ in cells.values()}) or ["lun"]
    rows = [(n, 1, luns.index(name), place) for n, (name, place) in cells.items()]
    return DiskMap.of(size, luns, rows)


def _cells_of(disk: DiskMap) -> dict[int, tuple[str, int]]:
    return {
        at + n: (disk.luns[lun], place + n)
        for at, length, lun, place in zip(
            disk.disk_offset.tolist(),
            disk.length.tolist(),
            disk.lun_index.tolist(),
            disk.lun_offset.tolist(),
            strict=True,
        )
        for n in range(length)
    }
