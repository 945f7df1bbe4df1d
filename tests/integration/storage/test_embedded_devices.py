"""Disks of a pool come and go while LUNs on it are in use."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from atoll.model.errors import PoolFullError, StorageConflictError, StorageUnreachableError
from atoll.storage.drivers.embedded import create_pool, open_embedded
from atoll.storage.engine import ManagedEngine, Rules
from atoll.storage.limits import Allowances
from atoll_lab.iscsi import IscsiLun

pytestmark = pytest.mark.needs_root

HOST = "iqn.1998-01.com.vmware:esx1"
MIB = 1 << 20
DATA = b"data" * (MIB // 4)


@dataclass
class Disks:
    """Loop devices of 512 MiB, the first with a pool on it."""

    engine: ManagedEngine
    paths: list[str]
    root: Path


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    paths = []
    for number in range(3):
        image = tmp_path / f"disk{number}"
        image.touch()
        with image.open("r+b") as file:
            file.truncate(512 * MIB)
        paths.append(run("losetup", "--find", "--show", str(image)))
    root = tmp_path / "pool"
    root.mkdir()
    engine = None
    try:
        run("mkfs.btrfs", "-q", "-m", "single", paths[0])
        run("mount", "-o", "noatime", paths[0], str(root))
        create_pool(root, "disks")
        engine = open_embedded(root, Rules(Allowances(reserve_bytes=MIB)), durability="cache")
        yield Disks(engine, paths, root)
    finally:
        if engine is not None:
            engine.stop()
        if root.is_mount():
            run("umount", str(root))
        for path in paths:
            run("losetup", "--detach", path)


def fill(engine: ManagedEngine, mebibytes: int) -> IscsiLun:
    engine.create_group("g")
    engine.create_lun("g", "a", 1024 * MIB)
    portal = engine.present("g", "a", [HOST]).portals[0]
    session = IscsiLun(f"{portal.address}:{portal.port}", portal.target, 1, HOST)
    for number in range(mebibytes):
        session.write(number * MIB, DATA)
    session.flush()
    return session


def test_data_moves_from_disk_to_disk_under_an_open_session(disks: Disks) -> None:
    engine, (first, second, third) = disks.engine, disks.paths
    (only,) = engine.devices()
    assert (only.path, only.size_bytes, only.errors, only.missing) == (first, 512 * MIB, 0, False)
    with fill(engine, 100) as session:
        engine.snapshot_group("g", "s")
        before = engine.capacity().total_bytes
        for _ in range(2):
            engine.add_device(second)
            engine.add_device(third)
        assert [device.path for device in engine.devices()] == disks.paths
        assert engine.capacity().total_bytes == before + 2 * 512 * MIB
        session.write(100 * MIB, DATA)
        for _ in range(2):
            engine.remove_device(first)
        assert [device.path for device in engine.devices()] == [second, third]
        for number in (0, 57, 100):
            assert session.read(number * MIB, MIB) == DATA
    reader = engine.open_snapshot("g", "a", "s")
    assert reader.read(99 * MIB, MIB) == DATA
    reader.close()
    # What went is empty: another file system can be made there without force.
    run("mkfs.btrfs", "-q", first)


def test_a_disk_that_others_have_no_room_for_stays(disks: Disks) -> None:
    engine, (first, second, _) = disks.engine, disks.paths
    with pytest.raises(StorageConflictError, match="only disk"):
        engine.remove_device(first)
    fill(engine, 300).close()
    engine.add_device(second)
    other = disks.root / "other"
    with other.open("wb") as file:
        for _ in range(350):
            file.write(DATA)
    run("sync", "-f", str(disks.root))
    with pytest.raises(PoolFullError, match="nothing was moved"):
        engine.remove_device(first)
    assert [device.path for device in engine.devices()] == [first, second]


def test_a_disk_in_use_elsewhere_is_not_taken(disks: Disks) -> None:
    engine, (_, second, _) = disks.engine, disks.paths
    run("mkfs.ext4", "-q", second)
    with pytest.raises(StorageUnreachableError, match=second):
        engine.add_device(second)
    with pytest.raises(StorageUnreachableError, match="/dev/none"):
        engine.add_device("/dev/none")
    assert len(engine.devices()) == 1


def test_a_removal_cut_short_is_repeated(disks: Disks) -> None:
    engine, (first, second, _) = disks.engine, disks.paths
    with fill(engine, 200) as session:
        engine.add_device(second)
        script = (
            "import sys; from pathlib import Path\n"
            "from atoll.storage.drivers.embedded import open_embedded\n"
            "open_embedded(Path(sys.argv[1])).remove_device(sys.argv[2])\n"
        )
        killed = subprocess.Popen([sys.executable, "-c", script, str(disks.root), first])
        time.sleep(1)
        killed.kill()
        killed.wait()
        engine.remove_device(first)  # whatever was done: not begun, under way, or over
        assert [device.path for device in engine.devices()] == [second]
        assert all(session.read(number * MIB, MIB) == DATA for number in range(200))
