"""What a guest file system looks like from outside, whichever kind it is."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from atoll.filesystems.rows import Row

Journal = Literal["clean", "replayed", "unreplayed"]
"""`replayed`: the journal held changes and they are part of what is read, in memory only.

`unreplayed`: it holds changes, or may, and they are not part of it: see `STALENESS`.
"""

STALENESS = (
    "its journal holds changes that are not read, so names, sizes and content of the last seconds"
    " before the capture may be missing or old"
)
"""What `unreplayed` means to a user."""


class EntryKind(StrEnum):
    """What a name in a file system stands for."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER = "character"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a guest file system.

    `path` is absolute inside the file system, without `.` and `..`; bytes that
    are not UTF-8 are surrogate-escaped, so `os.fsencode(path)` gives the guest's
    own bytes. `size` is in bytes. `mode` holds the permission bits alone (0o7777). Times are
    nanoseconds since the epoch and may be negative. `target` is a symlink's
    text, `device` (major, minor) of a device node. `xattrs` is None where they
    were not asked for; POSIX ACLs are among them in the kernel's encoding.
    `allocated_bytes` is what it takes on its volume, less than `size` for a
    file with holes.
    """

    path: str
    kind: EntryKind
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    nlink: int
    inode: int
    target: str | None = None
    device: tuple[int, int] | None = None
    xattrs: tuple[tuple[str, bytes], ...] | None = None
    allocated_bytes: int = 0

    @property
    def name(self) -> str:
        """The last component of the path; empty for the root."""
        return self.path.rpartition("/")[2]


class Data(NamedTuple):
    """Bytes of a file from `offset`; what no Data covers reads as zeros (a hole)."""

    offset: int
    content: bytes


class Placed(NamedTuple):
    """`length` bytes of a file from `offset`, which lie on its volume from `at`."""

    offset: int
    length: int
    at: int


class Fault(NamedTuple):
    """Something at or below `path` cannot be read, and why; the rest can.

    `attributes_only`: what is at `path` is whole but for its extended attributes.
    """

    path: str
    reason: str
    attributes_only: bool = False


class FileSystem(Protocol):
    """Read access to one guest file system, for one thread at a time.

    One iterator at a time: start the next call when the last one is exhausted
    or closed. Symlinks are never followed. Raises NotFoundInPointError for a
    path that is not there, UnsupportedFormatError for what is damaged or of a
    kind that is not read, and whatever the BlockReader raises.
    """

    @property
    def kind(self) -> str:
        """What it is, one of `detect.SUPPORTED`."""
        ...

    @property
    def label(self) -> str:
        """The file system's label, or empty."""
        ...

    @property
    def uuid(self) -> str:
        """The file system's UUID as `/etc/fstab` writes it."""
        ...

    @property
    def journal(self) -> Journal:
        """Whether changes had to be taken from the journal."""
        ...

    def stat(self, path: str) -> Entry:
        """The entry at `path`."""
        ...

    def list(self, path: str, recursive: bool = False) -> Iterator[Entry]:
        """What is in a directory, parents before their children, in no other order.

        A recursive listing goes on past damaged directories and raises
        UnsupportedFormatError at its end, naming the first.
        """
        ...

    def read(self, path: str) -> Iterator[Data]:
        """A file's content in ascending order; holes are left out."""
        ...

    def xattrs(self, path: str) -> dict[str, bytes]:
        """Extended attributes and POSIX ACLs, in the kernel's encoding."""
        ...

    def node(self, inode: int) -> "Row":
        """The entry of an inode, as `children` gives it, without a name."""
        ...

    def attributes(self, inode: int) -> dict[str, bytes]:
        """All extended attributes and POSIX ACLs of an inode."""
        ...

    def children(self, inode: int) -> Iterator["Row"]:
        """What is in a directory, by its inode number.

        Extended attributes and places are there where they are small. UnsupportedFormatError
        for a damaged or absurdly large directory, perhaps in the middle.
        """
        ...

    def layout(self, inode: int) -> Iterator[Placed | Data]:
        """Where a file's content lies, ascending; bytes for what lies nowhere as it is."""
        ...

    def export(self, path: str) -> Iterator[Entry | Data | Fault]:
        """Everything at and below `path` in one pass: an Entry with xattrs, then its Data.

        A file with several names brings its Data with the first one. A Fault
        that names the file just begun means its content is incomplete.
        """
        ...


class Blocks(Protocol):
    """The part of a BlockReader a parser needs."""

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, fewer only past the end."""
        ...


class Volume(Protocol):
    """What a parser of one kind of file system offers, by inode number; runs in the jail.

    Raises UnsupportedFormatError for damage; any other exception counts as
    damage too. Bounds on names, depth and loops are its callers' business,
    bounds inside one object (extent trees, directory blocks) its own.
    """

    kind: str
    label: str
    uuid: str
    journal: Journal
    root: int

    def entry(self, inode: int, path: str) -> Entry:
        """Metadata without xattrs."""
        ...

    def names(self, inode: int) -> Iterator[tuple[bytes, int]]:
        """(name, inode) of each name in a directory, `.` and `..` left out."""
        ...

    def content(self, inode: int) -> Iterator[Data]:
        """A file's bytes, ascending, without holes, in pieces of at most 1 MiB."""
        ...

    def layout(self, inode: int) -> Iterator[Placed | Data]:
        """Where those bytes lie, ascending; Data of at most 1 MiB where they do not lie as they are."""
        ...

    def xattrs(self, inode: int) -> tuple[tuple[str, bytes], ...]:
        """Extended attributes under the names and in the encoding of the kernel."""
        ...


@runtime_checkable
class FindsNames(Protocol):
    """A Volume that finds one name sooner than by going through `names`."""

    def find(self, inode: int, name: bytes) -> int | None:
        """The inode that a name in a directory stands for; None without it."""
        ...


class OpensFileSystem(Protocol):
    """How recovery opens a file system; a test may hand in its own."""

    def __call__(self, reader: Blocks) -> AbstractContextManager[FileSystem]:
        """Open, or raise UnsupportedFormatError."""
        ...
