"""Two VMs on VMFS behind iSCSI, of which `atoll capture` makes runs, and the recipes run on them."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guest_disk import (
    MIB,
    SYSTEM_BYTES,
    change,
    inside,
    make_damaged_disk,
    make_system_disk,
    manifest,
)

from atoll.fuse import device
from atoll.model.progress import Silent
from atoll.service.capturing import capture_vms
from atoll.wiring import create_repository, open_site
from atoll_lab.blueprint import HOSTS
from atoll_lab.pool import image
from atoll_lab.vcenter.control import NewDisk
from atoll_lab.vmfs import Volume
from iscsi_site import SimulatorProcess, write_settings

RECIPES = Path(__file__).parents[3] / "recipes"
WINDOWS = "win 1"
"""A VM without a file system that Atoll reads, and with a name that a script may stumble over."""

DAMAGED = "bad1"
"""A VM with a file that cannot be read, beside one that can."""

DISKS = {
    "db1": (("lun1", SYSTEM_BYTES), ("lun2", 8 * MIB)),
    WINDOWS: (("lun2", 4 * MIB),),
    DAMAGED: (("lun1", 8 * MIB),),
}
SECTIONS = """
[repository]
location = "repository"
key_file = "key"

[agents]
directory = "agents"
"""


@dataclass(frozen=True)
class State:
    """What a run must give back: the files of db1, and each disk's content by VM and number."""

    run: str
    files: dict[str, Any]
    disks: dict[tuple[str, int], str]


