"""Points copied into a repository of another key and chunk size are the same points with the same bytes."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from atoll.model.errors import RepositoryUnreachableError, UnknownPointError
from atoll.model.extents import Extent
from atoll.model.points import DiskImage, Evidence, RestorePoint
from atoll.model.progress import Silent
from atoll.repository.keys import Argon2Cost, KeyFile, Passphrase
from atoll.repository.local import LocalStore
from atoll.repository.repository import Repository
from atoll.repository.store import ObjectStore
from atoll.service.copying_points import PointsReport, copy_points
from repository_parts import CHUNK, CountingStore, Interposed, MemoryDisk, image, noise, point

OTHER = Passphrase("another place", Argon2Cost(64, 1, 1))
FIRST = noise(1, 40 * CHUNK)
SECOND = FIRST[: 11 * CHUNK] + noise(2, 2 * CHUNK) + FIRST[13 * CHUNK :]
THIRD = SECOND[: 30 * CHUNK] + bytes(3 * CHUNK) + SECOND[33 * CHUNK :] + noise(3, CHUNK // 2)
EVIDENCE = Evidence(5.0, True, 3.0, "it started", {"rows": 7})
CONTENT = {"p1": FIRST, "p2": SECOND, "p3": THIRD, "q2": FIRST[: 3 * CHUNK + 17]}


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about what survives a power cut."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def source(repository: Repository) -> Iterator[Repository]:
    """Three points of a VM and one of another, which is of the second run; one proven, one held."""
    parent: DiskImage | None = None
    for at, name in enumerate(["p1", "p2", "p3"], 1):
        made = [made_of(repository, name, CONTENT[name], at, parent)]
        parent = made[0].disks[0]
        if name == "p2":
            made.append(made_of(repository, "q2", CONTENT["q2"], at, None, run="p2", vm="web1"))
        repository.commit(made)
    repository.add_evidence("p2", EVIDENCE)
    repository.hold("p1", "audit", None)
    repository.hold("p1", "over long ago", 7.0)
    yield repository
    repository.close()


def made_of(
    repository: Repository,
    name: str,
    data: bytes,
    at: int,
    parent: DiskImage | None,
    run: str = "",
    vm: str = "db1",
) -> RestorePoint:
    extents = None if parent is None else [Extent(0, len(data))]
    copied = repository.copy_disk(MemoryDisk(data), extents=extents, parent=parent)
    made = point(name, image(copied, repository.put_blob(name.encode())), vm=vm, at=1000.0 + at)
    return replace(made, run=run or name, instance_uuid=vm, incremental=parent is not None)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "other"


@pytest.fixture
def target(there: Path) -> Callable[[], Repository]:
    """The other repository, opened anew each time."""
    Repository.create(there, OTHER, chunk_bytes=2 * CHUNK).close()
    return lambda: Repository(LocalStore.open(there), OTHER)


def copied(source: Repository, target: Callable[[], Repository]) -> PointsReport:
    with target() as repository:
        return copy_points(source, repository, Silent())


def same_points(source: Repository, target: Repository, names: set[str]) -> None:
    """These are there, word for word but for where their bytes lie, and nothing is damaged."""
    theirs = {each.id: each for each in source.points()}
    found = {each.id: each for each in target.points()}
    assert found.keys() == names
    for name, each in found.items():
        [disk], [original] = each.disks, theirs[name].disks
        reader = target.open_disk(disk)
        assert reader.read(0, reader.size_bytes) == CONTENT[name]
        reader.close()
        assert target.get_blob(disk.extent_map) == name.encode()
        placed = replace(
            disk,
            root=original.root,
            extent_map=original.extent_map,
            stored_bytes=original.stored_bytes,
        )
        assert replace(each, disks=(placed,)) == theirs[name]
    assert target.verify().damaged == ()


@pytest.mark.parametrize("chunk_bytes", [CHUNK, 4 * CHUNK])
def test_points_are_the_same_in_a_repository_of_their_own(
    source: Repository, there: Path, chunk_bytes: int
) -> None:
    with Repository.create(there, OTHER, chunk_bytes=chunk_bytes) as target:
        report = copy_points(source, target, Silent())
        same_points(source, target, {"p1", "p2", "p3", "q2"})
        assert (report.points, report.damaged) == (4, ())
        # Full copies of the first point of each VM, and of the others what changed.
        changed = len(FIRST) + len(CONTENT["q2"]) + (2 + 3 + 1) * CHUNK
        widest = len(FIRST) + len(CONTENT["q2"]) + (2 * 2 + 2) * 4 * CHUNK
        assert changed - CHUNK <= report.read_bytes <= widest
        assert report.read_bytes < 2 * len(FIRST)
        assert target.evidence("p2") == [EVIDENCE]
        [hold] = target.holds().found
        assert hold == source.holds().on("p1", 1e9)[0]
        assert copy_points(source, target, Silent()) == PointsReport(0, 0, 0, ())
        assert (target.evidence("p2"), len(target.holds().found)) == ([EVIDENCE], 1)
        assert source.key_id != target.key_id


def test_an_increment_starts_from_what_both_have(
    source: Repository, target: Callable[[], Repository]
) -> None:
    copied(source, target)
    with target() as other:
        other.forget({"p2", "p3"})
    source.forget({"p2"})
    report = copied(source, target)
    assert report.points == 1
    assert report.read_bytes < 12 * CHUNK  # from the first point to the third
    with target() as other:
        same_points(source, other, {"p1", "p3", "q2"})


@pytest.mark.parametrize("when", ["before", "after"])
def test_cut_off_anywhere_whole_runs_stay_and_the_rest_follows(
    source: Repository, there: Path, when: str
) -> None:
    runs = ({"p1"}, {"p1", "p2", "q2"}, {"p1", "p2", "q2", "p3"})
    met = set()
    for change in range(1, 1000):
        place = there.with_name(f"other{change}")
        Repository.create(place, OTHER, chunk_bytes=2 * CHUNK).close()
        store = CountingStore(LocalStore.open(place), change, when)
        with Repository(store, OTHER) as cut:
            try:
                copy_points(source, cut, Silent())
            except RepositoryUnreachableError:
                assert store.fired
        with Repository(LocalStore.open(place), OTHER) as other:
            names = {each.id for each in other.points()}
            assert names in (set(), *runs)
            met.add(len(names))
            report = copy_points(source, other, Silent())
            assert (report.points, report.damaged) == (4 - len(names), ())
            same_points(source, other, runs[-1])
            assert other.evidence("p2") == [EVIDENCE]
            assert len(other.holds().found) == 1
        if not store.fired:
            break
    assert met == {0, 1, 3, 4}


@pytest.mark.parametrize("gone", [{"p1"}, {"p2", "q2"}, {"p3"}])
def test_points_may_be_forgotten_at_any_time(
    source: Repository, place: Path, key: KeyFile, tmp_path: Path, gone: set[str]
) -> None:
    """Before every ninth of the source's calls, each time in a repository and a copy of their own."""
    for hold in source.holds().found:
        source.release(hold.name)
    for at in range(1, 10_000, 9):
        here, there = tmp_path / f"here{at}", tmp_path / f"there{at}"
        _clone(place, here)
        Repository.create(there, OTHER, chunk_bytes=2 * CHUNK).close()
        other = Repository(LocalStore.open(here), key)

        def between(other: Repository = other) -> None:
            other.forget(gone)
            other.prune()
            other.prune()

        beside = Interposed(LocalStore.open(here), at, between)
        with (
            Repository(cast(ObjectStore, beside), key) as reading,
            Repository(LocalStore.open(there), OTHER) as target,
        ):
            beside.calls = 0
            report = copy_points(reading, target, Silent())
            names = {each.id for each in target.points()}
            assert {"p1", "p2", "p3", "q2"} - gone <= names
            assert (report.points, report.damaged) == (len(names), ())
            same_points(source, target, names)
        other.close()
        if not beside.fired:
            break
    assert at > 40


