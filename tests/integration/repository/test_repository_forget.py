"""A forget that was cut short is done again, and what stays is kept once."""

import shutil
from collections import Counter
from itertools import count
from pathlib import Path

import pytest

from atoll.model.errors import RepositoryUnreachableError
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.points import POINTS
from atoll.repository.repository import Repository
from atoll.repository.wrapping import WrappedStore
from repository_parts import CHUNK, CountingStore, MemoryDisk, image, noise, point


class KeepsPoints(WrappedStore):
    """A store that refuses to delete restore points, and everything else grants."""

    def delete(self, name: str) -> None:
        if name.startswith(POINTS):
            raise RepositoryUnreachableError(f"Could not delete {name}: not permitted.")
        super().delete(name)


@pytest.fixture
def committed(place: Path, repository: Repository) -> Path:
    """Three points of one commit, and two of another."""
    disk = image(repository.copy_disk(MemoryDisk(noise(1, 3 * CHUNK))))
    repository.commit([point(name, disk) for name in ("p1", "p2", "p3")])
    disk = image(repository.copy_disk(MemoryDisk(noise(2, 3 * CHUNK))))
    repository.commit([point(name, disk, at=2000.0) for name in ("p4", "p5")])
    return place


def kept(place: Path, key: KeyFile) -> Counter[str]:
    """How many objects each point is in."""
    with Repository.open(place, key) as repository:
        log = repository._log
        names = [info.name for info in repository._store.list(POINTS)]
        return Counter(point.id for name in names for point in log.read(name).points)


def test_refused_again_and_again_it_writes_what_stays_once(committed: Path, key: KeyFile) -> None:
    for _ in range(3):
        with (
            Repository(KeepsPoints(LocalStore.open(committed)), key) as repository,
            pytest.raises(RepositoryUnreachableError, match="not permitted"),
        ):
            repository.forget({"p1", "p4"})
    assert kept(committed, key) == {"p1": 1, "p2": 2, "p3": 2, "p4": 1, "p5": 1}
    with Repository.open(committed, key) as repository:
        assert [gone.id for gone in repository.forget({"p1", "p4"})] == ["p1", "p4"]
    assert kept(committed, key) == {"p2": 1, "p3": 1, "p5": 1}


@pytest.mark.parametrize("then", [{"p1", "p4"}, {"p1", "p2", "p4"}], ids=["the same", "more"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_cut_short_anywhere_and_done_again_it_leaves_each_point_once(
    committed: Path, key: KeyFile, tmp_path: Path, when: str, then: set[str]
) -> None:
    for at in count(1):
        place = tmp_path / f"cut{at}"
        shutil.copytree(committed, place)
        store = CountingStore(LocalStore.open(place), at, when)
        try:
            with Repository(store, key) as repository:
                repository.forget({"p1", "p4"})
        except RepositoryUnreachableError:
            assert store.fired
        with Repository.open(place, key) as repository:
            repository.forget(then)
            assert repository.verify().damaged == ()
        assert kept(place, key) == dict.fromkeys({"p1", "p2", "p3", "p4", "p5"} - then, 1)
        if not store.fired:
            break
    assert at > 4
