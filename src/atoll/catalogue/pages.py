"""Pages of a catalogue: some thousand entries each, names apart from numbers.

Names and numbers are two pages, for names seldom change: points of one VM share most pages of both
kinds, and clones of a template share pages of names though their inodes and times differ. Byte by byte
in docs/formats/catalogue.md.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from atoll.catalogue.entries import KINDS, STAT
from atoll.model.errors import RepositoryDamagedError

NAMES_MAGIC = b"ATOLCTN\x01"
STATS_MAGIC = b"ATOLCTS\x01"
_NAMES = struct.Struct("<8sIIII")
_STATS = struct.Struct("<8sII")
MAX_ROWS = 1 << 20


@dataclass(frozen=True)
class NamesPage:
    """Directories, and the names of entries in each, in order: `counts` says how many.

    Paths are inside the volume: empty for its root, `/etc/ssl`. `text` is the names, each ended by a
    zero byte.
    """

    directories: Sequence[bytes]
    counts: NDArray[np.uint32]
    text: bytes

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Where in `text` each name ends."""
        return np.flatnonzero(np.frombuffer(self.text, np.uint8) == 0)

    @cached_property
    def firsts(self) -> NDArray[np.int64]:
        """The first row of each directory, and the number of rows."""
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def name(self, row: int) -> bytes:
        """The name of a row."""
        start = int(self.ends[row - 1]) + 1 if row else 0
        return self.text[start : int(self.ends[row])]

    def directory(self, row: int) -> bytes:
        """The directory of a row."""
        return self.directories[int(np.searchsorted(self.firsts, row, side="right")) - 1]

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Directory and name of each row."""
        names = iter(self.text.split(b"\0"))
        for directory, count in zip(self.directories, self.counts, strict=True):
            for _ in range(int(count)):
                yield directory, next(names)

    def to_bytes(self) -> bytes:
        """The stored form."""
        paths = b"".join(path + b"\0" for path in self.directories)
        head = _NAMES.pack(
            NAMES_MAGIC, len(self), len(self.directories), len(paths), len(self.text)
        )
        return head + self.counts.astype("<u4").tobytes() + paths + self.text

    @classmethod
    def from_bytes(cls, data: bytes) -> "NamesPage":
        """Read the stored form; RepositoryDamagedError if it is something else."""
        if len(data) >= _NAMES.size:
            magic, rows, directories, paths, text = _NAMES.unpack_from(data)
            at = _NAMES.size + 4 * directories
            sound = magic == NAMES_MAGIC and len(data) == at + paths + text and rows <= MAX_ROWS
            if sound:
                counts = np.frombuffer(data, "<u4", directories, _NAMES.size)
                split = data[at : at + paths].split(b"\0")[:-1]
                page = cls(split, counts, data[at + paths :])
                if len(split) == directories and rows == len(page) == page.text.count(0):
                    return page
        raise _no_page()


def pack_stats(stats: NDArray[np.void], targets: Sequence[bytes]) -> bytes:
    """The stored form of rows of STAT, and the symlinks' texts in their order."""
    text = b"".join(targets)
    parts = [_STATS.pack(STATS_MAGIC, len(stats), len(text))]
    for column in _columns(stats):
        # All lowest bytes first, then all second ones: these are alike, and compress.
        planes = column.view(np.uint8).reshape(len(stats), column.itemsize)
        parts.append(planes.T.tobytes())
    return b"".join(parts) + text


def unpack_stats(data: bytes) -> tuple[NDArray[np.void], bytes]:
    """Rows of STAT and the symlinks' texts; RepositoryDamagedError if it is something else."""
    if len(data) < _STATS.size:
        raise _no_page()
    magic, rows, text = _STATS.unpack_from(data)
    width = STAT.itemsize
    at = _STATS.size + rows * width
    if magic != STATS_MAGIC or len(data) != at + text or rows > MAX_ROWS:
        raise _no_page()
    stats = np.zeros(rows, STAT)
    place = _STATS.size
    for name, dtype in _COLUMNS:
        size = dtype.itemsize
        planes = np.frombuffer(data, np.uint8, rows * size, place).reshape(size, rows)
        stats[name] = np.ascontiguousarray(planes.T).view(dtype).reshape(rows)
        place += rows * size
    _undo_differences(stats)
    if np.any(stats["kind"] > len(KINDS)) or int(stats["target"].sum(dtype=np.int64)) != text:
        raise _no_page()
    return stats, data[at:]


_COLUMNS = [(name, STAT[name]) for name in STAT.names or ()]


def _columns(stats: NDArray[np.void]) -> Iterator[NDArray[np.generic]]:
    """The columns, some as differences: of inode and mtime to the row before, of ctime to mtime."""
    inode = stats["inode"].astype(np.uint64)
    mtime = stats["mtime"].astype(np.int64)
    differences: dict[str, NDArray[np.generic]] = {
        "inode": np.diff(inode, prepend=np.uint64(0)).astype("<u8"),
        "mtime": np.diff(mtime, prepend=np.int64(0)).astype("<i8"),
        "ctime": (stats["ctime"] - mtime).astype("<i8"),
        "ctime_nanos": (stats["ctime_nanos"] - stats["mtime_nanos"]).astype("<u4"),
    }
    for name, dtype in _COLUMNS:
        yield np.ascontiguousarray(differences.get(name, stats[name])).astype(dtype)


def _undo_differences(stats: NDArray[np.void]) -> None:
    stats["inode"] = np.cumsum(stats["inode"], dtype=np.uint64)
    stats["mtime"] = np.cumsum(stats["mtime"], dtype=np.int64)
    stats["ctime"] += stats["mtime"]
    stats["ctime_nanos"] += stats["mtime_nanos"]


def targets_of(stats: NDArray[np.void], text: bytes) -> list[bytes]:
    """The symlinks' texts, one for each row, empty for what is none."""
    found, at = [], 0
    for length in map(int, stats["target"]):
        found.append(text[at : at + length])
        at += length
    return found


def _no_page() -> RepositoryDamagedError:
    return RepositoryDamagedError(
        "A page of a file catalogue is not what was written; verify the repository. The files "
        "themselves are read from the disks: `atoll files --from-disks`."
    )
