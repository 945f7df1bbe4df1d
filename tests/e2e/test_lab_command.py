"""`atoll lab`: two side by side, parts that died come back, down leaves nothing."""

import os
import signal
from collections.abc import Iterator

import pytest
from main_job import RATE, assert_app_consistent, assert_proven, back_up

from atoll_lab.guests.qemu import status as guest_status
from atoll_lab.load import Loads
from live_lab import VMS, LiveLab, lab_down, lab_up, remains, runtime_directory

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def other(lab: LiveLab) -> Iterator[LiveLab]:
    """A second lab beside the session's, with each LUN in a group of its own."""
    name = f"two{os.getpid()}"
    try:
        lab_up(name, "--apart")
        yield LiveLab(name)
    finally:
        lab_down(name)


def test_two_labs_know_nothing_of_each_other(lab: LiveLab, other: LiveLab) -> None:
    mine, theirs = (
        {row["instance_uuid"] for row in one.check("inventory", "--json").json}
        for one in (lab, other)
    )
    assert mine.isdisjoint(theirs)
    portals = [
        {(p.address, p.port) for item in one.engine.presentations() for p in item.portals}
        for one in (lab, other)
    ]
    assert portals[0].isdisjoint(portals[1])
    before = lab.standing()
    backup = other.check("backup", "app1", "--json").json
    assert backup["points"][0]["proof"]["consistency"] == "app"
    # db1 has disks elsewhere too, so the one group's snapshot is of no use to it.
    assert [(each["name"], each["consistency"]) for each in backup["bystanders"]] == [
        ("db1", "none")
    ]
    other.assert_in_order()
    assert lab.standing() == before


def test_a_database_over_two_lun_groups_comes_back_whole(lab: LiveLab, other: LiveLab) -> None:
    """Its data and its log lie in different groups, which only the hold makes one instant."""
    with Loads(other.lab) as loads:
        loads.start(RATE)
        made = [back_up(other, loads) for _ in range(2)]
    for each in made:
        assert_app_consistent(each)
    point = made[1].point("db1")
    assert point["incremental"]
    assert [each["group"] for each in point["proof"]["instants"]] == ["prod-lun1", "prod-lun2"]
    assert_proven(other, made[1], "db1")
    shown = other.check("storage", "snapshot", "show", "prod-lun2", point["snapshot"], "--json")
    (db1,) = (vm for vm in shown.json["vms"] if vm["name"] == "db1")
    assert db1["proof"] == point["proof"]
    other.assert_in_order()


def test_up_again_starts_what_died_and_keeps_what_lives(lab: LiveLab, other: LiveLab) -> None:
    app1 = guest_status(other.lab.run_directory("app1"))
    db1 = guest_status(other.lab.run_directory("db1"))
    assert app1 is not None and db1 is not None
    assert set(parts(other).values()) == {"up"}
    points = other.standing().points
    os.kill(app1.pid, signal.SIGKILL)
    os.kill(other.control.endpoint().pid, signal.SIGKILL)
    assert parts(other) == {"storage": "up", "vCenter": "down", "db1": "up", "app1": "down"}
    lab_up(other.name)
    again = guest_status(other.lab.run_directory("app1"))
    assert again is not None and again.pid != app1.pid
    assert guest_status(other.lab.run_directory("db1")) == db1
    assert set(parts(other).values()) == {"up"}
    assert other.standing().points == points
    assert set(other.standing().agents) == set(VMS)


def test_down_leaves_nothing(lab: LiveLab, other: LiveLab) -> None:
    """Not in the middle of a run, where it is refused; else all of it, also when called once more."""
    runtime = runtime_directory(other.name)
    # So that it copies for longer than another command takes to start.
    slow = other.settings("slow", {"limits.read_mib_per_second": 40})
    with other.start("backup", *VMS, "--full", settings=slow) as backup:
        assert backup.stderr is not None
        said = iter(backup.stderr.readline, b"")
        assert any(b"copying" in line for line in said)
        refused = other.run("lab", "down", other.name)
        assert (refused.status, "still working" in refused.complaint) == (26, True)
        assert set(parts(other).values()) == {"up"}
        backup.communicate(timeout=300)
    assert backup.returncode == 0
    lab_down(other.name)
    assert remains(other.name, runtime) == []
    lab_down(other.name)
    assert set(parts(lab).values()) == {"up"}
    assert lab.standing().agents == dict.fromkeys(VMS, "idle")


def parts(one: LiveLab) -> dict[str, str]:
    """What `atoll lab status` says of each part."""
    rows = one.check("lab", "status", one.name, "--json").json
    return {row["part"]: row["state"] for row in rows}
