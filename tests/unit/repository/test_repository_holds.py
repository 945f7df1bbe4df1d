"""Holds: they stop forgetting, and none is lost whatever happens at the same time."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.model.errors import PointHeldError, RunConflictError, UnknownPointError
from atoll.repository.holds import forgetting, wait_for_forgetting
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.repository import Repository
from repository_parts import CHUNK, Interposed, MemoryDisk, image, noise, point


@pytest.fixture
def points(repository: Repository) -> Repository:
    """db1 in p1, p2 and p3."""
    disk = image(repository.copy_disk(MemoryDisk(noise(1, CHUNK))))
    repository.commit([point(f"p{number}", disk, at=float(number)) for number in (1, 2, 3)])
    return repository


def ids(repository: Repository) -> list[str]:
    return [found.id for found in repository.points()]


def test_a_point_on_hold_is_not_forgotten_until_released(points: Repository) -> None:
    hold = points.hold("p1", "audit 7")
    with pytest.raises(PointHeldError, match="audit 7"):
        points.forget({"p1", "p2"})
    assert ids(points) == ["p1", "p2", "p3"]
    points.forget({"p2"})
    points.release(hold.name)
    points.release(hold.name)
    assert [found.id for found in points.forget({"p1"})] == ["p1"]


def test_a_hold_whose_time_is_over_holds_nothing_and_goes_with_its_point(
    points: Repository, place: Path
) -> None:
    points.hold("p1", "audit", until=time.time() - 1)
    points.hold("p2", "audit", until=time.time() + 1000)
    points.forget({"p1"})
    assert [hold.point for hold in points.holds().found] == ["p2"]
    assert len(list((place / "holds").iterdir())) == 1


def test_who_holds_what_and_why_is_sealed(points: Repository, place: Path, key: KeyFile) -> None:
    placed = points.hold("p1", "the very secret lawsuit", until=2e9)
    with Repository.open(place, key) as other:
        assert other.holds().found == (placed,)
        assert other.holds().on("p1", 2e9 - 1) == [placed]
        assert other.holds().on("p1", 2e9) == other.holds().on("p2", 0.0) == []
    [path] = (place / "holds").iterdir()
    assert path.read_bytes().startswith(b"ATOLHLD\x01")
    assert b"lawsuit" not in path.read_bytes()


def test_no_hold_is_set_on_nothing(points: Repository, place: Path) -> None:
    with pytest.raises(UnknownPointError):
        points.hold("p9", "audit")
    assert list((place / "holds").iterdir()) == []


def test_one_damaged_copy_is_told_and_costs_nothing(points: Repository, place: Path) -> None:
    hold = points.hold("p1", "audit")
    path = place / "holds" / hold.name
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert points.holds().found == (hold,)
    [damage] = points.verify().damaged
    assert (damage.object, damage.points) == (f"holds/{hold.name}", ("p1",))


def test_a_hold_that_cannot_be_read_holds_every_point(points: Repository, place: Path) -> None:
    hold = points.hold("p1", "audit")
    path = place / "holds" / hold.name
    path.write_bytes(b"x" * 100)
    assert points.holds().damaged == (f"holds/{hold.name}",)
    with pytest.raises(PointHeldError, match=f"holds/{hold.name} cannot be read"):
        points.forget({"p2"})
    [damage] = points.verify().damaged
    assert (damage.object, damage.points) == (f"holds/{hold.name}", ("p1", "p2", "p3"))
    points.release(points.holds().damaged[0])
    points.forget({"p1", "p2"})
    assert ids(points) == ["p3"]


def _never_lost(
    place: Path, key: KeyFile, act: Callable[[Repository], None], other: Callable[[], None]
) -> int:
    """Do something in between at every call that `act` makes to the store; how many there are."""
    at = 0
    while True:
        at += 1
        store = Interposed(LocalStore.open(place), at, other)
        opened = Repository(store, key)  # type: ignore[arg-type]
        try:
            act(opened)
        finally:
            opened.close()
        if not store.fired:
            return at - 1


def test_a_hold_set_at_any_moment_of_forgetting_holds_or_says_so(
    points: Repository, place: Path, key: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = points.points()[0].disks[0]
    heard: list[str] = []

    def hold() -> None:
        # Whoever holds would wait for the one who forgets, who here waits for him.
        try:
            points.hold("p1", "audit")
            heard.append("held")
        except UnknownPointError:
            heard.append("gone")
        except RunConflictError as error:
            assert "The hold is set" in str(error)
            heard.append("not sure")

    def wait(store: LocalStore) -> None:
        wait_for_forgetting(store, 0.0)

    monkeypatch.setattr("atoll.repository.repository.wait_for_forgetting", wait)

    def forget(opened: Repository) -> None:
        points.commit([point("p1", disk, at=1.0)])
        heard.clear()
        refused = False
        try:
            opened.forget({"p1"})
        except PointHeldError:
            refused = True
        there = "p1" in ids(points)
        assert there == refused
        for said in heard:
            assert {"held": there, "gone": not there}.get(said, True)
        if there:
            for each in points.holds().found:
                points.release(each.name)
            points.forget({"p1"})

    points.forget({"p1"})
    assert _never_lost(place, key, forget, hold) > 10


def test_who_holds_waits_for_who_forgets(
    points: Repository, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore.open(place)
    with forgetting(store) as session:
        [seen] = [each for each in store.sessions() if each.name == session.name]
        assert json.loads(seen.said)["forgets"] is True
        slept: list[float] = []

        def end_it(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 3:
                session.end()

        monkeypatch.setattr("atoll.repository.holds.time.sleep", end_it)
        points.hold("p1", "audit")
        assert len(slept) == 3


def test_writers_and_readers_are_not_waited_for(points: Repository) -> None:
    points.begin()
    reader = points.open_disk(points.points()[0].disks[0])
    points.hold("p1", "audit")  # two minutes, if it did
    reader.close()
    points.abandon()


def test_a_hold_needs_no_lock(points: Repository, place: Path) -> None:
    lock = LocalStore.open(place).maintain()
    try:
        points.release(points.hold("p1", "audit").name)
    finally:
        lock.release()
