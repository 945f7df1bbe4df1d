"""A writer or sweeper that fails or is killed at any change leaves every committed point readable."""

import os
import signal
from collections.abc import Callable
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


def _sweep(place: Path, key: KeyFile, wrap: Callable[[LocalStore], CountingStore]) -> None:
    with Repository(wrap(LocalStore.open(place)), key) as repository:
        repository.sweep()


def _check(place: Path, key: KeyFile) -> list[str]:
    """Everything committed is whole, a sweep works, and the next backup too."""
    with Repository.open(place, key) as repository:
        points = repository.points()
        identities = [found.id for found in points]
        assert identities in (["p1"], ["p1", "p2", "p2-app"])
        for _ in range(2):
            assert repository.verify().damaged == ()
            contents = {"p1": OLD, "p2": NEW, "p2-app": OTHER}
            for found in points:
                reader = repository.open_disk(found.disks[0])
                assert reader.read(0, reader.size_bytes) == contents[found.id]
                if found.disks[0].extent_map:
                    assert repository.get_blob(found.disks[0].extent_map) == b"map" * 1000
            repository.sweep()
            assert repository.leftovers().size_bytes == 0
    return identities


def _changes(place: Path, key: KeyFile, work: Callable[..., None]) -> int:
    counter: list[CountingStore] = []

    def count(store: LocalStore) -> CountingStore:
        counter.append(CountingStore(store))
        return counter[0]

    work(place, key, count)
    return counter[0].changes


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


def _abandoned(place: Path, key: KeyFile) -> None:
    """Leave packs, segments and temporaries as killed writers do."""
    Repository.create(place, key, chunk_bytes=CHUNK).close()
    with Repository(LocalStore.open(place), key, pack_bytes=PACK) as repository:
        repository.copy_disk(MemoryDisk(noise(8, 20 * CHUNK)))  # no point will name this one
        disk = repository.copy_disk(MemoryDisk(OLD))
        repository.commit([point("p1", image(disk), at=1.0)])
    with Repository(LocalStore.open(place), key, pack_bytes=PACK) as repository:
        repository.copy_disk(MemoryDisk(OTHER + noise(7, 10 * CHUNK)))
        repository.get_blob(repository.put_blob(b"flush"))
    with Repository(LocalStore.open(place), key, pack_bytes=PACK) as repository:
        repository.copy_disk(MemoryDisk(noise(9, 30 * CHUNK)))
    (place / "tmp" / "ab").write_bytes(b"half")


WORK = {"backup": (_first_point, _back_up), "sweep": (_abandoned, _sweep)}


@pytest.mark.parametrize("how", ["raise", "kill"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["backup", "sweep"])
def test_every_change_of_the_store(
    tmp_path: Path, key: KeyFile, what: str, when: str, how: str
) -> None:
    prepare, work = WORK[what]
    prepare(tmp_path / "dry", key)
    total = _changes(tmp_path / "dry", key, work)
    assert total >= 7
    seen = set()
    for number in range(1, total + 1):
        place = tmp_path / f"r{number}"
        prepare(place, key)
        stores: list[CountingStore] = []

        def wrap(
            store: LocalStore,
            number: int = number,
            stores: list[CountingStore] = stores,
        ) -> CountingStore:
            stores.append(CountingStore(store, number, when, how))
            return stores[-1]

        if how == "kill":
            assert _in_child(lambda: work(place, key, wrap)) == signal.SIGKILL  # noqa: B023
        else:
            with pytest.raises(RepositoryUnreachableError):
                work(place, key, wrap)
            assert stores[0].fired
        seen.add(tuple(_check(place, key)))
        if what == "backup":
            _resume(place, key)
    if what == "backup":
        assert seen == {("p1",), ("p1", "p2", "p2-app")}  # all points of a commit or none


def _resume(place: Path, key: KeyFile) -> None:
    with Repository.open(place, key) as repository:
        if len(repository.points()) == 1:
            _back_up(place, key, CountingStore)
    assert _check(place, key) == ["p1", "p2", "p2-app"]


SYSCALLS = ("open", "writev", "fsync", "link", "unlink", "mkdir")


@pytest.mark.parametrize("what", ["backup", "sweep"])
def test_every_system_call_that_changes_the_directory(
    tmp_path: Path, key: KeyFile, what: str, monkeypatch: pytest.MonkeyPatch
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
    prepare(tmp_path / "dry", key)
    count = 0
    work(tmp_path / "dry", key, CountingStore)
    total = count
    assert total > 50
    fired = 0
    # Two threads write and read, so the order of calls varies a little; every number up to
    # the last few is reached all the same.
    for number in range(1, total - 4):
        place = tmp_path / f"r{number}"
        prepare(place, key)
        count, fatal = 0, number
        ended = _in_child(lambda: work(place, key, CountingStore))  # noqa: B023
        fatal = 0
        assert ended == signal.SIGKILL
        fired += 1
        _check(place, key)
    assert fired == total - 5


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
