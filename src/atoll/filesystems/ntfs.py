"""NTFS: the parser that runs in the jail.

A file is a record of the MFT, and its number the inode's. Alternate data streams that fit into an
extended attribute are `user.` attributes of their file; a larger one is a file of its own beside
it, named as Windows names it, `file:stream`, with the stream's place in the upper half of the
inode number.
"""

import struct
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress

from atoll.filesystems import ntfs_index, ntfs_log, ntfs_reparse
from atoll.filesystems.interface import Blocks, Data, Entry, EntryKind, Journal, Placed
from atoll.filesystems.ntfs_content import content_of, layout_of
from atoll.filesystems.ntfs_layout import (
    DATA,
    EXTENDED_ATTRIBUTES,
    FILE_NAME,
    REPARSE_POINT,
    SECURITY_DESCRIPTOR,
    STANDARD_INFORMATION,
    VOLUME_NAME,
    Layout,
    Piece,
    Record,
    damaged,
    nanoseconds,
    small_value,
)
from atoll.filesystems.ntfs_reparse import Reparse
from atoll.filesystems.utf16_names import is_possible, to_bytes, to_text
from atoll.filesystems.wire import MAX_XATTR_BYTES
from atoll.model.errors import UnsupportedFormatError

ROOT, _SECURE, FIRST_USER = 5, 9, 16
DOS = 2
_STREAM_SHIFT = 32
_STALE = 1 << 43
_MAX_STREAMS = 1000
_DIRECTORY_FLAG, _NORMAL_FLAG = 0x10, 0x80
_SHOWN_FLAGS = 0x0FFFFFFF
_REPARSE_FLAG = 0x400
_MAX_BYTES = 1 << 63
_MAX_DESCRIPTORS = 1_000_000
_CACHED_DESCRIPTORS = 512
_SDS = "$SDS".encode("utf-16-le")
_WOF_STREAM = "WofCompressedData".encode("utf-16-le")
_STANDARD = struct.Struct("<4QI")
# Windows' access rules have no owner or mode of this machine: only who restores may read.
DIRECTORY_MODE, FILE_MODE, _SYMLINK_MODE = 0o700, 0o600, 0o777


def open_volume(blocks: Blocks) -> "NtfsVolume":
    """Open an image; what only its log knows is missing, and `journal` then says so."""
    return NtfsVolume(Layout(blocks))


