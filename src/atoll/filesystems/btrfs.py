"""btrfs: the parser that runs in the jail.

The root is the default subvolume. Subvolumes and snapshots are directories where the guest has
them; when the default is not the top level, what lies outside it is below `.btrfs-top-level` in the
root. An inode's number has the subvolume's place among all in its upper 16 bits, 0 for the default.
"""

import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from atoll.filesystems.btrfs_content import content_of, layout_of
from atoll.filesystems.btrfs_layout import DEFAULT_HERE, TOP_LEVEL_NAME, Layout, Root, damaged
from atoll.filesystems.interface import Blocks, Data, Entry, EntryKind, Journal, Placed
from atoll.filesystems.wire import MAX_XATTR_BYTES

_TOP_LEVEL, _FIRST_SUBVOLUME, _LAST_SUBVOLUME = 5, 256, (1 << 64) - 257
_ROOT_DIRECTORY, _DEFAULT_HOLDER = 256, 6
_INODE_ITEM, _XATTR_ITEM, _DIR_ITEM, _DIR_INDEX = 1, 24, 84, 96
_ROOT_ITEM, _ROOT_BACKREF = 132, 144
_NUMBER_SHIFT = 48
_PLACEHOLDER = DEFAULT_HERE
_MAX_SUBVOLUMES = 1 << 16
_MAX_SYMLINK_BYTES = 64 << 10
_MAX_NAME_BYTES = 255
_MAX_BYTES = 1 << 63
_MAX_SECONDS = 1 << 35
_INODE = struct.Struct("<QQQQQIIIIQQQ32xqIqIqI")
_DIR_HEAD = struct.Struct("<QBQQHHB")
_KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.SYMLINK,
    stat.S_IFIFO: EntryKind.FIFO,
    stat.S_IFSOCK: EntryKind.SOCKET,
    stat.S_IFCHR: EntryKind.CHARACTER,
    stat.S_IFBLK: EntryKind.BLOCK,
}


class _Subvolume(NamedTuple):
    number: int
    root: Root
    directory: int
    parent: int
    parent_directory: int


class _Inode(NamedTuple):
    size: int
    nbytes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    rdev: int
    atime_ns: int
    ctime_ns: int
    mtime_ns: int


def open_volume(blocks: Blocks) -> "BtrfsVolume":
    """Open an image. Its log tree is not replayed, and `journal` says so when there is one."""
    return BtrfsVolume(Layout(blocks))


