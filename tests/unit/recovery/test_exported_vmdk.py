"""Reading exported VMDKs: what Atoll wrote, what QEMU wrote, and what nobody should have written."""

import random
import subprocess
from itertools import product
from pathlib import Path

import pytest

from atoll.model.errors import UnsupportedFormatError
from atoll.model.extents import Extent
from atoll.recovery import hosted_vmdk
from atoll.recovery.exported_vmdk import open_exported
from atoll.recovery.hosted_vmdk import GRAIN_BYTES, SECTOR, VmdkForm, write_vmdk
from repository_parts import MemoryDisk

FORMS = [VmdkForm(monolithic, flat) for monolithic, flat in product((True, False), repeat=2)]
SIZE = 512 * GRAIN_BYTES + 3 * GRAIN_BYTES + 5 * SECTOR


def content() -> bytes:
    chance = random.Random(1)
    made = bytearray(SIZE)
    for at in (0, 1 << 20, (9 << 20) + 777, SIZE - 600):
        made[at : at + 70_000] = chance.randbytes(min(70_000, SIZE - at))
    return bytes(made)


def holds(path: Path, expected: bytes) -> None:
    disk = open_exported(path)
    try:
        assert disk.size_bytes == len(expected)
        assert disk.read(0, len(expected) + 99) == expected
        for at, length in ((5, 10), (GRAIN_BYTES - 1, 2), (9 << 20, 200_000), (len(expected), 5)):
            assert disk.read(at, length) == expected[at : at + length]
        many = dict(disk.read_many([Extent(3, 5 << 20), Extent(9 << 20, 10)]))
        assert b"".join(many.values()) == expected[3 : 3 + (5 << 20)] + expected[9 << 20 :][:10]
        holes = list(disk.holes())
        assert holes == sorted(holes)
        assert sum(hole.length for hole in holes) > 20 << 20
        for hole in holes:
            assert not any(expected[hole.offset : hole.end])
    finally:
        disk.close()
        disk.close()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.create_type)
def test_what_vcbmounter_writes(tmp_path: Path, form: VmdkForm, monkeypatch) -> None:
    monkeypatch.setattr(hosted_vmdk, "SPLIT_SPARSE_SECTORS", 128 * 100)
    monkeypatch.setattr(hosted_vmdk, "SPLIT_FLAT_SECTORS", 128 * 77 + 4)
    expected = content()
    write_vmdk(MemoryDisk(expected), tmp_path, "disk", form, lambda done: None)
    holds(tmp_path / "disk.vmdk", expected)


@pytest.mark.parametrize(
    "kind", ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"]
)
def test_what_qemu_writes(tmp_path: Path, kind: str) -> None:
    expected = content()[: SIZE - 5 * SECTOR]
    plain = tmp_path / "plain"
    plain.write_bytes(expected)
    words = ["-f", "raw", "-O", "vmdk", "-o", f"subformat={kind}"]
    subprocess.run(["qemu-img", "convert", *words, plain, tmp_path / "disk.vmdk"], check=True)
    holds(tmp_path / "disk.vmdk", expected)


def descriptor(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "disk.vmdk"
    path.write_text("\n".join(("# Disk DescriptorFile", *lines)))
    return path


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ((), "lists no extent"),
        (('RW 8 FLAT "../outside" 0',), "outside its own directory"),
        (('RW 8 FLAT ".." 0',), "outside its own directory"),
        (('RW 8 VMFS "x" 0',), "an extent that is not read"),
        (("parentCID=12345678", 'RW 8 FLAT "plain" 0'), "a delta of another disk"),
        (('RW 9 FLAT "plain" 0',), "has 4096 bytes and should have 4608"),
        (('RW 8 SPARSE "plain"',), "is no sparse extent"),
    ],
)
def test_what_is_refused(tmp_path: Path, lines: tuple[str, ...], said: str) -> None:
    (tmp_path / "plain").write_bytes(bytes(4096))
    with pytest.raises(UnsupportedFormatError, match=said):
        open_exported(descriptor(tmp_path, *lines))


def test_extents_and_compressed_disks_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormatError, match="is no VMDK descriptor"):
        plain = tmp_path / "disk-flat.vmdk"
        plain.write_bytes(bytes(4096))
        open_exported(plain)
    form = VmdkForm(monolithic=False, flat=False)
    write_vmdk(MemoryDisk(content()), tmp_path, "disk", form, lambda done: None)
    with pytest.raises(UnsupportedFormatError, match="is one extent of a disk"):
        open_exported(tmp_path / "disk-s001.vmdk")
    packed = tmp_path / "packed.vmdk"
    words = ["-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run(["qemu-img", "convert", *words, plain, packed], check=True)
    with pytest.raises(UnsupportedFormatError, match="is compressed"):
        open_exported(packed)


def test_a_file_that_was_cut_off_is_told(tmp_path: Path) -> None:
    write_vmdk(
        MemoryDisk(content()),
        tmp_path,
        "disk",
        VmdkForm(monolithic=True, flat=False),
        lambda n: None,
    )
    path = tmp_path / "disk.vmdk"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - GRAIN_BYTES)
    disk = open_exported(path)
    with pytest.raises(UnsupportedFormatError, match="ends before what it is said to hold"):
        disk.read(0, disk.size_bytes)
    disk.close()
