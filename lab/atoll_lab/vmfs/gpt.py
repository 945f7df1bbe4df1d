"""The partition table ESX puts around a datastore: one GPT entry from sector 2048."""

import os
import struct
import uuid
import zlib
from pathlib import Path

from atoll.model.errors import UnsupportedFormatError
from atoll_lab.vmfs.layout import MIB, VMFS_TYPE

FIRST_BYTE = MIB
TAIL_BYTES = MIB
_SECTOR = 512
_ENTRIES, _ENTRY_BYTES = 128, 128
_TABLE_SECTORS = _ENTRIES * _ENTRY_BYTES // _SECTOR


def write_table(fd: int, size: int) -> int:
    """Write protective MBR and both GPT copies to an image; returns the partition's length."""
    sectors = size // _SECTOR
    first, last = FIRST_BYTE // _SECTOR, (size - TAIL_BYTES) // _SECTOR - 1
    entry = VMFS_TYPE.bytes_le + uuid.uuid4().bytes_le + struct.pack("<QQQ", first, last, 0)
    table = entry.ljust(_ENTRIES * _ENTRY_BYTES, b"\0")
    disk = uuid.uuid4().bytes_le

    def header(at: int, other: int, table_at: int) -> bytes:
        def packed(crc: int) -> bytes:
            return struct.pack(
                "<8sIIIIQQQQ16sQIII",
                b"EFI PART",
                0x10000,
                92,
                crc,
                0,
                at,
                other,
                _TABLE_SECTORS + 2,
                sectors - _TABLE_SECTORS - 2,
                disk,
                table_at,
                _ENTRIES,
                _ENTRY_BYTES,
                zlib.crc32(table),
            )

        return packed(zlib.crc32(packed(0)))

    mbr = bytearray(_SECTOR)
    covered = min(sectors - 1, 0xFFFFFFFF)
    struct.pack_into("<B3sB3sII", mbr, 446, 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, covered)
    mbr[510:] = b"\x55\xaa"
    backup = sectors - _TABLE_SECTORS - 1
    for sector, data in (
        (0, bytes(mbr)),
        (1, header(1, sectors - 1, 2)),
        (2, table),
        (backup, table),
        (sectors - 1, header(sectors - 1, 1, backup)),
    ):
        os.pwrite(fd, data, sector * _SECTOR)
    return (last - first + 1) * _SECTOR


def find_partition(fd: int, image: Path) -> int:
    """Byte offset of the VMFS partition; UnsupportedFormatError when there is none."""
    header = os.pread(fd, 92, _SECTOR)
    if header[:8] == b"EFI PART":
        table_at, count, size = struct.unpack_from("<QII", header, 72)
        for number in range(min(count, _ENTRIES)):
            entry = os.pread(fd, size, table_at * _SECTOR + number * size)
            if entry[:16] == VMFS_TYPE.bytes_le:
                return int(struct.unpack_from("<Q", entry, 32)[0]) * _SECTOR
    raise UnsupportedFormatError(f"{image} holds no VMFS partition; format it first.")
