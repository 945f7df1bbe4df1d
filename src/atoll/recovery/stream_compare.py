"""Comparing a stream-optimised VMDK, as vSphere sends it, with the disk that it should hold.

The stream is read once, from its beginning to its end, and nothing of it is kept. Source: VMware,
"Virtual Disk Format 5.0", section "Stream-Optimized Compressed Sparse Extents".
"""

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator

from atoll.model.errors import RepositoryDamagedError, UnsupportedFormatError
from atoll.model.extents import Extent, complement, merge
from atoll.model.readers import BlockReader

_SECTOR = 512
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_MARKER = struct.Struct("<QII")
_GRAIN_MARKER = struct.Struct("<QI")
_COMPRESSED, _MARKERS = 1 << 16, 1 << 17
_END = 0
_MAX_GRAIN_BYTES = 1 << 20
_MAX_METADATA_BYTES = 1 << 30
_PIECE_BYTES = 1 << 20


def difference(
    parts: Iterable[bytes], reader: BlockReader, progress: Callable[[int], None]
) -> int | None:
    """Where the disk in a stream first differs from `reader`, in bytes; None when nowhere.

    `progress` receives how many bytes of the disk are done. UnsupportedFormatError for a stream
    that is none, or ends too early; what `parts` and the reader raise passes.
    """
    stream = _Stream(parts)
    size = reader.size_bytes
    capacity = stream.open()
    if capacity != size:
        return min(capacity, size)
    at = 0
    zeros = merge(reader.holes())
    for offset, content in stream.grains():
        gap = _first_data(reader, zeros, at, min(offset, size))
        if gap is not None:
            return gap
        wanted = _exactly(reader, Extent(offset, min(len(content), size - offset)))
        if content[: len(wanted)] != wanted:
            pairs = enumerate(zip(content, wanted, strict=False))
            return offset + next(n for n, (a, b) in pairs if a != b)
        at = offset + len(wanted)
        progress(at)
    gap = _first_data(reader, zeros, at, size)
    progress(size)
    return gap


class _Stream:
    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self._buffer = bytearray()
        self._grain_bytes = 0
        self._size = 0

    def open(self) -> int:
        """Read the beginning, up to the first marker; the disk's size in bytes."""
        header = self._take(_SECTOR)
        magic, _, flags, sectors, grain, _, _, _, _, _, overhead, *_ = _HEADER.unpack_from(header)
        wanted = _COMPRESSED | _MARKERS
        self._grain_bytes = grain * _SECTOR
        if (
            magic != b"KDMV"
            or flags & wanted != wanted
            or not 0 < self._grain_bytes <= _MAX_GRAIN_BYTES
            or not 1 <= overhead <= _MAX_METADATA_BYTES // _SECTOR
        ):
            raise UnsupportedFormatError(
                "vSphere sent a disk that is no stream-optimised VMDK, so it cannot be compared."
            )
        self._take((overhead - 1) * _SECTOR)
        self._size = sectors * _SECTOR
        return int(self._size)

    def grains(self) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of each grain that is there, ascending, to the stream's end."""
        last = -1
        while True:
            first = self._take(_SECTOR)
            value, length, kind = _MARKER.unpack_from(first)
            if length == 0:
                if kind == _END:
                    return
                if value * _SECTOR > _MAX_METADATA_BYTES:
                    raise _damaged()
                self._take(value * _SECTOR)
                continue
            if length > 2 * _MAX_GRAIN_BYTES:
                raise _damaged()
            packed = first[_GRAIN_MARKER.size :]
            if length > len(packed):
                rest = length - len(packed)
                packed += self._take(-(-rest // _SECTOR) * _SECTOR)
            offset = value * _SECTOR
            if offset <= last or offset >= self._size:
                raise _damaged()
            last = offset
            yield offset, self._unpacked(packed[:length], self._size - offset)

    def _unpacked(self, packed: bytes, left: int) -> bytes:
        unpack = zlib.decompressobj()
        try:
            content = unpack.decompress(packed, self._grain_bytes)
        except zlib.error as error:
            raise _damaged() from error
        # The disk's last grain may end where the disk does.
        if len(content) < min(self._grain_bytes, left):
            raise _damaged()
        return content

    def _take(self, length: int) -> bytes:
        while len(self._buffer) < length:
            part = next(self._parts, None)
            if part is None:
                raise UnsupportedFormatError(
                    "vSphere sent a disk that ends before its end, so it cannot be compared."
                )
            self._buffer += part
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken


def _first_data(reader: BlockReader, zeros: list[Extent], begin: int, end: int) -> int | None:
    """The first byte of a range that is not zero."""
    if begin >= end:
        return None
    inside = [
        Extent(max(hole.offset, begin) - begin, min(hole.end, end) - max(hole.offset, begin))
        for hole in zeros
        if hole.offset < end and hole.end > begin
    ]
    for extent in complement(inside, end - begin):
        for at in range(extent.offset + begin, extent.end + begin, _PIECE_BYTES):
            piece = Extent(at, min(_PIECE_BYTES, extent.end + begin - at))
            content = _exactly(reader, piece)
            if content.count(0) != len(content):
                return at + len(content) - len(content.lstrip(b"\0"))
    return None


def _exactly(reader: BlockReader, extent: Extent) -> bytes:
    content = reader.read(extent.offset, extent.length)
    if len(content) != extent.length:
        raise RepositoryDamagedError(
            f"The disk ended at byte {extent.offset + len(content)} of {reader.size_bytes}; verify "
            "the repository."
        )
    return content


def _damaged() -> UnsupportedFormatError:
    return UnsupportedFormatError(
        "vSphere sent a disk whose stream is damaged, so it cannot be compared."
    )
