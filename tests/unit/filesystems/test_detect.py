"""File systems told apart by what mkfs writes."""

import subprocess
from pathlib import Path

import pytest

from atoll.blocks.readers import FileReader
from atoll.filesystems.detect import SUPPORTED, Content, detect

UUID = "0b6c8dd4-3a3b-4a54-9d2c-2f7f6d1b6a01"
MADE = {
    "ext2": (
        ["mke2fs", "-q", "-F", "-t", "ext2", "-L", "L", "-U", UUID],
        Content("ext2", "L", UUID),
    ),
    "ext3": (
        ["mke2fs", "-q", "-F", "-t", "ext3", "-L", "L", "-U", UUID],
        Content("ext3", "L", UUID),
    ),
    "ext4": (
        ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "L", "-U", UUID],
        Content("ext4", "L", UUID),
    ),
    "external journal": (["mke2fs", "-q", "-F", "-O", "journal_dev"], Content("ext-journal")),
    "swap": (["mkswap", "-q", "-L", "L", "-U", UUID], Content("swap", "L", UUID)),
    "fat": (["mkfs.fat", "-n", "L", "-i", "1234ABCD"], Content("fat", "L", "1234-ABCD")),
    "btrfs": (["mkfs.btrfs", "-q", "-f", "-L", "L", "-U", UUID], Content("btrfs", "L", UUID)),
}


@pytest.mark.parametrize("kind", list(MADE))
def test_what_the_tools_write_is_recognised(kind: str, tmp_path: Path) -> None:
    command, expected = MADE[kind]
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(130 << 20)
    subprocess.run([*command, image], check=True, capture_output=True)
    assert detect(FileReader(image)) == expected


@pytest.mark.parametrize(
    ("offset", "magic", "kind"),
    [
        (0, b"XFSB", "xfs"),
        (0, b"LUKS\xba\xbe\0\2", "luks"),
        (512, b"LABELONE" + bytes(16) + b"LVM2 001", "lvm"),
        (3, b"NTFS    ", "ntfs"),
        (3, b"-FVE-FS-", "bitlocker"),
        (3, b"ReFS\0\0\0\0", "refs"),
        (3, b"EXFAT   ", "exfat"),
        (4096, b"\xfc\x4e\x2b\xa9", "md"),
        (32769, b"CD001", "iso9660"),
        (0, b"something else", "unknown"),
        (0, b"", "empty"),
    ],
)
def test_magics(offset: int, magic: bytes, kind: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(offset) + magic + bytes(100_000))
    found = detect(FileReader(image))
    assert found.kind == kind
    assert found.supported == (kind in SUPPORTED)
    assert "restore the whole disk" in str(found.refusal())


def test_a_container_wins_over_what_it_replaced(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mke2fs", "-q", "-F", image], check=True)
    with image.open("r+b") as file:
        file.write(b"LUKS\xba\xbe")
    assert detect(FileReader(image)).kind == "luks"
