"""A mirror is the same repository, whatever is killed, written, forgotten or pruned meanwhile."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.model.errors import (
    RepositoryUnreachableError,
    RunConflictError,
    StorageConflictError,
)
from atoll.model.points import Evidence, RestorePoint
from atoll.repository.inspection import ByKey, by_form
from atoll.repository.keys import Argon2Cost, KeyFile, Passphrase, create_key_file
from atoll.repository.local import LocalStore
from atoll.repository.mirror import DamagedObject, Kind, MirrorReport, kind_of, mirror
from atoll.repository.repository import Repository
from atoll.repository.store import ObjectInfo
from repository_parts import CHUNK, CountingStore, Interposed, MemoryDisk, image, noise, point

PACK = 16 << 10
FIRST, SECOND, THIRD = noise(1, 6 * CHUNK), noise(2, 5 * CHUNK), noise(3, 4 * CHUNK)
CHEAP = Argon2Cost(64, 1, 1)
EVIDENCE = Evidence(5.0, True, 3.0, "it started", {"rows": 7})


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of objects are written here, and nothing here is about what survives a power cut."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def opened(
    place: Path, key: KeyFile, repository: Repository
) -> Iterator[Callable[..., Repository]]:
    made: list[Repository] = []

    def opening(where: Path = place) -> Repository:
        made.append(Repository(LocalStore.open(where), key, pack_bytes=PACK))
        return made[-1]

    yield opening
    for each in made:
        each.close()


@pytest.fixture
def source(opened: Callable[..., Repository]) -> Repository:
    """Two restore points, one proven and held."""
    filled = opened()
    commit(filled, "p1", FIRST)
    commit(filled, "p2", SECOND)
    filled.add_evidence("p1", EVIDENCE)
    filled.hold("p1", "audit")
    return filled


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "second"


def commit(repository: Repository, name: str, data: bytes) -> RestorePoint:
    disk = image(repository.copy_disk(MemoryDisk(data)), repository.put_blob(b"map of " + data[:9]))
    made = point(name, disk)
    repository.commit([made])
    return made


def holds_exactly(repository: Repository, **points: bytes) -> None:
    """These points are there with their bytes and maps, and all is as it was written."""
    found = {made.id: made for made in repository.points()}
    assert found.keys() == points.keys()
    for name, data in points.items():
        disk = found[name].disks[0]
        reader = repository.open_disk(disk)
        assert reader.read(0, reader.size_bytes) == data
        reader.close()
        assert repository.get_blob(disk.extent_map) == b"map of " + data[:9]
    assert repository.verify().damaged == ()


def objects(place: Path) -> dict[str, bytes]:
    """All that is copied, by name."""
    found = {}
    for path in place.rglob("*"):
        name = str(path.relative_to(place))
        if path.is_file() and not name.startswith(("lock", "tmp", "sessions", "marks")):
            found[name] = path.read_bytes()
    return found


def bare(place: Path, there: Path) -> MirrorReport:
    """A mirror without the key."""
    return mirror(LocalStore.open(place), LocalStore.create(there), by_form)


@pytest.mark.parametrize("with_key", [True, False])
def test_a_mirror_is_the_same_repository(
    source: Repository,
    place: Path,
    there: Path,
    opened: Callable[..., Repository],
    with_key: bool,
) -> None:
    told: list[int] = []
    done: list[int] = []
    target = LocalStore.create(there)
    assert source.kind_of(target) is Kind.NOTHING
    if with_key:
        report = source.mirror_to(target, begin=told.append, progress=done.append)
    else:
        store = LocalStore.open(place)
        report = mirror(store, target, by_form, begin=told.append, progress=done.append)
    assert objects(there) == objects(place)
    assert report == MirrorReport(
        True, len(objects(there)), sum(map(len, objects(there).values())), (), ()
    )
    assert [sum(done)] == told == [report.moved_bytes - len((place / "config").read_bytes())]
    assert source.kind_of(target) is Kind.SAME
    copy = opened(there)
    holds_exactly(copy, p1=FIRST, p2=SECOND)
    assert copy.evidence("p1") == [EVIDENCE]
    assert copy.holds() == source.holds()


def test_a_second_mirror_moves_what_is_new(
    source: Repository, there: Path, opened: Callable[..., Repository]
) -> None:
    source.mirror_to(LocalStore.create(there))
    before = objects(there)
    counting = CountingStore(LocalStore.open(there))
    again = source.mirror_to(counting)
    assert (counting.changes, again) == (0, MirrorReport(False, 0, 0, (), ()))

    commit(source, "p3", FIRST + THIRD)
    report = source.mirror_to(counting)
    new = objects(there).keys() - before.keys()
    assert counting.changes == report.objects == len(new)
    assert report.moved_bytes == sum(len(objects(there)[name]) for name in new)
    assert report.moved_bytes < 2 * len(THIRD)
    holds_exactly(opened(there), p1=FIRST, p2=SECOND, p3=FIRST + THIRD)


def test_the_source_lost_the_copy_restores(
    source: Repository, place: Path, there: Path, opened: Callable[..., Repository]
) -> None:
    source.mirror_to(LocalStore.create(there))
    source.close()
    shutil.rmtree(place)
    copy = opened(there)
    holds_exactly(copy, p1=FIRST, p2=SECOND)
    commit(copy, "p3", FIRST + THIRD)  # and backups go on in it
    copy.mirror_to(LocalStore.create(place))
    holds_exactly(opened(place), p1=FIRST, p2=SECOND, p3=FIRST + THIRD)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("when", ["before", "after"])
def test_cut_off_anywhere_it_goes_on(
    source: Repository,
    place: Path,
    there: Path,
    opened: Callable[..., Repository],
    first: bool,
    when: str,
) -> None:
    """One object after the other, so that each of the changes is the one it is cut off at."""
    inspect = _key_inspect(source)
    if not first:
        mirror(LocalStore.open(place), LocalStore.create(there), inspect)
    commit(source, "p3", THIRD)
    start = objects(there) if there.exists() else {}
    for change in range(1, 1000):
        shutil.rmtree(there, ignore_errors=True)
        for name, data in start.items():
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            (there / name).write_bytes(data)
        counting = CountingStore(LocalStore.create(there), change, when)
        try:
            mirror(LocalStore.open(place), counting, inspect, in_flight=1)
        except RepositoryUnreachableError:
            if (there / "config").exists():
                copy = opened(there)  # what opens is a whole repository
                assert copy.verify().damaged == ()
                assert {each.id for each in copy.points()} <= {"p1", "p2", "p3"}
            else:
                kind = kind_of(LocalStore.open(place), LocalStore.open(there))
                assert kind is (Kind.NOTHING if not objects(there) else Kind.BEGUN)
        source.mirror_to(LocalStore.open(there))
        assert objects(there) == objects(place)
        if not counting.fired:
            break
    assert change > (9 if first else 3)
    holds_exactly(opened(there), p1=FIRST, p2=SECOND, p3=THIRD)


def _key_inspect(repository: Repository) -> ByKey:
    return ByKey(repository._master, repository._codec, repository._keys)


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.soak), 3])
@pytest.mark.parametrize(
    ("deed", "writable"),
    [
        ("write", True),
        ("release", True),
        ("forget and prune", True),
        ("forget and prune", False),
        ("repack", True),
        ("repack", False),
    ],
)
def test_the_source_may_change_at_any_time(
    place: Path,
    tmp_path: Path,
    key: KeyFile,
    opened: Callable[..., Repository],
    deed: str,
    writable: bool,
    stride: int,
) -> None:
    """Before each of the mirror's calls to the source in turn, with and without its session."""
    seed = opened()
    commit(seed, "p1", FIRST)
    commit(seed, "p2", SECOND)
    commit(seed, "p3", SECOND[: 3 * CHUNK])
    held = seed.hold("p1", "audit")
    seed.close()

    for at in range(1, 1000, stride):
        here, there = tmp_path / "here", tmp_path / "there"
        for path in (here, there):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(place, here)
        other = opened(here)

        def between(other: Repository = other) -> None:
            if deed == "write":
                commit(other, "p4", THIRD)
                other.add_evidence("p4", EVIDENCE)
            elif deed == "release":
                other.release(held.name)
            else:
                other.forget({"p2"} if deed == "repack" else {"p2", "p3"})
                other.prune()
                other.prune()

        target = LocalStore.create(there)
        beside = Interposed(
            LocalStore.open(here) if writable else ReadOnly(LocalStore.open(here)), at, between
        )
        inspect = _key_inspect(other)
        report = mirror(beside, target, inspect, in_flight=1)
        assert report.damaged == ()
        copy = opened(there)
        assert copy.verify().damaged == ()
        names = {each.id for each in copy.points()}
        assert {"p1", "p2", "p3", "p4"} >= names >= {each.id for each in other.points()} - {"p4"}
        # What came meanwhile comes the next time, and then all the source has is there.
        mirror(LocalStore.open(here), target, inspect)
        assert objects(here).items() <= objects(there).items()
        if not beside.fired:
            break
    assert at > 20


