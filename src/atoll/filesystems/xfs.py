"""XFS: the parser that runs in the jail."""

import stat
import struct
from collections.abc import Iterator

from atoll.filesystems.interface import Blocks, Data, Entry, EntryKind, Journal, Placed
from atoll.filesystems.xfs_attributes import attributes
from atoll.filesystems.xfs_content import Run, content_runs, data_runs
from atoll.filesystems.xfs_directory import names
from atoll.filesystems.xfs_layout import DEVICE, LOCAL, REALTIME, Inode, Layout
from atoll.filesystems.xfs_replay import Replay
from atoll.filesystems.xfs_superblock import damaged, geometry, read_geometry, refused, text_of_uuid
from atoll.model.errors import UnsupportedFormatError

_PIECE_BYTES = 1 << 20
_MAX_BYTES = 1 << 63
_MAX_SYMLINK_BYTES = 1024
_SYMLINK_MAGIC, _SYMLINK_HEAD_BYTES, _SYMLINK_CHECKSUM = b"XSLM", 56, 12
KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.SYMLINK,
    stat.S_IFIFO: EntryKind.FIFO,
    stat.S_IFSOCK: EntryKind.SOCKET,
    stat.S_IFCHR: EntryKind.CHARACTER,
    stat.S_IFBLK: EntryKind.BLOCK,
}


def open_volume(blocks: Blocks) -> "XfsVolume":
    """Open an image; changes that are still in its log are read as made."""
    known = read_geometry(blocks)
    if not known.log_start:
        raise refused("keeps its log on another device, so its files cannot be read as they were")
    replay = Replay(blocks, known)
    if replay.empty:
        return XfsVolume(Layout(known, blocks), "clean")
    if not known.replayable:
        raise refused("was in use, and has features with which Atoll does not replay its log")
    if replay.superblock:
        known = geometry(replay.read(0, known.sector_size), fresh=True)
    return XfsVolume(Layout(known, blocks, replay), "replayed")


