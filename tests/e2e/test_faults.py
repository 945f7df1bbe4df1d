"""What goes wrong: one clear sentence, an exit status of its own, and nothing half-done."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.repository.keys import create_key_file
from atoll_lab.vcenter.control import NewDisk
from live_lab import VMS, LiveLab, Outcome, Standing

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def points(lab: LiveLab) -> Iterator[Standing]:
    """A lab with a restore point of each VM, and how it stands then."""
    lab.check("backup", *VMS)
    yield lab.assert_in_order()


def refused(lab: LiveLab, standing: Standing, outcome: Outcome, status: int, says: str) -> None:
    """The command failed as it should, and the site stands as it stood."""
    assert outcome.status == status, outcome
    assert re.search(says, outcome.complaint), outcome.complaint
    assert "Traceback" not in outcome.err
    secret = (lab.places.root / "vcenter.password").read_text().strip()
    assert secret not in outcome.err + outcome.out
    assert lab.standing() == standing


def test_a_wrong_vcenter_password(lab: LiveLab, points: Standing) -> None:
    wrong = lab.places.root / "wrong.password"
    wrong.write_text("not-the-password\n")
    settings = lab.settings("password", {"vcenter.password_file": wrong})
    outcome = lab.run("backup", *VMS, settings=settings)
    assert "not-the-password" not in outcome.err
    refused(lab, points, outcome, 10, "password")


def test_a_vcenter_that_is_away(lab: LiveLab, points: Standing) -> None:
    settings = lab.settings("away", {"vcenter.port": 9})
    refused(lab, points, lab.run("backup", *VMS, settings=settings), 11, "vCenter 127.0.0.1:9")


def test_a_pool_that_is_not_mounted(lab: LiveLab, points: Standing) -> None:
    settings = lab.settings("unmounted", {"storage.root": lab.places.root / "nowhere"})
    refused(lab, points, lab.run("backup", *VMS, settings=settings), 12, "nowhere")


def test_a_directory_that_is_no_pool_is_not_taken_for_an_empty_one(
    lab: LiveLab, points: Standing
) -> None:
    (lab.places.root / "plain").mkdir(exist_ok=True)
    settings = lab.settings("plain", {"storage.root": lab.places.root / "plain"})
    refused(lab, points, lab.run("backup", *VMS, settings=settings), 12, "plain")


def test_a_pool_too_full_for_a_snapshot(lab: LiveLab, points: Standing) -> None:
    settings = lab.settings("full", {"storage.reserve_bytes": 1 << 50})
    outcome = lab.run("backup", *VMS, settings=settings)
    refused(lab, points, outcome, 13, "free|room|full")
    assert "guests held" not in outcome.err, "nobody is held for nothing"


def test_a_vm_nobody_knows(lab: LiveLab, points: Standing) -> None:
    refused(lab, points, lab.run("backup", "db2"), 14, "no VM called db2; the nearest is")


def test_a_vm_on_a_local_datastore(lab: LiveLab, points: Standing) -> None:
    disk = NewDisk(2000, "Hard disk 1", "scratch1/scratch1.vmdk", 1 << 30, "esx1-local")
    lab.control.add_vm(
        "scratch1", "esx1-local", "scratch1/scratch1.vmx", [disk], "esx1.lab", "debian"
    )
    try:
        refused(lab, points, lab.run("backup", "scratch1"), 15, "local datastore esx1-local")
    finally:
        lab.control.remove_vm("scratch1")


def test_a_guest_without_an_agent(lab: LiveLab, points: Standing) -> None:
    settings = lab.settings("unenrolled", {"agents.directory": lab.places.root / "no-agents"})
    refused(lab, points, lab.run("backup", "db1", settings=settings), 16, "No agent .* db1")


def test_an_agent_that_does_not_answer(lab: LiveLab, points: Standing) -> None:
    agents = lab.places.root / "silent-agents"
    shutil.copytree(lab.places.agents, agents)
    registry = agents / "agents.json"
    registry.write_text(re.sub(r'"port": \d+', '"port": 9', registry.read_text()))
    settings = lab.settings("silent", {"agents.directory": agents})
    outcome = lab.run("backup", "db1", settings=settings)
    refused(lab, points, outcome, 16, "agent of db1 .* does not answer")


def test_a_key_that_opens_another_repository(lab: LiveLab, points: Standing) -> None:
    other = lab.places.root / "other.key"
    create_key_file(other)
    settings = lab.settings("key", {"repository.key_file": other})
    refused(lab, points, lab.run("backup", *VMS, settings=settings), 22, "key")


def test_a_repository_that_is_not_there(lab: LiveLab, points: Standing) -> None:
    settings = lab.settings("lost", {"repository.location": lab.places.root / "lost"})
    refused(lab, points, lab.run("backup", *VMS, settings=settings), 25, "lost")


def test_a_point_and_a_file_that_do_not_exist(
    lab: LiveLab, points: Standing, tmp_path: Path
) -> None:
    refused(lab, points, lab.run("files", "db1@20200101"), 18, "db1")
    outcome = lab.run("restore", "file", "app1@latest", "/no/such/file", str(tmp_path / "out"))
    refused(lab, points, outcome, 19, "There is no /no ")
    assert not list(tmp_path.rglob("*file*"))


def test_a_target_that_exists_is_not_overwritten(
    lab: LiveLab, points: Standing, tmp_path: Path
) -> None:
    target = tmp_path / "disk.raw"
    target.write_bytes(b"precious")
    outcome = lab.run("restore", "disk", "app1@latest", str(target))
    refused(lab, points, outcome, 28, "disk.raw")
    assert target.read_bytes() == b"precious"


def test_a_damaged_pack_is_found_and_the_points_it_touches_are_named(
    lab: LiveLab, points: Standing, tmp_path: Path
) -> None:
    copy = tmp_path / "repository"
    shutil.copytree(lab.places.repository, copy)
    settings = lab.settings("damaged", {"repository.location": copy})
    named = False
    packs = [path for path in (copy / "packs").rglob("*") if path.is_file()]
    for pack in sorted(packs, key=lambda path: path.stat().st_size, reverse=True):
        whole = pack.read_bytes()
        middle = len(whole) // 2
        pack.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        outcome = lab.run("verify", settings=settings)
        assert outcome.status == 17, outcome
        assert pack.name in outcome.err
        assert "Traceback" not in outcome.err
        named = any(vm in outcome.err for vm in VMS)
        if named:
            break
        pack.write_bytes(whole)  # of a VM that others have made points of
    assert named
    statuses = set()
    for vm in VMS:
        disks = lab.check("point", f"{vm}@latest", "--json").json["point"]["disks"]
        for number in range(1, len(disks) + 1):
            target = tmp_path / f"{vm}-{number}.raw"
            done = lab.run(
                "restore", "disk", f"{vm}@latest", str(target), "--disk", str(number),
                settings=settings,
            )  # fmt: skip
            statuses.add(done.status)
            assert target.exists() is (done.status == 0)
            if done.status:
                assert done.complaint
    assert statuses == {0, 17}
    assert not [path for path in tmp_path.iterdir() if path.suffix not in ("", ".raw")]
    assert lab.standing() == points


def test_two_runs_at_once(lab: LiveLab, points: Standing) -> None:
    """On the same LUN groups: each as if it were alone."""
    with lab.start("backup", "db1", "--json") as first:
        second = lab.check("backup", *VMS, "--json").json
        out, err = first.communicate(timeout=300)
    assert first.returncode == 0, err
    for run, vms in ((json.loads(out), ["db1"]), (second, VMS)):
        made = {point["vm"]: point for point in run["points"]}
        assert set(made) == set(vms)
        for point in made.values():
            assert (point["proof"]["consistency"], point["incremental"]) == ("app", True), point
    assert len(lab.assert_in_order().points) == len(points.points) + 3
