"""The first megabytes of a VMFS extent: headers only, enough to be recognised and mounted.

Offsets as in dissect.vmfs: LVM_DevMetadata, LVM_VolDescriptor, FS3_Descriptor.
"""

import struct
from pathlib import Path

SIZE = 1 << 30
DATA_OFFSET = 0x1100000


def write_vmfs_headers(
    path: Path,
    naa: str,
    label: str,
    serial: int,
    ordinal: int = 0,
    extents: int = 1,
    first_sector: int = 0,
) -> str:
    """Make a sparse disk with a VMFS 6 extent on it and return the volume's UUID.

    `naa` (`naa.` and 32 hex digits) is what the header was written for, `serial`
    makes the UUIDs; `ordinal` and `extents` are for volumes over several LUNs.
    """
    base = first_sector * 512
    volume_id = struct.pack("<IIH6s", 0x65000000 + serial, 2, 3, b"\x02\x1a\xb0\x00\x00\x01")
    fs_id = struct.pack("<IIH6s", 0x65000000 + serial, 4, 5, b"\x02\x1a\xb0\x00\x00\x02")
    raw = bytes.fromhex(naa.removeprefix("naa."))
    header = bytearray(512)
    struct.pack_into("<IIIBB", header, 0, 0xC001D00D, 6, 0x15, 1, len(raw))
    header[0x2E : 0x2E + len(raw)] = raw
    struct.pack_into("<IQI", header, 0x5A, 512, SIZE, 1)
    struct.pack_into("<Q", header, 0x7A, DATA_OFFSET)
    struct.pack_into("<I", header, 0xCA, 4096)
    entry = bytearray(512)
    entry[0x54:0x64] = volume_id
    struct.pack_into("<Q", entry, 0x78, ordinal)
    struct.pack_into("<I", entry, 0x90, extents)
    descriptor = bytearray(512)
    struct.pack_into("<IIB", descriptor, 0, 0x2FABF15E, 24, 82)
    descriptor[9:25] = fs_id
    descriptor[0x1D : 0x1D + len(label)] = label.encode()
    with path.open("wb") as file:
        file.truncate(base + SIZE)
        for offset, data in (
            (0x100000, header),
            (0x100000 + 4096, entry),
            (DATA_OFFSET + 0x200000, descriptor if ordinal == 0 else b""),
        ):
            file.seek(base + offset)
            file.write(data)
    return f"{0x65000000 + serial:08x}-00000004-0005-021ab0000002"
