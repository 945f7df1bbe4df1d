"""ext2/3/4 superblock, group descriptors and inodes. Source: kernel.org ext4 disk layout.

dissect.extfs checks the superblock; inodes are read here because its structures
lose the sign and epoch of times and take every inode for 256 bytes long.
"""

import io
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from dissect.extfs import ExtFS

from atoll.filesystems.interface import Blocks
from atoll.model.errors import UnsupportedFormatError

INLINE_DATA = 0x10000000
EXTENTS = 0x80000
ENCRYPTED = 0x800
COMPRESSED = 0x4
NEEDS_RECOVERY = 0x4
LARGE_DIRECTORIES = 0x4000
DIRECTORY_TYPES = 0x2
_64BIT = 0x80
_META_GROUPS = 0x10
# filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir,
# inline_data, encrypt (its files are refused one by one), casefold
_KNOWN_INCOMPAT = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000
_KNOWN_INCOMPAT |= 0x8000 | 0x10000 | 0x20000
_BIGALLOC = 0x200
_HAS_JOURNAL = 0x4
_GROUP_CHECKSUMS = 0x10 | 0x400  # with one of these, groups say what of them was never used
_UNUSED_TABLE = 0x1
_BASE_INODE_BYTES = 128
_HUGE_FILES = 0x8
_HUGE_FILE = 0x40000
_SECTOR = 512
_KEPT_TABLES = 4096
_NO_FINER = (0, 0, 0)


def damaged(what: str) -> UnsupportedFormatError:
    """The error for a structure that contradicts itself or its surroundings."""
    return UnsupportedFormatError(f"The ext4 file system is damaged: {what}.")


class Inode(NamedTuple):
    """An inode as it is on disk, with times in nanoseconds and ids whole.

    `block` are the 60 bytes of the block map, `attributes` the raw bytes behind
    the fixed fields, `attribute_block` the block of further attributes or 0.
    """

    number: int
    mode: int
    uid: int
    gid: int
    size: int
    allocated_bytes: int
    nlink: int
    flags: int
    block: bytes
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    attributes: bytes
    attribute_block: int

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