def _clone(place: Path, here: Path) -> None:
    for path in place.rglob("*"):
        if path.is_file() and path.parent.name not in ("sessions", "tmp"):
            name = here / path.relative_to(place)
            name.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, name) if path.name != "lock" else name.touch()


def test_a_damaged_point_is_named_and_the_others_of_its_run_copied(
    source: Repository, place: Path, key: KeyFile, target: Callable[[], Repository]
) -> None:
    # The second run's first pack has what only p2 and q2 need.
    [found] = [each for each in source.points() if each.id == "q2"]
    root = bytes.fromhex(found.disks[0].root)
    [at] = source._source.index.locations(root)
    victim = place / "packs" / at.pack[:2] / at.pack
    data = bytearray(victim.read_bytes())
    data[at.entry.offset] ^= 1
    victim.write_bytes(data)
    with Repository(LocalStore.open(place), key) as again:
        report = copied(again, target)
        [damage] = report.damaged
        assert damage.object == "web1@p2"
        assert "damaged" in damage.detail
        with target() as other:
            same_points(again, other, {"p1", "p2", "p3"})
        assert copied(again, target).points == 0


def test_a_damaged_parent_in_the_copy_is_no_hindrance(
    source: Repository, there: Path, target: Callable[[], Repository]
) -> None:
    copied(source, target)
    with target() as other:
        other.forget({"p3"})
        [found] = [each for each in other.points() if each.id == "p2"]
        [at] = other._source.index.locations(bytes.fromhex(found.disks[0].root))
    victim = there / "packs" / at.pack[:2] / at.pack
    data = bytearray(victim.read_bytes())
    data[at.entry.offset] ^= 1
    victim.write_bytes(data)
    report = copied(source, target)
    assert (report.points, report.damaged) == (1, ())
    with target() as other:
        [found] = [each for each in other.points() if each.id == "p3"]
        reader = other.open_disk(found.disks[0])
        assert reader.read(0, len(THIRD)) == THIRD
        reader.close()


def test_a_hold_of_a_point_that_is_not_there_is_not_taken(
    source: Repository, target: Callable[[], Repository]
) -> None:
    [hold] = source.holds().on("p1", 1e9)
    with target() as other:
        with pytest.raises(UnknownPointError):
            other.take_hold(hold)
        assert other.holds().found == ()
