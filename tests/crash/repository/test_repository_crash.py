"""Who is killed at any change leaves every committed point whole, and the next goes on from there."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.model.errors import RepositoryUnreachableError
from atoll.model.extents import Extent
from atoll.model.points import Evidence
from atoll.repository.config import create_config
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.repository import Repository
from repository_parts import CHUNK, CountingStore, MemoryDisk, image, noise, point

OLD = noise(1, 40 * CHUNK)
NEW = OLD[: 10 * CHUNK] + noise(2, 20 * CHUNK) + OLD[30 * CHUNK :]
OTHER = noise(3, 10 * CHUNK)
PACK = 8 * CHUNK


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # a kill needs no true fsync
        yield Path(folder)


def _first_point(place: Path, key: KeyFile) -> None:
    with Repository.create(place, key, chunk_bytes=CHUNK) as repository:
        disk = repository.copy_disk(MemoryDisk(OLD))
        repository.commit([point("p1", image(disk), at=1.0)])


def _back_up(place: Path, key: KeyFile, wrap: Callable[[LocalStore], CountingStore]) -> None:
    store = wrap(LocalStore.open(place))
    with Repository(store, key, pack_bytes=PACK) as repository:
        parent = repository.find("p1").disks[0]
        changed = [Extent(10 * CHUNK, 20 * CHUNK)]
        disk = repository.copy_disk(MemoryDisk(NEW), extents=changed, parent=parent)
        other = repository.copy_disk(MemoryDisk(OTHER))
        blob = repository.put_blob(b"map" * 1000)
        repository.commit(
            [
                point("p2", image(disk, blob), at=2.0),
                point("p2-app", image(other), vm="app1", at=2.0),
            ]
        )
        repository.add_evidence("p1", Evidence(1.0, True, 1.0, "ok"))


def _prune(place: Path, key: KeyFile, wrap: Callable[[LocalStore], CountingStore]) -> None:
    with Repository(wrap(LocalStore.open(place)), key, pack_bytes=PACK) as repository:
        repository.forget({"gone"})
        repository.prune()


def _wasteful(place: Path, key: KeyFile) -> None:
    """A point that goes, whose packs hold some of what stays; and what killed writers leave."""
    Repository.create(place, key, chunk_bytes=CHUNK).close()
    with Repository(LocalStore.open(place), key, pack_bytes=PACK) as repository:
        mixed = b"".join(noise(50 + n, 3 * CHUNK) + OLD[n * CHUNK :][:CHUNK] for n in range(6))
        disk = repository.copy_disk(MemoryDisk(mixed))
        repository.commit([point("gone", image(disk), at=0.5)])
        repository.add_evidence("gone", Evidence(1.0, True, 1.0, "ok"))
        disk = repository.copy_disk(MemoryDisk(OLD))
        repository.commit([point("p1", image(disk), at=1.0)])
    with Repository(LocalStore.open(place), key, pack_bytes=PACK) as repository:
        repository.copy_disk(MemoryDisk(OTHER + noise(7, 10 * CHUNK)))
        repository.get_blob(repository.put_blob(b"flush"))
    (place / "tmp" / "ab").write_bytes(b"half")


Work = Callable[[Path, KeyFile, Callable[[LocalStore], CountingStore]], None]
WORK: dict[str, tuple[Callable[[Path, KeyFile], None], Work]] = {
    "backup": (_first_point, _back_up),
    "prune": (_wasteful, _prune),
}


def _check(place: Path, key: KeyFile) -> frozenset[str]:
    """What is committed is whole, a prune works, and nothing is left of what was not committed."""
    contents = {"p1": OLD, "p2": NEW, "p2-app": OTHER, "gone": None}
    with Repository(LocalStore.open(place), key, pack_bytes=PACK) as repository:
        points = repository.points()
        identities = frozenset(found.id for found in points)
        assert identities - {"gone"} in ({"p1"}, {"p1", "p2", "p2-app"})
        for _ in range(2):
            assert repository.verify().damaged == ()
            for found in points:
                reader = repository.open_disk(found.disks[0])
                content = reader.read(0, reader.size_bytes)
                reader.close()
                assert contents[found.id] in (None, content)
                if found.disks[0].extent_map:
                    assert repository.get_blob(found.disks[0].extent_map) == b"map" * 1000
            repository.prune()
        assert repository.prune_plan().unused_packs == 0
    for folder in ("tmp", "marks", "sessions"):
        assert not (place / folder).exists() or list((place / folder).iterdir()) == []
    return identities


def _in_child(work: Callable[[], None]) -> int:
    """Run in a forked process; returns the signal that ended it, 0 if it came to its end."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


