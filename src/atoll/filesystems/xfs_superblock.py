"""The superblock of an XFS file system. Source: XFS Algorithms & Data Structures, "Superblocks"."""

import struct
from dataclasses import dataclass
from uuid import UUID

from atoll.filesystems.crc32c import checksums
from atoll.filesystems.interface import Blocks
from atoll.model.errors import UnsupportedFormatError

CORE_BYTES, OLD_CORE_BYTES = 176, 100

_SUPERBLOCK_BYTES = 512
_SUPERBLOCK = struct.Struct(">4sI3Q16sQQ8x8x4xIIxxxxIHHH2x12s5B")
_MORE_BITS, _LOG_V2, _DIRECTORY_V2 = 0x8000, 0x400, 0x2000
_FTYPE_V4 = 0x200
_FTYPE, _SPARSE_INODES, _META_UUID, _NEEDS_REPAIR = 0x1, 0x2, 0x4, 0x10
# ftype, sparse inodes, meta_uuid, bigtime, nrext64, exchange-range, parent pointers
_KNOWN_INCOMPAT = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80
_KNOWN_RO_COMPAT = 0x1 | 0x2 | 0x4 | 0x8  # finobt, rmapbt, reflink, inobtcount
_KNOWN_LOG_INCOMPAT = 0x1
_LEAST_LOG_BYTES, _MAX_LOG_BYTES = 256 << 10, 1 << 31


def damaged(what: str) -> UnsupportedFormatError:
    """The error for a structure that contradicts itself or its surroundings."""
    return UnsupportedFormatError(f"The XFS file system is damaged: {what}.")


def refused(what: str) -> UnsupportedFormatError:
    """The error for what is in order and is not read."""
    return UnsupportedFormatError(f"The XFS file system {what}; restore the whole disk instead.")


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the superblock says. `log_start` is in bytes, 0 for a log on another device;
    `meta_uuid` is what metadata blocks carry, `uuid` what users see."""

    version: int
    block_size: int
    block_count: int
    group_blocks: int
    group_count: int
    group_bits: int
    inode_size: int
    inode_bits: int
    directory_block_size: int
    root: int
    kinds_in_directories: bool
    sparse_inodes: bool
    label: str
    uuid: bytes
    meta_uuid: bytes
    sector_size: int
    log_start: int
    log_bytes: int
    log_v2: bool
    replayable: bool

    @property
    def checked(self) -> bool:
        """Whether blocks have checksums and inodes the larger core."""
        return self.version == 5

    @property
    def core_bytes(self) -> int:
        """Length of an inode without its forks."""
        return CORE_BYTES if self.checked else OLD_CORE_BYTES


def geometry(raw: bytes, *, fresh: bool = False) -> Geometry:
    """A superblock of 512 bytes or more.

    `fresh`: it was taken from the log, where checksums are not kept. UnsupportedFormatError for features
    that change how files are read and are not known here.
    """
    (magic, block_size, blocks, _, _, uuid, log_start, root, *_) = _SUPERBLOCK.unpack_from(raw)
    (group_blocks, groups, log_blocks, bits, sector, inode_size, label) = _SUPERBLOCK.unpack_from(
        raw
    )[8:15]
    block_bits, _, inode_log, inode_bits, group_bits = _SUPERBLOCK.unpack_from(raw)[15:]
    version = bits & 0xF
    directory_bits = raw[192]
    if magic != b"XFSB" or version not in (4, 5):
        raise refused(f"has version {version}, which Atoll does not read")
    # The checksum goes over a whole sector.
    if version == 5 and not fresh and not _superblock_is_whole(raw, sector):
        raise damaged("the checksum of its superblock is wrong")
    features2, _, _, ro_compat, incompat, log_incompat = struct.unpack_from(">6I", raw, 200)
    if version == 5:
        if incompat & _NEEDS_REPAIR:
            raise refused("is marked as in need of xfs_repair")
        unknown = incompat & ~_KNOWN_INCOMPAT
        kinds = bool(incompat & _FTYPE)
    else:
        unknown = ro_compat = log_incompat = 0
        kinds = bool(bits & _MORE_BITS and features2 & _FTYPE_V4)
        if not bits & _DIRECTORY_V2:
            raise refused("has directories of version 1, which Atoll does not read")
    if unknown:
        raise refused(f"uses features Atoll does not know ({unknown:#x})")
    if not (
        9 <= block_bits <= 16
        and block_size == 1 << block_bits
        and 8 <= inode_log <= min(11, block_bits)
        and inode_size == 1 << inode_log
        and inode_bits == block_bits - inode_log
        and block_bits + directory_bits <= 16
        and 512 <= sector <= 32768
        and sector & (sector - 1) == 0
        and (version == 4 or inode_size >= 512)
    ):
        raise damaged("its superblock gives impossible sizes")
    if not (
        groups > 0
        and 0 < group_blocks <= 1 << group_bits
        and group_bits <= 31
        and (groups - 1) * group_blocks < blocks <= groups * group_blocks
    ):
        raise damaged("its superblock gives an impossible number of blocks")
    if log_start:
        group, block = log_start >> group_bits, log_start & ((1 << group_bits) - 1)
        log_start = group * group_blocks + block
        if (
            block >= group_blocks
            or log_start + log_blocks > blocks
            or not _LEAST_LOG_BYTES <= log_blocks * block_size <= _MAX_LOG_BYTES
        ):
            raise damaged("its log is outside it")
    return Geometry(
        version=version,
        block_size=block_size,
        block_count=blocks,
        group_blocks=group_blocks,
        group_count=groups,
        group_bits=group_bits,
        inode_size=inode_size,
        inode_bits=inode_bits,
        directory_block_size=block_size << directory_bits,
        root=root,
        kinds_in_directories=kinds,
        sparse_inodes=version == 5 and bool(incompat & _SPARSE_INODES),
        label=label.split(b"\0")[0].decode("utf-8", "surrogateescape"),
        uuid=uuid,
        meta_uuid=raw[248:264] if incompat & _META_UUID and version == 5 else uuid,
        sector_size=sector,
        log_start=log_start * block_size,
        log_bytes=log_blocks * block_size,
        log_v2=bool(bits & _LOG_V2),
        replayable=not (ro_compat & ~_KNOWN_RO_COMPAT or log_incompat & ~_KNOWN_LOG_INCOMPAT),
    )


def _superblock_is_whole(raw: bytes, sector: int) -> bool:
    if sector % 512 or not 512 <= sector <= len(raw):
        return False
    return int(checksums(raw[:sector], sector, 224)[0]) == int.from_bytes(raw[224:228], "little")


def text_of_uuid(raw: bytes) -> str:
    """As `/etc/fstab` writes it."""
    return str(UUID(bytes=raw))


def read_geometry(blocks: Blocks, *, fresh: bool = False) -> Geometry:
    """The geometry of the file system that begins at offset 0."""
    raw = blocks.read(0, 32768)
    if len(raw) < _SUPERBLOCK_BYTES:
        raise damaged("it is larger than the partition it is in")
    return geometry(raw, fresh=fresh)