class Stream(io.RawIOBase):
    """`Blocks` as the file object dissect reads."""

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        self._blocks = blocks
        self._at = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; dissect seeks from the start alone."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._blocks.size_bytes}
        self._at = base[whence] + offset
        return self._at

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Bytes from here on."""
        data = self._blocks.read(self._at, self._blocks.size_bytes if size < 0 else size)
        self._at += len(data)
        return data


class Layout:
    """Where things are on one ext file system; `block_count` and `block_size` bound them."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        try:
            volume = ExtFS(Stream(blocks))
        except NotImplementedError as error:
            raise UnsupportedFormatError(
                "The ext4 file system has clusters larger than blocks (bigalloc), which Atoll does"
                " not read; restore the whole disk instead."
            ) from error
        superblock = volume.sb
        self.incompat = int(superblock.s_feature_incompat)
        unknown = self.incompat & ~_KNOWN_INCOMPAT
        if unknown or superblock.s_feature_ro_compat & _BIGALLOC:
            raise UnsupportedFormatError(
                f"The ext4 file system uses features Atoll does not know ({unknown:#x});"
                " restore the whole disk instead."
            )
        self.kind = f"ext{volume.type}"
        self.label = str(volume.volume_name)
        self.uuid = str(volume.uuid)
        self.has_journal = bool(superblock.s_feature_compat & _HAS_JOURNAL)
        self.journal_inode = int(superblock.s_journal_inum)
        self.block_size = int(volume.block_size)
        self._huge_files = bool(superblock.s_feature_ro_compat & _HUGE_FILES)
        self.block_count = int(superblock.s_blocks_count_lo)
        if self.incompat & _64BIT:
            self.block_count |= int(superblock.s_blocks_count_hi) << 32
        self.inode_count = int(superblock.s_inodes_count)
        self._inodes_per_group = int(superblock.s_inodes_per_group)
        self._blocks_per_group = int(superblock.s_blocks_per_group)
        self._first_block = int(superblock.s_first_data_block)
        self._first_meta_group = int(superblock.s_first_meta_bg)
        dynamic = superblock.s_rev_level >= 1
        self.inode_size = int(superblock.s_inode_size) if dynamic else _BASE_INODE_BYTES
        self._counts_unused = bool(superblock.s_feature_ro_compat & _GROUP_CHECKSUMS)
        self._group_size = int(superblock.s_desc_size) if self.incompat & _64BIT else 32
        self._tables: dict[int, int] = {}
        self._table_block: tuple[int, bytes] = (-1, b"")
        if not 1024 <= self.block_size <= 65536 or self.block_count > 1 << 48:
            raise damaged("its block size or size is impossible")
        if not (
            _BASE_INODE_BYTES <= self.inode_size <= self.block_size
            and self.inode_size & (self.inode_size - 1) == 0
        ):
            raise damaged(f"its inodes are said to be {self.inode_size} bytes long")
        least = 64 if self.incompat & _64BIT else 32
        if not least <= self._group_size <= self.block_size:
            raise damaged(f"its group descriptors are said to be {self._group_size} bytes long")

    def read_blocks(self, first: int, count: int = 1) -> bytes:
        """Whole blocks; UnsupportedFormatError outside the file system or past a cut-off end."""
        if first <= 0 or first + count > self.block_count:
            raise damaged(f"it points at block {first}, outside itself")
        length = count * self.block_size
        data = self.blocks.read(first * self.block_size, length)
        if len(data) != length:
            raise damaged("it is larger than the partition it is in")
        return data

    def inode(self, number: int) -> Inode:
        """Read an inode by number."""
        if not 1 <= number <= self.inode_count:
            raise damaged(f"it names inode {number} of {self.inode_count}")
        group, index = divmod(number - 1, self._inodes_per_group)
        at = index * self.inode_size
        block = self._inode_table(group) + at // self.block_size
        at %= self.block_size
        # Asked for in the order of their numbers, most lie in the block that the last one did.
        if self._table_block[0] != block:
            self._table_block = (block, self.read_blocks(block))
        return self._parse(number, self._table_block[1][at : at + self.inode_size])

    def _inode_table(self, group: int) -> int:
        table = self._tables.get(group)
        if table is None:
            if len(self._tables) >= _KEPT_TABLES:
                self._tables.clear()
            table = self._tables[group] = self._find_inode_table(group)
        return table

    @property
    def large_directories(self) -> bool:
        """Whether directories have sizes of 64 bits, as files do."""
        return bool(self.incompat & LARGE_DIRECTORIES)

    def inode_tables(self, most_bytes: int) -> Iterator[tuple[int, bytes]]:
        """All inodes that were ever used: a first number, and whole blocks of inodes from it on."""
        per_block = self.block_size // self.inode_size
        groups = -(-self.inode_count // self._inodes_per_group)
        if groups > self.block_count:
            raise damaged("it has more groups than blocks")
        for group in range(groups):
            first = group * self._inodes_per_group
            used = min(self._inodes_per_group, self.inode_count - first) - self._unused(group)
            table = self._inode_table(group) if used > 0 else 0
            step = max(most_bytes // self.block_size, 1)
            for block in range(0, -(-used // per_block), step):
                number = block * per_block
                count = min(step, -(-(used - number) // per_block))
                raw = self.read_blocks(table + block, count)
                yield first + number + 1, raw[: (used - number) * self.inode_size]

    def _unused(self, group: int) -> int:
        """How many inodes at the end of a group never were in use."""
        if not self._counts_unused:
            return 0
        raw = self._descriptor(group)
        (flags,) = struct.unpack_from("<H", raw, 18)
        if flags & _UNUSED_TABLE:
            return self._inodes_per_group
        unused = int.from_bytes(raw[28:30], "little")
        if self._group_size >= 64:
            unused |= int.from_bytes(raw[50:52], "little") << 16
        return unused

    def _find_inode_table(self, group: int) -> int:
        raw = self._descriptor(group)
        table = int.from_bytes(raw[8:12], "little")
        if self._group_size >= 64:
            table |= int.from_bytes(raw[40:44], "little") << 32
        return table

    def _descriptor(self, group: int) -> bytes:
        per_block = self.block_size // self._group_size
        meta, index = divmod(group, per_block)
        if self.incompat & _META_GROUPS and meta >= self._first_meta_group:
            # The descriptors of a meta group begin its first group, behind a backup superblock.
            first = meta * per_block
            block = self._first_block + first * self._blocks_per_group + _has_backup(first)
        else:
            block = self._first_block + 1 + meta
        return self.read_blocks(block)[index * self._group_size : (index + 1) * self._group_size]

    def _parse(self, number: int, raw: bytes) -> Inode:
        mode, uid, size, atime, ctime, mtime, _, gid, nlink, sectors, flags, _ = struct.unpack_from(
            "<HHIiiiIHHIII", raw
        )
        _, attribute_block, size_high, _, sectors_high, attributes_high, uid_high, gid_high = (
            struct.unpack_from("<IIIIHHHH", raw, 100)
        )
        # Only with the feature `huge_file` has the count more bits, and for marked inodes in blocks.
        if self._huge_files:
            sectors |= sectors_high << 32
        in_blocks = self._huge_files and flags & _HUGE_FILE
        # Only files, and directories of file systems with `largedir`, have large sizes;
        # elsewhere the field has had other meanings.
        if stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and self.incompat & LARGE_DIRECTORIES):
            size |= size_high << 32
        if self.incompat & _64BIT:
            attribute_block |= attributes_high << 32
        extra = 0
        if self.inode_size > _BASE_INODE_BYTES:
            extra = int.from_bytes(raw[128:130], "little")
            if extra > self.inode_size - _BASE_INODE_BYTES or extra % 4:
                raise damaged(f"inode {number} has fields beyond its end")
        # Of ctime, mtime and atime in this order, as far as the inode has them.
        fields = min(max(extra - 4, 0) // 4, 3)
        finer = struct.unpack(f"<{fields}I", raw[132 : 132 + 4 * fields]) + _NO_FINER[fields:]
        return Inode(
            number=number,
            mode=mode,
            uid=uid | uid_high << 16,
            gid=gid | gid_high << 16,
            size=size,
            allocated_bytes=sectors * (self.block_size if in_blocks else _SECTOR),
            nlink=nlink,
            flags=flags,
            block=raw[40:100],
            ctime_ns=_time(ctime, finer[0]),
            mtime_ns=_time(mtime, finer[1]),
            atime_ns=_time(atime, finer[2]),
            attributes=raw[_BASE_INODE_BYTES + extra :] if extra else b"",
            attribute_block=attribute_block,
        )


def _time(seconds: int, finer: int) -> int:
    """Signed seconds, two more bits of epoch and 30 of nanoseconds."""
    return (seconds + ((finer & 3) << 32)) * 1_000_000_000 + (finer >> 2)


def _has_backup(group: int) -> int:
    """1 for groups with a copy of the superblock (sparse_super): 0, 1 and powers of 3, 5, 7."""
    if group <= 1:
        return 1
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return 1
    return 0
