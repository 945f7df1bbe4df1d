"""What reading over NBD costs: against the reader behind it, the plain file, and QEMU's own server.

The server runs in this process and libnbd's `nbdcopy` reads from it, in a process of its own, as
backup software does. A socket copies every byte twice more than reading does, on the same cores:
from memory, where nothing else costs, that is all there is to see; from a disk or a repository,
hardly any of it.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from atoll.blocks.readers import FileReader
from atoll.model.extents import Extent
from atoll.model.points import DiskImage
from atoll.model.readers import BlockReader
from atoll.nbd.exports import Export
from atoll.nbd.listening import UnixAddress
from atoll.nbd.server import NbdServer
from atoll.repository.keys import create_key_file
from atoll.repository.repository import Repository
from bench.report import Figure, figure, publish, say

MIB = 1 << 20
FILE_BYTES = 1 << 30
ROUNDS = int(os.environ.get("ATOLL_BENCH_SAMPLES", "7"))

_DRAIN = """
import socket
buffer, end = bytearray(256 << 10), socket.socket(fileno=0)
while end.recv_into(buffer):
    pass
"""


def main() -> None:
    """Measure and publish."""
    publish("island_nbd", nbd_figures())


def nbd_figures() -> list[Figure]:
    """All figures; `nbd_read_ratio` is NBD over the plain file, both by `nbdcopy` from the disk."""
    with tempfile.TemporaryDirectory(prefix="atoll-bench-", dir="/var/tmp") as name:
        directory = Path(name)
        disk = directory / "disk.img"
        _write(disk)
        return [
            *_from_memory(disk, directory),
            *_to_a_file(disk, directory),
            *_cold(disk, directory),
            *_from_repository(disk, directory),
        ]


def _write(disk: Path) -> None:
    """Half of it compresses, as disks do; no two chunks are the same."""
    with disk.open("wb") as file:
        for _ in range(FILE_BYTES // MIB):
            file.write(os.urandom(1024) * 512 + os.urandom(MIB // 2))
        file.flush()
        os.fsync(file.fileno())


def _from_memory(disk: Path, directory: Path) -> list[Figure]:
    say("reading from memory: directly, by nbdcopy, over NBD, over NBD from qemu-nbd")
    direct: list[float] = []
    plain: list[float] = []
    ours: list[float] = []
    qemus: list[float] = []
    bare: list[float] = []
    reader = FileReader(disk)
    with _served(reader, directory) as uri, _qemu_nbd(disk, directory) as qemu_uri:
        for _ in range(ROUNDS):
            direct.append(_rate(partial(_read, reader)))
            plain.append(_rate(partial(_copy, disk, "null:")))
            ours.append(_rate(partial(_copy, uri, "null:")))
            bare.append(_rate(_through_a_socket))
            qemus.append(_rate(partial(_copy, qemu_uri, "null:")))
    reader.close()
    return [
        figure("nbd_direct_read", direct, "MiB/s"),
        figure("nbd_plain_file_read", plain, "MiB/s"),
        figure("nbd_qemu_nbd_read", qemus, "MiB/s"),
        figure("nbd_bare_socket", bare, "MiB/s"),
        figure("nbd_read", ours, "MiB/s"),
        _ratio("nbd_memory_ratio", ours, direct, "the reader itself"),
        _ratio("nbd_plain_file_ratio", ours, plain, "nbdcopy of the file"),
        _ratio("nbd_bare_socket_ratio", ours, bare, "a bare socket"),
        _ratio("nbd_qemu_nbd_ratio", ours, qemus, "qemu-nbd"),
    ]


def _to_a_file(disk: Path, directory: Path) -> list[Figure]:
    say("copying into a file: from the plain file, over NBD")
    plain: list[float] = []
    ours: list[float] = []
    target = directory / "copy.img"
    reader = FileReader(disk)
    with _served(reader, directory) as uri:
        for _ in range(ROUNDS):
            for source, rates in ((disk, plain), (uri, ours)):
                rates.append(_rate(partial(_copy, source, target)))
                target.unlink()
    reader.close()
    return [_ratio("nbd_copy_ratio", ours, plain, "nbdcopy of the file")]


def _cold(disk: Path, directory: Path) -> list[Figure]:
    say("reading from the disk: the plain file, directly, over NBD, over NBD from qemu-nbd")
    reader = FileReader(disk)
    with _served(reader, directory) as uri, _qemu_nbd(disk, directory) as qemu_uri:
        ways = {
            "plain": partial(_copy, disk, "null:"),
            "direct": partial(_read, reader),
            "ours": partial(_copy, uri, "null:"),
            "qemu": partial(_copy, qemu_uri, "null:"),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, work in ways.items():
                _evict(disk)
                rates[way].append(_rate(work))
    reader.close()
    return [
        figure("nbd_disk_plain_file_read", rates["plain"], "MiB/s"),
        figure("nbd_disk_direct_read", rates["direct"], "MiB/s"),
        figure("nbd_disk_read", rates["ours"], "MiB/s"),
        _ratio("nbd_read_ratio", rates["ours"], rates["plain"], "nbdcopy of the file"),
        _ratio("nbd_disk_direct_ratio", rates["ours"], rates["direct"], "the reader itself"),
        _ratio("nbd_disk_qemu_nbd_ratio", rates["ours"], rates["qemu"], "qemu-nbd"),
    ]


def _from_repository(disk: Path, directory: Path) -> list[Figure]:
    say("reading a disk of a repository: directly, over NBD")
    direct: list[float] = []
    ours: list[float] = []
    key = create_key_file(directory / "key")
    source = FileReader(disk)
    with Repository.create(directory / "repository", key) as repository:
        root = repository.copy_disk(source).root
        image = DiskImage(2000, "disk", "", FILE_BYTES, root, "", (), 0, 0, 0)
        reader = repository.open_disk(image)
        with _served(reader, directory) as uri:
            for _ in range(ROUNDS):
                direct.append(_rate(partial(_read_ahead, reader)))
                ours.append(_rate(partial(_copy, uri, "null:")))
        reader.close()
    source.close()
    return [
        figure("nbd_repository_direct_read", direct, "MiB/s"),
        figure("nbd_repository_read", ours, "MiB/s"),
        _ratio("nbd_repository_ratio", ours, direct, "the reader itself"),
    ]


def _rate(work: Callable[[], None]) -> float:
    """MiB/s of reading the whole disk once."""
    began = time.monotonic()
    work()
    return FILE_BYTES / MIB / (time.monotonic() - began)


def _read(reader: BlockReader) -> None:
    for at in range(0, FILE_BYTES, MIB):
        reader.read(at, MIB)


def _read_ahead(reader: BlockReader) -> None:
    """As a restore reads: with the reader's own threads ahead."""
    for _ in reader.read_many([Extent(0, FILE_BYTES)]):
        pass


