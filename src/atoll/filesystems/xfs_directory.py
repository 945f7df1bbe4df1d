"""Names in XFS directories: in the inode, or in data blocks. The index blocks behind those are not needed.

Source: XFS Algorithms & Data Structures, "Directories"; fs/xfs/libxfs/xfs_da_format.h.
"""

import struct
from collections.abc import Iterator

from atoll.filesystems.xfs_content import data_runs
from atoll.filesystems.xfs_layout import LOCAL, Inode, Layout
from atoll.filesystems.xfs_superblock import damaged

INDEX_AT = 32 << 30  # the byte of a directory from which its index lies
HEADS = {b"XDB3": 64, b"XDD3": 64, b"XD2B": 16, b"XD2D": 16}
CHECKED = (b"XDB3", b"XDD3")
SINGLE = (b"XDB3", b"XD2B")  # with the index in the same block
_CHECKSUM = 4
_UNUSED = b"\xff\xff"
_OWN = (b".", b"..")


def names(layout: Layout, inode: Inode) -> Iterator[tuple[bytes, int]]:
    """(name, inode) of each name but `.` and `..`; UnsupportedFormatError, perhaps after some."""
    if not inode.is_directory:
        raise damaged(f"inode {inode.number} is not a directory")
    if inode.format == LOCAL:
        yield from _short(layout, inode)
        return
    for block in _blocks(layout, inode):
        yield from _entries(layout, inode.number, block)


def _short(layout: Layout, inode: Inode) -> Iterator[tuple[bytes, int]]:
    raw = inode.data[: inode.size]
    if len(raw) < inode.size or len(raw) < 6:
        raise damaged(f"directory {inode.number} does not fit into its inode")
    count, wide = raw[0], raw[1]
    width = 8 if wide else 4
    at = 2 + width
    kind = 1 if layout.geometry.kinds_in_directories else 0
    for _ in range(count):
        length = raw[at] if at < len(raw) else 0
        end = at + 3 + length + kind + width
        if not length or end > len(raw):
            raise damaged(f"directory {inode.number} has a name that does not fit into it")
        name = raw[at + 3 : at + 3 + length]
        _check(name, inode.number)
        yield name, int.from_bytes(raw[end - width : end])
        at = end


def _blocks(layout: Layout, inode: Inode) -> Iterator[bytes]:
    """The data blocks of a directory, of which each may lie in several pieces."""
    known = layout.geometry
    size, step = known.directory_block_size, known.block_size
    per_block = size // step
    pieces: list[tuple[int, int]] = []
    for run in data_runs(layout, inode):
        if run.logical * step >= INDEX_AT:
            return
        if run.unwritten:
            raise damaged(f"directory {inode.number} has a block that was never written")
        first, count, at = run.logical, run.blocks, run.at
        while count:
            inside = first % per_block
            if inside != sum(length for _, length in pieces):
                raise damaged(f"directory {inode.number} has a part of a block only")
            taken = min(count, per_block - inside)
            pieces.append((at, taken))
            if inside + taken == per_block:
                yield _block(layout, pieces)
                pieces = []
            first, count, at = first + taken, count - taken, at + taken * step
    if pieces:
        raise damaged(f"directory {inode.number} has a part of a block only")


def _block(layout: Layout, pieces: list[tuple[int, int]]) -> bytes:
    known = layout.geometry
    if len(pieces) == 1:
        return layout.checked(pieces[0][0], known.directory_block_size, _CHECKSUM)
    raw = b"".join(layout.read(at, count * known.block_size) for at, count in pieces)
    fresh = any(layout.fresh(at, count * known.block_size) for at, count in pieces)
    if known.checked and not fresh:
        layout.verify(raw, _CHECKSUM, pieces[0][0])
    return raw


def _entries(layout: Layout, number: int, block: bytes) -> Iterator[tuple[bytes, int]]:
    magic = block[:4]
    if magic not in HEADS or (magic in CHECKED) != layout.geometry.checked:
        raise damaged(f"a block of directory {number} is not one")
    at, end = HEADS[magic], len(block)
    if magic in SINGLE:
        index, _ = struct.unpack_from(">II", block, end - 8)
        end -= 8 + 8 * index
        if end < at:
            raise damaged(f"directory {number} has an index larger than its block")
    # Number, length, name, kind, and a tag of two bytes, in multiples of eight.
    extra = 9 + 2 + 7 + (1 if layout.geometry.kinds_in_directories else 0)
    unpack = struct.Struct(">QB").unpack_from
    while at + 16 <= end:
        if block[at : at + 2] == _UNUSED:
            length = int.from_bytes(block[at + 2 : at + 4])
            if length < 8 or length % 8 or at + length > end:
                raise damaged(f"directory {number} has a gap that does not fit into it")
            at += length
            continue
        child, length = unpack(block, at)
        name = block[at + 9 : at + 9 + length]
        at += length + extra & ~7
        if at > end:
            raise damaged(f"directory {number} has a name that does not fit into it")
        if name in _OWN:
            continue
        _check(name, number)
        yield name, child


def _check(name: bytes, number: int) -> None:
    if not name or b"/" in name or b"\0" in name or name in _OWN:
        raise damaged(f"directory {number} has an impossible name in it")
