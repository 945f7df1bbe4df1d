"""What a tree must offer to be mounted: nodes, as a kernel sees them."""

from collections.abc import Hashable, Iterator, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

LEAST_OWN_NUMBER = 1 << 32
"""Numbers that nodes have of themselves begin here; the server gives smaller ones to the others."""


class Moment(NamedTuple):
    """A time: seconds since the epoch, which may be negative, and nanoseconds after that."""

    seconds: int
    nanos: int


class Attributes(NamedTuple):
    """What stat(2) says. `inode` is unique in the tree; `mode` has the kind and the permissions.

    `device` is (major, minor).
    """

    inode: int
    mode: int
    size: int
    allocated_bytes: int
    nlink: int
    uid: int
    gid: int
    mtime: Moment
    atime: Moment
    ctime: Moment
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
    `number` is None, or a number of its own by which the tree finds it again (`FindNode`):
    then nothing is kept of it while the kernel knows it.
    `lane` is what answering may have to wait for; nodes of one lane keep no others waiting.
    None is for nodes that never wait.
    """

    @property
    def number(self) -> int | None:
        """What the tree finds it by."""
        ...

    @property
    def lane(self) -> Hashable:
        """Whom its requests may wait for."""
        ...

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


@runtime_checkable
class WritableNode(Protocol):
    """What a file has beside that whose content can be written; its size never changes.

    Uncached, so that each write arrives before it is answered.
    """

    def write(self, offset: int, data: memoryview) -> None:
        """All of `data`, which is not kept afterwards."""
        ...

    def flush(self) -> None:
        """Return when all that was written is on stable storage."""
        ...


class FindNode(Protocol):
    """How a tree finds the nodes that have numbers of their own."""

    def lane(self, number: int) -> Hashable:
        """The lane of the node, which may be asked for before the node is."""
        ...

    def node(self, number: int) -> Node | None:
        """The node, which may have to wait in its lane; None for a number never given."""
        ...
