"""Partition tables as sfdisk writes them, physical volumes byte by byte, and hostile ones."""

import os
import struct
import subprocess
from pathlib import Path

import pytest

from atoll.blocks import lvm2
from atoll.blocks.extent_map import DiskMap
from atoll.blocks.partitions import (
    FIRST_LOGICAL_VOLUME,
    Partition,
    open_partition,
    partitions,
)
from atoll.blocks.readers import FileReader, MappedReader
from atoll.model.errors import UnsupportedFormatError
from atoll.model.extents import Extent

_MIB = 1 << 20
_SIZE = 64 * _MIB


def _disk(path: Path, script: str, size: int = _SIZE) -> FileReader:
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run(
        ["sfdisk", "--quiet", "--no-reread", str(path)], input=script.encode(), check=True
    )
    return FileReader(path)


def _plain(found: list[Partition]) -> list[tuple[int, int, int, str]]:
    return [(p.number, p.offset, p.length, p.kind) for p in found]


def test_gpt_partitions_to_their_last_sector(tmp_path: Path) -> None:
    script = "label: gpt\nstart=2048, size=2048, type=U\nstart=6144, size=4096, type=L\n"
    reader = _disk(tmp_path / "disk", script + "start=10240, size=2049, type=V\n")
    assert _plain(partitions(reader)) == [
        (1, _MIB, _MIB, "esp"),
        (2, 3 * _MIB, 2 * _MIB, "linux"),
        (3, 5 * _MIB, _MIB + 512, "linux-lvm"),
    ]


