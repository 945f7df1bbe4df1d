"""Reads an image file that does not change: a LUN in a snapshot."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from atoll.model.errors import StorageUnreachableError
from atoll.model.extents import Extent

_PIECE_BYTES = 4 << 20


class ImageReader:
    """A BlockReader over a read-only image file; its holes are the file's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._reading():
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._size_bytes = os.fstat(self._descriptor).st_size
            # Who reads a LUN mostly reads all of it: twice the kernel's usual way ahead.
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""
        return self._size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, fewer only past the end."""
        pieces = []
        end = min(offset + length, self._size_bytes)
        while offset < end:
            with self._reading():
                piece = os.pread(self._descriptor, end - offset, offset)
            if not piece:
                raise StorageUnreachableError(
                    f"{self._path} ends at byte {offset}, before its size of {self._size_bytes}; "
                    "check the pool's file system."
                )
            pieces.append(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) in order, in pieces of at most 4 MiB."""
        for extent in extents:
            end = min(extent.end, self._size_bytes)
            for offset in range(extent.offset, end, _PIECE_BYTES):
                yield offset, self.read(offset, min(_PIECE_BYTES, end - offset))

    def holes(self) -> Iterable[Extent]:
        """Ranges without data, in order."""
        position = 0
        while position < self._size_bytes:
            hole = self._seek(position, os.SEEK_HOLE)
            if hole is None or hole >= self._size_bytes:
                return
            position = self._seek(hole, os.SEEK_DATA) or self._size_bytes
            yield Extent(hole, position - hole)

    def close(self) -> None:
        """Let go of the file. Closing twice is harmless."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _seek(self, position: int, whence: int) -> int | None:
        try:
            return os.lseek(self._descriptor, position, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing of the kind up to the end
                return None
            raise StorageUnreachableError(self._failure(error)) from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageUnreachableError(self._failure(error)) from error

    def _failure(self, error: OSError) -> str:
        return f"Cannot read {self._path}: {error.strerror}; check the pool's disks."
