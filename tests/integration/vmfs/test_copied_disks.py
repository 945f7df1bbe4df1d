"""From storage snapshots to restore points: raw device mappings and disks with VMware snapshots."""

import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from atoll.blocks.readers import FileReader
from atoll.blocks.vmfs import open_volumes
from atoll.director.certificate import certificate
from atoll.director.plan import make_plan
from atoll.island.copy import SnapshotView, copy_vm, opened
from atoll.island.runs import captured_runs, run_vms
from atoll.model.consistency import Consistency, ConsistencyProof
from atoll.model.errors import UnprotectableVmError
from atoll.model.extents import Extent, merge
from atoll.model.inventory import Datastore, Host, Inventory, VirtualDisk, VirtualMachine
from atoll.model.plan import Plan
from atoll.model.points import RestorePoint
from atoll.model.progress import Silent
from atoll.model.storage import GroupSnapshot, Lun, LunGroup
from atoll.repository.keys import create_key_file
from atoll.repository.repository import Repository
from atoll_lab.vmfs import Volume, format_volume
from delta_chains import add_delta, base, put_on_volume
from vmfs_headers import write_vmfs_headers

_MIB = 1 << 20
_SIZE = 18 * _MIB
_UUID = "50000000-0000-4000-8000-0000000000d1"
VMFS_NAA, RAW_NAA = "naa.6001405" + "1" * 25, "naa.6001405" + "2" * 25


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--sparse=always", str(source), str(target)], check=True)


