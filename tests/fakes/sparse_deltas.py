"""Deltas as ESX keeps them, written from the formats' descriptions: for tests alone.

Nothing here is shared with the reader under test but numbers that both take from
QEMU's block/vmdk.c and VMware's "Virtual Disk Format 5.0".
"""

import random
import struct
from collections.abc import Mapping
from pathlib import Path

SECTOR = 512
SE_GRAIN = 4096
TABLE = 4096
MIB = (1 << 20) // SECTOR
"""In sectors: what ESX aligns the larger regions to."""

ZERO, UNMAPPED = "zero", "unmapped"
State = bytes | str
"""A grain's content, or how it is none."""

SE_HEADER_BYTES = 26 * 8
"""The const header's fields, eight bytes each."""


def write_sesparse(
    path: Path,
    size_bytes: int,
    grains: Mapping[int, State],
    rng: random.Random,
    replay_journal: int = 0,
) -> None:
    """A SESPARSE file with these grains by number, their data in random order with gaps."""
    sectors = size_bytes // SECTOR
    covered = TABLE * SE_GRAIN // SECTOR
    directory_entries = -(-sectors // covered)
    used_tables = sorted({number // TABLE for number in grains})
    data = [number for number, state in sorted(grains.items()) if isinstance(state, bytes)]
    slots = rng.sample(range(len(data) + 16), len(data))
    place = dict(zip(data, slots, strict=True))
    table_numbers = rng.sample(range(directory_entries + 2), len(used_tables))

    regions: dict[str, tuple[int, int]] = {}
    at = 1
    for name, length in (
        ("volatile", 1),
        ("journal_header", 2),
        ("journal", MIB),
        ("directory", -(-directory_entries * 8 // SECTOR // MIB) * MIB),
        ("tables", -(-(directory_entries + 2) * 64 // MIB) * MIB),
        ("free_bitmap", MIB),
        ("backmap", MIB),
        ("grains", sectors),
    ):
        at = -(-at // MIB) * MIB if length >= MIB else at
        regions[name] = (at, length)
        at += length
    # As with ESX the file ends where the grains end that were ever used, not with the region.
    end = regions["grains"][0] + (len(data) + 16) * 8
    numbers = [0xCAFEBABE, 0x200000001, sectors, 8, 64, 0, 0, 0, 0, 0]
    for region in regions.values():
        numbers += region
    with path.open("wb") as file:
        file.truncate(end * SECTOR)
        file.write(struct.pack("<26Q304x", *numbers))
        file.seek(regions["volatile"][0] * SECTOR)
        file.write(struct.pack("<4Q480x", 0xCAFECAFE, len(used_tables), 7, replay_journal))
        for table, number in zip(used_tables, table_numbers, strict=True):
            file.seek(regions["directory"][0] * SECTOR + table * 8)
            file.write(struct.pack("<Q", 0x1000000000000000 | number))
            entries = [
                _se_entry(grains.get(table * TABLE + n), place.get(table * TABLE + n))
                for n in range(TABLE)
            ]
            file.seek(regions["tables"][0] * SECTOR + number * TABLE * 8)
            file.write(struct.pack(f"<{TABLE}Q", *entries))
        for number in data:
            content = grains[number]
            assert isinstance(content, bytes)
            file.seek(regions["grains"][0] * SECTOR + place[number] * SE_GRAIN)
            file.write(content.ljust(SE_GRAIN, b"\xee"))


def _se_entry(state: State | None, slot: int | None) -> int:
    if state is None:
        return 0
    if state == ZERO:
        return 0x2 << 60
    if state == UNMAPPED:
        return 0x1 << 60
    assert slot is not None
    return 0x3 << 60 | (slot & 0xFFF) << 48 | slot >> 12


def write_cowd(
    path: Path,
    size_bytes: int,
    grains: Mapping[int, bytes],
    rng: random.Random,
    grain_sectors: int = 1,
    all_tables: bool = False,
) -> None:
    """A COWD file with these grains by number, tables and data in random order.

    With `all_tables` it is ready to be written to by QEMU, which makes grains but no tables.
    """
    sectors = size_bytes // SECTOR
    count = -(-sectors // (TABLE * grain_sectors))
    used = range(count) if all_tables else sorted({number // TABLE for number in grains})
    parts: list[tuple[str, int]] = [("table", table) for table in used]
    if not all_tables:
        parts += [("grain", number) for number in grains]
        rng.shuffle(parts)
    directory_at = 4
    at = directory_at + -(-count * 4 // SECTOR)
    place: dict[tuple[str, int], int] = {}
    for part in parts:
        at += rng.randrange(2) if not all_tables else 0
        place[part] = at
        at += TABLE * 4 // SECTOR if part[0] == "table" else grain_sectors
    with path.open("wb") as file:
        file.truncate(at * SECTOR)
        header = struct.pack(
            "<4s7I", b"COWD", 1, 3, sectors, grain_sectors, directory_at, count, at
        )
        file.write(header)
        file.seek(directory_at * SECTOR)
        file.write(struct.pack(f"<{count}I", *(place.get(("table", n), 0) for n in range(count))))
        for table in used:
            entries = [place.get(("grain", table * TABLE + n), 0) for n in range(TABLE)]
            file.seek(place["table", table] * SECTOR)
            file.write(struct.pack(f"<{TABLE}I", *entries))
        for number, content in grains.items():
            file.seek(place["grain", number] * SECTOR)
            file.write(content.ljust(grain_sectors * SECTOR, b"\xee"))


def descriptor(
    file: str,
    kind: str,
    size_bytes: int,
    content_id: str,
    parent: tuple[str, str] | None = None,
) -> bytes:
    """A descriptor as ESX writes it; `parent` is (hint, content id) of the disk below."""
    create = {
        "SESPARSE": "seSparse",
        "VMFSSPARSE": "vmfsSparse",
        "VMFS": "vmfs",
        "VMFSRDM": "vmfsRawDeviceMap",
    }[kind]
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        'encoding="UTF-8"',
        f"CID={content_id}",
        f"parentCID={parent[1] if parent else 'ffffffff'}",
        *(['isNativeSnapshot="no"'] if parent else []),
        f'createType="{create}"',
        *([f'parentFileNameHint="{parent[0]}"'] if parent else []),
        "# Extent description",
        f'RW {size_bytes // SECTOR} {kind} "{file}"',
        "",
        "# The Disk Data Base",
        "#DDB",
        "",
        'ddb.longContentID = "0123456789abcdef0123456789abcdef"',
        "",
    ]
    return "\n".join(lines).encode()
