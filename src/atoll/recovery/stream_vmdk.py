"""A disk as a stream-optimised VMDK, the form in which disks travel into vSphere.

Source: VMware, "Virtual Disk Format 5.0", section "Stream-Optimized Compressed Sparse Extents":
compressed grains in the order of the disk, each behind a marker; a grain table behind the grains
it tells of; the directory, a copy of the header that says where it is, and an end. So it is
written without going back once, and needs no file.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from atoll.blocks.vmdk import descriptor_text
from atoll.model.errors import RestoreTargetError
from atoll.model.extents import Extent, merge
from atoll.model.readers import BlockReader
from atoll.recovery.ordered_reads import READERS, grains_with_data, read_ahead

SECTOR = 512
GRAIN_BYTES = 64 << 10

_LEVEL = 1  # the network is seldom faster, and higher ones take several times as long
_ENTRIES = 512  # of a grain table
_TABLE_BYTES = _ENTRIES * GRAIN_BYTES  # of the disk, that one table covers
_OVERHEAD_SECTORS = GRAIN_BYTES // SECTOR
_DESCRIPTOR_SECTORS = 20
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_GRAIN_MARKER = struct.Struct("<QI")
_MARKER = struct.Struct("<QII")
_NEWLINE_TEST, _COMPRESSED, _MARKERS = 1, 1 << 16, 1 << 17
_DEFLATE = 1
_AT_END = (1 << 64) - 1
_END, _TABLE, _DIRECTORY, _FOOTER = range(4)  # types of markers
_MAX_SECTOR = (1 << 32) - 1


def stream_vmdk(reader: BlockReader, progress: Callable[[int], None]) -> Iterator[bytes]:
    """The VMDK of a disk, in parts of a few MiB at most, from its beginning to its end.

    Grains that are zero are left out. `progress` receives how many bytes of the disk are done.
    RestoreTargetError for what no such file can hold; the reader's errors pass.
    """
    size = reader.size_bytes
    if size % SECTOR or not size:
        raise RestoreTargetError(
            f"A disk of {size} bytes is not a whole number of sectors, which no VMDK can have; "
            "restore it as a raw image."
        )
    stream = _Stream(size)
    yield stream.beginning()
    holes = merge(reader.holes())
    with ThreadPoolExecutor(READERS) as pool:
        pieces = read_ahead(reader, holes, Extent(0, size), GRAIN_BYTES, pool, _packed)
        for piece, grains in pieces:
            part = b"".join(stream.grain(offset, packed) for offset, packed in grains)
            if part:
                yield part
            progress(piece.end)
    yield stream.ending()
    progress(size)


class _Stream:
    """Where the stream is, and the tables that are still to be written."""

    def __init__(self, size: int) -> None:
        self._sectors = size // SECTOR
        self._at = _OVERHEAD_SECTORS
        self._directory = [0] * -(-size // _TABLE_BYTES)
        self._table = 0
        self._entries = [0] * _ENTRIES

    def beginning(self) -> bytes:
        """Header and descriptor, up to the first grain."""
        text = descriptor_text(
            self._sectors * SECTOR,
            "streamOptimized",
            [f'RW {self._sectors} SPARSE "disk.vmdk"'],
            hardware_version=7,
        )
        begun = self._header(_AT_END) + text.ljust(_DESCRIPTOR_SECTORS * SECTOR, b"\0")
        return begun.ljust(_OVERHEAD_SECTORS * SECTOR, b"\0")

    def grain(self, offset: int, packed: bytes) -> bytes:
        """The grain at an offset of the disk, behind the last table if it begins another."""
        table, entry = divmod(offset // GRAIN_BYTES, _ENTRIES)
        before = b""
        if table != self._table:
            before = self._flush()
            self._table = table
        self._entries[entry] = self._at
        return before + self._placed(packed)

    def ending(self) -> bytes:
        """The last table, the directory, and the header that says where it is."""
        last = self._flush()
        directory = struct.pack(f"<{len(self._directory)}I", *self._directory)
        place = self._at + 1
        listed = self._marked(_DIRECTORY, _padded(directory))
        footer = self._marked(_FOOTER, self._header(place))
        return last + listed + footer + self._marked(_END, b"")

    def _flush(self) -> bytes:
        """The table, if it tells of anything."""
        if not any(self._entries):
            return b""
        self._directory[self._table] = self._at + 1
        packed = struct.pack(f"<{_ENTRIES}I", *self._entries)
        self._entries = [0] * _ENTRIES
        return self._marked(_TABLE, packed)

    def _marked(self, kind: int, content: bytes) -> bytes:
        return self._placed(_padded(_MARKER.pack(len(content) // SECTOR, 0, kind)) + content)

    def _placed(self, content: bytes) -> bytes:
        self._at += len(content) // SECTOR
        if self._at > _MAX_SECTOR:
            raise RestoreTargetError(
                "The disk's content is too large for one stream-optimised VMDK (2 TiB when "
                "compressed); restore it as a raw image."
            )
        return content

    def _header(self, directory: int) -> bytes:
        packed = _HEADER.pack(
            b"KDMV",
            3,
            _NEWLINE_TEST | _COMPRESSED | _MARKERS,
            self._sectors,
            GRAIN_BYTES // SECTOR,
            1,
            _DESCRIPTOR_SECTORS,
            _ENTRIES,
            0,
            directory,
            _OVERHEAD_SECTORS,
            0,
            b"\n \r\n",
            _DEFLATE,
        )
        return packed.ljust(SECTOR, b"\0")


def _packed(piece: Extent, content: bytes) -> list[tuple[int, bytes]]:
    """Offset in the disk, and marker with compressed bytes, of the grains that are not zero."""
    found = []
    for at, grain in grains_with_data(content, GRAIN_BYTES):
        offset = piece.offset + at
        # The disk's last grain is a whole one, too.
        packed = zlib.compress(grain.ljust(GRAIN_BYTES, b"\0"), _LEVEL)
        marked = _GRAIN_MARKER.pack(offset // SECTOR, len(packed)) + packed
        found.append((offset, _padded(marked)))
    return found


def _padded(content: bytes) -> bytes:
    return content.ljust(-(-len(content) // SECTOR) * SECTOR, b"\0")
