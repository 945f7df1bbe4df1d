"""The boot sector and GRUB's place between it and the partition."""

import struct

from atoll_lab.guests import boot
from atoll_lab.guests.boot import PARTITION_OFFSET, make_bootable


def test_partition_table_and_grub_are_where_a_bios_looks(tmp_path):
    disk = tmp_path / "disk.raw"
    disk.touch()
    with disk.open("r+b") as target:
        target.truncate(64 << 20)
        target.seek(PARTITION_OFFSET)
        target.write(b"file system")
    make_bootable(disk)
    data = disk.read_bytes()
    assert len(data) == 64 << 20
    assert data[510:512] == b"\x55\xaa"
    active, kind, first, count = struct.unpack_from("<B3xB3xII", data, 446)
    assert (active, kind) == (0x80, 0x83)
    assert first * 512 == PARTITION_OFFSET
    assert (first + count) * 512 == len(data)
    assert struct.unpack_from("<Q", data, 0x5C) == (1,)
    start, sectors, segment = struct.unpack_from("<QHH", data, 512 + 0x1F4)
    assert (start, segment) == (2, 0x820)
    end = (start + sectors) * 512
    assert end < PARTITION_OFFSET
    assert any(data[end - 512 : end])
    assert not any(data[end:PARTITION_OFFSET])
    assert data[PARTITION_OFFSET : PARTITION_OFFSET + 11] == b"file system"


def test_the_menu_boots_without_waiting(tmp_path):
    for name in ("vmlinuz", "a.ko", "init"):
        (tmp_path / name).write_text(name)
    root = tmp_path / "root"
    boot.install_boot_files(
        root, tmp_path / "vmlinuz", [tmp_path / "a.ko"], tmp_path / "init", "1234-abcd"
    )
    menu = (root / "boot" / "grub" / "grub.cfg").read_text()
    assert "set timeout=0" in menu
    assert "root=UUID=1234-abcd" in menu
    assert "console=ttyS0" in menu
    initramfs = (root / "boot" / "initrd.img").read_bytes()
    assert initramfs.startswith(b"070701")
    assert b"modules/00-a.ko" in initramfs