class ReadOnly:
    """A store of which everything may be read and nothing written."""

    def __init__(self, inner: LocalStore) -> None:
        self._inner = inner

    @property
    def location(self) -> str:
        return self._inner.location

    def get(self, name: str) -> bytes:
        return self._inner.get(name)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._inner.list(prefix)

    def join(self, text: bytes) -> object:
        raise RepositoryUnreachableError("Could not write: read-only file system.")


def test_a_source_that_never_rests_is_given_up(
    source: Repository, place: Path, there: Path
) -> None:
    class Restless(ReadOnly):
        """Whatever was listed is gone when it is listed again."""

        listings = 0

        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            if prefix != "points/":
                yield from super().list(prefix)
                return
            self.listings += 1
            yield ObjectInfo(f"points/{self.listings:032x}", 100)

    with pytest.raises(RunConflictError, match="changed again and again"):
        mirror(Restless(LocalStore.open(place)), LocalStore.create(there), by_form)  # type: ignore[arg-type]
    assert not (there / "config").exists()
    bare(place, there)
    assert objects(there) == objects(place)


class Passing(ReadOnly):
    """The first listing of segments passes the new one's place before it is put, the old one's after it went.

    A store that lists page by page does that. `met` says whether the names were such that it could.
    """

    def __init__(self, inner: LocalStore, between: Callable[[], None]) -> None:
        super().__init__(inner)
        self._between = between
        self.met: bool | None = None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        found = list(super().list(prefix))
        if prefix == "index/" and self.met is None:
            self._between()
            after = list(super().list(prefix))
            page = max(info.name for info in after)
            self.met = all(info.name > page for info in found)
            found = [info for info in found if info.name <= page]
        return iter(found)


