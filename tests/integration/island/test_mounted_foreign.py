"""Guests with NTFS and with btrfs subvolumes, as they are mounted for backup software."""

import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mounted_tree import mounted_tree, served_vm

pytestmark = pytest.mark.needs_root

UUID = "5b9c1d1e-0000-4000-8000-00000000000b"


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def mounted(at: Path, *command: str | Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    run(*command, at)
    try:
        yield at
    finally:
        run("umount", at)


def empty(path: Path, megabytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(megabytes << 20)
    return path


def mark_unfinished(image: Path) -> None:
    """Set the flag that Windows sets while it has the volume mounted."""
    raw = bytearray(image.read_bytes())
    start = raw.index("$Volume".encode("utf-16-le")) & ~1023
    at = start + struct.unpack_from("<H", raw, start + 20)[0]
    while struct.unpack_from("<I", raw, at)[0] != 0x70:
        at += struct.unpack_from("<I", raw, at + 4)[0]
    raw[at + struct.unpack_from("<H", raw, at + 20)[0] + 10] |= 1
    image.write_bytes(raw)


def test_windows_and_subvolumes_are_mounted(tmp_path: Path) -> None:
    windows, linux = empty(tmp_path / "windows.img", 32), empty(tmp_path / "linux.img", 150)
    large = os.urandom(100_000)
    run("mkntfs", "-F", "-Q", "-q", windows)
    with mounted(tmp_path / "mnt", "ntfs-3g", "-o", "streams_interface=windows", windows) as at:
        (at / "file.txt").write_text("hello")
        (at / "file.txt:large").write_bytes(large)
    mark_unfinished(windows)
    run("mkfs.btrfs", "-q", "-U", UUID, linux)
    with mounted(tmp_path / "mnt", "mount", "-o", "loop", linux) as at:
        for name in ("@", "@home"):
            run("btrfs", "subvolume", "create", at / name)
        (at / "@" / "etc").mkdir()
        (at / "@" / "home").mkdir()
        (at / "@home" / "user").write_text("at home")
        (at / "@" / "etc" / "fstab").write_text(
            f"UUID={UUID} / btrfs subvol=@ 0 0\nUUID={UUID} /home btrfs subvol=@home 0 0\n"
        )
    top = tmp_path / "top"
    top.mkdir(mode=0o700)
    vms = [served_vm("windows", [windows]), served_vm("linux", [linux])]
    with mounted_tree(vms, top) as tree:
        volumes = tree.top / "windows/volumes"
        assert sorted(os.listdir(volumes)) == ["disk1-part0", "not-replayed.txt"]
        told = (volumes / "not-replayed.txt").read_text()
        assert told.startswith("disk1:part0 (ntfs): its journal holds changes")
        files = tree.top / "windows/files"
        assert sorted(os.listdir(files)) == ["file.txt", "file.txt:large"]
        assert (files / "file.txt:large").read_bytes() == large
        assert "system.ntfs_acl" in os.listxattr(files / "file.txt")
        files = tree.top / "linux/files"
        assert sorted(os.listdir(files)) == ["etc", "home"]
        assert (files / "home/user").read_text() == "at home"
        whole = tree.top / "linux/volumes/disk1-part0"
        assert sorted(os.listdir(whole)) == ["@", "@home"]
        assert sorted(os.listdir(tree.top / "linux/volumes")) == ["disk1-part0"]
    assert not tree.failures
