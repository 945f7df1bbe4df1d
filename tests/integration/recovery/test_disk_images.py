"""Whole disks written out, judged by qemu-img."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from atoll.blocks.readers import FileReader
from atoll.model.errors import AtollError, RestoreTargetError, StorageUnreachableError
from atoll.model.extents import Extent
from atoll.recovery import qcow2
from atoll.recovery.disks import restore_disk

SIZE = 150 << 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse disk: data across piece borders, written zeros, a hole at each end."""
    path = tmp_path_factory.mktemp("disk") / "source.img"
    rnd = random.Random(3)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset, length in ((1 << 20, 9_000_000), (40 << 20, 512), ((96 << 20) - 7, 70_001)):
            file.seek(offset)
            file.write(rnd.randbytes(length))
        file.seek(60 << 20)
        file.write(bytes(8 << 20))
    return path


def qemu_img(*arguments: object) -> str:
    done = subprocess.run(
        ["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("raw", "disk.img"),
        ("vmdk", "db 1.vmdk"),
        ("vmdk-stream", "stream.vmdk"),
        ("qcow2", "disk.qcow2"),
    ],
)
def test_qemu_sees_the_same_disk(source: Path, tmp_path: Path, form, name: str) -> None:
    target = tmp_path / name
    told: list[int] = []
    restore_disk(FileReader(source), target, form, told.append)
    kind = form.partition("-")[0]
    qemu_img("compare", "-f", "raw", "-F", kind, source, target)
    info = json.loads(qemu_img("info", "--output=json", "-f", kind, target))
    assert info["virtual-size"] == SIZE
    if form in ("vmdk-stream", "qcow2"):
        qemu_img("check", "-f", kind, target)
    if form == "vmdk":
        assert info["format-specific"]["data"]["create-type"] == "vmfs"
        assert sorted(os.listdir(tmp_path)) == ["db 1-flat.vmdk", "db 1.vmdk"]
    else:
        assert os.listdir(tmp_path) == [name]
    assert sum(told) == SIZE
    assert min(told) > 0
    allocated = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
    assert allocated < 12 << 20, "written zeros and holes must not take room"


@pytest.mark.parametrize("form", ["raw", "vmdk"])
def test_what_exists_is_refused(source: Path, tmp_path: Path, form) -> None:
    target = tmp_path / "disk.vmdk"
    taken = target if form == "raw" else tmp_path / "disk-flat.vmdk"
    taken.write_text("mine")
    with pytest.raises(RestoreTargetError, match="exists already"):
        restore_disk(FileReader(source), target, form)
    assert os.listdir(tmp_path) == [taken.name]
    assert taken.read_text() == "mine"


def test_a_dangling_symlink_is_something_that_exists(source: Path, tmp_path: Path) -> None:
    (tmp_path / "disk.img").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RestoreTargetError, match="exists already"):
        restore_disk(FileReader(source), tmp_path / "disk.img")
    assert not (tmp_path / "elsewhere").exists()


class Failing(FileReader):
    """Fails, or ends early, at one place."""

    def __init__(self, path: Path, at: int, short: bool) -> None:
        super().__init__(path)
        self._fail_at = at
        self._short = short

    def read(self, offset: int, length: int) -> bytes:
        if offset <= self._fail_at < offset + length:
            if self._short:
                return b"x"
            raise StorageUnreachableError("The repository went away; try again.")
        return super().read(offset, length)

    def holes(self) -> Iterator[Extent]:
        return iter(())


@pytest.mark.parametrize("short", [False, True])
def test_a_reader_that_fails_leaves_nothing(source: Path, tmp_path: Path, short: bool) -> None:

    with pytest.raises(AtollError, match=r"went away|verify the repository"):
        restore_disk(Failing(source, 70 << 20, short), tmp_path / "disk.vmdk", "vmdk")
    assert os.listdir(tmp_path) == []


@pytest.mark.needs_root
def test_a_full_target_leaves_nothing(source: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], check=True)
    try:
        with pytest.raises(RestoreTargetError, match="No space left"):
            restore_disk(FileReader(source), small / "disk.img")
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", small], check=True)


