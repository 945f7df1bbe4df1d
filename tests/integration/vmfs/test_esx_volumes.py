"""Volumes that ESX hosts wrote: maps against dissect's own file objects, names, refusals, check."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dissect.vmfs.lvm import LVM
from dissect.vmfs.vmfs import VMFS

from atoll.blocks.extent_map import DiskMap
from atoll.blocks.readers import FileReader, MappedReader
from atoll.blocks.vmfs import VmfsVolume, open_volumes
from atoll.model.errors import NotFoundInPointError, UnsupportedFormatError
from atoll.model.extents import Extent
from atoll_lab.vmfs import check

_MIB = 1 << 20
_GIB = 1 << 30
_Unpack = Callable[[str], Path]


def _dissect(*images: Path) -> VMFS:
    return VMFS(LVM([image.open("rb") for image in images]).volumes[0].open())


def _only(luns: dict[str, FileReader]) -> VmfsVolume:
    (volume,) = open_volumes(luns)
    return volume


@pytest.fixture(params=["vmfs6", "vmfs5"])
def image(request: pytest.FixtureRequest, esx_volume: _Unpack) -> Path:
    return esx_volume(request.param)


@pytest.fixture
def luns(image: Path) -> dict[str, FileReader]:
    return {image.stem: FileReader(image)}


def test_names_identity_and_small_files(image: Path, luns: dict[str, FileReader]) -> None:
    volume = _only(luns)
    truth = _dissect(image)
    assert (volume.uuid, volume.label, volume.version) == (
        truth.uuid,
        image.stem,
        int(image.stem[-1]),
    )
    assert volume.luns == (image.stem,)
    assert volume.listdir("/directory") == sorted(f"file{n}" for n in range(1, 101))
    assert volume.read_file("directory/file42", 100) == b"File 42\n"
    assert volume.read_file("small", 5) == b"tiny\n"
    assert len(volume.listdir("collision")) > 12
    with pytest.raises(UnsupportedFormatError, match="no file of up to 4 bytes"):
        volume.read_file("small", 4)
    with pytest.raises(UnsupportedFormatError, match="no file"):
        volume.read_file("directory", 1 << 20)
    with pytest.raises(NotFoundInPointError, match="has no directory/file101"):
        volume.read_file("directory/file101", 100)
    with pytest.raises(NotFoundInPointError, match="not within a directory"):
        volume.listdir("small/deeper")


@pytest.mark.parametrize("name", ["small", "big", "bigger", ".fdc.sf", ".fbb.sf"])
def test_whole_files_through_their_map(image: Path, luns: dict[str, FileReader], name: str) -> None:
    disk = _only(luns).file_map(name)
    reader = MappedReader(disk, luns)
    with _dissect(image).get(name).open() as truth:
        for offset in range(0, disk.size_bytes, 4 * _MIB):
            assert reader.read(offset, 4 * _MIB) == truth.read(4 * _MIB)
    assert truth.read(1) == b""


@pytest.mark.parametrize(
    ("name", "size", "data_at"), [("normal", 69 * _GIB, 42 * _GIB), ("large", 42 << 40, 117 * _GIB)]
)
def test_thin_disks_through_pointer_blocks(
    image: Path, luns: dict[str, FileReader], name: str, size: int, data_at: int
) -> None:
    disk = _only(luns).disk_map(f"/{name}.vmdk")
    assert disk.size_bytes == size
    assert [(e.offset, e.length) for e in disk.holes()] == [
        (0, data_at),
        (data_at + _MIB, size - data_at - _MIB),
    ]
    reader = MappedReader(disk, luns)
    with _dissect(image).get(f"{name}-flat.vmdk").open() as truth:
        for offset in (0, data_at - _MIB, data_at, data_at + _MIB, size - _MIB):
            truth.seek(offset)
            assert reader.read(offset, _MIB) == truth.read(_MIB)
    assert reader.read(data_at, 512) == b"\x42" * 512
    assert DiskMap.from_bytes(disk.to_bytes()) == disk


def test_other_kinds_of_disk_are_refused(luns: dict[str, FileReader]) -> None:
    volume = _only(luns)
    with pytest.raises(UnsupportedFormatError, match="raw device mapping"):
        volume.disk_map("/rdm.vmdk")
    size = 14615052288 * 512
    lun = DiskMap.of(size + _MIB, ("raw",), [(0, size + _MIB, 0, 0)])
    assert volume.disk_map("/rdm.vmdk", lun) == DiskMap.of(size, ("raw",), [(0, size, 0, 0)])
    with pytest.raises(UnsupportedFormatError, match="raw device mapping"):
        volume.file_map("/rdm-rdm.vmdk")
    with pytest.raises(UnsupportedFormatError, match="not a VMDK descriptor"):
        volume.disk_map("/small")
    with pytest.raises(UnsupportedFormatError, match="no file of up to"):
        volume.disk_map("/normal-flat.vmdk")


@pytest.mark.parametrize("version", ["5", "6"])
def test_a_volume_over_two_luns_in_any_order(esx_volume: _Unpack, version: str) -> None:
    first, second = (esx_volume(f"vmfs{version}-span-{n}") for n in range(2))
    luns = {"z": FileReader(first), "a": FileReader(second)}
    for order in (("z", "a"), ("a", "z")):
        volume = _only({name: luns[name] for name in order})
        assert volume.luns == ("z", "a")
        truth = _dissect(first, second)
        for name in volume.listdir():
            if name == ".sdd.sf":
                continue
            reader = MappedReader(volume.file_map(name), luns)
            with truth.get(name).open() as stream:
                for offset in range(0, min(reader.size_bytes, 64 * _MIB), 4 * _MIB):
                    assert reader.read(offset, 4 * _MIB) == stream.read(4 * _MIB)


@pytest.mark.parametrize("version", ["5", "6"])
def test_the_far_end_of_a_spanned_volume_is_on_its_second_lun(
    esx_volume: _Unpack, version: str
) -> None:
    luns = {n: FileReader(esx_volume(f"vmfs{version}-span-{n}")) for n in "01"}
    volume = _only(luns)
    (first, second) = volume._extents.runs[0], volume._extents.runs[-1]
    assert (first[2], second[2]) == (0, 1)
    at = second[0]
    _, length, lun, offset = volume._on_luns(np.array([at - 4096]), np.array([8192]))
    assert length.tolist() == [4096, 4096]
    assert lun.tolist() == [0, 1]
    assert offset.tolist() == [first[3] + at - 4096, second[3]]


def test_a_spanned_volume_with_a_lun_missing_is_refused(esx_volume: _Unpack) -> None:
    for n in range(2):
        luns = {"only": FileReader(esx_volume(f"vmfs6-span-{n}"))}
        with pytest.raises(UnsupportedFormatError, match="lacks some of its extents"):
            open_volumes(luns)


def test_an_extent_that_is_there_twice_is_refused(esx_volume: _Unpack) -> None:
    reader = FileReader(esx_volume("vmfs6"))
    with pytest.raises(UnsupportedFormatError, match="twice"):
        open_volumes({"lun": reader, "clone": reader})


def test_several_volumes_and_luns_without_any(esx_volume: _Unpack, tmp_path: Path) -> None:
    blank = tmp_path / "blank"
    blank.write_bytes(bytes(4096))
    luns = {
        "6": FileReader(esx_volume("vmfs6")),
        "blank": FileReader(blank),
        "s1": FileReader(esx_volume("vmfs5-span-1")),
        "5": FileReader(esx_volume("vmfs5")),
        "s0": FileReader(esx_volume("vmfs5-span-0")),
    }
    found = {volume.label: volume.luns for volume in open_volumes(luns)}
    assert found == {"vmfs6": ("6",), "vmfs5": ("5",), "vmfs5-span": ("s0", "s1")}


def test_the_lab_check_finds_nothing_wrong_with_what_esx_wrote(esx_volume: _Unpack) -> None:
    assert check(esx_volume("vmfs6")) == []


def test_maps_know_which_lun_bytes_they_mean(luns: dict[str, FileReader], image: Path) -> None:
    volume = _only(luns)
    disk = volume.file_map("bigger")
    (first, *_) = disk.lun_extents(image.stem)
    assert disk.project(image.stem, [Extent(first.offset, 1)]) == [Extent(0, 1)]
    assert luns[image.stem].read(first.offset, 16) == bytes(16)
    assert disk.mapped_bytes == 128 * _MIB
