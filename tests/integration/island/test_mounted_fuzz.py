"""Guests with random bytes in their file systems' structures, mounted beside one that is whole."""

import errno
import os
import random
import re
import stat
import subprocess
from pathlib import Path

import pytest

from mounted_tree import MountedTree, mounted_tree, served_vm

pytestmark = pytest.mark.needs_root

BLOCK = 1024
ALLOWED = {errno.EIO, errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.ENODATA, errno.ESTALE}
"""ENOENT and ENOTDIR: a name that a hostile directory has twice, for two things."""
MAX_NAMES = 2000
MAX_BYTES = 64 << 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, list[int]]]:
    """An ext4 image, and offsets of bytes in it that mean something, by kind of structure."""
    work = tmp_path_factory.mktemp("fuzz")
    tree = work / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/fstab").write_text("/dev/sda / ext4 defaults 0 1\n")
    for number in range(60):
        place = tree / f"d{number % 6}" / "e"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"f{number}").write_bytes(b"%d" % number * 2000)
    (tree / "link").symlink_to("d0/e/f0")
    with (tree / "scattered").open("wb") as file:
        for number in range(40):
            file.seek(number * 3 * BLOCK)
            file.write(b"s" * BLOCK)
    os.setxattr(tree / "link", "trusted.x", b"v", follow_symlinks=False)
    image = work / "image"
    made = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-d", tree, image, "8M"]
    subprocess.run(made, check=True)
    raw = image.read_bytes()
    told = subprocess.run(["dumpe2fs", image], check=True, capture_output=True, text=True).stdout
    tables = re.findall(r"Inode table at (\d+)-(\d+)", told)
    assert tables
    blocks = [raw[at : at + BLOCK] for at in range(0, len(raw), BLOCK)]
    directories = [n for n, b in enumerate(blocks) if b[6:9] == b"\1\2." and b[12:16] != bytes(4)]
    extents = [n for n, b in enumerate(blocks) if b[:2] == b"\x0a\xf3"]
    assert len(directories) > 10
    assert extents
    places = {
        "superblock": list(range(1024, 1024 + 264)),
        "descriptors": list(range(2 * BLOCK, 2 * BLOCK + 64)),
        "inodes": used(raw, [n for low, high in tables for n in range(int(low), int(high) + 1)]),
        "directories": used(raw, directories),
        "extents": used(raw, extents),
    }
    return raw, places


def used(raw: bytes, blocks: list[int]) -> list[int]:
    """Where the bytes of these blocks are that are not zero."""
    return [at for n in blocks for at in range(n * BLOCK, (n + 1) * BLOCK) if raw[at]]


def flipped(raw: bytes, places: dict[str, list[int]], seed: int) -> bytes:
    """One kind of structure with a few other bytes, or many."""
    chance = random.Random(seed)
    where = places[list(places)[seed % len(places)]]
    damaged = bytearray(raw)
    for _ in range(chance.choice((1, 3, 40)) if len(where) > 300 else chance.choice((1, 2))):
        at = chance.choice(where)
        damaged[at] = chance.choice((0, 0xFF, 0x7F, 0x80, chance.randrange(256)))
    return bytes(damaged)


def gone_through(top: Path) -> int:
    """Look at all that is below, as a backup does; how many places had errors."""
    todo, seen, errors, read = [top], set(), 0, 0
    while todo and len(seen) < MAX_NAMES:
        place = todo.pop()
        try:
            info = place.lstat()
            if info.st_ino in seen:
                continue
            seen.add(info.st_ino)
            for name in os.listxattr(place, follow_symlinks=False):
                os.getxattr(place, name, follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                os.readlink(place)
            elif stat.S_ISDIR(info.st_mode):
                todo += [Path(entry.path) for entry in os.scandir(place)]
            elif stat.S_ISREG(info.st_mode) and read < MAX_BYTES:
                read += data_of(place)
        except OSError as error:
            assert error.errno in ALLOWED, error
            errors += 1
    return errors


def data_of(file: Path) -> int:
    """Read what is no hole, a MiB of each piece."""
    done = 0
    with file.open("rb") as stream:
        try:
            at = os.lseek(stream.fileno(), 0, os.SEEK_DATA)
            while done < MAX_BYTES:
                end = os.lseek(stream.fileno(), at, os.SEEK_HOLE)
                done += len(os.pread(stream.fileno(), min(end - at, 1 << 20), at))
                at = os.lseek(stream.fileno(), end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
    return done


def assert_whole(tree: MountedTree, raw: bytes) -> None:
    """The honest guest, which is read anew each time."""
    files = tree.top / "whole/files"
    for number in range(60):
        content = (files / f"d{number % 6}" / "e" / f"f{number}").read_bytes()
        assert content == b"%d" % number * 2000
    assert (tree.top / "whole/image/raw/disk1.img").read_bytes() == raw


def fuzz(raw: bytes, places: dict[str, list[int]], seeds: range, work: Path) -> None:
    images = [work / "whole"]
    images[0].write_bytes(raw)
    for seed in seeds:
        image = work / f"seed{seed}"
        image.write_bytes(flipped(raw, places, seed))
        images.append(image)
    with mounted_tree([served_vm(image.name, [image]) for image in images], work / "t") as tree:
        assert gone_through(tree.top / "whole/files") == 0
        outcomes = []
        for image in images[1:]:
            errors = gone_through(tree.top / image.name / "files")
            errors += gone_through(tree.top / image.name / "volumes")
            outcomes.append(errors)
            assert (tree.top / image.name / "image/raw/disk1.img").read_bytes() == (
                image.read_bytes()
            )
        assert_whole(tree, raw)
        assert [str(error) for error in tree.failures if "defect" in str(error)] == []
        assert all(str(error).isprintable() for error in tree.failures)
        assert tree.tree.guests.open_parsers <= 8
    assert sum(outcome > 0 for outcome in outcomes) >= len(seeds) // 4, "the bytes meant nothing"
    for image in images:
        image.unlink()


def test_damage_of_every_kind_harms_nobody_else(
    whole: tuple[bytes, dict[str, list[int]]], tmp_path: Path
) -> None:
    fuzz(*whole, range(20), tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(25))
def test_hundreds_of_damaged_guests(
    part: int, whole: tuple[bytes, dict[str, list[int]]], tmp_path: Path
) -> None:
    fuzz(*whole, range(100 + 20 * part, 120 + 20 * part), tmp_path)
