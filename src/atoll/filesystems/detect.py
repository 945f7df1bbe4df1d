"""Which file system, or other content, a partition holds: fixed magics at fixed places.

Cheap and safe enough to run outside the jail: a few comparisons, no structure
is followed. Sources of the offsets: libblkid's superblock probes.
"""

import struct
from dataclasses import dataclass
from uuid import UUID

from atoll.filesystems.interface import Blocks
from atoll.model.errors import UnsupportedFormatError

_PROBE_BYTES = 69632
_EXT_HAS_JOURNAL = 0x4
_EXT_JOURNAL_DEVICE = 0x8
_EXT4_INCOMPAT = 0x40 | 0x80 | 0x200
_EXT4_RO_COMPAT = 0x8 | 0x10 | 0x20 | 0x40 | 0x400

_WHAT = {
    "xfs": "an XFS file system",
    "btrfs": "a btrfs file system",
    "ntfs": "an NTFS file system",
    "refs": "a ReFS file system",
    "exfat": "an exFAT file system",
    "fat": "a FAT file system",
    "iso9660": "an ISO 9660 file system",
    "swap": "swap space",
    "lvm": "an LVM physical volume",
    "luks": "an encrypted LUKS volume",
    "bitlocker": "a volume encrypted by BitLocker",
    "md": "a member of a Linux software RAID",
    "zfs": "a member of a ZFS pool",
    "ext-journal": "the external journal of an ext4 file system",
    "empty": "only zeros where a file system would begin",
    "unknown": "no file system that Atoll knows",
}
SUPPORTED = frozenset({"ext2", "ext3", "ext4", "xfs", "ntfs", "fat", "exfat", "btrfs"})


@dataclass(frozen=True, slots=True)
class Content:
    """What a partition holds. `label` and `uuid` are empty where the kind has none we read."""

    kind: str
    label: str = ""
    uuid: str = ""

    @property
    def supported(self) -> bool:
        """Whether files can be read from it."""
        return self.kind in SUPPORTED

    def refusal(self) -> UnsupportedFormatError:
        """The error that says why files cannot be read from it."""
        return UnsupportedFormatError(
            f"The partition holds {_WHAT.get(self.kind, self.kind)}, whose files Atoll cannot"
            " read one by one; restore the whole disk instead."
        )


def detect(reader: Blocks) -> Content:
    """Name what begins at offset 0 of `reader`."""
    head = reader.read(0, min(_PROBE_BYTES, reader.size_bytes)).ljust(_PROBE_BYTES, b"\0")
    # Containers first: an LVM or LUKS volume may still carry the magic of what it replaced.
    for found in (_container(head), _ext(head), _other(head)):
        if found is not None:
            return found
    return Content("unknown" if any(head) else "empty")


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _uuid(raw: bytes) -> str:
    return str(UUID(bytes=raw))


def _container(head: bytes) -> Content | None:
    if head[:6] in (b"LUKS\xba\xbe", b"SKUL\xba\xbe"):
        return Content("luks", uuid=_text(head[168:208]))
    for sector in range(4):
        start = sector * 512
        if head[start : start + 8] == b"LABELONE" and head[start + 24 : start + 32] == b"LVM2 001":
            return Content("lvm")
    md_magic = b"\xfc\x4e\x2b\xa9"
    if head[:4] == md_magic or head[4096:4100] == md_magic:
        return Content("md")
    return None


def _ext(head: bytes) -> Content | None:
    superblock = head[1024:2048]
    if superblock[56:58] != b"\x53\xef":
        return None
    compat, incompat, ro_compat = struct.unpack_from("<3I", superblock, 92)
    if incompat & _EXT_JOURNAL_DEVICE:
        return Content("ext-journal")
    if incompat & _EXT4_INCOMPAT or ro_compat & _EXT4_RO_COMPAT:
        kind = "ext4"
    else:
        kind = "ext3" if compat & _EXT_HAS_JOURNAL else "ext2"
    return Content(kind, _text(superblock[120:136]), _uuid(superblock[104:120]))


def _other(head: bytes) -> Content | None:
    if head[:4] == b"XFSB":
        return Content("xfs", _text(head[108:120]), _uuid(head[32:48]))
    if head[65600:65608] == b"_BHRfS_M":
        return Content("btrfs", _text(head[65835:66091]), _uuid(head[65568:65584]))
    if head[3:11] == b"-FVE-FS-":
        return Content("bitlocker")
    if head[3:11] == b"NTFS    ":
        return Content("ntfs", uuid=f"{int.from_bytes(head[72:80], 'little'):016X}")
    if head[3:11] == b"EXFAT   ":
        return Content("exfat", uuid=_fat_serial(head[100:104]))
    if head[3:11] == b"ReFS\0\0\0\0":
        return Content("refs")
    for page in (4096, 8192, 16384, 65536):
        if head[page - 10 : page] in (b"SWAPSPACE2", b"SWAP-SPACE"):
            return Content("swap", _text(head[1052:1068]), _uuid(head[1036:1052]))
    if head[32769:32774] == b"CD001":
        return Content("iso9660")
    if head[510:512] == b"\x55\xaa":
        if head[82:87] == b"FAT32":
            return Content("fat", _fat_label(head[71:82]), _fat_serial(head[67:71]))
        if head[54:59] in (b"FAT12", b"FAT16"):
            return Content("fat", _fat_label(head[43:54]), _fat_serial(head[39:43]))
    return None


def _fat_label(raw: bytes) -> str:
    text = raw.decode("cp437").rstrip(" \0")
    return "" if text == "NO NAME" else text


def _fat_serial(raw: bytes) -> str:
    value = int.from_bytes(raw, "little")
    return f"{value >> 16:04X}-{value & 0xFFFF:04X}"
