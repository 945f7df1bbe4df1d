"""The few btrfs ioctls the engine lives on (layouts: linux/btrfs.h and linux/btrfs_tree.h)."""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from atoll.model.errors import PoolFullError, StorageUnreachableError

_MAGIC = 0x94
_WRITE, _READ_WRITE, _READ = 1, 3, 2


def _ioctl_number(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | _MAGIC << 8 | number


_SUBVOL_CREATE = _ioctl_number(_WRITE, 14, 4096)
_SNAP_DESTROY = _ioctl_number(_WRITE, 15, 4096)
_SNAP_CREATE_V2 = _ioctl_number(_WRITE, 23, 4096)
_TREE_SEARCH_V2 = _ioctl_number(_READ_WRITE, 17, 112)
_FS_INFO = _ioctl_number(_READ, 31, 1024)

_SUBVOL_RDONLY = 2
_SUBVOLUME_INODE = 256
"""Every subvolume's root directory has this inode number (BTRFS_FIRST_FREE_OBJECTID)."""

_EXTENT_DATA = 108
_INLINE, _REGULAR = 0, 1
_SEARCH_KEY = struct.Struct("=QQQQQQQIIII32xQ")
_SEARCH_COUNT = struct.Struct("=64xI")
_SEARCH_HEADER = struct.Struct("=QQQII")
_FILE_EXTENT = struct.Struct("<QQBBHB")
_FILE_EXTENT_ON_DISK = struct.Struct("<QQQQ")
_SEARCH_BUFFER_BYTES = 1 << 18
_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True)
class FileExtent:
    """Where a range of a file lies.

    `origin` is None where it reads as zeros. Two ranges of files at the same
    offset, alive at the same time, hold the same bytes if their origins are
    equal: btrfs never overwrites what more than one snapshot refers to. The
    reverse does not hold.
    """

    offset: int
    length: int
    origin: tuple[int, int] | None


@contextmanager
def pool_errors(action: str) -> Iterator[None]:
    """Turn the file system's errors into Atoll's; `action` reads like "snapshot LUN group g"."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PoolFullError(
                f"Could not {action}: the pool is full; delete snapshots or add a disk."
            ) from error
        raise StorageUnreachableError(
            f"Could not {action}: {error.strerror}"
            f"{f' ({error.filename})' if error.filename else ''}; "
            "check the pool's file system and disks."
        ) from error


def is_btrfs(path: Path) -> bool:
    """Whether the directory lies on btrfs; OSError if it cannot be opened."""
    with _directory(path) as directory:
        try:
            fcntl.ioctl(directory, _FS_INFO, bytearray(1024))
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EINVAL):
                return False
            raise
    return True


def is_subvolume(path: Path) -> bool:
    """Whether `path` is the root of a subvolume; False when there is nothing."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return status.st_ino == _SUBVOLUME_INODE and path.is_dir()


def create_subvolume(path: Path) -> None:
    """Create an empty subvolume; OSError, FileExistsError among them."""
    arguments = bytearray(4096)
    _put_name(arguments, 8, path.name)
    with _directory(path.parent) as parent:
        fcntl.ioctl(parent, _SUBVOL_CREATE, arguments)


def snapshot(source: Path, path: Path, *, read_only: bool) -> None:
    """Snapshot the subvolume `source` as `path`; on return it is on disk. OSError."""
    arguments = bytearray(4096)
    with _directory(source) as origin, _directory(path.parent) as parent:
        struct.pack_into("=qQQ", arguments, 0, origin, 0, _SUBVOL_RDONLY if read_only else 0)
        _put_name(arguments, 56, path.name)
        fcntl.ioctl(parent, _SNAP_CREATE_V2, arguments)


def destroy_subvolume(path: Path) -> None:
    """Remove a subvolume, read-only or not; absent is success. On return it stays removed."""
    arguments = bytearray(4096)
    _put_name(arguments, 8, path.name)
    try:
        with _directory(path.parent) as parent:
            fcntl.ioctl(parent, _SNAP_DESTROY, arguments)
            os.fsync(parent)
    except FileNotFoundError:
        return


def file_extents(image: int) -> Iterator[FileExtent]:
    """The extents of the open file `image` in order, holes left out; needs CAP_SYS_ADMIN.

    Streams: memory stays at one search buffer however many extents there are.
    """
    inode = os.fstat(image).st_ino
    buffer = bytearray(112 + _SEARCH_BUFFER_BYTES)
    start = 0
    while True:
        # tree 0 is the file's own subvolume; objectid, offset, transid ranges; type range; items
        _SEARCH_KEY.pack_into(
            buffer, 0, 0, inode, inode, start, _MAX, 0, _MAX,
            _EXTENT_DATA, _EXTENT_DATA, 2**32 - 1, 0, _SEARCH_BUFFER_BYTES,
        )  # fmt: skip
        fcntl.ioctl(image, _TREE_SEARCH_V2, buffer)
        (count,) = _SEARCH_COUNT.unpack_from(buffer)
        if count == 0:
            return
        position = 112
        for _ in range(count):
            _, _, start, _, length = _SEARCH_HEADER.unpack_from(buffer, position)
            position += _SEARCH_HEADER.size
            yield _file_extent(buffer, position, start)
            position += length
        start += 1


def _file_extent(buffer: bytearray, position: int, offset: int) -> FileExtent:
    generation, ram_bytes, _, _, _, kind = _FILE_EXTENT.unpack_from(buffer, position)
    if kind == _INLINE:
        # Inline bytes have no address; the transaction that wrote them names them.
        return FileExtent(offset, ram_bytes, (-1, generation))
    address, _, within, length = _FILE_EXTENT_ON_DISK.unpack_from(
        buffer, position + _FILE_EXTENT.size
    )
    if kind != _REGULAR or address == 0:
        return FileExtent(offset, length, None)  # preallocated and explicit holes read as zeros
    # Address plus where the extent begins in the file: also right for compressed extents, whose
    # addresses say nothing about the bytes inside.
    return FileExtent(offset, length, (address, offset - within))


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _put_name(arguments: bytearray, position: int, name: str) -> None:
    encoded = name.encode()
    arguments[position : position + len(encoded)] = encoded
