"""Readers against plain bytes, and how few reads reach the LUN."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.blocks.extent_map import DiskMap
from atoll.blocks.readers import FileReader, MappedReader, SliceReader
from atoll.blocks.streams import as_file
from atoll.model.errors import StorageUnreachableError, UnsupportedFormatError
from atoll.model.extents import Extent
from atoll.model.readers import BlockReader

_MIB = 1 << 20


def _sparse(path: Path) -> bytes:
    """A file with data at 4 MiB and at 9 MiB, else holes."""
    with path.open("wb") as file:
        file.truncate(12 * _MIB)
        for at in (4 * _MIB, 9 * _MIB):
            file.seek(at)
            file.write(os.urandom(_MIB))
    return path.read_bytes()


def test_a_file_is_read_with_its_holes(tmp_path: Path) -> None:
    path = tmp_path / "lun"
    content = _sparse(path)
    reader = FileReader(path)
    assert isinstance(reader, BlockReader)
    assert reader.size_bytes == 12 * _MIB
    assert reader.read(4 * _MIB - 5, 10) == content[4 * _MIB - 5 : 4 * _MIB + 5]
    assert reader.read(12 * _MIB - 5, 10) == content[-5:]
    assert reader.read(12 * _MIB, 10) == b""
    assert b"".join(data for _, data in reader.read_many([Extent(0, 12 * _MIB)])) == content
    holes = list(reader.holes())
    assert holes == [
        Extent(0, 4 * _MIB), Extent(5 * _MIB, 4 * _MIB), Extent(10 * _MIB, 2 * _MIB)
    ]  # fmt: skip
    assert all(not any(content[h.offset : h.end]) for h in holes)
    reader.close()
    reader.close()
    with pytest.raises(StorageUnreachableError):
        reader.read(0, 1)


def test_a_missing_or_shortened_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageUnreachableError, match="nothing"):
        FileReader(tmp_path / "nothing")
    path = tmp_path / "lun"
    path.write_bytes(bytes(100))
    reader = FileReader(path)
    os.truncate(path, 50)
    with pytest.raises(StorageUnreachableError, match="shortened"):
        reader.read(0, 100)
    reader.close()


def test_a_read_of_nothing_sensible_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "lun"
    path.write_bytes(bytes(10))
    for reader in (FileReader(path), SliceReader(FileReader(path), 2, 4)):
        with pytest.raises(ValueError, match="cannot read"):
            reader.read(-1, 4)


_ranges = st.lists(st.tuples(st.integers(0, 99), st.integers(1, 40)), max_size=8)


@given(st.permutations(range(10)), st.lists(st.booleans(), min_size=10, max_size=10), _ranges)
def test_a_mapped_disk_reads_as_its_pieces(
    memory: type, order: list[int], present: list[bool], ranges: list[tuple[int, int]]
) -> None:
    luns = {"a": memory(os.urandom(100)), "b": memory(os.urandom(100))}
    rows = [(n * 10, 10, order[n] % 2, order[n] * 10) for n in range(10) if present[n]]
    reader = MappedReader(DiskMap.of(100, ("a", "b"), rows), luns)
    truth = b"".join(
        luns["ab"[order[n] % 2]].content[order[n] * 10 : order[n] * 10 + 10]
        if present[n]
        else bytes(10)
        for n in range(10)
    )
    assert reader.read(0, 200) == truth
    for offset, length in ranges:
        assert reader.read(offset, length) == truth[offset : offset + length]
    pieces = list(reader.read_many([Extent(*r) for r in ranges]))
    assert [(o, len(d)) for o, d in pieces] == [(o, min(n, 100 - o)) for o, n in ranges]
    assert all(data == truth[o : o + len(data)] for o, data in pieces)


def test_many_small_ranges_that_are_neighbours_on_the_lun_are_one_read(memory: type) -> None:
    lun = memory(os.urandom(64 * 4096))
    rows = [(n * 4096, 4096, 0, (63 - n) * 4096) for n in range(64)]  # backwards on the LUN
    reader = MappedReader(DiskMap.of(64 * 4096, ("l",), rows), {"l": lun})
    pieces = list(reader.read_many([Extent(n * 4096, 4096) for n in range(64)]))
    assert b"".join(d for _, d in pieces) == reader.read(0, 64 * 4096)
    assert lun.reads[0] == Extent(0, 64 * 4096)


def test_a_large_range_comes_in_pieces(memory: type) -> None:
    lun = memory(bytes(20 * _MIB))
    reader = MappedReader(DiskMap.of(20 * _MIB, ("l",), [(0, 20 * _MIB, 0, 0)]), {"l": lun})
    pieces = [(o, len(d)) for o, d in reader.read_many([Extent(0, 20 * _MIB)])]
    assert pieces == [(0, 8 * _MIB), (8 * _MIB, 8 * _MIB), (16 * _MIB, 4 * _MIB)]


def test_holes_of_the_map_and_of_the_lun_are_both_known(memory: type) -> None:
    lun = memory(bytes(100), holes=[Extent(20, 10), Extent(60, 40)])
    rows = [(0, 20, 0, 20), (50, 20, 0, 50)]
    reader = MappedReader(DiskMap.of(100, ("l",), rows), {"l": lun})
    assert list(reader.holes()) == [Extent(0, 10), Extent(20, 30), Extent(60, 40)]


def test_a_lun_that_ends_too_early_is_named(memory: type) -> None:
    reader = MappedReader(DiskMap.of(100, ("l",), [(0, 100, 0, 0)]), {"l": memory(bytes(50))})
    with pytest.raises(StorageUnreachableError, match="LUN l ends before byte 100"):
        reader.read(0, 100)


def test_a_map_of_an_absent_lun_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="no reader for LUN l"):
        MappedReader(DiskMap.of(100, ("l",), [(0, 100, 0, 0)]), {})


def test_a_slice_is_a_disk_of_its_own(memory: type) -> None:
    lun = memory(bytes(range(100)), holes=[Extent(0, 25), Extent(50, 50)])
    reader = SliceReader(lun, 20, 40)
    assert reader.size_bytes == 40
    assert reader.read(35, 100) == bytes(range(55, 60))
    assert reader.read(40, 5) == b""
    assert list(reader.read_many([Extent(0, 2), Extent(38, 9), Extent(50, 9)])) == [
        (0, bytes((20, 21))),
        (38, bytes((58, 59))),
    ]
    assert list(reader.holes()) == [Extent(0, 5), Extent(30, 10)]
    with pytest.raises(ValueError, match="not within"):
        SliceReader(lun, 90, 11)


def test_a_reader_serves_as_a_file(memory: type) -> None:
    content = os.urandom(300_000)
    file = as_file(memory(content))
    assert file.read(10) == content[:10]
    assert file.seek(-10, os.SEEK_END) == 299_990
    assert file.read() == content[-10:]
    assert file.seek(5) == 5
    assert file.read(200_000) == content[5:200_005]
    assert file.tell() == 200_005
    assert file.read(0) == b""
    assert file.readable() and file.seekable() and not file.writable()


def test_a_length_gone_wild_is_refused(memory: type) -> None:
    file = as_file(memory(bytes(100)), max_read_bytes=1000)
    assert file.read(1000) == bytes(100)
    with pytest.raises(UnsupportedFormatError, match="1001 bytes at once"):
        file.read(1001)