class XfsVolume:
    """A Volume (see `interface.py`)."""

    kind = "xfs"

    def __init__(self, layout: Layout, state: Journal) -> None:
        self.disk = layout
        self._last: Inode | None = None
        self._block_size = layout.geometry.block_size
        self.root = layout.geometry.root
        self.label = layout.geometry.label
        self.uuid = text_of_uuid(layout.geometry.uuid)
        self.journal: Journal = state
        replayed = layout.replayed
        self.stale_content = replayed.stale_content if replayed else frozenset()
        self._stale_attributes = replayed.stale_attributes if replayed else frozenset()

    def entry(self, inode: int, path: str) -> Entry:
        """Metadata of an inode under the name it was found by."""
        node = self._node(inode)
        kind = KINDS.get(stat.S_IFMT(node.mode))
        if kind is None or node.nlink == 0:
            raise damaged(f"{path} names inode {inode}, which is not in use")
        allocated = (node.blocks + self._still_mapped(inode)) * self._block_size
        if node.size >= _MAX_BYTES or allocated >= _MAX_BYTES:
            raise damaged(f"{path}, inode {inode}, has an impossible size")
        return Entry(
            path,
            kind,
            node.size,
            node.mode & 0o7777,
            node.uid,
            node.gid,
            node.mtime_ns,
            node.atime_ns,
            node.ctime_ns,
            node.nlink,
            inode,
            self._target(node) if kind is EntryKind.SYMLINK else None,
            _device(node) if kind in (EntryKind.CHARACTER, EntryKind.BLOCK) else None,
            None,
            allocated,
        )

    def names(self, inode: int) -> Iterator[tuple[bytes, int]]:
        """Names of a directory."""
        node = self.disk.inode(inode)
        self._refuse_stale(node)
        return names(self.disk, node)

    def content(self, inode: int) -> Iterator[Data]:
        """Bytes of a file; holes and preallocated blocks left out."""
        node = self._file(inode)
        for run in content_runs(self.disk, node):
            offset, at = run.logical * self._block_size, run.at
            end = min(node.size, offset + run.blocks * self._block_size)
            while offset < end:
                length = min(_PIECE_BYTES, end - offset)
                yield Data(offset, self.disk.read(at, length))
                offset, at = offset + length, at + length

    def layout(self, inode: int) -> Iterator[Placed | Data]:
        """Where a file's bytes lie; those that the log changes come along."""
        node = self._file(inode)
        for run in content_runs(self.disk, node):
            offset = run.logical * self._block_size
            length = min(node.size - offset, run.blocks * self._block_size)
            if self.disk.replayed is None:
                yield Placed(offset, length, run.at)
            else:
                yield from self._placed(offset, length, run.at)

    def xattrs(self, inode: int) -> tuple[tuple[str, bytes], ...]:
        """Attributes and ACLs."""
        node = self._node(inode)
        if not node.attributes:
            return ()
        if inode in self._stale_attributes:
            raise UnsupportedFormatError(
                f"The extended attributes of inode {inode} were being changed, and the change is"
                " announced in the log but not made; restore the whole disk to get at them."
            )
        return attributes(self.disk, node)

    def _node(self, number: int) -> Inode:
        """An inode; the last one is remembered, for it is asked about several times."""
        if self._last is None or self._last.number != number:
            self._last = self.disk.inode(number)
        return self._last

    def _file(self, number: int) -> Inode:
        node = self._node(number)
        self._refuse_stale(node)
        if node.flags & REALTIME:
            raise refused(
                f"keeps the content of inode {number} on a realtime device, which is not read"
            )
        if node.format == LOCAL:
            raise damaged(f"inode {number} is a file inside its inode, which does not exist")
        return node

    def _still_mapped(self, number: int) -> int:
        """Blocks that a file gains by changes of its map which the log announces."""
        replayed = self.disk.replayed
        if replayed is None or number not in replayed.map_changes:
            return 0
        changes = replayed.map_changes[number]
        return sum(-each.blocks if each.unmap else each.blocks for each in changes)

    def _refuse_stale(self, node: Inode) -> None:
        if node.number in self.stale_content:
            raise UnsupportedFormatError(
                f"The content of inode {node.number} was being exchanged with another file's, and the"
                " change is announced in the log but not made; restore the whole disk to get at it."
            )

    def _placed(self, offset: int, length: int, at: int) -> Iterator[Placed | Data]:
        """A run of a file in pieces: as it is on the volume, and from the log where that is newer."""
        replayed = self.disk.replayed
        done = 0
        for start, end in replayed.changed(at, length) if replayed is not None else ():
            first, last = max(done, start - at), min(length, end - at)
            if first >= last:
                continue
            if first > done:
                yield Placed(offset + done, first - done, at + done)
            yield Data(offset + first, self.disk.read(at + first, last - first))
            done = last
        if done < length:
            yield Placed(offset + done, length - done, at + done)

    def _target(self, node: Inode) -> str:
        if not 0 < node.size <= _MAX_SYMLINK_BYTES:
            raise damaged(f"inode {node.number} is a symlink of impossible length")
        if node.format == LOCAL:
            target = node.data[: node.size]
        else:
            target = b""
            for run in data_runs(self.disk, node):
                target += self._part_of_target(node, run, len(target))
                if len(target) >= node.size:
                    break
        if len(target) != node.size or b"\0" in target:
            raise damaged(f"inode {node.number} is an impossible symlink")
        return target.decode("utf-8", "surrogateescape")

    def _part_of_target(self, node: Inode, run: Run, done: int) -> bytes:
        """What one run holds of a symlink's text: a header and text in the newer format, else text alone."""
        length = run.blocks * self._block_size
        if length > _MAX_SYMLINK_BYTES + 2 * _SYMLINK_HEAD_BYTES + self._block_size:
            raise damaged(f"inode {node.number} is a symlink of impossible length")
        left = node.size - done
        if not self.disk.geometry.checked:
            return self.disk.read(run.at, length)[:left]
        raw = self.disk.checked(run.at, length, _SYMLINK_CHECKSUM)
        magic, offset, size = struct.unpack_from(">4sII", raw)
        if magic != _SYMLINK_MAGIC or offset != done or size > left:
            raise damaged(f"inode {node.number} is an impossible symlink")
        return raw[_SYMLINK_HEAD_BYTES:][:size]


def _device(node: Inode) -> tuple[int, int]:
    """Device numbers as System V packed them: 14 bits and 18 (linux/kdev_t.h)."""
    if node.format != DEVICE or len(node.data) < 4:
        raise damaged(f"inode {node.number} is an impossible device node")
    packed = int.from_bytes(node.data[:4])
    return packed >> 18 & 0x3FFF, packed & 0x3FFFF
