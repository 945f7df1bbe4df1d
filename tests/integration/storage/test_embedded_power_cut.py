"""The power goes: what was acknowledged as on disk is there again, and everything around it."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest

from atoll.storage.drivers.embedded import create_pool, open_embedded
from atoll.storage.engine import ManagedEngine, Rules
from atoll.storage.limits import Allowances
from atoll_lab import pool as loop_pool
from atoll_lab.iscsi import IscsiLun

pytestmark = pytest.mark.needs_root

HOST = "iqn.1998-01.com.vmware:esx1"
MIB = 1 << 20


class Machine:
    """A pool whose disk can be taken out of a running machine, as it is at that instant."""

    def __init__(self, directory: Path, durability: Literal["cache", "disk"]) -> None:
        self.directory = directory
        self.durability: Literal["cache", "disk"] = durability
        self.root = loop_pool.create_loop_pool(directory, 1024 * MIB)
        create_pool(self.root, "cut")

    def engine(self) -> ManagedEngine:
        return open_embedded(
            self.root, Rules(Allowances(reserve_bytes=MIB)), durability=self.durability
        )

    def cut(self) -> None:
        """Take the disk out, then put it into a machine that knows nothing: no daemon, no /run."""
        engine = self.engine()
        run = engine.runtime_directory
        disk = self.directory / "pool.btrfs"
        taken = self.directory / "taken"
        # The file is what the disk has; what the file system still holds back is lost.
        subprocess.run(["cp", "--sparse=always", str(disk), str(taken)], check=True)
        for served in engine._backend.served():
            with engine._backend._targets.process(served) as process:
                process.signal(9)
                process.ended(60)
        shutil.rmtree(run)
        loop_pool.unmount(self.directory)
        taken.replace(disk)
        loop_pool.mount(self.directory)


@pytest.fixture(params=["disk", "cache"])
def machine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    made = Machine(tmp_path / "machine", request.param)
    yield made
    made.engine().stop()
    loop_pool.destroy(made.directory)


def connect(engine: ManagedEngine, lun: str) -> IscsiLun:
    shown = next(one for one in engine.presentations() if one.lun == lun)
    portal = shown.portals[0]
    return IscsiLun(f"{portal.address}:{portal.port}", portal.target, 1, HOST)


def test_nothing_that_was_promised_is_lost(machine: Machine) -> None:
    engine = machine.engine()
    engine.create_group("g")
    for lun in ("a", "b"):
        engine.create_lun("g", lun, 64 * MIB)
        engine.present("g", lun, [HOST])
    with connect(engine, "a") as first, connect(engine, "b") as second:
        for number in range(200):
            first.write(number * 4096, bytes([number]) * 4096)
        engine.snapshot_group("g", "s")
        engine.clone("g", "s", "c")
        engine.grow_lun("g", "b", 96 * MIB)
        with connect(engine, "b") as grown:
            for number in range(200):
                grown.write(number * 8192, bytes([255 - number]) * 8192)
            if machine.durability == "cache":
                first.flush()
                grown.flush()
            groups, shown = engine.groups(), engine.presentations()
            taken = engine.snapshots("g")
            machine.cut()
        del second
    after = machine.engine()
    assert after.reconcile() != []  # it serves again
    assert after.reconcile() == []
    assert after.groups() == groups
    assert after.presentations() == shown
    assert after.snapshots("g") == taken
    with connect(after, "a") as first, connect(after, "b") as second:
        assert second.read_capacity() == 96 * MIB
        for number in range(200):
            assert first.read(number * 4096, 4096) == bytes([number]) * 4096
            assert second.read(number * 8192, 8192) == bytes([255 - number]) * 8192
    with closing(after.open_snapshot("g", "a", "s")) as reader:
        assert reader.read(199 * 4096, 4096) == bytes([199]) * 4096
