"""SESPARSE: the deltas of VMFS 6, and of disks above 2 TiB on VMFS 5.

The format is not published. What is here is what QEMU reads (block/vmdk.c,
`vmdk_open_se_sparse` and `get_cluster_offset`): a constant header, a volatile
header, a grain directory, grain tables of 4,096 entries, grains of 4 KiB. All
numbers are little-endian, offsets and sizes in the headers are sectors.
"""

import struct
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from atoll.blocks.grains import ABSENT, ZEROED, SparseFile, read_exactly
from atoll.blocks.ranges import Int64Array
from atoll.model.errors import UnsupportedFormatError
from atoll.model.readers import BlockReader

SECTOR = 512
GRAIN_BYTES = 4096
TABLE_ENTRIES = 4096
CONST_MAGIC, VOLATILE_MAGIC = 0xCAFEBABE, 0xCAFECAFE
VERSION = 0x2_0000_0001
TABLE_PRESENT = 0x1 << 60
GRAIN_UNMAPPED, GRAIN_ZERO, GRAIN_ALLOCATED = 0x1, 0x2, 0x3

_TABLE_BYTES = TABLE_ENTRIES * 8
_MAX_CAPACITY = (64 << 40) // SECTOR
_MAX_SECTORS = 1 << 52
_MAX_GRAINS = 1 << 48
_HEADER = struct.Struct("<26Q304s")
_VOLATILE = struct.Struct("<4Q480s")


class ConstHeader(NamedTuple):
    """The first sector, without its padding."""

    magic: int
    version: int
    capacity: int
    grain_size: int
    grain_table_size: int
    flags: int
    reserved1: int
    reserved2: int
    reserved3: int
    reserved4: int
    volatile_offset: int
    volatile_size: int
    journal_header_offset: int
    journal_header_size: int
    journal_offset: int
    journal_size: int
    directory_offset: int
    directory_size: int
    tables_offset: int
    tables_size: int
    free_bitmap_offset: int
    free_bitmap_size: int
    backmap_offset: int
    backmap_size: int
    grains_offset: int
    grains_size: int

    @property
    def regions(self) -> tuple[tuple[int, int], ...]:
        """(first sector, sectors) of everything the header names, itself included."""
        return ((0, 1), *zip(self[10::2], self[11::2], strict=True))


def open_sesparse(reader: BlockReader, path: str) -> SparseFile:
    """The layout of a SESPARSE file at `path`.

    ValueError for what QEMU would refuse too, and where regions contradict each
    other; UnsupportedFormatError when its journal must be replayed first.
    """
    header = _const_header(reader)
    _check_volatile_header(reader, header, path)
    tables = _directory(reader, header)

    def locate(entries: npt.NDArray[Any]) -> Int64Array:
        return _locate(entries, header.grains_offset * SECTOR)

    return SparseFile(
        size_bytes=header.capacity * SECTOR,
        grain_bytes=GRAIN_BYTES,
        entries=TABLE_ENTRIES,
        tables=tables,
        entry=np.dtype("<u8"),
        locate=locate,
        metadata=_metadata(header),
    )


def _const_header(reader: BlockReader) -> ConstHeader:
    *numbers, padding = _HEADER.unpack(read_exactly(reader, 0, SECTOR, "header"))
    header = ConstHeader(*numbers)
    if header.magic != CONST_MAGIC:
        raise ValueError("it does not begin as a SESPARSE file")
    if header.version != VERSION:
        raise ValueError(f"it has version {header.version:#x}, and only {VERSION:#x} is known")
    if (
        header.grain_size * SECTOR != GRAIN_BYTES
        or header.grain_table_size * SECTOR != _TABLE_BYTES
    ):
        raise ValueError("its grains or grain tables are of another size than is known")
    if any((header.flags, *header[6:10])) or any(padding):
        raise ValueError("its header sets something that is not known")
    if not 0 < header.capacity <= _MAX_CAPACITY:
        raise ValueError(f"it claims to be a disk of {header.capacity} sectors")
    if any(number > _MAX_SECTORS for number in header[10:]):
        raise ValueError("its header names a place that no file reaches")
    regions = sorted(region for region in header.regions if region[1])
    for (first, length), (then, _) in pairwise(regions):
        if first + length > then:
            raise ValueError("two regions that its header names overlap")
    return header


def _check_volatile_header(reader: BlockReader, header: ConstHeader, path: str) -> None:
    raw = read_exactly(reader, header.volatile_offset * SECTOR, SECTOR, "volatile header")
    magic, _, _, replay, padding = _VOLATILE.unpack(raw)
    if magic != VOLATILE_MAGIC or any(padding):
        raise ValueError("its volatile header is none")
    if replay:
        raise UnsupportedFormatError(
            f"Delta {path} was being changed at the instant of the snapshot and its journal would "
            "have to be replayed first, which only ESX can; hold the VM by a VMware snapshot (ways "
            '= ["vmware"]), below which it stands still, or remove the VM\'s own snapshots.'
        )


def _directory(reader: BlockReader, header: ConstHeader) -> Int64Array:
    """The file offset of each grain table, ABSENT where there is none."""
    covered = TABLE_ENTRIES * GRAIN_BYTES // SECTOR
    count = -(-header.capacity // covered)
    if count * 8 > header.directory_size * SECTOR:
        raise ValueError("its grain directory is too small for the disk")
    raw = read_exactly(reader, header.directory_offset * SECTOR, count * 8, "grain directory")
    entries = np.frombuffer(raw, dtype="<u8")
    present = entries != 0
    if bool(np.any(entries[present] >> np.uint64(32) != TABLE_PRESENT >> 32)):
        raise ValueError("its grain directory has an entry of an unknown kind")
    number = (entries & np.uint64(0xFFFFFFFF)).astype(np.int64)
    if bool(np.any(number[present] >= header.tables_size * SECTOR // _TABLE_BYTES)):
        raise ValueError("its grain directory names a table that is not there")
    return np.where(present, header.tables_offset * SECTOR + number * _TABLE_BYTES, ABSENT)


def _locate(entries: npt.NDArray[Any], grains_at: int) -> Int64Array:
    """File offsets of table entries: the upper 4 bits are the kind, the next 12 the low bits.

    A grain the guest has unmapped reads as zeros, as in QEMU. dissect lets the
    disk below show through, which would bring back what the guest had discarded.
    """
    kind = (entries >> np.uint64(60)).astype(np.int8)
    if bool(np.any(kind > GRAIN_ALLOCATED)) or bool(np.any((kind == 0) & (entries != 0))):
        raise ValueError("a grain table has an entry of an unknown kind")
    low = (entries >> np.uint64(48)) & np.uint64(0xFFF)
    number = low | (entries & np.uint64(0xFFFF_FFFF_FFFF)) << np.uint64(12)
    allocated = kind == GRAIN_ALLOCATED
    if bool(np.any(number[allocated] > _MAX_GRAINS)):
        raise ValueError("a grain lies past the end of the file")
    place = grains_at + number.astype(np.int64) * GRAIN_BYTES
    return np.where(allocated, place, np.where(kind == 0, ABSENT, ZEROED))


def _metadata(header: ConstHeader) -> tuple[tuple[int, int], ...]:
    """Where no grain may lie; the tables that are in use are known by themselves."""
    skip = {header.tables_offset, header.grains_offset}
    return tuple(
        (first * SECTOR, (first + length) * SECTOR)
        for first, length in header.regions
        if length and first not in skip
    )
