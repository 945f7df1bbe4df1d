"""Captures: held and snapshot like a backup, copied nowhere, kept for whoever reads them."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_site import GROUPS, HELD, SOUND, At, SmallSite, uuid_of

from atoll.island.runs import captured_runs, find_run, run_vms
from atoll.model.errors import PoolFullError
from atoll.model.progress import Silent
from atoll.service.capturing import CaptureResult, capture_vms
from atoll.service.journal import RunRecord
from atoll.service.retire import capture_prefix, own_prefix

pytestmark = pytest.mark.needs_root


@pytest.fixture
def kept(site: SmallSite) -> Iterator[SmallSite]:
    """The site; captures are deleted afterwards, because it expects none."""
    yield site
    engine = site.engine()
    for group in GROUPS.values():
        for taken in engine.snapshots(group):
            if taken.name.startswith("capture-"):
                engine.delete_snapshot(group, taken.name)


def capture(site: SmallSite, *vms: str, keep: int = 1, at: At | None = None) -> CaptureResult:
    with site.opened() as opened:
        site.longest_hold_seconds = opened.hold.budget_seconds + opened.hold.lease_seconds
        return capture_vms(opened, vms, at or Silent(), keep=keep)


def on_the_storage(site: SmallSite) -> list[str]:
    return [run.name for run in captured_runs(site.engine()) if run.snapshots[0].name[0] == "c"]


def test_a_capture_is_worth_what_a_backup_is_and_copies_nothing(kept: SmallSite) -> None:
    with kept.opened() as opened:
        points = opened.repository().points()
    made = capture(kept, *HELD)
    assert {vm: str(proof.consistency) for vm, proof in made.proofs.items()} == {
        vm: SOUND[vm] for vm in HELD
    }
    with kept.opened() as opened:
        assert opened.repository().points() == points
    run = find_run(kept.engine(), made.run)
    assert {vm.name: vm.consistency for vm in run.certificate.vms} == {
        vm: proof.consistency for vm, proof in made.proofs.items()
    }
    with run_vms(kept.engine(), run) as vms:
        for vm in vms:
            for disk in vm.disks:
                reader = disk.open()
                assert len(reader.read(0, 4096)) == 4096
                reader.close()


def test_the_newest_of_each_vm_stay_and_what_is_read_stays_too(kept: SmallSite) -> None:
    first = capture(kept, *HELD)
    only_db1 = capture(kept, "db1")
    assert only_db1.retired == (), "the first is still the newest of the others"
    third = capture(kept, *HELD)
    assert set(third.retired) == {first.run, only_db1.run}
    with kept.opened() as opened:
        taken = [(each.group, each.name) for each in third.snapshots]
        with opened.pins().reading(taken):
            fourth = capture(kept, *HELD)
            assert (fourth.retired, on_the_storage(kept)) == ((), [third.run, fourth.run])
    fifth = capture(kept, *HELD, keep=2)
    assert (fifth.retired, on_the_storage(kept)) == ((third.run,), [fourth.run, fifth.run])


def test_a_backup_and_a_capture_leave_each_other_alone(kept: SmallSite) -> None:
    made = capture(kept, *HELD)
    result = kept.back_up(vms=HELD)
    assert result.points[0].incremental or result.points
    assert on_the_storage(kept) == [made.run]
    again = capture(kept, *HELD)
    assert again.retired == (made.run,)
    with kept.opened() as opened:
        needed = {(point.group, point.snapshot) for point in result.points}
        there = {
            (group, taken.name)
            for group in GROUPS.values()
            for taken in opened.engine().snapshots(group)
        }
    assert needed <= there, "the next increment still has what it is measured from"


def test_a_run_is_kept_whole_and_its_remains_go(kept: SmallSite) -> None:
    first = capture(kept, *HELD)
    engine = kept.engine()
    one, other = ((taken.group, taken.name) for taken in first.snapshots)
    clone = engine.clone(*one, "shown")
    second = capture(kept, *HELD)
    assert second.retired == ()
    assert on_the_storage(kept) == [first.run, second.run], "a part of it is of no use"
    engine.delete_clone(clone.name)
    engine.delete_snapshot(*other)
    third = capture(kept, *HELD)
    assert third.retired == (second.run,)
    there = {taken.name for group in GROUPS.values() for taken in engine.snapshots(group)}
    assert one[1] not in there, "what is left of a run that is gone is no run, and goes"


def test_one_that_fails_leaves_nothing(kept: SmallSite) -> None:
    before = on_the_storage(kept)

    def full() -> None:
        raise PoolFullError("The pool is full.")

    with pytest.raises(PoolFullError):
        capture(kept, *HELD, at=At(proof=full))
    assert on_the_storage(kept) == before
    assert not [
        taken.name
        for group in GROUPS.values()
        for taken in kept.engine().snapshots(group)
        if taken.name.startswith("capture-")
    ]


def test_one_that_was_killed_is_cleared_by_the_next(kept: SmallSite) -> None:
    with kept.opened() as opened:
        prefix = capture_prefix(own_prefix(opened.identity()))
        opened.journal().begin(RunRecord("dead", (uuid_of("db1"),), ("dead",)))
        opened.journal().abandon("dead")
        for group in GROUPS.values():
            opened.engine().snapshot_group(group, f"{prefix}dead")
    assert any("Cleared what run dead left" in line for line in kept.clean())
    for group in GROUPS.values():
        assert f"{prefix}dead" not in [taken.name for taken in kept.engine().snapshots(group)]


def test_a_site_that_only_captures_needs_no_repository(kept: SmallSite, tmp_path: Path) -> None:
    before = kept.back_up(vms=HELD)
    text = re.sub(r"(?ms)^\[repository\].*?(?=^\[|\Z)", "", kept.settings.read_text())
    text = re.sub(r"(?m)^state_directory = .*$", f'state_directory = "{tmp_path}/state"', text)
    settings = tmp_path / "atoll.toml"
    settings.write_text(text)
    # Relative paths are taken from where the file lies.
    for each in kept.directory.iterdir():
        if each.name not in ("atoll.toml", "state"):
            (tmp_path / each.name).symlink_to(each)
    bare = dataclasses.replace(kept, settings=settings)
    first = capture(bare, *HELD)
    second = capture(bare, *HELD)
    assert second.retired == (first.run,)
    assert on_the_storage(bare) == [second.run]
    assert bare.clean() == []
    # What restore points stand on is none of its business.
    assert all(point.incremental for point in kept.back_up(vms=HELD).points), before
