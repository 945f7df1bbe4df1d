"""GPT and MBR: which byte ranges of a disk are partitions.

Formats: UEFI Specification 2.10, section 5.3 (GPT); the MBR and its chain of
extended boot records as every PC system writes them. Everything read is under
the guest's control, so counts and chains are bounded and offsets checked.
"""

import struct
import uuid
import zlib
from typing import NamedTuple

from atoll.model.readers import BlockReader

_MBR_ENTRIES = 4
_MAX_LOGICAL = 128
_MAX_GPT_ENTRIES = 1024
_EXTENDED = frozenset((0x05, 0x0F, 0x85))
_PROTECTIVE = 0xEE
_SECTOR_SIZES = (512, 4096)

_MBR_KINDS = {
    0x07: "microsoft-data",
    0x82: "linux-swap",
    0x83: "linux",
    0x8E: "linux-lvm",
    0xEF: "esp",
    0xFB: "vmfs",
}
_GPT_KINDS = {
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "esp",
    "21686148-6449-6e6f-744e-656564454649": "bios-boot",
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "linux",
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "linux",
    "e6d6d379-f507-44c2-a23c-238f2a3df928": "linux-lvm",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "linux-swap",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "microsoft-data",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": "microsoft-reserved",
    "de94bba4-06d1-4d40-a16a-bfd50179d6ac": "microsoft-recovery",
    "aa31e02a-400f-11db-9590-000c2911d1b8": "vmfs",
}


class TableEntry(NamedTuple):
    """A partition as its table gives it; `kind` is a known name, `mbr-0x…` or `gpt-<GUID>`."""

    number: int
    offset: int
    length: int
    kind: str


def read_table(reader: BlockReader) -> list[TableEntry] | None:
    """The entries that lie on the disk, by number; None when the disk has no partition table.

    Entries that begin past the end are left out, those that end past it cut:
    so reads the kernel of a guest whose disk was made smaller.
    """
    first = reader.read(0, 512)
    if len(first) < 512 or first[510:] != b"\x55\xaa":
        return None
    slots = [_mbr_slot(first, number) for number in range(_MBR_ENTRIES)]
    if any(kind == _PROTECTIVE for _, kind, _, _ in slots):
        entries = _gpt(reader)
        if entries is not None:
            return entries
    if _is_boot_sector(first) or not all(status in (0, 0x80) for status, _, _, _ in slots):
        return None
    entries = _mbr(reader, slots)
    return entries or None


def _is_boot_sector(sector: bytes) -> bool:
    """Whether the sector is a file system's own, which carries the same signature."""
    return (
        sector[3:11] in (b"NTFS    ", b"EXFAT   ", b"-FVE-FS-")
        or sector[0x36:0x39] == b"FAT"
        or sector[0x52:0x55] == b"FAT"
    )


def _mbr_slot(sector: bytes, number: int) -> tuple[int, int, int, int]:
    """(status, type, first sector, sectors)."""
    status, kind, start, count = struct.unpack_from("<B3xB3xII", sector, 446 + 16 * number)
    return status, kind, start, count


def _mbr_kind(kind: int) -> str:
    return _MBR_KINDS.get(kind, f"mbr-0x{kind:02x}")


def _cut(reader: BlockReader, number: int, offset: int, length: int, kind: str) -> list[TableEntry]:
    length = min(length, reader.size_bytes - offset)
    return [TableEntry(number, offset, length, kind)] if offset > 0 and length > 0 else []


def _mbr(reader: BlockReader, slots: list[tuple[int, int, int, int]]) -> list[TableEntry]:
    entries: list[TableEntry] = []
    extended: int | None = None
    for number, (_, kind, start, count) in enumerate(slots, 1):
        if kind in _EXTENDED:
            extended = start if extended is None else extended
        elif kind not in (0, _PROTECTIVE):
            entries += _cut(reader, number, start * 512, count * 512, _mbr_kind(kind))
    if extended:
        entries += _logical(reader, extended)
    return entries


def _logical(reader: BlockReader, extended: int) -> list[TableEntry]:
    """Logical partitions, numbered from 5: each boot record holds one and the way to the next."""
    entries: list[TableEntry] = []
    at, seen = extended, set[int]()
    while at not in seen and len(seen) < _MAX_LOGICAL:
        seen.add(at)
        sector = reader.read(at * 512, 512)
        if len(sector) < 512 or sector[510:] != b"\x55\xaa":
            break
        onward: int | None = None
        for number in range(_MBR_ENTRIES):
            _, kind, start, count = _mbr_slot(sector, number)
            if kind in _EXTENDED:
                onward = extended + start if onward is None else onward
            elif kind and count:
                offset = (at + start) * 512
                entries += _cut(reader, 5 + len(entries), offset, count * 512, _mbr_kind(kind))
        if onward is None:
            break
        at = onward
    return entries


def _gpt(reader: BlockReader) -> list[TableEntry] | None:
    for sector in _SECTOR_SIZES:
        for header_at in (sector, reader.size_bytes - sector):  # the copy at the end is as good
            entries = _gpt_at(reader, header_at, sector)
            if entries is not None:
                return entries
    return None


def _gpt_at(reader: BlockReader, at: int, sector: int) -> list[TableEntry] | None:
    if at <= 0 or at + 512 > reader.size_bytes:
        return None
    header = reader.read(at, 512)
    if header[:8] != b"EFI PART":
        return None
    (header_size,) = struct.unpack_from("<I", header, 12)
    table_lba, count, entry_size, table_crc = struct.unpack_from("<QIII", header, 72)
    if not 92 <= header_size <= 512 or entry_size not in (128, 256, 512, 1024):
        return None
    blank = header[:16] + bytes(4) + header[20:header_size]
    if zlib.crc32(blank) != struct.unpack_from("<I", header, 16)[0] or count > _MAX_GPT_ENTRIES:
        return None
    if table_lba * sector + count * entry_size > reader.size_bytes:
        return None
    table = reader.read(table_lba * sector, count * entry_size)
    if zlib.crc32(table) != table_crc:
        return None
    entries: list[TableEntry] = []
    for number in range(1, count + 1):
        base = (number - 1) * entry_size
        kind = str(uuid.UUID(bytes_le=table[base : base + 16]))
        first, last = struct.unpack_from("<QQ", table, base + 32)
        if table[base : base + 16] != bytes(16) and first <= last:
            name = _GPT_KINDS.get(kind, f"gpt-{kind}")
            entries += _cut(reader, number, first * sector, (last - first + 1) * sector, name)
    return entries
