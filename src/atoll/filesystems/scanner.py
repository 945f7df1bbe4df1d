"""The jailed process of a scan: the parser with one more answer, every inode and every name.

Apart from `parser.py` because columns need NumPy, which must be there before the walls go up and
takes longer to load than most questions to answer.
"""

import json
from collections.abc import Iterator

import numpy as np
import numpy.ma  # what NumPy would load when it is first needed, and then could not

from atoll.filesystems import ext4_scan, ntfs_scan, parser, xfs_scan
from atoll.filesystems.ext4 import Ext4Volume
from atoll.filesystems.interface import Entry, EntryKind, Volume
from atoll.filesystems.ntfs import NtfsVolume
from atoll.filesystems.tables import INODE, KIND_NUMBERS, bad_names, pack_inodes, pack_names
from atoll.filesystems.wire import Kind
from atoll.filesystems.xfs import XfsVolume
from atoll.model.errors import UnsupportedFormatError

Frame = tuple[Kind, bytes]
_BATCH_NAMES = 16384
_NANOS = 1_000_000_000
_MOST_BYTES = 1 << 20


def frames(volume: Volume) -> Iterator[Frame]:
    """Every inode and name of a volume, from its tables where these can be read as such."""
    if isinstance(volume, Ext4Volume):
        yield from ext4_scan.frames(volume)
    elif isinstance(volume, XfsVolume):
        inodes = xfs_scan.pieces(volume)
        yield from walked(volume) if inodes is None else xfs_scan.frames(volume, inodes)
    elif isinstance(volume, NtfsVolume):
        yield from ntfs_scan.frames(volume)
    else:
        yield from walked(volume)


def walked(volume: Volume) -> Iterator[Frame]:
    """The same of any volume, directory by directory."""
    inodes = _Inodes()
    names = _Names()
    try:
        inodes.add(volume.entry(volume.root, "/"))
    except UnsupportedFormatError as error:
        yield fault(volume.root, str(error))
    waiting = [volume.root]
    seen = {volume.root}
    while waiting:
        directory = waiting.pop()
        try:
            found = sorted(volume.names(directory), key=lambda pair: pair[1])
        except UnsupportedFormatError as error:
            yield fault(directory, str(error))
            continue
        for name, number in found:
            names.add(directory, number, name)
            if number not in seen:
                seen.add(number)
                try:
                    entry = volume.entry(number, "/")
                except UnsupportedFormatError:
                    continue  # a name without an inode says so
                inodes.add(entry)
                if entry.kind is EntryKind.DIRECTORY:
                    waiting.append(number)
            if names.full or inodes.full:
                yield from _taken(inodes, names)
    yield from _taken(inodes, names)


def fault(inode: int, reason: str) -> Frame:
    """A directory, or with 0 the file system, that could not be read whole."""
    return Kind.FAULT, json.dumps([str(inode), reason, False]).encode()


class _Inodes:
    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._targets: list[bytes] = []
        self._bytes = 0

    @property
    def full(self) -> bool:
        return len(self._rows) >= _BATCH_NAMES or self._bytes > _MOST_BYTES

    def add(self, entry: Entry) -> None:
        target = (entry.target or "").encode("utf-8", "surrogateescape")
        self._targets.append(target)
        self._bytes += len(target)
        mtime, mtime_nanos = divmod(entry.mtime_ns, _NANOS)
        ctime, ctime_nanos = divmod(entry.ctime_ns, _NANOS)
        self._rows.append(
            (
                *(entry.inode, entry.size, mtime, ctime, mtime_nanos, ctime_nanos),
                *(entry.uid, entry.gid, entry.nlink, entry.mode, len(target)),
                KIND_NUMBERS[entry.kind],
            )
        )

    def take(self) -> bytes:
        payload = pack_inodes(np.array(self._rows, INODE), self._targets)
        self._rows, self._targets, self._bytes = [], [], 0
        return payload

    def __len__(self) -> int:
        return len(self._rows)


class _Names:
    def __init__(self) -> None:
        self._rows: list[tuple[int, int, bytes]] = []
        self._bytes = 0

    @property
    def full(self) -> bool:
        return len(self._rows) >= _BATCH_NAMES or self._bytes > _MOST_BYTES

    def add(self, parent: int, inode: int, name: bytes) -> None:
        self._bytes += len(name)
        self._rows.append((parent, inode, name))

    def take(self) -> bytes:
        text = b"".join(name for _, _, name in self._rows)
        lengths = np.array([len(name) for _, _, name in self._rows], np.uint16)
        assert not bad_names(lengths, text).any()
        payload = pack_names(
            np.array([parent for parent, _, _ in self._rows], np.uint64),
            np.array([inode for _, inode, _ in self._rows], np.uint64),
            lengths,
            text,
        )
        self._rows, self._bytes = [], 0
        return payload

    def __len__(self) -> int:
        return len(self._rows)


def _taken(inodes: _Inodes, names: _Names) -> Iterator[Frame]:
    if len(inodes):
        yield Kind.INODES, inodes.take()
    if len(names):
        yield Kind.NAMES, names.take()


if __name__ == "__main__":
    parser.main({"scan": frames})
