"""Block readers over files, over maps of LUNs and over parts of other readers."""

import errno
import os
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from atoll.blocks.extent_map import DiskMap
from atoll.model.errors import StorageUnreachableError
from atoll.model.extents import Extent, intersect, merge
from atoll.model.readers import BlockReader

_PIECE_BYTES = 8 << 20  # what one read asks for at most
_BRIDGE_BYTES = 32 << 10  # reading over a gap this small is cheaper than a second read


def _piecewise(reader: BlockReader, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
    for extent in extents:
        end = min(extent.end, reader.size_bytes)
        for offset in range(extent.offset, end, _PIECE_BYTES):
            yield offset, reader.read(offset, min(_PIECE_BYTES, end - offset))


def _within(offset: int, length: int, size: int) -> int:
    """Where a read ends; ValueError for what is no range."""
    if offset < 0 or length < 0:
        raise ValueError(f"cannot read {length} bytes from {offset}")
    return min(offset + length, size)


class FileReader:
    """A BlockReader over a file or block device that does not change while it is open.

    Reads need no lock. A file that is gone or fails raises StorageUnreachableError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closing = threading.Lock()
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._size = os.lseek(self._fd, 0, os.SEEK_END)
            # Who reads a disk mostly reads all of it: twice the kernel's usual way ahead.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except OSError as error:
            self.close()
            raise self._failed(error) from error

    @property
    def size_bytes(self) -> int:
        """Length of the file or device."""
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, fewer only past the end."""
        end = _within(offset, length, self._size)
        pieces: list[bytes] = []
        while offset < end:
            try:
                piece = os.pread(self._fd, end - offset, offset)
            except OSError as error:
                raise self._failed(error) from error
            if not piece:
                raise StorageUnreachableError(
                    f"{self._path} ends at {offset} bytes though it had {self._size}; "
                    "something shortened it while it was read, take a new snapshot."
                )
            pieces.append(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """Each extent in order, in pieces of at most 8 MiB."""
        return _piecewise(self, extents)

    def holes(self) -> Iterator[Extent]:
        """The file's holes, where its file system tells them."""
        at = 0
        while at < self._size:
            try:
                hole = os.lseek(self._fd, at, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.EINVAL:  # a device that knows no holes
                    return
                raise self._failed(error) from error
            if hole >= self._size:
                return
            try:
                at = os.lseek(self._fd, hole, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise self._failed(error) from error
                at = self._size
            yield Extent(hole, at - hole)

    def close(self) -> None:
        """Close the file; reads after that fail."""
        with self._closing:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _failed(self, error: OSError) -> StorageUnreachableError:
        return StorageUnreachableError(
            f"{self._path} cannot be read ({error.strerror}); check that the snapshot still exists."
        )


class MappedReader:
    """A disk read through its map from the LUNs it lies on, in one step.

    Closing it closes no LUN: they are shared between disks. A LUN of the map
    that is missing raises ValueError at once, not at the first read.
    """

    def __init__(self, disk_map: DiskMap, luns: Mapping[str, BlockReader]) -> None:
        missing = [name for name in disk_map.luns if name not in luns]
        if missing:
            raise ValueError(f"no reader for LUN {', '.join(missing)}")
        self.disk_map = disk_map
        self.luns = {name: luns[name] for name in disk_map.luns}
        self._readers = [luns[name] for name in disk_map.luns]
        # arrays, not lists: bisect walks them at the same pace in an eighth of the memory
        self._start = array("q", disk_map.disk_offset.tobytes())
        self._length = array("q", disk_map.length.tobytes())
        self._lun = array("i", disk_map.lun_index.tobytes())
        self._lun_offset = array("q", disk_map.lun_offset.tobytes())

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""
        return self.disk_map.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, fewer only past the end."""
        end = _within(offset, length, self.size_bytes)
        pieces: list[bytes] = []
        for at, size, lun, lun_offset in self._pieces(offset, end):
            if at > offset:
                pieces.append(bytes(at - offset))
            pieces.append(self._read_lun(lun, lun_offset, size))
            offset = at + size
        if offset < end:
            pieces.append(bytes(end - offset))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """Each extent in order; neighbours on a LUN are read together, up to 8 MiB at a time."""
        batch: list[Extent] = []
        held = 0
        for extent in extents:
            end = _within(extent.offset, extent.length, self.size_bytes)
            for offset in range(extent.offset, end, _PIECE_BYTES):
                part = Extent(offset, min(_PIECE_BYTES, end - offset))
                if held + part.length > _PIECE_BYTES:
                    yield from self._read_batch(batch)
                    batch, held = [], 0
                batch.append(part)
                held += part.length
        yield from self._read_batch(batch)

    def holes(self) -> Iterator[Extent]:
        """Ranges on no LUN, and those where the LUN itself has a hole."""
        found = self.disk_map.holes()
        for name, reader in self.luns.items():
            found += self.disk_map.project(name, reader.holes())
        yield from merge(found)

    def close(self) -> None:
        """Nothing of its own to let go of."""

    def _pieces(self, offset: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(disk offset, length, LUN, LUN offset) of what is mapped within a range, in order."""
        row = max(bisect_right(self._start, offset) - 1, 0)
        while row < len(self._start) and self._start[row] < end:
            at = max(offset, self._start[row])
            stop = min(end, self._start[row] + self._length[row])
            if at < stop:
                yield at, stop - at, self._lun[row], self._lun_offset[row] + at - self._start[row]
            row += 1

    def _read_lun(self, lun: int, offset: int, length: int) -> bytes:
        data = self._readers[lun].read(offset, length)
        if len(data) != length:
            raise StorageUnreachableError(
                f"LUN {self.disk_map.luns[lun]} ends before byte {offset + length} where a disk "
                "lies; check that the snapshot is of the LUN the disk map was made from."
            )
        return data

    def _read_batch(self, batch: list[Extent]) -> list[tuple[int, bytes]]:
        results = [bytearray(extent.length) for extent in batch]
        wanted: list[tuple[int, int, int, int, int]] = []  # lun, lun offset, length, result, at
        for number, extent in enumerate(batch):
            for at, size, lun, lun_offset in self._pieces(extent.offset, extent.end):
                wanted.append((lun, lun_offset, size, number, at - extent.offset))
        wanted.sort()
        first = 0
        while first < len(wanted):
            lun, begin, size, _, _ = wanted[first]
            finish, last = begin + size, first + 1
            while (
                last < len(wanted)
                and wanted[last][0] == lun
                and wanted[last][1] <= finish + _BRIDGE_BYTES
            ):
                finish = max(finish, wanted[last][1] + wanted[last][2])
                last += 1
            data = memoryview(self._read_lun(lun, begin, finish - begin))
            for _, offset, length, number, at in wanted[first:last]:
                results[number][at : at + length] = data[offset - begin : offset - begin + length]
            first = last
        return [(extent.offset, bytes(r)) for extent, r in zip(batch, results, strict=True)]


class SliceReader:
    """`length` bytes of another reader from `offset`: a partition. Closing it leaves that open."""

    def __init__(self, reader: BlockReader, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > reader.size_bytes:
            raise ValueError(f"{length} bytes from {offset} are not within {reader.size_bytes}")
        self._reader = reader
        self._offset = offset
        self._length = length

    @property
    def size_bytes(self) -> int:
        """Length of the slice."""
        return self._length

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset` of the slice, fewer only past its end."""
        end = _within(offset, length, self._length)
        return self._reader.read(self._offset + offset, end - offset) if end > offset else b""

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """Each extent in order, as the reader below gives them."""
        shifted = (
            Extent(self._offset + e.offset, min(e.end, self._length) - e.offset)
            for e in extents
            if e.offset < self._length
        )
        for offset, data in self._reader.read_many(shifted):
            yield offset - self._offset, data

    def holes(self) -> Iterator[Extent]:
        """The holes of the reader below that lie in the slice."""
        if self._length:
            whole = [Extent(self._offset, self._length)]
            for hole in intersect(merge(self._reader.holes()), whole):
                yield Extent(hole.offset - self._offset, hole.length)

    def close(self) -> None:
        """Nothing of its own to let go of."""
