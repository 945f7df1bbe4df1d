"""Extended attributes of XFS inodes under the names that the kernel lists to root, ACLs in its encoding.

Source: XFS Algorithms & Data Structures, "Extended Attributes"; fs/xfs/xfs_acl.c, xfs_xattr.c.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from atoll.filesystems.xfs_content import Run, attribute_runs
from atoll.filesystems.xfs_layout import LOCAL, Inode, Layout
from atoll.filesystems.xfs_superblock import damaged
from atoll.model.errors import UnsupportedFormatError

_ROOT, _SECURE, _LOCAL, _PARENT, _INCOMPLETE = 0x2, 0x4, 0x1, 0x8, 0x80
_LEAF, _OLD_LEAF, _NODE, _OLD_NODE = 0x3BEE, 0xFBEE, 0x3EBE, 0xFEBE
_CHECKSUM, _VALUE_CHECKSUM = 12, 12
_VALUE_MAGIC, _VALUE_HEAD_BYTES = b"XARM", 56
_MAX_LEVELS = 5  # XFS_DA_NODE_MAXDEPTH
_MAX_VALUE_BYTES = 64 << 10
_MAX_TOGETHER_BYTES = 64 << 20
_ACLS = {
    b"SGI_ACL_FILE": "system.posix_acl_access",
    b"SGI_ACL_DEFAULT": "system.posix_acl_default",
}
_ACL_USER, _ACL_GROUP = 0x02, 0x08
_NO_ID = 0xFFFFFFFF
_ACL_VERSION = 2

Xattrs = tuple[tuple[str, bytes], ...]


class _Raw(NamedTuple):
    flags: int
    name: bytes
    value: bytes


def attributes(layout: Layout, inode: Inode) -> Xattrs:
    """All attributes; an ACL both as one and, as the kernel does, under `trusted.`, where XFS keeps it."""
    if not inode.attributes:
        return ()  # as of most, so it has to be quick
    if inode.attribute_format == LOCAL:
        raws = _short(inode)
    elif inode.attribute_extents:
        raws = _large(layout, inode)
    else:
        return ()
    found: list[tuple[str, bytes]] = []
    together = 0
    for raw in raws:
        if raw.flags & (_PARENT | _INCOMPLETE):
            continue
        together += len(raw.name) + len(raw.value)
        if together > _MAX_TOGETHER_BYTES:
            raise UnsupportedFormatError(
                f"Inode {inode.number} has more than {_MAX_TOGETHER_BYTES >> 20} MiB of extended"
                " attributes, which is more than are read; restore the whole disk to get at them."
            )
        if raw.flags & _ROOT:
            if raw.name in _ACLS:
                found.append((_ACLS[raw.name], _kernel_acl(raw.value)))
            prefix = "trusted."
        else:
            prefix = "security." if raw.flags & _SECURE else "user."
        found.append((prefix + raw.name.decode("utf-8", "surrogateescape"), raw.value))
    return tuple(found)


def _short(inode: Inode) -> Iterator[_Raw]:
    raw = inode.attributes
    if len(raw) < 4:
        raise damaged(f"inode {inode.number} has no room for its attributes")
    count, at = raw[2], 4
    for _ in range(count):
        end = at + 3
        if end > len(raw):
            raise damaged(f"inode {inode.number} has attributes beyond its end")
        name_length, value_length, flags = raw[at], raw[at + 1], raw[at + 2]
        middle = end + name_length
        if not name_length or middle + value_length > len(raw):
            raise damaged(f"inode {inode.number} has attributes beyond its end")
        yield _Raw(flags, raw[end:middle], raw[middle : middle + value_length])
        at = middle + value_length


def _large(layout: Layout, inode: Inode) -> Iterator[_Raw]:
    """Attributes in blocks of their own: the leaves, from the first on."""
    fork = _Fork(layout, inode)
    number, level = 0, _MAX_LEVELS + 1
    checked = layout.geometry.checked
    while True:
        block = fork.block(number)
        (kind,) = struct.unpack_from(">H", block, 8)
        if kind == (_LEAF if checked else _OLD_LEAF):
            break
        if kind != (_NODE if checked else _OLD_NODE):
            raise damaged(f"an attribute block of inode {inode.number} is not one")
        at = 56 if checked else 12
        entries, itself = struct.unpack_from(">HH", block, at)
        if not entries or not 0 < itself < level:
            raise damaged(f"the attributes of inode {inode.number} have an impossible index")
        level = itself
        (number,) = struct.unpack_from(">I", block, at + (8 if checked else 4) + 4)
    seen = set()
    while True:
        seen.add(number)
        yield from _leaf(fork, block)
        (number,) = struct.unpack_from(">I", block)
        if not number:
            return
        if number in seen:
            raise damaged(f"the attributes of inode {inode.number} have a loop")
        block = fork.block(number)
        if struct.unpack_from(">H", block, 8)[0] != (_LEAF if checked else _OLD_LEAF):
            raise damaged(f"an attribute block of inode {inode.number} is not one")


class _Fork:
    """The blocks of an attribute fork by their place in it."""

    def __init__(self, layout: Layout, inode: Inode) -> None:
        self.layout = layout
        self.number = inode.number
        self._runs: list[Run] = list(attribute_runs(layout, inode))

    def place(self, number: int) -> int:
        """Where a block lies, in bytes."""
        for run in self._runs:
            if run.logical <= number < run.logical + run.blocks:
                return run.at + (number - run.logical) * self.layout.geometry.block_size
        raise damaged(f"the attributes of inode {self.number} lack block {number}")

    def block(self, number: int) -> bytes:
        """A block of the tree of attributes."""
        size = self.layout.geometry.block_size
        return self.layout.checked(self.place(number), size, _CHECKSUM)

    def value(self, number: int, length: int) -> bytes:
        """A large value, which begins with block `number`."""
        known = self.layout.geometry
        if length > _MAX_VALUE_BYTES:
            raise damaged(f"inode {self.number} has an attribute of impossible size")
        value = bytearray()
        while len(value) < length:
            at = self.place(number)
            wanted = min(length - len(value), known.block_size)
            if known.checked:
                wanted = min(wanted, known.block_size - _VALUE_HEAD_BYTES)
                raw = self.layout.checked(at, known.block_size, _VALUE_CHECKSUM)
                magic, offset, size = struct.unpack_from(">4sII", raw)
                if magic != _VALUE_MAGIC or offset != len(value) or size != wanted:
                    raise damaged(f"a large attribute of inode {self.number} is not one")
                raw = raw[_VALUE_HEAD_BYTES:]
            else:
                raw = self.layout.read(at, known.block_size)
            value += raw[:wanted]
            number += 1
        return bytes(value)


def _leaf(fork: _Fork, block: bytes) -> Iterator[_Raw]:
    head, at = (56, 80) if fork.layout.geometry.checked else (12, 32)
    (count,) = struct.unpack_from(">H", block, head)
    if at + 8 * count > len(block):
        raise damaged(f"an attribute block of inode {fork.number} has too many entries")
    for _, place, flags, _ in struct.iter_unpack(">IHBB", block[at : at + 8 * count]):
        if flags & _LOCAL:
            if place + 3 > len(block):
                raise damaged(f"an attribute of inode {fork.number} ends outside its block")
            value_length, name_length = struct.unpack_from(">HB", block, place)
            name_at = place + 3
            end = name_at + name_length + value_length
            value = block[name_at + name_length : end]
        else:
            if place + 9 > len(block):
                raise damaged(f"an attribute of inode {fork.number} ends outside its block")
            number, value_length, name_length = struct.unpack_from(">IIB", block, place)
            name_at = place + 9
            end = name_at + name_length
            value = b""
            if not flags & (_INCOMPLETE | _PARENT):
                value = fork.value(number, value_length)
        if not name_length or end > len(block):
            raise damaged(f"an attribute of inode {fork.number} ends outside its block")
        yield _Raw(flags, block[name_at : name_at + name_length], value)


def _kernel_acl(raw: bytes) -> bytes:
    """On disk a count and entries of 12 bytes, big-endian; for the kernel's callers 8, little-endian."""
    if len(raw) < 4:
        raise damaged("an access control list is cut off")
    (count,) = struct.unpack_from(">I", raw)
    if 4 + 12 * count > len(raw):
        raise damaged("an access control list is cut off")
    result = [struct.pack("<I", _ACL_VERSION)]
    for tag, owner, permissions in struct.iter_unpack(">IIHxx", raw[4 : 4 + 12 * count]):
        named = tag in (_ACL_USER, _ACL_GROUP)
        result.append(struct.pack("<HHI", tag & 0xFFFF, permissions, owner if named else _NO_ID))
    return b"".join(result)