class NtfsVolume:
    """A Volume (see `interface.py`)."""

    kind = "ntfs"
    root = ROOT

    def __init__(self, layout: Layout) -> None:
        self.disk = layout
        self.uuid = layout.uuid
        name = ntfs_log.volume_record(layout).first(VOLUME_NAME)
        self.label = to_text((name.value or b"")[:256]) if name is not None else ""
        self.journal: Journal = ntfs_log.state(layout)
        self._stored: dict[int, ntfs_index.Stored] | None = None
        self._descriptors: OrderedDict[int, bytes] = OrderedDict()

    def entry(self, inode: int, path: str) -> Entry:
        """Metadata of a file, or of a stream that is shown as one."""
        if inode & _STALE:
            number = inode & ~_STALE
            raise damaged(f"{path} names record {number}, which belongs to another file")
        record = self._record(inode)
        standard = record.first(STANDARD_INFORMATION)
        if standard is None or standard.value is None or len(standard.value) < 48:
            raise damaged(f"record {record.number} has no times")
        _, modified, changed, accessed, attributes = _STANDARD.unpack_from(standard.value)
        number = inode >> _STREAM_SHIFT
        reparse = None if number else self._reparse(record, attributes)
        kind = EntryKind.DIRECTORY if record.is_directory and not number else EntryKind.FILE
        if reparse is not None and reparse.kind is not None:
            kind = reparse.kind
        links = 1 if number or kind is EntryKind.DIRECTORY else _links(record)
        size, allocated = self._sizes(record, inode, kind, reparse)
        return Entry(
            path=path,
            kind=kind,
            size=size,
            mode={
                EntryKind.DIRECTORY: DIRECTORY_MODE,
                EntryKind.SYMLINK: _SYMLINK_MODE,
            }.get(kind, FILE_MODE),
            uid=0,
            gid=0,
            mtime_ns=nanoseconds(modified),
            atime_ns=nanoseconds(accessed),
            ctime_ns=nanoseconds(changed),
            nlink=links,
            inode=inode,
            target=reparse.target if reparse is not None else None,
            allocated_bytes=allocated,
        )

    def names(self, inode: int) -> Iterator[tuple[bytes, int]]:
        """Names of a directory without those for DOS, and the large streams beside their files."""
        directory = self.disk.record(inode)
        if not directory.is_directory:
            raise damaged(f"record {inode} is not a directory")
        if inode == ROOT:
            yield from self.large_streams(b"", directory)
        for name, found in self._indexed(directory):
            number = self._checked(found)
            yield name, number
            if number == found.record:
                with suppress(UnsupportedFormatError):  # asked about itself, it says why
                    yield from self.large_streams(name, self.disk.record(number))

    def find(self, inode: int, name: bytes) -> int | None:
        """The same for one name, without a look at all the other records of the directory."""
        if b":" in name:
            return next((number for known, number in self.names(inode) if known == name), None)
        for known, found in self._indexed(self.disk.record(inode)):
            if known == name:
                return self._checked(found)
        return None

    def _indexed(self, directory: Record) -> Iterator[tuple[bytes, ntfs_index.IndexedName]]:
        for found in ntfs_index.names(self.disk, directory):
            if found.space == DOS or (directory.number == ROOT and found.record < FIRST_USER):
                continue
            name = to_bytes(found.name)
            if not is_possible(name):
                raise damaged("a directory has an impossible name in it")
            yield name, found

    def _checked(self, found: ntfs_index.IndexedName) -> int:
        """The inode that an index means; one that is in use by another file says so when asked."""
        try:
            if self.disk.record(found.record).sequence != found.sequence:
                return found.record | _STALE
        except UnsupportedFormatError:
            pass
        return found.record & (_STALE - 1) or 1

    def content(self, inode: int) -> Iterator[Data]:
        """Bytes of a file or stream, holes and what was never written left out."""
        return content_of(self.disk, self._data(inode))

    def layout(self, inode: int) -> Iterator[Placed | Data]:
        """Where they lie; resident and compressed ones come along."""
        return layout_of(self.disk, self._data(inode))

    def xattrs(self, inode: int) -> tuple[tuple[str, bytes], ...]:
        """What only Windows knows, by the names that ntfs-3g gives it, and the smaller streams."""
        if inode >> _STREAM_SHIFT:
            return ()
        record = self._record(inode)
        found = []
        standard = record.first(STANDARD_INFORMATION)
        value = b"" if standard is None or standard.value is None else standard.value
        if len(value) >= 48:
            # The upper bits are the file system's own; a directory is one by its record.
            attributes = int.from_bytes(value[32:36], "little") & _SHOWN_FLAGS & ~_DIRECTORY_FLAG
            if record.is_directory:
                attributes |= _DIRECTORY_FLAG
            attributes = attributes or _NORMAL_FLAG
            found.append(("system.ntfs_attrib_be", attributes.to_bytes(4, "big")))
            found.append(("system.ntfs_crtime_be", value[:8][::-1]))
        access = self._access(record, value)
        if access:
            found.append(("system.ntfs_acl", access))
        short = [p.value for p in record.pieces if p.type == FILE_NAME and p.value is not None]
        for name in short:
            if len(name) >= 66 and name[65] == DOS:
                found.append(("system.ntfs_dos_name", to_bytes(name[66 : 66 + 2 * name[64]])))
                break
        for kind, key in (
            (REPARSE_POINT, "system.ntfs_reparse_data"),
            (EXTENDED_ATTRIBUTES, "system.ntfs_ea"),
        ):
            raw = small_value(self.disk, record.parts(kind), MAX_XATTR_BYTES)
            if raw:
                found.append((key, raw))
        for stream in _streams(record):
            if stream.size <= MAX_XATTR_BYTES and not self._hidden(record, stream):
                found.append((f"user.{to_text(stream.name)}", self._stream(record, stream)))
        return tuple(found)

    def _record(self, inode: int) -> Record:
        if inode & _STALE:
            raise damaged(f"record {inode & ~_STALE} belongs to another file")
        return self.disk.record(inode & ((1 << _STREAM_SHIFT) - 1))

    def _sizes(
        self, record: Record, inode: int, kind: EntryKind, reparse: Reparse | None
    ) -> tuple[int, int]:
        """Bytes of what is shown, and what they take on the volume."""
        size = allocated = 0
        if kind is EntryKind.FILE:
            data = self._first(record, inode)
            if data is not None:
                size, allocated = data.size, data.allocated if data.value is None else 0
        elif kind is EntryKind.DIRECTORY:
            size, allocated = ntfs_index.allocated_bytes(record)
        elif kind is EntryKind.SYMLINK and reparse is not None:
            size = len((reparse.target or "").encode("utf-8", "surrogateescape"))
        if size >= _MAX_BYTES or allocated >= _MAX_BYTES:
            raise damaged(f"record {record.number} has an impossible size")
        return size, allocated

    def _first(self, record: Record, inode: int) -> Piece | None:
        number = inode >> _STREAM_SHIFT
        if not number:
            return record.first(DATA)
        streams = _streams(record)
        if number > len(streams):
            raise damaged(f"record {record.number} has no such stream")
        return streams[number - 1]

    def _data(self, inode: int) -> list[Piece]:
        record = self._record(inode)
        if inode >> _STREAM_SHIFT:
            stream = self._first(record, inode)
            return [] if stream is None else record.parts(DATA, stream.name)
        standard = record.first(STANDARD_INFORMATION)
        value = b"" if standard is None else standard.value or b""
        reparse = self._reparse(record, int.from_bytes(value[32:36], "little"))
        if reparse is not None and reparse.obstacle:
            raise UnsupportedFormatError(
                f"It cannot be read file by file ({reparse.obstacle}); restore the whole disk"
                " instead."
            )
        return record.parts(DATA)

    def _reparse(self, record: Record, attributes: int) -> Reparse | None:
        if not attributes & _REPARSE_FLAG:
            return None
        parts = record.parts(REPARSE_POINT)
        if not parts:
            return None
        raw = small_value(self.disk, parts, ntfs_reparse.MAX_BYTES)
        return ntfs_reparse.understand(raw, attributes)

    def large_streams(self, name: bytes, record: Record) -> Iterator[tuple[bytes, int]]:
        """Streams of a file that are shown beside it, named by its name there, and their inodes."""
        for number, stream in enumerate(_streams(record), 1):
            if stream.size <= MAX_XATTR_BYTES or self._hidden(record, stream):
                continue
            shown = name + b":" + to_bytes(stream.name)
            if is_possible(shown):
                yield shown, number << _STREAM_SHIFT | record.number

    def _hidden(self, record: Record, stream: Piece) -> bool:
        """What the overlay filter keeps is the file's own content, in another form."""
        if stream.name != _WOF_STREAM:
            return False
        reparse = record.first(REPARSE_POINT)
        tag = b"" if reparse is None else (reparse.value or b"")[:4]
        return int.from_bytes(tag, "little") == ntfs_reparse.WOF

    def _stream(self, record: Record, stream: Piece) -> bytes:
        value = bytearray(stream.size)
        for offset, content in content_of(self.disk, record.parts(DATA, stream.name)):
            value[offset : offset + len(content)] = content
        return bytes(value)

    def _access(self, record: Record, standard: bytes) -> bytes:
        """The security descriptor: the volume's shared copy, or in old volumes the file's own."""
        number = int.from_bytes(standard[52:56], "little") if len(standard) >= 72 else 0
        if not number:
            return small_value(self.disk, record.parts(SECURITY_DESCRIPTOR), MAX_XATTR_BYTES)
        known = self._descriptors.get(number)
        if known is None:
            known = self._descriptors[number] = self._descriptor(number)
            if len(self._descriptors) > _CACHED_DESCRIPTORS:
                self._descriptors.popitem(last=False)
        return known

    def _descriptor(self, number: int) -> bytes:
        secure = self.disk.record(_SECURE)
        if self._stored is None:
            stored: dict[int, ntfs_index.Stored] = {}
            for key, found in ntfs_index.security_descriptors(self.disk, secure):
                stored[key] = found
                if len(stored) > _MAX_DESCRIPTORS:
                    raise damaged("it has more security descriptors than files can have")
            self._stored = stored
        place = self._stored.get(number)
        if place is None or not 20 < place.length <= MAX_XATTR_BYTES:
            raise damaged(f"security descriptor {number} is not to be found")
        raw = self._part(secure.parts(DATA, _SDS), place)
        if int.from_bytes(raw[4:8], "little") != number:
            raise damaged(f"security descriptor {number} is not where it should be")
        return raw[20:]

    def _part(self, parts: list[Piece], place: ntfs_index.Stored) -> bytes:
        result = bytearray(place.length)
        for piece in layout_of(self.disk, parts):
            length = len(piece.content) if isinstance(piece, Data) else piece.length
            begin = max(piece.offset, place.offset)
            end = min(piece.offset + length, place.offset + place.length)
            if begin >= end:
                continue
            if isinstance(piece, Data):
                content = piece.content[begin - piece.offset : end - piece.offset]
            else:
                content = self.disk.blocks.read(piece.at + begin - piece.offset, end - begin)
            result[begin - place.offset : end - place.offset] = content
        return bytes(result)


def _links(record: Record) -> int:
    names = [piece.value for piece in record.pieces if piece.type == FILE_NAME]
    return max(1, sum(1 for name in names if name and len(name) >= 66 and name[65] != DOS))


def _streams(record: Record) -> list[Piece]:
    """Named data of a file, in the order of their names."""
    found = [p for p in record.pieces if p.type == DATA and p.name and not p.first]
    if len(found) > 1:
        found.sort(key=lambda piece: piece.name)
        if len(found) > _MAX_STREAMS:
            raise damaged(f"record {record.number} has more than {_MAX_STREAMS} streams")
    return found
