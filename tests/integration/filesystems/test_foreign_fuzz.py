"""Damaged NTFS, FAT, exFAT and btrfs: an answer or one clean error, never a hang or anything else."""

import os
import random
import subprocess
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from foreign_trees import Flipped, flips, fuse_mounted, looped, structures

from atoll.filesystems.detect import detect
from atoll.filesystems.interface import Data, Entry, EntryKind, Fault
from atoll.filesystems.parser import PARSERS
from atoll.filesystems.scanner import frames
from atoll.filesystems.session import Limits, open_filesystem
from atoll.filesystems.tables import inode_table, name_table
from atoll.filesystems.tree import export
from atoll.filesystems.wire import Kind
from atoll.model.errors import UnsupportedFormatError

pytestmark = pytest.mark.needs_root

_ROUNDS, _SOAK_ROUNDS, _JAILED_ROUNDS = 40, 4000, 3


def quietly(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


def fill(tree: Path) -> None:
    rnd = random.Random(7)
    for number in range(60):
        place = tree / f"d{number % 5}" / "e"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"a longer name {number}").write_bytes(rnd.randbytes(rnd.randrange(9000)))
    (tree / "text").write_bytes(b"compress me, " * 20_000)


def make_ntfs(work: Path, image: Path) -> None:
    quietly("mkntfs", "-F", "-Q", "-q", "-c", "1024", image)
    command = ["ntfs-3g", "-o", "compression,special_files=wsl", image]
    with fuse_mounted(command, work / "mnt") as top:
        flags = int.from_bytes(os.getxattr(top, "system.ntfs_attrib_be"), "big") | 0x800
        os.setxattr(top, "system.ntfs_attrib_be", flags.to_bytes(4, "big"))
        fill(top)
        os.link(top / "text", top / "d0" / "another name")
        os.symlink("text", top / "link")
        with (top / "sparse").open("wb") as file:
            file.seek(3 << 20)
            file.write(b"end")
        for number in range(30):
            os.setxattr(top / "text", f"user.stream{number}", bytes(number * 50))


def make_fat(work: Path, image: Path, width: str) -> None:
    quietly("mkfs.fat", "-F", width, "-s", "1", image)
    tree = work / "tree"
    tree.mkdir()
    fill(tree)
    quietly("mcopy", "-s", "-i", image, *tree.iterdir(), "::")


def make_exfat(work: Path, image: Path) -> None:
    quietly("mkfs.exfat", "-c", "512", image)
    with looped(image) as device, fuse_mounted(["mount.exfat-fuse", device], work / "mnt") as top:
        fill(top)


def make_btrfs(work: Path, image: Path, compression: str) -> None:
    quietly("mkfs.btrfs", "-q", "--mixed", "-n", "4096", image)
    command = ["mount", "-o", f"loop,compress-force={compression}", image]
    with fuse_mounted(command, work / "mnt") as top:
        fill(top)
        quietly("btrfs", "subvolume", "create", top / "subvolume")
        quietly("btrfs", "subvolume", "snapshot", top, top / "snapshot")
        os.symlink("text", top / "link")
        os.setxattr(top / "text", "user.name", b"value")


KINDS: dict[str, tuple[int, Callable[[Path, Path], None]]] = {
    "ntfs": (12, make_ntfs),
    "fat12": (2, lambda work, image: make_fat(work, image, "12")),
    "fat32": (36, lambda work, image: make_fat(work, image, "32")),
    "exfat": (4, make_exfat),
    "btrfs-lzo": (24, lambda work, image: make_btrfs(work, image, "lzo")),
    "btrfs-zlib": (24, lambda work, image: make_btrfs(work, image, "zlib")),
    "btrfs-zstd": (24, lambda work, image: make_btrfs(work, image, "zstd")),
}


_SOAK_ONLY = ("fat32", "btrfs-zlib")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, marks=[pytest.mark.soak] if kind in _SOAK_ONLY else []) for kind in KINDS
    ],
)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    work = tmp_path_factory.mktemp(f"fuzz-{request.param}")
    megabytes, make = KINDS[request.param]
    image = work / "small.img"
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    make(work, image)
    raw = image.read_bytes()
    places = structures(raw)
    assert len(places) > 2000
    return raw, places, zlib.crc32(request.param.encode())


def attempt(image: Flipped) -> str:
    """What one damaged image gives: whole, partial or refused; anything else fails."""
    content = detect(image)
    if not content.supported:
        return "refused"
    module, function = PARSERS[content.kind]
    try:
        volume = getattr(import_module(module), function)(image)
        written = entries = 0
        outcome = "whole"
        for kind, payload in frames(volume):
            if kind is Kind.INODES:
                inode_table(payload)
            elif kind is Kind.NAMES:
                name_table(payload)
        for record in export(volume, volume.root, "/"):
            match record:
                case Data():
                    assert len(record.content) <= 1 << 20
                    written += len(record.content)
                case Entry():
                    entries += 1
                    if record.kind is EntryKind.FILE:
                        list(volume.layout(record.inode)) if record.size < 1 << 20 else None
                case Fault():
                    outcome = "partial"
            assert written <= 64 * image.size_bytes
            assert entries < 100_000
    except UnsupportedFormatError:
        return "refused"
    return outcome


def rounds(small: Any, count: int, first: int = 0) -> set[str]:
    raw, places, salt = small
    return {
        attempt(Flipped(raw, flips(places, salt + seed))) for seed in range(first, count + first)
    }


def test_flips_are_answered_or_refused(small: Any) -> None:
    assert attempt(Flipped(small[0], {})) == "whole"
    assert rounds(small, _ROUNDS) >= {"partial"}


@pytest.mark.soak
def test_thousands_of_flips_are_answered_or_refused(small: Any) -> None:
    assert rounds(small, _SOAK_ROUNDS, 1000) >= {"whole", "partial", "refused"}


def test_flips_through_the_jail_never_harm_the_parent(small: Any) -> None:
    raw, places, salt = small
    outcomes = []
    for seed in range(_JAILED_ROUNDS):
        image = Flipped(raw, flips(places, salt + seed))
        try:
            with open_filesystem(image, Limits(patience_seconds=30)) as session:
                outcomes.append(sum(1 for _ in session.export("/")))
        except UnsupportedFormatError as error:
            assert str(error).isprintable()
    assert any(outcomes)
