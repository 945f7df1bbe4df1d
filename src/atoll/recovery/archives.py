"""Writes a guest's tree as a tar or zip archive, in one pass, to wherever bytes can be written.

What a guest names its files must not lead out of the directory in which somebody unpacks the
archive: names are relative, nothing lies below a symlink, and no name comes twice that could
turn one into the other.
"""

import os
import re
import stat
import tarfile
import time
import zipfile
from abc import ABC, abstractmethod
from typing import IO, BinaryIO

from atoll.filesystems.interface import Entry, EntryKind
from atoll.recovery.losses import Losses

_ZEROS = bytes(1 << 20)
_MAX_HOLES_BYTES = 1 << 40
_PRIVILEGED = stat.S_ISUID | stat.S_ISGID
_CAPABILITIES = "security.capability"
_KINDS = {
    EntryKind.SOCKET: "a socket",
    EntryKind.FIFO: "a named pipe",
    EntryKind.CHARACTER: "a device node",
    EntryKind.BLOCK: "a device node",
}


class ArchiveWriter(Losses, ABC):
    """Takes entries parents first and content in between, as TreeWriter does; then call `end`.

    `files` and `bytes` count what was written; holes are written as zeros and not counted. Without
    `keep_privileges` set-user-ID, set-group-ID and capabilities are left out: whoever unpacks the
    archive as root would give them to a guest's program. OSError from the output passes.
    """

    links: bool

    def __init__(self, keep_privileges: bool = False) -> None:
        super().__init__()
        self.files = 0
        self.bytes = 0
        self.restored = 0
        self._keep_privileges = keep_privileges
        self._directories = {""}
        self._symlinks: set[str] = set()
        self._names: dict[int, str | None] = {}
        self._linked: set[str] = set()
        self._file: tuple[str, Entry] | None = None
        self._at = 0

    def begin_volume(self) -> None:
        """Inode numbers from here on are another file system's."""
        self.finish_file()
        self._names.clear()

    def add(self, path: str, entry: Entry) -> bool:
        """Begin an entry at a relative path; False when it is not in the archive."""
        self.finish_file()
        refused = self._refused(path, entry)
        if refused:
            self.lose(f"{path}: not restored. {refused}")
            return False
        match entry.kind:
            case EntryKind.DIRECTORY:
                self._directories.add(path)
                added = self._put(path, entry)
            case EntryKind.SYMLINK:
                self._symlinks.add(path)
                added = self._put(path, entry)
            case EntryKind.FILE:
                added = self._begin_any(path, entry)
            case _:
                added = self._put(path, entry)
        self.restored += added
        return added

    def write(self, offset: int, content: bytes) -> None:
        """Bytes of the file added last, ascending."""
        if self._file is None:
            return
        size = self._file[1].size
        content = content[max(0, self._at - offset) : max(0, size - offset)]
        if content:
            offset = max(offset, self._at)
            self._fill(offset)
            self._content(content)
            self._at += len(content)
            self.bytes += len(content)

    def finish_file(self) -> None:
        """The file added last is whole; what was not written of it is zeros."""
        if self._file is None:
            return
        self._fill(self._file[1].size)
        self._file = None
        self._end_content()
        self.files += 1

    def abandon_file(self) -> None:
        """The file added last is damaged; what is in the archive of it cannot be taken back."""
        if self._file is None:
            return
        path, entry = self._file
        self._names[entry.inode] = None
        self.finish_file()
        self.files -= 1
        self.restored -= 1
        self.lose(f"{path}: it is in the archive, with zeros for what could not be read")

    def end(self) -> None:
        """Nothing more comes."""
        self.finish_file()
        self._end()

    @abstractmethod
    def _put(self, path: str, entry: Entry) -> bool:
        """Something without content; False, and a note, for what the archive cannot hold."""

    @abstractmethod
    def _link(self, path: str, entry: Entry, first: str) -> None:
        """Another name of a file."""

    @abstractmethod
    def _begin(self, path: str, entry: Entry) -> bool:
        """A file, whose content comes; False, and a note, when it cannot be there."""

    @abstractmethod
    def _content(self, content: bytes) -> None:
        """The next bytes of the file."""

    @abstractmethod
    def _end_content(self) -> None:
        """All of its bytes came."""

    @abstractmethod
    def _end(self) -> None:
        """Close the archive, not the output."""

    def _begin_any(self, path: str, entry: Entry) -> bool:
        if self.links and entry.nlink > 1 and entry.inode in self._names:
            first = self._names[entry.inode]
            if first is None:
                self.lose(f"{path}: not restored, for the same reason as its other name")
                return False
            self._link(path, entry, first)
            self.files += 1
            return True
        if not self._begin(path, entry):
            return False
        self._file, self._at = (path, entry), 0
        if self.links and entry.nlink > 1:
            self._names[entry.inode] = path
            self._linked.add(path)
        return True

    def _refused(self, path: str, entry: Entry) -> str:
        """Why an entry may not be in the archive; empty when it may."""
        parent, _, name = path.rpartition("/")
        if name in ("", ".", "..") or parent not in self._directories:
            return "The directory it lies in is not in the archive."
        if path in self._symlinks or path in self._directories or path in self._linked:
            return "The guest has another of this name."
        if entry.kind is EntryKind.FILE and entry.size - entry.allocated_bytes > _MAX_HOLES_BYTES:
            return (
                f"It has {entry.size} bytes and hardly any content, which an archive would hold as "
                "zeros; restore it into a directory."
            )
        return ""

    def _fill(self, end: int) -> None:
        while self._at < end:
            length = min(len(_ZEROS), end - self._at)
            self._content(_ZEROS[:length])
            self._at += length

    def _mode(self, path: str, entry: Entry) -> int:
        """The mode, without what would give rights to whoever starts the file."""
        if self._keep_privileges or entry.kind is EntryKind.DIRECTORY:
            return entry.mode
        if entry.mode & _PRIVILEGED:
            self.note(
                f"{path}: set-user-ID or set-group-ID left off, as whoever unpacks the archive would "
                "give them; --keep-privileges keeps them"
            )
        return entry.mode & ~_PRIVILEGED

    def _xattrs(self, path: str, entry: Entry) -> list[tuple[str, bytes]]:
        kept = []
        for name, value in entry.xattrs or ():
            if name == _CAPABILITIES and not self._keep_privileges:
                self.note(
                    f"{path}: file capabilities left off, as whoever unpacks the archive would give "
                    "them; --keep-privileges keeps them"
                )
            else:
                kept.append((name, value))
        return kept


