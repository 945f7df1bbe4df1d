"""VMDKs of hosted products, read back by QEMU, which has a parser of its own."""

import os
import random
import subprocess
from itertools import product
from pathlib import Path

import pytest

from atoll.model.errors import RepositoryDamagedError, RestoreTargetError
from atoll.model.extents import Extent
from atoll.recovery import hosted_vmdk
from atoll.recovery.hosted_vmdk import GRAIN_BYTES, SECTOR, VmdkForm, write_vmdk
from repository_parts import MemoryDisk

FORMS = [VmdkForm(monolithic, flat) for monolithic, flat in product((True, False), repeat=2)]
TABLE_BYTES = 512 * GRAIN_BYTES


def read_back(directory: Path) -> bytes:
    plain = directory / "plain"
    subprocess.run(["qemu-img", "convert", "-O", "raw", directory / "disk.vmdk", plain], check=True)
    return plain.read_bytes()


def nothing(done: int) -> None:
    """Nobody looks at the progress."""


def scattered(size: int, seed: int) -> tuple[bytes, list[Extent]]:
    """Random content with zeros in places, and holes that say so of some of them."""
    chance = random.Random(seed)
    content = bytearray(size)
    holes = []
    at = 0
    while at < size:
        length = min(chance.randrange(1, 300) * SECTOR, size - at)
        kind = chance.randrange(3)
        if kind == 0:
            content[at : at + length] = chance.randbytes(length)
        elif kind == 1:
            holes.append(Extent(at, length))
        at += length
    return bytes(content), holes


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.create_type)
@pytest.mark.parametrize(
    "size", [3 * SECTOR, (5 << 20) + 7 * SECTOR, TABLE_BYTES + 3 * GRAIN_BYTES]
)
def test_qemu_reads_what_the_disk_holds(
    tmp_path: Path, form: VmdkForm, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several extents without 2 GiB each. Sparse ones are whole grains, as VMware's sizes are: QEMU
    # reads past the end of others.
    assert hosted_vmdk.SPLIT_SPARSE_SECTORS * SECTOR % GRAIN_BYTES == 0
    monkeypatch.setattr(hosted_vmdk, "SPLIT_SPARSE_SECTORS", 128 * 9)
    monkeypatch.setattr(hosted_vmdk, "SPLIT_FLAT_SECTORS", 128 * 7 + 4)
    if size > 8 << 20 and not form.monolithic:
        monkeypatch.setattr(hosted_vmdk, "SPLIT_SPARSE_SECTORS", TABLE_BYTES // SECTOR + 128)
        monkeypatch.setattr(hosted_vmdk, "SPLIT_FLAT_SECTORS", TABLE_BYTES // SECTOR)
    content, holes = scattered(size, size)
    told: list[int] = []
    write_vmdk(MemoryDisk(content, holes), tmp_path, "disk", form, told.append)
    assert read_back(tmp_path) == content
    assert told == sorted(told)
    assert told[-1] == size
    assert f'createType="{form.create_type}"'.encode() in (tmp_path / "disk.vmdk").read_bytes()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.create_type)
def test_what_is_zero_takes_no_room(tmp_path: Path, form: VmdkForm) -> None:
    size = 64 << 20
    content = bytearray(size)
    content[40 << 20 : (40 << 20) + 4] = b"data"
    write_vmdk(MemoryDisk(bytes(content)), tmp_path, "disk", form, nothing)
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) < 1 << 20
    assert read_back(tmp_path) == content


def test_the_copies_of_the_tables_are_alike(tmp_path: Path) -> None:
    """Repair tools of VMware take the second when the first is damaged."""
    form = VmdkForm(monolithic=True, flat=False)
    content = random.Random(1).randbytes(2 << 20)
    write_vmdk(MemoryDisk(content), tmp_path, "disk", form, nothing)
    raw = (tmp_path / "disk.vmdk").read_bytes()
    tables = []
    for place in (48, 56):  # rgdOffset and gdOffset of the header
        entry = int.from_bytes(raw[place : place + 8], "little") * SECTOR
        start = int.from_bytes(raw[entry : entry + 4], "little") * SECTOR
        tables.append(raw[start : start + 2048])
    assert tables[0] == tables[1]
    assert any(tables[0])


def test_what_cannot_be_written(tmp_path: Path) -> None:
    form = VmdkForm(monolithic=True, flat=False)
    with pytest.raises(RestoreTargetError, match="not a whole number of sectors"):
        write_vmdk(MemoryDisk(b"x" * 700), tmp_path, "disk", form, nothing)

    class Huge(MemoryDisk):
        size_bytes = 3 << 40

    with pytest.raises(RestoreTargetError, match="too large for one sparse file"):
        write_vmdk(Huge(b""), tmp_path, "disk", form, nothing)
    assert os.listdir(tmp_path) == []
    with pytest.raises(RepositoryDamagedError, match="ended at byte 512 of 1024"):

        class Short(MemoryDisk):
            size_bytes = 1024

        write_vmdk(Short(b"x" * 512), tmp_path, "disk", form, nothing)