@pytest.mark.parametrize(
    ("how", "stride"), [("kill", 1), ("raise", 3), pytest.param("raise", 1, marks=pytest.mark.soak)]
)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", WORK)
def test_every_change_of_the_store(
    memory: Path, key: KeyFile, what: str, when: str, how: str, stride: int
) -> None:
    prepare, work = WORK[what]
    seen = set()
    number = 1 - stride
    fired = True
    while fired:
        number += stride
        place = memory / f"r{number}"
        prepare(place, key)
        stores: list[CountingStore] = []

        def wrap(
            store: LocalStore, number: int = number, stores: list[CountingStore] = stores
        ) -> CountingStore:
            stores.append(CountingStore(store, number, when, how))
            return stores[-1]

        if how == "kill":
            ended = _in_child(lambda: work(place, key, wrap))  # noqa: B023
            fired = ended == signal.SIGKILL
            assert fired or ended == 0
        else:
            try:
                work(place, key, wrap)
            except RepositoryUnreachableError:
                assert stores[0].fired
            fired = stores[0].fired
        seen.add(_check(place, key))
        if what == "backup":
            _resume(place, key)
        shutil.rmtree(place)
    assert number > 7
    if what == "backup":
        assert seen == {frozenset({"p1"}), frozenset({"p1", "p2", "p2-app"})}  # all or none
    else:
        assert seen == {
            frozenset({"p1"}),
            *([frozenset({"p1", "gone"})] if when == "before" else []),
        }


def _resume(place: Path, key: KeyFile) -> None:
    with Repository.open(place, key) as repository:
        if len(repository.points()) == 1:
            _back_up(place, key, CountingStore)
    assert _check(place, key) == {"p1", "p2", "p2-app"}


SYSCALLS = ("open", "writev", "fsync", "link", "rename", "unlink", "mkdir")


@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("what", WORK)
def test_every_system_call_that_changes_the_directory(
    memory: Path, key: KeyFile, what: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, work = WORK[what]
    count = 0
    fatal = 0

    for call in SYSCALLS:
        real = getattr(os, call)

        def counted(*args: object, real: object = real, **more: object) -> object:
            nonlocal count
            count += 1
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **more)  # type: ignore[operator]

        monkeypatch.setattr(os, call, counted)
    number = 0
    ended: int = signal.SIGKILL
    while ended == signal.SIGKILL:
        number += step
        place = memory / f"r{number}"
        prepare(place, key)
        count, fatal = 0, number
        ended = _in_child(lambda: work(place, key, CountingStore))  # noqa: B023
        fatal = 0
        _check(place, key)
        shutil.rmtree(place)
    assert ended == 0
    assert number > 100


def test_creation_killed_anywhere_is_repeated(tmp_path: Path, key: KeyFile) -> None:
    for number in (1, 2):
        for when in ("before", "after"):
            place = tmp_path / f"{when}{number}"
            store = CountingStore(LocalStore.create(place), number, when)
            with pytest.raises(RepositoryUnreachableError):
                create_config(store, key, CHUNK)
            assert store.fired
            if (number, when) != (2, "after"):
                Repository.create(place, key, chunk_bytes=CHUNK).close()
            Repository.open(place, key).close()
