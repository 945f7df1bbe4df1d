"""Where each byte of a virtual disk lies on which LUN: one flat, sorted table per disk."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import zstandard

from atoll.blocks.ranges import (
    Int64Array,
    columns,
    extents_of,
    gaps,
    merge_ranges,
    overlapping_pairs,
)
from atoll.model.errors import RepositoryDamagedError
from atoll.model.extents import Extent

_MAGIC = b"ATOLLMAP"
_VERSION = 1
_HEADER = struct.Struct("<8sHHQQ")
_ROW_BYTES = 8 * 3 + 4
_MAX_ROWS = 1 << 27  # 128 TiB in 1 MiB blocks, none next to its neighbour
_MAX_OFFSET = 1 << 61  # sums of two still fit 64 bits


@dataclass(frozen=True, eq=False)
class DiskMap:
    """A disk of `size_bytes` as pieces of LUNs; whatever no piece covers reads as zeros.

    `luns` are LUN names; the four columns have one row a piece, sorted by
    `disk_offset`, never overlapping on the disk, neighbours joined. Offsets and
    lengths are bytes; `lun_index` points into `luns`. Raises ValueError when
    built from columns that break this. Two maps are equal when they say the same.
    """

    size_bytes: int
    luns: tuple[str, ...]
    disk_offset: Int64Array
    length: Int64Array
    lun_index: npt.NDArray[np.int32]
    lun_offset: Int64Array

    def __post_init__(self) -> None:
        kinds = (
            ("disk_offset", np.int64),
            ("length", np.int64),
            ("lun_index", np.int32),
            ("lun_offset", np.int64),
        )
        for name, kind in kinds:
            column = np.array(getattr(self, name), dtype=kind)
            column.setflags(write=False)
            object.__setattr__(self, name, column)
        rows = len(self.disk_offset)
        if any(len(getattr(self, name)) != rows for name, _ in kinds):
            raise ValueError("the columns of a disk map differ in length")
        if not 0 <= self.size_bytes <= _MAX_OFFSET:
            raise ValueError("the size of a disk map is out of range")
        if len(set(self.luns)) != len(self.luns):
            raise ValueError("a disk map lists a LUN twice")
        if not rows:
            return
        if self.length.min() <= 0 or self.disk_offset[0] < 0:
            raise ValueError("a piece of a disk map is empty or begins before the disk")
        if self.length.max() > self.size_bytes or self.disk_offset.max() > self.size_bytes:
            raise ValueError("a piece of a disk map ends past the disk")
        ends = self.disk_offset + self.length
        if ends[-1] > self.size_bytes or bool(np.any(ends[:-1] > self.disk_offset[1:])):
            raise ValueError("pieces of a disk map overlap or end past the disk")
        if self.lun_index.min() < 0 or self.lun_index.max() >= len(self.luns):
            raise ValueError("a piece of a disk map names a LUN that is not listed")
        if self.lun_offset.min() < 0 or self.lun_offset.max() > _MAX_OFFSET:
            raise ValueError("a piece of a disk map begins outside any LUN")

    @classmethod
    def joined(
        cls,
        size_bytes: int,
        luns: Sequence[str],
        disk_offset: Int64Array,
        length: Int64Array,
        lun_index: npt.NDArray[np.integer],
        lun_offset: Int64Array,
    ) -> Self:
        """A map from columns sorted by disk offset, neighbours that continue each other joined."""
        if len(disk_offset):
            continues = (
                (disk_offset[1:] == disk_offset[:-1] + length[:-1])
                & (lun_index[1:] == lun_index[:-1])
                & (lun_offset[1:] == lun_offset[:-1] + length[:-1])
            )
            first = np.flatnonzero(np.concatenate(([True], ~continues)))
            length = np.add.reduceat(length, first)
            disk_offset, lun_index = disk_offset[first], lun_index[first]
            lun_offset = lun_offset[first]
        return cls(
            size_bytes, tuple(luns), disk_offset, length, lun_index.astype(np.int32), lun_offset
        )

    @classmethod
    def of(
        cls, size_bytes: int, luns: Sequence[str], rows: Iterable[tuple[int, int, int, int]]
    ) -> Self:
        """A map from (disk offset, length, LUN index, LUN offset) rows in any order."""
        table = np.array(sorted(rows), dtype=np.int64).reshape(-1, 4)
        return cls.joined(size_bytes, luns, table[:, 0], table[:, 1], table[:, 2], table[:, 3])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DiskMap):
            return NotImplemented
        return (
            self.size_bytes == other.size_bytes
            and self.luns == other.luns
            and np.array_equal(self.disk_offset, other.disk_offset)
            and np.array_equal(self.length, other.length)
            and np.array_equal(self.lun_index, other.lun_index)
            and np.array_equal(self.lun_offset, other.lun_offset)
        )

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        """How many pieces there are."""
        return len(self.disk_offset)

    @property
    def disk_end(self) -> Int64Array:
        """First byte past each piece on the disk."""
        return self.disk_offset + self.length

    @property
    def mapped_bytes(self) -> int:
        """How much of the disk lies on a LUN."""
        return int(self.length.sum())

    def holes(self) -> list[Extent]:
        """Ranges of the disk that lie on no LUN and read as zeros, ordered."""
        return extents_of(*gaps(self.disk_offset, self.disk_end, self.size_bytes))

    def lun_extents(self, lun: str) -> list[Extent]:
        """The ranges of a LUN that hold this disk, ordered and merged."""
        rows = self._rows_on(lun)
        begin = self.lun_offset[rows]
        return extents_of(*merge_ranges(begin, begin + self.length[rows]))

    def project(self, lun: str, extents: Iterable[Extent]) -> list[Extent]:
        """The ranges of the disk that lie within the given ranges of a LUN, ordered and merged."""
        rows = self._rows_on(lun)
        begin = self.lun_offset[rows]
        finish = begin + self.length[rows]
        starts, ends = columns(extents)
        i, j = overlapping_pairs(begin, finish, starts, ends)
        to_disk = self.disk_offset[rows][i] - begin[i]
        return extents_of(
            *merge_ranges(
                np.maximum(begin[i], starts[j]) + to_disk, np.minimum(finish[i], ends[j]) + to_disk
            )
        )

    def rearranged(
        self, size_bytes: int, pieces: Sequence[tuple[int, int, int]] | Int64Array
    ) -> "DiskMap":
        """The map of a disk made of pieces of this one, as a partition or logical volume is.

        Pieces (or the rows of an array) are (offset in the new disk, length, offset in this one), ordered
        by the first and not overlapping there; ValueError if one leaves this disk.
        """
        table = np.array(pieces, dtype=np.int64).reshape(-1, 3)
        target, starts, ends = table[:, 0], table[:, 2], table[:, 2] + table[:, 1]
        if len(table) and (starts.min() < 0 or ends.max() > self.size_bytes):
            raise ValueError(f"a piece is not within the {self.size_bytes} bytes of the disk")
        i, j = overlapping_pairs(starts, ends, self.disk_offset, self.disk_end)
        begin = np.maximum(starts[i], self.disk_offset[j])
        finish = np.minimum(ends[i], self.disk_end[j])
        return DiskMap.joined(
            size_bytes,
            self.luns,
            target[i] + begin - starts[i],
            finish - begin,
            self.lun_index[j],
            self.lun_offset[j] + begin - self.disk_offset[j],
        )

    def to_bytes(self) -> bytes:
        """The stored form, described in docs/formats/extent-map.md."""
        names = b"".join(struct.pack("<H", len(n)) + n for n in (lun.encode() for lun in self.luns))
        table = b"".join(
            np.diff(column, prepend=column.dtype.type(0)).astype(form).tobytes()
            for column, form in (
                (self.disk_offset, "<i8"),
                (self.length, "<i8"),
                (self.lun_offset, "<i8"),
                (self.lun_index, "<i4"),
            )
        )
        header = _HEADER.pack(_MAGIC, _VERSION, len(self.luns), self.size_bytes, len(self))
        return header + names + zstandard.ZstdCompressor(level=9).compress(table)

    @classmethod
    def from_bytes(cls, stored: bytes) -> Self:
        """Read the stored form; RepositoryDamagedError when it is not one or breaks a rule of maps."""
        try:
            return cls._parse(stored)
        except (ValueError, struct.error, zstandard.ZstdError, MemoryError) as error:
            raise RepositoryDamagedError(
                f"The stored extent map cannot be read ({error}); "
                "read the whole disk at the next backup and verify the repository."
            ) from error

    @classmethod
    def _parse(cls, stored: bytes) -> Self:
        magic, version, lun_count, size, rows = _HEADER.unpack_from(stored)
        if magic != _MAGIC:
            raise ValueError("it does not begin as one")
        if version != _VERSION:
            raise ValueError(f"it has version {version}, this Atoll reads {_VERSION}")
        if rows > _MAX_ROWS:
            raise ValueError(f"it claims {rows} pieces")
        at, luns = _HEADER.size, []
        for _ in range(lun_count):
            (length,) = struct.unpack_from("<H", stored, at)
            name = stored[at + 2 : at + 2 + length]
            if len(name) != length:
                raise ValueError("a LUN name is cut short")
            luns.append(name.decode())
            at += 2 + length
        frame = stored[at:]
        if zstandard.frame_content_size(frame) != rows * _ROW_BYTES:
            raise ValueError("its table has another length than it claims")
        table = zstandard.ZstdDecompressor().decompress(frame)
        if len(table) != rows * _ROW_BYTES:
            raise ValueError("its table is cut short")
        longs = np.cumsum(
            np.frombuffer(table, dtype="<i8", count=3 * rows).reshape(3, rows),
            axis=1,
            dtype=np.int64,
        )
        index = np.cumsum(np.frombuffer(table, dtype="<i4", offset=24 * rows), dtype=np.int32)
        return cls(size, tuple(luns), longs[0], longs[1], index, longs[2])

    def _rows_on(self, lun: str) -> npt.NDArray[np.intp]:
        if lun not in self.luns:
            return np.zeros(0, dtype=np.intp)
        return np.flatnonzero(self.lun_index == self.luns.index(lun))
