"""A run's VMs read straight from its snapshots, and what changed between two runs."""

import pytest

from atoll.island.runs import captured_runs, find_run, run_vms
from atoll.model.errors import UnknownPointError
from island_farm import DISKS, MIB, content_of

pytestmark = pytest.mark.needs_root


def served(farm, run, since=None):
    """Each disk's content and what changed in it, by VM and device key."""
    found = {}
    with run_vms(farm.engine, run, since) as vms:
        for vm in vms:
            for disk in vm.disks:
                reader = disk.open()
                content = reader.read(0, reader.size_bytes)
                reader.close()
                changed = None if disk.changed is None else [tuple(each) for each in disk.changed()]
                found[vm.name, disk.key] = (content, changed)
    return found


def test_runs_are_found_by_what_is_written_on_their_snapshots(farm):
    for name in ("20260101-r1", "20260102-r2"):
        farm.run(name)
    farm.engine.snapshot_group("prod", "somebody-elses")
    assert [run.name for run in captured_runs(farm.engine)] == ["20260101-r1", "20260102-r2"]
    assert find_run(farm.engine, "latest").name == "20260102-r2"
    assert find_run(farm.engine, "20260101").name == "20260101-r1"
    with pytest.raises(UnknownPointError, match="fits several runs, 20260101-r1, 20260102-r2"):
        find_run(farm.engine, "2026")
    with pytest.raises(UnknownPointError, match="no snapshots of a run 'gone'; the newest"):
        find_run(farm.engine, "gone")
    farm.engine.delete_snapshot("prod", "atoll-1-20260102-r2")
    assert find_run(farm.engine, "latest").name == "20260101-r1"


def test_a_run_holds_what_was_written_before_it(farm):
    first = farm.run("r1")
    farm.write("lun2", "/app1/app1.vmdk", 512 << 10, b"x" * 4096)
    second = farm.run("r2")

    before = served(farm, first)
    assert before == {
        (vm, 2000 + number): (content_of(vm, lun), None)
        for vm, luns in DISKS.items()
        for number, lun in enumerate(luns)
    }
    after = served(farm, second, first)
    content, changed = after["app1", 2000]
    assert content[512 << 10 :][:4096] == b"x" * 4096
    assert changed
    assert all(offset >= 0 and offset + length <= MIB for offset, length in changed)
    assert any(offset <= 512 << 10 < offset + length for offset, length in changed)
    assert sum(length for _, length in changed) < MIB
    for key in (("db1", 2000), ("db1", 2001)):
        assert after[key] == (before[key][0], []), "nothing of it was written"


def test_a_disk_that_the_older_run_had_not_counts_as_changed(farm):
    first = farm.run("r1", "db1")
    second = farm.run("r2")
    after = served(farm, second, first)
    assert after["app1", 2000][1] == [(0, MIB)]
    assert after["db1", 2000][1] == []
