"""Runs whose snapshots are gone from the storage, served from the repository, with what changed."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.model.errors import ConfigurationError, UnknownPointError
from atoll.model.extents import Extent
from atoll.repository.keys import create_key_file
from atoll.repository.repository import Repository
from atoll.service import serving as module
from atoll.service.serving import serving
from repository_parts import CHUNK, MemoryDisk, image, noise, point


class Runs:
    """A storage that has snapshots of these runs, as far as finding them goes."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find(self, engine: object, reference: str) -> Any:
        if reference == "latest" and self.names:
            reference = self.names[-1]
        if reference not in self.names:
            raise UnknownPointError(f"the storage has no {reference}")
        return SimpleNamespace(name=reference, taken_at=float(reference[0]))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """db1 in runs 1-old, 2-new and 3-newest, app1 since 2-new."""
    key = create_key_file(tmp_path / "key")
    with Repository.create(tmp_path / "repo", key, chunk_bytes=CHUNK) as repository:
        old, new = bytearray(noise(1, 4 * CHUNK)), bytearray(noise(1, 4 * CHUNK))
        new[2 * CHUNK] ^= 1
        before = image(repository.copy_disk(MemoryDisk(bytes(old))))
        repository.commit([point("1-old", before)])
        after = image(repository.copy_disk(MemoryDisk(bytes(new))))
        stranger = replace(point("2-new", after, vm="app1"), id="app1", instance_uuid="else")
        repository.commit([point("2-new", after, at=2000.0), stranger])
        repository.commit([point("3-newest", after, at=3000.0)])
        yield repository


@pytest.fixture
def serve(repository: Repository, monkeypatch: pytest.MonkeyPatch):
    """Names, runs and what changed of what a reference gives."""

    def serve(
        runs: Sequence[str], reference: str, since: str | None
    ) -> dict[str, tuple[str, str, list[Extent] | None]]:
        monkeypatch.setattr(module, "find_run", Runs(*runs).find)
        site: Any = SimpleNamespace(
            engine=lambda: None,
            repository=lambda: repository,
            slots=lambda: SimpleNamespace(serving=nullcontext),
        )
        with serving(site, reference, since) as vms:
            return {
                vm.name: (
                    vm.run,
                    vm.since,
                    list(vm.disks[0].changed()) if vm.disks[0].changed else None,
                )
                for vm in vms
            }

    return serve


def test_both_runs_come_from_the_repository_when_one_is_gone(serve) -> None:
    changed = [Extent(2 * CHUNK, CHUNK)]
    whole = [Extent(0, 4 * CHUNK)]
    expected = {"db1": ("2-new", "1-old", changed), "app1": ("2-new", "1-old", whole)}
    for runs in ((), ("2-new",), ("1-old",)):
        assert serve(runs, "2-new", "1-old") == expected
    # The newest that the storage has, although the repository has a newer one.
    assert serve(("2-new",), "latest", "1-old") == expected
    assert serve((), "latest", "2") == {"db1": ("3-newest", "2-new", [])}
    assert serve((), "2-new", None) == dict.fromkeys(("db1", "app1"), ("2-new", "", None))


def test_what_nobody_has_is_told_as_the_storage_tells_it(
    serve, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownPointError, match="the storage has no 0-none"):
        serve(("2-new",), "2-new", "0-none")

    with pytest.raises(UnknownPointError, match="Run 2-new is newer than 1-old"):
        serve(("1-old", "2-new"), "1-old", "2-new")

    def no_repository() -> Repository:
        raise ConfigurationError("no section [repository]")

    monkeypatch.setattr(module, "find_run", Runs().find)
    site: Any = SimpleNamespace(
        engine=lambda: None,
        repository=no_repository,
        slots=lambda: SimpleNamespace(serving=nullcontext),
    )
    with pytest.raises(UnknownPointError, match="the storage has no 2-new"), serving(site, "2-new"):
        pass
