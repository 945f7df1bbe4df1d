"""The main job from end to end: two live guests under load, backed up, looked into, restored, proven."""

import base64
import json
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from main_job import RATE, Round, assert_app_consistent, assert_proven, back_up

from atoll_lab.load import Loads
from atoll_lab.pool import image, snapshot_image
from atoll_lab.vmfs import Volume
from live_lab import GROUP, LUNS, VMS, LiveLab

pytestmark = pytest.mark.lab

MANIFEST = Path(__file__).with_name("tree_manifest.py")


@dataclass(frozen=True)
class Job:
    """A full backup and an increment, and the guest's own list of its files."""

    full: Round
    increment: Round
    files: dict[str, Any]


@pytest.fixture(scope="module")
def job(lab: LiveLab) -> Iterator[Job]:
    """The load ends before anything is judged, so that what follows has the machine for itself."""
    files = _manifest_in_guest(lab)
    with Loads(lab.lab) as loads:
        loads.start(RATE)
        full = back_up(lab, loads, "--full")
        increment = back_up(lab, loads)
    yield Job(full, increment, files)


def test_inventory_shows_which_lun_lies_below_each_disk(lab: LiveLab) -> None:
    rows = lab.check("inventory", "--json").json
    assert {row["vm"] for row in rows} == set(VMS)
    found = {(row["vm"], row["disk"]): (row["datastore"], row["luns"]) for row in rows}
    assert found == {
        ("db1", "Hard disk 1"): ("vmfs1", ["lun1"]),
        ("db1", "Hard disk 2"): ("vmfs1", ["lun1"]),
        ("db1", "Hard disk 3"): ("vmfs2", ["lun2"]),
        ("app1", "Hard disk 1"): ("vmfs2", ["lun2"]),
    }
    naas = {lun.name: lun.naa for group in lab.engine.groups() for lun in group.luns}
    for row in rows:
        assert row["naas"] == [naas[lun] for lun in row["luns"]]
        assert (row["group"], row["storage"]) == (GROUP, "san1")
        assert row["powered_on"] is True and row["agent"] is True
    shown = lab.check("inventory").out
    assert "san1 / prod / lun1" in shown and "san1 / prod / lun2" in shown


@pytest.mark.parametrize("which", ["full", "increment"])
def test_both_points_are_app_consistent(job: Job, which: str) -> None:
    assert_app_consistent(getattr(job, which))


def test_an_increment_reads_a_fraction(job: Job) -> None:
    assert not any(point["incremental"] for point in job.full.result["points"])
    assert all(point["incremental"] for point in job.increment.result["points"])
    full, increment = job.full.total("read_bytes"), job.increment.total("read_bytes")
    assert full > 1 << 30
    assert 0 < increment < full / 10


def test_only_what_the_next_increment_needs_stays_on_the_storage(lab: LiveLab, job: Job) -> None:
    standing = lab.assert_in_order()
    assert standing.snapshots == (job.increment.result["snapshots"][0]["name"],)
    assert job.increment.result["retired_snapshots"] >= 1


def test_the_island_host_sees_no_production_lun(lab: LiveLab, job: Job) -> None:
    hosts = {host.name: host for host in lab.control.hosts()}
    assert hosts["island1.lab"].luns == ()
    assert len(hosts["esx1.lab"].luns) == len(hosts["esx2.lab"].luns) == len(LUNS)
    island = hosts["island1.lab"].iqn
    assert all(island not in item.initiators for item in lab.engine.presentations())


def test_the_island_shows_the_increment_and_nothing_stays(lab: LiveLab, job: Job) -> None:
    shown = lab.check("island", "refresh", "--json").json
    assert shown["kept"] == []
    run = job.increment.run
    assert {(one["name"], one["run"]) for one in shown["shown"]} == {(vm, run) for vm in VMS}
    status = lab.check("island", "status", "--json").json
    disks = {one["name"]: len(one["disks"]) for one in status["placeholders"]}
    assert (disks, status["runs"]) == ({"app1": 1, "db1": 3}, [run])
    hosts = {host.name: host for host in lab.control.hosts()}
    assert len(hosts["island1.lab"].luns) == len(LUNS)
    inventory = lab.check("inventory", "--json").json
    assert {row["vm"] for row in inventory} == set(VMS), "placeholders are no VMs to back up"
    assert lab.check("island", "clear", "--json").json["retired"] == [run]
    assert {host.name: host.luns for host in lab.control.hosts()}["island1.lab"] == ()
    history = lab.check("island", "history", "db1", "--json").json
    assert [(event["what"], event["run"]) for event in history] == [("made", run), ("emptied", run)]
    lab.assert_in_order()


