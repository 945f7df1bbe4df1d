"""Storage that fails or dawdles while guests are held for it."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from private_guest import await_that
from small_site import (
    SHORT,
    SHORT_LEASE_SECONDS,
    At,
    SmallSite,
    assert_called,
    assert_reasons,
    proofs,
    soak,
)

from atoll.director import capture
from atoll.model.errors import StorageUnreachableError
from atoll.model.storage import GroupSnapshot
from atoll.storage.engine import ManagedEngine

pytestmark = pytest.mark.needs_root

BROKEN = "The array does not answer; see whether it runs."


class FailingEngine:
    """The site's storage, which fails to snapshot some groups: at once, or once it has done it."""

    def __init__(self, engine: ManagedEngine, groups: set[str], *, late: bool) -> None:
        self._engine = engine
        self._groups = groups
        self._late = late
        self.failed: list[str] = []

    def snapshot_group(self, group: str, name: str) -> GroupSnapshot:
        if group not in self._groups:
            return self._engine.snapshot_group(group, name)
        if self._late:
            self._engine.snapshot_group(group, name)
        self.failed.append(group)
        raise StorageUnreachableError(BROKEN)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


@pytest.mark.parametrize(
    ("groups", "late"),
    [
        soak({"gold"}, False),
        ({"gold"}, True),
        ({"gold", "silver"}, False),
        soak({"gold", "silver"}, True),
    ],
    ids=["one-refuses", "one-answer-lost", "all-refuse", "all-answers-lost"],
)
def test_storage_that_fails_ends_the_run(site: SmallSite, groups: set[str], late: bool) -> None:
    """A point over groups of which one is missing would be none: the other's snapshot goes, too."""
    points = len(list((site.directory / "repository/points").rglob("*")))
    engine = FailingEngine(site.engine(), groups, late=late)
    at = At()
    with pytest.raises(StorageUnreachableError, match=BROKEN) as failure:
        site.back_up(at, engine=engine)  # type: ignore[arg-type]
    assert not getattr(failure.value, "__notes__", [])
    assert set(engine.failed) <= groups
    assert engine.failed
    assert len(list((site.directory / "repository/points").rglob("*"))) == points
    # Nobody waits for a lease here: all were asked to thaw, and did.
    assert all(guest.serves(1.0) for guest in site.guests.values())


@pytest.mark.parametrize("group", ["gold", soak("silver")])
def test_storage_that_takes_longer_than_the_lease(site: SmallSite, group: str) -> None:
    """The guests served before it was done: their points say so and claim no more."""
    seconds = SHORT_LEASE_SECONDS + 2.0
    waiting: list[Callable[..., Any]] = []

    def keep() -> None:
        keeper = site.storage_keeps_waiting(group, seconds)
        keeper.__enter__()
        waiting.append(keeper.__exit__)

    try:
        result = site.back_up(At(snapshot=keep), **SHORT)
    finally:
        for end in waiting:
            end(None, None, None)
    ended = f"the lease of {SHORT_LEASE_SECONDS:g} s ended"
    late = {"bare1": "crash"} if group == "gold" else {}
    assert_called(result, db1="none", app1="crash", web1="crash", **late)
    if late:
        assert_reasons(
            result,
            "bare1",
            "its VMware snapshot was removed before the storage snapshot was taken",
        )
    assert_reasons(
        result,
        "db1",
        f"{ended}; postgresql main lost its locks .*",
        "its disks lie in the LUN groups gold, silver, which were snapshot .*",
    )
    assert_reasons(result, "app1", ended)
    assert_reasons(result, "web1", ended)
    hold = proofs(result)["app1"].hold
    assert hold is not None
    assert not hold.unbroken


class SilentEngine:
    """The site's storage, which does not answer when it is to snapshot a group until told to go on."""

    def __init__(self, engine: ManagedEngine, group: str) -> None:
        self._engine = engine
        self._group = group
        self.go_on = threading.Event()
        self.done: list[GroupSnapshot] = []

    def snapshot_group(self, group: str, name: str) -> GroupSnapshot:
        if group != self._group:
            return self._engine.snapshot_group(group, name)
        assert self.go_on.wait(120)
        self.done.append(self._engine.snapshot_group(group, name))
        return self.done[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def test_storage_that_never_answers(site: SmallSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests and VMware snapshots are not kept for it, the run fails, and what comes late goes."""
    monkeypatch.setattr(capture, "_LATE_STORAGE_SECONDS", 0.5)
    engine = SilentEngine(site.engine(), "gold")
    at = At()
    try:
        with pytest.raises(
            StorageUnreachableError,
            match=r"The storage did not answer when asked to snapshot LUN group gold, also not within "
            r"0\.5 s after all guests were let go; .* Should snapshot atoll-\S+ appear later, the next "
            r"run or `atoll cleanup` deletes it\.",
        ) as failure:
            site.back_up(at, engine=engine, **SHORT)  # type: ignore[arg-type]
        assert not getattr(failure.value, "__notes__", [])
        assert at.notes == [
            ": nobody is held any more; waiting up to 0.5 s for the storage's snapshots of gold"
        ]
        assert all(guest.serves(1.0) for guest in site.guests.values())
        with site.opened() as opened:
            assert not any(vm.has_snapshot for vm in opened.vcenter().inventory().vms)
    finally:
        engine.go_on.set()
    await_that(lambda: engine.done != [], "the storage goes on")
    late = engine.done[0]
    assert late.name in {each.name for each in site.engine().snapshots("gold")}
    site.clean()
    assert late.name not in {each.name for each in site.engine().snapshots("gold")}
