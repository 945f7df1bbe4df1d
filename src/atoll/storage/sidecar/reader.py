"""Reads a volume's snapshot through a sidecar."""

from collections.abc import Iterable, Iterator

from atoll.model.extents import Extent
from atoll.storage.sidecar.client import Sidecar

_PIECE_BYTES = 4 << 20


class SidecarReader:
    """A BlockReader over a sidecar's call `read(volume, snapshot, offset, length)`.

    `holes` come from its call `holes(volume, snapshot)`, of [offset, length].
    """

    def __init__(self, sidecar: Sidecar, volume: str, snapshot: str, size_bytes: int) -> None:
        self._sidecar = sidecar
        self._where = {"volume": volume, "snapshot": snapshot}
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""
        return self._size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, fewer only past the end."""
        end = min(offset + length, self._size_bytes)
        pieces = [
            self._sidecar.read("read", **self._where, offset=at, length=min(_PIECE_BYTES, end - at))
            for at in range(offset, end, _PIECE_BYTES)
        ]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) in order, in pieces of at most 4 MiB."""
        for extent in extents:
            end = min(extent.end, self._size_bytes)
            for offset in range(extent.offset, end, _PIECE_BYTES):
                yield offset, self.read(offset, min(_PIECE_BYTES, end - offset))

    def holes(self) -> Iterable[Extent]:
        """Ranges without data, in order."""
        for offset, length in self._sidecar.items("holes", **self._where):
            yield Extent(offset, length)

    def close(self) -> None:
        """Tell the sidecar that nobody reads it any more. Closing twice is harmless."""
        self._sidecar.call("close_snapshot", **self._where)
