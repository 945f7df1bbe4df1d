"""The recipes that mount a run: backed up by each program, restored by it, and compared."""

import fcntl
import json
import subprocess
from pathlib import Path

import pytest
from guest_disk import MANY, SYSTEM_BYTES
from recipe_farm import DAMAGED, WINDOWS, RecipeFarm, lost

from mounted_tree import mounted_tree, served_vm

pytestmark = pytest.mark.needs_root

NO_SOCKETS = {"home/sock": "gone"}
"""What restic, Borg and tar do not keep."""

UNCHANGED = {"etc/fstab", "usr/bin/su", "home/random", "image/raw/disk1.img"}


@pytest.fixture
def password(tmp_path: Path) -> Path:
    password = tmp_path / "its password"
    password.write_text("s3cret-word\n")
    return password


def assert_only_these_failed(done: subprocess.CompletedProcess[str], *vms: str) -> None:
    """The recipe fails for VMs that are damaged or not there, in the end and not before."""
    assert done.returncode == 1, done.stderr
    assert f"not, or not wholly, backed up: {' '.join(vms)}\n" in done.stderr


def test_restic(farm: RecipeFarm, tmp_path: Path, password: Path) -> None:
    place = {
        "RESTIC_REPOSITORY": tmp_path / "repository",
        "RESTIC_PASSWORD_FILE": password,
        "RESTIC_CACHE_DIR": tmp_path / "cache",
    }
    farm.command("restic", "init", **place)
    first = farm.recipe("restic", "db1", run=0, **place)
    assert first.returncode == 0, first.stderr
    second = farm.recipe("restic", DAMAGED, "db1", **place, RECIPE_OPTIONS="--json")
    assert_only_these_failed(second, DAMAGED)
    assert '"item":"files/bad"' in second.stderr
    summaries = [json.loads(line) for line in second.stdout.splitlines() if '"summary"' in line]
    (of_db1,) = [each for each in summaries if each["files_unmodified"]]
    names = len(UNCHANGED) + MANY - 2 + 1  # and the one with the odd name
    assert of_db1["files_unmodified"] == names
    farm.assert_nothing_left()

    out = tmp_path / "out"
    farm.command("restic", "restore", "latest", "--host", "db1", "--target", out, **place)
    farm.assert_images(out / "image", "db1", farm.states[1])
    assert lost(out / "files", farm.states[1]) == NO_SOCKETS


def test_borg(farm: RecipeFarm, tmp_path: Path, password: Path) -> None:
    place = {
        "BORG_REPO": str(tmp_path / "repository"),
        "BORG_PASSCOMMAND": f"cat '{password}'",
        "BORG_BASE_DIR": str(tmp_path / "base"),
    }
    farm.command("borg", "init", "-e", "repokey", **place)
    first = farm.recipe("borg", "db1", run=0, **place)
    assert first.returncode == 0, first.stderr
    second = farm.recipe("borg", DAMAGED, "db1", **place, RECIPE_OPTIONS="--list")
    assert_only_these_failed(second, DAMAGED)
    assert "files/bad: read: [Errno 5] Input/output error" in second.stderr
    told = [line for line in second.stderr.splitlines() if " files/" in line]
    unmodified = {line.partition(" files/")[2] for line in told if line.startswith("U ")}
    assert unmodified >= UNCHANGED
    assert len(unmodified) == len(UNCHANGED) + MANY - 2 + 1
    farm.assert_nothing_left()

    listed = farm.command("borg", "list", "--last", "1", "-P", "db1-", "--short", **place)
    out = tmp_path / "out"
    out.mkdir()
    archive = f"::{listed.stdout.strip()}"
    farm.command("borg", "extract", "--sparse", "--numeric-ids", archive, cwd=out, **place)
    farm.assert_images(out / "image", "db1", farm.states[1])
    assert lost(out / "files", farm.states[1]) == NO_SOCKETS


def test_rsync(farm: RecipeFarm, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror of it"
    (mirror / "db1/files").mkdir(parents=True)
    (mirror / "db1/files/gone").write_bytes(b"deleted since")
    (mirror / "db1/image").mkdir()
    image = mirror / "db1/image/db1-flat.vmdk"
    image.write_bytes(bytes(SYSTEM_BYTES))
    before = image.stat().st_ino
    done = farm.recipe("rsync", mirror)
    assert_only_these_failed(done, DAMAGED)
    assert f'read errors mapping "{farm.top}/{DAMAGED}/files/bad"' in done.stderr
    assert f"{WINDOWS} has no tree of files that Atoll reads" in done.stderr
    farm.assert_nothing_left()

    assert image.stat().st_ino == before, "written in place"
    for vm in ("db1", WINDOWS, DAMAGED):
        farm.assert_images(mirror / vm / "image", vm, farm.states[1])
    assert (mirror / DAMAGED / "files/good").read_bytes() == b"good" * 20_000
    assert "refs" in (mirror / WINDOWS / "volumes/not-read.txt").read_text().lower()
    back = tmp_path / "back"
    farm.command("rsync", "-aHAXS", "--numeric-ids", f"{mirror}/db1/files/", f"{back}/")
    assert lost(back, farm.states[1]) == {}


def test_tar(farm: RecipeFarm, tmp_path: Path) -> None:
    done = farm.recipe("tar", tmp_path, "db9", "db1", DAMAGED, WINDOWS)
    assert_only_these_failed(done, "db9", DAMAGED)
    assert "there is no VM db9 in this run" in done.stderr
    farm.assert_nothing_left()

    found = {path.name.rpartition("-")[0]: path for path in tmp_path.iterdir()}
    assert {name: path.suffix for name, path in found.items()} == {
        "db1": ".tar",
        WINDOWS: ".tar",
        DAMAGED: ".incomplete",
    }
    out = tmp_path / "out"
    for vm in ("db1", WINDOWS):
        (out / vm).mkdir(parents=True)
        options = ("--acls", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-p")
        farm.command("tar", "-xf", found[vm], *options, "-C", out / vm)
        farm.assert_images(out / vm / "image", vm, farm.states[1])
    assert lost(out / "db1/files", farm.states[1]) == NO_SOCKETS
    sparse = (out / "db1/files/home/sparse").stat()
    assert sparse.st_blocks * 512 < sparse.st_size // 100, "holes are kept"


def test_a_run_that_cannot_be_mounted_is_a_failure(farm: RecipeFarm, tmp_path: Path) -> None:
    with (tmp_path / "mnt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = farm.recipe("tar", tmp_path, ATOLL_MOUNT=tmp_path / "mnt")
    assert refused.returncode == 75
    assert "another recipe is at work" in refused.stderr
    # As a recipe that was killed leaves it.
    with mounted_tree([served_vm("db1", [])], farm.top):
        failed = farm.recipe("tar", tmp_path, ATOLL_RUN="20200101-none")
    assert failed.returncode == 18
    assert "no snapshots of a run '20200101-none'" in failed.stderr
    farm.assert_nothing_left()
    assert not list(tmp_path.glob("*.tar*"))