def test_a_listing_may_miss_both_the_old_segment_and_the_new(
    place: Path, tmp_path: Path, opened: Callable[..., Repository]
) -> None:
    seed = opened()
    commit(seed, "p1", FIRST)
    both = [image(seed.copy_disk(MemoryDisk(data))) for data in (SECOND, THIRD)]
    seed.commit([point("p2", both[0]), point("p3", both[1])])
    seed.forget({"p1"})
    seed.prune()
    seed.forget({"p3"})
    seed.close()
    for attempt in range(100):
        here, there = tmp_path / f"here{attempt}", tmp_path / f"there{attempt}"
        shutil.copytree(place, here)
        other = opened(here)

        def between(other: Repository = other) -> None:
            assert other.prune().removed_packs > 0

        passing = Passing(LocalStore.open(here), between)
        mirror(passing, LocalStore.create(there), by_form)  # type: ignore[arg-type]
        copy = opened(there)
        assert copy.verify().damaged == ()
        if passing.met:
            break
    assert passing.met


def test_a_prune_waits_for_the_mirror(
    place: Path, there: Path, source: Repository, opened: Callable[..., Repository]
) -> None:
    other = opened()
    waiting: list[str] = []

    def between() -> None:
        other.forget({"p2"})
        report = other.prune()
        assert report.removed_packs == 0
        waiting.extend(report.waiting_for)

    slow = Interposed(LocalStore.open(place), 14, between)
    mirror(slow, LocalStore.create(there), by_form, in_flight=1)
    assert slow.fired
    assert [f"process {os.getpid()} on" in each for each in waiting] == [True]
    assert other.prune().removed_packs > 0


def test_two_mirrors_to_one_place(source: Repository, place: Path, there: Path) -> None:
    refused: list[bool] = []

    def between() -> None:
        with pytest.raises(RunConflictError):
            bare(place, there)
        refused.append(True)

    target = Interposed(LocalStore.create(there), 6, between)
    mirror(LocalStore.open(place), target, by_form)
    assert refused == [True]
    assert objects(there) == objects(place)


