"""Which files of a guest lie on bytes of its disks that are lost."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from atoll.blocks.lvm2 import Segment
from atoll.filesystems.interface import EntryKind, Placed
from atoll.filesystems.rows import Row
from atoll.filesystems.session import FileSystemSession
from atoll.guestfiles.browser import FileBrowser
from atoll.guestfiles.mounts import GuestVolume
from atoll.model.errors import UnsupportedFormatError
from atoll.model.extents import Extent, merge
from atoll.model.readers import BlockReader

_MAX_DIRECTORIES = 10_000_000  # a hostile image may name one directory in another without end


@dataclass(frozen=True, slots=True)
class DamagedFiles:
    """`files` hold lost bytes, by the guest's own paths; of `unread` nobody can say, and why."""

    files: tuple[str, ...]
    unread: tuple[str, ...]


class Patched:
    """A disk whose lost ranges read as zeros, so that what is whole around them can be looked at."""

    def __init__(self, reader: BlockReader, lost: Iterable[Extent]) -> None:
        self._reader = reader
        self.lost = merge(lost)

    @property
    def size_bytes(self) -> int:
        """The disk's size."""
        return self._reader.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`, with zeros for what is lost."""
        end = min(offset + length, self.size_bytes)
        parts = []
        for extent in self.lost:
            if extent.end <= offset:
                continue
            if extent.offset >= end:
                break
            if extent.offset > offset:
                parts.append(self._reader.read(offset, extent.offset - offset))
                offset = extent.offset
            parts.append(bytes(min(extent.end, end) - offset))
            offset = min(extent.end, end)
        if offset < end:
            parts.append(self._reader.read(offset, end - offset))
        return b"".join(parts)

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of each extent."""
        for extent in extents:
            yield extent.offset, self.read(extent.offset, extent.length)

    def holes(self) -> Sequence[Extent]:
        """None are told."""
        return ()

    def close(self) -> None:
        """The reader below is the caller's to close."""


def damaged_files(
    disks: Sequence[tuple[str, BlockReader]], lost: Mapping[str, Sequence[Extent]]
) -> DamagedFiles:
    """Walk every volume that lies on lost bytes; `disks` are (label, reader), `lost` goes by label.

    Where the damage lies in the file system's own structures, what hangs below cannot be seen; the
    directory or volume is then among the `unread`.
    """
    patched = [(label, Patched(reader, lost.get(label, ()))) for label, reader in disks]
    files: set[str] = set()
    unread: list[str] = []
    with FileBrowser(patched) as browser:
        names = {volume.address: point for point, volume in browser.mounts.volumes.items()}
        for volume in browser.volumes:
            ranges = _on_volume(volume, patched[volume.disk - 1][1].lost)
            if not ranges:
                continue
            prefix = names.get(volume.address, f"{volume.address}:").rstrip("/")
            try:
                with browser.borrowed(volume) as session:
                    _walk(session, prefix, ranges, files, unread)
            except UnsupportedFormatError as error:
                unread.append(str(error))
    return DamagedFiles(tuple(sorted(files)), tuple(unread))


def _on_volume(volume: GuestVolume, lost: Sequence[Extent]) -> list[Extent]:
    """The lost ranges as offsets of the volume."""
    part = volume.partition
    found = []
    for segment in part.segments or (Segment(0, part.length, part.offset),):
        for extent in lost:
            start = max(extent.offset, segment.disk_offset)
            end = min(extent.end, segment.disk_offset + segment.length)
            if start < end:
                found.append(Extent(start - segment.disk_offset + segment.offset, end - start))
    return merge(found)


def _walk(
    session: FileSystemSession,
    prefix: str,
    lost: Sequence[Extent],
    files: set[str],
    unread: list[str],
) -> None:
    todo = [(session.stat("/").inode, prefix)]
    seen = {todo[0][0]}
    while todo and len(seen) < _MAX_DIRECTORIES:
        inode, path = todo.pop()
        try:
            rows = list(session.children(inode))
        except UnsupportedFormatError as error:
            unread.append(f"{path or '/'}: {error}")
            continue
        for row in rows:
            name = f"{path}/{os.fsdecode(row.name)}"
            if row.kind is None:
                unread.append(f"{name}: its inode is damaged")
            elif row.kind is EntryKind.DIRECTORY and row.inode not in seen:
                seen.add(row.inode)
                todo.append((row.inode, name))
            elif row.kind is EntryKind.FILE:
                try:
                    if _lies_on(_places(session, row), lost):
                        files.add(name)
                except UnsupportedFormatError as error:
                    unread.append(f"{name}: {error}")


def _places(session: FileSystemSession, row: Row) -> Iterator[Placed]:
    known = row.places
    for place in session.layout(row.inode) if known is None else known:
        if isinstance(place, Placed):
            yield place


def _lies_on(places: Iterator[Placed], lost: Sequence[Extent]) -> bool:
    found = False
    for place in places:  # to its end: the parser is asked nothing else in the middle
        found = found or any(
            place.at < extent.end and extent.offset < place.at + place.length for extent in lost
        )
    return found
