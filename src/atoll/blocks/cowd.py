"""VMFSSPARSE ("COWD"): the deltas of VMFS 5 for disks up to 2 TiB.

Format: VMware, "Virtual Disk Format 5.0", section "ESX Server Sparse Extents";
QEMU reads the same (block/vmdk.c, `vmdk_open_vmfs_sparse`). A header of four
sectors, a grain directory, grain tables of 4,096 entries, grains of one sector
as ESX makes them. All numbers are little-endian, 32 bits, offsets are sectors.
"""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll.blocks.grains import ABSENT, SparseFile, read_exactly
from atoll.blocks.ranges import Int64Array
from atoll.model.readers import BlockReader

SECTOR = 512
HEADER_BYTES = 4 * SECTOR
TABLE_ENTRIES = 4096
MAGIC = b"COWD"
VERSION = 1

_TABLE_BYTES = TABLE_ENTRIES * 4
_MAX_GRAIN_SECTORS = 128
_HEADER = struct.Struct("<4s7I")


def open_cowd(reader: BlockReader) -> SparseFile:
    """The layout of a COWD file; ValueError where it is none or contradicts itself."""
    raw = read_exactly(reader, 0, HEADER_BYTES, "header")
    magic, version, _, capacity, grain, directory, tables, _ = _HEADER.unpack_from(raw)
    if magic != MAGIC:
        raise ValueError("it does not begin as a COWD file")
    if version != VERSION:
        raise ValueError(f"it has version {version}, and only {VERSION} is known")
    if not capacity:
        raise ValueError("it claims to be a disk of 0 sectors")
    if not 0 < grain <= _MAX_GRAIN_SECTORS or grain & (grain - 1):
        raise ValueError(f"it has grains of {grain} sectors")
    count = -(-capacity // (TABLE_ENTRIES * grain))
    if tables < count:
        raise ValueError(f"its grain directory has {tables} entries where the disk needs {count}")
    at, length = directory * SECTOR, count * 4
    entries = np.frombuffer(read_exactly(reader, at, length, "grain directory"), dtype="<u4")
    offset = entries.astype(np.int64) * SECTOR
    return SparseFile(
        size_bytes=capacity * SECTOR,
        grain_bytes=grain * SECTOR,
        entries=TABLE_ENTRIES,
        tables=np.where(entries == 0, ABSENT, offset),
        entry=np.dtype("<u4"),
        locate=_locate,
        metadata=((0, HEADER_BYTES), (at, at + tables * 4)),
    )


def _locate(entries: npt.NDArray[Any]) -> Int64Array:
    return np.where(entries == 0, ABSENT, entries.astype(np.int64) * SECTOR)