class BtrfsVolume:
    """A Volume (see `interface.py`)."""

    kind = "btrfs"

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.label = layout.label
        self.uuid = layout.uuid
        self.journal: Journal = "unreplayed" if layout.log_root else "clean"
        self._subvolumes = _subvolumes(layout)
        default = self._default()
        self._order = [default, *sorted(self._subvolumes.keys() - {default})]
        self._ordinal = {number: at for at, number in enumerate(self._order)}
        self.root = self._subvolumes[default].directory
        self._last: tuple[int, _Inode] | None = None

    def entry(self, inode: int, path: str) -> Entry:
        """Metadata of an inode under the name it was found by."""
        if inode & _PLACEHOLDER:
            # A subvolume inside a snapshot, for which the kernel too shows an empty directory, or
            # the default one, which is the root.
            return Entry(path, EntryKind.DIRECTORY, 0, 0o755, 0, 0, 0, 0, 0, 1, inode)
        node = self._inode(inode)
        kind = _KINDS.get(stat.S_IFMT(node.mode))
        if kind is None or not node.nlink:
            raise damaged(f"{path} names inode {inode}, which is not in use")
        if node.size >= _MAX_BYTES or node.nbytes >= _MAX_BYTES:
            raise damaged(f"{path}, inode {inode}, has an impossible size")
        special = kind in (EntryKind.CHARACTER, EntryKind.BLOCK)
        return Entry(
            path=path,
            kind=kind,
            size=node.size,
            mode=stat.S_IMODE(node.mode),
            uid=node.uid,
            gid=node.gid,
            mtime_ns=node.mtime_ns,
            atime_ns=node.atime_ns,
            ctime_ns=node.ctime_ns,
            nlink=node.nlink,
            inode=inode,
            target=self._target(inode, node) if kind is EntryKind.SYMLINK else None,
            device=(node.rdev >> 20 & 0xFFF, node.rdev & 0xFFFFF) if special else None,
            allocated_bytes=node.nbytes,
        )

    def names(self, inode: int) -> Iterator[tuple[bytes, int]]:
        """Names of a directory, subvolumes among them."""
        if inode & _PLACEHOLDER:
            return
        subvolume, number = self._find(inode)
        if not stat.S_ISDIR(self._inode(inode).mode):
            raise damaged(f"inode {inode} is not a directory")
        outside = inode == self.root and self._order[0] != _TOP_LEVEL
        if outside and _TOP_LEVEL in self._subvolumes:
            yield TOP_LEVEL_NAME, self._number(_TOP_LEVEL, self._subvolumes[_TOP_LEVEL].directory)
        found = self._layout.items(
            subvolume.root, (number, _DIR_INDEX, 0), (number, _DIR_INDEX, 1 << 64)
        )
        for _, item in found:
            for name, _, child, kind in _dir_items(item):
                if not 0 < len(name) <= _MAX_NAME_BYTES or b"/" in name or b"\0" in name:
                    raise damaged("a directory has an impossible name in it")
                if name in (b".", b"..") or (outside and name == TOP_LEVEL_NAME):
                    continue
                if kind == _INODE_ITEM:
                    yield name, self._number(subvolume.number, child)
                elif kind == _ROOT_ITEM:
                    yield name, self._below(subvolume.number, number, child)
                else:
                    raise damaged("a directory has a name that stands for nothing")

    def content(self, inode: int) -> Iterator[Data]:
        """Bytes of a file, holes and preallocated extents left out."""
        subvolume, number = self._find(inode)
        return content_of(self._layout, subvolume.root, number, self._inode(inode).size)

    def layout(self, inode: int) -> Iterator[Placed | Data]:
        """Where they lie; inline and compressed ones come along."""
        subvolume, number = self._find(inode)
        return layout_of(self._layout, subvolume.root, number, self._inode(inode).size)

    def xattrs(self, inode: int) -> tuple[tuple[str, bytes], ...]:
        """Attributes and ACLs, which btrfs keeps as the kernel gives them."""
        if inode & _PLACEHOLDER:
            return ()
        subvolume, number = self._find(inode)
        found = []
        items = self._layout.items(
            subvolume.root, (number, _XATTR_ITEM, 0), (number, _XATTR_ITEM, 1 << 64)
        )
        for _, item in items:
            for name, value, _, _ in _dir_items(item):
                if not name or b"\0" in name or len(value) > MAX_XATTR_BYTES:
                    raise damaged(f"inode {inode} has an impossible extended attribute")
                found.append((name.decode("utf-8", "surrogateescape"), value))
        return tuple(found)

    def _default(self) -> int:
        holder = self._layout.items(
            self._layout.root_tree,
            (_DEFAULT_HOLDER, _DIR_ITEM, 0),
            (_DEFAULT_HOLDER, _DIR_ITEM, 1 << 64),
        )
        for _, item in holder:
            for name, _, number, kind in _dir_items(item):
                if name == b"default" and kind == _ROOT_ITEM and number in self._subvolumes:
                    return number
        if _TOP_LEVEL not in self._subvolumes:
            raise damaged("it has no subvolumes")
        return _TOP_LEVEL

    def _number(self, subvolume: int, inode: int) -> int:
        if not 0 < inode < _PLACEHOLDER:
            raise damaged(f"subvolume {subvolume} has an impossible inode")
        return self._ordinal[subvolume] << _NUMBER_SHIFT | inode

    def _find(self, inode: int) -> tuple[_Subvolume, int]:
        ordinal = inode >> _NUMBER_SHIFT
        if ordinal >= len(self._order) or inode & _PLACEHOLDER:
            raise damaged(f"there is no inode {inode}")
        return self._subvolumes[self._order[ordinal]], inode & ((1 << _NUMBER_SHIFT) - 1)

    def _below(self, parent: int, directory: int, child: int) -> int:
        """What a name of a subvolume leads to: nothing where it is met elsewhere, as the root is."""
        found = self._subvolumes.get(child)
        if found is None or (found.parent, found.parent_directory) != (parent, directory):
            place = self._ordinal[parent] << _NUMBER_SHIFT
            return place | _PLACEHOLDER | (child & (_PLACEHOLDER - 1))
        if child == self._order[0]:
            return self._ordinal[parent] << _NUMBER_SHIFT | DEFAULT_HERE
        return self._number(child, found.directory)

    def _inode(self, inode: int) -> _Inode:
        """An inode; the last one is remembered, for it is asked about several times."""
        if self._last is not None and self._last[0] == inode:
            return self._last[1]
        subvolume, number = self._find(inode)
        item = self._layout.item(subvolume.root, (number, _INODE_ITEM, 0))
        if item is None or len(item) < _INODE.size:
            raise damaged(f"there is no inode {inode}")
        fields = _INODE.unpack_from(item)
        times = [_nanoseconds(*fields[at : at + 2]) for at in (12, 14, 16)]
        node = _Inode(fields[2], fields[3], *fields[5:10], *times)
        self._last = inode, node
        return node

    def _target(self, inode: int, node: _Inode) -> str:
        if not 0 < node.size <= _MAX_SYMLINK_BYTES:
            raise damaged(f"inode {inode} is a symlink that cannot be read")
        text = b"".join(data.content for data in self.content(inode))
        if len(text) != node.size or b"\0" in text:
            raise damaged(f"inode {inode} is an impossible symlink")
        return text.decode("utf-8", "surrogateescape")


