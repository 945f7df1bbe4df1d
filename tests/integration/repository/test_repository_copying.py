"""Copying disks: what is read, what is stored, and that it comes back byte for byte."""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.model.errors import (
    AtollError,
    RepositoryDamagedError,
    RepositoryUnreachableError,
    StorageUnreachableError,
)
from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.repository import Repository
from repository_parts import CHUNK, MemoryDisk, image, noise, point


def _content(reader: BlockReader) -> bytes:
    return reader.read(0, reader.size_bytes)


@pytest.mark.parametrize("piece", [1 << 30, 1000, 4096])
def test_a_full_copy_comes_back(repository: Repository, piece: int) -> None:
    data = noise(1, 300 * CHUNK) + bytes(40 * CHUNK) + b"text " * 9000 + b"tail"
    told: list[int] = []
    copied = repository.copy_disk(MemoryDisk(data, piece=piece), progress=told.append)
    assert copied.read_bytes == len(data) == sum(told)
    assert copied.new_chunks >= 300
    assert copied.zero_bytes == 40 * CHUNK
    repository.commit([point("p1", image(copied))])
    reader = repository.open_disk(repository.find("db1").disks[0])
    assert isinstance(reader, BlockReader)
    assert _content(reader) == data
    for offset, length in ((0, 1), (CHUNK - 1, 2), (len(data) - 3, 50), (len(data), 9), (7, 99999)):
        assert reader.read(offset, length) == data[offset : offset + length]
    wanted = [Extent(3, 5), Extent(290 * CHUNK + 1, 60 * CHUNK), Extent(len(data) - 1, 1)]
    parts: dict[int, bytes] = dict(reader.read_many(wanted))
    for extent in wanted:
        joined = b"".join(parts[at] for at in sorted(parts) if extent.offset <= at < extent.end)
        assert joined == data[extent.offset : extent.end]
    assert list(reader.holes()) == [Extent(300 * CHUNK, 40 * CHUNK)]
    reader.close()
    reader.close()


def test_holes_are_not_read(repository: Repository) -> None:
    data = noise(1, CHUNK) + bytes(10 * CHUNK) + noise(2, CHUNK)
    disk = MemoryDisk(data, holes=[Extent(CHUNK + 10, 9 * CHUNK)])
    copied = repository.copy_disk(disk)
    assert copied.read_bytes == 4 * CHUNK  # the hole's ragged ends are read as whole chunks
    assert all(extent.end <= 2 * CHUNK or extent.offset >= 10 * CHUNK for extent in disk.reads)
    repository.commit([point("p1", image(copied))])
    assert _content(repository.open_disk(image(copied))) == data


def test_an_increment_reads_the_changes_and_stores_little(repository: Repository) -> None:
    old = noise(1, 1000 * CHUNK)
    first = image(repository.copy_disk(MemoryDisk(old)))
    repository.commit([point("p1", first)])
    new = bytearray(old)
    new[500 * CHUNK + 7] ^= 1
    disk = MemoryDisk(bytes(new))
    copied = repository.copy_disk(disk, extents=[Extent(500 * CHUNK + 7, 1)], parent=first)
    assert disk.reads == [Extent(500 * CHUNK, CHUNK)]
    assert (copied.read_bytes, copied.new_chunks) == (CHUNK, 1)
    assert copied.stored_bytes < CHUNK + 3 * 8192
    repository.commit([point("p2", image(copied), at=2000.0)])
    assert _content(repository.open_disk(repository.find("db1@latest").disks[0])) == new
    assert _content(repository.open_disk(repository.find("db1@p1").disks[0])) == old


def test_the_same_content_is_stored_once_across_disks_and_repositories_opened_anew(
    repository: Repository, place: Path, key: KeyFile
) -> None:
    data = noise(1, 20 * CHUNK)
    copied = repository.copy_disk(MemoryDisk(data + data))
    assert (copied.new_chunks, copied.known_chunks) == (20, 20)
    repository.commit([point("p1", image(copied))])
    with Repository.open(place, key) as other:
        again = other.copy_disk(MemoryDisk(data + data))
        assert (again.new_chunks, again.stored_bytes) == (0, 0)
        assert again.root == copied.root


SIZES = st.integers(0, 40 * CHUNK)


@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(SIZES, st.lists(st.tuples(SIZES, SIZES), max_size=4)), max_size=5))
@pytest.mark.parametrize("chunk_bytes", [CHUNK, 16 * CHUNK])
def test_increments_that_grow_and_shrink_come_back(
    tmp_path: Path,
    key: KeyFile,
    chunk_bytes: int,
    steps: list[tuple[int, list[tuple[int, int]]]],
) -> None:
    place = tmp_path / "any"
    if not place.exists():
        Repository.create(place, key, chunk_bytes=chunk_bytes).close()
    repository = Repository.open(place, key)
    data = noise(0, 17 * CHUNK + 100)
    latest = image(repository.copy_disk(MemoryDisk(data)))
    for step, (size, changes) in enumerate(steps):
        new = bytearray(data[:size] + bytes(max(0, size - len(data))))
        extents = []
        for start, length in changes:
            end = min(start + length % (3 * CHUNK) + 1, size)
            if start < end:
                new[start:end] = noise(step, end - start) if step % 2 else bytes(end - start)
                extents.append(Extent(start, end - start))
        data = bytes(new)
        copied = repository.copy_disk(MemoryDisk(data), extents=extents, parent=latest)
        latest = image(copied)
    repository.commit([point(latest.root, latest)])
    reader = repository.open_disk(latest)
    assert _content(reader) == data
    for hole in reader.holes():
        assert not any(data[hole.offset : hole.end])
    reader.close()
    repository.close()


