"""The VMFS LVM header and superblock of a LUN: all that mounting needs to know.

Offsets as in dissect.vmfs (`c_lvm.LVM_DevMetadata`, `LVM_VolDescriptor`,
`c_vmfs.FS3_Descriptor`): the device header at 1 MiB into the partition, the
file system descriptor 2 MiB into the volume's data.
"""

import struct
import uuid
from collections.abc import Callable

from atoll_lab.vcenter.state import VolumeState

Read = Callable[[int, int], bytes]

_SECTOR = 512
_LVM_HEADER = 0x100000
_LVM_MAGIC = 0xC001D00D
_FS_DESCRIPTOR = 0x200000
_FS_MAGICS = (0x2FABF15E, 0x2FABF15F)
_VMFS_PARTITION = uuid.UUID("AA31E02A-400F-11DB-9590-000C2911D1B8").bytes_le
_LVM5_METADATA_BYTES = 512


def read_volume(read: Read) -> VolumeState | None:
    """What VMFS extent a disk holds, None when it holds none. `read(offset, length)` in bytes."""
    base = _partition(read)
    if base is None:
        return None
    header = read(base + _LVM_HEADER, _SECTOR)
    version = struct.unpack_from("<I", header, 4)[0]
    id_length = header[0x0D]
    device_id = header[0x2E : 0x2E + min(id_length, 16)].hex()
    size_bytes, volumes = struct.unpack_from("<QI", header, 0x5E)
    data_offset = struct.unpack_from("<Q", header, 0x7A)[0]
    if volumes == 0:
        return None
    alignment = struct.unpack_from("<I", header, 0xCA)[0] if version >= 6 else _LVM5_METADATA_BYTES
    entry = read(base + _LVM_HEADER + alignment, _SECTOR)
    first_extent = struct.unpack_from("<Q", entry, 0x78)[0]
    volume = VolumeState(
        volume_id=_uuid_text(entry[0x54:0x64]),
        device_id=device_id,
        ordinal=first_extent,
        extent_count=max(1, struct.unpack_from("<I", entry, 0x90)[0]),
        size_bytes=size_bytes,
        major_version=version,
    )
    if first_extent == 0:
        descriptor = read(base + data_offset + _FS_DESCRIPTOR, _SECTOR)
        if struct.unpack_from("<I", descriptor)[0] not in _FS_MAGICS:
            return None
        volume.uuid = _uuid_text(descriptor[9:25])
        volume.label = descriptor[0x1D : 0x1D + 128].split(b"\0")[0].decode("utf-8", "replace")
    return volume


def _partition(read: Read) -> int | None:
    """Where the VMFS partition begins: the whole disk, or what its GPT says."""
    if _has_header(read, 0):
        return 0
    table = read(_SECTOR, _SECTOR)
    if table[:8] != b"EFI PART":
        return None
    first, count, size = struct.unpack_from("<QII", table, 72)
    if size < 128 or size % 8 or not 0 < count <= 1024:
        return None
    length = -(-count * size // _SECTOR) * _SECTOR
    entries = read(first * _SECTOR, length)
    for number in range(count):
        entry = entries[number * size : (number + 1) * size]
        if entry[:16] == _VMFS_PARTITION:
            start = int(struct.unpack_from("<Q", entry, 32)[0]) * _SECTOR
            return start if _has_header(read, start) else None
    return None


def _has_header(read: Read, base: int) -> bool:
    header = read(base + _LVM_HEADER, _SECTOR)
    return len(header) == _SECTOR and struct.unpack_from("<I", header)[0] == _LVM_MAGIC


def _uuid_text(raw: bytes) -> str:
    low, high, random, mac = struct.unpack("<IIH6s", raw)
    return f"{low:08x}-{high:08x}-{random:04x}-{mac.hex()}"
