"""Partitions and logical volumes of a disk, and a reader for each."""

from dataclasses import dataclass

from atoll.blocks.extent_map import DiskMap
from atoll.blocks.lvm2 import Segment, logical_volumes, read_physical_volume
from atoll.blocks.partition_tables import TableEntry, read_table
from atoll.blocks.readers import MappedReader, SliceReader
from atoll.model.errors import UnsupportedFormatError
from atoll.model.readers import BlockReader

FIRST_LOGICAL_VOLUME = 10_001
"""Logical volumes are numbered from here, in the order of group and name: no table goes so far."""

_DISK = "disk"


@dataclass(frozen=True, slots=True)
class Partition:
    """A part of a disk that may hold a file system.

    `number` is the guest's own for partitions of a table (logical ones from 5),
    0 for a disk without one, from FIRST_LOGICAL_VOLUME on for logical volumes.
    `offset` is where it begins on the disk (of a logical volume: its first
    byte), `length` its size in bytes. `kind` is `linux`, `linux-lvm`, `esp`,
    `microsoft-data` and the like, `mbr-0x…` or `gpt-…` for others, `whole`
    without a table, `lvm2` for a logical volume; then `name` is `group/volume`.
    `segments` say where its bytes are; there are none when it cannot be read,
    and `obstacle` says why.
    """

    number: int
    offset: int
    length: int
    kind: str
    name: str = ""
    segments: tuple[Segment, ...] = ()
    obstacle: str = ""


def partitions(reader: BlockReader) -> list[Partition]:
    """What a disk is divided into, by number; a disk without a table is one partition.

    Raises only what the reader raises: a damaged table is no table, as to a guest.
    """
    table = read_table(reader)
    entries = [TableEntry(0, 0, reader.size_bytes, "whole")] if table is None else table
    found = [
        Partition(e.number, e.offset, e.length, e.kind, "", (Segment(0, e.length, e.offset),))
        for e in entries
        if e.length
    ]
    physical = [read_physical_volume(reader, e.offset, e.length) for e in entries if e.length]
    logical = logical_volumes([volume for volume in physical if volume is not None])
    for number, volume in enumerate(sorted(logical, key=lambda v: (v.group, v.name))):
        found.append(
            Partition(
                FIRST_LOGICAL_VOLUME + number,
                volume.segments[0].disk_offset if volume.segments else 0,
                volume.length,
                "lvm2",
                f"{volume.group}/{volume.name}",
                volume.segments,
                volume.obstacle,
            )
        )
    return found


def open_partition(reader: BlockReader, partition: Partition) -> BlockReader:
    """A reader of one partition of the disk behind `reader`, which must stay open.

    Over a MappedReader the result reads the LUNs directly: partition, disk and
    volume are flattened into one map. Raises UnsupportedFormatError for a
    logical volume that cannot be read.
    """
    segments = partition.segments
    if not segments:
        raise UnsupportedFormatError(
            f"The logical volume {partition.name} cannot be read "
            f"({partition.obstacle or 'it is empty'}); restore the whole disk instead."
        )
    if isinstance(reader, MappedReader):
        return MappedReader(reader.disk_map.rearranged(partition.length, segments), reader.luns)
    if len(segments) == 1:
        return SliceReader(reader, segments[0].disk_offset, segments[0].length)
    whole = DiskMap.of(reader.size_bytes, (_DISK,), [(0, reader.size_bytes, 0, 0)])
    return MappedReader(whole.rearranged(partition.length, segments), {_DISK: reader})
