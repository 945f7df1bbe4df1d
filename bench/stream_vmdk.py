"""What it takes to make a stream-optimised VMDK: memory and pace, for disks of random bytes.

`python -m bench.stream_vmdk`: nothing is sent; random bytes are the worst case, because each of
them is compressed in vain and written.
"""

import random
import resource
import time
from collections.abc import Iterable, Iterator

from atoll.model.extents import Extent
from atoll.recovery.stream_vmdk import stream_vmdk

_PIECE = random.Random(1).randbytes(4 << 20)


class _Disk:
    """The same 4 MiB over and over."""

    def __init__(self, size: int) -> None:
        self._size = size

    @property
    def size_bytes(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        return _PIECE[:length]

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        for extent in extents:
            yield extent.offset, self.read(extent.offset, extent.length)

    def holes(self) -> Iterable[Extent]:
        return ()

    def close(self) -> None:
        """Nothing is held."""


def main() -> None:
    """A line a size."""
    for mib in (64, 1024):
        began = time.monotonic()
        made = sum(len(part) for part in stream_vmdk(_Disk(mib << 20), lambda done: None))
        took = time.monotonic() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(f"{mib} MiB: {made >> 20} MiB sent, {mib / took:.0f} MiB/s, {peak} MiB of memory")


if __name__ == "__main__":
    main()
