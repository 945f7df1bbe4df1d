"""Killed at any change of the store while it copies: whoever goes on reads only what is missing."""

import os
import signal
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from atoll.model.extents import total_bytes
from atoll.repository import copying, drafts
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.repository import Repository
from repository_parts import CountingStore, MemoryDisk, image, noise, point

CHUNK = 16384
UNIT = 128 << 10
DATA = noise(1, 10 * UNIT) + noise(2, UNIT) * 2 + bytes(UNIT) + noise(3, 11 * UNIT)


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # a kill needs no true fsync
        yield Path(folder)


@pytest.fixture(autouse=True)
def _small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "_MOST_OF_THE_TIME", 0)
    monkeypatch.setattr(copying, "_READ_BYTES", UNIT)
    monkeypatch.setattr(copying, "_PACK_BYTES", UNIT // 2)


def _copy(place: Path, key: KeyFile, number: int, when: str) -> None:
    store = CountingStore(LocalStore.open(place), number, when, "kill")
    with Repository(store, key, pack_bytes=UNIT) as repository:
        draft = repository.draft("r1", 3600.0, 0.0)
        copied = repository.copy_disk(MemoryDisk(DATA), draft=draft.disk("u1", 2000), threads=1)
        repository.commit([point("r1", image(copied))])
        draft.drop()


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.soak), 17])
@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.soak)])
def test_killed_at_any_change(memory: Path, key: KeyFile, when: str, stride: int) -> None:
    saved = []
    for number in count(1, stride):
        place = memory / f"r{number}"
        Repository.create(place, key, chunk_bytes=CHUNK).close()
        child = os.fork()
        if child == 0:
            try:
                _copy(place, key, number, when)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        with Repository(LocalStore.open(place), key, pack_bytes=UNIT) as repository:
            repository.prune()
            if not repository.points():
                disk = MemoryDisk(DATA)
                draft = repository.draft("r1", 3600.0)
                saved.append(draft.copied_bytes)
                copied = repository.copy_disk(disk, draft=draft.disk("u1", 2000))
                assert total_bytes(disk.reads) == len(DATA) - saved[-1]
                repository.commit([point("r1", image(copied))])
            (made,) = repository.points()
            reader = repository.open_disk(made.disks[0])
            assert reader.read(0, len(DATA)) == DATA
            reader.close()
            assert repository.verify().damaged == ()
            repository.prune()
            assert repository.drafts() == {}
            assert not any((place / "drafts").glob("*"))
        if not killed:
            break
    assert number > stride
    assert saved[0] == 0, "it was killed before its first draft"
    assert saved[-1] > len(DATA) // 2