class TarWriter(ArchiveWriter):
    """A POSIX (PAX) archive: owners, modes, times to the nanosecond, links and attributes.

    Attributes and ACLs are `SCHILY.xattr.NAME`, which GNU tar restores with `--xattrs
    --xattrs-include='*'` and bsdtar by itself. Source: POSIX.1-2001, pax.
    """

    links = True

    def __init__(self, out: IO[bytes], keep_privileges: bool = False) -> None:
        super().__init__(keep_privileges)
        self._out = out
        self._written = 0

    def _put(self, path: str, entry: Entry) -> bool:
        match entry.kind:
            case EntryKind.DIRECTORY:
                self._header(path, entry, tarfile.DIRTYPE)
            case EntryKind.SYMLINK:
                self._header(path, entry, tarfile.SYMTYPE, link=entry.target or "")
            case EntryKind.FIFO:
                self._header(path, entry, tarfile.FIFOTYPE)
            case _:
                # A device node would open the disks of whatever machine unpacks it.
                self.note(f"{path}: {_KINDS[entry.kind]} is not restored into an archive")
                return False
        return True

    def _link(self, path: str, entry: Entry, first: str) -> None:
        self._header(path, entry, tarfile.LNKTYPE, link=first)

    def _begin(self, path: str, entry: Entry) -> bool:
        self._header(path, entry, tarfile.REGTYPE, size=entry.size)
        return True

    def _content(self, content: bytes) -> None:
        self._out.write(content)
        self._written += len(content)

    def _end_content(self) -> None:
        self._content(bytes(-self._at % tarfile.BLOCKSIZE))

    def _end(self) -> None:
        self._content(bytes(2 * tarfile.BLOCKSIZE))
        self._content(bytes(-self._written % tarfile.RECORDSIZE))

    def _header(self, path: str, entry: Entry, kind: bytes, size: int = 0, link: str = "") -> None:
        info = tarfile.TarInfo(path)
        info.type, info.size, info.linkname = kind, size, link
        info.mode, info.uid, info.gid = self._mode(path, entry), entry.uid, entry.gid
        info.mtime = entry.mtime_ns // 10**9
        info.pax_headers = {"mtime": _seconds(entry.mtime_ns), "atime": _seconds(entry.atime_ns)}
        for name, value in () if kind == tarfile.LNKTYPE else self._xattrs(path, entry):
            if "=" in name or not name.isprintable():
                self.note(f"{path}: attribute {name!a}, whose name an archive cannot hold")
                continue
            info.pax_headers[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
        self._content(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))


