"""Reads a volume's snapshot: through the helper, or by its block device on this machine."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from atoll.model.errors import StorageUnreachableError
from atoll.model.extents import Extent
from atoll.storage.drivers.san.helper import sparse
from atoll.storage.sidecar.client import Sidecar
from atoll.storage.sidecar.reader import SidecarReader

_PIECE_BYTES = 4 << 20
_KEPT_BYTES, _KEPT = 256 << 10, 16


class RemoteReader(SidecarReader):
    """A BlockReader through the helper, which sends no zeros.

    Small reads come out of the last few pieces of 256 KiB: file systems are read
    in small reads that lie together, and each way to the SAN server takes its time.
    """

    def __init__(self, helper: Sidecar, volume: str, snapshot: str, size_bytes: int) -> None:
        super().__init__(helper, volume, snapshot, size_bytes)
        self._helper = helper
        self._place = {"volume": volume, "snapshot": snapshot}
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, fewer only past the end."""
        end = min(offset + length, self.size_bytes)
        pieces = []
        while offset < end:
            start = offset // _KEPT_BYTES * _KEPT_BYTES
            if end <= start + _KEPT_BYTES:
                piece = self._small(start)[offset - start : end - start]
            else:
                piece = self._fetch(offset, min(_PIECE_BYTES, end - offset))
            pieces.append(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _small(self, start: int) -> bytes:
        with self._lock:
            if start in self._kept:
                self._kept.move_to_end(start)
                return self._kept[start]
        piece = self._fetch(start, min(_KEPT_BYTES, self.size_bytes - start))
        with self._lock:
            self._kept[start] = piece
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return piece

    def _fetch(self, offset: int, length: int) -> bytes:
        packed = self._helper.read("read", **self._place, offset=offset, length=length)
        return sparse.unpack(packed, length)


class DeviceReader:
    """A BlockReader over the device at `path`; size and holes are told by `through`.

    The helper keeps the device for as long as `through` is open, and the kernel
    for as long as this is.
    """

    def __init__(self, path: str, through: RemoteReader) -> None:
        self._path = path
        self._through = through
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageUnreachableError(self._failure(error)) from error

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""
        return self._through.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, fewer only past the end."""
        pieces = []
        end = min(offset + length, self.size_bytes)
        while offset < end:
            try:
                piece = os.pread(self._descriptor, end - offset, offset)
            except OSError as error:
                raise StorageUnreachableError(self._failure(error)) from error
            if not piece:
                raise StorageUnreachableError(
                    f"{self._path} ends at byte {offset}, before its size of {self.size_bytes}; "
                    "see the kernel log."
                )
            pieces.append(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) in order, in pieces of at most 4 MiB."""
        for extent in extents:
            end = min(extent.end, self.size_bytes)
            for offset in range(extent.offset, end, _PIECE_BYTES):
                yield offset, self.read(offset, min(_PIECE_BYTES, end - offset))

    def holes(self) -> Iterable[Extent]:
        """Ranges without data, in order."""
        return self._through.holes()

    def close(self) -> None:
        """Let go of the device. Closing twice is harmless."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            self._through.close()

    def _failure(self, error: OSError) -> str:
        return f"Cannot read {self._path}: {error.strerror}; see the kernel log."