@dataclass
class RecipeFarm:
    """The site, its runs, and how recipes are run."""

    work: Path
    pool: Path
    simulator: SimulatorProcess
    states: list[State] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.settings = write_settings(self.work, self.pool, self.simulator.settings(), SECTIONS)
        self.top = self.work / "mnt"
        self.old_system_disk = self.work / "old-system.img"
        self.old_data_disk = self.work / "old-data.img"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {
            **os.environ,
            "PATH": path,
            "TZ": "UTC",
            "ATOLL_CONFIG": str(self.settings),
            "ATOLL_MOUNT": str(self.top),
        }

    def build(self) -> None:
        """Disks, VMs, and two runs with a change between them."""
        create_repository(self.settings)
        make_system_disk(self._disk("db1", 1), self.work / "scratch")
        noise = os.urandom(4 * MIB)
        self._disk("db1", 2).write_bytes(noise[: 3 * MIB] + bytes(4 * MIB) + noise[3 * MIB :])
        # What Windows leaves at the start of a disk without partitions.
        boot = b"\xeb\x52\x90ReFS\0\0\0\0".ljust(510, b"\0") + b"\x55\xaa"
        self._disk(WINDOWS, 1).write_bytes(boot + noise[: 4 * MIB - len(boot)])
        make_damaged_disk(self._disk(DAMAGED, 1), self.work / "scratch")
        self._put_on_vmfs()
        self.states.append(self._capture())
        for number, kept in ((1, self.old_system_disk), (2, self.old_data_disk)):
            shutil.copy(self._disk("db1", number), kept)
        with inside(self._disk("db1", 1), self.work / "scratch") as top:
            change(top)
        with self._disk("db1", 2).open("r+b") as file:
            file.write(bytes(MIB))  # freed and zeroed
            for offset in (2 * MIB + 4096, 5 * MIB, 8 * MIB - 512):
                file.seek(offset)
                file.write(os.urandom(512))
        for number in (1, 2):
            self._write(number)
        self.states.append(self._capture())

    def recipe(
        self, name: str, *words: object, run: int = 1, **environment: object
    ) -> subprocess.CompletedProcess[str]:
        """Run a recipe on the first or second run, to its end."""
        return subprocess.run(
            ["sh", RECIPES / f"{name}.sh", *map(str, words)],
            env=self._with({"ATOLL_RUN": self.states[run].run, **environment}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def command(
        self, *words: object, cwd: Path | None = None, **environment: object
    ) -> subprocess.CompletedProcess[str]:
        """Run a program that must succeed."""
        done = subprocess.run(
            [str(word) for word in words],
            env=self._with(environment),
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    def assert_nothing_left(self) -> None:
        """No mount, and no process that serves: what still tidies up ends by itself."""
        assert self.top not in device.mounts()
        verbs = {b"mount", b"export"}
        while any(
            verbs & set(words) and os.fsencode(self.states[1].run) in words
            for words in _command_lines()
        ):
            time.sleep(0.02)

    def assert_images(self, image: Path, vm: str, state: State) -> None:
        """The disks in a restored directory `image` are the run's."""
        for number in range(1, len(DISKS[vm]) + 1):
            flat = image / _vmdk(vm, number).rpartition("/")[2].replace(".vmdk", "-flat.vmdk")
            assert digest(flat) == state.disks[vm, number], flat
        assert (image / f"{vm}.vmx").read_text() == f'displayName = "{vm}"\n'
        assert not (image / "raw").exists()

    def _with(self, changes: Mapping[str, object]) -> dict[str, str]:
        return {**self.environment, **{key: str(value) for key, value in changes.items()}}

    def _disk(self, vm: str, number: int) -> Path:
        return self.work / f"{vm}-{number}.img"

    def _put_on_vmfs(self) -> None:
        volumes = {name: image(self.pool, "prod", name) for name in ("lun1", "lun2")}
        for vm, disks in DISKS.items():
            for number, (lun, size) in enumerate(disks, 1):
                with Volume(volumes[lun]) as volume:
                    with suppress(FileExistsError):
                        volume.mkdir(f"/{vm}")
                    volume.create_disk(_vmdk(vm, number), size, self._disk(vm, number))
                    if number == 1:
                        volume.write_file(f"/{vm}/{vm}.vmx", f'displayName = "{vm}"\n'.encode())
            self.simulator.control.add_vm(
                vm,
                disks[0][0],
                f"{vm}/{vm}.vmx",
                [
                    NewDisk(1999 + n, f"Hard disk {n}", _vmdk(vm, n).lstrip("/"), size, lun)
                    for n, (lun, size) in enumerate(disks, 1)
                ],
                HOSTS[0].name,
                "debian12_64Guest",
            )

    def _write(self, number: int) -> None:
        """Bring what differs to the LUN, as the guest writes it."""
        lun, _ = DISKS["db1"][number - 1]
        where = image(self.pool, "prod", lun)
        with Volume(where) as volume:
            (extent,) = volume.extents(_vmdk("db1", number))
        with where.open("r+b") as old, self._disk("db1", number).open("rb") as new:
            at = 0
            while block := new.read(4096):
                old.seek(extent.lun_offset + at)
                if old.read(len(block)) != block:
                    old.seek(extent.lun_offset + at)
                    old.write(block)
                at += len(block)

    def _capture(self) -> State:
        site = open_site(self.settings, accept_less=True)
        try:
            run = capture_vms(site, list(DISKS), Silent(), keep=2).run
        finally:
            site.close()
        with inside(self._disk("db1", 1), self.work / "scratch", "ro") as top:
            files = manifest(top)
        disks = {
            (vm, number): digest(self._disk(vm, number))
            for vm, own in DISKS.items()
            for number in range(1, len(own) + 1)
        }
        return State(run, files, disks)


def lost(restored: Path, state: State) -> dict[str, Any]:
    """What of the guest's files was not kept: by path, which facts differ, `gone` or `new`."""
    found = manifest(restored)
    different: dict[str, Any] = {
        path: sorted(key for key, value in entry.items() if found[path][key] != value)
        if path in found
        else "gone"
        for path, entry in state.files.items()
    }
    different |= dict.fromkeys(found.keys() - state.files.keys(), "new")
    return {path: what for path, what in different.items() if what}


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _vmdk(vm: str, number: int) -> str:
    return f"/{vm}/{vm}{f'_{number - 1}' if number > 1 else ''}.vmdk"


def _command_lines() -> list[list[bytes]]:
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(place.read_bytes().split(b"\0"))
    return found
