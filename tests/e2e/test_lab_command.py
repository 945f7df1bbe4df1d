"""`atoll lab`: two side by side, parts that died come back, down leaves nothing."""

import os
import signal
from collections.abc import Iterator

import pytest

from atoll_lab.guests.qemu import status as guest_status
from live_lab import VMS, LiveLab, lab_down, lab_up, remains, runtime_directory

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def other(lab: LiveLab) -> Iterator[LiveLab]:
    """A second lab beside the session's."""
    name = f"two{os.getpid()}"
    try:
        lab_up(name)
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
    point = other.check("backup", "app1", "--json").json["points"][0]
    assert point["proof"]["consistency"] == "app"
    other.assert_in_order()
    assert lab.standing() == before


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
    with other.start("backup", *VMS, "--full") as backup:
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
