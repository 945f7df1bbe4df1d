"""A lost chunk of a restore point is told by the files it was part of, and by no other."""

import subprocess
from pathlib import Path

import pytest

from atoll.model.extents import Extent
from atoll.recovery.damaged_files import damaged_files
from repository_parts import MemoryDisk, noise

pytestmark = pytest.mark.needs_root


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("damaged")
    tree = work / "tree"
    for number in range(6):
        (tree / f"d{number}").mkdir(parents=True)
        (tree / f"d{number}" / "large").write_bytes(noise(number, 3 << 20))
        (tree / f"d{number}" / "small").write_bytes(b"%d" % number)
    (tree / "etc").mkdir()
    (tree / "etc/fstab").write_text("/dev/sda1 / ext4 defaults 0 1\n")
    image = work / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(
        ["sfdisk", "-q", image], input="label: gpt\n1: start=2048, type=L\n", text=True, check=True
    )
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, "-E", "offset=1048576", image, "62M"],
        check=True,
    )
    return image


class Lost(MemoryDisk):
    """A disk of which a range cannot be read."""

    def __init__(self, data: bytes, lost: Extent) -> None:
        super().__init__(data)
        self.lost = lost

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= self.lost.end or offset + length <= self.lost.offset, "it is lost"
        return super().read(offset, length)


@pytest.mark.parametrize("number", [0, 3, 5])
def test_the_file_on_a_lost_chunk_is_named(disk: Path, number: int) -> None:
    data = disk.read_bytes()
    at = data.index(noise(number, 3 << 20)[1 << 20 : (1 << 20) + 4096])
    lost = Extent(at, 4096)
    found = damaged_files([("Hard disk 1", Lost(data, lost))], {"Hard disk 1": [lost]})
    assert found.files == (f"/d{number}/large",)
    assert found.unread == ()


def test_of_a_lost_directory_it_is_said_that_nobody_knows(disk: Path) -> None:
    data = disk.read_bytes()
    block = data.index(b"large", 1 << 20) // 4096 * 4096  # of a directory that names it
    lost = Extent(block, 4096)
    found = damaged_files([("Hard disk 1", Lost(data, lost))], {"Hard disk 1": [lost]})
    (unread,) = found.unread
    assert unread.startswith("/d")


def test_a_lost_superblock_leaves_the_volume_unread(disk: Path) -> None:
    data = disk.read_bytes()
    lost = Extent(1 << 20, 128 << 10)
    found = damaged_files([("Hard disk 1", Lost(data, lost))], {"Hard disk 1": [lost]})
    assert found.files == ()
    (unread,) = found.unread
    assert unread.startswith("disk1:part1:")


def test_bytes_of_no_file_touch_none(disk: Path) -> None:
    data = disk.read_bytes()
    lost = Extent(len(data) - 40960, 4096)
    assert damaged_files([("Hard disk 1", Lost(data, lost))], {"Hard disk 1": [lost]}).files == ()
