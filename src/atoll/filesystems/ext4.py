"""ext2, ext3 and ext4: the parser that runs in the jail."""

import stat
import struct
from collections.abc import Iterator

from atoll.filesystems import journal
from atoll.filesystems.ext4_attributes import attributes, inline_rest
from atoll.filesystems.ext4_content import Run, runs
from atoll.filesystems.ext4_layout import (
    COMPRESSED,
    DIRECTORY_TYPES,
    ENCRYPTED,
    INLINE_DATA,
    Inode,
    Layout,
    damaged,
)
from atoll.filesystems.interface import Blocks, Data, Entry, EntryKind, Journal, Placed
from atoll.model.errors import UnsupportedFormatError

_ROOT = 2
_PIECE_BYTES = 1 << 20
_FAST_SYMLINK_BYTES = 60
_MAX_BYTES = 1 << 63
_MAX_NAME_BYTES = 255
_MAX_SYMLINK_BYTES = 64 << 10
_MAX_LARGE_VALUE_BYTES = 64 << 10
KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.SYMLINK,
    stat.S_IFIFO: EntryKind.FIFO,
    stat.S_IFSOCK: EntryKind.SOCKET,
    stat.S_IFCHR: EntryKind.CHARACTER,
    stat.S_IFBLK: EntryKind.BLOCK,
}


def open_volume(blocks: Blocks) -> "Ext4Volume":
    """Open an image; changes that are still in its journal are read as made."""
    layout = Layout(blocks)
    replayed = journal.overlay(layout)
    if replayed is None:
        return Ext4Volume(layout, "clean")
    return Ext4Volume(Layout(replayed), "replayed", replayed)


