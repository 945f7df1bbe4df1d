"""XFS images for the tests: made small, filled through the kernel, changed at random, shut down."""

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import E2BIG, EEXIST, ENAMETOOLONG, ENOENT, ENOSPC
from pathlib import Path

from atoll.blocks.readers import FileReader
from atoll.filesystems.crc32c import crc32c
from atoll.filesystems.xfs_superblock import read_geometry

FORMS = {
    "xfs": [],
    "xfs-1k-blocks": ["-b", "size=1024"],
    "xfs-directories-64k": ["-n", "size=65536"],
    "xfs-wide-counts": ["-i", "nrext64=1,size=2048", "-m", "rmapbt=1"],
    "xfs-first-v5": ["-m", "bigtime=0,reflink=0,finobt=0,inobtcount=0", "-i", "sparse=0"],
    "xfs-striped": ["-d", "su=64k,sw=2", "-l", "su=64k", "-s", "size=4096"],
}
# mkfs refuses small volumes and logs, except in the test suite of XFS, which says so like this.
_AS_IN_TESTS = {"TEST_DIR": "1", "TEST_DEV": "1", "QA_CHECK_FS": "1"}
_SECTOR = 512
_HARMLESS = (ENOSPC, E2BIG, ENOENT, EEXIST, ENAMETOOLONG)


def make(image: Path, options: list[str], megabytes: int) -> None:
    """An empty file system with these options of mkfs.xfs."""
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    command = ["mkfs.xfs", "-q", "-f", "-L", "atoll", *options, image]
    subprocess.run(command, check=True, env=os.environ | _AS_IN_TESTS, capture_output=True)


def fill_corners(top: Path, form: str) -> None:
    """What XFS alone has, or has in another way than ext4."""
    rnd = random.Random(7)
    place = top / "xfs"
    place.mkdir()
    for count in (0, 5, 40, 400, 3000):  # in the inode, a block, with a leaf, with nodes
        directory = place / f"names{count}"
        directory.mkdir()
        for number in range(count):
            os.close(os.open(directory / f"entry-{number:05d}", os.O_CREAT, 0o600))
        for number in range(0, count, 3):
            (directory / f"entry-{number:05d}").unlink()
    (place / "linked").write_bytes(b"many names")
    for number in range(1000):
        os.link(place / "linked", place / f"linked-{number}")
    for count, length in ((3, 4), (40, 100), (800, 40), (2, 65536), (12, 9000)):
        path = place / f"attributes-{count}-{length}"
        path.write_bytes(b"")
        for number in range(count):
            os.setxattr(path, f"user.attribute-{number}", rnd.randbytes(length))
    path = place / "attributes-800-40"
    for number in range(0, 800, 7):
        os.removexattr(path, f"user.attribute-{number}")
    with (place / "fragments").open(
        "wb"
    ) as file:  # an extent tree, of several levels with small blocks
        for number in range(1200):
            file.seek(number * 8192)
            file.write(rnd.randbytes(1024) * 4)
    # Extents that were never written over what was deleted there.
    with (place / "secret").open("wb") as file:
        for _ in range(12):
            file.write(b"what was deleted must not come back " * 29128)
        os.fsync(file.fileno())
    (place / "secret").unlink()
    subprocess.run(["sync", "-f", top], check=True)
    for number in range(4):
        path = place / f"unwritten-{number}"
        subprocess.run(["fallocate", "-l", "4M", path], check=True)
        with path.open("r+b") as file:
            file.seek((1 << 20) + number * 100)
            file.write(b"written")
    for length in (1, 100, 300, 336, 337, 400, 500, 1023):
        os.symlink("t" * length, place / f"link-{length}")
    if form != "xfs-first-v5":
        shared = place / "shared"
        shared.write_bytes(rnd.randbytes(1 << 20))
        for number in range(5):
            copy = place / f"copy-{number}"
            subprocess.run(["cp", "--reflink=always", shared, copy], check=True)
            with copy.open("r+b") as file:
                file.seek(number * 100_000)
                file.write(b"other")