class Memory:
    """A disk in memory that knows overlapping, unordered holes past its end."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size_bytes = len(content)

    def read(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        for extent in extents:
            yield extent.offset, self.read(extent.offset, extent.length)

    def holes(self) -> list[Extent]:
        return [Extent(8192, 4096), Extent(8192, 8192), Extent(20000, 1 << 30)]

    def close(self) -> None:
        pass


def test_odd_sizes_and_odd_holes(tmp_path: Path) -> None:
    content = bytearray(random.Random(5).randbytes(30_001))
    content[8192:16384] = bytes(8192)
    content[20000:] = bytes(10_001)
    restore_disk(Memory(bytes(content)), tmp_path / "odd.img")
    assert (tmp_path / "odd.img").read_bytes() == content
    with pytest.raises(RestoreTargetError, match="sectors"):
        restore_disk(Memory(bytes(content)), tmp_path / "odd.vmdk", "vmdk")
    restore_disk(Memory(b""), tmp_path / "empty.img")
    assert (tmp_path / "empty.img").read_bytes() == b""
    assert sorted(os.listdir(tmp_path)) == ["empty.img", "odd.img"]


@pytest.mark.parametrize("size", [512, 65536, (64 << 10) + 512, (3 << 30) + 512, 2200 << 30])
def test_qcow2_of_any_size(tmp_path: Path, size: int) -> None:
    """Many tables and reference counts; QEMU finds no cluster unaccounted for."""
    source, target = tmp_path / "source", tmp_path / "disk.qcow2"
    with source.open("wb") as file:
        file.truncate(size)
        for offset in {0, size // 2 // 512 * 512, size - 512}:
            file.seek(offset)
            file.write(random.Random(offset).randbytes(512))
    restore_disk(FileReader(source), target, "qcow2")
    told = json.loads(qemu_img("check", "--output=json", "-f", "qcow2", target))
    assert not {"corruptions", "leaks", "check-errors"} & {key for key in told if told[key]}
    assert json.loads(qemu_img("info", "--output=json", target))["virtual-size"] == size
    qemu_img("compare", "-f", "raw", "-F", "qcow2", source, target)


@pytest.mark.soak
def test_qcow2_counts_clusters_over_several_blocks(tmp_path: Path, monkeypatch) -> None:
    """An image of more than 2 GiB has several clusters of reference counts."""
    source, target = tmp_path / "source", tmp_path / "disk.qcow2"
    size = (2 << 30) + (192 << 20)
    with source.open("wb") as file:
        file.truncate(size)

    class Full(FileReader):
        """A byte in each cluster, and nothing that has to be on disk."""

        def read(self, offset: int, length: int) -> bytes:
            return (b"x" + bytes(qcow2.CLUSTER_BYTES - 1)) * (length // qcow2.CLUSTER_BYTES)

        def holes(self) -> Iterator[Extent]:
            return iter(())

    def sparse(descriptor: int, content: bytes, offset: int) -> None:
        os.ftruncate(descriptor, max(os.fstat(descriptor).st_size, offset + len(content)))
        os.pwrite(descriptor, content.rstrip(b"\0"), offset)

    monkeypatch.setattr(qcow2, "pwrite", sparse)
    restore_disk(Full(source), target, "qcow2")
    told = json.loads(qemu_img("check", "--output=json", "-f", "qcow2", target))
    assert not {"corruptions", "leaks", "check-errors"} & {key for key in told if told[key]}
    assert told["allocated-clusters"] == size // qcow2.CLUSTER_BYTES


def test_a_vmdk_needs_a_name_of_its_kind(source: Path, tmp_path: Path) -> None:
    for name in ("disk.img", 'a"b.vmdk', "a\nb.vmdk"):
        with pytest.raises(RestoreTargetError, match="no name for a VMDK"):
            restore_disk(FileReader(source), tmp_path / name, "vmdk")


ENDLESS = """
import sys
from pathlib import Path
from atoll.blocks.readers import FileReader
from atoll.recovery.disks import restore_disk

def told(done):
    print("writing", flush=True)
    sys.stdin.read()

restore_disk(FileReader(Path(sys.argv[1])), Path(sys.argv[2]), "vmdk", told)
"""


def test_only_what_killed_restores_of_the_same_name_left_is_cleared(
    source: Path, tmp_path: Path
) -> None:
    others = [".disk.vmdk.0123456789ab.x", ".disk.0123456789ab", ".disk2-flat.vmdk.0123456789ab"]
    for name in others:
        (tmp_path / name).touch()
    for name in (".disk.vmdk.0123456789ab", ".disk-flat.vmdk.ba9876543210"):
        (tmp_path / name).touch()
    (tmp_path / ".disk.vmdk.000000000000").symlink_to(tmp_path / others[0])
    os.mkfifo(tmp_path / ".disk.vmdk.000000000001")
    kept = [*others, ".disk.vmdk.000000000000", ".disk.vmdk.000000000001"]

    def passing() -> set[str]:
        return set(os.listdir(tmp_path)) - set(kept)

    target = tmp_path / "disk.vmdk"
    other = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, source, target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"writing\n"
        (held,) = passing()
        with pytest.raises(AtollError):
            restore_disk(Failing(source, 70 << 20, True), target, "vmdk")
        assert passing() == {held}, "a live restore's file is not a leftover"
    finally:
        other.kill()
        other.wait()
    assert passing() == {held}
    restore_disk(FileReader(source), target, "vmdk")
    assert passing() == {"disk.vmdk", "disk-flat.vmdk"}
    assert set(kept) <= set(os.listdir(tmp_path))


def test_a_name_as_long_as_names_get(tmp_path: Path) -> None:
    name = "ü" * 127
    restore_disk(Memory(b"x" * 512), tmp_path / name)
    assert os.listdir(tmp_path) == [name]
