"""LUNs with VMFS volumes on real iSCSI, and the simulated vCenter as a process of its own."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atoll.storage.drivers.embedded import create_pool, open_embedded
from atoll.storage.engine import ManagedEngine, Rules
from atoll.storage.limits import Allowances
from atoll.vsphere.client import VCenterSettings
from atoll_lab.pool import create_loop_pool, destroy, image
from atoll_lab.vcenter.control import Control, ControlError
from atoll_lab.vmfs import format_volume

USER, PASSWORD = "backup@vsphere.local", "s3cret-word"
LUN_BYTES = 600 << 20
SETTINGS = """
[[storage]]
name = "vsphere"
driver = "embedded"
root = "{pool}"
durability = "cache"
reserve_bytes = 1048576

[vcenter]
host = "{vcenter.host}"
port = {vcenter.port}
user = "{vcenter.user}"
password_file = "password"
ca_file = "{vcenter.ca_file}"

[director]
state_directory = "state"
"""


@contextmanager
def vmfs_engine(directory: Path) -> Iterator[ManagedEngine]:
    """A pool with group `prod` of two LUNs, each a VMFS volume of the LUN's name. Needs root."""
    disks = directory / "disks"
    running = None
    try:
        root = pool_of(directory)
        create_loop_pool(disks, 2 << 30)
        root.mkdir()
        create_pool(root, "vsphere")
        running = open_embedded(root, Rules(Allowances(reserve_bytes=1 << 20)), durability="cache")
        running.create_group("prod")
        for name in ("lun1", "lun2"):
            lun = running.create_lun("prod", name, LUN_BYTES)
            format_volume(
                image(root, "prod", name),
                LUN_BYTES,
                name,
                bytes.fromhex(lun.naa.removeprefix("naa.")),
            )
        yield running
    finally:
        if running is not None:
            running.stop()
        destroy(disks)


def write_settings(directory: Path, pool: Path, vcenter: VCenterSettings, more: str = "") -> Path:
    """`atoll.toml` for a pool and a simulator whose password lies in the same directory."""
    settings = directory / "atoll.toml"
    settings.write_text(SETTINGS.format(pool=pool, vcenter=vcenter) + more)
    return settings


def pool_of(directory: Path) -> Path:
    """The root of the pool that `vmfs_engine` makes there."""
    return directory / "disks/pool/pool"


class SimulatorProcess:
    """`python -m atoll_lab.vcenter`, started, killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "vcenter"
        self._password = directory / "password"
        self._password.write_text(PASSWORD + "\n")
        self._process: subprocess.Popen[bytes] | None = None
        self.control = Control(self.directory)

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [sys.executable, "-m", "atoll_lab.vcenter", "--dir", str(self.directory)]
        command += ["--user", USER, "--password-file", str(self._password)]
        self._process = subprocess.Popen(command)
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self._process.poll() is None, "the simulator ended at once"
            assert time.monotonic() < deadline, "the simulator does not answer"
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            self.control.ping()
        except ControlError:
            return False
        return True

    def kill(self) -> None:
        """As a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def finish(self) -> int:
        """Ask it to stop; its exit status."""
        self.control.shutdown()
        assert self._process is not None
        return self._process.wait(60)

    def settings(self) -> VCenterSettings:
        """Settings that verify its certificate."""
        endpoint = self.control.endpoint()
        return VCenterSettings(
            host=endpoint.host,
            port=endpoint.port,
            user=USER,
            password=PASSWORD,
            ca_file=Path(endpoint.ca_file),
        )

    def end(self) -> None:
        """Leave no process behind."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
