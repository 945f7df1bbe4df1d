"""What it takes to map a disk with a VMware snapshot: `python -m bench.deltas`.

The delta is a SESPARSE file that exists in memory only, a table at a time, so
that neither a disk nor a file system counts.
"""

import resource
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

import numpy as np

from atoll.blocks.changes import changed_disk_extents
from atoll.blocks.extent_map import DiskMap
from atoll.blocks.grains import overlaid, read_grains
from atoll.blocks.sesparse import (
    CONST_MAGIC,
    GRAIN_ALLOCATED,
    GRAIN_BYTES,
    SECTOR,
    TABLE_ENTRIES,
    TABLE_PRESENT,
    VERSION,
    VOLATILE_MAGIC,
    open_sesparse,
)
from atoll.model.extents import Extent

_TABLE_SECTORS = TABLE_ENTRIES * 8 // SECTOR
_DIRECTORY = 4096
CASES = {"2 TiB in order": (2 << 40, 1), "32 GiB, each second grain": (32 << 30, 2)}


class Delta:
    """A delta of `size_bytes` that holds every grain whose number `every` divides, in order."""

    def __init__(self, size_bytes: int, every: int) -> None:
        self._sectors = size_bytes // SECTOR
        tables = -(-size_bytes // (TABLE_ENTRIES * GRAIN_BYTES))
        self._tables = _DIRECTORY + -(-tables * 8 // GRAIN_BYTES) * GRAIN_BYTES // SECTOR
        self._grains = self._tables + tables * _TABLE_SECTORS
        self._every = every
        self.size_bytes = self._grains * SECTOR + size_bytes // every

    def read(self, offset: int, length: int) -> bytes:
        """Headers and the directory."""
        if offset == SECTOR:
            return struct.pack("<4Q480x", VOLATILE_MAGIC, 0, 0, 0)
        if offset:
            numbers = np.arange(length // 8, dtype="<u8") | np.uint64(TABLE_PRESENT)
            return numbers.tobytes()
        sizes = (self._tables - _DIRECTORY, self._tables, self._grains - self._tables)
        header = (CONST_MAGIC, VERSION, self._sectors, 8, 64, *([0] * 5), 1, 1, 2, 2, 8, 2048,
                  _DIRECTORY, *sizes, *([0] * 4), self._grains, self._sectors // self._every)  # fmt: skip
        return struct.pack("<26Q304x", *header)

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """Grain tables."""
        for extent in extents:
            number = (extent.offset // SECTOR - self._tables) // _TABLE_SECTORS
            grain = np.arange(TABLE_ENTRIES, dtype="<u8") + np.uint64(number * TABLE_ENTRIES)
            slot = grain // np.uint64(self._every)
            entry = (slot & np.uint64(0xFFF)) << np.uint64(48) | slot >> np.uint64(12)
            entry |= np.uint64(GRAIN_ALLOCATED << 60)
            yield extent.offset, np.where(grain % self._every == 0, entry, 0).tobytes()

    def holes(self) -> Iterator[Extent]:
        """None are told."""
        return iter(())

    def close(self) -> None:
        """Nothing is open."""


def measure(size_bytes: int, every: int) -> None:
    """Map one delta on a flat disk and print what it took."""
    delta = Delta(size_bytes, every)
    began = time.perf_counter()
    grains = read_grains(open_sesparse(delta, "delta"), delta)
    file_map = DiskMap.of(delta.size_bytes, ("lun",), [(0, delta.size_bytes, 0, 0)])
    below = DiskMap.of(size_bytes, ("lun",), [(0, size_bytes, 0, 1 << 50)])
    disk = overlaid(below, grains, file_map, size_bytes)
    mapped = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    changed_disk_extents(below, disk, {"lun": []})
    compared = time.perf_counter()
    print(
        f"{len(grains.disk_offset):,} pieces of delta, {len(disk):,} of the disk: mapped in "
        f"{mapped - began:.1f} s and {memory} MiB, compared in {compared - mapped:.1f} s",
        flush=True,
    )


def main() -> None:
    """Each case in a process of its own, so that memory is its own."""
    if len(sys.argv) > 1:
        measure(*CASES[sys.argv[1]])
        return
    for case in CASES:
        print(case, end=": ", flush=True)
        subprocess.run([sys.executable, "-m", "bench.deltas", case], check=True)


if __name__ == "__main__":
    main()
