"""A guest's own files as nodes of the served tree, by inode number."""

import errno
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from atoll.filesystems.interface import Entry, EntryKind
from atoll.fuse.interface import Attributes, Name, Node
from atoll.island.guests import Guests, VolumeKey
from atoll.island.listing import Row
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


@dataclass(frozen=True, slots=True)
class MountPoint:
    """A directory at or above mount points; `volume` is mounted here when it is not None.

    `view` tells two places apart where the same volume is seen.
    """

    view: str
    volume: VolumeKey | None = None
    below: dict[bytes, "MountPoint"] = field(default_factory=dict)


def mount_points(identity: str, vm: int, mounts: Mapping[str, str]) -> MountPoint:
    """The mount points of a VM, from addresses of volumes by the path they are mounted at."""
    top = MountPoint(f"{identity}/", _volume(vm, mounts.get("/")))
    for point in sorted(mounts):
        here = top
        path = ""
        for part in point.strip("/").split("/") if point != "/" else ():
            path += f"/{part}"
            name = part.encode("utf-8", "surrogateescape")
            below = here.below
            if name not in below:
                below[name] = MountPoint(f"{identity}{path}", _volume(vm, mounts.get(path)))
            here = below[name]
    return top


def _volume(vm: int, address: str | None) -> VolumeKey | None:
    return None if address is None else (vm, address)


class GuestNode(Still):
    """An entry of a volume, seen in one view of it. There may be hundreds of thousands at a time."""

    __slots__ = ("_entry", "_guests", "_points", "_view", "_volume")

    def __init__(
        self,
        guests: Guests,
        volume: VolumeKey,
        view: str,
        entry: Entry,
        points: MountPoint | None = None,
    ) -> None:
        super().__init__((view, entry.inode))
        self._guests = guests
        self._volume = volume
        self._view = view
        self._entry = entry
        self._points = points

    def attributes(self) -> Attributes:
        """As the guest has them."""
        entry = self._entry
        return Attributes(
            inode=inode_number(self._view, entry.inode),
            mode=_KINDS[entry.kind] | entry.mode,
            size=entry.size,
            allocated_bytes=entry.allocated_bytes,
            nlink=entry.nlink,
            uid=entry.uid,
            gid=entry.gid,
            mtime_ns=entry.mtime_ns,
            atime_ns=entry.atime_ns,
            ctime_ns=entry.ctime_ns,
            device=entry.device or (0, 0),
        )

    def lookup(self, name: bytes) -> Node | None:
        """What a name of the guest's directory stands for."""
        self._require(EntryKind.DIRECTORY)
        row = self._guests.listing(self._volume, self._entry.inode).find(name)
        if row is None:
            return None
        if row.entry is None:
            raise OSError(errno.EIO, "damaged")
        return self._child(row.name, row.entry)

    def names(self, start: int) -> Iterator[Name]:
        """The guest's names; of what is mounted on or damaged no more than the name."""
        self._require(EntryKind.DIRECTORY)
        for row in self._guests.listing(self._volume, self._entry.inode).rows(start):
            yield self._name(row)

    def target(self) -> bytes:
        """The symlink's text as it is, wherever it leads."""
        self._require(EntryKind.SYMLINK)
        return (self._entry.target or "").encode("utf-8", "surrogateescape")

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file."""
        self._require(EntryKind.FILE)
        return self._guests.read(self._volume, self._entry, offset, length)

    def data_or_hole(self, offset: int, hole: bool) -> int:
        """From where the file's content lies."""
        self._require(EntryKind.FILE)
        return self._guests.layout(self._volume, self._entry).data_or_hole(offset, hole)

    def xattrs(self) -> Mapping[bytes, bytes]:
        """As the guest has them."""
        found = self._guests.xattrs(self._volume, self._entry)
        return {name.encode("utf-8", "surrogateescape"): value for name, value in found.items()}

    def _name(self, row: Row) -> Name:
        if row.entry is None:
            return Name(row.name, inode_number(self._view, 0) + 1, 0, None)
        point = self._point(row.name, row.entry)
        if point is not None and point.volume is not None:
            # Opened when somebody looks into it, not when it is listed.
            return Name(row.name, inode_number(point.view), DIRECTORY_MODE, None)
        node = self._child(row.name, row.entry)
        attributes = node.attributes()
        return Name(row.name, attributes.inode, attributes.mode, node)

    def _child(self, name: bytes, entry: Entry) -> Node:
        point = self._point(name, entry)
        if point is not None and point.volume is not None:
            return root_node(self._guests, point)
        return GuestNode(self._guests, self._volume, self._view, entry, point)

    def _point(self, name: bytes, entry: Entry) -> MountPoint | None:
        if self._points is None or entry.kind is not EntryKind.DIRECTORY:
            return None
        return self._points.below.get(name)

    def _require(self, kind: EntryKind) -> None:
        if self._entry.kind is kind:
            return
        if kind is EntryKind.DIRECTORY:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        raise OSError(errno.EINVAL, f"not a {kind}")


def root_node(guests: Guests, point: MountPoint) -> Node:
    """The root directory of the volume mounted at a point."""
    if point.volume is None:
        raise ValueError(f"nothing is mounted at {point.view}")
    return GuestNode(guests, point.volume, point.view, guests.root(point.volume), point)
