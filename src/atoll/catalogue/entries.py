"""What a catalogue says of a name, and the words it shares with the pages."""

from dataclasses import dataclass

import numpy as np

from atoll.filesystems.interface import EntryKind

STAT = np.dtype(
    [
        ("kind", "u1"),
        ("mode", "<u2"),
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("nlink", "<u4"),
        ("inode", "<u8"),
        ("size", "<u8"),
        ("mtime", "<i8"),
        ("mtime_nanos", "<u4"),
        ("ctime", "<i8"),
        ("ctime_nanos", "<u4"),
        ("target", "<u2"),
    ]
)
"""An entry's numbers; `kind` counts from 1 in EntryKind's order, 0 if its inode is damaged."""

KINDS = tuple(EntryKind)
_NANOS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One name as a catalogue has it.

    `path` is the guest's own, or begins with the volume's address (`disk1:part2:/x`) where nothing
    is mounted; bytes that are not UTF-8 are surrogate-escaped. `inner` is the path in its volume.
    `kind` is None where the inode is damaged, and then no number means anything. Sizes are bytes,
    times nanoseconds since the epoch. What changes with every reading (atime) is not there.
    """

    path: str
    volume: str
    inner: str
    kind: EntryKind | None
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    nlink: int
    target: str | None

    @property
    def name(self) -> str:
        """The last component of the path; empty for a volume's root."""
        return self.inner.rpartition("/")[2]


def entry_of(path: str, volume: str, inner: str, stat: np.void, target: bytes) -> CatalogueEntry:
    """The entry of a row of STAT."""
    kind = int(stat["kind"])
    return CatalogueEntry(
        path=path,
        volume=volume,
        inner=inner,
        kind=KINDS[kind - 1] if kind else None,
        size=int(stat["size"]),
        mode=int(stat["mode"]),
        uid=int(stat["uid"]),
        gid=int(stat["gid"]),
        mtime_ns=int(stat["mtime"]) * _NANOS + int(stat["mtime_nanos"]),
        ctime_ns=int(stat["ctime"]) * _NANOS + int(stat["ctime_nanos"]),
        inode=int(stat["inode"]),
        nlink=int(stat["nlink"]),
        target=target.decode("utf-8", "surrogateescape") if target else None,
    )
