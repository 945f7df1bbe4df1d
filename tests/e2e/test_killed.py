"""Killed with -9 in the middle of a run: guests serve again, nothing stays behind, points tell."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from main_job import RATE, assert_app_consistent, back_up

from atoll_lab.guests.control import GuestShell
from atoll_lab.load import Loads
from live_lab import GROUP, VMS, LiveLab, Standing, agent_state, lock_group, until

pytestmark = pytest.mark.lab

LEASE_SECONDS = 13.0
KILL_AGENT = "pkill -KILL -f -o '^/usr/bin/python3 /usr/lib/atoll/atoll-agent.pyz serve '"
WRITE = "timeout 5 sh -c 'echo written >/var/tmp/witness && sync /var/tmp/witness'"


@pytest.fixture(scope="module")
def points(lab: LiveLab) -> Iterator[Standing]:
    """A lab with a restore point of each VM, and how it stands then."""
    lab.check("backup", *VMS)
    yield lab.assert_in_order()


@pytest.fixture
def short_lease(lab: LiveLab) -> Path:
    """Settings under which guests thaw sooner than the lab's own would let them."""
    return lab.settings(
        "short", {"director.lease_seconds": LEASE_SECONDS, "director.budget_seconds": 10}
    )


def states(lab: LiveLab) -> list[str]:
    return [agent_state(lab.agent(vm)) for vm in VMS]


@contextmanager
def backup_that_holds(lab: LiveLab, settings: Path | None = None) -> Iterator["Popen[bytes]"]:
    """A backup whose guests are held while the block lasts, because the storage keeps it waiting."""
    backup = lab.start("backup", *VMS, settings=settings)
    assert backup.stderr is not None
    said = iter(backup.stderr.readline, b"")
    assert any(b"agents flush" in line for line in said), backup.communicate()
    with lock_group(lab):
        until(lambda: states(lab) == ["held", "held"] or backup.poll() is not None, 180, "a hold")
        assert backup.poll() is None, backup.communicate()
        yield backup


def newest(lab: LiveLab, vm: str) -> Any:
    """The newest restore point of a VM."""
    return lab.check("point", f"{vm}@latest", "--json").json["point"]


def is_frozen(shell: GuestShell) -> bool:
    return shell.run(WRITE, 20).status != 0


@pytest.mark.parametrize("snapshot_taken", [False, True])
def test_a_director_killed_while_guests_are_frozen(
    lab: LiveLab, points: Standing, short_lease: Path, snapshot_taken: bool
) -> None:
    """Nobody tells the guests to thaw: their own leases do. The next start clears the rest."""
    with backup_that_holds(lab, short_lease) as backup:
        assert is_frozen(lab.shell("db1"))
        if not snapshot_taken:
            backup.kill()
    if snapshot_taken:
        deadline = time.monotonic() + 60
        while len(lab.snapshots_on_disk()) == len(points.snapshots) and time.monotonic() < deadline:
            time.sleep(0.001)
        backup.kill()
    assert backup.wait(60) == -signal.SIGKILL
    until(lambda: states(lab) == ["idle", "idle"], LEASE_SECONDS + 30, "the thaw")
    assert not any(is_frozen(lab.shell(vm)) for vm in VMS)
    assert "Cleared what run" in lab.check("cleanup").out
    assert lab.assert_in_order() == points
    assert "Nothing was left behind" in lab.check("cleanup").out


def test_a_director_killed_while_it_copies(lab: LiveLab, points: Standing) -> None:
    """The next backup finishes the dead run from its own snapshot, says so, and makes points of its own."""
    with lab.start("backup", *VMS, "--full") as backup:
        assert backup.stderr is not None
        said = iter(backup.stderr.readline, b"")
        assert any(b"copying" in line for line in said), "it never came to copying"
        backup.kill()
    assert backup.returncode == -signal.SIGKILL
    assert len(lab.engine.snapshots(GROUP)) == len(points.snapshots) + 1
    assert states(lab) == ["idle", "idle"]
    result = lab.check("backup", *VMS, "--json").json
    assert any("Went on with run" in line for line in result["cleaned"])
    standing = lab.assert_in_order()
    assert standing.points[: len(points.points)] == points.points
    assert len(standing.points) == len(points.points) + 2 * len(VMS)
    assert lab.check("verify", "--json").json["damaged"] == []


def test_an_agent_killed_while_it_holds(lab: LiveLab) -> None:
    """Its watchdog thaws the guest at once; the point says what happened and claims no more."""
    shell = lab.shell("db1")
    with backup_that_holds(lab) as backup:
        shell.check(KILL_AGENT)
        # Long before the lease of the lab's own settings ends.
        until(lambda: not is_frozen(shell), 15, "the watchdog's thaw")
    _, err = backup.communicate(timeout=600)
    assert backup.returncode == 4, err
    (reason,) = newest(lab, "db1")["proof"]["reasons"]
    assert newest(lab, "db1")["proof"]["consistency"] == "crash"
    assert newest(lab, "app1")["proof"]["consistency"] == "app"
    assert "db1 is crash-consistent: " + reason[:30] in err.decode()
    assert "Consistency: crash" in lab.check("point", "db1@latest").out
    until(lambda: states(lab) == ["idle", "idle"], 60, "the agent's restart")
    lab.assert_in_order()


def test_a_vm_that_moves_during_the_hold_is_held_again(lab: LiveLab) -> None:
    with Loads(lab.lab) as loads:
        loads.start(RATE)
        try:
            with backup_that_holds(lab) as backup:
                lab.control.vmotion("db1", "esx2.lab")
            _, err = backup.communicate(timeout=600)
            assert backup.returncode == 0, err
            assert b"db1 moved during the hold; holding again" in err
            proofs = [newest(lab, vm)["proof"] for vm in VMS]
            assert [proof["consistency"] for proof in proofs] == ["app", "app"]
            assert proofs[0]["host_before"] == proofs[0]["host_after"] == "esx2.lab"
            # The second hold was another one: a late word about the first cannot touch it.
            assert {proof["hold"]["run"] for proof in proofs} == {newest(lab, "db1")["run"] + "-1"}
            assert_app_consistent(back_up(lab, loads))
        finally:
            lab.control.vmotion("db1", "esx1.lab")
    lab.assert_in_order()
