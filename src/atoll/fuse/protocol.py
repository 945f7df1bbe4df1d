"""The kernel's side of FUSE: requests as they come from /dev/fuse, answers as they go back.

Source: include/uapi/linux/fuse.h, protocol 7.31 and later (Linux 5.4). All
numbers are in the byte order of the machine.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

from atoll.fuse.interface import Attributes

MAJOR, MINOR, LEAST_MINOR = 7, 40, 31
MAX_READ_BYTES = 1 << 20
REQUEST_BYTES = MAX_READ_BYTES + 4096
ROOT_ID = 1
FOREVER_SECONDS = 365 * 86400
"""How long the kernel may keep what it was told: nothing served ever changes."""

_REQUEST = struct.Struct("=IIQQIIIHH")
_ANSWER = struct.Struct("=IiQ")
_ATTRIBUTES = struct.Struct("=QQQqqqIIIIIIIIII")
_ENTRY = struct.Struct("=QQQQII")
_ATTRIBUTES_HEAD = struct.Struct("=QII")
_DIRENT = struct.Struct("=QQII")
_INIT = struct.Struct("=IIIIHHIIHHII24x")
_STATFS = struct.Struct("=QQQQQIIII24x")
_OPEN = struct.Struct("=QIi")
_READ = struct.Struct("=QQI")
_SEEK = struct.Struct("=QQI")
_WRITE = struct.Struct("=QQIIQII")
_SIZE = struct.Struct("=II")

_ASYNC_READ, _BIG_WRITES, _READDIRPLUS, _ASYNC_DIRECT = 1 << 0, 1 << 5, 1 << 13, 1 << 15
_PARALLEL_DIRECTORIES, _MAX_PAGES, _CACHE_SYMLINKS = 1 << 18, 1 << 22, 1 << 23
_INIT_EXTENDED, _DIRECT_MMAP = 1 << 30, 1 << 36
_WANTED = (
    _ASYNC_READ
    | _BIG_WRITES
    | _READDIRPLUS
    | _ASYNC_DIRECT
    | _PARALLEL_DIRECTORIES
    | _MAX_PAGES
    | _CACHE_SYMLINKS
    | _INIT_EXTENDED
    | _DIRECT_MMAP
)
_DIRECT_IO, _KEEP_CACHE, _CACHE_DIRECTORY, _PARALLEL_WRITES = 1, 2, 8, 64


class Operation(IntEnum):
    """What the kernel may ask for, of a tree in which at most the content of files can be written."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    GETXATTR = 22
    LISTXATTR = 23
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44
    LSEEK = 46


class Request(NamedTuple):
    """A request: `unique` names it in the answer, `node` is the number of the node it is about."""

    operation: int
    unique: int
    node: int
    body: bytes


class Range(NamedTuple):
    """What is read of a file, or from which name on and how many bytes of a directory."""

    offset: int
    length: int


def parse(raw: memoryview) -> Request:
    """A request as it was read from the device."""
    _, operation, unique, node, *_ = _REQUEST.unpack_from(raw)
    return Request(operation, unique, node, bytes(raw[_REQUEST.size :]))


def answer_head(unique: int, length: int, error: int = 0) -> bytes:
    """What goes before `length` bytes of answer; `error` is an errno."""
    return _ANSWER.pack(_ANSWER.size + length, -error, unique)


def name_of(body: bytes) -> bytes:
    """The name a LOOKUP asks for."""
    return body.rstrip(b"\0")


def range_of(body: bytes) -> Range:
    """What READ, READDIR and READDIRPLUS ask for."""
    _, offset, length = _READ.unpack_from(body)
    return Range(offset, length)


def write_of(body: bytes) -> tuple[int, memoryview]:
    """(offset, bytes) of a WRITE."""
    _, offset, length, *_ = _WRITE.unpack_from(body)
    return offset, memoryview(body)[_WRITE.size : _WRITE.size + length]


def seek_of(body: bytes) -> tuple[int, int]:
    """(offset, whence) of an LSEEK, SEEK_DATA or SEEK_HOLE."""
    _, offset, whence = _SEEK.unpack_from(body)
    return offset, whence