def test_no_prune_at_the_copy_during_a_mirror(
    source: Repository, there: Path, opened: Callable[..., Repository]
) -> None:
    source.mirror_to(LocalStore.create(there))
    commit(source, "p3", THIRD)
    copy = opened(there)

    def between() -> None:
        with pytest.raises(RunConflictError):
            copy.prune()

    target = Interposed(LocalStore.open(there), 8, between)
    source.mirror_to(target)
    assert target.fired


def test_two_sources_may_be_pruned_differently(
    source: Repository, place: Path, there: Path, opened: Callable[..., Repository]
) -> None:
    source.mirror_to(LocalStore.create(there))
    copy = opened(there)

    source.forget({"p2"})
    source.prune()
    source.mirror_to(LocalStore.open(there))
    holds_exactly(copy, p1=FIRST, p2=SECOND)  # forgotten at the source only

    for hold in copy.holds().found:
        copy.release(hold.name)
    copy.forget({"p1", "p2"})
    copy.prune()
    assert copy.points() == []
    report = source.mirror_to(LocalStore.open(there))
    assert report.objects > 0
    holds_exactly(opened(there), p1=FIRST)  # what the source still has comes again
    assert source.holds() == opened(there).holds()


@pytest.mark.parametrize("with_key", [True, False])
def test_another_repository_is_not_touched(
    source: Repository, place: Path, there: Path, with_key: bool
) -> None:
    Repository.create(there, Passphrase("another one", CHEAP), chunk_bytes=CHUNK).close()
    before = objects(there)
    with pytest.raises(StorageConflictError, match="holds another repository"):
        if with_key:
            source.mirror_to(LocalStore.open(there))
        else:
            bare(place, there)
    assert objects(there) == before


@pytest.mark.parametrize("left", ["keys", "packs"])
def test_the_rest_of_another_repository_is_not_mixed_in(
    source: Repository, there: Path, tmp_path: Path, left: str
) -> None:
    foreign = Repository.create(there, create_key_file(tmp_path / "k2"), chunk_bytes=CHUNK)
    commit(foreign, "x", THIRD)
    foreign.close()
    (there / "config").unlink()
    if left == "packs":
        shutil.rmtree(there / "keys")
    with pytest.raises(StorageConflictError, match="holds another repository"):
        source.mirror_to(LocalStore.open(there))


def test_slots_of_killed_creations_do_not_stop_a_mirror(
    source: Repository, place: Path, there: Path, tmp_path: Path
) -> None:
    Repository.create(tmp_path / "x", Passphrase("never finished", CHEAP)).close()
    for slot in (tmp_path / "x" / "keys").iterdir():
        shutil.copy(slot, place / "keys" / ("0" * 32))
    target = CountingStore(LocalStore.create(there), 2)
    with pytest.raises(RepositoryUnreachableError):
        mirror(LocalStore.open(place), target, by_form, in_flight=1)
    assert [path.name for path in (there / "keys").iterdir()] == ["0" * 32]
    source.mirror_to(LocalStore.open(there))
    assert objects(there) == objects(place)


@pytest.mark.parametrize(
    ("folder", "at", "without_key"),
    [
        ("packs", 300, False),  # inside a chunk, which only the key shows
        ("packs", 0, True),
        ("packs", -1, True),
        ("packs", 10, True),  # another pack's name
        ("index", 40, False),
        ("index", 3, True),
    ],
)
@pytest.mark.parametrize("with_key", [True, False])
def test_what_is_damaged_is_named_and_the_rest_copied(
    source: Repository,
    place: Path,
    there: Path,
    folder: str,
    at: int,
    without_key: bool,
    with_key: bool,
) -> None:
    victim = sorted(path for path in (place / folder).rglob("*") if path.is_file())[0]
    data = bytearray(victim.read_bytes())
    data[at] ^= 1
    victim.write_bytes(data)
    name = str(victim.relative_to(place))
    report = source.mirror_to(LocalStore.create(there)) if with_key else bare(place, there)
    named = [each.object for each in report.damaged]
    if with_key or without_key:
        assert named == [name]
        assert objects(there).keys() == objects(place).keys() - {name}
    else:
        assert named == []
        assert objects(there) == objects(place)


