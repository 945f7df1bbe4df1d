"""What a mounted tree costs: reading an image against the reader behind it, listing files against
the kernel's own mount.

The server runs in a process of its own, as `atoll mount` does, and shares this machine's cores with
what reads from it. Everything is in the page cache, where nothing but the way itself costs.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

from atoll.blocks.extent_map import DiskMap
from atoll.blocks.readers import FileReader, MappedReader
from atoll.fuse.server import FuseServer
from atoll.island.served import ServedDisk, ServedVm
from atoll.island.tree import ServedTree
from atoll.model.consistency import Consistency
from atoll.model.extents import Extent
from bench.report import Figure, figure, publish, say

MIB = 1 << 20
DISK_BYTES = 1 << 30
EXTENT_BYTES = 64 * MIB
FILES = 100_000
DIRECTORIES = 100
ROUNDS = int(os.environ.get("ATOLL_BENCH_SAMPLES", "5"))
_FIND = ["-printf", "%y %m %U %G %s %T@ %i %n %p\\n"]


def main() -> None:
    """Measure and publish."""
    publish("island_mount", mount_figures())


def mount_figures() -> list[Figure]:
    """All figures; of `mount_read_ratio` and `files_list_ratio` see the two functions that give them."""
    with tempfile.TemporaryDirectory(prefix="atoll-bench-", dir="/var/tmp") as name:
        return [*read_figures(Path(name)), *list_figures(Path(name))]


def read_figures(directory: Path) -> list[Figure]:
    """Sequential reads of a disk: the flat file by `dd`, 1 MiB at a time, and the reader itself.

    `mount_read_ratio` is against reading whole extents with `read_many`, as a backup of Atoll's own
    does; `mount_piece_ratio` against single reads of 1 MiB into memory that is used again at once
    and never leaves the processor's cache; `mount_plain_file_ratio` against `dd` of the LUN's file.
    """
    say("reading a 1 GiB disk: directly, through the mount, the plain file")
    disk = directory / "disk.img"
    with disk.open("wb") as file:
        for _ in range(DISK_BYTES // MIB):
            file.write(os.urandom(MIB))
    bulk: list[float] = []
    pieces: list[float] = []
    plain: list[float] = []
    through: list[float] = []
    with _mounted(disk, directory) as top, closing(FileReader(disk)) as lun:
        reader = MappedReader(_map(), {"lun": lun})
        for _ in range(ROUNDS):
            bulk.append(_rate(partial(_read_many, reader)))
            pieces.append(_rate(partial(_read, reader)))
            plain.append(_rate(partial(_dd, disk)))
            through.append(_rate(partial(_dd, top / "vm/image/vm-flat.vmdk")))
    disk.unlink()
    return [
        figure("mount_direct_read", bulk, "MiB/s"),
        figure("mount_direct_piece_read", pieces, "MiB/s"),
        figure("mount_plain_file_read", plain, "MiB/s"),
        figure("mount_read", through, "MiB/s"),
        _ratio("mount_read_ratio", through, bulk, "the reader's read_many"),
        _ratio("mount_piece_ratio", through, pieces, "the reader's read of 1 MiB"),
        _ratio("mount_plain_file_ratio", through, plain, "dd of the plain file"),
    ]


def list_figures(directory: Path) -> list[Figure]:
    """`find` with attributes over 100,000 files: a tree at first and again, and a loop mount."""
    say(f"listing {FILES} files: through the mount, by the kernel's own")
    image = _image_of_files(directory)
    first: list[float] = []
    again: list[float] = []
    kernel: list[float] = []
    for _ in range(max(3, ROUNDS // 2)):
        with _mounted(image, directory) as top:
            first.append(_seconds(partial(_find, top / "vm/files")))
            again.append(_seconds(partial(_find, top / "vm/files")))
        with _loop(image, directory / "loop") as top:
            kernel.append(_seconds(partial(_find, top)))
    return [
        figure("files_list_kernel", kernel, "s"),
        figure("files_list_first", first, "s"),
        figure("files_list_again", again, "s"),
        _ratio("files_list_ratio", first, kernel, "a loop mount"),
        _ratio("files_list_again_ratio", again, kernel, "a loop mount"),
    ]


def _map() -> DiskMap:
    """Extents in reverse, so that no two of them are one."""
    count = DISK_BYTES // EXTENT_BYTES
    rows = [
        (n * EXTENT_BYTES, EXTENT_BYTES, 0, (count - 1 - n) * EXTENT_BYTES) for n in range(count)
    ]
    return DiskMap.of(DISK_BYTES, ("lun",), rows)


@contextmanager
def _mounted(image: Path, directory: Path) -> Iterator[Path]:
    """The tree of one VM, served by another process until its standard input closes."""
    top = directory / "tree"
    top.mkdir(exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-m", "bench.island_mount", str(image), str(top)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        if server.stdout.readline() != b"ready\n":
            raise RuntimeError("the tree could not be mounted")
        try:
            yield top
        finally:
            server.stdin.close()


def serve(image: Path, top: Path) -> None:
    """Mount a VM with one disk: `image` through a map if it is the large one, else as it is."""
    lun = FileReader(image)
    whole = lun.size_bytes == DISK_BYTES
    disk = ServedDisk(
        2000,
        "disk",
        "[store] vm/vm.vmdk",
        lun.size_bytes,
        lambda: MappedReader(_map(), {"lun": lun}) if whole else FileReader(image),
    )
    vm = ServedVm("vm", "uuid", "run", 0.0, Consistency.APP, "", dict, (disk,))
    tree = ServedTree([vm])
    with FuseServer(tree.root, top, find=tree.views, source="bench"):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()
    tree.close()


def _image_of_files(directory: Path) -> Path:
    image = directory / "files.img"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES - MIB)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-N", str(FILES * 2), image], check=True)
    with _loop(image, directory / "loop", "rw") as top:
        (top / "etc").mkdir()
        (top / "etc/fstab").write_text("/dev/sda / ext4 defaults 0 1\n")
        for number in range(DIRECTORIES):
            place = top / f"d{number:03d}"
            place.mkdir()
            for each in range(FILES // DIRECTORIES):
                (place / f"file-{each:05d}").write_bytes(b"small")
    return image


@contextmanager
def _loop(image: Path, top: Path, how: str = "ro") -> Iterator[Path]:
    top.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", f"loop,{how}", image, top], check=True)
    try:
        yield top
    finally:
        subprocess.run(["umount", top], check=True)


def _rate(work: Callable[[], None]) -> float:
    """MiB/s of reading the whole disk once."""
    return DISK_BYTES / MIB / _seconds(work)


def _seconds(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _read_many(reader: MappedReader) -> None:
    extents = (Extent(at, EXTENT_BYTES) for at in range(0, DISK_BYTES, EXTENT_BYTES))
    for _ in reader.read_many(extents):
        pass


def _read(reader: MappedReader) -> None:
    for at in range(0, DISK_BYTES, MIB):
        reader.read(at, MIB)


def _dd(path: Path) -> None:
    subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"], check=True)


def _find(top: Path) -> None:
    listed = subprocess.run(["find", top, *_FIND], check=True, stdout=subprocess.PIPE)
    if listed.stdout.count(b"\n") < FILES:
        raise RuntimeError(f"{top} lists fewer than {FILES} files")


def _ratio(name: str, ours: list[float], theirs: list[float], versus: str) -> Figure:
    """Round by round, so that a slow moment of the machine hits both."""
    return figure(name, [a / b for a, b in zip(ours, theirs, strict=True)], "ratio", versus, 1.0)


if __name__ == "__main__":
    if sys.argv[1:]:
        with suppress(KeyboardInterrupt):
            serve(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        main()
