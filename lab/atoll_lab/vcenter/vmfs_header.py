"""The VMFS LVM header and superblock of a LUN: what mounting and resignaturing need to know.

Offsets as in dissect.vmfs (`c_lvm.LVM_DevMetadata`, `LVM_VolDescriptor`,
`c_vmfs.FS3_Descriptor`): the device header at 1 MiB into the partition, the
file system descriptor 2 MiB into the volume's data.
"""

import secrets
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from atoll_lab.vcenter.state import VolumeState

Read = Callable[[int, int], bytes]
Write = Callable[[int, bytes], None]

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


@dataclass(frozen=True)
class Signature:
    """What makes a volume another one: `volume_id` of its extents, `fs_uuid` and `label` of itself."""

    volume_id: str
    fs_uuid: str
    label: str


def new_signature(label: str) -> Signature:
    """A signature nobody else has, for a copy of the volume of that label."""
    prefix = f"snap-{secrets.token_hex(4)}-"
    return Signature(_new_uuid_text(), _new_uuid_text(), (prefix + label)[:128])


def resign(read: Read, write: Write, naa: str, signature: Signature) -> None:
    """Write one extent's headers for the LUN `naa` and the volume it is now part of.

    ValueError when there is no VMFS extent.
    """
    base = _partition(read)
    if base is None:
        raise ValueError("there is no VMFS extent")
    raw = bytes.fromhex(naa.removeprefix("naa."))
    header = bytearray(read(base + _LVM_HEADER, _SECTOR))
    version = struct.unpack_from("<I", header, 4)[0]
    data_offset = struct.unpack_from("<Q", header, 0x7A)[0]
    alignment = struct.unpack_from("<I", header, 0xCA)[0] if version >= 6 else _LVM5_METADATA_BYTES
    header[0x0D] = len(raw)
    header[0x2E : 0x2E + len(raw)] = raw
    entry_at = base + _LVM_HEADER + alignment
    entry = bytearray(read(entry_at, _SECTOR))
    volume_id = _uuid_bytes(signature.volume_id)
    entry[0x14 : 0x14 + 35] = signature.volume_id.encode()[:35]
    entry[0x54:0x64] = volume_id
    if struct.unpack_from("<Q", entry, 0x78)[0] == 0:
        descriptor_at = base + data_offset + _FS_DESCRIPTOR
        descriptor = bytearray(read(descriptor_at, _SECTOR))
        descriptor[9:25] = _uuid_bytes(signature.fs_uuid)
        descriptor[0x1D : 0x1D + 128] = signature.label.encode()[:128].ljust(128, b"\0")
        descriptor[0xB1:0xC1] = volume_id
        write(descriptor_at, bytes(descriptor))
    write(entry_at, bytes(entry))
    write(base + _LVM_HEADER, bytes(header))


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


def _new_uuid_text() -> str:
    return _uuid_text(secrets.token_bytes(16))


def _uuid_bytes(text: str) -> bytes:
    low, high, random, mac = text.split("-")
    return struct.pack("<IIH6s", int(low, 16), int(high, 16), int(random, 16), bytes.fromhex(mac))


def _uuid_text(raw: bytes) -> str:
    low, high, random, mac = struct.unpack("<IIH6s", raw)
    return f"{low:08x}-{high:08x}-{random:04x}-{mac.hex()}"
