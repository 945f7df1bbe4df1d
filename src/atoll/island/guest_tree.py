"""A guest's own files as nodes of the served tree, by inode number."""

import errno
import stat
import threading
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from atoll.filesystems.interface import EntryKind
from atoll.filesystems.rows import Row
from atoll.fuse.interface import Attributes, Moment, Name, Node
from atoll.island.guests import Guests, VolumeKey
from atoll.island.listing import Listing
from atoll.island.nodes import DIRECTORY_MODE, Still, inode_number

_KINDS = {
    EntryKind.FILE: stat.S_IFREG,
    EntryKind.DIRECTORY: stat.S_IFDIR,
    EntryKind.SYMLINK: stat.S_IFLNK,
    EntryKind.FIFO: stat.S_IFIFO,
    EntryKind.SOCKET: stat.S_IFSOCK,
    EntryKind.CHARACTER: stat.S_IFCHR,
    EntryKind.BLOCK: stat.S_IFBLK,
}
_NO_TOPS: Mapping[str, str] = MappingProxyType({})
_INODE_BITS = 32
_INODE_MASK = (1 << _INODE_BITS) - 1


@dataclass(frozen=True, slots=True)
class MountPoint:
    """A directory at or above mount points; `volume` is mounted here when it is not None.

    `view` tells two places apart where the same volume is seen, and `top` is the directory of it
    that is mounted, empty for all of it.
    """

    view: str
    volume: VolumeKey | None = None
    top: str = ""
    below: dict[bytes, "MountPoint"] = field(default_factory=dict)


def mount_points(
    identity: str, vm: int, mounts: Mapping[str, str], tops: Mapping[str, str] = _NO_TOPS
) -> MountPoint:
    """The mount points of a VM, from addresses of volumes by the path they are mounted at.

    `tops` are, by the same paths, directories that are mounted instead of a whole volume.
    """
    top = MountPoint(f"{identity}/", _volume(vm, mounts.get("/")), tops.get("/", ""))
    for point in sorted(mounts):
        here = top
        path = ""
        for part in point.strip("/").split("/") if point != "/" else ():
            path += f"/{part}"
            name = part.encode("utf-8", "surrogateescape")
            below = here.below
            if name not in below:
                volume = _volume(vm, mounts.get(path))
                below[name] = MountPoint(f"{identity}{path}", volume, tops.get(path, ""))
            here = below[name]
    return top


def _volume(vm: int, address: str | None) -> VolumeKey | None:
    return None if address is None else (vm, address)


def guest_lane(vm: int) -> Hashable:
    """Whom requests about a guest's files may wait for, by the VM's place in the run."""
    return ("guest", vm)


class Views:
    """The places where volumes are seen in a tree. Finds their entries by number (see FindNode)."""

    def __init__(self, guests: Guests) -> None:
        self.guests = guests
        self._lock = threading.Lock()
        self._numbers: dict[tuple[str, VolumeKey], int] = {}
        self._views: list[View] = []

    def root(self, point: MountPoint) -> Node:
        """The root directory of the volume mounted at a point."""
        if point.volume is None:
            raise ValueError(f"nothing is mounted at {point.view}")
        row = self.guests.root(point.volume, point.top or "/")
        return GuestNode(self._view(point.view, point.volume), row, point)

    def lane(self, number: int) -> Hashable:
        """The guest that a number is of."""
        view = self._of(number)
        return None if view is None else guest_lane(view.volume[0])

    def node(self, number: int) -> Node | None:
        """The entry of a number."""
        view = self._of(number)
        if view is None:
            return None
        return GuestNode(view, self.guests.entry(view.volume, number & _INODE_MASK))

    def _view(self, name: str, volume: VolumeKey) -> "View":
        with self._lock:
            number = self._numbers.setdefault((name, volume), len(self._views) + 1)
            if number > len(self._views):
                self._views.append(View(self, volume, name, number))
            return self._views[number - 1]

    def _of(self, number: int) -> "View | None":
        at = (number >> _INODE_BITS) - 1
        return self._views[at] if 0 <= at < len(self._views) else None


