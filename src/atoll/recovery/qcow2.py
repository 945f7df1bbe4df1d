"""A disk as a qcow2 image of version 3: clusters of 64 KiB, not compressed, no snapshots.

Header, first level of the table, then data in the disk's order with each second level behind the
data it tells of, and the reference counts at the end. Source: QEMU, docs/interop/qcow2.rst.
"""

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from atoll.model.errors import RestoreTargetError
from atoll.model.extents import Extent, merge
from atoll.model.readers import BlockReader
from atoll.recovery.ordered_reads import READERS, grains_with_data, read_ahead
from atoll.recovery.whole_files import pwrite

CLUSTER_BYTES = 64 << 10

_CLUSTER_BITS = 16
_SECTOR = 512
_ENTRIES = CLUSTER_BYTES // 8  # of a second level, and of the table of reference counts
_COUNTS = CLUSTER_BYTES // 2  # reference counts of 16 bits in a cluster
_ALONE = 1 << 63  # in a table: this place is referred to once
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_MAX_FIRST_LEVEL_BYTES = 32 << 20  # QEMU opens no image with more


def write_qcow2(reader: BlockReader, descriptor: int, progress: Callable[[int], None]) -> None:
    """Write the image to an empty file; grains of zeros take no room in it.

    `progress` receives how many bytes of the disk are done. RestoreTargetError for what no such
    image can hold; OSError and the reader's errors pass.
    """
    size = reader.size_bytes
    if size % _SECTOR:
        raise RestoreTargetError(
            f"The disk has {size} bytes, not a whole number of sectors; restore it as a raw image."
        )
    image = _Image(descriptor, size)
    with ThreadPoolExecutor(READERS) as pool:
        pieces = read_ahead(
            reader, merge(reader.holes()), Extent(0, size), CLUSTER_BYTES, pool, _with_data
        )
        for piece, clusters in pieces:
            for offset, content in clusters:
                image.add(offset, content)
            progress(piece.end)
    image.finish()
    progress(size)


class _Image:
    """Clusters are given out one behind the other, so all up to the end are in use."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size
        self._first = [0] * max(1, -(-size // (_ENTRIES * CLUSTER_BYTES)))
        if len(self._first) * 8 > _MAX_FIRST_LEVEL_BYTES:
            raise RestoreTargetError(
                f"A disk of {size} bytes is too large for a qcow2 image with clusters of 64 KiB; "
                "restore it as a raw image."
            )
        self._table = 0
        self._second = [0] * _ENTRIES
        self._next = 1 + _clusters(len(self._first) * 8)

    def add(self, offset: int, content: bytes) -> None:
        """A cluster of the disk, in ascending order."""
        table, entry = divmod(offset // CLUSTER_BYTES, _ENTRIES)
        if table != self._table:
            self._end_table()
            self._table = table
        self._second[entry] = self._put(content) | _ALONE

    def finish(self) -> None:
        """What finds the data: counts, first level, and last of all the header."""
        self._end_table()
        before = self._next
        # The counts count themselves and the table that finds them.
        blocks, table = 1, 1
        while True:
            total = before + blocks + table
            if (-(-total // _COUNTS), _clusters(8 * blocks)) == (blocks, table):
                break
            blocks, table = -(-total // _COUNTS), _clusters(8 * blocks)
        places = []
        for block in range(blocks):
            used = min(_COUNTS, total - block * _COUNTS)
            places.append(self._put((b"\0\1" * used).ljust(CLUSTER_BYTES, b"\0")))
        counted = self._next * CLUSTER_BYTES
        for at in range(0, len(places), _ENTRIES):
            part = places[at : at + _ENTRIES]
            self._put(struct.pack(f">{len(part)}Q", *part))
        pwrite(self._descriptor, struct.pack(f">{len(self._first)}Q", *self._first), CLUSTER_BYTES)
        header = _HEADER.pack(
            b"QFI\xfb",
            3,
            0,  # no backing file
            0,
            _CLUSTER_BITS,
            self._size,
            0,  # not encrypted
            len(self._first),
            CLUSTER_BYTES,
            counted,
            table,
            0,  # no snapshots
            0,
            0,  # no features that a reader would have to know
            0,
            0,
            4,  # a reference count has 2^4 bits
            _HEADER.size,
        )
        pwrite(self._descriptor, header.ljust(CLUSTER_BYTES, b"\0"), 0)

    def _end_table(self) -> None:
        if any(self._second):
            packed = struct.pack(f">{_ENTRIES}Q", *self._second)
            self._first[self._table] = self._put(packed) | _ALONE
            self._second = [0] * _ENTRIES

    def _put(self, content: bytes) -> int:
        """Write a cluster at the end; its place in bytes."""
        place = self._next * CLUSTER_BYTES
        pwrite(self._descriptor, content.ljust(CLUSTER_BYTES, b"\0"), place)
        self._next += 1
        return place


def _clusters(length: int) -> int:
    return -(-length // CLUSTER_BYTES)


def _with_data(piece: Extent, content: bytes) -> list[tuple[int, bytes]]:
    """Offset in the disk and bytes of the clusters that are not zero."""
    return [
        (piece.offset + at, cluster) for at, cluster in grains_with_data(content, CLUSTER_BYTES)
    ]
