"""The check finds each kind of damage it is there for."""

import struct
from pathlib import Path

import pytest

from atoll_lab.vmfs import Volume, check, format_volume
from atoll_lab.vmfs.allocation import Pool, Run
from atoll_lab.vmfs.device import Device
from atoll_lab.vmfs.directories import Directory
from atoll_lab.vmfs.files import FileTable
from atoll_lab.vmfs.inode import Inode
from atoll_lab.vmfs.layout import METADATA, ROOT, Resource, inode_number

_MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "lun.img"
    format_volume(path, 1 << 30, "lab-ds")
    with Volume(path) as volume:
        volume.create_disk("/a.vmdk", 4 * _MIB, None)
        volume.create_disk("/b.vmdk", 4 * _MIB, None)
    assert check(path) == []
    return path


class _Inside:
    """A volume opened below its rules."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.table = FileTable(device)
        self.blocks = Pool(self.table, Resource.FILE_BLOCK)
        self.inodes = Pool(self.table, Resource.DESCRIPTOR)
        self.root = Directory(
            self.table, self.table.system(ROOT), self.blocks, Pool(self.table, Resource.SUB_BLOCK)
        )

    def inode(self, name: str) -> Inode:
        entry = self.root.find(name)
        assert entry is not None
        return self.table.inode(entry.address)


def test_a_block_of_two_files(image: Path) -> None:
    with Device(image) as device:
        inside = _Inside(device)
        taker, owner = inside.inode("a-flat.vmdk"), inside.inode("b-flat.vmdk")
        taker.set_pointers(dict(enumerate([owner.pointers[0], *taker.pointers[1:4]])))
        inside.table.save(taker)
    found = check(image)
    assert any("belongs to descriptors" in s for s in found)
    assert any("belongs to no file" in s for s in found)


def test_a_used_block_marked_free(image: Path) -> None:
    with Device(image) as device:
        inside = _Inside(device)
        (run,) = [r for r in inside.blocks.free_runs() if r.length > 100]
        inside.blocks.release([Run(run.first - 1, 1)])
    (found,) = check(image)
    assert "marked free" in found


def test_a_leaked_block(image: Path) -> None:
    with Device(image) as device:
        _Inside(device).blocks.allocate(3)
    found = check(image)
    assert len(found) == 3 and all("belongs to no file" in s for s in found)


def test_a_wrong_count(image: Path) -> None:
    with Device(image) as device:
        inside = _Inside(device)
        file = inside.table.system(1)
        at = inside.blocks.geometry.cluster_at(0) + METADATA + 0x22
        inside.table.write(file, at, struct.pack("<H", 1))
    (found,) = check(image)
    assert "counts 1 free" in found


def test_a_lost_file(image: Path) -> None:
    with Device(image) as device:
        _Inside(device).root.remove("a-flat.vmdk")
    (found,) = check(image)
    assert "has no name" in found


def test_a_name_of_a_file_that_is_gone(image: Path) -> None:
    with Device(image) as device:
        inside = _Inside(device)
        number = inode_number(inside.inode("a.vmdk").address)
        inside.inodes.release([Run(number, 1)])
    (found,) = check(image)
    assert found.startswith("The name a.vmdk means")


def test_a_name_its_hash_does_not_lead_to(image: Path) -> None:
    with Device(image) as device:
        inside = _Inside(device)
        file = inside.table.system(ROOT)
        entry = inside.root.find("a.vmdk")
        assert entry is not None
        table = inside.table.read(file, 0x5F8, 16001 * 4)
        at = table.index(struct.pack("<I", entry.location.packed()))
        inside.table.write(file, 0x5F8 + at, bytes(4))
    assert check(image) == ["The name a.vmdk is not found by its hash."]


def test_two_names_for_one_file_and_a_directory_that_miscounts(image: Path) -> None:
    with Device(image) as device:
        inside = _Inside(device)
        inode = inside.inode("a.vmdk")
        inside.root.add("again.vmdk", inode.address, 3, 1)
        inside.table.write(inside.table.system(ROOT), 4, struct.pack("<I", 99))
    found = check(image)
    assert any("second name" in s for s in found)
    assert any("counts 99 entries" in s for s in found)


def test_a_resource_cannot_be_taken_twice(image: Path) -> None:
    with Device(image) as device:
        blocks = _Inside(device).blocks
        (number,) = blocks.allocate(1)
        with pytest.raises(Exception, match="taken twice"):
            blocks.take([Run(number, 1)])
