"""Whether an NTFS volume was left with changes that only its log, `$LogFile`, has whole.

The log is not replayed. Source: ntfs-3g's `logfile.h`, and `ntfs_is_logfile_clean` in `logfile.c`.
"""

import struct

from atoll.filesystems.interface import Journal
from atoll.filesystems.ntfs_content import content_of
from atoll.filesystems.ntfs_layout import DATA, VOLUME_INFORMATION, Layout, Record

_LOG, _VOLUME = 2, 3
_DIRTY = 1
_CLEAN = 2
_NO_CLIENT = 0xFFFF
_PAGE_BYTES = 4096
_HEAD_BYTES = 8 << 10


def volume_record(layout: Layout) -> Record:
    """The record of `$Volume`: the label, the version, and the dirty flag."""
    return layout.record(_VOLUME)


def state(layout: Layout) -> Journal:
    """`clean` when Windows ended its work on the volume; damage to the log counts as unfinished."""
    information = volume_record(layout).first(VOLUME_INFORMATION)
    if information is not None and information.value is not None:
        flags = int.from_bytes(information.value[10:12], "little")
        if flags & _DIRTY:
            return "unreplayed"
    return "clean" if _log_is_clean(layout) else "unreplayed"


def _log_is_clean(layout: Layout) -> bool:
    head = bytearray(_HEAD_BYTES)
    for data in content_of(layout, layout.record(_LOG).parts(DATA)):
        if data.offset >= _HEAD_BYTES:
            break
        piece = data.content[: _HEAD_BYTES - data.offset]
        head[data.offset : data.offset + len(piece)] = piece
    if head.count(0xFF) == len(head):
        return True  # emptied by whoever mounted it last, as ntfs-3g does
    newest, clean = -1, False
    for start in (0, _PAGE_BYTES):
        page = bytes(head[start : start + _PAGE_BYTES])
        if page[:4] != b"RSTR":
            continue
        (area,) = struct.unpack_from("<H", page, 24)
        if not 30 <= area <= _PAGE_BYTES - 48:
            continue
        number, _, _, in_use, flags = struct.unpack_from("<QHHHH", page, area)
        if number > newest:
            newest, clean = number, in_use == _NO_CLIENT or bool(flags & _CLEAN)
    return clean