def test_points_and_repository_say_the_same(lab: LiveLab, job: Job) -> None:
    points = lab.check("points", "app1", "--json").json
    assert [item["point"]["run"] for item in points][-2:] == [job.full.run, job.increment.run]
    shown = lab.check("point", f"db1@{job.full.run}").out
    assert "Consistency: app" in shown and "unbroken" in shown
    verified = lab.check("verify", "--json").json
    assert verified["damaged"] == [] and verified["checked_chunks"] > 1000


def test_a_file_tree_comes_back_as_it_was(lab: LiveLab, job: Job, tmp_path: Path) -> None:
    reference = f"app1@{job.increment.run}"
    lab.check("restore", "file", "--keep-privileges", reference, "/srv/files", str(tmp_path))
    restored = _manifest_here(tmp_path / "files")
    assert restored.keys() == job.files.keys()
    for path, entry in job.files.items():
        assert restored[path] == entry, bytes.fromhex(path)
    assert len(restored) > 1000
    sparse = (tmp_path / "files" / "sparse.bin").stat()
    assert sparse.st_size == 1 << 30 and sparse.st_blocks * 512 < 1 << 20


def test_odd_names_can_be_listed_and_named(lab: LiveLab, job: Job, tmp_path: Path) -> None:
    reference = f"app1@{job.increment.run}"
    listed = lab.check("files", reference, "/srv/files/odd", "--json").json
    names = {entry["path"].rsplit("/", 1)[-1] for entry in listed}
    assert {"with space", "日本語.txt", "-dash", "n" * 255, "bad\udcff\udcfeutf8"} <= names
    assert "n" * 20 in lab.check("files", reference, "/srv/files/odd").out
    for name in (b"bad\xff\xfeutf8", b"-dash", "e\u0301 combining".encode()):
        lab.check("restore", "file", reference, b"/srv/files/odd/" + name, str(tmp_path))
    assert Path(str(tmp_path) + "/bad\udcff\udcfeutf8").read_text() == "not UTF-8"
    assert (tmp_path / "-dash").read_text() == "-dash"


def test_disks_come_back_byte_for_byte(lab: LiveLab, job: Job, tmp_path: Path) -> None:
    """In both formats, and as they lie in the storage snapshot itself."""
    reference = f"db1@{job.increment.run}"
    raw, vmdk = tmp_path / "wal.raw", tmp_path / "wal.vmdk"
    lab.check("restore", "disk", reference, str(raw), "--disk", "3")
    lab.check("restore", "disk", reference, str(vmdk), "--disk", "db1_2.vmdk", "--format", "vmdk")
    compared = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "vmdk", str(raw), str(vmdk)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert compared.returncode == 0, compared.stdout + compared.stderr
    with Volume(image(lab.places.pool, GROUP, "lun2")) as volume:
        (extent,) = volume.extents("/db1/db1_2.vmdk")
    snapshot = snapshot_image(
        lab.places.pool, GROUP, job.increment.result["snapshots"][0]["name"], "lun2"
    )
    assert raw.stat().st_size == extent.length
    with raw.open("rb") as ours, snapshot.open("rb") as truth:
        truth.seek(extent.lun_offset)
        while piece := ours.read(8 << 20):
            assert piece == truth.read(len(piece)), f"before byte {ours.tell()}"


@pytest.mark.parametrize("vm", VMS)
def test_a_restore_test_finds_nothing_to_mend(lab: LiveLab, job: Job, vm: str) -> None:
    assert_proven(lab, job.increment, vm)
    evidence = lab.check("point", f"{vm}@{job.increment.run}", "--json").json["evidence"]
    assert [item["passed"] for item in evidence] == [True]


def _manifest_in_guest(lab: LiveLab) -> dict[str, Any]:
    script = base64.b64encode(MANIFEST.read_bytes()).decode()
    command = f"echo {script} | base64 -d | python3 - /srv/files"
    return _unpacked(lab.shell("app1").check(command, timeout_seconds=300))


def _manifest_here(root: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(MANIFEST), str(root)], capture_output=True, text=True, check=True
    )
    return _unpacked(done.stdout)


def _unpacked(printed: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(printed)))
    return found