class ZipWriter(ArchiveWriter):
    """A zip archive: modes, times to two seconds, symlinks. Each name of a file has its content.

    Owners, ACLs and attributes are lost, which is noted once; names that Windows would take for
    others are written with `%XX`. Source: PKWARE, APPNOTE 6.3; Info-ZIP's Unix attributes.
    """

    links = False

    def __init__(self, out: BinaryIO, keep_privileges: bool = False) -> None:
        super().__init__(keep_privileges)
        self._zip = zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        self._open: IO[bytes] | None = None
        self._renamed: set[str] = set()

    def _put(self, path: str, entry: Entry) -> bool:
        if entry.kind not in (EntryKind.DIRECTORY, EntryKind.SYMLINK):
            self.note(f"{path}: {_KINDS[entry.kind]}, which a zip archive cannot hold")
            return False
        info = self._info(path, entry)
        if info is None:
            return False
        self._zip.writestr(info, os.fsencode(entry.target or ""))
        return True

    def _link(self, path: str, entry: Entry, first: str) -> None:
        raise AssertionError("a zip archive has no links")

    def _begin(self, path: str, entry: Entry) -> bool:
        info = self._info(path, entry)
        if info is None:
            return False
        if entry.nlink > 1:
            self.note("hard links: each name of a file is a file of its own", once=True)
        info.file_size = entry.size
        self._open = self._zip.open(info, "w")
        return True

    def _content(self, content: bytes) -> None:
        assert self._open is not None
        self._open.write(content)

    def _end_content(self) -> None:
        assert self._open is not None
        self._open.close()
        self._open = None

    def _end(self) -> None:
        self._zip.close()

    def _info(self, path: str, entry: Entry) -> zipfile.ZipInfo | None:
        """The entry's header; None, and counted missing, when its name cannot be told from another."""
        self.note("owners and groups: a zip archive does not hold them", once=True)
        if entry.xattrs:
            self.note("attributes and ACLs: a zip archive does not hold them", once=True)
        name = _UNSAFE.sub(_escaped, os.fsencode(path)).decode()
        if "%" in name:
            if name in self._renamed:
                self.lose(f"{path}: not restored. Another name was written as {name}.")
                return None
            self._renamed.add(name)
        if name != path:
            self.note(f"{path}: written as {name}")
        kind = {
            EntryKind.DIRECTORY: stat.S_IFDIR,
            EntryKind.SYMLINK: stat.S_IFLNK,
        }.get(entry.kind, stat.S_IFREG)
        info = zipfile.ZipInfo(name + ("/" if entry.kind is EntryKind.DIRECTORY else ""))
        when = entry.mtime_ns // 10**9
        if _FIRST <= when < _LAST:
            info.date_time = time.localtime(when)[:6]
        else:
            self.note(f"{path}: its time, which a zip archive cannot say")
        info.create_system = 3  # Unix
        info.external_attr = (kind | self._mode(path, entry)) << 16
        if entry.kind is EntryKind.DIRECTORY:
            info.external_attr |= 0x10
        elif entry.kind is EntryKind.FILE:
            info.compress_type = zipfile.ZIP_DEFLATED
        return info


# A day within what zip can say, whatever the time zone.
_FIRST, _LAST = 315_619_200, 4_354_732_800
# Bytes that are not UTF-8, control characters, and what Windows takes for parts of a path.
_UNSAFE = re.compile(
    rb'[\x00-\x1f\x7f\\:*?"<>|]'
    rb"|(?:[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    rb"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}"
    rb"|\xf4[\x80-\x8f][\x80-\xbf]{2})|[\x80-\xff]"
)


def _escaped(match: re.Match[bytes]) -> bytes:
    found = match[0]
    return found if len(found) > 1 else b"%%%02X" % found[0]


def _seconds(nanoseconds: int) -> str:
    """As pax has times: `-1.5` is half a second before the second before the epoch."""
    whole, part = divmod(abs(nanoseconds), 10**9)
    sign = "-" if nanoseconds < 0 else ""
    return f"{sign}{whole}.{part:09}".rstrip("0").rstrip(".")
