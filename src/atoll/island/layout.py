"""Where a file's content lies on its volume, and reading it from there."""

import errno
from array import array
from bisect import bisect_right
from collections.abc import Iterable

from atoll.filesystems.interface import Data, Placed
from atoll.model.errors import UnsupportedFormatError
from atoll.model.readers import BlockReader

_MAX_LOOSE_BYTES = 64 << 20


class FileLayout:
    """The pieces of a file of `size` bytes, ascending; what none covers is a hole.

    Pieces that do not lie on the volume as they are read (inline, still in the
    journal) are kept here: UnsupportedFormatError above 64 MiB of them.
    """

    def __init__(self, size: int, pieces: Iterable[Placed | Data]) -> None:
        self.size = size
        self._starts = array("q")
        self._ends = array("q")
        self._at = array("q")  # on the volume; from -1 downwards: in `_loose`
        self._loose: list[bytes] = []
        self._loose_bytes = 0
        for piece in pieces:
            if isinstance(piece, Placed):
                self._add(piece.offset, piece.length, piece.at)
            else:
                self._loose.append(piece.content)
                self._loose_bytes += len(piece.content)
                if self._loose_bytes > _MAX_LOOSE_BYTES:
                    raise UnsupportedFormatError(
                        "A file keeps more of its content outside its blocks than is served;"
                        " restore it with `atoll restore file`."
                    )
                self._add(piece.offset, len(piece.content), -len(self._loose))

    @property
    def weight_bytes(self) -> int:
        """What keeping it costs."""
        return 512 + 24 * len(self._starts) + self._loose_bytes

    def read(self, volume: BlockReader, offset: int, length: int) -> bytes:
        """Bytes of the file, fewer only past its end; zeros in holes. What the reader raises."""
        end = min(offset + length, self.size)
        parts: list[bytes] = []
        number = max(bisect_right(self._starts, offset) - 1, 0)
        while offset < end:
            if number >= len(self._starts) or self._starts[number] >= end:
                parts.append(bytes(end - offset))
                break
            start, stop, at = self._starts[number], min(end, self._ends[number]), self._at[number]
            if start > offset:
                parts.append(bytes(start - offset))
                offset = start
            if offset < stop:
                inside = offset - start
                if at < 0:
                    part = self._loose[-1 - at][inside : inside + stop - offset]
                else:
                    part = volume.read(at + inside, stop - offset)
                if len(part) != stop - offset:
                    raise OSError(errno.EIO, "the volume ends before the file does")
                parts.append(part)
                offset = stop
            number += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def data_or_hole(self, offset: int, hole: bool) -> int:
        """As lseek(2) with SEEK_HOLE or SEEK_DATA answers; OSError ENXIO where it does."""
        if not 0 <= offset < self.size:
            raise OSError(errno.ENXIO, "beyond the end")
        number = bisect_right(self._starts, offset) - 1
        if number >= 0 and offset < self._ends[number]:
            if not hole:
                return offset
            while number + 1 < len(self._starts) and self._starts[number + 1] == self._ends[number]:
                number += 1
            return self._ends[number]
        if hole:
            return offset
        if number + 1 < len(self._starts):
            return self._starts[number + 1]
        raise OSError(errno.ENXIO, "no data follows")

    def _add(self, offset: int, length: int, at: int) -> None:
        self._starts.append(offset)
        self._ends.append(offset + length)
        self._at.append(at)
