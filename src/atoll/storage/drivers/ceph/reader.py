"""Reads a snapshot through several helpers at once."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from atoll.model.errors import StorageUnreachableError
from atoll.model.extents import Extent
from atoll.storage.drivers.ceph.sidecars import Sidecars
from atoll.storage.sidecar.client import Sidecar

_PIECE_BYTES = 1 << 20
_BATCH_BYTES = 4 << 20
"""What is asked for at once: the pieces of a batch are read side by side. More would not be faster."""
_BATCH_PIECES = 256
_LANES = 4
"""Helpers that a reader has at most, one for each thread that reads."""


class SnapshotReader:
    """A BlockReader. StorageUnreachableError on opening, when it cannot be read."""

    def __init__(self, sidecars: Sidecars, volume: str, snapshot: str) -> None:
        self._sidecars = sidecars
        self._where = {"volume": volume, "snapshot": snapshot}
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(_LANES)
        self._idle: list[Sidecar] = []
        self._closed = False
        with self._lane() as sidecar:
            self._size_bytes: int = sidecar.call("open_snapshot", **self._where)

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""
        return self._size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, fewer only past the end."""
        pieces = [data for _, data in self.read_many([Extent(offset, length)])]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) in order, in pieces of at most 1 MiB."""
        batch: list[Extent] = []
        size = 0
        for piece in self._pieces(extents):
            if batch and (size + piece.length > _BATCH_BYTES or len(batch) == _BATCH_PIECES):
                yield from self._read_batch(batch)
                batch, size = [], 0
            batch.append(piece)
            size += piece.length
        if batch:
            yield from self._read_batch(batch)

    def holes(self) -> Iterable[Extent]:
        """Ranges without data, in order, as far as the disks know of any."""
        with self._lane() as sidecar:
            found = sidecar.items("holes", **self._where)
        return (Extent(offset, length) for offset, length in found)

    def close(self) -> None:
        """Give the helpers back. Closing twice is harmless."""
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
        for sidecar in idle:
            # What cannot be told that it is not needed any more ends instead.
            with suppress(StorageUnreachableError), self._sidecars.giving_back(sidecar):
                sidecar.call("close_snapshot", **self._where)

    def _pieces(self, extents: Iterable[Extent]) -> Iterator[Extent]:
        for extent in extents:
            end = min(extent.end, self._size_bytes)
            for offset in range(extent.offset, end, _PIECE_BYTES):
                yield Extent(offset, min(_PIECE_BYTES, end - offset))

    def _read_batch(self, batch: list[Extent]) -> Iterator[tuple[int, bytes]]:
        with self._lane() as sidecar:
            data = sidecar.read("read_each", **self._where, pieces=batch)
        if len(batch) == 1:
            yield batch[0].offset, data
            return
        at = 0
        for piece in batch:
            yield piece.offset, data[at : at + piece.length]
            at += piece.length

    @contextmanager
    def _lane(self) -> Iterator[Sidecar]:
        """A helper for one call. One whose call failed is ended, and another takes its place."""
        with self._free:
            with self._lock:
                sidecar = self._idle.pop() if self._idle else None
            if sidecar is None:
                sidecar = self._sidecars.take()
            try:
                yield sidecar
            except BaseException:
                sidecar.close()
                raise
            with self._lock:
                keep = not self._closed
                if keep:
                    self._idle.append(sidecar)
            if not keep:
                sidecar.close()
