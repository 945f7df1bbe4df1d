"""A copy that is cut off: its snapshots are kept, and it is finished without reading anything again."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from small_site import (
    SHORT_BUDGET_SECONDS,
    SHORT_LEASE_SECONDS,
    VMS,
    At,
    SmallSite,
    assert_called,
    soak,
)
from test_killed_director import MortalDirector

from atoll.model.errors import StorageUnreachableError, UnsupportedFormatError
from atoll.model.points import RestorePoint
from atoll.repository import drafts
from atoll.service.resuming import Resumed

pytestmark = pytest.mark.needs_root

JOB = ("db1", "app1")


@pytest.fixture(autouse=True)
def _drafts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(drafts, "_MOST_OF_THE_TIME", 0)


def fail(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def cut_off(site: SmallSite, stage: str = "commit") -> str:
    """A backup that is interrupted; its run."""
    interrupt = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        site.back_up(At(**{stage: fail(interrupt)}), vms=JOB)
    assert "atoll resume" in caught.value.__notes__[0]
    (record,) = (site.directory / "state/runs").glob("*.json")
    return record.stem


def points(site: SmallSite) -> list[RestorePoint]:
    with site.opened() as opened:
        return opened.repository().points()


def is_whole(site: SmallSite) -> bool:
    with site.opened() as opened:
        return not opened.repository().verify().damaged


def names(made: list[RestorePoint], run: str) -> set[str]:
    return {point.vm for point in made if point.run == run}


def test_the_next_backup_finishes_it_first(site: SmallSite) -> None:
    run = cut_off(site)
    assert names(points(site), run) == set()
    (said,) = [line for line in site.clean() if run in line]
    assert "db1, app1" in said
    assert "cut off while it copied, with " in said
    # Another backup of the same LUN groups leaves its snapshots alone.
    assert_called(site.back_up(vms=("web1",)))
    result = site.back_up(vms=("app1",))
    (said,) = [line for line in result.cleaned if run in line]
    assert "Went on with run" in said
    made = points(site)
    assert names(made, run) == set(JOB)
    for point in made:
        if point.run == run:
            assert point.snapshot.endswith(run), "it is of its own snapshot"
            assert str(point.proof.consistency) == {"db1": "app", "app1": "filesystem"}[point.vm]
    assert [point.incremental for point in result.points] == [True], "measured from the other one"
    assert is_whole(site)
    site.clean()


@pytest.mark.soak
def test_nothing_is_read_twice(site: SmallSite, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off(site)
    before = points(site)
    read: list[int] = []
    monkeypatch.setattr(
        "atoll.blocks.readers.MappedReader.read_many",
        lambda reader, extents: read.append(1) or iter(()),
    )
    (resumed,) = site.resume()
    # But for the catalogue of its files, none of which there are on these disks.
    assert read == []
    assert resumed.copied_before_bytes == sum(
        disk.read_bytes for point in resumed.points for disk in point.disks
    )
    assert len(points(site)) == len(before) + len(JOB)
    assert site.resume() == []
    site.clean()


@pytest.mark.parametrize("drafted", [soak(False), True])
def test_a_killed_one_is_finished(
    site: SmallSite, monkeypatch: pytest.MonkeyPatch, drafted: bool
) -> None:
    """Also one of which nothing was noted yet but that it copies."""
    monkeypatch.setenv("DRAFT_SECONDS", "0" if drafted else "3600")
    director = MortalDirector(site.short_settings)
    lines = director.back_up()["lines"]
    # A line that is run for each disk, at the last.
    copying = {where: times for where, times in lines.items() if "copy_run" in where}
    each = max(copying, key=lambda where: copying[where])
    killed = director.back_up(f"{each} {copying[each]}")
    director.close()
    site.longest_hold_seconds = SHORT_BUDGET_SECONDS + SHORT_LEASE_SECONDS
    assert killed["stage"] in ("copy", "catalogue")
    with site.opened() as opened:
        assert bool(opened.repository().drafts()) is drafted
    (resumed,) = site.resume()
    assert {point.vm for point in resumed.points} == set(VMS)
    assert is_whole(site)
    site.clean()


@pytest.mark.parametrize("passes", [soak(True), False])
def test_a_failure_that_may_pass_keeps_it(site: SmallSite, passes: bool) -> None:
    error = StorageUnreachableError("away") if passes else UnsupportedFormatError("no VMFS")
    with pytest.raises(type(error)) as caught:
        site.back_up(At(commit=fail(error)), vms=JOB)
    notes = getattr(caught.value, "__notes__", [])
    assert any("atoll resume" in note for note in notes) is passes
    assert bool(list((site.directory / "state/runs").glob("*.json"))) is passes
    assert len(site.resume()) == passes
    site.clean()


@pytest.mark.soak
def test_it_may_fail_again_and_again(site: SmallSite) -> None:
    run = cut_off(site)
    for _ in range(2):
        with pytest.raises(StorageUnreachableError, match="away"):
            site.resume(At(commit=fail(StorageUnreachableError("away"))))
        with pytest.raises(StorageUnreachableError, match="away"):
            site.back_up(At(map=fail(StorageUnreachableError("away"))), vms=JOB)
    (resumed,) = site.resume()
    assert resumed.run == run
    site.clean()


@pytest.mark.soak
def test_a_run_whose_snapshot_is_gone_is_given_up_and_the_backup_goes_on(site: SmallSite) -> None:
    run = cut_off(site)
    engine = site.engine()
    (name,) = {
        taken.name
        for group in engine.groups()
        for taken in engine.snapshots(group.name)
        if taken.name.endswith(run)
    }
    engine.delete_snapshot("silver", name)
    result = site.back_up(vms=JOB)
    assert {point.vm for point in result.points} == set(JOB)
    (said,) = [line for line in result.cleaned if run in line]
    assert "snapshot of LUN group silver is gone" in said
    site.clean()


@pytest.mark.soak
def test_a_run_that_cannot_be_copied_is_given_up_and_the_backup_goes_on(site: SmallSite) -> None:
    run = cut_off(site)
    result = site.back_up(At(map=fail(UnsupportedFormatError("The layout is not known."))), vms=JOB)
    (said,) = [line for line in result.cleaned if run in line]
    assert said.endswith("was given up. It could not be gone on with: The layout is not known.")
    assert names(points(site), run) == set()
    site.clean()


def test_it_can_be_given_up(site: SmallSite) -> None:
    run = cut_off(site)
    (said,) = [line for line in site.clean(drop_interrupted=True) if run in line]
    assert said == f"Cleared what run {run} left when it died. It was given up."
    site.assert_in_order()
    with site.opened() as opened:
        assert opened.repository().drafts() == {}


@pytest.mark.soak
def test_after_some_time_it_is_cleared(site: SmallSite) -> None:
    run = cut_off(site)
    record = site.directory / f"state/runs/{run}.json"
    at = record.stat().st_mtime
    os.utime(record, (at, at - 49 * 3600))
    (said,) = [line for line in site.clean() if run in line]
    assert said.endswith("Nobody went on with it for 48 hours.")
    site.assert_in_order()


@pytest.mark.soak
def test_one_alone_goes_on_with_it(site: SmallSite) -> None:
    run = cut_off(site)
    both = threading.Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as pool:

        def resume() -> list[Resumed]:
            both.wait()
            return site.resume()

        done = [each.result() for each in [pool.submit(resume) for _ in range(2)]]
    assert [each.run for resumed in done for each in resumed] == [run]
    assert names(points(site), run) == set(JOB)
    site.clean()


@pytest.mark.soak
def test_one_that_died_after_its_commit_is_only_cleared(site: SmallSite) -> None:
    with pytest.raises(KeyboardInterrupt):
        site.back_up(At(retire=fail(KeyboardInterrupt())), vms=JOB)
    assert site.resume() == []
    assert any(line.endswith("Its restore points are there.") for line in site.clean())
    site.assert_in_order()


@pytest.mark.soak
def test_a_parent_that_was_forgotten_meanwhile_costs_reading_only(site: SmallSite) -> None:
    older = site.back_up(vms=JOB)
    run = cut_off(site)
    with site.opened() as opened:
        opened.repository().forget({point.id for point in older.points})
    (resumed,) = site.resume()
    assert (resumed.run, len(resumed.points)) == (run, len(JOB))
    assert not any(point.incremental for point in resumed.points)
    assert is_whole(site)
    site.clean()
