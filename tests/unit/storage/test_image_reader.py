"""Reading image files."""

from pathlib import Path

import pytest

from atoll.model.errors import StorageUnreachableError
from atoll.model.extents import Extent, total_bytes
from atoll.model.readers import BlockReader
from atoll.storage.image_reader import ImageReader

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    with path.open("wb") as file:
        file.write(b"A" * MIB)
        file.seek(8 * MIB)
        file.write(b"B" * MIB)
        file.truncate(16 * MIB)
    return path


def test_is_a_block_reader(image: Path) -> None:
    reader = ImageReader(image)
    assert isinstance(reader, BlockReader)
    assert reader.size_bytes == 16 * MIB
    reader.close()
    reader.close()


def test_reads_across_data_and_holes_and_stops_at_the_end(image: Path) -> None:
    reader = ImageReader(image)
    assert reader.read(MIB - 2, 4) == b"AA\0\0"
    assert reader.read(16 * MIB - 3, 100) == bytes(3)
    assert reader.read(17 * MIB, 10) == b""
    reader.close()


def test_reads_many_in_order_and_in_pieces(image: Path) -> None:
    reader = ImageReader(image)
    pieces = list(reader.read_many([Extent(8 * MIB, 2), Extent(0, 9 * MIB), Extent(15 * MIB, MIB)]))
    assert [offset for offset, _ in pieces] == [8 * MIB, 0, 4 * MIB, 8 * MIB, 15 * MIB]
    assert b"".join(data for _, data in pieces[1:4]) == reader.read(0, 9 * MIB)
    reader.close()


def test_holes_never_list_data(image: Path) -> None:
    reader = ImageReader(image)
    holes = list(reader.holes())
    assert all(not any(reader.read(*hole)) for hole in holes)
    assert total_bytes(holes) == 14 * MIB
    reader.close()


def test_a_missing_or_closed_image_is_a_clear_error(image: Path) -> None:
    with pytest.raises(StorageUnreachableError):
        ImageReader(image.with_name("none.img"))
    reader = ImageReader(image)
    reader.close()
    with pytest.raises(StorageUnreachableError):
        reader.read(0, 1)
