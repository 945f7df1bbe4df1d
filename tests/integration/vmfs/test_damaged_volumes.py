"""Damaged or hostile metadata ends in one clear error or a right answer, never in anything else."""

import os
import random
import struct
from pathlib import Path

import pytest
from dissect.vmfs.lvm import LVM
from dissect.vmfs.vmfs import VMFS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.blocks.readers import FileReader, MappedReader
from atoll.blocks.vmfs import open_volumes
from atoll.model.errors import AtollError, UnsupportedFormatError
from atoll.model.extents import Extent
from atoll_lab.vmfs import Volume, format_volume
from atoll_lab.vmfs.device import Device
from atoll_lab.vmfs.files import FileTable
from atoll_lab.vmfs.layout import (
    DESCRIPTOR,
    FBB,
    FDC,
    LVM_HEADER,
    METADATA,
    PB2,
    ROOT,
    SBC,
    SYSTEM_FILES,
    VOLUME_START,
    Resource,
    block_pointer,
)

_MIB = 1 << 20
_GIB = 1 << 30
_DISKS = ("flat", "thin", "tiny")


class Damaged(FileReader):
    """An image with some bytes replaced."""

    def __init__(self, path: Path, patches: list[tuple[int, bytes]]) -> None:
        super().__init__(path)
        self._patches = patches

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(super().read(offset, length))
        for at, new in self._patches:
            for n, value in enumerate(new):
                if offset <= at + n < offset + len(data):
                    data[at + n - offset] = value
        return bytes(data)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damaged") / "lun.img"
    format_volume(path, 2 * _GIB, "lab", gpt=False)
    with Volume(path) as volume:
        volume.mkdir("/vm")
        volume.create_disk("/vm/flat.vmdk", 40 * _MIB, None, "fragmented")
        volume.create_disk("/vm/thin.vmdk", 9 * _GIB, None, "thin")
        volume.create_disk("/vm/tiny.vmdk", 4 * _MIB, None, "lazy")
    return path


@pytest.fixture(scope="module")
def regions(image: Path) -> list[Extent]:
    """Where the metadata is that a reader of the disks looks at."""
    found = [
        Extent(LVM_HEADER, 0xD6),
        Extent(LVM_HEADER + METADATA, 0x120),
        Extent(LVM_HEADER + 0x82000, 0x25),
        Extent(VOLUME_START + DESCRIPTOR, 0x16F),
    ]
    with Device(image) as device:
        table = FileTable(device)
        inodes = [table.system(n) for n in range(len(SYSTEM_FILES) + 1)]
        inodes += [table.inode(table.system(ROOT).address | n << 22 | 1 << 6) for n in range(7)]
        for inode in inodes:
            at = device.base + inode.offset + METADATA
            found += [Extent(at, 0x90), Extent(at + 0x200, 64), Extent(at + 0x600, 64)]
        for number in (FBB, FDC, SBC, PB2):
            found.append(Extent(device.base + table.locate(table.system(number), 0), 88))
        found.append(Extent(device.base + table.locate(table.system(FBB), 0x1000), 88))
        for inode in (table.system(ROOT), inodes[len(SYSTEM_FILES) + 1]):
            for at, length in ((0, 0x5F8), (0x10000, 80), (0x11000, 1000)):
                found.append(Extent(device.base + table.locate(inode, at), length))
    return found


def _use(path: Path, patches: list[tuple[int, bytes]]) -> None:
    luns = {"lun": Damaged(path, patches)}
    try:
        for volume in open_volumes(luns):
            for folder in volume.listdir():
                volume.listdir(folder)
            for name in _DISKS:
                try:
                    disk = volume.disk_map(f"/vm/{name}.vmdk")
                    MappedReader(disk, luns).read(0, 2 * _MIB)
                except AtollError as error:
                    assert str(error).endswith(".")
    except AtollError as error:
        assert str(error).endswith(".")
    finally:
        luns["lun"].close()


