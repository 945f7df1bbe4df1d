"""What the lab writes, read by three readers: Atoll's maps, dissect and vmfs6-tools."""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dissect.vmfs.lvm import LVM
from dissect.vmfs.vmfs import VMFS
from dissect.volume.disk import Disk

from atoll.blocks.changes import changed_disk_extents
from atoll.blocks.extent_map import DiskMap
from atoll.blocks.readers import FileReader, MappedReader
from atoll.blocks.vmfs import open_volumes
from atoll.model.extents import Extent, merge, total_bytes
from atoll_lab.vmfs import Volume, check, format_volume
from atoll_lab.vmfs.volume import Layout

_MIB = 1 << 20
_GIB = 1 << 30
_LAYOUTS: tuple[Layout, ...] = ("thick", "thin", "fragmented", "lazy")
_SIZE = 400 * _MIB + 512


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("content") / "disk.raw"
    with path.open("wb") as file:
        file.truncate(_SIZE)
        for at in (0, 77 * _MIB - 13, 320 * _MIB, 399 * _MIB, _SIZE - 512):
            file.seek(at)
            file.write(os.urandom(min(_MIB, _SIZE - at)))
    return path


def _filled(image: Path, content: Path, gpt: bool) -> Path:
    format_volume(image, 4 * _GIB, "lab-ds", os.urandom(16), gpt=gpt)
    with Volume(image) as volume:
        volume.mkdir("/vm")
        volume.write_file("/vm/vm.vmx", b'displayName = "vm"\n')
        volume.write_file("/vm/sub-block.log", b"0123456789" * 1000)
        volume.write_file("/vm/blocks.log", b"0123456789" * 300_000)
        for layout in _LAYOUTS:
            volume.create_disk(f"/vm/{layout}.vmdk", _SIZE, content, layout)
    return image


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, content: Path) -> Path:
    return _filled(tmp_path_factory.mktemp("lab") / "lun.img", content, gpt=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_small_files(read: dict[str, bytes]) -> None:
    assert read["vm.vmx"] == b'displayName = "vm"\n'
    assert read["sub-block.log"] == b"0123456789" * 1000
    assert read["blocks.log"] == b"0123456789" * 300_000


_SMALL = ("vm.vmx", "sub-block.log", "blocks.log")


def test_dissect_reads_the_same(image: Path, content: Path) -> None:
    with image.open("rb") as file:
        (partition,) = Disk(file).partitions
        fs = VMFS(LVM(partition.open()).volumes[0].open())
        assert fs.label == "lab-ds"
        _check_small_files({n: fs.get(f"/vm/{n}").open().read() for n in _SMALL})
        for layout in _LAYOUTS:
            with fs.get(f"/vm/{layout}-flat.vmdk").open() as stream:
                digest = hashlib.sha256()
                while piece := stream.read(8 * _MIB):
                    digest.update(piece)
            assert digest.hexdigest() == _digest(content), layout


def test_atoll_reads_the_same_through_its_maps(image: Path, content: Path) -> None:
    luns = {"lun": FileReader(image)}
    (volume,) = open_volumes(luns)
    assert volume.label == "lab-ds" and volume.version == 6
    _check_small_files({n: volume.read_file(f"/vm/{n}", 4 * _MIB) for n in _SMALL})
    pieces = {}
    for layout in _LAYOUTS:
        disk = volume.disk_map(f"vm/{layout}.vmdk")
        digest = hashlib.sha256()
        for _, data in MappedReader(disk, luns).read_many([Extent(0, _SIZE)]):
            digest.update(data)
        assert digest.hexdigest() == _digest(content), layout
        pieces[layout] = len(disk)
    assert pieces["thick"] == 1 and pieces["fragmented"] > 90
    with Volume(image) as lab:
        for layout in ("thick", "thin", "fragmented"):
            rows = lab.extents(f"/vm/{layout}.vmdk")
            assert volume.disk_map(f"vm/{layout}.vmdk") == DiskMap.of(
                _SIZE, ("lun",), [(at, length, 0, lun_at) for at, length, lun_at in rows]
            )


def test_lazy_blocks_are_holes_to_the_map(image: Path) -> None:
    (volume,) = open_volumes({"lun": FileReader(image)})
    lazy, thin = (volume.disk_map(f"vm/{layout}.vmdk") for layout in ("lazy", "thin"))
    assert lazy.holes() == thin.holes()
    assert total_bytes(lazy.holes()) > 300 * _MIB


@pytest.fixture
def fuse_mount(tmp_path: Path, content: Path) -> Iterator[Path]:
    image = _filled(tmp_path / "bare.img", content, gpt=False)
    assert check(image) == []
    point = tmp_path / "mount"
    point.mkdir()
    program = subprocess.Popen(["vmfs6-fuse", "-f", str(image), str(point)])
    try:
        while not point.is_mount() and program.poll() is None:
            time.sleep(0.05)
        assert program.poll() is None, "vmfs6-fuse did not mount"
        yield point
    finally:
        if point.is_mount():
            subprocess.run(["umount", str(point)], check=True)
        program.wait()


@pytest.mark.needs_root
@pytest.mark.skipif(shutil.which("vmfs6-fuse") is None, reason="vmfs6-tools is not installed")
def test_vmfs6_fuse_reads_the_same(fuse_mount: Path, content: Path) -> None:
    _check_small_files({n: (fuse_mount / "vm" / n).read_bytes() for n in _SMALL})
    for layout in _LAYOUTS:
        assert _digest(fuse_mount / "vm" / f"{layout}-flat.vmdk") == _digest(content), layout


def test_a_disk_that_only_pointers_to_pointers_can_address(tmp_path: Path) -> None:
    image, source = tmp_path / "lun.img", tmp_path / "huge.raw"
    size = 3 << 40
    with source.open("wb") as file:
        file.truncate(size)
        for at in (8 * _GIB - 5, 2 << 40, size - 10):
            file.seek(at)
            file.write(b"0123456789")
    format_volume(image, _GIB, "huge")
    with Volume(image) as volume:
        volume.create_disk("/huge.vmdk", size, source, "thin")
    assert check(image) == []
    luns = {"lun": FileReader(image)}
    (volume,) = open_volumes(luns)
    disk = volume.disk_map("huge.vmdk")
    reader = MappedReader(disk, luns)
    assert disk.mapped_bytes == 4 * _MIB
    for at in (8 * _GIB - 5, 2 << 40, size - 10):
        assert reader.read(at - 3, 13) == b"\0\0\0" + b"0123456789"
    with Volume(image) as lab:
        lab.delete("/huge.vmdk")
    assert check(image) == []


def _disk_bytes(disk: DiskMap, image: Path) -> bytes:
    reader = FileReader(image)
    try:
        return MappedReader(disk, {"lun": reader}).read(0, disk.size_bytes)
    finally:
        reader.close()


def _lun_changes(old: Path, new: Path) -> list[Extent]:
    """What a storage would say: 64 KiB pieces that differ."""
    step = 64 << 10
    found = []
    with old.open("rb") as a, new.open("rb") as b:
        at = 0
        while piece := b.read(step):
            if a.read(step) != piece:
                found.append(Extent(at, len(piece)))
            at += step
    return merge(found)


def test_an_increment_over_writes_moves_growth_and_reuse_is_complete(tmp_path: Path) -> None:
    before, after, source = tmp_path / "before", tmp_path / "after", tmp_path / "raw"
    size = 24 * _MIB
    source.write_bytes(os.urandom(size))
    names = ("written", "moved", "grown", "replaced", "still")
    format_volume(before, _GIB, "inc")
    with Volume(before) as volume:
        for name in names:
            volume.create_disk(f"/{name}.vmdk", size, source, "fragmented")
    subprocess.run(["cp", "--sparse=always", str(before), str(after)], check=True)
    with Volume(after) as volume:
        extents = volume.extents("/written.vmdk")
        volume.delete("/replaced.vmdk")
        volume.move_disk("/moved.vmdk")
        volume.grow_disk("/grown.vmdk", size + 3 * _MIB)
        volume.create_disk("/replaced.vmdk", size, None, "thin")
        volume.grow_disk("/replaced.vmdk", size + _MIB)
    with after.open("r+b") as file:
        file.seek(extents[2].lun_offset + 100)
        file.write(b"a guest wrote this")
    changed = {"lun": _lun_changes(before, after)}
    (old_volume,) = open_volumes({"lun": FileReader(before)})
    (new_volume,) = open_volumes({"lun": FileReader(after)})
    found = {}
    for name in names:
        old, new = (v.disk_map(f"/{name}.vmdk") for v in (old_volume, new_volume))
        found[name] = changed_disk_extents(old, new, changed)
        built = bytearray(_disk_bytes(old, before)[: new.size_bytes].ljust(new.size_bytes, b"?"))
        truth = _disk_bytes(new, after)
        for extent in found[name]:
            built[extent.offset : extent.end] = truth[extent.offset : extent.end]
        assert bytes(built) == truth, name
    assert found["still"] == []
    assert total_bytes(found["written"]) == 64 << 10
    assert total_bytes(found["moved"]) == size
    assert found["grown"] == [Extent(size, 3 * _MIB)]
    assert found["replaced"] == [Extent(0, size + _MIB)]
