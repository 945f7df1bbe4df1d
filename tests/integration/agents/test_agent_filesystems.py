"""Freezing each file system for real under load: what a copy of the disk then holds."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from module_guest import Writer, agent, disk
from private_guest import mounted, run

pytestmark = pytest.mark.needs_root

CHECKS = {
    "ext4": ("e2fsck", "-f", "-n"),
    "xfs": ("xfs_repair", "-n"),
    "btrfs": ("btrfs", "check", "--readonly"),
}


@pytest.fixture(params=sorted(CHECKS))
def fstype(request):
    if request.param not in Path("/proc/filesystems").read_text().split():
        pytest.skip(f"this kernel has no {request.param}")
    if shutil.which(f"mkfs.{request.param}") is None:
        pytest.skip(f"no mkfs.{request.param} here")
    return request.param


def numbers(where):
    """A writer of numbered files and of one log that it syncs after each line."""

    def write(number):
        with (where / "log").open("a") as log:
            log.write(f"{number}\n")
            log.flush()
            os.fsync(log.fileno())
        (where / "files" / str(number)).write_bytes(os.urandom(5000))

    (where / "files").mkdir()
    return Writer(write)


def test_a_copy_of_a_frozen_disk_has_all_that_was_written_before(fstype, tmp_path):
    image, where, copy = tmp_path / "disk.img", tmp_path / "disk", tmp_path / "copy.img"
    with (
        disk(image, where, fstype, megabytes=320),
        numbers(where) as writer,
        agent([], [where]) as holding,
    ):
        for name in ("a", "b", "c"):
            writer.goes_on()
            held = holding.freeze(name)
            assert held["filesystems"] == [str(where)]
            before = writer.acknowledged
            run("cp", "--sparse=always", image, copy)
            assert writer.acknowledged == before, "nothing is written while frozen"
            thawed = holding.thaw(name)
            assert (thawed["held"], thawed["reason"]) == (True, "")
        writer.goes_on()
    # Two file systems with the same identity must not be mounted at once.
    with mounted(copy, tmp_path / "copy") as mount:
        written = [int(line) for line in (mount / "log").read_text().split()]
        assert written == list(range(1, len(written) + 1))
        assert before <= len(written) <= before + 1, "one may be unacknowledged"
        # Not synced by the writer: the freeze itself has written these.
        for number in written[:before]:
            assert (mount / "files" / str(number)).stat().st_size == 5000
    done = subprocess.run([*CHECKS[fstype], copy], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_lease_or_the_agents_death_ends_is_thawed(fstype, tmp_path):
    where = tmp_path / "disk"
    with (
        disk(tmp_path / "disk.img", where, fstype, megabytes=320),
        numbers(where) as writer,
        agent([], [where]) as holding,
    ):
        holding.freeze("a", lease=1)
        writer.goes_on()
        assert "lease of 1 s ended" in holding.thaw("a")["reason"]
        holding.freeze("b")
        holding.kill()
        writer.goes_on()
