"""Items of an XFS log as they are kept there, turned into what is on disk.

Source: fs/xfs/libxfs/xfs_log_format.h.
"""

import struct

from atoll.filesystems.xfs_layout import BIG_TIMES, INODE_MAGIC
from atoll.filesystems.xfs_log import SECTOR
from atoll.filesystems.xfs_superblock import damaged

BUFFER_HEAD_BYTES = 20
_TREE_HEAD_BYTES = 72
_CORE_FIELDS = "2sHBBHIII4xQQQQQQIIHBbIHHIIIQQQI12xQQ16s"
_CORE_OF_LOG, _CORE_ON_DISK = struct.Struct("<" + _CORE_FIELDS), struct.Struct(">" + _CORE_FIELDS)
_TIMES, _FLAGS2, _LSN_FIELD, _OWN_NUMBER = (9, 10, 11, 29), 27, 26, 30
_OLD_TIMES_OF_LOG = struct.Struct("<ii")


def buffer_head(head: bytes) -> tuple[int, int, int, int]:
    """Flags, length and place in bytes, and the words of the map of its changed parts."""
    flags, sectors, at, words = struct.unpack_from("<HHqI", head, 4)
    if at < 0 or BUFFER_HEAD_BYTES + 4 * words > len(head):
        raise damaged("its log has a changed block whose place is impossible")
    return flags, sectors * SECTOR, at * SECTOR, words


def core_on_disk(raw: bytes, number: int, lsn: int) -> bytes:
    """An inode's core, which the log keeps in the byte order of the machine, as it is on disk."""
    values = list(_CORE_OF_LOG.unpack_from(raw))
    if values[_OWN_NUMBER] != number:
        raise damaged(f"its log has a broken copy of inode {number}")
    values[0] = INODE_MAGIC
    values[_LSN_FIELD] = lsn
    if not values[_FLAGS2] & BIG_TIMES:
        for place in _TIMES:
            seconds, nanos = _OLD_TIMES_OF_LOG.unpack(values[place].to_bytes(8, "little"))
            values[place] = (seconds & 0xFFFFFFFF) << 32 | nanos & 0xFFFFFFFF
    return _CORE_ON_DISK.pack(*values)


def root_on_disk(raw: bytes, room: int, number: int) -> bytes:
    """The root of an extent tree, which the log keeps as the kernel has it in memory, as it is on disk."""
    entries = int.from_bytes(raw[6:8])
    there = (len(raw) - _TREE_HEAD_BYTES) // 16
    possible = (room - 4) // 16
    if entries > min(there, possible) or there < 1:
        raise damaged(f"its log gives inode {number} an impossible extent tree")
    keys = raw[_TREE_HEAD_BYTES : _TREE_HEAD_BYTES + 8 * entries]
    pointers_at = _TREE_HEAD_BYTES + 8 * there
    pointers = raw[pointers_at : pointers_at + 8 * entries]
    return raw[4:8] + keys.ljust(8 * possible, b"\0") + pointers
