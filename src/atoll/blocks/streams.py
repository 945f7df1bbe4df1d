"""A block reader as an ordinary binary file, for libraries that want one."""

import io
import os
from typing import BinaryIO, cast

from atoll.model.errors import UnsupportedFormatError
from atoll.model.readers import BlockReader

_BUFFER_BYTES = 64 << 10


class _RawReader(io.RawIOBase):
    def __init__(self, reader: BlockReader) -> None:
        self._reader = reader
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._reader.size_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        data = self._reader.read(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _BoundedFile(io.BufferedReader):
    """Refuses one read of more than `limit` bytes: on damaged metadata that is a length gone wild."""

    def __init__(self, raw: io.RawIOBase, limit: int) -> None:
        super().__init__(raw, _BUFFER_BYTES)
        self._limit = limit

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self._limit:
            raise UnsupportedFormatError(
                f"The volume's metadata asks for {size} bytes at once, more than the {self._limit} "
                "Atoll believes; it is damaged, check it with the hypervisor's own tools."
            )
        return super().read(size)


def as_file(reader: BlockReader, max_read_bytes: int | None = None) -> BinaryIO:
    """A seekable, buffered file over a reader, each with a position of its own.

    Closing the file leaves the reader open. `max_read_bytes` makes a longer
    single read raise UnsupportedFormatError before memory is spent on it.
    """
    raw = _RawReader(reader)
    if max_read_bytes is None:
        return cast(BinaryIO, io.BufferedReader(raw, _BUFFER_BYTES))
    return cast(BinaryIO, _BoundedFile(raw, max_read_bytes))