@dataclass
class FileEngine:
    """The calls of a storage engine that reading takes, over copies of two files."""

    luns: dict[str, Path]
    kept: dict[str, dict[str, Path]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    def take(self, name: str) -> GroupSnapshot:
        self.kept[name] = {}
        for lun, path in self.luns.items():
            copy = path.with_name(f"{path.name}@{name}")
            _copy(path, copy)
            self.kept[name][lun] = copy
        return self.snapshots("prod")[-1]

    def groups(self) -> list[LunGroup]:
        luns = tuple(
            Lun(lun, "prod", path.stat().st_size, naa, lun)
            for (lun, path), naa in zip(self.luns.items(), (VMFS_NAA, RAW_NAA), strict=True)
        )
        return [LunGroup("prod", luns)]

    def snapshots(self, group: str) -> list[GroupSnapshot]:
        return [
            GroupSnapshot(
                group, name, float(n), n + 0.1, 0.01, tuple((lun, 1) for lun in self.luns)
            )
            for n, name in enumerate(self.kept)
        ]

    def annotation(self, group: str, name: str) -> str | None:
        return self.words.get(name)

    def open_snapshot(self, group: str, lun: str, name: str) -> FileReader:
        return FileReader(self.kept[name][lun])

    def changed_extents(self, group: str, lun: str, older: str, newer: str) -> Iterator[Extent]:
        step, at, found = 64 << 10, 0, []
        with self.kept[older][lun].open("rb") as a, self.kept[newer][lun].open("rb") as b:
            while piece := b.read(step):
                if a.read(step) != piece:
                    found.append(Extent(at, len(piece)))
                at += step
        yield from merge(found)


class Site:
    """A VM with a VMDK and a raw LUN, and what a guest would read of both."""

    def __init__(self, folder: Path) -> None:
        self.rng = random.Random(8)
        (folder / "plain").mkdir()
        self.chain = base(folder / "plain", _SIZE, self.rng)
        self.vmfs, self.raw = folder / "vmfs.img", folder / "raw.img"
        self.raw.write_bytes(self.rng.randbytes(3 * _MIB))
        format_volume(self.vmfs, 560 * _MIB, "ds1")
        with Volume(self.vmfs) as volume:
            volume.mkdir("/vm")
            volume.write_file("/vm/vm.vmx", b'displayName = "vm"\n')
        self.put()
        self.engine = FileEngine({"lun1": self.vmfs, "rawlun": self.raw})
        self.repository = Repository.create(
            folder / "repository", create_key_file(folder / "key"), chunk_bytes=64 << 10
        )
        reader = FileReader(self.vmfs)
        (volume,) = open_volumes({"lun1": reader})
        reader.close()
        self.store = Datastore("ds-1", "ds1", "VMFS", (VMFS_NAA,), True, volume.uuid)

    def put(self) -> None:
        with Volume(self.vmfs) as volume:
            for name in volume.listdir("/vm"):
                if name.endswith(".vmdk"):
                    volume.delete(f"/vm/{name}")
            put_on_volume(volume, self.chain, "/vm")

    def plan(self, run: str) -> Plan:
        below = tuple(f"[ds1] vm/{name}" for name in self.chain.names[-2::-1])
        disks = (
            VirtualDisk(2000, "Hard disk 1", "ds1", f"vm/{self.chain.top}", _SIZE, "persistent",
                        below=below),
            VirtualDisk(2001, "Hard disk 2", "ds1", "vm/vm_1.vmdk", 3 * _MIB, "persistent", True,
                        "physicalMode", "02aa", RAW_NAA),
        )  # fmt: skip
        vm = VirtualMachine("vm-1", _UUID, "vm", "esx1", True, False, "debian", disks,
                            bool(below), "[ds1] vm/vm.vmx")  # fmt: skip
        inventory = Inventory((Host("host-1", "esx1", None),), (self.store,), (vm,))
        return make_plan(run, ["vm"], inventory, self.engine.groups(), ())

    def view(self, stack: ExitStack, plan: Plan, taken: GroupSnapshot) -> SnapshotView:
        luns, raw = plan.luns("prod"), plan.raw_luns("prod")
        return stack.enter_context(opened(self.engine, taken, luns, raw))

    def back_up(self, run: str, parent: RestorePoint | None) -> RestorePoint:
        plan, taken = self.plan(run), self.engine.take(run)
        proof = _proof(run)
        self.engine.words[run] = certificate(plan, {_UUID: proof})
        self.repository.begin()
        with ExitStack() as stack:
            views = {"prod": self.view(stack, plan, taken)}
            point = copy_vm(
                plan.vms[0],
                views,
                proof,
                run,
                self.repository,
                parent,
                Silent(),
                lambda _: nullcontext(),
            )
        self.repository.commit([point])
        return point

    def content(self, point: RestorePoint) -> list[bytes]:
        return [self.repository.open_disk(disk).read(0, disk.size_bytes) for disk in point.disks]


def _proof(run: str) -> ConsistencyProof:
    return ConsistencyProof(
        "vm", Consistency.CRASH, (), None, "prod", run, 1.0, 1.1, "esx1", "esx1"
    )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_raw_lun_and_a_chain_are_copied_and_later_only_what_changed(site: Site) -> None:
    first = site.back_up("run1", None)
    assert site.content(first) == [site.chain.content, site.raw.read_bytes()]
    assert [disk.luns for disk in first.disks] == [("lun1",), ("rawlun",)]
    assert first.vmx == 'displayName = "vm"\n'
    add_delta(site.chain, "SESPARSE", site.rng, 6)
    site.put()
    with site.raw.open("r+b") as file:
        file.seek(2 * _MIB + 77)
        file.write(b"the guest wrote this")
    second = site.back_up("run2", first)
    assert second.incremental
    assert site.content(second) == [site.chain.content, site.raw.read_bytes()]
    # What changed, and what was not worth keeping of the one or two chunks around it.
    assert 64 << 10 <= second.disks[1].read_bytes <= 2 * 4 * (64 << 10)
    assert second.disks[0].read_bytes < _SIZE
    assert site.content(first)[1] != site.content(second)[1]


def test_a_vm_is_served_from_its_snapshots_by_what_the_certificate_says(site: Site) -> None:
    add_delta(site.chain, "VMFSSPARSE", site.rng, 6)
    site.put()
    site.back_up("run1", None)
    (run,) = captured_runs(site.engine)
    assert [disk.raw_lun for disk in run.certificate.vms[0].disks] == ["", "rawlun"]
    with run_vms(site.engine, run) as (vm,):
        read = [disk.open().read(0, disk.size_bytes) for disk in vm.disks]
        assert read == [site.chain.content, site.raw.read_bytes()]
        assert vm.configuration() == {"vm.vmx": b'displayName = "vm"\n'}


def test_what_a_guest_writes_to_its_raw_lun_is_never_taken_for_a_datastore(site: Site) -> None:
    _copy(site.vmfs, site.raw)  # of the datastore itself, which would be there twice
    point = site.back_up("run1", None)
    assert site.repository.open_disk(point.disks[0]).read(0, _SIZE) == site.chain.content
    assert point.disks[1].size_bytes == 560 * _MIB
    site.raw.unlink()
    write_vmfs_headers(site.raw, RAW_NAA, "ds1", 1)
    with site.raw.open("r+b") as file:
        file.truncate(32 * _MIB)
    point = site.back_up("run2", None)
    assert site.repository.open_disk(point.disks[0]).read(0, _SIZE) == site.chain.content


def test_a_raw_lun_that_grew_is_copied_whole_and_one_that_shrank_is_refused(site: Site) -> None:
    site.raw.write_bytes(site.rng.randbytes(4 * _MIB))
    assert site.content(site.back_up("run1", None))[1] == site.raw.read_bytes()
    (run,) = captured_runs(site.engine)
    assert run.certificate.vms[0].disks[1].size_bytes == 4 * _MIB
    site.raw.write_bytes(bytes(2 * _MIB))
    with pytest.raises(UnprotectableVmError, match="fewer than the 3145728 of the raw device"):
        site.back_up("run2", None)


def test_a_raw_mapping_of_another_lun_is_read_in_full(site: Site) -> None:
    first = site.back_up("run1", None)
    site.engine.luns = {"lun1": site.vmfs, "other": site.raw}
    second = site.back_up("run2", first)
    assert second.disks[1].luns == ("other",)
    assert second.disks[1].read_bytes == 3 * _MIB
    assert not second.incremental
