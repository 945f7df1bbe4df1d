"""Reparse points of NTFS: symlinks and junctions, and files whose content is not where it seems.

Sources: Microsoft's [MS-FSCC], section 2.1.2.
"""

import struct
from dataclasses import dataclass

from atoll.filesystems.interface import EntryKind
from atoll.filesystems.ntfs_layout import damaged
from atoll.filesystems.utf16_names import to_text

MAX_BYTES = 16 << 10
WOF = 0x80000017
_SYMLINK, _MOUNT_POINT, _LX_SYMLINK = 0xA000000C, 0xA0000003, 0xA000001D
_SPECIAL = {0x80000023: EntryKind.SOCKET, 0x80000024: EntryKind.FIFO}
_DEDUP = 0x80000013
_CLOUD, _CLOUD_MASK = 0x9000001A, 0xFFFF0FFF
_RELATIVE = 1
_OFFLINE = 0x1000 | 0x40000 | 0x400000  # also: recalled when opened, when read
_MAX_TARGET_BYTES = 32 << 10

# Tags whose files read as zeros, or not at all, by the clusters they have.
_ELSEWHERE = {
    WOF: "Windows keeps it compressed by its overlay filter (CompactOS, `compact /exe`)",
    _DEDUP: "Windows keeps its content in the volume's deduplication store",
}


@dataclass(frozen=True, slots=True)
class Reparse:
    """What a reparse point makes of a file: its kind, a symlink's text, or why it cannot be read.

    `kind` is None where it stays the file or directory it is.
    """

    tag: int
    kind: EntryKind | None = None
    target: str | None = None
    obstacle: str = ""


def understand(raw: bytes, attributes: int) -> Reparse:
    """What the value of a reparse point means for a file with these attributes."""
    if len(raw) < 8:
        raise damaged("a reparse point is cut off")
    (tag,) = struct.unpack_from("<I", raw)
    if tag in (_SYMLINK, _MOUNT_POINT):
        return Reparse(tag, EntryKind.SYMLINK, _windows_target(raw, tag))
    if tag == _LX_SYMLINK:
        text = raw[12 : 8 + int.from_bytes(raw[4:6], "little")]
        return Reparse(tag, EntryKind.SYMLINK, _checked(text.decode("utf-8", "surrogateescape")))
    if tag in _SPECIAL:
        return Reparse(tag, _SPECIAL[tag])
    if tag in _ELSEWHERE:
        return Reparse(tag, obstacle=_ELSEWHERE[tag])
    if attributes & _OFFLINE:
        what = "in the cloud" if tag & _CLOUD_MASK == _CLOUD else f"elsewhere (tag {tag:#010x})"
        return Reparse(tag, obstacle=f"its content is {what}, not on this volume")
    return Reparse(tag)


def _windows_target(raw: bytes, tag: int) -> str:
    """Relative targets with slashes; absolute ones as Windows shows them, for they name a drive.

    Which volume has which letter only the running Windows knows.
    """
    head = 20 if tag == _SYMLINK else 16
    if len(raw) < head:
        raise damaged("a symlink is cut off")
    start, length, print_start, print_length = struct.unpack_from("<4H", raw, 8)
    names = raw[head:]
    target = to_text(names[start : start + length])
    shown = to_text(names[print_start : print_start + print_length])
    if tag == _SYMLINK and int.from_bytes(raw[16:20], "little") & _RELATIVE:
        return _checked(target.replace("\\", "/"))
    return _checked(shown or target.removeprefix("\\??\\"))


def _checked(target: str) -> str:
    if "\0" in target or not 0 < len(target) <= _MAX_TARGET_BYTES:
        raise damaged("a symlink has an impossible target")
    return target
