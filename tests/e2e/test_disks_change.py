"""An increment equals a full read of the same snapshot, whatever became of the VM's disks."""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from atoll_lab.iscsi import IscsiLun
from atoll_lab.pool import image, snapshot_image
from atoll_lab.vcenter.control import NewDisk
from atoll_lab.vmfs import Volume
from live_lab import GROUP, LiveLab

pytestmark = pytest.mark.lab

MIB = 1 << 20
VM = "cold1"
UUID = "c01dc01d-0000-4000-8000-000000000001"
SIZE = 24 * MIB + 8192
DISKS = ("written", "grown", "moved", "deleted", "remade", "thin", "still")
KEYS = {name: 2000 + number for number, name in enumerate([*DISKS, "created"])}


@pytest.fixture
def cold(lab: LiveLab, tmp_path: Path) -> Iterator["ColdVm"]:
    """A VM that is off, with a disk for each thing that can become of one, in small pieces all over."""
    vm = ColdVm(lab)
    try:
        with vm.volume() as volume:
            volume.mkdir(f"/{VM}")
            for name in DISKS:
                source = tmp_path / name
                data = random.Random(name).randbytes(SIZE)
                source.write_bytes(data[: 5 * MIB] if name == "thin" else data)
                volume.create_disk(
                    vm.path(name), SIZE, source, "thin" if name == "thin" else "fragmented"
                )
            volume.write_file(f"/{VM}/{VM}.vmx", f'displayName = "{VM}"\n'.encode())
        vm.register(dict.fromkeys(DISKS, SIZE))
        yield vm
    finally:
        vm.remove()


class ColdVm:
    """Its disks on the lab's second LUN, and its entry in vCenter."""

    def __init__(self, lab: LiveLab) -> None:
        self.lab = lab
        self.image = image(lab.places.pool, GROUP, "lun2")

    def volume(self) -> Volume:
        """The VMFS volume, as a host that has it mounted."""
        return Volume(self.image)

    @staticmethod
    def path(name: str) -> str:
        """A disk's descriptor on its datastore."""
        return f"/{VM}/{name}.vmdk"

    def register(self, sizes: Mapping[str, int]) -> None:
        """Let the VM have these disks, each under the key it always had."""
        disks = [
            NewDisk(KEYS[name], name, self.path(name).removeprefix("/"), size, "vmfs2")
            for name, size in sizes.items()
        ]
        self.lab.control.remove_vm(VM)
        self.lab.control.add_vm(
            VM, "vmfs2", f"{VM}/{VM}.vmx", disks, "esx1.lab", "debian", instance_uuid=UUID
        )

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write to a disk as its guest would: over iSCSI, at the VMDK's place on the LUN."""
        with self.volume() as volume:
            extents = volume.extents(self.path(name))
        (lun,) = (item for item in self.lab.engine.presentations() if item.lun == "lun2")
        portal = lun.portals[0]
        left = data
        with IscsiLun(
            f"{portal.address}:{portal.port}", portal.target, portal.lun_number, lun.initiators[0]
        ) as initiator:
            for extent in extents:
                inside = offset + len(data) - len(left) - extent.file_offset
                if left and 0 <= inside < extent.length:
                    part = left[: extent.length - inside]
                    initiator.write(extent.lun_offset + inside, part)
                    left = left[len(part) :]
            initiator.flush()
        assert not left, "the disk has a hole there"

    def back_up(self, *options: str) -> Any:
        """Back it up; its restore point."""
        result = self.lab.check("backup", VM, *options, "--json").json
        (point,) = result["points"]
        return point

    def assert_is_the_snapshot(self, point: Any, tmp_path: Path) -> None:
        """Every disk of the point is, byte for byte, what lies on the storage snapshot."""
        snapshot = snapshot_image(self.lab.places.pool, GROUP, point["snapshot"], "lun2")
        for disk in point["disks"]:
            target = tmp_path / f"{point['run']}-{disk['label']}.raw"
            reference = f"{VM}@{point['run']}"
            self.lab.check("restore", "disk", reference, str(target), "--disk", disk["label"])
            with self.volume() as volume:
                extents = volume.extents(self.path(disk["label"]))
            truth = bytearray(disk["size_bytes"])
            with snapshot.open("rb") as lun:
                for extent in extents:
                    lun.seek(extent.lun_offset)
                    end = extent.file_offset + extent.length
                    truth[extent.file_offset : end] = lun.read(extent.length)
            assert target.read_bytes() == truth, disk["label"]

    def remove(self) -> None:
        """Take it out of vCenter and off the volume; what it never had is fine."""
        self.lab.control.remove_vm(VM)
        with self.volume() as volume:
            if VM in volume.listdir("/"):
                for name in volume.listdir(f"/{VM}"):
                    volume.delete(f"/{VM}/{name}")
                volume.delete(f"/{VM}")