@dataclass
class Changes:
    """Random changes of a mounted tree; the same for the same seed and tree."""

    top: Path
    random: random.Random
    files: list[Path] = field(default_factory=list)
    directories: list[Path] = field(default_factory=list)
    made: int = 0

    def __post_init__(self) -> None:
        """Take in what is there."""
        for where, below, names in os.walk(self.top):
            below.sort()
            self.directories.append(Path(where))
            paths = (Path(where, name) for name in sorted(names))
            self.files += [path for path in paths if not path.is_symlink() and path.is_file()]

    def make(self, count: int) -> None:
        """So many changes."""
        kinds: list[tuple[Callable[[], None], int]] = [
            *((self.create, 30), (self.create_directory, 6), (self.remove, 14), (self.rename, 6)),
            *((self.set_attribute, 7), (self.drop_attributes, 3), (self.symlink, 3)),
            *((self.truncate, 4), (self.copy, 4), (self.overwrite, 5), (self.link, 3)),
            *((self.chown, 3), (self.preallocate, 2), (self.punch, 2), (self.remove_tree, 1)),
            *((self.fill_directory, 1), (self.fragment, 1), (self.sync, 2)),
        ]
        for act in self.random.choices(
            [kind for kind, _ in kinds], [weight for _, weight in kinds], k=count
        ):
            try:
                act()
            except OSError as error:
                if error.errno not in _HARMLESS:
                    raise

    def _new(self, kind: str) -> Path:
        self.made += 1
        name = f"{kind}{self.made}-{self.random.randrange(1 << 30)}"
        return self.random.choice(self.directories) / (name + "x" * self.random.randrange(120))

    def _file(self) -> Path:
        return self.random.choice(self.files) if self.files else self.create()

    def create(self) -> Path:
        path = self._new("file")
        path.write_bytes(self.random.randbytes(self.random.choice((0, 10, 5000, 40000))))
        self.files.append(path)
        return path

    def create_directory(self) -> None:
        path = self._new("directory")
        path.mkdir()
        self.directories.append(path)

    def remove(self) -> None:
        path = self._file()
        path.unlink()
        self.files.remove(path)

    def rename(self) -> None:
        old, new = self._file(), self._new("renamed")
        old.rename(new)
        self.files.remove(old)
        self.files.append(new)

    def set_attribute(self) -> None:
        value = self.random.randbytes(self.random.choice((1, 10, 200, 3000, 20000)))
        os.setxattr(self._file(), "user." + "n" * self.random.randrange(1, 100), value)

    def drop_attributes(self) -> None:
        path = self._file()
        for name in os.listxattr(path):
            os.removexattr(path, name)

    def symlink(self) -> None:
        os.symlink("t" * self.random.randrange(1, 1000), self._new("symlink"))

    def truncate(self) -> None:
        os.truncate(self._file(), self.random.randrange(100_000))

    def copy(self) -> None:
        old, new = self._file(), self._new("copy")
        subprocess.run(["cp", "--reflink=auto", old, new], check=True)
        self.files.append(new)

    def overwrite(self) -> None:
        with self._file().open("r+b") as file:
            file.seek(self.random.randrange(200_000))
            file.write(self.random.randbytes(self.random.randrange(20_000)))
            if self.random.random() < 0.5:
                os.fsync(file.fileno())

    def link(self) -> None:
        new = self._new("link")
        os.link(self._file(), new)
        self.files.append(new)

    def chown(self) -> None:
        path = self._file()
        os.chown(path, self.random.randrange(9999), 7)
        path.chmod(0o600)

    def preallocate(self) -> None:
        where, length = self.random.randrange(1 << 16), self.random.randrange(1, 1 << 20)
        command = ["fallocate", "-o", str(where), "-l", str(length), self._file()]
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)

    def punch(self) -> None:
        where, length = self.random.randrange(1 << 16), self.random.randrange(1, 1 << 16)
        command = ["fallocate", "-p", "-o", str(where), "-l", str(length), self._file()]
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)

    def remove_tree(self) -> None:
        if len(self.directories) > 8:
            gone = self.random.choice(self.directories[1:])
            shutil.rmtree(gone)
            self.directories = [d for d in self.directories if d != gone and gone not in d.parents]
            self.files = [file for file in self.files if gone not in file.parents]

    def fill_directory(self) -> None:
        path = self._new("full")
        path.mkdir()
        self.directories.append(path)
        for number in range(self.random.choice((30, 300, 2500))):
            (path / f"entry-{number:05d}").touch()

    def fragment(self) -> None:
        path = self._new("fragments")
        with path.open("wb") as file:
            for number in range(self.random.choice((5, 60, 300))):
                file.seek(number * 8192)
                file.write(b"f" * 4096)
                if number % 20 == 0:
                    os.fsync(file.fileno())
        self.files.append(path)

    def sync(self) -> None:
        subprocess.run(["sync", "-f", self.top], check=True)


class LogWriter:
    """Adds records to the log of an image, as a kernel that was cut off would leave them."""

    def __init__(self, image: Path) -> None:
        self.image = image
        known = read_geometry(FileReader(image))
        self.start, self.sectors = known.log_start, known.log_bytes // _SECTOR
        raw = image.read_bytes()[self.start : self.start + known.log_bytes]
        at = 0
        while raw[at : at + 8] == b"\xfe\xed\xba\xbe" + raw[4:8]:  # of the first time round
            heads = max(1, -(-int.from_bytes(raw[at + 320 : at + 324]) // 32768))
            self.last = raw[at : at + _SECTOR]
            at += (heads + -(-int.from_bytes(raw[at + 12 : at + 16]) // _SECTOR)) * _SECTOR
        self.next = at // _SECTOR
        self.cycle = int.from_bytes(self.last[4:8])
        self.tail = self.cycle << 32 | self.next

    def add(self, regions: list[bytes], *, broken: bool = False, committed: bool = True) -> None:
        """One transaction in one record."""
        parts = [(b"", 1), (b"NART" + struct.pack("<III", 0, 7, len(regions)), 0)]
        parts += [(region, 0) for region in regions] + ([(b"", 2)] if committed else [])
        data = b"".join(
            struct.pack(">IIBBH", 77, len(part), 0x69, flags, 0) + part for part, flags in parts
        )
        packed = bytearray(data.ljust(-(-len(data) // _SECTOR) * _SECTOR, b"\0"))
        head = bytearray(_SECTOR)
        struct.pack_into(">4sIII", head, 0, b"\xfe\xed\xba\xbe", self.cycle, 2, len(packed))
        struct.pack_into(">QQ", head, 16, self.cycle << 32 | self.next, self.tail)
        struct.pack_into(">iI", head, 36, -1, len(parts))
        for number in range(len(packed) // _SECTOR):
            at = number * _SECTOR
            head[44 + 4 * number : 48 + 4 * number] = packed[at : at + 4]
            packed[at : at + 4] = self.cycle.to_bytes(4)
        struct.pack_into(">I16sI", head, 300, 1, self.last[304:320], 32768)
        crc = crc32c(bytes(head[:328]) + bytes(packed))
        head[32:36] = (crc ^ broken).to_bytes(4, "little")
        with self.image.open("r+b") as file:
            file.seek(self.start + self.next * _SECTOR)
            file.write(head + packed)
        self.next += 1 + len(packed) // _SECTOR
