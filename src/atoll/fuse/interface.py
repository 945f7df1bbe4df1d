"""What a tree must offer to be mounted: nodes, as a kernel sees them."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) says. `inode` is unique in the tree; `mode` has the kind and the permissions.

    Times are nanoseconds since the epoch and may be negative; `device` is (major, minor).
    """

    inode: int
    mode: int
    size: int
    allocated_bytes: int
    nlink: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    device: tuple[int, int] = (0, 0)


class Name(NamedTuple):
    """A name in a directory; `node` is None when what it stands for cannot be read."""

    name: bytes
    inode: int
    mode: int
    node: "Node | None"


class Node(Protocol):
    """A file, directory, symlink or special file. Thread-safe; nothing of it ever changes.

    Each call may raise OSError, whose number the reader gets, or any AtollError.
    `key` is equal for two nodes that are the same, as the names of a hard-linked file are.
    """

    @property
    def key(self) -> Hashable:
        """What tells this node from all others."""
        ...

    @property
    def uncached(self) -> bool:
        """Whether reads bypass the kernel's page cache, for what is cached below already."""
        ...

    def attributes(self) -> Attributes:
        """What stat(2) says."""
        ...

    def lookup(self, name: bytes) -> "Node | None":
        """What a name in this directory stands for."""
        ...

    def names(self, start: int) -> Iterator[Name]:
        """A directory's names from number `start`, always in the same order, `.` and `..` left out."""
        ...

    def target(self) -> bytes:
        """The text of a symlink."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of a file, fewer only at its end."""
        ...

    def data_or_hole(self, offset: int, hole: bool) -> int:
        """Where the next data, or hole, of a file begins at or after `offset`; its size ends in a hole.

        OSError ENXIO where no data follows, and for an offset at or beyond the end.
        """
        ...

    def xattrs(self) -> Mapping[bytes, bytes]:
        """Extended attributes, POSIX ACLs among them in the kernel's encoding."""
        ...
