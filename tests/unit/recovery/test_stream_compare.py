"""A stream as QEMU writes it, and as Atoll does, compared with the disk it came from."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.model.errors import UnsupportedFormatError
from atoll.model.extents import Extent
from atoll.recovery.stream_compare import difference
from atoll.recovery.stream_vmdk import stream_vmdk
from repository_parts import MemoryDisk, noise

MIB = 1 << 20


@pytest.fixture(scope="module")
def content() -> bytes:
    """Data, zeros, and an end within a grain."""
    disk = bytearray(9 * MIB + 512)
    for at, length in ((0, 100_000), (5 * MIB, MIB), (len(disk) - 512, 512)):
        disk[at : at + length] = noise(at, length)
    return bytes(disk)


def parts(stream: bytes, step: int = 65_537) -> Iterator[bytes]:
    for at in range(0, len(stream), step):
        yield stream[at : at + step]


def silent(_: int) -> None:
    pass


@pytest.fixture(params=["atoll", "qemu"])
def stream(request: pytest.FixtureRequest, content: bytes, tmp_path: Path) -> bytes:
    if request.param == "atoll":
        return b"".join(stream_vmdk(MemoryDisk(content), silent))
    (tmp_path / "raw").write_bytes(content)
    how = ["-O", "vmdk", "-o", "subformat=streamOptimized"]
    made = tmp_path / "made.vmdk"
    subprocess.run(["qemu-img", "convert", "-f", "raw", *how, tmp_path / "raw", made], check=True)
    return made.read_bytes() + bytes(512)  # the end, which QEMU leaves out


def test_the_same_and_not_the_same(stream: bytes, content: bytes) -> None:
    told: list[int] = []
    holes = [Extent(2 * MIB, MIB)]
    assert difference(parts(stream), MemoryDisk(content, holes), told.append) is None
    assert told[-1] == len(content)
    for at in (3, 4 * MIB, 6 * MIB - 1, 8 * MIB + 7, len(content) - 1):
        other = bytearray(content)
        other[at] ^= 1
        assert difference(parts(stream), MemoryDisk(bytes(other)), silent) == at
    shorter = MemoryDisk(content[:-512])
    assert difference(parts(stream), shorter, silent) == len(content) - 512


def test_what_is_no_such_stream(stream: bytes, content: bytes) -> None:
    disk = MemoryDisk(content)
    broken = bytearray(stream)
    broken[300_000:304_096] = b"\xff" * 4096
    for wrong in (b"", b"x" * 4096, stream[: len(stream) // 2], stream[:700], bytes(broken)):
        with pytest.raises(UnsupportedFormatError):
            difference(parts(wrong), disk, silent)
