"""Byte-level models of LUNs and disks for the block tests."""

from collections.abc import Iterable, Iterator

import pytest

from atoll.model.extents import Extent


class MemoryReader:
    """A LUN in memory that remembers what was read of it."""

    def __init__(self, content: bytes, holes: Iterable[Extent] = ()) -> None:
        self.content = content
        self.reads: list[Extent] = []
        self._holes = list(holes)

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        self.reads.append(Extent(offset, length))
        return self.content[offset : offset + length]

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        for extent in extents:
            yield extent.offset, self.read(extent.offset, extent.length)

    def holes(self) -> Iterable[Extent]:
        return self._holes

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def memory() -> type[MemoryReader]:
    return MemoryReader
