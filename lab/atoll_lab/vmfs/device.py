"""The bytes of a volume inside a LUN image: reading, writing and giving space back."""

import ctypes
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from atoll_lab.vmfs.gpt import find_partition
from atoll_lab.vmfs.layout import LVM_HEADER, LVM_MAGIC, VOLUME_START

_PIECE_BYTES = 256 << 10
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_libc = ctypes.CDLL(None, use_errno=True)


def data_ranges(fd: int, offset: int, end: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what a sparse file holds between two offsets."""
    while offset < end:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole to the end
            return
        hole = min(os.lseek(fd, offset, os.SEEK_HOLE), end)
        if offset >= end:
            return
        yield offset, hole - offset
        offset = hole


class Device:
    """An image opened for one user at a time; offsets are within the volume unless said otherwise."""

    def __init__(self, image: Path, start: int | None = None) -> None:
        self._fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if start is None:
                plain = os.pread(self._fd, 4, LVM_HEADER) == LVM_MAGIC.to_bytes(4, "little")
                start = 0 if plain else find_partition(self._fd, image)
        except BaseException:
            os.close(self._fd)
            raise
        self.image = image
        self.start = start
        self.base = start + VOLUME_START

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Put everything on stable storage and let others in."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def sync(self) -> None:
        """Put everything written so far on stable storage."""
        os.fsync(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes; zeros past the end of the image."""
        return self.read_partition(VOLUME_START + offset, length)

    def read_partition(self, offset: int, length: int) -> bytes:
        """As `read`, from the start of the VMFS partition."""
        return os.pread(self._fd, length, self.start + offset).ljust(length, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data`."""
        self.write_partition(VOLUME_START + offset, data)

    def write_partition(self, offset: int, data: bytes) -> None:
        """As `write`, from the start of the VMFS partition."""
        view, at = memoryview(data), self.start + offset
        while view:
            done = os.pwrite(self._fd, view, at)
            view, at = view[done:], at + done

    def clear(self, offset: int, length: int) -> None:
        """Make a range read as zeros and take no room; untouched where it is a hole already."""
        begin = self.base + offset
        for at, size in data_ranges(self._fd, begin, begin + length):
            done = _libc.fallocate(
                self._fd, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(at), ctypes.c_long(size)
            )
            if done != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(self.image))

    def copy_in(self, source: int, offset: int, length: int, target: int) -> None:
        """Copy from an open file; pieces that are all zeros are not written, so holes stay holes."""
        for begin, size in data_ranges(source, offset, offset + length):
            for at in range(begin, begin + size, _PIECE_BYTES):
                piece = os.pread(source, min(_PIECE_BYTES, begin + size - at), at)
                if piece.count(0) != len(piece):
                    self.write(target + at - offset, piece)

    def copy_within(self, offset: int, length: int, target: int) -> None:
        """Copy a range to another that was cleared."""
        self.copy_in(self._fd, self.base + offset, length, target)
