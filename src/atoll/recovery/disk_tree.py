"""Disks that can be written as the files of one directory, for the kernel to mount."""

import errno
import os
import stat
from collections.abc import Hashable, Iterator, Mapping

from atoll.fuse.interface import Attributes, Moment, Name, Node
from atoll.recovery.overlay import Overlay

_DIRECTORY_MODE = stat.S_IFDIR | 0o700
_FILE_MODE = stat.S_IFREG | 0o600
_THEN = Moment(0, 0)


class DiskDirectory:
    """The root: a file for each disk by its name."""

    number: int | None = None
    lane: Hashable = None
    uncached = False
    key: Hashable = "disks"

    def __init__(self, disks: Mapping[str, Overlay]) -> None:
        self._files = {
            name.encode(): DiskFile(number, disk)
            for number, (name, disk) in enumerate(disks.items(), 2)
        }

    def attributes(self) -> Attributes:
        """What stat(2) says."""
        return _attributes(1, _DIRECTORY_MODE, 0, 0)

    def lookup(self, name: bytes) -> Node | None:
        """A disk."""
        return self._files.get(name)

    def names(self, start: int) -> Iterator[Name]:
        """The disks in their order."""
        for name, file in list(self._files.items())[start:]:
            yield Name(name, file.inode, _FILE_MODE, file)

    def target(self) -> bytes:
        """No symlink."""
        raise OSError(errno.EINVAL, "not a symlink")

    def read(self, offset: int, length: int) -> bytes:
        """No file."""
        raise IsADirectoryError(errno.EISDIR, "a directory")

    def data_or_hole(self, offset: int, hole: bool) -> int:
        """No file."""
        raise IsADirectoryError(errno.EISDIR, "a directory")

    def xattrs(self) -> Mapping[bytes, bytes]:
        """None."""
        return {}


class DiskFile:
    """A disk. Implements Node and WritableNode."""

    number: int | None = None
    # Its readers are one daemon with few threads, so they wait for nobody else.
    lane: Hashable = None
    uncached = True

    def __init__(self, inode: int, disk: Overlay) -> None:
        self.inode = inode
        self._disk = disk

    @property
    def key(self) -> Hashable:
        """What tells it from others."""
        return self.inode

    def attributes(self) -> Attributes:
        """What stat(2) says."""
        return _attributes(self.inode, _FILE_MODE, self._disk.size_bytes, self._disk.size_bytes)

    def lookup(self, name: bytes) -> Node | None:
        """No directory."""
        raise NotADirectoryError(errno.ENOTDIR, "not a directory")

    def names(self, start: int) -> Iterator[Name]:
        """No directory."""
        raise NotADirectoryError(errno.ENOTDIR, "not a directory")

    def target(self) -> bytes:
        """No symlink."""
        raise OSError(errno.EINVAL, "not a symlink")

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk."""
        return self._disk.read(offset, length)

    def write(self, offset: int, data: memoryview) -> None:
        """Above the point."""
        self._disk.write(offset, data)

    def flush(self) -> None:
        """To stable storage."""
        self._disk.flush()

    def data_or_hole(self, offset: int, hole: bool) -> int:
        """All of it is data."""
        if offset >= self._disk.size_bytes:
            raise OSError(errno.ENXIO, "beyond the end")
        return self._disk.size_bytes if hole else offset

    def xattrs(self) -> Mapping[bytes, bytes]:
        """None."""
        return {}


def _attributes(inode: int, mode: int, size: int, allocated: int) -> Attributes:
    return Attributes(
        inode=inode,
        mode=mode,
        size=size,
        allocated_bytes=allocated,
        nlink=1,
        uid=os.geteuid(),
        gid=os.getegid(),
        mtime=_THEN,
        atime=_THEN,
        ctime=_THEN,
    )