@settings(max_examples=400, suppress_health_check=list(HealthCheck), deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_random_damage_is_named(image: Path, regions: list[Extent], seed: int) -> None:
    rng = random.Random(seed)
    patches = []
    for _ in range(rng.randint(1, 3)):
        region = rng.choice(regions)
        length = rng.choice((1, 2, 4, 8))
        value = rng.choice((b"\xff" * length, bytes(length), rng.randbytes(length)))
        patches.append((region.offset + rng.randrange(region.length), value))
    _use(image, patches)


def test_whatever_a_single_field_says_is_survived(image: Path, regions: list[Extent]) -> None:
    for region in regions[:12]:
        for at in range(0, region.length, 4):
            for value in (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x7f"):
                _use(image, [(region.offset + at, value)])


def test_a_chain_of_lvm_metadata_that_bites_its_tail_ends(image: Path) -> None:
    ring = LVM_HEADER + 0x100
    patches = [
        (LVM_HEADER + 0xC2, struct.pack("<Q", ring)),
        (ring, struct.pack("<IIQQ", 0xC001D00D, 1, 0, ring)),
    ]
    with pytest.raises(UnsupportedFormatError, match="has no end"):
        open_volumes({"lun": Damaged(image, patches)})


def test_a_lun_cut_short_is_named(image: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.img"
    with image.open("rb") as file:
        short.write_bytes(file.read(300 * _MIB))
    with pytest.raises(UnsupportedFormatError, match="past the end of LUN lun"):
        open_volumes({"lun": FileReader(short)})


def _with_pointers(path: Path, pointers: dict[int, int], granularity: int = 20) -> None:
    """A volume with a disk of 600 blocks whose first 320 pointers are set by hand."""
    format_volume(path, 3 * _GIB, "odd", gpt=False)
    with Volume(path) as volume:
        volume.create_disk("/d.vmdk", 300 * _MIB, None, "thin")
    with path.open("r+b") as file:
        for at in range(_GIB, 3 * _GIB, 16 * _MIB):
            file.seek(at)
            file.write(os.urandom(4096))
    with Device(path) as device:
        table = FileTable(device)
        for number in range(256, 260):
            inode = table.inode(4 | 1 << 6 | (number - 256) << 22)
            if inode.size == 300 * _MIB:
                inode.set_pointers(pointers)
                struct.pack_into("<I", inode.raw, METADATA + 0x6C, granularity)
                table.save(inode)
                return
    raise AssertionError("the disk has no descriptor")


def test_large_blocks_lie_where_dissect_finds_them(tmp_path: Path) -> None:
    path = tmp_path / "lun.img"
    large = Resource.LARGE_BLOCK | 3 << 15
    _with_pointers(path, dict.fromkeys(range(40, 300), large) | {0: block_pointer(1600)})
    luns = {"lun": FileReader(path)}
    (volume,) = open_volumes(luns)
    disk = volume.disk_map("/d.vmdk")
    assert len(disk) == 2
    with (
        path.open("rb") as file,
        VMFS(LVM(file).volumes[0].open()).get("d-flat.vmdk").open() as truth,
    ):
        assert MappedReader(disk, luns).read(0, 300 * _MIB) == truth.read()


def test_blocks_to_be_zeroed_are_holes_and_parts_of_them_refused(tmp_path: Path) -> None:
    path = tmp_path / "lun.img"
    whole = {0: block_pointer(1600), 1: block_pointer(1616, 0xFF), 2: block_pointer(1632, 0x01)}
    _with_pointers(path, whole)
    (volume,) = open_volumes({"lun": FileReader(path)})
    assert volume.disk_map("/d.vmdk").holes() == [Extent(_MIB, 299 * _MIB)]
    finer = tmp_path / "finer.img"
    _with_pointers(finer, whole, granularity=17)
    (volume,) = open_volumes({"lun": FileReader(finer)})
    with pytest.raises(UnsupportedFormatError, match="part is still to be zeroed"):
        volume.disk_map("/d.vmdk")


@pytest.mark.parametrize("kind", [3, 4, 5, 6])
def test_pointers_of_other_kinds_are_refused(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "lun.img"
    _with_pointers(path, {0: kind | 1 << 15})
    (volume,) = open_volumes({"lun": FileReader(path)})
    with pytest.raises(UnsupportedFormatError, match="unknown types"):
        volume.disk_map("/d.vmdk")
