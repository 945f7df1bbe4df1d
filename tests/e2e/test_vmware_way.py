"""Held by VMware snapshots from end to end: two live guests that no agent is asked of over a network."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from main_job import RATE, Round, assert_proven, witness_of

from atoll.settings import load_settings
from atoll.wiring import open_vcenter
from atoll_lab.load import Loads
from live_lab import VMS, LiveLab, lock_group, until

pytestmark = pytest.mark.lab
WRITE = "timeout 20 sh -c 'echo written >/var/tmp/witness && sync /var/tmp/witness'"


@pytest.fixture(scope="module")
def settings(lab: LiveLab) -> Path:
    """The lab's own, without its enrolled agents; emulated guests take their time."""
    changes = {
        "director.ways": ["vmware"],
        "director.vmware_seconds": 240,
        "agents.directory": "nobody",
    }
    return lab.settings("vmware", changes)


@pytest.fixture(scope="module")
def made(lab: LiveLab, settings: Path) -> Iterator[Round]:
    with Loads(lab.lab) as loads:
        loads.start(RATE)
        before = {"db1": loads.postgresql.committed(), "app1": loads.mariadb.committed()}
        result = lab.check("backup", *VMS, "--full", "--json", settings=settings).json
        after = {"db1": loads.postgresql.committed(), "app1": loads.mariadb.committed()}
    yield Round(result, before, after)


def snapshots(settings: Path) -> set[str]:
    """The VMs that have a VMware snapshot or a delta now."""
    with open_vcenter(load_settings(settings)) as vcenter:
        return {vm.name for vm in vcenter.inventory().vms if vm.has_snapshot}


@pytest.mark.parametrize("vm", VMS)
def test_the_point_is_app_consistent(made: Round, vm: str) -> None:
    proof = made.point(vm)["proof"]
    assert (proof["consistency"], proof["reasons"]) == ("app", []), proof
    assert proof["hold"]["unbroken"] is True
    before, after, witness = made.before[vm], made.after[vm], witness_of(made.point(vm))
    assert before.highest <= witness.highest <= after.highest
    assert before.rows <= witness.rows <= after.rows
    assert before.rows < after.rows


def test_no_vmware_snapshot_is_left(lab: LiveLab, made: Round, settings: Path) -> None:
    assert snapshots(settings) == set()
    lab.assert_in_order()


def test_the_database_needs_no_recovery(lab: LiveLab, made: Round) -> None:
    assert_proven(lab, made, "db1")


def test_a_director_killed_while_vms_have_snapshots(
    lab: LiveLab, made: Round, settings: Path
) -> None:
    standing = lab.assert_in_order()
    with lab.start("backup", *VMS, settings=settings) as backup:
        assert backup.stderr is not None
        said = iter(backup.stderr.readline, b"")
        assert any(b"agents flush" in line for line in said), backup.communicate()
        # The storage keeps it waiting with the VMware snapshots in place.
        with lock_group(lab):
            try:
                until(
                    lambda: snapshots(settings) == set(VMS) or backup.poll() is not None,
                    300,
                    "a hold",
                )
                assert backup.poll() is None, backup.communicate()
                # The guests serve already, and write to their deltas.
                for vm in VMS:
                    lab.shell(vm).check(WRITE, 60)
            finally:
                backup.kill()
    assert backup.returncode == -signal.SIGKILL
    assert snapshots(settings) == set(VMS)

    cleaned = lab.check("cleanup", settings=settings).out

    for vm in VMS:
        assert f"of VM {vm}, which a run left" in cleaned, cleaned
        lab.shell(vm).check(f"grep -q written /var/tmp/witness && {WRITE}", 60)
    assert snapshots(settings) == set()
    assert lab.assert_in_order() == standing