def test_the_copy_mends_the_source(
    source: Repository, place: Path, there: Path, opened: Callable[..., Repository]
) -> None:
    source.mirror_to(LocalStore.create(there))
    _damage_first_pack(place)
    commit(source, "p3", THIRD)
    assert source.mirror_to(LocalStore.open(there)).damaged == ()  # that pack is there, and whole
    source.repair(opened(there))
    source.mirror_to(LocalStore.open(there))
    for each in (place, there):
        holds_exactly(opened(each), p1=FIRST, p2=SECOND, p3=THIRD)


def test_what_was_damaged_and_mended_without_a_copy(
    source: Repository, place: Path, there: Path, opened: Callable[..., Repository]
) -> None:
    _damage_first_pack(place)
    assert len(source.mirror_to(LocalStore.create(there)).damaged) == 1
    report = source.repair()
    assert report.lost_chunks == 1
    assert source.mirror_to(LocalStore.open(there)).damaged == ()
    copy = opened(there)
    copy.repair()
    touched = {each.id for each in copy.points()} - {"p2"}
    assert {point for each in copy.verify().damaged for point in each.points} == touched
    assert [each.points for each in copy.verify().damaged] == [
        each.points for each in source.verify().damaged
    ]


def _damage_first_pack(place: Path) -> None:
    """The pack with the first chunk of the first point."""
    with Repository.open(place, KeyFile(place.parent / "key")) as repository:
        name = repository._codec.name(FIRST[:CHUNK])
        [at] = repository._source.index.locations(name)
    victim = place / "packs" / at.pack[:2] / at.pack
    data = bytearray(victim.read_bytes())
    data[at.entry.offset] ^= 1
    victim.write_bytes(data)


@pytest.mark.parametrize("folder", ["keys", "points", "evidence", "holds"])
@pytest.mark.parametrize("half", [0, 1])
def test_of_two_copies_the_whole_one_is_copied(
    source: Repository,
    place: Path,
    there: Path,
    opened: Callable[..., Repository],
    folder: str,
    half: int,
) -> None:
    victim = sorted(path for path in (place / folder).rglob("*") if path.is_file())[0]
    whole = victim.read_bytes()
    data = bytearray(whole)
    data[half * len(data) // 2 + 12] ^= 1
    victim.write_bytes(data)
    name = str(victim.relative_to(place))
    one = (DamagedObject(name, "one of its two copies is not what was written"),)

    assert source.mirror_to(LocalStore.create(there)).damaged == one
    assert objects(there)[name] == whole
    holds_exactly(opened(there), p1=FIRST, p2=SECOND)

    shutil.rmtree(there)
    assert bare(place, there).damaged == one
    # Which half is whole can be told of settings and slots alone.
    assert objects(there)[name] == (whole if folder == "keys" else bytes(data))
    assert {each.id for each in opened(there).points()} == {"p1", "p2"}

    data[(1 - half) * len(data) // 2 + 12] ^= 1
    victim.write_bytes(data)
    shutil.rmtree(there)
    [damaged] = source.mirror_to(LocalStore.create(there)).damaged
    assert (damaged.object, "neither" in damaged.detail) == (name, True)
    assert name not in objects(there)


def test_a_copy_of_another_size_is_named(source: Repository, there: Path) -> None:
    source.mirror_to(LocalStore.create(there))
    victim = next(path for path in (there / "packs").rglob("*") if path.is_file())
    victim.write_bytes(victim.read_bytes()[:-5])
    [damaged] = source.mirror_to(LocalStore.open(there)).damaged
    assert damaged.object == str(victim.relative_to(there))
    assert "verify both" in damaged.detail


def test_slots_that_were_removed_at_the_source_are_told(
    source: Repository, there: Path, opened: Callable[..., Repository]
) -> None:
    slot = source.keyring.add(Passphrase("old admin", CHEAP))
    source.mirror_to(LocalStore.create(there))
    source.keyring.remove(slot.name)
    source.keyring.add(Passphrase("new admin", CHEAP))
    report = source.mirror_to(LocalStore.open(there))
    assert report.slots_there == (slot.name,)
    for words in ("old admin", "new admin"):
        Repository(LocalStore.open(there), Passphrase(words, CHEAP)).close()
