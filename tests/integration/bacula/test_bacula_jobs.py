"""The recipe for Bacula, run by Bacula: the newest run mounted, backed up, restored and compared."""

import hashlib
import os
import runpy
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bacula_site import ATOLL, RECIPE, BaculaSite, await_that
from captured_guest import VMX, CapturedGuest
from mount_killer import kill_mount

from atoll.fuse import device

pytestmark = pytest.mark.needs_root

KILLER = Path(__file__).with_name("mount_killer.py")
MANIFEST = Path(__file__).parents[2] / "e2e/tree_manifest.py"
GUEST = "files/db1/files"
MADE_UP = {
    "files/",
    "files/db1/",
    "files/db1/image/",
    "files/db1/image/db1.vmx",
    "files/db1/image/db1.vmdk",
}
"""Names of the mounted tree that are the run's own; their time is the run's."""


def manifest(top: Path) -> dict[str, dict[str, Any]]:
    """A tree as Bacula can keep it: times in whole seconds, no sockets."""
    entries = runpy.run_path(str(MANIFEST))["manifest"](top)
    kept = {}
    for name, entry in entries.items():
        if stat.S_ISSOCK(int(entry["mode"], 8)):
            continue
        changed = entry["changed"]
        kept[bytes.fromhex(name)] = {
            **entry,
            "changed": None if changed is None else changed // 1_000_000_000,
        }
    return kept


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_full_an_incremental_and_their_restore(
    guest: CapturedGuest, bacula: BaculaSite, tmp_path: Path
) -> None:
    guest.capture("20260101-r1")
    first = digest(guest.disk)
    created = time.time()
    while int(time.time()) == int(created):  # Bacula compares whole seconds
        time.sleep(0.05)
    # Written after the capture and before the job: an incremental that asks for what is newer than
    # the job before it would never take this.
    with guest.inside() as top:
        with (top / "home/plain").open("r+b") as file:
            file.write(b"PLAIN")
        (top / "home/moved").write_bytes(b"here from elsewhere")
        os.utime(top / "home/moved", (10**9, 10**9))
        os.setxattr(top / "usr/bin/su", "user.more", b"1")
        (top / "many/name-0003").unlink()
    bacula.start()

    with ThreadPoolExecutor(2) as pool:
        files = pool.submit(bacula.run, "atoll-files", "level=Full")
        images = pool.submit(bacula.run, "atoll-images")
    (full, state), (image, image_state) = files.result(), images.result()
    assert (state, image_state) == ("T", "T"), bacula.log(full) + bacula.log(image)
    taken = bacula.files(full)
    assert taken > MADE_UP
    for name in ("volumes/kept", "files/volumes/kept", "image/raw/kept", "image/db1-flat.vmdk"):
        assert f"{GUEST}/{name}" in taken
    assert not any(name.startswith(("files/db1/volumes", "files/db1/image/raw")) for name in taken)
    assert bacula.files(image) == {
        "images/",
        "images/db1/",
        "images/db1/image/",
        "images/db1/image/db1.vmx",
        "images/db1/image/db1.vmdk",
        "images/db1/image/db1-flat.vmdk",
    }

    guest.capture("20260102-r2")
    increment, state = bacula.run("atoll-files")
    assert state == "T", bacula.log(increment)
    changed = ("home/", "home/plain", "home/sub/again", "home/moved", "usr/bin/su", "many/")
    assert bacula.files(increment) == MADE_UP | {f"{GUEST}/{name}" for name in changed}
    assert bacula.deleted(increment) == {f"{GUEST}/many/name-0003"}
    ((count, level, errors),) = bacula.rows(
        "SELECT JobFiles, Level, JobErrors FROM Job WHERE JobId = ?", increment
    )
    assert (count, level, errors) == (
        len(MADE_UP) + len(changed) + 1,
        "I",
        0,
    )  # and the deleted one

    with ThreadPoolExecutor(2) as pool:
        restores = [
            pool.submit(bacula.restore, f"atoll-{kind}", tmp_path / kind)
            for kind in ("files", "images")
        ]
    for job, state in (restore.result() for restore in restores):
        assert state == "T", bacula.log(job)
    restored = tmp_path / "files" / str(bacula.mount / "files/db1").lstrip("/")
    with guest.inside() as top:
        truth = manifest(top)
    assert len(truth) > 320
    assert "security.capability" in truth[b"usr/bin/su"]["attributes"]
    found = manifest(restored / "files")
    # Bacula sets the time of a directory that comes from the full before it puts newer files into it.
    for name in (b"home/sub", b"usr/bin"):
        del found[name]["changed"], truth[name]["changed"]
    assert found == truth
    assert (restored / "image/db1.vmx").read_bytes() == VMX
    sparse = restored / "files/home/sparse"
    assert sparse.stat().st_blocks * 512 < 1 << 20
    restored = tmp_path / "images" / str(bacula.mount / "images/db1/image").lstrip("/")
    assert digest(restored / "db1-flat.vmdk") == first
    assert "db1-flat.vmdk" in (restored / "db1.vmdk").read_text()


