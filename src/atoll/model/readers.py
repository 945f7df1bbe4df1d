"""The one way Atoll reads blocks, whatever is behind them."""

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from atoll.model.extents import Extent


@runtime_checkable
class BlockReader(Protocol):
    """Random read access to a fixed number of bytes.

    Thread-safe. Offsets and lengths are bytes. What is read does not change
    while the reader is open: readers stand on snapshots and restore points.
    """

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, fewer only past the end; raises AtollError."""
        ...

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) for each extent in order; one extent may come in several pieces."""
        ...

    def holes(self) -> Iterable[Extent]:
        """Ranges known to read as zeros, ordered; may miss some, never lists data."""
        ...

    def close(self) -> None:
        """Let go of what is held. Closing twice is harmless."""
        ...
