"""Stream-optimised VMDKs, read back by QEMU, which has a parser of its own."""

import json
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.model.errors import RepositoryDamagedError, RestoreTargetError
from atoll.model.extents import Extent
from atoll.recovery import stream_vmdk as module
from atoll.recovery.stream_vmdk import GRAIN_BYTES, SECTOR, stream_vmdk
from repository_parts import MemoryDisk

TABLE_BYTES = 512 * GRAIN_BYTES


def nothing(done: int) -> None:
    """Nobody looks at the progress."""


def write(reader: MemoryDisk, directory: Path) -> Path:
    path = directory / "disk.vmdk"
    path.write_bytes(b"".join(stream_vmdk(reader, nothing)))
    return path


def read_back(path: Path) -> bytes:
    plain = path.with_name("plain")
    subprocess.run(["qemu-img", "check", "-q", path], check=True)
    subprocess.run(["qemu-img", "convert", "-O", "raw", path, plain], check=True)
    return plain.read_bytes()


@pytest.mark.parametrize(
    "size", [3 * SECTOR, GRAIN_BYTES, (5 << 20) + 7 * SECTOR, TABLE_BYTES + 3 * GRAIN_BYTES]
)
@pytest.mark.parametrize("kind", ["empty", "full", "scattered"])
def test_qemu_reads_what_the_disk_holds(tmp_path: Path, size: int, kind: str) -> None:
    chance = random.Random(size)
    content, holes = bytearray(size), [Extent(0, size)] if kind == "empty" else []
    if kind == "full":
        content[:] = chance.randbytes(size)
    elif kind == "scattered":
        for _ in range(20):
            at = chance.randrange(size)
            content[at : at + 1000] = chance.randbytes(min(1000, size - at))
    path = write(MemoryDisk(bytes(content), holes), tmp_path)
    assert read_back(path) == content
    told = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", path]))
    assert told["virtual-size"] == size
    assert told["format-specific"]["data"]["create-type"] == "streamOptimized"
    if kind == "empty":
        assert path.stat().st_size < 2 * GRAIN_BYTES


class HugeDisk(MemoryDisk):
    """A few MiB here and there in many GiB that are known to be zero."""

    def __init__(self, size: int, islands: dict[int, bytes]) -> None:
        super().__init__(b"")
        self._size, self._islands = size, islands

    @property
    def size_bytes(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        found = bytearray(length)
        for at, data in self._islands.items():
            begin, end = max(at, offset), min(at + len(data), offset + length)
            if begin < end:
                found[begin - offset : end - offset] = data[begin - at : end - at]
        return bytes(found)

    def holes(self) -> list[Extent]:
        ends = [0, *(at + len(data) for at, data in self._islands.items())]
        return [
            Extent(end, at - end)
            for end, at in zip(ends, [*self._islands, self._size], strict=True)
            if at > end
        ]


def test_beyond_four_gib(tmp_path: Path) -> None:
    chance = random.Random(4)
    size = (9 << 30) + 5 * SECTOR
    islands = {
        (4 << 30) - 700: chance.randbytes(5000),
        (8 << 30) + 12345: chance.randbytes(200_000),
        size - 10: b"the end!!!",
    }
    path = write(HugeDisk(size, islands), tmp_path)
    assert path.stat().st_size < 2 << 20
    plain = tmp_path / "plain"
    subprocess.run(["qemu-img", "check", "-q", path], check=True)
    subprocess.run(["qemu-img", "convert", "-O", "raw", path, plain], check=True)
    assert plain.stat().st_size == size
    with plain.open("rb") as stream:
        for at, data in islands.items():
            stream.seek(at - 512)
            assert stream.read(512 + len(data)) == bytes(512) + data
    assert plain.stat().st_blocks * 512 < 2 << 20


@settings(max_examples=15, deadline=None)
@given(
    sectors=st.integers(1, 700),
    islands=st.lists(
        st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=600)), max_size=6
    ),
)
def test_any_disk(tmp_path_factory, sectors: int, islands: list[tuple[int, bytes]]) -> None:
    content = bytearray(sectors * SECTOR)
    for sector, data in islands:
        at = sector % sectors * SECTOR
        content[at : at + len(data)] = data[: len(content) - at]
    path = write(MemoryDisk(bytes(content)), tmp_path_factory.mktemp("any"))
    assert read_back(path) == content


def test_progress_goes_up_to_the_whole_disk() -> None:
    told: list[int] = []
    disk = MemoryDisk(random.Random(1).randbytes(9 << 20))
    parts = list(stream_vmdk(disk, told.append))
    assert told == sorted(told)
    assert told[-1] == 9 << 20
    assert max(map(len, parts)) < 5 << 20


def test_what_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RestoreTargetError, match="not a whole number of sectors"):
        list(stream_vmdk(MemoryDisk(b"x" * 700), nothing))

    class Short(MemoryDisk):
        size_bytes = 1024

    with pytest.raises(RepositoryDamagedError, match="ended at byte 512 of 1024"):
        list(stream_vmdk(Short(b"x" * 512), nothing))
    monkeypatch.setattr(module, "_MAX_SECTOR", 300)
    with pytest.raises(RestoreTargetError, match="too large for one stream-optimised VMDK"):
        list(stream_vmdk(MemoryDisk(random.Random(1).randbytes(1 << 20)), nothing))
