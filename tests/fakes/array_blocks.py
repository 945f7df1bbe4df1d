"""A fake array's media: images that share what they have in common, and one lock over all writes."""

import ctypes
import fcntl
import os
import threading
from contextlib import suppress
from pathlib import Path

from atoll.model.extents import Extent, merge

_FICLONE = 0x40049409  # linux/fs.h
_PUNCH_HOLE_KEEP_SIZE = 0x03
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Blocks:
    """Images by key in a directory of a file system with reflinks.

    A write holds `lock` for as long as it takes, so whoever else holds it sees all
    images at one instant, and no write is acknowledged meanwhile.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptors: dict[str, int] = {}
        self.lock = threading.RLock()
        directory.mkdir(parents=True, exist_ok=True)

    def create(self, key: str, size: int) -> None:
        with self.lock:
            os.ftruncate(self._open(key, os.O_CREAT | os.O_EXCL), size)

    def copy(self, source: str, key: str) -> None:
        """Make or overwrite an image with another's content and size, in constant time."""
        with self.lock:
            target = self._open(key, os.O_CREAT)
            os.ftruncate(target, 0)
            fcntl.ioctl(target, _FICLONE, self._open(source))

    def resize(self, key: str, size: int) -> None:
        with self.lock:
            os.ftruncate(self._open(key), size)

    def delete(self, key: str) -> None:
        with self.lock:
            descriptor = self._descriptors.pop(key, None)
            if descriptor is not None:
                os.close(descriptor)
            (self._directory / key).unlink(missing_ok=True)

    def size(self, key: str) -> int:
        return os.fstat(self._open(key)).st_size

    def read(self, key: str, offset: int, length: int) -> bytes:
        return os.pread(self._open(key), length, offset)

    def write(self, key: str, offset: int, data: bytes) -> None:
        with self.lock:
            os.pwrite(self._open(key), data, offset)

    def unmap(self, key: str, offset: int, length: int) -> None:
        with self.lock:
            if _libc.fallocate(self._open(key), _PUNCH_HOLE_KEEP_SIZE, offset, length):
                raise OSError(ctypes.get_errno(), "fallocate")

    def mapped(self, key: str) -> list[Extent]:
        """Where it holds data."""
        found, position, size = [], 0, self.size(key)
        with suppress(OSError):  # ENXIO: nothing up to the end
            while position < size:
                start = os.lseek(self._open(key), position, os.SEEK_DATA)
                position = os.lseek(self._open(key), start, os.SEEK_HOLE)
                found.append(Extent(start, position - start))
        return found

    def differences(self, base: str, key: str, unit: int) -> list[Extent]:
        """Blocks of `unit` bytes of `key` that are not as in `base`, which may be shorter."""
        found = []
        size = self.size(key)
        for extent in merge([*self.mapped(base), *self.mapped(key)]):
            for at in range(extent.offset // unit * unit, min(extent.end, size), unit):
                length = min(unit, size - at)
                if self.read(base, at, length).ljust(length, b"\0") != self.read(key, at, length):
                    found.append(Extent(at, length))
        return merge(found)

    def close(self) -> None:
        with self.lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def _open(self, key: str, flags: int = 0) -> int:
        with self.lock:
            if key not in self._descriptors:
                path = self._directory / key
                self._descriptors[key] = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
            return self._descriptors[key]
