"""A writer relies on what is lost, while another verifies or repairs: nothing is claimed that is not so."""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import pytest

from atoll.model.errors import AtollError
from atoll.model.extents import Extent
from atoll.model.points import RestorePoint
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.points import POINTS
from atoll.repository.repository import Repository
from atoll.repository.store import Buffer
from atoll.repository.verify import VerifyReport
from atoll.repository.wrapping import WrappedStore
from repository_parts import CHUNK, Interposed, MemoryDisk, image, noise, point

STRIDES = [pytest.param(1, marks=pytest.mark.soak), 6]
"""Every moment, or each sixth of them."""
PACK = 64 << 10
OLD = noise(1, 40 * CHUNK)
NEW = OLD[: 30 * CHUNK] + noise(2, 10 * CHUNK)
"""Of which the most is stored already."""
CHANGED = [Extent(30 * CHUNK, 10 * CHUNK)]


class Site:
    """A repository with a point that has lost something."""

    def __init__(self, place: Path, key: KeyFile, harm: str) -> None:
        self.place, self.key = place, key
        Repository.create(place, key, chunk_bytes=CHUNK).close()
        with self.open() as repository:
            self.first = commit(repository, "p1", OLD)
        packs = sorted((path for path in (place / "packs").rglob("*") if path.is_file()), key=_size)
        if harm == "a pack is gone":
            packs[-1].unlink()
        else:
            data = bytearray(packs[-1].read_bytes())
            data[3 * CHUNK] ^= 1
            packs[-1].write_bytes(data)

    def open(self) -> Repository:
        return Repository(LocalStore.open(self.place), self.key, pack_bytes=PACK)

    def beside(self, at: int, between: Callable[[], object]) -> tuple[Repository, Interposed]:
        """With something that is done before a call to the store."""
        store = Interposed(LocalStore.open(self.place), at, between)
        return Repository(store, self.key, pack_bytes=PACK), store  # type: ignore[arg-type]

    def repair(self) -> None:
        with self.open() as other:
            other.repair()

    def damaged_points(self) -> set[str]:
        with self.open() as repository:
            return touched(repository.verify())

    def ends_whole(self) -> None:
        """After a repair the next backup brings back what is lost, and then all is there."""
        self.repair()
        with self.open() as repository:
            parent = repository.find("p1").disks[0]
            copied = repository.copy_disk(MemoryDisk(OLD), extents=[], parent=parent)
            repository.commit([point("again", image(copied), at=3000.0)])
            assert touched(repository.verify()) <= {"p2"}, "p1 is what was read again"
            if any(made.id == "p2" for made in repository.points()):
                parent = repository.find("p2").disks[0]
                copied = repository.copy_disk(MemoryDisk(NEW), extents=[], parent=parent)
                repository.commit([point("again2", image(copied), at=4000.0)])
        contents = {"p1": OLD, "again": OLD, "p2": NEW, "again2": NEW}
        with self.open() as repository:
            assert repository.verify().damaged == ()
            repository.prune()
            for made in repository.points():
                reader = repository.open_disk(made.disks[0])
                assert reader.read(0, reader.size_bytes) == contents[made.id]
                reader.close()
            assert repository.verify().damaged == ()


def _size(path: Path) -> int:
    return path.stat().st_size


def touched(report: VerifyReport) -> set[str]:
    return {name for damage in report.damaged for name in damage.points}


def commit(repository: Repository, name: str, data: bytes) -> RestorePoint:
    made = point(name, image(repository.copy_disk(MemoryDisk(data))))
    repository.commit([made])
    return made


def write(repository: Repository, parent: RestorePoint | None) -> str:
    """Commit p2, as a full or an increment; why it was refused, or empty."""
    try:
        copied = repository.copy_disk(
            MemoryDisk(NEW),
            extents=CHANGED if parent is not None else None,
            parent=parent.disks[0] if parent is not None else None,
        )
        repository.commit([point("p2", image(copied), at=2000.0)])
    except AtollError as error:
        return str(error)
    return ""


harms = pytest.mark.parametrize("harm", ["a pack is gone", "a byte is another"])


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.soak), 3])
@pytest.mark.parametrize(("harm", "full"), [("a pack is gone", True), ("a byte is another", False)])
def test_a_repair_at_any_moment_of_a_writer(
    tmp_path: Path, key: KeyFile, harm: str, full: bool, stride: int
) -> None:
    """What it knows to be lost before a commit is in no point that this makes."""
    outcomes = set()
    for at in count(1, stride):
        site = Site(tmp_path / f"r{at}", key, harm)
        committed_before: list[bool] = []

        def between(site: Site = site, seen: list[bool] = committed_before) -> None:
            with site.open() as other:
                seen.append(any(made.id == "p2" for made in other.points()))
            site.repair()

        writer, store = site.beside(at, between)
        with writer:
            refused = write(writer, None if full else site.first)
        if store.fired and not committed_before[0] and not refused:
            assert "p2" not in site.damaged_points(), f"before call {at}"
        outcomes.add(bool(refused))
        if refused:
            assert "run it again" in refused or "verify" in refused, refused
            with site.open() as again:
                assert write(again, None if full else site.first) == ""
            assert "p2" not in site.damaged_points()
        site.ends_whole()
        if not store.fired:
            break
    assert at > 8
    assert False in outcomes


def test_a_repair_that_ends_while_a_point_is_put_has_it_taken_back(
    tmp_path: Path, key: KeyFile
) -> None:
    site = Site(tmp_path / "r", key, "a byte is another")

    class Late(WrappedStore):
        def put(self, name: str, parts: Sequence[Buffer]) -> None:
            if name.startswith(POINTS):
                site.repair()
            super().put(name, parts)

    with Repository(Late(LocalStore.open(site.place)), key, pack_bytes=PACK) as writer:
        assert "run it again" in write(writer, site.first)
    with site.open() as repository:
        assert [made.id for made in repository.points()] == ["p1"]
        assert write(repository, site.first) == ""
    assert site.damaged_points() == set(), "the increment has read again what was lost"
    site.ends_whole()


@pytest.mark.parametrize("stride", STRIDES)
@harms
def test_a_writer_at_any_moment_of_a_repair(
    tmp_path: Path, key: KeyFile, harm: str, stride: int
) -> None:
    """It may come too early for the repair to tell it, and is told of with the rest then."""
    for at in count(1, stride):
        site = Site(tmp_path / f"r{at}", key, harm)
        refused: list[str] = []

        def between(site: Site = site, said: list[str] = refused) -> None:
            with site.open() as writer:
                said.append(write(writer, site.first))

        repairer, store = site.beside(at, between)
        with repairer:
            report = repairer.repair()
        damaged = site.damaged_points()
        if store.fired and damaged:
            assert touched(report.remaining) >= damaged - {"p2"}
        site.ends_whole()
        if not store.fired:
            break
    assert at > 8


@pytest.mark.parametrize("stride", STRIDES)
@harms
def test_a_writer_at_any_moment_of_a_verify(
    tmp_path: Path, key: KeyFile, harm: str, stride: int
) -> None:
    """It names the damage there was when it began, and blames nothing that is whole."""
    for at in count(1, stride):
        site = Site(tmp_path / f"r{at}", key, harm)

        def between(site: Site = site) -> None:
            with site.open() as writer:
                write(writer, site.first)

        verifier, store = site.beside(at, between)
        with verifier:
            report = verifier.verify()
        assert "p1" in touched(report), f"before call {at}"
        with site.open() as repository:
            real = {damage.object for damage in repository.verify().damaged}
        assert {damage.object for damage in report.damaged} == real
        if not store.fired:
            break
    assert at > 8
