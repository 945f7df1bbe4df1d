"""A guest's system disk with everything in its ext4 root that backup software may lose."""

import base64
import json
import os
import stat
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guest_root import MIB, fill_guest_root

SYSTEM_BYTES = 24 * MIB
MANIFEST = Path(__file__).parents[2] / "e2e/tree_manifest.py"
START_SECTOR, SECTORS = 2048, 45056
ODD_NAME = b"bad\xff\xfe name\n"
MANY = 40


def make_system_disk(disk: Path, scratch: Path) -> None:
    """A disk with one partition, and a tree in it."""
    with disk.open("wb") as file:
        file.truncate(SYSTEM_BYTES)
    table = f"label: dos\nstart={START_SECTOR}, size={SECTORS}, type=83\n"
    subprocess.run(["sfdisk", "-q", disk], input=table.encode(), check=True)
    made = ["mke2fs", "-q", "-F", "-t", "ext4", "-I", "256", "-b", "4096"]
    made += ["-O", "^has_journal", "-E", f"offset={START_SECTOR * 512}"]
    subprocess.run([*made, disk, str(SECTORS // 8)], check=True)
    with inside(disk, scratch) as top:
        _fill(top)


def make_damaged_disk(disk: Path, scratch: Path) -> None:
    """A disk that is a file system as a whole, with one of its two files lying beyond its end."""
    files = scratch.with_name("damaged")
    (files / "etc").mkdir(parents=True)
    (files / "etc/fstab").write_text("/dev/sda / ext4 defaults 0 1\n")
    for name in ("good", "bad"):
        (files / name).write_bytes(name.encode() * 20_000)
    made = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", files, disk, "8M"]
    subprocess.run(made, check=True)
    beyond = "set_inode_field /bad block[5] 0x7fffff00"
    subprocess.run(["debugfs", "-w", "-R", beyond, disk], check=True, capture_output=True)


@contextmanager
def inside(disk: Path, scratch: Path, how: str = "rw") -> Iterator[Path]:
    """The tree, as the kernel mounts it; `ro` leaves the disk as it is to the byte."""
    scratch.mkdir(exist_ok=True)
    where = f"{how},loop,offset={START_SECTOR * 512},sizelimit={SECTORS * 512}"
    subprocess.run(["mount", "-o", where, disk, scratch], check=True)
    try:
        yield scratch
    finally:
        subprocess.run(["umount", scratch], check=True)


def manifest(top: Path) -> dict[str, Any]:
    """All that `tree_manifest` says of a tree, by path."""
    done = subprocess.run(
        [sys.executable, MANIFEST, top], capture_output=True, text=True, check=True
    )
    found = json.loads(zlib.decompress(base64.b64decode(done.stdout)))
    return {os.fsdecode(bytes.fromhex(path)): entry for path, entry in found.items()}


def change(top: Path) -> None:
    """What the guest does between two runs."""
    (top / "home/plain").write_bytes(b"changed" * 1000)
    (top / "home/new").write_bytes(os.urandom(100_000))
    (top / "many/name-07").unlink()
    (top / "many/name-08").rename(top / "many/renamed")
    with (top / "home/sparse").open("r+b") as file:
        file.seek(9 * MIB)
        file.write(b"later")


def _fill(top: Path) -> None:
    fill_guest_root(top, "/dev/sda1 / ext4 errors=remount-ro 0 1\n", ODD_NAME)
    home = top / "home"
    (home / "random").write_bytes(os.urandom(3 * MIB))
    os.mknod(home / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (top / "secret").mkdir(mode=0o700)
    (top / "image/raw").mkdir(parents=True)
    (top / "image/raw/disk1.img").write_bytes(b"a file of the guest, not an image")
    many = top / "many"
    many.mkdir()
    for number in range(MANY):
        (many / f"name-{number:02}").write_bytes(b"%d" % number)
        os.utime(many / f"name-{number:02}", ns=(10**18, 15 * 10**17 + number))
    os.utime(home / "random", ns=(10**18, 15 * 10**17 + 123_456_789))
    os.utime(home / "sub", ns=(10**18, 10**18 + 1))