def test_a_job_fails_that_cannot_read_everything(
    guest: CapturedGuest, bacula: BaculaSite, tmp_path: Path
) -> None:
    frail = tmp_path / "atoll"
    frail.write_text(f'#!/bin/sh\nexec {sys.executable} {KILLER} "$@"\n')
    frail.chmod(0o700)
    bacula.start(ATOLL=frail)
    job, state = bacula.run("atoll-files", "level=Full")
    assert state == "f", "there is no run to mount"
    assert "ClientBeforeJob: atoll: " in bacula.log(job)
    assert bacula.files(job) == set()
    assert bacula.mount / "files" not in device.mounts()

    guest.capture("20260101-r1")
    job, state = bacula.run("atoll-files", "level=Full")
    assert state == "E", "the tree died before it was read"
    assert "this job has not read everything" in bacula.log(job)
    assert bacula.mount / "files" not in device.mounts()

    # The site has no repository, so nothing can be captured, and an older run will not do instead.
    before = ["sh", bacula.etc / "before-job", bacula.mount / "files", "db1"]
    captured = subprocess.run(before, env=bacula.environment, capture_output=True, check=False)
    assert captured.returncode == 25, captured.stderr
    assert bacula.mount / "files" not in device.mounts()


def test_a_cancelled_job_leaves_nothing_and_replaces_what_one_before_left(
    guest: CapturedGuest, bacula: BaculaSite
) -> None:
    guest.capture("20260101-r1")
    # What a File Daemon that was killed leaves: a mount, here of one whose process is gone too.
    place = bacula.mount / "files"
    left = [ATOLL, "--config", guest.settings, "mount", "latest", place, "--background"]
    place.mkdir(mode=0o700)
    subprocess.run(left, check=True, capture_output=True)
    kill_mount(place)
    assert place in device.mounts()

    bacula.start()
    away = bacula.archive.rename(bacula.archive.with_name("away"))
    job = bacula.begin("atoll-files")
    # The Storage Daemon finds no volume and asks for one, while the job holds the mount.
    await_that(
        lambda: "BLOCKED" in bacula.console("status storage=atoll-sd"), lambda: bacula.log(job)
    )
    assert (place / "db1/files/etc/fstab").exists()
    bacula.console(f"cancel jobid={job} yes")
    assert bacula.await_end(job) == "A"
    # The client's last script may outlive the job that it belongs to.
    await_that(lambda: place not in device.mounts(), lambda: bacula.log(job))
    away.rename(bacula.archive)


def test_an_installed_recipe_is_not_written_over(bacula: BaculaSite) -> None:
    before = (bacula.etc / "bacula-dir.conf").read_bytes()
    again = subprocess.run(
        ["sh", RECIPE / "install"],
        env={**bacula.environment, "ETC": str(bacula.etc)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert (bacula.etc / "bacula-dir.conf").read_bytes() == before
    passwords = {line.split('"')[1] for line in before.decode().splitlines() if "Password" in line}
    assert len(passwords) == 3
    assert (bacula.etc / "bconsole.conf").stat().st_mode & 0o007 == 0