def test_a_reader_that_gives_too_little_is_refused(repository: Repository) -> None:
    class Short(MemoryDisk):
        def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
            for offset, data in super().read_many(extents):
                yield offset, data[:-1]

    with pytest.raises(StorageUnreachableError, match="gave no bytes"):
        repository.copy_disk(Short(noise(1, 10 * CHUNK)))


def test_after_a_failed_copy_nothing_of_the_session_can_be_committed(
    repository: Repository,
) -> None:
    class Failing(MemoryDisk):
        def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
            raise RepositoryUnreachableError("The cable is out; plug it in.")

    good = image(repository.copy_disk(MemoryDisk(noise(1, 10 * CHUNK))))
    with pytest.raises(RepositoryUnreachableError, match="cable"):
        repository.copy_disk(Failing(noise(2, 10 * CHUNK)))
    with pytest.raises(RepositoryUnreachableError, match="nothing of it is committed"):
        repository.commit([point("p1", good)])
    assert repository.points() == []
    with pytest.raises(RepositoryDamagedError, match="copy it again"):
        repository.commit([point("p1", good)])
    again = image(repository.copy_disk(MemoryDisk(noise(1, 10 * CHUNK))))
    repository.commit([point("p1", again)])
    assert _content(repository.open_disk(again)) == noise(1, 10 * CHUNK)


def test_a_point_that_names_what_is_not_there_is_refused(
    repository: Repository, place: Path, key: KeyFile
) -> None:
    with Repository.open(place, key) as other:
        theirs = image(other.copy_disk(MemoryDisk(noise(1, 3 * CHUNK))))
        with pytest.raises(RepositoryDamagedError, match="nothing was committed"):
            repository.commit([point("p1", theirs)])
        with pytest.raises(RepositoryDamagedError):
            repository.copy_disk(MemoryDisk(b"x"), extents=[], parent=theirs)
    assert repository.points() == []


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 50 * CHUNK])
def test_blobs_of_any_size(repository: Repository, place: Path, key: KeyFile, size: int) -> None:
    data = noise(1, size)
    name = repository.put_blob(data)
    assert repository.get_blob(name) == data  # readable before the commit
    copied = repository.copy_disk(MemoryDisk(b""))
    repository.commit([point("p1", image(copied, extent_map=name))])
    with Repository.open(place, key) as other:
        assert other.get_blob(other.find("db1").disks[0].extent_map) == data
        assert other.put_blob(data) == name


def test_several_disks_at_once_and_several_writers_at_once(
    place: Path, key: KeyFile, repository: Repository
) -> None:
    shared = noise(7, 200 * CHUNK)
    failures: list[AtollError] = []

    def write(number: int, writer: Repository) -> None:
        try:
            data = shared + noise(number, 100 * CHUNK)
            parts: list[threading.Thread] = []
            images = []
            for half in (data, data[: len(data) // 2]):

                def copy(half: bytes = half) -> None:
                    images.append(image(writer.copy_disk(MemoryDisk(half))))

                parts.append(threading.Thread(target=copy))
            for part in parts:
                part.start()
            for part in parts:
                part.join()
            writer.commit([point(f"p{number}", *images, vm=f"vm{number}")])
        except AtollError as error:
            failures.append(error)

    writers = [Repository.open(place, key) for _ in range(6)]
    threads = [
        threading.Thread(target=write, args=(number, writer))
        for number, writer in enumerate(writers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(repository.points()) == 6
    for number in range(6):
        data = shared + noise(number, 100 * CHUNK)
        contents = {
            _content(repository.open_disk(disk)) for disk in repository.find(f"vm{number}").disks
        }
        assert contents == {data, data[: len(data) // 2]}
    assert repository.verify().damaged == ()


def test_an_interrupted_copy_stores_little_twice(place: Path, key: KeyFile) -> None:
    Repository.create(place, key, chunk_bytes=CHUNK).close()
    data = noise(1, 400 * CHUNK)
    with Repository(LocalStore.open(place), key, pack_bytes=2 * CHUNK) as writer:
        writer.copy_disk(MemoryDisk(data))  # 200 packs, a segment after each 64; no commit
    with Repository.open(place, key) as writer:
        again = writer.copy_disk(MemoryDisk(data))
        assert 0 < again.new_chunks <= 400 - 3 * 64 * 2 + 2  # a pack or two held table pages
        writer.commit([point("p1", image(again))])
        assert _content(writer.open_disk(image(again))) == data
