"""Reading a disk back: small reads, long ones, and what either asks of the store."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.repository import Repository
from repository_parts import CHUNK, MemoryDisk, image, noise, point

CHUNKS = 40


class NotingStore(LocalStore):
    """Notes the ranges of packs that are read."""

    ranges: list[int]

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        if name.startswith("packs/"):
            self.ranges.append(length)
        return super().get_range(name, offset, length)


@pytest.fixture
def data() -> bytes:
    return noise(3, 20 * CHUNK) + bytes(5 * CHUNK) + noise(4, (CHUNKS - 25) * CHUNK - 100)


@pytest.fixture
def store(place: Path, key: KeyFile, repository: Repository, data: bytes) -> NotingStore:
    copied = repository.copy_disk(MemoryDisk(data))
    repository.commit([point("p1", image(copied))])
    repository.close()
    store = NotingStore.open(place)
    store.ranges = []
    return store


@pytest.fixture
def reader(store: NotingStore, key: KeyFile) -> Iterator[BlockReader]:
    with Repository(store, key) as repository:
        reader = repository.open_disk(repository.find("p1").disks[0])
        reader.read(0, 1)  # the table's pages are read and kept from now on
        store.ranges.clear()
        yield reader
        reader.close()


def test_reads_of_every_length_give_the_bytes(reader: BlockReader, data: bytes) -> None:
    draw = random.Random(1)
    for _ in range(200):
        offset = draw.randrange(len(data))
        length = draw.choice((1, 100, CHUNK, 2 * CHUNK, 3 * CHUNK, 11 * CHUNK, 90 * CHUNK))
        assert reader.read(offset, length) == data[offset : offset + length]


def test_neighbours_are_asked_for_together(store: NotingStore, reader: BlockReader) -> None:
    reader.read(CHUNK + 7, 12 * CHUNK)
    assert len(store.ranges) == 1


def test_small_reads_find_the_last_chunks_again(store: NotingStore, reader: BlockReader) -> None:
    for at in range(0, 2 * CHUNK - 64, 64):
        reader.read(CHUNK + at, 128)
    assert len(store.ranges) == 2


def test_many_extents_come_in_order_whole_and_cut_at_the_end(
    reader: BlockReader, data: bytes
) -> None:
    wanted = [Extent(30 * CHUNK, 3 * CHUNK), Extent(5, 2 * CHUNK), Extent(len(data) - 9, 4 * CHUNK)]
    pieces = list(reader.read_many(wanted))
    assert b"".join(piece for _, piece in pieces) == b"".join(
        data[extent.offset : extent.end] for extent in wanted
    )
    assert all(data[at : at + len(piece)] == piece for at, piece in pieces)
    assert list(reader.read_many([])) == []
    assert list(reader.read_many([Extent(len(data) + 5, 10)])) == []