def test_the_copy_at_the_end_stands_in_for_a_damaged_table(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    _disk(path, "label: gpt\nstart=2048, size=2048, type=L\n").close()
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(os.urandom(128))
    assert _plain(partitions(FileReader(path))) == [(1, _MIB, _MIB, "linux")]


def test_mbr_with_logical_partitions_numbered_as_linux_does(tmp_path: Path) -> None:
    script = (
        "label: dos\n"
        "start=2048, size=2048, type=83, bootable\n"
        "start=4096, size=2048, type=7\n"
        "start=8192, size=40960, type=5\n"
        "start=10240, size=2048, type=83\n"
        "start=14336, size=4096, type=82\n"
        "start=20480, size=2048, type=ab\n"
    )
    # the first three are primary slots 1 to 3, sfdisk numbers the rest from 5
    reader = _disk(tmp_path / "disk", script)
    assert _plain(partitions(reader)) == [
        (1, _MIB, _MIB, "linux"),
        (2, 2 * _MIB, _MIB, "microsoft-data"),
        (5, 5 * _MIB, _MIB, "linux"),
        (6, 7 * _MIB, 2 * _MIB, "linux-swap"),
        (7, 10 * _MIB, _MIB, "mbr-0xab"),
    ]


def test_a_disk_without_a_table_is_one_partition(memory: type) -> None:
    plain = memory(bytes(_MIB))
    assert _plain(partitions(plain)) == [(0, 0, _MIB, "whole")]
    fat = bytearray(_MIB)
    fat[0x36:0x3B] = b"FAT16"
    fat[446:510] = os.urandom(64)
    fat[510:512] = b"\x55\xaa"
    assert _plain(partitions(memory(bytes(fat)))) == [(0, 0, _MIB, "whole")]
    assert partitions(memory(b"")) == []


def _mbr(*slots: tuple[int, int, int]) -> bytes:
    sector = bytearray(512)
    for number, (kind, start, count) in enumerate(slots):
        struct.pack_into("<B3xB3xII", sector, 446 + 16 * number, 0, kind, start, count)
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def test_boot_records_that_chain_in_a_ring_end(memory: type) -> None:
    disk = bytearray(_MIB)
    disk[:512] = _mbr((5, 8, 100))
    disk[8 * 512 : 9 * 512] = _mbr((0x83, 1, 4), (5, 0, 50))
    assert _plain(partitions(memory(bytes(disk)))) == [(5, 9 * 512, 2048, "linux")]


def test_partitions_past_the_end_are_cut_or_left_out(memory: type) -> None:
    disk = _mbr((0x83, 8, 100_000), (0x83, 100_000, 8)).ljust(_MIB, b"\0")
    assert _plain(partitions(memory(disk))) == [(1, 4096, _MIB - 4096, "linux")]


def test_a_partition_of_a_mapped_disk_reads_the_lun_directly(memory: type) -> None:
    lun = memory(os.urandom(_MIB))
    disk = MappedReader(
        DiskMap.of(_MIB, ("l",), [(0, _MIB // 2, 0, _MIB // 2), (_MIB // 2, _MIB // 2, 0, 0)]),
        {"l": lun},
    )
    part = partitions(disk)[0]
    found = open_partition(disk, part)
    assert isinstance(found, MappedReader)
    assert found.disk_map.luns == ("l",)
    assert found.read(0, _MIB) == disk.read(0, _MIB)


# --- LVM2: a physical volume as lvm2 lays it out, text and all ------------------------------

_PV_ID = "a" * 6 + "".join(f"-{c * 4}" for c in "bcdef") + "-" + "g" * 6
_EXTENT = 16 * 512
_DATA = 2048 * 512


def _vg_text(volumes: str, seqno: int = 3) -> bytes:
    return (
        'vg0 {\nid = "vg-id"\n' + f"seqno = {seqno}\n" + 'status = ["RESIZEABLE", "READ"]\n'
        "extent_size = 16\n"
        "physical_volumes {\n"
        f'pv0 {{\nid = "{_PV_ID}"\npe_start = 2048\npe_count = 64\n}}\n'
        'pv1 {\nid = "another-disk"\npe_start = 2048\npe_count = 64\n}\n'
        "}\nlogical_volumes {\n" + volumes + "}\n}\n"
        'contents = "Text Format Volume Group"\nversion = 1\n'
    ).encode()


def _volume(name: str, *segments: str, visible: bool = True) -> str:
    status = '["READ", "WRITE", "VISIBLE"]' if visible else '["READ", "WRITE"]'
    body = "".join(f"segment{n} {{\n{s}\n}}\n" for n, s in enumerate(segments, 1))
    return f"{name} {{\nstatus = {status}\nsegment_count = {len(segments)}\n{body}}}\n"


def _striped(start: int, count: int, stripes: str, number: int = 1, size: int = 0) -> str:
    extra = f"\nstripe_size = {size}" if size else ""
    return (
        f'start_extent = {start}\nextent_count = {count}\ntype = "striped"\n'
        f"stripe_count = {number}{extra}\nstripes = [\n{stripes}\n]"
    )


def _physical_volume(text: bytes, wrap_at: int | None = None) -> bytes:
    """A 2 MiB physical volume: label in sector 1, metadata area at 4 KiB, data at 1 MiB."""
    disk = bytearray(os.urandom(2 * _MIB))
    disk[: 8 * 512] = bytes(8 * 512)
    label = bytearray(512)
    struct.pack_into("<8sQII8s", label, 0, b"LABELONE", 1, 0, 32, b"LVM2 001")
    label[32:64] = _PV_ID.replace("-", "").encode()
    struct.pack_into("<Q", label, 64, len(disk))
    struct.pack_into("<QQQQ", label, 72, _DATA, 0, 0, 0)
    area, area_size = 4096, 64 * 1024
    struct.pack_into("<QQQQ", label, 104, area, area_size, 0, 0)
    disk[512:1024] = label
    at = area_size - wrap_at if wrap_at else 512
    header = bytearray(512)
    struct.pack_into("<I16sIQQ", header, 0, 0, b" LVM2 x[5A%r0N*>", 1, area, area_size)
    struct.pack_into("<QQII", header, 40, at, len(text), 0, 0)
    disk[area : area + 512] = header
    first = min(len(text), area_size - at)
    disk[area + at : area + at + first] = text[:first]
    disk[area + 512 : area + 512 + len(text) - first] = text[first:]
    return bytes(disk)


def _data(disk: bytes, extent: int, count: int = 1) -> bytes:
    return disk[_DATA + extent * _EXTENT : _DATA + (extent + count) * _EXTENT]


def test_logical_volumes_of_several_segments_and_stripes(memory: type) -> None:
    text = _vg_text(
        _volume("root", _striped(0, 2, '"pv0", 5'), _striped(2, 1, '"pv0", 1'))
        + _volume("fast", _striped(0, 4, '"pv0", 10, "pv0", 20', 2, 8))
        + _volume("hidden", _striped(0, 1, '"pv0", 30'), visible=False)
    )
    disk = _physical_volume(text)
    reader = memory(disk)
    found = {p.name: p for p in partitions(reader)}
    assert set(found) == {"", "vg0/root", "vg0/fast"}
    assert found["vg0/fast"].number == FIRST_LOGICAL_VOLUME
    root = found["vg0/root"]
    assert (root.kind, root.offset, root.length) == ("lvm2", _DATA + 5 * _EXTENT, 3 * _EXTENT)
    content = open_partition(reader, root).read(0, root.length)
    assert content == _data(disk, 5, 2) + _data(disk, 1)
    one, other = _data(disk, 10, 2), _data(disk, 20, 2)
    stripes = b"".join(
        leg[n : n + 4096] for n in range(0, 2 * _EXTENT, 4096) for leg in (one, other)
    )
    assert open_partition(reader, found["vg0/fast"]).read(0, 4 * _EXTENT) == stripes


def test_a_logical_volume_of_a_mapped_disk_is_flattened(memory: type) -> None:
    disk = _physical_volume(_vg_text(_volume("root", _striped(0, 3, '"pv0", 7'))))
    half = len(disk) // 2 + 4096
    lun = memory(disk[half:] + disk[:half])
    rest = len(disk) - half
    mapped = MappedReader(
        DiskMap.of(len(disk), ("l",), [(0, half, 0, rest), (half, rest, 0, 0)]), {"l": lun}
    )
    root = partitions(mapped)[-1]
    reader = open_partition(mapped, root)
    assert isinstance(reader, MappedReader) and reader.disk_map.luns == ("l",)
    assert reader.read(0, root.length) == _data(disk, 7, 3)
    assert list(reader.read_many([Extent(100, 5)])) == [(100, _data(disk, 7)[100:105])]


def test_text_that_wraps_around_its_area_is_read(memory: type) -> None:
    text = _vg_text(_volume("root", _striped(0, 1, '"pv0", 3')))
    reader = memory(_physical_volume(text, wrap_at=100))
    assert [p.name for p in partitions(reader)] == ["", "vg0/root"]


def test_a_physical_volume_within_a_partition(memory: type) -> None:
    inner = _physical_volume(_vg_text(_volume("root", _striped(0, 1, '"pv0", 3'))))
    disk = _mbr((0x8E, 2048, len(inner) // 512)).ljust(_MIB, b"\0") + inner
    found = partitions(memory(disk))
    assert [(p.number, p.kind) for p in found] == [(1, "linux-lvm"), (FIRST_LOGICAL_VOLUME, "lvm2")]
    assert open_partition(memory(disk), found[1]).read(0, _EXTENT) == _data(inner, 3)


@pytest.mark.parametrize(
    ("segment", "reason"),
    [
        (_striped(0, 1, '"pv1", 3'), "another disk"),
        (_striped(0, 1, '"pv0", 500'), "past its physical volume"),
        (_striped(0, 1, '"pv0", -1'), "damaged"),
        (_striped(0, 1, '"pv0"'), "damaged"),
        (_striped(1, 1, '"pv0", 3'), "gaps"),
        ('start_extent = 0\nextent_count = 4\ntype = "thin"', "type thin"),
    ],
)
def test_what_cannot_be_laid_out_is_listed_with_its_reason(
    memory: type, segment: str, reason: str
) -> None:
    reader = memory(_physical_volume(_vg_text(_volume("odd", segment))))
    odd = partitions(reader)[-1]
    assert odd.name == "vg0/odd" and odd.segments == ()
    with pytest.raises(UnsupportedFormatError, match=reason):
        open_partition(reader, odd)


def test_damaged_text_means_no_logical_volumes(memory: type) -> None:
    good = _vg_text(_volume("root", _striped(0, 1, '"pv0", 3')))
    for text in (
        b"}\n}\n",
        b"a = \n",
        b"x = [" + b"(" * 5000,
        good[: len(good) // 2],
        b"\xff" * 99,
    ):
        found = partitions(memory(_physical_volume(text)))
        assert (found[0].number, found[0].kind) == (0, "whole")
        assert all(not p.segments for p in found[1:])


def test_a_text_made_to_keep_its_parser_busy_describes_nothing():
    """Each # is tried as the beginning of a comment, to the end of its line: time squared."""
    assert lvm2._groups("#" * 100_000 + '"') == []