def forgotten(request: Request) -> list[tuple[int, int]]:
    """(node, how many of its answers) the kernel no longer remembers."""
    if request.operation == Operation.FORGET:
        return [(request.node, struct.unpack_from("=Q", request.body)[0])]
    (count, _) = struct.unpack_from("=II", request.body)
    return list(struct.iter_unpack("=QQ", request.body[8 : 8 + 16 * count]))


def interrupted(body: bytes) -> int:
    """Which request an INTERRUPT is about."""
    return int(struct.unpack_from("=Q", body)[0])


def xattr_wanted(body: bytes) -> tuple[int, bytes]:
    """(room in bytes, name) of GETXATTR; the name is empty for LISTXATTR."""
    return _SIZE.unpack_from(body)[0], name_of(body[_SIZE.size :])


def minor_of(body: bytes) -> tuple[int, int]:
    """The kernel's version of the protocol, from its INIT."""
    major, minor = struct.unpack_from("=II", body)
    return major, minor


def init_answer(body: bytes) -> bytes:
    """What of the kernel's offers is taken: large and parallel reads, listings with attributes."""
    _, minor, readahead, low = struct.unpack_from("=4I", body)
    offered = low
    if low & _INIT_EXTENDED and len(body) >= 20:
        offered |= int(struct.unpack_from("=I", body, 16)[0]) << 32
    flags = _WANTED & offered
    return _INIT.pack(
        MAJOR,
        min(minor, MINOR),
        readahead,
        flags & 0xFFFFFFFF,
        1024,  # requests in the background: those of a slow guest must leave others room
        768,  # from which on the kernel calls the file system congested
        MAX_READ_BYTES,
        1,  # nanoseconds
        MAX_READ_BYTES // 4096,
        0,
        flags >> 32,
        0,
    )


def attributes_answer(attributes: Attributes) -> bytes:
    """What GETATTR gets."""
    return _ATTRIBUTES_HEAD.pack(FOREVER_SECONDS, 0, 0) + _packed(attributes)


def entry_answer(node: int, attributes: Attributes) -> bytes:
    """What LOOKUP gets: the node's number and attributes."""
    return _ENTRY.pack(node, 0, FOREVER_SECONDS, FOREVER_SECONDS, 0, 0) + _packed(attributes)


NO_ENTRY = bytes(_ENTRY.size + _ATTRIBUTES.size)
"""In a listing with attributes: a name that must be looked up to learn more of it."""


def directory_entry(inode: int, following: int, mode: int, name: bytes) -> bytes:
    """A name in a listing; `following` is where a listing from the next one on begins."""
    head = _DIRENT.pack(inode, following, len(name), mode >> 12)
    return head + name + bytes(-len(name) % 8)


def open_answer(*, uncached: bool, directory: bool) -> bytes:
    """What OPEN and OPENDIR get."""
    if directory:
        return _OPEN.pack(0, _KEEP_CACHE | _CACHE_DIRECTORY, 0)
    # Direct writes side by side: of those that overlap nobody promises an order.
    return _OPEN.pack(0, _DIRECT_IO | _PARALLEL_WRITES if uncached else _KEEP_CACHE, 0)


def statfs_answer() -> bytes:
    """A full file system: nothing can be added."""
    return _STATFS.pack(0, 0, 0, 0, 0, 4096, 255, 4096, 0)


def number_answer(value: int) -> bytes:
    """An offset, what LSEEK gets."""
    return struct.pack("=Q", value)


def size_answer(size: int) -> bytes:
    """How much room an extended attribute, or the list of their names, needs; how much was written."""
    return _SIZE.pack(size, 0)


def _packed(a: Attributes) -> bytes:
    major, minor = a.device
    device = (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF & 0xFFFFFFFF) << 12
    return _ATTRIBUTES.pack(
        a.inode,
        a.size,
        -(-a.allocated_bytes // 512),
        *(a.atime.seconds, a.mtime.seconds, a.ctime.seconds),
        *(a.atime.nanos, a.mtime.nanos, a.ctime.nanos),
        *(a.mode, a.nlink, a.uid, a.gid, device & 0xFFFFFFFF, 4096, 0),
    )