def _copy(source: str | Path, target: str | Path) -> None:
    subprocess.run(["nbdcopy", str(source), str(target)], check=True)


def _through_a_socket() -> None:
    """As many bytes from one buffer to another process that does nothing with them."""
    buffer = bytes(256 << 10)
    near, far = socket.socketpair()
    with near, subprocess.Popen([sys.executable, "-c", _DRAIN], stdin=far.fileno()) as drain:
        far.close()
        for _ in range(FILE_BYTES // len(buffer)):
            near.sendall(buffer)
        near.shutdown(socket.SHUT_WR)
        drain.wait()


def _evict(disk: Path) -> None:
    with disk.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _served(reader: BlockReader, directory: Path) -> Iterator[str]:
    with NbdServer([Export("disk", reader)], UnixAddress(directory / "nbd.sock")) as server:
        yield server.uri("disk")


@contextmanager
def _qemu_nbd(disk: Path, directory: Path) -> Iterator[str]:
    place = directory / "qemu.sock"
    uri = f"nbd+unix:///?socket={place}"
    with subprocess.Popen(
        ["qemu-nbd", "-r", "-f", "raw", "-e", "8", "-t", "-k", str(place), str(disk)]
    ) as server:
        try:
            while server.poll() is None and not place.exists():
                time.sleep(0.01)
            yield uri
        finally:
            server.terminate()


def _ratio(name: str, ours: list[float], theirs: list[float], versus: str) -> Figure:
    """Round by round, so that a slow moment of the machine hits both."""
    return figure(name, [a / b for a, b in zip(ours, theirs, strict=True)], "ratio", versus, 1.0)


if __name__ == "__main__":
    main()