def _subvolumes(layout: Layout) -> dict[int, _Subvolume]:
    """All subvolumes by their ids, and in which directory of which other each is."""
    found: dict[int, _Subvolume] = {}
    parents: dict[int, tuple[int, int]] = {}
    everything = layout.items(
        layout.root_tree, (_TOP_LEVEL, _ROOT_ITEM, 0), (_LAST_SUBVOLUME, _ROOT_BACKREF, 1 << 64)
    )
    for (number, kind, other), item in everything:
        if number != _TOP_LEVEL and number < _FIRST_SUBVOLUME:
            continue
        if kind == _ROOT_ITEM and len(item) >= 239:
            directory, at = struct.unpack_from("<QQ", item, 168)
            found[number] = _Subvolume(number, Root(at, item[238]), directory, 0, 0)
        elif kind == _ROOT_BACKREF and len(item) >= 18:
            parents[number] = other, int.from_bytes(item[:8], "little")
        if len(found) > _MAX_SUBVOLUMES - 1:
            raise damaged(f"it has more than {_MAX_SUBVOLUMES} subvolumes")
    for number, (parent, directory) in parents.items():
        if number in found:
            found[number] = found[number]._replace(parent=parent, parent_directory=directory)
    return found


def _dir_items(item: bytes) -> Iterator[tuple[bytes, bytes, int, int]]:
    """Name, value, and what the name stands for (object and kind), of each entry of an item."""
    at = 0
    while at < len(item):
        if at + _DIR_HEAD.size > len(item):
            raise damaged("a directory has an entry that does not fit into it")
        number, kind, _, _, value_length, name_length, _ = _DIR_HEAD.unpack_from(item, at)
        start = at + _DIR_HEAD.size
        middle, at = start + name_length, start + name_length + value_length
        if at > len(item):
            raise damaged("a directory has an entry that does not fit into it")
        yield item[start:middle], item[middle:at], number, kind


def _nanoseconds(seconds: int, nanos: int) -> int:
    """A time; those no calendar has are brought near."""
    return max(-_MAX_SECONDS, min(seconds, _MAX_SECONDS)) * 1_000_000_000 + nanos % 1_000_000_000
