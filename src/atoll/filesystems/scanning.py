"""Every inode and every name of a guest file system in one pass, parsed in the jail."""

import contextlib
from collections.abc import Iterator

from atoll.filesystems import wire
from atoll.filesystems.detect import detect
from atoll.filesystems.interface import Blocks, Fault
from atoll.filesystems.session import FileSystemSession, Limits
from atoll.filesystems.tables import InodeTable, NameTable, inode_table, name_table
from atoll.filesystems.wire import Kind

SCAN_LIMITS = Limits(memory_bytes=1 << 30, entries=20_000_000)
"""`entries` bounds inodes and names alike; a table of directories is all that the jail keeps."""


class ScanSession(FileSystemSession):
    """A session that can be asked for everything at once."""

    _parser = ("-m", "atoll.filesystems.scanner")

    def scan(self) -> Iterator[InodeTable | NameTable | Fault]:
        """Tables of all that is in use, in no order.

        A Fault's path is the number of an inode, a directory that could not be read whole.
        UnsupportedFormatError, perhaps in the middle, for what is damaged or has too many entries.
        """
        with contextlib.closing(self._asked("scan", 0, self._tables())) as tables:
            yield from tables

    def _tables(self) -> Iterator[InodeTable | NameTable | Fault]:
        inodes = names = 0
        while True:
            kind, payload = self._result()
            match kind:
                case Kind.END:
                    return
                case Kind.INODES:
                    table = inode_table(payload)
                    inodes += len(table.rows)
                    yield table
                case Kind.NAMES:
                    found = name_table(payload)
                    names += len(found.lengths)
                    yield found
                case Kind.FAULT:
                    yield wire.decode_fault(payload)
                case _:
                    raise self._stop("a frame out of turn")
            if max(inodes, names) > self._limits.entries:
                raise self._stop("more entries than a file system may have here")


def open_scan(reader: Blocks, limits: Limits = SCAN_LIMITS) -> ScanSession:
    """Open what begins at offset 0 of `reader`, which stays the caller's to close.

    UnsupportedFormatError, in one sentence, for what is no file system that can be read.
    """
    content = detect(reader)
    if not content.supported:
        raise content.refusal()
    return ScanSession(reader, content.kind, limits)
