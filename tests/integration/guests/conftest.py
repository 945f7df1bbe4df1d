"""Lab guests that really boot, on copies of the cached disks, with a witness inside."""

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from atoll_lab.guests import qemu
from atoll_lab.guests.image import guest_disks

WITNESS = Path(__file__).parent / "witness.py"


@pytest.fixture(scope="session", autouse=True)
def root_and_disks():
    if os.geteuid() != 0:
        pytest.skip("building and booting guests needs root")


@pytest.fixture
def guest_place():
    """A short path, because UNIX sockets live in it."""
    place = Path(tempfile.mkdtemp(prefix="atoll-guest-"))
    yield place
    shutil.rmtree(place)


@pytest.fixture
def config_drive(guest_place):
    """A tar that installs a witness in the agent's place, and its configuration."""
    path = guest_place / "config.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in (
            ("etc/atoll/agent.json", b"{}"),
            ("usr/lib/atoll/atoll-agent.pyz", WITNESS.read_bytes()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        # Whole sectors, as a disk has them.
        tar.fileobj.flush()
    with path.open("r+b") as tail:
        tail.truncate(-(-path.stat().st_size // 512) * 512)
    return path


@pytest.fixture
def boot(guest_place):
    """Boots a role on writable copies of its disks; cuts its power at the end."""
    booted = []

    def start(role, **changes):
        run_dir = guest_place / role
        run_dir.mkdir(exist_ok=True)
        disks = []
        for disk in guest_disks(role):
            copy = run_dir / disk.path.name
            if not copy.exists():
                subprocess.run(["cp", "--sparse=always", disk.path, copy], check=True)
            disks.append(qemu.FileDisk(copy))
        booted.append(run_dir)
        spec = qemu.GuestSpec(role, 768 << 20, tuple(disks))
        return qemu.start(replace(spec, **changes), run_dir)

    yield start
    for run_dir in booted:
        qemu.kill(run_dir)
