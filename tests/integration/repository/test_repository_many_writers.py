"""Many processes write at once, others prune and verify in loops, and everything is there after."""

import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.model.errors import RunConflictError, UnknownPointError
from atoll.model.extents import Extent
from atoll.model.points import DiskImage, Evidence
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.repository import Repository
from repository_parts import CHUNK, MemoryDisk, image, noise, point

SHARED = noise(0, 12 * CHUNK)
"""All write it, and whose copy of it is kept changes."""
PACK = 8 * CHUNK
KEPT = 1


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def opened(place: Path, key: KeyFile) -> Repository:
    return Repository(LocalStore.open(place), key, pack_bytes=PACK)


def content(writer: int, turn: int) -> bytes:
    """What a writer's disk holds after so many turns: known to whoever reads it back."""
    chance = random.Random(writer)
    data = bytearray(SHARED + noise(writer + 1, 8 * CHUNK))
    for number in range(turn + 1):
        at = chance.randrange(len(data) // CHUNK) * CHUNK
        data[at : at + CHUNK] = noise(writer * 1000 + number, CHUNK)
        if number % 5 == 4:  # what another has thrown away may come back
            data[: 4 * CHUNK] = noise(number // 5 % 3 + 5000, 4 * CHUNK)
    return bytes(data)


def changed(old: bytes, new: bytes) -> list[Extent]:
    return [
        Extent(at, CHUNK)
        for at in range(0, len(new), CHUNK)
        if old[at : at + CHUNK] != new[at : at + CHUNK]
    ]


def while_another_tidies(work: Callable[[], object]) -> None:
    while True:
        try:
            work()
        except RunConflictError as error:
            assert "tidied by another" in str(error)
            time.sleep(0.01)
        else:
            return


def write(place: Path, key: KeyFile, writer: int, turns: int) -> None:
    latest: DiskImage | None = None
    for turn in range(turns):
        data = content(writer, turn)
        with opened(place, key) as repository:
            incremental = latest is not None and turn % 3 != 0
            disk = repository.copy_disk(
                MemoryDisk(data),
                extents=changed(content(writer, turn - 1), data) if incremental else None,
                parent=latest if incremental else None,
            )
            latest = image(disk)
            name = f"w{writer}-{turn}"
            repository.commit([point(name, latest, vm=f"vm{writer}", at=float(turn + 1))])
            repository.add_evidence(name, Evidence(1.0, True, 1.0, "ok"))
            if turn >= KEPT:
                while_another_tidies(
                    lambda: repository.forget({f"w{writer}-{turn - KEPT}"})  # noqa: B023
                )


def until(stop: Path, work: Callable[[], None]) -> None:
    rounds = 0
    while not stop.exists():
        work()
        rounds += 1
    assert rounds


def prune(place: Path, key: KeyFile) -> None:
    with opened(place, key) as repository:
        while_another_tidies(repository.prune)


def verify(place: Path, key: KeyFile) -> None:
    with opened(place, key) as repository:
        assert repository.verify().damaged == ()


def read(place: Path, key: KeyFile) -> None:
    """Points that are there when they are listed are read whole, or were forgotten meanwhile."""
    with opened(place, key) as repository:
        for made in repository.points():
            try:
                reader = repository.open_disk(made.disks[0])
            except UnknownPointError:
                continue
            writer, turn = made.id[1:].split("-")
            assert reader.read(0, reader.size_bytes) == content(int(writer), int(turn))
            reader.close()


def start(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            if code:
                traceback.print_exc()
                sys.stderr.flush()
            os._exit(code)
    return child


@pytest.mark.parametrize(("count", "turns"), [(6, 3), pytest.param(16, 60, marks=pytest.mark.soak)])
def test_many_writers_beside_prune_verify_and_readers(
    memory: Path, key: KeyFile, count: int, turns: int
) -> None:
    place, stop = memory / "repository", memory / "stop"
    Repository.create(place, key, chunk_bytes=CHUNK).close()
    beside = [
        start(lambda: until(stop, lambda: work(place, key)))  # noqa: B023 - forked in this round
        for work in (prune, verify, read)
    ]
    writers = [
        start(lambda: write(place, key, number, turns))  # noqa: B023
        for number in range(count)
    ]
    try:
        assert [os.waitpid(child, 0)[1] for child in writers] == [0] * count
    finally:
        stop.touch()
        ends = [os.waitpid(child, 0)[1] for child in beside]
    assert ends == [0] * len(beside)
    names = {f"w{w}-{turn}" for w in range(count) for turn in range(turns - KEPT, turns)}
    with opened(place, key) as repository:
        for _ in range(2):
            assert {made.id for made in repository.points()} == names
            assert repository.verify().damaged == ()
            for made in repository.points():
                reader = repository.open_disk(made.disks[0])
                writer, turn = made.id[1:].split("-")
                assert reader.read(0, reader.size_bytes) == content(int(writer), int(turn))
                reader.close()
                assert len(repository.evidence(made.id)) == 1
            repository.prune()
        assert repository.prune().marked_packs == 0
        repository.forget(names)
        repository.prune()
    left = {path.relative_to(place).parts[0] for path in place.rglob("*") if path.is_file()}
    assert left == {"config", "keys", "lock"}


@pytest.mark.parametrize("turns", [3, pytest.param(40, marks=pytest.mark.soak)])
def test_writers_that_are_killed_beside_others(memory: Path, key: KeyFile, turns: int) -> None:
    """What a killed writer had committed is there; nothing of the rest is in the way."""
    place = memory / "repository"
    Repository.create(place, key, chunk_bytes=CHUNK).close()
    chance = random.Random(1)
    for turn in range(turns):
        victims = [
            start(lambda: write(place, key, number + 100 * turn, 50))  # noqa: B023
            for number in range(4)
        ]
        steady = start(lambda: write(place, key, 90 + 100 * turn, 3))  # noqa: B023
        pruner = start(lambda: [prune(place, key) for _ in range(3)])
        for victim in victims:
            time.sleep(chance.random() / 4)
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
        assert [os.waitpid(child, 0)[1] for child in (steady, pruner)] == [0, 0]
        verify(place, key)
        read(place, key)
        with opened(place, key) as repository:
            names = {made.id for made in repository.points()}
        assert {f"w{90 + 100 * turn}-{kept}" for kept in (2,)} <= names
    with opened(place, key) as repository:
        repository.forget(names)
        repository.prune()
    left = {path.relative_to(place).parts[0] for path in place.rglob("*") if path.is_file()}
    assert left == {"config", "keys", "lock"}
