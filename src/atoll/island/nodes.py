"""Names of the served tree that are not a guest's: directories made here, small files, disks."""

import errno
import os
import stat
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b

from atoll.fuse.interface import Attributes, Moment, Name, Node
from atoll.island.guests import Guests

DIRECTORY_MODE = stat.S_IFDIR | 0o555
_FILE_MODE = stat.S_IFREG | 0o400


def inode_number(source: str, inode: int = 0) -> int:
    """A number that is the same at each mount; backup software tells unchanged files by it.

    `source` gives the upper half. The lower is the guest's own number, of which
    an inode beyond 32 bits keeps a hash.
    """
    if inode >> 32:
        source, inode = f"{source}#{inode}", _hash(f"{source}:{inode}") or 1
    return (_hash(source) << 32 | inode) or 1


@lru_cache(maxsize=4096)
def _hash(text: str) -> int:
    data = text.encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(data, digest_size=4).digest(), "little")


class Still(ABC):
    """A Node (see fuse/interface.py) that can do nothing yet: each kind overrides what it can."""

    __slots__ = ("key", "lane")

    number: int | None = None
    uncached = False

    def __init__(self, key: Hashable, lane: Hashable = None) -> None:
        self.key = key
        self.lane = lane

    @abstractmethod
    def attributes(self) -> Attributes:
        """What stat(2) says."""

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
        """No file."""
        raise OSError(errno.EINVAL, "not a file")

    def data_or_hole(self, offset: int, hole: bool) -> int:
        """All data."""
        size = self.attributes().size
        if not 0 <= offset < size:
            raise OSError(errno.ENXIO, "beyond the end")
        return size if hole else offset

    def xattrs(self) -> Mapping[bytes, bytes]:
        """None."""
        return {}


def _made(source: str, mode: int, size: int, at: float, nlink: int = 1) -> Attributes:
    moment = Moment(*divmod(int(at * 1e9), 1_000_000_000))
    return Attributes(
        inode=inode_number(source),
        mode=mode,
        size=size,
        allocated_bytes=size,
        nlink=nlink,
        uid=os.geteuid(),
        gid=os.getegid(),
        mtime=moment,
        atime=moment,
        ctime=moment,
    )


class Directory(Still):
    """A directory made here. `fill` gives its nodes by name, when somebody looks into it.

    A name that stands for None is looked up by `open_` when somebody asks for it.
    """

    def __init__(
        self,
        source: str,
        at: float,
        fill: Callable[[], Mapping[bytes, Node | None]],
        open_: Callable[[bytes], Node] | None = None,
        lane: Hashable = None,
    ) -> None:
        super().__init__(source, lane)
        self._attributes = _made(source, DIRECTORY_MODE, 0, at, 2)
        self._fill = fill
        self._open = open_

    def attributes(self) -> Attributes:
        """Made up here."""
        return self._attributes

    def lookup(self, name: bytes) -> Node | None:
        """The node of a name."""
        nodes = self._fill()
        if name not in nodes:
            return None
        return nodes[name] or (self._open(name) if self._open else None)

    def names(self, start: int) -> Iterator[Name]:
        """All names."""
        for name, node in list(self._fill().items())[start:]:
            if node is None:
                inode = inode_number(f"{self._attributes.inode}/{name.decode(errors='replace')}")
                yield Name(name, inode, DIRECTORY_MODE, None)
            else:
                attributes = node.attributes()
                yield Name(name, attributes.inode, attributes.mode, node)


class SmallFile(Still):
    """A file of a few bytes held here."""

    def __init__(self, source: str, at: float, content: bytes) -> None:
        super().__init__(source)
        self._attributes = _made(source, _FILE_MODE, len(content), at)
        self._content = content

    def attributes(self) -> Attributes:
        """Made up here."""
        return self._attributes

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of it."""
        return self._content[offset : offset + length]


class DiskFile(Still):
    """All bytes of a disk. They are cached where the disk lies, so not a second time here."""

    uncached = True

    def __init__(
        self, source: str, at: float, guests: Guests, vm: int, disk: int, size: int
    ) -> None:
        super().__init__(source, ("image", vm))
        self._attributes = _made(source, _FILE_MODE, size, at)
        self._guests = guests
        self._place = (vm, disk)

    def attributes(self) -> Attributes:
        """Made up here."""
        return self._attributes

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk."""
        length = min(length, self._attributes.size - offset)
        if length <= 0:
            return b""
        with self._guests.disk(*self._place) as reader:
            data = reader.read(offset, length)
        if len(data) != length:
            raise OSError(errno.EIO, "the disk is shorter than it should be")
        return data

    def data_or_hole(self, offset: int, hole: bool) -> int:
        """From what the disk's reader knows of its holes."""
        size = self._attributes.size
        if not 0 <= offset < size:
            raise OSError(errno.ENXIO, "beyond the end")
        holes = self._guests.holes(*self._place)
        number = bisect_right(holes, offset, key=lambda extent: extent.offset) - 1
        inside = number >= 0 and holes[number].end > offset
        if not hole and inside:
            if holes[number].end >= size:
                raise OSError(errno.ENXIO, "no data follows")
            return holes[number].end
        if hole and not inside:
            return holes[number + 1].offset if number + 1 < len(holes) else size
        return offset
