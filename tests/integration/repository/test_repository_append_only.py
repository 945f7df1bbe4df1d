"""A machine that may only add backs up and restores, and removes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.model.errors import ConfigurationError, RunConflictError
from atoll.repository.append_only import AppendOnlyStore
from atoll.repository.keys import KeyFile, create_key_file
from atoll.repository.local import LocalStore
from atoll.repository.repository import Repository
from repository_parts import CHUNK, MemoryDisk, image, noise, point


@pytest.fixture
def adding(place: Path, key: KeyFile, repository: Repository) -> Repository:
    return Repository(AppendOnlyStore(LocalStore.open(place)), key)


def test_it_backs_up_reads_and_verifies(adding: Repository, place: Path) -> None:
    data = noise(1, 20 * CHUNK)
    made = point("p1", image(adding.copy_disk(MemoryDisk(data))))
    adding.commit([made])
    reader = adding.open_disk(made.disks[0])
    assert reader.read(0, len(data)) == data
    reader.close()
    assert adding.verify().damaged == ()
    assert list((place / "sessions").iterdir()) == []


def test_it_removes_nothing(adding: Repository, place: Path, tmp_path: Path) -> None:
    adding.commit([point("p1", image(adding.copy_disk(MemoryDisk(noise(1, 20 * CHUNK)))))])
    slot = adding.keyring.add(create_key_file(tmp_path / "other"), "other")
    before = sorted(path for path in place.rglob("*") if path.is_file())
    refused: list[Callable[[], object]] = [
        adding.prune,
        adding.repair,
        adding.rebuild_index,
        lambda: adding.forget({"p1"}),
    ]
    for work in refused:
        with pytest.raises(ConfigurationError, match="only adds to the repository"):
            work()
    assert slot
    assert sorted(path for path in place.rglob("*") if path.is_file()) == before


def test_a_commit_that_came_too_late_is_taken_back(adding: Repository, place: Path) -> None:
    copied = image(adding.copy_disk(MemoryDisk(noise(1, 20 * CHUNK))))
    for path in (place / "sessions").iterdir():
        path.unlink()
    with pytest.raises(RunConflictError):
        adding.commit([point("p1", copied)])
    assert adding.points() == []
