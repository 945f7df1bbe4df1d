"""What the tests of file systems other than ext share: bytes of a tree, and mounts by FUSE."""

import hashlib
import os
import random
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from atoll.filesystems.interface import Data, Entry, Fault
from atoll.filesystems.session import FileSystemSession

_MAX_DIGESTED_BYTES = 1 << 30


@dataclass
class Exported:
    """Everything a session says about a tree, by path."""

    entries: dict[bytes, Entry] = field(default_factory=dict)
    digests: dict[bytes, str] = field(default_factory=dict)
    faults: dict[bytes, str] = field(default_factory=dict)


class _Digest:
    """SHA-256 of a file given as data without its holes."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._at = 0

    def add(self, data: Data, size: int) -> None:
        if size > _MAX_DIGESTED_BYTES:
            return
        self.fill(data.offset)
        self._digest.update(data.content)
        self._at += len(data.content)

    def fill(self, end: int) -> None:
        while self._at < end:
            step = min(end - self._at, 1 << 20)
            self._digest.update(bytes(step))
            self._at += step

    def end(self, size: int) -> str:
        if size > _MAX_DIGESTED_BYTES:
            return "not taken"
        self.fill(size)
        assert self._at == size
        return self._digest.hexdigest()


def export_all(session: FileSystemSession, top: str = "/") -> Exported:
    """One pass over a tree; a file with several names has its digest under each of them."""
    found = Exported()
    by_inode: dict[int, str] = {}
    last: Entry | None = None
    digest = _Digest()

    def settle() -> None:
        if last is not None and last.kind == "file":
            known = by_inode.get(last.inode)
            if known is None or last.nlink == 1:
                known = by_inode[last.inode] = digest.end(last.size)
            found.digests[os.fsencode(last.path)] = known

    for record in session.export(top):
        match record:
            case Entry():
                settle()
                last, digest = record, _Digest()
                assert os.fsencode(record.path) not in found.entries
                found.entries[os.fsencode(record.path)] = record
            case Data():
                assert last is not None
                digest.add(record, last.size)
            case Fault():
                found.faults[os.fsencode(record.path)] = record.reason
    settle()
    return found


def file_digest(path: bytes) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def walk(top: Path) -> Iterator[tuple[bytes, os.stat_result]]:
    """Everything below a mount point by its path inside, and the mount point itself."""
    root = os.fsencode(top)
    todo = [root]
    while todo:
        path = todo.pop()
        info = os.lstat(path)
        yield path[len(root) :] or b"/", info
        if stat.S_ISDIR(info.st_mode):
            todo += [path + b"/" + name for name in os.listdir(path)]


@contextmanager
def fuse_mounted(command: Sequence[str | Path], at: Path) -> Iterator[Path]:
    """A mount by a FUSE program, for as long as the block lasts."""
    at.mkdir(exist_ok=True)
    subprocess.run([*command, at], check=True, stdout=subprocess.DEVNULL)
    try:
        yield at
    finally:
        unmount(at)


def unmount(at: Path) -> None:
    """Unmount, once nobody looks into it any more: whoever goes through all mounts may, for a moment."""
    until = time.monotonic() + 30
    while subprocess.run(["umount", at], check=False, capture_output=True).returncode:
        if time.monotonic() > until:
            subprocess.run(["umount", "--lazy", at], check=True)
            raise AssertionError(f"{at} stayed busy")
        time.sleep(0.1)


@contextmanager
def looped(image: Path) -> Iterator[Path]:
    """A block device over an image."""
    command = ["losetup", "--find", "--show", image]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    device = Path(done.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


class Flipped:
    """An image with some bytes changed in memory."""

    def __init__(self, image: bytes, changes: dict[int, int]) -> None:
        self._image = image
        self._changes = changes

    @property
    def size_bytes(self) -> int:
        return len(self._image)

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(self._image[offset : offset + length])
        for place, value in self._changes.items():
            if offset <= place < offset + len(data):
                data[place - offset] = value
        return bytes(data)


def structures(image: bytes, step: int = 512) -> list[int]:
    """Offsets of what is set in sectors that look like structures: mostly zeros, where content is noise."""
    found = []
    for start in range(0, len(image), step):
        sector = image[start : start + step]
        if step // 8 < sector.count(0) < step:
            found += [start + at for at, byte in enumerate(sector) if byte]
    return found


def flips(places: Sequence[int], seed: int, most: int = 40) -> dict[int, int]:
    """Some changed bytes among the structures."""
    rnd = random.Random(seed)
    return {rnd.choice(places): rnd.randrange(256) for _ in range(rnd.randrange(1, most))}
