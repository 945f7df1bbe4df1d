"""Extended attributes of ext2/3/4 inodes, ACLs turned into the kernel's encoding.

Sources: fs/ext4/xattr.h, fs/ext4/acl.h and include/uapi/linux/posix_acl_xattr.h.
"""

import struct
from collections.abc import Callable, Iterator

from atoll.filesystems.ext4_layout import Inode, Layout, damaged

_MAGIC = b"\x00\x00\x02\xea"
_PREFIXES = {1: "user.", 4: "trusted.", 6: "security.", 7: "system."}
_WHOLE_NAMES = {2: "system.posix_acl_access", 3: "system.posix_acl_default"}
_INLINE_DATA = "system.data"
_MAX_VALUE_BYTES = 64 << 10
_ACL_ON_DISK, _ACL_IN_KERNEL = 1, 2
_ACL_USER, _ACL_GROUP = 0x02, 0x08
_NO_ID = 0xFFFFFFFF

Contents = Callable[[int], bytes]
"""Content of the inode that holds a large value."""


def attributes(layout: Layout, inode: Inode, large: Contents) -> tuple[tuple[str, bytes], ...]:
    """All attributes a kernel would show to root, ACLs included."""
    if not inode.attribute_block and inode.attributes[:4] != _MAGIC:
        return ()  # as of most, so it has to be quick
    found = []
    for index, name, value in _raw(layout, inode, large):
        if index in _WHOLE_NAMES:
            found.append((_WHOLE_NAMES[index], _kernel_acl(value)))
        elif index in _PREFIXES and _PREFIXES[index] + name != _INLINE_DATA:
            found.append((_PREFIXES[index] + name, value))
    return tuple(found)


def inline_rest(layout: Layout, inode: Inode) -> bytes:
    """What of an inline file or directory did not fit into the block map."""
    entries = _entries(inode.attributes[4:], 0, inode.attributes[4:], None)
    if inode.attributes[:4] == _MAGIC:
        for index, name, value in entries:
            if _PREFIXES.get(index, "") + name == _INLINE_DATA:
                return value
    return b""


def _raw(layout: Layout, inode: Inode, large: Contents) -> Iterator[tuple[int, str, bytes]]:
    if inode.attributes[:4] == _MAGIC:
        area = inode.attributes[4:]
        yield from _entries(area, 0, area, large)
    if inode.attribute_block:
        block = layout.read_blocks(inode.attribute_block)
        if block[:4] != _MAGIC:
            raise damaged(f"the attribute block of inode {inode.number} is not one")
        yield from _entries(block, 32, block, large)


def _entries(
    area: bytes, at: int, values: bytes, large: Contents | None
) -> Iterator[tuple[int, str, bytes]]:
    while at + 16 <= len(area) and area[at : at + 4] != b"\0\0\0\0":
        name_length, index, offset, holder, size, _ = struct.unpack_from("<BBHIII", area, at)
        name = area[at + 16 : at + 16 + name_length]
        if holder:
            if large is None or size > _MAX_VALUE_BYTES:
                raise damaged("an extended attribute has an impossible size")
            value = large(holder)[:size]
        else:
            value = values[offset : offset + size]
        if len(name) != name_length or len(value) != size:
            raise damaged("an extended attribute ends outside its area")
        yield index, name.decode("utf-8", "surrogateescape"), value
        at += (16 + name_length + 3) & ~3


def _kernel_acl(raw: bytes) -> bytes:
    """On disk an entry without an id is 4 bytes long, with one 8; for the kernel all are 8."""
    if len(raw) < 4 or struct.unpack_from("<I", raw)[0] != _ACL_ON_DISK:
        raise damaged("an access control list has an unknown version")
    result = [struct.pack("<I", _ACL_IN_KERNEL)]
    at = 4
    while at < len(raw):
        if at + 4 > len(raw):
            raise damaged("an access control list is cut off")
        tag, permissions = struct.unpack_from("<HH", raw, at)
        owner = _NO_ID
        at += 4
        if tag in (_ACL_USER, _ACL_GROUP):
            if at + 4 > len(raw):
                raise damaged("an access control list is cut off")
            (owner,) = struct.unpack_from("<I", raw, at)
            at += 4
        result.append(struct.pack("<HHI", tag, permissions, owner))
    return b"".join(result)