def test_an_increment_is_a_full_read(lab: LiveLab, cold: ColdVm, tmp_path: Path) -> None:
    first = cold.back_up()
    assert not first["incremental"]
    cold.assert_is_the_snapshot(first, tmp_path)

    same = cold.back_up()
    assert same["incremental"] and read_bytes(same) == dict.fromkeys(DISKS, 0)

    cold.write("written", 4 * MIB - 1024, random.Random(1).randbytes(2048))
    with cold.volume() as volume:
        volume.move_disk(cold.path("moved"))
        volume.grow_disk(cold.path("grown"), SIZE + 5 * MIB)
        volume.delete(cold.path("deleted"))
        volume.delete(cold.path("remade"))
        new = tmp_path / "new"
        new.write_bytes(random.Random(2).randbytes(9 * MIB))
        volume.create_disk(cold.path("remade"), SIZE, new, "thin")
        volume.create_disk(cold.path("created"), 3 * MIB, None, "thick")
    cold.write("grown", SIZE + MIB, b"after the old end".ljust(512))
    cold.write("created", 0, b"a disk that is new".ljust(512))
    cold.register(
        {name: SIZE for name in DISKS if name != "deleted"}
        | {"grown": SIZE + 5 * MIB, "created": 3 * MIB}
    )
    changed = cold.back_up()
    assert {disk["label"] for disk in changed["disks"]} == KEYS.keys() - {"deleted"}
    cold.assert_is_the_snapshot(changed, tmp_path)
    read = read_bytes(changed)
    assert read["still"] == read["thin"] == 0
    assert 0 < read["written"] <= MIB
    assert 0 < read["grown"] <= 6 * MIB
    assert read["moved"] >= SIZE

    full = cold.back_up("--full")
    assert full["incremental"] is False
    cold.assert_is_the_snapshot(full, tmp_path)
    # Named by their content, disks that are cut alike have equal roots; an increment cuts around changes.
    whole = {"moved", "still", "thin"}
    assert roots(full, whole) == roots(changed, whole)
    assert full["disks"][0]["stored_bytes"] < 3 * MIB

    cold.write("still", 8 * MIB, bytes(2 * MIB))
    after = cold.back_up()
    assert after["incremental"]
    cold.assert_is_the_snapshot(after, tmp_path)
    # The first point is what it was.
    lab.check("restore", "disk", f"{VM}@{first['run']}", str(tmp_path / "d"), "--disk", "deleted")
    assert (tmp_path / "d").read_bytes() == random.Random("deleted").randbytes(SIZE)
    lab.assert_in_order()
    # Nor does the storage keep anything for a VM that is no more.
    cold.remove()
    lab.check("backup", "app1")
    lab.assert_in_order()


def roots(point: Any, labels: set[str]) -> dict[str, str]:
    """What names the content of some disks, by their labels."""
    return {disk["label"]: disk["root"] for disk in point["disks"] if disk["label"] in labels}


def read_bytes(point: Any) -> dict[str, int]:
    """What was read of each disk, by its label."""
    return {disk["label"]: disk["read_bytes"] for disk in point["disks"]}
