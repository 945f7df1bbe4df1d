"""One VM on VMFS in the embedded engine, captured as runs whose snapshots `atoll mount` reads."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from atoll.blocks.readers import FileReader
from atoll.blocks.vmfs import open_volumes
from atoll.model.certificate import FORMAT, VERSION
from atoll.model.consistency import Consistency, ConsistencyProof
from atoll.storage.drivers.embedded import create_pool, open_embedded
from atoll.storage.engine import ManagedEngine, Rules
from atoll.storage.limits import Allowances
from atoll_lab.pool import create_loop_pool, destroy, image
from atoll_lab.vmfs import Volume, format_volume
from guest_root import MIB, fill_guest_root

DISK_BYTES, LUN_BYTES = 48 * MIB, 600 * MIB
VMX = b'displayName = "db1"\n'
SETTINGS = """
[[storage]]
name = "san1"
driver = "embedded"
root = "{pool}"
durability = "cache"
reserve_bytes = 1048576

[repository]
location = "repo"
key_file = "key"

[director]
state_directory = "state"
"""


class CapturedGuest:
    """db1: an ext4 file system of its own on one disk, kept as a plain file beside the LUN."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.settings = work / "atoll.toml"
        self.disk = work / "db1.img"
        self.pool = work / "disks/pool/pool"
        self.engine: ManagedEngine | None = None
        self.vmfs_uuid = ""

    @property
    def lun(self) -> Path:
        """The LUN's image in the pool."""
        return image(self.pool, "prod", "lun1")

    def make(self) -> None:
        """The pool, the volume on its LUN, and the disk on that."""
        create_loop_pool(self.work / "disks", 2 << 30)
        self.pool.mkdir()
        self.settings.write_text(SETTINGS.format(pool=self.pool))
        create_pool(self.pool, "san1")
        rules = Rules(Allowances(reserve_bytes=MIB))
        self.engine = open_embedded(self.pool, rules, durability="cache")
        self.engine.create_group("prod")
        lun = self.engine.create_lun("prod", "lun1", LUN_BYTES)
        format_volume(self.lun, LUN_BYTES, "lun1", bytes.fromhex(lun.naa.removeprefix("naa.")))
        with self.disk.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", self.disk], check=True)
        with self.inside() as top:
            fill(top)
        with Volume(self.lun) as volume:
            volume.mkdir("/db1")
            volume.create_disk("/db1/db1.vmdk", DISK_BYTES, self.disk)
            volume.write_file("/db1/db1.vmx", VMX)
        (found,) = open_volumes({"lun1": FileReader(self.lun)})
        self.vmfs_uuid = found.uuid

    @contextmanager
    def inside(self) -> Iterator[Path]:
        """The guest's root, mounted by the kernel."""
        top = self.work / "guest"
        top.mkdir(exist_ok=True)
        subprocess.run(["mount", "-o", "loop", self.disk, top], check=True)
        try:
            yield top
        finally:
            subprocess.run(["umount", top], check=True)

    def capture(self, run: str) -> None:
        """What the guest has on its disk now, as the snapshot of a run."""
        assert self.engine is not None
        with Volume(self.lun) as volume:
            extents = volume.extents("/db1/db1.vmdk")
        content = self.disk.read_bytes()
        with self.lun.open("r+b") as stream:
            for extent in extents:
                stream.seek(extent.lun_offset)
                stream.write(content[extent.file_offset :][: extent.length])
        taken = self.engine.snapshot_group("prod", f"atoll-1-{run}")
        text = certificate(run, taken.name, self.vmfs_uuid)
        self.engine.annotate_snapshot("prod", taken.name, text)

    def close(self) -> None:
        """Leave nothing."""
        if self.engine is not None:
            self.engine.stop()
        destroy(self.work / "disks")


def certificate(run: str, snapshot: str, vmfs_uuid: str) -> str:
    """As docs/formats/certificate.md has it."""
    proof = ConsistencyProof(
        "db1", Consistency.CRASH, (), None, "prod", snapshot, 0.0, 0.0, "esx1", "esx1"
    )
    vm = {
        "name": "db1",
        "instance_uuid": "50000000-0000-4000-8000-0000000000d1",
        "guest_os": "debian12_64Guest",
        "vmx": "[lun1] db1/db1.vmx",
        "disks": [
            {
                "key": 2000,
                "path": "[lun1] db1/db1.vmdk",
                "size_bytes": DISK_BYTES,
                "group": "prod",
                "luns": ["lun1"],
                "vmfs_uuid": vmfs_uuid,
                "raw_lun": "",
            }
        ],
        "in_job": True,
        "consistency": proof.consistency,
        "reasons": [],
        "proof": asdict(proof),
    }
    document = {"format": FORMAT, "version": VERSION, "run": run, "groups": ["prod"], "vms": [vm]}
    return json.dumps(document)


def fill(top: Path) -> None:
    """A small root with everything that a backup can lose, years old."""
    fill_guest_root(top, "/dev/sda / ext4 errors=remount-ro 0 1\n", b"bad\xff\xfename")
    # Names like those of the tree that shows them.
    for place in ("volumes", "files/volumes", "image/raw"):
        (top / place).mkdir(parents=True)
        (top / place / "kept").write_bytes(place.encode())
    (top / "image/db1-flat.vmdk").write_bytes(b"the guest's own")
    home = top / "home"
    (home / "empty").mkdir(mode=0o700)
    many = top / "many"
    many.mkdir()
    for number in range(300):
        (many / f"name-{number:04d}").write_bytes(b"%d" % number)
    for place, _, files in os.walk(os.fsencode(top), topdown=False):
        for name in (*files, b"."):
            os.utime(os.path.join(place, name), (10**9, 10**9 + 5), follow_symlinks=False)
    os.utime(home / "sub", ns=(-1_500_000_000, -2_000_000_000))
    os.utime(home / "sparse", ns=(10**18, 15 * 10**17 + 123_456_789))