@dataclass(frozen=True, slots=True)
class View:
    """One place where a volume is seen, `number` from 1 among those of the tree."""

    views: Views
    volume: VolumeKey
    name: str
    number: int


class GuestNode(Still):
    """An entry of a volume, seen in one view of it.

    Those at and above mount points, which `points` tells, are known to the server. All others have
    a number of their own, from the view's and their inode's, so that a million of them cost nothing.
    """

    __slots__ = ("_points", "_row", "_view", "number")

    def __init__(self, view: View, row: Row, points: MountPoint | None = None) -> None:
        super().__init__((view.name, row.inode), guest_lane(view.volume[0]))
        self._view = view
        self._row = row
        self._points = points
        self.number: int | None = None
        if points is None and row.inode <= _INODE_MASK:
            self.number = view.number << _INODE_BITS | row.inode

    def attributes(self) -> Attributes:
        """As the guest has them."""
        head = self._row.head
        return Attributes(
            inode=inode_number(self._view.name, head.inode),
            mode=_mode(self._row),
            size=head.size,
            allocated_bytes=head.allocated_bytes,
            nlink=head.nlink,
            uid=head.uid,
            gid=head.gid,
            mtime=Moment(head.mtime, head.mtime_nanos),
            atime=Moment(head.atime, head.atime_nanos),
            ctime=Moment(head.ctime, head.ctime_nanos),
            device=(head.major, head.minor),
        )

    def lookup(self, name: bytes) -> Node | None:
        """What a name of the guest's directory stands for."""
        row = self._listing().find(name)
        if row is None:
            return None
        if row.kind is None:
            raise OSError(errno.EIO, "damaged")
        return self._child(row)

    def names(self, start: int) -> Iterator[Name]:
        """The guest's names; of what is mounted on or damaged no more than the name."""
        for row in self._listing().rows(start):
            yield self._name(row)

    def target(self) -> bytes:
        """The symlink's text as it is, wherever it leads."""
        self._require(EntryKind.SYMLINK)
        return self._row.target

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file."""
        self._require(EntryKind.FILE)
        return self._view.views.guests.read(self._view.volume, self._row, offset, length)

    def data_or_hole(self, offset: int, hole: bool) -> int:
        """From where the file's content lies."""
        self._require(EntryKind.FILE)
        layout = self._view.views.guests.layout(self._view.volume, self._row)
        return layout.data_or_hole(offset, hole)

    def xattrs(self) -> Mapping[bytes, bytes]:
        """As the guest has them."""
        found = self._view.views.guests.xattrs(self._view.volume, self._row)
        return {name.encode("utf-8", "surrogateescape"): value for name, value in found.items()}

    def _listing(self) -> Listing:
        self._require(EntryKind.DIRECTORY)
        return self._view.views.guests.listing(self._view.volume, self._row.inode)

    def _name(self, row: Row) -> Name:
        if row.kind is None:
            return Name(row.name, inode_number(self._view.name, 0) + 1, 0, None)
        point = self._point(row)
        if point is not None and point.volume is not None:
            # Opened when somebody looks into it, not when it is listed.
            return Name(row.name, inode_number(point.view), DIRECTORY_MODE, None)
        inode = inode_number(self._view.name, row.inode)
        return Name(row.name, inode, _mode(row), self._child(row))

    def _child(self, row: Row) -> Node:
        point = self._point(row)
        if point is None:
            return GuestNode(self._view, row)
        if point.volume is None:
            return GuestNode(self._view, row.alone(), point)
        return self._view.views.root(point)

    def _point(self, row: Row) -> MountPoint | None:
        if self._points is None or row.kind is not EntryKind.DIRECTORY:
            return None
        return self._points.below.get(row.name)

    def _require(self, kind: EntryKind) -> None:
        if self._row.kind is kind:
            return
        if kind is EntryKind.DIRECTORY:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        raise OSError(errno.EINVAL, f"not a {kind}")


def _mode(row: Row) -> int:
    kind = row.kind
    return row.head.mode | (_KINDS[kind] if kind is not None else 0)
