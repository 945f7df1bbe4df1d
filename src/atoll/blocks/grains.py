"""Grains of a delta: which ranges of a disk its sparse file holds, worked out for many tables at once.

Both formats of ESX are two levels of tables above grains of one size. Nothing of
what is read is trusted: every table and grain must lie within the file, no two
of them in one place, and neither on the file's own metadata.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from atoll.blocks.extent_map import DiskMap
from atoll.blocks.ranges import Int64Array, gaps, merge_ranges
from atoll.model.errors import UnsupportedFormatError
from atoll.model.extents import Extent
from atoll.model.readers import BlockReader

ABSENT, ZEROED = -2, -1
"""In place of a file offset: the disk below has the grain; it reads as zeros."""

MAX_PIECES = 1 << 24  # 32 GiB written 4 KiB at a time, none beside its neighbour
_BATCH_TABLES = 64
_BEHIND = "in blocks that the datastore has not noted as its own yet"
_SECTOR = 512


@dataclass(frozen=True)
class SparseFile:
    """How a sparse file of `size_bytes` of disk is laid out; offsets and sizes are bytes.

    `tables` has one offset in the file for each run of `entries` grains, ABSENT
    where there is none. `locate` turns table entries of type `entry` into file
    offsets, ABSENT and ZEROED. `metadata` are (start, end) of what holds no grain.
    Both may raise ValueError, which says what is wrong as the end of a sentence.
    """

    size_bytes: int
    grain_bytes: int
    entries: int
    tables: Int64Array
    entry: np.dtype[Any]
    locate: Callable[[npt.NDArray[Any]], Int64Array]
    metadata: tuple[tuple[int, int], ...]


class Grains(NamedTuple):
    """Columns of what a delta holds, by disk offset and disjoint; ZEROED grains lie nowhere."""

    disk_offset: Int64Array
    length: Int64Array
    file_offset: Int64Array


def read_grains(file: SparseFile, reader: BlockReader) -> Grains:
    """All grains of a sparse file that `reader` reads, neighbours joined.

    Tables are read some MiB at a time; the result is bounded by MAX_PIECES.
    Raises ValueError where the tables contradict themselves or the file.
    """
    found: list[Grains] = []
    pieces = 0
    for numbers, entries in _tables(file, reader):
        first = numbers * (file.entries * file.grain_bytes)
        within = np.arange(file.entries, dtype=np.int64) * file.grain_bytes
        disk_offset = (first[:, None] + within[None, :]).ravel()
        file_offset = file.locate(entries)
        # The last table goes on past the end of the disk.
        held = (file_offset != ABSENT) & (disk_offset < file.size_bytes)
        some = _joined(disk_offset[held], file_offset[held], file)
        pieces += len(some.disk_offset)
        if pieces > MAX_PIECES:
            raise ValueError(f"it is scattered over more than {MAX_PIECES:,} places")
        found.append(some)
    empty = np.zeros(0, dtype=np.int64)
    grains = Grains(*(np.concatenate([empty, *(each[n] for each in found)]) for n in range(3)))
    _check_places(file, grains, reader.size_bytes)
    return grains


def overlaid(below: DiskMap | None, grains: Grains, file_map: DiskMap, size_bytes: int) -> DiskMap:
    """The map of a disk of which `grains` lie in a delta file and the rest is `below`.

    `file_map` says where the delta file itself lies. Without a disk below the
    rest reads as zeros. Raises ValueError when the result is more than MAX_PIECES,
    and for a grain in a hole of the file: what was written has a block, so the
    datastore's own metadata is behind.
    """
    ends = grains.disk_offset + grains.length
    live = grains.file_offset != ZEROED
    columns = (grains.disk_offset, grains.length, grains.file_offset)
    above = file_map.rearranged(size_bytes, np.stack([column[live] for column in columns], axis=1))
    if above.mapped_bytes != int(grains.length[live].sum()):
        raise ValueError(f"it has grains {_BEHIND}")
    kept = DiskMap.of(size_bytes, (), [])
    if below is not None:
        start, end = gaps(*merge_ranges(grains.disk_offset, ends), size_bytes)
        kept = below.rearranged(size_bytes, np.stack((start, end - start, start), axis=1))
    luns = tuple(dict.fromkeys((*kept.luns, *above.luns)))
    number = [
        np.array([luns.index(name) for name in part.luns], dtype=np.int32) for part in (kept, above)
    ]
    disk_offset = np.concatenate((kept.disk_offset, above.disk_offset))
    order = np.argsort(disk_offset, kind="stable")
    made = DiskMap.joined(
        size_bytes,
        luns,
        disk_offset[order],
        np.concatenate((kept.length, above.length))[order],
        np.concatenate((number[0][kept.lun_index], number[1][above.lun_index]))[order],
        np.concatenate((kept.lun_offset, above.lun_offset))[order],
    )
    if len(made) > MAX_PIECES:
        raise ValueError(f"it is scattered over more than {MAX_PIECES:,} places")
    return made


def require_blocks(file: SparseFile, file_map: DiskMap) -> None:
    """ValueError for a grain table in a hole of the file, which would read as if nothing was written."""
    tables = file.tables[file.tables != ABSENT]
    length = np.full(len(tables), file.entries * file.entry.itemsize, dtype=np.int64)
    total = int(length.sum())
    pieces = np.stack((np.cumsum(length) - length, length, tables), axis=1)
    if file_map.rearranged(total, pieces).mapped_bytes != total:
        raise ValueError(f"it has grain tables {_BEHIND}")


def delta_damaged(path: str, why: object) -> UnsupportedFormatError:
    """The error for a delta whose tables cannot be believed."""
    return UnsupportedFormatError(
        f"Delta {path} cannot be read: {why}; run again, and if it stays so let a VMware snapshot "
        'hold the VM (ways = ["vmware"]), below which its disks stand still, or remove its own '
        "snapshots."
    )


def read_exactly(reader: BlockReader, offset: int, length: int, what: str) -> bytes:
    """Bytes of a sparse file; ValueError when it ends before them."""
    if not 0 <= offset <= reader.size_bytes - length:
        raise ValueError(f"its {what} lies past the end of the file")
    return reader.read(offset, length)


def _tables(
    file: SparseFile, reader: BlockReader
) -> Iterator[tuple[Int64Array, npt.NDArray[np.unsignedinteger[Any]]]]:
    """(numbers of some tables, all their entries one after the other), in order."""
    length = file.entries * file.entry.itemsize
    present = np.flatnonzero(file.tables != ABSENT)
    places = file.tables[present]
    if len(places) and (places.min() < 0 or places.max() > reader.size_bytes - length):
        raise ValueError("a grain table lies past the end of the file")
    for at in range(0, len(present), _BATCH_TABLES):
        numbers = present[at : at + _BATCH_TABLES].astype(np.int64)
        extents = [Extent(offset, length) for offset in file.tables[numbers].tolist()]
        data = b"".join(piece for _, piece in reader.read_many(extents))
        yield numbers, np.frombuffer(data, dtype=file.entry)


def _joined(disk_offset: Int64Array, file_offset: Int64Array, file: SparseFile) -> Grains:
    if not len(disk_offset):
        return Grains(disk_offset, disk_offset, file_offset)
    zeroed = file_offset == ZEROED
    follows = (np.diff(disk_offset) == file.grain_bytes) & (
        (np.diff(file_offset) == file.grain_bytes) & ~zeroed[:-1] & ~zeroed[1:]
        | (zeroed[:-1] & zeroed[1:])
    )
    first = np.flatnonzero(np.concatenate(([True], ~follows)))
    counts = np.diff(np.concatenate((first, [len(disk_offset)])))
    begin = disk_offset[first]
    length = np.minimum(counts * file.grain_bytes, file.size_bytes - begin)
    return Grains(begin, length, file_offset[first])


def _check_places(file: SparseFile, grains: Grains, file_bytes: int) -> None:
    """No two things in one place of the file, and all grains within it."""
    live = grains.file_offset != ZEROED
    at = grains.file_offset[live]
    past = at + grains.length[live]
    if len(at) and (at.min() < 0 or past.max() > file_bytes):
        raise ValueError("a grain lies past the end of the file")
    tables = file.tables[file.tables != ABSENT]
    own = np.array(file.metadata, dtype=np.int64).reshape(-1, 2)
    begin = np.concatenate((own[:, 0], tables, at))
    end = np.concatenate((own[:, 1], tables + file.entries * file.entry.itemsize, past))
    order = np.argsort(begin, kind="stable")
    if bool(np.any(end[order][:-1] > begin[order][1:])):
        raise ValueError("two of its parts claim the same place in the file")