class Ext4Volume:
    """A Volume (see `interface.py`)."""

    root = _ROOT

    def __init__(
        self, layout: Layout, state: Journal, replayed: journal.JournalOverlay | None = None
    ) -> None:
        self._layout = layout
        self._replayed = replayed
        self._last: Inode | None = None
        self.kind = layout.kind
        self.label = layout.label
        self.uuid = layout.uuid
        self.journal: Journal = state

    @property
    def disk(self) -> Layout:
        """Where things are, journal included."""
        return self._layout

    def entry(self, inode: int, path: str) -> Entry:
        """Metadata of an inode under the name it was found by."""
        node = self._node(inode)
        kind = KINDS.get(stat.S_IFMT(node.mode))
        if kind is None or node.nlink == 0:
            raise damaged(f"{path} names inode {inode}, which is not in use")
        if node.size >= _MAX_BYTES or node.allocated_bytes >= _MAX_BYTES:
            raise damaged(f"{path}, inode {inode}, has an impossible size")
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
            target=self._target(node) if kind is EntryKind.SYMLINK else None,
            device=_device(node) if kind in (EntryKind.CHARACTER, EntryKind.BLOCK) else None,
            allocated_bytes=node.allocated_bytes,
        )

    def names(self, inode: int) -> Iterator[tuple[bytes, int]]:
        """Names of a directory; hashed directories read as linear ones, as they are built to."""
        node = self._layout.inode(inode)
        if not node.is_directory:
            raise damaged(f"inode {inode} is not a directory")
        if node.flags & INLINE_DATA:
            # Four bytes of the parent's inode number stand for `.` and `..`.
            yield from self._dirents(node.block[4:])
            rest = inline_rest(self._layout, node)
            if rest:
                yield from self._dirents(rest)
            return
        for data in self._content(node):
            for at in range(0, len(data.content), self._layout.block_size):
                yield from self._dirents(data.content[at : at + self._layout.block_size])

    def content(self, inode: int) -> Iterator[Data]:
        """Bytes of a file, holes and preallocated blocks left out."""
        return self._content(self._node(inode))

    def layout(self, inode: int) -> Iterator[Placed | Data]:
        """Where a file's bytes lie; those that are in its inode or still in the journal come along."""
        node = self._node(inode)
        if node.flags & (ENCRYPTED | COMPRESSED | INLINE_DATA):
            yield from self._content(node)
            return
        for run in runs(self._layout, node):
            yield from self._placed(run, node.size)

    def xattrs(self, inode: int) -> tuple[tuple[str, bytes], ...]:
        """Attributes and ACLs."""
        return attributes(self._layout, self._node(inode), self._large_value)

    def _node(self, number: int) -> Inode:
        """An inode; the last one is remembered, for it is asked about several times."""
        if self._last is None or self._last.number != number:
            self._last = self._layout.inode(number)
        return self._last

    def _placed(self, run: Run, size: int) -> Iterator[Placed | Data]:
        block_size = self._layout.block_size
        done = 0
        for number in range(run.blocks) if self._replayed is not None else ():
            newer = self._replayed.newer(run.physical + number) if self._replayed else None
            if newer is not None:
                if number > done:
                    yield self._piece(run, done, number - done, size)
                offset = (run.logical + number) * block_size
                yield Data(offset, newer[: size - offset])
                done = number + 1
        if run.blocks > done:
            yield self._piece(run, done, run.blocks - done, size)

    def _piece(self, run: Run, first: int, blocks: int, size: int) -> Placed:
        block_size = self._layout.block_size
        offset = (run.logical + first) * block_size
        length = min(blocks * block_size, size - offset)
        return Placed(offset, length, (run.physical + first) * block_size)

    def _content(self, node: Inode) -> Iterator[Data]:
        if node.flags & (ENCRYPTED | COMPRESSED):
            raise UnsupportedFormatError(
                f"Inode {node.number} is encrypted or compressed by the guest, so its content"
                " cannot be read; restore the whole disk instead."
            )
        if node.flags & INLINE_DATA:
            inline = (node.block + inline_rest(self._layout, node))[: node.size]
            if len(inline) != node.size:
                raise damaged(f"inode {node.number} lacks a part of its inline content")
            if inline:
                yield Data(0, inline)
            return
        block_size = self._layout.block_size
        step = _PIECE_BYTES // block_size
        for run in runs(self._layout, node):
            for done in range(0, run.blocks, step):
                offset = (run.logical + done) * block_size
                count = min(step, run.blocks - done)
                content = self._layout.read_blocks(run.physical + done, count)
                yield Data(offset, content[: node.size - offset])

    def _large_value(self, inode: int) -> bytes:
        node = self._layout.inode(inode)
        if node.size > _MAX_LARGE_VALUE_BYTES or not stat.S_ISREG(node.mode):
            raise damaged(f"inode {inode} cannot hold an extended attribute")
        return self._small(node)

    def _small(self, node: Inode) -> bytes:
        content = bytearray(node.size)
        for data in self._content(node):
            content[data.offset : data.offset + len(data.content)] = data.content
        return bytes(content)

    def _target(self, node: Inode) -> str:
        if node.flags & ENCRYPTED or not 0 < node.size <= _MAX_SYMLINK_BYTES:
            raise damaged(f"inode {node.number} is a symlink that cannot be read")
        if node.size < _FAST_SYMLINK_BYTES and not node.flags & INLINE_DATA:
            target = node.block[: node.size]
        else:
            target = self._small(node)
        if b"\0" in target:
            raise damaged(f"inode {node.number} is an impossible symlink")
        return target.decode("utf-8", "surrogateescape")

    def _dirents(self, block: bytes) -> Iterator[tuple[bytes, int]]:
        at = 0
        while at + 8 <= len(block):
            inode, length, name_length = struct.unpack_from("<IHH", block, at)
            if self._layout.incompat & DIRECTORY_TYPES:
                name_length &= 0xFF  # the byte above is the kind
            if length in (0, 0xFFFF) and len(block) == 65536:
                length = 65536  # a block of 64 KiB does not fit the field
            if length < 8 or length % 4 or at + length > len(block) or name_length > length - 8:
                raise damaged("a directory has an entry that does not fit into it")
            name = block[at + 8 : at + 8 + name_length]
            if inode and name not in (b".", b".."):
                if not 0 < len(name) <= _MAX_NAME_BYTES or b"/" in name or b"\0" in name:
                    raise damaged("a directory has an impossible name in it")
                yield name, inode
            at += length


def _device(node: Inode) -> tuple[int, int]:
    """Two encodings of device numbers: the old of 16 bits, else the new (linux/kdev_t.h)."""
    old, new = struct.unpack_from("<II", node.block)
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    return new >> 8 & 0xFFF, (new & 0xFF) | (new >> 12 & 0xFFF00)
